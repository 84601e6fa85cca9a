"""Kernels against stability and integrals, the alignment they predict against networks."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad
from song_networks import ACTIVATIONS, problem, reduced

from fabook import two_layer
from fabook.rules import FA
from fabook.streams import stream
from fabook.theory import chu2023
from fabook.theory.song2021.kernels import (
    isotropic_alignment,
    kernel_matrices,
    lazy_alignment,
    limit_kernel,
    quasi_static,
)
from fabook.theory.song2021.reduction import (
    linear_runs,
    train_linear,
    train_two_layer,
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_are_their_sums_and_the_stability_matrix(activation, device):
    rule, x, _ = problem(device, activation, p=7, n=3, d=4)
    G, H = kernel_matrices(rule, x)
    act = rule.net[1]
    Z = (x @ rule.net[0].weight.T).detach().requires_grad_()
    (slope,) = torch.autograd.grad(act(Z).sum(), Z)
    Z, beta, b = Z.detach(), rule.net[2].weight[0].detach(), rule.feedback["0"][0]
    for i in range(3):
        for j in range(3):
            sum_g = sum(act(Z)[i, r] * act(Z)[j, r] for r in range(7)) / 7
            sum_h = sum(b[r] * beta[r] * slope[i, r] * slope[j, r] for r in range(7)) / 7
            assert abs(float(G[i, j] - sum_g)) < 1e-12
            assert abs(float(H[i, j] - sum_h * (x[i] @ x[j]))) < 1e-12
    M = chu2023.stability_matrix(rule, x)
    assert float((G + H - M).abs().max()) < 1e-12


def test_first_step_of_the_error_is_that_of_the_kernels(device):
    rule, x, y = problem(device, "tanh")
    lr = 1e-6
    G, H = kernel_matrices(rule, x)
    errors = []
    train_two_layer(
        rule, x, y, lr=lr, steps=1, probe_at=[0, 1],
        probe={"e": lambda s: errors.append(s.hidden @ s.beta * s.h - s.y) or 0.0},
    )  # fmt: skip
    want = errors[0] - 2 / len(x) * lr * (G + H) @ errors[0]
    assert float((errors[1] - want).norm() / (errors[1] - errors[0]).norm()) < 1e-4


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_limit_kernel_is_the_integral(activation, layer, device):
    x = torch.tensor([[1.0, 0.0, 0.0], [1.2, 1.6, 0.0], [-3.0, 0.1, 4.0]], dtype=torch.float64)
    got = limit_kernel(x.to(device), activation, layer=layer).cpu()
    psi = {
        "linear": (lambda u: 1.0, lambda u: u),
        "relu": (lambda u: float(u > 0), lambda u: max(u, 0.0)),
        "tanh": (lambda u: 1 - math.tanh(u) ** 2, math.tanh),
    }[activation][layer - 1]
    for i, j in [(0, 0), (0, 1), (1, 2)]:
        a, c = float(x[i].norm()), float(x[j].norm())
        rho = float(x[i] @ x[j]) / (a * c)
        side = math.sqrt(max(1 - rho**2, 0.0))

        def integrand(v, u, a=a, c=c, rho=rho, side=side):
            weight = math.exp(-(u * u + v * v) / 2) / (2 * math.pi)
            return psi(a * u) * psi(c * (rho * u + side * v)) * weight

        if activation == "relu" and layer == 1:  # steps are no food for quadrature: Sheppard
            want = 0.25 + math.asin(min(rho, 1.0)) / (2 * math.pi)
        else:
            want = dblquad(integrand, -8, 8, -8, 8, epsabs=1e-6)[0]
        want *= float(x[i] @ x[j]) if layer == 1 else 1.0
        assert abs(float(got[i, j]) - want) < 1e-5
        assert got[i, j] == got[j, i]


def test_limit_kernel_is_that_of_a_wide_network(device):
    for activation in ("relu", "tanh"):
        rule, x, _ = problem(device, activation, p=200_000, n=5, d=50)
        limit = limit_kernel(x, activation)
        assert float((kernel_matrices(rule, x)[0] - limit).norm() / limit.norm()) < 0.02


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_lazy_alignment_is_what_wide_networks_without_penalty_end_at(activation, device):
    p, n, d, got, want = 2000, 6, 40, [], []
    for s in range(40):
        rule, x, _ = problem(device, activation, p=p, n=n, d=d, seed=s)
        teacher = two_layer(
            d, p, activation=activation, generator=stream(s, "t"), dtype=torch.float64
        )
        y = teacher.to(device)(x).detach()[:, 0]
        b = rule.feedback["0"]
        for sign in (1, -1):  # the average cancels the cosine that b and beta start with
            signed = FA(rule.net, feedback={"0": sign * b})
            got.append(reduced(signed, x, y, activation, lr=0.02, steps=300).final("cosine")[0])
        want.append(lazy_alignment(x, activation, p))
    assert np.mean(want) == pytest.approx(n / p if activation == "linear" else 0.0035, rel=0.3)
    assert np.mean(got) == pytest.approx(np.mean(want), rel=0.2)


def isotropic(n=10, d=30, seed=0):
    q, _ = torch.linalg.qr(torch.randn(d, n, generator=stream(seed, "q"), dtype=torch.float64))
    return q.T * math.sqrt(d)


def test_isotropic_closed_form_obeys_its_equations():
    setting = {"gamma": 30.0, "target_norm": 17.0, "n": 10, "width": 400, "lr": 1e-3}
    t = np.linspace(0, 40_000, 40_001)
    cosine, loss = isotropic_alignment(t, penalty=3.0, **setting)
    strength, gamma, p = 3.0 * 10 / 2, 30.0, 400
    error = np.sqrt(loss * 10)
    sigma = cosine * math.sqrt(p / gamma) / np.sqrt(1 - cosine**2)
    assert cosine[0] == 0
    # d sigma / d tau is the error, and the error is what its equation says
    slope = np.gradient(sigma, t * 2e-3 / 10)
    np.testing.assert_allclose(slope[1:-1], error[1:-1], rtol=1e-5)
    want = strength * 17 / (strength + gamma + gamma**2 * sigma**2 / p)
    np.testing.assert_allclose(error, want, rtol=1e-9)
    wider = isotropic_alignment(2 * t, penalty=3.0, **(setting | {"width": 1600}))[0]
    np.testing.assert_allclose(wider, cosine, rtol=1e-12)


def test_quasi_static_is_the_closed_form_for_isotropic_data():
    x = isotropic()
    y = torch.randn(10, generator=stream(0, "y"), dtype=torch.float64)
    t = np.linspace(20_000, 60_000, 5)  # by then nothing is left of the initial second layer
    setting = {"width": 400, "lr": 1e-3, "penalty": 3.0}
    got = quasi_static(x, y, t, **setting)
    want = isotropic_alignment(t, gamma=30.0, target_norm=float(y.norm()), n=10, **setting)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(quasi_static(x, y, [0.0], **setting)[0], [0.0])


def test_quasi_static_is_what_wide_networks_do(device):
    net = two_layer(30, 6400, activation="linear", generator=stream(0, "w"), dtype=torch.float64)
    rule = FA(net.to(device), init="standard_normal", generator=stream(0, "b")).to(device)
    x = torch.randn(10, 30, generator=stream(0, "x"), dtype=torch.float64).to(device)
    y = x @ torch.randn(30, generator=stream(0, "t"), dtype=torch.float64).to(device)
    at = [10_000, 20_000, 40_000]
    setting = {"lr": 1e-3, "penalty": 1.0}
    seen = train_linear(linear_runs([rule], [x], [y]), steps=40_000, probe_at=at, **setting)
    cosine, loss = quasi_static(x, y, at, width=6400, **setting)
    np.testing.assert_allclose(seen.cosine[:, 0], cosine, atol=0.02)
    np.testing.assert_allclose(seen.loss[:, 0], loss, rtol=0.05)


def test_settings_out_of_range_are_named():
    _, x, y = problem("cpu")
    with pytest.raises(ValueError, match="activation must be one of linear, relu, tanh"):
        limit_kernel(x, "erf")
    with pytest.raises(ValueError, match="layer must be one of 1, 2; got '3'"):
        limit_kernel(x, "relu", layer=3)
    with pytest.raises(ValueError, match="positive"):
        isotropic_alignment([1], gamma=1, target_norm=1, n=1, width=1, lr=1, penalty=0)
    with pytest.raises(ValueError, match="positive"):
        quasi_static(x, y, [1], width=1, lr=1, penalty=0)
    with pytest.raises(ValueError, match="increase"):
        quasi_static(x, y, [2, 1], width=1, lr=1, penalty=1)
