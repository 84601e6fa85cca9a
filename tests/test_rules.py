"""Backpropagation against autograd, every other rule against its formula written out."""

import copy
import inspect
import io
import itertools
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fabook.base import rule_labels
from fabook.losses import output_error
from fabook.measuring import peak_bytes
from fabook.networks import ACTIVATIONS, Scale, convnet, draw, linear_net, mlp, two_layer
from fabook.rules import (
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
from fabook.stack import Stack
from fabook.streams import stream

few = settings(deadline=None, derandomize=True, max_examples=30, database=None)


@pytest.fixture(autouse=True)
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def rand(*shape, seed=0, low=None):
    """Normal numbers of the default dtype, or whole ones in [0, low)."""
    g = stream(seed, "test", *shape)
    return (
        torch.randn(shape, generator=g) if low is None else torch.randint(low, shape, generator=g)
    )


def close(got, want, scale=1.0):
    """To 1e-12 in double precision (1e-5 in single), relative to the largest entry above one."""
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    tol = 1e-12 if want.dtype == torch.float64 else 1e-5
    error = (got - want).abs().max() if want.numel() else torch.zeros(())
    assert error <= tol * scale * max(1.0, float(want.abs().max())), float(error)


def fill(net, device="cpu", seed=0):
    """Give every parameter random values; nothing of torch's own initialisation stays."""
    g = stream(seed, "fill")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return net.to(device)


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)


L, C, S = nn.Linear, nn.Conv2d, nn.Sequential

# name -> (network, shape of a batch); batches are odd on purpose
ZOO = {
    "one layer": (lambda: S(L(4, 3)), (5, 4)),
    "no biases": (lambda: S(L(4, 6, False), nn.Tanh(), L(6, 3, False)), (7, 4)),
    "some biases": (lambda: S(L(4, 6), nn.ReLU(), L(6, 5, False), nn.ReLU(), L(5, 3)), (7, 4)),
    "batch of one": (lambda: S(L(4, 6), nn.Tanh(), L(6, 3)), (1, 4)),
    "one sample without a batch axis": (lambda: S(L(4, 6), nn.Tanh(), L(6, 3)), (4,)),
    "no activations": (lambda: S(L(4, 6), L(6, 5), L(5, 3)), (3, 4)),
    "our activations": (
        lambda: S(
            *(m for a in ACTIVATIONS.values() for m in (L(4, 4), a(), Scale(1.7))),
            *(L(4, 3), Scale(3)),
        ),
        (7, 4),
    ),
    "other activations": (
        lambda: S(
            *(m for a in (nn.GELU, nn.ELU, nn.SiLU, nn.Softplus) for m in (L(4, 4), a())),
            *(L(4, 4), nn.Hardtanh(), L(4, 4), nn.PReLU(), L(4, 3), nn.Softplus()),
        ),
        (7, 4),
    ),
    "in place": (
        lambda: S(L(4, 6), nn.ReLU(True), L(6, 5), nn.ELU(inplace=True), L(5, 3)),
        (7, 4),
    ),
    "nested": (
        lambda: S(S(L(4, 6), nn.Tanh()), S(S(L(6, 5)), nn.Sigmoid()), S(), L(5, 3), Scale(0.3)),
        (7, 4),
    ),
    "sequences": (lambda: S(L(4, 6), nn.Tanh(), L(6, 3)), (3, 5, 4)),
    "sequences flattened": (
        lambda: S(L(4, 6), nn.Tanh(), nn.Flatten(), L(30, 4), nn.Tanh(), L(4, 3)),
        (3, 5, 4),
    ),
    "flatten below": (lambda: S(nn.Flatten(), L(20, 6), nn.Tanh(), L(6, 3)), (3, 5, 4)),
    "batch norm": (
        lambda: S(L(4, 6), nn.BatchNorm1d(6), nn.ReLU(), L(6, 5), nn.BatchNorm1d(5), L(5, 3)),
        (7, 4),
    ),
    "layer norm": (
        lambda: S(L(4, 6), nn.LayerNorm(6), nn.Tanh(), L(6, 3), nn.LayerNorm(3)),
        (7, 4),
    ),
    "norm over two axes": (
        lambda: S(L(4, 6), nn.LayerNorm((5, 6)), nn.RMSNorm((5, 6)), nn.Flatten(), L(30, 3)),
        (3, 5, 4),
    ),
    "group norm": (lambda: S(L(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), L(6, 3)), (7, 4)),
    "dropout": (
        lambda: S(L(4, 6), nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.2), L(6, 3), nn.Dropout(0.1)),
        (7, 4),
    ),
    "convolutions": (
        lambda: S(
            C(2, 4, 3, stride=2, padding=1), nn.Tanh(), C(4, 6, 2, dilation=2, groups=2), nn.ReLU(),
            C(6, 6, (2, 1), stride=(1, 2), padding=(1, 0), groups=3, bias=False), nn.Flatten(),
            L(36, 3),
        ),
        (3, 2, 8, 9),
    ),
    "padding by name": (
        lambda: S(
            C(2, 3, (3, 5), padding="same"), C(3, 2, 3, padding="valid"), nn.Flatten(), L(24, 3),
        ),
        (3, 2, 6, 5),
    ),
    "pooling": (
        lambda: S(
            C(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(True), nn.MaxPool2d(2), C(3, 4, 2), nn.GELU(),
            nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(1), nn.Dropout2d(0.3), nn.Flatten(), L(4, 3),
        ),
        (3, 1, 9, 10),
    ),
    "convolution at the top": (lambda: S(C(2, 4, 3), nn.Tanh(), C(4, 3, 2)), (3, 2, 6, 6)),
    "maps of one side": (lambda: S(C(2, 4, 3), nn.Tanh(), C(4, 3, 2, bias=False)), (3, 2, 6, 6)),
    "flat maps": (lambda: S(C(2, 4, 3), nn.Tanh(), C(4, 3, 1), nn.Flatten(2)), (4, 2, 6, 5)),
    "pooled convolution at the top": (
        lambda: S(C(2, 4, 3), nn.Tanh(), C(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (3, 2, 6, 6),
    ),
}  # fmt: skip


def huber(output, target):
    return F.huber_loss(output, target, reduction="sum") / 3


TARGETS = ("labels", "probabilities", "mse", "callable")


def problem(name, kind, device):
    """Network, input, target, loss and the position of the classes' axis."""
    build, shape = ZOO[name]
    with torch.random.fork_rng():
        net = fill(build(), device)
        x = rand(*shape, seed=1).to(device)
        out = net(x).detach()
    maps = out.ndim > 2 and isinstance([m for m in net.modules() if hasattr(m, "weight")][-1], C)
    axis = 1 if maps else out.ndim - 1
    if kind == "labels":
        seen = list(out.shape)
        classes = seen.pop(axis)
        return net, x, rand(*seen, seed=2, low=classes).to(device), "cross_entropy", axis
    y = rand(*out.shape, seed=2).to(device)
    if kind == "probabilities":
        return net, x, y.softmax(axis), "cross_entropy", axis
    return net, x, y, (huber if kind == "callable" else "mse"), axis


def autograd(net, x, y, loss, reduction, axis):
    """Loss and gradients as torch has them; the classes' axis goes where torch wants it."""
    out = net(x)
    if loss == "cross_entropy":
        same = y.shape == out.shape
        moved = out.movedim(axis, -1)
        flat = moved.reshape(-1, moved.shape[-1])
        value = F.cross_entropy(
            flat,
            y.movedim(axis, -1).reshape(flat.shape) if same else y.flatten(),
            reduction=reduction,
        )
        if axis == 1:  # what F.cross_entropy itself says of maps
            close(value.detach(), F.cross_entropy(out, y, reduction=reduction).detach())
    else:
        value = F.mse_loss(out, y, reduction=reduction) if loss == "mse" else loss(out, y)
    value.backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = None
    return value.detach(), grads


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", ZOO)
def test_bp_is_autograd(name, kind, reduction, device):
    net, x, y, loss, axis = problem(name, kind, device)
    twin, stepped = copy.deepcopy(net), copy.deepcopy(net)

    def same_draws(f):
        with torch.random.fork_rng():
            torch.manual_seed(7)  # dropout's masks
            return f()

    value, want = same_draws(lambda: autograd(twin, x, y, loss, reduction, axis))
    options = {"loss": loss, "reduction": reduction}
    got = same_draws(lambda: BP(net).backward(x, y, **options))
    assert got.shape == ()
    assert not got.requires_grad
    close(got, value)
    assert list(want) == [k for k, _ in net.named_parameters()]
    for key, p in net.named_parameters():
        close(p.grad, want[key])
    for ours, theirs in zip(net.buffers(), twin.buffers()):  # running statistics: updated once
        close(ours, theirs)

    seen = same_draws(lambda: BP(net).gradients(x, y, **options))
    assert list(seen) == list(want)
    for key in want:
        close(seen[key], want[key])

    same_draws(lambda: BP(stepped).sgd_step(x, y, 0.3, **options))
    torch.optim.SGD(net.parameters(), lr=0.3).step()
    for ours, theirs in zip(stepped.parameters(), net.parameters()):
        assert ours.grad is None
        close(ours, theirs)


@few
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    bias=st.booleans(),
    norm=st.booleans(),
    batch=st.integers(2, 7),
    loss=st.sampled_from(["cross_entropy", "mse"]),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 10**6),
)
def test_bp_is_autograd_for_any_mlp(sizes, activation, bias, norm, batch, loss, reduction, seed):
    modules = list(mlp(sizes, activation=activation, bias=bias, generator=stream(seed, "w")))
    if norm:
        modules.insert(1, nn.LayerNorm(sizes[1]))
    net = fill(S(*modules), seed=seed)
    x, out = rand(batch, sizes[0], seed=seed), (batch, sizes[-1])
    y = rand(*out, seed=seed + 1) if loss == "mse" else rand(batch, seed=seed, low=sizes[-1])
    value, want = autograd(copy.deepcopy(net), x, y, loss, reduction, 1)
    close(BP(net).backward(x, y, loss=loss, reduction=reduction), value)
    # layer norm of one or two equal units divides by almost nothing
    for key, p in net.named_parameters():
        close(p.grad, want[key], scale=1e3 if norm else 1.0)


