"""The `fabook` command. Every subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bookkit import claims

EXIT_CODES = "exit codes: 0 as expected, 1 a notebook failed, 2 refused, 3 unexpected verdict"
EXAMPLES = "examples:\n  fabook list\n  fabook run\n  fabook claims --preset paper\n  fabook build"
PAIRED = dict.fromkeys(("-p", "--parameter", "--parameters"), "--parameter")
PAIRED |= dict.fromkeys(("-r", "--parameters_raw"), "--parameters_raw")


class _Parser(argparse.ArgumentParser):
    """A parser whose subcommands keep their examples' lines."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fabook",
        description="Theory papers, recomputed: run the notebooks, judge the claims.",
        epilog=f"{EXAMPLES}\n\nfabook COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"fabook {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str,
        action: Callable[[argparse.Namespace], int],
        text: str,
        *examples: str,
        options: str = "",
        to: Any = commands,
    ) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(f"  fabook {line}" for line in examples)
        made: argparse.ArgumentParser = to.add_parser(
            name, help=text, description=text, epilog=epilog
        )
        made.set_defaults(action=action)
        if "json" in options:
            made.add_argument("--json", action="store_true", help="print JSON")
        if "out" in options:
            made.add_argument("--out", type=Path, metavar="DIR", help="outputs (default: _build)")
        return made

    examples = ["list", "list online_dynamics", "list --runs --json"]
    text = "List notebooks, parameters of one, or runs."
    made = add("list", _list, text, *examples, options="json out")
    made.add_argument("name", nargs="?", metavar="NAME", help="show this notebook's parameters")
    made.add_argument("--runs", action="store_true", help="list all runs instead")
    examples = [
        *("run", "run refinetti2021 --preset paper --jobs 2", "run online_dynamics -p seed=3"),
        *("run week1/hw.md -f params.yaml", "run --scheduler tcp://10.0.0.1:8786"),
    ]
    run = add("run", _run, "Execute notebooks that are not up to date.", *examples, options="out")
    run.epilog = f"{run.epilog}\n\n{EXIT_CODES}"
    text = "a notebook, the beginning of its name, a paper, or a file; default: all"
    run.add_argument("names", nargs="*", metavar="NAME", help=text)
    examples = [
        "sweep online_dynamics -p seed=0..31 -p n_inputs=[100],[500] --plot",
        "sweep minimum_norm -p h=25,50,100 -p seed=0..9 --scheduler tcp://10.0.0.1:8786",
    ]
    text = "Run one notebook over a grid of parameters, into one table."
    sweep = add("sweep", _sweep, text, *examples, options="out")
    sweep.add_argument("name", metavar="NAME", help="a notebook, or a file")
    sweep.add_argument(
        *("--plot",), nargs="?", const="", metavar="QUANTITY", help="draw a quantity over the grid"
    )
    for made in (run, sweep):
        _running(made)
    show = add(
        "show", _show, "Show a run: verdicts, files, its page.", "show b105c577", options="out"
    )
    show.add_argument("run", metavar="RUN", help="its name, the end of it, or its hash")
    show.add_argument("--preset", metavar="quick|paper", help="of this preset")
    show.add_argument("--no-open", action="store_true", help="make the page, open no browser")
    examples = ["claims", "claims --preset paper", "claims --json"]
    shown = add("claims", _claims, "Show every claim's verdict.", *examples, options="json out")
    shown.add_argument("--preset", metavar="quick|paper", help="one preset (default: both)")
    build = add("build", _build, "Build the site from executed notebooks.", "build", options="out")
    build.add_argument("--preset", default="quick", metavar="quick|paper", help="pages of (quick)")
    build.add_argument("--lenient", action="store_true", help="let warnings pass")
    _data_parsers(add)
    add("doctor", _doctor, "Check that everything needed is here.", "doctor", options="json out")
    return parser


def _running(made: argparse.ArgumentParser) -> None:
    """The options of what executes notebooks."""

    def many(*names: str, metavar: str, text: str, kind: Any = str) -> None:
        made.add_argument(
            *names, action="append", default=[], metavar=metavar, help=text, type=kind
        )

    made.add_argument("--preset", default="quick", metavar="quick|paper", help="sizes (quick)")
    text = "a parameter, also as -p KEY VALUE; stored apart from the preset's results"
    many("-p", "--parameter", "--parameters", metavar="KEY=VALUE", text=text)
    many("-r", "--parameters_raw", metavar="KEY=TEXT", text="a parameter that is text as it is")
    many("-y", "--parameters_yaml", metavar="YAML", text="parameters as YAML")
    text = "a YAML file of parameters; -p and -r come before it"
    many("-f", "--parameters_file", metavar="FILE", text=text, kind=Path)
    made.add_argument("--jobs", type=_positive, metavar="N", help="kernels at a time (cores)")
    made.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    text = "local, or the address of a Dask scheduler"
    made.add_argument("--scheduler", metavar="local|ADDRESS", help=text)
    made.add_argument("--force", action="store_true", help="execute even what is up to date")


