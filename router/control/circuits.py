"""Breakers of copies and nodes, and the gates that the store keeps for them. `fleet.breaker` decides."""

from __future__ import annotations

import logging
from collections.abc import Callable

from router.fleet import breaker as breakers
from router.fleet.breaker import Breaker, Circuit
from router.fleet.tickets import Gate
from router.fleet.words import SharedCircuit
from router.seams import Clock, Store

log = logging.getLogger(__name__)

Gated = tuple[str, str | None]  # (node, weights); None for the node's own


class Circuits:
    """Owns the breakers. `is_drained` tells of a node whether it drains: its gate says that first."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        on_circuit: Callable[[str, Circuit], None],
        is_drained: Callable[[str], bool],
        name_of: Callable[[str, str], str],
    ) -> None:
        """`name_of`: a model for weights on a node, as people know it."""
        self._store = store
        self._clock = clock
        self._on_circuit = on_circuit
        self._is_drained = is_drained
        self._name_of = name_of
        self._breakers: dict[Gated, Breaker] = {}
        self.turned: dict[Gated, tuple[float, SharedCircuit]] = {}  # how each that turned stands, and since when

    def __repr__(self) -> str:
        return f"<Circuits {len(self._breakers)} judged>"

    def not_closed(self) -> dict[Gated, Circuit]:
        now_s = self._clock.now_s()
        states = {
            key: breakers.step(state, breakers.Event.TIME_PASSED, now_s).circuit
            for key, state in self._breakers.items()
        }
        return {key: circuit for key, circuit in states.items() if circuit is not Circuit.CLOSED}

    async def forget(self, name: str) -> None:
        """Should the node come back, nobody would remember why it is shut."""
        gated = {(name, None), *(key for key in self._breakers if key[0] == name)}
        self._breakers = {key: state for key, state in self._breakers.items() if key[0] != name}
        self.turned = {key: turn for key, turn in self.turned.items() if key[0] != name}
        for key in gated:
            await self.tell_gate(key)

    async def judge(self, key: Gated, *, has_failed: bool) -> None:
        if key not in self._breakers and not has_failed:
            return  # a copy that never failed needs no breaker
        old = self._breakers.get(key, Breaker())
        now_s = self._clock.now_s()
        event = breakers.Event.FAILED if has_failed else breakers.Event.SUCCEEDED
        new = breakers.step(old, event, now_s)
        self._breakers[key] = new
        if (new.circuit, new.until_s) == (old.circuit, old.until_s):
            return  # another `until_s` is a trial that failed: open again, and the store is half-open by now
        self._note(key, new, now_s)
        store_s = self._store.now_s()
        self.turned[key] = (store_s, SharedCircuit(new.circuit, store_s + new.until_s - now_s, new.trips))
        await self.tell_gate(key)

    def adopt(self, key: Gated, told: SharedCircuit, at_s: float) -> bool:
        """Another replica's calls have opened or closed it, and it told the store. False where that is old."""
        if at_s < self.turned.get(key, (0.0, told))[0]:
            return False
        now_s = self._clock.now_s()
        old = self._breakers.get(key, Breaker())
        until_s = now_s + told.until_s - self._store.now_s()
        closed_at_s = now_s if told.circuit is Circuit.CLOSED else old.closed_at_s
        self._breakers[key] = Breaker(told.circuit, trips=told.trips, until_s=until_s, closed_at_s=closed_at_s)
        self.turned[key] = (at_s, told)
        if told.circuit is not old.circuit:
            self._note(key, self._breakers[key], now_s)
        return True

    def _note(self, key: Gated, new: Breaker, now_s: float) -> None:
        self._on_circuit(key[0], new.circuit)
        node, weights = key
        told = f"node {node}" if weights is None else f"{self._name_of(node, weights)} on {node}"
        if new.circuit is Circuit.OPEN:
            log.warning("circuit of %s is open for %.0f s: it fails again and again", told, new.until_s - now_s)
        elif new.circuit is Circuit.CLOSED:
            log.info("circuit of %s is closed again", told)

    async def tell_gate(self, key: Gated) -> None:
        """The store keeps one gate for a node: a breaker that closes or trips does not lift its drain."""
        name, weights = key
        breaker = self._breakers.get(key, Breaker())
        if weights is None and self._is_drained(name):
            await self._store.gate(name, None, Gate.DRAINING, 0.0)
        elif breaker.circuit is Circuit.OPEN:
            until_s = self._store.now_s() + breaker.until_s - self._clock.now_s()
            await self._store.gate(name, weights, Gate.CLOSED, until_s)
        else:
            await self._store.gate(name, weights, Gate.OPEN, 0.0)
