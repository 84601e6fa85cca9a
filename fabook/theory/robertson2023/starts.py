"""Starts along the feedback, and when they stay aligned.

Derived, after Robertson & Koyejo (2023), https://arxiv.org/abs/2306.01870v1.
"""

from __future__ import annotations

import torch
from torch import nn

from ...base import Rule
from .laws import conserved_quantities


@torch.no_grad()
def dominant_start(rule: Rule, factor: float = 1.2) -> None:
    r"""Set the weights above each hidden layer along their feedback, by default dominantly.

    $$ W_{l+1}[:, j] = \frac{c\,\|W_l[j, :]\|^2}{2\,\|B_{l+1}[:, j]\|^2}\, B_{l+1}[:, j]
       \quad\Rightarrow\quad C_{l,j} = (1 - c)\,\tfrac12 \|W_l[j, :]\|^2 \le 0 . $$

    Since C is conserved, $\langle B_{l+1}, W_{l+1}\rangle_j \ge \tfrac12\|W_l[j,:]\|^2 \ge 0$
    for all times if c is at least 1 (biases count into the norm). A smaller c starts aligned
    without that guarantee, a negative one against the feedback. Derived; Robertson & Koyejo (2023)
    announce sufficient conditions for alignment in their abstract.

    Args:
        rule: feedback alignment, or another of fixed matrices in the weights' places, on Linear
            layers; the first layer keeps its weights, the others are replaced from the bottom to
            the top.
        factor: c, not zero; dominant from 1 on.

    Raises:
        ValueError: for other rules or layers, or a factor of zero, which silences the network.

    Example:
        >>> from fabook import mlp, FA
        >>> from fabook.theory.robertson2023 import conserved
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> dominant_start(rule)
        >>> bool((conserved(rule)["0"] < 0).all())
        True
    """
    linear = all(isinstance(rule.net.get_submodule(n), nn.Linear) for n in rule.layers)
    if rule.law != "product" or not rule.fixed or rule.direct or not linear:
        raise ValueError(f"a dominant start is for FA on Linear layers; got {rule}")
    if factor == 0:
        raise ValueError("factor must not be zero: no layer above the first would be active")
    for law in conserved_quantities(rule):
        B = rule.feedback[law.name].double()
        W = rule.stack.above[law.name].weight
        W.copy_(B * (factor * law.norm() / B.square().sum(0)))
