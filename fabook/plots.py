"""House style of every figure: theory is a line, simulation is points or a band.

A rule keeps its colour, marker and line style throughout the book. The colours stay apart for
readers with deuteranopia or protanopia, and markers and line styles tell rules apart in print.
Matplotlib and seaborn are imported when a figure is drawn, not with the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .base import rule_labels
from .rules import RULES, Rule

AnyRule = str | Rule | type[Rule]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

_LOOKS: dict[str, tuple[str, Any]] = {  # marker and line of each rule; its class has the colour
    "BP": ("o", "-"),
    "FA": ("s", "--"),
    "DFA": ("^", "-."),
    "uSF": ("D", ":"),
    "frSF": ("v", (0, (6, 1.5))),
    "brSF": ("<", (0, (4, 1, 1, 1, 1, 1))),
    "KP": (">", (0, (1, 1))),
    "Shallow": ("X", (0, (2, 2))),
    "DRTP": ("P", (0, (8, 2, 2, 2))),
}
RULE_COLOURS = {label: RULES[label].colour for label in _LOOKS}
_OWN = ("p", (0, (5, 1, 1, 1)))  # of a rule that is none of these
# for what is no rule (seeds, layers, sizes, penalties), from dark to light
SHADES = ("#2D1E4F", "#3F4A8A", "#2C7C93", "#35A386", "#8CBF4B")
_LABELS = {name.lower(): name for name in RULE_COLOURS} | {"kolenpollack": "KP"}
_TEXT = 11.0


def rule_style(rule: AnyRule) -> dict[str, Any]:
    """Return the ``label``, ``color``, ``marker`` and ``linestyle`` of a rule.

    Args:
        rule: one of the nine by its label or class name, in any case; or any rule, its class or
            its label, one of your own as well.

    Raises:
        ValueError: if no rule has that name.

    Example:
        >>> rule_style("KolenPollack")["label"]
        'KP'
    """
    if isinstance(rule, str):
        known = {label.lower(): kind for label, kind in rule_labels().items()}
        known |= {name: RULES[label] for name, label in _LABELS.items()}  # the nine come first
        if rule.lower() not in known:
            raise ValueError(
                f"unknown rule {rule!r}; choose one of {', '.join(RULE_COLOURS)}, or the label "
                "or class of a rule of your own"
            )
        rule = known[rule.lower()]
    marker, line = _LOOKS.get(rule.label, _OWN)
    return {"label": rule.label, "color": rule.colour, "marker": marker, "linestyle": line}


@contextmanager
def style() -> Iterator[None]:
    """House style as a context manager or decorator; matplotlib's settings return afterwards.

    Sizes suit a page 7.2 inches wide and stay readable at a phone's width. The background is white,
    which a dark page turns over, and an SVG's ids do not change from run to run.

    Example:
        >>> import matplotlib as mpl
        >>> with style():
        ...     mpl.rcParams["axes.grid"], mpl.rcParams["svg.hashsalt"]
        (True, 'fabook')
    """
    import matplotlib as mpl
    import seaborn as sns
    from cycler import cycler

    text = dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), _TEXT)
    small = dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), _TEXT - 1)
    house = {
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=list(RULE_COLOURS.values())),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 144,
        "figure.facecolor": "white",
        "grid.alpha": 0.5,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.dpi": 144,
        "savefig.facecolor": "white",
        "svg.hashsalt": "fabook",
    }
    seaborn_look = sns.axes_style("ticks") | sns.plotting_context("notebook")
    with mpl.rc_context(seaborn_look | text | small | house):
        yield


def figure(
    rows: int = 1, cols: int = 1, *, height: float = 3.2, width: float = 7.2, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes in house style, as ``plt.subplots`` does.

    Args:
        rows: panels from top to bottom.
        cols: panels from left to right.
        height: inches per row.
        width: inches of the whole figure.
        options: further options of ``plt.subplots``, such as ``sharey``.

    Returns:
        A figure with its axes, one or an array of them.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> fig, axes = figure(2, 3)
        >>> axes.shape, fig.get_size_inches().tolist()
        ((2, 3), [7.2, 6.4])
        >>> plt.close(fig)
    """
    import matplotlib.pyplot as plt

    # The first figure sets up a notebook's backend, which turns interactive drawing on. Were that
    # inside the style, leaving it would turn drawing off and later figures would not show.
    if not plt.get_fignums():
        plt.switch_backend(plt.get_backend())
    with style():
        fig, axes = plt.subplots(rows, cols, figsize=(width, height * rows), **options)
        for ax in np.ravel(np.asarray(axes)):
            # Ticks are made when the figure is drawn, outside the style: fix their look now.
            ax.tick_params(which="both", labelsize=_TEXT - 1, width=1.0, length=4)
    return fig, axes


