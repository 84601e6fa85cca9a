"""How fast the loss falls at least under alignment dominance: derived.

The notion, not its definition, is in the abstract of Robertson & Koyejo (2024),
https://arxiv.org/abs/2306.01870.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .losses import _check_signs


def exponential_bound(t: Tensor, eigenvalue: Tensor, loss0: float, c: float, n: int) -> Tensor:
    r"""Squared loss: $L(t) \le L(0)\exp(-\frac{2c}{n}\int_0^t \lambda_{\min}(K_s)\,ds)$.

    Holds for every flow with $w_jb_j \ge c > 0$; with c = 1 and the tangent kernel in place
    of K, for every flow whose tangent kernel is positive. The integral is a lower sum, in which the
    kernel has on each interval the smaller of its two measured eigenvalues.

    Args:
        t: (P,) times, from zero.
        eigenvalue: (P,) smallest eigenvalue of the kernel at these times.
        loss0: L(0).
        c: smallest conserved $c_j$.
        n: number of samples.

    Example:
        >>> t = torch.tensor([0.0, 1.0, 2.0])
        >>> exponential_bound(t, torch.ones(3), 1.0, 0.5, 1).log().tolist()
        [0.0, -1.0, -2.0]
    """
    low = torch.minimum(eigenvalue[1:], eigenvalue[:-1]).clamp(min=0)
    integral = torch.cat([t.new_zeros(1), ((t[1:] - t[:-1]) * low).cumsum(0)])
    return loss0 * torch.exp(-2 * c / n * integral)


def separable_bound(
    t: Tensor, loss0: float, c: float, *, margin: float, active: float, worst: float, width: int
) -> Tensor:
    r"""Logistic loss on separable data: $L(t) \le 1/(1/L(0) + kt)$, decay like 1/t.

    $$ k = c\,\gamma^2 \kappa^2 h\,\varphi^2,\qquad \varphi = (1 - e^{-\ell})/\ell. $$

    With a unit vector v of margin $\gamma$,
    $\sum_j\|G_j\|^2 \ge \sum_j (G_j\cdot v)^2 \ge \gamma^2\kappa^2 h\,(\mathrm{mean}_i
    |\ell_i'|)^2$ if every sample activates $\kappa h$ neurons, and
    $|\ell'_i| = 1 - e^{-\ell_i} \ge \varphi\,\ell_i$ if no sample's loss exceeds
    $\ell$.

    Args:
        t: times.
        loss0: L(0).
        c: smallest conserved $c_j$.
        margin: gamma, see :func:`margin_direction`.
        active: kappa.
        worst: largest loss of a sample.
        width: h.

    Example:
        >>> t = torch.tensor([0.0, 3.0])
        >>> separable_bound(t, 1.0, 1.0, margin=1.0, active=1.0, worst=1e-9, width=1).tolist()
        [1.0, 0.25]
    """
    phi = -math.expm1(-worst) / worst
    return 1 / (1 / loss0 + c * (margin * active * phi) ** 2 * width * t)


def margin_direction(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    r"""Unit vector v of largest margin $\gamma = \min_i y_i\,v\cdot x_i$, and the margin.

    Least distance programming by non-negative least squares (Lawson & Hanson 1974); the margin is
    that of the vector found, so it is a margin whether or not the vector is the best.

    Args:
        x: (n, d) inputs.
        y: (n,) labels, plus or minus one.

    Returns:
        v (d,) and the margin; not positive if no direction through the origin separates.

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
        >>> v, margin = margin_direction(x, torch.tensor([1, -1]))
        >>> v.tolist(), margin
        ([1.0, 0.0], 1.0)
    """
    from scipy.optimize import nnls

    _check_signs(y)
    z = (y[:, None] * x).double().cpu()
    system = torch.cat([z.mT, z.new_ones(1, len(z))])
    target = torch.cat([z.new_zeros(z.shape[1]), z.new_ones(1)])
    dual = torch.as_tensor(nnls(system.numpy(), target.numpy(), maxiter=30 * len(z))[0])
    v = (system @ dual - target)[:-1]
    v = v / torch.linalg.vector_norm(v).clamp(min=1e-300)
    return v.to(x), float((z @ v).min())
