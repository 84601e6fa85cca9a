r"""Alignment, overlaps and conserved quantities: one convention, written down.

Cosines are signed. A zero vector has no direction: its cosine is NaN, left out of every mean and
counted. Whole-matrix and per-sample measures have different names. Measuring leaves the network's
buffers, the rule's feedback and every random state as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .networks import choose
from .rules import BP, BRSF, DFA, DRTP, FA, FRSF, USF, KolenPollack, Loss, Rule, _gradient

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Alignment:
    """Cosines by layer and over all of them.

    Attributes:
        layers: cosine by layer name, bottom to top; NaN where a vector is zero.
        total: cosine of the layers' concatenation (per sample: mean of these cosines).
        excluded: number of zero vectors by layer (per sample: of samples).
    """

    layers: dict[str, float]
    total: float
    excluded: dict[str, int] = field(default_factory=dict)


def cosine(a: Tensor, b: Tensor, dim: int | None = None) -> Tensor:
    r"""Signed cosine :math:`a \cdot b / (\|a\| \|b\|)` in double precision; NaN for a zero vector.

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


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Restore buffers (running statistics) and the random state afterwards.

    Args:
        module: a network, or a rule with its network.
    """
    modules = [module, module.net] if isinstance(module, Rule) else [module]
    kept = [(b, b.clone()) for m in modules for b in m.buffers()]
    cuda = {p.device.index for m in modules for p in m.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


def gradient_alignment(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
) -> Alignment:
    r"""Cosine between a rule's update of each weight matrix and the true gradient.

    :math:`\cos(\mathrm{vec}\, \delta_l h_{l-1}^T, \mathrm{vec}\, \nabla_{W_l} \mathcal L)`, both
    summed over the batch at the same weights (Chu & Bacho 2023; Robertson & Koyejo 2024).
    ``total`` concatenates the hidden layers; the read-out, whose update is the gradient, would
    only raise it and is left out: ``network_alignment`` has it.

    Args:
        rule: bound to the network.
        x, target, loss, reduction: as in :meth:`fabook.rules.Rule.backward`.

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
    hidden = rule.layers[:-1]
    layers = {name: float(cosine(ours[name], true[name])) for name in hidden}
    total = _cosine_of_all([(ours[name], true[name]) for name in hidden])
    zero = {n: int(not (ours[n].any() and true[n].any())) for n in hidden}
    return Alignment(layers, total, zero)


def network_alignment(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
) -> float:
    """Cosine between a rule's whole update and the whole gradient, read-out included.

    All weight matrices concatenated (Chu & Bacho 2023, network alignment). The read-out's share
    equals one for every rule, so this is positive long before hidden layers are aligned.

    Args:
        rule, x, target, loss, reduction: as in :func:`gradient_alignment`.
    """
    ours, true = _weight_gradients(rule, x, target, loss, reduction)
    return _cosine_of_all([(ours[name], true[name]) for name in rule.layers])


