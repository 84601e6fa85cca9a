r"""Deep linear networks under direct feedback alignment: alignment matrices and their theory.

A network $W_L \cdots W_1 x$ that starts at zero keeps, under any data and learning rates, the form

$$ W_1 = F_1 A_1, \qquad W_l = F_l A_l F_{l-1}^T, \qquad W_L = A_L F_{L-1}^T $$

(weak alignment; Refinetti et al. 2021, https://arxiv.org/abs/2011.12428), so that all it learns is
in the alignment matrices $A_l$, of the size of the output. The closed forms of this module are
derived and hold for whitened inputs, targets
$y = S x$ with singular values $s$ of $S$, gradient flow on the squared error
$\tfrac12 |y - \hat y|^2$, and orthonormal feedback, $F_l^T F_l = I$. Networks run in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Generator, Tensor, nn

from ..._checks import choose
from ...losses import Loss, output_error
from ...metrics import cosine
from ...networks import draw, linear_net
from ...rules import DFA
from .._arrays import Array, crossing

__all__ = [
    "RecursionHistory",
    "alignment_matrices",
    "condition_numbers",
    "crossing",
    "final_modes",
    "gradient_alignment",
    "linear_task",
    "mode_dynamics",
    "modes",
    "population_matrices",
    "recursion_step",
    "train_with_recursion",
    "weak_form",
    "worst_alignment",
    "worst_errors",
    "zero_start",
]


# --- closed forms, mode by mode ------------------------------------------------------------------


def _depth(depth: int) -> Array:
    """The exponents 2^(l-1) of layers l = 1 to L."""
    if depth < 2:
        raise ValueError(f"depth must be at least 2 weight layers, got {depth}")
    return np.exp2(np.arange(depth, dtype=np.float64))


def modes(a1: ArrayLike, depth: int) -> Array:
    r"""Strength of every layer's alignment matrix in a mode, given that of the first.

    $$ a_l = \frac{a_1^{2^{l-1}}}{k_l}, \quad k_l = 2^{2^{l-1}-1} = 1, 2, 8, 128, \dots,
       \quad\text{that is}\quad a_l = 2\,(a_1/2)^{2^{l-1}} $$

    at all times, from $\dot a_l = \dot a_1 \prod_{j<l} a_j$. Source: derived.

    Args:
        a1: (...).
        depth: number L of weight layers.

    Returns:
        (..., L), bottom to top.

    Example:
        >>> modes(1.0, 4).tolist()
        [1.0, 0.5, 0.125, 0.0078125]
    """
    return 2 * (np.asarray(a1, dtype=np.float64)[..., None] / 2) ** _depth(depth)


def final_modes(s: ArrayLike, depth: int) -> Array:
    r"""Where the modes end: $\prod_l a_l = s$, so $a_1 = 2\,(s\,2^{-L})^{1/(2^L-1)}$.

    Source: derived.

    Args:
        s: singular values of the target map, (n).
        depth: number L of weight layers.

    Returns:
        (n, L).

    Example:
        >>> bool(abs(final_modes([3.0], 4).prod() - 3) < 1e-12)
        True
    """
    s = np.asarray(s, dtype=np.float64)
    return modes(2 * (s / 2.0**depth) ** (1 / (2.0**depth - 1)), depth)


def mode_dynamics(s: ArrayLike, depth: int, times: ArrayLike) -> Array:
    r"""Every mode of every alignment matrix over time, from zero.

    $$ \dot a_1 = s - 2^L (a_1/2)^{2^L-1}, \qquad a_l = 2\,(a_1/2)^{2^{l-1}} $$

    Source: derived.

    Args:
        s: singular values, (n).
        depth: number L of weight layers.
        times: increasing times >= 0, (n_t).

    Returns:
        (n_t, n, L).

    Raises:
        ValueError: times that do not increase, or fewer than 2 layers.

    Example:
        >>> path = mode_dynamics([1.0, 0.2], 3, [0.0, 50.0])
        >>> bool(np.allclose(path[-1], final_modes([1.0, 0.2], 3), atol=1e-6))
        True
    """
    from scipy.integrate import solve_ivp

    s, t = np.asarray(s, dtype=np.float64), np.atleast_1d(np.asarray(times, dtype=np.float64))
    if t[0] < 0 or (np.diff(t) <= 0).any():
        raise ValueError(f"times must increase strictly from >= 0, got {times!r}")
    found = solve_ivp(
        lambda _, a: s - 2.0**depth * (a / 2) ** (2.0**depth - 1),
        (0.0, max(t[-1], 1e-12)),
        np.zeros_like(s),
        method="LSODA",
        t_eval=t,
        rtol=1e-9,
        atol=1e-12,
    )
    return modes(np.clip(found.y.T, 0.0, None), depth)


def condition_numbers(kappa: ArrayLike, depth: int, *, stage: str = "end") -> Array:
    r"""Condition number of every alignment matrix, for singular values of condition $\kappa$.

    $$ \text{start: } \kappa^{2^{l-1}}, \qquad \text{end: } \kappa^{2^{l-1}/(2^L-1)} $$

    Source: derived; that the conditioning decides is Refinetti et al. (2021).

    Args:
        kappa: largest over smallest singular value of the target map, (...).
        depth: number L of weight layers.
        stage: "start" or "end" of learning.

    Returns:
        (..., L).

    Example:
        >>> condition_numbers(5.0, 4).round(3).tolist()
        [1.113, 1.239, 1.536, 2.359]
    """
    power = _depth(depth)
    if choose("stage", stage, ("start", "end")) == "end":
        power = power / (2.0**depth - 1)
    return np.asarray(kappa, dtype=np.float64)[..., None] ** power


def _factors(s: Array, depth: int, times: ArrayLike) -> tuple[Array, Array]:
    """By mode: P_l, which turns DFA's signal into back-propagation's, and the error of the map."""
    a = mode_dynamics(s, depth, times)  # (n_t, n, L)
    above = np.asarray(np.cumprod(a[..., ::-1], -1)[..., ::-1], dtype=np.float64)
    return above[..., 1:], np.asarray(s - above[..., 0])


def gradient_alignment(s: ArrayLike, depth: int, times: ArrayLike, *, draws: int = 4096) -> Array:
    r"""Cosine between the signals of DFA and of back-propagation, mean over Gaussian inputs.

    $$ E_z \cos(e, P_l e), \qquad e_i = \Big(s_i - \prod_j a_j\Big) z_i, \quad
       P_l = \mathrm{diag} \prod_{j>l} a_j, \quad z \sim N(0, I) $$

    It is 1 if the matrices above are proportional to the identity, and also if the error has one
    mode left. The average is taken over a fixed Sobol sequence. Source: derived.

    Args:
        s: singular values, (n).
        depth: number L of weight layers.
        times: increasing times > 0, (n_t).
        draws: points of the sequence, a power of two.

    Returns:
        (n_t, L - 1), layers 1 to L - 1.

    Example:
        >>> bool(np.allclose(gradient_alignment([0.6, 0.6], 3, [0.1, 1.0]), 1))
        True
    """
    from scipy.stats import norm, qmc

    s = np.asarray(s, dtype=np.float64)
    P, miss = _factors(s, depth, times)
    points = qmc.Sobol(len(s), scramble=False).random_base2(int(np.log2(draws)))
    power = norm.ppf(points + 0.5 / draws) ** 2  # (draws, n)
    e = (miss / np.abs(miss).max(-1, keepdims=True)) ** 2  # (n_t, n)
    P = P / P.max(1, keepdims=True)
    true, both = (np.einsum("mn,tn,tnl->tml", power, e, P**k) for k in (2, 1))
    return (both / np.sqrt(true * np.einsum("mn,tn->tm", power, e)[..., None])).mean(1)


def worst_alignment(s: ArrayLike, depth: int, times: ArrayLike) -> Array:
    r"""Smallest cosine between the signals of DFA and of back-propagation over all errors.

    $$ \min_e \cos(e, P_l e) = \frac{2\sqrt{\kappa_l}}{1 + \kappa_l}, \qquad
       \kappa_l = \operatorname{cond}(P_l) = \prod_{j>l} \operatorname{cond}(A_j) $$

    so that conditioning alone decides how well gradients align for *every* error. The product of
    condition numbers holds because all matrices share their modes. Source: Kantorovich's inequality
    for the cosine; its use here is derived.

    Args:
        s: singular values, (n).
        depth: number L of weight layers.
        times: increasing times > 0, (n_t).

    Returns:
        (n_t, L - 1), layers 1 to L - 1.

    Example:
        >>> bool(np.allclose(worst_alignment([0.6, 0.6], 3, [0.1, 1.0]), 1))
        True
    """
    P, _ = _factors(np.asarray(s, dtype=np.float64), depth, times)
    root = np.sqrt(P.max(1) / P.min(1))
    return np.asarray(2 * root / (1 + root**2))


# --- the matrices of a network -------------------------------------------------------------------


def weak_form(matrices: Sequence[Tensor], feedback: Sequence[Tensor]) -> list[Tensor]:
    """Weights that alignment matrices stand for: F_1 A_1, F_l A_l F_{l-1}^T, A_L F_{L-1}^T.

    Args:
        matrices: A_1 (n_L, n_0) and A_2 to A_L (n_L, n_L), bottom to top.
        feedback: F_1 to F_{L-1}, (n_l, n_L).

    Returns:
        W_1 to W_L.

    Source: the weak alignment of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428

    Example:
        >>> A, F = [torch.ones(2, 6), torch.eye(2)], [torch.ones(9, 2)]
        >>> [tuple(w.shape) for w in weak_form(A, F)]
        [(9, 6), (2, 9)]
    """
    weights = list(matrices)
    for i, f in enumerate(feedback):
        weights[i] = f @ weights[i]
        weights[i + 1] = weights[i + 1] @ f.mT
    return weights


def alignment_matrices(weights: Sequence[Tensor], feedback: Sequence[Tensor]) -> list[Tensor]:
    r"""Least-squares alignment matrices of any weights, $A_l = F_l^+ W_l (F_{l-1}^T)^+$.

    They reproduce the weights exactly if and only if these are weakly aligned.

    Args:
        weights: W_1 to W_L, bottom to top.
        feedback: F_1 to F_{L-1}, (n_l, n_L).

    Returns:
        A_1 (n_L, n_0) and A_2 to A_L (n_L, n_L).

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> A, F = [torch.randn(2, 6, generator=g), torch.eye(2)], [torch.randn(9, 2, generator=g)]
        >>> back = alignment_matrices(weak_form(A, F), F)
        >>> [bool(torch.allclose(a, b, atol=1e-5)) for a, b in zip(back, A)]
        [True, True]
    """
    matrices = [w.detach() for w in weights]
    for i, f in enumerate(feedback):
        inverse = torch.linalg.pinv(f)
        matrices[i] = inverse @ matrices[i]
        matrices[i + 1] = matrices[i + 1] @ inverse.mT
    return matrices


def recursion_step(
    matrices: Sequence[Tensor],
    feedback: Sequence[Tensor],
    x: Tensor,
    target: Tensor,
    lr: float,
    *,
    loss: Loss = "mse",
    reduction: str = "mean",
) -> list[Tensor]:
    r"""One update of the alignment matrices, with no network in sight.

    $$ c_0 = x, \qquad c_l = A_l G_{l-1} c_{l-1}, \qquad \hat y = c_L, \qquad
       A_l \leftarrow A_l - \eta\, e\, c_{l-1}^T $$

    with $G_0 = I$, $G_l = F_l^T F_l$ and $e$ the derivative of the loss at the output.
    Source: derived; equivalent to direct feedback alignment of the whole network from zero.

    Args:
        matrices: A_1 to A_L.
        feedback: F_1 to F_{L-1}, (n_l, n_L).
        x: (batch, n_0).
        target, loss, reduction: as in :func:`fabook.losses.output_error`.
        lr: learning rate.

    Returns:
        The new A_1 to A_L.

    Example:
        >>> A, F = [torch.zeros(2, 6), torch.zeros(2, 2)], [torch.eye(9, 2)]
        >>> x, y = torch.ones(1, 6), torch.ones(1, 2)
        >>> A = recursion_step(A, F, x, y, 0.1)
        >>> [bool(a.any()) for a in A]  # A_2 sees what A_1 has sent it, nothing so far
        [True, False]
        >>> [bool(a.any()) for a in recursion_step(A, F, x, y, 0.1)]
        [True, True]
    """
    grams = [f.mT @ f for f in feedback]
    c, met = x, [x]  # rows are samples
    for i, a in enumerate(matrices):
        c = (c @ grams[i - 1] if i else c) @ a.mT
        met.append(c)
    error = output_error(met.pop(), target, loss, reduction)[1]
    return [a - lr * error.mT @ c for a, c in zip(matrices, met, strict=True)]


def population_matrices(S: Tensor, grams: Tensor, *, dt: float, probe_at: Iterable[int]) -> Tensor:
    r"""Alignment matrices of many networks on whitened inputs, by the population's recursion alone.

    $$ A_l \leftarrow A_l + dt\,(S - M_L)\, M_{l-1}^T, \qquad M_0 = I, \quad
       M_l = A_l G_{l-1} M_{l-1} $$

    with $G_0 = I$: `recursion_step` on half the squared error, averaged over inputs of covariance
    $I$, in the input directions that $S$ sees. A step of three hundred networks costs a few small
    products. Source: derived.

    Args:
        S: target map in those directions, (n, n).
        grams: $G_1$ to $G_{L-1}$ of R networks, (R, L - 1, n, n).
        dt: step of the gradient flow.
        probe_at: numbers of steps after which to look, increasing.

    Returns:
        A_1 to A_L at the P probes, (P, R, L, n, n).

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> grams = torch.eye(2).expand(1, 2, 2, 2)  # orthonormal feedback, three layers
        >>> seen = population_matrices(torch.diag(torch.tensor([1.0, 0.5])), grams, dt=0.01,
        ...                            probe_at=[10, 3000])
        >>> round(float(torch.linalg.cond(seen[-1, 0, 2])), 1)  # 2^(4/7) for small steps
        1.5
    """
    n = S.shape[-1]
    if S.shape != (n, n) or grams.ndim != 4 or grams.shape[2:] != (n, n):
        raise ValueError(
            "S and grams must be (n, n) and (R, L - 1, n, n), got "
            f"{tuple(S.shape)} and {tuple(grams.shape)}"
        )
    due = list(probe_at)
    eye = torch.eye(n, dtype=S.dtype, device=S.device).expand(len(grams), n, n)
    steps = [eye, *grams.unbind(1)]  # G_0 to G_{L-1}
    now = [torch.zeros_like(eye) for _ in steps]
    seen = [torch.stack(now, 1)] * (0 in due)
    for step in range(max(due)):
        maps = [eye]
        for a, g in zip(now, steps, strict=True):
            maps.append(a @ (g @ maps[-1]))
        miss = dt * (S - maps.pop())
        now = [a + miss @ m.mT for a, m in zip(now, maps, strict=True)]
        if step + 1 in due:
            seen.append(torch.stack(now, 1))
    return torch.stack(seen)


def linear_task(
    s: ArrayLike, n_inputs: int, *, generator: Generator, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Exactly whitened inputs and targets $y = S x$, $S = U\,\mathrm{diag}(s)\,V^T$ at random.

    The inputs are $\sqrt{n}$ times an orthogonal matrix, so that one full batch is the population.

    Args:
        s: singular values, one an output.
        n_inputs: number n_0 of inputs, and of samples; at least the number of outputs.
        generator: CPU generator.

    Returns:
        x (n_0, n_0), y (n_0, n_L) and S (n_L, n_0).

    Raises:
        ValueError: fewer inputs than outputs.

    Example:
        >>> x, y, S = linear_task([1.0, 0.5], 6, generator=torch.Generator().manual_seed(0))
        >>> torch.linalg.svdvals(S).numpy().round(9).tolist()
        [1.0, 0.5]
        >>> bool(torch.allclose(x.mT @ x / 6, torch.eye(6, dtype=x.dtype)))  # white
        True
    """
    values = torch.as_tensor(np.asarray(s, dtype=np.float64)).to(dtype)
    n = len(values)
    if n_inputs < n:
        raise ValueError(f"n_inputs must be at least the {n} outputs, got {n_inputs}")
    u, v, q = (
        draw(shape, "orthogonal", generator=generator, dtype=dtype)
        for shape in ((n, n), (n_inputs, n), (n_inputs, n_inputs))
    )
    S = u * values @ v.mT
    x = n_inputs**0.5 * q
    return x, x @ S.mT, S


