"""The site: assembled from what exists, built strictly, and sound in a real browser."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import pytest

from bookkit import claims, site

ROOT = Path(__file__).resolve().parents[2]
ASSETS = [
    path
    for part in ("_static", "_templates", "extra")
    for path in sorted((ROOT / "book" / part).rglob("*"))
    if path.is_file()
]

# --- a tiny book -------------------------------------------------------------------------------

CLAIMS = """
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

Median error {result}`toy.one.holds error quick`, at scale {result}`toy.one.holds error paper`.

```{include} generated/scorecard_short.md
```
```{include} generated/scorecard.md
```
```{include} generated/claims_toy.md
```
```{include} generated/made_toy.md
```
"""


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
        "schema": 1,
        "notebook": "toy/one",
        "preset": preset,
        "parameters": {"preset": preset, "seed": 7, "device": "auto", "width": 12},
        "claims": judged,
        "data": {},
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
def toy(tmp_path: Path) -> Path:
    """A repository with one page, one notebook, run in the quick preset."""
    for path in [ROOT / "book" / "_config.yml", ROOT / "book" / "references.bib", *ASSETS]:
        name = path.relative_to(ROOT / "book")
        target = tmp_path / "book" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "book" / name, target)
    write(tmp_path / "book" / "_toc.yml", TOC)
    write(tmp_path / "book" / "intro.md", INTRO)
    write(tmp_path / "book" / "claims.toml", CLAIMS)
    write(tmp_path / "notebooks" / "toy" / "one.md", "# One\n")
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# One\n\nOpening.\n\n## Set-up\n"},
        {
            "cell_type": "code",
            "metadata": {"tags": ["injected-parameters"]},
            "source": "width = 12",
            "outputs": [],
            "execution_count": 1,
        },
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    write(tmp_path / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb", notebook)
    write(
        tmp_path / "_build" / "results" / "quick" / "toy" / "one.json",
        results(tmp_path, "quick", 0.0083),
    )
    return tmp_path


def text(files: dict[str, bytes], name: str) -> str:
    return files[name].decode()


def test_assemble_takes_every_number_from_the_results(toy: Path) -> None:
    files = site.assemble(toy, toy / "_build", "quick")
    assert "Median error 0.0083, at scale not run." in text(files, "intro.md")
    table = text(files, "generated/claims_toy.md")
    assert "✓ reproduced" in table
    assert "✗ not reproduced" in table
    assert "0.0083 ± 0.001 [≤ 0.05]" in table
    assert "(a) -1 ± 0.001 [not > 0]" in table
    assert "(b) 0.5 [in [0, 1]]" in table
    assert "*The paper's number:* 0.01" in table
    assert "*What was tried:* Two ways." in table
    assert "✓ 1 reproduced" in text(files, "generated/scorecard_short.md")
    assert "○ 2 not run" in text(files, "generated/scorecard_short.md")
    assert "claims.toml" not in files


def test_notebook_page_has_its_claims_on_top_and_its_making_at_the_foot(toy: Path) -> None:
    files = site.assemble(toy, toy / "_build", "quick")
    cells = json.loads(files["notebooks/toy/one.ipynb"])["cells"]
    sources = [cell["source"] for cell in cells]
    assert sources[0] == "# One\n\nOpening."
    assert "Claims on this page" in sources[1]
    assert sources[2] == "## Set-up"
    assert "remove-cell" in cells[3]["metadata"]["tags"]
    for shown in (
        "How this page was made",
        "`width = 12`",
        "torch 2.13.0",
        "0.25 min",
        "2026-01-02",
        "digits (1797 samples) `sha256:abc`",
        "f" * 64,
        "fabook run toy/one --preset quick --device cpu -p seed=7 -p width=12",
        "no committed results yet",
    ):
        assert shown in sources[-1]
    executed = toy / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    assert files["downloads/toy/one.ipynb"] == executed.read_bytes()


def test_committed_results_stand_beside_the_build(toy: Path) -> None:
    write(toy / "book" / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    stray = results(toy, "paper", 0.9)  # a local paper run is not what is published
    write(toy / "_build" / "results" / "paper" / "toy" / "one.json", stray)
    files = site.assemble(toy, toy / "_build", "quick")
    assert "at scale 0.004." in text(files, "intro.md")
    assert "0.004 ± 0.001 [≤ 0.02]" in text(files, "generated/claims_toy.md")
    assert "results/paper/toy/one.json" in text(files, "notebooks/toy/one.ipynb")


def test_the_paper_preset_can_make_the_pages_alone(toy: Path) -> None:
    built = toy / "_build"
    (built / "notebooks" / "quick").rename(built / "notebooks" / "paper")
    write(built / "results" / "paper" / "toy" / "one.json", results(toy, "paper", 0.004))
    write(toy / "book" / "intro.md", "# Toy\n\n{result}`toy.one.holds measured paper`\n")
    files = site.assemble(toy, built, "paper")
    assert text(files, "intro.md") == "# Toy\n\n0.004\n"
    assert "Paper preset, this build" in text(files, "generated/claims_toy.md")
    assert "quick" not in text(files, "generated/claims_toy.md").lower()


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("toy.one.hold error quick", "unknown claim 'toy.one.hold'; did you mean 'toy.one.holds'"),
        ("toy.one.holds eror quick", "unknown field 'eror'; did you mean 'error'"),
        ("toy.one.holds error fast", "unknown preset 'fast'"),
        ("toy.one.holds", "write {result}`claim-id field preset`"),
    ],
)
def test_wrong_result_names_the_page_and_what_is_allowed(
    toy: Path, role: str, message: str
) -> None:
    write(toy / "book" / "intro.md", f"# Toy\n\n{{result}}`{role}`\n")
    with pytest.raises(site.SiteError, match=r"intro\.md") as caught:
        site.assemble(toy, toy / "_build", "quick")
    assert message in str(caught.value)


def test_contents_and_notebooks_must_agree(toy: Path) -> None:
    write(toy / "notebooks" / "toy" / "two.md", "# Two\n")
    write(toy / "book" / "_toc.yml", f"{TOC}  - file: notebooks/toy/three\n")
    with pytest.raises(site.SiteError) as caught:
        site.toc_pages(toy)
    assert "notebooks/toy/two.md exists but is not in book/_toc.yml" in str(caught.value)
    assert "lists notebooks/toy/three, which does not exist" in str(caught.value)


def test_a_notebook_that_was_not_run_is_named_with_the_command(toy: Path) -> None:
    (toy / "_build" / "results" / "quick" / "toy" / "one.json").unlink()
    with pytest.raises(site.SiteError, match="fabook run toy/one --preset quick"):
        site.build(toy)


def test_a_notebook_without_title_is_named(toy: Path) -> None:
    path = toy / "_build" / "notebooks" / "quick" / "toy" / "one.ipynb"
    path.write_text(path.read_text().replace("# One", "One", 1))
    with pytest.raises(site.SiteError, match=r"notebooks/toy/one\.md: must begin with a title"):
        site.assemble(toy, toy / "_build", "quick")


def test_opening_may_be_a_box_under_a_label() -> None:
    box = "::::{admonition} Claim\n:class: tip\n\nText.\n\n:::{note}\nMore.\n:::\n::::"
    title = "(label)=\n# Title"
    assert site.split_lead(f"{title}\n\n{box}\n\nRest.") == (f"{title}\n\n{box}", "Rest.")
    assert site.split_lead("# Title\n\n```{note}\nx\n```") == ("# Title", "```{note}\nx\n```")


def test_write_tree_touches_only_what_changed(tmp_path: Path) -> None:
    site.write_tree({"a.md": b"1", "b/c.md": b"2", "b/d.md": b"3"}, tmp_path)
    os.utime(tmp_path / "a.md", (1, 1))
    site.write_tree({"a.md": b"1", "b.md": b"4"}, tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "a.md",
        "b.md",
    ]
    assert (tmp_path / "a.md").stat().st_mtime == 1


def test_check_links_finds_what_leads_nowhere(tmp_path: Path) -> None:
    write(
        tmp_path / "a.html",
        '<a href="b.html#here"><a href="b.html#gone"><a href="c%20d.html"><a href="#top">'
        '<a id="top"><a href="https://example.org"><script src="//example.org/x.js"></script>',
    )
    write(tmp_path / "sub" / "e.html", '<a href="../a.html#top"><img src="../missing.png">')
    write(tmp_path / "b.html", '<p id="here">')
    assert site.check_links(tmp_path) == [
        "a.html: loads //example.org/x.js from another host",
        "a.html: b.html#gone leads to no anchor",
        "a.html: c%20d.html leads to no file",
        "sub/e.html: ../missing.png leads to no file",
    ]


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_build_is_strict_repeatable_and_leaves_a_good_site_standing(toy: Path) -> None:
    html = site.build(toy)
    assert html == toy / "_build" / "html"
    before = tree(html)
    assert {"index.html", "intro.html", "notebooks/toy/one.html"} <= set(before)
    shutil.rmtree(toy / "_build" / "book_work")
    site.build(toy)
    assert tree(html) == before
    write(toy / "book" / "intro.md", f"{INTRO}\n[nowhere](missing.md)\n")
    with pytest.raises(site.SiteError, match=r"(?s)Jupyter Book failed.*missing\.md"):
        site.build(toy)
    assert not (toy / "_build" / "book_work").exists()  # its cache would forget the warning
    assert tree(html) == before
    assert not list((toy / "_build" / ".work").glob("site-*"))


# --- the real book, in a real browser -----------------------------------------------------------


class Visit(NamedTuple):
    """What a browser saw on one page."""

    page: str
    console: list[str]
    requests: list[str]
    seen: dict[str, Any]
    narrow: list[int]  # widths of document and window on a phone


LOOK = """
const done = arguments[0];
const ready = window.MathJax?.startup?.promise ?? Promise.resolve();
ready.then(() => done({
  title: document.querySelector("h1")?.textContent ?? "",
  formulas: document.querySelectorAll(".math").length,
  drawn: document.querySelectorAll("mjx-container").length,
  wrong: document.querySelectorAll("mjx-merror").length,
  images: document.querySelectorAll("img").length,
  silent: [...document.querySelectorAll("img:not([alt]), img[alt='']")].map(i => i.src),
  nameless: document.querySelectorAll(".diagram svg:not([aria-label])").length,
  verdicts: [...document.querySelectorAll(".verdict")].map(v => v.textContent),
  solutions: document.querySelectorAll(".solution.dropdown").length,
  made: document.querySelectorAll(".how-made-box").length,
}));
"""


@pytest.fixture(scope="module")
def html() -> Path:
    """The built site: `FABOOK_SITE`, else `_build/html`, which is built if it is not there."""
    folder = Path(os.environ.get("FABOOK_SITE", ROOT / "_build" / "html")).resolve()
    if not (folder / "index.html").is_file():
        assert "FABOOK_SITE" not in os.environ, f"no site in {folder}"
        for command in ("run", "build"):
            code = "import sys; from bookkit.cli import main; sys.exit(main(sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", code, command], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def address(html: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    assert chromium, "the site's tests need chromium"
    assert driver, "the site's tests need chromedriver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    window = webdriver.Chrome(options=options, service=service)
    window.set_script_timeout(20)
    yield window
    window.quit()


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def visit(browser: Any, address: str, page: str) -> Visit:
    resize(browser, 1280)
    browser.get(f"{address}/{page}")
    seen = browser.execute_async_script(LOOK)
    console = [
        f"{entry['level']}: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] != "INFO"
    ]
    requests = requested(browser)
    resize(browser, 390)
    narrow = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    return Visit(page, console, requests, seen, narrow)


def content_pages() -> list[str]:
    return [f"{page}.html" for page in site.toc_pages(ROOT)]


@pytest.fixture(scope="module")
def visits(browser: Any, address: str) -> list[Visit]:
    return [visit(browser, address, page) for page in [*content_pages(), "search.html"]]


@pytest.fixture(scope="module")
def notebook_visits(visits: list[Visit]) -> list[Visit]:
    found = [seen for seen in visits if seen.page.startswith("notebooks/")]
    assert found
    return found


def test_links_and_anchors_resolve(html: Path) -> None:
    assert site.check_links(html) == []


def test_pages_load_without_a_word_on_the_console(visits: list[Visit]) -> None:
    assert {v.page: v.console for v in visits if v.console} == {}
    assert all(v.seen["title"] for v in visits if v.page != "search.html")


def test_no_request_leaves_this_machine(visits: list[Visit], address: str) -> None:
    hosts = {
        urlparse(url).netloc
        for v in visits
        for url in v.requests
        if urlparse(url).scheme in ("http", "https", "ws", "wss")
    }
    assert hosts == {urlparse(address).netloc}


def test_formulas_are_drawn(visits: list[Visit]) -> None:
    for v in visits:
        assert v.seen["drawn"] >= v.seen["formulas"], v.page
        assert v.seen["wrong"] == 0, v.page
    assert sum(v.seen["drawn"] > 0 for v in visits) >= 5


def test_images_say_what_they_show(visits: list[Visit], notebook_visits: list[Visit]) -> None:
    assert {v.page: v.seen["silent"] for v in visits if v.seen["silent"]} == {}
    assert all(v.seen["nameless"] == 0 for v in visits)
    assert all(v.seen["images"] > 0 for v in notebook_visits)


def test_nothing_overflows_on_a_phone(visits: list[Visit]) -> None:
    assert {v.page: v.narrow for v in visits if v.narrow[0] > 390 or v.narrow[1] != 390} == {}


def test_verdicts_are_shown(visits: list[Visit], notebook_visits: list[Visit]) -> None:
    pages = {v.page: v.seen["verdicts"] for v in visits}
    n_claims = len(claims.load(ROOT))
    assert len(pages["scorecard.html"]) == 2 * n_claims
    assert pages["intro.html"]
    assert sum(len(v.seen["verdicts"]) for v in notebook_visits) == 2 * n_claims
    words = {verdict.split(" ", 1)[1] for page in ("scorecard.html",) for verdict in pages[page]}
    assert words <= set(claims.VERDICTS)


def test_every_result_page_tells_how_it_was_made(
    visits: list[Visit], notebook_visits: list[Visit]
) -> None:
    papers = {v.page.split("/")[1] for v in notebook_visits}
    chapters = [v for v in visits if v.page in {f"chapters/{paper}.html" for paper in papers}]
    assert {v.page for v in [*notebook_visits, *chapters] if v.seen["made"] != 1} == set()


def test_folded_parts_open_on_a_click(browser: Any, address: str, visits: list[Visit]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 5, poll_frequency=0.05)
    resize(browser, 1280)
    pages = [v.page for v in visits if v.seen["solutions"] or v.seen["made"]]
    assert "how_to_read.html" in pages
    for page in pages:
        browser.get(f"{address}/{page}")
        for fold in browser.find_elements("css selector", "div.admonition.dropdown"):
            if not fold.is_displayed():
                continue
            inside = fold.find_elements("css selector", ":scope > *:not(.admonition-title)")
            body = [e for e in inside if e.tag_name != "button" and e.get_property("textContent")]
            assert not any(e.is_displayed() for e in body), page
            button = fold.find_element("css selector", "button.toggle-button")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            wait.until(lambda _, body=body: all(e.is_displayed() for e in body), page)


def test_search_finds_a_word_and_leads_to_its_page(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, 1280)
    wait = WebDriverWait(browser, 10)
    browser.get(f"{address}/intro.html")
    browser.find_element("css selector", ".search-button-field").click()
    fields = "input[type=search]"
    field = wait.until(
        lambda b: next((e for e in b.find_elements("css selector", fields) if e.is_displayed()), 0)
    )
    field.send_keys("degeneracy", Keys.ENTER)
    links = wait.until(lambda b: b.find_elements("css selector", "#search-results li a"))
    found = {link.get_attribute("href").split("#")[0].split("?")[0]: link for link in links}
    target = f"{address}/chapters/refinetti2021.html"
    assert target in found
    found[target].click()
    wait.until(lambda b: b.current_url.startswith(target))
    assert "egeneracy" in browser.find_element("css selector", "article").text


# --- what pages load, and how it behaves ---------------------------------------------------------

LIGHT = {"intro.html": 1_000_000, "notebooks/refinetti2021/online_dynamics.html": 2_000_000}
WEIGHT = """
const entries = [...performance.getEntriesByType("resource"),
                 ...performance.getEntriesByType("navigation")];
