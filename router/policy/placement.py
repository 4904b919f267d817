"""Which copies should be loaded for the lines that wait: one pass, pure. The shell executes it and passes again.

A load belongs to the router, one at a time per set of weights and per node; tickets wait in line for it. A further copy
comes when those in line would wait longer than it takes to load, and takes nobody's memory who needs it as much. What
declared copies ask for beside the lines is `policy.declared`'s; here they are spared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import nsmallest
from types import MappingProxyType
from typing import NamedTuple

from router.errors import Rejection
from router.fleet.node import CopyState, Node
from router.fleet.snapshot import Row, Snapshot, point_of
from router.fleet.tickets import LineView
from router.policy.experience import NOTHING_LEARNT, Experience
from router.policy.filters import has_context, usable
from router.policy.room import LATE, LATE_S_MIN, NO_HOLDS, Cost, Holds, Pool, cost_of, in_the_way, pool_of
from router.policy.worth import has_paid, has_short_lines, is_better_awaited, is_spare, is_worth, outlasts_a_load

COSTED_MAX = 64  # nodes whose cost is looked at, those with the fewest models first: a pass stays short in large pools
BACKOFF_S_MIN = 5.0  # a node that just failed to load is not asked at once again
BACKOFF_S_MAX = 300.0  # what was repaired is found out within Ollama's own load timeout

Copies = Mapping[tuple[str, str], int]  # by (node, weights)


class Mode(StrEnum):
    """`placement.mode`: what the operator lets the router do to nodes."""

    OBSERVE = "observe"
    ON_DEMAND = "on_demand"
    MANAGED = "managed"


class Cause(StrEnum):
    """What a load is for: label of `model_loads_total`, where a renewal is told as `renew`."""

    LINE = "line"
    COPY = "copy"  # of a declared minimum
    PIN = "pin"
    REWARM = "rewarm"  # a declared copy that its node had before it began anew


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
    displaces: tuple[str, ...] = ()  # weights that Ollama will evict for it: they should get no new calls
    cause: Cause = Cause.LINE


@dataclass(frozen=True, slots=True)
class Refuse:
    """Everybody in this line: `kind` is NO_NODE or NOT_LOADED."""

    key: str
    kind: Rejection


@dataclass(frozen=True, slots=True)
class Displace:
    """A running load waits for memory: so that its node comes to load it, this copy gets no new calls until it has."""

    node: str
    weights: str


Action = Load | Refuse | Displace


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
    experience: Experience = NOTHING_LEARNT,
    leaving: Set[tuple[str, str]] = frozenset(),
    holds: Holds = NO_HOLDS,
    since_s: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Action, ...]:
    """`loading`: node -> weights of loads that run, and `leaving`: the copies that they displace. `backoff`: (node,
    weights) -> not before, on the clock of now_s. `holds`: declared copies that stand.
    `since_s`: by node, when its load began, or displaced something last; a renewal waits for no memory and has none.

    The line that waits longest chooses first. Those of nobody but calls that overflowed take what is left.
    """
    pool = pool_of(lines, snapshot, occupancy, experience, leaving=leaving, holds=holds, now_s=now_s)
    pool = replace(pool, ends_in_s=_ends_in_s(loading, since_s, pool))
    refusals: list[Action] = []
    loads: dict[str, Load] = {}  # by node
    for line in sorted(lines, key=lambda line: (not line.own, -line.oldest_wait_s, line.model)):
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
        ready = [row for row in rows if row.is_ready and row.copy not in pool.leaving]
        if ready and not line.own:
            continue
        wants = _wants(ready, line)
        shared = next((loads[row.node] for row in rows if _is_load_of(loads.get(row.node), row)), None)
        if shared is not None and line.own:
            loads[shared.node] = _asking(shared, line, wants)
            continue
        coming = [row for row in rows if _is_loading(row, loading)]
        if shared is None and mode is not Mode.OBSERVE and (not coming or (ready and not wants)):
            possible = [row for row in rows if hindrance(row, {}, backoff, now_s, may_reload=bool(wants)) is None]
            serving = () if wants else usable(ready, frozenset(), 0, names_no_ctx=line.names_no_ctx)
            chosen = _choose(line, serving, possible, pool, coming)
            # None waits: for a slot, for a node that loads something else, for its turn, or for the end of a backoff.
            if chosen is not None:
                row, displaced = chosen
                loads[row.node] = _asking(_load(line.model, row, wants, displaced), line, wants)
                pool = _with_load(pool, row, displaced)
    late = () if mode is Mode.OBSERVE else _late(loading, since_s, pool)
    return (*loads.values(), *refusals, *late)


def _ends_in_s(loading: Mapping[str, str], since_s: Mapping[str, float], pool: Pool) -> Mapping[str, float]:
    """Of the loads that run, by node."""
    load_s = pool.experience.load_s_of
    return {
        node: max(0.0, since_s.get(node, pool.now_s) + load_s(weights) - pool.now_s)
        for node, weights in loading.items()
    }


def _with_load(pool: Pool, row: Row, displaced: Sequence[str]) -> Pool:
    return replace(
        pool,
        leaving=pool.leaving | {(row.node, weights) for weights in displaced},
        ends_in_s={**pool.ends_in_s, row.node: pool.load_s(row.weights, pool.resident_bytes(row))},
    )


def _late(loading: Mapping[str, str], since_s: Mapping[str, float], pool: Pool) -> Iterator[Displace]:
    """One copy for each load that should have ended long ago."""
    for name, weights in loading.items():
        node, began_s = pool.snapshot.nodes.get(name), since_s.get(name)
        if node is None or began_s is None:
            continue
        due_s = max(LATE_S_MIN, LATE * pool.experience.load_s_of(weights))
        going = in_the_way(node, weights, pool) if pool.now_s - began_s >= due_s else None
        if going is not None:
            yield Displace(name, going)


def _choose(
    line: LineView, serving: Sequence[Row], possible: Sequence[Row], pool: Pool, coming: Sequence[Row]
) -> tuple[Row, tuple[str, ...]] | None:
    """Of the nodes that load nothing the one where a load does the least harm, if what waits is worth it; and what the
    load displaces there. `serving`: the copies that serve this line already, and `possible`: also nodes that load."""
    is_long = not serving or outlasts_a_load(line, serving, pool, coming)
    if not is_long and (coming or not has_short_lines(serving, pool)):
        return None
    nodes = pool.snapshot.nodes
    idle = [row for row in possible if row.node not in pool.ends_in_s]
    if len(idle) > COSTED_MAX:
        idle = nsmallest(COSTED_MAX, idle, key=lambda row: (not row.is_resident, len(nodes[row.node].copies)))
    if not is_long:
        idle = [row for row in idle if has_paid(row, serving, pool)]
    costs = [(cost_of(row, pool), row) for row in idle]
    if line.own:
        worth = [each for each in costs if is_worth(line, each[0], pool.slots_of(each[1]), has_copy=bool(serving))]
    else:
        worth = [(cost, row) for cost, row in costs if is_spare(row, cost, nodes[row.node])]
    if coming or not is_long:
        worth = [(cost, row) for cost, row in worth if not cost.displaced]
    if not worth:
        return None
    cost, row = min(worth, key=lambda each: _rank(each[0], each[1], nodes[each[1].node], pool.occupancy))
    busy = [other for other in possible if other.node in pool.ends_in_s]
    if not serving and not row.is_resident and is_better_awaited(line, row, busy, pool):
        return None
    return row, cost.displaced


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


def failed_again(known: LoadFailure | None, now_s: float, text: str) -> LoadFailure:
    times = 1 if known is None else known.times + 1
    return LoadFailure(times, now_s + load_backoff_s(times), text)


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


def _wants(ready: Sequence[Row], line: LineView) -> Wants | None:
    """What no ready copy has. A copy with a named context would reload for those who cannot name it, and one with less
    context for those who are to have more because their alias says so; others who ask for more are refused."""
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


def _rank(cost: Cost, row: Row, node: Node, occupancy: Copies) -> tuple[bool, bool, float, int, float, int, int, int]:
    """Lower is better. A copy about to expire is renewed where it is, one that serves is loaded anew if it must be; the
    last number agrees in all replicas.

    Of nodes with room the one that is left with the least: large models need a card that is nearly empty.
    """
    leases = sum(occupancy.get((node.name, weights), 0) for weights in node.copies)
    tie = point_of(f"{row.weights}\n{row.node}")
    return (row.is_ready, not row.is_resident, cost.harm, cost.fit, -row.weight, cost.left(node), leases, tie)


def _load(key: str, row: Row, wants: Wants | None, displaced: tuple[str, ...]) -> Load:
    if not row.is_resident or row.is_ready or (wants is Wants.DEFAULT and row.named_ctx):
        return Load(row.node, row.name, key, row.weights, displaces=displaced)
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
