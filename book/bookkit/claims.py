"""Claims as data: the registry `book/claims.toml`, its verdicts, and the recorder notebooks use.

A claim is one sentence of a paper, or one derived from it, with checks that a machine can
decide: `quantity comparison bound`. A notebook computes the quantities and calls `Run.claim`;
the verdict is `reproduced` if every check of this preset holds, else `not reproduced`.

This module imports the standard library only; numpy and torch are imported where they are used.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGED = Path(__file__).resolve().parent / "_book"  # claims and results in a wheel
PRESETS = ("quick", "paper")
DEVICES = ("auto", "cpu", "cuda")
SOURCES = ("paper", "derived")
REPRODUCED, NOT_REPRODUCED, NOT_RUN = VERDICTS = ("reproduced", "not reproduced", "not run")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "within": lambda value, bound: bound[0] <= value <= bound[1],
}
SCHEMA = 1
GLUE_PREFIX = "application/papermill.record/"  # myst-nb stores glued values under this prefix
_CLAIM_REQUIRED = ("id", "notebook", "paper", "where", "statement", "source", "check")
_CLAIM_KEYS = (*_CLAIM_REQUIRED, "paper_value", "expected", "tried")
_PAPER_KEYS = ("id", "name", "sentence")
_CHECK_REQUIRED = ("quantity", "label", "comparison", "bound")
_CHECK_KEYS = (*_CHECK_REQUIRED, "preset")
_NAME = re.compile(r"[a-z0-9_]+/[a-z0-9_]+")
_PART = re.compile(r"[a-z0-9_]+")

_SIMPLE = (bool, int, float, str, list, tuple, dict)  # what a parameter can be
_first_start: dict[str, set[str]] = {}  # notebook -> names that were set when it first started

Bound = float | list[float]


class ClaimsError(ValueError):
    """Something is wrong in `claims.toml`; the message names the entry and what is allowed."""


class RootError(FileNotFoundError):
    """No repository of the book was found."""


def find_root(start: str | Path | None = None) -> Path:
    """Folder of the book's repository: the nearest one upwards that has `book/claims.toml`.

    The environment variable `FABOOK_ROOT` overrides the search; otherwise it begins at `start`
    (the working directory) and then at this file.

    Raises:
        RootError: if neither search finds a repository, or `FABOOK_ROOT` names none.
    """
    override = os.environ.get("FABOOK_ROOT")
    if override:
        if not (Path(override) / "book" / "claims.toml").is_file():
            raise RootError(f"FABOOK_ROOT={override!r} has no book/claims.toml")
        return Path(override).resolve()
    first = Path(start or Path.cwd()).resolve()
    for begin in (first, Path(__file__).resolve().parent):
        for folder in (begin, *begin.parents):
            if (folder / "book" / "claims.toml").is_file():
                return folder
    if (PACKAGED / "book" / "claims.toml").is_file():
        return PACKAGED
    raise RootError(
        f"no folder from {first} upwards has book/claims.toml; change into a clone of the "
        "repository, or set FABOOK_ROOT to one"
    )


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean ...?"` for a misspelt name: the three nearest, and all if they are few."""
    allowed = list(allowed)

    def nearness(other: str) -> float:
        pairs = [(name, other), (name.split("/")[-1], other.split("/")[-1])]
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    near = sorted((o for o in allowed if nearness(o) >= 0.6), key=nearness, reverse=True)[:3]
    words = " or ".join(filter(None, [", ".join(map(repr, near[:-1])), *map(repr, near[-1:])]))
    hint = f"; did you mean {words}?" if near else ""
    if len(allowed) > 8:
        return hint or f" ({len(allowed)} are known, none of them close)"
    return f"{hint} (allowed: {', '.join(allowed) or 'none'})"


def cuda_available() -> bool:
    """Whether PyTorch can use a GPU; on Linux without a GPU's device file, torch stays unloaded."""
    patterns = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
    if sys.platform == "linux" and not any(next(Path("/dev").glob(p), None) for p in patterns):
        return False
    import torch

    return torch.cuda.is_available()


