"""The learning rate, chosen on a grid that grows around the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_RATES = [float(f"{digit}e{power}") for power in range(-7, 3) for digit in (1, 3)]


@dataclass(frozen=True)
class Tuned:
    """A learning rate and what it was chosen from; see :func:`tune`.

    Attributes:
        rate: the best of those tried.
        scores: score of each rate tried, from the smallest rate on; empty if nothing was scored.
        inside: whether a smaller and a larger rate were tried.

    Example:
        >>> found = tune({0.03: 0.7, 0.1: 0.9, 0.3: 0.8}.__getitem__, [0.03, 0.1, 0.3])
        >>> found.rate, found.scores[found.rate], found.inside
        (0.1, 0.9, True)
    """

    rate: float
    scores: dict[float, float]
    inside: bool


def tune(score: Callable[[float], float], rates: Iterable[float], *, reach: int = 3) -> Tuned:
    """Choose the learning rate with the highest score from a grid that grows around it.

    While the best rate is the smallest or the largest one tried, the next of 1, 3, 10, 30, ...
    (times a power of ten) beyond it is tried as well. Of equal scores the smallest rate counts.

    Args:
        score: function of a rate, such as accuracy on data held out; NaN where a run diverged.
        rates: rates to begin with, positive.
        reach: how many rates may be tried beyond either end. With one rate and ``reach=0`` there is
            nothing to choose, and nothing is scored.

    Raises:
        ValueError: no rate, or one that is not a positive number; every score is NaN.

    Example:
        >>> found = tune(lambda rate: -abs(rate - 0.3), [0.01, 0.03])
        >>> found.rate, found.inside, list(found.scores)
        (0.3, True, [0.01, 0.03, 0.1, 0.3, 1.0])
    """
    new = sorted(set(rates))
    if not new or not all(rate > 0 and math.isfinite(rate) for rate in new):
        raise ValueError(f"rates must be positive numbers, one or more; got {new}")
    if len(new) == 1 and not reach:
        return Tuned(new[0], {}, False)
    low, high = new[0], new[-1]
    below = [rate for rate in _RATES if rate < 0.99 * low][::-1][:reach]
    above = [rate for rate in _RATES if rate > 1.01 * high][:reach]
    found: dict[float, float] = {}
    while new:
        found |= {rate: score(rate) for rate in new}
        tried = sorted(found)
        best = max(tried, key=lambda rate: -math.inf if math.isnan(found[rate]) else found[rate])
        new = [below.pop(0)] if best == tried[0] and below else []
        new += [above.pop(0)] if best == tried[-1] and above else []
    if all(math.isnan(value) for value in found.values()):
        raise ValueError(f"no rate has a score, all are NaN; tried {tried}")
    return Tuned(best, {rate: found[rate] for rate in tried}, tried[0] < best < tried[-1])
