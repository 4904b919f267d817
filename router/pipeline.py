"""The life of a call, top to bottom: `serve` is the request path. It decides nothing and formats nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from random import Random

from router.admission import Admission
from router.errors import (
    CloudRefused,
    LoopDetected,
    NoNode,
    NumCtxRefused,
    Outcome,
    QueueTimeout,
    Refusal,
    Rejection,
    RouterBroken,
    UpstreamTimeout,
)
from router.fleet.snapshot import Rows
from router.fleet.tickets import Lease, Place, Ticket
from router.policy.alias import Aliases, RoutePlan
from router.policy.deadlines import Deadlines, at_node, in_line
from router.policy.guard import Refused, clamp_keep_alive, guard_num_ctx
from router.policy.retry import Budget
from router.policy.schedule import Decision, Want, schedule
from router.seams import Call, Clock, FleetView, Observer, Record, Reply, Store
from router.upstream.attempt import TEXT_BYTES_MAX, Attempt
from router.upstream.course import NO_NODE_RETRY_S, Course, RetryLimits, follow
from router.upstream.errand import Errand, Guards, Reading, Terms, errand_for
from router.upstream.forward import forward
from router.upstream.live import LiveCall
from router.upstream.notes import note_attempt, note_lease, note_leaving, note_wait
from router.upstream.pool import ConnectionPool
from router.upstream.waiting import WaitingStream
from router.wire import comments, dialects, headers
from router.wire.intent import SLICE_BYTES, Intent, read_intent, unknown_model
from router.wire.unload import CONTENT_TYPE, is_unload, unloaded

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # in logs and metrics only: nobody is there to read it
# Of a 500 for what the client sent (recordings refused/option-type, v0.24/v1-transcriptions-bad).
CLIENTS_TEXT = re.compile(r'option \\?"[^"]*" must be of type|failed to process inputs')
ROWS_ASKED = 8  # nodes asked for a fact that is the same on all of them


class Pipeline:
    """Serves calls. Everything it needs is handed in; it owns only the set of live calls."""

    def __init__(
        self,
        *,
        pool_name: str,
        fleet: FleetView,
        store: Store,
        admission: Admission,
        connections: ConnectionPool,
        aliases: Aliases,
        observer: Observer,
        clock: Clock,
        rng: Random,
        deadlines: Deadlines,
        retries: RetryLimits,
        guards: Guards,
    ) -> None:
        self._pool_name = pool_name
        self._via = headers.via_value(pool_name)
        self._fleet = fleet
        self._store = store
        self._admission = admission
        self._connections = connections
        self._aliases = aliases
        self._observer = observer
        self._clock = clock
        self._rng = rng
        self._deadlines = deadlines
        self._retries = retries
        self._guards = guards
        self._running = 0
        self._retrying = 0
        self.live: set[LiveCall] = set()
        self.is_idle = asyncio.Event()
        self.is_idle.set()

    def __repr__(self) -> str:
        return f"<Pipeline {len(self.live)} live | {self._admission.waiting} waiting>"

    async def serve(self, call: Call, reply: Reply) -> None:
        """The whole of a call. Raises only CancelledError, when the client has gone."""
        record = Record(call.request_id, call.endpoint.route, call.arrived_s, call.arrived_wall_s)
        live = LiveCall()
        waiting = WaitingStream(reply, call.request_id, call.arrived_s)
        self._enter(live)
        try:
            reading = await self._read(call, record)
            plan = self._plan(call, reading.intent, record)
            if is_unload(reading.intent):
                self._answer_unload(call, reply, record, reading.intent)
                return
            ticket = self._ticket(call, reading.intent, plan)
            self._comment_on(waiting, call, reading.intent)
            course = Course()
            while True:
                decision = self._decide(ticket, call, reading.intent)
                ticket = replace(ticket, attempt=course.made + 1, preferred=decision.preferred)
                live.stand_in_line(self._clock.now_s())
                judge = partial(self._decide, ticket, call, reading.intent)
                hold = self._admission.lease(ticket, *self._patience(call, ticket, record), judge, waiting)
                async with hold as lease:
                    note_lease(record, lease, decision, live.step_out(self._clock.now_s()))
                    errand = self._errand(call, reading, plan, lease, record)
                    with self._at_node(record, course):
                        attempt = await forward(self._connections, errand, reply, waiting, live.attach)
                    hold.outcome, hold.tokens = self._settle(record, attempt)
                    # Before the slot goes to the next in line: it must not be handed a copy that has just died.
                    await self._fleet.attempt_ended(lease, attempt.failure, _shown(attempt))
                if attempt.failure is None and attempt.refusal is None:
                    break
                course, ticket = self._again(course, ticket, attempt, record)
        except Refusal as refusal:
            is_late = isinstance(refusal, QueueTimeout | UpstreamTimeout)
            note_wait(record, live.step_out(self._clock.now_s()), "timeout" if is_late else "rejected")
            self._refuse(call, reply, record, refusal, waiting)
        except asyncio.CancelledError:
            ours = live.why_cancelled()
            note_wait(record, live.step_out(self._clock.now_s()), "rejected" if ours is not None else "cancelled")
            if ours is None:
                note_leaving(record, live.attempt)
                raise
            self._refuse(call, reply, record, ours, waiting)
        except Exception:
            log.exception("call %s met a defect of the router", record.request_id)
            note_wait(record, live.step_out(self._clock.now_s()), "rejected")
            self._break(call, reply, record, waiting)
        finally:
            self._exit(live)
            call.release_body()
            self._finish(record, reply)

    def _enter(self, live: LiveCall) -> None:
        self.live.add(live)
        self.is_idle.clear()

    def _exit(self, live: LiveCall) -> None:
        self.live.discard(live)
        if not self.live:
            self.is_idle.set()

    async def _read(self, call: Call, record: Record) -> Reading:
        if headers.passed_pool(call.headers, self._pool_name):
            raise LoopDetected(f"this call has passed the pool '{self._pool_name}' before: a node's URL is a router's")
        raw = await call.read_body()
        record.body_bytes = len(raw)
        record.read_s = self._clock.now_s() - record.arrived_s
        if len(raw) > SLICE_BYTES:
            intent = await asyncio.to_thread(_intent_of, call, raw)
        else:
            intent = _intent_of(call, raw)
        record.model_asked = intent.model
        record.is_stream = intent.streams
        return Reading(intent, raw)

    def _plan(self, call: Call, intent: Intent, record: Record) -> RoutePlan:
        plan = self._aliases.plan(intent.name.key)
        record.model = plan.targets[0]
        snapshot = self._fleet.snapshot
        if not any(snapshot.is_known(key) for key in plan.targets):
            if snapshot.all_read:
                raise unknown_model(call.endpoint, intent.model)
            raise NoNode(f"not every node has been read yet: one of them may have '{intent.model}'")
        if intent.name.is_cloud or any(_is_cloud(snapshot.holding(key)) for key in plan.targets):
            raise CloudRefused("cloud models are switched off here: they spend the account of the node's owner")
        if not any(snapshot.has_node_up(key) for key in plan.targets):
            raise NoNode(f"no node that has '{intent.model}' is up", retry_after_s=NO_NODE_RETRY_S)
        return plan

    def _ticket(self, call: Call, intent: Intent, plan: RoutePlan) -> Ticket:
        """A context above what the model was trained with is what Ollama makes of it: the training context."""
        num_ctx = 0 if self._guards.keeps_context else intent.num_ctx or 0
        if num_ctx:
            context_max = _context_max(self._fleet.snapshot.holding(plan.targets[0]))
            num_ctx = min(num_ctx, context_max) if context_max else num_ctx
        keep_alive_s = clamp_keep_alive(intent.keep_alive_s or None, self._guards.keep_alive_max_s)
        return Ticket(call.ticket_id, plan.targets, num_ctx=num_ctx, keep_alive_s=keep_alive_s)

    def _decide(self, ticket: Ticket, call: Call, intent: Intent) -> Decision:
        affinity = call.affinity or intent.affinity.hex()
        snapshot = self._fleet.snapshot
        decision = schedule(
            Want(ticket.targets, affinity, ticket.num_ctx, ticket.excluded), snapshot, self._store.occupancy, self._rng
        )
        if ticket.num_ctx and not decision.preferred:
            rows = snapshot.holding(ticket.targets[0])
            loaded = max((row.num_ctx for row in (*rows.ready.rows, *rows.last_resort.rows)), default=0)
            judged = guard_num_ctx(intent.num_ctx, loaded, _context_max(rows))
            if isinstance(judged, Refused):
                raise NumCtxRefused(judged.text)
        return decision

    def _comment_on(self, waiting: WaitingStream, call: Call, intent: Intent) -> None:
        limits = self._deadlines
        if limits.comment_after_s and intent.streams and call.endpoint.is_compat:
            waiting.comment_from(self._clock.now_s() + limits.comment_after_s, limits.comment_every_s)

    def _patience(self, call: Call, ticket: Ticket, record: Record) -> tuple[float, Callable[[Place | None], Refusal]]:
        """Until when this call may stand in line, and what it is told then."""
        model, queued_s = ticket.targets[0], record.queued_s
        term = in_line(self._deadlines, model, call.arrived_s, call.timeout_s, queued_s, self._clock.now_s())
        return term.until_s, partial(term.refusal, record.model_asked, rng=self._rng)

    def _errand(self, call: Call, reading: Reading, plan: RoutePlan, lease: Lease, record: Record) -> Errand:
        limits, streams = self._deadlines, reading.intent.streams
        due = at_node(limits, call.arrived_s, call.timeout_s, self._clock.now_s(), streams=streams)
        loaded_ctx = self._fleet.loaded_ctx(lease.node, lease.weights)
        return errand_for(
            call,
            reading,
            lease,
            self._fleet.snapshot.nodes[lease.node].spec,
            is_alias=plan.is_alias,
            guards=replace(self._guards, loaded_ctx=loaded_ctx) if loaded_ctx else self._guards,
            via=self._via,
            decision=_decision_headers(call.request_id, record),
            terms=Terms(due, limits.idle_s),
        )

    @contextmanager
    def _at_node(self, record: Record, course: Course) -> Iterator[None]:
        self._running += 1
        self._retrying += course.is_counted
        self._observer.forwarding(record.route, record.model, 1)
        try:
            yield
        finally:
            self._running -= 1
            self._retrying -= course.is_counted
            self._observer.forwarding(record.route, record.model, -1)

    def _settle(self, record: Record, attempt: Attempt) -> tuple[Outcome, int]:
        """What the attempt told goes into the record; its outcome and tokens go back with the lease."""
        note_attempt(record, attempt)
        label = attempt.failure.value if attempt.failure is not None else attempt.outcome.value
        self._observer.attempt_ended(attempt.node, record.model, label, attempt.ended_s - attempt.started_s)
        return attempt.outcome, (record.input_tokens or 0) + (record.output_tokens or record.content_events)

    def _again(self, course: Course, ticket: Ticket, attempt: Attempt, record: Record) -> tuple[Course, Ticket]:
        """The next try, or the refusal that ends the call."""
        if attempt.refusal is not None:
            raise attempt.refusal
        budget = Budget(self._running, self._retrying, self._retries.budget)
        snapshot, attempts = self._fleet.snapshot, self._retries.attempts
        following = follow(course, ticket, attempt, snapshot=snapshot, budget=budget, attempts=attempts)
        assert attempt.failure is not None
        record.retries.append((attempt.node, attempt.failure.value))
        return following

    def _answer_unload(self, call: Call, reply: Reply, record: Record, intent: Intent) -> None:
        body = unloaded(call.endpoint, intent, self._clock.wall_s())
        pairs = [(b"Content-Type", CONTENT_TYPE), *_decision_headers(call.request_id, record)]
        _send(reply, 200, pairs, body)

    def _refuse(self, call: Call, reply: Reply, record: Record, refusal: Refusal, waiting: WaitingStream) -> None:
        """As an answer, or as the last event of a stream that was opened early.

        Where a node's answer had begun, whoever passed it on has told it there.
        """
        record.outcome = refusal.outcome
        record.rejection = refusal.rejection
        record.error = refusal.text[:TEXT_BYTES_MAX]
        pairs = _decision_headers(call.request_id, record, refused=refusal.rejection)
        if waiting.is_open:
            event = dialects.error_event(call.endpoint, refusal, sequence_number=0, request_id=call.request_id)
            waiting.end(comments.decision(pairs) + event)
        elif not reply.has_started:
            answer = dialects.error_answer(call.endpoint.dialect, refusal, call.request_id)
            _send(reply, answer.status, [*answer.headers, *pairs], answer.body)

    def _break(self, call: Call, reply: Reply, record: Record, waiting: WaitingStream) -> None:
        """A defect of ours: the client is told, or cut off: half an answer must not end like a whole one."""
        if reply.has_started and not waiting.is_open:
            reply.cut()
        broken = RouterBroken("the router failed to serve this call: its log says why")
        self._refuse(call, reply, record, broken, waiting)

    def _finish(self, record: Record, reply: Reply) -> None:
        record.duration_s = self._clock.now_s() - record.arrived_s
        record.status = reply.status or CLIENT_CLOSED_REQUEST
        self._observer.observe(record)


def _send(reply: Reply, status: int, pairs: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    """An answer of our own, whole at once."""
    reply.start(status, pairs, len(body))
    reply.write(body)
    reply.end()


def _shown(attempt: Attempt) -> Outcome:
    """What the attempt says about the copy: a passed 5xx may be the client's doing, or what the model cannot."""
    is_clients = attempt.status == 501 or (attempt.status == 500 and CLIENTS_TEXT.search(attempt.text) is not None)
    if attempt.outcome is Outcome.UPSTREAM_ERROR and is_clients:
        return Outcome.CLIENT_ERROR
    return attempt.outcome


def _intent_of(call: Call, raw: bytes) -> Intent:
    return read_intent(call.endpoint, raw, content_type=call.content_type, content_encoding=call.content_encoding)


def _is_cloud(rows: Rows) -> bool:
    return any(row.is_cloud for row in islice(rows.by_node.values(), 1))


def _context_max(rows: Rows) -> int:
    """The training context, where any node tells it: it belongs to the weights, which are the same everywhere."""
    return max((row.context_max for row in islice(rows.by_node.values(), ROWS_ASKED)), default=0)


def _decision_headers(request_id: str, record: Record, refused: Rejection | None = None) -> list[tuple[bytes, bytes]]:
    known = headers.decision(
        node=record.node or None,
        model=record.model or None,
        attempts=record.attempts or None,
        queue_ms=round(record.queued_s * 1000),
        reason=record.reason or None,
        refused=refused,
    )
    return [(b"x-request-id", request_id.encode()), *known]
