"""What a call wants is read by Go's rules, with Ollama's words where it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import BadRequest, OptionTypeError, Refusal, TooLarge, UnknownModel
from router.wire import intent as intent_module
from router.wire.endpoints import BY_PATH, ENDPOINTS, Dialect, Endpoint
from router.wire.gojson import fold
from router.wire.intent import SLICE_BYTES, Intent, Span, read_intent, unknown_model
from router.wire.intent_members import CHUNK_BYTES_MAX, FIND_BYTES_MAX, MEMBERS_MAX, lenient, strict
from router.wire.splice import Splice, apply

RECORDINGS = Path(__file__).parents[1] / "recordings"
V1_CHAT, API_CHAT, GENERATE = BY_PATH["/v1/chat/completions"], BY_PATH["/api/chat"], BY_PATH["/api/generate"]
COMPLETIONS, EMBED, MESSAGES = BY_PATH["/v1/completions"], BY_PATH["/api/embed"], BY_PATH["/v1/messages"]
HI = b'"messages":[{"role":"user","content":"hi"}]'


def read(endpoint: Endpoint, body: bytes, encoding: str = "") -> Intent:
    return read_intent(endpoint, body, content_type="application/json", content_encoding=encoding)


def refused(endpoint: Endpoint, body: bytes, encoding: str = "") -> Refusal:
    with pytest.raises(Refusal) as refusal:
        read(endpoint, body, encoding)
    return refusal.value


def cut(body: bytes, spans: tuple[Span, ...], replacement: bytes = b"") -> bytes:
    return b"".join(apply(body, [Splice(span.start, span.end, replacement) for span in spans]))


def text_at(intent: Intent, spans: tuple[Span, ...]) -> list[bytes]:
    return [intent.body[span.start : span.end] for span in spans]


@pytest.fixture(params=["strict", "lenient"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same claims hold for small bodies and for large ones."""
    if request.param == "lenient":
        monkeypatch.setattr(intent_module, "SLICE_BYTES", -1)


either_way = pytest.mark.usefixtures("_either_way")

# --- recordings ---------------------------------------------------------------------------------------------------

LEFT_TO_THE_NODE = {
    "chat-think-unsupported", "chat-tools-unsupported", "effort", "embed-on-chat-model", "generate-suffix-unsupported",
    "image-url", "part-type", "top-logprobs", "v1-embeddings-on-chat-model", "v1-embeddings-tokens",
    "v1-transcriptions-bad", "embed-too-long-no-truncate",
}  # fmt: skip


def _recorded(path: Path) -> tuple[Endpoint | None, dict[str, str], bytes]:
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return BY_PATH.get(lines[0].split(" ")[1]), headers, body


def _unchunked(body: bytes) -> bytes:
    size, _, rest = body.partition(b"\r\n")
    length = int(size, 16)
    return rest[:length] + _unchunked(rest[length + 2 :]) if length else b""


def _answer(path: Path) -> tuple[int, str, str]:
    """Status, content type and error text."""
    head, _, body = path.with_suffix(".response").read_bytes().partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    content_type = next(line for line in head.decode().split("\r\n") if line.lower().startswith("content-type:"))
    error = json.loads(body)["error"] if b'"error"' in body[:40] else ""
    return (
        int(head.split()[1]),
        content_type.partition(":")[2].strip(),
        error["message"] if isinstance(error, dict) else error,
    )


READ_RECORDINGS = sorted(
    path
    for group in ("refused", "quirks", "native", "openai", "anthropic")
    for path in (RECORDINGS / group).glob("*.request")
    if path.stem not in LEFT_TO_THE_NODE and _recorded(path)[0] is not None
)