def theory_line(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    rule: AnyRule | None = None,
    **look: Any,
) -> Any:
    """Draw a prediction as a line without markers, black unless a rule gives the colour.

    Args:
        ax: axes to draw on.
        x, y: ``(n_points,)``.
        rule: whose colour and line style are used, see :func:`rule_style`.
        look: further options of ``ax.plot``.

    Returns:
        The line.

    Example:
        >>> from matplotlib.figure import Figure
        >>> line = theory_line(Figure().subplots(), [0, 1], [1, 2], rule="DFA")
        >>> line.get_label(), line.get_color(), line.get_marker()
        ('DFA, theory', '#C0392B', '')
    """
    base: dict[str, Any] = {"color": "black", "linestyle": "-", "label": "theory"}
    if rule is not None:
        base |= rule_style(rule) | {"label": f"{rule_style(rule)['label']}, theory"}
    return ax.plot(x, y, **(base | {"marker": "", "linewidth": 1.8, "zorder": 3} | look))[0]


def points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    error: ArrayLike | None = None,
    rule: AnyRule | None = None,
    **look: Any,
) -> Any:
    """Draw simulation as hollow points, with bars of half-height ``error`` where it is given.

    Args:
        ax: axes to draw on.
        x, y, error: ``(n_points,)``.
        rule: whose colour and marker are used, see :func:`rule_style`.
        look: further options of ``ax.errorbar``.

    Returns:
        What ``ax.errorbar`` returns.

    Example:
        >>> from matplotlib.figure import Figure
        >>> drawn = points(Figure().subplots(), [0, 1], [1, 2], error=[0.1, 0.1], rule="FA")
        >>> drawn.get_label(), drawn.lines[0].get_marker(), drawn.has_yerr
        ('FA', 's', True)
    """
    base: dict[str, Any] = {"color": "black", "marker": "o", "label": "simulation"}
    if rule is not None:
        base |= rule_style(rule)
    base |= {"linestyle": "none", "markerfacecolor": "white", "markersize": 5.5, "zorder": 4}
    return ax.errorbar(x, y, yerr=error, **(base | {"elinewidth": 1.2, "capsize": 2} | look))


