"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np
from IPython.display import Markdown

from fabook import plots

WINDOW, LATER = "#F2E3B3", "#E3E5E8"  # the phases: alignment, memorisation
DARK, WARM, COOL, GREEN = "#3B3B45", "#B5651D", "#33658A", "#4F772D"
CHAPTERS = {  # measure: what is drawn, and whose it is
    "kernel": ("share of $H$ in $G+H$", "Song"),
    "unstable": ("unstable directions", "Chu"),
    "dominance": ("dominance share", "Robertson 2024"),
    "gradient": ("gradient alignment", "Refinetti"),
    "readout": (r"$\cos(b,\beta)$ of the read-out", "Song"),
    "gain": ("norm turned alignment", "Robertson 2023"),
}


def fa(data: Any) -> Any:
    """What five papers watch, in one run of FA."""
    return _one_run(data, "FA")


def dfa(data: Any) -> Any:
    """The same for DFA."""
    return _one_run(data, "DFA")


def _one_run(data: Any, rule: str) -> Any:
    runs = data["curves"].sel(rule=rule)
    fig, axes = plots.figure(2, 2, height=2.75, sharex=True)
    _refinetti(axes[0, 0], runs)
    _song(axes[0, 1], runs)
    _chu(axes[1, 0], runs)
    _robertson(axes[1, 1], runs)
    for ax in axes.flat:
        ax.axhline(0, color="0.5", lw=0.8, zorder=1)
        ax.set(xscale="log", ylim=(-0.85, 1.75), xlim=(0.7, float(runs.step[-1])))
        _phases(ax, data["onsets"].sel(rule=rule))
        ax.set_yticks(np.arange(-0.5, 1.01, 0.25))
        ax.legend(
            loc="upper left",
            fontsize=9,
            frameon=False,
            labelspacing=0.15,
            handlelength=1.6,
            borderaxespad=0.1,
        )
    for ax in axes[1]:
        ax.set_xlabel("step")
    plots.letters(axes)
    return fig


def _window(onsets: Any) -> tuple[float, float]:
    """Earliest and latest onset, of the geometric mean over seeds."""
    means = np.exp(np.log(onsets["onset"]).mean("seed"))
    return float(means.min()), float(means.max())


def _phases(ax: Any, onsets: Any) -> None:
    """Shade alignment, first to last onset, and memorisation, from half of the loss gone on."""
    first, last = _window(onsets)
    half, end = float(np.exp(np.log(onsets["loss_half"]).mean("seed"))), ax.get_xlim()[1]
    look = {"fontsize": 9, "color": "0.3", "transform": ax.get_xaxis_transform()}
    ax.axvspan(first, last, color=WINDOW, alpha=0.6, lw=0, zorder=0)
    ax.text(np.sqrt(first * last), 0.02, "alignment", ha="center", **look)
    ax.axvspan(half, end, color=LATER, alpha=0.6, lw=0, zorder=0)
    ax.text(0.97 * end, 0.1, "memorisation", ha="right", **look)  # higher: phases may overlap


def _curve(ax: Any, runs: Any, values: Any, colour: str, line: Any, label: str) -> None:
    step = np.maximum(runs.step.values, 0.7)
    plots.band(ax, step, values.values, kind="95%", color=colour, linestyle=line, label=label)


def _refinetti(ax: Any, runs: Any) -> None:
    _curve(ax, runs, runs.loss / runs.loss.isel(step=0), "0.6", "-", "loss / loss at the start")
    _curve(ax, runs, runs.lower, COOL, "--", "gradient alignment, layer 1")
    _curve(ax, runs, runs.upper, COOL, "-", "gradient alignment, layer 2")
    _curve(ax, runs, runs.weight, WARM, "-.", "weight alignment, layer 2")
    ax.set_title("Refinetti")


def _song(ax: Any, runs: Any) -> None:
    _curve(ax, runs, runs.kernel, WARM, "-", CHAPTERS["kernel"][0])
    _curve(ax, runs, runs.readout, COOL, "--", CHAPTERS["readout"][0])
    ax.set_title("Song")


def _chu(ax: Any, runs: Any) -> None:
    _curve(ax, runs, runs.unstable, WARM, "-", "unstable directions")
    _curve(ax, runs, runs.hidden, COOL, "--", "hidden share of the descent")
    ax.set_title("Chu")


