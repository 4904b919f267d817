"""The inference routes, one table. A new route is a new row, read by intent, meter, dialects and server alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Dialect(StrEnum):
    """Whose error shapes and texts a route speaks."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Shape(StrEnum):
    """What an answer of the route looks like to the meter."""

    CHAT = "chat"  # /api/chat
    GENERATE = "generate"  # /api/generate
    EMBED = "embed"  # /api/embed: prompt_eval_count, no stream
    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETION = "openai_completion"
    OPENAI_EMBEDDING = "openai_embedding"
    RESPONSES = "responses"
    MESSAGES = "messages"
    UNCOUNTED = "uncounted"  # answers that carry no counts: /api/embeddings, transcriptions, images


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One inference route.

    `go_type` is the Go struct that Ollama decodes the body into, as its decoder's texts name it; `go_package` stands
    before it in "Go value of type" texts. `model_required` routes answer 400 `model is required` to a missing name, the
    others 404 `model '' not found` (recordings `refused/no-model-*`). `pull_hint` routes use the text `model "x" not
    found, try pulling it first` (recording `refused/embed-unknown`).
    """

    path: str
    route: str  # metric label, a closed set
    dialect: Dialect
    shape: Shape
    go_type: str
    go_package: str = "api"
    streams_by_default: bool = False
    may_stream: bool = True
    is_multipart: bool = False
    takes_zstd: bool = False
    takes_options: bool = False  # reads `options` and `keep_alive`: native routes only
    takes_temperature: bool = False  # as a member of its own; native routes have it among `options`
    counts_need_asking: bool = False  # streams carry usage only with stream_options.include_usage
    model_required: bool = False
    pull_hint: bool = False
    prompt_keys: tuple[str, ...] = ()  # a native call without any of these only loads the model

    @property
    def is_compat(self) -> bool:
        return self.dialect is not Dialect.OLLAMA


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "/v1/chat/completions",
        "chat_completions",
        Dialect.OPENAI,
        Shape.OPENAI_CHAT,
        "ChatCompletionRequest",
        go_package="openai",
        takes_zstd=True,
        takes_temperature=True,
        counts_need_asking=True,
        model_required=True,
    ),
    Endpoint(
        "/v1/completions",
        "completions",
        Dialect.OPENAI,
        Shape.OPENAI_COMPLETION,
        "CompletionRequest",
        go_package="openai",
        takes_zstd=True,
        takes_temperature=True,
        counts_need_asking=True,
    ),
    Endpoint(
        "/v1/embeddings",
        "embeddings",
        Dialect.OPENAI,
        Shape.OPENAI_EMBEDDING,
        "EmbedRequest",
        go_package="openai",
        takes_zstd=True,
        may_stream=False,
        pull_hint=True,
    ),
    Endpoint(
        "/v1/responses",
        "responses",
        Dialect.OPENAI,
        Shape.RESPONSES,
        "ResponsesRequest",
        go_package="openai",
        takes_zstd=True,
        takes_temperature=True,
        model_required=True,
    ),
    Endpoint(
        "/v1/messages",
        "messages",
        Dialect.ANTHROPIC,
        Shape.MESSAGES,
        "MessagesRequest",
        go_package="anthropic",
        takes_zstd=True,
        takes_temperature=True,
        model_required=True,
    ),
    Endpoint(
        "/v1/audio/transcriptions",
        "transcriptions",
        Dialect.OPENAI,
        Shape.UNCOUNTED,
        "TranscriptionRequest",
        go_package="openai",
        may_stream=False,
        is_multipart=True,
        model_required=True,
    ),
    Endpoint(
        "/v1/images/generations",
        "images",
        Dialect.OPENAI,
        Shape.UNCOUNTED,
        "ImageGenerationRequest",
        go_package="openai",
        may_stream=False,
        model_required=True,
    ),
    Endpoint(
        "/api/chat",
        "api_chat",
        Dialect.OLLAMA,
        Shape.CHAT,
        "ChatRequest",
        streams_by_default=True,
        takes_options=True,
        model_required=True,
        prompt_keys=("messages",),
    ),
    Endpoint(
        "/api/generate",
        "api_generate",
        Dialect.OLLAMA,
        Shape.GENERATE,
        "GenerateRequest",
        streams_by_default=True,
        takes_options=True,
        prompt_keys=("prompt",),
    ),
    Endpoint(
        "/api/embed",
        "api_embed",
        Dialect.OLLAMA,
        Shape.EMBED,
        "EmbedRequest",
        may_stream=False,
        takes_options=True,
        pull_hint=True,
        prompt_keys=("input",),
    ),
    Endpoint(
        "/api/embeddings",
        "api_embeddings",
        Dialect.OLLAMA,
        Shape.UNCOUNTED,
        "EmbeddingRequest",
        may_stream=False,
        takes_options=True,
        pull_hint=True,
        model_required=True,
        prompt_keys=("prompt",),
    ),
)

BY_PATH: dict[str, Endpoint] = {endpoint.path: endpoint for endpoint in ENDPOINTS}
