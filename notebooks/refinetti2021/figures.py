"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabook import plots
from fabook.theory.refinetti2021 import online
from fabook.theory.refinetti2021.fluctuations import Plateau

ALIGN, MEMORISE = "#E9B44C", plots.SHADES[2]  # the two phases
UNITS = ("#3B2F6B", "#2A8A8C", "#8FBF3F")  # hidden units: a palette that no rule has


def letter(axes: Any) -> None:
    """Write (a), (b), ... before the titles of the panels."""
    for name, ax in zip("abcd", np.ravel(axes)):
        title = ax.get_title()
        ax.set_title("")
        ax.set_title(f"({name}) {title}", loc="left", fontsize=11)


def largest(data: Any) -> Any:
    """The curves at the largest number of inputs, and that number."""
    n_inputs = int(data["setting"]["n_inputs"].max())
    return data[f"curves_{n_inputs}"], n_inputs


def turn(curves: Any) -> float:
    """When the mean error of three DFA runs, in theory, has lost a quarter."""
    error = curves["error_ode"].sel(rule="DFA")[:3].mean("seed").values
    return float(online.passage_time(curves["t"].values, error, 0.75 * error[0]))


def online_dynamics(data: Any) -> Any:
    """Error and alignment of both rules: theory as lines, three seeds as points."""
    curves, n_inputs = largest(data)
    end = float(data["setting"]["end_cosine"])
    t, change = curves["t"].values, turn(curves)
    fig, axes = plots.figure(2, 2, height=2.35, sharex=True, sharey="row")
    inset = axes[1, 1].inset_axes([0.53, 0.2, 0.44, 0.44])
    for column, rule in enumerate(curves["rule"].values):
        error, cosine = axes[:, column]
        draw_runs(error, curves, rule, "error")
        draw_runs(cosine, curves, rule, "cosine")
        error.set_title(f"{rule}: error")
        cosine.set(title=f"{rule}: alignment", xlabel="time $t$ = steps / $N$")
        cosine.axhline(0, color="0.6", lw=0.8)
    draw_runs(inset, curves, "DFA", "cosine", every=3)
    draw_phases(axes[:, 1], t, change)
    for ax in (axes[1, 1], inset):
        ax.axhline(end, color="0.25", lw=1.4, ls=":")
    inset.set(xscale="log", xlim=(change, t[-1]), ylim=(0.8, 1.01), yticks=[0.8, 0.9, 1.0])
    inset.set_title("the same, enlarged", fontsize=9)
    inset.tick_params(labelsize=9)
    inset.text(1.3 * change, end - 0.012, "predicted end", va="top", fontsize=9)
    axes[0, 0].set(xscale="log", yscale="log", xlim=(t[0], t[-1]), ylabel="generalisation error")
    axes[1, 0].set(ylabel="cosine of $v$ and $F$", ylim=(-1.08, 1.08))
    axes[1, 0].text(
        *(0.04, 0.3, "$F$ plays no part here"), transform=axes[1, 0].transAxes, fontstyle="italic"
    )
    axes[0, 0].text(0.04, 0.08, f"$N$ = {n_inputs}", transform=axes[0, 0].transAxes)
    plots.legend(axes[0, 1], loc="lower left")
    letter(axes)
    return fig


