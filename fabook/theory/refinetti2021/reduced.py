r"""Online learning at any number of inputs: the runs of `simulation`, drawn exactly in law.

A step of online learning meets the input $x \sim N(0, I_N)$ only through its products with the
students $w_k$ and teachers $B_m$, and through its square. Take an orthonormal basis whose first
$M$ directions span the teachers and whose next $K$ the rest of the students. In it

$$ x = (z_1, \dots, z_{M+K}, \chi), \qquad z_a \sim N(0, 1), \quad
   \chi^2 \sim \chi^2_{N-M-K}, $$

all independent: $\chi$ is the length of what is left of $x$, and its direction becomes the last of
the basis. The students move in these $M + K + 1$ coordinates by the very rule of `simulation`,

$$ w_k \leftarrow w_k + \frac{\eta}{\sqrt N} f_k\, g'(\lambda_k)\, \Delta\, x, \qquad
   v_k \leftarrow v_k + \frac{\eta}{N} g(\lambda_k)\, \Delta, $$

and a rotation that leaves the teachers alone empties the last coordinate again. The next input is
as normal in the rotated basis as it was before, so $(Q, R, v)$ has at every step exactly the law
that it has in $N$ dimensions, and a step costs the same at every $N$. Where students and teachers
span fewer than $M + K$ directions, because they start at zero or aligned, the basis goes on with
any others: $\chi^2$ with $N$ minus the rank, part of it drawn as normals. What is kept is a square
root of the overlaps and never their product, so such starts lose no digits.
Source: derived, for the networks of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428; the
order parameters are those of Saad and Solla (1995), https://doi.org/10.1103/PhysRevE.52.4225.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Generator, Tensor

from ...streams import stream
from .._arrays import Array
from .online import joint_covariance
from .simulation import (
    _ACTIVATIONS,
    OnlineRun,
    OnlineState,
    _follow,
    _measured,
    _read_outs,
    _wanted,
)

__all__ = ["ReducedState", "initial_conditions", "train_online"]

_BLOCK = 2**15  # numbers drawn at once: few enough to stay in the cache


@dataclass(frozen=True)
class ReducedState:
    """R independent runs with `n_inputs` = N, in coordinates of an orthonormal basis.

    Students: `w` (R, K, M + K), of whose last K coordinates student k has the first k + 1 alone;
    `v` (R, K). Teachers: `B` (R, M, M + K), zero after the first M coordinates, `A` (R, M).
    Feedback: `F` (R, K). Products are those in N dimensions: `w @ B.mT / N` is the overlap R.

    Source: derived; the runs are those of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.

    Raises:
        ValueError: shapes that do not fit together, fewer inputs than units, or other coordinates
            that should be zero; `from_weights` turns any.

    Example:
        >>> start = initial_conditions([0], 10**6, 3, 2)  # K + M = 5 coordinates, not a million
        >>> start.w.shape, start.to(torch.float32).w.dtype
        (torch.Size([1, 3, 5]), torch.float32)
        >>> start.order_parameters()["Q0"].shape
        (1, 3, 3)
    """

    n_inputs: int
    w: Tensor
    v: Tensor
    B: Tensor
    A: Tensor
    F: Tensor

    def __post_init__(self) -> None:
        R, K, M = self.w.shape[0], self.w.shape[1], self.B.shape[1]
        want = {"w": (R, K, M + K), "v": (R, K), "B": (R, M, M + K), "A": (R, M), "F": (R, K)}
        for name, shape in want.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"{name} must have shape {shape}, got {got}")
        if self.n_inputs < K + M:
            raise ValueError(
                f"n_inputs must be at least K + M = {K + M}, got {self.n_inputs}; "
                "simulation.train_online takes fewer"
            )
        if self.B[..., M:].any():
            raise ValueError(f"B must be zero after its first {M} coordinates")
        if self.w[..., M:].triu(1).any():
            raise ValueError(
                f"the last {K} coordinates of w must be lower triangular in each run; "
                "from_weights or from_overlaps makes them so"
            )

    @classmethod
    def from_weights(cls, start: OnlineState) -> ReducedState:
        """The same runs as `start`, of `simulation`; in double precision.

        Raises:
            ValueError: if there are fewer inputs than units.

        Example:
            >>> from fabook.theory.refinetti2021 import simulation
            >>> start = simulation.initial_conditions([0], 50, 3, 2)
            >>> same = ReducedState.from_weights(start).order_parameters()
            >>> bool(abs(same["Q0"] - start.order_parameters()["Q0"]).max() < 1e-12)
            True
        """
        start = start.to(dtype=torch.float64)
        W = torch.cat([start.B, start.w], dim=1)  # (R, M + K, N)
        if W.shape[2] < W.shape[1]:
            raise ValueError(f"n_inputs must be at least K + M = {W.shape[1]}, got {W.shape[2]}")
        return cls._of(W.shape[2], W, start.B.shape[1], start.v, start.A, start.F)

    @classmethod
    def from_overlaps(
        cls,
        Q0: ArrayLike,
        R0: ArrayLike,
        T: ArrayLike,
        v0: ArrayLike,
        A: ArrayLike,
        feedback: ArrayLike,
        *,
        n_inputs: int,
    ) -> ReducedState:
        r"""Runs whose weights have these overlaps, as `online.online_dynamics` takes them.

        Args:
            Q0, R0, T: (R, K, K), (R, K, M), (R, M, M), or without R for one run; singular ones too.
            v0, A, feedback: (R, K), (R, M), (R, K), or without R for all runs.
            n_inputs: N.

        Raises:
            ValueError: if the overlaps belong to no weights: $C$ has a negative eigenvalue.

        Example:
            >>> start = ReducedState.from_overlaps(
            ...     [[0.0]], [[0.0]], [[1.0]], [0.0], [1.0], [1.5], n_inputs=1000)
            >>> start.w.shape, round(float(start.B[0, 0, 0]) ** 2)
            (torch.Size([1, 1, 2]), 1000)
        """
        C = joint_covariance(Q0, R0, T)
        C = C.reshape(-1, *C.shape[-2:])
        M, r = np.shape(T)[-1], C.shape[-1]
        value, vector = np.linalg.eigh(C)
        if (value[:, 0] < -1e-9 * value[:, -1]).any():
            raise ValueError(
                f"the overlaps belong to no weights: their smallest eigenvalue is {value.min():.3g}"
            )
        root = vector * np.sqrt(n_inputs * np.maximum(value, 0))[:, None]
        order = [*range(r - M, r), *range(r - M)]  # teachers first
        vectors = {"v": (v0, r - M), "A": (A, M), "F": (feedback, r - M)}
        full = {
            name: torch.tensor(np.broadcast_to(np.asarray(x, dtype=float), (len(C), units)))
            for name, (x, units) in vectors.items()
        }
        return cls._of(n_inputs, torch.tensor(root[:, order]), M, **full)

    @classmethod
    def _of(cls, N: int, W: Tensor, M: int, v: Tensor, A: Tensor, F: Tensor) -> ReducedState:
        """Turn (teachers, students) W (R, M + K, any) until it is lower triangular."""
        L = torch.linalg.qr(W.mT, mode="r").R.mT.tril()
        return cls(N, L[:, M:].contiguous(), v, L[:, :M].contiguous(), A, F)

    def repeat(self, runs: int) -> ReducedState:
        """Every run `runs` times, side by side: many runs from one point.

        Example:
            >>> start = initial_conditions([0, 1], 100, 2, 2)
            >>> start.repeat(3).v.shape
            torch.Size([6, 2])
        """
        parts = (self.w, self.v, self.B, self.A, self.F)
        return ReducedState(self.n_inputs, *(x.repeat_interleave(runs, 0) for x in parts))

    def to(self, *args: Any, **kwargs: Any) -> ReducedState:
        """Move or cast every tensor, with the arguments of `torch.Tensor.to`."""
        parts = (self.w, self.v, self.B, self.A, self.F)
        return ReducedState(self.n_inputs, *(x.to(*args, **kwargs) for x in parts))

    def order_parameters(self) -> dict[str, Array]:
        """Return Q0, R0, T, v0 and A as `online.online_dynamics` takes them."""
        w, B, N = self.w.double(), self.B.double(), self.n_inputs
        values = {
            "Q0": w @ w.mT / N,
            "R0": w @ B.mT / N,
            "T": B @ B.mT / N,
            "v0": self.v.double(),
            "A": self.A.double(),
        }
        return {name: x.cpu().numpy() for name, x in values.items()}


def initial_conditions(
    seeds: Sequence[int],
    n_inputs: int,
    n_hidden: int,
    n_teacher: int,
    *,
    init_sd: float | tuple[float, float] = 1e-2,
    teacher_output: ArrayLike | None = None,
    feedback: ArrayLike | None = None,
    dtype: torch.dtype = torch.float64,
) -> ReducedState:
    r"""Draw what `simulation.initial_conditions` draws, at a cost that does not depend on N.

    The overlaps of $M + K$ standard normal vectors are those of the rows of a lower triangular
    matrix with normal entries below its diagonal and, on it, $\chi$ with $N, N - 1, \dots$
    degrees of freedom (Bartlett's decomposition of the Wishart law).
    For one seed, v, A and F are the very numbers of `simulation`; w and B have the same law.

    Args:
        seeds: one integer a run.
        n_inputs, n_hidden, n_teacher: N, K and M; N at least K + M.
        init_sd: standard deviation of the student's Gaussian weights, one number or (w, v).
        teacher_output: A, (M) for all runs; standard normal by default.
        feedback: F, (K) for all runs; standard normal by default.
        dtype: of the result; the draws are made in double precision.

    Raises:
        ValueError: fewer inputs than K + M, or values of another shape.

    Example:
        >>> start = initial_conditions(range(3), 10**6, 4, 2, teacher_output=[1, 1])
        >>> start.w.shape, bool(abs(start.order_parameters()["T"][0, 0, 0] - 1) < 0.01)
        (torch.Size([3, 4, 6]), True)
    """
    sd_w, sd_v = init_sd if isinstance(init_sd, tuple) else (init_sd, init_sd)
    r = n_teacher + n_hidden
    if n_inputs < r:
        raise ValueError(f"n_inputs must be at least K + M = {r}, got {n_inputs}")
    degrees = n_inputs - np.arange(r)

    def triangle(seed: int) -> Array:
        draws = _numpy(stream(seed, "online", "overlaps"), 1)[0]
        L = np.tril(draws.standard_normal((r, r)), -1)
        L[np.diag_indices(r)] = np.sqrt(draws.chisquare(degrees))
        return L

    L = torch.tensor(np.stack([triangle(seed) for seed in seeds]))
    return ReducedState(
        n_inputs,
        w=sd_w * L[:, n_teacher:],
        B=L[:, :n_teacher].clone(),
        **_read_outs(seeds, n_hidden, n_teacher, sd_v, teacher_output, feedback),
    ).to(dtype)


def _numpy(generator: Generator, n: int) -> list[np.random.Generator]:
    """n independent NumPy generators: normal numbers twice as fast as PyTorch's, and chi-square."""
    seed = torch.randint(2**32, (4,), generator=generator).tolist()
    return [np.random.Generator(np.random.SFC64(s)) for s in np.random.SeedSequence(seed).spawn(n)]


class _Batch:
    """The moving part, runs last: coordinates P (K + M, r + 1, R) over sqrt(N), c = (-v, A)."""

    def __init__(
        self,
        start: ReducedState,
        rule: str,
        lr: float,
        activation: str,
        noise: float,
        data: Generator,
    ) -> None:
        self.start, self.noise, self.N = start, noise, start.n_inputs
        self.K, self.M = start.w.shape[1], start.B.shape[1]
        P = torch.cat([start.w, start.B], dim=1).permute(1, 2, 0) / sqrt(self.N)
        self.P = torch.nn.functional.pad(P, (0, 0, 0, 1)).contiguous()  # the last coordinate: 0
        self.own = self.P[: self.K, self.M :]  # (K, K + 1, R)
        self.triangle = torch.zeros_like(self.own[:, :-1])
        self.tiny = sqrt(torch.finfo(self.P.dtype).tiny)  # its square is not 0 yet
        self.c = torch.cat([-start.v, start.A], dim=1).T.contiguous()  # (K + M, R)
        self.F = start.F if rule == "DFA" else None
        self.g, self.dg = _ACTIVATIONS[activation]
        self.activation, self.lr = activation, lr
        self.normal, self.rest, self.noises = _numpy(data, 3)  # apart, so that blocks do not matter

    def draws(self, n: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield of n inputs the coordinates (r, R), the length of the rest (R), and noises (R)."""
        _, columns, runs = self.P.shape
        kind: Any = np.float32 if self.P.dtype == torch.float32 else np.float64
        block = max(1, _BLOCK // (columns * runs))
        half = (self.N - columns + 1) / 2
        for done in range(0, n, block):
            now = min(block, n - done)
            z = self.normal.standard_normal((now, columns - 1, runs), dtype=kind)
            rest = self.rest.standard_gamma(half, (now, runs), dtype=kind)
            np.sqrt(np.multiply(rest, 2, out=rest), out=rest)
            xi = np.zeros((now, 1), dtype=kind)
            if self.noise:
                xi = self.noises.standard_normal((now, runs), dtype=kind)
            yield from zip(*(torch.from_numpy(part).to(self.P.device) for part in (z, rest, xi)))

    def advance(self, n: int) -> None:
        """Make n steps of every run."""
        K, inside, c = self.K, self.P[:, :-1], self.c
        w, w_last, c_student = inside[:K], self.P[:K, -1], c[:K]  # c_student is -v
        rate = self.lr / self.N
        f, rate_w = (self.F.T.contiguous(), rate) if self.F is not None else (c_student, -rate)
        for x, rest, xi in self.draws(n):
            u = self.fields(x)
            g = self.g(u)
            g_student = g[:K]
            delta = (c * g).sum(0)  # (R)
            if self.noise:
                delta.add_(xi, alpha=self.noise)
            push = self.dg(u[:K], g_student).mul_(delta).mul_(f).mul_(rate_w)
            c_student.addcmul_(g_student, delta, value=-rate)
            w.addcmul_(push.unsqueeze(1), x)
            torch.mul(push, rest, out=w_last)
            self.turn()

    def fields(self, x: Tensor) -> Tensor:
        """Products of students and teachers with inputs (r, R): (K + M, R), zeros left out."""
        u = self.P[:, 0] * x[0]
        for a in range(1, self.M):
            u.addcmul_(self.P[:, a], x[a])
        for k in range(self.K):
            u[k : self.K].addcmul_(self.own[k:, k], x[self.M + k])
        return u

    def turn(self) -> None:
        """Rotate the students' own coordinates into a triangle, row by row; the last is then 0.

        Modified Gram-Schmidt, which gives the triangle to rounding even for parallel students.
        """
        own, L = self.own, self.triangle
        for k in range(self.K):
            row, later = own[k], own[k + 1 :]
            length = torch.sum(row * row, 0, out=L[k, k]).sqrt_()
            if k + 1 < self.K:
                row.div_(length.clamp_min(self.tiny))
                along = torch.sum(later * row, 1, out=L[k + 1 :, k])
                later.addcmul_(along.unsqueeze(1), row, value=-1)
        own[:, :-1] = L

    def state(self) -> ReducedState:
        w = self.P[: self.K, :-1].permute(2, 0, 1) * sqrt(self.N)
        return replace(self.start, w=w.contiguous(), v=-self.c[: self.K].T.contiguous())

    def weights(self) -> dict[str, Tensor]:
        """What must stay finite, runs first."""
        return {"v": self.c.T, "w": self.P.permute(2, 0, 1)}

    def measure(self) -> dict[str, Array]:
        """Order parameters and error, in double precision."""
        return _measured(self.state().order_parameters(), self.activation)


def train_online(
    start: ReducedState,
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
) -> OnlineRun[ReducedState]:
    """Train every run of `start` as `simulation.train_online` does, in law, at any N.

    `start` is left as it is; go on from `run.state`, which has the right law but not the same bits
    as one longer call. The same arguments on the same machine give the same bits, whatever is
    probed. A step of a run takes a fraction of a microsecond on one thread if there are
    thousands of runs, and all of a step some 60 microseconds if there are few. Source: derived,
    see the module.

    Args:
        start: initial conditions of R runs.
        rule: "DFA" (feedback `start.F`) or "BP".
        lr: learning rate.
        steps: number of steps, one fresh input each: N steps are one unit of time.
        generator: CPU stream that seeds the draws of inputs and teacher noise.
        activation: "erf", "relu" or "linear".
        noise: standard deviation of the noise on the teacher's output.
        probe_at: steps at which to measure, 0 to `steps`; 0 and 60 log-spaced ones by default.
        tol: stop at the first probe where the error of every run is below it.
        progress: show a progress bar on a terminal.
        dtype, device: cast and move `start` first. Single precision loses steps of lr / N < 1e-6.

    Raises:
        FloatingPointError: a run diverges; names the run, the steps and the quantity.

    Example:
        >>> from fabook.streams import stream
        >>> start = initial_conditions([0, 1], 10**9, 2, 2, init_sd=1.0)
        >>> run = train_online(start, lr=0.1, steps=100, generator=stream(0, "inputs"))
        >>> run.error.shape == (2, len(run.t)), float(run.t[-1])
        (True, 1e-07)
    """
    wanted = _wanted(rule, activation, steps, probe_at)
    start = start.to(device=device, dtype=dtype or start.w.dtype)
    batch = _Batch(start, rule, lr, activation, noise, generator)
    return _follow(batch, steps, wanted, tol, progress)
