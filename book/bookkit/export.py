"""Plain notebooks: each source as an `.ipynb` that any Jupyter shows well, without this book.

The prose is plain Markdown (`bookkit.plain`), the first cell installs what is missing, and cells
that are folded on the page are folded here. Numbers and figures are those of the executed copy,
which shows the committed results of the paper preset where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bookkit import address, claims, notebooks, parameters, plain
from bookkit.files import digest, write
from bookkit.notebooks import Notebook
from bookkit.parameters import UsageError

NEEDED = ("bookkit", "jupytext", "matplotlib", "pooch", "seaborn", "sklearn", "xarray")
WRITTEN = "Written by fabook export; changes belong into the book's repository."
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def export(
    root: Path,
    out: Path,
    to: Path,
    names: Sequence[str] = (),
    *,
    solutions: bool = True,
    publish: bool = False,
) -> dict[Path, bool]:
    """Write plain notebooks as `<to>/<paper>/<notebook>.ipynb`, each under a temporary name first.

    Args:
        root: the repository, or the installed book.
        out: folder of runs, which has the executed copies.
        names: notebooks as `fabook run` takes them; none for all.
        solutions: with the solutions of the exercises, or without.
        publish: with what a branch needs that Colab and Binder open: a list of the notebooks,
            and the environment of Binder.

    Returns:
        The notebooks, and whether numbers and figures are in them: they are not where there is no
        executed copy of the same code.

    Raises:
        UsageError: for a file in the way that is not as `export` wrote it, or if a branch is to be
            published and nothing tells where the repository lives; nothing is written.
    """
    import nbformat

    home = address.find(root)
    selected = notebooks.select(root, names)
    pages = {
        to / f"{notebook.name}.ipynb": Page(root, out, notebook, home=home, solutions=solutions)
        for notebook in selected
    }
    files = {to / name: text for name, text in (_branch(home, selected) if publish else {}).items()}
    for path in [*pages, *files]:
        if path.exists() and not _own(path):
            raise UsageError(
                f"{path} is not as `fabook export` wrote it: move it away, or choose another folder"
            )
    files |= {path: f"{nbformat.writes(page.notebook())}\n" for path, page in pages.items()}
    for path, text in files.items():
        write(path, text)
    return {path: bool(page.stored) for path, page in pages.items()}


def _branch(home: address.Address | None, selected: Sequence[Notebook]) -> dict[str, str]:
    """The files of a published branch besides its notebooks."""
    if home is None:
        raise UsageError(
            "nothing tells where the repository lives: set GITHUB_REPOSITORY=owner/name, or the "
            "git remote origin"
        )
    rows = []
    for book in selected:
        links = {"Colab": home.colab(book.name), "Binder": home.binder(book.name)}
        shown = [f"[{place}]({link})" for place, link in links.items() if link]
        rows.append(" · ".join([f"- [{book.title}]({book.name}.ipynb)", *shown]))
    about = f"The notebooks of [{home.name}]({home.url}), without what only the book's site shows."
    environment = [
        f"# {WRITTEN}",
        "channels: [conda-forge, nodefaults]",
        "dependencies:",
        "  - python=3.11",
        "  - pytorch-cpu>=2.6",
        "  - pip",
        f'  - pip: ["{home.requirement}"]',
    ]
    return {
        "README.md": "\n".join(
            [f"<!-- {WRITTEN} -->", "# Plain notebooks", "", about, "", *rows, ""]
        ),
        ".binder/environment.yml": "\n".join([*environment, ""]),
    }


def _own(path: Path) -> bool:
    """Whether a file was written here: a notebook in which nothing was changed or run."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".ipynb":
            return WRITTEN in text.split("\n")[0]
        content = json.loads(text)
        return bool(content["metadata"]["fabook"]["exported"] == _mark(content["cells"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _mark(cells: Iterable[Mapping[str, Any]]) -> str:
    return digest([[c["cell_type"], "".join(c["source"]), c.get("outputs", [])] for c in cells])


def stored(out: Path, source: Path, name: str) -> dict[str, dict[str, str]]:
    """What the executed copy keeps under a name, texts and pictures; nothing if its code is not
    the source's.
    """
    paths = [out / "notebooks" / preset / f"{name}.ipynb" for preset in claims.PRESETS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    cells = [c for c in parameters.read(path).cells if c.cell_type == "code"]
    own = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    code = [c.source for c in parameters.read(source).cells if c.cell_type == "code"]
    if [c.source for c in own] != code:
        return {}
    return plain.kept(cells)


class Page:
    """One notebook on its way out of the book; `notebook` is the outcome."""

    def __init__(
        self,
        root: Path,
        out: Path,
        source: Notebook,
        *,
        home: address.Address | None,
        solutions: bool = True,
    ) -> None:
        self.name, self.home, self.solutions = source.name, home, solutions
        self.cells = parameters.read(source.path).cells
        self.stored = stored(out, source.path, source.name)
        self.words = plain.Words(root, source.name, self.cells, self.stored, solutions=solutions)

    def notebook(self) -> Any:
        """The plain notebook."""
        from nbformat import v4

        cells = [plain.cell("code", self._install(), {"tags": ["install"]})]
        for solution, cell in self.words.parts(self.cells):
            if solution and not self.solutions:
                continue
            if cell.cell_type == "code":
                cells += self._code(cell, solution)
                continue
            cells += self.words.prose(cell.source, solution)
        cells.append(plain.cell("markdown", self.words.references.listed()))
        cells = [cell for cell in cells if cell.source.strip()]
        for index, cell in enumerate(cells):
            cell["id"] = f"cell-{index}"
        header = {
            "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
            "language_info": {"name": "python"},
            "fabook": {"notebook": self.name, "exported": _mark(cells)},
        }
        return v4.new_notebook(cells=cells, metadata=header)

    def _code(self, cell: Any, solution: str) -> list[Any]:
        """A code cell, folded if it is folded on the page, and the caption of its figure."""
        options = cell.metadata.get("mystnb", {})
        metadata = {key: value for key, value in cell.metadata.items() if key != "mystnb"}
        title = options.get("code_prompt_show", "Solution" if solution else "")
        if solution or FOLDED & set(metadata.get("tags", [])):
            metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
            title = title or "Bookkeeping"
        source = f"# @title {title}\n{cell.source}" if title else cell.source
        return [plain.cell("code", source, metadata), *self.words.caption(cell)]

    def _install(self) -> str:
        command = (
            f'    %pip install --quiet "{self.home.requirement}"'
            if self.home
            else "    raise ModuleNotFoundError(\n"
            "        f\"missing: {missing}; in a clone of the book: pip install '.[notebook]'\"\n"
            "    )"
        )
        place = f" of {self.home.url}" if self.home else ""
        does = "installs" if self.home else "names"
        return (
            f"# Notebook {self.name}{place}.\n"
            f"# This cell {does} what is missing, and does nothing where it is there.\n"
            "from importlib.util import find_spec\n\n"
            f"needed = {list(NEEDED)}\n"
            "missing = [name for name in needed if find_spec(name) is None]\n"
            f"if missing:\n{command}"
        )
