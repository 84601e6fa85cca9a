r"""How an error passes a stack of modules: forward, the walk down, ``.grad`` and what is refused.

A network is an ``nn.Sequential`` (nested ones too) of Linear and Conv2d with local modules between
them. No autograd graph is built: each module's own vector-Jacobian product is written out, or comes
from a graph of that module alone. What stands at a rule's place in the walk is
:meth:`fabook.base.Rule.send`; the formulas are in :mod:`fabook.rules`.

Internal: of this module only :class:`Signal` and :class:`UnsupportedModule` are promised to stay.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .networks import Erf, Scale

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_aten = torch.ops.aten


class UnsupportedModule(TypeError):
    """A module through which a feedback rule cannot send an error; the message names it.

    Example:
        >>> from fabook import FA
        >>> FA(nn.Tanh())
        Traceback (most recent call last):
        fabook.stack.UnsupportedModule: the network has no nn.Linear or nn.Conv2d layer...
    """


class Signal(NamedTuple):
    """What a rule delivers to one module.

    Attributes:
        name: the module's name in the network.
        module: the module.
        error: error signal at its output, of the output's shape; delta_l for weight layers.
        input: what it was given; h_{l-1} for weight layers.
        incoming: the signal before it passed the activation, at h_l; None at the top.
        grads: gradients of its own parameters that are known already.
        is_weight_layer: whether it is a Linear or Conv2d.

    Example:
        >>> from fabook import BP, mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> seen = list(BP(net).trace(torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1])))
        >>> [(s.name, tuple(s.error.shape)) for s in seen if s.is_weight_layer]  # from the top down
        [('2', (5, 2)), ('0', (5, 3))]
        >>> seen[0].gradient("weight").shape
        torch.Size([2, 3])
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
    nn.ReLU: (torch.relu_, lambda g, y: _aten.threshold_backward.grad_input(g, y, 0, grad_input=g)),
    nn.Sigmoid: (
        torch.sigmoid_,
        lambda g, y: _aten.sigmoid_backward.grad_input(g, y, grad_input=g),
    ),
}


def _closed(module: nn.Module) -> Local | None:
    return None if getattr(module, "return_indices", False) else CLOSED.get(type(module))


def _ends(output: Tensor) -> Iterator[Tensor]:
    """The tensors that require a gradient at which a graph ends."""
    if output.grad_fn is None:
        yield output
    todo: list[Any] = [output.grad_fn]
    seen: set[Any] = {None}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if (variable := getattr(node, "variable", None)) is not None:
                yield variable
            todo += [below for below, _ in node.next_functions]


