"""Theory of online learning: integrals against sampling, ODEs against symmetries and simulation."""

import numpy as np
import pytest
import torch

from fabook import DFA, mlp
from fabook.metrics import gradient_alignment_per_sample
from fabook.streams import stream
from fabook.theory.refinetti2021 import online
from fabook.theory.refinetti2021.simulation import initial_conditions, train_online

SQRT_2_PI = np.sqrt(2 / np.pi)


def random_overlaps(rng, K=2, M=2, N=8, batch=()):
    w, B = rng.normal(size=(*batch, K, N)), rng.normal(size=(*batch, M, N))
    return w @ w.swapaxes(-1, -2) / N, w @ B.swapaxes(-1, -2) / N, B @ B.swapaxes(-1, -2) / N


def random_start(rng, K=2, M=2, batch=()):
    Q, R, T = random_overlaps(rng, K, M, batch=batch)
    v, A = rng.normal(size=(*batch, K)), rng.normal(size=(*batch, M))
    return {"Q0": Q, "R0": R, "T": T, "v0": v, "A": A}


def activation(name, u):
    from scipy.special import erf

    return {
        "erf": (erf(u / np.sqrt(2)), SQRT_2_PI * np.exp(-(u**2) / 2)),
        "linear": (u, np.ones_like(u)),
        "relu": (np.maximum(u, 0), (u > 0).astype(float)),
    }[name]


def assert_is_mean(closed, products):
    """Every closed form lies within five standard errors of the mean over samples (axis 0)."""
    left, right = products  # (n, p) and (n, q): the mean of each left times each right
    n = len(left)
    mean = left.T @ right / n
    sd = np.sqrt(np.maximum((left**2).T @ (right**2) / n - mean**2, 0) / n)
    np.testing.assert_array_less(np.abs(closed.reshape(mean.shape) - mean), 5 * sd + 1e-12)


