"""The declared differences, against bytes put together by hand: aliases, usage nobody asked for, guarded options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire.endpoints import BY_PATH
from tests.fakes.raw_client import Answer, post, raw_client
from tests.fakes.recordings import Recording, recording, recordings
from tests.fakes.replay import ReplayNode, kept_alive, reworded, said
from tests.shell.house import until
from tests.shell.replay_house import ReplayHouse, replay_house

# Alias, the name that its target has in the recordings, and the target as nodes list it.
ALIASES = {
    "gpt-4o": ("gemma3:270m", "gemma3:270m"),
    "my-tools:v1": ("gemma-tools", "gemma-tools:latest"),
    "me/thinker": ("gemma-think", "gemma-think:latest"),
    "filler": ("gemma-fim", "gemma-fim:latest"),
    "text-embedding-3-small": ("all-minilm:22m", "all-minilm:22m"),
    "four": ("gpt-4", "gpt-4:latest"),
}
BY_TARGET = {target: (alias, listed) for alias, (target, listed) in ALIASES.items()}
MODEL = re.compile(rb'(?<="model":)"([^"]*)"', re.IGNORECASE)
ASK_USAGE = b'"stream_options":{"include_usage":true}'

# How a client may write a name in JSON, and how Go writes it back.
SPELLINGS = [
    (b'"%b"', b'"%b"'),
    (b'" %b\\t"', b'" %b\\t"'),
    (b'"\\u2028%b\\u0020"', b'"\\u2028%b "'),
    ('"\u3000%b"'.encode(), '"\u3000%b"'.encode()),
    (b'"library\\/%b"', b'"library/%b"'),
]
CUTS = st.lists(st.integers(0, 1 << 16), max_size=8)
FEW = settings(max_examples=6, deadline=None, print_blob=True)


def model_in(each: Recording) -> str:
    found = MODEL.findall(each.request.body)
    return found[0].decode() if len(found) == 1 else ""


NAMED = [
    each
    for each in recordings("openai", "native", "anthropic", "v0.24", "quirks")
    if each.path in BY_PATH
    and each.response.status == 200
    and model_in(each) in BY_TARGET
    and b'"include_usage"' not in each.request.body.lower()
    and b"num_ctx" not in each.request.body
    and not each.name.endswith("/unload")  # answered here: tests/shell/test_differential.py
]
COUNTED = [
    each
    for each in recordings("openai", "v0.24", "quirks")
    if b"include_usage" in each.request.body.lower() and each.response.status == 200
]


def after_others(target: str) -> dict[str, object]:
    """An alias whose targets no node has: its last fallback serves."""
    absent = [{"model": "absent:1b", "weight": 3}, {"model": "absent:2b"}]
    return {"targets": absent, "fallbacks": ["absent:3b", target]}


@pytest.fixture(scope="module", params=[str, after_others], ids=["alias of a name", "alias that falls back"])
def house(request: pytest.FixtureRequest) -> Iterator[ReplayHouse]:
    aliases = {alias: request.param(target) for alias, (target, _) in ALIASES.items()}
    with replay_house(ReplayNode(num_ctx=2048), aliases=aliases) as opened:
        yield opened


def by_name(each: Recording) -> str:
    return each.name


def asked(each: Recording, body: bytes) -> bytes:
    return post(each.path, body, b"Content-Type: application/json")


def with_usage(each: Recording, body: bytes) -> bytes:
    """As the node gets it from a router that counts."""
    counts = each.path in ("/v1/chat/completions", "/v1/completions") and each.response.streams
    end = body.rindex(b"}")
    return body[:end] + b"," + ASK_USAGE + body[end:] if counts else body


def guarded(body: bytes) -> bytes:
    """Only native routes read keep_alive."""
    return body.replace(b'"keep_alive":-1', b'"keep_alive":1800')


def hidden(body: bytes) -> bytes:
    """The answer of a node that was not asked for usage."""
    less = re.sub(rb'data: \{[^\n]*"choices":\[\],[^\n]*"usage":[^\n]*\n\n', b"", body)
    return re.sub(rb',"usage":\{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0\}', b"", less)


@pytest.mark.parametrize("each", NAMED, ids=by_name)
def test_an_alias_is_echoed_as_the_client_wrote_it_and_nothing_else_differs(
    house: ReplayHouse, each: Recording
) -> None:
    target = model_in(each)
    alias, listed = BY_TARGET[target]
    spellings = [pair for pair in SPELLINGS if b"library" not in pair[0] or "/" not in alias]

    @FEW
    @given(spelling=st.sampled_from(spellings), at=CUTS, request_at=CUTS)
    def holds(spelling: tuple[bytes, bytes], at: list[int], request_at: list[int]) -> None:
        sent, echoed = (form % alias.encode() for form in spelling)
        as_node, as_client = b'"model":"%b"' % listed.encode(), b'"model":%b' % echoed
        recorded = b'"model":"%b"' % target.encode()
        house.node.answer(reworded(each.name, lambda chunk: chunk.replace(recorded, as_node), at))
        answer = house.ask(asked(each, MODEL.sub(lambda _: sent, each.request.body)), request_at)
        (heard,) = house.node.heard
        assert heard.body == guarded(
            with_usage(each, MODEL.sub(lambda _: b'"%b"' % listed.encode(), each.request.body))
        )
        assert answer.body == each.response.body.replace(recorded, as_client)
        assert (answer.status, answer.is_whole) == (200, True)

    holds()


@pytest.mark.parametrize("each", COUNTED, ids=by_name)
def test_usage_that_the_client_did_not_ask_for_is_asked_for_and_hidden(house: ReplayHouse, each: Recording) -> None:
    asking = re.compile(rb'"stream_options":\{"include_usage":true\}', re.IGNORECASE)
    unasked = [b'"stream_options":null', b'"stream_options":{"include_usage":false}', b'"stream_options":{}', b'"x":1']

    @FEW
    @given(instead=st.sampled_from(unasked), is_aliased=st.booleans(), at=CUTS)
    def holds(instead: bytes, is_aliased: bool, at: list[int]) -> None:
        house.node.answer(kept_alive(each.name, at))
        body = asking.sub(instead, each.request.body)
        name = b"gpt-4o" if is_aliased else b"gemma3:270m"
        answer = house.ask(asked(each, body.replace(b"gemma3:270m", name)))
        (heard,) = house.node.heard
        spliced = with_usage(each, body) if instead == b'"x":1' else body.replace(instead, ASK_USAGE)
        assert heard.body == spliced
        assert answer.body == hidden(each.response.body).replace(b"gemma3:270m", name)
        assert b"usage" not in answer.body

    holds()


@pytest.mark.parametrize("each", COUNTED, ids=by_name)
def test_usage_that_was_asked_for_is_seen(house: ReplayHouse, each: Recording) -> None:
    house.node.answer(kept_alive(each.name))
    body = each.request.body.replace(b"gemma3:270m", b"gpt-4o")
    answer = house.ask(asked(each, body))
    assert answer.body == each.response.body.replace(b"gemma3:270m", b"gpt-4o")
    assert house.node.heard[0].body == each.request.body


def test_the_name_inside_tool_arguments_is_the_models_business(house: ReplayHouse) -> None:
    """Also where it stands before the answer's own member, and twice."""
    call = b'{"message":{"tool_calls":[{"function":{"arguments":{"model":"gemma3:270m"}}}]},"model":"gemma3:270m",'
    call += b'"done":true,"x":{"model":"gemma3:270m"}}'
    house.node.answer((said(200, call),))
    answer = house.ask(post("/api/chat", b'{"model":"gpt-4o","stream":false,"messages":[{}]}'))
    assert answer.body == call.replace(b'},"model":"gemma3:270m"', b'},"model":"gpt-4o"')


