"""Sphinx extension: under each figure of a notebook, the numbers that it was drawn from.

Each table of a results file becomes a CSV file of the site, `data/<preset>/<notebook>/<table>.csv`,
one row for each combination of its axes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

if TYPE_CHECKING:
    from bookkit.sphinx import Book


def csv(table: Mapping[str, Any]) -> str:
    """A table of a results file as CSV text: its axes, then its arrays; empty for no value.

    Example:
        >>> print(csv({"coords": {"t": {"dims": ["t"], "values": [0, 1]}},
        ...            "data_vars": {"loss": {"dims": ["t"], "values": [0.5, None]}}}), end="")
        t,loss
        0,0.5
        1,
    """
    from bookkit import record

    (data,) = record.decode({"table": table}).values()
    if not data.sizes:  # numbers without axes: one row
        return str(data.expand_dims("row").to_dataframe().to_csv(index=False, lineterminator="\n"))
    return str(data.to_dataframe().to_csv(lineterminator="\n"))


def slug(label: str) -> str:
    """A table's name as that of a file.

    Example:
        >>> slug("weak: population, Gaussian")
        'weak-population-Gaussian'
    """
    return re.sub(r"[^\w.]+", "-", label).strip("-")


def address(notebook: str, preset: str, label: str) -> str:
    """Address of a table within the site."""
    return f"data/{preset}/{notebook}/{slug(label)}.csv"


def files(book: Book) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Address and content of every table of the results that the site is made of."""
    for name in book.names:
        for preset, run in book.done(name).items():
            for label, table in run["data"].items():
                yield address(name, preset, label), table


def links(book: Book, docname: str, preset: str, labels: Iterable[str] | None) -> nodes.paragraph:
    """A line of links to tables of a notebook's results and to the results file.

    Args:
        book: the book.
        docname: the notebook's page.
        preset: whose results.
        labels: the tables; None if it is not known which were drawn, so that all are listed.
    """
    name = book.about(docname)
    known = book.done(name)[preset]["data"]
    line = nodes.paragraph("", "Data: " if labels else "Data of this page: ")
    line["classes"] += ["figure-data"]
    shown = sorted(known.keys() & set(labels)) if labels else list(known)
    for number, label in enumerate(shown):
        uri = "../" * docname.count("/") + address(name, preset, label)
        line += nodes.Text(", " if number else "")
        line += nodes.reference("", label, refuri=uri, internal=True)
    line += nodes.Text(" as CSV; " if shown else "")
    target = book.download(name, preset)
    file = addnodes.download_reference("", "", reftarget=target, refdoc=docname)
    line += [file, nodes.Text(" (JSON)")]
    file += nodes.inline("", f"results, {preset} preset")
    return line


class Unlinked(SphinxTransform):
    """A figure that a cell shows by itself: which tables it drew is not known."""

    default_priority = 310

    def apply(self, **options: Any) -> None:
        book: Book = vars(self.app)["bookkit"]
        docname = self.env.docname
        if book.about(docname) not in book.names:
            return
        runs = book.done(book.about(docname))
        for figure in self.document.findall(nodes.figure):
            if "result-figure" not in figure["classes"]:
                figure += nodes.legend("", links(book, docname, next(reversed(runs)), None))


def _write(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    from bookkit.sphinx import place

    book: Book = vars(app)["bookkit"]
    made = {name: csv(table).encode() for name, table in files(book)}
    place(Path(app.outdir) / "data", {n.removeprefix("data/"): t for n, t in made.items()})


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what adds the links, and what writes the files."""
    app.add_transform(Unlinked)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
