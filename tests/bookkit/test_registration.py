"""Checks were committed before the runs that they judge."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bookkit import claims, registration

ROOT = Path(__file__).resolve().parents[2]
CLAIM = """[[claim]]
id = "toy.alpha.small"
notebook = "toy/alpha"
paper = "toy"
where = "Section 1"
statement = "The error is small."
source = "paper"
{more}
[[claim.check]]
quantity = "error"
label = "the error"
comparison = "<="
bound = {bound}
"""


def test_every_committed_verdict_was_registered() -> None:
    git = ["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.stdout.strip() != "false":
        pytest.skip("needs a clone with its whole history")
    assert registration.problems(ROOT) == []


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def commit(book: Path, date: str, bound: float, more: str = "") -> None:
    text = CLAIM.format(bound=bound, more=more)
    (book / "book" / "claims.toml").write_text(text, encoding="utf-8")
    git = ["git", "-C", str(book), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "add", "book/claims.toml"], check=True)
    when = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    subprocess.run(
        [*git, "commit", "-qm", "claims"], check=True, env=when | {"PATH": "/usr/bin:/bin"}
    )


def judged(book: Path, date: str, minutes: float = 1, **changes: Any) -> None:
    claim = claims.load(book)["toy.alpha.small"]
    entry = claims.judge(claim, "paper", {"error": 0.0}) | changes
    path = claims.published_path(book, "toy/alpha")
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"preset": "paper", "date": date, "minutes": minutes, "claims": [entry]}
    path.write_text(json.dumps(run))


def test_checks_before_the_run(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-03T00:00:00+00:00")
    assert registration.problems(book) == []


def test_a_checkpoint_of_results_counts_for_nothing(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-01T00:00:00+00:00")
    path = claims.published_path(book, "toy/alpha")
    (path.parent / ".ipynb_checkpoints").mkdir()
    path.rename(path.parent / ".ipynb_checkpoints" / path.name)
    assert registration.problems(book) == []


def test_checks_after_the_run(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-01T00:00:00+00:00")
    (line,) = registration.problems(book)
    assert "toy.alpha.small ran 2025-12-31 23:59" in line
    commit(book, "2026-01-04T00:00:00+00:00", 0.5, 'changed_after_run = "a wrong unit"')
    assert registration.problems(book) == []


def test_checks_during_the_run(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-02T00:30:00+00:00", minutes=29)
    assert registration.problems(book) == []
    judged(book, "2026-01-02T00:30:00+00:00", minutes=31)
    (line,) = registration.problems(book)
    assert "ran 2026-01-01 23:59" in line


def test_a_bound_that_was_moved_and_judged_by_an_old_run(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-03T00:00:00+00:00")
    commit(book, "2026-01-04T00:00:00+00:00", 0.9)
    (line,) = registration.problems(book)
    assert "was judged by other checks than today's" in line
    judged(book, "2026-01-03T00:00:00+00:00")  # a file that says otherwise is found out too
    (line,) = registration.problems(book)
    assert "its checks are of 2026-01-04" in line


def test_a_verdict_on_a_claim_that_is_gone(book: Path) -> None:
    commit(book, "2026-01-02T00:00:00+00:00", 0.5)
    judged(book, "2026-01-03T00:00:00+00:00", id="toy.alpha.gone")
    assert "toy.alpha.gone is not in the registry" in registration.problems(book)[0]
