"""What the documents tell people to write, type and run is good configuration, parses, and does what they say."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

import router
from router import cli
from router.settings import load_settings
from router.workers import parent

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Where the examples find the router.
ADDRESS = "127.0.0.1:11435"
ANSWERED_WITHIN_S = 30
# Of whoever runs the tests; what is on this machine is not asked by way of another.
HERE = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_ROUTER_")} | {"NO_PROXY": "*"}


@dataclass(frozen=True, slots=True)
class Block:
    """`where`: page and line, as editors open them."""

    where: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Lines as a shell joins them."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return found


BLOCKS = blocks()
OF_THE_CHART = "docs/edges/"  # values of the chart stand there, which tests/deploy/test_edges.py looks at
CONFIGURATIONS = [
    block
    for block in BLOCKS
    if block.language == "yaml" and "apiVersion:" not in block.text and not block.where.startswith(OF_THE_CHART)
]
COMMANDS = [
    pytest.param(command, id=f"{block.where} {command}")
    for block in BLOCKS
    for command in block.commands
    if command.startswith("ollama-router ")
]
README = [block for block in BLOCKS if block.where.startswith("README.md:")]
# Only their arguments are looked at: there is no router to ask here, and no scenario beside.
ASKING = ("nodes", "models", "explain", "drain", "resume", "simulate")
CURLS = [command for block in README for command in block.commands if command.startswith("curl ")]
PROGRAMS = [block for block in README if block.language == "python"]


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda block: block.where)
def test_yaml_is_good_configuration(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "router.yaml"
    config.write_text(block.text)
    assert load_settings(str(config)).warnings == ()
    # Twice the same key would be taken for the last one, silently.
    assert len(re.findall(r"^\w+:", block.text, re.MULTILINE)) == len(yaml.safe_load(block.text))


def test_the_readme_has_what_these_tests_are_for() -> None:
    assert (len(CURLS), len(PROGRAMS)) == (2, 3)
    assert len(CONFIGURATIONS) >= 2
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_what_the_command_line_takes(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that would run until they are told to stop get as far as their settings, those that ask a running router
    as far as their arguments."""
    served: list[object] = []

    class Process:
        serve = staticmethod(lambda origin: served.append(origin) or 0)
        demo = staticmethod(lambda settings, nodes, seed: served.append(settings) or 0)

    monkeypatch.setitem(sys.modules, "router.process", Process)
    monkeypatch.setattr(router, "process", Process, raising=False)
    monkeypatch.setattr(parent, "serve", lambda origin, count: served.append(origin) or 0)
    monkeypatch.chdir(tmp_path)
    Path("router.yaml").write_text(next(block.text for block in README if block.language == "yaml"))
    _, verb, *rest = takewhile(lambda word: word != ">", shlex.split(command, comments=True))
    if verb in ASKING:
        cli._parser().parse_args([verb, *rest])
        return
    assert cli.main([verb, *rest]) == cli.OK, capsys.readouterr().err
    assert len(served) == (verb in ("serve", "demo"))


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of what `make run` starts where there is no Ollama: a process of its own, ended by SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ["demo", "--nodes", "3", "--listen", address, "--metrics-listen", "127.0.0.1:0"]
    arguments += ["--admin-listen", "127.0.0.1:0"]
    environment = {**HERE, "OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "router", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert any("serving on" in line for line in process.stdout), "it ended before it served"
        deadline_s = time.monotonic() + ANSWERED_WITHIN_S
        while not models_at(address):  # a node lives before what it has is read
            assert time.monotonic() < deadline_s, "no node was read"
        yield address
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(ANSWERED_WITHIN_S) == 0


def models_at(address: str) -> list[object]:
    with contextlib.closing(http.client.HTTPConnection(address, timeout=ANSWERED_WITHIN_S)) as connection:
        connection.request("GET", "/v1/models")
        return json.loads(connection.getresponse().read())["data"] or []


def curl(command: str, address: str) -> tuple[str, str]:
    """Its body, and the content type of the answer; fails when the status is no good one."""
    assert ADDRESS in command
    arguments = shlex.split(command.replace(ADDRESS, address))
    told = [*arguments, "--silent", "--show-error", "--fail", "--write-out", "\n%{http_code} %{content_type}"]
    done = subprocess.run(told, env=HERE, capture_output=True, text=True, timeout=ANSWERED_WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr
    body, _, last = done.stdout.rpartition("\n")
    status, _, kind = last.partition(" ")
    assert status == "200"
    return body, kind


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")
def test_the_quick_start_lists_models_and_streams_an_answer(demo: str) -> None:
    lists, streams = CURLS
    body, kind = curl(lists, demo)
    listed = json.loads(body)
    assert (kind, listed["object"]) == ("application/json", "list")
    body, kind = curl(streams, demo)
    *events, done, nothing = body.split("\n\n")
    assert (kind, done, nothing) == ("text/event-stream", "data: [DONE]", "")
    spoken = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {event["model"] for event in spoken} <= {model["id"] for model in listed["data"]}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in spoken)


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.where)
def test_programs_of_the_readme_run(demo: str, block: Block) -> None:
    program = block.text.replace(ADDRESS, demo)
    assert program != block.text
    told = [sys.executable, "-c", program]
    done = subprocess.run(told, env=HERE, capture_output=True, text=True, timeout=ANSWERED_WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr
