"""MyST as plain Markdown, for notebooks that leave the book.

Boxes become quotes and folds, citations names and years with a list of references, and
cross-references words. Numbers in the prose are those that the executed copy stored.
"""

from __future__ import annotations

import ast
import base64
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bookkit import citing, claims, images, notebooks
from bookkit.parameters import UsageError
from bookkit.record import GLUE_PREFIX

NOTHING = {"chips", "how-made", "raw", "cards", "scorecard", "exercise-end", "solution-end"}
DRAWN = {
    "paper": "Drawn from the committed results of the paper preset.",
    "quick": "Drawn from a run of the quick preset.",
    "": "Drawn below, when the notebook runs.",
}
RELATIONS = {"<": "<", "<=": "≤", ">": ">", ">=": "≥", "within": "in"}
EXTENSIONS = {"amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"}
NUMBERED = {"eq": "({})", "fig": "Figure {}", "ex": "Exercise {}"}
_DIRECTIVE = re.compile(r"\{([\w-]+)\}\s*(.*)")
_OPTION = re.compile(r"^:([\w-]+):[ ]*(.*)\n?", re.MULTILINE)


class Words:
    """What the prose of one notebook becomes.

    Args:
        root: the repository, or the installed book.
        name: the notebook's name.
        cells: its cells.
        stored: texts and pictures by the names that `run.glue` and `run.figure` gave them.
        solutions: whether solutions of exercises are kept.
        verdicts: those of the run whose page this is, by claim; None: the committed ones.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        cells: Iterable[Any],
        stored: Mapping[str, Mapping[str, str]],
        *,
        solutions: bool = True,
        verdicts: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.name, self.stored, self.solutions = root, name, stored, solutions
        self.verdicts = verdicts
        self.references = References(root / "book" / "references.bib")
        self.labels: dict[str, str] = {}  # label -> what a reference to it says
        counts = dict.fromkeys(NUMBERED, 0)
        for cell in cells:
            for kind, label in labelled(cell):
                counts[kind] += 1
                self.labels[label] = NUMBERED[kind].format(counts[kind])
        self.exercises = counts["ex"]

    def parts(self, cells: Iterable[Any]) -> Iterator[tuple[str, Any]]:
        """The cells, cut where a solution begins or ends, with what it solves or ""."""
        solution = ""
        for whole in cells:
            if whole.cell_type != "markdown":
                yield solution, whole
                continue
            lines, at = whole.source.split("\n"), 0
            for token in parser().parse(whole.source):
                name, argument = directive(token)
                if name in ("solution-start", "solution-end") and token.map:
                    yield solution, cell("markdown", "\n".join(lines[at : token.map[0]]))
                    at = token.map[1]
                    solution = self._solved(argument) if name == "solution-start" else ""
            yield solution, cell("markdown", "\n".join(lines[at:]))

    def _solved(self, label: str) -> str:
        """What a solution is of: the one block of exercises, or one of several."""
        return "the exercises" if self.exercises == 1 else self.labels.get(label, label).lower()

    def prose(self, source: str, solution: str = "") -> list[Any]:
        """The cells of plain Markdown that a piece of MyST becomes."""
        text = self.text(source)
        if solution and text.strip():
            text = fold(f"Solution of {solution}", text)
        return [cell("markdown", part) for part in text.split("\f")]

    def caption(self, drawn: Any) -> list[Any]:
        """A cell with the caption of the figure that a code cell draws, if it draws one."""
        figure = drawn.metadata.get("mystnb", {}).get("figure")
        if not figure:
            return []
        caption = self.text(figure.get("caption", ""))
        return [cell("markdown", f"**{self.labels[figure.get('name', '')]}.** {caption}".strip())]

    def text(self, source: str) -> str:
        """A piece of MyST as plain Markdown; `\\f` stands where a figure wants its own cell."""
        lines, place = source.split("\n"), (0, 0)
        edits: dict[tuple[int, int], str] = {}
        for token in parser().parse(source):
            if token.map:  # cells of a table have their row's
                place = (token.map[0], token.map[1])
            name, argument = directive(token)
            piece = edits.get(place, "\n".join(lines[slice(*place)]))
            if name:
                indent = piece[: len(piece) - len(piece.lstrip())]
                made = self._block(name, argument, *_options(token.content))
                edits[place] = made.replace("\n", f"\n{indent}")
            elif token.type == "math_block_label":
                closing = re.compile(rf"\$\$\s*\({re.escape(token.info)}\)\s*$")
                number = self.labels[token.info].strip("()")
                edits[place] = closing.sub(rf"\\tag{{{number}}}\n$$", piece)
            elif token.type in ("myst_target", "myst_line_comment"):
                edits[place] = ""
            elif token.type == "inline":
                edits[place] = self._inline(piece, token.children or [])
        for (start, stop), made in sorted(edits.items(), reverse=True):
            lines[start:stop] = [made]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")

    def _block(self, name: str, argument: str, options: Mapping[str, str], body: str) -> str:
        """What a directive becomes."""
        if name in NOTHING:
            return ""
        if name in ("hero", "result-figure"):
            return self._figure(argument, options, self.text(body))
        if name == "claims":
            return self._claims()
        if name == "not-held":
            return self._not_held()
        if name in ("exercise", "exercise-start"):
            label = self.labels[options.get("label", argument)] if self.exercises > 1 else ""
            return (f"**{label}.**\n\n" if label else "") + self.text(body)
        if name == "solution":
            return fold("Solution", self.text(body)) if self.solutions else ""
        if name == "lead":
            return self.text(body)
        if name == "math":
            return f"$$\n{body}\n$$"
        if name == "dropdown":
            return fold(argument, self.text(body))
        title = argument if name == "admonition" else name.replace("-", " ").capitalize()
        quoted = f"**{title.rstrip('.')}.** {self.text(body)}".split("\n")
        return "\n".join(f"> {line}".rstrip() for line in quoted)

    def _figure(self, name: str, options: Mapping[str, str], caption: str) -> str:
        scales = [s for s in DRAWN if "image/png" in self.stored.get(f"{name}:{s}", {})]
        scale = next(iter(scales), "")
        label = self.labels[options.get("name", name)]
        drawn = DRAWN[scale] if self.verdicts is None or not scale else "Drawn from this run."
        words = f"**{label}.** {caption.strip()} *{drawn}*"
        if not scale:
            return words
        picture = base64.b64decode(self.stored[f"{name}:{scale}"]["image/png"])
        alt = re.sub(r"[\[\]]", "", options.get("alt", label))
        light = images.png(images.on_white(picture))
        encoded = base64.b64encode(light).decode()
        return f"\f![{alt}](data:image/png;base64,{encoded})\n\n{words}\f"

    def _judged(self) -> list[tuple[claims.Claim, Mapping[str, Any]]]:
        """The notebook's claims, and their entries in the committed results; of a run, verdicts."""
        entries: dict[str, Any] = {id: {"verdict": v} for id, v in (self.verdicts or {}).items()}
        path = claims.published_path(self.root, self.name)
        if self.verdicts is None and path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))["claims"]
            entries = {entry["id"]: entry for entry in known}
        own = [c for c in claims.load(self.root).values() if c.notebook == self.name]
        return [(claim, entries.get(claim.id, {"verdict": claims.NOT_RUN})) for claim in own]

    def _claims(self) -> str:
        """What is checked, as a list."""
        rows = [
            f"- {self.text(_flat(claim.statement))} *{entry['verdict'].capitalize()}.*"
            f"{self._said('Changed after a run', claim.changed_after_run)}"
            for claim, entry in self._judged()
        ]
        place = "at the paper's scale" if self.verdicts is None else "in this run"
        heading = f"**What is checked**, and what came of it {place}:"
        return "\n".join([heading, "", *rows]) if rows else ""

    def _not_held(self) -> str:
        """Claims that failed: the checks that did, whose bounds they are, and what was tried."""
        rows = []
        for claim, entry in self._judged():
            if entry["verdict"] != claims.NOT_REPRODUCED:
                continue
            known = {check.quantity: check for check in claim.checks}
            failed = "; ".join(
                f"{self.text(_flat(known[check['quantity']].label))}: {number(check['value'])} "
                f"(not {RELATIONS[check['comparison']]} {number(check['bound'])}, "
                f"{known[check['quantity']].owner})"
                for check in entry.get("checks", ())
                if check["holds"] is False
            )
            rows.append(
                f"**{self.text(_flat(claim.statement))}**"
                + (f" What fails: {failed}." if failed else "")
                + self._said("Changed after a run", claim.changed_after_run)
                + self._said("What was tried", claim.tried)
            )
        return "\n\n".join(["## What did not hold", *rows]) if rows else ""

    def _said(self, what: str, text: str | None) -> str:
        return f" {what}: {self.text(_flat(text))}" if text else ""

    def _inline(self, text: str, children: Sequence[Any]) -> str:
        """Running text with roles and links inside the book in words."""
        at = 0
        for child in children:
            href = str(child.attrs.get("href", ""))
            if child.type == "myst_role":
                content = r"\s+".join(map(re.escape, child.content.split()))
                pattern = rf"\{{{re.escape(child.meta['name'])}\}}(`+)\s*{content}\s*\1"
                made = self._role(child.meta["name"], child.content.strip())
            elif child.type == "link_open" and not re.match(r"\w+:", href):
                pattern, made = rf"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\({re.escape(href)}\)", ""
            else:
                continue
            found = re.compile(pattern).search(text, at)
            if found is None:
                raise UsageError(f"{self.name}: cannot place {child.content or href!r}")
            inner = found[1] or self._title(href) if child.type == "link_open" else made
            text = text[: found.start()] + inner + text[found.end() :]
            at = found.start() + (0 if child.type == "link_open" else len(inner))
        return text

    def _role(self, name: str, content: str) -> str:
        """What a role becomes."""
        given = re.fullmatch(r"(.*?)\s*<([^>]*)>", content, re.DOTALL)
        words, target = (given[1], given[2]) if given else ("", content)
        if name.startswith("glue"):
            value = self.stored.get(content, {}).get("text/plain")
            shown = "–" if value is None else str(ast.literal_eval(value))
            return _escaped(shown)
        if name.startswith("cite"):
            keys = [key.strip() for key in content.split(",")]
            foreign = self.verdicts is not None and not set(keys) <= set(self.references.entries)
            return content if foreign else self.references.cited(name, keys)
        if name == "numref" and words:
            number = self.labels.get(target, "").removeprefix("Figure ")
            return words.replace("%s", number).replace("{number}", number)
        if name in ("eq", "ref", "numref") and target in self.labels:
            return words or self.labels[target]
        return words or (self._title(target) if name in ("doc", "ref") else content)

    def _title(self, target: str) -> str:
        """The title of a page, or the words of its name."""
        name = re.sub(r"\.\w+$", "", target.split("#")[0]).split("/")[-1]
        titles = [n.title for n in notebooks.notebooks(self.root) if n.name.split("/")[-1] == name]
        return titles[0] if titles else name.replace("_", " ").replace("-", " ")


