"""At each node one replica probes, whoever comes and goes; and of what it sees little has to be told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import Copy, CopyState, Node, NodeSpec
from router.fleet.words import Claim
from router.policy.probing import (
    EXPIRY_EVERY_S,
    UNCLAIMED_S,
    is_prober,
    is_worth_telling,
    order_of,
    passed_on,
)

REPLICAS = st.sets(st.sampled_from("abcdefgh"), min_size=1)
CLAIMS = st.builds(
    Claim, st.sampled_from(["", *"abcdxyz"]), st.lists(st.sampled_from("abcdxyz"), max_size=4).map(tuple)
)


def probers(claim: Claim, replicas: set[str], unclaimed_s: float = 0.0) -> list[str]:
    order = order_of("n", replicas)
    return [me for me in order if is_prober(me, claim, order, unclaimed_s)]


@given(REPLICAS, CLAIMS)
def test_somebody_probes_at_once_and_at_most_one_beside_whoever_has_the_node(replicas: set[str], claim: Claim) -> None:
    found = probers(claim, replicas)
    assert 1 <= len(found) <= 2
    assert len(found) == 1 or claim.by in found


@given(REPLICAS, CLAIMS)
def test_once_it_has_claimed_the_node_whoever_comes_is_the_only_one(replicas: set[str], claim: Claim) -> None:
    for me in probers(claim, replicas):
        if me != claim.by:
            assert probers(replace(claim, by=me), replicas) == [me]


@given(REPLICAS)
def test_what_the_first_does_not_claim_the_next_one_does(replicas: set[str]) -> None:
    order = order_of("n", replicas)
    for place in range(len(order)):
        assert probers(Claim(), replicas, place * UNCLAIMED_S) == list(order[: place + 1])


@given(REPLICAS, st.sampled_from("abcdefgh"))
def test_a_replica_that_goes_moves_no_node_of_the_others(replicas: set[str], gone: str) -> None:
    for node in map(str, range(20)):
        first = order_of(node, replicas)[0]
        if first != gone and replicas - {gone}:
            assert order_of(node, replicas - {gone})[0] == first


def test_nodes_are_spread_over_replicas() -> None:
    first = Counter(order_of(f"node-{i}", {"a", "b", "c", "d"})[0] for i in range(1000))
    assert min(first.values()) > 190


@given(REPLICAS)
def test_a_node_that_is_down_goes_round_all_replicas_and_round_again(replicas: set[str]) -> None:
    claim, seen = Claim(), []
    for _ in range(3 * len(replicas)):
        (me,) = probers(claim, replicas)
        seen.append(me)
        claim = passed_on(replace(claim, by=me), me, replicas)
    assert set(seen[: len(replicas)]) == replicas
    assert all(seen.count(me) >= 2 for me in replicas)


def test_whoever_found_it_down_does_not_take_it_back_from_one_who_reaches_it() -> None:
    first, second, *_ = order_of("n", {"a", "b", "c"})
    assert probers(Claim(second, (first,)), {"a", "b", "c"}) == [second]


NODE = Node(NodeSpec("n", "n", 1), copies={"w": Copy("w", CopyState.READY, (), 1, expires_at_s=5.0)})


def test_only_the_end_of_copies_may_wait_until_it_is_told() -> None:
    later = replace(NODE, copies={"w": replace(NODE.copies["w"], expires_at_s=9.0, listing="{later}")})
    assert not is_worth_telling(NODE, later, EXPIRY_EVERY_S - 1)
    assert is_worth_telling(NODE, later, EXPIRY_EVERY_S)
    assert is_worth_telling(None, later, 0.0)
    assert is_worth_telling(NODE, replace(later, learnt={"w": 2}), 0.0)
    assert is_worth_telling(NODE, replace(NODE, copies={}), 0.0)
