"""Counters against what was really sent and really generated: exact for calls that came to their end."""

from __future__ import annotations

import json

from tests.shell.clients import Answer, Client, ask, scrape
from tests.shell.house import until
from tests.shell.scenes import ENDLESS, QUICK, holding

RARELY = {"interval_s": 100}
CUT_AFTER = 3


def last_line(answer: Answer) -> dict[str, int]:
    found: dict[str, int] = json.loads(answer.body.splitlines()[-1])
    return found


def content_events(answer: Answer) -> int:
    """Of an OpenAI stream: a simulated node sends each token in an event of its own."""
    events = [json.loads(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
    return sum(bool(choice["delta"].get("content")) for event in events for choice in event.get("choices", ()))


async def test_counters_equal_what_was_sent_and_what_nodes_generated() -> None:
    chat = {"model": QUICK, "messages": [{"role": "user", "content": "Why?"}]}
    async with holding(2, QUICK, ENDLESS, probe=RARELY) as (pool, router):
        plain = [await ask(router, "/api/chat", {**chat, "stream": False}) for _ in range(3)]
        native = [await ask(router, "/api/chat", chat) for _ in range(4)]
        silent = [await ask(router, "/v1/chat/completions", {**chat, "stream": True}) for _ in range(5)]
        unknown = [await ask(router, "/api/chat", {**chat, "model": "nope"}) for _ in range(2)]
        for node in pool.nodes:
            await node.set_fault("status", "503", times=1, path="/api/generate")
        moved = await ask(router, "/api/generate", {"model": QUICK, "prompt": "?", "stream": False})
        cut = await ask(router, "/api/chat", chat, x_simulate=f"cut={CUT_AFTER}")
        async with Client(router.port) as leaving:
            leaving.send("/v1/chat/completions", {**chat, "model": ENDLESS, "stream": True})
            await leaving.first(b'"content":"')
        await until(lambda: not router.pipeline.live)
        page = await scrape(router)

    assert {answer.status for answer in (*plain, *native, *silent)} == {200}
    assert page.value("requests_total", outcome="ok", route="api_chat") == len(plain) + len(native)
    assert page.value("requests_total", outcome="ok", route="chat_completions") == len(silent)
    assert page.value("requests_total", outcome="rejected", code="404") == len(unknown)
    assert page.value("rejections_total", reason="model_not_found") == len(unknown)
    assert page.value("requests_total", outcome="upstream_truncated", code="200") == 1
    assert page.value("requests_total", outcome="cancelled") == 1
    total = len(plain) + len(native) + len(silent) + len(unknown) + 3
    assert page.value("requests_total") == page.value("request_duration_seconds_count") == total

    # Each of the two nodes refuses once; whether the call finds a third try is the retry table's affair.
    retries = page.value("retries_total", reason="busy")
    assert retries == page.value("upstream_requests_total", outcome="busy") - (moved.status != 200)

    counted = [last_line(answer) for answer in (*plain, *native, *([moved] if moved.status == 200 else []))]
    deltas = sum(content_events(answer) for answer in silent)
    assert deltas > 0
    generated = sum(line["eval_count"] for line in counted) + deltas
    assert page.value("tokens_total", model=QUICK, type="output") == generated
    assert page.value("node_tokens_total", model=QUICK, type="output") == generated
    assert page.value("request_tokens_sum", model=QUICK, type="output") == generated
    prompts = sum(line["prompt_eval_count"] for line in counted)
    of_silent = page.value("tokens_total", model=QUICK, type="input") - prompts
    assert of_silent == len(silent) * plain[0].json["prompt_eval_count"]

    assert cut.status == 200
    assert page.value("tokens_estimated_total", model=QUICK) == CUT_AFTER
    assert page.value("tokens_estimated_total", model=ENDLESS) == 1
    assert page.value("tokens_total", model=ENDLESS) == 0
