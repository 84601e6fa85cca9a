"""The registry of claims, verdicts, and the recorder used inside notebooks."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bookkit import claims

CLAIM: dict[str, Any] = {
    "id": "toy.alpha.small",
    "notebook": "toy/alpha",
    "paper": "toy",
    "where": "Section 1",
    "statement": "The error is small.",
    "source": "paper",
    "check": [
        {"quantity": "error", "label": "the error", "comparison": "<=", "bound": 0.02},
    ],
}


def changed(**entries: Any) -> dict[str, Any]:
    """The claim with other entries; None takes an entry out."""
    claim = copy.deepcopy(CLAIM) | entries
    return {key: value for key, value in claim.items() if value is not None}


def with_check(**entries: Any) -> dict[str, Any]:
    return changed(check=[CLAIM["check"][0] | entries])


def one(entry: dict[str, Any]) -> claims.Claim:
    return claims.parse({"claim": [entry]})["toy.alpha.small"]


def toml(entry: dict[str, Any]) -> str:
    """TOML text of a claim; JSON's strings, numbers and lists are TOML's too."""
    plain = [f"{k} = {json.dumps(v)}" for k, v in entry.items() if k != "check"]
    checks = [
        "\n".join(["[[claim.check]]", *(f"{k} = {json.dumps(v)}" for k, v in check.items())])
        for check in entry["check"]
    ]
    return "\n".join(["[[claim]]", *plain, *checks, ""])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one notebook and two claims."""
    (tmp_path / "book").mkdir()
    second = changed(id="toy.alpha.large", check=[CLAIM["check"][0] | {"comparison": ">"}])
    text = toml(CLAIM) + toml(second)
    (tmp_path / "book" / "claims.toml").write_text(text, encoding="utf-8")
    (tmp_path / "notebooks" / "toy").mkdir(parents=True)
    (tmp_path / "notebooks" / "toy" / "alpha.md").write_text("# Alpha\n", encoding="utf-8")
    monkeypatch.setenv("FABOOK_ROOT", str(tmp_path))
    monkeypatch.delenv("FABOOK_RESULT_FILE", raising=False)
    return tmp_path


