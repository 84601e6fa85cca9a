"""Minibatch training under any feedback rule, with probes at chosen steps."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ._checks import HOW, check_rate, choose
from .base import Rule, check_rule
from .losses import Loss
from .measuring import peak_bytes as peak_bytes
from .measuring import step_times as step_times
from .metrics import Alignment
from .stack import evaluating
from .tuning import Tuned as Tuned
from .tuning import tune as tune

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

Probe = Callable[[], Any]

_CHECK_EVERY = 100  # updates between two looks for divergence
_KEEP = 1000  # losses that are held as tensors of their own


@dataclass
class History:
    """What a run and its probes saw.

    Attributes:
        steps: (P,) number of updates before each probe.
        epochs: (P,) the same in passes over the training data.
        values: name of each quantity with its values, (P,) or (P, ...) for arrays.
        diverged: None, or the message of the divergence that ended the run.
        loss: (T,) loss of each update's own batch, before the update; (T, R) of R stacked runs.

    Example:
        >>> from fabook import BP, linear_net
        >>> rule, x = BP(linear_net([1, 1])), torch.ones(1, 1)
        >>> seen = train(rule, x, x, steps=2, lr=0.25, loss="mse", probe_at=[0, 1, 2],
        ...              probe={"w": lambda: rule.net[0].weight.item()})
        >>> seen["w"].tolist(), seen.loss.tolist(), seen.steps.tolist()
        ([0.0, 0.5, 0.75], [1.0, 0.25], [0, 1, 2])
    """

    steps: np.ndarray
    epochs: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    diverged: str | None = None
    loss: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def frame(self) -> pd.DataFrame:
        """Return the probes as a table: a row for each step, a column for each number.

        Beside ``epoch`` and the probes' values there is ``loss``, the mean of the training loss
        over the updates since the row before (NaN in a row that none precedes); a probe of the
        same name stands in its place. A quantity that is an array has one column for each of its
        entries: ``norm[0]``, ``norm[1]``, ...

        Returns:
            pandas table with ``step`` as its index.

        Example:
            >>> seen = History(np.array([0, 2]), np.array([0.0, 1.0]), loss=np.array([3.0, 1.0]))
            >>> seen.frame().loc[2].to_dict()
            {'epoch': 1.0, 'loss': 2.0}
        """
        import pandas as pd

        since = [slice(a, b) for a, b in zip([0, *self.steps], self.steps, strict=False)]
        empty = np.full(self.loss.shape[1:], np.nan)
        losses = [self.loss[s].mean(0) if s.start < s.stop else empty for s in since]
        columns = {"epoch": self.epochs, "loss": np.array(losses), **self.values}
        flat: dict[str, np.ndarray] = {}
        for name, column in columns.items():
            if column.ndim < 2:
                flat[name] = column
                continue
            for index in np.ndindex(column.shape[1:]):
                flat[f"{name}[{', '.join(map(str, index))}]"] = column[(slice(None), *index)]
        return pd.DataFrame(flat, index=pd.Index(self.steps, name="step"))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.values:
            there = ", ".join(self.values) or "none"
            raise KeyError(f"no probe recorded {name!r}; there are {there}; the loss is .loss")
        return self.values[name]


def log_steps(n_max: int, count: int, *, first: int = 1) -> NDArray[np.int64]:
    """Return about `count` distinct integers from `first` to `n_max`, evenly spaced in logarithm.

    Args:
        n_max: last step.
        count: how many at most; rounding merges some of the early ones.
        first: first step, at least 1.

    Raises:
        ValueError: ``first`` or ``count`` out of range.

    Example:
        >>> log_steps(1000, 4).tolist()
        [1, 10, 100, 1000]
    """
    if not 1 <= first <= n_max or count < 1:
        raise ValueError(
            f"need 1 <= first <= n_max and count >= 1, got first={first}, n_max={n_max}, "
            f"count={count}"
        )
    return np.unique(np.rint(np.geomspace(first, n_max, count)).astype(np.int64))


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
        y: (n, ...) labels or targets, as :meth:`fabook.Rule.backward` takes them.
        epochs: passes over the data (or give ``steps``).
        steps: number of updates.
        batch_size: samples of an update; None for all of them.
        lr: learning rate of plain gradient descent.
        optimizer: a torch optimizer over ``rule.parameters()`` instead of ``lr``.
        loss: see :func:`fabook.losses.output_error`.
        reduction: ``mean`` or ``sum`` over a batch.
        generator: CPU generator of the order; needed when ``batch_size`` is smaller than n.
        drop_last: leave out the short last batch of each epoch.
        probe: functions without arguments, called at ``probe_at``; each returns a number, an
            :class:`~fabook.metrics.Alignment` (recorded as ``name`` for the total and
            ``name[layer]``), an array, or a mapping whose keys are appended to its name.
        probe_at: numbers of updates after which to probe (0 is before the first).
        after_step: called with the number of updates done after each update, for a learning-rate
            schedule say.
        on_divergence: ``raise`` or ``stop`` (keep what was recorded and say so in the history).
        label: name of the run in messages.
        progress: show a progress bar.

    Returns:
        History of the training loss and the probes.

    Raises:
        ValueError: arguments that contradict each other or lie outside what is allowed.
        TypeError: a probe is no function, or returns nothing.
        FloatingPointError: the loss is not finite or a probed quantity is infinite
            (``on_divergence="raise"``); names the run, the step and the quantity.

    Example:
        >>> from fabook import BP, mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(20, 4, generator=g), torch.zeros(20, dtype=torch.long)
        >>> rule = BP(mlp([4, 3, 2], generator=g))
        >>> seen = train(rule, x, y, epochs=2, batch_size=8, lr=0.1, generator=g, probe_at=[0, 6])
        >>> seen.steps, bool(seen.loss[-1] < seen.loss[0])
        (array([0, 6]), True)
    """
    n = len(x)
    choose("on_divergence", on_divergence, ("raise", "stop"))
    if n == 0 or n != len(y):
        raise ValueError(f"x and y must have the same positive length; got {n} and {len(y)}")
    plan = Schedule(
        n, epochs=epochs, steps=steps, batch_size=batch_size, drop_last=drop_last,
        probe_at=probe_at, probes=bool(probe),
    )  # fmt: skip
    _check_step(rule, lr, optimizer)
    if not isinstance(generator, Generator) and not plan.whole:
        raise ValueError(f"minibatches need {HOW} for their order; got {generator!r}")
    record = _Recorder(probe or {}, label)
    value = torch.zeros(())
    try:
        for step in _progress_bar(range(plan.total + 1), progress, label):
            if plan.looks(step):
                record.check(step, "loss", float(value))
            if step in plan.due:
                record.take(step)
            if step == plan.total:
                break
            inputs, targets = x, y
            if not plan.whole:
                if step % plan.per_epoch == 0:
                    order = torch.randperm(n, generator=generator).to(x.device)
                batch = plan.batch(step, order)
                inputs, targets = x.index_select(0, batch), y.index_select(0, batch)
            if optimizer is None:
                assert lr is not None
                value = rule.sgd_step(inputs, targets, lr, loss=loss, reduction=reduction)
            else:
                value = rule.backward(inputs, targets, loss=loss, reduction=reduction)
                optimizer.step()
            record.keep_loss(value)
            if after_step is not None:
                after_step(step + 1)
    except FloatingPointError as error:
        if on_divergence == "raise":
            raise
        return record.history(plan.per_epoch, str(error))
    return record.history(plan.per_epoch)


