r"""Minibatch training of many small networks at once: R runs in one tensor, one product a layer.

Seeds, settings and label draws of an experiment are runs of one architecture. One at a time, a
network of 100 units costs more in calls than in arithmetic; stacked, $W_l$ is a tensor
(R, n_l, n_{l-1}) and every product of :mod:`fabook.rules` is one ``torch.baddbmm``.

The networks stay ordinary networks: while they are trained, their parameters are views of the
stack, so every metric and every function of :mod:`fabook.training` reads them as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ._checks import check_rate, choose
from .losses import LOSSES, REDUCTIONS, output_error
from .networks import Erf, Scale
from .rules import BP, DFA, FA, Rule
from .stack import CLOSED, ByAutograd, UnsupportedModule, flat
from .training import History, Probe, Schedule, _progress_bar, _Recorder

_aten = torch.ops.aten
_LOSSES = LOSSES[:2]  # all but bce

# tanh(u) = 2 sigmoid(2u) - 1 takes a quarter of the time of torch's own on a CPU.
_LOCAL: dict[type[nn.Module], tuple[Callable[..., Any], Callable[..., Any]]] = {
    k: CLOSED[k] for k in (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Identity)
} | {
    nn.Tanh: (
        lambda m, u: (y := torch.sigmoid(u * 2).mul_(2).sub_(1), y),
        lambda m, g, y: _aten.tanh_backward(g, y),
    )
}

_PAIRS = _LOCAL | {k: CLOSED[k] for k in (Erf, Scale)}

# Elementwise, without parameters or randomness: these go by autograd, all runs in one call.
_ELEMENTWISE = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh,
    nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign,
    nn.Tanhshrink, nn.Threshold,
)  # fmt: skip


class _Layer(NamedTuple):
    """Linear layers of all runs."""

    place: int  # from the bottom
    weight: Tensor  # (R, n, m)
    bias: Tensor | None  # (R, 1, n)


class _Activation:
    """Activations of all runs; one call where the runs' settings are equal, else one a run."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        settings = [
            {k: v for k, v in vars(m).items() if k[0] != "_" and k not in ("training", "inplace")}
            for m in modules
        ]
        same = all(found == settings[0] for found in settings)
        self.modules = list(modules[:1] if same else modules)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Outputs (R, B, n), and what the way back needs."""
        parts = [x] if len(self.modules) == 1 else list(x.unbind())
        found = [_forward(m, part) for m, part in zip(self.modules, parts, strict=True)]
        outputs = [output for output, _ in found]
        return outputs[0] if len(found) == 1 else torch.stack(outputs), [s for _, s in found]

    def backward(self, signal: Tensor, saved: list[Any]) -> Tensor:
        """The signal (R, B, n) before the activation."""
        if len(self.modules) == 1:
            return _backward(self.modules[0], signal, saved[0])
        parts = zip(self.modules, signal.unbind(), saved, strict=True)
        return torch.stack([_backward(m, part, kept) for m, part, kept in parts])


def _forward(module: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    if type(module) in _PAIRS:
        found: tuple[Tensor, Any] = _PAIRS[type(module)][0](module, x)
        return found
    return ByAutograd.forward(module, x)


def _backward(module: nn.Module, signal: Tensor, saved: Any) -> Tensor:
    if type(module) in _PAIRS:
        found: Tensor = _PAIRS[type(module)][1](module, signal, saved)
        return found
    below: Tensor = saved.pull(signal)[0]
    return below


def _refuse(run: int, name: str, module: nn.Module, why: str) -> ValueError:
    return ValueError(f"run {run}, module {name!r} ({type(module).__name__}) {why}")


class _Parameter:
    """One parameter of all runs: the stack, what each run owns, and the steps they take."""

    def __init__(self, owners: list[nn.Parameter], values: Tensor, momentum: float) -> None:
        self.owners, self.values = owners, values
        self.homes = [p.data for p in owners]
        free = torch.tensor([p.requires_grad for p in owners], device=values.device)
        self.frozen, self.free = not bool(free.any()), bool(free.all())
        self.learns = free.view(-1, *[1] * (values.ndim - 1))
        self.velocity = torch.zeros_like(values) if momentum else None
        self.momentum = momentum

    def lend(self) -> None:
        """Make each run's parameter a view of the stack."""
        for p, own in zip(self.owners, self.values, strict=True):
            p.data = own.view(p.shape)

    def give_back(self) -> None:
        """Write the values where they were and let each run own them again."""
        for p, home, own in zip(self.owners, self.homes, self.values, strict=True):
            p.data = home.copy_(own.view(p.shape))

    def step(self, lr: float, left: Tensor, right: Tensor | None = None) -> None:
        """Descend along ``left @ right``, or along ``left`` alone."""
        if self.frozen:
            return
        if self.free and self.velocity is None and right is not None:
            self.values.baddbmm_(left, right, alpha=-lr)
            return
        gradient = left if right is None else torch.bmm(left, right)
        if self.velocity is not None:
            gradient = self.velocity.mul_(self.momentum).add_(gradient)
        if self.free:
            self.values.sub_(gradient, alpha=lr)
        else:
            self.values.copy_(torch.where(self.learns, self.values - lr * gradient, self.values))


