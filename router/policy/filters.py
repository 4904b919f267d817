"""Which rows a call may use at all."""

from __future__ import annotations

from collections.abc import Sequence, Set

from router.fleet.snapshot import Row


def usable(rows: Sequence[Row], excluded: Set[str], num_ctx: int, *, names_no_ctx: bool = False) -> Sequence[Row]:
    """Without excluded nodes, and without copies that would reload: loaded with less context than asked for (0 asks for
    nothing), or with a named one for a call that cannot name it."""
    if excluded:
        rows = [row for row in rows if row.node not in excluded]
    if names_no_ctx:
        rows = [row for row in rows if not row.named_ctx]
    return [row for row in rows if has_context(row, num_ctx)] if num_ctx else rows


def has_context(row: Row, num_ctx: int) -> bool:
    """Ollama caps what is asked for to the model's training context; a row that does not tell its context passes."""
    asked = min(num_ctx, row.context_max) if row.context_max else num_ctx
    return not row.num_ctx or asked <= row.num_ctx
