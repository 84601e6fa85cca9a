"""Assembling and building the site.

The site has four sources: the prose of `book/`, the executed notebooks, the results files, and
the registry of claims. `assemble` puts them together as one Jupyter Book, in memory; `build`
writes that book, runs Jupyter Book with warnings as errors, checks the outcome and puts it in
place. No number is typed into a page: tables are included from `generated/`, and prose quotes a
result as ``{result}`claim-id field preset` ``, where field is a checked quantity, `measured`,
`sd`, `seeds`, `bound` or `verdict`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urlparse

from . import claims

SKIPPED = ("claims.toml", "results")  # parts of book/ that are data, not pages
MATHJAX = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)
PAPERS = {
    "primer": "Primer",
    "refinetti2021": "Refinetti et al. 2021",
    "song2021": "Song, Xu & Lafferty 2021",
    "robertson2023": "Robertson & Koyejo 2023",
    "robertson2024": "Robertson & Koyejo 2024",
    "chu2023": "Chu & Bacho 2024",
}
BADGES = {
    claims.REPRODUCED: "[✓ reproduced]{.verdict .verdict-yes}",
    claims.NOT_REPRODUCED: "[✗ not reproduced]{.verdict .verdict-no}",
    claims.NOT_RUN: "[○ not run]{.verdict .verdict-none}",
}
RELATIONS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "within": "in"}
_TITLE = re.compile(r"\s*((?:\([^\n]*\)=\n+)*# [^\n]+)(.*)", re.DOTALL)  # labels may precede it
_RESULT = re.compile(r"\{result\}`([^`]*)`")


class SiteError(RuntimeError):
    """The site cannot be built; the message says what is wrong and what to do."""


class Page(NamedTuple):
    """A notebook's page: its name, the executed notebook and what is known of its runs."""

    name: str
    executed: bytes
    runs: dict[str, dict[str, Any] | None]  # preset -> results


# --- what the book consists of -----------------------------------------------------------------


def toc_pages(root: Path) -> list[str]:
    """Every page of `book/_toc.yml` in reading order, without suffix.

    Raises:
        SiteError: if its notebooks are not exactly those of `notebooks/`.
    """
    import yaml

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, Mapping):
            yield from (str(node[key]) for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key))
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    pages = list(walk(yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))))
    listed = {page for page in pages if page.startswith("notebooks/")}
    present = {
        path.relative_to(root).with_suffix("").as_posix() for path in root.glob("notebooks/*/*.md")
    }
    problems = [f"{page}.md exists but is not in book/_toc.yml" for page in present - listed]
    problems += [f"book/_toc.yml lists {page}, which does not exist" for page in listed - present]
    problems += [f"book/_toc.yml lists {page} twice" for page in pages if pages.count(page) > 1]
    if problems:
        raise SiteError("\n".join(sorted(set(problems))))
    return pages


def _notebook_pages(root: Path, out: Path, preset: str) -> list[Page]:
    names = [p.removeprefix("notebooks/") for p in toc_pages(root) if p.startswith("notebooks/")]
    pages, missing = [], []
    for name in names:
        executed = out / "notebooks" / preset / f"{name}.ipynb"
        runs = {
            p: claims.read_results(root, out, p, name) for p in dict.fromkeys((preset, "paper"))
        }
        if preset == "quick":  # the paper's scale is shown as committed, never as lying about
            runs["paper"] = _committed(root, name)
        if executed.is_file() and runs[preset]:
            pages.append(Page(name, executed.read_bytes(), runs))
        else:
            missing.append(name)
    if missing:
        raise SiteError(
            f"no executed notebook or results in {out} for: {', '.join(missing)}\n"
            f"run: fabook run {' '.join(missing)} --preset {preset} --out {out}"
        )
    return pages