@pytest.mark.parametrize("x", [-1e30, -3.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0, 3.0, 1e30])
@pytest.mark.parametrize(
    "module", [*ACTIVATIONS, Scale(2.5), nn.LeakyReLU(0.0), nn.LeakyReLU(-1.0)]
)
def test_derivative_of_each_activation(module, x, device):
    act = ACTIVATIONS[module]() if isinstance(module, str) else module
    net = fill(S(L(1, 1, False), act, L(1, 1, False)), device)
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[2].weight.fill_(1)
    point = torch.tensor([[x]], device=device)
    z = point.clone().requires_grad_()
    act(z).sum().backward()
    (_, got, _), *_ = reversed(list(BP(net).signals(point, torch.zeros_like(point), loss=total)))
    close(got, z.grad)


def total(output, target):
    return output.sum()


def test_derivative_of_relu_at_zero_is_zero(device):
    net = fill(S(L(1, 1, False), nn.ReLU(), L(1, 1, False)), device)
    zero = torch.zeros(1, 1, device=device)
    assert [float(e) for _, e, _ in BP(net).signals(zero, zero, loss=total)] == [1.0, 0.0]


# --- each rule against its formula, with nothing of the library's in the formula ------------------


def tanh_net(device, sizes=(5, 4, 6, 3), bias=True):
    return fill(mlp(sizes, bias=bias, generator=stream(0, "w")), device)


def by_hand(net, x, e, arrives):
    """Gradients of a tanh network by the formula for what arrives at h_i (i = 0, 1, ...)."""
    layers = [m for m in net if isinstance(m, L)]
    h, z = [x], []
    for layer in layers:
        z.append(h[-1] @ layer.weight.detach().T)
        if layer.bias is not None:
            z[-1] = z[-1] + layer.bias.detach()
        h.append(torch.tanh(z[-1]))
    deltas = [e(z[-1])]
    for i in reversed(range(len(layers) - 1)):
        deltas.insert(0, arrives(i, deltas[0], deltas[-1]) * (1 - torch.tanh(z[i]) ** 2))
    grads = {}
    for i, layer in enumerate(layers):
        grads[f"{2 * i}.weight"] = deltas[i].T @ h[i]
        if layer.bias is not None:
            grads[f"{2 * i}.bias"] = deltas[i].sum(0)
    return grads, deltas


def error_of(y, loss, reduction):
    """The output error, written out."""

    def error(f):
        if loss == "mse":
            return 2 * (f - y) / (f.numel() if reduction == "mean" else 1)
        p = torch.exp(f - f.max(1, keepdim=True).values)
        p = p / p.sum(1, keepdim=True)
        return (p - torch.eye(f.shape[1]).to(f)[y]) / (len(f) if reduction == "mean" else 1)

    return error


def weights(net):
    return [m.weight.detach() for m in net if isinstance(m, L)]


def formula(rule, W, B, target):
    """What arrives at h_l, from delta = delta_{l+1} and the output error e."""
    W = W[1:]  # W[i] now is above layer l
    spread = [(2 / sum(w.shape)) ** 0.5 for w in W]
    return {
        "BP": lambda i, delta, e: delta @ W[i],
        "FA": lambda i, delta, e: delta @ B[i],
        "DFA": lambda i, delta, e: e @ B[i].T,
        "uSF": lambda i, delta, e: delta @ (spread[i] * torch.sign(W[i])),
        "frSF": lambda i, delta, e: delta @ (B[i].abs() * torch.sign(W[i])),
        "brSF": lambda i, delta, e: delta @ (B[i].abs() * torch.sign(W[i])),
        "KP": lambda i, delta, e: delta @ B[i],
        "Shallow": lambda i, delta, e: torch.zeros(len(e), W[i].shape[1]).to(e),
        "DRTP": lambda i, delta, e: target @ B[i].T,
    }[rule]


SHAPES = {"DFA": [(4, 3), (6, 3)], "DRTP": [(4, 3), (6, 3)]}
SHAPES |= {rule: [(6, 4), (3, 6)] for rule in ("FA", "frSF", "brSF", "KP")}


def given_feedback(rule, device):
    """Feedback matrices of a 5-4-6-3 network, for the rules that have their own."""
    shapes = SHAPES.get(rule)
    if shapes is None:
        return None, None
    B = [rand(*s, seed=9).to(device) for s in shapes]
    return B, {"0": B[0], "2": B[1]}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("rule", RULES)
