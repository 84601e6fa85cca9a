"""Exercises of the teaching pages: their solutions run, and the index knows every exercise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bookkit import notebooks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "book" / "teach" / "exercises.md").read_text(encoding="utf-8")
SOLUTIONS = dict(re.findall(r"````\{solution\} (\S+)\n(.*?)\n````", PAGE, re.DOTALL))
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


def test_the_index_leads_to_every_page_with_exercises() -> None:
    made: dict[str, str] = {}
    pages = [*notebooks.sources(ROOT), *(ROOT / "book").glob("*.md")]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"\{exercise(?:-start)?\}.*\n:label: (\S+)", text)
        made |= dict.fromkeys(found, path.relative_to(ROOT).as_posix())
    made.pop("ex-descent")  # on how to read a page, the example of what a solution looks like
    by_paper = PAGE.split("## By paper")[1].split("## By skill")[0]
    listed = set(re.findall(r"ex-[a-z-]+", by_paper))
    assert listed <= made.keys() | set(LABELS)
    linked = {
        link.lstrip("/").replace(".ipynb", ".md") for link in re.findall(r"\]\((\S+)\)", by_paper)
    }
    assert set(made.values()) == linked
    assert {made[label] for label in listed if label in made} == linked
    rows = [line for line in by_paper.splitlines() if "ex-" in line]
    assert all(re.search(r"\| ★{1,3} \| \d+ \|$", row) for row in rows)


def test_the_slides_are_a_deck() -> None:
    deck = (ROOT / "book" / "teach" / "slides.md").read_text(encoding="utf-8")
    assert deck.count('"slide_type": "slide"') + deck.count("slide_type: slide") >= 8
