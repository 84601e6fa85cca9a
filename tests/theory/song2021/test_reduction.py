"""The reductions against the plain network, the rule of stopping against the published loop."""

import numpy as np
import pytest
import torch
from song_networks import ACTIVATIONS, problem, reduced

from fabook import metrics, mlp, train, two_layer
from fabook.rules import DFA, FA
from fabook.streams import stream
from fabook.theory.song2021.reduction import (
    Stop,
    linear_runs,
    published_stop,
    train_linear,
    train_two_layer,
)


def plain(rule, x, y, *, lr, penalty, steps, looks, until=None):
    """The same by ordinary training, the penalty as weight decay of the second layer."""
    net = rule.net
    start = net[2].weight.detach().clone()
    groups = [{"params": [net[0].weight]}, {"params": [net[2].weight], "weight_decay": penalty}]
    optimizer = torch.optim.SGD(groups, lr=lr)

    def switch(step):
        if step == until:
            optimizer.param_groups[1]["weight_decay"] = 0.0

    b = rule.feedback["0"]
    beta = net[2].weight
    return train(
        rule, x, y[:, None], steps=steps, optimizer=optimizer, loss="mse", after_step=switch,
        probe_at=looks,
        probe={
            "loss": lambda: float((net(x)[:, 0] - y).detach().square().mean()),
            "cosine": lambda: float(metrics.cosine(b, beta)),
            "moved": lambda: float(metrics.cosine(b, beta.detach() - start)),
        },
    )  # fmt: skip


def assert_same(got, want):
    np.testing.assert_array_equal(got.steps, want.steps)
    np.testing.assert_allclose(got.loss[:, 0], want["loss"], rtol=1e-11)
    for name in ("cosine", "moved"):
        np.testing.assert_allclose(getattr(got, name)[:, 0], want[name], atol=1e-12)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reduction_is_the_plain_network(activation, penalty, device):
    rule, x, y = problem(device, activation)
    looks = [0, 1, 2, 50, 1000, 1200]
    got = reduced(rule, x, y, activation, lr=2e-3, penalty=penalty, steps=1200, probe_at=looks)
    assert_same(got, plain(rule, x, y, lr=2e-3, penalty=penalty, steps=1200, looks=looks))


def test_cut_off_penalty_is_the_plain_network(device):
    rule, x, y = problem(device)
    looks = [0, 99, 100, 101, 300]
    runs = linear_runs([rule], [x], [y])
    got = train_linear(runs, lr=2e-3, penalty=2.0, until=100, steps=300, probe_at=looks)
    assert_same(got, plain(rule, x, y, lr=2e-3, penalty=2.0, until=100, steps=300, looks=looks))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_cut_off_penalty_of_other_units_is_the_plain_network(activation, device):
    rule, x, y = problem(device, activation)
    options = {"lr": 2e-3, "penalty": 2.0, "until": 100, "steps": 300}
    looks = [0, 99, 100, 101, 300]
    got = train_two_layer(rule, x, y, probe_at=looks, **options)
    assert_same(got, plain(rule, x, y, looks=looks, **options))
    with pytest.raises(ValueError, match="until must be a step"):
        train_two_layer(rule, x, y, **(options | {"until": -1}))


def test_two_reductions_of_a_linear_network_agree(device):
    rule, x, y = problem(device)
    options = {"lr": 2e-3, "penalty": 0.1, "steps": 400, "probe_at": range(0, 401, 50)}
    one = train_two_layer(rule, x, y, **options)
    other = train_linear(linear_runs([rule], [x], [y]), **options)
    np.testing.assert_allclose(one.loss, other.loss, rtol=1e-11)
    np.testing.assert_allclose(one.cosine, other.cosine, atol=1e-12)


