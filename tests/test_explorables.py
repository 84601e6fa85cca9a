"""The explorable figures: their numbers are the library's, and mouse and keyboard move them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fabook import FA
from fabook.theory import chu2023
from fabook.theory.refinetti2021 import online

PAGES = {
    "chain": "chapters/chu2023.html",
    "feedback": "notebooks/refinetti2021/degeneracy_breaking.html",
}
TEACHER = [0.6, 1.4]


class Explorable(NamedTuple):
    """A figure on its page, begun."""

    browser: Any
    name: str

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", f"#explorable-{self.name} {css}")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(
            self.find(".explorable-board").get_attribute("data-state")
        )
        return state

    @property
    def words(self) -> str:
        return str(self.find(".explorable-words").text)

    def press(self, label: str) -> None:
        buttons = self.browser.find_elements(
            "css selector", f"#explorable-{self.name} .explorable-controls button"
        )
        next(button for button in buttons if button.text == label).click()

    def calculate(self, call: str, *arguments: Any) -> Any:
        """What a function of the page's program returns."""
        return self.browser.execute_script(
            f"return window.explorables.{self.name}.{call}(...arguments)", *arguments
        )


def show(browser: Any, address: str, name: str, width: int = 1440) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")  # what other pages said
    browser.get(f"{address}/{PAGES[name]}")