@torch.no_grad()
def _weight_gradients(
    rule: Rule, x: Tensor, target: Tensor, loss: Loss, reduction: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rule's and the true gradient of each weight matrix, frozen ones included."""
    found = []
    for each in (rule, BP(rule.net)):
        with unchanged(rule):
            signals = each._start(x, target, loss, reduction)[1]
            found.append({s.name: _gradient(s, "weight", None) for s in signals if s.grads is None})
    return found[0], found[1]


def _cosine_of_all(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
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

    ``preactivation`` compares :math:`\delta_l` with :math:`\partial \mathcal L/\partial z_l`
    (Refinetti et al. 2021, gradient alignment); ``activation`` compares what arrives at
    :math:`h_l`, before the derivative of the activation (Song, Xu & Lafferty 2021). ``total``
    concatenates the hidden layers for each sample before the cosine is taken.

    Args:
        rule: bound to the network.
        x: (samples, ...) inputs.
        target: as in :meth:`fabook.rules.Rule.backward`.
        loss: as there; each sample's signal is its own, whatever the reduction.
        at: ``preactivation`` or ``activation``.

    Returns:
        Alignment of the hidden layers; samples with a zero signal are excluded and counted.

    Raises:
        ValueError: unknown ``at``.
    """
    choose("at", at, ("preactivation", "activation"))
    signals: list[dict[str, Tensor]] = []
    for each in (rule, BP(rule.net)):
        with unchanged(rule):
            signals.append(_hidden_signals(each, x, target, loss, at))
    ours, true = signals
    per_sample = {name: cosine(ours[name], true[name], dim=1) for name in ours}
    if not ours:
        return Alignment({}, float("nan"))
    everything = cosine(torch.cat(list(ours.values()), 1), torch.cat(list(true.values()), 1), dim=1)
    return Alignment(
        {name: float(c.nanmean()) for name, c in per_sample.items()},
        float(everything.nanmean()),
        {name: int(c.isnan().sum()) for name, c in per_sample.items()},
    )


@torch.no_grad()
def _hidden_signals(
    rule: Rule, x: Tensor, target: Tensor, loss: Loss, at: str
) -> dict[str, Tensor]:
    """Signals of the hidden layers, (samples, units), bottom to top."""
    found: dict[str, Tensor] = {}
    for s in rule._start(x, target, loss, "sum")[1]:
        signal = s.error if at == "preactivation" else s.incoming
        if s.grads is None and signal is not None and s.name != rule.layers[-1]:
            found[s.name] = signal.flatten(1)
    return {name: found[name] for name in rule.layers[:-1]}


def weight_alignment(rule: Rule) -> Alignment:
    r"""Cosine between forward weights and what feedback would have them be.

    For rules that transport the error layer by layer (FA, sign-symmetric, Kolen-Pollack):
    :math:`\cos(\mathrm{vec}\,W_{l+1}, \mathrm{vec}\,B_{l+1})`. For direct rules (DFA, DRTP), whose
    matrices skip layers, Refinetti et al. (2021) compare with products:
    :math:`\cos(\mathrm{vec}\,W_{l+1}, \mathrm{vec}\,F_{l+1} F_l^T)` between hidden layers and
    :math:`\cos(\mathrm{vec}\,W_L, \mathrm{vec}\,F_{L-1}^T)` at the top. ``total`` concatenates
    all of them with entries as they are. The first layer has no weight alignment.

    Returns:
        Alignment by the name of the layer that owns W. A rule that owns no feedback matrices (BP,
        Shallow) has NaN in every layer and in ``total``, each layer counted as excluded.

    Raises:
        ValueError: for direct rules across convolutions, where no product has the weight's shape.

    Example:
        >>> from fabook import mlp, DFA
        >>> g = torch.Generator().manual_seed(0)
        >>> list(weight_alignment(DFA(mlp([4, 3, 5, 2], generator=g), generator=g)).layers)
        ['2', '4']
    """
    if not rule.feedback:
        owners, none = rule.layers[1:], float("nan")
        return Alignment(dict.fromkeys(owners, none), none, dict.fromkeys(owners, 1))
    pairs = _matrix_pairs(rule)
    return Alignment(
        {name: float(cosine(w, b)) for name, (w, b) in pairs.items()},
        _cosine_of_all(list(pairs.values())),
        {name: int(not (w.any() and b.any())) for name, (w, b) in pairs.items()},
    )


def _matrix_pairs(rule: Rule) -> dict[str, tuple[Tensor, Tensor]]:
    owners = rule.layers[1:]
    weights = [rule.net.get_parameter(f"{name}.weight").detach() for name in owners]
    feedback = list(rule.feedback.values())
    if isinstance(rule, DFA):
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


@dataclass(frozen=True)
class FirstOrder:
    """What a step of a rule does to the loss, to first order; see :func:`first_order`.

    Attributes:
        descent: inner product of true gradient and update by layer name, bottom to top.
        layers: their cosine by layer name, weight matrices alone.
        network: the cosine of all weight matrices together, read-out included.
    """

    descent: dict[str, float]
    layers: dict[str, float]
    network: float


def first_order(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
) -> FirstOrder:
    r"""Rate at which each layer's update lowers the loss, with the alignments, in two passes.

    A step :math:`-\eta u_l` in every layer changes the loss by :math:`-\eta \sum_l \langle
    \nabla_l \mathcal L, u_l\rangle`. A layer's term is negative where it pushes uphill; the
    read-out's is :math:`\|\nabla_L \mathcal L\|^2` under every rule (derived). The expected step
    of minibatch training is that of the whole training set: on a part of it, noise makes the
    descent too large.

    Args:
        rule, x, target, loss, reduction: as in :meth:`fabook.rules.Rule.gradients`.

    Returns:
        FirstOrder; layers that do not learn are left out.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], generator=g), generator=g)
        >>> found = first_order(rule, torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]))
        >>> list(found.descent), found.descent["2"] > 0
        (['0', '2'], True)
    """
    both = []
    for each in (rule, BP(rule.net)):
        with unchanged(rule):
            both.append(each.gradients(x, target, loss=loss, reduction=reduction))
    ours, true = both
    descent: dict[str, float] = {}
    for name, update in ours.items():
        layer = name.rpartition(".")[0]
        term = float((update.double() * true[name].double()).sum())
        descent[layer] = descent.get(layer, 0.0) + term
    weights = {n: f"{n}.weight" for n in rule.layers if f"{n}.weight" in ours}
    return FirstOrder(
        descent,
        {layer: float(cosine(ours[name], true[name])) for layer, name in weights.items()},
        _cosine_of_all([(ours[name], true[name]) for name in weights.values()]),
    )


def hidden_share(steps: ArrayLike, hidden: ArrayLike, total: ArrayLike) -> np.ndarray:
    r"""Share of the descent so far that is due to the hidden layers.

    :math:`\int_0^t \text{hidden} / \int_0^t \text{total}`, with :func:`first_order` seen at chosen
    steps and joined by straight lines. Negative where hidden layers have pushed uphill (derived).

    Args:
        steps: (P,) increasing numbers of updates.
        hidden: (..., P) descent of the hidden layers, summed.
        total: (..., P) descent of all layers.

    Returns:
        (..., P) shares; the first is that of the first instant.

    Example:
        >>> hidden_share([0, 1, 3], [0.0, 2.0, 2.0], [2.0, 4.0, 4.0])
        array([0.        , 0.33333333, 0.45454545])
    """
    at = np.asarray(steps, dtype=float)
    sums = []
    for rate in (np.asarray(hidden, dtype=float), np.asarray(total, dtype=float)):
        pieces = np.diff(at) * (rate[..., 1:] + rate[..., :-1]) / 2
        sums.append(np.concatenate([rate[..., :1], np.cumsum(pieces, -1)], -1))
    return sums[0] / sums[1]


class Walk:
    r"""The way of a network's weights, from where they are when the walk begins.

    Called after each update it adds up :math:`\sum_k \|\Delta_k W_l\|^2`. For steps of
    independent directions the squared displacement :math:`\|W_l - W_l^0\|^2` has this as its mean,
    whatever their lengths; for one straight line of n equal steps it is n times as large (derived).

    Example:
        >>> from fabook import mlp, BP, train
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 2], generator=g)
        >>> walk = Walk(net)
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


