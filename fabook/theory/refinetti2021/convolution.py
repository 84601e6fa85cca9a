r"""How far a layer of a given structure can align with a matrix it would have to equal.

Under direct feedback alignment a hidden layer should become $F_{l+1} F_l^T$. A convolution cannot:
written as a matrix it is sparse and repeats its few kernel weights at every position. The best it
can do is the orthogonal projection of the target onto matrices of its structure. Source: derived;
that direct feedback alignment fails to train convolutional networks, and why, is a subject of
Refinetti et al. (2021), https://arxiv.org/abs/2011.12428.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._checks import choose

STRUCTURES = ("convolution", "local", "full")


def attainable_cosine(
    target: Tensor,
    channels: Sequence[int],
    side: int,
    kernel: int,
    *,
    structure: str = "convolution",
) -> Tensor:
    r"""Largest cosine between a target matrix T and any matrix of a layer's structure.

    $$ \max_W \cos(W, T) = \frac{\|P\,T\|}{\|T\|} $$

    with P the projection: entries outside the receptive fields are dropped (``local``), and those
    that share a kernel weight are replaced by their mean (``convolution``, stride 1, no padding).
    For targets with uncorrelated entries of equal variance, such as products of independent random
    feedback matrices, $E\|PT\|^2/E\|T\|^2$ is $(k/(d_{in} d_{out}))^2$ for a
    convolution and $(k/d_{in})^2$ for a local layer. Derived.

    Args:
        target: (c_out d_out^2, c_in d_in^2), both sides flattened as (channel, row, column).
        channels: (c_in, c_out).
        side: d_in, pixels of the input's side; d_out = d_in - k + 1.
        kernel: k, pixels of the kernel's side.
        structure: ``convolution``, ``local`` (weights of each position its own) or ``full``.

    Returns:
        float64 cosine (0-d), not negative.

    Raises:
        ValueError: unknown structure, a kernel that does not fit, or a target of another shape.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> f_in = torch.randn(8 * 12**2, 10, generator=g)
        >>> f_out = torch.randn(8 * 10**2, 10, generator=g)
        >>> round(float(attainable_cosine(f_out @ f_in.T, (8, 8), 12, 3)), 2)  # 3 / (12 * 10)
        0.03
    """
    choose("structure", structure, STRUCTURES)
    (c_in, c_out), d_out = channels, side - kernel + 1
    if not 1 <= kernel <= side:
        raise ValueError(f"kernel must lie in [1, {side}], the side of the input; got {kernel}")
    shape = (c_out * d_out**2, c_in * side**2)
    if tuple(target.shape) != shape:
        raise ValueError(f"target must have shape {shape}; got {tuple(target.shape)}")
    t = target.detach().double()
    if structure == "full":
        return t.new_ones(())
    grid = t.reshape(c_out, d_out, d_out, c_in, side, side)
    row = torch.arange(d_out, device=t.device)[:, None]
    column = row.T
    kept = t.new_zeros(())
    for a in range(kernel):
        for b in range(kernel):
            entries = grid[:, row, column, :, row + a, column + b]  # (d_out, d_out, c_out, c_in)
            if structure == "convolution":
                kept += entries.sum((0, 1)).square().sum() / d_out**2
            else:
                kept += entries.square().sum()
    return (kept / t.square().sum()).sqrt()
