"""Two-layer linear networks: the closed forms against training, and against each other."""

import numpy as np
import pytest
import torch

from fabook.networks import linear_net
from fabook.rules import BP, FA
from fabook.streams import stream
from fabook.theory import robertson2023
from fabook.training import train

double = torch.float64


def problem(n=6, d=15, m=1, seed=0):
    g = stream(seed, "data")
    X = torch.randn(n, d, generator=g, dtype=double) / d**0.5
    return X, torch.randn(n, m, generator=g, dtype=double)


def trained(rule, X, Y, *, scale=0.0, lr=0.05, steps=4000, h=30):
    net = linear_net(
        [X.shape[1], h, Y.shape[1]],
        init="normal" if scale else "zero",
        scale=scale or 1.0,
        generator=stream(0, "w"),
        dtype=double,
    )
    bound = rule(net, generator=stream(0, "f"), init="normal")
    first = net[0].weight.detach().clone()
    # mse summed is twice our loss, so half the rate
    train(bound, X, Y, steps=steps, lr=lr / 2, loss="mse", reduction="sum")
    return bound, first


def test_solution_is_the_smallest_that_fits():
    X, Y = (t.numpy() for t in problem(m=3))
    beta = robertson2023.solution(X, Y)
    assert beta.shape == (15, 3)
    np.testing.assert_allclose(X @ beta, Y, atol=1e-12)
    outside = np.eye(15) - np.linalg.pinv(X) @ X
    np.testing.assert_allclose(outside @ beta, 0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 3])
def test_fa_from_zero_reaches_it(m):
    X, Y = problem(m=m)
    bound, _ = trained(FA, X, Y)
    W1, W2 = (p.detach() for p in bound.net.parameters())
    assert robertson2023.distance(W1, W2, X, Y) < 1e-6


@pytest.mark.parametrize("rule", [FA, BP])
def test_the_distance_is_what_the_start_has_outside_the_data(rule):
    X, Y = problem(m=2)
    bound, first = trained(rule, X, Y, scale=0.5)
    W1, W2 = (p.detach() for p in bound.net.parameters())
    seen = robertson2023.distance(W1, W2, X, Y)
    assert seen == pytest.approx(robertson2023.predicted_distance(first, W2, X, Y), rel=1e-6)
    assert seen > 0.05


def test_gradient_descent_stays_at_zero():
    X, Y = problem()
    bound, _ = trained(BP, X, Y, steps=10)
    assert all(not p.any() for p in bound.net.parameters())


@pytest.mark.parametrize("start", [0.0, -0.3])
def test_training_follows_the_closed_form(start):
    """W1 = b v^T to rounding; v and w2 to the order of the step."""
    X, Y = problem()
    errors = []
    for lr in (0.02, 0.01):
        net = linear_net([15, 30, 1], dtype=double)
        bound = FA(net, generator=stream(0, "f"), init="normal")
        b = bound.feedback["0"][0]
        with torch.no_grad():
            net[1].weight.copy_(start * b)
        train(bound, X, Y, steps=round(2 / lr), lr=lr / 2, loss="mse", reduction="sum")
        norm2 = float(b @ b)
        path = robertson2023.scalar_flow(X, Y[:, 0], times=[0, 2], norm2=norm2, start=start)
        v = net[0].weight.detach().T @ b / norm2
        torch.testing.assert_close(net[0].weight.detach(), torch.outer(b, v))
        errors.append(float(np.linalg.norm(v.numpy() - path.v[-1]) / np.linalg.norm(path.v[-1])))
        readout = float(net[1].weight.detach()[0] @ b) / norm2
        assert readout == pytest.approx(path.readout[-1], abs=0.03)
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)
    assert errors[1] < 0.02


def test_the_flow_starts_at_zero_and_fits_in_the_end():
    X, Y = (t.numpy() for t in problem())
    path = robertson2023.scalar_flow(X, Y[:, 0], times=[0, 1, 60])
    assert path.loss[0] == pytest.approx((Y**2).sum() / 2)
    np.testing.assert_allclose(path.beta[-1], robertson2023.solution(X, Y)[:, 0], atol=1e-4)
    against = robertson2023.scalar_flow(X, Y[:, 0], times=[0, 0.1, 60], start=-0.5)
    assert against.loss[1] > against.loss[0]
    np.testing.assert_allclose(against.beta[-1], path.beta[-1], atol=1e-4)


def test_the_flow_is_a_mirror_flow():
    """The gradient of the potential at beta is v."""
    X, Y = (t.numpy() for t in problem())
    path = robertson2023.scalar_flow(X, Y[:, 0], times=[0, 1], norm2=1.7)
    beta, v = path.beta[-1], path.v[-1]
    step = 1e-6 * np.eye(len(beta))
    ahead, behind = (robertson2023.potential(beta + s * step, 1.7) for s in (1, -1))
    np.testing.assert_allclose((ahead - behind) / 2e-6, v, rtol=1e-6, atol=1e-8)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"X must be \(n, d\) and y \(n,\); got \(2, 3\)"):
        robertson2023.scalar_flow(np.ones((2, 3)), np.ones((2, 1)), times=[0, 1])
