"""Grading a folder of submissions: several at a time, resumable, whatever a submission does.

Each is graded by `bookkit.otter_worker` in a process of its own of the homework environment, and
its result is a file in `OUT/results`, which a second run takes up as long as submission,
autograder, course seed, limits and interpreter are the same. `OUT/grades.csv` has a line for each
submission, `OUT/feedback/` a text, `OUT/histogram.png` a histogram for each question.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkit.files import write
from bookkit.otter_worker import descendants, end, read

SUFFIXES = (".ipynb", ".zip")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CLUTTER = ("graded", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX", ".ipynb_checkpoints")
CELLS = 20  # limits of one cell that a whole submission may take


class GradingError(ValueError):
    """Nothing can be graded; the message says what is missing and how to make it."""


@dataclass(frozen=True)
class Plan:
    """What to grade, and with what.

    Attributes:
        folder: the submissions, `.ipynb` or the `.zip` that the notebook's last cell writes.
        out: where results go.
        homework: folder of a built homework, with `autograder.zip` and `questions.json`.
        python: interpreter of the homework environment.
        course: the course seed, which the tests see as FABOOK_COURSE.
        jobs: submissions at a time.
        limit: seconds for a cell and for a test.
        memory: gigabytes of address space for a submission.
    """

    folder: Path
    out: Path
    homework: Path
    python: Path
    course: int = 0
    jobs: int = 2
    limit: int = 60
    memory: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.memory < math.inf:  # nor NaN
            raise GradingError(f"--memory must be a positive number of GB, got {self.memory}")

    @property
    def questions(self) -> dict[str, dict[str, Any]]:
        """Title, points and whether a person grades it, by question."""
        return dict(json.loads((self.homework / "questions.json").read_text(encoding="utf-8")))

    @property
    def common(self) -> str:
        """Hash of all that a result depends on, but for the submission."""
        digest = hashlib.sha256(Path(__file__).with_name("otter_worker.py").read_bytes())
        with zipfile.ZipFile(self.homework / "autograder.zip") as archive:
            for name in sorted(archive.namelist()):  # dates in the archive do not count
                digest.update(name.encode() + archive.read(name))
        digest.update(f"{self.course} {self.limit} {self.memory} {self.python}".encode())
        return digest.hexdigest()


def submissions(folder: Path) -> list[Path]:
    """The submissions of a folder, by name.

    Raises:
        GradingError: if there are none.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise GradingError(f"{folder} holds no submissions ({' or '.join(SUFFIXES)})")
    return found


def left_out(folder: Path, out: Path) -> list[str]:
    """Names in a folder that are no submissions: folders, links to nothing, other files."""
    found = {*submissions(folder), out, *(folder / name for name in CLUTTER)}
    return sorted(shown(p) for p in folder.iterdir() if p not in found)


def shown(path: Path) -> str:
    """A file's name as text: bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def homework_of(path: Path) -> str | None:
    """The name of the homework that a submission says it is; None if it says nothing."""
    try:
        return str(read(path)["metadata"]["otter"]["assignment_name"])
    except Exception:  # whatever is wrong with it, the worker says
        return None


def locate(folder: Path, built: Path, name: str | None) -> Path:
    """The built homework that most submissions of a folder belong to, or the one of this name.

    Raises:
        GradingError: if none says its name, or it is not built.
    """
    if name is None:
        names = [n for n in map(homework_of, submissions(folder)) if n is not None]
        if not names:
            raise GradingError(f"no submission in {folder} says its homework: pass --homework NAME")
        name = max(sorted(set(names)), key=names.count)
    if not (built / name / "autograder.zip").is_file():
        raise GradingError(f"{built / name} has no autograder.zip: run `make homework`")
    return built / name


def grade(plan: Plan, report: Callable[[str, dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Grade what has no result yet, and write table, feedback and histograms.

    Args:
        plan: what to grade.
        report: called with the name and the result of each submission as it is ready.

    Returns:
        A result for each submission, by name.
    """
    found = submissions(plan.folder)
    for part in ("results", "feedback"):
        (plan.out / part).mkdir(parents=True, exist_ok=True)
    common, running = plan.common, _Running()
    results: dict[str, dict[str, Any]] = {}
    pool = ThreadPoolExecutor(plan.jobs)
    try:
        futures = {pool.submit(_one, plan, path, common, running): path for path in found}
        for future in as_completed(futures):
            name = futures[future].name
            results[name] = future.result()
            report(shown(futures[future]), results[name])
    finally:
        running.stop()
        pool.shutdown(wait=True, cancel_futures=True)
    rows = [results[path.name] for path in found]
    write_table(plan, rows)
    histogram(plan, rows)
    return rows


