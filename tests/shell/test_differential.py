"""Bytes through the router against bytes of a real server: equal, but for what is declared here by hand.

Nothing in this file asks the router's own code what it would splice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire.endpoints import BY_PATH
from tests.fakes.raw_client import Answer, recorded_request
from tests.fakes.recordings import Headers, Recording, recording, recordings
from tests.fakes.replay import Play, ReplayNode, close_delimited, kept_alive, recorded
from tests.shell.replay_house import ReplayHouse, ended_as, replay_house

ALL = [
    each
    for each in recordings("openai", "native", "anthropic", "runner-died", "busy", "v0.24", "quirks")
    if each.path in BY_PATH
]
# What the router says itself, as the recorded server did, without asking a node.
REFUSED_HERE = [
    "quirks/body-is-array",
    "quirks/body-is-null",
    "quirks/leading-bom",
    "quirks/model-null",
    "quirks/name-with-html-characters",
    "quirks/repeated-model-other-case-last-wins",
    "quirks/stream-as-string",
    "quirks/zstd-body-native",
]
# Answered in the same words by the router: what others share is not unloaded by one of them.
UNLOADS = ["native/unload", "v0.24/unload"]
REFUSED = [each for each in recordings("refused") if each.path in BY_PATH and each.request.method == "POST"]
BUSY = [each for each in ALL if each.name.startswith("busy/")]
DIED = [each for each in ALL if each.name.startswith("runner-died/")]
PASSED = [each for each in ALL if each.name not in (*REFUSED_HERE, *UNLOADS) and each not in BUSY and each not in DIED]
STREAMS = [each for each in PASSED if each.response.streams and not each.name.startswith("v0.24/")]

# Options that would unload or pin a model that others share.
GUARDED = {
    "native/load-pin": (b'"keep_alive":-1', b'"keep_alive":1800'),
}
ASK_USAGE = b',"stream_options":{"include_usage":true}'
HOP_BY_HOP = (b"connection", b"content-length", b"transfer-encoding")
OURS = (b"x-request-id", b"x-ollama-router-node", b"x-ollama-router-model", b"x-ollama-router-attempts")
OURS += (b"x-ollama-router-queue-ms", b"x-ollama-router-reason")

CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)
FEW = settings(max_examples=4, deadline=None, print_blob=True)


@pytest.fixture(scope="module")
def house() -> Iterator[ReplayHouse]:
    with replay_house(ReplayNode()) as opened:
        yield opened


def by_name(each: Recording) -> str:
    return each.name


def asks_for_usage_itself(each: Recording) -> bool:
    return b"include_usage" in each.request.body.lower()


def body_for_node(each: Recording) -> bytes:
    """The client's, but for the splices that are declared for this recording."""
    body = each.request.body
    if each.name in GUARDED:
        body = body.replace(*GUARDED[each.name])
    counts_on_asking = each.path in ("/v1/chat/completions", "/v1/completions")
    if counts_on_asking and each.response.streams and not asks_for_usage_itself(each):
        assert body.endswith(b"}")
        body = body[:-1] + ASK_USAGE + b"}"
    return body


def passing(headers: Headers, *dropped: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers.pairs if pair[0].lower() not in (*HOP_BY_HOP, *dropped)]


def added(each: Recording) -> tuple[bytes, ...]:
    """In their order. Proxies are asked to pass a stream on, and to keep none where the node has not said so."""
    if not each.response.streams:
        return OURS
    is_told = any(name.lower() == b"cache-control" for name, _ in each.response.headers.pairs)
    return (*OURS, b"x-accel-buffering", *(() if is_told else (b"cache-control",)))


def assert_passed(answer: Answer, each: Recording, body: bytes | None = None) -> None:
    ours = added(each)
    assert answer.body == (each.response.body if body is None else body)
    assert answer.is_whole
    assert answer.status == each.response.status
    assert passing(answer.headers, *ours) == passing(each.response.headers)
    assert [name.lower() for name, _ in answer.headers.pairs if name.lower() in ours] == list(ours)


@pytest.mark.parametrize("each", PASSED, ids=by_name)
def test_a_recorded_call_is_the_same_through_the_router(house: ReplayHouse, each: Recording) -> None:
    @FEW
    @given(at=CUTS, request_at=CUTS, play=st.sampled_from([recorded, kept_alive]))
    def holds(at: list[int], request_at: list[int], play: type[Play]) -> None:
        house.node.answer(play(each.name, at))
        answer = house.ask(recorded_request(each.name), request_at)
        assert_passed(answer, each)
        (heard,) = house.node.heard
        assert heard.body == body_for_node(each)
        assert heard.first_line == b"POST %b HTTP/1.1" % each.path.encode()

    holds()


@pytest.mark.parametrize("each", STREAMS, ids=by_name)
def test_a_stream_may_come_a_byte_at_a_time(house: ReplayHouse, each: Recording) -> None:
    house.node.answer(kept_alive(each.name, range(1 << 14)))
    assert_passed(house.ask(recorded_request(each.name)), each)


@pytest.mark.parametrize("each", STREAMS, ids=by_name)
def test_a_stream_may_end_with_its_connection(house: ReplayHouse, each: Recording) -> None:
    house.node.answer(close_delimited(each.name))
    answer = house.ask(recorded_request(each.name))
    assert (answer.body, answer.is_whole) == (each.response.body, True)


