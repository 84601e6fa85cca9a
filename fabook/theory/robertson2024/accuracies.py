"""Accuracies by which many classes, and rules of different speeds, are compared.

Derived, for what the abstract of Robertson & Koyejo (2024), https://arxiv.org/abs/2306.01870, says
of tasks with many classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import crossing


def above_chance(accuracy: float, n_classes: int) -> float:
    r"""Accuracy with chance at zero and perfection at one, $(a - 1/n)/(1 - 1/n)$.

    Example:
        >>> above_chance(0.75, 2), above_chance(0.25, 4)
        (0.5, 0.0)
    """
    return (accuracy - 1 / n_classes) / (1 - 1 / n_classes)


def at_training_accuracy(train: ArrayLike, test: ArrayLike, level: float) -> float:
    """Test accuracy at the moment when a run's training accuracy first reaches a level.

    Linear between the looks of the run. With it two rules are compared at equal training accuracy,
    which takes the speed of learning out of the comparison.

    Args:
        train, test: accuracies at the looks of one run, in their order.
        level: training accuracy.

    Returns:
        NaN if the run never gets there.

    Raises:
        ValueError: for curves that differ in length.

    Example:
        >>> round(at_training_accuracy([0.1, 0.5, 0.9], [0.1, 0.4, 0.6], 0.7), 3)
        0.5
    """
    reached, seen = np.maximum.accumulate(np.asarray(train, float)), np.asarray(test, float)
    if reached.shape != seen.shape or reached.ndim != 1:
        raise ValueError(f"curves must have one length; got {reached.shape} and {seen.shape}")
    if not level <= reached[-1]:
        return math.nan
    return float(crossing(seen, reached, level))