def resolve_device(device: str) -> str:
    """`"cpu"` or `"cuda"` for a device name; `"auto"` takes CUDA where there is one.

    Raises:
        ValueError: for another name, or for `"cuda"` where PyTorch sees no GPU.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}{suggest(str(device), DEVICES)}")
    if device == "cpu" or (device == "auto" and not cuda_available()):
        return "cpu"
    if not cuda_available():
        raise ValueError("device 'cuda' is not available here (allowed: auto, cpu)")
    return "cuda"


@dataclass(frozen=True)
class Check:
    """One decidable part of a claim: `quantity comparison bound`."""

    quantity: str
    label: str
    comparison: str
    bounds: dict[str, Bound]  # preset -> bound; a preset without one is not checked

    def holds(self, value: float | None, preset: str) -> bool:
        """Whether the check holds; a missing, NaN or infinite value never does."""
        if value is None or not math.isfinite(value):
            return False
        return bool(COMPARISONS[self.comparison](value, self.bounds[preset]))


@dataclass(frozen=True)
class Claim:
    """One entry of `claims.toml`."""

    id: str
    notebook: str
    paper: str
    where: str
    statement: str
    source: str
    paper_value: str | float | None
    expected: dict[str, str]  # preset -> verdict
    tried: str | None
    checks: tuple[Check, ...]

    def checks_in(self, preset: str) -> list[Check]:
        """The checks that this preset decides."""
        return [check for check in self.checks if preset in check.bounds]

    def expects(self, preset: str) -> str:
        """The verdict expected in this preset (`not run` where it has no check)."""
        return self.expected[preset] if self.checks_in(preset) else NOT_RUN


def _read(root: str | Path | None) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    path = Path(root or find_root()) / "book" / "claims.toml"
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ClaimsError(f"{path}: {error}") from error


def load(root: str | Path | None = None) -> dict[str, Claim]:
    """All claims of the book by id, validated.

    Args:
        root: the repository; found by `find_root` if not given.

    Raises:
        ClaimsError: naming the entry and the allowed values.
    """
    return parse(_read(root))


def papers(root: str | Path | None = None) -> dict[str, dict[str, str]]:
    """What the registry says of each paper, by id in the book's order: its name and its sentence.

    A paper with claims but without an entry of its own goes by its id.

    Raises:
        ClaimsError: naming the entry and the allowed values.
    """
    table = _read(root)
    found: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(table.get("paper", []), start=1):
        where = f"paper {entry.get('id', f'number {number}')!r}"
        _keys(entry, where, _PAPER_KEYS, _PAPER_KEYS)
        texts = {key: _text(entry, key, where) for key in _PAPER_KEYS}
        if texts["id"] in found:
            raise ClaimsError(f"{where}: the id is used twice")
        found[texts.pop("id")] = texts
    for claim in parse(table).values():
        found.setdefault(claim.paper, {"name": claim.paper, "sentence": ""})
    return found


def parse(table: Mapping[str, Any]) -> dict[str, Claim]:
    """Validate the content of `claims.toml` and return the claims by id.

    Raises:
        ClaimsError: naming the entry and the allowed values.
    """
    _keys(table, "claims.toml", ("claim", "paper"), ())
    claims: dict[str, Claim] = {}
    for number, entry in enumerate(table.get("claim", []), start=1):
        claim = _claim(entry, f"claim {entry.get('id', f'number {number}')!r}")
        if claim.id in claims:
            raise ClaimsError(f"claim {claim.id!r}: the id is used twice")
        claims[claim.id] = claim
    return claims


def _keys(
    entry: Mapping[str, Any], where: str, allowed: Sequence[str], required: Sequence[str]
) -> None:
    for key in entry:
        if key not in allowed:
            raise ClaimsError(f"{where}: unknown key {key!r}{suggest(key, allowed)}")
    for key in required:
        if key not in entry:
            raise ClaimsError(f"{where}: key {key!r} is missing (required: {', '.join(required)})")


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise ClaimsError(f"{where}: {key} must be a non-empty string, got {value!r}")
    return value


def _choice(value: Any, key: str, where: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ClaimsError(f"{where}: unknown {key} {value!r}{suggest(str(value), allowed)}")
    return str(value)


def _claim(entry: Mapping[str, Any], where: str) -> Claim:
    _keys(entry, where, _CLAIM_KEYS, _CLAIM_REQUIRED)
    texts = {k: _text(entry, k, where) for k in _CLAIM_REQUIRED if k != "check"}
    notebook, paper = texts["notebook"], texts["paper"]
    if not _NAME.fullmatch(notebook) or notebook.split("/")[0] != paper:
        raise ClaimsError(
            f"{where}: notebook must be '{paper}/<name>' (lower case, digits, '_'), "
            f"got {notebook!r}"
        )
    prefix = notebook.replace("/", ".") + "."
    if not texts["id"].startswith(prefix) or not _PART.fullmatch(texts["id"][len(prefix) :]):
        raise ClaimsError(f"{where}: the id must be '{prefix}<name>' (lower case, digits, '_')")
    _choice(texts["source"], "source", where, SOURCES)
    expected = _expected(entry.get("expected", REPRODUCED), where)
    if NOT_REPRODUCED in expected.values() and not str(entry.get("tried", "")).strip():
        raise ClaimsError(f"{where}: 'tried' is required where 'not reproduced' is expected")
    paper_value = entry.get("paper_value")
    if isinstance(paper_value, bool) or not isinstance(paper_value, str | int | float | None):
        raise ClaimsError(f"{where}: paper_value must be a string or number, got {paper_value!r}")
    if not isinstance(entry["check"], list) or not entry["check"]:
        raise ClaimsError(f"{where}: at least one [[claim.check]] is needed")
    return Claim(
        **texts,
        paper_value=paper_value,
        expected=expected,
        tried=_text(entry, "tried", where) if "tried" in entry else None,
        checks=tuple(
            _check(check, f"{where}, check {number}")
            for number, check in enumerate(entry["check"], start=1)
        ),
    )


def _expected(value: Any, where: str) -> dict[str, str]:
    table = value if isinstance(value, Mapping) else dict.fromkeys(PRESETS, value)
    for preset in table:
        _choice(preset, "preset in expected", where, PRESETS)
    allowed = (REPRODUCED, NOT_REPRODUCED)
    return {p: _choice(table.get(p, REPRODUCED), "expected", where, allowed) for p in PRESETS}


def _check(entry: Mapping[str, Any], where: str) -> Check:
    _keys(entry, where, _CHECK_KEYS, _CHECK_REQUIRED)
    quantity = _text(entry, "quantity", where)
    if not quantity.isidentifier() or quantity in ("sd", "seeds"):
        raise ClaimsError(
            f"{where}: quantity must be a Python identifier other than sd and seeds, "
            f"got {quantity!r}"
        )
    comparison = _choice(entry["comparison"], "comparison", where, tuple(COMPARISONS))
    presets: tuple[str, ...] = PRESETS
    if "preset" in entry:
        presets = (_choice(entry["preset"], "preset", where, PRESETS),)
    bound = entry["bound"]
    table = bound if isinstance(bound, Mapping) else dict.fromkeys(presets, bound)
    if set(table) != set(presets):
        raise ClaimsError(
            f"{where}: bound needs a value for each of: {', '.join(presets)}; "
            f"got {', '.join(table) or 'none'}"
        )
    bounds = {preset: _bound(table[preset], comparison, where) for preset in presets}
    return Check(quantity, _text(entry, "label", where), comparison, bounds)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _bound(value: Any, comparison: str, where: str) -> Bound:
    if comparison == "within":
        if not (isinstance(value, list) and len(value) == 2 and all(map(_number, value))):
            raise ClaimsError(f"{where}: 'within' needs bound = [low, high], got {value!r}")
        if value[0] > value[1]:
            raise ClaimsError(f"{where}: bound [low, high] needs low <= high, got {value!r}")
        return [value[0], value[1]]
    if not _number(value):
        raise ClaimsError(f"{where}: bound must be a finite number, got {value!r}")
    return value


def judge(
    claim: Claim,
    preset: str,
    quantities: Mapping[str, float | None] | None,
    *,
    sd: float | None = None,
    seeds: int | None = None,
) -> dict[str, Any]:
    """The claim's entry in a results file: verdict, headline value and bound, and every check.

    The rounded values of the file are judged, so that the file agrees with itself.

    Args:
        quantities: quantity -> value; None if the notebook never called the claim.
        sd: spread of the headline value.
        seeds: number of seeds behind it.
    """
    checks = []
    for check in claim.checks_in(preset):
        value = round_number((quantities or {}).get(check.quantity))
        checks.append(
            {
                "quantity": check.quantity,
                "value": value,
                "comparison": check.comparison,
                "bound": check.bounds[preset],
                "holds": check.holds(value, preset),
            }
        )
    if quantities is None or not checks:
        verdict = NOT_RUN
    else:
        verdict = REPRODUCED if all(check["holds"] for check in checks) else NOT_REPRODUCED
    return {
        "id": claim.id,
        "verdict": verdict,
        "measured": checks[0]["value"] if checks else None,
        "sd": round_number(sd),
        "seeds": seeds,
        "bound": checks[0]["bound"] if checks else None,
        "checks": checks,
    }


def verdict_line(entry: Mapping[str, Any]) -> str:
    """One line of text for an entry made by `judge`.

    Example:
        >>> verdict_line({"id": "p.n.c", "verdict": "reproduced", "sd": None, "seeds": 3,
        ...     "checks": [{"quantity": "error", "value": 0.0083, "comparison": "<=",
        ...                 "bound": 0.02, "holds": True}]})
        'reproduced      p.n.c   error = 0.0083 <= 0.02   (3 seeds)'
    """
    parts = []
    for index, check in enumerate(entry["checks"]):
        value = "missing" if check["value"] is None else f"{check['value']:.4g}"
        spread = f" (sd {entry['sd']:.2g})" if index == 0 and entry["sd"] is not None else ""
        relation = check["comparison"] if check["holds"] else f"fails {check['comparison']}"
        parts.append(f"{check['quantity']} = {value}{spread} {relation} {_show(check['bound'])}")
    if not parts:
        parts = ["not checked in this preset"]
    elif entry["verdict"] == NOT_RUN:
        parts = ["the notebook did not judge it"]
    seeds = entry["seeds"]
    tail = f"   ({seeds} seed{'s' if seeds != 1 else ''})" if seeds is not None else ""
    return f"{entry['verdict']:<16}{entry['id']}   {'; '.join(parts)}{tail}"


def _show(bound: Bound) -> str:
    return f"[{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, list) else f"{bound:g}"


def unexpected(claims: Mapping[str, Claim], results: Mapping[str, Any]) -> list[str]:
    """A line for each claim of a results file whose verdict differs from the expected one."""
    lines = []
    for entry in results["claims"]:
        expected = claims[entry["id"]].expects(results["preset"])
        if entry["verdict"] != expected:
            lines.append(f"{verdict_line(entry)}   (expected: {expected})")
    return lines


def round_number(value: Any) -> Any:
    """A JSON number with six significant digits; NaN, infinity and None become None."""
    if value is None or isinstance(value, bool | int):
        return value
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _array(value: Any) -> Any:
    """Any tensor, array, list or scalar as a numpy array (floats in double precision)."""
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        value = [_array(item) for item in value]
    array = np.asarray(value)
    if array.dtype == object:
        array = array.astype(float)  # None becomes NaN; anything else than numbers raises
    if array.dtype.kind not in "biufU":
        raise TypeError(f"cannot be stored as JSON: dtype {array.dtype}")
    return array.astype(float) if array.dtype.kind == "f" else array


def _encode(value: Any, where: str) -> Any:
    """JSON form: six significant digits, NaN as null; infinity is refused."""
    import numpy as np

    try:
        array = _array(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if array.dtype.kind != "f":
        return array.tolist()
    if np.isinf(array).any():
        raise ValueError(f"{where}: holds an infinity; record NaN where a run diverged")
    rounded = np.array([round_number(x) for x in array.ravel().tolist()], dtype=object)
    return rounded.reshape(array.shape).tolist()


def decode(data: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` part of a results file with numpy arrays for lists, and NaN for null."""
    return {
        label: {
            "dims": list(table["dims"]),
            "arrays": {
                name: math.nan
                if value is None
                else _array(value)
                if isinstance(value, list)
                else value
                for name, value in table["arrays"].items()
            },
        }
        for label, table in data.items()
    }


