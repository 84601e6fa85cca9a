"""Figures of the primer, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabook import plots

REDRAWN = "FA redrawn"
FIRST = ("BP", "FA", "DFA", REDRAWN, "Shallow")  # the rules of the first figure


def look_of(rule: str) -> dict[str, Any]:
    """Label, colour, marker and line; feedback that is redrawn is FA, in dots and hollow."""
    if rule != REDRAWN:
        return plots.rule_style(rule)
    return plots.rule_style("FA") | {"label": "FA, redrawn", "linestyle": ":", "marker": "s"}


def interval(runs: Any) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval."""
    values = np.asarray(runs, dtype=float)
    low, high = plots.band_edges(values[:, None], kind="95%")
    return float(values.mean()), float((high - low)[0] / 2)


def _epochs(curves: Any) -> np.ndarray:
    """Epochs on a logarithmic axis; the start stands where such an axis can show it."""
    at = curves.epoch.values.astype(float)
    at[0] = at[1] / 2
    return at


def _log_error(ax: Any) -> None:
    ax.set(yscale="log", ylabel="test error (%)")
    ax.set_yticks([2, 5, 10, 20, 50, 90], ["2", "5", "10", "20", "50", "90"])
    ax.minorticks_off()


def feedback(data: Any) -> Any:
    """Test error and alignment in time: backpropagation, random feedback, and two controls."""
    fig, axes = plots.figure(1, 2, height=3.5)
    curves = data["curves"]
    at = _epochs(curves)
    for rule in FIRST:
        runs, look = curves.sel(rule=rule), look_of(rule)
        look = {key: look[key] for key in ("label", "color", "linestyle")}
        order = ("seed", "epoch")
        plots.band(axes[0], at, 100 * (1 - runs.accuracy.transpose(*order).values), **look)
        if rule != "Shallow":
            plots.band(axes[1], at, runs.alignment.transpose(*order).values, **look)
    _log_error(axes[0])
    axes[1].axhline(0, color="0.5", lw=0.8, zorder=1)
    axes[0].set(title="the network learns")
    axes[1].set(title="because its weights turn", ylabel="cosine with the true gradient")
    axes[1].set(ylim=(-0.12, 1.06))
    for ax in axes:
        ax.set(xscale="log", xlabel="epochs (left end: before training)")
    plots.legend(axes[0], loc="lower left", fontsize=9.5, labelspacing=0.25)
    plots.letters(axes)
    return fig


def nine(data: Any) -> Any:
    """Every rule at the end: test error and alignment, a row for each."""
    fig, axes = plots.figure(1, 2, height=3.7, sharey=True)
    curves = data["curves"].isel(epoch=-1)
    rules = [str(rule) for rule in curves.rule.values]
    for row, rule in enumerate(rules):
        look = look_of(rule)
        style = {"color": look["color"], "marker": look["marker"]}
        style["markerfacecolor"] = "white" if rule == REDRAWN else look["color"]
        for ax, values in zip(axes, (100 * (1 - curves.accuracy), curves.alignment)):
            runs = values.sel(rule=rule).values
            if not np.isfinite(runs).all():
                continue
            ax.plot(runs, np.full(len(runs), row + 0.3), ".", color="0.65", ms=3.5)
            mean, half = interval(runs)
            ax.errorbar(mean, row, xerr=half, ms=6.5, ls="none", lw=1.4, **style)
    axes[0].set_yticks(range(len(rules)), [look_of(rule)["label"] for rule in rules])
    axes[0].invert_yaxis()
    axes[0].set(xscale="log", xlabel="test error (%)", title="error")
    low, high = axes[0].get_xlim()
    ticks = [t for t in (1, 2, 3, 5, 10, 20) if 0.95 * low <= t <= 1.05 * high]
    axes[0].set_xticks(ticks, [f"{t}" for t in ticks])
    axes[0].tick_params(axis="x", which="minor", labelbottom=False)
    axes[1].axvline(0, color="0.5", lw=0.8)
    axes[1].set(xlim=(-0.12, 1.08), xlabel="cosine with the true gradient", title="alignment")
    axes[1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    plots.letters(axes)
    return fig
