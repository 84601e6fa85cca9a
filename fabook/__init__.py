"""Feedback-alignment rules, metrics and theory behind a book of reproducible replications.

Everything is imported on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        conservation,
        data,
        deep_linear,
        dominance,
        metrics,
        minimum_norm,
        multiclass,
        networks,
        online,
        plots,
        published,
        reduced,
        rules,
        stability,
        stacked,
        streams,
        structure,
        theory,
        training,
    )
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

_EXPORTS = {
    "networks": "Erf Scale committee convnet linear_net mlp two_layer",
    "online": "initial_conditions log_steps train_online",
    "rules": "BP BRSF DFA DRTP FA FRSF RULES USF KolenPollack Rule Shallow UnsupportedModule",
    "streams": "stream",
    "training": "History accuracy train",
    **dict.fromkeys("conservation data deep_linear dominance metrics".split(), ""),
    **dict.fromkeys("minimum_norm multiclass plots published reduced".split(), ""),
    **dict.fromkeys("stability stacked structure theory".split(), ""),
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
