"""CORS and Host rules of an Ollama with default settings (server/routes.go, recordings catalog/cors-*). Pure."""

from __future__ import annotations

import ipaddress
import re

_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_BUILT_IN = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d+)?|(app|file|tauri|vscode-webview|vscode-file)://.*"
)
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def is_allowed(origin: str, host: str) -> bool:
    return _is_same(origin, host) or _BUILT_IN.fullmatch(origin) is not None


def allowed_headers(origin: str, host: str) -> tuple[tuple[str, str], ...]:
    """None for the same origin, nor without one."""
    if not origin or _is_same(origin, host):
        return ()
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))


def preflight_headers(origin: str, allow: str) -> list[tuple[str, str]]:
    headers = [
        ("Access-Control-Allow-Headers", _HEADERS),
        ("Access-Control-Allow-Methods", _METHODS),
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Max-Age", "43200"),
        ("Vary", "Origin"),
        ("Vary", "Access-Control-Request-Method"),
        ("Vary", "Access-Control-Request-Headers"),
    ]
    return [*headers, ("Allow", allow)] if allow else headers


def check_host(host: str) -> bool:
    """Whether a server that listens on loopback takes this Host."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    if name in ("", "localhost") or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _is_same(origin: str, host: str) -> bool:
    return origin in (f"http://{host}", f"https://{host}")
