"""JupyterLab on the sources: they open as notebooks on a double click.

The settings come from a folder of this package, beside the reader's own, and open tabs are kept
with the runs: nothing that is a reader's is changed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from bookkit import claims, notebooks
from bookkit.parameters import UsageError

SETTINGS = Path(__file__).parent / "jupyter"  # labconfig/default_setting_overrides.json


def command(
    root: Path, out: Path, name: str | None = None, *, port: int | None = None, browser: bool = True
) -> list[str]:
    """The command that opens JupyterLab.

    Args:
        root: a clone of the book.
        out: folder of runs, where JupyterLab keeps which tabs are open.
        name: the notebook to show.
        port: where to serve it (JupyterLab's choice).
        browser: whether to open one.

    Raises:
        UsageError: without JupyterLab, without a clone, or for an unknown notebook.
    """
    if root == claims.PACKAGED:
        raise UsageError(
            "fabook lab opens the sources of a clone, and this is an installed package; plain "
            "notebooks open anywhere: fabook export --to DIR"
        )
    if importlib.util.find_spec("jupyterlab") is None:
        raise UsageError(f"JupyterLab is not installed; in {root}: pip install -e '.[lab]'")
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    words.append(f"--LabApp.workspaces_dir={out / 'jupyterlab'}")
    if name is not None:
        notebook = notebooks.one(root, name)
        if not notebook.path.is_relative_to(root):
            raise UsageError(f"{notebook.path} is not in {root}")
        path = notebook.path.relative_to(root).as_posix()
        words.append(f"--LabApp.default_url=/lab/tree/{quote(path)}")
    if port is not None:
        words.append(f"--ServerApp.port={port}")
    return words if browser else [*words, "--no-browser"]


def environment() -> dict[str, str]:
    """The environment of JupyterLab: this one, with the settings among those that are read."""
    others = os.environ.get("JUPYTER_CONFIG_PATH")
    paths = os.pathsep.join(filter(None, [others, str(SETTINGS)]))
    return os.environ | {"JUPYTER_CONFIG_PATH": paths}


def run(words: list[str]) -> int:
    """Run JupyterLab in this process's place, which leaves it the keyboard."""
    if os.name == "posix":
        os.execve(words[0], words, environment())
    return subprocess.run(words, env=environment(), check=False).returncode
