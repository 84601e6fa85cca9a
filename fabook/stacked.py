r"""Minibatch training of many small networks at once: R runs in one tensor, one product a layer.

Seeds, settings and label draws of an experiment are runs of one architecture. One at a time, a
network of 100 units costs more in calls than in arithmetic; stacked, $W_l$ is a tensor
(R, n_l, n_{l-1}), every product of :mod:`fabook.rules` is one `torch.baddbmm`, and a run costs a
third as much (34 against 104 microseconds of one CPU core for an update of 9-100-100-2, batch 32).

The networks stay ordinary networks: while they are trained, their weights are views of the stack,
so every metric and every function of :mod:`fabook.training` reads them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from .networks import choose
from .rules import _CLOSED, BP, DFA, DRTP, LOSSES, REDUCTIONS, Rule, output_error
from .training import History

Probe = Callable[[], Any]
_aten = torch.ops.aten

# tanh(u) = 2 sigmoid(2u) - 1 takes a quarter of the time of torch's own on a CPU.
_LOCAL: dict[type[nn.Module], tuple[Callable[..., Any], Callable[..., Any]]] = {
    k: _CLOSED[k] for k in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Identity)
} | {
    nn.Tanh: (
        lambda m, u: (y := torch.sigmoid(u * 2).mul_(2).sub_(1), y),
        lambda m, g, y: _aten.tanh_backward(g, y),
    )
}


class _Stack:
    """The weights and feedback of all runs, and one step of them."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        kinds = {type(rule) for rule in rules}
        if len(kinds) != 1 or not isinstance(rules[0], BP | DFA) or isinstance(rules[0], DRTP):
            names = sorted(kind.__name__ for kind in kinds)
            raise ValueError(f"rules must all be BP or all be DFA; got {', '.join(names)}")
        self.weights: list[tuple[list[Any], Tensor]] = []
        self.ops: list[Any] = []  # bottom to top: a weight (R, n, m), or a module and its pair
        for modules in zip(*(rule.net.modules() for rule in rules), strict=True):
            self._place(modules)
        shared = [rule.feedback.values() for rule in rules]
        self.feedback = [torch.stack(F).mT.contiguous() for F in zip(*shared, strict=True)]

    def _place(self, modules: Sequence[Any]) -> None:
        first = modules[0]
        if isinstance(first, nn.Sequential):
            return
        if {type(m) for m in modules} != {type(first)}:
            raise ValueError(f"networks must share one architecture; got {list(modules)}")
        if type(first) is not nn.Linear:
            if type(first) not in _LOCAL:
                allowed = ", ".join(kind.__name__ for kind in _LOCAL)
                raise ValueError(f"stacked networks hold Linear and {allowed}; got {first}")
            self.ops.append((first, *_LOCAL[type(first)]))
            return
        if dict(first.named_parameters()).keys() != {"weight"}:
            raise ValueError(f"stacked networks have no biases; got {first}")
        if len({layer.weight.shape for layer in modules}) != 1:
            raise ValueError(f"networks must share one architecture; got {list(modules)}")
        weight = torch.stack([layer.weight.detach() for layer in modules])
        self.weights.append((list(modules), weight))
        self.ops.append(weight)

    def lend(self) -> None:
        """Make each network's weights views of the stack."""
        for layers, weight in self.weights:
            for layer, own in zip(layers, weight, strict=True):
                layer.weight.data = own

    def give_back(self) -> None:
        """Let each network own its weights again."""
        for layers, weight in self.weights:
            for layer, own in zip(layers, weight, strict=True):
                layer.weight.data = own.clone()

    def step(self, x: Tensor, y: Tensor, lr: float, loss: str, scale: float) -> None:
        """One update of every run on its own batch, x (R, B, d)."""
        tape = []
        for op in self.ops:
            if isinstance(op, Tensor):
                tape.append(x)
                x = torch.bmm(x, op.mT)
            else:
                x, saved = op[1](op[0], x)
                tape.append(saved)
        signal = top = output_error(x, y, loss, "sum")[1].mul_(scale)  # (R, B, n_L)
        feedback = list(self.feedback)
        for op, saved in zip(reversed(self.ops), reversed(tape), strict=True):
            if not isinstance(op, Tensor):
                signal = op[2](op[0], signal, saved)
                continue
            delta, bottom = signal, op is self.weights[0][1]
            if not bottom:  # what goes down is formed before the weight changes
                signal = torch.bmm(top, feedback.pop()) if self.feedback else torch.bmm(delta, op)
            op.baddbmm_(delta.mT, saved, alpha=-lr)
            if bottom:
                return

    def check(self, step: int) -> None:
        for _, weight in self.weights:
            finite = weight.flatten(1).isfinite().all(1)
            if not finite.all():
                run = int((~finite).nonzero()[0])
                raise FloatingPointError(
                    f"run {run} diverged before step {step}: a weight is not finite"
                )