# --- registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (changed(wher="x"), "unknown key 'wher'; did you mean 'where'?"),
        (changed(where=None), "key 'where' is missing"),
        (changed(statement=" "), "statement must be a non-empty string"),
        (changed(source="web"), "unknown source 'web' (allowed: paper, derived)"),
        (changed(id="toy.beta.small"), "the id must be 'toy.alpha.<name>'"),
        (changed(id="toy.alpha."), "the id must be 'toy.alpha.<name>'"),
        (changed(notebook="other/alpha"), "notebook must be 'toy/<name>'"),
        (changed(expected="maybe"), "unknown expected 'maybe' (allowed: reproduced, not reprod"),
        (changed(expected={"fast": "reproduced"}), "unknown preset in expected 'fast'"),
        (changed(expected="not reproduced"), "'tried' is required"),
        (changed(expected={"paper": "not reproduced"}, tried=" "), "'tried' is required"),
        (changed(paper_value=[1]), "paper_value must be a string or number"),
        (changed(check=[]), "at least one [[claim.check]]"),
        (with_check(comparison="=="), "unknown comparison '==' (allowed: <, <=, >, >=, within)"),
        (with_check(lable="x"), "check 1: unknown key 'lable'; did you mean 'label'?"),
        (with_check(bound="small"), "bound must be a finite number"),
        (with_check(bound=True), "bound must be a finite number"),
        (with_check(bound=math.nan), "bound must be a finite number"),
        (with_check(bound={"quick": 1}), "bound needs a value for each of: quick, paper"),
        (with_check(bound={"quick": 1, "slow": 2}), "got quick, slow"),
        (with_check(comparison="within"), "'within' needs bound = [low, high]"),
        (with_check(comparison="within", bound=[2, 1]), "needs low <= high"),
        (with_check(preset="fast"), "unknown preset 'fast' (allowed: quick, paper)"),
        (with_check(quantity="seeds"), "quantity must be a Python identifier"),
        (with_check(quantity="an error"), "quantity must be a Python identifier"),
    ],
)
def test_registry_refuses(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(claims.ClaimsError) as caught:
        claims.parse({"claim": [entry]})
    assert message in str(caught.value)
    assert repr(entry["id"]) in str(caught.value)  # the entry is named


def test_registry_refuses_duplicates_and_other_tables() -> None:
    with pytest.raises(claims.ClaimsError, match=r"'toy.alpha.small': the id is used twice"):
        claims.parse({"claim": [CLAIM, CLAIM]})
    with pytest.raises(claims.ClaimsError, match="unknown key 'claims'; did you mean 'claim'"):
        claims.parse({"claims": []})


def test_registry_names_a_broken_file(root: Path) -> None:
    (root / "book" / "claims.toml").write_text("[[claim\n", encoding="utf-8")
    with pytest.raises(claims.ClaimsError, match=r"claims\.toml: .*line 1"):
        claims.load()


def test_registry_loads(root: Path) -> None:
    loaded = claims.load(root)
    assert list(loaded) == ["toy.alpha.small", "toy.alpha.large"]
    assert loaded["toy.alpha.small"].expects("paper") == "reproduced"
    assert loaded["toy.alpha.small"].checks[0].bounds == {"quick": 0.02, "paper": 0.02}


def test_root_is_found_upwards_and_overridden(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert claims.find_root() == root
    monkeypatch.delenv("FABOOK_ROOT")
    assert claims.find_root(root / "notebooks" / "toy") == root
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("FABOOK_ROOT", str(empty))
    with pytest.raises(claims.RootError, match="FABOOK_ROOT"):
        claims.find_root()
    (empty / "bookkit").mkdir()
    (empty / "bookkit" / "claims.py").write_bytes(Path(claims.__file__).read_bytes())
    monkeypatch.delenv("FABOOK_ROOT")
    monkeypatch.setattr(claims, "__file__", str(empty / "bookkit" / "claims.py"))
    with pytest.raises(claims.RootError, match="clone of the repository"):
        claims.find_root(empty)


# --- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comparison", "bound", "value", "holds"),
    [
        ("<", 1, 1, False),
        ("<=", 1, 1, True),
        (">", 1, 1.1, True),
        (">=", 1, 0.9, False),
        ("within", [1, 2], 1, True),
        ("within", [1, 2], 2, True),
        ("within", [1, 2], 2.001, False),
        ("<=", 1, math.nan, False),
        (">=", 1, math.inf, False),
        ("<=", 1, -math.inf, False),
        ("within", [1, 2], None, False),
    ],
)
def test_verdict(comparison: str, bound: Any, value: float | None, holds: bool) -> None:
    claim = one(with_check(comparison=comparison, bound=bound))
    entry = claims.judge(claim, "quick", {"error": value})
    assert entry["verdict"] == ("reproduced" if holds else "not reproduced")
    assert entry["checks"][0]["holds"] is holds
    json.dumps(entry, allow_nan=False)
    assert entry["verdict"] in claims.verdict_line(entry)


def test_missing_quantity_never_holds() -> None:
    entry = claims.judge(one(CLAIM), "quick", {})
    assert (entry["verdict"], entry["measured"]) == ("not reproduced", None)
    assert "error = missing fails <= 0.02" in claims.verdict_line(entry)


def test_all_checks_must_hold_and_the_first_is_the_headline() -> None:
    second = {"quantity": "slope", "label": "slope", "comparison": ">", "bound": 0}
    claim = one(changed(check=[*CLAIM["check"], second]))
    entry = claims.judge(claim, "quick", {"error": 0.01, "slope": -1.0}, sd=0.002, seeds=1)
    assert (entry["verdict"], entry["measured"], entry["bound"]) == ("not reproduced", 0.01, 0.02)
    assert claims.verdict_line(entry) == (
        "not reproduced  toy.alpha.small   error = 0.01 (sd 0.002) <= 0.02; "
        "slope = -1 fails > 0   (1 seed)"
    )


def test_presets_have_their_own_bounds_and_checks() -> None:
    claim = one(with_check(bound={"quick": 0.1, "paper": 0.01}))
    assert claims.judge(claim, "quick", {"error": 0.05})["verdict"] == "reproduced"
    assert claims.judge(claim, "paper", {"error": 0.05})["verdict"] == "not reproduced"
    claim = one(with_check(preset="paper"))
    assert claims.judge(claim, "quick", {"error": 0.0})["verdict"] == "not run"
    assert claim.expects("quick") == "not run"
    assert claims.judge(claim, "paper", {"error": 0.0})["verdict"] == "reproduced"


def test_the_file_agrees_with_itself() -> None:
    entry = claims.judge(one(CLAIM), "quick", {"error": 0.02 + 1e-12})
    assert entry["measured"] == 0.02
    assert entry["verdict"] == "reproduced"


def test_unexpected_verdicts_are_named() -> None:
    registry = {"toy.alpha.small": one(CLAIM)}
    for quantities, found in (({"error": 0.01}, 0), ({"error": 1.0}, 1), (None, 1)):
        entry = claims.judge(registry["toy.alpha.small"], "quick", quantities)
        lines = claims.unexpected(registry, {"preset": "quick", "claims": [entry]})
        assert len(lines) == found
    assert "toy.alpha.small" in lines[0]
    assert "(expected: reproduced)" in lines[0]
    registry = {"toy.alpha.small": one(changed(expected="not reproduced", tried="all"))}
    entry = claims.judge(registry["toy.alpha.small"], "quick", {"error": 0.01})
    assert claims.unexpected(registry, {"preset": "quick", "claims": [entry]})


# --- recorder ------------------------------------------------------------------------------------


def begin(**options: Any) -> claims.Run:
    return claims.start("toy/alpha", {"device": "cpu"} | options)


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
        claims.start("toy/alfa")


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
        flags=np.array([True, False, True]),
        tensors=[torch.tensor(1.5), 2, None],
        gain=np.float32(0.1),
        count=np.int64(3),
        unit="cm",
        missing=math.nan,
    )
    run.record("scalar", value=2 / 3)
    stored = json.loads(json.dumps(run.results(), allow_nan=False))["data"]
    assert stored["table"]["dims"] == ["rule", "t"]
    assert stored["table"]["arrays"] == {
        "rule": ["fa", "dfa"],
        "t": [0, 1, 2],
        "single": [[0.333333, 6.66667e-10, 0.1], [1.0, 2.0, None]],
        "half": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        "flags": [True, False, True],
        "tensors": [1.5, 2.0, None],
        "gain": 0.1,
        "count": 3,
        "unit": "cm",
        "missing": None,
    }
    assert stored["scalar"]["arrays"] == {"value": 0.666667}
    shown = run.data["table"]["arrays"]  # what figures draw: the stored values, NaN for null
    assert shown["single"].dtype == np.float64
    np.testing.assert_array_equal(shown["single"], [[0.333333, 6.66667e-10, 0.1], [1, 2, np.nan]])
    assert math.isnan(shown["missing"])
    assert list(shown["rule"]) == ["fa", "dfa"]


