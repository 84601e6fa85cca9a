"""Conservation laws to rounding, and the networks for which none holds."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fabook.networks import Scale, convnet
from fabook.rules import BP, BRSF, FA, FRSF, USF, KolenPollack
from fabook.streams import stream
from fabook.theory.chu2023 import jacobian
from fabook.theory.robertson2023 import Invariants, conserved, normalise
from random_networks import double, few, labels, make, net_of, randn


def test_conserved_is_its_formula():
    net = net_of(5, 4, 6, 3, activation="relu")
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


def drift(
    rule, net, *, steps=12, lr=0.2, loss="cross_entropy", batch=7, shape=(5,), seed=0, control=False
):
    """Change of the conserved quantities, and what the discrete identity says of it."""
    bound = make(rule, net, seed)
    hidden = list(conserved(bound, control=control))
    above = dict(zip(bound.layers, bound.layers[1:]))
    start = conserved(bound, control=control)
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
    return {n: c - start[n] for n, c in conserved(bound, control=control).items()}, said


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


@pytest.mark.parametrize("bias", [True, False])
def test_direct_feedback_has_a_law_in_every_layer_below_linear_units(bias):
    """d(1/2 |W_l|^2) = <(F_l F_{l+1}^+)^T, dW_{l+1}> per neuron, and not below ReLU."""

    def left(activation):
        net = net_of(5, 6, 7, 3, activation=activation, bias=bias)
        bound = make("DFA", net)
        F1, F2 = (bound.feedback[name] for name in bound.layers[:2])
        partner = (F1 @ torch.linalg.pinv(F2)).T
        first, second = (net.get_submodule(name) for name in bound.layers[:2])
        worst = 0.0
        for step in range(20):
            old = [p.detach().clone() for p in (first.weight, second.weight, *[first.bias][:bias])]
            bound.sgd_step(randn(4, 5, seed=step), labels(4, 3, seed=step), 0.1)
            with torch.no_grad():
                gained = (old[0] * (first.weight - old[0])).sum(1)
                gained += old[2] * (first.bias - old[2]) if bias else 0
                alignment = (partner * (second.weight - old[1])).sum(0)
            worst = max(worst, float((gained - alignment).norm() / gained.norm()))
        return worst

    assert left("linear") < 1e-11
    assert left("relu") > 0.1


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
    net = net_of(5, 6, 7, 3, activation="tanh")
    with pytest.raises(ValueError, match=r"no law holds for layer '0': module '1' \(Tanh\)"):
        drift(rule, net)
    got, said = drift(rule, net, control=True)
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
    start = conserved(bound, normalised=True)
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
    got = conserved(bound, normalised=True)
    assert list(got) == [n for n in said if rule != "DFA" or n.startswith("3")]
    for name, c in got.items():
        torch.testing.assert_close(c - start[name], said[name], rtol=0, atol=1e-12)
        assert said[name].abs().max() > 1e-6


@pytest.mark.parametrize("extra", [[], [nn.BatchNorm1d(4, affine=False)]])
def test_the_moved_law_needs_normalisation_with_scale(extra):
    net = nn.Sequential(nn.Linear(5, 4), *extra, nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="layer '0' needs one BatchNorm or LayerNorm"):
        conserved(make("FA", net), normalised=True)


class Signed(FA, label="signed"):
    def send(self, layer, delta, top):
        return super().send(layer, delta.sign(), top)


class Doubled(FA, label="doubled", law="product"):
    """Twice the matrix: the law is FA's with 2B in place of B."""

    def matrix(self, layer):
        return 2 * super().matrix(layer)


def test_a_rule_of_ones_own_has_the_law_that_its_class_declares():
    net = net_of(5, 6, 3, activation="relu")
    signed = Signed(net, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="no conservation law is known for Signed"):
        conserved(signed)
    with pytest.raises(ValueError, match="Signed sends no linear image"):
        jacobian(signed, randn(2, 5))
    bound = Doubled(net, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="Doubled sends no linear image"):
        jacobian(bound, randn(2, 5))
    start, tracker = conserved(bound)["0"], Invariants(bound)
    for step in range(20):
        bound.sgd_step(randn(7, 5, seed=step), labels(7, 3, seed=step), 0.1)
        tracker.update()
    assert tracker.residual() < 1e-13
    own = (net[0].weight.square().sum(1) + net[0].bias.square()) / 2
    want = own - 2 * (bound.drawn("0") * net[2].weight).sum(0)
    torch.testing.assert_close(conserved(bound)["0"], want.detach())
    assert not torch.equal(start, want)


def frozen(net, which):
    net[which[0]].get_parameter(which[1]).requires_grad_(False)
    return net


WITHOUT_A_LAW = {
    "softplus": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3)), "Softplus"
    ),
    "tanh above": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Tanh(), nn.Linear(4, 3)), "Tanh"
    ),
    "norm": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
        "BatchNorm1d",
    ),
    "pool over units": (
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.MaxPool1d(3, 1, padding=1), nn.ReLU(), nn.Linear(4, 3)
        ),
        "MaxPool1d",
    ),
    "width read as units": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 3)), "do not share"
    ),
    "sequence flattened": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        "do not share",
    ),
    "frozen below": (lambda: frozen(net_of(5, 4, 3, activation="relu"), (0, "weight")), "0.weight"),
    "frozen bias": (lambda: frozen(net_of(5, 4, 3, activation="relu"), (0, "bias")), "0.bias"),
    "frozen above": (
        lambda: frozen(net_of(5, 4, 3, activation="relu"), (2, "weight")), "the weight above"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_A_LAW)
def test_networks_without_the_law_are_refused(case):
    build, why = WITHOUT_A_LAW[case]
    with pytest.raises(ValueError, match=why):
        conserved(make("FA", build()))


def test_what_keeps_the_size_of_every_unit_keeps_the_law():
    g = stream(0, "w")
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.PReLU(3), nn.Dropout2d(0.3), nn.AvgPool2d(2), Scale(0.7),
        nn.Conv2d(3, 4, 2), nn.LeakyReLU(0.2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(),
        nn.Linear(4, 3),
    ).double()  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=double) / 2)
        got, said = drift("FA", net, shape=(1, 8, 8), lr=0.1, steps=5)
    for name, c in got.items():
        torch.testing.assert_close(c, said[name], rtol=0, atol=1e-13)
        assert said[name].abs().max() > 1e-6


def test_normalisation_shares_the_layers_of_the_network():
    net = net_of(5, 6, 7, 3, activation="relu")
    kinds = [type(m).__name__ for m in normalise(net, "layer")]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert normalise(net, "batch")[3] is net[2]
    with pytest.raises(ValueError, match="kind must be one of batch, layer; got 'group'"):
        normalise(net, "group")
