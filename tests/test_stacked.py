"""Stacked training is training: the same numbers as one run at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fabook import BP, DFA, DRTP, FA, mlp, stream, train
from fabook.metrics import weight_alignment
from fabook.rules import Rule
from fabook.stacked import train_stacked

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
@pytest.mark.parametrize("kind", [BP, DFA])
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
        ({"probe_at": [21]}, r"probe_at must lie in \[0, 20\]; got \[21\]"),
        ({"y": torch.zeros(2, N, dtype=torch.long)}, r"got \(2, 22\)"),
        ({"y": torch.zeros(N - 1, dtype=torch.long)}, "x has 22 samples a run"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], match: str) -> None:
    x, y = problem("cross_entropy", False, torch.device("cpu"))
    orders = [stream(r, "order") for r in range(R)]
    options = {"epochs": 4, "batch_size": 5, "lr": 0.1, "generators": orders, "y": y} | change
    with pytest.raises(ValueError, match=match):
        train_stacked(make(DFA, "tanh", torch.device("cpu")), x, **options)


def test_only_what_can_be_stacked_is_taken() -> None:
    cpu = torch.device("cpu")
    x, y = problem("cross_entropy", False, cpu)
    options = {"epochs": 1, "batch_size": 5, "lr": 0.1}
    orders = [stream(r, "order") for r in range(R)]
    for kind in (FA, DRTP):
        with pytest.raises(ValueError, match=f"all be BP or all be DFA; got {kind.__name__}"):
            train_stacked(make(kind, "tanh", cpu), x, y, generators=orders, **options)
    g = stream(0, "weights")
    bare = {"bias": False, "generator": g, "dtype": torch.float64}
    biased = BP(mlp([6, 3], generator=g, dtype=torch.float64))
    with pytest.raises(ValueError, match="have no biases"):
        train_stacked([biased], x, y, generators=orders[:1], **options)
    odd = BP(nn.Sequential(*mlp([6, 5], **bare), nn.Dropout(), *mlp([5, 3], **bare)))
    with pytest.raises(ValueError, match="got Dropout"):
        train_stacked([odd], x, y, generators=orders[:1], **options)
    mixed = [BP(mlp([6, 5, 3], **bare)), BP(mlp([6, 4, 3], **bare))]
    with pytest.raises(ValueError, match="share one architecture"):
        train_stacked(mixed, x, y, generators=orders[:2], **options)
