"""Settings read again and taken over: everything new is made first, then swapped in one step without a suspension.

What is wrong leaves everything as it was. Calls in flight keep the rules they began with.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router import meaning
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.control.prober import Prober
from router.control.slots import SlotLearner
from router.control.watch import Watch
from router.discovery.joined import JoinedDiscovery
from router.fleet.node import NodeSpec
from router.lifecycle import Lifecycle
from router.pipeline import Pipeline
from router.policy.access import TwoTeams
from router.server.buffers import Buffers
from router.server.inference import Inference
from router.server.tls import ListenerTls, serving
from router.settings import ConfigError, Loaded, Origin, Settings, node_specs
from router.settings.changes import changed, kept
from router.settings.files import (
    NodeFiles,
    check_store_passwords,
    named_files,
    problem,
    read_keys,
    read_node_files,
)
from router.store.answers import Limits
from router.store.redis.address import Address, Kind, Login, StoreUrl, parse_url
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.upstream.access import AccessBook, NodeAccess, tls_text, trusting
from router.upstream.node_api import HttpNodeApi
from router.upstream.pool import ConnectionPool
from router.upstream.rules import CallRules

if TYPE_CHECKING:
    from router.store.either import PoolStore

log = logging.getLogger(__name__)

Accesses = Mapping[tuple[str, str], NodeAccess]  # by node name and URL


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that settings mean, made and checked; nothing of it is in force yet."""

    settings: Settings
    nodes: tuple[NodeSpec, ...]
    rules: CallRules
    line_limits: Limits
    accesses: Accesses
    certificate: bytes  # what the listener shows, as PEM; empty without TLS
    serving: ssl.SSLContext | None
    store: Address | None  # None: in this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a reload reaches."""

    access: AccessBook
    api: HttpNodeApi
    buffers: Buffers
    connections: ConnectionPool
    discovery: JoinedDiscovery
    inference: Inference
    keeper: FleetKeeper
    lifecycle: Lifecycle
    logs: Logs
    metrics: Metrics
    pipeline: Pipeline
    placer: Placer
    prober: Prober
    store: PoolStore
    tls: ListenerTls | None
    slots: SlotLearner
    watch: Watch


class Preparer:
    """Makes what settings mean. Keeps the TLS contexts it made: the same authorities are the same context."""

    def __init__(self) -> None:
        self._contexts: dict[str, ssl.SSLContext] = {}  # by PEM text; '' trusts whom the system trusts

    def prepare(self, loaded: Loaded) -> Prepared:
        """Reads every file that the settings name. Refuses with ConfigError."""
        settings = loaded.settings
        nodes = node_specs(settings)
        certificate, context = _serving(loaded)
        return Prepared(
            settings=settings,
            nodes=nodes,
            rules=_rules(loaded),
            line_limits=meaning.line_limits(settings),
            accesses=self._accesses(loaded, nodes, read_node_files(loaded)),
            certificate=certificate,
            serving=context,
            store=_store(loaded),
        )

    def _accesses(self, loaded: Loaded, nodes: tuple[NodeSpec, ...], files: Mapping[str, NodeFiles]) -> Accesses:
        contexts: dict[str, ssl.SSLContext] = {}
        found, problems = {}, []
        for index, node in enumerate(nodes):
            pem, tls = files[node.name].ca_pem, None
            if node.is_tls:
                try:
                    tls = contexts[pem] = contexts.get(pem) or self._contexts.get(pem) or trusting(pem)
                except ssl.SSLError as error:
                    told = f"{loaded.settings.nodes[index].ca_file}: {tls_text(error)}"
                    problems.append(problem(loaded, ("nodes", index, "ca_file"), told))
            found[node.name, node.url] = NodeAccess(tls, files[node.name].credentials)
        if problems:
            raise ConfigError(problems)
        self._contexts = contexts
        return found


