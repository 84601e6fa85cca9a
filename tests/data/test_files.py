"""Files from a server of our own, from the cache and from the FABOOK_DATA layout."""

import gzip
import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace

import pooch
import pytest

from fabook import data
from fabook.data import DataError, images
from image_files import (
    IDX_FILES,
    assert_is_idx,
    cifar_archive,
    files_under,
    unpacked,
    with_sums,
    write,
)


def test_progress_bar_and_silence(small, capfd, caplog, monkeypatch):
    small("good")
    monkeypatch.setattr(pooch.get_logger(), "handlers", [caplog.handler])
    data.load("cifar10", progress=False)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    data.load("cifar100", progress=True)
    assert "100%" in capfd.readouterr().err


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


@pytest.mark.fault("a cache that cannot be written", "said in one line, with the folder")
@pytest.mark.parametrize("what", ["a file", "read-only"])
def test_an_unwritable_cache_is_named(small, server, own_cache, what):
    small("good")
    own_cache.mkdir()
    if what == "a file":
        (own_cache / "small").write_text("in the way")
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", own_cache]).returncode:
        pytest.skip("a disk of its own needs the right to mount one")
    try:
        with pytest.raises(DataError, match="cannot write into the cache") as caught:
            data.load("mnist", progress=False)
    finally:
        if what == "read-only":
            subprocess.run(["umount", "-l", own_cache], check=True)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert f"{own_cache / 'small'}: " in said
    assert "FABOOK_DATA" in said
    assert server.asked == []


CHILD = """
import json, pathlib, shutil, sys, threading, time
from dataclasses import replace
import pooch
from fabook import data
from fabook.data import Remote, files, images

cache, room, remotes = json.loads(sys.argv[1])
pooch.os_cache = lambda name: cache
remotes = tuple(Remote(**remote) for remote in remotes)
images.REGISTRY["mnist"] = replace(images.REGISTRY["mnist"], sizes=(30, 12), files=remotes)
room, copyfile = pathlib.Path(room), shutil.copyfile


def slow(source, target):  # half of it; and the rest when the other has half of it, too
    target.write_bytes(source.read_bytes()[:100])
    end = time.monotonic() + 2
    while len(list(target.parent.glob(f".{source.name}*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    copyfile(source, target)


files.shutil.copyfile = slow
data.prepare(room, ["mnist"], progress=False)
assert len(data.load("mnist", root=room, download=False).x_train) == 30
"""


@pytest.mark.fault("two processes on one cache and one folder", "both end well; whole files only")
def test_two_processes_at_once(small, server, tmp_path, own_cache):
    remotes = [vars(remote) for remote in small("good")["mnist"].files]
    server.together = threading.Barrier(2, timeout=60)  # each file is asked for by both at once
    given = json.dumps([str(own_cache), str(tmp_path / "room"), remotes])
    both = [
        subprocess.Popen([sys.executable, "-c", CHILD, given], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=300)[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert len(server.asked) == 2 * len(IDX_FILES)
    assert files_under(own_cache) == IDX_FILES
    assert files_under(tmp_path / "room") == with_sums(IDX_FILES)


def test_without_download_nothing_is_asked(small, server, own_cache):
    small("good")
    with pytest.raises(DataError, match=r"no small/train-images.gz: FABOOK_DATA is not set"):
        data.load("mnist", download=False)
    assert server.asked == []
    assert not own_cache.exists()


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
    monkeypatch.setitem(images.REGISTRY, "mnist", replace(images.REGISTRY["mnist"], files=files))
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
    known = {r.path: r.sha256 for r in images.REGISTRY["mnist"].files}
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
