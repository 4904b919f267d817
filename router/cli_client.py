"""Asks a running router's admin API, and says in one line why that did not work."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_S = 10.0  # everything is answered from memory
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # a thousand nodes with fifty copies each are a tenth of it
TOKEN_BYTES_MAX = 4096


class AdminFailed(Exception):
    """The text is for the operator."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token goes where it was meant to go, and nowhere else."""

    def redirect_request(  # noqa: PLR0917 - urllib's own
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class AdminClient:
    """Every method raises AdminFailed."""

    def __init__(self, url: str, token_file: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._timeout_s = timeout_s
        # No proxy of the environment: it stands between this machine and others, not between it and itself.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)

    def get(self, *steps: str, **query: str) -> Any:
        asked = f"?{urlencode(query)}" if query else ""
        return self._ask(f"{self._path(steps)}{asked}", None)

    def post(self, *steps: str) -> Any:
        return self._ask(self._path(steps), b"")

    def _path(self, steps: tuple[str, ...]) -> str:
        return "/".join([f"{self._url}/admin", *(quote(step, safe="") for step in steps)])

    def _ask(self, url: str, body: bytes | None) -> Any:
        """GET without a body, else POST."""
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - http, checked
        if self._token_file is not None:
            request.add_header("Authorization", f"Bearer {_token(self._token_file)}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return _json(answer.read(ANSWER_BYTES_MAX), self._url)
        except urllib.error.HTTPError as error:
            raise AdminFailed(_error_of(error, self._url)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise AdminFailed(
                f"no router answers at {self._url}: {why.lower()}. Is it running there? --admin URL or "
                "OLLAMA_ROUTER_ADMIN_URL says where its admin API listens"
            ) from None


def checked_url(text: str) -> str:
    """http or https, a host, nothing behind it. Refuses with ValueError."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    is_plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain or parts.port == 0:
        raise ValueError("should be a URL such as http://127.0.0.1:9465")
    return f"{parts.scheme}://{parts.netloc}"


def _token(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise AdminFailed(f"--token-file {name}: {getattr(error, 'strerror', None) or 'holds no token'}") from None
    if not token.isprintable() or not token:
        raise AdminFailed(f"--token-file {name}: holds no token")
    return token


def _json(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise AdminFailed(f"what answers at {url} is no router's admin API: it sends no JSON") from None


def _error_of(error: urllib.error.HTTPError, url: str) -> str:
    try:
        answer = json.loads(error.read(ANSWER_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError):
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"what answers at {url} is no router's admin API: status {error.code} without a word"
