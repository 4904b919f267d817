"""Metrics joined to what they are read from at a scrape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from router import meaning
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.control.watch import Watch
from router.discovery.joined import JoinedDiscovery
from router.settings import Settings
from router.telemetry.gauges import Sources
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from router.store.either import PoolStore


def metrics_of(  # noqa: PLR0917 - joined here and nowhere else
    settings: Settings,
    store: PoolStore,
    discovery: Callable[[], JoinedDiscovery],
    logs: Logs,
    keeper: Callable[[], FleetKeeper],
    placer: Callable[[], Placer],
    watch: Callable[[], Watch],
) -> Metrics:
    """What is given as a function is looked up at the scrape: it comes after what it tells."""
    sources = Sources(
        snapshot=lambda: keeper().snapshot,
        occupancy=lambda: store.occupancy,
        waiting=store.waiting,
        queue_limit=lambda key: store.limits.of(key),  # noqa: PLW0108 - the limits may be set anew
        circuits=lambda: keeper().circuits.not_closed(),  # noqa: PLW0108 - it comes later
        discovered=lambda: discovery().counts,
        discovery_troubles=lambda: discovery().troubles,
        discovery_synced=lambda: discovery().synced,
        standings=lambda: placer().declarations.standings,
        troubles=lambda: watch().troubles,
        log_lines_dropped=lambda: logs.dropped,
        is_leading=lambda: placer().is_leading,
        is_degraded=lambda: store.is_alone,
        redis_up=lambda: store.is_up,
    )
    told = settings.metrics
    named = meaning.named_models(settings)
    teams_max = told.teams_max if told.teams else None
    return Metrics(sources, models_max=told.models_max, named=named, teams_max=teams_max)
