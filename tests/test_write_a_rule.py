"""The page on writing a rule is a doctest, and the first example of the library's pages runs."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent.parent / "book" / "api"


def test_every_example_of_the_page_runs() -> None:
    page = str(PAGES / "write_a_rule.md")
    found = doctest.testfile(page, module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 15
    assert found.failed == 0


def test_the_first_example_of_the_library_learns_and_aligns() -> None:
    code = re.findall(r"(?s)```python\n(.*?)```", (PAGES / "index.md").read_text())
    names: dict[str, Any] = {}
    exec(compile(code[0], "index.md", "exec"), names)
    before, *after = names["seen"]["alignment"]
    assert abs(before) < 0.1 < min(after)
    net, digits = names["net"], names["digits"]
    assert names["fabook"].accuracy(net, digits.x_test, digits.y_test) > 0.9
