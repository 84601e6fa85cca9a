"""The options of the `fabook` command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

EXIT_CODES = "exit codes: 0 as expected, 1 a notebook failed, 2 refused, 3 unexpected verdict"
EXAMPLES = "examples:\n  fabook list\n  fabook run\n  fabook claims --preset paper\n  fabook build"
PAIRED = dict.fromkeys(("-p", "--parameter", "--parameters"), "--parameter")
PAIRED |= dict.fromkeys(("-r", "--parameters_raw"), "--parameters_raw")


class _Parser(argparse.ArgumentParser):
    """A parser whose subcommands keep their examples' lines."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `action` names what is to be done."""
    made_parser = _Parser(
        prog="fabook",
        description="Theory papers, recomputed: run the notebooks, judge the claims.",
        epilog=f"{EXAMPLES}\n\nfabook COMMAND --help shows the options of a command.",
    )
    made_parser.add_argument("--version", action="version", version=f"fabook {_version()}")
    commands = made_parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(
        name: str,
        text: str,
        *examples: str,
        options: str = "",
        to: Any = commands,
    ) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "\n".join(f"  fabook {line}" for line in examples)
        made: argparse.ArgumentParser = to.add_parser(
            name, help=text, description=text, epilog=epilog
        )
        made.set_defaults(**({"action": name} if to is commands else {}))
        if "json" in options:
            made.add_argument("--json", action="store_true", help="print JSON")
        if "out" in options:
            made.add_argument("--out", type=Path, metavar="DIR", help="outputs (default: _build)")
        return made

    for part in (_run_parsers, _result_parsers, _site_parsers, _data_parsers, _grade_parser):
        part(add)
    add("doctor", "Check that everything needed is here.", "doctor", options="json out")
    return made_parser


def _run_parsers(add: Any) -> None:
    examples = ["list", "list a_result", "list --runs --json"]
    text = "List notebooks, parameters of one, or runs."
    made = add("list", text, *examples, options="json out")
    either = made.add_mutually_exclusive_group()
    either.add_argument("name", nargs="?", metavar="NAME", help="show this notebook's parameters")
    either.add_argument("--runs", action="store_true", help="list all runs instead")
    examples = [
        *("run", "run paper2025 --preset paper --jobs 2", "run a_result -p seed=3"),
        *("run week1/hw.md -f params.yaml", "run --scheduler tcp://10.0.0.1:8786"),
    ]
    run = add("run", "Execute notebooks that are not up to date.", *examples, options="out")
    run.epilog = f"{run.epilog}\n\n{EXIT_CODES}"
    text = "a notebook, the beginning of its name, a paper, or a file; default: all"
    run.add_argument("names", nargs="*", metavar="NAME", help=text)
    examples = [
        "sweep a_result -p seed=0..31 -p n_inputs=[100],[500] --plot",
        "sweep a_result -p h=25,50,100 -p seed=0..9 --scheduler tcp://10.0.0.1:8786",
    ]
    text = "Run one notebook over a grid of parameters, into one table."
    sweep = add("sweep", text, *examples, options="out")
    sweep.add_argument("name", metavar="NAME", help="a notebook, or a file")
    sweep.add_argument(
        *("--plot",), nargs="?", const="", metavar="QUANTITY", help="draw a quantity over the grid"
    )
    for made in (run, sweep):
        _running(made)


def _result_parsers(add: Any) -> None:
    show = add("show", "Show a run: verdicts, files, its page.", "show b105c577", options="out")
    show.add_argument("run", metavar="RUN", help="its name, the end of it, or its hash")
    show.add_argument("--preset", metavar="quick|paper", help="of this preset")
    show.add_argument("--no-open", action="store_true", help="make the page, open no browser")
    examples = ["claims", "claims --preset paper", "claims --json", "claims --since v0.1.0"]
    shown = add("claims", "Show every claim's verdict.", *examples, options="json out")
    shown.add_argument("--preset", metavar="quick|paper", help="one preset (default: both)")
    text = "verdicts of committed paper results that changed since a revision, as Markdown"
    shown.add_argument("--since", metavar="REV[..REV]", help=text)


