"""A headless Chromium, and a server of a folder, on this machine alone."""

from __future__ import annotations

import functools
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bookkit import doctor

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage"),
    *("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync"),
)
PATIENCE = 1800  # seconds for a script or for printing: a slow machine takes minutes


@contextmanager
def served(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address at which a folder is served.

    Args:
        more: pages that are not in the folder, address -> HTML.
    """
    pages = more or {}

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in pages:
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages[self.path].encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(*, logs: bool = False) -> Iterator[Any]:
    """A browser, driven by selenium.

    Args:
        logs: whether it keeps what pages ask for and say to the console.

    Raises:
        FileNotFoundError: if there is no Chromium with its driver.
    """
    from selenium import webdriver

    chromium = next(filter(None, map(shutil.which, doctor.BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise FileNotFoundError(
            "this needs chromium and chromedriver; `fabook doctor` says what is here"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        service = webdriver.ChromeService(executable_path=driver)
        window = webdriver.Chrome(options=options, service=service)
        window.set_script_timeout(PATIENCE)
        executor: Any = window.command_executor
        executor.client_config.timeout = PATIENCE
        try:
            yield window
        finally:
            window.quit()
