"""Further lines for calls that name an alias: what `admission.Admission` does with `policy.overflow`'s decisions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from router.errors import Unavailable
from router.fleet.tickets import Lease, Waits
from router.policy.alias import RoutePlan
from router.policy.guard import Guards
from router.policy.overflow import AGAIN_S, Overflow, widening
from router.policy.route import Ahead, Reach, ahead
from router.simulation.world.agenda import at_once
from router.simulation.world.call import Case
from router.simulation.world.workload import Request
from router.wire.endpoints import BY_PATH
from router.wire.intent import read_intent

if TYPE_CHECKING:
    from router.simulation.world.replica import Replica

# What every call here is like: it asks for no context, and nothing that a model of its alias could not do.
ENDPOINT = BY_PATH["/v1/chat/completions"]
INTENT = read_intent(
    ENDPOINT, b'{"model": "m", "messages": [{}]}', content_type="application/json", content_encoding=""
)
GUARDS, REACH = Guards(), Reach()


class Further:
    """Owns nothing: a call's further lines are the store's."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def plan_of(self, request: Request) -> RoutePlan:
        """From the first target on that can be had. Where none can, the placer refuses whoever waits for the first."""
        plan = RoutePlan(request.targets)
        leads = ahead(plan, self._replica.keeper.snapshot, REACH)
        return leads.plan if isinstance(leads, Ahead) else plan

    def expect(self, case: Case, plan: RoutePlan) -> None:
        """It begins to wait now."""
        if plan.first.overflow_after_s is not None:
            now_s = self._replica.agenda.now_s()
            case.overflow = Overflow(plan, case.ticket, ENDPOINT, INTENT, GUARDS, REACH, now_s)
            self._replica.soon(plan.first.overflow_after_s, lambda: self._look(case))

    def _look(self, case: Case) -> None:
        replica = self._replica
        if not replica.is_open(case) or case.overflow is None:
            return
        # A lease may yet be lost with its node, and the store come back.
        after_s = AGAIN_S
        if case.lease is None and case.is_taken and not replica.store.is_cut_off:
            after_s = self._widen(case, replace(case.overflow, ticket=case.ticket)) - replica.agenda.now_s()
        replica.soon(after_s, lambda: self._look(case))

    def _widen(self, case: Case, overflow: Overflow) -> float:
        """Answers when to look again."""
        replica, id_ = self._replica, case.ticket.id
        place = at_once(replica.store.place_of(id_))
        is_held = place is not None and place.reason is Waits.FOR_TEAM
        further, again_s = widening(overflow, replica.agenda.now_s(), replica.keeper.snapshot, is_held=is_held)
        if further:
            with suppress(Unavailable):  # it was refused in this very moment
                answer = at_once(replica.store.widen(id_, further))
                if isinstance(answer, Lease) and case.lease is None:
                    replica.use(case, answer, replica.latency_s)
        return again_s
