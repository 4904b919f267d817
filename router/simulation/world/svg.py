"""A picture as SVG, written by hand: no library, and text that can be searched."""

from __future__ import annotations

from html import escape

from router.simulation.world.plot import Box, Curve, Picture, Shape


def svg(picture: Picture) -> str:
    drawn = "".join(_drawn(shape) for shape in picture.shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.width}" height="{picture.height}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'
    )


def _drawn(shape: Shape) -> str:
    if isinstance(shape, Box):
        return _box(shape)
    if isinstance(shape, Curve):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<polyline points="{path}" fill="none" stroke="{shape.color}" stroke-width="1.5"/>'
    return (
        f'<text x="{shape.left:.1f}" y="{shape.top:.1f}" font-size="{shape.size}" '
        f'text-anchor="{shape.anchor}">{escape(shape.text)}</text>'
    )


def _box(box: Box) -> str:
    place = f'x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    if not box.is_filled:
        return f'<rect {place} fill="none" stroke="{box.color}"/>'
    tip = f"<title>{escape(box.tip)}</title>" if box.tip else ""
    return f'<rect {place} fill="{box.color}" opacity="{box.opacity:g}">{tip}</rect>'
