"""Verdicts from intervals: coverage, the three answers, and what is refused."""

import math

import numpy as np
import pytest

from bookkit.judging import STATISTICS, Interval, decides, interval, least_favourable


@pytest.mark.parametrize("statistic", ["mean", "median", "paired difference"])
def test_interval_covers_the_truth_in_95_of_100_experiments(statistic):
    rng = np.random.default_rng(0)
    hits, experiments = 0, 400
    for _ in range(experiments):
        values = rng.normal(1.0, 2.0, 20)
        if statistic == "paired difference":
            base = rng.normal(0, 50, 20)
            values = np.stack([base + values, base], axis=1)
        found = interval(values, statistic)
        hits += found.low <= 1.0 <= found.high
    assert 0.91 <= hits / experiments <= 0.985


def test_pairs_remove_what_the_seeds_share():
    rng = np.random.default_rng(1)
    base = rng.normal(0, 100, 12)
    pairs = np.stack([base + 1 + 0.1 * rng.normal(size=12), base], axis=1)
    assert decides(interval(pairs, "paired difference"), ">", 0.5) is True
    assert decides(interval(pairs[:, 0], "mean"), ">", 0.5) is None


def test_the_condition_that_speaks_most_against_a_claim():
    table = [[5.0, 0.0, 4.0], [2.0, 2.0, math.nan], [9.0, 1.0, 1.0]]
    assert least_favourable(table).tolist() == [2.0, 2.0]
    assert least_favourable(table, largest=True).tolist() == [9.0, 1.0, 1.0]
    for wrong in ([1.0, 2.0], [[1.0], [math.nan]]):
        with pytest.raises(ValueError, match="shape"):
            least_favourable(wrong)


def test_fraction_is_a_binomial_proportion():
    found = interval([True] * 20, "fraction")
    assert found.estimate == 1.0
    assert found.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)  # Wilson at k = n
    assert decides(found, ">=", 0.95) is None  # twenty of twenty do not show 95 %
    assert decides(interval([True] * 100, "fraction"), ">=", 0.95) is True
    assert decides(interval([True] * 5 + [False] * 15, "fraction"), ">=", 0.95) is False


@pytest.mark.parametrize(
    ("comparison", "bound", "answers"),
    [
        (">=", (0.3, 0.5, 0.7), (True, None, False)),
        (">", (0.39, 0.4, 0.6), (True, None, False)),
        ("<=", (0.7, 0.5, 0.3), (True, None, False)),
        ("<", (0.61, 0.6, 0.4), (True, None, False)),
        ("within", ([0.3, 0.7], [0.5, 0.7], [0.7, 0.9]), (True, None, False)),
        ("within", ([0.4, 0.6], [0.45, 0.55], [0.0, 0.3]), (True, None, False)),
    ],
)
def test_inside_straddling_outside(comparison, bound, answers):
    found = Interval(0.5, 0.4, 0.6, 10)
    assert tuple(decides(found, comparison, b) for b in bound) == answers


def test_one_seed_decides_nothing_and_a_missing_value_fails():
    assert decides(interval([5.0], "mean"), ">", 0.0) is None
    assert decides(interval([5.0, math.nan, 4.0], "mean"), ">", 0.0) is False
    assert decides(interval([5.0, math.inf], "median"), ">", 0.0) is False
    assert interval([2.0, 2.0, 2.0], "mean") == Interval(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_median_of_a_few_seeds_promises_no_more_than_it_keeps(n):
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(size=n), "median") for _ in range(400)]
    assert sum(one.low <= 0 <= one.high for one in found) / 400 >= 0.91
    assert (decides(interval(np.arange(1.0, n + 1), "median"), ">", 0.0) is None) is (n < 5)


def test_a_fraction_with_a_missing_seed_fails():
    assert decides(interval([True, math.nan, True], "fraction"), ">=", 0.0) is False


def test_median_interval_does_not_change_from_call_to_call():
    values = np.random.default_rng(2).normal(size=15)
    assert interval(values, "median") == interval(values, "median")


@pytest.mark.parametrize(
    ("values", "statistic", "message"),
    [
        ([1.0], "average", "unknown statistic 'average'"),
        ([], "mean", r"shape \(0,\)"),
        ([[1.0, 2.0]], "median", r"\(1, 2\)"),
        ([1.0, 2.0], "paired difference", "pairs"),
        ([0.5, 1.0], "fraction", "true or false"),
    ],
)
def test_refusals_name_the_value(values, statistic, message):
    with pytest.raises(ValueError, match=message):
        interval(values, statistic)


def test_every_statistic_has_its_row_in_the_table():
    import bookkit.judging as module

    assert all(f"\n{name} " in module.__doc__ for name in STATISTICS)
