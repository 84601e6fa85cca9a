"""The training loop: batches, probes, determinism, divergence."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fabook.metrics import gradient_alignment, weight_alignment
from fabook.networks import mlp
from fabook.rules import BP, DFA, RULES
from fabook.streams import stream
from fabook.training import History, accuracy, log_steps, train


@pytest.fixture
def data(device, dtype):
    g = stream(0, "data")
    x = torch.randn(23, 4, generator=g, dtype=dtype).to(device)
    return x, torch.randint(3, (23,), generator=g).to(device)


@pytest.fixture
def net(device, dtype):
    return mlp([4, 5, 6, 3], generator=stream(0, "weights"), dtype=dtype).to(device)


def order(seed=0):
    return stream(seed, "order")


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def by_hand(net, x, y, batches, make_optimizer, reduction="mean"):
    optimizer = make_optimizer(net.parameters())
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch], reduction=reduction).backward()
        optimizer.step()
    return weights(net)


def epochs_of(n, size, count, generator, drop_last=False):
    for _ in range(count):
        for batch in torch.randperm(n, generator=generator).split(size):
            if len(batch) == size or not drop_last:
                yield batch


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("optimizer", [None, sgd, adam])
def test_training_is_the_plain_loop(net, data, optimizer, drop_last, reduction, dtype):
    """With the odd last batch or without it, in place or by an optimizer."""
    x, y = data
    twin = copy.deepcopy(net)
    batches = epochs_of(23, 5, 3, order(), drop_last)
    want = by_hand(twin, x, y, batches, optimizer or sgd, reduction)
    step = {"lr": 0.1} if optimizer is None else {"optimizer": optimizer(net.parameters())}
    options = {"drop_last": drop_last, "reduction": reduction, "generator": order()}
    run = train(BP(net), x, y, epochs=3, batch_size=5, probe_at=[0, 4], **options, **step)
    for p, q in zip(weights(net), want):
        tol = 1e-10 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(p, q, rtol=tol, atol=tol)
    assert run.steps.tolist() == [0, 4]
    assert run.epochs.tolist() == [0, 4 / (4 if drop_last else 5)]
    assert run.diverged is None


def test_whole_batches_need_no_generator(net, data):
    x, y = data
    twin = copy.deepcopy(net)
    train(BP(net), x, y, steps=3, lr=0.1)
    train(BP(twin), x, y, epochs=3, lr=0.1, batch_size=23)
    assert same(weights(net), weights(twin))


@pytest.mark.parametrize(
    ("length", "updates"),
    [({"epochs": 2}, 10), ({"epochs": 0.6}, 3), ({"steps": 7}, 7), ({"steps": 0}, 0)],
)
def test_length_of_a_run(net, data, length, updates):
    seen = []
    options = {"batch_size": 5, "lr": 0.1, "generator": order(), "after_step": seen.append}
    before = weights(net)
    run = train(BP(net), *data, **length, **options, probe_at=[updates])
    assert seen == list(range(1, updates + 1))
    assert run.steps.tolist() == [updates]
    assert run.epochs.tolist() == [updates / 5]
    assert same(before, weights(net)) == (updates == 0)


def test_probes_see_the_network_at_their_steps(net, data):
    x, y = data
    start, done = weights(net)[0], []
    moved = {
        "moved": lambda: float((net[0].weight.detach() - start).norm()),
        "cos ": lambda: {"first": len(done), "nan": float("nan")},
    }
    at = np.array([3, 0, 7])
    options = {"batch_size": 5, "lr": 0.1, "generator": order(), "after_step": done.append}
    run = train(DFA(net, generator=order(1)), x, y, steps=7, probe=moved, probe_at=at, **options)
    assert run.steps.tolist() == [0, 3, 7]
    assert run["cos first"].tolist() == [0, 3, 7]
    assert np.isnan(run["cos nan"]).all()  # the cosine of a zero vector is no divergence
    assert run["moved"][0] == 0
    assert 0 < run["moved"][1] < run["moved"][2]
    with pytest.raises(KeyError, match="no probe recorded 'loss'; there are moved, cos first"):
        run["loss"]


def test_probing_changes_nothing(device, dtype, data):
    runs = []
    for at in ([], range(8)):
        net = mlp([4, 5, 3], generator=stream(0, "weights"), dtype=dtype).to(device)
        probe = {"accuracy": lambda net=net: accuracy(net, *data)} if at else None
        options = {"batch_size": 5, "lr": 0.1, "generator": order(), "probe": probe}
        train(DFA(net, generator=stream(0, "f")), *data, steps=7, probe_at=at, **options)
        runs.append(weights(net))
    assert same(*runs)


@pytest.mark.parametrize("rule", RULES)
def test_same_seeds_give_the_same_bits(rule, device, dtype, data):
    runs = []
    for seed in (0, 0, 1):
        net = mlp([4, 5, 6, 3], generator=stream(0, "weights"), dtype=dtype).to(device)
        bound = RULES[rule](net, generator=stream(0, "feedback"))
        train(bound, *data, epochs=3, batch_size=5, lr=0.1, generator=order(seed))
        runs.append(weights(net))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_global_random_states_are_left_alone(net, data):
    before = torch.get_rng_state(), random.getstate()
    torch_only = {"batch_size": 5, "lr": 0.1, "generator": order()}
    train(DFA(net, generator=order(1)), *data, epochs=2, **torch_only)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


# --- divergence -----------------------------------------------------------------------------------


def explode(net, x, **options):
    y = torch.zeros(len(x), 3).to(x)
    return train(BP(net), x, y, lr=1e3, loss="mse", label="run 7", **options)


def linear(device, dtype):
    net = mlp([4, 5, 3], activation="linear", generator=stream(0, "weights"), dtype=dtype)
    return net.to(device)


@pytest.mark.parametrize("at", [[], range(0, 300, 10)])
def test_divergence_names_run_step_and_quantity(device, dtype, data, at):
    net, done = linear(device, dtype), []
    with pytest.raises(FloatingPointError, match=r"run 7 diverged at step \d+: loss is (inf|nan)"):
        explode(net, data[0], steps=5000, probe_at=at, after_step=done.append)
    assert len(done) <= 100  # noticed early, not at the end


def test_divergence_can_stop_the_run_instead(device, dtype, data):
    net = linear(device, dtype)
    probe = {"one": lambda: 1.0}
    run = explode(net, data[0], steps=300, probe=probe, probe_at=[0, 1, 299], on_divergence="stop")
    assert run.diverged.startswith("run 7 diverged at step ")
    assert run.steps.tolist() == [0, 1]
    assert run["one"].tolist() == [1, 1]


def test_an_infinite_probe_is_a_divergence(net, data):
    probe = {"norm": lambda: {" of W": float("inf")}}
    with pytest.raises(FloatingPointError, match="run diverged at step 2: norm of W is inf"):
        train(BP(net), *data, steps=3, lr=0.1, probe=probe, probe_at=[2])


def test_a_nan_in_the_data_is_found_at_the_end(net, data):
    x, y = data
    x[3, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged at step 3: loss is nan"):
        train(BP(net), x, y, steps=3, lr=0.1)


ERRORS = {
    "lengths": ({"y": slice(0, 5)}, r"same positive length; got 23 and 5"),
    "no data": ({"x": slice(0, 0), "y": slice(0, 0)}, "same positive length; got 0 and 0"),
    "batch": ({"batch_size": 24}, r"batch_size must lie in \[1, 23\]; got 24"),
    "empty batch": ({"batch_size": 0}, r"batch_size must lie in \[1, 23\]; got 0"),
    "two steps": ({"optimizer": True}, "give either lr .* or optimizer"),
    "no step": ({"lr": None}, "give either lr .* or optimizer"),
    "two lengths": ({"epochs": 1}, "give either epochs or steps"),
    "no length": ({"steps": None}, "give either epochs or steps"),
    "negative": ({"steps": -1}, "must not be negative; got -1"),
    "order": ({"generator": None}, "minibatches need generator"),
    "seed": ({"generator": 0}, r"minibatches need generator=torch.Generator\(\).*; got 0"),
    "rate in quotes": ({"lr": "0.1"}, "lr must be a finite number .*; got '0.1'"),
    "late probe": ({"probe_at": [0, 9]}, r"whole numbers in \[0, 4\]; got \[9\]"),
    "half a probe": ({"probe_at": [0.5]}, r"whole numbers in \[0, 4\]; got \[0.5\]"),
    "no time to probe": ({"probe": {"a": lambda: 1.0}}, r"probe without probe_at .*\[0, 4\]"),
    "half a step": ({"steps": 2.5}, r"steps must be a whole number; got 2.5"),
    "half a sample": ({"batch_size": 2.5}, r"batch_size must be a whole number; got 2.5"),
    "endless": ({"steps": None, "epochs": float("inf")}, "epochs must be finite; got inf"),
    "rate": ({"lr": float("nan")}, "lr must be a finite number .*; got nan"),
    "uphill": ({"lr": -0.1}, "lr must be a finite number .*; got -0.1"),
    "divergence": (
        {"on_divergence": "warn"},
        "on_divergence must be one of raise, stop; got 'warn'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_value_and_what_is_allowed(name, net, data):
    change, message = ERRORS[name]
    options = {"batch_size": 5, "lr": 0.1, "steps": 4, "generator": order()}
    options |= {k: v for k, v in change.items() if k not in ("x", "y")}
    if "optimizer" in options:
        options["optimizer"] = sgd(net.parameters())
    x, y = (v[change.get(k, slice(None))] for k, v in zip("xy", data))
    with pytest.raises(ValueError, match=message):
        train(BP(net), x, y, **options)


def test_an_optimizer_of_another_network_is_refused(net, data):
    other, more = copy.deepcopy(net), nn.Parameter(torch.zeros(7))
    refused = {
        "6 of the optimizer's 6 parameters are not in rule.net, the first of": other.parameters(),
        r"1 of the optimizer's 7 .* the first of shape \(7,\)": [*net.parameters(), more],
    }
    before = weights(net)
    for message, parameters in refused.items():
        with pytest.raises(ValueError, match=message):
            train(BP(net), *data, steps=1, optimizer=sgd(parameters))
    net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"holds no parameter of rule.net that requires"):
        train(BP(net), *data, steps=1, optimizer=sgd(net[0].parameters()))
    train(BP(net), *data, steps=1, optimizer=sgd(net[4].parameters()))  # a part may learn
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(net))]
    assert moved == [False] * 4 + [True] * 2
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would learn"):
        train(BP(net), *data, steps=1, lr=0.1)


@pytest.mark.parametrize("measure", [gradient_alignment, train])
def test_what_is_no_rule_is_refused(net, data, measure):
    for wrong, name in ((net, "Sequential"), (BP, "BP"), (None, "NoneType")):
        with pytest.raises(TypeError, match=rf"such as fabook.BP\(net\); got {name}"):
            measure(wrong, *data, **({"steps": 1, "lr": 0.1} if measure is train else {}))
        with pytest.raises(TypeError, match=f"got {name}"):
            weight_alignment(wrong)


def test_what_is_no_optimizer_and_one_number_of_updates_are_refused(net, data):
    for wrong in ("adam", torch.optim.Adam):
        with pytest.raises(TypeError, match=r"optimizer must be one such as .*; got .*[aA]dam"):
            train(BP(net), *data, steps=1, optimizer=wrong)
    with pytest.raises(TypeError, match=r"probe_at must hold numbers of updates, \[3\]"):
        train(BP(net), *data, steps=3, lr=0.1, probe={"a": lambda: 1.0}, probe_at=3)


def test_the_training_loss_is_kept(net, data):
    x, y = data
    twin = copy.deepcopy(net)
    run = train(BP(net), x, y, epochs=2, batch_size=5, lr=0.1, generator=order())
    want = []
    for batch in epochs_of(23, 5, 2, order()):
        want.append(float(F.cross_entropy(twin(x[batch]), y[batch]).detach()))
        BP(twin).sgd_step(x[batch], y[batch], 0.1)
    assert run.loss.tolist() == pytest.approx(want)
    assert train(BP(net), x, y, steps=2005, lr=0.01).loss.shape == (2005,)  # more than one piece


def test_a_probe_may_return_an_alignment(net, data):
    rule = DFA(net, generator=order(1))
    probe = {"g": lambda: gradient_alignment(rule, *data), "w": lambda: weight_alignment(rule)}
    run = train(rule, *data, steps=2, lr=0.1, probe=probe, probe_at=[0, 2])
    now = gradient_alignment(rule, *data)
    assert list(run.values) == ["g", "g[0]", "g[2]", "w", "w[2]", "w[4]"]
    assert [run[k][1] for k in ("g", "g[0]", "g[2]")] == [now.total, *now.layers.values()]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (lambda: 1.0, "probe must map names to functions"),
        ({"one": 1.0}, r"functions without arguments, .*; got {'one': 1.0}"),
        ({"one": lambda: None}, "probe 'one' returned None"),
        ({"one": lambda: "x"}, "probe 'one' returned 'x'; allowed are numbers"),
        ({"one": lambda: nn.Tanh()}, r"probe 'one' returned Tanh\(\); allowed are numbers"),
    ],
)
def test_a_probe_that_shows_nothing_is_refused(net, data, probe, message):
    with pytest.raises(TypeError, match=message):
        train(BP(net), *data, steps=1, lr=0.1, probe=probe, probe_at=[0])


def test_probes_must_name_the_same_things_each_time(net, data):
    seen = iter([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ValueError, match=r"\['pa'\] at first and \['pb'\] at step 1"):
        train(BP(net), *data, steps=1, lr=0.1, probe={"p": lambda: next(seen)}, probe_at=[0, 1])
    twice = {"p": lambda: {"q": 1.0}, "pq": lambda: 1.0}
    with pytest.raises(ValueError, match="two probes record 'pq'"):
        train(BP(net), *data, steps=1, lr=0.1, probe=twice, probe_at=[0])


def test_history_becomes_a_table(net, data):
    probe = {"one": lambda: 1.0, "two": lambda: [[1.0, 2.0]]}
    run = train(BP(net), *data, steps=5, lr=0.1, probe=probe, probe_at=[0, 3, 5])
    table = run.frame()
    assert list(table.columns) == ["epoch", "loss", "one", "two[0, 0]", "two[0, 1]"]
    assert table.index.tolist() == [0, 3, 5]
    assert math.isnan(table.loss[0])
    assert table.loss[3] == pytest.approx(run.loss[:3].mean())
    assert table.loss[5] == pytest.approx(run.loss[3:].mean())
    assert table["two[0, 1]"].tolist() == [2, 2, 2]


def test_progress_shows_nothing_without_a_terminal(net, data, capsys):
    train(BP(net), *data, steps=2, lr=0.1, progress=True)
    assert "".join(capsys.readouterr()).strip() == ""


def test_history_is_plain_data():
    assert History(np.array([0]), np.array([0.0])).values == {}


# --- accuracy -------------------------------------------------------------------------------------


def test_accuracy_counts_hits_in_evaluation_mode_and_restores_modes(device, dtype, data):
    x, y = data
    net = nn.Sequential(*(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 3))).to(
        device, dtype
    )
    net[1].eval()
    kept = [(b, b.clone()) for b in net.buffers()]
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        got = accuracy(net, x, y, batch_size=5)
        assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(a, b) for a, b in kept)
    assert got == float((copy.deepcopy(net).eval()(x).argmax(1) == y).double().mean())
    assert accuracy(net, x, y) == got
    assert accuracy(net, x, net.eval()(x).argmax(1)) == 1


def as_maps():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("shape", [(7, 4), (7, 5, 4), (3, 2, 5, 4), (3, 2, 3, 3)])
def test_accuracy_of_every_shape_that_trains(shape, device, dtype):
    """Vectors, sequences and maps; the classes of maps are on axis 1, as the rules have them."""
    maps = len(shape) == 4
    with torch.random.fork_rng():
        net = as_maps() if maps else nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    net = net.to(device, dtype)
    x = torch.randn(shape, generator=stream(0, "x"), dtype=dtype).to(device)
    output = net(x).detach()
    axis = 1 if maps else output.ndim - 1
    seen = output.shape[:axis] + output.shape[axis + 1 :]
    y = torch.randint(3, seen, generator=stream(0, "y")).to(device)
    BP(net).backward(x, y)  # trains
    want = float((output.argmax(axis) == y).double().mean())
    assert accuracy(net, x, y, batch_size=2) == pytest.approx(want, abs=1e-15)
    assert accuracy(net, x, y, axis=axis) == pytest.approx(want, abs=1e-15)
    some = y.clone()
    some[0] = -100
    rest = float((output.argmax(axis) == y)[1:].double().mean())
    assert accuracy(net, x, some) == pytest.approx(rest, abs=1e-15)


def test_accuracy_refuses_shapes_and_labels_that_have_none(device):
    same, out = nn.Identity(), torch.eye(3).to(device)
    y = torch.tensor([0, 1, 1]).to(device)
    assert accuracy(same, out, y) == 2 / 3
    assert accuracy(same, out * float("nan"), y * 0) == 0
    refused = [
        (out, y[:, None], r"outputs \(3, 3\) needs .* labels of shape \(3,\); got labels \(3, 1\)"),
        (out[:, :1], y, r"outputs \(3, 1\) needs two classes or more"),
        (out[:, :, None], y, r"shape \(3, 3\) or \(3, 1\); got labels \(3,\)"),
        (out, out, "whole numbers as labels; got torch.float32"),
        (out, y + 2, r"labels must lie in \[0, 3\) or be -100; got 3"),
        (out, y - 1, r"labels must lie in \[0, 3\) or be -100; got -1"),
        (out, y * 0 - 100, "all are -100"),
        (out, y[:2], "3 samples and 2 labels"),
    ]
    for x, labels, message in refused:
        with pytest.raises(ValueError, match=message):
            accuracy(same, x, labels)


def test_a_failed_accuracy_restores_modes(net, data):
    with pytest.raises(RuntimeError):
        accuracy(net, data[0][:, :3], data[1])
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="of 0 samples and 0 labels is undefined"):
        accuracy(net, data[0][:0], data[1][:0])


def test_log_steps():
    steps = log_steps(10_000, 40)
    assert steps[0] == 1
    assert steps[-1] == 10_000
    assert (np.diff(steps) > 0).all()
    assert len(steps) <= 40
    assert log_steps(100, 1, first=100).tolist() == [100]
    with pytest.raises(ValueError, match="first=5, n_max=4"):
        log_steps(4, 3, first=5)


def test_an_optimizer_without_the_feedback_that_learns_is_refused():
    rule = RULES["KP"](mlp([4, 3, 2], generator=stream(0, "w")), generator=stream(0, "f"))
    x, y = torch.ones(3, 4), torch.tensor([0, 1, 1])
    half = torch.optim.SGD(rule.net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"KolenPollack learns.*make it of rule\.parameters\(\)"):
        train(rule, x, y, steps=1, optimizer=half)
    train(rule, x, y, steps=1, optimizer=torch.optim.SGD(rule.parameters(), lr=0.1))
