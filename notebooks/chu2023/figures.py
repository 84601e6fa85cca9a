"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabook import plots
from fabook.theory import chu2023

WALKERS: dict[str, dict[str, Any]] = {
    "BP": plots.rule_style("BP") | {"linestyle": "-"},
    "FA": plots.rule_style("FA") | {"linestyle": "-"},
    "FA, redrawn": plots.rule_style("FA") | {"linestyle": (0, (1.2, 1.2)), "marker": "s"},
}
NAMES = {"BP": "BP", "FA": "FA, fixed feedback", "FA, redrawn": "FA, feedback redrawn"}


def random_walk(data: Any) -> Any:
    """Persistence at both batch sizes, alignment, and test accuracy."""
    walks = data["walks"]
    fig, axes = plots.figure(2, 2, height=2.6)
    panels = [("whole set", axes[0, 0]), ("small batches", axes[0, 1])]
    step = walks.step.values
    for batch, ax in panels:
        for rule, look in WALKERS.items():
            runs = walks.persistence.sel(batch=batch, rule=rule).values
            plots.band(
                ax,
                step,
                runs,
                kind="95%",
                color=look["color"],
                linestyle=look["linestyle"],
                label=NAMES[rule],
            )
        for line in (np.ones(len(step)), step):
            plots.theory_line(ax, step, line, color="0.35", linestyle="--", linewidth=1.2)
        ax.text(step[-1], 0.93, "random walk", ha="right", va="top", fontsize=9)
        ax.text(5, 13, "march", ha="right", fontsize=9)
        ax.set(xscale="log", yscale="log", ylim=(0.5, 1200), xlabel="step", title=batch)
    axes[0, 0].set_ylabel("persistence $R^2/P$")
    for rule, look in WALKERS.items():
        runs = walks.cosine.sel(batch="whole set", rule=rule).values
        if rule != "BP":  # the gradient's cosine with itself
            plots.band(
                axes[1, 0], step, runs, kind="95%", color=look["color"], linestyle=look["linestyle"]
            )
    axes[1, 0].axhline(0, color="0.6", lw=0.8)
    axes[1, 0].set(
        xscale="log",
        xlabel="step",
        ylabel="cosine with the gradient",
        title="hidden gradient alignment",
        ylim=(-0.2, 1),
    )
    _accuracies(axes[1, 1], walks)
    plots.letters(axes)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        handles=[h for h in handles if h.get_label() in NAMES.values()],
        ncols=3,
        loc="outside upper center",
        frameon=False,
        fontsize=10,
    )
    return fig


def _accuracies(ax: Any, walks: Any) -> None:
    spread = np.linspace(-0.06, 0.06, walks.sizes["seed"])
    for r, (rule, look) in enumerate(WALKERS.items()):
        for batch, shift, fill in (("whole set", -0.17, "white"), ("small batches", 0.17, None)):
            values = 100 * walks.accuracy.sel(batch=batch, rule=rule).values
            plots.points(
                ax,
                r + shift + spread,
                values,
                color=look["color"],
                label=None,
                markerfacecolor=fill or look["color"],
                markersize=4,
            )
    ax.set_xticks(range(3), ["BP", "FA, fixed", "FA, redrawn"])
    ax.set(ylabel="test accuracy (%)", title="accuracy at the end", xlim=(-0.6, 2.6))


STARTS: dict[str, tuple[str, str, str]] = {  # kind: colour, marker, name
    "BP": (plots.RULE_COLOURS["BP"], "s", "BP"),
    "random": (plots.RULE_COLOURS["FA"], "o", "FA, random feedback"),
    "aligned": ("#B5651D", "^", "FA, feedback = first weights"),
    "opposed": ("#2A8A8C", "D", "FA, feedback = −first weights"),
}
TAGS: dict[str, tuple[str, tuple[int, int], str]] = {  # start: words, shift in points, side
    "FA": ("ordinary", (0, 7), "center"),
    "FA, weights × 3": ("× 3", (-4, -15), "center"),
    "FA, weights × 10": ("× 10", (0, -15), "center"),
    "B = W, saturated": ("saturated", (-8, -3), "right"),
    "BP, saturated": ("saturated", (4, -15), "right"),
    "B = W, vanishing": ("× 0.01", (-8, 8), "center"),
}


