r"""Alignment dominance in two-layer ReLU networks: when feedback alignment descends, and how fast.

The network has a scalar output, $f(x) = \sum_j w_j\,\phi(u_j\cdot x)$ with ReLU, feedback
$b_j$ in place of $w_j$, and no biases. With
$G_j = \sum_i (\partial\mathcal L/\partial f_i)\,\phi'(u_j\cdot x_i)\,x_i$ the true gradient
of $u_j$ is $w_j G_j$ and its update $b_j G_j$, so that under gradient flow

$$ \dot{\mathcal L} = -\sum_j \left(\frac{\partial \mathcal L}{\partial w_j}\right)^2
          - \sum_j (w_j b_j)\,\|G_j\|^2,
          \qquad c_j = w_j b_j - \tfrac12 \|u_j\|^2 \text{ conserved.} $$

Robertson & Koyejo (2024), https://arxiv.org/abs/2306.01870, prove convergence from "alignment
dominance". The abstract does not define it; here it means $c_j \ge 0$ for every neuron at the
start, our reconstruction. All formulas here are derived.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...base import Rule
from ...losses import Loss, output_error
from ...rules import BP, FA
from ..robertson2023 import conserved
from .losses import LOSS_FUNCTIONS


def readout(u: Tensor, b: Tensor, *, factor: float, offset: float = 0.0) -> Tensor:
    r"""Read-out whose alignment is $w_j b_j = a\,\tfrac12\|u_j\|^2 + c$.

    Dominant ($c_j \ge 0$) for ``factor`` of at least one and ``offset`` not negative; both
    negative is the opposite start, with every neuron pushed uphill.

    Args:
        u: (h, d) first-layer weights.
        b: (h,) feedback, without zeros.
        factor: a.
        offset: c.

    Raises:
        ValueError: if a feedback weight is zero.

    Example:
        >>> u, b = torch.ones(3, 2), torch.tensor([1.0, -2.0, 0.5])
        >>> (readout(u, b, factor=1.5) * b).tolist()
        [1.5, 1.5, 1.5]
    """
    if not bool((b != 0).all()):
        raise ValueError("feedback weights must not be zero")
    return (factor * u.square().sum(1) / 2 + offset) / b


def neuron_signals(u: Tensor, x: Tensor, error: Tensor) -> Tensor:
    r"""$G_j = \sum_i e_i\,\phi'(u_j\cdot x_i)\,x_i$, the part that gradient and update share.

    Args:
        u: (h, d) first-layer weights.
        x: (n, d) inputs.
        error: (n,) derivative of the loss with respect to each output.

    Returns:
        (h, d).

    Example:
        >>> u, x = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> neuron_signals(u, x, torch.tensor([1.0, 0.5])).tolist()  # sample 2 is off in neuron 2
        [[2.5, 1.5], [1.0, 2.0]]
    """
    active = (x @ u.mT > 0).to(x.dtype)
    return (active * error[:, None]).mT @ x


def dominance_share(alignment: Tensor, signals: Tensor) -> Tensor:
    r"""Share of the first layer's motion that descends, in [-1, 1].

    $$ D = \frac{\sum_j (w_j b_j)\|G_j\|^2}{\sum_j |w_j b_j|\,\|G_j\|^2} $$

    The first layer lowers the loss if and only if D > 0. NaN where nothing moves.

    Args:
        alignment: (h,) products $w_j b_j$.
        signals: (h, d) from :func:`neuron_signals`.

    Example:
        >>> G = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> float(dominance_share(torch.tensor([3.0, -1.0]), G))
        0.5
    """
    size = signals.square().sum(1)
    return (alignment * size).sum() / (alignment.abs() * size).sum()


def layer_shares(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
) -> dict[str, float]:
    r"""The dominance share of each hidden layer that learns, for any depth and number of outputs.

    $$ D_l = \frac{\sum_j g_j \cdot u_j}{\sum_j |g_j \cdot u_j|} $$

    with the true gradient $g_j$ and the rule's update $u_j$ of the weights into neuron j: the share
    of the layer's motion that descends. For one output and one hidden layer
    $g_j \cdot u_j = w_j b_j \|G_j\|^2$, and this is :func:`dominance_share`. Derived.

    Args:
        rule: on a stack of Linear and Conv2d layers.
        x, target, loss, reduction: as in :meth:`fabook.Rule.gradients`.

    Returns:
        Shares in [-1, 1] by layer name, bottom to top; NaN where nothing moves.

    Example:
        >>> from fabook import BP, mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> layer_shares(BP(net), torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]))
        {'0': 1.0}
    """
    ours, true = (
        each.gradients(x, target, loss=loss, reduction=reduction) for each in (rule, BP(rule.net))
    )
    found: dict[str, float] = {}
    for name in (name for name in rule.layers[:-1] if f"{name}.weight" in ours):
        update, gradient = (g[f"{name}.weight"].double().flatten(1) for g in (ours, true))
        descent = (update * gradient).sum(1)
        found[name] = float(descent.sum() / descent.abs().sum())
    return found


def kernel(u: Tensor, x: Tensor) -> Tensor:
    r"""$K_{ik} = (x_i\cdot x_k)\,\#\{j: \text{active on both}\}$.

    For the squared loss with errors $\epsilon_i = f_i - y_i$,
    $\sum_j \|G_j\|^2 = \epsilon^T K \epsilon / n^2$.

    Args:
        u: (h, d) first-layer weights.
        x: (n, d) inputs.

    Returns:
        (n, n), symmetric and positive semidefinite.

    Example:
        >>> u, x = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> kernel(u, x).tolist()
        [[10.0, 1.0], [1.0, 10.0]]
        >>> e = torch.tensor([1.0, 0.5])
        >>> float(e @ kernel(u, x) @ e), float(neuron_signals(u, x, e).square().sum())
        (13.5, 13.5)
    """
    active = (x @ u.mT > 0).to(x.dtype)
    return (x @ x.mT) * (active @ active.mT)


def tangent_kernel(u: Tensor, alignment: Tensor, x: Tensor) -> Tensor:
    r"""Kernel of feedback alignment, $\Theta = HH^T + XX^T \circ S\,\mathrm{diag}(wb)\,S^T$.

    With hidden activities H (n, h) and their derivatives S. The squared loss moves exactly by
    $\dot L = -\epsilon^T\Theta\,\epsilon/n^2$; where every $w_jb_j \ge c > 0$,
    $\Theta \succeq H H^T + cK$.

    Args:
        u: (h, d) first-layer weights.
        alignment: (h,) products $w_j b_j$.
        x: (n, d) inputs.

    Returns:
        (n, n), symmetric.

    Example:
        >>> u, x = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, -1.0]])
        >>> H = (x @ u.mT).relu()
        >>> (tangent_kernel(u, torch.ones(2), x) - kernel(u, x) - H @ H.mT).tolist()  # all wb = 1
        [[0.0, 0.0], [0.0, 0.0]]
    """
    z = x @ u.mT
    active = (z > 0).to(x.dtype)
    return z.relu() @ z.relu().mT + (x @ x.mT) * ((active * alignment) @ active.mT)


@torch.no_grad()
def measure(rule: FA, x: Tensor, y: Tensor, loss: str) -> dict[str, float]:
    r"""Everything that the two bounds need, at the present weights.

    Args:
        rule: FA on ``mlp([d, h, 1], activation="relu", bias=False)``.
        x: (n, d) inputs.
        y: (n, 1) targets, plus or minus one for the logistic loss.
        loss: ``squared`` or ``logistic``.

    Returns:
        ``loss``; ``share`` D; ``least`` the smallest $w_jb_j$ and ``dominant`` the fraction
        of neurons where it is positive; ``conserved`` the smallest $c_j$; ``readout`` and
        ``hidden``, the two parts of $-\dot{\mathcal L}$; ``eigenvalue`` and ``tangent``,
        the least ones of :func:`kernel` and :func:`tangent_kernel`; ``worst``, the largest loss of
        a sample; ``active``, the smallest fraction of neurons that a sample activates.

    Example:
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 8, 1], activation="relu", bias=False, generator=g), generator=g)
        >>> u, w = rule.net.parameters()
        >>> w.data[0] = readout(u.detach(), rule.feedback["0"][0], factor=1.0)  # a dominant start
        >>> seen = measure(rule, torch.ones(5, 4), torch.ones(5, 1), "squared")
        >>> seen["share"], seen["dominant"], seen["hidden"] > 0
        (1.0, 1.0, True)
    """
    u, w = (p.detach() for p in rule.net.parameters())
    w, b = w[0], rule.feedback["0"][0]
    f = rule.net(x)
    value, error = output_error(f, y, LOSS_FUNCTIONS[loss])
    signals = neuron_signals(u, x, error[:, 0])
    z = x @ u.mT
    alignment = w * b
    each = F.softplus(-y * f) if loss == "logistic" else (f - y).square() / 2
    return {
        "loss": float(value),
        "share": float(dominance_share(alignment, signals)),
        "least": float(alignment.min()),
        "dominant": float((alignment > 0).double().mean()),
        "conserved": float(-conserved(rule)["0"].max()),
        "readout": float((z.relu().mT @ error).square().sum()),
        "hidden": float((alignment * signals.square().sum(1)).sum()),
        "eigenvalue": float(torch.linalg.eigvalsh(kernel(u, x))[0]),
        "tangent": float(torch.linalg.eigvalsh(tangent_kernel(u, alignment, x))[0]),
        "worst": float(each.max()),
        "active": float((z > 0).double().mean(1).min()),
    }
