"""The steps in Lua as a library that stays in the server, and the names under which a pool keeps what it shares.

The library and its function are named by a digest, so that two versions of the router can speak to one server: each
brings its own.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

SCHEMA = 1  # of keys and records: another schema is another pool
PARTS = (
    *("prelude", "teams", "shares", "queues", "lines", "order"),
    *("copies", "nodes", "slots", "ledger", "custody", "board", "news", "book"),
)


@cache
def steps() -> str:
    """Each part is a function of its own: Lua gives one function 200 variables, and a closure 60 of those around it."""
    folder = Path(__file__).parent
    prelude, *parts = ((folder / f"{part}.lua").read_text(encoding="utf-8") for part in PARTS)
    return "\n".join((prelude, *(f"do local part = function()\n{part}end part() end" for part in parts)))


@cache
def name() -> str:
    """Of the library, and of the one function that it has: both are names for a whole server."""
    return f"ollama_router_{sha256(steps().encode()).hexdigest()[:12]}"


@cache
def library() -> str:
    return f"#!lua name={name()}\n{steps()}\nredis.register_function('{name()}', Book.run)\n"


def prefix(pool: str) -> str:
    """What each key of a pool begins with. The braces are a hash tag: a pool stands on one node of a cluster."""
    return f"ollama-router:{{{pool}}}:{SCHEMA}:"
