"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabook import plots

NAMES = {"linear": "linear", "relu": "ReLU", "tanh": "tanh"}
KINDS = {  # colours that no rule has
    "linear": ("#8C564B", "s"),
    "relu": ("#2A8A8C", "o"),
    "tanh": ("#3B2F6B", "^"),
}
GREY = "0.4"


def shades(count: int) -> list[Any]:
    """The book's sequential palette, light to dark: widths and penalties."""
    from matplotlib.colors import LinearSegmentedColormap

    between = LinearSegmentedColormap.from_list("", plots.SHADES[::-1])
    return [between(place) for place in np.linspace(0, 1, count)]


def interval(runs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds, the last axis, and half of its 95 % interval."""
    values = np.asarray(runs, dtype=float)
    low, high = plots.band_edges(values.T, kind="95%")
    return values.mean(-1), (high - low) / 2


def width_axis(ax: Any, widths: Any, *, every: int = 1) -> None:
    """A logarithmic axis with the widths that were run as ticks."""
    names = [f"{p}" if p < 10_000 else f"{p / 1000:g}k" for p in widths]
    ax.set(xscale="log", xlabel="hidden units $p$")
    ax.set_xticks(widths[::every], names[::every])
    ax.minorticks_off()


def middle_of(runs: Any) -> Any:
    """Geometric mean over seeds."""
    return np.exp(np.log(runs).mean("seed"))


# --- convergence ---------------------------------------------------------------------------------


def convergence(data: Any) -> Any:
    """Errors at several widths, single steps, kernels and movement against width."""
    fig, axes = plots.figure(2, 2, height=2.75)
    _errors(axes[0, 0], data["relu"])
    _shrinkage(axes[0, 1], data)
    one = data["relu_runs"]
    series = [
        (one.h_over_gamma, r"$\|H\|/\gamma$", "#B5651D", "s"),
        (one.g_off, r"$\|G-\bar G\|/\|\bar G\|$", "#2A8A8C", "o"),
    ]
    _powers(axes[1, 0], series)
    axes[1, 0].axhline(1, color=GREY, lw=1, ls=(0, (5, 2)), zorder=1)
    axes[1, 0].set(title="kernels", ylabel="at the start")
    series = [
        (one.largest, r"largest $|\beta_r-\beta_r(0)|$", "#B5651D", "s"),
        (one.typical, "root mean square", "#2A8A8C", "o"),
    ]
    _powers(axes[1, 1], series)
    law = np.sqrt(2 * np.log(one.width) / one.width)
    scale = float((one.largest.mean("seed") / law)[-1])
    plots.theory_line(
        axes[1, 1], one.width, scale * law, linewidth=1.3, label=r"$\propto\sqrt{\log p/p}$"
    )
    axes[1, 1].set(title="movement", ylabel="start to end")
    for ax in axes[1]:
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * 5)
        plots.legend(ax, loc="upper right", fontsize=9, ncols=1, labelspacing=0.2)
    plots.letters(axes)
    return fig


def _errors(ax: Any, table: Any) -> None:
    widths = [p for p in (200, 800, 3200, 12800) if p in table.width]
    for p, colour in zip(widths, shades(len(widths))):
        rows = table.relative.sel(width=p)
        if p == widths[-1]:
            edges = plots.band_edges(rows.values)
            ax.fill_between(table.step, *edges, color=colour, alpha=0.2, lw=0)
        ax.plot(table.step, middle_of(rows), color=colour, label=f"$p$ = {p}")
    prediction = middle_of(table.kernel[-1])
    plots.theory_line(ax, table.step, prediction, linewidth=1.2, label=r"kernel $\bar G$")
    bound = np.exp(-float(table.eta * table.gamma) * table.step / 4)
    ax.plot(table.step, bound, color=GREY, ls=(0, (5, 2)), lw=1.6, label="theorem")
    ax.set(yscale="log", xlabel="steps", ylabel="error / initial", title="ReLU, several widths")
    ax.set_ylim(bottom=1e-6)
    plots.legend(ax, loc="lower left", fontsize=9, labelspacing=0.2)


def _shrinkage(ax: Any, data: Any) -> None:
    for name, (colour, marker) in KINDS.items():
        if name not in data:
            continue
        table = data[name].sel(width=3200) if name == "relu" else data[name]
        time = table.step * float(table.eta * table.gamma)
        look = {"color": colour, "linewidth": 1.3, "label": None}
        plots.theory_line(ax, time, table.kernel_shrink.min("seed"), **look)
        dots = (table.step % (int(table.step[-1]) * 3 // 50) == 0).values
        values = table.shrink.min("seed").values
        plots.points(
            ax, time[dots], values[dots], color=colour, marker=marker, label=NAMES[name],
            markersize=4.5,
        )  # fmt: skip
    for level, text in ((1 / 4, "theorem, ReLU and tanh"), (1 / 2, "theorem, linear")):
        ax.axhline(level, color=GREY, ls=(0, (5, 2)), lw=1.6)
        at = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "top"}
        ax.text(0.03, level - 0.02, text, color="0.25", fontsize=9, **at)
    ax.axhline(0, color=GREY, lw=0.8, zorder=1)
    # A share below zero is a rise of the error, and has to be seen.
    ax.set_yscale("symlog", linthresh=1, linscale=1.6)
    ax.set(xlabel=r"time $\eta\gamma t$", xlim=(-0.3, 10), ylim=(-0.3, 9))
    ax.set(ylabel=r"share of a step / $\eta\gamma$", title="one step at a time")
    ax.set_yticks([-0.25, 0, 0.25, 0.5, 1, 2, 4], ["−0.25", "0", "0.25", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    plots.legend(ax, loc="upper right", fontsize=9, labelspacing=0.2)


def _powers(ax: Any, series: Any) -> None:
    """Means with 95 % intervals against width, and lines of slope -1/2 through the last."""
    for runs, label, colour, marker in series:
        mean, half = interval(runs)
        widths = runs.width.values
        half = np.minimum(half, 0.9 * mean)  # a bar that reaches zero has no end on this axis
        plots.points(ax, widths, mean, error=half, color=colour, marker=marker, label=label)
        guide = mean[-1] * np.sqrt(widths[-1] / widths)
        ax.plot(widths, guide, color=colour, lw=1, ls="--", zorder=1)
    ax.set(yscale="log")
    width_axis(ax, widths, every=1 if len(widths) < 4 else 2)


def read_out_alone(data: Any) -> Any:
    """FA beside the frozen first layer: two widths in time, all widths in steps needed."""
    fig, axes = plots.figure(1, 2, height=2.9)
    table, runs = data["relu"], data["relu_runs"]
    narrow = int(table.width[table.width <= 400][-1])
    for p, colour in zip((narrow, 3200), ("#B5651D", "#2A8A8C")):
        one = table.sel(width=p)
        axes[0].plot(one.step, middle_of(one.relative), color=colour, label=f"$p$ = {p}, FA")
        label = f"$p$ = {p}, frozen"
        axes[0].plot(one.step, middle_of(one.alone), color=colour, ls=(0, (3, 2)), label=label)
    axes[0].set(yscale="log", xlabel="steps", ylabel="error / initial", title="two widths")
    axes[0].set_ylim(bottom=1e-6)
    plots.legend(axes[0], loc="lower left", fontsize=9, labelspacing=0.2)
    widths = runs.width.values
    mean, half = interval(runs.pace)
    for values in runs.pace.transpose("seed", "width").values:
        axes[1].plot(widths * 1.06, values, ".", color="0.7", ms=5, zorder=2)
    plots.points(axes[1], widths, mean, error=half, color="#2A8A8C", label="mean")
    axes[1].axhline(1, color=GREY, lw=1.2, ls=(0, (5, 2)))
    axes[1].set(ylabel="steps of FA / of the read-out", title="to 1 % of the error")
    axes[1].set_ylim(bottom=0)
    width_axis(axes[1], widths, every=1 if len(widths) < 4 else 2)
    plots.letters(axes)
    return fig


def loss_curves(data: Any) -> Any:
    """The published loss curves beside ours, one panel for each kind of unit."""
    fig, axes = plots.figure(1, 3, height=3.5)
    stars = data["published"]
    for ax, (name, title) in zip(axes, NAMES.items()):
        table = data[f"loss_{name}"]
        for penalty, colour in zip(table.penalty.values, shades(table.sizes["penalty"])):
            runs = table.loss.sel(penalty=penalty)
            edges = plots.band_edges(runs.values)
            ax.fill_between(table.step, *edges, color=colour, alpha=0.2, lw=0)
            ax.plot(table.step, runs.mean("seed"), color=colour, label=f"λ = {penalty:g}")
            row = stars.loss.sel(curve=f"{name} {penalty:g}")
            for step, value in zip(stars.step.values, row.values):
                if step <= table.step[-1]:
                    plots.paper_value(
                        ax, value, x=step, color=colour, markeredgecolor="black",
                        markeredgewidth=0.6, markersize=9, label=None,
                    )  # fmt: skip
        visible = table.theory.where(table.theory > 3e-11)
        look = {"linewidth": 1.2, "linestyle": (0, (6, 2)), "label": "derived"}
        plots.theory_line(ax, table.step, visible, **look)
        star = {"marker": "*", "color": "white", "markeredgecolor": "black", "ls": "none"}
        ax.plot([], [], markersize=9, label="published", **star)
        if name == "relu":
            ax.axhspan(1e-13, 1.5e-8, color="0.92", lw=0, zorder=0)
            ax.set_ylim(bottom=1e-13)
            ax.text(0.5, 0.03, "rounding", transform=ax.transAxes, ha="center", fontsize=9)
        last = int(table.step[-1])
        ticks = [0, 2000, 4000] if last > 2000 else [0, last // 2, last]
        ax.set(yscale="log", xlabel="steps", title=title)
        ax.set_xticks(ticks, [f"{k}" for k in ticks])
        place = {"loc": "upper center", "bbox_to_anchor": (0.46, -0.2), "ncols": 1}
        plots.legend(ax, fontsize=9, labelspacing=0.2, **place)
    axes[0].set_ylabel("mean squared error")
    plots.letters(axes)
    return fig


# --- alignment of linear networks ----------------------------------------------------------------

LEVELS = {  # penalties: light to dark as in `shades`, a marker and a line for each
    0.0: ("o", "-"),
    0.2: ("s", "--"),
    0.3: ("^", "-."),
    0.5: ("D", (0, (4, 1, 1, 1))),
}


def linear(data: Any) -> Any:
    """Final alignment against width, the climb, and the schedule with a cut-off."""
    fig, axes = plots.figure(2, 2, height=3.0)
    colours = dict(zip(LEVELS, shades(len(LEVELS))))
    _final(axes[0, 0], data, colours)
    _climb(axes[0, 1], data, colours)
    table = data["cutoff"].isel(setting=0)
    looks = list(zip(shades(table.sizes["width"]), ("-", "--", "-.", ":")))
    for ax, name in zip(axes[1], ("cosine", "loss")):
        for p, (colour, line) in zip(table.width.values, looks):
            one = table.sel(width=p)
            at = one.steps / p**0.5
            ax.plot(at, one[name], color=colour, ls=line, label=f"$p$ = {p}")
        ax.axvline(50, color="0.3", lw=1.2, ls=":")
        ax.set(xlabel=r"steps / $\sqrt{p}$", xlim=(0, 200))
    axes[1, 0].set(ylabel=r"$\cos(b, \beta)$", ylim=(-0.08, 1.02), title="cut-off: aligned")
    axes[1, 1].set(ylabel="mean squared error", yscale="log", ylim=(1e-13, 2e3))
    axes[1, 1].set_title("and no error left")
    plots.legend(axes[1, 0], loc="lower right", fontsize=9, ncols=2, columnspacing=0.8)
    plots.letters(axes)
    return fig


def _final(ax: Any, data: Any, colours: Any) -> None:
    table, target = data["width"], data["published"]
    widths = table.width.values
    for penalty in table.penalty.values:
        (marker, line), colour = LEVELS[float(penalty)], colours[float(penalty)]
        one, theirs = table.sel(penalty=penalty), target.sel(penalty=penalty, width=widths)
        look = {"color": colour, "linestyle": line, "linewidth": 1.3, "label": None}
        plots.theory_line(ax, widths, one.theory, **look)
        low, high = plots.band_edges(one.cosine.values.T)
        ax.fill_between(widths, low, high, color=colour, alpha=0.2, lw=0)
        mean = one.cosine.mean("seed")
        plots.points(ax, widths, mean, color=colour, marker=marker, markersize=5, label=None)
        ax.errorbar(
            widths * 1.14, theirs.cosine, theirs.sd, color="0.25", marker="*", ms=7, ls="none",
            lw=1, zorder=5, label="published" if penalty == 0 else None,
        )  # fmt: skip
        height = 0.38 if penalty == 0 else float(mean[0]) - 0.03
        place = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        if penalty == 0:
            height = float(mean[0])
        ax.annotate(f"{penalty:g}", (widths[0] / 1.12, height), color="0.15", fontsize=9, **place)
    ax.text(0.02, 0.98, "λ", transform=ax.transAxes, fontsize=9.5, va="top")
    ax.set(ylim=(-0.08, 1.02), ylabel=r"$\cos(b, \beta)$", title="final alignment")
    width_axis(ax, widths, every=1 if len(widths) < 4 else 2)
    ax.set_xlim(widths[0] / 1.9, widths[-1] * 1.45)
    plots.legend(ax, loc="center left", bbox_to_anchor=(0.22, 0.42), fontsize=9)


def _climb(ax: Any, data: Any, colours: Any) -> None:
    table, climb, curve = data["width"], data["climb"], data["universal"]
    ax.axvspan(10, float(curve.least), color="0.5", alpha=0.12, lw=0)
    widths = [p for p in (200, 800, 3200, 12800) if p in table.width]
    for penalty in curve.penalty.values:
        line, colour = LEVELS[float(penalty)][1], colours[float(penalty)]
        one = curve.sel(penalty=penalty)
        plots.theory_line(ax, one.time, one.cosine, linewidth=1.2, linestyle=line, label=None)
        for p, marker in zip(widths, "osv^"):
            rise = climb.cosine.sel(penalty=penalty, width=p)
            ax.plot(climb.time, rise, color=colour, lw=1.1)
            cell = table.sel(penalty=penalty, width=p)
            ax.plot(
                float(cell.stop.mean()) / p**0.5, float(cell.cosine.mean()), marker, color=colour,
                mec="black", mew=0.6, ms=6, zorder=5,
            )  # fmt: skip
    for p, marker in zip(widths, "osv^"):
        ax.plot([], [], marker, color="0.8", mec="black", mew=0.6, ls="none", label=f"$p$ = {p}")
    ax.plot([], [], color="black", lw=1.2, label="theory")
    ax.set(xscale="log", xlim=(10, 4e5), ylim=(-0.08, 1.02), xlabel=r"steps / $\sqrt{p}$")
    ax.set_title("how far it would rise")
    ax.set_xticks([10, 1e2, 1e3, 1e4, 1e5])
    ax.minorticks_off()
    plots.legend(ax, loc="lower right", fontsize=9, labelspacing=0.2)


def laws(data: Any) -> Any:
    """The laws without a penalty, and the closed form with a constant one."""
    fig, axes = plots.figure(1, 3, height=2.9)
    ax, law = axes[0], data["law"]
    x = np.geomspace(1e-3, 0.2, 50)
    movement = np.sqrt(x / 2) / np.sqrt(1 + x / 2)
    plots.theory_line(ax, x, x, label="$n/p$", linewidth=1.3)
    plots.theory_line(ax, x, movement, linestyle="--", label="movement", linewidth=1.3)
    for samples, colour, marker in zip(law.samples.values, shades(law.sizes["samples"]), "os^"):
        one = law.sel(samples=samples)
        at = samples / one.width.values
        scales = {"cosine": at, "moved": np.sqrt(at / 2) / np.sqrt(1 + at / 2)}
        for name, fill in (("cosine", colour), ("moved", "white")):
            mean, half = interval(one[name])
            plots.points(
                ax, at, mean * scales[name], error=half * scales[name], color=colour,
                marker=marker, markerfacecolor=fill, markersize=5,
                label=f"$n$ = {samples}" if name == "cosine" else None,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="$n/p$", ylabel="cosine with $b$")
    ax.set(title="no penalty", ylim=(5e-4, 30))
    plots.legend(ax, loc="upper left", fontsize=9, labelspacing=0.1, ncols=1)
    form, line = data["form"], data["form_theory"]
    for ax, name in zip(axes[1:], ("cosine", "loss")):
        plots.theory_line(ax, line.time, line[name], label="closed form", linewidth=1.3)
        for p, colour, marker in zip(form.width.values, shades(form.sizes["width"]), "osD"):
            mean, half = interval(form[name].sel(width=p))
            look = {"color": colour, "marker": marker, "label": f"$p$ = {p}", "markersize": 5}
            plots.points(ax, form.time, mean, error=half, **look)
        ax.set(xscale="log", xlabel=r"steps / $\sqrt{p}$")
        ax.set_xticks([10, 100, 500], ["10", "100", "500"])
        ax.minorticks_off()
    axes[1].set(ylabel=r"$\cos(b, \beta)$", title="constant penalty", ylim=(0, 1.02))
    axes[2].set(ylabel="mean squared error", yscale="log", title="its loss")
    look = {"labelspacing": 0.2, "handlelength": 1.3, "borderpad": 0}
    plots.legend(axes[1], loc="lower right", fontsize=9, **look)
    plots.letters(axes)
    return fig


# --- alignment of ReLU, tanh and sigmoid networks ------------------------------------------------

STEPS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", (0, (4, 1, 1, 1))))  # by size of the penalty
UNITS = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
CUT = {"relu": ("#B5651D", "-"), "tanh": ("#3B2F6B", "--")}


def nonlinear(data: Any) -> Any:
    """Final alignment against width for three kinds of units, and the climb in time."""
    fig, axes = plots.figure(2, 2, height=3.1)
    for ax, unit in zip(axes.flat, data["width"].unit.values):
        _final_of_unit(ax, data, str(unit))
    _climb_of_units(axes[1, 1], data)
    for ax in axes[:, 1]:
        ax.set_ylabel("")
    axes[1, 1].set_ylabel(r"$\cos(b, \beta)$")
    plots.letters(axes)
    return fig


def _final_of_unit(ax: Any, data: Any, unit: str) -> None:
    table = data["width"].sel(unit=unit)
    widths, colours = table.width.values, shades(len(STEPS))
    known = data["published"]
    for level in table.level.values:
        (marker, line), colour = STEPS[level], colours[level]
        runs = table.cosine.sel(level=level)
        several = np.isfinite(runs.values).sum(1) > 1
        mean, low, high = (
            getattr(np, name)(runs.values, axis=1) for name in ("nanmean", "nanmin", "nanmax")
        )
        look = {"color": colour, "marker": marker, "markersize": 5, "label": None}
        ax.fill_between(widths[several], low[several], high[several], color=colour, alpha=0.2, lw=0)
        ax.plot(widths, mean, color=colour, ls=line, lw=1.2)
        filled = {"markerfacecolor": colour}
        plots.points(ax, widths[several], mean[several], **(look | filled))
        plots.points(ax, widths[~several], mean[~several], **look)
        if unit in known.unit:
            stars = known.sel(unit=unit, level=level)
            ax.errorbar(
                stars.width * 1.14, stars.cosine, stars.sd, color="0.25", marker="*", ms=7,
                ls="none", lw=1, zorder=5, label="published" if level == 0 else None,
            )  # fmt: skip
        place = {"xytext": (-5, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        text = f"{float(table.penalty.sel(level=level)):g}"
        ax.annotate(text, (widths[0] / 1.08, mean[0]), color="0.15", fontsize=9, **place)
    traces = data["law_trace"]
    law = float(traces.trace.sel(unit=unit)) if unit in traces.unit else np.inf
    if law / 0.3 < 12800:
        across = np.geomspace(max(widths[0], law / 0.3), 12800, 50)
        plots.theory_line(ax, across, law / across, linewidth=1.3, label="law, λ = 0")
    ax.text(0.02, 0.98, "λ", transform=ax.transAxes, fontsize=9.5, va="top")
    title = UNITS[unit] if unit in known.unit else f"{UNITS[unit]}: a prediction"
    ax.set(ylim=(-0.06, 1.19), ylabel=r"final $\cos(b, \beta)$", title=title)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ticks = [200, 800, 3200, 12800]
    ax.set(xscale="log", xlabel="hidden units $p$", xlim=(200 / 2.6, 12800 * 1.5))
    ax.set_xticks(ticks, ["200", "800", "3200", "12.8k"])
    ax.minorticks_off()
    plots.legend(ax, loc="upper right", fontsize=9, ncols=2, columnspacing=1)


def _climb_of_units(ax: Any, data: Any) -> None:
    climb = data["climb"].isel(level=-1)
    lines = dict(zip(UNITS, ("-", "--", ":")))
    widths = climb.width.values
    for p, colour in zip(widths, shades(len(widths))):
        for unit in climb.unit.values:
            ax.plot(
                climb.time, climb.cosine.sel(unit=unit, width=p), color=colour, lw=1.3,
                ls=lines[str(unit)],
            )  # fmt: skip
    for unit in climb.unit.values:
        ax.plot([], [], color="0.3", ls=lines[str(unit)], label=UNITS[str(unit)])
    for p, colour in list(zip(widths, shades(len(widths))))[:: max(1, len(widths) - 1)]:
        ax.plot([], [], color=colour, lw=2.5, label=f"$p$ = {p}")
    ax.set(xscale="log", xlabel=r"steps / $\sqrt{p}$", ylim=(-0.06, 1.19))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_title("the climb, largest λ")
    plots.legend(ax, loc="upper left", fontsize=9, ncols=2, labelspacing=0.2)


def nonlinear_cutoff(data: Any) -> Any:
    """Cosine and loss of ReLU and tanh networks whose penalty is switched off."""
    fig, axes = plots.figure(1, 2, height=3.0)
    table = data["cutoff"]
    widths = table.width.values
    for unit, (colour, line) in CUT.items():
        for p, alpha in zip(widths, np.linspace(1, 0.4, len(widths))[::-1]):
            one = table.sel(unit=unit, width=p)
            at = one.steps - float(one.cut)
            for ax, name in zip(axes, ("cosine", "loss")):
                ax.plot(at, one[name], color=colour, ls=line, alpha=alpha, lw=1.5)
        axes[0].plot([], [], color=colour, ls=line, label=UNITS[unit])
    for p, alpha in zip(widths, np.linspace(1, 0.4, len(widths))[::-1]):
        axes[0].plot([], [], color="0.2", alpha=alpha, lw=2.5, label=f"$p$ = {p}")
    for ax in axes:
        ax.axvline(0, color="0.3", lw=1.2, ls=":")
        ax.set(xlabel="steps after the cut", xlim=(-10_000, 6000))
        ax.set_xticks([-10_000, -5000, 0, 5000], ["−10,000", "−5,000", "0", "5,000"])
    axes[0].set(ylabel=r"$\cos(b, \beta)$", ylim=(-0.06, 1.02), title="aligned")
    axes[1].set(ylabel="mean squared error", yscale="log", title="and no error left")
    plots.legend_above(axes, ncols=5)
    plots.letters(axes)
    return fig


# --- MNIST ---------------------------------------------------------------------------------------

HIDDEN = {  # who trains the hidden layer -> rule whose colour and marker it has, and its name
    "FA": ("FA", "feedback alignment"),
    "BP": ("BP", "backpropagation"),
    "frozen": ("Shallow", "nobody: frozen"),
}


def mnist(data: Any) -> Any:
    """Alignment and accuracy in time, the gain of each setting, and the one against the other."""
    fig, axes = plots.figure(2, 2, height=3.0)
    for ax, name in zip(axes[0], ("alignment", "accuracy")):
        _in_time(ax, data, name)
    axes[0, 0].set(title="alignment", ylabel=r"cosine of $B^Te$ and $V^Te$")
    axes[0, 1].set(title="test accuracy", ylabel="test accuracy", ylim=(0, 1))
    plots.legend(axes[0, 0], loc="upper left", fontsize=9, labelspacing=0.2)
    _gains(axes[1, 0], data)
    _one_against_the_other(axes[1, 1], data)
    plots.letters(axes)
    return fig


def _fa_settings(data: Any) -> list[tuple[str, Any, Any, str]]:
    """The settings of FA with their colour, line and label; a shade for each penalty."""
    arms = [str(arm) for arm in data["curves"].arm.values if str(arm).startswith("FA ")]
    found, lines = [], iter(("-", "--", "-."))
    colours = iter(plots.SHADES[::-2] if len(arms) == 4 else plots.SHADES[::-4])
    for arm in arms:
        start = arm.split()[1]
        if start == "zero":
            found.append((arm, "#B5651D", (0, (1.2, 1.2)), "from zero"))
        else:
            found.append((arm, next(colours), next(lines), f"λ = {start}"))
    return found


def _in_time(ax: Any, data: Any, name: str) -> None:
    """A quantity of the settings of FA against updates, with the published points."""
    curves = data["curves"]
    at, control = curves.step.values, int(curves.control)
    stars = data.get(f"published_{name}")
    for arm, colour, line, label in _fa_settings(data):
        runs = curves[name].sel(arm=arm)
        early, late = (at > 0) & (at <= control), at >= control
        plots.band(ax, at[early], runs.values[:, early], color=colour, linestyle=line, label=label)
        if late.sum() > 1:  # one seed goes on
            ax.plot(at[late], runs.values[0, late], color=colour, ls=line, lw=1.3)
        penalty = arm.split()[1]
        if stars is None or penalty == "zero" or float(penalty) not in stars.penalty:
            continue
        row = stars["mean"].sel(penalty=float(penalty))
        look = {"color": colour, "markeredgecolor": "black", "markeredgewidth": 0.6}
        for step, value in zip(stars.step.values, row.values):
            plots.paper_value(ax, value, x=step, markersize=9, label=None, **look)
    if stars is not None:
        star = {"marker": "*", "color": "white", "markeredgecolor": "black", "ls": "none"}
        ax.plot([], [], markersize=9, label="published", **star)
    if at[-1] > control:
        ax.axvline(control, color=GREY, lw=1, ls=":")
    ax.set(xscale="log", xlabel="updates", xlim=(max(at[1], at[-1] / 1000), 1.3 * at[-1]))


def _at_control(data: Any, name: str) -> Any:
    """A quantity at the time of the controls, (arm, seed)."""
    return data["curves"][name].sel(step=int(data["curves"].control)).transpose("arm", "seed")


def _gains(ax: Any, data: Any) -> None:
    accuracy = 100 * _at_control(data, "accuracy")
    strongest = f"{float(data['curves'].penalised):g}"
    for place, (kind, (rule, _)) in enumerate(HIDDEN.items()):
        look = plots.rule_style(rule)
        base = accuracy.sel(arm=f"{kind} 0").values
        for shift, start, face in ((-0.17, strongest, look["color"]), (0.17, "zero", "white")):
            gain = accuracy.sel(arm=f"{kind} {start}").values - base
            mean, half = interval(gain)
            ax.plot(np.full(len(gain), place + shift + 0.1), gain, ".", color="0.6", ms=4)
            plots.points(
                ax, [place + shift], [mean], error=[half], color=look["color"],
                marker=look["marker"], markerfacecolor=face, markersize=6.5, label=None,
            )  # fmt: skip
    for face, label in (("0.3", f"penalty λ = {strongest}"), ("white", "from zero, no penalty")):
        ax.plot([], [], "o", color="0.3", markerfacecolor=face, ms=6.5, label=label)
    ax.axhline(0, color=GREY, lw=1)
    names = [name.replace(" ", "\n", 1) for _, name in HIDDEN.values()]
    ax.set_xticks(range(len(HIDDEN)), names, fontsize=9)
    ax.set(xlim=(-0.5, 2.5), title="who needs the alignment?", ylabel="gain in accuracy (points)")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.05 * high), 1.45 * high)
    plots.legend(ax, loc="upper right", fontsize=9, labelspacing=0.2)


def _one_against_the_other(ax: Any, data: Any) -> None:
    accuracy, alignment = (_at_control(data, name) for name in ("accuracy", "alignment"))
    marks = {"zero": "D", "0": "o"}
    for kind, (rule, label) in HIDDEN.items():
        look = plots.rule_style(rule)
        for arm in (str(a) for a in accuracy.arm.values if str(a).startswith(f"{kind} ")):
            start = arm.split()[1]
            across, up = alignment.sel(arm=arm).values, accuracy.sel(arm=arm).values
            (x, width), (y, height) = interval(across), interval(up)
            face = "white" if start == "zero" else look["color"]
            ax.errorbar(
                x, y, height, width, color=look["color"], marker=marks.get(start, "s"),
                markerfacecolor=face, ms=6.5, lw=1, zorder=4, ls="none",
                label=label if start == "0" else None,
            )  # fmt: skip
    for mark, face, label in (
        ("o", "0.3", "λ = 0"), ("s", "0.3", "λ > 0"), ("D", "white", "from zero"),
    ):  # fmt: skip
        ax.plot([], [], mark, color="0.3", markerfacecolor=face, ms=6.5, label=label)
    ax.set(xlabel="alignment", ylabel="test accuracy", title="accuracy against alignment")
    low, high = ax.get_ylim()
    ax.set(ylim=(low - 0.9 * (high - low), high + 0.05 * (high - low)), xlim=(-0.08, 1.08))
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles, names, loc="lower center", ncols=2, fontsize=9, frameon=False)


def mnist_parts(data: Any) -> Any:
    """The learned part of the read-out: its alignment, and the size of what hides it."""
    fig, axes = plots.figure(1, 2, height=3.0)
    curves = data["curves"]
    at, control = curves.step.values, int(curves.control)
    for arm, colour, line, label in _fa_settings(data):
        for ax, name in zip(axes, ("learned", "size")):
            runs = curves[name].sel(arm=arm).values
            early, late = (at > 0) & (at <= control), at >= control
            plots.band(
                ax, at[early], runs[:, early], color=colour, linestyle=line, label=label
            )  # fmt: skip
            if late.sum() > 1:
                ax.plot(at[late], runs[0, late], color=colour, ls=line, lw=1.3)
    for ax in axes:
        if at[-1] > control:
            ax.axvline(control, color=GREY, lw=1, ls=":")
        ax.set(xscale="log", xlabel="updates", xlim=(max(at[1], at[-1] / 1000), 1.3 * at[-1]))
    axes[0].set(title="the learned part alone", ylabel=r"cosine of $B^Te$ and $L^Te$")
    axes[1].set(title="size of the read-out", ylabel=r"$\|V\| / \|B\|$", yscale="log")
    plots.legend(axes[0], loc="upper left", fontsize=9, labelspacing=0.2)
    plots.letters(axes)
    return fig
