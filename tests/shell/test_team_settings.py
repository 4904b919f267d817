"""What is said of teams and keys, and what is refused: never with the words that were given, which may be a key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.meaning import call_rules
from router.policy.access import Team
from router.policy.globs import globs_of
from router.settings import ConfigError, Settings, load_settings, redacted
from router.settings.keys_file import KEYS_BYTES_MAX, KeysError, parse_keys

KEY = "sk-0f1e2d3c4b5a69788796a5b4c3d2e1f0"
DIGEST = sha256(KEY.encode()).hexdigest()


def problems_of(settings: Mapping[str, Any], folder: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    path = folder / "router.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError) as caught:
        load_settings(str(path), environ=environ or {})
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"teams": {"a": {"keys_sha256": [KEY]}}}, "teams.a.keys_sha256: each should be the SHA-256 of a key"),
        ({"teams": {"a": {"keys_sha256": KEY}}}, "teams.a.keys_sha256: each should be the SHA-256 of a key"),
        ({"teams": {"a": {"keys_sha256": DIGEST}}}, "teams.a.keys_sha256: each should be the SHA-256 of a key"),
        ({"teams": {"a": {"keys_sha256": [[KEY]]}}}, "teams.a.keys_sha256: each should be the SHA-256 of a key"),
        ({"teams": {"a": {"keys_sha256": {"x": KEY}}}}, "teams.a.keys_sha256: each should be the SHA-256 of a key"),
        ({"teams": {"a": KEY}}, "teams.a: should be an object with keys_sha256, models or more"),
        ({"teams": {"a": {"keys": [KEY]}}}, "teams.a.keys: unknown setting"),
        (
            {"teams": {"a": {"keys_sha256": [DIGEST]}, "b": {"keys_sha256": [DIGEST.upper()]}}},
            "teams: teams a and b have a key in common: each key belongs to one team",
        ),
        ({"teams": {"a b": {}}}, "teams: a team's name should be 1 to 63 letters"),
        ({"teams": {"a": {"models": ["x", "lla ma*"]}}}, "teams.a.models: 'lla ma*': only * stands for other text"),
        ({"auth": {"required": True}}, "auth.required is true and no team has a key, so nobody could call"),
        ({"auth": {"required": True}, "teams": {"a": {}}}, "auth.required is true and no team has a key"),
    ],
)
def test_a_mistake_is_told_without_what_was_given(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    (problem,) = problems_of(settings, tmp_path)
    assert told in problem
    assert KEY not in problem
    assert DIGEST not in problem


@pytest.mark.parametrize("value", [KEY, f'{{"a": {KEY}', f'["{KEY}"]', f'"{KEY}"', f'{{"a": "{KEY}"}}'])
def test_a_mistake_in_the_environment_is_told_without_it_too(value: str, tmp_path: Path) -> None:
    told = problems_of({}, tmp_path, {"OLLAMA_ROUTER_TEAMS": value})
    assert told
    assert not [problem for problem in told if KEY in problem]


def test_keys_of_settings_and_file_are_those_of_one_team() -> None:
    settings = Settings(teams={"a": {"keys_sha256": [DIGEST], "models": ["x*"], "may_unload": True}})  # type: ignore[dict-item]
    access = call_rules(settings, {"a": (DIGEST,), "b": ("0" * 64,)}).access
    assert access.identify([(b"x-api-key", KEY.encode())]) == Team("a", globs_of(["x*"]), may_unload=True)
    assert access.names == {"default", "a", "b"}


def test_digests_are_not_shown_with_the_settings() -> None:
    shown = json.dumps(redacted(Settings(teams={"a": {"keys_sha256": [DIGEST]}})))  # type: ignore[dict-item]
    assert DIGEST not in shown
    assert '"a"' in shown


# The file.


def test_a_keys_file_holds_lists_of_digests_by_team() -> None:
    digits = "1" * 64  # YAML would make it a number
    raw = f"# of ours\nresearch:\n  - {DIGEST.upper()}  # until May\n  - {digits}\nproduct: []\n".encode()
    assert parse_keys(raw) == {"research": (DIGEST, digits), "product": ()}
    assert parse_keys(b"") == parse_keys(b"# nobody yet\n") == {}


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (f"a: [{KEY}]", 1),
        (f"a: {DIGEST}", 1),
        (f"a:\n- {DIGEST}\n- [{DIGEST}]", 3),
        (f"a: []\na: [{DIGEST}]", 2),
        (f"a b: [{DIGEST}]", 1),
        (f"? [{KEY}]\n: []", 1),
        (f"- {DIGEST}", 1),
        (KEY, 1),
        (f"a: [*{KEY}]", 1),
        (f"a: [\n\n{KEY}", 3),
        (f"a: \x00{KEY}", 0),
        ("a" * (KEYS_BYTES_MAX + 1), 0),
    ],
)
def test_a_bad_keys_file_is_told_by_its_line_alone(raw: str, line: int) -> None:
    with pytest.raises(KeysError) as caught:
        parse_keys(raw.encode())
    assert caught.value.line == line
    assert KEY not in str(caught.value)
    assert DIGEST not in str(caught.value)


@given(st.one_of(st.binary(max_size=80), st.text("a:[]{}-*&!\n #0", max_size=60).map(str.encode)))
def test_no_keys_file_raises_anything_else(raw: bytes) -> None:
    try:
        keys = parse_keys(raw)
    except KeysError:
        return
    assert all(len(digest) == 64 for digests in keys.values() for digest in digests)
