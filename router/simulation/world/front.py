"""What stands before the nodes: a replica of our router, or of a rival's."""

from __future__ import annotations

from typing import Protocol

from router.simulation.world.call import Call, Fate


class Desk(Protocol):
    """The clients' side: who serves a call says how it ended."""

    def began(self, call: Call) -> None:
        """It got a slot at a node."""
        ...

    def ended(self, call: Call, fate: Fate) -> None: ...

    def sent_back(self, call: Call) -> None:
        """Its router died before its first token: clients repeat such a call elsewhere."""
        ...


class Front(Protocol):
    is_up: bool

    def take(self, call: Call) -> None: ...

    def leave(self, call: Call) -> None:
        """The client closed its connection; valid at any time."""
        ...

    def go_down(self) -> None: ...

    def come_up(self) -> None: ...

    def store_lost(self) -> None: ...

    def store_back(self) -> None: ...
