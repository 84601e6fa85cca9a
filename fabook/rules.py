r"""Feedback rules: given the output error, which error signal does each layer get?

Notation, for layers :math:`l = 1, \dots, L`: input :math:`h_{l-1}`, output
:math:`z_l = W_l h_{l-1} + b_l`, activation :math:`h_l = \phi(z_l)`, error signal
:math:`\delta_l = \partial \mathcal L/\partial z_l` or what a rule puts in its place,
:math:`e = \delta_L`. Whatever the rule, the gradient of a layer is local:
:math:`\delta_l h_{l-1}^T` and :math:`\delta_l`. The read-out always gets its true error :math:`e`.
A rule is the formula for what arrives at :math:`h_l`, before the derivative of the activation:

========== ====================================== ==========================================
BP         :math:`W_{l+1}^T \delta_{l+1}`         Rumelhart, Hinton & Williams 1986
FA         :math:`B_{l+1}^T \delta_{l+1}`         Lillicrap et al. 2016
DFA        :math:`F_l e`                          Nøkland 2016
uSF        :math:`B = s\,\mathrm{sign}(W)`        Liao, Leibo & Poggio 2016
frSF       :math:`B = |R| \circ \mathrm{sign}(W)` the same; R fixed
brSF       :math:`B = |R| \circ \mathrm{sign}(W)` the same; R drawn anew for every batch
KP         B takes the same steps as W            Kolen & Pollack 1994; Akrout et al. 2019
Shallow    0                                      only the read-out learns
DRTP       :math:`F_l y^*`                        Frenkel, Lefebvre & Bol 2021
========== ====================================== ==========================================
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import grad as nn_grad

from .networks import INITS, Erf, Scale, choose, draw

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "mse")
REDUCTIONS = ("mean", "sum")


class UnsupportedModule(TypeError):
    """A module through which a feedback rule cannot send an error; the message names it."""


class Signal(NamedTuple):
    """What a rule delivers to one module.

    Attributes:
        name: the module's name in the network.
        module: the module.
        error: error signal at its output, of the output's shape; delta_l for weight layers.
        input: what it was given, h_{l-1}.
        incoming: the signal before it passed the activation, at h_l; None at the top.
        grads: gradients of its own parameters where they are not delta h^T (normalisation layers).
    """

    name: str
    module: nn.Module
    error: Tensor
    input: Tensor
    incoming: Tensor | None
    grads: dict[str, Tensor] | None


# --- local vector-Jacobian products of what stands between the weight layers ---------------------

_aten = torch.ops.aten
Local = tuple[Callable[[Any, Tensor], tuple[Tensor, Any]], Callable[[Any, Tensor, Any], Tensor]]


def _same(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


# module type -> (forward: (output, saved), backward: error at the input); the rest goes by autograd
_CLOSED: dict[type, Local] = {
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
}


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


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _flat(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():
            if child is not None:
                yield from _flat(f"{prefix}.{key}" if prefix else key, child)
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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check_all(net: nn.Module) -> None:
    """Refuse what would be passed over silently, in containers too."""
    for name, module in net.named_modules():
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise _refuse(name, module, "is not initialised: run the network once")
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise _refuse(name, module, "has hooks, which would not run")
        if nn.utils.parametrize.is_parametrized(module):
            raise _refuse(name, module, "has no plain weight: it is parametrised")


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


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``F.linear``; in single precision on a CPU through oneDNN where that is worth its overhead.

    torch multiplies with MKL, which leaves the wide vector units of AMD processors idle: oneDNN's
    forward product took half the time there (128 x 784 x 512: 0.46 against 0.97 ms). Both round
    in single precision.
    """
    weight, bias = layer.weight, layer.bias
    if _onednn is None or not _by_onednn(x, weight, x.shape[0] * weight.numel(), 1_000_000):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias, "none", [], "")


def _by_onednn(a: Tensor, b: Tensor, work: int, least: int) -> bool:
    """Whether a product of ``work`` multiplications goes to oneDNN: from ``least`` on."""
    plain = a.ndim == b.ndim == 2 and a.dtype is b.dtype is torch.float32
    return work >= least and plain and a.is_cpu and b.is_cpu


def _outer(error: Tensor, x: Tensor) -> Tensor | None:
    """The gradient delta h^T of a large layer by oneDNN; None where MKL forms it.

    oneDNN is faster from about 1e7 multiplications on (600 x 784 x 1000: 5.6 against 9.5 ms) and
    slower below. The limit is higher, so that experiments run before it keep their last bits.
    """
    work = error.numel() * x.shape[-1]
    if _onednn is None or not _by_onednn(error, x, work, 300_000_000):
        return None
    return _onednn(error.t(), x.t(), None, "none", [], "")


