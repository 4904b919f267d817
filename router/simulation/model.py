"""One Ollama node in virtual time: its load queue, its loaded copies and who is served when. Pure: `now_s` is passed.

Source: server/sched.go. Serves the simulated nodes that speak HTTP and the discrete-event
simulator alike: after every call of `ask`, `leave` or `advance` the owner asks `next_event_s` when to call `advance`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from router.simulation.copies import Copy, Running, loaded_bytes
from router.simulation.facts import (
    FOREVER_S,
    Busy,
    CopyEvent,
    Died,
    Effect,
    Ended,
    Event,
    NodeLimits,
    Ready,
    Want,
    Weights,
    Work,
)

FREE_SHARE = 0.8  # a new model's predicted size must fit in this share of the free memory (sched.go)


@dataclass(slots=True, eq=False)
class Pending:
    """A call in the load queue."""

    call: int
    work: Work
    num_ctx: int
    arrived_s: float


@dataclass(slots=True, eq=False)
class Load:
    asker: Pending
    started_s: float
    done_s: float


class NodeModel:
    """The scheduler of one node.

    Calls are known by numbers that the owner hands out. At most one load at a time; a load dies with the call that
    asked for it. Calls for a ready copy never queue here: they wait for its slots, without bound and silently.
    """

    def __init__(self, limits: NodeLimits) -> None:
        self.limits = limits
        self.copies: dict[str, Copy] = {}
        self.load: Load | None = None
        self._speed = limits.speed
        self._head: Pending | None = None  # taken from the queue; waits for memory or loads
        self._queue: deque[Pending] = deque()
        self._copy_of: dict[int, Copy] = {}

    def reset(self) -> None:
        """As a process that starts: nothing loaded, nobody waiting."""
        self.copies.clear()
        self._copy_of.clear()
        self._queue.clear()
        self.load = self._head = None

    def __repr__(self) -> str:
        running = sum(copy.running for copy in self.copies.values())
        waiting = sum(len(copy.waiting) for copy in self.copies.values())
        loading = self.load.asker.work.name if self.load else "-"
        return (
            f"<NodeModel {len(self.copies)} copies | {running} running | {waiting} waiting | "
            f"loading {loading} | {self.queued} queued>"
        )

    @property
    def queued(self) -> int:
        """Calls in the load queue, its head included."""
        return len(self._queue) + (self._head is not None)

    def effective_ctx(self, work: Work) -> int:
        wanted = work.num_ctx or work.weights.default_ctx or self.limits.context_length
        return min(wanted, work.weights.train_ctx)

    def ask(self, call: int, work: Work, now_s: float) -> list[Effect]:
        """A call arrives. It may end at once (Busy, or Ready for a load that is already there)."""
        if work.want is Want.UNLOAD:
            return self._unload(call, work, now_s)
        num_ctx = self.effective_ctx(work)
        copy = self.copies.get(work.weights.blob)
        if copy is not None and copy.num_ctx == num_ctx:
            return self._use(copy, Pending(call, work, num_ctx, now_s), now_s)
        if len(self._queue) >= self.limits.max_queue:
            return [Busy(call, now_s)]
        self._queue.append(Pending(call, work, num_ctx, now_s))
        return self._schedule(now_s)

    def leave(self, call: int, now_s: float) -> list[Effect]:
        """The call's connection closed; valid at any time, also for calls that already ended."""
        copy = self._copy_of.pop(call, None)
        if copy is not None:
            effects = copy.leave(call, now_s)
            return effects + self._settle(copy, now_s)
        if self._head is not None and self._head.call == call:
            return self._abandon_head(now_s)
        self._queue = deque(pending for pending in self._queue if pending.call != call)
        return []

    def kill(self, blob: str, now_s: float) -> list[Effect]:
        """The runner dies: all of the copy's calls with it, those in line included."""
        copy = self.copies.pop(blob, None)
        if copy is None:
            return []
        effects = copy.die(now_s)
        for effect in effects:
            if isinstance(effect, Died):
                del self._copy_of[effect.call]
        return [*effects, CopyEvent(Event.DIED, blob, copy.name, now_s), *self._schedule(now_s)]

    def set_speed(self, speed: float, now_s: float) -> None:
        self._speed = speed
        for copy in self.copies.values():
            copy.sync(now_s)
            copy.speed = speed

    def next_event_s(self) -> float:
        """When `advance` is due; FOREVER_S: nothing will happen by itself."""
        times = [copy.next_s() if not copy.is_idle else copy.expires_s for copy in self.copies.values()]
        if self.load is not None:
            times.append(self.load.done_s)
        return min(times, default=FOREVER_S)

    def advance(self, now_s: float) -> list[Effect]:
        """Everything that happens up to `now_s`, in order of time."""
        effects: list[Effect] = []
        while (due_s := self.next_event_s()) <= now_s:
            effects += self._step(due_s)
        return effects

    def listed(self, now_s: float) -> list[tuple[Copy, float]]:
        """Copies as /api/ps shows them, longest remaining first, each with its expires_at."""
        # Until a call has finished now + keep-alive, anew each time; later it may lie in the past (server/sched.go).
        rows = [
            (copy, copy.expires_s if copy.has_finished else now_s + copy.keep_alive_s) for copy in self.copies.values()
        ]
        return sorted(rows, key=lambda row: row[1], reverse=True)

    def _step(self, now_s: float) -> list[Effect]:
        if self.load is not None and self.load.done_s <= now_s:
            return self._loaded(self.load, now_s)
        for copy in list(self.copies.values()):
            if copy.is_idle and copy.expires_s <= now_s:
                return self._drop(copy, Event.EXPIRED, now_s)
            if not copy.is_idle and copy.next_s() <= now_s:
                effects = copy.step(now_s)
                for effect in effects:
                    if isinstance(effect, Ended):
                        del self._copy_of[effect.call]
                return effects + self._settle(copy, now_s)
        raise AssertionError("an event was due and nobody had it")

    def _use(self, copy: Copy, pending: Pending, now_s: float) -> list[Effect]:
        work = pending.work
        if work.keep_alive_s is not None:
            copy.keep_alive_s = work.keep_alive_s
        if work.want is Want.LOAD:
            ready = Ready(pending.call, now_s, now_s - pending.arrived_s)
            return [ready, *self._settle(copy, now_s)]
        self._copy_of[pending.call] = copy
        return copy.join(Running(pending.call, work, pending.arrived_s, now_s), now_s)

    def _settle(self, copy: Copy, now_s: float) -> list[Effect]:
        """After a call left the copy: an idle copy starts its keep-alive timer, or goes if it must."""
        if not copy.is_idle or self.copies.get(copy.weights.blob) is not copy:
            return []
        copy.has_finished = True
        copy.expires_s = now_s + copy.keep_alive_s
        if copy.is_doomed:
            return self._drop(copy, Event.EVICTED, now_s)
        return self._drop(copy, Event.EXPIRED, now_s) if copy.keep_alive_s <= 0 else []

    def _drop(self, copy: Copy, event: Event, now_s: float) -> list[Effect]:
        assert copy.is_idle, "a busy copy is never dropped"
        del self.copies[copy.weights.blob]
        return [CopyEvent(event, copy.weights.blob, copy.name, now_s), *self._schedule(now_s)]

    def _unload(self, call: int, work: Work, now_s: float) -> list[Effect]:
        copy = self.copies.get(work.weights.blob)
        effects: list[Effect] = [Ready(call, now_s, 0.0)]
        if copy is not None:
            copy.keep_alive_s = 0.0
            effects += self._settle(copy, now_s)
        return effects

    def _abandon_head(self, now_s: float) -> list[Effect]:
        assert self._head is not None
        work, self._head = self._head.work, None
        effects: list[Effect] = []
        if self.load is not None:
            self.load = None
            effects.append(CopyEvent(Event.LOAD_ABORTED, work.weights.blob, work.name, now_s))
        return effects + self._schedule(now_s)

    def _loaded(self, load: Load, now_s: float) -> list[Effect]:
        pending, self.load, self._head = load.asker, None, None
        weights = pending.work.weights
        keep_alive_s = self.limits.keep_alive_s if pending.work.keep_alive_s is None else pending.work.keep_alive_s
        copy = Copy(
            weights=weights,
            name=pending.work.name,
            num_ctx=pending.num_ctx,
            slots=weights.slots or self.limits.num_parallel,
            speed=self._speed,
            keep_alive_s=keep_alive_s,
            expires_s=now_s + keep_alive_s,
            clock_s=now_s,
        )
        self.copies[weights.blob] = copy
        finished = CopyEvent(Event.LOAD_FINISHED, weights.blob, copy.name, now_s)
        return [finished, *self._use(copy, pending, now_s), *self._schedule(now_s)]

    def _schedule(self, now_s: float) -> list[Effect]:
        """Works on the queue's head until it loads, waits for memory, or the queue is empty."""
        effects: list[Effect] = []
        while self.load is None:
            if self._head is None:
                if not self._queue:
                    break
                self._head = self._queue.popleft()
            head = self._head
            copy = self.copies.get(head.work.weights.blob)
            if copy is not None and copy.num_ctx == head.num_ctx:
                self._head = None
                effects += self._use(copy, head, now_s)
                continue
            victim = copy if copy is not None else self._in_the_way(head)
            if victim is None:
                effects.append(self._start_load(head, now_s))
            elif victim.is_idle:
                del self.copies[victim.weights.blob]
                event = Event.RELOADED if victim is copy else Event.EVICTED
                effects.append(CopyEvent(event, victim.weights.blob, victim.name, now_s))
            else:
                victim.is_doomed = True
                break
        return effects

    def _start_load(self, head: Pending, now_s: float) -> Effect:
        self.load = Load(head, now_s, now_s + head.work.weights.load_s)
        return CopyEvent(Event.LOAD_STARTED, head.work.weights.blob, head.work.name, now_s)

    def _in_the_way(self, head: Pending) -> Copy | None:
        """Which copy must go before this model can load; None: it may load now."""
        if not self.copies:
            return None  # an empty node loads anything; llama-server splits to the CPU as needed
        if len(self.copies) >= self.limits.max_loaded or not self._fits(head.work.weights, head.num_ctx):
            return next((copy for copy in self._eviction_order() if copy.is_idle), next(self._eviction_order()))
        return None

    def _fits(self, weights: Weights, num_ctx: int) -> bool:
        if self.limits.vram_bytes == 0:
            return True
        free = self.limits.vram_bytes - sum(copy.size_bytes for copy in self.copies.values())
        return loaded_bytes(weights, num_ctx) <= FREE_SHARE * free

    def _eviction_order(self) -> Iterator[Copy]:
        """Ollama's ByDurationAndName: shortest keep-alive first, blob path among equals; neither LRU nor by size."""
        return iter(sorted(self.copies.values(), key=lambda copy: (copy.keep_alive_s, copy.weights.blob)))
