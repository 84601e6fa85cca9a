"""Notebooks: those there are, those that a name stands for, and the jobs that a request becomes."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bookkit import claims, parameters
from bookkit.files import digest
from bookkit.parameters import UsageError

COMMON = ("preset", "device")  # parameters that have an option of their own
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SUFFIXES = (".md", ".ipynb")
UNREAD = (".markdown", ".qmd", ".rmd")  # notebooks of other tools, named where they are passed over


@dataclass(frozen=True)
class Notebook:
    """One notebook's source, described by its header."""

    name: str
    path: Path
    title: str
    minutes: dict[str, float | None]

    @property
    def paper(self) -> str:
        """The folder it lies in, the first one below `notebooks/`."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Job:
    """One notebook to execute, with all that its results depend on; plain values, so that it can
    be sent to another machine.
    """

    notebook: str
    source: Path
    root: str
    out: str
    preset: str
    device: str
    custom: dict[str, Any] = field(default_factory=dict)
    force: bool = False
    settings: dict[str, str] = field(default_factory=dict)  # threads and data folder

    @property
    def stem(self) -> str:
        """Name of the output files: the notebook's, with a short hash of custom parameters."""
        return f"{self.notebook}@{digest(self.custom)[:8]}" if self.custom else self.notebook

    @property
    def inside(self) -> bool:
        """Whether the notebook is one of the book's."""
        return self.source.is_relative_to(Path(self.root) / "notebooks")

    @property
    def own(self) -> bool:
        """Whether its parameters are a reader's own, or the notebook is."""
        return bool(self.custom) or not self.inside

    def output(self, kind: str, suffix: str) -> Path:
        """The path of an output: `kind` is notebooks or results."""
        return Path(self.out) / kind / self.preset / f"{self.stem}{suffix}"


# --- what there is -------------------------------------------------------------------------------


def sources(root: Path) -> list[Path]:
    """Markdown and ipynb files below `notebooks/`, at any depth, but for hidden ones and the
    `exclude_patterns` of `book/_config.yml`.
    """
    return [path for path in _files(root) if path.suffix in SUFFIXES and path.is_file()]


def _files(root: Path) -> list[Path]:
    """The `sources`, and files that look like notebooks and are none of them."""
    import yaml

    config = root / "book" / "_config.yml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    patterns = (yaml.safe_load(text) or {}).get("exclude_patterns") or []
    found = {
        path.relative_to(root).as_posix(): path
        for path in sorted((root / "notebooks").rglob("*"))
        if path.suffix.lower() in (*SUFFIXES, *UNREAD) or (path.is_symlink() and path.is_dir())
    }
    hidden = {name for name in found if any(part.startswith(".") for part in name.split("/"))}
    hidden |= {name for name in found for pattern in patterns if fnmatch(name, pattern)}
    return [path for name, path in found.items() if name not in hidden]


def notebooks(root: Path) -> list[Notebook]:
    """All notebooks of the book: the `sources` whose header names a kernel."""
    found = [_described(path, root / "notebooks") for path in _files(root)]
    return [notebook for notebook in found if isinstance(notebook, Notebook)]


def skipped(root: Path) -> list[str]:
    """A line for each file that looks like a notebook and is none."""
    found = [_described(path, root / "notebooks") for path in _files(root)]
    return [reason for reason in found if isinstance(reason, str)]


