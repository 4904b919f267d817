"""Who of a line is next: strict bands with aging, in a band the team with the lowest tag, in a team who came first.

A line keeps one queue per team and lane, sorted by the team's tag. Each queue is split by *kind*, by what decides which
copies a ticket may use, so that a copy is asked once for all tickets alike: a choice looks at no more than the kinds of
the teams before the one that it finds. Kinds are few: by replica, by context that clients name, by nodes that failed a
call. All else is a binary search; a list's insertion moves eight bytes an element.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, merge
from typing import NamedTuple

from router.policy.shares import BANDS, Account, Standing

# A band that waits is served after so many seconds and so many grants to higher bands since it was served last: the
# time keeps bands strict while all is well, the count keeps a slow line from serving every band alike.
AGING_S = 10.0
AGING_GRANTS = 4
# A node's prompt cache holds a few conversations: further down the line nobody's is still warm when its turn comes.
LOOKAHEAD = 8
LOOKAHEAD_TOKENS = 8_192.0  # and no ticket is drawn ahead of others that are more than a few calls fairer

DUE = 0  # the lane of tickets that were served before and come again: their turn has been
LANES = 1 + BANDS


class Kind(NamedTuple):
    """What decides where a ticket may go, besides its models."""

    replica: str
    excluded: frozenset[str]
    num_ctx: int
    names_no_ctx: bool


class Spot(NamedTuple):
    """Where a ticket stands in each of its lines."""

    order: int  # unique in the pool; smaller for those who came before
    kind: Kind
    lane: int


Fits = Callable[[Kind], bool]
Rank = tuple[float, int, str]  # tag, head, team


class TeamQueue:
    """One team's tickets in one lane, by order number, the oldest first."""

    __slots__ = ("account", "count", "kinds", "lane", "rank", "standing")

    def __init__(self, account: Account, lane: Lane, standing: Standing | None) -> None:
        self.account = account
        self.lane = lane
        self.standing = standing  # None for those who are due
        self.kinds: dict[Kind, list[int]] = {}
        self.count = 0
        self.rank: Rank | None = None  # as in the lane; None while the team is held back

    @property
    def tag(self) -> float:
        return 0.0 if self.standing is None else self.standing.tag

    @property
    def head(self) -> int:
        return min([orders[0] for orders in self.kinds.values()])

    def add(self, order: int, kind: Kind) -> None:
        orders = self.kinds.get(kind)
        if orders is None:
            orders = self.kinds[kind] = []
        insort(orders, order)
        self.count += 1
        self.rerank()

    def remove(self, order: int, kind: Kind) -> None:
        orders = self.kinds[kind]
        index = bisect_left(orders, order)
        assert orders[index] == order, "removed twice, or never stood here"
        del orders[index]
        self.count -= 1
        if not orders:
            del self.kinds[kind]
        self.rerank()

    def rerank(self) -> None:
        if self.count and not self.account.is_held:
            rank = (self.tag, self.head, self.account.name)
            if rank != self.rank:
                self._unrank()
                self.rank = rank
                insort(self.lane.ranks, rank)
        else:
            self._unrank()

    def _unrank(self) -> None:
        if self.rank is not None:
            del self.lane.ranks[bisect_left(self.lane.ranks, self.rank)]
            self.rank = None

    def change(self, order: int, old: Kind, new: Kind) -> None:
        self.remove(order, old)
        self.add(order, new)

    def firsts(self) -> list[int]:
        """Of each kind."""
        return [orders[0] for orders in self.kinds.values()]

    def first(self, fits: Fits) -> int | None:
        return min([orders[0] for kind, orders in self.kinds.items() if fits(kind)], default=None)

    def fitting(self, fits: Fits) -> Iterator[int]:
        alike = [orders for kind, orders in self.kinds.items() if fits(kind)]
        return iter(alike[0]) if len(alike) == 1 else merge(*alike)

    def before(self, order: int) -> int:
        return sum(bisect_left(orders, order) for orders in self.kinds.values())


class Lane:
    """One band of one line."""

    __slots__ = ("passed", "queues", "ranks", "since_s")

    def __init__(self) -> None:
        self.queues: dict[str, TeamQueue] = {}  # by team
        self.ranks: list[Rank] = []  # of the teams that are not held back, the fairest first
        self.since_s = 0.0  # when it was served last, or was empty
        self.passed = 0  # grants to higher bands since then

    def is_aged(self, now_s: float) -> bool:
        return self.passed >= AGING_GRANTS and now_s - self.since_s >= AGING_S


class Choice(NamedTuple):
    """Comparable over the lines that one copy serves: the smallest is next."""

    precedence: int  # due, aged, then the bands
    since_s: float  # of an aged lane
    rank: Rank
    order: int
    lane: int


