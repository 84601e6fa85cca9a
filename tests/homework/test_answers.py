"""The graders of the homeworks are right: the solution, a blank notebook and known mistakes.

Each wrong answer is the solution with a few words changed. It must lose the points that it should,
and the message must point at the mistake. By default cells and tests run in this process; with
``--otter`` the same answers are graded by otter, as a teacher would (`make test-homework`).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "notebooks" / "homework"
_CONFIG = re.compile(r'""" # BEGIN TEST CONFIG\n(.*?)\n""" # END TEST CONFIG\n(.*)', re.DOTALL)


@dataclass(frozen=True)
class Wrong:
    """A wrong answer.

    Attributes:
        name: what it is.
        edits: words of the solution, and what stands there instead.
        lost: points lost, by question.
        says: a part of the messages of a question.
    """

    name: str
    edits: Mapping[str, str]
    lost: Mapping[str, float]
    says: Mapping[str, str] = field(default_factory=dict)


GATE = "(z[l] > 0).to(e)"
SHALLOW = 'if rule != "Shallow":'
WRONG: dict[str, list[Wrong]] = {
    "hw1": [
        Wrong("z >= 0", {GATE: "(z[l] >= 0).to(e)"}, {"q1": 0.5}, {"q1": "z > 0, not z >= 0"}),
        Wrong(
            "the derivative h > 1",
            {GATE: "(z[l].relu() > 1).to(e)"},
            {"q1": 3.0, "q3": 1.25},  # FA no longer beats the read-out alone
            {"q1": "z > 0, not h > 1"},
        ),
        Wrong(
            "no derivative",
            {GATE: "torch.ones_like(z[l])"},
            {"q1": 2.5, "q3": 0.75},
            {"q1": "the derivative of ReLU is missing"},
        ),
        Wrong(
            "transposed feedback",
            {'if rule == "BP" else B': 'if rule == "BP" else {k: m.T for k, m in B.items()}'},
            {"q1": 1.25, "q3": 1.5},
            {"q1": "Layers of equal width hide a transposed matrix"},
        ),
        Wrong(
            "chained DFA",
            {
                "return (e @ F[1].T) * gate[1], (e @ F[2].T) * gate[2]": (
                    "upper = (e @ F[2].T) * gate[2]\n        return (upper @ W[2]) * gate[1], upper"
                )
            },
            {"q1": 1.75, "q3": 0.75},
            {"q1": "DFA sends the error itself to each layer"},
        ),
        Wrong(
            "sign",
            {"    return delta_1, delta_2": "    return -delta_1, -delta_2"},
            {"q1": 2.25, "q3": 1.5},
            {"q1": "the sign is turned"},
        ),
        Wrong(
            "absolute cosine",
            {"(a * b).sum(1) / length": "(a * b).sum(1).abs() / length"},
            {"q2": 1.25},
            {"q2": "the cosine is signed"},
        ),
        Wrong(
            "zero vector counts as aligned",
            {"length, torch.nan)": "length, 1.0)"},
            {"q2": 0.75},
            {"q2": "a zero vector has no direction: 1"},
        ),
        Wrong(
            "zero vector counts as orthogonal",
            {"length, torch.nan)": "length, 0.0)"},
            {"q2": 0.75},
            {"q2": "a zero vector has no direction: 0"},
        ),
        Wrong(
            "feedback drawn anew",
            {SHALLOW: SHALLOW + "\n        B[3].normal_(generator=torch.Generator())"},
            {"q3": 1.25},
            {"q3": "feedback is drawn once and then fixed"},
        ),
        Wrong(
            "mean over the batch twice",
            {"W[l] -= lr * d.T @ h[l - 1]": "W[l] -= lr * d.T @ h[l - 1] / len(x)"},
            {"q3": 1.5},  # steps 32 times too small: hardly any accuracy
            {"q3": "the mean over the batch was taken twice"},
        ),
        Wrong(
            "mean for sum",
            {"b[l] -= lr * d.sum(0)": "b[l] -= lr * d.mean(0)"},
            {"q3": 0.75},
            {"q3": "the sum of its signals over the batch, not by their mean"},
        ),
        Wrong(
            "sum for mean",
            {"W[l] -= lr * d.T @ h[l - 1]": "W[l] -= lr * len(x) * d.T @ h[l - 1]"},
            {"q3": 1.5},  # steps 32 times too long: the hidden layers only do harm
            {"q3": "the sum over the batch, not of the mean"},
        ),
        Wrong(
            "weights changed before the error goes down",
            {
                SHALLOW: "W[3] -= lr * delta[3].T @ h[2]\n    " + SHALLOW,
                "W[l] -= lr * d.T @ h[l - 1]": "W[l] -= (l < 3) * lr * d.T @ h[l - 1]",
            },
            {"q3": 1.0},  # and BP diverges
            {"q3": "weights that the step had changed already"},
        ),
        Wrong(
            "order of the layers",
            {"predicted_two = (+1, -1)": "predicted_two = (-1, +1)"},
            {"q4": 0.75},
            {"q4": "from the bottom layer to the top one"},
        ),
    ],
    "hw2": [
        Wrong(
            "1 + missing",
            {"s = np.sqrt(1 + np.diag(C))": "s = np.sqrt(np.diag(C))"},
            {"q1": 2.0, "q2": 1.5},
            {"q1": "the 1 + of each variance is missing"},
        ),
        Wrong(
            "factor 1/2",
            {"return 0.5 * c @": "return c @"},
            {"q2": 1.5},
            {"q2": "the factor 1/2 of the loss is missing"},
        ),
        Wrong(
            "cross terms once",
            {
                "c = np.concatenate([-np.asarray(v), A])": (
                    "k, I = len(v), I2(np.block([[Q, R], [np.transpose(R), T]]))\n"
                    "    vA = v @ I[:k, k:] @ A\n"
                    "    return 0.5 * (v @ I[:k, :k] @ v - vA + A @ I[k:, k:] @ A)\n    c = 0"
                )
            },
            {"q2": 2.0},  # a perfect student would make an error
            {"q2": "the cross terms occur twice"},
        ),
        Wrong(
            "sign of the cross terms",
            {"[-np.asarray(v), A]": "[np.asarray(v), A]"},
            {"q2": 2.0},
            {"q2": "the cross terms have a minus sign"},
        ),
        Wrong(
            "time in steps",
            {"times=run.t": "times=run.steps"},
            {"q3": 3.0},
            {"q3": "time is steps / N, not steps"},
        ),
        Wrong(
            "one time alone",
            {
                "np.sqrt(((run.error - theory.error) ** 2).mean(1))": (
                    "abs(run.error - theory.error)[:, -1]"
                )
            },
            {"q3": 1.5},
            {"q3": "only one time is compared"},
        ),
        Wrong(
            "theory of backpropagation",
            {"feedback=start.F.numpy()": "feedback=None"},
            {"q3": 2.5},
            {"q3": "pass the feedback"},
        ),
        Wrong(
            "permutations without signs",
            {"np.array(order) * signs": "np.array(order)"},
            {"q4": 1.5},
            {"q4": "each unit can turn its sign as well"},
        ),
        Wrong(
            "signs without permutations",
            {"for order in permutations(A)": "for order in [A]"},
            {"q4": 1.0},
            {"q4": "units can change places as well"},
        ),
        Wrong(
            "root of K",
            {"(np.sqrt(len(F)) * np.linalg.norm(F))": "np.linalg.norm(F)"},
            {"q4": 0.75},
            {"q4": "the root of K is missing"},
        ),
    ],
    "hw3": [
        Wrong(
            "plus sign",
            {"- (B_next * W_next).sum(0)": "+ (B_next * W_next).sum(0)"},
            {"q1": 1.5, "q2": 1.5, "q3": 0.75},
            {"q1": "the partner is subtracted"},
        ),
        Wrong(
            "rows for columns",
            {"(B_next * W_next).sum(0)": "(B_next * W_next).sum(1)"},
            {"q1": 1.25, "q2": 2.5, "q3": 0.75},
            {"q1": "a hidden neuron owns a column of it, not a row"},
        ),
        Wrong(
            "layer for neuron",
            {
                "return (W**2).sum(1) / 2 + b**2 / 2 - (B_next * W_next).sum(0)": (
                    "return (W**2).sum() / 2 + (b**2).sum() / 2 - (B_next * W_next).sum()"
                )
            },
            {"q1": 1.5, "q2": 1.0},  # the layer's sum is conserved as well
            {"q1": "every neuron conserves a number of its own"},
        ),
        Wrong(
            "bias forgotten",
            {" + b**2 / 2 - (B_next": " - (B_next"},
            {"q1": 1.5, "q2": 1.5, "q3": 0.75},
            {"q1": "the bias is forgotten"},
        ),
        Wrong(
            "single precision",
            {"torch.set_default_dtype(torch.float64)": "torch.set_default_dtype(torch.float32)"},
            {"q2": 1.0},
            {"q2": "rounding of single precision"},
        ),
        Wrong(
            "drift at a fixed number of steps",
            {"for _ in range(round(time / lr))": "for _ in range(round(time))"},
            {"q2": 1.25},
            {"q2": "fixed number of steps"},
        ),
        Wrong(
            "half the squares forgotten",
            {"explained += lr**2 / 2 *": "explained += lr**2 *"},
            {"q2": 1.0},
            {"q2": "half the squares of weights AND bias"},
        ),
        Wrong(
            "a wrong prediction",
            {'"Adam": True': '"Adam": False'},
            {"q3": 0.2},
            {"q3": "Adam scales each weight's step"},
        ),
        Wrong(
            "partner without its constant",
            {"(W_next**4).sum(0) / 4": "(W_next**4).sum(0)"},
            {"q4": 0.75},
            {"q4": "divide by 4"},
        ),
        Wrong(
            "sign of the feedback",
            {"0.6 * (u**2).sum(1) / b": "0.6 * (u**2).sum(1) / b.abs()"},
            {"q5": 1.0},
            {"q5": "where b is negative, w must be negative too"},
        ),
    ],
    "hw4": [
        Wrong(
            "M of backpropagation",
            {"@ chu2023.jacobian(rule, x).T": "@ chu2023.jacobian(fabook.BP(rule.net), x).T"},
            {"q1": 1.0},
            {"q1": "this is M of backpropagation"},
        ),
        Wrong(
            "symmetric part",
            {"torch.linalg.eigvals(M).real": "torch.linalg.eigvalsh((M + M.T) / 2)"},
            {"q1": 1.25},
            {"q1": "not those of its symmetric part"},
        ),
        Wrong(
            "sign of the flow",
            {"torch.linalg.eigvals(M).real > 0": "torch.linalg.eigvals(M).real < 0"},
            {"q1": 1.5},
            {"q1": "return True"},
        ),
        Wrong(
            "square root",
            {"-((b * y) ** (1 / 3))": "-((b * y) ** (1 / 2))"},
            {"q2": 0.75},
            {"q2": "a cube root"},
        ),
        Wrong(
            "agreement of signs for stability",
            {"w1**2 + b * y / w1 > 0": "b * y / w1 > 0"},
            {"q2": 0.5},
            {"q2": "w1^2 outweighs it"},
        ),
        Wrong(
            "absolute cosine",
            {'.final("cosine")': '.final("cosine").__abs__()'},
            {"q3": 1.25},
            {"q3": "the cosine is signed"},
        ),
        Wrong(
            "mean square without its root",
            {
                "np.sqrt((alignments(p, penalty, SEEDS) ** 2).mean())": (
                    "(alignments(p, penalty, SEEDS) ** 2).mean()"
                )
            },
            {"q3": 1.0},
            {"q3": "take its root"},
        ),
        Wrong(
            "mean size in place of the root of the mean square",
            {
                "np.sqrt((alignments(p, penalty, SEEDS) ** 2).mean())": (
                    "abs(alignments(p, penalty, SEEDS)).mean()"
                )
            },
            {"q3": 1.0},
            {"q3": "square the cosines"},
        ),
        Wrong(
            "bound set after the run",
            {
                "seeds = registered_seeds(claim) # SOLUTION": "seeds = [0, 1, 2, 3, 4]",
                "verdict = judged": (
                    "claim['check'][0]['bound'] = 0.9 * min(values)\nverdict = judged"
                ),
            },
            {"q4": 0.75},
            {"q4": "was the bound set"},
        ),
        Wrong(
            "best seed reported",
            {"[measure(seed) for seed in seeds]": "[max(map(measure, seeds))] * 5"},
            {"q4": 0.75},
            {"q4": "the best seed's value for all"},
        ),
        Wrong(
            "a verdict of one's own",
            {"verdict = judged(claim, values)": "verdict = 'nearly reproduced'"},
            {"q4": 0.5},
            {"q4": "the judge says"},
        ),
        Wrong("a claim that fails", {'"bound": 0.2,': '"bound": 0.999,'}, {}),
    ],
}
NAMES = sorted(path.stem for path in SOURCES.glob("hw*.md"))


