"""What well-known clients call first, in their order, and what their code does with the answers.

Each docstring names the file that was read. What asks for a model's capabilities stands in test_first_calls_catalog.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from router.fleet.node import Copy
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.e2e.dialogue import asked, ndjson, read, sse
from tests.e2e.house import CHATS, LISTED, MESSAGES, NEW, OLD, pool_and_router
from tests.shell.house import until

JSON = "Content-Type: application/json"
BEARER = "Authorization: Bearer sk-any"
NAME, _, ALIAS = CHATS


@pytest.fixture(params=[OLD, NEW])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[SimulatedPool, Router]]:
    async with pool_and_router(request.param) as opened:
        yield opened


async def until_seen_loaded(router: Router) -> None:
    """/api/ps tells what a probe has read; the router knows a model that it loaded itself a moment earlier."""
    await until(lambda: any(copy.listing != "{}" for copy in copies(router)))


def copies(router: Router) -> list[Copy]:
    return [copy for node in router.keeper.snapshot.nodes.values() for copy in node.copies.values()]


def moment(text: str) -> datetime:
    """As Python clients read it; a time without an offset would mean their own zone."""
    read = datetime.fromisoformat(text)
    assert read.tzinfo is not None
    return read


async def test_open_webui_as_an_ollama_connection(router: Router) -> None:
    """backend/open_webui/routers/ollama.py of open-webui/open-webui: verify_connection, get_ollama_versions,

    get_all_models, get_ollama_loaded_models, unload_model. Every answer is read by aiohttp's `json()`.
    """
    version = await read(router, "GET", "/api/version", None, BEARER)
    assert tuple(map(int, re.sub(r"^v|-.*", "", version["version"]).split("."))) >= (0, 6, 4)

    models = {model["model"]: model for model in (await read(router, "GET", "/api/tags", None, JSON, BEARER))["models"]}
    assert set(models) == LISTED
    assert (await read(router, "GET", "/api/ps", None, JSON, BEARER))["models"] == []

    chat = {"model": NAME, "messages": MESSAGES, "options": {}, "stream": True}
    lines = await ndjson(router, "/api/chat", chat, JSON, BEARER)
    assert lines[-1]["done"] is True
    await until_seen_loaded(router)
    loaded = (await read(router, "GET", "/api/ps", None, JSON, BEARER))["models"]
    expires = {model["name"]: moment(model["expires_at"]).timestamp() for model in loaded if "expires_at" in model}
    assert expires.keys() <= {model["name"] for model in models.values()}

    unload = {"model": NAME, "keep_alive": 0, "prompt": ""}
    assert (await read(router, "POST", "/api/generate", unload, JSON, BEARER))["done_reason"] == "unload"


async def test_open_webui_reads_a_refusal_as_json(router: Router) -> None:
    """The same file, send_post_request: the text of `error` is what users see; without JSON they see none."""
    answer = await asked(router, "POST", "/api/chat", {"model": "nope", "messages": MESSAGES}, JSON)
    assert (answer.status, answer.header("Content-Type")) == (404, "application/json; charset=utf-8")
    assert answer.body == b'{"error":"model \'nope\' not found"}'


async def test_open_webui_as_an_openai_connection(router: Router) -> None:
    """backend/open_webui/routers/openai.py of open-webui/open-webui: get_all_models, generate_chat_completion."""
    listed = await read(router, "GET", "/v1/models", None, BEARER)
    assert {model["id"] for model in listed["data"]} == LISTED
    chat = {"model": ALIAS, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    events = await sse(router, "/v1/chat/completions", chat, JSON, BEARER)
    assert {event["model"] for event in events} == {ALIAS}
    assert events[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("hang", ["hang", "stall_ps"])
async def test_librechat_lists_models_from_what_is_known_while_a_node_hangs(both: Any, hang: str) -> None:
    """packages/api/src/endpoints/models.ts of danny-avila/LibreChat: fetchOllamaModels, fetchModels; both give up

    after 5 s, and the second needs `data[].id`.
    """
    pool, router = both
    await pool.nodes[0].set_fault(hang, "3600")
    for _ in range(3):
        async with asyncio.timeout(5):
            tags = await read(router, "GET", "/api/tags")
        async with asyncio.timeout(5):
            models = await read(router, "GET", "/v1/models", None, BEARER)
        assert {model["name"] for model in tags["models"]} == LISTED
        assert {model["id"] for model in models["data"]} == LISTED
    await pool.nodes[0].clear_faults()


async def test_zed_lists_and_chats(router: Router) -> None:
    """crates/ollama/src/ollama.rs of zed-industries/zed: LocalModelListing, ModelDetails, ChatResponseDelta. A member

    that is missing, of another type, or a blank line ends in an error; `Option` may be absent.
    """
    for model in (await read(router, "GET", "/api/tags", None, "Accept: application/json", BEARER))["models"]:
        texts = [model["name"], model["modified_at"], model["digest"]]
        texts += [model["details"][key] for key in ("format", "family", "parameter_size", "quantization_level")]
        assert all(isinstance(text, str) for text in texts)
        assert isinstance(model["size"], int)
        assert isinstance(model["details"].get("families"), list | None)
    chat = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "keep_alive": -1,
        "options": {"num_ctx": 16384, "num_predict": None, "stop": [], "temperature": 1.0, "top_p": None},
        "tools": [],
        "think": None,
    }
    for delta in await ndjson(router, "/api/chat", chat, JSON, BEARER):
        assert isinstance(delta["model"], str)
        assert isinstance(delta["created_at"], str)
        assert delta["message"]["role"] == "assistant"
        assert isinstance(delta["message"]["content"], str)
        assert isinstance(delta["done"], bool)


@pytest.mark.parametrize("asked_for", ["llama3.2", NAME, "gpt-4o"])
async def test_langchain_finds_the_model_by_its_name_or_as_a_prefix(router: Router, asked_for: str) -> None:
    """libs/partners/ollama/langchain_ollama/_utils.py of langchain-ai/langchain: validate_model and

    parse_url_with_auth, which turns user:password of the URL into Basic.
    """
    basic = "Authorization: Basic dXNlcjpwYXNz"
    names = [model["model"] for model in (await read(router, "GET", "/api/tags", None, basic))["models"]]
    assert any(asked_for == name or name.startswith(f"{asked_for}:") for name in names)
    chat = {"model": asked_for, "messages": MESSAGES, "stream": True, "options": {"temperature": 0.8}, "format": ""}
    lines = await ndjson(router, "/api/chat", chat, basic)
    assert (lines[-1]["done_reason"], lines[-1]["model"]) == ("stop", asked_for)


async def test_n8n_tests_its_credentials_at_the_root(router: Router) -> None:
    """packages/@n8n/nodes-langchain/credentials/OllamaApi.credentials.ts of n8n-io/n8n: GET / has to be a 2xx; the

    node then lists /api/tags for its choice of models.
    """
    assert (await asked(router, "GET", "/")).body == b"Ollama is running"
    assert {model["name"] for model in (await read(router, "GET", "/api/tags"))["models"]} == LISTED


async def test_continue_lists_and_completes(router: Router) -> None:
    """core/llm/llms/Ollama.ts and OpenAI.ts of continuedev/continue: lists, then prompts that stay for 30 minutes,

    with the context length of its own configuration.
    """
    assert {model["name"] for model in (await read(router, "GET", "/api/tags", None, JSON))["models"]} == LISTED
    assert {model["id"] for model in (await read(router, "GET", "/v1/models", None, JSON, BEARER))["data"]} == LISTED
    options = {"temperature": 0.01, "num_predict": 64, "stop": ["<|end|>"], "num_ctx": 4096}
    generate = {"model": NAME, "prompt": "def f(", "raw": True, "options": options, "keep_alive": 1800, "stream": True}
    for line in await ndjson(router, "/api/generate", generate, JSON):
        assert "error" not in line
        assert isinstance(line["response"], str)


GO = ("User-Agent: ollama/0.33.0 (amd64 linux) Go/go1.24.1", "Accept: application/json", JSON)
GO_STREAM = (*GO[:1], "Accept: application/x-ndjson", JSON)


async def heartbeat(router: Router) -> None:
    """api/client.go, Heartbeat: HEAD / before each command of the CLI."""
    answer = await asked(router, "HEAD", "/", None, *GO)
    assert (answer.status, answer.body) == (200, b"")


async def test_ollama_list_and_ps_print_what_the_pool_has(router: Router) -> None:
    """cmd/cmd.go of ollama/ollama: ListHandler and ListRunningHandler. Go reads times and sizes strictly; the CLI

    prints the first 12 digits of the digest, and shares of the size.
    """
    await heartbeat(router)
    for model in (await read(router, "GET", "/api/tags", None, *GO))["models"]:
        assert re.fullmatch(r"[0-9a-f]{64}", model["digest"])
        assert moment(model["modified_at"])
        assert model["size"] > 0
    load = {"model": ALIAS, "prompt": "", "stream": False}
    assert (await read(router, "POST", "/api/generate", load, *GO))["done_reason"] == "load"
    await until_seen_loaded(router)
    await heartbeat(router)
    (running,) = (await read(router, "GET", "/api/ps", None, *GO))["models"]
    assert running["name"] == running["model"] == NAME
    assert re.fullmatch(r"[0-9a-f]{64}", running["digest"])
    assert moment(running["expires_at"])
    assert 0 <= running["size_vram"] <= running["size"]


async def test_ollama_run_loads_then_chats(router: Router) -> None:
    """cmd/cmd.go of ollama/ollama: loadOrUnloadModel and chat. A load is a prompt of nothing, answered by one line."""
    await heartbeat(router)
    (loaded,) = await loads(router, {"model": NAME, "prompt": "", "keep_alive": None})
    assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
    lines = await ndjson(router, "/api/chat", {"model": NAME, "messages": MESSAGES, "format": "", "options": {}}, *GO)
    assert moment(lines[0]["created_at"])
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


async def loads(router: Router, members: dict[str, Any]) -> list[Any]:
    """The CLI's decoder takes whatever comes line by line, whole objects too."""
    return [await read(router, "POST", "/api/generate", members, *GO_STREAM)]