def test_a_node_that_answers_with_another_name_is_left_alone(house: ReplayHouse) -> None:
    said_so = b'{"model":"something-else","message":{"content":"gemma3:270m"},"done":true}'
    house.node.answer((said(200, said_so),))
    answer = house.ask(post("/api/chat", b'{"model":"gpt-4o","stream":false,"messages":[{}]}'))
    assert answer.body == said_so


def test_an_error_of_the_node_keeps_the_nodes_own_name(house: ReplayHouse) -> None:
    """So that whoever reads it can find the model that it speaks of."""
    error = recording("refused/chat-tools-unsupported")
    house.node.answer(kept_alive(error.name))
    answer = house.ask(asked(error, MODEL.sub(b'"gpt-4o"', error.request.body)))
    assert (answer.status, answer.body) == (400, error.response.body)


# forms, zstd, framing


def form(model: bytes) -> bytes:
    """The file's bytes hold what looks like a boundary, a header and a name."""
    return b"\r\n".join(
        (
            b"--b",
            b'Content-Disposition: form-data; name="file"; filename="a.wav"',
            b"Content-Type: audio/wav",
            b"",
            b'RIFF\x00\xff\r\n\r\n--bx\r\nname="model"\r\n\r\ngpt-4o\r\n',
            b"--b",
            b'Content-Disposition: form-data; name="model"',
            b"",
            model,
            b"--b--",
            b"",
        )
    )


