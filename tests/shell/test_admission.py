"""Slots and lines as a client meets them, and that every slot comes back whoever waits, leaves or is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from router.admission import Admission
from router.errors import LoadFailed, NumCtxRefused, Outcome, QueueFull, QueueTimeout
from router.fleet.node import CopyState
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import CopyReport, Lease, Place, Ticket
from router.policy.alias import RoutePlan, Target
from router.policy.guard import Guards
from router.policy.overflow import Overflow
from router.policy.route import Reach
from router.store.answers import Limits
from router.store.check import invariants
from router.store.memory import MemoryStore
from router.wire.endpoints import BY_PATH
from router.wire.intent import read_intent
from router.wire.names import parse_name
from tests.fleet.builders import fleet, node
from tests.shell.clients import Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, until
from tests.shell.scenes import ENDLESS, holding, let_run, running


def late(place: Place | None) -> QueueTimeout:
    return QueueTimeout("too late", retry_after_s=1)


T = TypeVar("T")

PATIENT_S = 1e9  # loop time


class Clock:
    def now_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return 0.0


class Fleet:
    """Counts who asked for a load."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.wakes = 0

    def wake_placer(self) -> None:
        self.wakes += 1

    async def attempt_ended(self, lease: object, failure: object, outcome: object) -> None: ...


async def counter(slots: int, *, max_waiting: int = 100) -> tuple[Admission, MemoryStore, Fleet]:
    """One copy of model m on node a."""
    store, fleet = MemoryStore(Clock(), Random(0), Limits(max_waiting)), Fleet()
    admission = Admission(store, fleet)
    await admission.open()
    incarnation = await store.incarnate("a", "1")
    await store.set_copy(CopyReport("a", incarnation, "w", ("m",), CopyState.READY, slots, 4096, 0.0))
    return admission, store, fleet


def ticket(number: int) -> Ticket:
    return Ticket(f"t{number}", ("m",))


async def take(admission: Admission, asked: Ticket, *terms: Any) -> Lease:
    return await admission.lease(asked, *terms).__aenter__()


def is_empty(store: MemoryStore) -> bool:
    ledger = store.book.ledger
    return not (ledger.tickets or ledger.leases or ledger.waiting or ledger.unclaimed or store.occupancy)


async def test_a_slot_that_is_free_is_had_at_once_and_given_back_at_the_end() -> None:
    admission, store, fleet = await counter(1)
    async with admission.lease(ticket(1), PATIENT_S, late) as lease:
        assert (lease.node, lease.weights) == ("a", "w")
        assert store.occupancy == {("a", "w"): 1}
    assert is_empty(store)
    assert fleet.wakes == 0, "nobody waited"


async def test_whoever_waits_says_so_and_gets_the_slot_in_turn() -> None:
    admission, store, fleet = await counter(1)
    served: list[int] = []

    async def call(number: int) -> None:
        async with admission.lease(ticket(number), PATIENT_S, late):
            served.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(call(number) for number in range(5)))
    assert served == [0, 1, 2, 3, 4]
    assert fleet.wakes == 4
    assert is_empty(store)


async def test_a_grant_to_one_who_leaves_in_that_moment_goes_to_the_next() -> None:
    admission, store, _ = await counter(1)
    hold = admission.lease(ticket(0), PATIENT_S, late)
    await hold.__aenter__()
    first = asyncio.create_task(take(admission, ticket(1), PATIENT_S, late))
    second = asyncio.create_task(take(admission, ticket(2), PATIENT_S, late))
    await until(lambda: admission.waiting == 2)
    await hold.__aexit__(None, None, None)
    first.cancel()  # its future has the lease already, but it has not run since
    assert (await second).ticket == "t2"
    assert first.cancelled()
    await store.leave("t2")
    assert is_empty(store)


async def test_a_call_that_fails_gives_its_slot_back() -> None:
    admission, store, _ = await counter(1)
    with pytest.raises(ZeroDivisionError):
        async with admission.lease(ticket(1), PATIENT_S, late):
            raise ZeroDivisionError
    assert is_empty(store)


async def test_a_full_line_refuses_and_keeps_no_trace() -> None:
    admission, store, _ = await counter(1, max_waiting=0)
    async with admission.lease(ticket(1), PATIENT_S, late):
        with pytest.raises(QueueFull):
            await take(admission, ticket(2), PATIENT_S, late)
        assert (admission.waiting, len(store.book.ledger.tickets)) == (0, 1)
    assert is_empty(store)


