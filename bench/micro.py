"""Parts of the router on their own, in this process: no sockets. Values by row key, in the row's unit."""

from __future__ import annotations

import asyncio
import base64
import random
import sys
import time
from collections.abc import Callable

import uvloop

from bench.measure import quantile
from router.errors import Outcome
from router.fleet.node import Copy, CopyState, DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import Snapshot, snapshot_of
from router.fleet.tickets import CopyReport, Lease, Ticket
from router.policy.schedule import Want, schedule
from router.process import SWITCH_S
from router.store.answers import Limits
from router.store.memory import MemoryStore
from router.wire.endpoints import BY_PATH
from router.wire.intent import read_intent

IMAGE_BYTES = 15 * 1024 * 1024  # 20 MiB in base64
TICK_S = 0.001
READS = 5
NODES = 1000
HOLDING = 20
DECISIONS = 2000
LEASES = 5000
WAITING = 10_000
TEAMS = 50
KEY = "gemma3:270m"
WEIGHTS = "sha256-a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def intent(number: int) -> dict[str, float]:
    """Read in a worker thread, as the pipeline does above SLICE_BYTES, while the loop ticks every millisecond."""
    body = _vision_body(number)
    sys.setswitchinterval(SWITCH_S)  # as a router that serves
    wall_s, gap_s = uvloop.run(_read_beside_ticks(body))
    return {"intent_wall": wall_s * 1000, "intent_gap": gap_s * 1000}


def decision(number: int) -> dict[str, float]:
    """Half of the copies busy, an affinity key that differs from call to call."""
    return {f"decision_{holding}": _decision_us(_fleet(holding), number) for holding in (HOLDING, NODES)}


def store(number: int) -> dict[str, float]:
    """One copy with free slots, one call after the other, coroutines included; then one that everybody waits for."""
    return {"store": uvloop.run(_take_and_give_back(number)), "store_line": uvloop.run(_pass_on(number))}


def _vision_body(seed: int) -> bytes:
    image = base64.b64encode(random.Random(seed).randbytes(IMAGE_BYTES))
    return (
        b'{"model":"gemma3:270m","messages":[{"role":"user","content":['
        b'{"type":"text","text":"What is this?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,%b"}}'
        b']}],"stream":true}' % image
    )


async def _read_beside_ticks(body: bytes) -> tuple[float, float]:
    """Median of the wall times, longest of the gaps: seconds from one tick to the next, less the tick itself."""
    loop = asyncio.get_running_loop()
    endpoint = BY_PATH["/v1/chat/completions"]
    longest_s = 0.0
    last_s = time.perf_counter()

    def tick() -> None:
        nonlocal last_s, longest_s
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s - TICK_S), now_s
        loop.call_later(TICK_S, tick)

    def read() -> float:
        began_s = time.perf_counter()
        read_intent(endpoint, body, content_type="application/json", content_encoding="")
        return time.perf_counter() - began_s

    await asyncio.to_thread(int)  # the pool's thread exists before the clock runs
    last_s = time.perf_counter()
    tick()
    await asyncio.sleep(0.02)
    longest_s = 0.0
    walls = [await asyncio.to_thread(read) for _ in range(READS)]
    await asyncio.sleep(0.005)
    return quantile(walls, 0.5), longest_s


def _fleet(holding: int) -> Snapshot:
    """Every node has the model on disk; `holding` of them have it loaded."""
    model = DiskModel(KEY, KEY, "digest", WEIGHTS, context_max=32768)
    copy = Copy(WEIGHTS, CopyState.READY, (KEY,), slots=4, num_ctx=4096)
    return snapshot_of(
        Node(
            NodeSpec(f"gpu-{index}", "127.0.0.1", 11434, slots=4),
            incarnation=1,
            health=Health.HEALTHY,
            models={KEY: model},
            copies={WEIGHTS: copy} if index < holding else {},
            is_read=True,
        )
        for index in range(NODES)
    )


def _decision_us(snapshot: Snapshot, seed: int) -> float:
    rng = random.Random(seed)
    occupancy = {(f"gpu-{index}", WEIGHTS): rng.randrange(5) for index in range(0, NODES, 2)}
    wants = [Want((KEY,), affinity=f"conversation-{index}", num_ctx=4096) for index in range(DECISIONS)]

    def decide_all() -> None:
        for want in wants:
            schedule(want, snapshot, occupancy, rng)

    return _cpu_us(decide_all) / DECISIONS


class _Clock:
    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


async def _take_and_give_back(seed: int) -> float:
    shared = MemoryStore(_Clock(), random.Random(seed))
    await shared.open(lambda lease: True, lambda ticket, refusal: None)
    await _one_copy(shared)
    began_ns = time.process_time_ns()
    for index in range(LEASES):
        lease = await shared.take(Ticket(f"ticket-{index}", (KEY,), preferred=("gpu-0",)))
        assert isinstance(lease, Lease), "a free slot, and nobody waits"
        await shared.give_back(lease, Outcome.OK, 8)
    used_us = (time.process_time_ns() - began_ns) / 1000
    await shared.close()
    return used_us / LEASES


async def _pass_on(seed: int) -> float:
    """A slot is given back, the next in line has it, and another call goes to stand at the end."""
    rng = random.Random(seed)
    shared = MemoryStore(_Clock(), rng, Limits(2 * WAITING))
    granted: list[Lease] = []

    def take_it(lease: Lease) -> bool:
        granted.append(lease)
        return True

    await shared.open(take_it, lambda ticket, refusal: None)
    tickets = [_waiting(index, rng) for index in range(WAITING + LEASES)]
    for ticket in tickets[:WAITING]:
        await shared.take(ticket)
    await _one_copy(shared)
    began_ns = time.process_time_ns()
    for ticket in tickets[WAITING:]:
        await shared.give_back(granted.pop(), Outcome.OK, 700)
        await shared.take(ticket)
    used_us = (time.process_time_ns() - began_ns) / 1000
    await shared.close()
    return used_us / LEASES


def _waiting(index: int, rng: random.Random) -> Ticket:
    """Half of them prefer this copy's node, of fifty teams."""
    preferred = ("gpu-0",) if rng.random() < 0.5 else ("gpu-1",)
    return Ticket(f"ticket-{index}", (KEY,), preferred=preferred, team=f"team-{index % TEAMS}", estimate_tokens=500)


async def _one_copy(shared: MemoryStore) -> None:
    incarnation = await shared.incarnate("gpu-0", "uid")
    await shared.set_copy(
        CopyReport("gpu-0", incarnation, WEIGHTS, (KEY,), CopyState.READY, 64, 4096, shared.now_s(), is_probe=True)
    )


def _cpu_us(work: Callable[[], None]) -> float:
    began_ns = time.process_time_ns()
    work()
    return (time.process_time_ns() - began_ns) / 1000