def draw_runs(
    ax: Any, curves: Any, rule: str, name: str, *, every: int = 6, named: str | None = None
) -> None:
    """Three seeds of one rule: a shade and a marker for each, theory as line."""
    t, colour = curves["t"].values, plots.rule_style(rule)["color"]
    for s, (marker, alpha) in enumerate(zip("o^s", (1.0, 0.7, 0.45))):
        theory, found = (curves[f"{name}_{k}"].sel(rule=rule)[s].values for k in ("ode", "sgd"))
        dots = slice(every * s // 3, None, every)
        look = {"color": colour, "alpha": alpha}
        names = (None, None) if s else (named, None) if named else ("theory", "simulation")
        plots.theory_line(ax, t, theory, linewidth=1.6, label=names[0], **look)
        plots.points(ax, t[dots], found[dots], marker=marker, label=names[1], **look)


def draw_phases(axes: Any, t: Any, change: float) -> None:
    """Shade the two phases, and name them."""
    for ax in axes:
        ax.axvspan(t[0], change, color=ALIGN, alpha=0.3, lw=0)
        ax.axvspan(change, t[-1], color=MEMORISE, alpha=0.12, lw=0)
    where = axes[0].get_xaxis_transform()
    for low, high, word in ((t[0], change, "align"), (change, t[-1], "memorise")):
        at = {"transform": where, "ha": "center", "fontstyle": "italic", "fontsize": 13}
        axes[0].text(np.sqrt(low * high), 0.47, word, **at)


def rank_one(data: Any) -> Any:
    """Overlaps and read-outs over feedback weights: three units, one curve."""
    early = data["early"]
    F, t, seeds = early["F"].values, early["t"].values, int(early["seeds"])
    fig, axes = plots.figure(1, 2, height=2.9)
    for ax, name in zip(axes, ("R", "v")):
        for i, (marker, colour) in enumerate(zip("os^", UNITS)):
            mean, ode = (early[f"{name}_{k}"].values[:, i] / F[i] for k in ("sgd", "ode"))
            bar = np.abs(early[f"{name}_sd"].values[:, i] / F[i]) / np.sqrt(seeds)
            spread = 1 + 0.05 * (i - 1)  # side by side, so that all three can be seen
            look = {"marker": marker, "color": colour, "label": f"unit {i + 1}, $F$ = {F[i]:g}"}
            plots.points(ax, t * spread, mean, error=bar, **look)
            plots.theory_line(ax, t, ode, color=colour, label=None)
        first = early[f"{name}_first"].values[:, 0] / F[0]
        plots.theory_line(ax, t, first, linestyle="--", label="first order")
        ax.set(xscale="log", yscale="log", xlabel="time $t$ = steps / $N$")
    axes[0].set(title="overlap with the teacher / $F_i$")
    axes[1].set(title="read-out weight / $F_i$")
    plots.legend(axes[0], loc="lower right", fontsize=9)
    letter(axes)
    return fig


def fluctuations(data: Any) -> Any:
    """The law of the square root for deviations from theory, and runs with a noisy teacher."""
    table = data["fluctuations"]
    n = table["n_inputs"].values
    fig, (ax, noisy) = plots.figure(1, 2, height=3.0)
    for marker, colour, t in zip("os", UNITS, table["moment"].values):
        one = table.sel(moment=t)
        rms, bar = one["rms"].values, one["error"].values
        middle = np.exp(np.log(rms * np.sqrt(n)).mean())
        plots.points(ax, n, rms, error=bar, color=colour, marker=marker, label=f"$t$ = {t:g}")
        plots.theory_line(ax, n, middle / np.sqrt(n), color=colour, label=None)
    ax.set(xscale="log", yscale="log", xlabel="number of inputs $N$", ylabel="rms deviation of $R$")
    ax.set_xticks(n, [f"{k}" for k in n], minor=False)
    ax.minorticks_off()
    ax.set_yticks([0.005, 0.01, 0.02, 0.03], ["0.005", "0.01", "0.02", "0.03"])
    plots.legend(ax, loc="upper right", fontsize=9.5)
    for rule in data["noisy"]["rule"].values:
        draw_runs(noisy, data["noisy"], rule, "error", named=rule)
    noisy.set(xscale="log", yscale="log", xlabel="time $t$ = steps / $N$")
    noisy.set(ylabel="generalisation error")
    plots.legend(noisy, loc="lower left", fontsize=9.5)
    letter(np.array([ax, noisy]))
    return fig


NOISE = {
    0.0: ("#1B1B3A", "-"),
    0.1: ("#3B2F6B", (0, (6, 1.5))),
    0.2: ("#2A6F97", "--"),
    0.5: ("#2A8A8C", "-."),
    0.9: ("#8FBF3F", ":"),
    1.0: ("#B0A030", (0, (1, 1))),
}
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def draw_noise(ax: Any, x: Any, curves: Any, *, rescaled: bool = False) -> None:
    """One line and band over seeds for each fraction of random labels."""
    for p in curves["noise"].values:
        colour, line = NOISE.get(float(p), ("0.5", "-"))
        values = curves.sel(noise=p).values[:, 1:]
        at = (1 - p) * x if rescaled else x
        plots.band(ax, at, values, color=colour, linestyle=line, label=f"$p$ = {p:g}")


def label_noise(data: Any) -> Any:
    """The delay of alignment, the law behind it, and what memorising does."""
    curves, delays, heart = data["curves"], data["delays"], data["by_heart"]
    update, level = curves["update"].values[1:], float(delays["level"])
    rise = (curves["weight"] - curves["weight"].isel(update=0)).sel(activation="tanh")
    fig, axes = plots.figure(2, 2, height=2.5)
    (raw, scaled), (delay, late) = axes
    draw_noise(raw, update, rise)
    draw_noise(scaled, update, rise.sel(noise=rise["noise"] < 1), rescaled=True)
    until = 3 * float(delays["onset"].sel(activation="tanh", noise=0.5).mean())
    for ax in (raw, scaled):
        ax.axhline(level, color="0.4", lw=1.2, ls=":")
        ax.set(xscale="log", ylim=(-0.02, 4 * level))
    raw.set(title="tanh: rise of weight alignment", xlabel="updates", xlim=(0.5, 10 * until))
    scaled.set(
        title="the law: one curve", xlabel="$(1-p)$ × updates", xlim=(update[0] / 2, 2 * until)
    )
    plots.legend(raw, fontsize=9, loc="upper left")
    fine = np.linspace(0, 0.93, 200)
    plots.theory_line(delay, fine, 1 / (1 - fine), label="$1/(1-p)$")
    for marker, colour, shift, name in zip("os", (UNITS[0], UNITS[1]), (-0.008, 0.008), NAMES):
        part = delays["delay"].sel(activation=name, noise=delays["noise"] < 1)
        low, high = plots.band_edges(part.values.T, kind="95%")
        mean = part.mean("seed").values
        plots.points(
            delay,
            part["noise"].values + shift,
            mean,
            error=(mean - low, high - mean),
            marker=marker,
            color=colour,
            label=NAMES[name],
        )
    delay.set(yscale="log", xlabel="fraction $p$ of random labels", title="delay of alignment")
    delay.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"], minor=False)
    delay.minorticks_off()
    plots.legend(delay, loc="upper left", fontsize=9.5)
    draw_noise(late, heart["update"].values[1:], heart["weight"].sel(activation="tanh"))
    late.set(xscale="log", xlabel="updates", title="tanh: memorising", ylabel="weight alignment")
    plots.legend(late, loc="lower right", fontsize=9.5)
    plots.letters(axes)
    return fig


def label_noise_more(data: Any) -> Any:
    """Gradient alignment of both activations, and what ReLU units do."""
    curves, heart = data["curves"], data["by_heart"]
    update, early = curves["update"].values[1:], int(data["sizes"]["early"])
    fig, axes = plots.figure(2, 2, height=2.4)
    for ax, name in zip(axes[0], NAMES):
        draw_noise(ax, update, curves["gradient"].sel(activation=name))
        ax.axvline(early, color="0.5", ls=(0, (2, 2)), lw=1.2)
        ax.set(xscale="log", title=f"{NAMES[name]}: gradient alignment", ylim=(-0.1, 1))
    plots.legend(axes[0, 0], fontsize=9, loc="upper left")
    rise = curves["weight"] - curves["weight"].isel(update=0)
    draw_noise(axes[1, 0], update, rise.sel(activation="relu"))
    draw_noise(axes[1, 1], heart["update"].values[1:], heart["weight"].sel(activation="relu"))
    titles = ("ReLU: rise of weight alignment", "ReLU: memorising, weights")
    for ax, title in zip(axes[1], titles):
        ax.set(xscale="log", xlabel="updates", title=title)
    plots.letters(axes)
    return fig


CORNERS = (("#1B1B3A", "-"), ("#2A6F97", "--"), ("#2A8A8C", "-."), ("#8FBF3F", ":"))


def structured_targets(data: Any) -> Any:
    """Gradient alignment against published values, weight alignment, and linear units."""
    last = data["alignment"]["gradient"].isel(epoch=-1)
    theirs, target = data["published"]["gradient"], data["published_weight"]
    fig, axes = plots.figure(2, 2, height=2.5)
    for ax, name in zip(axes[0], NAMES):
        shown = [b for b in (1.0, 0.6, 0.2) if b in last["beta"].values]
        for shift, beta, (colour, line), marker in zip((-0.012, 0, 0.012), shown, CORNERS, "os^"):
            part = last.sel(activation=name, beta=beta)
            mean = part.mean("seed").values
            low, high = plots.band_edges(part.transpose("seed", "alpha").values, kind="95%")
            at, look = part["alpha"].values + shift, {"color": colour, "marker": marker}
            ax.plot(at, mean, color=colour, lw=1.2, ls=line)
            plots.points(
                ax, at, mean, error=(mean - low, high - mean), label=f"β = {beta:g}", **look
            )
            cells = theirs.sel(activation=name, beta=beta)
            star = {"marker": "*", "ls": "none", "ms": 10, "color": colour, "zorder": 5}
            ax.plot(cells["alpha"].values, cells.values, mec="white", **star)
        ax.plot([], [], marker="*", ls="none", ms=10, color="0.3", label="published")
        ax.set(xlabel="α, spread of output 2", title=f"{NAMES[name]}: gradient alignment")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low - 0.4 * (high - low), high)  # room for the legend
    plots.legend(axes[0, 0], loc="lower right", fontsize=9)
    ax, table = axes[1, 0], data["alignment"]
    epoch = table["epoch"].values[1:]
    for i, ((a, b), (colour, line)) in enumerate(zip(PLACES, CORNERS)):
        cell = table["weight"].sel(activation="tanh", alpha=a, beta=b)
        label = f"α = {a:g}, β = {b:g}"
        plots.band(ax, epoch, cell.values[:, 1:], color=colour, linestyle=line, label=label)
        peak, end = (float(target[k].sel(activation="tanh")[i]) for k in ("peak", "end"))
        top = int(cell.values[:, 1:].mean(0).argmax())
        ax.plot(epoch[top], peak, marker="*", ms=11, color=colour, mec="white", zorder=5)
        ax.plot([1.15 * epoch[-1], 1.9 * epoch[-1]], [end, end], color=colour, lw=2.4)
    ax.set(xscale="log", xlabel="epochs", title="tanh: weight alignment", ylim=(-0.02, 0.4))
    plots.legend(ax, loc="upper left", fontsize=9, ncols=2, columnspacing=0.8, handlelength=1.7)
    ax, table = axes[1, 1], data["linear"]
    update = table["update"].values
    for i, (colour, line) in enumerate(CORNERS):
        plots.theory_line(
            ax, update, table["theory"].values[i], color=colour, linestyle=line, label=None
        )
        plots.points(ax, update, table["network"].values[i], color=colour, label=None, marker="o")
    ax.plot([], [], color="0.3", label="recursion")
    ax.plot([], [], color="0.3", marker="o", mfc="white", ls="none", label="network")
    ax.set(xscale="log", xlabel="updates", title="linear units: gradient alignment")
    plots.legend(ax, loc="best", fontsize=9)
    plots.letters(axes)
    return fig


