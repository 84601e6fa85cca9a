"""Our runs beside a paper's, cell by cell, and measures of several papers on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import Array


@dataclass(frozen=True)
class Agreement:
    """Means and spreads of both sides, in one shape, NaN where either side has none.

    Attributes:
        ours, sd: mean and standard deviation of our runs; with fewer than two, the published one.
        runs: number of our runs in each cell.
        theirs, their_sd: the published mean and standard deviation.
        tolerance: how far the means may lie apart.

    Example:
        >>> found = compare([[0.50, 0.54], [0.9, 0.9]], [0.53, np.nan], [0.02, np.nan], runs=50)
        >>> found.difference.round(2).tolist(), found.compared.tolist(), found.runs.tolist()
        ([-0.01, nan], [True, False], [2, 2])
        >>> found.agrees.tolist(), found.fraction  # of the one cell that both have
        ([True, False], 1.0)
    """

    ours: Array
    sd: Array
    runs: NDArray[np.int64]
    theirs: Array
    their_sd: Array
    tolerance: Array

    @property
    def difference(self) -> Array:
        """Ours minus theirs."""
        return self.ours - self.theirs

    @property
    def compared(self) -> NDArray[np.bool_]:
        """The cells that both sides have."""
        return np.isfinite(self.difference)

    @property
    def agrees(self) -> NDArray[np.bool_]:
        """The cells whose means lie within the tolerance."""
        with np.errstate(invalid="ignore"):
            return np.abs(self.difference) <= self.tolerance

    @property
    def fraction(self) -> float:
        """The fraction of compared cells that agree; NaN if there are none."""
        return float(self.agrees[self.compared].mean()) if self.compared.any() else float("nan")


def compare(
    ours: ArrayLike,
    mean: ArrayLike,
    sd: ArrayLike,
    *,
    runs: int,
    errors: float = 3.0,
    slack: float = 0.01,
) -> Agreement:
    r"""Compare our runs with published means and standard deviations.

    Two means agree within
    $k \sqrt{s^2/m + s_{pub}^2/m_{pub}} + \text{slack}$, k standard errors of both combined.

    Args:
        ours: (..., seeds), NaN where a cell has fewer runs.
        mean, sd: the published values, (...).
        runs: number of published runs behind each mean.
        errors: k.
        slack: what the reading of the published numbers may add.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> found = compare([[0.50, 0.54], [0.9, 0.9]], [0.53, 0.7], [0.02, 0.02], runs=50)
        >>> found.agrees.tolist(), found.fraction
        ([True, False], 0.5)
    """
    values = np.asarray(ours, dtype=float)
    theirs, their_sd = np.asarray(mean, dtype=float), np.asarray(sd, dtype=float)
    if values.shape[:-1] != theirs.shape or theirs.shape != their_sd.shape:
        raise ValueError(
            f"ours must be (..., seeds) over the published shape {theirs.shape}; got "
            f"{values.shape} and spreads {their_sd.shape}"
        )
    there = np.isfinite(values)
    count = there.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(there, values, 0).sum(-1) / count
        around = np.where(there, values - centre[..., None], 0)
        spread = np.sqrt((around**2).sum(-1) / (count - 1))
        spread = np.where(count > 1, spread, their_sd)
        tolerance = errors * np.sqrt(spread**2 / count + their_sd**2 / runs) + slack
    return Agreement(centre, spread, count, theirs, their_sd, tolerance)


def markdown(
    found: Agreement,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    corner: str = "",
    digits: int = 3,
) -> str:
    """A Markdown table of a two-dimensional agreement: published, ours, and whether they agree.

    Args:
        found: of shape (rows, columns).
        rows, columns: their names.
        corner: heading of the first column.
        digits: decimals of every number.

    Example:
        >>> found = compare([[[0.5, 0.54]]], [[0.53]], [[0.02]], runs=50)
        >>> print(markdown(found, ["0"], ["p = 200"], corner="penalty"))
        | penalty | p = 200 |
        | --- | --- |
        | 0 | .530 ± .020<br>**.520** ± .028 (2) ✓ |
    """

    def number(value: float) -> str:
        return (
            f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"
        )

    def cell(i: int, j: int) -> str:
        at, lines = (i, j), []
        if np.isfinite(found.theirs[at]):
            lines.append(f"{number(found.theirs[at])} ± {number(found.their_sd[at])}")
        if found.runs[at]:
            spread = f" ± {number(found.sd[at])}" if found.runs[at] > 1 else ""
            line = f"**{number(found.ours[at])}**{spread} ({found.runs[at]})"
            mark = (" ✓" if found.agrees[at] else " ✗") if found.compared[at] else ""
            lines.append(line + mark)
        return "<br>".join(lines)

    head = f"| {corner} | {' | '.join(columns)} |"
    rule = "| --- " * (len(columns) + 1) + "|"
    body = [
        f"| {name} | {' | '.join(cell(i, j) for j in range(len(columns)))} |"
        for i, name in enumerate(rows)
    ]
    return "\n".join([head, rule, *body])


def onset(t: ArrayLike, curve: ArrayLike, *, fraction: float = 0.2) -> Array:
    """When a curve has for good gone so far from its start to its extreme, in logarithmic time.

    The extreme is the value farthest from the first one, above or below. Measures of different
    scales and signs are compared by it; what crosses the level and comes back has not begun.
    Derived.

    Args:
        t: (P,) times that increase, the first of which may be 0.
        curve: (..., P).
        fraction: of the way, in (0, 1).

    Returns:
        (...); NaN where the curve never moves, or ends before that level.

    Raises:
        ValueError: times that do not increase, or a fraction out of range.

    Example:
        >>> round(float(onset([0, 1, 100], [0.0, 0.0, 1.0], fraction=0.5)), 9)
        10.0
    """
    at, y = np.asarray(t, dtype=float), np.asarray(curve, dtype=float)
    if at.ndim != 1 or len(at) < 2 or at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError("times must increase from 0 or above")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1); got {fraction}")
    way = y - y[..., :1]
    far = np.take_along_axis(way, np.abs(way).argmax(-1)[..., None], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = way / far
    below = ~(share >= fraction)  # NaN counts as below, and so does the first share, 0
    before = (len(at) - 1 - below[..., ::-1].argmax(-1))[..., None]
    after = np.minimum(before + 1, len(at) - 1)
    low, high = (np.take_along_axis(share, i, -1)[..., 0] for i in (before, after))
    clock = np.log(np.maximum(at, at[1]))
    first, second = clock[before][..., 0], clock[after][..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.exp(first + (fraction - low) / (high - low) * (second - first))


def at_equal_time(
    step: ArrayLike, curve: ArrayLike, seconds: ArrayLike, time: float | None = None
) -> Array:
    """Read learning curves that were recorded by updates at one and the same time.

    Between two looks a curve is a straight line, and after its last look it stays where it is.

    Args:
        step: (P,) numbers of updates that increase, the same for all curves.
        curve: (R, ..., P) curves of R rules.
        seconds: (R,) time of one update of each.
        time: seconds from the start; None for the end of the run that ends first.

    Returns:
        (R, ...)

    Raises:
        ValueError: updates that do not increase, or times that are not positive.

    Example:
        >>> at_equal_time([0, 100], [[0.0, 1.0], [0.0, 1.0]], [0.001, 0.002]).tolist()
        [1.0, 0.5]
    """
    at, y = np.asarray(step, dtype=float), np.asarray(curve, dtype=float)
    each = np.asarray(seconds, dtype=float)
    if at.ndim != 1 or (np.diff(at) <= 0).any():
        raise ValueError("numbers of updates must increase")
    if not (each > 0).all():
        raise ValueError(f"times of an update must be positive; got {each.tolist()}")
    until = at[-1] * each.min() if time is None else time
    found = [
        np.apply_along_axis(partial(np.interp, until / s, at), -1, c)
        for s, c in zip(each, y, strict=True)
    ]
    return np.asarray(found)
