"""`python -m router` without metrics of calls, so that what they cost can be seen. No setting does this: a router whose
calls nobody counts cannot be operated.
"""

from __future__ import annotations

import sys
from typing import cast

from router import cli, wiring, wiring_telemetry
from router.seams import Record
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.observer import Telemetry
from router.telemetry.tracing import Tracer


class Uncounted:
    """What `Telemetry` tells metrics."""

    def forwarding(self, route: str, model: str, delta: int) -> None:
        pass

    def attempt_ended(self, node: str, model: str, outcome: str, duration_s: float) -> None:
        pass

    def observe(self, record: Record) -> None:
        pass


def observer_of(metrics: Metrics, logs: Logs, tracer: Tracer | None) -> Telemetry:
    return wiring_telemetry.observer_of(cast(Metrics, Uncounted()), logs, tracer)


if __name__ == "__main__":
    vars(wiring)["observer_of"] = observer_of
    sys.exit(cli.main())