def performance(data: Any) -> Any:
    """Accuracy against alignment, and the hidden layers' share of the descent."""
    fig, (left, right) = plots.figure(1, 2, height=3.6)
    _starts(left, data["starts"])
    _shares(right, data["descent"], data["starts"].kind)
    plots.letters((left, right))
    plots.legend_above(left, ncols=2, fontsize=9.5)
    return fig


def _starts(ax: Any, table: Any) -> None:
    for start, kind in zip(table.start.values, table.kind.values):
        colour, marker, name = STARTS[str(kind)]
        one = table.sel(start=start)
        look = {"color": colour, "marker": marker, "label": name, "markersize": 4.5}
        plots.points(ax, one.alignment, 100 * one.test, **look)
        if str(start) in TAGS:
            words, shift, side = TAGS[str(start)]
            middle = (float(one.alignment.mean()), float(100 * one.test.mean()))
            look = {"textcoords": "offset points", "ha": side, "fontsize": 9, "color": colour}
            ax.annotate(words, middle, xytext=shift, **look)
    ax.set(
        xlabel="gradient alignment of hidden layers",
        ylabel="test accuracy (%)",
        xlim=(float(table.alignment.min()) - 0.1, 1.06),
        ylim=(100 * float(table.test.min()) - 8, 106),
        title="alignment and performance",
    )


