"""What a team's program does, inside the cluster: calls by the official client, steadily, and streams that stay open.

load.py BASE_URL STREAMS SECONDS: says one line of JSON at its end, what failed and how. SDK retries are off, so that
nothing is hidden.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from openai import AsyncOpenAI, OpenAIError

MODEL = "llama3.2:3b"
PAUSE_S = 0.05
# After a failure, as long as the SDK waits before its first retry: who is refused does not ask a thousand times.
RETRY_S = 0.5


async def main(base_url: str, streams: int, seconds: float) -> None:
    client = AsyncOpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=120)
    end_s = time.monotonic() + seconds
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    async def plain() -> None:
        while time.monotonic() < end_s:
            await call("plain", stream=False)
            await asyncio.sleep(PAUSE_S)

    async def stream() -> None:
        while time.monotonic() < end_s:
            await call("stream", stream=True)

    async def call(kind: str, *, stream: bool) -> None:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        try:
            answer = await client.chat.completions.create(model=MODEL, messages=messages, stream=stream, max_tokens=200)
            if stream:
                reason = None
                async for chunk in answer:
                    reason = (chunk.choices and chunk.choices[0].finish_reason) or reason
                assert reason, "a stream ended without its end"
            else:
                assert answer.choices[0].message.content, "an empty answer"
            done[kind] += 1
        except (OpenAIError, AssertionError) as error:
            failed[f"{kind}: {type(error).__name__}: {error}"[:300]] += 1
            await asyncio.sleep(RETRY_S)

    print("begun", flush=True)
    await asyncio.gather(plain(), plain(), *(stream() for _ in range(streams)))
    print(json.dumps({"done": done, "failed": failed}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
