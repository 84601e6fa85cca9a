"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

from fabook import plots

# --- conservation --------------------------------------------------------------------------------


def conservation(data: Any) -> Any:
    """Norm, alignment and invariant over time, and the drift against the step size."""
    fig, axes = plots.figure(1, 2, height=4.3)
    _curves(axes[0], data["curves"])
    _drift(axes[1], data["laws"], data["controls"])
    plots.letters(axes)
    return fig


def _curves(ax: Any, curves: Any) -> None:
    """Three seeds: the norm below as lines, the alignment above as markers, and what is left."""
    t, value = curves["t"].values, curves["curve"]
    looks = zip(curves["layer"].values, (plots.SHADES[0], plots.SHADES[3]), "os")
    for layer, colour, marker in looks:
        for number in range(min(3, value.sizes["seed"])):
            norm, alignment, left = (
                value.sel(layer=layer, what=what)[number].values
                for what in ("norm", "alignment", "C")
            )
            names = (
                rf"$\Delta\frac{{1}}{{2}}\|W_{layer}\|^2$",
                rf"$\Delta\langle B_{layer + 1}, W_{layer + 1}\rangle$",
                r"$\Delta C_l$" if marker == "o" else None,
            )
            names = names if number == 0 else (None, None, None)
            look = {"color": colour, "alpha": (1.0, 0.7, 0.45)[number]}
            plots.theory_line(ax, t, norm, label=names[0], linewidth=1.4, **look)
            some = slice(2 + number, None, 5)
            plots.points(ax, t[some], alignment[some], marker=marker, label=names[1], **look)
            plots.theory_line(
                ax, t, left, color="0.4", linestyle="--", linewidth=1.2, label=names[2]
            )
    step = round(1 / float(curves["eta"]))
    ax.set(
        xlabel=r"time $t=\eta\,\times$ steps",
        ylabel="change since the start",
        title=rf"three seeds, $\eta$ = 1/{step}",
    )
    ax.set_ylim(top=1.45 * ax.get_ylim()[1])
    plots.legend(ax, loc="upper left", ncols=2, columnspacing=1.0)


def _drift(ax: Any, laws: Any, controls: Any) -> None:
    """Relative drift, mean and 95 % interval: laws on lines of slope one, controls flat."""
    eta = laws["eta"].values
    share = (laws["drift"].sum("layer") / laws["change"].sum("layer")).transpose(
        "case", "seed", "eta"
    )
    for place, (case, colour, marker) in enumerate(
        zip(share["case"].values, plots.SHADES, "os^Dv")
    ):
        beside = eta * 1.07 ** (place - 2)  # so that bars can be told apart
        mean, bar = _interval(share.sel(case=case).values)
        plots.theory_line(
            ax, eta, mean[-1] * eta / eta[-1], color=colour, linewidth=1.2, label=None
        )
        plots.points(ax, beside, mean, error=bar, color=colour, marker=marker, label=str(case))
    share = controls["unexplained"].sum("layer") / controls["change"].sum("layer")
    for case, marker in zip(share["case"].values, "XP*<>"):
        mean = share.sel(case=case).mean("seed").values
        ax.plot(eta, mean, ":", color="#B5651D", marker=marker, ms=6, lw=1.1, label=str(case))
    ax.set(xscale="log", yscale="log", xlabel=r"step size $\eta$", title="relative change of $C_l$")
    ax.set_xticks(eta, [f"1/{round(1 / e)}" for e in eta])
    ax.minorticks_off()
    ax.set_ylim(top=300 * ax.get_ylim()[1])
    plots.legend(ax, loc="upper left", ncols=2, fontsize=9, columnspacing=0.8, handletextpad=0.3)


def _interval(runs: Any) -> tuple[Any, Any]:
    """Mean over seeds, and half the 95 % interval of it."""
    low, high = plots.band_edges(runs, kind="95%")
    return runs.mean(0), (high - low) / 2