PLACES = ((1.0, 1.0), (1.0, 0.2), (0.2, 1.0), (0.2, 0.2))  # alpha and beta of the corners


def structured_maps(data: Any) -> Any:
    """Published and our gradient alignment as maps over alpha and beta, on one scale."""
    import seaborn as sns

    here = data["alignment"]["gradient"].isel(epoch=-1).mean("seed")
    fig, axes = plots.figure(2, 2, height=2.5)
    for row, name in zip(axes, NAMES):
        for ax, table, whose in zip(
            row, (data["published"]["gradient"], here), ("published", "here")
        ):
            part = table.sel(activation=name).transpose("beta", "alpha").to_pandas()
            sns.heatmap(
                part,
                ax=ax,
                annot=True,
                fmt=".2f",
                annot_kws={"fontsize": 9},
                cmap="viridis",
                vmin=0.6,
                vmax=0.88,
                cbar=False,
            )
            ax.set(title=f"{NAMES[name]}, {whose}", xlabel="α", ylabel="β")
            ax.tick_params(axis="y", rotation=0)
            ax.grid(False)
    plots.letters(axes)
    return fig


LAYERS = tuple(plots.SHADES[i] for i in (0, 1, 3, 4))  # from the bottom up
KINDS = {  # of training a convolutional network, and its control: colour and marker
    "conv, DFA": ("#C0392B", "v", "-"),
    "conv, equal": ("#E3A58F", "^", "--"),
    "full, DFA": ("#C0392B", "D", ":"),
    "conv, BP": ("#000000", "o", "-"),
    "conv, frozen": ("#000000", "s", "-"),
    "full, BP": ("#000000", "o", ":"),
}
WORDS = {"conv, equal": "conv, DFA\nequal", "conv, frozen": "conv, BP\nfrozen"}


