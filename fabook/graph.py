r"""A rule on any module: autograd that keeps another matrix, or a graph that is cut.

Backpropagation needs a weight W twice: forward, and on the way down in $W^T\delta$. For that
autograd keeps W in the graph. A transported rule (FA, uSF, frSF, brSF, Kolen-Pollack) puts B there,
in the same view in which W was kept. Skip connections, shared weights, attention, recurrent cells
and convolutions of any kind need nothing more, and whoever holds the loss calls ``backward()``.

A direct rule (DFA, DRTP, Shallow) cuts the graph behind each block and hands every block its
projection of the output error, as soon as this arrives at the output.

What cannot be placed is refused when it is first seen: every graph of a new structure is proven
before a matrix is put in it.

Internal: no name of this module is promised to stay.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .stack import UnsupportedModule, evaluating, measuring, unusable

Matrix = Callable[[str], Tensor]
Send = Callable[[str, Tensor, Tensor], Tensor | None]
Places = dict[str, tuple[str, bool]]
Plan = list[tuple[int, str, str]]
Doubt = tuple[int, str]

# autograd's nodes that are linear in two factors: (name of the kept factor, its input) for each
_FACTORS: dict[str, tuple[tuple[str, int], ...]] = {
    "MmBackward0": (("self", 0), ("mat2", 1)),
    "BmmBackward0": (("self", 0), ("mat2", 1)),
    "AddmmBackward0": (("mat1", 1), ("mat2", 2)),
    "BaddbmmBackward0": (("batch1", 1), ("batch2", 2)),
    "MvBackward0": (("self", 0), ("vec", 1)),
    "AddmvBackward0": (("mat", 1), ("vec", 2)),
    "LinearBackward0": (("input", 0), ("weight", 1)),
    "ConvolutionBackward0": (("input", 0), ("weight", 1)),
    "MkldnnRnnLayerBackward0": (("weight0", 1), ("weight1", 2)),
}
# the same for nodes in which several tensors of data may meet, by a part of their names
_SIDES = (("self", 0), ("other", 1))  # of a product of numbers
_MEETINGS = (
    ("ScaledDotProduct", (("query", 0), ("key", 1), ("value", 2))),
    ("TrilinearBackward", (("i1", 0), ("i2", 1), ("i3", 2))),
    ("CdistBackward", (("x1", 0), ("x2", 1))),
)
# the same numbers seen in another shape, or copied in another precision
_VIEWS = {
    f"{name}Backward{i}"
    for name in (
        "T Transpose View UnsafeView ReshapeAlias Expand Split SplitWithSizes Unsqueeze Squeeze "
        "Permute Select Slice Unbind ToCopy Clone Alias AsStrided Narrow Contiguous"
    ).split()
    for i in range(3)
} | {"_TwinBackward"}
# a weight in these is a gain or a table: the error passes by the node's own derivative
_LOCAL = ("LayerNorm", "BatchNorm", "GroupNorm", "RmsNorm", "EmbeddingBackward", "Prelu")
_REARRANGED = "as a rearranged copy, for which no feedback can be laid out: use a view"
_LOOKUPS = ("Index", "Gather")
# of what these are given, no number is used
_SHAPE_ALONE = re.compile(
    r"new_(empty|zeros|ones|full)\w*|(empty|zeros|ones|full)_like|fill_|zero_"
)
_SUMMED = ("EmbeddingBagBackward0", "DotBackward0", "LinalgVecdotBackward0")  # a gain is no gain


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)


def _replaced(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if type(tree) is dict:
        return {key: _replaced(value, change) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_replaced(value, change) for value in tree)
    if isinstance(tree, tuple) and (make := getattr(tree, "_make", None)):  # with names
        return make(_replaced(value, change) for value in tree)
    return tree


def _roots(output: Any) -> list[Any]:
    """Where the graph of an output begins, be its tensors attributes of an object."""
    found, seen, todo = [], set(), [output]
    while todo:
        tree = todo.pop()
        if isinstance(tree, Tensor):
            found += [] if tree.grad_fn is None else [tree.grad_fn]
        elif id(tree) not in seen and not isinstance(tree, type | nn.Module):
            seen.add(id(tree))
            if isinstance(tree, Mapping):
                todo += reversed([*tree.values()])
            elif isinstance(tree, list | tuple):
                todo += reversed(tree)
            else:
                todo += getattr(tree, "__dict__", {}).values()
    return found


def _ordered(roots: Sequence[Any]) -> dict[Any, int]:
    """Every node below ``roots`` with its place, those below a node before it."""
    order: dict[Any, int] = {}
    seen: set[Any] = set()
    todo = [(root, False) for root in roots]
    while todo:
        node, done = todo.pop()
        if done:
            order[node] = len(order)
        elif node not in seen:
            seen.add(node)
            todo.append((node, True))
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    todo.append((below, False))
    return order


def _source(node: Any) -> tuple[Any, bool]:
    """The node whose output ``node`` shows in another shape, and whether it was copied."""
    copied = False
    while node is not None and node.name() in _VIEWS:
        copied |= node.name().startswith(("ToCopy", "Clone", "Contiguous"))
        node = node.next_functions[0][0]
    return node, copied


def _rearranged(node: Any) -> bool:
    """Whether a clone was made of another layout, so that it need not have the weight's own."""
    cloned = False
    while node is not None and node.name() in _VIEWS:
        cloned |= node.name().startswith("Clone")
        if cloned and node.name().startswith(("TBack", "Transpose", "Permute", "AsStrided")):
            return True
        node = node.next_functions[0][0]
    return False


