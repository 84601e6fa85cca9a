"""Executing notebooks: in kernels that see nothing personal, outputs renamed when complete.

    DIR/notebooks/<preset>/<notebook>.ipynb         the executed notebook
    DIR/notebooks/<preset>/<notebook>.failed.ipynb  what there was of it when a cell failed
    DIR/notebooks/<preset>/<notebook>.failed.json   what it had recorded and judged by then
    DIR/results/<preset>/<notebook>.json            its results, moved in place last
    DIR/.work/                                      the lock, and temporary files of a run

A run whose parameters (other than preset and device) differ from the notebook's defaults is
stored as `<notebook>@<hash of those parameters>`, so that it never replaces the preset's results.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from bookkit import cache, claims, parameters
from bookkit.files import alone, digest
from bookkit.notebooks import Job, check_data, without_image
from bookkit.parameters import UsageError
from bookkit.record import PARTIAL

SCHEDULER_TIMEOUT = 10.0  # seconds to wait for a Dask scheduler's answer
_QUIET = logging.NullHandler()  # errors are reported once, by `fabook run` itself
_CELL = re.compile(r"\S*ipykernel_\d+[/\\]\d+\.py")
_KEPT = {".ipynb": "what there is of it: ", ".json": "what it had recorded: "}
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# All that a kernel inherits: where programs, packages, caches and devices are found.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|TEMP|TMP|LD_.*|DYLD_.*|CUDA_.*|NVIDIA_.*|HIP_.*|ROCR_.*"
    r"|PYTHONPATH|PYTHONHOME|PYTHONUSERBASE|PYTHONNOUSERSITE|VIRTUAL_ENV|CONDA_.*|XDG_CACHE_HOME"
    r"|SSL_CERT_.*|REQUESTS_CA_BUNDLE|\w+_PROXY|SYSTEM\w+|WINDIR|COMSPEC|PATHEXT|\w*APPDATA"
    r"|USERPROFILE|PROGRAM\w+",
    re.IGNORECASE,
)
_OWN = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "TQDM_DISABLE": "1",
}


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


@functools.cache
def _matplotlib() -> str:
    """A configuration folder for matplotlib that holds its list of fonts and nothing else."""
    import platformdirs

    folder = platformdirs.user_cache_path("fabook") / "matplotlib"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        folder = Path(tempfile.mkdtemp(prefix="fabook-"))
    if not any(folder.glob("fontlist-*.json")):  # made now, as a kernel would print a notice
        environment = os.environ | {"MPLCONFIGDIR": str(folder), "MPLBACKEND": "agg"}
        command = [sys.executable, "-c", "import matplotlib.font_manager"]
        subprocess.run(command, env=environment, capture_output=True, check=False)
    return str(folder)


def environment(job: Job, result_file: Path, folder: Path) -> dict[str, str]:
    """All variables of a kernel: none of a person's, whoever runs it."""
    inherited = {k: v for k, v in os.environ.items() if _INHERITED.fullmatch(k)}
    told = {"FABOOK_ROOT": job.root, "FABOOK_RESULT_FILE": str(result_file)}
    places = {"IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": _matplotlib()}
    places |= {f"JUPYTER_{kind}_DIR": str(folder / "jupyter") for kind in ("CONFIG", "RUNTIME")}
    return inherited | _OWN | dict(job.settings) | told | places


def _manager(variables: Mapping[str, str], folder: Path) -> type:
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
            with open(folder / "stderr", "wb") as words:  # of libraries, and of a dying kernel
                options |= {"env": dict(variables), "stdout": words, "stderr": words}
                options["extra_arguments"] = ["--IPKernelApp.capture_fd_output=False"]
                await super()._async_start_kernel(**options)
            self.pid = getattr(self.provisioner, "pid", None) or 0
            _kernels.add(self.pid)

        start_kernel = _async_start_kernel  # the name that nbclient calls

        async def _async_cleanup_resources(self, restart: bool = False) -> None:
            _kernels.discard(self.pid)
            await super()._async_cleanup_resources(restart=restart)

        cleanup_resources = _async_cleanup_resources

    return Manager


