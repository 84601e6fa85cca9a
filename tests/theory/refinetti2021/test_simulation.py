"""Online learning: the batched loop against a plain reference, and what a run must not touch."""

import random
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from fabook.streams import stream
from fabook.theory.refinetti2021.online import alignment, generalisation_error
from fabook.theory.refinetti2021.simulation import OnlineState, initial_conditions, train_online


def plain(name, u):
    from scipy.special import erf

    return {
        "erf": (erf(u / np.sqrt(2)), np.sqrt(2 / np.pi) * np.exp(-(u**2) / 2)),
        "linear": (u, np.ones_like(u)),
        "relu": (np.maximum(u, 0), (u > 0).astype(float)),
    }[name]


def reference(start, r, inputs, noises, *, rule, lr, name):
    """One run, one step after the other, as the update rules are written."""
    w, v, B, A, F = (getattr(start, f.name)[r].numpy().copy() for f in fields(OnlineState))
    N = w.shape[1]
    for x, xi in zip(inputs, noises):
        g, dg = plain(name, w @ x / np.sqrt(N))
        delta = A @ plain(name, B @ x / np.sqrt(N))[0] + xi - v @ g
        f = F if rule == "DFA" else v.copy()
        w += lr / np.sqrt(N) * np.outer(f * dg * delta, x)
        v += lr / N * g * delta
    return w, v


@pytest.mark.parametrize("rule", ["BP", "DFA"])
@pytest.mark.parametrize(
    ("name", "noise"), [("erf", 0.0), ("erf", 0.5), ("relu", 0.0), ("linear", 0.1)]
)
def test_every_run_equals_a_plain_reference(device, rule, name, noise):
    runs, N, steps = 3, 20, 40
    start = initial_conditions([5, 6, 7], N, 4, 2, init_sd=0.7, dtype=torch.float64)
    options = {"rule": rule, "lr": 0.3, "noise": noise, "activation": name, "device": device}
    run = train_online(start, steps=steps, generator=stream(0, "x"), **options)
    generator = stream(0, "x")
    x, xi = np.empty((steps, runs, N)), np.zeros((steps, runs))
    for i in range(steps):
        x[i] = torch.empty(runs, 1, N, dtype=torch.float64).normal_(generator=generator)[:, 0]
        if noise:
            xi[i] = torch.empty(runs, 1, dtype=torch.float64).normal_(generator=generator)[:, 0]
    for r in range(runs):
        w, v = reference(start, r, x[:, r], noise * xi[:, r], rule=rule, lr=0.3, name=name)
        np.testing.assert_allclose(run.state.w[r].cpu(), w, rtol=0, atol=1e-12)
        np.testing.assert_allclose(run.state.v[r].cpu(), v, rtol=0, atol=1e-12)


def test_probes_record_the_state_and_its_closed_form_error():
    start = initial_conditions([0, 1], 50, 3, 2, init_sd=1.0)
    run = train_online(start, lr=0.2, steps=90, generator=stream(0, "x"), probe_at=[0, 10, 90])
    np.testing.assert_array_equal(run.t, [0, 0.2, 1.8])
    for i, state in ((0, start), (2, run.state)):
        now = state.order_parameters()
        np.testing.assert_array_equal(run.Q[:, i], now["Q0"])
        np.testing.assert_array_equal(run.R[:, i], now["R0"])
        np.testing.assert_array_equal(run.v[:, i], now["v0"])
        np.testing.assert_array_equal(run.alignment[:, i], alignment(now["v0"], start.F))
        want = generalisation_error(*(now[k] for k in ("Q0", "R0", "T", "v0", "A")))
        np.testing.assert_array_equal(run.error[:, i], want)


@pytest.mark.parametrize("name", ["erf", "relu", "linear"])
def test_error_is_half_the_mean_squared_error_of_the_network(name):
    start = initial_conditions([0], 100, 3, 2, init_sd=1.0, dtype=torch.float64)
    run = train_online(
        start, lr=0.1, steps=1, generator=stream(0, "x"), probe_at=[0], activation=name
    )
    w, v, B, A = (getattr(start, k)[0].numpy() for k in "wvBA")
    x = np.random.default_rng(0).normal(size=(100_000, 100)) / 10
    square = (plain(name, x @ B.T)[0] @ A - plain(name, x @ w.T)[0] @ v) ** 2 / 2
    assert abs(square.mean() - run.error[0, 0]) < 5 * square.std() / np.sqrt(square.size)


def test_same_seed_same_bits_whatever_is_probed():
    start = initial_conditions([0, 1, 2], 64, 4, 2)

    def final(probes):
        run = train_online(start, lr=0.2, steps=2100, generator=stream(3, "x"), probe_at=probes)
        return run.state

    first = final([2100])
    for probes in ([2100], [0, 7, 1500]):
        other = final(probes)
        assert torch.equal(first.w, other.w)
        assert torch.equal(first.v, other.v)


def test_a_run_can_be_continued():
    start, generator = initial_conditions([0, 1], 30, 2, 2, init_sd=0.5), stream(0, "x")
    options = {"rule": "BP", "lr": 0.2}
    half = train_online(start, steps=50, generator=generator, **options)
    end = train_online(half.state, steps=50, generator=generator, **options)
    whole = train_online(start, steps=100, generator=stream(0, "x"), **options)
    assert torch.equal(whole.state.w, end.state.w)
    assert torch.equal(whole.state.v, end.state.v)


