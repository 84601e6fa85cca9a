"""Reduced online learning: the law of the direct simulation, at any number of inputs."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from fabook.streams import stream
from fabook.theory.refinetti2021 import online, reduced, simulation
from fabook.theory.refinetti2021.reduced import ReducedState


@dataclass(frozen=True)
class Case:
    """An experiment that both simulations make from one start; M = 2."""

    N: int
    K: int
    rule: str = "DFA"
    activation: str = "erf"
    noise: float = 0.0
    init_sd: float = 0.5
    lr: float = 0.5


SMALL = [
    Case(4, 2),  # no direction is left over
    Case(50, 1),
    Case(50, 2, rule="BP", noise=0.3),
    Case(50, 3, init_sd=0.0),
    Case(50, 4, activation="relu", lr=0.2),
    Case(50, 3, rule="BP", activation="linear", lr=0.1, noise=0.3),
    Case(50, 2, activation="linear", lr=0.1),
    Case(50, 2, activation="relu", lr=0.2, noise=0.3),
]
LARGE = [
    Case(500, 1, rule="BP"),
    Case(500, 2, noise=0.3),
    Case(500, 3, rule="BP", activation="relu", lr=0.3),
    Case(500, 4, init_sd=0.0),
]


def start_of(case, runs):
    """One start, `runs` times."""
    one = simulation.initial_conditions(
        [3], case.N, case.K, 2, init_sd=case.init_sd, teacher_output=[1.0, 0.7]
    )
    return simulation.OnlineState(
        *(getattr(one, f.name).repeat_interleave(runs, 0) for f in fields(one))
    )


def both(case, runs, steps):
    start = start_of(case, runs)
    options = dict(
        rule=case.rule, activation=case.activation, noise=case.noise, lr=case.lr, steps=steps,
        probe_at=np.unique(np.linspace(0, steps, 41).astype(int)),
    )  # fmt: skip
    direct = simulation.train_online(start, generator=stream(0, "direct"), **options)
    law = reduced.train_online(
        ReducedState.from_weights(start), generator=stream(0, "law"), **options
    )
    return direct, law


def p_values(direct, law):
    """Means and spreads of all that is measured early, midway and at the end; escape times."""
    found = {}
    n = len(direct.steps)
    for name in ("Q", "R", "v", "error"):
        for at in (n // 8, n // 2, n - 1):
            a, b = (getattr(x, name)[:, at].reshape(len(x.v), -1) for x in (direct, law))
            for i, (x, y) in enumerate(zip(a.T, b.T)):
                found[name, at, i, "mean"] = stats.ttest_ind(x, y, equal_var=False).pvalue
                found[name, at, i, "spread"] = stats.levene(x, y, center="median").pvalue
    level = np.quantile(direct.error.min(1), 0.9) * 1.5  # most runs pass it
    times = [online.passage_time(x.t[1:], x.error[:, 1:], level) for x in (direct, law)]
    times = [np.nan_to_num(t, nan=1e9) for t in times]
    found["escape"] = stats.ks_2samp(*times).pvalue
    return found


def holm(p, level):
    """The names that Holm's procedure rejects."""
    rejected = []
    for i, name in enumerate(sorted(p, key=p.get)):
        if p[name] > level / (len(p) - i):
            break
        rejected.append(name)
    return rejected


@pytest.mark.parametrize(("cases", "runs", "time"), [(SMALL, 600, 15), (LARGE, 80, 7)])
def test_has_the_law_of_the_direct_simulation(cases, runs, time):
    p = {}
    for case in cases:
        found = p_values(*both(case, runs, time * case.N))
        p |= {(case, name): value for name, value in found.items()}
    values = np.array(list(p.values()))
    assert len(p) > 250
    assert np.isfinite(values).all()
    assert holm(p, 0.01) == []
    assert 0.01 < np.mean(values < 0.05) < 0.1  # tests of one run are not independent


@pytest.mark.parametrize("case", [Case(6, 1, lr=3.0), Case(8, 2, lr=3.0)])
def test_one_large_step_of_few_inputs_has_the_whole_law(case):
    """Here the chi-square of the input's other part shows: its spread, not its mean alone."""
    start, options = start_of(case, 20_000), {"lr": case.lr, "steps": 1, "probe_at": [1]}
    direct = simulation.train_online(start, generator=stream(0, "direct"), **options)
    law = reduced.train_online(
        ReducedState.from_weights(start), generator=stream(0, "law"), **options
    )
    p = {}
    for name in ("Q", "R", "v"):
        for i, (x, y) in enumerate(
            zip(*(getattr(one, name)[:, -1].reshape(20_000, -1).T for one in (direct, law)))
        ):
            p[name, i] = stats.ks_2samp(x, y).pvalue
    assert holm(p, 0.01) == []


