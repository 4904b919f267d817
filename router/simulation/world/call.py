"""One call of one client, as it fares; one attempt of it at a node; and what a replica of ours knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from router.fleet.tickets import Lease, Ticket
from router.policy.overflow import Overflow
from router.policy.retry import Failure
from router.simulation.facts import Began, Busy, Died, Ended, Token, Work
from router.simulation.world.card import Card, Gone, Heard
from router.simulation.world.workload import BLOCK_TOKENS, Request

if TYPE_CHECKING:
    from router.simulation.world.front import Front


class Fate(StrEnum):
    """How a call ended; exactly one each."""

    SERVED = "served"
    REFUSED = "refused"
    GAVE_UP = "gave_up"  # no first token within the client's patience
    BROKEN = "broken"  # was streaming from a node, or through a router, that died


class Call:
    """Mutable, and owned by `Clients`; whoever serves it writes down what the client would see."""

    __slots__ = (
        *("attempts", "began_s", "cached_tokens", "ended_s", "fate", "first_token_s", "front", "key", "node"),
        *("request", "tries"),
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.front: Front | None = None  # who serves it
        self.tries = 0  # at how many routers
        self.attempts = 0  # at nodes
        self.node = ""
        self.key = request.model.key  # of the model that serves it
        self.began_s: float | None = None  # got a slot at a node, last time
        self.first_token_s: float | None = None  # an embedding's is its answer
        self.ended_s: float | None = None
        self.cached_tokens = 0
        self.fate: Fate | None = None

    def __repr__(self) -> str:
        fate = self.fate or ("streaming" if self.first_token_s is not None else "open")
        return f"<Call {self.request.number} {self.request.model.name} {fate}>"

    @property
    def ticket(self) -> str:
        """An id for the store: another router is another ticket."""
        return f"{self.request.number}.{self.tries}"

    @property
    def is_streaming(self) -> bool:
        return self.first_token_s is not None


def work_of(request: Request, key: str, card: Card) -> Work:
    return Work(
        name=key,
        weights=card.weights[key],
        prompt=request.blocks,
        tokens_per_item=BLOCK_TOKENS,
        tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        every_token=False,
    )


OnEnd = Callable[["Passage", Failure | None], None]


class Passage:
    """One attempt: a connection to a node, from the first byte sent to the end of its answer, or of the node.

    `on_end` hears of a Failure, or None where the answer came whole or broke in the middle: then `is_broken`.
    """

    def __init__(self, call: Call, key: str, card: Card, began: Callable[[Call], None], on_end: OnEnd) -> None:
        self.call = call
        self.key = key
        self.card = card
        self.is_broken = False
        self.is_over = False
        self._began = began
        self._on_end = on_end
        self._number = 0

    def start(self) -> None:
        call = self.call
        call.attempts += 1
        call.node, call.key = self.card.name, self.key
        if not self.card.is_up:
            self._end(Failure.CONNECT_REFUSED)
            return
        self._number = self.card.submit(work_of(call.request, self.key, self.card), self._hear)

    def cut(self) -> None:
        """Our side closes: the node stops generating."""
        if not self.is_over:
            self.is_over = True
            self.card.leave(self._number)

    def _hear(self, effect: Heard) -> None:
        call = self.call
        if self.is_over:
            return
        if isinstance(effect, Began):
            call.began_s = effect.at_s
            self._began(call)
        elif isinstance(effect, Token):
            if call.first_token_s is None:
                call.first_token_s = effect.at_s
        elif isinstance(effect, Ended):
            call.first_token_s = effect.at_s if call.first_token_s is None else call.first_token_s
            call.cached_tokens = effect.timing.cached_tokens
            self._end(None)
        elif isinstance(effect, Gone | Died):
            self.is_broken = call.is_streaming
            lost = Failure.RESET if isinstance(effect, Gone) else Failure.RUNNER_DIED
            self._end(None if self.is_broken else lost)
        elif isinstance(effect, Busy):
            self._end(Failure.BUSY)

    def _end(self, failure: Failure | None) -> None:
        self.is_over = True
        if self._number:
            self.card.leave(self._number)
        self._on_end(self, failure)


@dataclass(slots=True, eq=False)
class Case:
    """A call at this replica: it waits, has a grant on its way, or is at a node."""

    call: Call
    ticket: Ticket
    lease: Lease | None = None
    passage: Passage | None = None
    made: int = 0
    has_met_dead_runner: bool = False
    is_counted: bool = False
    is_taken: bool = False  # its take reached the store
    overflow: Overflow | None = None
