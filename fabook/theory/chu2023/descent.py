"""Descent by full batches, and what each layer adds to it.

Derived, to ask what alignment has to do with descent, the question of Chu & Bacho (2024),
https://arxiv.org/abs/2306.02325.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ...base import Rule
from ...losses import Loss
from ...metrics import cosine, cosine_of_all
from ...rules import BP
from ...training import History, Probe, train
from .._arrays import Array


def train_full_batch(
    rule: Rule,
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    probe_at: Sequence[int],
    target: float = 0.0,
    probe: Mapping[str, Probe] | None = None,
    label: str = "run",
) -> dict[str, Array]:
    r"""Full-batch training by plain gradient descent until the loss is small enough.

    The loss is $\mathcal L = |r|^2/(2N)$, so that $r \leftarrow (I - sM)r$ with
    $s = \eta/N$ near its zeros.

    Args:
        rule: bound to the network, which it trains.
        x: (N, d) inputs.
        y: (N, C) targets.
        lr: learning rate $\eta$.
        probe_at: rising numbers of updates at which to look; the last one ends the run in any case.
        target: loss below which the run ends, once it has been seen there.
        probe: further quantities to record, as for :func:`fabook.train`.
        label: name of the run in messages.

    Returns:
        Arrays ``steps``, ``loss`` and one for each probe, up to the last look.

    Raises:
        ValueError: if ``probe_at`` is empty or does not rise.
        FloatingPointError: if the run diverges.

    Example:
        >>> import torch
        >>> from fabook import BP
        >>> from fabook.theory.chu2023 import chain
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> rule, at = BP(chain(1.0, 0.5)), [0, 1000, 2000]
        >>> train_full_batch(rule, one, one, lr=0.1, probe_at=at, target=1e-12)["steps"]
        array([   0, 1000])
    """
    if not probe_at or (np.diff(probe_at, prepend=0) < 0).any():
        raise ValueError(f"numbers of updates must rise from 0 or above; got {list(probe_at)}")
    looks: list[History] = []

    def loss() -> float:
        return float((rule.net(x).detach() - y).square().sum()) / (2 * len(x))

    seen = {"loss": loss, **(probe or {})}
    for done, until in itertools.pairwise([0, *probe_at]):
        steps = until - done
        looks.append(
            train(
                rule, x, y, steps=steps, lr=lr / (2 * len(x)), loss="mse", reduction="sum",
                probe=seen, probe_at=[steps], label=label,
            )
        )  # fmt: skip
        if looks[-1]["loss"][0] < target:
            break
    found = {name: np.concatenate([look[name] for look in looks]) for name in looks[0].values}
    return {"steps": np.array(probe_at[: len(looks)]), **found}


@dataclass(frozen=True)
class FirstOrder:
    """What a step of a rule does to the loss, to first order; see :func:`first_order`.

    Attributes:
        descent: inner product of true gradient and update by layer name, bottom to top.
        layers: their cosine by layer name, weight matrices alone.
        network: the cosine of all weight matrices together, read-out included.

    Source: derived.

    Example:
        >>> import torch
        >>> from fabook import mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> found = first_order(BP(net), torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]))
        >>> {name: round(cos, 6) for name, cos in found.layers.items()}, round(found.network, 6)
        ({'0': 1.0, '2': 1.0}, 1.0)
        >>> min(found.descent.values()) > 0  # every layer of backpropagation descends
        True
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

    A step $-\eta u_l$ in every layer changes the loss by $-\eta \sum_l \langle
    \nabla_l \mathcal L, u_l\rangle$. A layer's term is negative where it pushes uphill; the
    read-out's is $\|\nabla_L \mathcal L\|^2$ under every rule (derived). The expected step
    of minibatch training is that of the whole training set: on a part of it, noise makes the
    descent too large.

    Args:
        rule, x, target, loss, reduction: as in :meth:`fabook.Rule.gradients`.

    Returns:
        FirstOrder; layers that do not learn are left out.

    Example:
        >>> import torch
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], generator=g), generator=g)
        >>> found = first_order(rule, torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]))
        >>> list(found.descent), found.descent["2"] > 0
        (['0', '2'], True)
    """
    both = []
    for each in (rule, BP(rule.net)):
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
        cosine_of_all([(ours[name], true[name]) for name in weights.values()]),
    )


def hidden_share(steps: ArrayLike, hidden: ArrayLike, total: ArrayLike) -> np.ndarray:
    r"""Share of the descent so far that is due to the hidden layers.

    $\int_0^t \text{hidden} / \int_0^t \text{total}$, with :func:`first_order` seen at chosen
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