def _stacks(kind: type[Rule]) -> bool:
    """Whether matrices that stay, taken before the first update, say all that a rule does."""
    kept = kind.send is (DFA if kind.direct else Rule).send and kind.pull is Rule.pull
    kept &= kind.from_top is Rule.from_top and kind.refresh in (Rule.refresh, FA.refresh)
    return kind is BP or (kind.fixed and kept)


class _Runs:
    """The parameters and feedback of all runs, and one step of them."""

    def __init__(self, rules: Sequence[Rule], momentum: float) -> None:
        kinds = {type(rule) for rule in rules}
        if len(kinds) != 1 or not _stacks(type(rules[0])):
            raise ValueError(
                "rules must all be one of BP, FA, DFA or a class with fixed=True that defines "
                f"matrix alone; got {', '.join(sorted(kind.__name__ for kind in kinds))}: any "
                "other is trained by fabook.train, one network at a time"
            )
        for run, rule in enumerate(rules):
            if type(rule).fixed and not rule.fixed:
                raise ValueError(f"run {run} redraws its feedback, which cannot be stacked")
        self.direct = rules[0].direct
        self.momentum = momentum
        self.parameters: list[_Parameter] = []
        self.ops: list[_Layer | _Activation] = []  # bottom to top
        nets = [list(flat("", rule.net)) for rule in rules]
        for run, net in enumerate(nets):
            if len(net) != len(nets[0]):
                raise ValueError(
                    f"networks must share one architecture: run {run} has {len(net)} modules, "
                    f"run 0 has {len(nets[0])}"
                )
        for level in zip(*nets, strict=True):
            self._place([name for name, _ in level], [module for _, module in level])
        for run, rule in enumerate(rules):
            try:
                rule.stack.check_unchanged()
            except (RuntimeError, UnsupportedModule) as error:
                raise ValueError(f"run {run}: {error}") from None
        self._refuse_shared_memory()
        shared = [[rule.matrix(n) for n in rule.receivers if rule.fixed] for rule in rules]
        for run, matrices in enumerate(shared):
            for matrix in matrices:
                if (matrix.dtype, matrix.device) != (self.weight.dtype, self.weight.device):
                    raise ValueError(
                        f"feedback of run {run} is {matrix.dtype} on {matrix.device}, the network "
                        f"{self.weight.dtype} on {self.weight.device}"
                    )
        stacked = [torch.stack(found) for found in zip(*shared, strict=True)]
        self.feedback = [f.mT.contiguous() if self.direct else f for f in stacked]

    @property
    def weight(self) -> Tensor:
        """The lowest weights, (R, n_1, n_0)."""
        return next(op.weight for op in self.ops if isinstance(op, _Layer))

    def _place(self, names: Sequence[str], modules: Sequence[Any]) -> None:
        first = modules[0]
        for run, module in enumerate(modules):
            if type(module) is not nn.Linear and type(module) not in (*_PAIRS, *_ELEMENTWISE):
                raise _refuse(run, names[run], module, "cannot be stacked: only nn.Linear and "
                              "elementwise activations without parameters can")  # fmt: skip
            if "forward" in vars(module):
                raise _refuse(run, names[run], module, "has a forward of its own")
            if type(module) is not type(first):
                raise _refuse(run, names[run], module, f"is {type(first).__name__} in run 0: "
                              "networks must share one architecture")  # fmt: skip
        if type(first) is not nn.Linear:
            self.ops.append(_Activation(modules))
            return
        places = [{k: (tuple(p.shape), p.dtype, p.device) for k, p in m.named_parameters()}
                  for m in modules]  # fmt: skip
        for run, found in enumerate(places):
            if found != places[0]:
                why = f"has {_shapes(found)}, run 0 has {_shapes(places[0])}"
                raise _refuse(
                    run, names[run], modules[run], f"{why}: networks must share one architecture"
                )
        weight = self._stack([m.weight for m in modules])
        bias = None if first.bias is None else self._stack([m.bias for m in modules])
        place = sum(isinstance(op, _Layer) for op in self.ops)
        self.ops.append(_Layer(place, weight, bias))

    def _stack(self, owners: list[nn.Parameter]) -> Tensor:
        values = torch.stack([p.detach() for p in owners])
        values = values.unsqueeze(1) if values.ndim == 2 else values
        self.parameters.append(_Parameter(owners, values, self.momentum))
        return values

    def _refuse_shared_memory(self) -> None:
        """Runs are trained side by side, so none may write into another's weights."""
        spans = []
        for each in self.parameters:
            for run, p in enumerate(each.owners):
                extent = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)) + 1
                begin = p.data_ptr()
                spans.append((begin, begin + extent * p.element_size(), run))
        spans.sort()
        for (_, end, a), (begin, _, b) in itertools.pairwise(spans):
            if begin < end:
                raise ValueError(f"runs {min(a, b)} and {max(a, b)} share the memory of a weight")

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Outputs (R, B, n_L), and what the way back needs of each module."""
        tape: list[Any] = []
        for op in self.ops:
            if isinstance(op, _Activation):
                x, saved = op.forward(x)
                tape.append(saved)
                continue
            tape.append(x)
            bias = op.bias
            x = torch.bmm(x, op.weight.mT) if bias is None else torch.baddbmm(bias, x, op.weight.mT)
        return x, tape

    def backward(self, signal: Tensor, tape: list[Any], lr: float) -> None:
        """Send the output error (R, B, n_L) down and take every layer's step."""
        own = {id(p.values): p for p in self.parameters}
        top: Tensor | None = None
        for op, saved in zip(reversed(self.ops), reversed(tape), strict=True):
            if isinstance(op, _Activation):
                signal = op.backward(signal, saved)
                continue
            top = signal if top is None else top
            delta, below = signal, op.place - 1
            if below >= 0:  # what goes down is formed before the weight changes
                if self.direct:
                    signal = torch.bmm(top, self.feedback[below])
                else:
                    signal = torch.bmm(delta, self.feedback[below] if self.feedback else op.weight)
            own[id(op.weight)].step(lr, delta.mT, saved)
            if op.bias is not None:
                own[id(op.bias)].step(lr, delta.sum(1, keepdim=True))
            if below < 0:
                return

    def check(self, step: int) -> None:
        for each in self.parameters:
            finite = each.values.flatten(1).isfinite().all(1)
            if not finite.all():
                run = int((~finite).nonzero()[0])
                raise FloatingPointError(
                    f"run {run} diverged before step {step}: a weight is not finite"
                )


