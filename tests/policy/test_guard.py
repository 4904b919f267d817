"""What a client may change about a copy that others share."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.guard import (
    Cut,
    Guards,
    Keep,
    KeepAliveGuard,
    NumCtxGuard,
    Refused,
    clamp_keep_alive,
    context_to_load,
    guard_loaded,
    guard_num_ctx,
    keep_alive_to_load,
)


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


@pytest.mark.parametrize(
    ("asked", "loaded", "mode", "is_refused"),
    [
        (8192, [4096, 2048], NumCtxGuard.PROTECT, True),
        (4096, [4096, 2048], NumCtxGuard.PROTECT, False),
        (2048, [4096], NumCtxGuard.PROTECT, False),
        (8192, [4096, 0], NumCtxGuard.PROTECT, False),  # nobody knows what one of them has
        (8192, [], NumCtxGuard.PROTECT, False),
        (2048, [4096], NumCtxGuard.REJECT, True),
        (2048, [4096, 2048], NumCtxGuard.REJECT, False),
        (None, [4096], NumCtxGuard.REJECT, False),
        (100_000, [32768], NumCtxGuard.REJECT, False),  # Ollama caps it to the training context
    ],
)
def test_a_context_is_refused_where_no_copy_has_it(
    asked: int | None, loaded: list[int], mode: NumCtxGuard, is_refused: bool
) -> None:
    assert (guard_loaded(asked, loaded, 32768, Guards(mode)) is not None) == is_refused


def test_a_load_has_the_context_of_the_override_before_the_clients_and_none_above_the_training_context() -> None:
    assert context_to_load(2048, None, Guards(), 32768) == 2048
    assert context_to_load(2048, 8192, Guards(), 32768) == 8192
    assert context_to_load(None, 8192, Guards(), 4096) == 4096
    assert context_to_load(None, 8192, Guards(), 0) == 8192
    assert context_to_load(None, None, Guards(), 32768) == 0
    assert context_to_load(2048, 8192, Guards(NumCtxGuard.PASS), 32768) == 0


def test_a_load_keeps_the_model_as_long_as_was_asked_where_keep_alive_passes() -> None:
    passing = Guards(keep_alive=KeepAliveGuard.PASS)
    assert keep_alive_to_load(math.inf, passing) == math.inf
    assert keep_alive_to_load(math.inf, Guards()) == 1800
    assert keep_alive_to_load(0.0, passing) is None
