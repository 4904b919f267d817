"""What is declared, kept from one pass of the placer to the next, and told when it changes. `policy` decides."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LineView
from router.policy.declared import NOTHING, Declaration, Lack, Standing, asked, holds_of, remember
from router.policy.experience import Experience
from router.policy.placement import Action, Load, Mode, place
from router.policy.room import NO_HOLDS, Holds, pool_of
from router.policy.upkeep import Moment, keep, unkept
from router.policy.verdicts import lack_text

log = logging.getLogger(__name__)

RECENT_S = 10.0  # a load's doings are seen by the probes that follow it
TELL_AGAIN_S = 60.0  # reasons change with every load; that something is missing is told once

_QUIET = (Lack.LOADING, Lack.NODE_BUSY)


@dataclass(frozen=True, slots=True)
class Look:
    """What one pass of the placer sees."""

    lines: Sequence[LineView]
    snapshot: Snapshot
    occupancy: Mapping[tuple[str, str], int]
    experience: Experience
    loading: Mapping[str, str]  # node -> weights of loads that run
    leaving: Set[tuple[str, str]]  # what they displace
    backoff: Mapping[tuple[str, str], float]
    now_s: float
    mode: Mode

    def placed(self, holds: Holds, since_s: Mapping[str, float]) -> tuple[Action, ...]:
        """For the lines. `since_s`: when running loads began, or displaced something last, by node."""
        return place(
            self.lines,
            self.snapshot,
            loading=self.loading,
            backoff=self.backoff,
            now_s=self.now_s,
            mode=self.mode,
            occupancy=self.occupancy,
            experience=self.experience,
            leaving=self.leaving,
            holds=holds,
            since_s=since_s,
        )


class Declarations:
    """`declared` may be set anew. `holds` is what loads have to spare, `standings` what came of each declaration."""

    def __init__(self) -> None:
        self.declared: tuple[Declaration, ...] = ()
        self.holds = NO_HOLDS
        self.standings: tuple[Standing, ...] = ()
        # Whether every node's memory was read: before, what stands already would be loaded elsewhere. Set by wiring.
        self.has_looked: Callable[[], bool] = lambda: True
        self._memory = NOTHING
        self._recent: dict[str, tuple[Load, float]] = {}  # by node: the load that ended last, and when
        self._told: dict[str, tuple[Lack | None, float]] = {}  # by model

    def __repr__(self) -> str:
        short = sum(standing.lack is not None for standing in self.standings)
        return f"<Declarations {len(self.standings)} declared | {short} short>"

    @property
    def recent(self) -> tuple[Load, ...]:
        """Loads that have just ended: what they did is still to be seen."""
        return tuple(load for load, _ in self._recent.values())

    def ended(self, load: Load, now_s: float) -> None:
        if not load.is_renewal:
            self._recent[load.node] = (load, now_s)

    def look(self, at: Look) -> None:
        """Before anything is decided: what stands, and what was lost."""
        self._recent = {node: kept for node, kept in self._recent.items() if at.now_s - kept[1] < RECENT_S}
        if at.mode is not Mode.MANAGED or not self.declared:
            self._memory, self.holds = NOTHING, NO_HOLDS
            self.standings = unkept(self.declared, at.snapshot)
            return
        ended = self.recent
        self._memory = remember(
            self._memory,
            self.declared,
            at.snapshot,
            loading=at.loading,
            leaving=at.leaving,
            loaders={**{load.node: load.weights for load in ended}, **at.loading},
            displaced=at.leaving | {(load.node, weights) for load in ended for weights in load.displaces},
            now_s=at.now_s,
        )
        self.holds = holds_of(self.declared, at.snapshot, loading=at.loading, leaving=at.leaving, memory=self._memory)

    def keep(self, at: Look) -> tuple[Load, ...]:
        """After the lines were served: what is to be loaded or renewed."""
        loads = self._compare(at)
        if loads is None:
            return ()
        self._memory = asked(self._memory, loads, at.now_s)
        self._tell(at)
        return loads

    def follow(self, at: Look) -> None:
        """Where another replica leads and loads: how it stands is told by all. What is gone the leader may have
        displaced: none of it counts as lost, should this replica lead one day."""
        self._memory = replace(self._memory, lost=NOTHING.lost, crowded=NOTHING.crowded)
        self._compare(at)

    def _compare(self, at: Look) -> tuple[Load, ...] | None:
        """What is missing, where that is to be mended and everything was looked at."""
        if at.mode is not Mode.MANAGED or not self.declared or not self.has_looked():
            return None
        pool = pool_of(
            *(at.lines, at.snapshot, at.occupancy, at.experience),
            leaving=at.leaving,
            holds=self.holds,
            now_s=at.now_s,
        )
        loads, self.standings = keep(self.declared, Moment(pool, at.loading, at.backoff, self._memory))
        return loads

    def _tell(self, at: Look) -> None:
        """Once for each change between whole and short, and what keeps it short once a minute at most."""
        told, self._told = self._told, {}
        for standing in self.standings:
            key, lack = standing.declaration.key, standing.lack
            known, at_s = told.get(key, (None, -math.inf))
            is_other = lack is not known or key not in told
            is_early = lack is Lack.NOT_ON_DISK and not at.snapshot.all_read
            is_repeat = lack is not None and known is not None and at.now_s - at_s < TELL_AGAIN_S
            if not is_other or is_early or is_repeat:
                self._told.update({key: told[key]} if key in told else {})
                continue
            self._told[key] = (lack, at.now_s)
            if lack is None:
                log.info("%s stands as declared, on %s", key, ", ".join(standing.nodes))
            else:
                log.log(logging.INFO if lack in _QUIET else logging.WARNING, "%s", lack_text(standing))