def _shapes(parameters: Mapping[str, tuple[Any, ...]]) -> str:
    found = [f"{k} {shape} {str(dtype)[6:]}" for k, (shape, dtype, _) in parameters.items()]
    return ", ".join(found)


def _errors(output: Tensor, y: Tensor, loss: str, reduction: str) -> tuple[Tensor, Tensor]:
    """Loss of each run (R), and the output error (R, B, C) by :func:`output_error`."""
    _, error = output_error(output, y, loss, "sum")
    if loss == "mse":
        each = F.mse_loss(output, y.to(output.dtype), reduction="none").sum((1, 2))
        count = torch.full_like(each, output[0].numel())
    else:
        flat = y.flatten(0, 1)
        each = F.cross_entropy(output.flatten(0, 1), flat, reduction="none")
        each = each.view(output.shape[:2]).sum(1)
        counted = y != -100 if y.ndim == 2 else y.new_ones(y.shape[:2])
        count = counted.sum(1).to(each)
    if reduction == "sum":
        return each, error
    return each / count, error.div_(count[:, None, None])


def _per_run(name: str, value: Tensor, single_ndim: int, runs: int) -> tuple[Tensor, int]:
    """Rows of all runs one below the other, and how many rows apart the runs stand."""
    if value.ndim == single_ndim:
        return value, 0
    if value.ndim != single_ndim + 1 or len(value) != runs:
        raise ValueError(
            f"{name} ({value.dtype}) must have {single_ndim} axes, or one more with a row for each "
            f"of the {runs} runs in front; got {tuple(value.shape)}"
        )
    return value.flatten(0, 1), value.shape[1]


