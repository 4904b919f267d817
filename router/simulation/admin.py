"""POST, GET and DELETE /simulate/faults: a node's faults for whoever is not in its process. No route of Ollama's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.errors import BadRequest
from router.simulation.answers import JSON_UTF8
from router.simulation.faults import Fault, Order
from router.simulation.http import Reply, Request
from router.simulation.members import int_at, read_members, text_at
from router.wire.gojson import go_json, syntax_error

if TYPE_CHECKING:
    from router.simulation.node import SimulatedNode


async def faults_route(node: SimulatedNode, request: Request, reply: Reply, faults: Mapping[Fault, Order]) -> None:
    if request.method == "POST":
        error = syntax_error(request.body)
        if error is not None:
            raise BadRequest(error)
        members = read_members(request.body)
        argument = members.get("argument", "")
        path, times = text_at(members, "path"), int_at(members, "times")
        node.faults.set(text_at(members, "fault"), argument, times=times, path=path)
    elif request.method == "DELETE":
        node.faults.clear()
    rows = [
        {"fault": order.fault, "argument": order.argument, "times": order.times, "path": order.path}
        for order in node.faults.orders
    ]
    reply.send(200, [("Content-Type", JSON_UTF8)], go_json({"faults": rows}))
    await node.obey_faults()
