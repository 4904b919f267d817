"""Nodes of several sources are one pool, in which an URL and a name stand once."""

from __future__ import annotations

from dataclasses import replace

from router.discovery.merge import merged
from router.fleet.node import NodeSpec, Presence

LISTED = NodeSpec("gpu-1", "10.0.0.1", 11434, slots=4)
POD = NodeSpec("ollama-0", "10.0.0.1", 11434, uid="u", slots=2, zone="a", machine="m", vram_bytes=5, gpus=2)


def test_the_same_url_is_one_node_with_the_first_name_and_what_the_others_know() -> None:
    assert merged([[LISTED], [POD]]) == (replace(LISTED, uid="u", zone="a", machine="m", vram_bytes=5, gpus=2),)


def test_a_listed_node_whose_pod_leaves_leaves() -> None:
    (node,) = merged([[LISTED], [replace(POD, presence=Presence.LEAVING)]])
    assert (node.name, node.presence) == ("gpu-1", Presence.LEAVING)


def test_a_name_that_is_taken_gives_way_to_the_address() -> None:
    other = NodeSpec("gpu-1", "10.0.0.2", 11434)
    assert [node.name for node in merged([[LISTED], [other]])] == ["gpu-1", "10.0.0.2:11434"]


def test_beyond_the_limit_nodes_are_left_out() -> None:
    many = [NodeSpec(f"n{n}", f"10.0.0.{n}", 11434) for n in range(5)]
    assert [node.name for node in merged([many], nodes_max=3)] == ["n0", "n1", "n2"]
    assert merged([many, many], nodes_max=3) == merged([many], nodes_max=3)
