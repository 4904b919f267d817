"""Makes an image of the Dockerfile where there is no engine: its own instructions run, none is repeated here.

dockerfile.py CONTEXT OUT_DIR NAME IMAGE=ROOT... -- ARG=VALUE...: `ROOT` is the file system of an image that FROM names.
Writes OUT_DIR.tar, an archive that containerd imports. RUN is `sh -c` in a chroot, as root, with the network that is
here. What a RUN has made is kept beside OUT_DIR, by everything that went into it, as engines keep layers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SHELL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
# What a RUN gets of this machine, as an engine's does: how to reach the network.
OF_THE_MACHINE = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "UV_DEFAULT_INDEX")
IN_CHROOT = """
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc"
for file in /etc/resolv.conf /etc/hosts {authorities}; do
  mkdir -p "$0$(dirname $file)"; touch "$0$file"; mount --bind "$file" "$0$file" 2>/dev/null || true
done
exec chroot "$0" /bin/sh -c 'cd "$1" && exec /bin/sh -c "$2"' sh "$1" "$2"
"""


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


@dataclass(frozen=True)
class Stage:
    image: str
    name: str
    instructions: tuple[Instruction, ...]


def read(text: str, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """`arguments` take the place of defaults of the ARGs before the first FROM."""
    outer: dict[str, str] = {}
    stages: list[Stage] = []
    for one in _instructions(text):
        if one.word == "FROM":
            image, _, name = expanded(one.rest, outer).partition(" AS ")
            stages.append(Stage(image.strip(), name.strip() or str(len(stages)), ()))
        elif stages:
            last = stages[-1]
            stages[-1] = Stage(last.image, last.name, (*last.instructions, one))
        elif one.word == "ARG":
            name, _, default = one.rest.partition("=")
            outer[name] = (arguments or {}).get(name, default)
        else:
            raise ValueError(f"{one.word} before the first FROM")
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield Instruction(word.upper(), rest.strip())


def expanded(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda match: values.get(match[1] or match[2], ""), text)


# --- the context


def context_files(root: Path, rules: str | None = None) -> list[str]:
    """What .dockerignore lets in, by its path from the root. Of its lines the last that fits decides."""
    text = (root / ".dockerignore").read_text() if rules is None else rules
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for folder, folders, files in os.walk(root):
        at = Path(folder).relative_to(root)
        names = [(at / name).as_posix() for name in files]
        found += [name for name in names if is_let_in(name, lines)]
        if at == Path("."):
            folders[:] = [name for name in folders if name not in (".git", ".venv")]  # never let in, and large
    return sorted(found)


def is_let_in(name: str, lines: Sequence[str]) -> bool:
    """A line that fits a folder fits all that is in it."""
    answer = True
    parts = name.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in lines:
        pattern = line.removeprefix("!").strip("/")
        if any(_fits(each, pattern) for each in above):
            answer = line.startswith("!")
    return answer


def _fits(name: str, pattern: str) -> bool:
    """`**` is any number of folders, `*` stays within one."""
    if pattern.startswith("**/"):
        parts = name.split("/")
        return any(_fits("/".join(parts[start:]), pattern[3:]) for start in range(len(parts)))
    names, patterns = name.split("/"), pattern.split("/")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


# --- the build


@dataclass
class Build:
    """One stage under way: its file system, and what the image will say of itself."""

    root: Path
    before: Mapping[str, Build]  # the stages before, by name
    context: Path
    arguments: Mapping[str, str]
    key: str  # of everything that went into it
    values: dict[str, str] = field(default_factory=dict)  # ARG and ENV, for expansion
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": SHELL_PATH})
    folder: str = "/"
    layers: list[Path] = field(default_factory=list)  # what its RUNs have made

    def do(self, one: Instruction) -> None:
        self.key = _digest(self.key, one.word, one.rest)
        match one.word:
            case "ARG":
                name, _, default = one.rest.partition("=")
                self.values[name] = self.arguments.get(name, default)
            case "ENV":
                self.environment |= self._pairs(one.rest)
                self.values |= self._pairs(one.rest)
            case "LABEL":
                self.config["Labels"] = {**self.config.get("Labels", {}), **self._pairs(one.rest)}
            case "EXPOSE":
                self.config["ExposedPorts"] = {f"{port}/tcp": {} for port in one.rest.split()}
            case "USER":
                self.config["User"] = one.rest
            case "ENTRYPOINT" | "CMD":
                self.config[one.word.capitalize()] = json.loads(one.rest)  # a list: with a shell it is no JSON
            case "WORKDIR":
                self.folder = one.rest
                (self.root / one.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(shlex.split(one.rest))
            case "RUN":
                self._run(one.rest)
            case _:
                raise ValueError(f"{one.word} is not known here: this is no engine")

    def _pairs(self, rest: str) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in shlex.split(expanded(rest, self.values)))

    def _copy(self, words: list[str]) -> None:
        stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        *sources, target = [word for word in words if not word.startswith("--")]
        place = self.root / (target if target.startswith("/") else f"{self.folder}/{target}").lstrip("/")
        is_folder = target.endswith("/") or len(sources) > 1
        for source in sources:
            if stage is not None:
                origin = self.before[stage].root / source.lstrip("/")
                self.key = _digest(self.key, self.before[stage].key)
                place.parent.mkdir(parents=True, exist_ok=True)
                # Of a folder what is in it, wherever it goes.
                told = (
                    [f"{origin}/.", place] if origin.is_dir() else [origin, place / origin.name if is_folder else place]
                )
                subprocess.run(["cp", "-a", *told], check=True)
            else:
                self._copy_context(source, place, is_folder=is_folder)

    def _copy_context(self, source: str, place: Path, *, is_folder: bool) -> None:
        chosen = [name for name in context_files(self.context) if name == source or name.startswith(f"{source}/")]
        if not chosen:
            raise FileNotFoundError(f"COPY {source}: it is not in the context, or .dockerignore leaves it out")
        for name in chosen:
            inner = name.removeprefix(source).lstrip("/")
            goal = place / inner if inner else (place / source if is_folder else place)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.context / name, goal)
            self.key = _digest(self.key, name, hashlib.sha256(goal.read_bytes()).hexdigest())

    def _run(self, rest: str) -> None:
        kept = self.root.parent / f"layer-{self.key[:24]}"
        if not kept.exists():
            machine = {name: os.environ[name] for name in OF_THE_MACHINE if name in os.environ}
            given = {**machine, "SSL_CERT_FILE": AUTHORITIES, **self.values, **self.environment}
            script = IN_CHROOT.format(authorities=AUTHORITIES)
            told = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script]
            subprocess.run([*told, str(self.root), self.folder, rest], env=given, check=True)
            _copied(self.root, kept)
        else:
            _copied(kept, self.root)
        self.layers.append(kept)


def build(context: Path, out: Path, images: Mapping[str, Path], arguments: Mapping[str, str]) -> dict[str, Any]:
    """Its file system is in `out` afterwards; the configuration that the image says of itself comes back."""
    made: dict[str, Build] = {}
    stages = read((context / "Dockerfile").read_text(), arguments)
    for stage in stages:
        root = out if stage is stages[-1] else out.parent / f"stage-{stage.name}"
        _copied(made[stage.image].root if stage.image in made else images[stage.image], root)
        one = made[stage.name] = Build(root, dict(made), context, arguments, _digest(stage.image))
        for instruction in stage.instructions:
            print(f"{stage.name}: {instruction.word} {' '.join(instruction.rest.split())[:100]}", flush=True)
            one.do(instruction)
    used = {layer for each in made.values() for layer in each.layers}
    for left in (set(out.parent.glob("layer-*")) - used) | set(out.parent.glob("stage-*")):
        shutil.rmtree(left)
    return {**one.config, "Env": [f"{name}={value}" for name, value in one.environment.items()]}


def _copied(source: Path, target: Path) -> None:
    subprocess.run(["rm", "-rf", target], check=True)
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def main(words: Sequence[str]) -> None:
    context, out, name, *rest = words
    split = rest.index("--")
    images = {key: Path(value) for key, value in (word.split("=", 1) for word in rest[:split])}
    arguments = dict(word.split("=", 1) for word in rest[split + 1 :])
    config = build(Path(context), Path(out), images, arguments)
    pack = [sys.executable, HERE / "cluster" / "image.py", f"{out}.tar", name, out, json.dumps(config)]
    subprocess.run(pack, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
