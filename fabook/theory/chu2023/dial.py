"""Feedback between random and exact: of a chosen cosine with the weights.

Derived, for tests of Chu & Bacho (2024), https://arxiv.org/abs/2306.02325, and of Robertson &
Koyejo (2024), https://arxiv.org/abs/2306.01870.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ...networks import draw


def dialled_feedback(
    net: nn.Module, cosine: float, generator: torch.Generator, *, init: str | None = None
) -> dict[str, Tensor]:
    r"""Fixed feedback $B_l = c\,W_l + \sqrt{1-c^2}\,R_l$ of a chosen cosine, for FA.

    R is Gaussian, orthogonal to W and of its norm, so that $\cos(B_l, W_l) = c$ exactly. Drawn as
    the weights were, by ``init``, it gives B their variance instead, and the cosine holds
    approximately: plain feedback alignment at $c = 0$. At 1 the feedback is that of
    backpropagation at the first step, and stays there. Derived.

    Args:
        net: one whose weights are in Linear and Conv2d layers, with the present W.
        cosine: c, in [-1, 1].
        generator: CPU generator of R.
        init: distribution of R, a name of :func:`fabook.networks.draw`.

    Returns:
        Matrices by name of the receiving layer, for ``FA(net, feedback=...)``.

    Raises:
        ValueError: for a cosine out of range, or another layer with weights.

    Example:
        >>> from fabook import mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> b = dialled_feedback(net, 0.5, torch.Generator().manual_seed(0))["0"]
        >>> w = net[2].weight.detach()
        >>> round(float((w * b).sum() / w.norm() / b.norm()), 6)
        0.5
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine must lie in [-1, 1]; got {cosine}")
    layers = [(n, m) for n, m in net.named_modules() if list(m.parameters(recurse=False))]
    found: dict[str, Tensor] = {}
    for (below, _), (name, layer) in itertools.pairwise(layers):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise ValueError(f"the dial is for Linear and Conv2d layers; {name!r} is {layer}")
        w = layer.weight.detach()
        if init is None:
            r = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
            r -= (r * w).sum() / w.square().sum() * w
        else:
            r = draw(w.shape, init, generator=generator, dtype=w.dtype).to(w)
        size = w.norm() / r.norm() if init is None else 1.0
        found[below] = cosine * w + math.sqrt(1 - cosine**2) * r * size
    return found
