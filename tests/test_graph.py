"""Rules on any module, against an oracle that multiplies by W going up and by B going down."""

import copy
import importlib
import pickle
import random
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

import fabook
from fabook import FA, RULES
from fabook.graph import Cuts, Transported, block_shapes, default_blocks
from fabook.rules import UnsupportedModule

D = torch.float64


def up_down(f, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """f(x, W), whose derivative in x is that of f(x, B)."""
    down = f(x, b)
    return f(x.detach(), w) + down - down.detach()


class Two(nn.Module):
    """A Linear or convolution that keeps W and, apart from it, B."""

    def __init__(self, layer: nn.Module, b: Tensor) -> None:
        super().__init__()
        self.layer, self.b = layer, b

    def forward(self, x: Tensor) -> Tensor:
        def f(x: Tensor, w: Tensor) -> Tensor:
            bias = self.layer.bias  # has its gradient from the way up alone
            given = {"weight": w}
            if w is self.b and bias is not None:
                given["bias"] = bias.detach()
            return torch.func.functional_call(self.layer, given, (x,))

        return up_down(f, x, self.layer.weight, self.b)


def with_feedback(net: nn.Module, feedback: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(net)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Two(module, feedback[f"{name}.weight"]))
    return twin


def bound(net: nn.Module, seed: int = 7) -> tuple[Transported, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    weights = {n: p for n, p in net.named_parameters() if p.ndim > 1}
    feedback = {
        n: 0.3 * torch.randn(p.shape, generator=g, dtype=D).to(p) for n, p in weights.items()
    }
    return Transported(net, weights, feedback.__getitem__), feedback


def grads(net: nn.Module) -> dict[str, Tensor]:
    return {
        n.replace(".layer.", "."): p.grad for n, p in net.named_parameters() if p.grad is not None
    }


def assert_same(ours: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    assert set(ours) == set(oracle)
    for name in ours:
        torch.testing.assert_close(ours[name], oracle[name], rtol=1e-12, atol=1e-12)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.down = nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(self.act(self.norm(self.conv(x)) + self.down(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.n1, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.n2, self.up, self.low = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(-2, -1), -1) @ v)
        return x + self.low(F.gelu(self.up(self.n2(x))))


NETS = {
    "resnet": (Residual, (5, 2, 8, 8)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(8, 8), Block(), Block(), nn.Linear(8, 3)),
        (4, 5, 8),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 3)), (4, 2, 9)),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2), nn.Tanh(), nn.Conv3d(4, 6, 2, groups=2)),
        (2, 2, 4, 4, 4),
    ),
    "autoencoder": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 3, 4, 2, 1),
            nn.Tanh(),
            nn.Conv2d(3, 1, 1),
        ),
        (3, 1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_the_oracles_on_every_kind_of_network(name: str, frozen: bool) -> None:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().to(D)
    if frozen:  # a weight in the middle that does not learn still hands B down
        [p for p in net.parameters() if p.ndim > 1][1].requires_grad_(False)
    rule, feedback = bound(net)
    oracle = with_feedback(net, feedback)
    for seed in range(3):  # the second pass takes the plan of the first or a new proof
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)
        net.zero_grad()
        oracle.zero_grad()
        rule((x,)).square().sum().backward()
        oracle(x).square().sum().backward()
        assert_same(grads(net), grads(oracle))


def test_packed_attention_to_itself_and_to_another() -> None:
    torch.manual_seed(0)
    first, mha = nn.Linear(8, 8).to(D), nn.MultiheadAttention(8, 2, batch_first=True).to(D)

    class Net(nn.Module):
        def __init__(self, cross: bool) -> None:
            super().__init__()
            self.first, self.mha, self.cross = first, mha, cross

        def forward(self, x: Tensor, m: Tensor) -> Tensor:
            x, m = self.first(x), self.first(m)
            return self.mha(x, m if self.cross else x, m if self.cross else x)[0]

    for cross in (False, True):
        net = Net(cross)
        rule, fb = bound(net)
        x, m = torch.randn(3, 5, 8, dtype=D), torch.randn(3, 4, 8, dtype=D)
        net.zero_grad()
        rule((x, m)).square().sum().backward()
        ours = {k: v.clone() for k, v in grads(net).items()}
        net.zero_grad()
        x1, m1 = first(x), first(m)
        m1 = m1 if cross else x1
        parts = zip(
            mha.in_proj_weight.chunk(3),
            fb["mha.in_proj_weight"].chunk(3),
            mha.in_proj_bias.chunk(3),
        )
        q, k, v = (
            (up_down(F.linear, a, w, b) + c).unflatten(-1, (2, 4)).transpose(1, 2)
            for a, (w, b, c) in zip((x1, m1, m1), parts)
        )
        h = (torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v).transpose(1, 2).flatten(-2)
        out = (
            up_down(F.linear, h, mha.out_proj.weight, fb["mha.out_proj.weight"]) + mha.out_proj.bias
        )
        out.square().sum().backward()
        assert_same(ours, grads(net))


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_of_torch_under_feedback_alignment(norm_first: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    net = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, **options)).to(D)
    first, layer = net
    rule = FA(net, generator=torch.Generator().manual_seed(7))
    fb, (x, y) = rule.feedback, torch.randn(2, 3, 5, 8, dtype=D)
    (rule(x) * y).sum().backward()
    ours = {k: v.clone() for k, v in grads(net).items()}
    net.zero_grad()

    def linear(h: Tensor, name: str, part: slice = slice(None)) -> Tensor:
        w = net.get_parameter(f"1.{name}weight")
        bias = net.get_parameter(f"1.{name}bias")
        return up_down(F.linear, h, w[part], fb[f"1.{name}weight"][part]) + bias[part]

    def attention(h: Tensor) -> Tensor:
        q, k, v = (
            linear(h, "self_attn.in_proj_", slice(n, n + 8)).unflatten(-1, (2, 4)).transpose(1, 2)
            for n in (0, 8, 16)
        )
        heads = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
        return linear(heads.transpose(1, 2).flatten(-2), "self_attn.out_proj.")

    def feed(h: Tensor) -> Tensor:
        return linear(linear(h, "linear1.").relu(), "linear2.")

    h = first(x)
    if norm_first:
        h = h + attention(layer.norm1(h))
        h = h + feed(layer.norm2(h))
    else:
        h = layer.norm1(h + attention(h))
        h = layer.norm2(h + feed(h))
    (h * y).sum().backward()
    assert_same(ours, grads(net))
    true = torch.autograd.grad((net(x) * y).sum(), first.weight)[0]
    assert (ours["0.weight"] - true).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_cells(kind: type) -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.first, net.rnn = nn.Linear(3, 4).to(D), kind(4, 5).to(D)
    net.forward = lambda x: net.rnn(net.first(x))[0]
    rule, fb = bound(net)
    x = torch.randn(6, 2, 3, dtype=D)
    rule((x,)).square().sum().backward()
    ours = {k: v.clone() for k, v in grads(net).items()}
    net.zero_grad()
    r, h, c, out = net.rnn, torch.zeros(2, 5, dtype=D), torch.zeros(2, 5, dtype=D), []
    for a in net.first(x):
        i = up_down(F.linear, a, r.weight_ih_l0, fb["rnn.weight_ih_l0"]) + r.bias_ih_l0
        g = up_down(F.linear, h, r.weight_hh_l0, fb["rnn.weight_hh_l0"]) + r.bias_hh_l0
        if kind is nn.LSTM:
            s = (i + g).chunk(4, -1)
            c = s[1].sigmoid() * c + s[0].sigmoid() * s[2].tanh()
            h = s[3].sigmoid() * c.tanh()
        else:
            (ir, iz, inew), (hr, hz, hnew) = i.chunk(3, -1), g.chunk(3, -1)
            z = (iz + hz).sigmoid()
            h = (1 - z) * (inew + (ir + hr).sigmoid() * hnew).tanh() + z * h
        out.append(h)
    torch.stack(out).square().sum().backward()
    assert_same(ours, grads(net))


