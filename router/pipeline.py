"""The life of a call, top to bottom: `serve` is the request path. It decides nothing and formats nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from random import Random

from router.admission import Admission
from router.errors import Draining, LoopDetected, Outcome, QueueTimeout, Refusal, UpstreamTimeout
from router.fleet.tickets import Lease, Place, Ticket
from router.policy.access import Team
from router.policy.alias import RoutePlan
from router.policy.deadlines import Deadlines, at_node, in_line
from router.policy.guard import Guarded, Guards
from router.policy.overflow import Overflow
from router.policy.retry import Budget
from router.policy.route import UNSERVABLE, Ahead, Passed, Reach, ahead, nowhere, passed_for
from router.policy.schedule import Decision, Want, schedule
from router.policy.splices import changes_of
from router.policy.ticket import check_context, ticket_for
from router.seams import Call, Clock, FleetView, Observer, Record, Reply, Store
from router.upstream import own
from router.upstream.attempt import Attempt, ran_of
from router.upstream.course import Course, follow, may_turn, shown, turn
from router.upstream.errand import Errand, Reading, Terms, errand_for
from router.upstream.forward import forward
from router.upstream.live import LiveCall
from router.upstream.notes import (
    decision_headers,
    note_attempt,
    note_guarded,
    note_lease,
    note_leaving,
    note_passed,
    note_wait,
    spent,
)
from router.upstream.pool import ConnectionPool
from router.upstream.reading import LARGE_READS_MAX, read
from router.upstream.rules import CallRules
from router.upstream.waiting import WaitingStream
from router.wire import headers
from router.wire.intent import Intent
from router.wire.unload import is_unload

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # in logs and metrics only: nobody is there to read it


class Pipeline:
    """Serves calls. Everything it needs is handed in; it owns only the set of live calls.

    `rules` may be set anew at any time: each call keeps those that it began with.
    """

    def __init__(
        self,
        *,
        pool_name: str,
        fleet: FleetView,
        store: Store,
        admission: Admission,
        connections: ConnectionPool,
        observer: Observer,
        clock: Clock,
        rng: Random,
        rules: CallRules,
    ) -> None:
        self._pool_name = pool_name
        self._via = headers.via_value(pool_name)
        self._fleet = fleet
        self._store = store
        self._admission = admission
        self._connections = connections
        self._observer = observer
        self._clock = clock
        self._rng = rng
        self.rules = rules
        self.is_closing = False  # no call that comes now is served: the process ends soon
        self._large_reads = asyncio.Semaphore(LARGE_READS_MAX)
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
            await self._route(call, reply, waiting, record, live, self.rules)
        except Refusal as refusal:
            is_late = isinstance(refusal, QueueTimeout | UpstreamTimeout)
            note_wait(record, live.step_out(self._clock.now_s()), "timeout" if is_late else "rejected")
            own.refuse(call, reply, waiting, record, refusal, self._clock.wall_s())
        except asyncio.CancelledError:
            ours = live.why_cancelled()
            note_wait(record, live.step_out(self._clock.now_s()), "rejected" if ours is not None else "cancelled")
            if ours is None:
                note_leaving(record, live.attempt)
                raise
            own.refuse(call, reply, waiting, record, ours, self._clock.wall_s())
        except Exception:
            log.exception("call %s met a defect of the router", record.request_id)
            note_wait(record, live.step_out(self._clock.now_s()), "rejected")
            own.break_off(call, reply, waiting, record, self._clock.wall_s())
        finally:
            self._exit(live)
            call.release_body()
            self._finish(record, reply)

    async def _route(  # noqa: PLR0917 - all that a call has
        self, call: Call, reply: Reply, waiting: WaitingStream, record: Record, live: LiveCall, rules: CallRules
    ) -> None:
        """One target and one node after another, until an answer has passed or a refusal is raised."""
        team = self._identify(call, rules, record)
        reading = await read(call, record, self._clock, self._large_reads)
        intent = reading.intent
        course = Course(self._plan(call, intent, team, rules, record))
        if is_unload(intent):
            self._answer_unload(call, reply, record, intent, team)
            return
        ticket = self._ticket(call, intent, course, record, rules.guards)
        self._comment_on(waiting, call, intent, rules.deadlines)
        while True:
            decision = self._decide(ticket, call, intent, course.plan, rules)
            ticket = replace(ticket, attempt=course.made + 1, preferred=decision.preferred)
            live.stand_in_line(self._clock.now_s())
            judge = partial(self._decide, ticket, call, intent, course.plan, rules)
            patience = self._patience(call, ticket, rules.deadlines, record)
            overflow = self._overflow(ticket, call, intent, course.plan, rules, record)
            hold = self._admission.lease(ticket, *patience, judge, waiting, overflow)
            try:
                async with hold as lease:
                    course = course.granted(lease.model)
                    waited_s = live.step_out(self._clock.now_s())
                    note_lease(record, lease, decision, waited_s, hold.left, is_overflow=course.is_overflow)
                    errand = self._errand(call, reading, course, lease, rules, record)
                    try:
                        with self._at_node(record, course):
                            attempt = await forward(self._connections, errand, reply, waiting, live.attach)
                    except asyncio.CancelledError:
                        hold.tokens = spent(ticket.estimate_tokens, live.attempt)
                        raise
                    hold.outcome, hold.tokens = self._settle(record, attempt)
                    # Before the slot goes to the next in line: it must not be handed a copy that has just died.
                    await self._fleet.attempt_ended(lease, attempt.failure, shown(attempt), ran_of(attempt))
            except UNSERVABLE as refusal:
                following = self._turn(course, refusal, rules.reach, record, live)
            else:
                if attempt.failure is None and attempt.refusal is None:
                    return
                following = self._again(course, attempt, rules, record)
            if following.plan.first.model == ticket.targets[0]:
                ticket = replace(ticket, excluded=following.excluded)
            else:
                ticket = self._ticket(call, intent, following, record, rules.guards)
            record.model = following.plan.first.model
            course = following

    def _enter(self, live: LiveCall) -> None:
        self.live.add(live)
        self.is_idle.clear()

    def _exit(self, live: LiveCall) -> None:
        self.live.discard(live)
        live.over()
        if not self.live:
            self.is_idle.set()

    def _identify(self, call: Call, rules: CallRules, record: Record) -> Team:
        """A call that comes back is told so whatever is required: its key stayed where it passed first."""
        if self.is_closing:
            raise Draining("this router is shutting down, please try again")
        if headers.passed_pool(call.headers, self._pool_name):
            raise LoopDetected(f"this call has passed the pool '{self._pool_name}' before: a node's URL is a router's")
        team = rules.access.identify(call.headers)
        record.team = team.name
        return team

    def _plan(self, call: Call, intent: Intent, team: Team, rules: CallRules, record: Record) -> RoutePlan:
        """Begins with the first target that can be had now."""
        snapshot = self._fleet.snapshot
        if not team.models.match(intent.name.key):
            raise nowhere(call.endpoint, intent.model, (Passed.UNKNOWN,), all_read=snapshot.all_read)
        plan = rules.aliases.plan(intent.name.key, team.name, self._rng)
        record.alias, record.model = plan.alias, plan.first.model
        found = ahead(plan, snapshot, rules.reach)
        if not isinstance(found, Ahead):
            raise nowhere(call.endpoint, intent.model, found, all_read=snapshot.all_read)
        note_passed(record, found.passed)
        record.model = found.plan.first.model
        return found.plan

    def _ticket(self, call: Call, intent: Intent, course: Course, record: Record, guards: Guards) -> Ticket:
        ticket = ticket_for(
            course.ticket_id(call.ticket_id),
            call.endpoint,
            intent,
            course.plan,
            team=record.team,
            body_bytes=record.body_bytes,
            snapshot=self._fleet.snapshot,
            guards=guards,
        )
        return replace(ticket, excluded=course.excluded)

    def _decide(self, ticket: Ticket, call: Call, intent: Intent, plan: RoutePlan, rules: CallRules) -> Decision:
        affinity = call.affinity or intent.affinity.hex()
        snapshot = self._fleet.snapshot
        want = Want(ticket.targets, affinity, ticket.num_ctx, ticket.excluded, ticket.names_no_ctx)
        decision = schedule(want, snapshot, self._store.occupancy, self._rng)
        check_context(ticket, intent, plan, decision, snapshot=snapshot, guards=rules.guards, reach=rules.reach)
        return decision

    def _comment_on(self, waiting: WaitingStream, call: Call, intent: Intent, limits: Deadlines) -> None:
        if limits.comment_after_s and intent.streams and call.endpoint.is_compat:
            waiting.comment_from(self._clock.now_s() + limits.comment_after_s, limits.comment_every_s)

    def _patience(
        self, call: Call, ticket: Ticket, limits: Deadlines, record: Record
    ) -> tuple[float, Callable[[Place | None], Refusal]]:
        """Until when this call may stand in line, and what it is told then."""
        model, queued_s = ticket.targets[0], record.queued_s
        term = in_line(limits, model, call.arrived_s, call.timeout_s, queued_s, self._clock.now_s())
        return term.until_s, partial(term.refusal, record.model_asked, rng=self._rng)

    def _overflow(  # noqa: PLR0917 - all that is known of the call by now
        self, ticket: Ticket, call: Call, intent: Intent, plan: RoutePlan, rules: CallRules, record: Record
    ) -> Overflow | None:
        if len(plan.targets) == 1:
            return None
        since_s = self._clock.now_s() - record.queued_s
        return Overflow(plan, ticket, call.endpoint, intent, rules.guards, rules.reach, since_s)

    def _errand(  # noqa: PLR0917 - all that is known of the call by now
        self, call: Call, reading: Reading, course: Course, lease: Lease, rules: CallRules, record: Record
    ) -> Errand:
        limits, plan, streams = rules.deadlines, course.plan, reading.intent.streams
        spec = self._fleet.spec_of(lease.node)
        due = at_node(limits, call.arrived_s, call.timeout_s, self._clock.now_s(), streams=streams)
        changes = changes_of(
            call.endpoint,
            reading.intent,
            lease,
            rules.guards,
            is_alias=bool(plan.alias),
            overrides=plan.first.overrides,
            loaded_ctx=self._fleet.loaded_ctx(lease.node, lease.weights),
            is_kept=rules.keeps(self._fleet.snapshot, lease),
        )
        note_guarded(record, changes.guarded)
        return errand_for(
            call,
            reading,
            lease,
            spec,
            changes,
            is_alias=bool(plan.alias),
            has_other_target=may_turn(course, self._fleet.snapshot, rules.reach, attempts=rules.retries.attempts),
            via=self._via,
            decision=decision_headers(call, record, self._clock.wall_s()),
            terms=Terms(due, limits.idle_s),
            beside=self._store.occupancy.get((lease.node, lease.weights), 1),
            credentials=self._connections.credentials(spec),
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

    def _again(self, course: Course, attempt: Attempt, rules: CallRules, record: Record) -> Course:
        """With the next try before it, or the refusal that ends the call."""
        if attempt.refusal is not None:
            raise attempt.refusal
        budget = Budget(self._running, self._retrying, rules.retries.budget)
        snapshot, attempts = self._fleet.snapshot, rules.retries.attempts
        sequel = follow(course, attempt, snapshot=snapshot, reach=rules.reach, budget=budget, attempts=attempts)
        assert attempt.failure is not None
        record.retries.append((attempt.node, attempt.failure.value))
        note_passed(record, sequel.passed)
        return sequel.course

    def _turn(self, course: Course, refusal: Refusal, reach: Reach, record: Record, live: LiveCall) -> Course:
        """To another target after a line that was refused, else the refusal."""
        sequel = turn(course, passed_for(refusal), snapshot=self._fleet.snapshot, reach=reach)
        if sequel is None:
            raise refusal
        record.queued_s += live.step_out(self._clock.now_s()) or 0.0
        note_passed(record, sequel.passed)
        return sequel.course

    def _answer_unload(self, call: Call, reply: Reply, record: Record, intent: Intent, team: Team) -> None:
        if team.may_unload:
            self._fleet.unload(record.model)
        else:
            note_guarded(record, (Guarded.UNLOAD_IGNORED,))
        own.answer_unload(call, reply, record, intent, self._clock.wall_s())

    def _finish(self, record: Record, reply: Reply) -> None:
        record.duration_s = self._clock.now_s() - record.arrived_s
        record.status = reply.status or CLIENT_CLOSED_REQUEST
        self._observer.observe(record)
