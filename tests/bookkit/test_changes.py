"""Verdicts that changed between two revisions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bookkit import changes, claims
from bookkit.cli import main

CLAIM = """
[[claim]]
id = "toy.one.{name}"
notebook = "toy/one"
paper = "toy"
where = "nowhere"
statement = "{name} is small."
source = "derived"
[[claim.check]]
quantity = "x"
label = "x"
comparison = "<"
bound = 1.0
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    commit(tmp_path, "v1", kept=0.5, turned=0.5, gone=2.0)
    commit(tmp_path, "v2", kept=0.5, turned=2.0, new=0.5)
    return tmp_path


def commit(root: Path, tag: str, **values: float) -> None:
    registry = root / "book" / "claims.toml"
    results = root / "book" / "results" / "paper" / "toy" / "one.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    registry.write_text("".join(CLAIM.format(name=name) for name in values), encoding="utf-8")
    judged = [
        claims.judge(claim, "paper", {"x": values[claim.id.split(".")[-1]]})
        for claim in claims.load(root).values()
    ]
    content = {"schema": claims.SCHEMA, "notebook": "toy/one", "claims": judged}
    results.write_text(json.dumps(content), encoding="utf-8")
    own = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*own, "commit", "-qm", tag], ["tag", tag]):
        subprocess.run(["git", *command], cwd=root, check=True)


def test_changed_added_and_removed_claims_are_named(repository: Path) -> None:
    expected = [
        ("toy.one.turned", "changed", "reproduced", "not reproduced"),
        ("toy.one.new", "added", changes.ABSENT, "reproduced"),
        ("toy.one.gone", "removed", "not reproduced", changes.ABSENT),
    ]
    for revisions in ("v1", "v1..v2"):
        rows = changes.since(repository, revisions)
        assert [(r["id"], r["change"], r["was"], r["now"]) for r in rows] == expected
    assert changes.since(repository, "v1..v1") == []


def test_the_command_prints_markdown_or_json(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", "--since", "v1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "- **reproduced → not reproduced**: turned is small. (`toy.one.turned`)",
        "- **new, reproduced**: new is small. (`toy.one.new`)",
        "- **removed, was not reproduced**: gone is small. (`toy.one.gone`)",
    ]
    assert main(["claims", "--since", "v1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["claims", "--since", "v2"]) == 0
    assert capsys.readouterr().out == "No verdict changed.\n"
    assert main(["claims", "--since", "v3"]) == 2
    assert "git has no claims at 'v3'" in capsys.readouterr().err
