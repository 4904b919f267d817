"""One replica's sessions at the store: the queue of its steps, the task that sends them, and who decides meanwhile.

One task writes: what a turn of the loop brings goes out as one batch, and callers wait on futures of their own, so that
a caller who is cancelled shifts nobody's answer. Another task reads what other replicas' steps brought this one. While
Redis does not answer, `Alone` decides, at once; when it is back, hello names all that this replica holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from router.fleet.tickets import BEAT_S, SILENT_BEATS, Gate
from router.seams import Clock
from router.store.answers import Answer, Caller, Limits, Stale
from router.store.book import Book
from router.store.desk import Desk
from router.store.redis import codec
from router.store.redis.alone import Alone, Told
from router.store.redis.link import Link, StoreLost, StoreMoved
from router.store.redis.trips import Trips

log = logging.getLogger(__name__)

BATCH_MAX = 64  # steps in one run of the script: a few milliseconds of the server's time
SILENCE_S = SILENT_BEATS * BEAT_S
AGAIN_S = 0.5  # between two tries to reach a server that is away
# A primary that sentinels gave up serves on for ten seconds, until it is told: who stays with it is not in the pool.
WATCH_S = 1.0

Locally = Callable[[Book, Caller, float], Answer[Any]]


@dataclass(slots=True, eq=False)
class Step:
    """One command: for Redis, and for a replica that is alone. `done` hears its value before anything else happens."""

    command: codec.Command
    locally: Locally
    done: Callable[[Any], None] | None = None
    future: asyncio.Future[Any] | None = None

    def end(self, value: Any) -> None:
        is_waited_for = self.future is None or not self.future.done()
        if self.done is not None and is_waited_for:
            self.done(value)
        if self.future is not None and is_waited_for:
            self.future.set_result(value)


class Session:
    """Owns the link. `loops` are its tasks; whoever runs them notices when one dies."""

    def __init__(
        self, link: Link, replica: str, clock: Clock, rng: Random, trips: Trips, *, desk: Desk, limits: Limits
    ) -> None:
        self.desk = desk
        self.limits = limits
        self.told = Told()
        self.alone: Alone | None = None
        self.replicas = 1  # when the store was last heard; before, see `expect`
        self.occupancy: dict[tuple[str, str], int] = {}  # the pool's, when the store was last heard
        self.leader = ""  # when the store was last heard
        self._link = link
        self._clock = clock
        self._rng = rng
        self._trips = trips
        self._caller = Caller(replica, 0)
        self._queue: deque[Step] = deque()
        self._wanted = asyncio.Event()
        self._is_up = asyncio.Event()
        self._must_greet = False
        self._believes_fewer_s = 0.0  # from then on whoever is not heard is gone
        self._again_s = 0.0  # no earlier is a server that is away tried again
        self._last_seq = 0
        self._greetings = 0
        self._ahead_s: float | None = None  # store time less our clock; None until the store was heard

    def __repr__(self) -> str:
        return f"<Session {len(self._queue)} queued | {self.alone or self._link!r}>"

    @property
    def number(self) -> int:
        """Another one after each hello."""
        return self._caller.session

    @property
    def replica(self) -> str:
        return self._caller.replica

    @property
    def is_up(self) -> bool:
        return self._is_up.is_set()

    def loops(self) -> Mapping[str, Coroutine[object, object, None]]:
        found = {"store writer": self.write(), "store reader": self.read()}
        return {**found, "store watcher": self.watch()} if self._link.is_watched else found

    def expect(self, replicas: int) -> None:
        """Nothing where the store has told how many there are."""
        if self._ahead_s is None:
            self.replicas = replicas
            if self.alone is not None:
                self.alone.replicas = replicas  # of copies from their next report on

    async def open(self) -> None:
        """Also where Redis is away: then alone, until it is there."""
        try:
            await self.greet()
        except StoreLost as lost:
            self.part(lost)

    # steps

    def now_s(self) -> float:
        """Store time, as far as it is known."""
        if self._ahead_s is None:
            return self._clock.wall_s()
        return self._clock.now_s() + self._ahead_s

    async def ask(self, command: codec.Command, locally: Locally, done: Callable[[Any], None] | None = None) -> Any:
        step = Step(command, locally, done, asyncio.get_running_loop().create_future())
        self._put(step)
        assert step.future is not None
        return await step.future

    def tell(self, command: codec.Command, locally: Locally, done: Callable[[Any], None] | None = None) -> None:
        self._put(Step(command, locally, done))

    def _put(self, step: Step) -> None:
        if self.alone is not None:
            self._do_alone(step)
            return
        self._queue.append(step)
        self._wanted.set()

    def _do_alone(self, step: Step) -> None:
        assert self.alone is not None
        answer = self.alone.do(step.locally, self.now_s())
        assert not isinstance(answer.value, Stale), "a book that only we speak to knows us"
        step.end(answer.value)
        self.desk.hear((*answer.grants, *answer.refusals))

    def tell_drop(self, node: str, incarnation: int) -> None:
        self.tell(
            codec.drop_node(node, incarnation),
            lambda book, caller, now_s: book.drop_node(caller, node, incarnation, now_s),
            lambda _: self.told.heard_drop(node, incarnation) if self.alone is None else None,
        )

    def tell_gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        self.told.shut(node, weights, gate, until_s)

        def heard(_: object) -> None:
            if gate is Gate.OPEN and self.alone is None:
                self.told.heard_open(node, weights)

        self.tell(
            codec.gate(node, weights, gate, until_s),
            lambda book, caller, now_s: book.gate(caller, node, weights, gate, now_s, until_s=until_s),
            heard,
        )

    def must_greet(self) -> None:
        """Before anything else is sent."""
        self._must_greet = True
        self._wanted.set()

    # the writer

    async def write(self) -> None:
        while not _is_cancelled():
            try:
                if self.alone is not None:
                    await self._try_again()
                await self._send_all()
            except StoreLost as lost:
                if self.alone is None:
                    self.part(lost)

    async def _try_again(self) -> None:
        """At once where the last try is long past: of a connection that was merely cut nobody shall notice much."""
        now_s = self._clock.now_s()
        if now_s < self._again_s:
            await asyncio.sleep(self._again_s - now_s)
        self._again_s = self._clock.now_s() + AGAIN_S
        await self.greet()

    async def _send_all(self) -> None:
        while not _is_cancelled():
            if self._must_greet:
                await self.greet()
            await self._wanted.wait()
            self._wanted.clear()
            while self._queue and not self._must_greet and not _is_cancelled():
                await self._send([self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))])

    async def _send(self, steps: list[Step]) -> None:
        try:
            asked = self._link.run(self._caller, [step.command for step in steps])
            answers = await self._trips.time("steps", asked)
        except StoreMoved:
            self._queue.extendleft(reversed(steps))
            self.must_greet()
            return
        except (StoreLost, asyncio.CancelledError):
            self._queue.extendleft(reversed(steps))
            raise
        has_lost_writes = answers[0].seq <= self._last_seq
        if isinstance(answers[0].value, Stale) or has_lost_writes:
            # Reaped, or another life of the store: nothing was done, or it is lost with what was before it.
            log.warning(
                "redis %s: it is told again what runs and waits here",
                "has lost what it was told last" if has_lost_writes else "has not heard this router for too long",
            )
            self._queue.extendleft(reversed(steps))
            self.must_greet()
            return
        for step, answer in zip(steps, answers, strict=True):
            self._heed(answer)
            step.end(answer.value)
            self.desk.hear((*answer.grants, *answer.refusals))

    def _heed(self, answer: Answer[Any]) -> None:
        self._last_seq = answer.seq
        self._ahead_s = answer.now_s - self._clock.now_s()

    async def greet(self) -> None:
        """Hello, with all that this replica holds; then what it knows, for a store that has forgotten it."""
        await self._trips.time("connect", self._link.connect())
        desk, was_alone = self.desk, self.alone
        leases, tickets = tuple(desk.leases.values()), tuple(desk.tickets.values())
        self._greetings += 1  # also of one that gets no answer: it may come late, and must not undo the next
        hello = codec.hello(self._last_seq, leases, tickets, greeting=self._greetings)
        asked = self._link.run(self._caller, [hello, codec.set_limits(self.limits), codec.look()])
        answers = await self._trips.time("hello", asked)
        if was_alone is not None or not self._is_up.is_set():
            log.info("redis answers: %s", self._link.where)
            if self._link.evicts:
                log.warning("redis may evict what it keeps for the pool: set its maxmemory-policy to noeviction")
        self.alone, self._must_greet = None, False
        self._believes_fewer_s = self._clock.now_s() + SILENCE_S
        session = answers[0].value
        assert isinstance(session, int), "the latest hello is never stale"
        self._caller = Caller(self._caller.replica, session)
        for answer in answers:
            self._heed(answer)
        self.looked(answers[-1].value)
        self._is_up.set()
        self._repeat()
        # What ended while the answer was on its way ended alone: the store holds it until it hears this.
        for ticket_id in {ticket.id for ticket in tickets} - desk.tickets.keys() - desk.leases.keys():
            self.tell(codec.leave(ticket_id, 0), _unheard)
        for lease in set(leases).difference(desk.leases.values()):
            self.tell(codec.give_back(lease.id, 0), _unheard)
        # And what began alone meanwhile it does not know yet.
        if not (set(desk.leases.values()).issubset(leases) and desk.tickets.keys() <= {one.id for one in tickets}):
            self.must_greet()
        for answer in answers:
            desk.hear((*answer.grants, *answer.refusals))

    def _repeat(self) -> None:
        """Also for a store that remembers all but what was said meanwhile. A drop is of an older start than reports."""
        for node, incarnation in tuple(self.told.drops.items()):
            self.tell_drop(node, incarnation)
        for report in self.told.reports.values():
            self.tell(codec.set_copy(report), _unheard)
        for (node, weights), (gate, until_s) in tuple(self.told.gates.items()):
            self.tell_gate(node, weights, gate, until_s)

    def part(self, lost: StoreLost) -> None:
        known = "" if self._ahead_s is not None else ", as store.replicas says"
        log.warning(
            "redis is away (%s): deciding alone, with 1/%d of every copy%s, until it answers",
            *(lost, self.replicas, known),
        )
        self._is_up.clear()
        now_s = self.now_s()
        self.alone = Alone(self._rng, self.limits, self._caller.replica, self.replicas, now_s)
        answers = self.alone.begin(self.told, self.desk.leases.values(), self.desk.tickets.values(), now_s)
        for answer in answers:
            self.desk.hear((*answer.grants, *answer.refusals))
        queued, self._queue = self._queue, deque()
        for step in queued:
            self._do_alone(step)

    def looked(self, value: Any) -> None:
        """None from a book of one's own."""
        if value is None:
            return
        replicas, self.occupancy, self.leader = value
        # A store that is back and empty has heard only those who said hello: the others still use their shares.
        if replicas > self.replicas or (replicas < self.replicas and self._clock.now_s() >= self._believes_fewer_s):
            log.info("%d routers share redis, %d before", replicas, self.replicas)
            self.replicas = replicas

    async def close(self) -> None:
        """When both tasks have ended: what is still queued goes with the bye, which frees what this replica holds."""
        if self.alone is None:
            with suppress(StoreLost):
                await self._link.run(self._caller, [*(step.command for step in self._queue), codec.bye()])
        await self._link.close()

    # the reader

    async def read(self) -> None:
        while not _is_cancelled():
            await self._is_up.wait()
            try:
                self.desk.hear(await self._link.news())
            except StoreLost as lost:
                self._trips.missed_news(lost)
                await asyncio.sleep(AGAIN_S)  # the writer notices by itself; until then beats bring the same

    # the watcher

    async def watch(self) -> None:
        """Where a server does not say itself that it is the one no more."""
        while not _is_cancelled():
            await asyncio.sleep(WATCH_S)
            if self.is_up and await self._link.has_moved():
                self.must_greet()


def _is_cancelled() -> bool:
    """The client of Redis may swallow a cancellation that meets an answer."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unheard(book: Book, caller: Caller, now_s: float) -> Answer[Any]:
    """What only a store that forgot needs to hear."""
    return book.read(caller, now_s)
