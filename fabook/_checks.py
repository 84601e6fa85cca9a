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