# --- reading a homework, and grading in this process ----------------------------------------------


@dataclass
class Question:
    """A question's tests: (points, hidden, source)."""

    manual: bool
    points: float
    tests: list[tuple[float, bool, str]] = field(default_factory=list)

    @property
    def possible(self) -> float:
        return sum(points for points, _, _ in self.tests)


@dataclass
class Homework:
    """What a source holds: code cells in order, each with the question it ends, and questions."""

    cells: list[str]
    questions: dict[str, Question]


def homework(name: str) -> Homework:
    found, now, testing = Homework([], {}), "", False
    for cell in jupytext.read(SOURCES / f"{name}.md").cells:
        if cell.cell_type == "raw":
            if "TESTS" in cell.source:
                testing = "# BEGIN TESTS" in cell.source
            if cell.source.startswith("# BEGIN QUESTION"):
                config = yaml.safe_load(cell.source.split("\n", 1)[1])
                now, manual = config["name"], bool(config.get("manual"))
                found.questions[now] = Question(manual, config.get("points") or 0.0)
        elif cell.cell_type == "code" and testing:
            config, body = _CONFIG.fullmatch(cell.source).groups()
            about = yaml.safe_load(config)
            found.questions[now].tests.append((about["points"], about["hidden"], body))
        elif cell.cell_type == "code":
            found.cells.append(cell.source)
    return found


