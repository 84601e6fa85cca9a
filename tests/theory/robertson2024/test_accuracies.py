"""Accuracies of many classes, and at equal training accuracy."""

from __future__ import annotations

import math

import pytest

from fabook.theory import robertson2024 as dom


def test_chance_is_zero_and_perfect_is_one():
    for n in (2, 10, 100):
        assert dom.above_chance(1 / n, n) == pytest.approx(0)
        assert dom.above_chance(1.0, n) == pytest.approx(1)


def test_accuracy_at_equal_training_accuracy():
    train, test = [0.1, 0.6, 0.5, 0.8], [0.1, 0.4, 0.9, 0.6]
    look = dom.at_training_accuracy
    assert look(train, test, 0.6) == pytest.approx(0.4)  # at the first time
    assert look(train, test, 0.35) == pytest.approx(0.25)
    assert look(train, test, 0.7) == pytest.approx(0.75)  # after the fall, from its own look on
    assert look(train, test, 0.05) == 0.1
    assert math.isnan(look(train, test, 0.9))
    assert math.isnan(look([0.1, math.nan, 0.9], [0.1, 0.2, 0.3], 0.5))
    with pytest.raises(ValueError, match="one length"):
        look(train, test[:-1], 0.5)
