"""Training and test data with their provenance, and parts of them by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from .._checks import check_count


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test data, what they are in words, and where they came from.

    ``x_*`` are (n, C, H, W) images in [0, 1], or (n, d) rows; ``y_*`` are int64 labels (n,).
    ``provenance`` goes into a results file: name, title, description, checksum (of the one file,
    or of the list of checksums), files (name to SHA-256), n, n_train, n_test, subset.

    Example:
        >>> from fabook.data import load
        >>> digits = load("digits").to("cpu")
        >>> digits.x_train.shape, digits.y_test.shape, digits.n_classes
        (torch.Size([1500, 1, 8, 8]), torch.Size([297]), 10)
        >>> digits.provenance["n"], digits.provenance["subset"]
        (1797, False)
    """

    name: str
    description: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    n_classes: int
    provenance: dict[str, Any]

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data on ``device``."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def _dataset(
    name: str,
    title: str,
    tensors: Sequence[Tensor],
    n_classes: int,
    *,
    files: dict[str, str],
    subset: bool,
    what: str = "images",
) -> Dataset:
    x_train, y_train, x_test, y_test = tensors
    every = "all " if files and not subset else ""
    listing = "".join(f"{files[file]}  {file}\n" for file in sorted(files))
    provenance = {
        "name": name,
        "title": title,
        "description": f"{title}, {every}{len(y_train):,} training and {len(y_test):,} test {what}",
        "checksum": hashlib.sha256(listing.encode()).hexdigest(),
        "files": files,
        "n": len(y_train) + len(y_test),
        "n_train": len(y_train),
        "n_test": len(y_test),
        "subset": subset,
    }
    if len(files) < 2:
        provenance["checksum"] = next(iter(files.values()), None)
    words = str(provenance["description"])
    return Dataset(name, words, x_train, y_train, x_test, y_test, n_classes, provenance)


def subset(
    dataset: Dataset,
    *,
    classes: int | Sequence[int] | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    generator: Generator | None = None,
) -> Dataset:
    """Keep some classes, relabelled 0, 1, ..., and so many images of each, in their order.

    Args:
        dataset: what to choose from.
        classes: the classes to keep, or how many of the first ones; all by default.
        train_per_class: training images of each class; all by default.
        test_per_class: test images of each class; all by default.
        generator: draws the images of each class; without it, the first ones are taken.

    Raises:
        ValueError: for a class that does not exist or comes twice, or more images than there are.

    Example:
        >>> from fabook.data import load
        >>> pair = subset(load("digits"), classes=[3, 8], train_per_class=50)
        >>> pair.description
        'scikit-learn digits, 2 of 10 classes, 100 training and 57 test images'
    """
    known = range(dataset.n_classes)
    if isinstance(classes, int):
        check_count("classes", classes, most=len(known))
    kept = known if classes is None else known[:classes] if isinstance(classes, int) else classes
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(known):
        raise ValueError(f"classes must be different numbers below {len(known)}; got {list(kept)}")
    new = torch.full((len(known),), -1)
    new[list(kept)] = torch.arange(len(kept))
    tensors: list[Tensor] = []
    for what, n in (("train", train_per_class), ("test", test_per_class)):
        x, y = getattr(dataset, f"x_{what}"), getattr(dataset, f"y_{what}")
        members = [(y == label).nonzero().flatten() for label in kept]
        if n is not None:
            check_count(f"{what}_per_class", n, most=min(map(len, members)))
        if generator is not None:
            orders = [torch.randperm(len(m), generator=generator).to(m.device) for m in members]
            members = [m[order] for m, order in zip(members, orders)]
        rows = torch.cat([m[:n] for m in members]).sort().values
        tensors += [x[rows], new.to(y.device)[y[rows]]]
    title = f"{dataset.provenance['title']}, {len(kept)} of {len(known)} classes"
    files = dataset.provenance["files"]
    chosen = _dataset(dataset.name, title, tensors, len(kept), files=files, subset=True)
    return replace(chosen, provenance={**chosen.provenance, "classes": list(kept)})
