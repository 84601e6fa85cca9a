"""Metrics against plain torch, conservation laws to rounding, and measuring without a trace."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fabook.metrics import (
    Alignment,
    Walk,
    conserved,
    conserved_normalised,
    cosine,
    first_order,
    gradient_alignment,
    gradient_alignment_per_sample,
    growth_exponent,
    hidden_share,
    network_alignment,
    network_overlap,
    order_parameters,
    unchanged,
    weight_alignment,
)
from fabook.networks import convnet, mlp
from fabook.rules import BP, BRSF, DFA, DRTP, FA, FRSF, RULES, USF, KolenPollack, Shallow
from fabook.streams import stream
from fabook.training import train

few = settings(deadline=None, derandomize=True, max_examples=30, database=None)
double = torch.float64


def randn(*shape, seed=0, dtype=double):
    return torch.randn(shape, generator=stream(seed, "test", *shape), dtype=dtype)


def labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=stream(seed, "labels", n))


def net_of(*sizes, activation="tanh", seed=0, bias=True, dtype=double):
    net = mlp(
        sizes, activation=activation, bias=bias, generator=stream(seed, "weights"), dtype=dtype
    )
    with torch.no_grad():
        for k, layer in enumerate(m for m in net if isinstance(m, nn.Linear) and bias):
            layer.bias.copy_(0.1 * randn(len(layer.bias), seed=seed + k + 1))
    return net


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)


def plain_cosine(a, b):
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


# --- cosine ---------------------------------------------------------------------------------------


def test_cosine_is_signed_and_knows_no_scale():
    a, b = randn(5, seed=1), randn(5, seed=2)
    assert float(cosine(a, b)) == pytest.approx(plain_cosine(a, b), abs=1e-15)
    assert float(cosine(a, -b)) == -float(cosine(a, b))
    assert float(cosine(a, a)) == pytest.approx(1, abs=1e-15)
    assert float(cosine(a, -3 * a)) == pytest.approx(-1, abs=1e-15)
    assert float(cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))) == 0


@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e-30, 1e30, 1e200, 1e308])
def test_cosine_of_tiny_and_huge_vectors(size):
    a = torch.tensor([size, 0.0], dtype=double)
    b = torch.tensor([size, -size], dtype=double)
    assert float(cosine(a, b)) == pytest.approx(math.sqrt(0.5), abs=1e-15)
    assert float(cosine(a, -b)) == pytest.approx(-math.sqrt(0.5), abs=1e-15)
    one = torch.tensor([1.0, 0.0], dtype=double)
    assert float(cosine(a, one)) == 1


def test_cosine_of_a_zero_vector_is_nan():
    assert cosine(torch.zeros(3), torch.ones(3)).isnan()
    assert cosine(torch.ones(3), torch.zeros(3)).isnan()
    rows = cosine(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(2, 2), dim=1)
    assert rows.isnan().tolist() == [True, False]


def test_cosine_along_an_axis_and_in_single_precision():
    a, b = randn(4, 3, seed=1), randn(4, 3, seed=2)
    for dim in (0, 1, -1):
        got = cosine(a, b, dim=dim)
        assert got.dtype == double
        want = [plain_cosine(p, q) for p, q in zip(a.unbind(1 - dim % 2), b.unbind(1 - dim % 2))]
        torch.testing.assert_close(got, torch.tensor(want, dtype=double))
    assert cosine(a.float(), b.float()).dtype == double
    tiny = torch.tensor([1e-45, 0.0])  # torch's own cosine_similarity says about 0 here
    assert float(cosine(tiny, tiny)) == 1


def test_cosine_of_two_shapes_is_an_error():
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(1, 3\): must be equal"):
        cosine(torch.ones(3), torch.ones(1, 3))


@few
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_cosine_lies_between_minus_one_and_one(n, seed):
    a, b = randn(9, n, seed=seed), randn(9, n, seed=seed + 1)
    assert (cosine(a, b, dim=1).abs() <= 1).all()
    assert (cosine(a, a, dim=1) - 1).abs().max() < 1e-14


# --- gradient alignment ---------------------------------------------------------------------------


def fa_by_hand(net, x, y, B, direct=False):
    """Error signals and weight gradients of a 5-4-6-3 tanh network, and those of autograd."""
    W1, b1, W2, b2, W3, b3 = (p.detach() for p in net.parameters())
    z1 = (x @ W1.T + b1).requires_grad_()
    h1 = torch.tanh(z1)
    z2 = h1 @ W2.T + b2
    h2 = torch.tanh(z2)
    f = h2 @ W3.T + b3
    loss = F.cross_entropy(f, y, reduction="sum")
    true = torch.autograd.grad(loss, [z1, h1, z2, h2], retain_graph=True)
    with torch.no_grad():
        e = f.softmax(1) - F.one_hot(y, 3)
        arrives2 = e @ (B[1].T if direct else B[1])
        d2 = arrives2 * (1 - h2**2)
        arrives1 = e @ B[0].T if direct else d2 @ B[0]
        d1 = arrives1 * (1 - h1**2)
    ours = {"z": (d1, d2), "h": (arrives1, arrives2), "W": (d1.T @ x, d2.T @ h1.detach())}
    real = {"z": (true[0], true[2]), "h": (true[1], true[3])}
    real["W"] = (true[0].T @ x, true[2].T @ h1.detach())
    return ours, real, (e.T @ h2.detach())


@pytest.mark.parametrize("rule", ["FA", "DFA"])
def test_gradient_alignment_is_its_formula(rule):
    net = net_of(5, 4, 6, 3)
    x, y = randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    B = list(bound.feedback.values())
    ours, true, top = fa_by_hand(net, x, y, B, direct=rule == "DFA")
    for reduction in ("mean", "sum"):
        got = gradient_alignment(bound, x, y, reduction=reduction)
        assert list(got.layers) == ["0", "2"]
        assert got.excluded == {"0": 0, "2": 0}
        for seen, a, b in zip(got.layers.values(), ours["W"], true["W"]):
            assert seen == pytest.approx(plain_cosine(a, b), abs=1e-12)
        flat = [torch.cat([w.flatten() for w in pair]) for pair in (ours["W"], true["W"])]
        assert got.total == pytest.approx(plain_cosine(*flat), abs=1e-12)
        every = [torch.cat([v, top.flatten()]) for v in flat]
        seen = network_alignment(bound, x, y, reduction=reduction)
        assert seen == pytest.approx(plain_cosine(*every), abs=1e-12)
    assert got.total != pytest.approx(seen, abs=1e-3)


@pytest.mark.parametrize(("at", "key"), [("preactivation", "z"), ("activation", "h")])
@pytest.mark.parametrize("rule", ["FA", "DFA"])
def test_per_sample_alignment_is_its_formula(rule, at, key):
    net = net_of(5, 4, 6, 3)
    x, y = randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    ours, true, _ = fa_by_hand(net, x, y, list(bound.feedback.values()), direct=rule == "DFA")
    got = gradient_alignment_per_sample(bound, x, y, at=at)
    for seen, a, b in zip(got.layers.values(), ours[key], true[key]):
        each = [plain_cosine(p, q) for p, q in zip(a, b)]
        assert seen == pytest.approx(sum(each) / 9, abs=1e-12)
    whole = zip(torch.cat(ours[key], 1), torch.cat(true[key], 1))
    assert got.total == pytest.approx(sum(plain_cosine(p, q) for p, q in whole) / 9, abs=1e-12)
    assert gradient_alignment_per_sample(bound, x, y).layers == (
        gradient_alignment_per_sample(bound, x, y, at="preactivation").layers
    )


def test_per_sample_and_whole_matrix_alignment_differ():
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make("FA", net)
    a, b = gradient_alignment(bound, x, y), gradient_alignment_per_sample(bound, x, y)
    assert abs(a.layers["0"] - b.layers["0"]) > 1e-3


def test_alignment_is_signed():
    net, x, y = net_of(5, 4, 3), randn(9, 5), labels(9, 3)
    against = FA(net, feedback={"0": -net[2].weight})
    assert gradient_alignment(against, x, y).layers == {"0": pytest.approx(-1)}
    assert gradient_alignment_per_sample(against, x, y, at="activation").total == pytest.approx(-1)
    assert weight_alignment(against).total == pytest.approx(-1)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_backpropagation_is_aligned_with_itself(batch_norm):
    modules = list(net_of(5, 4, 6, 3))
    if batch_norm:
        modules.insert(1, nn.BatchNorm1d(4, dtype=double))
        modules.insert(3, nn.Dropout(0.3))
    bound = BP(nn.Sequential(*modules))
    x, y = randn(9, 5), labels(9, 3)
    whole = gradient_alignment(bound, x, y)
    assert [*whole.layers.values(), whole.total] == pytest.approx([1, 1, 1])
    assert network_alignment(bound, x, y) == pytest.approx(1)
    assert gradient_alignment_per_sample(bound, x, y).total == pytest.approx(1)


def test_no_hidden_layer_has_no_alignment():
    bound = make("FA", net_of(5, 3))
    for found in (gradient_alignment, gradient_alignment_per_sample):
        seen = found(bound, randn(9, 5), labels(9, 3))
        assert (seen.layers, seen.excluded) == ({}, {})
        assert math.isnan(seen.total)
    assert network_alignment(bound, randn(9, 5), labels(9, 3)) == pytest.approx(1)


def test_a_zero_update_is_excluded_and_counted():
    bound, x, y = Shallow(net_of(5, 4, 6, 3)), randn(9, 5), labels(9, 3)
    whole = gradient_alignment(bound, x, y)
    assert all(math.isnan(v) for v in [*whole.layers.values(), whole.total])
    assert whole.excluded == {"0": 1, "2": 1}
    samples = gradient_alignment_per_sample(bound, x, y)
    assert all(math.isnan(v) for v in [*samples.layers.values(), samples.total])
    assert samples.excluded == {"0": 9, "2": 9}


def test_dead_samples_are_excluded_and_counted():
    """A ReLU layer that is silent for three samples: their signals at z are zero."""
    net = net_of(2, 3, 2, activation="relu", bias=False)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0.0]] * 3))
    x = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [-2.0, 1.0], [2.0, 0.0], [0.0, 0.0]], dtype=double)
    y = labels(5, 2)
    bound = make("FA", net)
    got = gradient_alignment_per_sample(bound, x, y)
    assert got.excluded == {"0": 3}
    alive = gradient_alignment_per_sample(bound, x[[0, 3]], y[[0, 3]])
    assert got.layers["0"] == pytest.approx(alive.layers["0"], abs=1e-14)
    assert alive.excluded == {"0": 0}
    assert gradient_alignment_per_sample(bound, x, y, at="activation").excluded == {"0": 0}


def test_alignment_does_not_depend_on_what_is_frozen():
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make("FA", net)
    free = gradient_alignment(bound, x, y)
    net.requires_grad_(False)
    assert gradient_alignment(bound, x, y) == free


def test_alignment_of_sequences_and_images():
    bound = make("FA", net_of(5, 4, 3))
    x, y = randn(2, 7, 5), labels(14, 3).reshape(2, 7)
    rows = gradient_alignment(bound, x.flatten(0, 1), y.flatten())
    assert gradient_alignment(bound, x, y).total == pytest.approx(rows.total, abs=1e-14)
    g = stream(0, "weights")
    net = convnet((1, 6, 6), [2, 3], [], 3, generator=g, dtype=double)
    bound = make("FA", net)
    x, y = randn(4, 1, 6, 6), labels(4, 3)
    whole = gradient_alignment(bound, x, y)
    other = copy.deepcopy(net)
    F.cross_entropy(other(x), y).backward()
    bound.backward(x, y)
    for name, seen in whole.layers.items():
        ours, true = (n.get_parameter(f"{name}.weight").grad for n in (net, other))
        assert seen == pytest.approx(plain_cosine(ours, true), abs=1e-12)
    assert set(gradient_alignment_per_sample(bound, x, y).layers) == {"0", "2"}


def test_at_must_be_known():
    bound = make("FA", net_of(5, 4, 3))
    with pytest.raises(ValueError, match="at must be one of preactivation, activation; got 'z'"):
        gradient_alignment_per_sample(bound, randn(9, 5), labels(9, 3), at="z")


# --- weight alignment, overlaps -------------------------------------------------------------------


def test_weight_alignment_of_fa_compares_matrix_by_matrix():
    net = net_of(5, 4, 6, 3)
    bound = make("FA", net)
    W, B = [net[2].weight, net[4].weight], list(bound.feedback.values())
    got = weight_alignment(bound)
    assert list(got.layers) == ["2", "4"]
    for seen, w, b in zip(got.layers.values(), W, B):
        assert seen == pytest.approx(plain_cosine(w.detach(), b), abs=1e-14)
    flat = [torch.cat([m.detach().flatten() for m in side]) for side in (W, B)]
    assert got.total == pytest.approx(plain_cosine(*flat), abs=1e-14)


@pytest.mark.parametrize("rule", [DFA, DRTP])
def test_weight_alignment_of_direct_rules_compares_with_products(rule):
    net = net_of(5, 4, 6, 3)
    bound = rule(net, generator=stream(0, "feedback"))
    F1, F2 = bound.feedback.values()
    targets = [torch.einsum("ic,jc->ij", F2, F1), F2.T]
    got = weight_alignment(bound)
    assert list(got.layers) == ["2", "4"]
    for seen, w, b in zip(got.layers.values(), (net[2].weight, net[4].weight), targets):
        assert seen == pytest.approx(plain_cosine(w.detach(), b), abs=1e-14)
    with torch.no_grad():
        for w, b in zip((net[2].weight, net[4].weight), targets):
            w.copy_(b)
    assert weight_alignment(bound).total == pytest.approx(1)


def test_weight_alignment_of_rules_whose_feedback_follows_the_weights():
    net = net_of(5, 4, 6, 3)
    for rule in ("uSF", "frSF", "brSF"):
        assert all(v > 0.5 for v in weight_alignment(make(rule, net)).layers.values())
    aligned = KolenPollack(net, feedback={"0": net[2].weight, "2": net[4].weight})
    assert weight_alignment(aligned).total == pytest.approx(1)


def test_weight_alignment_of_zero_weights_is_excluded():
    net = net_of(5, 4, 6, 3)
    with torch.no_grad():
        net[2].weight.zero_()
    got = weight_alignment(make("FA", net))
    assert math.isnan(got.layers["2"])
    assert got.excluded == {"2": 1, "4": 0}
    assert math.isfinite(got.total)


@pytest.mark.parametrize("rule", ["BP", "Shallow"])
def test_weight_alignment_without_feedback_is_nan_and_counted(rule):
    got = weight_alignment(make(rule, net_of(5, 4, 6, 3)))
    assert got.excluded == {"2": 1, "4": 1}
    assert all(math.isnan(v) for v in [*got.layers.values(), got.total])


def test_a_loop_over_all_rules_and_one_of_ones_own_needs_no_exception():
    class Signed(FA):
        """Only a name of its own."""

    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    for kind in (*RULES.values(), Signed):
        bound = kind(net, generator=stream(0, "feedback"))
        none = kind in (BP, Shallow)
        got = weight_alignment(bound)
        assert list(got.layers) == list(got.excluded) == ["2", "4"]
        assert [math.isnan(v) for v in (*got.layers.values(), got.total)] == [none] * 3
        dead = kind is Shallow
        for found in (gradient_alignment, gradient_alignment_per_sample):
            seen = found(bound, x, y)
            assert [math.isnan(v) for v in (*seen.layers.values(), seen.total)] == [dead] * 3


def test_weight_alignment_of_direct_rules_across_convolutions_is_an_error():
    net = convnet((1, 6, 6), [2, 3], [], 3, generator=stream(0, "weights"))
    with pytest.raises(ValueError, match=r"layer '2': its weight \(3, 2, 3, 3\).*differ in shape"):
        weight_alignment(make("DFA", net, input_shape=(1, 6, 6)))


def test_network_overlap_is_the_mean_cosine_of_all_parameters():
    nets = [net_of(5, 4, 3, seed=s) for s in range(3)]
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
    want = sum(plain_cosine(flat[i], flat[j]) for i, j in [(0, 1), (0, 2), (1, 2)]) / 3
    assert network_overlap(nets) == pytest.approx(want, abs=1e-14)
    assert network_overlap([nets[0], nets[0]]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least two networks; got 1"):
        network_overlap(nets[:1])
    with pytest.raises(ValueError, match="must be equal"):
        network_overlap([nets[0], net_of(5, 3)])


def test_order_parameters_are_their_formulas():
    w, b = randn(2, 3, 7, dtype=torch.float32), randn(2, 4, 7, seed=1, dtype=torch.float32)
    got = order_parameters(w, b)
    w, b = w.double(), b.double()
    for name, (p, q) in {"Q": (w, w), "R": (w, b), "T": (b, b)}.items():
        torch.testing.assert_close(got[name], torch.einsum("rin,rjn->rij", p, q) / 7)
    with pytest.raises(ValueError, match="student has 7 inputs and teacher 6"):
        order_parameters(w, b[..., :6])


# --- conserved quantities -------------------------------------------------------------------------


def test_conserved_is_its_formula():
    net = net_of(5, 4, 6, 3)
    W1, b1, W2, b2, W3, _ = (p.detach() for p in net.parameters())
    incoming = [(W.square().sum(1) + b.square()) / 2 for W, b in ((W1, b1), (W2, b2))]
    for rule in (FA, FRSF, USF, KolenPollack, BP):
        bound = rule(net) if rule in (BP, USF) else rule(net, generator=stream(0, "feedback"))
        B = list(bound.feedback.values())
        partner = {
            FA: lambda W, B: (W * B).sum(0),
            FRSF: lambda W, B: (W.abs() * B.abs()).sum(0),
            USF: lambda W, B: (W.abs() * B.abs()).sum(0),
            KolenPollack: lambda W, B: B.square().sum(0) / 2,
            BP: lambda W, B: W.square().sum(0) / 2,
        }[rule]
        got = conserved(bound)
        assert list(got) == ["0", "2"]
        for k, (seen, W) in enumerate(zip(got.values(), (W2, W3))):
            torch.testing.assert_close(seen, incoming[k] - partner(W, B[k] if B else None))
    dfa = make("DFA", net)
    got = conserved(dfa)
    assert list(got) == ["2"]
    want = incoming[1] - (W3 * dfa.feedback["2"].T).sum(0)
    torch.testing.assert_close(got["2"], want)


def change(now, before, layer, bias=True):
    """Half the squared step of each neuron's incoming weights and bias."""
    step = now[f"{layer}.weight"] - before[f"{layer}.weight"]
    total = step.reshape(len(step), -1).square().sum(1) / 2
    if f"{layer}.bias" in now and bias:
        total = total + (now[f"{layer}.bias"] - before[f"{layer}.bias"]).square() / 2
    return total


