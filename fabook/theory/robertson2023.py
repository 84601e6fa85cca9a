r"""Robertson & Koyejo (2023): what alignment conserves, and the solution it reaches.

The paper is https://arxiv.org/abs/2306.01870v1.

One lemma gives every law (derived; Robertson & Koyejo 2023 state the conservation in their
abstract). For activations with $\phi(z) = \phi'(z) z$, any loss and any batch, the updates
$g_l = \sum \delta_l h_{l-1}^T$ obey, for each neuron,

$$ \langle W_l, g_l \rangle = \sum \delta_l \cdot z_l
   = \sum \delta_{l+1}^T B_{l+1} h_l = \langle B_{l+1}, g_{l+1} \rangle , $$

so plain gradient steps of any size move the invariants of :func:`conserved` by
their own squares and by nothing else.

**The solution.** Two-layer linear networks: which solution they reach, and how.

$f(x) = W_2 W_1 x$ with squared loss $\tfrac12\|f - Y\|_F^2$ summed over the samples,
feedback $B$ in the place of $W_2$, and fewer samples than inputs. Steps of the first
layer lie in the span of the data, so what the start has outside it stays. That over-parameterised
networks reach the minimum-norm solution is in the abstract of Robertson & Koyejo (2023); all
formulas here are derived.

**Benign overfitting.** What that solution does with wrong labels, for two Gaussian clouds in many
dimensions: how far it is from the best classifier, and what a start away from zero costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .._checks import choose
from ..base import Rule
from ..networks import Scale
from ._arrays import Array, _float

# --- the laws ------------------------------------------------------------------------------------


def conserved(rule: Rule, *, normalised: bool = False, control: bool = False) -> dict[str, Tensor]:
    r"""What gradient flow under a rule conserves, for each neuron of each hidden layer.

    $$ C_{l,j} = \tfrac12 \|W_l[j,:]\|^2 + \tfrac12 b_{l,j}^2 - P_{l,j}, $$

    for networks of Linear and Conv2d layers with positively homogeneous activations (ReLU, leaky
    ReLU, linear), any loss and any batches (Robertson & Koyejo 2023, abstract; the forms derived).
    The partner of neuron j sums over its outgoing weights w, feedback b of the same place:

    - BP: $\tfrac12 \sum w^2$; FA: $\sum b w$; Kolen-Pollack: $\tfrac12\sum b^2$;
    - uSF and frSF: $\sum |b| |w|$;
    - DFA: $\sum F w$ for the last hidden layer alone, the only one for which a law holds.

    A layer's quantity is the sum over its neurons. A convolution's neurons are its channels; where
    Flatten follows, a channel owns all the columns above that read it.

    Normalisation between each hidden layer and its activation forgets the size of its input. So the
    norm of the weights below it is conserved by itself, and its own scale and shift take their
    place in the law (derived; both to the order of the module's ``eps`` over the variance):

    $$ \tfrac12 \|W_l\|^2 + \tfrac12 \|b_l\|^2, \qquad
       \tfrac12 (\gamma_{l,j}^2 + \beta_{l,j}^2) - P_{l,j}. $$

    The first holds for each neuron under BatchNorm, for the whole layer under LayerNorm.

    Args:
        rule: one whose class declares a ``law``: BP, FA, DFA, uSF, frSF and Kolen-Pollack do.
        normalised: the laws of networks with BatchNorm or LayerNorm.
        control: give the same quantities where the network has no law, to see them drift.

    Returns:
        float64 vectors (n_l) by layer name; by ``"<layer> weights"`` and ``"<layer> scales"`` with
        ``normalised``.

    Raises:
        ValueError: for rules without a law; where two layers do not share their units; for a module
            between them that is not positively homogeneous, and for weights that are frozen; with
            ``normalised``, for a hidden layer without BatchNorm or LayerNorm of its own.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> conserved(rule)["0"].shape
        torch.Size([3])
    """
    laws = conserved_quantities(rule, normalised=normalised, control=control)
    return {law.name: law.norm() - law.partner() for law in laws}


@dataclass(frozen=True)
class ConservedQuantity:
    """A conservation law of one layer: half the squares of some weights, minus their partner.

    Attributes:
        name: the key in :func:`conserved`.
        incoming: current weights that count with half their squares, (n, k).
        pair: current outgoing weights and feedback in their place, (n, m) each; None for none.
        kind: ``weight`` where the partner is half the squares of the outgoing weights,
            ``feedback`` where of the feedback, ``product`` where the sum of products.
    """

    name: str
    incoming: Callable[[], Tensor]
    pair: Callable[[], tuple[Tensor, Tensor]] | None
    kind: str

    def norm(self) -> Tensor:
        """Half the squares of the incoming weights, (n)."""
        return self.incoming().square().sum(1) / 2

    def partner(self) -> Tensor:
        """What the norm is weighed against, (n): under FA the inner product of W and B."""
        if self.pair is None:
            return torch.zeros_like(self.norm())
        w, b = self.pair()
        terms = {"weight": w.square() / 2, "feedback": b.square() / 2, "product": b * w}
        return terms[self.kind].sum(1)


def conserved_quantities(
    rule: Rule, *, normalised: bool = False, biases: bool = True, control: bool = False
) -> list[ConservedQuantity]:
    """The laws behind :func:`conserved`, bottom to top.

    Args:
        rule, normalised, control: as there.
        biases: whether biases count into the norm; without them, no law holds where they learn.

    Raises:
        ValueError: as there.
    """
    kind = rule.law
    if kind is None:
        raise ValueError(
            f"no conservation law is known for {type(rule).__name__}: a rule declares its own, as "
            'in class Mine(fabook.FA, law="product")'
        )
    names = rule.layers[-2:-1] if rule.direct else rule.layers[:-1]
    modules = dict(rule.net.named_modules())
    found = []
    for name in names:
        layer: Any = modules[name]
        _outgoing(rule, name, len(layer.weight))  # refuses layers that do not share their units
        if not control:
            _check_between(rule, name, normalised)
        pair = partial(_outgoing, rule, name, len(layer.weight))
        if not normalised:
            found.append(
                ConservedQuantity(name, partial(_by_neuron, layer, biases=biases), pair, kind)
            )
            continue
        norm = _normalisation(rule, name)
        whole = isinstance(norm, nn.LayerNorm)
        incoming = partial(_by_neuron, layer, whole=whole)
        found.append(ConservedQuantity(f"{name} weights", incoming, None, kind))
        found.append(ConservedQuantity(f"{name} scales", partial(_by_neuron, norm), pair, kind))
    return found


def _by_neuron(module: Any, whole: bool = False, biases: bool = True) -> Tensor:
    """Weights and biases of each neuron in a row, (n, k); (1, n k) for the whole layer."""
    own = (module.weight, module.bias if biases else None)
    parts = [p.detach().double() for p in own if p is not None]
    rows = torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in parts], 1)
    return rows.reshape(1, -1) if whole else rows


def _outgoing(rule: Rule, name: str, units: int) -> tuple[Tensor, Tensor]:
    """Outgoing weights of each neuron of a layer, and the feedback in their place, (n, m) each."""
    above = rule.stack.above[name]
    w = above.weight.detach().double()
    b = rule.feedback.get(name, w).double()
    b = b.t() if rule.direct else b
    inputs = w.shape[1]
    flattened = isinstance(above, nn.Linear) and inputs % units == 0
    if not flattened and inputs != units:
        raise ValueError(
            f"layers {name!r} and the next do not share their units: {units} outputs against "
            f"{inputs} inputs"
        )
    first, second = (m.transpose(0, 1).reshape(units, -1) for m in (w, b))
    return first, second


# h = phi(z) with phi(z) = phi'(z) z in every neuron by itself: what lets the sum over a neuron's
# signals times its outputs pass from one layer to the next
_HOMOGENEOUS = (
    nn.Identity, Scale, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def _between(rule: Rule, name: str) -> list[tuple[str, nn.Module]]:
    """Modules between a hidden layer and the next weight layer."""
    stack = [n for n, _ in rule.stack.modules]
    above = rule.layers[rule.layers.index(name) + 1]
    return rule.stack.modules[stack.index(name) + 1 : stack.index(above)]


def _check_between(rule: Rule, name: str, normalised: bool) -> None:
    """Refuse what breaks the law of a hidden layer; the message names the module."""
    layer: Any = rule.net.get_submodule(name)
    above = rule.stack.above[name]
    image, flat = isinstance(layer, nn.Conv2d), False
    between = _between(rule, name)
    if normalised and between and isinstance(between[0][1], _NORMS):
        between = between[1:]
    for other, module in between:
        flatten = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
        flat |= flatten
        pool = image and not flat and type(module) in _POOLS
        if not (type(module) in _HOMOGENEOUS or flatten or pool):
            raise ValueError(
                f"no law holds for layer {name!r}: module {other!r} ({type(module).__name__}) is "
                "not positively homogeneous in each unit by itself, as ReLU, leaky ReLU and no "
                "activation are"
            )
    wide = not image and len(layer.weight) != above.weight.shape[1]
    if isinstance(above, nn.Linear) == (image and not flat) or wide:
        raise ValueError(f"layers {name!r} and the next do not share their units")
    owned = [*((f"{name}.{k}", p) for k, p in layer.named_parameters()), ("", above.weight)]
    frozen = [key or "the weight above" for key, p in owned if not p.requires_grad]
    if frozen:
        raise ValueError(f"no law holds for layer {name!r}: {frozen[0]} does not learn")


def _normalisation(rule: Rule, name: str) -> nn.Module:
    """The BatchNorm or LayerNorm that follows a hidden layer."""
    norms = [m for _, m in _between(rule, name) if isinstance(m, _NORMS) and m.weight is not None]
    if len(norms) != 1 or len(norms[0].weight.shape) != 1:
        raise ValueError(
            f"layer {name!r} needs one BatchNorm or LayerNorm with scale above it; got {len(norms)}"
        )
    return norms[0]


# --- finite steps, and starts --------------------------------------------------------------------


class Invariants:
    r"""Follows the invariants of a run and what the exact law of finite steps says of them.

    $$ C(k) - C(0) = \tfrac12 \sum_{i<k} \|\Delta W_l^{(i)}\|^2
       - \sum_{i<k} \big[P^{(i+1)} - P^{(i)} - \langle B^{(i)}, \Delta W_{l+1}^{(i)} \rangle\big] $$

    for each neuron, with P its partner in C. The bracket is zero under FA and DFA,
    $\tfrac12\|\Delta W_{l+1}\|^2$ under BP and Kolen-Pollack, and $2|b||w|$ for each
    weight that has crossed zero under sign feedback. Derived.

    Args:
        rule: as in :func:`conserved`; the law is exact for its ``sgd_step``.
        normalised: follow the laws of networks with normalisation instead.
        biases: count biases into the norm; left out, they break the law.
        control: follow the same quantities where the network has no law, to see it fail.

    Raises:
        ValueError: as :func:`conserved`.

    Example:
        >>> from fabook import mlp, FA
        >>> g = torch.Generator().manual_seed(0)
        >>> net = mlp([4, 3, 2], activation="relu", generator=g, dtype=torch.float64)
        >>> rule = FA(net, generator=g)
        >>> tracker = Invariants(rule)
        >>> loss = rule.sgd_step(torch.ones(5, 4).double(), torch.tensor([0, 1, 1, 0, 1]), 0.5)
        >>> tracker.update()
        >>> tracker.residual() < 1e-14
        True
    """

    def __init__(
        self, rule: Rule, *, normalised: bool = False, biases: bool = True, control: bool = False
    ) -> None:
        followed = conserved_quantities(rule, normalised=normalised, biases=biases, control=control)
        self.quantities = {law.name: law for law in followed}
        self._before = self._state()
        self._start = {n: (law.norm(), law.partner()) for n, law in self.quantities.items()}
        self._explained = {n: torch.zeros_like(norm) for n, (norm, _) in self._start.items()}

    def _state(self) -> dict[str, tuple[Tensor, tuple[Tensor, Tensor] | None]]:
        pairs = {n: law.pair and law.pair() for n, law in self.quantities.items()}
        # float64 parameters come as views: without a copy they would move with the weights
        return {
            n: (law.incoming().clone(), (p := pairs[n]) and (p[0].clone(), p[1].clone()))
            for n, law in self.quantities.items()
        }

    def update(self) -> None:
        """Take the step into account that the weights have made since the last call."""
        now = self._state()
        for name, law in self.quantities.items():
            (old, old_pair), (new, new_pair) = self._before[name], now[name]
            self._explained[name] += (new - old).square().sum(1) / 2
            if old_pair is None or new_pair is None:
                continue
            (w0, b0), (w1, b1) = old_pair, new_pair
            bracket = {
                "weight": (w1 - w0).square() / 2,
                "feedback": (b1 - b0).square() / 2,
                "product": (b1 - b0) * w1,
            }[law.kind]
            self._explained[name] -= bracket.sum(1)
        self._before = now

    def norm_change(self) -> dict[str, Tensor]:
        """Change of half the squared incoming weights of each neuron."""
        return {n: law.norm() - self._start[n][0] for n, law in self.quantities.items()}

    def partner_change(self) -> dict[str, Tensor]:
        """Change of the partner of each neuron: under FA, of the inner product with B."""
        return {n: law.partner() - self._start[n][1] for n, law in self.quantities.items()}

    def drift(self) -> dict[str, Tensor]:
        """C(k) - C(0) for each neuron."""
        partner = self.partner_change()
        return {n: norm - partner[n] for n, norm in self.norm_change().items()}

    def explained(self) -> dict[str, Tensor]:
        """What the exact law says of the drift, for each neuron."""
        return {n: total.clone() for n, total in self._explained.items()}

    def unexplained(self) -> dict[str, Tensor]:
        """Drift minus what the law says, for each neuron."""
        return {n: drift - self._explained[n] for n, drift in self.drift().items()}

    def residual(self) -> float:
        """Largest unexplained drift of a neuron, over the largest term of its layer's law."""
        found = [0.0]
        for name, off in self.unexplained().items():
            terms = (
                *self._start[name],
                self.quantities[name].norm(),
                self.quantities[name].partner(),
            )
            size = max(float(t.abs().max()) for t in terms)
            found.append(float(off.abs().max()) / (size or 1.0))
        return max(found)


def normalise(net: nn.Sequential, kind: str, *, eps: float = 1e-30) -> nn.Sequential:
    """The same layers with BatchNorm or LayerNorm above each Linear layer but the last.

    Args:
        net: a stack of Linear layers and activations, which the new network shares.
        kind: ``batch`` or ``layer``.
        eps: added to the variance; the moved law is exact as it goes to zero.

    Raises:
        ValueError: unknown kind.

    Example:
        >>> from fabook import mlp
        >>> g = torch.Generator().manual_seed(0)
        >>> [type(m).__name__ for m in normalise(mlp([4, 3, 2], generator=g), "batch")]
        ['Linear', 'BatchNorm1d', 'Tanh', 'Linear']
    """
    choose("kind", kind, ("batch", "layer"))
    norm = nn.BatchNorm1d if kind == "batch" else nn.LayerNorm
    modules: list[nn.Module] = []
    for module in net:
        modules.append(module)
        if isinstance(module, nn.Linear) and module is not net[-1]:
            modules.append(norm(module.out_features, eps=eps, dtype=module.weight.dtype))
    return nn.Sequential(*modules)


@torch.no_grad()
def dominant_start(rule: Rule, factor: float = 1.2) -> None:
    r"""Set the weights above each hidden layer along their feedback, by default dominantly.

    $$ W_{l+1}[:, j] = \frac{c\,\|W_l[j, :]\|^2}{2\,\|B_{l+1}[:, j]\|^2}\, B_{l+1}[:, j]
       \quad\Rightarrow\quad C_{l,j} = (1 - c)\,\tfrac12 \|W_l[j, :]\|^2 \le 0 . $$

    Since C is conserved, $\langle B_{l+1}, W_{l+1}\rangle_j \ge \tfrac12\|W_l[j,:]\|^2 \ge 0$
    for all times if c is at least 1 (biases count into the norm). A smaller c starts aligned
    without that guarantee, a negative one against the feedback. Derived; Robertson & Koyejo (2023)
    announce sufficient conditions for alignment in their abstract.

    Args:
        rule: feedback alignment, or another of fixed matrices in the weights' places, on Linear
            layers; the first layer keeps its weights, the others are replaced from the bottom to
            the top.
        factor: c, not zero; dominant from 1 on.

    Raises:
        ValueError: for other rules or layers, or a factor of zero, which silences the network.

    Example:
        >>> from fabook import mlp, FA
        >>> from fabook.theory.robertson2023 import conserved
        >>> g = torch.Generator().manual_seed(0)
        >>> rule = FA(mlp([4, 3, 2], activation="relu", generator=g), generator=g)
        >>> dominant_start(rule)
        >>> bool((conserved(rule)["0"] < 0).all())
        True
    """
    linear = all(isinstance(rule.net.get_submodule(n), nn.Linear) for n in rule.layers)
    if rule.law != "product" or not rule.fixed or rule.direct or not linear:
        raise ValueError(f"a dominant start is for FA on Linear layers; got {rule}")
    if factor == 0:
        raise ValueError("factor must not be zero: no layer above the first would be active")
    for law in conserved_quantities(rule):
        B = rule.feedback[law.name].double()
        W = rule.stack.above[law.name].weight
        W.copy_(B * (factor * law.norm() / B.square().sum(0)))


# --- minimum norm --------------------------------------------------------------------------------


def solution(X: ArrayLike, Y: ArrayLike) -> Array:
    r"""The map of smallest norm that fits the data, $\beta^* = X^+ Y$.

    Args:
        X: inputs in rows, (n, d).
        Y: targets, (n, m).

    Returns:
        (d, m).

    Example:
        >>> solution([[1.0, 1.0]], [[2.0]]).ravel().round(12).tolist()
        [1.0, 1.0]
    """
    return np.linalg.pinv(_float(X)) @ _float(Y)


def distance(W1: ArrayLike, W2: ArrayLike, X: ArrayLike, Y: ArrayLike) -> float:
    r"""How far a network is from the minimum-norm solution, $\|\beta-\beta^*\|/\|\beta^*\|$.

    Args:
        W1: (h, d).
        W2: (m, h).
        X, Y: as in :func:`solution`.

    Example:
        >>> round(distance([[1.0, 0.0]], [[2.0]], [[1.0, 1.0]], [[2.0]]), 12)
        1.0
    """
    best = solution(X, Y)
    return float(np.linalg.norm((_float(W2) @ _float(W1)).T - best) / np.linalg.norm(best))


def predicted_distance(W1_start: ArrayLike, W2_end: ArrayLike, X: ArrayLike, Y: ArrayLike) -> float:
    r"""The distance of a network that has fitted the data, from where its first layer began.

    $$ \frac{\|\beta - \beta^*\|}{\|\beta^*\|}
       = \frac{\|W_2(\infty)\, W_1(0)\, P_\perp\|_F}{\|\beta^*\|_F}, \qquad P_\perp = 1 - X^+ X . $$

    Holds under FA and under gradient descent, since $\Delta W_1 = -\eta B^T E^T X$ lies in
    the row space of X. Derived.

    Args:
        W1_start: (h, d), at the start.
        W2_end: (m, h), at the end.
        X, Y: as in :func:`solution`.

    Example:
        >>> predicted_distance([[0.0, 0.0]], [[3.0]], [[1.0, 1.0]], [[2.0]])
        0.0
    """
    X = _float(X)
    outside = np.eye(X.shape[1]) - np.linalg.pinv(X) @ X
    left = np.linalg.norm(_float(W2_end) @ _float(W1_start) @ outside)
    return float(left / np.linalg.norm(solution(X, Y)))


@dataclass(frozen=True)
class ScalarFlow:
    """A run of :func:`scalar_flow` at the times `t` (n_t)."""

    t: Array  # (n_t)
    v: Array  # (n_t, d), W1 = b v^T
    readout: Array  # (n_t), w2 = readout b
    beta: Array  # (n_t, d)
    loss: Array  # (n_t), half the sum of squares


def scalar_flow(
    X: ArrayLike, y: ArrayLike, *, times: ArrayLike, norm2: float = 1.0, start: float = 0.0
) -> ScalarFlow:
    r"""One output under FA from $W_1 = 0$, $w_2 = a_0 b$, in closed form.

    $$ W_1 = b v^T, \quad w_2 = (a_0 + \tfrac12 \|v\|^2)\, b, \quad
       \beta = \|b\|^2 (a_0 + \tfrac12 \|v\|^2)\, v, \quad \dot v = -X^T (X\beta - y). $$

    The second is the conservation law. $a_0 < 0$ starts against the feedback: the loss rises
    until $\tfrac12\|v\|^2$ exceeds $-a_0$. Derived; only $v$ is integrated.

    Args:
        X: (n, d).
        y: (n).
        times: increasing, from 0 on, (n_t).
        norm2: squared norm of the feedback b.
        start: a_0.

    Raises:
        ValueError: for a shape that does not fit.

    Example:
        >>> path = scalar_flow([[1.0, 0.0]], [2.0], times=[0.0, 30.0])
        >>> path.beta[-1].round(6).tolist()
        [2.0, 0.0]
    """
    from scipy.integrate import solve_ivp

    X, y, t = _float(X), _float(y), np.atleast_1d(_float(times))
    if X.ndim != 2 or y.shape != (len(X),):
        raise ValueError(f"X must be (n, d) and y (n,); got {X.shape} and {y.shape}")

    def beta(v: Array) -> Array:
        return norm2 * (start + (v**2).sum(-1, keepdims=True) / 2) * v

    run = solve_ivp(
        lambda _, v: -X.T @ (X @ beta(v) - y),
        (0.0, float(t[-1])),
        np.zeros(X.shape[1]),
        t_eval=t,
        method="RK45",
        rtol=1e-9,
        atol=1e-11,
    )
    v = run.y.T
    loss = ((beta(v) @ X.T - y) ** 2).sum(-1) / 2
    return ScalarFlow(t, v, start + (v**2).sum(-1) / 2, beta(v), loss)


def potential(beta: ArrayLike, norm2: float = 1.0) -> Array:
    r"""The potential of which FA from zero is the mirror flow, for one output.

    $$ \psi(\beta) = \tfrac34 \left(2/\|b\|^2\right)^{1/3} \|\beta\|^{4/3}, \qquad
       \nabla\psi(\beta) = v, \qquad \tfrac{d}{dt}\nabla\psi(\beta) = -\nabla L(\beta). $$

    It grows with the Euclidean norm alone, hence the minimum-norm solution. Gradient descent from
    a small balanced start has the exponent 3/2, after a change of time (Azulay et al. 2021).
    Derived.

    Args:
        beta: (..., d).
        norm2: squared norm of the feedback b.

    Example:
        >>> float(potential([2.0, 0.0]).round(6))
        2.381102
    """
    size = np.linalg.norm(_float(beta), axis=-1)
    return 0.75 * (2 / norm2) ** (1 / 3) * size ** (4 / 3)


# --- benign overfitting --------------------------------------------------------------------------


class Clouds(NamedTuple):
    """Two Gaussian clouds, of labels 1 and -1, and a share of wrong labels."""

    X: Tensor  # (n, d)
    y: Tensor  # (n), right
    given: Tensor  # (n), some of them wrong
    direction: Tensor  # (d), from the middle to the centre of the cloud of label 1


def clouds(
    n: int, d: int, *, signal: float, wrong: float = 0.0, generator: torch.Generator
) -> Clouds:
    r"""Draw two clouds around $\pm\mu$ and give some samples the wrong label.

    $$ x = (y\mu + \xi)/\sqrt d, \qquad \xi \sim N(0, I_d), \qquad \|\mu\|^2 = m . $$

    The best classifier, $\mathrm{sign}(\mu\cdot x)$, errs with probability $\Phi(-\sqrt m)$.
    The factor keeps inputs at length one as d grows and changes no solution but in its scale.

    Args:
        n: samples, half of each label.
        d: inputs.
        signal: m, the squared distance of a centre from the middle.
        wrong: share of wrong labels; the number of them is fixed, their places are random.
        generator: CPU generator.

    Raises:
        ValueError: for an odd n, or a share outside [0, 1/2].

    Example:
        >>> drawn = clouds(10, 30, signal=4.0, wrong=0.2, generator=torch.Generator())
        >>> int((drawn.y != drawn.given).sum())
        2
    """
    if n < 2 or n % 2:
        raise ValueError(f"n must be even, half of each label; got {n}")
    if not 0 <= wrong <= 0.5:
        raise ValueError(f"wrong must lie in [0, 0.5]; got {wrong}")
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    direction = torch.randn(d, **options)
    direction *= signal**0.5 / direction.norm()
    y = 1 - 2 * (torch.arange(n) % 2).double()
    X = (y[:, None] * direction + torch.randn(n, d, **options)) / d**0.5
    given = y.clone()
    given[torch.randperm(n, generator=generator)[: round(wrong * n)]] *= -1
    return Clouds(X, y, given, direction)


def margin(beta: ArrayLike, direction: ArrayLike) -> float:
    r"""Distance of a cloud's centre from a linear classifier, in standard deviations of the cloud.

    $$ q = \mu\cdot\beta / \|\beta\| , \qquad P(\text{error}) = \Phi(-q) . $$

    Args:
        beta: (d) or (d, 1), the map that is learned.
        direction: (d), from :func:`clouds`.

    Example:
        >>> margin([3.0, 4.0], [5.0, 0.0])
        3.0
    """
    beta = _float(beta).ravel()
    return float(_float(direction) @ beta / np.linalg.norm(beta))


def minimum_norm_margin(
    n: int, d: ArrayLike, *, signal: float, wrong: float = 0.0, outside: ArrayLike = 0.0
) -> Array:
    r"""Margin of the minimum-norm fit of :func:`clouds`, for many samples.

    With $\rho = 1 - 2p$ for a share p of wrong labels, $D = d - n - 2$ and
    $S = D + n(m + 1)$,

    $$ q = \frac{n m \rho}{S} \Big/ \sqrt{\frac nD\Big(1 - \frac{n m \rho^2}{S}\Big)} ,
       \qquad q_u = q / \sqrt{1 + u^2} . $$

    Along $\mu$ the inputs are $h = \sqrt m\,y + g$, and across it Gaussian noise Z, so that
    $X X^T = h h^T + Z Z^T$; quadratic forms of $(Z Z^T)^{-1}$ have the mean
    $\|v\|^2/D$ of an inverse Wishart matrix, and $h^T \hat y \approx n\sqrt m\,\rho$. The
    second form adds a part outside the data, of length u relative to the solution, as
    :func:`predicted_distance` gives it, which has nothing to do with $\mu$. Derived; fluctuations
    are of relative order $1/\sqrt n$.

    Args:
        n: samples.
        d: inputs, more than n + 2; a number or an array.
        signal, wrong: as in :func:`clouds`.
        outside: u.

    Raises:
        ValueError: if d is not larger than n + 2.

    Example:
        >>> minimum_norm_margin(50, [100, 3200], signal=100, wrong=0.2).round(2).tolist()
        [0.72, 3.29]
    """
    D, rho = _float(d) - n - 2, 1 - 2 * wrong
    if (D <= 0).any():
        raise ValueError(f"d must be larger than n + 2 = {n + 2}; got {d!r}")
    S = D + n * (signal + 1)
    across = np.sqrt(n / D * (1 - n * signal * rho**2 / S))
    return np.asarray(n * signal * rho / S / across / np.sqrt(1 + _float(outside) ** 2))
