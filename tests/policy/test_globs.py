"""Patterns of names: what they match, what they cannot mean, and that they match as a naive reading does."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.globs import EVERYTHING, GlobError, Globs, globs_of
from router.wire.names import key_of


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*", "anything:7b"),
        ("llama3*", "llama3.2:3b"),
        ("llama3*", "Llama3"),
        ("ns/*", "ns/mine:q4_K_M"),
        ("hf.co/*", "hf.co/ns/mine:Q8_0"),
        ("*:8b", "qwen3:8b"),
        ("*:8b", "ns/qwen3:8b"),
        ("qwen*:8b", "qwen3:8b"),
        ("*coder*", "qwen2.5-coder:14b"),
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:latest", "llama3.2"),
        ("LLAMA3.2:3B", "llama3.2:3b"),
        ("library/llama3.2", "llama3.2"),
        ("*-coder", "qwen-coder"),
        ("a*b*c:*", "axxbyyc:1"),
    ],
)
def test_a_pattern_matches(pattern: str, name: str) -> None:
    assert globs_of([pattern]).match(key_of(name))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("llama3*", "ns/llama3:8b"),
        ("ns/*", "other/mine"),
        ("ns/*", "ns"),
        ("*:8b", "qwen3:18b-q4"),
        ("llama3.2", "llama3.2:3b"),
        ("*-coder", "qwen-coder:14b"),
        ("ab*bc:latest", "abc"),
        ("a*b*c:*", "acb:1"),
    ],
)
def test_a_pattern_does_not_match(pattern: str, name: str) -> None:
    assert not globs_of([pattern]).match(key_of(name))


@pytest.mark.parametrize("pattern", ["", " ", "a b", "llama?", "llama[3]*", "a/b/c/d/e:", "library/*", "ü*"])
def test_a_pattern_that_could_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(GlobError):
        globs_of([pattern])


def test_no_pattern_at_all_matches_nothing() -> None:
    assert not globs_of([]).match("a:latest")


def test_what_means_the_same_is_the_same() -> None:
    assert globs_of(["B*", "a", "a:latest", "b**"]) == globs_of(["a", "b*"])
    assert globs_of(["*"]) == EVERYTHING


@given(
    st.text("ab:/*", min_size=1, max_size=12).filter(lambda text: "*" in text),
    st.text("ab:/", max_size=12),
)
def test_matching_is_what_a_regular_expression_would_say(pattern: str, key: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), key) is not None
    assert Globs((pattern,)).match(key) is expected


@given(st.lists(st.text(max_size=20), max_size=4), st.text(max_size=30))
def test_no_pattern_and_no_key_raises_anything_else(patterns: list[str], key: str) -> None:
    try:
        globs = globs_of(patterns)
    except GlobError:
        return
    assert globs.match(key) in (True, False)


def test_many_stars_take_no_time_to_speak_of() -> None:
    # A backtracking matcher would not end in this test's life.
    assert not Globs(("*a" * 200 + "b",)).match("a" * 100_000)
