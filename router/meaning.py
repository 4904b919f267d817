"""What settings mean to the parts of a router: each takes its own frozen value, at the start and at each reload."""

from __future__ import annotations

from collections.abc import Mapping

from router.control.prober import ProbeLimits
from router.discovery.dns import DnsDiscovery
from router.discovery.kubernetes import KubernetesDiscovery, Selection
from router.lifecycle import DrainLimits
from router.policy.deadlines import Deadlines
from router.policy.declared import Declaration
from router.policy.guard import Guards
from router.policy.placement import Mode
from router.policy.route import Reach
from router.server.client_limits import ClientLimits
from router.server.inference import BodyLimits
from router.server.listen import Doors
from router.settings import Settings, access_from, aliases_from, host_port
from router.settings.teams import NO_KEYS, Keys, team_table
from router.store.answers import Limits
from router.upstream.course import RetryLimits
from router.upstream.rules import CallRules
from router.wire.origins import origins_of


def call_rules(settings: Settings, keys: Keys = NO_KEYS) -> CallRules:
    """`keys` are those of the keys file. Refuses with TwoTeams."""
    return CallRules(
        aliases=aliases_from(settings.aliases),
        deadlines=deadlines(settings),
        retries=RetryLimits(settings.retry.attempts, settings.retry.budget),
        guards=Guards(settings.guard.num_ctx, settings.guard.keep_alive, settings.guard.keep_alive_max),
        reach=Reach(never_loads=settings.placement.mode is Mode.OBSERVE, has_cloud=settings.cloud.enabled),
        access=access_from(settings.auth, settings.teams, keys),
        origins=origins_of(settings.cors.origins),
        kept=frozenset(one.key for one in declarations(settings)) if is_managed(settings) else frozenset(),
    )


def doors(settings: Settings) -> Doors:
    return Doors(
        clients=host_port(settings.listen),
        metrics=host_port(settings.metrics_listen),
        admin=host_port(settings.admin.listen),
    )


def is_managed(settings: Settings) -> bool:
    return settings.placement.mode is Mode.MANAGED


def declarations(settings: Settings) -> tuple[Declaration, ...]:
    """Also where the mode is another: that nothing is kept is told beside them."""
    return tuple(Declaration(one.name, one.copies, one.pin, one.nodes) for one in settings.placement.models)


def deadlines(settings: Settings) -> Deadlines:
    timeouts, line = settings.timeouts, settings.line
    return Deadlines(
        timeouts.first_byte_s,
        timeouts.plain_s,
        timeouts.idle_s,
        line.max_wait_s,
        max_wait_of={key: own.max_wait_s for key, own in line.models.items() if own.max_wait_s is not None},
        comment_after_s=line.comment_after_s,
        comment_every_s=line.comment_every_s,
    )


def line_limits(settings: Settings) -> Limits:
    by_key = {key: own.max_waiting for key, own in settings.line.models.items() if own.max_waiting is not None}
    return Limits(settings.line.max_waiting_per_model, by_key, team_table(settings.teams))


def discovery_sources(settings: Settings) -> Mapping[str, object]:
    """What each source beside the list is to look for, by its name; only those that are switched on."""
    dns, kubernetes = settings.discovery.dns, settings.discovery.kubernetes
    sources: dict[str, object] = {}
    if kubernetes.enabled:
        sources[KubernetesDiscovery.source] = Selection(
            namespaces=kubernetes.namespaces,
            label_selector=kubernetes.label_selector,
            service_names=kubernetes.service_names,
            port_name=kubernetes.port_name,
            port=kubernetes.port,
        )
    if dns.enabled:
        sources[DnsDiscovery.source] = tuple(host_port(host) for host in dns.hosts)
    return sources


def cloud_slots(settings: Settings) -> int:
    """Of each cloud stub; 0 where they are switched off."""
    return settings.cloud.slots if settings.cloud.enabled else 0


def probe_limits(settings: Settings) -> ProbeLimits:
    return ProbeLimits(settings.probe.interval_s, settings.probe.timeout_s, settings.probe.concurrency)


def drain_limits(settings: Settings) -> DrainLimits:
    return DrainLimits(settings.shutdown.drain_delay_s, settings.shutdown.stream_drain_s)


def body_limits(settings: Settings) -> BodyLimits:
    return BodyLimits(settings.limits.body_bytes, settings.client.body_s)


def client_limits(settings: Settings) -> ClientLimits:
    client = settings.client
    return ClientLimits(
        header_bytes=client.header_bytes,
        header_s=client.header_s,
        keep_alive_s=client.keep_alive_s,
        connections=client.connections,
        stall_s=client.client_stall_s,
        stream_buffer_bytes=settings.limits.stream_buffer_bytes,
    )


def named_models(settings: Settings) -> set[str]:
    """Model keys that the configuration mentions."""
    return {
        *aliases_from(settings.aliases).models,
        *settings.line.models,
        *(one.name for one in settings.placement.models),
        *(key for node in settings.nodes for key in node.models),
    }
