"""JupyterLab in a real browser: sources open as notebooks and are saved unchanged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bookkit import claims, cli, export, lab, notebooks

ROOT = Path(__file__).resolve().parents[2]
NAME = "robertson2023/conservation"
TITLE = "Alignment is conserved"
TOKEN = "a-token"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone's sources, and a plain notebook."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (
        "book/claims.toml",
        "book/references.bib",
        f"notebooks/{NAME}.md",
        "jupytext.toml",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    export.export(folder, folder / "_build", folder / "plain")
    return folder


@pytest.fixture(scope="module")
def served(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `fabook lab` serves, in a home that allows root, as in a container."""
    home = tmp_path_factory.mktemp("home")
    (home / ".jupyter").mkdir()
    allowed = json.dumps({"ServerApp": {"allow_root": True}})
    (home / ".jupyter" / "jupyter_server_config.json").write_text(allowed)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "FABOOK", "XDG"))}
    own |= {"HOME": str(home), "JUPYTER_TOKEN": TOKEN, "FABOOK_ROOT": str(clone)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "fabook", "lab", NAME, "--no-browser", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with (
        open(home / "log", "wb") as log,
        subprocess.Popen(words, env=own, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            _wait(f"{address}/api?token={TOKEN}", server, home / "log")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    kept = {p.relative_to(home).as_posix() for p in (home / ".jupyter").rglob("*") if p.is_file()}
    assert not [name for name in kept if "user-settings" in name or "workspace" in name]


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end and server.poll() is None:
        try:
            with urlopen(url):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def wait_for(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 600, poll_frequency=0.2)
    return wait.until(lambda b: b.execute_script(f"return {script}"))


OPEN = (
    "[...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) h1')]"
    f".some(h => h.textContent.includes('{TITLE}'))"
)


def test_a_source_opens_as_a_notebook_on_a_double_click_and_is_saved_unchanged(
    browser: Any, served: str, clone: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    source = clone / "notebooks" / f"{NAME}.md"
    before = source.read_bytes()
    browser.set_window_size(1400, 900)
    browser.get(f"{served}/lab/tree/notebooks/robertson2023?token={TOKEN}&reset")
    file = "document.querySelector('.jp-DirListing-item[title*=\"conservation.md\"]')"
    item = wait_for(browser, file)
    ActionChains(browser).double_click(item).perform()
    assert wait_for(browser, OPEN)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
    end = time.monotonic() + 600
    while not (source.parent / ".ipynb_checkpoints").is_dir() and time.monotonic() < end:
        time.sleep(0.1)
    assert (source.parent / ".ipynb_checkpoints").is_dir()  # it was saved
    assert source.read_bytes() == before
    assert [book.name for book in notebooks.notebooks(clone)] == [NAME]


def test_a_plain_notebook_is_shown_well(browser: Any, served: str) -> None:
    browser.get(f"{served}/lab/tree/plain/{NAME}.ipynb?token={TOKEN}&reset")
    assert wait_for(browser, OPEN)
    assert wait_for(
        browser, "document.querySelectorAll('.jp-RenderedMarkdown mjx-container').length"
    )
    page = "document.querySelector('.jp-Notebook')"
    assert browser.execute_script(f"return {page}.querySelectorAll('mjx-merror').length") == 0
    text = browser.execute_script(f"return {page}.textContent")
    assert "Robertson and Koyejo (2023)" in text
    assert "{cite" not in text
    assert ":::" not in text


def test_what_lab_needs_is_told(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FABOOK_ROOT", str(clone))
    words = lab.command(clone, clone / "_build", "conservation", port=9000)
    assert f"--LabApp.default_url=/lab/tree/notebooks/{NAME}.md" in words
    assert "--ServerApp.port=9000" in words
    assert "--no-browser" not in words
    assert cli.main(["lab", "nothing"]) == 2
    assert "unknown notebook 'nothing'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"fabook export --to DIR"):
        lab.command(claims.PACKAGED, clone / "_build")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["lab"]) == 2
    assert "pip install -e '.[lab]'" in capsys.readouterr().err


def test_the_settings_stand_beside_the_readers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    assert lab.environment()["JUPYTER_CONFIG_PATH"] == f"mine{os.pathsep}{lab.SETTINGS}"
    json.loads((lab.SETTINGS / "labconfig" / "default_setting_overrides.json").read_text())
