"""Real servers that stand for one another: a primary with a replica under three sentinels, and a cluster.

Every one of them is a process on loopback, from `start` to `stop`. They notice a death within half a second.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import redis

from tests.fakes.redis_server import Server
from tests.ports import HERE, free_port

SERVICE = "pool"
GONE_AFTER_MS = 500
SETTLED_WITHIN_S = 30.0  # several processes find one another, on a machine that has others to serve
LOOK_EVERY_S = 0.02
SLOTS = 16384
AT_ONCE = ("--repl-diskless-sync-delay", "0")  # a replica of a test has no companions to wait for


def eventually(holds: Callable[[], bool], what: str) -> None:
    """For whoever is in no loop: what other processes come to by themselves."""
    asyncio.run(_eventually(holds, what))


async def _eventually(holds: Callable[[], bool], what: str) -> None:
    for _ in range(int(SETTLED_WITHIN_S / LOOK_EVERY_S)):
        with suppress(redis.RedisError):  # not up yet, or not any more
            if holds():
                return
        await asyncio.sleep(LOOK_EVERY_S)
    raise AssertionError(f"not within {SETTLED_WITHIN_S} s: {what}")


class SentinelServer(Server):
    is_ready = b"+monitor"

    def __init__(self, binary: str, port: int, lines: Sequence[str], *more: str) -> None:
        self._lines = lines
        super().__init__(binary, port, *more)

    def mode(self) -> tuple[str, ...]:
        file = self.folder / "sentinel.conf"
        file.write_text("\n".join(self._lines))
        return (str(file), "--sentinel")


class Watched:
    """A primary, its replica, and three sentinels of which two must agree. `tls`: for those that speak nothing else."""

    def __init__(self, binary: str, tls: Sequence[str] = ()) -> None:
        ports = [free_port() for _ in range(5)]
        more = [(*tls, "--port", "0", "--tls-port", str(port)) if tls else () for port in ports]
        self.servers = [
            Server(binary, ports[0], *AT_ONCE, *more[0]),
            Server(binary, ports[1], *AT_ONCE, "--replicaof", f"{HERE} {ports[0]}", *more[1]),
        ]
        watch = (
            f"sentinel monitor {SERVICE} {HERE} {ports[0]} 2",
            f"sentinel down-after-milliseconds {SERVICE} {GONE_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
        )
        self.sentinels = [
            SentinelServer(binary, port, watch, *own) for port, own in zip(ports[2:], more[2:], strict=True)
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HERE}:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self) -> Watched:
        primary, replica = self.servers
        primary.start()
        replica.start()
        with replica.client() as client:
            eventually(lambda: client.info()["master_link_status"] == "up", "the replica has what the primary has")
        for one in self.sentinels:
            one.start()
        eventually(self._is_watched, "all sentinels know one another and the replica")
        return self

    def _is_watched(self) -> bool:
        return all(
            (state["num-other-sentinels"], state["num-slaves"], state["is_master_down"]) == (2, 1, False)
            for state in map(self._state, self.sentinels)
        )

    def _state(self, sentinel: Server) -> dict[str, Any]:
        with sentinel.client() as client:
            state: dict[str, Any] = client.execute_command("SENTINEL MASTER", SERVICE)
        return state

    @property
    def primary(self) -> Server:
        """As the sentinel that heard the latest names it."""
        states = []
        for sentinel in self.sentinels:
            try:
                states.append(self._state(sentinel))
            except redis.RedisError:
                continue
        port = max((state["config-epoch"], state["port"]) for state in states)[1]
        return next(one for one in self.servers if one.port == port)

    def fail_over(self) -> None:
        """As an operator asks for it; over when the new primary is one. The old one is told ten seconds later."""
        before = self.primary
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL FAILOVER", SERVICE)
        self.await_another_than(before)

    def await_another_than(self, before: Server) -> None:
        eventually(lambda: self.primary is not before and self._role(self.primary) == "master", "another primary")

    def _role(self, server: Server) -> str:
        with server.client() as client:
            return str(client.info("replication")["role"])

    def stop(self) -> None:
        for one in (*self.sentinels, *self.servers):
            one.stop()


class Cluster:
    """Masters, and as many replicas of the first ones. Slots lie in equal parts, in order."""

    def __init__(self, binary: str, masters: int = 3, replicas: int = 0) -> None:
        self.masters = [self._server(binary) for _ in range(masters)]
        self.replicas = [self._server(binary) for _ in range(replicas)]

    @staticmethod
    def _server(binary: str) -> Server:
        return Server(
            binary,
            free_port(),
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(free_port())),
            *("--cluster-node-timeout", str(GONE_AFTER_MS), "--cluster-allow-replica-migration", "no", *AT_ONCE),
        )

    @property
    def servers(self) -> list[Server]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'{HERE}:{one.port}' for one in self.servers)}"

    def start(self) -> Cluster:
        for one in self.servers:
            one.start()
        bounds = [SLOTS * nth // len(self.masters) for nth in range(len(self.masters) + 1)]
        for master, first, end in zip(self.masters, bounds, bounds[1:], strict=False):
            self.do(master, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            # Two that begin with the same epoch would settle it by themselves, later.
            self.do(master, "CLUSTER", "SET-CONFIG-EPOCH", self.masters.index(master) + 1)
        for one in self.servers[1:]:
            bus = self.do(one, "CONFIG", "GET", "cluster-port")
            self.do(self.masters[0], "CLUSTER", "MEET", HERE, one.port, int(bus["cluster-port"]))
        eventually(self._all_are_met, "all servers know one another and serve")
        for master, replica in zip(self.masters, self.replicas, strict=False):
            self.do(replica, "CLUSTER", "REPLICATE", self.id_of(master))
            with replica.client() as client:
                eventually(lambda: client.info()["master_link_status"] == "up", "the replica has it all")
        return self

    def _all_are_met(self) -> bool:
        return all(
            (info["cluster_state"], int(info["cluster_known_nodes"])) == ("ok", len(self.servers))
            for info in (self.do(one, "CLUSTER", "INFO") for one in self.servers)
        )

    def do(self, server: Server, *command: str | int) -> Any:
        with server.client() as client:
            return client.execute_command(" ".join(map(str, command[:2])), *command[2:])

    def id_of(self, server: Server) -> str:
        return _text(self.do(server, "CLUSTER", "MYID"))

    def slot_of(self, key: str) -> int:
        return int(self.do(self.masters[0], "CLUSTER", "KEYSLOT", key))

    def owner_of(self, key: str) -> Server:
        for server in self.servers:
            with server.client() as client:
                try:
                    client.exists(key)
                except redis.RedisError:
                    continue
            return server
        raise AssertionError(f"nobody serves {key}")

    def begin_to_move(self, slot: int, source: Server, target: Server) -> None:
        self.do(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.do(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, source: Server, target: Server, count: int = 1000) -> None:
        with source.client() as client:
            keys = client.execute_command("CLUSTER GETKEYSINSLOT", slot, count)
            for key in keys:
                client.execute_command("MIGRATE", HERE, target.port, key, 0, 5000)

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        """As redis-cli does: whoever has it says so first."""
        owner = self.id_of(target)
        for one in (target, source, *(one for one in self.masters if one not in (source, target))):
            self.do(one, "CLUSTER", "SETSLOT", slot, "NODE", owner)

    def stop(self) -> None:
        for one in self.servers:
            one.stop()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@cache
def shared_watched(binary: str) -> Watched:
    """One for all tests of this process that change nothing in it."""
    return _kept(Watched(binary))


@cache
def shared_cluster(binary: str) -> Cluster:
    return _kept(Cluster(binary))


def _kept(group: Any) -> Any:
    atexit.register(group.stop)
    return group.start()
