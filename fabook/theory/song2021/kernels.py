r"""Kernels of two-layer networks under feedback alignment, and the alignment they predict.

Source: Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044; what is derived here says so.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..._checks import choose
from ...rules import FA
from ...stacked import _LOCAL
from .._arrays import Array
from .reduction import _parts


def kernel_matrices(rule: FA, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""The kernels G and H by which the errors move: $\dot e = -(G + H)\, e$.

    $$ G_{ij} = \frac1p \sum_r \psi(w_r \cdot x_i)\, \psi(w_r \cdot x_j), \qquad
       H_{ij} = \frac{x_i \cdot x_j}{p} \sum_r b_r \beta_r\,
                \psi'(w_r \cdot x_i)\, \psi'(w_r \cdot x_j) $$

    G comes from the second layer, H from the first. Song, Xu & Lafferty (2021), section 3; their
    sum is the stability matrix of :func:`fabook.theory.chu2023.stability_matrix`.

    Args:
        rule, x: as in :func:`.train_two_layer`.

    Returns:
        G and H, each (n, n).

    Raises:
        ValueError: another rule or network.

    Example:
        >>> from fabook import stream, two_layer
        >>> from fabook.theory.chu2023 import stability_matrix
        >>> net = two_layer(4, 50, generator=stream(0, "w"))
        >>> rule = FA(net, init="standard_normal", generator=stream(0, "b"))
        >>> x = torch.randn(3, 4, generator=stream(0, "x"))
        >>> G, H = kernel_matrices(rule, x)
        >>> bool(torch.allclose(G + H, stability_matrix(rule, x), atol=1e-5))
        True
    """
    parts = _parts(rule, x, x.new_zeros(len(x)))
    Z = parts.x @ parts.W.T
    forward, backward = _LOCAL[type(parts.activation)]
    hidden, saved = forward(parts.activation, Z)
    slope = backward(parts.activation, torch.ones_like(Z), saved)
    p, K = Z.shape[1], parts.x @ parts.x.T
    return hidden @ hidden.T / p, (slope * (parts.b * parts.beta)) @ slope.T / p * K


def limit_kernel(x: Tensor, activation: str, *, layer: int = 2) -> Tensor:
    r"""The kernels of infinite width, of what either layer learns.

    $$ \bar G_{ij} = E\, \psi(w \cdot x_i)\, \psi(w \cdot x_j), \qquad
       \Theta_{ij} = x_i \cdot x_j\, E\, \psi'(w \cdot x_i)\, \psi'(w \cdot x_j) $$

    for w standard normal: $\bar G$ of the second layer, $\Theta$ of the first. Linear:
    both are $x_i \cdot x_j$. ReLU, with the angle $\theta$ of the two inputs:
    $|x_i||x_j| (\sin\theta + (\pi-\theta)\cos\theta)/2\pi$ and
    $x_i \cdot x_j (\pi-\theta)/2\pi$ (Cho & Saul 2009). tanh: the trapezoidal rule in both
    normal variables, which converges exponentially; its step is 0.4 of the distance to
    the pole of tanh at the largest $|x|$, so that it is good to about 1e-7.

    Args:
        x: (n, d).
        activation: ``linear``, ``relu`` or ``tanh``.
        layer: 2 for $\bar G$, 1 for $\Theta$.

    Returns:
        (n, n), float64.

    Raises:
        ValueError: another activation or layer.

    Example:
        >>> limit_kernel(torch.eye(2), "relu").round(decimals=4).tolist()
        [[0.5, 0.1592], [0.1592, 0.5]]
    """
    choose("activation", activation, ("linear", "relu", "tanh"))
    choose("layer", str(layer), ("1", "2"))
    x = x.detach().double()
    K = x @ x.T
    size = K.diagonal().sqrt()
    if activation == "linear":
        return K
    scale = size[:, None] * size
    cos = (K / scale).clamp(-1, 1)
    if activation == "relu":
        angle = cos.acos()
        if layer == 1:
            return K * (math.pi - angle) / (2 * math.pi)
        return scale * (angle.sin() + (math.pi - angle) * cos) / (2 * math.pi)
    z = torch.arange(-6.0, 6.0, min(0.1, 0.4 * math.pi / 2 / float(size.max())), dtype=x.dtype)
    z = z.to(x.device)
    weight = torch.exp(-z.square() / 2)
    weight = weight / weight.sum()

    def unit(u: Tensor) -> Tensor:  # twice the sigmoid takes a quarter of the time of tanh
        u = torch.sigmoid(u.mul_(2)).mul_(2).sub_(1)
        return u if layer == 2 else u.square_().neg_().add_(1)

    left = weight * unit(size[:, None] * z)  # (n, nodes)
    found = torch.zeros_like(K)
    for i in range(len(x)):  # v = rho z1 + sqrt(1 - rho^2) z2 has the correlation rho with z1
        rho = cos[i, : i + 1, None, None]
        v = rho * z[:, None] + (1 - rho.square()).clamp_min(0).sqrt() * z
        inner = unit(v.mul_(size[: i + 1, None, None])) @ weight
        found[i, : i + 1] = inner @ left[i]
    found = found + found.tril(-1).T
    return found if layer == 2 else K * found


