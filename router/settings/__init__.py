"""What an operator may say, where it is read from, and how a mistake in it is told. Read by `cli` and `wiring` only."""

from router.settings.aliases import aliases_from
from router.settings.groups import LogFormat, LogLevel
from router.settings.load import ConfigError, Loaded, Origin, load_settings
from router.settings.model import Settings, node_specs
from router.settings.nodes import NodeSettings
from router.settings.redact import redacted
from router.settings.teams import access_from
from router.settings.values import host_port, is_loopback

__all__ = [
    "ConfigError",
    "Loaded",
    "LogFormat",
    "LogLevel",
    "NodeSettings",
    "Origin",
    "Settings",
    "access_from",
    "aliases_from",
    "host_port",
    "is_loopback",
    "load_settings",
    "node_specs",
    "redacted",
]
