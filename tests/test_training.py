"""The training loop: batches, probes, determinism, divergence."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fabook.networks import mlp
from fabook.rules import BP, DFA, RULES
from fabook.streams import stream
from fabook.training import History, accuracy, step_times, train


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
        probe = {"accuracy": lambda net=net: accuracy(net, *data)}
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
    "late probe": ({"probe_at": [0, 9]}, r"whole numbers in \[0, 4\]; got \[9\]"),
    "half a probe": ({"probe_at": [0.5]}, r"whole numbers in \[0, 4\]; got \[0.5\]"),
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


def test_progress_shows_nothing_without_a_terminal(net, data, capsys):
    train(BP(net), *data, steps=2, lr=0.1, progress=True)
    assert "".join(capsys.readouterr()).strip() == ""


def test_history_is_plain_data():
    assert History(np.array([0]), np.array([0.0])).values == {}


# --- accuracy and times ---------------------------------------------------------------------------


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


def test_a_failed_accuracy_restores_modes(net, data):
    with pytest.raises(RuntimeError):
        accuracy(net, data[0][:, :3], data[1])
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="no samples"):
        accuracy(net, data[0][:0], data[1][:0])


def test_step_times_calls_in_turn():
    calls = []
    names = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = step_times(names, repeats=3)
    assert calls == ["a", "b"] * 4
    assert set(times) == {"a", "b"}
    assert all(0 < t < 1 for t in times.values())
    with pytest.raises(ValueError, match="repeats must be positive; got 0"):
        step_times(names, repeats=0)
