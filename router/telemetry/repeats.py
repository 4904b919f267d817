"""A burst of the same failure is told a few times and then counted: it must not bury everything else."""

from __future__ import annotations

import logging
from dataclasses import dataclass

TOLD_MAX = 5  # in a window: enough to see that it goes on
WINDOW_S = 10.0
KEYS_MAX = 1000  # different failures that are remembered; beyond that all begin anew


@dataclass(slots=True)
class _Window:
    began_s: float
    told: int = 0
    left_out: int = 0


class Repeats:
    """Lines are the same when they say the same. With a traceback, when they come from the same place: such lines name

    a call or a node each, and are many screens long.
    """

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}

    def left_out_before(self, record: logging.LogRecord) -> int | None:
        """How many like this one were left out since the last that was told; None for this one as well."""
        has_trace = record.exc_info is not None and record.exc_info[0] is not None
        key = (record.name, str(record.msg) if has_trace or not record.args else f"{record.msg} {record.args!r}")
        window = self._windows.get(key)
        left_out = 0
        if window is None or record.created - window.began_s >= WINDOW_S:
            left_out = window.left_out if window is not None else 0
            if len(self._windows) >= KEYS_MAX:
                self._windows.clear()
            window = self._windows[key] = _Window(record.created)
        if window.told >= TOLD_MAX:
            window.left_out += 1
            return None
        window.told += 1
        return left_out
