"""A client's unload, answered as Ollama answers it: what others share is not unloaded by one of them."""

from __future__ import annotations

from datetime import UTC, datetime

from router.wire.endpoints import Endpoint, Shape
from router.wire.gojson import go_string
from router.wire.intent import Intent

CONTENT_TYPE = b"application/json; charset=utf-8"

# What stands between the time and `done`: recordings native/unload, native/load-chat, native/embed-load.
_MIDDLE = {
    Shape.GENERATE: b'"response":""',
    Shape.CHAT: b'"message":{"role":"assistant","content":""}',
}


def is_unload(intent: Intent) -> bool:
    return intent.is_load_only and intent.keep_alive_s == 0


def unloaded(endpoint: Endpoint, intent: Intent, wall_s: float) -> bytes:
    """The whole body, without a newline."""
    model = go_string(intent.model)
    middle = _MIDDLE.get(endpoint.shape)
    if middle is None:
        return b'{"model":%b,"embeddings":[]}' % model if endpoint.shape is Shape.EMBED else b'{"embedding":[]}'
    stamp = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
    return b'{"model":%b,"created_at":"%b",%b,"done":true,"done_reason":"unload"}' % (model, stamp, middle)
