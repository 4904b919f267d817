"""Files that settings name: what stands in them, and one readable line for each mistake in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from router.settings.keys_file import KEYS_BYTES_MAX, KeysError, parse_keys
from router.settings.load import ConfigError, Loaded, dotted
from router.settings.model import Settings
from router.settings.teams import NO_KEYS, Keys
from router.settings.yaml_file import Steps
from router.store.redis.address import read_password
from router.wire.credentials import CREDENTIALS_BYTES_MAX, CredentialsError, parse_credentials
from router.wire.headers import Pair

# Every authority that a system trusts is a quarter of this.
CA_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """`ca_pem` is empty where the system's authorities count."""

    ca_pem: str = ""
    credentials: tuple[Pair, ...] = field(default=(), repr=False)


def named_files(settings: Settings) -> tuple[str, ...]:
    """Those whose content is used while the router runs."""
    files = [name for node in settings.nodes for name in (node.ca_file, node.headers_file)]
    files += [settings.tls.cert_file, settings.tls.key_file, settings.auth.keys_file]
    return tuple(dict.fromkeys(name for name in files if name))


def read_node_files(loaded: Loaded) -> Mapping[str, NodeFiles]:
    """By node name. Refuses with ConfigError, which names every file that is wrong."""
    found, problems = {}, []
    for index, node in enumerate(loaded.settings.nodes):
        ca_pem = ""
        credentials: tuple[Pair, ...] = ()
        try:
            if node.ca_file is not None:
                ca_pem = _read(node.ca_file, CA_BYTES_MAX).decode("ascii", "replace")
        except OSError as error:
            problems.append(problem(loaded, ("nodes", index, "ca_file"), _told(node.ca_file, error)))
        try:
            if node.headers_file is not None:
                credentials = parse_credentials(_read(node.headers_file, CREDENTIALS_BYTES_MAX))
        except (OSError, CredentialsError) as error:
            problems.append(problem(loaded, ("nodes", index, "headers_file"), _told(node.headers_file, error)))
        found[node.name] = NodeFiles(ca_pem, credentials)
    if problems:
        raise ConfigError(problems)
    return found


def read_keys(loaded: Loaded) -> Keys:
    """Refuses with ConfigError."""
    name = loaded.settings.auth.keys_file
    if name is None:
        return NO_KEYS
    try:
        return parse_keys(_read(name, KEYS_BYTES_MAX))
    except (OSError, KeysError) as error:
        raise ConfigError([problem(loaded, ("auth", "keys_file"), _told(name, error))]) from None


def read_trace_headers(loaded: Loaded) -> tuple[Pair, ...]:
    """Refuses with ConfigError."""
    name = loaded.settings.tracing.headers_file
    if name is None:
        return ()
    try:
        return parse_credentials(_read(name, CREDENTIALS_BYTES_MAX))
    except (OSError, CredentialsError) as error:
        raise ConfigError([problem(loaded, ("tracing", "headers_file"), _told(name, error))]) from None


def check_store_passwords(loaded: Loaded) -> None:
    """They are read again at each connecting. Refuses with ConfigError."""
    store = loaded.settings.store
    for setting, name in (
        ("password_file", store.password_file),
        ("sentinel_password_file", store.sentinel_password_file),
    ):
        try:
            if name is not None:
                read_password(name)
        except OSError as error:
            raise ConfigError([problem(loaded, ("store", setting), _told(name, error))]) from None


def problem(loaded: Loaded, steps: Steps, text: str) -> str:
    return f"{loaded.place(steps)}{dotted(steps)}: {text}"


def _told(name: str | None, error: OSError | CredentialsError | KeysError) -> str:
    if isinstance(error, CredentialsError | KeysError):
        return f"{name}{f':{error.line}' if error.line else ''}: {error}"
    return f"{name}: {error.strerror or error}"


def _read(name: str, bytes_max: int) -> bytes:
    """One byte more than the limit at most: whoever reads it refuses that."""
    with Path(name).open("rb") as file:
        return file.read(bytes_max + 1)
