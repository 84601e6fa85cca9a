"""Readers: what they read, and the wrong files that they name."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fabook import data
from fabook.data import DataError, Remote, formats
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


RECORDS = {"train.bin": bytes(2 * 3074), "test.bin": bytes(3074)}


def archive_of(*members):
    """An archive of (name, kind, where a link leads to); files hold what `RECORDS` says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            body = RECORDS[name.rsplit("/", 1)[-1]] if kind == tarfile.REGTYPE else b""
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def tree(folder):
    """All that lies below a folder: files with what they hold, links with where they lead."""
    found = {}
    for path in folder.rglob("*"):
        body = path.read_bytes() if path.is_file() else None
        found[path] = (path.lstat().st_mode, path.is_symlink() and os.readlink(path), body)
    return found


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """Loads an archive's images, and sees that it leaves all files as they are."""
    write(tmp_path / "outside", {"train.bin": b"a secret"})
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")

    def load(body):
        corpus = registered(body, "a.tar.gz", data.REGISTRY["cifar100"])
        monkeypatch.setitem(data.REGISTRY, "cifar100", corpus)
        write(tmp_path / "here", {"a.tar.gz": body})
        before = tree(tmp_path)
        try:
            return data.load("cifar100", root=tmp_path / "here")
        finally:
            assert tree(tmp_path) == before

    return load


LINKS = [
    (tarfile.SYMTYPE, "{outside}/train.bin"),
    (tarfile.SYMTYPE, "../../outside/train.bin"),
    (tarfile.LNKTYPE, "{outside}/train.bin"),
    (tarfile.LNKTYPE, "../../outside/train.bin"),
    (tarfile.SYMTYPE, "x/train.bin"),  # itself
    (tarfile.FIFOTYPE, ""),
    (tarfile.CHRTYPE, ""),
]


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
        *LINKS,
    ],
)
def test_a_wrong_archive_is_named(archive, tmp_path, body):
    if isinstance(body, tuple):
        kind, target = body
        target = target.format(outside=tmp_path / "outside")
        body = archive_of(("x/train.bin", kind, target), ("x/test.bin", tarfile.REGTYPE, ""))
    with pytest.raises(DataError, match=r"cannot read .*a\.tar\.gz"):
        archive(body)


@pytest.mark.fault(
    "an archive whose names lead elsewhere", "read where it is; no file is made or changed"
)
@pytest.mark.parametrize("folder", ["../../outside", "{outside}", "link", "../.."])
def test_names_in_an_archive_lead_nowhere(archive, tmp_path, folder):
    folder = folder.format(outside=tmp_path / "outside")
    members = [(f"{folder}/{name}", tarfile.REGTYPE, "") for name in RECORDS]
    if folder == "link":
        members.insert(0, (folder, tarfile.SYMTYPE, str(tmp_path / "outside")))
    assert len(archive(archive_of(*members)).x_train) == 2


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
        (prepared_part(y_test=np.arange(4)), r"got uint8 \(5, 32, 32, 3\) and int64 \(4,\)"),
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


IMAGES, LABELS = numbers(0, 6, 4, 4), numbers(1, 6, high=10)
BODIES = {  # a sound file for each reader
    "mnist": idx(IMAGES),
    "mnist, unpacked": gzip.decompress(idx(IMAGES)),
    "cifar100": tar({f"x/{name}": body for name, body in RECORDS.items()}),
    "prepared": prepared_part(),
}


class Watched(type(Path())):
    """A path that notes when it is opened."""

    opened = []  # noqa: RUF012

    def __fspath__(self):
        self.opened.append(str(self))
        return super().__fspath__()


def harmed(body, cuts, inside):
    """A file with some of its bytes put in place of others, inside its packing or as it is."""
    body = gzip.decompress(body) if inside else body
    for place, length, new in cuts:
        place = place % (len(body) + 1)  # negative ones count from the end
        body = body[:place] + new + body[place + length :]
    return gzip.compress(body, 1) if inside else body


def read(what, path, labels):
    if what == "prepared":
        return formats._read_prepared([path])
    if what == "cifar100":
        return data.REGISTRY["cifar100"].read([path])
    return formats._read_idx([path, labels, path, labels])


PLACES = st.integers(-600, 600) | st.integers(0, 100_000)
CUTS = st.tuples(PLACES, st.integers(0, 40) | st.just(10**9), st.binary(max_size=40))


@pytest.mark.fault("any bytes as an image file", "refused by its name, or read as images")
@settings(
    max_examples=400, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    what=st.sampled_from([*BODIES]), cuts=st.lists(CUTS, max_size=3), inside=st.booleans(),
    noise=st.none() | st.binary(max_size=400),
)  # fmt: skip
@example(what="mnist", cuts=[], inside=False, noise=None)
@example(what="cifar100", cuts=[], inside=False, noise=None)
@example(what="prepared", cuts=[], inside=False, noise=None)
@example(what="prepared", cuts=[(8, 2, b"\x63\0")], inside=False, noise=None)
def test_any_bytes(tmp_path, what, cuts, inside, noise):
    whole, labels, path = BODIES[what], tmp_path / "labels", Watched(tmp_path / "a file")
    inside = inside and whole.startswith(b"\x1f\x8b")
    body = harmed(whole, cuts, inside) if noise is None else noise
    labels.write_bytes(idx(LABELS))
    path.write_bytes(body)
    path.opened.clear()
    try:
        arrays, said = read(what, path, labels), ""
    except DataError as error:
        arrays, said = [], str(error)
    assert path.opened
    if said:
        assert f"cannot read {path}" in said
        assert "No such file" not in said
    for x, y in (arrays[:2], arrays[2:]) if arrays else ():
        assert x.dtype == np.uint8
        assert (x.ndim, y.shape) == (4, x.shape[:1])
        assert y.dtype.kind in "iu"
    if noise is None and harmed(whole, [], inside) == body:
        sound = tmp_path / "sound"
        sound.write_bytes(whole)
        assert all(map(np.array_equal, arrays, read(what, sound, labels)))
        assert len(arrays) == 4