def drift(rule, net, *, steps=12, lr=0.2, loss="cross_entropy", batch=7, shape=(5,), **options):
    """Change of the conserved quantities, and what the discrete identity says of it."""
    bound = make(rule, net, **options)
    hidden = list(conserved(bound))
    above = dict(zip(bound.layers, bound.layers[1:]))
    start = conserved(bound)
    said = {name: torch.zeros_like(c) for name, c in start.items()}
    for step in range(steps):
        x, y = randn(batch, *shape, seed=step), labels(batch, 3, seed=step)
        y = F.one_hot(y, 3).to(double) if loss == "mse" else y
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        bound.sgd_step(x, y, lr, loss=loss)
        now = {k: p.detach() for k, p in net.named_parameters()}
        for name in hidden:
            said[name] += change(now, before, name)
            if rule in ("BP", "KP"):
                w = now[f"{above[name]}.weight"] - before[f"{above[name]}.weight"]
                said[name] -= w.square().sum([d for d in range(w.ndim) if d != 1]) / 2
    return {n: c - start[n] for n, c in conserved(bound).items()}, said


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "linear"])
@pytest.mark.parametrize("rule", ["FA", "DFA", "BP", "KP"])
def test_conserved_drifts_by_the_squared_steps_alone(rule, activation, bias, loss):
    """C(k) - C(0) = 1/2 sum |dW|^2, per neuron, whatever the rate and the batches."""
    net = net_of(5, 6, 7, 3, activation=activation, bias=bias)
    got, said = drift(rule, net, loss=loss)
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=0, atol=1e-13)
        assert said[name].abs().max() > 1e-5


