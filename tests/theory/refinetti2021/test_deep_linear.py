"""The recursion is the network, the closed forms are its dynamics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

import fabook
from fabook.metrics import gradient_alignment_per_sample, weight_alignment
from fabook.rules import DFA
from fabook.theory.refinetti2021 import deep_linear as dl

SIZES = [7, 11, 13, 9, 3]
KINDS = ["orthogonal", "normal"]


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def new_rule(kind: str = "orthogonal", seed: int = 0) -> DFA:
    return dl.zero_start(SIZES, feedback=kind, generator=generator(seed))


def noisy_batches(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    g, (n_in, n_out) = generator(5), (SIZES[0], SIZES[-1])
    x, noise = (torch.randn(count, size, n, generator=g, dtype=torch.float64) for n in SIZES[::4])
    S = torch.randn(n_out, n_in, generator=g, dtype=torch.float64)
    return list(zip(x, x @ S.T + 0.3 * noise))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4])
def test_the_recursion_is_the_network(kind: str, size: int) -> None:
    rule = new_rule(kind)
    batches = noisy_batches(1500, size)
    path = dl.train_with_recursion(
        rule, batches, lr=lambda step: 0.004 / (1 + step / 400), probe_at=[100, 1500]
    )
    assert path.deviation.max() < 1e-12
    assert path.norm[-1].min() > 1e-3  # every layer has moved


def test_the_recursion_knows_cross_entropy() -> None:
    rule = new_rule()
    batches = [(x, y.argmax(1)) for x, y in noisy_batches(600, 4)]
    path = dl.train_with_recursion(
        rule, batches, lr=0.006, probe_at=[600], loss="cross_entropy", reduction="sum"
    )
    assert path.deviation[0] < 1e-11
    assert path.norm[-1].min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_matrices_are_each_others_inverse(kind: str) -> None:
    rule, g = new_rule(kind), generator(1)
    feedback = list(rule.feedback.values())
    shapes = [(3, 7), (3, 3), (3, 3), (3, 3)]
    matrices = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    weights = dl.weak_form(matrices, feedback)
    assert [tuple(w.shape) for w in weights] == [(11, 7), (13, 11), (9, 13), (3, 9)]
    for a, b in zip(dl.alignment_matrices(weights, feedback), matrices):
        torch.testing.assert_close(a, b)


def test_alignment_matrices_are_correlations_of_errors_in_time() -> None:
    """A_2 = eta^2 sum over t'' < t' < t of (x' . x'') e' e''^T, one sample a step."""
    rule, lr = new_rule("normal"), 0.02
    errors: list[Tensor] = []
    batches = noisy_batches(30, 1)

    def spying_loss(output: Tensor, target: Tensor) -> Tensor:
        errors.append((output - target).detach()[0])
        return (output - target).square().sum() / 2

    path = dl.train_with_recursion(rule, batches, lr=lr, probe_at=[30], loss=spying_loss)
    e, x = torch.stack(errors[::2]), torch.stack([x[0] for x, _ in batches])  # one call each
    earlier = torch.tril(x @ x.T, -1)
    torch.testing.assert_close(path.matrices[0][0], -lr * e.T @ x)
    torch.testing.assert_close(path.matrices[1][0], lr**2 * e.T @ earlier @ e)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_modes_solve_the_layered_equations(depth: int) -> None:
    s, times = np.array([1.3, 0.7, 0.2]), np.linspace(0, 6, 2401)
    a = dl.mode_dynamics(s, depth, times)  # (n_t, n, L)
    below = np.concatenate([np.ones((*a.shape[:2], 1)), a.cumprod(-1)], -1)
    velocity = (s[:, None] - a.prod(-1, keepdims=True)) * below[..., :-1]
    assert np.abs(np.gradient(a, times, axis=0) - velocity)[1:-1].max() < 1e-3
    np.testing.assert_allclose(dl.final_modes(s, depth).prod(-1), s)
    np.testing.assert_allclose(dl.mode_dynamics(s, depth, [0, 200])[-1], dl.final_modes(s, depth))


def test_a_network_follows_the_modes() -> None:
    s, depth, dt = [1.0, 0.6, 0.3], 4, 0.005
    rule, (x, y, _) = new_rule(), dl.linear_task([1.0, 0.6, 0.3], 7, generator=generator(2))
    probes = [50, 200, 600, 4000]
    # F.mse_loss averages over outputs: lr = dt * 3 / 2 makes a step of dt on half the square
    path = dl.train_with_recursion(rule, [(x, y)] * 4000, lr=dt * 3 / 2, probe_at=probes)
    theory = np.linalg.norm(dl.mode_dynamics(s, depth, dt * np.array(probes)), axis=1)
    np.testing.assert_allclose(path.norm, theory, rtol=0.03, atol=1e-3)
    ratio = max(s) / min(s)
    np.testing.assert_allclose(path.condition[-1], dl.condition_numbers(ratio, depth), rtol=1e-2)
    start = dl.condition_numbers(ratio, depth, stage="start")
    np.testing.assert_allclose(path.condition[0], start, rtol=1e-2)


