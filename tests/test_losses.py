"""Losses and output errors against torch's own functions and autograd."""

import pytest
import torch
import torch.nn.functional as F

from fabook.losses import LOSSES, output_error, target_error
from fabook.rules import BP
from fabook.streams import stream
from rules_by_hand import close, rand, tanh_net


def outputs(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=stream(0, "output"), dtype=torch.float64).to(dtype)


def labels(*shape, classes=4):
    return torch.randint(classes, shape, generator=stream(1, "labels"))


def torchs(loss, f, y, reduction):
    """What torch itself says: value and gradient."""
    f = f.detach().requires_grad_()
    if loss == "mse":
        value = F.mse_loss(f, y, reduction=reduction)
    elif loss == "bce":
        value = F.binary_cross_entropy_with_logits(f, y, reduction=reduction)
    else:
        value = F.cross_entropy(f, y, reduction=reduction)
    return value.detach(), torch.autograd.grad(value, f)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_error_are_torchs_to_the_precision_of_the_type(loss, reduction, dtype):
    f = outputs(7, 4, dtype=dtype)
    y = labels(7) if loss == "cross_entropy" else outputs(7, 4).sigmoid().to(dtype)
    target = y if loss == "cross_entropy" else y.double()
    want = torchs(loss, f.double(), target, reduction)
    got = output_error(f, y, loss, reduction)
    for ours, true in zip(got, want, strict=True):
        assert ours.dtype == dtype
        worst = (ours.double() - true).abs().max() / true.abs().max().clamp(min=1)
        assert worst <= 4 * torch.finfo(dtype).eps


def test_half_precision_does_not_overflow():
    f = torch.full((300, 300), 60.0, dtype=torch.float16)
    value, _ = output_error(f, torch.zeros_like(f), "mse")
    assert float(value) == 3600.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_ignored_labels_count_for_nothing(kept, reduction):
    f, y = outputs(7, 4), labels(7)
    y[kept:] = -100
    want = torchs("cross_entropy", f, y, reduction)
    got = output_error(f, y, reduction=reduction)
    torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-14, equal_nan=True)
    if kept or reduction == "sum":
        torch.testing.assert_close(got[1], want[1], rtol=1e-12, atol=1e-14)
        sent = target_error(f, y, reduction=reduction)
        assert not sent[kept:].any()
        assert float(sent.sum()) == pytest.approx(1 if reduction == "mean" else kept)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_error_is_a_prediction_minus_the_targets_part(loss, reduction):
    """At two targets the errors differ by the difference of the targets' parts."""
    f = outputs(7, 4)
    first, second = (outputs(7, 4), outputs(7, 4).flip(0))
    if loss != "mse":
        first, second = first.softmax(1), second.softmax(1)
    errors = [output_error(f, y, loss, reduction)[1] for y in (first, second)]
    parts = [target_error(f, y, loss, reduction) for y in (first, second)]
    torch.testing.assert_close(errors[0] - errors[1], parts[1] - parts[0], rtol=1e-12, atol=1e-14)


def test_binary_cross_entropy_takes_labels():
    f, y = outputs(7, 4), labels(7)
    want = output_error(f, F.one_hot(y, 4), "bce")
    for ours, theirs in zip(output_error(f, y, "bce"), want, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda f, y: output_error(f, y + 4), r"\[0, 3\] or be -100, which is ignored; got"),
        (lambda f, y: output_error(f, y * 0 - 1), r"\[0, 3\] or be -100.*got -1"),
        (lambda f, y: output_error(f, y * 0 - 100, "bce"), r"lie in \[0, 3\]; got -100"),
        (lambda f, y: output_error(f[:, :1], y * 0, "bce"), r"one output needs a target.*\(7, 1\)"),
        (lambda f, y: output_error(f[:0], y[:0]), r"holds no samples.*\(0, 4\)"),
        (lambda f, y: output_error(f, y, "hinge"), "loss must be one of cross_entropy, mse, bce"),
        (lambda f, y: target_error(f, y, F.mse_loss), "under a loss by name"),
    ],
)
def test_errors_name_argument_value_and_range(act, message):
    with pytest.raises(ValueError, match=message):
        act(outputs(7, 4), labels(7))


def test_an_ignored_label_counts_for_nothing_where_a_class_is_masked():
    f, y = outputs(7, 4), labels(7).clamp(min=1)
    f[:, 0], y[2] = -torch.inf, -100
    leaf = f.clone().requires_grad_()
    want = F.cross_entropy(leaf, y)
    want.backward()
    value, error = output_error(f, y)
    torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(error, leaf.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("default_dtype")
def test_output_error_of_probabilities_that_do_not_sum_to_one(device):
    f, y = rand(5, 3).to(device).requires_grad_(), rand(5, 3, seed=1).abs().to(device)
    F.cross_entropy(f, y).backward()
    value, error = output_error(f.detach(), y)
    close(value, F.cross_entropy(f, y).detach())
    close(error, f.grad)


@pytest.mark.usefixtures("default_dtype")
def test_targets_of_another_dtype(device):
    net = tanh_net(device)
    x = rand(7, 5).to(device)
    whole = torch.ones(7, 3, dtype=torch.long, device=device)
    want = BP(net).gradients(x, whole.to(x), loss="mse")
    for target in (whole, whole.double(), whole.float(), whole.bool()):
        for key, got in BP(net).gradients(x, target, loss="mse").items():
            close(got, want[key])
    labels = rand(7, low=3).to(device)
    assert torch.equal(BP(net).backward(x, labels.to(torch.uint8)), BP(net).backward(x, labels))
