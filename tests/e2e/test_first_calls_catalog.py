"""First calls that ask what a model can do, or come from a browser: they need the whole catalog.

Each docstring names the file that was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import ollama
import openai
import pytest

from router.simulation.catalog import RECORDED_MODELS, model_of
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.e2e.dialogue import asked, ndjson, read, sse
from tests.e2e.house import CHATS, EMBEDDERS, MESSAGES, base, chats
from tests.e2e.javascript import told
from tests.shell.house import router_before

JSON = "Content-Type: application/json"
NAME, _, ALIAS = CHATS


@chats
async def test_vs_code_reads_version_tags_and_what_each_model_can_do(router: Router, model: str) -> None:
    """src/extension/byok/vscode-node/ollamaProvider.ts of microsoft/vscode-copilot-chat: _isVersionSupported,

    getAllModels, _getOllamaModelInfo; no key on any of them, and capabilities must be a list.
    """
    version = await read(router, "GET", "/api/version")
    assert [int(part) for part in version["version"].split(".")] >= [0, 6, 4]
    for listed in (await read(router, "GET", "/api/tags"))["models"]:
        shown = await read(router, "POST", "/api/show", {"model": listed["model"]}, JSON)
        assert_vs_code_can_read(shown)
    shown = await read(router, "POST", "/api/show", {"model": model}, JSON)
    assert {"tools", "vision"} <= set(shown["capabilities"])
    events = await sse(router, "/v1/chat/completions", {"model": model, "messages": MESSAGES, "stream": True}, JSON)
    assert {event["model"] for event in events} == {model}


def assert_vs_code_can_read(shown: Any) -> None:
    info = shown["model_info"]
    assert isinstance(info[f"{info['general.architecture']}.context_length"], int)
    assert isinstance(info["general.basename"], str)
    assert isinstance(shown["capabilities"], list)
    assert isinstance(shown["template"], str)
    assert isinstance(shown["details"]["family"], str)


@chats
async def test_zed_asks_what_a_model_can_do_before_it_chats(router: Router, model: str) -> None:
    """crates/ollama/src/ollama.rs of zed-industries/zed, show_model: tools, vision and thinking decide what is sent."""
    shown = await read(router, "POST", "/api/show", {"model": model}, JSON, "Authorization: Bearer any")
    assert {"tools", "vision"} <= set(shown["capabilities"])
    assert "thinking" not in shown["capabilities"]
    tools = [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]
    chat = {"model": model, "messages": MESSAGES, "stream": True, "keep_alive": -1, "tools": tools, "think": None}
    lines = await ndjson(router, "/api/chat", chat, JSON)
    assert [call["function"]["name"] for line in lines for call in line["message"].get("tool_calls", [])] == ["f"]


@pytest.fixture
async def with_parameters() -> AsyncIterator[Router]:
    """Before a node that knows the recorded models, whose Modelfiles set parameters."""
    async with (
        SimulatedPool(nodes=1, models=RECORDED_MODELS, time_scale=0.001) as pool,
        router_before(pool.nodes) as router,
    ):
        yield router


async def test_continue_shows_by_name_and_reads_the_parameters_line_by_line(with_parameters: Router) -> None:
    """core/llm/llms/Ollama.ts of continuedev/continue: the body says `name`; each line of `parameters` is matched, and

    one that does not match throws; stop words are read as JSON; `.Suffix` in the template means infill.
    """
    shown = await read(with_parameters, "POST", "/api/show", {"name": "gemma-fim"}, JSON)
    parameters = [re.match(r'^(\S+)\s+((?:".*")|\S+)$', line) for line in shown["parameters"].split("\n")]
    found = {each[1]: each[2] for each in parameters if each}
    assert len(found) == len(parameters)
    assert int(found["num_ctx"]) == 2048
    assert json.loads(found["stop"]) == "<end_of_turn>"
    assert isinstance(shown["template"], str)


@chats
async def test_aider_by_litellm_reads_template_and_context_length(router: Router, model: str) -> None:
    """litellm/llms/ollama/completion/transformation.py of BerriAI/litellm: get_model_info asks by `name`,

    _supports_function_calling looks into the template, _get_max_tokens takes the first key with context_length.
    """
    shown = await read(router, "POST", "/api/show", {"name": model}, JSON)
    assert isinstance(shown.get("template", "") or "", str)
    lengths = [value for key, value in shown["model_info"].items() if "context_length" in key]
    assert isinstance(lengths[0], int)
    chat = {"model": model, "messages": MESSAGES, "options": {"num_ctx": 8800, "temperature": 0}, "stream": True}
    assert (await ndjson(router, "/api/chat", chat, JSON))[-1]["done"] is True


GO = ("User-Agent: ollama/0.33.0 (amd64 linux) Go/go1.24.1", "Accept: application/json", JSON)


@chats
async def test_ollama_run_shows_loads_and_chats(router: Router, model: str) -> None:
    """cmd/cmd.go of ollama/ollama, RunHandler: HEAD /, show (a 404 would begin a pull), load, chat."""
    assert (await asked(router, "HEAD", "/", None, *GO)).status == 200
    shown = await read(router, "POST", "/api/show", {"model": model}, *GO)
    assert "completion" in shown["capabilities"]
    load = {"model": model, "prompt": "", "keep_alive": None}
    assert (await read(router, "POST", "/api/generate", load, *GO))["done_reason"] == "load"
    lines = await ndjson(router, "/api/chat", {"model": model, "messages": MESSAGES, "options": {}}, *GO)
    assert {line["model"] for line in lines} == {model}


async def test_ollama_run_of_an_unknown_model_is_told_so_and_may_not_pull(router: Router) -> None:
    """cmd/cmd.go of ollama/ollama, RunHandler: a 404 of show begins a pull, whose refusal is what the user reads."""
    answer = await asked(router, "POST", "/api/show", {"model": "nope"}, *GO)
    # With its tag, as recorded: refused/show-unknown.
    assert (answer.status, answer.body) == (404, b'{"error":"model \'nope:latest\' not found"}')
    answer = await asked(router, "POST", "/api/pull", {"model": "nope"}, *GO)
    assert (answer.status, answer.header("x-ollama-router-refused")) == (403, "forbidden_verb")
    assert isinstance(json.loads(answer.body)["error"], str)


@chats
async def test_ollama_show_prints_a_model(router: Router, model: str) -> None:
    """cmd/cmd.go of ollama/ollama, ShowHandler and showInfo: architecture, parameters, context, embedding length."""
    await asked(router, "HEAD", "/", None, *GO)
    shown = await read(router, "POST", "/api/show", {"model": model, "verbose": False}, *GO)
    architecture = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{architecture}.embedding_length"]
    assert shown["details"]["quantization_level"]
    assert shown["modelfile"]


BROWSERS = ("http://localhost:3000", "app://obsidian.md", "tauri://localhost", "vscode-webview://1a2b", "file://x")
ALLOWED = "access-control-allow-origin"


@pytest.mark.parametrize("origin", BROWSERS)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_browser_clients_pass_their_preflight_and_read_the_answer(router: Router, origin: str, path: str) -> None:
    """server/routes.go and envconfig/config.go of ollama/ollama, recordings catalog/cors-*: the openai client in a

    browser sends its x-stainless headers, and no key with the preflight.
    """
    wanted = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count"
    lines = (f"Origin: {origin}", "Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {wanted}")
    preflight = await asked(router, "OPTIONS", path, None, *lines)
    assert (preflight.status, preflight.header(ALLOWED)) == (204, origin)
    allowed = {name.strip().lower() for name in preflight.header("access-control-allow-headers").split(",")}
    assert set(wanted.split(",")) <= allowed
    assert "POST" in preflight.header("access-control-allow-methods")
    chat = {"model": ALIAS, "messages": MESSAGES, "stream": False}
    answer = await asked(router, "POST", path, chat, JSON, f"Origin: {origin}")
    assert (answer.status, answer.header(ALLOWED)) == (200, origin)


async def test_a_foreign_page_is_refused_as_ollama_refuses_it(router: Router) -> None:
    """Recording catalog/cors-refused."""
    chat = {"model": ALIAS, "messages": MESSAGES}
    answer = await asked(router, "POST", "/api/chat", chat, JSON, "Origin: https://evil.example")
    assert (answer.status, answer.body) == (403, b"")


async def test_ollama_says_whether_its_cloud_is_on(router: Router) -> None:
    """server/routes.go of ollama/ollama, StatusHandler (recording catalog/status): asked by its own application."""
    status = await read(router, "GET", "/api/status")
    assert isinstance(status["cloud"]["disabled"], bool)


@chats
async def test_openai_retrieves_a_model(router: Router, model: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key="any", max_retries=0) as client:
        found = await client.models.retrieve(model)
        assert (found.id, found.object, found.owned_by) == (model, "model", "library")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")


@pytest.mark.parametrize("model", [*CHATS, *EMBEDDERS])
async def test_ollama_shows_a_model(router: Router, model: str) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        shown = await client.show(model)
        with pytest.raises(ollama.ResponseError) as unknown:
            await client.show("nope")
    assert shown.capabilities
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"]
    assert (unknown.value.status_code, unknown.value.error) == (404, "model 'nope:latest' not found")


@pytest.mark.js
@chats
async def test_javascript_clients_retrieve_and_show_a_model(router: Router, model: str) -> None:
    found = await told("openai", "retrieve", router, model)
    assert (found["id"], found["object"]) == (model, "model")
    shown = await told("ollama", "show", router, model)
    assert "tools" in shown["capabilities"]
    assert shown["model_info"]["general.architecture"] == model_of("llama3.2", gib=1.9).details.family