class _Data:
    """Inputs and targets of all runs."""

    def __init__(self, x: Tensor, y: Tensor, loss: str, runs: int, like: Tensor) -> None:
        if x.dtype != like.dtype:
            raise ValueError(f"x is {x.dtype}, the networks are {like.dtype}")
        if x.shape[-1] != like.shape[-1]:
            raise ValueError(f"the networks take {like.shape[-1]} inputs; got x {tuple(x.shape)}")
        labels = loss == "cross_entropy" and not y.is_floating_point()
        y = y.long() if labels else y
        self.x, self.x_apart = _per_run("x", x, 2, runs)
        self.y, self.y_apart = _per_run("y", y, 1 if labels else 2, runs)
        n = x.shape[-2]
        if n == 0 or len(self.y) != (runs * n if self.y_apart else n) or self.y_apart not in (0, n):
            raise ValueError(f"x has {n} samples a run; got y of shape {tuple(y.shape)}")
        self.n, self.runs = n, torch.arange(runs, device=x.device)[:, None]

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (R, B, d) and targets (R, B, ...) of the samples (R, B)."""
        x = self.x.index_select(0, (chosen + self.runs * self.x_apart).flatten())
        y = self.y.index_select(0, (chosen + self.runs * self.y_apart).flatten())
        return x.unflatten(0, chosen.shape), y.unflatten(0, chosen.shape)


@torch.no_grad()
def train_stacked(
    rules: Sequence[Rule],
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    momentum: float = 0.0,
    generators: Sequence[Generator] | None = None,
    loss: str = "cross_entropy",
    reduction: str = "mean",
    drop_last: bool = False,
    probe: Mapping[str, Probe] | None = None,
    probe_at: Iterable[int] = (),
    label: str = "stacked runs",
    progress: bool = False,
) -> History:
    """Train many networks at once; each as :func:`fabook.train` would train it alone.

    Args:
        rules: R rules, all ``BP``, all ``FA``, all ``DFA`` or all of one class of your own with
            ``fixed=True`` that defines ``matrix`` alone, each with its network and feedback.
            Networks of one architecture made of ``nn.Linear`` and elementwise activations; what
            is frozen and the settings of activations may differ between runs.
        x: (n, d) inputs for all runs, or (R, n, d).
        y: (n,) labels or (n, C) targets for all runs, or with R in front.
        lr: learning rate of gradient descent.
        epochs, steps, batch_size, drop_last: as in :func:`fabook.train`.
        momentum: as in ``torch.optim.SGD``; 0 is plain gradient descent.
        generators: R CPU generators, one for the order of each run; for minibatches.
        loss: ``cross_entropy`` or ``mse``.
        reduction: ``mean`` or ``sum`` over a batch.
        probe: functions without arguments, called at ``probe_at``; each returns what
            :func:`fabook.train` takes, one number or Alignment a run for instance. They
            may look at ``rule.net`` of every rule.
        probe_at: numbers of updates after which to probe (0 is before the first).
        label: name of the runs at the progress bar.
        progress: show a progress bar.

    Returns:
        History whose ``values`` have the shape (P, ...) of P probes and whose ``loss`` is (T, R).

    Raises:
        ValueError: rules or networks that cannot be stacked, naming run and module; arguments or
            data that do not fit.
        FloatingPointError: a run diverged; seen at the probes, every hundred updates and at the
            end.

    Example:
        >>> from fabook import DFA, mlp, stream
        >>> nets = [mlp([4, 3, 2], generator=stream(s, "weights")) for s in range(5)]
        >>> rules = [DFA(net, generator=stream(0, "feedback")) for net in nets]
        >>> x, y = torch.randn(20, 4, generator=stream(0, "x")), torch.arange(20) % 2
        >>> order = [stream(s, "order") for s in range(5)]
        >>> seen = train_stacked(
        ...     rules, x, y, epochs=2, batch_size=10, lr=0.1, generators=order, probe_at=[0, 4],
        ...     probe={"norm": lambda: [float(net[0].weight.detach().norm()) for net in nets]},
        ... )
        >>> seen["norm"].shape, seen.loss.shape
        ((2, 5), (4, 5))
    """
    choose("loss", loss, _LOSSES)
    choose("reduction", reduction, REDUCTIONS)
    check_rate("lr", lr)
    check_rate("momentum", momentum)
    if not rules:
        raise ValueError("rules must hold one rule or more; got none")
    stack = _Runs(rules, momentum)
    data = _Data(x, y, loss, len(rules), stack.weight)
    plan = Schedule(
        data.n, epochs=epochs, steps=steps, batch_size=batch_size, drop_last=drop_last,
        probe_at=probe_at, probes=bool(probe),
    )  # fmt: skip
    sources = [generators] if isinstance(generators, Generator) else list(generators or ())
    if (sources or not plan.whole) and len({id(g) for g in sources}) != len(rules):
        raise ValueError(
            f"generators must be {len(rules)}, one for each run; got {len({*map(id, sources)})}: "
            f"[fabook.stream(seed, 'order') for seed in range({len(rules)})]"
        )
    record = _Recorder(probe or {}, label)
    orders = torch.arange(data.n, device=x.device).expand(len(rules), -1)
    for each in stack.parameters:
        each.lend()
    try:
        for step in _progress_bar(range(plan.total + 1), progress, label):
            if plan.looks(step):
                stack.check(step)
            if step in plan.due:
                record.take(step)
            if step == plan.total:
                break
            if not plan.whole and step % plan.per_epoch == 0:
                drawn = [torch.randperm(data.n, generator=g) for g in sources]
                orders = torch.stack(drawn).to(x.device)
            inputs, targets = data.batch(plan.batch(step, orders))
            output, tape = stack.forward(inputs)
            values, error = _errors(output, targets, loss, reduction)
            record.keep_loss(values)
            stack.backward(error, tape, lr)
    finally:
        for each in stack.parameters:
            each.give_back()
    return record.history(plan.per_epoch)