def _described(path: Path, folder: Path) -> Notebook | str:
    """A notebook, or why a file is none."""
    import yaml

    shown = f"notebooks/{path.relative_to(folder).as_posix()}"
    if path.is_dir():
        return (
            f"{shown} is a folder: {'links are not followed' if path.is_symlink() else 'no file'}"
        )
    if path.suffix not in SUFFIXES:
        return f"{shown} is not run: notebooks end in {' or '.join(SUFFIXES)}"
    if path.suffix == ".ipynb" and path.with_suffix(".md").is_file():
        return f"{shown} is not run: {path.stem}.md beside it is the source"
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".ipynb":
            content = json.loads(text)
            header, cells = content["metadata"], content["cells"]
            body = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        else:
            match = re.match(r"---\n(.*?\n)---\n(.*)", text, re.DOTALL)
            header, body = (yaml.safe_load(match[1]), match[2]) if match else ({}, text)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        return f"{shown} cannot be read: {' '.join(str(error).split())}"
    if not isinstance(header, dict) or "kernelspec" not in header:
        return f"{shown} is no notebook: its header names no kernel"
    name = path.relative_to(folder).with_suffix("").as_posix()
    heading = re.search(r"^# +(.+?) *$", body, re.MULTILINE)
    estimate = (header.get("fabook") or {}).get("minutes") or {}
    minutes = {preset: estimate.get(preset) for preset in claims.PRESETS}
    return Notebook(name, path, heading[1] if heading else name, minutes)


def listing(root: Path, out: Path) -> list[dict[str, Any]]:
    """What `fabook list --json` prints; measured minutes where there are results."""
    registry = claims.load(root).values()
    rows = []
    for notebook in notebooks(root):
        minutes = dict(notebook.minutes)
        for preset in claims.PRESETS:
            results = claims.read_results(root, out, preset, notebook.name) or {}
            minutes[preset] = results.get("minutes", minutes[preset])
        ids = [claim.id for claim in registry if claim.notebook == notebook.name]
        row = {"name": notebook.name, "paper": notebook.paper, "title": notebook.title}
        rows.append(row | {"claims": ids, "minutes": minutes})
    return rows


def select(root: Path, names: Sequence[str]) -> list[Notebook]:
    """The notebooks of these names; a paper's name stands for all of its notebooks, none for all.

    A name may be shortened to its last part or to any beginning that only one notebook has; a
    path to a Markdown or ipynb file stands for that file.

    Raises:
        UsageError: for a name that is unknown, or short for several, with the closest ones.
    """
    known = notebooks(root)
    found = list(known) if not names else []
    for name in names:
        found += _named(name, known)
    own = {book.path: book for book in found if book not in known}
    chosen = [book for book in known if book in found] + list(own.values())
    for name, count in Counter(book.name for book in own.values()).items():
        if count > 1:
            paths = " and ".join(str(path) for path, book in own.items() if book.name == name)
            raise UsageError(f"{paths} would both be stored as {name}: run them apart, with --out")
    return chosen


def one(root: Path, name: str) -> Notebook:
    """The one notebook of this name.

    Raises:
        UsageError: as `select`, and for a name that stands for several.
    """
    found = select(root, [name])
    if len(found) > 1:
        raise UsageError(f"{name!r} stands for several: {', '.join(book.name for book in found)}")
    return found[0]


def _named(name: str, known: Sequence[Notebook]) -> list[Notebook]:
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise UsageError(f"there is no notebook {name!r} in {Path.cwd()}")
        path = path.resolve()
        inside = [book for book in known if book.path.resolve() == path]
        label = f"{path.parent.name}/{path.stem}".lstrip("/")
        return inside or [Notebook(label, path, label, dict.fromkeys(claims.PRESETS))]
    for fits in (
        lambda book: name in (book.name, book.paper) or book.name.startswith(f"{name}/"),
        lambda book: name == book.name.split("/")[-1],
        lambda book: book.name.startswith(name) or book.name.split("/")[-1].startswith(name),
    ):
        found = [book for book in known if fits(book)]
        if len(found) > 1 and not all(book.name.startswith(f"{name}/") for book in found):
            several = ", ".join(book.name for book in found[:8])
            several += f" and {len(found) - 8} more" if len(found) > 8 else ""
            raise UsageError(f"{name!r} is short for several notebooks: {several}")
        if found:
            return found
    allowed = [*dict.fromkeys(b.paper for b in known), *(b.name for b in known)]
    hint = claims.suggest(name, allowed)
    raise UsageError(f"unknown notebook {name!r}{hint}; `fabook list` shows all")


