"""What this replica tells the others of nodes, and hears of them, as steps of its session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from router.fleet.tickets import CopyReport, Gate
from router.fleet.words import Heard, Word
from router.seams import FleetBoard
from router.store.answers import Answer, Caller
from router.store.book import Book
from router.store.redis import codec
from router.store.redis.session import Session
from router.store.redis.starts import Starts


class RedisBoard(FleetBoard):
    """Fills the `FleetBoard` seam. Owns how far the board was read."""

    def __init__(self, session: Session, starts: Starts) -> None:
        self._session = session
        self._starts = starts
        self._read_upto = 0
        self._is_whole = False  # what is read, in several parts
        self._session_number = 0

    def __repr__(self) -> str:
        return f"<RedisBoard read up to {self._read_upto}>"

    @property
    def replica(self) -> str:
        return self._session.replica

    async def exchange(self, words: Sequence[Word]) -> Heard | None:
        is_anew = self._session.number != self._session_number
        if is_anew:
            # Reaped, or another life of the store: what was read may be gone, and more may have come than we know.
            self._session_number, self._read_upto = self._session.number, 0
        since = self._read_upto
        is_whole = since == 0 or self._is_whole
        told: tuple[int, Heard] | None = await self._session.ask(codec.board(since, words), _to_nobody)
        if told is None:
            return None
        self._read_upto, heard = told
        self._is_whole = is_whole and heard.has_more
        return replace(heard, is_anew=is_anew or heard.is_anew, is_whole=is_whole or heard.is_anew)

    def read_again(self) -> None:
        self._read_upto = 0

    def number_of(self, node: str, incarnation: int) -> int:
        return self._starts.number(node, incarnation)

    def note(self, reports: Iterable[CopyReport]) -> None:
        for report in reports:
            self._session.told.saw(report)

    def note_gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        self._session.told.knows_gate(node, weights, gate, until_s)


def _to_nobody(book: Book, caller: Caller, now_s: float) -> Answer[None]:
    return book.read(caller, now_s)
