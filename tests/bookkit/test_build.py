"""A tiny book: what its pages show of results files, and how it is built."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fabook
from bookkit import build, cache, claims, exercises, sphinx, web

ROOT = Path(__file__).resolve().parents[2]
ASSETS = [
    path
    for part in ("_static", "_templates", "extra")
    for path in sorted((ROOT / "book" / part).rglob("*"))
    if path.is_file()
]

CLAIMS = """
[[paper]]
id = "toy"
name = "Toy et al. 1999"
sentence = "Toys are small."

[[claim]]
id = "toy.one.holds"
notebook = "toy/one"
paper = "toy"
where = "Section 1"
statement = "The error $\\\\epsilon$ is small."
source = "paper"
paper_value = "0.01"
[[claim.check]]
quantity = "error"
label = "median error"
comparison = "<="
bound = {quick = 0.05, paper = 0.02}

[[claim]]
id = "toy.one.fails"
notebook = "toy/one"
paper = "toy"
where = "nowhere"
statement = "Everything is positive."
source = "derived"
expected = "not reproduced"
tried = "Two ways."
[[claim.check]]
quantity = "low"
label = "lowest value"
comparison = ">"
bound = 0.0
[[claim.check]]
quantity = "high"
label = "highest value"
comparison = "within"
bound = [0.0, 1.0]
"""
TOC = """
format: jb-book
root: intro
chapters:
  - file: notebooks/toy/one
"""
INTRO = """# Toy

```{scorecard} short
```
```{scorecard}
```
```{cards} toy
```
```{exercises}
```
```{how-made}
```
"""
CHECKPOINTS = ("notebooks/toy/one.md", "_build/notebooks/quick/toy/one.ipynb")
PAGE = """# One

:::{lead}
All is small.
:::

```{chips}
```

```{hero} hero
:name: fig-toy
:alt: A black dot.
Caption of the dot.
```

See {numref}`fig-toy`.

```{claims}
```

## Experiment

```{not-held}
```

## Exercises

```{exercise-start}
:label: ex-toy
```
1. ★ *Warm-up, 5 minutes.* Why is the dot black?
2. ★★★ *Open, an hour.* Should it be?
```{exercise-end}
```

```{solution-start} ex-toy
:class: dropdown
```
**1.** It has no colour. **2.** Who knows.
```{solution-end}
```

## Limits

