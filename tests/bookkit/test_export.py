"""Plain notebooks: no MyST is left in them, and they never replace what a reader changed."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import yaml

from bookkit import address, cli, export, notebooks
from bookkit.record import GLUE_PREFIX

ROOT = Path(__file__).resolve().parents[2]
LEFT = re.compile(
    r":::|\{[a-z][\w:.-]*\}`|^\s*`{3,}\{|\{glue|\]\((?!https?:|data:)(?=[\w./#]+\))|\$\$ *\(\w"
    r"|^\([\w-]+\)=$",
    re.MULTILINE,
)
DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def markdown(notebook: Any) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def code(notebook: Any) -> list[str]:
    return [c.source for c in notebook.cells if c.cell_type == "code"]


# --- the book's notebooks ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Every notebook of the book, with and without solutions."""
    found: dict[str, tuple[Any, Any]] = {}
    none = tmp_path_factory.mktemp("no-runs")
    for source in notebooks.notebooks(ROOT):
        pages = [
            export.Page(ROOT, none, source, home=None, solutions=solutions)
            for solutions in (True, False)
        ]
        found[source.name] = (pages[0].notebook(), pages[1].notebook())
    return found


def outside_code(text: str) -> str:
    """Markdown without code and formulas, where anything may stand."""
    text = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    return re.sub(r"(?s)\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", text)


def test_nothing_of_myst_is_left(plain: dict[str, tuple[Any, Any]]) -> None:
    assert plain
    for name, both in plain.items():
        for notebook in both:
            nbformat.validate(notebook)
            text = markdown(notebook)
            assert LEFT.findall(outside_code(text)) == [], name
            assert "{glue" not in text, name
            assert ":::" not in text, name
            assert not re.findall(r"\{(?:eq|ref|numref|doc|cite)[:}]", text), name
            assert not [c for c in notebook.cells if "mystnb" in c.metadata], name


def test_the_code_is_the_sources(plain: dict[str, tuple[Any, Any]]) -> None:
    for name, (notebook, _) in plain.items():
        source = jupytext.read(ROOT / "notebooks" / f"{name}.md")
        first, *cells = code(notebook)
        assert "missing = [" in first
        assert [re.sub(r"\A# @title .*\n", "", cell) for cell in cells] == code(source)
        tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        assert len(tagged) == 1, name  # papermill puts its own behind this one
        assert markdown(notebook).startswith(markdown(source).split("\n")[0])


def test_without_solutions_there_are_none(plain: dict[str, tuple[Any, Any]]) -> None:
    for name, (whole, without) in plain.items():
        text = (ROOT / "notebooks" / f"{name}.md").read_text(encoding="utf-8")
        assert "<b>Solution of" in markdown(whole) or "{solution-start}" not in text, name
        assert "<b>Solution" not in markdown(without), name
        assert not [c for c in code(without) if c.startswith("# @title Solution")], name
        solutions = re.findall(r"\{solution-start\}.*?\{solution-end\}", text, re.DOTALL)
        solved = sum(solution.count("{code-cell}") for solution in solutions)
        assert len(code(whole)) == len(code(without)) + solved, name
        assert "run.save()" in code(without)[-1], name


# --- a small book --------------------------------------------------------------------------------

