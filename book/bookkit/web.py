"""Sphinx extension: what the web expects of a site.

Every page has a description; there is a page for addresses that lead nowhere, and nothing for
Jekyll to do. Where the address of the site is known when it is built, pages name it and the
picture to show beside a link to them (Open Graph), and a sitemap lists them. Where a file of
versions is given (`FABOOK_VERSIONS`), the foot of each page links them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from docutils import nodes
from sphinx.application import Sphinx

from bookkit import address, images, sphinx

SOCIAL = "_static/social"  # pictures beside links to pages
CARD = (1200, 630)  # what Open Graph asks for
LONGEST = 300  # characters of a description
UNLISTED = ("404", "genindex", "py-modindex", "search")  # no pages to find


def site_url(environment: Mapping[str, str]) -> str:
    """The site's address with a slash at its end; empty where none is known.

    It is `FABOOK_URL`, else what GitHub Pages gives the repository that `GITHUB_REPOSITORY` names.

    Raises:
        BookError: for a `FABOOK_URL` that is no address.

    Example:
        >>> site_url({"GITHUB_REPOSITORY": "Ada/book"})
        'https://ada.github.io/book/'
    """
    given = environment.get("FABOOK_URL", "").strip()
    if given:
        parts = urlparse(given)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise sphinx.BookError(f"FABOOK_URL must be an http(s) address, got {given!r}")
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"
    home = address.of_workflow(environment)
    if home is None or home.server != "https://github.com":
        return ""
    owner, _, name = home.name.partition("/")
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def prefix(environment: Mapping[str, str]) -> str:
    """The path at which the site stands on its host: `"/"`, or `"/book/"`."""
    return urlparse(site_url(environment)).path or "/"


def versions(path: Path, here: str) -> list[dict[str, Any]]:
    """Versions of the site that a page links, from a JSON list of objects with `name` and `url`.

    Args:
        path: the file.
        here: the address of the site that is being built, which is marked as the current one.

    Raises:
        BookError: for a file that is no such list.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [{"name": str(row["name"]), "url": str(row["url"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise sphinx.BookError(
            f"FABOOK_VERSIONS={str(path)!r} is no JSON list of names and urls: {error!r}"
        ) from error
    return [row | {"current": row["url"].rstrip("/") == here.rstrip("/")} for row in found]


def description(document: nodes.document) -> str:
    """What a page says of itself: its lead, else its first paragraph; at most 300 characters."""
    leads = (n for n in document.findall(nodes.container) if "lead" in n["classes"])
    opening = next(leads, None) or next(document.findall(nodes.paragraph), None)
    text = " ".join(opening.astext().split()) if opening is not None else ""
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:.") + "…"


def card(picture: Any) -> bytes:
    """A figure on the white ground that Open Graph asks for, as PNG."""
    from PIL import Image

    width, height = (round(0.94 * side) for side in CARD)
    scale = min(width / picture.width, height / picture.height)
    size = (round(scale * picture.width), round(scale * picture.height))
    ground = Image.new("RGB", CARD, "white")
    ground.paste(
        picture.resize(size, Image.Resampling.LANCZOS),
        tuple((whole - part) // 2 for whole, part in zip(CARD, size)),
    )
    return images.png(ground)


def _shown(book: sphinx.Book, docname: str) -> str:
    """The notebook whose figure stands for a page; empty for the book's own."""
    about = book.about(docname)
    names = book.pages(about) if about else []
    return names[0] if names and docname.split("/")[0] in ("notebooks", "chapters") else ""


def _describe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """The description, and what `sphinxext.opengraph` is to say instead of its own guesses."""
    if doctree is None:
        return
    text = description(doctree)
    context["metatags"] += f'<meta name="description" content="{escape(text)}" />\n'
    if not app.config.html_baseurl:
        return
    name = _shown(vars(app)["bookkit"], pagename)
    title = escape(app.env.titles[pagename].astext(), quote=False)
    pictures = f"{app.config.html_baseurl}{SOCIAL}"
    context["meta"] = {
        **(context["meta"] or {}),
        "og:description": escape(text, quote=False),
        "og:image": f"{pictures}/{name or 'book'}.png",
        "og:image:alt": f"A figure of {title}" if name else app.config.html_title,
    }


def _configure(app: Sphinx, config: Any) -> None:
    """What the extensions ask for, known only when the site is built."""
    url, path = site_url(os.environ), prefix(os.environ)
    config.html_baseurl = config.ogp_site_url = url
    config.ogp_site_name = config.html_title
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = [f"{name}.html" for name in UNLISTED]
    config.notfound_urls_prefix = path
    body = sphinx.render("not-found.html", prefix=path)
    if listed := os.environ.get("FABOOK_VERSIONS"):
        rows = versions(Path(listed), url)
        options = config.html_theme_options
        footer = options.get("extra_footer", "") + sphinx.render("versions.html", versions=rows)
        config.html_theme_options = {**options, "extra_footer": footer}
    config.notfound_context = {"title": "No such page", "body": body}


def _cards(app: Sphinx, error: Exception | None) -> None:
    """The pictures beside links to pages."""
    if error or app.builder.format != "html" or not app.config.html_baseurl:
        return
    book: sphinx.Book = vars(app)["bookkit"]
    folder = Path(app.outdir) / SOCIAL
    overview = book.root / "book" / "_static" / "overview.png"
    pictures = {"book": images.on_white(overview.read_bytes())}
    pictures |= {name: book.hero(name) for name in book.names}
    sphinx.place(folder, {f"{name}.png": card(shown) for name, shown in pictures.items()})


def _front(app: Sphinx, error: Exception | None) -> None:
    """The site's own address says what its first page says: no crawler follows a refresh."""
    index = Path(app.outdir) / "index.html"
    if error or app.builder.format != "html" or not index.is_file():
        return
    refresh = r'<meta http-equiv="Refresh" content="0; url=(\S+)" />'
    first = re.search(refresh, index.read_text(encoding="utf-8"))
    if first is None:  # it is a page of its own
        return
    page = (index.parent / first[1]).read_text(encoding="utf-8")
    kept = r'<title>.*?</title>|<meta (?:name="desc|property="og:)[^>]*>|<link rel="canon[^>]*>'
    head = "\n".join(re.findall(kept, page, re.DOTALL))
    lines = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        head,
        first[0],
        "</html>\n",
    ]
    index.write_text("\n".join(lines), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Load the extensions that the site's address allows, and tell them what they need."""
    addressed = ["sphinxext.opengraph", "sphinx_sitemap"] if site_url(os.environ) else []
    for name in ("sphinx.ext.githubpages", "notfound.extension", *addressed):
        app.setup_extension(name)
    app.connect("config-inited", _configure, priority=100)
    app.connect("html-page-context", _describe, priority=100)
    app.connect("build-finished", _cards)
    app.connect("build-finished", _front)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
