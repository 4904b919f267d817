"""Style is a test: what a reviewer would otherwise have to say again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]

MODULE_LINES_MAX = 350
FUNCTION_LINES_MAX = 60
FUNCTION_LINES_MEDIAN_MAX = 12

# Put together here, so that this file does not hold them.
MACHINE_PATHS = ("/wo" + "rk/", "/ro" + "ot/", "../" + "shared")
REGISTRY_HOSTS = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org", "proxy.go" + "lang.org")
UNNUMBERED_TODO = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b(?!\(#\d+\))")

# Tasks that must outlive whatever one round of their work runs into, and calls, which must end in an outcome and an
# answer whatever they run into. Everybody else catches narrowly.
SUPERVISORS = {
    "router/control/config.py",
    "router/control/placer.py",
    "router/control/prober.py",
    "router/control/replicas.py",
    "router/control/sharing.py",
    "router/control/succession.py",
    "router/pipeline.py",
    "router/server/pages.py",
}
# Bytes of real servers, and hashes.
NOT_OURS = ("tests/recordings/", "LICENSE", "requirements.lock", "requirements-dev.lock")
NOT_SOURCE = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
NOT_SOURCE |= {".import_linter_cache", "build", "dist", "node_modules"}


@cache
def texts() -> dict[str, str]:
    """Every file of ours that is text, by its path from the root."""
    found = {}
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if NOT_SOURCE.intersection(path.relative_to(ROOT).parts) or not path.is_file() or path.is_symlink():
            continue
        if not name.startswith(NOT_OURS) and path.suffix not in (".pyc", ".gz", ".png"):
            found[name] = path.read_text(encoding="utf-8", errors="replace")
    return found


@cache
def trees(folder: str) -> dict[str, ast.Module]:
    chosen = {name: text for name, text in texts().items() if name.startswith(folder) and name.endswith(".py")}
    return {name: ast.parse(text, name) for name, text in chosen.items()}


def functions(folder: str) -> Iterator[tuple[str, int]]:
    """`file:name` and length, decorators not counted."""
    for name, tree in trees(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_module_is_longer_than_a_sitting() -> None:
    lengths = {name: text.count("\n") for name, text in texts().items() if name.startswith(("router/", "bench/"))}
    assert {name: length for name, length in lengths.items() if length > MODULE_LINES_MAX} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    assert [found for found in functions("router/") if found[1] > FUNCTION_LINES_MAX] == []


def test_functions_are_mostly_short() -> None:
    assert median(length for _, length in functions("router/")) <= FUNCTION_LINES_MEDIAN_MAX


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in trees("router/").items() if not ast.get_docstring(tree)] == []
    tests = {name: tree for name, tree in trees("tests/").items() if not name.endswith("__init__.py")}
    assert [name for name, tree in tests.items() if not ast.get_docstring(tree)] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    assert [(name, path) for name, text in texts().items() for path in MACHINE_PATHS if path in text] == []


def test_no_file_names_a_package_registry() -> None:
    named = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")} | texts()
    assert [(name, host) for name, text in named.items() for host in REGISTRY_HOSTS if host in text] == []


def test_the_locked_javascript_packages_come_from_no_particular_host() -> None:
    locks = {name: text for name, text in texts().items() if name.endswith("package-lock.json")}
    assert locks, "they stand elsewhere now"
    assert [name for name, text in locks.items() if "http" in text] == []


def test_whatever_is_left_to_do_has_an_issue() -> None:
    assert [(name, found[0]) for name, text in texts().items() for found in UNNUMBERED_TODO.finditer(text)] == []


def test_only_the_command_line_prints() -> None:
    printing = {name for name in trees("router/") if _calls(name, "router/", "print")}
    assert printing <= {"router/cli.py", "router/cli_admin.py", "router/cli_simulate.py"}


def test_no_test_waits_for_a_clock() -> None:
    assert [name for name in trees("tests/") if _calls(name, "tests/", "time.sleep")] == []


def test_only_supervisors_catch_everything() -> None:
    catching = set()
    for name, tree in trees("router/").items():
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        if any(node.type is None or ast.unparse(node.type) in ("Exception", "BaseException") for node in handlers):
            catching.add(name)
    assert catching <= SUPERVISORS


def test_facts_and_decisions_never_wait() -> None:
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    pure = trees("router/wire/") | trees("router/fleet/") | trees("router/policy/") | trees("router/errors.py")
    assert [name for name, tree in pure.items() if any(isinstance(node, waiting) for node in ast.walk(tree))] == []


def _calls(name: str, folder: str, called: str) -> bool:
    nodes = ast.walk(trees(folder)[name])
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) == called for node in nodes)