def _robertson(ax: Any, runs: Any) -> None:
    _curve(ax, runs, runs.dominance, COOL, "--", "dominance share")
    last = runs["gain"].isel(step=-1)
    _curve(ax, runs, runs.gain / last, WARM, "-", "alignment gained, of all")
    grown = (runs.growth / last).mean("seed")
    step = np.maximum(runs.step.values, 0.7)
    plots.points(
        ax, step[::3], grown[::3], color=DARK, markersize=3.5, label="norm gained below it"
    )
    ax.set_title("Robertson")


def onsets(data: Any) -> Any:
    """When each measure begins to move, the whole spectrum, and what the law conserves."""
    table = data["onsets"]
    fig, axes = plots.figure(2, 2, height=3.0, sharex=True)
    end = float(data["curves"].step[-1])
    for ax, rule in zip(axes[0], ("FA", "DFA")):
        _first_moves(ax, table.sel(rule=rule), rule)
    axes[0, 1].tick_params(axis="y", labelleft=False)
    _spectrum(axes[1, 0], data["spectrum"].sel(rule="FA"))
    _conserved(axes[1, 1], data["curves"])
    for ax, rule in zip(axes.flat, ("FA", "DFA", "FA", None)):
        ax.set(xscale="log", xlim=(0.7, end))
        if rule:
            _phases(ax, table.sel(rule=rule))
    for ax in axes[1]:
        ax.set_xlabel("step")
    plots.letters(axes)
    return fig


def _first_moves(ax: Any, one: Any, rule: str) -> None:
    """Onsets of all measures: ticks for seeds, a marker for their geometric mean."""
    names, look = [str(name) for name in one.measure.values], plots.rule_style(rule)
    rows = np.arange(len(names))[::-1]
    for row, name in zip(rows, names):
        seeds = one["onset"].sel(measure=name).values
        ax.plot(seeds, np.full(len(seeds), row), "|", color=look["color"], ms=9, alpha=0.6)
    middle = np.exp(np.log(one["onset"]).mean("seed").sel(measure=names).values)
    ax.plot(middle, rows, look["marker"], color=look["color"], ms=6)
    half = float(np.exp(np.log(one["loss_half"]).mean("seed")))
    ax.axvline(half, ymin=0.18, color="0.35", lw=1.3, ls=":")
    where = {"transform": ax.get_xaxis_transform(), "fontsize": 9, "color": "0.3"}
    ax.text(half, 1.02, "half of the loss", ha="left", **where)
    ax.set(ylim=(-1.2, len(names) - 0.4), title=rule)
    ax.set_yticks(rows, [f"{CHAPTERS[name][0]}\n{CHAPTERS[name][1]}" for name in names])
    ax.tick_params(axis="y", labelsize=9)


def _spectrum(ax: Any, spectrum: Any) -> None:
    """Quantiles of the real parts of the stability matrix, means over seeds."""
    step = np.maximum(spectrum.step.values, 0.7)
    real = spectrum["real"].mean("seed")
    for low, high, alpha in ((0, 1, 0.15), (0.05, 0.95, 0.25), (0.25, 0.75, 0.4)):
        edges = real.sel(level=low), real.sel(level=high)
        ax.fill_between(step, *edges, color=WARM, alpha=alpha, lw=0)
    ax.plot(step, real.sel(level=0.5), color=WARM, label="median")
    ax.axhline(0, color="0.5", lw=0.8)
    linear = 10 ** np.floor(np.log10(abs(float(real.min()))))  # the decade of the most negative
    ax.set_yscale("symlog", linthresh=linear)
    ax.set(ylabel=r"Re $\lambda$ of $M/n$", title="Chu: the spectrum under FA")


def _conserved(ax: Any, curves: Any) -> None:
    """The conserved quantity, and what the gain in norm alone would have made of it."""
    step = np.maximum(curves.step.values, 0.7)
    for rule in ("FA", "DFA"):
        one, look = curves.sel(rule=rule), plots.rule_style(rule)
        start = one.conserved.isel(step=0)
        plain = {"color": look["color"], "kind": "95%"}
        plots.band(ax, step, (one.conserved / start).values, label=rule, **plain)
        alone = ((start + one.growth) / start).transpose("seed", "step")
        plots.band(ax, step, alone.values, linestyle=":", label=f"{rule}, norms alone", **plain)
    ax.set(ylabel="conserved quantity / start", title="Robertson: the law")
    ax.legend(loc="upper left", fontsize=9, frameon=False)


