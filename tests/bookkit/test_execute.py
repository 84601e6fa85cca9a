"""Executing notebooks: real kernels, real signals, in a small repository that the tests write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bookkit import cache, claims, cli, execute, notebooks, parameters

HEADER = """\
---
jupytext:
  text_representation: {{extension: .md, format_name: myst}}
kernelspec: {{display_name: Python 3, language: python, name: python3}}
fabook:
  minutes: {{quick: 0.1, paper: 2}}
---
# The title of {name}

```{{code-cell}} python
:tags: [parameters]
preset = "quick"      # one of: quick, paper
seed = 0
device = "auto"       # one of: auto, cpu, cuda
{parameters}
```

```{{code-cell}} python
import json, os, sys, time
with open("../../log.txt", "a") as log:
    print("{name}", os.getpid(), file=log)
```
"""
# Leaves its results without the recorder, so that its kernel starts in an instant.
PLAIN = """
```{{code-cell}} python
for _ in range(steps):
    time.sleep(0.1)
times = dict(t=dict(dims=["t"], values=list(range(steps))))
result = dict(schema=2, notebook="{name}", preset=preset, seed=seed, device=device, claims=[],
              data=dict(x=dict(coords=times, data_vars=dict())), datasets=[])
print("computed", steps)
```

```{{code-cell}} python
open(os.environ["FABOOK_RESULT_FILE"], "w").write(json.dumps(result))
```
"""
RECORDED = """
```{{code-cell}} python
import bookkit
run = bookkit.start("{name}", globals())
print("first", flush=True)
print("second")
run.record("environment", dims=["names"], names=[
    os.environ["PYTHONHASHSEED"], os.environ["OMP_NUM_THREADS"],
    sys.executable, os.path.basename(os.getcwd())])
run.glue("rate", rate)
run.glue("steps", "3,200")
```

The rate is {{glue:text}}`rate`.

