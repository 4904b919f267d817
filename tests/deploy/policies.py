"""Which flows NetworkPolicies let through, as Kubernetes defines it. Pure: on the test cluster nobody enforces them.

https://kubernetes.io/docs/concepts/services-networking/network-policies/: policies add up; a pod that none selects in a
direction is open in it; a flow needs both of its ends. A rule without peers means everybody, without ports every port.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.render import Object, of_kind, pod_of, workloads

INGRESS, EGRESS = "Ingress", "Egress"
PEERS = {INGRESS: "from", EGRESS: "to"}


@dataclass(frozen=True)
class Place:
    """A pod, or with no namespace a machine outside. `ports` are its containers' by name."""

    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ports: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Network:
    policies: tuple[Object, ...]
    namespaces: Mapping[str, Mapping[str, str]]  # their labels, by name

    def lets(self, source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
        is_sent = self._is_open(EGRESS, source, target, target, port, protocol)
        return is_sent and self._is_open(INGRESS, target, source, target, port, protocol)

    def _is_open(self, way: str, selected: Place, peer: Place, target: Place, port: int, protocol: str) -> bool:
        """`selected` is the end whose policies are asked, `peer` the other one; ports are always the target's."""
        bound = [policy for policy in self.policies if _selects(policy, selected) and way in _types(policy)]
        if not bound:
            return True
        return any(
            _has_port(rule, target, port, protocol) and self._has_peer(rule, way, policy, peer)
            for policy in bound
            for rule in policy["spec"].get(way.lower()) or []
        )

    def _has_peer(self, rule: Object, way: str, policy: Object, peer: Place) -> bool:
        peers = rule.get(PEERS[way])
        home = policy["metadata"]["namespace"]
        return not peers or any(self._is_peer(one, home, peer) for one in peers)

    def _is_peer(self, one: Object, home: str, peer: Place) -> bool:
        if "ipBlock" in one:
            return _in_block(peer.address, one["ipBlock"])
        if not peer.namespace:
            return False
        if "namespaceSelector" in one:
            is_near = _matches(one["namespaceSelector"], self.namespaces[peer.namespace])
        else:
            is_near = peer.namespace == home
        return is_near and _matches(one.get("podSelector") or {}, peer.labels)


def _selects(policy: Object, place: Place) -> bool:
    is_here = policy["metadata"]["namespace"] == place.namespace
    return is_here and _matches(policy["spec"].get("podSelector") or {}, place.labels)


def _types(policy: Object) -> Iterable[str]:
    spec = policy["spec"]
    implied = [INGRESS, *([EGRESS] if "egress" in spec else [])]
    types: list[str] = spec.get("policyTypes") or implied
    return types


def _has_port(rule: Object, target: Place, port: int, protocol: str) -> bool:
    return not rule.get("ports") or any(_is_port(one, target, port, protocol) for one in rule["ports"])


def _is_port(one: Object, target: Place, port: int, protocol: str) -> bool:
    if one.get("protocol", "TCP") != protocol:
        return False
    said: Any = one.get("port")
    if said is None:
        return True
    first = target.ports.get(said, -1) if isinstance(said, str) else said
    return bool(first <= port <= one.get("endPort", first))


def _in_block(address: str, block: Object) -> bool:
    inside = ip_address(address) in ip_network(block["cidr"])
    return inside and not any(ip_address(address) in ip_network(one) for one in block.get("except") or [])


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """An empty selector is everybody."""
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return equal and all(_meets(term, labels) for term in selector.get("matchExpressions") or [])


def _meets(term: Object, labels: Mapping[str, str]) -> bool:
    key, values = term["key"], term.get("values") or []
    known = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return known[term["operator"]]


def network_of(objects: list[Object], namespaces: Iterable[str], **labels: Mapping[str, str]) -> Network:
    """Each namespace has its own name for a label, as Kubernetes gives it, beside those said here."""
    named = {name: {"kubernetes.io/metadata.name": name, **labels.get(name, {})} for name in namespaces}
    return Network(tuple(of_kind(objects, "NetworkPolicy")), named)


def places_of(objects: list[Object]) -> dict[str, Place]:
    """A pod of each workload, by component."""
    found = {}
    for number, one in enumerate(workloads(objects)):
        meta = one["metadata"] if one["kind"] == "Pod" else one["spec"]["template"]["metadata"]
        ports = {
            port["name"]: port["containerPort"]
            for container in pod_of(one)["containers"]
            for port in container.get("ports", [])
        }
        labels = meta["labels"]
        where = Place(f"10.244.1.{number + 1}", one["metadata"]["namespace"], labels, ports)
        found[labels["app.kubernetes.io/component"]] = where
    return found