@pytest.mark.parametrize(
    ("dims", "arrays", "message"),
    [
        (["t"], {"y": [1.0, math.inf]}, r"x\.y: holds an infinity"),
        (["t"], {"y": [[1.0], [1.0, 2.0]]}, r"x\.y: "),
        (["t"], {"y": {"a": 1}}, r"x\.y: "),
        (["t"], {"y": 1j}, r"x\.y: cannot be stored"),
        ([], {"y": [1.0]}, r"x\.y: shape \(1,\) does not fit dims \[\]"),
        (["t"], {"t": [[1.0]]}, r"x\.t: shape"),
        (["t"], {"t": [1, 2], "y": [1.0]}, r"x\.y: 1 values along 't', but t has 2"),
        (["t"], {"a": [1, 2], "y": [1.0]}, r"x\.y: 1 values along 't', but a has 2"),
        ("t", {"y": [1.0]}, "dims must be a list"),
    ],
)
def test_record_refuses(root: Path, dims: Any, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin().record("x", dims=dims, **arrays)


def test_claim_prints_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin()
    assert run.claim("toy.alpha.small", error=torch.tensor(0.0083), seeds=3) == "reproduced"
    expected = "reproduced      toy.alpha.small   error = 0.0083 <= 0.02   (3 seeds)\n"
    assert capsys.readouterr().out == expected
    assert run.claim("toy.alpha.large", error=None) == "not reproduced"


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
    line = "not run         toy.alpha.large   the notebook did not judge it\n"
    assert capsys.readouterr().out == line * 2
    raw = json.loads((root / "raw.json").read_text(encoding="utf-8"))
    assert raw == run.results()
    assert [entry["verdict"] for entry in raw["claims"]] == ["reproduced", "not run"]
    assert {key: raw[key] for key in ("schema", "notebook", "preset", "seed", "device")} == {
        "schema": 1,
        "notebook": "toy/alpha",
        "preset": "quick",
        "seed": 4,
        "device": "cpu",
    }


def committed(root: Path, **changes: Any) -> dict[str, Any]:
    """Results of the paper preset, as the runner writes them."""
    run = begin(preset="paper")
    run.record("x", dims=["t"], y=[1.0, math.nan])
    run.claim("toy.alpha.small", error=0.004, seeds=5)
    return run.results() | {"minutes": 1.5, "date": "2026-01-01", "versions": {}} | changes


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_published_is_the_committed_data(root: Path) -> None:
    assert begin().published() is None
    write(claims.published_path(root, "toy/alpha"), committed(root))
    published = begin().published()
    assert published is not None
    np.testing.assert_array_equal(published["x"]["arrays"]["y"], [1, np.nan])
    assert begin(preset="paper").published() is None
    assert begin().published("full") is None
    write(claims.published_path(root, "toy/alpha", "full"), committed(root))
    for preset in ("quick", "paper"):
        assert begin(preset=preset).published("full") is not None


def test_scorecard(root: Path) -> None:
    out = root / "_build"
    rows = claims.scorecard(root, out)
    assert [(r["preset"], r["verdict"]) for r in rows] == [
        *[("quick", "not run")] * 2,
        *[("paper", "not run")] * 2,
    ]
    write(claims.published_path(root, "toy/alpha"), committed(root, datasets=[{"name": "d"}]))
    small = claims.scorecard(root, out, ["paper"])[0]
    assert " ".join(small) == (
        "id paper where statement source paper_value measured sd seeds bound verdict preset "
        "device minutes date versions data"
    )
    assert (small["verdict"], small["measured"], small["seeds"]) == ("reproduced", 0.004, 5)
    assert (small["minutes"], small["device"]) == (1.5, "cpu")
    assert small["data"] == [{"name": "d"}]
    write(out / "results" / "paper" / "toy" / "alpha.json", committed(root, minutes=9.0))
    assert claims.scorecard(root, out, ["paper"])[0]["minutes"] == 9.0  # this build comes first
    (out / "results" / "paper" / "toy" / "alpha.json").write_text("{", encoding="utf-8")
    assert claims.scorecard(root, out, ["paper"])[0]["minutes"] == 1.5
