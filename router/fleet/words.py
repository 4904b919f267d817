"""What replicas tell one another of nodes: words on topics, of which the youngest counts. Text to facts and back.

A text is JSON that begins with FORMAT; one of another format, or one that cannot be read, says nothing to us. No URL
stands in it: a node is its name, and who does not know the name from elsewhere ignores what is said of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from router.fleet.breaker import Circuit
from router.fleet.node import Copy, CopyState, DiskModel, Health, Node
from router.fleet.reports import KeyOf, MalformedReport, Shown, TagEntry, parse_tags

FORMAT = 1
PACKED_FROM = 1024  # characters: below it a packed text is hardly shorter
UNPACKED_BYTES_MAX = 8 * 1024 * 1024  # of one text: a disk with ITEMS_MAX models has a tenth

T = TypeVar("T")

CLAIM, REACH, DISK, MEMORY, MODEL = "claim", "reach", "disk", "memory", "model"
DRAIN, CIRCUIT, NAMED = "drain", "circuit", "named"
LOAD = "load"  # of a node by a replica, which its topic names: runs, or has ended
# Of a copy's slots: what its node's prober believes; what calls of a replica proved, and what they made it suspect.
SLOTS, SHOWN, QUEUED = "slots", "shown", "queued"


class Word(NamedTuple):
    """`topic`: its kind, and what it is about. `at_s`: store time of the fact; of two words the later counts."""

    topic: str
    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """`is_anew`: nothing that was told before may be remembered. `is_whole`: from the first word on. `has_more`: ask
    again at once for the rest."""

    words: tuple[Word, ...]
    replicas: tuple[str, ...]
    is_anew: bool = False
    is_whole: bool = False
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Who probes a node; nobody where `by` is empty. `tried`: replicas that found it down since it last answered."""

    by: str = ""
    tried: tuple[str, ...] = ()


