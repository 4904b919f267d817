"""Names and values of OpenTelemetry's conventions, in one place: those for GenAI are in development, and renamed.

GenAI: semantic-conventions v1.41, the last before they moved to a repository of their own. HTTP and errors: stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# The conventions know no Ollama, and allow values of one's own. It names the flavour of the telemetry, not of the API.
OLLAMA = "ollama"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"

# Ours, with the nouns of metrics and log.
NODE = "ollama_router.node"
OUTCOME = "ollama_router.outcome"
REASON = "ollama_router.reason"
REJECTION = "ollama_router.rejection"
REQUEST_ID = "ollama_router.request_id"
TEAM = "ollama_router.team"
ATTEMPT = "ollama_router.attempt"
COLD = "ollama_router.cold"

# gen_ai.operation.name by route.
OPERATIONS: Mapping[str, str] = MappingProxyType({
    "chat_completions": "chat",
    "responses": "chat",
    "messages": "chat",
    "api_chat": "chat",
    "completions": "text_completion",
    "api_generate": "text_completion",
    "embeddings": "embeddings",
    "api_embed": "embeddings",
    "api_embeddings": "embeddings",
    "transcriptions": "generate_content",
    "images": "generate_content",
})  # fmt: skip
