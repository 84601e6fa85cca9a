"""The walk through a stack: what it refuses, what it notices, what it leaves alone."""

import copy
import weakref

import pytest
import torch
from torch import nn

from fabook.networks import ACTIVATIONS, Scale, mlp
from fabook.rules import BP, FA, RULES, UnsupportedModule
from fabook.stack import Stack
from fabook.streams import stream
from no_stacks import UNSUPPORTED
from rules_by_hand import C, L, S, autograd, close, fill, rand, total


def network(dtype=torch.float64):
    return mlp([5, 4, 6, 3], generator=stream(0, "w"), dtype=dtype)


def batch(dtype=torch.float64):
    g = stream(0, "data")
    return torch.randn(7, 5, generator=g, dtype=dtype), torch.randint(3, (7,), generator=g)


def replaced(net):
    net[2] = L(4, 6).double()


def appended(net):
    net.append(nn.Tanh())


def new_parameter(net):
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def no_bias(net):
    net[0].bias = None


def hooked(net):
    net[1].register_forward_hook(lambda *_: None)


def hooked_container(net):
    net.register_forward_pre_hook(lambda *_: None)


def parametrised(net):
    nn.utils.parametrizations.weight_norm(net[2])


def own_forward(net):
    net[1].forward = torch.relu


CHANGES = [
    replaced, appended, new_parameter, no_bias, hooked, hooked_container, parametrised, own_forward,
]  # fmt: skip