def _data_parsers(add: Callable[..., argparse.ArgumentParser]) -> None:
    examples = ["data list", "data fetch mnist", "data prepare classroom mnist"]
    data = add("data", _data, "Image data: what is here, fetch it, make a folder.", *examples)
    actions = data.add_subparsers(dest="action_name", metavar="ACTION", required=True)
    add("list", _data, "What is here.", "data list --json", options="json", to=actions)
    text = "Download a set where it is not here."
    fetch = add("fetch", _data, text, "data fetch mnist", options="json", to=actions)
    fetch.add_argument("target", metavar="NAME", help="a set")
    text = "Put sets into a folder that FABOOK_DATA can name, for a room without network."
    examples = ["data prepare classroom", "data prepare classroom mnist digits"]
    prepare = add("prepare", _data, text, *examples, options="json", to=actions)
    prepare.add_argument("target", metavar="DIR", help="the folder")
    prepare.add_argument("sets", nargs="*", metavar="NAME", help="sets (default: all)")


def _version() -> str:
    try:
        return metadata.version("fabook")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def _joined(argv: Sequence[str]) -> list[str]:
    """Papermill's `-p name value` as `-p name=value`."""
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*words, word, *rest]
        if word in PAIRED and rest:
            text = rest.pop(0)
            if "=" not in text and rest:
                text = f"{text}={rest.pop(0)}"
            words.append(f"{PAIRED[word]}={text}")
            continue
        words.append(word)
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a request that is refused."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what machines read does not depend on the locale
            stream.reconfigure(encoding="utf-8")
    parser = _parser()
    arguments = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    if arguments.command is None:
        parser.print_help()
        return 0
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
    home = Path.cwd() if root == claims.PACKAGED else root  # nothing is written into a package
    return root, (arguments.out or home / "_build").resolve()


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    return 0


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip())


def _list(arguments: argparse.Namespace) -> int:
    from bookkit import parameters, runner, runs

    root, out = _places(arguments)
    if arguments.runs:
        return _list_runs(runs.listed(out), arguments.json)
    if arguments.name:
        (notebook,) = runner.select(root, [arguments.name])[:1]
        rows = parameters.listing(parameters.of(notebook.path))
        if arguments.json:
            return _print_json(rows)
        heads = ["parameter", "type", *claims.PRESETS, ""]
        _table([heads, *([*map(str, row.values())] for row in rows)])
        return 0
    rows = runner.listing(root, out)
    if arguments.json:
        return _print_json(rows)

    def minutes(row: dict[str, Any]) -> list[str]:
        return ["?" if (m := row["minutes"][p]) is None else f"{m:.1f}" for p in claims.PRESETS]

    heads = ["notebook", *(f"{preset} min" for preset in claims.PRESETS), "claims", "title"]
    _table([heads] + [[r["name"], *minutes(r), str(len(r["claims"])), r["title"]] for r in rows])
    return 0


def _list_runs(rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        return _print_json(rows)

    def texts(row: dict[str, Any]) -> list[str]:
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in row["verdicts"].items())
        return [row["run"], row["preset"], f"{row['minutes']:.1f}", row["date"][:16], verdicts]

    _table([["run", "preset", "min", "date", "verdicts"], *map(texts, rows)])
    return 0


