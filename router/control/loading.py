"""A load that runs, and what is told when one cannot be or fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from router.errors import NoNode, NotLoaded, Refusal, Rejection
from router.policy.placement import Load, Refuse
from router.policy.room import Held
from router.seams import NodeFailed

RETRY_AFTER_S = 5.0


@dataclass(slots=True)
class Loading:
    """A load that runs, and what its node had in memory before. `since_s`: its beginning, or when it displaced last.
    `is_over`: what it displaced is being told; nothing more goes for it."""

    load: Load
    since_s: float
    before: dict[str, Held]
    task: asyncio.Task[None] | None = None
    is_over: bool = False
    offers: set[asyncio.Task[None]] = field(default_factory=set)  # to Ollama, of what displaces late


def refusal_of(action: Refuse) -> Refusal:
    if action.kind is Rejection.NOT_LOADED:
        return NotLoaded(
            f"no node has '{action.key}' loaded, and this router loads nothing", retry_after_s=RETRY_AFTER_S
        )
    return NoNode(f"no node that has '{action.key}' can serve it now", retry_after_s=RETRY_AFTER_S)


def result_of(failed: NodeFailed) -> str:
    """Label of `model_loads_total`."""
    return "oom" if "out-of-memory" in failed.text or "out of memory" in failed.text else "failed"
