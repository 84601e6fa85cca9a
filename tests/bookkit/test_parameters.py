"""Parameters: read from a notebook's source alone, and values given for them in any spelling."""

from __future__ import annotations

import ast
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bookkit import notebooks, parameters
from bookkit.parameters import Parameter, Raw, UsageError

NOTEBOOK = """\
---
kernelspec: {{display_name: Python 3, language: python, name: python3}}
---
# Title

```{{code-cell}} python
:tags: [parameters]
{cell}
```

```{{code-cell}} python
small = dict(n=5, rate=0.1)
run.sizes(quick=small | dict(widths=[3]), paper={{"n": 500, "rate": 1, "widths": [3, 4]}})
```
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(cell: str) -> Path:
        path = tmp_path / "a.md"
        path.write_text(NOTEBOOK.format(cell=cell), encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10 ** -1", 0.1),
        ("-(2 + 3) * 4 // 3", -7),
        ("[1, 2] + [3]", [1, 2, 3]),
        ("[2 * a, a]", [6, 3]),
        ("dict(x=1) | {'y': (1, 2)}", {"x": 1, "y": (1, 2)}),
        ("list(range(4))[1]", 1),
        ("{'a': 1}['a']", 1),
        ("float('1e-3')", 1e-3),
        ("not True", False),
    ],
)
def test_expressions_are_understood(text: str, value: Any) -> None:
    found = parameters.parameters(f"a = 3\nx: object = {text}\n")["x"].default
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    [
        *("os.getcwd()", "__import__('os')", "[i for i in range(3)]", "unknown", "1 / 0"),
        *("9 ** 9 ** 9", "[0] * 10**9", "range(10**9)", "(lambda: 1)()", "().__class__"),
        *("'x' * 10**9", "1 << 9", "f'{1}'"),
    ],
)
def test_what_only_running_could_tell_is_refused(text: str, write: Any) -> None:
    path = write(f"seed = 0\nx = {text}")
    with pytest.raises(UsageError) as caught:
        parameters.of(path)
    assert str(path) in str(caught.value)
    assert "cell In [1], line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        *(("if seed:\n    x = 3", "x"), ("for i in range(3):\n    x = i", "i, x")),
        *(("seed.append(3)", "seed"), ("print(y := 3)", "y")),
        *(("x[0] = 3", "x"), ("x, *y = 1, 2", "y"), ("del x", "x"), ("seed.x = 3", "seed")),
    ],
)
def test_what_changes_a_parameter_is_not_passed_over(line: str, names: str, write: Any) -> None:
    with pytest.raises(UsageError, match=rf"line 3: {names} must be assigned by itself"):
        parameters.of(write(f"seed = 0\nx = [1]\n{line}"))


def test_a_parameter_is_changed_in_place_or_beside_magic() -> None:
    found = parameters.parameters("%matplotlib inline\nx = 1\nx += 0.5\n!date\nx: int\nprint(x)")
    assert found["x"].default == 1.5


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ('text = (\n    "value %d"\n    % number\n)\nimport a', "import a"),
        ("files = !ls\nimport a", "import a"),
        ("torch?\nimport a", "import a"),
        ("%%time\nimport a", "import a"),
        ("%%capture out\n%%time\n%matplotlib inline\nimport a", "import a"),
        ("%%bash\nfor x in a; do\n  import b\ndone", ""),
    ],
)
def test_every_cell_that_jupyter_runs_is_read_as_python(source: str, imports: str) -> None:
    found = ast.walk(parameters.parse(parameters.python(source)))
    assert [ast.unparse(n) for n in found if isinstance(n, ast.Import)] == [imports] * bool(imports)


def test_a_cell_that_jupyter_cannot_run_is_left_to_the_parser() -> None:
    with pytest.raises(UsageError, match="line 3: unindent does not match"):
        parameters.parameters("if True:\n        x = 1\n    y = !ls")


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("[1, 3]", [0.5], "[1.0, 3.0]"),
        ("1, 3", [0.5], "[1.0, 3.0]"),
        ("[[6, 1]]", [[6.0, 1], [6.0, 0.1]], "[[6.0, 1.0]]"),
        ([1, 3], (0.5, 2), "[1.0, 3.0]"),
        ("(1, 3)", (0.5, 2), "(1.0, 3.0)"),
        ("[true, False]", [True], "[True, False]"),
        ("[1, 3]", [2], "[1, 3]"),
    ],
)
def test_the_values_of_a_list_take_the_type_of_the_defaults(
    text: Any, default: Any, value: str
) -> None:
    assert repr(parameters.convert(text, "p", Parameter(default))) == value


@pytest.mark.parametrize(("text", "default"), [("[1]", [True]), ("1" + "0" * 400, 0.5)])
def test_values_of_another_type_are_refused(text: str, default: Any) -> None:
    with pytest.raises(UsageError, match="parameter 'p' must be"):
        parameters.convert(text, "p", Parameter(default))


def test_no_runs_are_no_runs() -> None:
    parameter = Parameter(None, presets={"quick": 3, "paper": 10})
    for name in ("seeds", "wide_seeds", "relu_runs"):
        with pytest.raises(UsageError, match=rf"'{name}' counts runs and must be 1 or more, got "):
            parameters.convert("0", name, parameter)
        assert parameters.convert("1", name, parameter) == 1
    assert parameters.convert("0", "steps_before", parameter) == 0


def test_values_that_papermill_put_in_are_not_passed_over(write: Any) -> None:
    path = write("seed = 0")
    tags = "\n```{code-cell} python\n:tags: [injected-parameters]\nseed = 5\n```\n"
    path.write_text(path.read_text(encoding="utf-8") + tags, encoding="utf-8")
    with pytest.raises(UsageError, match="has values that papermill put in"):
        parameters.of(path)


@pytest.mark.parametrize("name", ["a.md", "b.ipynb", "c.md"])
def test_a_file_that_is_no_notebook_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if name == "c.md" else path.write_bytes(b"\xff\xfe" if name == "a.md" else b"{")
    with pytest.raises(UsageError, match=rf"{path} cannot be read"):
        parameters.of(path)


def test_several_names_in_one_statement() -> None:
    found = parameters.parameters("a = b = 1\nc, d = 2, [3]\nimport os\n")
    assert {name: known.default for name, known in found.items()} == dict(a=1, b=1, c=2, d=[3])


def test_every_key_of_the_table_is_a_parameter(write: Any) -> None:
    path = write('preset = "quick"\nseed = 0\nn = None  # int: samples')
    found = parameters.of(path)
    assert list(found) == ["preset", "seed", "n", "rate", "widths"]
    assert dict(found["n"].presets) == {"quick": 5, "paper": 500}
    assert parameters.listing(found)[2:4] == [
        {"name": "n", "type": "an integer", "quick": 5, "paper": 500, "note": "int: samples"},
        {"name": "rate", "type": "a finite number", "quick": 0.1, "paper": 1, "note": ""},
    ]
    assert parameters.convert("1000", "n", found["n"]) == 1000
    assert parameters.convert("none", "n", found["n"]) is None
    assert parameters.convert("[7]", "widths", found["widths"]) == [7]
    for name, text in (("n", "1.5"), ("n", "many"), ("widths", "7"), ("rate", "nan")):
        with pytest.raises(UsageError, match=f"parameter '{name}' must be"):
            parameters.convert(text, name, found[name])


def test_a_changed_file_is_read_again(write: Any) -> None:
    assert parameters.of(write("seed = 0"))["seed"].default == 0
    path = write("seed = 100")
    assert parameters.of(path)["seed"].default == 100


@pytest.mark.parametrize("text", ["0.1", "1e-1", ".1", "10 ** -1", " 0.10 ", 0.1])
def test_a_choice_in_every_spelling_of_its_value(text: Any) -> None:
    found = parameters.parameters("rate = 0.5  # one of: 1e-1, 0.5")["rate"]
    assert parameters.convert(text, "rate", found) == 0.1


def test_choices_of_any_kind() -> None:
    cell = "flag = True  # one of: True, False\nw = [1]  # one of: [1], [1, 2]\n"
    cell += "r = 'a'  # one of: a, b"
    found = parameters.parameters(cell)
    assert parameters.convert("false", "flag", found["flag"]) is False
    assert parameters.convert("1,2", "w", found["w"]) == [1, 2]
    assert parameters.convert("'b'", "r", found["r"]) == "b"
    for name, text in (("flag", "1"), ("w", "[2]"), ("r", "c"), ("r", "B")):
        with pytest.raises(UsageError, match=f"parameter '{name}' is one of"):
            parameters.convert(text, name, found[name])


def test_raw_text_stays_text() -> None:
    assert parameters.convert(Raw("3"), "p", Parameter("x")) == "3"
    assert parameters.convert(Raw("'3'"), "p", Parameter("x")) == "'3'"
    with pytest.raises(UsageError, match="must be an integer"):
        parameters.convert(Raw("3"), "p", Parameter(1))


def test_single_values_come_before_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("lr: 1e-3\nwidths: [1, 2]\nseed: 1\n", encoding="utf-8")
    given = parameters.given(["seed=2", "lr=a=b"], ["rule=03"], ["{widths: [3]}"], [file])
    assert parameters.once(given) == {"lr": "a=b", "widths": [3], "seed": "2", "rule": "03"}
    assert parameters.convert(parameters.given(files=[file])["lr"][0], "lr", Parameter(0.1)) == 1e-3


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'seed' was given '1' and '2'; .* `fabook sweep`"):
        parameters.once(parameters.given(["seed=1", "seed=2"]))


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "'name: value' lines"), ("{a: ", "-y"), ("3", "lines")]
)
def test_yaml_must_be_a_mapping(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parameters.given(yaml_texts=[text])


def test_a_file_as_papermill_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("\ufeffname: 2026-11-29\n", encoding="utf-8")
    assert parameters.given(files=[file]) == {"name": ["2026-11-29"]}
    file.write_text("# nothing\n", encoding="utf-8")
    assert parameters.given(files=[file], yaml_texts=[""]) == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file"):
        parameters.given(files=[tmp_path / "none.yaml"])
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"p\.yaml: 'utf-8' codec"):
        parameters.given(files=[tmp_path / "p.yaml"])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3", ["3"]),
        ("-1..1", ["-1", "0", "1"]),
        ("0..10..5,7", ["0", "5", "10", "7"]),
        ("a,'b,c',(1,2)", ["a", "'b,c'", "(1,2)"]),
        (Raw("a,b"), ["a,b"]),
        ([1, 2], [[1, 2]]),
    ],
)
def test_several_values(text: Any, values: list[Any]) -> None:
    assert parameters.several(text) == values


@pytest.mark.parametrize("text", ["3..1", "0..1000000000", "0..5..0"])
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"must be first\.\.last"):
        parameters.several(text)


def test_every_notebook_of_the_book_has_its_table_read() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in notebooks.sources(root):
        found = parameters.of(path)
        assert list(found)[:3] == ["preset", "seed", "device"]
        tables = [set(known.presets) for known in found.values() if known.presets]
        assert tables, path
        assert all(table == {"quick", "paper"} for table in tables), path


def test_threads_parse_at_the_same_time() -> None:
    """Python up to 3.11 fails here without a lock, where a collection interrupts the parser."""

    class Interrupting:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            sum(range(200))

    def many(source: str) -> None:
        for _ in range(20):
            for _ in range(5):
                Interrupting()
            parameters.parse(source)

    source = Path(parameters.__file__).read_text(encoding="utf-8")
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(many, [source] * 6))
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