def _values(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    from bookkit import parameters

    return parameters.given(
        arguments.parameter,
        arguments.parameters_raw,
        arguments.parameters_yaml,
        arguments.parameters_file,
    )


def _scheduler(arguments: argparse.Namespace) -> str | None:
    return None if arguments.scheduler == "local" else arguments.scheduler


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {key: getattr(arguments, key) for key in ("preset", "device", "force")}
    return options | {"local": _scheduler(arguments) is None}


def _run(arguments: argparse.Namespace) -> int:
    from bookkit import parameters, runner

    values = parameters.once(_values(arguments))
    root, out = _places(arguments)
    jobs = runner.plan(root, arguments.names, out=out, values=values, **_options(arguments))
    with _Progress(len(jobs)) as progress:
        scheduler = _scheduler(arguments)
        outcomes = runner.run(jobs, n_jobs=arguments.jobs, scheduler=scheduler, report=progress)
    _report(outcomes)
    return runner.exit_code(outcomes)


def _report(outcomes: Sequence[Any]) -> None:
    for outcome in outcomes:
        if outcome.status == "failed":
            values = ", ".join(f"{k}={v}" for k, v in outcome.job.custom.items())
            name = f"{outcome.job.stem} ({values})" if values else outcome.job.stem
            print(f"\nfabook: {name}: {outcome.message}", file=sys.stderr)
        for line in outcome.unexpected:
            print(f"fabook: unexpected verdict: {line}", file=sys.stderr)


def _sweep(arguments: argparse.Namespace) -> int:
    from bookkit import runner, sweep

    root, out = _places(arguments)
    grid = sweep.plan(root, arguments.name, _values(arguments), out=out, **_options(arguments))
    with _Progress(len(grid.jobs), brief=True) as progress:
        options = {"n_jobs": arguments.jobs, "scheduler": _scheduler(arguments)}
        outcomes, rows = sweep.run(grid, report=progress, **options)
    _report(outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    print(f"{len(outcomes)} runs, {failed} failed\n{grid.stem}.csv\n{grid.stem}.parquet")
    if arguments.plot is not None:
        print(sweep.plot(grid, rows, arguments.plot))
    return runner.exit_code(outcomes)


class _Progress:
    """A line for each notebook that is ready, above a progress bar where stderr is a terminal."""

    def __init__(self, total: int, *, brief: bool = False) -> None:
        self.total, self.brief, self.ready, self.bar = total, brief, 0, None
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
        job = outcome.job
        values = "".join(f", {key} = {value!r}" for key, value in job.custom.items())
        lines = [
            f"[{self.ready}/{self.total}] {job.stem} ({job.preset}{values}): "
            f"{words.get(outcome.status, outcome.status)}"
        ]
        if not self.brief:
            lines += [f"    {line}" for line in outcome.lines]
            lines += [f"    other than with the preset's values: {d}" for d in outcome.differing]
        if not self.brief and (job.custom or job.path) and outcome.status in ("done", "cached"):
            lines += [f"    {job.output('results', '.json')}"]
            lines += [f"    {job.output('notebooks', '.ipynb')}"]
        if self.bar is None:
            print("\n".join(lines), flush=True)
        else:
            self.bar.write("\n".join(lines))
            self.bar.update()


def _show(arguments: argparse.Namespace) -> int:
    from bookkit import runner, runs

    _, out = _places(arguments)
    row = runs.find(out, arguments.run, arguments.preset)
    print(f"{row['run']} ({row['preset']}), {row['date']}, {row['minutes']:.2f} min")
    for name, value in row["parameters"].items():
        print(f"    {name} = {value!r}")
    for entry in runner._load(Path(row["results"]))["claims"]:
        print(claims.verdict_line(entry))
    page = runs.page(row, out)
    print(*filter(None, (row["results"], row["notebook"], str(page))), sep="\n")
    if sys.stdout.isatty() and not arguments.no_open:
        import webbrowser

        webbrowser.open(page.as_uri())
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    presets: Sequence[str] = claims.PRESETS
    if arguments.preset is not None:
        if arguments.preset not in presets:
            hint = claims.suggest(arguments.preset, presets)
            raise ValueError(f"unknown preset {arguments.preset!r}{hint}")
        presets = (arguments.preset,)
    root, out = _places(arguments)
    rows = claims.scorecard(root, out, presets)
    if arguments.json:
        return _print_json(rows)
    known = claims.load(root)

    def texts(row: dict[str, Any]) -> list[str]:
        checks = known[row["id"]].checks_in(row["preset"])
        relation = checks[0].comparison if checks else ""
        shown = [row[k] for k in ("preset", "verdict", "measured")] + [relation]
        return ["" if value is None else str(value) for value in [*shown, row["bound"], row["id"]]]

    _table([["preset", "verdict", "measured", "", "bound", "id"], *map(texts, rows)])
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

    action = arguments.action_name
    try:
        if action == "list":
            rows: Any = data.available()
        else:
            paths = (
                data.fetch(arguments.target).values()
                if action == "fetch"
                else data.prepare(arguments.target, arguments.sets or None)
            )
            rows = [{"path": str(path), "sha256": data.sha256(path)} for path in paths]
    except data.DataError as error:
        print(f"fabook: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        return _print_json(rows)
    if action == "list":
        states = {True: "here", False: "not here"}
        shown = [
            [r["name"], states[r["present"]], r["source"], f"{r['bytes'] / 1e6:.1f} MB"]
            for r in rows
        ]
        _table([["set", "state", "from", "size"], *shown])
    elif rows:
        _table([[row["sha256"], row["path"]] for row in rows])
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from bookkit import doctor

    try:
        root, out = _places(arguments)
    except claims.RootError:
        root, out = None, Path.cwd()
    checks = doctor.checks(root, out)
    broken = [check for check in checks if check["needed"] and not check["ok"]]
    if arguments.json:
        _print_json({"ok": not broken, "checks": checks})
    else:
        _table([["ok" if c["ok"] else "--", c["check"], c["detail"]] for c in checks])
        for check in broken:
            print(f"fabook: needed and not right: {check['check']}", file=sys.stderr)
    return 1 if broken else 0
