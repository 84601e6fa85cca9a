"""Robertson & Koyejo (2024), *Implicit regularization in feedback alignment learning mechanisms for
neural networks* (https://arxiv.org/abs/2306.01870).

| module | what it holds |
|---|---|
| ``losses`` | the squared and the logistic loss |
| ``dominance`` | the share of the motion that descends, and its kernels |
| ``bounds`` | bounds on the loss |
| ``accuracies`` | accuracies to compare many classes and rules by |
"""

from ..chu2023 import dialled_feedback
from .accuracies import above_chance, at_training_accuracy
from .bounds import exponential_bound, margin_direction, separable_bound
from .dominance import (
    dominance_share,
    kernel,
    layer_shares,
    measure,
    neuron_signals,
    readout,
    tangent_kernel,
)
from .losses import LOSS_FUNCTIONS, half_mean_square, logistic

__all__ = [
    "LOSS_FUNCTIONS",
    "above_chance",
    "at_training_accuracy",
    "dialled_feedback",
    "dominance_share",
    "exponential_bound",
    "half_mean_square",
    "kernel",
    "layer_shares",
    "logistic",
    "margin_direction",
    "measure",
    "neuron_signals",
    "readout",
    "separable_bound",
    "tangent_kernel",
]
