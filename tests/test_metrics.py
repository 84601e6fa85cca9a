"""Metrics against plain torch, and measuring without a trace."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fabook
from fabook import metrics
from fabook.metrics import (
    Alignment,
    cosine,
    gradient_alignment,
    gradient_alignment_per_sample,
    network_alignment,
    network_overlap,
    weight_alignment,
)
from fabook.networks import convnet
from fabook.rules import BP, BRSF, DFA, DRTP, FA, RULES, KolenPollack, Shallow, UnsupportedModule
from fabook.stack import measuring
from fabook.streams import stream
from fabook.theory.chu2023 import first_order
from fabook.theory.robertson2023 import conserved
from random_networks import double, few, labels, make, net_of, randn


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_without_numbers_is_no_zero_vector(value):
    x, y = randn(6, 5), labels(6, 3)
    x[1, 0] = value
    bound = make("FA", net_of(5, 4, 3, activation="relu"))
    got = gradient_alignment_per_sample(bound, x, y)
    assert math.isnan(got.total)
    assert math.isnan(got.layers["0"])
    assert got.excluded == {"0": 0}
    assert math.isnan(gradient_alignment(bound, x, y).total)


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


# --- measuring leaves no trace --------------------------------------------------------------------


def fingerprint(rule):
    tensors = [*rule.net.parameters(), *rule.net.buffers(), *rule.buffers()]
    generator = [rule.get_extra_state()["generator"]] if isinstance(rule, BRSF) else []
    grads = [p.grad for p in rule.net.parameters() if p.grad is not None]
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
            conserved(bound, control=True)
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
        with measuring(bound.net):
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


class Skipping(nn.Module):
    """Layers that are left out by other random numbers than torch's."""

    def __init__(self, draw):
        super().__init__()
        self.draw, self.top = draw, nn.Linear(5, 3).double()
        self.all = nn.ModuleList(nn.Linear(5, 5).double() for _ in range(8))

    def forward(self, x):
        for layer in self.all:
            if self.draw() < 0.5:
                x = x + torch.tanh(layer(x))
        return self.top(x)


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
def test_measuring_leaves_other_random_states(draw):
    bound, x, y = BP(Skipping(draw)), randn(9, 5), labels(9, 3)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  as networks may use it
    want = [draw() for _ in range(5)]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    bound.gradients(x, y)
    assert gradient_alignment(bound, x, y).total == pytest.approx(1, abs=1e-12)
    assert [draw() for _ in range(5)] == want


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_measuring_leaves_tables_whose_rows_are_shortened(kind):
    net = nn.Sequential(kind(9, 4, max_norm=1.0), nn.Linear(4, 3)).double()
    with torch.no_grad():
        net[0].weight.mul_(5)
    bound, table = make("FA", net), net[0].weight
    x, y = torch.arange(8).reshape(4, 2), labels(4, 3)
    if kind is nn.Embedding:
        x, y = torch.arange(5), labels(5, 3)
    before, home = table.detach().clone(), table.data_ptr()
    found = bound.gradients(x, y)
    with torch.inference_mode():
        fabook.accuracy(net, x, y)
    gradient_alignment(bound, x, y)
    assert torch.equal(table, before)
    assert table.data_ptr() == home
    bound.backward(x, y)
    assert not torch.equal(table, before)  # as the pass of an update does
    for key, p in net.named_parameters():
        assert torch.equal(p.grad, found[key])


def test_alignment_is_plain_data():
    assert Alignment({"0": 0.5}, 0.5) == Alignment({"0": 0.5}, 0.5, {})


# --- networks that are no stacks -----------------------------------------------------------------


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.c(h + self.norm(torch.relu(self.b(h))))


def skip():
    torch.manual_seed(0)
    g = stream(0, "skip")
    x, y = torch.randn(9, 5, generator=g), torch.randint(3, (9,), generator=g)
    return Skip().double(), x.double(), y


@pytest.mark.parametrize("name", fabook.RULES)
def test_gradients_of_any_network_are_compared_by_parameter(name):
    net, x, y = skip()
    options = {"blocks": ["a"], "example": x} if name in ("DFA", "DRTP", "Shallow") else {}
    rule = fabook.RULES[name](net, generator=stream(0, "f"), **options)
    before = {k: v.clone() for k, v in rule.state_dict().items() if isinstance(v, torch.Tensor)}
    found = metrics.gradient_alignment(rule, x, y)
    assert list(found.layers) == (["a.weight"] if options else ["a.weight", "b.weight"])
    for key, value in before.items():
        assert torch.equal(rule.state_dict()[key], value)
    ours, true = rule.gradients(x, y), fabook.BP(net).gradients(x, y)
    for layer, value in found.layers.items():
        want = float(metrics.cosine(ours[layer], true[layer]))
        assert value == want or (name == "Shallow" and np.isnan(value))
    if name == "BP":
        assert found.total == pytest.approx(1)
    if name == "Shallow":
        assert found.excluded == {"a.weight": 1}
    whole = metrics.network_alignment(rule, x, y)
    assert 0 < whole <= 1 if name != "BP" else whole == pytest.approx(1)


def test_weights_of_any_network_are_compared_where_they_hand_the_error_down():
    net, x, y = skip()
    rule = fabook.FA(net, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="seen in an update"):
        metrics.weight_alignment(rule)
    rule.backward(x, y)
    found = metrics.weight_alignment(rule)
    want = {
        n: float(metrics.cosine(net.get_parameter(n), rule.feedback[n]))
        for n in ("b.weight", "c.weight")
    }
    assert found.layers == want
    net.a.requires_grad_(False)
    frozen = fabook.FA(net, generator=stream(0, "f"))
    frozen.backward(x, y)
    assert list(metrics.weight_alignment(frozen).layers) == ["c.weight"]
    assert np.isnan(metrics.weight_alignment(fabook.BP(net)).total)


def test_what_is_not_defined_on_any_network_is_refused():
    net, x, y = skip()
    direct = fabook.DFA(net, blocks=["a"], example=x, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="DFA sends to blocks, past the weights"):
        metrics.weight_alignment(direct)
    with pytest.raises(UnsupportedModule, match="needs a stack of layers"):
        metrics.gradient_alignment_per_sample(direct, x, y)


@pytest.mark.parametrize("name", fabook.RULES)
@pytest.mark.parametrize("by", ["lr", "optimizer"])
def test_any_network_trains(name, by):
    net, x, y = skip()
    options = {"blocks": ["a"], "example": x} if name in ("DFA", "DRTP", "Shallow") else {}
    rule = fabook.RULES[name](net, generator=stream(0, "f"), **options)
    adam = torch.optim.Adam(rule.parameters(), lr=0.02)
    step = {"lr": 0.1} if by == "lr" else {"optimizer": adam}
    seen = fabook.train(
        rule, x, y, steps=60, batch_size=3, generator=stream(0, "order"), **step,
        probe={"alignment": lambda: metrics.gradient_alignment(rule, x, y)}, probe_at=[0, 60],
    )  # fmt: skip
    assert seen.loss[-8:].mean() < seen.loss[:8].mean()
    assert fabook.accuracy(net, x, y) > 0.6
