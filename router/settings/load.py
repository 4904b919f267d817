"""Command line over environment over file over defaults, and one readable line for each mistake in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from router.policy.alias_config import AliasError
from router.policy.placement import Mode
from router.settings.model import Settings
from router.settings.values import SaidWrong
from router.settings.yaml_file import FileProblem, Steps, YamlFile, read_yaml

PREFIX = "OLLAMA_ROUTER_"
CONFIG_VARIABLE = "OLLAMA_ROUTER_CONFIG"
ADMIN_URL_VARIABLE = "OLLAMA_ROUTER_ADMIN_URL"  # of the commands that ask a running router
GIVEN_CHARS_MAX = 60  # of a wrong value, repeated in the message
# What Kubernetes sets in every pod beside a Service called ollama-router or ollama-router-...
_SERVICE_LINK = re.compile(r"(^|_)SERVICE_(HOST|PORT(_\w+)?)$|(^|_)PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
_ENUM_MEMBER = re.compile(r"<\w+\.\w+: ('[^']*')>")  # as pydantic shows it


class ConfigError(Exception):
    """`problems` are whole lines, one for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """`place` answers where a setting was said, as the beginning of a message: `router.yaml:8: `, or nothing."""

    settings: Settings
    warnings: tuple[str, ...] = ()
    place: Callable[[Steps], str] = field(default=lambda steps: "", compare=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings come from, so that they can be read again: a later file under the same command line."""

    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def file(self) -> str | None:
        return self.config or self.environ.get(CONFIG_VARIABLE)

    def read(self) -> Loaded:
        """Refuses with ConfigError."""
        return load_settings(self.config, self.overrides, self.environ)


@dataclass(frozen=True, slots=True)
class _Layers:
    command_line: Mapping[str, Any]
    environment: Mapping[str, Any]
    file: YamlFile

    def merged(self) -> dict[str, Any]:
        return _merge(_merge(self.file.values, self.environment), self.command_line)

    def origin(self, steps: Steps) -> str:
        """Where the value came from, as the beginning of a message; empty for the command line and defaults."""
        if _holds(self.command_line, steps):
            return ""
        if _holds(self.environment, steps):
            return "environment: "
        line = self.file.line_of(steps)
        return f"{self.file.name}:{line}: " if line is not None else ""


def load_settings(
    config: str | None = None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Loaded:
    """Refuses with ConfigError. `overrides` are nested as in the file; no environment is read unless given."""
    variables, warnings = _known_variables(environ or {})
    name = config or (environ or {}).get(CONFIG_VARIABLE)
    try:
        layers = _Layers(overrides or {}, _from_environment(variables), read_yaml(name) if name else YamlFile())
    except FileProblem as problem:
        raise ConfigError([str(problem)]) from None
    try:
        settings = Settings(**layers.merged())
        return Loaded(settings, (*warnings, *_idle(settings, layers)), layers.origin)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError([_problem(detail, layers) for detail in details]) from None
    except RecursionError:
        raise ConfigError([f"{layers.file.name}: refers to itself"]) from None


def _idle(settings: Settings, layers: _Layers) -> Iterator[str]:
    """What is said and does nothing, as while the mode is turned down: worth a word, and no reason not to serve."""
    placement = settings.placement
    if placement.models and placement.mode is not Mode.MANAGED:
        place = layers.origin(("placement", "models"))
        yield f"{place}placement.models: nothing is kept in memory while placement.mode is {placement.mode}"


def setting_paths() -> dict[str, FieldInfo]:
    """Every setting by its path: `limits.body_bytes`, and `nodes[].models.<name>.slots` inside lists and mappings."""
    return dict(_fields(Settings, ""))


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        path, annotation = f"{prefix}{name}", _said(info.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{path}.")
            continue
        yield path, info
        for item in getattr(annotation, "__args__", ()):
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _fields(
                    item, f"{path}[]." if getattr(annotation, "__origin__", None) is tuple else f"{path}.<name>."
                )


def _said(annotation: Any) -> Any:
    """Without the None that may stand for a setting which is not said."""
    kinds = [kind for kind in getattr(annotation, "__args__", ()) if kind is not type(None)]
    is_optional = isinstance(annotation, UnionType) and len(kinds) == 1
    return kinds[0] if is_optional else annotation


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are joined key by key; everything else of `over` replaces what is under it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _holds(values: Mapping[str, Any], steps: Steps) -> bool:
    """Lists are replaced whole, so whoever holds the list holds all of it."""
    node: Any = values
    for step in steps:
        if not isinstance(node, Mapping):
            return True
        if step not in node:
            return False
        node = node[step]
    return bool(steps)


# --- the environment


class _Environment(EnvSettingsSource):
    """Reads what it is given instead of the process's own environment."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._variables.items()}


def _known_variables(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Ours, and a warning for each that begins like ours and means nothing."""
    names = {variable_of(path) for path in setting_paths() if "[]" not in path and "<" not in path}
    names |= {variable_of(path) for path in Settings.model_fields}
    known, warnings = {}, []
    for name, value in sorted(environ.items()):
        if name.upper() in names:
            known[name] = value
        elif name.upper().startswith(PREFIX) and not _is_foreign(name.upper()):
            # Without the prefix, which would make everything look alike.
            own = {known.removeprefix(PREFIX): known for known in names}
            meant = difflib.get_close_matches(name.upper().removeprefix(PREFIX), own, n=1)
            hint = f"; did you mean {own[meant[0]]}?" if meant else ""
            warnings.append(f"environment: {name} is no setting and is ignored{hint}")
    return known, warnings


def variable_of(path: str) -> str:
    """`limits.body_bytes` -> `OLLAMA_ROUTER_LIMITS__BODY_BYTES`"""
    return PREFIX + path.replace(".", "__").upper()


def _is_foreign(name: str) -> bool:
    return name in (CONFIG_VARIABLE, ADMIN_URL_VARIABLE) or _SERVICE_LINK.search(name.removeprefix(PREFIX)) is not None


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    try:
        return _Environment(variables)()
    except SettingsError as error:
        # Its own text names the group, and repeats no value.
        raise ConfigError(list(_not_json(variables)) or [f"environment: {error}: it should be JSON"]) from None


def _not_json(variables: Mapping[str, str]) -> Iterator[str]:
    """pydantic-settings names the group only; this names the variable. Texts such as URLs are never read as JSON."""
    for name, value in variables.items():
        try:
            json.loads(value)
        except ValueError as error:
            if value.lstrip()[:1] in ("{", "[", ""):
                yield f"environment: {name} should be JSON: {error}"


# --- messages


def _problem(detail: ErrorDetails, layers: _Layers) -> str:
    steps = tuple(step for step in detail["loc"] if step != "[key]")
    text = detail["msg"].removeprefix("Value error, ")
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, AliasError | SaidWrong):
        steps, text = _as_far_as_said((*steps, *cause.steps), layers.merged()), cause.text
    if detail["type"] == "extra_forbidden":
        text = f"unknown setting{_meant(steps)}"
    elif detail["type"] != "value_error" and detail["type"] != "missing":
        text = _ENUM_MEMBER.sub(r"\1", f"{text[:1].lower()}{text[1:]}{_given(detail['input'])}")
    path = dotted(steps)
    return f"{layers.origin(steps)}{path}{': ' if path else ''}{text}"


def dotted(steps: Steps) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def _as_far_as_said(steps: Steps, values: Mapping[str, Any]) -> Steps:
    """Of an alias that is a name alone, its own path: what it is short for was never written."""
    node: Any = values
    for index, step in enumerate(steps):
        if isinstance(node, str):
            return steps[:index]
        is_there = step in node if isinstance(node, Mapping) else isinstance(step, int)
        if not is_there:
            return steps
        node = node[step]
    return steps


def _given(value: object) -> str:
    if isinstance(value, str | int | float) or value is None:
        text = json.dumps(value)
        return f", not {text if len(text) <= GIVEN_CHARS_MAX else text[:GIVEN_CHARS_MAX] + '...'}"
    return ""


def _meant(steps: Steps) -> str:
    """The setting with the most similar name, first among its neighbours, then by its last word anywhere."""
    path = dotted(steps)
    paths = {re.sub(r"\[\]", "", known): known for known in setting_paths()} | {
        name: name for name in Settings.model_fields
    }
    plain = ".".join(str(step) for step in steps if not isinstance(step, int))
    near = difflib.get_close_matches(plain, paths, n=1, cutoff=0.75)
    if not near:
        near = [known for known in paths if known.rpartition(".")[2] == str(steps[-1])][:1]
    return f"; did you mean {_as_written(paths[near[0]], path)}?" if near else ""


def _as_written(known: str, path: str) -> str:
    """With the index that the operator's own path has: `nodes[1].slots` for `nodes[].slots`."""
    index = re.search(r"\[\d+\]", path)
    return known.replace("[]", index[0]) if index else known