def blank(cell: str) -> str:
    """A code cell as a student gets it."""
    cell = re.sub(r"# BEGIN SOLUTION NO PROMPT\n.*?# END SOLUTION\n", "", cell, flags=re.DOTALL)
    cell = re.sub(r"( *)# BEGIN SOLUTION\n.*?# END SOLUTION", r"\1...", cell, flags=re.DOTALL)
    return re.sub(r"=.*# SOLUTION$", "= ...", cell, flags=re.MULTILINE)


def edited(cells: list[str], edits: Mapping[str, str]) -> list[str]:
    for old, new in edits.items():
        assert "".join(cells).count(old) == 1, f"the solution has {old!r} not once"
        cells = [cell.replace(old, new) for cell in cells]
    return cells


def grade_here(found: Homework, cells: list[str]) -> dict[str, Any]:
    """Run cells and tests; what otter's worker would answer."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        try:
            exec(compile(cell, "<cell>", "exec"), names)
        except Exception:  # a notebook goes on after an error
            continue
    results = {}
    for name, question in found.questions.items():
        if question.manual:
            continue
        score, messages = 0.0, []
        for points, _, body in question.tests:
            own: dict[str, Any] = {}
            exec(compile(body, "<test>", "exec"), own)
            (test,) = (f for f in own.values() if callable(f) and hasattr(f, "__code__"))
            wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
            try:
                test(*(names if n == "env" else names.get(n) for n in wanted))
                score += points
            except Exception as error:
                messages.append(f"{type(error).__name__}: {error}")
        results[name] = {"score": score, "possible": question.possible, "messages": messages}
    return results


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Homeworks set torch's default dtype and draw from FABOOK_COURSE."""
    monkeypatch.syspath_prepend(str(SOURCES))
    monkeypatch.setenv("FABOOK_COURSE", "11")
    before = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong answer may divide by zero
        yield
    torch.set_default_dtype(before)


