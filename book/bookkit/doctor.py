"""`fabook doctor`: whether what is installed and set fits what the book needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bookkit import claims

PURPOSES = {
    "notebook": "run a notebook in Jupyter",
    "book": "run all notebooks, build the site",
    "test": "run the tests",
    "lab": "open the sources in JupyterLab",
    "pdf": "print the site as one PDF",
    "cluster": "send runs to a Dask cluster",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
Check = dict[str, Any]


def checks(root: Path | None, out: Path) -> list[Check]:
    """Every check, as `check`, `ok`, `detail`, and whether it is `needed`."""
    return [*_software(root), *_machine(root, out)]


def _check(check: str, ok: bool, detail: str, *, needed: bool = False) -> Check:
    return {"check": check, "ok": ok, "detail": detail, "needed": needed}


def _software(root: Path | None) -> list[Check]:
    version = platform.python_version()
    fits = sys.version_info >= (3, 10)
    found = [_check("python", fits, f"{version} at {sys.executable}", needed=True)]
    for name, wrong in _wrong("").items():
        have = wrong or metadata.version(name)
        found.append(_check(name, not wrong, have, needed=True))
    for extra, purpose in PURPOSES.items():
        faults = [text for text in _wrong(extra).values() if text]
        detail = purpose if not faults else f"{'; '.join(faults)}; {_advice(extra, root)}"
        found.append(_check(f"extra {extra}", not faults, detail, needed=extra == "book"))
    return found


def _advice(extra: str, root: Path | None) -> str:
    """A command that works: fabook is installed from a clone, or was from a file."""
    if root is not None and (root / "pyproject.toml").is_file():
        return f"in {root}: pip install -e '.[{extra}]'"
    lines = [line for line, _ in _requirements(extra)]
    return "pip install " + " ".join(f"'{line}'" for line in lines)


def _requirements(extra: str) -> list[tuple[str, Any]]:
    """The requirements of an extra (of fabook itself: "") that hold on this machine."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("fabook") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        applies = marker is None or marker.evaluate({"extra": extra})
        if not applies or bool(extra) != ("extra" in str(marker)):
            continue
        if requirement.name == "fabook":  # an extra that holds another one
            found += [row for inner in sorted(requirement.extras) for row in _requirements(inner)]
        else:
            found.append((f"{requirement.name}{requirement.specifier}", requirement))
    return found


def _wrong(extra: str) -> dict[str, str]:
    """What is wrong with each package of an extra; an empty text where nothing is."""
    found = {}
    for wanted, requirement in _requirements(extra):
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found[requirement.name] = f"{requirement.name} is missing"
            continue
        fits = requirement.specifier.contains(have, prereleases=True)
        found[requirement.name] = "" if fits else f"{wanted} is needed, {have} is installed"
    return found


def _machine(root: Path | None, out: Path) -> list[Check]:
    found = []
    try:
        cuda = claims.cuda_available()
        found.append(_check("cuda", cuda, "available" if cuda else "none: device cpu is used"))
    except ImportError as error:
        found.append(_check("cuda", False, str(error)))
    try:
        root = root or claims.find_root()
        claims.load(root)
        found.append(_check("repository", True, str(root), needed=True))
    except claims.RootError as error:
        found.append(_check("repository", False, str(error), needed=True))
    except ValueError as error:
        found.append(_check("claims.toml", False, str(error), needed=True))
    folder = os.environ.get("FABOOK_DATA")
    known = folder is not None and Path(folder).expanduser().is_dir()
    detail = "not set: image data is downloaded" if not folder else f"{folder}"
    if folder and not known:
        detail += " is no folder"
    found.append(_check("FABOOK_DATA", known, detail, needed=bool(folder)))
    space = next(place for place in (out, *out.parents) if place.is_dir())
    free = shutil.disk_usage(space).free / 1e9
    found.append(_check("disk", free > 1, f"{free:.1f} GB free at {space}", needed=True))
    found.append(_kernel())
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    found.append(_check("chromium", browser is not None, browser or "none: no site tests"))
    return found


def _kernel() -> Check:
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        command = KernelSpecManager(kernel_dirs=[]).get_kernel_spec("python3").argv
    except Exception as error:  # anything wrong here means that no notebook can run
        return _check("kernel", False, f"{type(error).__name__}: {error}", needed=True)
    return _check("kernel", command[0] == sys.executable, " ".join(command[:3]), needed=True)
