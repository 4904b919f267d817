"""Spans as OTLP's JSON over HTTP, for receivers that take no protobuf. Imported only where they are told to be sent so.

https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: as protobuf's own JSON, but for ids in hex and numbers
for enums.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.request import Request, urlopen

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

log = logging.getLogger(__name__)

_IDS = ("traceId", "spanId", "parentSpanId")
_CERTIFICATE = "OTEL_EXPORTER_OTLP_CERTIFICATE"  # as the SDK's own exporters read it


class JsonSpanExporter(SpanExporter):
    """Called by the processor's thread, which drops what was not taken."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._endpoint = endpoint
        self._headers = {**headers, "Content-Type": "application/json"}
        self._timeout_s = timeout_s
        is_https = endpoint.startswith("https:")
        self._tls = ssl.create_default_context(cafile=os.environ.get(_CERTIFICATE)) if is_https else None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        request = Request(self._endpoint, encoded(spans), self._headers)  # noqa: S310 - settings take http and https only
        try:
            with urlopen(request, timeout=self._timeout_s, context=self._tls) as answer:  # noqa: S310
                answer.read()
        except OSError as error:
            log.warning("%d spans were not taken by %s: %s", len(spans), self._endpoint, error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def encoded(spans: Sequence[ReadableSpan]) -> bytes:
    told: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in told["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                span.update({name: b64decode(span[name]).hex() for name in _IDS if name in span})
    return json.dumps(told, separators=(",", ":")).encode()