# --- with otter ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def with_otter(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results by name of all answers of a homework, or None without ``--otter``."""
    if not pytestconfig.getoption("--otter"):
        return lambda name: None
    from bookkit import grading

    graded: dict[str, dict[str, Any]] = {}

    def results(name: str) -> dict[str, Any]:
        if name in graded:
            return graded[name]
        built, folder = ROOT / "_build" / "homework" / name, tmp_path_factory.mktemp(name)
        assert (built / "autograder.zip").is_file(), "run `make homework` first"
        notebook = json.loads((built / f"{name}-solution.ipynb").read_text())
        code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        sources = ["".join(c["source"]) for c in code]
        for wrong in [Wrong("solution", {}, {}), *WRONG.get(name, [])]:
            for cell, source in zip(code, edited(sources, wrong.edits), strict=True):
                cell["source"] = source
            (folder / f"{wrong.name.replace('/', ' over ')}.ipynb").write_text(json.dumps(notebook))
        student = built / "student" / f"{name}.ipynb"
        (folder / "blank.ipynb").write_text(student.read_text())
        plan = grading.Plan(
            folder, folder / "out", built, ROOT / ".venv-homework" / "bin" / "python", course=11
        )
        rows = grading.grade(plan, lambda *_: None)
        errors = {r["submission"]: r["error"] for r in rows if "error" in r}
        assert not errors
        graded[name] = {Path(r["submission"]).stem: r["questions"] for r in rows}
        return graded[name]

    return results


