"""What the image is made of, without an engine: its wheel serves as UID 65532 before a read-only root."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from router.settings import load_settings
from tests.kube import dockerfile
from tests.ports import free_port
from tests.shell.clients import get
from tests.shell.scenes import QUICK, pool_of

ROOT = Path(__file__).parents[2]
UID = 65532
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEPENDENCIES = sysconfig.get_paths()["purelib"]
DROPPED = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
MAY_ACT_AS_ROOT = os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "unshare", "mount")))


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    """Unpacked as `pip install` would, in a folder that everybody may read; nothing of the repository is beside it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", f"{folder}/dist", str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
        (built,) = Path(folder, "dist").glob("*.whl")
        site = Path(folder, "site")
        subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, built], check=True)
        yield site


def interpreter() -> str:
    """One of this version that UID 65532 may run: a Python below /root it may not."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    asked = "import sys; sys.exit('%d.%d' % sys.version_info[:2] != sys.argv[1])"
    for candidate in (sys.executable, f"/usr/bin/python{ours}", f"/usr/local/bin/python{ours}"):
        if Path(candidate).exists():
            tried = subprocess.run([*DROPPED, candidate, "-c", asked, ours], capture_output=True, check=False)
            if tried.returncode == 0:
                return candidate
    pytest.skip(f"no Python {ours} that UID {UID} may run")


@asynccontextmanager
async def serving(site: Path, node: str) -> AsyncIterator[tuple[int, int, asyncio.subprocess.Process]]:
    ports = free_port(), free_port()
    command = [interpreter() if MAY_ACT_AS_ROOT else sys.executable, "-m", "router", "serve"]
    if MAY_ACT_AS_ROOT:
        read_only = 'mount -o remount,bind,ro / && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", read_only, "sh", *DROPPED, *command]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{site}:{DEPENDENCIES}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OLLAMA_ROUTER_NODES": node,
        "OLLAMA_ROUTER_LISTEN": f"127.0.0.1:{ports[0]}",
        "OLLAMA_ROUTER_METRICS_LISTEN": f"127.0.0.1:{ports[1]}",
        "OLLAMA_ROUTER_ADMIN__LISTEN": "127.0.0.1:0",
        "OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0",
    }
    child = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd="/", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(40):
            while not await _is_ready(ports[1]):
                assert child.returncode is None, await child.communicate()
        yield *ports, child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _is_ready(port: int) -> bool:
    try:
        return (await get(port, "/readyz")).status == 200
    except ConnectionError:
        await asyncio.sleep(0.01)
        return False


def assert_confined(pid: int) -> None:
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(rf"^Uid:\t{UID}\t{UID}", status, re.MULTILINE)
    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    assert [mount[3].split(",")[0] for mount in mounts if mount[1] == "/"][-1] == "ro"


async def test_the_wheel_alone_serves_without_rights_before_a_read_only_root_and_leaves_well(wheel: Path) -> None:
    async with pool_of(1) as pool, serving(wheel, pool.nodes[0].url) as (port, _, child):
        models = (await get(port, "/v1/models")).json["data"]
        assert QUICK in [model["id"] for model in models]
        if MAY_ACT_AS_ROOT:
            assert_confined(child.pid)
        child.terminate()
        output, _ = await child.communicate()
        assert child.returncode == 0
        assert b"left well" in output


def test_the_wheel_holds_the_router_and_nothing_else(wheel: Path) -> None:
    assert sorted(path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")) == ["bin", "router"]
    theirs = {path.relative_to(ROOT) for path in (ROOT / "router").rglob("*.py")}
    assert {path.relative_to(wheel) for path in (wheel / "router").rglob("*.py")} == theirs


def test_the_image_runs_without_rights_as_a_number_and_without_a_shell_between() -> None:
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == [f"{UID}:{UID}"]
    assert 'ENTRYPOINT ["ollama-router"]' in DOCKERFILE
    assert "--require-hashes -r requirements.lock" in DOCKERFILE
    assert len(re.findall(r"^FROM \$\{PYTHON_IMAGE\}", DOCKERFILE, re.MULTILINE)) == 2, "one interpreter, one path"


def test_the_image_can_send_traces_and_reach_a_store() -> None:
    """It installs what the lock holds: the extra `tracing`, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["tracing"]]
    names = {match[0] for one in wanted if (match := re.match(r"[\w-]+", one))}
    locked = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert names - locked == set()


def test_two_routers_of_the_laptop_s_pool_share_its_valkey() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    valkey = yaml.safe_load((ROOT / "helm/ollama-router/values.yaml").read_text())["redis"]["image"]
    assert services["valkey"]["image"] == f"{valkey['registry']}/{valkey['repository']}:{valkey['tag']}"
    assert "noeviction" in services["valkey"]["command"]
    assert services["router-2"]["environment"] == services["router"]["environment"]
    settings = load_settings(
        environ={"OLLAMA_ROUTER_NODES": "gpu-1", "OLLAMA_ROUTER_STORE__URL": "redis://valkey:6379"}
    )
    assert settings.warnings == ()


