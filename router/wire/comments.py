"""What a waiting stream's client hears: SSE comments, which the official clients' decoders read and yield nothing for.

The grammar is stable, for people, proxies' logs and scripts (docs/waiting.md):

    ": ollama-router" [" waiting"] *(" " key "=" value)

`waiting` comments come while nothing of a node has come; one without it tells the decision, as the headers would have.
Keys are words; values hold neither spaces nor anything but printable ASCII. Further keys may come.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from router.wire.headers import DECISION_PREFIX, Pair

_NOT_A_VALUE = re.compile(r"[^\x21-\x7e]")


def in_line(
    *,
    reason: str | None,
    position: int | None,
    of: int | None,
    estimate_s: float | None,
    waited_s: float,
    also: Sequence[str] = (),
) -> bytes:
    """`reason`: what is waited for. None for what the store cannot tell at once. `also`: models in whose lines the call
    stands besides; place and estimate are those in its first."""
    return _comment(
        "waiting",
        ("reason", reason),
        ("position", position),
        ("of", of),
        ("estimate_s", None if estimate_s is None else math.ceil(estimate_s)),
        ("waited_s", int(waited_s)),
        ("also", ",".join(also) or None),
    )


def at_node(node: str, *, waited_s: float) -> bytes:
    """The node has the call and reads its prompt."""
    return _comment("waiting", ("reason", "prefill"), ("node", node), ("waited_s", int(waited_s)))


def decision(pairs: Iterable[Pair]) -> bytes:
    """The decision headers, which came too late to be headers."""
    known = [(name[len(DECISION_PREFIX) :], value) for name, value in pairs if name.startswith(DECISION_PREFIX)]
    return _comment(*((name.decode().replace("-", "_"), value.decode()) for name, value in known))


def _comment(*parts: str | tuple[str, object]) -> bytes:
    """A tuple whose value is None is left out."""
    words = ["ollama-router"]
    for part in parts:
        if isinstance(part, str):
            words.append(part)
        elif part[1] is not None:
            words.append(f"{part[0]}={_NOT_A_VALUE.sub('?', str(part[1]))}")
    return b": %b\n\n" % " ".join(words).encode("ascii")
