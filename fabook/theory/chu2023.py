r"""Stability of feedback alignment's fixed points, for networks and for the solvable chain.

With residuals $r = f - y$ stacked over samples and outputs, the Jacobian $J$ of the
outputs and $J_{FA}$, the same with the feedback in the place of the weights that carry the
error down, a rule moves the parameters by $\dot\theta = -J_{FA}^T r$. So near any zero of
the loss

$$ \dot r = -M r, \qquad M = J J_{FA}^T, \qquad
          \dot{\mathcal L} = -r^T M r = -(J^T r) \cdot (J_{FA}^T r), $$

with $\mathcal L = |r|^2/2$: M decides stability, and its quadratic form is the gradient
alignment without its norms. Derived; for one hidden layer $M = G + H$, the kernels of Song,
Xu & Lafferty (2021). The statement that alignment is a criterion of stability is the abstract's of
Chu & Bacho (2024), https://arxiv.org/abs/2306.02325.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ..base import Rule
from ..losses import Loss
from ..metrics import cosine, cosine_of_all
from ..networks import ACTIVATIONS, Scale, draw, linear_net
from ..rules import BP
from ..training import History, Probe, train
from ._arrays import Array

_ELEMENTWISE: tuple[type, ...] = (Scale, *(type(make()) for make in ACTIVATIONS.values()))


def _stack(rule: Rule) -> list[tuple[str, nn.Module]]:
    """The network's modules in order; refuses what couples samples or units."""
    if not rule.linear:
        raise ValueError(f"{type(rule).__name__} sends no linear image of the output error")
    for name, module in rule.stack.modules:
        if not isinstance(module, (nn.Linear, *_ELEMENTWISE)):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}): stability matrices are for stacks of "
                "nn.Linear and elementwise activations"
            )
    return rule.stack.modules


