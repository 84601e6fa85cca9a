"""What runs in the homework environment: building homeworks with otter, and grading one submission.

Otter has no limit of time: an endless cell would hold up everything behind it. Here every cell and
every test has one. What ignores it, or kills its kernel, is left out and the rest is graded again,
so a question can lose its own points only. None of this is a sandbox: a submission runs with the
rights of whoever grades it.

    python -m bookkit.otter_worker build notebooks/homework/hw1.md _build/homework
    python -m bookkit.otter_worker grade submission.ipynb autograder.zip result.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

GRACE = 10  # seconds beyond the limit, after which a cell that ignores it is left out
ATTEMPTS = 12  # cells and tests that may be left out
OUTPUT = 100_000  # characters of a cell's output that are kept
MESSAGE = 2_000  # characters of a message
SIZE = 100 * 2**20  # bytes of a notebook
FILES = 2**30  # bytes of a file that a submission writes
MARK = "bookkit_cell"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
_CHECK = re.compile(r'(?:\.check\("|tests/)(\w+)(?:\.py)?"\)')
_HEAD = re.compile(r"#\s*BEGIN QUESTION\s*\n(.*)", re.DOTALL)

# Runs in the kernel before the submission: a limit for every cell, and one for every test.
LIMITS = """\
def _limits(seconds):
    import os, pathlib, signal, sys
    from otter.test_files import exception_test
    now, here, shell = [seconds], os.getcwd(), get_ipython()
    tests = {path.absolute(): path.read_bytes() for path in pathlib.Path("tests").glob("*.py")}

    def stop(number, frame):
        raise TimeoutError(f"stopped after {seconds} s: does a loop never end?")

    def start(*details, limit=seconds):
        if details and "check" in details[0].raw_cell:  # tests are where they were
            os.chdir(here)
            for path, content in tests.items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, limit)

    def end(*details):
        signal.setitimer(signal.ITIMER_REAL, 0)

    def limited(self, environment, call=exception_test.test_case.call_func):
        start(limit=now[0])
        try:
            call(self, environment)
        except TimeoutError:
            now[0] = max(1, seconds // 10)  # the question's other tests need not wait as long
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"the answer ends the program: {type(error).__name__}") from None
        finally:
            end()

    def afresh(self, environment, run=exception_test.ExceptionTestFile.run):
        now[0] = seconds
        run(self, environment)
        start()  # what is left of the cell

    say = exception_test.ExceptionTestFile._generate_error_message

    def explained(self, error, *rest):
        try:
            said = say(self, error, *rest)
        except Exception:
            said = f"{type(error).__name__}: {error}"
        said = said if len(said) <= %d else f"{said[:%d]} [cut]"
        return said.encode(errors="backslashreplace").decode()

    signal.signal(signal.SIGALRM, stop)
    exception_test.test_case.call_func = limited
    exception_test.ExceptionTestFile.run = afresh
    exception_test.ExceptionTestFile._generate_error_message = explained
    shell.ask_exit = lambda: sys.exit("exit() or quit()")  # would end the kernel a cell later
    shell.events.register("pre_run_cell", start)
    shell.events.register("post_run_cell", end)

_limits(%d)
del _limits
"""
LAST = """\
from otter.execute import Checker
Checker.check_if_not_already_checked("./tests/{name}.py")"""
STUB = """\
from otter.test_files import test_case
OK_FORMAT = False
name = "{name}"
points = {points}

@test_case(points={points}, hidden=False)
def test_stopped():
    raise TimeoutError("the tests of this question ended their kernel, or did not end themselves")