# --- labels and references -----------------------------------------------------------------------


def labelled(cell: Any) -> Iterator[tuple[str, str]]:
    """Kind and label of everything in a cell that has a number."""
    if cell.cell_type == "markdown":
        yield from _labelled(cell.source)
    elif figure := cell.metadata.get("mystnb", {}).get("figure"):
        yield "fig", figure.get("name", "")


def _labelled(source: str) -> Iterator[tuple[str, str]]:
    for token in parser().parse(source):
        name, argument = directive(token)
        options, body = _options(token.content)
        if token.type == "math_block_label":
            yield "eq", token.info
        elif name in ("hero", "result-figure"):
            yield "fig", options.get("name", argument)
        elif name in ("exercise", "exercise-start"):
            yield "ex", options.get("label", argument)
        if name and name not in NOTHING:
            yield from _labelled(body)


class References:
    """Citations of one notebook, by author and year, and the list of what was cited."""

    def __init__(self, path: Path) -> None:
        self.path, self.entries = path, citing.entries(path) if path.is_file() else {}
        self.used: dict[str, None] = {}

    def cited(self, style: str, keys: Sequence[str]) -> str:
        """Citations in the text (`cite:t`) or in parentheses."""
        inside = not style.endswith("t")
        shown = []
        for key in keys:
            if key not in self.entries:
                raise UsageError(f"{self.path} has no entry {key!r}")
            self.used[key] = None
            entry = self.entries[key]
            names = [" ".join([*p.prelast_names, *p.last_names]) for p in entry.persons["author"]]
            first = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            year = entry.fields["year"]
            words = _plain(f"{first}, {year}" if inside else f"{first} ({year})")
            shown.append(f"[{words}]({link})" if (link := _link(entry)) else words)
        return f"({'; '.join(shown)})" if inside else ", ".join(shown)

    def listed(self) -> str:
        """The list of references."""
        entries = _style().format_entries([self.entries[key] for key in self.used])
        rows = sorted(f"- {_escaped(entry.text.render(_backend()))}" for entry in entries)
        return "\n".join(["## References", "", *rows]) if rows else ""


