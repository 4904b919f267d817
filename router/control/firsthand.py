"""What this replica saw of nodes itself, and when: what others tell may be older. Times are store time."""

from __future__ import annotations

from router.control.findings import Findings
from router.control.shared_loads import SharedLoads


class Firsthand:
    """`names`: nodes that loads or traffic have shown something of since whoever tells the other replicas took them."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.named: dict[str, dict[str, tuple[float, int]]] = {}  # by node and weights: see `named_ctx`
        self.findings = Findings()
        self.loads = SharedLoads()
        self._reached_s: dict[str, float] = {}
        self._resident_s: dict[str, float] = {}  # of the youngest fact on a node's memory

    def __repr__(self) -> str:
        return f"<Firsthand {len(self.names)} to tell>"

    def reached_s(self, name: str) -> float:
        return self._reached_s.get(name, 0.0)

    def resident_s(self, name: str) -> float:
        return self._resident_s.get(name, 0.0)

    def reached(self, name: str, at_s: float) -> None:
        self._reached_s[name] = at_s

    def resident(self, name: str, at_s: float) -> None:
        self._resident_s[name] = at_s

    def named_ctx(self, name: str, weights: str, at_s: float, num_ctx: int) -> None:
        """A load of ours, or of another replica, named this context; 0 where it named none. The later one counts."""
        of_node = self.named.setdefault(name, {})
        if at_s >= of_node.get(weights, (0.0, 0))[0]:
            of_node[weights] = (at_s, num_ctx)

    def named_of(self, name: str) -> dict[str, int]:
        return {weights: num_ctx for weights, (_, num_ctx) in self.named.get(name, {}).items()}

    def forget(self, name: str) -> None:
        self.named.pop(name, None)
        self.names.discard(name)
        self.findings.forget(name)
        self.loads.forget(name)
        self._reached_s.pop(name, None)
        self._resident_s.pop(name, None)