def convolution(data: Any) -> Any:
    """Alignment layer by layer, what it costs, the layer above, and the bound."""
    table = data["alignment"]
    update = table["update"].values[1:]
    fig, ((gradient, cost), (above, bound)) = plots.figure(2, 2, height=2.6)
    for kind, line, names in (
        ("conv, DFA", "-", ("conv 1", "conv 2", "hidden")),
        ("full, DFA", ":", ("full 1", "full 2", "full 3")),
    ):
        for layer, colour, name in zip((1, 2, 3), LAYERS, names):
            values = table["gradient"].sel(kind=kind, layer=layer).values[:, 1:]
            plots.band(gradient, update, values, color=colour, linestyle=line, label=name)
    gradient.set(xscale="log", ylim=(-0.1, 1.25), title="gradient alignment", xlabel="updates")
    plots.legend(gradient, ncols=2, fontsize=9, loc="upper left")
    kinds = ["conv, BP", "conv, frozen", "conv, DFA", "conv, equal", "full, BP", "full, DFA"]
    for at, kind in enumerate(kinds):
        values = 100 * data["accuracy"]["test"].sel(kind=kind).values
        colour, marker, _ = KINDS[kind]
        plots.points(cost, np.full(len(values), at), values, color=colour, marker=marker)
        cost.plot([at - 0.3, at + 0.3], [values.mean()] * 2, color=colour)
    words = [WORDS.get(kind, kind).replace(", ", "\n") for kind in kinds]
    cost.set_xticks(range(len(kinds)), words)
    cost.tick_params(axis="x", labelsize=9)
    cost.set(title="test accuracy, %")
    for kind in ("conv, DFA", "conv, equal", "full, DFA"):
        colour, _, line = KINDS[kind]
        values = table["weight"].sel(kind=kind).values[:, 1:]
        name = WORDS.get(kind, kind).replace("\n", ", ")
        plots.band(above, update, values, color=colour, linestyle=line, label=name)
    above.set(xscale="log", title="weight alignment of $W_3$", xlabel="updates")
    plots.legend(above, fontsize=9, loc="upper left")
    table = data["projection"]
    for name, colour, marker in (("convolution", UNITS[0], "o"), ("local", UNITS[1], "s")):
        part = table.sel(structure=name)
        look = {"color": colour, "marker": marker}
        label = {"local": "weights not shared"}.get(name, name)
        plots.points(bound, part["law"].values, part["measured"].values, label=label, **look)
    plots.theory_line(bound, [0.01, 1], [0.01, 1], label=None)
    bound.set(xscale="log", yscale="log", xlabel="formula", title="attainable cosine")
    plots.legend(bound, fontsize=9)
    plots.letters([gradient, cost, above, bound])
    return fig


TITLES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
CONDITIONS = tuple(zip(LAYERS, ("-", "--", "-.", (0, (6, 1.5)))))


def conditions(data: Any) -> Any:
    """Data set, activation and look of each condition."""
    names = [(n, a) for n in data["sizes"]["data"].values for a in NAMES]
    return [(n, a, *look) for (n, a), look in zip(names, CONDITIONS)]


def draw_conditions(ax: Any, data: Any, quantity: str, *, factor: float = 1.0) -> None:
    """One quantity of every condition under DFA against epochs."""
    for name, activation, colour, line in conditions(data):
        part = data[f"{name}_DFA"].sel(activation=activation)
        values = factor * part[quantity].values[:, 1:]
        label = f"{TITLES[name]}, {NAMES[activation]}"
        plots.band(ax, part["epoch"].values[1:], values, color=colour, linestyle=line, label=label)
    ax.set(xscale="log", xlabel="epochs")


def deep_networks(data: Any) -> Any:
    """Two phases, similarity of seeds with its controls, and layers one after the other."""
    fig, ((error, weight), (alike, by_layer)) = plots.figure(2, 2, height=2.6)
    draw_conditions(error, data, "error", factor=100)
    error.set(title="training error, %")
    plots.legend_above(error, ncols=4, fontsize=9)
    draw_conditions(weight, data, "weight")
    weight.set(title="total weight alignment")
    for name, activation, *_ in conditions(data):
        part = data[f"{name}_BP"].sel(activation=activation)
        values = part["weight"].mean("seed").values[1:]
        weight.plot(part["epoch"].values[1:], values, color="0.45", lw=1.4, ls=":")
    draw_conditions(alike, data, "similarity")
    for kind, line, word in (("own", "--", "own feedback"), ("BP", ":", "BP")):
        for name, activation, *_ in conditions(data):
            part = data[f"{name}_{kind}"].sel(activation=activation)
            values = part["similarity"].mean("seed").values[1:]
            alike.plot(part["epoch"].values[1:], values, color="0.45", lw=1.4, ls=line, label=word)
    alike.set(title="cosine between seeds")
    handles = dict(zip(*reversed(alike.get_legend_handles_labels())))
    words = ["own feedback", "BP"]
    alike.legend([handles[w] for w in words], words, frameon=False, fontsize=9, loc="upper left")
    first = data["sizes"]["data"].values[0]
    table = data[f"{first}_layers"].sel(activation="tanh")
    for layer, colour, line in zip(table["layer"].values, LAYERS, ("-", "--", "-.", ":")):
        values = table["weight"].sel(layer=layer).values
        plots.band(
            by_layer, table["update"].values, values, color=colour, linestyle=line, label=layer
        )
    frozen = table["frozen"].sel(layer="W2").values
    grey = {"color": "0.45", "linestyle": "-", "label": "W2, W1 frozen"}
    plots.band(by_layer, table["update"].values, frozen, **grey)
    for level in data["levels"]["level"].values:
        by_layer.axhline(level, color="0.5", lw=0.9, ls=":")
    by_layer.set(xscale="log", xlabel="updates", title=f"five layers, {TITLES[first]}")
    plots.legend(by_layer, fontsize=9, loc="upper left")
    plots.letters([error, weight, alike, by_layer])
    return fig


def deep_networks_more(data: Any) -> Any:
    """Gradient alignment over training, and what width does."""
    fig, axes = plots.figure(1, 2, height=2.9)
    draw_conditions(axes[0], data, "gradient")
    axes[0].set(title="gradient alignment")
    plots.legend(axes[0], fontsize=9, loc="lower right")
    for kind, line in (("DFA", "-"), ("BP", ":")):
        table = data[f"width_{kind}"]
        look = {
            "color": plots.RULE_COLOURS[kind],
            "linestyle": line,
            "label": f"between seeds, {kind}",
        }
        plots.band(axes[1], table["width"].values, table["similarity"].values.T, **look)
    table = data["width_DFA"]
    look = {"color": LAYERS[1], "linestyle": "--", "label": "gradient alignment, DFA"}
    plots.band(axes[1], table["width"].values, table["gradient"].values.T, **look)
    axes[1].set(xscale="log", xlabel="hidden units of each layer", title="cosine against width")
    axes[1].set_xticks(table["width"].values, [f"{w:g}" for w in table["width"].values])
    axes[1].minorticks_off()
    axes[1].set_ylim(-0.1, 1.3)
    plots.legend(axes[1], fontsize=9, loc="upper right")
    plots.letters(axes)
    return fig


AGREE, OTHER = "#2A8A8C", "#E9B44C"  # ends in the solution most aligned with its feedback, or not
RING = 1.95  # where the feedback's directions are drawn


