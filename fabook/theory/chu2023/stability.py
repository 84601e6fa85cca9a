r"""Stability of feedback alignment's fixed points.

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

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ...base import Rule
from ...networks import ACTIVATIONS, Scale
from ...rules import BP
from .._arrays import Array

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
    """Eigenvalues by rising real part; those of negative real part are unstable directions.

    Args:
        matrix: (n, n), such as a :func:`stability_matrix`.

    Returns:
        (n,) complex numbers in double precision.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([3.0, -1.0]))).real.tolist()
        [-1.0, 3.0]
    """
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