def _check_dims(label: str, dims: Sequence[str], arrays: Mapping[str, Any]) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        if array.ndim > len(dims) or (name in dims and array.ndim != 1):
            raise ValueError(
                f"{label}.{name}: shape {array.shape} does not fit dims {list(dims)} "
                "(a coordinate has one dimension, other arrays at most all of them)"
            )
        axes = (name,) if name in dims else tuple(dims) if array.ndim == len(dims) else ()
        for axis, size in zip(axes, array.shape, strict=False):
            known, first = sizes.setdefault(axis, (size, name))
            if known != size:
                raise ValueError(
                    f"{label}.{name}: {size} values along {axis!r}, but {first} has {known}"
                )


def start(notebook: str, values: Mapping[str, Any] | None = None) -> Run:
    """Begin a notebook's record: `run = bookkit.start("paper/notebook", globals())`.

    Args:
        notebook: its name, such as `"refinetti2021/online_dynamics"`.
        values: the notebook's variables; `preset`, `seed` and `device` are read from them.

    Raises:
        ValueError: for an unknown notebook or preset, a seed that is no integer, or a device
            that is unknown or missing.
    """
    values = values or {}
    preset, seed = values.get("preset", "quick"), values.get("seed", 0)
    device = values.get("device", "auto")
    root = find_root()
    simple = {k: v for k, v in values.items() if isinstance(v, _SIMPLE)}
    first = _first_start.setdefault(notebook, set(simple))  # a cell that is run again sees more
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}{suggest(str(preset), PRESETS)}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    folder, registered = root / "notebooks", {claim.notebook for claim in load(root).values()}
    own = any(Path(f"{notebook.split('/')[-1]}{suffix}").is_file() for suffix in (".md", ".ipynb"))
    if not (folder / f"{notebook}.md").is_file() and notebook not in registered and not own:
        names = {str(p.relative_to(folder).with_suffix("")) for p in folder.glob("*/*.md")}
        raise ValueError(f"unknown notebook {notebook!r}{suggest(notebook, names | registered)}")
    given = {name: value for name, value in simple.items() if name in first}
    return Run(notebook, preset, seed, resolve_device(device), root, given)


