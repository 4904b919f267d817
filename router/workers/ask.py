"""What the parent asks its workers, each on a Unix socket in the parent's private folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from yarl import URL


@dataclass(frozen=True, slots=True)
class Question:
    """`target` is a path and a query as they came: a node's name may hold an escaped slash."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(socket: str, question: Question, within_s: float) -> Said | None:
    """None when nobody answers there, or not in time."""
    try:
        async with (
            ClientSession(connector=UnixConnector(path=socket), timeout=ClientTimeout(total=within_s)) as session,
            session.request(
                question.method,
                URL(f"http://127.0.0.1{question.target}", encoded=True),
                headers=question.headers,
                allow_redirects=False,
            ) as answer,
        ):
            return Said(answer.status, answer.headers, await answer.read())
    except (ClientError, OSError, TimeoutError):
        return None