class _Running:
    """Processes under way, so that an interrupt ends them and what they started."""

    def __init__(self) -> None:
        self.lock, self.stopped = threading.Lock(), False
        self.processes: set[subprocess.Popen[bytes]] = set()

    def add(self, process: subprocess.Popen[bytes]) -> None:
        with self.lock:
            self.processes.add(process)
            if self.stopped:
                _kill(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        with self.lock:
            self.processes.discard(process)
        _kill(process)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started; its kernel has the same session."""
    end([*descendants(process.pid), process.pid])
    process.wait()


def _file(path: Path) -> str:
    """A name for a submission's own files: its own, cut where a suffix would make it too long."""
    name = shown(path)
    if len(name.encode()) <= 180:
        return name
    return f"{name[:40]}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}"


def _one(plan: Plan, path: Path, common: str, running: _Running) -> dict[str, Any]:
    """A submission's result; whatever fails here is its own error and no one else's."""
    try:
        return _graded(plan, path, common, running)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".encode(errors="backslashreplace").decode()
        return {"submission": shown(path), "error": why, "final": False}


def _graded(plan: Plan, path: Path, common: str, running: _Running) -> dict[str, Any]:
    key = hashlib.sha256(common.encode() + path.read_bytes()).hexdigest()
    target = plan.out / "results" / f"{_file(path)}.json"
    told = plan.out / "feedback" / f"{_file(path)}.txt"
    try:
        found = dict(json.loads(target.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = {}
    cached = found.get("key") == key and found.get("final", True)
    if not cached:
        with tempfile.TemporaryDirectory(prefix="bookkit-result-") as work:
            found = _run(plan, path, Path(work) / "result.json", running)
        found |= {"submission": shown(path), "key": key}
    if not (cached and told.is_file()):
        write(told, feedback(plan, found))
    if not cached:  # last, as a next run takes it for all of the work
        write(target, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return found | {"cached": cached}


def _run(plan: Plan, path: Path, made: Path, running: _Running) -> dict[str, Any]:
    """The worker's answer; an error of its own where it gives none."""
    command = [str(plan.python), "-m", "bookkit.otter_worker", "grade", str(path)]
    command += [str(plan.homework / "autograder.zip"), str(made)]
    command += ["--limit", str(plan.limit), "--memory", str(plan.memory)]
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"FABOOK_COURSE": str(plan.course)}
    log = made.with_name("stderr")  # no pipe: what a submission leaves running would hold it open
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, cwd=plan.homework,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    running.add(process)
    try:
        process.wait(timeout=CELLS * plan.limit)
        why = log.read_bytes()[-2000:].decode(errors="replace").strip()[-500:]
    except subprocess.TimeoutExpired:
        why = f"stopped after {CELLS * plan.limit} s"
    finally:
        running.end(process)
    if running.stopped:
        raise KeyboardInterrupt
    try:
        return dict(json.loads(made.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {"error": why or f"the grader ended with {process.returncode}", "final": False}


# --- what the teacher and the student read -------------------------------------------------------


def score(row: Mapping[str, Any], question: str) -> float:
    """Points of a question that a machine grades: zero where it was never reached."""
    return float(row.get("questions", {}).get(question, {}).get("score", 0.0))


def write_table(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Path:
    """`grades.csv`: submission, total, points by question, what a person grades empty, notes."""
    automatic = [q for q, about in plan.questions.items() if not about["manual"]]
    by_hand = [q for q, about in plan.questions.items() if about["manual"]]
    heads = ["submission", "total", *automatic, *(f"{q} (by hand)" for q in by_hand), "notes"]
    lines: list[list[Any]] = []
    for row in rows:
        points = [score(row, q) for q in automatic]
        notes = [row["error"]] if "error" in row else row.get("notes", [])
        line = [_cell(row["submission"]), f"{sum(points):g}", *(f"{p:g}" for p in points)]
        lines.append([*line, *("" for _ in by_hand), _cell("; ".join(notes))])
    path = plan.out / "grades.csv"
    partial = path.with_suffix(".tmp")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *lines])
    partial.replace(path)
    return path


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def feedback(plan: Plan, row: Mapping[str, Any]) -> str:
    """What one student may be sent: points and messages by question."""
    lines = [str(row["submission"]), ""]
    if "error" in row:
        lines += [f"Could not be graded: {row['error']}", ""]
    for question, about in plan.questions.items():
        if about["manual"]:
            lines += [
                f"{question}  {about['title']}: read by a person, {about['points']:g} points",
                "",
            ]
            continue
        found = row.get("questions", {}).get(question)
        possible = f" of {found['possible']:g}" if found else ""
        lines.append(f"{question}  {about['title']}: {score(row, question):g}{possible}")
        for message in (found or {}).get("messages", []):
            lines += [f"    {line}" for line in message.splitlines()[-1:]]
        lines.append("")
    return "\n".join([*lines, *row.get("notes", [])]).rstrip() + "\n"


def histogram(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Path:
    """`histogram.png`: how many submissions have how many points, for each question."""
    from matplotlib.figure import Figure

    automatic = [q for q, about in plan.questions.items() if not about["manual"]]
    figure = Figure(figsize=(7.2, 2.2 * -(-len(automatic) // 2)), layout="constrained")
    axes = list(figure.subplots(-(-len(automatic) // 2), 2, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, question in zip(axes, automatic, strict=False):
        possible = max([1.0, *(r["questions"][question]["possible"] for r in rows
                              if question in r.get("questions", {}))])  # fmt: skip
        axis.axis("on")
        axis.hist([score(r, question) for r in rows], bins=12, range=(0, possible), color="#0062D0")
        title = plan.questions[question]["title"].partition(" (")[0] or question
        axis.set(title=title, xlabel="points")
        axis.set_ylabel("submissions")
    path = plan.out / "histogram.png"
    partial = path.with_name(".histogram.png")
    figure.savefig(partial, dpi=110, format="png")
    partial.replace(path)
    return path