def drawings(name: str, folder: Path, root: Path | None) -> Path | None:
    """The drawing functions of a notebook: `figures.py` beside it (`folder`), else the book's."""
    places = [folder] if root is None else [folder, root / "notebooks" / Path(name).parent]
    return next((p / "figures.py" for p in places if (p / "figures.py").is_file()), None)


def without_image(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that executed cells promise in their `mystnb` options and did not draw."""
    missing = []
    for cell in cells:
        promised = (cell["metadata"].get("mystnb") or {}).get("figure")
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        if promised and not any("image/" in kind for kind in kinds):
            missing.append(str(promised.get("name", "a figure")))
    return missing


def warnings(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings that executed cells wrote to stderr, a line each."""
    written = [
        "".join(output["text"])
        for cell in cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    return [line.strip() for line in "\n".join(written).splitlines() if "Warning: " in line]


# --- planning ------------------------------------------------------------------------------------


def plan(
    root: Path,
    names: Sequence[str] = (),
    *,
    preset: str = "quick",
    device: str = "auto",
    out: Path = Path("_build"),
    values: Mapping[str, Any] | None = None,
    force: bool = False,
    local: bool = True,
) -> list[Job]:
    """Check a request and return its jobs; nothing is written and no kernel starts.

    Args:
        values: parameters by name (text is converted to the type of the notebook's default).
        local: the notebooks run on this machine, so device and data folder must exist here.

    Raises:
        UsageError: for anything unknown or ill-typed, naming what is allowed.
    """
    if preset not in claims.PRESETS:
        raise UsageError(f"unknown preset {preset!r}{claims.suggest(preset, claims.PRESETS)}")
    if local or device not in claims.DEVICES:
        try:
            device = claims.resolve_device(device)
        except ValueError as error:
            raise UsageError(str(error)) from error
    claims.load(root)  # an error there is the user's to know before anything starts
    kept = settings()
    if local:
        check_data(kept)
    jobs = []
    for notebook in (selected := select(root, names)):
        # One of several that is not understood fails by itself when its turn comes.
        readable = len(selected) == 1 or _understood(notebook)
        custom = checked(notebook, values or {}, preset) if readable else {}
        inside = notebook.path.is_relative_to(root / "notebooks")
        place = str(out.resolve() if inside else out.resolve() / "own")  # apart from the book's
        where = (notebook.name, notebook.path, str(root), place)
        jobs.append(Job(*where, preset, device, custom, force, kept))
    return jobs


def _understood(notebook: Notebook) -> bool:
    try:
        parameters.of(notebook.path)
    except UsageError:
        return False
    return True


def settings() -> dict[str, str]:
    """What results depend on in the environment: threads and the data folder, as absolute path."""
    threads = os.environ.get(THREADS[0]) or "1"
    found = {name: os.environ.get(name) or threads for name in THREADS}
    if folder := os.environ.get("FABOOK_DATA"):
        found["FABOOK_DATA"] = str(Path(folder).expanduser().absolute())
    return found


def check_data(found: Mapping[str, str]) -> None:
    """Refuse a data folder that this machine does not have.

    Raises:
        UsageError: naming the folder and the machine.
    """
    import platform

    folder = found.get("FABOOK_DATA")
    if folder and not Path(folder).is_dir():
        raise UsageError(f"FABOOK_DATA names {folder}, which is no folder on {platform.node()}")


def checked(notebook: Notebook, values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Those of the values that differ from what the preset would take, in their right types.

    Raises:
        UsageError: for an unknown parameter, or a value of another type.
    """
    known, custom = parameters.of(notebook.path), {}
    for name, value in values.items():
        if name in COMMON:
            raise UsageError(f"give {name!r} as --{name}, not as a parameter")
        if name not in known:
            hint = claims.suggest(name, [n for n in known if n not in COMMON])
            raise UsageError(f"{notebook.name} has no parameter {name!r}{hint}")
        converted = parameters.convert(value, name, known[name])
        if converted != known[name].value(preset):
            custom[name] = converted
    return custom
