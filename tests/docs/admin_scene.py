"""The pool that the samples in README.md and docs/admin.md show. `python -m tests.docs.admin_scene PAGE` prints a page
with the samples as they are now."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from router.simulation.catalog import model_of
from router.wiring import Router
from tests.shell.clients import Client
from tests.shell.house import router_before, until
from tests.shell.scenes import NEVER_TPS, load_into, pool_of, ready_on

SMALL, MIDDLE, LARGE = "llama3.2:3b", "qwen3:8b", "gemma3:12b"
SAMPLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


@asynccontextmanager
async def pool() -> AsyncIterator[Router]:
    """gpu-1 serves two calls of SMALL, gpu-2 one, gpu-3 has MIDDLE; LARGE is in nobody's memory."""
    models = [
        model_of(name, gib=gib, decode_tps=NEVER_TPS, load_s=0.0)
        for name, gib in ((SMALL, 2.0), (MIDDLE, 5.0), (LARGE, 8.0))
    ]
    async with AsyncExitStack() as stack:
        simulated = await stack.enter_async_context(pool_of(3, slots=4, models=models))
        first, second, third = simulated.nodes
        for node, name in ((first, SMALL), (second, SMALL), (third, MIDDLE)):
            load_into(node, name)
        nodes = [
            {"url": node.url, "name": f"gpu-{number}", "slots": 4} for number, node in enumerate(simulated.nodes, 1)
        ]
        router = await stack.enter_async_context(router_before(simulated.nodes, nodes=nodes, aliases={"gpt-4": MIDDLE}))
        await until(lambda: (ready_on(router, SMALL), ready_on(router, MIDDLE)) == (2, 1))
        await router.keeper.drain("gpu-2")
        for _ in range(2):
            await _begin(stack, router)
        await router.keeper.resume("gpu-2")
        await router.keeper.drain("gpu-1")
        await _begin(stack, router)
        await router.keeper.resume("gpu-1")
        yield router


async def _begin(stack: AsyncExitStack, router: Router) -> None:
    client = await stack.enter_async_context(Client(router.port))
    client.send("/api/generate", {"model": SMALL, "prompt": "Why?"})
    await client.first(b'"done":false')


async def renewed(router: Router, page: str) -> str:
    """The page with what its commands say now, in their order."""
    for block in SAMPLE.findall(page):
        lines = [line for line in block.splitlines() if line.startswith("$ ")]
        said = [f"{line}\n{await run(router, shlex.split(line[2:])[1:])}" for line in lines]
        page = page.replace(block, "\n".join(said), 1)
    return page


async def run(router: Router, arguments: list[str]) -> str:
    url = f"http://127.0.0.1:{router.admin_port}"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "router",
        *arguments,
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, "OLLAMA_ROUTER_ADMIN_URL": url},
    )
    stdout, _ = await child.communicate()
    return stdout.decode()


async def _print(page: str) -> None:
    async with pool() as router:
        print(await renewed(router, page), end="")


if __name__ == "__main__":
    asyncio.run(_print(Path(sys.argv[1]).read_text()))
