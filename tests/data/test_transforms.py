"""Transforms: size, scale, label noise."""

import pytest
import torch

from fabook import data
from image_files import generator


def test_resize_averages_locally():
    x = torch.rand(3, 2, 28, 28, generator=generator(), dtype=torch.float64)
    assert torch.equal(data.resize(x, 28), x)
    small = data.resize(x, 14)
    # Halving: the triangle of width four over a row weighs its pixels (1, 3, 3, 1)/8.
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    patch = x[:, :, 9:13, 3:7]
    expected = torch.einsum("ncij,i,j->nc", patch, weights, weights)
    torch.testing.assert_close(small[:, :, 5, 2], expected, rtol=0, atol=1e-12)
    assert 0 <= small.min() <= small.max() <= 1
    constant = torch.full((1, 1, 28, 28), 0.3)
    torch.testing.assert_close(data.resize(constant, 9), torch.full((1, 1, 9, 9), 0.3))


def test_standardise_uses_training_statistics_only():
    train = torch.rand(50, 3, 4, 4, generator=generator(), dtype=torch.float64) * 5 + 2
    test = torch.rand(20, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    a, b = data.standardise(train, test)
    assert abs(a.mean()) < 1e-12
    assert abs(a.std(correction=0) - 1) < 1e-12
    torch.testing.assert_close(b * train.std(correction=0) + train.mean(), test)
    assert torch.equal(a, data.standardise(train))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_label_noise_has_the_documented_rate(p, n_classes):
    n = 40_000
    y = torch.arange(n) % n_classes
    before = y.clone()
    for noisy, rate in (
        (data.corrupt_labels(y, p, n_classes, generator()), p * (1 - 1 / n_classes)),
        (data.flip_labels(y, p, n_classes, generator()), p),
    ):
        changed = noisy != y
        sd = (rate * (1 - rate) / n) ** 0.5
        assert changed.double().mean().item() == pytest.approx(rate, abs=5 * sd)
        if rate > 0:
            counts = ((noisy - y) % n_classes)[changed].bincount(minlength=n_classes)[1:]
            share = 1 / (n_classes - 1)
            spread = (share * (1 - share) / changed.sum().item()) ** 0.5
            assert (counts / changed.sum() - share).abs().max() <= 5 * spread
        assert noisy.dtype == torch.int64
    assert torch.equal(y, before)


def test_label_noise_is_determined_and_nested():
    y = torch.arange(1000) % 10
    low, high = (data.corrupt_labels(y, p, 10, generator(3)) for p in (0.2, 0.6))
    assert torch.equal(low, data.corrupt_labels(y, 0.2, 10, generator(3)))
    assert torch.equal(high[low != y], low[low != y])
    ints = data.flip_labels(y.int(), 0.5, 10, generator())
    assert ints.dtype == torch.int32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.resize(torch.zeros(2, 8, 8), 4), r"shape \(2, 8, 8\)"),
        (lambda: data.resize(torch.zeros(2, 1, 8, 8), 0), "size must be .* at least 1; got 0"),
        (lambda: data.standardise(torch.ones(3)), "deviation is 0"),
        (lambda: data.corrupt_labels(torch.arange(3), 1.1, 3, generator()), r"p .* \[0, 1\]"),
        (lambda: data.flip_labels(torch.arange(3), float("nan"), 3, generator()), "got nan"),
        (lambda: data.flip_labels(torch.arange(3), 0.1, 1, generator()), "at least 2; got 1"),
        (lambda: data.corrupt_labels(torch.arange(3), 0.1, 2, generator()), "from 0 to 1"),
        (lambda: data.corrupt_labels(torch.ones(3), 0.1, 2, generator()), "must hold labels"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
