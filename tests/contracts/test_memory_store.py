"""`MemoryStore`: the Book behind the seam, for one replica or for several of a simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest

from router.errors import LoadFailed, Outcome, QueueFull, RateLimited, Refusal, TeamQueueFull, Unavailable
from router.fleet.node import CopyState
from router.fleet.tickets import CopyReport, Gate, Lease, Place, Ticket
from router.policy.limits import TeamLimits, TeamTable
from router.store.answers import Limits
from router.store.book import Book
from router.store.check import invariants
from router.store.memory import MemoryStore
from tests.contracts.store_driver import call

T = TypeVar("T")


class VirtualClock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s


class Waiters:
    """Who waits at one replica; takes what it is granted unless it has gone."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.leases: list[Lease] = []
        self.refusals: list[tuple[str, Refusal]] = []
        self.when_granted: Callable[[Lease], None] = lambda lease: None

    def on_grant(self, lease: Lease) -> bool:
        if lease.ticket in self.gone:
            return False
        self.leases.append(lease)
        self.when_granted(lease)
        return True

    def on_refusal(self, ticket_id: str, refusal: Refusal) -> None:
        self.refusals.append((ticket_id, refusal))


def at_once(step: Awaitable[T]) -> T:
    """Runs a coroutine that must not suspend."""
    try:
        step.send(None)  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


def store_of(clock: VirtualClock, waiters: Waiters, **more: object) -> MemoryStore:
    store = MemoryStore(clock, Random(3), Limits(2), **more)  # type: ignore[arg-type]
    at_once(store.open(waiters.on_grant, waiters.on_refusal))
    return store


def ready(store: MemoryStore, node: str = "n1", slots: int = 1) -> None:
    number = at_once(store.incarnate(node, ""))
    at_once(store.set_copy(CopyReport(node, number, "w", ("m",), CopyState.READY, slots, 0, store.now_s())))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def store(clock: VirtualClock, waiters: Waiters) -> MemoryStore:
    return store_of(clock, waiters)


def test_one_process_serves_from_its_first_moment(store: MemoryStore) -> None:
    ready(store)
    lease = at_once(store.take(call("1")))
    assert isinstance(lease, Lease)
    assert store.occupancy == {("n1", "w"): 1}
    at_once(store.give_back(lease, Outcome.OK, 5))
    assert store.occupancy == {}


def test_grant_is_delivered_right_after_the_step_that_made_it(store: MemoryStore, waiters: Waiters) -> None:
    assert at_once(store.take(call("1"))) == Place("m", 1, 1)
    ready(store)
    assert [lease.ticket for lease in waiters.leases] == ["1"]


def test_team_over_its_limits_is_refused_in_the_call_itself(clock: VirtualClock, waiters: Waiters) -> None:
    limits = {"x": TeamLimits(requests_per_minute=1), "y": TeamLimits(max_waiting=1)}
    store = MemoryStore(clock, Random(3), Limits(2, teams=TeamTable(limits)))
    at_once(store.open(waiters.on_grant, waiters.on_refusal))
    at_once(store.take(call("x1", team="x")))
    with pytest.raises(RateLimited):
        at_once(store.take(call("x2", team="x")))
    at_once(store.take(call("y1", team="y")))
    with pytest.raises(TeamQueueFull):
        at_once(store.take(call("y2", team="y")))
    assert "2 waiting" in repr(store)


def test_whoever_makes_room_in_a_full_line_is_told(store: MemoryStore, waiters: Waiters) -> None:
    for name in ("x1", "x2", "y1"):
        at_once(store.take(call(name, team=name[0])))
    ((ticket, refusal),) = waiters.refusals
    assert ticket == "x2"
    assert isinstance(refusal, QueueFull)
    assert "2 waiting" in repr(store)


def test_true_tokens_reach_the_teams_account(store: MemoryStore, waiters: Waiters) -> None:
    for name in ("x1", "y1"):
        at_once(store.take(call(name, team=name[0], estimate_tokens=100)))
    account = store.book.ledger.queues.shares.accounts["x"]
    before = account.used
    ready(store)
    assert account.used - before == 100
    at_once(store.give_back(waiters.leases[-1], Outcome.OK, 700))
    assert account.used - before == 700


def test_delivered_grant_is_acknowledged(store: MemoryStore, clock: VirtualClock, waiters: Waiters) -> None:
    at_once(store.take(call("1")))
    ready(store)
    for _ in range(10):
        clock.at_s += 1.0
        at_once(store.beat())
    assert len(waiters.leases) == 1
    assert store.occupancy == {("n1", "w"): 1}


def test_grant_nobody_takes_goes_to_the_next(store: MemoryStore, waiters: Waiters) -> None:
    at_once(store.take(call("1")))
    at_once(store.take(call("2")))
    waiters.gone = {"1"}
    ready(store)
    assert [lease.ticket for lease in waiters.leases] == ["2"]
    invariants(store.book)


def test_steps_from_within_a_delivery_are_told_after_it(store: MemoryStore, waiters: Waiters) -> None:
    told: list[str] = []

    def gives_back_at_once(lease: Lease) -> None:
        at_once(store.give_back(lease, Outcome.OK, 0))
        told.append(f"{lease.ticket} of {len(waiters.leases)}")

    waiters.when_granted = gives_back_at_once
    at_once(store.take(call("1")))
    at_once(store.take(call("2")))
    ready(store)
    assert told == ["1 of 1", "2 of 2"]
    assert store.occupancy == {}
    invariants(store.book)


