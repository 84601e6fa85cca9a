r"""Two-layer linear networks: which solution they reach, and how.

$f(x) = W_2 W_1 x$ with squared loss $\tfrac12\|f - Y\|_F^2$ summed over the samples,
feedback $B$ in the place of $W_2$, and fewer samples than inputs. Steps of the first
layer lie in the span of the data, so what the start has outside it stays. That over-parameterised
networks reach the minimum-norm solution is in the abstract of Robertson & Koyejo (2023),
https://arxiv.org/abs/2306.01870v1; all formulas here are derived.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, _float


def solution(X: ArrayLike, Y: ArrayLike) -> Array:
    r"""The map of smallest norm that fits the data, $\beta^* = X^+ Y$.

    Args:
        X: inputs in rows, (n, d).
        Y: targets, (n, m).

    Returns:
        (d, m).

    Example:
        >>> solution([[1.0, 1.0]], [[2.0]]).ravel().round(12).tolist()
        [1.0, 1.0]
    """
    return np.linalg.pinv(_float(X)) @ _float(Y)


def distance(W1: ArrayLike, W2: ArrayLike, X: ArrayLike, Y: ArrayLike) -> float:
    r"""How far a network is from the minimum-norm solution, $\|\beta-\beta^*\|/\|\beta^*\|$.

    Args:
        W1: (h, d).
        W2: (m, h).
        X, Y: as in :func:`solution`.

    Example:
        >>> round(distance([[1.0, 0.0]], [[2.0]], [[1.0, 1.0]], [[2.0]]), 12)
        1.0
    """
    best = solution(X, Y)
    return float(np.linalg.norm((_float(W2) @ _float(W1)).T - best) / np.linalg.norm(best))


def predicted_distance(W1_start: ArrayLike, W2_end: ArrayLike, X: ArrayLike, Y: ArrayLike) -> float:
    r"""The distance of a network that has fitted the data, from where its first layer began.

    $$ \frac{\|\beta - \beta^*\|}{\|\beta^*\|}
       = \frac{\|W_2(\infty)\, W_1(0)\, P_\perp\|_F}{\|\beta^*\|_F}, \qquad P_\perp = 1 - X^+ X . $$

    Holds under FA and under gradient descent, since $\Delta W_1 = -\eta B^T E^T X$ lies in
    the row space of X. Derived.

    Args:
        W1_start: (h, d), at the start.
        W2_end: (m, h), at the end.
        X, Y: as in :func:`solution`.

    Example:
        >>> predicted_distance([[0.0, 0.0]], [[3.0]], [[1.0, 1.0]], [[2.0]])
        0.0
    """
    X = _float(X)
    outside = np.eye(X.shape[1]) - np.linalg.pinv(X) @ X
    left = np.linalg.norm(_float(W2_end) @ _float(W1_start) @ outside)
    return float(left / np.linalg.norm(solution(X, Y)))


@dataclass(frozen=True)
class ScalarFlow:
    """A run of :func:`scalar_flow` at the times `t` (n_t).

    Source: derived, see :func:`scalar_flow`.

    Example:
        >>> path = scalar_flow([[1.0, 0.0]], [2.0], times=[0.0, 30.0])
        >>> path.loss.round(6).tolist(), path.beta.round(6).tolist()
        ([2.0, 0.0], [[0.0, 0.0], [2.0, 0.0]])
        >>> bool(np.allclose(path.readout, (path.v**2).sum(-1) / 2))  # the conservation law
        True
    """

    t: Array  # (n_t)
    v: Array  # (n_t, d), W1 = b v^T
    readout: Array  # (n_t), w2 = readout b
    beta: Array  # (n_t, d)
    loss: Array  # (n_t), half the sum of squares


def scalar_flow(
    X: ArrayLike, y: ArrayLike, *, times: ArrayLike, norm2: float = 1.0, start: float = 0.0
) -> ScalarFlow:
    r"""One output under FA from $W_1 = 0$, $w_2 = a_0 b$, in closed form.

    $$ W_1 = b v^T, \quad w_2 = (a_0 + \tfrac12 \|v\|^2)\, b, \quad
       \beta = \|b\|^2 (a_0 + \tfrac12 \|v\|^2)\, v, \quad \dot v = -X^T (X\beta - y). $$

    The second is the conservation law. $a_0 < 0$ starts against the feedback: the loss rises
    first, and is back at its initial value when $\tfrac12\|v\|^2$ reaches $-a_0$. Derived; only
    $v$ is integrated.

    Args:
        X: (n, d).
        y: (n).
        times: increasing, from 0 on, (n_t).
        norm2: squared norm of the feedback b.
        start: a_0.

    Raises:
        ValueError: for a shape that does not fit.

    Example:
        >>> path = scalar_flow([[1.0, 0.0]], [2.0], times=[0.0, 30.0])
        >>> path.beta[-1].round(6).tolist()
        [2.0, 0.0]
    """
    from scipy.integrate import solve_ivp

    X, y, t = _float(X), _float(y), np.atleast_1d(_float(times))
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(f"X must be (n, d) and y (n,); got {X.shape} and {y.shape}")

    def beta(v: Array) -> Array:
        return norm2 * (start + (v**2).sum(-1, keepdims=True) / 2) * v

    run = solve_ivp(
        lambda _, v: -X.T @ (X @ beta(v) - y),
        (0.0, float(t[-1])),
        np.zeros(X.shape[1]),
        t_eval=t,
        method="RK45",
        rtol=1e-9,
        atol=1e-11,
    )
    v = run.y.T
    loss = ((beta(v) @ X.T - y) ** 2).sum(-1) / 2
    return ScalarFlow(t, v, start + (v**2).sum(-1) / 2, beta(v), loss)


def potential(beta: ArrayLike, norm2: float = 1.0) -> Array:
    r"""The potential of which FA from zero is the mirror flow, for one output.

    $$ \psi(\beta) = \tfrac34 \left(2/\|b\|^2\right)^{1/3} \|\beta\|^{4/3}, \qquad
       \nabla\psi(\beta) = v, \qquad \tfrac{d}{dt}\nabla\psi(\beta) = -\nabla L(\beta). $$

    It grows with the Euclidean norm alone, hence the minimum-norm solution. Gradient descent from
    a small balanced start has the exponent 3/2, after a change of time (Azulay et al. 2021).
    Derived.

    Args:
        beta: (..., d).
        norm2: squared norm of the feedback b.

    Example:
        >>> float(potential([2.0, 0.0]).round(6))
        2.381102
    """
    size = np.linalg.norm(_float(beta), axis=-1)
    return 0.75 * (2 / norm2) ** (1 / 3) * size ** (4 / 3)
