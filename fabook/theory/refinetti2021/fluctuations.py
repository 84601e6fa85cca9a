r"""What a finite number of inputs adds to the theory of `online`: fluctuations, and escapes.

A step moves the order parameters $y = (Q, R, v)$ by $\xi / N$, where the mean of $\xi$ over inputs
is the right-hand side $\dot y$ of the equations and $D = \operatorname{Cov} \xi$ its covariance. So
a run of $N$ inputs stays near the theory's path, at a distance of order $1/\sqrt N$: to first order
it is Gaussian, with

$$ N \operatorname{Cov}(y) = \Sigma, \qquad
   \dot\Sigma = J \Sigma + \Sigma J^T + D, \quad J = \partial \dot y / \partial y . $$

A plateau is a fixed point with an eigenvalue $\lambda > 0$ of $J$. A run that begins on it escapes
along its eigenvector by amplifying its own fluctuations, $z s e^{\lambda t} / \sqrt N$ with a
standard normal $z$, and so at the time

$$ \tau = c + \frac1\lambda \Big( \tfrac12 \ln N - \ln s - \ln \lvert z \rvert \Big) . $$

Source: derived; an expansion in the size of the system (van Kampen), for DFA and back-propagation
with erf units, the networks of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import Array
from .online import (
    _readout,
    _velocity,
    generalisation_error,
    joint_covariance,
    online_dynamics,
    passage_time,
)

__all__ = ["Plateau", "jacobian", "linear_noise", "plateau"]

_STEP = 1e-6  # of differences; order parameters are of order one


class _System:
    """One run's equations, in coordinates y: the upper triangle of Q, then R, then v."""

    def __init__(
        self, T: ArrayLike, A: ArrayLike, feedback: ArrayLike | None, lr: float, K: int
    ) -> None:
        self.T, self.A = np.asarray(T, dtype=float), np.asarray(A, dtype=float)
        self.F = None if feedback is None else np.asarray(feedback, dtype=float)
        self.lr, self.K, self.M = lr, K, len(self.A)
        self.rows, self.columns = np.triu_indices(K)
        self.size = len(self.rows) + K * self.M + K

    def pack(self, Q: ArrayLike, R: ArrayLike, v: ArrayLike) -> Array:
        """(..., K, K), (..., K, M), (..., K) as y (..., P)."""
        Q, R, v = (np.asarray(x, dtype=float) for x in (Q, R, v))
        return np.concatenate(
            [Q[..., self.rows, self.columns], R.reshape(*R.shape[:-2], -1), v], axis=-1
        )

    def unpack(self, y: Array) -> tuple[Array, Array, Array]:
        n = len(self.rows)
        Q = np.empty((*y.shape[:-1], self.K, self.K))
        Q[..., self.rows, self.columns] = y[..., :n]
        Q[..., self.columns, self.rows] = y[..., :n]
        R = y[..., n : n + self.K * self.M].reshape(*y.shape[:-1], self.K, self.M)
        return Q, R, y[..., n + self.K * self.M :]

    def velocity(self, y: Array) -> Array:
        """dy/dt at each of y (n, P)."""
        Q, R, v = self.unpack(y)
        F = None if self.F is None else np.broadcast_to(self.F, v.shape)
        T = np.broadcast_to(self.T, (len(y), self.M, self.M))
        A = np.broadcast_to(self.A, (len(y), self.M))
        return self.pack(*_velocity(Q, R, v, T, A, F, self.lr, np.zeros(len(y)), "erf"))

    def jacobian(self, y: Array) -> Array:
        """By central differences, in one call."""
        shift = _STEP * np.eye(self.size)
        rise = self.velocity(np.concatenate([y + shift, y - shift]))
        return ((rise[: self.size] - rise[self.size :]) / (2 * _STEP)).T

    def covariance(self, y: Array, nodes: int) -> Array:
        r"""D, by Gauss-Hermite quadrature over the K + M fields, to leading order in N.

        $$ \xi = (p_i \lambda_k + p_k \lambda_i + p_i p_k,\; p_i \nu_n,\; \eta\, g_i \Delta),
           \quad p_i = \eta f_i g'_i \Delta. $$
        """
        from scipy.special import erf

        Q, R, v = self.unpack(y)
        value, vector = np.linalg.eigh(joint_covariance(Q, R, self.T))
        root = vector * np.sqrt(np.maximum(value, 0))
        z, weight = _grid(len(value), nodes)
        u = z @ root.T
        g, slope = erf(u / sqrt(2)), sqrt(2 / pi) * np.exp(-(u[:, : self.K] ** 2) / 2)
        delta = self.lr * (g @ _readout(v, self.A))[:, None]
        push = slope * delta * (v if self.F is None else self.F)  # of w_k, in units of x
        pair = push[:, :, None] * u[:, None, : self.K]
        moves = self.pack(
            pair + pair.swapaxes(1, 2) + push[:, :, None] * push[:, None, :],
            push[:, :, None] * u[:, None, self.K :],
            delta * g[:, : self.K],
        )
        moves -= weight @ moves
        return (weight[:, None] * moves).T @ moves


