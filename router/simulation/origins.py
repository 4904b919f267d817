"""CORS and Host rules of an Ollama with default settings (server/routes.go, recordings catalog/cors-*). Pure."""

from __future__ import annotations

import ipaddress
import re

from router.wire.origins import BUILT_IN_ONLY, MAX_AGE_S, METHODS, OLLAMA_HEADERS, is_same

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")


def is_allowed(origin: str, host: str) -> bool:
    return is_same(origin, host) or BUILT_IN_ONLY.allow(origin)


def allowed_headers(origin: str, host: str) -> tuple[tuple[str, str], ...]:
    """None for the same origin, nor without one."""
    if not origin or is_same(origin, host):
        return ()
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))


def preflight_headers(origin: str, allow: str) -> list[tuple[str, str]]:
    headers = [
        ("Access-Control-Allow-Headers", OLLAMA_HEADERS),
        ("Access-Control-Allow-Methods", METHODS),
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Max-Age", str(MAX_AGE_S)),
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