def _kept(node: Any) -> list[Tensor]:
    """The tensors that a node keeps for its way down."""
    found = [getattr(node, key) for key in dir(node) if key.startswith("_saved_")]
    return list(tensors([*found, *getattr(node, "saved_tensors", ())]))


def _is_seen(node: Any) -> bool:
    """Whether a node shows what it keeps: torch's own do, their names end in a number.

    A function of Python or C++ may keep a weight as it likes, a write into a part of a tensor
    (CopySlices) keeps the operator that wrote.
    """
    return node.name()[-1].isdigit() or node.name() == "CopyBackwards"


def _structure(order: Mapping[Any, int], leaf: Callable[[Any], str]) -> tuple[Any, ...]:
    """Names of nodes and what they lead to, equal for graphs of one structure."""
    return tuple(
        (node.name(), *[-1 if n is None else order[n] for n, _ in node.next_functions])
        if node.next_functions
        else (leaf(node),)
        for node in order
    )


def _hidden(structure: Sequence[tuple[Any, ...]]) -> list[tuple[int, str]]:
    """Factors to which no node leads, as (node's place, key)."""
    return [
        (index, key)
        for index, (name, *below) in enumerate(structure)
        for key, place in _FACTORS.get(name, ())
        if below[place] == -1
    ]


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's numbers; 0 if they are not in one place (sparse, nested)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory, in one layout."""
    places = [(t.storage_offset(), t.shape, t.stride()) for t in (one, other)]
    return places[0] == places[1] and _storage(one) == _storage(other)


def _is_part(kept: Tensor, weight: Tensor) -> bool:
    """Whether a tensor is a view into the memory of a weight."""
    if _storage(kept) != _storage(weight):
        return False
    first = kept.storage_offset() - weight.storage_offset()
    return 0 <= first <= sum((n - 1) * s for n, s in zip(weight.shape, weight.stride()))


def _same_numbers(kept: Tensor, weight: Tensor) -> bool:
    """Whether a copy holds all the weight's numbers in the weight's own layout.

    Of a copied part nobody could tell later which part it is.
    """
    if _storage(kept) == _storage(weight):
        return True
    if kept.layout != torch.strided:
        return False
    last = 1 + sum((n - 1) * s for n, s in zip(kept.shape, kept.stride()))
    if kept.storage_offset() + last > weight.numel() or kept.numel() != weight.numel():
        return False
    offset = kept.storage_offset() + weight.storage_offset()
    seen = weight.detach().as_strided(kept.shape, kept.stride(), offset)
    return torch.equal(kept, seen.to(kept.dtype))


def check_module(net: nn.Module) -> None:
    """Refuse a network whose graph cannot be read, or in which nothing would be replaced."""
    for name, module in net.named_modules():
        why = None
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or type(module).__name__ == "OptimizedModule":
            why = (
                "is compiled, so that its graph cannot be read: give the rule the module as it was "
                "before torch.compile"
            )
        elif isinstance(module, torch.jit.ScriptModule):
            why = "is scripted, so that its graph cannot be read"
        if why := why or unusable(module):
            raise UnsupportedModule(f"module {name!r} ({type(module).__name__}) {why}")
    if all(p.ndim < 2 for p in net.parameters()):
        raise UnsupportedModule("the network has no nn.Linear or nn.Conv2d layer, nor other matrix")


class _Bound:
    """A network under a rule: notices when its parameters are no longer the same ones."""

    def __init__(self, net: nn.Module) -> None:
        check_module(net)
        self.net = net
        self._ids = [id(p) for p in net.parameters()]
        self._names = {id(p): name for name, p in net.named_parameters()}

    def check(self) -> None:
        """Raise a RuntimeError if parameters were replaced since the rule was made."""
        if [id(p) for p in self.net.parameters()] != self._ids:
            now = {name for name, p in self.net.named_parameters() if id(p) not in self._names}
            raise RuntimeError(
                f"the network was changed after the rule was made (parameters {sorted(now)} are "
                "new, or some are gone): make the rule again"
            )


def _weights_in(root: Any, names: Mapping[int, str]) -> Iterator[str]:
    """Names of the parameters that a graph uses, what acts last at the end."""
    for node in _ordered([] if root is None else [root]):
        for below, _ in node.next_functions if node.name() not in _VIEWS else ():
            source, _ = _source(below)
            if (name := names.get(id(getattr(source, "variable", None)))) is not None:
                yield name