PAGE = """---
kernelspec: {name: python3, language: python, display_name: Python 3}
---

# A page

:::{lead}
All is {glue:text}`size`, says {cite:t}`doe2020`.
:::

```{chips}
```

```{hero} hero
:name: fig-hero
:alt: A [black] dot.
A dot of {glue:text}`size` and {glue:text}`none`.
```

```{claims}
```

:::{admonition} The claim
:class: important
Dots are small, as in {eq}`eq-b`.

$$
x=1
$$ (eq-a)
:::

:::{dropdown} More
A [link in](other.md), [one out](https://example.org), code `{eq}` and $a[i](0)$.
:::

| a | b |
|---|---|
| {glue:text}`size` | {glue:text}`size` {cite:p}`doe2020,roe1999` |

$$
y=2
$$ (eq-b)

(here)=
See {numref}`fig-hero`, {numref}`Fig. %s <fig-two>`, {ref}`that <here>`, {doc}`other`,
{ref}`ex-two`, {term}`dot`, {term}`big dots <dot>` and
[*another*](../papers/other_page).

```{code-cell} ipython3
:tags: [parameters]

preset = "quick"
```

```{code-cell} ipython3
---
mystnb:
  figure: {name: fig-two, caption: 'Twice {glue:text}`size`.'}
  code_prompt_show: Drawing
tags: [hide-input]
---
draw()
```

```{not-held}
```

```{exercise-start}
:label: ex-one
```
Do it.
```{exercise-end}
```

```{solution-start} ex-one
:class: dropdown
```
Done so:

```{code-cell} ipython3
answer = 42
```

```{solution-end}
```

```{exercise-start}
:label: ex-two
```
Do more.
```{exercise-end}
```

```python
"{glue:text}`size`"  # an example
```

```{how-made}
```
"""
CLAIMS = """
[[paper]]
id = "toy"
name = "Toy"
sentence = "Toys."

[[claim]]
id = "toy.one.holds"
notebook = "toy/one"
paper = "toy"
where = "Section 1"
statement = "Dots are *small*, {cite:t}`doe2020`."
source = "paper"
tried = "All of it."
changed_after_run = "It was in inches."
expected = "not reproduced"
[[claim.check]]
quantity = "error"
label = "the error"
comparison = "<="
bound = 0.5
"""
BIB = """
@article{doe2020, author = {Doe, Jane and van Roe, Richard}, title = {Dots}, journal = {J. Dots},
  year = {2020}, eprint = {2001.00001}, archiveprefix = {arXiv}}
@misc{roe1999, author = {van Roe, Richard and Doe, Jane and M{\\"u}ller, Max}, title = {No dots},
  year = {1999}}
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one notebook, executed, with one claim that did not hold."""
    root = tmp_path / "book-of-dots"
    check = {"quantity": "error", "value": 0.7, "comparison": "<=", "bound": 0.5, "holds": False}
    entry = {"id": "toy.one.holds", "verdict": "not reproduced", "checks": [check]}
    store = lambda name, kind, value: {  # noqa: E731
        "output_type": "display_data",
        "data": {f"{GLUE_PREFIX}{kind}": value},
        "metadata": {"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}},
    }
    executed = jupytext.reads(PAGE, fmt="md:myst")
    executed.cells[1].outputs = [
        nbformat.from_dict(store("size", "text/plain", "'5_0 %'")),
        nbformat.from_dict(store("hero:quick", "image/png", DOT)),
    ]
    for name, text in {
        "book/claims.toml": CLAIMS,
        "book/references.bib": BIB,
        "notebooks/toy/one.md": PAGE,
        "book/results/paper/toy/one.json": json.dumps({"claims": [entry]}),
        "_build/notebooks/quick/toy/one.ipynb": nbformat.writes(executed),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def made(book: Path, **options: Any) -> Any:
    (source,) = notebooks.notebooks(book)
    return export.Page(book, book / "_build", source, **{"home": None} | options).notebook()


def test_every_construct_becomes_plain_markdown(book: Path) -> None:
    notebook = made(book)
    text = markdown(notebook)
    link = "https://arxiv.org/abs/2001.00001"
    for expected in (
        f"# A page\n\nAll is 5\\_0 %, says [Doe and van Roe (2020)]({link}).\n",
        "![A black dot.](data:image/png;base64,",
        "**Figure 1.** A dot of 5\\_0 % and –. *Drawn from a run of the quick preset.*",
        f"- Dots are *small*, [Doe and van Roe (2020)]({link}). *Not reproduced.*",
        "> **The claim.** Dots are small, as in (2).\n>\n> $$\n> x=1\n> \\tag{1}\n> $$",
        "<details>\n<summary><b>More</b></summary>\n\nA link in, [one out](https://example.org), "
        "code `{eq}` and $a[i](0)$.\n\n</details>",
        f"| 5\\_0 % | 5\\_0 % ([Doe and van Roe, 2020]({link}); van Roe et al., 1999) |",
        "$$\ny=2\n\\tag{2}\n$$",
        "See Figure 1, Fig. 2, that, other,\nExercise 2, dot, big dots and\n*another*.",
        "**Figure 2.** Twice 5\\_0 %.",
        "## What did not hold\n\n**Dots are *small*",
        "**Dots are *small*, [Doe and van Roe (2020)]"
        f"({link}).** What fails: the error: 0.7 (not ≤ 0.5, a bound of ours). "
        "Changed after a run: It was in inches. What was tried: All of it.",
        "*Not reproduced.* Changed after a run: It was in inches.",
        "**Exercise 1.**\n\nDo it.",
        "<summary><b>Solution of exercise 1</b></summary>\n\nDone so:",
        '"{glue:text}`size`"  # an example',
        "## References\n\n- Jane Doe and Richard van Roe. Dots. J. Dots, 2020. arXiv:2001.00001.",
        "Max Müller",
    ):
        assert expected in text
    assert "how-made" not in text
    assert "chips" not in text
    first, parameters, figure, solution = code(notebook)
    assert "in a clone of the book: pip install '.[notebook]'" in first
    assert parameters == 'preset = "quick"'
    assert figure == "# @title Drawing\ndraw()"
    assert solution == "# @title Solution\nanswer = 42"
    folded = [c for c in notebook.cells if c.metadata.get("jupyter", {}).get("source_hidden")]
    assert [c.source for c in folded] == [figure, solution]


def test_labels_in_any_box_and_a_figure_without_caption(book: Path) -> None:
    source = book / "notebooks" / "toy" / "one.md"
    box = ":::{{{0}}}{1}\n$$\nz\n$$ (eq-{0})\n\nSee {{eq}}`eq-{0}`.\n:::\n\n"
    boxes = (
        box.format("note", "") + box.format("tip", "") + box.format("exercise", "\n:label: ex-z")
    )
    text = source.read_text().replace(", caption: 'Twice {glue:text}`size`.'", "")
    source.write_text(text.replace("$$\ny=2", f"{boxes}$$\ny=2"))
    text = markdown(made(book))
    for number, line in ((2, "> See (2)."), (3, "> See (3)."), (4, "\nSee (4).")):
        assert f"\\tag{{{number}}}" in text
        assert line in text
    assert "\n\n**Figure 2.**\n\n" in text


def test_the_first_cell_installs_from_where_the_repository_lives(book: Path) -> None:
    home = address.Address("https://github.com", "owner/name", commit="abc")
    first = made(book, home=home).cells[0].source
    wanted = '%pip install --quiet "fabook[notebook] @ git+https://github.com/owner/name.git@abc"'
    assert first.splitlines()[-1] == f"    {wanted}"
    assert first.startswith("# Notebook toy/one of https://github.com/owner/name.")


def test_pictures_are_whole_and_the_papers_come_first(book: Path) -> None:
    path = book / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    path.write_text(path.read_text().replace("hero:quick", "hero:paper"))
    text = markdown(made(book))
    assert "*Drawn from the committed results of the paper preset.*" in text
    found = re.search(r"base64,([^)]*)\)", text)
    assert found
    assert base64.b64decode(found[1]).startswith(b"\x89PNG")


def test_an_executed_copy_of_other_code_is_not_believed(book: Path) -> None:
    source = book / "notebooks" / "toy" / "one.md"
    source.write_text(source.read_text().replace("draw()", "draw(2)"))
    text = markdown(made(book))
    assert "All is –, says" in text
    assert "*Drawn below, when the notebook runs.*" in text
    assert "base64" not in text


def test_an_unknown_citation_is_named(book: Path) -> None:
    (book / "book" / "references.bib").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"references.bib has no entry 'doe2020'"):
        made(book)


def test_files_that_were_changed_are_not_replaced(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABOOK_ROOT", str(book))
    to = tmp_path / "plain"
    words = ["export", "--to", str(to)]
    assert cli.main([*words, "one"]) == 0
    path = to / "toy" / "one.ipynb"
    assert capsys.readouterr().out == f"{path}\n"
    assert [p.name for p in to.rglob("*")] == ["toy", "one.ipynb"]
    before = path.read_text(encoding="utf-8")
    assert cli.main(words) == 0  # written here, and as it was written
    assert path.read_text(encoding="utf-8") == before
    opened = nbformat.read(path, as_version=4)
    nbformat.write(opened, path)  # saved in an editor, nothing changed
    assert cli.main([*words, "--no-solutions"]) == 0
    assert "answer = 42" not in path.read_text(encoding="utf-8")
    opened.cells[2].source += "\n# mine"
    for mine in (nbformat.writes(opened), "{}", "no notebook"):
        path.write_text(mine, encoding="utf-8")
        assert cli.main(words) == 2
        assert f"{path} is not as `fabook export` wrote it" in capsys.readouterr().err
        assert path.read_text(encoding="utf-8") == mine


def test_missing_numbers_are_told(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABOOK_ROOT", str(book))
    words = ["--to", str(tmp_path / "plain"), "--out", str(tmp_path / "nothing")]
    assert cli.main(["export", *words]) == 0
    assert "run, and export again: fabook run toy/one" in capsys.readouterr().err
    assert cli.main(["export", *words, "two"]) == 2
    assert "unknown notebook 'two'" in capsys.readouterr().err


def test_a_branch_to_publish(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABOOK_ROOT", str(book))
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    to = tmp_path / "branch"
    words = ["export", "--to", str(to), "--publish"]
    assert cli.main(words) == 2
    assert "GITHUB_REPOSITORY=owner/name" in capsys.readouterr().err
    assert not to.exists()
    for name, value in {"REPOSITORY": "owner/name", "SHA": "abc", "SERVER_URL": ""}.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    names = {p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file()}
    assert names == {"toy/one.ipynb", "README.md", ".binder/environment.yml"}
    readme = (to / "README.md").read_text(encoding="utf-8")
    for link in (
        "[A page](toy/one.ipynb)",
        "(https://colab.research.google.com/github/owner/name/blob/notebooks/toy/one.ipynb)",
        "(https://mybinder.org/v2/gh/owner/name/notebooks?urlpath=lab/tree/toy/one.ipynb)",
    ):
        assert link in readme
    environment = yaml.safe_load((to / ".binder" / "environment.yml").read_text(encoding="utf-8"))
    *_, pip = environment["dependencies"]
    wanted = "fabook[notebook] @ git+https://github.com/owner/name.git@abc"
    assert pip == {"pip": [wanted]}
    own = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == own["channels"]
    assert environment["dependencies"][:-1] == own["dependencies"]
    (to / "README.md").write_text("mine", encoding="utf-8")
    assert cli.main(words) == 2
    assert "README.md is not as `fabook export` wrote it" in capsys.readouterr().err
