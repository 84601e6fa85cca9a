"""Pictures of executed cells, made light: what the site and the plain notebooks show of them."""

from __future__ import annotations

import io
from typing import Any


def on_white(content: bytes) -> Any:
    """A picture's file as a PIL image on a white ground."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def png(picture: Any) -> bytes:
    """A PIL image as PNG of 128 colours: it looks the same and weighs a third.

    The octree keeps the colours of thin lines, by which rules are told apart; a median cut mixes
    them.
    """
    from PIL import Image

    target = io.BytesIO()
    few = picture.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(target, "PNG", optimize=True)
    return target.getvalue()
