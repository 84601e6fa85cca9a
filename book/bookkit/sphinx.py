"""Sphinx extension: what the site shows of claims and runs, made from results files alone.

Directives whose content is the template of the same name: `{claims}`, `{scorecard}`,
`{how-made}`, `{cards}`, `{chips}`, `{not-held}` and `{exercises}`. They speak of the page they
stand on (a notebook, or a paper's chapter), or of the one that is named; the last lists those of
all notebooks. `{lead}` is the opening of a page; `{hero}` and `{result-figure}` show a figure that
the notebook stored with `run.figure`, at the paper's scale and of the run behind this build, with
links to the numbers behind it.

The executed notebooks are copied into the book's folder before Sphinx looks for pages, so that
`jupyter-book build book/` builds the whole site.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from myst_nb.core.variables import RetrievalError, render_variable_outputs
from myst_nb.ext.glue.directives import PasteFigureDirective
from myst_nb.ext.glue.utils import retrieve_glue_data
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx_design.shared import create_component

from bookkit import address, cache, citing, claims, exercises, images, notebooks, tables
from bookkit.files import mathjax, write
from bookkit.plain import RELATIONS, number

TEMPLATES = Path(__file__).parent / "templates"
MADE = ("claims", "scorecard", "how-made", "cards", "chips", "cite", "not-held", "exercises")
SCALES = {"paper": "Paper scale", "quick": "Quick run of this build"}
MATHJAX = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)


class BookError(SphinxError):
    """The site cannot be built; the message says what is wrong and what to do."""

    category = "The book cannot be built"


# --- what the book consists of -------------------------------------------------------------------


def contents(root: Path) -> list[tuple[int, str, str]]:
    """Level, title and page of each line of `book/_toc.yml`; a part has no page."""
    import yaml

    table = yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8"))
    found = [(0, "", str(table["root"]))]

    def walk(pages: Iterable[Mapping[str, Any]], level: int) -> None:
        for page in pages:
            found.append((level, str(page.get("title", "")), str(page["file"])))
            walk(page.get("sections", []), level + 1)

    for part in table.get("parts", [{"chapters": table.get("chapters", [])}]):
        if "caption" in part:
            found.append((0, str(part["caption"]), ""))
        walk(part["chapters"], int("caption" in part))
    return found


def toc_pages(root: Path) -> list[str]:
    """Every page of `book/_toc.yml` in reading order, without suffix.

    Raises:
        BookError: if its notebooks are not exactly those of `notebooks/`.
    """
    pages = [page for _, _, page in contents(root) if page]
    listed = {page for page in pages if page.startswith("notebooks/")}
    present = {p.relative_to(root).with_suffix("").as_posix() for p in notebooks.sources(root)}
    problems = [f"{page}.md exists but is not in book/_toc.yml" for page in present - listed]
    problems += [f"book/_toc.yml lists {page}, which does not exist" for page in listed - present]
    problems += [f"book/_toc.yml lists {page} twice" for page in pages if pages.count(page) > 1]
    if problems:
        raise BookError("\n".join(sorted(set(problems))))
    return pages


class Book:
    """The claims, the executed notebooks and the results that the site is made of.

    Args:
        root: the repository.
        out: folder of runs.
        preset: whose executed notebooks become the pages; the paper preset's committed results
            stand beside them.

    Raises:
        BookError: naming what is missing, and the command that makes it.
    """

    def __init__(self, root: Path, out: Path, preset: str) -> None:
        if preset not in claims.PRESETS:
            raise BookError(f"unknown preset {preset!r}{claims.suggest(preset, claims.PRESETS)}")
        self.root, self.out, self.preset = root, out, preset
        self.claims = claims.load(root)
        self.papers = claims.papers(root)
        prefix = "notebooks/"
        pages = toc_pages(root)
        self.names = [page.removeprefix(prefix) for page in pages if page.startswith(prefix)]
        self.runs = {
            name: {p: self._results(p, name) for p in dict.fromkeys((preset, "paper"))}
            for name in self.names
        }
        missing = [n for n in self.names if not (self.runs[n][preset] and self.path(n).is_file())]
        if missing:
            raise BookError(
                f"no executed notebook or results in {out} for: {', '.join(missing)}\n"
                f"run first: fabook run {' '.join(missing)} --preset {preset} --out {out}"
            )
        if old := self._judged_otherwise():
            again = "\n".join(f"  fabook run {name} --preset {p}" for name, p in old)
            raise BookError(
                "judged by other checks than those of book/claims.toml: "
                f"{', '.join(f'{name} ({p})' for name, p in old)}\nrun again (and put a paper "
                f"run's results file into book/results/paper, or delete the old one):\n{again}"
            )
        for name in self.names:
            if blank := notebooks.without_image(self.notebook(name)["cells"]):
                raise BookError(f"{name}: no image of {', '.join(blank)}; run it again")
        orphans = sorted({claim.notebook for claim in self.claims.values()} - set(self.names))
        if orphans:
            raise BookError(f"book/claims.toml names notebooks unknown here: {', '.join(orphans)}")

    def _results(self, preset: str, name: str) -> dict[str, Any] | None:
        if preset == self.preset:
            return claims.read_results(self.root, self.out, preset, name)
        path = claims.published_path(self.root, name)  # as committed, never as lying about
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _judged_otherwise(self) -> list[tuple[str, str]]:
        """Notebooks and presets with a verdict whose checks the registry no longer has."""
        old = []
        for name, runs in self.runs.items():
            for preset, run in runs.items():
                entries = [e for e in (run["claims"] if run else []) if e["id"] in self.claims]
                if any(self.claims[e["id"]].registered(preset) != e["registered"] for e in entries):
                    old.append((name, preset))
        return old

    def path(self, name: str) -> Path:
        """The executed notebook."""
        return self.out / "notebooks" / self.preset / f"{name}.ipynb"

    @functools.cache  # noqa: B019  (one book a build)
    def notebook(self, name: str) -> dict[str, Any]:
        """The executed notebook's content, its sources joined."""
        content: dict[str, Any] = json.loads(self.path(name).read_text(encoding="utf-8"))
        for cell in content["cells"]:
            cell["source"] = "".join(cell["source"])
        return content

    def prose(self, name: str) -> str:
        """What a notebook's page says outside its code."""
        cells = self.notebook(name)["cells"]
        return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")

    def title(self, name: str) -> str:
        """A notebook's title."""
        found = re.search(r"^# (.+)$", self.prose(name), re.MULTILINE)
        return found[1].strip() if found else name

    def lead(self, name: str) -> str:
        """A notebook's opening, without citations and links; empty if the page has none."""
        found = re.search(r"^:::\{lead\}\n(.*?)\n:::$", self.prose(name), re.DOTALL | re.MULTILINE)
        text = re.sub(r"\s*\{cite:\w\}`[^`]*`", "", found[1]) if found else ""
        return re.sub(r"\{term\}`([^`<]*?)(?:\s*<[^`]*)?`", r"\1", text).strip()

    def hero(self, name: str) -> Any:
        """A notebook's hero figure at the paper's scale, or its first one, as a PIL image."""
        found: dict[str, str] = {}
        for cell in self.notebook(name)["cells"]:
            for output in cell.get("outputs", []):
                stored = output.get("metadata", {}).get("scrapbook", {})
                data = output.get("data", {})
                image = data.get(f"{stored.get('mime_prefix', '')}image/png")
                if image:
                    found.setdefault(stored.get("name", "first"), "".join(image))
        names = ("hero:paper", f"hero:{self.preset}", "first", *found)
        content = next((found[key] for key in names if key in found), None)
        if content is None:
            raise BookError(
                f"{name} stores no figure, and its card shows one: call run.figure in "
                f"notebooks/{name}.md, and run it: fabook run {name}"
            )
        return images.on_white(base64.b64decode(content))

    def picture(self, name: str) -> bytes:
        """A notebook's hero figure as a small PNG."""
        picture = self.hero(name)
        small = picture.resize((480, round(480 * picture.height / picture.width)))
        return images.png(small)

    def chapter(self, paper: str) -> str:
        """The page of a paper: its chapter, or its first notebook."""
        if (self.root / "book" / "chapters" / f"{paper}.md").is_file():
            return f"/chapters/{paper}.md"
        return f"/notebooks/{self.pages(paper)[0]}.ipynb"

    def cards(self, what: str) -> list[dict[str, str]]:
        """What the cards of some notebooks show."""
        return [
            {
                "title": self.title(name),
                "page": f"/notebooks/{name}",
                "picture": f"/notebooks/{name}.png",
                "sentence": self.lead(name),
                "about": name,
            }
            for name in self.pages(what)
        ]

    def chapters(self) -> list[dict[str, str]]:
        """What the cards of the papers show."""
        return [
            self.cards(paper)[0]
            | {"title": facts["name"], "sentence": facts["sentence"], "about": paper}
            | {"page": self.chapter(paper).rsplit(".", 1)[0]}
            for paper, facts in self.papers.items()
            if self.pages(paper) and self.chapter(paper).startswith("/chapters/")
        ]

    def about(self, docname: str) -> str:
        """The notebook or paper that a page is about, or "" for all."""
        what = docname.removeprefix("notebooks/")
        return what if what in self.names else what.split("/")[-1] if "/" in what else ""

    def pages(self, what: str) -> list[str]:
        """A notebook, a paper's notebooks, or all, in reading order."""
        return [name for name in self.names if what in ("", name, name.split("/")[0])]

    def listed(self, what: str) -> list[claims.Claim]:
        """Their claims, in reading order."""
        names = self.pages(what)
        found = [claim for claim in self.claims.values() if claim.notebook in names]
        return sorted(found, key=lambda claim: names.index(claim.notebook))

    def changed(self, name: str, preset: str) -> list[str] | None:
        """Files whose code is not what it was at a run; None if the run did not keep them."""
        then = (self.runs[name][preset] or {}).get("sources")
        if then is None:
            return None
        now = cache.sources(self.root / "notebooks" / f"{name}.md", self.root)
        return sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file))

    @functools.cached_property
    def _history(self) -> list[set[str]]:
        """The files that the working tree, then each commit changed; none without all history."""

        def git(*words: str) -> str:
            command = ["git", "-C", str(self.root), *words]
            return subprocess.run(command, check=False, capture_output=True, text=True).stdout

        if not shutil.which("git") or "false" not in git("rev-parse", "--is-shallow-repository"):
            return []
        what = ("--name-only", "--relative", "--", "book/results/paper", "notebooks", "fabook")
        log = git("log", "--format=%x00", *what)
        return [set(part.split()) for part in [git("diff", "HEAD", *what), *log.split("\0")[1:]]]

    def since(self, name: str) -> list[str] | None:
        """Files of a page that changed after its results were committed; None if not known."""
        results = claims.published_path(self.root, name).relative_to(self.root).as_posix()
        at = next((i for i, files in enumerate(self._history) if results in files), None)
        if at is None:
            return None
        used = cache.sources(self.root / "notebooks" / f"{name}.md", self.root)
        later = {file for files in self._history[:at] for file in files}
        return sorted(used.keys() & {"/".join(file.split("/")[-2:]) for file in later})

    def tasks(self, own: str) -> list[exercises.Task]:
        """The tasks of all notebooks in reading order, after those of a page of its own."""
        text = (self.root / "book" / f"{own}.md").read_text(encoding="utf-8")
        found = exercises.tasks("", text)
        return found + [t for name in self.names for t in exercises.tasks(name, self.prose(name))]

    def works(self, what: str) -> list[str]:
        """BibTeX of a page's paper, else of the works that it cites, else of all papers."""
        known = citing.entries(self.root / "book" / "references.bib")
        paper = what.split("/")[0]
        if paper in known:
            return [citing.bibtex(known[paper])]
        chapter = self.root / "book" / "chapters" / f"{what}.md"
        if what in self.names:
            text = self.prose(what)
        else:
            text = chapter.read_text(encoding="utf-8") if chapter.is_file() else ""
        cited = [key for key in citing.cited(text) if key in known]
        return [citing.bibtex(known[key]) for key in cited or self.papers if key in known]

    @property
    def citation(self) -> str:
        """BibTeX of the book."""
        from bookkit import web

        return citing.of_book(self.root / "CITATION.cff", web.site_url(os.environ))

    def titles(self) -> dict[str, str]:
        """Where each preset's results come from."""
        first = {self.preset: "this build"}
        return first | {"paper": "committed"} if "paper" not in first else first

    def entry(self, claim: claims.Claim, preset: str) -> dict[str, Any]:
        """What a run says of a claim today."""
        return claims.standing(claim, preset, self.runs[claim.notebook][preset] or {})[0]

    def verdict(self, claim: claims.Claim) -> dict[str, Any]:
        """What counts: the paper preset's entry where it has been run, else this build's."""
        return self.entry(claim, "paper" if self.runs[claim.notebook]["paper"] else self.preset)

    def done(self, name: str) -> dict[str, dict[str, Any]]:
        """The runs of a notebook that there are, by preset."""
        return {preset: run for preset, run in self.runs[name].items() if run}

    @functools.cached_property
    def home(self) -> address.Address | None:
        """Where the repository lives, if it is known."""
        return address.find(self.root)

    def launch(self, name: str) -> dict[str, str]:
        """Where a reader's browser can run a notebook: the place and its address."""
        if self.home is None:
            return {}
        links = {"Colab": self.home.colab(name), "Binder": self.home.binder(name)}
        return {place: url for place, url in links.items() if url}

    def download(self, name: str, preset: str | None = None) -> str:
        """Address of a results file, or of the plain notebook, for a `{download}` role."""
        if preset is None:
            path = self.out / "plain" / f"{name}.ipynb"
            return "/" + Path(os.path.relpath(path, self.root / "book")).as_posix()
        path = self.out / "results" / preset / f"{name}.json"
        if preset != self.preset or not path.is_file():
            path = claims.published_path(self.root, name)
        return "/" + Path(os.path.relpath(path, self.root / "book")).as_posix()