NOBODY = Claim()


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether a node answers. `incarnation` is the store's number."""

    reach: Health
    fails: int
    incarnation: int
    version: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a node has in memory, in this start of it, and the slots that calls have shown."""

    incarnation: int
    copies: Mapping[str, Copy]
    learnt: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class SharedCircuit:
    """A breaker that opened or closed. `until_s` is store time."""

    circuit: Circuit
    until_s: float
    trips: int


class SharedLoad(NamedTuple):
    """A load that runs. `since_s` is store time: when it began, or displaced last. `keep_alive_s` is -1 for ever, None
    where nobody asked."""

    weights: str
    key: str
    model: str  # as the node stores it
    num_ctx: int
    keep_alive_s: float | None
    is_default: bool
    displaces: tuple[str, ...]
    cause: str
    since_s: float


class Finding(NamedTuple):
    """Slots of a copy. `at_s` is store time, `incarnation` the store's number of the node's start."""

    at_s: float
    incarnation: int
    slots: int


class Listed(NamedTuple):
    """A model on a disk: which one, and since when it lies there, as its node writes it."""

    model: str
    modified_at: str


class SharedModel(NamedTuple):
    """What nodes that have a model list of it, but for the time, and what `/api/show` told of it."""

    listing: str  # with NUL where the time stands
    digest: str
    shown: Shown | None


# topics


def topic(kind: str, *about: str) -> str:
    return "\0".join((kind, *about))


def read_topic(text: str) -> tuple[str, str, str]:
    """Kind, node (or model), and weights where the kind has them."""
    kind, _, about = text.partition("\0")
    name, _, weights = about.partition("\0")
    return kind, name, weights


# facts to texts


def claim_text(claim: Claim) -> str:
    return _text(claim.by, list(claim.tried))


def reach_text(reach: Reach) -> str:
    return _text(reach.reach.value, reach.fails, reach.incarnation, reach.version)


def memory_text(memory: Memory) -> str:
    return _text(memory.incarnation, [_copy_to(copy) for copy in memory.copies.values()], dict(memory.learnt))


def disk_text(listed: Iterable[Listed]) -> str:
    return _text([list(one) for one in listed])


def drain_text(*, is_drained: bool) -> str:
    return _text(is_drained)


def circuit_text(circuit: SharedCircuit) -> str:
    return _text(circuit.circuit.value, circuit.until_s, circuit.trips)


def named_text(num_ctx: int) -> str:
    return _text(num_ctx)


def load_text(load: SharedLoad | None) -> str:
    """None: it has ended."""
    return _text(*load) if load is not None else _text()


def finding_text(finding: Finding) -> str:
    """With its time: the same that was found again is told again."""
    return _text(*finding)


def listed_of(model: DiskModel, shown: Shown | None) -> tuple[Listed, str]:
    """With the text of the model itself, which its name is made from."""
    stamp = _stamp(model.modified_at)
    before, found, after = model.listing.partition(stamp)
    listing = f"{before}\0{after}" if found else model.listing
    facts = [shown.weights, shown.context_max] if shown is not None else None
    text = _text(listing, model.digest, facts)
    name = hashlib.blake2b(text.encode(), digest_size=9).digest()
    return Listed(base64.b64encode(name, b"-_").decode(), model.modified_at if found else ""), text


def memory_of(node: Node, incarnation: int) -> Memory:
    """But for cloud stubs: each replica has them from the disk, and from its own settings."""
    stubs = {model.weights for model in node.models.values() if model.is_cloud}
    copies = {weights: copy for weights, copy in node.copies.items() if weights not in stubs}
    return Memory(incarnation, MappingProxyType(copies), node.learnt)


# texts to facts; None for what cannot be read


def read_claim(text: str) -> Claim | None:
    return _read(text, lambda by, tried: Claim(by, tuple(tried)))


def read_reach(text: str) -> Reach | None:
    return _read(text, lambda reach, *rest: Reach(Health(reach), *rest))


def read_memory(text: str) -> Memory | None:
    def made(incarnation: int, copies: list[list[Any]], learnt: dict[str, int]) -> Memory:
        by_weights = {copy.weights: copy for copy in map(_copy_from, copies)}
        return Memory(incarnation, MappingProxyType(by_weights), MappingProxyType(learnt))

    return _read(text, made)


def read_disk(text: str) -> tuple[Listed, ...] | None:
    return _read(text, lambda listed: tuple(Listed(*one) for one in listed))


def read_drain(text: str) -> bool | None:
    return _read(text, bool)


def read_circuit(text: str) -> SharedCircuit | None:
    return _read(text, lambda circuit, *rest: SharedCircuit(Circuit(circuit), *rest))


def read_named(text: str) -> int | None:
    return _read(text, int)


def read_load(text: str) -> SharedLoad | None:
    """None also for one that has ended."""

    load = _read(text, SharedLoad)
    return load._replace(displaces=tuple(load.displaces)) if load is not None else None


def read_finding(text: str) -> Finding | None:
    return _read(text, lambda at_s, incarnation, slots: Finding(float(at_s), int(incarnation), int(slots)))


def read_model(text: str) -> SharedModel | None:
    return _read(text, lambda listing, digest, facts: SharedModel(listing, digest, Shown(*facts) if facts else None))


def entry_of(model: SharedModel, key_of: KeyOf) -> TagEntry | None:
    """As a node lists it, at no time."""
    listing = model.listing.replace("\0", _stamp(""))
    try:
        return parse_tags(f'{{"models":[{listing}]}}'.encode(), key_of)[0]
    except (MalformedReport, IndexError):
        return None


def entry_at(entry: TagEntry, model: SharedModel, modified_at: str) -> TagEntry:
    if "\0" not in model.listing:
        return entry
    return replace(entry, modified_at=modified_at, listing=model.listing.replace("\0", _stamp(modified_at)))


def both_shown(known: Shown | None, told: Shown) -> Shown:
    """A load may have met a smaller training context than `/api/show` names: the smaller one is true."""
    if known is None:
        return told
    contexts = [one.context_max for one in (known, told) if one.context_max]
    return Shown(known.weights or told.weights, min(contexts, default=0))


def _stamp(modified_at: str) -> str:
    return f'"modified_at":"{modified_at}"'


def _copy_to(copy: Copy) -> list[Any]:
    expires_at_s = None if copy.expires_at_s == float("inf") else copy.expires_at_s
    return [
        *(copy.weights, copy.state.value, list(copy.keys), copy.slots, copy.num_ctx, copy.size_bytes),
        *(copy.vram_bytes, expires_at_s, copy.listing, copy.digest, copy.named_ctx),
    ]


def _copy_from(value: list[Any]) -> Copy:
    weights, state, keys, slots, num_ctx, size_bytes, vram_bytes, expires_at_s, listing, digest, named_ctx = value
    expires_at_s = float("inf") if expires_at_s is None else expires_at_s
    sizes = (num_ctx, size_bytes, vram_bytes, expires_at_s)
    return Copy(weights, CopyState(state), tuple(keys), slots, *sizes, listing, digest, named_ctx)


def _text(*facts: Any) -> str:
    text = json.dumps([FORMAT, *facts], ensure_ascii=False, separators=(",", ":"))
    return text if len(text) < PACKED_FROM else f"z{base64.b64encode(zlib.compress(text.encode())).decode()}"


def _read(text: str, made: Callable[..., T]) -> T | None:
    try:
        if text.startswith("z"):
            text = zlib.decompressobj().decompress(base64.b64decode(text[1:]), UNPACKED_BYTES_MAX).decode()
        form, *facts = json.loads(text)
        return made(*facts) if form == FORMAT else None
    except (ValueError, TypeError, binascii.Error, zlib.error, RecursionError):
        return None
