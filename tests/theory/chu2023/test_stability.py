"""Stability matrices against the rules themselves, finite steps and the kernels of Song et al."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fabook import (
    BP,
    BRSF,
    DFA,
    DRTP,
    FA,
    FRSF,
    USF,
    KolenPollack,
    Rule,
    Shallow,
    mlp,
    stream,
    two_layer,
)
from fabook.networks import Erf, Scale
from fabook.theory import chu2023

F64 = torch.float64
RULES = [BP, FA, DFA, USF, FRSF, BRSF, KolenPollack, Shallow]


def problem(n: int = 5, d: int = 4, c: int = 2) -> tuple[Tensor, Tensor]:
    g = stream(0, "stability")
    return torch.randn(n, d, generator=g, dtype=F64), torch.randn(n, c, generator=g, dtype=F64)


def by_the_rule(rule: Rule, x: Tensor, n_outputs: int) -> Tensor:
    """One row for each sample and output: the rule's update where that output is the loss."""
    rows = []
    for k in range(len(x) * n_outputs):
        found = rule.gradients(x, x, loss=lambda f, _, k=k: f.flatten()[k])
        rows.append(torch.cat([g.flatten() for g in found.values()]))
    return torch.stack(rows)


@pytest.mark.parametrize("make", RULES)
def test_jacobian_is_what_the_rule_does(make: type[Rule]) -> None:
    g, (x, _) = stream(1), problem()
    net = mlp([4, 6, 5, 2], activation="tanh", generator=g, dtype=F64)
    net = nn.Sequential(net[:3], Scale(0.7), Erf(), net[4])
    rule = make(net, generator=g)
    torch.testing.assert_close(
        chu2023.jacobian(rule, x), by_the_rule(rule, x, 2), rtol=1e-12, atol=1e-14
    )


def test_true_jacobian_is_that_of_finite_differences() -> None:
    g, (x, _) = stream(1), problem()
    net = mlp([4, 3, 2], generator=g, dtype=F64)
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    columns = []
    for k in range(len(flat)):
        sides = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[k] += sign * 1e-6
            nn.utils.vector_to_parameters(moved, net.parameters())
            sides.append(net(x).detach().flatten())
        columns.append((sides[0] - sides[1]) / 2e-6)
    nn.utils.vector_to_parameters(flat, net.parameters())
    got = chu2023.jacobian(BP(net), x)
    torch.testing.assert_close(got, torch.stack(columns, 1), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("make", [FA, DFA])
def test_matrix_predicts_a_small_step(make: type[Rule]) -> None:
    g, (x, y) = stream(2), problem()
    net = mlp([4, 6, 5, 2], generator=g, dtype=F64)
    rule = make(net, generator=g)
    matrix, r = chu2023.stability_matrix(rule, x), (net(x).detach() - y).flatten()
    rule.sgd_step(x, y, 1e-7 / 2, loss="mse", reduction="sum")  # the loss is twice |r|^2/2
    change = ((net(x).detach() - y).flatten() - r) / 1e-7
    torch.testing.assert_close(change, -matrix @ r, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_one_hidden_layer_gives_the_kernels_of_song(activation: str) -> None:
    g, p = stream(3), 7
    x = torch.randn(5, 4, generator=g, dtype=F64)
    net = two_layer(4, p, activation=activation, generator=g, dtype=F64)
    rule = FA(net, generator=g, init="standard_normal")
    w, beta, b = net[0].weight.detach(), net[2].weight.detach()[0], rule.feedback["0"][0]
    z = x @ w.t()
    psi, slope = {
        "linear": (z, torch.ones_like(z)),
        "relu": (z.relu(), (z > 0).double()),
        "tanh": (z.tanh(), 1 - z.tanh() ** 2),
    }[activation]
    gram = psi @ psi.t() / p
    hidden = (slope * b * beta) @ slope.t() / p * (x @ x.t())
    torch.testing.assert_close(chu2023.stability_matrix(rule, x), gram + hidden)


def test_measuring_changes_nothing() -> None:
    g, (x, _) = stream(1), problem()
    rule = FA(mlp([4, 3, 2], generator=g, dtype=F64), generator=g)
    before = [t.clone() for t in (*rule.net.parameters(), *rule.feedback.values())]
    chu2023.stability_matrix(rule, x)
    assert all(p.grad is None for p in rule.net.parameters())
    after = (*rule.net.parameters(), *rule.feedback.values())
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_own_weights_as_feedback_leave_no_unstable_direction() -> None:
    g, (x, _) = stream(1), problem()
    net = mlp([4, 3, 2], generator=g, dtype=F64)
    own = FA(net, feedback={"0": net[2].weight})
    values = chu2023.eigenvalues(chu2023.stability_matrix(own, x))
    assert chu2023.unstable_fraction(values) == 0
    torch.testing.assert_close(chu2023.jacobian(own, x), chu2023.jacobian(BP(net), x))


def test_the_linear_loss_grows_by_the_largest_factor() -> None:
    matrix = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=F64))
    loss = chu2023.linear_loss(matrix, torch.ones(3, dtype=F64), 0.1, [0, 200, 300])
    assert loss[0] == pytest.approx(1.5)
    assert np.log(loss[2] / loss[1]) / 100 == pytest.approx(2 * np.log(1 + 0.1 * 0.5))
    assert chu2023.linear_loss(matrix, torch.ones(3), 0.1, []).shape == (0,)


@pytest.mark.parametrize("kind", [FA, DFA])
def test_layers_add_up_to_the_stability_matrix(kind: type[Rule]) -> None:
    x, _ = problem()
    net = mlp([4, 6, 5, 2], generator=stream(0, "weights"), dtype=F64)
    rule = kind(net, generator=stream(0, "feedback"))
    parts = chu2023.layer_matrices(rule, x)
    assert list(parts) == list(rule.layers)
    torch.testing.assert_close(sum(parts.values()), chu2023.stability_matrix(rule, x))
    top = parts[rule.layers[-1]]  # the read-out's kernel, the same under every rule
    hidden = net[:-1](x).detach()
    kernel = hidden @ hidden.T + 1  # the biases' ones
    torch.testing.assert_close(top, torch.kron(kernel, torch.eye(2, dtype=F64)))


def test_no_feedback_moves_a_network_without_error() -> None:
    net = mlp([4, 5, 3], generator=stream(0, "weights"), dtype=torch.float64)
    x = torch.randn(6, 4, generator=stream(0, "x"), dtype=torch.float64)
    y = net(x).detach()
    for k in range(3):
        rule = FA(net, generator=stream(k, "feedback"))
        updates = rule.gradients(x, y, loss="mse").values()
        assert max(float(update.abs().max()) for update in updates) == 0


def test_wrong_arguments_are_named() -> None:
    g, (x, _) = stream(1), problem()
    net = mlp([4, 3, 2], generator=g, dtype=F64)
    with pytest.raises(ValueError, match="DRTP sends no linear image"):
        chu2023.jacobian(DRTP(net, generator=g), x)
    normed = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="module '1' \\(LayerNorm\\)"):
        chu2023.jacobian(BP(normed), x)
    with pytest.raises(ValueError, match="must rise"):
        chu2023.linear_loss(torch.eye(2), torch.ones(2), 0.1, [3, 1])
