"""Many runs of one notebook: a grid of parameters, run in parallel, gathered into one tidy table.

The table has a row for each run and check of a claim, a row for each number without axes that
the notebook recorded, and one row for a run that has neither or failed. Its values are
read from the results files, so that a sweep that was killed and started again ends with the same
table.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bookkit import execute, notebooks, parameters
from bookkit.files import digest, write
from bookkit.parameters import UsageError

LARGEST = 100_000  # runs of one sweep
FIXED = tuple(
    "run notebook preset status claim verdict quantity value sd n_seeds low high comparison "
    "bound_low bound_high holds minutes device error".split()
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A grid of runs of one notebook, in order: the jobs, and the values of each."""

    jobs: list[notebooks.Job]
    points: list[dict[str, Any]]
    axes: dict[str, list[Any]]

    @property
    def stem(self) -> Path:
        """Where its table lies, without suffix."""
        first, grid = self.jobs[0], digest([self.axes, self.jobs[0].preset])[:8]
        return Path(first.out) / "sweeps" / first.preset / f"{first.notebook}@{grid}"


def plan(
    root: Path,
    name: str,
    values: Mapping[str, Sequence[Any]],
    *,
    preset: str = "quick",
    device: str = "auto",
    out: Path = Path("_build"),
    force: bool = False,
    local: bool = True,
) -> Sweep:
    """Check a grid and return its runs; nothing is written and no kernel starts.

    Args:
        values: for each parameter what was given for it, such as `["0..31"]` or `["64,256"]`.

    Raises:
        UsageError: for anything unknown, ill-typed, or too large, naming what is allowed.
    """
    notebook = notebooks.one(root, name)
    (first,) = notebooks.plan(
        root, [name], preset=preset, device=device, out=out, force=force, local=local
    )
    known = parameters.of(notebook.path)
    axes: dict[str, list[Any]] = {}
    for key, texts in values.items():
        found = [value for text in texts for value in parameters.several(text)]
        for value in found:
            notebooks.checked(notebook, {key: value}, preset)
        # None is the preset's value: the same run, which stands once in the table.
        converted = [
            known[key].value(preset) if value is None else value
            for value in (parameters.convert(text, key, known[key]) for text in found)
        ]
        axes[key] = [v for i, v in enumerate(converted) if v not in converted[:i]]
    if (count := math.prod(map(len, axes.values()))) > LARGEST:
        raise UsageError(f"the grid has {count} runs (at most {LARGEST})")
    points = [dict(zip(axes, point)) for point in itertools.product(*axes.values())]
    jobs = [replace(first, custom=notebooks.checked(notebook, p, preset)) for p in points]
    return Sweep(jobs, points, axes)


def run(
    sweep: Sweep,
    *,
    n_jobs: int | None = None,
    scheduler: str | None = None,
    report: Callable[[execute.Outcome], None] = lambda outcome: None,
) -> tuple[list[execute.Outcome], list[Row]]:
    """Execute what is not up to date, and write the table as CSV and Parquet.

    Interrupted, it still writes the table of what is there.
    """
    outcomes: dict[str, execute.Outcome] = {}

    def keep(outcome: execute.Outcome) -> None:
        outcomes[outcome.job.stem] = outcome
        report(outcome)

    try:
        execute.run(sweep.jobs, n_jobs=n_jobs, scheduler=scheduler, report=keep)
    finally:
        rows = table(sweep, outcomes)
        save(rows, sweep.stem)
    return [outcomes[job.stem] for job in sweep.jobs], rows


# --- the table -----------------------------------------------------------------------------------


def table(sweep: Sweep, outcomes: Mapping[str, execute.Outcome]) -> list[Row]:
    """The rows of all runs, in the grid's order."""
    rows = []
    for job, point in zip(sweep.jobs, sweep.points):
        outcome = outcomes.get(job.stem, execute.Outcome(job, "not run"))
        named = {f"{k}_parameter" if k in FIXED else k: cell(v) for k, v in point.items()}
        base = {"run": job.stem, "notebook": job.notebook, "preset": job.preset}
        ended = outcome.status in ("done", "cached")
        base |= named | {"status": "ok" if ended else outcome.status}
        empty = dict.fromkeys([key for key in FIXED if key not in base])
        if ended:
            results = json.loads(job.output("results", ".json").read_text(encoding="utf-8"))
            facts = {"minutes": results["minutes"], "device": results["device"]}
            found = list(_quantities(results)) or [{}]
            rows += [base | empty | facts | quantity for quantity in found]
        else:
            rows.append(base | empty | {"error": execute.reason(outcome) or None})
    return rows


def cell(value: Any) -> Any:
    """A value as one cell of a table: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _quantities(results: Mapping[str, Any]) -> Iterator[Row]:
    """Every check of a results file, then every number without axes."""
    for entry in results["claims"]:
        for check in entry["checks"]:
            bound = check["bound"]
            low, high = bound if isinstance(bound, list) else (bound, bound)
            yield {
                "claim": entry["id"],
                "verdict": entry["verdict"],
                "quantity": check["quantity"],
                "value": check["value"],
                "sd": entry["sd"],
                "n_seeds": check.get("seeds", entry["seeds"]),
                "low": check.get("low"),
                "high": check.get("high"),
                "comparison": check["comparison"],
                "bound_low": None if check["comparison"][0] == "<" else low,
                "bound_high": None if check["comparison"][0] == ">" else high,
                "holds": check["holds"],
            }
    for label, recorded in results["data"].items():
        for name, entry in recorded["data_vars"].items():
            if isinstance(entry["values"], int | float):
                yield {"quantity": f"{label}.{name}", "value": entry["values"]}


def save(rows: Sequence[Row], stem: Path) -> None:
    """The rows as CSV and Parquet."""
    import pyarrow
    from pyarrow import parquet

    names, text, binary = list(rows[0]), io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(Path(f"{stem}.csv"), text.getvalue())
    columns = {name: _column([row[name] for row in rows]) for name in names}
    parquet.write_table(pyarrow.table(columns), binary)
    write(Path(f"{stem}.parquet"), binary.getvalue())


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: whole numbers among fractions become fractions, other mixtures text,
    and so do whole numbers of more than 64 bits.
    """
    kinds = {type(value) for value in values if value is not None}
    if any(type(value) is int and value.bit_length() > 63 for value in values):
        kinds.add(str)
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return values if len(kinds) < 2 else [None if value is None else str(value) for value in values]
