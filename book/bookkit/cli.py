"""The `fabook` command. Every subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bookkit import claims

EXIT_CODES = "exit codes: 0 as expected, 1 a notebook failed, 2 refused, 3 unexpected verdict"
PURPOSES = {
    "book": "run notebooks, draw figures, build the site",
    "test": "run the tests",
    "cluster": "send runs to a Dask cluster",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class _Parser(argparse.ArgumentParser):
    """A parser whose subcommands keep their examples' lines."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fabook",
        description="Feedback-alignment theory, recomputed: run the notebooks, judge the claims.",
        epilog="examples:\n  fabook list\n  fabook run\n  fabook claims --preset paper\n"
        "  fabook build\n\nfabook COMMAND --help shows the options of a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, action: Callable[[argparse.Namespace], int], text: str, *examples: str
    ) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(f"  fabook {line}" for line in examples)
        made = commands.add_parser(name, help=text, description=text, epilog=epilog)
        made.set_defaults(action=action)
        return made

    def common(made: argparse.ArgumentParser, *names: str) -> None:
        if "json" in names:
            made.add_argument("--json", action="store_true", help="print JSON")
        if "out" in names:
            made.add_argument("--out", type=Path, metavar="DIR", help="outputs (default: _build)")

    common(
        add("list", _list, "List the notebooks.", "list", "list --json"),
        *("json", "out"),
    )
    run = add(
        *("run", _run, "Execute notebooks that are not up to date."),
        *("run", "run refinetti2021 --preset paper --jobs 2"),
        *("run refinetti2021/online_dynamics -p seed=3", "run --scheduler tcp://10.0.0.1:8786"),
    )
    run.epilog = f"{run.epilog}\n\n{EXIT_CODES}"
    run.add_argument("names", nargs="*", metavar="NAME", help="a notebook or a paper; default: all")
    run.add_argument("--preset", default="quick", metavar="quick|paper", help="sizes (quick)")
    run.add_argument(
        *("-p", "--parameter"),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the notebooks named; stored apart from the preset's results",
    )
    run.add_argument("--jobs", type=_positive, metavar="N", help="kernels at a time (cores)")
    run.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    run.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler to send the work to")
    run.add_argument("--force", action="store_true", help="execute even what is up to date")
    common(run, "out")
    shown = add(
        *("claims", _claims, "Show every claim with its verdict."),
        *("claims", "claims --preset paper", "claims --json"),
    )
    shown.add_argument("--preset", metavar="quick|paper", help="one preset (default: both)")
    common(shown, "json", "out")
    build = add("build", _build, "Build the site from executed notebooks.", "build")
    build.add_argument("--preset", default="quick", metavar="quick|paper", help="pages of (quick)")
    build.add_argument("--lenient", action="store_true", help="let warnings pass")
    common(build, "out")
    data = add(
        *("data", _data, "Image data: what is here, fetch a set, prepare a classroom's folder."),
        *("data list", "data fetch mnist", "data prepare classroom"),
    )
    data.add_argument("action_name", choices=("list", "fetch", "prepare"), metavar="ACTION")
    data.add_argument("target", nargs="?", metavar="NAME|DIR", help="a set's name, or a folder")
    common(data, "json")
    common(
        add("doctor", _doctor, "Check that everything needed is here.", "doctor"), *("json", "out")
    )
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a request that is refused."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.action(arguments))
    except KeyboardInterrupt:
        print("fabook: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, claims.RootError) as error:  # UsageError and ClaimsError are ValueErrors
        print(f"fabook: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fabook: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"fabook: the package {error.name!r} is missing; `fabook doctor` says what for",
            file=sys.stderr,
        )
        return 2


def _places(arguments: argparse.Namespace) -> tuple[Path, Path]:
    root = claims.find_root()
    return root, (arguments.out or root / "_build").resolve()


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    return 0


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip())


def _list(arguments: argparse.Namespace) -> int:
    from bookkit import runner

    rows = runner.listing(*_places(arguments))
    if arguments.json:
        return _print_json(rows)

    def minutes(row: dict[str, Any]) -> list[str]:
        return ["?" if (m := row["minutes"][p]) is None else f"{m:.1f}" for p in claims.PRESETS]

    heads = ["notebook", *(f"{preset} min" for preset in claims.PRESETS), "claims", "title"]
    _table([heads] + [[r["name"], *minutes(r), str(len(r["claims"])), r["title"]] for r in rows])
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from bookkit import runner

    values = {}
    for text in arguments.parameter:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise runner.UsageError(f"a parameter is given as -p key=value, got {text!r}")
        values[name] = value
    root, out = _places(arguments)
    jobs = runner.plan(
        root,
        arguments.names,
        preset=arguments.preset,
        device=arguments.device,
        out=out,
        values=values,
        force=arguments.force,
        local=arguments.scheduler is None,
    )
    with _Progress(len(jobs)) as progress:
        outcomes = runner.run(
            jobs, n_jobs=arguments.jobs, scheduler=arguments.scheduler, report=progress
        )
    for outcome in outcomes:
        if outcome.status == "failed":
            print(f"\nfabook: {outcome.job.stem}: {outcome.message}", file=sys.stderr)
        for line in outcome.unexpected:
            print(f"fabook: unexpected verdict: {line}", file=sys.stderr)
    return runner.exit_code(outcomes)


