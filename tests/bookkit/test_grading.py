"""Grading a folder: parallel, resumable, and one submission never stops the others."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bookkit import cli, grading, otter_worker

ROOT = Path(__file__).resolve().parents[2]
# Stands for the homework environment's interpreter: what happens depends on the submission's name.
WORKER = """#!{python}
import json, sys, time, os
from pathlib import Path
submission, result = Path(sys.argv[4]), Path(sys.argv[6])
with open({log!r}, "a") as log:  # two workers write at a time
    log.write(submission.name + "\\n")
if "hangs" in submission.name:
    time.sleep(1000)
if "crashes" in submission.name:
    sys.exit("out of memory")
score = 2.0 if "right" in submission.name else 0.5
messages = [] if score == 2 else ["a\\nz > 0"]
found = {{"q1": {{"score": score, "possible": 2.0, "messages": messages}}}}
notes = [os.environ["FABOOK_COURSE"]]
result.write_text(json.dumps({{"questions": found, "notes": notes, "seconds": 1}}))
"""


def notebook(name: str = "hw1", *sources: str) -> str:
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [code | {"source": source, "id": f"c{k}"} for k, source in enumerate(sources)]
    metadata = {"otter": {"assignment_name": name}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> grading.Plan:
    monkeypatch.setattr(grading, "CELLS", 10)  # seconds in all; a busy machine starts Python slowly
    folder, homework = tmp_path / "submissions", tmp_path / "built" / "hw1"
    folder.mkdir()
    homework.mkdir(parents=True)
    with zipfile.ZipFile(homework / "autograder.zip", "w") as archive:
        archive.writestr("tests/q1.py", "points = 2")
    about = {
        "q1": {"title": "1. Signals", "manual": False, "points": None},
        "q2": {"title": "2. In words", "manual": True, "points": 1.5},
    }
    (homework / "questions.json").write_text(json.dumps(about))
    for name in ("right", "wrong", "hangs", "crashes"):
        (folder / f"{name}.ipynb").write_text(notebook())
    log, python = tmp_path / "log", tmp_path / "python"
    log.write_text("")
    python.write_text(WORKER.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)
    return grading.Plan(folder, folder / "graded", homework, python, course=5, limit=1)


def table(plan: grading.Plan) -> list[dict[str, str]]:
    with (plan.out / "grades.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def graded(plan: grading.Plan) -> list[str]:
    """The submissions that the worker was asked for since the last look."""
    log = plan.python.with_name("log")
    names = log.read_text().split()
    log.write_text("")
    return sorted(names)


@pytest.mark.fault(
    "a submission that crashes, or never ends", "zero points for it, and the others are graded"
)
def test_a_folder(plan: grading.Plan) -> None:
    seen: list[str] = []
    grading.grade(plan, lambda name, row: seen.append(name))
    assert len(seen) == 4
    rows = {row["submission"]: row for row in table(plan)}
    totals = {name: row["total"] for name, row in rows.items()}
    assert totals == {
        "crashes.ipynb": "0", "hangs.ipynb": "0", "right.ipynb": "2", "wrong.ipynb": "0.5",
    }  # fmt: skip
    assert rows["right.ipynb"]["notes"] == "5"  # the course seed reaches the worker
    assert rows["right.ipynb"]["q2 (by hand)"] == ""
    assert "out of memory" in rows["crashes.ipynb"]["notes"]
    assert "stopped after 10 s" in rows["hangs.ipynb"]["notes"]
    feedback = (plan.out / "feedback" / "wrong.ipynb.txt").read_text()
    assert "1. Signals: 0.5 of 2\n    z > 0" in feedback
    assert "2. In words: read by a person" in feedback
    with Image.open(plan.out / "histogram.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(100_000)}
    assert (0, 0x62, 0xD0) in colours  # there are bars


def test_a_second_run_does_what_is_left(plan: grading.Plan) -> None:
    for name in ("hangs", "crashes"):
        (plan.folder / f"{name}.ipynb").unlink()
    grading.grade(plan, lambda *_: None)
    assert graded(plan) == ["right.ipynb", "wrong.ipynb"]
    (plan.folder / "wrong.ipynb").write_text(notebook("hw1", "handed_in = 'again'"))
    (plan.folder / "new.ipynb").write_text(notebook())
    grading.grade(plan, lambda *_: None)
    assert graded(plan) == ["new.ipynb", "wrong.ipynb"]
    (plan.out / "results" / "right.ipynb.json").write_text("{ half a fi")
    grading.grade(plan, lambda *_: None)
    assert graded(plan) == ["right.ipynb"]
    grading.grade(grading.Plan(**vars(plan) | {"course": 6}), lambda *_: None)
    assert graded(plan) == ["new.ipynb", "right.ipynb", "wrong.ipynb"]


def test_what_was_not_the_submissions_fault_is_tried_again(plan: grading.Plan) -> None:
    for name in ("right", "wrong", "hangs"):
        (plan.folder / f"{name}.ipynb").unlink()
    for _ in range(2):
        grading.grade(plan, lambda *_: None)
        assert graded(plan) == ["crashes.ipynb"]


def test_which_homework(plan: grading.Plan) -> None:
    assert grading.locate(plan.folder, plan.homework.parent, None) == plan.homework
    with pytest.raises(grading.GradingError, match="make homework"):
        grading.locate(plan.folder, plan.homework.parent, "hw9")
    for path in plan.folder.iterdir():
        path.write_text("{}")
    with pytest.raises(grading.GradingError, match="--homework NAME"):
        grading.locate(plan.folder, plan.homework.parent, None)
    with zipfile.ZipFile(plan.folder / "one.zip", "w") as archive:
        archive.writestr("hw1.ipynb", notebook())
    assert grading.locate(plan.folder, plan.homework.parent, None) == plan.homework


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grade", str(tmp_path / "nothing")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert cli.main(["grade", str(tmp_path), "--python", str(tmp_path / "none")]) == 2
    assert "run `make homework`" in capsys.readouterr().err
    assert cli.main(["grade", str(tmp_path), "--python", sys.executable]) == 2
    assert "holds no submissions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "this is no notebook"),
        (b"[]", "this is no notebook"),
        (b'{"cells": 3}', "its cells are no list"),
        (b'{"cells": [1]}', "its cells are no list"),
    ],
)
def test_files_that_are_no_notebooks(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "it.ipynb").write_bytes(content)
    with pytest.raises(otter_worker.Refused, match=message):
        otter_worker.read(tmp_path / "it.ipynb")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.ipynb", notebook())
        archive.writestr("b.ipynb", notebook())
    with pytest.raises(otter_worker.Refused, match="expected one notebook"):
        otter_worker.read(tmp_path / "two.zip")


# What these do to themselves costs the question where they do it, and no other.
HARM = {
    "endless call": ("gate = {l", "while True: pass\n    gate = {l", {"q1", "q3"}),
    "kernel killed by a test": (
        "length = a.norm", "import os; os._exit(1)\n    length = a.norm", {"q2"},
    ),
    "endless cell": ("predicted_two =", "while True: pass\npredicted_two =", {"q4"}),
    "stubborn cell": (
        "predicted_two =",
        "n = 0\nwhile True:\n    try:\n        while True:\n            n += 1\n"
        "    except BaseException:\n        n = 0\npredicted_two =",
        {"q4"},
    ),
    "memory": ("length = a.norm", "torch.ones(10**12)\n    length = a.norm", {"q2"}),
    "endless output": (
        "predicted_two =", "while True: print('no end' * 100)\npredicted_two =", {"q4"}
    ),
}  # fmt: skip


def test_harm_stays_in_its_question(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    if not pytestconfig.getoption("--otter"):
        assert "--otter tests/homework tests/bookkit/test_grading.py" in (
            (ROOT / "Makefile").read_text()
        )  # there it runs, with otter
        return
    built = ROOT / "_build" / "homework" / "hw1"
    for name, (old, new, _) in HARM.items():
        solution: dict[str, Any] = json.loads((built / "hw1-solution.ipynb").read_text())
        for cell in solution["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.startswith('"""'):
                cell["source"] = source.replace(old, new)
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(solution))
    (tmp_path / "nonsense.ipynb").write_text("nonsense")
    python = ROOT / ".venv-homework" / "bin" / "python"
    plan = grading.Plan(tmp_path, tmp_path / "out", built, python, limit=15)
    rows = {Path(r["submission"]).stem: r for r in grading.grade(plan, lambda *_: None)}
    for name, (_, _, hurt) in HARM.items():
        lost = {q for q, f in rows[name]["questions"].items() if f["score"] < f["possible"]}
        assert lost == hurt, (name, rows[name])
    assert "this is no notebook" in rows["nonsense"]["error"]
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if _under(p, tmp_path)]


def test_the_page_says_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "tests" / "bench_grading.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    text = (ROOT / "book" / "teach" / "teach.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "book" / "teach" / "grading.json").read_text(encoding="utf-8"))
    assert bench.page(text, found) == text
    assert found["wrong"] == []


def _under(cmdline: Path, folder: Path) -> bool:
    """Whether a process that names the folder is left."""
    try:
        return str(folder).encode() in cmdline.read_bytes() and cmdline.parent.name != str(
            os.getpid()
        )
    except OSError:
        return False