def _carrier(rule: Rule) -> Callable[..., Tensor]:
    """Output of one sample whose reverse-mode derivative is the rule's.

    Each read of h that would send an error down is cut, and a term of value zero with the rule's
    own derivative takes its place: $W \\bar h + B (h - \\bar h)$, the bar a constant.
    """
    stack, top = _stack(rule), rule.layers[-1]
    below = dict(zip(rule.layers[1:], rule.layers[:-1], strict=True))
    feedback = {name: rule.matrix(name) for name in rule.receivers}

    def output(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        h, sent = x, None
        for name, module in stack:
            if not isinstance(module, nn.Linear):
                h = module(h)
                continue
            own = {
                k: parameters[f"{name}.{k}" if name else k] for k, _ in module.named_parameters()
            }
            still = h.detach()
            moving, h = h - still, functional_call(module, own, (still,))
            if name not in below:
                continue
            matrix = feedback[below[name]]
            if not rule.direct:
                h = h + moving @ matrix.t()
            else:  # F_l e jumps to the top, where the error is formed
                jump = moving @ matrix
                sent = jump if sent is None else sent + jump
            if name == top and sent is not None:
                h = h + sent
        return h

    return output


def jacobian(rule: Rule, x: Tensor) -> Tensor:
    r"""Jacobian $J_{FA}$ of a rule: row (sample, output) is its update for that unit error.

    For :class:`fabook.rules.BP` this is the true Jacobian J. Parameters are in the order of
    ``net.parameters()``, frozen ones included.

    Args:
        rule: one that declares itself ``linear`` (all but DRTP), on a stack of ``nn.Linear`` and
            elementwise activations.
        x: (N, d) inputs.

    Returns:
        (N C, P), samples first.

    Raises:
        ValueError: for other rules or modules; it names them.

    Example:
        >>> from fabook import BP, mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> jacobian(BP(mlp([4, 3, 2], generator=g)), torch.ones(5, 4)).shape
        torch.Size([10, 23])
    """
    output = _carrier(rule)
    parameters = {k: p.detach() for k, p in rule.net.named_parameters()}
    parts = vmap(jacrev(output), in_dims=(None, 0))(parameters, x)
    rows = [part.flatten(0, 1).flatten(1) for part in parts.values()]
    return torch.cat(rows, 1).detach()


def stability_matrix(rule: Rule, x: Tensor) -> Tensor:
    r"""$M = J J_{FA}^T$, the linear flow of the residuals near a zero of the loss (derived).

    Args:
        rule, x: as in :func:`jacobian`.

    Returns:
        (N C, N C).

    Raises:
        ValueError: as :func:`jacobian`.

    Example:
        >>> from fabook import FA, mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], generator=g)
        >>> own = FA(net, feedback={"0": net[2].weight})  # B = W is backpropagation
        >>> bool(torch.linalg.eigvalsh(stability_matrix(own, torch.randn(2, 4))).min() >= -1e-6)
        True
    """
    return jacobian(BP(rule.net), x) @ jacobian(rule, x).t()


def layer_matrices(rule: Rule, x: Tensor) -> dict[str, Tensor]:
    r"""What each layer adds to the stability matrix, $M = \sum_l J_l J_{FA,l}^T$ (derived).

    The read-out's part is the kernel $G$ of Song, Xu & Lafferty (2021) for any depth, and the
    hidden layers' together are $H$: the errors of the squared loss move by $-(G + H)\, e$.

    Args:
        rule, x: as in :func:`jacobian`.

    Returns:
        (N C, N C) by layer name, bottom to top.

    Raises:
        ValueError: as :func:`jacobian`.

    Example:
        >>> from fabook import FA, mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> rule, x = FA(mlp([4, 3, 2], generator=g), generator=g), torch.randn(2, 4)
        >>> parts = layer_matrices(rule, x)
        >>> bool(torch.allclose(sum(parts.values()), stability_matrix(rule, x), atol=1e-5))
        True
    """
    true, ours = jacobian(BP(rule.net), x), jacobian(rule, x)
    found: dict[str, Tensor] = {}
    done = 0
    for name, parameter in rule.net.named_parameters():
        own = slice(done, done + parameter.numel())
        part, layer = true[:, own] @ ours[:, own].t(), name.rpartition(".")[0]
        found[layer] = found[layer] + part if layer in found else part
        done = own.stop
    return found


def eigenvalues(matrix: Tensor) -> NDArray[np.complex128]:
    """Eigenvalues by rising real part; those of negative real part are unstable directions."""
    found = torch.linalg.eigvals(matrix.double()).cpu().numpy()
    return found[np.lexsort((found.imag, found.real))]


def unstable_fraction(values: ArrayLike, *, tolerance: float = 1e-9) -> float:
    """Share of eigenvalues whose real part lies below ``-tolerance`` times the largest modulus.

    Example:
        >>> unstable_fraction([-1.0, 1e-12, 2.0, 3.0])
        0.25
    """
    z = np.asarray(values)
    return float(np.mean(z.real < -tolerance * np.abs(z).max()))


def growing_fraction(values: ArrayLike, step: float, updates: int) -> float:
    r"""Share of directions in which an error grows by a factor of e within so many updates.

    An eigenvalue counts if $\ln|1 - s\lambda| > 1/$ ``updates`` (derived). Without a
    horizon, directions count as unstable that no run would ever see grow.

    Args:
        values: eigenvalues of M.
        step: s in $r \leftarrow (I - sM) r$; $s = \eta/N$ for :func:`train_full_batch`.
        updates: the horizon, above zero.

    Raises:
        ValueError: for a horizon that is not positive.

    Example:
        >>> growing_fraction([-1.0, -1e-9, 2.0, 3.0], 0.1, 100_000)
        0.25
    """
    if updates <= 0:
        raise ValueError(f"updates must be positive; got {updates}")
    growth = np.log(np.abs(1 - step * np.asarray(values)))
    return float(np.mean(growth > 1 / updates))


def linear_loss(matrix: Tensor, residual: Tensor, step: float, steps: ArrayLike) -> Array:
    r"""$|(I - sM)^t r_0|^2/2$: the loss that the fixed point's M predicts (derived).

    Args:
        matrix: (n, n) M.
        residual: (n,) $r_0$.
        step: s, see :func:`growing_fraction`.
        steps: numbers of updates, rising.

    Returns:
        One loss for each number of updates; divide by N for that of :func:`train_full_batch`.

    Raises:
        ValueError: if ``steps`` do not rise from zero or above.

    Example:
        >>> linear_loss(torch.eye(2), torch.ones(2), 0.5, [0, 1]).tolist()
        [1.0, 0.25]
    """
    at = np.asarray(steps, dtype=int)
    if at.ndim != 1 or (np.diff(at, prepend=0) < 0).any():
        raise ValueError(f"steps must rise from 0 or above; got {at.tolist()}")
    r, done, found = residual.double().flatten(), 0, []
    one_step = torch.eye(len(r), dtype=torch.float64, device=r.device) - step * matrix.double()
    for number in at:
        for _ in range(number - done):
            r = one_step @ r
        done = int(number)
        found.append(float(r.square().sum()) / 2)
    return np.array(found)


def dialled_feedback(
    net: nn.Module, cosine: float, generator: torch.Generator, *, init: str | None = None
) -> dict[str, Tensor]:
    r"""Fixed feedback $B_l = c\,W_l + \sqrt{1-c^2}\,R_l$ of a chosen cosine, for FA.

    R is Gaussian, orthogonal to W and of its norm, so that $\cos(B_l, W_l) = c$ exactly. Drawn as
    the weights were, by ``init``, it gives B their variance instead, and the cosine holds
    approximately: plain feedback alignment at $c = 0$. At 1 the feedback is that of
    backpropagation at the first step, and stays there. Derived.

    Args:
        net: one whose weights are in Linear and Conv2d layers, with the present W.
        cosine: c, in [-1, 1].
        generator: CPU generator of R.
        init: distribution of R, a name of :func:`fabook.networks.draw`.

    Returns:
        Matrices by name of the receiving layer, for ``FA(net, feedback=...)``.

    Raises:
        ValueError: for a cosine out of range, or another layer with weights.

    Example:
        >>> from fabook import mlp
        >>> net = mlp([4, 3, 2], generator=torch.Generator().manual_seed(0))
        >>> b = dialled_feedback(net, 0.5, torch.Generator().manual_seed(0))["0"]
        >>> w = net[2].weight.detach()
        >>> round(float((w * b).sum() / w.norm() / b.norm()), 6)
        0.5
    """
    if not -1 <= cosine <= 1:
        raise ValueError(f"cosine must lie in [-1, 1]; got {cosine}")
    layers = [(n, m) for n, m in net.named_modules() if list(m.parameters(recurse=False))]
    found: dict[str, Tensor] = {}
    for (below, _), (name, layer) in itertools.pairwise(layers):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise ValueError(f"the dial is for Linear and Conv2d layers; {name!r} is {layer}")
        w = layer.weight.detach()
        if init is None:
            r = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w)
            r -= (r * w).sum() / w.square().sum() * w
        else:
            r = draw(w.shape, init, generator=generator, dtype=w.dtype).to(w)
        size = w.norm() / r.norm() if init is None else 1.0
        found[below] = cosine * w + math.sqrt(1 - cosine**2) * r * size
    return found