@few
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    activation=st.sampled_from(["relu", "leaky_relu", "linear"]),
    bias=st.booleans(),
    batch=st.integers(1, 6),
    lr=st.floats(0.001, 0.5),
    seed=st.integers(0, 10**6),
)
def test_the_identity_of_fa_holds_for_any_network(sizes, activation, bias, batch, lr, seed):
    net = net_of(4, *sizes, 3, activation=activation, bias=bias, seed=seed)
    got, said = drift("FA", net, steps=5, batch=batch, lr=lr, shape=(4,), seed=seed)
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=1e-12, atol=1e-13)


def test_the_identity_holds_through_convolutions_and_pooling():
    g = stream(0, "weights")
    modules = list(
        convnet((1, 9, 9), [3, 4], [], 3, kernel=2, pool=2, activation="relu", generator=g)
    )
    net = nn.Sequential(*modules[:5], nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = net.append(nn.Linear(3, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(randn(*p.shape, seed=p.ndim) / 2)
    got, said = drift("FA", net, shape=(1, 9, 9), lr=0.05, steps=4)
    assert list(got) == ["0", "3", "5"]
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=0, atol=1e-12)
        assert said[name].abs().max() > 1e-9


@pytest.mark.parametrize("rule", ["uSF", "frSF"])
def test_sign_laws_hold_while_no_weight_crosses_zero(rule):
    net = net_of(5, 6, 7, 3, activation="relu")
    got, said = drift(rule, net, steps=1, lr=1e-4)
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", ["FA", "BP", "KP"])
def test_no_law_holds_for_tanh(rule):
    got, said = drift(rule, net_of(5, 6, 7, 3, activation="tanh"))
    assert max(float((c - said[n]).abs().max()) for n, c in got.items()) > 1e-3


def test_the_law_of_another_rule_does_not_hold():
    """FA conserves its own quantity, not that of gradient descent."""
    net = net_of(5, 6, 7, 3, activation="relu")
    fa, bp = make("FA", net), BP(net)
    start = [conserved(r)["2"] for r in (fa, bp)]
    for step in range(100):
        fa.sgd_step(randn(7, 5, seed=step), labels(7, 3, seed=step), 0.02)
    ours, other = (float((conserved(r)["2"] - c).norm()) for r, c in zip((fa, bp), start))
    assert other > 10 * ours


@pytest.mark.parametrize("rule", ["brSF", "DRTP", "Shallow"])
def test_rules_without_a_law_are_refused(rule):
    name = BRSF.__name__ if rule == "brSF" else rule
    with pytest.raises(ValueError, match=f"no conservation law is known for {name}"):
        conserved(make(rule, net_of(5, 4, 3)))


def test_units_must_be_shared_by_the_two_layers():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())
    with pytest.raises(ValueError, match="layers '0' and the next do not share their units: 4"):
        conserved(make("FA", net.append(nn.Linear(16, 3))))


def test_a_flattened_channel_owns_all_its_columns():
    """The law of a channel sums over everything above that reads it."""
    net = convnet((1, 8, 8), [3], [5], 3, kernel=3, pool=2, activation="relu", dtype=double,
                  generator=stream(0, "weights"))  # fmt: skip
    bound = make("FA", net)
    W, B = net[4].weight.detach(), bound.feedback["0"]
    own = net[0].weight.detach().flatten(1).square().sum(1) / 2
    want = own - (W * B).reshape(5, 3, 9).sum((0, 2))
    torch.testing.assert_close(conserved(bound)["0"], want)
    got, said = drift("FA", net, shape=(1, 8, 8), lr=0.1, steps=4)
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=0, atol=1e-13)
        assert said[name].abs().max() > 1e-6


