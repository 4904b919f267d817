"""Replicas at one store, in virtual time: what every store's suite is written against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from router.errors import Refusal
from router.fleet.node import CopyState
from router.fleet.tickets import BEAT_S, CopyReport, Gate, Lease, LineView, Ticket
from router.store.answers import Answer, Caller, Limits, Refused
from router.store.book import Book
from router.store.check import invariants
from router.store.redis import script
from tests.contracts.redis_harness import POOL, RedisHarness
from tests.fakes import redis_groups, redis_server

START_S = 1_000.0

Said = tuple[int, int, tuple[Lease, ...], tuple[Ticket, ...]]  # with a hello: its count, the last seq, what is held


class MemoryHarness:
    """The store under test, with what a test may do and a replica may not: look at streams, lose writes."""

    def __init__(self, limits: Limits, settle_s: float) -> None:
        self.store = Book(Random(7), limits, settle_s=settle_s)

    def each(self, caller: Caller, command: str, arguments: Sequence[tuple[Any, ...]], now_s: float) -> list[Any]:
        return [getattr(self.store, command)(caller, *args, now_s).value for args in arguments]

    def streams(self) -> dict[str, list[Lease | Refused]]:
        return {name: list(replica.stream) for name, replica in self.store.replicas.items()}

    def leases_on(self, node: str, weights: str) -> int:
        return self.store.ledger.copies.occupancy.get((node, weights), 0)

    def teams_known(self) -> int:
        return len(self.store.ledger.queues.teams.by_name)

    def knows_team(self, name: str) -> bool:
        return name in self.store.ledger.queues.teams.by_name

    def snapshot(self) -> Book:
        return _copy_of(self.store)

    def fail_over(self, to: Book) -> None:
        self.store = _copy_of(to)
        self.store.run += "'"

    def check(self) -> None:
        invariants(self.store)


def _copy_of(book: Book) -> Book:
    """Refusals are shared: an exception whose arguments are named cannot be copied."""
    told = [news.refusal for replica in book.replicas.values() for news in replica.stream if isinstance(news, Refused)]
    told += [refusal for _, refusal in book.ledger.left._ids.values() if refusal is not None]
    return copy.deepcopy(book, {id(refusal): refusal for refusal in told})


Harness = MemoryHarness | RedisHarness


def _valkey(limits: Limits, settle_s: float) -> RedisHarness:
    return RedisHarness(redis_server.shared(redis_server.valkey_binary()).client(), limits, settle_s)


def _redis(limits: Limits, settle_s: float) -> RedisHarness:
    binary = redis_server.redis_binary()
    if binary is None:
        pytest.skip(redis_server.NO_REDIS)
    return RedisHarness(redis_server.shared(binary).client(), limits, settle_s)


def _sentinel(limits: Limits, settle_s: float) -> RedisHarness:
    return RedisHarness(redis_groups.shared_watched(redis_server.any_binary()).primary.client(), limits, settle_s)


def _cluster(limits: Limits, settle_s: float) -> RedisHarness:
    cluster = redis_groups.shared_cluster(redis_server.any_binary())
    return RedisHarness(cluster.owner_of(script.prefix(POOL)).client(), limits, settle_s)


HARNESSES: dict[str, Callable[[Limits, float], Harness]] = {
    "memory": MemoryHarness,
    "valkey": _valkey,
    "redis": _redis,
    "sentinel": _sentinel,
    "cluster": _cluster,
}


class Pool:
    """One method per command, answering its value. `answer` is the last whole one; `got` what each replica was told."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.clock_s = START_S
        self.callers: dict[str, Caller] = {}
        self.last_seq: dict[str, int] = {}
        self.greetings = 0  # of all replicas: each counts its own upwards
        self.last_hello: dict[str, Said] = {}
        self.answer: Answer[Any] = Answer("", 0, 0.0, None)
        self.got: dict[str, list[Lease]] = {}
        self.refused: dict[str, list[Refused]] = {}

    def wait(self, seconds: float, *, beating: str = "") -> None:
        """Time passes. Replicas named in `beating` (one letter each) beat and acknowledge every second of it."""
        end_s = self.clock_s + seconds
        while beating and self.clock_s + BEAT_S <= end_s:
            self.clock_s += BEAT_S
            for who in beating:
                self.beat(who, [lease.id for lease in self.got[who]])
        self.clock_s = end_s

    def hello(
        self, who: str, *, leases: Sequence[Lease] = (), tickets: Sequence[Ticket] = (), last_seq: int | None = None
    ) -> int:
        if last_seq is None:
            last_seq = self.last_seq.get(who, 0)
        self.greetings += 1
        self.last_hello[who] = (self.greetings, last_seq, tuple(leases), tuple(tickets))
        session = self._hello(who, self.last_hello[who])
        self.callers[who] = Caller(who, session)
        return session

    def late_hello(self, who: str, said: Said) -> Any:
        """One that was said before arrives, or arrives again; what it answers nobody hears."""
        return self._hello(who, said)

    def _hello(self, who: str, said: Said) -> Any:
        greeting, *held = said
        return self._keep(who, self.harness.store.hello(who, *held, self.clock_s, greeting=greeting))

    def pass_by(self) -> None:
        """A step that does nothing but let the store see the time."""
        self.answer = self.harness.store.read(Caller("nobody", 0), self.clock_s)

    def bye(self, who: str) -> Any:
        return self._do(who, "bye")

    def beat(self, who: str, acked: Sequence[str] = (), heard: Sequence[str] = ()) -> Any:
        return self._do(who, "beat", tuple(acked), heard=tuple(heard))

    def read(self, who: str) -> Any:
        """What the stream brought, or Stale."""
        return self._do(who, "read") or self.answer.grants

    def ack(self, who: str, *lease_ids: str) -> Any:
        return self._do(who, "ack", lease_ids)

    def take(self, who: str, ticket: Ticket) -> Any:
        return self._do(who, "take", ticket)

    def widen(self, who: str, ticket_id: str, *targets: str) -> Any:
        return self._do(who, "widen", ticket_id, targets)

    def place_of(self, who: str, ticket_id: str) -> Any:
        return self._do(who, "place_of", ticket_id)

    def leave(self, who: str, ticket_id: str, tokens: int = 0) -> Any:
        return self._do(who, "leave", ticket_id, tokens=tokens)

    def give_back(self, who: str, lease: Lease | str, tokens: int = 0) -> Any:
        return self._do(who, "give_back", lease if isinstance(lease, str) else lease.id, tokens=tokens)

    def refuse(self, who: str, model: str, refusal: Refusal) -> Any:
        return self._do(who, "refuse", model, refusal)

    def set_limits(self, who: str, limits: Limits) -> Any:
        return self._do(who, "set_limits", limits)

    def lines(self, who: str) -> dict[str, LineView]:
        return {view.model: view for view in self._do(who, "lines")}

    def set_copy(self, who: str, report: CopyReport) -> Any:
        return self._do(who, "set_copy", report)

    def ready(self, who: str, node: str, *, slots: int = 1, weights: str = "w", keys: str = "m", **more: Any) -> Any:
        """A report of a ready copy, seen now; `keys` separated by spaces."""
        facts = {"incarnation": 1, "state": CopyState.READY, "num_ctx": 0, "seen_at_s": self.clock_s, **more}
        return self.set_copy(
            who, CopyReport(node=node, weights=weights, keys=tuple(keys.split()), slots=slots, **facts)
        )

    def drop_node(self, who: str, node: str, incarnation: int) -> Any:
        return self._do(who, "drop_node", node, incarnation)

    def incarnate(self, who: str, node: str, uid: str = "") -> Any:
        return self._do(who, "incarnate", node, uid)

    def lead(self, who: str, *, wants: bool = True) -> Any:
        return self._do(who, "lead", wants=wants)

    def begin(self, who: str, node: str, weights: str, *, loading: bool = True, epoch: int = 1) -> Any:
        return self._do(who, "begin", node, weights, loading=loading, epoch=epoch)

    def gate(self, who: str, node: str, weights: str | None, gate: Gate, until_s: float = float("inf")) -> Any:
        return self._do(who, "gate", node, weights, gate, until_s=until_s)

    def leases_on(self, node: str, weights: str = "w") -> int:
        return self.harness.leases_on(node, weights)

    def each(self, who: str, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The values of many alike, without a look between them; nobody is told of them."""
        return self.harness.each(self.callers[who], command, arguments, self.clock_s)

    def _do(self, who: str, command: str, *args: Any, **named: Any) -> Any:
        method = getattr(self.harness.store, command)
        return self._keep(who, method(self.callers[who], *args, self.clock_s, **named))

    def _keep(self, who: str, answer: Answer[Any]) -> Any:
        self.answer = answer
        self.last_seq[who] = answer.seq
        self.got.setdefault(who, []).extend(answer.grants)
        self.refused.setdefault(who, []).extend(answer.refusals)
        self.harness.check()
        return answer.value


def call(ticket_id: str, *targets: str, **more: Any) -> Ticket:
    """A ticket for the model `m`, or for those named."""
    if "excluded" in more:
        more["excluded"] = frozenset(more["excluded"].split())
    return Ticket(ticket_id, targets or ("m",), **more)
