"""Every drawing function of `notebooks/<paper>/figures.py`, on the committed results."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bookkit import claims, record

ROOT = Path(__file__).resolve().parents[2]
CALL = re.compile(r'run\.figure\(\s*"([^"]+)",\s*figures\.(\w+)')
DRAWN = [
    (path.relative_to(ROOT / "notebooks").with_suffix("").as_posix(), function)
    for path in sorted(ROOT.glob("notebooks/*/*.md"))
    for _, function in CALL.findall(path.read_text(encoding="utf-8"))
]


@pytest.fixture(params=DRAWN, ids=lambda pair: ".".join(pair))
def figure(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A figure drawn from the committed results of its notebook, in memory."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    notebook, function = request.param
    path = claims.published_path(ROOT, notebook)
    if not path.is_file():
        pytest.skip(f"{notebook} waits for its run at the paper's scale")
    source = ROOT / "notebooks" / Path(notebook).parent / "figures.py"
    spec = importlib.util.spec_from_file_location(f"figures_{Path(notebook).parent}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = getattr(module, function)(record.decode(json.loads(path.read_text("utf-8"))["data"]))
    figure = drawn if hasattr(drawn, "savefig") else plt.gcf()
    figure.canvas.draw()
    yield figure
    plt.close("all")


def test_a_figure_fits_the_page_and_can_be_read(figure: Any) -> None:
    panels = [ax for ax in figure.axes if ax.get_subplotspec() and ax.lines + ax.collections]
    assert figure.get_figwidth() <= 8.4
    assert len({ax.get_subplotspec() for ax in panels}) <= 4
    texts = list(figure.findobj(lambda a: hasattr(a, "get_fontsize")))
    small = {
        t.get_text() for t in texts if t.get_text() and t.get_visible() and t.get_fontsize() < 9
    }
    assert {text for text in small if not re.fullmatch(r"\s*", text)} == set()
    letters = " ".join(ax.get_title(loc) for ax in figure.axes for loc in ("left", "center"))
    if len(panels) > 1:
        assert "(a)" in letters
        assert "(b)" in letters
