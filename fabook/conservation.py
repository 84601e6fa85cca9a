r"""The conservation law of feedback alignment at finite steps, and starts that make use of it.

One lemma gives every law (derived; Robertson & Koyejo 2023 state the conservation in their
abstract). For activations with :math:`\phi(z) = \phi'(z) z`, any loss and any batch, the updates
:math:`g_l = \sum \delta_l h_{l-1}^T` obey, for each neuron,

.. math:: \langle W_l, g_l \rangle = \sum \delta_l \cdot z_l
   = \sum \delta_{l+1}^T B_{l+1} h_l = \langle B_{l+1}, g_{l+1} \rangle ,

so plain gradient steps of any size move the invariants of :func:`fabook.metrics.conserved` by
their own squares and by nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .metrics import laws
from .networks import choose
from .rules import FA, Rule


class Ledger:
    r"""Follows the invariants of a run and what the exact law of finite steps says of them.

    .. math:: C(k) - C(0) = \tfrac12 \sum_{i<k} \|\Delta W_l^{(i)}\|^2
       - \sum_{i<k} \big[P^{(i+1)} - P^{(i)} - \langle B^{(i)}, \Delta W_{l+1}^{(i)} \rangle\big]

    for each neuron, with P its partner in C. The bracket is zero under FA and DFA,
    :math:`\tfrac12\|\Delta W_{l+1}\|^2` under BP and Kolen-Pollack, and :math:`2|b||w|` for each
    weight that has crossed zero under sign feedback. Derived.

    Args:
        rule: as in :func:`fabook.metrics.conserved`; the law is exact for its ``sgd_step``.
        normalised: follow the laws of networks with normalisation instead.
        biases: count biases into the norm; left out, they break the law.

    Raises:
        ValueError: as :func:`fabook.metrics.conserved`.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], activation="relu", generator=g, dtype=torch.float64)
        >>> rule = FA(net, generator=g)
        >>> ledger = Ledger(rule)
        >>> loss = rule.sgd_step(torch.ones(5, 4).double(), torch.tensor([0, 1, 1, 0, 1]), 0.5)
        >>> ledger.enter()
        >>> ledger.residual() < 1e-14
        True
    """

    def __init__(self, rule: Rule, *, normalised: bool = False, biases: bool = True) -> None:
        followed = laws(rule, normalised=normalised, biases=biases)
        self.laws = {law.name: law for law in followed}
        self._before = self._state()
        self._start = {n: (law.norm(), law.partner()) for n, law in self.laws.items()}
        self._explained = {n: torch.zeros_like(norm) for n, (norm, _) in self._start.items()}

    def _state(self) -> dict[str, tuple[Tensor, tuple[Tensor, Tensor] | None]]:
        pairs = {n: law.pair and law.pair() for n, law in self.laws.items()}
        # float64 parameters come as views: without a copy they would move with the weights
        return {
            n: (law.incoming().clone(), (p := pairs[n]) and (p[0].clone(), p[1].clone()))
            for n, law in self.laws.items()
        }

    def enter(self) -> None:
        """Enter the step that the weights have taken since the last entry."""
        now = self._state()
        for name, law in self.laws.items():
            (old, old_pair), (new, new_pair) = self._before[name], now[name]
            self._explained[name] += (new - old).square().sum(1) / 2
            if old_pair is None or new_pair is None:
                continue
            (w0, b0), (w1, b1) = old_pair, new_pair
            bracket = {
                "weight": (w1 - w0).square() / 2,
                "feedback": (b1 - b0).square() / 2,
                "product": (b1 - b0) * w1,
            }[law.kind]
            self._explained[name] -= bracket.sum(1)
        self._before = now

    def norm_change(self) -> dict[str, Tensor]:
        """Change of half the squared incoming weights of each neuron."""
        return {n: law.norm() - self._start[n][0] for n, law in self.laws.items()}

    def partner_change(self) -> dict[str, Tensor]:
        """Change of the partner of each neuron: under FA, of the inner product with B."""
        return {n: law.partner() - self._start[n][1] for n, law in self.laws.items()}

    def drift(self) -> dict[str, Tensor]:
        """C(k) - C(0) for each neuron."""
        partner = self.partner_change()
        return {n: norm - partner[n] for n, norm in self.norm_change().items()}

    def explained(self) -> dict[str, Tensor]:
        """What the exact law says of the drift, for each neuron."""
        return {n: total.clone() for n, total in self._explained.items()}

    def unexplained(self) -> dict[str, Tensor]:
        """Drift minus what the law says, for each neuron."""
        return {n: drift - self._explained[n] for n, drift in self.drift().items()}

    def residual(self) -> float:
        """Largest unexplained drift of a neuron, over the largest term of its layer's law."""
        found = [0.0]
        for name, off in self.unexplained().items():
            terms = (*self._start[name], self.laws[name].norm(), self.laws[name].partner())
            size = max(float(t.abs().max()) for t in terms)
            found.append(float(off.abs().max()) / (size or 1.0))
        return max(found)


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


@torch.no_grad()
def dominant_start(rule: FA, factor: float = 1.2) -> None:
    r"""Set the weights above each hidden layer so that alignment can never become negative.

    .. math:: W_{l+1}[:, j] = \frac{c\,\|W_l[j, :]\|^2}{2\,\|B_{l+1}[:, j]\|^2}\, B_{l+1}[:, j]
       \quad\Rightarrow\quad C_{l,j} = (1 - c)\,\tfrac12 \|W_l[j, :]\|^2 \le 0 .

    Since C is conserved, :math:`\langle B_{l+1}, W_{l+1}\rangle_j \ge \tfrac12\|W_l[j,:]\|^2 \ge 0`
    for all times (biases count into the norm). Derived; Robertson & Koyejo (2023) announce
    sufficient conditions for alignment in their abstract.

    Args:
        rule: feedback alignment on Linear layers; the first layer keeps its weights, the others
            are replaced from the bottom to the top.
        factor: c, at least 1.

    Raises:
        ValueError: for other rules or layers, or a factor below 1.

    Example:
        >>> from fabook import mlp, FA
        >>> from fabook.metrics import conserved
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> dominant_start(rule)
        >>> bool((conserved(rule)["0"] < 0).all())
        True
    """
    if not isinstance(rule, FA) or not all(isinstance(m, nn.Linear) for m in rule._weights):
        raise ValueError(f"a dominant start is for FA on Linear layers; got {rule}")
    if factor < 1:
        raise ValueError(f"factor must be at least 1; got {factor}")
    for law in laws(rule):
        B = rule.feedback[law.name].double()
        W = rule._above[law.name].weight
        W.copy_(B * (factor * law.norm() / B.square().sum(0)))
