"""The choice of a learning rate."""

import math

import pytest

from fabook.tuning import tune


def test_tune_grows_the_grid_until_the_best_is_inside():
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(math.log(rate / best))

    best = 0.03
    inner = tune(score, [0.1, 0.01, 0.03])
    assert (inner.rate, inner.inside, tried) == (0.03, True, [0.01, 0.03, 0.1])
    best = 1e-3
    assert tune(score, [0.01]).rate == 1e-3
    assert list(tune(score, [0.01]).scores) == [3e-4, 1e-3, 3e-3, 0.01, 0.03]
    best = 10.0
    far = tune(score, [0.01, 0.03], reach=2)  # the grid ends before the best
    assert (far.rate, far.inside) == (0.3, False)


def test_tune_takes_the_smallest_of_equals_and_no_diverged_run():
    level = tune(lambda rate: 0.5, [0.1, 0.3], reach=0)
    assert (level.rate, level.inside) == (0.1, False)
    assert tune(lambda rate: math.nan if rate > 0.2 else rate, [0.1, 0.3, 1.0]).rate == 0.1
    assert tune(pytest.fail, [0.1], reach=0).scores == {}  # nothing to choose
    with pytest.raises(ValueError, match="positive numbers"):
        tune(abs, [])
    with pytest.raises(ValueError, match="positive numbers"):
        tune(abs, [0.0, 0.1])
    with pytest.raises(ValueError, match=r"all are NaN; tried \[0.1, 0.3\]"):
        tune(lambda rate: math.nan, [0.1, 0.3], reach=0)