def zero_start(
    sizes: Sequence[int], *, feedback: str, generator: Generator, dtype: torch.dtype = torch.float64
) -> DFA:
    r"""A deep linear network with zero weights, under DFA with feedback of unit columns.

    Args:
        sizes: units from input to output.
        feedback: "orthogonal", $F^T F = I$, or "normal", entries $N(0, 1/n_l)$, $E[F^T F] = I$.
        generator: CPU generator of the feedback.

    Example:
        >>> rule = zero_start([6, 9, 9, 2], feedback="orthogonal",
        ...                   generator=torch.Generator().manual_seed(0))
        >>> F = rule.feedback["0"]
        >>> bool(torch.allclose(F.T @ F, torch.eye(2, dtype=F.dtype)))
        True
    """
    choose("feedback", feedback, ("orthogonal", "normal"))
    net, n = linear_net(sizes, dtype=dtype), sizes[-1]

    def one(width: int) -> Tensor:
        if feedback == "orthogonal":
            return draw((width, n), feedback, generator=generator, dtype=dtype)
        return draw((n, width), feedback, generator=generator, dtype=dtype).mT

    return DFA(net, feedback={str(i): one(width) for i, width in enumerate(sizes[1:-1])})


def worst_errors(rule: DFA) -> Tensor:
    """For every hidden layer, the output error for which DFA and back-propagation agree least.

    Exact where the feedback is orthonormal and the alignment matrices are symmetric, as they are
    for whitened inputs: `worst_alignment` is the cosine at this error.

    Args:
        rule: DFA on a linear network without biases.

    Returns:
        (L - 1, n_L), bottom to top; unit vectors.

    Raises:
        ValueError: another rule or network.

    Example:
        >>> rule = DFA(linear_net([3, 2, 2]), feedback={"0": torch.eye(2)})
        >>> with torch.no_grad():
        ...     kept = rule.net[1].weight.copy_(torch.diag(torch.tensor([4.0, 1.0])))
        >>> e = worst_errors(rule)[0]
        >>> round(float(cosine(e, rule.net[1].weight.detach() @ e)), 6)  # 2 sqrt(4) / (1 + 4)
        0.8
    """
    plain = all(isinstance(m, nn.Linear) and m.bias is None for _, m in rule.stack.modules)
    if not (plain and rule.direct and rule.linear):
        raise ValueError("this needs DFA on nn.Linear layers without biases and nothing else")
    found = []
    down = None  # W_{l+1}^T ... W_L^T
    weights = [p.detach() for p in rule.net.parameters()]
    for w, F in zip(weights[:0:-1], list(rule.feedback.values())[::-1], strict=True):
        down = w.mT if down is None else w.mT @ down
        P = F.mT @ down
        size, modes = torch.linalg.eigh((P + P.mT) / 2)
        e = size[-1].clamp(min=0).sqrt() * modes[:, 0] + size[0].clamp(min=0).sqrt() * modes[:, -1]
        found.append(e / e.norm())
    return torch.stack(found[::-1])


