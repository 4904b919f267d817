"""Runs one case of tests/e2e/js in a Node process of its own and reads what it says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from router.wiring import Router
from tests.e2e.house import base

FOLDER = Path(__file__).parent / "js"
CASE_S_MAX = 30.0


async def told(client: str, case: str, router: Router, model: str = "") -> Any:
    """What the case prints; fails with the case's own words when it throws."""
    assert (FOLDER / "node_modules" / client).exists(), "npm ci --prefix tests/e2e/js (make e2e does it)"
    process = await asyncio.create_subprocess_exec(
        "node",
        f"{client}.mjs",
        case,
        base(router),
        model,
        cwd=FOLDER,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CASE_S_MAX):
            said, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, complaint.decode()
    return json.loads(said)
