"""The chain of two weights against the rules and its invariant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fabook import FA, metrics
from fabook.theory import chu2023

F64 = torch.float64


@pytest.mark.parametrize(("y", "b"), [(1.0, 1.0), (2.0, 0.5), (1.0, -1.5)])
def test_chain_flow_keeps_its_invariant_and_ends_where_aligned(y: float, b: float) -> None:
    starts = np.random.default_rng(0).normal(size=(2, 30))
    w1, w2 = chu2023.chain_flow(*starts, [0.0, 60.0], y=y, b=b)
    invariant = w2 - w1**2 / (2 * b)  # each path lies on a parabola
    np.testing.assert_allclose(invariant[1], invariant[0], atol=1e-6)
    np.testing.assert_allclose(w1[1] * w2[1], y, atol=1e-6)
    assert (chu2023.chain_alignment(w1[1], w2[1], b=b) > 0).all()
    assert (chu2023.chain_exponent(w1[1], w2[1], b=b) < 0).all()


def test_chain_is_the_networks_flow() -> None:
    one = torch.ones(1, 1, dtype=F64)
    net, b, y, s = chu2023.chain(0.7, -0.4), 1.3, 2.0, 1e-6
    rule = FA(net, feedback={"0": b * one})
    values = chu2023.eigenvalues(chu2023.stability_matrix(rule, one))
    assert values[0].real == pytest.approx(-float(chu2023.chain_exponent(0.7, -0.4, b=b)))
    got = metrics.network_alignment(rule, one, y * one, loss="mse")
    assert got == pytest.approx(float(chu2023.chain_alignment(0.7, -0.4, b=b)))
    rule.sgd_step(one, y * one, s / 2, loss="mse", reduction="sum")
    velocity = chu2023.chain_velocity(0.7, -0.4, y=y, b=b)
    moved = nn.utils.parameters_to_vector(net.parameters()).detach().numpy() - [0.7, -0.4]
    np.testing.assert_allclose(moved / s, velocity, rtol=1e-6)


@pytest.mark.parametrize(("y", "b"), [(1.0, 1.0), (2.0, 0.5), (3.0, -1.5)])
def test_chain_changes_stability_at_its_edge(y: float, b: float) -> None:
    edge = chu2023.chain_edge(y=y, b=b)
    for factor, unstable in ((1.001, False), (0.999, True), (-0.5, False)):
        w1 = factor * edge
        assert (chu2023.chain_exponent(w1, y / w1, b=b) > 0) == unstable


@pytest.mark.parametrize(("y", "b"), [(1.0, 1.0), (2.0, 0.5), (1.0, -1.5)])
def test_a_fixed_point_of_the_chain_is_stable_exactly_where_aligned(y: float, b: float) -> None:
    w1 = np.concatenate([-np.geomspace(0.1, 3, 50), np.geomspace(0.1, 3, 50)])
    w2 = y / w1
    aligned = chu2023.chain_alignment(w1, w2, b=b) > 0
    assert aligned.any()
    assert not aligned.all()
    assert (aligned == (chu2023.chain_exponent(w1, w2, b=b) < 0)).all()
    one = torch.ones(1, 1, dtype=torch.float64)
    for place, expected in zip(zip(w1, w2), aligned):
        rule = FA(chu2023.chain(place[0], place[1] + 1e-7), feedback={"0": b * one})
        assert (metrics.network_alignment(rule, one, y * one, loss="mse") > 0) == expected


def test_times_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        chu2023.chain_flow([0.0], [0.0], [1.0, 0.5])
