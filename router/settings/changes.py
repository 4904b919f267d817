"""Which settings a reload may change, and which are read once, when the router starts."""

from __future__ import annotations

from router.settings.model import Settings

# Sockets, exporters, what connections and loops were made with, and labels, which a series has for good. Everything
# else is taken over by a reload.
NEED_RESTART = (
    "pool",
    "listen",
    "workers",
    "tls.cert_file",
    "tls.key_file",
    "metrics_listen",
    "admin.listen",
    "admin.token_file",
    "store.url",
    "store.timeout_s",
    "store.password_file",
    "store.sentinel_user",
    "store.sentinel_password_file",
    "store.ca_file",
    "store.cert_file",
    "store.key_file",
    "client.header_s",
    "client.keep_alive_s",
    "client.header_bytes",
    "client.connections",
    "limits.stream_buffer_bytes",
    "log.format",
    "metrics.teams",
    "tracing.endpoint",
    "tracing.headers_file",
    "tracing.protocol",
    "tracing.sample_ratio",
    "tracing.service_name",
)


def kept(running: Settings, wanted: Settings) -> tuple[Settings, tuple[str, ...]]:
    """What can be in force without a restart, and the paths in which it is not what was wanted."""
    differing = tuple(path for path in NEED_RESTART if value_of(running, path) != value_of(wanted, path))
    for path in differing:
        group, _, name = path.partition(".")
        value = getattr(running, group)
        if name:
            value = getattr(wanted, group).model_copy(update={name: getattr(value, name)})
        wanted = wanted.model_copy(update={group: value})
    return wanted, differing


def changed(before: Settings, after: Settings) -> tuple[str, ...]:
    """Paths whose values differ, as an operator writes them; a list or mapping counts as one."""
    found = []
    for name, field in Settings.model_fields.items():
        members = getattr(field.annotation, "model_fields", None)
        paths = [name] if members is None else [f"{name}.{member}" for member in members]
        found += [path for path in paths if value_of(before, path) != value_of(after, path)]
    return tuple(found)


def value_of(settings: Settings, path: str) -> object:
    value: object = settings
    for step in path.split("."):
        value = getattr(value, step)
    return value
