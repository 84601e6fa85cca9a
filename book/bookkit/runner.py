"""Executing notebooks: parameters checked first, results cached by content, outputs renamed.

    DIR/notebooks/<preset>/<notebook>.ipynb         the executed notebook
    DIR/notebooks/<preset>/<notebook>.failed.ipynb  what there was of it when a cell failed
    DIR/results/<preset>/<notebook>.json            its results, moved in place last
    DIR/.work/                                      locks and temporary files

A run whose parameters (other than preset and device) differ from the notebook's defaults is
stored as `<notebook>@<hash of those parameters>`, so that it never replaces the preset's results.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from bookkit import claims, parameters
from bookkit.parameters import UsageError

COMMON = ("preset", "device")  # parameters that have an option of their own
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SCHEDULER_TIMEOUT = 10.0  # seconds to wait for a Dask scheduler's answer
CARRIED = (*THREADS, "FABOOK_DATA")  # settings that go with a job to a cluster
UNCHECKED = ("checksum", "date", "minutes")  # fields outside the results' own checksum
_QUIET = logging.NullHandler()  # errors are reported once, by `fabook run` itself
_KEPT = "what there is of it: "
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Notebook:
    """One notebook source below `notebooks/`, described by its header."""

    name: str
    path: Path
    title: str
    minutes: dict[str, float | None]

    @property
    def paper(self) -> str:
        """The folder it lies in."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Job:
    """One notebook to execute; plain values, so that it can be sent to a cluster."""

    notebook: str
    root: str
    out: str
    preset: str
    device: str
    custom: dict[str, Any] = field(default_factory=dict)
    force: bool = False
    path: str = ""  # of a notebook outside `notebooks/`
    settings: dict[str, str] = field(default_factory=dict)  # of the environment it was sent from

    @property
    def stem(self) -> str:
        """Name of the output files: the notebook's, with a short hash of custom parameters."""
        return f"{self.notebook}@{_digest(self.custom)[:8]}" if self.custom else self.notebook

    @property
    def source(self) -> Path:
        """The notebook's source."""
        return (
            Path(self.path) if self.path else Path(self.root) / "notebooks" / f"{self.notebook}.md"
        )

    def setting(self, name: str) -> str | None:
        """A variable of the environment from which the job was sent, else of this one."""
        return self.settings.get(name) if self.settings else os.environ.get(name)

    def output(self, kind: str, suffix: str) -> Path:
        """The path of an output: `kind` is notebooks, results or .work."""
        return Path(self.out) / kind / self.preset / f"{self.stem}{suffix}"


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `done`, `cached`, `failed` or `aborted`."""

    job: Job
    status: str
    minutes: float = 0.0
    message: str = ""
    lines: tuple[str, ...] = ()  # a verdict line for each claim
    unexpected: tuple[str, ...] = ()  # those that differ from the expected verdict
    differing: tuple[str, ...] = ()  # the claims of these if parameters are one's own: no error


# --- what there is -------------------------------------------------------------------------------


def sources(root: Path) -> list[Path]:
    """Markdown files below `notebooks/`, but for the `exclude_patterns` of `book/_config.yml`."""
    import yaml

    config = root / "book" / "_config.yml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    patterns = (yaml.safe_load(text) or {}).get("exclude_patterns") or []
    excluded = {path for pattern in patterns for path in root.glob(pattern)}
    return [path for path in sorted(root.glob("notebooks/*/*.md")) if path not in excluded]


def notebooks(root: Path) -> list[Notebook]:
    """All notebooks of the book: the `sources` whose header names a kernel.

    The header's `fabook: {minutes: {quick: ..., paper: ...}}` estimates how long each preset takes.
    """
    import yaml

    found = []
    for path in sources(root):
        match = re.match(r"---\n(.*?\n)---\n(.*)", path.read_text(encoding="utf-8"), re.DOTALL)
        header = yaml.safe_load(match[1]) if match else None
        if match is None or not isinstance(header, dict) or "kernelspec" not in header:
            continue
        name = path.relative_to(root / "notebooks").with_suffix("").as_posix()
        heading = re.search(r"^# +(.+?) *$", match[2], re.MULTILINE)
        estimate = (header.get("fabook") or {}).get("minutes") or {}
        minutes = {preset: estimate.get(preset) for preset in claims.PRESETS}
        found.append(Notebook(name, path, heading[1] if heading else name, minutes))
    return found


def listing(root: Path, out: Path) -> list[dict[str, Any]]:
    """What `fabook list --json` prints; measured minutes where there are results."""
    registry = claims.load(root).values()
    rows = []
    for notebook in notebooks(root):
        minutes = dict(notebook.minutes)
        for preset in claims.PRESETS:
            results = claims.read_results(root, out, preset, notebook.name) or {}
            minutes[preset] = results.get("minutes", minutes[preset])
        ids = [claim.id for claim in registry if claim.notebook == notebook.name]
        rows.append(
            {
                "name": notebook.name,
                "paper": notebook.paper,
                "title": notebook.title,
                "claims": ids,
                "minutes": minutes,
            }
        )
    return rows


def select(root: Path, names: Sequence[str]) -> list[Notebook]:
    """The notebooks of these names; a paper's name stands for all of its notebooks, none for all.

    A name may be shortened to its last part or to any beginning that only one notebook has; a
    path to a Markdown or ipynb file stands for that file.

    Raises:
        UsageError: for a name that is unknown, or short for several, with the closest ones.
    """
    known = notebooks(root)
    found = list(known) if not names else []
    for name in names:
        found += _named(root, name, known)
    own = [book for book in found if book not in known]
    return [book for book in known if book in found] + own


def _named(root: Path, name: str, known: Sequence[Notebook]) -> list[Notebook]:
    path = Path(name).expanduser()
    if path.suffix in (".md", ".ipynb"):
        if not path.is_file():
            raise UsageError(f"there is no notebook {name!r} in {Path.cwd()}")
        path = path.resolve()
        inside = [book for book in known if book.path.resolve() == path]
        label = f"{path.parent.name}/{path.stem}"
        return inside or [Notebook(label, path, label, dict.fromkeys(claims.PRESETS))]
    for fits in (
        lambda book: name in (book.name, book.paper),
        lambda book: name == book.name.split("/")[1],
        lambda book: book.name.startswith(name) or book.name.split("/")[1].startswith(name),
    ):
        found = [book for book in known if fits(book)]
        if len(found) > 1 and any(book.paper != name for book in found):
            several = ", ".join(book.name for book in found)
            raise UsageError(f"{name!r} is short for several notebooks: {several}")
        if found:
            return found
    allowed = [*dict.fromkeys(b.paper for b in known), *(b.name for b in known)]
    raise UsageError(f"unknown notebook {name!r}{claims.suggest(name, allowed)}")


# --- planning ------------------------------------------------------------------------------------


def _used(job: Job) -> dict[str, Any]:
    """All parameters of a job, with the device that it runs on; the table's only where set."""
    defaults = {
        name: known.default
        for name, known in parameters.of(job.source).items()
        if known.default is not None or not known.presets
    }
    device = claims.resolve_device(job.device)
    return defaults | {"preset": job.preset, "device": device} | job.custom


