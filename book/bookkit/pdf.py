"""The book as one PDF: the built site's pages in reading order, printed by a headless Chromium.

One document is made of all pages, so that a link from one page to another becomes a link within
the PDF. It is printed twice: the second time the contents know the page numbers of the first.
"""

from __future__ import annotations

import base64
import io
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlparse

from bookkit import browser, sphinx, web
from bookkit.files import write

ADDRESS = "/fabook-print.html"
# What a reader of paper has no use for: folded code, controls, and what repeats on every page.
DROPPED = (
    "script, link, iframe, button, a.headerlink, details.hide, .cell_input.tag_hide-input, "
    ".cite-box, .how-made-box, .figure-data, .buttons, .explorable-begin, .explorable-controls, "
    ".chip:has(.download), .toctree-wrapper"
)
REPEATED = ".claims-box"  # in a chapter, what the pages of its notebooks say
INCHES = {"paperWidth": 8.27, "paperHeight": 11.69, "marginTop": 0.75, "marginBottom": 0.8}
INCHES |= {"marginLeft": 0.85, "marginRight": 0.85}
PIXELS = round(96 * (INCHES["paperWidth"] - INCHES["marginLeft"] - INCHES["marginRight"]))
FOOTER = (
    '<div style="width: 100%; text-align: center; font: 9px sans-serif; color: #555">'
    '<span class="pageNumber"></span></div>'
)
# Formulas are drawn before the page is printed; one wider than the page is drawn smaller. What is
# short stays in one piece.
READY = """
const done = arguments[0];
const drawn = window.MathJax?.startup?.promise ?? Promise.resolve();
drawn.then(() => document.fonts.ready).then(() => {
  for (const formula of document.querySelectorAll("mjx-container[display]")) {
    const room = formula.clientWidth;
    if (room && formula.scrollWidth > room + 1) {
      const size = parseFloat(getComputedStyle(formula).fontSize);
      formula.style.fontSize = `${(size * room) / formula.scrollWidth - 0.1}px`;
    }
  }
  for (const box of document.querySelectorAll(".cell_input, .cell_output, div.admonition"))
    if (box.offsetHeight < 250) box.style.breakInside = "avoid";
  const pictures = [...document.images].map((i) => i.decode().catch(() => null));
  Promise.all(pictures).then(() => done());
});
"""
NUMBER = """
for (const [key, page] of Object.entries(arguments[0]))
  document.querySelector(`.book-contents [data-page="${key}"]`).textContent = page;
"""


@dataclass
class Entry:
    """One line of the contents: a part, or a page of the site with its anchor."""

    title: str
    level: int
    page: str = ""  # address of the page within the site; empty for a part
    key: str = ""  # anchor of the page in the document


def entries(root: Path) -> list[Entry]:
    """The contents of the book; titles of pages are still those of `book/_toc.yml`."""
    found = [
        Entry(title, level, f"{page}.html" if page else "")
        for level, title, page in sphinx.contents(root)
    ]
    for number, entry in enumerate(entry for entry in found if entry.page):
        entry.key = f"p{number}"
    return found