def train_full_batch(
    rule: Rule,
    x: Tensor,
    y: Tensor,
    *,
    lr: float,
    probe_at: Sequence[int],
    target: float = 0.0,
    probe: Mapping[str, Probe] | None = None,
    label: str = "run",
) -> dict[str, Array]:
    r"""Full-batch training by plain gradient descent until the loss is small enough.

    The loss is $\mathcal L = |r|^2/(2N)$, so that $r \leftarrow (I - sM)r$ with
    $s = \eta/N$ near its zeros.

    Args:
        rule: bound to the network, which it trains.
        x: (N, d) inputs.
        y: (N, C) targets.
        lr: learning rate $\eta$.
        probe_at: rising numbers of updates at which to look; the last one ends the run in any case.
        target: loss below which the run ends, once it has been seen there.
        probe: further quantities to record, as for :func:`fabook.train`.
        label: name of the run in messages.

    Returns:
        Arrays ``steps``, ``loss`` and one for each probe, up to the last look.

    Raises:
        ValueError: if ``probe_at`` is empty or does not rise.
        FloatingPointError: if the run diverges.

    Example:
        >>> from fabook import BP
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> rule, at = BP(chain(1.0, 0.5)), [0, 1000, 2000]
        >>> train_full_batch(rule, one, one, lr=0.1, probe_at=at, target=1e-12)["steps"]
        array([   0, 1000])
    """
    if not probe_at or (np.diff(probe_at, prepend=0) < 0).any():
        raise ValueError(f"numbers of updates must rise from 0 or above; got {list(probe_at)}")
    looks: list[History] = []

    def loss() -> float:
        return float((rule.net(x).detach() - y).square().sum()) / (2 * len(x))

    seen = {"loss": loss, **(probe or {})}
    for done, until in itertools.pairwise([0, *probe_at]):
        steps = until - done
        looks.append(
            train(
                rule, x, y, steps=steps, lr=lr / (2 * len(x)), loss="mse", reduction="sum",
                probe=seen, probe_at=[steps], label=label,
            )
        )  # fmt: skip
        if looks[-1]["loss"][0] < target:
            break
    found = {name: np.concatenate([look[name] for look in looks]) for name in looks[0].values}
    return {"steps": np.array(probe_at[: len(looks)]), **found}


