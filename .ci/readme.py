"""Bring the README's scorecard up to date with the committed results of the paper preset."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from bookkit import claims

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.compile(r"(?s)(<!-- scorecard -->\n).*?(<!-- end of scorecard -->)")


def scorecard() -> str:
    """Markdown: how many claims of each paper hold, and the ones that do not."""
    names = claims.papers(ROOT)
    committed = claims.scorecard(ROOT, ROOT / "book" / "results" / "none", presets=("paper",))
    counts = Counter((row["paper"], row["source"], row["verdict"]) for row in committed)
    verdicts = (claims.REPRODUCED, claims.NOT_REPRODUCED, claims.UNDECIDED, claims.NOT_RUN)
    heads = ("chapter", "what the paper says: reproduced", "derived here: reproduced")
    lines = [f"| {' | '.join((*heads, *verdicts[1:]))} |", "| --- | --- | --- | --- | --- | --- |"]
    for paper in dict.fromkeys(row["paper"] for row in committed):
        hold = [counts[paper, source, verdicts[0]] for source in ("paper", "derived")]
        rest = [sum(counts[paper, s, v] for s in ("paper", "derived")) for v in verdicts[1:]]
        lines.append(f"| {' | '.join([names[paper]['name'], *map(str, (*hold, *rest))])} |")
    missed = [row for row in committed if row["verdict"] == claims.NOT_REPRODUCED]
    if missed:
        lines.append("\nNot reproduced:\n")
    lines += [f"- {row['statement']} (`{row['id']}`)" for row in missed]
    return "\n".join(lines) + "\n"


def current(text: str) -> str:
    """The README's text with the scorecard of today."""
    table = scorecard()
    changed, found = SECTION.subn(lambda m: f"{m[1]}{table}{m[2]}", text)
    if found != 1:
        raise ValueError(f"README.md must have one scorecard section, found {found}")
    return changed


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(int(text != current(text)) and "README.md is behind: run `make readme`")
    readme.write_text(current(text), encoding="utf-8")
