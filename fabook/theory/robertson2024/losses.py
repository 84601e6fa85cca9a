"""The squared and the logistic loss, of outputs and targets of one shape.

Those of our bounds under the dominance of Robertson & Koyejo (2024),
https://arxiv.org/abs/2306.01870; `LOSS_FUNCTIONS` has both by name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def half_mean_square(f: Tensor, y: Tensor) -> Tensor:
    r"""Squared loss $\frac{1}{2n}\sum_i (f_i - y_i)^2$, half of ``mse``.

    Args:
        f, y: outputs and targets, of one shape.

    Raises:
        ValueError: different shapes.

    Example:
        >>> import torch
        >>> half_mean_square(torch.tensor([1.0, 3.0]), torch.zeros(2)).item()  # (1 + 9) / 4
        2.5
    """
    _check_shapes(f, y)
    return (f - y).square().mean() / 2


def logistic(f: Tensor, y: Tensor) -> Tensor:
    r"""Logistic loss $\frac1n\sum_i \log(1 + e^{-y_i f_i})$, labels plus or minus one.

    Args:
        f, y: outputs and labels, of one shape.

    Raises:
        ValueError: different shapes, or other labels.

    Example:
        >>> import torch
        >>> round(logistic(torch.zeros(2), torch.tensor([1.0, -1.0])).item(), 6)  # log 2
        0.693147
    """
    _check_shapes(f, y)
    _check_signs(y)
    return F.softplus(-y * f).mean()


def _check_shapes(f: Tensor, y: Tensor) -> None:
    if f.shape != y.shape:
        raise ValueError(
            f"outputs {tuple(f.shape)} and targets {tuple(y.shape)} must be of one shape"
        )


def _check_signs(y: Tensor) -> None:
    if not bool((y.abs() == 1).all()):
        raise ValueError("labels must be plus or minus one")


LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": half_mean_square,
    "logistic": logistic,
}
