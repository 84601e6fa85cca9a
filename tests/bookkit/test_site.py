"""The site in a real browser: sound on every page, light, and readable on a laptop and a phone."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import pytest
from bs4 import BeautifulSoup
from selenium.webdriver.support.ui import WebDriverWait

from bookkit import build, claims, sphinx, web

ROOT = Path(__file__).resolve().parents[2]


class Visit(NamedTuple):
    """What a browser saw on one page."""

    page: str
    console: list[str]
    requests: list[str]
    seen: dict[str, Any]
    narrow: list[int]  # widths of document and window on a phone
    first: dict[int, float | None]  # width of the window -> where the first figure begins
    scrolling: dict[int, list[str]]  # width of the window -> what scrolls sideways
    weight: int  # bytes of everything that the page loads
    violations: list[str]  # what axe calls serious or critical


FIRST_FIGURE = {1440: 700, 390: 900}

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
  hero: document.querySelectorAll("figure.hero").length,
  tabs: document.querySelectorAll("mjx-container[tabindex]").length,
  verdicts: [...document.querySelectorAll(".verdict:not(.standing)")].map(v => v.textContent),
  solutions: document.querySelectorAll(".solution.dropdown").length,
  made: document.querySelectorAll(".how-made-box").length,
}));
"""

# Where the first figure begins, and what is wider than its place and scrolls. Folds are open.
MEASURE = """
const done = arguments[0];
const shown = (element) => element.offsetParent !== null;
const places = "article :is(figure, .cell_output, .sd-card) :is(img, svg)";
const visible = (element) => element.getClientRects().length > 0;
const first = [...document.querySelectorAll(places)].filter(visible)[0];
const top = first ? first.getBoundingClientRect().top + scrollY : null;
document.querySelectorAll("article details").forEach((fold) => (fold.open = true));
setTimeout(() => {
  const wide = [...document.querySelectorAll("article *")].filter((element) =>
    shown(element) && element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1
    && ["auto", "scroll"].includes(getComputedStyle(element).overflowX));
  done([top, wide.map((e) => `${e.tagName.toLowerCase()}.${[...e.classList].join(".")}`)]);
}, 150);
"""
WEIGH = """
const done = arguments[0];
const pictures = [...document.images];
pictures.forEach((picture) => (picture.loading = "eager"));
Promise.all(pictures.map((p) => p.decode().catch(() => null))).then(() => {
  const entries = [...performance.getEntriesByType("resource"),
                   ...performance.getEntriesByType("navigation")];
  const sizes = new Map(entries.map((e) => [e.name.split("#")[0], e.decodedBodySize]));
  done([...sizes.values()].reduce((sum, size) => sum + size, 0));
});
"""
AXE = """
const done = arguments[0];
axe.run({ resultTypes: ["violations"] }).then((found) => done(found.violations
  .filter((v) => ["serious", "critical"].includes(v.impact))
  .map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`)));
"""


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