def test_the_comparison_can_tell_another_law():
    """A tenth fewer inputs, and the noise left out: seen among as many tests as above."""
    case, runs, steps = Case(50, 2, noise=0.3), 600, 15 * 50
    direct, law = both(case, runs, steps)
    start = ReducedState.from_weights(start_of(case, runs))
    options = {"lr": case.lr, "steps": steps, "probe_at": law.steps}
    fewer = (45 / 50) ** 0.5  # the overlaps stay
    other = replace(start, n_inputs=45, w=start.w * fewer, B=start.B * fewer)
    for state, noise in ((other, case.noise), (start, 0.0)):
        changed = reduced.train_online(state, noise=noise, generator=stream(0, "law"), **options)
        assert min(p_values(direct, changed).values()) < 0.01 / 450
    same = reduced.train_online(start, noise=case.noise, generator=stream(0, "law"), **options)
    assert np.array_equal(same.Q, law.Q)


@pytest.mark.parametrize(
    ("rule", "activation", "lr"),
    [("DFA", "erf", 0.5), ("BP", "erf", 0.5), ("DFA", "linear", 0.1)],
)
def test_fluctuates_about_the_theory_as_one_over_root_n(rule, activation, lr):
    sizes, time = np.array([50, 200, 800, 3200]), 2
    given = dict(Q0=[[0.3, 0.1], [0.1, 0.2]], R0=[[0.2, 0.0], [0.1, 0.1]], T=np.eye(2))
    given |= dict(v0=[0.2, -0.1], A=[1.0, 0.8])
    F = [1.0, -0.7]
    ode = online.online_dynamics(
        **given, feedback=F if rule == "DFA" else None, lr=lr, times=[time], activation=activation
    )
    distance = []
    for N in sizes:
        one = ReducedState.from_overlaps(**given, feedback=F, n_inputs=int(N))
        start = ReducedState(
            int(N), *(getattr(one, k).repeat_interleave(300, 0) for k in ("w", "v", "B", "A", "F"))
        )
        run = reduced.train_online(
            start, rule=rule, lr=lr, steps=int(time * N), probe_at=[time * N],
            generator=stream(0, "x"), activation=activation,
        )  # fmt: skip
        ours, theory = (
            np.concatenate([x.reshape(-1, x[0].size) for x in (Q, R, v)], axis=1)
            for Q, R, v in ((run.Q[:, -1], run.R[:, -1], run.v[:, -1]), (ode.Q, ode.R, ode.v))
        )
        distance.append(np.sqrt(((ours - theory) ** 2).mean(0)))
        bias, sd = np.abs(ours.mean(0) - theory), ours.std(0, ddof=1)
        assert (bias < 4 * sd / np.sqrt(300) + 10 / N).all()
    slope = np.polyfit(np.log(sizes), np.log(distance), 1)[0]
    np.testing.assert_allclose(slope, -0.5, atol=0.05)


def test_linear_students_that_start_at_zero_stay_parallel_to_their_feedback():
    start = reduced.initial_conditions([0, 1], 40, 3, 2, init_sd=0.0)
    run = reduced.train_online(
        start, lr=0.1, steps=400, generator=stream(0, "x"), activation="linear"
    )
    assert (run.alignment[:, -1] > 1 - 1e-12).all()
    w = run.state.w / start.F[:, :, None]
    torch.testing.assert_close(w[:, 1:], w[:, :1].expand(-1, 2, -1), rtol=1e-9, atol=1e-12)


