"""How many cores this process may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from router.settings.values import AUTO, WORKERS_MAX

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # `400000 100000` is four cores; a container's own limit is mounted here


def worker_count(said: int | str) -> int:
    """Of the setting `workers`."""
    if said != AUTO:
        return int(said)
    return min(cores(), WORKERS_MAX) if sys.platform == "linux" else 1  # elsewhere a port has one process


def cores(limit_file: Path = CGROUP_LIMIT) -> int:
    """At least 1; a part of a core that a container's limit leaves over does not count."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(limit_file)
    return given if limit is None else max(1, min(given, int(limit)))


def _limit(file: Path) -> float | None:
    try:
        quota, period = file.read_text("ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none, or `max 100000`
        return None
