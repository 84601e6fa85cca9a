"""Synthetic data: Gaussian inputs with given targets, clouds, teachers, and sequences."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from .._checks import check_between, check_count
from .dataset import Dataset, _dataset


def structured_targets(
    n: int,
    d: int,
    alpha: float,
    beta: float,
    generator: Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""Draw Gaussian inputs, and two targets independent of them, unequal and correlated.

    $$ x \sim N(0, I_d), \qquad y \sim N\left(0, \begin{pmatrix} 1 & \alpha(1-\beta) \\
        \alpha(1-\beta) & \alpha^2 \end{pmatrix}\right) $$

    so $\alpha$ is the standard deviation of the second target and $1-\beta$ the
    correlation.

    References: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428, the experiment on
    structured targets, in their code

    Args:
        n: samples.
        d: inputs.
        alpha: in [0, 1].
        beta: in [0, 1].
        generator: source of the draws, on the CPU.
        dtype: floating type of both.

    Returns:
        x (n, d) and y (n, 2).

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> x, y = structured_targets(100, 3, 0.5, 0.0, torch.Generator().manual_seed(0))
        >>> x.shape, bool((y[:, 1] == 0.5 * y[:, 0]).all())  # beta = 0: one target, halved
        (torch.Size([100, 3]), True)
    """
    check_count("n", n)
    check_count("d", d)
    check_between("alpha", alpha, 0, 1)
    check_between("beta", beta, 0, 1)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    z = torch.randn(n, 2, generator=generator, dtype=dtype)
    rho = 1 - beta
    second = alpha * (rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1])
    return x, torch.stack([z[:, 0], second], dim=1)


