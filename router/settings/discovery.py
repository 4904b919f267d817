"""Where nodes come from beside the list: what an operator may say about it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from router.settings.nodes import Group
from router.settings.values import OLLAMA_PORT, comma_list, node_address

ALL_NAMESPACES = "*"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")  # RFC 1123, as Kubernetes wants namespaces and Services
_PORT_NAME = re.compile(r"([a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?)?\Z")
# Each term of a selector: key, key=value, key!=value, key in (a,b), !key. The API server knows the rest.
_SELECTOR = re.compile(r"[A-Za-z0-9!][A-Za-z0-9./_=!, ()-]*\Z")


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(f"{text!r} is no name in Kubernetes: small letters, digits and - only")
    return text


def _namespace(text: str) -> str:
    return text if text == ALL_NAMESPACES else _name(text)


def _selector(text: str) -> str:
    if text and not _SELECTOR.match(text):
        raise ValueError(f"{text!r} is no label selector, such as app.kubernetes.io/name=ollama")
    return text


def _port_name(text: str) -> str:
    if not _PORT_NAME.match(text):
        raise ValueError(f"{text!r} is no port's name: small letters, digits and -, at most 15")
    return text


class DnsSettings(Group):
    """Headless Services, without any rights in Kubernetes: names whose every address is a node."""

    enabled: bool = Field(default=False, description="Whether the names in hosts are nodes' addresses.")
    hosts: Annotated[tuple[Annotated[str, AfterValidator(node_address)], ...], NoDecode] = Field(
        default=(),
        description="HOST or HOST:PORT (11434); every address of each is a node, looked up every 5 s. Such as "
        "ollama-headless.llm.svc.cluster.local. In the environment a comma list or JSON.",
    )

    @field_validator("hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return comma_list(value)

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if self.enabled and not self.hosts:
            raise ValueError("enabled is true and hosts names nothing: name a headless Service, or switch it off")
        return self


class KubernetesSettings(Group):
    """Ollama's pods behind Services, as EndpointSlices tell them."""

    enabled: bool = Field(default=False, description="Whether the Kubernetes API is asked for nodes.")
    namespaces: Annotated[tuple[Annotated[str, AfterValidator(_namespace)], ...], NoDecode] = Field(
        default=(),
        description="Where to look. Empty: the router's own; * alone: everywhere, which takes a ClusterRole. With "
        "several or * nodes are named namespace/pod.",
    )
    label_selector: Annotated[str, AfterValidator(_selector)] = Field(
        default="app.kubernetes.io/name=ollama",
        description="Which Services, by their labels. The default is what the common chart of Ollama gives its own.",
    )
    service_names: Annotated[tuple[Annotated[str, AfterValidator(_name)], ...], NoDecode] = Field(
        default=(), description="Which Services, by name, whatever their labels: instead of label_selector."
    )
    port_name: Annotated[str, AfterValidator(_port_name)] = Field(
        default="http", description="The Service's port, by name; where none has it, port decides."
    )
    port: int = Field(
        default=OLLAMA_PORT, ge=1, le=65535, description="The pod's port, where the Service has none of that name."
    )

    @field_validator("namespaces", "service_names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return comma_list(value)

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if ALL_NAMESPACES in self.namespaces and len(self.namespaces) > 1:
            raise ValueError("namespaces names * and others: * is everywhere already")
        if self.enabled and not self.label_selector and not self.service_names:
            raise ValueError("label_selector and service_names are both empty: every Service would be taken for Ollama")
        return self


class DiscoverySettings(Group):
    """Beside the list in nodes, several at once; the same URL from two sources is one node."""

    dns: DnsSettings = DnsSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

    @property
    def is_on(self) -> bool:
        return self.dns.enabled or self.kubernetes.enabled
