"""Which of a plan's targets a call may use now, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from router.errors import CloudRefused, LoadFailed, NoNode, NotLoaded, Refusal
from router.fleet.snapshot import Rows, Snapshot
from router.policy.alias import RoutePlan
from router.wire.endpoints import Endpoint
from router.wire.intent import unknown_model
from router.wire.names import is_cloud_key

NO_NODE_RETRY_S = 5.0  # two probes and a little: a node that comes back is seen by then

CLOUD_IS_OFF = "cloud models are switched off here: they spend the account of the node's owner"

# With these a line is refused whose model cannot be had: then the plan's next target is.
UNSERVABLE = (NoNode, NotLoaded, LoadFailed)


class Passed(StrEnum):
    """Why a target was passed over for the next: label of `alias_fallbacks_total`."""

    UNKNOWN = "unknown"  # no node lists it, as far as nodes were read
    CLOUD = "cloud"  # and cloud models are switched off
    NO_NODE = "no_node"  # no node that has it is up
    NOT_LOADED = "not_loaded"  # and this router loads nothing
    LOAD_FAILED = "load_failed"
    FAILED = "failed"  # every node that was tried, before its first byte
    INCAPABLE = "incapable"  # the model cannot do what is asked of it


@dataclass(frozen=True, slots=True)
class Reach:
    """What the operator lets a call use."""

    never_loads: bool = False  # placement only observes
    has_cloud: bool = False


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is left of a plan, and why the targets before were passed over."""

    plan: RoutePlan
    passed: tuple[Passed, ...] = ()


def ahead(plan: RoutePlan, snapshot: Snapshot, reach: Reach) -> Ahead | tuple[Passed, ...]:
    """From the first target on that can be had; without one, why each of them cannot.

    Where nothing is loaded that only observing would find, the first that is on a node will do: it may be refused in
    its line, or somebody loads it.
    """
    hindrances: list[Passed] = []
    for index, target in enumerate(plan.targets):
        hindrance = passed_over(target.model, snapshot, reach)
        if hindrance is None:
            return Ahead(plan.without(index), tuple(hindrances))
        hindrances.append(hindrance)
    if Passed.NOT_LOADED in hindrances:
        index = hindrances.index(Passed.NOT_LOADED)
        return Ahead(plan.without(index), tuple(hindrances[:index]))
    return tuple(hindrances)


def passed_over(key: str, snapshot: Snapshot, reach: Reach) -> Passed | None:
    """Why a target cannot be had now."""
    rows = snapshot.holding(key)
    if not rows.by_node:
        return Passed.UNKNOWN
    if not reach.has_cloud and (is_cloud_key(key) or is_cloud(rows)):
        return Passed.CLOUD
    if not rows.has_node_up:
        return Passed.NO_NODE
    if reach.never_loads and not rows.ready.rows and not rows.last_resort.rows:
        return Passed.NOT_LOADED
    return None


def nowhere(endpoint: Endpoint, sent_name: str, hindrances: Sequence[Passed], *, all_read: bool) -> Refusal:
    """For a call none of whose targets can be had: 404 only for what no node will ever turn out to have."""
    known = [hindrance for hindrance in hindrances if hindrance is not Passed.UNKNOWN]
    if not known:
        if all_read:
            return unknown_model(endpoint, sent_name)
        return NoNode(f"not every node has been read yet: one of them may have '{sent_name}'")
    if known[0] is Passed.CLOUD:
        return CloudRefused(CLOUD_IS_OFF)
    return NoNode(f"every node that has '{sent_name}' is down or draining", retry_after_s=NO_NODE_RETRY_S)


def passed_for(refusal: Refusal) -> Passed:
    """Of a line that was refused with one of UNSERVABLE."""
    if isinstance(refusal, LoadFailed):
        return Passed.LOAD_FAILED
    return Passed.NOT_LOADED if isinstance(refusal, NotLoaded) else Passed.NO_NODE


def is_cloud(rows: Rows) -> bool:
    return any(row.is_cloud for row in islice(rows.by_node.values(), 1))
