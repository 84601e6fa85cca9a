"""The walk of the weights."""

import numpy as np
import pytest
import torch

from fabook.networks import mlp
from fabook.streams import stream
from fabook.theory.chu2023 import DisplacementTracker, growth_exponent
from fabook.training import train
from random_networks import double, labels, make, net_of, randn


def test_walk_adds_up_steps_and_leaves_the_run_alone():
    runs = []
    for watched in (False, True):
        net = net_of(5, 4, 3)
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        seen = [start]
        walk = DisplacementTracker(net)

        def after(step, walk=walk, net=net, seen=seen):
            walk(step)
            seen.append({n: p.detach().clone() for n, p in net.named_parameters()})

        train(make("FA", net), randn(9, 5), labels(9, 3), steps=7, lr=0.3,
              after_step=after if watched else None)  # fmt: skip
        runs.append(net)
    for a, b in zip(runs[0].parameters(), runs[1].parameters()):
        assert torch.equal(a, b)
    for layer in ("0", "2"):
        way = torch.stack([w[f"{layer}.weight"] for w in seen])
        assert walk.path()[layer] == pytest.approx(float(way.diff(dim=0).square().sum()))
        far = float((way[-1] - way[0]).square().sum())
        assert walk.displacement()[layer] == pytest.approx(far)
        assert 1 < far / walk.path()[layer] <= 7


@pytest.mark.parametrize("exponent", [0.0, 0.25])
def test_walks_and_straight_lines(exponent):
    """Independent directions: displacement is the path; straight: exponent 2 - 2a."""
    at = [2**k for k in range(3, 11)]
    for straight in (True, False):
        net = mlp([100, 100], bias=False, generator=stream(0, "weights"), dtype=double)
        walk, ratios, far = DisplacementTracker(net), [], []
        direction = randn(100, 100)
        for step in range(1, at[-1] + 1):
            with torch.no_grad():
                move = direction if straight else randn(100, 100, seed=step)
                net[0].weight.add_(move, alpha=step**-exponent)
            walk(step)
            if step in at:
                far.append(walk.displacement()["0"])
                ratios.append(far[-1] / walk.path()["0"])
        slope = float(growth_exponent(at, far))
        if straight:
            assert slope == pytest.approx(2 - 2 * exponent, abs=0.12)
            assert max(ratios) <= at[-1] * 1.001
        else:
            assert slope == pytest.approx(1 - 2 * exponent, abs=0.12)
            assert ratios == pytest.approx([1.0] * len(at), abs=0.15)


def test_growth_exponent_of_many_curves():
    t = np.array([3, 10, 1000])
    np.testing.assert_allclose(growth_exponent(t, [2 * t**0.5, t**2.0]), [0.5, 2])