def test_rule_is_its_formula(rule, loss, reduction, bias, device):
    net = tanh_net(device, bias=bias)
    x = rand(7, 5, seed=3).to(device)
    y = rand(7, 3, seed=4).to(device) if loss == "mse" else rand(7, seed=4, low=3).to(device)
    B, feedback = given_feedback(rule, device)
    bound = make(rule, net, feedback=feedback)
    if rule == "brSF":
        bound.refresh = lambda: None  # R stays as given; that it is drawn anew is tested below
    factor = {"cross_entropy": 1 / 7, "mse": 2 / 21}[loss] if reduction == "mean" else 1.0
    factor = 2.0 if (loss, reduction) == ("mse", "sum") else factor
    target = factor * (y if loss == "mse" else torch.eye(3).to(x)[y])
    want, deltas = by_hand(
        net, x, error_of(y, loss, reduction), formula(rule, weights(net), B, target)
    )

    bound.backward(x, y, loss=loss, reduction=reduction)
    for key, p in net.named_parameters():
        if rule == "Shallow" and key[0] != "4":
            assert p.grad is None
        else:
            close(p.grad, want[key])
    got = bound.gradients(x, y, loss=loss, reduction=reduction)
    assert list(got) == list(want)
    for key in want:
        close(got[key], want[key])
    signals = list(bound.signals(x, y, loss=loss, reduction=reduction))
    assert [m for m, _, _ in signals] == [net[4], net[2], net[0]]
    for (_, error, _), delta in zip(signals, reversed(deltas)):
        close(error, delta)
    close(signals[-1][2], x)

    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    bound.sgd_step(x, y, 0.1, loss=loss, reduction=reduction)
    for key, p in net.named_parameters():
        close(p.detach(), before[key] - 0.1 * want[key])


def test_drtp_takes_probabilities_and_whole_numbers(device):
    net = tanh_net(device)
    x, y = rand(4, 5).to(device), rand(4, low=3).to(device)
    rule = make("DRTP", net)
    hot = F.one_hot(y, 3)
    by_label, by_row = (rule.gradients(x, t)["0.weight"] for t in (y, hot.to(x)))
    close(by_label, by_row)
    a, b = (rule.gradients(x, t, loss="mse")["0.weight"] for t in (hot, hot.to(x)))
    close(a, b)


@pytest.mark.parametrize("name", ZOO)
def test_fa_with_the_weights_as_feedback_is_bp(name, device):
    net, x, y, loss, _ = problem(name, "mse", device)
    bp = BP(net)
    above = dict(zip(bp.layers, [dict(net.named_modules())[n] for n in bp.layers[1:]]))
    fa = FA(net, feedback={n: m.weight for n, m in above.items()})

    def grads(rule):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return rule.gradients(x, y, loss=loss)

    want = grads(bp)
    for key, got in grads(fa).items():
        close(got, want[key])


def test_dfa_on_one_hidden_layer_is_fa_with_the_transpose(device):
    net = tanh_net(device, (5, 4, 3))
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    dfa = make("DFA", net)
    fa = FA(net, feedback={"0": dfa.feedback["0"].T})
    for a, b in zip(dfa.gradients(x, y).values(), fa.gradients(x, y).values()):
        close(a, b)


def unrolled(B, size, stride, padding):
    """The matrix (outputs, inputs) of a convolution with kernel B, entry by entry."""
    n_out, n_in, side, _ = B.shape
    out = (size + 2 * padding - side) // stride + 1
    M = torch.zeros(n_out, out, out, n_in, size, size)
    for i in range(out):
        for j in range(out):
            for a in range(side):
                for b in range(side):
                    row, col = i * stride + a - padding, j * stride + b - padding
                    if 0 <= row < size and 0 <= col < size:
                        M[:, i, j, :, row, col] += B[:, :, a, b].cpu()
    return M.reshape(n_out * out * out, n_in * size * size).to(B)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
def test_fa_sends_through_the_unrolled_convolution(stride, padding, device):
    net = fill(S(C(2, 3, 2), nn.Tanh(), C(3, 4, 3, stride, padding), nn.Flatten()), device)
    n = net(torch.zeros(1, 2, 7, 7, device=device)).numel()
    net = net.append(fill(L(n, 3), device))
    x, y = rand(5, 2, 7, 7).to(device), rand(5, low=3).to(device)
    rule = make("FA", net)
    M = unrolled(rule.feedback["0"], 6, stride, padding)
    top, second, first = list(rule.signals(x, y))
    close(second[1].flatten(1), top[1] @ rule.feedback["2"])
    arrives = (second[1].flatten(1) @ M).reshape(second[2].shape)
    close(first[1], arrives * (1 - second[2] ** 2))
    # the local gradient of each convolution, by autograd of <delta, conv(h)>
    for conv, delta, h in (second, first):
        want = torch.autograd.grad((delta * conv(h)).sum(), [conv.weight, conv.bias])
        rule.backward(x, y)
        close(conv.weight.grad, want[0])
        close(conv.bias.grad, want[1])


@pytest.mark.parametrize("rule", ["DFA", "DRTP"])
def test_direct_rules_send_to_images(rule, device):
    net = fill(
        S(C(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), C(2, 3, 2), nn.Flatten(), L(12, 3)), device
    )
    x, y = rand(5, 1, 8, 8).to(device), rand(5, low=3).to(device)
    bound = make(rule, net, input_shape=(1, 8, 8))
    assert [tuple(f.shape) for f in bound.feedback.values()] == [(18, 3), (12, 3)]
    top, second, first = list(bound.signals(x, y))
    sent = top[1] if rule == "DFA" else torch.eye(3).to(x)[y] / 5
    close(second[1].flatten(1), sent @ bound.feedback["3"].T)
    arrives = (sent @ bound.feedback["0"].T).reshape(5, 2, 3, 3)
    up = arrives.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4  # of the average pooling
    close(first[1], up * (1 - torch.tanh(net[0](x).detach()) ** 2))


def test_dfa_on_sequences_sends_position_by_position(device):
    net = tanh_net(device)
    x, y = rand(2, 4, 5).to(device), rand(2, 4, low=3).to(device)
    rule = make("DFA", net)
    got = rule.gradients(x, y)
    want = rule.gradients(x.flatten(0, 1), y.flatten())
    for key in want:
        close(got[key], want[key])


def test_usf_scale_and_convolutional_fan(device):
    net = fill(S(C(1, 2, 2), C(2, 4, 3), nn.Flatten(), L(4, 3)), device)
    feedback = USF(net, scale=2.0).feedback
    s = 2 * (2 / (9 * (2 + 4))) ** 0.5
    close(feedback["0"], s * torch.sign(net[1].weight.detach()))
    with torch.no_grad():
        net[1].weight.neg_()
    close(USF(net, scale=2.0).feedback["0"], -feedback["0"])


def test_brsf_draws_for_each_update_and_never_for_a_measurement(device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule = make("brSF", net)

    def feedback():
        return [f.clone() for f in rule.feedback.values()]

    start = feedback()
    rule.gradients(x, y)
    list(rule.signals(x, y))
    assert all(torch.equal(a, b) for a, b in zip(start, feedback()))
    seen = [start]
    for update in (rule.backward, rule.backward, lambda x, y: rule.sgd_step(x, y, 0.0)):
        update(x, y)
        seen.append(feedback())
        assert all(
            torch.equal(torch.sign(f), torch.sign(w)) for f, w in zip(seen[-1], weights(net)[1:])
        )
    assert len({float(f[0].abs().sum()) for f in seen}) == 4
    # an update uses the matrices that the rule shows afterwards
    rule.backward(x, y)
    B = list(rule.feedback.values())
    error = error_of(y, "cross_entropy", "mean")
    want, _ = by_hand(net, x, error, lambda i, delta, e: delta @ B[i])
    for key, p in net.named_parameters():
        close(p.grad, want[key])


OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "decay": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.2),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kolen_pollack_matrices_take_the_steps_of_the_weights(name, device):
    """B as parameters of their own, stepped by their own copy of the optimizer."""
    net = tanh_net(device)
    B, feedback = given_feedback("KP", device)
    rule = KolenPollack(net, feedback=feedback)
    twins = [nn.Parameter(b.clone()) for b in B]
    ours, theirs = OPTIMIZERS[name](rule.parameters()), OPTIMIZERS[name](twins)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 50) for o in (ours, theirs)]
    for step in range(50):
        x, y = rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device)
        for got, want in zip(rule.feedback.values(), twins):
            close(got, want.detach())
        want, _ = by_hand(
            net,
            x,
            error_of(y, "cross_entropy", "mean"),
            formula("KP", weights(net), [t.detach() for t in twins], None),
        )
        rule.backward(x, y)
        for key, p in net.named_parameters():
            close(p.grad, want[key])
        for twin, key in zip(twins, ("2.weight", "4.weight")):
            twin.grad = want[key]
        ours.step()
        theirs.step()
        for schedule in schedules:
            schedule.step()
    start = (B[0] - rule.feedback["0"]).abs().max()
    assert start > 0.01  # they moved


