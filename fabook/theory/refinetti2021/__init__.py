"""Refinetti, d'Ascoli, Ohana & Goldt (2021), *Align, then memorise* (https://arxiv.org/abs/2011.12428).

| module | what it holds |
|---|---|
| ``online`` | the differential equations of online learning in two layers |
| ``simulation`` | the same networks, trained online in batches of runs |
| ``reduced`` | the same runs in law, at a cost that does not depend on the number of inputs |
| ``fluctuations`` | what finite N adds: Gaussian fluctuations, escapes from a plateau |
| ``copies`` | networks that compute the same: which agrees best with its feedback |
| ``deep_linear`` | weak and strong alignment of deep linear networks |
| ``convolution`` | how far a convolution can align |
"""

from . import convolution, copies, deep_linear, fluctuations, online, reduced, simulation

__all__ = [
    "convolution",
    "copies",
    "deep_linear",
    "fluctuations",
    "online",
    "reduced",
    "simulation",
]
