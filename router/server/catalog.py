"""What the pool has, as one Ollama would list it: from the snapshot, never by asking nodes while a client waits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import is_not
from typing import NamedTuple, TypeVar

from router.errors import BadRequest, NoNode, UnknownModel
from router.fleet.node import CopyState, DiskModel, Node
from router.fleet.reports import parse_time_s
from router.fleet.snapshot import UP, Rows, Snapshot
from router.policy.access import Team
from router.policy.alias import DEFAULT_TEAM, Aliases
from router.policy.globs import Globs
from router.wire.gojson import go_json, go_string
from router.wire.names import key_of, parse_name

NO_VERSION = "0.0.0"  # what Ollama itself says when it was built without one
_VERSION = re.compile(r"v?(\d{1,9}(?:\.\d{1,9}){0,3})")

# The pool's own switch: nothing that a node says of its own account would be true of the pool. "none" is nobody who
# switches it off.
CLOUD_ON = b'{"cloud":{"disabled":false,"source":"none"}}'
CLOUD_OFF = b'{"cloud":{"disabled":true,"source":"config"}}'

LISTED = "listed"
# Of all teams together. A list of a thousand models has 400 KB, so these are 25 MB; teams with other globs beyond that
# have theirs rendered anew, in 5 ms.
BODIES_MAX = 64

WHOLE_SECONDS = len("2026-01-01T00:00:00")  # characters of a time without its fraction and zone

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listed:
    """One name of the pool: the youngest manifest that stands for it, and on how many nodes that are up.

    `key` is an alias's own where `model` is its target.
    """

    key: str
    name: str
    model: DiskModel
    modified_s: float
    nodes: int
    loaded: int


class View(NamedTuple):
    """What a team sees: teams with the same globs and the same aliases share it."""

    models: Globs
    meaning: str  # the team with aliases of its own, else the default one


class Catalog:
    """Bodies by path and view, rendered once per snapshot and set of aliases."""

    def __init__(self, snapshot: Callable[[], Snapshot], aliases: Callable[[], Aliases]) -> None:
        self._snapshot = snapshot
        self._aliases = aliases
        self._known: dict[tuple[object, ...], object] = {}
        self._of: tuple[Snapshot, Aliases] | None = None
        self._disks: dict[str, Mapping[str, DiskModel]] = {}  # by node
        self._youngest: dict[str, DiskModel] = {}  # of these disks
        # By meaning and key, with the rows that were counted.
        self._items: dict[str, Mapping[str, tuple[Rows, Listed]]] = {}

    def tags(self, team: Team) -> bytes:
        view = self._view(team)
        return self._once(lambda: self._tags(view), "tags", view)

    def ps(self, team: Team) -> bytes:
        return self._once(lambda: _native_list(_ps_items(self._snapshot(), team.models)), "ps", team.models)

    def models(self, team: Team) -> bytes:
        view = self._view(team)
        return self._once(lambda: self._models(view), "models", view)

    def version(self) -> bytes:
        return self._once(lambda: go_json({"version": lowest_version(self._snapshot().nodes.values())}), "version")

    def model(self, sent: str, team: Team) -> bytes:
        """Of /v1/models/{model}: the name verbatim, tag or none (recordings openai/v1-model*). Refuses as `find`."""
        return _openai_item(self.find(sent, team), sent) + b"\n"

    def find(self, sent: str, team: Team) -> Listed:
        """Refuses with BadRequest for what is no name, UnknownModel, or NoNode while some node was never read.

        A model that the team may not see is unknown to it.
        """
        name = parse_name(sent)
        found = self._listed(self._view(team).meaning).get(name.key)
        if found is not None and team.models.match(name.key):
            return found
        if self._snapshot().all_read:
            raise UnknownModel(f"model '{name.display}' not found")
        raise NoNode(f"not every node has been read yet: one of them may have '{name.display}'")

    def _once(self, render: Callable[[], T], *what: object) -> T:
        of = (self._snapshot(), self._aliases())
        if self._of is None or of[0] is not self._of[0] or of[1] is not self._of[1]:
            self._known.clear()
            if self._of is not None and of[1] is not self._of[1]:
                self._items.clear()  # its meanings are those of teams that there may be no more
            self._of = of
        if what not in self._known:
            bodies = [known for known in self._known if known[0] != LISTED]
            if len(bodies) >= BODIES_MAX:
                del self._known[bodies[0]]
            self._known[what] = render()
        return self._known[what]  # type: ignore[return-value]  # what `render` of this name returned

    def _view(self, team: Team) -> View:
        return View(team.models, team.name if team.name in self._aliases().of_teams else DEFAULT_TEAM)

    def _seen(self, view: View) -> Iterable[Listed]:
        listed = self._listed(view.meaning)
        return (item for key, item in listed.items() if view.models.match(key))

    def _listed(self, meaning: str) -> Mapping[str, Listed]:
        return self._once(lambda: self._list(meaning), LISTED, meaning)

    def _list(self, meaning: str) -> Mapping[str, Listed]:
        """By key. A thousand nodes make a thousand snapshots a second, and few of them change any list: what hangs on
        disks is looked for again when a disk has changed, and a name's row when its nodes have."""
        snapshot = self._snapshot()
        disks = {name: node.models for name, node in snapshot.nodes.items()}
        if len(disks) != len(self._disks) or any(map(is_not, disks.values(), map(self._disks.get, disks))):
            self._disks, self._youngest = disks, _youngest_of(disks.values())
        known: Mapping[str, tuple[Rows, Listed]] = self._items.get(meaning, {})
        items: dict[str, tuple[Rows, Listed]] = {}
        for key, model in _names(snapshot, self._aliases(), meaning, self._youngest).items():
            rows = snapshot.holding(model.key)
            last_rows, item = known.get(key, (None, None))
            if item is None or last_rows is not rows or item.model is not model:
                item = _item(key, model, rows)
            items[key] = rows, item
        self._items[meaning] = items
        return {key: item for key, (_, item) in items.items()}

    def _tags(self, view: View) -> bytes:
        """In Ollama's order: by whole seconds, then by name (recordings catalog/tags and v0.24/tags)."""
        listed = sorted(self._seen(view), key=lambda item: (-int(item.modified_s), item.key))
        return _native_list(_tag_item(item) for item in listed)

    def _models(self, view: View) -> bytes:
        listed = sorted(self._seen(view), key=lambda item: (-item.modified_s, item.key))
        if not listed:
            # Ollama itself says null for an empty list (openai/openai.go, ListCompletion).
            return b'{"object":"list","data":null}\n'
        items = b",".join(_openai_item(item, item.name) for item in listed)
        return b'{"object":"list","data":[%b]}\n' % items


