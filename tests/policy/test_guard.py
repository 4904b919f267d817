"""What a client may change about a copy that others share."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.guard import Cut, Keep, Refused, clamp_keep_alive, guard_num_ctx


@pytest.mark.parametrize(
    ("asked", "loaded", "context_max", "answer"),
    [
        (None, 4096, 32768, Keep()),
        (8192, 0, 32768, Keep()),  # nobody knows what is loaded
        (4096, 4096, 0, Keep()),
        (100_000, 32768, 32768, Keep()),  # Ollama caps it to the training context
        (2048, 4096, 32768, Cut()),
        (0, 4096, 32768, Cut()),
        (-1, 4096, 32768, Cut()),
    ],
)
def test_what_the_loaded_context_covers_is_served(
    asked: int | None, loaded: int, context_max: int, answer: Keep | Cut
) -> None:
    assert guard_num_ctx(asked, loaded, context_max) == answer


def test_more_context_than_loaded_is_refused_with_what_to_do() -> None:
    refused = guard_num_ctx(8192, 4096, 32768)
    assert isinstance(refused, Refused)
    for words in ("num_ctx 8192", "at most 4096", "leave num_ctx out", "an operator"):
        assert words in refused.text


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6))
def test_what_is_kept_never_reloads(asked: int, loaded: int, context_max: int) -> None:
    if guard_num_ctx(asked, loaded, context_max) == Keep():
        assert min(asked, context_max or asked) == loaded


@pytest.mark.parametrize(
    ("asked_s", "answer_s"),
    [(None, None), (0, 0), (60, 60), (1800, 1800), (1801, 1800), (math.inf, 1800), (-1, 1800), (math.nan, 1800)],
)
def test_nobody_keeps_a_model_for_ever(asked_s: float | None, answer_s: float | None) -> None:
    assert clamp_keep_alive(asked_s, 1800) == answer_s
