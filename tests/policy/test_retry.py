"""After a failed attempt: who is asked next, how often, and whom a breaker blames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.retry import (
    ATTEMPTS,
    BUDGET_MIN,
    RULES,
    Blame,
    Budget,
    Failure,
    GiveUp,
    NextTarget,
    Pass,
    Retry,
    Tries,
    blame_of,
    classify,
    verdict,
)
from tests.fakes.recordings import Recording, recording, recordings

FULL = Budget(running=10, retrying=BUDGET_MIN)


def test_every_failure_has_a_rule() -> None:
    assert set(RULES) == set(Failure)


@pytest.mark.parametrize("one", recordings("busy"), ids=lambda one: one.name)
def test_a_recorded_busy_node_is_busy(one: Recording) -> None:
    assert classify(one.response.status, one.response.body) is Failure.BUSY


@pytest.mark.parametrize("name", ["api-chat", "v1-chat"])
def test_a_recorded_dead_runner_is_known_in_any_dialect(name: str) -> None:
    answer = recording(f"runner-died/{name}").response
    assert classify(answer.status, answer.body) is Failure.RUNNER_DIED


def test_every_recorded_unknown_model_is_gone_and_nothing_else_fails() -> None:
    for one in recordings("refused", "catalog", "quirks", "openai", "native", "anthropic", "v0.24"):
        failure = classify(one.response.status, one.response.body)
        if failure is not None:
            assert failure is Failure.MODEL_GONE, one.name
            assert one.response.status == 404
    assert classify(404, recording("catalog/unknown-v1").response.body) is None
    assert classify(500, recording("refused/option-type").response.body) is None
    unknown = recording("refused/unknown-v1-chat").response
    assert classify(unknown.status, unknown.body) is Failure.MODEL_GONE


def test_a_refused_connection_goes_elsewhere_and_costs_no_budget() -> None:
    assert verdict(Failure.CONNECT_REFUSED, Tries(1), FULL) == Retry(excludes_node=True, is_counted=False)


@pytest.mark.parametrize("failure", [Failure.RESET, Failure.CLOSED, Failure.GARBAGE, Failure.CONNECT_TIMEOUT])
def test_a_broken_connection_goes_elsewhere_within_the_budget(failure: Failure) -> None:
    assert verdict(failure, Tries(1)) == Retry(excludes_node=True, is_counted=True)
    assert verdict(failure, Tries(1), FULL) == GiveUp()
    assert verdict(failure, Tries(1, has_other_node=False)) == GiveUp()


def test_after_a_dead_runner_there_is_one_more_try_whatever_comes_of_it() -> None:
    assert isinstance(verdict(Failure.RUNNER_DIED, Tries(1)), Retry)
    for failure in Failure:
        assert not isinstance(verdict(failure, Tries(2, has_met_dead_runner=True)), Retry)


def test_a_busy_node_hands_over_or_takes_the_call_back_in_line() -> None:
    assert verdict(Failure.BUSY, Tries(1)) == Retry(excludes_node=True, is_counted=True)
    assert verdict(Failure.BUSY, Tries(1, has_other_node=False)) == Retry(excludes_node=False, is_counted=True)
    assert verdict(Failure.BUSY, Tries(ATTEMPTS)) == Pass()


def test_a_lost_model_is_marked_absent() -> None:
    assert verdict(Failure.MODEL_GONE, Tries(1)) == Retry(excludes_node=True, is_counted=True, marks_absent=True)


def test_a_late_first_byte_is_the_end() -> None:
    assert verdict(Failure.FIRST_BYTE_TIMEOUT, Tries(1)) == GiveUp()


def test_only_copies_that_fail_and_nodes_that_cannot_be_reached_are_blamed() -> None:
    assert {failure for failure in Failure if blame_of(failure) is Blame.NODE} == {
        Failure.CONNECT_REFUSED,
        Failure.CONNECT_TIMEOUT,
        Failure.TLS,
    }
    assert {failure for failure in Failure if blame_of(failure) is Blame.NOBODY} == {
        Failure.LOCAL,
        Failure.BUSY,
        Failure.MODEL_GONE,
        Failure.INCAPABLE,
        Failure.FIRST_BYTE_TIMEOUT,
    }
    assert blame_of(None) is Blame.NOBODY
    assert blame_of(None, blames_copy=True) is Blame.COPY


@given(st.lists(st.tuples(st.sampled_from(list(Failure)), st.booleans()), min_size=8, max_size=8))
def test_no_history_of_failures_exceeds_the_bounds(history: list[tuple[Failure, bool]]) -> None:
    made, after_death, met = 0, 0, False
    for failure, has_other_node in history:
        made += 1
        after_death += met
        answer = verdict(failure, Tries(made, met, has_other_node))
        if not isinstance(answer, Retry):
            break
        assert has_other_node or not answer.excludes_node
        met = met or failure is Failure.RUNNER_DIED
    assert made <= ATTEMPTS
    assert after_death <= 1


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 200))
def test_retries_at_once_never_exceed_their_share(ends: list[bool], running: int) -> None:
    """Calls fail without end; each retry runs until it ends."""
    retrying = 0
    for has_ended in ends:
        if has_ended:
            retrying = max(0, retrying - 1)
        else:
            answer = verdict(Failure.RESET, Tries(1), Budget(running, retrying))
            retrying += isinstance(answer, Retry)
        assert retrying <= max(BUDGET_MIN, 0.2 * running + 1)


INCAPABLE = ["chat-tools", "chat-think", "generate-suffix"]


@pytest.mark.parametrize(
    "name", [*(f"refused/{kind}-unsupported" for kind in INCAPABLE), "refused/embed-on-chat-model",
             "refused/v1-embeddings-on-chat-model", "v0.24/embed-on-chat-model", "refused/v1-transcriptions-bad"],
)  # fmt: skip
def test_what_a_model_cannot_do_is_a_failure_only_where_the_alias_has_another(name: str) -> None:
    answer = recording(name).response
    assert classify(answer.status, answer.body) is None
    assert classify(answer.status, answer.body, has_other_target=True) is Failure.INCAPABLE


def test_a_clients_mistake_is_answered_by_the_first_model() -> None:
    for each in recordings("refused"):
        if b"does not support" not in each.response.body:
            assert classify(each.response.status, each.response.body, has_other_target=True) is not Failure.INCAPABLE


def test_another_target_comes_after_the_last_node_but_at_once_for_what_a_model_cannot_do() -> None:
    two, one = Tries(made=1, has_other_target=True), Tries(made=1, has_other_node=False, has_other_target=True)
    assert verdict(Failure.RESET, two) == Retry(True, is_counted=True)
    assert verdict(Failure.RESET, one) == NextTarget(is_counted=True)
    assert verdict(Failure.INCAPABLE, two, FULL) == NextTarget(is_counted=False)
    assert verdict(Failure.BUSY, one) == Retry(False, is_counted=True), "a busy target is waited for"
    assert verdict(Failure.FIRST_BYTE_TIMEOUT, one) == GiveUp()
    assert verdict(Failure.INCAPABLE, Tries(made=ATTEMPTS, has_other_target=True)) == Pass()
    assert verdict(Failure.RUNNER_DIED, Tries(made=2, has_met_dead_runner=True, has_other_target=True)) == GiveUp()