def _find_onednn() -> Callable[..., Tensor] | None:
    available = torch.backends.mkldnn.is_available()
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if available else None


_onednn = _find_onednn()


def _conv(layer: nn.Module, x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"Conv2d takes (batch, channels, height, width); got {tuple(x.shape)}")
    return layer(x)


def _pull_weight(layer: nn.Module, weight: Tensor, error: Tensor, h: Tensor) -> Tensor:
    """The layer's error at its input, W^T delta, with ``weight`` in the place of W."""
    if isinstance(layer, nn.Conv2d):
        args = (layer.stride, _padding("", layer), layer.dilation, layer.groups)
        return nn_grad.conv2d_input(h.shape, weight, error, *args)
    return error @ weight


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _gradient(s: Signal, key: str, out: Tensor | None) -> Tensor:
    """The gradient of one parameter: delta h^T, delta, or what the module's own graph gave.

    ``out`` is a tensor to reuse where it fits.
    """
    if s.grads is not None:
        return s.grads[key]
    if isinstance(s.module, nn.Conv2d):
        if key == "bias":
            return s.error.sum((0, 2, 3))
        m = s.module
        args = (m.stride, _padding(s.name, m), m.dilation, m.groups)
        return nn_grad.conv2d_weight(s.input, m.weight.shape, s.error, *args)
    error = _rows(s.error)
    if key == "bias":
        return error.sum(0)
    large = _outer(error, _rows(s.input))
    return torch.mm(error.t(), _rows(s.input), out=out) if large is None else large


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    own = module._parameters.items()
    return [(key, parameter) for key, parameter in own if parameter is not None]


def _buffer_name(layer: str) -> str:
    return "feedback_" + layer.replace(".", "/")  # buffers' names have no dots


# --- the loss ------------------------------------------------------------------------------------


