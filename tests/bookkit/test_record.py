"""The recorder that notebooks use: labelled arrays, figures, texts, verdicts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bookkit
from bookkit import Run, claims, record

CLAIM = """
[[claim]]
id = "toy.alpha.{name}"
notebook = "toy/alpha"
paper = "toy"
where = "Section 1"
statement = "The error is small."
source = "paper"
[[claim.check]]
quantity = "error"
label = "the error"
comparison = "{comparison}"
bound = 0.02
"""
STATISTIC = CLAIM.format(name="mean", comparison="<=") + 'statistic = "mean"\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one notebook and three claims."""
    (tmp_path / "book").mkdir()
    text = CLAIM.format(name="small", comparison="<=") + CLAIM.format(name="large", comparison=">")
    (tmp_path / "book" / "claims.toml").write_text(text + STATISTIC, encoding="utf-8")
    (tmp_path / "notebooks" / "toy").mkdir(parents=True)
    (tmp_path / "notebooks" / "toy" / "alpha.md").write_text("# Alpha\n", encoding="utf-8")
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    monkeypatch.delenv("FABOOK_RESULT_FILE", raising=False)
    return tmp_path


def begin(**options: Any) -> Run:
    return bookkit.start("toy/alpha", {"device": "cpu"} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, r"unknown preset 'fast' \(allowed: quick, paper\)"),
        ({"device": "gpu"}, r"unknown device 'gpu'.*allowed: auto, cpu, cuda"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"seed": True}, "seed must be an integer"),
    ],
)
def test_start_refuses(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin(**options)


def test_start_refuses_an_unknown_notebook(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown notebook 'toy/alfa'; did you mean 'toy/alpha'"):
        bookkit.start("toy/alfa")


def test_start_resolves_the_device(root: Path) -> None:
    if torch.cuda.is_available():
        assert begin(device="auto").device == begin(device="cuda").device == torch.device("cuda")
    else:
        assert begin(device="auto").device == torch.device("cpu")
        with pytest.raises(ValueError, match="'cuda' is not available here"):
            begin(device="cuda")


def test_sizes(root: Path) -> None:
    table = {"quick": {"n": 5}, "paper": {"n": 500}}
    assert begin().sizes(**table).n == 5
    assert begin(preset="paper").sizes(**table).n == 500
    with pytest.raises(ValueError, match="sizes: p given for one preset only"):
        begin().sizes(quick={"n": 5, "p": 2}, paper={"n": 500})


def test_record_keeps_six_digits_of_anything_numeric(root: Path) -> None:
    run = begin()
    run.record(
        "table",
        dims=["rule", "t"],
        rule=["fa", "dfa"],
        t=range(3),
        single=torch.tensor([[1 / 3, 2e-9 / 3, 0.1], [1, 2, math.nan]], dtype=torch.float32),
        half=torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True),
        flags=(["t"], np.array([True, False, True])),
        tensors=(["t"], [torch.tensor(1.5), 2, None]),
        turned=(["t", "rule"], np.ones((3, 2))),
        gain=np.float32(0.1),
        count=np.int64(3),
        unit="cm",
        missing=math.nan,
    )
    run.record("scalar", value=2 / 3)
    stored = json.loads(json.dumps(run.results(), allow_nan=False))["data"]
    both = ["rule", "t"]
    assert stored["table"]["coords"] == {
        "rule": {"dims": ["rule"], "values": ["fa", "dfa"]},
        "t": {"dims": ["t"], "values": [0, 1, 2]},
    }
    assert stored["table"]["data_vars"] == {
        "single": {"dims": both, "values": [[0.333333, 6.66667e-10, 0.1], [1.0, 2.0, None]]},
        "half": {"dims": both, "values": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]},
        "flags": {"dims": ["t"], "values": [True, False, True]},
        "tensors": {"dims": ["t"], "values": [1.5, 2.0, None]},
        "turned": {"dims": ["t", "rule"], "values": [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]},
        "gain": {"dims": [], "values": 0.1},
        "count": {"dims": [], "values": 3},
        "unit": {"dims": [], "values": "cm"},
        "missing": {"dims": [], "values": None},
    }
    assert stored["scalar"]["data_vars"]["value"]["values"] == 0.666667
    again = record.decode(stored)  # what figures of committed results draw
    assert again["table"].identical(run.data["table"])
    assert again["table"]["single"].sel(rule="fa").values.tolist() == [0.333333, 6.66667e-10, 0.1]
    assert again["table"]["unit"].item() == "cm"


