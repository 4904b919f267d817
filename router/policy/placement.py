"""Which copies should be loaded for the lines that wait: one pass, pure. The shell executes it and passes again.

A load belongs to the router, one at a time per set of weights and per node; tickets wait in line for it. A second copy
for a long line, evictions and declared copies are not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from router.errors import Rejection
from router.fleet.node import CopyState, Node
from router.fleet.snapshot import Row, Snapshot, point_of
from router.fleet.tickets import LineView
from router.policy.filters import has_context

VRAM_MARGIN = 1.25  # of the file's size: Ollama wants 20 % of free memory left (server/sched.go), plus context
BACKOFF_S_MIN = 5.0  # a node that just failed to load is not asked at once again
BACKOFF_S_MAX = 300.0  # what was repaired is found out within Ollama's own load timeout

Copies = Mapping[tuple[str, str], int]  # by (node, weights)


class Mode(StrEnum):
    """`placement.mode`: what the operator lets the router do to nodes."""

    OBSERVE = "observe"
    ON_DEMAND = "on_demand"
    MANAGED = "managed"


@dataclass(frozen=True, slots=True)
class Load:
    """`num_ctx` is 0 and `keep_alive_s` None where nobody asked. `is_renewal`: in memory still, but about to expire."""

    node: str
    model: str  # as the node stores it
    key: str
    weights: str
    num_ctx: int = 0
    keep_alive_s: float | None = None
    is_renewal: bool = False
    is_default: bool = False  # somebody who waits for it needs the node's own context


@dataclass(frozen=True, slots=True)
class Refuse:
    """Everybody in this line: `kind` is NO_NODE or NOT_LOADED."""

    key: str
    kind: Rejection


Action = Load | Refuse


class Wants(StrEnum):
    """What a line waits for."""

    COPY = "copy"  # any, with the context that it asks for
    DEFAULT = "default"  # one with its node's own context


class Hindrance(StrEnum):
    """Why a node does not load a model now."""

    UNLISTED = "unlisted"  # in memory perhaps, but in no list of its disk
    IN_MEMORY = "in_memory"
    LOADING = "loading"  # this one or another: a node loads one model at a time
    BACKOFF = "backoff"  # its last load failed


class LoadFailure(NamedTuple):
    """A copy whose last load failed: `times` in a row, not asked again before `until_s`, and the node's words."""

    times: int
    until_s: float
    text: str


def place(
    lines: Sequence[LineView],
    snapshot: Snapshot,
    *,
    loading: Mapping[str, str],
    backoff: Mapping[tuple[str, str], float],
    now_s: float,
    mode: Mode,
    occupancy: Copies = MappingProxyType({}),
) -> tuple[Action, ...]:
    """`loading`: node -> weights of loads that run. `backoff`: (node, weights) -> not before, on the clock of now_s.

    The line that waits longest chooses first.
    """
    refusals: list[Action] = []
    loads: dict[str, Load] = {}  # by node
    for line in sorted(lines, key=lambda line: (-line.oldest_wait_s, line.model)):
        if not line.depth:
            continue
        holding = snapshot.holding(line.model).by_node.values()
        if any(row.is_cloud and row.is_ready for row in holding):
            continue  # there is nothing to load: its calls wait for a slot
        rows = [row for row in holding if _may_serve(row, line)]
        refusal = _refusal(rows, mode)
        if refusal is not None:
            refusals.append(Refuse(line.model, refusal))
            continue
        shared = next((loads[row.node] for row in rows if _is_load_of(loads.get(row.node), row)), None)
        if shared is not None:
            loads[shared.node] = _asking(shared, line, _wants(rows, line))
        elif mode is not Mode.OBSERVE and not any(_is_loading(row, loading) for row in rows):
            wants = _wants(rows, line)
            if wants is None:
                continue
            idle = [row for row in rows if row.node not in loads]
            possible = [row for row in idle if hindrance(row, loading, backoff, now_s, may_reload=True) is None]
            row = min(possible, key=lambda row: _rank(row, snapshot.nodes[row.node], occupancy), default=None)
            # None waits: for a node that loads something else, or for the end of a backoff.
            if row is not None:
                loads[row.node] = _asking(_load(line.model, row, wants), line, wants)
    return (*loads.values(), *refusals)


