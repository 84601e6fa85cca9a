"""A homework as a student does it: JupyterLab in a browser, an answer, the export, the points."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bookkit import cli

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token"
PYTHON = ROOT / ".venv-homework" / "bin" / "python"
ANSWER = """\
def signals(rule, e, z, W, B, F):
    gate = {l: (z[l] > 0).to(e) for l in (1, 2)}
    M = W if rule == "BP" else B
    top = (e @ F[2].T if rule == "DFA" else e @ M[3]) * gate[2]
    low = e @ F[1].T if rule == "DFA" else top @ M[2]
    return low * gate[1], top
"""
PASTE = """
const data = new DataTransfer();
data.setData("text/plain", arguments[1]);
arguments[0].dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
"""
SETTINGS = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}


@pytest.fixture
def served(pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[str | None]:
    """JupyterLab of the homework environment in a folder that holds the student's notebook."""
    if not pytestconfig.getoption("--otter"):
        yield None
        return
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".jupyter" / "labconfig").mkdir(parents=True)
    work.mkdir()
    shutil.copy(ROOT / "_build" / "homework" / "hw1" / "student" / "hw1.ipynb", work)
    for name, content in (
        ("jupyter_server_config.json", {"ServerApp": {"allow_root": True}}),
        ("labconfig/default_setting_overrides.json", SETTINGS),
    ):
        (home / ".jupyter" / name).write_text(json.dumps(content))
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "FABOOK", "XDG"))}
    own |= {"HOME": str(home), "JUPYTER_TOKEN": TOKEN, "FABOOK_COURSE": "11"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(PYTHON), "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}"]
    log = home / "log"
    with (
        open(log, "wb") as out,
        subprocess.Popen(
            words, cwd=work, env=own, stdout=out, stderr=out, start_new_session=True
        ) as server,
    ):
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}/api?token={TOKEN}"), log.read_text)
            yield f"http://127.0.0.1:{port}/lab/tree/hw1.ipynb?token={TOKEN}&reset"
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urlopen(url):
            return True
    except OSError:
        return False


def until(condition: Callable[[], Any], why: Callable[[], str]) -> Any:
    end = time.monotonic() + 240
    while not (found := condition()):
        assert time.monotonic() < end, why()
        time.sleep(0.3)
    return found


def test_a_student_answers_exports_and_is_graded(
    request: pytest.FixtureRequest, served: str | None, tmp_path: Path
) -> None:
    if served is None:  # it runs in `make test-homework`, which builds the homeworks first
        assert "--otter tests/homework" in (ROOT / "Makefile").read_text()
        return
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = request.getfixturevalue("browser")
    work = tmp_path / "work"

    def js(script: str) -> Any:
        return browser.execute_script(script)

    def cell(starts: str) -> str:
        text = f"c.querySelector('.cm-content')?.innerText.startsWith({starts!r})"
        return f"[...document.querySelectorAll('.jp-Notebook .jp-Cell')].find(c => {text})"

    def shown(starts: str) -> str:
        return str(js(f"return {cell(starts)}?.querySelector('.jp-OutputArea')?.innerText || ''"))

    def press(*keys: str) -> None:
        *held, last = keys
        chain = ActionChains(browser)
        for key in held:
            chain.key_down(key)
        chain.send_keys(last)
        for key in held:
            chain.key_up(key)
        chain.perform()

    def run_all() -> None:
        menu = "[...document.querySelectorAll('.lm-MenuBar-item')].find(m => m.innerText === 'Run')"
        ActionChains(browser).click(js(f"return {menu}")).perform()
        item = '.lm-Menu-item[data-command="runmenu:run-all"]'
        found = until(lambda: js(f"return document.querySelector('{item}')"), page)
        ActionChains(browser).click(found).perform()

    def page() -> str:
        return str(js("return document.body.innerText"))[-3000:]

    browser.set_window_size(1400, 900)
    browser.get(served)
    until(lambda: js(f"return {cell('def signals')}"), page)
    until(lambda: js("return document.querySelector('[data-status=\"idle\"]')"), page)
    run_all()  # as it was handed out
    until(lambda: "return (delta_1, delta_2)" in shown('grader.check("q1")'), page)
    until(lambda: "q4" in shown("# Save your notebook"), page)  # the export ran all tests again
    for path in work.glob("hw1_*.zip"):
        path.unlink()

    editor = js(f"const c = {cell('def signals')}; c.scrollIntoView(); return c")
    editor = editor.find_element("css selector", ".cm-content")
    ActionChains(browser).click(editor).perform()
    press(Keys.CONTROL, "a")
    browser.execute_script(PASTE, editor, ANSWER)
    press(Keys.CONTROL, "s")
    until(lambda: "low * gate[1], top" in (work / "hw1.ipynb").read_text(), page)
    run_all()
    until(lambda: "q1 passed" in shown('grader.check("q1")'), page)
    (exported,) = until(lambda: sorted(work.glob("hw1_*.zip")), page)
    until(lambda: "q4" in shown("# Save your notebook"), page)
    until(lambda: "has been exported" in shown("# Save your notebook"), page)

    handed_in = tmp_path / "submissions"
    handed_in.mkdir()
    shutil.copy(exported, handed_in / "student.zip")
    words = ["grade", str(handed_in), "--python", str(PYTHON), "--course", "11"]
    assert cli.main(words) == 0
    with (handed_in / "graded" / "grades.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["submission"], row["q1"], row["total"]) == ("student.zip", "3", "3")
