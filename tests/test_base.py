"""What every rule is: a module, with its state, its updates, and what it refuses."""

import copy
import inspect
import io
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fabook.base import rule_labels
from fabook.measuring import peak_bytes
from fabook.networks import convnet, mlp
from fabook.rules import (
    BP,
    BRSF,
    DRTP,
    FA,
    FRSF,
    RULES,
    USF,
    Rule,
    Shallow,
    UnsupportedModule,
)
from fabook.streams import stream
from no_stacks import UNSUPPORTED
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
    total,
    weights,
)

pytestmark = pytest.mark.usefixtures("default_dtype")


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


def by_data(net, lr):
    for p in net.parameters():
        p.data -= lr * p.grad


def by_new_data(net, lr):
    for p in net.parameters():
        p.data = p.data - lr * p.grad


def fused(net, lr):
    torch.optim.SGD(net.parameters(), lr, fused=True).step()


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("step", [by_data, by_new_data, fused])
def test_a_step_without_a_version_that_leaves_the_feedback_out_is_noticed(step, own_loop):
    x, y = rand(7, 5), rand(7, low=3)
    for all_of_it in (False, True):
        rule = make("KP", tanh_net("cpu"))
        start = {k: b - rule.net.get_parameter(f"{above}.weight") for (k, b), above in zip(
            rule.feedback.items(), rule.layers[1:], strict=True)}  # fmt: skip

        def update(rule=rule, all_of_it=all_of_it):
            if own_loop:
                rule.zero_grad()
                F.cross_entropy(rule(x), y).backward()
            else:
                rule.backward(x, y)
            step(rule if all_of_it else rule.net, 0.1)

        update()
        if not all_of_it:
            with pytest.raises(RuntimeError, match=r"give the optimizer rule\.parameters\(\)"):
                update()
            continue
        for _ in range(10):
            update()
        for (k, b), above in zip(rule.feedback.items(), rule.layers[1:], strict=True):
            close(b - rule.net.get_parameter(f"{above}.weight"), start[k])


def test_gradients_that_are_replaced_for_the_network_alone_are_noticed(device):
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    for alone in (True, False):
        rule = make("KP", tanh_net(device))
        optimizer = torch.optim.SGD(rule.parameters(), 0.1)
        for _ in range(3):
            rule.backward(x, y)
            for p in (rule.net if alone else rule).parameters():
                p.grad = p.grad * 0.1
            optimizer.step()
            if alone:
                with pytest.raises(RuntimeError, match=r"gradient of feedback '0'.*clip or scale"):
                    rule.backward(x, y)
                break
            rule.net.zero_grad()  # leaves those of the feedback, which says nothing


@pytest.mark.parametrize(
    ("rule", "saved", "other"),
    [
        ("uSF", {"scale": 2.0}, {}),
        ("brSF", {"scale": 3.0}, {}),
        ("brSF", {"init": "normal"}, {}),
        ("FA", {"redraw_every": 1}, {}),
        ("FA", {}, {"redraw_every": 2}),
        ("FA", {"redraw_every": 1, "scale": 2.0}, {"redraw_every": 1}),
    ],
)
def test_a_state_says_with_what_its_rule_was_made(rule, saved, other, device):
    first, second = (make(rule, tanh_net(device), **options) for options in (saved, other))
    name = next(iter({**other, **saved}))
    with pytest.raises(ValueError, match=rf"the state is of a rule made with .*'{name}'"):
        second.load_state_dict(first.state_dict())
    make(rule, tanh_net(device), **saved).load_state_dict(first.state_dict())
    old = second.state_dict()
    del old["_extra_state"]["settings"]  # as before they were kept
    second.load_state_dict(old)


def test_what_the_held_matrices_say_needs_no_setting(device):
    """FA's scale is in its matrices: a state of another one is taken as it is."""
    first, second = make("FA", tanh_net(device), scale=2.0), make("FA", tanh_net(device))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.feedback["0"], second.feedback["0"])


class Maps(nn.Module):
    """Classes on axis 1, and no stack."""

    def __init__(self, classes):
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, classes, 1)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


def probabilities(*shape, axis):
    return rand(*shape).softmax(axis)


@pytest.mark.parametrize("length", [5, 6])
def test_probabilities_say_on_which_axis_the_classes_are(length, device):
    maps, sequence = fill(Maps(5), device), Wrapped(fill(S(L(1, 4), nn.Tanh(), L(4, 5)), device))
    cases = [
        (maps, (2, 1, length), (2, 5, length), 1),
        (sequence, (2, length, 1), (2, length, 5), 2),
    ]
    for net, given, shape, axis in cases:
        x, y = rand(*given).to(device), probabilities(*shape, axis=axis).to(device)
        y.movedim(axis, -1)[0, 0] = 0  # a place that counts for nothing
        value = BP(net).backward(x, y)
        got = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        want = F.cross_entropy(net(x).movedim(axis, 1), y.movedim(axis, 1))
        want.backward()
        close(value, want)
        for p, grad in zip(net.parameters(), got, strict=True):
            close(grad, p.grad)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("cross_entropy", rand(2, 5, low=5)),
        ("bce", rand(2, 5, low=5)),
        ("cross_entropy", torch.eye(5).expand(2, 5, 5)),
        ("cross_entropy", torch.full((2, 5, 5), 0.2)),
        ("cross_entropy", torch.full((2, 5, 5), 0.4)),
    ],
)
def test_a_target_that_does_not_say_where_the_classes_are_is_refused(loss, target, device):
    net = fill(Maps(5), device)
    x, y = rand(2, 1, 5).to(device), target.to(device)
    with pytest.raises(ValueError, match=r"does not say .* axis 1.*rule\(x\) and a loss"):
        BP(net).backward(x, y, loss=loss)
    stack = BP(fill(S(L(1, 4), nn.Tanh(), L(4, 5)), device))
    assert stack.backward(x.mT, y, loss=loss).isfinite()  # the layer at the top says it

    class Sequence(nn.Sequential):  # off the stack, and without a convolution
        def forward(self, x):
            return super().forward(x)

    sequence = Sequence(*stack.net)
    rule = BP(sequence)
    assert not rule.is_stack
    torch.testing.assert_close(
        rule.backward(x.mT, y, loss=loss), stack.backward(x.mT, y, loss=loss)
    )


def test_a_target_that_is_sent_has_its_classes_on_the_last_axis(device):
    net = fill(Maps(3), device)
    x, y = rand(2, 1, 5).to(device), probabilities(2, 3, 5, axis=1).to(device)
    rule = make("DRTP", net, example=x)
    with pytest.raises(ValueError, match="DRTP sends probabilities of the last axis only"):
        rule.backward(x, y)
    assert rule.backward(x, y, loss="bce").isfinite()  # of which no axis is another


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
