"""Draws `dashboards/*.json` with the data of a real Prometheus, for the docs: what Grafana would show, without Grafana.

`python -m bench.pictures` runs a simulated pool for a while and writes docs/pictures/*.png by a headless Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from PIL import Image

from bench.drawing import STEP_S, Series, drawn, text
from bench.observe import Load, Prometheus, observed, prometheus

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
WINDOW = "14s"  # what Grafana's $__rate_interval would be at such a scrape
COLOURS = 64
COLUMN, LINE, GAP = 50, 26, 6  # pixels of the grid


def filled(expr: str, window: str, span_s: int, node: str = ".+") -> str:
    for name, value in {
        "$__rate_interval": window,
        "$__range": f"{span_s}s",
        "$namespace": ".*",
        "$team": ".*",
        "$node": node,
    }.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$\w+", ".+", expr)


async def asked(found: Prometheus, panel: dict[str, Any], span_s: int, node: str) -> list[Series]:
    series = []
    end_s = time.time()
    for target in panel["targets"]:
        query = {
            "query": filled(target["expr"], WINDOW, span_s, node),
            "start": str(end_s - span_s),
            "end": str(end_s),
            "step": str(STEP_S),
        }
        async with found.session.get(f"{found.url}/api/v1/query_range", params=query) as answer:
            told = await answer.json()
        for each in told["data"]["result"]:
            points = [(float(at), float(value)) for at, value in each["values"] if value not in ("NaN", "+Inf", "-Inf")]
            if points:
                series.append(
                    Series(target["refId"], each["metric"], legend_of(target["legendFormat"], each["metric"]), points)
                )
    return series


def legend_of(pattern: str, labels: dict[str, str]) -> str:
    if pattern == "__auto":
        return " ".join(value for name, value in labels.items() if not name.startswith("__"))
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), pattern).strip()


async def picture(found: Prometheus, board: dict[str, Any], span_s: int) -> str:
    """The whole board as SVG; of a repeated row the first one."""
    parts, bottom, node = [], 0.0, ".+"
    for panel in board["panels"]:
        place = panel["gridPos"]
        x, y, width, height = place["x"] * COLUMN, place["y"] * LINE, place["w"] * COLUMN - GAP, place["h"] * LINE - GAP
        bottom = max(bottom, y + height)
        if panel["type"] == "row":
            parts.append(text(x + 4, y + 17, panel["title"].replace("$node", "sim-1"), size=14, weight="bold"))
            node = "sim-1" if panel.get("repeat") else ".+"
            continue
        parts.append(drawn(panel, await asked(found, panel, span_s, node), x, y, width, height))
    wide, high = 24 * COLUMN, bottom + GAP
    size = f'width="{wide}" height="{high}"'
    ground = '<rect width="100%" height="100%" fill="#111217"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{ground}{"".join(parts)}</svg>'


async def photographed(svg: str, path: Path) -> None:
    """Raises FileNotFoundError where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise FileNotFoundError("no chromium on PATH")
    width, height = re.search(r'width="(\d+)" height="([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="picture-") as name:
        page = Path(name) / "board.html"
        page.write_text(f'<body style="margin:0">{svg}</body>')
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            f"--window-size={width},{int(float(height))}",
            f"--screenshot={path}",
            str(page),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await process.wait()
    # Few colours: a third of the bytes.
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


async def draw(span_s: int) -> None:
    async with (
        observed(3, time_scale=0.3) as (pool, router),
        prometheus([router.metrics_port], scrape_s=STEP_S) as found,
    ):
        load = asyncio.create_task(Load(router.port, 30, pause_s=1.0).run())
        await asyncio.sleep(span_s / 2)
        await pool.nodes[2].set_fault("refuse")  # so that there is something to see
        await asyncio.sleep(span_s / 4)
        await pool.nodes[2].clear_faults()
        await asyncio.sleep(span_s / 4)
        PICTURES.mkdir(exist_ok=True)
        for path in sorted((ROOT / "dashboards").glob("*.json")):
            await photographed(
                await picture(found, json.loads(path.read_text()), span_s), PICTURES / f"{path.stem}.png"
            )
            print(path.stem, flush=True)
        load.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__)
    parser.add_argument("--seconds", type=int, default=180, help="how long the pool runs, and what the pictures show")
    try:
        uvloop.run(draw(parser.parse_args().seconds))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
