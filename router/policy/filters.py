"""Which rows a call may use at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from enum import StrEnum
from itertools import islice

from router.fleet.snapshot import Row, Rows

ROWS_ASKED = 8  # nodes asked for a fact that is the same on all of them


class Bar(StrEnum):
    """What keeps a row from being a candidate."""

    DOWN = "down"
    DRAINING = "draining"
    NOT_READY = "not_ready"  # not in memory, or about to leave it
    EXCLUDED = "excluded"
    CONTEXT = "context"


def bar_of(row: Row, excluded: Set[str], num_ctx: int) -> Bar | None:
    """None for those that `usable` leaves of a snapshot's ready rows, and for no other."""
    if not row.is_ready:
        if row.takes_calls:
            return Bar.NOT_READY
        return Bar.DRAINING if row.is_up else Bar.DOWN
    if not usable((row,), excluded, 0):
        return Bar.EXCLUDED
    return None if has_context(row, num_ctx) else Bar.CONTEXT


def training_context(rows: Rows) -> int:
    """Where any node tells it: it belongs to the weights, which are the same everywhere. 0 where nobody does."""
    return max((row.context_max for row in islice(rows.by_node.values(), ROWS_ASKED)), default=0)


def largest_context(rows: Iterable[Row]) -> int:
    """Of the loaded ones, in tokens; 0 where none is loaded or tells it."""
    return max((row.num_ctx for row in rows if row.is_ready), default=0)


def usable(rows: Sequence[Row], excluded: Set[str], num_ctx: int, *, names_no_ctx: bool = False) -> Sequence[Row]:
    """Without excluded nodes, and without copies that would reload: loaded with less context than asked for (0 asks for
    nothing), or with a named one for a call that cannot name it."""
    if excluded:
        rows = [row for row in rows if row.node not in excluded]
    if names_no_ctx:
        rows = [row for row in rows if not row.named_ctx]
    return [row for row in rows if has_context(row, num_ctx)] if num_ctx else rows


def has_context(row: Row, num_ctx: int) -> bool:
    """A row that does not tell its context passes."""
    return not row.num_ctx or capped(num_ctx, row.context_max) <= row.num_ctx


def capped(num_ctx: int, context_max: int) -> int:
    """What Ollama makes of a context: no more than the model was trained with. 0 for `context_max` is unknown."""
    return min(num_ctx, context_max) if context_max else num_ctx
