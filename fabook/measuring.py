"""What an update costs: seconds, and bytes at the peak."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def step_times(
    steps: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds that each of several functions takes, called in turn so that all meet the same load.

    The 10th percentile of the calls, which leaves out most of what other programs add.

    Args:
        steps: functions without arguments by name.
        repeats: calls of each, after one to warm up.
        clock: what tells the seconds; ``time.thread_time`` counts this thread's work alone.

    Returns:
        Seconds by name.

    Raises:
        ValueError: if ``repeats`` is not positive.

    Example:
        >>> from itertools import count
        >>> tick = count().__next__  # a clock that goes on when it is read
        >>> step_times({"nothing": lambda: None, "reads it twice": lambda: (tick(), tick())},
        ...            clock=tick)
        {'nothing': 1.0, 'reads it twice': 3.0}
    """
    if repeats < 1:
        raise ValueError(f"repeats must be positive; got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            begin = clock()
            step()
            if repeat:
                times[name].append(clock() - begin)
    return {name: float(np.quantile(seen, 0.1)) for name, seen in times.items()}


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every storage that operators make, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}  # address -> bytes that count
        self.watched: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for found in tree_leaves((args, kwargs or {})):
            self._see(found, counts=False)
        made = func(*args, **(kwargs or {}))
        for found in tree_leaves(made):
            self._see(found, counts=True)
        return made

    def _see(self, found: Any, *, counts: bool) -> None:
        if not isinstance(found, Tensor):
            return
        storage = found.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not address or address in self.known:
            return
        self.known[address] = size if counts else 0
        self.watched.append(weakref.finalize(storage, self._free, address))
        self.now += self.known[address]
        self.peak = max(self.peak, self.now)

    def _free(self, address: int) -> None:
        self.now -= self.known.pop(address, 0)

    def close(self) -> None:
        """Forget what is still there."""
        for each in self.watched:
            each.detach()


def peak_bytes(step: Callable[[], Any]) -> int:
    """Most bytes that the tensors made by a function hold at one moment of a call.

    What was there before does not count, nor does what a kernel needs within itself: the number
    belongs to the algorithm and not to the machine, and small networks have one as well.

    Args:
        step: function without arguments, such as an update; called twice, first to warm up.

    Example:
        >>> import torch
        >>> x = torch.ones(1000)  # 4 bytes a number
        >>> peak_bytes(lambda: (x + 1).sum())
        4004
    """
    step()
    with _Allocations() as seen:
        step()
    seen.close()
    return seen.peak
