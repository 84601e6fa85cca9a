"""What a notebook records: labelled arrays, figures, texts for the prose, and judged claims.

run = bookkit.start("paper/notebook", globals())
size = run.sizes(quick=dict(n=50), paper=dict(n=500))
run.record("curves", dims=["seed", "t"], t=times, error=errors, mean=(["t"], errors.mean(0)))
run.figure("hero", figures.error)
run.claim("paper.notebook.claim", error=errors[:, -1])
run.save()
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from bookkit import claims
from bookkit.claims import round_number, suggest
from bookkit.files import write

if TYPE_CHECKING:
    import torch
    from xarray import Dataset

GLUE_PREFIX = "application/papermill.record/"  # myst-nb stores glued values under this prefix
PARTIAL = ".partial.json"  # what was recorded and judged before a notebook's end
_SIMPLE = (bool, int, float, str, list, tuple, dict, type(None))  # what a parameter can be
_first_start: dict[str, set[str]] = {}  # notebook -> names that were set when it first started

Data = dict[str, "Dataset"]


# --- labelled arrays -----------------------------------------------------------------------------


def _array(value: Any) -> Any:
    """Any tensor, array, list or scalar as a numpy array (floats in double precision)."""
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        value = [_array(item) for item in value]
    array = np.asarray(value)
    if array.dtype == object:
        array = array.astype(float)  # None becomes NaN; anything else than numbers raises
    if array.dtype.kind not in "biufU":
        raise TypeError(f"cannot be stored as JSON: dtype {array.dtype}")
    return array.astype(float) if array.dtype.kind == "f" else array


def _rounded(value: Any, where: str) -> Any:
    """The array with six significant digits; infinity is refused."""
    import numpy as np

    try:
        array = _array(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if array.dtype.kind != "f":
        return array
    if np.isinf(array).any():
        raise ValueError(f"{where}: holds an infinity; record NaN where a run diverged")
    digits = [math.nan if x != x else round_number(x) for x in array.ravel().tolist()]
    return np.array(digits, dtype=float).reshape(array.shape)


def dataset(label: str, dims: Sequence[str], arrays: Mapping[str, Any]) -> Dataset:
    """Labelled arrays of one table: an :class:`xarray.Dataset` with six significant digits.

    Args:
        label: name of the table, for errors.
        dims: names of the axes.
        arrays: tensors, arrays, lists, numbers or strings. One named like an axis is that axis's
            coordinate; one with all the axes, or with none, needs no more; one with some of them
            is a pair of their names and the array, ``(["t"], mean)``.

    Raises:
        ValueError: for arrays that do not fit the axes, are ragged or hold an infinity.
    """
    import xarray

    if isinstance(dims, str):
        raise ValueError(f"{label}: dims must be a list of names, got {dims!r}")
    sizes: dict[str, tuple[int, str]] = {}
    made: dict[str, Any] = {}
    for name, value in arrays.items():
        where = f"{label}.{name}"
        axes, value = _axes(where, name, dims, value)
        array = _rounded(value, where)
        if axes is None:
            axes = list(dims) if array.ndim else []
        if array.ndim != len(axes):
            raise ValueError(
                f"{where}: shape {array.shape} does not fit dims {axes}; an array with fewer axes "
                f"than {list(dims)} is given with their names, {name}=([...], array)"
            )
        for axis, size in zip(axes, array.shape):
            known, first = sizes.setdefault(axis, (size, name))
            if known != size:
                raise ValueError(f"{where}: {size} values along {axis!r}, but {first} has {known}")
        made[name] = (axes, array)
    coordinates = {name: made.pop(name) for name in dims if name in made}
    return xarray.Dataset(made, coordinates)


def _axes(where: str, name: str, dims: Sequence[str], value: Any) -> tuple[list[str] | None, Any]:
    """The axes that an array is given with, None if they are all or none, and the array."""
    if name in dims:
        return [name], value
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], list | tuple)
    if not pair or not all(isinstance(axis, str) for axis in value[0]) or not value[0]:
        return None, value
    unknown = [axis for axis in value[0] if axis not in dims]
    if unknown:
        raise ValueError(f"{where}: unknown axis {unknown[0]!r}{suggest(unknown[0], dims)}")
    return list(value[0]), value[1]


def encode(data: Data) -> dict[str, Any]:
    """The `data` part of a results file: axes and values of each array, NaN as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {
        label: {
            kind: {
                str(name): {"dims": list(array.dims), "values": plain(array.values.tolist())}
                for name, array in getattr(table, kind).items()
            }
            for kind in ("coords", "data_vars")
        }
        for label, table in data.items()
    }


