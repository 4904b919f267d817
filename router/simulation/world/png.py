"""A picture as PNG, drawn by Pillow: the extra `plot`. Nothing else needs it, so that it is imported here only."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageColor, ImageDraw, ImageFont

from router.simulation.world.plot import Box, Curve, Picture, Point, Shape, Words

SCALE = 2  # pixels for one of the picture's, so that small text is sharp
CURVE_WIDTH = 3
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}  # at the base line, as SVG has it
WHITE = 255


def png(picture: Picture) -> bytes:
    image = Image.new("RGB", (picture.width * SCALE, picture.height * SCALE), "white")
    draw = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _draw(draw, shape)
    out = BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    if isinstance(shape, Box):
        _draw_box(draw, shape)
    elif isinstance(shape, Curve):
        draw.line([_scaled(point) for point in shape.points], fill=shape.color, width=CURVE_WIDTH, joint="curve")
    else:
        _draw_words(draw, shape)


def _draw_box(draw: ImageDraw.ImageDraw, box: Box) -> None:
    left, top = _scaled((box.left, box.top))
    right, bottom = _scaled((box.left + box.width, box.top + box.height))
    corners = (left, top, max(left, right - 1), max(top, bottom - 1))
    if box.is_filled:
        draw.rectangle(corners, fill=_paled(box.color, box.opacity))
    else:
        draw.rectangle(corners, outline=box.color, width=SCALE)


def _draw_words(draw: ImageDraw.ImageDraw, words: Words) -> None:
    font = ImageFont.load_default(words.size * SCALE)
    draw.text(_scaled((words.left, words.top)), words.text, fill="black", font=font, anchor=ANCHORS[words.anchor])


def _scaled(point: Point) -> tuple[int, int]:
    return round(point[0] * SCALE), round(point[1] * SCALE)


def _paled(color: str, opacity: float) -> tuple[int, int, int]:
    """Over white: no two of the boxes that let something through overlap."""
    red, green, blue = (round(WHITE + (part - WHITE) * opacity) for part in ImageColor.getrgb(color)[:3])
    return red, green, blue