def network_overlap(nets: Sequence[nn.Module]) -> float:
    """Mean over pairs of networks of the cosine between all their parameters.

    Networks trained from different initial weights with the same feedback end near each other
    under direct feedback alignment and stay orthogonal under backpropagation: degeneracy breaking
    (Refinetti et al. 2021).

    Args:
        nets: at least two networks of one architecture.

    Raises:
        ValueError: fewer than two networks.
    """
    if len(nets) < 2:
        raise ValueError(f"overlap needs at least two networks; got {len(nets)}")
    flat = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
    values = [cosine(a, b) for a, b in itertools.combinations(flat, 2)]
    return float(torch.stack(values).mean())


def order_parameters(w: Tensor, b: Tensor) -> dict[str, Tensor]:
    r"""Overlaps of student and teacher: :math:`Q = ww^T/N`, :math:`R = wB^T/N`, :math:`T = BB^T/N`.

    Saad & Solla (1995); Refinetti et al. (2021).

    Args:
        w: (..., K, N) first-layer weights of the student.
        b: (..., M, N) those of the teacher.

    Returns:
        ``Q`` (..., K, K), ``R`` (..., K, M) and ``T`` (..., M, M) in float64.

    Raises:
        ValueError: if N differs.
    """
    if w.shape[-1] != b.shape[-1]:
        raise ValueError(f"student has {w.shape[-1]} inputs and teacher {b.shape[-1]}")
    w, b = w.detach().double(), b.detach().double()
    n = w.shape[-1]
    return {"Q": w @ w.mT / n, "R": w @ b.mT / n, "T": b @ b.mT / n}


