"""The picture of a sweep: a measured quantity over a swept parameter."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bookkit import claims
from bookkit.parameters import UsageError
from bookkit.sweep import Row, Sweep, cell


def chosen(names: Iterable[str], wanted: str) -> str:
    """The name that is wanted, or that alone ends with it.

    Raises:
        UsageError: if none does, or several.
    """
    names = list(dict.fromkeys(names))
    found = [name for name in names if f".{name}".endswith(f".{wanted}")]
    if not found:
        raise UsageError(f"no run has the quantity {wanted!r}{claims.suggest(wanted, names)}")
    if len(found) > 1 and wanted not in found:
        raise UsageError(f"several quantities end with {wanted!r} (allowed: {', '.join(found)})")
    return wanted if wanted in found else found[0]


def claimed(root: Path, notebook: str) -> list[str]:
    """The quantities of a notebook's claims, as `chosen` takes them."""
    own = [claim for claim in claims.load(root).values() if claim.notebook == notebook]
    return [f"{claim.id}.{check.quantity}" for claim in own for check in claim.checks]


def plot(sweep: Sweep, rows: Sequence[Row], quantity: str | None = None) -> Path:
    """A quantity over the first swept parameter but the seed: points are runs, lines medians.

    Args:
        quantity: its name, `claim.quantity`, or an end of it that only one has; by default the
            first of the table.

    Raises:
        UsageError: if no run has such a quantity, or several do.
    """
    from matplotlib.figure import Figure

    def name(row: Row) -> str:
        return ".".join(filter(None, (row["claim"], row["quantity"])))

    names = [name(row) for row in rows if row["quantity"]]
    wanted = chosen(names, quantity or next(iter(names), ""))
    swept = [axis for axis, values in sweep.axes.items() if len(values) > 1]
    x, *lines = sorted(swept, key=lambda axis: axis == "seed") or list(sweep.axes)
    lines = [axis for axis in lines if axis != "seed"]
    numbers = all(type(value) in (int, float) for value in sweep.axes[x])
    groups: dict[str, dict[Any, list[float]]] = {}
    stems = {job.stem: point for job, point in zip(sweep.jobs, sweep.points)}
    for row in rows:
        if name(row) == wanted:
            point = stems[row["run"]]
            label = ", ".join(f"{axis} = {point[axis]}" for axis in lines)
            if row["value"] is not None:
                at = float(point[x]) if numbers else str(cell(point[x]))
                groups.setdefault(label, {}).setdefault(at, []).append(row["value"])
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=x)
    claim, _, short = wanted.rpartition(".") if wanted.count(".") > 1 else ("", "", wanted)
    axes.set_title(claim, fontsize="small")  # as a label it would be longer than the axis
    axes.set_ylabel(short)
    for label, found in groups.items():
        found = dict(sorted(found.items())) if numbers else found
        (line,) = axes.plot(
            list(found), [statistics.median(v) for v in found.values()], label=label or None
        )
        for at, several in found.items():
            axes.plot([at] * len(several), several, "o", mfc="none", color=line.get_color())
    if lines:
        axes.legend(frameon=False)
    path = Path(f"{sweep.stem}.png")
    figure.savefig(path, dpi=150)
    return path
