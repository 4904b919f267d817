"""The steps in Lua as one script, and the names under which a pool keeps what it shares.

Redis knows a script by its digest, so that two versions of the router can speak to one server: each brings its own.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from pathlib import Path

SCHEMA = 1  # of keys and records: another schema is another pool
PARTS = (
    *("prelude", "teams", "shares", "queues", "lines", "order"),
    *("copies", "nodes", "slots", "ledger", "custody", "board", "book"),
)


@cache
def source() -> str:
    """Each part is a function of its own: a closure finds variables of an enclosing function without a search, those of
    the same one by a walk over all that are captured, in each run.
    """
    folder = Path(__file__).parent
    prelude, *parts = ((folder / f"{part}.lua").read_text(encoding="utf-8") for part in PARTS)
    return "\n".join(
        (prelude, *(f"do local part = function()\n{part}end part() end" for part in parts), "return Book.run()")
    )


@cache
def digest() -> str:
    """As Redis names it."""
    return sha1(source().encode(), usedforsecurity=False).hexdigest()


def prefix(pool: str) -> str:
    """What each key of a pool begins with. The braces are a hash tag: a pool stands on one node of a cluster."""
    return f"ollama-router:{{{pool}}}:{SCHEMA}:"
