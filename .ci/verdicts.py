"""Check that every claim has the verdict that the registry expects, in both presets.

Quick results are those of this build; paper results are the committed ones. A claim is committed
before the run that judges it, so that one without a committed result waits for its run.
"""

import sys

from bookkit import claims

ROOT = claims.find_root()


def main() -> int:
    registry, wrong, waiting, rows = claims.load(ROOT), 0, 0, []
    for preset, out in (("quick", ROOT / "_build"), ("paper", ROOT / "book" / "results" / "none")):
        rows += claims.scorecard(ROOT, out, presets=(preset,))
    for row in rows:
        expected = registry[row["id"]].expects(row["preset"])
        note = ""
        if row["verdict"] not in (expected, "undecided"):
            late = (row["preset"], row["verdict"]) == ("paper", "not run")
            note = "  <-- waits for its run" if late else f"  <-- expected: {expected}"
            waiting, wrong = waiting + late, wrong + (not late)
        print(f"{row['preset']}  {row['verdict']:<15} {row['id']}{note}")
    print(f"{len(rows)} verdicts, {wrong} unexpected, {waiting} waiting for their run")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