def test_kolen_pollack_in_place_is_kolen_pollack_by_optimizer(device):
    net = tanh_net(device)
    other = copy.deepcopy(net)
    a, b = (make("KP", n) for n in (net, other))
    optimizer = torch.optim.SGD(b.parameters(), lr=0.3)
    for step in range(4):
        x, y = rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device)
        a.sgd_step(x, y, 0.3)
        b.backward(x, y)
        optimizer.step()
        for f, g in zip(a.feedback.values(), b.feedback.values()):
            close(f, g)


# --- optimizers, frozen parameters, state ---------------------------------------------------------


def _optimizers():
    skipped = {"Optimizer", "SparseAdam", "Muon"}  # the base; sparse gradients; matrices alone
    return sorted(
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and name not in skipped
    )


@pytest.mark.parametrize("name", _optimizers())
def test_any_optimizer_takes_the_step(name, device):
    net = tanh_net(device)
    twin = copy.deepcopy(net)
    rule = BP(net)
    ours, theirs = (getattr(torch.optim, name)(n.parameters(), lr=0.05) for n in (net, twin))
    for step in range(3):
        x, y = rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device)

        def by_autograd(x=x, y=y):
            theirs.zero_grad()
            value = F.cross_entropy(twin(x), y)
            value.backward()
            return value

        ours.step(lambda x=x, y=y: rule.backward(x, y))
        theirs.step(by_autograd)
    for p, q in zip(net.parameters(), twin.parameters()):
        close(p.detach(), q.detach(), scale=1e4)  # some divide by the root of small squares
    assert not torch.equal(net[0].weight, tanh_net(device)[0].weight)


def test_backward_overwrites_gradients(device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule = make("FA", net)
    rule.backward(x, y)
    once = [p.grad.clone() for p in net.parameters()]
    rule.backward(x, y)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), once))