async def test_ollama_stop_is_answered_as_if_it_were_obeyed(both: tuple[SimulatedPool, Router]) -> None:
    """cmd/cmd.go of ollama/ollama, StopHandler: keep_alive 0 without a prompt; a 404 would mean that nobody has it.

    Nobody may unload a model that others use: it stays.
    """
    pool, router = both
    await heartbeat(router)
    await loads(router, {"model": NAME, "prompt": "", "keep_alive": None})
    (stopped,) = await loads(router, {"model": NAME, "prompt": "", "keep_alive": 0})
    assert (stopped["done"], stopped["done_reason"]) == (True, "unload")
    assert sum(len(node.model.copies) for node in pool.nodes) == 1
    answer = await asked(router, "POST", "/api/generate", {"model": "nope", "keep_alive": 0}, *GO)
    assert answer.status == 404


async def test_aider_chats_with_a_context_for_each_call(router: Router) -> None:
    """aider/models.py of Aider-AI/aider, send_completion: int(tokens * 1.25) + 8192 as num_ctx of each call, through

    LiteLLM's llms/ollama/chat/transformation.py. A smaller context than the loaded one reloads nothing; a larger one
    would, under everybody: the router says so, and what to do.
    """
    for num_ctx, status in ((9000, 200), (8500, 200), (9600, 400)):
        chat = {"model": NAME, "messages": MESSAGES, "options": {"num_ctx": num_ctx}, "stream": False}
        answer = await asked(router, "POST", "/api/chat", chat, JSON)
        assert answer.status == status, answer.body
        await until_seen_loaded(router)
    assert b"num_ctx" in answer.body
    assert answer.header("x-ollama-router-refused") == "num_ctx"
