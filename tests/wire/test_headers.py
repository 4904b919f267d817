"""What goes to the node, what comes back, and what stays here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import headers
from router.wire.headers import DECISION_BYTES_MAX, Pair
from tests.fakes.recordings import recording, recordings

VIA = headers.via_value("blue")


def to_node(*pairs: Pair, drop_encoding: bool = False, extra: tuple[Pair, ...] = ()) -> list[Pair]:
    return headers.for_node(
        pairs, host=b"gpu-1:11434", via=VIA, content_length=7, drop_encoding=drop_encoding, extra=extra
    )


OURS = [(b"Host", b"gpu-1:11434"), (b"Via", b"1.1 ollama-router/blue"), (b"Content-Length", b"7")]


def test_a_node_gets_its_own_host_our_via_and_a_fresh_length() -> None:
    assert to_node() == OURS
    assert to_node((b"host", b"router"), (b"content-length", b"999"), (b"Transfer-Encoding", b"chunked")) == OURS


@pytest.mark.parametrize(
    "name",
    [
        b"TE",
        b"Expect",
        b"Cookie",
        b"Origin",
        b"Referer",
        b"Authorization",
        b"X-Api-Key",
        b"api-key",
        b"Upgrade",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"Keep-Alive",
        b"Trailer",
        b"Connection",
        b"Accept-Encoding",
        b"X-Ollama-Router-Affinity",
        b"x-ollama-router-node",
    ],
)
def test_keys_and_hop_by_hop_headers_never_reach_a_node(name: bytes) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert to_node((spelling, b"secret")) == OURS


def test_what_connection_names_stays_here() -> None:
    sent = ((b"Connection", b"close, X-Private"), (b"connection", b"x-more"), (b"x-private", b"1"), (b"X-More", b"2"))
    assert to_node(*sent) == OURS
    assert headers.for_client(sent, []) == []


def test_what_is_nobodys_business_passes_in_order_and_case() -> None:
    sent = ((b"X-Request-ID", b"a"), (b"content-type", b"b"), (b"x-stainless-lang", b"c"), (b"Via", b"1.1 nginx"))
    assert to_node(*sent) == [OURS[0], *sent, *OURS[1:]]


def test_a_decompressed_body_goes_without_its_encoding() -> None:
    encoding = (b"Content-Encoding", b"zstd")
    assert encoding in to_node(encoding)
    assert to_node(encoding, drop_encoding=True) == OURS


def test_a_nodes_own_credentials_replace_the_clients() -> None:
    sent = to_node(
        (b"Authorization", b"mine"), (b"X-Auth", b"mine"), extra=((b"authorization", b"n"), (b"x-auth", b"n"))
    )
    assert sent == [OURS[0], (b"authorization", b"n"), (b"x-auth", b"n"), *OURS[1:]]


@pytest.mark.parametrize("each", recordings("openai", "native", "anthropic"), ids=lambda each: each.name)
def test_a_client_gets_the_nodes_headers_less_its_framing(each) -> None:
    kept = headers.for_client(each.response.headers.pairs, [])
    gone = {b"connection", b"content-length", b"transfer-encoding"}
    assert kept == [pair for pair in each.response.headers.pairs if pair[0].lower() not in gone]
    assert any(name == b"Date" for name, _ in kept)


def test_cache_control_of_an_event_stream_is_kept() -> None:
    kept = headers.for_client(recording("openai/v1-responses-stream").response.headers.pairs, [(b"x-request-id", b"r")])
    assert (b"Cache-Control", b"no-cache") in kept
    assert kept[-1] == (b"x-request-id", b"r")


def test_a_node_says_nothing_about_the_origins_of_our_clients() -> None:
    theirs = ((b"Access-Control-Allow-Origin", b"*"), (b"access-control-expose-headers", b"a"), (b"Vary", b"Origin"))
    assert headers.for_client(theirs, []) == [(b"Vary", b"Origin")]


def test_our_decision_replaces_that_of_a_node_which_is_a_router_itself() -> None:
    theirs = ((b"X-Ollama-Router-Node", b"inner"), (b"A", b"b"))
    assert headers.for_client(theirs, [(b"x-ollama-router-node", b"outer")]) == [
        (b"A", b"b"),
        (b"x-ollama-router-node", b"outer"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        b"1.1 ollama-router/blue",
        b"1.0 fred, 1.1 ollama-router/blue",
        b"1.1 ollama-router/blue (comment), 1.1 nginx",
        b"1.1 (a, (b) \\) c) ollama-router/blue",
        b"HTTP/1.1   ollama-router/blue\t(x)",
    ],
)
def test_a_call_that_came_through_this_pool_is_known(value: bytes) -> None:
    assert headers.passed_pool([(b"Accept", b"*/*"), (b"via", b"1.1 nginx"), (b"VIA", value)], "blue")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ollama-router/blue",
        b"1.1 ollama-router/blueish",
        b"1.1 ollama-router/green",
        b"1.1 nginx (1.1 ollama-router/blue)",
        b"1.1 nginx (, 1.1 ollama-router/blue",
        b"1.1 nginx ollama-router/blue",
    ],
)
def test_other_pools_and_mere_comments_are_not_this_pool(value: bytes) -> None:
    assert not headers.passed_pool([(b"Via", value), (b"X-Via", b"1.1 ollama-router/blue")], "blue")


@given(st.lists(st.tuples(st.sampled_from([b"via", b"Via", b"a"]), st.binary(max_size=40)), max_size=4))
def test_what_went_to_a_node_is_known_when_it_comes_back(pairs: list[Pair]) -> None:
    headers.passed_pool(pairs, "blue")
    assert headers.passed_pool(to_node(*pairs), "blue")


def test_a_sane_request_id_is_kept() -> None:
    for raw in ("a", "0af7651916cd43dd-8448", "svc:1/2=+_.", "x" * 128):
        assert headers.request_id(raw, lambda: "fresh") == raw


@pytest.mark.parametrize("raw", [None, "", "x" * 129, "a b", "a\n", "\udcff", "é", "<script>", '"'])
def test_any_other_request_id_is_replaced(raw: str | None) -> None:
    assert headers.request_id(raw, lambda: "fresh") == "fresh"


def test_a_decision_says_what_is_known_and_nothing_else() -> None:
    assert headers.decision() == []
    assert headers.decision(node="gpu-1", model="qwen3:8b", attempts=1, queue_ms=0, reason="hot") == [
        (b"x-ollama-router-node", b"gpu-1"),
        (b"x-ollama-router-model", b"qwen3:8b"),
        (b"x-ollama-router-attempts", b"1"),
        (b"x-ollama-router-queue-ms", b"0"),
        (b"x-ollama-router-reason", b"hot"),
    ]
    assert headers.decision(refused="queue_full") == [(b"x-ollama-router-refused", b"queue_full")]


@given(st.text(max_size=2000))
def test_a_decision_is_one_short_line_of_printable_ascii(text: str) -> None:
    ((_, value),) = headers.decision(model=text)
    assert len(value) <= DECISION_BYTES_MAX
    assert all(0x20 <= byte <= 0x7E for byte in value)