def plan(
    root: Path,
    names: Sequence[str] = (),
    *,
    preset: str = "quick",
    device: str = "auto",
    out: Path = Path("_build"),
    values: Mapping[str, Any] | None = None,
    force: bool = False,
    local: bool = True,
) -> list[Job]:
    """Check a request and return its jobs; nothing is written and no kernel starts.

    Args:
        values: parameters by name (text is converted to the type of the notebook's default).
        local: the notebooks run on this machine, so the device must exist here.

    Raises:
        UsageError: for anything unknown or ill-typed, naming what is allowed.
    """
    if preset not in claims.PRESETS:
        raise UsageError(f"unknown preset {preset!r}{claims.suggest(preset, claims.PRESETS)}")
    if local or device not in claims.DEVICES:
        try:
            device = claims.resolve_device(device)
        except ValueError as error:
            raise UsageError(str(error)) from error
    claims.load(root)  # an error there is the user's to know before anything starts
    jobs = []
    for notebook in select(root, names):
        custom = checked(notebook, values or {}, preset)
        jobs.append(job(root, notebook, custom, preset=preset, device=device, out=out, force=force))
    return jobs


def checked(notebook: Notebook, values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Those of the values that differ from what the preset would take, in their right types.

    Raises:
        UsageError: for an unknown parameter, or a value of another type.
    """
    known, custom = parameters.of(notebook.path), {}
    for name, value in values.items():
        if name in COMMON:
            raise UsageError(f"give {name!r} as --{name}, not as a parameter")
        if name not in known:
            hint = claims.suggest(name, [n for n in known if n not in COMMON])
            raise UsageError(f"{notebook.name} has no parameter {name!r}{hint}")
        converted = parameters.convert(value, name, known[name])
        if converted != known[name].value(preset):
            custom[name] = converted
    return custom


def job(
    root: Path,
    notebook: Notebook,
    custom: dict[str, Any],
    *,
    preset: str,
    device: str,
    out: Path,
    force: bool = False,
) -> Job:
    """The job of a notebook; one from elsewhere keeps its outputs apart in `own`."""
    inside = notebook.path.is_relative_to(root / "notebooks")
    place = out.resolve() if inside else out.resolve() / "own"
    path = "" if inside and notebook.path.suffix == ".md" else str(notebook.path)
    return Job(notebook.name, str(root), str(place), preset, device, custom, force, path)


# --- cache ---------------------------------------------------------------------------------------


def _digest(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything a number may depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scipy", "fabook"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_hash(path: Path, package: Path | None = None) -> str:
    """SHA-256 over a notebook's source and the modules that its results depend on."""
    spec = importlib.util.find_spec("fabook")
    if package is None and spec and spec.origin:
        package = Path(spec.origin).parent
    contents = {}
    if package is not None:
        for module in sorted(package.rglob("*.py")):
            contents[module.relative_to(package).as_posix()] = _digest(module.read_bytes())
    contents["claims"] = _digest(Path(claims.__file__).read_bytes())
    return _digest([_digest(path.read_bytes()), contents])


def cache_key(job: Job) -> str:
    """SHA-256 over everything that the job's results depend on."""
    root = Path(job.root)
    checks = {
        claim.id: [
            (check.quantity, check.comparison, check.bounds[job.preset])
            for check in claim.checks_in(job.preset)
        ]
        for claim in claims.load(root).values()
        if claim.notebook == job.notebook
    }
    # Figures show committed data: in the quick preset the paper preset's, in both that of variants.
    published = claims.published_path(root, job.notebook)
    committed = sorted(published.parent.glob(f"{published.stem}@*.json"))
    if job.preset == "quick" and published.is_file():
        committed.append(published)
    shown = {path.name: _load(path).get("data") for path in committed} or None
    software = {k: v for k, v in versions().items() if k != "fabook"}
    machine = [platform.machine(), job.setting(THREADS[0]) or "1"]
    data = job.setting("FABOOK_DATA") if job.preset == "paper" else None
    parts = [source_hash(job.source), checks, shown, _used(job), software, machine, data]
    return _digest(parts)


def _load(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one if the file is missing, cut off or corrupted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _checksum(results: Mapping[str, Any]) -> str:
    return _digest({key: value for key, value in results.items() if key not in UNCHECKED})


def up_to_date(job: Job, key: str | None = None) -> dict[str, Any] | None:
    """The results of this very job if they and the executed notebook lie there undamaged."""
    results = _load(job.output("results", ".json"))
    same_key = results.get("key") == (key or cache_key(job))
    if not same_key or results.get("checksum") != _checksum(results):
        return None
    if not isinstance(results.get("minutes"), float) or not isinstance(results.get("date"), str):
        return None
    try:
        found = _digest(job.output("notebooks", ".ipynb").read_bytes())
    except OSError:
        return None
    return results if results.get("notebook_sha256") == found else None


# --- kernels -------------------------------------------------------------------------------------


class _Kernels:
    """The kernels of this process, so that a signal can end them."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._pids: set[int] = set()
        self._lock = threading.Lock()

    def add(self, pid: int) -> None:
        with self._lock:
            self._pids.add(pid)
        if self.stop.is_set():
            self.kill()

    def discard(self, pid: int) -> None:
        with self._lock:
            self._pids.discard(pid)

    def kill(self) -> None:
        """End every kernel; those that start later end at once. Called by signal handlers."""
        self.stop.set()
        for pid in tuple(self._pids):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if os.name == "posix" else signal.SIGTERM)


_kernels = _Kernels()


def _kernel_environment(job: Job, result_file: Path) -> dict[str, str]:
    threads = job.setting(THREADS[0]) or "1"
    data = job.setting("FABOOK_DATA")  # kernels start elsewhere: a relative path would not hold
    return (
        os.environ
        | {name: job.setting(name) or threads for name in THREADS}
        | ({"FABOOK_DATA": str(Path(data).absolute())} if data else {})
        | {
            "TQDM_DISABLE": "1",
            "PYTHONHASHSEED": "0",
            "FABOOK_ROOT": job.root,
            "FABOOK_RESULT_FILE": str(result_file),
        }
    )


def _manager(environment: Mapping[str, str], folder: Path) -> type:
    """A kernel manager for this Python, whatever kernel specifications are installed.

    Sockets in the file system replace network ports: no port can be taken twice when several
    kernels start at once, and the kernel prints no notice about them. The kernel itself ends
    within a second when its parent process is gone.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
            file = folder / "kernel.json"
            if os.name == "posix" and len(str(file)) < 90:  # sockets' names are at most 104 long
                self.transport = "ipc"
            self.connection_file = str(file)
            self.pid = 0

        async def _async_start_kernel(self, **options: Any) -> None:
            with open(folder / "stderr", "wb") as stderr:
                options |= {"env": dict(environment), "stderr": stderr}
                await super()._async_start_kernel(**options)
            self.pid = getattr(self.provisioner, "pid", None) or 0
            _kernels.add(self.pid)

        start_kernel = _async_start_kernel  # the name that nbclient calls

        async def _async_cleanup_resources(self, restart: bool = False) -> None:
            _kernels.discard(self.pid)
            await super()._async_cleanup_resources(restart=restart)

        cleanup_resources = _async_cleanup_resources

    return Manager


def _execute(job: Job, work: Path, folder: Path) -> Any:
    """Execute a notebook with papermill: the executed node, with all that varies taken out."""
    import papermill
    from jupyter_core.utils import ensure_event_loop

    logging.getLogger("papermill").addHandler(_QUIET)
    same = {name: known.default for name, known in parameters.of(job.source).items()}
    if same.get("device") == "auto":
        same["device"] = claims.resolve_device("auto")
    try:
        result = papermill.execute_notebook(
            parameters.read(job.source),
            str(work.with_suffix(".ipynb")),
            {k: v for k, v in _used(job).items() if k not in same or v != same[k]},
            kernel_name="python3",
            progress_bar=False,
            kernel_manager_class=_manager(_kernel_environment(job, work), folder),
            resources={"metadata": {"path": str(job.source.parent)}},
            record_timing=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",
        )
    finally:
        ensure_event_loop().close()  # the one that jupyter_client made for this thread
        asyncio.set_event_loop(None)
    result.metadata.pop("papermill", None)
    for index, cell in enumerate(result.cells):
        cell["id"] = f"cell-{index}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    return result


# --- jobs ----------------------------------------------------------------------------------------


def execute(job: Job) -> Outcome:
    """Execute one notebook unless its results are there already.

    A lock, which ends with its process, lets one process at a time work on an output.
    """
    import filelock

    lock = job.output(".work", ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while not _kernels.stop.is_set():
        try:
            with filelock.FileLock(lock, timeout=0.5):
                return _execute_locked(job)
        except filelock.Timeout:
            continue
    return Outcome(job, "aborted")


def _execute_locked(job: Job) -> Outcome:
    work = job.output(".work", f".{os.getpid()}-{secrets.token_hex(4)}.json")
    folder = Path(tempfile.mkdtemp(prefix=f"fabook-{os.getpid()}-"))
    started = time.monotonic()
    try:
        _remove_temporary(job.output(".work", ".lock"))
        key = cache_key(job)
        results = None if job.force else up_to_date(job, key)
        if results is not None:
            return _finished(job, "cached", results)
        executed = _execute(job, work, folder)
        if not work.is_file():
            raise RuntimeError("the notebook ended without run.save()")
        results = _load(work) | {
            "parameters": _used(job),
            "versions": versions(),
            "minutes": round((time.monotonic() - started) / 60, 4),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source_hash": source_hash(job.source),
            "key": key,
        }
        _publish(job, executed, results, work)
        return _finished(job, "done", results)
    except Exception as error:  # whatever ends one notebook must not end the others
        if _kernels.stop.is_set():
            return Outcome(job, "aborted")
        message = _explain(error, folder / "stderr") + _keep_partial(
            job, work.with_suffix(".ipynb")
        )
        return Outcome(job, "failed", (time.monotonic() - started) / 60, message)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_temporary(job.output(".work", ".lock"))


def _keep_partial(job: Job, partial: Path) -> str:
    if not partial.is_file():
        return ""
    kept = job.output("notebooks", ".failed.ipynb")
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, kept)
    return f"\n{_KEPT}{kept}"


def reason(outcome: Outcome) -> str:
    """The last line of a failed job's error."""
    lines = [line for line in outcome.message.strip().splitlines() if not line.startswith(_KEPT)]
    return lines[-1] if lines else ""


def _publish(job: Job, executed: Any, results: dict[str, Any], work: Path) -> None:
    """Move the notebook and then the results into place: a kill in between means run again."""
    import nbformat

    content = nbformat.writes(executed).encode()
    results["notebook_sha256"] = _digest(content)
    results["checksum"] = _checksum(results)
    work.with_suffix(".ipynb").write_bytes(content)
    work.write_text(_pretty(results, levels=2) + "\n", encoding="utf-8")
    for kind, suffix in (("notebooks", ".ipynb"), ("results", ".json")):
        target = job.output(kind, suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work.with_suffix(suffix), target)
    job.output("notebooks", ".failed.ipynb").unlink(missing_ok=True)


def _pretty(value: Any, *, levels: int) -> str:
    """JSON with a line for each entry of the outer levels, and one for all that is within."""
    if not levels or not isinstance(value, dict | list) or not value:
        return json.dumps(value, allow_nan=False)
    if isinstance(value, list):
        entries = [_pretty(item, levels=levels - 1) for item in value]
    else:
        entries = [f"{json.dumps(k)}: {_pretty(v, levels=levels - 1)}" for k, v in value.items()]
    ends = "[]" if isinstance(value, list) else "{}"
    return ends[0] + "\n" + ",\n".join(entries) + "\n" + ends[1]


def _finished(job: Job, status: str, results: Mapping[str, Any]) -> Outcome:
    registry = claims.load(Path(job.root))
    entries = results["claims"]
    odd = tuple(e["id"] for e in entries if e["verdict"] != registry[e["id"]].expects(job.preset))
    return Outcome(
        job,
        status,
        results["minutes"],
        lines=tuple(claims.verdict_line(entry) for entry in entries),
        unexpected=() if job.custom else tuple(claims.unexpected(registry, results)),
        differing=odd if job.custom else (),
    )


def _explain(error: Exception, stderr: Path) -> str:
    """The error as plain text: a cell's number and traceback, or a dead kernel's last words."""
    from papermill.exceptions import PapermillExecutionError

    if not isinstance(error, PapermillExecutionError):
        words = stderr.read_text(errors="replace")[-2000:] if stderr.is_file() else ""
        return _ANSI.sub("", f"{type(error).__name__}: {error}\n{words}").strip()
    lines = "\n".join(error.traceback) or f"{error.ename}: {error.evalue}"
    return f"cell In [{error.exec_count}] failed:\n{_ANSI.sub('', lines)}"


def _remove_temporary(lock: Path) -> None:
    """Remove what an earlier, killed run left beside its lock (which the caller holds)."""
    for path in lock.parent.glob(f"{lock.stem}.*"):
        if path != lock:
            path.unlink(missing_ok=True)


def _remove_remains(out: Path) -> None:
    """Remove temporary files of killed runs; what a living run has locked is left alone."""
    import filelock

    for lock in (out / ".work").rglob("*.lock"):
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(lock, timeout=0):
            _remove_temporary(lock)
    for folder in Path(tempfile.gettempdir()).glob("fabook-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


# --- running -------------------------------------------------------------------------------------


def run(
    jobs: Sequence[Job],
    *,
    n_jobs: int | None = None,
    scheduler: str | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Execute jobs, several at a time, in this process's kernels or on a Dask cluster.

    Args:
        n_jobs: kernels at a time; by default as many as there are cores or jobs.
        scheduler: address of a Dask scheduler whose workers see the same file system.
        report: called with each outcome as it comes.

    Returns:
        The outcomes in the order in which they came.

    Raises:
        UsageError: if the scheduler does not answer.
        KeyboardInterrupt: after SIGINT or SIGTERM, when all kernels have ended.
    """
    if not jobs:
        return []
    _kernels.stop.clear()
    _remove_remains(Path(jobs[0].out))
    outcomes = []
    with _signals(kill_only=scheduler is None):
        for outcome in _on_cluster(jobs, scheduler) if scheduler else _here(jobs, n_jobs):
            report(outcome)
            outcomes.append(outcome)
    if _kernels.stop.is_set():
        raise KeyboardInterrupt
    return outcomes


def _here(jobs: Sequence[Job], n_jobs: int | None) -> Iterator[Outcome]:
    """Execute in threads of this process, each of which waits for a kernel's process."""
    import joblib

    n_jobs = min(n_jobs or joblib.cpu_count(), len(jobs))
    with joblib.parallel_config("threading"):
        yield from joblib.Parallel(
            n_jobs=n_jobs, batch_size=1, pre_dispatch="all", return_as="generator_unordered"
        )(joblib.delayed(execute)(job) for job in jobs)


def _on_cluster(jobs: Sequence[Job], address: str) -> Iterator[Outcome]:
    """Execute on the workers of a Dask cluster, never here; a dead worker's jobs go to others."""
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise UsageError("--scheduler needs the package 'distributed'") from error
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address!r}: {error}") from error
    carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
    if "FABOOK_DATA" in carried:
        carried["FABOOK_DATA"] = str(Path(carried["FABOOK_DATA"]).expanduser().absolute())
    settings = {THREADS[0]: "1"} | carried
    with client:
        futures = {
            client.submit(execute, replace(job, settings=settings), pure=False): job for job in jobs
        }
        try:
            for future in as_completed(futures, loop=client.loop):
                try:
                    yield future.result()
                except Exception as error:  # such as a worker that was lost again and again
                    message = f"{type(error).__name__}: {error}"
                    yield Outcome(futures[future], "failed", message=message)
        finally:
            client.cancel(list(futures))


@contextlib.contextmanager
def _signals(*, kill_only: bool) -> Iterator[None]:
    """SIGINT and SIGTERM end the kernels; their jobs then end by themselves.

    A second signal interrupts at once, and so does the first one where the work is elsewhere.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        again = _kernels.stop.is_set()
        _kernels.kill()
        if again or not kill_only:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if all went as expected, 1 if a notebook failed, 3 if only a verdict is unexpected."""
    if any(outcome.status == "failed" for outcome in outcomes):
        return 1
    return 3 if any(outcome.unexpected for outcome in outcomes) else 0
