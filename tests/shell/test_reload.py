"""The configuration lives: what changes in the file or in mounted secrets is in force without a restart, or told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from router import wiring_discovery
from router.admission import Admission
from router.control.config import FRESH_S, GONE_LOOKS, ConfigWatch, Files
from router.fleet.tickets import Lease
from router.settings import Origin, Settings, load_settings
from router.settings.changes import NEED_RESTART, changed, kept, value_of
from router.settings.load import setting_paths
from router.simulation.pool import SimulatedPool
from router.wiring import Rereading, Router, running
from tests.shell.clients import Client, Scrape, generate, get, scrape
from tests.shell.house import LOOPBACK, assert_at_rest, quiet_logs, until
from tests.shell.scenes import ENDLESS, QUICK, let_run, load_into, pool_of, ready_on
from tests.shell.scenes import running as running_calls
from tests.shell.test_shutdown import process

POLL_S = 0.02
KEYS_FILE = str(Path(__file__).with_name("keys.yaml"))
NEVER_S = 3600.0


class Mounted:
    """A configuration file as Kubernetes mounts it: `router.yaml` -> `..data/router.yaml`, replaced by one rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "router.yaml"
        self._generation = 0

    def write(self, text: str) -> None:
        self._generation += 1
        generation = self.folder / f"..{self._generation}"
        generation.mkdir()
        (generation / "router.yaml").write_text(text)
        link = self.folder / "..data_tmp"
        link.symlink_to(generation.name)
        link.replace(self.folder / "..data")
        if not self.path.is_symlink():
            self.path.symlink_to("..data/router.yaml")

    def say(self, pool: SimulatedPool | None = None, /, **settings: Any) -> None:
        nodes = [{"url": node.url, "name": node.name} for node in pool.nodes] if pool is not None else []
        basis = {
            "listen": LOOPBACK,
            "metrics_listen": LOOPBACK,
            "admin": {"listen": LOOPBACK},
            "nodes": nodes,
            "probe": {"interval_s": 0.05},
            "shutdown": {"drain_delay_s": 0},
        }
        self.write(yaml.safe_dump({**basis, **settings}))


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    folder = tmp_path / "config"
    folder.mkdir()
    return Mounted(folder)


@asynccontextmanager
async def reading(mounted: Mounted, poll_s: float = POLL_S, **overrides: Any) -> AsyncIterator[Router]:
    """A router that watches the file."""
    origin = Origin(str(mounted.path), overrides)
    seen = Files().look([str(mounted.path)])
    rereading = Rereading(origin, asyncio.Event(), poll_s=poll_s, seen=seen)
    with quiet_logs() as logs:
        async with running(origin.read(), logs, Random(0), rereading) as router:
            await until(lambda: router.keeper.snapshot.all_read)
            yield router


def messages(caplog: pytest.LogCaptureFixture, *names: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in names]


async def reloads(router: Router, result: str, count: int = 1) -> Scrape:
    """Waits for so many reloads that ended so."""
    async with asyncio.timeout(10):
        while (page := await scrape(router)).value("config_reloads_total", result=result) < count:
            pass
    return page


