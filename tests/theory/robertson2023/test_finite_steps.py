"""The exact law of finite steps, on random networks, losses, batches and rules."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fabook.networks import convnet, mlp
from fabook.rules import FA, RULES
from fabook.streams import stream
from fabook.theory.robertson2023 import Invariants, conserved, normalise

few = settings(deadline=None, derandomize=True, max_examples=80, database=None)
double = torch.float64


def huber(output, target):
    """A loss of our own, for class indices."""
    return F.huber_loss(output, F.one_hot(target, output.shape[-1]).to(output), delta=0.3)


LOSSES = {"cross_entropy": "cross_entropy", "mse": "mse", "huber": huber}


def data(step, batch, n_inputs, n_classes, loss, seed=0):
    g = stream(seed, "data", step)
    x = torch.randn(batch, n_inputs, generator=g, dtype=double)
    y = torch.randint(n_classes, (batch,), generator=g)
    return x, F.one_hot(y, n_classes).to(double) if loss == "mse" else y


def network(sizes, activation="relu", bias=True, seed=0):
    net = mlp(sizes, activation=activation, bias=bias, generator=stream(seed, "w"), dtype=double)
    for layer in net:
        if isinstance(layer, nn.Linear) and bias:
            nn.init.normal_(layer.bias, std=0.2, generator=stream(seed, "b", layer.in_features))
    return net


def run(rule, tracker, steps, batch, lr, loss, seed=0):
    sizes = rule.net[0].in_features, rule.net[-1].out_features
    for step in range(steps):
        rule.sgd_step(*data(step, batch, *sizes, loss, seed), lr, loss=LOSSES[loss])
        tracker.update()


@few
@given(
    rule=st.sampled_from(["FA", "DFA", "BP", "KP", "uSF", "frSF"]),
    sizes=st.lists(st.integers(1, 7), min_size=3, max_size=6),
    activation=st.sampled_from(["relu", "leaky_relu", "linear"]),
    bias=st.booleans(),
    loss=st.sampled_from(list(LOSSES)),
    batch=st.integers(1, 9),
    lr=st.floats(1e-3, 0.3),
    seed=st.integers(0, 10**6),
)
def test_the_identity_holds_for_any_network_loss_batch_and_rule(
    rule, sizes, activation, bias, loss, batch, lr, seed
):
    net = network(sizes, activation, bias, seed)
    bound = RULES[rule](net, generator=stream(seed, "f"))
    tracker = Invariants(bound)
    start = conserved(bound)
    run(bound, tracker, 6, batch, lr, loss, seed)
    assert tracker.residual() < 1e-11
    for name, c in conserved(bound).items():
        torch.testing.assert_close(tracker.drift()[name], c - start[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["FA", "DFA"])
def test_the_invariant_of_fa_only_rises(rule):
    bound = RULES[rule](network([5, 6, 7, 3]), generator=stream(0, "f"))
    tracker = Invariants(bound)
    last = {name: torch.zeros(1) for name in tracker.drift()}
    for _ in range(5):
        run(bound, tracker, 3, 4, 0.2, "cross_entropy")
        now = tracker.drift()
        assert all((now[name] >= last[name] - 1e-14).all() for name in now)
        last = now
    assert all(float(c.sum()) > 1e-4 for c in last.values())


def test_a_ledger_splits_the_drift_into_norm_and_alignment():
    net = network([5, 6, 3], bias=False)
    bound = FA(net, generator=stream(0, "f"))
    tracker, B = Invariants(bound), bound.feedback["0"]
    norm, aligned = net[0].weight.square().sum(1) / 2, (B * net[2].weight).sum(0)
    run(bound, tracker, 8, 4, 0.1, "mse")
    now = net[0].weight.square().sum(1) / 2 - norm, (B * net[2].weight).sum(0) - aligned
    torch.testing.assert_close(tracker.norm_change()["0"], now[0].detach())
    torch.testing.assert_close(tracker.partner_change()["0"], now[1].detach())
    torch.testing.assert_close(tracker.drift()["0"], (now[0] - now[1]).detach())
    assert tracker.explained()["0"].min() >= 0


def test_weights_that_cross_zero_enter_the_law_of_signs():
    net = network([5, 6, 3], bias=False)
    bound = RULES["uSF"](net)
    signs = net[2].weight.sign()
    tracker = Invariants(bound)
    run(bound, tracker, 60, 4, 0.3, "cross_entropy")
    assert (net[2].weight.sign() != signs).any()
    assert tracker.residual() < 1e-13


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_the_moved_laws_of_normalisation_are_exact(kind):
    net = normalise(network([5, 6, 3]), kind, eps=1e-30)
    bound = FA(net, generator=stream(0, "f"))
    moved, naive = Invariants(bound, normalised=True), Invariants(bound, control=True)
    assert list(moved.drift()) == ["0 weights", "0 scales"]
    assert list(conserved(bound, normalised=True)) == list(moved.drift())
    for step in range(20):
        bound.sgd_step(*data(step, 8, 5, 3, "cross_entropy"), 0.1)
        moved.update()
        naive.update()
    assert moved.residual() < 1e-12
    assert naive.residual() > 1e-3


def test_convolution_pooling_and_flatten_keep_the_law():
    g = stream(0, "w")
    net = convnet((1, 8, 8), [3, 4], [5], 3, kernel=2, pool=2, activation="leaky_relu",
                  generator=g, dtype=double)  # fmt: skip
    bound = FA(net, generator=g)
    tracker = Invariants(bound)
    for step in range(6):
        x, y = data(step, 5, 64, 3, "cross_entropy")
        bound.sgd_step(x.reshape(5, 1, 8, 8), y, 0.1)
        tracker.update()
    assert tracker.residual() < 1e-13
    assert max(float(c.max()) for c in tracker.drift().values()) > 1e-5


def test_biases_left_out_leave_half_their_squares_unexplained():
    bound = FA(network([5, 6, 3]), generator=stream(0, "f"))
    whole, without = Invariants(bound), Invariants(bound, biases=False)
    start = bound.net[0].bias.detach().clone()
    for step in range(20):
        bound.sgd_step(*data(step, 8, 5, 3, "cross_entropy"), 0.1)
        whole.update()
        without.update()
    assert whole.residual() < 1e-13
    assert without.residual() > 1e-3
    b = bound.net[0].bias.detach()
    ours = whole.drift()["0"] - without.drift()["0"]
    torch.testing.assert_close(ours, (b.square() - start.square()) / 2)


@pytest.mark.parametrize("broken", ["tanh", "Adam", "momentum"])
def test_what_breaks_the_law_leaves_drift_unexplained(broken):
    net = network([5, 8, 3], activation="tanh" if broken == "tanh" else "relu")
    bound = FA(net, generator=stream(0, "f"))
    tracker = Invariants(bound, control=broken == "tanh")
    if broken == "Adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    else:
        momentum = 0.9 if broken == "momentum" else 0.0
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    for step in range(20):
        bound.backward(*data(step, 8, 5, 3, "cross_entropy"))
        optimizer.step()
        tracker.update()
    assert tracker.residual() > 1e-3