def _shares(ax: Any, descent: Any, kinds: Any) -> None:
    at = np.maximum(descent.step.values, 0.7)
    for start, style in (("BP", "-"), ("FA", "-"), ("FA, weights × 3", ":"), ("B = −W", "-")):
        colour, one = STARTS[str(kinds.sel(start=start).values)][0], descent.sel(start=start)
        plots.band(ax, at, one.share.values, kind="95%", color=colour, linestyle=style)
        mean = one.share.mean("seed").values
        first = int(np.argmax(one.loss.mean("seed").values <= float(descent.loss_reached)))
        plots.points(ax, at[first], mean[first], color=colour, label=None)
        ax.annotate(
            start.replace("FA, weights ", ""),
            (at[-1], mean[-1]),
            xytext=(4, {"FA, weights × 3": 1, "B = −W": -11}.get(start, -3)),
            textcoords="offset points",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(
        xscale="log",
        xlabel="step",
        ylabel="hidden share of the descent",
        ylim=(min(-0.2, float(descent.share.min()) - 0.05), 1.0),
        title="who did the work",
    )


STABLE, UNSTABLE = "#2A7F8C", "#B5651D"  # teal and brown, the colours of no rule


def threshold(data: Any) -> Any:
    """Spectra at two cosines, the share of growing directions by cosine, and by width."""
    fig, axes = plots.figure(2, 2, height=2.7)
    _spectra(axes[0], data["spectra"])
    _dial(axes[1, 0], data["dial"], data["ends"])
    _width(axes[1, 1], data["width"], int(data["dial"]["images"]))
    plots.letters(axes)
    return fig


def _spectra(axes: Any, spectra: Any) -> None:
    for ax, c in zip(axes, spectra.cosine.values):
        one = spectra.sel(cosine=c)
        largest, grows = float(one.largest), one.grows.values.astype(bool)
        real, imag = one["real"].values / largest, one["imag"].values / largest
        ax.axvspan(-1, 0, color=UNSTABLE, alpha=0.1, lw=0)
        ax.plot(real[~grows], imag[~grows], "^", ms=4, mfc="none", mec=STABLE, mew=0.9, alpha=0.8)
        ax.plot(real[grows], imag[grows], "o", ms=4, mfc="none", mec=UNSTABLE, mew=1.0)
        ax.axvline(0, color="0.25", lw=1.1)
        ax.set(xlim=(-0.2, 0.34), ylim=(-0.2, 0.2), xlabel="real part", title=f"cosine $c$ = {c:g}")
        ax.text(
            0.03,
            0.94,
            f"{100 * grows.mean():.1f} % grow",
            transform=ax.transAxes,
            color=UNSTABLE if grows.any() else STABLE,
            va="top",
            fontsize=10,
        )
    axes[0].set_ylabel("imaginary part")


def _dial(ax: Any, dial: Any, ends: Any) -> None:
    at = dial.cosine.values
    plots.band(ax, at, dial.climbing.values, kind="95%", color="0.45", ls="--", label="climb")
    plots.band(ax, at, dial.share.values, kind="95%", color=UNSTABLE, ls="-", label="grow")
    fa = plots.RULE_COLOURS["FA"]
    ax.plot(ends.cosine, ends.share, "*", ms=9, color=fa, zorder=6, label="FA at rest")
    ax.plot(ends.cosine, ends.same_cosine, "x", ms=6, color="black", zorder=6, label="same $c$, BP")
    ax.set(
        xlabel="weight alignment $c$ of the feedback",
        ylabel="share of directions",
        xlim=(-1.02, 1.02),
        ylim=(-0.03, 0.95),
        title="alignment",
    )
    plots.legend(ax, loc="upper right", fontsize=9, ncols=2, columnspacing=0.8)
    inset = ax.inset_axes([0.13, 0.12, 0.27, 0.26])  # the points lie close together
    inset.plot(ends.cosine, ends.share, "*", ms=8, color=fa, clip_on=False)
    inset.plot(ends.cosine, ends.same_cosine, "x", ms=5, color="black", clip_on=False)
    middle, top = float(ends.cosine.mean()), max(float(ends.same_cosine.max()), 0.01)
    inset.set(
        xlim=(middle - 0.12, middle + 0.12),
        ylim=(-0.05 * top, 1.15 * top),
        xticks=[round(middle - 0.1, 1), round(middle - 0.1, 1) + 0.1],
        yticks=[0, round(top, 2)],
    )
    inset.tick_params(labelsize=9, length=2, pad=2)


def _width(ax: Any, width: Any, images: int) -> None:
    means = width["share"].mean("draw").values
    at = width.width.values
    fine = np.linspace(at[0] - 6, at[-1] + 4, 300)
    estimate = np.maximum(0, 1 - (fine + 1) / images) / 2
    plots.theory_line(ax, fine, estimate, label="counting, from below")
    for k, row in enumerate(means):
        shift = 1.6 * (k / max(1, len(means) - 1) - 0.5)
        plots.points(
            ax, at + shift, row, color=UNSTABLE, markersize=4, label="one seed" if k == 0 else None
        )
    ax.set(xlabel="hidden units $H$", ylim=(-0.01, 0.42), title="width, unrelated feedback")
    plots.legend(ax, loc="upper right", fontsize=9)


SWITCHES: dict[str, dict[str, Any]] = {  # the colour is that of the rule after the switch
    "BP → FA": {"color": plots.RULE_COLOURS["FA"], "ls": "-"},
    "BP → DFA": {"color": plots.RULE_COLOURS["DFA"], "ls": "-."},
    "FA → BP": {"color": plots.RULE_COLOURS["BP"], "ls": "-"},
    "DFA → BP": {"color": plots.RULE_COLOURS["BP"], "ls": "-."},
    "BP → own weights": {"color": "0.6", "ls": (0, (4, 1.5))},
}
AWAY = ["BP → FA", "BP → DFA"]


def _epochs(table: Any) -> np.ndarray:
    return table.step.values / float(table.per_epoch)


def _seeds(ax: Any, at: np.ndarray, runs: np.ndarray, label: str | None, **look: Any) -> None:
    """Every seed as a thin line, their mean as a thick one."""
    ax.plot(at, runs.T, **(look | {"ls": "-", "lw": 0.8, "alpha": 0.35, "zorder": 2}))
    ax.plot(at, runs.mean(0), label=label, **({"lw": 2.0, "zorder": 4} | look))


def switching(data: Any) -> Any:
    """Loss after a switch, its changes against the alignment, accuracy, the climb by width."""
    fig, ((loss, sign), (accuracy, width)) = plots.figure(2, 2, height=2.75)
    table = data["narrow"]
    at = _epochs(table)
    centre = np.concatenate([at[:1], (at[1:] + at[:-1]) / 2])  # losses are means over windows
    for name, look in SWITCHES.items():
        one = table.sel(switch=name)
        words = "BP → FA, feedback = weights" if name == "BP → own weights" else name
        loss.plot(
            centre, one.loss.values.T, color=look["color"], lw=0.8, alpha=0.35, label="_nolegend_"
        )
        mean = np.exp(np.log(one.loss.values).mean(0))
        loss.plot(centre, mean, label=words, lw=2.0, zorder=5 if "own" in name else 4, **look)
        _seeds(accuracy, at, 100 * one.test.values, None, **look)
    loss.set(yscale="log", ylabel="training loss", title="loss")
    accuracy.set(ylabel="test accuracy (%)", title="accuracy")
    for ax in (loss, accuracy):
        ax.set_xlabel("epochs after the switch")
    _signs(sign, table)
    _climbs(width, data["widths"])
    plots.letters((loss, sign, accuracy, width))
    plots.legend_above(loss, ncols=3)
    return fig


def _signs(ax: Any, table: Any) -> None:
    """Change of the loss from look to look against the alignment in between, every run."""
    for name, marker in zip(AWAY, "ov"):
        one = table.sel(switch=name)
        change = np.diff(np.log(one.loss.values), axis=1)
        cosine = (one.network.values[:, 1:] + one.network.values[:, :-1]) / 2
        clear = np.abs(change) > np.log(1.1)
        for chosen, look in (
            (~clear, {"color": "0.8", "zorder": 2}),
            (clear, {"color": SWITCHES[name]["color"], "zorder": 4}),
        ):
            ax.plot(cosine[chosen], change[chosen], marker, mfc="none", ms=4, **look)
    runs = table.sel(switch=AWAY)
    change = np.log(runs.loss).diff("step")
    left, right = float(runs.network.min()) - 0.05, float(runs.network.max()) + 0.05
    low, high = float(change.min()) - 0.1, float(change.max()) + 0.1
    ax.set(xlim=(left, right), ylim=(low, high))
    ax.fill_between([left, 0], 0, high, color=UNSTABLE, alpha=0.12, lw=0)
    ax.fill_between([0, right], low, 0, color=STABLE, alpha=0.08, lw=0)
    ax.axhline(0, color="0.4", lw=0.9)
    ax.axvline(0, color="0.4", lw=0.9)
    for word, x, y, side, up, colour in (
        ("rises", 0.03, 0.97, "left", "top", UNSTABLE),
        ("falls", 0.97, 0.03, "right", "bottom", STABLE),
    ):
        ax.text(x, y, word, transform=ax.transAxes, ha=side, va=up, color=colour, fontsize=10)
    ax.set(xlabel="cosine of network and gradient", ylabel="change of ln loss", title="alignment")


def _climbs(ax: Any, widths: Any) -> None:
    places = np.arange(widths.sizes["width"])
    spread = np.linspace(-0.05, 0.05, widths.sizes["seed"])
    for name, shift, marker in zip(AWAY, (-0.13, 0.13), "ov"):
        colour = SWITCHES[name]["color"]
        for place, values in zip(places, widths.peak.sel(switch=name).values):
            plots.points(
                ax,
                place + shift + spread,
                values,
                color=colour,
                label=None,
                marker=marker,
                markersize=4.5,
            )
    ax.axhline(1, color="0.4", lw=0.9)
    ax.set_xticks(places, [str(int(w)) for w in widths.width.values])
    ax.set(
        yscale="log",
        xlabel="units in each hidden layer",
        ylabel="highest / initial loss",
        title="width",
        xlim=(-0.5, len(places) - 0.5),
    )
    top = max(2.0, 1.3 * float(widths.peak.max()))
    ticks = [t for t in (1, 2, 5, 10, 20, 50) if t <= top]
    ax.set_ylim(0.85, top)
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()


def alignments(data: Any) -> Any:
    """Cosines with the gradient after a switch away from BP: the network, and hidden layers."""
    fig, axes = plots.figure(1, 2, height=2.9, sharey=True)
    table = data["narrow"]
    for ax, part, title in zip(axes, ("network", "hidden"), ("whole network", "hidden layers")):
        for name in AWAY:
            values = table[part].sel(switch=name).values
            _seeds(ax, _epochs(table), values, name, **SWITCHES[name])
        ax.axhline(0, color="0.4", lw=0.9)
        ax.set(xlabel="epochs after the switch", title=title)
    axes[0].set_ylabel("cosine with the gradient")
    plots.letters(axes)
    plots.legend_above(axes[0], ncols=2)
    return fig


ALIGNED, MISALIGNED = STABLE, UNSTABLE
SIDE = 3.0  # half the width of the plane that is drawn


def flow(data: Any) -> Any:
    """The chain: invariant parabolas coloured by the cosine; exponents and cosines by theory."""
    fig, axes = plots.figure(2, 2, height=2.35, width_ratios=[1.55, 1])
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, 0]:
        ax.remove()
    with plots.style():
        plane = fig.add_subplot(grid[:, 0])
    _plane(plane, data["ends"])
    _exponents(axes[:, 1], data["chain"])
    plots.letters((plane, *axes[:, 1]))
    return fig