def _papermill(job: Job, work: Path, folder: Path) -> Any:
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
            str(work.with_suffix(".ipynb")).replace("{", "{{").replace("}", "}}"),  # a format
            {k: v for k, v in cache.used(job).items() if k not in same or v != same[k]},
            kernel_name="python3",
            progress_bar=False,
            kernel_manager_class=_manager(environment(job, work, folder), folder),
            resources={"metadata": {"path": str(job.source.parent)}},
            record_timing=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",
            iopub_timeout=300,  # 4 s by default: a busy machine would lose an hour's run
        )
    finally:
        ensure_event_loop().close()  # the one that jupyter_client made for this thread
        asyncio.set_event_loop(None)
    result.metadata.pop("papermill", None)
    for index, cell in enumerate(result.cells):
        cell["id"] = f"cell-{index}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):  # the kernel's process stands in warnings
            if "text" in output:
                output["text"] = _CELL.sub(f"In [{cell.execution_count}]", output["text"])
    return result


# --- jobs ----------------------------------------------------------------------------------------


def execute(job: Job) -> Outcome:
    """Execute one notebook unless its results are there already."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fabook-", ignore_cleanup_errors=True) as name:
        (work := Path(job.out) / ".work" / "runs" / Path(name).name).mkdir(parents=True)
        ran: dict[str, Any] = {}
        try:
            return _execute(job, work / "results.json", Path(name), ran)
        except Exception as error:  # whatever ends one notebook must not end the others
            if _kernels.stop.is_set():
                return Outcome(job, "aborted")
            message = _explain(error, Path(name) / "stderr")
            message += _keep_partial(job, work / "results.json", ran | _clock(started))
            return Outcome(job, "failed", (time.monotonic() - started) / 60, message)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _execute(job: Job, work: Path, folder: Path, ran: dict[str, Any]) -> Outcome:
    """The same; what the results say of how they were made is put into `ran` before the run."""
    started = time.monotonic()
    if _kernels.stop.is_set():
        return Outcome(job, "aborted")
    check_data(job.settings)
    key = cache.cache_key(job)
    results = None if job.force else cache.up_to_date(job, key)
    if results is not None:
        return _finished(job, "cached", results)
    ran |= {  # read now: what is edited while it runs is not what ran
        "parameters": cache.used(job),
        "versions": cache.versions(),
        "source_hash": cache.source_hash(job.source, Path(job.root)),
        "sources": cache.sources(job.source, Path(job.root)),
        "key": key,
    }
    executed = _papermill(job, work, folder)
    if missing := without_image(executed.cells):
        raise RuntimeError(f"no image came of {', '.join(missing)}")
    if not work.is_file():
        raise RuntimeError("the notebook ended without run.save()")
    results = cache.load(work) | ran | _clock(started)
    _publish(job, executed, results, work)
    return _finished(job, "done", results)


def _clock(started: float) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"minutes": round((time.monotonic() - started) / 60, 4), "date": now}


def _keep_partial(job: Job, work: Path, ran: Mapping[str, Any]) -> str:
    """Put what a failed run leaves where its notebook would be, and say where."""
    words = ""
    with contextlib.suppress(OSError):  # a full disk: the run's own error is what is reported
        if recorded := cache.load(work.with_suffix(PARTIAL)) | cache.load(work):
            _write(work, {**recorded, **ran})
        for suffix, what in _KEPT.items():
            kept = job.output("notebooks", f".failed{suffix}")
            if work.with_suffix(suffix).is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.replace(work.with_suffix(suffix), kept)
                words += f"\n{what}{kept}"
    return words


def reason(outcome: Outcome) -> str:
    """The last line of a failed job's error."""
    kept = tuple(_KEPT.values())
    lines = [line for line in outcome.message.strip().splitlines() if not line.startswith(kept)]
    return lines[-1] if lines else ""