@either_way
@pytest.mark.parametrize("path", READ_RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_decided_by_reading_is_decided_as_recorded(path: Path) -> None:
    endpoint, headers, body = _recorded(path)
    assert endpoint is not None
    status, content_type, text = _answer(path)
    encoding = headers.get("content-encoding", "")
    try:
        intent = read_intent(endpoint, body, content_type=headers.get("content-type", ""), content_encoding=encoding)
    except Refusal as refusal:
        said: Refusal = refusal
        is_while_reading = isinstance(refusal, BadRequest) and refusal.while_reading
        assert is_while_reading == (endpoint.dialect is not Dialect.OLLAMA and "charset" in content_type)
    else:
        said = unknown_model(endpoint, intent.model)
        if status == 200:
            return
    assert (said.status, said.text) == (status, text)


@pytest.mark.parametrize("name", sorted(LEFT_TO_THE_NODE))
def test_what_depends_on_the_model_passes(name: str) -> None:
    path = next(RECORDINGS.glob(f"*/{name}.request"))
    endpoint, headers, body = _recorded(path)
    assert endpoint is not None
    assert read_intent(endpoint, body, content_type=headers["content-type"], content_encoding="").model


def test_a_streamed_answer_was_asked_for() -> None:
    for path in READ_RECORDINGS:
        endpoint, headers, body = _recorded(path)
        assert endpoint is not None
        head = path.with_suffix(".response").read_bytes().partition(b"\r\n\r\n")[0]
        if b" 200 " in head and (path.parent.name, path.stem) != ("quirks", "expect-100-continue"):
            intent = read(endpoint, body, headers.get("content-encoding", ""))
            is_streamed = b"text/event-stream" in head or b"application/x-ndjson" in head
            assert (intent.streams and not intent.is_load_only) == is_streamed, path.stem


# --- names of models ----------------------------------------------------------------------------------------------


@either_way
def test_the_last_of_repeated_keys_wins_and_null_does_not_count() -> None:
    body = b'{"model":"a","mode\\u006c" : "b","MODEL":null,"x":{"model":"c"},' + HI + b"}"
    intent = read(V1_CHAT, body)
    assert (intent.model, intent.name.key) == ("b", "b:latest")
    assert text_at(intent, intent.model_spans) == [b'"a"', b'"b"']


@either_way
def test_a_name_is_echoed_as_sent() -> None:
    assert read(V1_CHAT, b'{"model":" \\u0067emma3 ",' + HI + b"}").model == " gemma3 "


def test_a_missing_name_is_said_in_the_routes_way() -> None:
    assert refused(MESSAGES, b'{"model":" ","max_tokens":1,' + HI + b"}").text == "model is required"
    assert isinstance(refused(GENERATE, b'{"model":" "}'), UnknownModel)
    assert refused(GENERATE, b'{"model":" "}').text == "model ' ' not found"
    assert unknown_model(EMBED, "\tn").text == 'model "\\tn" not found, try pulling it first'


# --- order and words of refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        (V1_CHAT, b'{"model":5,"stream":"x"', "unexpected EOF"),
        (V1_CHAT, b'{"stream":"x","model":5}', "string >> stream of type bool"),
        (V1_CHAT, b'{"model":5}', "number >> model of type string"),
        (V1_CHAT, b'{"model":"a b"}', "[] is too short - 'messages'"),
        (V1_CHAT, b'{"messages":[1],"messages":[ ]}', "[] is too short - 'messages'"),
        (V1_CHAT, b'{"messages":[1],"messages":null}', "[] is too short - 'messages'"),
        (V1_CHAT, b'{"messages":{}}', "object >> messages of type []openai.Message"),
        (API_CHAT, b'{"messages":""}', "string >> messages of type []api.Message"),
        (MESSAGES, b'{"messages":0}', "number >> messages of type []anthropic.MessageParam"),
        (V1_CHAT, b'{"stream_options":[]}', "array >> stream_options of type openai.StreamOptions"),
        (
            V1_CHAT,
            b'{"stream_options":{"INCLUDE_USAGE":0}}',
            "number into Go struct field StreamOptions.stream_options.include_usage of type bool",
        ),
        (COMPLETIONS, b'{"prompt":["a"]}', "array >> prompt of type string"),
        (GENERATE, b'{"options":[]}', "array >> options of type map[string]interface {}"),
        (GENERATE, b'{"options":{"num_ctx":1e400}}', "number 1e400 >> options of type float64"),
        (GENERATE, b'{"keep_alive":1e400}', "number 1e400 >> keep_alive of type float64"),
        (GENERATE, b'{"model":5,"keep_alive":true}', "Unsupported type: 'bool'"),
        (GENERATE, b'{"keep_alive":[]}', "Unsupported type: '[]interface {}'"),
        (GENERATE, b'{"keep_alive":{}}', "Unsupported type: 'map[string]interface {}'"),
        (MESSAGES, b'{"max_tokens":1.5}', "number 1.5 >> max_tokens of type int"),
        (MESSAGES, b'{"max_tokens":9223372036854775808}',
         "number 9223372036854775808 >> max_tokens of type int"),
        (MESSAGES, b'{"max_tokens":0}', "model is required"),
        (MESSAGES, b'{"model":"a","max_tokens":0}', "max_tokens is required and must be positive"),
        (MESSAGES, b'{"model":"a","max_tokens":2,"max_tokens":null}', "messages is required"),
        (BY_PATH["/v1/embeddings"], b'{"input":[]}', "invalid input"),
        (BY_PATH["/v1/images/generations"], b"{}", "prompt is required"),
        (BY_PATH["/v1/images/generations"], b'{"prompt":"a"}', "model is required"),
        (API_CHAT, b"5", "number into Go value of type api.ChatRequest"),
        (API_CHAT, b'"a"', "string into Go value of type api.ChatRequest"),
        (API_CHAT, b"true", "bool into Go value of type api.ChatRequest"),
        (API_CHAT, b"null", "model is required"),
        (API_CHAT, b"0.", "unexpected EOF"),
        (API_CHAT, b"[1,", "unexpected EOF"),
        (API_CHAT, b" \n", "missing request body"),
    ],
)  # fmt: skip
@either_way
def test_the_first_thing_wrong_is_told_in_gos_words(endpoint: Endpoint, body: bytes, text: str) -> None:
    expected = text.replace(" >> ", f" into Go struct field {endpoint.go_type}.")
    is_type_error = " into Go " in expected
    assert refused(endpoint, body).text == ("json: cannot unmarshal " if is_type_error else "") + expected


