"""What the command prints: tables, JSON, and progress while notebooks run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def as_json(value: Any) -> int:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    return 0


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip())


def runs(rows: list[dict[str, Any]]) -> None:
    """Print the runs that `runs.listed` found."""

    def texts(row: dict[str, Any]) -> list[str]:
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in row["verdicts"].items())
        return [row["run"], row["preset"], f"{row['minutes']:.1f}", row["date"][:16], verdicts]

    table([["run", "preset", "min", "date", "verdicts"], *map(texts, rows)])


def problems(outcomes: Sequence[Any]) -> None:
    """Print what failed, and verdicts that were not expected."""
    for outcome in outcomes:
        if outcome.status == "failed":
            values = ", ".join(f"{k}={v}" for k, v in outcome.job.custom.items())
            name = f"{outcome.job.stem} ({values})" if values else outcome.job.stem
            print(f"\nfabook: {name}: {outcome.message}", file=sys.stderr)
        for line in outcome.unexpected:
            print(f"fabook: unexpected verdict: {line}", file=sys.stderr)


class Progress:
    """A line for each notebook that is ready, above a progress bar where stderr is a terminal."""

    def __init__(self, total: int, *, brief: bool = False) -> None:
        self.total, self.brief, self.ready, self.bar = total, brief, 0, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="notebook")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *details: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, outcome: Any) -> None:
        self.ready += 1
        words = {"done": f"{outcome.minutes:.2f} min", "cached": "up to date"}
        job = outcome.job
        values = "".join(f", {key} = {value!r}" for key, value in job.custom.items())
        lines = [
            f"[{self.ready}/{self.total}] {job.stem} ({job.preset}{values}): "
            f"{words.get(outcome.status, outcome.status)}"
        ]
        if not self.brief:
            lines += [f"    {line}" for line in outcome.lines]
            if outcome.differing:
                named = ", ".join(outcome.differing)
                lines += [f"    other than with the preset's values: {named}"]
        if not self.brief and job.own and outcome.status in ("done", "cached"):
            lines += [f"    {job.output('results', '.json')}"]
            lines += [f"    {job.output('notebooks', '.ipynb')}"]
        if self.bar is None:
            print("\n".join(lines), flush=True)
        else:
            self.bar.write("\n".join(lines))
            self.bar.update()