def _publish(job: Job, executed: Any, results: dict[str, Any], work: Path) -> None:
    """Move the notebook and then the results into place: a kill in between means run again."""
    import nbformat

    content = nbformat.writes(executed).encode()
    work.with_suffix(".ipynb").write_bytes(content)
    _write(work, results | {"notebook_sha256": digest(content)})
    for kind, suffix in (("notebooks", ".ipynb"), ("results", ".json")):
        target = job.output(kind, suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work.with_suffix(suffix), target)
    for suffix in _KEPT:
        job.output("notebooks", f".failed{suffix}").unlink(missing_ok=True)


def _write(work: Path, results: Mapping[str, Any]) -> None:
    checked = {**results, "checksum": cache.checksum(results)}
    work.write_text(_pretty(checked, levels=2) + "\n", encoding="utf-8")


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

    if isinstance(error, UsageError):
        return str(error)
    if not isinstance(error, PapermillExecutionError):
        words = stderr.read_text(errors="replace")[-2000:] if stderr.is_file() else ""
        return _ANSI.sub("", f"{type(error).__name__}: {error}\n{words}").strip()
    lines = "\n".join(error.traceback) or f"{error.ename}: {error.evalue}"
    return f"cell In [{error.exec_count}] failed:\n{_ANSI.sub('', lines)}"


# --- running -------------------------------------------------------------------------------------


def run(
    jobs: Sequence[Job],
    *,
    n_jobs: int | None = None,
    scheduler: str | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Execute jobs, several at a time, in this process's kernels or on a Dask cluster.

    A lock, which ends with its process, lets one run at a time work in an output folder.

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
    outcomes = []
    with contextlib.ExitStack() as stack:
        for out in sorted({job.out for job in jobs}):
            stack.enter_context(_alone(Path(out)))
        _kernels.stop.clear()
        stack.enter_context(_signals(kill_only=scheduler is None))
        for outcome in _on_cluster(jobs, scheduler) if scheduler else _here(jobs, n_jobs):
            report(outcome)
            outcomes.append(outcome)
    if _kernels.stop.is_set():
        raise KeyboardInterrupt
    return outcomes


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Wait until no other process runs notebooks in this folder; remove what a killed one left."""
    remains = out / ".work" / "runs"
    with alone(remains.with_suffix(".lock"), f"run in {out}"):
        shutil.rmtree(remains, ignore_errors=True)
        yield


def _here(jobs: Sequence[Job], n_jobs: int | None) -> Iterator[Outcome]:
    """Execute in threads of this process, each of which waits for a kernel's process."""
    import joblib

    n_jobs = min(n_jobs or joblib.cpu_count(), len(jobs) or 1)
    with futures.ThreadPoolExecutor(n_jobs) as pool:
        for done in futures.as_completed([pool.submit(execute, job) for job in jobs]):
            yield done.result()


def _on_cluster(jobs: Sequence[Job], address: str) -> Iterator[Outcome]:
    """Execute on the workers of a Dask cluster, never here; a dead worker's jobs go to others."""
    try:
        from distributed import Client, as_completed
        from distributed.comm.addressing import get_address_host
    except ImportError as error:
        raise UsageError("--scheduler needs the package 'distributed'") from error
    try:
        get_address_host(address)  # of a wrong one, a client would leave threads behind
        client = Client(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"no Dask scheduler answers at {address!r}: {error}") from error
    with client:
        sent = {client.submit(execute, job, pure=False): job for job in jobs}
        try:
            for future in as_completed(sent, loop=client.loop):
                try:
                    yield future.result()
                except Exception as error:  # such as a worker that was lost again and again
                    yield Outcome(
                        sent[future], "failed", message=f"{type(error).__name__}: {error}"
                    )
        finally:
            client.cancel(list(sent))


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
