"""How long round trips to the server take and why they fail, for whoever counts them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Unreached
from redis.exceptions import TimeoutError as TooLate

from router.seams import Clock
from router.store.redis.link import StoreLost, StoreMoved
from router.store.redis.primary import NoPrimary

T = TypeVar("T")

# Operation, seconds (None of a wait for news, which has no length of its own), and a word of `reason`, empty where it
# was answered.
Observe = Callable[[str, float | None, str], None]


class Trips:
    """Those that were cancelled are not told: nobody knows how long they would have taken."""

    def __init__(self, clock: Clock, observe: Observe) -> None:
        self._clock = clock
        self._observe = observe

    async def time(self, operation: str, asked: Awaitable[T]) -> T:
        began_s = self._clock.now_s()
        try:
            answer = await asked
        except StoreLost as lost:
            self._observe(operation, self._clock.now_s() - began_s, reason(lost))
            raise
        self._observe(operation, self._clock.now_s() - began_s, "")
        return answer

    def missed_news(self, lost: StoreLost) -> None:
        self._observe("news", None, reason(lost))


def unobserved(operation: str, duration_s: float | None, failure: str) -> None:
    """Nobody counts."""


def reason(lost: StoreLost) -> str:
    """Of a closed set, for a label."""
    error = lost.__cause__
    if isinstance(lost, StoreMoved) or isinstance(error, NoPrimary):
        return "moved"
    if isinstance(error, AuthenticationError | NoPermissionError):
        return "auth"
    if isinstance(error, ResponseError):
        return "refused"
    if isinstance(error, TimeoutError | TooLate):
        return "timeout"
    return "connection" if isinstance(error, Unreached | OSError) or not isinstance(error, RedisError) else "other"
