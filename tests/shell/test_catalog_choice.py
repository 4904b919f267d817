"""Which of several manifests, targets and versions stands for a name; by hand, where a pool would need an hour."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from router.errors import NoNode, UnknownModel
from router.fleet.node import DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import Snapshot, snapshot_of
from router.policy.access import EVERYBODY, Team
from router.policy.alias import Aliases
from router.policy.alias_config import Said, aliases_of
from router.policy.globs import globs_of
from router.server.catalog import BODIES_MAX, NO_VERSION, Catalog, lowest_version
from router.server.show import nodes_to_ask
from router.wire.names import parse_name


def model(name: str, *, digest: str = "d", modified_at: str = "2026-01-01T00:00:00Z") -> DiskModel:
    key = parse_name(name).key
    listing = json.dumps({"name": key, "model": key, "digest": digest, "modified_at": modified_at})
    return DiskModel(key, key, digest, f"w:{digest}", modified_at=modified_at, listing=listing)


def node(name: str, *models: DiskModel, health: Health = Health.HEALTHY, version: str = "") -> Node:
    spec = NodeSpec(name, f"{name}.example", 11434)
    disk = MappingProxyType({each.key: each for each in models})
    return Node(spec, health=health, version=version, models=disk, is_read=health is not Health.UNREAD)


def catalog_of(*nodes: Node, **aliases: str) -> Catalog:
    snapshot = snapshot_of(nodes)
    ordered = ordered_aliases(**aliases)
    return Catalog(lambda: snapshot, lambda: ordered)


def ordered_aliases(**aliases: str) -> Aliases:
    """Each with its targets, best first."""
    return aliases_of(
        {alias: Said([(first, 1.0)], rest) for alias, (first, *rest) in ((a, t.split()) for a, t in aliases.items())}
    )


def test_the_youngest_manifest_stands_for_a_name_whichever_zone_it_was_written_in() -> None:
    older = model("m:1b", digest="old", modified_at="2026-01-01T01:30:00+02:00")  # 23:30 the day before
    younger = model("m:1b", digest="new", modified_at="2026-01-01T00:00:00Z")
    for nodes in ((node("a", older), node("b", younger)), (node("a", younger), node("b", older))):
        catalog = catalog_of(*nodes)
        assert catalog.find("m:1b", EVERYBODY).model.digest == "new"
        assert json.loads(catalog.tags(EVERYBODY))["models"][0]["digest"] == "new"


def test_of_two_manifests_of_one_moment_the_same_one_stands_always() -> None:
    one, other = model("m:1b", digest="one"), model("m:1b", digest="other")
    found = {
        catalog_of(*nodes).find("m:1b", EVERYBODY).model.digest for nodes in ((node("a", one), node("b", other)),) * 2
    }
    found |= {catalog_of(node("a", other), node("b", one)).find("m:1b", EVERYBODY).model.digest}
    assert found == {"other"}


def test_an_alias_is_the_first_of_its_targets_that_can_be_served() -> None:
    down = node("a", model("big:70b", digest="big"), health=Health.DOWN)
    up = node("b", model("small:1b", digest="small"))
    catalog = catalog_of(down, up, fast="absent:1b big:70b small:1b", slow="big:70b absent:1b", none="absent:1b")
    assert catalog.find("fast", EVERYBODY).model.digest == "small"
    assert catalog.find("slow", EVERYBODY).model.digest == "big", "on no node that is up, and known"
    with pytest.raises(UnknownModel):
        catalog.find("none", EVERYBODY)


def test_an_alias_hides_a_model_of_its_name_as_it_does_in_a_call() -> None:
    nodes = node("a", model("gpt-4", digest="own"), model("m:1b", digest="target"))
    catalog = catalog_of(nodes, **{"gpt-4": "m:1b"})
    assert catalog.find("gpt-4", EVERYBODY).model.digest == "target"
    assert [item["digest"] for item in json.loads(catalog.tags(EVERYBODY))["models"]] == ["target", "target"]
    assert "gpt-4:latest" not in json.loads(catalog_of(nodes, **{"gpt-4": "absent"}).tags(EVERYBODY))["models"]


def test_a_name_is_denied_only_when_every_node_was_read() -> None:
    with pytest.raises(NoNode, match="not every node has been read yet"):
        catalog_of(node("a"), node("b", health=Health.UNREAD)).find("m", EVERYBODY)
    with pytest.raises(UnknownModel, match="model 'm:latest' not found"):
        catalog_of(node("a")).find("m", EVERYBODY)


def test_lists_are_made_once_for_what_is_known_and_again_when_it_changes() -> None:
    known = [snapshot_of([node("a", model("m:1b"))]), Aliases()]
    catalog = Catalog(lambda: _snapshot(known[0]), lambda: _aliases(known[1]))
    first = catalog.models(EVERYBODY)
    assert catalog.models(EVERYBODY) is first
    known[1] = ordered_aliases(fast="m:1b")
    assert b"fast:latest" in catalog.models(EVERYBODY), "a configuration that was read anew"
    known[0] = Snapshot()
    assert catalog.models(EVERYBODY) == b'{"object":"list","data":null}\n'


def test_teams_with_the_same_globs_share_their_lists_and_each_sees_what_it_may() -> None:
    catalog = catalog_of(node("a", model("m:1b"), model("n:1b"), model("ns/m:8b")), fast="n:1b")
    teams = [Team(f"team-{number}", globs_of(["m*", "fast"])) for number in range(5)]
    first = catalog.models(teams[0])
    assert all(catalog.models(team) is first for team in teams)
    assert [item["id"] for item in json.loads(first)["data"]] == ["fast:latest", "m:1b"]
    assert [item["name"] for item in json.loads(catalog.tags(Team("t", globs_of(["ns/*"]))))["models"]] == ["ns/m:8b"]
    assert catalog.tags(Team("t", globs_of([]))) == b'{"models":[]}'
    with pytest.raises(UnknownModel, match="model 'n:1b' not found"):
        catalog.find("n:1b", teams[0])


def test_only_so_many_lists_are_kept_and_what_they_are_made_of_stays() -> None:
    catalog = catalog_of(node("a", model("m:1b")), fast="m:1b")
    teams = [Team(f"team-{number}", globs_of(["m*", f"x{number}"])) for number in range(BODIES_MAX + 1)]
    made_of = catalog._listed("default")
    bodies = [catalog.tags(team) for team in teams]
    assert len(set(bodies)) == 1
    assert len(catalog._known) == BODIES_MAX + 1
    assert catalog.tags(teams[-1]) is bodies[-1]
    assert catalog.tags(teams[0]) is not bodies[0], "the oldest has gone"
    assert catalog._listed("default") is made_of


def test_what_one_node_changes_is_listed_whatever_was_remembered_of_the_others() -> None:
    known = [snapshot_of([node("a", model("m:1b")), node("b", model("m:1b"))])]
    catalog = Catalog(lambda: known[-1], Aliases)
    assert (catalog.find("m:1b", EVERYBODY).nodes, catalog.find("m:1b", EVERYBODY).model.digest) == (2, "d")
    known.append(known[-1].with_node(node("a", model("m:1b"), health=Health.DOWN)))
    assert catalog.find("m:1b", EVERYBODY).nodes == 1
    known.append(known[-1].with_node(node("b", model("m:1b", digest="e", modified_at="2026-02-01T00:00:00Z"))))
    assert catalog.find("m:1b", EVERYBODY).model.digest == "e"
    known.append(known[-1].without_node("b"))
    assert (catalog.find("m:1b", EVERYBODY).nodes, catalog.find("m:1b", EVERYBODY).model.digest) == (0, "d")
    known.append(known[-1].without_node("a"))
    with pytest.raises(UnknownModel):
        catalog.find("m:1b", EVERYBODY)


def _snapshot(value: object) -> Snapshot:
    assert isinstance(value, Snapshot)
    return value


def _aliases(value: object) -> Aliases:
    assert isinstance(value, Aliases)
    return value


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        (["0.30.10", "0.9.6", "0.30.9"], "0.9.6"),
        (["v0.13.3-rc1", "0.20.0"], "0.13.3"),
        (["0.0.0", "0.33.0"], "0.33.0"),
        (["0.0.0", "0.0.0"], "0.0.0"),
        (["", "devel"], NO_VERSION),
        ([], NO_VERSION),
    ],
)
def test_the_version_is_the_lowest_that_is_a_number(versions: list[str], lowest: str) -> None:
    assert lowest_version(node(f"n{index}", version=version) for index, version in enumerate(versions)) == lowest


def test_healthy_nodes_with_the_very_manifest_are_asked_first() -> None:
    mine, skewed = model("m:1b", digest="mine"), model("m:1b", digest="skewed")
    states = {"a": Health.DRAINING, "b": Health.DEGRADED, "c": Health.HEALTHY, "d": Health.DOWN}
    nodes = [node(name, mine, health=health) for name, health in states.items()]
    snapshot = snapshot_of([*nodes, replace(node("e", skewed))])
    assert [found.name for found in nodes_to_ask(snapshot, mine)] == ["c", "b", "a"]
