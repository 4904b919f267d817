"""One call on a simulated node: what it waits for, and how its tokens become bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from router.errors import QueueFull
from router.simulation.answers import DIED_TEXT, Shape
from router.simulation.ask import NodeRefusal, Target
from router.simulation.facts import Began, Busy, Died, Effect, Ended, Ready, Token, Want, Work
from router.simulation.faults import Fault, Order
from router.simulation.http import Reply, Request
from router.simulation.members import Members
from router.simulation.text import Piece
from router.wire.endpoints import Endpoint
from router.wire.intent import Intent

if TYPE_CHECKING:
    from router.simulation.node import SimulatedNode

NO_RUNNER_TEXT = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)


@dataclass(frozen=True, slots=True)
class Call:
    """An inference call with its model found, and where its answer goes."""

    node: SimulatedNode
    endpoint: Endpoint
    request: Request
    intent: Intent
    members: Members
    target: Target
    faults: Mapping[Fault, Order]
    reply: Reply

    def work(self, want: Want = Want.ANSWER) -> Work:
        """What it asks of the scheduler, prompt and answer still to be filled in."""
        return Work(
            name=self.target.model.name,
            weights=self.node.weights_of(self.target.model),
            want=want,
            num_ctx=self.intent.num_ctx or self.target.model.num_ctx,
            keep_alive_s=self.intent.keep_alive_s,
        )

    def send(self, content_type: str, body: bytes) -> None:
        self.reply.send(200, [("Content-Type", content_type_of(content_type, self.faults))], body)

    async def evaluate(self, prompt: tuple[int, ...], output_tokens: int = 0) -> Ended:
        """Runs work whose answer is told whole."""
        work = replace(self.work(), prompt=prompt, output_tokens=output_tokens, every_token=False)
        effect = await self.node.run(work, Waiter())
        if isinstance(effect, Died):
            raise NodeRefusal(500, DIED_TEXT if effect.count else NO_RUNNER_TEXT)
        assert isinstance(effect, Ended)
        return effect

    async def load(self, *, may_unload: bool = True) -> Want:
        """Loads the model or, with keep_alive 0, unloads it; says which."""
        want = Want.UNLOAD if may_unload and self.intent.keep_alive_s == 0 else Want.LOAD
        await self.node.run(self.work(want), Waiter())
        return want


class Waiter:
    """What a call waits on: the effect that decides it."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Effect] = asyncio.get_running_loop().create_future()

    def __call__(self, effect: Effect) -> None:
        if isinstance(effect, Busy | Ready | Ended | Died):
            self.decide(effect)

    def decide(self, effect: Effect) -> None:
        if not self.done.done():
            self.done.set_result(effect)


class Generation(Waiter):
    """Tells a generation as its tokens come, or whole, and suffers the faults that begin in its middle."""

    def __init__(
        self, reply: Reply, shape: Shape, pieces: Sequence[Piece], faults: Mapping[Fault, Order], *, streams: bool
    ) -> None:
        super().__init__()
        self._reply, self._shape, self._pieces, self._faults, self._streams = reply, shape, pieces, faults, streams
        self._events = 0
        self._dying_at: int | None = None  # tokens told when the runner was to die
        self.kill: Callable[[], None] = _nothing

    def __call__(self, effect: Effect) -> None:
        if isinstance(effect, Began):
            self._maybe_kill(0)
        if isinstance(effect, Ended | Died) and self._dying_at is not None:
            # In virtual time the answer may have been whole before the runner could die.
            self.decide(Died(effect.call, effect.at_s, self._dying_at))
        elif isinstance(effect, Token):
            self._tell(effect)
        else:
            super().__call__(effect)

    def _tell(self, effect: Token) -> None:
        if self._dying_at is not None or self._reply.is_over:
            return
        self._maybe_kill(effect.count)
        if self._streams and not self._write(self._shape.token(self._pieces[effect.count - 1])):
            self.decide(effect)

    def finish(self, effect: Effect) -> None:
        """The last bytes; refuses where the runner died before the first."""
        if self._reply.is_over:
            return
        if isinstance(effect, Died) and not self._reply.is_started:
            raise NodeRefusal(500, DIED_TEXT if effect.count else NO_RUNNER_TEXT)
        if self._streams:
            last = self._shape.end(effect.timing) if isinstance(effect, Ended) else self._shape.died()
            if self._write(last):
                self._reply.finish()
            return
        assert isinstance(effect, Ended)
        headers = [("Content-Type", content_type_of(self._shape.plain_type, self._faults))]
        self._reply.send(200, headers, self._shape.plain(effect.timing))

    def _maybe_kill(self, count: int) -> None:
        order = self._faults.get(Fault.RUNNER_DIED)
        if order is not None and count >= order.number and self._dying_at is None:
            self._dying_at = count
            asyncio.get_running_loop().call_soon(self.kill)

    def _write(self, chunks: Sequence[bytes]) -> bool:
        """Whether the answer goes on: a fault may have ended it."""
        for chunk in chunks:
            if self._ends_here():
                return False
            if not self._reply.is_started:
                content_type = content_type_of(self._shape.stream_type, self._faults)
                self._reply.start(200, (("Content-Type", content_type), *self._shape.stream_headers))
            self._reply.flush(chunk)
            self._events += 1
        return True

    def _ends_here(self) -> bool:
        """Whether a fault ends the stream before its next event."""
        cut, end = self._faults.get(Fault.CUT), self._faults.get(Fault.END)
        if cut is not None and self._events >= cut.number:
            self._reply.cut()
        elif end is not None and self._events >= max(1, end.number):
            self._reply.finish()
        return self._reply.is_over


def _nothing() -> None: ...


def content_type_of(usual: str, faults: Mapping[Fault, Order]) -> str:
    return "text/html; charset=utf-8" if Fault.WRONG_CONTENT_TYPE in faults else usual


def busy() -> QueueFull:
    return QueueFull(retry_after_s=1.0)
