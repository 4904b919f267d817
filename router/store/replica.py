"""A replica as the store knows it: its session, and the news on their way to it."""

from __future__ import annotations

from collections import deque

from router.fleet.tickets import Lease
from router.store.answers import Refused
from router.store.ledger import LEFT_IDS_MAX

STREAM_MAXLEN = 4_096  # a replica that reads nothing for so many grants finds the unclaimed ones in its next beat


class Replica:
    """A replica that said hello and was not reaped."""

    __slots__ = ("greeting", "heard_s", "owed", "session", "stream")

    def __init__(self, session: int, greeting: int, heard_s: float) -> None:
        self.session = session
        self.greeting = greeting
        self.heard_s = heard_s  # answering time
        self.stream: deque[Lease | Refused] = deque(maxlen=STREAM_MAXLEN)
        self.owed: dict[str, None] = {}  # tickets of refusals that it has not said it heard: beats name them again

    def owe(self, ticket_id: str) -> None:
        self.owed[ticket_id] = None
        if len(self.owed) > LEFT_IDS_MAX:
            del self.owed[next(iter(self.owed))]