class _Progress:
    """A line for each notebook that is ready, above a progress bar where stderr is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.ready, self.bar = total, 0, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="notebook")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *details: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, outcome: Any) -> None:
        self.ready += 1
        words = {"done": f"{outcome.minutes:.2f} min", "cached": "up to date"}
        lines = [
            f"[{self.ready}/{self.total}] {outcome.job.stem} ({outcome.job.preset}): "
            f"{words.get(outcome.status, outcome.status)}",
            *(f"    {line}" for line in outcome.lines),
        ]
        if self.bar is None:
            print("\n".join(lines), flush=True)
        else:
            self.bar.write("\n".join(lines))
            self.bar.update()


def _claims(arguments: argparse.Namespace) -> int:
    presets: Sequence[str] = claims.PRESETS
    if arguments.preset is not None:
        if arguments.preset not in presets:
            hint = claims.suggest(arguments.preset, presets)
            raise ValueError(f"unknown preset {arguments.preset!r}{hint}")
        presets = (arguments.preset,)
    rows = claims.scorecard(*_places(arguments), presets)
    if arguments.json:
        return _print_json(rows)
    keys = ("preset", "verdict", "measured", "bound", "id")
    shown = [["" if row[key] is None else str(row[key]) for key in keys] for row in rows]
    _table([list(keys), *shown])
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from bookkit import build

    root, out = _places(arguments)
    try:
        html = build.build(root, out, preset=arguments.preset, strict=not arguments.lenient)
    except build.BookError as error:
        print(f"fabook: {error}", file=sys.stderr)
        return 1
    print(html / "index.html")
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from fabook import data

    action, target = arguments.action_name, arguments.target
    if (target is None) != (action == "list"):
        needs = {"list": "no name", "fetch": "the name of a set", "prepare": "a folder"}
        raise ValueError(f"fabook data {action} takes {needs[action]}")
    try:
        if action == "list":
            rows: Any = data.available()
        else:
            paths = data.fetch(target).values() if action == "fetch" else data.prepare(target)
            rows = [{"path": str(path), "sha256": data.sha256(path)} for path in paths]
    except data.DataError as error:
        print(f"fabook: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        return _print_json(rows)
    if action == "list":
        shown = [
            [r["name"], "here" if r["present"] else "not here", r["source"], _size(r["bytes"])]
            for r in rows
        ]
        _table([["set", "state", "from", "size"], *shown])
    elif rows:
        _table([[row["sha256"], row["path"]] for row in rows])
    return 0


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _doctor(arguments: argparse.Namespace) -> int:
    checks = [*_doctor_software(), *_doctor_machine(arguments)]
    broken = [check for check in checks if check["needed"] and not check["ok"]]
    if arguments.json:
        _print_json({"ok": not broken, "checks": checks})
    else:
        marks = {True: "ok", False: "--"}
        _table([[marks[c["ok"]], c["check"], c["detail"]] for c in checks])
        for check in broken:
            print(f"fabook: needed and not right: {check['check']}", file=sys.stderr)
    return 1 if broken else 0


def _check(check: str, ok: bool, detail: str, *, needed: bool = False) -> dict[str, Any]:
    return {"check": check, "ok": ok, "detail": detail, "needed": needed}


def _doctor_software() -> list[dict[str, Any]]:
    python = platform.python_version()
    checks = [_check("python", sys.version_info >= (3, 10), f"{python} at {sys.executable}")]
    checks[0]["needed"] = True
    for package in ("torch", "numpy", "scipy"):
        found = _installed(package)
        detail = metadata.version(package) if found else "missing: nothing runs without it"
        checks.append(_check(package, found, detail, needed=True))
    for extra, purpose in PURPOSES.items():
        missing = [package for package in _packages(extra) if not _installed(package)]
        detail = f"missing {', '.join(missing)}; to {purpose}: pip install 'fabook[{extra}]'"
        needed = extra == "book"
        checks.append(
            _check(f"extra {extra}", not missing, detail if missing else purpose, needed=needed)
        )
    return checks


def _packages(extra: str) -> list[str]:
    """The packages of an extra, from fabook's own metadata."""
    lines = metadata.requires("fabook") if _installed("fabook") else []
    pattern = re.compile(rf"([\w.-]+)[^;]*; extra == ['\"]{extra}['\"]")
    return [match[1] for line in lines or [] if (match := pattern.match(line))]


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _doctor_machine(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    checks = []
    try:
        cuda = claims.cuda_available()
        checks.append(_check("cuda", cuda, "available" if cuda else "none: device cpu is used"))
    except ImportError as error:
        checks.append(_check("cuda", False, str(error)))
    try:
        root, out = _places(arguments)
        claims.load(root)
        checks.append(_check("repository", True, str(root), needed=True))
    except ValueError as error:
        checks.append(_check("claims.toml", False, str(error), needed=True))
        out = Path.cwd()
    except claims.RootError as error:
        checks.append(_check("repository", False, str(error), needed=True))
        out = Path.cwd()
    folder = os.environ.get("FABOOK_DATA")
    known = folder is not None and Path(folder).is_dir()
    detail = "not set: image data is downloaded" if not folder else f"{folder}"
    if folder and not known:
        detail += " is no folder"
    checks.append(_check("FABOOK_DATA", known, detail, needed=bool(folder)))
    space = next(place for place in (out, *out.parents) if place.is_dir())
    free = shutil.disk_usage(space).free / 1e9
    checks.append(_check("disk", free > 1, f"{free:.1f} GB free at {space}", needed=True))
    checks.append(_doctor_kernel())
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    checks.append(_check("chromium", browser is not None, browser or "none: no site tests"))
    return checks


def _doctor_kernel() -> dict[str, Any]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        command = KernelSpecManager(kernel_dirs=[]).get_kernel_spec("python3").argv
    except Exception as error:  # anything wrong here means that no notebook can run
        return _check("kernel", False, f"{type(error).__name__}: {error}", needed=True)
    return _check("kernel", command[0] == sys.executable, " ".join(command[:3]), needed=True)


if __name__ == "__main__":
    sys.exit(main())
