"""Minibatch training under any feedback rule, with probes at chosen steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from .networks import choose
from .rules import Loss, Rule

Probe = Callable[[], float | Mapping[str, float]]

_CHECK_EVERY = 100  # updates between two looks for divergence


@dataclass
class History:
    """What the probes saw.

    Attributes:
        steps: (P,) number of updates before each probe.
        epochs: (P,) the same in passes over the training data.
        values: name of each quantity with its (P,) values.
        diverged: None, or the message of the divergence that ended the run.
    """

    steps: np.ndarray
    epochs: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    diverged: str | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise KeyError(f"no probe recorded {name!r}; there are {', '.join(self.values)}")
        return self.values[name]


def train(
    rule: Rule,
    x: Tensor,
    y: Tensor,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
    generator: Generator | None = None,
    drop_last: bool = False,
    probe: Mapping[str, Probe] | None = None,
    probe_at: Iterable[int] = (),
    after_step: Callable[[int], Any] | None = None,
    on_divergence: str = "raise",
    label: str = "run",
    progress: bool = False,
) -> History:
    """Train a network under a feedback rule on minibatches drawn without replacement.

    With ``lr`` the step is plain gradient descent, in place; with ``optimizer`` gradients go to
    ``.grad`` and the optimizer takes the step. The last batch of an epoch is shorter unless
    ``drop_last``. The loss is checked for finiteness at every probe, every hundred updates and at
    the end; NaN from a probe is recorded, as it is the cosine of a zero vector.

    Args:
        rule: bound to the network; both on the device of the data.
        x: (n, ...) training inputs.
        y: (n,) labels or (n, C) targets.
        epochs: passes over the data (or give ``steps``).
        steps: number of updates.
        batch_size: samples of an update; None for all of them.
        lr: learning rate of plain gradient descent.
        optimizer: a torch optimizer over ``rule.net.parameters()`` instead of ``lr``.
        loss: see :func:`fabook.rules.output_error`.
        reduction: ``mean`` or ``sum`` over a batch.
        generator: CPU generator of the order; needed when ``batch_size`` is smaller than n.
        drop_last: leave out the short last batch of each epoch.
        probe: functions without arguments, called at ``probe_at``; each returns a number, or a
            mapping whose keys are appended to its name.
        probe_at: numbers of updates after which to probe (0 is before the first).
        after_step: called with the number of updates done after each update.
        on_divergence: ``raise`` or ``stop`` (keep what was recorded and say so in the history).
        label: name of the run in messages.
        progress: show a progress bar.

    Returns:
        History of the probes.

    Raises:
        ValueError: arguments that contradict each other or lie outside what is allowed.
        FloatingPointError: the loss is not finite or a probed quantity is infinite
            (``on_divergence="raise"``); names the run, the step and the quantity.

    Example:
        >>> from fabook import BP, mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(20, 4, generator=g), torch.zeros(20, dtype=torch.long)
        >>> rule = BP(mlp([4, 3, 2], generator=g))
        >>> train(rule, x, y, epochs=2, batch_size=8, lr=0.1, generator=g, probe_at=[0, 6]).steps
        array([0, 6])
    """
    n = len(x)
    choose("on_divergence", on_divergence, ("raise", "stop"))
    size = n if batch_size is None else batch_size
    if n == 0 or n != len(y):
        raise ValueError(f"x and y must have the same positive length; got {n} and {len(y)}")
    if not 1 <= size <= n:
        raise ValueError(f"batch_size must lie in [1, {n}]; got {batch_size}")
    if (lr is None) == (optimizer is None):
        raise ValueError("give either lr (plain gradient descent) or optimizer")
    if (epochs is None) == (steps is None):
        raise ValueError("give either epochs or steps")
    if generator is None and size < n:
        raise ValueError("minibatches need generator=torch.Generator() for their order")
    per_epoch = n // size if drop_last else math.ceil(n / size)
    total = steps if steps is not None else round((epochs or 0) * per_epoch)
    if total < 0:
        raise ValueError(f"the number of updates must not be negative; got {total}")
    due = set(probe_at)
    if wrong := sorted(at for at in due if at not in range(total + 1)):
        raise ValueError(f"probe_at must be whole numbers in [0, {total}]; got {wrong}")

    record = _Recorder(probe or {}, label)
    value = torch.zeros(())
    try:
        for step in _bar(range(total + 1), progress, label):
            if step in due or step == total or step % _CHECK_EVERY == 0:
                record.check(step, "loss", float(value))
            if step in due:
                record.take(step)
            if step == total:
                break
            if step % per_epoch == 0 and size < n:
                order = torch.randperm(n, generator=generator).to(x.device)
            if size < n:
                start = (step % per_epoch) * size
                batch = order[start : start + size]
                inputs, targets = x.index_select(0, batch), y.index_select(0, batch)
            else:
                inputs, targets = x, y
            if optimizer is None:
                assert lr is not None
                value = rule.sgd_step(inputs, targets, lr, loss=loss, reduction=reduction)
            else:
                value = rule.backward(inputs, targets, loss=loss, reduction=reduction)
                optimizer.step()
            if after_step is not None:
                after_step(step + 1)
    except FloatingPointError as error:
        if on_divergence == "raise":
            raise
        return record.history(per_epoch, str(error))
    return record.history(per_epoch, None)


def _bar(steps: Sequence[int], progress: bool, label: str) -> Iterable[int]:
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=label, disable=not sys.stderr.isatty(), leave=False)


class _Recorder:
    """Collects probe values step by step."""

    def __init__(self, probes: Mapping[str, Probe], label: str) -> None:
        self.probes, self.label = probes, label
        self.steps: list[int] = []
        self.rows: list[dict[str, float]] = []

    def check(self, step: int, quantity: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.label} diverged at step {step}: {quantity} is {value}")

    def take(self, step: int) -> None:
        row: dict[str, float] = {}
        for name, probe in self.probes.items():
            seen = probe()
            if isinstance(seen, Mapping):
                row |= {f"{name}{key}": float(value) for key, value in seen.items()}
            else:
                row[name] = float(seen)
        for name, value in row.items():
            if math.isinf(value):  # NaN is a zero vector's cosine, not a divergence
                self.check(step, name, value)
        self.steps.append(step)
        self.rows.append(row)

    def history(self, per_epoch: int, diverged: str | None) -> History:
        steps = np.array(self.steps, dtype=int)
        names = list(self.rows[0]) if self.rows else []
        values = {name: np.array([row[name] for row in self.rows]) for name in names}
        return History(steps, steps / per_epoch, values, diverged)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 2000) -> float:
    """Fraction of samples whose largest output is at the label; evaluation mode, then as before.

    Args:
        net: classifier with classes on the last axis.
        x: (n, ...) inputs.
        y: (n,) labels.
        batch_size: samples at a time.

    Raises:
        ValueError: without samples.
    """
    if len(x) == 0:
        raise ValueError("accuracy of no samples is undefined")
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        hits = sum(
            int((net(x[i : i + batch_size]).argmax(-1) == y[i : i + batch_size]).sum())
            for i in range(0, len(x), batch_size)
        )
    finally:
        for module, mode in modes:
            module.training = mode
    return hits / len(x)


def step_times(
    steps: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 50,
    quantile: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds that each of several functions takes, called in turn so that all meet the same load.

    Args:
        steps: functions without arguments by name.
        repeats: calls of each, after one to warm up.
        quantile: which of the sorted times to report; 0.1 leaves out what other programs add.
        clock: what tells the seconds; ``time.thread_time`` counts this thread's work alone.

    Raises:
        ValueError: if ``repeats`` is not positive.
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
    return {name: float(np.quantile(seen, quantile)) for name, seen in times.items()}
