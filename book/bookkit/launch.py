"""Sphinx extension: a page's way out of the site, in the theme's row of buttons.

A notebook's page offers its plain notebook (`bookkit.export`) for download. Where the address of
the repository is known when the site is built, it offers it in Colab and Binder too, and every
page links its repository, the page that changes it and the one that opens an issue.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sphinx.application import Sphinx

from bookkit import address, export, notebooks, sphinx

PLAIN = "plain"  # folder of the plain notebooks, in that of the runs
LOGOS = "_static/images/logo_"
LOGO = {"Colab": "colab.png", "Binder": "binder.svg"}


def _write(app: Sphinx, config: Any) -> None:
    """Make the plain notebooks, before pages that link them are read."""
    import nbformat

    book: sphinx.Book = vars(app)["bookkit"]
    sources = {path.with_suffix(""): path for path in notebooks.sources(book.root)}
    files = {}
    for name in book.names:
        path = sources[book.root / "notebooks" / name]
        source = notebooks.Notebook(name, path, book.title(name), {})
        page = export.Page(book.root, book.out, source, home=book.home)
        files[f"{name}.ipynb"] = f"{nbformat.writes(page.notebook())}\n".encode()
    sphinx.place(book.out / PLAIN, files)


def _target(book: sphinx.Book, name: str) -> str:
    """A plain notebook as Sphinx names what is downloaded: relative to the pages' folder."""
    return os.path.normpath(book.download(name).lstrip("/"))


def _offer(app: Sphinx, env: Any) -> list[str]:
    """Have the plain notebooks copied into the site, whether a page's text links its own or not."""
    book: sphinx.Book = vars(app)["bookkit"]
    for name in book.names:
        env.dlfiles.add_file(f"notebooks/{name}", _target(book, name))
    return []


def _button(text: str, url: str, icon: str, tooltip: str, label: str) -> dict[str, str]:
    kind = {"type": "link", "label": label, "text": text, "tooltip": tooltip}
    return kind | {"url": url, "icon": icon}


def _group(tooltip: str, icon: str, label: str, buttons: list[Any]) -> list[dict[str, Any]]:
    group = {"type": "group", "tooltip": tooltip, "icon": icon, "label": label}
    return [group | {"buttons": buttons}] if buttons else []


def _launching(places: Mapping[str, str]) -> list[dict[str, str]]:
    """Buttons that run a notebook in a reader's browser."""
    return [
        _button(place, url, f"{LOGOS}{LOGO[place]}", f"Launch on {place}", f"launch-{place}")
        for place, url in places.items()
    ]


def _linking(home: address.Address, source: str, pagename: str) -> list[dict[str, str]]:
    """The repository, and what a reader can do there about a page."""
    icon = "fab fa-github" if home.kind == "github" else "fas fa-code"
    links = [
        ("Repository", home.url, icon, "The repository of this book", "source-repository-button"),
        ("Suggest edit", home.edit(source), "fas fa-pencil", "Change it", "source-edit-button"),
        (
            "Open issue",
            home.issue(f"Page {pagename}"),
            "fas fa-lightbulb",
            "Report what is wrong on this page",
            "source-issues-button",
        ),
    ]
    return [
        _button(text, url, icon, tooltip, label) for text, url, icon, tooltip, label in links if url
    ]


def _buttons(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Put a page's buttons before those of the theme, and its plain notebook into its download."""
    if doctree is None or "header_buttons" not in context:
        return
    book: sphinx.Book = vars(app)["bookkit"]
    home = book.home
    name = pagename.removeprefix("notebooks/")
    buttons: list[dict[str, Any]] = context["header_buttons"]
    source = f"book/{pagename}.md"
    if name in book.names:
        source = f"notebooks/{name}.md"
        _, file = app.env.dlfiles[_target(book, name)]
        for button in (b for group in buttons for b in group.get("buttons", ())):
            if button["label"] == "download-source-button":
                button["url"] = context["pathto"](f"_downloads/{file}", 1)
                button["tooltip"] = "Download the notebook"
    if home is None:
        return
    launch = _launching(book.launch(name)) if name in book.names else []
    links = _linking(home, source, pagename) if (book.root / source).is_file() else []
    context["header_buttons"][:0] = [
        *_group("Run this page", "fas fa-rocket", "launch-buttons", launch),
        *_group("Source repository", "fas fa-code", "source-buttons", links),
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the plain notebooks once the book is open, and buttons once the theme has made its."""
    app.connect("config-inited", _write, priority=600)
    app.connect("env-updated", _offer)
    app.connect("html-page-context", _buttons, priority=600)
    return {"parallel_read_safe": True, "version": "1"}
