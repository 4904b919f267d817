"""Every store's factory; each test of the contract runs once per entry of `HARNESSES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from router.fleet.tickets import BEAT_S
from router.policy.limits import TeamLimits, TeamTable
from router.store.answers import Limits
from tests.contracts.store_driver import HARNESSES, Pool
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port

MakePool = Callable[..., Pool]


@pytest.fixture(params=HARNESSES)
def make_pool(request: pytest.FixtureRequest) -> MakePool:
    def make(
        replicas: str = "ab",
        *,
        max_waiting: int = 256,
        settle_s: float = BEAT_S,
        teams: dict[str, TeamLimits] | None = None,
        **by_key: int,
    ) -> Pool:
        pool = Pool(HARNESSES[request.param](Limits(max_waiting, by_key, TeamTable(teams or {})), settle_s))
        for name in replicas:
            pool.hello(name)
        return pool

    return make


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    """Two replicas, `a` and `b`, at a store that has settled."""
    made = make_pool()
    made.wait(BEAT_S)
    return made


def _binaries() -> list[str]:
    return [path for path in (redis_server.valkey_binary(), redis_server.redis_binary()) if path is not None]


@pytest.fixture(params=_binaries(), ids=lambda path: path.rsplit("/", 1)[-1])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One of each kind that this machine has."""
    started = Server(request.param, free_port()).start()
    yield started
    started.stop()
