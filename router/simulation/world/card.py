"""One Ollama node in the world: the pure model on the agenda's clock, and the connections that die with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from router.fleet.node import NodeSpec
from router.fleet.reports import PsEntry, TagEntry
from router.simulation.copies import Copy
from router.simulation.facts import (
    FOREVER_S,
    GIB,
    Busy,
    CopyEvent,
    Died,
    Effect,
    Ended,
    Event,
    NodeLimits,
    Ready,
    Weights,
    Work,
)
from router.simulation.model import NodeModel
from router.simulation.world.agenda import Agenda, Timer
from router.simulation.world.scenario import Model, NodeFacts

NUM_CTX = 4096
FILE_SHARE = 0.8  # of the resident size is the file; the rest is context and buffers
ROOM_FOR_ALL = 10_000  # models, on the nodes of `floor`


@dataclass(frozen=True, slots=True)
class Gone:
    """The connection broke: the node died under the call."""

    call: int
    at_s: float


Heard = Effect | Gone
Deliver = Callable[[Heard], None]


def weights_of(model: Model, *, is_free: bool) -> Weights:
    resident = round(model.vram_gib * GIB)
    return Weights(
        blob=hashlib.sha256(model.key.encode()).hexdigest(),
        file_bytes=round(resident * FILE_SHARE),
        loaded_bytes=resident,
        default_ctx=NUM_CTX,
        load_s=0.0 if is_free else model.load_s,
        prefill_tps=model.prefill_tps,
        decode_tps=model.decode_tps,
        decode_exponent=model.decode_exponent,
        slots=model.slots,
    )


class Card:
    """Owns one NodeModel, its timer and its open calls. With `is_free` memory never ends and loads cost nothing."""

    def __init__(
        self,
        facts: NodeFacts,
        models: dict[str, Model],
        agenda: Agenda,
        on_copy: Callable[[str, CopyEvent], None],
        *,
        is_free: bool,
    ) -> None:
        self.name = facts.name
        self.models = {key: models[key] for key in sorted(facts.models)}
        self.weights = {key: weights_of(model, is_free=is_free) for key, model in self.models.items()}
        self.spec = NodeSpec(
            name=facts.name,
            host=facts.name,
            port=11434,
            model_slots={key: model.slots for key, model in self.models.items()},
            vram_bytes=round(facts.vram_gib * GIB) if facts.declares_vram and not is_free else None,
            weight=facts.speed,
        )
        self.is_up = True
        self._facts = facts
        self._agenda = agenda
        self._on_copy = on_copy
        self._is_free = is_free
        self._calls: dict[int, Deliver] = {}
        self._last_call = 0
        self._timer: Timer | None = None
        self.model = NodeModel(self._limits())
        self._fill()

    def __repr__(self) -> str:
        return f"<Card {self.name} {'up' if self.is_up else 'down'} | {self.model!r}>"

    def _limits(self) -> NodeLimits:
        return NodeLimits(
            vram_bytes=0 if self._is_free else round(self._facts.vram_gib * GIB),
            max_loaded=ROOM_FOR_ALL if self._is_free else self._facts.max_loaded,
            context_length=NUM_CTX,
            keep_alive_s=FOREVER_S if self._is_free else 300.0,
            speed=self._facts.speed,
        )

    def _fill(self) -> None:
        if self._is_free:
            now_s = self._agenda.now_s()
            for key, weights in self.weights.items():
                copy = Copy(
                    weights=weights,
                    name=key,
                    num_ctx=NUM_CTX,
                    slots=weights.slots or 1,
                    speed=self._facts.speed,
                    keep_alive_s=FOREVER_S,
                    expires_s=FOREVER_S,
                    clock_s=now_s,
                )
                self.model.copies[weights.blob] = copy
                self._on_copy(self.name, CopyEvent(Event.LOAD_FINISHED, weights.blob, key, now_s))

    # calls

    def submit(self, work: Work, deliver: Deliver) -> int:
        """The call's number. Whoever submits must `leave` when it wants no more."""
        assert self.is_up, "nobody answers there"
        self._last_call += 1
        call = self._last_call
        self._calls[call] = deliver
        self._apply(lambda now_s: self.model.ask(call, work, now_s))
        return call

    def leave(self, call: int) -> None:
        if self._calls.pop(call, None) is not None:
            self._apply(lambda now_s: self.model.leave(call, now_s))

    # luck

    def go_down(self) -> None:
        now_s = self._agenda.now_s()
        self.is_up = False
        if self._timer is not None:
            self._timer.cancel()
        for copy in self.model.copies.values():
            self._on_copy(self.name, CopyEvent(Event.DIED, copy.weights.blob, copy.name, now_s))
        self.model.reset()
        calls, self._calls = self._calls, {}
        for call, deliver in calls.items():
            deliver(Gone(call, now_s))

    def come_up(self) -> None:
        self.is_up = True
        self.model = NodeModel(self._limits())
        self._fill()

    def slow_down(self, factor: float) -> None:
        """`factor` times as slow as it is by nature; 1.0 heals."""

        def change(now_s: float) -> list[Effect]:
            self.model.set_speed(self._facts.speed / factor, now_s)
            return []

        if self.is_up:
            self._apply(change)

    # what probes see

    def tags(self) -> tuple[TagEntry, ...]:
        return tuple(
            TagEntry(
                name=key,
                key=key,
                digest=weights.blob,
                size_bytes=weights.file_bytes,
                modified_at="",
                family="",
                capabilities=frozenset({"completion"}) if self.models[key].slots > 1 else frozenset(),
                context_max=weights.train_ctx,
                is_cloud=False,
                listing="{}",
            )
            for key, weights in self.weights.items()
        )

    def ps(self) -> tuple[PsEntry, ...]:
        return tuple(
            PsEntry(
                name=copy.name,
                key=copy.name,
                digest=copy.weights.blob,
                size_bytes=copy.size_bytes,
                vram_bytes=copy.size_bytes,
                num_ctx=copy.num_ctx,
                expires_at_s=expires_s,
                listing="{}",
            )
            for copy, expires_s in self.model.listed(self._agenda.now_s())
        )

    # time

    def _apply(self, change: Callable[[float], list[Effect]]) -> None:
        now_s = self._agenda.now_s()
        effects = self.model.advance(now_s) + change(now_s)
        self._arm()
        self._tell(effects)

    def _tick(self) -> None:
        self._timer = None
        effects = self.model.advance(self._agenda.now_s())
        self._arm()
        self._tell(effects)

    def _arm(self) -> None:
        due_s = self.model.next_event_s()
        if self._timer is not None:
            if self._timer.at_s == due_s and self._timer.do is not None:
                return
            self._timer.cancel()
            self._timer = None
        if due_s != FOREVER_S:
            self._timer = self._agenda.at(due_s, self._tick)

    def _tell(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, CopyEvent):
                self._on_copy(self.name, effect)
                continue
            is_last = isinstance(effect, Ready | Busy | Ended | Died)
            deliver = self._calls.pop(effect.call, None) if is_last else self._calls.get(effect.call)
            if deliver is not None:
                deliver(effect)
