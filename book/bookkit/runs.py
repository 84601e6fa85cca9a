"""The runs that lie in an output folder: a list of them, and the page of one."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from bookkit import cache, claims, plain
from bookkit.files import mathjax, write
from bookkit.parameters import UsageError


def listed(out: Path) -> list[dict[str, Any]]:
    """Every run with results: its name, preset, parameters, verdicts, minutes, date and files."""
    rows = []
    for folder in (out, out / "own"):
        for path in claims.result_files(folder / "results"):
            results = cache.load(path)
            if results.get("schema") != claims.SCHEMA or "parameters" not in results:
                continue
            preset = path.relative_to(folder / "results").parts[0]
            name = path.relative_to(folder / "results" / preset).with_suffix("").as_posix()
            notebook = folder / "notebooks" / preset / f"{name}.ipynb"
            rows.append(
                {
                    "run": name,
                    "preset": preset,
                    "parameters": results["parameters"],
                    "verdicts": dict(Counter(entry["verdict"] for entry in results["claims"])),
                    "minutes": results["minutes"],
                    "date": results["date"],
                    "results": str(path),
                    "notebook": str(notebook) if notebook.is_file() else None,
                }
            )
    return rows


def failed(out: Path) -> list[Path]:
    """What was kept of runs that failed."""
    folders = (out / "notebooks", out / "own" / "notebooks")
    return [path for folder in folders for path in sorted(folder.rglob("*.failed.ipynb"))]


def find(out: Path, name: str, preset: str | None = None) -> dict[str, Any]:
    """The one run of this name, of this end of a name, or of this hash.

    Raises:
        UsageError: if there is none, or several.
    """
    rows = [row for row in listed(out) if preset in (None, row["preset"])]
    for fits in (
        lambda run: run == name,
        lambda run: run.split("/")[-1] == name,
        lambda run: "@" in run and run.split("@")[1].startswith(name),
        lambda run: run.split("/")[-1].startswith(name),
    ):
        found = [row for row in rows if fits(row["run"])]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{row['run']} ({row['preset']})" for row in found)
            raise UsageError(f"{name!r} names several runs: {several}; see also --preset")
    hint = claims.suggest(name, [row["run"] for row in rows])
    raise UsageError(f"no run {name!r} in {out}{hint}; `fabook list --runs` shows all")


def page(root: Path, row: dict[str, Any], out: Path) -> Path:
    """The run's notebook as one HTML file, with its numbers, verdicts and pictures in the prose."""
    import nbformat
    from nbconvert import HTMLExporter

    if row["notebook"] is None:
        raise FileNotFoundError(f"the executed notebook of {row['run']} is missing: run it again")
    notebook = nbformat.read(row["notebook"], as_version=4)
    kept = plain.kept(notebook.cells)
    committed = [name for name in kept if name.endswith(":paper") and row["preset"] != "paper"]
    others = {kept.pop(name)["image/png"] for name in committed}  # pictures of another run
    verdicts = {e["id"]: e["verdict"] for e in cache.load(Path(row["results"]))["claims"]}
    name = row["run"].split("@")[0]
    words = plain.Words(root, name, notebook.cells, kept, verdicts=verdicts)
    cells = []
    for solution, cell in words.parts(notebook.cells):
        made = [cell]
        if cell.cell_type == "code":  # stored values are for the prose alone
            shown = [o for o in cell.outputs if "scrapbook" not in o.get("metadata", {})]
            cell.outputs = [o for o in shown if o.get("data", {}).get("image/png") not in others]
            made += words.caption(cell)
        elif cell.cell_type == "markdown":
            with contextlib.suppress(UsageError, KeyError):  # a reader's own words stay as they are
                made = words.prose(cell.source, solution)
        cells += made
    cells.append(plain.cell("markdown", words.references.listed()))
    notebook.cells = [cell for cell in cells if cell.source.strip()]
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'<script[^>]*src="[^"]*"[^>]*></script>', "", body)
    style = "<style>.jp-MarkdownOutput {overflow: visible !important}</style>"  # no bar in the text
    body = body.replace("</head>", f"{style}{_mathjax()}</head>", 1)
    path = out / "pages" / row["preset"] / f"{row['run']}.html"
    write(path, body)
    return path


def _mathjax() -> str:
    """Formulas from the MathJax that is installed here; without it they stay as TeX."""
    folder = mathjax()
    if folder is None:
        return ""
    script = folder / "tex-chtml.js"
    settings = "window.MathJax = {tex: {inlineMath: [['$', '$'], ['\\\\(', '\\\\)']]}}"
    return f'<script>{settings}</script><script defer src="{script.as_uri()}"></script>'
