"""Sphinx extension for the library's pages: autodoc, with `$...$` in docstrings as formulas."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

DISPLAY = re.compile(r"^( *)\$\$ (.+?) \$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$([^$`]+)\$")
CODE = re.compile(r"(``.+?``|^ *>>> .*$)", re.MULTILINE)


def formulas(text: str) -> str:
    r"""Turn `$...$` and blocks of `$$ ... $$` into the roles and directives of Sphinx.

    Example:
        >>> formulas("the cosine $a \\cdot b$, not ``$HOME``")
        'the cosine :math:`a \\cdot b`, not ``$HOME``'
    """

    def display(found: re.Match[str]) -> str:
        margin, body = found.groups()
        lines = "\n".join(f"{margin}   {line.strip()}" for line in body.splitlines())
        return f"{margin}.. math::\n\n{lines}\n"

    parts = CODE.split(DISPLAY.sub(display, text))
    parts[::2] = [INLINE.sub(r":math:`\1`", part) for part in parts[::2]]
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = formulas("\n".join(lines)).splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.connect("autodoc-process-docstring", process, priority=400)  # napoleon comes after
    return {"parallel_read_safe": True, "parallel_write_safe": True}
