r"""A penalised read-out: what is left of its start, and what it has learned.

With a penalty $\lambda$ on the read-out V alone and a learning rate $\eta$, every step is
$V \leftarrow (1 - \eta\lambda) V - \eta\, \partial\mathcal L/\partial V$. So, exactly,

$$ V_t = a_t V_0 + L_t, \qquad a_t = (1 - \eta\lambda)^t , $$

where L gathers the steps. Under feedback alignment with feedback B and ReLU units, the inner
product of B with a step of L and the growth of $\tfrac12\|W\|^2$ in that step are one number up to
$\tfrac12\|\Delta W\|^2$, so that without a penalty $\langle B, L_t\rangle$ is what
$\tfrac12\|W\|^2$ has grown by, minus the squared steps. Derived; the penalty is that of Song, Xu &
Lafferty (2021), https://arxiv.org/abs/2106.06044.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ...metrics import cosine, gradient_alignment_per_sample
from ...rules import FA


def in_double(rule: FA) -> FA:
    """The same rule on a copy of its network, with the same feedback, in double precision.

    Example:
        >>> from fabook import two_layer, stream
        >>> rule = FA(two_layer(4, 3, generator=stream(0, "w")), generator=stream(0, "b"))
        >>> in_double(rule).net[0].weight.dtype
        torch.float64
    """
    feedback = {name: matrix.double() for name, matrix in rule.feedback.items()}
    return FA(copy.deepcopy(rule.net).double(), feedback=feedback)


@torch.no_grad()
def read_out(
    rule: FA, x: Tensor, y: Tensor, *, first: Tensor, kept: float = 1.0
) -> dict[str, float]:
    r"""Alignment of the hidden layer's error signals, and the parts of the read-out behind it.

    Everything is computed in double precision with norms as they are: ``torch``'s own cosine
    bounds small norms from below, which halves the alignment of a confident network.

    Args:
        rule: ``FA`` on :func:`fabook.two_layer`. Its feedback need not be what trained the
            network: then the alignment is chance.
        x: (n, d) inputs.
        y: (n,) labels, or targets as in :meth:`fabook.Rule.backward`.
        first: $V_0$, (outputs, p), the read-out before the first step.
        kept: $a_t = (1 - \eta\lambda)^t$, the share of $V_0$ that is left.

    Returns:
        A dictionary of ``alignment``, the mean over samples of $\cos(B^T e, V^T e)$; ``learned``,
        the same with L in the place of V; ``size`` and ``learned_size``, $\|V\|/\|B\|$ and
        $\|L\|/\|B\|$; ``towards``, $\langle B, L\rangle/\|B\|^2$; ``growth``,
        $\tfrac12\|W\|^2/\|B\|^2$.

    Raises:
        ValueError: ``first`` is not of the read-out's shape.

    Example:
        >>> from fabook import two_layer, stream
        >>> net = two_layer(6, 50, n_outputs=3, generator=stream(0, "w"))
        >>> rule = FA(net, init="standard_normal", generator=stream(0, "b"))
        >>> x, start = torch.randn(8, 6, generator=stream(0, "x")), net[2].weight.detach().clone()
        >>> seen = read_out(rule, x, torch.arange(8) % 3, first=start)
        >>> seen["learned_size"], abs(seen["alignment"]) < 0.5
        (0.0, True)
    """
    exact = in_double(rule)
    net: Any = exact.net
    W, V = net[0].weight, net[2].weight
    B = next(iter(exact.feedback.values()))
    if first.shape != V.shape:
        raise ValueError(
            f"first must have the read-out's {tuple(V.shape)}; got {tuple(first.shape)}"
        )
    x, learned = x.double(), V - kept * first.double()
    _, e, _ = next(exact.signals(x, y))
    unit = B.norm()
    found = {
        "alignment": gradient_alignment_per_sample(exact, x, y, at="activation").total,
        "learned": cosine(e @ B, e @ learned, dim=1).nanmean(),
        "size": V.norm() / unit,
        "learned_size": learned.norm() / unit,
        "towards": (B * learned).sum() / unit**2,
        "growth": W.square().sum() / 2 / unit**2,
    }
    return {name: float(value) for name, value in found.items()}
