"""GitHub's workflows: pinned, with the least permissions, and calling what exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bookkit import arguments

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WRITES = {  # job -> what it may write, for all others nothing
    ("publish", "deploy"): {"pages", "id-token"},
    ("publish", "notebooks"): {"contents"},
    ("nightly", "report"): {"issues"},
    ("links", "report"): {"issues"},
    ("release", "pypi"): {"id-token"},
    ("release", "release"): {"contents", "actions"},
}
ids = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def scripts(path: Path) -> Iterator[str]:
    for job in jobs(path).values():
        yield from (step["run"] for step in job["steps"] if "run" in step)


def test_every_workflow_is_there() -> None:
    assert {path.stem for path in FILES} == {"links", "nightly", "publish", "release", "test"}


@ids
def test_actions_are_pinned_by_commit_and_name_their_version(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    pinned = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [line for line in uses if not pinned.fullmatch(line)] == []


@ids
def test_jobs_may_write_only_what_they_must(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    everyone = workflow["permissions"]
    assert set(everyone.values()) <= {"read"}
    for name, job in jobs(path).items():
        allowed = job.get("permissions", everyone)
        writes = {scope for scope, level in allowed.items() if level == "write"}
        assert writes == WRITES.get((path.stem, name), set()), name
        assert job["timeout-minutes"] <= 360, name


@ids
def test_nothing_of_an_event_is_pasted_into_a_shell(path: Path) -> None:
    assert [text for text in scripts(path) if "${{" in text] == []
    assert "pull_request_target" not in path.read_text(encoding="utf-8")


@ids
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in scripts(path):
        for words in re.findall(r"\bmake ([^\n;|]*)", text):
            wanted = [word for word in words.split() if "=" not in word]
            assert set(wanted) <= targets, words
        for words in re.findall(r"bin/fabook ([^\n;>|]*)", text):
            options = re.sub(r'"\$\w+"', "v1", words).split()
            assert arguments.parser().parse_args(options).command == options[0]
