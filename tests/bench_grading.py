"""Grade a class: minutes and memory for 200 submissions of homework 1, killed once on the way.

    make bench-grading      # writes book/teach/grading.json and a sentence of the page Teach

The submissions are the solution, the blank notebook and every known wrong answer in turn, some as
the zip file that students hand in; a few harm themselves: an endless call, a killed kernel, a file
that is no notebook. When a third has its result, `fabook grade` gets a kill -9; started again, it
must take up what was done. Every submission must get the points that its mistakes leave.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
TEACH = ROOT / "book" / "teach"
NAME, COURSE, LIMIT = "hw1", 11, 30
MARKS = re.compile(r"(?s)(?<=% measured\n).*?(?=\n% end of measured)")


def _module(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tests" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def submissions(folder: Path, count: int) -> dict[str, float | None]:
    """Write a class's submissions; the points of each, None where only a bound is known."""
    answers, harm = _module("homework/test_answers.py"), _module("bookkit/test_grading.py").HARM
    built = ROOT / "_build" / "homework" / NAME
    solution = json.loads((built / f"{NAME}-solution.ipynb").read_text())
    blank = json.loads((built / "student" / f"{NAME}.ipynb").read_text())
    full = sum(q.possible for q in answers.homework(NAME).questions.values())
    kinds: list[tuple[str, dict[str, str] | None, float]] = [("solution", {}, full)]
    kinds += [(w.name, dict(w.edits), full - sum(w.lost.values())) for w in answers.WRONG[NAME]]
    kinds += [("blank", None, 0.0)]
    harmful = {k * count // len(harm) + 3: name for k, name in enumerate(harm)}
    expected: dict[str, float | None] = {}
    for number in range(count):
        what, edits, points = kinds[number % len(kinds)]
        name = f"student-{number:03}.{'zip' if number % 2 else 'ipynb'}"
        notebook = json.loads(json.dumps(blank if edits is None else solution))
        expected[name] = points
        if number in harmful:
            what = harmful[number]
            old, new, _ = harm[what]
            edits, expected[name] = {old: new}, None
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.startswith('"""'):
                for old, new in (edits or {}).items():
                    source = source.replace(old, new)
                cell["source"] = source
        said = {"cell_type": "markdown", "id": "said", "metadata": {}}
        notebook["cells"].append(said | {"source": f"Student {number}: {what}"})
        text = json.dumps(notebook)
        if number == count // 2:
            text, expected[name] = "no notebook", 0.0
        if name.endswith(".zip") and text != "no notebook":
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr(f"{NAME}.ipynb", text)
        else:
            (folder / name).write_text(text)
    return expected


class Watch:
    """Memory and processor time of a process and all that it started."""

    def __init__(self) -> None:
        self.peak, self.seconds = 0, {}  # bytes together; seconds of a processor by process

    def look(self, process: psutil.Process) -> None:
        total = 0
        try:
            everyone = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in everyone:
            try:
                total += one.memory_full_info().pss
                spent = one.cpu_times()
                self.seconds[one.pid, one.create_time()] = spent.user + spent.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak = max(self.peak, total)


def grade(folder: Path, out: Path, jobs: int, watch: Watch, stop_at: int | None) -> float:
    """Seconds of `fabook grade`; a kill -9 when so many have a result."""
    words = [sys.executable, "-m", "fabook", "grade", str(folder), "--out", str(out)]
    words += ["--homework", NAME, "--course", str(COURSE), "--limit", str(LIMIT)]
    begin = time.monotonic()
    with subprocess.Popen([*words, "--jobs", str(jobs)], cwd=ROOT) as process:
        while process.poll() is None:
            watch.look(psutil.Process(process.pid))
            if stop_at is not None and len(list(out.glob("results/*.json"))) >= stop_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.5)
        wanted = 0 if stop_at is None else -signal.SIGKILL
        assert process.returncode == wanted, f"fabook grade ended with {process.returncode}"
    return time.monotonic() - begin


def measure(folder: Path, count: int, jobs: int) -> dict[str, Any]:
    """Minutes, memory, counts, and a line for each submission that has not its points."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected, out, watch = submissions(folder, count), folder / "graded", Watch()
    load = [os.getloadavg()[0]]
    first = grade(folder, out, jobs, watch, count // 3)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("results/*.json")}
    load.append(os.getloadavg()[0])
    second = grade(folder, out, jobs, watch, None)
    load.append(os.getloadavg()[0])
    again = time.monotonic()
    grade(folder, out, jobs, watch, None)
    again = time.monotonic() - again
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("results/*.json")}
    wrong = [f"{name} was graded twice" for name, when in kept.items() if now[name] != when]
    with (out / "grades.csv").open(encoding="utf-8", newline="") as file:
        totals = {row["submission"]: float(row["total"]) for row in csv.DictReader(file)}
    assert totals.keys() == expected.keys()
    for name, points in expected.items():
        if points is not None and abs(totals[name] - points) > 1e-6:
            wrong.append(f"{name}: {totals[name]:g} points in the place of {points:g}")
    results = [json.loads((out / "results" / name).read_text()) for name in now]
    seconds = sorted(r["seconds"] for r in results if "seconds" in r)
    return {
        "submissions": count,
        "jobs": jobs,
        "minutes": (first + second) / 60,
        "processor_minutes": sum(watch.seconds.values()) / 60,
        "median_seconds": seconds[len(seconds) // 2],
        "longest_seconds": seconds[-1],
        "peak_bytes": watch.peak,
        "kept_at_the_kill": len(kept),
        "nothing_to_do_seconds": again,
        "points_checked": sum(points is not None for points in expected.values()),
        "harmful": sum(points is None for points in expected.values()),
        "wrong": wrong,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "load": sum(load) / len(load),
        },
    }


def _cpu() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        return str(names[0])
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def sentence(found: dict[str, Any]) -> str:
    """What the page says of a measured class."""
    m = found["machine"]
    each = 60 * found["processor_minutes"] / found["submissions"]
    return (
        f"Measured: {found['submissions']} generated submissions of homework 1, "
        f"{found['jobs']} at a time, took {found['minutes']:.0f} minutes on "
        f"{m['cores']} cores ({m['cpu']}, {m['date']}) that other work shared (load "
        f"{m['load']:.1f}, mean of three looks); {each:.0f} seconds of a processor each, at most "
        f"{found['peak_bytes'] / 2**30:.1f} GiB together. {found['harmful']} of them harmed "
        f"themselves, by an endless cell or a killed kernel, say, and one was no notebook. "
        f"After {found['kept_at_the_kill']} results the grader got a `kill -9`; started again, it "
        f"kept them, and all {found['points_checked']} points that are known beforehand came out. "
        f"`make bench-grading` repeats this."
    )


def page(text: str, found: dict[str, Any]) -> str:
    """The page with the sentence of these numbers."""
    changed, marks = MARKS.subn(lambda _: sentence(found), text)
    assert marks == 1
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "class")
    parser.add_argument("--page", action="store_true", help="write the numbers into the book")
    args = parser.parse_args()
    found = measure(args.folder.resolve(), args.count, args.jobs)
    print(json.dumps(found, indent=1))
    if found["wrong"]:
        return 1
    if args.page:
        (TEACH / "grading.json").write_text(json.dumps(found, indent=1) + "\n")
        teach = TEACH / "teach.md"
        teach.write_text(page(teach.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