@pytest.mark.parametrize(
    ("dims", "arrays", "message"),
    [
        (["t"], {"y": [1.0, math.inf]}, r"x\.y: holds an infinity"),
        (["t"], {"y": [[1.0], [1.0, 2.0]]}, r"x\.y: "),
        (["t"], {"y": {"a": 1}}, r"x\.y: "),
        (["t"], {"y": 1j}, r"x\.y: cannot be stored"),
        ([], {"y": [1.0]}, r"x\.y: shape \(1,\) does not fit dims \[\]"),
        (["t"], {"t": [[1.0]]}, r"x\.t: shape"),
        (["s", "t"], {"y": [1.0]}, r"x\.y: shape \(1,\).*y=\(\[...\], array\)"),
        (["s", "t"], {"y": (["u"], [1.0])}, r"x\.y: unknown axis 'u' \(allowed: s, t\)"),
        (["s", "t"], {"s": [1], "y": (["s"], [1.0, 2.0])}, r"x\.y: 2 values along 's'"),
        (["t"], {"t": [1, 2], "y": [1.0]}, r"x\.y: 1 values along 't', but t has 2"),
        (["t"], {"a": [1, 2], "y": [1.0]}, r"x\.y: 1 values along 't', but a has 2"),
        ("t", {"y": [1.0]}, "dims must be a list"),
    ],
)
def test_record_refuses(root: Path, dims: Any, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin().record("x", dims=dims, **arrays)


def verdict(run: record.Run, id: str) -> str:
    return next(entry["verdict"] for entry in run.results()["claims"] if entry["id"] == id)


def test_claim_prints_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin()
    run.claim("toy.alpha.small", error=torch.tensor(0.0083), seeds=3)
    assert verdict(run, "toy.alpha.small") == "reproduced"
    expected = "reproduced      toy.alpha.small   error = 0.0083 <= 0.02   (3 seeds)\n"
    assert capsys.readouterr().out == expected
    run.claim("toy.alpha.large", error=None)
    assert verdict(run, "toy.alpha.large") == "not reproduced"


def test_a_statistic_is_judged_by_its_interval(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    run.claim("toy.alpha.mean", error=[0.010, 0.011, 0.009])
    assert verdict(run, "toy.alpha.mean") == "reproduced"
    line = capsys.readouterr().out
    assert "error = 0.01 [0.00752, 0.0125] <= 0.02   (3 seeds)" in line
    run.claim("toy.alpha.mean", error=torch.tensor([0.01, 0.03]))
    assert verdict(run, "toy.alpha.mean") == "undecided"
    assert "undecided <= 0.02" in capsys.readouterr().out
    run.claim("toy.alpha.mean", error=[0.030, 0.031, 0.029])
    assert verdict(run, "toy.alpha.mean") == "not reproduced"
    run.claim("toy.alpha.mean", error=[0.01, math.nan, 0.01])
    assert verdict(run, "toy.alpha.mean") == "not reproduced"
    entry = run.results()["claims"][2]
    assert entry["checks"][0]["values"] == [0.01, None, 0.01]
    assert json.dumps(run.results(), allow_nan=False)
    with pytest.raises(ValueError, match=r"toy\.alpha\.mean.*one value for each seed.*'mean'"):
        run.claim("toy.alpha.mean", error=0.01)
    with pytest.raises(ValueError, match=r"error must be one number, got 2"):
        run.claim("toy.alpha.small", error=[0.01, 0.02])


def test_numpys_integers_are_numbers(root: Path) -> None:
    run = begin()
    run.claim("toy.alpha.small", error=0.01, seeds=np.int64(3))
    run.uses({"name": "mnist", "checksum": "sha256:2", "n": np.int64(7), "share": np.float32(0.5)})
    stored = json.loads(json.dumps(run.results(), allow_nan=False))
    assert stored["claims"][0]["seeds"] == 3
    assert [stored["datasets"][0][key] for key in ("n", "share")] == [7, 0.5]


def test_claim_refuses(root: Path) -> None:
    run = begin()
    with pytest.raises(ValueError, match=r"unknown claim 'toy.alpha.smal'.*did you mean"):
        run.claim("toy.alpha.smal", error=1)
    with pytest.raises(ValueError, match=r"does not check 'eror'; did you mean 'error'"):
        run.claim("toy.alpha.small", eror=1)


def test_twice_is_an_error_under_the_runner_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin()
    for _ in range(2):  # as when a cell is executed again at the prompt
        run.claim("toy.alpha.small", error=0)
        run.record("x", y=1)
        run.glue("n", 1)
    monkeypatch.setenv("FABOOK_RESULT_FILE", str(root / "raw.json"))
    with pytest.raises(ValueError, match=r"claim 'toy.alpha.small' was given twice"):
        run.claim("toy.alpha.small", error=0)
    with pytest.raises(ValueError, match="record 'x' was given twice"):
        run.record("x", y=1)
    with pytest.raises(ValueError, match="glue 'n' was given twice"):
        run.glue("n", 1)


@dataclass
class Info:
    name: str
    checksum: str
    n: int


def test_uses(root: Path) -> None:
    run = begin()
    run.uses(Info("digits", "sha256:1", 1797))
    run.uses({"name": "digits", "checksum": "sha256:1", "n": 1797})
    run.uses({"name": "mnist", "checksum": "sha256:2", "n": 60000, "images": np.zeros(3)})
    assert [d["name"] for d in run.results()["datasets"]] == ["digits", "mnist"]
    assert "images" not in run.results()["datasets"][1]
    with pytest.raises(ValueError, match="provenance lacks 'checksum'"):
        run.uses({"name": "mnist"})


def test_save(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin(seed=4)
    run.claim("toy.alpha.small", error=0.01, sd=0.001, seeds=2)
    capsys.readouterr()
    run.save()  # outside the runner nothing is written
    assert sorted(p.name for p in root.iterdir()) == ["book", "notebooks"]
    monkeypatch.setenv("FABOOK_RESULT_FILE", str(root / "raw.json"))
    run.save()
    line = "not run         toy.alpha.{}   the notebook did not judge it\n"
    assert capsys.readouterr().out == (line.format("large") + line.format("mean")) * 2
    raw = json.loads((root / "raw.json").read_text(encoding="utf-8"))
    assert raw == run.results()
    assert [e["verdict"] for e in raw["claims"]] == ["reproduced", "not run", "not run"]
    assert {key: raw[key] for key in ("schema", "notebook", "preset", "seed", "device")} == {
        "schema": claims.SCHEMA,
        "notebook": "toy/alpha",
        "preset": "quick",
        "seed": 4,
        "device": "cpu",
    }


def commit(root: Path, variant: str = "", **record_of: Any) -> None:
    """Results of the paper preset, committed."""
    run = begin(preset="paper")
    run.record("x", dims=["t"], **record_of)
    path = claims.published_path(root, "toy/alpha", variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run.results()), encoding="utf-8")


def test_published_is_the_committed_data(root: Path) -> None:
    assert begin().published() is None
    commit(root, y=[1.0, math.nan])
    published = begin().published()
    assert published is not None
    np.testing.assert_array_equal(published["x"]["y"], [1, np.nan])
    assert begin(preset="paper").published() is None
    assert begin().published("full") is None
    commit(root, "full", y=[2.0])
    for preset in ("quick", "paper"):
        assert begin(preset=preset).published("full") is not None


NOTEBOOK = """---
kernelspec: {name: python3, display_name: Python 3, language: python}
---

```{code-cell}
:tags: [parameters]

seed = 3
n = None
```

```{code-cell}
run.sizes(quick=dict(n=1), paper=dict(n=2))
```
"""


def test_shown_is_committed_unless_a_parameter_was_changed(root: Path) -> None:
    (root / "notebooks" / "toy" / "alpha.md").write_text(NOTEBOOK, encoding="utf-8")
    commit(root, y=[1.0])

    def shown(**options: Any) -> float:
        run = begin(**options)
        run.record("x", dims=["t"], y=[0.0])
        return float(run.shown["x"]["y"][0])

    record._first_start.clear()
    assert shown(seed=3, n=None) == 1
    assert shown(seed=3, n=1) == 1  # the preset's value
    assert shown(seed=3, n=5) == 0
    assert shown(seed=4) == 0
    assert shown(seed=3, preset="paper") == 0


FIGURES = """
import bookkit
run = bookkit.start("toy/alpha", dict(preset={preset!r}, device="cpu"))
run.record("x", dims=["t"], t=[0, 1], y=[0.0, {end}])
run.record("not drawn", n=1)
def draw(data):
    import matplotlib.pyplot as plt
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot(data["x"]["t"], data["x"]["y"])
    return figure
run.figure("hero", draw)
run.glue(end={end}, word="so")
"""


@pytest.mark.parametrize(("preset", "keys"), [("quick", ["paper", "quick"]), ("paper", ["paper"])])
def test_a_figure_is_drawn_from_committed_results_and_from_this_run(
    root: Path, preset: str, keys: list[str]
) -> None:
    import nbclient
    import nbformat

    commit(root, t=[0, 1], y=[0.0, 9.0])
    cell = nbformat.v4.new_code_cell(FIGURES.format(preset=preset, end=1.5))
    book = nbformat.v4.new_notebook(cells=[cell])
    nbclient.NotebookClient(book, kernel_name="python3").execute()
    glued: dict[str, dict[str, str]] = {}
    shown = []
    for output in book.cells[0].outputs:
        name = output.metadata.get("scrapbook", {}).get("name")
        if name is None:
            shown.append(output.data)
        else:
            glued[name] = output.data
            drawn = {"fabook": {"tables": ["x"]}} if name.startswith("hero") else {}
            assert {k: v for k, v in output.metadata.items() if k != "scrapbook"} == drawn
    assert list(glued) == [*(f"hero:{key}" for key in keys), "end", "word"]
    assert glued["end"] == {f"{record.GLUE_PREFIX}text/plain": "'1.5'"}
    pictures = [glued[f"hero:{key}"][f"{record.GLUE_PREFIX}image/png"] for key in keys]
    assert len(set(pictures)) == len(keys)
    assert [data["image/png"] for data in shown] == pictures  # seen in Jupyter as well
