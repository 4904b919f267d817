"""What teams were served, and where that puts them: the accounts, virtual times and tags of start-time fair queueing.

One account per team in the pool: whatever it is charged, in any line, moves its tag in every line in which it stands.
It is charged for slots that others waited for. One that would have stood idle moves its tag where it was used, and
there only: it took nothing from anybody, but whoever comes there next is to have the next turn.
What is *not* one for the pool is the front, the virtual time at which a newcomer starts. Lines move at different
speeds: a newcomer to a slow line that started where the fastest one is would wait until everybody there has caught up
with a line in which they do not stand. So each line has its front, or all names that share a copy, since their tickets
wait for the same slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

# What a team used while it did not stand in a line puts it at most so far behind the others there: a call that fills a
# common context (32 Ki) is paid for in full, and a night alone in the pool does not cost it the morning.
DEBT_MAX_TOKENS = 32_768.0
COST_MIN_TOKENS = 1  # a call that made no token had a slot all the same

BANDS = 3


class Ranked(Protocol):
    """A team's tickets in one lane of one line, sorted among others by their tag."""

    standing: Standing | None
    rank: tuple[float, int, str] | None
    count: int

    @property
    def tag(self) -> float: ...

    @property
    def head(self) -> int: ...

    def firsts(self) -> list[int]: ...

    def rerank(self) -> None: ...


class Account:
    """What a team was charged in the pool, in tokens over its weight. Owns nothing of the queues it moves."""

    __slots__ = ("is_held", "name", "queues", "used", "weight")

    def __init__(self, name: str, weight: float, used: float) -> None:
        assert weight > 0.0, "a team without a weight would be charged without end"
        self.name = name
        self.weight = weight
        self.used = used
        self.is_held = False  # at its own limit of running calls: skipped by fairness
        self.queues: dict[Ranked, None] = {}  # in which it waits

    def __repr__(self) -> str:
        return f"<Account {self.name} {self.used:.0f} used | weight {self.weight:g} | {len(self.queues)} queues>"

    def charge(self, tokens: float) -> None:
        """Negative where an estimate was too high."""
        if tokens:
            self.used += tokens / self.weight
            self._rerank()

    def hold(self, is_held: bool) -> None:
        if is_held is not self.is_held:
            self.is_held = is_held
            self._rerank()

    def _rerank(self) -> None:
        for queue in self.queues:
            queue.rerank()


class Standing:
    """A team at one front: its tag there is its account, moved by what it was spared or let off when it came."""

    __slots__ = ("account", "offset", "waiting")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.offset = 0.0
        self.waiting = 0  # its tickets in the lines of this front

    @property
    def tag(self) -> float:
        return self.account.used + self.offset

    def charge(self, tokens: float) -> None:
        """Here, and nowhere else."""
        if tokens:
            self.offset += tokens / self.account.weight
            for queue in self.account.queues:
                if queue.standing is self:
                    queue.rerank()


class Front:
    """Virtual time of one band of one line, or of all lines that share a copy: the highest tag that was served."""

    __slots__ = ("standings", "time")

    def __init__(self) -> None:
        self.time = 0.0
        self.standings: dict[str, Standing] = {}

    def serve(self, tag: float) -> None:
        self.time = max(self.time, tag)


Fronts = tuple[Front, ...]  # one for each band


class Shares:
    """All accounts and fronts of a pool."""

    __slots__ = ("_fronts", "accounts", "level")

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.level = 0.0  # the account of whoever was served most
        self._fronts: dict[str, Fronts] = {}  # by model key

    def account(self, name: str, weight: float) -> Account:
        """A team nobody knows starts as one that owes nothing, see `enter`."""
        found = self.accounts.get(name)
        if found is None:
            found = self.accounts[name] = Account(name, weight, self.level - DEBT_MAX_TOKENS)
        return found

    def front(self, key: str, band: int) -> Front:
        """Bands count from the highest, 0."""
        found = self._fronts.get(key)
        if found is None:
            found = self._fronts[key] = tuple(Front() for _ in range(BANDS))
        return found[band]

    def enter(self, front: Front, account: Account) -> Standing:
        """The team's head gets its tag: not before the front, and at most DEBT_MAX_TOKENS behind it.

        Who never stood here is behind by what it used elsewhere, measured against who was served most.
        """
        standing = front.standings.get(account.name)
        if standing is None:
            standing = front.standings[account.name] = Standing(account)
            tag = front.time + account.used - (self.level - DEBT_MAX_TOKENS)
        elif standing.waiting:
            return standing
        else:
            tag = account.used + standing.offset
            if front.time <= tag <= front.time + DEBT_MAX_TOKENS:
                return standing
        standing.offset = min(max(tag, front.time), front.time + DEBT_MAX_TOKENS) - account.used
        return standing

    def serve(self, account: Account, tokens: int) -> None:
        """Charged when the slot is given; corrected when the true use is known."""
        self.level = max(self.level, account.used)
        account.charge(tokens)

    def join(self, keys: Iterable[str]) -> None:
        """These names share slots from now on, hence one front: who is first of one is first of all."""
        first, *others = dict.fromkeys(keys)
        joined = [self.front(first, band) for band in range(BANDS)]
        for key in others:
            fronts = self._fronts.get(key)
            if fronts is None:
                self._fronts[key] = self._fronts[first]
            elif fronts[0] is not joined[0]:
                for into, front in zip(joined, fronts, strict=True):
                    _merge(into, front)
                for name in [name for name, found in self._fronts.items() if found is fronts]:
                    self._fronts[name] = self._fronts[first]

    def forget(self, is_needed: Iterable[str], idle: Iterable[str]) -> None:
        """Keeps the fronts of these keys only; drops these accounts, which have nothing waiting and nothing running."""
        needed = set(is_needed)
        self._fronts = {key: fronts for key, fronts in self._fronts.items() if key in needed}
        for name in idle:
            del self.accounts[name]
            for fronts in self._fronts.values():
                for front in fronts:
                    front.standings.pop(name, None)


def _merge(into: Front, front: Front) -> None:
    """Two virtual times become one: what counts is how far a team is behind its front."""
    shift = into.time - front.time
    for name, standing in front.standings.items():
        # Made anew: what a running call still owes to the front that is gone is let go, in every store.
        kept = into.standings.get(name)
        offset = standing.offset + shift
        if kept is None:
            kept = into.standings[name] = Standing(standing.account)
            kept.offset = offset
        kept.offset = max(kept.offset, offset)
        kept.waiting += standing.waiting
        for queue in standing.account.queues:
            if queue.standing is standing:
                queue.standing = kept
        for queue in standing.account.queues:
            queue.rerank()