@dataclass(frozen=True)
class RecursionHistory:
    """What `train_with_recursion` saw at its P probes.

    `loss` is that of the last batch, before its update (NaN at step 0); `deviation` the largest
    entry of any layer's weights minus those that the recursion predicts; `matrices` the recursion's
    A_1 (P, n_L, n_0) and A_2 to A_L (P, n_L, n_L); `extra` what the probe functions returned.

    Source: derived, for the weak alignment of Refinetti et al. (2021),
    https://arxiv.org/abs/2011.12428

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y, _ = linear_task([1.0, 0.5], 6, generator=g)
        >>> rule = zero_start([6, 9, 9, 2], feedback="orthogonal", generator=g)
        >>> path = train_with_recursion(rule, [(x, y)] * 200, lr=0.1, probe_at=[50, 200])
        >>> path.modes.shape, path.condition.shape, path.norm.shape
        ((2, 3, 2), (2, 3), (2, 3))
        >>> path.strength[-1].round(2).tolist()  # A_2 and A_3 are nearly the identity
        [0.99, 0.98]
    """

    steps: NDArray[np.int64]  # (P)
    loss: Array  # (P)
    deviation: Array  # (P)
    matrices: list[Tensor]
    extra: dict[str, Array]

    @property
    def modes(self) -> Array:
        """Singular values of every A_l, largest first, (P, L, n_L)."""
        values = [torch.linalg.svdvals(a) for a in self.matrices]
        return torch.stack(values, 1).cpu().numpy()

    @property
    def condition(self) -> Array:
        """Condition number of every A_l, (P, L); NaN where one is zero."""
        modes = self.modes
        smallest = np.where(modes[..., -1] > 0, modes[..., -1], np.nan)
        return modes[..., 0] / smallest

    @property
    def norm(self) -> Array:
        """Frobenius norm of every A_l, (P, L)."""
        return torch.stack([a.flatten(1).norm(dim=1) for a in self.matrices], 1).cpu().numpy()

    @property
    def strength(self) -> Array:
        """Cosine between A_l and the identity for l = 2 to L, (P, L - 1); 1 is strong alignment."""
        found = []
        for a in self.matrices[1:]:
            eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
            found.append(cosine(a.flatten(1), eye.flatten(1), dim=1))
        return torch.stack(found, 1).cpu().numpy()


