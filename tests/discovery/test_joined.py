"""Several sources at once: who speaks first, who waits for whom, and what a reload changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from router.discovery.joined import JoinedDiscovery
from router.fleet.node import NodeSpec
from tests.discovery.watching import Watched, watched

LISTED = (NodeSpec("gpu-1", "10.0.0.1", 11434),)
FOUND = (NodeSpec("ollama-0", "10.0.1.1", 11434),)
NEVER_S = 3600.0


class Source:
    """Says what it is told to; dies when told an error."""

    trouble = ""
    synced_at_s: float | None = None

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_closed = False
        self._words: asyncio.Queue[tuple[NodeSpec, ...] | Exception] = asyncio.Queue()

    def say(self, word: tuple[NodeSpec, ...] | Exception) -> None:
        self._words.put_nowait(word)

    async def watch(self) -> AsyncGenerator[tuple[NodeSpec, ...], None]:
        try:
            while True:
                word = await self._words.get()
                if isinstance(word, Exception):
                    raise word
                yield word
        finally:
            self.is_closed = True


class Sources:
    def __init__(self) -> None:
        self.made: dict[tuple[str, object], Source] = {}

    def make(self, source: str, saying: object) -> Source:
        return self.made.setdefault((source, saying), Source(source))


async def settled(seen: Watched) -> None:
    """Whatever is under way has arrived: several turns of the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_without_other_sources_the_list_speaks_at_once() -> None:
    async with watched(JoinedDiscovery(LISTED, {}, Sources().make, first_word_s=NEVER_S)) as seen:
        await seen.until(lambda: seen.names == ["gpu-1"])


async def test_the_first_word_waits_for_every_source() -> None:
    sources = Sources()
    joined = JoinedDiscovery(LISTED, {"dns": 1, "kubernetes": 2}, sources.make, first_word_s=NEVER_S)
    async with watched(joined) as seen:
        await seen.until(lambda: len(sources.made) == 2)
        sources.made["kubernetes", 2].say(FOUND)
        await settled(seen)
        assert seen.said == []
        sources.made["dns", 1].say(())
        await seen.until(lambda: seen.names == ["gpu-1", "ollama-0"])
        assert joined.counts == {"static": 1, "dns": 0, "kubernetes": 1}


async def test_who_has_said_nothing_yet_has_no_age() -> None:
    sources = Sources()
    joined = JoinedDiscovery(LISTED, {"dns": 1, "kubernetes": 2}, sources.make, first_word_s=NEVER_S)
    async with watched(joined) as seen:
        await seen.until(lambda: len(sources.made) == 2)
        assert (joined.synced, joined.synced_at_s) == ({}, None)
        sources.made["kubernetes", 2].synced_at_s = 7.0
        assert joined.synced == {"kubernetes": 7.0}
        sources.made["dns", 1].synced_at_s = 5.0
        assert joined.synced_at_s == 5.0, "it is as old as its oldest part"


async def test_names_do_not_depend_on_who_answers_first() -> None:
    by_address = (FOUND[0].named("10.0.1.1:11434"),)
    for first, second in (("kubernetes", "dns"), ("dns", "kubernetes")):
        sources = Sources()
        joined = JoinedDiscovery((), {"kubernetes": 1, "dns": 1}, sources.make, first_word_s=NEVER_S)
        async with watched(joined) as seen:
            await seen.until(lambda sources=sources: len(sources.made) == 2)
            for source in (first, second):
                sources.made[source, 1].say(FOUND if source == "kubernetes" else by_address)
                await settled(seen)
            await seen.until(lambda seen=seen: seen.names == ["ollama-0"])


async def test_a_source_that_stays_silent_holds_up_nobody_who_has_nodes(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources()
    async with watched(JoinedDiscovery(LISTED, {"dns": 1}, sources.make, first_word_s=0.01)) as seen:
        await seen.until(lambda: seen.names == ["gpu-1"])
        assert "discovery: no word from dns yet: it was asked" in caplog.messages
        sources.made["dns", 1].say(FOUND)
        await seen.until(lambda: seen.names == ["gpu-1", "ollama-0"])


async def test_without_any_node_a_silent_source_is_waited_for() -> None:
    sources = Sources()
    async with watched(JoinedDiscovery((), {"dns": 1}, sources.make, first_word_s=0.01)) as seen:
        await seen.until(lambda: bool(sources.made))
        await settled(seen)
        assert seen.said == []
        sources.made["dns", 1].say(())
        await seen.until(lambda: seen.said == [()])


async def test_a_reload_changes_the_list_and_the_sources() -> None:
    sources = Sources()
    joined = JoinedDiscovery(LISTED, {"dns": 1, "kubernetes": 1}, sources.make, first_word_s=NEVER_S)
    async with watched(joined) as seen:
        await seen.until(lambda: len(sources.made) == 2)
        sources.made["dns", 1].say(FOUND)
        sources.made["kubernetes", 1].say(())
        await seen.until(lambda: seen.names == ["gpu-1", "ollama-0"])
        joined.replace((), {"dns": 2})
        await seen.until(lambda: seen.names == ["ollama-0"])
        await seen.until(lambda: ("dns", 2) in sources.made)
        await seen.until(lambda: sources.made["dns", 1].is_closed and sources.made["kubernetes", 1].is_closed)
        sources.made["dns", 2].say(())
        await seen.until(lambda: seen.said[-1] == ())
    assert sources.made["dns", 2].is_closed


async def test_a_source_that_dies_ends_the_watch() -> None:
    sources = Sources()
    joined = JoinedDiscovery(LISTED, {"dns": 1}, sources.make, first_word_s=NEVER_S)
    seen = Watched(joined)
    task = asyncio.create_task(seen.run())
    await seen.until(lambda: bool(sources.made))
    sources.made["dns", 1].say(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        await task
