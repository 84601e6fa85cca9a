"""Parameters of a notebook, read from its source without running it, and values given for them.

A parameter is a name that the cell tagged `parameters` assigns, or a key of the notebook's one
table of sizes, `run.sizes(quick=dict(...), paper=dict(...))`. None means the preset's value.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import math
import operator
import re
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PARSING = threading.Lock()
_ONE_OF = re.compile(r"#\s*one of:\s*(.+)")
_COMMENT = re.compile(r"\s*#\s*(.+)")
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
}
_CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (dict, list, tuple, range, int, float, str, bool, min, max, sum, abs, len)
}
_WORDS = {"true": True, "false": False, "none": None}
_COUNTS = ("seeds", "runs")  # last words of the names of what counts independent runs
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)  # of text as an expression
_LARGEST = 10_000  # of an exponent, a repetition or a range: nothing here may take long


class UsageError(ValueError):
    """A request refused before any kernel starts; the message names what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """A parameter: its default, the values allowed (none named: any), its value per preset."""

    default: Any
    choices: tuple[str, ...] = ()
    presets: Mapping[str, Any] = field(default_factory=dict)  # from the table of sizes
    note: str = ""

    @property
    def example(self) -> Any:
        """A value whose type every other value must have; None if any type does."""
        values = [self.default, *self.presets.values()]
        shown = [value for value in values if value is not None]
        floats = [value for value in shown if isinstance(value, float)]
        return next(iter([*floats, *shown]), None)

    def value(self, preset: str) -> Any:
        """What it is in a preset unless it is set."""
        return self.presets.get(preset) if self.default is None else self.default


# --- reading -------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    """A notebook, Markdown or ipynb, with cell ids that are the same in every run.

    Raises:
        UsageError: naming a file that is none.
    """
    import jupytext

    try:
        text = path.read_text(encoding="utf-8-sig")
        notebook = jupytext.reads(text, fmt="ipynb" if path.suffix == ".ipynb" else "md:myst")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"
    return notebook


def of(path: Path) -> dict[str, Parameter]:
    """The parameters of a notebook; the file is read again only when it has changed.

    Raises:
        UsageError: without a `parameters` cell, or for a default that is not understood.
    """
    return dict(_of(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _of(path: Path, _: int) -> dict[str, Parameter]:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    if not tagged:
        raise UsageError(f"{path} has no cell with the tag 'parameters'")
    if any("injected-parameters" in c.metadata.get("tags", []) for c in cells):
        raise UsageError(
            f"{path} has values that papermill put in: run its source, or delete that cell"
        )
    where = f"{path}, cell In [{cells.index(tagged[0]) + 1}]"
    found = parameters(tagged[0].source, where)
    for name, values in _table(cell.source for cell in cells).items():
        known = found.get(name, Parameter(None))
        found[name] = Parameter(known.default, known.choices, values, known.note)
    return found


def parse(source: str, mode: str = "exec") -> Any:
    """`ast.parse`, one at a time.

    Up to Python 3.11 all threads share one count of a tree's depth, and a thread that is
    interrupted while it builds one fails with a `SystemError`.
    """
    with _PARSING:
        return ast.parse(source, mode=mode)


def parameters(source: str, where: str = "parameters cell") -> dict[str, Parameter]:
    """The parameters that a cell assigns, from its source alone.

    Raises:
        UsageError: naming file, cell and line of what only running the cell could tell.

    Example:
        >>> parameters('rule = "fa"  # one of: fa, dfa')["rule"].choices
        ('fa', 'dfa')
        >>> parameters("lr = 10 ** -1")["lr"].default
        0.1
    """
    found: dict[str, Parameter] = {}
    try:
        tree = parse(source := python(source))
    except SyntaxError as error:
        raise UsageError(f"{where}, line {error.lineno}: {error.msg}") from error
    lines = source.splitlines()
    for node in tree.body:
        assigned = list(_assigned(node))
        for name, expression in assigned:
            try:
                default = evaluate(expression, {n: p.default for n, p in found.items()})
            except ValueError as error:
                raise UsageError(
                    f"{where}, line {node.lineno}: the default of {name!r} must be a value or "
                    f"an expression of values: {error}"
                ) from error
            after = lines[(node.end_lineno or 1) - 1].encode()[node.end_col_offset or 0 :].decode()
            match, note = _ONE_OF.search(after), _COMMENT.fullmatch(after)
            choices = tuple(_pieces(match[1])) if match else ()
            found[name] = Parameter(default, choices, {}, note[1] if note and not match else "")
        if changed := _bound(node, found) - {name for name, _ in assigned}:
            raise UsageError(
                f"{where}, line {node.lineno}: {', '.join(sorted(changed))} must be assigned "
                "by itself, as in `name = value`"
            )
    return found


def _assigned(node: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """The names that a statement assigns, each with its expression."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, node.value
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, ast.BinOp(ast.Name(node.target.id), node.op, node.value)
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Name):
            yield target.id, node.value
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for item, value in zip(target.elts, node.value.elts, strict=False):
                if isinstance(item, ast.Name):
                    yield item.id, value


