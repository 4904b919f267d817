"""What a team may use: its limits, and the token buckets that count against them. Time is store time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.errors import Allowance, Allowances, RateLimited
from router.fleet.tickets import Priority

MINUTE_S = 60.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class TeamLimits:
    """None is no limit. Above `max_concurrent` calls wait; above the others they are refused."""

    weight: float = 1.0
    priority: Priority = Priority.NORMAL  # the highest band that its calls may ask for, and their band if they do not
    max_concurrent: int | None = None
    max_waiting: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class TeamTable:
    """Limits by team; whoever is not named has the default ones."""

    by_name: Mapping[str, TeamLimits] = field(default_factory=dict)
    default: TeamLimits = TeamLimits()

    def of(self, name: str) -> TeamLimits:
        return self.by_name.get(name, self.default)


class Bucket:
    """Fills up to `limit` in `period_s`. Below zero after a call that used more than estimated: all wait for that."""

    __slots__ = ("_at_s", "_level", "limit", "per_s", "period_s")

    def __init__(self, limit: int, period_s: float, now_s: float) -> None:
        assert limit > 0, "a limit of nothing would be waited for for ever"
        self.limit = limit
        self.period_s = period_s
        self.per_s = limit / period_s
        self._level = float(limit)
        self._at_s = now_s

    @property
    def is_full(self) -> bool:
        return self._level >= self.limit

    @property
    def spent(self) -> float:
        return self.limit - self._level

    def refill(self, now_s: float) -> None:
        self._level = min(self.limit, self._level + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s

    def wait_s(self, amount: int) -> float:
        """Until so much is there; a call larger than the limit waits for a full bucket. 0.0 where it may go now."""
        return max(0.0, (min(amount, self.limit) - self._level) / self.per_s)

    def take(self, amount: float) -> None:
        """Negative to give back."""
        self._level = min(self.limit, self._level - amount)

    def allowance(self) -> Allowance:
        return Allowance(self.limit, max(0, int(self._level)), (self.limit - self._level) / self.per_s)


class Budget:
    """One team's buckets. Estimates are booked when a call arrives and corrected when its true use is known."""

    __slots__ = ("_requests", "_tokens")

    def __init__(self, limits: TeamLimits, now_s: float) -> None:
        per_minute, per_day = limits.tokens_per_minute, limits.tokens_per_day
        requests = limits.requests_per_minute
        self._requests = None if requests is None else Bucket(requests, MINUTE_S, now_s)
        self._tokens = [
            Bucket(limit, period_s, now_s)
            for limit, period_s in ((per_minute, MINUTE_S), (per_day, DAY_S))
            if limit is not None
        ]

    def renewed(self, limits: TeamLimits, now_s: float) -> Budget:
        """Under other limits: what was used of the old ones is used of these."""
        self._refill(now_s)
        other = Budget(limits, now_s)
        if self._requests is not None and other._requests is not None:
            other._requests.take(self._requests.spent)
        spent = {bucket.period_s: bucket.spent for bucket in self._tokens}
        for bucket in other._tokens:
            bucket.take(spent.get(bucket.period_s, 0.0))
        return other

    @property
    def is_unlimited(self) -> bool:
        return self._requests is None and not self._tokens

    def is_untouched(self, now_s: float) -> bool:
        """Nothing would be forgotten with it."""
        self._refill(now_s)
        return all(bucket.is_full for bucket in self._buckets())

    def admit(self, estimate: int, now_s: float) -> RateLimited | None:
        """Books a call and its estimate, or refuses it and books nothing."""
        if self.is_unlimited:
            return None
        self._refill(now_s)
        wait_s = max(bucket.wait_s(1 if bucket is self._requests else estimate) for bucket in self._buckets())
        if wait_s > 0.0:
            return self._refusal(wait_s, estimate)
        if self._requests is not None:
            self._requests.take(1)
        self.book(estimate)
        return None

    def book(self, tokens: int) -> None:
        """Without asking; negative to give back."""
        for bucket in self._tokens:
            bucket.take(tokens)

    def cancel(self, estimate: int) -> None:
        """A call that the pool refused is as if it had not come."""
        if self._requests is not None:
            self._requests.take(-1)
        self.book(-estimate)

    def left(self, estimate: int) -> Allowances:
        """As of the last `admit`. Of the limits of tokens the one that another such call would wait for longest, or
        that has least left: so a refusal tells of the same limit as the answers before it."""
        tokens = None
        if self._tokens:
            tokens = max(self._tokens, key=lambda each: (each.wait_s(estimate), each.spent - each.limit)).allowance()
        return Allowances(None if self._requests is None else self._requests.allowance(), tokens)

    def _refusal(self, wait_s: float, estimate: int) -> RateLimited:
        left, is_requests = self.left(estimate), self._requests is not None and self._requests.wait_s(1) == wait_s
        return RateLimited("requests" if is_requests else "tokens", left.requests, left.tokens, retry_after_s=wait_s)

    def _buckets(self) -> list[Bucket]:
        return self._tokens if self._requests is None else [self._requests, *self._tokens]

    def _refill(self, now_s: float) -> None:
        for bucket in self._buckets():
            bucket.refill(now_s)