def test_a_wrong_option_type_is_told_last() -> None:
    assert refused(GENERATE, b'{"model":"a b","options":{"num_ctx":"x"}}').text == "invalid model name"
    assert isinstance(refused(GENERATE, b'{"model":"a","options":{"num_ctx":true}}'), OptionTypeError)


@either_way
def test_other_routes_do_not_read_options() -> None:
    intent = read(V1_CHAT, b'{"model":"a","keep_alive":[],"options":5,' + HI + b"}")
    assert (intent.num_ctx, intent.keep_alive_s, intent.is_load_only) == (None, None, False)
    assert read(EMBED, b'{"model":"a","stream":"no","stream_options":5}').streams is False


# --- streams and usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "members", "streams"),
    [
        (V1_CHAT, b"", False),
        (V1_CHAT, b'"stream":true,', True),
        (V1_CHAT, b'"stream":true,"stream":null,', True),
        (V1_CHAT, b'"stream":true,"\xc5\xbftream":false,', False),
        (API_CHAT, b"", True),
        (API_CHAT, b'"stream":false,', False),
        (API_CHAT, b'"stream":false,"stream":null,', True),
        (BY_PATH["/v1/responses"], b'"stream":true,"stream":null,', False),
        (MESSAGES, b'"max_tokens":1,"stream":true,"Stream":null,', True),
    ],
)
@either_way
def test_streams_says_what_the_client_will_get(endpoint: Endpoint, members: bytes, streams: bool) -> None:
    assert read(endpoint, b'{"model":"a",' + members + HI + b"}").streams is streams


