"""Strategies: good requests of the recordings, made worse in their head, their body, their bytes or their pace."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

from router.wire.endpoints import BY_PATH
from tests.fakes.recordings import Recording, recordings
from tests.fuzz import heads
from tests.fuzz.case import Case, End, Expect

SEED_BYTES_MAX = 4096
SEEDS: list[Recording] = [
    each
    for each in recordings("native", "openai", "anthropic", "refused", "quirks")
    if each.request.method == "POST" and each.path in BY_PATH and len(each.request.body) <= SEED_BYTES_MAX
]
# Answered well whoever asks, so that a case that must succeed can be told.
GOOD = [each for each in SEEDS if each.name in ("native/generate", "openai/v1-chat", "anthropic/v1-messages")]
READ_ONLY = ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/gemma3:270m", "/api/status", "/no"]
OTHERS = ["/api/show", "/api/pull", "/api/delete", "/api/copy", "/api/me", "/api/blobs/sha256:00", "/metrics", "/admin"]

DEEP = 20_000
TOKENS: list[bytes] = [
    b"\x00", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\\u12", b'"', b"\\",
    b",", b"[" * DEEP, b'{"a":' * DEEP, b"]", b"}", b"{}", b"1e999", b"-", b"-0", b"NaN", b"Infinity", b"0x1", b"00",
    b"1.",
    b"/*x*/", b"// x\n", b"null", b'"model":"nope",', b'"MODEL":"nope",', b'"\\u006dodel":"nope",', b'"stream":"yes",',
    b'"mode\xc5\xbfl":1,', "\u2028".encode(), b"\n" * 50, b" " * 5000, b'"' + b"x" * 5000 + b'":1,',
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 2**64, -(2**63), 1e308, 10**40, "", " ", "x", "x" * 5000, "\u0000",
    "\ud800", "\r\nX-Injected: 1", "gemma3:270m", "GEMMA3:270M", "library/gemma3:270m", "gpt-4", "nope", "a/b/c/d/e",
    "gemma3:270m\r\n", "../../etc/passwd", "http://x/y", ":cloud", "m:cloud", "-1", "5m", "-5m", "1e9h", [], [[]], {},
    [None], [{}], {"": ""}, {"type": "x"}, [1, "a", None], [{"role": "user", "content": [{"type": "text"}]}],
]  # fmt: skip

cuts = st.lists(st.integers(0, 1 << 16), max_size=6).map(tuple)
ends = st.sampled_from([End.STAY, End.STAY, End.STAY, End.HALF_CLOSE, End.LEAVE])


def of(kind: str, seed: Recording, body: bytes, cut: tuple[int, ...], end: End, expect: Expect = Expect.ANSWER) -> Case:
    """A head that is right, whatever its body is."""
    lines = [b"%b: %b" % (name, seed.request.headers.get(name)) for name in (b"Content-Type", b"Content-Encoding")]
    lines = [line for line in lines if not line.endswith(b": ")]
    raw = heads.framed(seed.path.encode(), [*lines, heads.length(body)], body)
    if len(body) > heads.BODY_BYTES and expect is Expect.ANSWER:
        expect = Expect.ANY  # refused before all of it was read, and the answer may be lost with the rest
    return Case(kind, raw, expect, end, cuts=cut, path=seed.path)


@st.composite
def broken_heads(draw: st.DrawFn) -> Case:
    seed, kind = draw(st.sampled_from(GOOD)), draw(st.sampled_from(sorted(heads.ALL)))
    raw, expect, requests = heads.ALL[kind](seed.path.encode(), seed.request.body)
    end = draw(ends)
    if end is not End.STAY:
        expect = Expect.ANY
    return Case(f"head: {kind}", raw, expect, end, requests, draw(cuts), seed.path)


@st.composite
def broken_bodies(draw: st.DrawFn) -> Case:
    """Bytes put in, taken out, or changed; the length told is right."""
    seed = draw(st.sampled_from(SEEDS))
    body = bytearray(seed.request.body)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.sampled_from(["insert", "flip", "cut", "double"])):
            case "insert":
                body[at:at] = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
            case "flip" if body:
                body[at % len(body)] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del body[at : at + draw(st.integers(1, 64))]
            case _:
                body = body + body[at:]
    return of("body: bytes", seed, bytes(body), draw(cuts), draw(ends))


@st.composite
def odd_members(draw: st.DrawFn) -> Case:
    """JSON as it should be, with values that nobody expects."""
    seed = draw(st.sampled_from([each for each in SEEDS if each.request.body.startswith(b"{")]))
    try:
        members = json.loads(seed.request.body)
    except ValueError:
        members = {"model": "gemma3:270m"}
    for _ in range(draw(st.integers(1, 3))):
        _spoil(draw, members)
    try:
        body = json.dumps(members, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    except RecursionError:
        body = b"{}"
    return of("body: members", seed, body, draw(cuts), draw(ends))


def _spoil(draw: st.DrawFn, members: Any) -> None:
    """One member, at any depth, gets another value, another name, or goes."""
    while True:
        keys = list(members) if isinstance(members, dict) else list(range(len(members)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        inner = members[key]
        if isinstance(inner, dict | list) and inner and draw(st.booleans()):
            members = inner
            continue
        value = deepcopy(draw(st.sampled_from(VALUES)))
        if isinstance(members, dict) and draw(st.integers(0, 3)) == 0:
            members[draw(st.sampled_from([str(key).upper(), "options", "keep_alive", "stream", "format", "x"]))] = value
        else:
            members[key] = value
        return


@st.composite
def other_routes(draw: st.DrawFn) -> Case:
    """Every other route, by every method, with and without a body that it does not want."""
    path = draw(st.sampled_from([*READ_ONLY, *OTHERS, *BY_PATH]))
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]))
    body = draw(st.sampled_from([b"", b"{}", b'{"model":"gemma3:270m"}', b"x" * 2000]))
    lines = [heads.length(body)] if body else []
    lines += draw(st.sampled_from([[], [b"Origin: http://localhost:3000"], [b"Origin: https://evil.example"]]))
    raw = heads.framed(path.encode(), lines, body, method=method.encode())
    end = draw(ends)
    return Case(f"route: {method}", raw, Expect.ANSWER, end, 1, draw(cuts), path, is_head=method == "HEAD")


@st.composite
def noise(draw: st.DrawFn) -> Case:
    """A whole request of which any byte may have changed, or bytes of nobody."""
    if draw(st.booleans()):
        return Case("noise: any bytes", draw(st.binary(max_size=400)), Expect.ANY, draw(ends), 8, draw(cuts))
    seed = draw(st.sampled_from(SEEDS))
    raw = bytearray(heads.framed(seed.path.encode(), [heads.length(seed.request.body)], seed.request.body))
    for _ in range(draw(st.integers(1, 6))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    # What was a body may now be requests of its own.
    return Case("noise: changed bytes", bytes(raw), Expect.ANY, draw(ends), 8, draw(cuts))


@st.composite
def early_ends(draw: st.DrawFn) -> Case:
    """A good request that stops somewhere, and its client waits, half-closes or goes."""
    seed = draw(st.sampled_from(GOOD))
    raw = heads.framed(seed.path.encode(), [heads.length(seed.request.body)], seed.request.body)
    stop = draw(st.integers(0, len(raw)))
    return Case("early end", raw[:stop], Expect.ANY, draw(st.sampled_from(list(End))), 1, draw(cuts), seed.path)


cases = st.one_of(broken_heads(), broken_heads(), broken_bodies(), odd_members(), other_routes(), noise(), early_ends())
