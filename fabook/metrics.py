r"""Alignments and overlaps of weights, gradients and signals: one convention, written down.

Cosines are signed. A zero vector has no direction: its cosine is NaN, left out of every mean and
counted. Whole-matrix and per-sample measures have different names. Measuring leaves the network's
buffers, the rule's feedback and every random state as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ._checks import choose
from .base import Rule, check_rule
from .losses import Loss
from .rules import BP


@dataclass(frozen=True)
class Alignment:
    """Cosines by layer and over all of them.

    Attributes:
        layers: cosine by layer name, bottom to top; NaN where a vector is zero.
        total: cosine of the layers' concatenation (per sample: mean of these cosines).
        excluded: number of zero vectors by layer (per sample: of samples).

    Example:
        >>> from fabook import FA, mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> found = weight_alignment(FA(net, feedback={"0": net[2].weight.detach()}))  # B = W
        >>> {name: round(cos, 6) for name, cos in found.layers.items()}, round(found.total, 6)
        ({'2': 1.0}, 1.0)
        >>> found.excluded
        {'2': 0}
    """

    layers: dict[str, float]
    total: float
    excluded: dict[str, int] = field(default_factory=dict)


def cosine(a: Tensor, b: Tensor, dim: int | None = None) -> Tensor:
    r"""Signed cosine $a \cdot b / (\|a\| \|b\|)$ in double precision; NaN for a zero vector.

    ``torch.nn.functional.cosine_similarity`` bounds small norms from below, which turns small
    gradients into small cosines; here the norms are taken as they are.

    Args:
        a, b: tensors of one shape.
        dim: axis of the vectors; None flattens.

    Returns:
        float64 tensor without that axis (0-d for None).

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> float(cosine(torch.tensor([1., 0.]), torch.tensor([-1e-30, 0.])))
        -1.0
        >>> float(cosine(torch.zeros(2), torch.ones(2)))
        nan
    """
    if a.shape != b.shape:
        raise ValueError(f"cosine of shapes {tuple(a.shape)} and {tuple(b.shape)}: must be equal")
    a, b = a.detach().double(), b.detach().double()
    if dim is None:
        a, b, dim = a.flatten(), b.flatten(), 0
    return (_direction(a, dim) * _direction(b, dim)).sum(dim).clamp(-1.0, 1.0)


def _direction(a: Tensor, dim: int) -> Tensor:
    """Vectors of length one; largest entries go first, so that no square under- or overflows."""
    if a.shape[dim] == 0:
        return a
    a = a / a.abs().amax(dim, keepdim=True)
    return a / torch.linalg.vector_norm(a, dim=dim, keepdim=True)


def gradient_alignment(
    rule: Rule, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
) -> Alignment:
    r"""Cosine between a rule's update of each weight matrix and the true gradient.

    $\cos(\mathrm{vec}\, \delta_l h_{l-1}^T, \mathrm{vec}\, \nabla_{W_l} \mathcal L)$, both
    summed over the batch at the same weights (our choice for Chu & Bacho 2023 and Robertson &
    Koyejo 2024, whose own definitions we do not know).
    ``total`` concatenates the hidden layers; the read-out, whose update is the gradient, would
    only raise it and is left out: ``network_alignment`` has it.

    On a network that is no stack, layers are parameters of two axes or more that learn, by their
    names, and what is left out is the weight that acts last; for a rule that cuts the network, all
    weights above the last cut.

    Args:
        rule: bound to the network.
        x, target, loss, reduction: as in :meth:`fabook.Rule.backward`.

    Returns:
        Alignment of the hidden weight layers.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], generator=g), generator=g)
        >>> list(gradient_alignment(rule, torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1])).layers)
        ['0']
    """
    ours, true = _weight_gradients(rule, x, target, loss, reduction)
    return _compared({n: (ours[n], true[n]) for n in rule.hidden(x) if n in ours})


def _compared(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Alignment:
    return Alignment(
        {name: float(cosine(a, b)) for name, (a, b) in pairs.items()},
        cosine_of_all(list(pairs.values())),
        {name: int(not (a.any() and b.any())) for name, (a, b) in pairs.items()},
    )


def network_alignment(
    rule: Rule, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
) -> float:
    """Cosine between a rule's whole update and the whole gradient, read-out included.

    All weight matrices concatenated (ours). The read-out's share equals one for every rule, so
    this is positive long before hidden layers are aligned.

    Args:
        rule, x, target, loss, reduction: as in :func:`fabook.gradient_alignment`.

    Example:
        >>> from fabook import BP, Shallow, mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> x, y = torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1])
        >>> round(network_alignment(BP(net), x, y), 6), network_alignment(Shallow(net), x, y) > 0
        (1.0, True)
    """
    ours, true = _weight_gradients(rule, x, target, loss, reduction)
    return cosine_of_all([(ours[name], true[name]) for name in ours])


@torch.no_grad()
def _weight_gradients(
    rule: Rule, x: Tensor, target: Tensor, loss: Loss, reduction: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rule's and the true gradient of each weight matrix; a stack's frozen ones included."""
    check_rule(rule)
    found = []
    for each in (rule, BP(rule.net)):
        if not rule.is_stack:
            grads = each.gradients(x, target, loss=loss, reduction=reduction)
            found.append({name: g for name, g in grads.items() if g.ndim > 1})
            continue
        signals = each.trace(x, target, loss=loss, reduction=reduction)
        found.append({s.name: s.gradient("weight") for s in signals if s.is_weight_layer})
    return found[0], found[1]


