"""Names that stand for other names: draws, what comes instead, chains, teams; mistakes are told with their path."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.policy.alias import DEFAULT_TEAM, Aliases, Overrides, RoutePlan, Target
from router.policy.alias_config import CHAIN_MAX, WEIGHT_MAX, WEIGHT_MIN, AliasError, Said, aliases_of

RNG = Random(7)
DRAWS = 4000


def said(*names: str | tuple[str, float], fallbacks: str = "", **more: object) -> Said:
    """Targets, each a name or a name with its weight; fallbacks in one text."""
    targets = [(name, 1.0) if isinstance(name, str) else name for name in names]
    return Said(targets, fallbacks.split(), **more)  # type: ignore[arg-type]


def plan(aliases: Aliases, key: str, team: str = DEFAULT_TEAM) -> RoutePlan:
    return aliases.plan(key, team, RNG)


def models(aliases: Aliases, key: str, team: str = DEFAULT_TEAM) -> tuple[str, ...]:
    """In the order in which a call would try them."""
    return tuple(target.model for target in plan(aliases, key, team).targets)


def shares(aliases: Aliases, alias: str) -> dict[str, float]:
    found = Counter[str]()
    for target in aliases.targets(alias):
        found[target.model] += target.share
    return {model: pytest.approx(share) for model, share in found.items()}


# where a name leads


def test_an_alias_leads_to_its_model_whatever_its_spelling() -> None:
    aliases = aliases_of({"GPT-4": said("Qwen3:8b"), "small": said("llama3.2")})
    assert plan(aliases, "gpt-4:latest") == RoutePlan((Target("qwen3:8b"),), alias="gpt-4:latest")
    assert models(aliases, "small:latest") == ("llama3.2:latest",)


def test_another_name_leads_to_itself() -> None:
    assert plan(Aliases(), "qwen3:8b") == RoutePlan((Target("qwen3:8b"),))


def test_after_the_drawn_target_come_the_fallbacks_and_then_the_other_targets() -> None:
    aliases = aliases_of({"a": said(("m:1", 1), ("m:2", 3), ("m:3", 6), fallbacks="f:1 m:3 f:2")})
    tries = {models(aliases, "a:latest") for _ in range(200)}
    assert tries == {
        ("m:1", "f:1", "m:3", "f:2", "m:2"),
        ("m:2", "f:1", "m:3", "f:2", "m:1"),
        ("m:3", "f:1", "f:2", "m:2", "m:1"),
    }


def test_an_alias_is_listed_as_its_heaviest_target_or_what_comes_after_it() -> None:
    aliases = aliases_of({"a": said(("m:1", 1), ("m:2", 3), fallbacks="f:1 m:1")})
    assert aliases.candidates("a:latest") == ("m:2", "m:1", "f:1")
    assert set(aliases.names) == {"a:latest"}


def test_draws_follow_the_weights() -> None:
    aliases = aliases_of({"a": said(("m:1", 9), ("m:2", 1))})
    rng = Random(4)
    drawn = Counter(aliases.plan("a:latest", DEFAULT_TEAM, rng).first.model for _ in range(DRAWS))
    assert drawn["m:2"] == pytest.approx(DRAWS / 10, abs=4 * (DRAWS * 0.09) ** 0.5)


# chains


def test_chains_are_followed_to_their_end() -> None:
    aliases = aliases_of({"a": said("b"), "b": said("c"), "c": said("m:1")})
    assert [models(aliases, f"{name}:latest") for name in "abc"] == [("m:1",)] * 3


def test_along_a_chain_weights_are_multiplied_and_what_meets_again_is_added_up() -> None:
    aliases = aliases_of({"a": said(("b", 3), ("m:1", 1)), "b": said(("m:1", 1), ("m:2", 1))})
    assert shares(aliases, "a:latest") == {"m:1": 0.625, "m:2": 0.375}


def test_what_comes_instead_further_down_a_chain_comes_later() -> None:
    aliases = aliases_of({"a": said("b", fallbacks="f:1 c"), "b": said("m:1", fallbacks="f:2"), "c": said("m:2")})
    assert models(aliases, "a:latest") == ("m:1", "f:1", "m:2", "f:2")


def test_the_outer_override_wins_and_what_it_leaves_open_comes_from_below() -> None:
    inner = said("m:1", overrides=Overrides(0.5, 4096))
    aliases = aliases_of({"a": said("b", "m:1", fallbacks="m:2", overrides=Overrides(0.1)), "b": inner})
    assert {(each.model, each.overrides, each.share) for each in aliases.targets("a:latest")} == {
        ("m:1", Overrides(0.1, 4096), 0.5),
        ("m:1", Overrides(0.1), 0.5),
        ("m:2", Overrides(0.1), 0.0),
    }


# overflow


def waits(aliases: Aliases, key: str, team: str = DEFAULT_TEAM) -> dict[str, float | None]:
    return {target.model: target.overflow_after_s for target in plan(aliases, key, team).targets}


def test_how_long_a_call_stays_in_one_line_is_said_by_its_alias_or_by_those_it_leads_through() -> None:
    inner = said("m:1", fallbacks="m:2", overflow_after_s=5.0)
    outer = {"b": inner, "a": said("b", fallbacks="m:3"), "c": said("b", fallbacks="m:3", overflow_after_s=0.0)}
    aliases = aliases_of(outer)
    assert waits(aliases, "b:latest") == {"m:1": 5.0, "m:2": 5.0}
    assert waits(aliases, "a:latest") == {"m:1": 5.0, "m:3": None, "m:2": 5.0}
    assert waits(aliases, "c:latest") == {"m:1": 0.0, "m:3": 0.0, "m:2": 0.0}


def test_a_team_may_have_another_patience_and_no_other_model() -> None:
    teams = {"product": Said(overflow_after_s=1.0), "research": Said(fallbacks=[])}
    aliases = aliases_of({"a": said("m:1", fallbacks="m:2", overflow_after_s=5.0, teams=teams)})
    assert waits(aliases, "a:latest", "product") == {"m:1": 1.0, "m:2": 1.0}
    assert waits(aliases, "a:latest", "research") == {"m:1": 5.0}


@pytest.mark.parametrize(
    "alias", [said("m:1", overflow_after_s=1.0), said("m:1", fallbacks="m:1", overflow_after_s=1.0)]
)
def test_an_overflow_that_leads_nowhere_is_a_mistake(alias: Said) -> None:
    with pytest.raises(AliasError, match=r"aliases\.a\.overflow_after_s: leads nowhere: name a fallback"):
        aliases_of({"a": alias})


def test_what_is_told_of_an_overflow_is_that_of_calls_for_the_heaviest_target() -> None:
    targets = said(("m:1", 1), ("m:2", 3), fallbacks="m:3", overflow_after_s=5.0)
    aliases = aliases_of({"a": targets, "b": said("m:1", fallbacks="m:2")})
    assert aliases.overflows("a:latest") == (("m:3", 5.0), ("m:1", 10.0))
    assert aliases.overflows("b:latest") == ()


def test_a_plan_led_by_another_target_keeps_the_rest_in_order() -> None:
    whole = RoutePlan((Target("m:1"), Target("m:2", 0.0), Target("m:3", 0.0)), "a:latest")
    assert whole.led_by("m:1") is whole
    assert [target.model for target in whole.led_by("m:3").targets] == ["m:3", "m:1", "m:2"]


# teams


def test_a_team_has_the_meaning_that_is_said_for_it_and_the_common_one_for_the_rest() -> None:
    own = {"product": Said([("m:2", 1.0)]), "default": Said(fallbacks=["f:2"], overrides=Overrides(num_ctx=8192))}
    common = said("m:1", fallbacks="f:1", overrides=Overrides(0.2), teams=own)
    aliases = aliases_of({"a": common, "b": said("a")})
    assert models(aliases, "a:latest", "product") == ("m:2", "f:1")
    assert plan(aliases, "a:latest", "product").first.overrides == Overrides(0.2)
    assert models(aliases, "a:latest", "nobody-in-particular") == ("m:1", "f:1")
    assert models(aliases, "a:latest") == ("m:1", "f:2")
    assert plan(aliases, "a:latest").first.overrides == Overrides(num_ctx=8192)
    assert models(aliases, "b:latest", "product") == ("m:2", "f:1")
    assert aliases.models == {"m:1", "m:2", "f:1", "f:2"}


def test_what_no_node_has_is_named_with_its_alias() -> None:
    own = {"product": Said([("m:3", 1.0)])}
    aliases = aliases_of({"a": said("m:1", "m:2", fallbacks="f:1", teams=own), "b": said("m:1")})
    assert aliases.missing({"m:1", "f:1"}) == (("a:latest", "m:2"), ("a:latest", "m:3"))
    assert aliases.missing({"m:1", "m:2", "m:3", "f:1"}) == ()


# mistakes


@pytest.mark.parametrize(
    ("configured", "text"),
    [
        ({"a": said("a")}, "aliases.a.targets[0].model: leads back to itself: a:latest -> a:latest"),
        ({"a": said("m", "A:latest")}, "aliases.a.targets[1].model: leads back to itself: a:latest -> a:latest"),
        (
            {"a": said("b"), "b": said("c"), "c": said("m", fallbacks="n b")},
            "aliases.c.fallbacks[1]: leads back to itself: b:latest -> c:latest -> b:latest",
        ),
        (
            {"a": said("m", teams={"x": Said([("b", 1.0)])}), "b": said("a")},
            "aliases.b.targets[0].model: leads back to itself: a:latest -> b:latest -> a:latest",
        ),
        ({"a": said("m"), "A:latest": said("n")}, "aliases.A:latest: is the same name as a"),
        ({"a": said("m", "../m")}, "aliases.a.targets[1].model: '../m': invalid model name"),
        ({"a": said("m", fallbacks="n ../m")}, "aliases.a.fallbacks[1]: '../m': invalid model name"),
        ({"a": said(" ")}, "aliases.a.targets[0].model: has an empty name"),
        ({"": said("m")}, "aliases.: has an empty name"),
        ({"a": said()}, "aliases.a.targets: names no model"),
        ({"a": said(("m", 0))}, "aliases.a.targets[0].weight: should be from 0.000001 to 1000000, not 0"),
        ({"a": said("m", ("n", -1))}, "aliases.a.targets[1].weight: should be from 0.000001 to 1000000, not -1"),
        ({"a": said(("m", float("nan")))}, "aliases.a.targets[0].weight: should be from 0.000001 to 1000000, not nan"),
        ({"a": said("m", teams={"x": Said([])})}, "aliases.a.teams.x.targets: names no model"),
        (
            {"a": said("m", teams={"x": Said(fallbacks=["n", "../m"])})},
            "aliases.a.teams.x.fallbacks[1]: '../m': invalid model name",
        ),
    ],
)
def test_a_mistake_is_told_with_the_path_of_its_field(configured: dict[str, Said], text: str) -> None:
    with pytest.raises(AliasError) as refused:
        aliases_of(configured)
    assert str(refused.value) == text


def chain(length: int) -> dict[str, Said]:
    return {f"a{number}": said(f"a{number + 1}") for number in range(length - 1)} | {f"a{length - 1}": said("m")}


@pytest.mark.parametrize("turned", [False, True])
def test_a_chain_has_a_longest_length_in_whatever_order_it_is_written(turned: bool) -> None:
    for length, is_fine in ((CHAIN_MAX, True), (CHAIN_MAX + 1, False), (50 * CHAIN_MAX, False)):
        configured = chain(length)
        configured = dict(reversed(configured.items())) if turned else configured
        if is_fine:
            assert models(aliases_of(configured), "a0:latest") == ("m:latest",)
            continue
        with pytest.raises(AliasError, match=f"leads through more than {CHAIN_MAX} aliases"):
            aliases_of(configured)


# whatever is configured

weights = st.floats(WEIGHT_MIN, WEIGHT_MAX)
names = st.sampled_from("abcdefgh")  # of these a to d may be aliases
overrides = st.builds(Overrides, st.none() | st.just(0.5), st.none() | st.just(4096))
meanings = st.builds(
    Said, st.lists(st.tuples(names, weights), min_size=1, max_size=4), st.lists(names, max_size=3), overrides
)
configurations = st.dictionaries(st.sampled_from("abcd"), meanings)


@given(configurations)
def test_resolved_targets_are_models_and_their_shares_are_the_whole(configured: dict[str, Said]) -> None:
    try:
        aliases = aliases_of(configured)
    except AliasError:
        return
    for alias in aliases.names:
        targets = aliases.targets(alias)
        assert not {target.model for target in targets} & set(aliases.names)
        assert sum(target.share for target in targets) == pytest.approx(1.0)
        assert {target.model for target in plan(aliases, alias).targets} == set(aliases.candidates(alias))


def has_circle(configured: dict[str, Said]) -> bool:
    """By taking away whatever leads only to models, until nothing can be taken."""
    left = {
        alias: {name for name, _ in each.targets or ()} | set(each.fallbacks or ())
        for alias, each in configured.items()
    }
    while ends := [alias for alias, leads_to in left.items() if not leads_to & left.keys()]:
        for alias in ends:
            del left[alias]
    return bool(left)


@given(configurations)
def test_what_comes_back_to_itself_is_refused_and_nothing_else_is(configured: dict[str, Said]) -> None:
    if has_circle(configured):
        with pytest.raises(AliasError, match="leads back to itself"):
            aliases_of(configured)
    else:
        aliases_of(configured)


@given(st.lists(st.tuples(st.sampled_from("efgh"), st.integers(1, 9)), min_size=1, max_size=5), st.integers(0, 99))
@example([("e", 3), ("e", 5), ("e", 8), ("e", 7), ("e", 1)], 0)
def test_what_is_drawn_is_drawn_as_often_as_its_weight_says(targets: list[tuple[str, float]], seed: int) -> None:
    aliases = aliases_of({"a": Said(targets)})
    rng, draws = Random(seed), 1000
    drawn = Counter(aliases.plan("a:latest", DEFAULT_TEAM, rng).first.model for _ in range(draws))
    for target in aliases.targets("a:latest"):
        deviation = (draws * target.share * (1 - target.share)) ** 0.5
        assert abs(drawn[target.model] - draws * target.share) <= 5 * deviation + 1
