"""Who calls: only the very key is one, wherever it is sent, and nothing that is sent raises anything but a refusal."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Unauthorized
from router.policy.access import KEY_BYTES_MAX, KEYS_MAX, Access, Team, TwoTeams, access_of
from router.policy.globs import globs_of

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
OTHER = "ffffffffffffffffffffffffffffffff"


def digest(key: str | bytes) -> str:
    return sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


KEYS = [("research", [digest(KEY)]), ("product", [digest(OTHER)])]
CLOSED = access_of(KEYS, {}, is_required=True)
OPEN_WITH_KEYS = access_of(KEYS, {})


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Authorization", b"Bearer " + KEY.encode())],
        [(b"authorization", b"bearer  " + KEY.encode() + b" ")],
        [(b"Authorization", basic("", KEY))],
        [(b"Authorization", basic("anybody", KEY))],
        [(b"Authorization", basic(KEY, ""))],
        [(b"Authorization", b"Basic " + base64.b64encode(KEY.encode()))],
        [(b"X-Api-Key", KEY.encode())],
        [(b"api-key", KEY.encode())],
    ],
)
def test_a_key_is_found_wherever_clients_send_it(headers: list[tuple[bytes, bytes]]) -> None:
    assert CLOSED.identify(headers).name == "research"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", KEY.encode())],
        [(b"Authorization", b"Digest " + KEY.encode())],
        [(b"Authorization", b"Basic !!!")],
        [(b"Authorization", b"Basic " + base64.b64encode(b":"))],
        [(b"Authorization", basic(KEY, "a password"))],
        [(b"x-key", KEY.encode())],
        [(b"Cookie", KEY.encode())],
        [(b"Authorization", b"Bearer " + digest(KEY).encode())],
        [(b"x-api-key", b"a" * (KEY_BYTES_MAX + 1))],
    ],
)
def test_what_is_not_the_key_is_refused_where_one_is_required(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Unauthorized):
        CLOSED.identify(headers)
    assert OPEN_WITH_KEYS.identify(headers).name == "default"


def test_a_missing_key_and_an_unknown_one_are_told_apart() -> None:
    with pytest.raises(Unauthorized, match="wants a key"):
        CLOSED.identify([])
    with pytest.raises(Unauthorized, match="does not know this key"):
        CLOSED.identify([(b"x-api-key", b"sk-secret")])


def test_a_known_key_beside_unknown_ones_counts() -> None:
    headers = [(b"Authorization", basic("proxy", "of somebody else")), (b"x-api-key", KEY.encode())]
    assert CLOSED.identify(headers).name == "research"
    assert CLOSED.identify([*headers, (b"api-key", KEY.encode())]).name == "research"


@pytest.mark.parametrize("access", [CLOSED, OPEN_WITH_KEYS])
def test_keys_of_two_teams_in_one_request_are_refused(access: Access) -> None:
    with pytest.raises(Unauthorized, match="two teams"):
        access.identify([(b"x-api-key", KEY.encode()), (b"api-key", OTHER.encode())])


def test_of_many_keys_only_the_first_few_are_looked_at() -> None:
    headers = [(b"x-api-key", b"wrong")] * KEYS_MAX
    with pytest.raises(Unauthorized):
        CLOSED.identify([*headers, (b"x-api-key", KEY.encode())])
    assert CLOSED.identify([*headers[1:], (b"x-api-key", KEY.encode())]).name == "research"


def test_a_key_of_two_teams_is_refused_when_it_is_read_and_told_by_the_names() -> None:
    with pytest.raises(TwoTeams) as caught:
        access_of([("a", [digest(KEY)]), ("b", [digest(KEY).upper()])], {})
    assert (caught.value.first, caught.value.second) == ("a", "b")
    assert digest(KEY) not in str(caught.value)


def test_one_team_may_have_a_key_twice() -> None:
    assert access_of([("a", [digest(KEY)]), ("a", [digest(KEY)])], {}).names == {"a", "default"}


def test_a_team_is_what_was_said_of_it_or_may_what_everybody_may() -> None:
    mine = Team("research", globs_of(["llama3*"]), may_unload=True)
    access = access_of(KEYS, {"research": mine}, is_required=True)
    assert access.identify([(b"x-api-key", KEY.encode())]) is mine
    assert access.identify([(b"x-api-key", OTHER.encode())]) == Team("product")


def test_neither_keys_nor_their_digests_are_shown_with_the_value() -> None:
    shown = repr(CLOSED)
    assert digest(KEY) not in shown
    assert repr(bytes.fromhex(digest(KEY)))[2:-1] not in shown


names = st.sampled_from([b"Authorization", b"x-api-key", b"API-KEY", b"other"])
schemes = st.sampled_from([b"", b"Bearer ", b"Basic ", b"bearer\t", b"Digest "])
values = st.builds(lambda scheme, rest: scheme + rest, schemes, st.binary(max_size=60))


@given(st.lists(st.tuples(names, values), max_size=12))
def test_whatever_is_sent_raises_nothing_but_a_refusal_and_is_nobody(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Unauthorized):
        CLOSED.identify(headers)
    assert OPEN_WITH_KEYS.identify(headers).name == "default"


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_only_the_very_key_is_the_key(key: bytes, sent: bytes) -> None:
    access = access_of([("mine", [digest(key)])], {})
    expected = "mine" if sent.strip(b" \t") == key else "default"
    assert access.identify([(b"x-api-key", sent)]).name == expected
    as_password = b"Basic " + base64.b64encode(b"user:" + sent)
    assert access.identify([(b"Authorization", as_password)]).name == ("mine" if sent == key else "default")
