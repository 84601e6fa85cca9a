"""Where the repository lives: what a published page, and a notebook that left it, link to.

The address is that of whoever builds: `GITHUB_REPOSITORY`, which GitHub's workflows set, else the
git remote `origin`. So a fork publishes itself, and without either nothing is linked.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

NOTEBOOKS = "notebooks"  # the branch that holds the plain notebooks

_REMOTE = re.compile(
    r"(?:(?:https|ssh|git\+ssh)://(?:[^@/]*@)?|(?:[\w.-]+@))"  # a user's name or token is dropped
    r"(?P<host>[\w-]+(?:\.[\w-]+)+)(?::(?P<port>\d+))?[:/](?P<path>[\w./~-]+?)(?:\.git)?/?"
)


@dataclass(frozen=True)
class Address:
    """A repository on a code host.

    Args:
        server: the host, such as `https://github.com`.
        name: owner and repository, such as `owner/name`.
        branch: the branch that readers edit.
        commit: the one that is published, if it is known to be there.
    """

    server: str
    name: str
    branch: str = "main"
    commit: str = ""

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"{self.server}/{self.name}"

    @property
    def kind(self) -> str:
        """The software of the host as far as addresses go: github, gitlab, or "" if unknown."""
        if self.server == os.environ.get("GITHUB_SERVER_URL"):
            return "github"
        return next((kind for kind in ("github", "gitlab") if f"{kind}." in self.server), "")

    @property
    def requirement(self) -> str:
        """What pip installs the library and the notebooks' tools from."""
        at = f"@{self.commit}" if self.commit else ""
        return f"fabook[notebook] @ git+{self.url}.git{at}"

    def issue(self, about: str) -> str | None:
        """The page that opens an issue of this title."""
        pages = {"github": "issues/new?title=", "gitlab": "-/issues/new?issue[title]="}
        return f"{self.url}/{pages[self.kind]}{quote(about)}" if self.kind else None

    def edit(self, path: str) -> str | None:
        """The page that changes a file."""
        pages = {"github": "edit", "gitlab": "-/edit"}
        return f"{self.url}/{pages[self.kind]}/{self.branch}/{quote(path)}" if self.kind else None

    def colab(self, name: str) -> str | None:
        """The plain notebook `name` in Colab, which reads repositories of GitHub alone."""
        if self.server != "https://github.com":
            return None
        place = "https://colab.research.google.com/github"
        return f"{place}/{self.name}/blob/{NOTEBOOKS}/{quote(name)}.ipynb"

    def binder(self, name: str) -> str | None:
        """The plain notebook `name` in JupyterLab on Binder."""
        hosts = {
            "https://github.com": f"gh/{self.name}",
            "https://gitlab.com": f"gl/{quote(self.name, safe='')}",
        }
        if self.server not in hosts:
            return None
        start = f"{hosts[self.server]}/{NOTEBOOKS}?urlpath=lab/tree/{quote(name)}.ipynb"
        return f"https://mybinder.org/v2/{start}"


def parse(remote: str) -> tuple[str, str] | None:
    """Server and name of a git remote, None unless it is an https or ssh address.

    Example:
        >>> parse("git@github.com:owner/name.git"), parse("https://token@gitlab.com/a/b/name")
        (('https://github.com', 'owner/name'), ('https://gitlab.com', 'a/b/name'))
        >>> parse("/srv/git/name.git"), parse("file:///srv/name"), parse("https://localhost/a/b")
        (None, None, None)
    """
    found = _REMOTE.fullmatch(remote.strip())
    if found is None or "/" not in found["path"].strip("/"):
        return None
    port = f":{found['port']}" if found["port"] and remote.strip().startswith("https") else ""
    return f"https://{found['host'].lower()}{port}", found["path"].strip("/")


def of_workflow(environment: Mapping[str, str]) -> Address | None:
    """The repository whose workflow builds, None outside of one."""
    name = environment.get("GITHUB_REPOSITORY", "")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    server = environment.get("GITHUB_SERVER_URL") or "https://github.com"
    on_branch = environment.get("GITHUB_REF_TYPE") == "branch"
    branch = environment.get("GITHUB_REF_NAME") if on_branch else ""
    return Address(server, name, branch or "main", environment.get("GITHUB_SHA", ""))


def find(root: Path) -> Address | None:
    """The address of the repository `root`, None if nothing tells it.

    What git says counts only if `root` is the top of a clone: a package that was installed in
    someone's own repository does not live at its address.
    """
    if built := of_workflow(os.environ):
        return built
    top = _git(root, "rev-parse", "--show-toplevel")
    found = parse(_git(root, "remote", "get-url", "origin")) if top else None
    if found is None or Path(top).resolve() != root.resolve():
        return None
    default = _git(root, "rev-parse", "--abbrev-ref", "origin/HEAD").removeprefix("origin/")
    return Address(*found, default if default not in ("", "HEAD") else "main")


def _git(root: Path, *words: str) -> str:
    """What git says, "" if it fails or is not there."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
