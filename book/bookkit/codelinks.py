"""Sphinx extension: names of the library in a page's code lead to their entries in the API pages.

`sphinx-codeautolink` does this elsewhere; it stops at the sections that `sphinx-exercise` makes.
What a page imports, in any of its cells, says what a name means; a name that the page gives to
something else as well is left as it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_WORD = r'<span class="n[a-z]?">[A-Za-z_]\w*</span>'
_DOT = '<span class="o">.</span>'
_CHAIN = re.compile(
    rf"(?<!{re.escape(_DOT)}){_WORD}(?:{re.escape(_DOT)}{_WORD})*(?!<span class=\"o\">=</span>)"
)
_BLOCK = re.compile(r"<pre>.*?</pre>", re.DOTALL)
_PROMPT = re.compile(r"^(?:>>>|\.\.\.) ?(.*)$", re.MULTILINE)
_LINKED = {"function", "class", "method", "classmethod", "staticmethod", "exception"}


def imported(sources: Iterable[str]) -> dict[str, str]:
    """Return what the names that the code imports stand for, as dotted names.

    Example:
        >>> imported(["import a.b as c, d", "from e import f as g, h", "h = 1"])
        {'c': 'a.b', 'd': 'd', 'g': 'e.f'}
    """
    meaning: dict[str, str] = {}
    own: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except SyntaxError:  # printed text, or a line that IPython alone takes
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    root = name.name.partition(".")[0]
                    meaning[name.asname or root] = name.name if name.asname else root
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                meaning |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
    return {name: what for name, what in meaning.items() if name not in own}


def linked(block: str, meaning: Mapping[str, str], find: Callable[[str], str | None]) -> str:
    """Return highlighted code in which the names that `find` has an address for are links.

    Example:
        >>> code = '<pre><span class="n">f</span><span class="o">.</span><span class="n">g</span>'
        >>> linked(code + "</pre>", {"f": "fab"}, {"fab.g": "#g"}.get)[:45]
        '<pre><a class="api-link" href="#g" title="fab'
    """

    def link(chain: re.Match[str]) -> str:
        words = chain[0].split(_DOT)
        names = [re.sub("<[^>]*>", "", word) for word in words]
        if names[0] not in meaning:
            return chain[0]
        for end in range(len(words), 0, -1):
            name = ".".join([meaning[names[0]], *names[1:end]])
            if (address := find(name)) is not None:
                shown = f'<a class="api-link" href="{address}" title="{name}">'
                return _DOT.join([f"{shown}{_DOT.join(words[:end])}</a>", *words[end:]])
        return chain[0]

    return _CHAIN.sub(link, block)


def _code(text: str) -> str:
    """Return a cell as it is, of an example with prompts what was typed."""
    typed = _PROMPT.findall(text)
    return "\n".join(typed) if typed else text


def _link(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if doctree is None or "body" not in context:
        return
    known = app.env.domains["py"].data["objects"]
    blocks = doctree.findall(lambda n: isinstance(n, (nodes.literal_block, nodes.doctest_block)))
    meaning = imported(_code(block.astext()) for block in blocks)

    def find(name: str) -> str | None:
        root, _, rest = name.partition(".")
        for each in (name, f"{root}.{rest.rpartition('.')[2]}"):  # as imported, or from the root
            found = known.get(each)
            if found is not None and found.objtype in _LINKED:
                where = app.builder.get_relative_uri(page, found.docname)
                return f"{where}#{found.node_id}"
        return None

    if meaning:
        context["body"] = _BLOCK.sub(lambda b: linked(b[0], meaning, find), context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Link the code of every page when it is written."""
    app.connect("html-page-context", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
