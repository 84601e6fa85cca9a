"""Strict modes for every test, and the options that choose device and dtype."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch and numpy are imported: one thread, so that results and times do not depend on load.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism asks of CUDA
os.environ.pop("TQDM_DISABLE", None)  # read when tqdm is imported; progress bars are tested

import torch  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fabook")
    group.addoption("--device", default="cpu", help="torch device of the tests: cpu, cuda, cuda:1")
    group.addoption("--dtype", default="float64", choices=DTYPES, help="dtype of the tests")
    group.addoption("--kills", type=int, default=1, help="kill -9 this often in each fault test")
    group.addoption("--otter", action="store_true", help="grade homeworks with otter itself")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what, promise): counted on the page of promises")
    config.addinivalue_line("markers", "long: left out without --kills")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--kills") == 1:
        left = [item for item in items if item.get_closest_marker("long") is not None]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True)
def _fault(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """What a fault test shows, into the report that `.ci/promises.py` counts."""
    marker = request.node.get_closest_marker("fault")
    if marker is not None:
        what, promise = marker.args
        record_property("fault", what)
        if "{" in promise:
            promise = promise.format(**request.node.callspec.params)
        record_property("promise", promise)


@pytest.fixture
def times(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Says how often a test made its fault, where that is not once."""
    return lambda number: record_property("times", number)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(pytestconfig: pytest.Config) -> torch.dtype:
    return DTYPES[pytestconfig.getoption("--dtype")]


@pytest.fixture
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default dtype is that of the tests."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


# --- the built site in a browser ------------------------------------------------------------------


@pytest.fixture(scope="session")
def html(repo: Path) -> Path:
    """The built site: `FABOOK_SITE`, else `_build/html`, which is built if it is not there."""
    folder = Path(os.environ.get("FABOOK_SITE", repo / "_build" / "html")).resolve()
    if not (folder / "index.html").is_file():
        assert "FABOOK_SITE" not in os.environ, f"no site in {folder}"
        for command in ("run", "build"):
            code = "import sys; from bookkit.cli import main; sys.exit(main(sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", code, command], check=True, cwd=repo)
    return folder


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    from bookkit import browser

    with browser.served(html) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from bookkit import browser

    with browser.opened(logs=True) as window:
        window.set_script_timeout(120)
        yield window
