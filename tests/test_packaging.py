"""What is packaged and tracked agrees with itself, and names nothing that it must not name."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import fabook

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DATA_SUFFIXES = {".npz", ".npy", ".pt", ".pth", ".pkl", ".gz", ".zip", ".bz2", ".xz", ".h5"}
# Imported where they are used, so that rules, metrics and theory run wherever torch runs.
LATE = {"dask", "distributed", "joblib", "jupytext", "matplotlib", "nbformat", "pandas"}
LATE |= {"papermill", "pooch", "scipy", "seaborn", "sklearn", "tqdm"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    pairs = [line.split(";")[0].split("==") for line in lines if line and line[0] != "#"]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def tracked() -> list[Path]:
    """The files that git tracks, or would once they are added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in names.splitlines()]
    return [file for file in files if file.is_file()]


def texts() -> dict[str, str]:
    found = {}
    for file in tracked():
        raw = file.read_bytes()
        if b"\0" not in raw:
            found[file.relative_to(ROOT).as_posix()] = raw.decode()
    return found


def test_version_has_one_source(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["dynamic"] == ["version"]
    assert metadata.version("fabook") == fabook.__version__ == citation["version"]


def test_citation_is_complete(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "abstract"} <= citation.keys()
    assert project["license"] in citation["license"]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in project["authors"]]


def test_every_citation_names_the_same_work() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    preferred = citation["preferred-citation"]
    deposit = json.loads((ROOT / ".zenodo.json").read_text())
    authors = [author["name"] for author in citation["authors"]]
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
    assert preferred["title"] == deposit["title"] == config["title"]
    assert str(preferred["year"]) == config["copyright"]
    assert [a["name"] for a in preferred["authors"]] == authors
    assert [a["name"] for a in deposit["creators"]] == authors
    assert deposit["license"] in citation["license"]
    assert deposit["keywords"] == citation["keywords"]
    assert " ".join(citation["abstract"].split()) in deposit["description"]


def test_licences_are_whole(project: dict[str, Any]) -> None:
    assert "Permission is hereby granted" in (ROOT / "LICENSE").read_text()
    text = (ROOT / "LICENSE-CC-BY-4.0").read_text()
    assert all(f"\nSection {n} -- " in text for n in range(1, 9))
    assert set(project["license-files"]) == {"LICENSE", "LICENSE-CC-BY-4.0"}


def test_constraints_pin_what_pyproject_asks(project: dict[str, Any], pins: dict[str, str]) -> None:
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "grading"}
    wanted = [Requirement(r) for r in sum(extras.values(), project["dependencies"])]
    for requirement in wanted:
        if requirement.name == "fabook" or (
            requirement.marker and not requirement.marker.evaluate()
        ):
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt has no {requirement.name}"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} against {pin}"


def test_constraints_are_plain_exact_versions() -> None:
    line_of = re.compile(r"[\w.-]+==[\w.]+( *; .*)?|#.*|")
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    assert [line for line in lines if not line_of.fullmatch(line)] == []


def test_environment_follows_pyproject(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert environment["name"] == project["name"]
    assert pip == "pip"
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python=") + ".0")
    assert packages == {"pip": ["--constraint constraints.txt", "--editable .[book,test]"]}
    assert {"book", "test"} <= project["optional-dependencies"].keys()
    makefile = (ROOT / "Makefile").read_text()
    assert '-c constraints.txt -e ".[book$(comma)test]"' in makefile


def test_binder_takes_what_pyproject_asks(project: dict[str, Any]) -> None:
    environment = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    python, torch, pip = environment["dependencies"]
    assert pip == "pip"
    assert SpecifierSet(project["requires-python"]).contains(python.removeprefix("python=") + ".0")
    (wanted,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "torch"]
    assert torch == f"pytorch-cpu{wanted.specifier}"
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    extras = re.findall(r'--editable "\.\[(\w+)\]"', script.read_text())
    assert set(extras) <= project["optional-dependencies"].keys()
    assert extras


def test_import_needs_torch_and_numpy_only() -> None:
    def loaded(package: str) -> set[str]:
        command = [sys.executable, "-c", f"import sys, {package}; print(*sys.modules)"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return set(run.stdout.split())

    assert not (loaded("fabook") - loaded("torch")) & LATE


def test_the_library_never_imports_the_book_tool() -> None:
    found = re.compile(r"^\s*(?:from|import) +bookkit\b", re.MULTILINE)
    modules = (ROOT / "fabook").rglob("*.py")
    assert [m for m in modules if found.search(m.read_text(encoding="utf-8"))] == []


PUBLIC = "losses metrics networks plots rules stacked streams training measuring tuning".split()


def on_the_api_pages() -> list[tuple[str, str]]:
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "book" / "api").glob("*.md"))
    return re.findall(r"auto(?:class|exception|function|data):: ([\w.]+)\.(\w+)", pages)


# Entries without an example so far: whoever adds one takes its name out.
WORKS = {  # of the theory packages
    "chu2023": "arxiv.org/abs/2306.02325",
    "refinetti2021": "arxiv.org/abs/2011.12428",
    "robertson2023": "arxiv.org/abs/2306.01870v1",
    "robertson2024": "arxiv.org/abs/2306.01870",
    "song2021": "arxiv.org/abs/2106.06044",
}