async def test_patience_that_ends_leaves_the_line() -> None:
    admission, store, _ = await counter(1)
    async with admission.lease(ticket(1), PATIENT_S, late):
        with pytest.raises(QueueTimeout, match="too late"):
            await take(admission, ticket(2), 0.0, late)
        assert (admission.waiting, await store.lines()) == (0, ())
    assert is_empty(store)


async def test_who_waits_for_a_context_is_judged_again_when_one_is_known() -> None:
    admission, store, _ = await counter(1)
    judged: list[str] = []

    def refuse(name: str) -> None:
        judged.append(name)
        raise NumCtxRefused(name)

    async with admission.lease(ticket(0), PATIENT_S, late):
        waiting = {
            name: asyncio.create_task(take(admission, asked, PATIENT_S, late, partial(refuse, name)))
            for name, asked in {
                "large": Ticket("large", ("other", "m"), num_ctx=9000),
                "any": Ticket("any", ("m",)),
                "another": Ticket("another", ("other",), num_ctx=9000),
            }.items()
        }
        await until(lambda: admission.waiting == 3)
        admission.context_known(["m"])
        with pytest.raises(NumCtxRefused, match="large"):
            await waiting["large"]
        assert (judged, admission.waiting) == (["large"], 2)
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert is_empty(store)


@examples(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 3),
    max_waiting=st.integers(0, 6),
    steps=st.lists(
        st.tuples(st.sampled_from(["arrive", "leave", "finish", "turn"]), st.integers(0, 11)), min_size=5, max_size=60
    ),
)
def test_no_history_of_arrivals_and_departures_loses_a_slot(
    slots: int, max_waiting: int, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(_history(slots, max_waiting, steps))


async def _history(slots: int, max_waiting: int, steps: list[tuple[str, int]]) -> None:
    admission, store, _ = await counter(slots, max_waiting=max_waiting)
    calls: dict[int, asyncio.Task[None]] = {}
    ends: dict[int, asyncio.Event] = {}

    async def call(number: int) -> None:
        async with admission.lease(ticket(number), PATIENT_S, late) as lease:
            assert lease.ticket == f"t{number}"
            await ends[number].wait()

    for kind, which in steps:
        alive = [number for number, task in calls.items() if not task.done()]
        if kind == "arrive":
            ends[len(calls)] = asyncio.Event()
            calls[len(calls)] = asyncio.create_task(call(len(calls)))
        elif kind == "leave" and alive:
            calls[alive[which % len(alive)]].cancel()
        elif kind == "finish" and alive:
            ends[alive[which % len(alive)]].set()
        elif kind == "turn":
            await asyncio.sleep(0)
        assert store.occupancy.get(("a", "w"), 0) <= slots
        assert len(store.book.ledger.waiting) <= max_waiting
        assert not store.book.ledger.waiting or store.occupancy[("a", "w")] == slots, "nobody waits beside a free slot"
    for end in ends.values():
        end.set()
    results = await asyncio.gather(*calls.values(), return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError | QueueFull) for result in results), results
    assert is_empty(store)
    assert admission.waiting == 0


# Calls that stand in two lines, at a store that is a round trip away.


class FarStore(MemoryStore):
    """Each command is carried out a turn of the loop later, in order, whatever has become by then of whoever sent it,
    and its answer is under way for another; grants come in between."""

    async def take(self, ticket: Ticket) -> Lease | Place:
        return await _sent(super().take(ticket))

    async def widen(self, ticket_id: str, targets: tuple[str, ...]) -> Lease | Place:
        return await _sent(super().widen(ticket_id, targets))

    async def place_of(self, ticket_id: str) -> Place | None:
        return await _sent(super().place_of(ticket_id))

    async def leave(self, ticket_id: str, tokens: int = 0) -> None:
        await _sent(super().leave(ticket_id, tokens))

    async def give_back(self, lease: Lease, outcome: Outcome, tokens: int) -> None:
        await _sent(super().give_back(lease, outcome, tokens))


async def _sent(command: Coroutine[Any, Any, T]) -> T:
    carried_out = asyncio.ensure_future(command)
    carried_out.add_done_callback(lambda done: done.exception())  # also of those that nobody waits for
    return await asyncio.shield(carried_out)


BOTH = fleet(node("a", ready="m"), node("b", ready="k"))


