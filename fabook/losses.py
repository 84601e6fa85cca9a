r"""Loss and output error: the one place where a label becomes an error signal.

Every named loss has an error of one form, $e = c\,(p(f) - y^*)$: a prediction minus a target,
with one factor $c$ for both. The first part is what an output rule sends, the second alone
is what direct random target projection sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import choose

Loss = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "mse", "bce")
REDUCTIONS = ("mean", "sum")
IGNORED = -100  # torch's ignore_index: a sample that counts for nothing


def output_error(
    output: Tensor, target: Tensor, loss: Loss = "cross_entropy", reduction: str = "mean"
) -> tuple[Tensor, Tensor]:
    r"""Loss and its derivative with respect to the network's output.

    ``cross_entropy`` is ``F.cross_entropy`` (class indices or probabilities, classes on the last
    axis), $e = c\,(\mathrm{softmax}(f) - y^*)$; ``mse`` is ``F.mse_loss``,
    $e = 2c\,(f - y)$; ``bce`` is ``F.binary_cross_entropy_with_logits``,
    $e = c\,(\sigma(f) - y^*)$. $c$ is 1 for ``sum`` and one over the number of samples
    (``cross_entropy``; those of label -100 do not count) or of all elements for ``mean``. Half
    precision is summed in single.

    Args:
        output: (..., C).
        target: (...) class indices or (..., C) probabilities; for ``mse`` the output's shape; for
            ``bce`` the output's shape, or class indices where C > 1.
        loss: ``cross_entropy``, ``mse``, ``bce``, or a function of (output, target) that returns a
            scalar, whose own reduction holds.
        reduction: ``mean`` or ``sum``.

    Returns:
        The loss (0-d) and the error, of the output's shape.

    Raises:
        ValueError: unknown loss or reduction, no samples, target of the wrong shape, or a label
            that is no class.

    Example:
        >>> value, e = output_error(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
        >>> e[0].tolist()
        [-0.125, 0.125]
    """
    choose("reduction", reduction, REDUCTIONS)
    if output.numel() == 0:
        raise ValueError(f"the batch holds no samples: the output has shape {tuple(output.shape)}")
    given: Any = target
    if not isinstance(given, Tensor):
        raise TypeError(f"target must be a tensor, as torch.tensor makes it; got {type(given)}")
    if isinstance(loss, type):
        raise TypeError(f"loss is a class: pass one of it, {loss.__name__}()")
    if callable(loss):
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            value = loss(leaf, target)
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"a loss must return a tensor of one number; got {got}")
            return value.detach(), torch.autograd.grad(value, leaf)[0]
    choose("loss", loss, LOSSES)
    if output.dtype in (torch.float16, torch.bfloat16):  # sums overflow, and lose their last terms
        value, error = output_error(output.float(), target, loss, reduction)
        return value.to(output.dtype), error.to(output.dtype)
    if loss == "mse":
        return _squares(output, target, reduction)
    if loss == "bce":
        return _binary(output, target, reduction)
    return _cross_entropy(output, target, reduction)


def target_error(
    output: Tensor, target: Tensor, loss: Loss = "cross_entropy", reduction: str = "mean"
) -> Tensor:
    r"""The target's part of the output error, $c\,y^*$, with its sign turned.

    $c$ is 1/n for ``cross_entropy``, 2/(n C) for ``mse`` and 1/(n C) for ``bce`` with
    ``mean``; 1, 2 and 1 with ``sum``.

    Args:
        output, target, loss, reduction: as in :func:`output_error`; a loss by name.

    Returns:
        A tensor of the output's shape; zero where the label is -100.

    Raises:
        ValueError: a loss that is a function, or as :func:`output_error`.

    Example:
        >>> f, y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
        >>> target_error(f, y)[0].tolist()
        [0.25, 0.0]
        >>> (output_error(f, y)[1] + target_error(f, y))[0].tolist()  # softmax(f) / 4
        [0.125, 0.125]
    """
    if callable(loss):
        raise ValueError(f"a target is projected under a loss by name, one of {', '.join(LOSSES)}")
    choose("loss", loss, LOSSES)
    choose("reduction", reduction, REDUCTIONS)
    if loss == "mse":
        _check_shape(output, target)
    count = output.numel() if loss != "cross_entropy" else output.numel() // output.shape[-1]
    if loss != "mse" and target.shape != output.shape:
        labels, kept = _labels(output, target, ignore=loss == "cross_entropy")
        target = F.one_hot(labels, output.shape[-1])
        if kept is not None:
            count, target = int(kept.sum()), target * kept.unsqueeze(-1)
    factor = 2.0 if loss == "mse" else 1.0
    return target.to(output) * (factor / max(count, 1) if reduction == "mean" else factor)


def _check_shape(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"mse needs a target of the output's shape {tuple(output.shape)}; "
            f"got {tuple(target.shape)}: reshape it, or F.one_hot(labels, {output.shape[-1]})"
        )


def _squares(output: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    _check_shape(output, target)
    error = output - target.to(output.dtype)
    scale = 1.0 / error.numel() if reduction == "mean" else 1.0
    flat = error.reshape(-1)
    return torch.dot(flat, flat) * scale, error.mul_(2 * scale)


def _binary(output: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    if target.shape != output.shape:
        if output.shape[-1] == 1:
            raise ValueError(
                f"bce of one output needs a target of its shape {tuple(output.shape)}; "
                f"got {tuple(target.shape)}: reshape it"
            )
        labels, _ = _labels(output, target, ignore=False)
        target = F.one_hot(labels, output.shape[-1])
    target = target.to(output.dtype)
    value = F.binary_cross_entropy_with_logits(output, target, reduction=reduction)
    error = torch.sigmoid(output).sub_(target)
    return value, error.mul_(1.0 / error.numel()) if reduction == "mean" else error


def _cross_entropy(output: Tensor, target: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(output, -1)
    n = logp.numel() // logp.shape[-1]
    scale = 1.0 / n if reduction == "mean" else 1.0
    error = logp.exp()
    if target.is_floating_point() and target.shape == output.shape:
        value = -(target * logp).sum() * scale
        error.mul_(target.sum(-1, keepdim=True)).sub_(target)
        return value, error.mul_(scale) if scale != 1.0 else error
    labels, kept = _labels(output, target, ignore=True)
    index = labels.unsqueeze(-1)
    ones = torch.ones_like(index, dtype=error.dtype)
    if kept is not None:
        counted = int(kept.sum())
        scale = (1.0 / counted if counted else float("nan")) if reduction == "mean" else 1.0
        ones = kept.unsqueeze(-1).to(error)
        error, logp = error * ones, logp.where(kept.unsqueeze(-1), 0.0)
    value = logp.gather(-1, index).sum() * -scale
    error.scatter_add_(-1, index, -ones)
    return value, error.mul_(scale) if scale != 1.0 else error


def _labels(output: Tensor, target: Tensor, *, ignore: bool) -> tuple[Tensor, Tensor | None]:
    """Class indices as int64, and where some are -100 and thus 0 here, a mask of the others."""
    if target.is_floating_point() or target.is_complex() or target.shape != output.shape[:-1]:
        raise ValueError(
            f"cross_entropy and bce of outputs {tuple(output.shape)} need class indices, whole "
            f"numbers of shape {tuple(output.shape[:-1])} or probabilities of the output's shape; "
            f"got {tuple(target.shape)} {target.dtype}"
        )
    labels, classes = target.long(), output.shape[-1]
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low >= 0 and high < classes:
        return labels, None
    kept = labels != IGNORED if ignore else torch.ones_like(labels, dtype=torch.bool)
    wrong = kept & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise ValueError(
            f"target: labels must lie in [0, {classes - 1}]"
            f"{' or be -100, which is ignored' if ignore else ''}; got {int(labels[wrong][0])}"
        )
    return labels.where(kept, labels.new_zeros(())), kept