def _site_parsers(add: Any) -> None:
    build = add("build", "Build the site from executed notebooks.", "build", options="out")
    build.add_argument("--preset", default="quick", metavar="quick|paper", help="pages of (quick)")
    build.add_argument("--lenient", action="store_true", help="let warnings pass")
    _export_parser(add)
    _lab_parser(add)
    text = "Print the built site into one PDF; needs Chromium."
    pdf = add("pdf", text, "pdf", "pdf --to book.pdf", options="out")
    pdf.add_argument("--to", type=Path, metavar="FILE", help="the PDF (OUT/fabook.pdf)")
    text = "Begin a notebook from a template: source, figure, claim, place in the contents."
    add("new", text, "new paper2025/a_result").add_argument("name", metavar="PAPER/RESULT")


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
    made.add_argument("--jobs", type=_positive, metavar="N", help="kernels here at a time (cores)")
    made.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute")
    text = "local, or the address of a Dask scheduler"
    made.add_argument("--scheduler", metavar="local|ADDRESS", help=text)
    made.add_argument("--force", action="store_true", help="execute even what is up to date")


def _lab_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    text = "Open JupyterLab on the sources, as notebooks."
    made = add("lab", text, "lab", "lab a_result --no-browser", options="out")
    made.add_argument("name", nargs="?", metavar="NAME", help="the notebook to show")
    made.add_argument("--port", type=_positive, metavar="N", help="where to serve (8888)")
    made.add_argument("--no-browser", action="store_true", help="open no browser")


def _export_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    text = "Write plain notebooks, which any Jupyter shows well and which install what they need."
    examples = ["export --to plain", "export --to week1 --no-solutions a_result paper2025"]
    made = add("export", text, *examples, options="out")
    made.add_argument("names", nargs="*", metavar="NAME", help="as of fabook run; default: all")
    made.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to write")
    text = "without the exercises' solutions"
    made.add_argument("--no-solutions", action="store_true", help=text)
    text = "with README.md and .binder, for a branch that Colab and Binder open"
    made.add_argument("--publish", action="store_true", help=text)


def _data_parsers(add: Callable[..., argparse.ArgumentParser]) -> None:
    examples = ["data list", "data fetch mnist", "data prepare classroom mnist"]
    data = add("data", "Image data: what is here, fetch it, make a folder.", *examples)
    actions = data.add_subparsers(dest="action_name", metavar="ACTION", required=True)
    add("list", "What is here.", "data list --json", options="json", to=actions)
    text = "Download a set where it is not here."
    fetch = add("fetch", text, "data fetch mnist", options="json", to=actions)
    fetch.add_argument("target", metavar="NAME", help="a set")
    text = "Put sets into a folder that FABOOK_DATA can name, for a room without network."
    examples = ["data prepare classroom", "data prepare classroom mnist digits"]
    prepare = add("prepare", text, *examples, options="json", to=actions)
    prepare.add_argument("target", metavar="DIR", help="the folder")
    prepare.add_argument("sets", nargs="*", metavar="NAME", help="sets (default: all)")


def _grade_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    examples = ["grade submissions", "grade submissions --course 2026 --jobs 4 --out grades"]
    made = add("grade", "Grade a folder of submitted homeworks.", *examples)
    made.add_argument("folder", type=Path, metavar="DIR", help="submissions, .ipynb or .zip")
    made.add_argument("--homework", metavar="NAME", help="which (what the submissions say)")
    made.add_argument("--course", type=int, default=0, metavar="SEED", help="course seed (0)")
    made.add_argument("--jobs", type=_positive, metavar="N", help="submissions at a time (cores)")
    text = "seconds for a cell, and for a test (60)"
    made.add_argument("--limit", type=_positive, default=60, metavar="SECONDS", help=text)
    text = "gigabytes of address space for a submission (8)"
    made.add_argument("--memory", type=float, default=8.0, metavar="GB", help=text)
    text = "interpreter of the homework environment (.venv-homework/bin/python)"
    made.add_argument("--python", type=Path, metavar="PATH", help=text)
    made.add_argument("--out", type=Path, metavar="DIR", help="results (DIR/graded)")


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


def joined(argv: Sequence[str]) -> list[str]:
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
