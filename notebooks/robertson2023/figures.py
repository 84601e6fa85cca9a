"""Figures of the chapter, drawn from results alone: label -> Dataset in, figure out."""

from __future__ import annotations

from typing import Any

import numpy as np

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