def _plane(ax: Any, ends: Any) -> None:
    from matplotlib import patheffects

    w = np.linspace(-SIDE, SIDE, 601)
    ax.fill_between(w, -SIDE, np.maximum(-(w**2), -SIDE), color=MISALIGNED, alpha=0.07, lw=0)
    _flow(ax, w)
    ax.plot(w, -(w**2), color="0.25", lw=1.2, ls=":", zorder=3)
    halo = [patheffects.withStroke(linewidth=6, foreground="white")]
    for low, high, colour, style in (
        (1 / SIDE, SIDE, ALIGNED, "-"),
        (-SIDE, -1, ALIGNED, "-"),
        (-1, -1 / SIDE, MISALIGNED, "--"),
    ):
        h = np.linspace(low, high, 200)
        ax.plot(h, 1 / h, color=colour, lw=3.2, ls=style, zorder=5, path_effects=halo)
    ax.plot(ends.w1, ends.w2, "o", ms=3.8, mfc="white", mec="#123F47", mew=0.8, zorder=6)
    ax.plot([-1], [-1], "o", ms=8, mfc="black", mec="white", mew=1.5, zorder=7)
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.88}
    for place, words, colour in (
        ((1.1, 1.6), "stable", ALIGNED),
        ((-2.75, -1.0), "stable", ALIGNED),
        ((-0.2, -1.8), "unstable", MISALIGNED),
        ((-1.9, -1.55), "edge", "black"),
    ):
        ax.text(*place, words, color=colour, fontweight="bold", fontsize=10, zorder=8, bbox=box)
    ax.text(1.2, -2.8, "alignment = 0", fontsize=9, color="0.2", zorder=8, bbox=box)
    ax.set(
        xlim=(-SIDE, SIDE),
        ylim=(-SIDE, SIDE),
        aspect="equal",
        xlabel="$w_1$ (first weight)",
        ylabel="$w_2$ (second weight)",
        title="aligned is stable",
    )
    ax.grid(False)