@pytest.mark.parametrize(
    ("options", "spliced"),
    [
        (b"", b""),
        (b'"stream_options":null,', b'"stream_options":{"include_usage":true},'),
        (b'"stream_options":{"include_usage":false},', b'"stream_options":{"include_usage":true},'),
        (b'"Stream_Options" : { } ,', b'"Stream_Options" : {"include_usage":true} ,'),
        (
            b'"stream_options":{"include_usage":true},"stream_options":null,',
            b'"stream_options":{"include_usage":true},"stream_options":{"include_usage":true},',
        ),
    ],
)
@either_way
def test_usage_that_was_not_asked_for_is_asked_for_by_one_splice(options: bytes, spliced: bytes) -> None:
    body = b' {"model":"a","stream":true,' + options + HI + b" } x"
    intent = read(V1_CHAT, body)
    assert not intent.asks_usage
    assert intent.usage_splice is not None
    after = b"".join(apply(body, [intent.usage_splice]))
    assert after == (
        body.replace(options, spliced)
        if options
        else body.replace(b" } x", b',"stream_options":{"include_usage":true} } x')
    )
    assert read(V1_CHAT, after).asks_usage


@pytest.mark.parametrize(
    "options",
    [
        b'{"include_usage":true}',
        b'{"include_usage":false},"stream_options":{"Include_Usage":true}',
        b'{"include_usage":true},"stream_options":{"include_usage":null,"x":{}}',
    ],
)
@either_way
def test_usage_that_was_asked_for_needs_no_splice(options: bytes) -> None:
    intent = read(COMPLETIONS, b'{"model":"a","stream":true,"stream_options":' + options + b"}")
    assert intent.asks_usage
    assert intent.usage_splice is None


def test_plain_calls_and_routes_that_always_count_need_no_splice() -> None:
    assert read(V1_CHAT, b'{"model":"a",' + HI + b"}").usage_splice is None
    assert read(API_CHAT, b'{"model":"a",' + HI + b"}").usage_splice is None
    assert read(MESSAGES, b'{"model":"a","stream":true,"max_tokens":1,' + HI + b"}").usage_splice is None


# --- options and keep_alive ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "num_ctx"),
    [
        (b'"options":{"num_ctx":8192}', 8192),
        (b'"options":{"num_ctx":8192.9,"Num_Ctx":1}', 8192),
        (b'"options":{"num_ctx":1},"OPTIONS":{"seed":1}', 1),
        (b'"options":{"num_ctx":1},"options":{"seed":1,"num_ctx":2}', 2),
        (b'"options":{"num_ctx":1},"options":{"num_ctx":null}', None),
        (b'"options":{"num_ctx":1},"options":null', None),
        (b'"options":{"num_ctx":"x","seed":1,"num_ctx":3}', 3),
        (b'"options":{}', None),
        (b'"options":{"num_ctx":1e300}', 2**63),
    ],
)
@either_way
def test_num_ctx_is_read_as_the_node_merges_it(options: bytes, num_ctx: int | None) -> None:
    intent = read(GENERATE, b'{"model":"a",' + options + b"}")
    assert intent.num_ctx == num_ctx


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"300", 300.0),
        (b"1.5", 1.5),
        (b"0", 0.0),
        (b"1e-10", 0.0),
        (b"-1", math.inf),
        (b"1e300", math.inf),
        (b'"5m"', 300.0),
        (b'"1h30m0.5s"', 5400.5),
        (b'"0"', 0.0),
        (b'"-0"', 0.0),
        (b'"+10ms"', 0.01),
        (b'"1\xc2\xb5s"', 1e-6),
        (b'"1\\u03bcs"', 1e-6),
        (b'"-1m"', math.inf),
        (b'"-9223372036854775808ns"', math.inf),
        (b"null", None),
        (b'1,"keep_alive":null', None),
        (b'1,"keep_alive":"2s"', 2.0),
    ],
)
@either_way
def test_keep_alive_is_seconds(raw: bytes, seconds: float | None) -> None:
    assert read(GENERATE, b'{"model":"a","keep_alive":' + raw + b"}").keep_alive_s == seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'invalid duration ""'),
        ("-", 'invalid duration "-"'),
        ("5", 'missing unit in duration "5"'),
        (".s", 'invalid duration ".s"'),
        ("s", 'invalid duration "s"'),
        ("5 m", 'unknown unit " m" in duration "5 m"'),
        ("1d", 'unknown unit "d" in duration "1d"'),
        ("1\u00e9", 'unknown unit "\\xc3\\xa9" in duration "1\\xc3\\xa9"'),
        ('1"\\', 'unknown unit "\\"\\\\" in duration "1\\"\\\\"'),
        ("9223372036854775808ns", 'invalid duration "9223372036854775808ns"'),
        ("99999999999999999999", 'invalid duration "99999999999999999999"'),
        ("9223372036s9223372036s", 'invalid duration "9223372036s9223372036s"'),
    ],
)
def test_a_wrong_duration_is_refused_in_gos_words(text: str, words: str) -> None:
    body = b'{"model":"a","keep_alive":' + json.dumps(text).encode() + b"}"
    assert refused(API_CHAT, body).text == f"time: {words}"


