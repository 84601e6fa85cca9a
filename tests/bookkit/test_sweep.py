"""Sweeps: a grid in parallel, here and on a real Dask cluster, gathered into one table."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from bookkit import cli, execute, notebooks, parameters, picture, sweep
from bookkit.parameters import UsageError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = """\
---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# A toy

```{code-cell} python
:tags: [parameters]
preset = "quick"      # one of: quick, paper
seed = 0
device = "auto"       # one of: auto, cpu, cuda
rule = "fa"
width = 1
pause = 0.0
```

```{code-cell} python
import json, os, time
with open(os.environ["FABOOK_ROOT"] + "/log.txt", "a") as log:
    print(os.getpid(), os.getppid(), file=log)
time.sleep(pause)
assert width != 13, "thirteen is refused"
arrays = dict(size=width * (1 + seed), parent=os.getppid(), rule=rule,
              data=os.environ.get("FABOOK_DATA", ""), t=[1, 2])
found = {key: dict(dims=["t"] * isinstance(value, list), values=value)
         for key, value in arrays.items()}
result = dict(schema=2, notebook="toy/alpha", preset=preset, seed=seed, device=device, claims=[],
              data=dict(found=dict(coords={}, data_vars=found)), datasets=[])
with open(os.environ["FABOOK_RESULT_FILE"], "w") as file:
    json.dump(result, file)
```
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book with one notebook and no claim."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.toml").write_text("", encoding="utf-8")
    (tmp_path / "notebooks" / "toy").mkdir(parents=True)
    (tmp_path / "notebooks" / "toy" / "alpha.md").write_text(NOTEBOOK, encoding="utf-8")
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    monkeypatch.delenv("FABOOK_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CLAIM = """
[[claim]]
id = "toy.alpha.small"
notebook = "toy/alpha"
paper = "toy"
where = "Section 1"
statement = "It is small."
source = "paper"
paper_value = "0.01"
[[claim.check]]
quantity = "error"
label = "error"
comparison = "<="
bound = 0.5
"""
PAGE = """\
---
kernelspec: {display_name: Python 3, language: python, name: python3}
---
# A toy

:::{lead}
Short.
:::

```{hero} hero
:alt: A line.
A line over {glue:text}`n`.
```

```{claims}
```

$$
N = 1
$$ (eq-n)

With {glue:text}`n` units, by {eq}`eq-n`.

As {cite:t}`nobody` found.

```{code-cell} python
:tags: [parameters]
preset = "quick"
seed = 0
device = "auto"
```

```{code-cell} python
import bookkit, matplotlib.pyplot as plt
run = bookkit.start("toy/alpha", globals())
run.glue(n="3,200")
run.record("line", dims=["t"], t=[0, 1], y=[0.0, seed])
run.figure("hero", lambda data: plt.figure().add_subplot().plot(data["line"].y) and None)
run.claim("toy.alpha.small", error=1.0)
run.save()
```

```{exercise-start}
:label: ex-one
```
★ *Warm-up, 5 minutes.*
```{exercise-end}
```

```{solution-start} ex-one
```

It is.

```{solution-end}
```
"""


def tables(root: Path) -> list[Path]:
    return sorted((root / "_build" / "sweeps").rglob("*.csv"))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def kernels(root: Path) -> list[tuple[int, int]]:
    log = root / "log.txt"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [(int(pid), int(parent)) for pid, parent in map(str.split, lines)]


def wait_until(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


# --- here ----------------------------------------------------------------------------------------


def test_a_grid_becomes_one_tidy_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", "alpha", "-p", "seed=0..1", "-p", "width", "1,3", "--jobs", "2", "--plot"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 0 failed" in printed
    (path,) = tables(root)
    assert str(path) in printed
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()
    rows = [row for row in read(path) if row["quantity"] == "found.size"]
    found = [(row["seed"], row["width"], row["value"], row["status"]) for row in rows]
    expected = [("0", "1", "1"), ("0", "3", "3"), ("1", "1", "2"), ("1", "3", "6")]
    assert found == [(*values, "ok") for values in expected]
    assert {row["quantity"] for row in read(path)} == {"found.size", "found.parent"}  # numbers only

    from pyarrow import parquet

    same = parquet.read_table(path.with_suffix(".parquet")).to_pylist()
    assert [row["value"] for row in same if row["quantity"] == "found.size"] == [1, 3, 2, 6]
    assert list(same[0]) == list(read(path)[0])

    assert cli.main([*arguments, "size"]) == 0  # nothing to do; the end of a quantity's name
    assert capsys.readouterr().out.count("up to date") == 4
    assert len(kernels(root)) == 4
    assert path.read_bytes() == before

    assert cli.main(["list", "--runs", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_the_page_of_one_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = root / "notebooks" / "toy" / "alpha.md"
    (root / "book" / "claims.toml").write_text(CLAIM, encoding="utf-8")
    source.write_text(PAGE, encoding="utf-8")
    assert cli.main(["run", "alpha", "-p", "seed", "7"]) == 0
    printed = capsys.readouterr().out
    (run,) = re.findall(r"toy/alpha@(\w{8}) \(quick, seed = 7\)", printed)
    assert cli.main(["show", run]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "    seed = 7" in shown
    page = Path(shown[-1]).read_text(encoding="utf-8")
    assert "With 3,200 units, by (1)." in page
    assert page.count('src="data:image/png') == page.count("Drawn from this run.") + 1 == 2
    assert "What is checked</strong>, and what came of it in this run" in page
    assert "It is small. <em>Not reproduced.</em>" in page
    assert "Solution of the exercises" in page
    assert "As nobody found" in page  # what the book does not cite keeps its key
    assert not re.search(r"\{(lead|hero|claims|eq|glue|cite|solution)", page)
    assert re.findall(r'<(?:script|link)[^>]*(?:src|href)="https?:', page) == []
    assert cli.main(["show", "nothing"]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err


def test_a_run_that_fails_has_its_row_and_its_report(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "alpha", "-p", "width=1,13,2"]) == 1
    printed = capsys.readouterr()
    assert "(width=13): cell In [3] failed" in printed.err
    assert "3 runs, 1 failed" in printed.out
    rows = read(tables(root)[0])
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["width"], row["quantity"]) for row in failed] == [("13", "")]
    assert "thirteen is refused" in failed[0]["error"]
    assert {row["width"] for row in rows if row["status"] == "ok"} == {"1", "2"}


@pytest.mark.fault(
    "kill -9 at a chosen moment", "`fabook sweep`, then started again: every run once in the table"
)
def test_killed_and_started_again_it_ends_with_the_same_table(root: Path) -> None:
    command = [sys.executable, "-m", "fabook", "sweep", "alpha", "-p", "pause=0.5"]
    command += ["-p", "seed=0..5", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: len(kernels(root)) >= 3)
        process.kill()
    assert tables(root) == []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("up to date") >= 1
    rows = [row for row in read(tables(root)[0]) if row["quantity"] == "found.size"]
    assert [row["seed"] for row in rows] == list("012345")


def test_several_ways_to_give_a_grid(root: Path) -> None:
    given = parameters.given(["seed=1", "seed=2..3"], yaml_texts=["{rule: a}"])
    grid = sweep.plan(root, "alpha", given, out=root / "_build")
    assert grid.axes == {"rule": ["a"], "seed": [1, 2, 3]}
    again = sweep.plan(root, "alpha", parameters.given(["seed=1,1,2"]), out=root / "_build")
    assert grid.stem != again.stem
    assert len(again.jobs) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["sed=1"], "has no parameter 'sed'; did you mean 'seed'?"),
        (["seed=0,x"], "'seed' must be an integer"),
        (["seed=0..9999", "width=1..100"], "the grid has 1000000 runs"),
        (["device=cpu"], "give 'device' as --device"),
        (["seed="], "'seed' must be an integer"),
    ],
)
def test_refused_before_anything_starts(
    root: Path, values: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for value in values for word in ("-p", value)]
    assert cli.main(["sweep", "alpha", *words]) == 2
    assert message in capsys.readouterr().err
    assert kernels(root) == []


def test_the_presets_value_and_its_name_are_one_run(root: Path) -> None:
    source = root / "notebooks" / "toy" / "alpha.md"
    table = "\n```{code-cell} python\nrun.sizes(quick=dict(n=10), paper=dict(n=99))\n```\n"
    source.write_text(NOTEBOOK.replace("width = 1", "width = 1\nn = None") + table)
    grid = sweep.plan(root, "alpha", {"n": ["None,10,20"]}, out=root / "_build")
    assert grid.axes == {"n": [10, 20]}
    assert len({job.stem for job in grid.jobs}) == 2


def test_a_run_without_a_claim_or_a_number_has_its_row(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = root / "notebooks" / "toy" / "alpha.md"
    found = 'for key, value in arrays.items() if key == "t" or (key == "size" and width == {})'
    for number, rows in ((2, [("1", ""), ("2", "found.size")]), (3, [("1", ""), ("2", "")])):
        source.write_text(
            NOTEBOOK.replace("for key, value in arrays.items()", found.format(number))
        )
        assert cli.main(["sweep", "alpha", "-p", "width=1,2", "--plot"]) == 0
        assert "2 runs, 0 failed" in capsys.readouterr().out
        (path,) = tables(root)
        assert [(row["width"], row["quantity"]) for row in read(path)] == rows
        assert {row["status"] for row in read(path)} == {"ok"}


class Drawn(NamedTuple):
    jobs: list[Any]
    points: list[dict[str, Any]]
    axes: dict[str, list[Any]]
    stem: Path


def drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, quantity: str | None
) -> tuple[list[float], list[float], str]:
    """The line of a picture of two claims with the same quantity, over seeds in disorder."""
    seeds = [5, 0, 3]
    jobs = [SimpleNamespace(stem=str(seed)) for seed in seeds]
    grid: Any = Drawn(jobs, [{"seed": seed} for seed in seeds], {"seed": seeds}, folder / "it")
    rows = [
        {"run": str(seed), "claim": claim, "quantity": "gain", "value": sign * seed}
        for seed in seeds
        for claim, sign in (("toy.a.one", 1), ("toy.a.two", -1))
    ]
    figures: list[Any] = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda self, *_, **__: figures.append(self)
    )
    picture.plot(grid, rows, quantity)
    (axes,) = figures[0].axes
    line = axes.lines[0]
    return list(line.get_xdata()), list(line.get_ydata()), f"{axes.get_title()}.{axes.get_ylabel()}"


def test_a_picture_is_of_one_claim_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = [0.0, 3.0, 5.0]
    for quantity in (None, "toy.a.one.gain", "one.gain"):
        assert drawn(tmp_path, monkeypatch, quantity) == (x, [0, 3, 5], "toy.a.one.gain")
    assert drawn(tmp_path, monkeypatch, "two.gain") == (x, [0, -3, -5], "toy.a.two.gain")
    with pytest.raises(UsageError, match=r"allowed: toy.a.one.gain, toy.a.two.gain\)"):
        drawn(tmp_path, monkeypatch, "gain")
    with pytest.raises(UsageError, match="no run has the quantity 'ain'"):
        drawn(tmp_path, monkeypatch, "ain")


def test_a_name_of_no_or_several_quantities_is_refused_before_the_runs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CLAIM + CLAIM.replace("alpha.small", "alpha.tiny")
    (root / "book" / "claims.toml").write_text(text, encoding="utf-8")
    assert cli.main(["sweep", "alpha", "-p", "seed=0,1", "--plot", "eror"]) == 2
    assert "no run has the quantity 'eror'" in capsys.readouterr().err
    assert cli.main(["sweep", "alpha", "-p", "seed=0,1", "--plot", "error"]) == 2
    assert "toy.alpha.small.error, toy.alpha.tiny.error" in capsys.readouterr().err
    assert kernels(root) == []


@pytest.mark.parametrize(
    ("name", "values"), [("width", f"1,{2**70}"), ("pause", "0,1e-3"), ("own", "1,a,[2]")]
)
def test_whatever_is_swept_is_stored_and_drawn(root: Path, name: str, values: str) -> None:
    source = root / "notebooks" / "toy" / "alpha.md"
    source.write_text(NOTEBOOK.replace("width = 1", "width = 1\nown = None"))
    assert cli.main(["sweep", "alpha", "-p", name, values, "--plot"]) == 0
    (path,) = tables(root)
    assert path.with_suffix(".png").is_file()

    from pyarrow import parquet

    same = parquet.read_table(path.with_suffix(".parquet")).to_pylist()
    assert [str(row[name]) for row in same] == [row[name] for row in read(path)]


def test_a_picture_needs_something_to_draw(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "alpha", "--plot"]) == 2
    assert "--plot" in capsys.readouterr().err
    assert kernels(root) == []
    assert cli.main(["sweep", "alpha", "-p", "width=13", "--plot"]) == 1
    assert "1 runs, 1 failed" in capsys.readouterr().out


HOSTILE = ["'; import os; os._exit(1) #", '"""', "a\nb", "{x}\\", "$(id)", "ä∂\t", "..", "%s"]
MAKES = "__import__('pathlib').Path('executed').touch()"  # a file, were it ever executed
CODE = [
    MAKES,
    f'"; {MAKES} #',
    f"a\n{MAKES}",
    f"{{{{ {MAKES} }}}}",
    "`touch executed`",
    f"''+{MAKES}+''",
]


@pytest.mark.fault(
    "quotes, code, newlines as a value", "arrive in the notebook as text, and are never executed"
)
def test_hostile_values_arrive_as_data(root: Path) -> None:
    words = [word for text in CODE for word in ("-p", f"rule={text}")]
    words += [word for text in HOSTILE for word in ("-r", f"rule={text}")]
    done = typed("sweep", "alpha", *words, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    texts = [json.loads(path.read_text()) for path in (root / "_build" / "results").rglob("*.json")]
    found = [results["data"]["found"]["data_vars"]["rule"]["values"] for results in texts]
    assert sorted(found) == sorted(CODE + HOSTILE)
    assert [row["rule"] for row in read(tables(root)[0])][::2] == CODE + HOSTILE
    assert not list(root.rglob("executed"))


@pytest.mark.fault("code as a number, or as YAML", "refused in one line before a kernel starts")
@pytest.mark.parametrize(
    "words",
    [
        ("-p", f"width={MAKES}"),
        pytest.param(("-r", f"width={MAKES}"), marks=pytest.mark.long),
        pytest.param(("-p", f"width=[{MAKES}]"), marks=pytest.mark.long),
        ("-y", "rule: !!python/object/apply:os.system ['touch executed']"),
        pytest.param(("-y", "["), marks=pytest.mark.long),
        ("-y", "[" * 3000),
        pytest.param(("-p", "width=" + "[" * 3000), marks=pytest.mark.long),
        pytest.param(("-p", f"{MAKES}=1"), marks=pytest.mark.long),
    ],
)
def test_what_cannot_be_data_is_refused(root: Path, words: tuple[str, str]) -> None:
    done = typed("sweep", "alpha", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("fabook: ")
    assert kernels(root) == []
    assert not list(root.rglob("executed"))


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line, as its user has it."""
    command = [sys.executable, "-m", "fabook", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


# --- on a cluster --------------------------------------------------------------------------------


class Cluster:
    """A Dask scheduler and workers without nannies, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, list[subprocess.Popen[bytes]]()
        file = folder / "scheduler.json"
        words = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = self.start(*words, "--scheduler-file", str(file))
        wait_until(lambda: file.is_file() and file.read_text().strip().endswith("}"))
        self.address = json.loads(file.read_text())["address"]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k != "FABOOK_DATA"}
        command = [sys.executable, "-m", "dask", *words]
        log = open(self.folder / "cluster.log", "ab")  # noqa: SIM115
        with log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def add(self) -> subprocess.Popen[bytes]:
        words = ["worker", self.address, "--nworkers", "1", "--nthreads", "1", "--no-nanny"]
        self.workers.append(self.start(*words, "--no-dashboard"))
        return self.workers[-1]

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(root: Path) -> Iterator[Cluster]:
    made = Cluster(root)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.fault("a worker of a Dask cluster killed", "every run ends exactly once in the table")
def test_a_worker_killed_in_the_middle(root: Path, cluster: Cluster) -> None:
    first, second = cluster.add(), cluster.add()
    command = [sys.executable, "-m", "fabook", "sweep", "alpha", "-p", "seed=0..9"]
    command += ["-p", "pause=0.4", "--scheduler", cluster.address]
    environment = os.environ | {"FABOOK_DATA": str(root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: {first.pid, second.pid} <= {parent for _, parent in kernels(root)})
        first.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "10 runs, 0 failed" in output
    rows = read(tables(root)[0])
    sizes = [row for row in rows if row["quantity"] == "found.size"]
    assert [row["seed"] for row in sizes] == [str(seed) for seed in range(10)]  # each exactly once
    assert len({row["run"] for row in rows}) == 10
    hosts = {int(row["value"]) for row in rows if row["quantity"] == "found.parent"}
    assert second.pid in hosts
    assert hosts <= {first.pid, second.pid}  # never in the client's process
    results = json.loads(next((root / "_build" / "results").rglob("*.json")).read_text())
    assert results["data"]["found"]["data_vars"]["data"]["values"] == str(
        root
    )  # the client's, not the worker's


def test_one_worker_with_one_thread_runs_what_was_sent(root: Path, cluster: Cluster) -> None:
    worker = cluster.add()
    jobs = notebooks.plan(root, ["alpha"], out=root / "_build")
    outcomes = execute.run(jobs, scheduler=cluster.address)
    assert [outcome.status for outcome in outcomes] == ["done"]
    assert [parent for _, parent in kernels(root)] == [worker.pid]


STUBS = {
    # As Slurm does, a copy of the script runs: the client removes its own at once.
    "sbatch": 'cp "$1" "$STUBS/$$.sh"; setsid bash "$STUBS/$$.sh" > "$STUBS/job-$$.log" 2>&1 &\n'
    'echo "Submitted batch job $!"\n',
    "scancel": 'kill -- "-$1"\n',
}


def test_the_slurm_script_of_the_book(root: Path) -> None:
    page = (ROOT / "book" / "sweeps.md").read_text(encoding="utf-8")
    (script,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "SLURMCluster" in block
    ]
    (root / "sweep_slurm.py").write_text(script, encoding="utf-8")
    stubs = root / "stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        (stubs / name).chmod(0o755)
    path = os.pathsep.join([str(stubs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "STUBS": str(stubs)}
    command = [sys.executable, "sweep_slurm.py", "alpha", "-p", "seed=0..3"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "4 runs, 0 failed" in done.stdout
    assert len(list(stubs.glob("job-*.log"))) >= 1
    assert len(kernels(root)) == 4