class _Twin(torch.autograd.Function):
    """A weight; its gradient goes to the weight and to the feedback that learns with it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, feedback: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, grad


class Transported(_Bound):
    """Puts B where autograd kept W, in the graph of any output of ``net``.

    Args:
        net: any module.
        weights: the parameters that have feedback, by its name.
        matrix: B of a name, of the shape of its weight; as long as it is the weight itself,
            nothing is replaced.
        learning: B as a parameter, by name, where it takes the gradient of its weight.

    Attributes:
        carriers: names of weights seen to hand the error down to something that learns.

    Raises:
        UnsupportedModule: names a compiled, scripted or uninitialised module; when called, a
            parameter for which no feedback can be placed, or an output without tensors.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: Mapping[str, Tensor],
        matrix: Matrix,
        learning: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(net)
        self.matrix = matrix
        self.weights: dict[str, Tensor] = {}
        self.learning: dict[str, Tensor] = {}
        self.carriers: set[str] = set()
        self._true, self._learning = dict(weights), learning or {}
        self._by_id: dict[int, str] = {}
        self._plans: dict[Any, tuple[list[tuple[int, str]], dict[Any, Plan]]] = {}
        self._find_replaced()

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
        """The network's output, whose graph is the rule."""
        self.check()
        self._find_replaced()
        leaves: list[Tensor] | None = None
        call, given = self._call(), (tuple(args), dict(kwargs or {}))
        context: Callable[[], Any] = ExitStack
        if self.weights and not self._plans and torch.is_grad_enabled():
            # the first time: data and frozen weights must be seen in the graph
            leaves, context = [], self._all_require_grad
            given = _replaced(given, lambda t: _shown(t, leaves))

        def run() -> Any:
            with context():
                return call(*given)

        output = run()
        roots = _roots(output) if self.weights else []
        if roots:
            self._place(roots, leaves, run)
        elif self.weights and torch.is_grad_enabled() and next(tensors(output), None) is None:
            self._refuse_output(output)
        return output

    def _refuse_output(self, output: Any) -> None:
        if any(p.requires_grad for p in self.net.parameters()):
            raise UnsupportedModule(
                f"the network returns {type(output).__name__}, in which no graph is seen: return "
                "tensors, in tuples, lists or mappings"
            )

    def _find_replaced(self) -> None:
        """A rule may begin with the weights themselves: what it replaces later is proven then."""
        for name, w in [*self._true.items()]:
            if not _is_same(self.matrix(name), w):
                self.weights[name] = self._true.pop(name)
                self._by_id[id(w)] = name
                if name in self._learning:
                    self.learning[name] = self._learning[name]
                self._plans.clear()

    @property
    def seen(self) -> bool:
        """Whether a graph of the network has been read."""
        return bool(self._plans)

    def below(self, output: Tensor, weights: Mapping[str, Tensor]) -> list[str]:
        """Names of the weights in the output's graph but for the one that acts last."""
        used = list(_weights_in(output.grad_fn, {id(w): name for name, w in weights.items()}))
        return [name for name in weights if name in used[:-1] and name != used[-1]]

    def _call(self) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
        """The network, with twins of the weights whose feedback learns."""
        learn = [(n, self.weights[n]) for n in self.learning if self.weights[n].requires_grad]
        if not learn or not torch.is_grad_enabled():
            return lambda args, kwargs: self.net(*args, **kwargs)
        twins = {self._names[id(w)]: _Twin.apply(w, self.learning[n]) for n, w in learn}
        return lambda args, kwargs: torch.func.functional_call(self.net, twins, args, kwargs)

    @contextmanager
    def _all_require_grad(self) -> Iterator[None]:
        frozen = [w for w in self.weights.values() if not w.requires_grad]
        for w in frozen:
            w.requires_grad_(True)
        try:
            yield
        finally:
            for w in frozen:
                w.requires_grad_(False)

    def _place(
        self, roots: Sequence[Any], leaves: Sequence[Tensor] | None, again: Callable[[], Any]
    ) -> None:
        order = _ordered(roots)
        nodes = list(order)
        structure = _structure(
            order, lambda n: self._by_id.get(id(getattr(n, "variable", None)), n.name())
        )
        kind = structure, bool(leaves)
        hidden, plans = self._plans.get(kind) or (_hidden(structure), {})
        unseen = self._unseen(nodes, hidden)
        plan = plans.get(named := tuple(unseen.items()))
        if plan is None:
            proof = _Proof(self, nodes, leaves, unseen)
            plan = proof.plan()
            if proof.doubts:
                self._settle(proof.doubts, nodes, again)
            self.carriers |= proof.carriers
            for known in (self._plans, plans):
                if len(known) > 64:  # recurrent networks have a graph for every length
                    known.clear()
            plans[named] = plan
            self._plans[kind] = hidden, plans
        sent: dict[tuple[str, torch.dtype], Tensor] = {}
        for index, key, name in plan:
            self._replace(nodes[index], key, name, sent)

    def _settle(
        self, doubts: Sequence[Doubt], nodes: Sequence[Any], again: Callable[[], Any]
    ) -> None:
        """Refuse factors that no node leads to if they were computed from weights.

        The network runs once more for it, and leaves no trace. Where it cannot, nothing is known.
        """
        try:
            with measuring(self.net), _Origins(self.weights, self.net.parameters()) as origins:
                others = list(_ordered(_roots(again())))
        except Exception:  # higher-order operators, modules that are compiled within
            return
        if [node.name() for node in others] != [node.name() for node in nodes]:
            return
        for index, key in doubts:
            name = origins.weight(getattr(others[index], f"_saved_{key}"))
            if name is not None:
                why = "which keeps what was computed from it without a graph: no feedback can take"
                raise self.refusal(name, nodes[index], f"{why} its place there")

    def _unseen(
        self, nodes: Sequence[Any], hidden: Sequence[tuple[int, str]]
    ) -> dict[tuple[int, str], str]:
        """Weights kept without gradient, detached or frozen and perhaps a copy, by place and key.

        They are named at every update, as the structure of the graph does not tell them apart.
        """
        stores: dict[int, list[str]] = {}
        frozen: dict[int, list[str]] = {}
        for name, w in self.weights.items() if hidden else ():
            stores.setdefault(_storage(w), []).append(name)
            if not w.requires_grad:
                frozen.setdefault(w.numel(), []).append(name)
        found = {}
        for index, key in hidden:
            if (kept := getattr(nodes[index], f"_saved_{key}")) is None:
                continue
            names = [n for n in stores.get(_storage(kept), ()) if _is_part(kept, self.weights[n])]
            if not names:
                alike = frozen.get(kept.numel(), ())
                names = [n for n in alike if _same_numbers(kept, self.weights[n])]
                if len(names) > 1:
                    other = self._names[id(self.weights[names[1]])]
                    why = f"as a copy that could be one of {other!r} as well: both are frozen and"
                    raise self.refusal(names[0], nodes[index], f"{why} equal")
            if names:
                found[index, key] = names[0]
        return found

    def _replace(
        self, node: Any, key: str, name: str, sent: dict[tuple[str, torch.dtype], Tensor]
    ) -> None:
        w, kept = self.weights[name], getattr(node, f"_saved_{key}")
        if kept is None:
            return  # the error goes no further than here
        if (name, kept.dtype) not in sent:
            b = self.matrix(name).to(kept.dtype)
            if b.stride() != w.stride() or b.device != w.device:  # laid out as W
                laid = torch.empty_strided(w.shape, w.stride(), dtype=b.dtype, device=w.device)
                b = laid.copy_(b)
            sent[name, kept.dtype] = b
        if kept.numel() != w.numel() and _storage(kept) != _storage(w):
            raise self.refusal(name, node, _REARRANGED)  # a part, where all was copied before
        b = sent[name, kept.dtype]
        start = w.storage_offset() if _storage(kept) == _storage(w) else 0
        offset = kept.storage_offset() - start + b.storage_offset()
        view = b.as_strided(kept.shape, kept.stride(), offset)
        try:
            getattr(node, f"_raw_saved_{key}").register_hooks(lambda _: None, lambda _: view)
        except RuntimeError:
            raise self.refusal(
                name,
                node,
                "which another hook already keeps (checkpointing, offloading, or a state carried "
                "over from an earlier call: detach it)",
            ) from None

    def refusal(self, name: str, node: Any, why: str) -> UnsupportedModule:
        parameter = self._names[id(self.weights[name])]
        return UnsupportedModule(f"parameter {parameter!r} is used by {node.name()}, {why}")


