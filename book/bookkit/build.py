"""Building the site: what `jupyter-book build book/` does, with strict checks, and put in place.

`build` runs Jupyter Book with warnings as errors, checks links and pages of the outcome, and only
then exchanges it for the site that was there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from bookkit import claims, notebooks, web
from bookkit.files import alone
from bookkit.sphinx import Book, BookError, toc_pages


def build(
    root: str | Path, out: str | Path = "_build", *, preset: str = "quick", strict: bool = True
) -> Path:
    """Build the site from executed notebooks and results, and put it at `<out>/html`.

    Args:
        root: the repository.
        out: folder of runs and site, relative to `root` unless absolute.
        preset: whose executed notebooks become the pages.
        strict: whether warnings of Jupyter Book or of a notebook's cells, and broken internal
            links, are errors.

    Returns:
        The site's folder.

    Raises:
        BookError: naming what is missing or wrong, with Jupyter Book's own words.
    """
    root = Path(root).resolve()
    if root == claims.PACKAGED:
        raise BookError("the site is built in a clone of the repository; change into one")
    out = root / out
    work, site = out / "book_work", out / "html"
    book = Book(root, out, preset)  # what is missing is named before work starts
    said = [
        f"{name}: {line}"
        for name in book.names
        for line in notebooks.warnings(book.notebook(name)["cells"])
    ]
    if strict and said:
        raise BookError("notebooks with warnings:\n" + "\n".join(said))
    with (
        alone(root / "book" / "_build" / "site.lock", f"build of {root}"),  # its pages lie there
        alone(out / ".work" / "site.lock", f"build in {out}"),
        tempfile.TemporaryDirectory(dir=out / ".work", prefix="site-") as scratch,
    ):
        # of a build that knew the site's address
        (work / "_build" / "html" / "sitemap.xml").unlink(missing_ok=True)
        _jupyter_book(
            root / "book", work, {"FABOOK_OUT": str(out), "FABOOK_PRESET": preset}, strict
        )
        fresh = Path(scratch) / "new"
        shutil.copytree(work / "_build" / "html", fresh)
        _check_site(fresh, toc_pages(root), strict=strict)
        if site.exists():
            site.rename(Path(scratch) / "old")
        fresh.rename(site)
    return site


def _jupyter_book(source: Path, work: Path, runs: dict[str, str], strict: bool) -> None:
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    command += [str(source), "--path-output", str(work), "-n", "--keep-going"]
    environment = {**os.environ, **runs, "JUPYTER_PLATFORM_DIRS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command + ["-W"] * strict,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if done.returncode or not (work / "_build" / "html" / "index.html").is_file():
        shutil.rmtree(work, ignore_errors=True)  # its cache would hide the warnings next time
        tail = "\n".join(done.stdout.splitlines()[-20:])
        said = re.sub(r"\x1b\[[0-9;]*m", "", f"{tail}\n{done.stderr}")  # colours
        raise BookError(f"Jupyter Book failed:\n{said}".rstrip())


def _check_site(html: Path, pages: Iterable[str], *, strict: bool) -> None:
    expected = ["index.html", "search.html", "404.html", *(f"{page}.html" for page in pages)]
    problems = [f"{name}: not built" for name in expected if not (html / name).is_file()]
    if strict:
        problems += check_links(html, web.prefix(os.environ))
    if problems:
        raise BookError("the site is not sound:\n" + "\n".join(problems))


class _Links(HTMLParser):
    """Anchors that a page offers, links it makes, and what it loads from elsewhere."""

    LOADS = ("script", "img", "iframe", "source", "video", "audio", "embed")
    LOADED_LINKS = ("stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attrs if value}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        target = values.get("src") or values.get("href")
        if target is None:
            return
        self.targets.append(target)
        kinds = values.get("rel", "").split()
        if tag in self.LOADS or (tag == "link" and set(kinds) & set(self.LOADED_LINKS)):
            self.loaded.append(target)


def check_links(html_dir: str | Path, prefix: str = "/") -> list[str]:
    """Internal links and anchors that lead nowhere, and anything a page loads from another host.

    Args:
        html_dir: a built site.
        prefix: the path at which it stands on its host.

    Returns:
        One line for each problem; none for a sound site.
    """
    html = Path(html_dir).resolve()
    pages = {
        path: _Links(path.read_text(encoding="utf-8"))
        for path in sorted(html.rglob("*.html"))
        if "_static" not in path.relative_to(html).parts
    }
    problems = []
    for path, page in pages.items():
        name = path.relative_to(html).as_posix()
        foreign = [t for t in page.loaded if urlparse(t).netloc]
        problems += [f"{name}: loads {target} from another host" for target in foreign]
        for target in dict.fromkeys(page.targets):
            parsed = urlparse(target)
            if parsed.scheme or parsed.netloc:
                continue
            link, anchor = urldefrag(target)
            place = unquote(urlparse(link).path)
            within = html if place.startswith(prefix) else path.parent
            file = (within / place.removeprefix(prefix)).resolve() if link else path
            if not file.exists():
                problems.append(f"{name}: {target} leads to no file")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                problems.append(f"{name}: {target} leads to no anchor")
    return problems
