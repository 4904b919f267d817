"""Heads and framings that are broken, or only look it, each with what RFC 9112 asks of who receives them.

Deterministic: what is drawn is which of them, for which request, in which pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fuzz.case import Expect

# Follows the first body where a length is told twice: a server that believes the other length answers it.
SMUGGLED = b"GET /api/version HTTP/1.1\r\nHost: smuggled\r\n\r\n"
# Asked where a connection should have ended, and how its answer is known.
PROBE = b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n"
PROBED = b"Ollama is running"
HEADER_BYTES = 16 * 1024  # the limit that the fuzzed router has
BODY_BYTES = 64 * 1024

Framed = tuple[bytes, Expect, int]  # raw, expectation, answers at most


def framed(path: bytes, lines: list[bytes], body: bytes, *, method: bytes = b"POST", version: bytes = b"1.1") -> bytes:
    head = [b"%b %b HTTP/%b" % (method, path, version), b"Host: router", *lines]
    return b"\r\n".join([*head, b"", body])


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def chunked(body: bytes, size: bytes = b"%x", extension: bytes = b"", trailer: bytes = b"") -> bytes:
    return size % len(body) + extension + b"\r\n" + body + b"\r\n0\r\n" + trailer + b"\r\n"


def _lengths(*values: bytes, expect: Expect = Expect.REFUSE) -> Callable[[bytes, bytes], Framed]:
    """Content-Length lines as they stand; `%d` is the true one."""

    def build(path: bytes, body: bytes) -> Framed:
        true = b"%d" % len(body)
        lines = [b"Content-Length: " + value.replace(b"%d", true) for value in values]
        return framed(path, lines, body + SMUGGLED), expect, 2 if expect is Expect.ANY else 1

    return build


def _codings(*values: bytes, expect: Expect, before: bytes = b"") -> Callable[[bytes, bytes], Framed]:
    """A chunked body under these Transfer-Encoding lines; with `before`, a length stands there too."""

    def build(path: bytes, body: bytes) -> Framed:
        lines = [before] if before else []
        lines += [b"Transfer-Encoding:" + value for value in values]
        return framed(path, lines, chunked(body) + SMUGGLED), expect, 1

    return build


def _chunks(build_body: Callable[[bytes], bytes], expect: Expect) -> Callable[[bytes, bytes], Framed]:
    return lambda path, body: (framed(path, [b"Transfer-Encoding: chunked"], build_body(body)), expect, 1)


def _line(line: bytes, expect: Expect) -> Callable[[bytes, bytes], Framed]:
    return lambda path, body: (framed(path, [line, length(body)], body), expect, 1)


def _first(line: bytes, expect: Expect) -> Callable[[bytes, bytes], Framed]:
    """The request line; `%s` is the path."""

    def build(path: bytes, body: bytes) -> Framed:
        return line.replace(b"%s", path) + b"\r\nHost: router\r\n" + length(body) + b"\r\n\r\n" + body, expect, 1

    return build


def _whole(
    edit: Callable[[bytes, bytes], bytes], expect: Expect, requests: int = 1
) -> Callable[[bytes, bytes], Framed]:
    """The usual head and body, edited as bytes."""

    def build(path: bytes, body: bytes) -> Framed:
        head, _, _ = framed(path, [length(body)], b"").partition(b"\r\n\r\n")
        return edit(head + b"\r\n\r\n", body), expect, requests

    return build


HUGE = b"9" * 30

LENGTHS: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    # RFC 9112 section 6.3: invalid or differing lengths are unrecoverable.
    "two lengths that differ": _lengths(b"%d", b"0"),
    "two lengths that differ, the other first": _lengths(b"1", b"%d"),
    "two lengths that agree": _lengths(b"%d", b"%d", expect=Expect.ANY),
    "a list of lengths": _lengths(b"%d, %d", expect=Expect.ANY),
    "a list of lengths that differ": _lengths(b"%d, 0"),
    "a negative length": _lengths(b"-1"),
    "a length with a sign": _lengths(b"+%d"),
    "a hexadecimal length": _lengths(b"0x10"),
    "a length with an underscore": _lengths(b"1_0"),
    "a length with a fraction": _lengths(b"%d.0"),
    "a length of letters": _lengths(b"ten"),
    "a length of Arabic-Indic digits": _lengths("\u0661\u0660".encode()),
    "an empty length": _lengths(b""),
    "a length above 64 bits": _lengths(HUGE),
    "a length of -2^64 + 1": _lengths(b"18446744073709551617"),
    "a length above the limit": _lengths(b"%d00000000"),
}
CODINGS: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    # RFC 9112 section 6.1: both may be refused; if not, the connection ends behind them.
    "a length and chunked": _codings(b" chunked", expect=Expect.LAST, before=b"Content-Length: 3"),
    "a length of nothing and chunked": _codings(b" chunked", expect=Expect.LAST, before=b"Content-Length: 0"),
    "chunked twice": _codings(b" chunked", b" chunked", expect=Expect.REFUSE),
    "chunked, chunked": _codings(b" chunked, chunked", expect=Expect.REFUSE),
    "chunked is not last": _codings(b" chunked, gzip", expect=Expect.REFUSE),
    "gzip, chunked": _codings(b" gzip, chunked", expect=Expect.REFUSE),  # a coding that nobody here takes off
    "identity": _codings(b" identity", expect=Expect.REFUSE),
    "xchunked": _codings(b" xchunked", expect=Expect.REFUSE),
    "chunked with a letter behind a tab": _codings(b"\tchunked\tx", expect=Expect.REFUSE),
    "chunked in quotes": _codings(b' "chunked"', expect=Expect.REFUSE),
    "an empty coding": _codings(b"", expect=Expect.REFUSE),
    "ChUnKeD": lambda path, body: (framed(path, [b"Transfer-Encoding: ChUnKeD"], chunked(body)), Expect.GOOD, 1),
    "chunked in HTTP/1.0": lambda path, body: (
        framed(path, [b"Transfer-Encoding: chunked"], chunked(body) + SMUGGLED, version=b"1.0"),
        Expect.LAST,
        1,
    ),
}
CHUNKS: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    "chunks": _chunks(lambda body: b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n", Expect.GOOD),
    "a chunk extension": _chunks(lambda body: chunked(body, extension=b";name=value"), Expect.GOOD),
    "a quoted chunk extension": _chunks(lambda body: chunked(body, extension=b';name="a value"'), Expect.GOOD),
    "a line end in a chunk extension": _chunks(lambda body: chunked(body, extension=b';n="\r\n"'), Expect.REFUSE),
    "a bare line feed in a chunk extension": _chunks(lambda body: chunked(body, extension=b";n=\nx"), Expect.ANY),
    "a chunk extension without a name": _chunks(lambda body: chunked(body, extension=b";;="), Expect.ANY),
    "an endless chunk extension": _chunks(lambda body: chunked(body, extension=b";" + b"x" * 65536), Expect.ANY),
    "trailers": _chunks(lambda body: chunked(body, trailer=b"X-Sum: 1\r\n"), Expect.GOOD),
    "a length as a trailer": _chunks(lambda body: chunked(body, trailer=b"Content-Length: 5\r\n"), Expect.ANY),
    "endless trailers": _chunks(lambda body: chunked(body, trailer=b"X: 1\r\n" * 20_000), Expect.ANY),
    "leading zeros of a chunk": _chunks(lambda body: chunked(body, size=b"0000%x"), Expect.ANY),
    "a chunk size with a sign": _chunks(lambda body: chunked(body, size=b"+%x"), Expect.REFUSE),
    "a negative chunk size": _chunks(lambda body: chunked(body, size=b"-%x"), Expect.REFUSE),
    "a chunk size with 0x": _chunks(lambda body: chunked(body, size=b"0x%x"), Expect.REFUSE),
    "a chunk size with an underscore": _chunks(lambda body: chunked(body, size=b"0_%x"), Expect.REFUSE),
    "a chunk size behind a space": _chunks(lambda body: chunked(body, size=b" %x"), Expect.REFUSE),
    "a chunk size before a space": _chunks(lambda body: chunked(body, size=b"%x "), Expect.ANY),
    "a chunk size above 64 bits": _chunks(lambda body: b"FFFFFFFFFFFFFFFFF\r\n" + body, Expect.REFUSE),
    "a chunk size that is no number": _chunks(lambda body: b"zz\r\n" + body + b"\r\n0\r\n\r\n", Expect.REFUSE),
    "no chunk size": _chunks(lambda body: b"\r\n" + body + b"\r\n0\r\n\r\n", Expect.REFUSE),
    "a chunk longer than it says": _chunks(lambda body: b"1\r\n" + body + b"\r\n0\r\n\r\n", Expect.REFUSE),
    "a chunk ended by line feeds": _chunks(lambda body: b"%x\n%b\n0\n\n" % (len(body), body), Expect.ANY),
    "a chunk that never ends": _chunks(lambda body: b"%x\r\n%b" % (len(body) + 9, body), Expect.ANY),
}
LINES: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    # RFC 9112 section 5: no space before the colon, no folded lines, no names that are no tokens.
    "a space before the colon": _line(b"X-Name : value", Expect.REFUSE),
    "a space before the colon of a length": _line(b"Content-Length : 1", Expect.REFUSE),
    "a tab before the colon of a coding": _line(b"Transfer-Encoding\t: chunked", Expect.REFUSE),
    "a folded line": _line(b"X-Name: value\r\n folded", Expect.ANY),
    "a folded length": _line(b"X-Name: value\r\n Content-Length: 1", Expect.ANY),
    "a line without a colon": _line(b"X-Name", Expect.REFUSE),
    "a line without a name": _line(b": value", Expect.REFUSE),
    "a NUL in a name": _line(b"X-N\x00me: value", Expect.REFUSE),
    "a NUL in a value": _line(b"X-Name: val\x00ue", Expect.ANY),
    "a bare carriage return in a value": _line(b"X-Name: val\rContent-Length: 1", Expect.ANY),
    "a bare carriage return before a line": _line(b"X-Name: value\r\r\nX-Other: 1", Expect.ANY),
    "a control character in a value": _line(b"X-Name: \x01\x7f", Expect.ANY),
    "a name of bytes above 127": _line(b"X-N\xe4me: value", Expect.REFUSE),
    "a value of bytes above 127": _line(b"X-Name: \xff\xfe\xe4", Expect.GOOD),
    "a name of separators": _line(b"X(Name): value", Expect.REFUSE),
    "a long value": _line(b"X-Name: " + b"x" * (HEADER_BYTES // 2), Expect.GOOD),
    "a value above the limit": _line(b"X-Name: " + b"x" * (4 * HEADER_BYTES), Expect.REFUSE),
    "a name above the limit": _line(b"x" * (4 * HEADER_BYTES) + b": 1", Expect.REFUSE),
    "lines above the limit": _line(b"\r\n".join(b"X-%d: value" % n for n in range(8000)), Expect.REFUSE),
    "a second host": _line(b"Host: other", Expect.REFUSE),
    "an upgrade to websocket": _line(b"Connection: Upgrade\r\nUpgrade: websocket", Expect.GOOD),
    "an upgrade to h2c": _line(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA", Expect.GOOD
    ),
    "connection options of all kinds": _line(b"Connection: keep-alive, close, x, , ;", Expect.ANY),
    "a wrong expectation": _line(b"Expect: a pony", Expect.ANY),
    "a 100-continue": _line(b"Expect: 100-continue", Expect.GOOD),
    "a request id of everything": _line(b"x-request-id: " + bytes(range(0x20, 0x7F)) * 4, Expect.GOOD),
    "an affinity of bytes above 127": _line(b"x-ollama-router-affinity: \xff\xfe", Expect.GOOD),
    "an unknown encoding": _line(b"Content-Encoding: br", Expect.ANSWER),
    "a zstd body that is none": _line(b"Content-Encoding: zstd", Expect.ANSWER),
    "a foreign origin": _line(b"Origin: null", Expect.ANY),
}
FIRST_LINES: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    "the absolute form": _first(b"POST http://router%s HTTP/1.1", Expect.GOOD),  # RFC 9112 section 3.2.2
    "the absolute form of https": _first(b"POST https://router:443%s HTTP/1.1", Expect.ANY),
    "the absolute form without a path": _first(b"POST http://router HTTP/1.1", Expect.ANY),
    "an absolute form that is no URL": _first(b"POST http://[::1%s HTTP/1.1", Expect.ANY),
    "the authority form": _first(b"POST router:80 HTTP/1.1", Expect.ANY),
    "a CONNECT": _first(b"CONNECT router:80 HTTP/1.1", Expect.ANY),
    "the asterisk form": _first(b"OPTIONS * HTTP/1.1", Expect.ANY),
    "a query": _first(b"POST %s?a=b&%00=%ff HTTP/1.1", Expect.ANY),
    "a fragment": _first(b"POST %s#part HTTP/1.1", Expect.ANY),
    "a method of other letters": _first(b"post %s HTTP/1.1", Expect.ANY),
    "an unknown method": _first(b"BREW %s HTTP/1.1", Expect.ANY),
    "a method that is no token": _first(b"PO(ST %s HTTP/1.1", Expect.REFUSE),
    "a method with a NUL": _first(b"PO\x00ST %s HTTP/1.1", Expect.REFUSE),
    "a long method": _first(b"X" * 5000 + b" %s HTTP/1.1", Expect.ANY),
    "no method": _first(b" %s HTTP/1.1", Expect.REFUSE),
    "no version": _first(b"POST %s", Expect.REFUSE),
    "HTTP/0.9": _first(b"POST %s HTTP/0.9", Expect.REFUSE),
    "HTTP/1.2": _first(b"POST %s HTTP/1.2", Expect.ANY),
    "HTTP/2.0": _first(b"POST %s HTTP/2.0", Expect.REFUSE),
    "HTTP/1.": _first(b"POST %s HTTP/1.", Expect.REFUSE),
    "HTTP/1.10": _first(b"POST %s HTTP/1.10", Expect.REFUSE),
    "HTTP/+1.1": _first(b"POST %s HTTP/+1.1", Expect.REFUSE),
    "http/1.1": _first(b"POST %s http/1.1", Expect.REFUSE),
    "another protocol": _first(b"POST %s ICY/1.1", Expect.REFUSE),
    "words behind the version": _first(b"POST %s HTTP/1.1 please", Expect.REFUSE),
    "several spaces": _first(b"POST  %s  HTTP/1.1", Expect.ANY),
    "tabs": _first(b"POST\t%s\tHTTP/1.1", Expect.ANY),
    "a space in the target": _first(b"POST %s here HTTP/1.1", Expect.REFUSE),
    "a NUL in the target": _first(b"POST %s\x00 HTTP/1.1", Expect.REFUSE),
    "bytes above 127 in the target": _first(b"POST %s/\xff\xfe HTTP/1.1", Expect.ANY),
    "a target above the limit": _first(b"POST %s" + b"a" * (4 * HEADER_BYTES) + b" HTTP/1.1", Expect.REFUSE),
    "a trailing slash": _first(b"POST %s/ HTTP/1.1", Expect.ANY),
    "doubled slashes": _first(b"POST /%s HTTP/1.1", Expect.ANY),
    "dot segments": _first(b"POST /x/..%s HTTP/1.1", Expect.ANY),
    "an escaped path": _first(b"POST /%61pi/%00%zz%s HTTP/1.1", Expect.ANY),
}
WHOLES: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    "line feeds only": _whole(lambda head, body: head.replace(b"\r\n", b"\n") + body, Expect.ANY),
    "one line feed only": _whole(lambda head, body: head.replace(b"\r\n", b"\n", 1) + body, Expect.ANY),
    "carriage returns only": _whole(lambda head, body: head.replace(b"\r\n", b"\r") + body, Expect.ANY),
    "an empty line before": _whole(lambda head, body: b"\r\n" + head + body, Expect.GOOD),  # RFC 9112 section 2.2
    "many empty lines before": _whole(lambda head, body: b"\r\n" * 5000 + head + body, Expect.ANY),
    "a space before the first header": _whole(lambda head, body: head.replace(b"Host", b" Host") + body, Expect.ANY),
    "no host": _whole(lambda head, body: head.replace(b"Host: router\r\n", b"") + body, Expect.REFUSE),
    "an empty host": _whole(lambda head, body: head.replace(b"Host: router", b"Host:") + body, Expect.ANY),
    "a host that is none": _whole(lambda head, body: head.replace(b": router", b": a b/c@d") + body, Expect.ANY),
    "a head without its end": _whole(lambda head, body: head[:-2], Expect.ANY),
    "a body without its end": _whole(lambda head, body: head + body[:-1], Expect.ANY),
    "a body longer than it says": _whole(lambda head, body: head + body + b"}}}", Expect.ANY, 2),
    "two requests": _whole(lambda head, body: (head + body) * 2, Expect.ANSWER, 2),
    "twenty requests": _whole(lambda head, body: (head + body) * 20, Expect.ANSWER, 20),
    "a request and nonsense": _whole(lambda head, body: head + body + b"\x00\xff nonsense\r\n\r\n", Expect.ANY, 2),
    "HTTP/2 with prior knowledge": _whole(lambda head, body: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Expect.REFUSE),
    "a TLS hello": _whole(lambda head, body: bytes.fromhex("16030100c8010000c40303") + body, Expect.REFUSE),
    "a TLS hello that is short": _whole(lambda head, body: bytes.fromhex("1603010005"), Expect.REFUSE),
    "a proxy line": _whole(lambda head, body: b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + head + body, Expect.REFUSE),
    "an SMTP greeting": _whole(lambda head, body: b"EHLO router\r\n", Expect.REFUSE),
    "nothing": _whole(lambda head, body: b"", Expect.ANY),
    "only line ends": _whole(lambda head, body: b"\r\n\r\n\r\n", Expect.ANY),
}
ALL: Mapping[str, Callable[[bytes, bytes], Framed]] = {
    **LENGTHS, **CODINGS, **CHUNKS, **LINES, **FIRST_LINES, **WHOLES,
}  # fmt: skip