@functools.cache
def _style() -> Any:
    from pybtex.style.formatting.plain import Style

    return Style()


@functools.cache
def _backend() -> Any:
    from pybtex.backends.plaintext import Backend

    return Backend()


def _link(entry: Any) -> str:
    fields = entry.fields
    if "doi" in fields:
        return f"https://doi.org/{fields['doi']}"
    return (
        f"https://arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else fields.get("url", "")
    )


def _plain(latex: str) -> str:
    from pybtex.richtext import Text

    return str(Text.from_latex(latex))


# --- pieces --------------------------------------------------------------------------------------


@functools.cache
def parser() -> Any:
    from markdown_it.renderer import RendererHTML
    from myst_parser.config.main import MdParserConfig
    from myst_parser.parsers.mdit import create_md_parser

    config = MdParserConfig(enable_extensions=EXTENSIONS, dmath_double_inline=True)
    return create_md_parser(config, RendererHTML)


def directive(token: Any) -> tuple[str, str]:
    """Name and argument of a directive, empty for any other token."""
    found = _DIRECTIVE.match(token.info) if token.type in ("fence", "colon_fence") else None
    return (found[1], found[2].strip()) if found else ("", "")


def _options(content: str) -> tuple[dict[str, str], str]:
    """Options and body of a directive."""
    options, at = {}, 0
    while found := _OPTION.match(content, at):
        options[found[1]], at = found[2].strip(), found.end()
    return options, content[at:].strip("\n")


def kept(cells: Iterable[Any]) -> dict[str, dict[str, str]]:
    """What executed cells keep under a name, texts and pictures."""
    return {
        output["metadata"]["scrapbook"]["name"]: {
            kind.removeprefix(GLUE_PREFIX): "".join(value) for kind, value in output["data"].items()
        }
        for cell in cells
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    }


def cell(kind: str, source: str, metadata: Mapping[str, Any] | None = None) -> Any:
    from nbformat import v4

    make = v4.new_code_cell if kind == "code" else v4.new_markdown_cell
    return make(source.strip("\n"), metadata=dict(metadata or {}))


def fold(title: str, text: str) -> str:
    return f"<details>\n<summary><b>{title}</b></summary>\n\n{text}\n\n</details>"


def _escaped(text: str) -> str:
    return re.sub(r"([*_`$|])", r"\\\1", text)


def _flat(text: str) -> str:
    return " ".join(text.split())


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