class Reloader:
    """Owns the settings that are in force."""

    def __init__(self, origin: Origin, prepared: Prepared, preparer: Preparer, parts: Parts) -> None:
        self.settings = prepared.settings
        self._origin = origin
        self._preparer = preparer
        self._accesses = prepared.accesses
        self._certificate = prepared.certificate
        self._parts = parts
        self._turn = asyncio.Lock()  # what was read first is taken over first
        self._wanted = prepared.settings  # as read last: also where its files turned out to be wrong
        # Told that files may be read that were not named before. Set by whoever watches them.
        self.on_named: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Reloader of {self._origin.file or 'no file'}>"

    def files(self) -> tuple[str, ...]:
        """What a reload reads. The wanted ones too: a file that was missing may come."""
        return files_of(self._origin, self.settings, self._wanted)

    async def reload(self) -> None:
        """Leaves everything as it was where anything is wrong, and says what."""
        async with self._turn:
            await self._reload()

    async def _reload(self) -> None:
        try:
            # In a thread: a large file takes YAML seconds, and streams go on meanwhile.
            prepared, late = await asyncio.to_thread(self._read)
        except ConfigError as error:
            self._complain(error)
            return
        self._apply(prepared)
        self._parts.metrics.config_reloaded(is_ok=True)
        if late:
            log.warning("these settings need a restart and stay as they were: %s", ", ".join(late))

    def _complain(self, error: ConfigError) -> None:
        for told in error.problems:
            log.error("configuration not reloaded: %s", told)
        self._parts.metrics.config_reloaded(is_ok=False)

    def _read(self) -> tuple[Prepared, tuple[str, ...]]:
        loaded = self._origin.read()
        settings, late = kept(self.settings, loaded.settings)
        self._wanted = settings
        self.on_named()
        for warning in loaded.warnings:
            log.warning("%s", warning)
        return self._preparer.prepare(Loaded(settings, loaded.warnings, loaded.place)), late

    def _apply(self, prepared: Prepared) -> None:
        """No await in here, and nothing that the world can break: half of a configuration must never be in force."""
        parts, settings = self._parts, prepared.settings
        self._say(prepared)
        renewed = [key[0] for key, access in prepared.accesses.items() if self._trusts_anew(key, access)]
        parts.access.replace(prepared.accesses)
        for name in renewed:
            parts.connections.drop_node(name)
        if parts.tls is not None and prepared.serving is not None:
            parts.tls.replace(prepared.serving)
        parts.pipeline.rules = prepared.rules
        parts.store.set_limits(prepared.line_limits)
        parts.store.expect(settings.store.replicas)
        parts.discovery.replace(prepared.nodes, meaning.discovery_sources(settings))
        parts.connections.connect_s = parts.api.connect_s = settings.timeouts.connect_s
        parts.api.timeout_s = settings.probe.timeout_s
        parts.prober.set_limits(meaning.probe_limits(settings))
        parts.keeper.interval_s = settings.probe.interval_s
        parts.keeper.cloud_slots = meaning.cloud_slots(settings)
        parts.placer.mode = settings.placement.mode
        parts.placer.declarations.declared = meaning.declarations(settings)
        parts.inference.limits = meaning.body_limits(settings)
        parts.inference.stall_s = settings.client.client_stall_s
        parts.buffers.limit = settings.limits.buffered_bytes
        parts.lifecycle.limits = meaning.drain_limits(settings)
        parts.logs.set_level(settings.log.level)
        parts.metrics.mention(meaning.named_models(settings), settings.metrics.models_max, settings.metrics.teams_max)
        self.settings, self._accesses, self._certificate = settings, prepared.accesses, prepared.certificate

    def _trusts_anew(self, key: tuple[str, str], access: NodeAccess) -> bool:
        known = self._accesses.get(key)
        return known is not None and known.tls is not access.tls

    def _say(self, prepared: Prepared) -> None:
        news = list(changed(self.settings, prepared.settings))
        let_in = [key[0] for key, access in prepared.accesses.items() if self._accesses.get(key, access) != access]
        if let_in:
            news.append(f"credentials or authorities of {', '.join(let_in)}")
        if prepared.rules.access.keys != self._parts.pipeline.rules.access.keys:
            news.append("keys of teams")
        if prepared.certificate != self._certificate:
            news.append("the listener's certificate")
        log.info("configuration reloaded: %s", ", ".join(news) or "it says what is in force")


def files_of(origin: Origin, *settings: Settings) -> tuple[str, ...]:
    config = (origin.file,) if origin.file else ()
    return tuple(dict.fromkeys((*config, *(name for one in settings for name in named_files(one)))))


def _rules(loaded: Loaded) -> CallRules:
    try:
        return meaning.call_rules(loaded.settings, read_keys(loaded))
    except TwoTeams as error:
        raise ConfigError([problem(loaded, ("auth", "keys_file"), str(error))]) from None


def _store(loaded: Loaded) -> Address | None:
    """Refuses with ConfigError."""
    settings = loaded.settings
    store = settings.store
    if not store.is_shared:
        return None
    url = parse_url(store.url)
    _check_store_settings_are_used(loaded, url)
    _check_store_tls(loaded)
    check_store_passwords(loaded)
    sentinels = Login(store.sentinel_user, store.sentinel_password_file)
    files = (store.password_file, sentinels, store.ca_file, store.cert_file, store.key_file)
    return Address(url, settings.pool, store.timeout_s, *files)


def _check_store_settings_are_used(loaded: Loaded, url: StoreUrl) -> None:
    store = loaded.settings.store
    of_sentinels, of_tls = "redis+sentinel:// and rediss+sentinel:// URLs", "rediss:// URLs"
    uses = (
        ("sentinel_user", url.kind is Kind.SENTINEL, of_sentinels),
        ("sentinel_password_file", url.kind is Kind.SENTINEL, of_sentinels),
        ("ca_file", url.is_tls, of_tls),
        ("cert_file", url.is_tls, of_tls),
        ("key_file", store.cert_file is not None, "store.cert_file, which is not set"),
    )
    for setting, is_used, use in uses:
        if getattr(store, setting) is not None and not is_used:
            raise ConfigError([problem(loaded, ("store", setting), f"is for {use}")])


def _check_store_tls(loaded: Loaded) -> None:
    """As it will be read at each connecting."""
    store = loaded.settings.store
    checks: tuple[tuple[str, Callable[[str], object]], ...] = (
        ("ca_file", lambda name: ssl.create_default_context(cafile=name)),
        ("cert_file", lambda name: ssl.create_default_context().load_cert_chain(name, store.key_file, password="")),
    )
    for setting, check in checks:
        name = getattr(store, setting)
        try:
            if name is not None:
                check(name)
        except OSError as error:  # ssl.SSLError is one
            # OpenSSL does not say which of two files it could not read.
            files = f"{name}, {store.key_file}" if setting == "cert_file" and store.key_file else name
            told = f"{files}: {tls_text(error) if isinstance(error, ssl.SSLError) else error.strerror}"
            raise ConfigError([problem(loaded, ("store", setting), told)]) from None


def _serving(loaded: Loaded) -> tuple[bytes, ssl.SSLContext | None]:
    tls = loaded.settings.tls
    if tls.cert_file is None or tls.key_file is None:
        return b"", None
    try:
        return serving(tls.cert_file, tls.key_file)
    except ValueError as error:
        raise ConfigError([problem(loaded, ("tls",), str(error))]) from None