# --- descent and the walk of the weights ---------------------------------------------------------


@dataclass(frozen=True)
class FirstOrder:
    """What a step of a rule does to the loss, to first order; see :func:`first_order`.

    Attributes:
        descent: inner product of true gradient and update by layer name, bottom to top.
        layers: their cosine by layer name, weight matrices alone.
        network: the cosine of all weight matrices together, read-out included.
    """

    descent: dict[str, float]
    layers: dict[str, float]
    network: float


def first_order(
    rule: Rule,
    x: Tensor,
    target: Tensor,
    *,
    loss: Loss = "cross_entropy",
    reduction: str = "mean",
) -> FirstOrder:
    r"""Rate at which each layer's update lowers the loss, with the alignments, in two passes.

    A step $-\eta u_l$ in every layer changes the loss by $-\eta \sum_l \langle
    \nabla_l \mathcal L, u_l\rangle$. A layer's term is negative where it pushes uphill; the
    read-out's is $\|\nabla_L \mathcal L\|^2$ under every rule (derived). The expected step
    of minibatch training is that of the whole training set: on a part of it, noise makes the
    descent too large.

    Args:
        rule, x, target, loss, reduction: as in :meth:`fabook.Rule.gradients`.

    Returns:
        FirstOrder; layers that do not learn are left out.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], generator=g), generator=g)
        >>> found = first_order(rule, torch.ones(5, 4), torch.tensor([0, 1, 1, 0, 1]))
        >>> list(found.descent), found.descent["2"] > 0
        (['0', '2'], True)
    """
    both = []
    for each in (rule, BP(rule.net)):
        both.append(each.gradients(x, target, loss=loss, reduction=reduction))
    ours, true = both
    descent: dict[str, float] = {}
    for name, update in ours.items():
        layer = name.rpartition(".")[0]
        term = float((update.double() * true[name].double()).sum())
        descent[layer] = descent.get(layer, 0.0) + term
    weights = {n: f"{n}.weight" for n in rule.layers if f"{n}.weight" in ours}
    return FirstOrder(
        descent,
        {layer: float(cosine(ours[name], true[name])) for layer, name in weights.items()},
        cosine_of_all([(ours[name], true[name]) for name in weights.values()]),
    )