"""


class Refused(ValueError):
    """A submission that cannot be graded at all; the message says why."""


# --- building ------------------------------------------------------------------------------------


def build(source: Path, out: Path) -> Path:
    """Make ``OUT/<name>/`` of a homework's source: for students, autograder, solution.

    Otter runs the solution against its own tests and refuses a homework where one fails.

    Args:
        source: the MyST notebook; Python files beside it may go into the autograder.
        out: folder of all homeworks; the old ``OUT/<name>`` is replaced at the end.
    """
    import jupytext
    import nbformat
    from otter.assign import main as assign

    name, notebook = source.stem, jupytext.read(source)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as work:
        folder, made = Path(work) / "source", Path(work) / "made"
        folder.mkdir()
        for module in source.parent.glob("*.py"):
            shutil.copy(module, folder)
        nbformat.write(notebook, folder / f"{name}.ipynb")
        assign(str(folder / f"{name}.ipynb"), str(folder / "dist"), no_pdfs=True)
        (made / "student").mkdir(parents=True)
        shutil.copy(folder / "dist" / "student" / f"{name}.ipynb", made / "student")
        (archive,) = (folder / "dist" / "autograder").glob("*.zip")
        shutil.copy(archive, made / "autograder.zip")
        solution = made / f"{name}-solution.ipynb"
        shutil.copy(folder / "dist" / "autograder" / f"{name}.ipynb", solution)
        (made / "questions.json").write_text(json.dumps(questions(notebook), indent=2) + "\n")
        _instructor_page(solution, folder, solution.with_suffix(".html"))
        shutil.rmtree(out / name, ignore_errors=True)
        made.rename(out / name)
    return out / name


def questions(notebook: Any) -> dict[str, dict[str, Any]]:
    """Each question's heading, whether a person grades it, and its points there."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for cell in notebook.cells:
        if cell.cell_type == "raw" and (head := _HEAD.match(cell.source)):
            config = yaml.safe_load(head[1])
            found[config["name"]] = {
                "title": "",
                "manual": bool(config.get("manual")),
                "points": config.get("points") if config.get("manual") else None,
            }
        elif found and cell.cell_type == "markdown":
            last = next(reversed(found.values()))
            if not last["title"] and (title := re.search(r"^#+ +(.+)$", cell.source, re.MULTILINE)):
                last["title"] = title[1]
    return found


def _instructor_page(solution: Path, folder: Path, page: Path) -> None:
    """The solution with its outputs, hidden tests and rubrics, as one HTML file."""
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    notebook = nbformat.read(solution, as_version=4)
    for cell in notebook.cells:
        if "grader.export(" in cell.source:
            cell.cell_type = "raw"
            for key in ("outputs", "execution_count"):
                cell.pop(key, None)
    shutil.copy(solution, folder / solution.name.replace("-solution", ""))
    ExecutePreprocessor(timeout=600).preprocess(notebook, {"metadata": {"path": str(folder)}})
    text, _ = HTMLExporter().from_notebook_node(notebook)
    page.write_text(text, encoding="utf-8")


# --- grading -------------------------------------------------------------------------------------


def grade(submission: Path, autograder: Path, *, limit: int, memory: float) -> dict[str, Any]:
    """Grade one submission, leaving out what does not end or kills its kernel.

    Args:
        submission: a notebook, or the zip file that ``grader.export`` wrote.
        autograder: ``autograder.zip`` of the homework.
        limit: seconds for a cell, and for a test.
        memory: gigabytes of address space for the kernel.

    Returns:
        ``questions`` (score, possible, messages by question), ``notes``, ``seconds``.
    """
    bound = int(memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
    begin = time.monotonic()
    text = read(submission)
    belongs(text, _assignment(autograder))
    dead_cells: dict[int, str] = {}
    dead_tests: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="bookkit-grade-") as work:
            notebook = _prepared(text, dead_cells, limit, autograder, Path(work))
            archive = _archive(autograder, dead_tests, Path(work))
            results, culprit, why = _attempt(notebook, archive, limit)
        if results is not None:
            notes = [f"cell {k}: {v}" for k, v in dead_cells.items()]
            notes += [f"tests of {k}: {v}" for k, v in dead_tests.items()]
            return {
                "questions": _questions(results),
                "notes": notes,
                "seconds": round(time.monotonic() - begin, 1),
            }
        test, number = culprit
        if test is not None and test not in dead_tests:
            dead_tests[test] = why
        elif number is not None and number not in dead_cells:
            dead_cells[number] = why
        else:
            kind = RuntimeError if culprit == (None, None) else Refused  # it ended in our own cells
            raise kind(f"grading broke off: {why}")
    raise Refused(f"more than {ATTEMPTS} cells or tests did not end")


