"""The house style: what a reader sees, measured on drawn figures."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.stats import t

import fabook
from fabook import plots

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear_rgb(colour: str) -> np.ndarray:
    c = np.array(mpl.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.parametrize("vision", VISION)
def test_rule_colours_stay_apart(vision: str) -> None:
    seen = [lab(VISION[vision] @ linear_rgb(c)) for c in plots.RULE_COLOURS.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 18


def test_rule_colours_stand_out_from_white() -> None:
    luminance = [TO_XYZ[1] @ linear_rgb(c) for c in plots.RULE_COLOURS.values()]
    assert min(1.05 / (y + 0.05) for y in luminance) > 2.9


def test_rules_differ_without_colour() -> None:
    looks = [plots.rule_style(rule) for rule in plots.RULE_COLOURS]
    assert len({str(look["linestyle"]) for look in looks}) == len(looks) == 9
    assert len({look["marker"] for look in looks}) == 9


@pytest.mark.parametrize("name", ["USF", "usf", "uSF"])
def test_rule_style_takes_class_names_and_labels(name: str) -> None:
    assert plots.rule_style(name) == plots.rule_style("uSF")


def test_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown rule .EP.; choose one of BP, FA, DFA.*class"):
        plots.rule_style("EP")


class Own(fabook.FA, label="own", colour="#AA3377"):
    """A rule that is none of the nine."""


def test_a_rule_of_your_own_is_drawn_as_its_class_says() -> None:
    net = fabook.mlp([3, 4, 2], generator=fabook.stream(0, "weights"))
    rule = Own(net, generator=fabook.stream(0, "feedback"))
    look = plots.rule_style(Own)
    assert (look["label"], look["color"]) == ("own", "#AA3377")
    assert look == plots.rule_style(rule)
    assert plots.rule_style("OWN")["label"] == "own"
    others = [plots.rule_style(name) for name in fabook.RULES]
    assert look["marker"] not in [other["marker"] for other in others]
    assert look["linestyle"] not in [other["linestyle"] for other in others]
    _, ax = plots.figure()
    assert plots.band(ax, [0, 1], [1.0, 2.0], rule=rule).get_color() == "#AA3377"
    assert plots.theory_line(ax, [0, 1], [1, 2], rule=Own).get_label() == "own, theory"
    assert plots.rule_style(fabook.DFA) == plots.rule_style("DFA")


def test_style_gives_back_every_setting() -> None:
    before = dict(mpl.rcParams)
    with plots.style():
        assert mpl.rcParams["svg.hashsalt"] == "fabook"
    plots.figure(2, 2)
    assert dict(mpl.rcParams) == before


def test_figure_keeps_the_style_when_drawn_outside_it() -> None:
    fig, axes = plots.figure(2, 3, height=2.0, sharey=True)
    fig.canvas.draw()
    assert axes.shape == (2, 3)
    assert tuple(fig.get_size_inches()) == (7.2, 4.0)
    assert fig.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert {label.get_fontsize() for label in axes[0, 0].get_xticklabels()} == {10.0}
    assert not axes[1, 2].spines["top"].get_visible()


def test_saved_svg_is_the_same_on_a_second_run() -> None:
    def svg() -> bytes:
        with plots.style():
            fig, ax = plots.figure()
            plots.points(ax, [0, 1], [1, 2], rule="DFA")
            target = io.BytesIO()
            fig.savefig(target, format="svg", metadata={"Date": None})
        return target.getvalue()

    assert svg() == svg()


@pytest.mark.parametrize("kind", ["range", "95%"])
def test_band_is_drawn_where_its_edges_are(kind: str) -> None:
    x, runs = np.arange(4.0), np.random.default_rng(0).normal(size=(5, 4))
    if kind == "range":
        low, high = runs.min(0), runs.max(0)
    else:
        half = t.ppf(0.975, 4) * runs.std(0, ddof=1) / np.sqrt(5)
        low, high = runs.mean(0) - half, runs.mean(0) + half
    _, ax = plots.figure()
    line = plots.band(ax, x, runs, rule="FA", kind=kind)
    np.testing.assert_allclose(line.get_ydata(), runs.mean(0))
    corners = ax.collections[0].get_paths()[0].vertices
    for i in range(4):
        column = corners[corners[:, 0] == x[i], 1]
        np.testing.assert_allclose([column.min(), column.max()], [low[i], high[i]])
    assert mpl.colors.to_hex(line.get_color()) == plots.RULE_COLOURS["FA"].lower()


def test_few_seeds_are_drawn_one_by_one() -> None:
    _, ax = plots.figure()
    plots.band(ax, [0, 1], [[0.0, 1.0], [2.0, 3.0]], rule="BP")
    assert not ax.collections
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.0, 1.0], [2.0, 3.0]]
    assert ax.get_legend_handles_labels()[1] == ["BP"]
    assert plots.band(ax, [0, 1], [5.0, 6.0], label="one run").get_label() == "one run"


def test_unknown_band_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of band 'sd'; choose 'range' or '95%'"):
        plots.band_edges(np.zeros((3, 2)), kind="sd")


def test_theory_is_a_line_and_simulation_is_points() -> None:
    _, ax = plots.figure()
    line = plots.theory_line(ax, [0, 1], [0, 1], rule="DFA")
    dots = plots.points(ax, [0, 1], [0, 1], rule="DFA", error=[0.1, 0.2])
    assert line.get_marker() == ""
    assert line.get_color() == plots.RULE_COLOURS["DFA"]
    assert dots[0].get_linestyle() == "None"
    assert dots[0].get_marker() == plots.rule_style("DFA")["marker"]
    half_heights = [np.ptp(bar[:, 1]) / 2 for bar in dots[2][0].get_segments()]
    np.testing.assert_allclose(half_heights, [0.1, 0.2])


def test_paper_value_is_a_star_or_a_level() -> None:
    _, ax = plots.figure()
    assert plots.paper_value(ax, 0.3, x=2.0).get_xydata().tolist() == [[2.0, 0.3]]
    assert list(plots.paper_value(ax, 0.3).get_ydata()) == [0.3, 0.3]
    names = [text.get_text() for text in plots.legend(ax).get_texts()]
    assert names == ["paper"]


def test_legend_above_names_every_label_of_all_panels_once():
    fig, axes = plots.figure(1, 2)
    for ax, names in zip(axes, (("FA", "DFA"), ("DFA", "BP"))):
        for name in names:
            ax.plot([0, 1], [0, 1], label=name)
    legend = plots.legend_above(axes, ncols=3)
    assert [text.get_text() for text in legend.get_texts()] == ["FA", "DFA", "BP"]
    assert fig.legends == [legend]


def test_options_reach_matplotlib() -> None:
    _, ax = plots.figure()
    assert plots.theory_line(ax, [0], [0], label="ODE", linestyle="--").get_linestyle() == "--"
    assert plots.points(ax, [0], [0], label="SGD").get_label() == "SGD"


def test_panels_are_lettered_before_their_titles():
    _, axes = plots.figure(1, 2)
    axes[0].set_title("loss")
    plots.letters(axes)
    assert [ax.get_title("left") for ax in axes] == ["(a) loss", "(b) "]
    assert axes[0].get_title() == ""


def test_shades_are_no_rule():
    assert not set(plots.SHADES) & set(plots.RULE_COLOURS.values())
