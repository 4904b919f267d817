"""What can go wrong with a simulated node, as values: for a while on the node, or for one call by its header.

One call: `x-simulate: cut=3` or `x-simulate: stall=2, wrong_content_type`; a router passes the header on. The node:
`await node.set_fault(...)`, or POST /simulate/faults with
`{"fault": "cut", "argument": "3", "times": 1, "path": "/api/chat"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

HEADER = "x-simulate"
FAULTS_MAX = 64


class Fault(StrEnum):
    REFUSE = "refuse"  # no listener; by header: the connection closes without an answer
    HANG = "hang"  # silent before the first byte: for ever, or argument = seconds
    STATUS = "status"  # argument = 500, 503, 404 or any other status, in the route's dialect
    SLOW = "slow"  # argument = factor; node only
    CUT = "cut"  # argument = events after which the connection breaks
    END = "end"  # argument = events after which the stream ends cleanly, without its terminator
    RUNNER_DIED = "runner_died"  # argument = tokens after which the runner dies under all its calls
    MALFORMED = "malformed"  # garbage instead of HTTP
    WRONG_CONTENT_TYPE = "wrong_content_type"
    STALL_PS = "stall_ps"  # argument = seconds
    LYING_PS = "lying_ps"  # argument = hide:NAME or show:NAME
    SLOW_VERSION = "slow_version"  # argument = seconds


@dataclass(frozen=True, slots=True)
class Order:
    """One fault as asked for. `times` None: until cleared; `path` empty: whatever is asked."""

    fault: Fault
    argument: str = ""
    times: int | None = None
    path: str = ""

    @property
    def number(self) -> float:
        try:
            return float(self.argument or 0)
        except ValueError:
            return 0.0


class UnknownFault(ValueError):
    """Not in the list of `Fault`."""


class Faults:
    """The faults that one node has now."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def __repr__(self) -> str:
        return f"<Faults {', '.join(f'{order.fault}={order.argument}' for order in self._orders) or 'none'}>"

    @property
    def orders(self) -> tuple[Order, ...]:
        return tuple(self._orders)

    def set(self, fault: Fault | str, argument: object = "", *, times: int | None = None, path: str = "") -> None:
        if len(self._orders) >= FAULTS_MAX:
            raise UnknownFault(f"more than {FAULTS_MAX} faults")
        self._orders.append(Order(_fault(fault), str(argument), times, path))

    def clear(self, fault: Fault | str | None = None) -> None:
        self._orders = [] if fault is None else [order for order in self._orders if order.fault != fault]

    def due(self, path: str, header: str) -> Mapping[Fault, Order]:
        """The faults of one call; the counted ones are used up by it. The header wins over the node."""
        found: dict[Fault, Order] = {}
        kept = []
        for order in self._orders:
            hits = order.path in ("", path) and order.fault not in found
            if hits:
                found[order.fault] = order
            left = order.times if order.times is None or not hits else order.times - 1
            if left != 0:
                kept.append(Order(order.fault, order.argument, left, order.path))
        self._orders = kept
        return found | parse_header(header)

    def of_node(self, fault: Fault) -> Order | None:
        return next((order for order in self._orders if order.fault is fault), None)


def parse_header(header: str) -> dict[Fault, Order]:
    orders = {}
    for item in filter(None, (part.strip() for part in header.split(","))):
        name, _, argument = item.partition("=")
        fault = _fault(name.strip())
        orders[fault] = Order(fault, argument.strip())
    return orders


def _fault(name: Fault | str) -> Fault:
    try:
        return Fault(name)
    except ValueError:
        raise UnknownFault(f"no such fault: {name}; known: {', '.join(Fault)}") from None