def lazy_alignment(x: Tensor, activation: str, width: int) -> float:
    r"""Expected cosine of b and $\beta$ after training a wide network without a penalty.

    To first order in the movement of the first layer, $b \cdot \beta$ gains
    $\tfrac12 s^T \Theta s$ with $s = \int g = \bar G^{-1} e(0)$, while
    $|b||\beta|$ stays p. For targets from a teacher of the same form
    $e(0) \sim N(0, 2\bar G)$, hence

    $$ E \cos(b, \beta) = \frac{1}{p}\, \mathrm{tr}\,(\bar G^{-1} \Theta), $$

    which is n/p for linear units. Derived.

    Args:
        x: (n, d) inputs, of which $\bar G$ is invertible.
        activation: as in :func:`limit_kernel`.
        width: p.

    Raises:
        ValueError: another activation.

    Example:
        >>> round(lazy_alignment(torch.eye(3), "linear", 600), 6)
        0.005
    """
    second, first = (limit_kernel(x, activation, layer=layer) for layer in (2, 1))
    return float(torch.linalg.solve(second, first).trace()) / width


# --- theory of linear networks with a constant penalty -------------------------------------------


def isotropic_alignment(
    steps: ArrayLike,
    *,
    gamma: float,
    target_norm: float,
    n: int,
    width: int,
    lr: float,
    penalty: float,
) -> tuple[Array, Array]:
    r"""Cosine and loss in time under a constant penalty, for data with $X X^T = \gamma I$.

    Once $\beta_0$ has decayed, $\beta$ follows the error, and the error is
    $\varepsilon = \Lambda |y| / (\Lambda + \gamma + \gamma^2\sigma^2/p)$ with
    $\Lambda = \lambda n/2$. Its integral $\sigma$ over the time
    $\tau = 2 \eta t / n$ solves a cubic,

    $$ (\Lambda + \gamma)\,\sigma + \frac{\gamma^2}{3p}\,\sigma^3 = \Lambda |y| \tau, \qquad
       \cos = \sqrt{\frac{\gamma\sigma^2}{p + \gamma\sigma^2}}, \qquad
       \text{loss} = \frac{\varepsilon^2}{n}. $$

    So $\sigma/\sqrt p$ depends on $t/\sqrt p$ alone: all widths climb one curve.
    Derived.

    Args:
        steps: (P,) numbers of updates t.
        gamma: the eigenvalue.
        target_norm: $|y|$.
        n: samples.
        width: p.
        lr, penalty: of the mean squared error, positive.

    Returns:
        cosine and mean squared error, each (P,).

    Raises:
        ValueError: if ``lr`` or ``penalty`` is not positive.

    Example:
        >>> data = dict(gamma=1.0, target_norm=2.0, n=10, lr=0.1, penalty=0.1)
        >>> for t, p in ((1000, 100), (2000, 400)):  # one curve in t / sqrt(p)
        ...     cos, loss = isotropic_alignment([t], width=p, **data)
        ...     print(cos.round(4), loss.round(4))
        [0.729] [0.0144]
        [0.729] [0.0144]
    """
    if not (lr > 0 and penalty > 0):
        raise ValueError(f"lr and penalty must be positive; got {lr} and {penalty}")
    strength = penalty * n / 2
    # u = sigma / sqrt(p) solves u^3 + a u = rhs, whose one real root is of hyperbolic form
    a = 3 * (strength + gamma) / gamma**2
    rhs = 3 / gamma**2 * strength * target_norm * 2 * lr / n * np.asarray(steps, float)
    rhs = rhs / math.sqrt(width)
    root = 2 * math.sqrt(a / 3)
    u = root * np.sinh(np.arcsinh(3 * rhs / (a * root)) / 3)
    error = strength * target_norm / (strength + gamma + gamma**2 * u**2)
    return u * math.sqrt(gamma) / np.sqrt(1 + gamma * u**2), error**2 / n


