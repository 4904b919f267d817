"""Tasks that work for one watcher, who hears of their news and of their end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Crew:
    """A task that dies takes its watcher along: what it kept fresh would only rot."""

    def __init__(self) -> None:
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._has_news = asyncio.Event()
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Crew {[task.get_name() for task in self._tasks.values()]}>"

    def start(self, key: object, work: Coroutine[object, object, None], name: str) -> None:
        task = self._tasks[key] = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)

    def stop(self, key: object) -> None:
        """It ends by itself within a turn of the loop; nobody has to wait for it."""
        self._tasks.pop(key).cancel()

    def tell(self) -> None:
        self._has_news.set()

    async def news(self) -> None:
        await self._has_news.wait()
        self._has_news.clear()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._error = error
            self.tell()
