"""Each test of a client runs before nodes of an old and of a new Ollama release."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from router.wiring import Router
from tests.e2e.house import NEW, OLD, pool_and_router


@pytest.fixture(params=[OLD, NEW])
async def router(request: pytest.FixtureRequest) -> AsyncIterator[Router]:
    async with pool_and_router(request.param) as (_, opened):
        yield opened
