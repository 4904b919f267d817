"""Where traces go, if anywhere."""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from router.settings.nodes import Group


class TraceProtocol(StrEnum):
    """As OTEL_EXPORTER_OTLP_PROTOCOL names them; gRPC is not spoken."""

    HTTP_PROTOBUF = "http/protobuf"
    HTTP_JSON = "http/json"


class TracingSettings(Group):
    """Spans by OTLP over HTTP; off without an endpoint. Needs the extra `tracing` of the package."""

    endpoint: str | None = Field(
        default=None,
        description="OTLP/HTTP receiver, such as http://collector:4318; without a path /v1/traces is added. Calls are "
        "traced only where this is set.",
    )
    protocol: TraceProtocol = Field(
        default=TraceProtocol.HTTP_PROTOBUF,
        description="How spans are written: http/protobuf, or http/json for receivers that take only that. gRPC is not "
        "spoken: collectors take http/protobuf on port 4318.",
    )
    headers_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with headers that every export carries, one NAME: VALUE a line: credentials of the receiver.",
    )
    sample_ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of the calls that are traced, of those that come without a traceparent header; else that "
        "header says.",
    )
    service_name: str = Field(
        default="ollama-router",
        min_length=1,
        description="service.name of the spans. More resource attributes may stand in OTEL_RESOURCE_ATTRIBUTES.",
    )

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should be a URL such as http://collector:4318")
        if parts.username or parts.password:
            raise ValueError("has credentials in it: a URL is shown and logged, so give them in headers_file")
        return endpoint if parts.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
