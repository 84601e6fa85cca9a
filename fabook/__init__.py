"""Feedback-alignment rules, metrics and theory behind a book of reproducible replications.

Nine rules, by label in ``RULES``, on any network; loops and alignments to watch them with; and
``networks``, ``data``, ``plots`` and the ``theory`` of five papers::

    net = fabook.mlp([64, 100, 10], generator=fabook.stream(0, "weights"))
    rule = fabook.FA(net, generator=fabook.stream(0, "feedback"))
    watch = {"alignment": lambda: fabook.gradient_alignment(rule, x, y)}
    seen = fabook.train(rule, x, y, steps=100, lr=0.1, probe=watch, probe_at=[0, 50, 100])
    seen.frame(), fabook.accuracy(net, x, y)
"""

from . import data, metrics, plots, theory
from .metrics import gradient_alignment, weight_alignment
from .networks import convnet, linear_net, mlp, two_layer
from .rules import BP, BRSF, DFA, DRTP, FA, FRSF, RULES, USF, KolenPollack, Rule, Shallow
from .stacked import train_stacked
from .streams import stream, streams
from .training import History, accuracy, log_steps, train

__version__ = "0.1.0"

__all__ = [
    "BP", "BRSF", "DFA", "DRTP", "FA", "FRSF", "RULES", "USF", "History", "KolenPollack", "Rule",
    "Shallow", "accuracy", "convnet", "data", "gradient_alignment", "linear_net", "log_steps",
    "metrics", "mlp", "plots", "stream", "streams", "theory", "train", "train_stacked",
    "two_layer", "weight_alignment",
]  # fmt: skip
