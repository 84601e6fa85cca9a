"""Files with known checksums: found in a directory or in the cache, else downloaded.

A file is looked for in the directory that ``FABOOK_DATA`` names, then in pooch's cache, and then
downloaded from its mirrors in turn. Every file is checked before it is read. Of an IDX file the
content counts: it may be compressed anew or not at all, have a dotted name
(``train-images.idx3-ubyte``), or lie where torchvision puts it (``MNIST/raw``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .formats import DataError, _unpacked

TORCHVISION = {"mnist": ("MNIST/raw",), "fashion-mnist": ("FashionMNIST/raw",)}


@dataclass(frozen=True)
class Remote:
    """A file of an image set: its place in the layout, its checksum, and where to get it.

    ``content`` is the SHA-256 of what it holds when it is unpacked; empty if that is not known.

    Example:
        >>> Remote("mnist/t10k-images-idx3-ubyte.gz", "8d42...", 1_648_877, ()).places
        ['mnist/t10k-images-idx3-ubyte.gz']
        >>> from fabook.data import REGISTRY
        >>> REGISTRY["mnist"].files[2].places[-1]  # where its content is known, torchvision's too
        'MNIST/raw/t10k-images.idx3-ubyte'
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


def data_directory(root: str | Path | None = None) -> Path | None:
    """Return ``root``, or else the directory that ``FABOOK_DATA`` names now, or None.

    Raises:
        DataError: the directory named does not exist.

    Example:
        >>> str(data_directory("."))  # given, it stands in place of FABOOK_DATA
        '.'
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
    """Return the directory that downloads go to, ``pooch.os_cache("fabook")``.

    Example:
        >>> cache_directory().name
        'fabook'
    """
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
    """Return the SHA-256 of a file, computed once a process while size and time stay the same.

    Example:
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     sha256(Path(file.name))[:8]  # of nothing
        'e3b0c442'
    """
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
    _ready((cache / remote.path).parent)
    try:
        return _download(remote, cache / remote.path, progress)
    except DataError as error:
        raise DataError(f"{error}\n({place}.)") from None


def _listing(root: Path) -> str:
    """Return what a directory has, in a few words."""
    found = sorted(path.relative_to(root).as_posix() for path in root.glob("*"))
    found += sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    return ", ".join([*found[:12], *["..."] * (len(found) > 12)]) or "nothing"


def _ready(folder: Path) -> None:
    """Make a folder of the cache, and see that files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise DataError(
            f"cannot write into the cache {folder}: {error.strerror}; make it writable, or put the "
            "files into a directory that FABOOK_DATA names"
        ) from error


def _download(remote: Remote, target: Path, progress: bool) -> Path:
    """Try each address; a file is moved into place only when its content is right."""
    import pooch

    bar = progress and importlib.util.find_spec("tqdm") is not None
    headers = {"Accept-Encoding": "identity"}  # else a server may wrap, and requests unwrap, a .gz
    fetch_url = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, headers=headers)
    problems = []
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


def _copy(source: Path, target: Path, expected: str) -> Path:
    if target.is_file() and sha256(target) == expected:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _replaced(target) as part:
            shutil.copyfile(source, part)
            if (got := sha256(part)) != expected:
                raise DataError(f"{target}: the copy of {source} has SHA-256 {got}, not {expected}")
    except FileNotFoundError:
        if not (target.is_file() and sha256(target) == expected):  # else another process was first
            raise
    return target


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A name of this process's own; what is written there takes the file's place at the end.

    Whoever is done removes what other processes, killed or still at work, have for the same file.

    Raises:
        FileNotFoundError: another process was first, and has removed what was written here.
    """
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    for left in target.parent.glob(f".{target.name}.????????.part"):
        with contextlib.suppress(OSError):
            left.unlink()
