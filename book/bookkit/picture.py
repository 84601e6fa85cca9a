"""The picture of a sweep: a measured quantity over a swept parameter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bookkit import claims
from bookkit.parameters import UsageError
from bookkit.sweep import Row, Sweep, cell


def plot(sweep: Sweep, rows: Sequence[Row], quantity: str | None = None) -> Path:
    """A quantity over the first swept parameter but the seed: points are runs, lines medians.

    Args:
        quantity: its name, `claim.quantity`, or an end of it that only one has; by default the
            first of the table.

    Raises:
        UsageError: if no run has such a quantity.
    """
    from matplotlib.figure import Figure

    names = {f"{row['claim']}.{row['quantity']}": row["quantity"] for row in rows if row["claim"]}
    names |= {row["quantity"]: row["quantity"] for row in rows if row["quantity"]}
    wanted = quantity or next(iter(names.values()), "")
    ends = {name for key, name in names.items() if key.endswith(f".{wanted}")}
    wanted = ends.pop() if wanted not in names and len(ends) == 1 else wanted
    if wanted not in names:
        raise UsageError(f"no run has the quantity {wanted!r}{claims.suggest(wanted, names)}")
    swept = [axis for axis, values in sweep.axes.items() if len(values) > 1]
    x, *lines = sorted(swept, key=lambda axis: axis == "seed") or list(sweep.axes)
    lines = [axis for axis in lines if axis != "seed"]
    numbers = all(type(value) in (int, float) for value in sweep.axes[x])
    groups: dict[str, dict[Any, list[float]]] = {}
    stems = {job.stem: point for job, point in zip(sweep.jobs, sweep.points)}
    for row in rows:
        if wanted in (row["quantity"], f"{row['claim']}.{row['quantity']}"):
            point = stems[row["run"]]
            label = ", ".join(f"{axis} = {point[axis]}" for axis in lines)
            if row["value"] is not None:
                at = float(point[x]) if numbers else str(cell(point[x]))
                groups.setdefault(label, {}).setdefault(at, []).append(row["value"])
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=wanted)
    for label, found in groups.items():
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
