"""Data sets: to a device, and parts of them by class."""

import pytest
import torch

from fabook import data
from image_files import generator


def test_to_moves_every_tensor():
    moved = data.load("digits").to("meta")
    tensors = (moved.x_train, moved.y_train, moved.x_test, moved.y_test)
    assert {str(t.device) for t in tensors} == {"meta"}


def test_subset_keeps_balanced_relabelled_classes():
    digits = data.load("digits")
    few = data.subset(digits, classes=[7, 2], train_per_class=30, test_per_class=10)
    assert few.y_train.bincount().tolist() == [30, 30]
    assert few.y_test.bincount().tolist() == [10, 10]
    assert few.n_classes == 2
    rows = [i for i, y in enumerate(digits.y_train.tolist()) if y == 7][:30]
    assert torch.equal(few.x_train[few.y_train == 0], digits.x_train[rows])
    assert few.provenance["classes"] == [7, 2]
    assert few.provenance["n_train"] == 60
    assert few.description == "scikit-learn digits, 2 of 10 classes, 60 training and 20 test images"
    assert data.subset(digits, classes=4).provenance["classes"] == [0, 1, 2, 3]
    assert torch.equal(data.subset(digits).x_train, digits.x_train)


def test_subset_draws_from_its_generator():
    digits = data.load("digits")
    a, b, c = (data.subset(digits, train_per_class=9, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(a.x_train, b.x_train)
    assert not torch.equal(a.x_train, c.x_train)
    assert a.y_train.bincount().tolist() == [9] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, "different numbers below 10; got"),
        ({"classes": [1, 1]}, r"got \[1, 1\]"),
        ({"classes": [10]}, r"got \[10\]"),
        ({"classes": [-1]}, r"got \[-1\]"),
        ({"classes": 11}, "classes must be a whole number from 1 to 10; got 11"),
        ({"train_per_class": 1000}, "train_per_class must be .*; got 1000"),
        ({"test_per_class": 0}, "test_per_class must be .*; got 0"),
    ],
)
def test_subset_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.subset(data.load("digits"), **arguments)