def normalised_net(kind, seed=0):
    """5-6-7-3 ReLU with normalisation that forgets its input's size exactly (eps = 1e-30)."""
    modules = []
    for module in net_of(5, 6, 7, 3, activation="relu", seed=seed):
        modules.append(module)
        if isinstance(module, nn.Linear) and module.out_features != 3:
            norm = kind(module.out_features, eps=1e-30, dtype=double)
            with torch.no_grad():
                norm.weight.copy_(1 + 0.2 * randn(module.out_features, seed=1))
                norm.bias.copy_(0.2 * randn(module.out_features, seed=2))
            modules.append(norm)
    return nn.Sequential(*modules)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("rule", ["FA", "BP", "DFA"])
def test_normalisation_moves_the_law_to_its_scale_and_shift(rule, kind):
    net = normalised_net(kind)
    bound = make(rule, net)
    start = conserved_normalised(bound)
    said = {name: torch.zeros_like(c) for name, c in start.items()}
    for step in range(10):
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        bound.sgd_step(randn(7, 5, seed=step), labels(7, 3, seed=step), 0.1)
        now = {k: p.detach() for k, p in net.named_parameters()}
        for name in said:
            layer, which = name.split()
            moved = change(now, before, layer if which == "weights" else str(int(layer) + 1))
            said[name] += moved.sum() if kind is nn.LayerNorm and which == "weights" else moved
            if which == "scales" and rule == "BP":
                above = f"{int(layer) + 3}.weight"
                said[name] -= (now[above] - before[above]).square().sum(0) / 2
    got = conserved_normalised(bound)
    assert list(got) == [n for n in said if rule != "DFA" or n.startswith("3")]
    for name, c in got.items():
        torch.testing.assert_close(c - start[name], said[name], rtol=0, atol=1e-12)
        assert said[name].abs().max() > 1e-6


