"""`fabook new`: what it writes can be run, judged and listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import jupytext
import pytest
import yaml

from bookkit import claims, execute, exercises, new, notebooks
from bookkit.parameters import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    for name in ("claims.toml", "_toc.yml", "_config.yml"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book" / name)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def test_a_new_notebook_runs_and_is_judged(clone: Path) -> None:
    new.create(clone, "paper2025/a_result")
    made = new.create(clone, "paper2025/another")
    assert len(made) == 4, "its chapter was there"
    jobs = notebooks.plan(clone, ["paper2025/another"], preset="quick", out=clone / "out")
    (outcome,) = execute.run(jobs, n_jobs=1)
    assert outcome.status == "done", outcome
    assert [line.split()[:2] for line in outcome.lines] == [
        ["reproduced", "paper2025.another.holds"]
    ]


def test_a_new_notebook_is_a_page_as_the_others_are(clone: Path) -> None:
    new.create(clone, "paper2025/a_result")
    source = clone / "notebooks" / "paper2025" / "a_result.md"
    text = source.read_text(encoding="utf-8")
    tasks = exercises.tasks("paper2025/a_result", text)
    assert [task.skill for task in tasks] == ["Warm-up", "Change a parameter", "Code", "Open"]
    assert "{term}`" in text
    assert "\nNext: [" in text
    opened = jupytext.reads(text, fmt="md:myst")
    assert jupytext.writes(opened, fmt="md:myst") == text, "saving it in an editor would change it"


def test_a_comment_stays_with_its_claims(clone: Path) -> None:
    registry = clone / "book" / "claims.toml"
    before = registry.read_text(encoding="utf-8")
    new.create(clone, "paper2025/a_result")
    after = registry.read_text(encoding="utf-8")
    assert before[before.index("# --- ") :].rstrip() in after


def test_registry_and_contents_gain_what_they_need_and_keep_the_rest(clone: Path) -> None:
    before, old = claims.load(clone), yaml.safe_load((clone / "book/_toc.yml").read_text())
    new.create(clone, "paper2025/a_result")
    new.create(clone, "song2021/more")
    after = claims.load(clone)
    assert set(after) - set(before) == {"paper2025.a_result.holds", "song2021.more.holds"}
    assert {key: after[key] for key in before} == before
    assert "paper2025" in claims.papers(clone)
    chapters = {
        chapter["file"]: [section["file"] for section in chapter["sections"]]
        for part in yaml.safe_load((clone / "book/_toc.yml").read_text())["parts"]
        for chapter in part["chapters"]
        if "sections" in chapter
    }
    assert chapters["chapters/paper2025"] == ["notebooks/paper2025/a_result"]
    assert chapters["chapters/song2021"][-1] == "notebooks/song2021/more"
    assert sum(map(len, chapters.values())) == 2 + sum(
        len(c.get("sections", ())) for part in old["parts"] for c in part["chapters"]
    )


@pytest.mark.parametrize("name", ["result", "Paper/x", "a/b/c", "../x/y", "a/b.md", ""])
def test_other_names_are_refused(clone: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a notebook"):
        new.create(clone, name)


@pytest.mark.parametrize("result", ["lambda", "plots", "annotations", "range", "limits", "bars"])
def test_a_result_that_would_break_the_papers_figures_is_refused(clone: Path, result: str) -> None:
    figures = clone / "notebooks" / "paper2025" / "figures.py"
    if result in ("limits", "bars"):
        figures.parent.mkdir()
        figures.write_text("def limits(): ...\nbars = 1\n")
    before = {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"'paper2025/{result}': the function {result} of"):
        new.create(clone, f"paper2025/{result}")
    assert {path: path.read_bytes() for path in clone.rglob("*") if path.is_file()} == before
    if before.get(figures):
        figures.write_text("def limits(:")
        with pytest.raises(UsageError, match=r"figures\.py: "):
            new.create(clone, "paper2025/a_result")


def test_nothing_is_overwritten(clone: Path) -> None:
    new.create(clone, "paper2025/a_result")
    text = (clone / "notebooks/paper2025/a_result.md").read_text()
    with pytest.raises(UsageError, match="exists"):
        new.create(clone, "paper2025/a_result")
    assert (clone / "notebooks/paper2025/a_result.md").read_text() == text
