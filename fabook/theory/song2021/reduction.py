r"""Two-layer networks under feedback alignment, reduced to what n samples see of them.

The network of Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044,
$f(x) = p^{-1/2} \beta^T \psi(W x)$ with one output, feedback b in the place of $\beta$, the mean
squared error $n^{-1}\sum_i e_i^2$, and a penalty $\lambda$ on the second layer alone:

$$ \beta \leftarrow (1 - \eta\lambda)\,\beta - \frac{\eta}{\sqrt p}\,\psi(X W^T)^T g, \qquad
   W \leftarrow W - \frac{\eta}{\sqrt p}\,\bigl(\psi'(X W^T) \odot g\, b^T\bigr)^T X, \qquad
   g = \frac{2}{n}\, e . $$

W enters through $Z = X W^T$ only, and Z moves by the Gram matrix $K = X X^T$: a step of
:func:`.train_two_layer` costs $O(n^2 p)$ instead of $O(n d p)$, for any activation and
any number of inputs. In a linear network W keeps the form $W_0 - b\,(X^T s)^T$ and
$\beta = a \beta_0 + W_0 X^T q + c\, b$, so that n-vectors s, q and two numbers hold all: a
step of :func:`train_linear` costs $O(n^2)$ whatever the width. Both are exact. Derived.

The published runs have this loss. The theory of the paper has $\tfrac12 \sum_i e_i^2$, for
which the same steps have the rate $2\eta/n$ and the penalty $\lambda n/2$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..._checks import choose
from ...metrics import cosine
from ...networks import Scale
from ...rules import FA
from ...stacked import _LOCAL
from .._arrays import Array

_CHECK_EVERY = 1000  # steps between two looks for divergence


@dataclass(frozen=True)
class Stop:
    """When to stop: after ``least`` updates, if the loss has hardly changed between two looks.

    The rule of the published program. The loss is looked at before every update whose number is a
    multiple of ``every``. Once it differs by less than ``change`` from the look before (the first
    look: from zero), the run may end: after that update, but not before ``least``. One such look
    is enough, however early.

    Source: the published code of Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044

    Example:
        >>> published_stop(200)
        Stop(least=5050, every=1000, change=0.001)
    """

    least: int
    every: int = 1000
    change: float = 1e-3


def published_stop(width: int) -> Stop:
    r"""The published rule at a width: at least $\lfloor 5000 \sqrt p / 14 \rfloor$ steps.

    Source: the second author's published code. The loop is read in its program for the losses,
    where the same rule is switched off; the version of the program for the alignment that ran with
    it was not available to us.

    Example:
        >>> [published_stop(p).least for p in (200, 3200, 12800)]
        [5050, 20203, 40406]
    """
    return Stop(int(5000 * math.sqrt(width) // 14))


@dataclass
class Trajectory:
    """What was seen of R runs; NaN after a run has stopped.

    Attributes:
        steps: (P,) number of updates before each look.
        loss: (P, R) mean squared error.
        cosine: (P, R) of the feedback b with the second layer $\\beta$.
        moved: (P, R) cosine of b with $\\beta - \\beta_0$; NaN at the start.
        stopped: (R,) the step at which each run ended.
        settled: (R,) whether the stopping rule ended it, not the number of steps.
        values: what the probes returned, name to (P, ...).

    Source: the quantities of Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044

    Example:
        >>> from fabook import stream, two_layer
        >>> net = two_layer(20, 400, activation="linear", generator=stream(0, "w"))
        >>> rule = FA(net, init="standard_normal", generator=stream(0, "b"))
        >>> x = torch.randn(5, 20, generator=stream(0, "x"))
        >>> seen = train_two_layer(rule, x, x[:, 0], lr=0.02, steps=300, probe_at=[0, 100])
        >>> seen.steps.tolist(), seen.loss.shape, seen.settled.tolist()
        ([0, 100, 300], (3, 1), [False])
        >>> bool(seen.final("cosine")[0] > seen.cosine[0, 0])  # it has aligned
        True
    """

    steps: np.ndarray
    loss: Array
    cosine: Array
    moved: Array
    stopped: np.ndarray
    settled: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def final(self, name: str) -> Array:
        """``loss``, ``cosine`` or ``moved`` of each run where it stopped, (R,)."""
        values = getattr(self, choose("name", name, ("loss", "cosine", "moved")))
        at = np.searchsorted(self.steps, self.stopped)
        return np.asarray(values[at, np.arange(len(self.stopped))], dtype=float)


# --- the parts of a rule and its network ---------------------------------------------------------


@dataclass
class _Parts:
    W: Tensor  # (p, d)
    beta: Tensor  # (p,)
    b: Tensor  # (p,)
    x: Tensor  # (n, d)
    y: Tensor  # (n,)
    activation: nn.Module


def _parts(rule: FA, x: Tensor, y: Tensor) -> _Parts:
    modules: list[Any] = list(rule.net) if isinstance(rule.net, nn.Sequential) else []
    kinds = [type(m) for m in modules]
    activation = kinds[1] if len(kinds) == 4 else nn.Module
    is_plain = rule.fixed and bool(rule.feedback) and not rule.direct and activation in _LOCAL
    if not is_plain or kinds != [nn.Linear, activation, nn.Linear, Scale]:
        allowed = ", ".join(kind.__name__ for kind in _LOCAL)
        raise ValueError(
            f"needs FA on networks.two_layer with one of {allowed}; got {type(rule).__name__} on "
            f"{rule.net}"
        )
    first, act, second, scale = modules
    p = first.out_features
    if second.out_features != 1 or first.bias is not None or second.bias is not None:
        raise ValueError(f"needs one output and no biases; got {rule.net}")
    if not math.isclose(scale.factor, p**-0.5, rel_tol=1e-12):
        raise ValueError(f"the output must be scaled by 1/sqrt({p}); got {scale.factor:g}")
    n, d = len(x), first.in_features
    if x.shape != (n, d) or y.numel() != n or n == 0:
        raise ValueError(
            f"x must be (n, {d}) and y hold n targets; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    feedback = next(iter(rule.feedback.values()))
    W, beta = first.weight.detach(), second.weight.detach()
    return _Parts(W, beta[0], feedback[0], x.to(W), y.flatten().to(W), act)


def _check_settings(lr: float, penalty: Array, steps: int) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be positive; got {lr}")
    if not (np.isfinite(penalty).all() and (penalty >= 0).all() and (lr * penalty < 1).all()):
        raise ValueError(f"penalty must be in [0, 1/lr) = [0, {1 / lr:g}); got {penalty.tolist()}")
    if steps < 0:
        raise ValueError(f"steps must not be negative; got {steps}")


def _run(
    state: _Linear | _TwoLayer,
    runs: int,
    steps: int,
    probe_at: Iterable[int],
    stop: Stop | None,
    probe: Mapping[str, Callable[[Any], Any]],
) -> Trajectory:
    """Take steps and looks; runs leave at their own stop."""
    due = {int(at) for at in probe_at}
    if wrong := sorted(at for at in due if not 0 <= at <= steps):
        raise ValueError(f"probe_at must lie in [0, {steps}]; got {wrong[:3]}")
    if stop is not None:
        due |= set(range(0, steps + 1, stop.every))
    active, last = np.arange(runs), np.zeros(runs)
    ends, stopped = np.full(runs, np.inf), np.full(runs, steps)
    leaving = {steps}  # steps at which some run ends
    at, rows = [], []
    seen: dict[str, list[np.ndarray]] = {name: [] for name in probe}
    for step in range(steps + 1):
        error = state.error()
        judged = stop is not None and step % stop.every == stop.every - 1
        shown = step in due or step in leaving
        if shown or judged or step % _CHECK_EVERY == 0:
            row = np.full((3, runs), np.nan)
            row[:, active] = state.look(error)
            if not np.isfinite(row[0, active]).all():
                run = active[~np.isfinite(row[0, active])][0]
                raise FloatingPointError(f"run {run} diverged before step {step}: loss is infinite")
            if shown:
                at.append(step)
                rows.append(row)
                for name, look in probe.items():
                    seen[name].append(np.asarray(look(state)))
            if stop is not None and judged:
                settling = np.isinf(ends) & (np.abs(row[0] - last) < stop.change)
                ends[settling] = max(stop.least, step + 1)
                leaving |= {int(end) for end in ends[settling]}
                last = row[0]
            done = ends[active] <= step
            if done.any():
                stopped[active[done]] = step
                if done.all():
                    break
                keep = torch.as_tensor(~done)
                error = error[keep.to(error.device)]
                state.keep(keep)
                active = active[~done]
        if step < steps:
            state.step(error)
    settled = ends <= stopped
    loss, cos, moved = np.moveaxis(np.array(rows), 0, 1)
    found = {name: np.stack(values) for name, values in seen.items()}
    return Trajectory(np.array(at), loss, cos, moved, stopped, settled, found)


# --- linear networks -----------------------------------------------------------------------------


@dataclass
class LinearRuns:
    r"""R linear networks as the reduction sees them; made by :func:`linear_runs`.

    Attributes:
        K, M: (R, n, n), $X X^T$ and $A A^T$ with $A = X W_0^T$.
        m0, mb, y: (R, n), $A \beta_0$, $A b$ and the targets.
        b0, bb, beta2: (R,), $b \cdot \beta_0$, $|b|^2$ and $|\beta_0|^2$.
        width: p.

    Source: derived, for the linear networks of Song, Xu & Lafferty (2021),
    https://arxiv.org/abs/2106.06044

    Example:
        >>> from fabook import stream, two_layer
        >>> net = two_layer(20, 400, activation="linear", generator=stream(0, "w"))
        >>> x = torch.randn(5, 20, generator=stream(0, "x"))
        >>> runs = linear_runs([FA(net, generator=stream(0, "b"))], [x], [x[:, 0]])
        >>> runs.width, bool((runs.mirrored().mb == -runs.mb).all())
        (400, True)
    """

    K: Tensor
    M: Tensor
    m0: Tensor
    mb: Tensor
    y: Tensor
    b0: Tensor
    bb: Tensor
    beta2: Tensor
    width: int

    def mirrored(self) -> LinearRuns:
        """The same runs with feedback -b; averaging over both cancels the noise of b and beta."""
        return LinearRuns(
            self.K, self.M, self.m0, -self.mb, self.y, -self.b0, self.bb, self.beta2, self.width
        )


def linear_runs(rules: Sequence[FA], x: Sequence[Tensor], y: Sequence[Tensor]) -> LinearRuns:
    """Reduce linear two-layer networks of one width, each with its own data.

    Args:
        rules: R rules ``FA`` on :func:`fabook.two_layer` networks with ``linear`` units
            and one output.
        x: R inputs (n, d).
        y: R targets (n,) or (n, 1).

    Returns:
        LinearRuns in double precision. The networks stay as they are.

    Raises:
        ValueError: other rules or networks, or shapes that do not fit together.

    Example:
        >>> from fabook import stream, two_layer
        >>> net = two_layer(20, 400, activation="linear", generator=stream(0, "w"))
        >>> x = torch.randn(5, 20, generator=stream(0, "x"))
        >>> runs = linear_runs([FA(net, generator=stream(0, "b"))], [x], [x[:, 0]])
        >>> runs.K.shape, runs.K.dtype  # n = 5 samples are all that is kept of 20 x 400 weights
        (torch.Size([1, 5, 5]), torch.float64)
    """
    if not len(rules) == len(x) == len(y) > 0:
        raise ValueError(
            f"rules, x and y must be of one length, at least 1; got {len(rules)}, {len(x)}, "
            f"{len(y)}"
        )
    rows: list[dict[str, Tensor]] = []
    widths = set()
    for rule, inputs, targets in zip(rules, x, y, strict=True):
        parts = _parts(rule, inputs, targets)
        if not isinstance(parts.activation, nn.Identity):
            raise ValueError(f"needs linear units; got {parts.activation}")
        X, W, beta, b = (v.double() for v in (parts.x, parts.W, parts.beta, parts.b))
        A = X @ W.T
        rows.append(
            {"K": X @ X.T, "M": A @ A.T, "m0": A @ beta, "mb": A @ b, "y": parts.y.double()}
            | {"b0": b @ beta, "bb": b @ b, "beta2": beta @ beta}
        )
        widths.add(len(beta))
    if len(widths) > 1 or len({row["y"].shape for row in rows}) > 1:
        raise ValueError(f"runs must share width and number of samples; got widths {widths}")
    return LinearRuns(
        **{k: torch.stack([row[k] for row in rows]) for k in rows[0]}, width=max(widths)
    )


class _Linear(LinearRuns):
    """State (s, q, a, c) of R runs, with the products K s and M q carried along."""

    def __init__(
        self, runs: LinearRuns, lr: float, penalty: Array, until: NDArray[np.int64] | None
    ) -> None:
        super().__init__(**vars(runs))
        n = runs.y.shape[1]
        self.maps = torch.cat([runs.K, runs.M], 1)  # (R, 2n, n)
        self.h, self.lr, self.n = runs.width**-0.5, lr, n
        device = runs.y.device
        self.penalty = torch.as_tensor(penalty, device=device)
        self.until = None if until is None else torch.as_tensor(until, device=device)
        self.q = torch.zeros_like(runs.y)
        self.Ks, self.Mq = torch.zeros_like(runs.y), torch.zeros_like(runs.y)
        self.a, self.c = torch.ones_like(runs.b0), torch.zeros_like(runs.b0)
        self.taken = 0

    def keep(self, mask: Tensor) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[mask.to(value.device)])

    def along_b(self) -> Tensor:
        r"""$b \cdot \beta$, (R,)."""
        return self.a * self.b0 + (self.mb * self.q).sum(1) + self.c * self.bb

    def error(self) -> Tensor:
        f = self.a[:, None] * self.m0 + self.Mq + self.c[:, None] * self.mb
        f.addcmul_(self.along_b()[:, None], self.Ks, value=-1.0)
        return f.mul_(self.h).sub_(self.y)

    def step(self, error: Tensor) -> None:
        g = error * (2 / self.n)
        Kg, Mg = torch.bmm(self.maps, g[:, :, None])[:, :, 0].split(self.n, 1)
        move = self.lr * self.h
        penalty = self.penalty
        if self.until is not None:
            penalty = penalty * (self.taken < self.until)
        stay = 1 - self.lr * penalty
        # s' K g with the s of before the step; K is symmetric
        self.c = stay * self.c + move * (self.Ks * g).sum(1)
        self.a = stay * self.a
        self.q = (stay[:, None] * self.q).sub_(g, alpha=move)
        self.Mq = (stay[:, None] * self.Mq).sub_(Mg, alpha=move)
        self.Ks = self.Ks.add(Kg, alpha=move)
        self.taken += 1

    def look(self, error: Tensor) -> Array:
        """Loss, cosine of b and beta, cosine of b and what beta moved by; (3, R)."""
        loss = error.square().mean(1)
        bb, mbq = self.bb, (self.mb * self.q).sum(1)
        m0q, qMq = (self.m0 * self.q).sum(1), (self.q * self.Mq).sum(1)
        found = []
        for a in (self.a, self.a - 1):
            along = a * self.b0 + mbq + self.c * bb
            norm2 = a**2 * self.beta2 + qMq + self.c**2 * bb
            norm2 = norm2 + 2 * (a * m0q + a * self.c * self.b0 + self.c * mbq)
            found.append(along / (bb * norm2).sqrt())
        return torch.stack([loss, *found]).cpu().numpy()


@torch.no_grad()
def train_linear(
    runs: LinearRuns,
    *,
    lr: float,
    penalty: float | Sequence[float] | Array = 0.0,
    steps: int,
    probe_at: Iterable[int] = (),
    stop: Stop | None = None,
    until: int | Sequence[int] | None = None,
) -> Trajectory:
    r"""Train linear two-layer networks under FA, exactly, at a cost that no width changes.

    Args:
        runs: R networks with their data, by :func:`linear_runs`.
        lr: learning rate $\eta$ of the mean squared error.
        penalty: $\lambda$ on the second layer, one for all or one for each run.
        steps: number of full-batch updates, the most with ``stop``.
        probe_at: numbers of updates after which to look; the last step is always one.
        stop: end each run by this rule; looks at multiples of its ``every`` are kept too.
        until: switch the penalty off from this step on, one for all or one for each run.

    Returns:
        Trajectory of the R runs.

    Raises:
        ValueError: settings out of range; it names them.
        FloatingPointError: a run diverged.

    Example:
        >>> from fabook import FA, stream, two_layer
        >>> net = two_layer(20, 400, activation="linear", generator=stream(0, "w"))
        >>> rule = FA(net, init="standard_normal", generator=stream(0, "b"))
        >>> x = torch.randn(5, 20, generator=stream(0, "x"))
        >>> seen = train_linear(linear_runs([rule], [x], [x[:, 0]]), lr=1e-3, steps=3000)
        >>> bool(seen.final("loss")[0] < 1e-3)
        True
    """
    R = len(runs.y)
    penalties = np.asarray(penalty, dtype=float)
    if penalties.shape not in ((), (R,)):
        raise ValueError(
            f"penalty must be one number or one for each of {R} runs; got shape {penalties.shape}"
        )
    _check_settings(lr, penalties, steps)
    ends = None
    if until is not None:
        ends = np.asarray(until, dtype=np.int64)
        if ends.shape not in ((), (R,)) or (ends < 0).any():
            raise ValueError(
                f"until must be one step or one for each of {R} runs, none negative; got {until}"
            )
        ends = np.broadcast_to(ends, R).copy()
    state = _Linear(runs, lr, np.broadcast_to(penalties, R).copy(), ends)
    return _run(state, R, steps, probe_at, stop, {})


# --- any activation ------------------------------------------------------------------------------


class _TwoLayer:
    """Pre-activations Z (n, p) and second layer beta (p,) of one network."""

    def __init__(self, parts: _Parts, lr: float, penalty: float, until: float) -> None:
        self.activation = parts.activation
        self.forward, self.backward = _LOCAL[type(parts.activation)]
        self.K = parts.x @ parts.x.T
        self.Z = parts.x @ parts.W.T
        self.Z0, self.beta0 = self.Z.clone(), parts.beta.clone()
        self.beta, self.b, self.y = parts.beta.clone(), parts.b, parts.y
        self.lr, self.penalty, self.until, self.taken = lr, penalty, until, 0
        self.n, self.h = len(parts.y), len(parts.b) ** -0.5

    def keep(self, mask: Tensor) -> None:
        raise AssertionError("one run has nothing to drop")

    def error(self) -> Tensor:
        self.hidden, self.saved = self.forward(self.activation, self.Z)
        return ((self.hidden @ self.beta) * self.h - self.y)[None]

    def step(self, error: Tensor) -> None:
        g, move = error[0] * (2 / self.n), self.lr * self.h
        stay = 1 - self.lr * self.penalty * (self.taken < self.until)
        self.beta = stay * self.beta - move * (g @ self.hidden)
        signal = self.backward(self.activation, torch.outer(g, self.b), self.saved)
        self.Z.addmm_(self.K, signal, alpha=-move)
        self.taken += 1

    def look(self, error: Tensor) -> Array:
        pair = (cosine(self.b, self.beta), cosine(self.b, self.beta - self.beta0))
        loss = error.double().square().mean()
        return np.array([[float(loss)], *([float(v)] for v in pair)])


@torch.no_grad()
def train_two_layer(
    rule: FA,
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    penalty: float = 0.0,
    steps: int,
    probe_at: Iterable[int] = (),
    stop: Stop | None = None,
    until: int | None = None,
    probe: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Trajectory:
    r"""Train a two-layer network under FA through its pre-activations, exactly.

    $Z \leftarrow Z - \eta p^{-1/2} K (\psi'(Z) \odot g\,b^T)$: the same numbers as
    ``fabook.train`` with full batches, up to rounding, at $O(n^2 p)$ a step.

    Args:
        rule: ``FA`` on a :func:`fabook.two_layer` network with one output. Dtype and
            device are the network's; it stays as it is.
        x: (n, d) inputs.
        y: (n,) or (n, 1) targets.
        lr: learning rate of the mean squared error.
        penalty: $\lambda$ on the second layer.
        steps, probe_at, stop: as in :func:`train_linear`.
        until: switch the penalty off from this step on.
        probe: functions of the state, called at each look: it has ``Z`` (n, p), ``hidden`` (n, p),
            ``beta`` and ``b`` (p,), ``K`` (n, n), and ``Z0``, ``beta0`` of the start.

    Returns:
        Trajectory with R = 1.

    Raises:
        ValueError: another rule or network, or settings out of range.
        FloatingPointError: the run diverged.

    Example:
        >>> from fabook import FA, stream, two_layer
        >>> net = two_layer(20, 100, activation="tanh", generator=stream(0, "w"))
        >>> rule = FA(net, init="standard_normal", generator=stream(0, "b"))
        >>> x = torch.randn(5, 20, generator=stream(0, "x"))
        >>> seen = train_two_layer(rule, x, x[:, 0], lr=0.05, steps=300, probe_at=[0, 100])
        >>> seen.steps
        array([  0, 100, 300])
    """
    _check_settings(lr, np.asarray(float(penalty)), steps)
    if until is not None and until < 0:
        raise ValueError(f"until must be a step, not negative; got {until}")
    state = _TwoLayer(_parts(rule, x, y), lr, penalty, math.inf if until is None else until)
    return _run(state, 1, steps, probe_at, stop, probe or {})
