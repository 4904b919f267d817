"""Every route of a node but inference: lists, show, pull, create, copy, delete, blobs (recordings catalog/)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from router.errors import BadRequest
from router.simulation.answers import FOREVER_NS, JSON, JSON_UTF8, NDJSON, rfc3339, seconds_ns
from router.simulation.answers_openai import openai_model
from router.simulation.ask import NodeRefusal
from router.simulation.catalog import DiskModel, model_of
from router.simulation.facts import GIB
from router.simulation.faults import Fault, Order
from router.simulation.http import Reply, Request
from router.simulation.members import Members, read_members, text_at
from router.simulation.show import show_body
from router.wire.gojson import go_json, go_quote, syntax_error
from router.wire.names import DEFAULT_NAMESPACE, parse_name

if TYPE_CHECKING:
    from router.simulation.node import SimulatedNode

PULL_STEPS = 4
UNAUTHORIZED = {"error": "unauthorized", "signin_url": "https://ollama.com/connect"}

Faulty = Mapping[Fault, Order]
Route = Callable[["SimulatedNode", Request, Reply, Faulty], Awaitable[None]]


async def root(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    reply.send(200, [("Content-Type", "text/plain; charset=utf-8")], b"Ollama is running")


async def version(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    if order := faults.get(Fault.SLOW_VERSION):
        await asyncio.sleep(order.number)
    _json(reply, {"version": node.version.text})


async def status(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    _json(reply, {"cloud": {"disabled": False, "source": "none"}})


async def tags(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    rows = []
    # Newest first by whole seconds, by name among equals (recordings catalog/tags, v0.24/tags).
    for model in sorted(node.disk.values(), key=lambda model: (-(model.modified_ns // 1_000_000_000), model.name)):
        row: dict[str, object] = {"name": model.name, "model": model.name}
        if model.is_cloud:
            row |= {"remote_model": model.name.partition(":")[0], "remote_host": "https://ollama.com:443"}
        row |= {"modified_at": rfc3339(model.modified_ns), "size": model.size, "digest": model.digest}
        row["details"] = details_of(model, with_lengths=node.version.has_llama_server)
        if node.version.has_llama_server:
            row["capabilities"] = list(model.capabilities)
        rows.append(row)
    _json(reply, {"models": rows})


async def ps(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    if order := faults.get(Fault.STALL_PS):
        await asyncio.sleep(order.number)
    node.engine.catch_up()
    now_s, wall_ns = node.engine.now_s(), node.wall_ns()
    rows = []
    for copy, expires_s in node.model.listed(now_s):
        model = node.listed_as(copy.name, copy.weights.blob)
        expires_ns = min(wall_ns + FOREVER_NS, wall_ns + round(min(expires_s - now_s, 1e10) * 1e9))
        rows.append(_ps_row(node, model, copy.size_bytes, copy.num_ctx, expires_ns))
    load = node.model.load
    if load is not None and not node.version.has_llama_server:
        # Up to v0.24 a model showed as soon as its memory was laid out, its weights still loading.
        work = load.asker.work
        model = node.listed_as(work.name, work.weights.blob)
        rows.append(_ps_row(node, model, work.weights.loaded_bytes, load.asker.num_ctx, wall_ns))
    _json(reply, {"models": _lied(node, rows, faults)})


def _ps_row(node: SimulatedNode, model: DiskModel, size: int, num_ctx: int, expires_ns: int) -> dict[str, object]:
    return {
        "name": model.name,
        "model": model.name,
        "size": size,
        "digest": model.digest,
        "details": details_of(model, with_lengths=False) | {"parent_model": ""},
        "expires_at": rfc3339(expires_ns),
        "size_vram": size if node.model.limits.vram_bytes else 0,
        "context_length": num_ctx,
    }


def _lied(node: SimulatedNode, rows: list[dict[str, object]], faults: Faulty) -> list[dict[str, object]]:
    order = faults.get(Fault.LYING_PS)
    if order is None:
        return rows
    verb, _, name = order.argument.partition(":")
    if verb == "hide":
        return [row for row in rows if row["name"] != name]
    model = node.disk.get(parse_name(name).key)
    if model is None or any(row["name"] == name for row in rows):
        return rows
    return [*rows, _ps_row(node, model, model.weights.loaded_bytes, 4096, node.wall_ns() + seconds_ns(300))]


async def show(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    members = _members(request)
    model = _installed(node, _name_in(members, "model", "name"))
    reply.send(200, [("Content-Type", JSON_UTF8)], go_json(show_body(model, with_new=node.version.has_llama_server)))


async def openai_models(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    rows = [openai_model(model.name, model.modified_ns, _owner(model)) for model in node.newest_first()]
    reply.send(200, [("Content-Type", JSON)], go_json({"object": "list", "data": rows or None}) + b"\n")


async def openai_model_one(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    sent = request.decoded_path.rpartition("/")[2]
    model = _installed(node, sent)
    reply.send(200, [("Content-Type", JSON)], go_json(openai_model(sent, model.modified_ns, _owner(model))) + b"\n")


async def copy(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    members = _members(request)
    source, destination = text_at(members, "source"), text_at(members, "destination")
    model = node.disk.get(parse_name(source).key)
    if model is None:
        raise NodeRefusal(404, f"model {go_quote(source)} not found")
    node.put(replace(model, name=parse_name(destination).display, modified_ns=node.wall_ns()))
    reply.send(200, [])


async def delete(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    sent = _name_in(_members(request), "model", "name")
    if node.disk.pop(parse_name(sent).key, None) is None:
        raise NodeRefusal(404, f"model '{sent}' not found")
    reply.send(200, [])


async def pull(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    members = _members(request)
    name = parse_name(_name_in(members, "model", "name"))
    model = node.registry.get(name.key)
    streams = members.get("stream") is not False
    if model is None:
        error = {"error": "pull model manifest: file does not exist"}
        if not streams:
            reply.send(500, [("Content-Type", JSON_UTF8)], go_json(error))
            return
        await _progress(reply, [{"status": "pulling manifest"}, error])
        return
    digest = f"sha256:{model.weights.blob}"
    layer = {"status": f"pulling {model.weights.blob[:12]}", "digest": digest, "total": model.size}
    steps: list[Mapping[str, object]] = [{"status": "pulling manifest"}]
    steps += [layer | {"completed": model.size * step // PULL_STEPS} for step in range(1, PULL_STEPS + 1)]
    steps += [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}]
    pause_s = node.weights_of(model).load_s / PULL_STEPS
    await _report(reply, steps, streams=streams, pause_s=pause_s)
    node.put(replace(model, modified_ns=node.wall_ns()))
    _succeed(reply, streams=streams)


async def push(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    _installed(node, _name_in(_members(request), "model", "name"))
    reply.send(401, [("Content-Type", JSON_UTF8)], go_json(UNAUTHORIZED))


async def create(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    members = _members(request)
    name = parse_name(_name_in(members, "model", "name"))
    model = _created(node, members, name.display)
    streams = members.get("stream") is not False
    template = hashlib.sha256(model.template.encode()).hexdigest()
    steps: list[Mapping[str, object]] = [
        {"status": f"using existing layer sha256:{model.weights.blob}"},
        {"status": f"using existing layer sha256:{template}"},
        {"status": f"creating new layer sha256:{model.digest}"},
        {"status": "writing manifest"},
    ]
    await _report(reply, steps, streams=streams, pause_s=0.0)
    node.put(model)
    _succeed(reply, streams=streams)


def _created(node: SimulatedNode, members: Members, name: str) -> DiskModel:
    source = text_at(members, "from")
    parameters = members.get("parameters")
    digest = hashlib.sha256(go_json([name, source, parameters])).hexdigest()
    if source:
        parent = _installed(node, source)
        own = {str(key): value for key, value in parameters.items()} if isinstance(parameters, dict) else {}
        details = replace(parent.details, parent_model=parent.name)
        merged = {**(parent.parameters or {}), **own}
        changed = replace(parent, name=name, digest=digest, details=details, modified_ns=node.wall_ns())
        return replace(changed, parameters=merged)
    files = members.get("files")
    blob = next((str(value) for value in files.values()), "") if isinstance(files, dict) else ""
    if blob not in node.blobs:
        raise BadRequest("neither 'from' or 'files' was specified")
    made = model_of(name, gib=max(node.blobs[blob], 1) / GIB, same_weights_as=blob)
    return replace(made, digest=digest, modified_ns=node.wall_ns())


async def blob_head(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    digest = request.decoded_path.rpartition("/")[2]
    if digest not in node.blobs and not any(digest == f"sha256:{m.weights.blob}" for m in node.disk.values()):
        raise NodeRefusal(404, f'blob "{digest}" not found')
    reply.send(200, [])


async def blob_post(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    digest = request.decoded_path.rpartition("/")[2]
    if digest in node.blobs:
        reply.send(200, [])
        return
    if digest != "sha256:" + hashlib.sha256(request.body).hexdigest():
        raise BadRequest("digest mismatch")
    node.put_blob(digest, len(request.body))
    reply.send(201, [])


async def signed_out(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    """Whatever talks to ollama.com: nobody is signed in here."""
    reply.send(401, [("Content-Type", JSON_UTF8)], go_json(UNAUTHORIZED))


async def recommendations(node: SimulatedNode, request: Request, reply: Reply, faults: Faulty) -> None:
    _json(reply, {"recommendations": []})


def details_of(model: DiskModel, *, with_lengths: bool) -> dict[str, object]:
    details = model.details
    row: dict[str, object] = {
        "parent_model": details.parent_model,
        "format": "gguf",
        "family": details.family,
        "families": [details.family],
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization,
    }
    if with_lengths and details.context_length:
        row["context_length"] = details.context_length
    if with_lengths and details.embedding_length:
        row["embedding_length"] = details.embedding_length
    return row


def _json(reply: Reply, value: object) -> None:
    reply.send(200, [("Content-Type", JSON_UTF8)], go_json(value))


def _owner(model: DiskModel) -> str:
    return parse_name(model.name).namespace or DEFAULT_NAMESPACE


def _members(request: Request) -> Members:
    error = syntax_error(request.body)
    if error is not None:
        raise BadRequest("missing request body" if error == "EOF" else error)
    return read_members(request.body)


def _name_in(members: Members, *keys: str) -> str:
    sent = next((text for key in keys if (text := text_at(members, key)).strip()), "")
    if not sent:
        raise BadRequest("model is required")
    return sent


def _installed(node: SimulatedNode, sent: str) -> DiskModel:
    name = parse_name(sent)
    model = node.disk.get(name.key)
    if model is None:
        raise NodeRefusal(404, f"model '{name.display}' not found")
    return model


async def _report(reply: Reply, steps: list[Mapping[str, object]], *, streams: bool, pause_s: float) -> None:
    if streams:
        reply.start(200, [("Content-Type", NDJSON)])
    for step in steps:
        if streams:
            reply.flush(go_json(step) + b"\n")
        if pause_s:
            await asyncio.sleep(pause_s)


def _succeed(reply: Reply, *, streams: bool) -> None:
    success = go_json({"status": "success"})
    if not streams:
        reply.send(200, [("Content-Type", JSON_UTF8)], success)
        return
    reply.flush(success + b"\n")
    reply.finish()


async def _progress(reply: Reply, steps: list[Mapping[str, object]]) -> None:
    await _report(reply, steps, streams=True, pause_s=0.0)
    reply.finish()
