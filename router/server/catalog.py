"""What the pool has, as one Ollama would list it: from the snapshot, never by asking nodes while a client waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from router.fleet.node import CopyState, DiskModel, Health, Node
from router.fleet.snapshot import Snapshot
from router.policy.alias import Aliases
from router.wire.names import parse_name

JSON_UTF8 = "application/json; charset=utf-8"  # native routes
JSON = "application/json"  # /v1 routes (recording openai/v1-models)
NO_VERSION = "0.0.0"  # what Ollama itself says when it was built without one


class Catalog:
    """Bodies by path, rendered once per snapshot."""

    def __init__(self, snapshot: Callable[[], Snapshot], aliases: Aliases) -> None:
        self._snapshot = snapshot
        self._aliases = aliases
        self._rendered: dict[str, bytes] = {}
        self._of: Snapshot | None = None

    def tags(self) -> bytes:
        return self._once("tags", lambda snapshot: _native_list(self._tag_items(snapshot)))

    def ps(self) -> bytes:
        return self._once("ps", lambda snapshot: _native_list(_ps_items(snapshot)))

    def models(self) -> bytes:
        return self._once("models", self._render_models)

    def version(self) -> bytes:
        return self._once("version", lambda snapshot: _dump({"version": _lowest_version(snapshot.nodes.values())}))

    def _once(self, what: str, render: Callable[[Snapshot], bytes]) -> bytes:
        snapshot = self._snapshot()
        if snapshot is not self._of:
            self._rendered.clear()
            self._of = snapshot
        body = self._rendered.get(what)
        if body is None:
            body = self._rendered[what] = render(snapshot)
        return body

    def _listed(self, snapshot: Snapshot) -> list[DiskModel]:
        """One entry a name, newest first as Ollama orders them; aliases as after `ollama cp`."""
        newest: dict[str, DiskModel] = {}
        for node in snapshot.nodes.values():
            for key, model in node.models.items():
                known = newest.get(key)
                if known is None or model.modified_at > known.modified_at:
                    newest[key] = model
        for alias in self._aliases.names:
            target = next((newest[key] for key in self._aliases.plan(alias).targets if key in newest), None)
            if target is not None:
                newest[alias] = _renamed(target, alias)
        return sorted(newest.values(), key=lambda model: (_unix(model.modified_at), model.key), reverse=True)

    def _tag_items(self, snapshot: Snapshot) -> list[str]:
        return [model.listing for model in self._listed(snapshot)]

    def _render_models(self, snapshot: Snapshot) -> bytes:
        items = [
            {
                "id": model.name,
                "object": "model",
                "created": int(_unix(model.modified_at)),
                "owned_by": parse_name(model.name).namespace,
            }
            for model in self._listed(snapshot)
        ]
        # Ollama itself says null for an empty list (openai/openai.go, ListCompletion).
        return _dump({"object": "list", "data": items or None}) + b"\n"


def _ps_items(snapshot: Snapshot) -> list[str]:
    """A model that several nodes hold is listed once, as the copy that stays longest."""
    longest: dict[str, tuple[float, str]] = {}
    for node in snapshot.nodes.values():
        if node.health is Health.DOWN:
            continue
        for copy in node.copies.values():
            if copy.state is not CopyState.READY or copy.listing == "{}":
                continue
            name = json.loads(copy.listing).get("name", "")
            if name not in longest or copy.expires_at_s > longest[name][0]:
                longest[name] = (copy.expires_at_s, copy.listing)
    return [listing for _, listing in sorted(longest.values(), reverse=True)]


def _native_list(items: Iterable[str]) -> bytes:
    return ('{"models":[' + ",".join(items) + "]}").encode()


def _renamed(model: DiskModel, alias: str) -> DiskModel:
    listing = json.loads(model.listing)
    listing["name"] = listing["model"] = alias
    return DiskModel(
        key=alias,
        name=alias,
        digest=model.digest,
        weights=model.weights,
        size_bytes=model.size_bytes,
        modified_at=model.modified_at,
        listing=_dump(listing).decode(),
    )


def _lowest_version(nodes: Iterable[Node]) -> str:
    """The lowest, so that no client relies on what one node lacks; numeric, since clients split it on dots."""
    versions = [node.version for node in nodes if node.version]
    return min((version.split("-")[0] for version in versions), key=_version_order, default=NO_VERSION)


def _version_order(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def _unix(modified_at: str) -> float:
    try:
        # Python reads at most microseconds where Go writes nanoseconds.
        head, dot, rest = modified_at.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))] if dot else ""
        return datetime.fromisoformat(f"{head}{dot}{digits[:6]}{rest[len(digits) :]}").timestamp()
    except ValueError:
        return 0.0


def _dump(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
