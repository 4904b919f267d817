"""A file of headers for a node: what it may say, and that nothing in it reaches a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.credentials import CREDENTIALS_BYTES_MAX, CredentialsError, parse_credentials

SECRET = b"Bearer s3cr3t"


def problem_of(data: bytes) -> tuple[int, str]:
    with pytest.raises(CredentialsError) as caught:
        parse_credentials(data)
    return caught.value.line, str(caught.value)


def test_lines_are_headers_and_comments_are_none() -> None:
    data = b"# for gpu-1\r\nAuthorization: " + SECRET + b" \r\n\r\nX-Team:\tml\n"
    assert parse_credentials(data) == ((b"Authorization", SECRET), (b"X-Team", b"ml"))


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "Connection", "TE", "Upgrade", "Keep-Alive", "Expect", "Via"),
        *("x-request-id", "X-Ollama-Router-Node", "Content-Encoding", "Proxy-Connection"),
    ],
)
def test_framing_and_what_the_router_says_itself_are_refused(name: str) -> None:
    assert problem_of(b"A: b\n" + name.encode() + b": 1\n") == (2, f"{name} is the router's own to send")


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization",
        b"Autho rization: x",
        b" Authorization: x",
        b"Authorization : x",
        b": x",
        b"A\x00: x",
        b"\xe4: x",
    ],
)
def test_what_is_no_header_is_refused_by_its_line(line: bytes) -> None:
    assert problem_of(b"A: b\n\n" + line)[0] == 3


@pytest.mark.parametrize("value", [b"", b" ", b"a\rb", b"a\x00b", b"a\x1fb", b"a\x7f"])
def test_a_value_that_could_end_its_line_is_refused_and_not_repeated(value: bytes) -> None:
    line, text = problem_of(b"Authorization: " + (SECRET + value if value.strip() else value))
    assert line == 1
    assert "s3cr3t" not in text


def test_an_empty_a_doubled_and_a_huge_file_are_refused() -> None:
    assert problem_of(b"\n# nothing\n") == (0, "holds no header")
    assert problem_of(b"A: 1\na: 2\n") == (0, "has a twice")
    assert problem_of(b"A: " + b"x" * CREDENTIALS_BYTES_MAX)[1].startswith("larger than")


@given(st.binary(max_size=200))
def test_whatever_is_taken_keeps_to_its_line(data: bytes) -> None:
    try:
        pairs = parse_credentials(data)
    except CredentialsError:
        return
    for name, value in pairs:
        assert name
        assert value
        assert not any(byte in name + value for byte in b"\r\n\x00")
        assert name.lower() not in (b"host", b"content-length", b"transfer-encoding", b"connection")
