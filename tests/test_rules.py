"""Backpropagation against autograd, every other rule against its formula written out."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fabook.networks import ACTIVATIONS, Scale, convnet, linear_net, mlp, two_layer
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
    Shallow,
)
from fabook.streams import stream
from rules_by_hand import (
    C,
    L,
    S,
    autograd,
    by_hand,
    close,
    error_of,
    fill,
    make,
    rand,
    tanh_net,
    weights,
)

few = settings(deadline=None, derandomize=True, max_examples=30, database=None)
pytestmark = pytest.mark.usefixtures("default_dtype")


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


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rule", [FRSF, BRSF])
def test_matrices_of_any_sign_are_sizes(rule, assign, device):
    net = tanh_net(device)
    given = {"0": rand(6, 4).to(device), "2": rand(3, 6).to(device)}
    assert any(bool((R < 0).any()) for R in given.values())
    want = {
        name: R.abs() * torch.sign(net[above].weight)
        for (name, R), above in zip(given.items(), (2, 4))
    }
    bound = rule(net, feedback=given)
    for name, B in bound.feedback.items():
        assert torch.equal(B, want[name])
    state = bound.state_dict() | {f"feedback_{name}": R for name, R in given.items()}
    again = rule(net, generator=stream(1, "f"))
    kept = {name: R.clone() for name, R in given.items()}
    again.load_state_dict(state, assign=assign)
    for name, B in again.feedback.items():
        assert torch.equal(B, want[name])
    assert all(torch.equal(given[name], R) for name, R in kept.items())  # the caller's own
    if assign:
        return  # the weights were replaced: the rule asks to be made again
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    again.backward(x, y)
    for name, B in again.feedback.items():
        assert torch.equal(B.sign(), want[name].sign())


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
