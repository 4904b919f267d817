"""Every setting, its default and what it does to whoever sets it. `docs/settings.md` is checked against this file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from router.fleet.node import NodeSpec
from router.settings.admin import AdminSettings
from router.settings.aliases import AliasSettings, aliases_from, name_or_object
from router.settings.discovery import DiscoverySettings
from router.settings.groups import (
    ClientSettings,
    CloudSettings,
    CorsSettings,
    GuardSettings,
    LimitSettings,
    LineSettings,
    LogSettings,
    MetricsSettings,
    PlacementSettings,
    ProbeSettings,
    RetrySettings,
    ShutdownSettings,
    TimeoutSettings,
    TlsSettings,
)
from router.settings.nodes import NodeSettings, node_spec
from router.settings.store import StoreSettings
from router.settings.teams import AuthSettings, TeamSettings, access_from, check_names
from router.settings.tracing import TracingSettings
from router.settings.values import Address, SaidWrong, Workers, comma_list, host_port


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
    listen: Address = Field(
        default="0.0.0.0:11435",
        description="Where clients connect; beside Ollama's own 11434. `*:11435` is every address, IPv4 and IPv6.",
    )
    tls: TlsSettings = TlsSettings()
    workers: Workers = Field(
        default=1,
        description="Router processes on this machine that listen on one port and share one store, or `auto`: one for "
        "each core that the process may use.",
    )
    metrics_listen: Address = Field(
        default="0.0.0.0:9464",
        description="Where /metrics, /livez, /readyz and /healthz are served; nothing there changes anything.",
    )
    admin: AdminSettings = AdminSettings()
    store: StoreSettings = StoreSettings()
    nodes: Annotated[tuple[NodeSettings, ...], NoDecode] = Field(
        default=(),
        description="The Ollama servers: URLs, or objects with more said. In the environment a comma list or JSON.",
        json_schema_extra=_url_or_object,
    )
    discovery: DiscoverySettings = DiscoverySettings()
    aliases: dict[str, AliasSettings] = Field(
        default_factory=dict,
        description="Names that clients may use for models of the nodes, such as gpt-4: qwen3:8b, or objects with more "
        "said. Answers carry the client's name.",
        json_schema_extra=name_or_object,
    )
    auth: AuthSettings = AuthSettings()
    teams: dict[str, TeamSettings] = Field(
        default_factory=dict,
        description="Who calls, by name: keys, and what they may do. Calls without a key are the team default, which "
        "may be named here as well.",
    )
    line: LineSettings = LineSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    client: ClientSettings = ClientSettings()
    retry: RetrySettings = RetrySettings()
    probe: ProbeSettings = ProbeSettings()
    guard: GuardSettings = GuardSettings()
    cloud: CloudSettings = CloudSettings()
    placement: PlacementSettings = PlacementSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    cors: CorsSettings = CorsSettings()
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
        return comma_list(value)

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
    def _lead_somewhere(cls, aliases: dict[str, AliasSettings]) -> dict[str, AliasSettings]:
        aliases_from(aliases)
        return aliases

    @field_validator("teams", mode="before")
    @classmethod
    def _are_named(cls, value: Any) -> Any:
        """Before pydantic's own check, whose message repeats what was given: it may be a key."""
        if not isinstance(value, Mapping):
            raise ValueError("should be teams by name, such as {research: {...}}")  # noqa: TRY004 - pydantic's kind
        return value

    @field_validator("teams")
    @classmethod
    def _have_keys_of_their_own(cls, teams: dict[str, TeamSettings]) -> dict[str, TeamSettings]:
        check_names(teams)
        access_from(AuthSettings(), teams)
        return teams

    @model_validator(mode="after")
    def _somebody_may_call(self) -> Self:
        has_keys = self.auth.keys_file is not None or any(team.keys_sha256 for team in self.teams.values())
        if self.auth.required and not has_keys:
            raise ValueError(
                "auth.required is true and no team has a key, so nobody could call: give auth.keys_file or "
                "teams.<name>.keys_sha256"
            )
        return self

    @model_validator(mode="after")
    def _prefers_nodes_that_exist(self) -> Self:
        names = [node.name for node in self.nodes]
        for index, model in enumerate(self.placement.models if names else ()):
            for place, name in enumerate(model.nodes):
                if name not in names:
                    near = difflib.get_close_matches(name, names, n=1)
                    meant = f"; did you mean {near[0]}?" if near else ""
                    steps = ("placement", "models", index, "nodes", place)
                    raise SaidWrong(steps, f"no node is called {name!r}{meant}")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        used: dict[str, str] = {}
        addresses = {"listen": self.listen, "metrics_listen": self.metrics_listen, "admin.listen": self.admin.listen}
        for name, address in addresses.items():
            if address in used and host_port(address)[1] != 0:
                raise ValueError(f"{used[address]} and {name} are both {address}: give them different ports")
            used[address] = name
        return self


def node_specs(settings: Settings) -> tuple[NodeSpec, ...]:
    return tuple(node_spec(node) for node in settings.nodes)
