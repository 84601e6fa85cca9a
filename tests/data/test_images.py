"""Image sets: loading, parts of sets, preparing a directory, and the real files where they are."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fabook import data
from fabook.data import Corpus, DataError, files
from image_files import (
    EVERYTHING,
    IDX_FILES,
    assert_is_idx,
    cifar_archive,
    cifar_arrays,
    files_under,
    numbers,
    prepared_part,
    with_sums,
    write,
)

REAL = os.environ.get("FABOOK_DATA", "")


def real_names():
    """The image sets that this machine has; digits are always there."""
    return [row["name"] for row in data.available(REAL or None) if row["present"]]


def test_downloads_once_and_says_what_it_is(small, server, own_cache):
    small("good")
    dataset = data.load("mnist", progress=False)
    assert_is_idx(dataset)
    assert files_under(own_cache) == IDX_FILES
    assert dataset.description == "MNIST, all 30 training and 12 test images"
    sums = {name: hashlib.sha256(body).hexdigest() for name, body in IDX_FILES.items()}
    listing = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    assert dataset.provenance == {
        "name": "mnist",
        "title": "MNIST",
        "description": dataset.description,
        "checksum": hashlib.sha256(listing.encode()).hexdigest(),
        "files": sums,
        "n": 42,
        "n_train": 30,
        "n_test": 12,
        "subset": False,
    }
    asked = len(server.asked)
    assert_is_idx(data.load("mnist"))
    assert len(server.asked) == asked == 4


def test_prepared_part_stands_in_and_says_so(small, server, tmp_path):
    small("good")
    write(tmp_path / "here", {"cifar10-part.npz": prepared_part()})
    dataset = data.load("cifar10", root=tmp_path / "here")
    x, y = cifar_arrays(10)
    assert np.array_equal(dataset.x_train.numpy(), (x[:20] / 255).astype(np.float32))
    assert dataset.y_test.tolist() == y[50:55].tolist()
    assert dataset.x_train.is_contiguous()  # the file holds channels last
    assert dataset.x_test.is_contiguous()
    assert dataset.description == "CIFAR-10, 20 training and 5 test images"
    assert dataset.provenance["subset"]
    assert dataset.provenance["checksum"] == hashlib.sha256(prepared_part()).hexdigest()
    with pytest.raises(ValueError, match=r"n_train of cifar10-part.npz .* from 1 to 20; got 21"):
        data.load("cifar10", root=tmp_path / "here", n_train=21)
    assert server.asked == []
    write(tmp_path / "here", {"cifar-10.tar.gz": cifar_archive(10)})
    assert len(data.load("cifar10", root=tmp_path / "here").y_train) == 50


def test_prepare_makes_a_directory_that_works_offline(small, server, tmp_path, own_cache):
    sets = small("corrupted", "good")
    out = tmp_path / "class" / "data"
    paths = data.prepare(out, progress=False)
    assert files_under(out) == with_sums(EVERYTHING)
    assert [str(p.relative_to(out)) for p in paths] == list(EVERYTHING)
    asked = len(server.asked)
    times = {p: p.stat().st_mtime_ns for p in paths}
    assert data.prepare(out, progress=False) == paths
    assert {p: p.stat().st_mtime_ns for p in paths} == times
    for name in sets:
        data.load(name, root=out, download=False)
    assert {row["source"] for row in data.available(out)} == {"scikit-learn", "FABOOK_DATA"}
    assert len(server.asked) == asked


def test_prepare_copies_from_the_directory_with_its_part(small, server, tmp_path):
    small("good")
    files = IDX_FILES | {"cifar10-part.npz": prepared_part()}
    write(tmp_path / "here", files | {"unrelated.txt": b"left alone"})
    out = tmp_path / "out"
    data.prepare(out, ["mnist", "cifar10"], root=tmp_path / "here")
    assert files_under(out) == with_sums(files)
    assert server.asked == []
    data.prepare(out, ["cifar100"], progress=False)
    assert files_under(out) == with_sums(files | {"cifar-100.tar.gz": cifar_archive(100)})
    write(out, {"cifar10-part.npz": prepared_part(y_test=numbers(9, 5, high=10))})
    for _ in range(2):  # a second prepare does not list the damage as right
        with pytest.raises(DataError, match=r"cifar10-part\.npz is damaged: its SHA-256 is"):
            data.load("cifar10", root=out)
        data.prepare(out, ["mnist"], root=tmp_path / "here")


@pytest.mark.fault("`fabook data prepare` interrupted", "resumed; what was damaged is replaced")
def test_prepare_resumes_after_an_interruption(small, tmp_path, monkeypatch):
    small("good")
    out, copyfile = tmp_path / "out", files.shutil.copyfile

    def interrupted(source, target):
        if source.name == "t10k-images.gz":
            target.write_bytes(source.read_bytes()[:100])
            raise KeyboardInterrupt
        return copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.prepare(out, progress=False)
    whole = {"small/train-images.gz", "small/train-labels.gz"}
    assert files_under(out) == {name: IDX_FILES[name] for name in whole}
    # What a killed process may leave, and what a bad disk may do.
    write(out, {"small/.t10k-images.gz.0123abcd.part": b"half"})
    write(out, {"small/train-labels.gz": b"damaged"})
    data.prepare(out, progress=False)
    assert files_under(out) == with_sums(EVERYTHING)


def test_prepare_carries_what_it_can(small, tmp_path):
    small("dead")
    write(tmp_path / "here", IDX_FILES)
    with pytest.raises(DataError, match=r"cifar-10\.tar\.gz(.|\n)*cifar-100\.tar\.gz"):
        data.prepare(tmp_path / "out", root=tmp_path / "here", progress=False)
    assert files_under(tmp_path / "out") == with_sums(IDX_FILES)


def test_available_says_where_data_would_come_from(small, tmp_path, server):
    small("good")
    rows = {row["name"]: row for row in data.available()}
    assert rows["digits"]["source"] == "scikit-learn"
    assert rows["mnist"] == {
        "name": "mnist",
        "title": "MNIST",
        "source": "download",
        "present": False,
        "subset": False,
        "files": list(IDX_FILES),
        "bytes": sum(map(len, IDX_FILES.values())),
    }
    data.fetch("mnist", progress=False)
    write(tmp_path / "here", {"cifar10-part.npz": prepared_part()})
    rows = {row["name"]: row for row in data.available(tmp_path / "here")}
    assert (rows["mnist"]["source"], rows["mnist"]["present"]) == ("cache", True)
    assert rows["cifar10"]["subset"]
    assert rows["cifar10"]["files"] == ["cifar10-part.npz"]
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("minst"), "name must be one of digits, mnist, .*; got 'minst'"),
        (lambda: data.fetch("cifar"), "name must be one of .*; got 'cifar'"),
        (lambda: data.prepare("nowhere", ["mnist", "nist"]), "name must be one of .*got 'nist'"),
        (lambda: data.load("digits", n_train=0), "n_train must be .* from 1 to 1,500; got 0"),
        (lambda: data.load("mnist", n_test=10_001), "n_test must be .* to 10,000; got 10001"),
        (lambda: data.load("digits", n_train=True), "got True"),
        (lambda: data.load("digits", n_train=1.5), "got 1.5"),
        (lambda: data.load("mnist", dtype=torch.int64), "dtype must be a floating type"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", real_names())
def test_real_images(name):
    dataset = data.load(name, root=REAL or None, download=False)
    corpus = data.REGISTRY[name]
    assert len(dataset.x_train) == len(dataset.y_train) == dataset.provenance["n_train"]
    side, channels = {"digits": (8, 1), "mnist": (28, 1), "fashion-mnist": (28, 1)}.get(
        name, (32, 3)
    )
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert x.shape[1:] == (channels, side, side)
        assert (x.min(), x.max()) == (0, 1)
        assert sorted(set(y.tolist())) == list(range(corpus.n_classes))
    # Means of the whole training sets, known to three digits (of the digits: measured).
    mean = {"digits": 0.305, "mnist": 0.131, "fashion-mnist": 0.286, "cifar10": 0.474}
    assert dataset.x_train.mean().item() == pytest.approx(mean.get(name, 0.478), abs=4e-3)
    few = data.load(name, root=REAL or None, n_train=200, n_test=100, flatten=True)
    assert few.description == f"{corpus.title}, 200 training and 100 test images"
    assert torch.equal(few.x_train, dataset.x_train[:200].flatten(1))
    assert torch.equal(few.y_test, dataset.y_test[:100])
    assert few.provenance["subset"]


def test_digits_split_is_pinned():
    digits = data.load("digits")
    checksum = "637f67120525994ae2ddffc90465de88446bc1784f6c7bcfe5b3b57b6448cbcb"
    assert digits.provenance["checksum"] == checksum
    assert digits.description == "scikit-learn digits, all 1,500 training and 297 test images"


def test_import_is_light():
    code = "import sys, fabook.data; print([m for m in sys.argv[1:] if m in sys.modules])"
    command = [sys.executable, "-c", code, "pooch", "requests", "sklearn"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b"[]"


def test_registry_has_two_addresses_and_a_checksum_for_every_file():
    for corpus in data.REGISTRY.values():
        assert isinstance(corpus, Corpus)
        for remote in corpus.files:
            assert len(remote.urls) >= 2
            assert len(remote.sha256) == 64
            assert all(url.rsplit("/", 1)[1] == remote.path.split("/")[-1] for url in remote.urls)
