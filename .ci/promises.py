"""Count the faults of `make faults` into the book's page of promises.

Reads pytest's reports (junit) and writes the table of `book/what_we_promise.md`. Of a test that is
in several reports the last one counts, so that a stopped run can be gone on with.
"""

from __future__ import annotations

import datetime
import platform
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "book" / "what_we_promise.md"
SECTION = re.compile(r"(?s)(<!-- faults -->\n).*?(<!-- end of faults -->)")


def cases(reports: Sequence[Path]) -> Iterator[tuple[ET.Element, dict[str, str]]]:
    """The fault tests of the reports, each with what it says of itself."""
    found: dict[tuple[str, str], ET.Element] = {}
    for report in reports:
        for case in ET.parse(report).iter("testcase"):
            found[case.get("classname", ""), case.get("name", "")] = case
    for case in found.values():
        said = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        if "fault" in said:
            yield case, said


def skipped(reports: Sequence[Path]) -> list[str]:
    """Fault tests that were left out, each with its reason."""
    return [
        f"- {said['fault']} (`{case.attrib['name']}`): {reason.attrib.get('message', '')}"
        for case, said in cases(reports)
        if (reason := case.find("skipped")) is not None
    ]


def counted(reports: Sequence[Path]) -> dict[tuple[str, str], tuple[int, int]]:
    """(fault, promise) -> how often it was made, and how often the promise was kept."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for case, said in cases(reports):
        if case.find("skipped") is not None:
            continue
        times = int(said.get("times", 1))
        kept = 0 if {child.tag for child in case} & {"failure", "error"} else times
        key = (said["fault"], said["promise"])
        before = found.get(key, (0, 0))
        found[key] = (before[0] + times, before[1] + kept)
    return found


def table(found: dict[tuple[str, str], tuple[int, int]], left: list[str], form: str) -> str:
    """Markdown: a row for each fault and promise, then what was left out."""
    lines = [
        "| what goes wrong | what is promised | times made | kept |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {fault} | {promise} | {made} | {kept} |"
              for (fault, promise), (made, kept) in found.items()]  # fmt: skip
    made, kept = (sum(pair[k] for pair in found.values()) for k in (0, 1))
    day = datetime.date.today().isoformat()
    where = f"{platform.system()}, Python {platform.python_version()}"
    lines += ["", f"Counted on {day} {form} ({where}): {kept} of {made} kept."]
    if left:
        lines += ["", f"Left out on that machine, and not counted ({len(left)}):", "", *left]
    return "\n".join([*lines, ""])


def main() -> int:
    reports = [Path(name) for name in sys.argv[1:]]
    found = counted(reports)
    if not found:
        raise SystemExit(f"no fault test in {sys.argv[1:]}")
    whole = all(report.stem.startswith("faults") for report in reports)
    form = "by `make faults`" if whole else "by the short form in `make test`"
    text = PAGE.read_text(encoding="utf-8")
    rows = table(found, skipped(reports), form)
    fresh = SECTION.sub(lambda match: match[1] + rows + match[2], text)
    PAGE.write_text(fresh, encoding="utf-8")
    return int(any(made != kept for made, kept in found.values()))


if __name__ == "__main__":
    sys.exit(main())
