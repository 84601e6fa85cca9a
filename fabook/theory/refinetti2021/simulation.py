r"""Online learning of a teacher by two-layer students: many independent runs in one tensor.

At every step each run meets a fresh input $x \sim N(0, I_N)$ and moves by

$$ w_k \leftarrow w_k + \frac{\eta}{\sqrt N}\, f_k\, g'(\lambda_k)\, \Delta\, x, \qquad
   v_k \leftarrow v_k + \frac{\eta}{N}\, g(\lambda_k)\, \Delta, $$

where $\lambda_k = w_k \cdot x / \sqrt N$, $\Delta = y - \hat y$, and $f = F$ under direct feedback
alignment or $f = v$ under back-propagation. Time is $t$ = steps / N. `online` describes
the limit of large N. Source: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log, pi, sqrt
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Generator, Tensor

from ...streams import stream
from ...training import _progress_bar, log_steps
from .._arrays import Array
from .online import alignment, generalisation_error

__all__ = ["OnlineRun", "OnlineState", "initial_conditions", "train_online"]

_CHECK_EVERY = 1000  # steps between two looks for divergence
_BLOCK = 2**20  # numbers drawn for one transfer to an accelerator

# Each activation: g(u), and g'(u) from u and g(u).
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "erf": (
        lambda u: torch.erf(u * sqrt(0.5)),
        lambda u, g: (u * u).mul_(-0.5).add_(log(2 / pi) / 2).exp_(),
    ),
    "linear": (lambda u: u, lambda u, g: torch.ones_like(u)),
    "relu": (torch.relu, lambda u, g: (u > 0).to(u.dtype)),
}


@dataclass(frozen=True)
class OnlineState:
    """Students, teachers and feedback of R independent runs (N inputs, K hidden, M teacher units).

    Students: `w` (R, K, N), `v` (R, K). Teachers: `B` (R, M, N), `A` (R, M). Feedback: `F` (R, K).

    Source: the setting of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.

    Raises:
        ValueError: shapes that do not fit together.

    Example:
        >>> start = initial_conditions([0, 1], 100, 3, 2)  # two runs; N = 100, K = 3, M = 2
        >>> start.w.shape, start.to(torch.float64).F.dtype
        (torch.Size([2, 3, 100]), torch.float64)
        >>> start.order_parameters()["R0"].shape
        (2, 3, 2)
    """

    w: Tensor
    v: Tensor
    B: Tensor
    A: Tensor
    F: Tensor

    def __post_init__(self) -> None:
        R, K, N = self.w.shape
        M = self.B.shape[1]
        want = {"v": (R, K), "B": (R, M, N), "A": (R, M), "F": (R, K)}
        for name, shape in want.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name} must have shape {shape}, got {got}")

    def to(self, *args: Any, **kwargs: Any) -> OnlineState:
        """Move or cast every tensor, with the arguments of `torch.Tensor.to`."""
        return OnlineState(
            *(x.to(*args, **kwargs) for x in (self.w, self.v, self.B, self.A, self.F))
        )

    def order_parameters(self) -> dict[str, Array]:
        """Return Q0, R0, T, v0 and A as `online.online_dynamics` takes them."""
        w, B, N = self.w.double(), self.B.double(), self.w.shape[-1]
        values = {
            "Q0": w @ w.mT / N,
            "R0": w @ B.mT / N,
            "T": B @ B.mT / N,
            "v0": self.v.double(),
            "A": self.A.double(),
        }
        return {name: x.cpu().numpy() for name, x in values.items()}


State = TypeVar("State", covariant=True)


@dataclass(frozen=True)
class OnlineRun(Generic[State]):
    """What the probes saw: the axes are run, probe, then units.

    `alignment` is cos(v, F), and NaN under back-propagation, which uses no F. `T` is constant.

    Source: what Refinetti et al. (2021), https://arxiv.org/abs/2011.12428,
    measure in their published code.

    Example:
        >>> from fabook.streams import stream
        >>> start = initial_conditions([0, 1], 50, 2, 3, init_sd=1.0)
        >>> run = train_online(start, lr=0.1, steps=100, probe_at=[0, 100],
        ...                    generator=stream(0, "inputs"))
        >>> run.t.tolist(), run.R.shape, run.alignment.shape, run.state.v.shape
        ([0.0, 2.0], (2, 2, 2, 3), (2, 2), torch.Size([2, 2]))
    """

    steps: NDArray[np.int64]  # (n_p)
    t: Array  # (n_p), steps / N
    Q: Array  # (R, n_p, K, K)
    R: Array  # (R, n_p, K, M)
    T: Array  # (R, M, M)
    v: Array  # (R, n_p, K)
    error: Array  # (R, n_p), closed-form and noise-free, with the factor 1/2
    alignment: Array  # (R, n_p)
    state: State  # where the runs ended


def initial_conditions(
    seeds: Sequence[int],
    n_inputs: int,
    n_hidden: int,
    n_teacher: int,
    *,
    init_sd: float | tuple[float, float] = 1e-2,
    teacher_output: ArrayLike | None = None,
    feedback: ArrayLike | None = None,
    dtype: torch.dtype = torch.float32,
) -> OnlineState:
    """Draw students, teachers and feedback, one run a seed, each part from a stream of its own.

    Student and teacher never share random numbers, and a run is the same whichever others stand
    beside it.

    Args:
        seeds: one integer a run.
        n_inputs, n_hidden, n_teacher: N, K and M.
        init_sd: standard deviation of the student's Gaussian weights, one number or (w, v).
        teacher_output: A, (M) for all runs; standard normal by default.
        feedback: F, (K) for all runs; standard normal by default.
        dtype: of the result; the draws are made in double precision.

    Example:
        >>> start = initial_conditions([0, 1, 2], 100, 4, 2, teacher_output=[1, 1])
        >>> start.w.shape, start.A[0].tolist()
        (torch.Size([3, 4, 100]), [1.0, 1.0])
    """
    sd_w, sd_v = init_sd if isinstance(init_sd, tuple) else (init_sd, init_sd)
    return OnlineState(
        w=sd_w * _draw(seeds, "student first layer", n_hidden, n_inputs),
        B=_draw(seeds, "teacher first layer", n_teacher, n_inputs),
        **_read_outs(seeds, n_hidden, n_teacher, sd_v, teacher_output, feedback),
    ).to(dtype)


def _draw(seeds: Sequence[int], name: str, *shape: int) -> Tensor:
    """Standard normal numbers (R, *shape), each run's from its own stream of this name."""

    def one(seed: int) -> Tensor:
        generator = stream(seed, "online", name)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return torch.stack([one(seed) for seed in seeds])


