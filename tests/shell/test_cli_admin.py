"""The commands that ask a running router, as processes of their own: tables, exit codes, and words that help."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from router.cli import FAILED, MISUSED, OK, main
from router.cli_client import checked_url
from router.cli_tables import duration, nodes, order, table
from router.wiring import Router
from tests.shell.clients import Client, generate
from tests.shell.house import LOOPBACK, router_before, until
from tests.shell.scenes import COLD, ENDLESS, QUICK, holding, let_run, pool_of

Ended = tuple[int, str, str]


def command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "router", *arguments)


def environment(router: Router | None = None, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_ROUTER_")}
    own = {"OLLAMA_ROUTER_ADMIN_URL": f"http://127.0.0.1:{router.admin_port}"} if router is not None else {}
    # Whoever goes by these would ask somebody else.
    return {**clean, **own, "http_proxy": "http://127.0.0.1:1", "all_proxy": "http://127.0.0.1:1", **more}


async def run(router: Router | None, *arguments: str, **more: str) -> Ended:
    child = await asyncio.create_subprocess_exec(
        *command(*arguments), stdout=PIPE, stderr=PIPE, env=environment(router, **more)
    )
    async with asyncio.timeout(30):
        stdout, stderr = await child.communicate()
    assert child.returncode is not None
    return child.returncode, stdout.decode(), stderr.decode()


async def said(router: Router, *arguments: str) -> list[str]:
    code, stdout, stderr = await run(router, *arguments)
    assert (code, stderr) == (OK, "")
    return stdout.splitlines()


def test_gpus_have_a_column_where_anybody_has_said_how_many_there_are() -> None:
    usual = {"state": "healthy", "circuit": "closed", "is_drained": False, "version": "0.33.0", "used": 0, "slots": 4}
    item = {**usual, "on_disk": 1, "loading": None, "copies": [], "thrash": [], "gpus": None}
    told = nodes([{**item, "name": "ollama-0", "gpus": 2}, {**item, "name": "gpu-1"}]).splitlines()
    assert [line.split()[3] for line in told] == ["GPUS", "2", "-"]
    assert "GPUS" not in nodes([{**item, "name": "gpu-1"}])


async def test_nodes_and_models_are_aligned_tables() -> None:
    async with holding(2, QUICK, slots=4, aliases={"gpt-4": QUICK}) as (_, router):
        assert await said(router, "nodes") == [
            "NAME    STATE     VERSION   USED   SLOTS   ON DISK   IN MEMORY",
            "sim-1   healthy   0.33.0       0       4         5   quick:1b 0/4",
            "sim-2   healthy   0.33.0       0       4         5   quick:1b 0/4",
        ]
        assert await said(router, "models") == [
            "MODEL        NODES   LOADED   USED   SLOTS   WAITING   LONGEST   ALIASES",
            "cold:1b          2        0      0       0         0   -         -",
            "endless:1b       2        0      0       0         0   -         -",
            "quick:1b         2        2      0       8         0   -         gpt-4:latest",
            "silent:1b        2        0      0       0         0   -         -",
            "twin:1b          2        0      0       0         0   -         -",
        ]
        assert await said(router, "nodes", "--names") == ["sim-1", "sim-2"]
        assert "gpt-4:latest" in await said(router, "models", "--names")
        (first, _) = json.loads("\n".join(await said(router, "nodes", "--json")))
        assert (first["name"], first["is_idle"]) == ("sim-1", True)


async def test_explain_says_where_a_call_goes_and_a_call_goes_there() -> None:
    async with holding(2, QUICK, aliases={"gpt-4": QUICK}) as (_, router):
        lines = await said(router, "explain", "gpt-4", "--affinity", "talk")
        got = await generate(router, "gpt-4", x_ollama_router_affinity="talk")
        assert lines[0] == f"quick:1b goes to {got.node} at once: it has this conversation, with 0 of 1 slots taken"
        assert lines[2] == "NODE    STATE   RANK   LOAD   USED   SLOTS   CONTEXT   WHY"
        assert re.fullmatch(
            rf"{got.node}   ready      1   1\.00      0       1      \d+   0 of 1 slots taken; has this conversation",
            lines[3],
        )
        assert lines[-1] == "line of quick:1b: nobody waits"
        (cold, *_) = await said(router, "explain", COLD)
        assert re.fullmatch(r"cold:1b waits in line, first, for sim-\d to load it", cold)
        (refused, *_) = await said(router, "explain", QUICK, "--num-ctx", "9000")
        assert refused.startswith("refused: num_ctx 9000 is more than the context")
        answer = json.loads("\n".join(await said(router, "explain", "nowhere", "--json")))
        assert answer["verdict"]["reason"] == "model_not_found"


async def test_drain_waits_for_the_last_call_and_resume_gives_calls_again() -> None:
    async with holding(1, ENDLESS) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await client.first(b'"done":false')
        code, stdout, stderr = await run(router, "drain", "sim-1")
        assert (code, stdout) == (OK, "sim-1 drains: 1 call still runs there\n")
        assert "no other node that takes calls has cold:1b, endless:1b" in stderr
        assert "`ollama-router resume sim-1`" in stderr
        code, stdout, stderr = await run(router, "drain", "sim-1", "--wait", "--timeout", "0")
        assert (code, "1 call still runs there, after 0s; it keeps draining" in stderr) == (FAILED, True)

        waiting = await asyncio.create_subprocess_exec(
            *command("drain", "sim-1", "--wait"), stdout=PIPE, stderr=PIPE, env=environment(router)
        )
        assert waiting.stdout is not None
        assert await waiting.stdout.readline() == b"sim-1 drains: 1 call still runs there\n"
        let_run(pool.nodes[0])
        await client.answer()
        rest, _ = await waiting.communicate()
        assert (waiting.returncode, rest) == (OK, b"sim-1 drains, and nothing runs there: it may be stopped\n")
        assert (await said(router, "nodes"))[1].startswith("sim-1   draining   0.33.0")
        assert await said(router, "resume", "sim-1") == ["sim-1 is healthy and takes calls"]
        assert (await generate(router, ENDLESS, stream=False)).status == 200


async def test_who_waits_for_a_drain_hears_of_it_when_it_is_called_off() -> None:
    async with holding(1, ENDLESS) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await client.first(b'"done":false')
        waiting = await asyncio.create_subprocess_exec(
            *command("drain", "sim-1", "--wait"), stdout=PIPE, stderr=PIPE, env=environment(router)
        )
        assert waiting.stdout is not None
        await waiting.stdout.readline()
        await router.keeper.resume("sim-1")
        _, stderr = await waiting.communicate()
        assert (waiting.returncode, b"was told to resume" in stderr) == (FAILED, True)
        let_run(pool.nodes[0])
        await client.answer()


async def test_what_does_not_exist_and_what_does_not_answer_is_a_line_and_exit_code_1() -> None:
    async with holding(1) as (_, router):
        for verb in ("drain", "resume"):
            code, stdout, stderr = await run(router, verb, "sim-11")
            assert (code, stdout) == (FAILED, "")
            assert stderr == "ollama-router: there is no node 'sim-11'; did you mean sim-1?\n"
        code, _, stderr = await run(router, "nodes", "--admin", f"http://127.0.0.1:{router.metrics_port}")
        assert (code, "is no router's admin API" in stderr) == (FAILED, True)
        code, _, stderr = await run(router, "explain", "a/b/c/d/e")
        assert (code, stderr) == (FAILED, "ollama-router: 'a/b/c/d/e': invalid model name\n")
    code, stdout, stderr = await run(None, "nodes", "--admin", "http://127.0.0.1:1")
    assert (code, stdout) == (FAILED, "")
    assert stderr.startswith("ollama-router: no router answers at http://127.0.0.1:1: connection refused.")
    assert "OLLAMA_ROUTER_ADMIN_URL" in stderr
    code, _, stderr = await run(None, "nodes", OLLAMA_ROUTER_ADMIN_URL="gopher://x")
    assert (code, "should be a URL such as http://127.0.0.1:9465" in stderr) == (FAILED, True)


async def test_a_token_comes_from_a_file_that_is_named_or_that_the_router_uses(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    admin = {"listen": LOOPBACK, "token_file": str(file)}
    async with pool_of(1) as pool, router_before(pool.nodes, admin=admin) as router:
        assert (await said(router, "nodes", "--token-file", str(file)))[1].startswith("sim-1")
        code, stdout, _ = await run(router, "nodes", "--names", OLLAMA_ROUTER_ADMIN__TOKEN_FILE=str(file))
        assert (code, stdout) == (OK, "sim-1\n")
        code, _, stderr = await run(router, "nodes")
        assert (code, "--token-file FILE" in stderr) == (FAILED, True)
        code, _, stderr = await run(router, "nodes", "--token-file", str(tmp_path / "none"))
        assert (code, "No such file" in stderr) == (FAILED, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nodes", "--admin", "ftp://x"],
        ["nodes", "--admin", "http://x/admin"],
        ["nodes", "surplus"],
        ["explain"],
        ["explain", "m", "--num-ctx", "-1"],
        ["drain"],
        ["drain", "a", "--timeout", "soon"],
        ["completion", "tcsh"],
    ],
)
def test_misuse_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == MISUSED


async def test_whoever_reads_may_stop_in_the_middle() -> None:
    async with holding(1) as (_, router):
        shell = await asyncio.create_subprocess_shell(
            f"'{sys.executable}' -m router nodes | true", stdout=PIPE, stderr=PIPE, env=environment(router)
        )
        assert await shell.communicate() == (b"", b"")


def test_urls_are_taken_as_people_write_them() -> None:
    assert checked_url("127.0.0.1:9465") == "http://127.0.0.1:9465"
    assert checked_url("https://router.example/") == "https://router.example"
    assert checked_url("http://[::1]:9465") == "http://[::1]:9465"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.44, "0.4s"), (12.4, "12s"), (60, "1m"), (200, "3m20s"), (3600, "1h"), (7500, "2h5m")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_stand_to_the_right_and_nothing_moves_the_cursor() -> None:
    shown = table(("NAME", "USED", "LONGEST"), [("a\x1b[2J", 5, "3m20s"), ("bc", 1234, "")])
    assert shown.splitlines() == ["NAME    USED   LONGEST", "a?[2J      5     3m20s", "bc      1234         -"]


def test_an_order_is_answered_with_what_still_runs() -> None:
    node = {"name": "a", "is_drained": True, "is_idle": False, "used": 0, "loading": "m:1", "state": "draining"}
    assert order(node) == "a drains: 0 calls still run there, and it loads m:1"


async def test_a_line_is_told() -> None:
    async with holding(1, ENDLESS) as (pool, router), Client(router.port) as first, Client(router.port) as second:
        first.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await first.first(b'"done":false')
        second.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await until(lambda: len(router.pipeline.live) == 2)
        lines = await said(router, "explain", ENDLESS)
        assert lines[0].startswith("endless:1b waits in line, behind 1, for one of 1 slots")
        assert re.match(r"line of endless:1b: 1 of at most 256 wait, \S+s the longest", lines[-1])
        let_run(pool.nodes[0])
        await first.answer()
