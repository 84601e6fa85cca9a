"""That a claim's checks were there before the run that judges them: proved from git's history."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from bookkit import claims
from bookkit.files import toml

_FILE = "book/claims.toml"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def first_seen(root: Path) -> dict[tuple[str, str, str], datetime]:
    """When each version of a claim's checks was committed first: (id, preset, hash) -> time.

    Args:
        root: a clone with its whole history.

    Raises:
        subprocess.CalledProcessError: where there is no history.
    """
    seen: dict[tuple[str, str, str], datetime] = {}
    commits = _git(root, "log", "--reverse", "--format=%H %cI", "--", _FILE).splitlines()
    for commit, time in (line.split() for line in commits):
        try:
            found = claims.parse(toml(_git(root, "show", f"{commit}:{_FILE}")))
        except ValueError:  # of another time's rules; a later commit has the same checks
            continue
        for claim in found.values():
            for preset in claims.PRESETS:
                key = (claim.id, preset, claim.registered(preset))
                seen.setdefault(key, datetime.fromisoformat(time))
    return seen


def problems(root: Path) -> list[str]:
    """A line for each committed verdict whose checks are not those of the registry, or are younger
    than the beginning of the run that they judge.

    A claim that says why (`changed_after_run`) may be younger.
    """
    registry, seen, lines = claims.load(root), first_seen(root), []
    for path in claims.result_files(root / "book" / "results"):
        results = json.loads(path.read_text(encoding="utf-8"))
        preset, ended = results["preset"], datetime.fromisoformat(results["date"])
        ran = ended - timedelta(minutes=results["minutes"])
        for entry in results["claims"]:
            claim = registry.get(entry["id"])
            if claim is None:
                lines.append(f"{path.name}: {entry['id']} is not in the registry")
            elif entry["registered"] != claim.registered(preset):
                lines.append(f"{path.name}: {claim.id} was judged by other checks than today's")
            elif claim.changed_after_run is None:
                committed = seen.get((claim.id, preset, entry["registered"]))
                if committed is None or committed > ran:
                    lines.append(
                        f"{path.name}: {claim.id} ran {ran}, its checks are of {committed}"
                    )
    return lines
