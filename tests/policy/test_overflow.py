"""When a call that waits goes to which further line, and where it does not go."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import Health
from router.fleet.snapshot import Snapshot
from router.policy.alias import Overrides, RoutePlan, Target
from router.policy.guard import Guards, NumCtxGuard
from router.policy.overflow import AGAIN_S, Overflow, Widening, widening
from router.policy.route import Reach
from router.policy.ticket import ticket_for
from router.wire.endpoints import BY_PATH
from router.wire.intent import read_intent
from tests.fleet.builders import fleet, node

AFTER_S = 20.0
SINCE_S = 1000.0
LATE_S = SINCE_S + 10 * AFTER_S
# `big` is ready and, since the call waits, busy.
FLEET = fleet(node("a", disk="big cold", ready="big"), node("b", disk="small mid cold", ready="small mid"))


def overflow(
    *models: str | Target,
    after_s: float | None = AFTER_S,
    path: str = "/api/generate",
    options: dict[str, Any] | None = None,
    guards: Guards = Guards(),  # noqa: B008 - frozen
    reach: Reach = Reach(),  # noqa: B008 - frozen
    excluded: str = "",
    snapshot: Snapshot = FLEET,
) -> Overflow:
    endpoint = BY_PATH[path]
    named = [each if isinstance(each, Target) else Target(each) for each in models]
    plan = RoutePlan(tuple(replace(target, overflow_after_s=after_s) for target in named), "gpt:latest")
    body = json.dumps({"model": "gpt", "prompt": "?", "messages": [{}], "options": options or {}}).encode()
    intent = read_intent(endpoint, body, content_type="application/json", content_encoding="")
    ticket = ticket_for("1", endpoint, intent, plan, team="default", body_bytes=0, snapshot=snapshot, guards=guards)
    ticket = replace(ticket, excluded=frozenset(excluded.split()))
    return Overflow(plan, ticket, endpoint, intent, guards, reach, SINCE_S)


def lines(asked: Overflow, now_s: float = LATE_S, snapshot: Snapshot = FLEET) -> str:
    return " ".join(widening(asked, now_s, snapshot, is_held=False).models)


# when


def test_unless_its_alias_says_so_a_call_stays_in_its_line() -> None:
    asked = overflow("big", "small", after_s=None)
    assert asked.due_s == math.inf
    assert lines(asked) == ""


def test_each_line_has_its_time_before_the_next_is_joined() -> None:
    asked = overflow("big", "mid", "small")
    assert asked.due_s == SINCE_S + AFTER_S
    assert [lines(asked, SINCE_S + waited_s) for waited_s in (19.9, 20, 39.9, 40)] == ["", "mid", "mid", "mid small"]


def test_what_cannot_serve_costs_no_time() -> None:
    assert lines(overflow("big", "absent", "small"), SINCE_S + AFTER_S) == "small"


def test_the_last_target_with_nothing_said_of_it_is_the_end() -> None:
    asked = overflow("big", "mid", "small")
    first, mid, small = asked.plan.targets
    ends = replace(asked, plan=RoutePlan((first, replace(mid, overflow_after_s=None), small)))
    assert lines(ends) == "mid"


@pytest.mark.parametrize(
    ("now_s", "again_s"),
    [
        (SINCE_S + 20, SINCE_S + 20 + AGAIN_S),  # the next line is due later than that
        (SINCE_S + 38, SINCE_S + 40),
        (SINCE_S + 400, SINCE_S + 400 + AGAIN_S),  # a full line, or a node that was down
    ],
)
def test_it_looks_again_when_the_next_line_is_due_or_after_a_while(now_s: float, again_s: float) -> None:
    assert widening(overflow("big", "mid", "small"), now_s, FLEET, is_held=False).again_s == again_s


@given(st.floats(0, 1000), st.sampled_from([0.0, 0.5, 20.0]))
def test_no_look_is_followed_by_one_at_the_same_time(waited_s: float, after_s: float) -> None:
    asked = overflow("big", "mid", "small", after_s=after_s)
    assert widening(asked, SINCE_S + waited_s, FLEET, is_held=False).again_s > SINCE_S + waited_s


def test_a_call_that_its_own_team_holds_back_goes_nowhere_and_looks_again() -> None:
    assert widening(overflow("big", "small"), LATE_S, FLEET, is_held=True) == Widening((), LATE_S + AGAIN_S)


# where


@pytest.mark.parametrize(
    ("snapshot", "reach", "excluded"),
    [
        (fleet(node("a", ready="big"), node("b", disk="small", ready="small", health=Health.DOWN)), Reach(), ""),
        (fleet(node("a", ready="big"), node("b", disk="small", ready="small", health=Health.DRAINING)), Reach(), ""),
        (fleet(node("a", ready="big"), node("b", disk="small", ready="small")), Reach(), "b"),
        (fleet(node("a", ready="big"), node("b", disk="small")), Reach(), "b"),
        (fleet(node("a", ready="big"), node("b", disk="small")), Reach(never_loads=True), ""),
        (fleet(node("a", ready="big"), node("b", cloud="small")), Reach(), ""),
        (fleet(node("a", ready="big")), Reach(), ""),
    ],
)
def test_it_does_not_go_where_nobody_can_serve_it(snapshot: Snapshot, reach: Reach, excluded: str) -> None:
    asked = overflow("big", "small", reach=reach, excluded=excluded, snapshot=snapshot)
    assert lines(asked, snapshot=snapshot) == ""


def test_who_waits_for_a_slot_may_go_to_a_model_on_disk() -> None:
    assert lines(overflow("big", "cold")) == "cold"


def test_who_waits_for_a_load_goes_only_to_what_is_in_memory() -> None:
    """Two loads for one call would be one too many."""
    snapshot = fleet(node("a", disk="big", loading="big"), node("b", disk="cold small", spilled="small"))
    asked = overflow("big", "cold", "small", snapshot=snapshot)
    assert lines(asked, snapshot=snapshot) == "small"


# contexts


CTX = {"num_ctx": 4096}


@pytest.mark.parametrize(
    ("loaded", "guards", "goes"),
    [
        (4096, Guards(), True),
        (8192, Guards(), True),
        (2048, Guards(), False),  # it would be refused there, or reload the copy of others
        (8192, Guards(num_ctx=NumCtxGuard.REJECT), False),
        (4096, Guards(num_ctx=NumCtxGuard.REJECT), True),
        (2048, Guards(num_ctx=NumCtxGuard.PASS), True),
    ],
)
def test_a_clients_context_must_be_had_there_as_the_guard_has_it(loaded: int, guards: Guards, goes: bool) -> None:
    snapshot = fleet(node("a", ready="big"), node("b", disk="small", ready="small", num_ctx=loaded))
    asked = overflow("big", "small", options=CTX, guards=guards, snapshot=snapshot)
    assert bool(lines(asked, snapshot=snapshot)) == goes


def test_a_target_that_is_to_have_another_context_than_the_first_is_passed_over() -> None:
    """In all its lines a ticket asks for the same."""
    other = Target("small", overrides=Overrides(num_ctx=2048))
    assert lines(overflow("big", other, "mid")) == "mid"
    same = (Target("big", overrides=Overrides(num_ctx=2048)), other)
    assert lines(overflow(*same)) == "small"
    assert lines(overflow("big", other, path="/v1/chat/completions")) == "small", "which names no context"


def test_a_route_that_names_no_context_does_not_go_to_a_copy_that_has_a_named_one() -> None:
    snapshot = fleet(node("a", ready="big"), node("b", disk="small", ready="small", is_named=True))
    assert lines(overflow("big", "small", path="/v1/chat/completions"), snapshot=snapshot) == ""
    assert lines(overflow("big", "small"), snapshot=snapshot) == "small"