@given(at=CUTS, request_at=CUTS, is_aliased=st.booleans())
@settings(max_examples=10, deadline=None, print_blob=True)
def test_a_form_is_spliced_in_its_model_field(
    house: ReplayHouse, at: list[int], request_at: list[int], is_aliased: bool
) -> None:
    text = b'{"text":"said by gpt-4o, not gemma3:270m","model":"gemma3:270m"}'
    house.node.answer((said(200, text),))
    name = b"gpt-4o" if is_aliased else b"gemma3:270m"
    raw = post("/v1/audio/transcriptions", form(name), b"Content-Type: multipart/form-data; boundary=b")
    answer = house.ask(raw, request_at)
    assert house.node.heard[0].body == form(b"gemma3:270m")
    assert house.node.heard[0].headers.get(b"content-type") == b"multipart/form-data; boundary=b"
    assert (answer.status, answer.body) == (200, text)


def compressed(each: Recording, body: bytes) -> bytes:
    zstd = zstandard.ZstdCompressor().compress(body)
    return post(each.path, zstd, b"Content-Type: application/json", b"Content-Encoding: zstd")


@pytest.mark.parametrize("name", ["openai/v1-chat", "openai/v1-chat-stream-usage", "anthropic/v1-messages-stream"])
def test_a_zstd_body_without_splices_goes_on_as_it_came(house: ReplayHouse, name: str) -> None:
    each = recording(name)
    house.node.answer(kept_alive(name))
    answer = house.ask(compressed(each, each.request.body))
    (heard,) = house.node.heard
    assert heard.headers.get(b"content-encoding") == b"zstd"
    assert zstandard.ZstdDecompressor().decompress(heard.body) == each.request.body
    assert heard.body == zstandard.ZstdCompressor().compress(each.request.body)
    assert answer.body == each.response.body


@pytest.mark.parametrize("name", ["openai/v1-chat", "openai/v1-chat-stream", "anthropic/v1-messages-stream"])
def test_a_zstd_body_with_splices_goes_on_decoded(house: ReplayHouse, name: str) -> None:
    each = recording(name)
    house.node.answer(kept_alive(name))
    answer = house.ask(compressed(each, each.request.body.replace(b"gemma3:270m", b"gpt-4o")))
    (heard,) = house.node.heard
    assert heard.headers.get(b"content-encoding") == b""
    assert heard.body == with_usage(each, each.request.body)
    assert answer.body == each.response.body.replace(b"gemma3:270m", b"gpt-4o")


@pytest.mark.parametrize("body", [b"\x28\xb5\x2f\xfdnonsense", b"", b'{"model":"gemma3:270m"}'])
def test_a_body_that_only_says_zstd_is_refused(house: ReplayHouse, body: bytes) -> None:
    house.node.answer(())
    answer = house.ask(post("/v1/chat/completions", body, b"Content-Encoding: zstd"))
    assert (answer.status, house.node.heard) == (400, [])


@given(sizes=st.lists(st.integers(1, 60), max_size=6), request_at=CUTS, is_aliased=st.booleans())
@settings(max_examples=15, deadline=None, print_blob=True)
def test_a_chunked_body_reaches_the_node_with_its_length(
    house: ReplayHouse, sizes: list[int], request_at: list[int], is_aliased: bool
) -> None:
    each = recording("openai/v1-chat-stream")
    house.node.answer(kept_alive(each.name))
    body = each.request.body.replace(b"gemma3:270m", b"gpt-4o") if is_aliased else each.request.body
    raw, left = b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n", body
    for size in [*sizes, len(body)]:
        piece, left = left[:size], left[size:]
        raw += b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) if piece else b""
    house.ask(raw + b"0\r\nTrailer: of no use\r\n\r\n", request_at)
    (heard,) = house.node.heard
    assert heard.body == with_usage(each, each.request.body)
    assert heard.headers.get(b"transfer-encoding") == b""


