"""Starts along the feedback."""

import pytest
import torch

from fabook.networks import convnet
from fabook.rules import BP, DFA, FA
from fabook.streams import stream
from fabook.theory.robertson2023 import Invariants, dominant_start
from random_networks import labels, net_of, randn


def test_a_dominant_start_is_its_formula_and_stays_aligned():
    net = net_of(5, 9, 8, 3, activation="relu")
    bound = FA(net, generator=stream(0, "f"))
    dominant_start(bound, factor=1.5)
    for W, b, above, B in [
        (net[0].weight, net[0].bias, net[2].weight, bound.feedback["0"]),
        (net[2].weight, net[2].bias, net[4].weight, bound.feedback["2"]),
    ]:
        half = (W.square().sum(1) + b.square()) / 2
        torch.testing.assert_close(above, B * (1.5 * half / B.square().sum(0)))
        torch.testing.assert_close((above * B).sum(0), 1.5 * half)
    tracker = Invariants(bound)
    for step in range(50):
        bound.sgd_step(randn(20, 5, seed=step), labels(20, 3, seed=step), 0.02)
        tracker.update()
        for law in tracker.quantities.values():
            assert (law.partner() >= law.norm()).all()


@pytest.mark.parametrize("factor", [0.25, -1.0])
def test_a_start_along_the_feedback_has_the_sign_of_its_factor_and_no_guarantee(factor):
    net = net_of(5, 9, 8, 3, activation="relu")
    bound = FA(net, generator=stream(0, "f"))
    dominant_start(bound, factor=factor)
    for law in Invariants(bound).quantities.values():
        torch.testing.assert_close(law.partner(), factor * law.norm())
        assert (law.norm() > law.partner()).all()


def test_a_dominant_start_is_for_fa_on_linear_layers():
    net = net_of(5, 4, 3, activation="relu")
    for bound in (BP(net), DFA(net, generator=stream(0, "f"))):
        with pytest.raises(ValueError, match="for FA on Linear layers"):
            dominant_start(bound)
    fa = FA(net, generator=stream(0, "f"))
    with pytest.raises(ValueError, match="must not be zero"):
        dominant_start(fa, 0.0)
    conv = convnet((1, 6, 6), [2], [], 3, activation="relu", generator=stream(0, "w"))
    with pytest.raises(ValueError, match="for FA on Linear layers"):
        dominant_start(FA(conv, generator=stream(0, "f")))