def _shown(tensor: Tensor, leaves: list[Tensor]) -> Tensor:
    """An input that the graph shows: a copy of a leaf that requires a gradient."""
    if not tensor.is_floating_point() or tensor.requires_grad or tensor.layout != torch.strided:
        leaves.extend([tensor] if tensor.requires_grad else [])
        return tensor
    leaves.append(tensor.detach().requires_grad_())
    return leaves[-1].clone(memory_format=torch.preserve_format)


class _Origins(TorchDispatchMode):
    """Which tensors are computed from weights and constants alone, be it without a graph.

    All that comes from elsewhere is taken for data: arguments, buffers, random numbers. Single
    numbers, as scales, do not count.

    Args:
        weights: by name.
        constants: further parameters.
    """

    def __init__(self, weights: Mapping[str, Tensor], constants: Iterable[Tensor]) -> None:
        super().__init__()
        self._weights = dict(weights)
        self._homes = {_storage(w) for w in weights.values()}
        # an address: the name of a weight, or None for a constant; no key for data
        self._names: dict[int, str | None] = {s: None for p in constants if (s := _storage(p))}
        self._held: list[Tensor] = []  # no other tensor gets an address that has a name

    def weight(self, tensor: Tensor) -> str | None:
        """The weight, or one of several, that a tensor is computed from; None if it is not."""
        names = self._of([tensor])
        return names[0] if names else None

    def _of(self, given: Iterable[Tensor]) -> list[str] | None:
        """The weights that tensors are computed from; None if there are data in them."""
        names = []
        for tensor in given:
            store = _storage(tensor)
            if store in self._homes:
                found = [n for n, w in self._weights.items() if _is_part(tensor, w)]
                if not found:
                    return None
                names.append(found[0])
            elif tensor.ndim and store not in self._names:
                return None
            elif (name := self._names.get(store)) is not None:
                names.append(name)
        return names

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        called, kwargs = func.overloadpacket.__name__, kwargs or {}
        written = [
            t for a, t in zip(func._schema.arguments, args) if (i := a.alias_info) and i.is_write
        ]
        names: list[str] | None = []
        if torch.Tag.nondeterministic_seeded in func.tags:
            names = None
        elif not _SHAPE_ALONE.fullmatch(called):
            names = self._of(tensors([args[called.endswith("copy_") :], kwargs]))
        result = func(*args, **kwargs)
        for made in tensors([result, written]):
            store = _storage(made)
            if store in self._homes or not store:
                continue
            if names is None:
                self._names.pop(store, None)
            else:
                self._names[store] = max(
                    names, key=lambda n: self._weights[n].numel(), default=None
                )
                self._held.append(made)
        return result