def test_recorded_calls_share_the_connections_of_client_and_node(house: ReplayHouse) -> None:
    """All of them in a row on one connection to the node: an answer that slipped by one would meet the wrong client."""
    chosen = [each for each in PASSED if each.response.status == 200]
    house.node.answer(*(kept_alive(each.name) for each in chosen))
    for each in chosen:
        assert_passed(house.ask(recorded_request(each.name)), each)
    assert {heard.connection for heard in house.node.heard} == {0}


@pytest.mark.parametrize("name", UNLOADS)
def test_an_unload_reads_as_recorded_and_reaches_no_node(house: ReplayHouse, name: str) -> None:
    heard = len(house.node.heard)
    answer = house.ask(recorded_request(name))
    stamp = re.compile(rb'"created_at":"[0-9T:.-]+Z"')
    assert stamp.sub(b"", answer.body) == stamp.sub(b"", recording(name).response.body)
    assert (answer.status, answer.header("content-type")) == (200, "application/json; charset=utf-8")
    assert len(house.node.heard) == heard


@pytest.mark.parametrize("name", REFUSED_HERE)
def test_what_go_cannot_read_is_refused_as_recorded(house: ReplayHouse, name: str) -> None:
    assert_refused_as_recorded(house, recording(name))


# What only a node can know: whether this model takes tools, thinks, completes; what an image's URL hides.
NODES_BUSINESS = (
    "chat-think-unsupported",
    "chat-tools-unsupported",
    "effort",
    "embed-on-chat-model",
    "generate-suffix-unsupported",
    "image-url",
    "part-type",
    "top-logprobs",
    "v1-embeddings-on-chat-model",
    "v1-embeddings-tokens",
    "v1-transcriptions-bad",
)
_REQUEST_ID = re.compile(rb"req_[0-9a-f]{24}")


@pytest.mark.parametrize("each", REFUSED, ids=by_name)
def test_what_ollama_refuses_is_refused_with_its_bytes(house: ReplayHouse, each: Recording) -> None:
    """By the router where it can know, else by the node: the client cannot tell."""
    assert_refused_as_recorded(house, each)


def assert_refused_as_recorded(house: ReplayHouse, each: Recording) -> None:
    house.node.answer(recorded(each.name))
    answer = house.ask(recorded_request(each.name))
    expected = each.response
    assert answer.status == expected.status
    assert _REQUEST_ID.sub(b"req_", answer.body) == _REQUEST_ID.sub(b"req_", expected.body)
    assert answer.header("content-type") == expected.headers.get(b"content-type").decode()
    assert answer.is_whole
    assert bool(house.node.heard) == (each.name.partition("/")[2] in NODES_BUSINESS)


def recover(house: ReplayHouse) -> None:
    """Two good calls for every bad one: no breaker opens, and one node serves all of these tests."""
    house.node.answer(kept_alive("openai/v1-chat"))
    for _ in range(2):
        assert house.ask(recorded_request("openai/v1-chat")).status == 200


# What the client is told at the end of a broken stream, where the node does not say it itself.
TOLD = {
    "/v1/chat/completions": rb'data: \{"error":\{"message":".+","type":"api_error","param":null,"code":".+"\}\}\n\n\Z',
    "/v1/completions": rb'data: \{"error":\{"message":".+","type":"api_error","param":null,"code":".+"\}\}\n\n\Z',
    "/v1/messages": rb'event: error\ndata: \{"type":"error","error":\{"type":"api_error","message":".+"\}.*\}\n\n\Z',
    "/v1/responses": rb'event: error\ndata: \{"code":.+,"sequence_number":5,"type":"error"\}\n\n\Z',
    "/api/chat": rb"\Z",
    "/api/generate": rb"\Z",
}


@pytest.mark.parametrize("each", [each for each in DIED if each.response.streams], ids=by_name)
def test_a_stream_that_breaks_keeps_its_bytes_and_says_so(house: ReplayHouse, each: Recording) -> None:
    @FEW
    @given(at=CUTS, play=st.sampled_from([recorded, kept_alive, close_delimited]))
    def holds(at: list[int], play: type[Play]) -> None:
        recover(house)
        before = house.run(ended_as(house.router))
        house.node.answer(play(each.name, at))
        answer = house.ask(recorded_request(each.name))
        assert answer.status == 200
        assert answer.body.startswith(each.response.body)
        assert re.fullmatch(TOLD[each.path], answer.body.removeprefix(each.response.body))
        assert answer.is_whole
        assert house.run(ended_as(house.router)) - before == {("upstream_truncated", 200): 1}

    holds()


@pytest.mark.parametrize("each", [each for each in DIED if not each.response.streams], ids=by_name)
def test_a_runner_that_died_first_is_a_502_that_is_not_to_be_repeated(house: ReplayHouse, each: Recording) -> None:
    recover(house)
    house.node.answer(recorded(each.name))
    answer = house.ask(recorded_request(each.name))
    assert answer.status == 502
    assert answer.header("x-should-retry") == "false"
    assert answer.header("x-ollama-router-attempts") == "1"
    assert b"an error was encountered while running the model: unexpected EOF" in answer.body
    recover(house)


@pytest.mark.parametrize("each", BUSY, ids=by_name)
def test_a_busy_node_is_asked_again_and_then_believed(house: ReplayHouse, each: Recording) -> None:
    house.node.answer(recorded(each.name))
    answer = house.ask(recorded_request(each.name))
    assert answer.status == 503
    assert _REQUEST_ID.sub(b"", answer.body) == _REQUEST_ID.sub(b"", each.response.body)
    assert answer.header("content-type") == each.response.headers.get(b"content-type").decode()
    assert int(answer.header("retry-after")) >= 1
    assert answer.header("x-ollama-router-refused") == "queue_full"
    assert len(house.node.heard) == 3
