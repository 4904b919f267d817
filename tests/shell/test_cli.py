"""Commands end in an exit code that scripts can rely on, and in words that say what to do."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

import router
from router import __version__
from router.cli import FAILED, MISUSED, OK, main
from router.settings import Origin, Settings


class Running(ModuleType):
    """Stands for `router.process`: keeps what it was asked to run."""

    def __init__(self) -> None:
        super().__init__("router.process")
        self.served: list[Settings] = []
        self.shown: list[tuple[Settings, int, int]] = []
        self.failure: Exception | None = None

    def serve(self, origin: Origin) -> int:
        if self.failure is not None:
            raise self.failure
        self.served.append(origin.read().settings)
        return 0

    def demo(self, settings: Settings, nodes: int, *, seed: int) -> int:
        self.shown.append((settings, nodes, seed))
        return 0


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Running:
    for name in ("OLLAMA_ROUTER_NODES", "OLLAMA_ROUTER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    process = Running()
    monkeypatch.setitem(sys.modules, "router.process", process)
    monkeypatch.setattr(router, "process", process, raising=False)
    return process


def test_serve_runs_with_what_the_arguments_say(process: Running) -> None:
    nodes = ["--node", "gpu-1", "--node", "http://gpu-2:1"]
    metrics = ["--metrics-listen", "127.0.0.1:0"]
    assert (
        main(["serve", *nodes, "--listen", "[::1]:0", *metrics, "--admin-listen", "[::1]:1", "--log-format", "text"])
        == OK
    )
    (settings,) = process.served
    assert [node.url for node in settings.nodes] == ["http://gpu-1:11434", "http://gpu-2:1"]
    ends = (settings.listen, settings.metrics_listen, settings.admin.listen)
    assert ends == ("[::1]:0", "127.0.0.1:0", "[::1]:1")
    assert (settings.log.format, settings.log.level) == ("text", "info")


def test_serve_reads_the_environment_and_a_file(
    process: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "router.yaml"
    config.write_text("pool: lab\nlog: {format: text, level: warning}\n")
    monkeypatch.setenv("OLLAMA_ROUTER_NODES", "gpu-1,gpu-2")
    monkeypatch.setenv("OLLAMA_ROUTER_NODSE", "x")
    assert main(["serve", "--config", str(config), "--log-level", "debug"]) == OK
    (settings,) = process.served
    assert (settings.pool, len(settings.nodes)) == ("lab", 2)
    assert (settings.log.format, settings.log.level) == ("text", "debug")
    assert "OLLAMA_ROUTER_NODSE is no setting and is ignored" in capsys.readouterr().err


def test_serve_without_a_node_says_what_to_do(process: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == MISUSED
    text = capsys.readouterr().err
    assert "no node is configured" in text
    assert "--node http://" in text
    assert "ollama-router demo" in text
    assert process.served == []


def test_a_port_that_is_taken_is_a_failure_in_one_line(process: Running, capsys: pytest.CaptureFixture[str]) -> None:
    process.failure = OSError(98, "address already in use")
    assert main(["serve", "--node", "gpu-1"]) == FAILED
    assert capsys.readouterr().err == "ollama-router: [Errno 98] address already in use\n"


def test_demo_brings_its_own_nodes(process: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_ROUTER_NODES", "gpu-1")
    assert main(["demo", "--nodes", "5", "--seed", "7"]) == OK
    ((settings, nodes, seed),) = process.shown
    assert (settings.nodes, nodes, seed) == ((), 5, 7)


@pytest.mark.parametrize("nodes", ["0", "-1", "1001", "many", "1.5"])
def test_a_demo_of_no_or_too_many_nodes_is_refused(nodes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--nodes={nodes}"])
    assert caught.value.code == MISUSED
    assert "should be a number from 1 to 1000" in capsys.readouterr().err


def test_bad_configuration_is_a_line_for_each_mistake_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "router.yaml"
    config.write_text("limits:\n  bodybytes: 3\nlisten: nowhere\n")
    assert main(["check-config", str(config)]) == MISUSED
    assert capsys.readouterr().err.splitlines() == [
        f"ollama-router: {config}:3: listen: should be HOST:PORT, such as 0.0.0.0:11435, [::]:11435 or *:11435",
        f"ollama-router: {config}:2: limits.bodybytes: unknown setting; did you mean limits.body_bytes?",
    ]
    assert main(["check-config", str(tmp_path / "nowhere.yaml")]) == MISUSED


def test_good_configuration_is_said_to_be_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "router.yaml"
    config.write_text("nodes: [gpu-1]\naliases: {gpt-4: qwen3}\n")
    assert main(["check-config", str(config)]) == OK
    assert capsys.readouterr().out == f"{config}: ok, 1 nodes, 1 aliases\n"


def test_schema_is_json_that_names_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == OK
    assert json.loads(capsys.readouterr().out)["properties"].keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["serve", "--colour"], ["serve", "--log-level", "loud"]])
def test_unknown_arguments_are_misuse(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == MISUSED


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "router", "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ollama-router {__version__}\n", "")


KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nand what follows"])
def test_a_key_is_hashed_as_settings_know_it(
    end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(KEY + end))
    assert main(["hash-key"]) == OK
    assert capsys.readouterr().out == f"{sha256(KEY.encode()).hexdigest()}\n"


@pytest.mark.parametrize("text", ["", "\n", "short", "with a space in its middle", "x" * 4097, "schlüssel-schlüssel"])
def test_what_is_no_key_is_not_hashed_and_not_repeated(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["hash-key"]) == MISUSED
    told = capsys.readouterr()
    assert told.out == ""
    assert "openssl rand -hex 32" in told.err
    assert not text.strip() or text.strip() not in told.err


def test_a_key_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["hash-key", KEY])
