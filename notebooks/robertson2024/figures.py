"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

from fabook import plots

STARTS = {
    "dominant": ("#274C77", "-", "dominant start"),
    "random": (plots.SHADES[2], (0, (4, 1.5)), "random start"),
    "signs": ("#00AA64", ":", "random, sign feedback"),
    "opposed": ("#B5651D", "-.", "opposed start"),
}


# --- dominance -----------------------------------------------------------------------------------


def dominance(data: Any) -> Any:
    """Squared loss from every start, who wins, the rate of the climb, and the guarantee."""
    fig, axes = plots.figure(2, 2, height=2.9)
    _losses(axes[0, 0], data, "squared")
    for start, (colour, line, label) in STARTS.items():
        found = data[f"squared_{start}"]
        plots.band(
            axes[0, 1], found.t[1:], found.share[:, 1:], color=colour, linestyle=line, label=label
        )
    axes[0, 1].axhline(0, color="0.6", lw=0.8)
    axes[0, 1].set(xscale="log", ylim=(-1.08, 1.08), ylabel="dominance share $D$", title="who wins")
    _rates(axes[1, 0], data["squared_opposed"])
    _guarantee(axes[1, 1], data, "squared")
    for ax in axes[1]:
        ax.set_xlabel("time $t$")
    plots.letters(axes)
    plots.legend_above(axes[0, 0], ncols=2)
    return fig


def _losses(ax: Any, data: Any, loss: str) -> None:
    for start, (colour, line, label) in STARTS.items():
        if f"{loss}_{start}" in data:
            found = data[f"{loss}_{start}"]
            ratio = (found.loss / found.loss[:, 0])[:, 1:]
            plots.band(ax, found.t[1:], ratio, color=colour, linestyle=line, label=label)
    ax.axhline(1, color="0.6", lw=0.8)
    ax.set(xscale="log", yscale="log", ylabel="loss / initial loss", title=f"{loss} loss")


def _rates(ax: Any, found: Any) -> None:
    """The two parts of the rate from the opposed start, and what the loss really does."""
    t = found.t.values
    for key, colour, line, label in (
        ("hidden", "#B5651D", "-.", "first layer"),
        ("readout", "#6D6875", ":", "read-out"),
    ):
        part = (found[key] / found.loss)[:, 1:]
        plots.band(ax, t[1:], part, color=colour, linestyle=line, label=label)
    total = ((found.readout + found.hidden) / found.loss)[0, 1:]
    plots.theory_line(ax, t[1:], total, linewidth=1.2, label="sum (formula)")
    plots.points(ax, t[1:-1:2], found.rate[0, 1:-1:2], markersize=4, label="measured")
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set(xscale="log", ylabel=r"rate $-\dot L/L$", title="the opposed start climbs")
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_yticks([-1, 0, 1], ["$-1$", "0", "1"])
    plots.legend(ax, fontsize=9, labelspacing=0.2)
    ax.set_ylim(top=1e5)


def _guarantee(ax: Any, data: Any, loss: str) -> None:
    """How far the dominant start has come, against what is guaranteed, both linear in t."""
    found, bounds = data[f"{loss}_dominant"], data["bounds"]
    t = found.t.values
    if loss == "squared":
        fall = {"measured": np.log(found.loss[:, 0] / found.loss)}
        fall |= {k: np.log(bounds[k][:, 0] / bounds[k]) for k in ("tangent", "kernel")}
        lines = {
            "tangent": ((0, (5, 2)), r"bound with $\Theta$"),
            "kernel": ("-", "bound with $K$"),
        }
        ax.set_ylabel(r"$\log\, L(0)/L(t)$")
    else:
        fall = {"measured": 1 / found.loss - 1 / found.loss[:, 0]}
        fall["separable"] = 1 / bounds.separable - 1 / bounds.separable[:, 0]
        lines = {"separable": ("-", "bound")}
        ax.set_ylabel("$1/L(t) - 1/L(0)$")
    plots.band(
        ax, t[1:], fall["measured"][:, 1:], color=STARTS["dominant"][0], label="dominant start"
    )
    for name, (line, label) in lines.items():
        low = fall[name].values.min(0)
        low = np.where(low < 1e-5, np.nan, low)  # below the digits that the results file keeps
        plots.theory_line(ax, t[1:], low[1:], linestyle=line, label=label, linewidth=1.4)
    ax.set(xscale="log", yscale="log", title="the guarantee is loose")
    plots.legend(ax, fontsize=9, labelspacing=0.2)


def logistic(data: Any) -> Any:
    """Logistic loss from three starts, and its guarantee."""
    fig, axes = plots.figure(1, 2, height=3.0)
    _losses(axes[0], data, "logistic")
    plots.legend(axes[0], fontsize=9)
    _guarantee(axes[1], data, "logistic")
    for ax in axes:
        ax.set_xlabel("time $t$")
    plots.letters(axes)
    return fig


