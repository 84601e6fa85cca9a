"""Would other seeds have said the same? The quick preset with ten seeds, and the verdicts counted.

Every notebook runs with each seed (what is up to date is not run again), and each claim's verdict
is held against the one of the page's own seed. After each notebook its rows of the table are
written, `book/stability.json`, and the page that is made from it, `book/stability.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from bookkit import claims, execute, files, notebooks, report, sweep

ROOT = Path(__file__).resolve().parent.parent
PAGE, TABLE = ROOT / "book" / "stability.md", ROOT / "book" / "stability.json"
ASKED = 0.97  # share of verdicts that other seeds should repeat
START = "<!-- table -->\n"


def verdicts(job: notebooks.Job) -> dict[str, dict[str, Any]]:
    """The judged claims of one run, by their ids."""
    found = json.loads(job.output("results", ".json").read_text(encoding="utf-8"))
    return {c["id"]: c for c in found["claims"] if c["verdict"] != claims.NOT_RUN}


def measured(name: str, seeds: str, jobs: int | None) -> list[dict[str, Any]]:
    """A row for each claim of a notebook: its own verdict, and those of the other seeds."""
    made = {"date": datetime.date.today().isoformat(), "commit": commit()}
    grid = sweep.plan(ROOT, name, {"seed": [seeds]})
    (own,) = notebooks.plan(ROOT, [name])
    with report.Progress(len(grid.jobs) + 1, brief=True) as progress:
        for plan in ([own], grid.jobs):
            outcomes = execute.run(plan, n_jobs=jobs, report=progress)
            report.problems([o for o in outcomes if o.status == "failed"])
            if any(o.status == "failed" for o in outcomes):
                raise SystemExit(f"{name}: not every run ended")
    runs = {point["seed"]: verdicts(job) for job, point in zip(grid.jobs, grid.points)}
    rows = []
    for key, claim in verdicts(own).items():
        said = {seed: run[key] for seed, run in runs.items()}
        others = {seed: c for seed, c in said.items() if c["verdict"] != claim["verdict"]}
        rows.append({
            "notebook": name, "claim": key, "verdict": claim["verdict"], "seeds": list(runs),
            "verdicts": Counter(c["verdict"] for c in said.values()),
            "others": [{"seed": seed, "verdict": c["verdict"], "why": why(c, claim)}
                       for seed, c in others.items()],
            **made,
        })  # fmt: skip
    return rows


def why(claim: dict[str, Any], own: dict[str, Any]) -> str:
    """The checks that came out differently, with their values and seeds."""
    before = {check["quantity"]: check["holds"] for check in own["checks"]}
    changed = [c for c in claim["checks"] if c["holds"] != before.get(c["quantity"])]
    line = claims.verdict_line({**claim, "checks": changed})
    return line[16 + len(claim["id"]) :].strip()


def counted(rows: list[dict[str, Any]]) -> tuple[list[tuple[str, str, int]], int, int]:
    """(own verdict, other's verdict, how often), all verdicts, and those that agree."""
    said = [(row["verdict"], v, n) for row in rows for v, n in row["verdicts"].items()]
    return said, sum(n for *_, n in said), sum(n for own, v, n in said if own == v)


def page(found: dict[str, Any]) -> str:
    """Markdown: how often the verdicts agree, and each that did not."""
    rows = found["rows"]
    commits = sorted({f"`{row['commit']}`" for row in rows})
    said, total, same = counted(rows)
    both = sum(n for own, v, n in said if claims.UNDECIDED not in (own, v))
    opposite = sum(n for own, v, n in said if own != v and claims.UNDECIDED not in (own, v))
    lines = [
        f"**{same} of {total} verdicts ({same / total:.1%}) are those of the page's own seed; "
        f"we asked for {ASKED:.0%}.** {total - same - opposite} are undecided where the other is "
        f"not. Of the {both} that are decided in both, {both - opposite} agree and {opposite} are "
        f"the opposite. ({len(rows)} claims that the quick preset judges, {len(rows[0]['seeds'])} "
        f"seeds each, of {len({row['notebook'] for row in rows})} notebooks of {found['of']}; "
        f"{max(row['date'] for row in rows)}, sources of {', '.join(commits)}.)",
        "## Verdicts that differ",
        "| claim | own seed | other seeds | what came out |\n| --- | --- | --- | --- |",
    ]
    differ = [(row, v) for row in rows for v in dict.fromkeys(o["verdict"] for o in row["others"])]
    differ.sort(key=lambda pair: claims.UNDECIDED in (pair[0]["verdict"], pair[1]))
    for row, verdict in differ:  # the opposite ones first
        others = [other for other in row["others"] if other["verdict"] == verdict]
        seeds = ", ".join(str(other["seed"]) for other in others)
        texts = "<br>".join(
            f"{other['seed']}: {other['why'].replace('<', '&lt;').replace('|', '&#124;')}"
            for other in others
        )
        lines[-1] += f"\n| `{row['claim']}` | {row['verdict']} | {verdict}: {seeds} | {texts} |"
    return "\n\n".join(lines) + "\n"


def commit() -> str:
    """The revision that is measured, and whether what runs was changed since."""
    git = ["git", "-C", str(ROOT)]
    made = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, capture_output=True)
    what = ["notebooks", "fabook", "book/bookkit", "book/claims.toml"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *what], check=False)
    return made.stdout.decode().strip() + ("-dirty" if changed.returncode else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="1..10", help="a range")
    parser.add_argument("--jobs", type=int, help="kernels at a time")
    parser.add_argument("--check", action="store_true", help="only: is the page that of its table?")
    parser.add_argument("names", nargs="*", help="notebooks; all by default")
    args = parser.parse_args()
    above, _, below = PAGE.read_text(encoding="utf-8").partition(START)
    found = json.loads(TABLE.read_text(encoding="utf-8"))
    if args.check:
        return int(below != page(found))
    order = [book.name for book in notebooks.select(ROOT, [])]
    for name in [book.name for book in notebooks.select(ROOT, args.names)]:
        rows = [row for row in found["rows"] if row["notebook"] != name]
        rows += measured(name, args.seeds, args.jobs)
        rows.sort(key=lambda row: order.index(row["notebook"]))
        found = {"of": len(order), "rows": rows}
        files.write(TABLE, json.dumps(found, indent=1) + "\n")
        files.write(PAGE, above + START + page(found))
    print(page(found))
    _, total, same = counted(found["rows"])
    return int(same < ASKED * total)


if __name__ == "__main__":
    raise SystemExit(main())
