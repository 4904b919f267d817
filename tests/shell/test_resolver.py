"""Names of nodes: all their addresses are kept, and an outage of the resolver takes none away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from router.fleet.node import NodeSpec
from router.upstream import resolver as resolvers
from router.upstream.resolver import ADDRESSES_MAX, Resolver
from tests.shell.clients import generate
from tests.shell.house import router_before
from tests.shell.scenes import QUICK, pool_of

NODE = NodeSpec("a", "a.example", 11434)


def names_lead_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> Sequence[Any]:
        if not addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "no resolver")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_all_addresses_are_kept_once_each_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names_lead_to(monkeypatch, "::1", "127.0.0.1", "::1")
    resolver = Resolver()
    assert resolver.addresses(NODE) == ("a.example",), "not looked up yet"
    await resolver.refresh(NODE, 1.0)
    assert resolver.addresses(NODE) == ("::1", "127.0.0.1")


async def test_a_dead_resolver_takes_no_address_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "REFRESH_S", 0.0)
    resolver = Resolver()
    names_lead_to(monkeypatch, "10.0.0.1", "10.0.0.2")
    await resolver.refresh(NODE, 1.0)
    names_lead_to(monkeypatch)
    await resolver.refresh(NODE, 1.0)
    assert resolver.addresses(NODE) == ("10.0.0.1", "10.0.0.2")
    names_lead_to(monkeypatch, "10.0.0.3")
    await resolver.refresh(NODE, 1.0)
    assert resolver.addresses(NODE) == ("10.0.0.3",)


async def test_a_name_for_a_whole_fleet_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    names_lead_to(monkeypatch, *(f"10.0.0.{number}" for number in range(100)))
    resolver = Resolver()
    await resolver.refresh(NODE, 1.0)
    assert len(resolver.addresses(NODE)) == ADDRESSES_MAX


async def test_calls_reach_a_node_that_does_not_listen_on_the_first_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `localhost` that leads to ::1 first, with an Ollama that listens on 127.0.0.1."""
    async with pool_of(1) as pool:
        monkeypatch.setattr(Resolver, "addresses", lambda self, node: ("127.0.0.2", "127.0.0.1"))
        async with router_before(pool.nodes) as router:
            for _ in range(3):
                assert (await generate(router, QUICK)).status == 200
