"""A call's body and what is read from it: the only work of a call that grows with its bytes before a node has it."""

from __future__ import annotations

import asyncio

from router.seams import Call, Clock, Record
from router.upstream.errand import Reading
from router.wire.intent import SLICE_BYTES, Intent, read_intent

# Large bodies that are read at once, in threads. The interpreter runs one of them at a time, and one that waited for a
# thread in the executor would keep its body after its client has left.
LARGE_READS_MAX = 4


async def read(call: Call, record: Record, clock: Clock, large_reads: asyncio.Semaphore) -> Reading:
    """Refuses with what limits and Ollama's own rules refuse. A large body is read in a thread, in its turn."""
    raw = await call.read_body()
    record.body_bytes = len(raw)
    record.read_s = clock.now_s() - record.arrived_s
    if len(raw) > SLICE_BYTES:
        async with large_reads:
            intent = await asyncio.to_thread(_intent_of, call, raw)
    else:
        intent = _intent_of(call, raw)
    record.model_asked = intent.model
    record.is_stream = intent.streams
    return Reading(intent, raw)


def _intent_of(call: Call, raw: bytes) -> Intent:
    return read_intent(call.endpoint, raw, content_type=call.content_type, content_encoding=call.content_encoding)