def _read_outs(
    seeds: Sequence[int],
    n_hidden: int,
    n_teacher: int,
    sd: float,
    teacher_output: ArrayLike | None,
    feedback: ArrayLike | None,
) -> dict[str, Tensor]:
    """v, A and F of every run."""

    def fixed(values: ArrayLike | None, name: str, units: int) -> Tensor:
        if values is None:
            return _draw(seeds, name, units)
        row = torch.as_tensor(np.asarray(values, dtype=np.float64))
        if row.shape != (units,):
            raise ValueError(f"{name} must have shape ({units},), got {tuple(row.shape)}")
        return row.repeat(len(seeds), 1)

    return {
        "v": sd * _draw(seeds, "student read-out", n_hidden),
        "A": fixed(teacher_output, "teacher_output", n_teacher),
        "F": fixed(feedback, "feedback", n_hidden),
    }


class _Batch:
    """The moving part: joint weights W = (w, B) and read-outs c = (-v, A) of all runs."""

    def __init__(
        self,
        start: OnlineState,
        rule: str,
        lr: float,
        activation: str,
        noise: float,
        data: Generator,
    ) -> None:
        self.start, self.data, self.noise = start, data, noise
        self.runs, self.K, self.N = start.w.shape
        self.W = torch.cat([start.w, start.B], dim=1)  # (R, K + M, N)
        self.c = torch.cat([-start.v, start.A], dim=1)  # (R, K + M)
        self.F = start.F if rule == "DFA" else None
        self.g, self.dg = _ACTIVATIONS[activation]
        self.activation, self.lr = activation, lr

    def draws(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield n inputs (R, 1, N) and noises (R, 1), drawn on the CPU one step after the other."""
        device, dtype = self.W.device, self.W.dtype
        block = 1 if device.type == "cpu" else max(1, _BLOCK // (self.runs * self.N))
        x = torch.empty(block, self.runs, 1, self.N, dtype=dtype)
        xi = torch.zeros(block, self.runs, 1, dtype=dtype)
        steps = list(zip(x, xi))
        for done in range(0, n, block):
            for x_step, xi_step in steps[: n - done]:
                x_step.normal_(generator=self.data)
                if self.noise:
                    xi_step.normal_(generator=self.data)
            yield from steps if block == 1 else zip(x[: n - done].to(device), xi.to(device))

    def advance(self, n: int) -> None:
        """Make n steps of every run."""
        K, W_T, w = self.K, self.W.mT, self.W[:, : self.K]
        c, c_student = self.c, self.c[:, :K]  # c_student is -v
        rate_w, rate_v = self.lr / sqrt(self.N), -self.lr / self.N
        f, rate_w = (self.F, rate_w) if self.F is not None else (c_student, -rate_w)
        fields = torch.empty(self.runs, 1, c.shape[1], dtype=c.dtype, device=c.device)
        u, u_student, scale = fields[:, 0], fields[:, 0, :K], 1 / sqrt(self.N)
        for x, xi in self.draws(n):
            torch.bmm(x, W_T, out=fields)
            u.mul_(scale)
            g = self.g(u)  # (R, K + M)
            g_student = g[:, :K]
            delta = (c * g).sum(1, keepdim=True)  # (R, 1)
            if self.noise:
                delta.add_(xi, alpha=self.noise)
            push = self.dg(u_student, g_student).mul_(delta).mul_(f)
            c_student.addcmul_(g_student, delta, value=rate_v)
            w.addcmul_(push.unsqueeze(2), x, value=rate_w)

    def state(self) -> OnlineState:
        return replace(self.start, w=self.W[:, : self.K].clone(), v=-self.c[:, : self.K])

    def measure(self) -> dict[str, Array]:
        """Order parameters and error, in double precision."""
        return _measured(self.state().order_parameters(), self.activation)

    def weights(self) -> dict[str, Tensor]:
        """What must stay finite, runs first."""
        return {"v": self.c, "w": self.W}


def _measured(now: dict[str, Array], activation: str) -> dict[str, Array]:
    Q, R, T, v, A = (now[k] for k in ("Q0", "R0", "T", "v0", "A"))
    error = generalisation_error(Q, R, T, v, A, activation=activation)
    return {"Q": Q, "R": R, "T": T, "v": v, "error": error}


def train_online(
    start: OnlineState,
    *,
    rule: str = "DFA",
    lr: float,
    steps: int,
    generator: Generator,
    activation: str = "erf",
    noise: float = 0.0,
    probe_at: Sequence[int] | NDArray[np.int64] | None = None,
    tol: float | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> OnlineRun[OnlineState]:
    """Train every run of `start` for `steps` online steps and probe it on the way.

    `start` is left as it is; go on from `run.state`. The same arguments on the same machine give
    the same bits. Source: Refinetti et al. (2021), update rules as in their published code.

    Args:
        start: initial conditions of R runs.
        rule: "DFA" (feedback `start.F`) or "BP".
        lr: learning rate.
        steps: number of steps, one fresh input each.
        generator: CPU stream of inputs and teacher noise.
        activation: "erf", "relu" or "linear".
        noise: standard deviation of the noise on the teacher's output.
        probe_at: steps at which to measure, 0 to `steps`; 0 and 60 log-spaced ones by default.
        tol: stop at the first probe where the error of every run is below it.
        progress: show a progress bar on a terminal.
        dtype, device: cast and move `start` first.

    Raises:
        FloatingPointError: a run diverges; names the run, the steps and the quantity.

    Example:
        >>> from fabook.streams import stream
        >>> start = initial_conditions([0, 1], 50, 2, 2, init_sd=1.0)
        >>> run = train_online(start, lr=0.1, steps=100, generator=stream(0, "inputs"))
        >>> run.error.shape == (2, len(run.t)), float(run.t[-1])
        (True, 2.0)
    """
    wanted = _wanted(rule, activation, steps, probe_at)
    start = start.to(device=device, dtype=dtype or start.w.dtype)
    batch = _Batch(start, rule, lr, activation, noise, generator)
    return _follow(batch, steps, wanted, tol, progress)


def _wanted(
    rule: str, activation: str, steps: int, probe_at: Sequence[int] | NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """The steps to probe, after a check of the other words as well."""
    if rule not in ("BP", "DFA"):
        raise ValueError(f"rule must be one of 'BP', 'DFA', got {rule!r}")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
    wanted = (
        np.concatenate([[0], log_steps(steps, 60)]) if probe_at is None else np.asarray(probe_at)
    )
    if wanted.size == 0 or wanted[0] < 0 or wanted[-1] > steps or (np.diff(wanted) <= 0).any():
        raise ValueError(f"probe_at must increase strictly within 0 to {steps}, got {probe_at!r}")
    return wanted.astype(np.int64)


class _Moving(Protocol[State]):
    """Runs that `_follow` can follow."""

    N: int
    lr: float
    F: Tensor | None

    def advance(self, n: int) -> None: ...

    def weights(self) -> dict[str, Tensor]: ...

    def measure(self) -> dict[str, Array]: ...

    def state(self) -> State: ...


def _follow(
    batch: _Moving[State],
    steps: int,
    wanted: NDArray[np.int64],
    tol: float | None,
    progress: bool,
) -> OnlineRun[State]:
    """Make the steps, probe where wanted, stop at a divergence or below the tolerance."""
    seen: list[dict[str, Array]] = []
    at, on_probe = 0, set(wanted.tolist())
    stops = sorted(on_probe.union(range(0, steps, _CHECK_EVERY), [steps]))
    for stop in _progress_bar(stops, progress, "runs"):
        batch.advance(stop - at)
        _check(batch, at, stop)
        at = stop
        if stop in on_probe:
            seen.append(batch.measure())
            if tol is not None and (seen[-1]["error"] < tol).all():
                break
    path = {name: np.stack([s[name] for s in seen], axis=1) for name in seen[0]}
    T, kept = path.pop("T")[:, 0], wanted[: len(seen)]
    F = np.nan if batch.F is None else batch.F.double().cpu().numpy()[:, None]
    return OnlineRun(
        steps=kept,
        t=kept / batch.N,
        **path,
        T=T,
        alignment=alignment(path["v"], F),
        state=batch.state(),
    )


def _check(batch: _Moving[State], before: int, after: int) -> None:
    for name, value in batch.weights().items():
        finite = value.flatten(1).isfinite().all(1)
        if not finite.all():
            run = int((~finite).nonzero()[0])
            raise FloatingPointError(
                f"run {run} diverged: {name} is not finite any more; it happened between the "
                f"steps {before} and {after} (t = {after / batch.N:.4g}) with lr = {batch.lr}; "
                "a smaller learning rate helps"
            )