def band_edges(
    runs: ArrayLike, *, kind: Literal["range", "95%"] = "range"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper edge of a band over seeds.

    ``"range"`` spans minimum to maximum; ``"95%"`` is Student's interval of the mean,
    $\\bar{y} \\pm t_{0.975, n-1} s / \\sqrt{n}$.

    Args:
        runs: ``(n_seeds, n_points)``.
        kind: ``"range"`` or ``"95%"``.

    Raises:
        ValueError: if ``kind`` is another word.

    Example:
        >>> low, high = band_edges([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
        >>> low.tolist(), high.tolist()
        ([1.0, 2.0], [3.0, 5.0])
    """
    y = np.asarray(runs, dtype=float)
    if kind == "range":
        return y.min(axis=0), y.max(axis=0)
    if kind != "95%":
        raise ValueError(f"unknown kind of band {kind!r}; choose 'range' or '95%'")
    from scipy.stats import t

    half = t.ppf(0.975, len(y) - 1) * y.std(axis=0, ddof=1) / np.sqrt(len(y))
    return y.mean(axis=0) - half, y.mean(axis=0) + half


def band(
    ax: Axes,
    x: ArrayLike,
    runs: ArrayLike,
    *,
    rule: AnyRule | None = None,
    kind: Literal["range", "95%"] = "range",
    **look: Any,
) -> Any:
    """Draw the mean over seeds with a band; fewer than three seeds are drawn one by one.

    A run that is not a number leaves a gap. Returns the line that carries the label.

    Args:
        ax: axes to draw on.
        x: ``(n_points,)``.
        runs: ``(n_seeds, n_points)``, or ``(n_points,)`` for a single run.
        rule: whose colour and line style are used, see :func:`rule_style`.
        kind: see :func:`band_edges`.
        look: further options of ``ax.plot``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> line = band(ax, [0, 1], [[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
        >>> line.get_ydata().tolist(), len(ax.collections)  # the mean; one band
        ([2.0, 3.0], 1)
    """
    y = np.atleast_2d(np.asarray(runs, dtype=float))
    base: dict[str, Any] = rule_style(rule) if rule is not None else {"color": "black"}
    base |= {"marker": "", "linewidth": 1.8} | look
    if len(y) < 3:
        first, *rest = (ax.plot(x, row, **base)[0] for row in y)
        for line in rest:
            line.set_label("_nolegend_")
        return first
    low, high = band_edges(y, kind=kind)
    line = ax.plot(x, y.mean(axis=0), **base)[0]
    ax.fill_between(np.asarray(x), low, high, color=line.get_color(), alpha=0.22, linewidth=0)
    return line


def paper_value(
    ax: Axes, y: float, *, x: float | None = None, label: str = "paper", **look: Any
) -> Any:
    """Mark the paper's number: a star at ``(x, y)``, or a level across the axes without ``x``.

    Args:
        ax: axes to draw on.
        y, x: the number, and where it stands.
        label: its label.
        look: further options of ``ax.plot`` or ``ax.axhline``.

    Returns:
        What is drawn.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> paper_value(ax, 0.9, x=10).get_marker(), paper_value(ax, 0.9).get_marker()
        ('*', 'None')
    """
    if x is None:
        level: dict[str, Any] = {
            "color": "0.25",
            "linestyle": (0, (2, 2)),
            "linewidth": 1.4,
            "zorder": 1,
        }
        return ax.axhline(y, label=label, **(level | look))
    star: dict[str, Any] = {
        "color": "0.25",
        "marker": "*",
        "markersize": 13,
        "linestyle": "none",
        "zorder": 5,
    }
    return ax.plot([x], [y], label=label, **(star | look))[0]


def legend(ax: Axes, **options: Any) -> Any:
    """Add a legend that names every label once.

    Args:
        ax: axes with labels.
        options: further options of ``ax.legend``.

    Returns:
        The legend.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> for slope in (1, 2):
        ...     line = theory_line(ax, [0, 1], [0, slope])
        >>> [text.get_text() for text in legend(ax).get_texts()]
        ['theory']
    """
    handles = dict(zip(*reversed(ax.get_legend_handles_labels())))
    look = {"fontsize": _TEXT - 1, "frameon": False} | options
    return ax.legend(list(handles.values()), list(handles), **look)


def legend_above(axes: Any, *, ncols: int, **options: Any) -> Any:
    """Put one legend above all panels of a figure; it names every label of these panels once.

    Args:
        axes: panels whose labels are named, one or an array.
        ncols: entries in a row.
        options: further options of ``Figure.legend``.

    Returns:
        The legend.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure(layout="constrained").subplots(1, 2)
        >>> for ax, rule in zip(axes, ("FA", "DFA")):
        ...     drawn = points(ax, [0, 1], [1, 2], rule=rule), theory_line(ax, [0, 1], [1, 2])
        >>> [text.get_text() for text in legend_above(axes, ncols=3).get_texts()]
        ['theory', 'FA', 'DFA']
    """
    panels = np.ravel(np.asarray(axes))
    handles = {
        text: handle
        for ax in panels
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    look = {"loc": "outside upper center", "fontsize": _TEXT - 1, "frameon": False} | options
    return panels[0].figure.legend([*handles.values()], [*handles], ncols=ncols, **look)


def letters(axes: Any) -> None:
    """Write (a), (b), ... before the titles of panels, on their left.

    Args:
        axes: panels in reading order, an array or a list.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots(1, 2)
        >>> title = axes[1].set_title("loss")
        >>> letters(axes)
        >>> [ax.get_title(loc="left") for ax in axes]
        ['(a) ', '(b) loss']
    """
    for name, ax in zip("abcdefgh", np.ravel(np.asarray(axes))):
        title = ax.get_title()
        ax.set_title("")
        ax.set_title(f"({name}) {title}", loc="left", fontsize=_TEXT)