MEMBERS = st.lists(st.sampled_from(["num_ctx", "seed", "stop"]), max_size=5)
SPACE = st.sampled_from(["", " ", "\n\t"])


@given(MEMBERS, st.lists(st.sampled_from(["keep_alive", "Keep_Alive", "x"]), max_size=4), SPACE)
def test_a_cut_option_is_gone_and_all_else_stays(keys: list[str], others: list[str], space: str) -> None:
    inner = f"{space},{space}".join(f'"{key}"{space}:{space}{index}' for index, key in enumerate(keys))
    outer = [f'"{key}":{index}' for index, key in enumerate(others)] + [f'"options":{space}{{{space}{inner}{space}}}']
    body = ('{"model":"a",' + f"{space},{space}".join(outer) + "}").encode()
    intent = read(GENERATE, body)
    after = cut(body, tuple(sorted(intent.num_ctx_spans + intent.keep_alive_spans, key=lambda span: span.start)))
    expected = [f'"{key}":{index}' for index, key in enumerate(others) if fold(key) != "keep_alive"]
    kept = {key: index for index, key in enumerate(keys) if key != "num_ctx"}
    assert json.loads(after) == {**json.loads("{" + ",".join(expected) + "}"), "model": "a", "options": kept}
    assert (read(GENERATE, after).num_ctx, read(GENERATE, after).keep_alive_s) == (None, None)


@either_way
def test_a_clamp_replaces_every_value() -> None:
    body = b'{"model":"a","keep_alive":-1,"options":{"num_ctx":1,"num_ctx":2},"keep_alive":"1h"}'
    intent = read(GENERATE, body)
    assert read(GENERATE, cut(body, intent.keep_alive_values, b'"30m"')).keep_alive_s == 1800
    assert read(GENERATE, cut(body, intent.num_ctx_values, b"4096")).num_ctx == 4096


@pytest.mark.parametrize(
    ("endpoint", "members", "is_load_only"),
    [
        (GENERATE, b"", True),
        (GENERATE, b',"prompt":""', True),
        (GENERATE, b',"prompt":"a","prompt":null', False),
        (GENERATE, b',"prompt":"a","prompt":""', True),
        (API_CHAT, b',"messages":[ ]', True),
        (API_CHAT, b',"messages":[{}],"messages":null', True),
        (API_CHAT, b',"messages":[{}]', False),
        (EMBED, b',"input":[]', True),
        (EMBED, b',"input":"a","input":null', True),
        (EMBED, b',"input":["a"]', False),
        (BY_PATH["/api/embeddings"], b',"prompt":""', True),
        (COMPLETIONS, b"", False),
    ],
)
@either_way
def test_a_native_call_without_a_prompt_only_loads(endpoint: Endpoint, members: bytes, is_load_only: bool) -> None:
    assert read(endpoint, b'{"model":"a"' + members + b"}").is_load_only is is_load_only


