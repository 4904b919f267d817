"""Where nodes come from, joined to what the settings say of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from router import meaning
from router.discovery.api_server import ApiServer, connect
from router.discovery.dns import DnsDiscovery
from router.discovery.joined import FIRST_WORD_S, JoinedDiscovery
from router.discovery.kubernetes import KubernetesDiscovery, Selection
from router.reload import Prepared
from router.seams import Discovery
from router.server.descriptors import NODES_DISCOVERED
from router.settings import Settings
from router.telemetry.metrics import Metrics


def joined_discovery(prepared: Prepared, metrics: Metrics, rng: Random) -> JoinedDiscovery:
    sources = meaning.discovery_sources(prepared.settings)
    return JoinedDiscovery(prepared.nodes, sources, _makes(metrics, rng), first_word_s=FIRST_WORD_S)


def nodes_expected(settings: Settings) -> int:
    return len(settings.nodes) + (NODES_DISCOVERED if settings.discovery.is_on else 0)


def _makes(metrics: Metrics, rng: Random) -> Callable[[str, object], Discovery]:
    """Makes a source beside the list from what `meaning.discovery_sources` says of it."""

    def make(source: str, saying: object) -> Discovery:
        on_error = partial(metrics.discovery_failed, source)
        if isinstance(saying, Selection):
            return KubernetesDiscovery(ApiServer(connect), saying, on_error=on_error, rng=rng)
        assert isinstance(saying, tuple), source
        return DnsDiscovery(saying, on_error=on_error, rng=rng)

    return make
