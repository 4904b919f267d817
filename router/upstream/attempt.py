"""One try of a lease against a node, as its end is told to the call, the record and the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from router.errors import Outcome, Refusal
from router.policy.concurrency import Ran
from router.policy.retry import Failure
from router.upstream.connection import Headers
from router.wire.meter import Meter

# Invariant 4: an answer that may be retried is read this far and discarded; what is longer is passed on.
HELD_BYTES_MAX = 64 * 1024
TEXT_BYTES_MAX = 500  # of a node's error: enough for every text of Ollama's, and no prompt fits through


@dataclass(slots=True)
class Attempt:
    """What came of it. `failure` is set where the client has seen nothing yet and another node may be asked."""

    node: str
    outcome: Outcome = Outcome.OK
    failure: Failure | None = None
    refusal: Refusal | None = None  # we cut it ourselves
    status: int = 0  # the node's
    text: str = ""  # of the node's error, for the log and for a 502
    started_s: float = 0.0
    first_byte_s: float | None = None  # loop times
    first_token_s: float | None = None
    ended_s: float = 0.0
    meter: Meter | None = None
    beside: int = 1  # leases on the copy when it was sent, its own included
    was_slowed: bool = False  # by its client: the node had ended before we saw it


def ran_of(attempt: Attempt) -> Ran | None:
    """None for what took no slot (a load, a refusal) or does not tell when it ended at the node."""
    meter, first_s = attempt.meter, attempt.first_byte_s
    if meter is None or first_s is None or attempt.was_slowed or attempt.outcome is not Outcome.OK:
        return None
    has_output = meter.content_events > 0 or bool(meter.output_tokens)
    return Ran(attempt.started_s, first_s, attempt.ended_s, attempt.beside) if has_output else None


def outcome_of(status: int) -> Outcome:
    """Of a node's own answer that is passed on."""
    if status < 400:
        return Outcome.OK
    return Outcome.CLIENT_ERROR if status < 500 else Outcome.UPSTREAM_ERROR


def framing_of(node_headers: Headers) -> tuple[bytes, int | None]:
    content_type, length = b"", None
    for name, value in node_headers:
        folded = name.lower()
        if folded == b"content-type":
            content_type = value.lower()
        elif folded == b"content-length" and value.isdigit():
            length = int(value)
    return content_type, length