def _progress_bar(steps: Sequence[int], progress: bool, label: str) -> Iterable[int]:
    """The steps, with a bar on a terminal that counts them if ``progress``."""
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc=label, disable=not sys.stderr.isatty(), leave=False)


class Schedule:
    """Which samples make each update, and after which updates to look.

    Args:
        n: samples.
        epochs, steps, batch_size, drop_last, probe_at: as in :func:`fabook.train`.
        probes: whether there is anything to look with.

    Raises:
        ValueError: as :func:`fabook.train`.

    Example:
        >>> plan = Schedule(10, epochs=2, steps=None, batch_size=4, drop_last=False, probe_at=[1],
        ...                 probes=True)
        >>> plan.per_epoch, plan.total, plan.whole, plan.looks(1), plan.looks(2)
        (3, 6, False, True, False)
        >>> plan.batch(2, torch.arange(10))  # the short last batch of an epoch
        tensor([8, 9])
    """

    def __init__(
        self,
        n: int,
        *,
        epochs: float | None,
        steps: int | None,
        batch_size: int | None,
        drop_last: bool,
        probe_at: Iterable[int],
        probes: bool,
    ) -> None:
        size = n if batch_size is None else _whole("batch_size", batch_size)
        if not 1 <= size <= n:
            raise ValueError(f"batch_size must lie in [1, {n}]; got {batch_size}")
        if (epochs is None) == (steps is None):
            raise ValueError("give either epochs or steps")
        if epochs is not None and not math.isfinite(epochs):
            raise ValueError(f"epochs must be finite; got {epochs}")
        self.n, self.size = n, size
        self.per_epoch = n // size if drop_last else math.ceil(n / size)
        if steps is None:
            assert epochs is not None
            steps = round(epochs * self.per_epoch)
        self.total = _whole("steps", steps)
        if self.total < 0:
            raise ValueError(f"the number of updates must not be negative; got {steps}")
        if not isinstance(probe_at, Iterable):
            raise TypeError(f"probe_at must hold numbers of updates, [{probe_at!r}] for instance")
        self.due = set(probe_at)
        if wrong := sorted(at for at in self.due if at not in range(self.total + 1)):
            raise ValueError(f"probe_at must be whole numbers in [0, {self.total}]; got {wrong}")
        if probes and not self.due:
            raise ValueError(
                f"probe without probe_at would see nothing: give numbers of updates in "
                f"[0, {self.total}], such as probe_at=[0, {self.total}]"
            )

    @property
    def whole(self) -> bool:
        """Whether each update takes all samples, in their own order."""
        return self.size == self.n

    def looks(self, step: int) -> bool:
        """Whether to look for divergence after ``step`` updates."""
        return step in self.due or step == self.total or step % _CHECK_EVERY == 0

    def batch(self, step: int, orders: Tensor) -> Tensor:
        """The part of the epoch's order (..., n) that makes the update after ``step`` others."""
        start = (step % self.per_epoch) * self.size
        return orders[..., start : start + self.size]


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number; got {value!r}") from None


