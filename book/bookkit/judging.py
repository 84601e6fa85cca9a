"""When a quantity that varies from seed to seed lies inside a bound: confidence intervals.

A check names its statistic. The values of the seeds give an estimate with a 95 % interval, and
the check holds where the whole interval lies inside the bound, fails where it lies outside, and is
undecided where it straddles the bound: more seeds are needed then. A check without a statistic is
an identity or a published cell: one number against one bound.

================= ================================= ==============================================
mean              one value per seed                Student's t
paired difference (a, b) of each seed               Student's t of a - b
median            one value per seed                bootstrap, percentile, 9,999 resamples
fraction          whether it held, for each seed    Wilson's interval of a binomial proportion
================= ================================= ==============================================

The median of 5 seeds has the interval from their smallest to their largest, which covers 93.75 %;
of fewer seeds even that covers less than 90 %, and the interval is left open.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bookkit.claims import COMPARISONS, STATISTICS

LEVEL = 0.95
FEWEST = 5  # seeds of a median


class Interval(NamedTuple):
    """A statistic of the seeds and its confidence interval.

    Attributes:
        estimate: the statistic; NaN where a value is missing.
        low, high: ends of the interval; infinite where too few seeds leave it open.
        n: number of seeds.
    """

    estimate: float
    low: float
    high: float
    n: int


def interval(values: Any, statistic: str, *, level: float = LEVEL) -> Interval:
    """The statistic of one value per seed, with its confidence interval.

    Args:
        values: (seeds,) numbers; booleans for ``fraction``, (seeds, 2) for ``paired difference``.
        statistic: a name in :data:`bookkit.claims.STATISTICS`.
        level: confidence level.

    Raises:
        ValueError: unknown statistic, no values, or values of the wrong shape or kind.

    Example:
        >>> interval([1.0, 1.2, 0.8, 1.1], "mean")._asdict()["n"]
        4
    """
    from scipy import stats

    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r} (allowed: {', '.join(STATISTICS)})")
    array = _seeds(values, statistic)
    n = len(array)
    if not np.isfinite(array).all():
        return Interval(math.nan, math.nan, math.nan, n)
    if statistic == "fraction":
        found = stats.binomtest(int(array.sum()), n).proportion_ci(level, method="wilson")
        return Interval(float(array.mean()), float(found.low), float(found.high), n)
    estimate = float(np.median(array) if statistic == "median" else array.mean())
    if n == 1:
        return Interval(estimate, -math.inf, math.inf, n)
    if np.ptp(array) == 0:  # seeds agree to the last bit: nothing to resample
        return Interval(estimate, estimate, estimate, n)
    if statistic == "median":
        if n < FEWEST:
            return Interval(estimate, -math.inf, math.inf, n)
        found = stats.bootstrap(
            (array,), np.median, confidence_level=level, method="percentile", rng=0
        ).confidence_interval
    else:
        found = stats.ttest_1samp(array, 0.0).confidence_interval(level)
    return Interval(estimate, float(found.low), float(found.high), n)


def _seeds(values: Any, statistic: str) -> np.ndarray:
    array = np.asarray(values)
    paired = statistic == "paired difference"
    if array.ndim != 1 + paired or (paired and array.shape[1] != 2) or array.size == 0:
        wanted = "(seeds, 2) pairs" if paired else "(seeds,) values, one for each seed"
        raise ValueError(f"{statistic} takes {wanted}; got shape {array.shape}")
    array = array.astype(float)
    if statistic == "fraction" and not (np.isin(array, (0, 1)) | np.isnan(array)).all():
        raise ValueError(f"fraction takes true or false for each seed; got {array.tolist()}")
    return array[:, 0] - array[:, 1] if paired else array


def least_favourable(values: Any, *, largest: bool = False) -> np.ndarray:
    """The seeds of the condition that speaks most against a claim about all conditions.

    Taking each seed's extreme over conditions would judge luck: the more conditions, the further
    out it lies. Here the condition whose mean over seeds is smallest is judged by its own seeds.

    Args:
        values: (conditions, seeds); NaN where a run was not made.
        largest: take the condition with the largest mean.

    Returns:
        (seeds,) values of that condition, without NaN.

    Raises:
        ValueError: if it is no table of conditions and seeds, or a condition has no run.

    Example:
        >>> least_favourable([[1.0, 3.0], [0.0, 2.5]])
        array([0. , 2.5])
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or np.isnan(table).all(1).any():
        raise ValueError(
            f"takes (conditions, seeds) with a run of each condition; got shape {table.shape}"
        )
    means = np.nanmean(table, axis=1)
    row = table[means.argmax() if largest else means.argmin()]
    return row[~np.isnan(row)]


def decides(found: Interval, comparison: str, bound: Any) -> bool | None:
    """Whether the interval lies inside the bound (True), outside it (False), or straddles (None).

    Args:
        found: the interval; one with missing values lies outside every bound.
        comparison: a name in :data:`bookkit.claims.COMPARISONS`.
        bound: a number, or (low, high) for ``within``.

    Example:
        >>> decides(Interval(0.5, 0.4, 0.6, 10), ">=", 0.3)
        True
        >>> decides(Interval(0.5, 0.4, 0.6, 10), ">=", 0.45) is None
        True
    """
    if not math.isfinite(found.estimate):
        return False
    inside = COMPARISONS[comparison]
    if inside(found.low, bound) and inside(found.high, bound):
        return True
    if comparison == "within":
        outside = found.high < bound[0] or found.low > bound[1]
    else:
        outside = not inside(found.low, bound) and not inside(found.high, bound)
    return False if outside else None