def draw_plane(ax: Any, data: Any, rule: str) -> None:
    """Paths of the read-out, theory and simulation, in the eight sectors of feedback."""
    paths, points = (data[name].sel(rule=rule) for name in ("paths", "points"))
    for k in range(8):
        edge = RING * np.exp(0.25j * np.pi * k)
        ax.plot([0, edge.real], [0, edge.imag], color="0.85", lw=0.8, zorder=1)
    for best, converged, angle, v in zip(
        paths["best"].values, paths["converged"].values, paths["angle"].values, paths["v"].values
    ):
        if converged:
            colour = AGREE if best else OTHER
            dot = RING * np.exp(1j * angle)
            ax.plot(v[:, 0], v[:, 1], color=colour, lw=1.1, alpha=0.8, zorder=2)
            ax.plot([dot.real], [dot.imag], "o", color=colour, ms=5, mec="white", mew=0.5, zorder=3)
    for best, converged, v in zip(
        points["best"].values, points["converged"].values, points["v"].values
    ):
        if converged:
            look = {"ms": 3, "mfc": "white", "mec": AGREE if best else OTHER, "mew": 0.8}
            ax.plot(v[::2, 0], v[::2, 1], "o", zorder=4, **look)
    ax.scatter(
        *online.equivalent_readouts([0.6, 1.4]).T, marker="*", s=120, color="black", zorder=5
    )
    ticks = [-1.4, -0.6, 0.6, 1.4]
    ax.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), aspect="equal", xticks=ticks, yticks=ticks)
    ax.set(xlabel="$v_1$", ylabel="$v_2$", title=rule)
    ax.grid(False)


def wilson(held: Any) -> tuple[float, float, float]:
    """Share in per cent, and how far its 95 % interval reaches down and up."""
    from scipy.stats import binomtest

    n, k = len(held), int(np.sum(held))
    low, high = binomtest(k, n).proportion_ci(0.95, method="wilson")
    share = k / n
    return 100 * share, 100 * max(0.0, share - low), 100 * max(0.0, high - share)


def draw_shares(ax: Any, data: Any) -> None:
    """How often each rule ends where its feedback, or its start, would have it."""
    rows = (
        ("two_units", "start", "signs of\nthe start", 1 / 4),
        ("two_units", "signs", "signs of $F$", 1 / 4),
        ("two_units", "best", "most aligned\nof 8", 1 / 8),
        ("three_units", "best", "most aligned\nof 48", 1 / 48),
    )
    for row, (table, quantity, _, chance) in enumerate(rows):
        for shift, rule in ((-0.2, "BP"), (0.2, "DFA")):
            colour = plots.rule_style(rule)["color"]
            for name in (table, "simulated") if table == "two_units" else (table,):
                part = data[name].sel(rule=rule)
                held = part[quantity].values[part["converged"].values == 1]
                if not len(held):
                    continue
                share, down, up = wilson(held)
                at, bar = row + shift, [[down], [up]]
                if name == "simulated":
                    look = {"fmt": "D", "mfc": "white", "mec": colour, "ms": 4, "color": colour}
                    ax.errorbar([share], [at + 0.09], xerr=bar, elinewidth=0.8, **look)
                else:
                    ax.barh(at, share, height=0.38, color=colour, alpha=0.75, label=rule)
                    ax.errorbar([share], [at - 0.07], xerr=bar, color="0.5", elinewidth=1.2)
        edges = [row - 0.42, row + 0.42]
        ax.plot([100 * chance] * 2, edges, color=OTHER, lw=1.8, ls="--", label="chance")
    ax.set(xlim=(0, 104), xlabel="converged runs (%)", title="ends with the ...")
    ax.set_yticks(range(len(rows)), [words for *_, words, _ in rows], fontsize=9)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    plots.legend(ax, loc="upper center", bbox_to_anchor=(0.4, -0.24), ncols=3, fontsize=9)


def draw_copies(ax: Any, data: Any) -> None:
    """Gradient alignment of trained networks and of their copies, one point per seed."""
    table = data["copies"]
    places = (
        ("bp", "BP", "BP"),
        ("bp_best", "BP,\nbest\ncopy", "BP"),
        ("shuffled", "DFA,\nany\ncopy", "DFA"),
        ("dfa", "DFA", "DFA"),
        ("dfa_best", "DFA,\nbest\ncopy", "DFA"),
    )
    for at, (name, _, rule) in enumerate(places):
        values = table[name].values
        spread = at + np.linspace(-0.16, 0.16, len(values))
        colour = plots.rule_style(rule)["color"]
        plots.points(ax, spread, values, color=colour, marker=plots.rule_style(rule)["marker"])
        ax.plot([at - 0.3, at + 0.3], [values.mean()] * 2, color=colour, lw=1.4)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xticks(range(len(places)), [words for _, words, _ in places], fontsize=9)
    ax.set(ylim=(-0.45, 1.02), title="images: gradient alignment")


def degeneracy(data: Any) -> Any:
    """Which of the equal solutions each rule takes, in theory, simulation and on images."""
    fig, axes = plots.figure(2, 2, height=3.5)
    for ax, rule in zip(axes[0], ("BP", "DFA")):
        draw_plane(ax, data, rule)
    draw_shares(axes[1, 0], data)
    draw_copies(axes[1, 1], data)
    plots.letters(axes)
    return fig