class ByAutograd:
    """The small graph that a module's own vector-Jacobian product needs, but not its output."""

    def __init__(self, leaf: Tensor, output: Tensor, module: nn.Module) -> None:
        self.leaf = leaf
        self.end = get_gradient_edge(output) if output.grad_fn is not None else output
        named = module.named_parameters(recurse=True)
        self.params = {k: p for k, p in named if p.requires_grad}
        own = {id(leaf), *map(id, self.params.values())}
        torchs = type(module).__module__.startswith("torch.nn.modules.")  # these keep to themselves
        if not torchs and any(id(end) not in own for end in _ends(output)):
            raise UnsupportedModule(
                f"{type(module).__name__} reaches outside itself, for a parameter of another "
                "module or what another one computed: make the network one nn.Module with a "
                "forward of its own, whose graph shows that"
            )

    @classmethod
    def forward(cls, module: nn.Module, x: Tensor) -> tuple[Tensor, ByAutograd]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            inplace = any(getattr(m, "inplace", False) for m in module.modules())
            output = module(leaf.clone() if inplace else leaf)
        if not output.requires_grad:
            raise UnsupportedModule(
                f"{type(module).__name__} gives an output without a gradient, as if detached"
            )
        return output.detach(), cls(leaf, output, module)

    def pull(self, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = [self.leaf, *self.params.values()]
        grads = torch.autograd.grad(
            self.end, wanted, error, allow_unused=True, materialize_grads=True
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
    kind = type(module)
    if kind.forward is nn.Sequential.forward and kind.__call__ is nn.Module.__call__:
        for key, child in module._modules.items():
            if child is not None:
                yield from flat(f"{prefix}.{key}" if prefix else key, child)
    else:
        yield prefix, module


def _is_weight_layer(module: nn.Module) -> bool:
    """Linear and Conv2d, but no subclass that computes something else."""
    kind: Any = type(module)
    if kind.forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return False
    calls = kind.__call__, getattr(kind, "_conv_forward", nn.Conv2d._conv_forward)
    own = {**module._buffers, **module._parameters}  # what stands for them may be computed
    return (
        calls == (nn.Module.__call__, nn.Conv2d._conv_forward)
        and all(own.get(key) is getattr(module, key) for key in ("weight", "bias"))
        and {key for key, _ in module.named_parameters()} <= {"weight", "bias"}
    )


def refuse(name: str, module: nn.Module, why: str) -> UnsupportedModule:
    return UnsupportedModule(
        f"module {name!r} ({type(module).__name__}) {why}; feedback rules work on nn.Sequential "
        "stacks of nn.Linear and nn.Conv2d with activations, pooling, flatten, scales, "
        "normalisation and dropout between them"
    )


def unusable(module: nn.Module) -> str | None:
    """Why no rule can work on a module's own parameters, if so."""
    if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
        return "is not initialised: run the network once"
    for key, p in module.named_parameters(recurse=False):
        if p.dtype not in DTYPES:
            return f"has a {key} of {p.dtype}; allowed are {', '.join(map(str, DTYPES))}"
    return None


def is_hooked(parameter: nn.Parameter) -> bool:
    """Whether a hook waits for its gradient."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _check_all(net: nn.Module) -> None:
    """Refuse what would be passed over silently, in containers too."""
    for name, module in net.named_modules():
        if why := unusable(module):
            raise refuse(name, module, why)
        if "forward" in vars(module):
            raise refuse(name, module, "has a forward of its own, apart from its class")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise refuse(name, module, "has hooks, which would not run")
        if any(map(is_hooked, module.parameters(recurse=False))):
            raise refuse(name, module, "has hooks on a parameter, which would not run")
        if nn.utils.parametrize.is_parametrized(module):
            raise refuse(name, module, "has no plain weight: it is parametrised")


def _check_shared(stack: Sequence[tuple[str, nn.Module]]) -> None:
    owners: dict[int, str] = {}
    for name, module in stack:
        for parameter in module.parameters():
            first = owners.setdefault(id(parameter), name)
            if first != name:
                raise refuse(name, module, f"shares a parameter with module {first!r}")


def _check(name: str, module: nn.Module) -> None:
    if _is_weight_layer(module):
        if isinstance(module, nn.Conv2d):
            _padding(name, module)
        return
    if not name and any(True for _ in module.children()):
        raise refuse(
            name, module, "has a forward of its own, whose order of modules cannot be read: where "
            "it calls its children one after the other, pass torch.nn.Sequential(*net.children())",
        )  # fmt: skip
    matrices = any(p.ndim > 1 for p in module.parameters()) and not isinstance(module, _NORMS)
    inner = any(True for _ in module.children()) and any(True for _ in module.parameters())
    if matrices or inner:
        raise refuse(name, module, "cannot be placed: its weights are not one linear step")


def _padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    if conv.padding_mode != "zeros":
        raise refuse(name, conv, f"pads by {conv.padding_mode!r}, only 'zeros' is supported")
    if not isinstance(conv.padding, str):
        return conv.padding[0], conv.padding[1]
    if conv.padding == "valid":
        return 0, 0
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise refuse(name, conv, "pads 'same' with an even kernel, which is not symmetric")
    return total[0] // 2, total[1] // 2


@contextmanager
def measuring(net: nn.Module) -> Iterator[None]:
    """Run a forward pass that leaves running statistics and random states as they were.

    So it leaves the rows of a table with a ``max_norm``, which the pass itself shortens.
    """
    owners = [(m._buffers, dict(m._buffers)) for m in net.modules() if m._buffers]
    for buffers, kept in owners:  # the pass writes into copies, of which its graphs may keep some
        buffers.update({k: None if b is None else b.clone() for k, b in kept.items()})
    devices = {p.device for p in net.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((d.type for d in devices), "cuda")
    short = [m for m in net.modules() if getattr(m, "max_norm", None) is not None]
    homes = [(table, table.data) for m in short for table in m.parameters(recurse=False)]
    numbers = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        for table, data in homes:
            table.data = data.clone()
        with torch.random.fork_rng([d.index for d in devices], device_type=kind):
            yield
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])  # noqa: NPY002
        for table, data in homes:
            table.data = data
        for buffers, kept in owners:
            buffers.update(kept)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The same, in evaluation mode; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in net.modules()]
    with measuring(net):
        try:
            net.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


# --- the stack ------------------------------------------------------------------------------------

Tape = list[tuple[Tensor | None, Any]]
Send = Callable[[str, Tensor, Tensor], Tensor | None]


class Stack:
    """A network as a list of modules, the way up and the way down.

    Args:
        net: the network.

    Raises:
        UnsupportedModule: names a module that cannot be placed.

    Attributes:
        modules: names and modules, in the order in which they act.
        layers: names of the weight layers.
        above: the weight layer above each hidden one, by the hidden one's name.
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
                raise refuse(name, module, "has parameters below the first weight layer")
        self.layers = [name for name, _ in weights]
        self.bottom, self.top = weights[0][1], weights[-1][1]
        self.above: dict[str, Any] = dict(
            zip(self.layers, [m for _, m in weights[1:]], strict=False)
        )
        self._plan = [(n, m, _is_weight_layer(m), _closed(m)) for n, m in self.modules]
        self._at: tuple[str, Any, Tensor, Tensor, dict[str, Tensor] | None] | None = None
        self.watch()

    @property
    def walking(self) -> bool:
        """Whether an error is just being sent down."""
        return self._at is not None

    def watch(self) -> None:
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
                below = x
                x, small = ByAutograd.forward(module, below)
                tape.append((below, small))
        return x, tape

    def walk(
        self,
        send: Send,
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
                try:
                    found = _unchanged(send, receivers.pop(), signal, from_top)
                finally:
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


def _version(signal: Tensor) -> int:
    """How often it was written to; of what inference mode makes nobody counts."""
    return 0 if signal.is_inference() else signal._version


def _unchanged(send: Send, receiver: str, delta: Tensor, top: Tensor) -> Tensor | None:
    """What is sent, by a formula that does not write to what others read."""
    before = _version(delta), _version(top)
    found = send(receiver, delta, top)
    if (_version(delta), _version(top)) != before:
        raise RuntimeError(
            f"send for layer {receiver!r} changed delta or top in place, which other layers read "
            "as well: change a copy"
        )
    return found


def _shaped(signal: Tensor, h: Tensor, name: str) -> Tensor:
    if signal.numel() != h.numel():
        raise ValueError(
            f"the rule cannot send {tuple(signal.shape)} down from layer {name!r}, which takes "
            f"{tuple(h.shape)}; pass input_shape to a direct rule on images"
        )
    return signal if signal.shape == h.shape else signal.reshape(h.shape)
