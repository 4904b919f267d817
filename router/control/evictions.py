"""Copies that leave memory, seen by comparing what is believed of a node before and after; and who ended them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import StrEnum

from router.fleet.node import CopyState, Health, Node
from router.seams import Clock

Copies = Collection[tuple[str, str]]  # by (node, weights)


class Cause(StrEnum):
    """Label of `model_evictions_total`."""

    OURS = "ours"  # a load of ours displaced it, or a team had it unloaded
    OLLAMA = "ollama"  # the node made room, or somebody else unloaded it
    EXPIRED = "expired"  # nobody used it for its keep-alive


class Evictions:
    """`observe` hears of each: node, model key, cause. `ours` are the copies that this replica takes out of memory now.

    What a node loses by going down is no eviction.
    """

    def __init__(self, observe: Callable[[str, str, str], None], ours: Callable[[], Copies], clock: Clock) -> None:
        self._observe = observe
        self._ours = ours
        self._clock = clock

    def saw(self, before: Node | None, after: Node) -> None:
        if before is None or before.incarnation != after.incarnation or after.health is Health.DOWN:
            return
        for weights, copy in before.copies.items():
            if weights not in after.copies and copy.keys:
                # The keeper holds a copy that is about to expire for one on disk already.
                is_ending = copy.state is CopyState.ON_DISK or copy.expires_at_s <= self._clock.wall_s()
                is_ours = (after.name, weights) in self._ours()
                cause = Cause.OURS if is_ours else Cause.EXPIRED if is_ending else Cause.OLLAMA
                self._observe(after.name, copy.keys[0], cause)