@pytest.fixture(scope="module")
def axe() -> str:
    """The accessibility checker, to be run in a page."""
    import axe_core_python

    return (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def visit(browser: Any, address: str, page: str, axe: str) -> Visit:
    resize(browser, 1440)
    browser.get(f"{address}/{page}")
    seen = browser.execute_async_script(LOOK)
    console = [
        f"{entry['level']}: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] != "INFO"
    ]
    requests = requested(browser)
    weight = browser.execute_async_script(WEIGH)
    browser.execute_script(axe)
    violations = browser.execute_async_script(AXE)
    first, scrolling = {}, {}
    for width in FIRST_FIGURE:
        resize(browser, width)
        browser.execute_script(
            "document.querySelectorAll('article details:not(.claims-box)')"
            ".forEach((fold) => (fold.open = false))"
        )
        first[width], scrolling[width] = browser.execute_async_script(MEASURE)
    narrow = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    return Visit(page, console, requests, seen, narrow, first, scrolling, weight, violations)


def content_pages() -> list[str]:
    return [f"{page}.html" for page in sphinx.toc_pages(ROOT)]


@pytest.fixture(scope="module")
def visits(browser: Any, address: str, axe: str) -> list[Visit]:
    return [visit(browser, address, page, axe) for page in [*content_pages(), "search.html"]]


@pytest.fixture(scope="module")
def notebook_visits(visits: list[Visit]) -> list[Visit]:
    found = [seen for seen in visits if seen.page.startswith("notebooks/")]
    assert found
    return found


def test_links_and_anchors_resolve(html: Path) -> None:
    assert build.check_links(html, web.prefix(os.environ)) == []


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
        assert v.seen["tabs"] == 0, v.page
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
    assert words <= {claims.REPRODUCED, claims.NOT_REPRODUCED, claims.UNDECIDED, claims.NOT_RUN}


def test_every_result_page_tells_how_it_was_made(
    visits: list[Visit], notebook_visits: list[Visit]
) -> None:
    papers = {v.page.split("/")[1] for v in notebook_visits}
    chapters = [v for v in visits if v.page in {f"chapters/{paper}.html" for paper in papers}]
    assert {v.page for v in [*notebook_visits, *chapters] if v.seen["made"] != 1} == set()


def test_figures_lead_to_their_numbers_and_pages_to_their_bibtex(html: Path) -> None:
    figure = re.compile(r'<figure class="(?!explorable|diagram).*?</figure>', re.DOTALL)
    for name in sphinx.toc_pages(ROOT):
        text = (html / f"{name}.html").read_text(encoding="utf-8")
        if name.startswith(("notebooks/", "chapters/")):
            assert text.count(' cite-box">') == 1, name
            assert "@misc{fabook," in re.sub("<[^>]*>", "", text), name
        if name.startswith("notebooks/"):
            figures = figure.findall(text)
            assert figures, name
            for shown in figures:
                assert re.search(r'href="[^"]*/data/[^"]*\.csv"', shown), name
                assert re.search(r'href="[^"]*_downloads/[^"]*\.json"', shown), name


def test_folded_parts_open_on_a_click(browser: Any, address: str, visits: list[Visit]) -> None:
    wait = WebDriverWait(browser, 600, poll_frequency=0.05)
    resize(browser, 1440)
    pages = [v.page for v in visits if v.seen["solutions"] or v.seen["made"]]
    assert "how_to_read.html" in pages
    for page in pages:
        browser.get(f"{address}/{page}")
        for fold in browser.find_elements("css selector", "details.sd-dropdown:not([open])"):
            body = fold.find_elements("css selector", ":scope > :not(summary)")
            assert not any(part.is_displayed() for part in body), page
            title = fold.find_element("css selector", "summary")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", title)
            title.click()
            wait.until(lambda _, body=body: all(part.is_displayed() for part in body), page)
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

    resize(browser, 1440)
    wait = WebDriverWait(browser, 600)
    browser.get(f"{address}/intro.html")
    browser.find_element("css selector", ".search-button-field").click()
    fields = "input[type=search]"
    field = wait.until(
        lambda b: next((e for e in b.find_elements("css selector", fields) if e.is_displayed()), 0)
    )
    field.send_keys("degeneracy", Keys.ENTER)
    target = f"{address}/chapters/refinetti2021.html"

    def hit(browser: Any) -> Any:  # results appear one after the other
        links = browser.find_elements("css selector", "#search-results li a")
        hrefs = [link.get_attribute("href").split("#")[0].split("?")[0] for link in links]
        return links[hrefs.index(target)] if target in hrefs else None

    wait.until(hit).click()
    wait.until(lambda b: b.current_url.startswith(target))
    assert "egeneracy" in browser.find_element("css selector", "article").text


# --- the order of a page, and how it reads --------------------------------------------------------


def test_code_leads_to_the_api_pages(html: Path, notebook_visits: list[Visit]) -> None:
    for page in (v.page for v in notebook_visits):
        text = (html / page).read_text(encoding="utf-8")
        links = re.findall(r'<a class="api-link" href="(?:../)*api/[^"#]*#fabook[.][^"]*"', text)
        assert len(links) >= 5, page  # where they lead: test_links_and_anchors_resolve


def test_every_notebooks_page_has_a_hero(notebook_visits: list[Visit]) -> None:
    assert [v.page for v in notebook_visits if not v.seen["hero"]] == []


def test_the_first_figure_is_in_the_first_screen(
    visits: list[Visit], notebook_visits: list[Visit]
) -> None:
    pages = [*notebook_visits, *(v for v in visits if v.page.startswith("chapters/"))]
    for width, most in FIRST_FIGURE.items():
        tops = {v.page: v.first[width] for v in pages}
        assert {page: top for page, top in tops.items() if top is None or top > most} == {}, width


def test_nothing_scrolls_sideways_on_a_laptop(visits: list[Visit]) -> None:
    assert {v.page: v.scrolling[1440] for v in visits if v.scrolling[1440]} == {}


def test_only_tables_and_code_scroll_on_a_phone(visits: list[Visit]) -> None:
    tables = ("div.pst-scrollable-table-container", "div.dt-layout-row", "div.output.text_html")
    allowed = ("pre.", "div.highlight", *tables)
    wrong = {
        v.page: [name for name in v.scrolling[390] if not name.startswith(allowed)] for v in visits
    }
    assert {page: names for page, names in wrong.items() if names} == {}


def test_axe_finds_nothing_serious(visits: list[Visit]) -> None:
    assert {v.page: v.violations for v in visits if v.violations} == {}


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (390, "dark"), (1440, "dark")])
@pytest.mark.parametrize("page", ["intro", "notebooks/refinetti2021/online_dynamics", "scorecard"])
def test_axe_finds_nothing_serious_on_a_phone_or_in_the_dark(
    browser: Any, address: str, axe: str, page: str, width: int, theme: str
) -> None:
    resize(browser, width)
    browser.get(f"{address}/{page}.html")
    browser.execute_script(
        "document.documentElement.dataset.theme = arguments[0];"
        "document.querySelectorAll('article details').forEach((fold) => (fold.open = true))",
        theme,
    )
    settle(browser)
    browser.execute_script(axe)
    assert browser.execute_async_script(AXE) == []


