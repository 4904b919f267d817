"""Which of an alias's targets can be had now, why the others cannot, and what is said when none can."""

from __future__ import annotations

import pytest

from router.errors import CloudRefused, LoadFailed, NoNode, NotLoaded, Refusal, UnknownModel
from router.fleet.node import Health
from router.policy.alias import RoutePlan, Target
from router.policy.route import UNSERVABLE, Ahead, Passed, Reach, ahead, nowhere, passed_for
from router.wire.endpoints import BY_PATH
from tests.fleet.builders import fleet, node

FLEET = fleet(
    node("a", disk="cold:1 warm:1", ready="warm:1", cloud="stub:1 stub:cloud"),
    node("b", disk="lost:1", health=Health.DOWN),
)
CHAT = BY_PATH["/api/chat"]


def plan(*models: str) -> RoutePlan:
    return RoutePlan(tuple(Target(model) for model in models), "gpt:latest")


@pytest.mark.parametrize(
    ("models", "reach", "left", "passed"),
    [
        ("warm:1 cold:1", Reach(), "warm:1 cold:1", ""),
        ("none:1 lost:1 cold:1 warm:1", Reach(), "cold:1 warm:1", "unknown no_node"),
        ("stub:1 stub:cloud cold:1", Reach(), "cold:1", "cloud cloud"),
        ("stub:1 cold:1", Reach(has_cloud=True), "stub:1 cold:1", ""),
        ("cold:1 warm:1", Reach(never_loads=True), "warm:1", "not_loaded"),
        ("none:1 cold:1 lost:1", Reach(never_loads=True), "cold:1 lost:1", "unknown"),
    ],
)
def test_the_first_target_that_can_be_had_is_in_front(models: str, reach: Reach, left: str, passed: str) -> None:
    found = ahead(plan(*models.split()), FLEET, reach)
    assert found == Ahead(plan(*left.split()), tuple(Passed(word) for word in passed.split()))


@pytest.mark.parametrize(
    ("models", "all_read", "refusal", "words"),
    [
        ("none:1 other:1", True, UnknownModel, "model 'GPT' not found"),
        ("none:1 other:1", False, NoNode, "not every node has been read yet"),
        ("none:1 lost:1", True, NoNode, "every node that has 'GPT' is down or draining"),
        ("none:1 stub:1 lost:1", True, CloudRefused, "switched off"),
    ],
)
def test_when_none_can_be_had_the_refusal_speaks_of_the_first_that_is_known(
    models: str, all_read: bool, refusal: type[Refusal], words: str
) -> None:
    hindrances = ahead(plan(*models.split()), FLEET, Reach())
    assert isinstance(hindrances, tuple)
    said = nowhere(CHAT, "GPT", hindrances, all_read=all_read)
    assert type(said) is refusal
    assert words in said.text


def test_each_refusal_of_a_line_has_its_reason() -> None:
    assert [passed_for(kind("x")) for kind in UNSERVABLE] == [Passed.NO_NODE, Passed.NOT_LOADED, Passed.LOAD_FAILED]
    assert (NoNode, NotLoaded, LoadFailed) == UNSERVABLE