# --- affinity -----------------------------------------------------------------------------------------------------


def _conversation(*turns: tuple[str, str], **others: str) -> bytes:
    return json.dumps({"model": "a", "messages": [{"role": r, "content": c} for r, c in turns], **others}).encode()


def test_turns_of_one_conversation_have_one_affinity() -> None:
    first = (("system", "be brief"), ("user", "hi"))
    later = (*first, ("assistant", "hello"), ("user", "and now?"))
    affinity = read(V1_CHAT, _conversation(*first)).affinity
    assert len(affinity) == 16
    assert read(V1_CHAT, _conversation(*later)).affinity == affinity
    assert read(V1_CHAT, _conversation(("system", "be long"), ("user", "hi"))).affinity != affinity
    assert read(V1_CHAT, _conversation(("system", "be brief"), ("user", "ho"))).affinity != affinity
    assert read(V1_CHAT, _conversation(*first).replace(b'"a"', b'"b"')).affinity != affinity


def test_the_clients_key_goes_before_its_user_and_both_before_the_text() -> None:
    keyed = [
        read(V1_CHAT, _conversation(("user", text), prompt_cache_key=key, user=user)).affinity
        for text, key, user in [("a", "k", "u"), ("b", "k", "v"), ("a", "", "u"), ("b", "", "u"), ("a", "", "")]
    ]
    assert keyed[0] == keyed[1] != keyed[2] == keyed[3] != keyed[4]
    nobody = _conversation(("user", "a")).replace(b'"model"', b'"user":null,"model"')
    assert read(V1_CHAT, nobody).affinity == keyed[4]


def test_a_conversation_without_a_user_is_told_by_what_leads_it() -> None:
    affinities = {
        read(V1_CHAT, _conversation(*turns)).affinity
        for turns in [(("system", "a"), ("assistant", "b")), (("system", "a"), ("assistant", "c")), (("system", "b"),)]
    }
    assert len(affinities) == 2


def test_large_and_small_bodies_have_the_same_affinity() -> None:
    turns = (("system", "s" * 40_000), ("user", "u"))
    short = read(V1_CHAT, _conversation(*turns))
    assert short.affinity == read(V1_CHAT, _conversation(*turns, ("assistant", "x" * SLICE_BYTES))).affinity


# --- zstd and forms -----------------------------------------------------------------------------------------------


def test_spans_refer_to_the_decoded_body() -> None:
    body = b'{"model":"a","stream":true,' + HI + b"}"
    intent = read(V1_CHAT, zstandard.compress(body), "ZSTD")
    assert (intent.body, intent.was_encoded) == (body, True)
    assert text_at(intent, intent.model_spans) == [b'"a"']


def test_a_broken_frame_is_refused_while_reading() -> None:
    refusal = refused(V1_CHAT, b"{}", "zstd")
    assert isinstance(refusal, BadRequest)
    assert refusal.while_reading
    assert refused(V1_CHAT, b"", "zstd").text == "EOF"
    encoder = zstandard.ZstdCompressor().compressobj()
    assert isinstance(refused(V1_CHAT, encoder.compress(bytes(21 << 20)) + encoder.flush(), "zstd"), TooLarge)


