"""Exercises of the teaching pages: their solutions run, and the index knows every exercise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bookkit import exercises, notebooks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "teach" / "exercises.md").read_text(encoding="utf-8")
SOLUTIONS = dict(re.findall(r"````\{solution\} (\S+)\n(.*?)\n````", PAGE, re.DOTALL))
STARS = {"Warm-up": 1, "Change a parameter": 2, "Open": 3}
LABELS = re.findall(r"```\{exercise\} .*\n:label: (\S+)", PAGE)


@pytest.mark.parametrize("label", LABELS)
def test_solutions_run(label: str) -> None:
    solution = SOLUTIONS[label]
    code = re.findall(r"```python\n(.*?)```", solution, re.DOTALL)
    assert code or label == "ex-teach-open"
    names: dict[str, Any] = {"__name__": "exercise"}
    before = torch.get_default_dtype()
    for block in code:
        assert "assert " in block
        exec(compile(block, label, "exec"), names)
    assert torch.get_default_dtype() == before


@pytest.mark.parametrize("path", notebooks.sources(ROOT), ids=lambda path: path.stem)
def test_every_notebook_has_exercises_from_warm_up_to_open(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tasks = exercises.tasks(path.stem, text)
    assert 3 <= len(tasks) <= 5
    minutes = {task.skill: task.minutes for task in tasks}
    assert minutes["Warm-up"] == 5
    assert minutes["Change a parameter"] == 10
    assert minutes["Open"] == 60
    assert any(15 <= minutes.get(skill, 0) <= 30 for skill in ("Code", "Derive", "Predict"))
    wrong = [t for t in tasks if t.skill in STARS and t.stars != STARS[t.skill]]
    assert not wrong
    for label in exercises.blocks(text):
        solution = exercises.solution(text, label)
        assert solution.startswith(":class: dropdown"), f"{label} has no folded solution"
        own = [task for task in tasks if task.label == label]
        if own != [task for task in own if task.skill == "Open"]:
            code = re.findall(r"```\{code-cell\}.*?\n(.*?)```", solution, re.DOTALL)
            assert "assert " in "".join(code), f"the code of {label} checks nothing"
        for number in (str(task.number) for task in own if task.number):
            answered = re.findall(r"^(?:\*\*)?([\d, and]+)\.", solution, re.MULTILINE)
            assert number in re.findall(r"\d", " ".join(answered)), (
                f"{label}: no answer to {number}"
            )


def test_tasks_are_grouped() -> None:
    found = exercises.tasks("", PAGE)
    assert [task.label for task in found] == LABELS
    assert {t.skill for t in found} == {"Warm-up", "Change a parameter", "Code", "Open"}
    by_length = exercises.group(found, "length")
    assert [t.label for t in by_length["5 minutes"]] == ["ex-teach-transport", "ex-teach-chance"]
    assert [t.label for t in by_length["an hour"]] == ["ex-teach-open"]
    by_skill = exercises.group(found, "skill")
    assert list(by_skill) == list(exercises.SKILLS)
    for text, message in (
        ("Count. Why?", "has no task"),
        ("★ *Guess, 5 minutes.* Why?", "is none"),
    ):
        with pytest.raises(ValueError, match=message):
            exercises.tasks("a", f"```{{exercise}}\n:label: ex-a\n{text}\n```")


def test_the_syllabus_says_of_every_page_what_it_is_for() -> None:
    syllabus = (ROOT / "book" / "teach" / "syllabus.md").read_text(encoding="utf-8")
    table = syllabus.split("page by page")[1].split("## ")[0]
    rows = re.findall(r"^\| \[.+?\]\(/(\S+)\.ipynb\) \| .{20,} \| .{5,} \|$", table, re.MULTILINE)
    pages = [p.relative_to(ROOT).with_suffix("").as_posix() for p in notebooks.sources(ROOT)]
    assert sorted(rows) == sorted(pages)


def test_the_slides_are_a_deck() -> None:
    deck = (ROOT / "book" / "teach" / "slides.md").read_text(encoding="utf-8")
    assert deck.count('"slide_type": "slide"') + deck.count("slide_type: slide") >= 8
    code = "".join(re.findall(r"```\{code-cell\} ipython3\n(?!---)(.*?)```", deck, re.DOTALL))
    assert max(map(len, code.splitlines())) <= 62  # what a slide shows of a line
