"""Eight defects found in other feedback-alignment code; here none of the rules has one.

The numbers are those of the sections below. The eighth, results told apart by folder time stamps,
is tested with the runner as well.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fabook.metrics import gradient_alignment, gradient_alignment_per_sample, weight_alignment
from fabook.networks import ACTIVATIONS, mlp
from fabook.rules import BRSF, RULES
from fabook.streams import stream
from fabook.training import train

OPTIONS = [(name, {}) for name in RULES] + [
    ("FA", {"init": "orthogonal"}),
    ("DFA", {"init": "standard_normal", "scale": 0.1}),
    ("frSF", {"scale": 2.0}),
]
every_rule = pytest.mark.parametrize("rule", RULES)


def network(*sizes, activation="tanh", dtype=torch.float64, device="cpu"):
    return mlp(sizes, activation=activation, generator=stream(0, "w"), dtype=dtype).to(device)


def make(rule, net, seed=0, **options):
    return RULES[rule](net, generator=stream(seed, "feedback"), **options)


def batch(n, device="cpu", dtype=torch.float64, seed=0, classes=3):
    g = stream(seed, "data", n)
    x = torch.randn(n, 5, generator=g, dtype=dtype)
    return x.to(device), torch.randint(classes, (n,), generator=g).to(device)


def copies(tensors):
    return [t.detach().clone() for t in tensors]


def same(a, b):
    return [torch.equal(p, q) for p, q in zip(a, b, strict=True)]


# 1. One step moves exactly the parameters it should.


@pytest.mark.parametrize("by_optimizer", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(("rule", "options"), OPTIONS)
def test_one_step_moves_what_it_should_and_nothing_else(
    rule, options, loss, by_optimizer, device, dtype
):
    net = network(5, 6, 6, 3, device=device, dtype=dtype)
    net[2].bias.requires_grad_(False)
    bound = make(rule, net, **options)
    fixed = {"FA", "DFA", "DRTP", "BP", "Shallow"}
    feedback = copies(bound.feedback.values())
    before = copies(net.parameters())
    x, y = batch(7, device, dtype)
    y = F.one_hot(y, 3).to(x) if loss == "mse" else y
    if by_optimizer:
        bound.backward(x, y, loss=loss)
        torch.optim.SGD(net.parameters(), lr=0.5).step()
    else:
        bound.sgd_step(x, y, 0.5, loss=loss)
    moved = [not still for still in same(before, net.parameters())]
    read_out = [False, False, False, False, True, True]
    assert moved == (read_out if rule == "Shallow" else [True, True, True, False, True, True])
    if rule in fixed:
        assert all(same(feedback, bound.feedback.values()))
    with torch.no_grad():
        value = F.mse_loss(net(x), y) if loss == "mse" else F.cross_entropy(net(x), y)
    assert value.isfinite()


@pytest.mark.parametrize(("rule", "options"), OPTIONS)
def test_training_lowers_the_loss(rule, options, device, dtype):
    x, _ = batch(40, device, dtype)
    y = x[:, :3].argmax(1)
    net = network(5, 30, 30, 3, device=device, dtype=dtype)
    start = float(F.cross_entropy(net(x), y).detach())
    train(make(rule, net, **options), x, y, steps=200, lr=0.1)
    assert float(F.cross_entropy(net(x), y).detach()) < 0.9 * start


# 2. Measuring leaves weights, feedback and random states as they are.


@every_rule
def test_measuring_redraws_nothing(rule, device, dtype):
    net = network(5, 6, 6, 3, device=device, dtype=dtype)
    bound = make(rule, net)
    x, y = batch(7, device, dtype)
    bound.backward(x, y)

    def everything():
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        kept = [*net.parameters(), *grads, *bound.buffers()]
        own = [bound.get_extra_state()["generator"]] if isinstance(bound, BRSF) else []
        return copies([*kept, *own, *bound.feedback.values(), torch.get_rng_state()])

    before = everything()
    gradient_alignment(bound, x, y)
    gradient_alignment_per_sample(bound, x, y)
    weight_alignment(bound)
    bound.gradients(x, y)
    list(bound.signals(x, y))
    bound.eval()
    net.eval()
    net(x)
    assert all(same(before, everything()))


# 3. Layers of equal width get different feedback.


@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("BP", "Shallow")])
def test_equal_layers_get_different_feedback(rule, device, dtype):
    bound = make(rule, network(6, 6, 6, 6, 6, device=device, dtype=dtype))
    matrices = list(bound.feedback.values())
    assert [m.shape for m in matrices] == [(6, 6)] * 3
    for i, a in enumerate(matrices):
        for b in matrices[:i]:
            assert not torch.isclose(a.abs(), b.abs()).all() or rule == "uSF"
            assert not torch.equal(a, b)
            assert not torch.equal(a[0], a[1])  # nor is a row used twice


# 4. Samples without a gradient do not count as aligned.


@every_rule
def test_dead_samples_count_as_nothing(rule, device, dtype):
    net = network(5, 4, 3, activation="relu", device=device, dtype=dtype)
    with torch.no_grad():
        net[0].weight.zero_()[:, 0] = 1
        net[0].bias.zero_()
    x, y = batch(8, device, dtype)
    x[:, 0] = x[:, 0].abs() + 0.1
    x[5:, 0] *= -1  # three samples for which no hidden unit is active
    bound = make(rule, net)
    got = gradient_alignment_per_sample(bound, x, y)
    assert got.excluded == {"0": 8 if rule == "Shallow" else 3}
    alive = gradient_alignment_per_sample(bound, x[:5], y[:5])
    assert got.layers == pytest.approx(alive.layers, nan_ok=True)
    dead = gradient_alignment_per_sample(bound, x[5:], y[5:])
    assert dead.layers["0"] != dead.layers["0"]  # NaN, not 1


# 5. Reduction is explicit; gradients do not depend on how samples are batched.


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@every_rule
def test_gradients_add_over_batches_of_any_size(rule, loss, device, dtype):
    net = network(5, 6, 6, 3, device=device, dtype=dtype)
    bound = make(rule, net)
    x, y = batch(11, device, dtype)
    y = F.one_hot(y, 3).to(x) if loss == "mse" else y
    whole = bound.gradients(x, y, loss=loss, reduction="sum")
    parts = [
        bound.gradients(*part, loss=loss, reduction="sum")
        for part in [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]  # the last is short
    ]
    samples = 33 if loss == "mse" else 11
    mean = bound.gradients(x, y, loss=loss, reduction="mean")
    for key in whole:
        torch.testing.assert_close(sum(p[key] for p in parts), whole[key])
        torch.testing.assert_close(mean[key] * samples, whole[key])


@every_rule
def test_a_repeated_sample_changes_no_mean_gradient(rule, device, dtype):
    bound = make(rule, network(5, 6, 6, 3, device=device, dtype=dtype))
    x, y = batch(1, device, dtype)
    once = bound.gradients(x, y)
    for key, got in bound.gradients(x.expand(9, 5), y.expand(9)).items():
        torch.testing.assert_close(got, once[key])


# 6. The derivative of ReLU is that of z > 0, and every activation's is autograd's.


@pytest.mark.parametrize("name", ACTIVATIONS)
@every_rule
def test_signals_pass_an_activation_by_its_derivative(rule, name, device, dtype):
    """Whatever arrives at h, the signal at z is that times the derivative at z, at zero too."""
    net = nn.Sequential(nn.Linear(5, 5, False), ACTIVATIONS[name](), nn.Linear(5, 3))
    net.to(device, dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(5))
        net[2].weight.copy_(torch.randn(3, 5, generator=stream(0, "w")))
        net[2].bias.zero_()
    x, y = batch(8, device, dtype)
    x[2:5] = 0
    bound = make(rule, net)
    arrives = [s.incoming for s in bound.trace(x, y)][-1]
    *_, (_, at_z, _) = bound.signals(x, y)
    z = x.clone().requires_grad_()
    want = torch.autograd.grad(net[1](z), z, arrives)[0]
    torch.testing.assert_close(at_z, want)
    if name == "relu":
        torch.testing.assert_close(at_z, arrives * (x > 0))


# 7. Feedback survives a round trip through state_dict.


@every_rule
def test_a_restored_run_goes_on_with_the_same_bits(rule, device, dtype):
    net = network(5, 6, 6, 3, device=device, dtype=dtype)
    bound = make(rule, net)
    bound.sgd_step(*batch(7, device, dtype), 0.1)
    saved = copy.deepcopy((net.state_dict(), bound.state_dict()))
    other = mlp([5, 6, 6, 3], generator=stream(9, "w"), dtype=dtype).to(device)
    restored = make(rule, other, seed=9)
    other.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    for r in (bound, restored):
        for step in range(3):
            r.sgd_step(*batch(7, device, dtype, seed=step), 0.1)
    assert all(same(net.parameters(), other.parameters()))
    assert all(same(bound.feedback.values(), restored.feedback.values()))


# 8. Results are told apart by content: equal seeds and sizes make equal runs, at any time.


@every_rule
def test_a_run_is_a_function_of_its_arguments_alone(rule, device, dtype):
    def run():
        net = network(5, 6, 6, 3, device=device, dtype=dtype)
        x, y = batch(20, device, dtype)
        bound = make(rule, net)
        train(bound, x, y, epochs=2, batch_size=6, lr=0.1, generator=stream(0, "order"))
        return copies([*net.parameters(), *bound.feedback.values()])

    first = run()
    torch.rand(17)
    assert all(same(first, run()))
