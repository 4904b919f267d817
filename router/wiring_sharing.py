"""Probing is shared where the store is."""

from __future__ import annotations

from router.control.sharing import FleetSharing
from router.lifecycle import Loops
from router.reload import Parts
from router.seams import Clock


def start_sharing(loops: Loops, parts: Parts, clock: Clock) -> None:
    """Before the prober follows discovery: it must not begin with what another replica probes."""
    board = parts.store.board
    if board is None:
        return
    sharing = FleetSharing(board, parts.keeper, parts.prober, parts.store, clock)
    parts.slots.is_mine = sharing.is_mine
    loops.start("sharing", sharing.run())
    loops.start("addresses", parts.prober.resolve_others())
