"""Prometheus' own tools, where they are installed. Where not, tests that need them are left out, and say so loudly."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest


class LeftOut(UserWarning):
    """Stands in pytest's summary, unlike the reason of a skip."""


def tool(name: str) -> str:
    """Skips the test, with a warning at the end of the run, without it."""
    found = shutil.which(name)
    if found is None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(
                LeftOut(f"LEFT OUT: {name} is not on PATH (Debian: apt-get install prometheus)"), stacklevel=2
            )
        pytest.skip(f"{name} is not on PATH")
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