def identity(data: Any) -> Any:
    """Largest relative deviation from the exact identity, case by case, a point for each seed."""
    table = data["residuals"]
    looks = {"law": (plots.SHADES[0], "o"), "moved": (plots.SHADES[3], "D")}
    looks |= {"control": ("#B5651D", "X")}
    fig, ax = plots.figure(1, 1, height=4.0)
    cases = table["case"].values
    for row, (kind, case) in enumerate(zip(table["kind"].values, cases)):
        colour, marker = looks[str(kind)]
        found = np.maximum(table["residual"].sel(case=case).values, 1e-17)
        plots.points(ax, found, np.full(len(found), row), color=colour, marker=marker)
    ax.axvline(1e-11, color="0.25", lw=1.4, ls=":")
    ax.text(1.6e-11, -0.1, "bound of the claim", fontsize=10, va="center")
    ax.set_yticks(range(len(cases)), cases)
    ax.set(
        xscale="log",
        xlim=(1e-17, 30),
        ylim=(len(cases) - 0.3, -0.8),
        xlabel="largest relative deviation of a neuron from the identity",
    )
    return fig


# --- minimum norm --------------------------------------------------------------------------------


def minimum_norm(data: Any) -> Any:
    """Distance against the scale of the start, and the error of networks that fit wrong labels."""
    fig, axes = plots.figure(1, 2, height=4.0)
    _scales(axes[0], data["scales"])
    _clouds(axes[1], data["clouds"], data["curve"])
    plots.letters(axes)
    return fig


def _scales(ax: Any, table: Any) -> None:
    """Networks as markers, the prediction as lines; zero starts at the far left."""
    scale, zero = table["scale"].values, 1e-5
    looks = ({}, {"marker": "D", "alpha": 0.55}, {})
    for case, rule, look in zip(table["case"].values, table["rule"].values, looks):
        seen, said = (table[k].sel(case=case).values for k in ("distance", "predicted"))
        ax.plot(scale[1:], said[1:].mean(1), color="0.35", lw=1.1, zorder=1)
        mean = seen.mean(1)
        bar = np.stack([mean - seen.min(1), seen.max(1) - mean])
        x = np.where(scale > 0, scale, zero)
        plots.points(ax, x, mean, error=bar, rule=str(rule), **({"label": str(case)} | look))
    ax.plot([], [], color="0.35", lw=1.1, label="prediction")
    ax.axvspan(zero / 3, zero * 3, color="0.92", lw=0)
    ax.text(zero, 0.5, "zero start", rotation=90, ha="center", va="top", fontsize=10)
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(zero / 3, 2.5),
        ylim=(float(table["distance"].min()) / 1e3, 3),
        xlabel=r"scale of the start $\alpha$",
        title="distance from minimum norm",
    )
    ticks = [zero, 1e-4, 1e-3, 1e-2, 1e-1, 1]
    ax.set_xticks(ticks, ["0", *(f"$10^{{{k}}}$" for k in range(-4, 1))])
    ax.minorticks_off()
    plots.legend(ax, loc="lower right", fontsize=9)


def _clouds(ax: Any, table: Any, curve: Any) -> None:
    """Probability of an error against inputs per sample, closed form as lines."""
    ax.plot(curve["ratio"], curve["error"], color="0.35", lw=1.3, label="minimum norm", zorder=1)
    said = np.log(ndtr(-table["predicted"].isel(start=1))).mean("seed")
    look = {"color": "0.35", "lw": 1.3, "zorder": 1}
    ax.plot(table["ratio"], np.exp(said), "--", label="with the part outside", **look)
    marks = zip(table["start"].values, table["rule"].values, (("s", 7.5), ("v", 6.5), ("o", 3.5)))
    for start, rule, (marker, width) in marks:
        mean, bar = _interval(np.log(table["error"].sel(start=start).values.T))
        low, high = np.exp(mean - bar), np.exp(mean + bar)
        bars = np.stack([np.exp(mean) - low, high - np.exp(mean)])
        look = {"marker": marker, "markersize": width, "label": str(start)}
        plots.points(ax, table["ratio"], np.exp(mean), error=bars, rule=str(rule), **look)
    least = float(table["error"].mean("seed").min())
    ax.set(
        xscale="log",
        yscale="log",
        ylim=(least / 300, 0.6),
        xlabel="inputs per sample $d/n$",
        title="error, one label in five wrong",
    )
    ratios = table["ratio"].values
    ax.set_xticks(ratios, [str(int(r)) for r in ratios])
    ax.minorticks_off()
    plots.legend(ax, loc="lower left", fontsize=9, labelspacing=0.25)


