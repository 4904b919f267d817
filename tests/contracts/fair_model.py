"""Fair queueing and team limits once more, slowly: every question is answered by looking at everybody who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from router.fleet.tickets import Lease, Priority, Ticket
from router.policy.fair_queue import AGING_GRANTS, AGING_S, LOOKAHEAD, LOOKAHEAD_TOKENS
from router.policy.limits import TeamLimits, TeamTable
from router.policy.shares import DEBT_MAX_TOKENS

DUE = 0


@dataclass
class Held:
    """A ticket that is at the store."""

    ticket: Ticket
    replica: str
    arrival: int
    keys: list[str]
    limits: TeamLimits
    lease: Lease | None = None
    unclaimed_since: float | None = None
    is_due: bool = False
    passes: int = 0

    @property
    def lane(self) -> int:
        asked = self.limits.priority if self.ticket.priority is None else self.ticket.priority
        return (
            DUE
            if self.is_due
            else {Priority.HIGH: 1, Priority.NORMAL: 2, Priority.LOW: 3}[min(asked, self.limits.priority)]
        )

    @property
    def band(self) -> int:
        asked = self.limits.priority if self.ticket.priority is None else self.ticket.priority
        return int(min(asked, self.limits.priority))

    @property
    def order(self) -> tuple[bool, int]:
        return (not self.is_due, self.arrival)

    @property
    def cost(self) -> int:
        return max(1, self.ticket.estimate_tokens)


@dataclass
class Aging:
    since: float = 0.0
    passed: int = 0


@dataclass
class Purse:
    limit: int
    per_s: float
    left: float
    at: float


@dataclass
class FairModel:
    table: TeamTable
    used: dict[str, float] = field(default_factory=dict)
    level: float = 0.0
    groups: dict[str, int] = field(default_factory=dict)  # keys with the same number share a front
    times: dict[tuple[int, int], float] = field(default_factory=dict)  # by group and band
    offsets: dict[tuple[int, int, str], float] = field(default_factory=dict)
    payers: dict[str, str | tuple[int, int, str]] = field(default_factory=dict)  # by ticket: its team, here or in all
    aging: dict[tuple[str, int], Aging] = field(default_factory=dict)  # by key and lane
    purses: dict[str, list[Purse]] = field(default_factory=dict)  # requests first, where limited
    made: int = 0

    # accounts and fronts

    def know(self, team: str, now: float) -> TeamLimits:
        limits = self.table.of(team)
        if team not in self.used:
            self.used[team] = self.level - DEBT_MAX_TOKENS
            amounts = (
                (limits.requests_per_minute, 60),
                (limits.tokens_per_minute, 60),
                (limits.tokens_per_day, 86_400),
            )
            self.purses[team] = [Purse(limit, limit / per, limit, now) for limit, per in amounts if limit is not None]
        return limits

    def charge(self, team: str, tokens: float) -> None:
        self.used[team] += tokens / self.table.of(team).weight

    def serve(self, held: Held, key: str, waiting: Sequence[Held], *, is_waited_for: bool) -> None:
        team = held.ticket.team
        if is_waited_for:
            self.payers[held.ticket.id] = team
            self.level = max(self.level, self.used[team])
        elif not held.is_due:
            self.enter(held, key, waiting)
            self.payers[held.ticket.id] = (self.group(key), held.band, team)
        self._pay(held, held.cost)

    def correct(self, held: Held, tokens: int) -> None:
        """What it truly cost, in place of what it was charged."""
        self._pay(held, tokens - held.cost)
        self.payers.pop(held.ticket.id, None)

    def _pay(self, held: Held, tokens: float) -> None:
        payer = self.payers.get(held.ticket.id)
        if isinstance(payer, str):
            self.charge(payer, tokens)
        elif payer in self.offsets:
            self.offsets[payer] += tokens / self.table.of(payer[2]).weight

    def group(self, key: str) -> int:
        if key not in self.groups:
            self.made += 1
            self.groups[key] = self.made
        return self.groups[key]

    def join(self, keys: Sequence[str]) -> None:
        into = self.group(keys[0])
        for key in keys[1:]:
            old = self.groups.get(key, into)
            self.groups[key] = into
            if old == into:
                continue
            for name in self.groups:
                if self.groups[name] == old:
                    self.groups[name] = into
            for group, band, team in list(self.offsets):
                if group == old:
                    shift = self.times.get((into, band), 0.0) - self.times.get((old, band), 0.0)
                    moved = self.offsets.pop((group, band, team)) + shift
                    self.offsets[into, band, team] = max(moved, self.offsets.get((into, band, team), moved))
                    self.payers = {key: payer for key, payer in self.payers.items() if payer != (group, band, team)}

    def forget(self, is_needed: Callable[[str], bool]) -> None:
        self.groups = {key: group for key, group in self.groups.items() if is_needed(key)}

    def tag(self, held: Held, key: str) -> float:
        team = held.ticket.team
        return 0.0 if held.is_due else self.used[team] + self.offsets[self.group(key), held.band, team]

    def enter(self, held: Held, key: str, waiting: Iterable[Held]) -> None:
        """`waiting`: everybody else, and itself as far as it stands already."""
        if held.is_due:
            return
        group, band, team = self.group(key), held.band, held.ticket.team
        mine = [other for other in waiting if (other.ticket.team, other.band, other.is_due) == (team, band, False)]
        if any(self.group(name) == group for other in mine for name in other.keys):
            return
        time, used = self.times.get((group, band), 0.0), self.used[team]
        if (group, band, team) in self.offsets:
            behind = used + self.offsets[group, band, team] - time
        else:
            behind = used - self.level + DEBT_MAX_TOKENS
        self.offsets[group, band, team] = time + min(DEBT_MAX_TOKENS, max(0.0, behind)) - used

    def stand(self, held: Held, keys: Iterable[str], waiting: Sequence[Held], now: float) -> None:
        """In these lines one after the other; `held.keys` grows by each."""
        for key in keys:
            if not any(key in other.keys and other.lane == held.lane for other in waiting):
                self.aging[key, held.lane] = Aging(now)
            self.enter(held, key, [*waiting, held])
            held.keys.append(key)

    def advance(self, held: Held, key: str, tag: float) -> None:
        if not held.is_due:
            place = (self.group(key), held.band)
            self.times[place] = max(self.times.get(place, 0.0), tag)

    # turns

    def turn(
        self, keys: Iterable[str], node: str, waiting: Sequence[Held], may_go: Callable[[Held], bool], now: float
    ) -> tuple[Held, list[Held], str] | None:
        """Who gets a slot that these keys wait for, who is before it in fair order, and in which line."""
        found = []
        for key in keys:
            line = [held for held in waiting if key in held.keys]
            for held in line:
                if may_go(held):
                    queue = [
                        other for other in line if (other.lane, other.ticket.team) == (held.lane, held.ticket.team)
                    ]
                    head = min(other.order for other in queue)
                    rank = (self.tag(held, key), head, held.ticket.team)
                    found.append((self._precedence(key, held.lane, now), rank, held.order, key, held))
        if not found:
            return None
        # `key` only tells apart what is the same in all that counts: the first of the copy's names wins then.
        names = list(keys)
        _, rank, _, key, fairest = min(found, key=lambda each: (*each[:3], names.index(each[3])))
        lane = [each for each in found if each[3] == key and each[4].lane == fairest.lane]
        if fairest.is_due:
            return fairest, [], key
        ordered = self._first_in_order([(each[1], each[4]) for each in lane], rank[0] + LOOKAHEAD_TOKENS)
        for index, held in enumerate(ordered):
            before = ordered[:index]
            if held.ticket.preferred[:1] == (node,) and all(other.passes < LOOKAHEAD for other in before):
                return held, before, key
        return fairest, [], key

    def _precedence(self, key: str, lane: int, now: float) -> tuple[int, float]:
        aging = self.aging[key, lane]
        if lane == DUE:
            return (0, 0.0)
        if aging.passed >= AGING_GRANTS and now - aging.since >= AGING_S:
            return (1, aging.since)
        return (1 + lane, 0.0)

    def _first_in_order(
        self, lane: list[tuple[tuple[float, tuple[bool, int], str], Held]], tag_max: float
    ) -> list[Held]:
        """Serves them on paper."""
        teams = sorted({rank for rank, _ in lane if rank[0] <= tag_max})[:LOOKAHEAD]
        queues = {
            rank[2]: sorted((held for r, held in lane if r == rank), key=lambda held: held.order) for rank in teams
        }
        tags = {rank[2]: rank[:2] for rank in teams}
        ordered: list[Held] = []
        while len(ordered) < LOOKAHEAD and any(queues.values()):
            team = min((name for name in queues if queues[name]), key=lambda name: tags[name])
            if tags[team][0] > tag_max:
                break
            held = queues[team].pop(0)
            ordered.append(held)
            if queues[team]:
                tags[team] = (tags[team][0] + held.cost / held.limits.weight, queues[team][0].order)
        return ordered

    def granted(self, held: Held, before: list[Held], key: str, copy_keys: Iterable[str], now: float) -> None:
        for other in before:
            other.passes += 1
        fairest = before[0] if before else held
        self.advance(fairest, key, self.tag(fairest, key))
        for (name, lane), aging in self.aging.items():
            if name in copy_keys and DUE < held.lane < lane:
                aging.passed += 1
        self.aging[key, held.lane] = Aging(now)

    # places

    def position(self, held: Held, waiting: Sequence[Held], is_held_back: Callable[[str], bool]) -> int:
        """From 1, by serving everybody who comes before at this ticket's own cost."""
        key, team = held.keys[0], held.ticket.team
        line = [other for other in waiting if key in other.keys]
        others = [other for other in line if other.ticket.team != team and not is_held_back(other.ticket.team)]
        own = [other for other in line if other.ticket.team == team]
        before = sum(other.lane == held.lane and other.order < held.order for other in own)
        count = before + sum(other.lane < held.lane for other in others)
        count += 0 if is_held_back(team) else sum(other.lane < held.lane for other in own)
        others = [other for other in others if other.lane == held.lane]
        if held.is_due:
            return 1 + count + sum(other.order < held.order for other in others)
        mine = self.tag(held, key) + before * held.cost / held.limits.weight
        for name in {other.ticket.team for other in others}:
            queue = [other for other in others if other.ticket.team == name]
            head = min(other.order for other in queue)
            for index in range(len(queue)):
                tag = self.tag(queue[0], key) + index * held.cost / queue[0].limits.weight
                count += (tag, head) < (mine, held.order)
        return 1 + count

    # full lines

    def victim(self, key: str, newcomer: Held, waiting: Sequence[Held]) -> Held | None:
        line = [held for held in waiting if key in held.keys]
        shares: dict[str, float] = {}
        for held in line:
            shares[held.ticket.team] = shares.get(held.ticket.team, 0.0) + 1 / held.limits.weight
        share, team = max(((share, name) for name, share in shares.items()), default=(0.0, ""))
        if share <= shares.get(newcomer.ticket.team, 0.0) + 1 / newcomer.limits.weight:
            return None
        newest = [held for held in line if held.ticket.team == team and not held.is_due]
        return max(newest, key=lambda held: held.arrival, default=None)

    # budgets

    def admits(self, ticket: Ticket, now: float) -> bool:
        limits, purses = self.table.of(ticket.team), self.purses[ticket.team]
        has_requests = limits.requests_per_minute is not None
        for purse in purses:
            purse.left = min(purse.limit, purse.left + (now - purse.at) * purse.per_s)
            purse.at = now
        wants = [1 if has_requests and index == 0 else ticket.estimate_tokens for index in range(len(purses))]
        if any(purse.left < min(want, purse.limit) for purse, want in zip(purses, wants, strict=True)):
            return False
        for purse, want in zip(purses, wants, strict=True):
            purse.left -= want
        return True

    def book(self, team: str, tokens: int, requests: int = 0) -> None:
        has_requests = self.table.of(team).requests_per_minute is not None
        for index, purse in enumerate(self.purses[team]):
            amount = requests if has_requests and index == 0 else tokens
            purse.left = min(purse.limit, purse.left - amount)
