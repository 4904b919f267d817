"""All workers of one parent: they start, are asked and told, and leave together."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from router.telemetry.page import content_type
from router.telemetry.together import Sums
from router.workers.ask import Question, Said
from router.workers.life import Task, Worker

log = logging.getLogger(__name__)

SCRAPE_S = 5.0  # half of what Prometheus waits by default
ADMIN_S = 10.0  # an order waits for the store's answer
TELL_S = 1.0  # between two looks for a worker that has missed an order

# It obeyed; or has no such node; or the node drains by another word.
_UNDERSTOOD = frozenset((200, 404, 409))


class Crew:
    """`credentials` are what the parent's own orders to workers carry."""

    def __init__(self, count: int, task: Task, credentials: Callable[[], Mapping[str, str]]) -> None:
        self._drained: set[str] = set()
        self.workers = [Worker(number, task, lambda: self._drained) for number in range(1, count + 1)]
        self.is_leaving = False
        self._credentials = credentials
        self._sums = Sums()
        self._scraping = asyncio.Lock()
        self._lives: list[asyncio.Task[int]] = []

    def __repr__(self) -> str:
        return f"<Crew {sum(worker.is_ready for worker in self.workers)} of {len(self.workers)} ready>"

    # from start to end

    async def start(self) -> bool:
        """Until all serve. The first goes ahead: what is wrong with all of them is told once. Raises NeverServed."""
        for group in (self.workers[:1], self.workers[1:]):
            self._lives += [asyncio.create_task(worker.live(), name=f"worker {worker.number}") for worker in group]
            await self._unless_one_fails(asyncio.gather(*(worker.has_served.wait() for worker in group)))
        return True

    async def serve_until(self, told: asyncio.Event) -> None:
        await self._unless_one_fails(told.wait())

    async def _unless_one_fails(self, work: Awaitable[Any]) -> None:
        waited = asyncio.ensure_future(work)
        try:
            await asyncio.wait([waited, *self._lives], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waited.cancel()
        for life in self._lives:
            if life.done():
                life.result()

    async def leave(self) -> bool:
        """In order, each as one router does. Whether all left well."""
        self.is_leaving = True
        for worker in self.workers:
            worker.is_leaving = True
        for worker, life in zip(self.workers, self._lives, strict=False):
            if worker.pid is None:
                life.cancel()  # between two lives: there will be no other
            else:
                worker.send(signal.SIGTERM)
        codes = await asyncio.gather(*self._lives, return_exceptions=True)
        # One that was just starting has no order of leaving yet, and nothing to leave.
        return all(code in (0, -signal.SIGTERM) or isinstance(code, asyncio.CancelledError) for code in codes)

    async def close(self) -> None:
        """At once, whatever they do."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)

    def reload(self) -> None:
        for worker in self.workers:
            if worker.is_ready:  # one that starts reads what is there, and has no ear for a signal yet
                worker.send(signal.SIGHUP)

    # what is asked of all of them

    @property
    def are_open(self) -> bool:
        return not self.is_leaving and all(worker.has_served.is_set() for worker in self.workers)

    async def checks(self) -> Mapping[str, bool]:
        answers = await asyncio.gather(*(worker.says_ready() for worker in self.workers))
        return {f"worker {worker.number}": is_ready for worker, is_ready in zip(self.workers, answers, strict=True)}

    async def metrics(self, *, is_open: bool) -> str | None:
        question = Question("GET", "/metrics", {"Accept": content_type(is_open=is_open)})
        async with self._scraping:
            asked = sorted((one for one in self.workers if one.pid), key=lambda one: (not one.is_ready, one.began_s))
            lives = [worker.life for worker in asked]
            pages = await asyncio.gather(*(worker.ask("metrics", question, SCRAPE_S) for worker in asked))
            texts = {
                life: page.body.decode()
                for worker, life, page in zip(asked, lives, pages, strict=True)
                if page is not None
                and page.status == 200
                and worker.life == life  # else of the next, on the same socket
            }
            living = {worker.life for worker in self.workers if worker.pid}
            if not texts:
                return None
            return await asyncio.to_thread(self._sums.page, texts, living | texts.keys(), is_open=is_open)

    async def ask_one(self, target: str, headers: Mapping[str, str], method: str) -> Said | None:
        for worker in sorted(self.workers, key=lambda worker: not worker.is_ready):
            said = await worker.ask("admin", Question(method, target, headers), ADMIN_S)
            if said is not None:
                return said
        return None

    # what all of them are told

    async def tell_all(self, order: str, node: str, target: str, headers: Mapping[str, str]) -> Said | None:
        question = Question("POST", target, headers)
        asked = [worker for worker in self.workers if worker.pid]
        answers = await asyncio.gather(*(worker.ask("admin", question, ADMIN_S) for worker in asked))
        obeyed = [
            worker for worker, said in zip(asked, answers, strict=True) if said is not None and said.status == 200
        ]
        if obeyed:
            self._drained = self._drained | {node} if order == "drain" else self._drained - {node}
        for worker in obeyed:
            worker.told = worker.told | {node} if order == "drain" else worker.told - {node}
        said_by_age = sorted((said for said in answers if said is not None), key=lambda said: said.status != 200)
        return next(iter(said_by_age), None)

    async def tell_those_who_missed_it(self) -> None:
        """Runs for ever. A worker that was frozen or about to start when an order came hears it later."""
        while True:
            await asyncio.sleep(TELL_S)
            for worker in self.workers:
                if worker.is_ready:
                    for node in sorted(worker.told ^ self._drained):
                        await self._tell(worker, node)

    async def _tell(self, worker: Worker, node: str) -> None:
        is_drained = node in self._drained
        target = f"/admin/nodes/{quote(node, safe='')}/{'drain' if is_drained else 'resume'}"
        headers = {"Content-Type": "application/json", **self._credentials()}
        said = await worker.ask("admin", Question("POST", target, headers), ADMIN_S)
        if said is not None and said.status in _UNDERSTOOD:
            worker.told = worker.told | {node} if is_drained else worker.told - {node}
