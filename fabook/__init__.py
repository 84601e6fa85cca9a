"""Feedback-alignment rules, metrics and theory behind a book of reproducible replications.

Everything is imported on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, metrics, networks, plots, rules, stacked, streams, theory, training
    from .networks import Erf, Scale, committee, convnet, linear_net, mlp, two_layer
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
    from .training import History, accuracy, log_steps, train

__version__ = "0.1.0"

_EXPORTS = {
    "networks": "Erf Scale committee convnet linear_net mlp two_layer",
    "rules": "BP BRSF DFA DRTP FA FRSF RULES USF KolenPollack Rule Shallow UnsupportedModule",
    "streams": "stream",
    "training": "History accuracy log_steps train",
    **dict.fromkeys("data metrics plots stacked theory".split(), ""),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = sorted([*_EXPORTS, *_HOMES])


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
