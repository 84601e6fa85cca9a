"""The registry of claims and its verdicts."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("key", ["claim", "paper", "claim.check"])
@pytest.mark.parametrize("found", [{"id": "x"}, "x", [1]])
def test_one_table_where_each_entry_has_its_own_is_refused(
    root: Path, key: str, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"claim": [changed(check=found)]} if key == "claim.check" else {key: found}
    monkeypatch.setattr(claims, "_table", lambda path, text: table)
    with pytest.raises(claims.ClaimsError, match=rf"a table of its own, \[\[{key}\]\], got"):
        claims.papers(root)


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


def test_the_file_agrees_with_itself_about_intervals() -> None:
    claim = one(with_check(comparison=">=", bound=0.3, statistic="mean"))
    values = [0.3000011, 0.3000021, 0.3000031]  # their interval begins below .3, by less than 1e-6
    (check,) = claims.judge(claim, "quick", {"error": values})["checks"]
    assert (check["low"], check["holds"]) == (0.3, True)


def test_a_fraction_with_a_missing_seed_does_not_hold() -> None:
    claim = one(with_check(comparison=">=", bound=0.3, statistic="fraction"))
    entry = claims.judge(claim, "quick", {"error": [True, None, True]})
    assert entry["verdict"] == "not reproduced"


@pytest.mark.parametrize(
    ("statistic", "values", "shown"),
    [
        ("mean", [0.168] * 10, "0.168 (the same for all 10 seeds)"),
        ("paired difference", [[0.5, 0.25]] * 3, "0.25 (the same for all 3 seeds)"),
        ("fraction", [True] * 10, "1 [0.722, 1]"),
        ("median", [0.0] * 19 + [1.0], "0 [0, 0]"),
        ("mean", [0.168], "0.168"),
    ],
)
def test_no_interval_is_shown_where_no_seed_differs(
    statistic: str, values: list[Any], shown: str
) -> None:
    claim = one(with_check(statistic=statistic))
    (check,) = claims.judge(claim, "quick", {"error": values})["checks"]
    assert claims.shown_value(check) == shown


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


# --- scorecard ---------------------------------------------------------------------------------


def committed(root: Path, **changes: Any) -> dict[str, Any]:
    """Results of the paper preset, as the runner writes them."""
    claim = one(CLAIM)
    return {
        "schema": claims.SCHEMA,
        "claims": [claims.judge(claim, "paper", {"error": 0.004}, seeds=5)],
        "device": "cpu",
        "minutes": 1.5,
        "date": "2026-01-01",
        "versions": {},
    } | changes


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        ([True, True], "reproduced"),
        ([True, None], "undecided"),
        ([False, None], "not reproduced"),
    ],
)
def test_verdict_of_several_checks(held: list[bool | None], verdict: str) -> None:
    checks = [
        CLAIM["check"][0] | {"quantity": name, "statistic": "mean"} for name in ("error", "other")
    ]
    values = {True: [0.0, 0.0], False: [1.0, 1.0], None: [0.0, 0.03]}
    quantities = {name: values[h] for name, h in zip(("error", "other"), held)}
    entry = claims.judge(one(changed(check=checks)), "quick", quantities)
    assert [check["holds"] for check in entry["checks"]] == held
    assert entry["verdict"] == verdict


@pytest.mark.parametrize(("n", "kept"), [(claims.KEPT, True), (claims.KEPT + 1, False)])
def test_many_seeds_are_counted_and_not_kept(n: int, kept: bool) -> None:
    claim = one(with_check(statistic="mean"))
    values = [0.001 * (i % 2) for i in range(n)]
    (check,) = claims.judge(claim, "quick", {"error": values})["checks"]
    assert check["seeds"] == n
    assert check["values"] == (values if kept else None)


def test_an_undecided_claim_is_no_surprise() -> None:
    claim = one(with_check(statistic="mean"))
    entry = claims.judge(claim, "quick", {"error": [0.0, 0.03]})
    assert entry["verdict"] == "undecided"
    assert claims.unexpected({claim.id: claim}, {"preset": "quick", "claims": [entry]}) == []


def test_what_decides_a_claim_is_what_is_registered() -> None:
    known = one(CLAIM).registered("quick")
    assert one(with_check(label="other words")).registered("quick") == known
    assert one(changed(statement="Other words.")).registered("quick") == known
    assert one(with_check(bound=0.03)).registered("quick") != known
    assert one(with_check(statistic="mean")).registered("quick") != known
    assert one(with_check(bound={"quick": 0.02, "paper": 1})).registered("quick") == known


def test_whose_bound_it_is() -> None:
    assert one(CLAIM).checks[0].whose == "ours"
    assert one(with_check(whose="paper")).checks[0].owner == "the paper's statement"
    with pytest.raises(claims.ClaimsError, match="whose"):
        one(with_check(whose="theirs"))


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
        "id paper where statement source paper_value measured low high sd seeds bound verdict "
        "comparison reason preset device minutes date versions data"
    )
    assert (small["verdict"], small["measured"], small["seeds"]) == ("reproduced", 0.004, 5)
    assert (small["minutes"], small["device"]) == (1.5, "cpu")
    assert small["data"] == [{"name": "d"}]
    write(out / "results" / "paper" / "toy" / "alpha.json", committed(root, minutes=9.0))
    assert claims.scorecard(root, out, ["paper"])[0]["minutes"] == 9.0  # this build comes first
    (out / "results" / "paper" / "toy" / "alpha.json").write_text("{", encoding="utf-8")
    assert claims.scorecard(root, out, ["paper"])[0]["minutes"] == 1.5


def test_a_verdict_of_other_checks_is_not_shown_as_todays(root: Path) -> None:
    results = committed(root)
    write(claims.published_path(root, "toy/alpha"), results)
    registry = root / "book" / "claims.toml"
    text = registry.read_text(encoding="utf-8")
    registry.write_text(text.replace("<=", ">=").replace("0.02", "0.9"), encoding="utf-8")
    row = claims.scorecard(root, root / "_build", ["paper"])[0]
    assert (row["verdict"], row["reason"]) == ("not run", "judged by other checks")
    assert [row[k] for k in ("measured", "comparison", "bound", "date")] == [None, ">=", 0.9, None]
    del results["claims"][0]["registered"]  # of a file that is older than this field
    write(claims.published_path(root, "toy/alpha"), results)
    row = claims.scorecard(root, root / "_build", ["paper"])[0]
    assert [row[k] for k in ("verdict", "reason", "comparison", "bound")] == [
        *("reproduced", None, "<=", 0.02)
    ]
