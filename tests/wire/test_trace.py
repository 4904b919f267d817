"""W3C Trace Context: what is a parent, what goes on to a node, and which roots are drawn."""

from __future__ import annotations

import random

import pytest

from router.wire.trace import Trace, is_drawn, parent_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


def parent(*values: str, state: str = "") -> object:
    pairs = [(b"Traceparent", value.encode()) for value in values]
    return parent_of([*pairs, (b"Host", b"x"), *([(b"tracestate", state.encode())] if state else [])])


def test_a_caller_is_the_parent_and_says_whether_the_trace_is_sampled() -> None:
    found = parent_of(
        [(b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01".encode()), (b"TraceState", b"a=1"), (b"tracestate", b"b=2")]
    )
    assert found is not None
    assert (found.trace_id, found.span_id, found.is_sampled, found.state) == (TRACE_ID, SPAN_ID, True, b"a=1,b=2")
    unsampled = parent_of([(b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00".encode())])
    assert unsampled is not None
    assert not unsampled.is_sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_nonsense_is_no_parent(value: str) -> None:
    assert parent(value) is None


def test_two_parents_are_none() -> None:
    assert parent(f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-01") is None


def test_later_versions_may_go_on() -> None:
    assert parent(f"01-{TRACE_ID}-{SPAN_ID}-01-more") is not None


def test_a_node_is_a_child_of_the_attempt_that_asks_it() -> None:
    trace = Trace(TRACE_ID, SPAN_ID, is_sampled=True, state=b"a=1", fresh_id=lambda: "a" * 16)
    assert trace.next_hop("gpu-1", "127.0.0.1", 11434, "m") == [
        (b"traceparent", f"00-{TRACE_ID}-{'a' * 16}-01".encode()),
        (b"tracestate", b"a=1"),
    ]
    assert [hop.span_id for hop in trace.hops] == ["a" * 16]


def test_without_a_span_of_the_attempt_the_node_is_a_child_of_the_call() -> None:
    trace = Trace(TRACE_ID, SPAN_ID)
    assert trace.next_hop("gpu-1", "127.0.0.1", 11434, "m") == [
        (b"traceparent", f"00-{TRACE_ID}-{SPAN_ID}-00".encode())
    ]
    assert trace.hops == []


def test_of_many_roots_the_ratio_is_drawn() -> None:
    rng = random.Random(7)
    drawn = sum(is_drawn(f"{rng.getrandbits(128):032x}", 0.1) for _ in range(10_000))
    assert 900 < drawn < 1100
    assert is_drawn("f" * 32, 1.0)
    assert not is_drawn("0" * 32, 0.0)