def at_once(asked: Ticket) -> Overflow:
    """Into the line of k as soon as it has to wait for m."""
    endpoint = BY_PATH["/api/generate"]
    intent = read_intent(endpoint, b'{"model":"gpt","prompt":"?"}', content_type="", content_encoding="")
    plan = RoutePlan((Target("m", overflow_after_s=0.0), Target("k")), "gpt:latest")
    return Overflow(plan, asked, endpoint, intent, Guards(), Reach(), since_s=0.0)


async def far_counter(slots: Mapping[str, int], max_waiting: int) -> tuple[Admission, FarStore]:
    """Models m and k, each with a node of its own."""
    store, known = FarStore(Clock(), Random(0), Limits(max_waiting)), Fleet()
    known.snapshot = BOTH
    admission = Admission(store, known)
    await admission.open()
    for key, name in (("m", "a"), ("k", "b")):
        incarnation = await store.incarnate(name, "1")
        await store.set_copy(CopyReport(name, incarnation, f"w:{key}", (key,), CopyState.READY, slots[key], 4096, 0.0))
    return admission, store


STEPS = [
    *("arrive", "arrive", "arrive", "stay", "leave", "finish", "turn", "turn", "turn", "turn"),
    *("refuse m", "refuse k", "shrink", "grow"),
]


