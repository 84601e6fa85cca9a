"""The solvable chain of two weights, $f = w_2 w_1$ with target y and feedback b.

Derived, as the smallest case of the fixed points of Chu & Bacho (2024),
https://arxiv.org/abs/2306.02325.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from ...networks import linear_net
from .._arrays import Array


def chain(w1: float, w2: float) -> nn.Sequential:
    """The chain as a network of two 1 x 1 layers in double precision, for use with the rules.

    Example:
        >>> chain(2.0, 3.0)(torch.ones(1, 1, dtype=torch.float64)).item()
        6.0
    """
    net = linear_net([1, 1, 1], dtype=torch.float64)
    with torch.no_grad():
        for weight, value in zip(net.parameters(), (w1, w2)):
            weight.fill_(value)
    return net


def chain_velocity(
    w1: ArrayLike, w2: ArrayLike, *, y: float = 1.0, b: float = 1.0
) -> tuple[Array, Array]:
    r"""Flow $\dot w_1 = -be$, $\dot w_2 = -w_1 e$ with $e = w_1w_2 - y$.

    Args:
        w1, w2: weights, broadcast against each other.
        y, b: target and feedback.

    Returns:
        The rates of w1 and w2, of their shape.

    Example:
        >>> [float(v) for v in chain_velocity(2.0, 1.0)]  # the error is 1
        [-1.0, -2.0]
    """
    a, c = np.asarray(w1, float), np.asarray(w2, float)
    e = a * c - y
    return -b * e, -a * e


def chain_exponent(w1: ArrayLike, w2: ArrayLike, *, b: float = 1.0) -> Array:
    r"""The one eigenvalue of the flow at a fixed point that is not zero, $-(w_1^2 + bw_2)$.

    Negative is stable. At every point, $\dot e$ is this times e.

    Example:
        >>> chain_exponent([1.0, -0.5], [1.0, -2.0]).tolist()  # two fixed points: only one holds
        [-2.0, 1.75]
    """
    return -(np.asarray(w1, float) ** 2 + b * np.asarray(w2, float))


def chain_alignment(w1: ArrayLike, w2: ArrayLike, *, b: float = 1.0) -> Array:
    r"""Cosine of step and gradient, $(w_1^2 + bw_2)/\sqrt{(w_1^2+w_2^2)(w_1^2+b^2)}$.

    Example:
        >>> chain_alignment([1.0, -1.0], [1.0, -1.0]).round(9).tolist()  # the edge has none
        [1.0, 0.0]
    """
    a, c = np.asarray(w1, float), np.asarray(w2, float)
    return -chain_exponent(a, c, b=b) / (np.hypot(a, c) * np.hypot(a, b))


def chain_edge(*, y: float = 1.0, b: float = 1.0) -> float:
    r"""The $w_1$ at which fixed points change stability, $-(by)^{1/3}$.

    Unstable are the fixed points with $w_1$ between this and zero.

    Example:
        >>> chain_edge(b=0.5, y=2.0)
        -1.0
    """
    return -float(np.cbrt(b * y))


def chain_flow(
    w1: ArrayLike, w2: ArrayLike, times: ArrayLike, *, y: float = 1.0, b: float = 1.0
) -> tuple[Array, Array]:
    """Paths of the flow from many starts.

    Args:
        w1, w2: (n,) starts.
        times: (T,) rising times from 0 on.
        y, b: target and feedback.

    Returns:
        w1 and w2, each (T, n).

    Raises:
        ValueError: if the times do not rise from zero or above.

    Example:
        >>> path, _ = chain_flow([0.5], [0.5], [0.0, 50.0])
        >>> path[:, 0].round(3).tolist()  # ends where w1 (w1^2/2 + 0.375) = 1
        [0.5, 1.063]
    """
    from scipy.integrate import solve_ivp

    at = np.asarray(times, float)
    if (at < 0).any() or (np.diff(at) <= 0).any():
        raise ValueError(f"times must rise from 0 or above; got {at.tolist()}")
    start = np.stack([np.asarray(w1, float), np.asarray(w2, float)])

    def velocity(_: float, state: Array) -> Array:
        return np.concatenate(chain_velocity(*state.reshape(start.shape), y=y, b=b))

    found = solve_ivp(
        velocity,
        (0, max(at[-1], 1e-12)),
        start.ravel(),
        "DOP853",
        t_eval=at,
        rtol=1e-10,
        atol=1e-12,
    )
    first, second = np.moveaxis(found.y.reshape(*start.shape, len(at)), -1, 1)
    return first, second
