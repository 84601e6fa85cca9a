"""Fluctuations at finite N and escapes from a plateau, against the reduced simulation."""

import numpy as np
import pytest
import torch
from scipy import stats

from fabook.streams import stream
from fabook.theory.refinetti2021 import fluctuations, online, reduced, simulation
from fabook.theory.refinetti2021.reduced import ReducedState
from fabook.theory.refinetti2021.simulation import OnlineState

POINT = dict(
    Q0=np.array([[0.5, -0.2], [-0.2, 0.4]]), R0=np.array([[0.3, 0.1], [-0.2, 0.2]]),
    T=np.array([[1.0, 0.2], [0.2, 0.8]]), v0=[0.6, -0.3], A=[1.0, 0.7],
)  # fmt: skip
F = [1.0, -0.7]
SYMMETRIC = dict(Q0=0.01 * np.eye(2), R0=np.zeros((2, 2)), T=np.eye(2), A=[1, 1])


def coordinates(run):
    """y of every run and probe, (R, n_p, P)."""
    i, j = np.triu_indices(run.v.shape[-1])
    return np.concatenate([run.Q[..., i, j], run.R.reshape(*run.R.shape[:2], -1), run.v], -1)


def drawn(start, runs, N, *, rule, time, seed=0):
    """The reduced simulation of many runs from one point."""
    states = ReducedState.from_overlaps(**start, feedback=F, n_inputs=N).repeat(runs)
    return reduced.train_online(
        states, rule=rule, lr=0.5, steps=round(time * N), probe_at=[0, round(time * N)],
        generator=stream(seed, "x"),
    )  # fmt: skip


def point(**names):
    """POINT in the words of the functions that take one state."""
    return {name.removesuffix("0"): value for name, value in POINT.items()} | names


def covariance(feedback, nodes=16):
    """D at POINT, as linear_noise and plateau take it."""
    system = fluctuations._System(POINT["T"], POINT["A"], feedback, 0.5, 2)
    return system.covariance(system.pack(POINT["Q0"], POINT["R0"], POINT["v0"]), nodes)


@pytest.fixture(scope="module")
def dfa():
    return fluctuations.plateau(**SYMMETRIC, v0=[0, 0], feedback=[1, -1], lr=2.0, time=100)


@pytest.mark.parametrize("rule", ["BP", "DFA"])
def test_mean_and_covariance_of_one_step(rule):
    N, runs = 10**7, 20_000
    y = coordinates(drawn(POINT, runs, N, rule=rule, time=1 / N))
    moves = N * (y[:, 1] - y[:, 0])
    feedback = F if rule == "DFA" else None
    D = covariance(feedback)
    found = np.cov(moves.T)
    centred = moves - moves.mean(0)
    error = np.einsum("ra,rb->rab", centred, centred).std(0) / np.sqrt(runs)
    assert (np.abs(found - D) < 5 * error + 1e-3).all()
    h = 1e-5
    path = online.online_dynamics(
        **POINT, feedback=feedback, lr=0.5, times=[h], rtol=1e-12, atol=1e-14
    )
    drift = (coordinates(path_of_one(path))[0, 0] - y[0, 0]) / h
    assert (np.abs(moves.mean(0) - drift) < 5 * moves.std(0) / np.sqrt(runs) + 1e-3).all()


def path_of_one(path):
    """A path of the theory in the shape of one run."""

    class One:
        Q, R, v = path.Q[None], path.R[None], path.v[None]

    return One


def test_quadrature_has_converged():
    few, many = (covariance(F, nodes=n) for n in (16, 24))
    np.testing.assert_allclose(few, many, rtol=2e-3, atol=1e-5)


def test_jacobian_gives_the_linear_growth_of_a_difference():
    y = np.concatenate([POINT["Q0"][np.triu_indices(2)], POINT["R0"].ravel(), POINT["v0"]])
    J = fluctuations.jacobian(**point(), feedback=F, lr=0.5)
    assert J.shape == (9, 9)
    h, small = 1e-4, 1e-4
    rng = np.random.default_rng(0)
    d = rng.normal(size=9)

    def after(y):
        Q = np.array([[y[0], y[1]], [y[1], y[2]]])
        start = {"Q0": Q, "R0": y[3:7].reshape(2, 2), "v0": y[7:], "T": POINT["T"], "A": POINT["A"]}
        path = online.online_dynamics(
            **start, feedback=F, lr=0.5, times=[h], rtol=1e-12, atol=1e-14
        )
        return coordinates(path_of_one(path))[0, 0]

    growth = ((after(y + small * d) - after(y)) / small - d) / h
    np.testing.assert_allclose(growth, J @ d, atol=5e-3)


@pytest.mark.parametrize("rule", ["BP", "DFA"])
def test_linear_noise_is_the_covariance_of_many_runs(rule):
    N, runs = 500, 1000
    feedback = F if rule == "DFA" else None
    y, S = fluctuations.linear_noise(**POINT, feedback=feedback, lr=0.5, times=[0.5, 2.0])
    assert y.shape == (2, 9)
    found = coordinates(drawn(POINT, runs, N, rule=rule, time=2))[:, 1]
    np.testing.assert_allclose(found.mean(0), y[1], atol=0.02)
    np.testing.assert_allclose(N * found.var(0), np.diag(S[1]), rtol=0.2)
    correlation = S[1] / np.sqrt(np.outer(np.diag(S[1]), np.diag(S[1])))
    np.testing.assert_allclose(np.corrcoef(found.T), correlation, atol=0.15)


