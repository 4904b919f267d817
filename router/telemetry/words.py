"""What labels may say: closed sets, each in one place. What stands in none of them is the name of a node, a model, a
team or an alias, or a version.

Words of enums are taken from them; those of parts that do not know one another are said here, and every page that a
test reads is held against this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from router.errors import Outcome, Rejection
from router.fleet.breaker import Circuit
from router.fleet.node import Health
from router.policy.guard import Guarded
from router.policy.placement import Cause
from router.policy.retry import Failure
from router.policy.route import Passed
from router.policy.schedule import Affinity, Reason
from router.policy.troubles import Gone
from router.telemetry.families import FAMILIES
from router.wire.endpoints import ENDPOINTS
from router.wire.paths import LABELS, OTHER

Words = tuple[str, ...]

# Names and versions: `names` bounds models and teams, the configuration the others.
OPEN = frozenset(("node", "model", "team", "alias", "version", "zone", "gpus", "revision", "python"))
CODE = re.compile(r"[1-5]\d\d")

_HTTP = tuple(f"http_{first}xx" for first in range(1, 6))
_ASKED = ("refused", "tls", "local", "no_answer", "malformed", *_HTTP)
_PROBED = tuple(f"{what}{why}" for what in ("", "tags_", "show_", "ps_") for why in _ASKED)


def _of(kind: type[StrEnum]) -> Words:
    return tuple(each.value for each in kind)


_GUARDED = [each.value.split(" ") for each in Guarded]
_PAGES = (*dict.fromkeys(LABELS.values()), "admin", OTHER)

# By label, where it says the same in every family.
_BY_LABEL: Mapping[str, Words] = MappingProxyType({
    "route": (*(endpoint.route for endpoint in ENDPOINTS), *_PAGES),
    "outcome": _of(Outcome),
    "start": ("warm", "cold"),
    "type": ("input", "output"),
    "phase": ("waiting", "prefill", "streaming", "stalled"),
    "policy": ("default",),
    "option": tuple(dict.fromkeys(option for option, _ in _GUARDED)),
    "action": tuple(dict.fromkeys(action for _, action in _GUARDED)),
    "cause": _of(Gone),
    "source": ("static", "kubernetes", "dns"),
    "operation": ("connect", "hello", "steps", "news"),
})  # fmt: skip

_BY_FAMILY: Mapping[tuple[str, str], Words] = MappingProxyType({
    ("queue_wait_seconds", "result"): ("dispatched", "timeout", "cancelled", "rejected"),
    ("rejections_total", "reason"): _of(Rejection),
    ("routing_decisions_total", "reason"): _of(Reason),
    ("affinity_total", "result"): _of(Affinity),
    ("affinity_tokens_total", "result"): _of(Affinity),
    ("alias_fallbacks_total", "reason"): _of(Passed),
    ("upstream_requests_total", "outcome"): tuple(dict.fromkeys((*_of(Outcome), *_of(Failure)))),
    ("retries_total", "reason"): _of(Failure),
    ("failovers_total", "reason"): _of(Failure),
    ("node_state", "state"): _of(Health),
    ("copy_slots", "kind"): ("declared", "learned"),
    ("node_probe_failures_total", "reason"): _PROBED,
    ("circuit_state", "state"): _of(Circuit),
    ("circuit_state_changes_total", "state"): _of(Circuit),
    ("model_loads_total", "reason"): (*_of(Cause), "renew"),
    ("model_loads_total", "result"): ("ok", "failed", "oom"),
    ("model_nodes", "state"): ("available", "loaded"),
    ("model_copies", "kind"): ("declared", "standing"),
    ("discovery_errors_total", "reason"): ("unreachable", "unauthorized", "forbidden", "gone", *_HTTP, "dns"),
    ("config_reloads_total", "result"): ("ok", "failed"),
    ("redis_errors_total", "reason"): ("timeout", "connection", "refused", "auth", "moved", "other"),
})  # fmt: skip


def words_of(family: str, label: str) -> Words | None:
    """None for an open label."""
    found = _BY_FAMILY.get((family, label))
    return found if found is not None else _BY_LABEL.get(label)


def closed() -> Iterable[tuple[str, str, Words]]:
    """Family, label and words of each closed label but the code, in the order of the families."""
    for name, family in FAMILIES.items():
        for label in family.labels:
            words = words_of(name, label)
            if words is not None:
                yield name, label, words


def is_told(family: str, label: str, value: str) -> bool:
    """Whether a page may say so. A histogram's own `le` is no label of ours."""
    words = words_of(family, label)
    if words is not None:
        return value in words
    return CODE.fullmatch(value) is not None if label == "code" else label in OPEN | {"le"}
