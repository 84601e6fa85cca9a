"""The repository's address at build time: what it is taken from, and the links it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bookkit import address

VARIABLES = ("REPOSITORY", "SERVER_URL", "REF_TYPE", "REF_NAME", "SHA")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"GITHUB_{name}", raising=False)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", "-b", "main", str(tmp_path)], check=True)
    return tmp_path


def remote(clone: Path, url: str) -> None:
    command = ["git", "-C", str(clone), "remote", "add", "origin", url]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    ("url", "server", "name"),
    [
        ("https://github.com/owner/name", "https://github.com", "owner/name"),
        ("https://github.com/owner/na.me.git", "https://github.com", "owner/na.me"),
        ("https://GitHub.com/owner/name/", "https://github.com", "owner/name"),
        ("https://user:secret@github.com/owner/name.git", "https://github.com", "owner/name"),
        ("https://x-access-token:s3cr3t@git.host.org/o/n", "https://git.host.org", "o/n"),
        ("https://git.host.org:8443/o/n", "https://git.host.org:8443", "o/n"),
        ("git@github.com:owner/name.git", "https://github.com", "owner/name"),
        (
            "ssh://git@git.host.org:2222/group/sub/name.git",
            "https://git.host.org",
            "group/sub/name",
        ),
    ],
)
def test_a_remote_of_a_code_host(clone: Path, url: str, server: str, name: str) -> None:
    remote(clone, url)
    found = address.find(clone)
    assert found == address.Address(server, name)
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    "url", ["/srv/git/name.git", "../other", "file:///srv/name.git", "https://localhost/o/n", "x:y"]
)
def test_a_remote_of_no_code_host(clone: Path, url: str) -> None:
    remote(clone, url)
    assert address.find(clone) is None


def test_no_remote_no_git_and_a_package_in_someones_repository(
    clone: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert address.find(clone) is None
    assert address.find(tmp_path_factory.mktemp("elsewhere")) is None
    remote(clone, "https://github.com/someone/else")
    (clone / "site").mkdir()
    assert address.find(clone / "site") is None
    monkeypatch.setenv("PATH", "")
    assert address.find(clone) is None


def test_the_environment_of_a_workflow_comes_first(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote(clone, "https://github.com/owner/name")
    monkeypatch.setenv("GITHUB_REPOSITORY", "fork/name")
    found = address.find(clone)
    assert found == address.Address("https://github.com", "fork/name")
    for name, value in {"REF_TYPE": "branch", "REF_NAME": "trunk", "SHA": "abc"}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://code.host.org")
    found = address.find(clone)
    assert found == address.Address("https://code.host.org", "fork/name", "trunk", "abc")
    assert found.edit("a.md") == "https://code.host.org/fork/name/edit/trunk/a.md"
    assert found.colab("paper/a") is None
    assert found.binder("paper/a") is None
    monkeypatch.setenv("GITHUB_REF_TYPE", "tag")
    assert address.find(clone) == address.Address(
        "https://code.host.org", "fork/name", "main", "abc"
    )
    monkeypatch.setenv("GITHUB_REPOSITORY", "no address")
    assert address.find(clone) == address.Address("https://github.com", "owner/name")


def test_links_on_github() -> None:
    found = address.Address("https://github.com", "owner/name")
    assert found.url == "https://github.com/owner/name"
    assert found.issue("a b") == "https://github.com/owner/name/issues/new?title=a%20b"
    assert found.edit("book/intro.md") == "https://github.com/owner/name/edit/main/book/intro.md"
    assert found.colab("paper/a") == (
        "https://colab.research.google.com/github/owner/name/blob/notebooks/paper/a.ipynb"
    )
    assert found.binder("paper/a") == (
        "https://mybinder.org/v2/gh/owner/name/notebooks?urlpath=lab/tree/paper/a.ipynb"
    )
    assert found.requirement == "fabook[notebook] @ git+https://github.com/owner/name.git"


def test_links_on_other_hosts() -> None:
    found = address.Address("https://gitlab.com", "group/sub/name", "main", "abc")
    assert found.issue("a") == ("https://gitlab.com/group/sub/name/-/issues/new?issue[title]=a")
    assert found.edit("a.md") == "https://gitlab.com/group/sub/name/-/edit/main/a.md"
    assert found.colab("paper/a") is None
    assert str(found.binder("paper/a")).startswith(
        "https://mybinder.org/v2/gl/group%2Fsub%2Fname/notebooks?"
    )
    assert found.requirement.endswith("name.git@abc")
    other = address.Address("https://code.host.org", "owner/name")
    assert [other.issue("a"), other.edit("a.md"), other.colab("a"), other.binder("a")] == [None] * 4