def test_stacked_runs_are_single_runs_that_leave_at_their_own_stop(device):
    triples = [problem(device, seed=s) for s in range(3)]
    stop = Stop(least=150, every=100, change=0.05)
    options = {"lr": 2e-3, "steps": 20_000, "stop": stop}
    penalties, ends = [0.0, 0.3, 2.0], [10**6, 500, 300]
    runs = linear_runs(*zip(*triples, strict=True))
    together = train_linear(runs, penalty=penalties, until=ends, **options)
    for r, triple in enumerate(triples):
        alone = train_linear(
            linear_runs(*([v] for v in triple)), penalty=penalties[r], until=ends[r], **options
        )
        assert together.stopped[r] == alone.stopped[0]
        rows = together.steps <= alone.stopped[0]
        np.testing.assert_allclose(together.loss[rows, r], alone.loss[:, 0], rtol=1e-10)
        assert np.isnan(together.loss[~rows, r]).all()
        for name in ("loss", "cosine", "moved"):
            np.testing.assert_allclose(together.final(name)[r], alone.final(name)[0], rtol=1e-9)
    assert len(set(together.stopped.tolist())) > 1  # or the test shows nothing


def rule_of_stopping(loss, stop):
    """The published loop, written out: loss[t] is that after t updates."""
    t, go_on, record = 0, True, 0.0
    while t < stop.least or go_on:
        if t % stop.every == stop.every - 1:
            if abs(loss[t] - record) < stop.change:
                go_on = False
            record = loss[t]
        t += 1
    return t


@pytest.mark.parametrize(("least", "change"), [(450, 0.02), (450, 1e9), (1234, 0.02), (100, 1e-4)])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_stopping_rule_is_the_published_loop(activation, least, change, device):
    rule, x, y = problem(device, activation)
    stop = Stop(least=least, every=100, change=change)
    every = reduced(rule, x, y, activation, lr=2e-3, steps=5000, probe_at=range(5001))
    seen = reduced(rule, x, y, activation, lr=2e-3, steps=5000, stop=stop, probe_at=[7])
    assert seen.settled.all()
    assert seen.stopped[0] == rule_of_stopping(every.loss[:, 0], stop) == seen.steps[-1]
    assert seen.final("cosine")[0] == every.cosine[seen.stopped[0], 0]
    assert {0, 7, 100, 200} <= set(seen.steps.tolist())
    short = reduced(rule, x, y, activation, lr=2e-3, steps=least - 1, stop=stop)
    assert not short.settled.any()
    assert short.stopped[0] == least - 1


def test_one_early_look_without_change_is_enough(device):
    rule, x, y = problem(device)
    options = {"lr": 2e-3, "penalty": 1.0, "steps": 3000}
    every = reduced(rule, x, y, "linear", probe_at=range(3001), **options)
    looks = every.loss[9::10, 0]
    small = np.abs(np.diff(looks)) < 0.05
    turn = int(np.argmax(small))  # early, and the loss moves again after it
    stop = Stop(least=10 * turn + 400, every=10, change=0.05)
    seen = reduced(rule, x, y, "linear", stop=stop, **options)
    assert seen.stopped[0] == rule_of_stopping(every.loss[:, 0], stop) == stop.least


def test_published_stop():
    widths = (200, 400, 800, 1600, 3200, 6400, 12800)
    least = [published_stop(p).least for p in widths]
    assert least == [5050, 7142, 10101, 14285, 20203, 28571, 40406]


