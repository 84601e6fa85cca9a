"""The command line: help, listings for machines, and what it costs to start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bookkit import arguments, cli

COMMANDS = (
    "list",
    "run",
    "sweep",
    "show",
    "claims",
    "build",
    "export",
    "lab",
    "data",
    "data prepare",
    "grade",
    "doctor",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one notebook and one claim."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.toml").write_text(
        '[[claim]]\nid = "toy.alpha.small"\nnotebook = "toy/alpha"\npaper = "toy"\n'
        'where = "Section 1"\nstatement = "It is small."\nsource = "paper"\npaper_value = "0.01"\n'
        '[[claim.check]]\nquantity = "error"\nlabel = "error"\ncomparison = "<="\nbound = 0.5\n',
        encoding="utf-8",
    )
    (tmp_path / "notebooks" / "toy").mkdir(parents=True)
    (tmp_path / "notebooks" / "toy" / "alpha.md").write_text(
        "---\nkernelspec: {name: python3}\nfabook:\n  minutes: {quick: 0.5}\n---\n"
        "\n# Alpha, in short\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    monkeypatch.delenv("FABOOK_DATA", raising=False)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  fabook " in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "words",
    [
        *(["fly"], ["run", "--jobs", "0"], ["run", "--fast"], ["sweep"], ["data"]),
        ["list", "toy", "--runs"],
    ],
)
def test_wrong_usage_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: fabook" in capsys.readouterr().err


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "usage: fabook" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fabook {metadata.version('fabook')}\n"


def test_each_action_lists_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for action in ("list", "fetch", "prepare"):
        with pytest.raises(SystemExit):
            cli.main(["data", action, "--help"])
        shown[action] = capsys.readouterr().out.split("options:")[0]
    assert "DIR" in shown["prepare"]
    assert "DIR" not in shown["fetch"] + shown["list"]
    assert "NAME" not in shown["list"]


def test_papermills_spelling_of_a_parameter() -> None:
    words = ["run", "a", "-p", "seed", "3", "-p", "lr", "-0.5", "-p", "x=y", "-r", "t", "a=b"]
    joined = ["--parameter=seed=3", "--parameter=lr=-0.5", "--parameter=x=y"]
    assert arguments.joined(words) == ["run", "a", *joined, "--parameters_raw=t=a=b"]


def test_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--json"]) == 0
    assert printed(capsys) == [
        {
            "name": "toy/alpha",
            "paper": "toy",
            "title": "Alpha, in short",
            "claims": ["toy.alpha.small"],
            "minutes": {"quick": 0.5, "paper": None},
        }
    ]
    assert cli.main(["list"]) == 0
    assert "toy/alpha  0.5        ?          1       Alpha, in short" in capsys.readouterr().out


def test_claims(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims", "--json", "--preset", "paper"]) == 0
    entry: dict[str, object] = {
        "id": "toy.alpha.small",
        "paper": "toy",
        "where": "Section 1",
        "statement": "It is small.",
        "source": "paper",
        "paper_value": "0.01",
        "measured": None,
        "low": None,
        "high": None,
        "sd": None,
        "seeds": None,
        "bound": 0.5,
        "verdict": "not run",
        "comparison": "<=",
        "reason": None,
        "preset": "paper",
        "device": None,
        "minutes": None,
        "date": None,
        "versions": None,
        "data": [],
    }
    assert printed(capsys) == [entry]
    assert cli.main(["claims", "--json"]) == 0
    assert printed(capsys) == [entry | {"preset": "quick"}, entry]
    assert cli.main(["claims"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not run") == 2
    assert "<=  0.5" in shown  # the bound with its comparison
    old = {"id": "toy.alpha.small", "registered": "0", "verdict": "reproduced", "checks": []}
    path = root / "_build" / "results" / "quick" / "toy" / "alpha.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": 2, "claims": [old]}), encoding="utf-8")
    assert cli.main(["claims", "--preset", "quick"]) == 0
    assert re.search(r"not run: judged by other checks +<=  0\.5", capsys.readouterr().out)
    assert cli.main(["claims", "--preset", "fast"]) == 2
    assert "unknown preset 'fast' (allowed: quick, paper)" in capsys.readouterr().err


def test_no_repository(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABOOK_ROOT", str(root / "notebooks"))
    assert cli.main(["list"]) == 2
    assert "has no book/claims.toml" in capsys.readouterr().err


def test_build_says_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build"]) == 1
    assert "_toc.yml" in capsys.readouterr().err
    assert cli.main(["build", "--preset", "fast"]) == 1


def test_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "list", "--json"]) == 0
    rows = printed(capsys)
    assert isinstance(rows, list)
    assert {"mnist", "cifar10", "digits"} <= {row["name"] for row in rows}
    assert cli.main(["data", "list"]) == 0
    assert "scikit-learn" in capsys.readouterr().out
    wrong = tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"not what MNIST has")
    with monkeypatch.context() as patch:
        patch.setenv("FABOOK_DATA", str(tmp_path / "data"))
        assert cli.main(["data", "list", "--json"]) == 0
    (row,) = (row for row in printed(capsys) if row["name"] == "mnist")
    assert not row["present"]  # its name alone tells nothing
    assert cli.main(["data", "fetch", "digits"]) == 0
    assert capsys.readouterr().out == ""  # it comes with scikit-learn
    assert cli.main(["data", "fetch", "mnisd"]) == 2
    assert "mnist" in capsys.readouterr().err
    for words in (["fetch"], ["list", "mnist"], ["prepare"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(["data", *words])
        assert caught.value.code == 2
    target = tmp_path / "room"
    assert cli.main(["data", "prepare", str(target), "digits"]) == 0  # comes with scikit-learn
    assert cli.main(["data", "prepare", str(target), "mnisd"]) == 2
    assert "mnist" in capsys.readouterr().err


def test_jupyters_checkpoints_are_in_no_list(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = root / "_build" / "results" / "quick" / "toy"
    for folder, name in ((root / "notebooks" / "toy", "alpha.md"), (results, "alpha.json")):
        (folder / ".ipynb_checkpoints").mkdir(parents=True)
        (folder / ".ipynb_checkpoints" / name).write_text("---\nkernelspec: {}\n---\n")
    assert cli.main(["list", "--json"]) == 0
    assert [row["name"] for row in printed(capsys)] == ["toy/alpha"]
    assert cli.main(["list", "--runs", "--json"]) == 0
    assert printed(capsys) == []


def test_doctor(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = printed(capsys)
    assert isinstance(report, dict)
    found = {check["check"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert {"python", "torch", "extra book", "cuda", "repository", "disk", "kernel"} <= set(found)
    assert sys.executable in found["kernel"]["detail"]
    assert found["FABOOK_DATA"]["detail"].startswith("not set")

    monkeypatch.setenv("FABOOK_DATA", str(root / "nowhere"))
    (root / "book" / "claims.toml").write_text("[[claim]]\n", encoding="utf-8")
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "nowhere is no folder" in captured.out
    assert "key 'id' is missing" in captured.out
    assert "needed and not right: FABOOK_DATA" in captured.err


def test_doctor_checks_versions_and_advises_what_works(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "site" / "jupyter_book-2.0.dist-info"  # as if version 2 were installed
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jupyter-book\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "jupyter-book<2,>=1.0.4.post1 is needed, 2.0 is installed" in shown.out
    assert "pip install '" in shown.out
    assert "pip install fabook" not in shown.out  # no index has it
    assert "pip install 'fabook" not in shown.out
    assert "needed and not right: extra book" in shown.err


def test_machine_readable_output_does_not_depend_on_the_locale(root: Path) -> None:
    source = root / "notebooks" / "toy" / "alpha.md"
    source.write_text(source.read_text().replace("Alpha, in short", "Über ∂α"), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "fabook", "list", "--json"]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout.decode("utf-8"))[0]["title"] == "Über ∂α"


def test_starting_needs_no_torch(root: Path) -> None:
    code = (
        "import sys, bookkit.cli\n"
        "assert bookkit.cli.main(['list', '--json']) == 0\n"
        "print([m for m in ('torch', 'numpy', 'papermill', 'jupytext') if m in sys.modules])\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