def graded(name: str, answer: str, with_otter: Any, edits: Mapping[str, str] | None) -> Any:
    """The result of an answer; ``edits`` None is the blank notebook."""
    results = with_otter(name)
    if results is not None:
        return results[answer.replace("/", " over ")]
    found = homework(name)
    cells = [blank(c) for c in found.cells] if edits is None else edited(found.cells, edits)
    return grade_here(found, cells)


# --- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_has_full_marks(name: str, with_otter: Any) -> None:
    questions = homework(name).questions
    points = {q: about.possible for q, about in questions.items() if not about.manual}
    results = graded(name, "solution", with_otter, {})
    assert {q: found["possible"] for q, found in results.items()} == pytest.approx(points)
    for question, found in results.items():
        assert found["messages"] == [], question
        assert found["score"] == pytest.approx(found["possible"])


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_notebook_has_no_points(name: str, with_otter: Any) -> None:
    found = graded(name, "blank", with_otter, None)
    assert {q: r["score"] for q, r in found.items()} == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [pytest.param(n, w, id=f"{n}-{w.name}") for n in NAMES for w in WRONG.get(n, [])],
)
def test_a_mistake_costs_what_it_should(name: str, wrong: Wrong, with_otter: Any) -> None:
    found = graded(name, wrong.name, with_otter, wrong.edits)
    lost = {q: round(r["possible"] - r["score"], 6) for q, r in found.items()}
    assert {q: v for q, v in lost.items() if v} == dict(wrong.lost), found
    for question, part in wrong.says.items():
        assert any(part in message for message in found[question]["messages"]), found[question]


def test_homeworks_are_declared_to_be_no_notebooks_of_the_book() -> None:
    patterns = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["exclude_patterns"]
    excluded = [sorted(ROOT.glob(pattern)) for pattern in patterns]
    assert all(excluded), "a pattern excludes nothing"
    assert {SOURCES / f"{name}.md" for name in NAMES} <= {p for found in excluded for p in found}


@pytest.mark.parametrize("name", NAMES)
def test_points_and_free_text(name: str) -> None:
    found = homework(name)
    text = (SOURCES / f"{name}.md").read_text(encoding="utf-8")
    total = sum(q.points if q.manual else q.possible for q in found.questions.values())
    by_hand = sum(q.points for q in found.questions.values() if q.manual)
    assert f"*{total:g} points, about " in text
    assert 0.2 <= by_hand / total <= 0.3
    assert text.count("Rubric, ") == sum(q.manual for q in found.questions.values())
    assert len(WRONG.get(name, [])) >= 5
    for question in found.questions.values():  # of two of one name, otter runs the last
        names = [re.search(r"^def (\w+)", body, re.MULTILINE)[1] for _, _, body in question.tests]
        assert len(set(names)) == len(names), names
    headings = re.findall(r"^## \d+\. .*\(([\d.]+) points?\)$", text, re.MULTILINE)
    points = [q.points if q.manual else q.possible for q in found.questions.values()]
    assert [float(h) for h in headings] == pytest.approx(points)


@pytest.mark.parametrize("name", NAMES)
def test_other_courses_have_other_networks_and_the_same_marks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = homework(name)
    for course in ("0", "6", "2026"):  # with 6, slopes of wide networks are far from their mean
        monkeypatch.setenv("FABOOK_COURSE", course)
        results = grade_here(found, found.cells)
        assert all(r["score"] == pytest.approx(r["possible"]) for r in results.values()), results
