"""Readers: what they read, and the wrong files that they name."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from fabook import data
from fabook.data import DataError, Remote
from image_files import cifar_archive, cifar_arrays, idx, numbers, prepared_part, tar, write


@pytest.mark.parametrize("n_classes", [10, 100])
def test_reads_binary_cifar(small, n_classes, tmp_path):
    small("good")
    dataset = data.load(f"cifar{n_classes}", dtype=torch.float64, progress=False)
    x, y = cifar_arrays(n_classes)
    assert dataset.x_train.dtype == torch.float64
    assert np.array_equal(dataset.x_train.numpy(), x[:50] / 255)
    assert np.array_equal(dataset.x_test.numpy(), x[50:] / 255)
    assert dataset.y_train.tolist() == y[:50].tolist()
    assert dataset.y_test.tolist() == y[50:].tolist()
    assert dataset.n_classes == n_classes
    assert len(list(tmp_path.rglob("*.bin"))) == 0


def registered(body, name, corpus):
    """Make ``body`` the one file of a set, with the right checksum, so that reading must judge."""
    return replace(corpus, files=(Remote(name, hashlib.sha256(body).hexdigest(), len(body), ()),))


@pytest.mark.fault("a wrong image file", "refused by its name")
@pytest.mark.parametrize(
    "body",
    [
        b"no gzip",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"\0\0\x0d\3 floats", mtime=0),
        idx(numbers(0, 5, 4, 4))[:-9],
        gzip.compress(gzip.decompress(idx(numbers(0, 5, 4, 4)))[:-1], mtime=0),
    ],
)
def test_a_wrong_idx_file_is_named(monkeypatch, tmp_path, body):
    corpus = registered(body, "a.gz", data.REGISTRY["mnist"])
    monkeypatch.setitem(data.REGISTRY, "mnist", replace(corpus, files=corpus.files * 4))
    write(tmp_path / "here", {"a.gz": body})
    with pytest.raises(DataError, match=r"cannot read .*a\.gz"):
        data.load("mnist", root=tmp_path / "here")


def linked_archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("train.bin", "test.bin"):
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.fault(
    "an archive with links, or of wrong content", "refused by its name; nothing is unpacked"
)
@pytest.mark.parametrize(
    "body",
    [
        b"no archive",
        cifar_archive(100)[:-3000],
        tar({"x/train.bin": bytes(3074)}),
        tar({"x/train.bin": bytes(3074), "x/test.bin": bytes(3073)}),
        linked_archive(),
    ],
)
def test_a_wrong_archive_is_named(monkeypatch, tmp_path, body):
    corpus = registered(body, "a.tar.gz", data.REGISTRY["cifar100"])
    monkeypatch.setitem(data.REGISTRY, "cifar100", corpus)
    write(tmp_path / "here", {"a.tar.gz": body})
    with pytest.raises(DataError, match=r"cannot read .*a\.tar\.gz"):
        data.load("cifar100", root=tmp_path / "here")


class Trap:
    """Unpickling this creates a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.fault("a pickle in place of data", "refused, and never executed")
def test_no_pickle_is_loaded(small, tmp_path):
    small("good")
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    for body in (prepared_part(y_train=trap), pickle.dumps(trap[0])):
        write(tmp_path / "here", {"cifar10-part.npz": body})
        with pytest.raises(DataError, match=r"cannot read .*cifar10-part\.npz.*allow_pickle"):
            data.load("cifar10", root=tmp_path / "here")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (prepared_part(x_test=None), "x_test is not a file in the archive"),
        (prepared_part(y_test=np.arange(4)), r"got uint8 \(5, 32, 32, 3\) and \(4,\)"),
        (prepared_part(x_test=np.zeros((5, 32, 32, 3))), "got float64"),
        (prepared_part(y_test=np.arange(6, 11)), "labels must lie below 10"),
        (prepared_part(y_test=np.arange(-1, 4)), "labels must lie below 10"),
        (prepared_part()[:-100], "zip"),
        (b"", "EOFError"),
    ],
)
def test_a_wrong_prepared_part_is_named(small, tmp_path, body, why):
    small("good")
    write(tmp_path / "here", {"cifar10-part.npz": body})
    with pytest.raises(DataError, match=why) as caught:
        data.load("cifar10", root=tmp_path / "here")
    assert "cifar10-part.npz" in str(caught.value)