class _Recorder:
    """Collects the training loss and what the probes see, step by step."""

    def __init__(self, probes: Mapping[str, Probe], label: str) -> None:
        if not isinstance(probes, Mapping) or not all(callable(look) for look in probes.values()):
            raise TypeError(
                "probe must map names to functions without arguments, such as "
                f"{{'alignment': lambda: fabook.weight_alignment(rule)}}; got {probes!r}"
            )
        self.probes, self.label = probes, label
        self.steps: list[int] = []
        self.rows: list[dict[str, np.ndarray]] = []
        self.losses: list[Tensor] = []
        self.kept: list[Tensor] = []  # earlier losses, many in one tensor

    def check(self, step: int, quantity: str, value: float) -> None:
        """Raise if a value is not finite."""
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.label} diverged at step {step}: {quantity} is {value}")

    def keep_loss(self, value: Tensor) -> None:
        """Keep the loss of an update."""
        self.losses.append(value)
        if len(self.losses) == _KEEP:
            self.kept.append(torch.stack(self.losses).double().cpu())
            self.losses = []

    def take(self, step: int) -> None:
        """Call the probes."""
        row: dict[str, np.ndarray] = {}
        for probe, look in self.probes.items():
            for name, value in _named(probe, look()):
                if name in row:
                    raise ValueError(f"two probes record {name!r}")
                try:  # of None numpy would make NaN
                    row[name] = np.asarray(object() if value is None else value, dtype=float)
                except (TypeError, ValueError):
                    what = f"probe {name!r} returned {value!r:.80}"
                    raise TypeError(f"{what}; allowed are numbers and arrays") from None
        for name, found in row.items():
            if infinite := found[np.isinf(found)].tolist():
                # NaN is a zero vector's cosine, not a divergence
                self.check(step, name, infinite[0])
        if self.rows and row.keys() != self.rows[0].keys():
            raise ValueError(
                f"probes recorded {sorted(self.rows[0])} at first and {sorted(row)} at step {step}"
            )
        self.steps.append(step)
        self.rows.append(row)

    def history(self, per_epoch: int, diverged: str | None = None) -> History:
        """Everything seen so far."""
        steps = np.array(self.steps, dtype=int)
        names = list(self.rows[0]) if self.rows else []
        values = {name: np.stack([row[name] for row in self.rows]) for name in names}
        rest = [torch.stack(self.losses).double().cpu()] if self.losses else []
        found = [*self.kept, *rest]
        loss = torch.cat(found).numpy() if found else np.zeros(0)
        return History(steps, steps / per_epoch, values, diverged, loss)


