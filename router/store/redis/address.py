"""Where the shared store is. Apart from the connection: whoever reads settings needs no client."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from router.wire.credentials import CREDENTIALS_BYTES_MAX

PORT, SENTINEL_PORT = 6379, 26379
_URL = re.compile(
    r"redis(?P<tls>s)?(\+(?P<kind>sentinel|cluster))?://((?P<user>[^@/]*)@)?(?P<hosts>[^@/]+)/?(?P<path>.*)"
)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(:(?P<port>[0-9]{1,5}))?")


class Kind(StrEnum):
    ONE = "one"  # a server, or a name that leads to the primary
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Server(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """`servers`: the one; all sentinels; or some of a cluster's."""

    text: str  # as configured; no password stands in it
    kind: Kind
    is_tls: bool
    user: str | None
    servers: tuple[Server, ...]
    service: str = ""  # what the sentinels call the primary
    db: int = 0


@dataclass(frozen=True, slots=True)
class Login:
    """Files are read at each connecting: what is renewed in them needs no restart. `user` is that of an ACL."""

    user: str | None = None
    password_file: str | None = None

    def password(self) -> str | None:
        """Refuses with OSError."""
        return None if self.password_file is None else read_password(self.password_file)


@dataclass(frozen=True, slots=True)
class Address:
    """The store, and how it lets this router in."""

    url: StoreUrl
    pool: str
    timeout_s: float = 0.25
    password_file: str | None = None
    sentinels: Login = Login()
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __repr__(self) -> str:
        return f"<Address {self.url.text}>"


def parse_url(url: str) -> StoreUrl:
    """Refuses with ValueError, and never repeats what was given: a password may stand in it."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(
            "should be memory://, or a URL such as redis://redis.internal:6379, "
            "redis+sentinel://sentinel-1:26379,sentinel-2:26379/SERVICE or redis+cluster://redis-1:6379,redis-2:6379"
        )
    if ":" in (found["user"] or ""):
        raise ValueError("holds a password, which logs and process lists would show: put it into store.password_file")
    kind = Kind(found["kind"] or "one")
    servers = tuple(
        _server(text, SENTINEL_PORT if kind is Kind.SENTINEL else PORT) for text in found["hosts"].split(",")
    )
    if kind is Kind.ONE and len(servers) > 1:
        raise ValueError("names several servers: say redis+sentinel:// or redis+cluster://")
    service, db = _path(kind, found["path"].strip("/"))
    user = unquote(found["user"]) if found["user"] else None
    return StoreUrl(url, kind, bool(found["tls"]), user, servers, service, db)


def _server(text: str, port: int) -> Server:
    found = _HOST.fullmatch(text)
    if found is None or not 0 < int(found["port"] or port) < 2**16:
        raise ValueError("each host should be HOST or HOST:PORT, the port a number, such as redis.internal:6379")
    return Server(found["host"].strip("[]"), int(found["port"] or port))


def _path(kind: Kind, path: str) -> tuple[str, int]:
    service = ""
    if kind is Kind.SENTINEL:
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("ends without the service, as the sentinels call the primary: .../mymaster")
    if kind is Kind.CLUSTER and path not in ("", "0"):
        raise ValueError("a cluster has no databases: the URL should end after the hosts")
    if path and not (path.isascii() and path.isdigit()):
        raise ValueError("the path should be the number of a database, such as redis://redis.internal:6379/0")
    return unquote(service), int(path or 0)


def read_password(name: str) -> str:
    """One trailing newline, which editors add, is not part of it. Refuses with OSError."""
    with Path(name).open("rb") as file:
        try:
            return file.read(CREDENTIALS_BYTES_MAX).decode().removesuffix("\n")
        except UnicodeDecodeError:
            raise OSError(errno.EILSEQ, "no UTF-8", name) from None