def read(submission: Path) -> Any:
    """The submission's notebook, as JSON."""
    try:
        if zipfile.is_zipfile(submission):
            with zipfile.ZipFile(submission) as archive:
                names = [n for n in archive.namelist() if _is_notebook(PurePosixPath(n))]
                if len(names) != 1:
                    raise Refused(f"expected one notebook in the zip file, found {len(names)}")
                with archive.open(names[0]) as file:
                    content = file.read(SIZE + 1)
        else:
            with submission.open("rb") as file:
                content = file.read(SIZE + 1)
        if len(content) > SIZE:
            raise Refused(f"more than {SIZE // 2**20} MB: clear the outputs")
        if content.startswith(b"PK"):
            raise Refused("this is no notebook: a zip file that is not whole")
        notebook = json.loads(content)
        cells = notebook["cells"]
    except Refused:
        raise
    except UnicodeDecodeError:
        raise Refused("this is no notebook: it is not UTF-8") from None
    except Exception as error:  # a damaged archive raises what it likes
        raise Refused(f"this is no notebook: {type(error).__name__}: {error}") from None
    if not isinstance(cells, list) or not all(isinstance(c, dict) for c in cells):
        raise Refused("this is no notebook: its cells are no list")
    return notebook


def belongs(notebook: Any, name: str) -> None:
    """Refuse the notebook of another homework; one that does not say which passes."""
    try:
        said = notebook["metadata"]["otter"]["assignment_name"]
    except (KeyError, TypeError):
        return
    if said != name:
        raise Refused(f"this is the notebook of {str(said)[:40]!r}, not of {name!r}")


def _is_notebook(path: PurePosixPath) -> bool:
    """Whether a file of an archive is one; what systems and Jupyter add is none."""
    added = any(part == "__MACOSX" or part.startswith(".") for part in path.parts)
    return path.suffix == ".ipynb" and not added


def _assignment(autograder: Path) -> str:
    with zipfile.ZipFile(autograder) as archive:
        return str(json.loads(archive.read("otter_config.json"))["assignment_name"])


def _tests(autograder: Path) -> list[str]:
    with zipfile.ZipFile(autograder) as archive:
        names = archive.namelist()
    return sorted(Path(n).stem for n in names if n.startswith("tests/") and n.endswith(".py"))


