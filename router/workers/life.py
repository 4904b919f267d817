"""One worker: the lives of its process, one after another."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.workers.ask import Question, Said, ask
from router.workers.embedded import ended

log = logging.getLogger(__name__)

READY_S = 1.0  # for a worker's word that it is ready: a probe of Kubernetes waits as long
POLL_S = 0.05  # until it is ready for the first time, or again
# So often it is asked whether it lives, and waited for so long; 30 s until one that hangs is ended, as gunicorn has it.
LOOK_S = 5.0
SILENCES_MAX = 3
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the next life; the last one from then on
LASTING_S = 60.0  # whoever lived for so long begins at the beginning again

# A process like this one, whatever way Python found the package: as multiprocessing starts its own.
_COMMAND = (
    "import json, sys; task = json.load(sys.stdin); sys.path[:] = task['path']; "
    "from router.worker import main; sys.exit(main(task))"
)
_READY, _LIVE = Question("GET", "/readyz"), Question("GET", "/livez")


@dataclass(frozen=True, slots=True)
class Task:
    """What every worker is told, on its standard input."""

    config: str | None
    overrides: Mapping[str, Any]
    host: str
    port: int
    folder: Path

    def told(self, number: int, drained: Collection[str]) -> bytes:
        return json.dumps(
            {
                "path": sys.path,
                "parent": os.getpid(),
                "number": number,
                "config": self.config,
                "overrides": self.overrides,
                "clients": [self.host, self.port],
                "metrics": self.socket("metrics", number),
                "admin": self.socket("admin", number),
                "turn": str(self.folder / "log"),
                "drained": sorted(drained),
            }
        ).encode()

    def socket(self, what: str, number: int) -> str:
        return str(self.folder / f"{what}-{number}")


class NeverServed(Exception):
    """A worker ended before it served for the first time: what is wrong is not wrong with this life of it."""

    def __init__(self, number: int, code: int) -> None:
        super().__init__(f"worker {number} does not start: {ended(code)}")
        self.code = code


class Worker:
    """`drained` are the nodes that the operator has drained, as of now."""

    def __init__(self, number: int, task: Task, drained: Callable[[], Collection[str]], look_s: float = LOOK_S) -> None:
        self.number = number
        self.has_served = asyncio.Event()
        self.lives = 0
        self.began_s = 0.0  # this life, by the monotonic clock
        self.told: frozenset[str] = frozenset()  # the drains that this life knows of
        self.is_ready = False  # was, in this life
        self.is_leaving = False
        self._task = task
        self._drained = drained
        self._look_s = look_s
        self._process: asyncio.subprocess.Process | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.number} life {self.lives} {'ready' if self.is_ready else 'not ready'}>"

    @property
    def pid(self) -> int | None:
        """None between two lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def life(self) -> str:
        """A name of the process that runs now, or ran last."""
        return f"{self.number}/{self.lives}"

    async def live(self) -> int:
        """Until it left as it was told to: its exit code. Raises NeverServed."""
        failures = 0
        while True:
            self.began_s = time.monotonic()
            try:
                code = await self._one_life()
            except OSError as error:  # no process, memory or descriptor left for it: the next time there may be
                log.error("worker %d: %s", self.number, error)  # noqa: TRY400 - the world's doing, not ours
                code = 1
            if self.is_leaving:
                return code
            if not self.has_served.is_set():
                raise NeverServed(self.number, code)
            lived_s = time.monotonic() - self.began_s
            failures = 0 if lived_s > LASTING_S else failures
            pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            text = "worker %d ended after %.0f s (%s): it starts again in %g s"
            log.log(logging.ERROR if code else logging.INFO, text, self.number, lived_s, ended(code), pause_s)
            failures += 1
            await asyncio.sleep(pause_s)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ask(self, what: str, question: Question, within_s: float) -> Said | None:
        """`what` is metrics or admin."""
        return await ask(self._task.socket(what, self.number), question, within_s)

    async def says_ready(self) -> bool:
        said = await self.ask("metrics", _READY, READY_S)
        return said is not None and said.status == 200

    async def _one_life(self) -> int:
        self.lives += 1
        self.is_ready = False
        self.told = frozenset(self._drained())
        self._process = process = await self._start()
        end = asyncio.create_task(process.wait(), name=f"end of worker {self.number}")
        try:
            while not end.done() and not self.is_ready:
                await asyncio.wait((end,), timeout=POLL_S)
                if not end.done() and await self.says_ready():
                    log.info("worker %d serves, process %d", self.number, process.pid)
                    self.is_ready = True
                    self.has_served.set()
            await self._watch(process, end)
            return end.result()
        finally:
            await self._end(process)
            end.cancel()

    async def _watch(self, process: asyncio.subprocess.Process, end: asyncio.Task[int]) -> None:
        """Until it has ended. The kernel goes on sending clients to one that hangs: it has to go."""
        silences = 0
        while not end.done():
            await asyncio.wait((end,), timeout=self._look_s)
            is_alive = end.done() or await self.ask("metrics", _LIVE, self._look_s) is not None
            silences = 0 if is_alive else silences + 1
            if silences >= SILENCES_MAX and process.returncode is None:
                log.error("worker %d did not answer %d times in a row: it is ended", self.number, silences)
                process.kill()
                await end

    async def _start(self) -> asyncio.subprocess.Process:
        for what in ("metrics", "admin"):
            Path(self._task.socket(what, self.number)).unlink(missing_ok=True)  # noqa: ASYNC240 - in memory, mostly
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _COMMAND, f"ollama-router worker {self.number}"),  # the last for who reads `ps`
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's signals are for the parent, which tells its workers
        )
        assert process.stdin is not None
        process.stdin.write(self._task.told(self.number, self.told))
        with suppress(ConnectionError):  # it has died already: its end tells
            await process.stdin.drain()
        process.stdin.close()
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self.is_ready = False
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
