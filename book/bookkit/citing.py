"""BibTeX of a page: the works that it is about, and the book."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any


@functools.lru_cache(maxsize=4)
def entries(path: Path) -> Any:
    """The entries of a BibTeX file by key, as pybtex reads them; none if there is no file."""
    from pybtex.database import BibliographyData, parse_file

    return (parse_file(str(path)) if path.is_file() else BibliographyData()).entries


def bibtex(entry: Any) -> str:
    """An entry as BibTeX."""
    return str(entry.to_string("bibtex")).strip()


def of_book(citation: Path, url: str = "") -> str:
    """The book's own entry, from the preferred citation of its `CITATION.cff`.

    Args:
        citation: the file; empty text if there is none.
        url: the address of the site, if it has one.
    """
    import yaml

    if not citation.is_file():
        return ""
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
