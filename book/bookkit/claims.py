"""Claims as data: the registry `book/claims.toml` and its verdicts.

A claim is one sentence of a paper, or one derived from it, with checks that a machine can
decide: `quantity comparison bound`. A notebook computes the quantities and calls `Run.claim`.
The claim is `not reproduced` if one of its checks fails, `reproduced` if all hold, and `undecided`
if the interval of one contains its bound: more seeds are needed then. What the preset does not
check is `not run`.

This module needs the standard library only; numpy and scipy are imported where they are used.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkit.files import digest, toml

PACKAGED = Path(__file__).resolve().parent / "_book"  # claims and results in a wheel
PRESETS = ("quick", "paper")
DEVICES = ("auto", "cpu", "cuda")
SOURCES = ("paper", "derived")
REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = (
    "reproduced",
    "not reproduced",
    "undecided",
    "not run",
)
STATISTICS = ("mean", "median", "fraction", "paired difference")  # see `bookkit.judging`
OWNERS = ("paper", "ours")
KEPT = 1_000  # up to so many seeds, a results file keeps the value of each
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "within": lambda value, bound: bound[0] <= value <= bound[1],
}
SCHEMA = 2
_CLAIM_REQUIRED = ("id", "notebook", "paper", "where", "statement", "source", "check")
_CLAIM_KEYS = (*_CLAIM_REQUIRED, "paper_value", "expected", "tried", "changed_after_run")
_PAPER_KEYS = ("id", "name", "sentence")
_CHECK_REQUIRED = ("quantity", "label", "comparison", "bound")
_CHECK_KEYS = (*_CHECK_REQUIRED, "preset", "statistic", "whose")
_SCORED = ("measured", "low", "high", "sd", "seeds", "bound", "verdict")
_NAME = re.compile(r"[a-z0-9_]+/[a-z0-9_]+")
_PART = re.compile(r"[a-z0-9_]+")

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
    """One decidable part of a claim: `quantity comparison bound`.

    With a statistic, the quantity has one value for each seed, and the check is decided by the
    95 % interval of that statistic; without one, it is one number.
    """

    quantity: str
    label: str
    comparison: str
    bounds: dict[str, Bound]  # preset -> bound; a preset without one is not checked
    statistic: str | None = None
    whose: str = "ours"  # the bound: the paper's, from its statement or its numbers, or ours

    @property
    def owner(self) -> str:
        """Whose bound it is, in words."""
        return "the paper's statement" if self.whose == "paper" else "a bound of ours"

    def decide(self, value: Any, preset: str) -> dict[str, Any]:
        """The check's entry in a results file; `holds` is None where it is undecided.

        A missing, NaN or infinite value never holds. Rounded values are judged, so that the file
        agrees with itself.

        Raises:
            ValueError: for one value where there should be one for each seed, or the reverse.
        """
        bound = self.bounds[preset]
        entry: dict[str, Any] = {"quantity": self.quantity, "value": None}
        if self.statistic is None:
            if isinstance(value, list):
                raise ValueError(
                    f"{self.quantity} must be one number, got {len(value)}: its check names no "
                    f"statistic (allowed: {', '.join(STATISTICS)})"
                )
            entry["value"] = round_number(value)
            known = entry["value"] is not None and math.isfinite(entry["value"])
            holds: bool | None = known and bool(COMPARISONS[self.comparison](entry["value"], bound))
        else:
            found, holds = self._interval(value, bound)
            entry |= {"statistic": self.statistic} | found
        return entry | {"comparison": self.comparison, "bound": bound, "holds": holds}

    def _interval(self, value: Any, bound: Bound) -> tuple[dict[str, Any], bool | None]:
        from bookkit import judging

        if value is None:
            return {}, False
        if not isinstance(value, list):
            raise ValueError(
                f"{self.quantity} needs one value for each seed (its check's statistic is "
                f"{self.statistic!r}), got {value!r}"
            )
        values = [_rounded(one) for one in value]
        found = judging.interval(_plain(values), str(self.statistic))
        estimate, low, high = (float(f"{number:.6g}") for number in found[:3])
        found = judging.Interval(estimate, low, high, found.n)
        return {
            "value": round_number(found.estimate),
            "low": round_number(found.low),
            "high": round_number(found.high),
            "seeds": found.n,
            "values": values if found.n <= KEPT else None,
        }, judging.decides(found, self.comparison, bound)


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else round_number(value)


def _plain(values: Any) -> Any:
    """The values with NaN in the place of null."""
    if isinstance(values, list):
        return [_plain(one) for one in values]
    return math.nan if values is None else values


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
    changed_after_run: str | None = None  # why, if a check was changed after the run it judges

    def checks_in(self, preset: str) -> list[Check]:
        """The checks that this preset decides."""
        return [check for check in self.checks if preset in check.bounds]

    def expects(self, preset: str) -> str:
        """The verdict expected in this preset (`not run` where it has no check)."""
        return self.expected[preset] if self.checks_in(preset) else NOT_RUN

    def registered(self, preset: str) -> str:
        """A hash of what decides the claim in this preset: the same as long as nothing does."""
        checks = [
            [check.quantity, check.comparison, check.bounds[preset], check.statistic]
            for check in self.checks_in(preset)
        ]
        return digest(checks)[:16]


def _read(root: str | Path | None) -> tuple[Path, str]:
    path = Path(root or find_root()) / "book" / "claims.toml"
    return path, path.read_text(encoding="utf-8")


def _table(path: Path, text: str) -> dict[str, Any]:
    try:
        return toml(text)
    except ValueError as error:
        raise ClaimsError(f"{path}: {error}") from error


@functools.lru_cache(maxsize=8)
def _registry(path: Path, text: str) -> dict[str, Claim]:
    return parse(_table(path, text))


def load(root: str | Path | None = None) -> dict[str, Claim]:
    """All claims of the book by id, validated.

    Args:
        root: the repository; found by `find_root` if not given.

    Raises:
        ClaimsError: naming the entry and the allowed values.
    """
    return dict(_registry(*_read(root)))


def papers(root: str | Path | None = None) -> dict[str, dict[str, str]]:
    """What the registry says of each paper, by id in the book's order: its name and its sentence.

    A paper with claims but without an entry of its own goes by its id.

    Raises:
        ClaimsError: naming the entry and the allowed values.
    """
    table = _table(*_read(root))
    found: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(_entries(table, "paper"), start=1):
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
    for number, entry in enumerate(_entries(table, "claim"), start=1):
        claim = _claim(entry, f"claim {entry.get('id', f'number {number}')!r}")
        if claim.id in claims:
            raise ClaimsError(f"claim {claim.id!r}: the id is used twice")
        claims[claim.id] = claim
    return claims


def _entries(table: Mapping[str, Any], name: str, where: str = "claims.toml") -> list[Any]:
    found = table.get(name.split(".")[-1], [])
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise ClaimsError(f"{where}: each {name} is a table of its own, [[{name}]], got {found!r}")
    return found


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
    checks = _entries(entry, "claim.check", where)
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
    if not checks:
        raise ClaimsError(f"{where}: at least one [[claim.check]] is needed")
    return Claim(
        **texts,
        paper_value=paper_value,
        expected=expected,
        tried=_text(entry, "tried", where) if "tried" in entry else None,
        checks=tuple(
            _check(check, f"{where}, check {number}")
            for number, check in enumerate(checks, start=1)
        ),
        changed_after_run=_text(entry, "changed_after_run", where)
        if "changed_after_run" in entry
        else None,
    )


def _expected(value: Any, where: str) -> dict[str, str]:
    table = value if isinstance(value, Mapping) else dict.fromkeys(PRESETS, value)
    for preset in table:
        _choice(preset, "preset in expected", where, PRESETS)
    allowed = (REPRODUCED, NOT_REPRODUCED, UNDECIDED)
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
    statistic = entry.get("statistic")
    if statistic is not None:
        _choice(statistic, "statistic", where, STATISTICS)
    whose = _choice(entry.get("whose", "ours"), "whose", where, OWNERS)
    return Check(quantity, _text(entry, "label", where), comparison, bounds, statistic, whose)


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
    quantities: Mapping[str, Any] | None,
    *,
    sd: float | None = None,
    seeds: int | None = None,
) -> dict[str, Any]:
    """The claim's entry in a results file: verdict, headline value and bound, and every check.

    Args:
        quantities: quantity -> value, or list of one value for each seed; None if the notebook
            never called the claim.
        sd: spread of the headline value, where its check names no statistic.
        seeds: number of seeds behind it, likewise.
    """
    try:
        checks = [
            check.decide((quantities or {}).get(check.quantity), preset)
            for check in claim.checks_in(preset)
        ]
    except ValueError as error:
        raise ValueError(f"claim {claim.id!r}: {error}") from error
    held = [check["holds"] for check in checks]
    if quantities is None or not checks:
        verdict = NOT_RUN
    elif False in held:
        verdict = NOT_REPRODUCED
    else:
        verdict = UNDECIDED if None in held else REPRODUCED
    first = checks[0] if checks else {}
    return {
        "id": claim.id,
        "verdict": verdict,
        "measured": first.get("value"),
        "low": first.get("low"),
        "high": first.get("high"),
        "sd": round_number(sd),
        "seeds": first.get("seeds", seeds),
        "bound": first.get("bound"),
        "registered": claim.registered(preset),
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
        spread = f" (sd {entry['sd']:.2g})" if index == 0 and entry["sd"] is not None else ""
        relation = {True: "", False: "fails ", None: "undecided "}[check["holds"]]
        parts.append(
            f"{check['quantity']} = {shown_value(check)}{spread} "
            f"{relation}{check['comparison']} {_show(check['bound'])}"
        )
    if not parts:
        parts = ["not checked in this preset"]
    elif entry["verdict"] == NOT_RUN:
        parts = ["the notebook did not judge it"]
    seeds = entry["seeds"]
    tail = f"   ({seeds} seed{'s' if seeds != 1 else ''})" if seeds is not None else ""
    return f"{entry['verdict']:<16}{entry['id']}   {'; '.join(parts)}{tail}"


def shown_value(check: Mapping[str, Any]) -> str:
    """A check's value as text, with the interval of its statistic where it has one.

    Example:
        >>> shown_value({"value": 0.52, "low": 0.48, "high": 0.56, "statistic": "mean"})
        '0.52 [0.48, 0.56]'
    """
    if check["value"] is None:
        return "missing"
    value = f"{check['value']:.4g}"
    if check.get("statistic") is None:
        return value
    low, high = (check[end] for end in ("low", "high"))
    least, most = ends(check) or (0, 1)
    if least == most:
        return f"{value} (the same for all {check['seeds']} seeds)"
    return value if low is None or high is None else f"{value} [{low:.3g}, {high:.3g}]"


def ends(check: Mapping[str, Any]) -> tuple[float, float] | None:
    """Smallest and largest value of a check's seeds; None where they say yes or no, or are unknown.

    Example:
        >>> ends({"statistic": "mean", "values": [0.5, 0.25]})
        (0.25, 0.5)
        >>> ends({"statistic": "paired difference", "values": [[5, 3], [2, 1]]})
        (1, 2)
    """
    if check.get("statistic") in (None, "fraction"):
        return None
    pairs = [one if isinstance(one, list) else [one, 0] for one in check.get("values") or ()]
    if len(pairs) < 2 or any(None in pair for pair in pairs):
        return None
    values = [round_number(one - other) for one, other in pairs]
    return min(values), max(values)


def _show(bound: Bound) -> str:
    return f"[{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, list) else f"{bound:g}"


def unexpected(claims: Mapping[str, Claim], results: Mapping[str, Any]) -> list[str]:
    """A line for each claim of a results file whose verdict differs from the expected one.

    One that is undecided asks for more seeds, and contradicts nothing.
    """
    lines = []
    for entry in results["claims"]:
        expected = claims[entry["id"]].expects(results["preset"])
        if entry["verdict"] not in (expected, UNDECIDED):
            lines.append(f"{verdict_line(entry)}   (expected: {expected})")
    return lines


def round_number(value: Any) -> Any:
    """A JSON number with six significant digits; NaN, infinity and None become None."""
    if value is None or isinstance(value, bool | int):
        return value
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


def result_files(folder: Path) -> list[Path]:
    """Results files at any depth, but for those in hidden folders (Jupyter's checkpoints)."""
    found = sorted(folder.rglob("*.json"))
    return [p for p in found if not any(n[0] == "." for n in p.relative_to(folder).parts)]


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


def standing(
    claim: Claim, preset: str, results: Mapping[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """What a results file says of a claim today, and why that is `not run` where the file has it.

    A verdict of other checks than today's is none; old files do not say which checks they had.
    """
    for entry in results.get("claims", []):
        if entry["id"] == claim.id:
            if entry.get("registered") in (None, claim.registered(preset)):
                return entry, None
            return judge(claim, preset, None), "judged by other checks"
    return judge(claim, preset, None), None


def scorecard(root: Path, out: Path, presets: Sequence[str] = PRESETS) -> list[dict[str, Any]]:
    """One entry for every claim and preset, from the results files alone.

    The keys are those of `fabook claims --json`; a claim without results is `not run`, and so is
    one that other checks than today's have judged: `reason` says so.
    """
    rows = []
    claims = load(root).values()
    for preset in presets:
        found = {name: read_results(root, out, preset, name) for name in _notebooks(claims)}
        for claim in claims:
            results = found[claim.notebook] or {}
            entry, reason = standing(claim, preset, results)
            ran = any(entry["id"] == claim.id for entry in results.get("claims", [])) and not reason
            first = (entry["checks"] or [{}])[0]
            rows.append(
                {
                    key: getattr(claim, key)
                    for key in ("id", "paper", "where", "statement", "source", "paper_value")
                }
                | {key: entry.get(key) for key in _SCORED}
                | {"comparison": first.get("comparison"), "reason": reason, "preset": preset}
                | {
                    key: results.get(key) if ran else None
                    for key in ("device", "minutes", "date", "versions")
                }
                | {"data": results.get("datasets", []) if ran else []}
            )
    return rows


def _notebooks(claims: Iterable[Claim]) -> list[str]:
    return list(dict.fromkeys(claim.notebook for claim in claims))
