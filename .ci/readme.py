"""Bring the README's scorecard up to date with the committed results of the paper preset."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from fabook import claims

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.compile(r"(?s)(<!-- scorecard -->\n).*?(<!-- end of scorecard -->)")


def number(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(number(v) for v in value)}]"
    return f"{value:.3g}" if isinstance(value, (int, float)) else "–"


def scorecard() -> str:
    """Markdown: how many claims were reproduced, then a line for each."""
    committed = claims.scorecard(ROOT, ROOT / "book" / "results" / "none", presets=("paper",))
    verdicts = Counter(row["verdict"] for row in committed)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items(), reverse=True))
    lines = [f"{len(committed)} claims, with the papers' sizes and data: {counts}.\n"]
    lines += ["| paper | claim | measured | bound | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in committed:
        cells = [row["paper"], row["statement"], number(row["measured"]), number(row["bound"])]
        lines.append(f"| {' | '.join(cells)} | {row['verdict']} |")
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
