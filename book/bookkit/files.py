"""Files that are whole or absent, the hash of their content, TOML, and where MathJax lies."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """SHA-256 of bytes, or of a value as JSON."""
    text = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(part, path)


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Wait, and say so, until no other process does the same; the lock ends with its process."""
    import filelock

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(lock)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        print(f"fabook: waiting for another {what}", file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def toml(text: str) -> dict[str, Any]:
    """What a TOML text says; a ValueError if it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return dict(tomllib.loads(text))


def mathjax() -> Path | None:
    """The folder of the MathJax that is installed here."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "static" / "mathjax"