def _bound(node: ast.stmt, known: Container[str]) -> set[str]:
    """The names that a statement gives values or, by a method of theirs, may change in place."""
    apart = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    if isinstance(node, apart) or (isinstance(node, ast.AnnAssign) and node.value is None):
        return set()
    found = set()
    for inner in ast.walk(node):
        place: ast.AST = inner
        method = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute)
        if isinstance(inner, ast.Call):
            place = inner.func
        while isinstance(place, ast.Attribute | ast.Subscript):
            place = place.value
        written = isinstance(getattr(inner, "ctx", None), ast.Store | ast.Del)
        if isinstance(place, ast.Name) and (written or (method and place.id in known)):
            found.add(place.id)
    return found


def python(source: str) -> str:
    """A cell as Python: what speaks to Jupyter (`%magic`, `!shell`, `name?`) as IPython's calls."""
    if _parses(source):
        return source
    from IPython.core.inputtransformer2 import TransformerManager

    with contextlib.suppress(SyntaxError):  # the cell's own, which whoever parses it is told
        code, body = TransformerManager().transform_cell(source), ""
        if source.lstrip().startswith("%%"):  # `%%time` and its like run what is below as Python
            body = python(source.lstrip().partition("\n")[2])
        source = code + body if _parses(body) else code
    return source


def _parses(source: str) -> bool:
    try:
        parse(source)
    except SyntaxError:
        return False
    return True


