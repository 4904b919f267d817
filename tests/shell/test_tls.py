"""TLS to nodes and to clients, credentials for nodes, and what the operator reads when a certificate is no good."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.fleet.node import Health, NodeSpec
from router.policy.retry import Failure
from router.settings import ConfigError
from router.simulation.node import SimulatedNode
from router.upstream.access import AccessBook, NodeAccess, trusting
from router.upstream.pool import ConnectFailed, ConnectionPool
from router.wiring import Router
from tests.shell.clients import generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import QUICK, pool_of, ready_on
from tests.shell.tls import CA, CERTIFICATES, tls_before, trusting_tests

SECRET = "Bearer node-s3cr3t"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@asynccontextmanager
async def behind_tls(certificate: str = "node", **node: Any) -> AsyncIterator[tuple[SimulatedNode, Router]]:
    async with pool_of(1) as pool, tls_before(pool.nodes[0], certificate) as port:
        named = {"url": f"https://localhost:{port}", "name": "sim-1", "ca_file": str(CA), **node}
        async with router_before([], nodes=[named], probe={"interval_s": 0.05}) as router:
            yield pool.nodes[0], router


async def test_a_node_behind_tls_is_probed_loaded_and_asked() -> None:
    async with behind_tls() as (node, router):
        await until(lambda: router.keeper.snapshot.all_read)
        for _ in range(2):
            answer = await generate(router, QUICK)
            assert (answer.status, answer.is_whole, b'"done":true' in answer.body) == (200, True, True)
        assert router.connections.busy == 0
        assert len(node.journal.to("/api/generate")) == 3, "a load and two calls"
        assert_at_rest(router)


async def test_every_request_to_a_node_carries_its_credentials_and_none_of_the_clients(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"# the proxy's\nAuthorization: {SECRET}\nX-Pool: ours\n")
    async with behind_tls(headers_file=str(headers)) as (node, router):
        await until(lambda: router.keeper.snapshot.all_read)
        answer = await generate(router, QUICK, authorization="Bearer client", x_pool="theirs")
        assert answer.status == 200
        assert len(node.journal.calls) > 4
        for seen in node.journal.calls:
            found = [(name.lower(), value) for name, value in seen.headers]
            assert [value for name, value in found if name in ("authorization", "x-pool")] == [SECRET, "ours"]
        assert "s3cr3t" not in json.dumps(answer.headers)
        assert "s3cr3t" not in repr(NodeAccess(None, ((b"Authorization", SECRET.encode()),)))


@pytest.mark.parametrize(
    ("certificate", "words"), [("stranger", "self-signed certificate"), ("elsewhere", "Hostname mismatch")]
)
async def test_a_certificate_that_is_no_good_is_told_and_takes_the_node_down(
    certificate: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with behind_tls(certificate) as (node, router):
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.DOWN)
        assert not node.journal.calls
        page = await scrape(router)
        assert page.labels("node_probe_failures_total", "reason") == {"tls"}
        told = [record.getMessage() for record in caplog.records if "probe of sim-1" in record.getMessage()]
        assert len(told) == 1, "once, not at every probe"
        assert words in told[0]


async def test_a_node_that_speaks_no_tls_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(1) as pool:
        named = {"url": pool.nodes[0].url.replace("http://", "https://"), "name": "sim-1"}
        async with router_before([], nodes=[named], probe={"interval_s": 0.05}) as router:
            await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.DOWN)
    assert any("probe of sim-1 failed: TLS: " in record.getMessage() for record in caplog.records)


async def test_traffic_that_meets_a_bad_certificate_blames_the_connect() -> None:
    async with pool_of(1) as pool, tls_before(pool.nodes[0], "stranger") as port:
        book = AccessBook()
        spec = NodeSpec("sim-1", "localhost", port, is_tls=True)
        book.replace({(spec.name, spec.url): NodeAccess(trusting(CA.read_text()))})
        connections = ConnectionPool(connect_s=5.0, resolve=lambda node: ("127.0.0.1",), access=book.of)
        with pytest.raises(ConnectFailed) as caught:
            await connections.connect(spec)
        assert caught.value.failure is Failure.TLS
        assert caught.value.text.startswith("TLS: self-signed certificate")
        assert connections.busy == 0
        await connections.close()


def test_without_a_ca_file_the_system_is_trusted_and_the_context_made_once() -> None:
    book = AccessBook()
    one, other = (book.of(NodeSpec(name, f"{name}.example", 443, is_tls=True)).tls for name in "ab")
    assert one is not None
    assert one is other
    assert one.check_hostname
    assert one.verify_mode is ssl.CERT_REQUIRED
    assert book.of(NodeSpec("c", "c.example", 80)).tls is None


def test_a_name_that_moves_takes_no_credentials_to_the_old_url() -> None:
    book = AccessBook()
    old, new = NodeSpec("a", "old.example", 80), NodeSpec("a", "new.example", 80)
    book.replace({("a", old.url): NodeAccess(None, ((b"Authorization", b"old"),))})
    book.replace({("a", new.url): NodeAccess(None, ((b"Authorization", b"new"),))})
    assert book.of(new).credentials == ((b"Authorization", b"new"),)
    assert book.of(old).credentials == ((b"Authorization", b"old"),), "for calls on their way"
    book.replace({})
    assert book.of(old).credentials == ()


@pytest.mark.parametrize(
    ("node", "content", "words"),
    [
        ({"headers_file": "x"}, "Host: other\n", "nodes[0].headers_file: {file}:1: Host is the router's own to send"),
        ({"headers_file": "x"}, None, "nodes[0].headers_file: {file}: No such file or directory"),
        ({"ca_file": "x"}, None, "nodes[0].ca_file: {file}: No such file or directory"),
        ({"ca_file": "x"}, "no certificate", "nodes[0].ca_file: {file}: TLS: "),
    ],
)
async def test_a_file_that_is_no_good_ends_the_start_with_its_path(
    node: dict[str, str], content: str | None, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    named = {"url": "https://gpu-1", **dict.fromkeys(node, str(file))}
    with pytest.raises(ConfigError) as caught:
        async with router_before([], nodes=[named]):
            pytest.fail("served without its files")
    (problem,) = caught.value.problems
    assert problem.startswith(words.format(file=file))


# The clients' side.


async def shown(router: Router, name: str | None = "localhost") -> tuple[str, bytes]:
    """Whose certificate a new client sees, and what it is answered."""
    context = trusting_tests()
    context.check_hostname = name is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, ssl=context, server_hostname=name or "")
    writer.write(b"GET /api/version HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    subject = writer.get_extra_info("peercert")["subject"]
    writer.close()
    return dict(pair[0] for pair in subject)["commonName"], answer


def pair_in(folder: Path, certificate: str, key: str = "") -> dict[str, str]:
    """Written as a mounted secret is: a new folder, then one link that leads to it."""
    generation = folder / f"..{certificate}-{key}-{len(list(folder.iterdir()))}"
    generation.mkdir()
    (generation / "tls.crt").write_bytes((CERTIFICATES / f"{certificate}.pem").read_bytes())
    (generation / "tls.key").write_bytes((CERTIFICATES / f"{key or certificate}.key").read_bytes())
    link = folder / "..new"
    link.symlink_to(generation.name)
    link.replace(folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    return {"cert_file": str(folder / "tls.crt"), "key_file": str(folder / "tls.key")}


@pytest.mark.parametrize("name", ["localhost", None])
async def test_clients_speak_tls_and_a_new_certificate_serves_new_connections(
    name: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router.reload")
    async with pool_of(1) as pool, router_before(pool.nodes, tls=pair_in(tmp_path, "node")) as router:
        subject, answer = await shown(router, name)
        assert (subject, answer.startswith(b"HTTP/1.1 200 ")) == ("node", True)
        kept = await asyncio.open_connection(
            "127.0.0.1", router.port, ssl=trusting_tests(), server_hostname="localhost"
        )
        pair_in(tmp_path, "renewed")
        await router.reloader.reload()
        assert (await shown(router, name))[0] == "renewed"
        assert "configuration reloaded: the listener's certificate" in caplog.messages
        kept[1].write(b"GET / HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n")
        assert (await kept[0].read()).endswith(b"Ollama is running"), "who is connected stays so"
        kept[1].close()


async def test_a_pair_that_does_not_fit_leaves_the_old_one_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, tls=pair_in(tmp_path, "node")) as router:
        pair_in(tmp_path, "renewed", key="node")
        await router.reloader.reload()
        assert (await shown(router))[0] == "node"
        assert any("does not belong to the certificate" in record.getMessage() for record in caplog.records)
        assert (await scrape(router)).value("config_last_reload_successful") == 0


async def test_a_stream_passes_whole_over_tls_on_both_sides(tmp_path: Path) -> None:
    async with pool_of(1) as pool, tls_before(pool.nodes[0]) as port:
        named = {"url": f"https://localhost:{port}", "name": "sim-1", "ca_file": str(CA)}
        async with router_before([], nodes=[named], tls=pair_in(tmp_path, "node")) as router:
            await until(lambda: router.keeper.snapshot.all_read)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", router.port, ssl=trusting_tests(), server_hostname="localhost"
            )
            body = json.dumps({"model": QUICK, "prompt": "?" * 100_000}).encode()
            head = f"POST /api/generate HTTP/1.1\r\nHost: r\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"0\r\n\r\n")
            await until(lambda: ready_on(router, QUICK) == 1)
            assert_at_rest(router)


async def test_who_speaks_no_tls_or_never_ends_his_handshake_holds_nothing(tmp_path: Path) -> None:
    client = {"header_s": 0.2}
    async with pool_of(1) as pool, router_before(pool.nodes, tls=pair_in(tmp_path, "node"), client=client) as router:
        for said in (b"GET / HTTP/1.1\r\nHost: router\r\n\r\n", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(said)
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
        assert (await shown(router))[0] == "node"


async def test_handshakes_in_progress_count_as_connections_until_their_time_is_over(tmp_path: Path) -> None:
    """Each has a descriptor, and two would be wanted for a call."""
    client = {"header_s": 0.5, "connections": 2}
    async with pool_of(1) as pool, router_before(pool.nodes, tls=pair_in(tmp_path, "node"), client=client) as router:
        mute = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(2)]
        assert (await shown(router))[1].startswith(b"HTTP/1.1 503 ")
        for reader, writer in mute:
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
        assert (await shown(router))[0] == "node"


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("node.pem", "renewed.key", "tls: the key in {key} does not belong to the certificate in {certificate}"),
        ("node.pem", "missing", "tls: {key}: No such file or directory"),
        ("README.md", "node.key", "tls: {certificate} and {key} are no certificate and key in PEM"),
    ],
)
async def test_a_pair_that_is_no_good_ends_the_start_in_words(certificate: str, key: str, words: str) -> None:
    paths = {"certificate": str(CERTIFICATES / certificate), "key": str(CERTIFICATES / key)}
    pair = {"cert_file": paths["certificate"], "key_file": paths["key"]}
    with pytest.raises(ConfigError) as caught:
        async with router_before([], tls=pair):
            pytest.fail("listened without a certificate")
    assert caught.value.problems[0].startswith(words.format(**paths))


# IPv6.


@pytest.mark.skipif(not has_ipv6(), reason="no ::1 here")
async def test_nodes_and_clients_on_ipv6() -> None:
    node = SimulatedNode("six", checks_host=True)
    await node.start("::1")
    named = {"url": f"http://[::1]:{node.server.port}"}
    try:
        async with router_before([], nodes=[named], listen="[::1]:0", metrics_listen="[::1]:0") as router:
            await until(lambda: router.keeper.snapshot.all_read)
            reader, writer = await asyncio.open_connection("::1", router.port)
            model = next(iter(node.disk.values())).name
            body = json.dumps({"model": model, "prompt": "?"}).encode()
            writer.write(b"POST /api/generate HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            await until(lambda: bool(node.journal.to("/api/generate")))
            asked = {value for seen in node.journal.calls for name, value in seen.headers if name.lower() == "host"}
            assert asked == {f"[::1]:{node.server.port}"}
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
    finally:
        await node.stop()


@pytest.mark.skipif(not has_ipv6(), reason="no ::1 here")
async def test_the_certificate_of_an_ipv6_node_is_checked_by_its_address() -> None:
    async with pool_of(1) as pool, tls_before(pool.nodes[0], host="::1") as port:
        named = {"url": f"https://[::1]:{port}", "ca_file": str(CA)}
        async with router_before([], nodes=[named]) as router:
            await until(lambda: router.keeper.snapshot.all_read)
            assert (await generate(router, QUICK)).status == 200
