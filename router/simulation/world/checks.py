"""What must be true after every event, by looking: for tests and `--check`. It costs more than the simulation."""

from __future__ import annotations

import math

from router.policy.placement import BACKOFF_S_MIN
from router.simulation.world.call import Fate
from router.simulation.world.scenario import FaultKind
from router.simulation.world.turns import ColdLines, Turns, turns_s
from router.simulation.world.world import World
from router.store.book import Book
from router.store.check import invariants

Place = tuple[str, str]

ROUNDING_S = 1e-6
HEALED_S = 4 * BACKOFF_S_MIN  # after a fault: by then whoever failed to load is asked again


class Checker:
    """Looks at a world between events. Remembers leases above capacity: what an outage left may only shrink."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._above: dict[Place, int] = {}
        self._turns = None if world.book is None else Turns(world.book)
        self._cold: ColdLines | None = None

    @property
    def cold_s(self) -> float:
        """How long the oldest in line waited for a load, at most."""
        return 0.0 if self._cold is None else self._cold.longest_s

    def look(self) -> None:
        world = self._world
        self._nobody_is_kept_beyond_its_patience()
        if world.book is None:
            return
        invariants(world.book)
        self._leases_stay_within_capacity()
        self._nodes_serve_only_what_is_leased()
        self._nobody_starves(world.book)

    def look_at_the_end(self) -> None:
        """Nothing is lost: each call has one fate, and only what was streaming from what died is broken."""
        clients = self._world.clients
        assert not clients.open, "calls without an end"
        assert all(call.fate is not None for call in clients.calls)
        deaths = self._deaths()
        for call in clients.calls:
            if call.fate is Fate.BROKEN:
                assert call.ended_s in deaths, f"{call!r} broke at {call.ended_s}, and nothing died then"
            if call.fate is Fate.SERVED:
                assert call.first_token_s is not None
                late_s = call.first_token_s - call.request.at_s - self._world.scenario.patience_s
                assert late_s <= ROUNDING_S, f"{call!r} was served after its client had gone"

    def _nobody_is_kept_beyond_its_patience(self) -> None:
        """Who has no first token by then has left, or was told."""
        late_s = self._world.agenda.now_s() - self._world.scenario.patience_s - ROUNDING_S
        for call in self._world.clients.open.values():
            if call.request.at_s >= late_s:
                return
            assert call.is_streaming, f"{call!r} is kept beyond its client's patience"

    def _nobody_starves(self, book: Book) -> None:
        assert self._turns is not None
        if self._cold is None:
            scenario = self._world.scenario
            # Who fits only in the place of a pin may wait for ever.
            bound_s = math.inf if scenario.placement.has_pins else turns_s(scenario, self._world.requests)
            self._cold = ColdLines(book, bound_s)
        if self._is_within_an_outage():
            self._turns.begin_anew()
        else:
            self._turns.look()
        if self._is_struck():
            self._cold.begin_anew()
        else:
            self._cold.look(self._world.agenda.now_s())

    def _is_struck(self) -> bool:
        """Something is down or slow, or a load that it broke is still backed off."""
        now_s = self._world.agenda.now_s()
        return any(fault.at_s <= now_s <= fault.at_s + fault.for_s + HEALED_S for fault in self._world.history.faults)

    def _leases_stay_within_capacity(self) -> None:
        """While the store answers no lease is made above a copy's slots; what hello restored ends with its calls."""
        book = self._world.book
        assert book is not None
        above: dict[Place, int] = {}
        for node in book.ledger.copies.nodes.values():
            for copy in node.copies.values():
                if copy.leases > copy.slots and copy.slots:
                    above[node.name, copy.weights] = copy.leases
        if not self._is_within_an_outage():
            for place, leases in above.items():
                assert leases <= self._above.get(place, 0), f"{leases} leases on {place} are above its slots"
        self._above = above

    def _is_within_an_outage(self) -> bool:
        """Until every replica said hello again, in the very event that ends it."""
        world = self._world
        now_s = world.agenda.now_s()
        outages = [fault for fault in world.history.faults if fault.kind is FaultKind.STORE_DOWN]
        return not world.is_store_up or any(now_s <= fault.at_s + fault.for_s + 0.01 for fault in outages)

    def _nodes_serve_only_what_is_leased(self) -> None:
        world = self._world
        book = world.book
        assert book is not None
        at_nodes: dict[Place, int] = {}
        for replica in world.replicas:
            for case in replica.cases.values():
                if case.passage is not None and case.lease is not None and not case.passage.is_over:
                    place = (case.lease.node, case.lease.weights)
                    at_nodes[place] = at_nodes.get(place, 0) + 1
        if self._is_within_an_outage():
            self._shares_bound_the_outage(at_nodes)
            return
        for place, count in at_nodes.items():
            leased = book.ledger.copies.occupancy.get(place, 0)
            assert count <= leased, f"{count} calls at {place} hold {leased} leases"

    def _shares_bound_the_outage(self, at_nodes: dict[Place, int]) -> None:
        """At most capacity, and for each replica that is cut off its share beyond that."""
        world = self._world
        for (name, weights), count in at_nodes.items():
            slots = next((w.slots or 1 for w in world.cards[name].weights.values() if w.blob == weights), 1)
            seen = min((replica.store.replicas_seen for replica in world.replicas if replica.is_up), default=1)
            share = -(-slots // max(1, seen))
            assert count <= slots + len(world.replicas) * share, f"{count} calls at {name} during an outage"

    def _deaths(self) -> set[float]:
        kinds = (FaultKind.NODE_DOWN, FaultKind.ROUTER_DOWN)
        return {fault.at_s for fault in self._world.history.faults if fault.kind in kinds}