```{{code-cell}} python
run.claim("toy.recorded.small", error=rate, seeds=1)
run.save()
```
"""
CLAIM = """\
[[claim]]
id = "toy.recorded.small"
notebook = "toy/recorded"
paper = "toy"
where = "Section 1"
statement = "The rate is small."
source = "derived"
[[claim.check]]
quantity = "error"
label = "the rate"
comparison = "<="
bound = {quick = 0.02, paper = 0.01}
"""
OWN = 'rate = 0.01\nrule = "fa"  # one of: fa, dfa\nflag = False\nwidths = [3, 4]'


class Repository:
    """A book with three small notebooks: toy/recorded, toy/plain and other/plain."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "_build"
        (root / "book").mkdir()
        (root / "book" / "claims.toml").write_text(CLAIM, encoding="utf-8")
        self.write("toy/recorded", RECORDED, OWN)
        self.write("toy/plain", PLAIN, "steps = 2")
        self.write("other/plain", PLAIN, "steps = 2")

    def write(self, name: str, body: str, parameters: str) -> None:
        path = self.source(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (HEADER + body).format(name=name, parameters=parameters)
        path.write_text(text, encoding="utf-8")

    def source(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.md"

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def kernels(self) -> list[list[str]]:
        """A [notebook, process] for each kernel that ever started here."""
        log = self.root / "log.txt"
        return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []

    def plan(self, *names: str, **options: Any) -> list[notebooks.Job]:
        return notebooks.plan(self.root, names, **({"out": self.out} | options))

    def run(self, *names: str, **options: Any) -> list[execute.Outcome]:
        return execute.run(self.plan(*names, **options))

    def results(self, name: str, preset: str = "quick") -> dict[str, Any]:
        path = self.out / "results" / preset / f"{name}.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def files(self, out: Path | None = None) -> dict[str, Any]:
        """All output files; results without what differs between two equal runs."""
        out = out or self.out
        found: dict[str, Any] = {}
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            name = path.relative_to(out).as_posix()
            found[name] = path.read_bytes()
            if name.startswith("results/"):
                found[name] = json.loads(found[name])
                del found[name]["minutes"], found[name]["date"]
        return found

    def command(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "fabook", "run", "--out", str(self.out), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    monkeypatch.delenv("FABOOK_DATA", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Repository(tmp_path)


def wait_until(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):  # a folder that is removed as it is listed
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def none_running(pids: list[int]) -> bool:
    return not any(map(running, pids))


# --- executing -----------------------------------------------------------------------------------


def test_run_writes_results_and_then_has_nothing_to_do(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--jobs", "2"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""  # no notices of kernels
    assert "reproduced      toy.recorded.small   error = 0.01 <= 0.02   (1 seed)" in printed.out
    assert len(repository.kernels()) == 3
    before = repository.files()
    assert [name for name in before if not name.startswith(".work")] == [
        *(f"notebooks/quick/{name}.ipynb" for name in ("other/plain", "toy/plain", "toy/recorded")),
        *(f"results/quick/{name}.json" for name in ("other/plain", "toy/plain", "toy/recorded")),
    ]
    assert all(name.endswith(".lock") for name in before if name.startswith(".work"))

    assert cli.main(["run"]) == 0
    assert len(repository.kernels()) == 3  # no kernel started
    assert capfd.readouterr().out.count("up to date") == 3
    assert repository.files() == before

    assert [o.status for o in repository.run("toy/recorded", force=True)] == ["done"]
    assert repository.files() == before  # the same again, byte for byte

    results = repository.results("toy/recorded")
    assert results["parameters"] == {
        "preset": "quick",
        "seed": 0,
        "device": claims.resolve_device("auto"),
        "rate": 0.01,
        "rule": "fa",
        "flag": False,
        "widths": [3, 4],
    }
    assert set(results["versions"]) == {"python", "torch", "numpy", "scipy", "fabook"}
    assert results["minutes"] > 0
    assert len(results["source_hash"]) == 64
    assert results["sources"] == cache.sources(repository.source("toy/recorded"), repository.root)
    assert "toy/recorded.md" in results["sources"]
    names = results["data"]["environment"]["coords"]["names"]["values"]
    assert names == ["0", "1", sys.executable, "toy"]
    assert results["claims"][0]["verdict"] == "reproduced"


def test_executed_notebook_has_merged_text_and_glue(repository: Repository) -> None:
    import nbformat
    from myst_nb.core.variables import format_plain_text
    from myst_nb.ext.glue import extract_glue_data_cell

    assert execute.exit_code(repository.run("toy/recorded")) == 0
    path = repository.out / "notebooks" / "quick" / "toy" / "recorded.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cell = next(cell for cell in notebook.cells if "bookkit.start" in cell.source)
    assert cell.outputs[0].text == "first\nsecond\n"
    glued = extract_glue_data_cell(cell)
    shown = {key: format_plain_text(output["data"]["text/plain"], "") for key, output in glued}
    assert shown == {"rate": "0.01", "steps": "3,200"}  # as pages show them: no tuple
    assert not any("injected-parameters" in c.metadata.tags for c in notebook.cells)


def test_custom_parameters_are_stored_apart(repository: Repository) -> None:
    repository.run("toy/plain")
    before = repository.files()
    outcomes = repository.run("toy/plain", values={"seed": "3", "steps": "1"})
    assert [o.status for o in outcomes] == ["done"]
    stem = outcomes[0].job.stem
    assert stem.startswith("toy/plain@")
    after = repository.files()
    assert {name: after[name] for name in before} == before
    assert repository.results(stem)["parameters"]["seed"] == 3
    assert repository.results(stem)["data"]["x"]["coords"]["t"]["values"] == [0]
    again = repository.run("toy/plain", values={"steps": 1, "seed": 3})
    assert [o.status for o in again] == ["cached"]
    defaults = repository.run("toy/plain", values={"seed": "0", "steps": "2"}, device="cpu")
    assert defaults[0].job.stem == "toy/plain"


def test_unexpected_verdict(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    repository.edit(repository.root / "book" / "claims.toml", "quick = 0.02", "quick = 0.001")
    for _ in range(2):  # fresh and cached
        assert cli.main(["run", "toy/recorded"]) == 3
        error = capsys.readouterr().err
        assert "unexpected verdict: not reproduced  toy.recorded.small" in error
        assert "error = 0.01 fails <= 0.001" in error
    assert repository.results("toy/recorded")["claims"][0]["verdict"] == "not reproduced"
    assert len(repository.kernels()) == 1


def test_another_verdict_with_ones_own_parameters_is_no_error(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # fresh and cached
        assert cli.main(["run", "toy/recorded", "-p", "rate", "0.5"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert "other than with the preset's values: toy.recorded.small" in printed.out
        assert "rate = 0.5" in printed.out
        assert str(repository.out / "results" / "quick" / "toy" / "recorded@") in printed.out


def test_a_size_of_the_table_is_a_parameter(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "size = run.sizes(quick=dict(n=5, w=[1]), paper=dict(n=9, w=[1, 2.0]))\n"
    table += 'run.record("size", n=size.n)\nprint("first"'
    repository.edit(repository.source("toy/recorded"), 'print("first"', table)
    assert cli.main(["run", "recorded", "-p", "n=7"]) == 0
    assert "n = 7" in capsys.readouterr().out
    (path,) = (repository.out / "results" / "quick" / "toy").glob("recorded@*.json")
    assert json.loads(path.read_text())["data"]["size"]["data_vars"]["n"]["values"] == 7
    (job,) = repository.plan("toy/recorded", values={"n": "5"})
    assert job.custom == {}  # the preset's own value
    repository.run("toy/recorded")
    assert "n" not in repository.results("toy/recorded")["parameters"]
    assert cli.main(["run", "recorded", "-p", "n=7.5"]) == 2
    assert "'n' must be an integer such as 5, got '7.5'" in capsys.readouterr().err


def test_a_notebook_from_anywhere(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = tmp_path / "elsewhere" / "week1"
    course.mkdir(parents=True)
    text = repository.source("toy/plain").read_text().replace("../../log.txt", os.devnull)
    (course / "hw.md").write_text("\ufeff" + text, encoding="utf-8")
    monkeypatch.chdir(course.parent)
    (outcome,) = repository.run("week1/hw.md")
    assert outcome.status == "done"
    assert outcome.job.output("results", ".json").is_file()
    assert outcome.job.stem == "week1/hw"
    assert not (repository.out / "results").exists()  # apart from the book's own
    import jupytext

    jupytext.write(parameters.read(course / "hw.md"), course / "hw2.ipynb")
    assert [o.status for o in repository.run("week1/hw2.ipynb", values={"steps": 1})] == ["done"]
    assert len(repository.plan("week1/hw.md", "./week1/hw.md")) == 1  # the same file
    (course.parent / "b" / "week1").mkdir(parents=True)
    shutil.copy(course / "hw.md", course.parent / "b" / "week1")
    with pytest.raises(parameters.UsageError, match="would both be stored as week1/hw: run them"):
        repository.plan("week1/hw.md", "b/week1/hw.md")
    own = repository.source("toy/plain")
    assert [job.stem for job in repository.plan(str(own))] == ["toy/plain"]
    with pytest.raises(parameters.UsageError, match=r"no notebook 'week2/hw\.md'"):
        repository.plan("week2/hw.md")


@pytest.mark.parametrize(
    ("name", "stems"),
    [
        ("recorded", ["toy/recorded"]),
        ("rec", ["toy/recorded"]),
        ("toy/r", ["toy/recorded"]),
        ("toy", ["toy/plain", "toy/recorded"]),
        ("oth", ["other/plain"]),
    ],
)
def test_short_names(repository: Repository, name: str, stems: list[str]) -> None:
    assert [job.stem for job in repository.plan(name)] == stems


def test_a_short_name_of_several_is_refused(repository: Repository) -> None:
    with pytest.raises(parameters.UsageError, match="for several notebooks: other/plain, toy/plai"):
        repository.plan("plain")


def test_a_short_name_of_many_lists_a_few(repository: Repository) -> None:
    for number in range(12):
        repository.write(f"many/plain_{number}", PLAIN, "steps = 2")
    with pytest.raises(parameters.UsageError, match=r"many/plain_5 and 6 more$"):
        repository.plan("pla")


def test_one_notebook_that_is_not_understood_blocks_no_other(repository: Repository) -> None:
    repository.edit(repository.source("toy/plain"), "steps = 2", "steps = os.getpid()")
    assert [o.status for o in repository.run("other/plain")] == ["done"]
    with pytest.raises(parameters.UsageError, match=r"plain\.md, cell In \[1\], line 4"):
        repository.plan("toy/plain")
    for names in ((), ("toy", "other")):
        found = {o.job.stem: o for o in repository.run(*names)}
        broken = found.pop("toy/plain")
        assert broken.status == "failed"
        assert "plain.md, cell In [1], line 4" in broken.message
        assert {o.status for o in found.values()} <= {"done", "cached"}
        assert set(found) == {"other/plain", "toy/recorded"}


def test_the_three_nearest_of_many() -> None:
    names = [f"paper{i}/online_{i}" for i in range(30)]
    text = claims.suggest("paper3/onlin_3", names)
    assert text.startswith("; did you mean 'paper3/online_3'")
    assert text.count("paper") == 3
    assert claims.suggest("zzz", names) == " (30 are known, none of them close)"


def test_claim_that_the_notebook_forgets_is_unexpected(repository: Repository) -> None:
    line = 'run.claim("toy.recorded.small", error=rate, seeds=1)\n'
    repository.edit(repository.source("toy/recorded"), line, "")
    outcomes = repository.run("toy/recorded")
    assert execute.exit_code(outcomes) == 3
    assert "not run" in outcomes[0].unexpected[0]


def test_failing_cells(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    plain, other = repository.source("toy/plain"), repository.source("other/plain")
    repository.edit(plain, 'print("computed"', 'print("begun"); 1 / 0; print("computed"')
    repository.edit(other, "time.sleep(0.1)", "os.write(2, b'last words'); os._exit(3)")
    assert cli.main(["run"]) == 1
    error = capsys.readouterr().err
    assert "toy/plain: cell In [3] failed:" in error
    assert "ZeroDivisionError: division by zero" in error
    assert "other/plain: DeadKernelError" in error
    assert "last words" in error
    assert "\x1b" not in error
    names = [name for name in repository.files() if not name.startswith(".work")]
    failed = "notebooks/quick/toy/plain.failed.ipynb"
    assert failed in names
    assert "begun" in (repository.out / failed).read_text(encoding="utf-8")
    assert "results/quick/toy/recorded.json" in names  # the others finish
    assert not any("plain.json" in name or "plain.ipynb" in name for name in names)
    assert cli.main(["list", "--runs"]) == 0
    assert f"failed: {repository.out / failed}" in capsys.readouterr().out.splitlines()

    repository.edit(plain, "1 / 0; ", "")
    assert execute.exit_code(repository.run("toy/plain")) == 0
    assert failed not in repository.files()
    capsys.readouterr()
    assert cli.main(["list", "--runs"]) == 0
    assert "toy/plain.failed" not in capsys.readouterr().out


def test_what_was_recorded_outlives_a_failing_cell(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = repository.source("toy/recorded")
    saved = 'run.claim("toy.recorded.small", error=rate, seeds=1)\nrun.save()'
    late = "run.save()\n```\n\n```{code-cell} python\nassert not 'a solution'"
    kept = repository.out / "notebooks/quick/toy/recorded.failed.json"
    assert execute.exit_code(repository.run("toy/recorded")) == 0
    whole = cache.load(repository.out / "results/quick/toy/recorded.json")
    for text, judged, tables in (
        (saved.replace("run.save()", "os._exit(3)"), True, whole["data"]),  # the kernel dies
        ("1 / 0\n" + saved, False, whole["data"]),
        (saved.replace("run.save()", late), True, whole["data"]),  # after it was saved
    ):
        repository.edit(recorded, saved, text)
        kept.unlink(missing_ok=True)
        assert cli.main(["run", "toy/recorded"]) == 1
        assert f"what it had recorded: {kept}" in capsys.readouterr().err
        found = cache.load(kept)
        assert found["data"] == tables
        (claim,) = found["claims"]
        assert (claim["verdict"] == "reproduced") is judged
        assert found["checksum"] == cache.checksum(found)
        assert found["parameters"] == whole["parameters"]
        assert found["source_hash"] != whole["source_hash"]
        repository.edit(recorded, text, saved)

    repository.edit(recorded, 'print("first"', '1 / 0; print("first"')
    assert cli.main(["run", "toy/recorded"]) == 1  # with nothing to keep: what is there stays
    assert kept.is_file()
    repository.edit(recorded, "1 / 0; ", "")
    assert execute.exit_code(repository.run("toy/recorded", force=True)) == 0
    assert not kept.is_file()


def test_results_must_be_saved(repository: Repository) -> None:
    repository.edit(repository.source("toy/plain"), "FABOOK_RESULT_FILE", "HOME")
    repository.edit(repository.source("toy/plain"), "open(os", "str(os")
    repository.edit(repository.source("toy/plain"), ', "w").write(', ").join(")
    (outcome,) = repository.run("toy/plain")
    assert (outcome.status, "without run.save()" in outcome.message) == ("failed", True)


FIGURE = """
```{{code-cell}} python
:mystnb: {{figure: {{caption: A line, name: fig-line}}}}
import locale, sys, warnings
import matplotlib
import matplotlib.pyplot as plt
warnings.warn("a warning")
print(plt.rcParams["figure.dpi"], locale.setlocale(locale.LC_ALL), time.tzname, sys.argv[1:2])
print(sorted(name for name in globals() if name.startswith("personal")))
print(sorted(name for name in os.environ if "PERSONAL" in name), os.environ.get("COLUMNS"))
plt.plot([1, 2]){end}
open(os.environ["FABOOK_RESULT_FILE"], "w").write(json.dumps(dict(schema=1, notebook="{name}",
    preset=preset, seed=seed, device=device, claims=[], data={{}}, datasets=[])))
```
"""


def images(path: Path) -> int:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))


def test_nothing_personal_reaches_a_kernel(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("toy/figure", FIGURE.replace("{end}", ""), "")
    (outcome,) = repository.run("toy/figure")
    assert outcome.status == "done", outcome.message
    notebook = outcome.job.output("notebooks", ".ipynb")
    undisturbed = notebook.read_bytes()
    assert images(notebook) == 1

    home, cache_folder = tmp_path / "home", Path(execute._matplotlib()).parents[1]
    startup = home / ".ipython" / "profile_default" / "startup" / "0.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("personal_startup = 1\nprint('hello')\n")
    (home / ".python").write_text("personal_python = 1\nprint('hello')\n")
    config = startup.parents[1] / "ipython_kernel_config.py"
    config.write_text("c.InteractiveShellApp.exec_lines = ['personal_line = 1']\n")
    (home / ".config" / "matplotlib").mkdir(parents=True)
    for folder in (home, home / ".config" / "matplotlib"):
        (folder / "matplotlibrc").write_text("figure.dpi: 17\nfigure.facecolor: red\n")
    hostile = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(cache_folder),
        "IPYTHONDIR": str(home / ".ipython"),
        "JUPYTER_CONFIG_DIR": str(home),
        "MPLBACKEND": "Agg",
        "MATPLOTLIBRC": str(home),
        "MPLCONFIGDIR": str(home),
        "PYTHONSTARTUP": str(home / ".python"),
        "PYTHONWARNINGS": "error",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "C",
        "TZ": "Asia/Kathmandu",
        "COLUMNS": "20",
        "PERSONAL": "1",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    (outcome,) = repository.run("toy/figure", force=True)
    assert outcome.status == "done", outcome.message
    assert notebook.read_bytes() == undisturbed


def test_a_figure_without_its_image_is_a_failed_run(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.write("toy/figure", FIGURE.replace("{end}", "; plt.close()"), "")
    for _ in range(2):  # and is not cached
        assert cli.main(["run", "toy/figure"]) == 1
        assert "no image came of fig-line" in capsys.readouterr().err
    assert len(repository.kernels()) == 2


def test_nothing_under_notebooks_is_skipped_silently(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = repository.root / "notebooks"
    plain = repository.source("toy/plain").read_text(encoding="utf-8")
    (folder / "toy" / "plain.md").write_text("\ufeff" + plain, encoding="utf-8")
    (folder / "week" / "one").mkdir(parents=True)
    (folder / "week" / "one" / "deep.md").write_text(plain, encoding="utf-8")
    import jupytext

    jupytext.write(
        parameters.read(folder / "week" / "one" / "deep.md"), folder / "week" / "a.ipynb"
    )
    (folder / "top.md").write_text(plain.replace("../../log", "../log"), encoding="utf-8")
    found = [notebook.name for notebook in notebooks.notebooks(repository.root)]
    assert found == ["other/plain", "top", "toy/plain", "toy/recorded", "week/a", "week/one/deep"]
    (folder / "toy" / "README.md").write_text("# Words\n", encoding="utf-8")
    (folder / "toy" / "broken.md").write_text("---\na: [\n---\n", encoding="utf-8")
    for name in ("a.MD", "b.IPYNB", "c.qmd"):
        (folder / "toy" / name).write_text(plain, encoding="utf-8")
    (folder / "toy" / "d.md").mkdir()
    (folder / "toy" / "e.md").symlink_to("gone.md")
    (folder / "toy" / "linked").symlink_to(repository.root / "book")
    others = ("README.md", "a.MD", "b.IPYNB", "broken.md", "c.qmd")
    others += ("d.md", "e.md", "linked", "plain.ipynb")
    shutil.copy(folder / "week" / "a.ipynb", folder / "toy" / "plain.ipynb")
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "week" / "a.ipynb", folder / ".ipynb_checkpoints" / "b.ipynb")
    for command in (["list"], ["run", "--jobs", "2"]):
        assert cli.main(command) == 0
        said = capsys.readouterr().err.splitlines()
        assert [line.split()[1] for line in said] == [f"notebooks/toy/{name}" for name in others]
    assert cli.main(["list", "--runs", "--json"]) == 0
    assert {row["run"] for row in json.loads(capsys.readouterr().out)} == set(found)


JUPYTER = """
```{{code-cell}} python
text = (
    "value %d"
    % seed
)
files = !ls
json?
```

```{{code-cell}} python
%%time
import bookkit
bookkit.start("{name}", globals()).save()
```
"""


def test_whatever_jupyter_runs_keeps_its_results(repository: Repository) -> None:
    repository.write("toy/jupyter", JUPYTER, "")
    out = repository.root / "odd {x} [1] {"  # papermill takes a path for a format
    (outcome,) = repository.run("toy/jupyter", out=out)
    assert (outcome.status, outcome.message) == ("done", "")
    assert [o.status for o in repository.run("toy/jupyter", out=out)] == ["cached"]


def test_what_is_edited_during_a_run_is_not_what_ran(repository: Repository) -> None:
    source = repository.source("toy/plain")
    helper = source.with_name("helper.py")
    helper.write_text("x = 1\n", encoding="utf-8")
    edit = "import helper\nfor name in ('helper.py', 'plain.md'):\n"
    edit += "    text = open(name).read()\n"
    edit += "    open(name, 'w').write(text.replace('x = 1', 'x = 22').replace('= 2', '= 3'))\n"
    repository.edit(source, 'print("computed"', edit + 'print("computed"')
    before = cache.sources(source), cache.source_hash(source)
    (outcome,) = repository.run("toy/plain")
    assert outcome.status == "done", outcome.message
    results = repository.results("toy/plain")
    assert (results["sources"], results["source_hash"]) == before
    assert results["parameters"]["steps"] == 2
    assert before[0] != cache.sources(source)
    assert cache.up_to_date(*repository.plan("toy/plain")) is None


# --- cache ---------------------------------------------------------------------------------------


def test_every_ingredient_of_the_key_counts(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        (job,) = repository.plan("toy/recorded")
        return cache.cache_key(job)

    seen = {key()}
    assert key() in seen  # the same once more

    def differs() -> bool:
        new = key() not in seen
        seen.add(key())
        return new

    repository.edit(repository.source("toy/recorded"), "# The title", "# A title")
    assert differs()
    repository.edit(repository.source("toy/recorded"), "rate = 0.01", "rate = 0.011")
    assert differs()
    toml = repository.root / "book" / "claims.toml"
    repository.edit(toml, "paper = 0.01", "paper = 0.02")
    assert not differs()  # a bound of the other preset
    repository.edit(toml, "is small", "stays small")
    assert not differs()  # words
    repository.edit(toml, "quick = 0.02", "quick = 0.03")
    assert differs()
    published = claims.published_path(repository.root, "toy/recorded")
    published.parent.mkdir(parents=True)
    published.write_text('{"data": {"x": 1}, "date": 1}', encoding="utf-8")
    assert differs()
    published.write_text('{"data": {"x": 1}, "date": 2}', encoding="utf-8")
    assert not differs()
    variant = claims.published_path(repository.root, "toy/recorded", "full")
    variant.write_text('{"data": {"x": 3}}', encoding="utf-8")
    assert differs()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert differs()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    info = tmp_path / "site" / "scipy-99.0.dist-info"  # as if another scipy were installed
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scipy\nVersion: 99.0\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        assert differs()

    (job,) = repository.plan("toy/recorded")
    (paper,) = repository.plan("toy/recorded", preset="paper")
    (other,) = repository.plan("toy/recorded", values={"rule": "dfa"})
    assert len({cache.cache_key(j) for j in (job, paper, other)}) == 3
    matplotlibrc = repository.source("toy/matplotlibrc").with_suffix("")
    matplotlibrc.write_text("figure.dpi: 17")
    assert differs()


def test_the_content_of_the_data_folder_counts(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(**options: Any) -> str:
        (job,) = repository.plan("toy/recorded", **options)
        return cache.cache_key(job)

    paper, quick = key(preset="paper"), key()
    for name in ("one", "two"):
        (tmp_path / name / "set").mkdir(parents=True)
        (tmp_path / name / "set" / "a.npy").write_bytes(b"1")
    monkeypatch.setenv("FABOOK_DATA", str(tmp_path / "one"))
    one = key(preset="paper")
    assert one != paper
    assert key() == quick  # the quick preset of the book's own notebooks reads none
    mine = repository.source("toy/recorded").rename(tmp_path / "mine.md")
    (job,) = repository.plan(str(mine))
    assert cache._data(job)
    mine.rename(repository.source("toy/recorded"))
    monkeypatch.setenv("FABOOK_DATA", str(tmp_path / "two"))
    assert key(preset="paper") == one  # the same content in another place
    (tmp_path / "two" / "set" / "a.npy").write_bytes(b"22")
    assert key(preset="paper") != one


LIBRARY = {
    "__init__": '"""A library."""\nfrom .core import used, other\n'
    "from . import aside\nVERSION = 1\n",
    "core": '"""Core."""\nfrom .deep.inner import number\n'
    'from .parts import half\ndef used():\n    """Used."""\n'
    "    return number + half\ndef other(): return 2\n",
    "aside": "x = 1\n",
    "deep/__init__": "",
    "deep/inner": "from importlib import import_module\nnumber = 1\n"
    'def late():\n    return import_module("mylib.late")\n',
    "late": "y = 1\n",
    "parts/__init__": "from .first import half\nfrom .second import quarter\n",
    "parts/first": "half = 1 / 2\n",
    "parts/second": "quarter = 1 / 4\n",
}
EDITS = [  # a module, a change of it, whether the notebook's results may differ
    ("core", ('"""Used."""', '"""Used, and well."""'), False),
    ("core", ("return 2", "return 2  # two"), False),
    ("core", ("return 2", "return 3"), True),
    ("deep/inner", ("number = 1", "number = 2"), True),
    ("late", ("y = 1", "y = 2"), True),
    ("__init__", ("VERSION = 1", "VERSION = 2"), True),
    ("aside", ("x = 1", "x = 2"), False),  # passed on by the package, not used by the notebook
    ("parts/first", ("1 / 2", "1 / 3"), True),  # passed on by a package within, and used
    ("parts/second", ("1 / 4", "1 / 5"), False),
    ("figures", ("size = 3", "size = 4"), True),
    ("figures", ('"""Figures."""', '"""Pictures."""'), False),
]


@pytest.mark.parametrize(("module", "change", "counts"), EDITS)
def test_modules_that_are_used_count_as_code(
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    change: tuple[str, str],
    counts: bool,
) -> None:
    package = tmp_path / "site" / "mylib"
    files = {name: package / f"{name}.py" for name in LIBRARY}
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LIBRARY[name], encoding="utf-8")
    notebook = repository.source("toy/plain")
    files["figures"] = notebook.with_name("figures.py")
    files["figures"].write_text('"""Figures."""\nfrom mylib import core\nsize = 3\n')
    use = "import json, os, sys, time\n%matplotlib inline\nimport figures, mylib\nmylib.used()\n"
    repository.edit(notebook, "import json, os, sys, time\n", use)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(cache, "_top", cache._top.__wrapped__)  # packages are not found once
    before, kept = cache.source_hash(notebook), cache.sources(notebook)
    assert cache.source_hash(notebook) == before
    repository.edit(files[module], *change)
    os.utime(files[module], ns=(1, 1))
    assert (cache.source_hash(notebook) != before) is counts
    changed = {
        k for k in kept | cache.sources(notebook) if kept.get(k) != cache.sources(notebook).get(k)
    }
    assert len(changed) == counts


@pytest.mark.parametrize("elsewhere", [False, True])
def test_drawing_functions_count_wherever_the_notebook_lies(
    repository: Repository, tmp_path: Path, elsewhere: bool
) -> None:
    notebook = repository.source("toy/recorded")
    drawings = notebook.with_name("figures.py")
    drawings.write_text("size = 3\n")
    repository.edit(notebook, "run.save()", "run.figures\nrun.save()")
    if elsewhere:
        notebook = notebook.rename(tmp_path / "mine.md")
    before = cache.source_hash(notebook, repository.root)
    drawings.write_text("size = 4\n")
    os.utime(drawings, ns=(1, 1))
    assert cache.source_hash(notebook, repository.root) != before


@pytest.mark.parametrize(
    "use",
    [
        "%%time\nimport helper",
        "if True:\n    %run -i helper.py 3",
        "%run ./helper",
        "from bookkit import start\ndef (",  # not Python: the run will say so
    ],
)
def test_modules_that_magic_uses_count(repository: Repository, use: str) -> None:
    source = repository.source("toy/plain")
    helper = source.with_name("helper.py")
    helper.write_text("x = 1\n")
    repository.edit(
        source,
        "\n```{code-cell} python\nimport json, os",
        f"\n```{{code-cell}} python\n{use}\n```\n\n```{{code-cell}} python\nimport json, os",
    )
    before, kept = cache.source_hash(source), cache.sources(source)
    helper.write_text("x = 2\n")
    os.utime(helper, ns=(1, 1))
    assert (cache.source_hash(source) != before) is (cache.sources(source) != kept)
    assert (cache.source_hash(source) != before) is ("def" not in use)


def test_a_copy_of_a_notebook_is_judged_as_what_it_was_copied_from(
    repository: Repository, tmp_path: Path
) -> None:
    copied = tmp_path / "mine" / "copy.md"
    copied.parent.mkdir()
    shutil.copy(repository.source("toy/recorded"), copied)

    def key() -> str:
        (job,) = repository.plan(str(copied))
        return cache.cache_key(job)

    before = key()
    repository.edit(repository.root / "book" / "claims.toml", "quick = 0.02", "quick = 0.03")
    assert (judged := key()) != before
    published = claims.published_path(repository.root, "toy/recorded")
    published.parent.mkdir(parents=True)
    published.write_text('{"data": {"x": 1}}', encoding="utf-8")
    assert key() != judged
    shutil.copy(copied, repository.source("toy/copied"))
    (outcome,) = repository.run("toy/copied")
    assert outcome.status == "failed"
    assert "with 'toy/recorded': it must be 'toy/copied'" in outcome.message
    assert repository.kernels() == []


def test_own_notebooks_of_the_same_name_are_told_apart(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = repository.source("toy/plain").read_text(encoding="utf-8")
    keys = []
    for folder in ("x/week1", "y/week1"):
        path = tmp_path / folder / "hw.md"
        path.parent.mkdir(parents=True)
        path.write_text(text + '\n```{code-cell} python\nopen("numbers.csv")\n```\n')
        (job,) = repository.plan(str(path))
        keys.append(cache.cache_key(job))
    (path.parent / "numbers.csv").write_text("1\n")
    keys.append(cache.cache_key(job))
    (path.parent / "numbers.csv").write_text("22\n")
    keys.append(cache.cache_key(job))
    assert len(set(keys)) == 4
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert notebooks._named("/hw.md", [])[0].name == "hw"  # at the top there is no folder's name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_number(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"values": [0, 1]', '"values": [0, 2]'), encoding="utf-8")


@pytest.mark.fault("results cut short, changed or gone", "noticed, and made again")
def test_damaged_results_are_made_again(repository: Repository) -> None:
    (job,) = repository.plan("toy/plain")
    execute.run([job])
    before = repository.files()
    results, notebook = job.output("results", ".json"), job.output("notebooks", ".ipynb")
    damages: list[tuple[Path, Callable[[Path], None]]] = [
        *((results, damage) for damage in (truncate, change_number, Path.unlink)),
        *((notebook, damage) for damage in (truncate, Path.unlink)),
    ]
    for path, damage in damages:
        intact = path.read_bytes()
        damage(path)
        assert cache.up_to_date(job) is None
        path.write_bytes(intact)
        assert cache.up_to_date(job) is not None
    truncate(results)
    notebook.unlink()
    assert [o.status for o in execute.run([job])] == ["done"]
    assert repository.files() == before
    assert len(repository.kernels()) == 2


def test_a_change_leads_to_a_new_run(repository: Repository) -> None:
    repository.run("toy/plain")
    repository.edit(repository.source("toy/plain"), "steps = 2", "steps = 1")
    assert [o.status for o in repository.run("toy/plain")] == ["done"]
    assert repository.results("toy/plain")["data"]["x"]["coords"]["t"]["values"] == [0]


# --- kill, interrupt, two at once ----------------------------------------------------------------


def slow(repository: Repository) -> dict[str, Any]:
    """Make the plain notebooks slow enough to be killed; what an undisturbed run writes."""
    for name in ("toy/plain", "other/plain"):
        repository.edit(repository.source(name), "steps = 2", "steps = 12")
    repository.source("toy/recorded").unlink()
    undisturbed = repository.root / "undisturbed"
    assert execute.exit_code(repository.run(out=undisturbed)) == 0
    (repository.root / "log.txt").unlink()
    return repository.files(undisturbed)


@pytest.mark.fault(
    "kill -9 at three chosen moments", "`fabook run`, then started again: the same files"
)
def test_kill_at_any_moment_then_again(repository: Repository) -> None:
    expected = slow(repository)
    quick = {"start_new_session": True}
    moments: list[Callable[[], object]] = [
        lambda: list((repository.out / ".work").rglob("*.lock")),  # before any kernel
        lambda: len(repository.kernels()) >= 2,  # in the middle of two notebooks
        lambda: list(repository.out.rglob("plain.ipynb")),  # about when the results are moved
    ]
    for moment in moments:
        process = repository.command("--jobs", "2", **quick)
        wait_until(moment)
        process.kill()
        process.communicate()
        for name, content in repository.files().items():
            if name.startswith(("notebooks/", "results/")):
                assert content == expected[name]  # nothing half-written
        pids = [int(pid) for _, pid in repository.kernels()]
        wait_until(partial(none_running, pids))
    process = repository.command("--jobs", "2", **quick)
    _, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, "")
    assert repository.files() == expected


@pytest.mark.fault(
    "Ctrl-C, or a termination signal", "stops within seconds, and leaves no kernel behind"
)
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_interrupt(repository: Repository, number: signal.Signals, jobs: str) -> None:
    for name in ("toy/plain", "other/plain"):
        repository.edit(repository.source(name), "steps = 2", "steps = 300")
    repository.source("toy/recorded").unlink()
    process = repository.command("--jobs", jobs)
    wait_until(lambda: len(repository.kernels()) == int(jobs))
    process.send_signal(number)
    _, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (130, "fabook: interrupted\n")
    assert len(repository.kernels()) == int(jobs)  # none started afterwards
    assert not any(running(int(pid)) for _, pid in repository.kernels())
    assert all(name.endswith(".lock") for name in repository.files())


@pytest.mark.fault("two runs in one folder", "the second waits; each notebook runs once")
def test_two_runs_at_once(repository: Repository) -> None:
    expected = slow(repository)
    both = [repository.command("--jobs", "2") for _ in range(2)]
    errors = []
    for process in both:
        errors.append(process.communicate(timeout=600)[1])
        assert process.returncode == 0
    assert sorted(errors) == ["", f"fabook: waiting for another run in {repository.out}\n"]
    assert sorted(name for name, _ in repository.kernels()) == ["other/plain", "toy/plain"]
    assert repository.files() == expected


@pytest.mark.fault("remains of a killed run", "removed by the next")
def test_remains_of_killed_runs_are_removed(repository: Repository) -> None:
    repository.run("toy/plain")
    (job,) = repository.plan("toy/plain")
    remains = [Path(job.out) / ".work" / "runs" / "x" / name for name in ("a.json", "a.ipynb")]
    for path in remains:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half", encoding="utf-8")
    repository.run("other/plain")
    assert not any(path.exists() for path in remains)


# --- requests that are refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy/recordet"], "unknown notebook 'toy/recordet'; did you mean 'toy/recorded'?"),
        (["nothing"], "(allowed: other, toy, other/plain, toy/plain, toy/recorded)"),
        (["nothing"], "`fabook list` shows all"),
        (["toy/recorded", "-p", "seed=0..3"], "got '0..3'; several values at once are for `fabook"),
        (["toy/recorded", "-p", "rate=.1,.2"], "several values at once are for `fabook sweep`"),
        (["--preset", "fast"], "unknown preset 'fast' (allowed: quick, paper)"),
        (["--device", "gpu"], "unknown device 'gpu'; did you mean 'cpu'?"),
        (["toy/recorded", "-p", "rat=1"], "has no parameter 'rat'; did you mean 'rate'?"),
        (["toy", "-p", "rate=1"], "toy/plain has no parameter 'rate'"),
        (["toy/recorded", "-p", "preset=paper"], "give 'preset' as --preset"),
        (["toy/recorded", "-p", "rate"], "a parameter is given as -p key=value, got 'rate'"),
        (["toy/recorded", "-p", "rate=x"], "'rate' must be a finite number such as 0.01, got 'x'"),
        (["toy/recorded", "-p", "rate=1e999"], "'rate' must be a finite number"),
        (["toy/recorded", "-p", "rate=True"], "'rate' must be a finite number"),
        (["toy/recorded", "-p", "seed=1.0"], "'seed' must be an integer such as 0, got '1.0'"),
        (["toy/recorded", "-p", "seed=true"], "'seed' must be an integer"),
        (["toy/recorded", "-p", "flag=1"], "'flag' must be true or false such as False"),
        (["toy/recorded", "-p", "rule=bp"], "'rule' is one of fa, dfa; got 'bp'"),
        (["toy/recorded", "-p", "widths=3"], "'widths' must be a list such as [3, 4], got '3'"),
        (["toy/recorded", "-p", "widths=[3, 'a']"], "'widths' must be a list"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at"),
        (["--scheduler", "host"], "missing port number in address 'host'"),
        (["--scheduler", ""], "--scheduler is local or an address"),
        (["--scheduler", "tcp://127.0.0.1:9", "--jobs", "2"], "--jobs is for runs on this machine"),
    ],
)
def test_refused(
    repository: Repository,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "SCHEDULER_TIMEOUT", 0.5)
    assert cli.main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert repository.kernels() == []
    assert not (repository.out / "results").exists()


def test_device_must_exist(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    cuda = claims.cuda_available()
    assert cli.main(["run", "toy/plain", "--device", "cuda"]) == (0 if cuda else 2)
    assert ("'cuda' is not available here" in capsys.readouterr().err) is not cuda


def test_broken_claims_are_refused(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    repository.edit(repository.root / "book" / "claims.toml", "comparison", "comparisn")
    assert cli.main(["run"]) == 2
    assert "did you mean 'comparison'?" in capsys.readouterr().err


def test_notebook_without_parameters_is_refused(repository: Repository) -> None:
    repository.edit(repository.source("toy/plain"), "[parameters]", "[other]")
    with pytest.raises(parameters.UsageError, match="no cell with the tag 'parameters'"):
        repository.plan("toy/plain")


@pytest.mark.parametrize("scheduled", [False, True])
def test_data_and_device_are_checked_where_the_job_runs(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, scheduled: bool
) -> None:
    monkeypatch.setenv("FABOOK_DATA", str(repository.root / "nowhere"))
    monkeypatch.setattr(claims, "cuda_available", lambda: False)
    if not scheduled:
        with pytest.raises(parameters.UsageError, match="nowhere, which is no folder on"):
            repository.plan("toy/plain", local=True)
        return
    outcome = execute.execute(*repository.plan("toy/plain", local=False))
    assert (outcome.status, "which is no folder on" in outcome.message) == ("failed", True)
    monkeypatch.delenv("FABOOK_DATA")
    outcome = execute.execute(*repository.plan("toy/plain", local=False, device="cuda"))
    assert (outcome.status, "'cuda' is not available" in outcome.message) == ("failed", True)
    assert repository.kernels() == []


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 0, 3),
        ("3", 0.5, 3.0),
        ("1e-3", 0.5, 0.001),
        ("true", False, True),
        ("False", True, False),
        ("3", "x", "3"),
        ("[1, 2, 3]", [0], [1, 2, 3]),
        ("[1, 2]", [0.5], [1, 2]),
        ("none", None, None),
        ("7", None, 7),
        (4, 0.5, 4.0),
    ],
)
def test_values_take_the_type_of_the_default(text: Any, default: Any, value: Any) -> None:
    found = parameters.convert(text, "p", parameters.Parameter(default))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["{1, 2}", "1e999", "b'x'"])
def test_values_must_fit_into_the_results(text: str) -> None:
    with pytest.raises(parameters.UsageError, match="parameter 'p' cannot be"):
        parameters.convert(text, "p", parameters.Parameter(None))


def test_parameters_are_read_from_the_cell() -> None:
    cell = 'a = -1\nb = "x"  # one of: x, y z\nc = {"k": (1, 2)}  # free\n# a comment = 3\n'
    assert parameters.parameters(cell) == {
        "a": parameters.Parameter(-1),
        "b": parameters.Parameter("x", ("x", "y z")),
        "c": parameters.Parameter({"k": (1, 2)}, note="free"),
    }


def test_a_paper_stands_for_its_notebooks(repository: Repository) -> None:
    names = [notebook.name for notebook in notebooks.select(repository.root, ["toy", "toy/plain"])]
    assert names == ["toy/plain", "toy/recorded"]
    (repository.root / "notebooks" / "toy" / "index.md").write_text("# A page\n")
    assert len(notebooks.notebooks(repository.root)) == 3


# --- a cluster -----------------------------------------------------------------------------------


@pytest.fixture
def scheduler(repository: Repository) -> Iterator[str]:
    """The address of a Dask scheduler in a process of its own, with one worker."""
    code = (
        "from distributed import LocalCluster\n"
        "import sys\n"
        "with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, protocol='tcp',"
        " dashboard_address=None, host='127.0.0.1') as cluster:\n"
        "    print(cluster.scheduler_address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.communicate()


def test_scheduler(repository: Repository, scheduler: str) -> None:
    process = repository.command("toy/plain", "other/plain", "--scheduler", scheduler)
    output, error = process.communicate(timeout=600)
    assert (process.returncode, error) == (0, "")
    assert output.count("min") == 2
    assert {int(pid) for _, pid in repository.kernels()}
    before = repository.files()
    assert [o.status for o in repository.run("toy/plain", "other/plain")] == ["cached"] * 2
    assert repository.files() == before
    assert os.environ["FABOOK_ROOT"] == str(repository.root)
