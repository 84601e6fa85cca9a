"""Chu & Bacho (2024), *Random feedback alignment algorithms to train neural networks: why do they
align?* (https://arxiv.org/abs/2306.02325).

| module | what it holds |
|---|---|
| ``stability`` | the Jacobian of a rule, the stability matrix, its unstable directions |
| ``dial`` | feedback of a chosen cosine with the weights |
| ``descent`` | full-batch training; what each layer adds to the descent |
| ``walk`` | displacement and path of the weights |
| ``two_weights`` | the solvable chain |
"""

from .descent import FirstOrder, first_order, hidden_share, train_full_batch
from .dial import dialled_feedback
from .stability import (
    eigenvalues,
    growing_fraction,
    jacobian,
    layer_matrices,
    linear_loss,
    stability_matrix,
    unstable_fraction,
)
from .two_weights import (
    chain,
    chain_alignment,
    chain_edge,
    chain_exponent,
    chain_flow,
    chain_velocity,
)
from .walk import DisplacementTracker, growth_exponent

__all__ = [
    "DisplacementTracker",
    "FirstOrder",
    "chain",
    "chain_alignment",
    "chain_edge",
    "chain_exponent",
    "chain_flow",
    "chain_velocity",
    "dialled_feedback",
    "eigenvalues",
    "first_order",
    "growing_fraction",
    "growth_exponent",
    "hidden_share",
    "jacobian",
    "layer_matrices",
    "linear_loss",
    "stability_matrix",
    "train_full_batch",
    "unstable_fraction",
]