def decode(data: Mapping[str, Any]) -> Data:
    """The `data` part of a results file as :class:`xarray.Dataset` by label, with NaN for null."""
    import xarray

    def read(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: (entry["dims"], math.nan if entry["values"] is None else _array(entry["values"]))
            for name, entry in arrays.items()
        }

    return {
        label: xarray.Dataset(read(table["data_vars"]), read(table["coords"]))
        for label, table in data.items()
    }


# --- a run ---------------------------------------------------------------------------------------


def start(notebook: str, values: Mapping[str, Any] | None = None) -> Run:
    """Begin a notebook's record: `run = bookkit.start("paper/notebook", globals())`.

    Args:
        notebook: its name, such as `"paper2025/a_result"`.
        values: the notebook's variables; its parameters are read from them.

    It works in any folder. Where there is no registry of claims at all, nothing is judged.

    Raises:
        ValueError: for an unknown notebook or preset, a seed that is no integer, or a device
            that is unknown or missing.
    """
    values = values or {}
    preset, seed = values.get("preset", "quick"), values.get("seed", 0)
    device = values.get("device", "auto")
    try:
        root = claims.find_root()
    except claims.RootError:
        if os.environ.get("FABOOK_ROOT"):
            raise
        root = None
        print("There is no book/claims.toml here: this notebook runs, and judges nothing.")
    simple = {k: v for k, v in values.items() if isinstance(v, _SIMPLE)}
    first = _first_start.setdefault(notebook, set(simple))  # a cell that is run again sees more
    if preset not in claims.PRESETS:
        raise ValueError(f"unknown preset {preset!r}{suggest(str(preset), claims.PRESETS)}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    if root is not None:
        _check_name(notebook, root)
    given = {name: value for name, value in simple.items() if name in first}
    return Run(notebook, preset, seed, claims.resolve_device(device), root, given)


def _check_name(notebook: str, root: Path) -> None:
    """Refuse a name that neither the book nor the working folder knows."""
    folder = root / "notebooks"
    registered = {claim.notebook for claim in claims.load(root).values()}
    own = any(Path(f"{notebook.split('/')[-1]}{suffix}").is_file() for suffix in (".md", ".ipynb"))
    if not (folder / f"{notebook}.md").is_file() and notebook not in registered and not own:
        from bookkit import notebooks

        names = {book.name for book in notebooks.notebooks(root)} | registered
        raise ValueError(f"unknown notebook {notebook!r}{suggest(notebook, names)}")


class Run:
    """What one execution of a notebook records; made by `start`.

    Under `fabook run` a label, claim, figure or glued name may be used once. At the prompt a cell
    may be run again: the later record replaces the earlier one.
    """

    def __init__(
        self,
        notebook: str,
        preset: str,
        seed: int,
        device: str,
        root: Path | None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.notebook = notebook
        self._given = dict(given or {})
        self.preset = preset
        self.seed = seed
        self.device_name = device
        self._root = root
        registry = {} if root is None else claims.load(root)
        self._claims = {c.id: c for c in registry.values() if c.notebook == notebook}
        self._judged: dict[str, dict[str, Any]] = {}
        self._data: Data = {}
        self._names: dict[str, set[str]] = {"glue": set(), "figure": set()}
        self._datasets: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"Run({self.notebook!r}, preset={self.preset!r}, seed={self.seed})"

    @property
    def device(self) -> torch.device:
        """The device to compute on."""
        import torch

        return torch.device(self.device_name)

    def sizes(self, *, quick: Mapping[str, Any], paper: Mapping[str, Any]) -> SimpleNamespace:
        """The sizes of this preset, such as `run.sizes(quick=dict(n=50), paper=dict(n=500)).n`.

        Each is a parameter too: a variable of its name that was set before `start` and is not
        None takes the place of the preset's value.

        Raises:
            ValueError: if a size is given for one preset only, or one that was set has another
                type than the preset's.
        """
        from bookkit import parameters

        if set(quick) != set(paper):
            odd = sorted(set(quick) ^ set(paper))
            raise ValueError(f"sizes: {', '.join(odd)} given for one preset only")
        sizes = dict(quick if self.preset == "quick" else paper)
        for name in sizes:
            if self._given.get(name) is not None:
                known = parameters.Parameter(
                    None, presets=dict(quick=quick[name], paper=paper[name])
                )
                sizes[name] = parameters.convert(self._given[name], name, known)
        return SimpleNamespace(**sizes)

    def _once(self, kind: str, name: str, seen: Iterable[str]) -> None:
        if name in seen and os.environ.get("FABOOK_RESULT_FILE"):
            raise ValueError(f"{kind} {name!r} was given twice in {self.notebook}")

    # data

    def record(self, label: str, *, dims: Sequence[str] = (), **arrays: Any) -> None:
        """Store labelled arrays in the results file; `data` holds them as the file does.

        Args:
            label: name of the table.
            dims: names of the axes.
            **arrays: see :func:`dataset`.

        Raises:
            ValueError: for arrays that do not fit the axes, are ragged or hold an infinity.
        """
        self._once("record", label, self._data)
        self._data[label] = dataset(label, dims, arrays)
        self._keep()

    @property
    def data(self) -> Data:
        """What was recorded so far, by label, exactly as the results file holds it."""
        return dict(self._data)

    def published(self, variant: str = "") -> Data | None:
        """The committed data of the paper preset, shaped like `data`; None if there is none.

        None in the paper preset too: there, this run's own data takes its place. A variant is a
        larger run of the paper preset with other parameters, committed as `<notebook>@<variant>`;
        it is there in every preset.
        """
        if self._root is None:
            return None
        path = claims.published_path(self._root, self.notebook, variant)
        if (self.preset == "paper" and not variant) or not path.is_file():
            return None
        return decode(json.loads(path.read_text(encoding="utf-8"))["data"])

    @property
    def shown(self) -> Data:
        """What prose and figures show: the committed data of the paper preset where there is any
        and every parameter has its preset's value, else what this run recorded.
        """
        return (None if self._changed() else self.published()) or self.data

    def _changed(self) -> bool:
        """Whether a parameter other than preset and device differs from the notebook's own."""
        from bookkit import parameters

        source = Path(self._root or "") / "notebooks" / f"{self.notebook}.md"
        try:
            defaults = parameters.of(source)
        except (OSError, parameters.UsageError):  # a reader's own notebook
            return self.seed != 0
        return any(
            name in defaults and value != defaults[name].value(self.preset)
            for name, value in self._given.items()
            if name not in ("preset", "device") and value is not None
        )

    def uses(self, dataset: Any) -> None:
        """Note a dataset's provenance: a mapping or dataclass with `name`, `checksum` and `n`."""
        import numpy as np

        is_instance = is_dataclass(dataset) and not isinstance(dataset, type)
        info = dict(asdict(dataset) if is_instance else dataset)
        for key in ("name", "checksum", "n"):
            if key not in info:
                raise ValueError(f"dataset provenance lacks {key!r}: got {', '.join(info)}")
        info = {k: v.item() if isinstance(v, np.generic) else v for k, v in info.items()}
        info = {k: v for k, v in info.items() if isinstance(v, str | int | float | None)}
        if info not in self._datasets:
            self._datasets.append(info)

    # what the page shows

    @property
    def figures(self) -> ModuleType:
        """The drawing functions: the module `figures.py` beside the notebook, else the book's.

        Unlike an import it does not depend on the folder that the kernel was started in, and a
        cell that is run again sees what was changed.

        Raises:
            FileNotFoundError: if there is none.
        """
        from bookkit import notebooks

        path = notebooks.drawings(self.notebook, Path.cwd(), self._root)
        if path is None:
            raise FileNotFoundError(f"no figures.py in {Path.cwd()}, and the book has none for it")
        spec = importlib.util.spec_from_file_location("figures", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def figure(self, name: str, draw: Callable[[Data], Any]) -> None:
        """Draw a figure from results alone and store it for the page under its name.

        It is drawn twice where the committed results of the paper preset are there: from them
        (`<name>:paper`) and from this run's data (`<name>:quick`). In the paper preset, this
        run's data are the paper's.

        Args:
            name: name by which the page shows it.
            draw: takes the data, label -> Dataset; may return the figure, else matplotlib's
                current one is taken.
        """
        self._once("figure", name, self._names["figure"])
        self._names["figure"].add(name)
        published = self.published()
        if published is not None:
            self._draw(f"{name}:paper", draw, published)
        self._draw(f"{name}:{self.preset}", draw, self.data)

    def _draw(self, key: str, draw: Callable[[Data], Any], data: Data) -> None:
        import matplotlib.pyplot as plt

        read = _Read(data)
        figure = draw(read)
        figure = figure if hasattr(figure, "savefig") else plt.gcf()
        if _shell() is not None:
            picture = {"image/png": _png(figure)}
            _store(key, picture, fabook={"tables": sorted(read.tables)})
            sys.modules["IPython"].display.display(picture, raw=True)
        plt.close(figure)

    def glue(self, name: str | None = None, text: Any = None, /, **texts: Any) -> None:
        """Store texts (or numbers) for the prose: ``{glue:text}`name` `` in the same page.

        The output is invisible in the page; in plain Python nothing is shown.

        Example:
            `run.glue(seeds=6, median="1.5 %")`
        """
        for key, value in (texts if name is None else {name: text, **texts}).items():
            self._once("glue", key, self._names["glue"])
            self._names["glue"].add(key)
            if _shell() is not None:  # readers evaluate the text: "3,200" would be a tuple
                _store(key, {"text/plain": repr(str(value))})

    # verdicts

    def claim(
        self, id: str, *, sd: Any = None, seeds: int | None = None, **quantities: Any
    ) -> None:
        """Judge a claim by measured quantities and print its verdict line.

        Args:
            id: a claim of this notebook in `claims.toml`.
            sd: spread of the headline (first) quantity, where its check names no statistic.
            seeds: number of seeds behind it, likewise.
            **quantities: by the names that the claim's checks use; one value for each seed where
                the check names a statistic, else a number (or 0-d tensor).

        Raises:
            ValueError: for an unknown id, a quantity that no check of the claim uses, or values
                that the check's statistic does not take.
        """
        if self._root is None:
            print(f"{'not judged':<15} {id}")
            return
        if id not in self._claims:
            raise ValueError(f"unknown claim {id!r} of {self.notebook}{suggest(id, self._claims)}")
        self._once("claim", id, self._judged)
        claim = self._claims[id]
        allowed = list(dict.fromkeys(check.quantity for check in claim.checks))
        for name in quantities:
            if name not in allowed:
                raise ValueError(f"claim {id!r} does not check {name!r}{suggest(name, allowed)}")
        values = {k: None if v is None else _array(v).tolist() for k, v in quantities.items()}
        spread = None if sd is None else float(sd)
        seeds = None if seeds is None else _array(seeds).tolist()  # numpy's integers are no JSON
        self._judged[id] = claims.judge(claim, self.preset, values, sd=spread, seeds=seeds)
        self._keep()
        print(claims.verdict_line(self._judged[id]))

    def results(self) -> dict[str, Any]:
        """The raw results: what `save` writes and `fabook run` completes with provenance."""
        entries = [
            self._judged.get(id) or claims.judge(claim, self.preset, None)
            for id, claim in self._claims.items()
        ]
        return {
            "schema": claims.SCHEMA,
            "notebook": self.notebook,
            "preset": self.preset,
            "seed": self.seed,
            "device": self.device_name,
            "claims": entries,
            "data": encode(self._data),
            "datasets": self._datasets,
        }

    def save(self) -> None:
        """Finish: report claims never judged; under `fabook run`, hand over the raw results."""
        for id, claim in self._claims.items():
            if id not in self._judged:
                print(claims.verdict_line(claims.judge(claim, self.preset, None)))
        self._hand_over(".json")

    def _keep(self) -> None:
        """What a cell that fails later cannot take; a full disk is no reason to stop here."""
        with contextlib.suppress(OSError):
            self._hand_over(PARTIAL)

    def _hand_over(self, suffix: str) -> None:
        """Under `fabook run`: the raw results so far."""
        target = os.environ.get("FABOOK_RESULT_FILE")
        if target:
            path = Path(target).with_suffix(suffix)
            write(path, json.dumps(self.results(), allow_nan=False))


class _Read(dict[str, "Dataset"]):
    """Data that notes which tables were taken from it."""

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.tables: set[str] = set()

    def __getitem__(self, label: str) -> Dataset:
        self.tables.add(label)
        return super().__getitem__(label)


def _shell() -> Any:
    """The IPython shell in which this runs, None in plain Python."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _png(figure: Any) -> str:
    """A figure as PNG in base64, the same whatever backend the kernel has."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _store(name: str, shown: Mapping[str, str], **more: Any) -> None:
    """Emit an output that myst-nb keeps under a name and takes out of the page."""
    sys.modules["IPython"].display.display(
        {f"{GLUE_PREFIX}{kind}": value for kind, value in shown.items()},
        raw=True,
        metadata={"scrapbook": {"name": name, "mime_prefix": GLUE_PREFIX}} | more,
    )