@examples(max_examples=150, deadline=None)
@given(
    slots=st.fixed_dictionaries({"m": st.integers(1, 2), "k": st.integers(0, 2)}),
    max_waiting=st.integers(0, 5),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=5, max_size=80),
)
def test_no_race_of_widening_with_grants_and_departures_loses_a_slot_or_a_ticket(
    slots: dict[str, int], max_waiting: int, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(_races(slots, max_waiting, steps))


async def _races(slots: dict[str, int], max_waiting: int, steps: list[tuple[str, int]]) -> None:
    admission, store = await far_counter(slots, max_waiting)
    calls: list[asyncio.Task[str]] = []
    ends: list[asyncio.Event] = []

    async def call(number: int, *, overflows: bool) -> str:
        asked = ticket(number)
        overflow = at_once(asked) if overflows else None
        async with admission.lease(asked, PATIENT_S, late, overflow=overflow) as lease:
            assert lease.ticket == asked.id
            await ends[number].wait()
            return lease.model

    for kind, which in steps:
        alive = [number for number, task in enumerate(calls) if not task.done()]
        if kind in ("arrive", "stay"):
            ends.append(asyncio.Event())
            calls.append(asyncio.create_task(call(len(calls), overflows=kind == "arrive")))
        elif kind == "leave" and alive:
            calls[alive[which % len(alive)]].cancel()
        elif kind == "finish" and alive:
            ends[alive[which % len(alive)]].set()
        elif kind.startswith("refuse"):
            await store.refuse(kind[-1], LoadFailed("no"))
        elif kind in ("shrink", "grow"):
            state = CopyState.READY if kind == "grow" else CopyState.ON_DISK
            await store.set_copy(CopyReport("b", 1, "w:k", ("k",), state, slots["k"], 4096, 0.0))
        for _ in range(1 + which % 4 if kind == "turn" else 0):
            await asyncio.sleep(0)
        invariants(store.book)
        assert all(store.occupancy.get(copy, 0) <= slots[copy[1][-1]] for copy in (("a", "w:m"), ("b", "w:k")))
    for end in ends:
        end.set()
    # Whose own line was refused waits for k alone.
    await store.set_copy(CopyReport("b", 1, "w:k", ("k",), CopyState.READY, 2, 4096, 0.0))
    results = await asyncio.gather(*calls, return_exceptions=True)
    told = str | asyncio.CancelledError | QueueFull | LoadFailed
    assert all(isinstance(result, told) for result in results), results
    await asyncio.sleep(0)  # what was sent by a call that was cancelled once more on its way out
    invariants(store.book)
    assert is_empty(store)
    assert admission.waiting == 0


async def test_a_call_that_overflowed_leaves_with_the_slot_it_was_given_in_that_moment() -> None:
    admission, store = await far_counter({"m": 1, "k": 1}, 9)
    first = admission.lease(ticket(0), PATIENT_S, late)
    await first.__aenter__()
    asked = ticket(1)
    second = asyncio.create_task(take(admission, asked, PATIENT_S, late, lambda: None, None, at_once(asked)))
    for _ in range(10):
        if not store.occupancy.get(("b", "w:k")):
            await asyncio.sleep(0)
    assert store.occupancy == {("a", "w:m"): 1, ("b", "w:k"): 1}
    assert not second.done(), "the answer is under way"
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert second.cancelled()
    await first.__aexit__(None, None, None)
    assert is_empty(store)


# The same from outside.


def prompt(number: int, *, stream: bool = True) -> dict[str, object]:
    return {"model": ENDLESS, "prompt": f"{number}: why?", "stream": stream}


async def line_up(stack: AsyncExitStack, port: int, count: int) -> list[Client]:
    """So many clients; the first takes the only slot."""
    clients = [await stack.enter_async_context(Client(port)) for _ in range(count)]
    for number, client in enumerate(clients):
        client.send("/api/generate", prompt(number))
        if number == 0:
            await client.first(b'"done":false')
    return clients


async def test_a_full_line_answers_busy_with_ever_longer_advice() -> None:
    line = {"max_waiting_per_model": 2}
    async with holding(1, ENDLESS, line=line) as (pool, router), AsyncExitStack() as stack:
        clients = await line_up(stack, router.port, 3)
        await until(lambda: len(router.store.book.ledger.waiting) == 2)
        answers = [await ask(router, "/api/generate", prompt(number)) for number in range(12)]
        assert {(answer.status, answer.refused) for answer in answers} == {(503, "queue_full")}
        assert {answer.json["error"] for answer in answers} == {
            "server busy, please try again.  maximum pending requests exceeded"
        }
        advice_s = [int(answer.headers["retry-after-ms"]) / 1000 for answer in answers]
        # The k-th waits for k others, give or take a fifth.
        assert all(later > 1.3 * earlier for earlier, later in zip(advice_s[:4], advice_s[4:8], strict=True)), advice_s
        assert 1 <= min(advice_s) <= max(advice_s) <= 60
        assert (await scrape(router)).value("rejections_total", reason="queue_full") == 12
        while router.pipeline.live:
            let_run(pool.nodes[0])
            await asyncio.sleep(0)
        assert [(await client.answer()).status for client in clients] == [200, 200, 200]
        assert_at_rest(router)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_who_has_waited_too_long_is_told_to_come_back(path: str) -> None:
    async with holding(1, ENDLESS, line={"max_wait_s": 0.2}) as (_, router), AsyncExitStack() as stack:
        await line_up(stack, router.port, 1)
        call = {"model": ENDLESS, "messages": [{"role": "user", "content": "?"}], "input": "?", "max_tokens": 8}
        answer = await ask(router, path, call)
        assert (answer.status, answer.refused) == (503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["x-ollama-router-queue-ms"]) > 0
        assert ENDLESS in answer.body.decode()
        page = await scrape(router)
        assert page.value("rejections_total", reason="queue_timeout") == 1
        assert page.value("queue_wait_seconds_count", model=ENDLESS, result="timeout") == 1
        assert page.value("queue_depth") == 0


async def test_who_leaves_the_line_shows_how_long_it_waited() -> None:
    async with holding(1, ENDLESS) as (_, router), AsyncExitStack() as stack:
        _, waiting = await line_up(stack, router.port, 2)
        await until(lambda: bool(router.store.book.ledger.waiting))
        waiting.leave()
        await until(lambda: len(router.pipeline.live) == 1)
        page = await scrape(router)
        assert page.value("queue_wait_seconds_count", model=ENDLESS, result="cancelled") == 1
        assert page.value("queue_depth") == 0
        assert page.value("requests_in_flight") == 1


async def test_the_line_is_served_in_the_order_of_arrival() -> None:
    async with holding(1, ENDLESS) as (pool, router), AsyncExitStack() as stack:
        clients = await line_up(stack, router.port, 1)
        for number in range(1, 5):
            client = await stack.enter_async_context(Client(router.port))
            client.send("/api/generate", prompt(number))
            await until(lambda number=number: len(router.store.book.ledger.waiting) == number)
            clients.append(client)
        for client in clients:
            await client.first(b'"done":false')
            client.leave()
            await until(lambda: running(pool) <= 1)
        asked_for = [seen.body for seen in pool.nodes[0].journal.to("/api/generate") if b'"prompt"' in seen.body]
        assert [body.split(b": why?")[0][-1:] for body in asked_for] == [b"0", b"1", b"2", b"3", b"4"]


async def test_lines_of_different_models_do_not_wait_for_each_other() -> None:
    async with holding(1, ENDLESS, "quick:1b") as (_, router), AsyncExitStack() as stack:
        await line_up(stack, router.port, 3)
        assert (await generate(router, "quick:1b")).status == 200
        assert len(router.keeper.snapshot.holding(parse_name(ENDLESS).key).ready.rows) == 1
