"""What the operator allows calls. One frozen value: a call reads it once at its start and keeps it to its end."""

from __future__ import annotations

from dataclasses import dataclass

from router.fleet.snapshot import Snapshot
from router.fleet.tickets import Lease
from router.policy.access import OPEN, Access
from router.policy.alias import Aliases
from router.policy.deadlines import Deadlines
from router.policy.guard import Guards
from router.policy.route import Reach
from router.upstream.course import RetryLimits
from router.wire.origins import BUILT_IN_ONLY, Origins


@dataclass(frozen=True, slots=True)
class CallRules:
    aliases: Aliases
    deadlines: Deadlines
    retries: RetryLimits
    guards: Guards
    reach: Reach
    access: Access = OPEN
    origins: Origins = BUILT_IN_ONLY  # of browsers' pages that may call, pages included
    kept: frozenset[str] = frozenset()  # keys of models whose copies the placer keeps in memory

    def keeps(self, snapshot: Snapshot, lease: Lease) -> bool:
        """Whether the placer says how long this copy stays, under whatever name it is called."""
        if not self.kept:
            return False
        node = snapshot.nodes.get(lease.node)
        return lease.model in self.kept or (node is not None and not self.kept.isdisjoint(node.keys_of(lease.weights)))