def identity(data: Any) -> Any:
    """Regularised alignment, rest, the alignment phase, and what direct feedback keeps."""
    fig, axes = plots.figure(2, 2, height=2.9)
    _regularised(axes[0, 0], data["song"])
    _rest(axes[0, 1], data["rest"])
    _phase(axes[1, 0], data["phase"])
    _direct(axes[1, 1], data["neurons"])
    plots.letters(axes)
    return fig


def _regularised(ax: Any, song: Any) -> None:
    low = float(min(song.measured.min(), song.predicted.min())) - 0.03
    plots.theory_line(ax, [low, 1], [low, 1], linewidth=1.2, label=None)
    for colour, penalty in zip(plots.SHADES[::-2], song.penalty.values):
        for marker, width in zip("os^D", song.width.values):
            one = song.sel(penalty=penalty, width=width)
            name = rf"$\lambda$ = {penalty:g}" if marker == "o" else None
            ax.plot(
                one.predicted, one.measured, marker, ms=4.5, mfc="none", color=colour, label=name
            )
    shapes = [
        f"{mark} {width}"
        for mark, width in zip(("circle", "square", "triangle"), song.width.values)
    ]
    ax.text(
        0.98,
        0.04,
        "width:\n" + "\n".join(shapes),
        transform=ax.transAxes,
        ha="right",
        fontsize=9,
        linespacing=1.15,
    )
    ax.set(
        xlabel="predicted cosine",
        ylabel=r"measured $\cos(b,\beta)$",
        xlim=(low, 1),
        ylim=(low, 1),
        title="penalty on the read-out",
    )
    plots.legend(ax, loc="upper left", fontsize=9, labelspacing=0.2, handletextpad=0.1)


def _rest(ax: Any, rest: Any) -> None:
    ax.axhline(1, color="black", lw=1.2, ls="--")
    for marker, width, shift in zip("os^", rest.width.values, (0.96, 1.04, 1.0)):
        one = rest.sel(width=width)
        for k, seed in enumerate(one.ratio.values):
            ax.plot(
                one.penalty * shift,
                seed,
                marker,
                ms=4.5,
                mfc="none",
                color=COOL,
                label=f"squared norm / alignment, width {width}" if k == 0 else None,
            )
            ax.plot(
                one.penalty * shift,
                one.cosine.values[k],
                marker,
                ms=4.5,
                color=WARM,
                label=rf"$\cos(b,\beta)$, width {width}" if k == 0 else None,
            )
    ax.set(
        xscale="log",
        xlabel=r"decay $\lambda$ of both layers",
        ylim=(float(rest.cosine.min()) - 0.02, 1.22),
        title="rest",
    )
    ax.set_xticks(rest.penalty.values, [f"{v:g}" for v in rest.penalty.values])
    ax.minorticks_off()
    plots.legend(ax, loc="upper left", fontsize=9, labelspacing=0.2, handletextpad=0.1)


def _phase(ax: Any, phase: Any) -> None:
    step = np.maximum(phase.step.values, 0.7)
    for colour, layer, name in zip(plots.SHADES[::3], phase.layer.values, ("layer 2", "read-out")):
        one = phase.sel(layer=layer)
        plots.theory_line(
            ax, step, one.read.mean("seed"), color=colour, linewidth=1.5, label=f"{name}, norms"
        )
        plots.points(
            ax,
            step[::2],
            one.measured.mean("seed")[::2],
            color=colour,
            markersize=4,
            label=f"{name}, measured",
        )
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(xscale="log", xlabel="step", ylabel="weight alignment", title="FA: read off the norms")
    plots.legend(ax, loc="upper left", fontsize=9, labelspacing=0.2)


def _direct(ax: Any, neurons: Any) -> None:
    for colour, marker, layer, name in (
        (plots.SHADES[3], "^", "first", "hidden layer 1"),
        (plots.SHADES[0], "o", "last", "hidden layer 2"),
    ):
        ax.plot(
            neurons[f"{layer}_gain"],
            neurons[f"{layer}_norm"],
            marker,
            ms=4,
            mfc="none",
            color=colour,
            label=name,
        )
    low, high = ax.get_xlim()
    plots.theory_line(ax, [low, high], [low, high], linewidth=1.2, label=None)
    ax.set(
        xlabel="alignment gained by a neuron",
        ylabel="norm gained",
        title="DFA keeps one layer",
    )
    plots.legend(ax, loc="upper left", fontsize=9, labelspacing=0.2, handletextpad=0.1)


