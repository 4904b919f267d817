"""The one place where everything concrete is named and joined."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random

import uvloop
from aiohttp import web

from router.admission import Admission
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.control.prober import Prober
from router.control.replicas import beat_for_ever, watch_lag
from router.discovery.static import StaticDiscovery
from router.lifecycle import DrainLimits, Lifecycle, Phase
from router.pipeline import Deadlines, Pipeline
from router.policy.alias import Aliases
from router.server.app import App
from router.server.buffers import Buffers
from router.server.catalog import Catalog
from router.server.client import ClientLimits, ClientServer
from router.server.inference import BodyLimits, Inference
from router.server.probes import Probes
from router.settings import Settings, node_specs
from router.store.memory import MemoryStore
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.upstream.node_api import HttpNodeApi
from router.upstream.pool import ConnectionPool
from router.upstream.resolver import Resolver

log = logging.getLogger("router")


class SystemClock:
    """Monotonic time is the loop's own, so that deadlines and timers agree."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return time.time()
