"""Copies of models on nodes: what is ready, what is gated, which have a free slot. Knows nothing of tickets in line.

Every change of a copy ends in `refresh`, so that the index of free copies always says what a scan would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from random import Random

from router.fleet.node import CopyState
from router.fleet.tickets import LOAD_S_MAX, PREFERRED_MAX, CopyReport, Gate, Ticket
from router.store.nodes import NEVER_S, CopyEntry, NodeEntry, behind, has_room

ABSENT_COPIES_MAX = 16_384  # copies in no node's memory that are remembered, for the age of their last report
DOWN_NODES_MAX = 4_096  # nodes that are down and remembered, for their incarnation

_BUSY = (CopyState.LOADING, CopyState.UNLOADING)


class Serving:
    """The copies that stand for one model key, at most one per node, and those of them that are free."""

    __slots__ = ("free", "nodes", "places", "ready")

    def __init__(self) -> None:
        self.nodes: dict[str, CopyEntry] = {}
        self.ready = 0  # of them in memory
        self.free: list[CopyEntry] = []
        self.places: dict[str, int] = {}  # node -> index in `free`

    def set_free(self, copy: CopyEntry) -> None:
        self.places[copy.node.name] = len(self.free)
        self.free.append(copy)

    def set_busy(self, copy: CopyEntry) -> None:
        index = self.places.pop(copy.node.name)
        last = self.free.pop()
        if last is not copy:
            self.free[index] = last
            self.places[last.node.name] = index

    def preferred(self, ticket: Ticket) -> CopyEntry | None:
        for name in ticket.preferred[:PREFERRED_MAX]:
            copy = self.nodes.get(name)
            if copy is not None and copy.is_free and copy.fits(ticket):
                return copy
        return None

    def spread(self, ticket: Ticket, rng: Random) -> CopyEntry | None:
        """The less loaded of two free copies drawn at random: near to the least loaded, without a scan."""
        count = len(self.free)
        if count == 1:
            return self.free[0] if self.free[0].fits(ticket) else None
        start = int(rng.random() * count)
        for step in range(count):
            copy = self.free[(start + step) % count]
            if copy.fits(ticket):
                other = self.free[int(rng.random() * count)]
                is_better = other.leases * copy.slots < copy.leases * other.slots and other.fits(ticket)
                return other if is_better else copy
        return None


class Copies:
    """All nodes and copies, with the index of what is free per model key."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeEntry] = {}
        self.serving: dict[str, Serving] = {}
        self.occupancy: dict[tuple[str, str], int] = {}
        self.busy: dict[tuple[str, str], CopyEntry] = {}  # loading or unloading
        self.next_gate_s = NEVER_S  # store time when the next closed gate becomes half-open
        self._closed: dict[NodeEntry | CopyEntry, None] = {}  # gates that time will change
        self._absent: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._down: OrderedDict[str, None] = OrderedDict()

    def node(self, name: str) -> NodeEntry:
        found = self.nodes.get(name)
        if found is None:
            found = self.nodes[name] = NodeEntry(name)
        return found

    def copy(self, name: str, weights: str) -> CopyEntry:
        node = self.node(name)
        found = node.copies.get(weights)
        if found is None:
            found = node.copies[weights] = CopyEntry(node, weights)
            self._note_absent(found)
        return found

    # slots

    def pick(self, ticket: Ticket, keys: Sequence[str], rng: Random) -> tuple[CopyEntry, str] | None:
        """A free copy that fits, preferred nodes first, and the key it was found under."""
        if ticket.preferred:
            for key in keys:
                serving = self.serving.get(key)
                copy = serving.preferred(ticket) if serving is not None and serving.free else None
                if copy is not None:
                    return copy, key
        for key in keys:
            serving = self.serving.get(key)
            copy = serving.spread(ticket, rng) if serving is not None and serving.free else None
            if copy is not None:
                return copy, key
        return None

    def is_any_ready(self, keys: Sequence[str]) -> bool:
        return any((serving := self.serving.get(key)) is not None and serving.ready for key in keys)

    def occupy(self, copy: CopyEntry) -> None:
        self._count(copy, 1)

    def release(self, copy: CopyEntry) -> Sequence[CopyEntry]:
        """The copies that this may have freed: a half-open node lets one lease through for all of its copies."""
        assert copy.leases > 0, "released twice or never occupied"
        self._count(copy, -1)
        return (copy,) if copy.node.gate is Gate.OPEN else tuple(copy.node.copies.values())

    def _count(self, copy: CopyEntry, change: int) -> None:
        node = copy.node
        copy.leases += change
        node.leases += change
        place = (node.name, copy.weights)
        if copy.leases:
            self.occupancy[place] = copy.leases
        else:
            del self.occupancy[place]
        if node.gate is Gate.OPEN:
            self.refresh(copy)
        else:
            self._refresh_all(node.copies.values())
        if copy.state is CopyState.ON_DISK:
            self._note_absent(copy)

    # reports

    def report(self, seen: CopyReport, replica: str, now_s: float) -> CopyEntry:
        """Takes the report over unless it is stale or the copy belongs to a loader. Answers the copy as it stands."""
        node = self.node(seen.node)
        if seen.incarnation > node.incarnation:
            self._restart(node, seen.incarnation)
        copy = self.copy(seen.node, seen.weights)
        if seen.incarnation < node.incarnation or node.is_down or not self._is_news(copy, seen, replica):
            return copy
        # A time ahead of ours would lock out everybody else's reports.
        copy.seen_at_s = max(copy.seen_at_s, min(seen.seen_at_s, now_s))
        is_ready = seen.state is CopyState.READY
        self._set_keys(copy, seen.keys)
        copy.slots = seen.slots
        copy.num_ctx = seen.num_ctx
        copy.named_ctx = seen.named_ctx
        self._set_state(copy, CopyState.READY if is_ready else CopyState.ON_DISK)
        return copy

    def _is_news(self, copy: CopyEntry, seen: CopyReport, replica: str) -> bool:
        if copy.state in _BUSY:
            # While it loads /api/ps does not list it; only who holds that connection knows.
            return not seen.is_probe and replica == copy.loader and seen.state not in _BUSY
        return seen.seen_at_s >= copy.seen_at_s

    def incarnate(self, name: str, uid: str) -> int:
        node = self.node(name)
        if uid and uid == node.past[0]:
            return node.past[1]
        is_other = bool(uid and node.uid and uid != node.uid)
        if is_other or node.is_down or not node.incarnation:
            if is_other:
                node.past = (node.uid, node.incarnation)
            self._restart(node, node.incarnation + 1)
        node.uid = uid or node.uid
        return node.incarnation

    def drop_node(self, name: str, incarnation: int) -> None:
        node = self.node(name)
        if incarnation < node.incarnation:
            return
        self._restart(node, incarnation)
        node.is_down = True
        self._down[name] = None
        idle = (other for other in self._down if not self.nodes[other].leases)
        if len(self._down) > DOWN_NODES_MAX and (oldest := next(idle, None)) is not None:
            self._forget_node(self.nodes[oldest])

    def _restart(self, node: NodeEntry, incarnation: int) -> None:
        """Nothing that was in its memory is there any more. Leases end with their calls."""
        node.incarnation = incarnation
        node.is_down = False
        self._down.pop(node.name, None)
        for copy in tuple(node.copies.values()):
            self._set_state(copy, CopyState.ON_DISK)

    # loads

    def begin(self, name: str, weights: str, replica: str, since_s: float, *, loading: bool) -> bool:
        copy = self.copy(name, weights)
        is_loading = any(other.state is CopyState.LOADING for other in copy.node.copies.values())
        if copy.node.is_down or copy.state in _BUSY or (loading and is_loading):
            return False
        copy.loader = replica
        copy.since_s = since_s
        self._set_state(copy, CopyState.LOADING if loading else CopyState.UNLOADING)
        return True

    def end_loads(self, is_over: Callable[[CopyEntry], bool]) -> None:
        """The next probe says what came of them."""
        for copy in [copy for copy in self.busy.values() if is_over(copy)]:
            self._set_state(copy, CopyState.ON_DISK)

    def expire_loads(self, answering_s: float) -> None:
        self.end_loads(lambda copy: answering_s - copy.since_s >= LOAD_S_MAX)

    # gates

    def gate(self, name: str, weights: str | None, gate: Gate, until_s: float, now_s: float) -> Sequence[CopyEntry]:
        """The copies that it may have opened."""
        gated = self.node(name) if weights is None else self.copy(name, weights)
        gated.gate = gate
        gated.until_s = until_s
        self._closed.pop(gated, None)
        if gate is Gate.CLOSED:
            self._closed[gated] = None
        opened = self.open_due(now_s)
        copies = behind(gated)
        self._refresh_all(copies)
        return (*opened, *copies)

    def open_due(self, now_s: float) -> Sequence[CopyEntry]:
        """A breaker whose time is over becomes half-open: one call at a time may try. Drains end by word only."""
        due = [gated for gated in self._closed if gated.until_s <= now_s]
        for gated in due:
            del self._closed[gated]
            gated.gate = Gate.HALF_OPEN
        self.next_gate_s = min((gated.until_s for gated in self._closed), default=NEVER_S)
        copies = [copy for gated in due for copy in behind(gated)]
        self._refresh_all(copies)
        return copies

    # the index

    def refresh(self, copy: CopyEntry) -> None:
        is_free = has_room(copy)
        if is_free is copy.is_free:
            return
        copy.is_free = is_free
        for key in copy.keys:
            serving = self.serving[key]
            if is_free:
                serving.set_free(copy)
            else:
                serving.set_busy(copy)

    def _refresh_all(self, copies: Iterable[CopyEntry]) -> None:
        for copy in copies:
            self.refresh(copy)

    def _set_state(self, copy: CopyEntry, state: CopyState) -> None:
        place = (copy.node.name, copy.weights)
        change = (state is CopyState.READY) - (copy.state is CopyState.READY)
        for key in copy.keys if change else ():
            self.serving[key].ready += change
        copy.state = state
        if state in _BUSY:
            self.busy[place] = copy
        else:
            self.busy.pop(place, None)
        self.refresh(copy)
        if state is CopyState.ON_DISK:
            self._note_absent(copy)
        else:
            self._absent.pop(place, None)

    def _set_keys(self, copy: CopyEntry, keys: tuple[str, ...]) -> None:
        """On one node a key stands for one set of weights: the latest report takes it from the others."""
        keys = tuple(dict.fromkeys(keys))
        if keys == copy.keys:
            return
        for key in keys:
            serving = self.serving.get(key)
            other = None if serving is None else serving.nodes.get(copy.node.name)
            if other is not None and other is not copy:
                self._stand_for(other, tuple(name for name in other.keys if name != key))
        self._stand_for(copy, keys)

    def _stand_for(self, copy: CopyEntry, keys: tuple[str, ...]) -> None:
        for key in copy.keys:
            serving = self.serving[key]
            serving.ready -= copy.state is CopyState.READY
            del serving.nodes[copy.node.name]
            if copy.is_free:
                serving.set_busy(copy)
            if not serving.nodes:
                del self.serving[key]
        copy.keys = keys
        for key in keys:
            serving = self.serving.setdefault(key, Serving())
            serving.nodes[copy.node.name] = copy
            serving.ready += copy.state is CopyState.READY
            if copy.is_free:
                serving.set_free(copy)

    # what is remembered of what is gone

    @property
    def absent_count(self) -> int:
        return len(self._absent)

    @property
    def down_count(self) -> int:
        return len(self._down)

    def _note_absent(self, copy: CopyEntry) -> None:
        place = (copy.node.name, copy.weights)
        if copy.leases or copy.node.copies.get(copy.weights) is not copy:
            self._absent.pop(place, None)  # with its last lease it comes here again
            return
        self._absent[place] = None
        self._absent.move_to_end(place)
        while len(self._absent) > ABSENT_COPIES_MAX:
            (name, weights), _ = self._absent.popitem(last=False)
            self._forget_copy(self.nodes[name].copies[weights])

    def _forget_copy(self, copy: CopyEntry) -> None:
        self._stand_for(copy, ())
        self._closed.pop(copy, None)
        del copy.node.copies[copy.weights]

    def _forget_node(self, node: NodeEntry) -> None:
        for copy in tuple(node.copies.values()):
            self._absent.pop((node.name, copy.weights), None)
            self._forget_copy(copy)
        self._closed.pop(node, None)
        del self._down[node.name]
        del self.nodes[node.name]