def _form(model: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model + b"\r\n--b--\r\n"


def test_a_forms_model_is_its_raw_value() -> None:
    endpoint = BY_PATH["/v1/audio/transcriptions"]
    intent = read_intent(endpoint, _form(b" M:1b"), content_type="multipart/form-data; boundary=b", content_encoding="")
    assert (intent.model, intent.name.key, intent.streams) == (" M:1b", "m:1b", False)
    assert text_at(intent, intent.model_spans) == [b" M:1b"]
    for body in (_form(b""), b"--b--", b"--b\r\nA: b\r\n\r\n\r\n--b--"):
        with pytest.raises(BadRequest):
            read_intent(endpoint, body, content_type="multipart/form-data; boundary=b", content_encoding="")


# --- large bodies -------------------------------------------------------------------------------------------------


def test_a_picture_of_many_megabytes_is_passed_over() -> None:
    picture = b'{"role":"user","content":[{"type":"image_url","image_url":{"url":"' + b"QUJD" * 2_000_000 + b'"}}]}'
    assert len(picture) > FIND_BYTES_MAX
    assert read(V1_CHAT, b'{"messages":[' + picture + b'],"model":"a","stream":true}').name.key == "a:latest"


@pytest.mark.parametrize("unit", [b"[0],", b'"",', b'{"a":[]},', b'"\\\\\\"",', b"1,", b"[[[]]],"])
def test_a_body_of_countless_small_values_is_read(unit: bytes) -> None:
    assert read(API_CHAT, b'{"x":[' + unit * (600_000 // len(unit)) + b'0],"model":"a"}').name.key == "a:latest"


def test_nesting_as_deep_as_go_allows_is_read() -> None:
    body = b'{"model":"a","x":' + b"[" * 9_999 + b"]" * 9_999 + b"}"
    assert read(API_CHAT, body).name.key == "a:latest"
    deeper = body.replace(b"[]", b"[[]]")
    assert refused(API_CHAT, deeper).text == "invalid character '[' exceeded max depth"


def test_an_object_of_too_many_members_is_refused() -> None:
    members = b",".join(b'"%d":0' % number for number in range(MEMBERS_MAX))
    assert "members" in refused(API_CHAT, b"{" + members + b',"model":"a"}').text
    assert refused(API_CHAT, b"{" + members + b"}").text == "model is required"


def test_a_large_body_that_ends_early_is_refused_in_gos_words() -> None:
    assert refused(API_CHAT, b'{"messages":["' + b"x" * SLICE_BYTES).text == "unexpected EOF"
    assert refused(API_CHAT, b'{"messages":["' + b"x" * SLICE_BYTES + b'"] x}').text.startswith("invalid character 'x'")


@pytest.mark.parametrize("inside", [b'{"role":"assistant"} x', b'{"role":"assistant"},', b'{"role":"assistant"}:1'])
def test_what_is_wrong_inside_a_large_body_is_left_to_the_node(inside: bytes) -> None:
    body = b'{"model":"a","x":"' + b"x" * SLICE_BYTES + b'","messages":[' + inside + b"]}"
    assert read(API_CHAT, body).name.key == "a:latest"


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_pythons_own_constants_are_not_json(constant: bytes) -> None:
    assert "invalid character" in refused(API_CHAT, b'{"model":"a","x":[' + constant + b"]}").text


@either_way
def test_any_amount_of_space_is_passed_over() -> None:
    space = b" \t\r\n" * 20_000
    body = space.join([b"", b"{", b'"model"', b":", b'"a"', b",", HI[:10], b":", HI[11:], b"}", b""])
    assert read(V1_CHAT, body).name.key == "a:latest"


def test_a_type_error_after_null_is_still_one() -> None:
    text = refused(API_CHAT, b'{"messages":null,"messages":5}').text
    assert text == "json: cannot unmarshal number into Go struct field ChatRequest.messages of type []api.Message"


STRING_PIECES = st.sampled_from(
    [b"a", b"\\\\", b'\\"', b"\\n", b"[", b"}", b"\\u0022", b"\xc3\xa9", b"b" * 300, b"\\\\" * 70]
)


@given(st.lists(STRING_PIECES, max_size=30).map(b"".join))
def test_both_skippers_end_a_string_at_the_same_place(text: bytes) -> None:
    body = b'"' + text + b'" "'
    assert lenient(body)(0) == strict(body)(0) == len(text) + 2


@pytest.mark.parametrize("length", range(CHUNK_BYTES_MAX - 3, CHUNK_BYTES_MAX + 3))
@pytest.mark.parametrize("tail", [b"", b'\\"', b"\\\\", b'\\\\\\"'])
def test_a_string_that_ends_at_the_edge_of_a_chunk_ends_there(length: int, tail: bytes) -> None:
    for body in (
        b'"\\"' + b"x" * length + tail + b'"',
        b'["' + b"x" * length + tail + b'"]',
        b'[["\\"' + b"x" * length + tail + b'"]]',
    ):
        assert lenient(body)(0) == len(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from(["model", "MODEL", "\u017ftream", "stream", "Stream_Options", "x", 'a"\\', "\u00e9"])


def _written(key: str, escaped: bool) -> str:
    return (
        '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"' if escaped else json.dumps(key, ensure_ascii=False)
    )


@given(st.lists(st.tuples(KEYS, st.booleans(), JSON_VALUES), max_size=7), st.integers(0, 3))
@settings(max_examples=200)
def test_both_scanners_and_a_plain_parser_agree(members: list[tuple[str, bool, object]], indent: int) -> None:
    text = ",".join(f" {_written(key, escaped)} :{json.dumps(value, indent=indent)}" for key, escaped, value in members)
    body = ("{" + text + "}").encode()
    outcomes = [_outcome(body, slow) for slow in (strict, lenient)]
    assert outcomes[0] == outcomes[1]
    pairs: list[tuple[str, object]] = json.loads(body, object_pairs_hook=lambda pairs: pairs)
    models = [value for key, value in pairs if fold(key) == "model" and value is not None]
    if isinstance(outcomes[0], tuple):
        assert outcomes[0][0] == (models[-1] if models else "")
        streams = [value for key, value in pairs if fold(key) == "stream"]
        assert outcomes[0][1] == (streams[-1] if streams else None)
    else:
        assert "cannot unmarshal" in outcomes[0]


def _outcome(
    body: bytes, scanner: Callable[[bytes], Callable[[int], int]]
) -> tuple[str, bool | None, list[tuple[int, int]]] | str:
    try:
        fields = intent_module._read_value(API_CHAT, body, scanner)
    except Refusal as refusal:
        return refusal.text
    return fields.model, fields.stream, fields.model_spans


PIECES = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'"model":', b'"a"', b'"options":{"num_ctx":',
        b'"keep_alive":', b"1", b"-", b"true", b"null", b'"stream":', b'"stream_options":{', b'"messages":[',
        b'{"role":"user"}', b'{"role":"assistant"}', b'"max_tokens":', b" ", b"\xff",
    ]
)  # fmt: skip


@given(st.sampled_from(ENDPOINTS), st.lists(PIECES, max_size=14).map(b"".join), st.sampled_from(["", "zstd", "gzip"]))
@settings(max_examples=300)
def test_arbitrary_bytes_are_read_or_refused(endpoint: Endpoint, body: bytes, encoding: str) -> None:
    for content in (body, b'{"model":"a",' + body):
        for skipper in ("strict", "lenient"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(intent_module, "SLICE_BYTES", SLICE_BYTES if skipper == "strict" else -1)
                try:
                    intent = read_intent(
                        endpoint, content, content_type="multipart/form-data; boundary=b", content_encoding=encoding
                    )
                except Refusal:
                    continue
                assert intent.name.model
                assert all(0 <= span.start <= span.end <= len(intent.body) for span in intent.model_spans)


@given(
    st.lists(
        st.sampled_from([b'"model":"x"', b'"Model": "y"', b'"a":1', b'"model":null', b'"stream":true']),
        min_size=1,
        max_size=5,
    )
)
def test_an_alias_replaces_every_name_and_nothing_else(members: list[bytes]) -> None:
    body = b'{"model":"gpt-4",' + HI + b"," + b",".join(members) + b"}"
    intent = read(V1_CHAT, body)
    after = cut(body, intent.model_spans, b'"qwen3:8b"')
    assert after == body.replace(b'"gpt-4"', b'"qwen3:8b"').replace(b'"x"', b'"qwen3:8b"').replace(
        b'"y"', b'"qwen3:8b"'
    )
    assert read(V1_CHAT, after).model == "qwen3:8b"