@pytest.mark.parametrize("act", ["backward", "gradients", "signals", "sgd_step"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_noticed(change, act):
    net = network()
    rule = FA(net, generator=stream(0, "f"))
    x, y = batch()
    rule.backward(x, y)
    change(net)
    with pytest.raises(RuntimeError, match=r"changed after the rule.*make the rule again"):
        rule.sgd_step(x, y, 0.1) if act == "sgd_step" else list(getattr(rule, act)(x, y))


def test_values_modes_and_settings_may_change():
    net = network().insert(1, nn.Dropout(0.5))
    net = nn.Sequential(*net) if not isinstance(net, nn.Sequential) else net
    rule = FA(net, generator=stream(0, "f"))
    x, y = batch()
    net.eval()
    net[0].weight.requires_grad_(False)
    with torch.no_grad():
        net[3].weight.mul_(2)
    rule.to(torch.float32)
    copy.deepcopy(rule).to(torch.float64).backward(x, y)
    rule.backward(x.float(), y)
    assert net[0].weight.grad is None


def changing():
    return S(
        L(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), L(6, 6), nn.BatchNorm1d(6), L(6, 3)
    ).double()


@pytest.mark.parametrize("rule", RULES)
def test_measuring_writes_nothing(rule):
    net = changing()
    bound = RULES[rule](net, generator=stream(0, "f"))
    x, y = batch()
    bound.backward(x, y)

    def everything():
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        tensors = [*net.parameters(), *net.buffers(), *grads, *bound.feedback.values()]
        return [t.detach().clone() for t in (*tensors, torch.get_rng_state())]

    before, owners = everything(), [id(b) for b in net.buffers()]
    bound.gradients(x, y)
    list(bound.signals(x, y))
    list(bound.trace(x, y))
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert owners == [id(b) for b in net.buffers()]


def test_gradients_are_what_backward_writes_with_noise():
    net = changing()
    rule = BP(net)
    x, y = batch()
    torch.manual_seed(3)
    measured = rule.gradients(x, y)
    torch.manual_seed(3)
    rule.backward(x, y)
    for key, p in net.named_parameters():
        torch.testing.assert_close(p.grad, measured[key], rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_types_that_are_not_computed_with_are_named(dtype):
    net = network().to(dtype)
    with pytest.raises(UnsupportedModule, match=rf"\(Linear\) has a weight of {dtype}; allowed"):
        BP(net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_allowed_type_is_right_to_its_precision(dtype):
    net = network().to(dtype)
    x, y = batch(dtype)
    exact = copy.deepcopy(net).double()
    want = BP(exact).gradients(x.double(), y)
    value = BP(net).backward(x, y)
    assert value.dtype == dtype
    for key, p in net.named_parameters():
        worst = (p.grad.double() - want[key]).abs().max() / want[key].abs().max()
        assert worst < 40 * torch.finfo(dtype).eps, (key, float(worst))


def test_a_class_with_its_own_forward_is_told_what_to_write():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = L(5, 4), L(4, 3)

        def forward(self, x):
            return self.two(self.one(x))

    with pytest.raises(
        UnsupportedModule, match=r"forward of its own.*torch\.nn\.Sequential\(\*net\.children\(\)\)"
    ):
        Stack(Net())


def test_pull_is_for_send():
    rule = FA(network(), generator=stream(0, "f"))
    with pytest.raises(RuntimeError, match="from within send"):
        rule.pull(rule.matrix("0"), torch.ones(7, 6))


def test_a_strided_bias_is_read_as_it_is():
    """Large enough that a product of its own once read it wrongly."""
    net = mlp([784, 512, 10], generator=stream(0, "w"), dtype=torch.float32)
    g = stream(0, "bias")
    net[0].bias = nn.Parameter(torch.randn(1024, generator=g)[::2])
    x = torch.randn(128, 784, generator=g)
    y = torch.randint(10, (128,), generator=g)
    want = nn.functional.cross_entropy(net(x), y).detach()
    torch.testing.assert_close(BP(net).backward(x, y), want)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_a_type_that_comes_later_is_named_at_the_update():
    """Torch keeps the parameters and swaps their data, so that nothing else has changed."""
    net = network()
    rule = BP(net)
    x, y = batch()
    net.to(torch.complex128)
    with pytest.raises(UnsupportedModule, match=r"has a weight of torch\.complex128; allowed"):
        rule.backward(x.to(torch.complex128), y)


@pytest.mark.parametrize("size", [2, (3, 2), [2, 2]])
def test_pools_and_what_is_written_over_them(size):
    """A pool's signal is written over by the activation below; nothing that is shown is."""
    g = stream(0, "w")
    for act in (nn.ReLU, nn.Tanh, nn.Sigmoid):
        pool = nn.MaxPool2d(size, stride=1, padding=1, dilation=1, ceil_mode=True)
        net = S(nn.Conv2d(1, 3, 3), act(), pool, nn.Conv2d(3, 2, 2), act(), nn.MaxPool2d(2),
                nn.Flatten(), nn.LazyLinear(3)).double()  # fmt: skip
        x = torch.randn(4, 1, 9, 8, generator=g, dtype=torch.float64)
        y = torch.randint(3, (4,), generator=g)
        nn.functional.cross_entropy(net(x), y).backward()
        want = [p.grad.clone() for p in net.parameters()]
        rule = BP(net)
        rule.backward(x, y)
        for p, grad in zip(net.parameters(), want, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=1e-14)
        shown = [(s.error.clone(), s.incoming) for s in rule.trace(x, y)]
        again = [(s.error, s.incoming) for s in list(rule.trace(x, y))]
        for (a, b), (c, d) in zip(shown, again, strict=True):
            assert torch.equal(a, c)
            assert (b is None and d is None) or torch.equal(b, d)


def test_the_output_of_a_module_with_a_graph_of_its_own_is_not_kept() -> None:
    """Batch norm's output, say, which neither its own way down nor that of a ReLU above reads."""
    made = []

    def remember(module, args, output):
        made.append(weakref.ref(output))

    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    stack = Stack(net)
    net[1].register_forward_hook(remember)  # no rule would take it; the walk does not look
    _, tape = stack.forward(torch.randn(5, 3))
    assert [ref() for ref in made] == [None]
    assert len(tape) == len(net)


@pytest.mark.usefixtures("default_dtype")
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


@pytest.mark.usefixtures("default_dtype")
def test_derivative_of_relu_at_zero_is_zero(device):
    net = fill(S(L(1, 1, False), nn.ReLU(), L(1, 1, False)), device)
    zero = torch.zeros(1, 1, device=device)
    assert [float(e) for _, e, _ in BP(net).signals(zero, zero, loss=total)] == [1.0, 0.0]


@pytest.mark.usefixtures("default_dtype")
def test_a_module_that_detaches_is_refused_by_name(device):
    class Stop(nn.Module):
        def forward(self, x):
            return x.detach() * 1.0

    net = S(L(5, 4), Stop(), L(4, 3)).to(device)
    with pytest.raises(UnsupportedModule, match="Stop gives an output without a gradient"):
        BP(net).backward(rand(7, 5).to(device), rand(7, low=3).to(device))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_no_stack_is_named(name):
    build, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedModule, match=message):
        Stack(build())


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


@pytest.mark.usefixtures("default_dtype")
def test_own_modules_between_layers(device):
    net = fill(S(L(4, 4), Rectify(), L(4, 4), Gain(), L(4, 3)), device)
    x, y = rand(7, 4).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
    for key, got in BP(net).gradients(x, y).items():
        close(got, want[key])


@pytest.mark.usefixtures("default_dtype")
def test_one_activation_may_stand_in_two_places(device):
    act = nn.Tanh()
    net = fill(S(L(4, 5), act, L(5, 6), act, L(6, 3)), device)
    x, y = rand(7, 4).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
    for key, got in BP(net).gradients(x, y).items():
        close(got, want[key])


# --- what a module between the layers reaches, and subclasses -------------------------------------


class Tied(nn.Module):
    """A decoder with the encoder's weight, hidden from registration."""

    def __init__(self, encoder):
        super().__init__()
        self.hidden = [encoder]

    def forward(self, x):
        return nn.functional.linear(x, self.hidden[0].weight.t())


class TiedLinear(nn.Linear):
    def __init__(self, encoder):
        nn.Module.__init__(self)
        self.hidden, self.bias = [encoder], None

    @property
    def weight(self):
        return self.hidden[0].weight.t()


class Save(nn.Module):
    def __init__(self, store, change):
        super().__init__()
        self.store, self.change = store, change

    def forward(self, x):
        self.store["h"] = self.change(x)
        return x * 1


class Add(nn.Module):
    def __init__(self, store):
        super().__init__()
        self.store = store

    def forward(self, x):
        return x + self.store["h"]


def skip(change):
    store = {}
    return S(L(5, 5), Save(store, change), nn.Tanh(), L(5, 5), Add(store), L(5, 3))


def tied_to(kind):
    encoder = L(5, 3)
    return S(encoder, nn.Tanh(), kind(encoder), L(5, 3))


class Whole(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


REACHING = {
    "tied": lambda: tied_to(Tied),
    "tied by a property": lambda: tied_to(TiedLinear),
    "skip": lambda: skip(lambda h: h),
    "skip, computed": lambda: skip(lambda h: 2 * h),
}


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", REACHING)
def test_a_module_that_reaches_outside_itself_is_refused_by_name(name, device):
    net = fill(REACHING[name](), device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    for act in ("backward", "gradients"):
        with pytest.raises(UnsupportedModule, match=r"(Tied|TiedLinear|Add) reaches outside.*one"):
            getattr(BP(net), act)(x, y)
    whole = BP(Whole(net))  # as the message says
    whole.backward(x, y)
    got = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    for key, p in net.named_parameters():
        close(got[key], p.grad)


@pytest.mark.usefixtures("default_dtype")
def test_a_parameter_of_another_module_may_thaw(device):
    net = fill(tied_to(Tied), device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule = BP(net)
    net[0].requires_grad_(False)
    rule.backward(x, y)
    net[0].requires_grad_(True)
    with pytest.raises(UnsupportedModule, match="Tied reaches outside itself"):
        rule.backward(x, y)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("change", [torch.detach, lambda h: h > 0])
def test_what_has_no_gradient_may_be_kept_for_later(change, device):
    net = fill(skip(change), device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    _, want = autograd(copy.deepcopy(net), x, y, "cross_entropy", "mean", 1)
    for key, got in BP(net).gradients(x, y).items():
        close(got, want[key])


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return super()._conv_forward(x, (weight - mean) / std, bias)


class Positive(nn.Linear):
    def __init__(self, n, m):
        nn.Module.__init__(self)
        self.raw = nn.Parameter(torch.empty(m, n))
        self.bias = nn.Parameter(torch.empty(m))

    @property
    def weight(self):
        return nn.functional.softplus(self.raw)


class Doubled(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class DoubledSequence(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Gained(nn.Linear):
    def __init__(self, n, m):
        super().__init__(n, m)
        self.gain = nn.Parameter(torch.empty(m, n))


class Plain(nn.Linear):
    """Differs in how it is made alone."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)


SUBCLASSES = {
    "convolution": lambda: S(C(1, 4, 3), nn.Tanh(), Standardised(4, 3, 3), nn.Flatten(), L(12, 3)),
    "property": lambda: S(nn.Flatten(), L(36, 4), nn.Tanh(), Positive(4, 3)),
    "call": lambda: S(nn.Flatten(), L(36, 4), nn.Tanh(), Doubled(4, 3)),
    "call of a sequence": lambda: S(nn.Flatten(), L(36, 4), DoubledSequence(nn.Tanh(), L(4, 3))),
    "more parameters": lambda: S(nn.Flatten(), L(36, 4), nn.Tanh(), Gained(4, 3)),
    "plain": lambda: S(nn.Flatten(), Plain(36, 4), nn.Tanh(), L(4, 3)),
}


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_that_computes_something_else_is_no_layer_of_a_stack(name, device):
    net = fill(SUBCLASSES[name](), device)
    x, y = rand(7, 1, 6, 6).to(device), rand(7, low=3).to(device)
    rule = BP(net)
    assert rule.is_stack == (name == "plain")
    rule.backward(x, y)
    got = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    twin = copy.deepcopy(net).requires_grad_(True)
    twin.zero_grad()
    nn.functional.cross_entropy(twin(x), y).backward()
    for key, p in twin.named_parameters():
        assert (p.grad is None) == (key not in got)
        if p.grad is not None:
            close(got[key], p.grad)


@pytest.mark.usefixtures("default_dtype")
def test_a_weight_may_be_a_buffer(device):
    """It stays what it is, and feedback stands in its place."""
    net = fill(S(L(5, 6), nn.Tanh(), L(6, 3, False)), device)
    weight = net[2].weight.detach()
    del net[2].weight
    net[2].register_buffer("weight", weight)
    rule = FA(net, generator=stream(0, "f"))
    assert rule.layers == ["0", "2"]
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule.backward(x, y)
    h = torch.tanh(net[0](x))
    e = (torch.softmax(h @ weight.t(), 1) - nn.functional.one_hot(y, 3)) / 7
    close(net[0].weight.grad, ((e @ rule.matrix("0")) * (1 - h * h)).t() @ x)


# --- hooks on parameters, and signals that are written to -----------------------------------------


def zeroed(parameter):
    return parameter.register_hook(lambda grad: grad * 0)


def zeroed_afterwards(parameter):
    def zero(p):
        p.grad.zero_()

    return parameter.register_post_accumulate_grad_hook(zero)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("hook", [zeroed, zeroed_afterwards])
def test_hooks_on_parameters_run_or_are_named(hook, device):
    net = fill(S(L(5, 6), nn.Tanh(), L(6, 3)), device)
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule = FA(net, generator=stream(0, "f"))
    handle = hook(net[0].weight)
    for act in (rule.backward, rule.gradients, lambda x, y: rule.sgd_step(x, y, 0.1)):
        with pytest.raises(RuntimeError, match=r"hooks on .* 'net\.0\.weight' .*take rule\(x\)"):
            act(x, y)
    nn.functional.cross_entropy(rule(x), y).backward()
    assert not net[0].weight.grad.any()
    again = FA(net, generator=stream(0, "f"))
    with pytest.raises(UnsupportedModule, match=r"'0' \(Linear\) has hooks on a parameter"):
        _ = again.stack
    again.backward(x, y)
    assert not net[0].weight.grad.any()
    assert net[2].weight.grad.any()
    handle.remove()
    rule.backward(x, y)
    assert net[0].weight.grad.any()


@pytest.mark.usefixtures("default_dtype")
def test_hooks_on_feedback_that_learns_are_named(device):
    rule = RULES["KP"](fill(S(L(5, 6), L(6, 3)), device), generator=stream(0, "f"))
    zeroed(rule.get_parameter("feedback_0"))
    with pytest.raises(RuntimeError, match="feedback_0"):
        rule.backward(rand(7, 5).to(device), rand(7, low=3).to(device))


class Clamped(FA, label="clamped in place"):
    def send(self, layer, delta, top):
        return super().send(layer, delta.clamp_(-0.05, 0.05), top)


class Turned(RULES["DFA"], label="turned in place"):
    def send(self, layer, delta, top):
        return super().send(layer, delta, top.neg_())


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("rule", [Clamped, Turned])
def test_a_signal_that_send_writes_to_is_named(rule, device):
    bound = rule(fill(S(L(5, 6), nn.Tanh(), L(6, 3)), device), generator=stream(0, "f"))
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    with pytest.raises(RuntimeError, match=r"send for layer '0' changed .* in place.*a copy"):
        bound.backward(x, y)
    with torch.inference_mode():
        FA(bound.net, generator=stream(0, "f")).gradients(x, y)


@pytest.mark.usefixtures("default_dtype")
def test_where_nothing_passes_delta_has_no_numbers(device):
    class Normed(RULES["DFA"], label="normed"):
        def send(self, layer, delta, top):
            return super().send(layer, delta, top) * delta.norm()

    rule = Normed(fill(S(L(5, 6), nn.Tanh(), L(6, 3)), device), generator=stream(0, "f"))
    x, y = rand(7, 5).to(device), rand(7, low=3).to(device)
    rule.backward(x, y)
    with pytest.raises(RuntimeError, match="meta"):
        nn.functional.cross_entropy(rule(x), y).backward()
