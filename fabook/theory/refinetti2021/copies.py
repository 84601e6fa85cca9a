r"""Copies of a network that compute the same: which of them agrees best with a given feedback.

In a network with one hidden layer and an odd activation (tanh, erf, linear), without biases, hidden
units may change places, and the sign of a unit's weights may be turned on both of its sides. Of
$H$ units this makes $2^H H!$ copies of equal loss. Those of largest weight alignment
$\cos(W_2, F^T)$ are found exactly: no copy changes the norms, so what is left is to give each unit
a place, an assignment problem. Source: derived, from the degeneracy that feedback breaks in
Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from ...losses import Loss, output_error
from ...metrics import gradient_alignment_per_sample
from ...networks import Erf
from ...rules import DFA

__all__ = ["most_aligned_gradients", "most_aligned_weights", "random_copy"]

_ODD = (nn.Tanh, Erf, nn.Identity)


def _weights(net: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The two layers, after a check that copies compute the same."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    others = [m for m in net.children() if not isinstance(m, nn.Linear)]
    if len(layers) != 2 or any(m.bias is not None for m in layers):
        raise ValueError(f"copies need two linear layers without biases, got {net}")
    if not all(isinstance(m, _ODD) for m in others):
        raise ValueError(f"copies need an odd activation (tanh, erf), got {net}")
    return layers[0], layers[1]


def _copy(rule: DFA, order: Tensor, signs: Tensor) -> DFA:
    """The network whose k-th unit is signs[k] times unit order[k] of the rule's, same feedback."""
    net = deepcopy(rule.net)
    first, second = _weights(net)
    signs = signs.to(first.weight)
    with torch.no_grad():
        first.weight.copy_(signs[:, None] * first.weight[order])
        second.weight.copy_(second.weight[:, order] * signs)
    return DFA(net, feedback=dict(rule.feedback))


def _assigned(rule: DFA, gain: Tensor) -> DFA:
    """The copy of largest sum of gains; gain (k, j): of unit j with its own sign at place k."""
    from scipy.optimize import linear_sum_assignment

    _, order = linear_sum_assignment(-gain.abs().cpu().numpy())
    chosen = torch.as_tensor(order, device=gain.device)
    return _copy(rule, chosen, gain.gather(1, chosen[:, None])[:, 0].sign())


def random_copy(rule: DFA, generator: Generator) -> DFA:
    """A copy of the rule's network with units and signs at random, under the same feedback.

    Args:
        rule: DFA on two linear layers without biases and an odd activation.
        generator: CPU generator.

    Returns:
        A rule on a copy of the network; the rule's own stays as it is.

    Raises:
        ValueError: another network.

    Example:
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = DFA(mlp([4, 8, 2], activation="tanh", bias=False, generator=g), generator=g)
        >>> copy, x = random_copy(rule, g), torch.randn(5, 4, generator=g)
        >>> bool(torch.allclose(copy.net(x), rule.net(x), atol=1e-6))
        True
    """
    weight = _weights(rule.net)[0].weight
    order = torch.randperm(len(weight), generator=generator)
    signs = torch.randint(2, (len(weight),), generator=generator) * 2 - 1
    return _copy(rule, order.to(weight.device), signs)


def most_aligned_weights(rule: DFA) -> DFA:
    r"""The copy of largest weight alignment $\cos(W_2, F^T)$: the best of all $2^H H!$.

    Args:
        rule: DFA on two linear layers without biases and an odd activation.

    Raises:
        ValueError: another network.

    Example:
        >>> from fabook import mlp
        >>> from fabook.metrics import weight_alignment
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = DFA(mlp([4, 8, 2], activation="tanh", bias=False, generator=g), generator=g)
        >>> best = most_aligned_weights(rule)
        >>> weight_alignment(best).total > weight_alignment(rule).total
        True
    """
    (F,) = rule.feedback.values()
    return _assigned(rule, F @ _weights(rule.net)[1].weight.detach())


@torch.no_grad()
def most_aligned_gradients(
    rule: DFA, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", rounds: int = 8
) -> DFA:
    r"""The copy of largest gradient alignment, mean over samples, that reassignment finds.

    The cosine of a sample is a sum over units, as an assignment wants it, over the norms of two
    signals. One of these depends on the assignment, so that the norms of the last round are taken
    and the units assigned again, starting from the rule's own network and from the copy of largest
    weight alignment. The best copy met on the way is returned: a lower bound of the maximum.

    Args:
        rule: DFA on two linear layers without biases and an odd activation.
        x: (samples, inputs).
        target, loss: as in :func:`fabook.metrics.gradient_alignment_per_sample`.
        rounds: assignments from each of the two starts.

    Raises:
        ValueError: another network.

    Example:
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = DFA(mlp([4, 8, 2], activation="tanh", bias=False, generator=g), generator=g)
        >>> x, y = torch.randn(9, 4, generator=g), torch.arange(9) % 2
        >>> best = most_aligned_gradients(rule, x, y)
        >>> [round(gradient_alignment_per_sample(r, x, y).total, 1) for r in (rule, best)]
        [-0.3, 0.9]
    """

    def score(one: DFA) -> float:
        return gradient_alignment_per_sample(one, x, target, loss=loss).total

    best = rule
    for start in (rule, most_aligned_weights(rule)):
        now = start
        for _ in range(rounds):
            best = max((best, now), key=score)
            now = _assigned(now, _gains(now, x, target, loss))
        best = max((best, now), key=score)
    return best


def _gains(rule: DFA, x: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """What unit j would add to the cosines at place k if the norms stayed as they are, (k, j)."""
    first, second = _weights(rule.net)
    z, error = first(x), output_error(rule.net(x), target, loss, "sum")[1]
    with torch.enable_grad():  # g' of any activation
        z.requires_grad_()
        for module in rule.net.children():
            if not isinstance(module, nn.Linear):
                slope = torch.autograd.grad(module(z).sum(), z)[0]
    (F,) = rule.feedback.values()
    sent, true = error @ F.mT, error @ second.weight * slope
    size = (sent * slope).norm(dim=1) * true.norm(dim=1)
    kept = size > 0  # a sample without error has no cosine
    return (sent[kept] / size[kept, None]).mT @ (slope * true)[kept]