def _flow(ax: Any, w: Any) -> None:
    """Where gradient flow with feedback goes: parabolas, coloured by alignment, with arrows."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    tint = LinearSegmentedColormap.from_list("", [MISALIGNED, "#EBC9A6", "#A9D3D8", ALIGNED])
    for c in np.arange(-7.5, 3.01, 0.3):
        v = c + w**2 / 2
        p = np.stack([w, np.where(np.abs(v) <= SIDE, v, np.nan)], 1)
        middle = (p[1:] + p[:-1]) / 2
        lines = LineCollection(np.stack([p[:-1], p[1:]], 1), cmap=tint, lw=1.2, alpha=0.85)
        lines.set_array(chu2023.chain_alignment(*middle.T))
        lines.set_clim(-1, 1)
        ax.add_collection(lines)
        for a in (-2.6, -1.9, -1.35, -0.65, -0.12, 0.45, 1.1, 1.7, 2.4):
            at = c + a**2 / 2
            if abs(at) > 0.95 * SIDE or abs(a * at - 1) < 0.15 or round(c / 0.3) % 3:
                continue
            along = np.sign(chu2023.chain_velocity(a, at)[0])
            ax.annotate(
                "",
                (a + 0.06 * along, at + 0.06 * along * a),
                (a, at),
                arrowprops={
                    "arrowstyle": "-|>",
                    "lw": 0,
                    "mutation_scale": 12,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "color": tint((1 + chu2023.chain_alignment(a, at)) / 2),
                },
            )


def _exponents(axes: Any, chain: Any) -> None:
    for sign in (-1, 1):
        f = sign * np.geomspace(0.22, 2.15, 300)
        plots.theory_line(axes[0], f, 1 / f - f**2, label=None)
    looks = zip(range(chain.sizes["chain"]), "os^", plots.SHADES[::2])
    for i, marker, colour in looks:
        one = chain.isel(chain=i)
        y, b = float(one.y), float(one.b)
        for sign in (-1, 1):
            f = sign * np.geomspace(0.22, 2.15, 300)
            w1 = f * chu2023.chain_edge(y=y, b=b)
            cosine = chu2023.chain_alignment(w1, y / w1, b=b)
            plots.theory_line(axes[1], f, cosine, color=colour, linewidth=1.3, label=None)
        look = {"marker": marker, "color": colour, "markersize": 4.5}
        scaled = one.exponent / abs(b * y) ** (2 / 3)
        plots.points(axes[0], chain.factor, scaled, label=None, **look)
        plots.points(axes[1], chain.factor, one.cosine, label=f"{y:g}, {b:g}", **look)
    for ax in axes:
        ax.axhline(0, color="0.5", lw=0.8)
        ax.axvspan(0, 1, color=MISALIGNED, alpha=0.13, lw=0)
    axes[0].set(ylim=(-5.5, 5.5), ylabel="exponent", title="growth of an error")
    axes[1].set(
        ylim=(-1.1, 1.1), ylabel="cosine", title="alignment", xlabel="$w_1$ in units of the edge"
    )
    plots.legend(
        axes[1],
        loc="lower left",
        fontsize=9,
        labelspacing=0.15,
        handletextpad=0.1,
        title="$y$, $b$",
        title_fontsize=9,
    )


def escape(data: Any) -> Any:
    """Loss and hidden alignment on the way from BP's minimum to FA's, and both spectra."""
    fig, (loss, cosine, spectra) = plots.figure(1, 3, height=3.0)
    runs = data["escape"]
    step = np.maximum(runs.step.values, 0.7)
    linear = np.where(runs.linear.values < 0.3, runs.linear.values, np.nan)
    fa = plots.RULE_COLOURS["FA"]
    for i in range(runs.sizes["seed"]):
        words = ("FA", "predicted", "$B=W$") if i == 0 else (None, None, None)
        loss.plot(step, runs.loss[i], color=fa, lw=1.2, alpha=0.6, label=words[0])
        loss.plot(step, runs.transposed[i], color="0.65", lw=1.2, label=words[2])
        plots.theory_line(loss, step, linear[i], linestyle="--", linewidth=0.9, label=words[1])
        cosine.plot(step, runs.cosine[i], color=fa, lw=1.2, alpha=0.6)
    loss.set(xscale="log", yscale="log", ylim=(3e-11, 300), ylabel="loss", title="leaving")
    cosine.axhspan(-1, 0, color=MISALIGNED, alpha=0.1, lw=0)
    cosine.axhline(0, color="0.5", lw=0.8)
    cosine.set(xscale="log", ylim=(-1, 1), ylabel="hidden alignment", title="alignment")
    for ax in (loss, cosine):
        ax.set(xlabel="updates of FA", xlim=(1, step[-1]))
    plots.legend(loss, loc="upper left", fontsize=9, labelspacing=0.2, ncols=1, borderpad=0.1)
    z = data["spectra"]
    for point, colour, marker in (
        ("minimum of BP", MISALIGNED, "o"),
        ("FA at rest", ALIGNED, "^"),
    ):
        one = z.sel(point=point)
        real, imag = one["real"].values, one["imag"].values
        most = np.hypot(real, imag).max()
        spectra.plot(
            real / most,
            imag / most,
            marker,
            color=colour,
            ms=3.5,
            mfc="none",
            mew=0.8,
            label=point,
            alpha=0.8,
        )
    spectra.axvspan(-0.6, 0, color=MISALIGNED, alpha=0.1, lw=0)
    spectra.axvline(0, color="0.25", lw=1.1)
    spectra.set(
        xlim=(-0.3, 0.45),
        ylim=(-0.3, 0.48),
        xlabel="real part",
        ylabel="imaginary part",
        title="eigenvalues of $M$",
    )
    plots.legend(spectra, loc="upper left", fontsize=9, handletextpad=0.1, borderpad=0.1)
    plots.letters((loss, cosine, spectra))
    return fig


def limits(data: Any) -> Any:
    """A wide network that stays unaligned; norms of update and gradient in a bottleneck."""
    fig, (wide, norms) = plots.figure(1, 2, height=3.0)
    runs = data["wide"]
    fa = plots.RULE_COLOURS["FA"]
    falls = (runs.loss / runs.loss.isel(step=0)).values
    plots.band(
        wide, runs.step, falls, kind="95%", color=plots.SHADES[2], linestyle="-", label="loss"
    )
    plots.band(
        wide, runs.step, runs.cosine.values, kind="95%", color=fa, ls="--", label="hidden cosine"
    )
    wide.axhline(0, color="0.5", lw=0.8)
    wide.set(
        xlabel="updates of FA",
        ylabel="loss (relative), cosine",
        ylim=(-0.15, 1.3),
        title=f"width {int(runs.width)}",
    )
    plots.legend(wide, loc="upper right", fontsize=9, ncols=2)
    for table, prefix, colour, words in (
        ("rest", "FA_", MISALIGNED, "bottleneck"),
        ("escape", "", ALIGNED, "reaches zero error"),
    ):
        one = data[table]
        for i in range(min(3, one.sizes["seed"])):
            for name, style in (("gradient", "--"), ("update", "-")):
                norms.plot(
                    np.maximum(one.step.values, 0.7),
                    one[prefix + name][i],
                    color=colour,
                    ls=style,
                    lw=1.2,
                    alpha=1 - 0.25 * i,
                    label=f"{name}, {words}" if i == 0 else None,
                )
    norms.set(
        xscale="log",
        yscale="log",
        xlabel="updates of FA",
        ylabel="norm",
        ylim=(1e-10, 3e4),
        title="bottleneck",
    )
    plots.legend(norms, loc="upper left", fontsize=9, labelspacing=0.15, borderpad=0.1)
    plots.letters((wide, norms))
    return fig
