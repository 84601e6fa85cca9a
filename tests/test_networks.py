"""Networks: what they compute, how they are drawn, and that nothing else is touched."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fabook.networks import (
    ACTIVATIONS,
    INITS,
    Erf,
    Scale,
    convnet,
    draw,
    linear_net,
    mlp,
    resnet,
    transformer,
    two_layer,
)
from fabook.streams import stream


def g(seed=0):
    return stream(seed, "test")


def kinds(net):
    return [type(m).__name__ for m in net]


def test_erf_and_scale(dtype, device):
    u = torch.linspace(-3, 3, 13, dtype=dtype, device=device)
    want = [math.erf(float(v) / math.sqrt(2)) for v in u]
    torch.testing.assert_close(Erf()(u), torch.tensor(want, dtype=dtype, device=device))
    assert torch.equal(Scale(0.5)(u), u / 2)
    assert repr(Scale(0.25)) == "Scale(0.25)"
    assert not list(Scale(2).parameters())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_is_its_formula(name, dtype, device):
    net = mlp([5, 4, 6, 3], activation=name, generator=g(), dtype=dtype).to(device)
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=g(1)))
    x = torch.randn(7, 5, generator=g(2), dtype=dtype).to(device)
    phi = {
        "tanh": torch.tanh,
        "relu": lambda u: u.clamp(min=0),
        "leaky_relu": lambda u: torch.where(u > 0, u, 0.1 * u),
        "sigmoid": lambda u: 1 / (1 + torch.exp(-u)),
        "erf": lambda u: torch.erf(u / 2**0.5),
        "linear": lambda u: u,
    }[name]
    h = x
    for layer in (net[0], net[2]):
        h = phi(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h @ net[4].weight.T + net[4].bias)


def test_mlp_layers_biases_and_dtype(dtype):
    net = mlp([5, 4, 3], generator=g(), dtype=dtype)
    assert type(net) is nn.Sequential
    assert kinds(net) == ["Linear", "Tanh", "Linear"]
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert all(p.requires_grad for p in net.parameters())
    assert not net[0].bias.any()
    assert mlp([5, 4, 3], bias=False, generator=g())[0].bias is None
    assert kinds(mlp([5, 3], generator=g())) == ["Linear"]


def test_linear_net_starts_at_zero_without_biases():
    net = linear_net([5, 4, 6, 3])
    assert kinds(net) == ["Linear"] * 3
    assert not any(p.any() for p in net.parameters())
    assert [tuple(p.shape) for p in net.parameters()] == [(4, 5), (6, 4), (3, 6)]
    assert linear_net([5, 3], init="normal", generator=g())[0].weight.any()


def test_two_layer_is_its_formula():
    net = two_layer(6, 50, n_outputs=2, activation="relu", generator=g())
    x = torch.randn(9, 6, generator=g(1))
    W, beta = (p.detach() for p in net.parameters())
    torch.testing.assert_close(net(x).detach(), (x @ W.T).clamp(min=0) @ beta.T / math.sqrt(50))
    assert two_layer(6, 50, generator=g())(x).shape == (9, 1)


def test_convnet_layers_and_shapes(dtype):
    x = torch.zeros(2, 1, 12, 11, dtype=dtype)
    net = convnet(
        (1, 12, 11), [3, 4], [7], 5, pool=2, activation="relu", generator=g(), dtype=dtype
    )
    assert kinds(net) == [
        *["Conv2d", "ReLU", "MaxPool2d"] * 2,
        *["Flatten", "Linear", "ReLU", "Linear"],
    ]
    assert net(x).shape == (2, 5)
    plain = convnet((1, 12, 11), [3], [], 5, kernel=5, bias=False, generator=g(), dtype=dtype)
    assert kinds(plain) == ["Conv2d", "Tanh", "Flatten", "Linear"]
    assert all(m.bias is None for m in plain if hasattr(m, "bias"))
    assert plain(x).shape == (2, 5)


@pytest.mark.parametrize("shape", [(200, 300), (40, 30, 5, 4)])
def test_draws_have_the_moments_they_promise(shape):
    fan_in, fan_out = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
    s = 1.5
    sd = {
        "uniform": s / math.sqrt(3 * fan_in),
        "normal": s / math.sqrt(fan_in),
        "standard_normal": s,
        "xavier_uniform": s * math.sqrt(2 / (fan_in + fan_out)),
        "zero": 0.0,
    }
    for init, want in sd.items():
        w = draw(shape, init, scale=s, generator=g(), dtype=torch.float64)
        assert w.shape == shape
        assert float(w.std()) == pytest.approx(want, rel=0.02)
        assert abs(float(w.mean())) <= 5 * want / math.sqrt(w.numel())
    bound = s / math.sqrt(fan_in)
    w = draw(shape, "uniform", scale=s, generator=g())
    assert bound * 0.99 < float(w.abs().max()) <= bound
    q = draw(shape, "orthogonal", scale=s, generator=g(), dtype=torch.float64).flatten(1)
    torch.testing.assert_close(q @ q.T, s**2 * torch.eye(shape[0], dtype=torch.float64))


@pytest.mark.parametrize("init", INITS)
def test_a_draw_belongs_to_its_generator(init, dtype):
    before = torch.get_rng_state()
    a, b, c = (draw((4, 6), init, generator=g(s), dtype=dtype) for s in (0, 0, 1))
    assert a.dtype == dtype
    assert torch.equal(a, b)
    assert torch.equal(a, c) == (init == "zero")
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_take_nothing_from_the_global_random_state():
    before = torch.get_rng_state()
    nets = [
        [
            mlp([5, 4, 3], generator=g(seed)),
            mlp([5, 4, 3], init="orthogonal", generator=g(seed)),
            two_layer(5, 4, generator=g(seed)),
            convnet((1, 6, 6), [2], [4], 3, generator=g(seed)),
        ]
        for seed in (0, 0, 1)
    ]
    linear_net([5, 4])
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(*nets):
        pairs = list(zip(a.parameters(), b.parameters(), c.parameters()))
        assert all(torch.equal(p, q) for p, q, _ in pairs)
        assert not all(torch.equal(p, r) for p, _, r in pairs)


def test_layers_of_one_shape_are_drawn_apart():
    net = mlp([4, 4, 4], generator=g())
    assert not torch.equal(net[0].weight, net[2].weight)


ERRORS = {
    "activation": (
        lambda: mlp([3, 2], activation="swish", generator=g()),
        "activation must be one of tanh, relu, .*; got 'swish'",
    ),
    "init": (
        lambda: mlp([3, 2], init="he", generator=g()),
        "init must be one of uniform.*; got 'he'",
    ),
    "one size": (lambda: mlp([3], generator=g()), r"two or more positive .*; got \[3\]"),
    "no units": (
        lambda: mlp([3, 0, 2], generator=g()),
        r"two or more positive .*; got \[3, 0, 2\]",
    ),
    "generator": (lambda: mlp([3, 2]), "init 'uniform' draws random numbers: pass generator"),
    "seed": (lambda: mlp([3, 2], generator=0), "draws random numbers: pass .*; got 0"),
    "scale": (lambda: mlp([3, 2], scale=-1, generator=g()), "scale must be a finite .*; got -1"),
    "small image": (
        lambda: convnet((1, 4, 8), [2, 2], [], 3, generator=g()),
        r"images of \(4, 8\) pixels are too small for 2 convolutions of kernel 3 with pool 1",
    ),
    "small for the pool": (
        lambda: convnet((1, 4, 4), [2], [], 3, pool=3, generator=g()),
        "too small for 1 convolutions of kernel 3 with pool 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_value_and_what_is_allowed(name):
    act, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        act()


def test_resnet_is_its_formula(dtype, device):
    net = resnet(2, [4, 6], 3, blocks=2, stride=2, generator=g(), dtype=dtype).to(device).eval()
    x = torch.randn(5, 2, 12, 12, generator=g(1), dtype=dtype).to(device)
    own = dict(net.named_parameters())

    def conv(name, h, stride, padding=1):
        return F.conv2d(h, own[f"{name}.weight"], None, stride, padding) / (1 + 1e-5) ** 0.5

    h = conv("stem.0", x, 2).relu()  # batch norm of fresh statistics divides by sqrt(1 + eps)
    for block, stride in enumerate([1, 1, 2, 1]):
        name = f"blocks.{block}"
        short = conv(f"{name}.down.0", h, stride, 0) if stride == 2 else h
        h = (conv(f"{name}.conv2", conv(f"{name}.conv1", h, stride).relu(), 1) + short).relu()
    assert h.shape[1:] == (6, 3, 3)
    want = h.mean((2, 3)) @ own["head.weight"].T
    torch.testing.assert_close(net(x), want)


def test_resnet_20_has_its_published_size():
    """0.27 million (He et al. 2016, Table 6); the shortcuts' projections add 2,752."""
    net = resnet(3, [16, 32, 64], 10, blocks=3, generator=g())
    assert sum(p.numel() for p in net.parameters()) == 272_474
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == 20 + 2  # and two projections
    first = net.blocks[3].conv1.weight
    assert float(first.detach().std()) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.05)


