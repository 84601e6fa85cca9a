"""Random networks under all nine rules against an oracle of explicit matrices, in double precision.

The oracle knows nothing of the package: every weight layer is a matrix of its own, every module
between two of them its whole Jacobian over the batch, and a rule is its formula on these matrices.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fabook.rules import RULES
from fabook.streams import stream

double = torch.float64
NETWORKS = 300
BOUND = 1e-11  # times the largest entry, where that is above one

ACTIVATIONS: list[Any] = [
    nn.CELU, nn.ELU, nn.GELU, lambda: nn.GELU("tanh"), lambda: nn.GLU(1), nn.Hardshrink,
    nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, lambda: nn.LeakyReLU(0.3),
    nn.LogSigmoid, lambda: nn.LogSoftmax(1), nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6,
    lambda: nn.RReLU().eval(), nn.SELU, nn.SiLU, nn.Sigmoid, lambda: nn.Softmax(1),
    lambda: nn.Softmin(1), nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
    lambda: nn.Threshold(0.1, -0.2), lambda: nn.ReLU(inplace=True), lambda: nn.ELU(inplace=True),
]  # fmt: skip
POOLS: list[Any] = [
    lambda: nn.MaxPool2d(2, 1), lambda: nn.MaxPool2d(3, 2, 1), lambda: nn.AvgPool2d(2, 1),
    lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), lambda: nn.LPPool2d(2, 2, 1),
    lambda: nn.AdaptiveAvgPool2d((2, 3)),
    lambda: nn.AdaptiveMaxPool2d(2), lambda: nn.Dropout(0.4).eval(),
]  # fmt: skip


class Draw(random.Random):
    """A network, a batch and a loss from one seed."""

    def norm(self, channels: int, image: bool) -> nn.Module:
        kinds: list[Any] = [lambda: nn.GroupNorm(1, channels)]
        if image:
            kinds += [
                lambda: nn.BatchNorm2d(channels),
                lambda: nn.InstanceNorm2d(channels, affine=True),
            ]
        else:
            kinds += [lambda: nn.BatchNorm1d(channels), lambda: nn.LayerNorm(channels)]
            kinds += [lambda: nn.RMSNorm(channels)]
        found: nn.Module = self.choice(kinds)().train(self.random() < 0.6)
        return found

    def between(self, channels: int, image: bool, plain: bool) -> list[nn.Module]:
        """What stands after a weight layer."""
        found: list[nn.Module] = []
        if not plain and self.random() < 0.3:
            found.append(self.norm(channels, image))
        act = self.choice(ACTIVATIONS)()
        if isinstance(act, nn.GLU) and (plain or channels % 2):
            act = nn.Tanh()
        found.append(act)
        if image and self.random() < 0.4:
            found.append(self.choice(POOLS)())
        return found

    def conv(self, channels: int) -> nn.Conv2d:
        groups = self.choice([g for g in (1, 2, 3) if channels % g == 0])
        kernel = self.choice([1, 2, 3, (1, 2), (3, 1)])
        options: dict[str, Any] = {"groups": groups, "bias": self.random() < 0.7}
        if self.random() < 0.2:
            return nn.Conv2d(channels, 2 * groups, 3, padding="same", **options)
        options |= {
            "stride": self.choice([1, 1, 2, (1, 2)]),
            "padding": self.choice([0, 1, (1, 0)]),
        }
        options |= {"dilation": self.choice([1, 1, 2])}
        return nn.Conv2d(channels, groups * self.choice([1, 2, 3]), kernel, **options)

    def images(self, depth: int, x: Tensor, top_is_map: bool) -> nn.Sequential:
        """Convolutions as long as the image is large enough, then linear layers."""
        net, h = nn.Sequential(), x
        for level in range(depth if top_is_map else self.randint(1, depth)):
            conv = self.conv(h.shape[1])
            last = top_is_map and level == depth - 1
            parts = [conv] if last else [conv, *self.between(conv.out_channels, True, False)]
            try:
                # in evaluation, as norms of one value have no batch statistics
                after = nn.Sequential(*parts).double()(h)
            except (RuntimeError, ValueError):
                continue
            if after[0].numel() < 2:
                continue
            h = after.detach()
            net.extend(parts)
        if not net:
            net.append(nn.Conv2d(x.shape[1], 3, 1))
            h = net.double()(x).detach()
        return net if top_is_map else net.append(nn.Flatten()).extend(self.linear(2, h[0].numel()))

    def linear(self, depth: int, size: int, plain: bool = False) -> nn.Sequential:
        net = nn.Sequential()
        for level in range(depth):
            n = self.randint(2, 6)
            net.append(nn.Linear(size, n, bias=self.random() < 0.7))
            if level < depth - 1 or self.random() < 0.2:
                parts = self.between(n, False, plain)
                parts = [m for m in parts if level < depth - 1 or not isinstance(m, nn.GLU)]
                net.extend(parts)
                n = n // 2 if any(isinstance(m, nn.GLU) for m in parts) else n
            size = n
        return net

    def problem(self, seed: int) -> tuple[nn.Sequential, Tensor, str, str]:
        kind, depth = (
            self.choice(["vectors", "vectors", "sequences", "images", "maps"]),
            self.randint(1, 6),
        )
        n, g = self.choice([2, 3, 5, 7]), stream(seed, "x")
        shape = {"vectors": (n, 5), "sequences": (n, 3, 4)}.get(kind, (min(n, 3), 2, 6, 7))
        x = torch.randn(shape, generator=g, dtype=double)
        if self.random() < 0.3:  # the same values, the first axis last in memory
            x = x.movedim(0, -1).contiguous().movedim(-1, 0)
        elif self.random() < 0.3:
            x = torch.stack([x, x], -1)[..., 0]
        if kind in ("images", "maps"):
            net = self.images(depth, x, kind == "maps")
        else:
            net = self.linear(depth, shape[-1], plain=kind == "sequences")
        if self.random() < 0.3 and len(net) > 2:
            net = nn.Sequential(net[:2], nn.Sequential(), net[2:])
        net = net.double()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(max(2, p[0].numel())))
        return net, x, self.choice(["labels", "probabilities", "mse"]), self.choice(["mean", "sum"])


# --- the oracle -----------------------------------------------------------------------------------


def flat(net: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    if not isinstance(net, nn.Sequential):
        return [(prefix, net)]
    children = net.named_children()
    return [f for k, m in children for f in flat(m, f"{prefix}.{k}" if prefix else k)]


def matrix(layer: Any, weight: Tensor, shape: torch.Size) -> Tensor:
    """The layer's linear map of one sample with ``weight`` in it, (outputs, inputs)."""
    basis = torch.eye(shape.numel(), dtype=double).reshape(-1, *shape)
    if isinstance(layer, nn.Linear):
        return (basis @ weight.T).flatten(1).T
    args = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.conv2d(basis, weight, None, *args).flatten(1).T