def test_start_and_global_random_state_stay_as_they_are():
    start = initial_conditions([0, 1], 30, 2, 2)
    kept = {f.name: getattr(start, f.name).clone() for f in fields(start)}
    before = torch.get_rng_state(), random.getstate()
    train_online(start, lr=0.2, steps=20, generator=stream(0, "x"), noise=0.1)
    initial_conditions([3], 30, 2, 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    for name, value in kept.items():
        assert torch.equal(getattr(start, name), value)


def test_linear_network_from_zero_stays_parallel_to_its_feedback():
    start = initial_conditions([0, 1], 40, 3, 2, init_sd=0.0, dtype=torch.float64)
    run = train_online(start, lr=0.1, steps=400, generator=stream(0, "x"), activation="linear")
    assert (run.alignment[:, -1] > 1 - 1e-12).all()
    w = run.state.w / start.F[:, :, None]
    torch.testing.assert_close(w[:, 1:], w[:, :1].expand(-1, 2, -1), rtol=1e-9, atol=1e-12)


def test_first_step_of_bp_is_dfa_with_the_read_out_as_feedback():
    start = initial_conditions([0], 40, 3, 2, init_sd=1.0)
    same = OnlineState(start.w, start.v, start.B, start.A, F=start.v)
    bp, dfa = (
        train_online(state, rule=rule, lr=0.5, steps=1, generator=stream(0, "x")).state
        for rule, state in (("BP", start), ("DFA", same))
    )
    torch.testing.assert_close(bp.w, dfa.w, rtol=1e-6, atol=1e-7)
    assert not torch.equal(bp.w, start.w)
    assert torch.equal(bp.v, dfa.v)


def test_stops_when_every_run_is_below_the_tolerance():
    start = initial_conditions([0, 1], 100, 2, 2, init_sd=0.3, teacher_output=[1, 1])
    options = {"rule": "BP", "lr": 0.5, "steps": 30_000, "probe_at": range(0, 30_001, 500)}
    run = train_online(start, generator=stream(0, "x"), tol=1e-2, **options)
    assert (run.error[:, -1] < 1e-2).all()
    assert not (run.error[:, -2] < 1e-2).all()
    assert run.steps[-1] < 30_000
    assert run.error.shape == (2, len(run.steps)) == (2, len(run.t))


def test_divergence_names_run_steps_and_quantity(device):
    start = initial_conditions([0, 1, 2], 20, 2, 2, init_sd=1.0)
    start.F[0], start.F[2] = 0, 0  # the first layers of runs 0 and 2 do not move
    start.w[0], start.w[2] = 0, 0
    want = r"run 1 diverged: v is not finite any more; .* steps 0 and 1000 \(t = 50\) with lr = 3"
    with pytest.raises(FloatingPointError, match=want):
        train_online(
            start, lr=3, steps=3000, generator=stream(0, "x"), activation="linear",
            probe_at=[3000], device=device,
        )  # fmt: skip


def test_initial_conditions_of_a_seed_do_not_depend_on_its_neighbours():
    many, one = (initial_conditions(seeds, 30, 3, 2) for seeds in ([4, 5, 6], [5]))
    for f in fields(OnlineState):
        assert torch.equal(getattr(many, f.name)[1], getattr(one, f.name)[0])


def test_student_and_teacher_share_no_random_numbers():
    start = initial_conditions(range(4), 1000, 2, 2, init_sd=1.0, dtype=torch.float64)
    assert np.abs(start.order_parameters()["R0"]).max() < 0.2
    assert not torch.equal(start.v, start.A)
    assert not torch.equal(start.v, start.F)
    assert not torch.equal(start.A, start.F)


def test_initial_conditions_options():
    start = initial_conditions(
        [0, 1], 2000, 2, 3, init_sd=(0.1, 0.0), teacher_output=[1, 2, 3], feedback=[1.5, -0.5]
    )
    assert start.w.dtype == torch.float32
    assert abs(float(start.w.std()) - 0.1) < 0.005
    assert abs(float(start.B.std()) - 1) < 0.05
    assert start.v.abs().max() == 0
    assert start.A.tolist() == [[1, 2, 3]] * 2
    assert start.F.tolist() == [[1.5, -0.5]] * 2
    run = train_online(start, lr=0.1, steps=3, generator=stream(0, "x"), dtype=torch.float64)
    assert run.state.w.dtype == torch.float64


def test_progress_bar_on_request_only(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    start = initial_conditions([0], 10, 2, 2)
    options = {"lr": 0.1, "steps": 20, "probe_at": [10, 20]}
    train_online(start, **options, generator=stream(0, "x"))
    assert capsys.readouterr().err == ""
    train_online(start, **options, generator=stream(0, "x"), progress=True)
    assert "/3 [" in capsys.readouterr().err


def test_bad_arguments_are_named():
    start, generator = initial_conditions([0], 10, 2, 2), stream(0, "x")
    options = {"lr": 0.1, "steps": 10, "generator": generator}
    with pytest.raises(ValueError, match="got 'FA'"):
        train_online(start, rule="FA", **options)
    with pytest.raises(ValueError, match="got 'tanh'"):
        train_online(start, activation="tanh", **options)
    with pytest.raises(ValueError, match="probe_at must increase strictly within 0 to 10"):
        train_online(start, probe_at=[0, 11], **options)
    with pytest.raises(ValueError, match=r"A must have shape \(1, 2\), got \(1, 3\)"):
        OnlineState(start.w, start.v, start.B, torch.ones(1, 3), start.F)
    with pytest.raises(ValueError, match=r"feedback must have shape \(2,\), got \(3,\)"):
        initial_conditions([0], 10, 2, 2, feedback=[1, 1, 1])