def output_error(
    output: Tensor, target: Tensor, loss: Loss = "cross_entropy", reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    r"""Loss and its derivative with respect to the network's output.

    ``cross_entropy`` is ``F.cross_entropy`` (class indices or probabilities, classes on the last
    axis), :math:`e = c\,(\mathrm{softmax}(f) - y^*)`; ``mse`` is ``F.mse_loss``,
    :math:`e = 2c\,(f - y)`; :math:`c` is 1 for ``sum`` and one over the number of samples
    (``cross_entropy``) or of all elements (``mse``) for ``mean``.

    Args:
        output: (..., C).
        target: (...) class indices or (..., C) probabilities; for ``mse`` the output's shape.
        loss: ``cross_entropy``, ``mse``, or a function of (output, target) that returns a scalar,
            whose own reduction holds.
        reduction: ``mean`` or ``sum``.

    Returns:
        The loss (0-d) and the error, of the output's shape.

    Raises:
        ValueError: unknown loss or reduction, or target of the wrong shape.

    Example:
        >>> value, e = output_error(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
        >>> e[0].tolist()
        [-0.125, 0.125]
    """
    choose("reduction", reduction, REDUCTIONS)
    if callable(loss):
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            value = loss(leaf, target)
            return value.detach(), torch.autograd.grad(value, leaf)[0]
    choose("loss", loss, LOSSES)
    if loss == "mse":
        if output.shape != target.shape:
            raise ValueError(
                f"mse needs a target of the output's shape {tuple(output.shape)}; "
                f"got {tuple(target.shape)}"
            )
        error = output - target.to(output.dtype)
        scale = 1.0 / error.numel() if reduction == "mean" else 1.0
        flat = error.reshape(-1)
        return torch.dot(flat, flat) * scale, error.mul_(2 * scale)
    logp = torch.log_softmax(output, -1)
    n = logp.numel() // logp.shape[-1]
    scale = 1.0 / n if reduction == "mean" else 1.0
    error = logp.exp()
    if target.is_floating_point() and target.shape == output.shape:
        value = -(target * logp).sum() * scale
        error.mul_(target.sum(-1, keepdim=True)).sub_(target)
    elif not target.is_floating_point() and target.shape == output.shape[:-1]:
        index = target.long().unsqueeze(-1)
        value = logp.gather(-1, index).sum() * -scale
        error.scatter_add_(-1, index, error.new_tensor(-1.0).expand(index.shape))
    else:
        raise ValueError(
            f"cross_entropy of outputs {tuple(output.shape)} needs class indices of shape "
            f"{tuple(output.shape[:-1])} or probabilities of the output's shape; "
            f"got {tuple(target.shape)} {target.dtype}"
        )
    return value, error.mul_(scale) if scale != 1.0 else error


# --- rules ---------------------------------------------------------------------------------------


class Rule(nn.Module):
    """A feedback rule bound to a network.

    The network stays as it is: the rule keeps a reference and owns only its feedback, as buffers
    (``state_dict``, ``.to()``), so move rule and network together. Feedback is drawn once, on the
    CPU, from ``generator``, a different matrix for each layer.

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

    default_init = "uniform"
    net: nn.Module

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
        object.__setattr__(self, "net", net)  # a reference: not a submodule, not in state_dict
        _check_all(net)
        self._stack = list(_flat("", net))
        for name, module in self._stack:
            _check(name, module)
        _check_shared(self._stack)
        weights = [(n, m) for n, m in self._stack if _is_weight_layer(m)]
        if not weights:
            raise UnsupportedModule("the network has no nn.Linear or nn.Conv2d layer")
        for name, module in self._stack:
            if module is weights[0][1]:
                break
            if any(True for _ in module.parameters()):
                raise _refuse(name, module, "has parameters below the first weight layer")
        self.layers = [name for name, _ in weights]
        self._weights: list[Any] = [m for _, m in weights]
        self._above: dict[str, Any] = dict(zip(self.layers, self._weights[1:], strict=False))
        self._plan = [(n, m, _is_weight_layer(m), _CLOSED.get(type(m))) for n, m in self._stack]
        self._init = choose("init", init or self.default_init, INITS)
        self._scale = scale
        self._input_shape = input_shape
        self._draw(generator, feedback)

    # what a rule defines

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        """Register the feedback; a rule without any registers none."""
        if feedback:
            raise ValueError(f"{type(self).__name__} takes no feedback matrices")

    def _send(self, name: str, delta: Tensor, h: Tensor, top: Tensor) -> Tensor:
        """Signal at h_l for layer ``name``, from delta_{l+1} or from what the top sends."""
        raise NotImplementedError(f"{type(self).__name__} has no formula for the signal")

    def _sent_from_top(self, error: Tensor, target: Tensor, loss: Loss, reduction: str) -> Tensor:
        """What direct rules project: the output error."""
        return error

    def _refresh(self) -> None:
        """Called once at the start of every update, never when measuring."""

    def _settle(self) -> None:
        """Called once at the end of every update, never when measuring."""

    @property
    def feedback(self) -> dict[str, Tensor]:
        """Feedback matrices in use, by name of the receiving layer, bottom to top."""
        return {}

    # what every rule shares

    def _forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Any]]]:
        """Output, and for each module its input with what its backward step needs."""
        tape: list[tuple[Tensor, Any]] = []
        for _, module, is_weight_layer, closed in self._plan:
            entry, saved = x, None
            if is_weight_layer:
                x = _linear(module, x) if isinstance(module, nn.Linear) else _conv(module, x)
            elif closed is not None:
                x, saved = closed[0](module, x)
            else:
                saved = _ByAutograd(module, x)
                x = saved.output.detach()
            tape.append((entry, saved))
        return x, tape

    def _start(
        self, x: Tensor, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Iterator[Signal]]:
        weight = self._weights[-1].weight
        home = weight.device, weight.dtype
        for matrix in self._buffers.values():
            if matrix is not None and (matrix.device, matrix.dtype) != home:
                raise ValueError(
                    f"feedback is {matrix.dtype} on {matrix.device}, the network {weight.dtype} "
                    f"on {weight.device}: move both, rule.to(...) and net.to(...)"
                )
        output, tape = self._forward(x)
        # maps have their classes on axis 1, as F.cross_entropy has them
        maps = loss == "cross_entropy" and isinstance(self._weights[-1], nn.Conv2d)
        if maps and output.ndim > 2:
            same = target.shape == output.shape
            target = target.movedim(1, -1) if same else target
            value, error = output_error(output.movedim(1, -1), target, loss, reduction)
            error = error.movedim(-1, 1)
        else:
            value, error = output_error(output, target, loss, reduction)
        return value, self._walk(error, target, tape, loss, reduction)

    def _walk(
        self,
        signal: Tensor,
        target: Tensor,
        tape: list[tuple[Tensor, Any]],
        loss: Loss,
        reduction: str,
    ) -> Iterator[Signal]:
        """Every module that has parameters with its signal, top to bottom."""
        receivers = list(self.layers[:-1])
        from_top: Tensor | None = None
        incoming: Tensor | None = None
        for (name, module, is_weight_layer, closed), (entry, saved) in zip(
            reversed(self._plan), reversed(tape), strict=True
        ):
            if closed is not None:
                signal = closed[1](module, signal, saved)
                continue
            if not is_weight_layer:
                below, grads = saved.pull(signal)
                if grads:
                    yield Signal(name, module, signal, entry, incoming, grads)
                signal = below
                continue
            if from_top is None:
                from_top = self._sent_from_top(signal, target, loss, reduction)
            # what goes down is formed before the consumer may change this layer's weight
            below = self._send(receivers.pop(), signal, entry, from_top) if receivers else signal
            yield Signal(name, module, signal, entry, incoming, None)
            signal = incoming = below
            if module is self._weights[0]:
                return

    @torch.no_grad()
    def signals(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
        """Yield (layer, error signal at its output, input) for each weight layer, top to bottom.

        Args:
            x: (batch, ...) inputs.
            target: see :func:`output_error`.
            loss, reduction: see :func:`output_error`.
        """
        for s in self._start(x, target, loss, reduction)[1]:
            if s.grads is None:
                yield s.module, s.error, s.input

    @torch.no_grad()
    def backward(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> Tensor:
        """Run the network forward and write ``.grad`` of every parameter that requires it.

        Gradients are overwritten, not accumulated, so no ``zero_grad`` is needed; any optimizer
        can take the step.

        Args:
            x: (batch, ...) inputs.
            target: see :func:`output_error`; where the top layer is a convolution, the classes of
                ``cross_entropy`` are on axis 1, as in ``F.cross_entropy``.
            loss, reduction: see :func:`output_error`.

        Returns:
            The loss before the step, 0-d, without graph.

        Raises:
            ValueError: see :func:`output_error`; or feedback and network on different devices.
        """
        self._refresh()
        value, signals = self._start(x, target, loss, reduction)
        for s in signals:
            for key, parameter in _parameters(s.module):
                if parameter.requires_grad:
                    parameter.grad = _gradient(s, key, parameter.grad)
        self._settle()
        return value

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
        self._refresh()
        value, signals = self._start(x, target, loss, reduction)
        for s in signals:
            for key, parameter in _parameters(s.module):
                if not parameter.requires_grad:
                    continue
                linear = key == "weight" and s.grads is None and isinstance(s.module, nn.Linear)
                large = _outer(_rows(s.error), _rows(s.input)) if linear else None
                if linear and large is None:
                    parameter.addmm_(_rows(s.error).t(), _rows(s.input), alpha=-lr)
                else:
                    step = _gradient(s, key, None) if large is None else large
                    parameter.sub_(step, alpha=lr)
        self._settle()
        return value

    @torch.no_grad()
    def gradients(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> dict[str, Tensor]:
        """Return what :meth:`backward` would write, by parameter name, bottom to top.

        Nothing is written; ``.grad`` stays as it is.
        """
        found = {
            id(parameter): _gradient(s, key, None)
            for s in self._start(x, target, loss, reduction)[1]
            for key, parameter in _parameters(s.module)
            if parameter.requires_grad
        }
        return {k: found[id(p)] for k, p in self.net.named_parameters() if id(p) in found}


class BP(Rule):
    r"""Backpropagation, :math:`W_{l+1}^T \delta_{l+1}`.

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], generator=g)
        >>> loss = BP(net).backward(torch.ones(5, 4), torch.zeros(5, dtype=torch.long))
        >>> net[0].weight.grad.shape
        torch.Size([3, 4])
    """

    def _send(self, name: str, delta: Tensor, h: Tensor, top: Tensor) -> Tensor:
        above = self._above[name]
        return _pull_weight(above, above.weight, delta, h)


class _Transported(Rule):
    """Rules that send the error down layer by layer through matrices shaped as the weights."""

    def _send(self, name: str, delta: Tensor, h: Tensor, top: Tensor) -> Tensor:
        return _pull_weight(self._above[name], self._matrix(name), delta, h)

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        shapes = {name: tuple(layer.weight.shape) for name, layer in self._above.items()}
        self._register(shapes, generator, feedback)

    def _matrix(self, name: str) -> Tensor:
        return self._buffer(name)

    def _register(
        self,
        shapes: Mapping[str, Sequence[int]],
        generator: Generator | None,
        feedback: Mapping[str, Tensor] | None,
        transpose: bool = False,
    ) -> None:
        if feedback is not None and set(feedback) != set(shapes):
            raise ValueError(f"feedback must be given for {list(shapes)}; got {list(feedback)}")
        if feedback is None and generator is None and shapes:
            raise ValueError(
                f"{type(self).__name__} draws random feedback: pass generator=torch.Generator()"
            )
        for name, shape in shapes.items():
            like = self._above[name].weight
            if feedback is not None:
                matrix = feedback[name]
                if tuple(matrix.shape) != tuple(shape):
                    raise ValueError(
                        f"feedback of layer {name!r} must have shape {tuple(shape)}; "
                        f"got {tuple(matrix.shape)}"
                    )
                matrix = matrix.detach().clone()
            else:
                ordered = shape[::-1] if transpose else shape
                matrix = self._random(ordered, generator)
                matrix = matrix.t().contiguous() if transpose else matrix
            self.register_buffer(_buffer_name(name), matrix.to(like))

    def _random(self, shape: Sequence[int], generator: Generator | None) -> Tensor:
        """Drawn in the default precision, so that a seed means one matrix for any network.

        Orthonormal columns are wanted to the last bit of the widest.
        """
        dtype = torch.float64 if self._init == "orthogonal" else None
        return draw(shape, self._init, scale=self._scale, generator=generator, dtype=dtype)

    def _buffer(self, name: str) -> Tensor:
        buffer = self._buffers[_buffer_name(name)]
        assert buffer is not None
        return buffer

    @property
    def feedback(self) -> dict[str, Tensor]:
        return {name: self._matrix(name) for name in self._above}


class FA(_Transported):
    r"""Feedback alignment, :math:`B_{l+1}^T \delta_{l+1}` with fixed random :math:`B_{l+1}`.

    ``feedback[l]`` has the shape of the weight above layer l, which it replaces.

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> FA(mlp([4, 3, 2], generator=g), generator=g).feedback["0"].shape
        torch.Size([2, 3])
    """


class USF(_Transported):
    r"""Uniform sign-concordant feedback, :math:`B = s\,\mathrm{sign}(W)`.

    :math:`s = \sqrt{2/(\text{fan-in} + \text{fan-out})}` times ``scale``, the root mean square of
    Xavier weights (Liao, Leibo & Poggio 2016; the factor as in BioTorch).
    """

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        Rule._draw(self, generator, feedback)

    def _matrix(self, name: str) -> Tensor:
        weight = self._above[name].weight.detach()
        receptive = math.prod(weight.shape[2:])
        s = math.sqrt(2 / ((weight.shape[0] + weight.shape[1]) * receptive))
        return weight.sign() * (s * self._scale)


class FRSF(_Transported):
    r"""Fixed random-magnitude sign-concordant feedback, :math:`B = |R| \circ \mathrm{sign}(W)`.

    R is drawn once, Xavier-uniform by default (Liao, Leibo & Poggio 2016).
    """

    default_init = "xavier_uniform"

    def _matrix(self, name: str) -> Tensor:
        return self._buffer(name).abs() * self._above[name].weight.detach().sign()


class BRSF(FRSF):
    r"""Batch-wise random-magnitude sign-concordant feedback: R is drawn anew for every update.

    Measuring uses the last R and draws nothing. The state of the rule's own generator, seeded from
    ``generator``, is part of ``state_dict``.
    """

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        super()._draw(generator, feedback)
        seed = 0
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
        self._magnitudes = torch.Generator().manual_seed(seed)

    def _refresh(self) -> None:
        for name in self._above:
            buffer = self._buffer(name)
            buffer.copy_(self._random(buffer.shape, self._magnitudes))

    def get_extra_state(self) -> Tensor:
        return self._magnitudes.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self._magnitudes.set_state(state.cpu())


class KolenPollack(_Transported):
    r"""Kolen-Pollack learning: B takes the same steps as W, whatever the optimizer.

    Equal steps keep :math:`D = B - W` constant, so the rule stores D and sends
    :math:`B = W + D`. Weight decay on both (Akrout et al. 2019) shrinks D: ``decay`` is the
    factor's distance from one at each update (learning rate times weight decay).

    Args:
        decay: D is multiplied by (1 - decay) after every update.
    """

    def __init__(self, net: nn.Module, *, decay: float = 0.0, **options: Any) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1]; got {decay}")
        super().__init__(net, **options)
        self._decay = decay

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        super()._draw(generator, feedback)
        for name, above in self._above.items():
            self._buffer(name).sub_(above.weight.detach())

    def _settle(self) -> None:
        if self._decay:
            for name in self._above:
                self._buffer(name).mul_(1 - self._decay)

    def _matrix(self, name: str) -> Tensor:
        return self._above[name].weight.detach() + self._buffer(name)


class DFA(_Transported):
    r"""Direct feedback alignment, :math:`F_l e` with fixed random :math:`F_l` of shape (n_l, n_L).

    Example:
        >>> from fabook.networks import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = DFA(mlp([4, 3, 5, 2], generator=g), generator=g)
        >>> [tuple(f.shape) for f in rule.feedback.values()]
        [(3, 2), (5, 2)]
    """

    def _draw(self, generator: Generator | None, feedback: Mapping[str, Tensor] | None) -> None:
        n_top = self._weights[-1].weight.shape[0]
        if isinstance(self._weights[-1], nn.Conv2d):
            raise _refuse(
                self.layers[-1], self._weights[-1], "is a convolution at the top of a direct rule"
            )
        shapes = {name: (size, n_top) for name, size in self._sizes().items()}
        self._register(shapes, generator, feedback, transpose=True)

    def _sizes(self) -> dict[str, int]:
        """Number of units that receive a signal, by layer."""
        if self._input_shape is not None:
            return self._sizes_by_trial()
        for name, above in self._above.items():
            if isinstance(above, nn.Conv2d):
                raise ValueError(
                    f"{type(self).__name__} sends to the image above layer {name!r}: pass "
                    "input_shape=(channels, height, width) so that its size is known"
                )
        return {name: above.weight.shape[1] for name, above in self._above.items()}

    def _sizes_by_trial(self) -> dict[str, int]:
        """Sizes seen by one input of zeros on the meta device, where nothing is computed."""
        assert self._input_shape is not None
        sizes: dict[str, int] = {}
        receivers = list(self._above)
        x = torch.zeros(1, *self._input_shape, device="meta", dtype=self._weights[-1].weight.dtype)
        with torch.no_grad():
            for _, module in self._stack:
                if _is_weight_layer(module) and module is not self._weights[0]:
                    sizes[receivers.pop(0)] = x[0].numel()
                try:
                    x = copy.deepcopy(module).to("meta").eval()(x)
                except RuntimeError as error:
                    raise ValueError(
                        f"input_shape {tuple(self._input_shape)} does not fit: {error}"
                    ) from None
        return sizes

    def _send(self, name: str, delta: Tensor, h: Tensor, top: Tensor) -> Tensor:
        signal = top @ self._buffer(name).t()
        if signal.numel() != h.numel():
            raise ValueError(
                f"{type(self).__name__} cannot send {tuple(signal.shape)} to layer {name!r}, whose "
                f"output enters the next layer as {tuple(h.shape)}; pass input_shape"
            )
        return signal.reshape(h.shape)


class DRTP(DFA):
    r"""Direct random target projection, :math:`F_l y^*`: the target in place of the error.

    The one-hot label (or the real-valued target) keeps the factor that the loss puts on the error:
    1/n for ``cross_entropy`` and 2/(n n_L) for ``mse`` with ``mean``, 1 and 2 with ``sum``.
    The sign is that of Frenkel, Lefebvre & Bol (2021): :math:`+F_l y^*` stands in the gradient.
    """

    def _sent_from_top(self, error: Tensor, target: Tensor, loss: Loss, reduction: str) -> Tensor:
        if callable(loss):
            raise ValueError(f"DRTP needs a loss by name, one of {', '.join(LOSSES)}")
        if loss == "cross_entropy" and not target.is_floating_point():
            target = F.one_hot(target.long(), error.shape[-1]).to(error)
        samples = target.numel() if loss == "mse" else target.numel() // target.shape[-1]
        factor = 2.0 if loss == "mse" else 1.0
        return target.to(error) * (factor / samples if reduction == "mean" else factor)


class Shallow(Rule):
    """Only the read-out learns: hidden layers get zero (the reference every rule must beat)."""

    def _send(self, name: str, delta: Tensor, h: Tensor, top: Tensor) -> Tensor:
        return torch.zeros_like(h)


RULES: dict[str, type[Rule]] = {
    "BP": BP,
    "FA": FA,
    "DFA": DFA,
    "uSF": USF,
    "frSF": FRSF,
    "brSF": BRSF,
    "KP": KolenPollack,
    "DRTP": DRTP,
    "Shallow": Shallow,
}