def train_with_recursion(
    rule: DFA,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    lr: float | Callable[[int], float],
    probe_at: Iterable[int],
    loss: Loss = "mse",
    reduction: str = "mean",
    probe: Mapping[str, Callable[[], ArrayLike]] | None = None,
) -> RecursionHistory:
    """Train a network from zero and, beside it, its alignment matrices by the recursion alone.

    The two share the batches and nothing else, so their agreement tests weak alignment.

    Args:
        rule: DFA on a linear network without biases whose weights are zero.
        batches: (x, target) of one update each.
        lr: learning rate, or a function of the number of updates done.
        probe_at: numbers of updates after which to measure.
        loss, reduction: as in :func:`fabook.losses.output_error`.
        probe: functions called at the probes, each returning a number or a vector.

    Returns:
        `RecursionHistory`.

    Raises:
        ValueError: weights that are not zero.
        FloatingPointError: the loss is not finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y, _ = linear_task([1.0, 0.5], 6, generator=g)
        >>> rule = zero_start([6, 9, 9, 2], feedback="orthogonal", generator=g)
        >>> path = train_with_recursion(rule, [(x, y)] * 50, lr=0.1, probe_at=[50])
        >>> bool(path.deviation[0] < 1e-12)
        True
    """
    weights = [p.detach() for p in rule.net.parameters()]
    feedback = list(rule.feedback.values())
    if any(bool(w.any()) for w in weights):
        raise ValueError(
            "weak alignment is about networks that start at zero; these weights do not"
        )
    now = [torch.zeros_like(a) for a in alignment_matrices(weights, feedback)]
    due, probes = set(probe_at), probe or {}
    seen: list[tuple[int, float, float]] = []
    kept: list[list[Tensor]] = []
    extra: dict[str, list[Array]] = {name: [] for name in probes}

    def look(step: int, value: float) -> None:
        if step and not np.isfinite(value):
            raise FloatingPointError(f"the network diverged: its loss is {value} at step {step}")
        pairs = zip(weights, weak_form(now, feedback), strict=True)
        seen.append((step, value, max(float((w - v).abs().max()) for w, v in pairs)))
        kept.append(now)
        for name, function in probes.items():
            extra[name].append(np.asarray(function(), dtype=np.float64))

    if 0 in due:
        look(0, float("nan"))
    for step, (x, target) in enumerate(batches):
        rate = lr(step) if callable(lr) else lr
        now = recursion_step(now, feedback, x, target, rate, loss=loss, reduction=reduction)
        value = rule.sgd_step(x, target, rate, loss=loss, reduction=reduction)
        if step + 1 in due:
            look(step + 1, float(value))
    steps, losses, deviations = zip(*seen) if seen else ((), (), ())
    return RecursionHistory(
        np.asarray(steps, dtype=np.int64),
        np.asarray(losses, dtype=np.float64),
        np.asarray(deviations, dtype=np.float64),
        [torch.stack(layer) for layer in zip(*kept)],
        {name: np.stack(values) for name, values in extra.items() if values},
    )
