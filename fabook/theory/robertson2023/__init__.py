"""Robertson & Koyejo (2023), *Layer-wise feedback alignment is conserved in deep neural networks*
(https://arxiv.org/abs/2306.01870v1).

| module | what it holds |
|---|---|
| ``laws`` | what is conserved, and where |
| ``finite_steps`` | the exact law of finite steps |
| ``starts`` | starts along the feedback |
| ``minimum_norm`` | the solution that is reached |
| ``benign_overfitting`` | what it does with wrong labels |
"""

from .benign_overfitting import Clouds, clouds, margin, minimum_norm_margin
from .finite_steps import Invariants
from .laws import ConservedQuantity, conserved, conserved_quantities, normalise
from .minimum_norm import ScalarFlow, distance, potential, predicted_distance, scalar_flow, solution
from .starts import dominant_start

__all__ = [
    "Clouds",
    "ConservedQuantity",
    "Invariants",
    "ScalarFlow",
    "clouds",
    "conserved",
    "conserved_quantities",
    "distance",
    "dominant_start",
    "margin",
    "minimum_norm_margin",
    "normalise",
    "potential",
    "predicted_distance",
    "scalar_flow",
    "solution",
]
