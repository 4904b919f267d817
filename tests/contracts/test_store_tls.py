"""A Redis that speaks TLS: whom a router trusts, what it shows, and what is renewed in files while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.settings import ConfigError
from router.store.redis.link import Link
from tests.contracts.live_stores import all_alone, all_back, beats, replicas
from tests.fakes import redis_server
from tests.fakes.redis_groups import Watched
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import router_before, until
from tests.shell.tls import CA, CERTIFICATES

Start = Callable[..., Server]


def lines(certificate: str = "node", ca: str = "ca") -> tuple[str, ...]:
    """`ca`: whose certificates the server takes of its clients."""
    files = {"cert": f"{certificate}.pem", "key": f"{certificate}.key", "ca-cert": f"{ca}.pem"}
    return tuple(part for name, file in files.items() for part in (f"--tls-{name}-file", str(CERTIFICATES / file)))


@pytest.fixture
def started() -> Iterator[Start]:
    binary, servers = redis_server.redis_binary(), []
    if binary is None:
        pytest.skip("no redis-server on PATH, and the packaged Valkey is built without TLS")

    def start(*more: str) -> Server:
        port = free_port()
        servers.append(Server(binary, 0, "--tls-port", str(port), *more))
        servers[-1].port = port
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


def secure(server: Server, user: str = "") -> str:
    return f"rediss://{user}127.0.0.1:{server.port}"


NOBODY = ("--tls-auth-clients", "no")


async def test_a_server_whose_certificate_is_of_the_named_authority_is_spoken_to(started: Start) -> None:
    server = started(*lines(), *NOBODY)
    async with replicas(secure(server), ca_file=str(CA)) as made:
        await beats(made)
        assert not any(one.store.is_alone for one in made)


@pytest.mark.parametrize(
    ("certificate", "said"), [("stranger", "certificate verify failed"), ("elsewhere", "IP address mismatch")]
)
async def test_a_server_that_is_not_trusted_is_named_once(
    started: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, certificate: str, said: str
) -> None:
    server = started(*lines(certificate), *NOBODY)
    tries, connect = 0, Link.connect

    async def counted(link: Link) -> None:
        nonlocal tries
        tries += 1
        await connect(link)

    monkeypatch.setattr(Link, "connect", counted)
    async with replicas(secure(server), "a", ca_file=str(CA)) as (one,):
        await until(lambda: tries == 3)
        assert one.store.is_alone
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("router.")]
    assert said in warning


async def test_a_client_certificate_is_shown_where_the_server_wants_one(started: Start) -> None:
    server = started(*lines(ca="stranger"), "--tls-auth-clients", "yes")
    own = {"cert_file": str(CERTIFICATES / "stranger.pem"), "key_file": str(CERTIFICATES / "stranger.key")}
    async with replicas(secure(server), "a", ca_file=str(CA), **own) as (one,):
        assert not one.store.is_alone
    async with replicas(secure(server), "a", ca_file=str(CA)) as (stranger,):
        assert stranger.store.is_alone


async def test_a_password_that_was_changed_in_its_file_lets_in_again_without_a_restart(tmp_path: Path) -> None:
    server = Server(redis_server.valkey_binary(), free_port()).start()
    secret = tmp_path / "password"
    secret.write_text("first\n")
    rights = ("~ollama-router:*", "+@read", "+@write", "+fcall", "+function|load", "+@connection", "+info", "+time")
    try:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "router", "on", ">first", *rights)
            url = server.url.replace("//", "//router@")
            async with replicas(url, password_file=str(secret)) as made:
                assert not any(one.store.is_alone for one in made)
                client.execute_command("ACL", "SETUSER", "router", "<first", ">second")
                client.execute_command("CLIENT", "KILL", "USER", "router")
                await all_alone(made)
                secret.write_text("second\n")
                await all_back(made)
                await beats(made)
    finally:
        server.stop()


async def test_sentinels_and_what_they_watch_may_all_speak_tls() -> None:
    binary = redis_server.redis_binary()
    if binary is None:
        pytest.skip("no redis-server on PATH, and the packaged Valkey is built without TLS")
    group = Watched(binary, tls=(*lines(), *NOBODY, "--tls-replication", "yes"))
    try:
        await asyncio.to_thread(group.start)
        url = group.url.replace("redis+", "rediss+")
        async with replicas(url, ca_file=str(CA)) as made:
            await beats(made)
            assert not any(one.store.is_alone for one in made)
    finally:
        group.stop()


KEY = str(CERTIFICATES / "node.key")
CERTIFICATE = str(CERTIFICATES / "node.pem")


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ({"url": "rediss://h", "ca_file": "/no/file"}, "store.ca_file: /no/file: No such file or directory"),
        ({"url": "rediss://h", "ca_file": KEY}, f"store.ca_file: {KEY}: TLS: "),
        ({"url": "rediss://h", "cert_file": "/no/file"}, "store.cert_file: /no/file: No such file or directory"),
        (
            {"url": "rediss://h", "cert_file": CERTIFICATE, "key_file": str(CERTIFICATES / "stranger.key")},
            f"store.cert_file: {CERTIFICATE}, {CERTIFICATES / 'stranger.key'}: TLS: KEY_VALUES_MISMATCH",
        ),
        ({"url": "redis://h", "password_file": "/no/file"}, "store.password_file: /no/file: No such file"),
        (
            {"url": "redis+sentinel://h/m", "sentinel_password_file": "/no/file"},
            "store.sentinel_password_file: /no/file: No such file",
        ),
        ({"url": "redis://h", "ca_file": CERTIFICATE}, "store.ca_file: is for rediss:// URLs"),
        ({"url": "redis://h", "cert_file": CERTIFICATE}, "store.cert_file: is for rediss:// URLs"),
        ({"url": "rediss://h", "key_file": KEY}, "store.key_file: is for store.cert_file, which is not set"),
        ({"url": "redis+cluster://h", "sentinel_user": "u"}, "store.sentinel_user: is for redis+sentinel://"),
    ],
)
async def test_what_cannot_be_used_ends_the_start_with_its_path(store: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with router_before([], store=store):
            pytest.fail("served without its files")
    (problem,) = caught.value.problems
    assert problem.startswith(words)
