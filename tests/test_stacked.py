"""Stacked training is training: the same numbers as one run at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fabook import BP, DFA, DRTP, FA, Shallow, mlp, stream, train
from fabook.metrics import weight_alignment
from fabook.networks import Erf, Scale
from fabook.rules import Rule
from fabook.stacked import _ELEMENTWISE, _PAIRS, train_stacked

R, N = 3, 22


def make(kind: type[Rule], activation: str, device: torch.device) -> list[Rule]:
    rules = []
    for r in range(R):
        net = mlp(
            [6, 5, 4, 3],
            activation=activation,
            bias=False,
            generator=stream(r, "weights"),
            dtype=torch.float64,
        ).to(device)
        rules.append(kind(net, generator=stream(r, "feedback")))
    return rules


def problem(loss: str, per_run: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    g = stream(0, "data")
    shape = (R, N) if per_run else (N,)
    x = torch.randn(*shape, 6, generator=g, dtype=torch.float64)
    labels = torch.randint(3, shape, generator=g)
    targets = torch.randn(*shape, 3, generator=g, dtype=torch.float64)
    return x.to(device), (labels if loss == "cross_entropy" else targets).to(device)


@pytest.mark.parametrize("per_run", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "linear"])
@pytest.mark.parametrize("kind", [BP, FA, DFA])
def test_equals_single_runs(
    kind: type[Rule],
    activation: str,
    loss: str,
    reduction: str,
    per_run: bool,
    device: torch.device,
) -> None:
    together, alone = make(kind, activation, device), make(kind, activation, device)
    x, y = problem(loss, per_run, device)
    options = {"epochs": 4, "batch_size": 5, "lr": 0.02, "loss": loss, "reduction": reduction}
    start = together[0].net[0].weight.detach().clone()
    train_stacked(together, x, y, generators=[stream(r, "order") for r in range(R)], **options)
    for r, rule in enumerate(alone):
        data = (x[r], y[r]) if per_run else (x, y)
        train(rule, *data, generator=stream(r, "order"), **options)
    assert (together[0].net[0].weight - start).abs().max() > 1e-3
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
            assert (a - b).abs().max() < 1e-10


def test_probes_see_every_run_and_networks_own_their_weights_afterwards(
    device: torch.device,
) -> None:
    rules = make(DFA, "tanh", device)
    x, y = problem("cross_entropy", False, device)
    seen = train_stacked(
        rules,
        x,
        y,
        epochs=3,
        batch_size=5,
        lr=0.1,
        drop_last=True,
        generators=[stream(r, "order") for r in range(R)],
        probe={"wa": lambda: [weight_alignment(rule).total for rule in rules]},
        probe_at=[0, 4, 12],
    )
    assert seen.steps.tolist() == [0, 4, 12]
    assert seen.epochs.tolist() == [0, 1, 3]
    assert seen["wa"].shape == (3, R)
    assert seen["wa"][-1] == pytest.approx([weight_alignment(rule).total for rule in rules])
    weights = [rule.net[0].weight for rule in rules]
    assert len({w.untyped_storage().data_ptr() for w in weights}) == R
    assert all(w.untyped_storage().nbytes() == w.numel() * w.element_size() for w in weights)


def test_divergence_names_the_run() -> None:
    rules = make(BP, "relu", torch.device("cpu"))
    x, y = problem("mse", True, torch.device("cpu"))
    x[1] *= 1e200
    orders = [stream(r, "order") for r in range(R)]
    with pytest.raises(FloatingPointError, match="run 1 diverged before step 5"):
        train_stacked(rules, x, y, epochs=1, batch_size=5, lr=1.0, loss="mse", generators=orders)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": "hinge"}, "loss must be one of"),
        ({"reduction": "none"}, "reduction must be one of"),
        ({"batch_size": 23}, r"batch_size must lie in \[1, 22\]; got 23"),
        ({"generators": []}, "generators must be 3, one for each run; got 0"),
        ({"generators": stream(0, "order")}, r"one for each run; got 1: \[fabook.stream"),
        ({"lr": -0.1}, "lr must be a finite number .*; got -0.1"),
        ({"x": torch.zeros(N, 7, dtype=torch.double)}, r"networks take 6 inputs; got x \(22, 7\)"),
        ({"y": torch.zeros(N)}, r"y \(torch.float32\) must have 2 axes"),
        ({"probe_at": [21]}, r"probe_at must be whole numbers in \[0, 20\]; got \[21\]"),
        ({"generators": [stream(0, "order")] * 3}, "one for each run; got 1"),
        ({"probe": {"a": lambda: 1.0}}, "probe without probe_at"),
        ({"steps": 3}, "give either epochs or steps"),
        ({"x": torch.zeros(N, 6)}, "x is torch.float32, the networks are torch.float64"),
        ({"y": torch.zeros(2, N, dtype=torch.long)}, r"got \(2, 22\)"),
        ({"y": torch.zeros(N - 1, dtype=torch.long)}, "x has 22 samples a run"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], match: str) -> None:
    x, y = problem("cross_entropy", False, torch.device("cpu"))
    orders = [stream(r, "order") for r in range(R)]
    options = {"epochs": 4, "batch_size": 5, "lr": 0.1, "generators": orders, "x": x, "y": y}
    with pytest.raises(ValueError, match=match):
        train_stacked(make(DFA, "tanh", torch.device("cpu")), **options | change)


# --- what may differ between runs -----------------------------------------------------------------

L, S = nn.Linear, nn.Sequential


def fill(net: nn.Module, run: int) -> nn.Module:
    g = stream(run, "fill")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 2)
    return net.double()


def one_activation_twice(run: int) -> nn.Module:
    act = nn.Tanh()
    return S(L(6, 5), act, L(5, 4), act, L(4, 3))


def frozen(run: int) -> nn.Module:
    net = S(L(6, 5), nn.Tanh(), L(5, 4), nn.ReLU(), L(4, 3))
    for k, p in enumerate(net.parameters()):
        p.requires_grad_((k + run) % 3 != 0)
    return net


def frozen_everywhere(run: int) -> nn.Module:
    net = S(L(6, 5), nn.Tanh(), L(5, 3))
    net[0].requires_grad_(False)
    return net


def modes(run: int) -> nn.Module:
    return S(L(6, 5), nn.GELU(), L(5, 3), nn.Tanh()).train(run != 1)


def every_activation(run: int) -> nn.Module:
    kinds = [*_PAIRS, *_ELEMENTWISE]
    options = {Scale: (1.3,), nn.Threshold: (0.1, 0.2)}
    layers = [m for kind in kinds for m in (L(4, 4), kind(*options.get(kind, ())))]
    return S(L(6, 4), *layers, L(4, 3))


ARCHITECTURES = {
    "one activation twice": one_activation_twice,
    "frozen, another set in each run": frozen,
    "frozen in every run": frozen_everywhere,
    "training and evaluation": modes,
    "slopes": lambda r: S(L(6, 5), nn.LeakyReLU(0.1 * (r + 1)), L(5, 3), Scale(r + 0.5)),
    "settings by autograd": lambda r: S(L(6, 5), nn.ELU(r + 1.0), L(5, 4), nn.CELU(), L(4, 3)),
    "nested": lambda r: S(S(L(6, 5), S(nn.Tanh())), S(), S(L(5, 3))),
    "in place": lambda r: S(L(6, 5), nn.ReLU(True), L(5, 4), nn.ELU(inplace=True), L(4, 3)),
    "some biases": lambda r: S(L(6, 5, False), nn.Sigmoid(), L(5, 4), Erf(), L(4, 3, False)),
    "scale at the top": lambda r: S(L(6, 5), nn.Tanh(), L(5, 3), Scale(0.3)),
    "activation below": lambda r: S(nn.Tanh(), L(6, 5), nn.Tanh(), L(5, 3), nn.Softplus()),
    "one layer": lambda r: S(L(6, 3)),
    "every activation": every_activation,
}  # fmt: skip


def strided(net: nn.Module) -> nn.Module:
    """The same values, columns first in memory."""
    for p in net.parameters():
        p.data = p.data.t().contiguous().t() if p.ndim == 2 else p.data
    return net


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [BP, FA, DFA])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_single_runs_whatever_differs(
    name: str, kind: type[Rule], momentum: float, device: torch.device
) -> None:
    with torch.random.fork_rng():
        nets = [[fill(ARCHITECTURES[name](r), r).to(device) for r in range(R)] for _ in "ab"]
    nets[0][1] = strided(nets[0][1])
    together, alone = (
        [kind(net, generator=stream(r, "feedback")) for r, net in enumerate(side)] for side in nets
    )
    x, y = problem("cross_entropy", False, device)
    options = {"epochs": 3, "batch_size": 5, "probe_at": [0, 3]}
    before = [[p.detach().clone() for p in rule.net.parameters()] for rule in together]
    kept = [[(p.requires_grad, p.stride(), p.data_ptr()) for p in n.parameters()] for n in nets[0]]
    orders = [stream(r, "order") for r in range(R)]
    found = train_stacked(
        together, x, y, lr=0.05, momentum=momentum, generators=orders, **options,
        probe={"w": lambda: [float(next(n.parameters()).detach().norm()) for n in nets[0]]},
    )  # fmt: skip
    for r, rule in enumerate(alone):
        sgd = torch.optim.SGD(rule.net.parameters(), lr=0.05, momentum=momentum)
        order = stream(r, "order")
        one = train(
            rule, x, y, optimizer=sgd, generator=order, **options,
            probe={"w": lambda net=rule.net: float(next(net.parameters()).detach().norm())},
        )  # fmt: skip
        assert found.loss[:, r] == pytest.approx(one.loss, abs=1e-12)
        assert found["w"][:, r] == pytest.approx(one["w"], abs=1e-12)
        assert torch.equal(order.get_state(), orders[r].get_state())
        parts = zip(together[r].net.parameters(), rule.net.parameters(), before[r], strict=True)
        for a, b, start in parts:
            assert (a - b).abs().max() < 1e-12
            assert a.requires_grad or torch.equal(a, start)
            assert a.grad is None
    assert kept == [
        [(p.requires_grad, p.stride(), p.data_ptr()) for p in n.parameters()] for n in nets[0]
    ]
    assert [n.training for n in nets[0]] == [n.training for n in nets[1]]


class Doubled(FA, fixed=True):
    """Twice the matrix."""

    def matrix(self, layer: str) -> Tensor:
        return 2 * super().matrix(layer)


class Opposed(DFA, fixed=True):
    """Direct feedback of the other sign."""

    def matrix(self, layer: str) -> Tensor:
        return -super().matrix(layer)


class Constant(Rule, fixed=True):
    """One number in the place of every weight."""

    def matrix(self, layer: str) -> Tensor:
        return torch.full_like(self.weight(layer), 0.3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [Doubled, Opposed, Constant])
def test_a_rule_of_ones_own_with_fixed_matrices_equals_single_runs(
    kind: type[Rule], momentum: float, device: torch.device
) -> None:
    together, alone = make(kind, "tanh", device), make(kind, "tanh", device)
    x, y = problem("cross_entropy", True, device)
    orders = [stream(r, "order") for r in range(R)]
    options = {"epochs": 3, "batch_size": 5}
    train_stacked(together, x, y, lr=0.05, momentum=momentum, generators=orders, **options)
    for r, rule in enumerate(alone):
        sgd = torch.optim.SGD(rule.net.parameters(), lr=0.05, momentum=momentum)
        train(rule, x[r], y[r], optimizer=sgd, generator=stream(r, "order"), **options)
        for a, b in zip(together[r].net.parameters(), rule.net.parameters(), strict=True):
            assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_whole_batches_and_probabilities(loss: str) -> None:
    cpu = torch.device("cpu")
    together, alone = make(FA, "erf", cpu), make(FA, "erf", cpu)
    x, y = problem("mse", True, cpu)
    y = y.softmax(-1) if loss == "cross_entropy" else y
    found = train_stacked(together, x, y, steps=6, lr=0.3, loss=loss)
    for r, rule in enumerate(alone):
        one = train(rule, x[r], y[r], steps=6, lr=0.3, loss=loss)
        assert found.loss[:, r] == pytest.approx(one.loss, abs=1e-12)
        for a, b in zip(together[r].net.parameters(), rule.net.parameters(), strict=True):
            assert (a - b).abs().max() < 1e-12


def test_a_probe_of_alignments() -> None:
    rules = make(DFA, "tanh", torch.device("cpu"))
    x, y = problem("cross_entropy", False, torch.device("cpu"))
    seen = train_stacked(
        rules, x, y, steps=1, lr=0.1, probe_at=[0, 1],
        probe={"wa": lambda: [weight_alignment(rule) for rule in rules]},
    )  # fmt: skip
    found = [weight_alignment(rule) for rule in rules]
    assert seen["wa"][1].tolist() == [a.total for a in found]
    assert seen["wa[2]"][1].tolist() == [a.layers["2"] for a in found]
    assert list(seen.frame().columns)[:4] == ["epoch", "loss[0]", "loss[1]", "loss[2]"]


def own_forward(run: int) -> nn.Module:
    net = S(L(6, 5), nn.Tanh(), L(5, 3))
    if run == 2:
        net[1].forward = torch.sin
    return net


REFUSED = {
    "dropout": (lambda r: S(L(6, 5), nn.Dropout(), L(5, 3)), r"run 0, module '1' \(Dropout\)"),
    "norm": (lambda r: S(L(6, 5), nn.LayerNorm(5), L(5, 3)), r"run 0, module '1' \(LayerNorm\)"),
    "another width": (
        lambda r: S(L(6, 5 - r // 2), L(5 - r // 2, 3)),
        r"run 2, module '0' .* has weight \(4, 6\)",
    ),
    "another bias": (lambda r: S(L(6, 5, r != 1), L(5, 3)), "run 1, module '0'"),
    "another activation": (
        lambda r: S(L(6, 5), nn.Tanh() if r < 2 else nn.ReLU(), L(5, 3)),
        r"run 2, module '1' .* is Tanh in run 0",
    ),
    "another depth": (
        lambda r: S(L(6, 5), *[L(5, 5)] * (r == 1), L(5, 3)),
        "run 1 has 3 modules, run 0 has 2",
    ),
    "own forward": (own_forward, "run 2, module '1'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stacked_is_named(name: str) -> None:
    build, match = REFUSED[name]
    with torch.random.fork_rng():
        rules = [BP(fill(build(r), r)) for r in range(R)]
    x, y = problem("cross_entropy", False, torch.device("cpu"))
    with pytest.raises(ValueError, match=match):
        train_stacked(rules, x, y, steps=1, lr=0.1)


def test_rules_and_runs_that_cannot_be_stacked_are_named() -> None:
    class Mine(FA):
        pass

    class Sent(FA, fixed=True):
        def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor:
            return super().send(layer, delta / 2, top)

    class Moving(FA, fixed=True):
        def refresh(self) -> None:
            self.drawn("0").mul_(0.9)

    class Targets(DFA, fixed=True):
        from_top = DRTP.from_top

    cpu = torch.device("cpu")
    x, y = problem("cross_entropy", False, cpu)
    for kind in (DRTP, Shallow, Mine, Sent, Moving, Targets):
        with pytest.raises(ValueError, match=f"one of BP, FA, DFA or .* got {kind.__name__}"):
            train_stacked(make(kind, "tanh", cpu), x, y, steps=1, lr=0.1)
    bp = make(BP, "tanh", cpu)
    with pytest.raises(ValueError, match="got BP, FA"):
        train_stacked([*bp, *make(FA, "tanh", cpu)], x, y, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="runs 0 and 3 share the memory of a weight"):
        train_stacked([*bp, BP(bp[0].net)], x, y, steps=1, lr=0.1)
    mixed = [bp[0], BP(mlp([6, 5, 4, 3], bias=False, generator=stream(0, "w")))]
    with pytest.raises(ValueError, match=r"run 1, module '0' .* float32, run 0 has .* float64"):
        train_stacked(mixed, x, y, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="one rule or more"):
        train_stacked([], x, y, steps=1, lr=0.1)


def test_feedback_that_is_drawn_anew_is_refused():
    nets = [mlp([4, 3, 2], generator=stream(s, "w")) for s in range(2)]
    rules = [
        FA(n, generator=stream(0, "f"), redraw_every=k)
        for n, k in zip(nets, (None, 2), strict=True)
    ]
    with pytest.raises(ValueError, match="run 1 redraws its feedback"):
        train_stacked(rules, torch.ones(3, 4), torch.tensor([0, 1, 1]), lr=0.1, steps=1)


def test_a_network_that_was_changed_or_has_hooks_is_refused() -> None:
    cpu = torch.device("cpu")
    x, y = problem("cross_entropy", False, cpu)
    changed, hooked = make(FA, "tanh", cpu), make(FA, "tanh", cpu)
    changed[1].net[2] = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    hooked[2].net[1].register_forward_hook(lambda m, i, o: o * 0)
    late = make(BP, "tanh", cpu)
    late[0].net[1].register_forward_hook(lambda m, i, o: o * 0)
    late[0] = BP(late[0].net)
    for rules, run in ((changed, 1), (hooked, 2), (late, 0)):
        with pytest.raises(ValueError, match=f"run {run}: .*(changed after|has hooks)"):
            train_stacked(rules, x, y, steps=1, lr=0.1)


@pytest.mark.parametrize("rates", [{"lr": -0.1}, {"lr": float("nan")}, {"lr": 1, "momentum": -1}])
def test_rates_that_would_ascend_are_refused(rates: dict[str, float]) -> None:
    cpu = torch.device("cpu")
    x, y = problem("cross_entropy", False, cpu)
    with pytest.raises(ValueError, match="must be a finite number that is not negative"):
        train_stacked(make(BP, "tanh", cpu), x, y, steps=1, **rates)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_whole_type_are_labels(dtype: torch.dtype) -> None:
    cpu = torch.device("cpu")
    x, y = problem("cross_entropy", False, cpu)
    seen = [train_stacked(make(BP, "tanh", cpu), x, t, steps=3, lr=0.1) for t in (y, y.to(dtype))]
    assert (seen[0].loss == seen[1].loss).all()