def module_of(name: str) -> Any:
    """`fabook.streams` is a function of the package and a module: autodoc asks for the module."""
    return sys.modules.get(name) or pydoc.locate(name)


def test_the_book_tool_names_no_paper_of_this_book() -> None:
    registry = tomllib.loads((ROOT / "book" / "claims.toml").read_text(encoding="utf-8"))
    ids = [paper["id"] for paper in registry["paper"]]
    papers = "|".join(name for name in ids if name[-1].isdigit())  # "primer" is a word as well
    named = re.compile(rf"\b(?:{papers})\b")
    modules = (ROOT / "book" / "bookkit").glob("*.py")
    assert [m.name for m in modules if named.search(m.read_text(encoding="utf-8"))] == []


def test_the_api_pages_name_what_exists() -> None:
    named = on_the_api_pages()
    assert len(named) > 50
    for module, name in named:
        assert hasattr(module_of(module), name), f"{module}.{name}"


def test_every_public_function_and_class_is_on_an_api_page() -> None:
    modules = [f"fabook.{name}" for name in PUBLIC]
    for package in (fabook.data, fabook.theory):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        modules += [each.name for each in found]
    named = [getattr(module_of(module), name) for module, name in on_the_api_pages()]
    missing = [
        f"{module}.{name}"
        for module in modules
        if "._" not in module
        for name, found in vars(importlib.import_module(module)).items()
        if getattr(found, "__module__", None) == module and not name.startswith("_")
        if inspect.isfunction(found) or inspect.isclass(found)
        if not any(found is other for other in named)
    ]
    assert missing == []


def test_every_entry_of_the_api_pages_has_an_example() -> None:
    example = re.compile(r"^Example:\n +>>> ", re.MULTILINE)
    named = {
        f"{module}.{name}": getattr(module_of(module), name) for module, name in on_the_api_pages()
    }
    missing = {
        name for name, found in named.items() if not example.search(inspect.getdoc(found) or "")
    }
    assert missing == set()


def test_the_theory_names_its_papers() -> None:
    bibliography = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    for paper, link in WORKS.items():
        entry = re.search(rf"(?s)@\w+{{{paper},.*?\n}}\n", bibliography)
        assert entry is not None, paper
        assert f"{{{link.removeprefix('arxiv.org/abs/')}}}" in entry[0]
        modules = sorted((ROOT / "fabook" / "theory" / paper).glob("*.py"))
        named = [ast.get_docstring(ast.parse(m.read_text(encoding="utf-8"))) for m in modules]
        assert [m.name for m, text in zip(modules, named) if link not in (text or "")] == []


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "fabook", "--help"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "usage: fabook" in run.stdout


def test_the_package_is_typed_and_has_its_command(project: dict[str, Any]) -> None:
    assert (ROOT / "fabook" / "py.typed").exists()
    assert (ROOT / "book" / "bookkit" / "py.typed").exists()
    assert project["scripts"] == {"fabook": "bookkit.cli:main"}


def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_no_registry_is_named() -> None:
    hosts = ["pypi" + ".org", "python" + "hosted", "registry." + "npmjs", "ana" + "conda.org"]
    hosts += ["download.pytorch" + ".org", "conda." + "ana" + "conda"]
    assert [(name, h) for name, text in texts().items() for h in hosts if h in text] == []


def test_no_path_leaves_the_repository() -> None:
    outside = re.compile(r"(?<![\w.:/>-])/(?:work|home|root|Users|mnt)/|\.\./shared")
    named = {name for name, text in texts().items() if outside.search(text)}
    assert named <= {".ci/run", "tests/test_packaging.py"}


def test_no_data_is_tracked() -> None:
    assert [f.name for f in tracked() if f.suffix in DATA_SUFFIXES] == []
    assert [f.name for f in tracked() if f.stat().st_size > 2_000_000] == []


def test_nothing_is_left_undone_or_switched_off() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "type: " + "ignore", "mark." + "skip", "mark." + "xfail"]
    own = {n: t for n, t in texts().items() if n.endswith((".py", ".md", ".toml", ".yml"))}
    assert [(name, m) for name, text in own.items() for m in marks if m in text] == []


@pytest.mark.parametrize("script", ["readme.py", "stability.py"])
def test_tables_are_those_of_their_files(script: str) -> None:
    command = [sys.executable, f".ci/{script}", "--check"]
    run = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_readme_example_runs() -> None:
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text())
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_readme_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", text)) <= targets
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    hosted = {link for link in links if link.startswith("../../")}  # the repository's own pages
    assert [link for link in links - hosted if not (ROOT / link).exists()] == []
    flows = {link.split("/")[4] for link in hosted - {"../../tree/notebooks"}}
    assert [name for name in flows if not (ROOT / ".github" / "workflows" / name).exists()] == []
    assert {f"../../actions/workflows/{name}/badge.svg" for name in flows} <= hosted


def test_no_function_is_longer_than_fifty_lines() -> None:
    long = []
    for folder in ("fabook", "book/bookkit", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    body = node.body[1:] if ast.get_docstring(node) else node.body
                    if body and body[-1].end_lineno - body[0].lineno + 1 > 50:
                        long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert long == []
