"""Who calls, told by a key, and what that team may see. Nobody here knows keys themselves, only their SHA-256."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType

from router.errors import Unauthorized
from router.policy.alias import DEFAULT_TEAM
from router.policy.globs import EVERYTHING, Globs
from router.wire.headers import Pair

KEYS_MAX = 8  # in one request: an Authorization and the two other headers, and as much again of whatever proxies add
KEY_BYTES_MAX = 8192  # the longest tokens of identity providers have 4 KB; what is longer is not hashed

_NAMED = (b"x-api-key", b"api-key")
_CARRIERS = frozenset((b"authorization", *_NAMED))
_CREDENTIALS = re.compile(rb"[ \t]*([A-Za-z]+)[ \t]+([^ \t]+)[ \t]*")  # RFC 9110 11.4: a scheme, then a token68

_MISSING = "this server wants a key: send it as 'Authorization: Bearer KEY', or in x-api-key"
_UNKNOWN = "this server does not know this key: it may have been replaced, ask whoever gave it to you"
_TWO_TEAMS = "the keys of this request belong to two teams: send one of them"


@dataclass(frozen=True, slots=True)
class Team:
    """`models` matches keys of models and of aliases: what it does not match does not exist for the team."""

    name: str
    models: Globs = EVERYTHING
    may_unload: bool = False


EVERYBODY = Team(DEFAULT_TEAM)
NO_TEAM = ""  # of a call that was refused before it was known whose it is


class TwoTeams(ValueError):
    """One key for two teams: `first` and `second` are their names."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"teams {first} and {second} have a key in common: each key belongs to one team")
        self.first, self.second = first, second


@dataclass(frozen=True, slots=True)
class Access:
    """`keys`: the SHA-256 of each key, as 32 bytes -> the team's name. A frozen value, swapped whole.

    Looking a digest up takes as long as it takes, and that tells nothing: where it stops depends on the SHA-256 of what
    was sent, and nobody can choose texts whose digests come nearer and nearer to one that he does not know.
    """

    keys: Mapping[bytes, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    teams: Mapping[str, Team] = field(default_factory=lambda: MappingProxyType({}))
    is_required: bool = False

    def identify(self, headers: Sequence[Pair]) -> Team:
        """Refuses with Unauthorized.

        Of several keys those count that are known: proxies and SDKs add credentials that are meant for somebody else.
        Where no key is required an unknown one is no offence: SDKs insist on sending some.
        """
        if not self.keys and not self.is_required:
            return self.team(DEFAULT_TEAM)
        sent = _sent_keys(headers)
        found = {self.keys[digest] for digest in map(digest_of, sent) if digest in self.keys}
        if len(found) > 1:
            raise Unauthorized(_TWO_TEAMS)
        if found:
            return self.team(found.pop())
        if self.is_required:
            raise Unauthorized(_UNKNOWN if sent else _MISSING)
        return self.team(DEFAULT_TEAM)

    def team(self, name: str) -> Team:
        """One of which nothing is said may do what everybody may."""
        return self.teams.get(name) or (EVERYBODY if name == DEFAULT_TEAM else Team(name))

    @property
    def names(self) -> Collection[str]:
        """Of all teams that a call may belong to."""
        return {DEFAULT_TEAM, *self.teams, *self.keys.values()}


OPEN = Access()


def digest_of(key: bytes) -> bytes:
    return sha256(key).digest()


def access_of(
    keys: Iterable[tuple[str, Iterable[str]]], teams: Mapping[str, Team], *, is_required: bool = False
) -> Access:
    """`keys`: teams and the digests of their keys, in hexadecimal digits. Refuses with TwoTeams."""
    by_digest: dict[bytes, str] = {}
    for team, digests in keys:
        for digest in digests:
            holder = by_digest.setdefault(bytes.fromhex(digest), team)
            if holder != team:
                raise TwoTeams(holder, team)
    return Access(MappingProxyType(by_digest), MappingProxyType(dict(teams)), is_required)


def _sent_keys(headers: Sequence[Pair]) -> list[bytes]:
    keys: list[bytes] = []
    for name, value in headers:
        low = name.lower()
        if low in _CARRIERS and len(value) <= KEY_BYTES_MAX:
            keys += [value.strip(b" \t")] if low in _NAMED else _credentials(value)
            if len(keys) >= KEYS_MAX:
                break
    return [key for key in keys if key]


def _credentials(value: bytes) -> Iterator[bytes]:
    """Of an Authorization header: a Bearer's token, or a Basic's password, or its user where that is empty."""
    found = _CREDENTIALS.fullmatch(value)
    if found is None:
        return
    scheme, told = found[1].lower(), found[2]
    if scheme == b"bearer":
        yield told
    elif scheme == b"basic":
        try:
            user, _, password = base64.b64decode(told, validate=True).partition(b":")
        except ValueError:
            return
        yield password or user