def conserved(rule: Rule) -> dict[str, Tensor]:
    r"""What gradient flow under a rule conserves, for each neuron of each hidden layer.

    .. math:: C_{l,j} = \tfrac12 \|W_l[j,:]\|^2 + \tfrac12 b_{l,j}^2 - P_{l,j},

    for networks of Linear and Conv2d layers with positively homogeneous activations (ReLU, leaky
    ReLU, linear), any loss and any batches (Robertson & Koyejo 2023, abstract; the forms derived).
    The partner of neuron j sums over its outgoing weights w, feedback b of the same place:

    - BP: :math:`\tfrac12 \sum w^2`; FA: :math:`\sum b w`; Kolen-Pollack: :math:`\tfrac12\sum b^2`;
    - uSF and frSF: :math:`\sum |b| |w|`;
    - DFA: :math:`\sum F w` for the last hidden layer alone, the only one for which a law holds.

    A layer's quantity is the sum over its neurons. A convolution's neurons are its channels; where
    Flatten follows, a channel owns all the columns above that read it.

    Args:
        rule: BP, FA, DFA, uSF, frSF or Kolen-Pollack on a network of adjacent weight layers.

    Returns:
        float64 vectors (n_l) by layer name.

    Raises:
        ValueError: for rules without a law, and where two layers do not share their units.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> conserved(rule)["0"].shape
        torch.Size([3])
    """
    return {law.name: law.norm() - law.partner() for law in laws(rule)}


def conserved_normalised(rule: Rule) -> dict[str, Tensor]:
    r"""The laws of networks with BatchNorm or LayerNorm between each hidden layer and activation.

    Normalisation forgets the size of its input, so the norm of the weights below it is conserved
    by itself, and its own scale and shift take their place in the law (derived):

    .. math:: \tfrac12 \|W_l\|^2 + \tfrac12 \|b_l\|^2, \qquad
       \tfrac12 (\gamma_{l,j}^2 + \beta_{l,j}^2) - P_{l,j}.

    The first holds for each neuron under BatchNorm, and for the whole layer under LayerNorm, which
    normalises over the neurons; both hold to the order of the module's ``eps`` over the variance.

    Args:
        rule: as in :func:`conserved`.

    Returns:
        float64 vectors by ``"<layer> weights"`` and ``"<layer> scales"``.

    Raises:
        ValueError: for a hidden layer without BatchNorm or LayerNorm of its own; as
            :func:`conserved`.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], activation="relu", generator=g)
        >>> net.insert(1, torch.nn.BatchNorm1d(3))[1].num_features
        3
        >>> list(conserved_normalised(FA(net, generator=g)))
        ['0 weights', '0 scales']
    """
    return {law.name: law.norm() - law.partner() for law in laws(rule, normalised=True)}