# --- implicit regularisation ---------------------------------------------------------------------


def laws(data: Any) -> Any:
    """Growth in practice, gradient alignment, weight decay, and each law's drift."""
    fig, axes = plots.figure(2, 2, height=2.9)
    _practice(axes[0, 0], data["practice"])
    table = data["fit"]
    for rule in table.rule.values:
        runs = table.cosine.sel(rule=rule)
        plots.band(axes[0, 1], np.maximum(table.epoch, 0.5), runs, rule=str(rule))
    chance = data["chance"].cosine.values
    axes[0, 1].axhspan(-2 * chance.std(), 2 * chance.std(), color="0.9", lw=0)
    axes[0, 1].set(
        xscale="log", xlabel="epoch", ylabel="cosine with gradient", title="noisy labels: alignment"
    )
    plots.legend(axes[0, 1], fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.18))
    _decay(axes[1, 0], data["decay"])
    _slopes(axes[1, 1], data["laws"])
    plots.letters(axes)
    return fig


def _practice(ax: Any, table: Any) -> None:
    late = table.sel(epoch=table.epoch >= 1)
    curves = {
        "norm": ("#B5651D", "-", r"$\Delta\frac{1}{2}\|W_1\|^2$"),
        "alignment": ("#274C77", "--", r"$\Delta\langle B_2,W_2\rangle$"),
    }
    for key, (colour, line, text) in curves.items():
        plots.band(ax, late.epoch, late[key], color=colour, linestyle=line, label=text)
    plots.theory_line(
        ax,
        late.epoch,
        late.squares.mean("seed"),
        linewidth=1.2,
        label=r"$\frac{1}{2}\sum\|\Delta W_1\|^2$",
    )
    gap = (late.norm - late.alignment).mean("seed")
    plots.points(ax, late.epoch[::2], gap[::2], markersize=4, label="difference")
    ax.set(xscale="log", yscale="log", xlabel="epoch", title="FA in practice")
    ax.set_ylim(bottom=float(gap.min()) / 300)
    ax.set_xticks([1, 3, 10, 30], ["1", "3", "10", "30"])
    ax.set_xticks([], minor=True)
    plots.legend(ax, fontsize=9, ncols=2, loc="lower right", columnspacing=0.8)


def _decay(ax: Any, table: Any) -> None:
    for layer, colour, line in ((0, plots.SHADES[0], "-"), (1, plots.SHADES[3], "--")):
        ratio = table.ratio.isel(layer=layer)
        gone = ratio.where((ratio > 0) & (ratio < 30))[:, 1:]
        plots.band(ax, table.t[1:], gone, color=colour, linestyle=line, label=f"layer {layer + 1}")
    plots.theory_line(ax, table.t[1:], np.ones(len(table.t) - 1), label="derived", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="time $t$", title="FA with weight decay")
    ax.set_ylabel("norm² / alignment")
    plots.legend(ax, fontsize=9)


def _slopes(ax: Any, table: Any) -> None:
    lr = table.lr.values
    for rule in table.rule.values:
        own = table.drift.sel(rule=rule, law=rule).mean("seed")
        plots.points(ax, lr, own, rule=str(rule), markersize=4.5)
    guide = float(table.drift.sel(rule="FA", law="FA").mean("seed")[-1]) * lr / lr[-1]
    plots.theory_line(ax, lr, guide, label="slope 1", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel=r"step size $\eta$", title="drift of each rule's law")
    ax.set_ylabel("drift")
    ax.set_xticks(lr, [f"1/{1 / step:.0f}" for step in lr])
    ax.minorticks_off()
    plots.legend(ax, fontsize=9, ncols=2, columnspacing=0.6, handletextpad=0.2)


def table_of_laws(data: Any) -> Any:
    """Drift of every law under every rule, in units of the rule's own law's drift."""
    import seaborn as sns

    fig, ax = plots.figure(1, 1, height=3.6, width=5.2)
    table = data["laws"]
    drift = table.drift.isel(lr=-1).mean("seed").values
    share = drift / np.diag(drift)[:, None]
    sns.heatmap(
        np.log10(share), ax=ax, annot=share, fmt=".0f", annot_kws={"fontsize": 9.5}, cmap="Blues",
        vmin=0, vmax=4, cbar=False, square=True,
        xticklabels=table.law.values, yticklabels=table.rule.values,
    )  # fmt: skip
    ax.set(xlabel="quantity of", ylabel="trained by", title="drift / drift of its own law")
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)
    return fig


