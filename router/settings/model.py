"""Every setting, its default and what it does to whoever sets it. `docs/settings.md` is checked against this file."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from router.fleet.node import NodeSpec
from router.policy.alias import AliasError, aliases_of
from router.policy.placement import Mode
from router.settings.nodes import Group, NodeSettings, node_spec
from router.settings.values import Address, Duration, ModelKey, Seconds, SecondsOrZero, host_port


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class NumCtxGuard(StrEnum):
    PROTECT = "protect"
    PASS = "pass"  # noqa: S105 - lets through, no password


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
        description="Open client connections; beyond it they get a 503. The process needs as many file descriptors.",
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
        description="A context other than the loaded one makes Ollama reload the model under everybody. protect: a "
        "smaller one is left out, a larger one refused; pass: the node decides.",
    )
    keep_alive_max: Duration = Field(
        default=1800.0,
        description="The longest keep_alive (seconds, or 30m) that reaches a node; longer ones are clamped, so that no "
        "client holds memory for ever.",
    )


class PlacementSettings(Group):
    mode: Literal[Mode.ON_DEMAND, Mode.OBSERVE] = Field(
        default=Mode.ON_DEMAND,
        description="on_demand: the router loads the models that calls wait for. observe: it never touches nodes, and "
        "a model that is loaded nowhere is refused with 503.",
    )


class LimitSettings(Group):
    """Memory that requests and answers may take."""

    body_bytes: int = Field(
        default=67108864, ge=1024, description="Largest request body; beyond it 413. 64 MiB hold several images."
    )
    buffered_bytes: int = Field(
        default=536870912,
        ge=1024,
        description="Bodies and unsent answers of all calls together. Above it new bodies get 503 and streams pause.",
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


class MetricsSettings(Group):
    models_max: int = Field(
        default=200,
        ge=1,
        description="Model names that get series of their own; further ones share the label 'other'. Names that the "
        "configuration mentions are not counted.",
    )


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


def _url_or_object(schema: dict[str, Any]) -> None:
    schema["items"] = {"anyOf": [{"type": "string"}, schema["items"]]}


class Settings(BaseSettings):
    """Constructing one reads nothing: `load_settings` brings command line, environment and file together."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="OLLAMA_ROUTER_",
        env_nested_delimiter="__",
        title="ollama-router",
    )

    pool: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9._-]{1,63}$",
        description="The pool's name; it stands in the Via header, by which a router that is its own node is noticed.",
    )
    listen: Address = Field(default="0.0.0.0:11435", description="Where clients connect; beside Ollama's own 11434.")
    metrics_listen: Address = Field(
        default="0.0.0.0:9464",
        description="Where /metrics, /livez, /readyz and /healthz are served; nothing there changes anything.",
    )
    nodes: Annotated[tuple[NodeSettings, ...], NoDecode] = Field(
        default=(),
        description="The Ollama servers: URLs, or objects with more said. In the environment a comma list or JSON.",
        json_schema_extra=_url_or_object,
    )
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="Names that clients may use for models of the nodes, such as gpt-4: qwen3:8b. Answers carry the "
        "client's name.",
    )
    line: LineSettings = LineSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    client: ClientSettings = ClientSettings()
    retry: RetrySettings = RetrySettings()
    probe: ProbeSettings = ProbeSettings()
    guard: GuardSettings = GuardSettings()
    placement: PlacementSettings = PlacementSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    shutdown: ShutdownSettings = ShutdownSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("nodes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"should be a comma list of URLs or JSON: {error}") from None
        return [url for url in map(str.strip, value.split(",")) if url]

    @field_validator("nodes")
    @classmethod
    def _distinct(cls, nodes: tuple[NodeSettings, ...]) -> tuple[NodeSettings, ...]:
        for what in ("url", "name"):
            seen: set[str] = set()
            for node in nodes:
                value = getattr(node, what)
                if value in seen:
                    raise ValueError(f"two nodes have the {what} {value}")
                seen.add(value)
        return nodes

    @field_validator("aliases")
    @classmethod
    def _resolved(cls, aliases: dict[str, str]) -> dict[str, str]:
        """By model key, each with the model it leads to in the end."""
        try:
            return dict(aliases_of(aliases).targets)
        except AliasError as error:
            raise ValueError(str(error).removeprefix("aliases.")) from None

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.listen == self.metrics_listen and host_port(self.listen)[1] != 0:
            raise ValueError(f"listen and metrics_listen are both {self.listen}: give them different ports")
        return self


def node_specs(settings: Settings) -> tuple[NodeSpec, ...]:
    return tuple(node_spec(node) for node in settings.nodes)