def degeneracy_more(data: Any) -> Any:
    """Gradient alignment over time, and what decides the weights of networks on images."""
    fig, axes = plots.figure(1, 2, height=3.1)
    ax = axes[0]
    for table, words, line in (("two", "2 units", "-"), ("three", "3 units", "--")):
        part = data[f"{table}_alignment"]
        for rule in part["rule"].values:
            one = part.sel(rule=rule)
            colour = plots.rule_style(rule)["color"]
            ax.plot(one["t"], one["mean"], color=colour, ls=line, label=f"{rule}, {words}")
            if rule == "DFA" and table == "two":
                ax.fill_between(one["t"], one["low"], one["high"], color=colour, alpha=0.18, lw=0)
    ax.set(xscale="log", ylim=(-0.75, 1.05), xlabel="time $t$ = steps / $N$")
    ax.set_title("gradient alignment")
    plots.legend(ax, loc="lower right", fontsize=9)
    table, ax = data["similarity"]["cosine"], axes[1]
    for row, kind in enumerate(table["kind"].values):
        look = plots.rule_style(str(kind).split(",")[0])
        values = table.sel(kind=kind).values
        spread = row + np.linspace(-0.18, 0.18, len(values))
        plots.points(ax, values, spread, color=look["color"], marker=look["marker"])
        ax.plot([values.mean()] * 2, [row - 0.32, row + 0.32], color=look["color"], lw=1.4)
    words = [str(k).replace(", own ", ",\n").replace(" and ", ", ") for k in table["kind"].values]
    ax.set_yticks(range(len(words)), words, fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color="0.6", lw=0.8)
    ax.set(xlim=(-0.12, 1.05), title="cosine, each its own ...")
    plots.letters(axes)
    return fig


MODES = plots.SHADES  # strongest to weakest


def draw_layers(ax: Any, data: Any, quantity: str, names: Any) -> None:
    """One quantity of every layer, unequal singular values: theory lines, means of networks."""
    theory, seen = data["unequal, theory"], data["unequal, orthonormal"].mean("seed")
    axis = theory[quantity].dims[-1]
    for layer, name in zip(theory[axis].values, names):
        one, dots = (table[quantity].sel({axis: layer}) for table in (theory, seen))
        look = {"color": LAYERS[layer - 1], "markersize": 4}
        plots.theory_line(ax, theory["t"], one, label=name, **look)
        plots.points(ax, seen["t"][::2], dots[::2], label=None, **look)


def deep_linear_gradients(data: Any) -> Any:
    """What is left to learn, conditioning, and alignment of weights and of gradients."""
    theory = data["unequal, theory"]
    t = theory["t"].values
    fig, axes = plots.figure(2, 2, height=2.75, sharex=True)
    (left, condition), (weights, gradients) = axes
    for mode, colour in enumerate(MODES):
        label = f"$s$ = {float(theory['s'][mode]):g}"
        left.plot(t, theory["left"][:, mode], color=colour, label=label)
    left.set(title="left to learn in each mode")
    plots.legend(left, fontsize=9, loc="upper right")
    draw_layers(condition, data, "condition", ["$A_1$", "$A_2$", "$A_3$", "$A_4$"])
    condition.set(yscale="log", title="condition number", ylim=(0.7, 1e6))
    plots.legend(condition, fontsize=9, loc="upper right")
    draw_layers(weights, data, "weights", ["$W_2$", "$W_3$", "$W_4$"])
    weights.set(title="weight alignment", xlabel="time", ylim=(0.45, 1.02))
    plots.legend(weights, fontsize=9, loc="upper left")
    draw_layers(gradients, data, "gradients", ["layer 1", "layer 2", "layer 3"])
    for hidden in theory["hidden"].values:
        worst = theory["worst"].sel(hidden=hidden)
        look = {"color": LAYERS[hidden - 1], "linestyle": ":", "label": None, "linewidth": 1.5}
        plots.theory_line(gradients, t, worst, **look)
    lowest = t[int(theory["gradients"].sel(hidden=1).argmin("t"))]
    gradients.axvline(lowest, color="0.5", ls=(0, (2, 2)), lw=1.2)
    gradients.set(title="gradient alignment", xlabel="time", ylim=(-0.03, 1.06), xscale="log")
    gradients.set_xlim(0.5, t[-1])
    gradients.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    gradients.minorticks_off()
    plots.legend(gradients, fontsize=9, loc="center left", bbox_to_anchor=(0, 0.34))
    plots.letters(axes)
    return fig


def draw_weak(ax: Any, data: Any) -> None:
    """Deviation from weak alignment under three ways to train and two kinds of feedback."""
    ways = zip(("population", "one sample a step", "minibatches of digits"), UNITS)
    for way, colour in ways:
        for kind, line in (("orthonormal", "-"), ("Gaussian", ":")):
            table = data[f"weak: {way}, {kind}"]
            values = np.maximum(table["deviation"].max("seed"), 1e-18)
            label = way.replace("a step", "per step") if line == "-" else None
            ax.plot(table["step"], values, color=colour, ls=line, lw=1.6, label=label)
    ax.axhline(1e-10, color="0.4", lw=1.2, ls="--")
    ax.set(xscale="log", yscale="log", ylim=(1e-19, 3e-4), xlabel="updates")
    ax.set_title("leaving the weak form")
    plots.legend(ax, loc="upper left", fontsize=9)


def draw_onset(ax: Any, data: Any) -> None:
    """Sizes of the alignment matrices over their final sizes."""
    theory, seen = data["unequal, theory"], data["unequal, orthonormal"].mean("seed")
    for layer, colour in zip(theory["layer"].values, LAYERS):
        one, dots = (table["norm"].sel(layer=layer) for table in (theory, seen))
        end = float(one[-1])
        plots.theory_line(ax, theory["t"], one / end, color=colour, label=f"$A_{layer}$")
        look = {"color": colour, "label": None, "markersize": 4}
        plots.points(ax, seen["t"][::4], dots[::4] / end, **look)
    ax.axhline(0.1, color="0.4", lw=1.2, ls=":")
    ax.set(xscale="log", xlabel="time", title="size over final size")
    plots.legend(ax, loc="upper left", fontsize=9)


def draw_conditions_law(ax: Any, data: Any) -> None:
    """Condition numbers at the end against that of the target."""
    from fabook.theory.refinetti2021 import deep_linear

    table = data["condition"].sel(stage="end")
    kappa = table["kappa"].values
    fine = np.geomspace(1, kappa.max(), 50)
    law = deep_linear.condition_numbers(fine, table.sizes["layer"])
    for i, colour in enumerate(LAYERS):
        plots.theory_line(ax, fine, law[:, i], color=colour, label=f"$A_{i + 1}$")
        look = {"color": colour, "label": None, "markersize": 4}
        plots.points(ax, kappa, table["network"].mean("seed")[:, i], **look)
        ax.plot(kappa, table["gaussian"][:, i], "x", color=colour, ms=6, mew=1.4)
    ax.set(xscale="log", yscale="log", xlabel="condition number of the target")
    ax.set_title("conditioning at the end")
    for axis, ticks in ((ax.xaxis, (1, 2, 5, 10, 20)), (ax.yaxis, (1, 1.5, 2, 3, 5))):
        shown = [k for k in ticks if k <= 1.05 * (kappa.max() if axis is ax.xaxis else law.max())]
        axis.set_ticks(shown, [f"{k:g}" for k in shown])
    ax.minorticks_off()
    plots.legend(ax, loc="upper left", fontsize=9)