class FairQueue:
    """The tickets of one line, by order number."""

    __slots__ = ("_lanes", "_shares", "counts", "depth")

    def __init__(self) -> None:
        self._lanes = tuple(Lane() for _ in range(LANES))
        self.depth = 0
        self.counts: dict[str, int] = {}  # by team
        self._shares: list[tuple[float, str]] = []  # tickets over weight, by team, ascending

    def add(self, spot: Spot, account: Account, standing: Standing | None, now_s: float) -> None:
        chosen = self._lanes[spot.lane]
        queue = chosen.queues.get(account.name)
        if queue is None:
            if not chosen.queues:
                chosen.since_s, chosen.passed = now_s, 0
            queue = chosen.queues[account.name] = TeamQueue(account, chosen, standing)
            account.queues[queue] = None
        queue.add(spot.order, spot.kind)
        self._count(account, 1)

    def remove(self, spot: Spot, account: Account) -> None:
        queues = self._lanes[spot.lane].queues
        queue = queues[account.name]
        queue.remove(spot.order, spot.kind)
        if not queue.count:
            del queues[account.name]
            del account.queues[queue]
        self._count(account, -1)

    def change(self, spot: Spot, kind: Kind, account: Account) -> None:
        """A ticket may use other copies now; it stands where it stood."""
        self._lanes[spot.lane].queues[account.name].change(spot.order, spot.kind, kind)

    def orders(self) -> Iterator[int]:
        """All of them, by lane and team."""
        for lane in self._lanes:
            for queue in lane.queues.values():
                for orders in queue.kinds.values():
                    yield from orders

    def ranked(self) -> Iterator[TeamQueue]:
        """Those that are not held back, by lane, the fairest first."""
        for lane in self._lanes:
            for _, _, name in lane.ranks:
                yield lane.queues[name]

    # who is next

    def first(self, fits: Fits, now_s: float) -> Choice | None:
        best: Choice | None = None
        for index, lane in enumerate(self._lanes):
            if not lane.ranks:
                continue
            is_aged = index != DUE and lane.is_aged(now_s)
            if best is not None and (best.lane == DUE or not is_aged):
                continue
            for rank in lane.ranks:
                order = lane.queues[rank[2]].first(fits)
                if order is not None:
                    found = Choice(1, lane.since_s, rank, order, index) if is_aged else _plain(index, rank, order)
                    best = found if best is None else min(best, found)
                    break
        return best

    def window(self, first: Choice, fits: Fits, cost: Callable[[int], float]) -> Iterator[int]:
        """The first LOOKAHEAD tickets of this choice's lane in fair order, `first` included, within LOOKAHEAD_TOKENS.

        `cost` is what a ticket moves its team's tag by. `first` must be this queue's own, of this very moment.
        """
        lane = self._lanes[first.lane]
        tag_max = first.rank[0] + LOOKAHEAD_TOKENS
        teams: list[tuple[float, int, int, Iterator[int]]] = []
        for tag, head, name in lane.ranks:
            if tag > tag_max or len(teams) == LOOKAHEAD:
                break
            orders = lane.queues[name].fitting(fits)
            order = next(orders, None)
            if order is not None:
                teams.append((tag, head, order, orders))
        heapify(teams)
        for _ in range(LOOKAHEAD):
            if not teams or teams[0][0] > tag_max:
                return
            tag, _, order, orders = heappop(teams)
            yield order
            following = next(orders, None)
            if following is not None:
                heappush(teams, (tag + cost(order), following, following, orders))

    def is_waited_for(self, name: str) -> bool:
        """By another team than this one, and not only by those that are held back."""
        return any(rank[2] != name for lane in self._lanes for rank in lane.ranks[:2])

    def served(self, lane: int, now_s: float) -> None:
        """Somebody of this lane got a slot."""
        self._lanes[lane].since_s = now_s
        self._lanes[lane].passed = 0

    def passed_over(self, lane: int) -> None:
        """A slot that this line waits for went to this lane, here or in another line."""
        if lane != DUE:
            for lower in self._lanes[lane + 1 :]:
                lower.passed += 1

    # where one stands

    def ahead(self, spot: Spot, account: Account, cost: float) -> int:
        """How many come before, if every call cost what this one does and no band aged. Held-back teams do not count.

        Walks the teams before it in its lane, not their tickets.
        """
        order, _, lane = spot
        own = self._lanes[lane].queues[account.name]
        before = own.before(order)
        count = before
        for above in self._lanes[:lane]:
            count += sum(above.queues[name].count for _, _, name in above.ranks)
        ranked, queues = self._lanes[lane].ranks, self._lanes[lane].queues
        if lane == DUE:
            return count + sum(queues[name].before(order) for _, _, name in ranked if name != account.name)
        own_tag = own.tag + before * cost / account.weight
        for tag, head, name in ranked:
            if tag > own_tag:
                break
            queue = queues[name]
            if queue is not own:
                # Its calls before that tag, and the one at that tag if its head came first.
                calls = (own_tag - tag) * queue.account.weight / cost
                whole = int(calls)
                whole += whole < calls or head < order
                count += min(whole, queue.count)
        return count

    # who has too much of it

    def most_over(self, account: Account) -> str | None:
        """The team with more than its share of a full line, None if this one would have the most with one more."""
        share, name = self._shares[-1]
        return name if share > (self.counts.get(account.name, 0) + 1) / account.weight else None

    def newest(self, name: str) -> int | None:
        """Of a team's tickets; None where all of them have been served before."""
        queues = [queue for lane in self._lanes[DUE + 1 :] if (queue := lane.queues.get(name)) is not None]
        return max([orders[-1] for queue in queues for orders in queue.kinds.values()], default=None)

    def reweigh(self, account: Account, weight: float) -> None:
        """Before the account's own weight is changed to this one."""
        count = self.counts.get(account.name, 0)
        if count:
            del self._shares[bisect_left(self._shares, (count / account.weight, account.name))]
            insort(self._shares, (count / weight, account.name))

    def _count(self, account: Account, change: int) -> None:
        name, count = account.name, self.counts.get(account.name, 0)
        if count:
            del self._shares[bisect_left(self._shares, (count / account.weight, name))]
        count += change
        if count:
            self.counts[name] = count
            insort(self._shares, (count / account.weight, name))
        else:
            del self.counts[name]
        self.depth += change


def _plain(lane: int, rank: Rank, order: int) -> Choice:
    return Choice(0 if lane == DUE else 1 + lane, 0.0, rank, order, lane)