def _named(name: str, seen: Any) -> Iterator[tuple[str, ArrayLike]]:
    """What a probe returned as numbers and arrays with their names."""
    if isinstance(seen, Mapping):
        yield from ((f"{name}{key}", value) for key, value in seen.items())
        return
    several = isinstance(seen, Sequence) and seen and isinstance(seen[0], Alignment)
    if not several and not isinstance(seen, Alignment):
        yield name, seen.detach().cpu() if isinstance(seen, Tensor) else seen
        return
    runs: Sequence[Alignment] = seen if several else [seen]
    columns = {name: [a.total for a in runs]}
    columns |= {f"{name}[{layer}]": [a.layers[layer] for a in runs] for layer in runs[0].layers}
    yield from ((key, value if several else value[0]) for key, value in columns.items())


def _check_step(rule: Rule, lr: float | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse steps that would not train this network."""
    check_rule(rule)
    if (lr is None) == (optimizer is None):
        raise ValueError("give either lr (plain gradient descent) or optimizer")
    if lr is not None:
        check_rate("lr", lr)
    learning = {id(p) for p in rule.net.parameters() if p.requires_grad}
    if not learning:
        raise ValueError("no parameter of the network requires a gradient: nothing would learn")
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be one such as torch.optim.Adam(rule.parameters()); got {optimizer!r}"
        )
    given = [p for group in optimizer.param_groups for p in group["params"]]
    known = {id(p) for p in (*rule.net.parameters(), *rule.parameters())}
    strange = [tuple(p.shape) for p in given if id(p) not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} of the optimizer's {len(given)} parameters are not in rule.net, the "
            f"first of shape {strange[0]}: make it of rule.parameters()"
        )
    if not any(id(p) in learning for p in given):
        raise ValueError("the optimizer holds no parameter of rule.net that requires a gradient")
    held = {id(p) for p in rule.parameters()} - {id(p) for p in rule.net.parameters()}
    if not held <= {id(p) for p in given}:
        raise ValueError(
            f"the feedback of {type(rule).__name__} learns and the optimizer does not hold it: "
            "make it of rule.parameters()"
        )


@torch.no_grad()
def accuracy(
    net: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 2000, axis: int | None = None
) -> float:
    """Fraction of labels at which the largest output stands; evaluation mode, then as before.

    Outputs (n, C), sequences (n, ..., C) and maps (n, C, ...) are taken: the shape of the labels
    is the outputs' without the classes' axis. Of equal outputs the first counts as the largest; an
    output with NaN is a miss. Labels -100 (``ignore_index`` of ``F.cross_entropy``) are left out.

    Args:
        net: classifier with two classes or more.
        x: (n, ...) inputs.
        y: (n, ...) labels, whole numbers in [0, C).
        batch_size: samples at a time.
        axis: axis of the classes; None finds it from the shapes, and where the last axis and
            axis 1 would both do, takes axis 1 under a convolution at the top, else the last.

    Raises:
        ValueError: without samples or labels; shapes that do not fit, labels out of range.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(3), torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"accuracy of {len(x)} samples and {len(y)} labels is undefined")
    if y.is_floating_point() or y.is_complex():
        raise ValueError(f"accuracy needs whole numbers as labels; got {y.dtype}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive; got {batch_size}")
    hits = labelled = 0
    with evaluating(net):
        for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            hit, counted = _hits(net, net(inputs), labels, axis)
            hits, labelled = hits + hit, labelled + counted
    if not labelled:
        raise ValueError("accuracy of no labels is undefined: all are -100")
    return hits / labelled


def _hits(net: nn.Module, output: Tensor, y: Tensor, axis: int | None) -> tuple[int, int]:
    """Number of hits, and of labels that count."""
    shape = tuple(output.shape)
    axes = sorted({1, output.ndim - 1} if axis is None else {axis % output.ndim}, reverse=True)
    fitting = [a for a in axes if 0 < a < output.ndim and y.shape == shape[:a] + shape[a + 1 :]]
    if not fitting or shape[fitting[0]] < 2:
        wanted = f"{shape[:-1]}" + (f" or {shape[:1] + shape[2:]}" if output.ndim > 2 else "")
        raise ValueError(
            f"accuracy of outputs {shape} needs two classes or more and labels of shape {wanted}; "
            f"got labels {tuple(y.shape)}"
        )
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    top_is_map = bool(layers) and isinstance(layers[-1], nn.Conv2d)
    found = min(fitting) if top_is_map else max(fitting)
    counts = y != -100
    classes = shape[found]
    if wrong := y[counts & ((y < 0) | (y >= classes))].tolist():
        raise ValueError(f"labels must lie in [0, {classes}) or be -100; got {wrong[0]}")
    right = (output.argmax(found) == y) & ~output.isnan().any(found)
    return int((right & counts).sum()), int(counts.sum())