# --- nine rules compared -------------------------------------------------------------------------

NETWORKS = {"mlp": "MLP", "conv": "convolutional network", "resnet": "small ResNet"}
SHORT = {"mlp": "MLP", "conv": "conv.", "resnet": "ResNet"}  # where there is little room
SETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
MARKERS = "os^D"


def mean_and_half(runs: Any) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval; NaN where a seed has none."""
    values = np.asarray(runs, dtype=float)
    low, high = plots.band_edges(values[:, None], kind="95%")
    return float(values.mean()), float((high - low)[0] / 2)


def final(data: Any) -> Any:
    """Test accuracy after the last update, in percent."""
    return 100 * data["runs"].accuracy.isel(look=-1)


def ranked(data: Any) -> list[str]:
    """The rules from the highest to the lowest accuracy, averaged over all cells."""
    level = final(data).mean(["network", "data", "seed"])
    return [str(rule) for rule in level.sortby(-level)["rule"].values]


def lead(data: Any, rule: str, other: str, cells: Any = None) -> tuple[float, float]:
    """By how many points one rule is ahead of another, averaged over cells, paired over seeds."""
    runs = final(data).sel(cells or {})
    ahead = runs.sel(rule=rule) - runs.sel(rule=other)
    return mean_and_half(ahead.mean([dim for dim in ("network", "data") if dim in ahead.dims]))


def _row(ax: Any, rule: str, y: float, value: float, half: float, marker: str) -> None:
    colour = plots.rule_style(rule)["color"]
    ax.errorbar(value, y, xerr=half, marker=marker, ms=5, ls="none", lw=1.3, color=colour)


def _rows(ax: Any, rules: list[str]) -> None:
    ax.set_yticks(range(len(rules)), rules)
    ax.set_ylim(len(rules) - 0.4, -0.6)


def _keys(fig: Any, names: list[str]) -> None:
    """What each marker stands for, above the panels."""
    from matplotlib.lines import Line2D

    drawn = [
        Line2D([], [], marker=marker, ls="none", color="0.35", ms=6, label=name)
        for marker, name in zip(MARKERS, names)
    ]
    fig.legend(handles=drawn, loc="outside upper center", ncols=4, fontsize=10, frameon=False)


def _shifts(count: int) -> list[float]:
    return [float(s) for s in (np.arange(count) - (count - 1) / 2) * 0.19]


def lost(data: Any) -> Any:
    """What each rule loses to backpropagation: a panel a network, a marker a set of images."""
    fig, axes = plots.figure(1, 3, height=4.6, sharey=True, sharex=True)
    sets = [str(name) for name in data["runs"]["data"].values]
    rules = [rule for rule in ranked(data) if rule != "BP"]
    for ax, (network, title) in zip(axes, NETWORKS.items()):
        for row, rule in enumerate(rules):
            for marker, name, shift in zip(MARKERS, sets, _shifts(len(sets))):
                cell = {"network": network, "data": name}
                _row(ax, rule, row + shift, *lead(data, "BP", rule, cell), marker)
        ax.axvline(0, color="0.3", lw=1)
        ax.set_xscale("symlog", linthresh=1, linscale=0.6)
        ax.set_xticks([-1, 0, 1, 3, 10, 30], ["−1", "0", "1", "3", "10", "30"])
        ax.minorticks_off()
        ax.set(xlabel="points lost to BP", title=title.removesuffix(" network"))
    axes[0].set_xlim(-3, 80)
    _rows(axes[0], rules)
    plots.letters(axes)
    _keys(fig, [SETS[name] for name in sets])
    return fig


def cost(data: Any) -> Any:
    """Alignment, and what an update costs: time, memory, and accuracy at equal time."""
    fig, axes = plots.figure(2, 2, height=3.7, sharey=True)
    rules = ranked(data)
    table = data["cost"]
    memory = table.working + table.held
    ends = data["runs"].cosine.isel(look=-1).mean("data")
    timed = 100 * table.at_equal_time
    behind = (timed.sel(rule="BP") - timed).mean("data")
    for marker, network, shift in zip(MARKERS, NETWORKS, _shifts(3)):
        for row, rule in enumerate(rules):
            cell, y = {"network": network, "rule": rule}, row + shift
            if rule not in ("BP", "Shallow"):
                _row(axes[0, 0], rule, y, *mean_and_half(ends.sel(cell)), marker)
            if rule != "BP":
                _row(axes[1, 1], rule, y, *mean_and_half(behind.sel(cell)), marker)
            for ax, values in ((axes[0, 1], table.seconds), (axes[1, 0], memory)):
                share = values.sel(cell) / values.sel(network=network, rule="BP")
                _row(ax, rule, y, float(np.exp(np.log(share).mean())), 0.0, marker)
    axes[0, 0].set(xlabel="cosine with the gradient", title="alignment at the end")
    axes[0, 1].set(xlabel="time of an update / that of BP", title="time")
    axes[1, 0].set(xlabel="memory of an update / that of BP", title="memory", xscale="log")
    low, high = axes[1, 0].get_xlim()
    ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low <= tick <= high]
    axes[1, 0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[1, 0].minorticks_off()
    axes[1, 1].set(xlabel="points behind BP", title="accuracy at equal time")
    axes[1, 1].set_xscale("symlog", linthresh=1, linscale=0.6)
    axes[1, 1].set_xticks([-1, 0, 1, 3, 10, 30], ["−1", "0", "1", "3", "10", "30"])
    axes[1, 1].minorticks_off()
    for ax, zero in zip(axes.flat, (0, 1, 1, 0)):
        ax.axvline(zero, color="0.3", lw=1)
    _rows(axes[0, 0], rules)
    plots.letters(axes)
    _keys(fig, list(NETWORKS.values()))
    return fig


def _text(mean: float, half: float, digits: int = 1) -> str:
    if not np.isfinite(mean):
        return "–"
    return f"{mean:.{digits}f}±{half:.{digits}f}".replace("-", "−")  # without blanks: one line


def _markdown(head: list[str], rows: list[list[str]]) -> Markdown:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def table(data: Any) -> Markdown:
    """A row for each network and rule: accuracies, alignment, cost, accuracy at equal time."""
    runs, cost = data["runs"], data["cost"]
    sets = [str(name) for name in runs["data"].values]
    ends = runs.cosine.isel(look=-1).mean("data", skipna=False)
    timed = 100 * cost.at_equal_time.mean("data")
    memory = cost.working + cost.held
    rows = []
    for network in NETWORKS:
        for rule in [str(rule) for rule in runs["rule"].values]:
            cell = {"network": network, "rule": rule}
            each = [final(data).sel(cell | {"data": name}) for name in sets]
            edge = ["" if runs.inside.sel(cell | {"data": name}) else "†" for name in sets]
            rows.append(
                [
                    f"{SHORT[network]}, {rule}",
                    *(_text(*mean_and_half(one)) + mark for one, mark in zip(each, edge)),
                    "1" if rule == "BP" else _text(*mean_and_half(ends.sel(cell)), digits=2),
                    *(_share(values, cell) for values in (cost.seconds, memory)),
                    _text(*mean_and_half(timed.sel(cell))),
                ]
            )
    heads = [*(SETS[name] for name in sets), "cosine", "time", "memory", "at equal time"]
    return _markdown(["network, rule", *heads], rows)


def _share(values: Any, cell: dict[str, str]) -> str:
    """A cost over that of BP, geometric mean over the sets of images."""
    share = values.sel(cell) / values.sel(cell | {"rule": "BP"})
    return f"{float(np.exp(np.log(share).mean())):.2f}"


def pairs(data: Any) -> Markdown:
    """Lead of each rule (row) over each worse one (column), averaged over all cells."""
    rules = ranked(data)
    rows = []
    for place, rule in enumerate(rules[:-1]):
        leads = [lead(data, rule, other) for other in rules[place + 1 :]]
        cells = [_text(*found) + ("\u00a0*" if found[0] > found[1] else "") for found in leads]
        rows.append([f"**{rule}**", *[""] * place, *cells])
    return _markdown(["leads, in points", *(f"over {rule}" for rule in rules[1:])], rows)
