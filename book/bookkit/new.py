"""A new notebook from a template: its source, drawing function, claim and place in the contents."""

from __future__ import annotations

import builtins
import keyword
import re
import symtable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bookkit import claims
from bookkit.parameters import UsageError

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*")


def create(root: Path, name: str) -> list[Path]:
    """Write the files of notebook `name` (paper/result), and of its chapter if that is new.

    Returns:
        The files written or extended; no file that exists is overwritten.

    Raises:
        UsageError: for a name that is taken or malformed, or where there is no clone to write to.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a notebook; paper2025/a_result, say, is one")
    if root == claims.PACKAGED:
        raise UsageError("a new notebook needs a clone of the repository; change into one")
    source = root / "notebooks" / f"{name}.md"
    if source.exists():
        raise UsageError(f"{source} exists")
    paper, result = name.split("/")
    words = {"name": name, "paper": paper, "result": result, "slug": name.replace("/", "-")}
    words |= {"title": result.replace("_", " ").capitalize(), "claim": f"{paper}.{result}.holds"}
    registry, contents = root / "book" / "claims.toml", root / "book" / "_toc.yml"
    figures, chapter = source.with_name("figures.py"), root / "book" / "chapters" / f"{paper}.md"
    _free(figures, words)
    texts = {
        source: _made("notebook.md", words),
        figures: _extended(figures, "figures.txt", "figure.txt", words),
        registry: _registered(registry.read_text(encoding="utf-8"), paper, words),
        contents: _listed(contents.read_text(encoding="utf-8"), paper, name),
    }
    if not chapter.exists():
        texts[chapter] = _made("chapter.md", words)
    source.parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _made(template: str, words: dict[str, Any]) -> str:
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return made.get_template(f"new/{template}").render(**words)


def _free(figures: Path, words: dict[str, Any]) -> None:
    """Refuse a result that cannot be a new function of `figures.py`, or would hide something."""
    result, fresh = words["result"], not figures.exists()
    text = "" if fresh else figures.read_text(encoding="utf-8")
    texts = [text, _made("figures.txt", words | {"result": "its_own"})]
    try:
        tables = [symtable.symtable(text, str(figures), "exec") for text in texts]
    except SyntaxError as error:
        raise UsageError(f"{figures}: {error}") from error
    bound = {s.get_name() for table in tables for s in table.get_symbols() if s.is_local()}
    if result in bound | set(keyword.kwlist) | set(dir(builtins)):
        raise UsageError(
            f"{words['name']!r}: the function {result} of {figures} would be no new one "
            "(allowed: a name that is no keyword, no builtin, and not bound there)"
        )


def _extended(path: Path, fresh: str, more: str, words: dict[str, Any]) -> str:
    if not path.exists():
        return _made(fresh, words).rstrip("\n") + "\n"
    return path.read_text(encoding="utf-8").rstrip("\n") + "\n" + _made(more, words)


def _registered(text: str, paper: str, words: dict[str, Any]) -> str:
    known = re.search(rf'^id = "{paper}"$', text, re.MULTILINE)
    if not known:
        entry = f'[[paper]]\nid = "{paper}"\nname = "{paper}"\nsentence = "What it shows."\n\n'
        last = text.rfind("[[paper]]")  # behind it, so that a comment stays with its claims
        gap = text.find("\n\n", last) + 2 if last >= 0 else 0
        text = text[:gap] + entry + text[gap:] if gap > 1 else f"{entry}{text}"
    return text.rstrip("\n") + "\n" + _made("claims.toml", words)


def _listed(text: str, paper: str, name: str) -> str:
    """The contents with the notebook as the last of its chapter, a new one after the others."""
    lines = text.splitlines()
    chapters = [i for i, line in enumerate(lines) if "file: chapters/" in line]
    own = [i for i in chapters if lines[i].rstrip().endswith(f"chapters/{paper}")]
    begin = (own or chapters)[-1]
    indent = lines[begin][: lines[begin].index("-")]
    end = begin + 1
    while end < len(lines) and lines[end].startswith(f"{indent} "):
        end += 1
    section = [f"{indent}    - file: notebooks/{name}"]
    if not own:
        section = [f"{indent}- file: chapters/{paper}", f"{indent}  sections:", *section]
    return "\n".join([*lines[:end], *section, *lines[end:]]) + "\n"
