"""Names whose every address is a node, looked up again and again."""

from __future__ import annotations

import socket
from random import Random

import pytest

from router.discovery.dns import ADDRESSES_MAX, GONE_LOOKS, DnsDiscovery, resolved
from tests.discovery.watching import Pauses, watched

HOST = ("ollama-headless", 11434)


class Zone:
    """Names and their addresses; an error instead is raised."""

    def __init__(self, **names: tuple[str, ...] | Exception) -> None:
        self.names = dict(names)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        self.asked += 1
        answer = self.names[host.replace("-", "_")]
        if isinstance(answer, Exception):
            raise answer
        return answer


def discovery_of(zone: Zone, pauses: Pauses, errors: list[str], *hosts: tuple[str, int]) -> DnsDiscovery:
    return DnsDiscovery(hosts or (HOST,), on_error=errors.append, rng=Random(0), look_up=zone, pause=pauses)


async def test_every_address_is_a_node_and_changes_are_followed() -> None:
    zone = Zone(ollama_headless=("10.0.0.1", "10.0.0.2"), other=("2001:db8::1",))
    async with watched(discovery_of(zone, Pauses(), [], HOST, ("other", 8080))) as seen:
        await seen.until(lambda: seen.names == ["10.0.0.1:11434", "10.0.0.2:11434", "[2001:db8::1]:8080"])
        zone.names["ollama_headless"] = ("10.0.0.2", "10.0.0.3")
        await seen.until(lambda: seen.names == ["10.0.0.2:11434", "10.0.0.3:11434", "[2001:db8::1]:8080"])
        assert len(seen.said) == 2


async def test_a_name_that_cannot_be_looked_up_keeps_its_addresses_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    zone, errors = Zone(ollama_headless=("10.0.0.1",)), list[str]()
    discovery = discovery_of(zone, Pauses(), errors)
    async with watched(discovery) as seen:
        await seen.until(lambda: bool(seen.names))
        zone.names["ollama_headless"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        await seen.until(lambda: len(errors) >= 1)
        synced_at_s = discovery.synced_at_s
        assert synced_at_s is not None
        await seen.until(lambda: len(errors) >= 5)
        assert discovery.synced_at_s == synced_at_s, "nothing was heard since"
        assert seen.names == ["10.0.0.1:11434"]
        assert "ollama-headless cannot be looked up" in discovery.trouble
        zone.names["ollama_headless"] = ("10.0.0.4",)
        await seen.until(lambda: seen.names == ["10.0.0.4:11434"])
        assert discovery.trouble == ""
        assert discovery.synced_at_s > synced_at_s
    assert set(errors) == {"dns"}
    assert len([text for text in caplog.messages if "cannot be looked up" in text]) == 1


async def test_a_name_without_addresses_names_nobody_from_the_start() -> None:
    async with watched(discovery_of(Zone(ollama_headless=()), Pauses(), [])) as seen:
        await seen.until(lambda: seen.said == [()])


async def test_a_name_that_loses_all_its_addresses_keeps_them_for_some_looks() -> None:
    zone = Zone(ollama_headless=("10.0.0.1",))
    pauses = Pauses()
    pauses.is_open = False
    async with watched(discovery_of(zone, pauses, [])) as seen:
        await seen.until(lambda: pauses.waiting == 1)
        zone.names["ollama_headless"] = ()
        for look in range(GONE_LOOKS):
            assert seen.names == ["10.0.0.1:11434"], look
            pauses.pass_all()
            await seen.until(lambda: pauses.waiting == 1)
        assert seen.said[-1] == ()


async def test_before_every_name_was_looked_up_nothing_is_said() -> None:
    zone = Zone(ollama_headless=("10.0.0.1",), other=TimeoutError())
    async with watched(discovery_of(zone, Pauses(), [], HOST, ("other", 1))) as seen:
        await seen.until(lambda: zone.asked > 6)
        assert seen.said == []
        zone.names["other"] = ()
        await seen.until(lambda: seen.names == ["10.0.0.1:11434"])


async def test_one_name_brings_no_more_than_an_answer_holds() -> None:
    many = tuple(f"10.{n // 250}.{n % 250}.1" for n in range(ADDRESSES_MAX + 5))
    async with watched(discovery_of(Zone(ollama_headless=many), Pauses(), [])) as seen:
        await seen.until(lambda: len(seen.names) == ADDRESSES_MAX)


async def test_the_system_s_resolver_is_asked() -> None:
    assert await resolved("127.0.0.1", 11434) == ("127.0.0.1",)
    assert await resolved("no-such-name.invalid", 11434) == ()
