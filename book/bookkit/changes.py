"""What changed in the verdicts of the paper preset between two revisions of git.

Both sides are read from files alone: the registry of claims and the committed results.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bookkit import claims

READ = ("book/claims.toml", "book/results/paper")
ABSENT = "–"  # no such claim on this side


def since(root: Path, revisions: str) -> list[dict[str, str]]:
    """Claims whose verdict changed, or that were added or removed, in the registry's order.

    Args:
        root: the repository.
        revisions: `OLD`, compared with the working tree, or `OLD..NEW`.

    Raises:
        ValueError: for a revision that git does not know, or whose claims cannot be read.
    """
    old, _, new = revisions.partition("..")
    before = _at(root, old)
    return compare(before, _at(root, new) if new else _verdicts(root))


def compare(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """The rows of `since` from the scorecards of both sides, by the ids of claims.

    Example:
        >>> old = {"a": {"verdict": "reproduced", "statement": "So."}}
        >>> compare(old, {"a": {"verdict": "undecided", "statement": "So."}})[0]["now"]
        'undecided'
    """
    rows = []
    for id in [*after, *(id for id in before if id not in after)]:
        was, now = before.get(id), after.get(id)
        verdicts = [ABSENT if side is None else str(side["verdict"]) for side in (was, now)]
        if verdicts[0] != verdicts[1]:
            kind = "added" if was is None else "removed" if now is None else "changed"
            statement = str((now or was or {})["statement"])
            rows.append(
                {"id": id, "change": kind, "was": verdicts[0], "now": verdicts[1]}
                | {"statement": " ".join(statement.split())}
            )
    return rows


def markdown(rows: Iterable[Mapping[str, str]]) -> str:
    """The rows as a list for a changelog.

    Example:
        >>> markdown([])
        'No verdict changed.'
    """
    words = {
        "changed": "**{was} → {now}**: {statement} (`{id}`)",
        "added": "**new, {now}**: {statement} (`{id}`)",
        "removed": "**removed, was {was}**: {statement} (`{id}`)",
    }
    lines = [f"- {words[row['change']].format(**row)}" for row in rows]
    return "\n".join(lines) or "No verdict changed."


def _verdicts(root: Path) -> dict[str, dict[str, Any]]:
    rows = claims.scorecard(root, root / "book" / "results" / "none", presets=("paper",))
    return {row["id"]: row for row in rows}


def _at(root: Path, revision: str) -> dict[str, dict[str, Any]]:
    command = ["git", "-C", str(root), "archive", revision, "--", *READ]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        raise ValueError(f"git has no claims at {revision!r}: {done.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        try:
            return _verdicts(Path(folder))
        except claims.ClaimsError as error:
            raise ValueError(f"the claims at {revision!r} cannot be read: {error}") from error
