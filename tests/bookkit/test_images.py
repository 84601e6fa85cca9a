"""Pictures stay light and keep the colours that mean something."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageColor, ImageDraw

from bookkit import images, web
from fabook import RULES


def drawn() -> Image.Image:
    """A line for each rule, in its colour, thin beside the white ground and much grey text."""
    picture = Image.new("RGB", (1000, 600), "white")
    pen = ImageDraw.Draw(picture)
    for level in range(256):
        pen.line((0, 300 + level, 1000, 300 + level), fill=(level, level, level))
    for place, rule in enumerate(RULES.values()):
        pen.line((0, 20 * place + 20, 600, 20 * place + 20), fill=rule.colour, width=4)
    return picture


@pytest.mark.parametrize("make", [images.png, web.card])
def test_the_colours_of_rules_stay(make: object) -> None:
    assert callable(make)
    with Image.open(io.BytesIO(make(drawn()))) as light:
        shown = light.convert("RGB")
    colours = shown.getcolors(2**24)
    assert colours is not None
    assert len(colours) <= 128
    assert min(shown.getpixel((2, 2))) >= 254
    for name, rule in RULES.items():
        wanted = ImageColor.getrgb(rule.colour)
        off = min(max(abs(a - b) for a, b in zip(colour, wanted)) for _, colour in colours)
        assert off <= 20, name