def draw_widths(ax: Any, data: Any) -> None:
    """Final alignment under Gaussian feedback against width."""
    table = data["width"]
    looks = (("weights", UNITS[0], "o"), ("gradients", UNITS[1], "s"))
    for name, colour, marker in looks:
        values = table[name].values
        for j in range(values.shape[1]):
            label = name if j == 0 else None
            look = {"color": colour, "marker": marker, "markersize": 4, "label": label}
            plots.points(ax, table["width"], values[:, j], **look)
        ax.plot(table["width"], values.mean(1), color=colour, lw=1.2)
    ax.set(xscale="log", xlabel="hidden units", title="Gaussian feedback, equal $s$")
    ax.set_xticks(table["width"].values, [f"{w}" for w in table["width"].values])
    ax.minorticks_off()
    plots.legend(ax, loc="lower right", fontsize=9)


def deep_linear_laws(data: Any) -> Any:
    """The weak form, the onset of layers, the law of conditioning, and width."""
    fig, axes = plots.figure(2, 2, height=2.75)
    draw_weak(axes[0, 0], data)
    draw_onset(axes[0, 1], data)
    draw_conditions_law(axes[1, 0], data)
    draw_widths(axes[1, 1], data)
    plots.letters(axes)
    return fig


def draw_students(ax: Any, data: Any) -> None:
    """Error of each run, by whether it has enough positive feedback weights."""
    curves = data["curves"]
    for error, right in zip(curves["error"].values, curves["right"].values):
        enough = right >= 2
        look = {"color": plots.RULE_COLOURS["DFA"], "ls": "-"}
        if not enough:
            look = {"color": "0.25", "ls": "--"}
        ax.plot(curves["t"], np.maximum(error, 1e-9), lw=0.9, alpha=0.75, **look)
    for word, look in (
        ("0 or 1 positive", ("0.25", "--")),
        ("2 or more", (plots.RULE_COLOURS["DFA"], "-")),
    ):
        ax.plot([], [], color=look[0], ls=look[1], label=word)
    ax.axhline(float(curves["threshold"]), color="0.4", lw=1.2, ls=":")
    ax.set(xscale="log", yscale="log", ylim=(3e-6, 3), xlabel="time $t$ = steps / $N$")
    ax.set_title("DFA, $K$ = 4: error")
    plots.legend(ax, loc="lower left", title="feedback weights", fontsize=9, title_fontsize=9)


def draw_law(ax: Any, data: Any) -> None:
    """Success against the number of units, with the law and exact intervals."""
    success = data["success"]
    every = np.arange(2, 9)
    law = [online.learning_probability(2, int(K)) for K in every]
    plots.theory_line(ax, every, law, label="law", color=plots.RULE_COLOURS["DFA"])
    for rule, shift in (("DFA", 0.0), ("BP", 0.13)):
        rate, ends = success[rule].values, success[f"{rule}_interval"].values.T
        at = success["K"].values + shift
        plots.points(ax, at, rate, rule=rule, error=np.abs(ends - rate))
    ax.set(xlabel="hidden units $K$", ylim=(0, 1.05), xticks=every, title="success probability")
    plots.legend(ax, loc="lower right", fontsize=9.5)