def cosine_of_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Cosine of the first tensors of all pairs, concatenated, with the second; NaN of none.

    Example:
        >>> a, b = torch.tensor([3.0]), torch.tensor([[4.0], [0.0]])
        >>> cosine_of_all([(a, a), (b, 0 * b)])  # of (3, 4, 0) with (3, 0, 0)
        0.6
    """
    if not pairs:
        return float("nan")
    a = torch.cat([a.flatten() for a, _ in pairs])
    b = torch.cat([b.flatten() for _, b in pairs])
    return float(cosine(a, b))


def gradient_alignment_per_sample(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    at: str = "preactivation",
) -> Alignment:
    r"""Mean over samples of the cosine between a rule's error signal and backpropagation's.

    ``preactivation`` compares $\delta_l$ with $\partial \mathcal L/\partial z_l$
    (Refinetti et al. 2021, gradient alignment); ``activation`` compares what arrives at
    $h_l$, before the derivative of the activation (Song, Xu & Lafferty 2021). ``total``
    concatenates the hidden layers for each sample before the cosine is taken.

    Args:
        rule: bound to the network.
        x: (samples, ...) inputs.
        target: as in :meth:`fabook.Rule.backward`.
        loss: as there; each sample's signal is its own, whatever the reduction.
        at: ``preactivation`` or ``activation``.

    Returns:
        Alignment of the hidden layers; samples with a zero signal are excluded and counted.

    Raises:
        ValueError: unknown ``at``.
        UnsupportedModule: the network is no stack, so that it has no signals by layer.

    References: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428;
    Song, Xu & Lafferty (2021), https://arxiv.org/abs/2106.06044

    Example:
        >>> from fabook import FA, mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> rule = FA(net, feedback={"0": -net[2].weight.detach()})  # uphill, for every sample
        >>> x, y = torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1])
        >>> found = gradient_alignment_per_sample(rule, x, y)
        >>> round(found.total, 6), found.excluded
        (-1.0, {'0': 0})
    """
    choose("at", at, ("preactivation", "activation"))
    check_rule(rule)
    ours = _hidden_signals(rule, x, target, loss, at)
    true = _hidden_signals(BP(rule.net), x, target, loss, at)
    if not ours:
        return Alignment({}, float("nan"))
    found = {name: _mean_over_samples(ours[name], true[name]) for name in ours}
    whole = [torch.cat(list(signals.values()), 1) for signals in (ours, true)]
    return Alignment(
        {name: mean for name, (mean, _) in found.items()},
        _mean_over_samples(*whole)[0],
        {name: zero for name, (_, zero) in found.items()},
    )


def _mean_over_samples(a: Tensor, b: Tensor) -> tuple[float, int]:
    """Mean cosine of the rows, and how many are zero and left out; NaN where one has no number."""
    c, zero = cosine(a, b, dim=1), ~(a.any(1) & b.any(1))
    broken = bool((c.isnan() & ~zero).any())
    return float("nan") if broken else float(c.nanmean()), int(zero.sum())


@torch.no_grad()
def _hidden_signals(
    rule: Rule, x: Tensor, target: Tensor, loss: Loss, at: str
) -> dict[str, Tensor]:
    """Signals of the hidden layers, (samples, units), bottom to top."""
    found: dict[str, Tensor] = {}
    for s in rule.trace(x, target, loss=loss, reduction="sum"):
        signal = s.error if at == "preactivation" else s.incoming
        if s.is_weight_layer and signal is not None and s.name != rule.layers[-1]:
            found[s.name] = signal.flatten(1)
    return {name: found[name] for name in rule.layers[:-1]}


def weight_alignment(rule: Rule) -> Alignment:
    r"""Cosine between forward weights and what feedback would have them be.

    For rules that transport the error layer by layer (FA, sign-symmetric, Kolen-Pollack):
    $\cos(\mathrm{vec}\,W_{l+1}, \mathrm{vec}\,B_{l+1})$. For direct rules (DFA, DRTP), whose
    matrices skip layers, Refinetti et al. (2021) compare with products:
    $\cos(\mathrm{vec}\,W_{l+1}, \mathrm{vec}\,F_{l+1} F_l^T)$ between hidden layers and
    $\cos(\mathrm{vec}\,W_L, \mathrm{vec}\,F_{L-1}^T)$ at the top. ``total`` concatenates
    all of them with entries as they are. The first layer has no weight alignment.

    Returns:
        Alignment by the name of the layer that owns W. A rule that owns no feedback matrices (BP,
        Shallow) has NaN in every layer and in ``total``, each layer counted as excluded.

    On a network that is no stack, the weights are those through which the rule has been seen to
    send an error to something that learns.

    Raises:
        ValueError: for direct rules across convolutions, where no product has the weight's shape,
            and across blocks, where there is none; for a network that is no stack and has not run.

    Example:
        >>> from fabook import mlp, DFA
        >>> g = torch.Generator().manual_seed(0)
        >>> list(weight_alignment(DFA(mlp([4, 3, 5, 2], generator=g), generator=g)).layers)
        ['2', '4']
    """
    check_rule(rule)
    if not rule.feedback:
        matrices = [name for name, p in rule.net.named_parameters() if p.ndim > 1]
        owners, none = rule.layers[1:] if rule.is_stack else matrices, float("nan")
        return Alignment(dict.fromkeys(owners, none), none, dict.fromkeys(owners, 1))
    return _compared(_matrix_pairs(rule))


def _matrix_pairs(rule: Rule) -> dict[str, tuple[Tensor, Tensor]]:
    if not rule.is_stack:
        carriers = rule.carriers
        return {n: (rule.net.get_parameter(n).detach(), rule.matrix(n)) for n in carriers}
    owners = rule.layers[1:]
    weights = [rule.net.get_parameter(f"{name}.weight").detach() for name in owners]
    feedback = list(rule.feedback.values())
    if rule.direct:
        targets = [upper @ lower.t() for lower, upper in itertools.pairwise(feedback)]
        targets.append(feedback[-1].t())
    else:
        targets = feedback
    for name, weight, matrix in zip(owners, weights, targets, strict=True):
        if weight.shape != matrix.shape:
            raise ValueError(
                f"weight alignment of layer {name!r}: its weight {tuple(weight.shape)} and the "
                f"product of feedback matrices {tuple(matrix.shape)} differ in shape"
            )
    return dict(zip(owners, zip(weights, targets, strict=True), strict=True))


def network_overlap(nets: Sequence[nn.Module]) -> float:
    """Mean over pairs of networks of the cosine between all their parameters.

    The measure of degeneracy breaking (Refinetti et al. 2021): do networks trained from different
    initial weights with one feedback end more alike than under backpropagation?

    Args:
        nets: at least two networks of one architecture.

    Raises:
        ValueError: fewer than two networks.

    References: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428

    Example:
        >>> from fabook import mlp
        >>> nets = [mlp([4, 3, 2], generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
        >>> round(network_overlap(nets[:2]), 6), network_overlap(nets) < 1
        (1.0, True)
    """
    if len(nets) < 2:
        raise ValueError(f"overlap needs at least two networks; got {len(nets)}")
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
    values = [cosine(a, b) for a, b in itertools.combinations(flat, 2)]
    return float(torch.stack(values).mean())
