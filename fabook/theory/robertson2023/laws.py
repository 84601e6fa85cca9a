r"""What alignment conserves, for each neuron.

One lemma gives every law (derived; Robertson & Koyejo 2023, https://arxiv.org/abs/2306.01870v1,
state the conservation in their abstract). For activations with $\phi(z) = \phi'(z) z$, any loss and
any batch, the updates $g_l = \sum \delta_l h_{l-1}^T$ obey, for each neuron,

$$ \langle W_l, g_l \rangle = \sum \delta_l \cdot z_l
   = \sum \delta_{l+1}^T B_{l+1} h_l = \langle B_{l+1}, g_{l+1} \rangle , $$

so plain gradient steps of any size move the invariants of
:func:`~fabook.theory.robertson2023.conserved` by their own squares and by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import choose
from ...base import Rule
from ...networks import Scale


def conserved(rule: Rule, *, normalised: bool = False, control: bool = False) -> dict[str, Tensor]:
    r"""What gradient flow under a rule conserves, for each neuron of each hidden layer.

    $$ C_{l,j} = \tfrac12 \|W_l[j,:]\|^2 + \tfrac12 b_{l,j}^2 - P_{l,j}, $$

    for networks of Linear and Conv2d layers with positively homogeneous activations (ReLU, leaky
    ReLU, linear), any loss and any batches (Robertson & Koyejo 2023, abstract; the forms derived).
    The partner of neuron j sums over its outgoing weights w, feedback b of the same place:

    - BP: $\tfrac12 \sum w^2$; FA: $\sum b w$; Kolen-Pollack: $\tfrac12\sum b^2$;
    - uSF and frSF: $\sum |b| |w|$;
    - DFA: $\sum F w$ for the last hidden layer alone. (Below a layer of linear units
      $(F_l F_{l+1}^+)^T$ would take F's place; below ReLU units no law is known.)

    A layer's quantity is the sum over its neurons. A convolution's neurons are its channels; where
    Flatten follows, a channel owns all the columns above that read it.

    Normalisation between each hidden layer and its activation forgets the size of its input. So the
    norm of the weights below it is conserved by itself, and its own scale and shift take their
    place in the law (derived; both to the order of the module's ``eps`` over the variance):

    $$ \tfrac12 \|W_l\|^2 + \tfrac12 \|b_l\|^2, \qquad
       \tfrac12 (\gamma_{l,j}^2 + \beta_{l,j}^2) - P_{l,j}. $$

    The first holds for each neuron under BatchNorm, for the whole layer under LayerNorm.

    Args:
        rule: one whose class declares a ``law``: BP, FA, DFA, uSF, frSF and Kolen-Pollack do.
        normalised: the laws of networks with BatchNorm or LayerNorm.
        control: give the same quantities where the network has no law, to see them drift.

    Returns:
        float64 vectors (n_l) by layer name; by ``"<layer> weights"`` and ``"<layer> scales"`` with
        ``normalised``.

    Raises:
        ValueError: for rules without a law; where two layers do not share their units; for a module
            between them that is not positively homogeneous, and for weights that are frozen; with
            ``normalised``, for a hidden layer without BatchNorm or LayerNorm of its own.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> conserved(rule)["0"].shape
        torch.Size([3])
    """
    laws = conserved_quantities(rule, normalised=normalised, control=control)
    return {law.name: law.norm() - law.partner() for law in laws}


@dataclass(frozen=True)
class ConservedQuantity:
    """A conservation law of one layer: half the squares of some weights, minus their partner.

    Attributes:
        name: the key in :func:`conserved`.
        incoming: current weights that count with half their squares, (n, k).
        pair: current outgoing weights and feedback in their place, (n, m) each; None for none.
        kind: ``weight`` where the partner is half the squares of the outgoing weights,
            ``feedback`` where of the feedback, ``product`` where the sum of products.

    Source: Robertson & Koyejo (2023), https://arxiv.org/abs/2306.01870v1, state the conservation;
    the form is derived.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> (law,) = conserved_quantities(rule)
        >>> law.name, law.kind, bool((law.norm() - law.partner() == conserved(rule)["0"]).all())
        ('0', 'product', True)
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


def conserved_quantities(
    rule: Rule, *, normalised: bool = False, biases: bool = True, control: bool = False
) -> list[ConservedQuantity]:
    """The laws behind :func:`conserved`, bottom to top.

    Args:
        rule, normalised, control: as there.
        biases: whether biases count into the norm; without them, no law holds where they learn.

    Raises:
        ValueError: as there.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> net = normalise(mlp([4, 3, 2], activation="relu", generator=g), "batch")
        >>> [law.name for law in conserved_quantities(FA(net, generator=g), normalised=True)]
        ['0 weights', '0 scales']
    """
    kind = rule.law
    if kind is None:
        raise ValueError(
            f"no conservation law is known for {type(rule).__name__}: a rule declares its own, as "
            'in class Mine(fabook.FA, law="product")'
        )
    names = rule.layers[-2:-1] if rule.direct else rule.layers[:-1]
    modules = dict(rule.net.named_modules())
    found = []
    for name in names:
        layer: Any = modules[name]
        _outgoing(rule, name, len(layer.weight))  # refuses layers that do not share their units
        if not control:
            _check_between(rule, name, normalised)
        pair = partial(_outgoing, rule, name, len(layer.weight))
        if not normalised:
            found.append(
                ConservedQuantity(name, partial(_by_neuron, layer, biases=biases), pair, kind)
            )
            continue
        norm = _normalisation(rule, name)
        whole = isinstance(norm, nn.LayerNorm)
        incoming = partial(_by_neuron, layer, whole=whole)
        found.append(ConservedQuantity(f"{name} weights", incoming, None, kind))
        found.append(ConservedQuantity(f"{name} scales", partial(_by_neuron, norm), pair, kind))
    return found


def _by_neuron(module: Any, whole: bool = False, biases: bool = True) -> Tensor:
    """Weights and biases of each neuron in a row, (n, k); (1, n k) for the whole layer."""
    own = (module.weight, module.bias if biases else None)
    parts = [p.detach().double() for p in own if p is not None]
    rows = torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], 1)
    return rows.reshape(1, -1) if whole else rows