async def test_an_alias_that_comes_is_served_and_listed(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        mounted.say(pool)
        async with reading(mounted) as router:
            assert (await generate(router, "gpt-4")).status == 404
            listed = (await get(router.port, "/v1/models")).body
            mounted.say(pool, aliases={"gpt-4": QUICK})
            page = await reloads(router, "ok")
            assert (await generate(router, "gpt-4")).status == 200
            assert b'"gpt-4:latest"' in (await get(router.port, "/v1/models")).body
            assert b"gpt-4" not in listed
            assert page.value("config_last_reload_successful") == 1
            assert page.value("config_reloads_total", result="failed") == 0


async def test_a_node_that_comes_is_used_and_one_that_goes_ends_its_calls(mounted: Mounted) -> None:
    async with pool_of(2) as pool:
        first, second = pool.nodes
        load_into(first, ENDLESS)
        only = [{"url": first.url, "name": first.name}]
        mounted.say(nodes=only)
        async with reading(mounted) as router, Client(router.port) as client:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await client.first(b'"done":false')
            mounted.say(nodes=[{"url": second.url, "name": second.name}])
            await until(lambda: list(router.keeper.snapshot.nodes) == [second.name])
            await until(lambda: router.keeper.snapshot.all_read)
            assert (await generate(router, QUICK)).node == second.name
            let_run(first)
            answer = await client.answer()
            assert (answer.status, answer.is_whole, b'"done":true' in answer.body) == (200, True, True)
            await until(lambda: "1 busy" not in repr(router.connections))
            assert first.name not in router.connections._idle, "no connection is kept to a node that left"
            assert_at_rest(router)
            assert (await scrape(router)).value("discovery_nodes", source="static") == 1


async def test_a_node_that_returns_is_another_start_and_serves_again(mounted: Mounted) -> None:
    """Also one that had been down and back before it left: the store must not take it for its first start."""
    async with pool_of(1) as pool:
        node = pool.nodes[0]
        mounted.say(pool)
        async with reading(mounted) as router:
            incarnations = [router.keeper.snapshot.nodes[node.name].incarnation]
            await node.set_fault("refuse")
            await until(lambda: router.keeper.snapshot.nodes[node.name].health == "down")
            await node.clear_faults()
            await until(lambda: router.keeper.snapshot.nodes[node.name].health == "healthy")
            incarnations.append(router.keeper.snapshot.nodes[node.name].incarnation)
            for _ in range(2):
                mounted.say()
                await until(lambda: not router.keeper.snapshot.nodes)
                assert (await generate(router, QUICK)).status == 404
                mounted.say(pool)
                await until(lambda: router.keeper.snapshot.all_read and bool(router.keeper.snapshot.nodes))
                incarnations.append(router.keeper.snapshot.nodes[node.name].incarnation)
                assert (await generate(router, QUICK)).status == 200
            assert incarnations == sorted(set(incarnations))


async def test_a_name_that_moves_to_another_server_keeps_nothing_of_the_old_one(mounted: Mounted) -> None:
    async with pool_of(2) as pool:
        first, second = pool.nodes
        load_into(first, QUICK)
        mounted.say(nodes=[{"url": first.url, "name": "gpu"}])
        async with reading(mounted) as router:
            await until(lambda: ready_on(router, QUICK) == 1)
            before = router.keeper.snapshot.nodes["gpu"].incarnation
            await second.set_fault("hang", path="/api/ps")
            mounted.say(nodes=[{"url": second.url, "name": "gpu"}])
            await until(lambda: router.keeper.snapshot.nodes["gpu"].spec.url == second.url)
            assert ready_on(router, QUICK) == 0
            assert router.keeper.snapshot.nodes["gpu"].incarnation > before
            await second.clear_faults()
            await until(lambda: router.keeper.snapshot.all_read)
            assert (await generate(router, QUICK)).status == 200
            assert len(first.journal.to("/api/generate")) == 0


async def test_slots_of_a_node_change_under_its_calls(mounted: Mounted) -> None:
    async with pool_of(1, slots=2) as pool:
        node = pool.nodes[0]
        load_into(node, ENDLESS)
        mounted.say(nodes=[{"url": node.url, "name": node.name, "slots": 1}])
        async with reading(mounted) as router, Client(router.port) as one, Client(router.port) as two:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            for client in (one, two):
                client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await until(lambda: running_calls(pool) == 1 and bool(router.store.book.ledger.waiting))
            mounted.say(nodes=[{"url": node.url, "name": node.name, "slots": 2}])
            await until(lambda: running_calls(pool) == 2)
            let_run(node)
            assert [(await client.answer()).status for client in (one, two)] == [200, 200]


async def test_a_call_keeps_the_rules_it_began_with(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        load_into(pool.nodes[0], ENDLESS)
        mounted.say(pool, aliases={"gpt-4": ENDLESS}, timeouts={"idle_s": 300})
        async with reading(mounted) as router, Client(router.port) as client:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            client.send("/api/generate", {"model": "gpt-4", "prompt": "?"})
            await client.first(b'"done":false')
            mounted.say(pool, timeouts={"idle_s": 0.01})
            await reloads(router, "ok")
            assert (await generate(router, "gpt-4")).status == 404
            let_run(pool.nodes[0])
            answer = await client.answer()
            assert answer.body.count(b'"model":"gpt-4"') == answer.body.count(b"\n") > 1
            assert b'"done":true' in answer.body


async def test_a_call_whose_node_leaves_in_the_moment_of_its_grant_is_served_there(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_of(1) as pool:
        node = pool.nodes[0]
        load_into(node, ENDLESS)
        mounted.say(pool)
        async with reading(mounted) as router, Client(router.port) as one, Client(router.port) as two:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            for client in (one, two):
                client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await until(lambda: running_calls(pool) == 1 and bool(router.store.book.ledger.waiting))
            give = Admission._granted
            removals = []

            def removing(admission: Admission, lease: Lease) -> bool:
                # Runs before the waiter does, and ends in one step: the store in memory never suspends.
                removals.append(asyncio.create_task(router.keeper.remove(lease.node)))
                return give(admission, lease)

            monkeypatch.setattr(router.store._desk, "on_grant", partial(removing, router.pipeline._admission))
            let_run(node)
            assert [(await client.answer()).status for client in (one, two)] == [200, 200]
            assert not router.keeper.snapshot.nodes
            assert len(removals) == 1
            assert_at_rest(router)


async def test_no_call_is_lost_while_nodes_come_and_go_under_it(mounted: Mounted) -> None:
    async with pool_of(2, slots=2) as pool:
        for node in pool.nodes:
            load_into(node, QUICK)
        both = [{"url": node.url, "name": node.name, "slots": 2} for node in pool.nodes]
        mounted.say(nodes=both, aliases={"gpt-4": QUICK})
        async with reading(mounted, poll_s=NEVER_S) as router:
            await until(lambda: ready_on(router, QUICK) == 2)
            over = asyncio.Event()

            async def calls(number: int) -> list[int]:
                statuses = []
                while not over.is_set():
                    statuses.append((await generate(router, "gpt-4", prompt=f"{number}: ?")).status)
                return statuses

            callers = [asyncio.create_task(calls(number)) for number in range(6)]
            for turn in range(12):
                kept = both if turn % 2 else both[:1]
                mounted.say(nodes=kept, aliases={"gpt-4": QUICK, f"turn-{turn}": QUICK})
                await router.reloader.reload()
                await until(lambda: len(router.keeper.snapshot.nodes) == len(kept) and router.keeper.snapshot.all_read)  # noqa: B023
            over.set()
            statuses = [status for answered in await asyncio.gather(*callers) for status in answered]
            assert len(statuses) > 12
            assert set(statuses) == {200}
            assert_at_rest(router)


async def test_a_shorter_line_sends_nobody_away_who_waits(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        load_into(pool.nodes[0], ENDLESS)
        mounted.say(pool)
        async with reading(mounted) as router, Client(router.port) as one, Client(router.port) as two:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            for client in (one, two):
                client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await until(lambda: bool(router.store.book.ledger.waiting))
            mounted.say(pool, line={"max_waiting_per_model": 0})
            page = await reloads(router, "ok")
            assert page.value("queue_limit", model=ENDLESS) == 0
            assert (await generate(router, ENDLESS)).refused == "queue_full"
            let_run(pool.nodes[0])
            assert [(await client.answer()).status for client in (one, two)] == [200, 200]


async def test_a_bad_file_changes_nothing_and_is_told_line_by_line_once(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(1) as pool:
        mounted.say(pool, aliases={"gpt-4": QUICK})
        async with reading(mounted) as router:
            mounted.write("aliases: {gpt-4: elsewhere}\nlimits:\n  body_bytes: 1\nnodes: [ftp://x]\n")
            page = await reloads(router, "failed")
            assert page.value("config_last_reload_successful") == 0
            assert (await generate(router, "gpt-4")).status == 200
            told = messages(caplog, "router.reload")
            name = mounted.path
            assert [line.removeprefix(f"configuration not reloaded: {name}") for line in told] == [
                ":4: nodes[0].url: 'ftp://x' should begin with http:// or https://, or be HOST[:PORT]",
                ":3: limits.body_bytes: input should be greater than or equal to 1024, not 1",
            ]
            began_s = page.value("config_last_reload_success_timestamp_seconds")
            mounted.say(pool, aliases={"gpt-4": QUICK})
            page = await reloads(router, "ok")
            assert page.value("config_last_reload_successful") == 1
            assert page.value("config_reloads_total", result="failed") == 1, "not tried again while it is the same"
            assert page.value("config_last_reload_success_timestamp_seconds") >= began_s > 0


async def test_a_reload_says_what_has_changed(mounted: Mounted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.reload")
    async with pool_of(1) as pool:
        mounted.say(pool)
        async with reading(mounted, poll_s=NEVER_S) as router:
            for change in ({"aliases": {"gpt-4": QUICK}, "line": {"max_wait_s": 7}}, {}, {}):
                mounted.say(pool, **change)
                await router.reloader.reload()
    told = [line.removeprefix("configuration reloaded: ") for line in messages(caplog, "router.reload")]
    assert told[0] == told[1] == "aliases, line.max_wait_s"
    assert told[2] == "it says what is in force"


async def test_what_needs_a_restart_is_told_in_one_line_and_the_rest_applied(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(1) as pool:
        mounted.say(pool)
        async with reading(mounted) as router:
            mounted.say(pool, aliases={"gpt-4": QUICK}, pool="other", client={"connections": 7}, listen="127.0.0.1:9")
            await reloads(router, "ok")
            assert (await generate(router, "gpt-4")).status == 200
            late = [line for line in messages(caplog, "router.reload") if "restart" in line]
            assert late == ["these settings need a restart and stay as they were: pool, listen, client.connections"]
            assert router.settings.pool == "default"


async def test_the_command_line_keeps_its_precedence(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        mounted.say(pool)
        async with reading(mounted, aliases={"gpt-4": QUICK}, log={"level": "error"}) as router:
            mounted.say(aliases={"gpt-4": "elsewhere", "gpt-5": QUICK}, log={"level": "debug"}, nodes=[])
            await reloads(router, "ok")
            aliases = router.pipeline.rules.aliases
            assert [aliases.candidates(f"gpt-{number}:latest") for number in (4, 5)] == [(QUICK,), (QUICK,)]
            assert router.settings.log.level == "error"


async def test_credentials_that_change_are_sent_from_then_on(mounted: Mounted, tmp_path: Path) -> None:
    secret = tmp_path / "headers"
    secret.write_text("Authorization: old\n")
    async with pool_of(1) as pool:
        node = pool.nodes[0]
        mounted.say(nodes=[{"url": node.url, "name": node.name, "headers_file": str(secret)}])
        async with reading(mounted) as router:
            assert (await generate(router, QUICK)).status == 200
            secret.write_text("Authorization: new\n")
            await reloads(router, "ok")
            node.journal.calls.clear()
            assert (await generate(router, QUICK)).status == 200
            sent = [pair for seen in node.journal.calls for pair in seen.headers]
            assert {value for name, value in sent if name.lower() == "authorization"} == {"new"}
            secret.write_text("Host: evil\n")
            await reloads(router, "failed")
            assert (await generate(router, QUICK)).status == 200


async def test_a_secret_that_a_bad_reload_lacked_is_read_when_it_comes(mounted: Mounted, tmp_path: Path) -> None:
    secret = tmp_path / "headers"
    async with pool_of(1) as pool:
        node = pool.nodes[0]
        mounted.say(pool)
        async with reading(mounted) as router:
            mounted.say(nodes=[{"url": node.url, "name": node.name, "headers_file": str(secret)}])
            await reloads(router, "failed")
            secret.write_text("Authorization: at last\n")
            page = await reloads(router, "ok")
            assert page.value("config_last_reload_successful") == 1


# What may change.


def a_change_of(path: str) -> Any:
    """Another good value for a setting."""
    special: Mapping[str, Any] = {
        "pool": "other",
        "listen": "127.0.0.1:1",
        "metrics_listen": "127.0.0.1:2",
        "admin.listen": "127.0.0.1:3",
        "admin.token_file": "token",
        "nodes": [{"url": "http://gpu-9", "slots": 3}],
        "aliases": {"gpt-9": QUICK},
        "auth.required": True,
        "auth.keys_file": KEYS_FILE,
        "teams": {"research": {"models": ["a*"]}},
        "metrics.teams": True,
        "line.models": {QUICK: {"max_waiting": 9}},
        "discovery.dns.enabled": True,
        "discovery.dns.hosts": ["127.0.0.2"],
        "discovery.kubernetes.enabled": True,
        "discovery.kubernetes.namespaces": ["llm"],
        "discovery.kubernetes.label_selector": "app=other",
        "discovery.kubernetes.service_names": ["other"],
        "discovery.kubernetes.port_name": "other",
        "cors.origins": ["https://chat.example"],
        "guard.num_ctx": "pass",
        "guard.keep_alive": "reject",
        "cloud.enabled": True,
        "placement.mode": "observe",
        "placement.models": [{"name": QUICK, "copies": 2}],
        "store.url": "redis://127.0.0.1",
        "store.password_file": "password",
        "store.ca_file": "ca.pem",
        "store.sentinel_user": "router",
        "store.sentinel_password_file": "password",
        "store.cert_file": "client.pem",
        "store.key_file": "client.key",
        "retry.attempts": 2,
        "retry.budget": 0.5,
        "log.format": "text",
        "log.level": "error",
        "tracing.endpoint": "http://collector:4318",
        "tracing.protocol": "http/json",
        "tracing.headers_file": "headers",
        "tracing.sample_ratio": 0.5,
        "tracing.service_name": "router-9",
    }
    if path in special:
        return special[path]
    value = value_of(Settings(), path)
    assert isinstance(value, int | float), f"{path} needs a change of its own in this table"
    return value * 2


def nested(path: str, value: Any) -> dict[str, Any]:
    group, _, rest = path.partition(".")
    return {group: nested(rest, value) if rest else value}


def joined(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings key by key, as a file would say both."""
    both = {**under, **over}
    for key in under.keys() & over.keys():
        if isinstance(under[key], dict) and isinstance(over[key], dict):
            both[key] = joined(under[key], over[key])
    return both


# What shows that it is in force, in a router that runs.
LIVE: Mapping[str, Callable[[Router], Any]] = {
    "nodes": lambda router: [(spec.url, spec.slots) for spec in router.reloader._parts.discovery.nodes],
    **{
        f"discovery.{path}": lambda router: router.reloader._parts.discovery._wanted
        for path in (
            "dns.enabled",
            "dns.hosts",
            "kubernetes.enabled",
            "kubernetes.namespaces",
            "kubernetes.label_selector",
            "kubernetes.service_names",
            "kubernetes.port_name",
            "kubernetes.port",
        )
    },
    "aliases": lambda router: router.pipeline.rules.aliases.names,
    "line.max_waiting_per_model": lambda router: router.store.limits.max_waiting,
    "line.max_wait_s": lambda router: router.pipeline.rules.deadlines.max_wait_s,
    "line.comment_after_s": lambda router: router.pipeline.rules.deadlines.comment_after_s,
    "line.comment_every_s": lambda router: router.pipeline.rules.deadlines.comment_every_s,
    "line.models": lambda router: router.store.limits.of(QUICK),
    "store.replicas": lambda router: router.settings.store.replicas,
    "client.body_s": lambda router: router.reloader._parts.inference.limits.body_s,
    "client.client_stall_s": lambda router: router.reloader._parts.inference.stall_s,
    "timeouts.connect_s": lambda router: router.connections.connect_s,
    "timeouts.first_byte_s": lambda router: router.pipeline.rules.deadlines.first_byte_s,
    "timeouts.plain_s": lambda router: router.pipeline.rules.deadlines.plain_s,
    "timeouts.idle_s": lambda router: router.pipeline.rules.deadlines.idle_s,
    "auth.required": lambda router: router.pipeline.rules.access.is_required,
    "auth.keys_file": lambda router: router.pipeline.rules.access.keys,
    "teams": lambda router: router.pipeline.rules.access.teams,
    "retry.attempts": lambda router: router.pipeline.rules.retries.attempts,
    "retry.budget": lambda router: router.pipeline.rules.retries.budget,
    "probe.interval_s": lambda router: router.keeper.interval_s,
    "probe.timeout_s": lambda router: router.reloader._parts.api.timeout_s,
    "probe.concurrency": lambda router: router.reloader._parts.prober._turns._value,
    "cors.origins": lambda router: router.pipeline.rules.origins,
    "guard.num_ctx": lambda router: router.pipeline.rules.guards.keeps_context,
    "guard.keep_alive": lambda router: router.pipeline.rules.guards.keep_alive,
    "cloud.enabled": lambda router: router.keeper.cloud_slots,
    "cloud.slots": lambda router: router.keeper.cloud_slots,
    "guard.keep_alive_max": lambda router: router.pipeline.rules.guards.keep_alive_max_s,
    "placement.mode": lambda router: router.placer.mode,
    "placement.models": lambda router: router.placer.declarations.declared,
    "limits.body_bytes": lambda router: router.reloader._parts.inference.limits.body_bytes,
    "limits.buffered_bytes": lambda router: router.buffers.limit,
    "log.level": lambda router: router.reloader._parts.logs.level,
    "metrics.models_max": lambda router: router.metrics.models_max,
    "metrics.teams_max": lambda router: router.metrics.teams_max,
    "shutdown.drain_delay_s": lambda router: router.lifecycle.limits.drain_delay_s,
    "shutdown.stream_drain_s": lambda router: router.lifecycle.limits.stream_drain_s,
}
LOCAL = {"listen": LOOPBACK, "metrics_listen": LOOPBACK, "admin": {"listen": LOOPBACK}}
# Without which a setting of the group means nothing.
ALONG: Mapping[str, Any] = {
    "cloud.slots": {"cloud": {"enabled": True}},
    "auth.required": {"auth": {"keys_file": KEYS_FILE}},
    "metrics.teams_max": {"metrics": {"teams": True}},
    "discovery.dns.enabled": {"discovery": {"dns": {"hosts": ["127.0.0.1"]}}},
    "discovery.dns.hosts": {"discovery": {"dns": {"enabled": True, "hosts": ["127.0.0.1"]}}},
    # A node that is listed as well: the start waits for no API that is not there.
    **{
        f"discovery.kubernetes.{name}": {"nodes": ["127.0.0.1:1"], "discovery": {"kubernetes": {"enabled": True}}}
        for name in ("namespaces", "label_selector", "service_names", "port_name", "port")
    },
}
PATHS = [path for path in setting_paths() if "[]" not in path and "<" not in path]


def test_every_setting_is_either_taken_over_by_a_reload_or_named_as_needing_a_restart() -> None:
    assert sorted([*LIVE, *NEED_RESTART]) == sorted(PATHS)


@pytest.mark.parametrize("path", LIVE)
async def test_a_setting_that_may_change_is_in_force_after_a_reload(
    path: str, mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring_discovery, "FIRST_WORD_S", 0.01)
    along = {**LOCAL, **ALONG.get(path, {})}
    mounted.write(yaml.safe_dump(along))
    origin = Origin(str(mounted.path))
    with quiet_logs() as logs:
        rereading = Rereading(origin, asyncio.Event(), poll_s=NEVER_S)
        async with running(origin.read(), logs, Random(0), rereading) as router:
            before = LIVE[path](router)
            mounted.write(yaml.safe_dump(joined(along, nested(path, a_change_of(path)))))
            await router.reloader.reload()
            assert LIVE[path](router) != before
            assert value_of(router.settings, path) == value_of(load_settings(str(mounted.path)).settings, path)


@pytest.mark.parametrize("path", [path for path in NEED_RESTART if not path.startswith("tls.")])
def test_a_setting_that_needs_a_restart_stays_and_is_named(path: str) -> None:
    running_ones = Settings()
    wanted = load_settings(overrides={**nested(path, a_change_of(path)), "retry": {"attempts": 1}}).settings
    in_force, late = kept(running_ones, wanted)
    assert late == (path,)
    assert changed(running_ones, in_force) == ("retry.attempts",)


def test_a_certificate_that_comes_or_goes_needs_a_restart() -> None:
    wanted = load_settings(overrides={"tls": {"cert_file": "a", "key_file": "b"}}).settings
    assert kept(Settings(), wanted) == (Settings(), ("tls.cert_file", "tls.key_file"))


# Noticing.


class Watched:
    """A watch over files, whose reloads are counted and may be held."""

    def __init__(self, *paths: Path) -> None:
        self.paths = [str(path) for path in paths]
        self.asked = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.begun = self.ended = 0
        self.watch = ConfigWatch(
            lambda: self.paths, self._reload, self.asked, seen=Files().look(self.paths), poll_s=0.005, settle_s=0.01
        )

    async def _reload(self) -> None:
        self.begun += 1
        await self.may_end.wait()
        self.ended += 1

    async def looks(self, count: int) -> None:
        """So many more looks."""
        looking = self.watch._looking
        seen, original = 0, looking.look

        def look(paths: Any) -> Any:
            nonlocal seen
            seen += 1
            return original(paths)

        looking.look = look  # type: ignore[method-assign]
        await until(lambda: seen >= count)
        looking.look = original  # type: ignore[method-assign]


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watched]:
    watched = Watched(*paths)
    task = asyncio.create_task(watched.watch.run())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_same_content_in_another_file_is_no_change(mounted: Mounted) -> None:
    mounted.write("pool: a")
    async with watching(mounted.path) as watched:
        mounted.write("pool: a")
        await watched.looks(3)
        assert watched.begun == 0
        mounted.write("pool: b")
        await until(lambda: watched.ended == 1)
        await watched.looks(3)
        assert watched.begun == 1


async def test_a_change_that_leaves_size_and_time_as_they_were_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: a")
    was = path.stat()
    async with watching(path) as watched:
        await watched.looks(2)
        path.write_text("pool: b")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        await until(lambda: watched.ended == 1)


async def test_a_file_that_vanishes_for_a_moment_is_no_change_and_one_that_stays_away_is(tmp_path: Path) -> None:
    path, aside = tmp_path / "router.yaml", tmp_path / "aside"
    path.write_text("pool: a")
    async with watching(path) as watched:
        path.rename(aside)
        await watched.looks(GONE_LOOKS - 1)
        aside.rename(path)
        await watched.looks(GONE_LOOKS + 1)
        assert watched.begun == 0
        path.rename(aside)
        await until(lambda: watched.ended == 1)
        aside.rename(path)
        await until(lambda: watched.ended == 2)


async def test_a_reload_during_a_reload_comes_after_it(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: a")
    async with watching(path) as watched:
        watched.may_end.clear()
        watched.asked.set()
        await until(lambda: watched.begun == 1)
        watched.asked.set()
        path.write_text("pool: b")
        watched.may_end.set()
        await until(lambda: watched.ended == 2)
        await watched.looks(3)
        assert watched.begun == 2, "the second read what had changed as well"


async def test_a_file_still_being_written_is_read_when_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: a")
    async with watching(path) as watched:
        for number in range(30):
            path.write_text(f"pool: a{number}")
            await watched.looks(1)
        path.write_text("pool: whole")
        whole = Files().look([str(path)])
        await until(lambda: watched.watch._seen == whole)
        await until(lambda: watched.ended == watched.begun >= 1)


async def test_a_defect_in_reading_ends_no_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: a")
    async with watching(path) as watched:
        good = watched.watch._reload

        async def broken() -> None:
            watched.watch._reload = good
            raise ZeroDivisionError("a defect")

        watched.watch._reload = broken
        watched.asked.set()
        await until(lambda: any("reloading" in record.getMessage() for record in caplog.records))
        watched.asked.set()
        await until(lambda: watched.ended == 1)


def test_an_old_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: a")
    monkeypatch.setattr("router.control.config.time.time", lambda: path.stat().st_ctime + FRESH_S + 1)
    files = Files()
    first = files.look([str(path)])
    monkeypatch.setattr("builtins.open", None)
    assert files.look([str(path)]) == first
    assert os.fspath(path) in first


# The real thing, in a process of its own.


async def test_sighup_reloads_at_once_and_ends_nothing(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        node = {"url": pool.nodes[0].url, "name": "sim-1"}
        basis = {"nodes": [node], "shutdown": {"drain_delay_s": 0}}
        mounted.write(yaml.safe_dump(basis))
        async with process("serve", "--config", str(mounted.path)) as (child, ports):
            mounted.write(yaml.safe_dump({**basis, "aliases": {"gpt-4": QUICK}}))
            child.send_signal(signal.SIGHUP)
            async with Client(ports["listen"]) as client:
                while True:
                    client.send("/api/generate", {"model": "gpt-4", "prompt": "?"})
                    if (await client.answer()).status == 200:
                        break
            mounted.write("retry: {attempts: 9}")
            child.send_signal(signal.SIGHUP)
            async with asyncio.timeout(20):
                while b'config_reloads_total{result="failed"} 1' not in (await get(ports["metrics"], "/metrics")).body:
                    pass
            child.send_signal(signal.SIGTERM)
            stdout, stderr = await child.communicate()
        assert (child.returncode, stderr) == (0, b"")
        told = [json.loads(line).get("message", "") for line in stdout.splitlines()]
        assert "configuration reloaded: aliases" in told
        assert any(line.endswith(":1: retry.attempts: input should be less than or equal to 3, not 9") for line in told)
