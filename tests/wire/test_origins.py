"""What an Origin means: Ollama's list, what an operator adds, and what a browser is told about it."""

from __future__ import annotations

import pytest

from router.wire.dialects import Answer
from router.wire.origins import AT_HOME, BUILT_IN_ONLY, STAINLESS_MAX, Crossing, OriginError, Origins, judge, origins_of
from tests.fakes.recordings import recording

LOCAL = "http://localhost:3000"


def cross(origin: str, *configured: str, method: str = "GET", host: str = "router:11435", **more: str) -> Crossing:
    origins = origins_of(configured) if configured else BUILT_IN_ONLY
    return judge(method, host=host, origin=origin, origins=origins, allow=("POST",), **more)


def preflight(origin: str = LOCAL, *configured: str, asked_headers: str = "") -> dict[str, list[str]]:
    crossing = cross(origin, *configured, method="OPTIONS", asked_headers=asked_headers)
    assert isinstance(crossing.answer, Answer)
    assert crossing.answer.status == 204
    found: dict[str, list[str]] = {}
    for name, value in crossing.answer.headers:
        found.setdefault(name.decode(), []).append(value.decode())
    return found


def is_let_in(crossing: Crossing) -> bool:
    return crossing.answer is None and not crossing.is_refused


def test_without_an_origin_or_with_our_own_nothing_is_said() -> None:
    assert cross("") == AT_HOME
    assert cross("http://router:11435") == AT_HOME
    assert cross("https://router:11435", method="OPTIONS") == AT_HOME


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "https://localhost:8443",
        "http://127.0.0.1:5173",
        "http://0.0.0.0:80",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://1a2b",
        "vscode-file://vscode-app",
    ],
)
def test_ollamas_own_list_is_let_in(origin: str) -> None:
    assert is_let_in(cross(origin))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost.evil.example",
        "http://localhost:3000.evil.example",
        "http://router:11436",
        "null",
        "chrome-extension://abcdef",
        "app://x\r\nSet-Cookie: a=b",
        "app://" + "x" * 3000,
        "app://café",
    ],
)
def test_a_foreign_origin_is_refused_without_a_body(origin: str) -> None:
    crossing = cross(origin)
    assert crossing.is_refused
    assert crossing.answer == Answer(403, ((b"x-ollama-router-refused", b"origin"),), b"")
    assert crossing.headers == ()
    assert cross(origin, method="OPTIONS") == crossing


@pytest.mark.parametrize(
    ("configured", "allowed", "refused"),
    [
        ("https://chat.example.com", "https://chat.example.com", "http://chat.example.com"),
        ("HTTPS://Chat.Example.com", "https://chat.example.com", "https://chat.example.com:8443"),
        ("https://*.example.com", "https://a.b.example.com", "https://example.com"),
        ("http://10.0.0.7:*", "http://10.0.0.7:3000", "http://10.0.0.71:3000"),
        ("chrome-extension://*", "chrome-extension://abc", "moz-extension://abc"),
        ("*.example.com", "http://x.example.com", "http://x.example.org"),
    ],
)
def test_an_operators_origin_is_let_in(configured: str, allowed: str, refused: str) -> None:
    assert is_let_in(cross(allowed, configured))
    assert cross(refused, configured).is_refused
    assert is_let_in(cross(LOCAL, configured)), "Ollama's own list stays"


def test_an_asterisk_alone_lets_everybody_in_and_says_so() -> None:
    crossing = cross("http://evil.example", "*")
    assert (b"Access-Control-Allow-Origin", b"*") in crossing.headers
    assert not [value for name, value in crossing.headers if name == b"Vary"]
    assert preflight("http://evil.example", "*")["Access-Control-Allow-Origin"] == ["*"]


@pytest.mark.parametrize(
    "configured", ["chat.example.com", "https://chat.example.com/", "https://a.*.example.*", "", "https://a b", "null"]
)
def test_an_origin_that_no_browser_sends_is_refused_at_load(configured: str) -> None:
    with pytest.raises(OriginError):
        origins_of([configured])


def test_an_allowed_page_may_read_what_the_router_decided() -> None:
    headers = {name.decode().lower(): value.decode() for name, value in cross(LOCAL).headers}
    assert headers["access-control-allow-origin"] == LOCAL
    assert headers["vary"] == "Origin"
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ollama-router-node", "x-ollama-router-refused"} <= set(exposed)


def test_a_preflight_is_the_recorded_one_with_more_headers_allowed() -> None:
    recorded: dict[str, list[str]] = {}
    for name, value in recording("catalog/cors-preflight").response.headers.pairs:
        if name not in (b"Date", b"Connection"):
            recorded.setdefault(name.decode(), []).append(value.decode())
    ours = preflight()
    assert list(ours) == list(recorded)
    ollamas, allowed = (found.pop("Access-Control-Allow-Headers")[0].lower().split(",") for found in (recorded, ours))
    assert ours == recorded
    assert allowed[: len(ollamas)] == ollamas
    assert {"x-api-key", "anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"} <= set(
        allowed
    )
    assert {"openai-beta", "x-ollama-router-affinity", "x-request-id"} <= set(allowed)


def test_headers_of_the_official_sdks_are_allowed_whatever_comes_next() -> None:
    asked = "authorization, X-Stainless-Tomorrow,x-stainless-os, x-stainless-\r\nevil, x-evil"
    allowed = preflight(asked_headers=asked)["Access-Control-Allow-Headers"][0].split(",")
    assert allowed[-1] == "x-stainless-tomorrow"
    assert allowed.count("x-stainless-os") == 0, "it stands in Ollama's list already"
    assert not [name for name in allowed if "evil" in name]


def test_headers_that_a_preflight_asks_for_are_repeated_within_bounds() -> None:
    asked = ",".join(f"x-stainless-{number}" for number in range(1000))
    allowed = preflight(asked_headers=asked)["Access-Control-Allow-Headers"][0].split(",")
    assert sum(name.startswith("x-stainless-") for name in allowed) == STAINLESS_MAX


def test_a_path_that_is_none_has_no_methods_to_tell() -> None:
    crossing = judge("OPTIONS", host="", origin=LOCAL, origins=Origins())
    assert crossing.answer is not None
    assert b"Allow" not in dict(crossing.answer.headers)
