"""Descent by layer, and the walk of the weights."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import nn

from fabook.metrics import gradient_alignment, network_alignment
from fabook.networks import mlp
from fabook.rules import FA, RULES
from fabook.streams import stream
from fabook.theory.chu2023 import DisplacementTracker, first_order, growth_exponent, hidden_share
from fabook.training import train

few = settings(deadline=None, derandomize=True, max_examples=30, database=None)
double = torch.float64


def randn(*shape, seed=0, dtype=double):
    return torch.randn(shape, generator=stream(seed, "test", *shape), dtype=dtype)


def labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=stream(seed, "labels", n))


def net_of(*sizes, activation="tanh", seed=0, bias=True, dtype=double):
    net = mlp(
        sizes, activation=activation, bias=bias, generator=stream(seed, "weights"), dtype=dtype
    )
    with torch.no_grad():
        for k, layer in enumerate(m for m in net if isinstance(m, nn.Linear) and bias):
            layer.bias.copy_(0.1 * randn(len(layer.bias), seed=seed + k + 1))
    return net


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)


@pytest.mark.parametrize("rule", RULES)
def test_descent_is_the_slope_of_the_loss_along_the_update(rule):
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    found = first_order(bound, x, y).descent
    assert list(found) == ["0", "2", "4"]
    updates, eps = bound.gradients(x, y), 1e-6
    for layer, slope in found.items():
        losses = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    if name.startswith(f"{layer}."):
                        p.sub_(sign * eps * updates[name])
            losses.append(float(F.cross_entropy(moved(x), y).detach()))
        assert slope == pytest.approx((losses[1] - losses[0]) / (2 * eps), rel=1e-5, abs=1e-9)


def test_descent_of_the_readout_does_not_depend_on_the_rule():
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    tops = [
        first_order(make(name, net), x, y).descent["4"] for name in ("BP", "FA", "DFA", "Shallow")
    ]
    assert tops == pytest.approx([tops[0]] * 4, rel=1e-12)
    hidden = first_order(make("Shallow", net), x, y).descent
    assert hidden["0"] == hidden["2"] == 0


def test_descent_has_the_sign_of_the_network_alignment():
    net, x, y = net_of(5, 4, 6, 3, bias=False), randn(9, 5), labels(9, 3)
    signs = set()
    for factor in (1.0, -1.0, -30.0):
        feedback = {"0": net[2].weight, "2": factor * net[4].weight}
        bound = FA(net, feedback=feedback)
        total = sum(first_order(bound, x, y).descent.values())
        assert total * network_alignment(bound, x, y) > 0
        signs.add(total > 0)
    assert signs == {True, False}


@pytest.mark.parametrize("rule", ["BP", "FA", "DFA", "uSF"])
def test_first_order_has_the_alignments_of_the_other_metrics(rule):
    net, x, y = net_of(5, 4, 6, 3), randn(9, 5), labels(9, 3)
    bound = make(rule, net)
    found, hidden = first_order(bound, x, y), gradient_alignment(bound, x, y).layers
    assert found.network == pytest.approx(network_alignment(bound, x, y), abs=1e-14)
    assert found.layers == pytest.approx(hidden | {"4": 1.0}, abs=1e-14)


def test_frozen_layers_descend_nothing():
    net, x, y = net_of(5, 4, 3), randn(9, 5), labels(9, 3)
    net[0].requires_grad_(False)
    assert list(first_order(make("FA", net), x, y).descent) == ["2"]


def test_hidden_share_is_the_ratio_of_the_integrals():
    steps = [0, 1, 4, 10]
    hidden, total = np.array([[0.0, 1, 2, -8], [1, 1, 1, 1]]), np.full((2, 4), 2.0)
    np.testing.assert_allclose(
        hidden_share(steps, hidden, total), [[0, 0.25, 5 / 8, -13 / 20], [0.5] * 4]
    )


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