def test_grant_that_is_named_again_while_it_is_delivered_is_delivered_once(
    store: MemoryStore, waiters: Waiters
) -> None:
    waiters.when_granted = lambda lease: at_once(store.beat())
    at_once(store.take(call("1")))
    ready(store)
    assert [lease.ticket for lease in waiters.leases] == ["1"]
    assert store.occupancy == {("n1", "w"): 1}


def test_full_line_raises_with_its_retry_after(store: MemoryStore) -> None:
    at_once(store.take(call("1")))
    at_once(store.take(call("2")))
    with pytest.raises(QueueFull) as refused:
        at_once(store.take(call("3")))
    assert refused.value.retry_after_s == pytest.approx(1.0, abs=0.2)


def test_refused_model_reaches_the_waiters(store: MemoryStore, waiters: Waiters) -> None:
    at_once(store.take(call("1")))
    failed = LoadFailed("no")
    assert at_once(store.refuse("m", failed)) == 1
    assert waiters.refusals == [("1", failed)]
    assert at_once(store.lines()) == ()


def test_ticket_that_left_cannot_come_back(store: MemoryStore) -> None:
    at_once(store.take(call("1")))
    at_once(store.leave("1"))
    with pytest.raises(Unavailable):
        at_once(store.take(call("1")))
    with pytest.raises(Unavailable):
        at_once(store.widen("1", ("k",)))


def test_widened_ticket_takes_what_is_free(store: MemoryStore) -> None:
    ready(store)
    at_once(store.take(call("1", "k")))
    assert isinstance(at_once(store.widen("1", ("m",))), Lease)
    assert [line.model for line in at_once(store.lines())] == []


def test_loads_drains_and_downs_pass_through(store: MemoryStore) -> None:
    ready(store)
    at_once(store.gate("n1", None, Gate.DRAINING, store.now_s()))
    assert isinstance(at_once(store.take(call("1"))), Place)
    assert at_once(store.begin("n1", "w", loading=False, epoch=1)) is True
    at_once(store.drop_node("n1", 1))
    assert at_once(store.incarnate("n1", "")) == 2


def test_closing_frees_everything(store: MemoryStore) -> None:
    ready(store)
    at_once(store.take(call("1")))
    at_once(store.take(call("2")))
    at_once(store.close())
    assert store.occupancy == {}
    assert repr(store) == ("<MemoryStore 0 waiting | 0 leased | <Book 0 waiting | 0 leased | 1 nodes | 0 replicas>>")


def test_before_it_is_opened_nobody_waits(clock: VirtualClock) -> None:
    store = MemoryStore(clock, Random(3))
    at_once(store.take(call("1")))
    ready(store)
    assert store.occupancy == {}, "nobody took it"
    at_once(store.refuse("m", LoadFailed("no")))


def test_replicas_of_a_simulation_share_a_book_and_hear_of_each_other_at_the_beat(clock: VirtualClock) -> None:
    book, mine, theirs = Book(Random(1), settle_s=0.0), Waiters(), Waiters()
    a = store_of(clock, mine, replica="a", book=book)
    b = store_of(clock, theirs, replica="b", book=book)
    at_once(b.take(call("1")))
    ready(a)
    assert theirs.leases == []
    at_once(b.beat())
    assert [lease.ticket for lease in theirs.leases] == ["1"]
    assert mine.leases == []


def test_replica_that_was_reaped_comes_back_into_all_its_lines(clock: VirtualClock) -> None:
    book, mine, theirs = Book(Random(1), settle_s=0.0), Waiters(), Waiters()
    a = store_of(clock, mine, replica="a", book=book)
    b = store_of(clock, theirs, replica="b", book=book)
    at_once(a.take(call("1")))
    at_once(a.widen("1", ("k",)))
    for _ in range(7):
        clock.at_s += 1.0
        at_once(b.beat())
    assert at_once(b.lines()) == ()
    at_once(a.beat())
    assert {line.model: (line.depth, line.own) for line in at_once(b.lines())} == {"m": (1, 1), "k": (1, 0)}
    invariants(book)


def test_replica_that_was_reaped_says_hello_with_what_it_holds(clock: VirtualClock) -> None:
    book, mine, theirs = Book(Random(1), settle_s=0.0), Waiters(), Waiters()
    a = store_of(clock, mine, replica="a", book=book)
    b = store_of(clock, theirs, replica="b", book=book)
    ready(a)
    lease = at_once(a.take(call("1")))
    at_once(a.take(Ticket("2", ("m",), excluded=frozenset({"n1"}))))
    for _ in range(7):
        clock.at_s += 1.0
        at_once(b.beat())
    assert b.occupancy == {}
    at_once(a.beat())
    assert b.occupancy == {("n1", "w"): 1}
    assert [line.depth for line in at_once(b.lines())] == [1]
    assert isinstance(lease, Lease)
    at_once(a.give_back(lease, Outcome.OK, 0))
    assert b.occupancy == {}
    invariants(book)
