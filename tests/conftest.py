"""What all tests share: the event loop that production runs on, and examples that no clock judges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import uvloop
from hypothesis import settings

# A machine that is busy with something else is no failure of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
