"""What real clients meet: nodes of an old and of a new Ollama release, and models under three spellings each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.simulation.catalog import model_of
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import no_bugs

# The release that tests/recordings/v0.24 came from, and one of those that the other recordings came from.
OLD, NEW = "0.24.0", "0.33.0"

MODELS = (
    model_of("llama3.2", gib=1.9, capabilities=("completion", "tools", "vision")),
    model_of("qwen3", gib=4.9, family="qwen3", capabilities=("completion", "tools", "thinking"), train_ctx=40_960),
    model_of("nomic-embed-text", gib=0.26, family="nomic-bert", is_embedding=True, train_ctx=8192),
)
ALIASES = {"gpt-4o": "llama3.2", "o4-mini": "qwen3", "text-embedding-3-small": "nomic-embed-text"}

# The name as lists show it, as people type it, and an alias.
CHATS = ("llama3.2:latest", "LLaMA3.2", "gpt-4o")
THINKERS = ("qwen3:latest", "QWen3", "o4-mini")
EMBEDDERS = ("nomic-embed-text:latest", "Nomic-Embed-Text", "text-embedding-3-small")
chats = pytest.mark.parametrize("model", CHATS)
thinkers = pytest.mark.parametrize("model", THINKERS)
embedders = pytest.mark.parametrize("model", EMBEDDERS)
DIMENSIONS = 768

LISTED = {model.name for model in MODELS} | {f"{alias}:latest" for alias in ALIASES}

QUESTION = "Why is the sky blue?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
CITY: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY},
}
# One white pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mP8/x8AAwMCAO+/p9sAAAAASUVORK5CYII="


@asynccontextmanager
async def pool_and_router(version: str) -> AsyncIterator[tuple[SimulatedPool, Router]]:
    """Two nodes of this release; afterwards nothing is held for anybody."""
    async with (
        SimulatedPool(nodes=2, models=MODELS, version=version, time_scale=0.001) as pool,
        router_before(pool.nodes, aliases=ALIASES) as router,
    ):
        yield pool, router
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
        assert no_bugs(pool)


def base(router: Router) -> str:
    return f"http://127.0.0.1:{router.port}"
