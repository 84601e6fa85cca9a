"""Grading a folder: parallel, resumable, and one submission never stops the others."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
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
with open({log!r}, "ab") as log:  # two workers write at a time
    log.write(os.fsencode(submission.name) + b"\\n")
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
    names = log.read_text().splitlines()
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


@pytest.fixture
def words(plan: grading.Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that grades as the plan does, but for its course."""
    (plan.folder.parent / "_build").mkdir()
    shutil.move(plan.homework.parent, plan.folder.parent / "_build" / "homework")
    monkeypatch.setattr("bookkit.claims.find_root", lambda: plan.folder.parent)
    return ["grade", str(plan.folder), "--python", str(plan.python), "--limit", "1"]


def test_a_fault_of_the_machine_is_no_result(
    plan: grading.Plan, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("wrong", "hangs", "crashes"):
        (plan.folder / f"{name}.ipynb").unlink()
    cured = plan.python.read_text()
    # the worker itself, where otter or what it needs is missing; one that does nothing
    for broken in (f'exec "{sys.executable}" "$@"', "true"):
        plan.python.write_text(f"#!/bin/sh\n{broken}\n")
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert said == "fabook: failed here, the next run tries again: right.ipynb\n"
        assert "Could not be graded" in (plan.out / "feedback" / "right.ipynb.txt").read_text()
    plan.python.write_text(cured)
    assert cli.main(words) == 0
    assert [row["total"] for row in table(plan)] == ["2"]
    assert "Could not" not in (plan.out / "feedback" / "right.ipynb.txt").read_text()


def test_no_feedback_is_lost(plan: grading.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wrong", "hangs", "crashes"):
        (plan.folder / f"{name}.ipynb").unlink()
    feedback, writes = plan.out / "feedback" / "right.ipynb.txt", iter([grading.write])

    def once(path: Path, content: str) -> None:  # a kill comes between the two files
        next(writes)(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(grading, "write", once)
        grading.grade(plan, lambda *_: None)
    for text in (None, "by the teacher"):
        grading.grade(plan, lambda *_: None)
        assert "1. Signals: 2 of 2" in feedback.read_text()
        feedback.unlink()
        if text:
            feedback.write_text(text)  # what is there stays
            grading.grade(plan, lambda *_: None)
            assert feedback.read_text() == text


@pytest.mark.parametrize("memory", ["nan", "inf", "0", "-1"])
def test_memory_is_a_positive_number(
    words: list[str], memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--memory", memory]) == 2
    assert "--memory must be a positive number of GB, got" in capsys.readouterr().err


NAMES = (
    "José Müller (2).ipynb",
    "=1+1.ipynb",
    "SHOUTED.IPYNB",
    os.fsdecode(b"jos\xe9.ipynb"),  # as Windows writes it into a zip file
    "n" * 249 + ".ipynb",
    "right.zip",  # beside right.ipynb
)


def test_any_name_of_a_file_will_do(
    plan: grading.Plan, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("hangs", "crashes", "wrong"):
        (plan.folder / f"{name}.ipynb").unlink()
    for name in NAMES:
        (plan.folder / name).write_text(notebook())
    (plan.folder / "notes.txt").write_text("")
    (plan.folder / "a folder").mkdir()
    (plan.folder / "nowhere.ipynb").symlink_to("nothing")
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in said.err.splitlines()] == [
        "a folder", "notes.txt", "nowhere.ipynb",
    ]  # fmt: skip
    assert "jos\\xe9.ipynb: 0.5 points" in said.out
    totals = {row["submission"]: row["total"] for row in table(plan)}
    assert totals.pop("right.ipynb") == totals.pop("right.zip") == "2"
    assert sorted(totals) == [
        "'=1+1.ipynb", "José Müller (2).ipynb", "SHOUTED.IPYNB", "jos\\xe9.ipynb", NAMES[4],
    ]  # fmt: skip
    assert set(totals.values()) == {"0.5"}
    assert len(list((plan.out / "feedback").iterdir())) == 7
    log = plan.python.with_name("log")
    log.write_text("")
    assert cli.main(words) == 0
    assert log.read_text() == ""  # each has its own result


def test_what_fails_here_stops_no_other(
    plan: grading.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(plan: grading.Plan, path: Path, *rest: Any) -> dict[str, Any]:
        if path.stem == "wrong":
            raise OSError("no space left")
        return {"questions": {"q1": {"score": 2.0, "possible": 2.0, "messages": []}}, "seconds": 1}

    monkeypatch.setattr(grading, "_run", run)
    rows = {row["submission"]: row for row in grading.grade(plan, lambda *_: None)}
    assert rows["wrong.ipynb"]["error"] == "OSError: no space left"
    assert [row["total"] for row in table(plan)] == ["2", "2", "2", "0"]


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


def test_damaged_and_swollen_files(plan: grading.Plan) -> None:
    for path in plan.folder.iterdir():
        path.unlink()
    whole = plan.folder / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("homework/hw1.ipynb", notebook())
        archive.writestr("__MACOSX/homework/._hw1.ipynb", b"\0\5")
        archive.writestr("homework/.ipynb_checkpoints/hw1-checkpoint.ipynb", notebook("hw2"))
    content = whole.read_bytes()
    (plan.folder / "damaged.zip").write_bytes(content[:60] + bytes(30) + content[90:])
    (plan.folder / "torn.zip").write_bytes(content[:-40])
    with zipfile.ZipFile(plan.folder / "swollen.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hw1.ipynb", b" " * (otter_worker.SIZE + 1))
    (plan.folder / "latin.ipynb").write_bytes(
        notebook("hw1").replace("hw1", "caf\xe9").encode("latin-1")
    )
    (plan.folder / "deep.ipynb").write_text('{"cells":' + "[" * 10**5 + "]" * 10**5 + "}")
    (plan.folder / "marked.ipynb").write_bytes(b"\xef\xbb\xbf" + notebook().encode())
    assert grading.locate(plan.folder, plan.homework.parent, None) == plan.homework
    said = {}
    for path in plan.folder.iterdir():
        try:
            otter_worker.read(path)
        except otter_worker.Refused as error:
            said[path.name] = str(error)
    assert sorted(said) == ["damaged.zip", "deep.ipynb", "latin.ipynb", "swollen.zip", "torn.zip"]
    assert said["torn.zip"] == "this is no notebook: a zip file that is not whole"
    assert said["latin.ipynb"] == "this is no notebook: it is not UTF-8"
    assert said["swollen.zip"] == "more than 100 MB: clear the outputs"


def test_what_runs_of_a_notebook(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "autograder.zip", "w") as archive:
        archive.writestr("otter_config.json", '{"assignment_name": "hw1"}')
        archive.writestr("tests/q1.py", "points = 2")
    written: Any = {
        "metadata": {"kernelspec": {"name": "conda-env-ml"}, "otter": {"assignment_name": "hw1"}},
        "cells": [
            {"cell_type": "code", "source": ["a = 1\n", "b = '\ud800'"], "metadata": None},
            {"cell_type": "code", "source": 5, "outputs": 3},
            {"cell_type": "new", "source": "text"},
            {},
        ],
    }
    path = otter_worker._prepared(written, {1: "no end"}, 9, tmp_path / "autograder.zip", tmp_path)
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    kinds, sources = zip(*((c["cell_type"], c["source"]) for c in made["cells"]), strict=True)
    assert kinds == ("code", "code", "code", "raw", "raw", "code")
    assert sources[1:3] == ("a = 1\nb = '?'", "raise TimeoutError('no end')")
    assert "./tests/q1.py" in sources[-1]
    otter_worker.belongs(written, "hw1")
    otter_worker.belongs({"metadata": 3}, "hw1")  # lost on the way: the folder says what it is
    with pytest.raises(otter_worker.Refused, match="the notebook of 'hw1', not of 'hw2'"):
        otter_worker.belongs(written, "hw2")


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
    "an exit in an answer": ("length = a.norm", "exit()\n    length = a.norm", {"q2"}),
    "an exit in a cell": ("predicted_two =", "quit()\npredicted_two =", {"q4"}),
    "tests removed": (
        "predicted_two =", "import shutil; shutil.rmtree('tests')\npredicted_two =", set(),
    ),
    "a long message": (
        "length = a.norm", "raise ValueError('x' * 10**7)\n    length = a.norm", {"q2"},
    ),
    "another folder": ("predicted_two =", "import os; os.chdir('/')\npredicted_two =", set()),
    "left running": (
        "predicted_two =",
        "import subprocess\n"
        "subprocess.Popen(['sleep', '86387'], start_new_session=True)\n"
        "subprocess.run('setsid nohup sleep 86387 &', shell=True)\npredicted_two =",
        set(),
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
        solution["metadata"]["kernelspec"]["name"] = "conda-env-ml"  # not here
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(solution))
    other = built.parent / "hw2" / "student" / "hw2.ipynb"
    (tmp_path / "of another homework.ipynb").write_bytes(other.read_bytes())
    (tmp_path / "nonsense.ipynb").write_text("nonsense")
    python = ROOT / ".venv-homework" / "bin" / "python"
    plan = grading.Plan(tmp_path, tmp_path / "out", built, python, limit=30)  # a busy machine
    rows = {Path(r["submission"]).stem: r for r in grading.grade(plan, lambda *_: None)}
    for name, (_, _, hurt) in HARM.items():
        lost = {q for q, f in rows[name]["questions"].items() if f["score"] < f["possible"]}
        assert lost == hurt, (name, rows[name])
        assert len(json.dumps(rows[name])) < 20_000
    assert "the answer ends the program" in json.dumps(rows["an exit in an answer"])
    assert "this is no notebook" in rows["nonsense"]["error"]
    assert "the notebook of 'hw2'" in rows["of another homework"]["error"]
    for trace in (tmp_path, Path("86387")):
        assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if _under(p, trace)]


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