def test_a_plateau_is_a_fixed_point_that_the_theory_leaves_at_its_rate(dfa):
    start = dfa.start
    stay = online.online_dynamics(**start, feedback=[1, -1], lr=2.0, times=[20.0])
    np.testing.assert_allclose(stay.Q[0], start["Q0"], atol=1e-5)
    assert stay.error[0] == pytest.approx(dfa.error, rel=1e-4)
    moved = start | {"R0": start["R0"] + 1e-4 * dfa.direction[3:7].reshape(2, 2)}
    path = online.online_dynamics(**moved, feedback=[1, -1], lr=2.0, times=[10.0, 30.0])
    split = np.abs(path.R[:, 0, 0] - path.R[:, 0, 1])
    assert np.log(split[1] / split[0]) / 20 == pytest.approx(dfa.rate, rel=1e-3)
    assert dfa.eigenvalues[1:].real.max() < 0


def test_the_law_of_the_escape_time_agrees_with_its_moments(dfa):
    z = np.abs(np.random.default_rng(0).normal(size=200_000))
    times = dfa.delay + (np.log(1000) / 2 - np.log(dfa.amplitude * z)) / dfa.rate
    assert times.mean() == pytest.approx(float(dfa.mean(1000)), abs=0.1)
    assert times.std() == pytest.approx(dfa.spread, rel=0.01)
    share = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(dfa.quantile(share, 1000), np.quantile(times, share), atol=0.15)
    np.testing.assert_allclose(dfa.cdf(dfa.quantile(share, 1000), 1000), share, rtol=1e-9)
    assert float(dfa.mean(1000 * np.e**2) - dfa.mean(1000)) == pytest.approx(1 / dfa.rate)


def test_runs_that_begin_off_the_plateau_amplify_the_sum(dfa):
    z = np.random.default_rng(1).normal(size=(400_000, 1))
    N, a = np.array([10, 100, 10_000]), 0.05
    times = dfa.delay - np.log(np.abs(a + z * dfa.amplitude / np.sqrt(N))) / dfa.rate
    np.testing.assert_allclose(dfa.mean(N, displaced=a), times.mean(0), atol=0.06)
    np.testing.assert_allclose(dfa.mean(N, displaced=-a), dfa.mean(N, displaced=a))
    np.testing.assert_allclose(dfa.mean(N, displaced=1e-9), dfa.mean(N))
    assert float(dfa.mean(10**9, displaced=a)) == pytest.approx(dfa.delay - np.log(a) / dfa.rate)


def test_runs_escape_by_that_law(dfa):
    N, runs = 60, 250
    states = ReducedState.from_overlaps(**dfa.start, feedback=[1.0, -1.0], n_inputs=N).repeat(runs)
    steps = 200 * N
    run = reduced.train_online(
        states, lr=2.0, steps=steps, probe_at=range(0, steps, 50), tol=dfa.level,
        generator=stream(0, "x"),
    )  # fmt: skip
    times = online.passage_time(run.t[1:], run.error[:, 1:], dfa.level)
    assert np.isfinite(times).all()
    assert stats.kstest(times, lambda t: dfa.cdf(t, N)).pvalue > 0.001
    assert times.std() == pytest.approx(dfa.spread, rel=0.2)


@pytest.mark.parametrize("N", [50, 200])
def test_the_direct_simulation_escapes_from_its_plateau_at_the_same_times(dfa, N):
    runs, steps = {50: 300, 200: 100}[N], 200 * N
    law = ReducedState.from_overlaps(**dfa.start, feedback=[1.0, -1.0], n_inputs=N).repeat(runs)
    whole = [torch.nn.functional.pad(part, (0, N - part.shape[2])) for part in (law.w, law.B)]
    direct = OnlineState(whole[0], law.v, whole[1], law.A, law.F)
    found = []
    for program, start in ((reduced, law), (simulation, direct)):
        run = program.train_online(
            start, lr=2.0, steps=steps, probe_at=range(0, steps, N), tol=dfa.level,
            generator=stream(0, program.__name__),
        )  # fmt: skip
        found.append(online.passage_time(run.t[1:], run.error[:, 1:], dfa.level))
    assert np.isfinite(found).all()
    assert stats.ks_2samp(*found).pvalue > 0.01
    assert np.std(found[1]) == pytest.approx(np.std(found[0]), rel=0.35)


def test_what_has_no_plateau_is_refused():
    with pytest.raises(ValueError, match=r"Q must be \(K, K\), got shape \(1, 2, 2\)"):
        fluctuations.jacobian(
            np.eye(2)[None], np.eye(2), np.eye(2), [1, 1], [1, 1], feedback=F, lr=1
        )
    learned = dict(Q0=np.eye(1), R0=np.eye(1), T=np.eye(1), v0=[1.0], A=[1.0])
    with pytest.raises(ValueError, match="nothing escapes: the largest eigenvalue is -"):
        fluctuations.plateau(**learned, feedback=[1.0], lr=0.5, time=10)
    with pytest.raises(ValueError, match=r"no plateau near the path at t = 0\.1"):
        fluctuations.plateau(**SYMMETRIC, v0=[0, 0], feedback=[3, 0.01], lr=0.5, time=0.1)
    three = dict(Q0=0.01 * np.eye(3), R0=np.zeros((3, 3)), T=np.eye(3), v0=[0] * 3, A=[1] * 3)
    with pytest.raises(ValueError, match=r"one unstable direction; this plateau has 4, with"):
        fluctuations.plateau(**three, feedback=[1, -1, 1], lr=1.0, time=100)
    copies = SYMMETRIC | {"Q0": np.array([[0.01, -0.01], [-0.01, 0.01]])}
    with pytest.raises(ValueError, match="no noise along the direction"):
        fluctuations.plateau(**copies, v0=[0.3, -0.3], lr=2.0, time=50)
