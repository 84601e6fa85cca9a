"""The walk of the weights: how far it leads, and by how long a way.

Derived; the abstract of Chu & Bacho (2024), https://arxiv.org/abs/2306.02325, speaks of a kind of
random walk.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn


class DisplacementTracker:
    r"""The way of a network's weights, from where they are when the walk begins.

    Called after each update it adds up $\sum_k \|\Delta_k W_l\|^2$. For steps whose mean given the
    past is zero the squared displacement $\|W_l - W_l^0\|^2$ has this as its mean, whatever their
    lengths; for one straight line of n equal steps it is n times as large (derived).

    Example:
        >>> from fabook import mlp, BP, train
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 2], generator=g)
        >>> walk = DisplacementTracker(net)
        >>> x, y = torch.ones(3, 4), torch.tensor([0, 1, 1])
        >>> seen = train(BP(net), x, y, steps=1, lr=0.1, after_step=walk)
        >>> abs(walk.displacement()["0"] / walk.path()["0"] - 1) < 1e-4
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._weights = {
            name.rpartition(".")[0]: p for name, p in net.named_parameters() if p.ndim > 1
        }
        self._start = {name: w.detach().clone() for name, w in self._weights.items()}
        self._last = {name: w.clone() for name, w in self._start.items()}
        self._path = {name: w.new_zeros((), dtype=torch.float64) for name, w in self._start.items()}

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Take note of a step that has just been made; its number is not used."""
        for name, weight in self._weights.items():
            last = self._last[name].sub_(weight)
            self._path[name] += torch.linalg.vector_norm(last).double().square()
            last.copy_(weight)

    @torch.no_grad()
    def displacement(self) -> dict[str, float]:
        """Squared distance of each weight matrix from its start."""
        return {
            name: float((weight - self._start[name]).double().square().sum())
            for name, weight in self._weights.items()
        }

    def path(self) -> dict[str, float]:
        """Sum of the squared lengths of the steps of each weight matrix."""
        return {name: float(total) for name, total in self._path.items()}


def growth_exponent(steps: ArrayLike, values: ArrayLike) -> np.ndarray:
    r"""Exponent of a power law: least-squares slope of log values against log steps.

    Args:
        steps: (P,) positive.
        values: (..., P) positive.

    Returns:
        (...) exponents.

    Example:
        >>> float(growth_exponent([1, 10, 100], [2.0, 20.0, 200.0]).round(6))
        1.0
    """
    t = np.log(np.asarray(steps, dtype=float))
    y = np.log(np.asarray(values, dtype=float))
    t = t - t.mean()
    return (y * t).sum(-1) / (t * t).sum()