def begin(browser: Any, name: str) -> Explorable:
    from selenium.webdriver.support.ui import WebDriverWait

    button = browser.find_element("css selector", f"#explorable-{name} .explorable-begin button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    board = f"#explorable-{name} .explorable-board[data-state]"
    WebDriverWait(browser, 600).until(lambda b: b.find_elements("css selector", board))
    figure = Explorable(browser, name)
    scroll = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    browser.execute_script(scroll, figure.find(".explorable-board"))
    return figure


@pytest.fixture
def chain(browser: Any, address: str) -> Explorable:
    show(browser, address, "chain")
    return begin(browser, "chain")


@pytest.fixture
def feedback(browser: Any, address: str) -> Explorable:
    show(browser, address, "feedback")
    return begin(browser, "feedback")


@pytest.fixture(params=PAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- numbers --------------------------------------------------------------------------------------


def draws(n: int, seed: int = 0) -> np.ndarray:
    """Starts w1, w2 and feedback b of both signs, and targets y."""
    generator = np.random.default_rng(seed)
    found = generator.uniform(-2.0, 2.0, size=(n, 4))
    found[:, 2] += np.where(found[:, 2] < 0, -0.2, 0.2)
    found[:, 3] = np.abs(found[:, 3]) + 0.3
    return found


def test_formulas_of_the_chain_are_the_librarys(chain: Explorable) -> None:
    for w1, w2, b, y in draws(20).tolist():
        assert chain.calculate("exponent", w1, w2, b) == pytest.approx(
            chu2023.chain_exponent(w1, w2, b=b), rel=1e-12
        )
        assert chain.calculate("alignment", w1, w2, b) == pytest.approx(
            chu2023.chain_alignment(w1, w2, b=b), rel=1e-12
        )
        assert chain.calculate("edge", y, b) == pytest.approx(chu2023.chain_edge(y=y, b=b))


def test_walker_of_the_chain_rests_where_the_librarys_flow_does(chain: Explorable) -> None:
    for w1, w2, b, y in draws(20).tolist():
        path1, path2 = chain.calculate("path", w1, w2, y, b)
        kept = np.asarray(path2) - np.asarray(path1) ** 2 / (2 * b)
        np.testing.assert_allclose(kept, w2 - w1**2 / (2 * b), atol=1e-9)
        ends = chu2023.chain_flow([w1], [w2], [400.0], y=y, b=b)
        rest = chain.calculate("rest", w1, w2, y, b)
        assert rest == pytest.approx([float(end[0, 0]) for end in ends], abs=1e-4)
        assert chu2023.chain_exponent(*rest, b=b) <= 1e-9


def test_walker_of_the_chain_follows_the_feedback_rule(chain: Explorable) -> None:
    """Small steps of FA itself, on the network with these two weights."""
    w1, w2, b, y = -0.5, -1.85, 1.0, 1.0
    net = chu2023.chain(w1, w2)
    one = torch.ones(1, 1, dtype=torch.float64)
    rule = FA(net, feedback={"0": b * one})
    for _ in range(4000):
        rule.backward(one, y * one, loss="mse")
        with torch.no_grad():
            for weight in net.parameters():
                weight -= 0.005 * weight.grad
    end = [float(weight.item()) for weight in net.parameters()]
    assert chain.calculate("rest", w1, w2, y, b) == pytest.approx(end, abs=0.02)


def test_velocity_of_the_order_parameters_is_the_librarys(feedback: Explorable) -> None:
    """The first layer's and the read-out's small-step drift, from the library's integrals."""
    generator = np.random.default_rng(1)
    for _ in range(10):
        overlap = generator.normal(size=(4, 4)) / 2
        C = overlap @ overlap.T
        C[2:, 2:] = np.eye(2)
        C[:2, 2:] *= 0.3
        C[2:, :2] = C[:2, 2:].T
        v, F = generator.normal(size=2), generator.normal(size=2)
        c = np.append(-v, TEACHER)
        drift = F[:, None] * (online.I3(C, units=2) @ c)
        Q = drift[:, :2] + drift[:, :2].T
        said = [Q[0, 0], Q[0, 1], Q[1, 1], *drift[:, 2:].ravel(), *(online.I2(C)[:2] @ c)]
        state = [C[0, 0], C[0, 1], C[1, 1], *C[:2, 2:].ravel(), *v]
        found = feedback.calculate("velocity", [float(s) for s in state], F.tolist())
        np.testing.assert_allclose(found, said, rtol=1e-10, atol=1e-12)


def test_path_of_the_read_out_is_the_librarys(feedback: Explorable) -> None:
    lr = 1e-3
    for angle in (20, 100, 200, 320):
        F = [1.4 * np.cos(np.radians(angle)), 1.4 * np.sin(np.radians(angle))]
        found = feedback.calculate("path", F)
        times = np.array(found["t"])[1 :: max(1, len(found["t"]) // 40)]
        said = online.online_dynamics(
            np.zeros((2, 2)),
            np.zeros((2, 2)),
            np.eye(2),
            [0, 0],
            TEACHER,
            feedback=F,
            lr=lr,
            times=times / lr,
        )
        for key, column in (("v1", 0), ("v2", 1)):
            ours = np.interp(times, found["t"], found[key])
            np.testing.assert_allclose(ours, said.v[:, column], atol=0.02)


def test_winner_is_the_solution_of_largest_overlap(feedback: Explorable) -> None:
    solutions = online.equivalent_readouts(TEACHER)
    found = feedback.browser.execute_script("return window.explorables.feedback.solutions")
    np.testing.assert_allclose(sorted(found), sorted(solutions.tolist()))
    for angle in np.radians(np.arange(5, 360, 10)):
        F = np.array([np.cos(angle), np.sin(angle)])
        best = solutions[np.argmax(solutions @ F)]
        assert feedback.calculate("winner", F.tolist()) == pytest.approx(best.tolist())


# --- in the browser -------------------------------------------------------------------------------


def test_nothing_is_loaded_before_a_reader_begins(browser: Any, address: str, name: str) -> None:
    show(browser, address, name)
    loaded = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert not [url for url in browser.execute_script(loaded) if "jsxgraph" in url]
    picture = browser.find_element("css selector", f"#explorable-{name} svg.explorable-picture")
    assert len(picture.get_attribute("aria-label")) > 80
    begin(browser, name)
    urls = browser.execute_script(loaded)
    assert [url for url in urls if "jsxgraphcore.js" in url]
    assert all(url.startswith(address) for url in urls)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_explorables_fit_a_phone(browser: Any, address: str, name: str, theme: str) -> None:
    show(browser, address, name, width=390)
    browser.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    figure = begin(browser, name)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    board = figure.find(".explorable-board")
    assert 300 <= board.rect["width"] <= 390
    assert board.rect["height"] == pytest.approx(board.rect["width"], abs=2)
    sizes = browser.execute_script(
        "return [...arguments[0].querySelectorAll('text')].map(t => parseFloat("
        "getComputedStyle(t).fontSize))",
        board,
    )
    assert min(sizes) >= 11
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_walker_is_moved_with_the_mouse(chain: Explorable) -> None:
    from selenium.webdriver import ActionChains

    before = chain.state
    handle = chain.find(".x-handle")
    ActionChains(chain.browser).click_and_hold(handle).move_by_offset(60, -40).release().perform()
    after = chain.state
    assert after["start"][0] > before["start"][0] + 0.5
    assert after["start"][1] > before["start"][1] + 0.3
    w1, w2 = after["end"]
    assert w1 * w2 == pytest.approx(1.0, abs=1e-9)


def test_walker_and_feedback_are_moved_with_keys(chain: Explorable) -> None:
    from selenium.webdriver.common.keys import Keys

    handle = chain.browser.switch_to.active_element
    assert handle.get_attribute("aria-label").startswith("Start of the walker")
    assert handle.get_attribute("tabindex") == "0"
    before = chain.state
    handle.send_keys(Keys.ARROW_RIGHT * 4, Keys.ARROW_UP * 2)
    after = chain.state
    assert after["start"][0] > before["start"][0] + 0.2
    assert after["start"][1] > before["start"][1] + 0.1
    slider = chain.find("input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT * 5)
    assert chain.state["b"] == pytest.approx(0.5)
    assert chain.find("output").text == "0.50"


def test_walker_leaves_a_misaligned_minimum_to_either_side(chain: Explorable) -> None:
    chain.press("Above a misaligned minimum")
    above = chain.state
    assert "misaligned" in chain.words
    assert chain.words.endswith("aligned, so the minimum is stable.")
    chain.press("Below it")
    below = chain.state
    assert above["end"][0] > 0 > below["end"][0]
    for state in (above, below):
        assert chu2023.chain_exponent(*state["start"], b=state["b"]) > 0
        assert chu2023.chain_exponent(*state["end"], b=state["b"]) < 0


def test_feedback_is_turned_with_mouse_and_keys(feedback: Explorable) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    assert feedback.state["end"] == pytest.approx([1.4, 0.6], abs=0.02)
    handle = feedback.find(".x-handle")
    mouse = ActionChains(feedback.browser)
    mouse.click_and_hold(handle).move_by_offset(-98, -105).release().perform()
    turned = feedback.state
    assert turned["best"] == [0.6, 1.4]
    assert turned["end"] == pytest.approx([0.6, 1.4], abs=0.02)
    feedback.press("Flip the sign of F₁")
    assert feedback.state["end"] == pytest.approx([-0.6, 1.4], abs=0.02)
    slider = feedback.find("input[type=range]")
    before = int(slider.get_attribute("value"))
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    assert int(slider.get_attribute("value")) == before + 3
    handle = feedback.find(".x-handle")
    feedback.browser.execute_script("arguments[0].focus()", handle)
    was = feedback.state["F"]
    feedback.browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT * 3)
    assert feedback.state["F"] != was
