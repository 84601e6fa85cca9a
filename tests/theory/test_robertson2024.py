"""Dominance in two-layer networks against finite differences, sums over neurons and small flows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fabook import BP, FA, convnet, mlp, stream
from fabook.metrics import cosine, gradient_alignment
from fabook.theory import robertson2024 as dom
from fabook.theory.robertson2023 import conserved
from fabook.theory.robertson2024 import above_chance, dialled_feedback
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


# --- the dial between random and exact feedback --------------------------------------------------


def net(seed: int = 0) -> nn.Sequential:
    g = stream(seed, "weights")
    return mlp([20, 200, 200, 5], activation="relu", init="xavier_uniform", generator=g)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.3, 0.9])
def test_dial_sets_the_cosine_and_keeps_the_size(rho):
    made = net()
    feedback = dialled_feedback(made, rho, stream(0, "feedback"), init="xavier_uniform")
    assert list(feedback) == ["0", "2"]
    for name, above in (("0", made[2]), ("2", made[4])):
        assert float(cosine(feedback[name], above.weight)) == pytest.approx(rho, abs=0.1)
        assert float(feedback[name].std() / above.weight.detach().std()) == pytest.approx(
            1, abs=0.1
        )


def test_at_one_the_first_gradient_is_the_true_one():
    made, x = net(), torch.randn(7, 20, generator=stream(0, "x"))
    rule = FA(made, feedback=dialled_feedback(made, 1.0, stream(0, "feedback")))
    y = torch.arange(7) % 5
    assert gradient_alignment(rule, x, y).total == pytest.approx(1)
    true = BP(made).gradients(x, y)
    for name, g in rule.gradients(x, y).items():
        torch.testing.assert_close(g, true[name])


def test_dial_refuses_what_it_cannot_set():
    with pytest.raises(ValueError, match=r"\[-1, 1\]; got 1\.5"):
        dialled_feedback(net(), 1.5, stream(0, "feedback"))
    normalised = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"Linear and Conv2d layers; '1' is LayerNorm"):
        dialled_feedback(normalised, 0.5, stream(0, "feedback"))


def test_dial_takes_convolutions():
    made = convnet((1, 8, 8), [4, 4], [6], 3, generator=stream(0, "weights"), dtype=torch.float64)
    rule = FA(made, feedback=dialled_feedback(made, 1.0, stream(0, "feedback")))
    x = torch.randn(7, 1, 8, 8, generator=stream(0, "x"), dtype=torch.float64)
    assert gradient_alignment(rule, x, torch.arange(7) % 3).total == pytest.approx(1)


def test_chance_is_zero_and_perfect_is_one():
    for n in (2, 10, 100):
        assert above_chance(1 / n, n) == pytest.approx(0)
        assert above_chance(1.0, n) == pytest.approx(1)


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


def test_accuracy_at_equal_training_accuracy():
    train, test = [0.1, 0.6, 0.5, 0.8], [0.1, 0.4, 0.9, 0.6]
    look = dom.at_training_accuracy
    assert look(train, test, 0.6) == pytest.approx(0.4)  # at the first time
    assert look(train, test, 0.35) == pytest.approx(0.25)
    assert look(train, test, 0.7) == pytest.approx(0.75)  # after the fall, from its own look on
    assert look(train, test, 0.05) == 0.1
    assert math.isnan(look(train, test, 0.9))
    with pytest.raises(ValueError, match="one length"):
        look(train, test[:-1], 0.5)


def test_what_would_be_another_loss_in_silence_is_refused() -> None:
    f, y = torch.ones(4, 1), torch.tensor([1.0, -1.0, 1.0, -1.0])
    for loss in dom.LOSSES.values():
        with pytest.raises(ValueError, match=r"\(4, 1\) and targets \(4,\) must be of one shape"):
            loss(f, y)
    zero_one = (y > 0).float()
    for act in (lambda: dom.logistic(f[:, 0], zero_one), lambda: dom.margin_direction(f, zero_one)):
        with pytest.raises(ValueError, match="plus or minus one"):
            act()
    assert math.isnan(dom.at_training_accuracy([0.1, math.nan, 0.9], [0.1, 0.2, 0.3], 0.5))