def test_transformer_is_its_formula(dtype, device):
    net = transformer(7, 6, 3, width=8, layers=1, heads=2, generator=g(), dtype=dtype).to(device)
    x = torch.randint(7, (4, 5), generator=g(1)).to(device)
    own = {name: p.detach() for name, p in net.named_parameters()}
    layer = {name.removeprefix("blocks.0."): p for name, p in own.items()}

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, keepdim=True, correction=0) + 1e-5
        ) ** 0.5

    h = own["embed.weight"][x] + own["place"][:5]
    q, k, v = (norm(h) @ layer["self_attn.in_proj_weight"].T).chunk(3, -1)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v))
    seen = ((q @ k.transpose(2, 3)) / 2).softmax(-1) @ v
    h = h + seen.transpose(1, 2).flatten(2) @ layer["self_attn.out_proj.weight"].T
    h = h + (norm(h) @ layer["linear1.weight"].T).relu() @ layer["linear2.weight"].T
    torch.testing.assert_close(net(x), norm(h) @ own["head.weight"].T)
    pooled = transformer(
        7, 6, 3, width=8, layers=1, heads=2, pool=True, generator=g(), dtype=dtype
    ).to(device)
    torch.testing.assert_close(pooled(x), norm(h).mean(1) @ own["head.weight"].T)