def lowest_version(nodes: Iterable[Node]) -> str:
    """The lowest, so that no client relies on what one node lacks; numeric, since clients split it on dots.

    Nodes that were built without a version do not count beside others: they are as new as their source.
    """
    found = (_VERSION.match(node.version) for node in nodes)
    versions = [match[1] for match in found if match is not None and match[1] != NO_VERSION]
    return min(versions, key=lambda version: [int(part) for part in version.split(".")], default=NO_VERSION)


def _youngest_of(disks: Iterable[Mapping[str, DiskModel]]) -> dict[str, DiskModel]:
    """By key, of several manifests under one name."""
    youngest: dict[str, DiskModel] = {}
    for disk in disks:
        for key, model in disk.items():
            known = youngest.get(key)
            if known is None or _is_younger(model, known):
                youngest[key] = model
    return youngest


def _names(snapshot: Snapshot, aliases: Aliases, team: str, youngest: Mapping[str, DiskModel]) -> dict[str, DiskModel]:
    """What each name of the pool stands for, to this team. Aliases hide models of the same name, as in a call."""
    named = dict(youngest)
    for alias in aliases.names:
        named.pop(alias, None)
        targets = [key for key in aliases.candidates(alias, team) if key in youngest]
        servable = [key for key in targets if snapshot.has_node_up(key)]
        for target in (servable or targets)[:1]:
            named[alias] = youngest[target]
    return named


def _is_younger(model: DiskModel, than: DiskModel) -> bool:
    if model.modified_at == than.modified_at:
        return model.digest > than.digest  # so that the order in which nodes were found decides nothing
    ours, theirs = model.modified_at, than.modified_at
    if ours[-1:] == theirs[-1:] == "Z" and ours[:WHOLE_SECONDS] != theirs[:WHOLE_SECONDS]:
        return ours[:WHOLE_SECONDS] > theirs[:WHOLE_SECONDS]  # nearly always, and a twentieth of the work
    return _modified_s(model) > _modified_s(than)


def _modified_s(model: DiskModel) -> float:
    return parse_time_s(model.modified_at) or 0.0


def _item(key: str, model: DiskModel, rows: Rows) -> Listed:
    up = [row for row in rows.by_node.values() if row.is_up]
    name = model.name if key == model.key else key
    return Listed(key, name, model, _modified_s(model), len(up), sum(row.is_resident for row in up))


def _tag_item(item: Listed) -> str:
    if item.key == item.model.key:
        return item.model.listing
    entry = json.loads(item.model.listing)
    return go_json({**entry, "name": item.name, "model": item.name}).decode()


def _openai_item(item: Listed, sent: str) -> bytes:
    """The four fields of OpenAI's as Ollama writes them, then what other gateways add and some clients read."""
    head = b'{"id":%b,"object":"model","created":%d,"owned_by":%b,"name":%b' % (
        go_string(sent),
        int(item.modified_s),
        go_string(parse_name(item.name).namespace),
        go_string(item.name),
    )
    more: dict[str, object] = {"nodes": item.nodes, "loaded": item.loaded}
    capabilities = json.loads(item.model.listing).get("capabilities")
    if isinstance(capabilities, list) and capabilities:
        more = {"capabilities": capabilities, **more}
    if item.model.context_max:
        more = {"context_length": item.model.context_max, **more}
    return head + b"," + go_json(more)[1:]


def _ps_items(snapshot: Snapshot, models: Globs) -> list[str]:
    """A name whose copies sit on several nodes is listed once, as the copy that stays longest."""
    longest: dict[str, tuple[float, str]] = {}
    for node in snapshot.nodes.values():
        if node.health not in UP:
            continue
        for copy in node.copies.values():
            # One that is about to expire is ON_DISK for calls, and in memory for whoever looks.
            if copy.state in (CopyState.READY, CopyState.ON_DISK) and copy.listing != "{}":
                name = json.loads(copy.listing).get("name", "")
                longest[name] = max(longest.get(name, (0.0, "")), (copy.expires_at_s, copy.listing))
    seen = (item for name, item in longest.items() if models.match_all or _is_seen(name, models))
    return [listing for _, listing in sorted(seen, key=lambda item: -item[0])]


def _is_seen(name: str, models: Globs) -> bool:
    try:
        return models.match(key_of(name))
    except BadRequest:  # no name: nobody could be allowed to use it
        return False


def _native_list(items: Iterable[str]) -> bytes:
    return ('{"models":[' + ",".join(items) + "]}").encode()