def _outgoing(rule: Rule, name: str, units: int) -> tuple[Tensor, Tensor]:
    """Outgoing weights of each neuron of a layer, and the feedback in their place, (n, m) each."""
    above = rule.stack.above[name]
    w = above.weight.detach().double()
    b = rule.feedback.get(name, w).double()
    b = b.t() if rule.direct else b
    inputs = w.shape[1]
    flattened = isinstance(above, nn.Linear) and inputs % units == 0
    if not flattened and inputs != units:
        raise ValueError(
            f"layers {name!r} and the next do not share their units: {units} outputs against "
            f"{inputs} inputs"
        )
    first, second = (m.transpose(0, 1).reshape(units, -1) for m in (w, b))
    return first, second


# h = phi(z) with phi(z) = phi'(z) z in every neuron by itself: what lets the sum over a neuron's
# signals times its outputs pass from one layer to the next
_HOMOGENEOUS = (
    nn.Identity, Scale, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Dropout, nn.Dropout2d,
)  # fmt: skip


_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def _between(rule: Rule, name: str) -> list[tuple[str, nn.Module]]:
    """Modules between a hidden layer and the next weight layer."""
    stack = [n for n, _ in rule.stack.modules]
    above = rule.layers[rule.layers.index(name) + 1]
    return rule.stack.modules[stack.index(name) + 1 : stack.index(above)]


def _check_between(rule: Rule, name: str, normalised: bool) -> None:
    """Refuse what breaks the law of a hidden layer; the message names the module."""
    layer: Any = rule.net.get_submodule(name)
    above = rule.stack.above[name]
    image, flat = isinstance(layer, nn.Conv2d), False
    between = _between(rule, name)
    if normalised and between and isinstance(between[0][1], _NORMS):
        between = between[1:]
    for other, module in between:
        flatten = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
        flat |= flatten
        pool = image and not flat and type(module) in _POOLS
        if not (type(module) in _HOMOGENEOUS or flatten or pool):
            raise ValueError(
                f"no law holds for layer {name!r}: module {other!r} ({type(module).__name__}) is "
                "not positively homogeneous in each unit by itself, as ReLU, leaky ReLU and no "
                "activation are"
            )
    wide = not image and len(layer.weight) != above.weight.shape[1]
    if isinstance(above, nn.Linear) == (image and not flat) or wide:
        raise ValueError(f"layers {name!r} and the next do not share their units")
    owned = [*((f"{name}.{k}", p) for k, p in layer.named_parameters()), ("", above.weight)]
    frozen = [key or "the weight above" for key, p in owned if not p.requires_grad]
    if frozen:
        raise ValueError(f"no law holds for layer {name!r}: {frozen[0]} does not learn")


def _normalisation(rule: Rule, name: str) -> nn.Module:
    """The BatchNorm or LayerNorm that follows a hidden layer."""
    norms = [m for _, m in _between(rule, name) if isinstance(m, _NORMS) and m.weight is not None]
    if len(norms) != 1 or len(norms[0].weight.shape) != 1:
        raise ValueError(
            f"layer {name!r} needs one BatchNorm or LayerNorm with scale above it; got {len(norms)}"
        )
    return norms[0]


def normalise(net: nn.Sequential, kind: str, *, eps: float = 1e-30) -> nn.Sequential:
    """The same layers with BatchNorm or LayerNorm above each Linear layer but the last.

    Args:
        net: a stack of Linear layers and activations, which the new network shares.
        kind: ``batch`` or ``layer``.
        eps: added to the variance; the moved law is exact as it goes to zero.

    Raises:
        ValueError: unknown kind.

    Example:
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> [type(m).__name__ for m in normalise(mlp([4, 3, 2], generator=g), "batch")]
        ['Linear', 'BatchNorm1d', 'Tanh', 'Linear']
    """
    choose("kind", kind, ("batch", "layer"))
    norm = nn.BatchNorm1d if kind == "batch" else nn.LayerNorm
    modules: list[nn.Module] = []
    for module in net:
        modules.append(module)
        if isinstance(module, nn.Linear) and module is not net[-1]:
            modules.append(norm(module.out_features, eps=eps, dtype=module.weight.dtype))
    return nn.Sequential(*modules)
