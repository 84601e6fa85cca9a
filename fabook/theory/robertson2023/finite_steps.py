"""The exact law of finite steps, followed along a run.

Derived; that alignment is conserved is in the abstract of Robertson & Koyejo (2023),
https://arxiv.org/abs/2306.01870v1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...base import Rule
from .laws import conserved_quantities


class Invariants:
    r"""Follows the invariants of a run and what the exact law of finite steps says of them.

    $$ C(k) - C(0) = \tfrac12 \sum_{i<k} \|\Delta W_l^{(i)}\|^2
       - \sum_{i<k} \big[P^{(i+1)} - P^{(i)} - \langle B^{(i)}, \Delta W_{l+1}^{(i)} \rangle\big] $$

    for each neuron, with P its partner in C. The bracket is zero under FA and DFA,
    $\tfrac12\|\Delta W_{l+1}\|^2$ under BP and Kolen-Pollack, and $2|b||w|$ for each
    weight that has crossed zero under sign feedback. Derived.

    Args:
        rule: as in :func:`conserved`; the law is exact for its ``sgd_step``.
        normalised: follow the laws of networks with normalisation instead.
        biases: count biases into the norm; left out, they break the law.
        control: follow the same quantities where the network has no law, to see it fail.

    Raises:
        ValueError: as :func:`conserved`.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], activation="relu", generator=g, dtype=torch.float64)
        >>> rule = FA(net, generator=g)
        >>> tracker = Invariants(rule)
        >>> loss = rule.sgd_step(torch.ones(5, 4).double(), torch.tensor([0, 1, 1, 0, 1]), 0.5)
        >>> tracker.update()
        >>> tracker.residual() < 1e-14
        True
        >>> change, partner = tracker.norm_change()["0"], tracker.partner_change()["0"]
        >>> drift, explained = tracker.drift()["0"], tracker.explained()["0"]
        >>> bool((change - partner == drift).all()), bool((explained >= 0).all())  # FA: squares
        (True, True)
        >>> bool((tracker.unexplained()["0"] == drift - explained).all())
        True
    """

    def __init__(
        self, rule: Rule, *, normalised: bool = False, biases: bool = True, control: bool = False
    ) -> None:
        followed = conserved_quantities(rule, normalised=normalised, biases=biases, control=control)
        self.quantities = {law.name: law for law in followed}
        self._before = self._state()
        self._start = {n: (law.norm(), law.partner()) for n, law in self.quantities.items()}
        self._explained = {n: torch.zeros_like(norm) for n, (norm, _) in self._start.items()}

    def _state(self) -> dict[str, tuple[Tensor, tuple[Tensor, Tensor] | None]]:
        pairs = {n: law.pair and law.pair() for n, law in self.quantities.items()}
        # float64 parameters come as views: without a copy they would move with the weights
        return {
            n: (law.incoming().clone(), (p := pairs[n]) and (p[0].clone(), p[1].clone()))
            for n, law in self.quantities.items()
        }

    def update(self) -> None:
        """Take the step into account that the weights have made since the last call."""
        now = self._state()
        for name, law in self.quantities.items():
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
        return {n: law.norm() - self._start[n][0] for n, law in self.quantities.items()}

    def partner_change(self) -> dict[str, Tensor]:
        """Change of the partner of each neuron: under FA, of the inner product with B."""
        return {n: law.partner() - self._start[n][1] for n, law in self.quantities.items()}

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
            terms = (
                *self._start[name],
                self.quantities[name].norm(),
                self.quantities[name].partner(),
            )
            size = max(float(t.abs().max()) for t in terms)
            found.append(float(off.abs().max()) / (size or 1.0))
        return max(found)
