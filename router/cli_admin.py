"""The commands that ask a running router: nodes, models, explain, drain, resume."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from router import cli_tables as tables
from router.cli_client import AdminClient, AdminFailed, checked_url

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

URL = "http://127.0.0.1:9465"
URL_VARIABLE = "OLLAMA_ROUTER_ADMIN_URL"
# The router's own setting: beside it, in its container, nothing has to be said.
TOKEN_VARIABLE = "OLLAMA_ROUTER_ADMIN__TOKEN_FILE"  # noqa: S105 - the name of a variable

POLL_S = 1.0
WAIT_S = 600.0  # a long stream; then somebody should look
NAMES_TIMEOUT_S = 2.0  # a shell that completes a word waits for it

Node = Mapping[str, Any]


def add_commands(commands: Commands) -> None:
    nodes = _command(commands, "nodes", "what each node is and does")
    nodes.add_argument("--names", action="store_true", help="only the names, one a line")
    nodes.set_defaults(run=_nodes)

    models = _command(commands, "models", "where each model is, and who waits for it")
    models.add_argument("--names", action="store_true", help="only the names, aliases too, one a line")
    models.set_defaults(run=_models)

    explain = _command(commands, "explain", "why a call for a model would go where it would go now")
    explain.add_argument("model", metavar="MODEL", help="as a client would name it")
    explain.add_argument("--affinity", metavar="TEXT", help="as in the header x-ollama-router-affinity")
    explain.add_argument("--num-ctx", type=_tokens, metavar="TOKENS", help="the context that the call asks for")
    explain.add_argument("--team", metavar="TEAM", help="whose call it is (default)")
    explain.set_defaults(run=_explain)

    drain = _command(commands, "drain", "give a node no new calls; what runs there ends as it would")
    drain.add_argument("node", metavar="NODE")
    drain.add_argument("--wait", action="store_true", help="return when nothing runs there any more")
    drain.add_argument("--timeout", type=_seconds, default=WAIT_S, metavar="S", help=f"of --wait ({WAIT_S:g})")
    drain.set_defaults(run=_drain)

    resume = _command(commands, "resume", "give a drained node calls again")
    resume.add_argument("node", metavar="NODE")
    resume.set_defaults(run=_resume)


def _command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
    command.add_argument("--admin", type=_url, metavar="URL", help=f"the router's admin API ({URL_VARIABLE}; {URL})")
    command.add_argument("--token-file", metavar="FILE", help=f"its token, where it wants one ({TOKEN_VARIABLE})")
    command.add_argument("--json", action="store_true", help="the whole answer, for machines")
    return command


def _nodes(options: argparse.Namespace) -> int:
    items = _client(options).get("nodes")["nodes"]
    if options.names:
        _say("\n".join(node["name"] for node in items))
    elif not _say_json(options, items):
        _say(tables.nodes(items) if items else "no nodes")
    return 0


def _models(options: argparse.Namespace) -> int:
    items = _client(options).get("models")["models"]
    if options.names:
        _say("\n".join(sorted({name for model in items for name in (model["model"], *model["aliases"])})))
    elif not _say_json(options, items):
        _say(tables.models(items) if items else "no models")
    return 0


def _explain(options: argparse.Namespace) -> int:
    asked = {"model": options.model, "affinity": options.affinity, "num_ctx": options.num_ctx, "team": options.team}
    given = {name: str(value) for name, value in asked.items() if value is not None}
    answer = _client(options).get("explain", **given)
    if not _say_json(options, answer):
        _say(tables.explanation(answer))
    return 0


def _drain(options: argparse.Namespace) -> int:
    client = _client(options)
    node = client.post("nodes", options.node, "drain")
    if node["only_here"]:
        _warn(
            f"no other node that takes calls has {', '.join(node['only_here'])}: calls for them are refused until "
            f"`ollama-router resume {node['name']}`"
        )
    if options.wait:
        node = _until_idle(client, node, options)
    if not _say_json(options, node):
        _say(tables.order(node))
    return 0


def _until_idle(client: AdminClient, node: Node, options: argparse.Namespace) -> Node:
    """Tells each change. Raises AdminFailed when the time is over, or somebody resumes the node."""
    end_s = time.monotonic() + options.timeout
    told = ""
    while not node["is_idle"]:
        if not node["is_drained"]:
            raise AdminFailed(f"{node['name']} was told to resume while this waited for its end")
        text = tables.order(node)
        if time.monotonic() >= end_s:
            raise AdminFailed(f"{text}, after {tables.duration(options.timeout)}; it keeps draining")
        if text != told and not options.json:
            _say(text)
        told = text
        time.sleep(min(POLL_S, max(0.0, end_s - time.monotonic())))
        node = client.get("nodes", options.node)
    return node


def _resume(options: argparse.Namespace) -> int:
    node = _client(options).post("nodes", options.node, "resume")
    if not _say_json(options, node):
        _say(tables.order(node))
    return 0


def _client(options: argparse.Namespace) -> AdminClient:
    url = options.admin or os.environ.get(URL_VARIABLE) or URL
    try:
        url = checked_url(url)
    except ValueError as error:
        raise AdminFailed(f"{URL_VARIABLE} {error}, not {url!r}") from None
    token_file = options.token_file or os.environ.get(TOKEN_VARIABLE)
    if getattr(options, "names", False):
        return AdminClient(url, token_file, NAMES_TIMEOUT_S)
    return AdminClient(url, token_file)


def _url(text: str) -> str:
    try:
        return checked_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 2**31):
        raise argparse.ArgumentTypeError("should be a number of tokens")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError("should be a number of seconds")
    return seconds


def _say_json(options: argparse.Namespace, answer: object) -> bool:
    if options.json:
        _say(json.dumps(answer, indent=2, ensure_ascii=False))
    return bool(options.json)


def _say(text: str) -> None:
    if text:
        print(text, flush=True)


def _warn(text: str) -> None:
    print(f"ollama-router: {text}", file=sys.stderr)
