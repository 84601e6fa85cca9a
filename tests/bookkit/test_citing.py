"""BibTeX of the book and of a page's works."""

from __future__ import annotations

from pathlib import Path

from bookkit import citing

ROOT = Path(__file__).resolve().parents[2]


def test_the_books_entry_has_what_its_citation_says() -> None:
    entry = citing.of_book(ROOT / "CITATION.cff", "https://example.org/book")
    assert entry.startswith("@misc{fabook,")
    assert entry.endswith("}")
    assert "title" in entry
    assert "{https://example.org/book}" in entry


def test_a_book_without_a_citation_has_no_entry(tmp_path: Path) -> None:
    assert citing.of_book(tmp_path / "CITATION.cff") == ""


def test_a_person_and_a_group(tmp_path: Path) -> None:
    file = tmp_path / "CITATION.cff"
    file.write_text(
        "title: A book\nauthors:\n"
        "- {family-names: Doe, given-names: Jane}\n- {name: The group}\nversion: 1\n"
    )
    assert "{Doe, Jane and {The group}}" in citing.of_book(file)


def test_works_in_the_order_in_which_they_are_cited() -> None:
    assert citing.cited("{cite:t}`b` and {cite:p}`a,b`") == ["b", "a"]