def test_whoever_waits_for_a_continue_gets_it_before_the_body(house: ReplayHouse) -> None:
    each = recording("quirks/expect-100-continue")
    house.node.answer(kept_alive("openai/v1-chat"))

    async def dialogue() -> tuple[bytes, Answer]:
        async with raw_client(house.router.port) as client:
            head, _, body = asked(each, each.request.body).partition(b"\r\n\r\n")
            client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
            first_line, _ = await client.head()
            client.send(body)
            answer = await client.answer()
        await until(lambda: not house.router.pipeline.live)
        return first_line, answer

    first_line, answer = house.run(dialogue())
    assert first_line == b"HTTP/1.1 100 Continue"
    assert (answer.status, answer.body) == (200, recording("openai/v1-chat").response.body)
    assert house.node.heard[0].headers.get(b"expect") == b""


@pytest.mark.parametrize("rest", [b" trailing", b'{"model":"nope"}', b"}", b"\x00\xff\r\n\r\n", b"\n" * 99])
def test_bytes_after_the_object_stay_where_they_are(house: ReplayHouse, rest: bytes) -> None:
    each = recording("openai/v1-chat-stream")
    house.node.answer(kept_alive(each.name))
    house.ask(asked(each, each.request.body.replace(b"gemma3:270m", b"gpt-4o") + rest))
    assert house.node.heard[0].body == with_usage(each, each.request.body) + rest


def test_of_repeated_names_the_node_runs_the_one_that_was_routed(house: ReplayHouse) -> None:
    house.node.answer(kept_alive("openai/v1-chat"))
    twice = b'{"Model":"nope","model":"gpt-4o","messages":[{"role":"user","content":"a"}],"max_tokens":4}'
    answer = house.ask(post("/v1/chat/completions", twice))
    last = [value for _, value in json.loads(house.node.heard[0].body, object_pairs_hook=list)[:2]]
    assert last[1] == "gemma3:270m"
    assert b'"model":"gpt-4o"' in answer.body


# options that would reload or unload what others use


def options(text: bytes) -> bytes:
    return b'{"model":"gemma3:270m","messages":[{"role":"user","content":"a"}],"stream":false%b}' % text


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (b',"options":{"num_ctx":512}', b',"options":{}'),
        (b',"options":{"seed":1,"num_ctx":512,"top_k":2}', b',"options":{"seed":1,"top_k":2}'),
        (b',"options":{"num_ctx":512,"num_ctx":1024}', b',"options":{}'),
        (b',"options":{"num_ctx":2048}', b',"options":{"num_ctx":2048}'),
        (
            b',"options":{"num_batch":8,"seed":1,"use_mmap":false}',
            b',"options":{"num_batch":null,"seed":1,"use_mmap":null}',
        ),
        (b',"options":{"num_gpu":1,"num_ctx":512,"num_gpu":-1}', b',"options":{"num_gpu":null,"num_gpu":-1}'),
        (b',"options":{"Num_Batch":8}', b',"options":{"Num_Batch":8}'),
        (b',"Shift":false', b',"Shift":null'),
        (b',"shift":true', b',"shift":true'),
        (b',"keep_alive":"24h"', b',"keep_alive":1800'),
        (b',"keep_alive":-1', b',"keep_alive":1800'),
        (b',"keep_alive":"10m"', b',"keep_alive":"10m"'),
        (b',"keep_alive":0', b""),
        (b',"keep_alive":null', b',"keep_alive":null'),
    ],
)
def test_an_option_that_would_disturb_others_is_spliced(house: ReplayHouse, sent: bytes, got: bytes) -> None:
    house.node.answer(kept_alive("native/chat"))
    answer = house.ask(post("/api/chat", options(sent)))
    assert house.node.heard[0].body == options(got)
    assert answer.body == recording("native/chat").response.body


def test_a_context_that_would_reload_the_model_is_refused_in_words_that_help(house: ReplayHouse) -> None:
    house.node.answer(())
    answer = house.ask(post("/api/chat", options(b',"options":{"num_ctx":4096}')))
    assert (answer.status, house.node.heard) == (400, [])
    assert "at most 2048" in json.loads(answer.body)["error"]
    assert answer.header("x-ollama-router-refused") == "num_ctx"