class _Proof:
    """That every weight of a graph is either replaced or does not carry the error down.

    Each node is classified: does it depend on data, and if not, on which weights? Where data meet
    something computed from weights alone, in a node that keeps tensors, the weight must be placed.

    Out of sight is what no graph shows: a row of a table (``nn.Embedding``) is data, also where it
    is used as a weight; what is computed from a frozen weight is seen in the first graph only, and
    from a detached one where a product, attention or a distance keeps it.
    """

    def __init__(
        self,
        owner: Transported,
        nodes: list[Any],
        leaves: Sequence[Tensor] | None,
        unseen: Mapping[tuple[int, str], str],
    ) -> None:
        self.owner, self.nodes, self.unseen = owner, nodes, unseen
        self.leaves = {id(leaf) for leaf in leaves or ()}
        self.all_shown = leaves is not None  # frozen weights too
        self.data: dict[Any, bool] = {}
        self.below: dict[Any, frozenset[str]] = {}  # weights that a node is computed from
        self.gate: dict[Any, frozenset[str]] = {}  # the same, but for W times a constant
        self.learns: dict[Any, bool] = {}  # whether something below takes a gradient
        self.carriers: set[str] = set()
        self.doubts: list[Doubt] = []
        self.sums = {n.next_functions[0][0]: n for n in nodes if n.name() == "SumBackward1"}

    def plan(self) -> Plan:
        """Where to put which feedback: (node's place, key of the kept factor, weight's name)."""
        self._classify(lambda n: self._is_leaf(n) or (not self.all_shown and self._is_fed(n)))
        if not any(self.data.values()):  # integers, or features from a part without gradients
            self._classify(self._is_first)
        if not any(self.data.values()):
            self._classify(lambda node: node.name().startswith(_LOOKUPS))
        if not any(self.data.values()):  # W x, with the weight first
            self._classify(self._is_second)
        self._hidden()
        found = []
        for index, node in enumerate(self.nodes):
            self._check_followed(node)
            placed = self._placed(index, node)
            self._check(node, {name for _, _, name in placed})
            found += placed
            self.doubts += self._doubts(index, node)
        return found

    def _check_followed(self, node: Any) -> None:
        """Feedback that learns has the gradient of its weight wherever this is used."""
        for below, _ in node.next_functions:
            name = self.owner._by_id.get(id(getattr(below, "variable", None)))
            if name not in self.owner.learning or node.name() == "_TwinBackward":
                continue
            if self.owner.weights[name].requires_grad:
                why = "not as the module's own attribute: feedback cannot learn with it"
                raise self.owner.refusal(name, node, why)

    def _is_leaf(self, node: Any) -> bool:
        variable = getattr(node, "variable", None)
        return id(variable) in self.leaves or node.name().startswith("Embedding")

    def _is_first(self, node: Any) -> bool:
        places = _FACTORS.get(node.name(), ())
        return len(places) == 2 and node.next_functions[places[0][1]][0] is None

    def _is_fed(self, node: Any) -> bool:
        """Whether a weight acts on what no other made, as on data that the graph does not show."""
        places = _FACTORS.get(node.name(), ())
        if not places:
            return False
        place = 0 if node.name().startswith("Mkldnn") else places[0][1]  # which has two weights
        below = node.next_functions[place][0]
        return below is None or all(self._is_gain(name) for name in self.below[below])

    def _is_gain(self, name: str) -> bool:
        return sum(n > 1 for n in self.owner.weights[name].shape) < 2

    def _is_second(self, node: Any) -> bool:
        places = _FACTORS.get(node.name(), ())
        return len(places) == 2 and node.next_functions[places[1][1]][0] is None

    def _is_turned(self, node: Any) -> bool:
        """Whether the second factor is not a weight's transpose, as it is in x W^T."""
        below = node.next_functions[_FACTORS[node.name()][1][1]][0]
        names = ("TBackward0", "TransposeBackward0")
        return node.name() != "ConvolutionBackward0" and (
            below is None or below.name() not in names
        )

    def _classify(self, is_data: Callable[[Any], bool]) -> None:
        for node in self.nodes:
            children = [n for n, _ in node.next_functions if n is not None]
            name = self.owner._by_id.get(id(getattr(node, "variable", None)))
            self.data[node] = is_data(node) or any(self.data[n] for n in children)
            own = frozenset() if name is None else frozenset({name})
            variable: Any = getattr(node, "variable", None)
            learns = id(variable) in self.owner._names and variable.requires_grad
            self.learns[node] = learns or any(self.learns[n] for n in children)
            alone = [n for n in children if not self.data[n]]
            self.below[node] = own.union(*(self.below[n] for n in alone))
            constant = self._is_first(node) and not self._is_turned(node)
            # W times a constant, as at the start of a recurrent cell, is a state and no weight
            self.gate[node] = own if constant else own.union(*(self.gate[n] for n in alone))

    def _hidden(self) -> None:
        """A function written in Python may hide weights that the graph does not show."""
        written = [n.name() for n in self.nodes if hasattr(n, "saved_tensors")]
        opaque = sorted(name for name in written if name not in _VIEWS)
        frozen_too = self.all_shown and "CheckpointFunctionBackward" in opaque
        shown = {id(getattr(node, "variable", None)) for node in self.nodes}
        for w in self.owner.weights.values():
            if opaque and (w.requires_grad or frozen_too) and id(w) not in shown:
                raise UnsupportedModule(
                    f"parameter {self.owner._names[id(w)]!r} is not in the graph and "
                    f"{opaque[0]} may hide it: without checkpointing, torch.compile or a function "
                    "of its own it could be placed"
                )

    def _placed(self, index: int, node: Any) -> Plan:
        found = []
        names = self._factors(index, node)
        for key, place in _FACTORS.get(node.name(), ()):
            name, below = names[key], node.next_functions[place][0]
            if name is None or (kept := getattr(node, f"_saved_{key}")) is None:
                continue
            copied = _source(below)[1]
            if copied and (_rearranged(below) or not _same_numbers(kept, self.owner.weights[name])):
                raise self.owner.refusal(name, node, _REARRANGED)
            others = [n for i, (n, _) in enumerate(node.next_functions) if i != place]
            if any(self.learns[n] and self.data[n] for n in others if n is not None):
                self.carriers.add(name)
            found.append((index, key, name))
        return found

    def _factors(self, index: int, node: Any) -> dict[str, str | None]:
        """The weight that each factor of a node is, but for one that a layer takes as its input."""
        names: dict[str, str | None] = {}
        for key, place in _FACTORS.get(node.name(), ()):
            source, _ = _source(node.next_functions[place][0])
            shown = self.owner._by_id.get(id(getattr(source, "variable", None)))
            names[key] = shown or self.unseen.get((index, key))
        if None in names.values() or len(names) < 2 or node.name().startswith("Mkldnn"):
            return names
        (first, name), (second, other) = names.items()
        if name == other:  # W W^T is no layer
            return {first: None, second: None}
        kept = getattr(node, f"_saved_{first}") is not None
        if kept and node.name() != "LinearBackward0" and self._is_turned(node):
            parameter = self.owner._names[id(self.owner.weights[str(other)])]
            why = (
                f"with {parameter!r}: which is the weight cannot be told, write F.linear(input, w)"
            )
            raise self.owner.refusal(str(name), node, why)
        return {first: None, second: other}

    def _check(self, node: Any, placed: set[str]) -> None:
        """Refuse a node in which data meet a weight that is kept and was not replaced."""
        seen = _is_seen(node)
        if node.name() in _VIEWS or (seen and any(part in node.name() for part in _LOCAL)):
            return
        children = [n for n, _ in node.next_functions if n is not None]
        below = self.below if node.name() in _FACTORS else self.gate
        alone = [n for n in children if not self.data[n] and below[n]]
        if not alone or not any(self.data[n] for n in children):
            return
        kept = not seen or bool(_kept(node))
        for child in alone:
            source, _ = _source(child)
            direct = self.owner._by_id.get(id(getattr(source, "variable", None)))
            for name in sorted(below[child] - placed):
                gain = direct is not None and self._is_gain(name)
                gain = gain and not self._is_summed(node, child)
                if kept and not gain and self._carries(node, child):
                    keeps = "keeps" if seen else "may keep"
                    what = "computed from it by " + source.name() if direct is None else "it"
                    raise self.owner.refusal(
                        name, node, f"which {keeps} {what}: no feedback can take its place there"
                    )

    def _doubts(self, index: int, node: Any) -> Iterator[Doubt]:
        """Factors that no node leads to, where data meet them: computed from a weight, or not."""
        name = node.name()
        places = _FACTORS.get(name, ()) or next((p for n, p in _MEETINGS if n in name), ())
        if name.startswith("Mul") and None in (below := [n for n, _ in node.next_functions]):
            places = (_SIDES[below.index(None)],) if self._is_summed(node, None) else ()
        for key, place in places:
            if node.next_functions[place][0] is not None or (index, key) in self.unseen:
                continue
            others = [n for i, (n, _) in enumerate(node.next_functions) if i != place]
            kept = getattr(node, f"_saved_{key}", None)
            if kept is not None and any(self.data[n] for n in others if n is not None):
                yield index, key

    def _is_summed(self, node: Any, child: Any) -> bool:
        """Whether a gain's products are summed along its own axis, so that it is a matrix."""
        total = self.sums.get(node)
        if total is None or node.name() != "MulBackward0":
            return node.name() in _SUMMED
        shape = getattr(
            node, f"_saved_{'self' if node.next_functions[0][0] is child else 'other'}"
        ).shape
        n = len(total._saved_self_sym_sizes)
        axes = {(d if d < n else d - 2**64) % n for d in total._saved_dim or ()}  # unsigned
        return any(k > 1 and i - len(shape) + n in axes for i, k in enumerate(shape))

    def _carries(self, node: Any, child: Any) -> bool:
        """Whether the error leaves a node through what it keeps of ``child``."""
        places = _FACTORS.get(node.name())
        if places is None:
            return True
        for key, place in places:
            if node.next_functions[place][0] is child:
                return getattr(node, f"_saved_{key}") is not None
        return False  # an added term


