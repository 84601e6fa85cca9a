"""The `fabook` command. Every subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bookkit import arguments as options
from bookkit import claims, report


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a request that is refused."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what machines read does not depend on the locale
            stream.reconfigure(encoding="utf-8")
    parser = options.parser()
    arguments = parser.parse_args(options.joined(sys.argv[1:] if argv is None else argv))
    if arguments.command is None:
        parser.print_help()
        return 0
    try:
        return int(globals()[f"_{arguments.action}"](arguments))
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
            f"fabook: the package {error.name!r} is missing: pip install 'fabook[book]', or "
            "'.[book]' in a clone; `fabook doctor` says what else is missing",
            file=sys.stderr,
        )
        return 2


def _places(arguments: argparse.Namespace) -> tuple[Path, Path]:
    root = claims.find_root()
    home = Path.cwd() if root == claims.PACKAGED else root  # nothing is written into a package
    return root, (arguments.out or home / "_build").resolve()


def _list(arguments: argparse.Namespace) -> int:
    from bookkit import notebooks, parameters, runs

    root, out = _places(arguments)
    if arguments.runs:
        found = runs.listed(out)
        if arguments.json:
            return report.as_json(found)
        report.runs(found)
        for path in runs.failed(out):
            print(f"failed: {path}")
        return 0
    if arguments.name:
        rows = parameters.listing(parameters.of(notebooks.one(root, arguments.name).path))
        if arguments.json:
            return report.as_json(rows)
        heads = ["parameter", "type", *claims.PRESETS, ""]
        report.table([heads, *([*map(str, row.values())] for row in rows)])
        return 0
    _note_skipped(root)
    rows = notebooks.listing(root, out)
    if arguments.json:
        return report.as_json(rows)

    def minutes(row: dict[str, Any]) -> list[str]:
        return ["?" if (m := row["minutes"][p]) is None else f"{m:.1f}" for p in claims.PRESETS]

    heads = ["notebook", *(f"{preset} min" for preset in claims.PRESETS), "claims", "title"]
    report.table(
        [heads] + [[r["name"], *minutes(r), str(len(r["claims"])), r["title"]] for r in rows]
    )
    return 0


def _note_skipped(root: Path) -> None:
    from bookkit import notebooks

    for line in notebooks.skipped(root):
        print(f"fabook: {line}", file=sys.stderr)


def _values(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    from bookkit import parameters

    return parameters.given(
        arguments.parameter,
        arguments.parameters_raw,
        arguments.parameters_yaml,
        arguments.parameters_file,
    )


def _scheduler(arguments: argparse.Namespace) -> str | None:
    if arguments.scheduler in (None, "local"):
        return None
    if not arguments.scheduler.strip():
        raise ValueError("--scheduler is local or an address, got an empty text")
    if arguments.jobs is not None:
        raise ValueError(
            "--jobs is for runs on this machine; a cluster's workers take one a thread"
        )
    return str(arguments.scheduler)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = {key: getattr(arguments, key) for key in ("preset", "device", "force")}
    return options | {"local": _scheduler(arguments) is None}


def _run(arguments: argparse.Namespace) -> int:
    from bookkit import execute, notebooks, parameters

    values = parameters.once(_values(arguments))
    root, out = _places(arguments)
    if not arguments.names:
        _note_skipped(root)
    jobs = notebooks.plan(root, arguments.names, out=out, values=values, **_options(arguments))
    with report.Progress(len(jobs)) as progress:
        scheduler = _scheduler(arguments)
        outcomes = execute.run(jobs, n_jobs=arguments.jobs, scheduler=scheduler, report=progress)
    report.problems(outcomes)
    return execute.exit_code(outcomes)


def _sweep(arguments: argparse.Namespace) -> int:
    from bookkit import execute, sweep

    root, out = _places(arguments)
    grid = sweep.plan(root, arguments.name, _values(arguments), out=out, **_options(arguments))
    if arguments.plot is not None and not grid.axes:
        raise ValueError("--plot draws over a swept parameter, and none was given with -p")
    if arguments.plot:
        from bookkit import picture

        names = picture.claimed(root, grid.jobs[0].notebook)
        if names:  # a notebook that no registry knows may claim anything
            picture.chosen(names, arguments.plot)
    with report.Progress(len(grid.jobs), brief=True) as progress:
        options = {"n_jobs": arguments.jobs, "scheduler": _scheduler(arguments)}
        outcomes, rows = sweep.run(grid, report=progress, **options)
    report.problems(outcomes)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    print(f"{len(outcomes)} runs, {failed} failed\n{grid.stem}.csv\n{grid.stem}.parquet")
    if arguments.plot is not None and any(row["quantity"] for row in rows):
        from bookkit import picture

        print(picture.plot(grid, rows, arguments.plot))
    return execute.exit_code(outcomes)


def _show(arguments: argparse.Namespace) -> int:
    from bookkit import cache, runs

    root, out = _places(arguments)
    row = runs.find(out, arguments.run, arguments.preset)
    print(f"{row['run']} ({row['preset']}), {row['date']}, {row['minutes']:.2f} min")
    for name, value in row["parameters"].items():
        print(f"    {name} = {value!r}")
    for entry in cache.load(Path(row["results"]))["claims"]:
        print(claims.verdict_line(entry))
    page = runs.page(root, row, out)
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
    if arguments.since is not None:
        from bookkit import changes

        changed = changes.since(root, arguments.since)
        if arguments.json:
            return report.as_json(changed)
        print(changes.markdown(changed))
        return 0
    rows = claims.scorecard(root, out, presets)
    if arguments.json:
        return report.as_json(rows)

    def texts(row: dict[str, Any]) -> list[str]:
        verdict = row["verdict"] + (f": {row['reason']}" if row["reason"] else "")
        shown = [row["preset"], verdict, *(row[k] for k in ("measured", "comparison", "bound"))]
        return ["" if value is None else str(value) for value in [*shown, row["id"]]]

    report.table([["preset", "verdict", "first check", "", "bound", "id"], *map(texts, rows)])
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


def _export(arguments: argparse.Namespace) -> int:
    from bookkit import export

    root, out = _places(arguments)
    options = {"solutions": not arguments.no_solutions, "publish": arguments.publish}
    written = export.export(root, out, arguments.to, arguments.names, **options)
    print(*written, sep="\n")
    without = [path for path, numbers in written.items() if not numbers]
    if without:
        names = " ".join(
            path.relative_to(arguments.to).with_suffix("").as_posix() for path in without
        )
        print(
            f"fabook: numbers in the text and figures come from executed notebooks in {out}, which "
            f"has none of: {names}\nfabook: run, and export again: fabook run {names}",
            file=sys.stderr,
        )
    return 0


def _lab(arguments: argparse.Namespace) -> int:
    from bookkit import lab

    root, out = _places(arguments)
    browser = not arguments.no_browser
    words = lab.command(root, out, arguments.name, port=arguments.port, browser=browser)
    return lab.run(words)


def _pdf(arguments: argparse.Namespace) -> int:
    from bookkit import build, pdf

    root, out = _places(arguments)
    target = (arguments.to or out / "fabook.pdf").resolve()
    try:
        pages = pdf.make(root, out / "html", target)
    except build.BookError as error:
        print(f"fabook: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {pages} pages")
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
        return report.as_json(rows)
    if action == "list":

        def state(row: dict[str, Any]) -> str:
            return "here" if row["present"] else "damaged" if row["source"] != "download" else ""

        shown = [
            [r["name"], state(r) or "not here", r["source"], f"{r['bytes'] / 1e6:.1f} MB"]
            for r in rows
        ]
        report.table([["set", "state", "from", "size"], *shown])
    elif rows:
        report.table([[row["sha256"], row["path"]] for row in rows])
    return 0


def _grade(arguments: argparse.Namespace) -> int:
    from bookkit import grading

    root = claims.find_root()
    folder = arguments.folder.resolve()
    if not folder.is_dir():
        raise ValueError(f"{arguments.folder} is no folder")
    python = arguments.python or root / ".venv-homework" / "bin" / "python"
    if not python.is_file():
        raise ValueError(f"{python} is missing: run `make homework`, or pass --python")
    plan = grading.Plan(
        folder=folder,
        out=(arguments.out or folder / "graded").resolve(),
        homework=grading.locate(folder, root / "_build" / "homework", arguments.homework),
        python=python.absolute(),
        course=arguments.course,
        jobs=arguments.jobs or os.cpu_count() or 1,
        limit=arguments.limit,
        memory=arguments.memory,
    )
    total, done = len(grading.submissions(folder)), 0

    def report(name: str, row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        points = sum(grading.score(row, q) for q in row.get("questions", {}))
        tail = row.get("error") or ("up to date" if row.get("cached") else f"{row['seconds']} s")
        print(f"[{done}/{total}] {name}: {points:g} points, {tail}", flush=True)

    rows = grading.grade(plan, report)
    for name in grading.left_out(folder, plan.out):
        print(f"fabook: not graded, no .ipynb and no .zip: {name}", file=sys.stderr)
    again = [str(row["submission"]) for row in rows if not row.get("final", True)]
    for name in again:
        print(f"fabook: failed here, the next run tries again: {name}", file=sys.stderr)
    print(plan.out / "grades.csv")
    return 1 if again else 0


def _new(arguments: argparse.Namespace) -> int:
    from bookkit import new

    root = claims.find_root()
    for path in new.create(root, arguments.name):
        print(path.relative_to(root))
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
        report.as_json({"ok": not broken, "checks": checks})
    else:
        report.table([["ok" if c["ok"] else "--", c["check"], c["detail"]] for c in checks])
        for check in broken:
            print(f"fabook: needed and not right: {check['check']}", file=sys.stderr)
    return 1 if broken else 0