def hidden_share(steps: ArrayLike, hidden: ArrayLike, total: ArrayLike) -> np.ndarray:
    r"""Share of the descent so far that is due to the hidden layers.

    $\int_0^t \text{hidden} / \int_0^t \text{total}$, with :func:`first_order` seen at chosen
    steps and joined by straight lines. Negative where hidden layers have pushed uphill (derived).

    Args:
        steps: (P,) increasing numbers of updates.
        hidden: (..., P) descent of the hidden layers, summed.
        total: (..., P) descent of all layers.

    Returns:
        (..., P) shares; the first is that of the first instant.

    Example:
        >>> hidden_share([0, 1, 3], [0.0, 2.0, 2.0], [2.0, 4.0, 4.0])
        array([0.        , 0.33333333, 0.45454545])
    """
    at = np.asarray(steps, dtype=float)
    sums = []
    for rate in (np.asarray(hidden, dtype=float), np.asarray(total, dtype=float)):
        pieces = np.diff(at) * (rate[..., 1:] + rate[..., :-1]) / 2
        sums.append(np.concatenate([rate[..., :1], np.cumsum(pieces, -1)], -1))
    return sums[0] / sums[1]


class DisplacementTracker:
    r"""The way of a network's weights, from where they are when the walk begins.

    Called after each update it adds up $\sum_k \|\Delta_k W_l\|^2$. For steps of
    independent directions the squared displacement $\|W_l - W_l^0\|^2$ has this as its mean,
    whatever their lengths; for one straight line of n equal steps it is n times as large (derived).

    Example:
        >>> from fabook import mlp, BP, train
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 2], generator=g)
        >>> walk = DisplacementTracker(net)
        >>> x, y = torch.ones(3, 4), torch.tensor([0, 1, 1])
        >>> seen = train(BP(net), x, y, steps=1, lr=0.1, after_step=walk)
        >>> abs(walk.displacement()["0"] / walk.path()["0"] - 1) < 1e-4
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._weights = {
            name.rpartition(".")[0]: p for name, p in net.named_parameters() if p.ndim > 1
        }
        self._start = {name: w.detach().clone() for name, w in self._weights.items()}
        self._last = {name: w.clone() for name, w in self._start.items()}
        self._path = {name: w.new_zeros((), dtype=torch.float64) for name, w in self._start.items()}

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        """Take note of a step that has just been made; its number is not used."""
        for name, weight in self._weights.items():
            last = self._last[name].sub_(weight)
            self._path[name] += torch.linalg.vector_norm(last).double().square()
            last.copy_(weight)

    @torch.no_grad()
    def displacement(self) -> dict[str, float]:
        """Squared distance of each weight matrix from its start."""
        return {
            name: float((weight - self._start[name]).double().square().sum())
            for name, weight in self._weights.items()
        }

    def path(self) -> dict[str, float]:
        """Sum of the squared lengths of the steps of each weight matrix."""
        return {name: float(total) for name, total in self._path.items()}


def growth_exponent(steps: ArrayLike, values: ArrayLike) -> np.ndarray:
    r"""Exponent of a power law: least-squares slope of log values against log steps.

    Args:
        steps: (P,) positive.
        values: (..., P) positive.

    Returns:
        (...) exponents.

    Example:
        >>> float(growth_exponent([1, 10, 100], [2.0, 20.0, 200.0]).round(6))
        1.0
    """
    t = np.log(np.asarray(steps, dtype=float))
    y = np.log(np.asarray(values, dtype=float))
    t = t - t.mean()
    return (y * t).sum(-1) / (t * t).sum()


# --- the solvable chain: f = w2 w1, target y, feedback b (all of it derived) ----------------------


def chain(w1: float, w2: float) -> nn.Sequential:
    """The chain as a network of two 1 x 1 layers in double precision, for use with the rules.

    Example:
        >>> chain(2.0, 3.0)(torch.ones(1, 1, dtype=torch.float64)).item()
        6.0
    """
    net = linear_net([1, 1, 1], dtype=torch.float64)
    with torch.no_grad():
        for weight, value in zip(net.parameters(), (w1, w2)):
            weight.fill_(value)
    return net


def chain_velocity(
    w1: ArrayLike, w2: ArrayLike, *, y: float = 1.0, b: float = 1.0
) -> tuple[Array, Array]:
    r"""Flow $\dot w_1 = -be$, $\dot w_2 = -w_1 e$ with $e = w_1w_2 - y$."""
    a, c = np.asarray(w1, float), np.asarray(w2, float)
    e = a * c - y
    return -b * e, -a * e


def chain_exponent(w1: ArrayLike, w2: ArrayLike, *, b: float = 1.0) -> Array:
    r"""The one eigenvalue of the flow at a fixed point that is not zero, $-(w_1^2 + bw_2)$.

    Negative is stable. At every point, $\dot e$ is this times e.
    """
    return -(np.asarray(w1, float) ** 2 + b * np.asarray(w2, float))


def chain_alignment(w1: ArrayLike, w2: ArrayLike, *, b: float = 1.0) -> Array:
    r"""Cosine of step and gradient, $(w_1^2 + bw_2)/\sqrt{(w_1^2+w_2^2)(w_1^2+b^2)}$.

    Example:
        >>> chain_alignment([1.0, -1.0], [1.0, -1.0]).round(9).tolist()  # the edge has none
        [1.0, 0.0]
    """
    a, c = np.asarray(w1, float), np.asarray(w2, float)
    return -chain_exponent(a, c, b=b) / (np.hypot(a, c) * np.hypot(a, b))


def chain_edge(*, y: float = 1.0, b: float = 1.0) -> float:
    r"""The $w_1$ at which fixed points change stability, $-(by)^{1/3}$.

    Unstable are the fixed points with $w_1$ between this and zero.

    Example:
        >>> chain_edge(b=0.5, y=2.0)
        -1.0
    """
    return -float(np.cbrt(b * y))


def chain_flow(
    w1: ArrayLike, w2: ArrayLike, times: ArrayLike, *, y: float = 1.0, b: float = 1.0
) -> tuple[Array, Array]:
    """Paths of the flow from many starts.

    Args:
        w1, w2: (n,) starts.
        times: (T,) rising times from 0 on.
        y, b: target and feedback.

    Returns:
        w1 and w2, each (T, n).

    Raises:
        ValueError: if the times do not rise from zero or above.

    Example:
        >>> path, _ = chain_flow([0.5], [0.5], [0.0, 50.0])
        >>> path[:, 0].round(3).tolist()  # ends where w1 (w1^2/2 + 0.375) = 1
        [0.5, 1.063]
    """
    from scipy.integrate import solve_ivp

    at = np.asarray(times, float)
    if (at < 0).any() or (np.diff(at) <= 0).any():
        raise ValueError(f"times must rise from 0 or above; got {at.tolist()}")
    start = np.stack([np.asarray(w1, float), np.asarray(w2, float)])

    def velocity(_: float, state: Array) -> Array:
        return np.concatenate(chain_velocity(*state.reshape(start.shape), y=y, b=b))

    found = solve_ivp(
        velocity,
        (0, max(at[-1], 1e-12)),
        start.ravel(),
        "DOP853",
        t_eval=at,
        rtol=1e-10,
        atol=1e-12,
    )
    first, second = np.moveaxis(found.y.reshape(*start.shape, len(at)), -1, 1)
    return first, second
