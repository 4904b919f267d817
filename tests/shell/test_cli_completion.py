"""Completion scripts know the parser's own tree; bash completes words with them, as a shell would."""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from router.cli import OK, main
from router.cli_completion import SHELLS, completion

COMMANDS = ["serve", "demo", "simulate", "check-config", "schema", "version", "hash-key", "nodes", "models", "explain"]
COMMANDS += ["drain", "resume"]
NODES = ["gpu-1:11434", "gpu-2", "odd$(touch pwned)`x`"]
MODELS = ["llama3.2:3b", "llama3.2:1b", "qwen3:8b"]

# What bash does when a word is completed with readline, as far as a completion function sees it.
ASK = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_ollama_router
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a script for each shell, and an `ollama-router` that knows some names."""
    for shell in SHELLS:
        assert main(["completion", shell]) == OK
        (tmp_path / shell).write_text(capsys.readouterr().out)
    names = {"nodes": NODES, "models": MODELS}
    cases = "\n".join(
        f"'{kind} --names') printf '%s\\n' {' '.join(repr(name) for name in known)} ;;" for kind, known in names.items()
    )
    fake = tmp_path / "ollama-router"
    fake.write_text(f'#!/bin/sh\ncase "$1 $2" in\n{cases}\nesac\necho noise >&2\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def completed(scripts: Path, line: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "ask", str(scripts / "bash"), line],
        capture_output=True,
        text=True,
        check=True,
        cwd=scripts,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
    )
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ollama-router ", [*COMMANDS, "completion"]),
        ("ollama-router d", ["demo", "drain"]),
        ("ollama-router serve --met", ["--metrics-listen"]),
        ("ollama-router serve --log-format ", ["json", "text"]),
        ("ollama-router serve --node x --log-level w", ["warning"]),
        ("ollama-router serve --listen ", []),
        ("ollama-router drain --w", ["--wait"]),
        ("ollama-router drain gpu-", ["gpu-1:11434", "gpu-2"]),
        ("ollama-router drain --wait gpu-2", ["gpu-2"]),
        ("ollama-router resume gpu-1:", ["11434"]),
        ("ollama-router explain llama3.2:", ["3b", "1b"]),
        ("ollama-router explain q", ["qwen3:8b"]),
        ("ollama-router check-config ba", ["bash"]),
        ("ollama-router nodes --token-file fi", ["fish"]),
        ("ollama-router completion ", ["bash", "zsh", "fish"]),
        ("ollama-router nodes ", []),
        ("ollama-router nonsense ", []),
    ],
)
def test_bash_completes(scripts: Path, line: str, words: list[str]) -> None:
    assert completed(scripts, line) == words


def test_a_nodes_name_is_never_run(scripts: Path) -> None:
    assert completed(scripts, "ollama-router drain odd") == ["odd\\$\\(touch\\ pwned\\)\\`x\\`"]
    assert not (scripts / "pwned").exists()


def test_without_a_router_nothing_is_completed_and_nothing_is_said(scripts: Path) -> None:
    (scripts / "ollama-router").write_text("#!/bin/sh\necho 'no router answers' >&2\nexit 1\n")
    assert completed(scripts, "ollama-router drain g") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_every_script(scripts: Path, shell: str) -> None:
    script = (scripts / shell).read_text()
    for command in COMMANDS:
        assert command in script
    for option in ("config", "metrics-listen", "admin-listen", "num-ctx", "wait", "timeout", "token-file", "names"):
        assert f"-l {option} " in script if shell == "fish" else f"--{option}" in script


def test_zsh_and_fish_know_values_and_ask_for_names(scripts: Path) -> None:
    zsh, fish = ((scripts / shell).read_text() for shell in ("zsh", "fish"))
    assert zsh.startswith("#compdef ollama-router\n")
    assert "'*--log-format[of lines on stdout (json)]:log_format:(json text)'" in zsh
    assert "'1:NODE:{_ollama_router_names nodes}'" in zsh
    assert "'1:MODEL:{_ollama_router_names models}'" in zsh
    assert "'*--config[YAML; otherwise OLLAMA_ROUTER_CONFIG]:FILE:_files'" in zsh
    assert "-n '__fish_seen_subcommand_from drain' -f -a '(ollama-router nodes --names 2>/dev/null)'" in fish
    assert "-n '__fish_seen_subcommand_from serve' -l log-format -r -f -a 'json text' -d" in fish
    assert "-n '__fish_seen_subcommand_from serve' -l config -r -F -d" in fish


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_good_syntax_for_its_shell(scripts: Path, shell: str) -> None:
    found = shutil.which(shell)
    if found is None:
        assert shell != "bash", "bash is what the other tests need"
        pytest.skip(f"{shell} is not installed; what its script says is tested above")
    subprocess.run([found, "-n", str(scripts / shell)], check=True)


def test_texts_are_quoted_whatever_stands_in_them() -> None:
    parser = argparse.ArgumentParser(prog="ollama-router")
    command = parser.add_subparsers().add_parser("odd", help="it's [odd]: yes")
    command.add_argument("--it", help="don't [do] it: a\\b")
    assert "'*--it[don'\\''t \\[do\\] it\\: a\\\\b]:it: '" in completion(parser, "zsh")
    assert "-d 'it\\'s [odd]: yes'" in completion(parser, "fish")
    assert "--it" in completion(parser, "bash")