def test_every_page_is_light(visits: list[Visit]) -> None:
    pages = {v.page: v.weight for v in visits}
    assert pages.pop("intro.html") < 1_000_000
    assert {page: weight for page, weight in pages.items() if weight >= 2_000_000} == {}


def test_paper_cuts_nothing_and_has_an_appendix_of_solutions(browser: Any, address: str) -> None:
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
        cut, inside, folded = browser.execute_script(
            "const all = q => [...document.querySelectorAll(q)];"
            "return [all('article pre, article table').filter(e => e.offsetParent && e.clientWidth"
            " && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80)),"
            " all('section.solutions .solution').filter(e => e.offsetParent).length,"
            " all('article details:not([open])').length]"
        )
        browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
        left = browser.find_elements("css selector", "section.solutions")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert cut == []
    assert inside == 1
    assert folded == 0
    assert left == []


def test_the_scorecard_sorts_and_filters_and_is_complete_without_javascript(
    browser: Any, address: str, html: Path
) -> None:
    rows = "table.scorecard-all tbody tr"
    n_claims = len(claims.load(ROOT))
    text = (html / "scorecard.html").read_text(encoding="utf-8")
    assert text.partition("scorecard-all")[2].partition("</table>")[0].count("<tr") == n_claims + 1
    resize(browser, 1440)
    browser.get(f"{address}/scorecard.html")
    assert len(browser.find_elements("css selector", rows)) == n_claims
    choice = browser.find_elements("css selector", ".filters select")[1]
    choice.find_element("xpath", "option[contains(., 'not reproduced')]").click()
    shown = browser.find_elements("css selector", rows)
    assert 0 < len(shown) < n_claims
    cells = [row.find_elements("css selector", "td")[2].text for row in shown]
    assert all("not reproduced" in cell for cell in cells)
    choice.find_element("xpath", "option[1]").click()
    browser.find_element("css selector", ".dt-search input").send_keys("conserve")
    found = browser.find_elements("css selector", rows)
    assert 0 < len(found) < n_claims
    heading = browser.find_elements("css selector", "table.scorecard-all thead th")[0]
    heading.find_element("css selector", ".dt-column-order, [role=button]").click()

    def is_sorted(browser: Any) -> bool:
        # One reading in the page: rows move while they sort, after the click.
        texts = f"return [...document.querySelectorAll('{rows}')].map(row => row.innerText)"
        order = browser.execute_script(texts)
        return len(order) == len(found) and order == sorted(order, key=str.lower)

    WebDriverWait(browser, 600).until(is_sorted)


