"""Copies compute the same, and no copy is better than the best."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Generator

from fabook import DFA, mlp
from fabook.metrics import gradient_alignment_per_sample, weight_alignment
from fabook.theory.refinetti2021 import copies


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def new_rule(hidden: int = 4, activation: str = "tanh") -> DFA:
    g = generator(3)
    net = mlp([5, hidden, 3], activation=activation, bias=False, generator=g, dtype=torch.float64)
    return DFA(net, generator=g)


X = torch.randn(40, 5, generator=generator(1), dtype=torch.float64)
Y = torch.randint(3, (40,), generator=generator(2))


def every_copy(rule: DFA) -> list[DFA]:
    hidden = len(next(rule.net.parameters()))
    return [
        copies._copy(rule, torch.tensor(order), torch.tensor(signs))
        for order in permutations(range(hidden))
        for signs in product((-1, 1), repeat=hidden)
    ]


def gradients(rule: DFA) -> float:
    return gradient_alignment_per_sample(rule, X, Y).total


@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_a_copy_computes_the_same_and_leaves_the_network(activation: str) -> None:
    rule = new_rule(activation=activation)
    before = [p.clone() for p in rule.net.parameters()]
    for copy in (
        copies.random_copy(rule, generator(5)),
        copies.most_aligned_weights(rule),
        copies.most_aligned_gradients(rule, X, Y),
    ):
        torch.testing.assert_close(copy.net(X), rule.net(X))
        assert torch.equal(copy.feedback["0"], rule.feedback["0"])
    assert all(torch.equal(a, b) for a, b in zip(before, rule.net.parameters()))


def test_the_best_copy_is_the_best_of_all() -> None:
    rule = new_rule()
    everyone = every_copy(rule)
    assert len(everyone) == 2**4 * 24
    best = weight_alignment(copies.most_aligned_weights(rule)).total
    assert best == pytest.approx(max(weight_alignment(c).total for c in everyone))
    best = gradients(copies.most_aligned_gradients(rule, X, Y))
    assert best >= 0.98 * max(map(gradients, everyone))
    assert best >= gradients(copies.most_aligned_weights(rule))


def test_a_network_made_of_its_feedback_is_its_best_copy() -> None:
    rule = new_rule(hidden=12)
    with torch.no_grad():
        rule.net.get_parameter("2.weight").copy_(rule.feedback["0"].mT)
    shuffled = copies.random_copy(rule, generator(7))
    assert weight_alignment(shuffled).total < 0.9
    assert weight_alignment(copies.most_aligned_weights(shuffled)).total == pytest.approx(1)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="odd activation"):
        copies.most_aligned_weights(new_rule(activation="relu"))
    g = generator()
    biased = DFA(mlp([4, 3, 2], activation="tanh", generator=g), generator=g)
    with pytest.raises(ValueError, match="without biases"):
        copies.most_aligned_weights(biased)
    deep = DFA(mlp([4, 3, 3, 2], activation="tanh", bias=False, generator=g), generator=g)
    with pytest.raises(ValueError, match="two linear layers"):
        copies.random_copy(deep, g)
