"""The pages of several routers on one machine as one page, as if one router had counted all of it.

Pure text: our own lines and those of prometheus_client, in either format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import add
from types import MappingProxyType

from router.telemetry.families import COUNTER, FAMILIES, HISTOGRAM, PREFIX


class Rule(StrEnum):
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    FIRST = "first"  # all samples of the one that has lived longest: labels that exclude one another stay so


# How a gauge of several workers becomes one; a fact of the pool (scope S) that is not named here is the highest.
# Counters and histograms are summed, over those that ended, too; a counter of scope S is the highest: all see it grow.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        # What each of them holds.
        "requests_in_flight": Rule.SUM,
        "queue_depth": Rule.SUM,
        "leader": Rule.SUM,
        # Facts of the pool, which all know, maybe a moment later.
        "queue_limit": Rule.MAX,
        "node_up": Rule.FIRST,
        "node_state": Rule.FIRST,
        "node_info": Rule.FIRST,
        "node_slots": Rule.MAX,
        "node_slots_used": Rule.MAX,
        "node_model_loaded": Rule.MAX,
        "node_model_vram_bytes": Rule.MAX,
        "node_model_context_tokens": Rule.MAX,
        "node_model_expiry_timestamp_seconds": Rule.MAX,
        "node_model_load_seconds": Rule.MAX,
        "copy_cpu_bytes": Rule.MAX,
        "copy_slots": Rule.MAX,
        "model_nodes": Rule.MAX,
        "model_digest_skew": Rule.MAX,
        "model_copies": Rule.MAX,
        "thrash_pairs": Rule.MAX,
        "discovery_nodes": Rule.MAX,
        # Each has breakers of its own: one that is open anywhere is told.
        "circuit_state": Rule.MAX,
        # Told when it is wrong with any of them.
        "discovery_up": Rule.MIN,
        "discovery_last_sync_timestamp_seconds": Rule.MIN,
        "config_last_reload_successful": Rule.MIN,
        "config_last_reload_success_timestamp_seconds": Rule.MIN,
        "degraded_mode": Rule.MAX,
        "redis_up": Rule.MIN,
        "build_info": Rule.FIRST,
        # prometheus_client's own: the memory and the files of all, and the start of the oldest.
        "process_virtual_memory_bytes": Rule.SUM,
        "process_resident_memory_bytes": Rule.SUM,
        "process_open_fds": Rule.SUM,
        "process_max_fds": Rule.SUM,
        "process_start_time_seconds": Rule.MIN,
        "python_info": Rule.FIRST,
    }
)
_SUMMED = frozenset({COUNTER, HISTOGRAM})
_OF_POOL = {
    PREFIX + name.removesuffix("_total") for name, of in FAMILIES.items() if (of.kind, of.scope) == (COUNTER, "S")
}
_BY_NODE = {PREFIX + name.removesuffix("_total") for name, of in FAMILIES.items() if of.labels[:1] == ("node",)}
_EXEMPLAR = re.compile(r" # \{trace_id=\"[0-9a-f]*\"\} \S+ (\S+)$")
_NODE = re.compile(r'\{node="((?:[^"\\]|\\.)*)"')
_JOINS: Mapping[Rule, Callable[[Iterable[float]], float]] = MappingProxyType(
    {Rule.SUM: sum, Rule.MAX: max, Rule.MIN: min}
)

Values = dict[str, float]  # by name and labels, as they stand in the line


@dataclass(slots=True)
class _Block:
    """One family of one page. `exemplars` are the ends of lines, with when they were seen."""

    kind: str = ""
    head: list[str] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    exemplars: dict[str, tuple[float, str]] = field(default_factory=dict)


_Page = Mapping[str, _Block]
_Counts = dict[str, Values]  # what is summed, by family


class Sums:
    """Sums that do not go back while one of those who are summed ends: what it had counted last stays in them.

    A life is one process from its start to its end.
    """

    def __init__(self) -> None:
        self._last: dict[str, _Counts] = {}  # by life
        self._ended: _Counts = {}
        self._shown: Values = {}

    def page(self, texts: Mapping[str, str], living: Collection[str], *, is_open: bool) -> str:
        """`texts` are the pages of the lives that answered, in one format, the oldest first; not all that live may."""
        pages = {life: _read(text) for life, text in texts.items()}
        for life in [life for life in self._last if life not in living]:
            _add(self._ended, self._last.pop(life))
        self._last |= {life: _counts(page) for life, page in pages.items()}
        summed: _Counts = {}
        for counts in (self._ended, *self._last.values()):
            _add(summed, counts)
        self._forget_nodes(summed, _nodes(pages.values()))
        self._shown = {key: max(value, self._shown.get(key, value)) for key, value in _all(summed)}
        lines = [line for name in _names(pages.values()) for line in self._family(name, pages.values(), summed)]
        return "\n".join([*lines, *(["# EOF"] if is_open else []), ""])

    def _family(self, name: str, pages: Collection[_Page], summed: _Counts) -> Iterable[str]:
        blocks = [page[name] for page in pages if name in page]
        yield from blocks[0].head
        if blocks[0].kind not in _SUMMED:
            yield from (f"{key} {value!r}" for key, value in _gauge(name, blocks).items())
            return
        exemplars: dict[str, tuple[float, str]] = {}
        for block in blocks:
            for key, seen in block.exemplars.items():
                exemplars[key] = max(seen, exemplars.get(key, seen))
        for key in summed.get(name, ()):
            # Sums of fractions depend on their order: the last digit less would be read as a counter that began anew.
            yield f"{key} {self._shown[key]!r}{exemplars[key][1] if key in exemplars else ''}"

    def _forget_nodes(self, summed: _Counts, nodes: Collection[str]) -> None:
        """Series of nodes that have left, which those who live have forgotten; the others would keep them for ever."""
        for counts in (self._ended, summed, *self._last.values()):
            for values in (counts[name] for name in _BY_NODE & counts.keys()):
                for key in [key for key in values if (found := _NODE.search(key)) and found[1] not in nodes]:
                    del values[key]


def _read(text: str) -> _Page:
    blocks: dict[str, _Block] = {}
    block = _Block()
    for line in text.splitlines():
        if line.startswith("#"):
            block = _headed(line, blocks, block)
            continue
        exemplar = _EXEMPLAR.search(line) if " # {" in line else None
        key, _, value = (line[: exemplar.start()] if exemplar else line).rpartition(" ")
        block.values[key] = float(value)
        if exemplar:
            block.exemplars[key] = float(exemplar[1]), exemplar[0]
    return blocks


def _headed(line: str, blocks: dict[str, _Block], block: _Block) -> _Block:
    _, word, *rest = line.split(" ", 3)
    if word not in ("HELP", "TYPE"):
        return block  # the end
    # A counter's family has its name without `_total` in one format, with it in the other.
    block = blocks.setdefault(rest[0].removesuffix("_total"), _Block())
    block.head.append(line)
    if word == "TYPE":
        block.kind = rest[1]
    return block


def _names(pages: Iterable[_Page]) -> Iterable[str]:
    return dict.fromkeys(name for page in pages for name in page)


def _counts(page: _Page) -> _Counts:
    return {name: block.values for name, block in page.items() if block.kind in _SUMMED}


def _add(to: _Counts, counts: Mapping[str, Values]) -> None:
    for name, values in counts.items():
        have, join = to.setdefault(name, {}), max if name in _OF_POOL else add
        for key, value in values.items():
            have[key] = join(have.get(key, 0.0), value)


def _all(counts: _Counts) -> Iterable[tuple[str, float]]:
    return (item for values in counts.values() for item in values.items())


def _nodes(pages: Iterable[_Page]) -> set[str]:
    named = (found for page in pages for key in page[f"{PREFIX}node_up"].values if (found := _NODE.search(key)))
    return {found[1] for found in named}


def _gauge(name: str, blocks: Collection[_Block]) -> Values:
    rule = RULES.get(name.removeprefix(PREFIX), Rule.MAX)
    if rule is Rule.FIRST:
        return next((block.values for block in blocks if block.values), {})
    keys = dict.fromkeys(key for block in blocks for key in block.values)
    join = _JOINS[rule]
    return {key: join(block.values[key] for block in blocks if key in block.values) for key in keys}
