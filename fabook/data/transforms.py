"""Transforms of images and labels: size, scale, label noise."""

from __future__ import annotations

from typing import overload

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .._checks import check_between, check_count


def resize(x: Tensor, size: int) -> Tensor:
    """Resize images to ``size`` x ``size`` by antialiased bilinear interpolation.

    The kernel is a triangle as wide as two output pixels, so that a smaller image is a local
    average, as in Pillow's ``BILINEAR``; values stay in their range.

    Args:
        x: floating images (n, C, H, W).
        size: pixels of a side.

    Returns:
        Images (n, C, size, size).

    Raises:
        ValueError: if ``x`` is not of that shape, or ``size`` is not a positive whole number.

    Example:
        >>> image = torch.eye(4, dtype=torch.float64)[None, None]
        >>> resize(image, 2)[0, 0].round(decimals=3).tolist()
        [[0.388, 0.122], [0.122, 0.388]]
    """
    check_count("size", size)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating images (n, C, H, W); got {x.dtype} of shape {tuple(x.shape)}"
        )
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


@overload
def standardise(x_train: Tensor) -> Tensor: ...
@overload
def standardise(x_train: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]: ...
def standardise(x_train: Tensor, x_test: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Subtract one mean and divide by one standard deviation, both of all training values.

    The convention of Refinetti et al. (2021), https://arxiv.org/abs/2011.12428, in their code:
    neither per pixel nor per channel.

    Raises:
        ValueError: if the training values are all equal.

    Example:
        >>> standardise(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
        (tensor([[-1.,  1.]]), tensor([[2., 0.]]))
    """
    mean, sd = x_train.mean(), x_train.std(correction=0)
    if not sd > 0:
        raise ValueError(f"x_train must hold different values; its standard deviation is {sd:g}")
    scaled = (x_train - mean) / sd
    return scaled if x_test is None else (scaled, (x_test - mean) / sd)


def _chosen(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    check_between("p", p, 0, 1)
    check_count("n_classes", n_classes, 2)
    if y.is_floating_point() or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_classes):
        raise ValueError(f"y must hold labels from 0 to {n_classes - 1}; got {y!r}")
    return (torch.rand(len(y), generator=generator) < p).to(y.device)


def corrupt_labels(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    """Redraw each label, with probability p, uniformly over all classes.

    A redrawn label may be the old one: a fraction p (1 - 1/C) changes. As many numbers are drawn
    whatever p is, so that runs at two p share their draws.

    References: Refinetti et al. (2021), https://arxiv.org/abs/2011.12428, in their code

    Args:
        y: labels (n,).
        p: probability in [0, 1].
        n_classes: C, at least 2.
        generator: source of the draws, on the CPU.

    Raises:
        ValueError: for p, C or labels out of range.

    Example:
        >>> y = torch.zeros(10_000, dtype=torch.long)
        >>> new = corrupt_labels(y, 1.0, 10, torch.Generator().manual_seed(0))
        >>> round((new != y).double().mean().item(), 1)  # p (1 - 1/C)
        0.9
    """
    chosen = _chosen(y, p, n_classes, generator)
    drawn = torch.randint(n_classes, y.shape, generator=generator).to(y)
    return torch.where(chosen, drawn, y)


def flip_labels(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    """Replace each label, with probability p, by one of the other classes, drawn uniformly.

    A fraction p changes. Arguments and errors are those of :func:`corrupt_labels`.

    Example:
        >>> flip_labels(torch.tensor([0, 1, 1]), 1.0, 2, torch.Generator().manual_seed(0))
        tensor([1, 0, 0])
    """
    chosen = _chosen(y, p, n_classes, generator)
    shift = torch.randint(1, n_classes, y.shape, generator=generator).to(y)
    return torch.where(chosen, (y + shift) % n_classes, y)
