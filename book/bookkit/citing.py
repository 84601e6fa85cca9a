"""BibTeX of a page: the works that it is about, and the book."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def entries(path: Path) -> dict[str, str]:
    """The entries of a BibTeX file as they are written, by key; each ends with a `}` on a line."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.DOTALL | re.MULTILINE)
    return {match[1]: match[0] for match in found}


def of_book(citation: Path, url: str = "") -> str:
    """The book's own entry, from the preferred citation of its `CITATION.cff`.

    Args:
        citation: the file.
        url: the address of the site, if it has one.
    """
    import yaml

    whole: dict[str, Any] = yaml.safe_load(citation.read_text(encoding="utf-8"))
    work = whole | whole.get("preferred-citation", {})
    fields = {
        "author": " and ".join(map(_person, work["authors"])),
        "title": f"{{{work['title']}}}",
        "year": work.get("year"),
        "version": work.get("version"),
        "doi": work.get("doi"),
        "url": url or work.get("url"),
    }
    width = max(map(len, fields))
    lines = [f"  {key:<{width}} = {{{value}}},\n" for key, value in fields.items() if value]
    return f"@misc{{fabook,\n{''.join(lines)}}}"


def _person(author: dict[str, str]) -> str:
    if "name" in author:  # a group: braces keep it in one piece
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"


def cited(text: str) -> list[str]:
    """The keys that a page's Markdown cites, in their order.

    Example:
        >>> cited("As in {cite:t}`nokland2016` and {cite:p}`liao2016,nokland2016`.")
        ['nokland2016', 'liao2016']
    """
    keys = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
    return list(dict.fromkeys(key.strip() for some in keys for key in some.split(",")))