def test_old_addresses_lead_to_the_page(browser: Any, address: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    for name in ("chapters/{}", "notebooks/{}/fixed_points"):
        browser.get(f"{address}/{name.format('chu2024')}.html")
        target = f"{address}/{name.format('chu2023')}.html"
        WebDriverWait(browser, 600).until(lambda b, target=target: b.current_url == target)


# --- what pages load, and how it behaves ---------------------------------------------------------


def settle(browser: Any) -> None:
    browser.execute_async_script(
        "const done = arguments[0];"
        "(window.MathJax?.startup?.promise ?? Promise.resolve()).then(() => setTimeout(done, 300))"
    )


def test_mathjax_is_loaded_only_for_formulas(browser: Any, address: str, html: Path) -> None:
    for path in sorted(html.glob("*.html")) + sorted(html.glob("chapters/*.html")):
        text = path.read_text(encoding="utf-8")
        formula = 'class="math' in text or 'class="amsmath' in text
        assert ("mathjax/startup.js" in text) == formula, path


def test_no_formula_is_left_as_text(html: Path) -> None:
    found = {}
    for path in sorted(html.rglob("*.html")):
        article = BeautifulSoup(path.read_text("utf-8"), "html.parser").select_one(".bd-article")
        for part in article.select("pre, code, script, style, .math") if article else ():
            part.decompose()
        if article and (left := re.findall(r".{0,20}\$.{0,20}|.{0,20}\{,\}.{0,20}", article.text)):
            found[path.name] = left
    assert found == {}


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


def test_formulas_have_one_size(browser: Any, address: str) -> None:
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    browser.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = 1")
    lines, own = browser.execute_script(
        "const size = e => parseFloat(getComputedStyle(e).fontSize);"
        "const all = q => [...new Set([...document.querySelectorAll(q)]"
        "  .map(e => (size(e) / size(e.parentElement)).toFixed(2)))];"
        "return [all('p mjx-container:not([display])'), all('mjx-container[display]')]"
    )
    assert lines == own == ["1.10"]


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
    WebDriverWait(browser, 600).until(
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
    found = WebDriverWait(browser, 600).until(
        lambda b: b.find_elements("css selector", "#search-results li p.context")
    )
    for excerpt in found:
        text = excerpt.text
        assert ".pdf" not in text
        assert "On this page" not in text
        assert "\\(" not in text


def test_search_finds_the_primer(browser: Any, address: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/search.html?q=direct+feedback+alignment")
    links = WebDriverWait(browser, 600).until(
        lambda b: b.find_elements("css selector", "#search-results li > a")
    )
    first = [link.get_attribute("href").split("#")[0].split("?")[0] for link in links[:5]]
    assert f"{address}/notebooks/primer/what_is_feedback_alignment.html" in first


def test_a_figure_is_larger_when_enlarged_on_a_phone(browser: Any, address: str) -> None:
    resize(browser, 390)
    browser.get(f"{address}/notebooks/refinetti2021/online_dynamics.html")
    settle(browser)
    button = browser.find_element("css selector", "figure.hero button.enlarge")
    browser.execute_script("arguments[0].click()", button)
    width, room, scrolls, page = browser.execute_script(
        "const dialog = document.querySelector('dialog.enlarged');"
        "return [dialog.querySelector('img').offsetWidth, dialog.offsetWidth,"
        " dialog.scrollWidth - dialog.clientWidth, document.documentElement.scrollWidth]"
    )
    assert width >= 1000
    assert room <= 390
    assert scrolls > 0
    assert page <= 390
    browser.find_element("css selector", "dialog.enlarged button").click()
    assert browser.find_elements("css selector", "dialog.enlarged") == []


GROUND = """
const [place, done] = arguments;
const picture = document.querySelector(place);
picture.scrollIntoView({ block: "center" });
let behind = picture.parentElement;
const colour = (element) => getComputedStyle(element).backgroundColor;
while (colour(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
const box = picture.getBoundingClientRect();
const seen = [box.left + 3, box.top + box.height / 2, colour(behind)];
picture.decode().then(() => setTimeout(() => done(seen), 300));
"""


@pytest.mark.parametrize(
    ("page", "picture"),
    [
        ("intro", "#fig-overview img"),
        ("intro", ".cards img"),
        ("notebooks/refinetti2021/online_dynamics", "figure.hero img"),
        ("notebooks/refinetti2021/online_dynamics", "dialog.enlarged img"),
    ],
)
def test_figures_take_the_ground_of_a_dark_page(
    browser: Any, address: str, page: str, picture: str
) -> None:
    from PIL import Image

    resize(browser, 1440)
    browser.get(f"{address}/{page}.html")
    settle(browser)
    browser.execute_script("document.documentElement.dataset.theme = 'dark'")
    if picture.startswith("dialog"):
        button = browser.find_element("css selector", "figure.hero button.enlarge")
        browser.execute_script("arguments[0].click()", button)
    x, y, ground = browser.execute_async_script(GROUND, picture)
    with Image.open(io.BytesIO(browser.get_screenshot_as_png())) as shot:
        seen = shot.convert("RGB").crop((int(x), int(y), int(x) + 1, int(y) + 1)).tobytes()
    wanted = [int(part) for part in re.findall(r"\d+", ground)[:3]]
    assert max(wanted) < 80
    assert max(abs(a - b) for a, b in zip(seen, wanted)) <= 4, (list(seen), wanted)


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