def draw_signs(ax: Any, data: Any) -> None:
    """Successes by the number of positive feedback weights; the rule's cells outlined."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    table = data["signs"]
    runs, hits = table["runs"].values, table["hits"].values
    shades = LinearSegmentedColormap.from_list("", ["#EFEFF4", "#2A8A8C"])
    order = np.lexsort((table["K"].values, table["signed"].values))
    for y, i in enumerate(order):
        for j in range(int(table["K"][i]) + 1):
            share = hits[i, j] / runs[i, j] if runs[i, j] else np.nan
            fill = shades(share) if runs[i, j] else "white"
            box = ((j - 0.46, y - 0.4), 0.92, 0.8)
            ax.add_patch(Rectangle(*box, fc=fill, ec="0.8", lw=0.6))
            if table["allowed"].values[i, j]:
                ax.add_patch(Rectangle(*box, fill=False, ec="black", lw=2))
            text = f"{hits[i, j]} / {runs[i, j]}" if runs[i, j] else "–"
            colour = "white" if share > 0.5 else "0.1"
            ax.text(j, y, text, ha="center", va="center", fontsize=9.5, color=colour)
    positive = table["positive"].values
    ax.set(xlim=(-0.6, len(positive) - 0.4), ylim=(len(order) - 0.4, -0.6), xticks=positive)
    ax.set(xlabel="positive feedback weights", title="DFA: successes; outlined: the rule")
    ax.set_yticks(range(len(order)), [str(table["group"].values[i]) for i in order])
    ax.grid(False)


def relu_recovery(data: Any) -> Any:
    """Errors, the law of success, and the table behind it."""
    fig, axes = plots.figure(2, 2, height=3.0)
    draw_students(axes[0, 0], data)
    draw_law(axes[0, 1], data)
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    with plots.style():
        wide = fig.add_subplot(grid[1, :])
        draw_signs(wide, data)
    plots.letters([axes[0, 0], axes[0, 1], wide])
    return fig


PARTS = {"R": ("o", plots.SHADES[0]), "Q": ("s", plots.SHADES[2]), "v": ("^", plots.SHADES[4])}


def finite_size(data: Any) -> Any:
    """Fluctuations, escape times and their law, and ReLU success, at finite numbers of inputs."""
    fig, ((spread, mean), (law, relu)) = plots.figure(2, 2, height=2.7)
    noise = data["fluctuations"]
    n = noise["n_inputs"].values
    for part, (marker, colour) in PARTS.items():
        one = noise.sel(part=part)
        look = {"color": colour, "marker": marker, "label": f"${part}$"}
        values, bars = (one[k].values * np.sqrt(n) for k in ("rms", "error"))
        plots.points(spread, n, values, error=1.96 * bars, **look)
        plots.theory_line(spread, n[[0, -1]], [float(one["predicted"])] * 2, color=colour, label="")
    top = float((noise["rms"] * np.sqrt(noise["n_inputs"])).max())
    spread.set(xscale="log", ylim=(0, 1.45 * top), xlabel="inputs $N$")
    spread.set_title(r"$\sqrt{N}$ × deviation from theory")
    plots.legend(spread, loc="upper right", ncols=3, fontsize=9.5, columnspacing=1)
    draw_escapes(mean, data["escapes"], data["control"])
    draw_escape_law(law, data["escapes"])
    draw_success(relu, data["relu"])
    plots.letters([spread, mean, law, relu])
    return fig


def draw_escapes(ax: Any, escapes: Any, control: Any) -> None:
    """Mean escape times of both rules and of displaced runs against N."""
    n = escapes["n_inputs"].values
    fine = np.geomspace(n[0], n[-1], 50)
    for rule in escapes["rule"].values:
        one = escapes.sel(rule=rule)
        line = np.interp(np.log(fine), np.log(n), one["mean"].values)
        draw_means(ax, n, one["time"].values, rule=rule)
        plots.theory_line(ax, fine, line, rule=rule, label=None, linestyle="-")
    look = {"color": plots.RULE_COLOURS["DFA"], "marker": "v", "label": "DFA, off plateau"}
    draw_means(ax, control["n_inputs"].values, control["time"].values, **look)
    line = displaced_mean(escapes, control)
    plots.theory_line(ax, control["n_inputs"].values, line, rule="DFA", label=None, linestyle=":")
    ax.set(xscale="log", xlabel="inputs $N$", title="mean time of escape")
    ax.set_ylim(0, 1.5 * float(escapes["mean"].max()))
    plots.legend(ax, loc="upper left", fontsize=9.5)


def displaced_mean(escapes: Any, control: Any) -> Any:
    """The law's mean escape time of the displaced runs, at each of their N."""
    dfa = escapes.sel(rule="DFA")
    values = {name: float(dfa[name]) for name in ("error", "amplitude", "level", "delay")}
    law = Plateau(start={}, eigenvalues=np.array([dfa["rate"]]), direction=np.array([]), **values)
    return law.mean(control["n_inputs"].values, displaced=float(control["displaced"]))


def draw_means(ax: Any, n: Any, times: Any, **look: Any) -> None:
    """Means over runs (N, run) with their 95 % intervals."""
    low, high = plots.band_edges(times.T, kind="95%")
    plots.points(ax, n, times.mean(1), error=(high - low) / 2, **look)


def draw_escape_law(ax: Any, escapes: Any) -> None:
    """Shares of runs that have escaped, in units of the prediction, and the predicted law."""
    from scipy.special import erfc, ndtr

    late = (escapes["time"] - escapes["mean"]) / escapes["spread"]
    numbers = escapes["n_inputs"].values
    numbers = numbers[numbers >= int(escapes["judged_from"])]
    for n, colour in zip(numbers, [*plots.SHADES, *plots.SHADES]):
        values = np.sort(late.sel(n_inputs=n).values.ravel())
        share = (np.arange(len(values)) + 0.5) / len(values)
        ax.plot(values, share, color=colour, lw=1.6, label=f"$N$ = {n:,}")
    x = np.linspace(-2.5, 4, 200)
    half = np.exp(-(np.euler_gamma + np.log(2)) / 2 - x * np.pi / np.sqrt(8))
    plots.theory_line(ax, x, erfc(half / np.sqrt(2)), label="law", linewidth=1.4, linestyle="--")
    ax.plot(x, ndtr(x), color="0.45", lw=1.2, ls=":", label="normal")
    ax.set(xlabel="(time − mean) / width, predicted", title="share of runs that escaped")
    ax.set(xlim=(-2.5, 4), ylim=(0, 1.02))
    plots.legend(ax, loc="lower right", fontsize=9, labelspacing=0.2)


def draw_success(ax: Any, relu: Any) -> None:
    """Success of ReLU students at every N and width, and the binomial law."""
    every = np.arange(2, int(relu["K"].max()) + 1)
    law = [online.learning_probability(2, int(K)) for K in every]
    plots.theory_line(ax, every, law, label="law")
    for i, n in enumerate(relu["n_inputs"].values):
        one = relu.sel(n_inputs=n)
        value, ends = one["success"].values, one["interval"].values.T
        at = one["K"].values + 0.08 * (2 * i - len(relu["n_inputs"]) + 1)
        look = {"color": plots.SHADES[2 * i], "marker": "os^"[i], "label": f"$N$ = {n}"}
        plots.points(ax, at, value, error=np.abs(ends - value), **look)
    ax.set(xlabel="hidden units $K$", title="ReLU: success under DFA", ylim=(0, 1.05))
    ax.set_xticks(every)
    plots.legend(ax, loc="lower right", fontsize=9.5)


def escape_paths(data: Any) -> Any:
    """Error of runs that begin on the plateau, at two numbers of inputs, and when they escape."""
    paths = data["paths"]
    fig, axes = plots.figure(1, 2, height=2.8, sharey=True)
    for ax, n in zip(axes, paths["n_inputs"].values):
        one = paths.sel(n_inputs=n)
        ax.axvspan(float(one["early"]), float(one["late"]), color=ALIGN, alpha=0.25, lw=0)
        ax.axvline(float(one["mean"]), color="black", lw=1.4)
        ax.plot(paths["t"], one["error"].values.T, color=plots.SHADES[2], lw=0.9, alpha=0.7)
        ax.axhline(float(paths["level"]), color="0.25", lw=1.2, ls=":")
        ax.set(yscale="log", xlabel="time $t$ = steps / $N$", title=f"error, $N$ = {n:,}")
        ax.set_ylim(1e-4, 0.06)
    plots.letters(axes)
    return fig
