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


def png(picture: Any, colours: int) -> bytes:
    """A PIL image as PNG of few colours: 128 look the same and weigh a third."""
    from PIL import Image

    target = io.BytesIO()
    picture.quantize(colours, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    return target.getvalue()