return entries.map(entry => [entry.name, entry.decodedBodySize]);
"""


def settle(browser: Any) -> None:
    browser.execute_async_script(
        "const done = arguments[0];"
        "(window.MathJax?.startup?.promise ?? Promise.resolve()).then(() => setTimeout(done, 300))"
    )


@pytest.mark.parametrize(("page", "most"), LIGHT.items())
def test_pages_are_light(browser: Any, address: str, page: str, most: int) -> None:
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    resize(browser, 1440)
    browser.get(f"{address}/{page}")
    settle(browser)
    sizes = dict(browser.execute_script(WEIGHT))
    assert sum(sizes.values()) < most, sorted(sizes.items(), key=lambda item: -item[1])[:8]
    assert not [name for name in sizes if "fontawesome.js" in name or "thebe" in name]


def test_mathjax_is_loaded_only_for_formulas(browser: Any, address: str, html: Path) -> None:
    for path in sorted(html.glob("*.html")) + sorted(html.glob("chapters/*.html")):
        text = path.read_text(encoding="utf-8")
        formula = 'class="math' in text or 'class="amsmath' in text
        assert ("mathjax/startup.js" in text) == formula, path


def test_formulas_are_drawn_and_are_no_tab_stops(browser: Any, address: str) -> None:
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    drawn, stops, spoken = browser.execute_script(
        "const all = q => document.querySelectorAll(q).length;"
        "return [all('mjx-container'), all('mjx-container[tabindex]'), all('mjx-assistive-mml')]"
    )
    assert drawn > 10
    assert stops == 0
    assert spoken == drawn


def test_icons_come_from_the_small_font(browser: Any, address: str) -> None:
    browser.get_log("performance")
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    urls = requested(browser)
    assert any("fonts/icons.woff2" in url for url in urls)
    assert not any("webfonts/fa-" in url for url in urls)
    for icon in ("fa-bars", "fa-magnifying-glass", "fa-download"):
        width = browser.execute_script(f"return document.querySelector('.{icon}')?.offsetWidth")
        assert width is None or width >= 0


def test_a_figure_enlarges_and_closes_with_the_keyboard(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, 1440)
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    button = browser.find_element("css selector", "button.enlarge")
    assert button.get_attribute("aria-label").startswith("Enlarge: ")
    button.send_keys(Keys.ENTER)
    dialog = browser.find_element("css selector", "dialog.enlarged[open]")
    dialog.find_element("css selector", "button").send_keys(Keys.ESCAPE)
    WebDriverWait(browser, 5).until(
        lambda b: not b.find_elements("css selector", "dialog.enlarged")
    )


def test_folds_of_the_side_bar_and_of_code_have_their_own_names(
    browser: Any,
    address: str,
) -> None:
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    names = browser.execute_script(
        "return [...document.querySelectorAll('.bd-sidebar-primary summary')]"
        ".map(s => s.getAttribute('aria-label'))"
    )
    assert "Pages of Refinetti et al. 2021" in names
    assert all(names)
    assert not browser.find_elements("css selector", "details.hide > summary[aria-label]")


def test_excerpts_of_search_hold_words_only(browser: Any, address: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/search.html?q=degeneracy")
    found = WebDriverWait(browser, 10).until(
        lambda b: b.find_elements("css selector", "#search-results li p.context")
    )
    for excerpt in found:
        text = excerpt.text
        assert ".pdf" not in text
        assert "On this page" not in text
        assert "\\(" not in text


def test_front_page_shows_its_figure_first_and_the_verdicts_on_a_phone(
    browser: Any, address: str
) -> None:
    tops = {}
    for width in (1440, 390):
        resize(browser, width)
        browser.get(f"{address}/intro.html")
        settle(browser)
        tops[width], right = browser.execute_script(
            "const box = q => document.querySelector(q).getBoundingClientRect();"
            "return [box('#fig-overview').top + scrollY,"
            " box('table.scorecard-short tbody td:last-child').right]"
        )
        assert right <= width
    assert tops[1440] <= 700
    assert tops[390] <= 900