def _table(sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The table of sizes, key -> preset -> value; what cannot be read statically is left out."""
    known: dict[str, Any] = {}
    for source in sources:
        with contextlib.suppress(SyntaxError):  # the run will say where
            for node in parse(python(source)).body:
                for call in ast.walk(node):
                    if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".sizes"):
                        return _rows(call, known)
                for name, expression in _assigned(node):
                    known.pop(name, None)
                    with contextlib.suppress(ValueError):
                        known[name] = evaluate(expression, known)
    return {}


def _rows(call: ast.Call, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for keyword in call.keywords:
        table: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            value = evaluate(keyword.value, known)
            table = value if isinstance(value, dict) else {}
        for name, value in table.items():
            rows.setdefault(name, {})[str(keyword.arg)] = value
    return rows


def evaluate(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of an expression of literals, known names, arithmetic and a few functions.

    Raises:
        ValueError: for anything else; nothing is executed.
    """
    value = functools.partial(evaluate, known=known)
    try:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name(id=name) if name in known:
                return known[name]
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(value(item) for item in items)
            case ast.Set(elts=items):
                return {value(item) for item in items}
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return {value(k): value(v) for k, v in zip(keys, values) if k is not None}
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return +value(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _binary(op, value(left), value(right))
            case ast.Subscript(value=container, slice=index):
                return value(container)[value(index)]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=kw) if name in _CALLS:
                given = {k.arg: value(k.value) for k in kw if k.arg}
                return _call(name, [value(a) for a in args], given)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(f"{ast.unparse(node)}: {error}") from error
    raise ValueError(f"{ast.unparse(node)!r} is not understood without running it")


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        long = isinstance(one, list | tuple | str) and isinstance(other, int)
        if (long or isinstance(op, ast.Pow)) and isinstance(other, int) and abs(other) > _LARGEST:
            raise ValueError(f"{other} is larger than {_LARGEST}")
    return _BINARY[type(op)](left, right)


def _call(name: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    if name == "range":
        made = range(*args)
        if len(made) > _LARGEST:
            raise ValueError(f"{made} is longer than {_LARGEST}")
        return list(made)
    return _CALLS[name](*args, **keywords)


def listing(known: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """For each parameter its name, type, value in each preset, and what is said of it."""
    return [
        {"name": name, "type": kind(parameter.example).split(" such as")[0]}
        | {preset: parameter.value(preset) for preset in ("quick", "paper")}
        | {"note": ", ".join(parameter.choices) or parameter.note}
        for name, parameter in known.items()
    ]


# --- values --------------------------------------------------------------------------------------


def convert(text: Any, name: str, parameter: Parameter) -> Any:
    """A value for a parameter, from text as typed on the command line or from a Python value.

    The type is the default's, or that of the presets' values; an integer does for a float,
    nothing else is converted. Of a parameter with choices, every spelling of one of them does.

    Raises:
        UsageError: naming the value got, and the type or values allowed.
    """
    example = parameter.example
    value = _parse(text, example)
    if parameter.choices:
        allowed = [_parse(choice, example) for choice in parameter.choices]
        if not any(value == a and _like(value, a) for a in allowed):
            shown = ", ".join(parameter.choices)
            raise UsageError(f"parameter {name!r} is one of {shown}; got {text!r}")
    elif not (value is None and parameter.default is None) and not _like(value, example):
        raise UsageError(f"parameter {name!r} must be {kind(example)}, got {text!r}{_swept(text)}")
    elif name.rpartition("_")[2] in _COUNTS and isinstance(value, int) and value < 1:
        raise UsageError(f"parameter {name!r} counts runs and must be 1 or more, got {text!r}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"parameter {name!r} cannot be {text!r}: {error}") from error
    return value


def _swept(text: Any) -> str:
    with contextlib.suppress(UsageError):
        if isinstance(text, str) and len(several(text)) > 1:
            return "; several values at once are for `fabook sweep`"
    return ""


def _parse(text: Any, example: Any) -> Any:
    """Text as a value of the example's type, if it can be read so; a value as it is."""
    value = text
    if isinstance(text, Raw):
        return str(text)
    if isinstance(text, str) and isinstance(example, str):
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if quoted:
            with contextlib.suppress(*_UNREADABLE):
                value = ast.literal_eval(text)
    elif isinstance(text, str):
        if text.strip().lower() in _WORDS:
            return _WORDS[text.strip().lower()]
        with contextlib.suppress(*_UNREADABLE):  # what stays text is refused later
            value = evaluate(parse(text.strip(), mode="eval").body, _WORDS)
    return _alike(value, example)


def _alike(value: Any, example: Any) -> Any:
    """Integers as floats where the example's are floats, in lists too; a tuple as a list."""
    if isinstance(example, float) and type(value) is int:
        with contextlib.suppress(OverflowError):  # refused later, as no finite number
            return float(value)
    if isinstance(example, list | tuple) and isinstance(value, list | tuple):
        kind = list if isinstance(example, list) else type(value)
        return kind(_alike(item, _element(example)) for item in value)
    return value


def _element(example: list[Any] | tuple[Any, ...]) -> Any:
    """An element whose type every other must have; None if any type does."""
    return next(iter([*(item for item in example if isinstance(item, float)), *example]), None)


class Raw(str):
    """Text that stays text, given with `-r`."""

    __slots__ = ()


def _like(value: Any, example: Any) -> bool:
    if example is None:
        return True
    if isinstance(example, list | tuple):
        same = isinstance(value, list | tuple)
        return same and all(_like(item, _element(example)) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) is type(example)


def kind(example: Any) -> str:
    """The type of a value in words, with the value as its example."""
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string"}
    word = names.get(type(example), f"a {type(example).__name__}" if example is not None else "any")
    return word if example is None else f"{word} such as {example!r}"


def given(
    pairs: Iterable[str] = (),
    raw: Iterable[str] = (),
    yaml_texts: Iterable[str] = (),
    files: Iterable[Path] = (),
) -> dict[str, list[Any]]:
    """Values from the command line by name; single ones take the place of a file's, as papermill's.

    Raises:
        UsageError: for what is no parameter, or a file that cannot be read.
    """
    base: dict[str, list[Any]] = {}
    for path in files:
        try:
            base |= _mapping(path.read_text(encoding="utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"-f {path}: {getattr(error, 'strerror', error)}") from error
    for text in yaml_texts:
        base |= _mapping(text, "-y")
    single: dict[str, list[Any]] = {}
    for texts, make in ((pairs, str), (raw, Raw)):
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise UsageError(f"a parameter is given as -p key=value, got {text!r}")
            single.setdefault(name.strip(), []).append(make(value))
    return base | single


def _mapping(text: str, where: str) -> dict[str, list[Any]]:
    import yaml
    from papermill.iorw import NoDatesSafeLoader

    try:
        found = yaml.load(text, NoDatesSafeLoader)
    except RecursionError as error:
        raise UsageError(f"{where}: brackets are nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from error
    if found is None:  # an empty file
        return {}
    if not isinstance(found, dict):
        raise UsageError(f"{where}: parameters are 'name: value' lines, got {found!r}")
    return {str(name): [value] for name, value in found.items()}


def once(values: Mapping[str, list[Any]]) -> dict[str, Any]:
    """One value for each name.

    Raises:
        UsageError: for a name that was given twice.
    """
    for name, several in values.items():
        if len(several) > 1:
            shown = " and ".join(repr(str(value)) for value in several)
            raise UsageError(
                f"parameter {name!r} was given {shown}; give one, or try both with `fabook sweep`"
            )
    return {name: several[0] for name, several in values.items()}


def _pieces(text: str) -> list[str]:
    """Text between the commas that lie outside brackets and quotes."""
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def several(text: Any) -> list[Any]:
    """The values that `0..3`, `0..10..2` or `a,b,[1,2]` stand for; one value stands for itself.

    Raises:
        UsageError: for a range that is empty or longer than 10,000.

    Example:
        >>> several("0..3"), several("64,256"), several("[1,2],[3]")
        (['0', '1', '2', '3'], ['64', '256'], ['[1,2]', '[3]'])
    """
    if isinstance(text, Raw) or not isinstance(text, str):
        return [text]
    values: list[Any] = []
    for piece in _pieces(text):
        match = re.fullmatch(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?", piece)
        if match is None:
            values.append(piece)
            continue
        if max(map(len, filter(None, match.groups()))) > 1000:  # such numbers Python does not read
            raise UsageError(f"{piece[:20]!r}... has a number of more than 1000 digits")
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if not step or last < first or (last - first) // step >= _LARGEST:
            raise UsageError(f"{piece!r} must be first..last, at most {_LARGEST} values upwards")
        values += [str(value) for value in range(first, last + 1, step)]
    return values
