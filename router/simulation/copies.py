"""One loaded copy: its slots, its shared decoding rate and its prompt cache. Owned by `model.NodeModel`."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from router.simulation.facts import FOREVER_S, Began, Died, Effect, Ended, Timing, Token, Weights, Work

# llama-server's RAM cache holds 8192 MiB of prompts (common/common.h); 2 ** 17 tokens is that for a small model.
CACHED_TOKENS_MAX = 131_072


class PromptCache:
    """Most recent prompts as a set of prefixes; a prefix is known by the chained hash of its items."""

    def __init__(self, tokens_max: int = CACHED_TOKENS_MAX) -> None:
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._tokens_max = tokens_max

    def common_prefix(self, prompt: tuple[int, ...]) -> int:
        """How many leading items of the prompt are cached."""
        at, known = 0, 0
        for item in prompt:
            at = hash((at, item))
            if at not in self._prefixes:
                break
            known += 1
        return known

    def remember(self, prompt: tuple[int, ...], tokens_per_item: int = 1) -> None:
        chain, at = [], 0
        for item in prompt:
            at = hash((at, item))
            chain.append(at)
        for prefix in reversed(chain):  # a root must outlive its leaves
            self._prefixes[prefix] = None
            self._prefixes.move_to_end(prefix)
        while len(self._prefixes) * tokens_per_item > self._tokens_max:
            self._prefixes.popitem(last=False)


@dataclass(slots=True)
class Running:
    """A call that waits for a slot or has one."""

    call: int
    work: Work
    arrived_s: float
    loaded_s: float  # when the copy was its
    began_s: float = -1.0
    prefilled_s: float = -1.0
    first_at: float = 0.0  # the copy's decode clock at the first token
    cached_tokens: int = 0
    count: int = 0

    def timing(self, now_s: float) -> Timing:
        return Timing(
            load_s=self.loaded_s - self.arrived_s,
            slot_wait_s=self.began_s - self.loaded_s,
            prefill_s=self.prefilled_s - self.began_s,
            decode_s=now_s - self.prefilled_s,
            cached_tokens=self.cached_tokens,
        )


@dataclass(slots=True, eq=False)
class Copy:
    """Loaded weights.

    All streams of a copy decode in step, so one clock that counts tokens per stream serves them all: its rate is
    decode_tps * n ** exponent / n, and a stream's k-th token is due when it has gone on by k.
    """

    weights: Weights
    name: str
    num_ctx: int
    slots: int
    speed: float
    keep_alive_s: float
    expires_s: float
    clock: float = 0.0
    clock_s: float = 0.0
    has_finished: bool = False  # one call at least, since when expires_s counts
    is_doomed: bool = False  # chosen for eviction: goes when idle
    waiting: deque[Running] = field(default_factory=deque)
    prefilling: dict[int, Running] = field(default_factory=dict)
    decoding: dict[int, Running] = field(default_factory=dict)
    cache: PromptCache = field(default_factory=PromptCache)
    _due: list[tuple[float, int]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return loaded_bytes(self.weights, self.num_ctx)

    @property
    def running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    @property
    def is_idle(self) -> bool:
        return not (self.running or self.waiting)

    @property
    def rate_tps(self) -> float:
        """Tokens per second of each stream now."""
        streams = max(1, len(self.decoding))
        share: float = streams ** (self.weights.decode_exponent - 1.0)
        return self.weights.decode_tps * self.speed * share

    def join(self, running: Running, now_s: float) -> list[Effect]:
        self.waiting.append(running)
        return self._fill(now_s)

    def leave(self, call: int, now_s: float) -> list[Effect]:
        """The call's client is gone: its slot goes to the next in line at once."""
        self.sync(now_s)
        self.prefilling.pop(call, None)
        self.decoding.pop(call, None)
        for running in self.waiting:
            if running.call == call:
                self.waiting.remove(running)
                break
        return self._fill(now_s)

    def die(self, now_s: float) -> list[Effect]:
        calls = [*self.decoding.values(), *self.prefilling.values(), *self.waiting]
        self.decoding.clear()
        self.prefilling.clear()
        self.waiting.clear()
        return [Died(running.call, now_s, running.count) for running in calls]

    def next_s(self) -> float:
        """When something happens inside the copy if nobody interferes; FOREVER_S: never."""
        prefilled = min((running.prefilled_s for running in self.prefilling.values()), default=FOREVER_S)
        return min(prefilled, self._next_token_s())

    def step(self, now_s: float) -> list[Effect]:
        """Everything due at `now_s`, which must be at most `next_s()`."""
        is_token_due = self._next_token_s() <= now_s
        self.sync(now_s)
        if is_token_due:
            # Rounding must not leave a due token behind its own time: the same step would be due for ever.
            self.clock = max(self.clock, self._due[0][0])
        effects: list[Effect] = []
        for running in [r for r in self.prefilling.values() if r.prefilled_s <= now_s]:
            effects += self._prefilled(running, now_s)
        self._forget_gone()
        while self._due and self._due[0][0] <= self.clock:
            call = heapq.heappop(self._due)[1]
            effects += self._token(self.decoding[call], now_s)
            self._forget_gone()
        return effects + self._fill(now_s)

    def _next_token_s(self) -> float:
        self._forget_gone()
        if not self._due:
            return FOREVER_S
        return self.clock_s + max(0.0, self._due[0][0] - self.clock) / self.rate_tps

    def sync(self, now_s: float) -> None:
        """Moves the decode clock to `now_s`; before any change of the number of streams or of the speed."""
        if self.decoding:
            self.clock += max(0.0, now_s - self.clock_s) * self.rate_tps
        self.clock_s = now_s

    def _forget_gone(self) -> None:
        while self._due and self._due[0][1] not in self.decoding:
            heapq.heappop(self._due)

    def _fill(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        while self.waiting and self.running < self.slots:
            running = self.waiting.popleft()
            work = running.work
            # The last token is always evaluated, also when the whole prompt is cached (llama.cpp).
            cached = min(self.cache.common_prefix(work.prompt) * work.tokens_per_item, max(0, work.prompt_tokens - 1))
            running.cached_tokens = cached
            running.began_s = now_s
            running.prefilled_s = now_s + (work.prompt_tokens - cached) / (self.weights.prefill_tps * self.speed)
            self.prefilling[running.call] = running
            effects.append(Began(running.call, now_s, self.running))
        return effects

    def _prefilled(self, running: Running, now_s: float) -> list[Effect]:
        del self.prefilling[running.call]
        running.prefilled_s = now_s
        self.cache.remember(running.work.prompt, running.work.tokens_per_item)
        if running.work.output_tokens == 0:
            return [Ended(running.call, now_s, running.timing(now_s))]
        self.sync(now_s)
        self.decoding[running.call] = running
        running.first_at = self.clock
        # The prefill itself gives the first token (recording quirks/num-ctx-larger: one token in a microsecond).
        return self._token(running, now_s)

    def _token(self, running: Running, now_s: float) -> list[Effect]:
        work = running.work
        is_first = running.count == 0
        running.count = running.count + 1 if work.every_token or is_first else work.output_tokens
        effects: list[Effect] = [Token(running.call, now_s, running.count)]
        if running.count < work.output_tokens:
            due = running.count if work.every_token else work.output_tokens - 1
            heapq.heappush(self._due, (running.first_at + due, running.call))
            return effects
        del self.decoding[running.call]
        if work.answer:
            self.cache.remember(work.prompt + work.answer, work.tokens_per_item)
        effects.append(Ended(running.call, now_s, running.timing(now_s)))
        return effects


def loaded_bytes(weights: Weights, num_ctx: int) -> int:
    default = weights.default_ctx if weights.default_ctx is not None else num_ctx
    return weights.loaded_bytes + round((num_ctx - default) * weights.bytes_per_ctx_token)