def test_tied_and_transposed_weights_share_one_feedback() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, 6, dtype=D))
    net = nn.Module()
    net.first, net.w = nn.Linear(3, 6).to(D), w
    net.forward = lambda x: F.linear(torch.tanh(F.linear(net.first(x), w)), w.t())
    rule, fb = bound(net)
    x = torch.randn(5, 3, dtype=D)
    rule((x,)).square().sum().backward()
    ours = {k: v.clone() for k, v in grads(net).items()}
    net.zero_grad()
    h = torch.tanh(up_down(F.linear, net.first(x), w, fb["w"]))
    up_down(F.linear, h, w.t(), fb["w"].t()).square().sum().backward()
    assert_same(ours, grads(net))


def _computed() -> nn.Module:
    net = nn.Module()
    net.first, net.w = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 4))
    return net


def _divided() -> nn.Module:
    net = _computed()
    net.forward = lambda x: net.first(x) @ (net.w / 2.0)
    return net


def _frozen_divided() -> nn.Module:
    net = _divided()
    net.w.requires_grad_(False)
    return net


def _gated() -> nn.Module:
    net = _computed()
    net.forward = lambda x: (net.first(x).unsqueeze(-1) * net.w).sum(1)
    return net


def _normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    return nn.Sequential(nn.Linear(3, 4), layer)


