"""File formats of image sets: IDX, CIFAR's binary archives, prepared parts, the digits.

Every reader takes checked files and returns uint8 images (n, C, H, W) and labels (n,), training
before test. Archives are read in place, and no pickle is ever loaded.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Generator

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class DataError(RuntimeError):
    """A data file that is missing, damaged or cannot be had; the message names it.

    Example:
        >>> from fabook.data import load
        >>> load("digits", root="no/such/folder")
        Traceback (most recent call last):
        fabook.data.formats.DataError: root must name a directory that exists; got 'no/such/folder'
    """


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what numpy, zipfile and tarfile raise for damage has no end
        raise DataError(f"cannot read {path}: {type(error).__name__}: {error}") from error


def _unpacked(path: Path) -> bytes:
    """Return what a file holds, compressed by gzip or not."""
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw


def _idx(path: Path) -> np.ndarray:
    with _reading(path):
        raw = _unpacked(path)
        zero, kind, ndim = struct.unpack(">HBB", raw[:4])
        if zero != 0 or kind != 8 or ndim not in (1, 3):
            raise ValueError(f"not an IDX file of bytes, it begins with {raw[:4].hex()}")
        start = 4 + 4 * ndim
        shape = struct.unpack(f">{ndim}I", raw[4:start])
        return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _read_idx(paths: Sequence[Path]) -> Arrays:
    x_train, y_train, x_test, y_test = map(_idx, paths)
    for path, x, y in ((paths[0], x_train, y_train), (paths[2], x_test, y_test)):
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise DataError(f"cannot read {path}: images {x.shape} do not fit labels {y.shape}")
    return x_train[:, None], y_train, x_test[:, None], y_test


def _read_cifar(paths: Sequence[Path], train: Sequence[str], test: str, labels: int) -> Arrays:
    """Read the named members; a record is ``labels`` label bytes (the last counts), then RGB."""
    (path,) = paths
    parts: dict[str, np.ndarray] = {}
    with _reading(path), tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if name in (*train, test) and (stream := archive.extractfile(member)) is not None:
                records = np.frombuffer(stream.read(), np.uint8)
                parts[name] = records.reshape(-1, labels + 3 * 32 * 32)
        rows = np.concatenate([parts[name] for name in train]), parts[test]
    (x_train, y_train), (x_test, y_test) = (
        (part[:, labels:].reshape(-1, 3, 32, 32), part[:, labels - 1]) for part in rows
    )
    return x_train, y_train, x_test, y_test


def _read_prepared(paths: Sequence[Path]) -> Arrays:
    (path,) = paths
    # Opened here: np.load leaves a file open that it cannot read.
    with _reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = [archive[key] for key in ("x_train", "y_train", "x_test", "y_test")]
        for x, y in (arrays[:2], arrays[2:]):
            fits = x.shape[1:] == (32, 32, 3) and y.shape == x.shape[:1]
            if not fits or x.dtype != np.uint8 or y.dtype.kind not in "iu":
                raise ValueError(
                    "expected uint8 images (n, 32, 32, 3) and whole labels (n,); "
                    f"got {x.dtype} {x.shape} and {y.dtype} {y.shape}"
                )
    x_train, y_train, x_test, y_test = arrays
    return x_train.transpose(0, 3, 1, 2), y_train, x_test.transpose(0, 3, 1, 2), y_test


def _read_digits(paths: Sequence[Path]) -> Arrays:
    """Split the 1,797 digits by ``torch.randperm`` of a generator seeded with 0."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=Generator().manual_seed(0)).numpy()
    x, y = x.astype(np.uint8).reshape(-1, 1, 8, 8)[order], y.astype(np.uint8)[order]
    return x[:1500], y[:1500], x[1500:], y[1500:]
