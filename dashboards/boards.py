"""The dashboards. None yet."""

from __future__ import annotations

from typing import Any


def boards() -> list[dict[str, Any]]:
    return []
