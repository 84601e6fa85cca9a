r"""How an error passes a stack of modules: forward, the walk down, ``.grad`` and what is refused.

A network is an ``nn.Sequential`` (nested ones too) of Linear and Conv2d with local modules between
them. No autograd graph is built: each module's own vector-Jacobian product is written out, or comes
from a graph of that module alone. What stands at a rule's place in the walk is
:meth:`Rule.send`; the formulas are in :mod:`fabook.rules`.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .losses import Loss, output_error
from .networks import INITS, Erf, Scale, choose, draw

LAWS = ("weight", "feedback", "product")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_HOW = "generator=torch.Generator().manual_seed(0)"
_aten = torch.ops.aten


class UnsupportedModule(TypeError):
    """A module through which a feedback rule cannot send an error; the message names it."""


class Signal(NamedTuple):
    """What a rule delivers to one module.

    Attributes:
        name: the module's name in the network.
        module: the module.
        error: error signal at its output, of the output's shape; delta_l for weight layers.
        input: what it was given, h_{l-1}; None for other modules.
        incoming: the signal before it passed the activation, at h_l; None at the top.
        grads: gradients of its own parameters that are known already.
        is_weight_layer: whether it is a Linear or Conv2d.
    """

    name: str
    module: nn.Module
    error: Tensor
    input: Tensor
    incoming: Tensor | None
    grads: dict[str, Tensor]
    is_weight_layer: bool

    def gradient(self, key: str, out: Tensor | None = None) -> Tensor:
        """The gradient of one parameter: delta h^T, delta, or what the module's own graph gave.

        ``out`` is a tensor to reuse where it fits.
        """
        if key in self.grads:
            return self.grads[key]
        if isinstance(self.module, nn.Conv2d):
            _conv_backward(self.name, self.module, None, self.error, self.input, self.grads)
            return self.grads[key]
        error = rows(self.error)
        return error.sum(0) if key == "bias" else torch.mm(error.t(), rows(self.input), out=out)


# --- local vector-Jacobian products of what stands between the weight layers ---------------------

Local = tuple[Callable[[Any, Tensor], tuple[Tensor, Any]], Callable[[Any, Tensor, Any], Tensor]]


def _same(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


def _pool_settings(m: Any) -> list[Any]:
    pairs = m.kernel_size, m.stride or m.kernel_size, m.padding, m.dilation
    return [*([v, v] if isinstance(v, int) else list(v) for v in pairs), m.ceil_mode]


def _max_pool(m: Any, x: Tensor) -> tuple[Tensor, Any]:
    y, at = _aten.max_pool2d_with_indices(x, *_pool_settings(m))
    return y, (x, at)


def _max_pool_backward(m: Any, g: Tensor, saved: Any) -> Tensor:
    x, at = saved
    found: Tensor = _aten.max_pool2d_with_indices_backward(g, x, *_pool_settings(m), at)
    return found


# module type -> (forward: (output, saved), backward: error at the input); the rest goes by autograd
CLOSED: dict[type, Local] = {
    nn.Tanh: (lambda m, x: _same(torch.tanh(x)), lambda m, g, y: _aten.tanh_backward(g, y)),
    nn.ReLU: (lambda m, x: _same(torch.relu(x)), lambda m, g, y: _aten.threshold_backward(g, y, 0)),
    nn.Sigmoid: (
        lambda m, x: _same(torch.sigmoid(x)),
        lambda m, g, y: _aten.sigmoid_backward(g, y),
    ),
    nn.LeakyReLU: (
        lambda m, x: (F.leaky_relu(x, m.negative_slope), x),
        lambda m, g, x: _aten.leaky_relu_backward(g, x, m.negative_slope, False),
    ),
    Erf: (
        lambda m, x: (m(x), x),
        lambda m, g, x: g * torch.exp(-x * x / 2) * math.sqrt(2 / math.pi),
    ),
    Scale: (lambda m, x: (x * m.factor, None), lambda m, g, _: g * m.factor),
    nn.Identity: (lambda m, x: (x, None), lambda m, g, _: g),
    nn.Flatten: (lambda m, x: (m(x), x.shape), lambda m, g, shape: g.reshape(shape)),
    nn.MaxPool2d: (_max_pool, _max_pool_backward),
}

# the same, written over the input: these save what they give and not what they take
_OVER: dict[type, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.Tanh: (torch.tanh_, lambda g, y: _aten.tanh_backward.grad_input(g, y, grad_input=g)),
    nn.ReLU: (
        torch.relu_,
        lambda g, y: _aten.threshold_backward.grad_input(g, y, 0, grad_input=g),
    ),
    nn.Sigmoid: (
        torch.sigmoid_,
        lambda g, y: _aten.sigmoid_backward.grad_input(g, y, grad_input=g),
    ),
}


def _closed(module: nn.Module) -> Local | None:
    return None if getattr(module, "return_indices", False) else CLOSED.get(type(module))


class _ByAutograd:
    """A module's output with the small graph that its own vector-Jacobian product needs."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        with torch.enable_grad():
            self.leaf = x.detach().requires_grad_()
            inplace = any(getattr(m, "inplace", False) for m in module.modules())
            self.output = module(self.leaf.clone() if inplace else self.leaf)
        named = module.named_parameters(recurse=True)
        self.params = {k: p for k, p in named if p.requires_grad}

    def pull(self, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = [self.leaf, *self.params.values()]
        grads = torch.autograd.grad(
            self.output, wanted, error, allow_unused=True, materialize_grads=True
        )
        return grads[0], dict(zip(self.params, grads[1:], strict=True))


def rows(x: Tensor) -> Tensor:
    """(..., n) as (samples, n)."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _conv_backward(
    name: str,
    conv: nn.Conv2d,
    weight: Tensor | None,
    error: Tensor,
    h: Tensor,
    grads: dict[str, Tensor] | None,
) -> Tensor | None:
    """Error at the input with ``weight`` in W's place, if given; fills ``grads``, if given."""
    own = grads is not None
    below, dw, db = _aten.convolution_backward(
        error, h, conv.weight if weight is None else weight, [conv.weight.shape[0]],
        conv.stride, _padding(name, conv), conv.dilation, False, [0, 0], conv.groups,
        [weight is not None, own, own and conv.bias is not None],
    )  # fmt: skip
    if grads is not None:
        grads["weight"] = dw
        if conv.bias is not None:
            grads["bias"] = db
    return below


# --- what is refused ------------------------------------------------------------------------------

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def flat(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order in which they act, with their names."""
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():
            if child is not None:
                yield from flat(f"{prefix}.{key}" if prefix else key, child)
    else:
        yield prefix, module


def _is_weight_layer(module: nn.Module) -> bool:
    """Linear and Conv2d, but no subclass that computes something else."""
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


def _refuse(name: str, module: nn.Module, why: str) -> UnsupportedModule:
    return UnsupportedModule(
        f"module {name!r} ({type(module).__name__}) {why}; feedback rules work on nn.Sequential "
        "stacks of nn.Linear and nn.Conv2d with activations, pooling, flatten, scales, "
        "normalisation and dropout between them"
    )


def _check_all(net: nn.Module) -> None:
    """Refuse what would be passed over silently, in containers too."""
    for name, module in net.named_modules():
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise _refuse(name, module, "is not initialised: run the network once")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise _refuse(name, module, "has hooks, which would not run")
        if nn.utils.parametrize.is_parametrized(module):
            raise _refuse(name, module, "has no plain weight: it is parametrised")
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dtype not in DTYPES:
                allowed = ", ".join(str(dtype) for dtype in DTYPES)
                raise _refuse(
                    name, module, f"has a {key} of {parameter.dtype}; allowed are {allowed}"
                )


def _check_shared(stack: Sequence[tuple[str, nn.Module]]) -> None:
    owners: dict[int, str] = {}
    for name, module in stack:
        for parameter in module.parameters():
            first = owners.setdefault(id(parameter), name)
            if first != name:
                raise _refuse(name, module, f"shares a parameter with module {first!r}")


def _check(name: str, module: nn.Module) -> None:
    if _is_weight_layer(module):
        if isinstance(module, nn.Conv2d):
            _padding(name, module)
        return
    if not name and any(True for _ in module.children()):
        raise _refuse(
            name, module, "has a forward of its own, whose order of modules cannot be read: where "
            "it calls its children one after the other, pass torch.nn.Sequential(*net.children())",
        )  # fmt: skip
    matrices = any(p.ndim > 1 for p in module.parameters()) and not isinstance(module, _NORMS)
    inner = any(True for _ in module.children()) and any(True for _ in module.parameters())
    if matrices or inner:
        raise _refuse(name, module, "cannot be placed: its weights are not one linear step")


def _padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding_mode != "zeros":
        raise _refuse(name, conv, f"pads by {conv.padding_mode!r}, only 'zeros' is supported")
    if not isinstance(conv.padding, str):
        return conv.padding[0], conv.padding[1]
    if conv.padding == "valid":
        return 0, 0
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise _refuse(name, conv, "pads 'same' with an even kernel, which is not symmetric")
    return total[0] // 2, total[1] // 2


@contextmanager
def measuring(net: nn.Module) -> Iterator[None]:
    """Run a forward pass that leaves running statistics and random states as they were."""
    owners = [(m._buffers, dict(m._buffers)) for m in net.modules() if m._buffers]
    for buffers, kept in owners:  # the pass writes into copies, of which its graphs may keep some
        buffers.update({k: None if b is None else b.clone() for k, b in kept.items()})
    devices = {p.device for p in net.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((d.type for d in devices), "cuda")
    try:
        with torch.random.fork_rng([d.index for d in devices], device_type=kind):
            yield
    finally:
        for buffers, kept in owners:
            buffers.update(kept)


# --- the stack ------------------------------------------------------------------------------------

Tape = list[tuple[Tensor | None, Any]]


class Stack:
    """A network as a list of modules, the way up and the way down.

    Args:
        net: the network.

    Raises:
        UnsupportedModule: names a module that cannot be placed.
    """

    def __init__(self, net: nn.Module) -> None:
        _check_all(net)
        self.net = net
        self.modules = list(flat("", net))
        for name, module in self.modules:
            _check(name, module)
        _check_shared(self.modules)
        weights = [(n, m) for n, m in self.modules if _is_weight_layer(m)]
        if not weights:
            raise UnsupportedModule("the network has no nn.Linear or nn.Conv2d layer")
        for name, module in self.modules:
            if module is weights[0][1]:
                break
            if any(True for _ in module.parameters()):
                raise _refuse(name, module, "has parameters below the first weight layer")
        self.layers = [name for name, _ in weights]
        self.bottom, self.top = weights[0][1], weights[-1][1]
        self.above: dict[str, Any] = dict(
            zip(self.layers, [m for _, m in weights[1:]], strict=False)
        )
        self._plan = [(n, m, _is_weight_layer(m), _closed(m)) for n, m in self.modules]
        self._at: tuple[str, Any, Tensor, Tensor, dict[str, Tensor] | None] | None = None
        self.steps: dict[str, tuple[int, int]] = {}  # versions of what an optimizer has to step
        self._watch()

    def __reduce__(self) -> tuple[Any, ...]:
        """Nothing travels: the rule that arrives binds its own network."""
        return type(None), ()

    def _watch(self) -> None:
        """Keep what decides what the network computes, to notice when it is changed."""
        modules = list(self.net.modules())
        self._states = [vars(m) for m in modules]
        self._tables: list[Any] = [t for m in modules for t in (m._modules, m._parameters)]
        self._hooks = [getattr(m, hooks) for m in modules for hooks in _HOOKS]
        self._all = modules
        self._kept = [*itertools.chain.from_iterable(t.values() for t in self._tables)]
        self._seen = self._now()
        self.parameters = list(self.net.parameters())

    def _now(self) -> tuple[Any, ...]:
        tables: list[dict[str, Any]] = self._tables
        parts = itertools.chain.from_iterable(map(dict.values, tables))
        return tuple(map(id, parts)), tuple(map(type, self._all))

    def check_unchanged(self) -> None:
        """Raise a RuntimeError if the network is no more the one that was bound."""
        if any(p.dtype not in DTYPES for p in self.parameters):
            _check_all(self.net)  # names the one
        own = any("forward" in state for state in self._states)
        if own or any(self._hooks) or self._now() != self._seen:
            raise RuntimeError(
                "the network was changed after the rule was made (a module, a parameter, a hook or "
                "a forward was replaced or added): make the rule again"
            )

    def sizes(self, who: str, input_shape: Sequence[int] | None) -> dict[str, int]:
        """Number of units that receive a signal, by layer."""
        if input_shape is not None:
            return self._sizes_by_trial(input_shape)
        for name, above in self.above.items():
            if isinstance(above, nn.Conv2d):
                raise ValueError(
                    f"{who} sends to the image above layer {name!r}: pass "
                    "input_shape=(channels, height, width) so that its size is known"
                )
        return {name: above.weight.shape[1] for name, above in self.above.items()}

    def _sizes_by_trial(self, input_shape: Sequence[int]) -> dict[str, int]:
        """Sizes seen by one input of zeros on the meta device, where nothing is computed."""
        sizes: dict[str, int] = {}
        receivers = list(self.above)
        top: Any = self.top
        x = torch.zeros(1, *input_shape, device="meta", dtype=top.weight.dtype)
        with torch.no_grad():
            for _, module in self.modules:
                if _is_weight_layer(module) and module is not self.bottom:
                    sizes[receivers.pop(0)] = x[0].numel()
                try:
                    x = copy.deepcopy(module).to("meta").eval()(x)
                except RuntimeError as error:
                    raise ValueError(
                        f"input_shape {tuple(input_shape)} does not fit: {error}"
                    ) from None
        return sizes

    def forward(self, x: Tensor) -> tuple[Tensor, Tape]:
        """Output, and for each module what its way down needs: nothing else is kept."""
        tape: Tape = []
        fresh = False  # whether x is a weight layer's output, which nothing else reads
        for _, module, is_weight_layer, closed in self._plan:
            if fresh and type(module) in _OVER:
                x = _OVER[type(module)][0](x)
                tape.append((None, x))
                fresh = False
                continue
            fresh = is_weight_layer
            if is_weight_layer:
                if isinstance(module, nn.Conv2d) and x.ndim != 4:
                    raise ValueError(
                        f"Conv2d takes (batch, channels, height, width); got {tuple(x.shape)}"
                    )
                tape.append((x, None))
                x = module(x)
            elif closed is not None:
                x, saved = closed[0](module, x)
                tape.append((None, saved))
            else:
                small = _ByAutograd(module, x)
                tape.append((x, small))
                x = small.output.detach()
        return x, tape

    def error(
        self, output: Tensor, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Tensor]:
        """Loss and output error; maps have their classes on axis 1, as ``F.cross_entropy``."""
        maps = loss in ("cross_entropy", "bce") and isinstance(self.top, nn.Conv2d)
        if not (maps and output.ndim > 2):
            return output_error(output, target, loss, reduction)
        target = target.movedim(1, -1) if target.shape == output.shape else target
        value, error = output_error(output.movedim(1, -1), target, loss, reduction)
        return value, error.movedim(-1, 1)

    def walk(
        self,
        send: Callable[[str, Tensor, Tensor], Tensor | None],
        signal: Tensor,
        at_top: Callable[[Tensor], Tensor],
        tape: Tape,
        *,
        updating: bool,
    ) -> Iterator[Signal]:
        """Every module that has parameters with its signal, top to bottom; empties the tape."""
        receivers = list(self.layers[:-1])
        from_top: Tensor | None = None
        incoming: Tensor | None = None
        fresh = False  # whether the signal is a pool's, which nothing else reads
        for name, module, is_weight_layer, closed in reversed(self._plan):
            entry, saved = tape.pop()
            if fresh and type(module) in _OVER:
                signal = _OVER[type(module)][1](signal, saved)
                continue
            fresh = type(module) is nn.MaxPool2d
            if closed is not None:
                signal = closed[1](module, signal, saved)
                continue
            assert entry is not None
            if not is_weight_layer:
                below, grads = saved.pull(signal)
                if grads:
                    yield Signal(name, module, signal, entry, incoming, grads, False)
                signal = below
                continue
            from_top = at_top(signal) if from_top is None else from_top
            # what goes down is formed before the consumer may change this layer's weight
            grads, arrives, found = {}, signal, None
            if receivers:
                self._at = name, module, entry, signal, grads if updating else None
                found = send(receivers.pop(), signal, from_top)
                self._at = None
                if found is None and updating:
                    yield Signal(name, module, signal, entry, incoming, grads, True)
                    return  # nothing below learns
                arrives = torch.zeros_like(entry) if found is None else _shaped(found, entry, name)
            yield Signal(name, module, signal, entry, incoming, grads, True)
            signal, incoming = arrives, None if updating else arrives
            del arrives, found, entry, grads  # or they would outlive the next module
            if module is self.bottom:
                return

    def pull(self, weight: Tensor, delta: Tensor) -> Tensor:
        """The error at the input of the layer that the walk has reached, W^T delta.

        A convolution's own gradients come from the same call where it is this error that it takes.
        """
        if self._at is None:
            raise RuntimeError("pull can be called from within send alone")
        name, layer, h, error, grads = self._at
        if not isinstance(layer, nn.Conv2d):
            return delta @ weight
        below = _conv_backward(name, layer, weight, delta, h, grads if delta is error else None)
        assert below is not None
        return below


def _shaped(signal: Tensor, h: Tensor, name: str) -> Tensor:
    if signal.numel() != h.numel():
        raise ValueError(
            f"the rule cannot send {tuple(signal.shape)} down from layer {name!r}, which takes "
            f"{tuple(h.shape)}; pass input_shape"
        )
    return signal if signal.shape == h.shape else signal.reshape(h.shape)


# --- rules ----------------------------------------------------------------------------------------

_ARGS = f"""

    Args:
        net: the network.
        generator: CPU generator of the feedback, {_HOW}.
        init: distribution of the feedback, a name of :func:`fabook.networks.draw`.
        scale: factor on the feedback.
        feedback: given matrices instead of random ones, by name of the receiving layer.
        input_shape: shape of one input without the batch axis; direct rules need it where the
            signal arrives at an image.
"""


class Rule(nn.Module):
    """A feedback rule bound to a network: a module that holds the network and the feedback.

    A rule of your own is a subclass with a formula: :meth:`matrix`, what stands in W's place on the
    way down, or :meth:`send`, the whole signal. What it is called and what theory may take for
    granted are declared by its own class and never inherited: ``law``, what alignment conserves;
    ``linear``, the signal is the output error through ``matrix`` alone; ``fixed``, besides, these
    matrices stay::

        class Signed(fabook.FA, label="signed", colour="#AA3377"):
            def send(self, layer, delta, top):
                return super().send(layer, delta.sign(), top)

    Feedback is drawn once, on the CPU, from ``generator``, a different matrix for each layer.

    Args:
        net: ``nn.Sequential`` (nested ones too) with ``nn.Linear`` and ``nn.Conv2d`` layers.
        generator: CPU generator for the feedback; rules without random feedback ignore it.
        init: distribution of the feedback, a name of :func:`fabook.networks.draw`. The fan-in is
            that of the weight replaced; for direct feedback ``(n_l, n_L)`` it is :math:`n_l`.
        scale: factor on the feedback.
        feedback: given matrices instead of random ones, by name of the receiving layer.
        input_shape: shape of one input without the batch axis; direct rules need it where the
            signal arrives at an image.

    Raises:
        UnsupportedModule: names a module that the rule cannot place.
        ValueError: no generator where random feedback is drawn, or feedback of the wrong shape.
    """

    label: ClassVar[str] = "Rule"
    colour: ClassVar[str] = "#777777"
    law: ClassVar[str | None] = None  # partner in the conservation law, one of LAWS
    linear: bool = False  # whether what arrives is the error at the top through `matrix` alone
    fixed: bool = False  # whether, besides, the matrices stay what they are
    direct: ClassVar[bool] = False  # F_l of shape (n_l, n_L), from the top
    draws: ClassVar[bool] = False  # whether random matrices are drawn
    learns: ClassVar[bool] = False  # whether they take the gradient of the weight they stand for
    default_init: ClassVar[str] = "uniform"
    net: nn.Module

    def __init_subclass__(
        cls,
        *,
        label: str | None = None,
        colour: str = "#777777",
        law: str | None = None,
        linear: bool = False,
        fixed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.law = law if law is None else choose("law", law, LAWS)
        cls.label, cls.colour = label or cls.__name__, colour
        cls.linear, cls.fixed = linear or fixed, fixed
        if cls.__doc__ and "Args:" not in cls.__doc__:
            cls.__doc__ = cls.__doc__.rstrip() + _ARGS
        own = {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}
        if own.pop("options", None):  # passed on: help shows the names
            rest = inspect.signature(Rule.__init__).parameters
            own |= {k: p for k, p in rest.items() if k != "self" and k not in own}
        setattr(cls, "__signature__", inspect.Signature([*own.values()]))  # noqa: B010

    def __new__(cls, *args: Any, **kwargs: Any) -> Rule:
        """Say what to write where a generator or a seed is given as other libraries take it."""
        if len(args) > 1 or "seed" in kwargs:
            raise TypeError(f"{cls.__name__} takes the network, then keywords: {_HOW}")
        return super().__new__(cls)

    def __init__(
        self,
        net: nn.Module,
        *,
        generator: Generator | None = None,
        init: str | None = None,
        scale: float = 1.0,
        feedback: Mapping[str, Tensor] | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if generator is not None and not isinstance(generator, Generator):
            raise TypeError(f"generator must be a torch.Generator; got {generator!r}: {_HOW}")
        self._bound: Stack | None = Stack(net)
        self.net = net
        self._init = choose("init", init or self.default_init, INITS)
        self._scale, self._drawn_in = scale, torch.get_default_dtype()
        self._input_shape = input_shape
        self._bind(generator, feedback)

    # what a rule defines

    def matrix(self, layer: str) -> Tensor:
        """The feedback below which ``layer`` lies: in W's place, or (n_l, n_L) for direct rules."""
        raise NotImplementedError(f"{type(self).__name__} has no formula for the signal")

    def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor | None:
        """The signal at h_l for ``layer``: by default delta_{l+1}, pulled through the matrix.

        Args:
            layer: name of the receiving layer.
            delta: error signal at the output of the layer above.
            top: what the top sends, the output error unless :meth:`from_top` says otherwise.

        Returns:
            A tensor as large as h_l; None where nothing arrives: no layer from here down learns.
        """
        return self.pull(self.matrix(layer), delta)

    def from_top(self, error: Tensor, target: Tensor, loss: Loss, reduction: str) -> Tensor:
        """What the top sends to every layer: the output error."""
        return error

    def refresh(self) -> None:
        """Called once at the start of every update, never when measuring."""

    # what a formula is written with

    def weight(self, layer: str) -> Tensor:
        """The forward weight that ``matrix(layer)`` stands for, that of the layer above."""
        weight: Tensor = self._path.above[layer].weight.detach()
        return weight

    def drawn(self, layer: str) -> Tensor:
        """The matrix of ``layer`` that the rule holds."""
        held = self._held()[_key(layer)]
        assert held is not None
        return held.detach()

    def pull(self, matrix: Tensor, delta: Tensor) -> Tensor:
        """W^T delta with ``matrix`` in W's place, through the layer that the error has reached."""
        return self._path.pull(matrix, delta)

    # what a rule is

    @property
    def layers(self) -> list[str]:
        """Names of the weight layers, bottom to top."""
        return self._path.layers

    @property
    def above(self) -> dict[str, Any]:
        """The weight layer above each hidden one, by the hidden one's name."""
        return self._path.above

    @property
    def modules_in_order(self) -> list[tuple[str, nn.Module]]:
        """The network's modules in the order in which they act, with their names."""
        return self._path.modules

    @property
    def feedback(self) -> dict[str, Tensor]:
        """Feedback matrices in use, by name of the receiving layer, bottom to top."""
        return {name: self.matrix(name) for name in self.above}

    def extra_repr(self) -> str:
        lines = [f"layers: {', '.join(map(repr, self.layers))}"]
        if found := self.feedback:
            shapes = ", ".join(f"{name!r} {tuple(b.shape)}" for name, b in found.items())
            lines.append(f"feedback: {shapes}")
        return "\n".join(lines)

    # feedback and state

    def _held(self) -> dict[str, Any]:
        return self._parameters if self.learns else self._buffers

    def _held_parameters(self) -> list[nn.Parameter]:
        return [p for p in self._parameters.values() if p is not None]

    def _bind(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        """Draw the feedback, or take what is given."""
        if not self.draws:
            if feedback:
                raise ValueError(f"{type(self).__name__} takes no feedback matrices")
            return
        shapes = self._shapes()
        if feedback is not None and set(feedback) != set(shapes):
            raise ValueError(f"feedback must be given for {list(shapes)}; got {list(feedback)}")
        if feedback is None and generator is None and shapes:
            raise ValueError(f"{type(self).__name__} draws random feedback: pass {_HOW}")
        for name, shape in shapes.items():
            if feedback is None:
                matrix = self._random(shape, generator)
            else:
                matrix = feedback[name].detach().clone()
                if tuple(matrix.shape) != shape:
                    raise ValueError(
                        f"feedback of layer {name!r} must have shape {shape}; "
                        f"got {tuple(matrix.shape)}"
                    )
            matrix = matrix.to(self.weight(name))
            if self.learns:
                self.register_parameter(_key(name), nn.Parameter(matrix))
            else:
                self.register_buffer(_key(name), matrix)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if not self.direct:
            return {name: tuple(layer.weight.shape) for name, layer in self.above.items()}
        top: Any = self._path.top
        if isinstance(top, nn.Conv2d):
            raise _refuse(self.layers[-1], top, "is a convolution at the top of a direct rule")
        sizes = self._path.sizes(type(self).__name__, self._input_shape)
        return {name: (size, top.weight.shape[0]) for name, size in sizes.items()}

    def _random(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        """Drawn in the default precision, so that a seed means one matrix for any network.

        Orthonormal columns are wanted to the last bit of the widest.
        """
        dtype = torch.float64 if self._init == "orthogonal" else self._drawn_in
        ordered = shape[::-1] if self.direct else shape
        drawn = draw(ordered, self._init, scale=self._scale, generator=generator, dtype=dtype)
        return drawn.t().contiguous() if self.direct else drawn

    def get_extra_state(self) -> dict[str, Any]:
        """What the state belongs to; part of ``state_dict``."""
        return {"rule": self.label}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore; rules with more state add to it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if isinstance(state, Mapping) and state.get("rule") != self.label:
            raise ValueError(f"the state is of rule {state.get('rule')}; this rule is {self.label}")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._path.steps = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound = Stack(self.net)

    @property
    def _path(self) -> Stack:
        if self._bound is None:  # Dask carries a module's attributes one by one
            self._bound = Stack(self.net)
        return self._bound

    def _apply(self, fn: Any, recurse: bool = True) -> Rule:
        self._path.check_unchanged()
        super()._apply(fn, recurse)
        self._path._watch()  # moving a network may give it new parameters
        self._path.steps = {}
        return self

    # measuring and learning

    def forward(self, x: Tensor) -> Tensor:
        """The network's output; for an output to learn from, use :meth:`backward`."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} writes gradients without a graph: call "
                "rule.backward(x, target), or rule(x) under torch.no_grad()"
            )
        output: Tensor = self.net(x)
        return output

    def _start(
        self,
        x: Tensor,
        target: Tensor,
        loss: Loss,
        reduction: str,
        *,
        updating: bool,
    ) -> tuple[Tensor, Iterator[Signal]]:
        """Loss and signals; unless ``updating``, everything stays as it is."""
        self._path.check_unchanged()
        top: Any = self._path.top
        weight = top.weight
        home = weight.device, weight.dtype
        for matrix in self._held().values():
            if matrix is not None and (matrix.device, matrix.dtype) != home:
                raise ValueError(
                    f"feedback is {matrix.dtype} on {matrix.device}, the network {weight.dtype} "
                    f"on {weight.device}: move both with rule.to(...)"
                )
        if x.shape[:1] == (0,):
            raise ValueError(f"x: the batch holds no samples; got {tuple(x.shape)}")
        if updating:
            self.refresh()
            output, tape = self._path.forward(x)
        else:
            with measuring(self.net):
                output, tape = self._path.forward(x)
        value, error = self._path.error(output, target, loss, reduction)

        def at_top(signal: Tensor) -> Tensor:
            return self.from_top(signal, target, loss, reduction)

        return value, self._path.walk(self.send, error, at_top, tape, updating=updating)

    @torch.no_grad()
    def trace(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> Iterator[Signal]:
        """Yield what arrives at each module that has parameters, top to bottom; writes nothing.

        Args:
            x, target, loss, reduction: as in :meth:`backward`.
        """
        yield from self._start(x, target, loss, reduction, updating=False)[1]

    def signals(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Yield (layer, error signal at its output, input) for each weight layer, top to bottom.

        Writes nothing: running statistics and random states stay as they are.

        Args:
            x: (batch, ...) inputs.
            target: see :func:`fabook.losses.output_error`.
            loss, reduction: see there.
        """
        for s in self.trace(x, target, loss=loss, reduction=reduction):
            if s.is_weight_layer:
                yield s.module, s.error, s.input

    def _updates(
        self, x: Tensor, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Iterator[tuple[Signal, str, nn.Parameter, nn.Parameter | None]]]:
        """Loss, and every parameter that learns: its signal, name, and feedback that follows it."""
        value, signals = self._start(x, target, loss, reduction, updating=True)
        below = zip(self.layers[1:], self.layers[:-1], strict=True)
        names = dict(below) if self.learns else {}

        def each() -> Iterator[tuple[Signal, str, nn.Parameter, nn.Parameter | None]]:
            for s in signals:
                for key, parameter in s.module._parameters.items():
                    if parameter is not None and parameter.requires_grad:
                        stands = s.is_weight_layer and key == "weight" and s.name in names
                        held = self._parameters[_key(names[s.name])] if stands else None
                        yield s, key, parameter, held
                del s  # its tensors would outlive the walk to the next layer

        return value, each()

    @torch.no_grad()
    def backward(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> Tensor:
        """Run the network forward and write ``.grad`` of every parameter that learns.

        Gradients are overwritten, not accumulated, so no ``zero_grad`` is needed; any optimizer
        over ``rule.parameters()`` can take the step. What does not learn gets None.

        Args:
            x: (batch, ...) inputs.
            target: see :func:`fabook.losses.output_error`; where the top layer is a convolution,
                the classes of ``cross_entropy`` are on axis 1, as in ``F.cross_entropy``.
            loss, reduction: see there.

        Returns:
            The loss before the step, 0-d, without graph.

        Raises:
            ValueError: see there; or feedback and network on different devices.
            RuntimeError: the network was changed, or the optimizer leaves feedback out that learns.
        """
        self._check_followed()
        value, updates = self._updates(x, target, loss, reduction)
        written = set()
        for s, key, parameter, held in updates:
            parameter.grad = s.gradient(key, parameter.grad)
            written.add(parameter)
            if held is not None:
                written.add(held)
                held.grad = parameter.grad.clone()
            del s
        for parameter in (*self._path.parameters, *self._held_parameters()):
            if parameter.requires_grad and parameter not in written:
                parameter.grad = None
        self._note_versions()
        return value

    def _note_versions(self) -> None:
        if self.learns:
            self._path.steps = {
                name: (layer.weight._version, self.get_parameter(_key(name))._version)
                for name, layer in self.above.items()
                if layer.weight.requires_grad
            }

    def _check_followed(self) -> None:
        """An optimizer that steps W and not B would make another rule of this one."""
        for name, (weight, own) in self._path.steps.items():
            moved = self.above[name].weight._version != weight
            if moved and self.get_parameter(_key(name))._version == own:
                raise RuntimeError(
                    f"the weight above layer {name!r} was stepped and its feedback was not: give "
                    "the optimizer rule.parameters(), which holds both"
                )

    @torch.no_grad()
    def sgd_step(
        self,
        x: Tensor,
        target: Tensor,
        lr: float,
        *,
        loss: Loss = "cross_entropy",
        reduction: str = "mean",
    ) -> Tensor:
        """Take one step of plain gradient descent in place, without storing any gradient.

        The same step as :meth:`backward` followed by ``torch.optim.SGD(lr)``, and faster.

        Args:
            x, target, loss, reduction: as in :meth:`backward`.
            lr: learning rate.

        Returns:
            The loss before the step, 0-d.
        """
        value, updates = self._updates(x, target, loss, reduction)
        for s, key, parameter, held in updates:
            linear = key == "weight" and s.is_weight_layer and isinstance(s.module, nn.Linear)
            if linear and held is None:
                parameter.addmm_(rows(s.error).t(), rows(s.input), alpha=-lr)
            else:
                step = s.gradient(key)
                parameter.sub_(step, alpha=lr)
                if held is not None:
                    held.sub_(step, alpha=lr)
                del step
            del s
        self._path.steps = {}
        return value

    @torch.no_grad()
    def gradients(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> dict[str, Tensor]:
        """Return what :meth:`backward` would write into the network, by name, bottom to top.

        Zero where nothing arrives, and where it would write None. Nothing is written: ``.grad``,
        running statistics and random states stay as they are.
        """
        found = {
            id(parameter): s.gradient(key)
            for s in self.trace(x, target, loss=loss, reduction=reduction)
            for key, parameter in s.module.named_parameters()
            if parameter.requires_grad
        }
        return {k: found[id(p)] for k, p in self.net.named_parameters() if id(p) in found}


def _key(layer: str) -> str:
    return "feedback_" + layer.replace(".", "/")  # names of buffers have no dots