def closed_form(data: Any) -> Any:
    """The learned map from zero, and the loss of starts against the feedback."""
    fig, axes = plots.figure(1, 2, height=3.3)
    paths = data["paths"]
    t = paths["t"].values
    fa = plots.RULE_COLOURS["FA"]
    for number, marker in zip(range(min(3, paths.sizes["seed"])), "os^"):
        one = paths.isel(c=0, seed=number)
        look = {"color": fa, "alpha": (1.0, 0.7, 0.45)[number]}
        name = ("closed form", "FA") if number == 0 else (None, None)
        plots.theory_line(axes[0], t, one["size_flow"], label=name[0], **look)
        some = slice(5 * number, None, 24)
        seen = one["size"].values[some]
        plots.points(axes[0], t[some], seen, marker=marker, label=name[1], **look)
    axes[0].axhline(0, color=plots.RULE_COLOURS["BP"], lw=2.4, label="BP: stays at zero")
    axes[0].axhline(1, color="0.25", lw=1.2, ls=":")
    axes[0].set(ylim=(-0.05, 1.12), title=r"length $\|\beta\|/\|\beta^*\|$")
    plots.legend(axes[0], loc="center right", fontsize=9)
    for c, colour, marker in zip(paths["c"].values, plots.SHADES, "os^D"):
        one = paths.sel(c=c).isel(seed=0)
        flow, seen = one["loss_flow"].values, one["loss"].values
        plots.theory_line(axes[1], t, flow, color=colour, label=None, linewidth=1.4)
        some = slice(0, None, 9)
        plots.points(axes[1], t[some], seen[some], color=colour, marker=marker, label=f"$c={c:g}$")
        turn = int(np.argmax(one["readout_flow"].values > 0))
        if c:
            look = {"color": colour, "markeredgecolor": "black", "zorder": 6, "label": None}
            plots.paper_value(axes[1], flow[turn], x=t[turn], **look)
    axes[1].plot([], [], "*", color="0.6", ms=12, mec="black", label="turn, by the law")
    axes[1].axhline(1, color="0.25", lw=1.0, ls=":")
    axes[1].set(xlim=(0, 1.5), title="loss / initial loss")
    plots.legend(axes[1], loc="upper right", fontsize=9)
    for ax in axes:
        ax.set_xlabel(r"time $t=\eta\,\times$ steps")
    plots.letters(axes)
    return fig


# --- when alignment is certain -------------------------------------------------------------------

STARTS = {
    "dominant": (plots.SHADES[0], "-"),
    "random": (plots.SHADES[2], "--"),
    "small random": (plots.SHADES[4], ":"),
}


def certain(data: Any) -> Any:
    """The least aligned neuron from three starts, and what a start along the feedback buys."""
    fig, axes = plots.figure(1, 2, height=4.0)
    _least(axes[0], data["starts"])
    _doses(axes[1], data["doses"], data["starts"])
    plots.letters(axes)
    return fig


def _least(ax: Any, table: Any) -> None:
    t = table["t"].values
    for start, (colour, line) in STARTS.items():
        seen = table["smallest"].sel(start=start).values
        plots.band(ax, t, seen, color=colour, linestyle=line, label=f"{start} start")
    floor = table["floor"].sel(start="dominant").mean("seed").values
    plots.theory_line(ax, t, floor, linestyle=(0, (1, 1)), linewidth=1.4, label="floor by the law")
    low, high = float(table["smallest"].min()), float(table["smallest"].max())
    ax.axhspan(3 * low, 0, color="0.92", lw=0, zorder=0)
    ax.axhline(0, color="0.3", lw=1.0)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_yticks([-1, -0.1, 0, 0.1, 1], ["$-1$", "$-0.1$", "0", "0.1", "1"])
    ax.set(
        xlabel=r"time $t=\eta\,\times$ steps",
        xlim=(0, t[-1]),
        ylim=(1.6 * low, 40 * high),
        title="least aligned neuron",
    )
    ax.minorticks_off()
    plots.legend(ax, loc="upper right", fontsize=9, labelspacing=0.25)


