"""The ways in which the bench runs the router: how many, over which store, and what is told of each call."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Kind:
    """Beside bench/router.conf."""

    replicas: int = 1
    has_redis: bool = False
    is_counted: bool = True  # its calls, by metrics
    traced_share: float | None = None  # None: tracing is off


KINDS: Mapping[str, Kind] = {
    "router": Kind(),
    "router redis": Kind(has_redis=True),
    "router redis x2": Kind(has_redis=True, replicas=2),
    "router uncounted": Kind(is_counted=False),
    "router traced 0": Kind(traced_share=0.0),
    "router traced 1": Kind(traced_share=0.01),
    "router traced 100": Kind(traced_share=1.0),
}


@dataclass(frozen=True, slots=True)
class Places:
    """Ports on loopback. `nodes` of them are one stub, under an address for each."""

    port: int
    metrics_port: int
    node_port: int
    nodes: int = 1
    redis_port: int = 0


def command(kind: Kind, path: Path, places: Places) -> list[str]:
    """Writes the configuration to `path`."""
    path.write_text(_configuration(kind, places))
    module = "router" if kind.is_counted else "bench.uncounted"
    return [sys.executable, "-m", module, "serve", "--config", str(path)]


def _configuration(kind: Kind, places: Places) -> str:
    nodes = [
        {"url": f"http://127.0.0.{number}:{places.node_port}", "name": f"stub-{number}", "slots": 4096}
        for number in range(1, places.nodes + 1)
    ]
    more: dict[str, Any] = {}
    if kind.has_redis:
        more["store"] = {"url": f"redis://127.0.0.1:{places.redis_port}"}
    if kind.traced_share is not None:
        # To the node, which takes what a collector takes and is not measured either.
        more["tracing"] = {"endpoint": f"http://127.0.0.1:{places.node_port}", "sample_ratio": kind.traced_share}
    basis = Template((HERE / "router.conf").read_text()).substitute(
        port=places.port, metrics=places.metrics_port, nodes=json.dumps(nodes)
    )
    return basis + "".join(f"{name}: {json.dumps(value)}\n" for name, value in more.items())
