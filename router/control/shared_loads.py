"""Loads that run, as replicas tell one another: ours, for the others, and theirs. Times are store time."""

from __future__ import annotations

from router.fleet.tickets import LOAD_S_MAX
from router.fleet.words import SharedLoad


class SharedLoads:
    """`ours` are by node, with when that was; None: it has ended. `of_others` are by node and replica. `live`: replicas
    that the store hears. Bounded by nodes, and by who led within LOAD_S_MAX."""

    def __init__(self) -> None:
        self.ours: dict[str, tuple[float, SharedLoad | None]] = {}
        self.of_others: dict[tuple[str, str], SharedLoad] = {}
        self.live: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<SharedLoads {len(self.ours)} ours | {len(self.of_others)} of others>"

    def began(self, node: str, load: SharedLoad) -> None:
        self.ours[node] = (load.since_s, load)

    def ended(self, node: str, now_s: float) -> None:
        self.ours[node] = (now_s, None)
        gone = [place for place in self.of_others if place[0] == node and place[1] not in self.live]
        for place in gone:
            del self.of_others[place]

    def heard(self, node: str, by: str, load: SharedLoad | None, now_s: float) -> None:
        self.of_others.pop((node, by), None)
        old = [place for place, known in self.of_others.items() if now_s - known.since_s >= LOAD_S_MAX]
        for place in old:
            del self.of_others[place]
        if load is not None:
            self.of_others[node, by] = load

    def forget(self, node: str) -> None:
        self.ours.pop(node, None)
        for place in [place for place in self.of_others if place[0] == node]:
            del self.of_others[place]
