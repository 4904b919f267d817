"""The router under fire: on a loop of its own before simulated nodes, with every way in which it may fail watched."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from router.simulation.catalog import RECORDED_MODELS
from router.simulation.facts import NodeLimits
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.fuzz import heads
from tests.fuzz.case import Case, End, Expect
from tests.fuzz.cases import GOOD
from tests.fuzz.oracle import Heard, Malformed, answers, verdict
from tests.shell.house import assert_at_rest, router_before, until

# Longer than everything that a case may wait for: `header_s`, `body_s`, a load, the longest answer.
WATCHDOG_S = 15.0
# A client of these tests sends at once: what waits for more of it waits in vain.
PATIENCE = {"header_s": 0.1, "body_s": 0.1, "header_bytes": heads.HEADER_BYTES}
WARM_UP_ROUNDS = 3
# What the allocator keeps, and what Hypothesis and the journals of the nodes hold of the cases themselves.
RSS_GROWTH_BYTES_MAX = 64 * 2**20
REPLAYS_MAX = 5
_TROUBLE = re.compile(rb'Traceback|"level":"(error|critical)"|never retrieved|was never awaited')


class Broken(AssertionError):
    """A case found something; its text is for whoever has to fix it."""

    def __init__(self, case: Case, problem: str) -> None:
        super().__init__(f"{case.kind}: {problem}\n{case!r}")
        self.kind = case.kind


class Ear(logging.Handler):
    """Hears the errors that libraries log, and every traceback."""

    def __init__(self, heard: list[object]) -> None:
        super().__init__(logging.DEBUG)
        self._heard = heard
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self._heard.append(self.format(record))


class FuzzHouse:
    def __init__(self, runner: asyncio.Runner, pool: SimulatedPool, router: Router, log: Path) -> None:
        self._runner = runner
        self._log = log
        self._log_read = 0
        self.pool = pool
        self.router = router
        self.complaints: list[object] = []  # of the event loop, and of whoever logs an error without our log
        self.played = 0

    def play(self, case: Case) -> None:
        """Raises Broken."""
        self.played += 1
        problem = self._runner.run(self._played(case))
        if problem:
            raise Broken(case, problem)

    def warm_up(self) -> None:
        """Until memory has its usual size."""
        for good in GOOD * WARM_UP_ROUNDS:
            raw = heads.framed(good.path.encode(), [heads.length(good.request.body)], good.request.body)
            self.play(Case("good", raw, Expect.GOOD, path=good.path))

    def rss_bytes(self) -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def trouble(self) -> str:
        """What the log, the loop and the nodes say went wrong since this was last asked."""
        with self._log.open("rb") as file:
            file.seek(self._log_read)
            written = file.read()
        self._log_read += len(written)
        lines = [line for line in written.splitlines() if _TROUBLE.search(line)]
        complaints, self.complaints = self.complaints, []
        bugs = [failure for node in self.pool.nodes for failure in node.server.failures]
        return "\n".join(str(each) for each in (*lines, *complaints, *bugs))

    def rest(self) -> None:
        """Nothing is held for anybody."""
        self._runner.run(until(lambda: not self.router.pipeline.live))
        assert_at_rest(self.router)

    async def _played(self, case: Case) -> str:
        try:
            async with asyncio.timeout(WATCHDOG_S):
                heard = await _heard(self.router.port, case)
        except TimeoutError:
            return f"hung for {WATCHDOG_S:g} s"
        problem = verdict(case, heard)
        try:
            await until(self._holds_nothing, within_s=WATCHDOG_S)
        except TimeoutError:
            return problem or "something is still held for it"
        return problem or self.trouble()

    def _holds_nothing(self) -> bool:
        router = self.router
        return not router.pipeline.live and not router.connections.busy and not router.buffers.held


async def _heard(port: int, case: Case) -> Heard:
    """Again, where this process itself stood still for longer than the router waits: it was no client of its case."""
    loop = asyncio.get_running_loop()
    for _ in range(REPLAYS_MAX):
        began_s = loop.time()
        heard = await _conversation(port, case)
        is_due = case.expect in (Expect.GOOD, Expect.ANSWER) and case.end is End.STAY
        if not is_due or heard.data or loop.time() - began_s < PATIENCE["header_s"]:
            break
    return heard


async def _conversation(port: int, case: Case) -> Heard:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data, is_closed, has_probed = bytearray(), False, False
    try:
        for piece in case.pieces:
            if writer.is_closing():
                break  # the server has ended it and will hear nothing more
            writer.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if case.end is End.LEAVE:
            return Heard(b"", is_closed=True)
        says_no_more = case.end is End.HALF_CLOSE
        if says_no_more and not writer.is_closing():
            writer.write_eof()
        while piece := await reader.read(65536):
            data += piece
            if says_no_more or writer.is_closing() or not _has_all(case, bytes(data)):
                continue
            if case.expect not in (Expect.REFUSE, Expect.LAST):
                writer.write_eof()
                says_no_more = True
            elif not has_probed:
                writer.write(heads.PROBE)  # on a connection that should have ended
                has_probed = True
            elif heads.PROBED in data:
                return Heard(bytes(data), is_closed=False, probes=1)
        is_closed = not says_no_more
    except ConnectionError:  # reset: it did not want the rest
        is_closed = True
    finally:
        writer.transport.abort()
    return Heard(bytes(data), is_closed)


def _has_all(case: Case, data: bytes) -> bool:
    """Whether the client has what it waits for."""
    try:
        found = answers(data, is_head=case.is_head, at_end=False)
    except Malformed:
        return True
    due = case.requests if case.expect in (Expect.GOOD, Expect.ANSWER) else 1
    return len(found) >= due and found[-1].is_whole


@contextmanager
def fuzz_house() -> Iterator[FuzzHouse]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        stack = AsyncExitStack()
        pool, router = runner.run(_opened(stack, descriptor))
        house = FuzzHouse(runner, pool, router, log)
        runner.get_loop().set_exception_handler(lambda loop, context: house.complaints.append(context))
        ear = Ear(house.complaints)
        logging.getLogger().addHandler(ear)
        try:
            yield house
        finally:
            logging.getLogger().removeHandler(ear)
            runner.run(stack.aclose())
            os.close(descriptor)


async def _opened(stack: AsyncExitStack, descriptor: int) -> tuple[SimulatedPool, Router]:
    limits = NodeLimits(num_parallel=4, max_loaded=8)
    pool = SimulatedPool(nodes=2, models=RECORDED_MODELS, limits=limits, time_scale=1e-6)
    await stack.enter_async_context(pool)
    nodes = [{"url": node.url, "name": node.name, "slots": 4} for node in pool.nodes]
    changes: dict[str, Any] = {
        "nodes": nodes,
        "client": PATIENCE,
        "limits": {"body_bytes": heads.BODY_BYTES},
        "guard": {"num_ctx": "pass"},
    }
    router = await stack.enter_async_context(router_before(pool.nodes, descriptor=descriptor, **changes))
    return pool, router
