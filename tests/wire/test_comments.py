"""The comments of a waiting stream keep to the grammar that docs/waiting.md promises."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from router.wire import comments, headers

GRAMMAR = re.compile(rb": ollama-router( waiting)?( [a-z_]+=[\x21-\x7e]+)+\n\n")


def test_a_place_is_told_with_what_is_known_of_it() -> None:
    told = comments.in_line(position=3, of=7, estimate_s=11.2, is_loading=False, waited_s=8.9)
    assert told == b": ollama-router waiting reason=line position=3 of=7 estimate_s=12 waited_s=8\n\n"
    told = comments.in_line(position=1, of=1, estimate_s=None, is_loading=True, waited_s=20)
    assert told == b": ollama-router waiting reason=load position=1 of=1 waited_s=20\n\n"
    told = comments.in_line(position=None, of=None, estimate_s=None, is_loading=False, waited_s=20)
    assert told == b": ollama-router waiting reason=line waited_s=20\n\n"


def test_a_decision_is_told_as_its_headers_would_have() -> None:
    pairs = headers.decision(node="gpu-1", model="qwen3:8b", attempts=2, queue_ms=9004, reason="free")
    told = comments.decision([(b"x-request-id", b"r"), *pairs])
    assert told == b": ollama-router node=gpu-1 model=qwen3:8b attempts=2 queue_ms=9004 reason=free\n\n"


@given(st.text(min_size=1), st.floats(0, 1e6))
def test_whatever_a_node_is_called_a_comment_stays_one_line_of_the_grammar(name: str, waited_s: float) -> None:
    assert GRAMMAR.fullmatch(comments.at_node(name, waited_s=waited_s))
    assert GRAMMAR.fullmatch(comments.decision(headers.decision(node=name, model=name)))
