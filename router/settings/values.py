"""Texts of the configuration that have a grammar: addresses, node URLs, durations, names. Refusals are ValueErrors."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from router.errors import BadRequest
from router.wire.intent_duration import DurationError, keep_alive_s
from router.wire.names import parse_name

PORT_MAX = 65535
AUTO = "auto"
WORKERS_MAX = 64  # more cores than a pool keeps busy: one of them passes 15,000 pieces a second
# RFC 6874 keeps zones out of Host. They mean something on one machine only: there one may listen on them.
_NO_ZONE = "a node's address has no zone (%): use a global or unique local address, or a name"
OLLAMA_PORT = 11434
_LABEL = re.compile(r"[A-Za-z0-9_.:%-]+\Z")  # host names and addresses; % for an IPv6 zone
EVERYWHERE = "*"  # every address of the machine, of both families
_DEFAULT_PORTS = {"http": 80, "https": 443}  # envconfig/config.go, Host(): a scheme brings its own port


class SaidWrong(ValueError):
    """`steps` lead from the setting that was checked to the one that is wrong."""

    def __init__(self, steps: tuple[int | str, ...], text: str) -> None:
        super().__init__(text)
        self.steps = steps
        self.text = text


def host_port(text: str) -> tuple[str, int]:
    """Of a checked address; the host without brackets, and empty for `*`: so `create_server` takes every family."""
    host, _, port = text.rpartition(":")
    return "" if host == EVERYWHERE else host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach it; a name other than localhost may lead anywhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(text: str) -> str:
    host, colon, port = text.strip().rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    is_host = bare == EVERYWHERE or _LABEL.match(bare)
    if not colon or not bare or (":" in bare) != is_bracketed or not is_host:
        raise ValueError("should be HOST:PORT, such as 0.0.0.0:11435, [::]:11435 or *:11435")
    if not port.isascii() or not port.isdigit() or int(port[:6]) > PORT_MAX:
        raise ValueError(f"port {port!r} should be a number from 0 to {PORT_MAX}")
    return f"{_host(bare)}:{int(port)}"


def _host(bare: str) -> str:
    """As a URL writes it: IPv6 in brackets, and in its shortest form, so that one address is one text."""
    if ":" not in bare:
        return bare
    try:
        return f"[{ipaddress.IPv6Address(bare)}]"
    except ValueError:
        raise ValueError(f"{bare!r} is no IPv6 address") from None


def _node_url(text: str) -> str:
    """scheme://host:port. Without a scheme it is http on 11434, as OLLAMA_HOST reads it."""
    has_scheme = "://" in text
    if "%" in text:
        raise ValueError(f"{text!r}: {_NO_ZONE}" if "@" not in text else "a node's URL carries no credentials")
    try:
        parts = urlsplit(text.strip() if has_scheme else f"http://{text.strip()}")
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} is no URL: the port should be a number from 1 to {PORT_MAX}") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ValueError(f"{text!r} should begin with http:// or https://, or be HOST[:PORT]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a node's URL carries no credentials")  # the text is not repeated: it may hold a key
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r} should end after the port: Ollama serves from the root")
    host = parts.hostname or ""
    if not _LABEL.match(host):
        raise ValueError(f"{text!r} names no host")
    if port is None:
        port = _DEFAULT_PORTS[parts.scheme] if has_scheme else OLLAMA_PORT
    if not port:
        raise ValueError(f"{text!r}: nothing listens on port 0")
    return f"{parts.scheme}://{_host(host)}:{port}"


def node_address(text: str) -> str:
    """HOST:PORT of one or many nodes that speak http; without a port it is Ollama's."""
    if "://" in text:
        raise ValueError(f"{text!r} should be HOST or HOST:PORT")
    return _node_url(text).removeprefix("http://")


def comma_list(value: Any) -> Any:
    """Of an environment variable, which holds a text: a comma list, or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError(f"should be a comma list or JSON: {error}") from None
    return [item for item in map(str.strip, value.split(",")) if item]


def _duration(value: Any) -> Any:
    """Seconds from `30m` or `1h30m`; numbers are seconds already, in texts too (the environment has only texts)."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        pass
    try:
        seconds = keep_alive_s(json.dumps(value.strip()).encode())
    except DurationError:
        seconds = math.inf
    if math.isinf(seconds):
        raise ValueError(f"{value!r} should be seconds, or a duration such as 30m or 1h30m")
    return seconds


def _workers(value: Any) -> Any:
    """A number, also as the text that the environment and the command line give."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 4 else value
    is_number = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= WORKERS_MAX
    if not is_number and number != AUTO:
        raise ValueError(f"should be a number from 1 to {WORKERS_MAX}, or {AUTO} for one on each core")
    return number


def _model_key(text: str) -> str:
    try:
        return parse_name(text).key if text.strip() else _nameless()
    except BadRequest as refusal:
        raise ValueError(f"{text!r}: {refusal.text}") from None


def _nameless() -> str:
    raise ValueError("a model's name is empty")


Address = Annotated[str, AfterValidator(_address)]
Workers = Annotated[Annotated[int, Field(ge=1, le=WORKERS_MAX)] | Literal["auto"], BeforeValidator(_workers)]
NodeUrl = Annotated[str, AfterValidator(_node_url)]
ModelKey = Annotated[str, AfterValidator(_model_key)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Duration = Annotated[float, BeforeValidator(_duration), Field(ge=0, allow_inf_nan=False)]