def _per_run(name: str, value: Tensor, single_ndim: int, runs: int) -> tuple[Tensor, int]:
    """Rows of all runs one below the other, and how many rows apart the runs stand."""
    if value.ndim == single_ndim:
        return value, 0
    if value.ndim != single_ndim + 1 or len(value) != runs:
        raise ValueError(
            f"{name} must have {single_ndim} axes, or one more with a row for each of the {runs} "
            f"runs in front; got {tuple(value.shape)}"
        )
    return value.flatten(0, 1), value.shape[1]


@torch.no_grad()
def train_stacked(
    rules: Sequence[Rule],
    x: Tensor,
    y: Tensor,
    *,
    epochs: float,
    batch_size: int,
    lr: float,
    generators: Sequence[Generator],
    loss: str = "cross_entropy",
    reduction: str = "mean",
    drop_last: bool = False,
    probe: Mapping[str, Probe] | None = None,
    probe_at: Iterable[int] = (),
) -> History:
    """Train many networks at once; each as :func:`fabook.training.train` would train it alone.

    Args:
        rules: R rules, all ``BP`` or all ``DFA``, on networks of one architecture made of
            ``nn.Linear`` without biases and activations; each with its weights and feedback.
        x: (n, d) inputs for all runs, or (R, n, d).
        y: (n,) labels or (n, C) targets for all runs, or with R in front.
        epochs: passes over the data.
        batch_size: samples of an update.
        lr: learning rate of plain gradient descent.
        generators: R CPU generators, one for the order of each run.
        loss: ``cross_entropy`` (labels) or ``mse`` (targets).
        reduction: ``mean`` or ``sum`` over a batch.
        drop_last: leave out the short last batch of each epoch.
        probe: functions without arguments, called at ``probe_at``; each returns a number or an
            array, such as one number a run. They may look at ``rule.net`` of every rule.
        probe_at: numbers of updates after which to probe (0 is before the first).

    Returns:
        History whose ``values`` have the shape (P, ...) of P probes.

    Raises:
        ValueError: rules or networks that cannot be stacked, or data of the wrong shape.
        FloatingPointError: a run diverged; seen at the probes and at the end.

    Example:
        >>> from fabook import DFA, mlp, stream
        >>> nets = [mlp([4, 3, 2], bias=False, generator=stream(s, "weights")) for s in range(5)]
        >>> rules = [DFA(net, generator=stream(0, "feedback")) for net in nets]
        >>> x, y = torch.randn(20, 4, generator=stream(0, "x")), torch.arange(20) % 2
        >>> order = [stream(s, "order") for s in range(5)]
        >>> seen = train_stacked(
        ...     rules, x, y, epochs=2, batch_size=10, lr=0.1, generators=order, probe_at=[0, 4],
        ...     probe={"norm": lambda: [float(net[0].weight.detach().norm()) for net in nets]},
        ... )
        >>> seen["norm"].shape
        (2, 5)
    """
    choose("loss", loss, LOSSES)
    choose("reduction", reduction, REDUCTIONS)
    R, n = len(rules), x.shape[-2]
    if len(generators) != R:
        raise ValueError(f"generators must be {R}, one for each run; got {len(generators)}")
    if not 1 <= batch_size <= n:
        raise ValueError(f"batch_size must lie in [1, {n}]; got {batch_size}")
    stack = _Stack(rules)
    rows, x_apart = _per_run("x", x, 2, R)
    targets, y_apart = _per_run("y", y, 1 if loss == "cross_entropy" else 2, R)
    if len(targets) != (R * n if y_apart else n) or y_apart not in (0, n):
        raise ValueError(f"x has {n} samples a run; got y of shape {tuple(y.shape)}")
    run_index = torch.arange(R, device=x.device)[:, None]
    per_epoch = n // batch_size if drop_last else math.ceil(n / batch_size)
    total, due = round(epochs * per_epoch), set(probe_at)
    if wrong := sorted(at for at in due if not 0 <= at <= total):
        raise ValueError(f"probe_at must lie in [0, {total}]; got {wrong}")
    seen: list[tuple[int, dict[str, np.ndarray]]] = []
    stack.lend()
    try:
        for step in range(total + 1):
            if step in due or step == total:
                stack.check(step)
            if step in due:
                values = {name: np.asarray(look()) for name, look in (probe or {}).items()}
                seen.append((step, values))
            if step == total:
                break
            if step % per_epoch == 0:
                orders = torch.stack([torch.randperm(n, generator=g) for g in generators])
                orders = orders.to(x.device)
            begin = (step % per_epoch) * batch_size
            batch = orders[:, begin : begin + batch_size]  # (R, B)
            inputs = rows.index_select(0, (batch + run_index * x_apart).flatten())
            wanted = targets.index_select(0, (batch + run_index * y_apart).flatten())
            scale = 1.0
            if reduction == "mean":
                samples = batch.shape[1]
                scale = 1.0 / (samples if loss == "cross_entropy" else samples * y.shape[-1])
            stack.step(
                inputs.unflatten(0, batch.shape),
                wanted.unflatten(0, batch.shape),
                lr,
                loss,
                scale,
            )
    finally:
        stack.give_back()
    steps = np.array([step for step, _ in seen], dtype=int)
    names = list(seen[0][1]) if seen else []
    return History(
        steps, steps / per_epoch, {name: np.stack([row[name] for _, row in seen]) for name in names}
    )