def _doses(ax: Any, table: Any, starts: Any) -> None:
    """Share of misaligned neurons and least gradient cosine; the random start at the right."""
    factor = table["factor"].values
    beside = factor.max() + 0.3 * np.ptp(factor)
    quantities = (
        ("ever", plots.SHADES[0], "o", "neurons ever misaligned"),
        ("gradient", plots.SHADES[3], "D", "least cosine with gradient"),
    )
    for key, colour, marker, name in quantities:
        mean, bar = _interval(table[key].transpose("seed", "factor").values)
        ax.plot(factor, mean, color=colour, lw=1.1, zorder=2)
        plots.points(ax, factor, mean, error=bar, color=colour, marker=marker, label=name)
        random = starts[key].sel(start="random")
        random = random.min("t") if "t" in random.dims else random
        mean, bar = _interval(random.values[:, None])
        plots.points(ax, [beside], mean, error=bar, color=colour, marker=marker, label=name)
    ax.axvspan(1, factor.max() + 0.12 * np.ptp(factor), color="0.9", lw=0, zorder=0)
    ax.axhline(0, color="0.3", lw=1.0)
    ticks = [float(c) for c in (-1, 0, 1) if factor.min() <= c <= factor.max()]
    ax.set_xticks([*ticks, beside], [*(f"{c:g}" for c in ticks), "random"])
    ax.set(
        xlabel="factor $c$ of the start",
        xlim=(factor.min() - 0.1, beside + 0.25),
        ylim=(-0.6, 1.75),
        title="starts along the feedback",
    )
    plots.legend(ax, loc="upper right", fontsize=9, labelspacing=0.25)


def law_and_width(data: Any) -> Any:
    """Alignment of each layer against the law; gains of inner product and cosine by width."""
    fig, axes = plots.figure(1, 2, height=3.5)
    table, ax = data["starts"].sel(start="random").isel(seed=0), axes[0]
    t = table["t"].values
    for k, (layer, marker) in enumerate(zip(table["layer"].values, "os^")):
        colour, some = plots.SHADES[2 * k], slice(1 + k, None, 5)
        one = table.sel(layer=layer)
        name = "law" if k == 0 else None
        plots.theory_line(ax, t, one["flow"], color=colour, linewidth=1.3, label=name)
        seen = one["aligned"].values[some]
        plots.points(ax, t[some], seen, color=colour, marker=marker, label=f"$W_{layer}$")
    ax.axhline(0, color="0.3", lw=1.0)
    ax.set(xlabel=r"time $t=\eta\,\times$ steps", title=r"alignment $\langle B_l,W_l\rangle$")
    low, high = ax.get_ylim()
    ax.set(xlim=(0, t[-1]), ylim=(low, high + 0.45 * (high - low)))
    plots.legend(ax, loc="upper left", fontsize=9, ncols=2)
    _widths(axes[1], data["widths"])
    plots.letters(axes)
    return fig


def _widths(ax: Any, table: Any) -> None:
    p = table["width"].values
    quantities = (
        ("inner", "norm", plots.SHADES[0], "o", "inner product", "law"),
        ("cosine", "predicted", plots.SHADES[3], "D", "cosine", "its estimate"),
    )
    for key, theory, colour, marker, name, line in quantities:
        mean, bar = _interval(table[key].transpose("seed", "width").values)
        plots.points(ax, p, mean, error=bar, color=colour, marker=marker, label=name)
        plots.theory_line(ax, p, table[theory].mean("seed"), color=colour, label=line)
    ax.set(xscale="log", yscale="log", xlabel="hidden units $p$", title="gain over training")
    ax.set_xticks(p, [str(int(w)) for w in p])
    ax.minorticks_off()
    ax.set_ylim(top=60 * ax.get_ylim()[1])
    plots.legend(ax, loc="upper right", fontsize=9, ncols=2)