def test_a_student_that_is_its_teacher_stays_so():
    start = reduced.initial_conditions([0, 1], 1000, 2, 2)
    same = replace(start, w=start.B.clone(), v=start.A.clone())
    run = reduced.train_online(same, lr=0.5, steps=300, generator=stream(0, "x"))
    assert (np.abs(run.error) < 1e-15).all()  # a difference of numbers of order one
    torch.testing.assert_close(run.state.w, start.B, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_overlaps_come_back_from_singular_ones(rank):
    W = np.random.default_rng(0).normal(size=(5, 4, rank))  # students 0, 1 and teachers 2, 3
    C = W @ W.swapaxes(1, 2)
    start = ReducedState.from_overlaps(
        C[:, :2, :2], C[:, :2, 2:], C[:, 2:, 2:], [1, 2], [3, 4], [5, 6], n_inputs=100
    )
    now = start.order_parameters()
    np.testing.assert_allclose(now["Q0"], C[:, :2, :2], atol=1e-12)
    np.testing.assert_allclose(now["R0"], C[:, :2, 2:], atol=1e-12)
    np.testing.assert_allclose(now["T"], C[:, 2:, 2:], atol=1e-12)
    assert start.F.tolist() == [[5, 6]] * 5


def test_drawn_starts_have_the_law_of_the_direct_ones():
    runs = range(400)
    a = simulation.initial_conditions(runs, 30, 3, 2, init_sd=0.5, dtype=torch.float64)
    b = reduced.initial_conditions(runs, 30, 3, 2, init_sd=0.5)
    for name in ("v", "A", "F"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    p = {}
    for name in ("Q0", "R0", "T"):
        x, y = (s.order_parameters()[name].reshape(400, -1) for s in (a, b))
        p |= {(name, i): stats.ks_2samp(*z).pvalue for i, z in enumerate(zip(x.T, y.T))}
    assert holm(p, 0.01) == []


def test_same_seed_same_bits_whatever_is_probed():
    start = reduced.initial_conditions([0, 1, 2], 64, 4, 2)

    def final(probes, noise=0.2):
        options = dict(lr=0.2, steps=2100, generator=stream(3, "x"), noise=noise)
        return reduced.train_online(start, probe_at=probes, **options).state

    first = final([2100])
    for probes in ([2100], [0, 7, 1500]):
        other = final(probes)
        assert torch.equal(first.w, other.w)
        assert torch.equal(first.v, other.v)
    assert not torch.equal(first.w, final([2100], noise=0.0).w)


def test_start_and_global_random_state_stay_as_they_are():
    start = reduced.initial_conditions([0, 1], 30, 2, 2)
    kept = {k: getattr(start, k).clone() for k in "wvBAF"}
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    reduced.train_online(start, lr=0.2, steps=20, generator=stream(0, "x"), noise=0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert numpy_before == str(np.random.get_state())  # noqa: NPY002
    for name, value in kept.items():
        assert torch.equal(getattr(start, name), value)


@pytest.mark.parametrize("rule", ["BP", "DFA"])
def test_dtype_and_device(device, rule):
    start = reduced.initial_conditions(range(4), 1000, 2, 2, init_sd=0.3)
    options = dict(rule=rule, lr=0.2, steps=300)
    here = reduced.train_online(start, generator=stream(0, "x"), **options)
    there = reduced.train_online(start, generator=stream(0, "x"), device=device, **options)
    torch.testing.assert_close(here.state.w, there.state.w.cpu(), rtol=1e-9, atol=1e-9)
    single = reduced.train_online(start, generator=stream(0, "x"), dtype=torch.float32, **options)
    assert single.state.w.dtype == torch.float32
    assert np.isfinite(single.error).all()


def test_what_cannot_be_run_is_refused():
    start, generator = reduced.initial_conditions([0], 10, 2, 2), stream(0, "x")
    options = {"lr": 0.1, "steps": 10, "generator": generator}
    with pytest.raises(ValueError, match="got 'FA'"):
        reduced.train_online(start, rule="FA", **options)
    with pytest.raises(ValueError, match="probe_at must increase strictly within 0 to 10"):
        reduced.train_online(start, probe_at=[0, 11], **options)
    with pytest.raises(ValueError, match=r"at least K \+ M = 4, got 3"):
        reduced.initial_conditions([0], 3, 2, 2)
    with pytest.raises(ValueError, match=r"at least K \+ M = 4, got 3"):
        ReducedState.from_weights(simulation.initial_conditions([0], 3, 2, 2))
    with pytest.raises(ValueError, match=r"v must have shape \(1, 2\), got \(1, 3\)"):
        replace(start, v=torch.ones(1, 3))
    with pytest.raises(ValueError, match="B must be zero after its first 2 coordinates"):
        replace(start, B=torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match=r"last 2 coordinates of w must be lower triangular"):
        replace(start, w=torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="belong to no weights: their smallest eigenvalue is -1"):
        ReducedState.from_overlaps([[1]], [[2]], [[1]], [0], [1], [1], n_inputs=9)
    with pytest.raises(FloatingPointError, match=r"run 0 diverged: v .* steps 0 and 1000"):
        reduced.train_online(
            start, lr=30, steps=3000, activation="linear", generator=generator, probe_at=[3000]
        )