class Run:
    """What one execution of a notebook records; made by `start`.

    Under `fabook run` a label, claim or glued name may be used once. At the prompt a cell may be
    run again: the later record replaces the earlier one.
    """

    def __init__(
        self,
        notebook: str,
        preset: str,
        seed: int,
        device: str,
        root: Path,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.notebook = notebook
        self._given = dict(given or {})
        self.preset = preset
        self.seed = seed
        self.device_name = device
        self._root = root
        registry = load(root)
        self._claims = {c.id: c for c in registry.values() if c.notebook == notebook}
        self._judged: dict[str, dict[str, Any]] = {}
        self._data: dict[str, Any] = {}
        self._glued: set[str] = set()
        self._datasets: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Run({self.notebook!r}, preset={self.preset!r}, seed={self.seed})"

    @property
    def device(self) -> torch.device:
        """The device to compute on."""
        import torch

        return torch.device(self.device_name)

    @property
    def data(self) -> dict[str, Any]:
        """What was recorded, exactly as the results file holds it, with lists as numpy arrays."""
        return decode(self._data)

    def sizes(self, *, quick: Mapping[str, Any], paper: Mapping[str, Any]) -> SimpleNamespace:
        """The sizes of this preset, such as `run.sizes(quick=dict(n=50), paper=dict(n=500)).n`.

        Each is a parameter too: a variable of its name that was set before `start` and is not
        None takes the place of the preset's value.

        Raises:
            ValueError: if a size is given for one preset only, or one that was set has another
                type than the preset's.
        """
        from bookkit import parameters

        if set(quick) != set(paper):
            odd = sorted(set(quick) ^ set(paper))
            raise ValueError(f"sizes: {', '.join(odd)} given for one preset only")
        sizes = dict(quick if self.preset == "quick" else paper)
        for name in sizes:
            if self._given.get(name) is not None:
                known = parameters.Parameter(
                    None, presets=dict(quick=quick[name], paper=paper[name])
                )
                sizes[name] = parameters.convert(self._given[name], name, known)
        return SimpleNamespace(**sizes)

    def _once(self, kind: str, name: str, seen: Iterable[str]) -> None:
        if name in seen and os.environ.get("FABOOK_RESULT_FILE"):
            raise ValueError(f"{kind} {name!r} was given twice in {self.notebook}")

    def record(self, label: str, *, dims: Sequence[str] = (), **arrays: Any) -> None:
        """Store labelled arrays in the results file; figures are drawn from `data` alone.

        Numbers keep six significant digits; NaN is stored as null; an infinity is refused.

        Args:
            label: name of the table.
            dims: names of the axes; an array with such a name is that axis's coordinate.
            **arrays: tensors, arrays, lists, numbers or strings with at most `len(dims)` axes.

        Raises:
            ValueError: for arrays that disagree with `dims`, are ragged or hold an infinity.
        """
        self._once("record", label, self._data)
        if isinstance(dims, str):
            raise ValueError(f"{label}: dims must be a list of names, got {dims!r}")
        encoded = {name: _encode(value, f"{label}.{name}") for name, value in arrays.items()}
        _check_dims(label, dims, {name: _array(value) for name, value in arrays.items()})
        self._data[label] = {"dims": list(dims), "arrays": encoded}

    def uses(self, dataset: Any) -> None:
        """Note a dataset's provenance: a mapping or dataclass with `name`, `checksum` and `n`."""
        is_instance = is_dataclass(dataset) and not isinstance(dataset, type)
        info = dict(asdict(dataset) if is_instance else dataset)
        for key in ("name", "checksum", "n"):
            if key not in info:
                raise ValueError(f"dataset provenance lacks {key!r}: got {', '.join(info)}")
        info = {k: v for k, v in info.items() if isinstance(v, str | int | float | None)}
        if info not in self._datasets:
            self._datasets.append(info)

    def claim(self, id: str, *, sd: Any = None, seeds: int | None = None, **quantities: Any) -> str:
        """Judge a claim by measured quantities, print its verdict line and return the verdict.

        Args:
            id: a claim of this notebook in `claims.toml`.
            sd: spread of the headline (first) quantity.
            seeds: number of seeds behind it.
            **quantities: numbers (or 0-d tensors) by the names that the claim's checks use.

        Raises:
            ValueError: for an unknown id, or a quantity that no check of the claim uses.
        """
        if id not in self._claims:
            raise ValueError(f"unknown claim {id!r} of {self.notebook}{suggest(id, self._claims)}")
        self._once("claim", id, self._judged)
        claim = self._claims[id]
        allowed = list(dict.fromkeys(check.quantity for check in claim.checks))
        for name in quantities:
            if name not in allowed:
                raise ValueError(f"claim {id!r} does not check {name!r}{suggest(name, allowed)}")
        values = {k: None if v is None else float(v) for k, v in quantities.items()}
        spread = None if sd is None else float(sd)
        self._judged[id] = judge(claim, self.preset, values, sd=spread, seeds=seeds)
        print(verdict_line(self._judged[id]))
        return str(self._judged[id]["verdict"])

    def glue(self, name: str, text: Any) -> None:
        """Store text (or a number) for the prose: ``{glue:text}`name` `` in the same page.

        The output is invisible in the page; in plain Python nothing is shown.
        """
        self._once("glue", name, self._glued)
        self._glued.add(name)
        ipython = sys.modules.get("IPython")
        if ipython is None or ipython.get_ipython() is None:
            return
        ipython.display.display(
            {f"{GLUE_PREFIX}text/plain": repr(str(text))},  # readers evaluate: "3,200" is a tuple
            raw=True,
            metadata={"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}},
        )

    def published(self, variant: str = "") -> dict[str, Any] | None:
        """The committed data of the paper preset, shaped like `data`; None if there is none.

        None in the paper preset too: there, this run's own data takes its place. A variant is a
        larger run of the paper preset with other parameters, committed as `<notebook>@<variant>`;
        it is there in every preset.
        """
        path = published_path(self._root, self.notebook, variant)
        if (self.preset == "paper" and not variant) or not path.is_file():
            return None
        return decode(json.loads(path.read_text(encoding="utf-8"))["data"])

    def results(self) -> dict[str, Any]:
        """The raw results: what `save` writes and `fabook run` completes with provenance."""
        entries = [
            self._judged.get(id) or judge(claim, self.preset, None)
            for id, claim in self._claims.items()
        ]
        return {
            "schema": SCHEMA,
            "notebook": self.notebook,
            "preset": self.preset,
            "seed": self.seed,
            "device": self.device_name,
            "claims": entries,
            "data": self._data,
            "datasets": self._datasets,
        }

    def save(self) -> None:
        """Finish: report claims never judged; under `fabook run`, hand over the raw results."""
        for id, claim in self._claims.items():
            if id not in self._judged:
                print(verdict_line(judge(claim, self.preset, None)))
        target = os.environ.get("FABOOK_RESULT_FILE")
        if target:
            Path(f"{target}.part").write_text(
                json.dumps(self.results(), allow_nan=False), encoding="utf-8"
            )
            os.replace(f"{target}.part", target)


def published_path(root: Path, notebook: str, variant: str = "") -> Path:
    """Where the committed results of a notebook's paper preset, or of a variant of it, lie."""
    name = f"{notebook}@{variant}" if variant else notebook
    return root / "book" / "results" / "paper" / f"{name}.json"


def read_results(root: Path, out: Path, preset: str, notebook: str) -> dict[str, Any] | None:
    """The results of a notebook: from `out`, else (paper preset) the committed ones, else None."""
    paths = [out / "results" / preset / f"{notebook}.json"]
    if preset == "paper":
        paths.append(published_path(root, notebook))
    for path in paths:
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(results, dict) and results.get("schema") == SCHEMA:
            return results
    return None


def scorecard(root: Path, out: Path, presets: Sequence[str] = PRESETS) -> list[dict[str, Any]]:
    """One entry for every claim and preset, from the results files alone.

    The keys are those of `fabook claims --json`; a claim without results is `not run`.
    """
    rows = []
    claims = load(root).values()
    for preset in presets:
        found = {name: read_results(root, out, preset, name) for name in _notebooks(claims)}
        for claim in claims:
            results = found[claim.notebook] or {}
            entries = {entry["id"]: entry for entry in results.get("claims", [])}
            entry = entries.get(claim.id) or judge(claim, preset, None)
            ran = claim.id in entries
            rows.append(
                {
                    key: getattr(claim, key)
                    for key in ("id", "paper", "where", "statement", "source", "paper_value")
                }
                | {key: entry[key] for key in ("measured", "sd", "seeds", "bound", "verdict")}
                | {"preset": preset}
                | {
                    key: results.get(key) if ran else None
                    for key in ("device", "minutes", "date", "versions")
                }
                | {"data": results.get("datasets", []) if ran else []}
            )
    return rows


def _notebooks(claims: Iterable[Claim]) -> list[str]:
    return list(dict.fromkeys(claim.notebook for claim in claims))
