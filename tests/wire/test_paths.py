"""Which path is what: decoded, cleaned and redirected as Go's net/http and gin do it, and never to another host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire import paths
from router.wire.dialects import Answer
from router.wire.endpoints import BY_PATH, Dialect
from router.wire.paths import Page
from tests.fakes.recordings import recording

SPELLINGS = st.text("/.a%2eFf\\\r\n:@?#é\udc80 ", max_size=24)


def location(answer: Answer | None) -> str:
    assert answer is not None, "nothing moved"
    return dict(answer.headers)[b"Location"].decode()


@pytest.mark.parametrize("name", ["catalog/double-slash", "catalog/trailing-slash", "catalog/trailing-slash-post"])
def test_redirects_are_the_recorded_ones(name: str) -> None:
    each = recording(name)
    answer = paths.moved(each.request.method, each.path)
    assert answer is not None
    assert (answer.status, answer.body) == (each.response.status, each.response.body)
    recorded = [pair for pair in each.response.headers.pairs if pair[0] in (b"Content-Type", b"Location")]
    assert list(answer.headers) == recorded


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("/", "/"),
        ("//", "/"),
        ("//api//tags", "/api/tags"),
        ("/api/./tags/", "/api/tags/"),
        ("/api/x/../tags", "/api/tags"),
        ("/../../api/tags", "/api/tags"),
        ("/..", "/"),
    ],
)
def test_paths_are_cleaned_as_go_cleans_them(path: str, cleaned: str) -> None:
    assert paths.clean(path) == cleaned


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/", 301),
        ("GET", "/v1/models/llama3:8b/", 301),
        ("HEAD", "/api/tags/", 307),
        ("DELETE", "/api/delete/", 307),
        ("POST", "/v1/chat/completions/", 307),
    ],
)
def test_a_trailing_slash_leads_to_the_route_without_it(method: str, path: str, status: int) -> None:
    answer = paths.moved(method, path)
    assert answer is not None
    assert (answer.status, location(answer)) == (status, path.removesuffix("/"))
    assert (answer.body == b"") == (method not in ("GET", "HEAD"))


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/"), ("GET", "/nope/"), ("POST", "/api/tags/"), ("POST", "/api/blobs/"), ("GET", "/")],
)
def test_a_trailing_slash_leads_nowhere_where_the_method_has_no_route(method: str, path: str) -> None:
    """As gin looks only into the tree of the method."""
    assert paths.moved(method, path) is None


def test_a_redirect_keeps_the_query() -> None:
    assert location(paths.moved("GET", "/api/tags/", query="a=1&b=<é")) == "/api/tags?a=1&b=<%C3%A9"


@pytest.mark.parametrize(
    ("prefix", "where"),
    [
        ("/ollama", "/ollama/api/tags"),
        ("/ollama/", "/ollama/api/tags"),
        ("ollama", "/ollama/api/tags"),
        ("/a/../b", "/b/api/tags"),
        ("//evil.example", "/evilexample/api/tags"),
        ("https://evil.example", "/https/evilexample/api/tags"),
        ("/\\evil.example", "/evilexample/api/tags"),
        ("/x\r\nSet-Cookie: a=b", "/xSet-Cookieab/api/tags"),
        ("/", "/api/tags"),
    ],
)
def test_a_forwarded_prefix_goes_before_the_path_and_can_do_no_more(prefix: str, where: str) -> None:
    assert location(paths.moved("GET", "/api/tags/", forwarded_prefix=prefix)) == where


@given(method=st.sampled_from(["GET", "POST", "HEAD"]), sent=SPELLINGS, prefix=SPELLINGS, query=SPELLINGS)
def test_no_redirect_leaves_the_host_or_breaks_out_of_its_header(
    method: str, sent: str, prefix: str, query: str
) -> None:
    path = paths.decoded("/" + sent)
    if path is None:
        return
    for asked in (path, f"/{path}/api/tags/", "/api/tags/"):
        answer = paths.moved(method, asked, query=query, forwarded_prefix=prefix)
        if answer is not None:
            where = location(answer)
            assert where.startswith("/")
            assert not where.startswith(("//", "/\\"))
            assert where.isascii()
            assert where.isprintable()


@given(SPELLINGS)
def test_a_redirect_leads_to_a_path_that_stays(sent: str) -> None:
    path = paths.decoded("/" + sent)
    if path is not None and (answer := paths.moved("GET", path)) is not None:
        assert paths.moved("GET", paths.decoded(location(answer)) or "") is None or answer.status == 307


@pytest.mark.parametrize("path", ["", "*", "api/tags", "/%", "/%zz", "/%a"])
def test_what_net_url_does_not_take_is_no_path(path: str) -> None:
    assert paths.decoded(path) is None


def test_a_path_is_matched_decoded() -> None:
    assert paths.decoded("/%61pi/tags") == "/api/tags"
    assert paths.decoded("/v1/chat%2Fcompletions") == "/v1/chat/completions"
    assert paths.decoded("/caf%C3%A9/%ff") == "/café/\udcff"
    assert paths.decoded("/café") == "/café"


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/api/tags", ("/api/tags", "")),
        ("/api/tags?a=1?b", ("/api/tags", "a=1?b")),
        ("http://router:11434/api/tags?a", ("/api/tags", "a")),
        ("HTTPS://router", ("/", "")),
        ("http://router?a", ("/", "a")),
        ("*", ("*", "")),
    ],
)
def test_a_target_is_a_path_and_a_query(target: str, parts: tuple[str, str]) -> None:
    assert paths.split_target(target) == parts


@pytest.mark.parametrize(
    ("path", "page", "methods", "parameter"),
    [
        ("/", Page.ROOT, ("HEAD", "GET"), ""),
        ("/v1/models/llama3:8b", Page.MODEL, ("GET",), "llama3:8b"),
        ("/api/blobs/sha256:00", Page.BLOB, ("HEAD", "POST"), "sha256:00"),
        ("/api/user/keys/abc", Page.ACCOUNT, ("DELETE",), "abc"),
        ("/api/experimental/web_search", Page.EXPERIMENTAL, ("POST",), ""),
        ("/api/experimental/next", Page.EXPERIMENTAL, (), "next"),
    ],
)
def test_a_route_has_its_methods_in_ollamas_order(
    path: str, page: Page, methods: tuple[str, ...], parameter: str
) -> None:
    route = paths.route_of(path)
    assert route is not None
    assert (route.page, route.methods, route.parameter) == (page, methods, parameter)
    assert paths.methods_at(path) == methods


@pytest.mark.parametrize("path", ["/v1/models/ns/name", "/v1/models/", "/api/blobs/", "/api", "/V1/models", "/v1"])
def test_a_parameter_is_one_segment(path: str) -> None:
    assert paths.route_of(path) is None
    assert paths.methods_at(path) == ()


def test_every_inference_route_is_a_path() -> None:
    for path in BY_PATH:
        route = paths.route_of(path)
        assert route is not None
        assert (route.page, route.methods) == (Page.INFERENCE, ("POST",))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/models", "models"),
        ("/v1/models/x", "models"),
        ("/api/tags", "api_tags"),
        ("/api/show", "api_show"),
        ("/api/pull", "api_manage"),
        ("/api/blobs/sha256-0", "api_manage"),
        ("/api/chat", "api_chat"),
        ("/", "other"),
        ("/chat/completions", "other"),
    ],
)
def test_a_page_has_a_label_of_few_words_whatever_was_asked_for(path: str, label: str) -> None:
    assert paths.label_of(path) == label


def test_the_dialect_is_that_of_the_route() -> None:
    dialects = [paths.dialect_of(path) for path in ("/v1/messages", "/v1/models/x", "/api/show", "/nope")]
    assert dialects == [Dialect.ANTHROPIC, Dialect.OPENAI, Dialect.OLLAMA, Dialect.OLLAMA]