def _prepared(
    notebook: Any, dead: dict[int, str], limit: int, autograder: Path, work: Path
) -> Path:
    """Its cells, marked, with limits in front, dead ones replaced, and every test at the end.

    Nothing else of it is taken over: it runs in this environment's kernel whatever it names.
    """
    name, tests = _assignment(autograder), _tests(autograder)
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        kind, source, own = cell.get("cell_type"), cell.get("source"), cell.get("metadata")
        source = "".join(map(str, source)) if isinstance(source, list) else str(source)
        new = {"cell_type": kind if kind in ("code", "markdown") else "raw", "id": f"cell-{number}"}
        new |= {"metadata": {**(own if isinstance(own, dict) else {}), MARK: number}}
        if kind == "code":
            new |= {"outputs": [], "execution_count": None}
        new["source"] = f"raise TimeoutError({dead[number]!r})" if number in dead else source
        cells.append(new)
    first: dict[str, Any] = {
        "cell_type": "code",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    cells.insert(0, first | {"source": LIMITS % (MESSAGE, MESSAGE, limit), "id": "limits"})
    for test in tests:
        cells.append(first | {"source": LAST.format(name=test), "id": f"last-{test}"})
    path = work / "submission.ipynb"
    metadata = {"kernelspec": KERNEL, "otter": {"assignment_name": name}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_bytes(json.dumps(whole, ensure_ascii=False).encode(errors="replace"))
    return path


def _archive(autograder: Path, dead: dict[str, str], work: Path) -> Path:
    """The autograder, with a test of no points in the place of those that do not end."""
    if not dead:
        return autograder
    path = work / "autograder.zip"
    with zipfile.ZipFile(autograder) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            name = Path(entry).stem
            if entry.startswith("tests/") and name in dead:
                points = _possible(content, work)
                content = STUB.format(name=name, points=points).encode()
            new.writestr(entry, content)
    return path


def _possible(content: bytes, work: Path) -> float:
    from otter.test_files.exception_test import ExceptionTestFile

    path = work / "test.py"
    path.write_bytes(content)
    return float(ExceptionTestFile.from_file(str(path)).possible)


def _attempt(
    notebook: Path, archive: Path, limit: int
) -> tuple[Any, tuple[str | None, int | None], str]:
    """Results; or None, the question and the cell where it ended, and why."""
    import nbconvert.preprocessors as preprocessors
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert.preprocessors.execute import ExecutePreprocessor
    from otter.run import main as run

    seen: dict[str, Any] = {}

    class Patient(ExecutePreprocessor):
        """Remembers where it is, and keeps no endless output."""

        def preprocess_cell(self, cell: Any, *details: Any) -> Any:
            seen["cell"], seen["size"] = cell, 0
            self.timeout = None if cell.metadata.get(MARK) is None else limit + GRACE
            if _CHECK.search(cell.source):  # one test to the limit, others a tenth of it
                self.timeout = 2 * limit + GRACE
            return super().preprocess_cell(cell, *details)

        def output(self, outs: Any, msg: Any, *details: Any) -> Any:
            seen["size"] = seen.get("size", 0) + len(str(msg.get("content", "")))
            return super().output(outs, msg, *details) if seen["size"] < OUTPUT else None

    try:
        with (
            contextlib.redirect_stdout(sys.stderr),
            mock.patch.object(preprocessors, "ExecutePreprocessor", Patient),
        ):
            found = run(str(notebook), autograder=str(archive), output_dir="", no_logo=True)
    except (DeadKernelError, CellTimeoutError) as error:
        late = isinstance(error, CellTimeoutError)
        why = f"did not end within {limit} s" if late else "ended its kernel"
        cell = seen.get("cell") or {"source": "", "metadata": {}}
        test = _CHECK.search(cell["source"])
        return None, (test[1] if test else None, cell["metadata"].get(MARK)), why
    if not found.results:
        return None, (None, None), "the notebook left no results"
    return found, (None, None), ""


def _questions(results: Any) -> dict[str, Any]:
    found = {}
    for file in results.results.values():
        messages = [
            (case.message or "").replace("❌ Test case failed\n", "").strip()
            for case in file.test_case_results
            if not case.passed
        ]
        found[Path(file.path).stem] = {
            "score": round(float(file.score), 6),
            "possible": round(float(file.possible), 6),
            "messages": messages,
        }
    return found


# --- what a submission leaves running -------------------------------------------------------------


def adopt() -> None:
    """Have what a submission detaches become a child of this process, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def descendants(pid: int) -> Iterator[int]:
    """Children of a process, deepest first; none where the system has no /proc."""
    try:
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return
    for child in children:
        yield from descendants(child)
        yield child


def end(pids: Iterable[int]) -> None:
    """Kill processes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


# --- command line --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Build homeworks, or grade one submission into a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bookkit.otter_worker", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("build")
    made.add_argument("sources", nargs="+", type=Path)
    made.add_argument("out", type=Path)
    graded = commands.add_parser("grade")
    graded.add_argument("submission", type=Path)
    graded.add_argument("autograder", type=Path)
    graded.add_argument("result", type=Path)
    graded.add_argument("--limit", type=int, default=60)
    graded.add_argument("--memory", type=float, default=8.0)
    arguments = parser.parse_args(argv)
    if arguments.command == "build":
        for source in arguments.sources:
            print(build(source.resolve(), arguments.out.resolve()))
        return 0
    paths = (arguments.submission.resolve(), arguments.autograder.resolve())
    adopt()
    try:
        found = grade(*paths, limit=arguments.limit, memory=arguments.memory)
    except Refused as error:
        found = {"error": str(error)}
    except Exception as error:  # of this machine, or not foreseen: the next run tries again
        found = {"error": f"{type(error).__name__}: {error}", "final": False}
    end(descendants(os.getpid()))
    partial = arguments.result.with_suffix(f".{os.getpid()}.tmp")
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    partial.write_bytes(text.encode(errors="backslashreplace"))
    partial.replace(arguments.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