# --- words of the templates ----------------------------------------------------------------------


def minutes(value: float) -> str:
    """A time for a reader.

    Example:
        >>> minutes(0.41), minutes(5.2), minutes(97.4)
        ('25 s', '5 min', '1.6 h')
    """
    if value < 1.5:
        return f"{max(5, 5 * round(12 * value))} s"
    return f"{value:.0f} min" if value < 90 else f"{value / 60:.1f} h"


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
        if key not in ("preset", "device") and value is not None:
            words += ["-p", f"{key}={value}"]
    return shlex.join(words)


def marks(claim: claims.Claim) -> dict[str, str]:
    """Letters for the quantities of a claim that has several."""
    names = list(dict.fromkeys(check.quantity for check in claim.checks))
    return {n: f"({chr(97 + i)}) " if len(names) > 1 else "" for i, n in enumerate(names)}


def worst_first(checks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks that failed, then those that are undecided, then those that hold."""
    return sorted(checks, key=lambda check: (False, None, True).index(check["holds"]))


def render(name: str, **values: Any) -> str:
    """The text of a template."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["relations"] = RELATIONS
    environment.filters |= {
        "number": number,
        "minutes": minutes,
        "rerun": rerun_command,
        "marks": marks,
        "ends": claims.ends,
        "worst_first": worst_first,
        "flat": lambda text: " ".join(str(text).split()),
    }
    return environment.get_template(name if "." in name else f"{name}.md").render(**values)


# --- directives ----------------------------------------------------------------------------------


class Made(SphinxDirective):
    """A directive whose content is the template of the same name."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        book: Book = vars(self.env.app)["bookkit"]
        what = self.arguments[0] if self.arguments else book.about(self.env.docname)
        about = "" if what == "short" or self.name == "exercises" else what
        if about and not book.pages(about):
            raise BookError(
                f"{self.env.docname}: {{{self.name}}} {what}: no such notebook or paper"
            )
        for path in self._sources(book, about):
            self.env.note_dependency(str(path))
        text = render(
            self.name, book=book, what=what, docname=self.env.docname, exercises=exercises
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    def _sources(self, book: Book, about: str) -> Iterator[Path]:
        yield from TEMPLATES.glob("*.md")
        yield from (book.root / "book" / name for name in ("claims.toml", "references.bib"))
        yield book.root / "CITATION.cff"
        for name in book.pages(about):
            yield book.path(name)
            yield book.out / "results" / book.preset / f"{name}.json"
            yield claims.published_path(book.root, name)


class Lead(SphinxDirective):
    """The opening of a page: the result in words a student knows."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        return [nodes.container("", *self.parse_content_to_nodes(), classes=["lead"])]


class ResultFigure(PasteFigureDirective):
    """A figure that the notebook stored under a name, one tab for each scale it was drawn at."""

    def run(self) -> list[nodes.Node]:
        name, pictures = str(self.arguments[0]), {}
        for scale in SCALES:
            try:
                pictures[scale] = retrieve_glue_data(self.document, f"{name}:{scale}")
            except RetrievalError:
                continue
        if not pictures:
            raise BookError(f"{self.source}: the notebook stored no figure {name!r} (run.figure)")
        self.arguments[:] = [f"{name}:{next(iter(pictures))}"]
        figure = super().run()[0]
        image = {"image": {"alt": self.options.get("alt", "")}}
        tabs = create_component("tab-set", ["sd-tab-set", "scales"])
        env = self.document.settings.env
        book: Book = vars(env.app)["bookkit"]
        for scale, picture in pictures.items():
            shown = render_variable_outputs(
                [picture], self.document, self.line, self.source, render=image
            )
            drawn = picture.metadata.get("fabook", {}).get("tables")
            if scale in book.done(book.about(env.docname)):
                shown.append(tables.links(book, env.docname, scale, drawn))
            label = nodes.rubric("", SCALES[scale], classes=["sd-tab-label"])
            content = create_component("tab-content", ["sd-tab-content"], children=shown)
            tabs += create_component("tab-item", ["sd-tab-item"], children=[label, content])
        figure["classes"] += ["result-figure", *(["hero"] if self.name == "hero" else [])]
        figure[0] = tabs
        return [figure]


class Lift(SphinxTransform):
    """A section that a directive made inside another one stands after it."""

    default_priority = 300

    def apply(self, **options: Any) -> None:
        for section in list(self.document.findall(nodes.section)):
            outer = section.parent
            if "what-did-not-hold" in section["ids"] and isinstance(outer.parent, nodes.section):
                outer.remove(section)
                outer.parent.insert(outer.parent.index(outer) + 1, section)


# --- Sphinx --------------------------------------------------------------------------------------


def place(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold exactly these files; one with the same content is left untouched."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != content:
            write(target, content)


def _open(app: Sphinx, config: Any) -> None:
    """Find the runs and put the executed notebooks where Sphinx looks for pages."""
    for name in ("html_css_files", "html_js_files"):  # Jupyter's checkpoints of them are none
        setattr(config, name, [file for file in getattr(config, name) if "/." not in f"/{file}"])
    root = Path(app.srcdir).parent
    out = root / os.environ.get("FABOOK_OUT", config.bookkit_out)
    book = Book(root, out, os.environ.get("FABOOK_PRESET", config.bookkit_preset))
    vars(app)["bookkit"] = book
    files = {f"{name}.ipynb": book.path(name).read_bytes() for name in book.names}
    files |= {f"{name}.png": book.picture(name) for name in book.names}
    place(root / "book" / "notebooks", files)


def _tidy(app: Sphinx, docname: str, source: list[str]) -> None:
    """The cell that papermill adds is no part of a page."""
    if not docname.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
    source[0] = json.dumps(notebook)


HEAVY = 200_000  # bytes of a figure as it was drawn


def _subset_icons(out: Path) -> None:
    """The theme's style has a rule for each of 1,900 icons: only those that are used stay."""
    used = set()
    for page in (*out.rglob("*.html"), *out.rglob("*.js")):
        used |= set(
            re.findall(r"fa-[a-z0-9-]+", page.read_text(encoding="utf-8", errors="replace"))
        )
    for style in out.glob("_static/styles/pydata-sphinx-theme.css"):
        rules = re.compile(r"((?:\.fa-[a-z0-9-]+(?:::?before)?,?)+)\{(?:--fa|content)[^{}]*\}")

        def kept(rule: re.Match[str]) -> str:
            return rule[0] if used & set(re.findall(r"fa-[a-z0-9-]+", rule[1])) else ""

        text = style.read_text(encoding="utf-8")
        style.write_text(rules.sub(kept, text), encoding="utf-8")


def _lighten(app: Sphinx, error: Exception | None) -> None:
    """Figures of few colours look the same and weigh a third; icons that no page shows go."""
    from PIL import Image

    _subset_icons(Path(app.outdir))
    for path in sorted((Path(app.outdir) / "_images").glob("*.png")):
        with Image.open(path) as opened:
            picture = opened.copy()
        if error or picture.mode not in ("RGB", "RGBA"):
            continue
        if picture.mode == "RGBA" and min(picture.getchannel("A").tobytes()) == 255:
            picture = picture.convert("RGB")
        method = Image.Quantize.FASTOCTREE if picture.mode == "RGBA" else Image.Quantize.MEDIANCUT
        light = io.BytesIO()
        colours = 256 if path.stat().st_size < HEAVY else 32
        picture.quantize(colours, method, dither=Image.Dither.NONE).save(
            light, "PNG", optimize=True
        )
        if light.tell() < path.stat().st_size:
            path.write_bytes(light.getvalue())


def _close(app: Sphinx, error: Exception | None) -> None:
    """Formulas must not need another host: MathJax comes from the installed package."""
    if error or app.builder.format != "html":
        return
    origin = mathjax()
    if origin is None:
        raise BookError("MathJax is not installed; run: pip install sphinx-mathjax-offline")
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (origin / name).is_dir():
            shutil.copytree(origin / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copy2(origin / name, target / name)


def _redirect(app: Sphinx, error: Exception | None) -> None:
    """Addresses that a page once had, or might have, lead to it."""
    if error or app.builder.format != "html":
        return
    html = Path(app.outdir)
    for old, new in app.config.bookkit_redirects.items():
        for page in sorted(html.glob(f"{new}.html")):
            source = html / f"{old.replace('*', page.stem)}.html"
            source.parent.mkdir(parents=True, exist_ok=True)
            target = Path(os.path.relpath(page, source.parent)).as_posix()
            source.write_text(render("moved.html", target=target), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and what happens before and after Sphinx reads the pages."""
    app.add_config_value("bookkit_out", "_build", "env")
    app.add_config_value("bookkit_preset", "quick", "env")
    app.add_config_value("bookkit_redirects", {}, "html")
    directives: Iterable[tuple[str, Any]] = [
        *((name, Made) for name in MADE),
        ("lead", Lead),
        ("hero", ResultFigure),
        ("result-figure", ResultFigure),
    ]
    for name, directive in directives:
        app.add_directive(name, directive)
    app.add_transform(Lift)
    app.connect("config-inited", _open)
    app.connect("source-read", _tidy)
    app.connect("build-finished", _close)
    app.connect("build-finished", _lighten)
    app.connect("build-finished", _redirect)
    return {"parallel_read_safe": True, "version": "1"}