@dataclass(frozen=True)
class Law:
    """A conservation law of one layer: half the squares of some weights, minus their partner.

    Attributes:
        name: the key in :func:`conserved` or :func:`conserved_normalised`.
        incoming: current weights that count with half their squares, (n, k).
        pair: current outgoing weights and feedback in their place, (n, m) each; None for none.
        kind: ``weight`` where the partner is half the squares of the outgoing weights,
            ``feedback`` where of the feedback, ``product`` where the sum of products.
    """

    name: str
    incoming: Callable[[], Tensor]
    pair: Callable[[], tuple[Tensor, Tensor]] | None
    kind: str

    def norm(self) -> Tensor:
        """Half the squares of the incoming weights, (n)."""
        return self.incoming().square().sum(1) / 2

    def partner(self) -> Tensor:
        """What the norm is weighed against, (n): under FA the inner product of W and B."""
        if self.pair is None:
            return torch.zeros_like(self.norm())
        w, b = self.pair()
        terms = {"weight": w.square() / 2, "feedback": b.square() / 2, "product": b * w}
        return terms[self.kind].sum(1)


def laws(rule: Rule, *, normalised: bool = False, biases: bool = True) -> list[Law]:
    """The laws behind :func:`conserved` and :func:`conserved_normalised`, bottom to top.

    Args:
        rule: as there.
        normalised: the laws of networks with normalisation.
        biases: whether biases count into the norm; without them, no law holds where they learn.

    Raises:
        ValueError: as there.
    """
    kind = _kind(rule)
    names = rule.layers[-2:-1] if isinstance(rule, DFA) else rule.layers[:-1]
    modules = dict(rule.net.named_modules())
    found = []
    for name in names:
        layer: Any = modules[name]
        _outgoing(rule, name, len(layer.weight))  # refuses layers that do not share their units
        pair = partial(_outgoing, rule, name, len(layer.weight))
        if not normalised:
            found.append(Law(name, partial(_by_neuron, layer, biases=biases), pair, kind))
            continue
        norm = _normalisation(rule, name)
        whole = isinstance(norm, nn.LayerNorm)
        incoming = partial(_by_neuron, layer, whole=whole)
        found.append(Law(f"{name} weights", incoming, None, kind))
        found.append(Law(f"{name} scales", partial(_by_neuron, norm), pair, kind))
    return found


def _by_neuron(module: Any, whole: bool = False, biases: bool = True) -> Tensor:
    """Weights and biases of each neuron in a row, (n, k); (1, n k) for the whole layer."""
    own = (module.weight, module.bias if biases else None)
    parts = [p.detach().double() for p in own if p is not None]
    rows = torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], 1)
    return rows.reshape(1, -1) if whole else rows


def _outgoing(rule: Rule, name: str, units: int) -> tuple[Tensor, Tensor]:
    """Outgoing weights of each neuron of a layer, and the feedback in their place, (n, m) each."""
    above = rule._above[name]
    w = above.weight.detach().double()
    b = rule.feedback.get(name, w).double()
    b = b.t() if isinstance(rule, DFA) else b
    inputs = w.shape[1]
    flattened = isinstance(above, nn.Linear) and inputs % units == 0
    if not flattened and inputs != units:
        raise ValueError(
            f"layers {name!r} and the next do not share their units: {units} outputs against "
            f"{inputs} inputs"
        )
    first, second = (m.transpose(0, 1).reshape(units, -1) for m in (w, b))
    return first, second


def _normalisation(rule: Rule, name: str) -> nn.Module:
    """The BatchNorm or LayerNorm that follows a hidden layer."""
    stack = [n for n, _ in rule._stack]
    after = rule._stack[
        stack.index(name) + 1 : stack.index(rule.layers[rule.layers.index(name) + 1])
    ]
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    norms = [m for _, m in after if isinstance(m, kinds) and m.weight is not None]
    if len(norms) != 1 or len(norms[0].weight.shape) != 1:
        raise ValueError(
            f"layer {name!r} needs one BatchNorm or LayerNorm with scale above it; got {len(norms)}"
        )
    return norms[0]


def _kind(rule: Rule) -> str:
    lawful = isinstance(rule, BP | FA | DFA | USF | FRSF | KolenPollack)
    if not lawful or isinstance(rule, BRSF | DRTP):
        raise ValueError(f"no conservation law is known for {type(rule).__name__}")
    if isinstance(rule, BP):
        return "weight"
    # FA, DFA; for B = |R| sign(W) the product is |R||W|
    return "feedback" if isinstance(rule, KolenPollack) else "product"