def hopeless(
    line: LineView, snapshot: Snapshot, failures: Mapping[tuple[str, str], LoadFailure], now_s: float
) -> str | None:
    """A node's words, where every node that might load this line's model has just failed to: nobody comes to try."""
    rows = [row for row in snapshot.holding(line.model).by_node.values() if row.takes_calls]
    rows = [row for row in rows if row.node not in line.excluded]
    if not rows or any(row.is_ready for row in rows):
        return None
    recent = [failures[row.copy] for row in rows if row.copy in failures and failures[row.copy].until_s > now_s]
    return recent[0].text if len(recent) == len(rows) else None


def load_backoff_s(failures: int) -> float:
    """After so many failed loads of a copy in a row, from 1."""
    return float(min(BACKOFF_S_MIN * 2 ** min(failures - 1, 16), BACKOFF_S_MAX))


def _may_serve(row: Row, line: LineView) -> bool:
    return row.takes_calls and not row.is_cloud and row.node not in line.excluded


def _refusal(rows: Sequence[Row], mode: Mode) -> Rejection | None:
    if not rows:
        return Rejection.NO_NODE
    never_loads = mode is Mode.OBSERVE
    return Rejection.NOT_LOADED if never_loads and not any(row.is_ready for row in rows) else None


def _wants(rows: Sequence[Row], line: LineView) -> Wants | None:
    """What no ready copy has. A copy with a named context would reload for those who cannot name it, and one with less
    context for those who are to have more because their alias says so; others who ask for more are refused."""
    ready = [row for row in rows if row.is_ready]
    if line.names_no_ctx and all(row.named_ctx for row in ready):
        return Wants.DEFAULT
    return None if any(has_context(row, line.num_ctx) for row in ready) else Wants.COPY


def _is_load_of(load: Load | None, row: Row) -> bool:
    return load is not None and load.weights == row.weights


def _is_loading(row: Row, loading: Mapping[str, str]) -> bool:
    return row.state is CopyState.LOADING or loading.get(row.node) == row.weights


def hindrance(
    row: Row,
    loading: Mapping[str, str],
    backoff: Mapping[tuple[str, str], float],
    now_s: float,
    *,
    may_reload: bool = False,
) -> Hindrance | None:
    """Of a row whose node takes calls. `may_reload`: a copy that is ready is not what is wanted."""
    if not row.name:
        return Hindrance.UNLISTED
    if row.state is not CopyState.ON_DISK and not (may_reload and row.is_ready):
        return Hindrance.IN_MEMORY
    if row.node in loading:
        return Hindrance.LOADING
    return Hindrance.BACKOFF if backoff.get(row.copy, now_s) > now_s else None


def _rank(row: Row, node: Node, occupancy: Copies) -> tuple[bool, bool, int, int, int, float, int]:
    """Lower is better. A copy about to expire is renewed where it is, one that serves is loaded anew if it must be; the
    last number agrees in all replicas."""
    leases = sum(occupancy.get((node.name, weights), 0) for weights in node.copies)
    tie = point_of(f"{row.weights}\n{row.node}")
    return (row.is_ready, not row.is_resident, _fit(row, node), len(node.copies), leases, -row.weight, tie)


def _fit(row: Row, node: Node) -> int:
    """0 where it fits beside what is loaded, 1 where nothing is declared, 2 where something must go or spill."""
    if node.spec.vram_bytes is None:
        return 1
    free_bytes = node.spec.vram_bytes - sum(copy.vram_bytes for copy in node.copies.values())
    return 0 if row.size_bytes * VRAM_MARGIN <= free_bytes else 2


def _load(key: str, row: Row, wants: Wants) -> Load:
    if not row.is_resident or row.is_ready or (wants is Wants.DEFAULT and row.named_ctx):
        return Load(row.node, row.name, key, row.weights)
    # A renewal names the loaded context: without it, a copy that was loaded with another than the default reloads.
    return Load(row.node, row.name, key, row.weights, row.num_ctx, is_renewal=True)


def _asking(load: Load, line: LineView, wants: Wants | None) -> Load:
    """With the largest context and the longest keep_alive of the lines that it serves; with the node's own context
    where somebody in them cannot name another."""
    asked = [seconds for seconds in (load.keep_alive_s, line.keep_alive_s) if seconds is not None]
    is_default = load.is_default or wants is Wants.DEFAULT
    own = load.num_ctx if load.is_renewal else 0
    num_ctx = own if is_default else max(load.num_ctx, line.num_ctx)
    return replace(load, num_ctx=num_ctx, keep_alive_s=max(asked, default=None), is_default=is_default)
