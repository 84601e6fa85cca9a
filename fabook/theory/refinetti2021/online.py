r"""Theory of online learning in two-layer teacher-student networks: pure functions in float64.

Student $\hat y = \sum_k v_k\, g(\lambda_k)$ with fields $\lambda_k = w_k \cdot x/\sqrt N$, teacher
$y = \sum_m A_m\, g(\nu_m)$ with $\nu_m = B_m \cdot x/\sqrt N$, inputs $x \sim N(0, I_N)$. For large
$N$ everything depends on the order parameters

$$ Q_{ik} = w_i \cdot w_k / N, \quad R_{in} = w_i \cdot B_n / N, \quad
   T_{nm} = B_n \cdot B_m / N, $$

the covariance $C = [[Q, R], [R^T, T]]$ of the fields $u = (\lambda, \nu)$, and on the read-out
weights $c = (-v, A)$, in which the error is $\Delta = \sum_a c_a\, g(u_a)$.

Every function works over leading batch axes. The activation "erf" means $\mathrm{erf}(x/\sqrt 2)$.

Sources: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428, after Saad & Solla (1995),
https://doi.org/10.1103/PhysRevE.52.4225, and Goldt et al. (2019), https://arxiv.org/abs/1906.08632;
what is derived here says so.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import permutations, product
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, _float, crossing

__all__ = [
    "I2",
    "I3",
    "I4",
    "J2",
    "Dynamics",
    "alignment",
    "early_time",
    "equivalent_alignment",
    "equivalent_readouts",
    "generalisation_error",
    "gradient_alignment",
    "joint_covariance",
    "learning_probability",
    "online_dynamics",
    "passage_time",
]

_DIVERGED = 1e8  # an order parameter beyond this is on its way to infinity
_RUNS_AT_ONCE = 64  # in one solver call: ten times faster than one run at a time


def _unknown(activation: str, allowed: str) -> ValueError:
    return ValueError(f"activation must be one of {allowed}, got {activation!r}")


def joint_covariance(Q: ArrayLike, R: ArrayLike, T: ArrayLike) -> Array:
    r"""Covariance $C = [[Q, R], [R^T, T]]$ of student and teacher fields.

    Args:
        Q: student overlaps, (..., K, K).
        R: student-teacher overlaps, (..., K, M).
        T: teacher overlaps, (..., M, M).

    Returns:
        (..., K + M, K + M).

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> joint_covariance([[1.0]], [[0.5]], [[2.0]]).tolist()
        [[1.0, 0.5], [0.5, 2.0]]
    """
    Q, R, T = _float(Q), _float(R), _float(T)
    K, M = R.shape[-2:]
    if Q.shape[-2:] != (K, K) or T.shape[-2:] != (M, M):
        raise ValueError(
            f"R of shape {R.shape} needs Q (..., {K}, {K}) and T (..., {M}, {M}), "
            f"got {Q.shape} and {T.shape}"
        )
    batch = np.broadcast_shapes(Q.shape[:-2], R.shape[:-2], T.shape[:-2])
    C = np.empty((*batch, K + M, K + M))
    C[..., :K, :K], C[..., K:, K:] = Q, T
    C[..., :K, K:], C[..., K:, :K] = R, np.swapaxes(R, -1, -2)
    return C


def _diagonal(C: Array) -> Array:
    return np.diagonal(C, axis1=-2, axis2=-1)


def I2(C: ArrayLike, *, activation: str = "erf") -> Array:
    r"""Averages $I_2(a,b) = E[g(u_a) g(u_b)]$ for all pairs of fields.

    $$ \text{erf: } \frac{2}{\pi} \arcsin \frac{C_{ab}}{\sqrt{(1+C_{aa})(1+C_{bb})}}, \quad
       \text{linear: } C_{ab}, \quad \text{relu: } \frac{s_a s_b}{2\pi}
       [\sin\theta + (\pi-\theta)\cos\theta] $$

    with $s_a = \sqrt{C_{aa}}$ and $\cos\theta = C_{ab}/(s_a s_b)$.
    Source: Saad and Solla (1995) for erf; Cho and Saul (2009) for relu.

    Args:
        C: covariance of the fields, (..., P, P).
        activation: "erf", "linear" or "relu".

    Returns:
        (..., P, P).

    Raises:
        ValueError: another activation.

    Example:
        >>> round(float(I2([[1.0]])[0, 0]), 6)  # (2 / pi) arcsin(1 / 2) = 1 / 3
        0.333333
    """
    C = _float(C)
    variance = _diagonal(C)
    if activation == "linear":
        return C.copy()
    if activation == "erf":
        s = np.sqrt(1 + variance)
        return 2 / np.pi * np.arcsin(C / (s[..., :, None] * s[..., None, :]))
    if activation == "relu":
        s = np.sqrt(variance)
        scale = s[..., :, None] * s[..., None, :]
        cos = np.clip(np.divide(C, scale, out=np.zeros_like(C), where=scale > 0), -1, 1)
        theta = np.arccos(cos)
        return scale / (2 * np.pi) * (np.sin(theta) + (np.pi - theta) * cos)
    raise _unknown(activation, "'erf', 'linear', 'relu'")


def J2(C: ArrayLike, *, activation: str = "erf", units: int | None = None) -> Array:
    r"""Averages $J_2(a,b) = E[g'(u_a) g'(u_b)]$ for all pairs of the first `units` fields.

    $$ \text{erf: } \frac{2}{\pi} [(1+C_{aa})(1+C_{bb}) - C_{ab}^2]^{-1/2}, \quad
       \text{linear: } 1 $$

    Source: Saad and Solla (1995).

    Args:
        C: covariance of the fields, (..., P, P).
        activation: "erf" or "linear".
        units: number U of leading fields that get a derivative; all P by default.

    Returns:
        (..., U, U).

    Raises:
        ValueError: another activation.

    Example:
        >>> round(float(J2([[1.0]])[0, 0]), 6)  # 2 / (pi sqrt(3))
        0.367553
    """
    C = _float(C)[..., :units, :units]
    if activation == "linear":
        return np.ones_like(C)
    if activation == "erf":
        s = 1 + _diagonal(C)
        return 2 / np.pi / np.sqrt(s[..., :, None] * s[..., None, :] - C**2)
    raise _unknown(activation, "'erf', 'linear'")


def I3(C: ArrayLike, *, activation: str = "erf", units: int | None = None) -> Array:
    r"""Averages $I_3(a,b,c) = E[g'(u_a)\, u_b\, g(u_c)]$, a among the first `units` fields.

    For erf, the Gaussian factor of $g'(u_a)$ turns the covariance into
    $C' = C - C_{\cdot a} C_{a \cdot} / (1 + C_{aa})$, so that

    $$ I_3 = \frac{2}{\pi} \frac{C'_{bc}}{\sqrt{(1+C_{aa})(1+C'_{cc})}}; \quad
       \text{linear: } C_{bc} $$

    Source: Saad and Solla (1995), rearranged.

    Args:
        C: covariance of the fields, (..., P, P).
        activation: "erf" or "linear".
        units: number U of leading fields that get a derivative; all P by default.

    Returns:
        (..., U, P, P), indexed [a, b, c].

    Raises:
        ValueError: another activation.

    Example:
        >>> I3(np.eye(3), units=2).shape
        (2, 3, 3)
        >>> round(float(I3([[1.0]])[0, 0, 0]), 6)  # 1 / (pi sqrt(3))
        0.183776
    """
    C = _float(C)
    rows = C[..., :units, :]  # (..., U, P)
    if activation == "linear":
        return np.broadcast_to(C[..., None, :, :], (*rows.shape, C.shape[-1])).copy()
    if activation != "erf":
        raise _unknown(activation, "'erf', 'linear'")
    s = 1 + _diagonal(C)[..., :units, None, None]
    tilted = C[..., None, :, :] - rows[..., :, :, None] * (rows[..., :, None, :] / s)
    return 2 / np.pi * tilted / np.sqrt(s * (1 + _diagonal(tilted)[..., None, :]))


def I4(C: ArrayLike, *, activation: str = "erf", units: int | None = None) -> Array:
    r"""Averages $I_4(a,b,c,d) = E[g'(u_a) g'(u_b) g(u_c) g(u_d)]$, a, b among the first `units`.

    For erf, the Gaussian factors of both derivatives turn the covariance into
    $C' = C - C_{\cdot S} (1 + C_{SS})^{-1} C_{S \cdot}$ with $S = (a, b)$ (both entries count even
    when a = b), so that

    $$ I_4 = J_2(a,b)\, \frac{2}{\pi}
       \arcsin \frac{C'_{cd}}{\sqrt{(1+C'_{cc})(1+C'_{dd})}}; \quad \text{linear: } C_{cd} $$

    Source: Saad and Solla (1995), rearranged.

    Args:
        C: covariance of the fields, (..., P, P).
        activation: "erf" or "linear".
        units: number U of leading fields that get a derivative; all P by default.

    Returns:
        (..., U, U, P, P), indexed [a, b, c, d].

    Raises:
        ValueError: another activation.

    Example:
        >>> I4(np.eye(3), units=2).shape
        (2, 2, 3, 3)
        >>> round(float(I4([[1.0]])[0, 0, 0, 0]), 6)  # J2 times (2 / pi) arcsin(1 / 4)
        0.059125
    """
    C = _float(C)
    rows = C[..., :units, :]  # (..., U, P)
    U, P = rows.shape[-2:]
    if activation == "linear":
        return np.broadcast_to(C[..., None, None, :, :], (*C.shape[:-2], U, U, P, P)).copy()
    if activation != "erf":
        raise _unknown(activation, "'erf', 'linear'")
    s = 1 + _diagonal(C)[..., :units]
    sa, sb = s[..., :, None, None], s[..., None, :, None]
    ab = rows[..., :units, None]  # (..., U, U, 1)
    a, b = rows[..., :, None, :], rows[..., None, :, :]  # C_ac (..., U, 1, P), C_bc (..., 1, U, P)
    det = sa * sb - ab**2
    left = (sb * a - ab * b) / det  # row S of (1 + C_SS)^-1 C_S, first and second entry
    right = (sa * b - ab * a) / det
    tilted = C[..., None, None, :, :] - (a[..., :, None] * left[..., None, :])
    tilted -= b[..., :, None] * right[..., None, :]
    scale = 1 / np.sqrt(1 + _diagonal(tilted))  # (..., U, U, P)
    tilted *= scale[..., :, None] * scale[..., None, :]
    np.arcsin(tilted, out=tilted)
    tilted *= (4 / np.pi**2) / np.sqrt(det)[..., None]
    return tilted


def generalisation_error(
    Q: ArrayLike,
    R: ArrayLike,
    T: ArrayLike,
    v: ArrayLike,
    A: ArrayLike,
    *,
    activation: str = "erf",
) -> Array:
    r"""Noise-free generalisation error, with the factor 1/2 of the loss.

    $$ \epsilon_g = \tfrac12 E[(y - \hat y)^2] = \tfrac12 \sum_{ab} c_a c_b I_2(a,b),
       \quad c = (-v, A) $$

    Source: Saad and Solla (1995), Goldt et al. (2019). Some codes print $E[\Delta^2]$, twice this.

    Args:
        Q, R, T: order parameters, (..., K, K), (..., K, M), (..., M, M).
        v, A: read-out weights of student (..., K) and teacher (..., M).
        activation: "erf", "linear" or "relu".

    Returns:
        (...), one error for each batch element.

    Example:
        >>> eye = np.eye(2)
        >>> bool(abs(generalisation_error(eye, eye, eye, [1, -2], [1, -2])) < 1e-15)
        True
    """
    c = _readout(v, A)
    correlation = I2(joint_covariance(Q, R, T), activation=activation)
    return 0.5 * ((correlation @ c[..., None])[..., 0] * c).sum(-1)


def _readout(v: ArrayLike, A: ArrayLike) -> Array:
    v, A = _float(v), _float(A)
    batch = np.broadcast_shapes(v.shape[:-1], A.shape[:-1])
    parts = (np.broadcast_to(x, (*batch, x.shape[-1])) for x in (-v, A))
    return np.concatenate(tuple(parts), axis=-1)


def alignment(v: ArrayLike, F: ArrayLike) -> Array:
    r"""Signed cosine $v \cdot F / (|v| |F|)$ of read-out and feedback weights.

    A zero vector gives NaN. Source: Refinetti et al. (2021), alignment of a shallow network.

    Args:
        v, F: (..., K), broadcast against each other.

    Returns:
        (...).

    Example:
        >>> float(alignment([3.0, 4.0], [4.0, 3.0]))
        0.96
    """
    v, F = _float(v), _float(F)
    norm = np.sqrt((v**2).sum(-1) * (F**2).sum(-1))
    with np.errstate(invalid="ignore"):
        return (v * F).sum(-1) / np.where(norm > 0, norm, np.nan)


@dataclass(frozen=True)
class Dynamics:
    """Order parameters at the times `t` (n_t); all else has the batch axes, then time.

    `alignment` is cos(v, F), and NaN under back-propagation, which has no F.

    Source: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428; see
    :func:`online_dynamics`.

    Example:
        >>> start = dict(Q0=[[0.0]], R0=[[0.0]], T=[[1.0]], v0=[0.0], A=[1.0])
        >>> path = online_dynamics(**start, feedback=[1.0], lr=0.5, times=[0, 10, 100])
        >>> path.R.shape, path.error.round(4).tolist()  # from 1 / 6 on
        ((3, 1, 1), [0.1667, 0.0167, 0.0001])
    """

    t: Array  # (n_t)
    Q: Array  # (..., n_t, K, K)
    R: Array  # (..., n_t, K, M)
    v: Array  # (..., n_t, K)
    error: Array  # (..., n_t)
    alignment: Array  # (..., n_t)


def _velocity(
    Q: Array,
    R: Array,
    v: Array,
    T: Array,
    A: Array,
    F: Array | None,
    lr: float,
    noise: Array,
    activation: str,
) -> tuple[Array, Array, Array]:
    """Right-hand side of the ODEs for a batch of runs: dQ/dt, dR/dt, dv/dt."""
    K = v.shape[-1]
    C, c, f = joint_covariance(Q, R, T), _readout(v, A), v if F is None else F
    drift = (
        lr * f[..., None] * (I3(C, activation=activation, units=K) @ c[..., None, :, None])[..., 0]
    )
    pair = I4(C, activation=activation, units=K) @ c[..., None, None, :, None]
    power = (pair[..., 0] * c[..., None, None, :]).sum(-1)
    power += noise[..., None, None] ** 2 * J2(C, activation=activation, units=K)
    dQ = drift[..., :K] + np.swapaxes(drift[..., :K], -1, -2)
    dQ += lr**2 * f[..., :, None] * f[..., None, :] * power
    dv = lr * (I2(C, activation=activation)[..., :K, :] @ c[..., None])[..., 0]
    return dQ, drift[..., K:], dv


def online_dynamics(
    Q0: ArrayLike,
    R0: ArrayLike,
    T: ArrayLike,
    v0: ArrayLike,
    A: ArrayLike,
    *,
    feedback: ArrayLike | None = None,
    lr: float,
    noise: ArrayLike = 0.0,
    times: ArrayLike,
    activation: str = "erf",
    rtol: float = 1e-7,
    atol: float = 1e-9,
) -> Dynamics:
    r"""Order parameters of online SGD as N grows, by ODEs, for a batch of initial conditions.

    With $f = F$ (direct feedback alignment) or $f = v$ (back-propagation) and time $t$ = steps / N,

    $$ \dot R_{in} = \eta f_i \sum_a c_a I_3(i,n,a), \qquad
       \dot v_i = \eta \sum_a c_a I_2(i,a), $$
    $$ \dot Q_{ik} = \eta f_i \sum_a c_a I_3(i,k,a) + \eta f_k \sum_a c_a I_3(k,i,a)
       + \eta^2 f_i f_k \Big[\sum_{ab} c_a c_b I_4(i,k,a,b) + \sigma^2 J_2(i,k)\Big]. $$

    Source: derived from the update of `simulation` in the manner of Saad and Solla (1995) and
    Refinetti et al. (2021); checked against the integrator that the latter published. SciPy's LSODA
    integrates, several runs in one call: its error norm is the largest component, so each run
    keeps the tolerance that it would have alone.

    Args:
        Q0, R0, T: overlaps at t = 0, (..., K, K), (..., K, M), (..., M, M).
        v0, A: read-out weights of student (..., K) and teacher (..., M).
        feedback: F, (..., K), or None for back-propagation.
        lr: learning rate (first layer lr / sqrt(N) on the field, second layer lr / N).
        noise: standard deviation of the teacher's output noise, (...).
        times: increasing times >= 0, (n_t).
        activation: "erf" or "linear".
        rtol, atol: tolerances of the solver.

    Returns:
        `Dynamics`, whose batch axes are those of the arguments, broadcast.

    Raises:
        FloatingPointError: a run diverges or its solver fails; names the run and the time.

    Example:
        >>> start = dict(Q0=np.zeros((2, 2)), R0=np.zeros((2, 2)), v0=[0, 0])
        >>> path = online_dynamics(**start, T=np.eye(2), A=[1, 1], feedback=[1.5, -0.5], lr=0.5,
        ...                        times=[0, 1, 400])
        >>> [round(float(x), 2) for x in path.alignment[1:]]  # aligned, then memorised
        [1.0, 0.86]
    """
    if activation not in ("erf", "linear"):
        raise _unknown(activation, "'erf', 'linear'")
    t = np.atleast_1d(_float(times))
    if t.ndim != 1 or t.size == 0 or t[0] < 0 or (np.diff(t) <= 0).any():
        raise ValueError(f"times must increase strictly from >= 0, got {times!r}")
    K, M = np.shape(R0)[-2:]
    shapes: dict[str, tuple[ArrayLike | None, tuple[int, ...]]] = {
        "Q0": (Q0, (K, K)),
        "R0": (R0, (K, M)),
        "T": (T, (M, M)),
        "v0": (v0, (K,)),
        "A": (A, (M,)),
        "feedback": (feedback, (K,)),
        "noise": (noise, ()),
    }
    batch = _batch_shape(shapes)
    flat = {
        name: np.broadcast_to(_float(value), (*batch, *core)).reshape(-1, *core)
        for name, (value, core) in shapes.items()
        if value is not None
    }
    n_runs = flat["v0"].shape[0]
    paths = [
        _solve(
            {k: x[i : i + _RUNS_AT_ONCE] for k, x in flat.items()}, i, t, lr, activation, rtol, atol
        )
        for i in range(0, n_runs, _RUNS_AT_ONCE)
    ]
    path = np.concatenate(paths).reshape(*batch, t.size, -1)  # (..., n_t, K K + K M + K)
    Q = path[..., : K * K].reshape(*path.shape[:-1], K, K)
    R = path[..., K * K : K * (K + M)].reshape(*path.shape[:-1], K, M)
    v = path[..., K * (K + M) :]
    teacher = (np.expand_dims(flat[x].reshape(*batch, *shapes[x][1]), len(batch)) for x in "TA")
    T_b, A_b = teacher
    error = generalisation_error(Q, R, T_b, v, A_b, activation=activation)
    F = np.nan if feedback is None else np.expand_dims(_float(feedback), -2)
    return Dynamics(t, Q, R, v, error, alignment(v, F))


def _batch_shape(shapes: dict[str, tuple[ArrayLike | None, tuple[int, ...]]]) -> tuple[int, ...]:
    """Common leading axes, after a check that each trailing shape is as named."""
    batches = []
    for name, (value, core) in shapes.items():
        if value is None:
            continue
        shape = np.shape(value)
        if shape[len(shape) - len(core) :] != core:
            raise ValueError(f"{name} must have shape (..., {core}), got {shape}")
        batches.append(shape[: len(shape) - len(core)])
    return np.broadcast_shapes(*batches)


def _solve(
    runs: dict[str, Array],
    first: int,
    t: Array,
    lr: float,
    activation: str,
    rtol: float,
    atol: float,
) -> Array:
    """Integrate a few runs in one call of LSODA; their Jacobian is block diagonal, hence banded."""
    from scipy.integrate import solve_ivp

    n, K, M = runs["R0"].shape
    width = K * (K + M) + K
    teacher: dict[str, Any] = {"T": runs["T"], "A": runs["A"], "F": runs.get("feedback")}

    def derivative(time: float, y: Array) -> Array:
        y = y.reshape(n, width)
        if not (np.abs(y) < _DIVERGED).all():
            run = first + int(np.argmin(np.abs(y).max(-1) < _DIVERGED))
            raise FloatingPointError(
                f"run {run} diverges: an order parameter passes {_DIVERGED:.0e} at t = {time:.4g} "
                f"(lr = {lr}); a smaller learning rate helps"
            )
        parts = _velocity(
            y[:, : K * K].reshape(n, K, K),
            y[:, K * K : K * (K + M)].reshape(n, K, M),
            y[:, K * (K + M) :],
            **teacher,
            lr=lr,
            noise=runs["noise"],
            activation=activation,
        )
        return np.concatenate([p.reshape(n, -1) for p in parts], axis=1).ravel()

    y0 = np.concatenate([runs[k].reshape(n, -1) for k in ("Q0", "R0", "v0")], axis=1)
    derivative(0.0, y0.ravel())  # refuses a start that is not finite
    if t[-1] == 0:
        return y0[:, None, :]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lsoda", UserWarning)  # said again by sol.message
        sol = solve_ivp(
            derivative, (0.0, t[-1]), y0.ravel(), method="LSODA", t_eval=t, rtol=rtol, atol=atol,
            lband=width - 1, uband=width - 1,
        )  # fmt: skip
    if not sol.success and n > 1:  # alone, the others may succeed, and the culprit gets a name
        parts = [{k: x[i : i + 1] for k, x in runs.items()} for i in range(n)]
        alone = [_solve(p, first + i, t, lr, activation, rtol, atol) for i, p in enumerate(parts)]
        return np.concatenate(alone)
    if not sol.success:
        reached = float(sol.t[-1]) if len(sol.t) else 0.0
        raise FloatingPointError(
            f"run {first}: the solver fails after t = {reached:.4g}: {sol.message}"
        )
    return sol.y.reshape(n, width, t.size).swapaxes(1, 2)


def early_time(
    T: ArrayLike, A: ArrayLike, F: ArrayLike, *, lr: float, t: ArrayLike
) -> tuple[Array, Array]:
    r"""First order of the erf dynamics under feedback F, from all-zero student weights.

    $$ R_{in} = \eta t\, F_i r_n, \quad
       v_i = \frac{(\eta t)^2}{2} F_i\, \frac{2}{\pi} \sum_n \frac{A_n r_n}{\sqrt{1+T_{nn}}}, \quad
       r_n = \frac{2}{\pi} \sum_m \frac{A_m T_{nm}}{\sqrt{1+T_{mm}}} $$

    All units are copies of one another, scaled by F, so $\cos(v, F) = 1$: the alignment phase.
    Source: derived here.

    Args:
        T: teacher overlaps, (..., M, M).
        A: teacher read-out, (..., M).
        F: feedback, (..., K).
        lr: learning rate.
        t: times, (n_t).

    Returns:
        R (..., n_t, K, M) and v (..., n_t, K).

    Example:
        >>> R, v = early_time(np.eye(2), [1, 1], [1.5, -0.5], lr=0.2, t=[1.0])
        >>> v.shape, round(float(v[0, 0] / v[0, 1]), 6)
        ((1, 2), -3.0)
    """
    T, A, F = _float(T), _float(A), _float(F)
    s = 2 / np.pi * A / np.sqrt(1 + _diagonal(T))  # (..., M)
    r = (T @ s[..., None])[..., 0]
    tau = lr * np.atleast_1d(_float(t))  # (n_t)
    R = tau[:, None, None] * (F[..., :, None] * r[..., None, :])[..., None, :, :]
    v = tau[:, None] ** 2 / 2 * (F * (s * r).sum(-1, keepdims=True))[..., None, :]
    return R, v


def learning_probability(M: int, K: int) -> float:
    r"""Chance that a ReLU student with random-sign feedback can learn a positive teacher.

    $$ P(M, K) = 2^{-K} \sum_{k=M}^{K} \binom{K}{k} $$

    the chance that at least M of the K feedback weights have the teacher's sign.
    Source: attributed to Refinetti et al. (2021) by others; equation number unverified.

    Args:
        M: teacher units, all with positive read-out weights.
        K: student units.

    Raises:
        ValueError: a negative number.

    Example:
        >>> [learning_probability(2, K) for K in (2, 3, 4)]
        [0.25, 0.5, 0.6875]
    """
    if M < 0 or K < 0:
        raise ValueError(f"M and K must be >= 0, got M={M}, K={K}")
    return sum(comb(K, k) for k in range(M, K + 1)) / 2**K


def equivalent_readouts(A: ArrayLike) -> Array:
    r"""Read-outs of all erf students with as many units as their teacher and no error.

    Since erf is odd, $(w_k, v_k) \to (-w_k, -v_k)$ changes nothing, nor does the order of the
    units: $2^M M!$ solutions, fewer if teacher weights are equal in size.
    Source: Refinetti et al. (2021), the degeneracy that feedback breaks.

    Args:
        A: teacher read-out, (M).

    Returns:
        (n, M), the distinct ones, sorted.

    Example:
        >>> equivalent_readouts([1.0, 1.0]).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    signs = np.array(list(product((-1.0, 1.0), repeat=np.size(A))))
    orders = np.array(list(permutations(_float(A))))
    return np.unique((orders[:, None] * signs).reshape(-1, np.size(A)), axis=0)


def gradient_alignment(Q: ArrayLike, v: ArrayLike, F: ArrayLike, *, nodes: int = 24) -> Array:
    r"""Cosine of what DFA and back-propagation send to erf units, mean over inputs.

    $$ E\left[ \frac{\sum_k p_k F_k v_k}{\sqrt{\sum_k p_k F_k^2 \sum_k p_k v_k^2}} \right],
       \qquad p_k = g'(\lambda_k)^2 \propto e^{-\lambda_k^2}, \quad \lambda \sim N(0, Q) $$

    by Gauss-Hermite quadrature. The error drops out: it is one number. Source: gradient alignment
    of Refinetti et al. (2021) for a scalar output; the integral is derived.

    Args:
        Q: student overlaps, (..., K, K).
        v, F: read-out and feedback, (..., K), broadcast against each other.
        nodes: of the quadrature, along each of K axes.

    Returns:
        (...).

    Example:
        >>> bool(np.isclose(gradient_alignment(np.eye(2), [1.0, 2.0], [-2.0, -4.0]), -1))
        True
    """
    Q, v, F = _float(Q), _float(v), _float(F)
    size, turn = np.linalg.eigh(Q)
    root = turn * np.sqrt(np.clip(size, 0, None))[..., None, :]
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    K = Q.shape[-1]
    z = np.stack(np.meshgrid(*[at] * K, indexing="ij"), -1).reshape(-1, K)
    share = np.stack(np.meshgrid(*[weight / weight.sum()] * K, indexing="ij"), -1)
    fields = np.einsum("...kj,nj->...nk", root, z)  # (..., n, K)
    p = np.exp(-(fields**2))
    ours, true, both = (
        np.einsum("...nk,...k->...n", p, pair) for pair in (F**2, v**2, np.multiply(F, v))
    )
    return (both / np.sqrt(ours * true)) @ share.reshape(-1, K).prod(-1)


def equivalent_alignment(T: ArrayLike, A: ArrayLike, F: ArrayLike, *, nodes: int = 24) -> Array:
    r"""Gradient alignment of every solution of :func:`equivalent_readouts`, in their order.

    Args:
        T: teacher overlaps, (K, K).
        A: teacher read-out, (K), weights of different sizes.
        F: feedback, (K).
        nodes: as in :func:`gradient_alignment`.

    Returns:
        (n).

    Raises:
        ValueError: two teacher weights of one size, so that a read-out does not tell which unit of
            the teacher a hidden unit copies.

    Example:
        >>> found = equivalent_alignment(np.eye(2), [0.6, 1.4], [1.0, 2.0])
        >>> equivalent_readouts([0.6, 1.4])[found.argmax()].tolist()
        [0.6, 1.4]
    """
    T, A = _float(T), _float(A)
    if len(np.unique(np.abs(A))) < len(A):
        raise ValueError(f"teacher weights must differ in size, got {A.tolist()}")
    solutions = equivalent_readouts(A)
    copied = np.abs(np.abs(solutions)[..., None] - np.abs(A)).argmin(-1)  # (n, K)
    overlaps = T[copied[:, :, None], copied[:, None, :]]
    return gradient_alignment(overlaps, solutions, F, nodes=nodes)


def passage_time(t: ArrayLike, curve: ArrayLike, level: float) -> Array:
    r"""First time at which a positive curve falls to `level`, by log-log interpolation.

    Args:
        t: positive times, (n_t).
        curve: (..., n_t).
        level: positive.

    Returns:
        (...), NaN where the curve stays above.

    Example:
        >>> round(float(passage_time([1, 10, 100], [1.0, 0.1, 0.01], 0.02)), 6)
        50.0
    """
    fall = -np.log(np.maximum(_float(curve), np.finfo(float).tiny))
    return np.exp(crossing(np.log(_float(t)), fall, -np.log(level)))
