"""What the hidden tests of all homeworks share: networks of the course, and known mistakes.

Goes into each ``autograder.zip``, never to students. A test compares a student's numbers with the
right ones, and where they differ with those of known mistakes, so that the message can name it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fabook

RELATIVE = 1e-10  # float64 networks of a few units


def course() -> int:
    """The course seed, from FABOOK_COURSE; 0 where none is set."""
    return int(os.environ.get("FABOOK_COURSE", "0"))


def stream(*names: str | int) -> torch.Generator:
    """A generator of this course for a use of its own."""
    return fabook.stream(course(), "hidden", *names)


def normal(*shape: int, name: str, scale: float = 1.0) -> Tensor:
    """Normal numbers of this course, float64."""
    return scale * torch.randn(*shape, generator=stream(name, *shape), dtype=torch.float64)


def call(function: Any, *arguments: Any, hint: str = "", **keywords: Any) -> Any:
    """Call a student's function; what it raises becomes a message, with a hint."""
    if not callable(function):
        raise AssertionError(
            f"expected a function, found {function!r}: run the cell that defines it"
        )
    try:
        return function(*arguments, **keywords)
    except TimeoutError:
        raise
    except Exception as error:
        tail = f" {hint}" if hint else ""
        raise AssertionError(f"{type(error).__name__}: {error}.{tail}") from None


def same(
    found: Any,
    expected: Any,
    what: str,
    mistakes: Mapping[str, Any] | None = None,
    *,
    relative: float = RELATIVE,
) -> None:
    """Fail unless two arrays agree; the message names the mistake whose numbers were found."""
    if found is None or found is ...:
        raise AssertionError(f"{what}: there is no answer yet (None); is a return missing?")
    try:
        ours = _array(found)
    except (TypeError, ValueError):
        raise AssertionError(f"{what}: expected numbers, got {type(found).__name__}") from None
    right = _array(expected)
    if ours.shape == right.shape and _close(ours, right, relative):
        return
    for message, wrong in (mistakes or {}).items():
        other = _array(wrong)
        if other.shape == ours.shape and _close(ours, other, relative):
            raise AssertionError(f"{what}: {message}")
    if ours.shape != right.shape:
        raise AssertionError(f"{what}: expected shape {right.shape}, got {ours.shape}")
    gap = np.nanmax(np.abs(ours - right)) if np.isfinite(ours).any() else float("nan")
    raise AssertionError(f"{what}: wrong values, off by up to {gap:.3g}")


def _array(value: Any) -> np.ndarray:
    if isinstance(value, (list, tuple)):
        value = [v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in value]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=float)


def _close(a: np.ndarray, b: np.ndarray, relative: float) -> bool:
    scale = np.nanmax(np.abs(b)) if b.size and np.isfinite(b).any() else 1.0
    return bool(np.allclose(a, b, rtol=0, atol=relative * max(scale, 1e-300), equal_nan=True))


# --- homework 1: two hidden ReLU layers -----------------------------------------------------------


def positive(z: Tensor) -> Tensor:
    """The derivative of ReLU."""
    return (z > 0).to(z)


def signals(
    rule: str,
    e: Tensor,
    z: Mapping[int, Tensor],
    W: Mapping[int, Tensor],
    B: Mapping[int, Tensor],
    F: Mapping[int, Tensor],
    *,
    gate: Callable[[Tensor], Tensor] = positive,
    chain: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The right signals at z_1 and z_2; ``gate`` and ``chain`` make the known mistakes."""
    top = {"BP": lambda: e @ W[3], "FA": lambda: e @ B[3], "DFA": lambda: e @ F[2].T}[rule]()
    second = top * gate(z[2])
    below = {"BP": lambda: second @ W[2], "FA": lambda: second @ B[2], "DFA": lambda: e @ F[1].T}
    first = (below[rule]() if chain is None else second @ chain[2]) * gate(z[1])
    return first, second


class Network:
    """A network of the course as a homework holds it, and as the library does.

    Args:
        widths: four numbers of units.
        name: which network of the course.
        batch: number of samples.
    """

    def __init__(self, widths: tuple[int, int, int, int], name: str, batch: int = 5) -> None:
        for attempt in itertools.count():
            self._draw(widths, stream(name, *widths, attempt), batch)
            on = [self.z[k] > 0 for k in (1, 2)]
            if batch == 1 or all(bool((a.any(0) & ~a.all(0)).all()) for a in on):
                return  # every unit is on for a sample and off for another

    def _draw(self, widths: tuple[int, int, int, int], g: torch.Generator, batch: int) -> None:
        self.net = fabook.mlp(widths, activation="relu", generator=g, dtype=torch.float64)
        linear = dict(zip((1, 2, 3), self.net[::2]))
        with torch.no_grad():
            for layer in linear.values():
                layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=g))
        draw = dict(generator=g, dtype=torch.float64)
        n = dict(enumerate(widths))
        self.W = {k: layer.weight.detach().clone() for k, layer in linear.items()}
        self.b = {k: layer.bias.detach().clone() for k, layer in linear.items()}
        self.B = {k: torch.randn(n[k], n[k - 1], **draw) for k in (2, 3)}
        self.F = {k: torch.randn(n[k], n[3], **draw) for k in (1, 2)}
        self.x = torch.randn(batch, n[0], **draw)
        self.y = torch.randint(n[3], (batch,), generator=g)
        self.z, h = {}, self.x
        for k in (1, 2, 3):
            self.z[k] = h @ self.W[k].T + self.b[k]
            h = self.z[k].relu()
        self.e = torch.softmax(self.z[3], 1)
        self.e[torch.arange(batch), self.y] -= 1  # derivative of the summed cross-entropy

    def rule(self, name: str) -> Any:
        """The library's rule with the same feedback."""
        given = {
            "FA": {"feedback": {"0": self.B[2], "2": self.B[3]}},
            "DFA": {"feedback": {"0": self.F[1], "2": self.F[2]}},
        }
        return fabook.RULES[name](self.net, **given.get(name, {}))

    def oracle(self, name: str) -> tuple[Tensor, Tensor]:
        """The library's signals at z_1 and z_2."""
        found = {s.name: s.error for s in self.rule(name).trace(self.x, self.y, reduction="sum")}
        return found["0"], found["2"]
