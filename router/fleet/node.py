"""Nodes, what lies on their disks and what sits in their memory. Names of models here are keys (`wire.names`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType


class Health(StrEnum):
    """Label of `node_state`. UNREAD is a node that has not answered once since this process knows of it."""

    UNREAD = "unread"
    HEALTHY = "healthy"
    DEGRADED = "degraded"  # some probes fail; still served
    DRAINING = "draining"
    DOWN = "down"


class Presence(StrEnum):
    """What whoever names a node says of it; a node of a list always stands ready."""

    READY = "ready"
    LEAVING = "leaving"  # finishes what it has: its pod terminates, or an annotation drains it
    NOT_READY = "not_ready"  # known, and served nothing, whatever it answers to probes


class CopyState(StrEnum):
    ON_DISK = "on_disk"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node as configuration or discovery names it. `name` is its stable identity everywhere."""

    name: str
    host: str
    port: int
    is_tls: bool = False
    uid: str = ""  # a pod's uid: another uid under the same name is another incarnation
    slots: int | None = None  # OLLAMA_NUM_PARALLEL, None where it is not declared
    model_slots: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # by model key
    backlog: int = 0  # calls that may wait at the node beyond its slots
    vram_bytes: int | None = None
    weight: float = 1.0
    presence: Presence = Presence.READY
    machine: str = ""  # the Kubernetes node that its pod runs on
    zone: str = ""
    gpus: int | None = None  # that its pod may use; None where nobody says so

    @property
    def authority(self) -> str:
        """Host and port as a URL and a Host header write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"

    def is_another_than(self, other: NodeSpec) -> bool:
        """Another server under the same name. A uid that only one of them knows says nothing."""
        return self.url != other.url or (bool(self.uid and other.uid) and self.uid != other.uid)

    def named(self, name: str) -> NodeSpec:
        return replace(self, name=name)

    def slots_of(self, keys: tuple[str, ...]) -> int:
        """Slots of a copy that serves these model keys; 1 where nothing is declared, Ollama's own default."""
        declared = [self.model_slots[key] for key in keys if key in self.model_slots]
        return max(declared, default=self.slots or 1)


@dataclass(frozen=True, slots=True)
class DiskModel:
    """A model that the node lists in `/api/tags`.

    `weights` is the blob of `/api/show`'s FROM line, or the digest until that is known: names with equal weights on a
    node share one copy. `listing` is the node's own JSON object for `/api/tags`, passed on as it came.
    """

    key: str
    name: str
    digest: str
    weights: str
    size_bytes: int = 0
    modified_at: str = ""
    family: str = ""
    is_cloud: bool = False
    context_max: int = 0  # the model's training context in tokens, 0 where unknown
    capabilities: frozenset[str] = frozenset()
    listing: str = "{}"


@dataclass(frozen=True, slots=True)
class Copy:
    """Weights in a node's memory, as last seen. `expires_at_s` is Unix time on the node's own clock."""

    weights: str
    state: CopyState
    keys: tuple[str, ...]  # every model key on this node that stands for these weights
    slots: int
    num_ctx: int = 0
    size_bytes: int = 0
    vram_bytes: int = 0
    expires_at_s: float = float("inf")
    listing: str = "{}"  # the node's own JSON object for /api/ps
    digest: str = ""  # of the manifest that was loaded, as /api/ps tells it
    named_ctx: int = 0  # `num_ctx` where a load of ours named it, 0 where it is the node's default as far as we know

    @property
    def is_spilled(self) -> bool:
        """Partly in CPU memory. A copy without any VRAM sits on a node without a GPU, which is no spill."""
        return 0 < self.vram_bytes < self.size_bytes


@dataclass(frozen=True, slots=True)
class Node:
    """All that is believed about one node."""

    spec: NodeSpec
    incarnation: int = 0
    health: Health = Health.UNREAD
    version: str = ""
    models: Mapping[str, DiskModel] = field(default_factory=lambda: MappingProxyType({}))  # by key
    copies: Mapping[str, Copy] = field(default_factory=lambda: MappingProxyType({}))  # by weights
    is_read: bool = False  # /api/tags was read at least once
    learnt: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # slots, by weights

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def begun_anew(self) -> Node:
        """With nothing in memory, and nothing learnt."""
        return replace(self, copies=MappingProxyType({}), learnt=MappingProxyType({}))

    def under(self, spec: NodeSpec) -> Node:
        """What was learnt counts while the same is said of it."""
        is_same = (
            replace(spec, presence=self.spec.presence, machine=self.spec.machine, zone=self.spec.zone) == self.spec
        )
        return replace(self, spec=spec, learnt=self.learnt if is_same else MappingProxyType({}))

    def keys_of(self, weights: str) -> tuple[str, ...]:
        """Every model key on its disk that stands for these weights, sorted."""
        return tuple(sorted(key for key, model in self.models.items() if model.weights == weights))
