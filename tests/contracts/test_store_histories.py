"""Random histories of several replicas: each store must behave as the model says, step by step.

Loss, repetition and delay are in the history itself: replicas fall silent, forget what they hold, send a command late
or twice, and the store freezes, jumps in time and loses writes.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from router.errors import LoadFailed
from router.fleet.node import CopyState
from router.fleet.tickets import CopyReport, Gate, Lease, Place, Priority, Ticket
from router.policy.limits import TeamLimits, TeamTable
from router.store.answers import Caller, Full, Gone, Limits, Refused, Stale
from tests.contracts.store_driver import HARNESSES, Pool, Said
from tests.contracts.store_model import Model

MAX_WAITING = 4
TEAMS = TeamTable(
    {
        "two": TeamLimits(weight=2.0, priority=Priority.HIGH),
        "half": TeamLimits(weight=0.5, max_concurrent=1),
        "few": TeamLimits(max_waiting=2, max_concurrent=2),
        "poor": TeamLimits(requests_per_minute=60, tokens_per_minute=9_600, tokens_per_day=86_400),
    }
)
REPLICAS = ("a", "b", "c")
NODES = ("n1", "n2")
KEYS_OF = {"w": ("m", "alias"), "v": ("k",), "u": ("alias", "k")}
KEYS = ("m", "alias", "k")

replicas = st.sampled_from(REPLICAS)
nodes = st.sampled_from(NODES)
weights = st.sampled_from(tuple(KEYS_OF))
targets = st.lists(st.sampled_from(KEYS), min_size=1, max_size=2).map(tuple)
excluded = st.sampled_from([frozenset[str]()] * 5 + [frozenset({"n1"}), frozenset({"n2"}), frozenset(NODES)])
contexts = st.sampled_from([0, 0, 0, 0, 4096, 8192])
picks = st.integers(0, 1_000)
tokens = st.sampled_from([0, 16, 500, 1_000, 4_000, 40_000])
wishes = st.fixed_dictionaries(
    {
        "targets": targets,
        "preferred": st.lists(st.sampled_from((*NODES, "gone")), max_size=2, unique=True).map(tuple),
        "excluded": excluded,
        "num_ctx": contexts,
        "names_no_ctx": st.sampled_from([False, False, True]),
        "team": st.sampled_from(["default", "default", "default", *TEAMS.by_name]),
        "priority": st.sampled_from([None, None, None, *Priority]),
        "estimate_tokens": tokens,
    }
)


class Histories(RuleBasedStateMachine):
    harness: ClassVar[str] = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(HARNESSES[self.harness](Limits(MAX_WAITING, teams=TEAMS), 1.0))
        self.model = Model(MAX_WAITING, TEAMS)
        self.seen: set[tuple[str, str]] = set()  # (run, lease id) of every grant that was judged
        self.greeted: set[str] = set()  # lives of the store in which somebody said hello
        self.run = ""
        self.made = 0
        self.reconnects = True
        self.saved: tuple[Any, Model] | None = None
        self.claimed: dict[str, dict[str, Lease]] = {name: {} for name in REPLICAS}  # what each believes it holds
        self.standing: dict[str, dict[str, Ticket]] = {name: {} for name in REPLICAS}
        self.old_tickets: list[tuple[str, Ticket]] = []
        self.old_leases: list[tuple[str, Lease]] = []
        self.hellos: dict[str, list[Said]] = {name: [] for name in REPLICAS}  # that it said

    # one step

    def do(self, who: str, command: str, *args: Any, **named: Any) -> tuple[Any, list[Lease]]:
        """The value, Stale where the model says so too, and the grants that the store made in this step."""
        self._let_time_work()
        if who in self.model.unheard and self._stale(who) is None:
            self.pool.read(who)
            self.model.enter(who)
            self.model.judge(self._new_grants())
        value = getattr(self.pool, command)(who, *args, **named)
        grants = self._new_grants()
        expected = self._stale(who)
        if expected is not None:
            assert value is expected
            self.model.judge(grants)
            if self.reconnects:
                self.hello(who, keeps=True)
            return value, grants
        assert not isinstance(value, Stale)
        self.model.enter(who)
        return value, grants

    def _let_time_work(self) -> None:
        """What time alone brings (settling ends, a gate goes half-open), in a step of its own."""
        self.pool.pass_by()
        self.model.tick(self.pool.clock_s)
        self.model.judge(self._new_grants())

    def _stale(self, who: str) -> Stale | None:
        if who not in self.model.heard:
            return Stale.REAPED
        is_old = self.model.sessions[who] != self.pool.callers[who].session
        return Stale.OLD_SESSION if is_old else None

    def _new_grants(self) -> list[Lease]:
        streams = self.pool.harness.streams().values()
        told = [*self.pool.answer.grants, *(news for stream in streams for news in stream)]
        fresh = [news for news in told if isinstance(news, Lease) and self._is_new(news)]
        for lease in self.pool.answer.grants:
            self._hears(lease)
        return fresh

    def _refused(self) -> set[str]:
        """Tickets of whose refusal anybody was or will be told."""
        streams = self.pool.harness.streams().values()
        told = [*self.pool.answer.refusals, *(news for stream in streams for news in stream)]
        return {news.ticket for news in told if isinstance(news, Refused)}

    def _is_new(self, lease: Lease) -> bool:
        mark = (self.pool.answer.run, lease.id)
        if mark in self.seen or self.model.find_lease(lease.id) is not None:
            return False
        self.seen.add(mark)
        return True

    def _hears(self, lease: Lease) -> None:
        who = lease.ticket[0]
        self.standing[who].pop(lease.ticket, None)
        self.claimed[who][lease.ticket] = lease

    def _after_take(self, who: str, ticket: Ticket, value: Any) -> None:
        if isinstance(value, Lease):
            self._hears(value)
            self.old_leases.append((who, value))
        elif isinstance(value, Place):
            self.standing[who][ticket.id] = ticket
        else:
            assert isinstance(value, Full | Refused | Gone | Stale)

    def _some(self, things: list[Any], pick: int) -> Any:
        return things[pick % len(things)]

    # replicas

    @initialize(slots=st.integers(1, 3))
    def join(self, slots: int) -> None:
        for name in REPLICAS:
            self.hello(name, keeps=True)
        self.pass_time(1.0)
        for node in NODES:
            self.incarnate("a", node, "")
            self.ready("b", node, "w", slots, 0, False)

    def hello(self, who: str, keeps: bool) -> None:
        """With all that it believes to hold, or as a process that forgot some of it."""
        leases = list(self.claimed[who].values())
        tickets = list(self.standing[who].values())
        if not keeps:
            leases, tickets = leases[::2], tickets[::2]
        self._let_time_work()
        went_back = self.pool.last_seq.get(who, 0) > self.pool.harness.store.seq
        session = self.pool.hello(who, leases=leases, tickets=tickets)
        self.hellos[who].append(self.pool.last_hello[who])
        # Before judging: what this step restored is no grant.
        is_new_life = self.pool.answer.run not in self.greeted
        self.greeted.add(self.pool.answer.run)
        self.model.hello(who, leases, tickets, settles=went_back or is_new_life)
        self.model.sessions[who] = session
        self.claimed[who] = {lease.ticket: lease for lease in leases}
        self.standing[who] = {ticket.id: ticket for ticket in tickets}
        self.refusals_are_told(who)
        self.model.judge(self._new_grants())

    @rule(who=replicas, acks=st.booleans())
    def beat(self, who: str, acks: bool) -> None:
        ids = [lease.id for lease in self.claimed[who].values()] if acks else []
        heard = [refused.ticket for refused in self.pool.refused[who]] if acks else []
        value, grants = self.do(who, "beat", ids, heard)
        if isinstance(value, Stale):
            return
        assert value == self.model.ack(who, ids)
        self.model.owed.get(who, set()).difference_update(heard)
        self.model.beat()
        self.model.judge(grants)
        self.model.forget()
        self.refusals_are_told(who)
        assert {lease.ticket for lease in self.pool.answer.grants} == self.model.unclaimed_by(who)

    def refusals_are_told(self, who: str) -> None:
        """Until it says that it heard them, and not for ever."""
        told = {refused.ticket for refused in self.pool.answer.refusals}
        assert told == self.model.owed_to(who)
        for ticket_id in told:
            self.standing[who].pop(ticket_id, None)

    def read(self, who: str) -> None:
        value, grants = self.do(who, "read")
        if not isinstance(value, Stale):
            self.model.judge(grants)

    def bye(self, who: str) -> None:
        value, grants = self.do(who, "bye")
        if not isinstance(value, Stale):
            self.claimed[who], self.standing[who] = {}, {}
            self.model.bye(who)
            self.model.judge(grants)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 1.0, 2.0, 100.0, -5.0]))
    def pass_time(self, seconds: float) -> None:
        self.pool.clock_s += seconds

    @rule(silent=st.sampled_from(("", "", *REPLICAS)), beats=st.integers(1, 7))
    def beats_go_on(self, silent: str, beats: int) -> None:
        """Of all replicas, or of all but one."""
        for _ in range(beats):
            self.pool.clock_s += 1.0
            for who in REPLICAS:
                if who != silent:
                    self.beat(who, acks=True)

    @rule(
        who=replicas,
        kind=st.sampled_from(["bye", "restart", "hello", "save", "save", "fail over", "old", "late", "read", "read"]),
    )
    def mishap(self, who: str, kind: str) -> None:
        if kind == "bye":
            self.bye(who)
        elif kind in ("hello", "restart"):
            self.hello(who, keeps=kind == "hello")
        elif kind == "save":
            self.saved = (self.pool.harness.snapshot(), copy.deepcopy(self.model))
        elif kind == "fail over" and self.saved is not None:
            self.fail_over(who, *self.saved)
        elif kind == "old":
            self.old_session_speaks(who)
        elif kind == "late":
            self.late_hello(who)
        else:
            self.read(who)

    def fail_over(self, who: str, store: Any, model: Model) -> None:
        self.pool.harness.fail_over(store)
        while self.pool.harness.store.run in self.greeted:
            self.pool.harness.store.run += "'"
        self.model = copy.deepcopy(model)
        for said in self.hellos.values():
            said.clear()  # of which the store may have forgotten that it heard them
        run = self.pool.harness.store.run
        for stream in self.pool.harness.streams().values():
            self.seen.update((run, news.id) for news in stream if isinstance(news, Lease))
        self.hello(who, keeps=True)

    def old_session_speaks(self, who: str) -> None:
        now = self.pool.callers[who]
        self.pool.callers[who] = Caller(who, now.session - 1)
        self.reconnects = False
        assert isinstance(self.do(who, "take", Ticket(f"{who}-late", ("m",)))[0], Stale)
        self.reconnects = True
        self.pool.callers[who] = now

    def late_hello(self, who: str) -> None:
        """The one that the store heard last, of a replica that lives, or an older one: nothing comes of it."""
        if who not in self.model.heard:
            return
        self._let_time_work()
        for said in self.hellos[who][-3:]:
            assert self.pool.late_hello(who, said) is Stale.OLD_SESSION
            self.model.judge(self._new_grants())

    # tickets

    @rule(who=replicas, wanted=st.lists(wishes, min_size=1, max_size=4))
    def take(self, who: str, wanted: list[dict[str, Any]]) -> None:
        for wish in wanted:
            self.made += 1
            ticket = Ticket(f"{who}{self.made}", **wish)
            self.old_tickets.append((who, ticket))
            self._take(who, ticket)

    @precondition(lambda self: self.old_tickets)
    @rule(pick=picks, more=st.sampled_from([0, 0, 1, 1, 2]), away=excluded)
    def take_again(self, pick: int, more: int, away: frozenset[str]) -> None:
        """Repeated, as a next attempt, or long after it left."""
        who, old = self._some(self.old_tickets, pick)
        ticket = old
        if more:
            ticket = replace(old, attempt=old.attempt + more, excluded=away)
            self.old_tickets.append((who, ticket))
        self._take(who, ticket)

    def _take(self, who: str, ticket: Ticket) -> None:
        value, grants = self.do(who, "take", ticket)
        self._after_take(who, ticket, value)
        if not isinstance(value, Stale):
            self.model.take(who, ticket, value, grants, self._refused())

    @precondition(lambda self: self.old_tickets)
    @rule(pick=picks, wants=targets)
    def widen(self, pick: int, wants: tuple[str, ...]) -> None:
        who, ticket = self._some(self.old_tickets, pick)
        value, grants = self.do(who, "widen", ticket.id, *wants)
        if not isinstance(value, Stale):
            self.model.widen(ticket.id, wants, value, grants)
        if isinstance(value, Lease):
            self._hears(value)

    @precondition(lambda self: self.old_tickets)
    @rule(pick=picks)
    def place_of(self, pick: int) -> None:
        who, ticket = self._some(self.old_tickets, pick)
        value, grants = self.do(who, "place_of", ticket.id)
        if not isinstance(value, Stale):
            self.model.judge(grants)
            self.model.place_of(ticket.id, value)

    @precondition(lambda self: self.old_tickets)
    @rule(pick=picks, used=tokens)
    def leave(self, pick: int, used: int) -> None:
        who, ticket = self._some(self.old_tickets, pick)
        self.standing[who].pop(ticket.id, None)
        self.claimed[who].pop(ticket.id, None)
        value, grants = self.do(who, "leave", ticket.id, tokens=used)
        if not isinstance(value, Stale):
            self.model.leave(ticket.id, used)
            self.model.judge(grants)

    @rule(who=replicas, picked=st.lists(picks, min_size=1, max_size=4), used=tokens)
    def give_back(self, who: str, picked: list[int], used: int) -> None:
        for pick in picked[: len(self.claimed[who])]:
            lease = self._some(list(self.claimed[who].values()), pick)
            del self.claimed[who][lease.ticket]
            self._give_back(who, lease, used)

    @precondition(lambda self: self.old_leases)
    @rule(pick=picks)
    def give_back_late_or_twice(self, pick: int) -> None:
        who, lease = self._some(self.old_leases, pick)
        if self.claimed[who].get(lease.ticket) == lease:
            del self.claimed[who][lease.ticket]
        self._give_back(who, lease, 100)

    def _give_back(self, who: str, lease: Lease, used: int) -> None:
        value, grants = self.do(who, "give_back", lease, tokens=used)
        if not isinstance(value, Stale):
            self.model.give_back(lease.id, used)
            self.model.judge(grants)

    @rule(who=replicas, model=st.sampled_from((*KEYS, None, None, None)))
    def refuse(self, who: str, model: str | None) -> None:
        if model is None:
            return
        value, grants = self.do(who, "refuse", model, LoadFailed("no"))
        if not isinstance(value, Stale):
            refused = self.model.refuse(model)
            assert value == len(refused)
            assert {news.ticket for news in self.pool.answer.refusals} <= set(refused)
            self.model.judge(grants)

    # nodes

    @rule(
        who=replicas,
        node=nodes,
        weights=weights,
        slots=st.integers(1, 3),
        num_ctx=st.sampled_from([0, 0, 4096, 8192]),
        is_named=st.booleans(),
    )
    def ready(self, who: str, node: str, weights: str, slots: int, num_ctx: int, is_named: bool) -> None:
        """A fresh probe of a healthy node."""
        number = self.model.node(node).number
        facts = (number, weights, KEYS_OF[weights], CopyState.READY, slots, num_ctx, self.model.now)
        self._set_copy(who, CopyReport(node, *facts, named_ctx=num_ctx if is_named else 0))

    @rule(who=replicas, node=nodes, slots=st.integers(1, 3))
    def heals(self, who: str, node: str, slots: int) -> None:
        self._gate(who, node, None, Gate.OPEN, 0.0)
        for name in KEYS_OF:
            self._gate(who, node, name, Gate.OPEN, 0.0)
        self.incarnate(who, node, "")
        self.ready(who, node, "w", slots, 0, False)

    @rule(rounds=st.lists(st.tuples(replicas, picks, wishes), min_size=3, max_size=12), node=nodes)
    def rush(self, rounds: list[tuple[str, int, dict[str, Any]]], node: str) -> None:
        """Calls come and go while all is well."""
        self.heals(rounds[0][0], node, 1 + rounds[0][1] % 2)
        for who, pick, wish in rounds:
            self.take(who, [{**wish, "num_ctx": 0, "names_no_ctx": False}])
            if pick % 3 == 0:
                self.give_back(REPLICAS[pick % len(REPLICAS)], [pick], 50 * pick)
            if pick % 5 == 0:
                self.beat(who, acks=True)
        for who, pick, _ in rounds:
            self.give_back(who, [pick], 10 * pick)

    @rule(
        who=replicas,
        node=nodes,
        weights=weights,
        state=st.sampled_from(CopyState),
        slots=st.integers(0, 3),
        ago_s=st.sampled_from([0.0, 0.0, 0.5, 3.0, -100.0]),
        behind=st.sampled_from([0, 0, 0, 1, -1]),
        is_probe=st.booleans(),
    )
    def odd_report(self, who: str, node: str, weights: str, ago_s: float, behind: int, **facts: Any) -> None:
        number = self.model.node(node).number - behind
        self._set_copy(
            who,
            CopyReport(node, number, weights, KEYS_OF[weights], num_ctx=0, seen_at_s=self.model.now - ago_s, **facts),
        )

    def _set_copy(self, who: str, report: CopyReport) -> None:
        value, grants = self.do(who, "set_copy", report)
        if not isinstance(value, Stale):
            self.model.set_copy(who, report)
            self.model.judge(grants)

    @rule(
        who=replicas, node=nodes, uid=st.sampled_from(["", "", "", "x", "y"]), downs=st.sampled_from([None, None, 0, 1])
    )
    def goes_down_or_up(self, who: str, node: str, uid: str, downs: int | None) -> None:
        if downs is None:
            self.incarnate(who, node, uid)
            return
        incarnation = self.model.node(node).number - downs
        value, grants = self.do(who, "drop_node", node, incarnation)
        if not isinstance(value, Stale):
            self.model.drop_node(node, incarnation)
            self.model.judge(grants)

    def incarnate(self, who: str, node: str, uid: str) -> None:
        value, grants = self.do(who, "incarnate", node, uid)
        if not isinstance(value, Stale):
            assert value == self.model.incarnate(node, uid)
            self.model.judge(grants)

    @rule(who=replicas, node=nodes, weights=weights, loading=st.booleans(), epoch=st.integers(1, 3), ends=st.booleans())
    def load(self, who: str, node: str, weights: str, loading: bool, epoch: int, ends: bool) -> None:
        value, grants = self.do(who, "begin", node, weights, loading=loading, epoch=epoch)
        if isinstance(value, Stale):
            return
        assert value == self.model.begin(who, node, weights, loading=loading, epoch=epoch)
        self.model.judge(grants)
        if value and ends:
            number, state = self.model.node(node).number, CopyState.READY if loading else CopyState.ON_DISK
            self._set_copy(
                who, CopyReport(node, number, weights, KEYS_OF[weights], state, 2, 4096, self.model.now, is_probe=False)
            )

    @rule(
        who=replicas,
        node=nodes,
        weights=st.one_of(st.none(), weights),
        gate=st.sampled_from([Gate.OPEN, Gate.OPEN, Gate.OPEN, *Gate]),
        in_s=st.sampled_from([-1.0, 2.0, 2.0, 1_000.0]),
    )
    def gate(self, who: str, node: str, weights: str | None, gate: Gate, in_s: float) -> None:
        self._gate(who, node, weights, gate, self.model.now + in_s)

    def _gate(self, who: str, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        value, grants = self.do(who, "gate", node, weights, gate, until_s)
        if not isinstance(value, Stale):
            self.model.gate(node, weights, gate, until_s)
            self.model.judge(grants)


# A step over a socket takes twenty times as long as one in memory.
EXAMPLES = {"memory": 120, "valkey": 25, "redis": 10, "sentinel": 5, "cluster": 5}


@pytest.mark.parametrize("harness", HARNESSES)
def test_random_histories_agree_with_the_model(harness: str) -> None:
    machine = type("Histories", (Histories,), {"harness": harness})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[harness],
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            report_multiple_bugs=False,
        ),
    )
