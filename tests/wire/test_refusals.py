"""Every refusal there is, in every dialect, as an answer and in a stream; and what the official clients make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import anthropic
import ollama
import openai
import pytest

from router import errors
from router.errors import Outcome, Refusal
from router.wire import dialects
from router.wire.endpoints import BY_PATH, Dialect

TEXT = "what was wrong, and what to do"
API = "api_error"
BAD = "invalid_request_error"

# By class: status, OpenAI's type and code, Anthropic's type, Retry-After, whether a client may repeat the call.
# CONVENTIONS of the ecosystem decide; where a real server refuses the same, its recordings (test_dialects).
TABLE: dict[type[Refusal], tuple[int, str, str | None, str, str | None, bool]] = {
    errors.BadRequest: (400, BAD, None, BAD, None, False),
    errors.OptionTypeError: (500, API, None, API, None, False),
    errors.Unauthorized: (401, BAD, "invalid_api_key", "authentication_error", None, False),
    errors.UnknownModel: (404, "not_found_error", None, "not_found_error", None, True),
    errors.ForbiddenVerb: (403, API, None, "permission_error", None, True),
    errors.CloudRefused: (403, API, None, "permission_error", None, True),
    errors.TooLarge: (413, BAD, None, API, None, False),
    errors.NumCtxRefused: (400, BAD, None, BAD, None, False),
    errors.OptionsRefused: (400, BAD, None, BAD, None, False),
    errors.KeepAliveRefused: (400, BAD, None, BAD, None, False),
    errors.LoopDetected: (508, API, None, API, None, False),
    errors.QueueFull: (503, API, None, "overloaded_error", "3", True),
    errors.TeamQueueFull: (429, "rate_limit_error", "team_queue_full", "rate_limit_error", "3", True),
    errors.RateLimited: (429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error", "3", True),
    errors.QueueTimeout: (503, API, None, "overloaded_error", "1", True),
    errors.NoNode: (503, API, "no_node", "overloaded_error", "1", True),
    errors.NotLoaded: (503, API, "not_loaded", "overloaded_error", "1", True),
    errors.BuffersFull: (503, API, None, "overloaded_error", "1", True),
    errors.Draining: (503, API, "draining", "overloaded_error", "1", True),
    errors.Drained: (503, API, "draining", "overloaded_error", "1", False),
    errors.UpstreamFailed: (502, API, "upstream_error", API, None, False),
    errors.UpstreamTruncated: (502, API, "upstream_error", API, None, False),
    errors.UpstreamTimeout: (504, API, "upstream_timeout", API, None, False),
    errors.LoadFailed: (500, API, "upstream_error", API, None, False),
    errors.RouterBroken: (500, API, "upstream_error", API, None, False),
    errors.NodeAnswered: (422, "their_type", "their_code", "their_type", None, False),
}
BASES = {errors.GuardRefused, errors.Unavailable}  # never raised themselves
PATHS = {
    Dialect.OLLAMA: "/api/chat",
    Dialect.OPENAI: "/v1/chat/completions",
    Dialect.ANTHROPIC: "/v1/messages",
}
EACH = pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)


def made(kind: type[Refusal]) -> Refusal:
    if issubclass(kind, errors.QueueFull):
        return kind(retry_after_s=2.5)
    if issubclass(kind, errors.TeamQueueFull):
        return kind(8, retry_after_s=2.5)
    if issubclass(kind, errors.RateLimited):
        return kind("requests", errors.Allowance(60, 0, 30.0), None, retry_after_s=2.5)
    if issubclass(kind, errors.NodeAnswered):
        return kind(TEXT, 422, outcome=Outcome.CLIENT_ERROR, kind="their_type", code="their_code")
    return kind(TEXT)


def every(kind: type[Refusal]) -> Iterator[type[Refusal]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from every(child)


def test_no_refusal_is_missing_here() -> None:
    assert set(every(Refusal)) - BASES == set(TABLE)


@EACH
def test_who_rejects_says_for_which_reason(kind: type[Refusal]) -> None:
    refusal = made(kind)
    assert (refusal.rejection is not None) == (refusal.outcome in (Outcome.REJECTED, Outcome.DRAINED))


@EACH
@pytest.mark.parametrize("dialect", Dialect)
def test_an_answer_has_status_shape_and_advice(kind: type[Refusal], dialect: Dialect) -> None:
    status, openai_type, code, anthropic_type, retry_after, may_retry = TABLE[kind]
    refusal = made(kind)
    answer = dialects.error_answer(dialect, refusal, "r")
    headers = dict(answer.headers)
    assert answer.status == status
    assert headers.get(b"Retry-After", b"").decode() == (retry_after or "")
    assert (b"retry-after-ms" in headers) == (retry_after is not None)
    assert headers.get(b"x-should-retry") == (None if may_retry else b"false")
    error = json.loads(answer.body)["error"]
    if dialect is Dialect.OLLAMA:
        assert error == refusal.text
    elif dialect is Dialect.OPENAI:
        assert error == {"message": refusal.text, "type": openai_type, "param": None, "code": code}
    else:
        assert error == {"type": anthropic_type, "message": refusal.text}


@EACH
@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/completions", "/v1/responses", "/api/generate"])
def test_an_event_says_the_same_as_the_answer(kind: type[Refusal], path: str) -> None:
    refusal, endpoint = made(kind), BY_PATH[path]
    event = dialects.error_event(endpoint, refusal, sequence_number=0, request_id="r")
    answer = dialects.error_answer(endpoint.dialect, refusal, "r")
    data = event.removeprefix(b"event: error\n").removeprefix(b"data: ")
    assert json.loads(data)["error"] == json.loads(answer.body)["error"]
    assert data.rstrip(b"\n").count(b"\n") == 0


# Over loopback: what stands in `model` is what the call is refused with.


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refusal, endpoint = made(getattr(errors, call["model"])), BY_PATH[self.path]
        if self.headers["x-in-stream"]:
            self.send_response(200)
            kind = "text/event-stream" if endpoint.is_compat else "application/x-ndjson"
            headers = {b"Content-Type": kind.encode()}
            comment = b": ollama-router waiting reason=line waited_s=9\n\n" if endpoint.is_compat else b""
            body = comment + dialects.error_event(endpoint, refusal, sequence_number=0, request_id="r")
        else:
            answer = dialects.error_answer(endpoint.dialect, refusal, "r")
            self.send_response(answer.status)
            headers, body = dict(answer.headers), answer.body
        for name, value in {**headers, b"x-request-id": b"r"}.items():
            self.send_header(name.decode(), value.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        patch.setenv("NO_PROXY", "*")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


OF_OPENAI = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
IN_STREAM = pytest.mark.parametrize("in_stream", [False, True], ids=["answer", "stream"])
MESSAGES: Any = [{"role": "user", "content": "?"}]


@EACH
@IN_STREAM
def test_the_openai_client_raises_what_one_expects(kind: type[Refusal], in_stream: bool, url: str) -> None:
    status, openai_type, code, *_ = TABLE[kind]
    headers = {"x-in-stream": "yes"} if in_stream else {}
    expected = openai.APIError if in_stream else OF_OPENAI.get(status, openai.InternalServerError)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        chats = client.chat.completions

        def talk() -> None:
            with chats.create(model=kind.__name__, messages=MESSAGES, stream=True, extra_headers=headers) as stream:
                list(stream)

        with pytest.raises(expected) as raised:
            talk()
    assert (raised.value.code, raised.value.type) == (code, openai_type)
    if isinstance(raised.value, openai.APIStatusError):
        assert (raised.value.status_code, raised.value.request_id) == (status, "r")
    assert made(kind).text in str(raised.value)


@EACH
@IN_STREAM
def test_the_anthropic_client_raises_what_one_expects(kind: type[Refusal], in_stream: bool, url: str) -> None:
    headers = {"x-in-stream": "yes"} if in_stream else {}
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        create = client.messages.create

        def talk() -> None:
            with create(
                model=kind.__name__, max_tokens=9, messages=MESSAGES, stream=True, extra_headers=headers
            ) as stream:
                list(stream)

        with pytest.raises(anthropic.APIStatusError) as raised:
            talk()
    assert raised.value.status_code == (200 if in_stream else TABLE[kind][0])
    assert made(kind).text in str(raised.value)


@EACH
@IN_STREAM
def test_the_ollama_client_raises_what_one_expects(kind: type[Refusal], in_stream: bool, url: str) -> None:
    client = ollama.Client(host=url, headers={"x-in-stream": "yes"} if in_stream else {})
    with closing(client._client), pytest.raises(ollama.ResponseError) as raised:
        list(client.chat(model=kind.__name__, messages=MESSAGES, stream=True))
    assert raised.value.error == made(kind).text
    if not in_stream:
        assert raised.value.status_code == TABLE[kind][0]
