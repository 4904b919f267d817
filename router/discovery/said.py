"""What labels and annotations say of a node: `ollama-router.io/slots`, `/weight`, `/vram-gib`, `/drain`. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "ollama-router.io/"
GIB = 1024**3
SLOTS_MAX = 1024  # more than any GPU serves at once; a number beyond it is a slip
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0", "")


@dataclass(frozen=True, slots=True)
class Said:
    """None where nothing is said."""

    slots: int | None = None
    weight: float | None = None
    vram_bytes: int | None = None
    drains: bool | None = None

    def over(self, other: Said) -> Said:
        """This where it says something, else the other."""
        return Said(
            other.slots if self.slots is None else self.slots,
            other.weight if self.weight is None else self.weight,
            other.vram_bytes if self.vram_bytes is None else self.vram_bytes,
            other.drains if self.drains is None else self.drains,
        )


NOTHING = Said()


def said_by(texts: Mapping[str, str]) -> tuple[Said, tuple[str, ...]]:
    """What labels or annotations mean, and a line for each that means nothing: it counts as not said."""
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], Any], should: str) -> Any:
        text = texts.get(PREFIX + name)
        value = parse(text.strip()) if text is not None else None
        if text is not None and value is None:
            problems.append(f"{PREFIX}{name}: {text[:60]!r} should be {should}")
        return value

    gib = read("vram-gib", _above_zero, "a number of GiB")
    said = Said(
        slots=read("slots", slots, f"a number from 1 to {SLOTS_MAX}"),
        weight=read("weight", _above_zero, "a number above 0"),
        vram_bytes=None if gib is None else int(gib * GIB),
        drains=read("drain", _truth, "true or false"),
    )
    return said, tuple(problems)


def slots(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) < 6
    return int(text) if is_number and 0 < int(text) <= SLOTS_MAX else None


def _above_zero(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _truth(text: str) -> bool | None:
    return True if text.lower() in _YES else False if text.lower() in _NO else None
