"""What the theory of several papers shares: an array's type, and where a curve reaches a level."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _float(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)


def crossing(times: ArrayLike, curve: ArrayLike, level: float) -> Array:
    """First time at which a curve reaches a level from below, by straight lines between its points.

    Args:
        times: (n_t).
        curve: (..., n_t).
        level: the level to reach.

    Returns:
        (...), NaN where the curve stays below.

    Example:
        >>> float(crossing([0.0, 1.0, 2.0], [0.0, 0.2, 0.6], 0.4))
        1.5
    """
    t, y = _float(times), _float(curve)
    reached = y >= level
    i = reached.argmax(-1)  # the first point there; 0 also where there is none
    j = np.maximum(i - 1, 0)
    after, before = (np.take_along_axis(y, k[..., None], -1)[..., 0] for k in (i, j))
    share = np.where(i > 0, level - before, 0.0) / np.where(i > 0, after - before, 1.0)
    return np.where(reached.any(-1), t[j] + share * (t[i] - t[j]), np.nan)
