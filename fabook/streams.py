"""Named random streams: every draw of an experiment comes from an explicit generator."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator


def stream(seed: int, *names: str | int) -> Generator:
    """Return the CPU generator that belongs to ``seed`` and a path of names.

    The generator is seeded with the SHA-256 of seed and names, so adding a stream never shifts
    another. PyTorch's CPU generator uses 32 bits of it: two of n streams are the same with
    probability $n^2/2^{33}$. ``"a/b"`` is the path ``"a", "b"``. Draws happen on the CPU, whatever
    the device of the run, so a seed means the same numbers everywhere.

    Args:
        seed: any integer.
        names: what the stream is for, such as ``"weights"`` or ``"feedback", 3``.

    Raises:
        TypeError: if ``seed`` is not an integer.

    Example:
        >>> a, b = stream(0, "weights"), stream(0, "weights")
        >>> bool((torch.randn(3, generator=a) == torch.randn(3, generator=b)).all())
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    text = "/".join([str(seed), *map(str, names)])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


@dataclass(frozen=True)
class Streams:
    """The four generators of a run: changing one leaves the draws of the others alone.

    Example:
        >>> a, b = streams(0), streams(0)
        >>> drawn = torch.randn(9, generator=a.data)
        >>> torch.equal(torch.randn(3, generator=a.order), torch.randn(3, generator=b.order))
        True
    """

    data: Generator
    weights: Generator
    feedback: Generator
    order: Generator


def streams(seed: int, *names: str | int) -> Streams:
    """Return the four named streams of a run: ``data``, ``weights``, ``feedback``, ``order``.

    Args:
        seed: any integer.
        names: optional path that separates several runs of one seed.

    Raises:
        TypeError: if ``seed`` is not an integer.

    Example:
        >>> s = streams(0)
        >>> bool(torch.randn(1, generator=s.weights) == torch.randn(1, generator=s.feedback))
        False
    """
    purposes = ("data", "weights", "feedback", "order")
    return Streams(*(stream(seed, *names, purpose) for purpose in purposes))
