"""Faults made on purpose: processes killed at random moments, full and read-only disks, odd values.

`make faults` runs the long form (`--kills 10`: fifty kills in all, every notebook of the book for
determinism) and writes the counts into the book; `make test` runs a short form of the same tests.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bookkit import claims, new, parameters

ROOT = Path(__file__).resolve().parents[1]
VOLATILE = ("date", "minutes", "key")  # of a results file: when it was made, and how long it took
TIMED = {  # what notebooks measure with a clock: table and variables
    "primer/your_own_network": {"time": ["seconds"]},
    "synthesis/rules_compared": {"cost": ["seconds", "at_equal_time"]},
}
Fault = Callable[[int], None]
HOURS = pytest.mark.timeout(8 * 3600)  # what is repeated fifty times, on a busy machine


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


@dataclass
class Project:
    """A book of two small notebooks, and the command line as its user types it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    seconds: float = 600  # that a command may take

    @property
    def out(self) -> Path:
        return self.root / "_build"

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        command = [sys.executable, "-m", "fabook", *words]
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, start_new_session=True, **options
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words) as process:
            out, error = process.communicate(timeout=self.seconds)
        return subprocess.CompletedProcess(words, process.returncode, out, error)

    def clean(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    book = tmp_path / "book"
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns("results", "bookkit"))
    table = claims.find_root() / "book" / "claims.toml"
    head = table.read_text(encoding="utf-8").partition("[[claim]]")[0]
    (book / "claims.toml").write_text(head, encoding="utf-8")
    contents = "format: jb-book\nroot: intro\nparts:\n- caption: The papers\n  chapters:\n"
    contents += "  - file: chapters/paper2025\n    sections:\n"
    (book / "_toc.yml").write_text(contents, encoding="utf-8")
    (book / "intro.md").write_text("# Faults\n\n```{scorecard}\n```\n", encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    for name in ("paper2025/a_result", "paper2025/b_result"):
        new.create(tmp_path, name)
    return Project(tmp_path)


def content(folder: Path) -> dict[str, Any]:
    """Every file that a user may read, without what tells one run from another."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith((".work", "book_work")) or name.endswith((".lock", ".buildinfo")):
            continue
        if path.name.startswith("."):  # half a file under its temporary name
            continue
        body: Any = path.read_bytes()
        if path.suffix == ".json" and name.startswith("results/"):
            body = {k: v for k, v in json.loads(body).items() if k not in VOLATILE}
        if path.suffix == ".html":  # Sphinx's mark of a file's content, where it was there already
            body = re.sub(rb"\?v=[0-9a-f]+", b"", body)
        if name.startswith("sweeps/"):
            body = "there" if path.suffix != ".csv" else table(path)
        found[name] = body
    return found


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table without the time they took."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in VOLATILE} for row in csv.DictReader(file)]


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of files that are not as expected; what is missing does not count."""
    return [name for name in found if name not in expected or found[name] != expected[name]]


def no_kernels(root: Path) -> bool:
    """Whether no process works in the folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            if str(root).encode() in words or (process / "cwd").resolve().is_relative_to(root):
                return False
        except OSError:
            continue
    return True


def wait_until(condition: Callable[[], object], seconds: float = 600, every: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)


# --- kill -9 -------------------------------------------------------------------------------------

COMMANDS: dict[str, list[list[str]]] = {  # what comes before, then what is killed
    "run": [["run", "--jobs", "2"]],
    "sweep": [["sweep", "a_result", "-p", "seed=0..2", "-p", "updates=5", "--jobs", "2"]],
    "build": [["run", "--jobs", "2"], ["build", "--lenient"]],
}


def killed(
    project: Project,
    command: list[str],
    kills: int,
    read: Callable[[], dict[str, Any]],
    reset: Callable[[], None],
    place: Path,
    begun: Callable[[], bool] | None = None,
) -> None:
    """A command undisturbed, then killed at random moments and repeated: `read` finds the same.

    Right after a kill it finds whole files or none. A command that ended before it could be killed
    does not count: another moment is drawn. With `begun`, which says that it writes, nor does one
    that was killed before, or when all was written. `place` is where its processes work.
    """

    def writes() -> bool:
        return begun is None or begun() or process.poll() is not None

    for _ in range(2):  # the second is timed: it finds its programs and data in memory
        reset()
        with project.start(*command, stdout=subprocess.DEVNULL) as process:
            wait_until(writes, every=0.001)
            started = time.monotonic()
            error = process.communicate(timeout=project.seconds)[1]
        assert process.returncode == 0, error
        whole, expected = time.monotonic() - started, read()
    assert expected
    moments = random.Random(" ".join(command[:2]))
    for number in range(kills):
        for _ in range(20):
            reset()
            with project.start(*command, stdout=subprocess.DEVNULL) as process:
                wait_until(writes, every=0.001)
                time.sleep(whole * moments.random())
                process.kill()
            left, was_killed = read(), process.returncode == -signal.SIGKILL
            if was_killed and (begun is None or left.keys() != expected.keys()):
                break
        else:
            pytest.fail("it was never there to be killed")
        assert differing(left, expected) == [], f"kill {number}"
        wait_until(lambda: no_kernels(place))
        again = project.command(*command)
        assert again.returncode == 0, again.stderr
        after = read()
        assert after.keys() == expected.keys(), f"kill {number}"
        assert differing(after, expected) == [], f"kill {number}"


@pytest.mark.fault("kill -9", "`fabook {words}`, then started again: the same files")
@pytest.mark.parametrize(
    "words", ["run", *(pytest.param(name, marks=pytest.mark.long) for name in ("sweep", "build"))]
)
@HOURS
def test_kill(words: str, project: Project, kills: int, times: Fault) -> None:
    times(kills)
    *before, command = COMMANDS[words]
    for done in before:
        assert project.command(*done).returncode == 0
    ready = content(project.out)

    def reset() -> None:
        for name in content(project.out).keys() - ready.keys():
            (project.out / name).unlink()

    killed(project, command, kills, lambda: content(project.out), reset, project.root)


@pytest.mark.fault("kill -9", "`fabook data prepare`, then started again: the same files")
@HOURS
def test_kill_while_data_is_prepared(project: Project, kills: int, times: Fault) -> None:
    times(kills)
    source, room = project.root / "source", project.root / "room"
    source.mkdir()
    names = [f"{name}-subset.npz" for name in ("cifar10", "cifar100")]
    for name in names:  # large enough that copying them takes a while
        (source / name).write_bytes(random.Random(name).randbytes(60_000_000))
    project.environment["FABOOK_DATA"] = str(source)

    def sums() -> dict[str, Any]:
        return {name: hashlib.sha256(body).digest() for name, body in content(room).items()}

    def reset() -> None:
        shutil.rmtree(room, ignore_errors=True)

    def begun() -> bool:
        return room.is_dir() and any(room.iterdir())

    command = ["data", "prepare", "room", "digits", "cifar10", "cifar100"]
    killed(project, command, kills, sums, reset, project.root, begun)
    assert {*sums()} == {*names, "SHA256SUMS"}
    assert len([*room.iterdir()]) == 3  # nothing of a killed one is left


@pytest.mark.fault("kill -9", "`fabook grade`, then started again: the same table")
@HOURS
def test_kill_while_homework_is_graded(
    tmp_path: Path, kills: int, times: Fault, request: pytest.FixtureRequest
) -> None:
    built = ROOT / "_build" / "homework" / "hw1"
    python = ROOT / ".venv-homework" / "bin" / "python"
    if not (python.is_file() and (built / "autograder.zip").is_file()):
        assert not request.config.getoption("--otter"), "run `make homework` first"
        pytest.skip("grades with otter: `make homework`, then --otter")
    for name in ("one", "two", "three"):
        shutil.copy(next((built / "student").glob("*.ipynb")), tmp_path / f"{name}.ipynb")
    times(kills)
    graded = tmp_path / "graded"

    def grades() -> dict[str, Any]:
        tables = ("grades.csv", "feedback/")
        return {k: v for k, v in content(graded).items() if k.startswith(tables)}

    command = ["grade", str(tmp_path), "--homework", "hw1", "--jobs", "2"]

    def reset() -> None:
        shutil.rmtree(graded, ignore_errors=True)

    killed(Project(ROOT), command, kills, grades, reset, tmp_path)


# --- disks and folders ---------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A small disk of its own; called again, it changes its size or becomes read-only."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str = "64m", *, read_only: bool = False) -> Path:
        options = f"{'remount,' if os.path.ismount(place) else ''}size={size}"
        options += ",ro" if read_only else ",rw"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip("a disk of its own needs the right to mount one")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault("disk full", "said in one line; with room again, the same files")
def test_disk_full(project: Project, disk: Callable[..., Path], kills: int, times: Fault) -> None:
    sizes = ("32k",) if kills == 1 else ("8k", "32k", "64k", "96k")
    times(len(sizes))
    assert project.command("run", "--jobs", "1").returncode == 0
    expected = content(project.out)
    for size in sizes:
        out = disk(size)
        full = project.command("run", "--jobs", "1", "--out", str(out))
        assert full.returncode not in (0, None)
        assert "No space left on device" in full.stderr, size
        assert "Traceback" not in full.stderr
        left = {k: v for k, v in content(out).items() if ".failed." not in k}
        assert differing(left, expected) == []
        disk("64m")
        again = project.command("run", "--jobs", "1", "--out", str(out))
        assert again.returncode == 0, again.stderr
        assert content(out) == expected
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.fault("read-only folder", "`fabook {words}` names it, and no traceback")
@pytest.mark.parametrize(
    "words",
    [
        "run --jobs 1 --out FOLDER",
        pytest.param("sweep a_result -p seed=0..1 --out FOLDER", marks=pytest.mark.long),
        pytest.param("build --out FOLDER", marks=pytest.mark.long),
        "data prepare FOLDER/room digits",
    ],
)
def test_read_only(words: str, project: Project, disk: Callable[..., Path]) -> None:
    place = disk()
    if words.startswith("build"):
        assert project.command("run", "--jobs", "1", "--out", str(place)).returncode == 0
    disk(read_only=True)
    done = project.command(*words.replace("FOLDER", str(place)).split())
    assert done.returncode not in (0, None)
    assert str(place) in done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault("no home folder", "runs all the same")
@pytest.mark.parametrize("home", [None, pytest.param("/nonexistent", marks=pytest.mark.long)])
def test_no_home(home: str | None, project: Project) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        project.environment.pop(name, None)
    if home:
        project.environment["HOME"] = home
    done = project.command("run", "a_result")
    assert done.returncode == 0, done.stderr
    assert project.command("claims").returncode == 0


@pytest.mark.fault("clock going backwards", "the same files; what is up to date stays so")
def test_clock_going_backwards(project: Project) -> None:
    assert project.command("run", "a_result").returncode == 0
    expected = content(project.out)
    future = time.time() + 10 * 365 * 86400
    for path in project.out.rglob("*"):
        os.utime(path, (future, future))
    again = project.command("run", "a_result")
    assert "up to date" in again.stdout
    source = project.root / "notebooks" / "paper2025" / "a_result.md"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("lr=0.1", "lr=0.2"), encoding="utf-8")
    changed = project.command("run", "a_result")
    assert changed.returncode == 0, changed.stderr
    assert "up to date" not in changed.stdout  # although its results are from the future
    assert content(project.out) != expected
    source.write_text(text, encoding="utf-8")
    shutil.rmtree(project.out)
    folder = project.root / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "start, count = time.time(), itertools.count()\n"
        "time.time = lambda: start - 3600 * next(count)\n"
    )
    project.environment["PYTHONPATH"] = str(folder)
    done = project.command("run", "a_result")
    assert done.returncode == 0, done.stderr
    assert content(project.out) == expected


@pytest.mark.fault(
    "a run that diverges",
    "no verdict `reproduced`, and valid JSON; or it ends with the step and what was not finite",
)
@pytest.mark.parametrize("lr", ["1e5", pytest.param("1e20", marks=pytest.mark.long), "1e38"])
def test_divergence(lr: str, project: Project) -> None:
    source = project.root / "notebooks" / "paper2025" / "a_result.md"
    source.write_text(source.read_text().replace('activation="tanh"', 'activation="relu"'))
    done = project.command("run", "a_result", "-p", f"lr={lr}")
    results = list((project.out / "results").rglob("*.json"))
    if done.returncode:  # the loss was looked at after it had become NaN
        assert done.returncode == 1
        assert not results
        assert re.search(r"run diverged at step \d+: loss is (nan|-?inf)", done.stderr), done.stderr
        return
    (path,) = results
    stored = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    (entry,) = stored["claims"]
    assert None in entry["checks"][0]["values"]  # NaN, as JSON has it: it did diverge
    assert entry["verdict"] != "reproduced"


# --- fuzz ----------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
WORDS = st.text(max_size=40) | st.sampled_from(
    ["seed=1", "seed=0..3", "seed=", "=", "seed=1=2", "seed=[1", "seed=1..", "a.b=1", "seed=nan"]
)
VALUES = st.lists(st.sampled_from([*"[]{}(),:&*!|>\"'-+#\n\0 19ex", "..", "!!int ", "true"])).map(
    "".join
) | st.sampled_from(["[" * 3000, "-" * 20_000, "9" * 5000, "0.." + "9" * 5000, "&a [*a]"])
EXAMPLES = [0.1, 1, "fa", [1, 2], True, None, {"a": 1}]


@pytest.mark.fault("any text as -p, -r, -y", "understood, or refused in one line")
@FUZZ
@given(
    words=st.lists(WORDS | VALUES.map("seed={}".format), max_size=3),
    raw=st.lists(WORDS, max_size=2), texts=st.lists(WORDS | VALUES, max_size=2),
    default=st.sampled_from(EXAMPLES),
)  # fmt: skip
@example(["seed=" + "[" * 3000], [], [], 0.1)
@example(["seed=0.." + "9" * 5000], [], [], 1)
@example([], [], ["["], 0.1)
@example([], [], ["[" * 3000], 0.1)
@example([], [], ["seed: !!int x"], 0.1)
def test_parameters(words: list[str], raw: list[str], texts: list[str], default: Any) -> None:
    said = "understood"
    try:
        for name, values in parameters.given(words, raw, texts).items():
            assert isinstance(name, str)
            for value in [one for text in values for one in parameters.several(text)]:
                found = parameters.convert(value, name, parameters.Parameter(default))
                json.dumps(found, allow_nan=False)
    except parameters.UsageError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


@pytest.mark.fault("any text in the registry of claims", "read, or refused by its name")
@FUZZ
@given(text=st.text(max_size=200), place=st.integers(0, 6000), cut=st.integers(0, 200))
def test_registry(text: str, place: int, cut: int, tmp_path: Path) -> None:
    whole = (ROOT / "book" / "claims.toml").read_text(encoding="utf-8")[:6000]
    table = tmp_path / "book" / "claims.toml"
    table.parent.mkdir(exist_ok=True)
    table.write_text(whole[:place] + text + whole[place + cut :], encoding="utf-8")
    found: Mapping[str, claims.Claim] = {}
    with contextlib.suppress(claims.ClaimsError):
        found = claims.load(tmp_path)
    assert all(claim.checks for claim in found.values())


# --- determinism ---------------------------------------------------------------------------------


def results(folder: Path) -> dict[str, Any]:
    """The results files without what a clock measured, which must be there."""
    found = {}
    for path in sorted((folder / "results").rglob("*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        for label, names in TIMED.get(body["notebook"], {}).items():
            for name in names:
                del body["data"][label]["data_vars"][name]
        # These two are sums over what is compared, and over figures with times in them.
        volatile = (*VOLATILE, "checksum", "notebook_sha256")
        found[path.relative_to(folder).as_posix()] = {
            k: v for k, v in body.items() if k not in volatile
        }
    return found


@pytest.mark.fault(
    "the quick preset run twice, then what was removed from it",
    "equal results but for times: 1 or 2 jobs, cold or warm",
)
@HOURS
def test_determinism(project: Project, kills: int, times: Fault) -> None:
    place = project.root
    if kills > 1:  # the book itself
        project.root, project.seconds = ROOT, 4 * 3600
    folders = [place / f"out{number}" for number in range(2)]
    for folder, jobs in zip(folders, "12"):
        done = project.command("run", "--jobs", jobs, "--out", str(folder))
        assert done.returncode == 0, done.stderr
    first, second = map(results, folders)
    times(len(first))
    assert first
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    for name in [*first][::5]:
        (folders[0] / name).unlink()
    warm = project.command("run", "--jobs", "2", "--out", str(folders[0]))
    assert warm.returncode == 0
    assert "up to date" in warm.stdout
    assert results(folders[0]) == first
