"""Dominance against finite differences and sums over neurons."""

from __future__ import annotations

import math

import pytest
import torch

from dominant_networks import D, H, N, problem
from fabook import BP, FA, mlp, stream
from fabook.theory import robertson2024 as dom
from fabook.theory.robertson2023 import conserved


def test_readout_sets_the_conserved_quantity():
    rule, _, _ = problem(1.0, 0.05)
    torch.testing.assert_close(-conserved(rule)["0"], torch.full((H,), 0.05).double())
    with pytest.raises(ValueError, match="zero"):
        dom.readout(torch.ones(2, 2), torch.tensor([1.0, 0.0]), factor=1.0)


@pytest.mark.parametrize("loss", dom.LOSS_FUNCTIONS)
@pytest.mark.parametrize("factor", [1.5, -1.5])
def test_parts_of_the_loss_rate_are_those_of_a_small_step(loss, factor):
    rule, x, y = problem(factor, 0.02)
    seen = dom.measure(rule, x, y, loss)
    lr = 1e-6
    rule.sgd_step(x, y, lr, loss=dom.LOSS_FUNCTIONS[loss])
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


def test_shares_of_layers_are_the_dominance_share_for_one_output():
    rule, x, y = problem(-0.5, 0.1)
    found = dom.layer_shares(rule, x, y, loss=dom.half_mean_square)
    assert found["0"] == pytest.approx(dom.measure(rule, x, y, "squared")["share"])
    net = mlp([D, 7, 5, 3], activation="relu", generator=stream(0, "net"), dtype=torch.float64)
    labels = torch.arange(N) % 3
    assert list(dom.layer_shares(BP(net), x, labels).values()) == pytest.approx([1.0, 1.0])
    opposed = FA(net, feedback={"0": -net[2].weight.detach(), "2": -net[4].weight.detach()})
    assert dom.layer_shares(opposed, x, labels)["2"] == pytest.approx(-1.0)
    net[0].weight.requires_grad_(False)
    assert list(dom.layer_shares(BP(net), x, labels)) == ["2"]  # what does not learn has no share
