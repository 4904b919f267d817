"""Errors in the dialect of the route, as recorded, and official clients raise on them."""

import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anthropic
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import (
    Allowance,
    BadRequest,
    Draining,
    NoNode,
    QueueFull,
    RateLimited,
    Refusal,
    TeamQueueFull,
    TooLarge,
    UnknownModel,
    UpstreamTimeout,
    UpstreamTruncated,
)
from router.wire import comments, dialects
from router.wire.dialects import error_answer
from router.wire.endpoints import BY_PATH, ENDPOINTS, Dialect, Endpoint, Shape
from tests.fakes.recordings import Recording, recording, recordings


class Said(Refusal):
    """A refusal with the status that a node gave."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def text_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    return error if isinstance(error, str) else error["message"]


def refusal_of(each: Recording) -> Refusal:
    text, status = text_of(each.response.body), each.response.status
    if status == 400:
        compat = BY_PATH[each.path].dialect is not Dialect.OLLAMA
        return BadRequest(text, while_reading=compat and b"charset" in each.response.headers.get(b"content-type"))
    if status == 404:
        return UnknownModel(text)
    if status == 503:
        return QueueFull(retry_after_s=1.5)
    return Said(text, status)


def timeless(body: bytes) -> bytes:
    return re.sub(rb'"req_[0-9a-f]{24}"', b'"req_"', body)


REFUSED = [
    each
    for each in recordings("refused", "busy", "runner-died", "quirks")
    if each.path in BY_PATH and each.response.status >= 400 and not BY_PATH[each.path].is_multipart
]


@pytest.mark.parametrize("each", REFUSED, ids=lambda each: each.name)
def test_refusals_are_byte_for_byte_those_of_a_real_server(each: Recording) -> None:
    answer = dialects.error_answer(BY_PATH[each.path].dialect, refusal_of(each), "r1")
    assert answer.status == each.response.status
    assert timeless(answer.body) == timeless(each.response.body)
    assert dict(answer.headers)[b"Content-Type"] == each.response.headers.get(b"content-type")


def test_pages_are_those_of_a_real_server() -> None:
    for name, answer in (
        ("catalog/unknown-path", dialects.not_found_page()),
        ("catalog/unknown-v1", dialects.not_found_page()),
        ("catalog/wrong-method", dialects.method_not_allowed("POST")),
    ):
        response = recording(name).response
        assert (answer.status, answer.body) == (response.status, response.body)
        for key, value in answer.headers:
            assert response.headers.get(key) == value


def test_a_path_that_is_none_ends_the_connection_as_with_gos_server() -> None:
    page = dialects.bad_request_page()
    assert (page.status, page.body, dict(page.headers)[b"Connection"]) == (400, b"400 Bad Request", b"close")


def test_an_anthropic_request_id_is_the_same_for_the_same_call() -> None:
    first, again, other = (
        json.loads(dialects.error_answer(Dialect.ANTHROPIC, NoNode("x"), each).body)["request_id"] for each in "aab"
    )
    assert first == again != other
    assert re.fullmatch(r"req_[0-9a-f]{24}", first)


@pytest.mark.parametrize(
    ("status", "openai_type", "openai_code", "anthropic_type"),
    [
        (400, "invalid_request_error", None, "invalid_request_error"),
        (401, "invalid_request_error", "invalid_api_key", "authentication_error"),
        (403, "api_error", None, "permission_error"),
        (404, "not_found_error", None, "not_found_error"),
        (413, "invalid_request_error", None, "api_error"),
        (429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
        (500, "api_error", None, "api_error"),
        (503, "api_error", None, "overloaded_error"),
        (504, "api_error", None, "api_error"),
    ],
)
def test_types_follow_the_status(status: int, openai_type: str, openai_code: str | None, anthropic_type: str) -> None:
    of_openai = json.loads(dialects.error_answer(Dialect.OPENAI, Said("x", status), "r").body)["error"]
    of_anthropic = json.loads(dialects.error_answer(Dialect.ANTHROPIC, Said("x", status), "r").body)["error"]
    assert of_openai == {"message": "x", "type": openai_type, "param": None, "code": openai_code}
    assert of_anthropic == {"type": anthropic_type, "message": "x"}


def test_a_refusals_own_code_is_said() -> None:
    body = json.loads(dialects.error_answer(Dialect.OPENAI, Draining("bye"), "r").body)
    assert body["error"]["code"] == "draining"


@pytest.mark.parametrize("dialect", Dialect)
def test_advice_on_retries_is_given_in_every_dialect(dialect: Dialect) -> None:
    def advice(refusal: Refusal) -> dict[bytes, bytes]:
        found = dict(dialects.error_answer(dialect, refusal, "r").headers)
        del found[b"Content-Type"]
        return found

    assert advice(QueueFull(retry_after_s=2.4)) == {b"Retry-After": b"3", b"retry-after-ms": b"2400"}
    assert advice(QueueFull(retry_after_s=0.0)) == {b"Retry-After": b"1", b"retry-after-ms": b"1"}
    assert advice(UnknownModel("x")) == {}
    assert advice(TooLarge("x")) == {b"x-should-retry": b"false"}
    assert advice(Said("x", 401)) == {b"WWW-Authenticate": b"Bearer"}


@given(st.text(), st.sampled_from(ENDPOINTS))
def test_any_text_survives_as_json(text: str, endpoint: Endpoint) -> None:
    answer = dialects.error_answer(endpoint.dialect, BadRequest(text), text)
    event = dialects.error_event(endpoint, BadRequest(text), sequence_number=3, request_id=text)
    heard = text.encode("utf-8", "replace").decode() if text.isprintable() else text
    for body in (answer.body, event.split(b"data: ")[-1] if b"data: " in event[:20] else event):
        if "\ud800" <= max(text, default="") <= "\udfff":
            continue
        assert text_of(body) == heard
        assert body.count(b"\n") == len(body) - len(body.rstrip(b"\n"))


# The official clients read what is left of a stream after our comments and our error event, over loopback: they do not
# agree on an HTTP library whose transport could be replaced.

TEXT = "the node fell silent"
REFUSAL = UpstreamTruncated(TEXT)


@contextmanager
def stream_that_fails(path: str, before: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    endpoint = BY_PATH[path]
    event = dialects.error_event(endpoint, REFUSAL, sequence_number=5, request_id="r1")
    native = endpoint.dialect is Dialect.OLLAMA
    comment = b"" if native else comments.at_node("gpu-1", waited_s=9)
    kind = "application/x-ndjson" if native else "text/event-stream"

    class Router(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if self.path == path else 404)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(comment + before + comment + event)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Router) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def first_event(name: str) -> bytes:
    return recording(name).response.chunks[0]


OPENAI_CALLS = {
    "openai/v1-chat-stream": lambda client: client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    ),
    "openai/v1-completions-stream": lambda client: client.completions.create(model="m", prompt="x", stream=True),
    "openai/v1-responses-stream": lambda client: client.responses.create(model="m", input="x", stream=True),
}


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize("name", OPENAI_CALLS)
def test_the_openai_client_raises_on_our_event(name: str, began: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        stream_that_fails(recording(name).path, first_event(name) if began else b"", monkeypatch) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIError, match=TEXT) as raised,
        OPENAI_CALLS[name](client) as stream,
    ):
        list(stream)
    assert raised.value.code == "upstream_error"


@pytest.mark.parametrize("began", [False, True])
def test_the_anthropic_client_raises_on_our_event(began: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = first_event("anthropic/v1-messages-stream") if began else b""
    with (
        stream_that_fails("/v1/messages", before, monkeypatch) as url,
        anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match=TEXT),
        client.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}], stream=True
        ) as stream,
    ):
        list(stream)


@pytest.mark.parametrize("began", [False, True])
def test_the_ollama_client_raises_on_our_line(began: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = first_event("native/chat-stream") if began else b""
    with stream_that_fails("/api/chat", before, monkeypatch) as url:
        client = ollama.Client(host=url)
        with closing(client._client), pytest.raises(ollama.ResponseError, match=TEXT):
            list(client.chat(model="m", messages=[{"role": "user", "content": "x"}], stream=True))


def test_a_responses_error_event_has_what_both_the_api_and_its_client_look_for() -> None:
    endpoint = next(each for each in ENDPOINTS if each.shape is Shape.RESPONSES)
    event = dialects.error_event(endpoint, UpstreamTimeout("late"), sequence_number=7, request_id="r")
    name, _, data = event.partition(b"\ndata: ")
    assert name == b"event: error"
    assert json.loads(data) == {
        "type": "error",
        "code": "upstream_timeout",
        "message": "late",
        "param": None,
        "sequence_number": 7,
        "error": {"message": "late", "type": "api_error", "param": None, "code": "upstream_timeout"},
    }


@pytest.mark.parametrize("dialect", Dialect)
def test_a_team_over_its_limit_is_told_when_it_may_come_back(dialect: Dialect) -> None:
    refusal = RateLimited("tokens", Allowance(600, 12, 0.1), Allowance(200_000, 0, 360.0), retry_after_s=1.5)
    answer = error_answer(dialect, refusal, "req-1")
    told = {name.decode().lower(): value.decode() for name, value in answer.headers}
    assert answer.status == 429
    assert (told["retry-after"], told["retry-after-ms"]) == ("2", "1500")
    assert "x-should-retry" not in told, "it may be repeated, later"
    error = json.loads(answer.body)["error"]
    if dialect is Dialect.OPENAI:
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    elif dialect is Dialect.ANTHROPIC:
        assert error["type"] == "rate_limit_error"
    else:
        assert error == "this team has reached its limit of tokens; try again in 2 s"


def test_a_team_with_too_many_waiting_is_told_so() -> None:
    waiting = error_answer(Dialect.OPENAI, TeamQueueFull(8, retry_after_s=3.0), "r")
    assert json.loads(waiting.body)["error"]["code"] == "team_queue_full"
