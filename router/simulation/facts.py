"""What a simulated node is made of and what happens to it, as values in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 2**30
FOREVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Weights:
    """What the scheduler loads: one GGUF blob, and how fast it is where `NodeLimits.speed` is 1."""

    blob: str  # 64 hex digits; the key of a copy, as Ollama keys runners by blob path (server/sched.go:110)
    file_bytes: int
    loaded_bytes: int  # with a context of `default_ctx`
    train_ctx: int = 32768
    default_ctx: int | None = None  # the Modelfile's num_ctx; None: the node's own
    bytes_per_ctx_token: float = 0.0
    load_s: float = 2.0  # alone, from a warm disk
    prefill_tps: float = 4000.0
    decode_tps: float = 60.0
    decode_exponent: float = 0.75  # n streams together run at n ** exponent times the rate of one
    slots: int | None = None  # None: OLLAMA_NUM_PARALLEL of the node


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """A node's environment. `vram_bytes` 0 is a CPU node: only the count of models evicts (sched.go)."""

    vram_bytes: int = 0
    max_loaded: int = 3
    max_queue: int = 512
    num_parallel: int = 1
    keep_alive_s: float = 300.0
    context_length: int = 4096
    speed: float = 1.0  # of prefill and decoding; a load waits for the disk instead


class Want(StrEnum):
    ANSWER = "answer"
    LOAD = "load"  # a call without a prompt: needs the copy, no slot
    UNLOAD = "unload"  # the same with keep_alive 0: never waits


@dataclass(frozen=True, slots=True)
class Work:
    """What one call asks of its node, tokens already counted.

    `prompt` are the items that the prompt cache compares; each stands for `tokens_per_item` tokens. With `every_token`
    each output token is an effect of its own, else only the first and the last are.
    """

    name: str  # as /api/ps will show a copy that this call loads
    weights: Weights
    want: Want = Want.ANSWER
    prompt: tuple[int, ...] = ()
    tokens_per_item: int = 1
    answer: tuple[int, ...] = ()  # enters the prompt cache when the call ends
    output_tokens: int = 0
    num_ctx: int | None = None
    keep_alive_s: float | None = None  # FOREVER_S pins
    every_token: bool = True
    tokens: int = 0  # of the prompt, where its items are not all of it; 0: they are

    @property
    def prompt_tokens(self) -> int:
        return self.tokens or len(self.prompt) * self.tokens_per_item


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a call spent where, for the durations in its answer."""

    load_s: float  # from arrival to the copy being ready: scheduler queue included, as Ollama counts it
    slot_wait_s: float
    prefill_s: float
    decode_s: float
    cached_tokens: int

    @property
    def total_s(self) -> float:
        return self.load_s + self.slot_wait_s + self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Busy:
    """The load queue was full: 503."""

    call: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A LOAD or UNLOAD call is done."""

    call: int
    at_s: float
    load_s: float


@dataclass(frozen=True, slots=True)
class Began:
    """A call got its slot; nothing goes out before its first Token."""

    call: int
    at_s: float
    running: int  # calls in slots of this copy, this one included


@dataclass(frozen=True, slots=True)
class Token:
    call: int
    at_s: float
    count: int  # output tokens so far


@dataclass(frozen=True, slots=True)
class Ended:
    call: int
    at_s: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class Died:
    """The runner died under the call; `count` tokens had gone out."""

    call: int
    at_s: float
    count: int


class Event(StrEnum):
    LOAD_STARTED = "load_started"
    LOAD_FINISHED = "load_finished"
    LOAD_ABORTED = "load_aborted"
    EVICTED = "evicted"  # to make room
    RELOADED = "reloaded"  # another num_ctx
    EXPIRED = "expired"
    DIED = "died"


@dataclass(frozen=True, slots=True)
class CopyEvent:
    event: Event
    blob: str
    name: str
    at_s: float


Effect = Busy | Ready | Began | Token | Ended | Died | CopyEvent
