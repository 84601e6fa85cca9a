"""Descent by full batches, and by layer."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fabook import BP
from fabook.metrics import gradient_alignment, network_alignment
from fabook.networks import mlp
from fabook.rules import FA, RULES
from fabook.streams import stream
from fabook.theory import chu2023
from fabook.theory.chu2023 import first_order, hidden_share
from random_networks import double, labels, make, net_of, randn


def test_full_batches_stop_at_the_target_and_at_the_last_look() -> None:
    one = torch.ones(1, 1, dtype=double)
    net = chu2023.chain(1.0, 0.5)
    probe = {"w1": lambda: float(net[0].weight.detach())}
    found = chu2023.train_full_batch(BP(net), one, one, lr=0.1, probe_at=[0, 10, 20], probe=probe)
    assert found["steps"].tolist() == [0, 10, 20]
    assert found["loss"][0] == pytest.approx(0.125)
    assert (np.diff(found["loss"]) < 0).all()
    assert found["w1"][0] == 1
    found = chu2023.train_full_batch(
        BP(net), one, one, lr=0.1, probe_at=[100, 200, 300], target=1e-9
    )
    assert len(found["steps"]) == len(found["loss"]) == 1


def test_looks_must_rise() -> None:
    x = torch.ones(5, 4, dtype=double)
    net = mlp([4, 3, 2], generator=stream(1), dtype=double)
    with pytest.raises(ValueError, match="must rise"):
        chu2023.train_full_batch(BP(net), x, x[:, :2], lr=0.1, probe_at=[])


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
