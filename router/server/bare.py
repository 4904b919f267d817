"""What is answered before there is a call to answer: no HTTP, a head that no server should take, a connection too many.

Go answers so too (net/http/server.go, conn.serve): plain text, and the connection closes.
"""

from __future__ import annotations

import re

from router.server.request import ClientRequest

BAD_REQUEST = b"400 Bad Request"
NO_EXPECTATION = b"417 Expectation Failed"
TARGET_TOO_LONG = b"414 URI Too Long"
HEAD_TOO_LONG = b"431 Request Header Fields Too Large"
NO_ENCODING = b"501 Unsupported transfer encoding"

# A host name or address, and a port (RFC 9110 7.2). Go: httpguts.ValidHostHeader, which takes a little more.
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_HOLDS_BODY = (b"content-length", b"transfer-encoding", b"connection")


def answer(reason: bytes, request_id: str) -> bytes:
    lines = (
        b"HTTP/1.1 %b" % reason,
        b"Content-Type: text/plain; charset=utf-8",
        b"Connection: close",
        b"x-request-id: %b" % request_id.encode(),
        b"",
        reason,
    )
    return b"\r\n".join(lines)


SURPLUS_BODY = b'{"error":"too many connections to this router, please try again"}'


def surplus(request_id: str) -> bytes:
    lines = (
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: %d" % len(SURPLUS_BODY),
        b"Retry-After: 1",
        b"retry-after-ms: 1000",
        b"Connection: close",
        b"x-ollama-router-refused: connections",
        b"x-request-id: %b" % request_id.encode(),
        b"",
        SURPLUS_BODY,
    )
    return b"\r\n".join(lines)


def refusal_of(request: ClientRequest, version: str) -> bytes:
    """Of a head that llhttp took; empty where it is served. As Go's server judges it (net/http/server.go, readRequest;
    transfer.go, parseTransferEncoding)."""
    if version not in ("1.0", "1.1") or not _has_path(request):
        return BAD_REQUEST
    hosts = [value for name, value in request.headers if name.lower() == b"host"]
    if len(hosts) > 1 or (not hosts and not request.is_http10) or not all(map(_HOST.fullmatch, hosts)):
        return BAD_REQUEST
    encoding = request.header("transfer-encoding")
    if encoding and request.is_http10:
        return BAD_REQUEST  # Go ignores it there; what stands before us may not
    if encoding and encoding.lower() != "chunked":
        return NO_ENCODING
    expectation = request.header("expect")
    return NO_EXPECTATION if expectation and expectation.lower() != "100-continue" else b""


def _has_path(request: ClientRequest) -> bool:
    """Origin or absolute form (RFC 9112 3.2); the asterisk is for OPTIONS only, an authority for tunnels only."""
    target = request.target
    return target.startswith((b"/", b"http://", b"https://")) or (target == b"*" and request.method == "OPTIONS")


def framing_of(request: ClientRequest) -> bytes:
    """A head that frames a body as this request's does, and asks for nothing else."""
    lines = [b"POST / HTTP/1.%d" % (not request.is_http10)]
    for name, value in request.headers:
        if name.lower() in _HOLDS_BODY:
            options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
            lines.append(b"%b: %b" % (name, b",".join(options)))
    return b"\r\n".join(lines) + b"\r\n\r\n"