def _grid(axes: int, nodes: int) -> tuple[Array, Array]:
    """Points (n, axes) and weights (n) of a standard normal average."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    z = np.stack(np.meshgrid(*[at] * axes, indexing="ij"), -1).reshape(-1, axes)
    share = np.stack(np.meshgrid(*[weight / weight.sum()] * axes, indexing="ij"), -1)
    return z, share.reshape(-1, axes).prod(-1)


def _system(
    Q: ArrayLike, T: ArrayLike, A: ArrayLike, feedback: ArrayLike | None, lr: float
) -> _System:
    if np.ndim(Q) != 2 or np.ndim(A) != 1:
        raise ValueError(f"one run at a time: Q must be (K, K), got shape {np.shape(Q)}")
    return _System(T, A, feedback, lr, len(np.asarray(Q)))


def jacobian(
    Q: ArrayLike,
    R: ArrayLike,
    T: ArrayLike,
    v: ArrayLike,
    A: ArrayLike,
    *,
    feedback: ArrayLike | None = None,
    lr: float,
) -> Array:
    r"""$J = \partial \dot y / \partial y$ of the equations of `online.online_dynamics`.

    The coordinates $y$ are the upper triangle of Q row by row, then R row by row, then v:
    P = K (K + 1) / 2 + K M + K numbers. Central differences of the closed form.

    Args:
        Q, R, T: order parameters of one run, (K, K), (K, M), (M, M).
        v, A: read-out weights of student (K) and teacher (M).
        feedback: F, (K), or None for back-propagation.
        lr: learning rate.

    Returns:
        (P, P), eigenvalues in units of 1 / t.

    Example:
        >>> J = jacobian(np.eye(1), np.eye(1), np.eye(1), [1.0], [1.0], feedback=[1.0], lr=0.1)
        >>> bool((np.linalg.eigvals(J).real < 0).all())  # to have learned is stable
        True
    """
    system = _system(Q, T, A, feedback, lr)
    return system.jacobian(system.pack(Q, R, v))


def linear_noise(
    Q0: ArrayLike,
    R0: ArrayLike,
    T: ArrayLike,
    v0: ArrayLike,
    A: ArrayLike,
    *,
    feedback: ArrayLike | None = None,
    lr: float,
    times: ArrayLike,
    nodes: int = 16,
) -> tuple[Array, Array]:
    r"""Mean path and $\Sigma = N \operatorname{Cov}(y)$ of runs that all begin at one point.

    Args:
        Q0, R0, T, v0, A: of one run, as `online.online_dynamics` takes them.
        feedback: F, (K), or None for back-propagation.
        lr: learning rate.
        times: increasing times > 0, (n_t).
        nodes: of the Gauss-Hermite quadrature, along each of K + M axes.

    Returns:
        y (n_t, P) and Sigma (n_t, P, P), in the coordinates of :func:`jacobian`.

    Raises:
        FloatingPointError: the solver fails.

    Example:
        >>> start = dict(Q0=[[0.2]], R0=[[0.0]], T=[[1.0]], v0=[0.1], A=[1.0], feedback=[1.0])
        >>> y, S = linear_noise(**start, lr=0.5, times=[0.1, 10.0])
        >>> y.shape, S.shape, bool((np.linalg.eigvalsh(S) > -1e-9).all())
        ((2, 3), (2, 3, 3), True)
    """
    from scipy.integrate import solve_ivp

    system = _system(Q0, T, A, feedback, lr)
    P = system.size

    def rate(_: float, state: Array) -> Array:
        y, S = state[:P], state[P:].reshape(P, P)
        drift = system.jacobian(y) @ S
        growth = drift + drift.T + system.covariance(y, nodes)
        return np.concatenate([system.velocity(y[None])[0], growth.ravel()])

    t = np.atleast_1d(np.asarray(times, dtype=float))
    begin = np.concatenate([system.pack(Q0, R0, v0), np.zeros(P * P)])
    sol = solve_ivp(rate, (0.0, t[-1]), begin, t_eval=t, rtol=1e-5, atol=1e-8)
    if not sol.success:
        raise FloatingPointError(f"the solver fails: {sol.message}")
    return sol.y[:P].T, sol.y[P:].T.reshape(len(t), P, P)


@dataclass(frozen=True)
class Plateau:
    """A plateau, and how runs that begin on it leave it; made by :func:`plateau`.

    `start` holds Q0, R0, T, v0 and A, as `online.online_dynamics` takes them.

    Source: derived, for the theory of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428

    Example:
        >>> found = Plateau({}, 0.02, np.array([0.1, -1.0]), np.array([1.0, 0.0]),
        ...                 amplitude=2.0, level=0.01, delay=5.0)
        >>> median = found.quantile(0.5, 10**6)
        >>> round(float(found.cdf(median, 10**6)), 6)
        0.5
        >>> later = found.mean(10**6) - found.mean(10**4)  # ln(100) / 2 in units of 1 / rate
        >>> round(float(later * found.rate), 4), round(found.spread * found.rate, 4)
        (2.3026, 1.1107)
    """

    start: dict[str, Array]
    error: float  # generalisation error on it
    eigenvalues: NDArray[np.complex128]  # of the Jacobian (P), the largest real part first
    direction: Array  # y, unit vector along which it is left (P)
    amplitude: float  # s: sqrt(N) times the standard deviation that is amplified
    level: float  # generalisation error at which a run has escaped
    delay: float  # c: time from an amplitude of 1, in the linear law, to that level

    @property
    def rate(self) -> float:
        """Largest eigenvalue."""
        return float(self.eigenvalues[0].real)

    @property
    def spread(self) -> float:
        r"""Standard deviation of the escape time at every N, $\pi / (\sqrt 8 \lambda)$."""
        return pi / (sqrt(8) * self.rate)

    def mean(self, n_inputs: ArrayLike, displaced: float = 0.0) -> Array:
        r"""Mean escape time of runs that begin on the plateau, or displaced along the direction.

        On it $E \ln \lvert z \rvert = -(\gamma + \ln 2) / 2$; at a distance $a$ from it
        $a + z s / \sqrt N$ is amplified, whose square is noncentral chi-square: a Poisson mixture,
        or where the noise is small an expansion in it.
        """
        from scipy.special import digamma
        from scipy.stats import poisson

        noise = np.log(self.amplitude) - np.log(np.asarray(n_inputs, dtype=float)) / 2
        half = displaced**2 * np.exp(-2 * noise) / 2  # of the noncentrality
        near, far = np.minimum(half, 500), np.maximum(half, 500)
        terms = np.arange(600 + 10 * np.sqrt(500))
        shares = poisson.pmf(terms, near[..., None])
        logs = (np.log(2) + (shares * digamma(terms + 0.5)).sum(-1)) / 2  # E ln |z + a sqrt(N) / s|
        expanded = (np.log(2 * far) - 1 / (2 * far) - 3 / (8 * far**2)) / 2
        return self.delay - (noise + np.where(half > 500, expanded, logs)) / self.rate

    def quantile(self, probability: ArrayLike, n_inputs: ArrayLike) -> Array:
        """Time by which a share of the runs has escaped."""
        from scipy.stats import norm

        z = norm.isf(np.asarray(probability, dtype=float) / 2)
        logs = np.log(np.asarray(n_inputs, dtype=float)) / 2 - np.log(self.amplitude * z)
        return self.delay + logs / self.rate

    def cdf(self, time: ArrayLike, n_inputs: ArrayLike) -> Array:
        """Share of runs that have escaped by a time."""
        from scipy.special import erfc

        t, N = np.asarray(time, dtype=float), np.asarray(n_inputs, dtype=float)
        z = np.sqrt(N) / self.amplitude * np.exp(-self.rate * (t - self.delay))
        return np.asarray(erfc(z / sqrt(2)))


def plateau(
    Q0: ArrayLike,
    R0: ArrayLike,
    T: ArrayLike,
    v0: ArrayLike,
    A: ArrayLike,
    *,
    feedback: ArrayLike | None = None,
    lr: float,
    time: float,
    level: float = 0.5,
    nodes: int = 16,
) -> Plateau:
    r"""The fixed point near which the theory's path from a start is at a time, and its escapes.

    Newton's method ends the path; the amplitude that is amplified is
    $s^2 = l^T D\, l / 2 \lambda$, where $l$ is the left eigenvector of the largest eigenvalue, with
    $l \cdot r = 1$ for the direction $r$. The delay comes from the full equations, started a small
    step along $r$.

    Args:
        Q0, R0, T, v0, A: a start with the symmetry that the plateau keeps, of one run.
        feedback: F, (K), or None for back-propagation.
        lr: learning rate.
        time: at which the path is near the plateau.
        level: error at which a run has escaped, as a share of the plateau's.
        nodes: of the Gauss-Hermite quadrature, along each of K + M axes.

    Raises:
        ValueError: no fixed point is found there, or one from which nothing escapes: it is stable,
            or its units are such exact copies that no input can tell them apart; or one that is
            left along more than one direction, or at different speeds along its two signs.

    Example:
        >>> start = dict(Q0=0.01 * np.eye(2), R0=np.zeros((2, 2)), T=np.eye(2), A=[1, 1])
        >>> found = plateau(**start, v0=[0, 0], feedback=[1, -1], lr=2.0, time=100)
        >>> round(found.error, 4), round(found.rate, 4)
        (0.0247, 0.109)
    """
    from scipy.optimize import root

    path = online_dynamics(Q0, R0, T, v0, A, feedback=feedback, lr=lr, times=[time])
    system = _system(Q0, T, A, feedback, lr)
    near = system.pack(path.Q[0], path.R[0], path.v[0])
    with np.errstate(invalid="ignore"):  # where Newton's method strays, and finds nothing
        found = root(
            lambda y: system.velocity(y[None])[0],
            near,
            jac=system.jacobian,
            options={"xtol": 1e-12},
        )
        off = float(np.abs(system.velocity(found.x[None])).max())
    y = found.x
    if not off < 1e-9:
        raise ValueError(f"no plateau near the path at t = {time}: velocity {off:.1g} remains")
    value, right = np.linalg.eig(system.jacobian(y))
    order = np.argsort(-value.real)
    rate, direction = value[order[0]].real, right[:, order[0]].real
    if rate <= 0:
        raise ValueError(f"nothing escapes: the largest eigenvalue is {rate:.3g}")
    left = np.linalg.inv(right)[order[0]].real  # its product with the direction is 1
    D = system.covariance(y, nodes)
    amplitude = float(np.sqrt(max(left @ D @ left, 0) / (2 * rate)))
    if amplitude < 1e-6:
        raise ValueError("no noise along the direction: the plateau keeps runs that begin on it")
    unstable = int((value.real > _STEP).sum())
    if unstable > 1:
        raise ValueError(
            f"the law is that of one unstable direction; this plateau has {unstable}, with "
            f"eigenvalues {np.round(value[order[:unstable]], 4).tolist()}"
        )
    Q, R, v = system.unpack(y)
    start = {"Q0": Q, "R0": R, "T": system.T, "v0": v, "A": system.A}
    error = float(generalisation_error(Q, R, T, v, A))
    delay, other = (_delay(system, y, d, rate, level * error) for d in (direction, -direction))
    if abs(delay - other) * rate > 1e-3:
        raise ValueError(
            f"the law is that of a direction whose two signs are alike; here they take {delay:.4g} "
            f"and {other:.4g}"
        )
    return Plateau(
        start,
        error,
        value[order],
        direction,
        amplitude=amplitude,
        level=level * error,
        delay=delay,
    )


def _delay(system: _System, y: Array, direction: Array, rate: float, level: float) -> float:
    """Time to the level from a small step along the direction, less what the linear law takes."""
    small = 1e-5
    Q, R, v = system.unpack(y + small * direction)
    options: dict[str, Any] = {"feedback": system.F, "lr": system.lr, "rtol": 1e-10, "atol": 1e-13}
    t = np.linspace(0, 3 * np.log(1 / small) / rate, 3000)[1:]
    path = online_dynamics(Q, R, system.T, v, system.A, times=t, **options)
    time = float(passage_time(t, path.error, level))
    if np.isnan(time):
        raise ValueError(f"the error stays above the level {level:.3g}")
    return time + np.log(small) / rate
