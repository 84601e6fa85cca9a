"""The cache: results are kept by a hash of everything that they depend on.

That is the notebook's source; the modules that it uses, followed from import to import and read
as code without docstrings and comments; data, parameters, versions, and the bounds of its claims.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from os.path import isfile
from pathlib import Path
from typing import Any

from bookkit import claims, parameters
from bookkit.files import digest
from bookkit.notebooks import Job, drawings
from bookkit.parameters import UsageError

UNCHECKED = ("checksum", "date", "minutes")  # fields outside the results' own checksum
NAMED = ("torch", "numpy", "scipy", "fabook")  # packages whose versions a results file names
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_OURS = ("fabook", "bookkit")  # followed even where they are installed like other packages


# --- modules -------------------------------------------------------------------------------------


class Module:
    """Python code: the names it imports and uses, and its tree without docstrings."""

    def __init__(self, source: str, package: tuple[str, ...] = ()) -> None:
        try:
            tree: ast.Module = parameters.parse(source)
        except SyntaxError:  # the run will say where; till then it is a text of which all counts
            tree = parameters.parse(repr(source.encode()))
        self.imports: dict[str, str] = {}  # a name in the module -> what it stands for
        self.loads: set[str] = set()  # whole modules that are imported, whatever is used of them
        self.draws = False  # whether it takes `run.figures`
        self.starts = ""  # the name that it gives to `bookkit.start`
        self.words: set[str] = set()  # texts in it, such as names of files
        held = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in ast.walk(tree):
            self._read(node, package)
        self.uses = set(filter(None, (self._used(n) for n in ast.walk(tree) if id(n) not in held)))
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        self.digest = digest(ast.dump(tree).encode())

    def _read(self, node: ast.AST, package: tuple[str, ...]) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.asname is not None
                self.imports[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if whole else alias.name.split(".")[0]
                )
                self.loads.add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                self.imports[alias.asname or alias.name] = f"{base}.{alias.name}"
                self.loads.add(f"{base}.{alias.name}")
        elif isinstance(node, ast.Attribute):
            self.draws |= node.attr == "figures"
        elif isinstance(node, ast.Constant):
            self.words |= {str(node.value), *str(node.value).split()}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            words = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            if called.endswith("import_module"):
                self.loads |= set(words)
            elif called.endswith("run_line_magic") and words[:1] == ["run"]:  # `%run -i file.py`
                files = [w.removesuffix(".py").strip("./") for w in " ".join(words[1:]).split()]
                self.loads |= {file.replace("/", ".") for file in files if file}
            elif self._used(node.func).removesuffix(".*") == "bookkit.start":
                self.starts = "".join(words[:1])

    def _used(self, node: ast.AST) -> str:
        """The dotted name that an expression such as `package.module.function` stands for."""
        rest = []
        while isinstance(node, ast.Attribute):
            rest.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.imports:
            return ""
        return ".".join([self.imports[node.id], *reversed(rest or ["*"])])


@functools.lru_cache(maxsize=1024)
def _module(path: Path, package: tuple[str, ...], _: int) -> Module:
    return Module(path.read_text(encoding="utf-8"), package)


@functools.cache
def _top(name: str) -> Path | None:
    """Where a package of one's own lies, not one of Python's or of an installed package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    place = path.parent if path.name == "__init__.py" else path
    installed = name in sys.stdlib_module_names or any(place.parent.glob("*.dist-info"))
    return place if name in _OURS or not installed else None


def modules(source: str, folder: Path, root: Path | None = None) -> tuple[dict[str, str], set[str]]:
    """The modules of one's own that code uses, transitively, and other packages' names.

    Of a package only what is used of it is followed: names that its `__init__` merely passes on
    lead to their own modules. Whoever takes `run.figures` uses the module that it stands for.

    Returns:
        Path to digest of each module, and the first names of all that is imported from elsewhere.
    """
    found: dict[str, str] = {}
    others: set[str] = set()
    first = Module(source)
    seen, todo = set[str](), sorted(first.loads | first.uses)
    drawn = drawings(first.starts, folder, root) if first.draws else None
    todo += ["figures"] if drawn else []
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        top, *rest = name.split(".")
        local = [p for p in (folder / f"{top}.py", folder / top) if p.exists()]
        place = drawn if drawn and top == "figures" else local[0] if local else _top(top)
        if place is None:
            others.add(top)
            continue
        for path, package, wanted in _walk(place, top, rest):
            module = _module(path, package, path.stat().st_mtime_ns)
            found[str(path)] = module.digest
            todo += wanted(module) if callable(wanted) else wanted
    return found, others


def _walk(place: Path, name: str, rest: list[str]) -> Iterator[tuple[Path, tuple[str, ...], Any]]:
    """The files on the way to a dotted name, each with what it leads to."""
    package = tuple(name.split("."))
    if place.suffix == ".py":
        yield place, package[:-1], lambda module: module.loads | module.uses
        return
    deeper = [p for p in (place / f"{rest[0]}.py", place / rest[0]) if p.exists()] if rest else []
    if (init := place / "__init__.py").is_file():

        def wanted(module: Module) -> set[str]:
            if not rest or deeper:
                return module.uses
            if rest[0] in module.imports:  # passed on
                return module.uses | {".".join([module.imports[rest[0]], *rest[1:]])}
            return module.loads | module.uses

        yield init, package, wanted
    if deeper:
        yield from _walk(deeper[0], f"{name}.{rest[0]}", rest[1:])


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """The versions that a results file names."""
    return {"python": platform.python_version()} | {name: _version(name) for name in NAMED}


