"""A replica without its store: `policy.degraded` carried out. Its own calls, its own line, its share of every copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.fleet.tickets import Lease
from router.policy.degraded import choose_alone, loading_node

if TYPE_CHECKING:
    from router.simulation.world.call import Case
    from router.simulation.world.replica import Replica

PASS_S = 1.0  # as often as the placer looks at the lines


class Alone:
    """Owns nothing but the count of the leases it makes; the replica's cases are the line."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._made = 0
        self.is_on = False

    def begin(self) -> None:
        if not self.is_on and self._replica.store.is_cut_off:
            self.is_on = True
            self._pass()

    def end(self) -> None:
        self.is_on = False

    def serve(self, case: Case) -> None:
        if self.is_on and case.lease is None and self._replica.cases.get(case.ticket.id) is case:
            self._offer(case, self._own())

    def freed(self) -> None:
        if self.is_on:
            own = self._own()
            for case in [case for case in self._replica.cases.values() if case.lease is None]:
                self._offer(case, own)

    def _pass(self) -> None:
        if not self.is_on or not self._replica.is_up:
            return
        self.freed()
        self._load()
        self._replica.agenda.after(PASS_S, self._pass)

    def _offer(self, case: Case, own: dict[tuple[str, str], int]) -> None:
        replica = self._replica
        want, seen = replica.want_of(case), replica.store.replicas_seen
        row = choose_alone(want, replica.keeper.snapshot, own, seen, replica.rng)
        if row is None:
            return
        self._made += 1
        own[row.copy] = own.get(row.copy, 0) + 1
        ticket = case.ticket
        lease_id = f"{ticket.id}/{ticket.attempt}/alone-{replica.store.replica}-{self._made}"
        lease = Lease(lease_id, ticket.id, ticket.attempt, ticket.targets[0], row.node, row.weights, row.num_ctx)
        replica.store.hold(lease)
        replica.use(case, lease, 0.0)

    def _own(self) -> dict[tuple[str, str], int]:
        own: dict[tuple[str, str], int] = {}
        for case in self._replica.cases.values():
            if case.lease is not None:
                copy = (case.lease.node, case.lease.weights)
                own[copy] = own.get(copy, 0) + 1
        return own

    def _load(self) -> None:
        replica = self._replica
        waiting = {case.ticket.targets[0]: None for case in replica.cases.values() if case.lease is None}
        for key in waiting:
            rows = replica.keeper.snapshot.holding(key).by_node.values()
            row = loading_node(rows) if not any(row.is_ready for row in rows) else None
            if row is not None:
                replica.placing.load_alone(row, key)
