"""How a process of ours ends: its exit code, and what it says to whoever started it."""

from __future__ import annotations

import sys

OK = 0
FAILED = 1
MISUSED = 2  # bad configuration, or words that mean nothing


def complain(text: str) -> None:
    sys.stderr.write(f"ollama-router: {text}\n")
