"""Data: files from a server of our own, the FABOOK_DATA layout, transforms, synthetic data."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pooch
import pytest
import torch
from torch import nn

from fabook import data
from fabook.data import Corpus, DataError, Remote

REAL = os.environ.get("FABOOK_DATA", "")


def real_names():
    """The image sets that this machine has; digits are always there."""
    return [row["name"] for row in data.available(REAL or None) if row["present"]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def no_global_randomness():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees FABOOK_DATA, a proxy or the user's cache unless it asks."""
    monkeypatch.delenv("FABOOK_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(data, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache"


# Files in the canonical formats.


def idx(array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return gzip.compress(buffer.getvalue(), mtime=0)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def numbers(seed, *shape, high=256):
    return np.random.default_rng(seed).integers(high, size=shape, dtype=np.uint8)


IDX_ARRAYS = {
    "small/train-images.gz": numbers(0, 30, 28, 28),
    "small/train-labels.gz": numbers(1, 30, high=10),
    "small/t10k-images.gz": numbers(2, 12, 28, 28),
    "small/t10k-labels.gz": numbers(3, 12, high=10),
}
IDX_FILES = {name: idx(array) for name, array in IDX_ARRAYS.items()}


def unpacked(name):
    return gzip.decompress(IDX_FILES[name])


def cifar_arrays(n_classes):
    x, y = numbers(4, 60, 3, 32, 32), numbers(5, 60, high=n_classes)
    return x, np.concatenate([np.arange(10, dtype=np.uint8), y[10:]])


@cache
def cifar_archive(n_classes):
    """Fifty training images, five batches of ten, and ten test images in the binary format."""
    x, y = cifar_arrays(n_classes)
    labels = y[:, None] if n_classes == 10 else np.stack([y // 5, y], axis=1)
    rows = np.concatenate([labels, x.reshape(60, -1)], axis=1)
    if n_classes == 100:
        members = {"train.bin": rows[:50], "test.bin": rows[50:], "fine_label_names.txt": rows[:0]}
        return tar({f"cifar-100-binary/{k}": v.tobytes() for k, v in members.items()})
    members = {f"data_batch_{i + 1}.bin": rows[10 * i : 10 * i + 10] for i in (4, 2, 0, 1, 3)}
    members = {"batches.meta.txt": rows[:0], "test_batch.bin": rows[50:], **members}
    return tar({f"cifar-10-batches-bin/{k}": v.tobytes() for k, v in members.items()})


def prepared_part(**changes):
    x, y = cifar_arrays(10)
    x = x.transpose(0, 2, 3, 1)
    arrays = {"x_train": x[:20], "y_train": y[:20], "x_test": x[50:55], "y_test": y[50:55]}
    return npz(**{key: value for key, value in (arrays | changes).items() if value is not None})


# A server of our own, with good and bad mirrors of the same files.


class Mirror(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        _, kind, path = self.path.split("/", 2)
        body = self.server.files[path]
        if kind == "error":
            self.send_error(500)
            return
        sent = {
            "good": body,
            "corrupted": body[:-20] + bytes(20),
            "recompressed": gzip.compress(gzip.decompress(body), 1),
            "truncated": body[: len(body) // 2],
            "empty": b"",
        }[kind]
        self.send_response(200)
        whole = sent if kind in ("empty", "recompressed") else body
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as httpd:
        httpd.daemon_threads, httpd.asked = False, []
        httpd.files = IDX_FILES | {f"cifar-{n}.tar.gz": cifar_archive(n) for n in (10, 100)}
        httpd.files["cifar10-part.npz"] = prepared_part()
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def remotes(server, names, mirrors):
    bases = {"dead": f"http://127.0.0.1:{closed_port()}"}
    good = f"http://127.0.0.1:{server.server_port}"
    return tuple(
        Remote(
            name,
            hashlib.sha256(server.files[name]).hexdigest(),
            len(server.files[name]),
            tuple(f"{bases.get(mirror, good)}/{mirror}/{name}" for mirror in mirrors),
            hashlib.sha256(unpacked(name)).hexdigest() if name in IDX_FILES else "",
        )
        for name in names
    )


@pytest.fixture
def small(server, monkeypatch):
    """Register small image sets whose files lie on the given mirrors."""

    def register(*mirrors):
        find = partial(remotes, server, mirrors=mirrors)
        real = dict(data.REGISTRY)
        sets = {
            "digits": real["digits"],
            "mnist": replace(real["mnist"], sizes=(30, 12), files=find(list(IDX_FILES))),
            "cifar10": replace(
                real["cifar10"],
                sizes=(50, 10),
                files=find(["cifar-10.tar.gz"]),
                prepared="cifar10-part.npz",
            ),
            "cifar100": replace(
                real["cifar100"], sizes=(50, 10), files=find(["cifar-100.tar.gz"]), prepared=""
            ),
        }
        monkeypatch.setattr(data, "REGISTRY", sets)
        return sets

    return register


def files_under(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder, files):
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


# Downloads.


def assert_is_idx(dataset):
    x_train, y_train, x_test, y_test = IDX_ARRAYS.values()
    assert dataset.x_train.dtype == torch.float32
    assert dataset.y_train.dtype == torch.int64
    assert np.array_equal((dataset.x_train * 255).round().numpy(), x_train[:, None])
    assert np.array_equal((dataset.x_test * 255).round().numpy(), x_test[:, None])
    assert np.array_equal(dataset.y_train.numpy(), y_train)
    assert np.array_equal(dataset.y_test.numpy(), y_test)


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


def test_progress_bar_and_silence(small, capfd, caplog, monkeypatch):
    small("good")
    monkeypatch.setattr(pooch.get_logger(), "handlers", [caplog.handler])
    data.load("cifar10", progress=False)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    data.load("cifar100", progress=True)
    assert "100%" in capfd.readouterr().err


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


@pytest.mark.fault("a download damaged, cut short, refused", "taken from the next mirror")
@pytest.mark.parametrize("bad", ["corrupted", "truncated", "empty", "error", "dead"])
def test_a_bad_mirror_is_passed_over(small, bad, own_cache):
    small(bad, "good")
    assert_is_idx(data.load("mnist", progress=False))
    assert files_under(own_cache) == IDX_FILES


@pytest.mark.fault("every mirror bad", "an error that names the file, and no half file")
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("corrupted", "SHA-256"),
        ("truncated", "IncompleteRead"),
        ("empty", "SHA-256"),
        ("error", "500"),
        ("dead", "ConnectionError"),
    ],
)
def test_bad_mirrors_leave_an_error_and_no_file(small, bad, why, own_cache):
    (remote,) = small(bad, "dead")["cifar10"].files
    with pytest.raises(DataError, match=r"cannot download cifar-10\.tar\.gz") as caught:
        data.load("cifar10", progress=False)
    lines = str(caught.value).splitlines()
    assert remote.urls[0] in lines[1]
    assert why in lines[1]
    assert remote.urls[1] in lines[2]
    assert files_under(own_cache) == {}


@pytest.mark.fault("a damaged file in the cache", "downloaded again")
def test_a_damaged_cache_is_replaced(small, own_cache):
    small("good")
    data.load("cifar10", progress=False)
    (own_cache / "cifar-10.tar.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match="download was not allowed"):
        data.load("cifar10", download=False)
    data.load("cifar10", progress=False)
    assert files_under(own_cache) == {"cifar-10.tar.gz": cifar_archive(10)}


def test_without_download_nothing_is_asked(small, server, own_cache):
    small("good")
    with pytest.raises(DataError, match=r"no small/train-images.gz: FABOOK_DATA is not set"):
        data.load("mnist", download=False)
    assert server.asked == []
    assert not own_cache.exists()


# FABOOK_DATA.


def test_directory_comes_first_and_is_read_at_call_time(small, server, tmp_path, monkeypatch):
    small("good")
    monkeypatch.setenv("FABOOK_DATA", str(write(tmp_path / "here", IDX_FILES)))
    assert_is_idx(data.load("mnist"))
    monkeypatch.setenv("FABOOK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="FABOOK_DATA must name a directory that exists; got"):
        data.load("mnist")
    assert_is_idx(data.load("mnist", root=tmp_path / "here"))
    assert server.asked == []
    monkeypatch.setenv("FABOOK_DATA", "")
    assert data.available()[1]["source"] == "download"


def test_a_mirror_that_compressed_anew_is_as_good(small, own_cache):
    small("recompressed")
    first = data.load("mnist", progress=False)
    assert_is_idx(first)
    assert all(body != IDX_FILES[name] for name, body in files_under(own_cache).items())
    small("dead")
    assert_is_idx(data.load("mnist", download=False))


LAYOUTS = {
    "compressed anew": lambda name: (name, gzip.compress(unpacked(name), 1)),
    "unzipped": lambda name: (name.removesuffix(".gz"), unpacked(name)),
    "unzipped, name kept": lambda name: (name, unpacked(name)),
    "dotted": lambda name: (name.replace("-idx", ".idx"), IDX_FILES[name]),
    "dotted, unzipped": lambda name: (name.replace("-idx", ".idx")[:-3], unpacked(name)),
    "torchvision": lambda name: (name.replace("mnist/", "MNIST/raw/")[:-3], unpacked(name)),
    "torchvision, zipped": lambda name: (name.replace("mnist/", "MNIST/raw/"), IDX_FILES[name]),
}


@pytest.fixture
def named(small, monkeypatch):
    """The small set with MNIST's own names of files, and what lies in a layout of them."""
    remotes = small("dead")["mnist"].files
    sizes = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    names = {r.path: f"mnist/{name}-ubyte.gz" for r, name in zip(remotes, sizes)}
    files = tuple(replace(r, path=names[r.path]) for r in remotes)
    monkeypatch.setitem(data.REGISTRY, "mnist", replace(data.REGISTRY["mnist"], files=files))
    for old, new in names.items():
        monkeypatch.setitem(IDX_FILES, new, IDX_FILES[old])
    return list(names.values())


@pytest.mark.parametrize("layout", [*LAYOUTS])
def test_mnist_in_the_layouts_of_other_tools(named, tmp_path, layout):
    write(tmp_path / "here", dict(map(LAYOUTS[layout], named)))
    (row,) = (row for row in data.available(tmp_path / "here") if row["name"] == "mnist")
    assert (row["present"], row["source"]) == (True, "FABOOK_DATA")
    dataset = data.load("mnist", root=tmp_path / "here", download=False)
    assert_is_idx(dataset)
    known = {r.path: r.sha256 for r in data.REGISTRY["mnist"].files}
    assert dataset.provenance["files"] == known  # however it is packed
    data.prepare(tmp_path / "room", ["mnist"], root=tmp_path / "here")
    assert_is_idx(data.load("mnist", root=tmp_path / "room", download=False))
    room = files_under(tmp_path / "room")
    assert room == with_sums({n: body for n, body in room.items() if n != "SHA256SUMS"})
    assert data.prepare(tmp_path / "room", ["mnist"], root=tmp_path / "here")
    assert files_under(tmp_path / "room") == room


@pytest.mark.fault("data of another content, compressed well", "named, and never used")
@pytest.mark.parametrize("layout", [*LAYOUTS])
def test_another_content_is_refused_in_every_layout(named, tmp_path, layout):
    files = dict(map(LAYOUTS[layout], named))
    wrong = next(iter(files))
    files[wrong] = gzip.compress(unpacked(named[0])[:-1] + b"\0")
    write(tmp_path / "here", files)
    (row,) = (row for row in data.available(tmp_path / "here") if row["name"] == "mnist")
    assert (row["present"], row["source"]) == (False, "FABOOK_DATA")
    with pytest.raises(DataError, match=f"{wrong} is damaged"):
        data.load("mnist", root=tmp_path / "here")


def test_a_missing_file_says_where_it_was_looked_for_and_what_is_there(named, tmp_path):
    write(tmp_path / "here", {"mnist-data/train.gz": b"x"})
    for download, message in ((False, "download was not allowed"), (True, "cannot download")):
        with pytest.raises(DataError, match=message) as caught:
            data.load("mnist", root=tmp_path / "here", download=download, progress=False)
        said = str(caught.value)
        assert f"{tmp_path / 'here'} has none of {named[0]}, {named[0][:-3]}, " in said
        assert "MNIST/raw/train-images-idx3-ubyte," in said
        assert "it has mnist-data, mnist-data/train.gz" in said


@pytest.mark.fault("a damaged file in the data folder", "named, and never used")
def test_a_damaged_file_in_the_directory_is_named(small, server, tmp_path):
    small("good")
    damaged = IDX_FILES | {"small/t10k-labels.gz": b"damaged"}
    write(tmp_path / "here", damaged)
    with pytest.raises(DataError) as caught:
        data.load("mnist", root=tmp_path / "here")
    message = str(caught.value)
    assert str(tmp_path / "here/small/t10k-labels.gz") in message
    assert hashlib.sha256(b"damaged").hexdigest() in message
    assert hashlib.sha256(IDX_FILES["small/t10k-labels.gz"]).hexdigest() in message
    assert files_under(tmp_path / "here") == damaged
    assert server.asked == []


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


def test_prepared_part_stands_in_and_says_so(small, server, tmp_path):
    small("good")
    write(tmp_path / "here", {"cifar10-part.npz": prepared_part()})
    dataset = data.load("cifar10", root=tmp_path / "here")
    x, y = cifar_arrays(10)
    assert np.array_equal(dataset.x_train.numpy(), (x[:20] / 255).astype(np.float32))
    assert dataset.y_test.tolist() == y[50:55].tolist()
    assert dataset.description == "CIFAR-10, 20 training and 5 test images"
    assert dataset.provenance["subset"]
    assert dataset.provenance["checksum"] == hashlib.sha256(prepared_part()).hexdigest()
    with pytest.raises(ValueError, match=r"n_train of cifar10-part.npz .* from 1 to 20; got 21"):
        data.load("cifar10", root=tmp_path / "here", n_train=21)
    assert server.asked == []
    write(tmp_path / "here", {"cifar-10.tar.gz": cifar_archive(10)})
    assert len(data.load("cifar10", root=tmp_path / "here").y_train) == 50


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


# Preparing a directory.


EVERYTHING = IDX_FILES | {
    "cifar-10.tar.gz": cifar_archive(10),
    "cifar-100.tar.gz": cifar_archive(100),
}


def with_sums(files):
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return files | {"SHA256SUMS": "".join(lines).encode()}


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
    out, copyfile = tmp_path / "out", data.shutil.copyfile

    def interrupted(source, target):
        if source.name == "t10k-images.gz":
            target.write_bytes(source.read_bytes()[:100])
            raise KeyboardInterrupt
        return copyfile(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(data.shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.prepare(out, progress=False)
    whole = {"small/train-images.gz", "small/train-labels.gz"}
    assert files_under(out) == {name: IDX_FILES[name] for name in whole}
    # What a killed process may leave, and what a bad disk may do.
    write(out, {"small/.t10k-images.gz.part": b"half", "small/train-labels.gz": b"damaged"})
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


# Arguments.


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
        (lambda: data.resize(torch.zeros(2, 8, 8), 4), r"shape \(2, 8, 8\)"),
        (lambda: data.resize(torch.zeros(2, 1, 8, 8), 0), "size must be .* at least 1; got 0"),
        (lambda: data.standardise(torch.ones(3)), "deviation is 0"),
        (lambda: data.corrupt_labels(torch.arange(3), 1.1, 3, generator()), r"p .* \[0, 1\]"),
        (lambda: data.flip_labels(torch.arange(3), float("nan"), 3, generator()), "got nan"),
        (lambda: data.flip_labels(torch.arange(3), 0.1, 1, generator()), "at least 2; got 1"),
        (lambda: data.corrupt_labels(torch.arange(3), 0.1, 2, generator()), "from 0 to 1"),
        (lambda: data.corrupt_labels(torch.ones(3), 0.1, 2, generator()), "must hold labels"),
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
def test_bad_arguments_are_refused_by_name(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


# Real images.


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


def test_to_moves_every_tensor():
    moved = data.load("digits").to("meta")
    tensors = (moved.x_train, moved.y_train, moved.x_test, moved.y_test)
    assert {str(t.device) for t in tensors} == {"meta"}


def test_import_is_light():
    code = "import sys, fabook.data; print([m for m in sys.argv[1:] if m in sys.modules])"
    command = [sys.executable, "-c", code, "pooch", "requests", "sklearn"]
    assert subprocess.run(command, capture_output=True, check=True).stdout.strip() == b"[]"


# Classes.


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


# Transforms.


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


# Synthetic data.


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


def test_registry_has_two_addresses_and_a_checksum_for_every_file():
    for corpus in data.REGISTRY.values():
        assert isinstance(corpus, Corpus)
        for remote in corpus.files:
            assert len(remote.urls) >= 2
            assert len(remote.sha256) == 64
            assert all(url.rsplit("/", 1)[1] == remote.path.split("/")[-1] for url in remote.urls)
