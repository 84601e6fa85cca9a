"""Synthetic data: its statistics, and its teachers."""

import pytest
import torch
from torch import nn

from fabook import data
from image_files import generator


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.2, 0.2), (1.0, 0.4), (1.0, 0.0)])
def test_structured_targets_have_their_covariance(alpha, beta):
    n = 100_000
    x, y = data.structured_targets(n, 9, alpha, beta, generator(), dtype=torch.float64)
    off = alpha * (1 - beta)
    expected = torch.tensor([[1, off], [off, alpha**2]], dtype=torch.float64)
    tolerance = 5 * (2 / n) ** 0.5
    assert (torch.cov(y.T) - expected).abs().max() < tolerance
    assert (torch.cov(x.T) - torch.eye(9)).abs().max() < tolerance
    assert (x.T @ y / n).abs().max() < tolerance
    again = data.structured_targets(n, 9, alpha, beta, generator(), dtype=torch.float64)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)


def test_gaussian_mixture_has_its_statistics():
    mixture = data.gaussian_mixture(7, generator(), prototypes=3, train_per_class=4000, d=16)
    x, y = mixture.x_train.double(), mixture.y_train
    assert y.bincount().tolist() == [4000] * 7
    assert y[:7].tolist() == list(range(7))
    # E|x|^2 = s^2 (1 + noise^2), the prototypes' norms being the slow part of the average.
    squares = (x**2).sum(1).mean().item()
    assert squares == pytest.approx(4 * (1 + 0.8**2), rel=5 * (2 / (16 * 21)) ** 0.5)
    still = data.gaussian_mixture(7, generator(), prototypes=3, noise=0)
    for label in range(7):
        assert len(still.x_train[still.y_train == label].unique(dim=0)) <= 3
    assert mixture.provenance["checksum"] is None
    same = data.gaussian_mixture(7, generator(), prototypes=3, train_per_class=4000, d=16)
    assert torch.equal(same.x_test, mixture.x_test)


def test_teacher_student_labels_come_from_the_teacher():
    torch_draws = generator(5)
    teacher = nn.Sequential(nn.utils.skip_init(nn.Linear, 6, 2, dtype=torch.float64), nn.Dropout())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(generator=torch_draws)
    x, y = data.teacher_student(teacher, 20_000, 6, generator())
    torch.testing.assert_close(y, teacher[0](x).detach(), rtol=0, atol=0)
    assert x.dtype == torch.float64
    assert teacher.training
    assert not y.requires_grad
    same_x, noisy = data.teacher_student(teacher, 20_000, 6, generator(), noise=0.3)
    assert torch.equal(same_x, x)
    assert (noisy - y).std().item() == pytest.approx(0.3, rel=5 / (2 * 40_000) ** 0.5)
    images, _ = data.teacher_student(nn.Identity(), 4, (3, 5, 5), generator())
    assert images.shape == (4, 3, 5, 5)


def test_associative_recall_asks_for_one_of_its_pairs():
    n, keys, values = 20_000, 5, 3
    x, y = data.associative_recall(n, generator(), pairs=4, keys=keys, values=values)
    assert x.shape == (n, 5)
    assert y.shape == (n,)
    key, value, asked = x[:, :-1] // values, x[:, :-1] % values, x[:, -1] - keys * values
    assert int(key.min()) == 0
    assert int(key.max()) == keys - 1
    assert all(len(set(row)) == 4 for row in key[:200].tolist())
    found = key == asked[:, None]
    assert torch.equal(found.sum(1), torch.ones(n, dtype=torch.long))
    assert torch.equal(value[found], y)
    # where it stands, which key and which value: all uniform
    for draws, count in ((found.long().argmax(1), 4), (asked, keys), (y, values)):
        share = draws.bincount(minlength=count) / n
        assert share.numpy() == pytest.approx(1 / count, abs=5 * (count * n) ** -0.5)
    again = data.associative_recall(n, generator(), pairs=4, keys=keys, values=values)
    assert torch.equal(again[0], x)


def test_sorted_sequences_hold_the_same_tokens():
    x, y = data.sorting(5000, generator(), length=6, tokens=4)
    assert x.shape == y.shape == (5000, 6)
    assert (y.diff(dim=1) >= 0).all()
    for token in range(4):
        assert torch.equal((x == token).sum(1), (y == token).sum(1))
        assert (x == token).double().mean().item() == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.structured_targets(0, 9, 1, 1, generator()), "n must be .*; got 0"),
        (lambda: data.structured_targets(9, 9, 1.2, 1, generator()), r"alpha .* \[0, 1\]; got 1.2"),
        (lambda: data.structured_targets(9, 9, 1, -0.1, generator()), "beta .* got -0.1"),
        (lambda: data.gaussian_mixture(1, generator()), "n_classes .* at least 2; got 1"),
        (lambda: data.gaussian_mixture(3, generator(), noise=-1), "noise .* got -1"),
        (lambda: data.teacher_student(nn.Identity(), 5, (2, 0), generator()), "shape .* got 0"),
        (lambda: data.associative_recall(5, generator(), pairs=9), "pairs .* 1 to 8; got 9"),
        (lambda: data.associative_recall(5, generator(), values=1), "values .* got 1"),
        (lambda: data.sorting(5, generator(), tokens=1), "tokens .* got 1"),
        (lambda: data.sorting(5, generator(), length=0), "length .* got 0"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
