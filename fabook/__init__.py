"""Feedback-alignment rules, metrics and theory behind a book of reproducible replications."""

from . import claims, data, metrics, networks, online, plots, rules, streams, theory, training
from .networks import Erf, Scale, committee, convnet, linear_net, mlp, two_layer
from .online import initial_conditions, log_steps, train_online
from .rules import (
    BP,
    BRSF,
    DFA,
    DRTP,
    FA,
    FRSF,
    RULES,
    USF,
    KolenPollack,
    Rule,
    Shallow,
    UnsupportedModule,
)
from .streams import stream
from .training import History, accuracy, train

__version__ = "0.1.0"

__all__ = [
    "BP",
    "BRSF",
    "DFA",
    "DRTP",
    "FA",
    "FRSF",
    "RULES",
    "USF",
    "Erf",
    "History",
    "KolenPollack",
    "Rule",
    "Scale",
    "Shallow",
    "UnsupportedModule",
    "accuracy",
    "claims",
    "committee",
    "convnet",
    "data",
    "initial_conditions",
    "linear_net",
    "log_steps",
    "metrics",
    "mlp",
    "networks",
    "online",
    "plots",
    "rules",
    "stream",
    "streams",
    "theory",
    "train",
    "train_online",
    "training",
    "two_layer",
]
