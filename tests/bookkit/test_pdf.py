"""A tiny site, printed: contents with page numbers, an outline, links within the PDF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from bookkit import pdf, sphinx

TOC = """
root: intro
parts:
  - caption: The papers
    chapters:
      - file: chapters/toy
        title: Toy 1999
        sections:
          - file: notebooks/toy/one
"""
CITATION = """
title: "toy"
authors: [{name: Ada}]
version: "1.2"
preferred-citation: {title: "All toys"}
"""
PAGES = {
    "intro": '<h1 id="a">Toys</h1><p>See <a href="notebooks/toy/one.html#b">one</a>.</p>',
    "chapters/toy": '<h1>Chapter</h1><details class="claims-box"><p>TABLE</p></details>'
    + "<p>Long.</p>" * 120,
    "notebooks/toy/one": """<h1>One<a class="headerlink" href="#b">#</a></h1>
<p>Formula: \\(x_1\\)</p><p id="b">Back to <a href="../../intro.html">toys</a>,
<a href="../../data/a.csv">numbers</a>.</p>
<div class="sd-tab-set"><input checked><label>Paper</label><div class="sd-tab-content">AT SCALE
</div><input><label>Quick</label><div class="sd-tab-content">IN SECONDS</div></div>
<div class="solution dropdown admonition"><p>ANSWER</p></div>
<details><summary>Why</summary><p>BECAUSE</p></details>
<details class="hide"><summary>Code</summary><p>FOLDED</p></details><p>END</p>""",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("FABOOK_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text(CITATION, encoding="utf-8")
    pages = {name: f'<article class="bd-article">{body}</article>' for name, body in PAGES.items()}
    for name, text in {**pages, "index": ""}.items():
        target = tmp_path / "html" / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_site_becomes_one_pdf(root: Path) -> None:
    from pypdf import PdfReader

    target = root / "made" / "book.pdf"
    count = pdf.make(root, root / "html", target)
    assert list(target.parent.iterdir()) == [target]
    reader = PdfReader(target)
    texts = [page.extract_text() for page in reader.pages]
    assert len(texts) == count
    assert "All toys" in texts[0]
    assert "Version 1.2" in texts[0]
    first, part, (chapter, (page,)) = cast(Any, reader.outline)
    titles = [item.title for item in (first, part, chapter, page)]
    assert titles == ["Toys", "The papers", "Toy 1999", "One"]
    begins = {
        title: next(i for i, text in enumerate(texts) if i > 1 and text.lstrip().startswith(head))
        for title, head in {"Toys": "Toys", "Toy 1999": "Chapter", "One": "One"}.items()
    }
    assert begins["One"] > begins["Toy 1999"] + 1, "the chapter takes more than a page"
    for title, page in begins.items():
        assert re.search(rf"{title}\s*{page + 1}\b", texts[1]), title
    assert all(text.rstrip().endswith(str(i)) for i, text in enumerate(texts, start=1))
    last = texts[begins["One"]]
    assert "AT SCALE" in last
    assert "BECAUSE" in last
    assert last.index("END") < last.index("Solutions") < last.index("ANSWER")
    assert not re.search("IN SECONDS|FOLDED|TABLE|#", "".join(texts[2:]))


def test_links_between_pages_stay_in_the_pdf(root: Path) -> None:
    document = pdf.Document(root / "html", pdf.entries(root))
    text = document.text(root)
    assert '<a href="#p2-b">one</a>' in text
    assert '<p id="p2-b">' in text
    assert '<a href="#p0">toys</a>' in text
    assert 'data/a.csv"' not in text


def test_what_is_missing_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sphinx.BookError, match="run: fabook build"):
        pdf.make(root, root / "nowhere", root / "book.pdf")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="needs chromium and chromedriver"):
        pdf.make(root, root / "html", root / "book.pdf")