def noisy_fit(data: Any) -> Any:
    """Accuracy on the noisy training labels and on clean test images."""
    fig, axes = plots.figure(1, 2, height=3.0)
    table = data["fit"]
    for ax, key, title in zip(axes, ("train", "test"), ("noisy training labels", "clean test")):
        for rule in table.rule.values:
            runs = 100 * table[key].sel(rule=rule)
            plots.band(ax, np.maximum(table.epoch, 0.5), runs, rule=str(rule))
        ax.set(xscale="log", xlabel="epoch", title=title)
    axes[0].set_ylabel("accuracy (%)")
    plots.legend(axes[0], fontsize=9)
    plots.letters(axes)
    return fig


# --- many classes --------------------------------------------------------------------------------


def _look(rule: str) -> dict[str, Any]:
    """A rule's colour, marker and line; settings of the dial are FA, in lighter tones."""
    if not rule.startswith("ρ"):
        return plots.rule_style(rule)
    light = rule == "ρ = 0.5"
    marker, line = ("^", (0, (4, 1))) if light else ("v", (0, (2, 1)))
    fa = plots.RULE_COLOURS["FA"]
    return {"label": rule, "color": fa, "marker": marker, "linestyle": line, "alpha": 0.55}


def many_classes(data: Any) -> Any:
    """Accuracy against the number of classes, and against alignment with the most of them."""
    table = data["CIFAR-100"] if "CIFAR-100" in data else data["mixture"]
    fig, axes = plots.figure(1, 2, height=3.7)
    test, classes = 100 * table.test.isel(budget=-1), table.K.values
    above = test - 100 / table.K
    kept = 100 * above / above.sel(rule="BP")
    for place, rule in enumerate(table.rule.values):
        runs, look = kept.sel(rule=rule).transpose("seed", "K").values, _look(str(rule))
        mean, x = runs.mean(0), classes * 1.05 ** (place - 2)
        low, high = plots.band_edges(runs, kind="95%")
        plots.theory_line(axes[0], x, mean, **look | {"label": None, "linewidth": 1.2})
        plots.points(axes[0], x, mean, error=(high - low) / 2, **look)
        cosine = table.cosine.sel(rule=rule, K=int(table.many)).values
        dots = look | {"linestyle": "none", "label": None}
        last = test.sel(rule=rule, K=int(table.many)).values
        axes[1].plot(cosine, last, mfc="white", ms=6, **dots)
    axes[0].set(xscale="log", xlabel="classes", title="of BP's accuracy above chance (%)")
    axes[0].set_xticks(classes, [str(int(k)) for k in classes])
    axes[0].minorticks_off()
    axes[1].set(xlabel="cosine with the gradient", title=f"{int(table.many)} classes: accuracy (%)")
    plots.letters(axes)
    plots.legend_above(axes[0], ncols=6)
    return fig


def budgets(data: Any) -> Any:
    """For each data set: accuracy lost to BP at each budget, and test against training accuracy."""
    tables = [data[task] for task in ("mixture", "CIFAR-100") if task in data]
    fig, axes = plots.figure(len(tables), 2, height=3.1, squeeze=False)
    for row, table, name in zip(axes, tables, ("mixture", "CIFAR-100")):
        part = table.sel(K=int(table.many))
        for place, rule in enumerate(r for r in table.rule.values if r != "BP"):
            lost = 100 * (part.test.sel(rule="BP") - part.test.sel(rule=rule))
            runs = lost.transpose("seed", "budget").values
            low, high = plots.band_edges(runs, kind="95%")
            look = _look(str(rule))
            beside = table.budget.values * 1.06 ** (place - 2)
            row[0].plot(beside, runs.mean(0), ls=look["linestyle"], color=look["color"], lw=1.1,
                        alpha=look.get("alpha"))  # fmt: skip
            plots.points(row[0], beside, runs.mean(0), error=(high - low) / 2, **look)
        row[0].axhline(0, color="0.6", lw=0.8)
        row[0].set(xscale="log", xlabel="epochs", title=f"{name}: lost to BP (points)")
        row[0].set_xticks(table.budget.values, [f"{b:g}" for b in table.budget.values])
        row[0].minorticks_off()
        for rule in ("BP", "FA"):
            for number in range(min(5, table.sizes["seed"])):
                one = part.sel(rule=rule).isel(seed=number)
                look = _look(rule) | {"markersize": 4, "markerfacecolor": "white", "lw": 1.1}
                look |= {"label": rule if number == 0 else None}
                row[1].plot(100 * one.train_curve, 100 * one.test_curve, **look)
        row[1].set(xlabel="training accuracy (%)", title=f"{name}: test accuracy (%)")
        plots.legend(row[1], loc="upper left", fontsize=9)
    plots.letters(axes)
    plots.legend_above(axes[0, 0], ncols=5)
    return fig