```{how-made}
```
"""
TABLES = {
    "sizes": {"coords": {}, "data_vars": {"n": {"dims": [], "values": 12}}},
    "loss: curves": {
        "coords": {"t": {"dims": ["t"], "values": [0, 10]}},
        "data_vars": {
            "loss": {"dims": ["seed", "t"], "values": [[1.0, 0.5], [1.0, None]]},
            "mean": {"dims": ["t"], "values": [1.0, 0.5]},
        },
    },
}
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def results(root: Path, preset: str, error: float) -> dict[str, Any]:
    registry = claims.load(root)
    values = {"error": error, "low": -1.0, "high": 0.5}
    judged = [
        claims.judge(
            claim, preset, {c.quantity: values[c.quantity] for c in claim.checks}, sd=0.001, seeds=3
        )
        for claim in registry.values()
    ]
    return {
        "schema": claims.SCHEMA,
        "notebook": "toy/one",
        "preset": preset,
        "parameters": {"preset": preset, "seed": 7, "device": "auto", "width": 12},
        "claims": judged,
        "data": TABLES,
        "datasets": [{"name": "digits", "checksum": "sha256:abc", "n": 1797}],
        "device": "cpu",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "seed": 7,
        "minutes": 0.25,
        "date": "2026-01-02",
        "source_hash": "f" * 64,
    }


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page, one notebook, run in the quick preset; no address is known."""
    for name in ("FABOOK_URL", "FABOOK_VERSIONS", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    for path in [ROOT / "book" / "_config.yml", ROOT / "book" / "references.bib", *ASSETS]:
        name = path.relative_to(ROOT / "book")
        target = tmp_path / "book" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "book" / name, target)
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    write(tmp_path / "book" / "_toc.yml", TOC)
    write(tmp_path / "book" / "intro.md", INTRO)
    write(tmp_path / "book" / "claims.toml", CLAIMS)
    write(tmp_path / "notebooks" / "toy" / "one.md", "# One\n")
    prefix = "application/papermill.record/"
    stored = [
        {
            "output_type": "display_data",
            "data": {f"{prefix}image/png": base64.b64encode(DOT).decode()},
            "metadata": {
                "scrapbook": {"name": f"hero:{scale}", "mime_prefix": prefix},
                "fabook": {"tables": ["loss: curves"]},
            },
        }
        for scale in ("paper", "quick")
    ]
    code = {"cell_type": "code", "execution_count": 1}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": PAGE.partition("## Limits")[0]},
        {
            **code,
            "metadata": {"tags": ["injected-parameters"]},
            "source": "width = 12",
            "outputs": [],
        },
        {**code, "metadata": {}, "source": "run.figure('hero', draw)", "outputs": stored},
        {"cell_type": "markdown", "metadata": {}, "source": "## Limits\n\n```{how-made}\n```\n"},
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "fabook": {"needs": "counting"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    write(tmp_path / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb", notebook)
    write(
        tmp_path / "_build" / "results" / "quick" / "toy" / "one.json",
        results(tmp_path, "quick", 0.0083),
    )
    return tmp_path


@pytest.fixture
def book(toy: Path) -> sphinx.Book:
    return sphinx.Book(toy, toy / "_build", "quick")


def made(book: sphinx.Book, name: str, what: str = "toy/one") -> str:
    return sphinx.render(name, book=book, what=what, docname="notebooks/toy/one")


def test_tables_take_every_number_from_the_results(book: sphinx.Book) -> None:
    table = made(book, "claims")
    assert "How we checked: 2 claims, 1 holds, 1 not reproduced\n" in table
    assert ":open:" in table
    assert table.index("Everything is positive") < table.index("The error $"), "failed ones first"
    assert "✓ reproduced" in table
    assert "✗ not reproduced" in table
    assert "0.0083 ± 0.001 [≤ 0.05]" in table
    assert "(a) -1 ± 0.001 [not > 0]{.bound} [a bound of ours]{.quiet}" in table
    assert "(b) 0.5 [in [0, 1]]" in table
    assert "*The paper's number:* 0.01" in table
    assert "*What was tried:* Two ways." in table
    short = made(book, "scorecard", "short")
    assert "Toy et al. 1999" in short
    assert "✓ 1 reproduced" in short
    assert "○ 2 not run" in short
    assert "**0 of 0 claims hold** in the full-size runs: 0 of 0 that say" in short
    assert "and 0 of 0 derived here; 2 more wait for theirs." in short


def test_seeds_that_all_agree_have_no_interval_and_others_their_ends(book: sphinx.Book) -> None:
    run = book.runs["toy/one"]["quick"]
    assert run is not None
    check = run["claims"][0]["checks"][0]

    def shown(statistic: str, values: list[Any], name: str = "claims") -> str:
        check.update(statistic=statistic, values=values, seeds=len(values), low=0.0, high=1.0)
        return made(book, name)

    assert "0.0083, the same for all 3 seeds [≤ 0.05]" in shown("mean", [0.0083] * 3)
    assert "0.0083, the same for all 3 seeds [≤ 0.05]" in made(book, "scorecard", "")
    assert "0.0083, the same for all 2 seeds" in shown("paired difference", [[0.5, 0.2]] * 2)
    assert "[0, 1] [≤ 0.05]{.bound} [seeds from 0.001 to 0.02]{.quiet}\\" in shown(
        "mean", [0.004, 0.001, 0.02]
    )
    assert "seeds from -1 to 1]" in shown("paired difference", [[1, 2], [3, 2]])
    assert "seeds from" not in made(book, "scorecard", "")
    for statistic, values in (
        ("fraction", [True] * 3), ("mean", [0.3]), ("mean", [1.0, None]), ("mean", [1, 1.0001]),
    ):  # fmt: skip
        text = shown(statistic, values)
        assert "0.0083 [0, 1] [≤ 0.05]{.bound}" in text
        assert "the same" not in text
        assert "seeds from" not in text


def test_pages_without_claims_and_papers_without_notebooks(toy: Path) -> None:
    entry = '[[paper]]\nid = "{0}"\nname = "{0}"\nsentence = "None yet."\n'
    write(toy / "book" / "claims.toml", entry.format("new") + entry.format("toy"))
    write(toy / "book" / "chapters" / "toy.md", "# Toy\n")
    results = toy / "_build" / "results" / "quick" / "toy" / "one.json"
    content = json.loads(results.read_text(encoding="utf-8")) | {"claims": []}
    write(results, content)
    book = sphinx.Book(toy, toy / "_build", "quick")
    assert [card["about"] for card in book.chapters()] == ["toy"]
    assert "claims" not in made(book, "chips") + made(book, "cards", "toy") + made(
        book, "cards", ""
    )


def test_a_notebook_without_any_figure_is_told_what_helps(book: sphinx.Book) -> None:
    for cell in book.notebook("toy/one")["cells"]:
        cell.pop("outputs", None)
    with pytest.raises(sphinx.BookError, match=r"call run.figure in notebooks/toy/one.md, and run"):
        book.hero("toy/one")


def test_two_builds_of_a_book_are_one_after_the_other(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[Path] = []
    monkeypatch.setattr(build, "_check_site", lambda *_, **__: None)

    def pages(source: Path, work: Path, *_: Any) -> None:
        import filelock

        locks = [toy / "book" / "_build" / "site.lock", work.parent / ".work" / "site.lock"]
        for lock in locks:
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(lock, is_singleton=False).acquire(blocking=False)
        locked.append(work)
        write(work / "_build" / "html" / "index.html", "")

    monkeypatch.setattr(build, "_jupyter_book", pages)
    for out in ("_build", "other"):
        if out == "other":
            shutil.copytree(toy / "_build", toy / out)
        build.build(toy, out)
    assert len(locked) == 2


def test_checks_that_do_not_hold_come_first_and_undecided_claims_are_counted(
    book: sphinx.Book,
) -> None:
    run = book.runs["toy/one"]["quick"]
    assert run is not None
    holds, fails = run["claims"]
    fails["checks"].append(fails["checks"][0] | {"value": -3.0})
    fails["checks"][0]["holds"] = None
    holds["verdict"] = claims.UNDECIDED
    table = made(book, "claims")
    assert "How we checked: 2 claims, 1 not reproduced, 1 undecided\n" in table
    shown = ("(a) -3 [not > 0]", "(a) -1 ± 0.001 [undecided > 0]", "(b) 0.5 [in [0, 1]]")
    places = [table.index(text) for text in shown]
    assert places == sorted(places)
    run["claims"] = [entry | {"verdict": claims.REPRODUCED} for entry in (holds, fails)]
    assert "How we checked: 2 claims, 2 hold\n" in made(book, "claims")


def test_exercises_are_listed_by_paper_skill_and_length(book: sphinx.Book) -> None:
    values = dict(book=book, what="", docname="intro", exercises=exercises)
    table, _, by_length = sphinx.render("exercises", **values).partition("## By length")
    assert "### Toy et al. 1999\n" in table
    assert table.count("\n* - ") == 1 + len(book.names)
    head, _, row = table.partition("* - [One](/notebooks/toy/one.ipynb)\n")
    assert "*Open*: no one answer." in head
    skills = re.findall(r"^  - (.*)$", head, re.MULTILINE)
    cells = re.findall(r"^  - ?(.*)$", row, re.MULTILINE)
    found = {skill: cell for skill, cell in zip(skills, cells, strict=True) if cell}
    assert skills == [*exercises.SKILLS]
    assert found["Open"] == "{ref}`★★★ 60 <ex-toy>`"
    assert "Derive" not in found
    assert "**An hour**: {ref}`One, 2 <ex-toy>` ★★★." in by_length


def test_how_made_tells_what_makes_the_page_again(book: sphinx.Book) -> None:
    text = made(book, "how-made")
    for shown in (
        "How this page was made",
        "`width = 12`",
        "torch 2.13.0",
        "15 s by the clock, whatever else the machine did",
        "2026-01-02",
        "digits (1797 samples) `sha256:abc`",
        "f" * 64,
        "fabook run toy/one --preset quick --device cpu -p seed=7 -p width=12",
        "no committed results yet",
        "/notebooks/toy/one.ipynb",
        "/../_build/results/quick/toy/one.json",
    ):
        assert shown in text


def test_how_made_says_whether_the_code_is_what_it_was(toy: Path, book: sphinx.Book) -> None:
    assert "compare the hashes" in made(book, "how-made")
    run = book.runs["toy/one"]["quick"]
    assert run is not None
    run["sources"] = cache.sources(toy / "notebooks" / "toy" / "one.md", toy)
    assert "  - unchanged" in made(book, "how-made")
    run["sources"] |= {"toy/figures.py": "0" * 16}
    assert "changed in `toy/figures.py`" in made(book, "how-made")


def test_how_made_asks_git_where_a_run_kept_no_files(toy: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(toy), *who, *words], check=True, capture_output=True)

    def commit(*paths: str) -> str:
        git("add", *paths)
        git("commit", "-m", "more")
        return made(sphinx.Book(toy, toy / "_build", "quick"), "how-made")

    write(toy / "notebooks" / "toy" / "figures.py", "dot = 1\n")
    write(toy / "book" / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    git("init")
    assert commit("notebooks", "book/claims.toml").count("compare the hashes") == 2
    assert "unchanged since these results were committed" in commit("book/results")
    write(toy / "notebooks" / "toy" / "one.md", "# One\n\nMore.\n")
    text = made(sphinx.Book(toy, toy / "_build", "quick"), "how-made")
    for now in (text, commit("notebooks")):
        assert "changed since these results were committed: `toy/one.md`\n" in now
    shutil.rmtree(toy / ".git")
    assert made(sphinx.Book(toy, toy / "_build", "quick"), "how-made").count("the hashes") == 2


def test_chips_and_cards_tell_where_a_page_stands(book: sphinx.Book) -> None:
    chips = made(book, "chips")
    for shown in ("✗ 1 of 2 claims", "reading 1 min", "runs in about 15 s", "needs: counting"):
        assert shown in chips
    cards = made(book, "cards", "toy")
    assert "One" in cards
    assert ":link: /notebooks/toy/one\n:link-type: doc" in cards
    page = book.notebook("toy/one")["cells"][0]
    page["source"] = page["source"].replace("All is", "{term}`All <cell>` {term}`is`")
    assert "\nAll is small.\n" in made(book, "cards", "toy"), "a card is one link"


def test_chips_launch_the_notebook_where_the_repository_is_known(
    book: sphinx.Book, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Colab" not in made(book, "chips")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    chips = made(sphinx.Book(toy, toy / "_build", "quick"), "chips")
    for link in ("[Colab](https://colab.research.google.com/github/owner/name/", "[Binder](https:"):
        assert f"[{link}" in chips


def test_a_page_carries_the_bibtex_of_its_paper_and_of_the_book(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("toy", "ours"):
        entry = f"@misc{{{name},\n  title = {{On {name}}},\n}}\n"
        with (toy / "book" / "references.bib").open("a", encoding="utf-8") as file:
            file.write(f"\n{entry}")
    write(toy / "book" / "chapters" / "other.md", "As in {cite:t}`ours,chu2023`.\n")
    monkeypatch.setenv("FABOOK_URL", "https://example.org/book")
    book = sphinx.Book(toy, toy / "_build", "quick")
    assert book.works("toy/one") == ['@misc{toy,\n    title = "On toy"\n}']
    assert [work.partition(",")[0] for work in book.works("other")] == [
        "@misc{ours",
        "@article{chu2023",
    ]
    assert book.works("") == book.works("toy/one"), "a page of no paper has those of the book"
    assert "Cite this book" in made(book, "cite", "")
    text = made(book, "how-made")
    assert "BibTeX of the paper:\n\n```bibtex\n@misc{toy," in text
    for line in (
        "  author  = {{The fabook authors}},",
        "  title   = {{Feedback alignment, replicated}},",
        f"  version = {{{fabook.__version__}}},",
        "  url     = {https://example.org/book/},",
    ):
        assert line in text


def test_what_did_not_hold_is_said_from_verdicts(book: sphinx.Book) -> None:
    text = made(book, "not-held")
    assert "## What did not hold" in text
    assert "*What fails:* lowest value: -1 ± 0.001 [not > 0]" in " ".join(text.split())
    assert "Two ways." in text
    for run in book.runs["toy/one"].values():
        for entry in run["claims"] if run else ():
            entry["verdict"] = claims.REPRODUCED
    assert not made(book, "not-held").strip()
    assert ":open:" not in made(book, "claims")


def test_committed_results_stand_beside_the_build(toy: Path) -> None:
    write(toy / "book" / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    stray = results(toy, "paper", 0.9)  # a local paper run is not what is published
    write(toy / "_build" / "results" / "paper" / "toy" / "one.json", stray)
    book = sphinx.Book(toy, toy / "_build", "quick")
    assert "0.004 ± 0.001 [≤ 0.02]" in made(book, "claims")
    assert "</results/paper/toy/one.json>" in made(book, "how-made")


def test_the_paper_preset_can_make_the_pages_alone(toy: Path) -> None:
    built = toy / "_build"
    (built / "notebooks" / "quick").rename(built / "notebooks" / "paper")
    write(built / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    table = made(sphinx.Book(toy, built, "paper"), "claims")
    assert "Paper preset, this build" in table
    assert "quick" not in table.lower()


def test_contents_and_notebooks_must_agree(toy: Path) -> None:
    write(toy / "notebooks" / "toy" / "two.md", "# Two\n")
    write(toy / "book" / "_toc.yml", f"{TOC}  - file: notebooks/toy/three\n")
    with pytest.raises(sphinx.BookError) as caught:
        sphinx.toc_pages(toy)
    assert "notebooks/toy/two.md exists but is not in book/_toc.yml" in str(caught.value)
    assert "lists notebooks/toy/three, which does not exist" in str(caught.value)


def test_an_installed_package_builds_no_site(tmp_path: Path) -> None:
    with pytest.raises(sphinx.BookError, match="built in a clone of the repository"):
        build.build(claims.PACKAGED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_that_was_not_run_is_named_with_the_command(toy: Path) -> None:
    (toy / "_build" / "results" / "quick" / "toy" / "one.json").unlink()
    with pytest.raises(sphinx.BookError, match="fabook run toy/one --preset quick"):
        build.build(toy)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    done = subprocess.run(
        [*command, str(toy / "book")], check=False, capture_output=True, text=True
    )
    assert done.returncode
    assert "fabook run toy/one --preset quick" in done.stdout + done.stderr


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_a_verdict_of_other_checks_is_named_with_the_command(toy: Path, preset: str) -> None:
    write(toy / "book" / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    sphinx.Book(toy, toy / "_build", "quick")
    table = toy / "book" / "claims.toml"
    now = {"quick": 0.05, "paper": 0.02} | {preset: 0.03}
    write(
        table,
        CLAIMS.replace(
            "{quick = 0.05, paper = 0.02}", f"{{quick = {now['quick']}, paper = {now['paper']}}}"
        ),
    )
    with pytest.raises(sphinx.BookError, match=rf"fabook run toy/one --preset {preset}$"):
        sphinx.Book(toy, toy / "_build", "quick")


def test_a_warning_of_a_cell_is_an_error_of_the_site(toy: Path) -> None:
    path = toy / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = ["10 %|#   | progress\n", "In [5]:2: UserWarning: a tensor was converted\n"]
    stream = {"output_type": "stream", "name": "stderr", "text": lines}
    cell = {"cell_type": "code", "metadata": {}, "source": "float(w)", "outputs": [stream]}
    content["cells"].append({**cell, "execution_count": 5})
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(sphinx.BookError, match=r"toy/one: In \[5\]:2: UserWarning: a tensor"):
        build.build(toy)


def test_a_page_without_its_figure_is_refused(toy: Path) -> None:
    path = toy / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    figure = {"mystnb": {"figure": {"name": "fig-line", "caption": "A line."}}}
    content["cells"].append(
        {"cell_type": "code", "metadata": figure, "source": "plot()", "outputs": []}
    )
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(sphinx.BookError, match="toy/one: no image of fig-line; run it again"):
        sphinx.Book(toy, toy / "_build", "quick")


def test_jupyter_book_alone_builds_the_site(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABOOK_URL", "https://example.org/book")
    write(toy / "book" / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    made = [sys.executable, str(ROOT / ".ci" / "versions.py")]
    listed = subprocess.run(made, check=True, capture_output=True, text=True).stdout
    write(toy / "versions.json", listed)
    monkeypatch.setenv("FABOOK_VERSIONS", str(toy / "versions.json"))
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    done = subprocess.run(
        [*command, "-W", "-n", str(toy / "book")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (toy / "book/_build/html/notebooks/toy/one.html").read_text(encoding="utf-8")
    figure = re.search(r'<figure[^>]*id="fig-toy".*?</figure>', page, re.DOTALL)
    assert figure
    assert figure[0].count('alt="A black dot."') == 2
    assert "Paper scale" in figure[0]
    assert "Quick run of this build" in figure[0]
    assert "Caption of the dot." in figure[0]
    assert ">Fig. 1</span>" in page
    assert re.search(r"<h2>What did not hold", page), "a section of its own, not one of Experiment"
    assert "width = 12" not in page.partition("How this page was made")[0]
    html = toy / "book/_build/html"
    says_where_it_is(html, page)
    for preset in ("paper", "quick"):
        data = f"data/{preset}/toy/one/loss-curves.csv"
        assert f'href="../../{data}">loss: curves</a>' in figure[0].replace("\n", "")
        assert f"results, {preset} preset" in figure[0]
        text = (html / data).read_text(encoding="utf-8")
        assert text == "seed,t,loss,mean\n0,0,1.0,1.0\n0,10,0.5,0.5\n1,0,1.0,1.0\n1,10,,0.5\n"
    assert "sizes</a>" not in figure[0], "no figure drew it"
    assert (html / "data/paper/toy/one/sizes.csv").read_text(encoding="utf-8") == "n\n12\n"
    leads_out(html)


def links(page: str, label: str) -> list[str]:
    """Where the buttons of a label lead; by class, as the theme makes them."""
    return re.findall(rf'<a href="([^"]*)"[^>]*?class="btn btn-sm btn-{label}', page)


def leads_out(html: Path) -> None:
    home = "https://github.com/owner/name"
    page = (html / "notebooks/toy/one.html").read_text(encoding="utf-8")
    intro = (html / "intro.html").read_text(encoding="utf-8")
    assert links(page, "launch-Colab") == [
        "https://colab.research.google.com/github/owner/name/blob/notebooks/toy/one.ipynb"
    ]
    assert links(page, "launch-Binder") == [
        "https://mybinder.org/v2/gh/owner/name/notebooks?urlpath=lab/tree/toy/one.ipynb"
    ]
    assert links(intro, "launch-") == []
    for place in ("Colab", "Binder"):
        (url,) = links(page, f"launch-{place}")
        chip = rf'class="chip"><a class="reference external" href="{re.escape(url)}">{place}</a>'
        assert re.search(chip, page)
    assert links(page, "source-edit-button") == [f"{home}/edit/main/notebooks/toy/one.md"]
    assert links(intro, "source-edit-button") == [f"{home}/edit/main/book/intro.md"]
    for text, about in ((page, "notebooks/toy/one"), (intro, "intro")):
        assert links(text, "source-repository-button") == [home]
        (issue,) = links(text, "source-issues-button")
        assert issue.startswith(f"{home}/issues/new?title=Page%20{about}")
    search = (html / "search.html").read_text(encoding="utf-8")
    assert links(search, "source-") == []
    plain = offered(html)
    assert "git+https://github.com/owner/name.git" in plain["cells"][0]["source"][-1]


def offered(html: Path) -> dict[str, Any]:
    """The notebook behind the download button, and in the chips."""
    page = (html / "notebooks/toy/one.html").read_text(encoding="utf-8")
    (target,) = links(page, "download-source-button")
    chip = re.search(r'<a class="reference download internal"[^>]*href="([^"]*one.ipynb)"', page)
    assert chip
    assert chip[1] == target
    path = (html / "notebooks/toy" / target).resolve()
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["fabook"]["notebook"] == "toy/one"
    return content


def says_where_it_is(html: Path, page: str) -> None:
    for tag in (
        '<meta name="description" content="All is small." />',
        '<meta property="og:description" content="All is small." />',
        '<meta property="og:url" content="https://example.org/book/notebooks/toy/one.html" />',
        '<meta property="og:image" content="https://example.org/book/_static/social/toy/one.png"',
        '<meta property="og:image:alt" content="A figure of One" />',
        '<link rel="canonical" href="https://example.org/book/notebooks/toy/one.html" />',
    ):
        assert tag in page
    social = (html / "_static/social/toy/one.png").read_bytes()
    assert struct.unpack(">II", social[16:24]) == web.CARD
    listed = re.findall(r"<loc>(.*?)</loc>", (html / "sitemap.xml").read_text(encoding="utf-8"))
    assert {place.rpartition("/")[2] for place in listed} == {"intro.html", "one.html"}
    assert all(place.startswith("https://example.org/book/") for place in listed)
    assert (html / ".nojekyll").is_file()
    front = (html / "index.html").read_text(encoding="utf-8")
    assert 'content="0; url=intro.html"' in front
    assert '<meta property="og:image" content="https://example.org/book/_static/social/' in front
    lost = (html / "404.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src|action)="([^"#]+)"', lost)
    own = [link for link in links if not link.startswith("https://example.org/book/")]
    assert [link for link in own if not link.startswith("/book/")] == []
    assert build.check_links(html, "/book/") == []
    footer = " ".join(page.partition('<p class="versions">')[2].partition("</p>")[0].split())
    assert '<span aria-current="true">latest</span>' in footer
    assert '<a href="https://example.org/book/stable/">stable</a>' in footer


@pytest.mark.parametrize(
    ("environment", "address", "path"),
    [
        ({}, "", "/"),
        ({"FABOOK_URL": "https://a.org"}, "https://a.org/", "/"),
        ({"FABOOK_URL": "http://a.org/b/c/"}, "http://a.org/b/c/", "/b/c/"),
        ({"GITHUB_REPOSITORY": "Ada/Book"}, "https://ada.github.io/Book/", "/Book/"),
        ({"GITHUB_REPOSITORY": "ada/ada.github.io"}, "https://ada.github.io/", "/"),
        ({"FABOOK_URL": "https://a.org", "GITHUB_REPOSITORY": "a/b"}, "https://a.org/", "/"),
    ],
)
def test_the_address_comes_from_the_environment(
    environment: dict[str, str], address: str, path: str
) -> None:
    assert web.site_url(environment) == address
    assert web.prefix(environment) == path


def test_versions_that_are_none_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "versions.json", [{"name": "latest"}])
    with pytest.raises(sphinx.BookError, match="is no JSON list of names and urls"):
        web.versions(tmp_path / "versions.json", "")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(sphinx.BookError, match=r"FABOOK_URL must be .* got 'a.org/book'"):
        web.site_url({"FABOOK_URL": "a.org/book"})


def test_a_figure_that_was_not_stored_is_named(toy: Path) -> None:
    path = toy / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    path.write_text(path.read_text().replace("{hero} hero", "{hero} heron"))
    with pytest.raises(sphinx.BookError, match="stored no figure 'heron'"):
        build.build(toy)


def test_check_links_finds_what_leads_nowhere(tmp_path: Path) -> None:
    write(
        tmp_path / "a.html",
        '<a href="b.html#here"><a href="b.html#gone"><a href="c%20d.html"><a href="#top">'
        '<a id="top"><a href="https://example.org"><script src="//example.org/x.js"></script>'
        '<a href="/site/sub/e.html"><a href="/site/f.html">',
    )
    write(tmp_path / "sub" / "e.html", '<a href="../a.html#top"><img src="../missing.png">')
    write(tmp_path / "b.html", '<p id="here">')
    assert build.check_links(tmp_path, "/site/") == [
        "a.html: loads //example.org/x.js from another host",
        "a.html: b.html#gone leads to no anchor",
        "a.html: c%20d.html leads to no file",
        "a.html: /site/f.html leads to no file",
        "sub/e.html: ../missing.png leads to no file",
    ]


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_build_is_strict_repeatable_and_leaves_a_good_site_standing(toy: Path) -> None:
    html = build.build(toy)
    assert html == toy / "_build" / "html"
    before = tree(html)
    assert "sitemap.xml" not in before
    assert b'class="versions"' not in before["notebooks/toy/one.html"]
    assert b"og:" not in before["notebooks/toy/one.html"]
    assert b'<meta name="description" content="All is small."' in before["notebooks/toy/one.html"]
    assert {"index.html", "intro.html", "notebooks/toy/one.html"} <= set(before)
    page = before["notebooks/toy/one.html"].decode()
    assert links(page, "launch-") + links(page, "source-") == []  # no button leads nowhere
    assert "a clone of the book" in str(offered(html)["cells"][0]["source"])
    shutil.rmtree(toy / "_build" / "book_work")
    write(toy / "_build" / "book_work" / "_build" / "html" / "sitemap.xml", "<loc>old</loc>")
    for name in ("book/intro.md", "book/_toc.yml", "book/_static/fabook.css", *CHECKPOINTS):
        write(toy / Path(name).parent / ".ipynb_checkpoints" / Path(name).name, "# Old\n")
    build.build(toy)
    assert tree(html) == before
    write(toy / "book" / "intro.md", f"{INTRO}\n[nowhere](missing.md)\n")
    with pytest.raises(sphinx.BookError, match=r"(?s)Jupyter Book failed.*missing\.md"):
        build.build(toy)
    assert not (toy / "_build" / "book_work").exists()  # its cache would forget the warning
    assert tree(html) == before
    assert not list((toy / "_build" / ".work").glob("site-*"))
