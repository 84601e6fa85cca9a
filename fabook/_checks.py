"""Arguments that are refused in the same words everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

HOW = "generator=torch.Generator().manual_seed(0)"


def choose(what: str, name: str, allowed: Sequence[str]) -> str:
    """Return ``name`` if it is one of ``allowed``; else raise a ValueError that lists them."""
    if name not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}; got {name!r}")
    return name


def check_rate(name: str, rate: Any) -> None:
    """Refuse a rate that is no number, negative or not finite."""
    if isinstance(rate, str) or not (rate >= 0 and math.isfinite(rate)):
        raise ValueError(f"{name} must be a finite number that is not negative; got {rate!r}")


def check_count(what: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Refuse what is no whole number, or outside its limits."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{what} must be a whole number {limit}; got {value!r}")


def check_between(what: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and NaN."""
    if not low <= value <= high:
        raise ValueError(f"{what} must lie in [{low:g}, {high:g}]; got {value!r}")
