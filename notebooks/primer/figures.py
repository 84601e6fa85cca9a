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


# --- your own network ----------------------------------------------------------------------------

TITLES = {
    "resnet": "ResNet, images",
    "mlp": "MLP, images",
    "sorting": "Transformer, sorting",
    "recall": "Transformer, recall",
}
SHORT = {
    "self_attn.in_proj_weight": "attention in",
    "self_attn.out_proj": "attention out",
    "linear1": "up",
    "linear2": "down",
    "embed": "tokens",
    "place": "places",
    "down.0": "shortcut",
}


def learning(data: Any) -> Any:
    """Test accuracy during training, a panel for each network and task, a curve for each rule."""
    fig, axes = plots.figure(2, 2, height=2.7)
    for ax, (name, title) in zip(axes.flat, TITLES.items()):
        if name not in data:  # recall, in the quick preset
            ax.set_axis_off()
            continue
        table = data[name]
        for rule in table["rule"].values:
            runs = table["accuracy"].sel(rule=rule).values
            plots.band(ax, table["step"].values, 100 * runs, rule=str(rule), kind="95%")
        ax.set(title=title, xlabel="updates", ylim=(0, 102))
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    plots.letters([ax for ax in axes.flat if ax.axison])
    plots.legend_above(axes[0, 0], ncols=5)
    return fig


def layers(data: Any) -> Any:
    """Alignment of every weight matrix on three networks, and the time of a step."""
    fig, axes = plots.figure(2, 2, height=3.5)
    for ax, name in zip(axes.flat, ("resnet", "sorting", "recall")):
        if f"{name}_layers" in data:
            _rows(ax, data[f"{name}_layers"])
            ax.set_title(TITLES[name])
        else:
            ax.set_axis_off()
    _times(axes[1, 1], data["time"])
    plots.letters([ax for ax in axes.flat if ax.axison])
    plots.legend_above(axes[0, 0], ncols=5)
    return fig


def _rows(ax: Any, table: Any) -> None:
    """A row for each matrix, from the input at the bottom; mean and 95 % interval."""
    rows = np.arange(table.sizes["layer"])
    rules = table["rule"].values
    for place, rule in enumerate(rules):
        shift = 0.4 * (place - (len(rules) - 1) / 2) / max(len(rules) - 1, 1)
        runs = table["cosine"].sel(rule=rule).values
        low, high = plots.band_edges(runs, kind="95%")
        look = plots.rule_style(str(rule)) | {"linestyle": "none"}
        ax.errorbar(
            runs.mean(0), rows + shift, xerr=(high - low) / 2, **look, markersize=5, elinewidth=1.2
        )
    ax.axvline(0, color="0.5", lw=1)
    ax.set_yticks(rows, [_short(str(layer)) for layer in table["layer"].values], fontsize=9)
    low = -0.45 if float(table["cosine"].mean("seed").min()) > -0.45 else -1.05  # as under DRTP
    ax.set(xlabel="cosine with the gradient", xlim=(low, 1.05))


def _short(layer: str) -> str:
    """`blocks.0.conv1` as `1 conv1`, and PyTorch's names of attention in words."""
    block, _, rest = layer.removeprefix("blocks.").partition(".")
    if layer.startswith("blocks."):
        return f"{int(block) + 1} {SHORT.get(rest, rest)}"
    return SHORT.get(layer, layer.removesuffix(".0"))


def _times(ax: Any, table: Any) -> None:
    """Time of a step by rule and network, over that of backpropagation (else the first rule's)."""
    tasks = [str(task) for task in table["task"].values]
    rules = [str(rule) for rule in table["rule"].values]
    unit = "BP" if "BP" in rules else rules[0]
    shares = table["seconds"] / table["seconds"].sel(rule=unit)
    rules.remove(unit)
    thick = 0.8 / max(len(rules), 1)
    for place, rule in enumerate(rules):
        rows = np.arange(len(tasks)) + thick * (place - (len(rules) - 1) / 2)
        colour = plots.rule_style(rule)["color"]
        ax.barh(rows, shares.sel(rule=rule).values, height=0.9 * thick, color=colour)
    ax.axvline(1, color="0.3", lw=1, ls=":")
    ax.set_yticks(range(len(tasks)), [TITLES[t].replace(", ", "\n") for t in tasks], fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel=f"time of a step / that of {unit}", title="cost")
