"""Everything outside the decisions, behind Protocols: one page. Only `wiring` knows who fills them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from router.errors import Allowances, Outcome, Refusal, Rejection
from router.fleet.node import NodeSpec
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import CopyReport, Gate, Leading, Lease, LineView, Place, Ticket
from router.fleet.words import Heard, Word
from router.policy.concurrency import Ran
from router.policy.retry import Failure
from router.wire.endpoints import Endpoint
from router.wire.trace import Trace

NO_MORE: Mapping[str, object] = MappingProxyType({})


class Clock(Protocol):
    """Monotonic seconds for durations, Unix seconds for what people and nodes read."""

    def now_s(self) -> float: ...

    def wall_s(self) -> float: ...


class Store(Protocol):
    """The single authority on slots and lines (ARCHITECTURE.md, The store's contract). One instance is one replica's.

    Grants for waiting tickets arrive by the `on_grant` given to `open`: it returns True when a waiter took the lease,
    False gives it back at once. Refusals of waiting tickets (a line that was evicted or failed) arrive by `on_refusal`.
    Every method but `open` and `close` is one atomic step.
    """

    async def open(self, on_grant: Callable[[Lease], bool], on_refusal: Callable[[str, Refusal], None]) -> None: ...

    async def close(self) -> None: ...

    async def take(self, ticket: Ticket) -> Lease | Place:
        """Raises RateLimited, TeamQueueFull, QueueFull. Repeated with the same id and attempt it answers the same."""

    async def widen(self, ticket_id: str, targets: tuple[str, ...]) -> Lease | Place:
        """Into further lines, but for full ones. Raises Unavailable for a ticket that neither waits nor is served."""

    async def place_of(self, ticket_id: str) -> Place | None:
        """Where it stands by now; None when it does not wait, or when nobody can say at once."""

    async def leave(self, ticket_id: str, tokens: int = 0) -> None:
        """Final and idempotent: out of all lines, or its lease is given back. `tokens` as in `give_back`."""

    async def give_back(self, lease: Lease, outcome: Outcome, tokens: int) -> None:
        """`tokens`: prompt and output that were really used; they take the place of the ticket's estimate."""

    async def refuse(self, model: str, refusal: Refusal) -> int:
        """Refuses everybody in the line of a model that cannot be had (its loads failed). Answers how many."""

    async def set_copy(self, report: CopyReport) -> None: ...

    async def drop_node(self, node: str, incarnation: int) -> None:
        """The node went down or left: its copies serve nobody. Running leases stay until they are given back."""

    async def incarnate(self, node: str, uid: str) -> int:
        """A number that is one more for each start of the node; the same while it is the same start."""

    async def lead(self, *, wants: bool = True) -> Leading:
        """Who places: from now on this replica, if it `wants` to and nobody does; one that does not makes room."""

    async def begin(self, node: str, weights: str, *, loading: bool, epoch: int) -> bool:
        """The placer starts a load (or an unload); False for an older leader or while one runs already."""

    async def gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        """For one copy, or for the whole node with None. `until_s` is store time."""

    async def beat(self) -> None:
        """Once a second: proves that this replica lives, reaps the silent ones, passes on unclaimed grants."""

    async def lines(self) -> Sequence[LineView]: ...

    def now_s(self) -> float:
        """Store time, as far as this replica knows it."""

    @property
    def is_alone(self) -> bool:
        """This replica decides on what it knows, with its share of every copy: what it shares is away."""

    @property
    def is_led_elsewhere(self) -> bool:
        """Another replica places models, as of the last beat: nobody here need ask."""

    @property
    def occupancy(self) -> Mapping[tuple[str, str], int]:
        """Leases by (node, weights), advisory: to choose by, never to decide on."""


class FleetBoard(Protocol):
    """Where replicas tell one another what they see of nodes (`fleet.words`); None where there is one replica. What is
    told all know within a fifth of a second; of two words on a topic the later counts."""

    @property
    def replica(self) -> str:
        """Whose words ours are."""

    async def exchange(self, words: Sequence[Word]) -> Heard | None:
        """Tells, and hears what others told since the last time. None where this replica is alone."""

    def read_again(self) -> None:
        """The next exchange hears all words there are."""

    def number_of(self, node: str, incarnation: int) -> int:
        """The store's own number of a start that this replica may name otherwise."""

    def note(self, reports: Iterable[CopyReport]) -> None:
        """What others told the store of copies: should this replica be alone, it goes on with that."""

    def note_gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        """As `note`."""


class Discovery(Protocol):
    """Where nodes come from. Each item is the whole set, never a difference."""

    @property
    def source(self) -> str: ...

    @property
    def trouble(self) -> str:
        """Why what it named last may be out of date; empty while it answers."""

    @property
    def synced_at_s(self) -> float | None:
        """Unix time of its last word, whether that changed anything or not; None before the first."""

    def watch(self) -> AsyncGenerator[tuple[NodeSpec, ...], None]: ...


class NodeApi(Protocol):
    """Control calls to one node: probes, facts and loads. Bytes are the body of a 200; else `NodeFailed`."""

    async def version(self, node: NodeSpec) -> bytes: ...

    async def ps(self, node: NodeSpec) -> tuple[bytes, float | None]:
        """The body, and the node's wall clock as its Date header tells it (Unix seconds)."""

    async def tags(self, node: NodeSpec) -> bytes: ...

    async def show(self, node: NodeSpec, model: str, more: Mapping[str, object] = NO_MORE) -> bytes:
        """`more`: further members of the question."""

    async def load(self, node: NodeSpec, model: str, num_ctx: int, keep_alive_s: float | None) -> float:
        """Seconds it took. The load lives as long as this coroutine: it must not be cancelled because a client left."""


class FleetView(Protocol):
    """What the request path knows of nodes, and what it tells about them: traffic counts as a probe."""

    @property
    def snapshot(self) -> Snapshot: ...

    def spec_of(self, node: str) -> NodeSpec:
        """Of a node that there is a lease on: it may have left since, and its running calls still end there."""

    async def attempt_ended(
        self, lease: Lease, failure: Failure | None, outcome: Outcome, ran: Ran | None = None
    ) -> None:
        """What traffic showed of a copy; never of a client that left. `ran`: of an answer that came at its own pace."""

    def loaded_ctx(self, node: str, weights: str) -> int:
        """The context that a load of ours named for this copy; 0 where it has its node's default."""

    def unload(self, model: str) -> None:
        """A team that may asks that no idle copy of these weights stays in memory. `model` is a key."""

    def wake_placer(self) -> None:
        """A ticket went to stand in line: it may need a load."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it arrived. The body is read when asked for: a refusal may come before it."""

    endpoint: Endpoint
    request_id: str  # the client's own where it sent one: may repeat
    ticket_id: str  # ours: never repeats
    headers: Sequence[tuple[bytes, bytes]]  # raw, in order
    content_type: str
    content_encoding: str
    affinity: str  # x-ollama-router-affinity, empty when not given
    timeout_s: float | None  # the client's own, from its arrival; None where it said none, or nonsense
    arrived_s: float  # loop time
    arrived_wall_s: float
    read_body: Callable[[], Awaitable[bytes]]  # raises TooLarge, BuffersFull, BadRequest
    release_body: Callable[[], None]  # the bytes are no longer held
    trace: Trace | None = None  # None where tracing is off


class Flow(Protocol):
    """Who fills a reply, told about the client's pace."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stalled(self) -> None:
        """The client took next to nothing for `client_stall_s`."""


class Reply(Protocol):
    """The client's side of one call. Nothing here waits: bytes go to the transport at once.

    `start` once, then `write`, then `end` or `cut`. The body is sent with the given length, else chunked, else (for an
    HTTP/1.0 client) until the connection closes.
    """

    @property
    def has_started(self) -> bool: ...

    @property
    def has_unsent(self) -> bool:
        """What was written before still waits for its client."""

    @property
    def status(self) -> int:
        """As sent; 0 before `start`."""

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None: ...

    def write(self, data: bytes) -> None: ...

    def pass_chunk(self, framed: bytes, data: bytes) -> None:
        """`write` and `flush` in one, for data that came in a chunk of its own: `framed` is that chunk."""

    def flush(self) -> None:
        """What was written since goes out; `end` and `cut` flush by themselves."""

    def end(self) -> None: ...

    def cut(self) -> None:
        """Closes without a terminator, so that the client sees a broken answer."""

    def flow_to(self, flow: Flow | None) -> None: ...


class NodeFailed(Exception):
    """A control call that brought no 200. `status` is 0 where there was no HTTP answer; `text` is the node's own."""

    def __init__(self, status: int, text: str, *, reason: str = "no_answer") -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text
        self.reason = reason  # where status is 0: refused, tls, local (the node was never asked) or no_answer

    @property
    def is_local(self) -> bool:
        """What we lack, not the node: nobody is to blame."""
        return self.reason == "local"


@dataclass(slots=True)
class Record:
    """All that is worth knowing about a finished call. Filled by the pipeline, read by the observer."""

    request_id: str
    route: str
    arrived_s: float  # monotonic
    arrived_wall_s: float
    model_asked: str = ""  # as the client wrote it; log only, never a label
    model: str = ""  # the resolved key
    alias: str = ""  # key of the alias that it was named by; of the configuration, so a label
    passed: tuple[str, ...] = ()  # why targets of the alias were passed over: a label of alias_fallbacks_total
    guarded: tuple[str, ...] = ()  # what guards did: option and action, labels of guard_total
    team: str = ""  # empty for a call that was refused before it was known whose it is
    left: Allowances | None = None  # of its team's limits, where it has any and the store has told
    node: str = ""
    attempts: int = 0
    status: int = 0  # as sent, 499 for a client that left before its status line
    outcome: Outcome = Outcome.OK
    rejection: Rejection | None = None
    reason: str = ""  # why this node: the label of routing_decisions_total
    affinity: str = ""  # hit, spilled or miss: the label of affinity_total; empty where it is no conversation
    is_overflow: bool = False  # at a further target of its alias, whose line it stood in as well
    is_stream: bool = False
    is_cold: bool = False  # waited for a load
    body_bytes: int = 0
    read_s: float = 0.0  # from arrival to the whole body
    queued_s: float = 0.0  # in all lines together
    queue_result: str = "dispatched"
    node_s: float = 0.0  # at nodes, all attempts together
    overhead_s: float = 0.0
    first_byte_s: float | None = None  # since arrival
    first_token_s: float | None = None  # since arrival
    duration_s: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    content_events: int = 0
    load_s: float | None = None
    phase_left: str = ""  # waiting, prefill, streaming, stalled: where the client left
    retries: list[tuple[str, str]] = field(default_factory=list)  # (node, reason) of attempts that were not the last
    error: str = ""  # text of the refusal, or of the node's error; no prompt ever stands in it
    trace: Trace | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: from the whole body, which a slow client may take long to send."""
        return None if self.first_token_s is None else self.first_token_s - self.read_s


class Observer(Protocol):
    """Metrics, log line and span of one call, in one place."""

    def forwarding(self, route: str, model: str, delta: int) -> None:
        """+1 when a call is at a node, -1 when it no longer is: `requests_in_flight`."""

    def attempt_ended(self, node: str, model: str, outcome: str, duration_s: float) -> None: ...

    def observe(self, record: Record) -> None: ...
