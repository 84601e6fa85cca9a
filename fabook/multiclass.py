r"""Feedback between random and exact: the dial that sets alignment in many-class problems."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Generator, Tensor, nn

from .networks import draw


def dialled_feedback(
    net: nn.Module, rho: float, generator: Generator, *, init: str = "xavier_uniform"
) -> dict[str, Tensor]:
    r"""Fixed feedback :math:`B_l = \rho\,W_l(0) + \sqrt{1-\rho^2}\,R_l` for feedback alignment.

    With :math:`R_l` drawn as the weights were, B has their variance for every :math:`\rho`, and
    :math:`\cos(B_l, W_l(0)) \approx \rho`. At :math:`\rho = 0` this is plain feedback alignment; at
    1 the feedback is that of backpropagation at the first step and stays there. Derived.

    Args:
        net: ``nn.Sequential`` whose weights are in Linear and Conv2d layers, before training.
        rho: in [-1, 1].
        generator: CPU generator of R.
        init: distribution of R, a name of :func:`fabook.networks.draw`; that of the weights.

    Returns:
        Matrices by name of the receiving layer, for ``FA(net, feedback=...)``.

    Raises:
        ValueError: for rho out of range, or another layer with weights.

    Example:
        >>> import torch
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], init="xavier_uniform", generator=g)
        >>> B = dialled_feedback(net, 1.0, g)
        >>> bool((B["0"] == net[2].weight).all())
        True
    """
    if not -1 <= rho <= 1:
        raise ValueError(f"rho must lie in [-1, 1]; got {rho}")
    layers = [(n, m) for n, m in net.named_modules() if list(m.parameters(recurse=False))]
    found: dict[str, Tensor] = {}
    for (below, _), (name, layer) in pairwise(layers):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise ValueError(f"the dial is for Linear and Conv2d layers; {name!r} is {layer}")
        weight = layer.weight.detach()
        noise = draw(weight.shape, init, generator=generator, dtype=weight.dtype).to(weight)
        found[below] = rho * weight + math.sqrt(1 - rho**2) * noise
    return found


def above_chance(accuracy: float, n_classes: int) -> float:
    r"""Accuracy with chance at zero and perfection at one, :math:`(a - 1/n)/(1 - 1/n)`.

    Example:
        >>> above_chance(0.75, 2), above_chance(0.25, 4)
        (0.5, 0.0)
    """
    return (accuracy - 1 / n_classes) / (1 - 1 / n_classes)
