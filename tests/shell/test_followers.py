"""What a replica that does not lead makes of declared copies."""

from __future__ import annotations

from router.control.declarations import Declarations, Look
from router.fleet.node import Node
from router.policy.declared import Declaration, Lack
from router.policy.experience import NOTHING_LEARNT
from router.policy.placement import Mode
from tests.fleet.builders import fleet, node


def look(at: Node, now_s: float) -> Look:
    return Look((), fleet(at), {}, NOTHING_LEARNT, {}, frozenset(), {}, now_s, Mode.MANAGED)


def test_what_the_leader_displaced_is_not_lost_to_one_that_follows_and_leads_later() -> None:
    declarations = Declarations()
    declarations.declared = (Declaration("x"),)
    here, gone = node("a", disk="x", ready="x"), node("a", disk="x")
    for times in range(3):
        for now_s, state in ((10.0 * times, here), (10.0 * times + 5.0, gone)):
            at = look(state, now_s)
            declarations.look(at)
            declarations.follow(at)
    at = look(gone, 31.0)
    declarations.look(at)
    assert [load.key for load in declarations.keep(at)] == ["x"], "at once"
    assert declarations.standings[0].lack is not Lack.LOST
