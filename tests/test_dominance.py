"""Dominance in two-layer networks against finite differences, sums over neurons and small flows."""

from __future__ import annotations

import math

import pytest
import torch

from fabook import FA, mlp, stream
from fabook import dominance as dom
from fabook.metrics import conserved
from fabook.training import train

N, D, H = 12, 6, 40


def problem(factor: float, offset: float, seed: int = 0):
    g = stream(seed, "dominance")
    x = torch.nn.functional.normalize(torch.randn(N, D, generator=g, dtype=torch.float64))
    y = torch.sign(x[:, :1] + 0.2)
    net = mlp([D, H, 1], activation="relu", bias=False, generator=g, dtype=torch.float64)
    net[0].weight.data.mul_(0.5)
    b = torch.randn(1, H, generator=g, dtype=torch.float64).sign() / math.sqrt(H)
    net[2].weight.data[0] = dom.readout(net[0].weight.data, b[0], factor=factor, offset=offset)
    return FA(net, feedback={"0": b}), x, y


def test_readout_sets_the_conserved_quantity():
    rule, _, _ = problem(1.0, 0.05)
    torch.testing.assert_close(-conserved(rule)["0"], torch.full((H,), 0.05).double())
    with pytest.raises(ValueError, match="zero"):
        dom.readout(torch.ones(2, 2), torch.tensor([1.0, 0.0]), factor=1.0)


@pytest.mark.parametrize("loss", dom.LOSSES)
@pytest.mark.parametrize("factor", [1.5, -1.5])
def test_parts_of_the_loss_rate_are_those_of_a_small_step(loss, factor):
    rule, x, y = problem(factor, 0.02)
    seen = dom.measure(rule, x, y, loss)
    lr = 1e-6
    rule.sgd_step(x, y, lr, loss=dom.LOSSES[loss])
    rate = (dom.measure(rule, x, y, loss)["loss"] - seen["loss"]) / lr
    assert rate == pytest.approx(-seen["readout"] - seen["hidden"], rel=1e-3)


def test_signals_are_the_update_over_the_feedback():
    rule, x, y = problem(1.5, 0.0)
    g = rule.gradients(x, y, loss=dom.half_mean_square)["0.weight"]
    e = (rule.net(x) - y).detach()[:, 0] / N
    signals = dom.neuron_signals(rule.net[0].weight.detach(), x, e)
    torch.testing.assert_close(signals * rule.feedback["0"].T, g)


def test_kernel_is_the_quadratic_form_of_the_signals():
    rule, x, y = problem(1.5, 0.0)
    u, e = rule.net[0].weight.detach(), (rule.net(x) - y).detach()[:, 0]
    total = dom.neuron_signals(u, x, e / N).square().sum()
    torch.testing.assert_close(total, e @ dom.kernel(u, x) @ e / N**2)
    assert torch.linalg.eigvalsh(dom.kernel(u, x))[0] >= -1e-12


@pytest.mark.parametrize("factor", [1.5, -1.5])
def test_tangent_kernel_is_the_loss_rate_and_exceeds_its_part(factor):
    rule, x, y = problem(factor, 0.02)
    seen = dom.measure(rule, x, y, "squared")
    u, e = rule.net[0].weight.detach(), (rule.net(x) - y).detach()[:, 0]
    alignment = rule.net[2].weight.detach()[0] * rule.feedback["0"][0]
    theta = dom.tangent_kernel(u, alignment, x)
    assert float(e @ theta @ e) / N**2 == pytest.approx(seen["readout"] + seen["hidden"])
    if factor > 0:
        rest = theta - 0.02 * dom.kernel(u, x)
        assert torch.linalg.eigvalsh(rest)[0] > -1e-12


@pytest.mark.parametrize(("signs", "share"), [([1, 1], 1.0), ([-1, -1], -1.0)])
def test_share_is_one_when_all_neurons_agree(signs, share):
    a = torch.tensor(signs).double() * torch.tensor([0.3, 2.0])
    assert float(dom.dominance_share(a, torch.randn(2, 3).double())) == pytest.approx(share)
    assert math.isnan(dom.dominance_share(a, torch.zeros(2, 3)))


@pytest.mark.parametrize("loss", dom.LOSSES)
def test_dominant_start_descends_within_its_bound(loss):
    rule, x, y = problem(1.0, 0.1)
    lr, due = 0.05, range(0, 2001, 50)
    seen = train(
        rule, x, y, steps=2000, lr=lr, loss=dom.LOSSES[loss], probe_at=due,
        probe={"": lambda: dom.measure(rule, x, y, loss)},
    )  # fmt: skip
    value, t = torch.as_tensor(seen["loss"]), torch.as_tensor(lr * seen.steps)
    assert (seen["least"] >= 0).all()
    assert (value[1:] <= value[:-1]).all()
    if loss == "squared":
        bound = dom.exponential_bound(
            t, torch.as_tensor(seen["eigenvalue"]), float(value[0]), 0.1, N
        )
    else:
        bound = dom.separable_bound(
            t, float(value[0]), 0.1, margin=dom.margin_direction(x, y[:, 0])[1],
            active=seen["active"].min(), worst=seen["worst"].max(), width=H,
        )  # fmt: skip
    assert (value <= bound * (1 + 1e-12)).all()
    assert bound[-1] < 0.999 * bound[0]


def test_margin_is_the_largest():
    g = stream(0, "margin")
    x = torch.randn(8, 3, generator=g).double()
    y = torch.sign(x @ torch.tensor([1.0, -2.0, 0.5]).double())
    v, margin = dom.margin_direction(x, y)
    others = torch.nn.functional.normalize(v + 0.05 * torch.randn(500, 3, generator=g).double())
    assert margin > 0
    assert (y[:, None] * (x @ others.T)).min(0).values.max() <= margin + 1e-12
    assert dom.margin_direction(torch.cat([x, x]), torch.cat([y, -y]))[1] <= 1e-9