@pytest.mark.parametrize(
    "make",
    [lambda g: resnet(1, [3, 5], 2, generator=g), lambda g: transformer(5, 4, 2, generator=g)],
)
def test_a_generator_means_one_network_and_nothing_else_is_touched(make):
    before = torch.get_rng_state()
    one, same, other = make(g()), make(g()), make(g(1))
    assert torch.equal(torch.get_rng_state(), before)
    for p, q, r in zip(one.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(p, q)
        assert p.ndim < 2 or not torch.equal(p, r)
        assert p.requires_grad
    assert all(not p.any() for name, p in one.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(3, [], 10, generator=g()), r"channels must be positive; got \[\]"),
        (lambda: resnet(3, [4], 10, blocks=0, generator=g()), "blocks must be positive; got 0"),
        (lambda: transformer(0, 4, 2, generator=g()), "n_tokens must be positive; got 0"),
        (lambda: transformer(4, 4, 2, heads=5, generator=g()), "5 heads and width 32"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_drawn_tensor_can_be_written_over():
    want = draw((6, 4), "xavier_uniform", generator=stream(0, "weights"))
    got = torch.full((6, 4), 3.0)
    assert draw((6, 4), "xavier_uniform", generator=stream(0, "weights"), out=got) is got
    assert torch.equal(got, want)