class Document:
    """The site's pages as one document."""

    def __init__(self, html: Path, contents: list[Entry]) -> None:
        self.html, self.contents = html, contents
        self.keys = {entry.page: entry.key for entry in contents if entry.page}

    def text(self, root: Path) -> str:
        """The document; the titles of the contents become those of the pages."""
        import yaml

        citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        bodies = {entry.key: self._body(entry) for entry in self.contents if entry.page}
        first = (self.html / self.contents[0].page).read_text(encoding="utf-8")
        return sphinx.render(
            "pdf.html",
            contents=self.contents,
            bodies=bodies,
            sheets=self._sheets(first),
            mathjax=self._mathjax(),
            citation=citation,
            authors=", ".join(author.get("name", "") for author in citation["authors"]),
            url=web.site_url(os.environ),
        )

    def _sheets(self, text: str) -> list[str]:
        soup = _soup(text)
        return [str(link["href"]) for link in soup.select("link[rel=stylesheet]")]

    def _mathjax(self) -> str:
        """What a page with formulas says to MathJax, and the address of its program."""
        for page in self.keys:
            scripts = _soup((self.html / page).read_text(encoding="utf-8")).select("script")
            if any("mathjax/" in str(script.get("src", "")) for script in scripts):
                says = next(s for s in scripts if "window.MathJax" in (s.string or ""))
                return str(says)
        return ""

    def _body(self, entry: Entry) -> str:
        soup = _soup((self.html / entry.page).read_text(encoding="utf-8"))
        article = soup.select_one("article.bd-article")
        heading = article and article.select_one("h1")
        if article is None or heading is None:
            raise sphinx.BookError(f"{entry.page} has no article with a title")
        chapter = entry.page.startswith("chapters/")
        for element in article.select(f"{DROPPED}, {REPEATED}" if chapter else DROPPED):
            element.decompose()
        entry.title = entry.title or heading.get_text().strip()
        for tabs in article.select(".sd-tab-set"):  # the first one: the paper's scale
            tabs.replace_with(*tabs.select_one(".sd-tab-content").contents)
        for fold in article.select("details"):
            fold["open"] = ""
        self._solutions(soup, article)
        self._addresses(article, entry)
        return str(article.decode_contents())

    def _solutions(self, soup: Any, article: Any) -> None:
        """Solutions stand at the end of their page."""
        found = article.select(".solution")
        if not found:
            return
        end = soup.new_tag("section", attrs={"class": "solutions"})
        end.append(soup.new_tag("h2", string="Solutions"))
        article.append(end)
        for solution in found:
            solution["class"] = [c for c in solution["class"] if c not in ("dropdown", "toggle")]
            end.append(solution.extract())

    def _addresses(self, article: Any, entry: Entry) -> None:
        """Anchors that differ from page to page, and links to them; other links as on the web."""
        for element in article.select("[id]"):
            if element.name != "svg" and not element.find_parent("svg"):
                element["id"] = f"{entry.key}-{element['id']}"
        for picture in article.select("[src]"):
            picture["src"] = posixpath.normpath(_join(entry.page, picture["src"]))
            del picture["loading"]
        site = web.site_url(os.environ)
        for link in article.select("a[href]"):
            target = str(link["href"])
            if urlparse(target).scheme:
                continue
            place, anchor = urldefrag(target)
            page = _join(entry.page, place) if place else entry.page
            key = self.keys.get(page)
            if key:
                link["href"] = f"#{key}-{anchor}" if anchor else f"#{key}"
            elif site:
                link["href"] = urljoin(site, page)
            else:
                link.unwrap()


def _soup(text: str) -> Any:
    from bs4 import BeautifulSoup

    return BeautifulSoup(text, "html.parser")


def _join(page: str, target: str) -> str:
    """An address within the site, of a link on a page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


# --- printing ------------------------------------------------------------------------------------


def make(root: Path, html: Path, target: Path) -> int:
    """Print the built site into one PDF with contents, page numbers and an outline.

    Args:
        root: the repository.
        html: the built site.
        target: the file; written under a temporary name first.

    Returns:
        The number of pages.

    Raises:
        BookError: if there is no site.
        FileNotFoundError: if there is no Chromium with its driver.
    """
    if not (html / "index.html").is_file():
        raise sphinx.BookError(f"no site in {html}: run: fabook build")
    contents = entries(root)
    text = Document(html, contents).text(root)
    with browser.served(html, {ADDRESS: text}) as address, browser.opened() as window:
        emulated = {"width": PIXELS, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulated)
        window.get(address + ADDRESS)
        window.execute_async_script(READY)
        pages: dict[str, int] = {}
        for _ in range(4):  # numbers do not move lines: twice is enough
            printed = _print(window)
            found = _pages(printed, contents)
            if found == pages:
                break
            window.execute_script(NUMBER, pages := found)
        else:
            raise sphinx.BookError("the page numbers of the contents do not settle")
    return _finish(printed, contents, pages, target)


def _print(window: Any) -> bytes:
    options = {"displayHeaderFooter": True, "headerTemplate": "<span></span>"}
    options |= {"footerTemplate": FOOTER, "printBackground": True, "generateTaggedPDF": True}
    return base64.b64decode(window.execute_cdp_cmd("Page.printToPDF", options | INCHES)["data"])


def _pages(printed: bytes, contents: list[Entry]) -> dict[str, int]:
    """On which page, counted from 1, each page of the site begins."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(printed))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    numbers = {}
    for entry in contents:
        if entry.page:
            number = reader.get_destination_page_number(places[entry.key])
            numbers[entry.key] = int(number or 0) + 1
    return numbers


def _finish(printed: bytes, contents: list[Entry], pages: dict[str, int], target: Path) -> int:
    """Outline and title, then the file in its place."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(printed)))
    above: list[Any] = []
    following = [*contents[1:], None]
    for entry, after in zip(contents, following):
        page = pages[entry.key if entry.page else after.key if after else contents[0].key]
        parent = above[entry.level - 1] if entry.level else None
        del above[entry.level :]
        above.append(
            writer.add_outline_item(title=entry.title, page_number=page - 1, parent=parent)
        )
    writer.add_metadata({"/Title": contents[0].title})
    made = io.BytesIO()
    writer.write(made)
    write(target, made.getvalue())
    return len(writer.pages)