def _checkpointed(reentrant: bool) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    forward = nn.Sequential.forward

    def run(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(
            lambda h: forward(net, h), x, use_reentrant=reentrant
        )

    net.forward = run
    return net


def _frozen_checkpoint() -> nn.Module:
    net = _computed()
    run = torch.utils.checkpoint.checkpoint
    net.forward = lambda x: run(lambda h: h @ net.w, net.first(x), use_reentrant=True)
    net.w.requires_grad_(False)
    return net


def _written_in_place(how: str) -> nn.Module:
    net = _computed()

    def forward(x: Tensor) -> Tensor:
        h = net.first(x)
        y = h.repeat(1, 2)
        if how == "addmm_":
            y[:, :4].addmm_(h, net.w)
        else:
            y[:4, :4].mul_(net.w)
        return y

    net.forward = forward
    return net


class _Product(torch.autograd.Function):
    """Keeps the weight where the graph does not show it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.x, ctx.w = x.detach(), w.detach()
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ ctx.w.t(), ctx.x.t() @ grad


class _Embedding(_Product):
    """The same under the name of a table."""


def _own_function(function: type) -> nn.Module:
    net = _computed()
    net.forward = lambda x: function.apply(net.first(x), net.w)
    return net


def _without_a_graph(
    use: Callable[[nn.Module, Tensor, Tensor], Tensor], shape: tuple[int, ...] = (4, 4)
) -> nn.Module:
    """One in which a hidden layer's output and the sign of a weight meet as ``use`` says."""
    net = _computed()
    net.w = nn.Parameter(torch.randn(shape))
    net.g = nn.Parameter(torch.ones(4, 1))
    net.register_buffer("b", torch.zeros(4, 4))

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            net.s = net.w.sign()
            if shape == (4, 4):
                net.b.copy_(net.s)
        return use(net, net.first(x), x)

    net.forward = forward
    return net


def _foreach(net: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    b = torch.zeros(4, 4)
    torch._foreach_copy_([b], [net.s])
    return h @ b


def _attention(net: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    s = net.s[None, None]
    return F.scaled_dot_product_attention(h[None, None], s, s)


WITHOUT_A_GRAPH = {
    "no_grad": (lambda net, h, x: h @ net.s, "MmBackward0"),
    "detached": (lambda net, h, x: h @ (net.w.detach() / 2), "MmBackward0"),
    "data": (lambda net, h, x: h @ (net.w.data / 3), "MmBackward0"),
    "in a buffer": (lambda net, h, x: h @ net.b, "MmBackward0"),
    "in a list of buffers": (_foreach, "MmBackward0"),
    "a gain first": (lambda net, h, x: h @ (net.g * net.s).detach(), "MmBackward0"),
    "scaled by data": (lambda net, h, x: h @ (net.s * x.detach().abs().mean()), "MmBackward0"),
    "elementwise": (lambda net, h, x: (h[..., None] * net.s).sum(-2), "MulBackward0"),
    "row by row": (lambda net, h, x: torch.stack([h @ r for r in net.s], -1), "MvBackward0"),
    "attention": (_attention, "ScaledDotProduct"),
    "bilinear": (lambda net, h, x: F.bilinear(h, h, net.s[None]), "TrilinearBackward0"),
}


@pytest.mark.parametrize("name", WITHOUT_A_GRAPH)
def test_what_a_weight_made_without_a_graph_is_refused(name: str) -> None:
    use, node = WITHOUT_A_GRAPH[name]
    rule, _ = bound(_without_a_graph(use))
    for _ in range(2):
        with pytest.raises(UnsupportedModule, match=rf"'w' .*{node}.*without a graph"):
            rule((torch.randn(5, 3),))


def test_a_head_of_one_unit_is_no_gain() -> None:
    rule, _ = bound(_without_a_graph(lambda net, h, x: F.linear(h, net.s), (1, 4)))
    with pytest.raises(UnsupportedModule, match=r"'w' .*MmBackward0.*without a graph"):
        rule((torch.randn(5, 3),))


def test_what_is_made_without_a_graph_at_a_later_call_is_refused() -> None:
    net = _computed()
    net.forward = lambda x: net.first(x) @ (net.w.detach().sign() if net.training else net.w)
    rule, _ = bound(net.eval())
    rule((torch.randn(5, 3),)).sum().backward()
    net.train()
    with pytest.raises(UnsupportedModule, match=r"'w' .*MmBackward0.*without a graph"):
        rule((torch.randn(5, 3),))


REFUSED = {
    "frozen under a checkpoint": (_frozen_checkpoint, r"'w' .*CheckpointFunctionBackward"),
    "product in a part": (lambda: _written_in_place("addmm_"), r"'w' .*CopySlices.*may keep"),
    "gain in a part": (lambda: _written_in_place("mul_"), r"'w' .*CopySlices.*may keep"),
    "function": (lambda: _own_function(_Product), r"'w' .*_ProductBackward.*may keep"),
    "function named so": (lambda: _own_function(_Embedding), r"'w' .*_EmbeddingBackward.*may"),
    "divided": (_divided, r"'w' .*MmBackward0.*DivBackward0"),
    "frozen and divided": (_frozen_divided, r"'w' .*MmBackward0.*DivBackward0"),
    "gated": (_gated, r"'w' .*MulBackward0"),
    "weight norm": (_normed, r"original0.*AddmmBackward0.*WeightNorm"),
    "checkpoint": (lambda: _checkpointed(False), r"weight.*AddmmBackward0.*checkpointing"),
    "reentrant checkpoint": (lambda: _checkpointed(True), r"weight.*CheckpointFunctionBackward"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_placed_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    rule, _ = bound(make())
    with pytest.raises(UnsupportedModule, match=message):
        rule((torch.randn(5, 3),))


class _Held:
    """Data in an object, which no argument shows."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def _hard_gate(net: nn.Module, x: Tensor) -> Tensor:
    """Its gate at the first of two times is that of a state of zeros."""
    state = torch.zeros(5, 4, dtype=D)
    for _ in range(2):
        gate = (F.linear(state, net.w).detach() >= 0).to(D)
        state = gate * torch.tanh(net.first(x)) + (1 - gate) * state
    return state @ net.w


def _own_attention(net: nn.Module, x: Tensor) -> Tensor:
    h = net.first(x)
    return torch.softmax(h @ h.t(), -1).detach() @ h @ net.w


def _fresh_masks(net: nn.Module, x: Tensor) -> Tensor:
    """Memory that signs of the weights have left is used again for what no weight made."""
    h = net.first(x)
    for i in range(20):
        signs = [net.w.detach().sign() for _ in range(4)]
        del signs
        h = h @ torch.tensor(np.eye(4) * (i + 1))
    return h @ net.w


NO_WEIGHT = {
    "own gate": lambda net, x: (lambda h: ((h * (h > 0)) @ net.w).sum(-1))(net.first(x)),
    "hard gate": _hard_gate,
    "own attention": _own_attention,
    "fresh masks": _fresh_masks,
    "flat memory": lambda net, x: net.first(x) @ net.flat[16:].view(4, 4) @ net.w,
    "expanded": lambda net, x: (lambda h: (h * net.w.detach().norm(dim=0).expand_as(h)) @ net.w)(
        net.first(x)
    ),
}


@pytest.mark.parametrize("name", NO_WEIGHT)
def test_data_and_constants_are_not_taken_for_weights(name: str) -> None:
    net = _computed().to(D)
    net.flat = torch.randn(32, dtype=D)
    net.w = nn.Parameter(net.flat[:16].view(4, 4))
    net.forward = lambda held: NO_WEIGHT[name](net, held.x)
    rule, _ = bound(net)
    rule((_Held(torch.randn(5, 3, dtype=D)),)).sum().backward()
    assert bool(net.first.weight.grad.isfinite().all())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # within torch.cond
def test_a_doubt_that_cannot_be_settled_is_no_refusal() -> None:
    """Operators of a higher order run under no dispatch mode that does not know them."""
    net = _computed()
    net.forward = lambda x: (
        torch.cond(x.sum() > 0, torch.sin, torch.cos, (net.first(x),)) @ torch.eye(4) @ net.w
    )
    rule, _ = bound(net)
    rule((torch.randn(5, 3),)).sum().backward()
    assert bool(net.first.weight.grad.isfinite().all())


def test_a_doubt_leaves_no_trace() -> None:
    """A network runs twice where a factor's origin must be found out: once for each graph."""
    seen = []
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net.register_forward_hook(lambda *_: seen.append(1))

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(len(x)) @ self.net(x)

    x, rules = torch.randn(6, 3), bound(Graph())
    start = {k: v.clone() for k, v in net.state_dict().items()}
    ends = []
    for runs in (2, 4, 5):  # the first graph shows the data, later ones do not
        net.load_state_dict(start)
        torch.manual_seed(3)
        out = rules[0]((x,))
        ends.append([out.detach(), torch.rand(1), *[v.clone() for v in net.buffers()]])
        assert len(seen) == runs
    for first, *others in zip(*ends):
        assert all(torch.equal(first, other) for other in others)


def test_what_no_weight_made_is_no_weight() -> None:
    """A zero state, a scale, what was computed from data: all without a graph."""
    net = _computed().to(D)
    net.v = nn.Parameter(torch.randn(4, 4, dtype=D))

    def forward(x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x) + net.w.new_zeros(5, 4) @ net.v) * net.w.detach().norm()
        return torch.bmm((h @ net.w)[:, None], torch.einsum("ni,nj->nij", h, h).detach())

    net.forward = forward
    rule, fb = bound(net)
    x = torch.randn(5, 3, dtype=D)
    for _ in range(2):
        net.zero_grad()
        out = rule((x,))
        out.sum().backward()
        h = net.first(x).detach()
        scale = net.w.detach().norm()
        top = torch.tanh(h) * scale
        error = torch.einsum("ni,nj->nij", top, top).sum(-1)
        expected = (error @ fb["w"].t() * scale * (1 - torch.tanh(h) ** 2)).t() @ x
        torch.testing.assert_close(net.first.weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_sparse_arguments_are_taken_as_they_are() -> None:
    net = _computed().to(D)
    net.forward = lambda x, a: torch.sparse.mm(a, net.first(x)) @ net.w
    rule, fb = bound(net)
    x, a = torch.randn(5, 3, dtype=D), (torch.rand(5, 5) < 0.5).to(D)
    for _ in range(2):
        net.zero_grad()
        rule((x, a.to_sparse())).sum().backward()
        expected = (a.t() @ torch.ones(5, 4, dtype=D) @ fb["w"].t()).t() @ x
        torch.testing.assert_close(net.first.weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_a_sparse_buffer_is_no_copy_of_a_frozen_weight_of_its_size() -> None:
    net = _computed()
    net.register_buffer("a", torch.eye(4).to_sparse())
    net.w.requires_grad_(False)
    net.forward = lambda x: (net.a @ net.first(x)) @ net.w
    rule, fb = bound(net)
    x = torch.randn(4, 3)
    for _ in range(2):
        net.zero_grad()
        rule((x,)).sum().backward()
        expected = (torch.ones(4, 4) @ fb["w"].t()).t() @ x
        torch.testing.assert_close(net.first.weight.grad, expected)


def test_what_is_computed_at_a_later_call_alone_is_refused() -> None:
    net = _computed()
    net.v = nn.Parameter(torch.randn(3, 4))
    net.forward = lambda x, half: (net.w / 2.0 if half else net.w) @ torch.tanh(net.v.t() @ x)
    rule, _ = bound(net)
    x = torch.randn(3, 5)
    rule((x, False)).sum().backward()
    with pytest.raises(UnsupportedModule, match=r"'w' .*MmBackward0.*DivBackward0"):
        rule((x, True))


def test_a_copied_part_is_refused_and_a_view_of_it_placed() -> None:
    net = _computed()
    net.w = nn.Parameter(torch.randn(3, 4, 4, dtype=D))
    net.to(D)
    net.forward = lambda x, i, copied: net.first(x) @ (net.w[i].clone() if copied else net.w[i])
    rule, fb = bound(net)
    x = torch.randn(5, 3, dtype=D)
    for i in (0, 0, 2):
        net.zero_grad()
        rule((x, i, False)).sum().backward()
        expected = (torch.ones(5, 4, dtype=D) @ fb["w"][i].t()).t() @ x
        torch.testing.assert_close(net.first.weight.grad, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(UnsupportedModule, match="rearranged copy"):
        rule((x, 0, True))


@pytest.mark.parametrize("again", ["detached", "data"])
def test_feedback_stands_where_a_weight_is_kept_without_its_gradient(again: str) -> None:
    net = _computed().to(D)
    net.forward = lambda x: net.first(x) @ (net.w.detach() if again == "detached" else net.w.data)
    rule, fb = bound(net)
    x = torch.randn(5, 3, dtype=D)
    for _ in range(2):
        net.zero_grad()
        rule((x,)).sum().backward()
        expected = (torch.ones(5, 4, dtype=D) @ fb["w"].t()).t() @ x
        torch.testing.assert_close(net.first.weight.grad, expected, rtol=1e-12, atol=1e-12)


def test_equal_frozen_weights_are_told_apart_or_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[2].load_state_dict(net[1].state_dict())
    net[1:].requires_grad_(False)
    rule, fb = bound(net)
    x = torch.randn(5, 4)
    for _ in range(2):
        net.zero_grad()
        rule((x,)).sum().backward()
        expected = (torch.ones(5, 4) @ fb["2.weight"] @ fb["1.weight"]).t() @ x
        torch.testing.assert_close(net[0].weight.grad, expected)
    rule, _ = bound(net)
    with torch.autocast("cpu", torch.bfloat16):
        rule((x,))  # here the graph shows them
        with pytest.raises(UnsupportedModule, match=r"'1.weight' .*'2.weight' as well"):
            rule((x,))


def test_a_compiled_module_and_a_changed_network_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    rule, _ = bound(net)
    net[1] = nn.Linear(4, 2)
    with pytest.raises(RuntimeError, match="changed after the rule was made"):
        rule((torch.randn(5, 3),))
    net[1].compile(backend="eager")
    with pytest.raises(UnsupportedModule, match=r"'1' \(Linear\) is compiled"):
        bound(net)


def test_bfloat16_autocast_places_feedback_for_copies_and_frozen_weights() -> None:
    for frozen in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        net[2].weight.requires_grad_(not frozen)
        rule, feedback = bound(net)
        oracle = with_feedback(net, feedback)
        for _ in range(2):
            x = torch.randn(7, 6)
            net.zero_grad()
            oracle.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                rule((x,)).float().square().sum().backward()
            oracle(x).square().sum().backward()
            for n, g in grads(oracle).items():
                assert F.cosine_similarity(grads(net)[n].flatten(), g.flatten(), 0) > 0.999


def test_gradients_accumulate_over_two_halves_of_a_batch() -> None:
    torch.manual_seed(0)
    net = Block().to(D)
    rule, _ = bound(net)
    x = torch.randn(6, 5, 8, dtype=D)
    rule((x,)).square().sum().backward()
    whole = {k: v.clone() for k, v in grads(net).items()}
    net.zero_grad()
    for half in x.split(3):
        rule((half,)).square().sum().backward()
    assert_same(grads(net), whole)


def _direct(net: nn.Module, example: Tensor, blocks: list[str]) -> tuple[Cuts, dict[str, Tensor]]:
    cuts = Cuts(net, {name: (name, False) for name in blocks})
    shapes = block_shapes(cuts, example)
    g = torch.Generator().manual_seed(3)
    return cuts, {n: torch.randn(s, generator=g, dtype=D) for n, s in shapes.items()}


def test_direct_feedback_reaches_each_block_and_no_further() -> None:
    torch.manual_seed(0)
    net = Residual().to(D)
    net.body = nn.Sequential(net.stem, nn.Tanh())
    x = torch.randn(5, 2, 8, 8, dtype=D)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    cuts, fb = _direct(net, x, ["stem"])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    out = cuts((x,), None, lambda e: e, lambda n, top, h: (top @ fb[n].t()).reshape(h.shape))
    out.square().sum().backward()
    ours = {k: v.clone() for k, v in grads(net).items()}
    net.zero_grad()
    h = net.stem(x)
    a = torch.tanh(h.detach())
    y = net.head(
        F.relu(
            F.batch_norm(net.conv(a), None, None, net.norm.weight, net.norm.bias, True)
            + net.down(a)
        ).mean((2, 3))
    )
    y.square().sum().backward()
    h.backward((2 * y.detach() @ fb["stem"].t()).reshape(h.shape))
    assert_same(ours, grads(net))


def test_a_connection_around_a_cut_is_refused() -> None:
    net = Residual()
    cuts = Cuts(net, {"conv": ("conv", False)})
    with pytest.raises(UnsupportedModule, match=r"'stem.*TanhBackward0.*around a cut"):
        cuts((torch.randn(2, 2, 8, 8),), None, lambda e: e, lambda n, t, h: torch.zeros_like(h))


def test_a_cut_holds_at_every_call_and_under_a_checkpoint() -> None:
    net = nn.Module()
    net.a, net.b, net.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(x: Tensor, skip: bool = False) -> Tensor:
        h = net.a(x)
        return net.c(net.b(h) + h if skip else net.b(h))

    net.forward, x = forward, torch.randn(5, 3)
    rule = fabook.DFA(net, generator=gen(), example=x)
    rule(x)
    with pytest.raises(UnsupportedModule, match="around a cut"):
        rule(x, skip=True)
    run = torch.utils.checkpoint.checkpoint
    net.forward = lambda x: net.c(run(lambda x: net.b(net.a(x)), x, use_reentrant=True))
    x.requires_grad_()
    rule = fabook.DFA(net, generator=gen(), blocks=["a", "b"], example=x)
    with pytest.raises(UnsupportedModule, match="CheckpointFunctionBackward runs a block"):
        rule(x)


def test_blocks_default_to_children_with_weights() -> None:
    net = nn.Module()
    net.blocks = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)])
    net.norm, net.head = nn.LayerNorm(2), nn.Linear(2, 1)
    assert default_blocks(net) == ["blocks.0", "blocks.2", "head"]
    wrapped = nn.Module()
    wrapped.model = net
    assert default_blocks(wrapped) == ["model.blocks.0", "model.blocks.2", "model.head"]


def test_a_list_of_one_block_is_one_block() -> None:
    net = fabook.networks.resnet(1, [4], 3, generator=fabook.stream(0, "weights"))
    assert default_blocks(net) == ["stem.0", "blocks.0", "head"]
    x, y = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    rule = fabook.DFA(net, generator=fabook.stream(0, "feedback"), example=x)
    rule.backward(x, y)
    assert all(p.grad is not None for p in net.parameters())


# --- rules: one formula, two paths ---------------------------------------------------------------


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Wrapped(nn.Module):
    """The same network, of a class whose order of modules cannot be read."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def random_stack(seed: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Linear or convolutional, of random depth, widths, activations and normalisation."""
    rng = random.Random(seed)
    acts = [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, lambda: nn.LeakyReLU(0.2)]
    layers: list[nn.Module] = []
    if rng.random() < 0.5:
        channels, side = rng.randint(1, 3), 8
        shape: tuple[int, ...] = (channels, side, side)
        for _ in range(rng.randint(1, 2)):
            wide = rng.randint(2, 4)
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=rng.random() < 0.5)]
            layers += [nn.BatchNorm2d(wide)] if rng.random() < 0.4 else []
            layers += [rng.choice(acts)(), nn.AvgPool2d(2)]
            channels, side = wide, side // 2
        layers, n = [*layers, nn.Flatten()], channels * side * side
    else:
        n = rng.randint(3, 8)
        shape = (n,)
    for _ in range(rng.randint(1, 3)):
        wide = rng.randint(3, 8)
        layers += [nn.Linear(n, wide, bias=rng.random() < 0.8)]
        layers += [nn.LayerNorm(wide)] if rng.random() < 0.3 else []
        layers, n = [*layers, rng.choice(acts)()], wide
    torch.manual_seed(seed)
    return nn.Sequential(*layers, nn.Linear(n, 4)).to(D), shape


def named(net: nn.Module) -> dict[str, Tensor]:
    """Gradients by name; None counts as zero, which it is."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in net.named_parameters()
    }


@pytest.mark.parametrize("label", RULES)
@pytest.mark.parametrize("seed", range(12))
def test_both_paths_agree_on_random_networks(label: str, seed: int) -> None:
    net, shape = random_stack(seed)
    x, y = torch.randn(6, *shape, dtype=D), torch.randint(4, (6,))
    rule = RULES[label](net, generator=gen(1), example=x)
    assert rule.is_stack
    value = rule.backward(x, y)
    want = named(net)
    held = {n: p.grad.clone() for n, p in rule.named_parameters(recurse=False)}

    if label != "DRTP":  # whose target only backward has
        rule.zero_grad()
        state = [g.get_state() for g in [getattr(rule, "_own", None)] if g is not None]
        loss = F.cross_entropy(rule(x), y)
        loss.backward()
        torch.testing.assert_close(loss.detach(), value)
        if not state:  # brSF has drawn anew
            assert_same(named(net), want)
        for n, p in rule.named_parameters(recurse=False):
            torch.testing.assert_close(p.grad, held[n], rtol=1e-12, atol=1e-12)
        rule.backward(x, y)
        if state:  # the same draw once more, on the other path
            rule._own.set_state(state[0])
            rule.backward(x, y)
            want = named(net)
            rule._own.set_state(state[0])
            rule.zero_grad()
            F.cross_entropy(rule(x), y).backward()
            assert_same(named(net), want)


@pytest.mark.parametrize("label", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_a_class_of_its_own_has_the_stacks_gradients(label: str, seed: int) -> None:
    net, shape = random_stack(seed)
    x, y = torch.randn(6, *shape, dtype=D), torch.randint(4, (6,))
    rule = RULES[label](net, generator=gen(1), example=x)
    twin = Wrapped(copy.deepcopy(net))
    options: dict[str, Any] = {}
    if rule.draws:
        if rule.direct:
            options["feedback"] = {f"net.{n}": b for n, b in rule.feedback.items()}
        else:
            above = {n: f"{rule.layers[i + 1]}.weight" for i, n in enumerate(rule.layers[:-1])}
            drawn = {f"net.{above[n]}": rule.drawn(n) for n in rule.receivers}
            weights = {n: p for n, p in twin.named_parameters() if p.ndim > 1}
            rest = {n: torch.randn(p.shape, dtype=D) for n, p in weights.items()}
            options["feedback"] = rest | drawn
    other = RULES[label](twin, generator=gen(1), example=x, **options)
    assert not other.is_stack
    if label == "brSF":  # R as it is, for both
        rule.refresh = other.refresh = lambda: None
    for _ in range(2):  # with and without the proof
        a, b = rule.backward(x, y), other.backward(x, y)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert_same({n.removeprefix("net."): g for n, g in named(twin).items()}, named(net))
    got = {n.removeprefix("net."): g for n, g in other.gradients(x, y).items()}
    assert_same(got, rule.gradients(x, y))
    rule.sgd_step(x, y, 0.1)
    other.sgd_step(x, y, 0.1)
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        assert q.grad is None


def test_a_rule_of_ones_own_works_on_any_network_by_its_matrix() -> None:
    class Half(FA, label="half"):
        def matrix(self, layer: str) -> Tensor:
            return (super().matrix(layer) + self.weight(layer)) / 2

    class Signed(FA, label="signed"):
        def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor:
            return self.pull(self.matrix(layer), delta.sign())

    torch.manual_seed(0)
    net = Residual().to(D)
    x, y = torch.randn(4, 2, 8, 8, dtype=D), torch.randint(3, (4,))
    rule = Half(net, generator=gen())
    oracle = with_feedback(net, {n: rule.matrix(n) for n in rule.receivers})
    rule.backward(x, y)
    F.cross_entropy(oracle(x), y).backward()
    assert_same(grads(net), grads(oracle))
    with pytest.raises(UnsupportedModule, match=r"Signed\.send changes .*forward of its own"):
        Signed(net, generator=gen())
    stack, shape = random_stack(3)
    rule = Signed(stack, generator=gen())
    with pytest.raises(UnsupportedModule, match=r"takes rule\.backward\(x, target\) on a stack"):
        rule(torch.randn(6, *shape, dtype=D))

    class Louder(fabook.BP, label="louder"):
        def send(self, layer: str, delta: Tensor, top: Tensor) -> Tensor:
            return super().send(layer, 2 * delta, top)

    with pytest.raises(UnsupportedModule, match=r"Louder\.send pulls"):
        Louder(Body().to(D)).backward(x, y)


def test_backpropagation_takes_networks_in_which_nothing_could_be_placed() -> None:
    for name in set(REFUSED) - {"reentrant checkpoint"}:  # which autograd itself gives nothing
        net = REFUSED[name][0]()
        x = torch.randn(5, 3)
        fabook.BP(net)(x).square().sum().backward()
        ours = named(net)
        net.zero_grad()
        net(x).square().sum().backward()
        assert_same(ours, named(net))


@pytest.mark.parametrize("name", REFUSED)
def test_every_rule_of_the_weights_refuses_by_name(name: str) -> None:
    make, message = REFUSED[name]
    for label in ("FA", "uSF", "frSF", "brSF", "KP"):
        with pytest.raises(UnsupportedModule, match=message):
            RULES[label](make(), generator=gen())(torch.randn(5, 3))


def residual_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Residual().to(D), torch.randn(6, 2, 8, 8, dtype=D), torch.randint(3, (6,))


class Body(nn.Module):
    """Residual blocks in a chain: the default blocks of a direct rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.blocks = nn.Sequential(Inner(3), Inner(3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.blocks(torch.relu(self.stem(x)))).mean((2, 3)))


class Inner(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(n, n, 3, padding=1), nn.Conv2d(n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize("label", ["DFA", "DRTP", "Shallow"])
def test_direct_rules_cut_between_blocks(label: str) -> None:
    """What stands between two blocks belongs to the lower one, as on a stack."""
    torch.manual_seed(0)
    net = Body().to(D)
    x, y = torch.randn(5, 2, 6, 6, dtype=D), torch.randint(4, (5,))
    rule = RULES[label](net, generator=gen(), example=x)
    assert rule.receivers == ["stem", "blocks.0", "blocks.1"]
    rule.backward(x, y)
    ours = named(net)
    net.zero_grad()
    h1 = torch.relu(net.stem(x))
    h2 = net.blocks[0](h1.detach())
    h3 = torch.tanh(net.blocks[1](h2.detach())).mean((2, 3))
    out = net.head(h3.detach())
    F.cross_entropy(out, y).backward()
    hot = F.one_hot(y, 4).to(D)
    sent = ((out.detach().softmax(-1) if label == "DFA" else 0) * 1.0 - hot) / 5
    sent = -sent if label == "DRTP" else sent
    if label != "Shallow":
        for h, f in zip((h1, h2, h3), rule.feedback.values(), strict=True):
            assert f.shape == (h[0].numel(), 4)
            h.backward((sent @ f.t()).reshape(h.shape))
    assert_same(ours, named(net))


def test_direct_rules_take_blocks_that_are_named() -> None:
    net, x, y = residual_and_batch()
    rule = fabook.DFA(net, blocks=["stem"], example=x, generator=gen())
    assert {n: tuple(f.shape) for n, f in rule.feedback.items()} == {"stem": (4 * 64, 3)}
    F.cross_entropy(rule(x), y).backward()
    ours = named(net)
    rule.backward(x, y)
    assert_same(ours, named(net))
    stack, shape = random_stack(0)
    with pytest.raises(ValueError, match="pass example=x"):
        fabook.DFA(net, blocks=["stem"], generator=gen())
    with pytest.raises(ValueError, match=r"no block 'layer9'; there are 'stem', 'conv'"):
        fabook.DFA(net, blocks=["layer9"], example=x, generator=gen())
    with pytest.raises(ValueError, match=r"list of different names; got 'stem'"):
        fabook.DFA(net, blocks="stem", example=x, generator=gen())
    with pytest.raises(ValueError, match="FA goes down through every weight and takes no blocks"):
        fabook.FA(net, blocks=["stem"], generator=gen())
    rule = fabook.DFA(stack, blocks=["0"], example=torch.randn(2, *shape, dtype=D), generator=gen())
    assert not rule.is_stack


def test_a_sequence_is_sent_to_position_by_position() -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.emb, net.block, net.head = nn.Embedding(7, 8), Block(), nn.Linear(8, 7)
    net = Wrapped(net).to(D)
    x = torch.randint(7, (3, 5))
    rule = fabook.DFA(net, example=x, generator=gen())
    assert {n: tuple(f.shape) for n, f in rule.feedback.items()} == {
        "net.emb": (8, 7),
        "net.block": (8, 7),
    }
    rule.backward(x, x)
    longer = torch.randint(7, (2, 9))
    rule.backward(longer, longer)
    h = net.net.emb(longer).detach()
    out = net.net.head(net.net.block(h)).detach()
    e = (out.softmax(-1) - F.one_hot(longer, 7)) / 18
    sent = e @ rule.feedback["net.emb"].t()
    want = torch.zeros_like(net.net.emb.weight).index_add_(0, longer.flatten(), sent.flatten(0, 1))
    torch.testing.assert_close(net.net.emb.weight.grad, want, rtol=1e-12, atol=1e-12)


def test_a_signal_of_another_size_is_refused() -> None:
    net, x, y = residual_and_batch()
    rule = fabook.DFA(net, blocks=["stem"], example=x, generator=gen())
    with pytest.raises(ValueError, match=r"block 'stem' gives \(6, 4, 4, 4\).*another shape"):
        rule.backward(x[..., :4, :4], y)
    with pytest.raises(TypeError, match="example must be a batch of inputs, a tensor; got True"):
        fabook.DFA(net, blocks=["stem"], example=True, generator=gen())


def test_a_block_that_takes_two_signals_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(3, 4), nn.Linear(3, 4), nn.Bilinear(4, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(self.a(x), self.b(x))

    net, x = Two(), torch.randn(5, 3)
    rule = fabook.DFA(net, example=x, generator=gen())
    with pytest.raises(UnsupportedModule, match=r"block 'both' must run once, take one tensor"):
        rule.backward(x, torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize("label", RULES)
def test_state_copies_and_random_numbers_are_as_on_a_stack(label: str) -> None:
    net, x, y = residual_and_batch()
    net = Body().to(D)
    y = y.clamp(max=2)
    rule = RULES[label](net, generator=gen(5), example=x)
    again = RULES[label](copy.deepcopy(net), generator=gen(5), example=x)
    other = RULES[label](copy.deepcopy(net), generator=gen(6), example=x)
    rule.backward(x, y)
    again.backward(x, y)
    assert_same(named(rule.net), named(again.net))  # a seed means one feedback
    clones = [copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
    other.load_state_dict(rule.state_dict())
    rule.backward(x, y)
    want = named(rule.net)
    for clone in [*clones, other]:
        clone.backward(x, y)
        assert_same(named(clone.net), want)
        assert clone.net is not rule.net
    before = {k: v.clone() for k, v in rule.state_dict().items() if isinstance(v, Tensor)}
    random_state = torch.get_rng_state()
    rule.gradients(x, y)
    for key, value in before.items():  # measuring changes nothing
        assert torch.equal(rule.state_dict()[key], value), key
    assert torch.equal(torch.get_rng_state(), random_state)
    rule.float()
    rule.backward(x.float(), y)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in rule.parameters())


def test_feedback_that_learns_takes_the_gradient_of_its_weight() -> None:
    net, x, y = residual_and_batch()
    net.conv.weight.requires_grad_(False)
    rule = fabook.KolenPollack(net, generator=gen())
    oracle = with_feedback(net, {n: b.clone() for n, b in rule.feedback.items()})
    for _ in range(2):
        rule.zero_grad()
        F.cross_entropy(rule(x), y).backward()
        oracle.zero_grad()
        F.cross_entropy(oracle(x), y).backward()
        assert_same(grads(net), grads(oracle))
        for name, p in rule.named_parameters(recurse=False):
            weight = net.get_parameter(name.removeprefix("feedback_").replace("/", "."))
            same = p.grad is weight.grad is None or torch.equal(p.grad, weight.grad)
            assert same, name
    gap = (net.head.weight - rule.feedback["head.weight"]).norm()
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        rule.backward(x, y)
        optimizer.step()
    now = (net.head.weight - rule.feedback["head.weight"]).norm()
    torch.testing.assert_close(now, gap * 0.95**5, rtol=1e-12, atol=1e-12)
    only_net = torch.optim.SGD(net.parameters(), lr=0.1)
    rule.backward(x, y)
    only_net.step()
    with pytest.raises(RuntimeError, match=r"give the optimizer rule\.parameters\(\)"):
        rule(x)


def test_kolen_pollack_learns_with_recurrent_weights_too() -> None:
    class Net(nn.Module):
        def __init__(self, free: bool) -> None:
            super().__init__()
            self.first, self.rnn, self.free = nn.Linear(3, 4), nn.LSTM(4, 4), free
            self.out = nn.Linear(4, 2)
            self.kept = [self.out.weight]  # not where it is looked for

        def forward(self, x: Tensor) -> Tensor:
            h = self.rnn(self.first(x))[0]
            return F.linear(h, self.kept[0]) if self.free else self.out(h)

    rule = fabook.KolenPollack(Net(False), generator=gen())
    for _ in range(2):
        rule.zero_grad()
        rule(torch.randn(5, 2, 3)).square().sum().backward()
        for name, b in rule.named_parameters(recurse=False):
            weight = rule.net.get_parameter(name.removeprefix("feedback_").replace("/", "."))
            assert torch.equal(b.grad, weight.grad)
    with pytest.raises(UnsupportedModule, match=r"'out\.weight' .*feedback cannot learn with it"):
        fabook.KolenPollack(Net(True), generator=gen())(torch.randn(5, 2, 3))


def test_labels_may_stand_on_axis_one_as_in_segmentation() -> None:
    torch.manual_seed(0)
    net = Wrapped(nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 1)))
    x, y = torch.randn(2, 1, 5, 5), torch.randint(4, (2, 5, 5))
    rule = fabook.FA(net, generator=gen())
    value = rule.backward(x, y)
    ours = named(net)
    rule.zero_grad()
    loss = F.cross_entropy(rule(x), y)
    loss.backward()
    torch.testing.assert_close(loss.detach(), value)
    for name, got in named(net).items():
        torch.testing.assert_close(got, ours[name])


# --- in other people's loops ---------------------------------------------------------------------


def test_a_scaled_loss_under_autocast_gives_the_same_step() -> None:
    torch.manual_seed(0)
    for build in (lambda: Wrapped(random_stack(1)[0]), lambda: random_stack(1)[0]):
        net = build().float()
        shape = random_stack(1)[1]
        rule = fabook.FA(net, generator=gen(), example=torch.randn(6, *shape))
        x, y = torch.randn(6, *shape), torch.randint(4, (6,))
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        start = copy.deepcopy(net.state_dict())
        ends = []
        for scaled in (True, False):
            net.load_state_dict(start)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = rule(x)
                loss = F.cross_entropy(output.float(), y)
            assert output.dtype == torch.bfloat16
            if scaled:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            ends.append([p.detach().clone() for p in net.parameters()])
        for a, b in zip(*ends):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        with torch.autocast("cpu", torch.bfloat16):
            rule.backward(x, y)
        assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("label", ["FA", "KP", "DFA", "Shallow"])
@pytest.mark.parametrize("wrap", [Wrapped, lambda stack: stack])
def test_a_loop_under_autocast_gives_nearly_the_step_in_single_precision(
    label: str, wrap: Any
) -> None:
    net = wrap(fabook.mlp([5, 8, 8, 3], generator=gen()))
    x, y = torch.randn(20, 5, generator=gen(1)), torch.arange(20) % 3
    rule = RULES[label](net, generator=gen(2), example=x)
    with torch.autocast("cpu", torch.bfloat16):
        output = rule(x)
    F.cross_entropy(output, y).backward()  # the error comes down in the output's half precision
    half = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    F.cross_entropy(rule(x), y).backward()
    whole = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(half, whole, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    for label in ("FA", "brSF", "KP", "DFA"):
        torch.manual_seed(0)
        net = Body().to(D)
        x, y = torch.randn(8, 2, 6, 6, dtype=D), torch.randint(4, (8,))
        rule = RULES[label](net, generator=gen(2), example=x)
        parallel = nn.parallel.DistributedDataParallel(rule)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        half = slice(4 * rank, 4 * rank + 4)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(parallel(x[half]), y[half]).backward()
            optimizer.step()
        if rank == 0:
            torch.save(rule.state_dict(), f"{folder}/{label}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    for label in ("FA", "brSF", "KP", "DFA"):
        torch.manual_seed(0)
        net = Body().to(D)
        x, y = torch.randn(8, 2, 6, 6, dtype=D), torch.randint(4, (8,))
        rule = RULES[label](net, generator=gen(2), example=x)
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
        for _ in range(3):
            rule.backward(x, y)
            optimizer.step()
        found = torch.load(tmp_path / f"{label}.pt", weights_only=False)
        for key, value in rule.state_dict().items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(value, found[key], rtol=1e-12, atol=1e-12, msg=key)


OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as what it defines


@pytest.fixture(scope="module")
def models() -> Any:
    """torchvision's networks; its wheel for GPUs lacks its operators beside torch for CPUs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to load image", UserWarning)
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in ("nms", "qnms"):
                OPERATORS.define(f"{name}(Tensor boxes, Tensor scores, float iou) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
            return importlib.import_module("torchvision.models")


VISION = {"resnet18": 8, "vgg11_bn": 4, "mobilenet_v2": 8}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvisions_networks_have_the_oracles_gradients(models: Any, name: str) -> None:
    torch.manual_seed(0)
    net = getattr(models, name)(num_classes=10).to(D)
    if name == "mobilenet_v2":  # 52 batch norms over eight samples magnify rounding to 1e-10
        net.eval()
    x = torch.randn(VISION[name], 3, 32, 32, dtype=D, generator=gen(1))
    y = torch.arange(len(x))
    rule = FA(net, generator=gen(2))
    oracle = with_feedback(net, dict(rule.feedback))
    rule.backward(x, y)
    F.cross_entropy(oracle(x), y).backward()
    assert_same(grads(net), grads(oracle))


@pytest.mark.parametrize("label", ["FA", "DFA"])
@pytest.mark.parametrize("name", VISION)
def test_torchvisions_networks_train(models: Any, name: str, label: str) -> None:
    torch.manual_seed(0)
    net = getattr(models, name)(num_classes=10)
    x = torch.randn(VISION[name], 3, 32, 32, generator=gen(1))
    y = torch.arange(len(x))
    rule = RULES[label](net, generator=gen(2), example=x)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = rule.backward(x, y)
        optimizer.step()
        assert loss.isfinite()
    still = [n for n, p in net.named_parameters() if torch.equal(p, before[n])]
    assert not still


@pytest.mark.parametrize("label", ["FA", "DFA"])
def test_lightnings_loop_takes_the_steps_of_ours(label: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    x, y = torch.randn(12, 2, 6, 6, dtype=D, generator=gen(1)), torch.arange(12) % 4

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rule = RULES[label](Body().to(D), generator=gen(2), example=x)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.rule(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.rule.parameters(), lr=0.1, momentum=0.9)

    module, ours = Module(), Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own about torch, logging and workers
        trainer.fit(module, loader)
    optimizer = ours.configure_optimizers()
    for _ in range(2):
        for k in range(0, 12, 4):
            optimizer.zero_grad()
            ours.rule.backward(x[k : k + 4], y[k : k + 4])
            optimizer.step()
    for a, b in zip(module.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- what an audit found wrong in silence --------------------------------------------------------


class Conditioned(nn.Module):
    """Features of data by a row of a table, as a product or, ``how`` being "attend", a memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm, self.ids = how, nn.LayerNorm(3), nn.Embedding(7, 4)
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        e = self.ids(i)
        h = self.b(torch.tanh(self.a(self.norm(x) if self.how == "norm" else x)))
        if self.how == "attend":
            return self.head(torch.softmax(e @ h.t(), -1) @ h)
        return (h * e).sum(1, keepdim=True) if self.how == "dot" else self.head(h * e)


class Film(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.e, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        h = self.c2(torch.relu(self.c1(x))) * self.e(i)[:, :, None, None]
        return self.head(torch.relu(h).mean((2, 3)))


class Caption(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v, self.t, self.head = nn.Linear(3, 8), nn.Embedding(9, 8), nn.Linear(8, 9)
        self.d = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        return self.head(self.d(self.t(i), torch.tanh(self.v(x))))


@pytest.mark.parametrize("how", ["product", "norm", "dot", "attend", "conv"])
@pytest.mark.parametrize("label", ["FA", "uSF"])
def test_data_and_a_row_of_a_table_meet_at_every_update(how: str, label: str) -> None:
    torch.manual_seed(0)
    net = (Film() if how == "conv" else Conditioned(how)).to(D)
    rule = RULES[label](net, generator=gen())
    oracle = with_feedback(net, rule.feedback)
    x = torch.randn(5, 1, 6, 6, dtype=D) if how == "conv" else torch.randn(5, 3, dtype=D)
    for _ in range(3):
        net.zero_grad()
        oracle.zero_grad()
        rule(x, torch.arange(5)).square().sum().backward()
        oracle(x, torch.arange(5)).square().sum().backward()
        assert_same(grads(net), grads(oracle))


def test_a_decoder_over_features_has_the_proven_gradient_at_every_update() -> None:
    torch.manual_seed(0)
    net = Caption().to(D)
    rule = FA(net, generator=gen())
    x, i = torch.randn(5, 6, 3, dtype=D), torch.randint(9, (5, 4))
    found = []
    for _ in range(3):
        net.zero_grad()
        rule(x, i).square().mean().backward()
        found.append({n: g.clone() for n, g in grads(net).items()})
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("width", [1, 2])
def test_a_table_whose_rows_data_weigh_is_refused(width: int) -> None:
    net = nn.Module()
    net.q, net.v = nn.Linear(3, 4), nn.EmbeddingBag(4, width, mode="sum")
    net.forward = lambda x, weighed: net.v(
        torch.arange(4).repeat(len(x), 1), per_sample_weights=net.q(x) if weighed else None
    )
    rule = FA(net, generator=gen())
    for _ in range(2):
        rule(torch.randn(5, 3), False).sum().backward()
    with pytest.raises(UnsupportedModule, match=r"'v\.weight' .*EmbeddingBagBackward0"):
        rule(torch.randn(5, 3), True)
    with pytest.raises(UnsupportedModule, match=r"'v\.weight' .*EmbeddingBagBackward0"):
        FA(net, generator=gen())(torch.randn(5, 3), True)


class _Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


WRAPPED = {
    "distribution": lambda z: torch.distributions.Categorical(logits=z),
    "inner distribution": lambda z: SimpleNamespace(logits=SimpleNamespace(value=z)),
    "object beside a tensor": lambda z: (z.detach(), SimpleNamespace(logits=z)),
    "named tuple": lambda z: namedtuple("Named", "logits")(z),
}


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", None) if type(output) is not tuple else output[1].logits
    return found if isinstance(found, Tensor) else found.value


@pytest.mark.parametrize("how", WRAPPED)
def test_an_output_that_is_an_object_has_the_rule_as_its_graph(how: str) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.a, net.b = nn.Linear(5, 6).to(D), nn.Linear(6, 3).to(D)
    net.forward = lambda x: WRAPPED[how](net.b(torch.tanh(net.a(x))))
    rule = FA(net, generator=gen())
    x, y = torch.randn(7, 5, dtype=D), torch.randint(3, (7,))
    for _ in range(2):
        net.zero_grad()
        F.cross_entropy(_logits(rule(x)), y).backward()
        ours = {n: g.clone() for n, g in grads(net).items()}
        net.zero_grad()
        h = torch.tanh(net.a(x))
        z = up_down(F.linear, h, net.b.weight, rule.feedback["b.weight"]) + net.b.bias
        F.cross_entropy(z, y).backward()
        assert_same(ours, grads(net))


def test_an_output_without_a_tensor_is_refused() -> None:
    net = nn.Module()
    net.a, net.b = nn.Linear(5, 6), nn.Linear(6, 3)
    net.forward = lambda x: _Slots(net.b(net.a(x)))
    rule = FA(net, generator=gen())
    with pytest.raises(UnsupportedModule, match=r"returns _Slots.*return tensors"):
        rule(torch.randn(7, 5))
    with torch.no_grad():
        assert rule(torch.randn(7, 5)).logits.shape == (7, 3)
    assert fabook.BP(net)(torch.randn(7, 5)).logits.requires_grad


def test_an_input_in_a_named_tuple_is_shown_to_the_proof() -> None:
    net = nn.Module()
    net.a, net.b = nn.Linear(5, 3), nn.Linear(2, 4)
    net.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    net.forward = lambda x, p: net.a(x) + net.normed(torch.tanh(net.b(p.c)))
    p = namedtuple("P", "c d")(torch.randn(7, 2), None)
    with pytest.raises(UnsupportedModule, match=r"original0.*AddmmBackward0.*WeightNorm"):
        FA(net, generator=gen())(torch.randn(7, 5), p)


SUMMED = {
    "product": lambda h, w: (h * w).sum(-1),
    "weight first": lambda h, w: (w * h).sum(1),
    "a row": lambda h, w: (h * w[0]).sum(-1, keepdim=True),
    "vecdot": lambda h, w: torch.linalg.vecdot(h, w),
}


@pytest.mark.parametrize("how", SUMMED)
def test_a_matrix_of_one_row_that_is_written_as_a_sum_is_refused(how: str) -> None:
    net = nn.Module()
    net.a, net.w = nn.Linear(5, 4), nn.Parameter(torch.randn(1, 4))
    net.forward = lambda x: SUMMED[how](torch.tanh(net.a(x)), net.w)
    with pytest.raises(UnsupportedModule, match=r"'w' .*Backward0, which keeps it"):
        FA(net, generator=gen())(torch.randn(7, 5))


@pytest.mark.parametrize("end", [lambda h: h, lambda h: h.sum(0), lambda h: h.sum()])
def test_a_gain_of_two_axes_is_none(end: Any) -> None:
    net = nn.Module()
    net.a, net.w, net.b = nn.Linear(5, 4), nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 4)
    net.forward = lambda x: end(net.b(net.a(x)) * net.w)
    rule = FA(net, generator=gen())
    for _ in range(2):
        rule(torch.randn(7, 5)).square().sum().backward()


class Frozen(nn.Module):
    """One of three frozen layers, or a buffer of their shape, between two that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(5, 4), nn.Linear(4, 3)
        self.e = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(3)])
        self.e.requires_grad_(False)
        self.register_buffer("buffer", torch.randn(4, 4))

    def forward(self, x: Tensor, i: int | None) -> Tensor:
        w = self.buffer if i is None else self.e[i].weight
        return self.o(torch.tanh(F.linear(self.a(x), w)))


@pytest.mark.parametrize("order", [(0, 0, 1, 2, 0), (0, 1, None, 1), (None, None, 0, 1)])
@pytest.mark.parametrize("half", [False, True])
def test_each_frozen_weight_has_its_own_feedback(order: tuple[int | None, ...], half: bool) -> None:
    torch.manual_seed(0)
    net = Frozen().to(torch.float32 if half else D)
    rule = FA(net, generator=gen())
    x = torch.randn(7, 5).to(net.a.weight)
    for i in order:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = rule(x, i).to(x)
        output.square().sum().backward()
        ours = {n: g.clone() for n, g in grads(net).items()}
        net.zero_grad()
        b, h = rule.feedback, net.a(x)
        h = F.linear(h, net.buffer) if i is None else up_down(
            F.linear, h, net.e[i].weight, b[f"e.{i}.weight"]
        )  # fmt: skip
        output = up_down(F.linear, torch.tanh(h), net.o.weight, b["o.weight"]) + net.o.bias
        output.square().sum().backward()
        for name, g in grads(net).items():
            assert F.cosine_similarity(ours[name].flatten(), g.flatten(), 0) > 0.999
            if not half:
                torch.testing.assert_close(ours[name], g, rtol=1e-12, atol=1e-12)


def test_a_part_of_a_weight_is_not_taken_for_the_copy_of_all_of_it() -> None:
    net = nn.Module()
    net.a, net.w = nn.Linear(5, 4), nn.Parameter(torch.randn(4, 4))
    net.forward = lambda x, n: torch.tanh(net.a(x))[:, :n] @ net.w[:, :n].t()
    rule = FA(net, generator=gen())
    with torch.autocast("cpu", torch.bfloat16):
        rule(torch.randn(7, 5), 4)
        rule(torch.randn(7, 5), 4)
        with pytest.raises(UnsupportedModule, match=r"'w' .*rearranged copy"):
            rule(torch.randn(7, 5), 2)


@pytest.mark.parametrize("learns", ["both", "weight", "table"])
def test_a_parameter_that_a_layer_takes_is_an_input(learns: str) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.a, net.p, net.o = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(6, 2)
    net.pos = nn.Parameter(torch.randn(4, 3))
    net.forward = lambda x: net.o(torch.tanh(net.a(x) + net.p(net.pos)))
    net.to(D)
    net.pos.requires_grad_(learns != "weight")
    net.p.weight.requires_grad_(learns != "table")
    rule, x = FA(net, generator=gen()), torch.randn(7, 4, 5, dtype=D)
    for _ in range(2):
        net.zero_grad()
        rule(x).square().sum().backward()
        ours = {n: g.clone() for n, g in grads(net).items()}
        net.zero_grad()

        def layer(name: str, h: Tensor) -> Tensor:
            w, b = net.get_parameter(f"{name}.weight"), rule.feedback[f"{name}.weight"]
            return up_down(F.linear, h, w, b) + net.get_parameter(f"{name}.bias")

        layer("o", torch.tanh(layer("a", x) + layer("p", net.pos))).square().sum().backward()
        assert_same(ours, grads(net))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.RNN, nn.LSTM])
def test_a_learned_first_state_is_an_input(kind: type) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.c, net.h0 = kind(3, 4).to(D), nn.Parameter(torch.zeros(1, 4, dtype=D))

    def forward(x: Tensor) -> Tensor:
        h = net.h0.expand(len(x), -1)
        if kind is nn.RNNCell:
            return net.c(x, h)
        h = h[None].contiguous()
        return net.c(x[None], (h, torch.zeros_like(h)) if kind is nn.LSTM else h)[0]

    net.forward = forward
    rule, x = FA(net, generator=gen()), torch.randn(6, 3, dtype=D)
    for _ in range(2):
        net.zero_grad()
        rule(x).square().sum().backward()
        ours = {n: g.clone() for n, g in grads(net).items()}
        net.zero_grad()
        net(x).square().sum().backward()  # one step: but for h0, all is above its weight
        hh = next(n for n in ours if "weight_hh" in n)
        assert not ours[hh].any()
        first, true = ours.pop("h0"), grads(net)
        assert (first - true.pop("h0")).abs().max() > 1e-3
        assert_same(ours, true)


def test_a_product_of_two_parameters_is_refused_or_true() -> None:
    net = nn.Module()
    net.a, net.u, net.v = nn.Linear(5, 4), *(nn.Parameter(torch.randn(4, 4)) for _ in "uv")
    net.forward = lambda x: net.a(x) + net.u @ net.v
    with pytest.raises(UnsupportedModule, match=r"'u' .*MmBackward0.*with 'v'.*write F.linear"):
        FA(net, generator=gen())(torch.randn(4, 5))
    net.forward = lambda x: (net.a(x), (net.u @ net.u.t() - 1).square().sum())
    for how in (FA, fabook.BP):
        net.zero_grad()
        how(net, generator=gen())(torch.randn(4, 5))[1].backward()
        torch.testing.assert_close(
            net.u.grad, 4 * (net.u @ net.u.t() - 1).detach() @ net.u.detach()
        )


class Warm(FA, label="warm"):
    """Backpropagation at the first update."""

    updates = 0

    def refresh(self) -> None:
        self.updates += 1

    def matrix(self, layer: str) -> Tensor:
        return self.weight(layer) if self.updates <= 1 else self.drawn(layer)


class WarmKP(fabook.KolenPollack, label="warm KP"):
    updates = 0
    refresh, matrix = Warm.refresh, Warm.matrix


class Turned(FA, label="turned"):
    def matrix(self, layer: str) -> Tensor:
        w = self.weight(layer)
        return w.t() if w.shape[0] == w.shape[1] else w


@pytest.mark.parametrize("kind", [Warm, WarmKP, Turned])
@pytest.mark.parametrize("wrap", [Wrapped, lambda stack: stack])
def test_whether_the_matrix_is_the_weight_is_asked_at_every_update(kind: Any, wrap: Any) -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6)).to(D)
    net = wrap(stack)
    rule, other = kind(net, generator=gen()), kind(net, generator=gen())
    x, y = torch.randn(7, 5, dtype=D), torch.randint(3, (7,))
    for update in range(3):
        rule.backward(x, y)
        ours = named(net)
        net.zero_grad()
        F.cross_entropy(other(x), y).backward()
        loop = named(net)
        w, b = stack[2].weight, rule.matrix(rule.receivers[-1])
        assert torch.equal(w, b) == (update == 0 and kind is not Turned)
        net.zero_grad()
        z = up_down(F.linear, torch.tanh(stack[0](x)), w, b.detach()) + stack[2].bias
        F.cross_entropy(z, y).backward()
        assert_same(ours, named(net))
        assert_same(loop, named(net))


REARRANGED = {
    "contiguous": (lambda w: torch.eye(4), lambda h, w: h @ w.t().contiguous()),
    "tokens": (lambda w: torch.zeros(4, 4), lambda h, w: h @ w.t().contiguous()),
    "einsum": (
        lambda w: torch.zeros(2, 4, 3),
        lambda h, w: torch.einsum("bnd,hdk->bhnk", h[None], w),
    ),
}


@pytest.mark.parametrize("name", REARRANGED)
@pytest.mark.parametrize("label", ["FA", "uSF", "KP"])
def test_a_rearranged_copy_of_symmetric_numbers_is_refused(name: str, label: str) -> None:
    start, f = REARRANGED[name]
    net = nn.Module()
    net.e, net.w = nn.Embedding(9, 4), nn.Parameter(start(None))
    net.forward = lambda i: f(net.e(i), net.w)
    with pytest.raises(UnsupportedModule, match=r"'w' .*rearranged copy"):
        RULES[label](net, generator=gen())(torch.arange(5))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_copy_in_half_precision_of_equal_numbers_is_placed(frozen: bool) -> None:
    net = nn.Module()
    net.a, net.w = nn.Linear(5, 4), nn.Parameter(torch.zeros(4, 4), requires_grad=not frozen)
    net.forward = lambda x: torch.tanh(net.a(x)) @ net.w.t()
    rule, x = FA(net, generator=gen()), torch.randn(7, 5)
    for _ in range(2):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = rule(x)
        output.float().sum().backward()
        h = torch.tanh(net.a(x))
        want = ((1 - h**2) * rule.feedback["w"].sum(0)).t() @ x
        got = net.a.weight.grad
        assert F.cosine_similarity(got.flatten(), want.flatten(), 0) > 0.999


@pytest.mark.parametrize("channels", [3, 4])
def test_maps_are_sent_to_whole_whatever_their_channels(channels: int) -> None:
    torch.manual_seed(0)
    net = nn.Module()
    net.a, net.b = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
    net.forward = lambda x: net.b(torch.tanh(net.a(x)))
    net.to(D)
    x = torch.randn(2, 1, 5, 5, dtype=D)
    rule = fabook.DFA(net, example=x, generator=gen())
    assert {n: tuple(f.shape) for n, f in rule.feedback.items()} == {"a": (25 * channels, 75)}
    rule(x).square().sum().backward()
    ours = {n: g.clone() for n, g in grads(net).items()}
    net.zero_grad()
    h = torch.tanh(net.a(x))
    z = net.b(h.detach())
    z.square().sum().backward()
    h.backward((2 * z.detach().flatten(1) @ rule.feedback["a"].t()).reshape(h.shape))
    assert_same(ours, grads(net))
