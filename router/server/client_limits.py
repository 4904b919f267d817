"""What one client's connection may cost: what operators set, and what nobody needs to."""

from __future__ import annotations

from dataclasses import dataclass

# What a client may send ahead while its call is served: a pipelined request. More than that is not a client of ours.
PIPELINED_BYTES_MAX = 64 * 1024
# Requests that came whole in one read before the first of them was served; nginx's clients send one or two.
PIPELINED_MAX = 64
# Fields of one head: each costs a call into Python, and a mebibyte of the shortest would be 200,000. Node.js takes
# 2,000.
FIELDS_MAX = 1000
# A path and its query: a mebibyte of escapes would stop the loop for a quarter of a second. The longest path of Ollama
# ends in a model's name, 593 characters, escaped; nginx takes as much as this (large_client_header_buffers).
TARGET_BYTES_MAX = 8 * 1024
# Linux: a client that vanished without a FIN is noticed after half a minute of unacknowledged data.
USER_TIMEOUT_MS = 30_000
# An answer that comes before the request's end is read before the reset that the rest would bring (RFC 9112 9.6).
LINGER_S = 2.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    header_bytes: int
    header_s: float
    keep_alive_s: float
    connections: int
    stall_s: float
    stream_buffer_bytes: int