def weight_gradient(layer: Any, delta: Tensor, h: Tensor) -> dict[str, Tensor]:
    """How the error signal of the outputs becomes the gradient of weight and bias."""
    if isinstance(layer, nn.Linear):
        rows = delta.reshape(-1, delta.shape[-1])
        return {"weight": rows.T @ h.reshape(-1, h.shape[-1]), "bias": rows.sum(0)}
    grads = torch.zeros(layer.weight.shape, dtype=double)
    for index in range(layer.weight.numel()):  # the output is linear in each entry of the kernel
        kernel = torch.zeros(layer.weight.numel(), dtype=double)
        kernel[index] = 1
        args = (layer.stride, layer.padding, layer.dilation, layer.groups)
        moved = F.conv2d(h, kernel.reshape(layer.weight.shape), None, *args)
        grads.view(-1)[index] = (moved * delta).sum()
    return {"weight": grads, "bias": delta.sum((0, 2, 3))}


class Oracle:
    """All that the rules' formulas need of one network on one batch."""

    def __init__(self, net: nn.Module, x: Tensor, target: str, reduction: str, seed: int) -> None:
        self.stack, self.inputs, self.jacobians = flat(copy.deepcopy(net)), [], []
        self.layers = [n for n, m in self.stack if isinstance(m, nn.Linear | nn.Conv2d)]
        h = x
        for _, module in self.stack:
            self.inputs.append(h)
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.jacobians.append(None)
                h = module(h).detach()
                continue
            names = [k for k, _ in module.named_parameters()]
            values = tuple(p.detach() for p in module.parameters())

            def run(h: Tensor, *ps: Tensor, module: Any = module, names: Any = names) -> Tensor:
                out: Tensor = torch.func.functional_call(
                    module, dict(zip(names, ps, strict=True)), (h.clone(),)
                )
                return out

            kept = [(b, b.clone()) for b in module.buffers()]
            found = torch.autograd.functional.jacobian(run, (h, *values))
            size = found[0].numel() // h.numel()
            self.jacobians.append([j.reshape(size, -1) for j in found])
            for buffer, before in kept:
                buffer.copy_(before)
            h = run(h, *values).detach()
        self.output = h
        top = dict(self.stack)[self.layers[-1]]
        self.axis = 1 if h.ndim > 2 and isinstance(top, nn.Conv2d) else h.ndim - 1
        self.target(target, reduction, seed)

    def target(self, kind: str, reduction: str, seed: int) -> None:
        """The loss, its gradient at the output, and what DRTP sends in its place."""
        g, shape = stream(seed, "y"), list(self.output.shape)
        classes = shape.pop(self.axis)
        logits = self.output.clone().requires_grad_()
        moved = logits.movedim(self.axis, -1).reshape(-1, classes)
        factor = 1.0 if reduction == "sum" else 1 / len(moved)
        if kind == "labels":
            self.y = torch.randint(classes, shape, generator=g)
            one_hot = F.one_hot(self.y, classes).to(double).movedim(-1, self.axis)
            loss = F.cross_entropy(moved, self.y.reshape(-1), reduction=reduction)
        elif kind == "probabilities":
            self.y = torch.randn(self.output.shape, generator=g, dtype=double).softmax(self.axis)
            one_hot = self.y
            other = self.y.movedim(self.axis, -1).reshape(-1, classes)
            loss = F.cross_entropy(moved, other, reduction=reduction)
        else:
            self.y = torch.randn(self.output.shape, generator=g, dtype=double)
            one_hot, factor = self.y, 2 * factor / (classes if reduction == "mean" else 1)
            loss = F.mse_loss(logits, self.y, reduction=reduction)
        self.loss, self.e = float(loss.detach()), torch.autograd.grad(loss, logits)[0]
        self.projected = factor * one_hot

    def gradients(self, rule: str, feedback: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of every parameter, by name; ``feedback`` by name of the receiving layer."""
        found: dict[str, Tensor] = {}
        signal, top, above = self.e, None, list(self.layers)
        for (name, module), h, jacobian in reversed(
            list(zip(self.stack, self.inputs, self.jacobians, strict=True))
        ):
            if jacobian is not None:
                parts = [signal.reshape(-1) @ j for j in jacobian]
                for (key, p), grad in zip(module.named_parameters(), parts[1:], strict=True):
                    found[f"{name}.{key}"] = grad.reshape(p.shape)
                signal = parts[0].reshape(h.shape)
                continue
            top = (self.projected if rule == "DRTP" else signal) if top is None else top
            own = weight_gradient(module, signal, h)
            found |= {f"{name}.{key}": own[key] for key, _ in module.named_parameters()}
            above.pop()
            if not above:
                return found
            signal = self.down(rule, module, signal, top, h, feedback.get(above[-1]))
        return found

    def down(
        self, rule: str, layer: Any, delta: Tensor, top: Tensor, h: Tensor, B: Tensor | None
    ) -> Tensor:
        """The signal at h_l, by the formula of the rule."""
        W = layer.weight.detach()
        if rule == "Shallow":
            return torch.zeros_like(h)
        if rule in ("DFA", "DRTP"):
            assert B is not None
            return (top @ B.T).reshape(h.shape)
        if rule == "uSF":
            area = math.prod(W.shape[2:])
            B = math.sqrt(2 / ((W.shape[0] + W.shape[1]) * area)) * W.sign()
        elif rule == "frSF":
            assert B is not None
            B = B.abs() * W.sign()
        used = W if rule == "BP" else B
        assert used is not None
        return (delta.flatten(1) @ matrix(layer, used, h.shape[1:])).reshape(h.shape)


def feedback_of(rule: str, oracle: Oracle, seed: int) -> dict[str, Tensor]:
    """Random matrices for the rules that are given theirs; R for frSF."""
    if rule not in ("FA", "KP", "frSF", "DFA", "DRTP"):
        return {}
    g, found = stream(seed, "feedback", rule), {}
    modules: dict[str, Any] = dict(oracle.stack)
    inputs = {name: h for (name, _), h in zip(oracle.stack, oracle.inputs, strict=True)}
    outputs = modules[oracle.layers[-1]].weight.shape[0]
    for name, above in zip(oracle.layers, oracle.layers[1:], strict=False):
        shape = modules[above].weight.shape
        if rule in ("DFA", "DRTP"):
            h = inputs[above]
            units = h[0].numel() if isinstance(modules[above], nn.Conv2d) else h.shape[-1]
            shape = (units, outputs)
        found[name] = torch.randn(shape, generator=g, dtype=double)
    return found


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_every_rule_is_its_formula(seed: int) -> None:
    draw = Draw(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, x, target, reduction = draw.problem(seed)
        oracle = Oracle(net, x, target, reduction, seed)
    loss = "mse" if target == "mse" else "cross_entropy"
    direct_top = isinstance(dict(oracle.stack)[oracle.layers[-1]], nn.Conv2d)
    for name, kind in RULES.items():
        if name in ("DFA", "DRTP") and (direct_top or (name == "DRTP" and oracle.output.ndim < 2)):
            continue  # refused by name, see test_rules
        own = copy.deepcopy(net)
        given = feedback_of(name, oracle, seed)
        options: dict[str, Any] = {"feedback": given} if given else {"generator": stream(seed, "r")}
        image = {"input_shape": tuple(x.shape[1:])} if x.ndim == 4 else {}
        rule = kind(own, **options, **image)
        value = rule.backward(x, oracle.y, loss=loss, reduction=reduction)
        assert float(value) == pytest.approx(oracle.loss, rel=1e-12, abs=1e-12)
        if name == "brSF":  # R is the rule's own; its signs are the weights'
            given = {k: v.clone() for k, v in rule.feedback.items()}
            for lower, upper in zip(oracle.layers, oracle.layers[1:], strict=False):
                assert torch.equal(given[lower].sign(), own.get_parameter(f"{upper}.weight").sign())
        want = oracle.gradients(name, given)
        assert set(want) == {k for k, _ in own.named_parameters()}
        for key, p in own.named_parameters():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            error = float((grad - want[key]).abs().max())
            assert error <= BOUND * max(1.0, float(want[key].abs().max())), (name, key, error, own)


def test_the_sweep_meets_what_it_promises() -> None:
    seen: dict[str, set[Any]] = {"kinds": set(), "depths": set(), "groups": set(), "modes": set()}
    for seed in range(NETWORKS):
        with torch.random.fork_rng():
            net = Draw(seed).problem(seed)[0]
        modules = [m for _, m in flat(net)]
        seen["kinds"] |= {type(m) for m in modules}
        weights = [m for m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
        seen["depths"].add(len(weights))
        seen["groups"] |= {m.groups for m in weights if isinstance(m, nn.Conv2d)}
        norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        seen["modes"] |= {m.training for m in norms}
    wanted = {type(make()) for make in (*ACTIVATIONS, *POOLS)}
    norms = {nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LayerNorm, nn.GroupNorm}
    assert wanted | norms | {nn.RMSNorm} <= seen["kinds"]
    assert set(range(1, 7)) <= seen["depths"]
    assert {1, 2, 3} <= seen["groups"]
    assert seen["modes"] == {True, False}
