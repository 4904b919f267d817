"""The command line: arguments into settings, mistakes into readable lines, results into exit codes.

0 left well, 2 bad configuration or arguments, 1 anything else.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from router import __version__, cli_admin, cli_simulate
from router.cli_client import AdminFailed
from router.cli_completion import SHELLS, completion
from router.exits import FAILED, MISUSED, OK, complain
from router.policy.access import digest_of
from router.settings import ConfigError, Origin, Settings, load_settings
from router.workers.cores import worker_count

# Whoever reads a digest can try keys against it: 16 characters cannot be tried, a word can.
KEY_CHARS_MIN, KEY_CHARS_MAX = 16, 4096
NO_KEY = f"""\
no key: {KEY_CHARS_MIN} to {KEY_CHARS_MAX} printable characters without spaces, as `openssl rand -hex 32` prints them"""
NODES_MAX = 1000  # each simulated node is a listening socket and a few hundred KB
NO_NODE = """\
no node is configured, so there is nothing to route to. Name the Ollama servers, for example:
    ollama-router serve --node http://gpu-1:11434 --node http://gpu-2:11434
    OLLAMA_ROUTER_NODES=http://gpu-1:11434,http://gpu-2:11434 ollama-router serve
    ollama-router serve --config router.yaml        # with nodes: [http://gpu-1:11434], or discovery
To try it without any server: ollama-router demo"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return MISUSED
    except AdminFailed as error:
        complain(str(error))
        return FAILED
    except BrokenPipeError:  # whoever reads has seen enough: the interpreter must not try again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:  # a port that is taken, an address that is not ours
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _serve(options: argparse.Namespace) -> int:
    overrides: dict[str, Any] = {"nodes": list(options.node)} if options.node else {}
    if options.workers is not None:
        overrides["workers"] = options.workers
    origin = _origin(options, overrides)
    settings = _settings(origin)
    if not settings.nodes and not settings.discovery.is_on:
        complain(NO_NODE)
        return MISUSED
    count = worker_count(settings.workers)
    if count > 1:
        from router.workers import parent  # noqa: PLC0415 - the other commands need neither aiohttp nor uvloop

        return parent.serve(origin, count)
    from router import process  # noqa: PLC0415 - as above

    return process.serve(origin)


def _demo(options: argparse.Namespace) -> int:
    settings = _settings(_origin(options, {"nodes": []}))
    from router import process  # noqa: PLC0415

    return process.demo(settings, nodes=options.nodes, seed=options.seed)


def _check_config(options: argparse.Namespace) -> int:
    """The file alone: the environment of whoever checks is not that of the router."""
    settings = load_settings(options.file).settings
    print(f"{options.file}: ok, {len(settings.nodes)} nodes, {len(settings.aliases)} aliases")
    return OK


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(Settings.model_json_schema(), indent=2))
    return OK


def _version(options: argparse.Namespace) -> int:
    print(f"ollama-router {__version__}")
    return OK


def _hash_key(options: argparse.Namespace) -> int:
    """From stdin and not from an argument, which other users of the machine and the shell's history would see."""
    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline(KEY_CHARS_MAX + 2).rstrip("\r\n")
    is_key = key.isascii() and key.isprintable() and " " not in key and KEY_CHARS_MIN <= len(key) <= KEY_CHARS_MAX
    if not is_key:
        complain(NO_KEY)
        return MISUSED
    print(digest_of(key.encode()).hex())
    return OK


def _completion(options: argparse.Namespace) -> int:
    print(completion(_parser(), options.shell), end="")
    return OK


def _origin(options: argparse.Namespace, overrides: dict[str, Any]) -> Origin:
    if options.listen:
        overrides["listen"] = options.listen
    if options.metrics_listen:
        overrides["metrics_listen"] = options.metrics_listen
    if options.store:
        overrides["store"] = {"url": options.store}
    if options.admin_listen:
        overrides["admin"] = {"listen": options.admin_listen}
    log = {"format": options.log_format, "level": options.log_level}
    overrides["log"] = {name: value for name, value in log.items() if value}
    return Origin(options.config, overrides, dict(os.environ))


def _settings(origin: Origin) -> Settings:
    loaded = origin.read()
    for warning in loaded.warnings:
        complain(warning)
    return loaded.settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ollama-router", description="One base_url in front of a pool of Ollama nodes."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="route calls to the configured nodes")
    _add_common(serve)
    serve.add_argument("--node", action="append", metavar="URL", help="an Ollama server; repeat it for each")
    serve.add_argument("--workers", metavar="N", help="processes on one port; auto: one for each core (1)")
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="simulated nodes on this machine and a router in front of them")
    _add_common(demo)
    demo.add_argument("--nodes", type=_node_count, default=3, metavar="N", help="simulated nodes (3)")
    demo.add_argument("--seed", type=int, default=0, help="of what the nodes do by chance (0)")
    demo.set_defaults(run=_demo)

    cli_simulate.add_command(commands)

    check = commands.add_parser("check-config", help="say what is wrong with a configuration file")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_check_config)

    commands.add_parser("schema", help="JSON schema of the configuration file").set_defaults(run=_schema)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    hash_key = commands.add_parser("hash-key", help="read a team's key from stdin, print what settings know it by")
    hash_key.set_defaults(run=_hash_key)

    cli_admin.add_commands(commands)

    shell = commands.add_parser("completion", help="print what makes a shell complete these commands")
    shell.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    shell.set_defaults(run=_completion)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML; otherwise OLLAMA_ROUTER_CONFIG")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where clients connect (0.0.0.0:11435)")
    parser.add_argument("--metrics-listen", metavar="HOST:PORT", help="metrics and health (0.0.0.0:9464)")
    parser.add_argument("--admin-listen", metavar="HOST:PORT", help="for `nodes` and its like (127.0.0.1:9465)")
    parser.add_argument("--store", metavar="URL", help="what routers share: redis://HOST:PORT (memory://)")
    parser.add_argument("--log-format", choices=("json", "text"), help="of lines on stdout (json)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="(info)")


def _node_count(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < count <= NODES_MAX:
        raise argparse.ArgumentTypeError(f"should be a number from 1 to {NODES_MAX}")
    return count