def test_a_layer_that_is_frozen_later_keeps_no_old_gradient(device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    for stack in (True, False):
        rule = BP(net) if stack else BP(Wrapped(net))
        assert rule.is_stack is stack
        net.requires_grad_(True)
        rule.backward(x, y)
        net[2].requires_grad_(False)
        rule.backward(x, y)
        assert net[2].weight.grad is None
        assert net[2].bias.grad is None
        assert net[0].weight.grad is not None


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_kolen_pollack_notices_gradients_that_are_changed_for_the_network_alone(device):
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    for alone in (True, False):
        rule = make("KP", tanh_net(device))
        before = {k: b.clone() for k, b in rule.feedback.items()}
        start = [w.detach().clone() for w in weights(rule.net)[1:]]
        optimizer = torch.optim.SGD(rule.parameters(), 0.1, momentum=0.9)

        def step(rule=rule, optimizer=optimizer, alone=alone):
            optimizer.zero_grad()
            rule.backward(x, y)
            nn.utils.clip_grad_norm_((rule.net if alone else rule).parameters(), 0.01)
            optimizer.step()

        step()
        if alone:
            with pytest.raises(RuntimeError, match=r"gradient of feedback '0'.*rule.parameters"):
                step()
            continue
        for _ in range(4):
            step()
        for w, w0, (k, b) in zip(weights(rule.net)[1:], start, rule.feedback.items(), strict=True):
            close(b - before[k], w.detach() - w0)


@pytest.mark.parametrize("rule", RULES)
def test_measuring_in_inference_mode_leaves_a_rule_that_learns(rule, device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    bound, other = make(rule, net), make(rule, tanh_net(device))
    with torch.inference_mode():
        bound.gradients(x, y)
    for each in (bound, other):
        each.sgd_step(x, y, 0.1)
    for p, q in zip(bound.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "brSF"])
def test_autocast_changes_no_meaning(rule):
    """Measured, written and taken in place, an update is one and the same."""
    x, y = rand(7, 5).float(), rand(7, low=3)
    bound = make(rule, tanh_net("cpu").float())
    with torch.autocast("cpu", torch.bfloat16):
        found = bound.gradients(x, y)
        bound.backward(x, y)
        start = {k: p.detach().clone() for k, p in bound.net.named_parameters()}
        written = {k: p.grad for k, p in bound.net.named_parameters() if p.grad is not None}
        bound.net.zero_grad()
        bound.sgd_step(x, y, 0.1)
    for key, p in bound.net.named_parameters():
        gradient = written.get(key, torch.zeros_like(p))
        assert torch.equal(found[key], gradient)
        torch.testing.assert_close(p.detach(), start[key] - 0.1 * gradient)


def test_a_module_that_detaches_is_refused_by_name(device):
    class Stop(nn.Module):
        def forward(self, x):
            return x.detach() * 1.0

    net = S(L(5, 4), Stop(), L(4, 3)).to(device)
    with pytest.raises(UnsupportedModule, match="Stop gives an output without a gradient"):
        BP(net).backward(rand(7, 5).to(device), rand(7, low=3).to(device))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "frozen", ["0.weight", "2.weight", "2.bias", "3.weight", "3.bias", "5.bias"]
)
def test_frozen_parameters_are_untouched(rule, frozen, device):
    net = fill(S(L(5, 4), nn.Tanh(), L(4, 6), nn.LayerNorm(6), nn.Tanh(), L(6, 3)), device)
    net.get_parameter(frozen).requires_grad_(False)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    bound = make(rule, net)
    bound.backward(x, y)
    written = [k for k, p in net.named_parameters() if p.grad is not None]
    learning = [k for k in before if k != frozen]
    assert list(bound.gradients(x, y)) == learning
    top = ("5.weight", "5.bias")
    assert written == [k for k in learning if rule != "Shallow" or k in top]
    bound.sgd_step(x, y, 0.1)
    hidden = ("0.weight", "2.weight") if rule == "Shallow" else ()
    for key, p in net.named_parameters():
        moved = not torch.equal(p, before[key])
        if key == frozen or key in hidden:
            assert not moved
        elif rule != "Shallow":
            assert moved


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_round_trip(rule, device):
    net = tanh_net(device)
    first = make(rule, net, seed=1)

    def updates(bound, start):
        for step in range(start, start + 3):
            bound.sgd_step(
                rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device), 0.1
            )
        return [*bound.net.parameters(), *bound.feedback.values()]

    updates(first, 0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert all(k.startswith(("feedback_", "net.")) or k == "_extra_state" for k in saved)
    assert {k[4:] for k in saved if k.startswith("net.")} == set(net.state_dict())
    second = make(rule, tanh_net(device, bias=True), seed=2)
    second.load_state_dict(saved)
    for a, b in zip(updates(first, 3), updates(second, 3)):
        assert torch.equal(a, b)


class Elsewhere(torch.Generator):
    """A generator that says it lies on another device (meta, where tensors have no values)."""

    device = torch.device("meta")


def test_a_stream_of_another_device_is_saved_and_restored_there(monkeypatch):
    def generator(device="cpu"):
        return Elsewhere() if torch.device(device).type == "meta" else torch.Generator()

    monkeypatch.setattr("fabook.rules.Generator", generator)
    x, y = rand(7, 5), rand(7, low=3)
    first = make("brSF", tanh_net("cpu"), seed=1)
    unmoved = first.state_dict()
    first.to("meta")
    first.refresh()
    first.refresh()
    saved = first.state_dict()["_extra_state"]
    assert saved["device"] == "meta"

    second = make("brSF", tanh_net("cpu"), seed=2).to("meta")  # its stream is on the CPU still
    second.set_extra_state(saved)
    assert second._own.device.type == "meta"
    assert torch.equal(second._own.get_state(), first._own.get_state())

    second.set_extra_state(unmoved["_extra_state"])  # goes over as the first one did
    second.refresh()
    second.refresh()
    assert torch.equal(second._own.get_state(), first._own.get_state())

    third = make("brSF", tanh_net("cpu"), seed=3)  # on the CPU, where that stream cannot go on
    third.set_extra_state(saved)
    assert third._own.device.type == "cpu"
    third.sgd_step(x, y, 0.1)
    fourth = make("brSF", tanh_net("cpu"), seed=4)
    fourth.set_extra_state(saved)
    fourth.sgd_step(x, y, 0.1)
    for a, b in zip(third.feedback.values(), fourth.feedback.values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_a_deep_copy_goes_its_own_way(rule, device):
    first = make(rule, tanh_net(device))
    second = copy.deepcopy(first)
    assert second.net is not first.net
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    before = [p.detach().clone() for p in first.net.parameters()]
    after = second.sgd_step(x, y, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(first.net.parameters(), before))
    assert torch.equal(first.sgd_step(x, y, 0.1), after)
    for a, b in zip(first.net.parameters(), second.net.parameters()):
        assert torch.equal(a, b)


def test_rule_and_network_must_share_dtype_and_device(device, dtype):
    other = torch.float32 if dtype == torch.float64 else torch.float64
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule = make("FA", net)
    net.to(other)
    with pytest.raises(ValueError, match=rf"feedback is {dtype} .*network {other} .*move both"):
        rule.backward(x, y)
    rule.to(other)
    rule.sgd_step(x.to(other), y, 0.1)
    rule.backward(x.to(other), y)
    assert {p.grad.dtype for p in net.parameters()} == {other}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_a_whole_module(rule, device):
    """Moving, modes and parameters reach the network."""
    net = tanh_net(device).append(nn.Dropout(0.5))
    bound = make(rule, net).to(torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert all(b.dtype == torch.bfloat16 for b in bound.feedback.values())
    assert not bound.eval().net[-1].training
    assert bound.train().net[-1].training
    own = list(bound.feedback) if rule == "KP" else []
    assert len(list(bound.parameters())) == len(list(net.parameters())) + len(own)
    x = rand(7, 5).to(device, torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(bound.eval()(x), net(x))
    if rule == "DRTP":
        with pytest.raises(ValueError, match=r"sends the target: rule\.backward\(x, target\)"):
            bound(x)
    else:
        assert bound(x).requires_grad


def test_adamw_leaves_layers_alone_that_do_not_learn(device):
    net = tanh_net(device)
    rule = Shallow(net)
    before = net[0].weight.detach().clone()
    optimizer = torch.optim.AdamW(rule.parameters(), lr=0.05, weight_decay=0.4)
    for step in range(50):
        rule.backward(rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device))
        optimizer.step()
    assert torch.equal(net[0].weight, before)
    BP(net).backward(rand(7, 5).to(device), rand(7, low=3).to(device))
    rule.backward(rand(7, 5).to(device), rand(7, low=3).to(device))
    assert net[0].weight.grad is None  # nor does another rule's gradient stay


def test_an_optimizer_without_the_feedback_is_noticed(device):
    net = tanh_net(device)
    rule = make("KP", net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule.backward(x, y)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"give the optimizer rule\.parameters\(\)"):
        rule.backward(x, y)


@pytest.mark.parametrize("other", ["frSF", "KP", "DFA", "brSF"])
def test_a_state_belongs_to_its_rule(other, device):
    net = tanh_net(device)
    state = make("FA", net).state_dict()
    wrong = make(other, net)
    before = {k: b.clone() for k, b in wrong.feedback.items()}
    with pytest.raises(ValueError, match=f"state is of rule FA; this rule is {other}"):
        wrong.load_state_dict(state)
    assert all(torch.equal(before[k], b) for k, b in wrong.feedback.items())


def by_pickle(rule):
    return pickle.loads(pickle.dumps(rule))


def by_torch(rule):
    file = io.BytesIO()
    torch.save(rule, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("travel", [by_pickle, by_torch, copy.deepcopy])
@pytest.mark.parametrize("rule", [*RULES, "FA redrawn"])
def test_a_rule_goes_on_bit_equal_after_a_journey(rule, travel, device):
    options = {"redraw_every": 2} if " " in rule else {}
    first = make(rule.split()[0], tanh_net(device), **options)

    def updates(bound):
        for step in range(5):
            x, y = rand(7, 5, seed=step).to(device), rand(7, seed=step, low=3).to(device)
            bound.sgd_step(x, y, 0.1)
        return [*bound.net.parameters(), *bound.feedback.values()]

    updates(first)
    second = travel(first)
    for a, b in zip(updates(first), updates(second), strict=True):
        assert torch.equal(a, b)


def test_fa_redraws_every_so_many_updates(device):
    rule = make("FA", tanh_net(device), redraw_every=3)
    plain = make("FA", tanh_net(device))
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    seen = []
    for _ in range(7):
        rule.sgd_step(x, y, 0.01)
        rule.gradients(x, y)
        seen.append(rule.feedback["0"].clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changed == [False, False, True, False, False, True]
    assert torch.equal(seen[0], plain.feedback["0"])
    with pytest.raises(ValueError, match="redraw_every must be at least 1; got 0"):
        make("FA", tanh_net(device), redraw_every=0)


def test_a_rule_of_ones_own_declares_what_it_is(device):
    class Signed(FA, label="signed", colour="#AA3377"):
        """The sign of the error alone."""

        def send(self, layer, delta, top):
            return super().send(layer, delta.sign(), top)

    assert (Signed.label, Signed.colour, Signed.law) == ("signed", "#AA3377", None)
    assert rule_labels()["signed"] is Signed
    assert RULES.items() <= rule_labels().items()
    assert (FA.law, BRSF.law, DRTP.law) == ("product", None, None)
    assert "Args:" in Signed.__doc__
    for name in ("generator", "init", "scale", "feedback", "redraw_every"):
        assert name in inspect.signature(FA).parameters
    net = tanh_net(device)
    rule = Signed(net, generator=stream(0, "feedback"))
    assert "'0' (6, 4)" in repr(rule)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    B = list(rule.feedback.values())
    error = error_of(y, "cross_entropy", "mean")
    want, _ = by_hand(net, x, error, lambda i, delta, e: delta.sign() @ B[i])
    rule.backward(x, y)
    for key, p in net.named_parameters():
        close(p.grad, want[key])


def test_a_rule_of_ones_own_across_convolutions(device):
    """The gradients of a convolution are those of its error, whatever is sent down."""

    class Signed(FA, label="signed"):
        def send(self, layer, delta, top):
            return super().send(layer, delta.sign(), top)

    net = fill(S(C(2, 3, 3), nn.Tanh(), C(3, 4, 2), nn.Flatten(), L(36, 3)), device)
    rule = Signed(net, generator=stream(0, "feedback"))
    x, y = rand(5, 2, 6, 6).to(device), rand(5, low=3).to(device)
    found = list(rule.signals(x, y))
    rule.backward(x, y)
    for conv, delta, h in found[1:]:
        want = torch.autograd.grad((delta * conv(h)).sum(), [conv.weight, conv.bias])
        close(conv.weight.grad, want[0])
        close(conv.bias.grad, want[1])


def test_drtp_with_binary_cross_entropy(device):
    net = tanh_net(device)
    rule = make("DRTP", net)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    F_ = list(rule.feedback.values())
    hot = torch.eye(3).to(x)[y] / 21
    by_label, by_row = (rule.gradients(x, t, loss="bce") for t in (y, hot * 21))
    want, _ = by_hand(
        net, x, lambda f: torch.sigmoid(f) / 21 - hot, lambda i, delta, e: hot @ F_[i].T
    )
    for key in want:
        close(by_label[key], want[key])
        close(by_row[key], want[key])


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rule", RULES)
def test_every_floating_dtype(rule, low, device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    want = make(rule, net).gradients(x, y)
    net.to(low)
    got = make(rule, net).gradients(x.to(low), y)
    if rule != "brSF":
        for key in want:
            assert got[key].dtype == low
            torch.testing.assert_close(got[key].to(want[key]), want[key], rtol=0.05, atol=0.02)
    loss = make(rule, net).sgd_step(x.to(low), torch.zeros(7, 3).to(x), 0.1, loss="mse")
    assert loss.isfinite()


def test_large_single_precision_layers_agree_with_torch(device):
    """The size at which the forward product takes another path on a CPU."""
    net = fill(mlp([784, 512, 10], generator=stream(0, "w")), device).float()
    for x in (rand(128, 784), rand(784, 128).T, rand(784).expand(128, 784)):
        x, y = x.float().to(device), rand(128, low=10).to(device)
        _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
        got = BP(net).gradients(x, y)
        for key in want:
            torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-6)


def test_large_single_precision_gradients_are_those_of_double(device):
    net = mlp([784, 800, 10], activation="relu", generator=stream(0, "w"), dtype=torch.float32)
    x, y = rand(600, 784).float().to(device), rand(600, low=10).to(device)
    rule = BP(net.to(device))
    value = rule.backward(x, y)
    exact = copy.deepcopy(net).double()
    loss = F.cross_entropy(exact(x.double()), y)
    loss.backward()
    before = net[0].weight.detach().clone()
    rule.sgd_step(x, y, lr=0.5)
    step = (before - net[0].weight.detach()) / 0.5
    assert abs(float(value) - float(loss.detach())) < 1e-5
    for gradient, tol in ((net[0].weight.grad, 1e-5), (step, 1e-3)):  # a difference of weights
        error = (gradient - exact[0].weight.grad).norm() / exact[0].weight.grad.norm()
        assert error < tol, float(error)


def test_every_network_of_the_library_trains_under_every_rule(device):
    g = stream(0, "w")
    nets = {
        (4,): [
            mlp([4, 3, 2], generator=g),
            linear_net([4, 3, 2], init="normal", generator=g),
            two_layer(4, 3, n_outputs=2, generator=g),
            mlp([4, 3, 1], activation="erf", bias=False, generator=g).insert(1, Scale(0.5)),
        ],
        (1, 6, 6): [convnet((1, 6, 6), [2, 2], [5], 2, pool=1, generator=g)],
    }
    for shape, several in nets.items():
        for net in several:
            for rule in RULES:
                bound = make(rule, net.to(device), input_shape=shape)
                x = rand(3, *shape).to(device)
                with torch.no_grad():
                    y = torch.zeros_like(net(x))
                bound.sgd_step(x, y, 0.1, loss="mse")


# --- what cannot be placed, and errors ------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = L(4, 4)

    def forward(self, x):
        return x + self.inner(x)


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x).abs()


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(module, kind):
    getattr(module, kind)(lambda *_: None)
    return module


def shared():
    layer = L(4, 4)
    return S(L(4, 4), layer, nn.Tanh(), layer, L(4, 2))


def tied():
    net = S(L(4, 4), nn.Tanh(), L(4, 4), L(4, 2))
    net[2].weight = net[0].weight
    return net


def shared_norm():
    norm = nn.LayerNorm(4)
    return S(L(4, 4), norm, L(4, 4), norm, L(4, 2))


def parametrised(what):
    layer = L(4, 4)
    if what == "weight":
        return nn.utils.parametrizations.weight_norm(layer)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    return layer


def around(module):
    return S(L(4, 4), S(nn.Tanh(), module), L(4, 2))


UNSUPPORTED = {
    "attention": (lambda: around(nn.MultiheadAttention(4, 2)), r"'1\.1' \(MultiheadAttention\)"),
    "lstm": (lambda: around(nn.LSTM(4, 4)), r"'1\.1' \(LSTM\)"),
    "gru cell": (lambda: around(nn.GRUCell(4, 4)), r"'1\.1' \(GRUCell\)"),
    "branch": (lambda: around(Branch()), r"'1\.1' \(Branch\)"),
    "transformer": (
        lambda: around(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)),
        r"'1\.1' \(TransformerEncoderLayer\)",
    ),
    "transposed convolution": (lambda: around(nn.ConvTranspose2d(4, 4, 2)), "ConvTranspose2d"),
    "convolution in one dimension": (lambda: around(nn.Conv1d(4, 4, 1)), "Conv1d"),
    "bilinear": (lambda: around(nn.Bilinear(4, 4, 4)), "Bilinear"),
    "embedding": (lambda: S(nn.Embedding(9, 4), L(4, 2)), r"'0' \(Embedding\)"),
    "norm below": (lambda: S(nn.LayerNorm(4), L(4, 2)), r"'0' \(LayerNorm\).*below the first"),
    "subclass": (lambda: around(Odd(4, 4)), r"'1\.1' \(Odd\)"),
    "own forward": (lambda: around(Own(L(4, 4))), r"'1\.1' \(Own\)"),
    "no sequence": (lambda: Branch(), r"\(Branch\).*nn\.Sequential"),
    "module list": (lambda: nn.ModuleList([L(4, 4)]), r"\(ModuleList\)"),
    "weight norm": (lambda: around(parametrised("weight")), r"'1\.1' \(Parametrized.*parametrised"),
    "bias": (lambda: around(parametrised("bias")), r"'1\.1' \(Parametrized.*parametrised"),
    "forward hook": (
        lambda: around(hooked(L(4, 4), "register_forward_hook")),
        r"'1\.1' \(Linear\) has hooks",
    ),
    "forward pre-hook": (
        lambda: around(hooked(nn.ReLU(), "register_forward_pre_hook")),
        r"'1\.1' \(ReLU\) has hooks",
    ),
    "backward hook": (
        lambda: around(hooked(nn.ReLU(), "register_full_backward_hook")),
        "has hooks",
    ),
    "backward pre-hook": (
        lambda: around(hooked(nn.ReLU(), "register_full_backward_pre_hook")),
        "has hooks",
    ),
    "hook on a container": (
        lambda: hooked(around(nn.ReLU()), "register_forward_hook"),
        r"\(Sequential\) has hooks",
    ),
    "lazy": (lambda: around(nn.LazyLinear(4)), r"'1\.1' \(LazyLinear\) is not initialised"),
    "shared layer": (shared, r"'3' \(Linear\) shares a parameter with module '1'"),
    "tied weights": (tied, r"'2' \(Linear\) shares a parameter with module '0'"),
    "shared norm": (shared_norm, r"'3' \(LayerNorm\) shares a parameter with module '1'"),
    "circular padding": (
        lambda: S(C(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), L(8, 2)),
        r"'0' \(Conv2d\) pads by 'circular'",
    ),
    "even same padding": (
        lambda: S(C(1, 2, 2, padding="same"), nn.Flatten(), L(8, 2)),
        r"'0' \(Conv2d\) pads 'same' with an even kernel",
    ),
    "no weights": (lambda: S(nn.Tanh()), "no nn.Linear or nn.Conv2d"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_no_stack_is_named(name):
    build, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModule, match=message):
        Stack(build())


@pytest.mark.parametrize("name", ["lazy", "no weights"])
@pytest.mark.parametrize("rule", ["BP", "FA", "DFA"])
def test_what_no_rule_can_do_anything_with_is_refused_at_once(name, rule):
    build, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModule, match=message):
        make(rule, build())


@pytest.mark.parametrize("name", ["branch", "own forward", "tied weights"])
def test_what_needs_a_stack_says_why_it_has_none(name):
    build, message = UNSUPPORTED[name]
    rule = make("FA", build())
    for what in ("layers", "stack"):
        with pytest.raises(UnsupportedModule, match=f"needs a stack of layers.*{message}"):
            getattr(rule, what)


def test_direct_rules_need_a_vector_at_the_top():
    net = fill(S(C(1, 2, 3), C(2, 3, 2)))
    with pytest.raises(UnsupportedModule, match=r"'1' \(Conv2d\) is a convolution at the top"):
        make("DFA", net, input_shape=(1, 8, 8))


class Rectify(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(x)


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.gain


def test_own_modules_between_layers(device):
    net = fill(S(L(4, 4), Rectify(), L(4, 4), Gain(), L(4, 3)), device)
    x, y = rand(7, 4).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
    for key, got in BP(net).gradients(x, y).items():
        close(got, want[key])


def test_one_activation_may_stand_in_two_places(device):
    act = nn.Tanh()
    net = fill(S(L(4, 5), act, L(5, 6), act, L(6, 3)), device)
    x, y = rand(7, 4).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
    for key, got in BP(net).gradients(x, y).items():
        close(got, want[key])


def test_layers_whose_names_differ_by_a_dot_have_their_own_feedback():
    net = S()
    net.add_module("a", S(L(4, 4)))
    net.a.add_module("b", L(4, 4))
    net.add_module("a_b", L(4, 4))
    net.add_module("c", L(4, 2))
    rule = make("FA", net)
    shapes = {name: tuple(f.shape) for name, f in rule.feedback.items()}
    assert shapes == {"a.0": (4, 4), "a.b": (4, 4), "a_b": (2, 4)}
    assert sum(key.startswith("feedback_") for key in rule.state_dict()) == 3


def test_a_bare_layer_is_a_network(device):
    layer = fill(L(4, 3), device)
    x, y = rand(7, 4).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(layer), x, y, "cross_entropy", "mean", 1)
    got = make("FA", layer).gradients(x, y)
    assert list(got) == ["weight", "bias"]
    close(got["weight"], want["weight"])


X, Y = torch.ones(3, 5), torch.zeros(3, dtype=torch.long)
ERRORS = {
    "generator": (lambda n: FA(n), ValueError, "FA draws random feedback: pass generator"),
    "init": (lambda n: make("FA", n, init="he"), ValueError, "init must be one of uniform.*'he'"),
    "scale of BP": (lambda n: BP(n, feedback={"0": X}), ValueError, "BP takes no feedback"),
    "uSF": (lambda n: USF(n, feedback={"0": X}), ValueError, "USF takes no feedback"),
    "layers": (
        lambda n: FA(n, feedback={"0": X}),
        ValueError,
        r"given for \['0', '2'\]; got \['0'\]",
    ),
    "shape": (
        lambda n: FA(n, feedback={"0": torch.ones(4, 6), "2": torch.ones(3, 6)}),
        ValueError,
        r"layer '0' must have shape \(6, 4\); got \(4, 6\)",
    ),
    "number": (
        lambda n: FA(n, generator=0),
        TypeError,
        r"torch\.Generator; got 0: write generator=torch\.Generator\(\)\.manual_seed\(0\)",
    ),
    "seed": (
        lambda n: FA(n, seed=0),
        TypeError,
        r"generator=torch\.Generator\(\)\.manual_seed\(0\)",
    ),
    "position": (
        lambda n: FA(n, torch.Generator()),
        TypeError,
        r"then keywords: generator=torch\.Generator\(\)\.manual_seed\(0\)",
    ),
    "empty": (
        lambda n: FA(n, generator=torch.Generator()).backward(X[:0], Y[:0]),
        ValueError,
        r"no samples; got \(0, 5\)",
    ),
    "label": (
        lambda n: BP(n).backward(X, Y + 3),
        ValueError,
        r"labels must lie in \[0, 2\] or be -100, which is ignored; got 3",
    ),
    "loss": (
        lambda n: BP(n).backward(X, Y, loss="hinge"),
        ValueError,
        "loss must be one of cross_entropy, mse, bce; got 'hinge'",
    ),
    "reduction": (
        lambda n: BP(n).sgd_step(X, Y, 0.1, reduction="none"),
        ValueError,
        "reduction must be one of mean, sum; got 'none'",
    ),
    "mse": (
        lambda n: BP(n).backward(X, torch.ones(3), loss="mse"),
        ValueError,
        r"output's shape \(3, 3\); got \(3,\)",
    ),
    "labels": (
        lambda n: BP(n).backward(X, Y[:2]),
        ValueError,
        r"shape \(3,\) or probabilities of the output's shape; got \(2,\) torch.int64",
    ),
    "float labels": (
        lambda n: BP(n).gradients(X, torch.zeros(3)),
        ValueError,
        r"class indices.*got \(3,\) torch.float",
    ),
    "drtp": (
        lambda n: make("DRTP", n).backward(X, Y, loss=total),
        ValueError,
        "under a loss by name, one of cross_entropy, mse",
    ),
    "target": (lambda n: BP(n).backward(X, Y.tolist()), TypeError, "target must be a tensor.*list"),
    "loss by its class": (
        lambda n: BP(n).backward(X, Y, loss=nn.CrossEntropyLoss),
        TypeError,
        r"loss is a class: .*CrossEntropyLoss\(\)",
    ),
    "loss of each sample": (
        lambda n: BP(n).backward(X, Y, loss=nn.CrossEntropyLoss(reduction="none")),
        ValueError,
        r"a loss must return a tensor of one number; got \(3,\)",
    ),
    "one binary output": (
        lambda n: BP(mlp([5, 1], generator=stream(0, "w")).to(X)).backward(X, Y > 0, loss="bce"),
        ValueError,
        r"bce of one output needs a target of its shape \(3, 1\); got \(3,\)",
    ),
    "network": (
        lambda n: FA(None, generator=stream(0, "f")),
        TypeError,
        "net must be .*; got None",
    ),
    "class of a network": (lambda n: BP(nn.Linear), TypeError, "net must be a torch.nn.Module"),
    "layer": (lambda n: make("FA", n).matrix("fc"), KeyError, "no feedback arrives at 'fc'"),
    "feedback": (
        lambda n: FA(n, feedback=[torch.ones(3, 4)]),
        ValueError,
        "feedback must map names to matrices.*; got list",
    ),
    "formula": (
        lambda n: Rule(n).backward(X, Y),
        NotImplementedError,
        "Rule has no formula",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_value_and_what_is_allowed(name):
    act, kind, message = ERRORS[name]
    net = mlp([5, 4, 6, 3], generator=stream(0, "w"))
    with pytest.raises(kind, match=message):
        act(net.to(X.dtype))


def test_images_need_a_batch_and_direct_rules_their_size():
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(2, 3)]
    net = fill(S(C(1, 2, 3), nn.Tanh(), C(2, 2, 3), *top))
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\); got \(1, 8, 8\)"):
        make("FA", net).backward(rand(1, 8, 8), rand(1, low=3))
    with pytest.raises(ValueError, match=r"layer '0': pass input_shape=\(channels"):
        make("DFA", net)
    with pytest.raises(ValueError, match=r"input_shape \(4, 8, 8\) does not fit"):
        make("DFA", net, input_shape=(4, 8, 8))
    rule = make("DFA", net, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"send \(4, 72\) down from layer '2'.*\(4, 2, 7, 7\)"):
        rule.backward(rand(4, 1, 9, 9), rand(4, low=3))


def test_output_error_of_probabilities_that_do_not_sum_to_one(device):
    f, y = rand(5, 3).to(device).requires_grad_(), rand(5, 3, seed=1).abs().to(device)
    F.cross_entropy(f, y).backward()
    value, error = output_error(f.detach(), y)
    close(value, F.cross_entropy(f, y).detach())
    close(error, f.grad)


def test_targets_of_another_dtype(device):
    net = tanh_net(device)
    x = rand(7, 5).to(device)
    whole = torch.ones(7, 3, dtype=torch.long, device=device)
    want = BP(net).gradients(x, whole.to(x), loss="mse")
    for target in (whole, whole.double(), whole.float(), whole.bool()):
        for key, got in BP(net).gradients(x, target, loss="mse").items():
            close(got, want[key])
    labels = rand(7, low=3).to(device)
    assert torch.equal(BP(net).backward(x, labels.to(torch.uint8)), BP(net).backward(x, labels))


def test_nothing_takes_from_the_global_random_state(device):
    def states():
        cuda = [s.tolist() for s in torch.cuda.get_rng_state_all()] if device.type == "cuda" else []
        numpy = np.random.get_state()[1].tolist()  # noqa: NPY002
        return random.getstate(), numpy, torch.get_rng_state().tolist(), cuda

    before = states()
    for rule in RULES:
        net = convnet((1, 6, 6), [2], [5], 3, generator=stream(0, "w")).to(device)
        bound = make(rule, net, input_shape=(1, 6, 6))
        x, y = rand(4, 1, 6, 6).to(device), rand(4, low=3).to(device)
        bound.backward(x, y)
        bound.sgd_step(x, y, 0.1)
        bound.gradients(x, y)
    assert states() == before


@pytest.mark.parametrize("rule", [FA, DFA, DRTP, FRSF, BRSF, KolenPollack])
def test_feedback_belongs_to_its_generator(rule):
    net = mlp([5, 4, 4, 4, 3], generator=stream(0, "w"))
    a, b, c = (list(rule(net, generator=stream(s, "f")).feedback.values()) for s in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert not any(torch.equal(p, q) for p, q in zip(a, c))
    scaled = rule(net, generator=stream(0, "f"), scale=3.0).feedback.values()
    if rule is not KolenPollack:
        for p, q in zip(a, scaled):
            close(q, 3 * p)


@pytest.mark.parametrize("init", ["uniform", "orthogonal"])
@pytest.mark.parametrize("rule", [FA, DFA, BRSF])
def test_a_seed_means_one_matrix_for_any_network(rule, init):
    def feedback(dtype):
        net = mlp([5, 4, 4, 3], generator=stream(0, "w"), dtype=torch.float32).to(dtype)
        bound = rule(net, generator=stream(0, "f"), init=init)
        bound.backward(torch.ones(2, 5, dtype=dtype), torch.zeros(2, dtype=torch.long))
        return bound.feedback.values()

    for a, b in zip(feedback(torch.float32), feedback(torch.float64)):
        assert torch.equal(a, b.float())


def test_shallow_leaves_no_gradients(device):
    net = tanh_net(device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    Shallow(net).backward(x, y)
    none = [k for k, p in net.named_parameters() if p.grad is None]
    assert none == ["0.weight", "0.bias", "2.weight", "2.bias"]


def five_steps(rule, x, y):
    """The rule after five steps; at the top of a module, where other processes find it."""
    for _ in range(5):
        rule.sgd_step(x, y, 0.1)
    return rule


@pytest.mark.parametrize("by", ["joblib", "multiprocessing", "Dask"])
def test_rules_go_to_other_processes_and_come_back(by, dtype):
    """All nine in one journey; processes are slow to start."""
    if dtype != torch.float64:
        pytest.skip("once is enough")
    x, y = rand(7, 5), rand(7, low=3)
    rules = [five_steps(make(name, tanh_net("cpu")), x, y) for name in RULES]
    stayed = copy.deepcopy(rules)  # joblib may run in this process
    if by == "joblib":
        joblib = pytest.importorskip("joblib")
        job = joblib.delayed(five_steps)
        back = joblib.Parallel(n_jobs=2)(job(rule, x, y) for rule in rules)
    elif by == "multiprocessing":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            back = pool.starmap(five_steps, [(rule, x, y) for rule in rules])
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, dashboard_address=None, protocol="tcp"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            back = client.gather([client.submit(five_steps, r, x, y) for r in rules])
    for rule, other in zip(stayed, back, strict=True):
        five_steps(five_steps(rule, x, y), x, y)
        five_steps(other, x, y)
        for a, b in zip(rule.net.parameters(), other.net.parameters(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(rule.feedback.values(), other.feedback.values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", RULES)
def test_a_step_allocates_no_matrix_anew(name):
    """What a rule forms from the weights goes where the last step's stood."""
    net = mlp([16, 300, 300, 300, 4], generator=stream(0, "weights"))
    rule = RULES[name](net, generator=stream(0, "feedback"))
    x, y = rand(3, 16), rand(3, low=4)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)

    def update():
        rule.backward(x, y)
        optimizer.step()

    for step in (update, lambda: rule.sgd_step(x, y, 0.1)):
        step()  # the first one makes room
        assert peak_bytes(step) < 300 * 300 * x.element_size() / 2


@pytest.mark.parametrize("rule", [USF, FRSF, BRSF])
def test_room_that_is_reused_is_never_handed_out(rule):
    def bound(cls):
        net = mlp([5, 6, 6, 6, 3], generator=stream(0, "weights"))
        return cls(net, generator=stream(0, "feedback"))

    class Keeps(rule):
        def send(self, layer, delta, top):
            kept.append((self.matrix(layer), self.matrix(layer).clone()))
            return super().send(layer, delta, top)

    class Breaks(rule):
        def pull(self, matrix, delta):
            raise OSError("on its way down")

    kept = []
    x, y = rand(7, 5), rand(7, low=3)
    plain, own = bound(rule), bound(Keeps)
    before = plain.feedback
    copies = {k: b.clone() for k, b in before.items()}
    for _ in range(3):
        plain.sgd_step(x, y, 0.5)
        own.sgd_step(x, y, 0.5)
    for matrix, clone in kept:
        assert torch.equal(matrix, clone)
    for name, matrix in before.items():
        assert torch.equal(matrix, copies[name])
    for p, q in zip(plain.net.parameters(), own.net.parameters(), strict=True):
        assert torch.equal(p, q)
    broken = bound(Breaks)
    with pytest.raises(OSError, match="on its way down"):
        broken.backward(x, y)
    assert not broken.stack.walking
    same = plain.feedback
    assert len({b.data_ptr() for b in same.values()}) == len(same)


def test_a_drawn_tensor_can_be_written_over():
    want = draw((6, 4), "xavier_uniform", generator=stream(0, "weights"))
    got = torch.full((6, 4), 3.0)
    assert draw((6, 4), "xavier_uniform", generator=stream(0, "weights"), out=got) is got
    assert torch.equal(got, want)