def gaussian_mixture(
    n_classes: int,
    generator: Generator,
    *,
    d: int = 32,
    prototypes: int = 8,
    spread: float = 2.0,
    noise: float = 0.8,
    train_per_class: int = 80,
    test_per_class: int = 40,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    r"""Draw balanced classes, each a mixture of Gaussian clouds around random prototypes.

    $$ m_{c,k} \sim N(0, \tfrac{s^2}{d} I_d), \qquad
        x = m_{c,k} + \tfrac{s \nu}{\sqrt d} \xi, \quad \xi \sim N(0, I_d) $$

    with k uniform: the spread s sets the squared norm $s^2$ of a prototype, the noise
    $\nu$ how much clouds overlap, the number of classes how hard the problem is. Row i is of
    class i modulo ``n_classes``. Derived for the experiments on many classes.

    Args:
        n_classes: classes, at least 2.
        generator: source of the draws, on the CPU.
        d: inputs.
        prototypes: clouds of a class.
        spread: s, positive.
        noise: the ratio of the two standard deviations, not negative.
        train_per_class: training points of each class.
        test_per_class: test points of each class.
        dtype: floating type of the inputs.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> data = gaussian_mixture(5, torch.Generator().manual_seed(0))
        >>> data.description, tuple(data.x_test.shape)
        ('Gaussian mixture of 5 classes, 400 training and 200 test points', (200, 32))
    """
    check_count("n_classes", n_classes, 2)
    check_count("d", d)
    check_count("prototypes", prototypes)
    check_count("train_per_class", train_per_class)
    check_count("test_per_class", test_per_class)
    check_between("spread", spread, 1e-12, float("inf"))
    check_between("noise", noise, 0, float("inf"))
    sd = spread / d**0.5
    centres = sd * torch.randn(n_classes, prototypes, d, generator=generator, dtype=dtype)
    tensors = []
    for per_class in (train_per_class, test_per_class):
        y = torch.arange(n_classes).repeat(per_class)
        k = torch.randint(prototypes, y.shape, generator=generator)
        cloud = torch.randn(len(y), d, generator=generator, dtype=dtype)
        tensors += [centres[y, k] + sd * noise * cloud, y]
    title = f"Gaussian mixture of {n_classes} classes"
    return _dataset(
        "gaussian-mixture", title, tensors, n_classes, files={}, subset=False, what="points"
    )


def teacher_student(
    teacher: nn.Module,
    n: int,
    shape: int | Sequence[int],
    generator: Generator,
    *,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Draw Gaussian inputs and the outputs of a teacher network on them.

    $$ x \sim N(0, I), \qquad y = f_{\text{teacher}}(x) + \sigma \zeta, \ \zeta \sim N(0, I) $$

    The teacher is used in evaluation mode and left as it was; inputs have the type and device of
    its parameters.

    Args:
        teacher: maps (n, ...) to outputs.
        n: samples.
        shape: of one input; a number for a vector.
        generator: source of the draws, on the CPU.
        noise: standard deviation of the output noise, not negative.

    Returns:
        x (n, ...) and y, with no gradient.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> teacher = nn.Linear(3, 1)
        >>> x, y = teacher_student(teacher, 5, 3, torch.Generator().manual_seed(0))
        >>> x.shape, torch.equal(y, teacher(x)), y.requires_grad
        (torch.Size([5, 3]), True, False)
    """
    check_count("n", n)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        check_count("shape", size)
    check_between("noise", noise, 0, float("inf"))
    like = next(teacher.parameters(), torch.empty(0))
    x = torch.randn(n, *shape, generator=generator, dtype=like.dtype).to(like.device)
    with torch.no_grad():
        y = copy.deepcopy(teacher).eval()(x)
    zeta = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    return x, y + noise * zeta


def associative_recall(
    n: int, generator: Generator, *, pairs: int = 4, keys: int = 8, values: int = 8
) -> tuple[Tensor, Tensor]:
    """Draw sequences of pairs and a query: which value belongs to the key that is asked for?

    Each token but the last is a pair, of number ``key * values + value``; the keys of a sequence
    are different. The last token asks for the key of one of the pairs, drawn uniformly, and is
    number ``keys * values + key``. Who finds the pair is always right; who sees the pairs and not
    the query, at best as often as the most frequent value stands among the pairs (.41 with the
    defaults); who sees nothing, once in ``values``.

    Args:
        n: sequences.
        generator: source of the draws, on the CPU.
        pairs: of a sequence.
        keys: different keys, at least ``pairs``.
        values: different values, at least 2.

    Returns:
        x (n, pairs + 1), tokens below ``keys * values + keys``, and y (n,), values.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> x, y = associative_recall(100, torch.Generator().manual_seed(0))
        >>> x.shape, bool((x[:, :-1] % 8 == y[:, None]).any(1).all())
        (torch.Size([100, 5]), True)
    """
    check_count("n", n)
    check_count("keys", keys)
    check_count("pairs", pairs, most=keys)
    check_count("values", values, 2)
    key = torch.rand(n, keys, generator=generator).argsort(1)[:, :pairs]
    value = torch.randint(values, (n, pairs), generator=generator)
    asked = torch.randint(pairs, (n, 1), generator=generator)
    query = keys * values + key.gather(1, asked)
    return torch.cat([key * values + value, query], 1), value.gather(1, asked).squeeze(1)


def sorting(
    n: int, generator: Generator, *, length: int = 8, tokens: int = 8
) -> tuple[Tensor, Tensor]:
    """Draw sequences of tokens, and the same in ascending order: a label for each position.

    Args:
        n: sequences.
        generator: source of the draws, on the CPU.
        length: tokens of a sequence.
        tokens: different tokens, at least 2.

    Returns:
        x (n, length) and y (n, length), tokens below ``tokens``.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> x, y = sorting(100, torch.Generator().manual_seed(0), length=4)
        >>> x.shape, bool((y.diff(dim=1) >= 0).all())
        (torch.Size([100, 4]), True)
    """
    check_count("n", n)
    check_count("length", length)
    check_count("tokens", tokens, 2)
    x = torch.randint(tokens, (n, length), generator=generator)
    return x, x.sort(1).values
