"""Other people's tools run a plain notebook, from an installed package and outside a clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAWN = "chu2023/random_walk"  # with drawing functions in figures.py
SMALL = {"seeds": 2, "steps": 6, "n_train": 120, "n_full": 60, "width": 8, "batch_size": 20}
BOOK = ["book/claims.toml", "book/references.bib"]  # for verdicts and citations
FEW = {"steps": 60, "seeds": 2, "cloud_seeds": 2}
SIZES = {"robertson2023/minimum_norm": FEW, DRAWN: SMALL}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, nothing else of the repository beside it."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = str(folder / "wheels")
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, str(ROOT)], check=True)
    (wheel,) = (folder / "wheels").glob("*.whl")
    target = ["--no-deps", "--no-compile", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*pip, "install", *target], check=True)
    return folder / "site"


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A tool with the installed package in place of the repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FABOOK_")}
    environment |= {"PYTHONPATH": str(installed), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def words(**values: object) -> list[str]:
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


def pictures(path: Path) -> int:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Path:
    """The plain notebooks as the installed package writes them."""
    folder = tmp_path_factory.mktemp("exported")
    done = run(installed, folder, "fabook", "export", "--to", ".", "--no-solutions", *SIZES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=[*SIZES])
def plain(request: pytest.FixtureRequest, tmp_path: Path, exported: Path) -> Path:
    """A plain notebook in a folder of its paper's name with nothing else in it."""
    path = tmp_path / f"{request.param}.ipynb"
    path.parent.mkdir()
    return Path(shutil.copy(exported / f"{request.param}.ipynb", path))


def test_papermill_runs_a_plain_notebook_with_parameters(installed: Path, plain: Path) -> None:
    name = f"{plain.parent.name}/{plain.stem}"
    done = run(installed, plain.parent, "papermill", plain.name, "out.ipynb", *words(**SIZES[name]))
    assert done.returncode == 0, done.stderr
    assert f"{name.replace('/', '.')}." in printed(plain.with_name("out.ipynb"))  # verdicts
    if name == DRAWN:  # of the committed results, and of this run
        assert pictures(plain.with_name("out.ipynb")) == 2
    assert {p.name for p in plain.parent.iterdir()} == {plain.name, "out.ipynb"}


def test_jupyter_execute_runs_a_plain_notebook_and_then_nbval(installed: Path, plain: Path) -> None:
    name = f"{plain.parent.name}/{plain.stem}"
    notebook = nbformat.read(plain, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += "".join(f"\n{key} = {value}" for key, value in SIZES[name].items())
    nbformat.write(notebook, plain)
    done = run(installed, plain.parent, "jupyter", "execute", "--inplace", plain.name)
    assert done.returncode == 0, done.stderr
    assert f"{name.replace('/', '.')}." in printed(plain)
    if name == DRAWN:
        return
    options = ["-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    done = run(installed, plain.parent, "pytest", "-q", *options, plain.name)
    assert done.returncode == 0, done.stdout


def test_without_a_registry_a_notebook_runs_and_judges_nothing(
    installed: Path, tmp_path: Path
) -> None:
    site, folder = tmp_path / "site", tmp_path / "here"
    shutil.copytree(installed, site, ignore=shutil.ignore_patterns("_book"))
    folder.mkdir()
    source = ROOT / "notebooks" / f"{DRAWN}.md"
    jupytext.write(jupytext.read(source), folder / "walk.ipynb")
    shutil.copy(source.with_name("figures.py"), folder)
    done = run(site, folder, "papermill", "walk.ipynb", "out.ipynb", *words(**SMALL))
    assert done.returncode == 0, done.stderr
    said = printed(folder / "out.ipynb")
    assert "this notebook runs, and judges nothing" in said
    assert "not judged      chu2023.random_walk." in said
    assert "reproduced" not in said
    assert pictures(folder / "out.ipynb") == 1  # there are no committed results


def test_the_wheel_has_the_notebooks_and_no_answers(installed: Path) -> None:
    found = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    book = {name.split("/_book/")[1] for name in found if "/_book/" in name}
    command = ["git", "ls-files", "notebooks", "book/results", *BOOK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {n for n in done.stdout.split() if not n.startswith("notebooks/homework/")}
    assert wanted <= book
    assert not {name for name in book if "homework" in name}
    assert {"fabook/__init__.py", "bookkit/cli.py"} <= found
    assert not {name.split("/")[0] for name in found} & {"book", "notebooks", "figures", "tests"}


def test_the_wheel_brings_the_claims(installed: Path, tmp_path: Path) -> None:
    code = "from bookkit import claims; print(claims.find_root(), len(claims.load()))"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    environment.pop("FABOOK_ROOT", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    folder, count = done.stdout.split()
    assert Path(folder) == installed / "bookkit" / "_book"
    assert int(count) > 50
    shown = run(installed, tmp_path, "fabook", "claims", "--json", "--preset", "paper")
    rows = json.loads(shown.stdout)
    assert {row["verdict"] for row in rows} - {"not run"}  # the committed results came along
    assert list(tmp_path.iterdir()) == []
