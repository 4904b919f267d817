"""EndpointSlices and pods, as the API server's JSON tells them, and the nodes that they name. Pure.

Read leniently: neither a field that a later API adds nor one that is missing may end discovery. Sources:
https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/ and discovery/v1 types.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from router.discovery.said import NOTHING, Said, said_by, slots
from router.fleet.node import NodeSpec, Presence

Object = Mapping[str, Any]  # of the API, as its JSON says it

SERVICE_NAME = "kubernetes.io/service-name"
NUM_PARALLEL = "OLLAMA_NUM_PARALLEL"
# As the vendors' device plugins name a card, and one that several pods share; a MIG slice carries its profile's name.
GPUS = frozenset({"nvidia.com/gpu", "nvidia.com/gpu.shared", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe"})
MIG = "nvidia.com/mig-"
GPU_DIGITS = 3  # of their number; more than any machine has is a slip
# Of two words about one pod: a pod that leaves never stays, and what is ready somewhere serves.
_RANK = {Presence.LEAVING: 0, Presence.READY: 1, Presence.NOT_READY: 2}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which port of a slice is Ollama's, and how its nodes are named."""

    port_name: str
    port: int
    is_qualified: bool = False  # names carry the namespace


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`uid` and `pod` are empty where no pod stands behind it."""

    host: str
    port: int
    presence: Presence
    namespace: str = ""
    pod: str = ""
    uid: str = ""
    machine: str = ""
    zone: str = ""
    said: Said = NOTHING  # by the Service's labels, which its slices carry as well

    @property
    def identity(self) -> object:
        return self.uid or (self.host, self.port)


@dataclass(frozen=True, slots=True)
class Slice:
    endpoints: tuple[Endpoint, ...] = ()
    problems: tuple[str, ...] = ()  # what somebody has to mend


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod says beyond its endpoint. Its own annotations come before OLLAMA_NUM_PARALLEL of its containers."""

    uid: str
    said: Said
    problems: tuple[str, ...] = ()
    gpus: int | None = None


def read_slice(item: Object, wanted: Wanted) -> Slice:
    """FQDN slices name no addresses; what terminates and serves nothing any more is gone."""
    if item.get("addressType") not in ("IPv4", "IPv6"):
        return Slice()
    meta = _mapping(item.get("metadata"))
    labels = _texts(meta.get("labels"))
    namespace, service = _text(meta.get("namespace")), labels.get(SERVICE_NAME, _text(meta.get("name")))
    port = _port_of(item, wanted)
    told = tuple(_mappings(item.get("endpoints")))
    if port is None:
        lacks = f"Service {namespace}/{service} has no port named {wanted.port_name!r} and none on {wanted.port}"
        return Slice(problems=(lacks,) if told else ())
    said, problems = said_by(labels)
    found = (_endpoint(one, port, namespace, said) for one in told)
    where = f"Service {namespace}/{service}, label "
    return Slice(tuple(one for one in found if one is not None), tuple(where + problem for problem in problems))


def _endpoint(told: Object, port: int, namespace: str, said: Said) -> Endpoint | None:
    presence = _presence(_mapping(told.get("conditions")))
    addresses = told.get("addresses")
    host = _text(addresses[0]) if isinstance(addresses, list) and addresses else ""
    if presence is None or not host:
        return None
    target = _mapping(told.get("targetRef"))
    is_pod = target.get("kind") == "Pod"
    return Endpoint(
        host=host,
        port=port,
        presence=presence,
        namespace=_text(target.get("namespace")) or namespace,
        pod=_text(target.get("name")) if is_pod else "",
        uid=_text(target.get("uid")) if is_pod else "",
        machine=_text(told.get("nodeName")),
        zone=_text(told.get("zone")),
        said=said,
    )


def _presence(conditions: Object) -> Presence | None:
    """Absent `ready` means ready, absent `serving` is what `ready` says; None for what is over."""
    ready = conditions.get("ready") is not False
    serving = ready if conditions.get("serving") is None else conditions["serving"] is True
    if conditions.get("terminating") is True:
        return Presence.LEAVING if serving else None
    return Presence.READY if ready else Presence.NOT_READY