@pytest.mark.parametrize("name", ["erf", "linear", "relu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_integrals_against_monte_carlo(name, seed):
    rng = np.random.default_rng(seed)
    C = online.joint_covariance(*random_overlaps(rng))
    u = rng.multivariate_normal(np.zeros(4), C, size=200_000)
    g, dg = activation(name, u)

    def pairs(a, b):
        return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)

    assert_is_mean(online.I2(C, activation=name), (g, g))
    if name != "relu":
        assert_is_mean(online.J2(C, activation=name), (dg, dg))
        assert_is_mean(online.I3(C, activation=name), (pairs(dg, u), g))
        assert_is_mean(online.I4(C, activation=name), (pairs(dg, dg), pairs(g, g)))


def test_erf_integrals_equal_the_formulas_of_saad_and_solla():
    rng = np.random.default_rng(0)
    C = online.joint_covariance(*random_overlaps(rng, batch=(3,)))
    I3, I4 = online.I3(C), online.I4(C)
    for a, b, c, d in np.ndindex(4, 4, 4, 4):

        def s(i, j):
            return C[:, i, j]

        one = 1 + s(a, a)
        L3 = one * (1 + s(c, c)) - s(a, c) ** 2
        want3 = 2 / np.pi / np.sqrt(L3) * (s(b, c) * one - s(a, b) * s(a, c)) / one
        np.testing.assert_allclose(I3[:, a, b, c], want3, rtol=0, atol=1e-12)
        two = 1 + s(b, b)
        L4 = one * two - s(a, b) ** 2
        L0 = L4 * s(c, d) - s(b, c) * s(b, d) * one - s(a, c) * s(a, d) * two
        L0 += s(a, b) * s(a, c) * s(b, d) + s(a, b) * s(a, d) * s(b, c)

        def L(e, one=one, two=two, L4=L4, a=a, b=b, s=s):
            out = L4 * (1 + s(e, e)) - s(b, e) ** 2 * one - s(a, e) ** 2 * two
            return out + 2 * s(a, b) * s(a, e) * s(b, e)

        want4 = 4 / np.pi**2 / np.sqrt(L4) * np.arcsin(L0 / np.sqrt(L(c) * L(d)))
        np.testing.assert_allclose(I4[:, a, b, c, d], want4, rtol=0, atol=1e-12)


def test_derivative_units_select_the_leading_fields():
    C = online.joint_covariance(*random_overlaps(np.random.default_rng(0), K=3, M=2))
    for name in ("erf", "linear"):
        for f in (online.I3, online.I4, online.J2):
            part, whole = f(C, activation=name, units=2), f(C, activation=name)
            leading = (slice(2),) * (1 if f is online.I3 else 2)
            np.testing.assert_array_equal(part, whole[leading])


def test_small_fields_make_erf_linear():
    C = 1e-6 * online.joint_covariance(*random_overlaps(np.random.default_rng(0)))
    slope = SQRT_2_PI
    np.testing.assert_allclose(online.I2(C), slope**2 * C, rtol=1e-4)
    np.testing.assert_allclose(online.J2(C), slope**2, rtol=1e-4)
    np.testing.assert_allclose(
        online.I3(C), slope**2 * online.I3(C, activation="linear"), rtol=1e-4
    )
    np.testing.assert_allclose(
        online.I4(C), slope**4 * online.I4(C, activation="linear"), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["erf", "linear", "relu"])
def test_error_of_a_matched_student_is_zero_in_any_order_of_units(name):
    rng = np.random.default_rng(0)
    T = random_overlaps(rng, 3, 3)[2]
    A, order = rng.normal(size=3), [2, 0, 1]
    error = online.generalisation_error(
        T[order][:, order], T[order], T, A[order], A, activation=name
    )
    assert abs(error) < 1e-14


def test_error_has_the_factor_one_half_and_erf_is_odd():
    assert online.generalisation_error([[0.0]], [[0.0]], [[4.0]], [3.0], [2.0], activation="linear")
    Q, R, T = random_overlaps(np.random.default_rng(0))
    v, A, flip = np.array([0.3, -1.0]), np.array([1.0, 2.0]), np.diag([-1.0, 1.0])
    error = online.generalisation_error(Q, R, T, v, A)
    np.testing.assert_allclose(
        online.generalisation_error(flip @ Q @ flip, flip @ R, T, v @ flip, A), error, rtol=1e-13
    )
    zero = online.generalisation_error(0 * Q, 0 * R, T, 0 * v, A, activation="linear")
    np.testing.assert_allclose(zero, A @ T @ A / 2)


def test_relu_error_with_a_silent_unit_is_finite_and_rescaling_changes_nothing():
    Q, R, T = random_overlaps(np.random.default_rng(0))
    v, A, scale = np.array([0.3, 1.0]), np.array([1.0, 2.0]), np.diag([2.0, 0.5])
    error = online.generalisation_error(Q, R, T, v, A, activation="relu")
    same = online.generalisation_error(
        scale @ Q @ scale, scale @ R, T, v / np.diag(scale), A, activation="relu"
    )
    np.testing.assert_allclose(same, error, rtol=1e-13)
    silent = online.generalisation_error(0 * Q, 0 * R, T, v, A, activation="relu")
    assert np.isfinite(silent)


@pytest.mark.parametrize("feedback", [None, [0.7, -1.2]])
@pytest.mark.parametrize("name", ["erf", "linear"])
def test_a_batch_equals_one_run_at_a_time(feedback, name):
    rng = np.random.default_rng(3)
    start = random_start(rng, batch=(2, 3))
    options = {"feedback": feedback, "lr": 0.3, "times": [0.0, 0.5, 5.0], "activation": name}
    batch = online.online_dynamics(**start, **options)
    assert batch.Q.shape == (2, 3, 3, 2, 2)
    assert batch.error.shape == (2, 3, 3)
    for i in np.ndindex(2, 3):
        one = online.online_dynamics(**{k: x[i] for k, x in start.items()}, **options)
        for field in ("Q", "R", "v", "error", "alignment"):
            np.testing.assert_allclose(
                getattr(one, field), getattr(batch, field)[i], rtol=1e-4, atol=1e-6
            )


def test_dynamics_do_not_depend_on_the_order_or_the_signs_of_hidden_units():
    start, F = random_start(np.random.default_rng(1)), np.array([0.7, -1.2])
    options = {"lr": 0.3, "times": [1.0, 10.0]}
    path = online.online_dynamics(**start, feedback=F, **options)
    for P in (np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([-1.0, 1.0])):
        moved = {**start, "Q0": P @ start["Q0"] @ P.T, "R0": P @ start["R0"], "v0": P @ start["v0"]}
        other = online.online_dynamics(**moved, feedback=P @ F, **options)
        np.testing.assert_allclose(other.error, path.error, rtol=1e-5)
        np.testing.assert_allclose(other.v, path.v @ P.T, rtol=1e-5)


@pytest.mark.parametrize("feedback", [None, [1.0, 1.0]])
def test_the_teacher_itself_is_a_fixed_point(feedback):
    T = random_overlaps(np.random.default_rng(0))[2]
    start = {"Q0": T, "R0": T, "T": T, "v0": [1.0, -0.5], "A": [1.0, -0.5]}
    path = online.online_dynamics(**start, feedback=feedback, lr=0.2, times=[20.0])
    np.testing.assert_allclose(path.Q[0], T, atol=1e-10)
    assert abs(path.error[0]) < 1e-12


def test_bp_moves_like_dfa_whose_feedback_is_v():
    start, dt = random_start(np.random.default_rng(2)), 1e-4
    bp = online.online_dynamics(**start, lr=0.5, times=[dt])
    dfa = online.online_dynamics(**start, feedback=start["v0"], lr=0.5, times=[dt])
    for field, x0 in (("Q", "Q0"), ("R", "R0"), ("v", "v0")):
        moved = getattr(bp, field)[0] - start[x0]
        assert np.abs(moved).max() > 1e-6
        np.testing.assert_allclose(getattr(dfa, field)[0] - start[x0], moved, rtol=2e-3, atol=1e-8)


def test_linear_network_from_zero_stays_parallel_to_its_feedback():
    T = random_overlaps(np.random.default_rng(0), 3, 2)[2]
    path = online.online_dynamics(
        np.zeros((3, 3)), np.zeros((3, 2)), T, np.zeros(3), [1.0, 0.4],
        feedback=[1.0, -0.3, 0.6], lr=0.1, times=[0.0, 1.0, 10.0, 100.0], activation="linear",
    )  # fmt: skip
    assert np.isnan(path.alignment[0])
    np.testing.assert_allclose(path.alignment[1:], 1, atol=1e-9)
    assert path.error[-1] < 1e-3 * path.error[0]


def test_early_time_expansion_is_approached():
    T = random_overlaps(np.random.default_rng(5), M=2)[2]
    A, F, lr, times = [1.0, 0.6], [1.3, -0.4, 0.8], 0.2, np.array([1e-3, 1e-2, 1e-1])
    path = online.online_dynamics(
        np.zeros((3, 3)), np.zeros((3, 2)), T, np.zeros(3), A,
        feedback=F, lr=lr, times=times, rtol=1e-9, atol=1e-14,
    )  # fmt: skip
    R, v = online.early_time(T, A, F, lr=lr, t=times)
    for got, want in ((path.R, R), (path.v, v)):
        off = np.abs(got / want - 1).reshape(3, -1).max(1)
        assert off[0] < 1e-3
        assert (np.diff(off) > 0).all()
        assert off[2] < 0.1


def test_early_time_works_over_a_batch():
    R, v = online.early_time(np.eye(2), [1.0, 1.0], np.ones((5, 3)), lr=0.1, t=[1.0, 2.0])
    assert R.shape == (5, 2, 3, 2)
    assert v.shape == (5, 2, 3)


@pytest.mark.parametrize(
    ("rule", "name", "noise"),
    [("BP", "erf", 0.0), ("DFA", "erf", 0.0), ("DFA", "erf", 0.3), ("BP", "linear", 0.2)],
)
def test_ode_describes_the_simulation(rule, name, noise):
    start = initial_conditions([0, 1], 500, 2, 2, init_sd=0.5, teacher_output=[1.0, -0.7])
    at = np.unique(np.geomspace(50, 15_000, 25).astype(int))
    sgd = train_online(
        start, rule=rule, lr=0.2, steps=15_000, generator=stream(0, "inputs", rule), probe_at=at,
        activation=name, noise=noise,
    )  # fmt: skip
    ode = online.online_dynamics(
        **start.order_parameters(), feedback=start.F.numpy() if rule == "DFA" else None,
        lr=0.2, noise=noise, times=sgd.t, activation=name,
    )  # fmt: skip
    assert np.median(np.abs(sgd.error / ode.error - 1)) < 0.03
    assert np.abs(sgd.v - ode.v).max() < 0.1
    assert np.abs(sgd.R - ode.R).max() < 0.1


def test_divergence_names_run_and_time():
    start = random_start(np.random.default_rng(0), batch=(3,))
    options = {"feedback": [1.0, 1.0], "lr": 8.0, "activation": "linear", "times": [2.0]}
    with pytest.raises(FloatingPointError, match=r"run 1 diverges: .* at t = .* \(lr = 8\.0\)"):
        online.online_dynamics(**start, **options, noise=[0.0, 1e5, 0.0])
    start["v0"][2, 0] = np.inf
    with pytest.raises(FloatingPointError, match=r"run 2 .* at t = 0 "):
        online.online_dynamics(**start, **options)


def test_a_failing_solver_names_run_and_time():
    start = random_start(np.random.default_rng(0), batch=(2,))
    start["v0"][1] = 0  # no tolerance is left for a zero
    with pytest.raises(FloatingPointError, match="run 1: the solver fails after t = 0"):
        online.online_dynamics(**start, lr=0.1, times=[1.0], atol=0.0)


def test_learning_probability():
    assert [online.learning_probability(2, K) for K in (1, 2, 3, 4)] == [0, 0.25, 0.5, 0.6875]
    assert round(online.learning_probability(2, 8), 3) == 0.965
    assert online.learning_probability(0, 5) == 1
    with pytest.raises(ValueError, match="got M=-1"):
        online.learning_probability(-1, 2)


def test_equivalent_readouts_all_give_zero_error_and_count_right():
    assert len(online.equivalent_readouts([1.0, 2.0])) == 8
    assert len(online.equivalent_readouts([1.0, 1.0, 1.0])) == 8
    T, A = random_overlaps(np.random.default_rng(0))[2], np.array([0.6, -1.4])
    for v in online.equivalent_readouts(A):
        order = [0, 1] if abs(v[0]) == 0.6 else [1, 0]
        S = np.diag(np.sign(v) * np.sign(A[order]))
        Q, R = S @ T[order][:, order] @ S, S @ T[order]
        assert abs(online.generalisation_error(Q, R, T, v, A)) < 1e-14


def test_passage_time_interpolates_and_is_nan_where_the_level_is_not_reached():
    t = np.array([1.0, 10.0, 100.0])
    curves = np.array([1 / t, 1 / t**2, np.ones(3), 1e-9 / t])
    got = online.passage_time(t, curves, 1e-1)
    np.testing.assert_allclose(got, [10, np.sqrt(10), np.nan, 1])


def test_alignment_is_signed_and_nan_for_zero():
    assert online.alignment([1.0, 0.0], [-2.0, 0.0]) == -1
    assert np.isnan(online.alignment([[0.0, 0.0]], [1.0, 1.0])).all()


def test_bad_arguments_are_named():
    start = random_start(np.random.default_rng(0))
    with pytest.raises(ValueError, match="'relu'"):
        online.online_dynamics(**start, lr=0.1, times=[1.0], activation="relu")
    with pytest.raises(ValueError, match="times must increase"):
        online.online_dynamics(**start, lr=0.1, times=[1.0, 1.0])
    with pytest.raises(
        ValueError, match=r"feedback must have shape \(\.\.\., \(2,\)\), got \(3,\)"
    ):
        online.online_dynamics(**start, feedback=np.ones(3), lr=0.1, times=[1.0])
    with pytest.raises(ValueError, match="'tanh'"):
        online.I2(np.eye(2), activation="tanh")
    for f in (online.I3, online.I4, online.J2):
        with pytest.raises(ValueError, match="'relu'"):
            f(np.eye(2), activation="relu")
    with pytest.raises(ValueError, match="needs Q"):
        online.joint_covariance(np.eye(3), np.ones((2, 2)), np.eye(2))


@pytest.mark.parametrize("K", [2, 3])
def test_gradient_alignment_is_that_of_a_network(K: int) -> None:
    g = torch.Generator().manual_seed(4)
    w, v, F = (torch.randn(K, n, generator=g, dtype=torch.float64) for n in (6, 1, 1))
    net = mlp([6, K, 1], activation="erf", bias=False, dtype=torch.float64, generator=g)
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(w / 6**0.5)
        net.get_parameter("2.weight").copy_(v.mT)
    x = torch.randn(200_000, 6, generator=g, dtype=torch.float64)
    target = net(x).detach() - 1  # the size of the error does not matter
    seen = gradient_alignment_per_sample(DFA(net, feedback={"0": F}), x, target, loss="mse")
    found = online.gradient_alignment(w @ w.mT / 6, v[:, 0], F[:, 0])
    assert float(found) == pytest.approx(seen.total, abs=3e-3)


def test_the_most_aligned_solution_has_the_signs_and_the_order_of_its_feedback() -> None:
    A, F = [0.6, 1.4, 1.0], np.array([-0.5, 0.3, 2.0])
    found = online.equivalent_alignment(np.eye(3), A, F)
    assert found.shape == (48,)
    assert online.equivalent_readouts(A)[found.argmax()].tolist() == [-1.0, 0.6, 1.4]
    np.testing.assert_allclose(np.sort(found), np.sort(-found))  # the opposite of every solution
    with pytest.raises(ValueError, match="differ in size"):
        online.equivalent_alignment(np.eye(2), [1, -1], [1, 2])
