"""Benign overfitting: what the minimum-norm solution does with wrong labels.

Of two Gaussian clouds in many dimensions: how far it is from the best classifier, and what a start
away from zero costs. Derived; that this solution is reached is in the abstract of Robertson &
Koyejo (2023), https://arxiv.org/abs/2306.01870v1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .._arrays import Array, _float


class Clouds(NamedTuple):
    """Two Gaussian clouds, of labels 1 and -1, and a share of wrong labels.

    Source: derived, see :func:`clouds`.

    Example:
        >>> drawn = clouds(10, 30, signal=4.0, wrong=0.2, generator=torch.Generator())
        >>> drawn.X.shape, drawn.y.sum().item(), round(float(drawn.direction.norm()), 6)
        (torch.Size([10, 30]), 0.0, 2.0)
    """

    X: Tensor  # (n, d)
    y: Tensor  # (n), right
    given: Tensor  # (n), some of them wrong
    direction: Tensor  # (d), from the middle to the centre of the cloud of label 1


def clouds(
    n: int, d: int, *, signal: float, wrong: float = 0.0, generator: torch.Generator
) -> Clouds:
    r"""Draw two clouds around $\pm\mu$ and give some samples the wrong label.

    $$ x = (y\mu + \xi)/\sqrt d, \qquad \xi \sim N(0, I_d), \qquad \|\mu\|^2 = m . $$

    The best classifier, $\mathrm{sign}(\mu\cdot x)$, errs with probability $\Phi(-\sqrt m)$.
    The factor keeps inputs at length one as d grows and changes no solution but in its scale.

    Args:
        n: samples, half of each label.
        d: inputs.
        signal: m, the squared distance of a centre from the middle.
        wrong: share of wrong labels; the number of them is fixed, their places are random.
        generator: CPU generator.

    Raises:
        ValueError: for an odd n, or a share outside [0, 1/2].

    Example:
        >>> drawn = clouds(10, 30, signal=4.0, wrong=0.2, generator=torch.Generator())
        >>> int((drawn.y != drawn.given).sum())
        2
    """
    if n < 2 or n % 2:
        raise ValueError(f"n must be even, half of each label; got {n}")
    if not 0 <= wrong <= 0.5:
        raise ValueError(f"wrong must lie in [0, 0.5]; got {wrong}")
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    direction = torch.randn(d, **options)
    direction *= signal**0.5 / direction.norm()
    y = 1 - 2 * (torch.arange(n) % 2).double()
    X = (y[:, None] * direction + torch.randn(n, d, **options)) / d**0.5
    given = y.clone()
    given[torch.randperm(n, generator=generator)[: round(wrong * n)]] *= -1
    return Clouds(X, y, given, direction)


def margin(beta: ArrayLike, direction: ArrayLike) -> float:
    r"""Distance of a cloud's centre from a linear classifier, in standard deviations of the cloud.

    $$ q = \mu\cdot\beta / \|\beta\| , \qquad P(\text{error}) = \Phi(-q) . $$

    Args:
        beta: (d) or (d, 1), the map that is learned.
        direction: (d), from :func:`clouds`.

    Example:
        >>> margin([3.0, 4.0], [5.0, 0.0])
        3.0
    """
    beta = _float(beta).ravel()
    return float(_float(direction) @ beta / np.linalg.norm(beta))


def minimum_norm_margin(
    n: int, d: ArrayLike, *, signal: float, wrong: float = 0.0, outside: ArrayLike = 0.0
) -> Array:
    r"""Margin of the minimum-norm fit of :func:`clouds`, for many samples.

    With $\rho = 1 - 2p$ for a share p of wrong labels, $D = d - n - 2$ and
    $S = D + n(m + 1)$,

    $$ q = \frac{n m \rho}{S} \Big/ \sqrt{\frac nD\Big(1 - \frac{n m \rho^2}{S}\Big)} ,
       \qquad q_u = q / \sqrt{1 + u^2} . $$

    Along $\mu$ the inputs are $h = \sqrt m\,y + g$, and across it Gaussian noise Z, so that
    $X X^T = h h^T + Z Z^T$; quadratic forms of $(Z Z^T)^{-1}$ have the mean
    $\|v\|^2/D$ of an inverse Wishart matrix, and $h^T \hat y \approx n\sqrt m\,\rho$. The
    second form adds a part outside the data, of length u relative to the solution, as
    :func:`predicted_distance` gives it, which has nothing to do with $\mu$. Derived; fluctuations
    are of relative order $1/\sqrt n$.

    Args:
        n: samples.
        d: inputs, more than n + 2; a number or an array.
        signal, wrong: as in :func:`clouds`.
        outside: u.

    Raises:
        ValueError: if d is not larger than n + 2.

    Example:
        >>> minimum_norm_margin(50, [100, 3200], signal=100, wrong=0.2).round(2).tolist()
        [0.72, 3.29]
    """
    D, rho = _float(d) - n - 2, 1 - 2 * wrong
    if (D <= 0).any():
        raise ValueError(f"d must be larger than n + 2 = {n + 2}; got {d!r}")
    S = D + n * (signal + 1)
    across = np.sqrt(n / D * (1 - n * signal * rho**2 / S))
    return np.asarray(n * signal * rho / S / across / np.sqrt(1 + _float(outside) ** 2))