def test_the_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    files = dockerfile.context_files(ROOT)
    copied = [
        name
        for stage in dockerfile.read(DOCKERFILE)
        for one in stage.instructions
        if one.word == "COPY" and not one.rest.startswith("--from")
        for name in one.rest.split()[:-1]
    ]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in files if not any(name == one or name.startswith(f"{one}/") for one in copied)] == []
    assert {name for name in files if name.startswith("router/")} == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "router").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.mark.parametrize(
    ("name", "is_in"),
    [
        ("router/wire/intent.py", True),
        ("router/wire/__pycache__/intent.cpython-311.pyc", False),
        ("router/secret.pyc", False),
        ("pyproject.toml", True),
        ("tests/pyproject.toml", False),
        (".git/config", False),
        ("keys.yaml", False),
        ("helm/ollama-router/values.yaml", False),
    ],
)
def test_what_is_let_into_the_context(name: str, is_in: bool) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert dockerfile.is_let_in(name, lines) is is_in


def test_the_dockerfile_is_read_as_an_engine_reads_it() -> None:
    """The end-to-end test makes the image of it so, instruction by instruction."""
    uv, builder, runtime = dockerfile.read(DOCKERFILE, {"UV_IMAGE": "uv:7"})
    assert (uv.image, uv.name, uv.instructions) == ("uv:7", "uv", ())
    assert builder.image == runtime.image == "docker.io/library/python:3.11-slim-bookworm"
    runs = [one.rest for one in builder.instructions if one.word == "RUN"]
    assert [run.split()[:2] for run in runs] == [["uv", "venv"], ["uv", "build"]]
    assert all("\n" not in run for run in runs)
    assert [one.word for one in runtime.instructions if one.word == "RUN"] == [], "it only takes the environment along"
    assert [one.rest for one in runtime.instructions if one.word in ("ENTRYPOINT", "CMD")] == [
        '["ollama-router"]',
        '["serve"]',
    ]


def test_an_image_is_made_of_every_kind_of_instruction_that_there_is(tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "folder").mkdir(parents=True)
    for name in ("a.txt", "folder/b.txt", "folder/left.out"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*\n!a.txt\n!folder\n**/*.out\n")
    (context / "Dockerfile").write_text(
        "ARG BASE=base\nFROM tools AS tools\nFROM ${BASE} AS first\nWORKDIR /in\nCOPY a.txt ./\nCOPY folder ./folder\n"
        'FROM ${BASE}\nARG VERSION=0\nLABEL version="${VERSION}"\nCOPY --from=first /in /out\n'
        'COPY --from=tools /tool /usr/bin/tool\nENV A=1 \\\n    B=2\nUSER 7:7\nEXPOSE 1\nENTRYPOINT ["x"]\nCMD ["y"]\n'
    )
    for image in ("base", "tools"):
        (tmp_path / image).mkdir()
    (tmp_path / "tools" / "tool").write_text("tool")
    images = {image: tmp_path / image for image in ("base", "tools")}
    (tmp_path / "out").mkdir()
    config = dockerfile.build(context, tmp_path / "out" / "image", images, {"VERSION": "3"})
    made = tmp_path / "out" / "image"
    found = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert found == {"out/a.txt", "out/folder/b.txt", "usr/bin/tool"}
    assert config == {
        "Labels": {"version": "3"},
        "User": "7:7",
        "ExposedPorts": {"1/tcp": {}},
        "Entrypoint": ["x"],
        "Cmd": ["y"],
        "Env": [f"PATH={dockerfile.SHELL_PATH}", "A=1", "B=2"],
    }
    assert list((tmp_path / "out").iterdir()) == [made], "nothing of the stages is left"


def test_an_instruction_that_nobody_knows_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "Dockerfile").write_text("FROM base\nVOLUME /data\n")
    with pytest.raises(ValueError, match="VOLUME"):
        dockerfile.build(tmp_path, tmp_path / "image", {"base": tmp_path / "base"}, {})


def test_a_laptop_s_pool_is_as_careful_as_the_chart() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    router = compose["services"]["router"]
    assert router["read_only"] is True
    assert router["cap_drop"] == ["ALL"]
    names = {name: "http://ollama:11434" for name in router["environment"] if name.endswith("NODES")}
    assert load_settings(environ={**names, "OLLAMA_ROUTER_LOG__FORMAT": "text"}).warnings == ()
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == [], "on loopback only"
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    paths = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_release_publishes_what_the_chart_asks_for() -> None:
    release = (ROOT / ".github/workflows/release.yaml").read_text()
    values = yaml.safe_load((ROOT / "helm/ollama-router/values.yaml").read_text())["image"]
    assert f"IMAGE: {values['registry']}/{values['repository']}" in release
    jobs = yaml.safe_load(release)["jobs"]
    (build,) = [step["with"] for step in jobs["image"]["steps"] if "build-push" in step.get("uses", "")]
    assert (build["sbom"], build["provenance"]) == (True, "mode=max")
    assert "arm64" in build["platforms"]
    names = [str(step.get("uses", step.get("run"))) for step in jobs["chart"]["steps"]]
    signs = next(number for number, name in enumerate(names) if name.startswith("cosign sign"))
    assert any(name.startswith("docker/login-action") for name in names[:signs]), "cosign reads Docker's login alone"
    version = yaml.safe_load((ROOT / "helm/ollama-router/Chart.yaml").read_text())["version"]
    assert f"ollama-router:{version}" in (ROOT / "docker-compose.yaml").read_text()
    assert f"newTag: {version}" in (ROOT / "k8s/base/kustomization.yaml").read_text()
