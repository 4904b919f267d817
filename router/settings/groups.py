"""The settings that belong together, group by group: each with its default and what it does to whoever sets it."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from router.policy.guard import KeepAliveGuard, NumCtxGuard
from router.policy.placement import Mode
from router.settings.nodes import Group
from router.settings.values import Duration, ModelKey, SaidWrong, Seconds, SecondsOrZero
from router.wire.names import is_cloud_key
from router.wire.origins import origins_of


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LineModelSettings(Group):
    max_waiting: int | None = Field(
        default=None, ge=0, description="Calls that may wait for this model; beyond it they get a 503."
    )
    max_wait_s: Seconds | None = Field(
        default=None, description="How long a call may stand in line for this model before its 503."
    )


class LineSettings(Group):
    """The lines in which calls wait for a slot, one for each model."""

    max_waiting_per_model: int = Field(
        default=256,
        ge=0,
        description="Calls that may wait for one model; beyond it they get a 503 with an honest Retry-After. A waiting "
        "call holds its body in memory; 256 is half of Ollama's own OLLAMA_MAX_QUEUE.",
    )
    max_wait_s: Seconds = Field(
        default=300.0,
        description="How long a call may stand in line before its 503. As long as the slowest load Ollama permits.",
    )
    models: dict[ModelKey, LineModelSettings] = Field(
        default_factory=dict, description="Models whose lines have other limits, by name."
    )
    comment_after_s: SecondsOrZero = Field(
        default=8.0,
        description="A stream of a /v1 route without a first byte by then gets its 200 and comments about its place, "
        "so that no balancer takes it for dead. Refusals before that keep their status. 0 switches comments off.",
    )
    comment_every_s: Seconds = Field(
        default=12.0, description="Between two comments: well below the 60 s after which common balancers give up."
    )


class TimeoutSettings(Group):
    """How long a call may take. Clients that say a shorter time get theirs."""

    connect_s: Seconds = Field(
        default=3.0, description="For connecting to a node; then another node is asked. 3 s survive one lost packet."
    )
    first_byte_s: Seconds = Field(
        default=590.0,
        description="From arrival to the first byte of a stream, line and load included; then 504. The official SDKs "
        "give up at 600.",
    )
    plain_s: Seconds = Field(
        default=3600.0, description="For the whole answer of a call that does not stream, at the node; then 504."
    )
    idle_s: Seconds = Field(
        default=300.0,
        description="A stream silent for so long is ended as truncated. Long prompts are silent only before the first "
        "byte.",
    )


class ClientSettings(Group):
    """What a client's connection may cost."""

    header_s: Seconds = Field(default=10.0, description="For a request's head to arrive; then the connection closes.")
    body_s: Seconds = Field(default=60.0, description="For a request's body to arrive; then 400. A photo over a phone.")
    keep_alive_s: Seconds = Field(
        default=650.0,
        description="An idle connection stays open for so long: longer than the 600 s of common load balancers, so "
        "that they never send into a closing one.",
    )
    header_bytes: int = Field(
        default=1048576, ge=8192, description="Largest request head. Ollama's own limit is the 1 MiB of Go's server."
    )
    connections: int = Field(
        default=20000,
        ge=1,
        description="Open client connections; beyond it they get a 503. Fewer where the process may not open twice "
        "as many files: the log says how many.",
    )
    client_stall_s: Seconds = Field(
        default=10.0,
        description="A client that takes less than 1 KiB of its waiting answer in this time is cut off, so that it "
        "does not hold a slot.",
    )


class RetrySettings(Group):
    """Another node is tried only before the first byte of an answer."""

    attempts: int = Field(
        default=3,
        ge=1,
        le=3,
        description="Tries of one call in all; 1 switches retries off. More multiply a bad prompt.",
    )
    budget: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Retries as a share of the running calls, never fewer than 5 at once: a broken fleet must not get "
        "three times its load.",
    )


class ProbeSettings(Group):
    """How the router looks at nodes; no call ever waits for a probe."""

    interval_s: Seconds = Field(
        default=2.0,
        description="Between two looks at a node. 2 s is half of the shortest load seen; longer means older facts.",
    )
    timeout_s: Seconds = Field(
        default=10.0, description="For one probe. A node that loads a model answers late and is not down."
    )
    concurrency: int = Field(
        default=64, ge=1, description="Probes at the same time; bounds the sockets that a fleet of dead nodes holds."
    )


class GuardSettings(Group):
    """What a client may change about a model that others share."""

    num_ctx: NumCtxGuard = Field(
        default=NumCtxGuard.PROTECT,
        description="A context other than the loaded one makes Ollama reload the model under everybody, as do "
        "num_batch, num_gpu, main_gpu, use_mmap, num_thread, draft_num_predict and shift. protect: these and a smaller "
        "context are taken out of the call, a larger one is refused; reject: any of them is refused; pass: the node "
        "decides.",
    )
    keep_alive: KeepAliveGuard = Field(
        default=KeepAliveGuard.CLAMP,
        description="A keep_alive moves the end of a model that all share. clamp: longer than keep_alive_max is cut "
        "down to it, shorter than a minute left out; reject: any is refused; pass: as sent. A call that only unloads "
        "is answered and never obeyed.",
    )
    keep_alive_max: Duration = Field(
        default=1800.0,
        description="The longest keep_alive (seconds, or 30m) that reaches a node with clamp, so that no client holds "
        "memory for ever.",
    )


