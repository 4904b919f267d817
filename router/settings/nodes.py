"""What an operator may say about one node, and the fact it becomes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from router.fleet.node import NodeSpec
from router.settings.values import ModelKey, NodeUrl, host_port

GIB = 1024**3


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeModelSettings(Group):
    slots: int = Field(ge=1, description="Calls of this model that the node serves at once, where it differs.")


class NodeSettings(Group):
    """A node; its URL alone says the same as {url: URL}."""

    url: NodeUrl = Field(
        description="Where the node listens: http:// or https://, or HOST[:PORT] for http on Ollama's port 11434."
    )
    name: str = Field(
        default="",
        max_length=253,
        pattern=r"^[!-~]*$",
        description="Its name in metrics, logs and headers. Without one: host:port of its URL.",
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        description="OLLAMA_NUM_PARALLEL of the node: calls that a model serves at once. Too many wait inside the "
        "node until the router has noticed; too few leave it idle. Without it they are learned, from 1, Ollama's own "
        "default.",
    )
    models: dict[ModelKey, NodeModelSettings] = Field(
        default_factory=dict, description="Models whose slots differ from the node's, by name."
    )
    node_backlog: int = Field(
        default=0,
        ge=0,
        description="Calls that may wait at the node beyond its slots. 0 keeps the line fair; a few help very short "
        "calls such as embeddings.",
    )
    vram_gib: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Video memory of the node, so that a load goes where it fits. Without it the node counts as roomy.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="How fast it is beside other nodes: 2 gets twice as many calls as 1 where both are free. "
        "Models that are loaded nowhere go to the fastest node with room, or wait for it a while if it is about to "
        "end a load; a further copy on a slow node must be missed for longer.",
    )

    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the authorities that an https node's certificate is checked by, instead of the "
        "system's. Read again when it changes.",
    )
    headers_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with headers that every request to this node carries, one NAME: VALUE a line: credentials "
        "for an auth proxy. They replace the client's. Read again when it changes.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named(self) -> Self:
        # A frozen model: set as pydantic itself does, before anybody else has seen it.
        self.__dict__["name"] = self.name or self.url.partition("://")[2]
        if self.ca_file is not None and not self.url.startswith("https://"):
            raise ValueError(f"ca_file is for https, and {self.url} is not")
        return self


def node_spec(node: NodeSettings) -> NodeSpec:
    scheme, _, address = node.url.partition("://")
    host, port = host_port(address)
    return NodeSpec(
        name=node.name,
        host=host,
        port=port,
        is_tls=scheme == "https",
        slots=node.slots,
        model_slots=MappingProxyType({key: model.slots for key, model in node.models.items()}),
        backlog=node.node_backlog,
        vram_bytes=None if node.vram_gib is None else int(node.vram_gib * GIB),
        weight=node.weight,
    )
