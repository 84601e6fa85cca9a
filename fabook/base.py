r"""What a rule is: a formula, bound to a network, that says which error arrives at each layer.

A network that is a stack takes the written-out path (:mod:`fabook.stack`), any other the graph of
autograd (:mod:`fabook.graph`). The formula is the same for both; formulas are in
:mod:`fabook.rules`.

Internal: of this module only :class:`Rule` is promised to stay.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor, nn

from ._checks import HOW, choose
from .graph import (
    Cuts,
    Transported,
    block_shapes,
    check_module,
    default_places,
    makes_maps,
    sent_whole,
)
from .losses import Loss, output_error
from .networks import INITS, draw
from .stack import Signal, Stack, UnsupportedModule, is_hooked, measuring, refuse, rows

LAWS = ("weight", "feedback", "product")
_LABELS: weakref.WeakValueDictionary[str, type[Rule]] = weakref.WeakValueDictionary()


class _Paths:
    """The ways through one network, and what of it an optimizer has to step.

    Nothing of it travels: the rule that arrives elsewhere binds its own network.
    """

    def __init__(self, net: nn.Module, *, cut: bool) -> None:
        self.stack: Stack | None = None
        self.graph: Transported | Cuts | None = None
        self.steps: dict[str, tuple[list[tuple[Tensor, int]], list[Tensor]]] = {}
        self.looks = 8  # updates in which the numbers of W and B are compared as well
        self.workspaces: dict[Any, Tensor] = {}
        self.why = "the network was cut into blocks"
        if not cut:
            try:
                self.stack = Stack(net)
            except UnsupportedModule as refusal:
                self.why = str(refusal)

    def workspace(self, kind: Any, like: Tensor) -> Tensor:
        """A tensor as large as another, kept from step to step."""
        key = kind, like.shape, like.dtype, like.device
        if key not in self.workspaces:
            with torch.inference_mode(False):  # else no later step could write there
                self.workspaces[key] = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        return self.workspaces[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


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

    On an ``nn.Sequential`` (nested ones too) with ``nn.Linear`` and ``nn.Conv2d`` layers feedback
    is named by the layer that receives the signal. On any other network a rule of the weights has a
    B for each parameter of two axes or more, by the parameter's name, and puts it wherever the
    graph keeps that parameter as a weight. A row of an ``nn.Embedding`` is data, whatever it is
    used for; what is computed from a frozen weight is noticed at the first update alone. A rule
    with a :meth:`send` of its own cuts the network into blocks and is named by the block that
    receives. Blocks run once in a pass and have one path between them.

    Example:
        >>> import fabook
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = fabook.DFA(fabook.mlp([4, 3, 2], generator=g), generator=g)
        >>> rule.receivers, rule.feedback["0"].shape  # F_1: from two outputs to three hidden units
        (['0'], torch.Size([3, 2]))
        >>> loss = rule.sgd_step(torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]), 0.1)
        >>> loss.shape
        torch.Size([])

    Args:
        net: any module.
        generator: CPU generator for the feedback, such as ``torch.Generator().manual_seed(0)``;
            rules without random feedback ignore it.
        init: distribution of the feedback, a name of :func:`fabook.networks.draw`. The fan-in is
            that of the weight replaced; for direct feedback ``(n_l, n_L)`` it is $n_l$.
        scale: factor on the feedback.
        feedback: given matrices instead of random ones, by name of the receiving layer.
        input_shape: shape of one input without the batch axis; direct rules need it where the
            signal arrives at an image.
        blocks: names of modules behind each of which a direct rule cuts the network; what is above
            the last one gets its true gradient. By default the children that hold weights, those
            of an ``nn.Sequential`` or ``nn.ModuleList`` one by one, with a cut before each but the
            first.
        example: a batch of inputs (a tuple for several), for direct rules on a network that is no
            stack: run once, in evaluation mode, to see the blocks' order and size.

    Raises:
        UnsupportedModule: names a module that the rule cannot place; on a network that is no stack
            what cannot be placed is seen, and named, at the first update.
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
    ) -> None:
        super().__init_subclass__()
        cls.law = law if law is None else choose("law", law, LAWS)
        cls.label, cls.colour = label or cls.__name__, colour
        _LABELS[cls.label] = cls  # the newest of a label: a notebook's cell may run again
        cls.linear, cls.fixed = linear or fixed, fixed
        if cls.__doc__ and "Args:" not in cls.__doc__:
            shared = (inspect.getdoc(Rule) or "").partition("\nArgs:")
            cls.__doc__ = inspect.cleandoc(cls.__doc__) + "\n" + "".join(shared[1:])
        own = {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}
        if own.pop("options", None):  # passed on: help shows the names
            rest = inspect.signature(Rule.__init__).parameters
            own |= {k: p for k, p in rest.items() if k != "self" and k not in own}
        setattr(cls, "__signature__", inspect.Signature([*own.values()]))  # noqa: B010

    def __new__(cls, *args: Any, **kwargs: Any) -> Rule:
        """Say what to write where a generator or a seed is given as other libraries take it."""
        if len(args) > 1 or "seed" in kwargs:
            raise TypeError(f"{cls.__name__} takes the network, then keywords: {HOW}")
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
        blocks: Sequence[str] | None = None,
        example: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, made already; got {net!r}")
        if generator is not None and not isinstance(generator, Generator):
            raise TypeError(f"generator must be a torch.Generator; got {generator!r}: write {HOW}")
        self.net = net
        self._init = choose("init", init or self.default_init, INITS)
        self._scale, self._drawn_in = scale, torch.get_default_dtype()
        self._input_shape = input_shape
        if input_shape is None and isinstance(example, Tensor):
            self._input_shape = example.shape[1:]
        self._places: dict[str, tuple[str, bool]] | None = None  # cuts, on the graph
        self._bound: _Paths | None = _Paths(net, cut=blocks is not None)
        if self._stack is None:
            self._check_blocks(blocks, example)
        self._bind(generator, feedback, example)
        if self._stack is None:
            self.graph.check()

    # what a rule defines

    def matrix(self, layer: str) -> Tensor:
        """The feedback below which ``layer`` lies: in W's place, or (n_l, n_L) for direct rules."""
        raise NotImplementedError(f"{type(self).__name__} has no formula for the signal")

    def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor | None:
        """The signal at h_l for ``layer``: by default delta_{l+1}, pulled through the matrix.

        Args:
            layer: name of the receiving layer.
            delta: error signal at the output of the layer above; empty, and on the meta device,
                where the network is cut into blocks, as nothing passes between these.
            top: what the top sends, the output error unless ``from_top`` says otherwise. Neither
                may be written to.

        Returns:
            A tensor as large as h_l, or None if nothing arrives and no layer from here down learns.
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
        if self._places is not None:
            raise self._pulls()
        if self._stack is None:
            return self.net.get_parameter(layer).detach()
        weight: Tensor = self._stack.above[layer].weight.detach()
        return weight

    def drawn(self, layer: str) -> Tensor:
        """The matrix of ``layer`` that the rule holds."""
        held = self._held().get(_key(layer))
        if held is None:
            raise KeyError(f"no feedback arrives at {layer!r}; there is some for {self.receivers}")
        matrix: Tensor = held.detach()
        return matrix

    def pull(self, matrix: Tensor, delta: Tensor) -> Tensor:
        """W^T delta with ``matrix`` in W's place, through the layer that the error has reached."""
        if self._stack is None or not delta.numel():
            raise self._pulls()
        return self._stack.pull(matrix, delta)

    def _pulls(self) -> UnsupportedModule:
        return UnsupportedModule(
            f"{type(self).__name__}.send pulls the error through the layer above: this takes "
            "rule.backward(x, target) on a stack of layers"
        )

    # what a rule is

    @property
    def stack(self) -> Stack:
        """The network as a list of layers.

        Raises:
            UnsupportedModule: the network is no such list; says why.
        """
        if self._stack is None:
            raise UnsupportedModule(f"this needs a stack of layers: {self._paths.why}")
        return self._stack

    @property
    def is_stack(self) -> bool:
        """Whether the network is a stack, so that the rule takes the written-out path."""
        return self._stack is not None

    @property
    def layers(self) -> list[str]:
        """Names of a stack's weight layers, bottom to top."""
        return self.stack.layers

    @property
    def receivers(self) -> list[str]:
        """Names of what has a matrix, bottom to top (hidden layers, weights or blocks)."""
        if self._stack is not None:
            return list(self._stack.above)
        return list(_matrices(self.net)) if self._places is None else list(self._places)

    @property
    def carriers(self) -> list[str]:
        """Weights through which the rule was seen to send an error, where there is no stack.

        Raises:
            ValueError: nothing was seen yet, or the rule sends past the weights.
        """
        graph = self.graph
        if not isinstance(graph, Transported):
            raise ValueError(
                f"{type(self).__name__} sends to blocks, past the weights between them: no product "
                "of its matrices stands for a weight"
            )
        if not graph.seen:
            raise ValueError(
                "which weights hand the error down is seen in an update: call "
                "rule.backward(x, target)"
            )
        return [name for name in self.receivers if name in graph.carriers]

    def hidden(self, x: Any) -> list[str]:
        """What learns from a signal of the rule: a stack's hidden layers, else names of weights.

        The weight that acts last is left out, and what is above the last cut of a direct rule.
        """
        if self._stack is not None:
            return self._stack.layers[:-1]
        with measuring(self.net), torch.enable_grad():
            inputs = x if isinstance(x, tuple) else (x,)
            output = self._attached(inputs, {}, lambda error: error)
        return self.graph.below(output, _matrices(self.net))

    @property
    def feedback(self) -> dict[str, Tensor]:
        """Feedback matrices in use, by name of the receiver, bottom to top."""
        return {name: self.matrix(name) for name in self.receivers}

    def extra_repr(self) -> str:
        lines = [f"layers: {', '.join(map(repr, self.layers))}"] if self.is_stack else []
        if found := self.feedback:
            shapes = ", ".join(f"{name!r} {tuple(b.shape)}" for name, b in found.items())
            lines.append(f"feedback: {shapes}")
        return "\n".join(lines)

    # feedback and state

    def _held(self) -> dict[str, Any]:
        return self._parameters if self.learns else self._buffers

    def _held_parameters(self) -> list[nn.Parameter]:
        return [p for p in self._parameters.values() if p is not None]

    def _check_blocks(self, blocks: Sequence[str] | None, example: Any) -> None:
        """What can be known of a network that is no stack before it runs."""
        check_module(self.net)
        if self._cuts:
            self._places = default_places(self.net, blocks, example)
        elif blocks is not None:
            raise ValueError(
                f"{type(self).__name__} goes down through every weight and takes no blocks"
            )

    @property
    def _paths(self) -> _Paths:
        if self._bound is None:  # in another process, or copied
            self._bound = _Paths(self.net, cut=self._places is not None)
        return self._bound

    @property
    def _stack(self) -> Stack | None:
        return self._paths.stack

    @property
    def graph(self) -> Transported | Cuts:
        """The rule on autograd's graph of any network, as :meth:`forward` uses it."""
        if self._paths.graph is None:
            self._paths.graph = self._make_graph()
        return self._paths.graph

    @property
    def _cuts(self) -> bool:
        """Whether the signal jumps, so that the graph is cut."""
        own = type(self).send is not Rule.send
        if own and self.draws and not self.direct:
            raise UnsupportedModule(
                f"{type(self).__name__}.send changes the error on its way through weights: this "
                "takes rule.backward(x, target) on a stack of layers"
                + ("" if self._stack else f"; {self._paths.why}")
            )
        return own

    @property
    def _on_graph(self) -> bool:
        """Whether an update goes by the graph: no stack, or one in mixed precision."""
        return self._stack is None or torch.is_autocast_enabled(self._home.device.type)

    def _make_graph(self) -> Transported | Cuts:
        stack = self._stack
        if self._cuts:
            if stack is None:
                return Cuts(self.net, self._places or {})
            pairs = itertools.pairwise(stack.layers)
            return Cuts(self.net, {lower: (upper, True) for lower, upper in pairs})
        weights = _matrices(self.net)
        if stack is not None:
            weights = {name: layer.weight for name, layer in stack.above.items()}
        if vars(type(self)).get("_is_true"):
            weights = {}  # nothing is replaced
        held = dict(zip(weights, self._held_parameters())) if self.learns else {}
        return Transported(self.net, weights, self.matrix, held)

    def _bind(
        self, generator: Generator | None, feedback: Mapping[str, Tensor] | None, example: Any
    ) -> None:
        """Draw the feedback, or take what is given."""
        if not self.draws:
            if feedback:
                raise ValueError(f"{type(self).__name__} takes no feedback matrices")
            return
        shapes = self._shapes(example)
        if feedback is not None and (not isinstance(feedback, Mapping) or {*feedback} != {*shapes}):
            got = list(feedback) if isinstance(feedback, Mapping) else type(feedback).__name__
            raise ValueError(
                f"feedback must map names to matrices, given for {list(shapes)}; got {got}"
            )
        if feedback is None and generator is None and shapes:
            raise ValueError(f"{type(self).__name__} draws random feedback: pass {HOW}")
        for name, shape in shapes.items():
            if feedback is None:
                matrix = self._random(shape, generator)
            else:
                matrix = torch.as_tensor(feedback[name]).detach().clone()
                if tuple(matrix.shape) != shape:
                    raise ValueError(
                        f"feedback of layer {name!r} must have shape {shape}; "
                        f"got {tuple(matrix.shape)}"
                    )
            matrix = matrix.to(self._home if self.direct else self.weight(name))
            if self.learns:
                self.register_parameter(_key(name), nn.Parameter(matrix))
            else:
                self.register_buffer(_key(name), matrix)

    @property
    def _home(self) -> Tensor:
        """A parameter whose device and precision are the network's."""
        if self._stack is not None:
            top: Any = self._stack.top
            return cast(Tensor, top.weight)
        return next(p for p in self.net.parameters() if p.is_floating_point())

    def _shapes(self, example: Any) -> dict[str, tuple[int, ...]]:
        stack = self._stack
        if not self.direct:
            return {name: tuple(self.weight(name).shape) for name in self.receivers}
        if stack is None:
            if example is None:
                raise ValueError(
                    f"{type(self).__name__} cuts this network into blocks and must see their size: "
                    "pass example=x, a batch of inputs"
                )
            assert isinstance(self.graph, Cuts)
            return dict(block_shapes(self.graph, example))
        top: Any = stack.top
        if isinstance(top, nn.Conv2d):
            raise refuse(stack.layers[-1], top, "is a convolution at the top of a direct rule")
        sizes = stack.sizes(type(self).__name__, self._input_shape)
        return {name: (size, top.weight.shape[0]) for name, size in sizes.items()}

    def workspace(self, layer: str) -> Tensor | None:
        """Memory in which ``matrix(layer)`` may be formed, for ``out=``; None for new memory.

        While a step goes down a stack, nobody but :meth:`pull` sees the matrix of a class that says
        so itself (``_reuses``), so that one piece of memory serves all layers of a shape and all
        steps. What derives from it may keep the matrix, and gets new memory.
        """
        stack = self._stack
        if stack is None or not stack.walking or not vars(type(self)).get("_reuses"):
            return None
        return self._paths.workspace("matrix", self.weight(layer))

    def _random(
        self, shape: tuple[int, ...], generator: Generator | None, out: Tensor | None = None
    ) -> Tensor:
        """Drawn in the default precision, so that a seed means one matrix for any network.

        Orthonormal columns are wanted to the last bit of the widest.
        """
        dtype = torch.float64 if self._init == "orthogonal" else self._drawn_in
        ordered = shape[::-1] if self.direct else shape
        options: dict[str, Any] = {"scale": self._scale, "generator": generator, "dtype": dtype}
        if out is not None and out.dtype == dtype and out.is_contiguous() and not self.direct:
            return draw(ordered, self._init, out=out, **options)
        drawn = draw(ordered, self._init, **options)
        return drawn.t().contiguous() if self.direct else drawn

    def get_extra_state(self) -> dict[str, Any]:
        """What the state belongs to; part of ``state_dict``."""
        return {"rule": self.label, "settings": self._settings()}

    def _settings(self) -> dict[str, Any]:
        """What the formula takes beside the matrices that are held."""
        return {}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore; rules with more state add to it."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if isinstance(state, Mapping) and state.get("rule") != self.label:
            raise ValueError(f"the state is of rule {state.get('rule')}; this rule is {self.label}")
        own = self._settings()
        if isinstance(state, Mapping) and (given := state.get("settings", own)) != own:
            raise ValueError(
                f"the state is of a rule made with {given}, this one was made with {own}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._paths.steps = {}

    def _apply(self, fn: Any, recurse: bool = True) -> Rule:
        if self._stack is not None:
            self._stack.check_unchanged()
        super()._apply(fn, recurse)
        if self._stack is not None:
            self._stack.watch()  # moving a network may give it new parameters
        self._paths.graph, self._paths.steps, self._paths.workspaces = None, {}, {}
        return self

    # measuring and learning

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """The network's output; with gradients enabled, an output whose graph is the rule.

        Each such call is an update: ``criterion(rule(x), y).backward()`` adds to ``.grad`` what
        :meth:`backward` writes. What a loss takes must be in the output: a tensor that the network
        only keeps as an attribute has a graph of its own, on which the rule is not.

        Raises:
            UnsupportedModule: names a parameter and the node where no feedback can be placed, or
                an output in which there is no tensor.
            ValueError: the rule sends the target, which only :meth:`backward` has.
        """
        if not torch.is_grad_enabled():
            return self.net(*inputs, **keywords)
        if type(self).from_top is not Rule.from_top:
            raise ValueError(f"{type(self).__name__} sends the target: rule.backward(x, target)")
        self._check_followed()
        self.refresh()
        output = self._attached(inputs, keywords, lambda error: error)
        self._note_versions(written=False)
        return output

    def _attached(
        self, inputs: Sequence[Any], keywords: Mapping[str, Any], top: Callable[[Tensor], Tensor]
    ) -> Any:
        """The network's output with the rule as its graph."""
        self._check_homes()
        if self._stack is not None:
            self._stack.check_unchanged()
        graph = self.graph
        if isinstance(graph, Transported):
            return graph(inputs, keywords)
        return graph(inputs, keywords, top, self._signal)

    def _signal(self, block: str, sent: Tensor, h: Tensor) -> Tensor | None:
        """What arrives at a cut: position by position, or for a whole sample at once."""
        whole = sent_whole(self.net, h, sent)
        if whole and h.shape[0] != sent.shape[0]:
            raise ValueError(
                f"block {block!r} gives {tuple(h.shape)} and the network {tuple(sent.shape)}: the "
                "batch must be the first axis of both"
            )
        sent = sent.to(self._home.dtype)  # the loss may have been taken in half precision
        empty = sent.new_empty(0, device="meta")  # else its norm, say, would be a number: zero
        found = self.send(block, empty, sent.flatten(1) if whole else sent)
        if found is not None and found.numel() != h.numel():
            raise ValueError(
                f"block {block!r} gives {tuple(h.shape)}, for which the rule has a signal of "
                f"{tuple(found.shape)}: the example given to the rule had another shape"
            )
        return None if found is None else found.reshape(h.shape)

    def _error(
        self, output: Any, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Tensor]:
        """Loss and output error, with the classes on the last axis or, of maps, on axis 1.

        Maps come from a convolution at the top of a stack; elsewhere the target says so.
        """
        if not isinstance(output, Tensor):
            raise UnsupportedModule(
                f"the network returns {type(output).__name__}, no tensor: use rule(x) and a loss"
            )
        if output.ndim < 3 or loss not in ("cross_entropy", "bce"):
            return output_error(output, target, loss, reduction)
        top = None if self._stack is None else self._stack.top
        if not (self._is_map(output, target, loss) if top is None else isinstance(top, nn.Conv2d)):
            return output_error(output, target, loss, reduction)
        target = target.movedim(1, -1) if target.shape == output.shape else target
        value, error = output_error(output.movedim(1, -1), target, loss, reduction)
        return value, error.movedim(-1, 1)

    def _is_map(self, output: Tensor, target: Tensor, loss: Loss) -> bool:
        """Whether the classes are on axis 1, where labels have no axis and probabilities add up.

        A network without convolutions makes no maps: where both axes fit, they are on the last.
        """
        if target.shape != output.shape:
            last = target.shape == output.shape[:-1]
            first = target.shape == output.shape[:1] + output.shape[2:] or not last
        elif loss == "bce" or not target.is_floating_point():
            return False  # each number by itself; or no target at all
        else:
            sums = [target.float().sum(axis) for axis in (-1, 1)]
            last, first = (bool(((s == 0) | ((s - 1).abs() < 0.01)).all()) for s in sums)
            if first and not last and type(self).from_top is not Rule.from_top:
                raise ValueError(f"{type(self).__name__} sends probabilities of the last axis only")
        if last == first:
            if not makes_maps(self.net):
                return False
            raise ValueError(
                f"a target {tuple(target.shape)} of outputs {tuple(output.shape)} does not say "
                "whether the classes are on the last axis or on axis 1: give probabilities that "
                "add up to one there alone, or take rule(x) and a loss of your own"
            )
        return first

    def _through_graph(
        self, x: Any, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, output and its error, ready for the way down."""
        inputs = x if isinstance(x, tuple) else (x,)
        with torch.enable_grad():
            output = self._attached(
                inputs, {}, lambda error: self.from_top(error, target, loss, reduction)
            )
        value, error = self._error(output, target, loss, reduction)
        return value, output, error.to(output.dtype)

    def _check_homes(self) -> None:
        if not self._held():
            return
        home = self._home.device, self._home.dtype
        for matrix in self._held().values():
            if matrix is not None and (matrix.device, matrix.dtype) != home:
                raise ValueError(
                    f"feedback is {matrix.dtype} on {matrix.device}, the network {home[1]} "
                    f"on {home[0]}: move both with rule.to(...)"
                )

    def _start(
        self, x: Tensor, target: Tensor, loss: Loss, reduction: str, *, updating: bool
    ) -> tuple[Tensor, Iterator[Signal]]:
        """Loss and signals; unless ``updating``, everything stays as it is."""
        stack = self.stack
        stack.check_unchanged()
        for p in (*stack.parameters, *self._held_parameters()):
            if is_hooked(p):
                name = next(name for name, each in self.named_parameters() if each is p)
                raise RuntimeError(
                    f"hooks on parameter {name!r} would not run: take rule(x) and your own loss's "
                    "backward(), or make the rule again"
                )
        self._check_homes()
        if x.shape[:1] == (0,):
            raise ValueError(f"x: the batch holds no samples; got {tuple(x.shape)}")
        if updating:
            self.refresh()
            output, tape = stack.forward(x)
        else:
            with measuring(self.net):
                output, tape = stack.forward(x)
        value, error = self._error(output, target, loss, reduction)

        def at_top(signal: Tensor) -> Tensor:
            return self.from_top(signal, target, loss, reduction)

        return value, stack.walk(self.send, error, at_top, tape, updating=updating)

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
        """Yield (layer, error signal at its output, input) for each weight layer: :meth:`trace`."""
        for s in self.trace(x, target, loss=loss, reduction=reduction):
            if s.is_weight_layer:
                yield s.module, s.error, s.input

    def _updates(
        self, x: Tensor, target: Tensor, loss: Loss, reduction: str
    ) -> tuple[Tensor, Iterator[tuple[Signal, str, nn.Parameter, nn.Parameter | None]]]:
        """Loss, and every parameter that learns: its signal, name, and feedback that follows it."""
        value, signals = self._start(x, target, loss, reduction, updating=True)
        names = dict(zip(self.layers[1:], self.layers[:-1], strict=True)) if self.learns else {}

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
        over ``rule.parameters()`` can take the step. What does not learn gets None. To accumulate
        over several batches use ``criterion(rule(x), target).backward()``, see :meth:`forward`.

        Args:
            x: (batch, ...) inputs.
            target: see :func:`fabook.losses.output_error`; where the top layer is a convolution,
                the classes of ``cross_entropy`` are on axis 1, as in ``F.cross_entropy``. Of a
                network that is no stack the target must say so, by its shape or by adding up to
                one.
            loss, reduction: see there.

        Returns:
            The loss before the step, 0-d, without graph.

        Raises:
            ValueError: see there; or feedback and network on different devices, or a target that
                does not say on which axis the classes are.
            RuntimeError: the network was changed, has hooks on parameters that would not run, or
                the optimizer leaves feedback out that learns.
        """
        self._check_followed()
        if self._on_graph:
            return self._backward_through_graph(x, target, loss, reduction)
        value, updates = self._updates(x, target, loss, reduction)
        written = set()
        for s, key, parameter, held in updates:
            parameter.grad = s.gradient(key, parameter.grad)
            written.add(parameter)
            if held is not None:
                written.add(held)
                old = held.grad
                held.grad = parameter.grad.clone() if old is None else old.copy_(parameter.grad)
            del s
        for parameter in (*self.stack.parameters, *self._held_parameters()):
            if parameter not in written:
                parameter.grad = None
        self._note_versions(written=True)
        return value

    def _backward_through_graph(self, x: Any, target: Tensor, loss: Loss, reduction: str) -> Tensor:
        for parameter in (*self.net.parameters(), *self._held_parameters()):
            parameter.grad = None
        self.refresh()
        value, output, error = self._through_graph(x, target, loss, reduction)
        output.backward(error)
        self._note_versions(written=True)
        return value

    def _note_versions(self, *, written: bool) -> None:
        """Keep W and B and, where they are written, their gradients, with their versions.

        In the first updates some of their numbers too: a fused step counts as no version.
        """
        if self.learns:
            self._paths.looks = max(0, self._paths.looks - 1)
            for name, own in zip(self.receivers, self._held_parameters(), strict=True):
                above = self._stack and self._stack.above[name]
                weight = above.weight if above else self.net.get_parameter(name)
                both = (weight, own, weight.grad, own.grad) if written else (weight, own)
                few = [_few(t) for t in both[:2]] if self._paths.looks else []
                noted = [(t, t._version) for t in both if t is not None]
                self._paths.steps[name] = noted, few

    def _check_followed(self) -> None:
        """What is done to W and its gradient and not to B would make another rule of this one."""
        for name, (noted, few) in self._paths.steps.items():
            weight, own, *grads = (t._version - version for t, version in noted)
            left = few and _is_left(*few, *(_few(t) for t, _ in noted[:2]))
            if left or (weight and not own):
                raise RuntimeError(
                    f"the weight of feedback {name!r} was stepped and its feedback was not: give "
                    "the optimizer rule.parameters(), which holds both"
                )
            if weight and (len(set(grads)) > 1 or _is_one_replaced(noted)):
                raise RuntimeError(
                    f"the gradient of feedback {name!r} was not changed as that of its weight was: "
                    "clip or scale those of rule.parameters(), which has both"
                )
        self._paths.steps = {}

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
        """Take one step of plain gradient descent in place.

        The same step as :meth:`backward` followed by ``torch.optim.SGD(lr)``. On a stack it is
        faster and stores no gradient; elsewhere ``.grad`` is used, and None afterwards.

        Args:
            x, target, loss, reduction: as in :meth:`backward`.
            lr: learning rate.

        Returns:
            The loss before the step, 0-d.
        """
        if self._on_graph:
            value = self._backward_through_graph(x, target, loss, reduction)
            for parameter in (*self.net.parameters(), *self._held_parameters()):
                if parameter.grad is not None and parameter.requires_grad:
                    parameter.sub_(parameter.grad, alpha=lr)
                    parameter.grad = None
            self._paths.steps = {}
            return value
        value, updates = self._updates(x, target, loss, reduction)
        for s, key, parameter, held in updates:
            linear = key == "weight" and s.is_weight_layer and isinstance(s.module, nn.Linear)
            if linear and held is None:
                parameter.addmm_(rows(s.error).t(), rows(s.input), alpha=-lr)
            else:
                step = s.gradient(key, self._paths.workspace("step", parameter) if linear else None)
                parameter.sub_(step, alpha=lr)
                if held is not None:
                    held.sub_(step, alpha=lr)
                del step
            del s
        self._paths.steps = {}
        return value

    @torch.no_grad()
    def gradients(
        self, x: Tensor, target: Tensor, *, loss: Loss = "cross_entropy", reduction: str = "mean"
    ) -> dict[str, Tensor]:
        """Return what :meth:`backward` would write into the network, by name, bottom to top.

        Zero where nothing arrives; what is frozen is left out, and nothing is drawn: brSF uses its
        last R. Nothing is written: ``.grad``, running statistics and random states stay as they
        are.
        """
        if self._on_graph:
            with measuring(self.net):
                _, output, error = self._through_graph(x, target, loss, reduction)
                own = {k: p for k, p in self.net.named_parameters() if p.requires_grad}
                grads = torch.autograd.grad(
                    output, list(own.values()), error, allow_unused=True, materialize_grads=True
                )
                return dict(zip(own, grads, strict=True))
        found = {
            id(parameter): s.gradient(key)
            for s in self.trace(x, target, loss=loss, reduction=reduction)
            for key, parameter in s.module.named_parameters()
            if parameter.requires_grad
        }
        return {k: found[id(p)] for k, p in self.net.named_parameters() if id(p) in found}


def rule_labels() -> dict[str, type[Rule]]:
    """Every rule that was defined, one's own as well, by label."""
    return dict(_LABELS)


def check_rule(rule: Any) -> None:
    """Refuse what is no rule, such as a network or the class of a rule."""
    if not isinstance(rule, Rule):
        got = rule.__name__ if isinstance(rule, type) else type(rule).__name__
        raise TypeError(f"rule must be a rule on its network, such as fabook.BP(net); got {got}")


def _key(layer: str) -> str:
    return "feedback_" + layer.replace(".", "/")  # names of buffers have no dots


def _is_one_replaced(noted: list[tuple[Tensor, int]]) -> bool:
    """Whether one of W and B, but not the other, has a gradient that is another tensor."""
    pairs = zip(noted[:2], noted[2:], strict=False)
    return len({p.grad is not grad for (p, _), (grad, _) in pairs if p.grad is not None}) > 1


def _few(tensor: Tensor) -> Tensor:
    """Some numbers of a tensor."""
    return tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 64)].clone()


def _is_left(w: Tensor, b: Tensor, w_now: Tensor, b_now: Tensor) -> bool:
    """Whether B is what it was to the bit while W took a step that B could not round away."""
    least = 10 * torch.finfo(b.dtype).eps * torch.linalg.vector_norm(b)
    return torch.equal(b, b_now) and bool(((w_now - w).abs() > least).any())


def _matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of two axes or more, by name: those through which an error may go down."""
    return {name: p for name, p in net.named_parameters() if p.ndim > 1}