def _code(path: Path) -> str:
    cells = [cell.source for cell in parameters.read(path).cells if cell.cell_type == "code"]
    return "\n".join(map(parameters.python, cells))


def sources(path: Path, root: Path | None = None) -> dict[str, str]:
    """Digests of the code of a notebook and of the modules that it uses, without docstrings."""
    code = _code(path)
    found = {str(path): Module(code).digest} | modules(code, path.parent, root)[0]
    return {f"{Path(p).parent.name}/{Path(p).name}": d[:16] for p, d in sorted(found.items())}


def source_hash(path: Path, root: Path | None = None) -> str:
    """SHA-256 over a notebook's source, the modules that it uses, and versions of all others."""
    found, others = modules(_code(path), path.parent, root)
    found = {f"{Path(p).parent.name}/{Path(p).name} {d}": "" for p, d in found.items()}
    names = {n for o in others - set(sys.stdlib_module_names) for n in _distributions().get(o, [])}
    rc = path.parent / "matplotlibrc"  # matplotlib reads one in the notebook's folder
    style = digest(rc.read_bytes()) if rc.is_file() else None
    software = {name: _version(name) for name in sorted(names)}
    return digest([digest(path.read_bytes()), sorted(found), style, software])


# --- keys ----------------------------------------------------------------------------------------


def used(job: Job) -> dict[str, Any]:
    """All parameters of a job, with the device that it runs on; the table's only where set."""
    defaults = {
        name: known.default
        for name, known in parameters.of(job.source).items()
        if known.default is not None or not known.presets
    }
    device = claims.resolve_device(job.device)
    return defaults | {"preset": job.preset, "device": device} | job.custom


@functools.lru_cache(maxsize=4096)
def _file(path: Path, size: int, mtime_ns: int) -> str:
    return digest(path.read_bytes())


def _data(job: Job) -> list[list[str]] | None:
    """Content of the data folder, where a run may read it."""
    folder = job.settings.get("FABOOK_DATA")
    if not folder or (job.preset == "quick" and not job.own):
        return None
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return _contents({str(path.relative_to(folder)): path for path in found})


def _contents(files: Mapping[str, Path]) -> list[list[str]]:
    stats = [(name, path, path.stat()) for name, path in files.items()]
    return [[name, _file(path, s.st_size, s.st_mtime_ns)] for name, path, s in stats]


def _beside(job: Job, code: Module) -> list[Any]:
    """Where a notebook of one's own lies, and the files that it names, seen from there."""
    if job.inside:
        return []
    folder = job.source.parent
    files = {word: folder / word for word in sorted(code.words) if isfile(folder / word)}
    return [str(folder), _contents(files)]


def cache_key(job: Job) -> str:
    """SHA-256 over everything that the job's results depend on.

    Raises:
        UsageError: if a notebook of the book starts under another's name.
    """
    root, code = Path(job.root), Module(_code(job.source))
    name = code.starts or job.notebook  # a copy elsewhere is judged as what it was copied from
    if job.inside and name != job.notebook:
        raise UsageError(
            f"{job.source} calls bookkit.start with {name!r}: it must be {job.notebook!r}"
        )
    checks = {
        claim.id: [
            {k: v for k, v in vars(check).items() if k not in ("label", "bounds")}
            | {"bounds": check.bounds[job.preset]}
            for check in claim.checks_in(job.preset)
        ]
        for claim in claims.load(root).values()
        if claim.notebook == name
    }
    # Figures show committed data: in the quick preset the paper preset's, in both that of variants.
    published = claims.published_path(root, name)
    committed = sorted(published.parent.glob(f"{published.stem}@*.json"))
    if job.preset == "quick" and published.is_file():
        committed.append(published)
    shown = {path.name: load(path).get("data") for path in committed} or None
    software = {k: v for k, v in versions().items() if k != "fabook"}
    threads = {k: v for k, v in job.settings.items() if k != "FABOOK_DATA"}
    machine = [platform.machine(), software, threads]
    parts = [source_hash(job.source, root), checks, shown, used(job), machine, _data(job)]
    return digest(parts + _beside(job, code))


def load(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one if the file is missing, cut off or corrupted."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def checksum(results: Mapping[str, Any]) -> str:
    """The hash that a results file holds of itself."""
    return digest({key: value for key, value in results.items() if key not in UNCHECKED})


def up_to_date(job: Job, key: str | None = None) -> dict[str, Any] | None:
    """The results of this very job if they and the executed notebook lie there undamaged."""
    results = load(job.output("results", ".json"))
    same_key = results.get("key") == (key or cache_key(job))
    if not same_key or results.get("checksum") != checksum(results):
        return None
    if not isinstance(results.get("minutes"), float) or not isinstance(results.get("date"), str):
        return None
    try:
        found = digest(job.output("notebooks", ".ipynb").read_bytes())
    except OSError:
        return None
    return results if results.get("notebook_sha256") == found else None