def quasi_static(
    x: Tensor, y: Tensor, steps: ArrayLike, *, width: int, lr: float, penalty: float
) -> tuple[Array, Array]:
    r"""Cosine and loss in time under a constant penalty, for any data.

    As :func:`isotropic_alignment`, with $u = s/\sqrt p$ an n-vector:

    $$ \frac{du}{d\tau} = e/\sqrt p, \quad e = -\Lambda\,(\Lambda + K + K u u^T K)^{-1} y, \quad
       \cos = \frac{u^T K e}{\sqrt{e^T K e + (u^T K e)^2 + \Lambda^2 a^2 p}} $$

    (signs such that the cosine is positive), $a = (1-\eta\lambda)^t$ being what is left of
    $\beta_0$. It holds at large width and once $\beta$ has caught up with the error.
    Derived; integrated by SciPy's LSODA in the square root of time.

    Args:
        x: (n, d).
        y: (n,) or (n, 1).
        steps: (P,) numbers of updates t, increasing.
        width: p.
        lr, penalty: of the mean squared error, positive.

    Returns:
        cosine and mean squared error, each (P,).

    Raises:
        ValueError: if ``lr`` or ``penalty`` is not positive or ``steps`` do not increase.

    Example:
        >>> run = dict(width=400, lr=0.1, penalty=0.1)
        >>> x, y, t = torch.eye(4), torch.ones(4), [2000]
        >>> cos, loss = quasi_static(x, y, t, **run)  # the same where X X^T = gamma I
        >>> again, _ = isotropic_alignment(t, gamma=1.0, target_norm=2.0, n=4, **run)
        >>> round(float(cos[0]), 3), round(float(again[0]), 3)
        (0.767, 0.767)
    """
    from scipy.integrate import solve_ivp

    if not (lr > 0 and penalty > 0):
        raise ValueError(f"lr and penalty must be positive; got {lr} and {penalty}")
    t = np.asarray(steps, dtype=float)
    if t.ndim != 1 or (np.diff(t) <= 0).any() or (t < 0).any():
        raise ValueError("steps must increase from 0 or above")
    inputs = x.detach().double().cpu().numpy()
    target = y.detach().double().cpu().numpy().ravel()
    n = len(target)
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    target = vectors.T @ target
    strength = penalty * n / 2
    base = strength + values

    def error(u: Array) -> Array:
        w = values * u  # Sherman-Morrison for base + w w'
        plain, along = target / base, w / base
        return strength * (plain - along * (w @ plain) / (1 + w @ along))

    def slope(root: float, u: Array) -> Array:
        return 2 * root * error(u)  # d tau = 2 root d root

    roots = np.sqrt(2 * lr / n * t / math.sqrt(width))
    if roots[-1] == 0:
        path = np.zeros((n, len(t)))
    else:
        run = solve_ivp(
            slope, (0, roots[-1]), np.zeros(n), method="LSODA", t_eval=roots, rtol=1e-8, atol=1e-12
        )
        path = run.y
    e = np.stack([error(u) for u in path.T])
    along = np.einsum("pi,i,pi->p", path.T, values, e)
    left = (1 - lr * penalty) ** (2 * t) * width * strength**2
    norm = np.sqrt((e**2) @ values + along**2 + left)
    return along / norm, (e**2).mean(1)