def _port_of(item: Object, wanted: Wanted) -> int | None:
    """By name, else by number, else the only one there is."""
    ports = [one for one in _mappings(item.get("ports")) if one.get("protocol", "TCP") == "TCP"]
    ports = [one for one in ports if isinstance(one.get("port"), int)]
    named = [one["port"] for one in ports if (one.get("name") or "") == wanted.port_name]
    numbered = [one["port"] for one in ports if one["port"] == wanted.port]
    only = [one["port"] for one in ports if len(ports) == 1]
    return next(iter([*named, *numbered, *only]), None)


def read_pod(item: Object) -> Pod:
    meta = _mapping(item.get("metadata"))
    said, problems = said_by(_texts(meta.get("annotations")))
    where = f"pod {_text(meta.get('namespace'))}/{_text(meta.get('name'))}, annotation "
    spec = _mapping(item.get("spec"))
    by_environment = Said(slots=next(_parallel(spec), None))
    told = tuple(where + problem for problem in problems)
    return Pod(_text(meta.get("uid")), said.over(by_environment), told, sum(_gpus(spec)) or None)


def _parallel(spec: Object) -> Iterator[int]:
    """0 means Ollama's default, as if it were not set; a reference to something else cannot be read from here."""
    for container in _mappings(spec.get("containers")):
        for variable in _mappings(container.get("env")):
            count = slots(_text(variable.get("value"))) if variable.get("name") == NUM_PARALLEL else None
            if count is not None:
                yield count


def _gpus(spec: Object) -> Iterator[int]:
    """By limits, which are requests too. Without one a pod may have all GPUs of its machine, or none."""
    for container in _mappings(spec.get("containers")):
        for resource, quantity in _mapping(_mapping(container.get("resources")).get("limits")).items():
            text = str(quantity)
            is_gpu = resource in GPUS or str(resource).startswith(MIG)
            if is_gpu and text.isdecimal() and len(text) <= GPU_DIGITS:
                yield int(text)


def nodes_of(slices: Iterable[Slice], pods: Mapping[str, Pod], wanted: Wanted) -> tuple[NodeSpec, ...]:
    """One node for each pod, however many slices and families it stands in, in order of names. `pods` is by uid."""
    chosen: dict[object, Endpoint] = {}
    for one in slices:
        for endpoint in one.endpoints:
            known = chosen.get(endpoint.identity)
            if known is None or _order(endpoint) < _order(known):
                chosen[endpoint.identity] = endpoint
    nodes = (_node(endpoint, pods.get(endpoint.uid), wanted) for endpoint in chosen.values())
    return tuple(sorted(nodes, key=lambda node: (node.name, node.url)))


def _order(endpoint: Endpoint) -> tuple[int, bool, str, int]:
    """IPv4 before IPv6; the rest only so that every replica chooses alike."""
    return _RANK[endpoint.presence], ":" in endpoint.host, endpoint.host, endpoint.port


def _node(endpoint: Endpoint, pod: Pod | None, wanted: Wanted) -> NodeSpec:
    said = pod.said.over(endpoint.said) if pod is not None else endpoint.said
    drains = said.drains is True and endpoint.presence is Presence.READY
    node = NodeSpec(
        name=endpoint.pod,
        host=endpoint.host,
        port=endpoint.port,
        uid=endpoint.uid,
        slots=said.slots,
        vram_bytes=said.vram_bytes,
        weight=said.weight or 1.0,
        presence=Presence.LEAVING if drains else endpoint.presence,
        machine=endpoint.machine,
        zone=endpoint.zone,
        gpus=pod.gpus if pod is not None else None,
    )
    return node.named(_name(endpoint, node.authority, wanted))


def _name(endpoint: Endpoint, authority: str, wanted: Wanted) -> str:
    if not endpoint.pod:
        return authority
    return f"{endpoint.namespace}/{endpoint.pod}" if wanted.is_qualified else endpoint.pod


# --- JSON, leniently


def _mapping(value: object) -> Object:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> Iterator[Object]:
    return (one for one in value if isinstance(one, Mapping)) if isinstance(value, list) else iter(())


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> dict[str, str]:
    return {key: text for key, text in _mapping(value).items() if isinstance(text, str)}
