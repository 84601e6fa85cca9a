"""Strict modes for every test, and the options that choose device and dtype."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch and numpy are imported: one thread, so that results and times do not depend on load.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism asks of CUDA

import torch  # noqa: E402

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fabook")
    group.addoption("--device", default="cpu", help="torch device of the tests: cpu, cuda, cuda:1")
    group.addoption("--dtype", default="float64", choices=DTYPES, help="dtype of the tests")
    group.addoption("--otter", action="store_true", help="grade homeworks with otter itself")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(pytestconfig: pytest.Config) -> torch.dtype:
    return DTYPES[pytestconfig.getoption("--dtype")]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent
