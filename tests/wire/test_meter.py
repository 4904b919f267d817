"""Answers pass the meter unchanged but for the declared edits, however they are cut, and are counted exactly."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.wire.endpoints import BY_PATH, ENDPOINTS, Endpoint, Shape
from router.wire.gojson import go_string
from router.wire.meter import EVENT_BYTES_MAX, Meter
from router.wire.meter_member import LITERAL_BYTES_MAX, MemberEditor
from router.wire.meter_plain import PLAIN_SCAN_BYTES
from tests.fakes.recordings import Recording, recording, recordings

ALIAS = go_string("a<lias> & “co”\n")

ANSWERS = [
    each
    for each in recordings("openai", "native", "anthropic", "runner-died", "v0.24", "quirks", "busy", "refused")
    if each.path in BY_PATH
]
GOOD = [each for each in ANSWERS if each.response.status == 200]
STREAMS = [each for each in GOOD if each.response.streams]


def by_name(each: Recording) -> str:
    return each.name


def model_of(each: Recording) -> bytes:
    """The literal that the node was asked for, as Go writes it back."""
    try:
        body = json.loads(each.request.body)
    except ValueError:
        return b'"gemma3:270m"'
    members = {key.lower(): value for key, value in body.items()} if isinstance(body, dict) else {}
    return go_string(str(members.get("model", "gemma3:270m")))


def meter_of(each: Recording, *, echo: bytes | None = None, hides_usage: bool = False) -> Meter:
    return Meter(
        BY_PATH[each.path], streams=each.response.streams, echo=echo, sent=model_of(each), hides_usage=hides_usage
    )


def meter_for(path: str, *, streams: bool, echo: bytes | None = None, hides_usage: bool = False) -> Meter:
    return Meter(BY_PATH[path], streams=streams, echo=echo, sent=b'"m"', hides_usage=hides_usage)


def pass_through(meter: Meter, pieces: list[bytes]) -> bytes:
    return b"".join([meter.feed(piece) for piece in pieces] + [meter.finish()])


def pieces_of(body: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(at)]


def ways_to_cut(each: Recording) -> list[list[bytes]]:
    body = each.response.body
    return [
        [body],
        list(each.response.chunks),
        [body[i : i + 1] for i in range(len(body))],
        [body[i : i + 37] for i in range(0, len(body), 37)],
        pieces_of(body, [event.end() - 1 for event in re.finditer(rb"\n+", body)]),
    ]


def facts_of(meter: Meter) -> tuple[object, ...]:
    return (
        meter.has_content,
        meter.content_events,
        meter.input_tokens,
        meter.output_tokens,
        meter.load_s,
        meter.is_complete,
        meter.node_error,
        meter.sequence_number,
    )


def events_of(body: bytes) -> list[dict]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n")]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)


@pytest.mark.parametrize("each", ANSWERS, ids=by_name)
def test_bytes_are_the_nodes_own_when_nothing_is_to_be_edited(each: Recording) -> None:
    for pieces in ways_to_cut(each):
        meter = meter_of(each)
        for piece in pieces:
            assert meter.feed(piece) is piece
        assert meter.finish() == b""


@pytest.mark.parametrize("each", GOOD, ids=by_name)
def test_cuts_change_neither_facts_nor_bytes(each: Recording) -> None:
    for edits in ({}, {"echo": ALIAS}, {"hides_usage": True}, {"echo": ALIAS, "hides_usage": True}):
        first, *others = ways_to_cut(each)
        whole = meter_of(each, **edits)
        out = pass_through(whole, first)
        for pieces in others:
            cut = meter_of(each, **edits)
            assert pass_through(cut, pieces) == out
            assert facts_of(cut) == facts_of(whole)


@given(each=st.sampled_from(GOOD), cuts=CUTS, echo=st.sampled_from([None, ALIAS]), hides_usage=st.booleans())
def test_random_cuts_change_neither_facts_nor_bytes(
    each: Recording, cuts: list[int], echo: bytes | None, hides_usage: bool
) -> None:
    whole, cut = (meter_of(each, echo=echo, hides_usage=hides_usage) for _ in range(2))
    assert pass_through(cut, pieces_of(each.response.body, cuts)) == pass_through(whole, [each.response.body])
    assert facts_of(cut) == facts_of(whole)


@pytest.mark.parametrize("each", GOOD, ids=by_name)
def test_echo_changes_the_model_members_and_nothing_else(each: Recording) -> None:
    sent = model_of(each)
    out = pass_through(meter_of(each, echo=ALIAS), list(each.response.chunks))
    # In the recordings no client's JSON has a member of that name, so replacing all of them is the truth.
    assert out == each.response.body.replace(b'"model":' + sent, b'"model":' + ALIAS)
    named = BY_PATH[each.path].shape is not Shape.UNCOUNTED
    assert (ALIAS in out) == named


@pytest.mark.parametrize(
    ("asked", "not_asked"),
    [
        ("openai/v1-chat-stream-usage", "openai/v1-chat-stream"),
        ("openai/v1-completions-stream-usage", "openai/v1-completions-stream"),
        ("v0.24/v1-chat-stream-usage", "v0.24/v1-chat-stream"),
        ("v0.24/v1-completions-stream-usage", "v0.24/v1-completions-stream"),
    ],
)
def test_hidden_usage_leaves_what_a_node_says_that_was_not_asked(asked: str, not_asked: str) -> None:
    def timeless(body: bytes) -> bytes:
        return re.sub(rb'"(id|created)":("[^"]+"|\d+)', rb'"\1":0', body)

    for pieces in ways_to_cut(recording(asked)):
        meter = meter_of(recording(asked), hides_usage=True)
        assert timeless(pass_through(meter, pieces)) == timeless(recording(not_asked).response.body)
        assert (meter.input_tokens, meter.output_tokens) == recorded_counts(recording(asked))


def recorded_counts(each: Recording) -> tuple[int | None, int | None]:
    found: tuple[int | None, int | None] = (None, None)
    for event in events_of(each.response.body):
        if event.get("type") == "message_start":
            continue
        response = event.get("response")
        usage = event.get("usage") or (isinstance(response, dict) and response.get("usage")) or event
        for names in (
            ("prompt_tokens", "completion_tokens"),
            ("input_tokens", "output_tokens"),
            ("prompt_eval_count", "eval_count"),
        ):
            if names[0] in usage and (usage[names[0]] or not each.response.streams):
                found = (usage[names[0]], usage.get(names[1]))
    return found


@pytest.mark.parametrize("each", GOOD, ids=by_name)
def test_counts_are_those_recorded(each: Recording) -> None:
    meter = meter_of(each)
    pass_through(meter, list(each.response.chunks))
    assert (meter.input_tokens, meter.output_tokens) == recorded_counts(each)


@pytest.mark.parametrize("each", STREAMS, ids=by_name)
def test_content_events_are_the_tokens_as_far_as_they_are_sent_one_by_one(each: Recording) -> None:
    meter = meter_of(each)
    pass_through(meter, list(each.response.chunks))
    assert meter.has_content
    assert 1 <= meter.content_events <= len(events_of(each.response.body))
    if meter.output_tokens is not None and "tools" not in each.name:
        assert meter.output_tokens - 3 <= meter.content_events <= meter.output_tokens


def test_load_time_is_in_seconds() -> None:
    meter = meter_of(recording("native/chat-think-stream"))
    pass_through(meter, [recording("native/chat-think-stream").response.body])
    assert meter.load_s == pytest.approx(0.151081561)
    assert meter.eval_s == pytest.approx(0.189273)


@pytest.mark.parametrize("each", GOOD, ids=by_name)
def test_only_streams_of_dead_runners_end_incomplete(each: Recording) -> None:
    meter = meter_of(each)
    pass_through(meter, list(each.response.chunks))
    assert meter.is_complete == (not each.name.startswith("runner-died/"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("api-chat-stream", "an error was encountered while running the model: unexpected EOF"),
        ("api-generate-stream", "an error was encountered while running the model: unexpected EOF"),
        ("api-chat", "an error was encountered while running the model: unexpected EOF"),
        ("v1-chat", "an error was encountered while running the model: unexpected EOF"),
        ("v1-chat-stream", "an error was encountered while running the model"),
        ("v1-chat-stream-usage", "an error was encountered while running the model"),
        ("v1-completions-stream", "an error was encountered while running the model"),
        ("v1-messages-stream", None),
        ("v1-responses-stream", None),
    ],
)
def test_a_dead_runner_is_known_by_what_it_left(name: str, text: str | None) -> None:
    each = recording(f"runner-died/{name}")
    for hides_usage in (False, True):
        meter = meter_of(each, echo=ALIAS, hides_usage=hides_usage)
        out = pass_through(meter, list(each.response.chunks))
        assert meter.node_error == text
        assert b'"model":""' in out or b'"model":""' not in each.response.body


@pytest.mark.parametrize("each", STREAMS, ids=by_name)
def test_an_editing_meter_gives_the_client_whole_events_only(each: Recording) -> None:
    meter = meter_of(each, echo=ALIAS)
    given_so_far = b""
    end = b"\n" if each.path.startswith("/api/") else b"\n\n"
    for piece in pieces_of(each.response.body, list(range(0, len(each.response.body), 23))):
        given_so_far += meter.feed(piece)
        assert meter.at_boundary == (not given_so_far or given_so_far.endswith(end))


@pytest.mark.parametrize("each", STREAMS, ids=by_name)
def test_a_passing_meter_knows_where_events_end(each: Recording) -> None:
    meter = meter_of(each)
    end = b"\n" if each.path.startswith("/api/") else b"\n\n"
    seen = b""
    for piece in pieces_of(each.response.body, list(range(0, len(each.response.body), 29))):
        seen += meter.feed(piece)
        assert meter.at_boundary == (not seen or seen.endswith(end))


def test_a_plain_answer_that_has_begun_takes_no_event() -> None:
    meter = meter_for("/v1/chat/completions", streams=False)
    assert meter.at_boundary
    meter.feed(b"{")
    assert not meter.at_boundary


def test_role_alone_is_no_content() -> None:
    meter = meter_for("/v1/chat/completions", streams=True)
    for delta in (b'{"role":"assistant","content":""}', b"{}", b'{"content":""}', b'{"role":"assistant"}'):
        meter.feed(b'data: {"model":"m","choices":[{"index":0,"delta":%b,"finish_reason":null}]}\n\n' % delta)
    assert (meter.has_content, meter.content_events) == (False, 0)
    for delta in (b'{"content":"a"}', b'{"content":"","reasoning":"b"}', b'{"content":"","tool_calls":[{}]}'):
        meter.feed(b'data: {"model":"m","choices":[{"index":0,"delta":%b,"finish_reason":null}]}\n\n' % delta)
    assert (meter.has_content, meter.content_events) == (True, 3)


def test_sequence_number_goes_on_where_the_node_stopped() -> None:
    each = recording("runner-died/v1-responses-stream")
    meter = meter_of(each)
    assert meter.sequence_number == 0
    pass_through(meter, list(each.response.chunks))
    assert meter.sequence_number == events_of(each.response.body)[-1]["sequence_number"] + 1


def test_a_tool_call_that_speaks_of_models_keeps_its_words() -> None:
    call = b'{"function":{"name":"f","arguments":{"model":"m","done":true,"x\\"model":"m"}}}'
    line = b'{"model":"m","message":{"role":"assistant","content":"","tool_calls":[%b]},"done":false}\n' % call
    meter = meter_for("/api/chat", streams=True, echo=b'"alias"')
    assert meter.feed(line) == b'{"model":"alias"' + line[len(b'{"model":"m"') :]
    assert (meter.is_complete, meter.content_events) == (False, 1)
    elsewhere = b'{"message":{"tool_calls":[%b]},"model":"m","done":true}\n' % call
    assert meter.feed(elsewhere) == elsewhere.replace(
        b',"model":"m","done":true}\n', b',"model":"alias","done":true}\n'
    )
    assert meter.is_complete


def test_a_usage_that_was_never_added_is_not_missed() -> None:
    event = b'data: {"choices":[{"text":"a}}","index":0,"logprobs":{}}],"x":{"model":"m"}}\n\n'
    assert meter_for("/v1/completions", streams=True, hides_usage=True).feed(event) == event


def test_schemas_and_metadata_of_a_response_keep_their_models() -> None:
    inner = b'"metadata":{"model":"m"},"a":[{"model":"m"}],"model":"m","tools":[{"model":"m"}]'
    event = b'event: response.created\ndata: {"model":"m","response":{%b},"sequence_number":0}\n\n' % inner
    meter = meter_for("/v1/responses", streams=True, echo=b'"alias"')
    assert meter.feed(event) == event.replace(b'}],"model":"m","tools"', b'}],"model":"alias","tools"')


def test_a_name_that_the_node_was_not_asked_for_stays() -> None:
    meter = meter_for("/api/chat", streams=True, echo=b'"alias"')
    for line in (b'{"model":"","done":false}\n', b'{"model":"mm","done":false}\n', b'{"error":"m"}\n'):
        assert meter.feed(line) == line


def test_an_alias_that_is_the_nodes_own_name_edits_nothing() -> None:
    for path in ("/api/chat", "/v1/responses"):
        meter = meter_for(path, streams=True, echo=b'"m"')
        piece = b'{"model":"m"'
        assert meter.feed(piece) is piece


def test_logprobs_behind_done_do_not_hide_content_or_end() -> None:
    meter = meter_for("/api/chat", streams=True)
    line = b'{"model":"m","message":{"role":"assistant","content":"%b"},"done":%b,"logprobs":[{"token":"a"}]}\n'
    meter.feed(line % (b"a", b"false") + line % (b"", b"false"))
    assert (meter.content_events, meter.is_complete) == (1, False)
    meter.feed(line % (b"", b"true"))
    assert (meter.content_events, meter.is_complete) == (1, True)


def test_messages_are_held_back_only_until_the_model_is_named() -> None:
    each = recording("anthropic/v1-messages-stream")
    meter = meter_of(each, echo=ALIAS)
    start = each.response.chunks[0]
    assert meter.feed(start + b"event: con") == start.replace(model_of(each), ALIAS) + b"event: con"
    piece = b"tent_block_delta\n"
    assert meter.feed(piece) is piece
    assert not meter.at_boundary


@pytest.mark.parametrize("path", [each.path for each in ENDPOINTS if each.shape not in (Shape.EMBED,)])
def test_an_event_longer_than_any_reader_takes_is_not_held_back(path: str) -> None:
    meter = meter_for(path, streams=True, echo=b'"alias"', hides_usage=True)
    piece = b"x" * (1024 * 1024)
    held = 0
    for _ in range(10):
        held += len(piece) - len(meter.feed(piece))
        assert held <= EVENT_BYTES_MAX
    assert held == 0
    assert len(meter._partial) <= EVENT_BYTES_MAX
    for rest in (b"x\n\n", b'data: {"model":"m"}\n\n'):
        assert meter.feed(rest) is rest
        assert meter.at_boundary or BY_PATH[path].shape is Shape.UNCOUNTED or path == "/v1/embeddings"


def test_a_huge_plain_answer_passes_without_being_kept() -> None:
    vector = b"[" + b",".join(b"0.%d" % i for i in range(200_000)) + b"]"
    body = b'{"data":[{"embedding":%b}],"model":"m","usage":{"prompt_tokens":6,"total_tokens":6}}\n' % vector
    for echo in (None, b'"alias"'):
        meter = meter_for("/v1/embeddings", streams=False, echo=echo)
        out = b""
        for i in range(0, len(body), 4096):
            out += meter.feed(body[i : i + 4096])
            assert min(i + 4096, len(body)) - len(out) < 100
            assert meter._plain is not None
            assert len(meter._plain._tail) <= 2 * PLAIN_SCAN_BYTES + 4096
        out += meter.finish()
        assert out == (body if echo is None else body.replace(b'"model":"m"', b'"model":"alias"'))
        assert (meter.input_tokens, meter.output_tokens, meter.is_complete) == (6, None, True)


def test_counts_in_the_middle_of_a_long_plain_answer_are_found_wherever_it_is_cut() -> None:
    metrics = b'"load_duration":3000000000,"prompt_eval_count":12,"eval_count":345,"eval_duration":1'
    body = b'{"model":"m","response":"%b","done":true,%b,"logprobs":[%b]}'
    for shift in range(0, 200, 7):
        text, logprobs = b"t" * (PLAIN_SCAN_BYTES + shift), b"0," * PLAIN_SCAN_BYTES * 2 + b"0"
        meter = meter_for("/api/generate", streams=False)
        whole = body % (text, metrics, logprobs)
        pass_through(meter, [whole[i : i + 997] for i in range(0, len(whole), 997)])
        assert (meter.input_tokens, meter.output_tokens, meter.load_s) == (12, 345, 3.0)


@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from(ENDPOINTS), st.booleans(), st.booleans())
def test_garbage_never_raises_and_passes_unedited(
    pieces: list[bytes], endpoint: Endpoint, streams: bool, edits: bool
) -> None:
    echo = b'"alias"' if edits else None
    meter = Meter(endpoint, streams=streams, echo=echo, sent=b'"m"', hides_usage=edits)
    assert pass_through(meter, pieces) == b"".join(pieces)
    facts_of(meter)


TOKENS = st.sampled_from(
    [
        b'"model":"m"',
        b'"model"',
        b":",
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b"data: ",
        b"\n",
        b"\n\n",
        b'"done":true',
        b"event: response.created\n",
        b"event: error",
        b'"choices":[',
        b'"choices":[]',
        b'"delta":{',
        b',"usage":{',
        b"}}",
        b'"sequence_number":',
        b"99999999999999999999",
        b'{"error":',
        b'"text":""',
        b'"finish_reason":null}]}',
        b"\\u12",
    ]
)


CHAT = next(endpoint for endpoint in ENDPOINTS if endpoint.path == "/v1/chat/completions")


@example([b'"delta":{', b'"model":"m"'], CHAT, False, [1])  # cut inside a string that is no object's
@example([b'"model":"m"', b"\n\n\n\n", b'"choices":[]', b',"usage":{', b"}}"], CHAT, True, [14])  # inside a run
@given(st.lists(TOKENS, max_size=25), st.sampled_from(ENDPOINTS), st.booleans(), CUTS)
def test_almost_json_never_raises_however_it_is_cut(
    tokens: list[bytes], endpoint: Endpoint, streams: bool, cuts: list[int]
) -> None:
    body = b"".join(tokens)
    whole, cut = (Meter(endpoint, streams=streams, echo=b'"a"', sent=b'"m"', hides_usage=True) for _ in range(2))
    assert pass_through(whole, [body]) == pass_through(cut, pieces_of(body, cuts))
    assert facts_of(whole) == facts_of(cut)


def test_an_answer_without_its_last_newline_is_still_read() -> None:
    meter = meter_for("/api/chat", streams=True, echo=b'"alias"')
    assert meter.feed(b'{"model":"m","message":{},"done":true,"eval_count":3}') == b""
    assert meter.finish() == b'{"model":"alias","message":{},"done":true,"eval_count":3}'
    assert (meter.is_complete, meter.output_tokens, meter.at_boundary) == (True, 3, False)


def test_empty_and_foreign_bodies_are_no_complete_answers() -> None:
    for body in (b"", b"404 page not found", b"[1]", b'{"cut":'):
        meter = meter_for("/v1/chat/completions", streams=False, echo=b'"alias"')
        assert pass_through(meter, [body]) == body
        assert not meter.is_complete


MODELS = st.sampled_from(["m", "n", "", 'q"m', "\\", "m\\"])
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | MODELS
    | st.sampled_from(["a", "{", "}]", "é", '"model":"m"', "\\u", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "response", "a", 'x"model', "\\"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["response", "a", "b"]), TREES, max_size=3),
    st.dictionaries(st.sampled_from(["response", "tools", "b"]), TREES, max_size=3),
    st.sampled_from([("model",), ("response", "model")]),
    MODELS,
    CUTS,
)
def test_the_member_at_the_path_is_replaced_and_no_other(
    before: dict, after: dict, path: tuple[str, ...], value: str, cuts: list[int]
) -> None:
    def tree(model: str) -> dict:
        inner = {**before, "model": model, **{key: item for key, item in after.items() if key not in before}}
        return inner if len(path) == 1 else {"a": before, "response": inner, "model": "m", "z": after}

    def dump(model: str) -> bytes:
        return json.dumps(tree(model), separators=(",", ":")).encode()

    keys = tuple(json.dumps(key).encode() for key in path)
    editor = MemberEditor(keys, b'"m"', b'"alias"')
    pieces = pieces_of(dump(value), cuts)
    out = b"".join([editor.feed(piece) for piece in pieces] + [editor.finish()])
    assert out == dump("alias" if value == "m" else value)


def test_a_literal_longer_than_any_name_is_not_held_back() -> None:
    editor = MemberEditor((b'"model"',), b'"m"', b'"alias"')
    held = 0
    for piece in [b'{"model":"', *[b"x" * 1000] * 20, b'"}']:
        held += len(piece) - len(editor.feed(piece))
        assert held <= LITERAL_BYTES_MAX
    assert held == 0


def test_a_model_behind_the_object_that_should_hold_it_is_another() -> None:
    editor = MemberEditor((b'"response"', b'"model"'), b'"m"', b'"alias"')
    body = (
        b'{"response":{"id":1,"a":{}},"model":"m","response":["model","m"],"z":{"response":{"model":"m"}}}{"model":"m"}'
    )
    assert editor.feed(body) + editor.finish() == body
    assert editor.is_done