class CloudSettings(Group):
    """Models that Ollama's own cloud runs. Nodes list them like others; each spends the account of its node's owner."""

    enabled: bool = Field(
        default=False, description="Without it calls for cloud models (:cloud, -cloud) are refused with 403."
    )
    slots: int = Field(
        default=8, ge=1, description="Calls of one cloud model that one node passes on at once; further ones wait."
    )


class PlacementModelSettings(Group):
    """Copies that are to be in memory whether anybody calls or not."""

    name: ModelKey = Field(description="A model of the nodes; no alias.")
    copies: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="On so many nodes at least it is kept in memory. They come where memory is free of what calls use, "
        "and lines may still take it, that of other models first.",
    )
    pin: bool = Field(
        default=False,
        description="true: these copies take the memory of models that are not pinned, and no load of the router ever "
        "takes theirs. Say vram_gib of the nodes, or only Ollama knows what fits beside them.",
    )
    nodes: tuple[str, ...] = Field(
        default=(), description="Names of the nodes that should have them, best first; others only where these cannot."
    )

    @field_validator("name")
    @classmethod
    def _takes_memory(cls, name: str) -> str:
        if is_cloud_key(name):
            raise ValueError("a cloud model is never loaded: it has no copies")
        return name


class PlacementSettings(Group):
    mode: Mode = Field(
        default=Mode.ON_DEMAND,
        description="on_demand: the router loads the models that calls wait for. observe: it never touches nodes, and "
        "a model that is loaded nowhere is refused with 503. managed: as on_demand, and it keeps the copies of "
        "placement.models in memory.",
    )
    models: tuple[PlacementModelSettings, ...] = Field(
        default=(), description="Models that have copies in memory before anybody calls; with placement.mode: managed."
    )

    @field_validator("models")
    @classmethod
    def _once_each(cls, models: tuple[PlacementModelSettings, ...]) -> tuple[PlacementModelSettings, ...]:
        for index, model in enumerate(models):
            if model.name in (other.name for other in models[:index]):
                raise SaidWrong((index, "name"), f"{model.name} is declared twice")
        return models


class LimitSettings(Group):
    """Memory that requests and answers may take."""

    body_bytes: int = Field(
        default=67108864, ge=1024, description="Largest request body; beyond it 413. 64 MiB hold several images."
    )
    buffered_bytes: int = Field(
        default=536870912,
        ge=1024,
        description="Bodies and unsent answers of all calls together. Above it new bodies and lists get 503 and "
        "streams pause.",
    )
    stream_buffer_bytes: int = Field(
        default=4194304,
        ge=1024,
        description="Unsent bytes of one answer before the router stops reading from the node for a while.",
    )


class LogSettings(Group):
    format: LogFormat = Field(
        default=LogFormat.JSON, description="json: one object a line, for machines. text: for eyes."
    )
    level: LogLevel = Field(
        default=LogLevel.INFO, description="debug, info, warning or error. Above info there is no line per call."
    )


class TlsSettings(Group):
    """A certificate for the clients' port. Both files, or none: then clients speak plain HTTP."""

    cert_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the certificate that clients are shown, and its chain. Its content is read again "
        "when it changes: new connections get the new one.",
    )
    key_file: str | None = Field(default=None, min_length=1, description="PEM file with its key, without a password.")

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both, or none")
        return self


class MetricsSettings(Group):
    models_max: int = Field(
        default=200,
        ge=1,
        description="Model names that get series of their own; further ones share the label 'other'. Names that the "
        "configuration mentions are not counted.",
    )
    teams: bool = Field(
        default=False,
        description="true: requests_total, tokens_total and rejections_total tell teams apart, by the label team. Each "
        "of their series is then one for each team that has it.",
    )
    teams_max: int = Field(
        default=200, ge=1, description="Teams that get series of their own; further ones share the label 'other'."
    )


class CorsSettings(Group):
    """Which pages may use this router from a browser."""

    origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins of web pages that may call, such as https://chat.example.com; one * in each stands for "
        "anything. Ollama's own list (localhost, app://, vscode-webview:// and the like) is always allowed; a page of "
        "any other origin gets 403.",
    )

    @field_validator("origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return comma_list(value)

    @field_validator("origins")
    @classmethod
    def _possible(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        origins_of(origins)
        return origins


class ShutdownSettings(Group):
    """What SIGTERM does: not ready at once, but still serving; then no new calls; then the end."""

    drain_delay_s: SecondsOrZero = Field(
        default=5.0, description="New calls are still served for so long, until every load balancer has noticed."
    )
    stream_drain_s: SecondsOrZero = Field(
        default=300.0,
        description="Then waiting and streaming calls have so long to end. A pod needs both together and 15 s more as "
        "terminationGracePeriodSeconds.",
    )


def comma_list(value: Any) -> Any:
    """Of an environment variable, which holds a text: a comma list, or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"should be a comma list or JSON: {error}") from None
    return [item for item in map(str.strip, value.split(",")) if item]
