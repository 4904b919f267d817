"""The command that tries a pool and a policy in virtual time: simulate."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from router.exits import MISUSED, complain

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

BAR_WIDTH = 40
# Written out, so that no other command pays for importing the simulation; a test compares it.
POLICIES = ("ours", "random", "round_robin", "least_connections", "residency_first", "prefix_hash", "floor")


def add_command(commands: Commands) -> None:
    text = "try a pool and its load in virtual time, beside other ways of choosing nodes"
    command = commands.add_parser("simulate", help=text, description=f"{text[:1].upper()}{text[1:]}.")
    command.add_argument("scenario", type=Path, metavar="SCENARIO.yaml", help="see docs/scheduling.md")
    command.add_argument(
        "--policy", action="append", choices=POLICIES, metavar="NAME", help=f"repeat it; all: {', '.join(POLICIES)}"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="every figure, also over time")
    command.add_argument(
        "--plot", type=_picture, metavar="FILE.svg", help="waiting, lines and memory over time; or FILE.png"
    )
    command.add_argument("--check", action="store_true", help="look after every event whether all invariants hold")
    command.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    from router.simulation.world import run  # noqa: PLC0415 - the other commands need none of it
    from router.simulation.world.fields import ScenarioError  # noqa: PLC0415

    # Nodes die and circuits open here by design: the table tells it.
    logging.getLogger("router").setLevel(logging.CRITICAL)
    policies: Sequence[str] = options.policy or POLICIES
    bar = _Bar(policies) if sys.stderr.isatty() else None
    try:
        report = run.simulate(
            options.scenario, policies, checks=options.check, progress=bar.show if bar is not None else None
        )
    except ScenarioError as error:
        complain(f"{options.scenario}: {error}")
        return MISUSED
    finally:
        if bar is not None:
            bar.clear()
    print(run.summary(report))
    if options.json is not None:
        run.write_json(report, options.json)
    if options.plot is not None:
        run.write_plot(report, options.plot)
    return 0


class _Bar:
    """One line on a terminal, drawn over and over."""

    def __init__(self, policies: Sequence[str]) -> None:
        self._policies = list(dict.fromkeys(policies))

    def show(self, policy: str, done: float) -> None:
        share = (self._policies.index(policy) + done) / len(self._policies)
        filled = round(share * BAR_WIDTH)
        text = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {100 * share:3.0f} % {policy}"
        print(f"\r{text:<{BAR_WIDTH + 30}}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print(f"\r{'':<{BAR_WIDTH + 30}}\r", end="", file=sys.stderr, flush=True)


def _picture(text: str) -> Path:
    """Before minutes of simulation: whether it can be written at all."""
    path = Path(text)
    if path.suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError("should end in .svg, which needs nothing, or in .png")
    if path.suffix == ".png" and find_spec("PIL") is None:
        raise argparse.ArgumentTypeError("PNG needs Pillow: pip install 'ollama-router[plot]'; .svg needs nothing")
    return path