def _committed(root: Path, name: str) -> dict[str, Any] | None:
    path = claims.published_path(root, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --- tables and sentences made from results ----------------------------------------------------


def number(value: Any) -> str:
    """A number for a reader: three significant digits, a dash for nothing.

    Example:
        >>> number(0.00831), number([0.5, 2]), number(None)
        ('0.00831', '[0.5, 2]', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def list_table(header: list[str], rows: Iterable[list[str]], *, widths: str, name: str) -> str:
    """A MyST table whose cells may hold any Markdown."""
    lines = ["```{list-table}", ":header-rows: 1", f":widths: {widths}", f":class: {name}", ""]
    for row in [header, *rows]:
        for column, cell in enumerate(row):
            first, *rest = cell.split("\n")
            lines.append(f"{'* -' if column == 0 else '  -'} {first}".rstrip())
            lines += [f"    {line}".rstrip() for line in rest]
    return "\n".join([*lines, "```", ""])


def _entry(claim: claims.Claim, results: Mapping[str, Any] | None, preset: str) -> dict[str, Any]:
    found = {entry["id"]: entry for entry in (results or {}).get("claims", [])}
    return found.get(claim.id) or claims.judge(claim, preset, None)


def _outcome(claim: claims.Claim, results: Mapping[str, Any] | None, preset: str) -> str:
    """Cell of a table: the badge, then a line for each check."""
    entry = _entry(claim, results, preset)
    lines = [f"[{preset.capitalize()} preset:]{{.narrow}} {BADGES[entry['verdict']]}"]
    if entry["verdict"] != claims.NOT_RUN:
        marks = _marks(claim)
        for index, check in enumerate(entry["checks"]):
            spread = f" ± {entry['sd']:.2g}" if index == 0 and entry["sd"] is not None else ""
            relation = f"{RELATIONS[check['comparison']]} {number(check['bound'])}"
            negation = "" if check["holds"] else "not "
            mark, value = marks[check["quantity"]], number(check["value"])
            lines.append(f"{mark}{value}{spread} [{negation}{relation}]{{.bound}}")
        if entry["seeds"]:
            lines.append(f"[{entry['seeds']} seed{'s' * (entry['seeds'] != 1)}]{{.quiet}}")
    return "\\\n".join(lines)


def _marks(claim: claims.Claim) -> dict[str, str]:
    """Letters for the quantities of a claim that has several."""
    names = list(dict.fromkeys(check.quantity for check in claim.checks))
    return {n: f"({chr(97 + i)}) " if len(names) > 1 else "" for i, n in enumerate(names)}


def _statement(claim: claims.Claim, *, link: bool) -> str:
    """Cell of a table: the claim, where it comes from, what is checked, the paper's number."""
    labels = {check.quantity: check.label for check in reversed(claim.checks)}
    checked = [f"{mark}{labels[name]}" for name, mark in _marks(claim).items()]
    source = f"{'Derived here; ' if claim.source == 'derived' else ''}{claim.where.strip()}"
    parts = [f"**{claim.statement.strip()}**", f"[{source}]{{.quiet}}"]
    parts += [f"*Checked:* {checked[0]}", *checked[1:]]
    if claim.paper_value is not None:
        parts.append(f"*The paper's number:* {claim.paper_value}")
    if claim.tried and claims.NOT_REPRODUCED in claim.expected.values():
        parts.append(f"*What was tried:* {claim.tried.strip()}")
    notebook = f"[Notebook](/notebooks/{claim.notebook}.ipynb) · " if link else ""
    name = claim.id if link else claim.id.split(".")[-1]
    parts.append(f"{notebook}[`{name}`]{{.quiet}}")
    return "\\\n".join(" ".join(part.split()) for part in parts)


def claims_table(
    listed: Iterable[claims.Claim],
    runs: Mapping[str, Mapping[str, dict[str, Any] | None]],
    *,
    link: bool,
) -> str:
    """The claims, what is checked, the paper's number, and the outcome in each preset.

    Args:
        listed: the claims, in order.
        runs: notebook -> preset -> results.
        link: whether to link to the notebook.
    """
    titles = _run_titles(next(iter(runs.values())))
    header = ["Claim", *(f"{p.capitalize()} preset, {t.lower()}" for p, t in titles.items())]
    rows = [
        [
            _statement(claim, link=link),
            *(_outcome(claim, runs[claim.notebook][preset], preset) for preset in titles),
        ]
        for claim in listed
    ]
    widths = " ".join(["52", *(["24"] * len(titles))])
    return list_table(header, rows, widths=widths, name="scorecard")


def _short_scorecard(
    registry: Mapping[str, claims.Claim], runs: Mapping[str, Mapping[str, dict[str, Any] | None]]
) -> str:
    """How many claims of each paper hold, in each preset."""
    presets = list(next(iter(runs.values())))
    rows = []
    for paper, listed in _by_paper(registry.values()).items():
        row = [f"[{paper_name(paper)}](#scorecard-{paper})"]
        for preset in presets:
            verdicts = [
                _entry(claim, runs[claim.notebook][preset], preset)["verdict"] for claim in listed
            ]
            counted = {verdict: verdicts.count(verdict) for verdict in BADGES}
            row.append(
                " ".join(BADGES[v].replace(" ", f" {n} ", 1) for v, n in counted.items() if n)
            )
        rows.append(row)
    header = ["", *(f"{preset.capitalize()} preset" for preset in presets)]
    widths = " ".join(["28", *(["36"] * len(presets))])
    return list_table(header, rows, widths=widths, name="scorecard-short")


def paper_name(paper: str) -> str:
    """A paper's short name for headings."""
    return PAPERS.get(paper, paper)


def _by_paper(listed: Iterable[claims.Claim]) -> dict[str, list[claims.Claim]]:
    groups: dict[str, list[claims.Claim]] = {}
    for claim in listed:
        groups.setdefault(claim.paper, []).append(claim)
    order = [*PAPERS, *groups]
    return {paper: groups[paper] for paper in sorted(groups, key=order.index)}


def result_text(
    text: str,
    registry: Mapping[str, claims.Claim],
    runs: Mapping[str, Mapping[str, dict[str, Any] | None]],
) -> str:
    """The number that ``{result}`claim-id field preset` `` stands for.

    Raises:
        SiteError: for an unknown claim, field or preset.
    """
    parts = text.split()
    if len(parts) != 3:
        raise SiteError(f"{{result}}`{text}`: write {{result}}`claim-id field preset`")
    id, field, preset = parts
    if id not in registry:
        raise SiteError(f"{{result}}`{text}`: unknown claim {id!r}{claims.suggest(id, registry)}")
    claim, known = registry[id], next(iter(runs.values()))
    if preset not in known:
        raise SiteError(
            f"{{result}}`{text}`: unknown preset {preset!r}{claims.suggest(preset, known)}"
        )
    entry = _entry(claim, runs[claim.notebook][preset], preset)
    values: dict[str, Any] = {check.quantity: None for check in claim.checks}
    values |= {check["quantity"]: check["value"] for check in entry["checks"]}
    values |= {key: entry[key] for key in ("measured", "sd", "seeds", "bound", "verdict")}
    if field not in values:
        raise SiteError(
            f"{{result}}`{text}`: unknown field {field!r}{claims.suggest(field, values)}"
        )
    if entry["verdict"] == claims.NOT_RUN and field != "bound":
        return claims.NOT_RUN
    return number(values[field])


# --- how a page was made -----------------------------------------------------------------------


def rerun_command(results: Mapping[str, Any]) -> str:
    """The command that makes a results file again.

    Example:
        >>> rerun_command({"notebook": "primer/a", "preset": "quick", "device": "cpu",
        ...                "parameters": {"preset": "quick", "seed": 0, "device": "auto"}})
        'fabook run primer/a --preset quick --device cpu -p seed=0'
    """
    words = ["fabook", "run", results["notebook"], "--preset", results["preset"]]
    words += ["--device", str(results["device"]).split(":")[0]]
    for key, value in results["parameters"].items():
        if key not in ("preset", "device"):
            words += ["-p", f"{key}={value}"]
    return shlex.join(words)


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    shown = {k: v for k, v in results["parameters"].items() if k not in ("preset", "seed")}
    data = [
        " ".join(f"{d['name']} ({d['n']} samples) `{d['checksum']}`".split())
        for d in results["datasets"]
    ]
    return {
        "Preset": results["preset"],
        "Seed": str(results["seed"]),
        "Parameters": ", ".join(f"`{key} = {value!r}`" for key, value in shown.items()) or "–",
        "Device": str(results["device"]),
        "Time": f"{results['minutes']:.2g} min",
        "Date": str(results["date"]),
        "Versions": ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
        "Data": "\\\n".join(data) or "synthetic, drawn from the seed",
        "Source hash": f"`{results['source_hash']}`",
        "Make it again": f"`{rerun_command(results)}`",
    }


def _run_titles(runs: Mapping[str, dict[str, Any] | None]) -> dict[str, str]:
    first = next(iter(runs))
    return {preset: "This build" if preset == first else "Committed" for preset in runs}


def how_made(page: Page) -> str:
    """The folded box at the foot of a notebook's page: provenance, downloads, rerun command."""
    titles = _run_titles(page.runs)
    done = {preset: results for preset, results in page.runs.items() if results}
    facts = {preset: _facts(results) for preset, results in done.items()}
    rows = [
        [f"**{key}**", *(facts[preset][key] for preset in facts)]
        for key in next(iter(facts.values()))
    ]
    table = list_table(
        ["", *(titles[preset] for preset in facts)],
        rows,
        widths=" ".join(["16", *(["42"] * len(facts))]),
        name="how-made",
    )
    folder = "../../downloads"
    links = [f"{{download}}`the executed notebook <{folder}/{page.name}.ipynb>`"]
    links += [
        f"{{download}}`results, {preset} preset <{folder}/results/{preset}/{page.name}.json>`"
        for preset in done
    ]
    note = "" if "paper" in done else "The paper preset has no committed results yet.\n\n"
    return (
        "::::{admonition} How this page was made\n:class: dropdown how-made-box\n\n"
        f"{table}\n{note}Download {', '.join(links)}.\n::::\n"
    )


def chapter_made(pages: Iterable[Page]) -> str:
    """The same for a chapter: one row for each run that its numbers come from."""
    rows = [
        [
            f"[{page.name.split('/')[1]}](/notebooks/{page.name}.ipynb)",
            f"{preset}, {_run_titles(page.runs)[preset].lower()}",
            str(results["device"]),
            f"{results['minutes']:.2g}",
            str(results["date"])[:10],
            f"torch {results['versions'].get('torch', '–')}",
            f"`{str(results['source_hash'])[:12]}`",
        ]
        for page in pages
        for preset, results in page.runs.items()
        if results
    ]
    header = ["Notebook", "Preset", "Device", "Minutes", "Date", "Versions", "Source hash"]
    table = list_table(header, rows, widths="22 18 9 10 13 14 14", name="how-made")
    return (
        "::::{admonition} How this page was made\n:class: dropdown how-made-box\n\n"
        "Every verdict and number in the tables of this page is read from these results when "
        f"the site is built; the notebooks' pages give them in full.\n\n{table}::::\n"
    )


# --- assembling --------------------------------------------------------------------------------


def notebook_source(page: Page, table: str) -> bytes:
    """The executed notebook with its claims under the title and its provenance at the foot."""
    before, after = split_lead(_title_cell(page)["source"])
    notebook = json.loads(page.executed)
    cells = notebook["cells"][1:]
    for cell in cells:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    box = f":::{{admonition}} Claims on this page\n:class: claims-box\n\n{table}:::\n"
    new = [_markdown(before), *([_markdown(box)] if table else []), _markdown(after)]
    opening = [cell for cell in new if cell["source"].strip()]
    notebook["cells"] = [*opening, *cells, _markdown(how_made(page))]
    for index, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{index}"
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    return _json(notebook)


def _title_cell(page: Page) -> dict[str, Any]:
    cell = next(iter(json.loads(page.executed)["cells"]), None) or _markdown("")
    cell["source"] = "".join(cell["source"])
    if cell["cell_type"] != "markdown" or not _TITLE.match(cell["source"]):
        raise SiteError(f"notebooks/{page.name}.md: must begin with a title ('# ...')")
    return dict(cell)


def split_lead(source: str) -> tuple[str, str]:
    """Title and opening (a paragraph or a `:::` box) of a page, and the rest.

    Example:
        >>> split_lead("# Title\\n\\nOpening.\\n\\nMore.")
        ('# Title\\n\\nOpening.', 'More.')
        >>> split_lead("# Title\\n\\n## Part")
        ('# Title', '## Part')
    """
    found = _TITLE.match(source)
    title, rest = (found[1], found[2].strip()) if found else ("", source)
    box = re.match(r"(:{3,})\{.*?^\1$", rest, re.DOTALL | re.MULTILINE)
    opening = box[0] if box else rest.partition("\n\n")[0]
    if not opening or (not box and opening[0] in "#:`({|-*$<>+"):
        return title, rest
    return f"{title}\n\n{opening}", rest[len(opening) :].strip("\n")


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def assemble(root: Path, out: Path, preset: str) -> dict[str, bytes]:
    """Every file of the Jupyter Book's source folder: relative path -> content."""
    registry = claims.load(root)
    pages = _notebook_pages(root, out, preset)
    runs = {page.name: page.runs for page in pages}
    orphans = sorted({c.notebook for c in registry.values()} - set(runs))
    if orphans:
        raise SiteError(f"book/claims.toml names notebooks that do not exist: {', '.join(orphans)}")
    files: dict[str, bytes] = {}
    for path in sorted((root / "book").rglob("*")):
        relative = path.relative_to(root / "book")
        if path.is_file() and relative.parts[0] not in SKIPPED:
            files[relative.as_posix()] = _page(path, registry, runs)
    for name, text in _generated(registry, pages, runs).items():
        files[f"generated/{name}.md"] = text.encode()
    for page in pages:
        listed = [claim for claim in registry.values() if claim.notebook == page.name]
        table = claims_table(listed, runs, link=False) if listed else ""
        files[f"notebooks/{page.name}.ipynb"] = notebook_source(page, table)
        files[f"downloads/{page.name}.ipynb"] = page.executed
        for kind, results in page.runs.items():
            if results:
                files[f"downloads/results/{kind}/{page.name}.json"] = _json(results)
    return files


def _page(path: Path, registry: Mapping[str, claims.Claim], runs: Mapping[str, Any]) -> bytes:
    if path.suffix != ".md":
        return path.read_bytes()
    try:
        text = path.read_text(encoding="utf-8")
        return _RESULT.sub(lambda match: result_text(match[1], registry, runs), text).encode()
    except SiteError as error:
        raise SiteError(f"{path}: {error}") from error


def _generated(
    registry: Mapping[str, claims.Claim], pages: list[Page], runs: Mapping[str, Any]
) -> dict[str, str]:
    """The files that pages include: scorecards, and tables and provenance for each paper."""
    made = {"scorecard": "", "scorecard_short": ""}
    if registry:
        made["scorecard_short"] = _short_scorecard(registry, runs)
    for paper, listed in _by_paper(registry.values()).items():
        table = claims_table(listed, runs, link=True)
        made["scorecard"] += f"(scorecard-{paper})=\n## {paper_name(paper)}\n\n{table}\n"
        made[f"claims_{paper}"] = table
    for paper in dict.fromkeys(page.name.split("/")[0] for page in pages):
        own = [page for page in pages if page.name.startswith(f"{paper}/")]
        made[f"made_{paper}"] = chapter_made(own)
        made[f"notebooks_{paper}"] = _notebook_list(own)
    made["made_all"] = chapter_made(pages)
    return made


def _notebook_list(pages: Iterable[Page]) -> str:
    """A chapter's notebooks in reading order, by title."""
    lines = []
    for page in pages:
        found = re.search(r"^# (.+)$", _title_cell(page)["source"], re.MULTILINE)
        title = found[1].strip() if found else page.name
        lines.append(f"1. [{title}](/notebooks/{page.name}.ipynb)\n")
    return "".join(lines)


def write_tree(files: Mapping[str, bytes], folder: Path) -> None:
    """Make `folder` hold exactly these files; a file with the same content is left untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


# --- building ----------------------------------------------------------------------------------


def build(
    root: str | Path, out: str | Path = "_build", *, preset: str = "quick", strict: bool = True
) -> Path:
    """Build the site from executed notebooks and results, and put it at `<out>/html`.

    Args:
        root: the repository.
        out: folder of runs and site, relative to `root` unless absolute.
        preset: whose executed notebooks become the pages.
        strict: whether warnings of Jupyter Book and broken internal links are errors.

    Returns:
        The site's folder.

    Raises:
        SiteError: naming what is missing or wrong, with Jupyter Book's own words.
    """
    import filelock

    if preset not in claims.PRESETS:
        raise SiteError(f"unknown preset {preset!r}{claims.suggest(preset, claims.PRESETS)}")
    root = Path(root).resolve()
    out = root / out
    source, work, site = out / "book_src", out / "book_work", out / "html"
    files = assemble(root, out, preset)
    (out / ".work").mkdir(parents=True, exist_ok=True)
    with (
        filelock.FileLock(out / ".work" / "site.lock"),  # released when its process ends
        tempfile.TemporaryDirectory(dir=out / ".work", prefix="site-") as scratch,
    ):
        write_tree(files, source)
        _jupyter_book(source, work, strict=strict)
        fresh = Path(scratch) / "new"
        shutil.copytree(work / "_build" / "html", fresh)
        _copy_mathjax(fresh / "_static" / "mathjax")
        _check_site(fresh, toc_pages(root), strict=strict)
        if site.exists():
            site.rename(Path(scratch) / "old")
        fresh.rename(site)
    return site


def _jupyter_book(source: Path, work: Path, *, strict: bool) -> None:
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(source), "--path-output", str(work), "-n", "--keep-going"]
    environment = {**os.environ, "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command + ["-W"] * strict,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if done.returncode or not (work / "_build" / "html" / "index.html").is_file():
        shutil.rmtree(work, ignore_errors=True)  # its cache would hide the warnings next time
        tail = "\n".join(done.stdout.splitlines()[-20:])
        said = re.sub(r"\x1b\[[0-9;]*m", "", f"{tail}\n{done.stderr}")  # colours
        raise SiteError(f"Jupyter Book failed:\n{said}".rstrip())


def _copy_mathjax(target: Path) -> None:
    """Formulas must not need another host: take MathJax from the installed package."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise SiteError("MathJax is not installed; run: pip install sphinx-mathjax-offline")
    origin = Path(spec.origin).parent / "static" / "mathjax"
    for name in MATHJAX:
        copier: Callable[..., Any] = shutil.copytree if (origin / name).is_dir() else shutil.copy2
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copier(origin / name, target / name)


def _check_site(html: Path, pages: Iterable[str], *, strict: bool) -> None:
    expected = ["index.html", "search.html", *(f"{page}.html" for page in pages)]
    problems = [f"{name}: not built" for name in expected if not (html / name).is_file()]
    if strict:
        problems += check_links(html)
    if problems:
        raise SiteError("the site is not sound:\n" + "\n".join(problems))


class _Links(HTMLParser):
    """Anchors that a page offers, links it makes, and what it loads from elsewhere."""

    LOADS = ("script", "img", "iframe", "source", "video", "audio", "embed")
    LOADED_LINKS = ("stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        target = values.get("src") or values.get("href")
        if target is None:
            return
        self.targets.append(target)
        kinds = values.get("rel", "").split()
        if tag in self.LOADS or (tag == "link" and set(kinds) & set(self.LOADED_LINKS)):
            self.loaded.append(target)


def check_links(html_dir: str | Path) -> list[str]:
    """Internal links and anchors that lead nowhere, and anything a page loads from another host.

    Args:
        html_dir: a built site.

    Returns:
        One line for each problem; none for a sound site.
    """
    html = Path(html_dir).resolve()
    pages = {
        path: _Links(path.read_text(encoding="utf-8"))
        for path in sorted(html.rglob("*.html"))
        if "_static" not in path.relative_to(html).parts
    }
    problems = []
    for path, page in pages.items():
        name = path.relative_to(html).as_posix()
        foreign = [t for t in page.loaded if urlparse(t).netloc]
        problems += [f"{name}: loads {target} from another host" for target in foreign]
        for target in dict.fromkeys(page.targets):
            parsed = urlparse(target)
            if parsed.scheme or parsed.netloc:
                continue
            link, anchor = urldefrag(target)
            file = (path.parent / unquote(urlparse(link).path)).resolve() if link else path
            if not file.exists():
                problems.append(f"{name}: {target} leads to no file")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                problems.append(f"{name}: {target} leads to no anchor")
    return problems