@pytest.mark.parametrize("extra", [[], [nn.BatchNorm1d(4, affine=False)]])
def test_the_moved_law_needs_normalisation_with_scale(extra):
    net = nn.Sequential(nn.Linear(5, 4), *extra, nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="layer '0' needs one BatchNorm or LayerNorm"):
        conserved_normalised(make("FA", net))


# --- measuring leaves no trace --------------------------------------------------------------------


def fingerprint(rule):
    tensors = [*rule.net.parameters(), *rule.net.buffers(), *rule.buffers()]
    generator = [rule.get_extra_state()] if isinstance(rule, BRSF) else []
    grads = [p.grad for p in rule.net.parameters()]
    return [t.clone() for t in (*tensors, *generator, *grads, torch.get_rng_state())]


@pytest.mark.parametrize("rule", RULES)
def test_measuring_leaves_everything_bit_identical(rule):
    modules = list(net_of(5, 4, 6, 3, activation="relu"))
    modules[1:1] = [nn.BatchNorm1d(4, dtype=double), nn.Dropout(0.3)]
    bound = make(rule, nn.Sequential(*modules))
    x, y = randn(9, 5), labels(9, 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bound.backward(x, y)
        before = fingerprint(bound)
        gradient_alignment(bound, x, y)
        network_alignment(bound, x, y)
        first_order(bound, x, y)
        gradient_alignment_per_sample(bound, x, y)
        gradient_alignment_per_sample(bound, x, y, at="activation")
        if rule not in ("BP", "Shallow"):
            weight_alignment(bound)
        if rule not in ("Shallow", "DRTP", "brSF"):
            conserved(bound)
        network_overlap([bound.net, bound.net])
        for a, b in zip(before, fingerprint(bound), strict=True):
            assert torch.equal(a, b)
        assert all(m.training for m in bound.net.modules())


def test_a_failed_measurement_leaves_everything_bit_identical():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    bound = make("FA", net)
    bound.backward(randn(9, 5), labels(9, 3))
    before = fingerprint(bound)
    with pytest.raises(ValueError, match="class indices"):
        gradient_alignment(bound, randn(9, 5), labels(8, 3))

    def fail():
        with unchanged(bound):
            net(randn(9, 5) + torch.rand(9, 5))
            raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    for a, b in zip(before, fingerprint(bound), strict=True):
        assert torch.equal(a, b)


def test_measured_and_unmeasured_runs_are_bit_identical():
    runs = []
    for measured in (False, True):
        bound = make("brSF", net_of(5, 4, 6, 3))
        for step in range(4):
            if measured:
                gradient_alignment(bound, randn(9, 5), labels(9, 3))
                gradient_alignment_per_sample(bound, randn(9, 5), labels(9, 3))
            bound.sgd_step(randn(7, 5, seed=step), labels(7, 3, seed=step), 0.1)
        runs.append([p.detach() for p in bound.net.parameters()])
    for a, b in zip(*runs):
        assert torch.equal(a, b)


def test_alignment_is_plain_data():
    assert Alignment({"0": 0.5}, 0.5) == Alignment({"0": 0.5}, 0.5, {})


# --- descent by layer, and the walk of the weights ------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_descent_is_the_slope_of_the_loss_along_the_update(rule):
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    found = first_order(bound, x, y).descent
    assert list(found) == ["0", "2", "4"]
    updates, eps = bound.gradients(x, y), 1e-6
    for layer, slope in found.items():
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    if name.startswith(f"{layer}."):
                        p.sub_(sign * eps * updates[name])
            losses.append(float(F.cross_entropy(moved(x), y).detach()))
        assert slope == pytest.approx((losses[1] - losses[0]) / (2 * eps), rel=1e-5, abs=1e-9)


def test_descent_of_the_readout_does_not_depend_on_the_rule():
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    tops = [
        first_order(make(name, net), x, y).descent["4"] for name in ("BP", "FA", "DFA", "Shallow")
    ]
    assert tops == pytest.approx([tops[0]] * 4, rel=1e-12)
    hidden = first_order(make("Shallow", net), x, y).descent
    assert hidden["0"] == hidden["2"] == 0


def test_descent_has_the_sign_of_the_network_alignment():
    net, x, y = net_of(5, 4, 6, 3, bias=False), randn(9, 5), labels(9, 3)
    signs = set()
    for factor in (1.0, -1.0, -30.0):
        feedback = {"0": net[2].weight, "2": factor * net[4].weight}
        bound = FA(net, feedback=feedback)
        total = sum(first_order(bound, x, y).descent.values())
        assert total * network_alignment(bound, x, y) > 0
        signs.add(total > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("rule", ["BP", "FA", "DFA", "uSF"])
def test_first_order_has_the_alignments_of_the_other_metrics(rule):
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    found, hidden = first_order(bound, x, y), gradient_alignment(bound, x, y).layers
    assert found.network == pytest.approx(network_alignment(bound, x, y), abs=1e-14)
    assert found.layers == pytest.approx(hidden | {"4": 1.0}, abs=1e-14)


def test_frozen_layers_descend_nothing():
    net, x, y = net_of(5, 4, 3), randn(9, 5), labels(9, 3)
    net[0].requires_grad_(False)
    assert list(first_order(make("FA", net), x, y).descent) == ["2"]


def test_hidden_share_is_the_ratio_of_the_integrals():
    steps = [0, 1, 4, 10]
    hidden, total = np.array([[0.0, 1, 2, -8], [1, 1, 1, 1]]), np.full((2, 4), 2.0)
    np.testing.assert_allclose(
        hidden_share(steps, hidden, total), [[0, 0.25, 5 / 8, -13 / 20], [0.5] * 4]
    )


def test_walk_adds_up_steps_and_leaves_the_run_alone():
    runs = []
    for watched in (False, True):
        net = net_of(5, 4, 3)
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        seen = [start]
        walk = Walk(net)

        def after(step, walk=walk, net=net, seen=seen):
            walk(step)
            seen.append({n: p.detach().clone() for n, p in net.named_parameters()})

        train(make("FA", net), randn(9, 5), labels(9, 3), steps=7, lr=0.3,
              after_step=after if watched else None)  # fmt: skip
        runs.append(net)
    for a, b in zip(runs[0].parameters(), runs[1].parameters()):
        assert torch.equal(a, b)
    for layer in ("0", "2"):
        way = torch.stack([w[f"{layer}.weight"] for w in seen])
        assert walk.path()[layer] == pytest.approx(float(way.diff(dim=0).square().sum()))
        far = float((way[-1] - way[0]).square().sum())
        assert walk.displacement()[layer] == pytest.approx(far)
        assert 1 < far / walk.path()[layer] <= 7


@pytest.mark.parametrize("exponent", [0.0, 0.25])
def test_walks_and_straight_lines(exponent):
    """Independent directions: displacement is the path; straight: exponent 2 - 2a."""
    at = [2**k for k in range(3, 11)]
    for straight in (True, False):
        net = mlp([100, 100], bias=False, generator=stream(0, "weights"), dtype=double)
        walk, ratios, far = Walk(net), [], []
        direction = randn(100, 100)
        for step in range(1, at[-1] + 1):
            with torch.no_grad():
                move = direction if straight else randn(100, 100, seed=step)
                net[0].weight.add_(move, alpha=step**-exponent)
            walk(step)
            if step in at:
                far.append(walk.displacement()["0"])
                ratios.append(far[-1] / walk.path()["0"])
        slope = float(growth_exponent(at, far))
        if straight:
            assert slope == pytest.approx(2 - 2 * exponent, abs=0.12)
            assert max(ratios) <= at[-1] * 1.001
        else:
            assert slope == pytest.approx(1 - 2 * exponent, abs=0.12)
            assert ratios == pytest.approx([1.0] * len(at), abs=0.15)


def test_growth_exponent_of_many_curves():
    t = np.array([3, 10, 1000])
    np.testing.assert_allclose(growth_exponent(t, [2 * t**0.5, t**2.0]), [0.5, 2])
