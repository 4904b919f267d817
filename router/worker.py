"""A worker's own beginning: what its parent tells it on standard input, and its exit code.

0 left well, 2 bad configuration, 1 anything else; what is wrong goes to stderr, as from `ollama-router serve`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from router import process
from router.exits import FAILED, MISUSED, complain
from router.server.listen import Berth, Doors
from router.settings import ConfigError, Origin
from router.workers.leash import hold_to


def main(task: Mapping[str, Any]) -> int:
    """`task` is `router.workers.life.Task`, as it was told."""
    hold_to(task["parent"])
    host, port = task["clients"]
    doors = Doors((host, port), task["metrics"], task["admin"], is_shared=True)
    berth = Berth(doors, tuple(task["drained"]))
    origin = Origin(task["config"], task["overrides"], dict(os.environ))
    try:
        return process.work(origin, berth, task["number"], task["turn"])
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return MISUSED
    except OSError as error:
        complain(f"worker {task['number']}: {error}")
        return FAILED
