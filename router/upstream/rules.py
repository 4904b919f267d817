"""What the operator allows calls. One frozen value: a call reads it once at its start and keeps it to its end."""

from __future__ import annotations

from dataclasses import dataclass

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