class _Send(torch.autograd.Function):
    """The output; on the way back the error itself for the top and its projection for each cut."""

    @staticmethod
    def forward(
        ctx: Any, send: Callable[[Tensor], list[Tensor | None]], output: Tensor, *hidden: Tensor
    ) -> Tensor:
        ctx.send = send
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Any:
        return None, error, *ctx.send(error)


class Cuts(_Bound):
    """A network cut at some modules; each part below a cut learns from what is sent to it.

    Args:
        net: any module.
        places: names of modules, each with whether the cut lies before it (else behind).

    Raises:
        UnsupportedModule: names a compiled, scripted or uninitialised module.
        ValueError: names a block that the network does not have.
    """

    def __init__(self, net: nn.Module, places: Mapping[str, tuple[str, bool]]) -> None:
        super().__init__(net)
        self.places, modules = dict(places), dict(net.named_modules())
        for block, _ in self.places.values():
            if block not in modules or not block:
                raise ValueError(
                    f"the network has no block {block!r}; there are "
                    f"{', '.join(repr(n) for n, _ in net.named_children())} and what is in them"
                )
        self._proven: set[Any] = set()
        self._blind = False  # whether a cut was met where no graph is made

    def run(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and what enters each cut from below, by name."""
        hidden: dict[str, Tensor] = {}
        outside, self._blind = torch.is_grad_enabled(), False

        def cut(name: str, value: Any, before: bool) -> Any:
            found = list(tensors(value))
            moving = {id(t) for t in found if t.requires_grad}
            if not found or name in hidden or (before and len(moving) > 1):
                raise UnsupportedModule(
                    f"block {self.places[name][0]!r} must run once, take one tensor that others "
                    "compute and give a tensor (or a tuple that begins with one): name other blocks"
                )
            hidden[name] = next((t for t in found if t.requires_grad), found[0])
            self._blind |= outside and not torch.is_grad_enabled()
            still = {id(t): t.detach() for t in found}  # what was one tensor stays one
            return _replaced(value, lambda t: still[id(t)])

        with ExitStack() as stack:  # hooks that last for this one pass
            for name, (block, before) in self.places.items():
                module = self.net.get_submodule(block)
                if before:
                    handle = module.register_forward_pre_hook(
                        lambda _, a, k, name=name: cut(name, (a, k), True), with_kwargs=True
                    )
                else:
                    handle = module.register_forward_hook(
                        lambda _, __, h, name=name: cut(name, h, False)
                    )
                stack.callback(handle.remove)
            output = self.net(*args, **(kwargs or {}))
        if not isinstance(output, Tensor):
            raise UnsupportedModule("a direct rule needs a network that returns one tensor")
        if missing := [n for n in self.places if n not in hidden]:
            raise UnsupportedModule(f"block {self.places[missing[0]][0]!r} did not run")
        return output, hidden

    def __call__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        top: Callable[[Tensor], Tensor],
        send: Send,
    ) -> Tensor:
        """The network's output, whose graph is the rule.

        Args:
            args, kwargs: what the network takes.
            top: what is sent, from the output error.
            send: the signal at a cut: (name, what is sent, a tensor of the signal's shape).
        """
        self.check()
        output, hidden = self.run(args, kwargs)
        below = {name: h for name, h in hidden.items() if h.requires_grad}
        if not output.requires_grad:
            if below:
                raise UnsupportedModule(
                    "no parameter is left above the last cut: name fewer blocks"
                )
            return output
        self._prove(output, below)

        def signals(error: Tensor) -> list[Tensor | None]:
            sent = top(error)
            found = [(send(name, sent, h), h.dtype) for name, h in below.items()]
            return [None if signal is None else signal.to(dtype) for signal, dtype in found]

        result: Tensor = _Send.apply(signals, output, *below.values())
        return result

    def below(self, output: Tensor, weights: Mapping[str, Tensor]) -> list[str]:
        """Names of the weights below a cut."""
        sent = output.grad_fn.next_functions[1:] if output.grad_fn is not None else ()
        names = {id(w): name for name, w in weights.items()}
        used = {name for node, _ in sent for name in _weights_in(node, names)}
        return [name for name in weights if name in used]

    def _prove(self, output: Tensor, below: Mapping[str, Tensor]) -> None:
        """No way leads around a cut: parts may share parameters, but nothing computed from data."""
        parts = [*below.values(), output]
        order = _ordered([t.grad_fn for t in parts if t.grad_fn])
        key = _structure(order, lambda n: n.name()), *[order.get(t.grad_fn) for t in parts]
        if key in self._proven:
            return
        if self._blind and (written := [n for n in order if hasattr(n, "saved_tensors")]):
            raise UnsupportedModule(
                f"{written[0].name()} runs a block without its graph, so that no cut is made "
                "there: without checkpointing or a function of its own the network could be cut"
            )
        owners: dict[Any, int] = {}
        for part, tensor in enumerate(parts):
            nodes = _ordered([tensor.grad_fn] if tensor.grad_fn else [])
            for node in reversed(nodes):  # where the connection leaves, before what it leads to
                source, _ = _source(node)
                if owners.setdefault(node, part) != part and not hasattr(source, "variable"):
                    under = [id(getattr(n, "variable", None)) for n in _ordered([node])]
                    names = ", ".join(repr(self._names[p]) for p in under if p in self._names)
                    blocks = [*map(repr, below), "what is above the last cut"]
                    raise UnsupportedModule(
                        f"block {blocks[owners[node]]} (parameters {names or 'none'}) is reached "
                        f"through {node.name()} from {blocks[part]} as well: a connection leads "
                        "around a cut; choose blocks that contain it"
                    )
        self._proven.add(key)


def default_blocks(net: nn.Module, *, wrapper: bool = True) -> list[str]:
    """Children that hold weights, those of lists one by one, as registered.

    A network that does nothing but wrap one module has that module's blocks.
    """
    found = []
    for name, child in net.named_children():
        if any(p.ndim > 1 for p in child.parameters()):
            opened = isinstance(child, nn.ModuleList | nn.ModuleDict)
            if opened or type(child).forward is nn.Sequential.forward:
                found += [f"{name}.{inner}" for inner in default_blocks(child, wrapper=False)]
            else:
                found.append(name)
    if wrapper and len(found) == 1 and (inner := default_blocks(net.get_submodule(found[0]))):
        return [f"{found[0]}.{name}" for name in inner]
    return found


def default_places(net: nn.Module, blocks: Sequence[str] | None, example: Any) -> Places:
    """Where to cut: behind the blocks that are given, else before each default one but the first.

    The order of default blocks is that in which they run on ``example``, else as registered.
    """
    if blocks is not None:
        if isinstance(blocks, str) or len(set(blocks)) != len(blocks):
            raise ValueError(f"blocks must be a list of different names; got {blocks!r}")
        return {block: (block, False) for block in blocks}
    names = default_blocks(net)
    if example is not None:
        names = list(_trial(Cuts(net, {name: (name, True) for name in names}), example)[1])
    return {lower: (upper, True) for lower, upper in itertools.pairwise(names)}


def _trial(cuts: Cuts, example: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One pass in evaluation mode that changes nothing."""
    inputs = example if isinstance(example, tuple) else (example,)
    if not any(True for _ in tensors(inputs)):
        raise TypeError(f"example must be a batch of inputs, a tensor; got {example!r}")
    with torch.no_grad(), evaluating(cuts.net):
        return cuts.run(inputs)


def block_shapes(cuts: Cuts, example: Any) -> dict[str, tuple[int, int]]:
    """The shape (n_l, n_top) of each receiver's feedback, in the order in which they run.

    Nothing of the network changes.
    """
    output, hidden = _trial(cuts, example)
    shapes = {}
    for name, h in hidden.items():
        whole = sent_whole(cuts.net, h, output)
        n_top = output[0].numel() if whole else output.shape[-1]
        shapes[name] = (h[0].numel() if whole else h.shape[-1], n_top)
    return shapes


def sent_whole(net: nn.Module, h: Tensor, output: Tensor) -> bool:
    """Whether a block is sent to a whole sample at once.

    A block whose output has the axes of the network's before the last one is sent to position by
    position, but for maps of convolutions with as many channels as there are classes.
    """
    if h.shape == output.shape and h.ndim > 2 and makes_maps(net):
        return h.ndim > 3 or not any(isinstance(module, nn.Linear) for module in net.modules())
    return h.shape[:-1] != output.shape[:-1]


def makes_maps(net: nn.Module) -> bool:
    """Whether a network has a convolution, whose classes or channels are on axis 1."""
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in net.modules())