def test_equal_modes_align_strongly_and_unequal_ones_do_not() -> None:
    finals = []
    for s in ([0.8, 0.8, 0.8], [1.0, 0.6, 0.1]):
        rule, (x, y, _) = new_rule(), dl.linear_task(s, 7, generator=generator(2))
        probe = {"weights": lambda rule=rule: list(weight_alignment(rule).layers.values())}
        path = dl.train_with_recursion(
            rule, [(x, y)] * 1500, lr=0.03, probe_at=[300, 1500], probe=probe
        )
        np.testing.assert_allclose(path.strength, path.extra["weights"], atol=1e-12)
        gradients = gradient_alignment_per_sample(rule, x, y + 1, loss="mse").layers
        finals.append((path.strength[-1], np.array(list(gradients.values()))))
    assert finals[0][0].min() > 1 - 1e-10
    assert finals[0][1].min() > 1 - 1e-10
    assert finals[1][0].max() < 0.999
    assert (np.diff(finals[1][0]) < 0).all()  # worse in every higher layer
    assert finals[1][1].max() < 0.999


def test_gradients_of_a_network_align_as_the_closed_form_says() -> None:
    s, depth, dt, probes = np.array([1.0, 0.6, 0.3]), 4, 0.005, [100, 400, 900, 2000]
    rule, g = new_rule(), generator(2)
    x, y, S = dl.linear_task(s, SIZES[0], generator=g)
    fresh = torch.randn(20_000, SIZES[0], generator=g, dtype=torch.float64)

    def aligned(inputs: Tensor, target: Tensor) -> list[float]:
        seen = gradient_alignment_per_sample(rule, inputs, target.detach(), loss="mse")
        return list(seen.layers.values())

    def worst() -> list[float]:
        errors = dl.worst_errors(rule)
        return [aligned(x[:1], rule.net(x[:1]) - e)[i] for i, e in enumerate(errors)]

    probe = {"mean": lambda: aligned(fresh, fresh @ S.T), "worst": worst}
    seen = dl.train_with_recursion(
        rule, [(x, y)] * 2000, lr=dt * 3 / 2, probe_at=probes, probe=probe
    ).extra
    times = dt * np.array(probes)
    np.testing.assert_allclose(seen["mean"], dl.gradient_alignment(s, depth, times), atol=0.01)
    np.testing.assert_allclose(seen["worst"], dl.worst_alignment(s, depth, times), atol=0.01)
    assert seen["mean"][-1][0] > 0.9 > seen["mean"][1][0]  # it falls first, and comes back


def test_linear_task_is_whitened_with_the_given_singular_values() -> None:
    s = [2.0, 0.5]
    x, y, S = dl.linear_task(s, 6, generator=generator())
    torch.testing.assert_close(x.T @ x / 6, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(y, x @ S.T)
    torch.testing.assert_close(torch.linalg.svdvals(S), torch.tensor(s, dtype=torch.float64))


def test_many_recursions_are_those_of_the_networks() -> None:
    s, dt, probes = [1.0, 0.6, 0.3], 0.01, [50, 400, 1500]
    rules = [new_rule("normal", seed) for seed in range(3)]
    x, y, S = dl.linear_task(s, SIZES[0], generator=generator(2))
    turn = torch.linalg.svd(S, full_matrices=False).Vh.mT  # (n_0, n_L): the directions that S sees
    grams = torch.stack([torch.stack([f.mT @ f for f in rule.feedback.values()]) for rule in rules])
    seen = dl.population_matrices(S @ turn, grams, dt=dt, probe_at=probes)
    assert seen.shape == (3, 3, 4, 3, 3)
    for i, rule in enumerate(rules):
        path = dl.train_with_recursion(rule, [(x, y)] * 1500, lr=dt * 3 / 2, probe_at=probes)
        torch.testing.assert_close(path.matrices[0] @ turn, seen[:, i, 0])
        for layer in (1, 2, 3):
            torch.testing.assert_close(path.matrices[layer], seen[:, i, layer])
    with pytest.raises(ValueError, match="got \\(2, 3\\)"):
        dl.population_matrices(torch.zeros(2, 3), grams, dt=dt, probe_at=[1])


def test_crossing_is_nan_where_a_curve_stays_below() -> None:
    assert np.isnan(dl.crossing([0, 1], [0, 0.1], 0.5))
    assert dl.crossing([0, 1], [0.7, 1], 0.5) == 0


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="depth must be at least 2"):
        dl.modes(1.0, 1)
    with pytest.raises(ValueError, match="stage must be one of start, end"):
        dl.condition_numbers(2.0, 3, stage="middle")
    with pytest.raises(ValueError, match="at least the 3 outputs, got 2"):
        dl.linear_task([1, 1, 1], 2, generator=generator())
    with pytest.raises(ValueError, match="times must increase"):
        dl.mode_dynamics([1.0], 3, [1.0, 1.0])
    rule = new_rule()
    with torch.no_grad():
        rule.net[0].weight.fill_(0.1)
    with pytest.raises(ValueError, match="start at zero"):
        dl.train_with_recursion(rule, noisy_batches(1, 1), lr=0.1, probe_at=[1])


def test_divergence_names_the_step() -> None:
    with pytest.raises(FloatingPointError, match="at step"):
        dl.train_with_recursion(new_rule(), noisy_batches(200, 1), lr=50.0, probe_at=range(1, 201))


def test_worst_errors_are_those_of_dfa_on_a_linear_network() -> None:
    def g() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    relu = fabook.mlp([6, 5, 5, 2], activation="relu", bias=False, generator=g())
    linear = fabook.linear_net([6, 5, 5, 2], init="normal", generator=g())
    for rule in (fabook.DFA(relu, generator=g()), fabook.DRTP(linear, generator=g())):
        with pytest.raises(ValueError, match="needs DFA on"):
            dl.worst_errors(rule)
    assert dl.worst_errors(fabook.DFA(linear, generator=g())).shape == (2, 2)
