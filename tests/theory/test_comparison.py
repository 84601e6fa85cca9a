"""When our mean and a published one agree."""

import numpy as np
import pytest

from fabook.theory.comparison import at_equal_time, compare, markdown, onset


def test_tolerance_is_three_combined_standard_errors_and_the_slack():
    ours = np.array([[1.0, 3.0, 2.0, np.nan]])
    found = compare(ours, [2.5], [0.4], runs=50)
    sd = np.std([1, 3, 2], ddof=1)
    assert found.ours[0] == 2.0
    assert found.sd[0] == pytest.approx(sd)
    assert found.runs[0] == 3
    assert found.tolerance[0] == pytest.approx(3 * np.sqrt(sd**2 / 3 + 0.4**2 / 50) + 0.01)
    assert found.difference[0] == -0.5
    assert found.agrees[0]


def test_one_run_is_judged_by_the_published_spread():
    found = compare([[1.0, np.nan]], [1.0], [0.2], runs=50)
    assert found.sd[0] == 0.2
    assert found.tolerance[0] == pytest.approx(3 * np.sqrt(0.2**2 + 0.2**2 / 50) + 0.01)


def test_edge_of_the_tolerance():
    for shift, agrees in ((0.0099, True), (0.0101, False)):
        found = compare([[0.5 + shift, 0.5 + shift]], [0.5], [0.0], runs=50)
        assert found.agrees[0] == agrees
        assert found.fraction == float(agrees)


def test_cells_that_one_side_lacks_are_not_counted():
    nan = np.nan
    found = compare([[1.0, 1.0], [nan, nan], [9.0, 9.0]], [1.0, 1.0, nan], [0.1, 0.1, nan], runs=5)
    assert found.compared.tolist() == [True, False, False]
    assert found.agrees.tolist() == [True, False, False]
    assert found.fraction == 1.0
    assert np.isnan(compare([[nan]], [1.0], [0.1], runs=5).fraction)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"published shape \(2,\)"):
        compare([[1.0]], [1.0, 2.0], [0.1, 0.1], runs=5)
    with pytest.raises(ValueError, match="spreads"):
        compare([[1.0], [1.0]], [1.0, 2.0], [0.1], runs=5)


def test_markdown_shows_both_sides_and_the_mark():
    nan = np.nan
    ours = [[[0.5, 0.5], [nan, nan]], [[0.9, 0.9], [1.25, nan]]]
    found = compare(ours, [[0.5, 0.2], [0.7, nan]], [[0.01, 0.02], [0.01, nan]], runs=50)
    assert markdown(found, ["a", "b"], ["p", "q"], corner="x", digits=2).splitlines() == [
        "| x | p | q |",
        "| --- | --- | --- |",
        "| a | .50 ± .01<br>**.50** ± .00 (2) ✓ | .20 ± .02 |",
        "| b | .70 ± .01<br>**.90** ± .00 (2) ✗ | **1.25** (1) |",
    ]


def test_onset_is_where_a_curve_has_gone_a_fifth_of_its_way():
    t = np.array([0, 1, 10, 100, 1000])
    rises = [0.1, 0.1, 0.1, 1.1, 0.9]  # its extreme is 1.1, its start .1
    found = onset(t, [rises, [-v for v in rises]])
    np.testing.assert_allclose(found, 10 * 10**0.2)
    assert onset(t, [0.0, 1.0, 1.0, 1.0, 1.0]) == 1  # before the first look nothing is known
    np.testing.assert_allclose(onset(t, [0.0, 0.9, 0.0, 1.0, 1.0]), 10 * 10**0.2)  # for good
    assert np.isnan(onset(t, np.ones(5)))
    assert np.isnan(onset(t, [0.0, 1.0, 0.0, 0.0, 0.0]))


def test_onset_needs_times_that_increase():
    with pytest.raises(ValueError, match="increase"):
        onset([0, 2, 1], [0, 0, 1])
    with pytest.raises(ValueError, match="fraction"):
        onset([0, 1], [0, 1], fraction=1.0)


def test_at_equal_time_a_slow_rule_is_read_earlier():
    step = [0, 10, 20]
    curves = np.array([[[0.0, 0.6, 0.8], [0.0, 0.4, 0.6]]] * 3)  # (rule, seed, look)
    found = at_equal_time(step, curves, [1.0, 2.0, 4.0])
    np.testing.assert_allclose(found, [[0.8, 0.6], [0.6, 0.4], [0.3, 0.2]])
    late = at_equal_time(step, curves, [1.0, 2.0, 4.0], time=40.0)  # two are over by then
    np.testing.assert_allclose(late, [[0.8, 0.6], [0.8, 0.6], [0.6, 0.4]])


def test_at_equal_time_refuses_what_is_no_time():
    with pytest.raises(ValueError, match="increase"):
        at_equal_time([0, 2, 1], np.zeros((1, 3)), [1.0])
    with pytest.raises(ValueError, match="positive"):
        at_equal_time([0, 1], np.zeros((1, 2)), [0.0])
