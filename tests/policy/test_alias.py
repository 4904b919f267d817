"""Names that stand for other names: chains end, circles are refused with their path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.alias import AliasError, Aliases, RoutePlan, aliases_of


def test_an_alias_leads_to_its_model_whatever_its_spelling() -> None:
    aliases = aliases_of({"GPT-4": "Qwen3:8b", "small": "llama3.2"})
    assert aliases.plan("gpt-4:latest") == RoutePlan(("qwen3:8b",), is_alias=True)
    assert aliases.plan("small:latest").targets == ("llama3.2:latest",)


def test_another_name_leads_to_itself() -> None:
    assert Aliases().plan("qwen3:8b") == RoutePlan(("qwen3:8b",), is_alias=False)


def test_chains_are_followed_to_their_end() -> None:
    aliases = aliases_of({"a": "b", "b": "c", "c": "m:1"})
    assert [aliases.plan(f"{name}:latest").targets for name in "abc"] == [("m:1",)] * 3
    assert set(aliases.names) == {"a:latest", "b:latest", "c:latest"}


@pytest.mark.parametrize(
    ("configured", "text"),
    [
        ({"a": "a"}, "aliases.a: leads back to itself: a:latest -> a:latest"),
        ({"a": "A:latest"}, "aliases.a: leads back to itself: a:latest -> a:latest"),
        (
            {"a": "b", "b": "c", "c": "b"},
            "aliases.a: leads back to itself: a:latest -> b:latest -> c:latest -> b:latest",
        ),
        ({"a": "m", "A:latest": "n"}, "aliases.A:latest: is the same name as a"),
        ({"a": "../m"}, "aliases.a: '../m': invalid model name"),
        ({"a": " "}, "aliases.a: has an empty name"),
        ({"": "m"}, "aliases.: has an empty name"),
    ],
)
def test_a_wrong_alias_is_refused_by_its_name(configured: dict[str, str], text: str) -> None:
    with pytest.raises(AliasError) as refused:
        aliases_of(configured)
    assert str(refused.value) == text
    assert refused.value.alias in configured


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("abcdefgh")))
def test_any_set_of_aliases_ends_at_models_or_is_refused(configured: dict[str, str]) -> None:
    try:
        aliases = aliases_of(configured)
    except AliasError:
        return
    for alias in configured:
        (target,) = aliases.plan(f"{alias}:latest").targets
        assert not aliases.plan(target).is_alias