def test_mirrored_runs_have_the_opposite_feedback(device):
    rule, x, y = problem(device)
    opposite = FA(rule.net, feedback={"0": -rule.feedback["0"]})
    options = {"lr": 2e-3, "penalty": 0.2, "steps": 200}
    got = train_linear(linear_runs([rule], [x], [y]).mirrored(), **options)
    want = train_linear(linear_runs([opposite], [x], [y]), **options)
    np.testing.assert_allclose(got.cosine, want.cosine, rtol=1e-12)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-12)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_nothing_else_changes(activation, device):
    rule, x, y = problem(device, activation)
    tensors = [*rule.net.parameters(), *rule.buffers(), x, y]
    before = [t.detach().clone() for t in tensors]
    state = torch.random.get_rng_state()
    reduced(rule, x, y, activation, lr=2e-3, penalty=0.1, steps=20)
    assert all(torch.equal(a, t) for a, t in zip(before, tensors, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())


def test_single_precision_stays_single(device):
    rule, x, y = problem(device, "tanh", dtype=torch.float32)
    kinds = []
    seen = train_two_layer(
        rule, x, y, lr=2e-3, steps=300, probe={"k": lambda s: kinds.append(s.Z.dtype) or 0.0}
    )
    double = train_two_layer(
        FA(rule.net.double(), feedback={"0": rule.feedback["0"].double()}), x.double(), y.double(),
        lr=2e-3, steps=300,
    )  # fmt: skip
    assert set(kinds) == {torch.float32}
    np.testing.assert_allclose(seen.loss, double.loss, rtol=1e-4)


def test_divergence_names_run_and_step(device):
    triples = [problem(device, seed=s) for s in range(2)]
    runs = linear_runs(*zip(*triples, strict=True))
    with pytest.raises(FloatingPointError, match=r"run 0 diverged before step \d+"):
        train_linear(runs, lr=10.0, steps=5000)
    with pytest.raises(FloatingPointError, match="run 0 diverged"):
        train_two_layer(*triples[0], lr=10.0, steps=5000)


def _two_outputs():
    net = two_layer(4, 5, n_outputs=2, generator=stream(0, "w"))
    return FA(net, generator=stream(0, "b"))


def _with_bias():
    net = mlp([4, 5, 1], generator=stream(0, "w")).append(
        two_layer(4, 5, generator=stream(0, "w"))[-1]
    )
    return FA(net, generator=stream(0, "b"))


def _erf():
    return FA(two_layer(4, 5, activation="erf", generator=stream(0, "w")), generator=stream(0, "b"))


def _unscaled():
    net = mlp([4, 5, 1], bias=False, generator=stream(0, "w"))
    return FA(net, generator=stream(0, "b"))


def _direct():
    return DFA(two_layer(4, 5, generator=stream(0, "w")), generator=stream(0, "b"))


def _wrong_scale():
    net = two_layer(4, 5, generator=stream(0, "w"))
    net[-1].factor = 1.0
    return FA(net, generator=stream(0, "b"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_two_outputs, "one output"),
        (_with_bias, "no biases"),
        (_erf, "ReLU, LeakyReLU, Sigmoid, Identity, Tanh"),
        (_unscaled, "networks.two_layer"),
        (_direct, "got DFA"),
        (_wrong_scale, r"1/sqrt\(5\); got 1"),
    ],
)
def test_other_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        train_two_layer(make(), torch.ones(3, 4), torch.ones(3), lr=0.1, steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive; got 0.0"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"penalty": 1000.0}, r"\[0, 500\)"),
        ({"penalty": [0.0, 0.1]}, "one for each of 1 runs"),
        ({"steps": -1}, "steps must not be negative; got -1"),
        ({"probe_at": [11]}, r"probe_at must lie in \[0, 10\]; got \[11\]"),
        ({"until": -1}, "until must be"),
    ],
)
def test_settings_out_of_range_are_named(options, message):
    rule, x, y = problem("cpu")
    with pytest.raises(ValueError, match=message):
        train_linear(linear_runs([rule], [x], [y]), **({"lr": 2e-3, "steps": 10} | options))


def test_shapes_and_names_are_checked():
    rule, x, y = problem("cpu")
    relu = problem("cpu", "relu")[0]
    for bad in (lambda: linear_runs([], [], []), lambda: linear_runs([rule], [x, x], [y])):
        with pytest.raises(ValueError, match="one length"):
            bad()
    with pytest.raises(ValueError, match="linear units"):
        linear_runs([relu], [x], [y])
    with pytest.raises(ValueError, match=r"x must be \(n, 20\)"):
        linear_runs([rule], [x[:, :3]], [y])
    with pytest.raises(ValueError, match="share width"):
        linear_runs([rule, problem("cpu", p=61)[0]], [x, x], [y, y])
    seen = train_linear(linear_runs([rule], [x], [y]), lr=2e-3, steps=1)
    with pytest.raises(ValueError, match="name must be one of"):
        seen.final("steps")
