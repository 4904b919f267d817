"""A finished world -> figures. Calls that were refused, gave up or broke before a token count as the whole patience."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from router.simulation.world.call import Call, Fate
from router.simulation.world.clients import Backlog
from router.simulation.world.scenario import Scenario
from router.simulation.world.world import World

SOON_S = 5.0
TURNS_MIN = 50  # calls differ so much that fewer make the index of a fair line anything from 0.8 to 1
BIN_S = 30.0  # of the series over time


def results_of(world: World) -> dict[str, Any]:
    scenario, calls, history = world.scenario, world.clients.calls, world.history
    fates = {fate: sum(call.fate is fate for call in calls) for fate in Fate}
    first_s = [ttft_s(call, scenario.patience_s) for call in calls]
    served = [call for call in calls if call.fate is Fate.SERVED]
    return {
        "policy": world.policy,
        "calls": len(calls),
        **{fate.value: count for fate, count in fates.items()},
        "ttft_s": percentiles(first_s),
        "wait_s": percentiles([wait_s(call, scenario.patience_s) for call in calls]),
        "within_5s": _rounded(sum(seconds <= SOON_S for seconds in first_s) / max(1, len(calls))),
        "loads": history.loads,
        "loading_s": _rounded(history.loading_s),
        "evictions": history.evictions,
        "output_tps": _rounded(sum(call.request.output_tokens for call in served) / scenario.trace.duration_s),
        "prompt_tokens_saved": sum(call.cached_tokens for call in served),
        "overflowed": sum(call.key != call.request.model.key for call in served),
        "jain": jain(world.clients.backlog),
        "contended_turns": world.clients.backlog.turns,
        "shares": _shares(world.clients.backlog),
        "by_model": _by(calls, scenario, lambda call: call.request.model.name),
        "by_team": _by(calls, scenario, lambda call: call.request.team.name),
        "over_time": _over_time(calls, scenario),
        "lines": [{"at_s": _rounded(at_s), "waiting": waiting} for at_s, waiting in history.lines],
        "stays": [{key: _rounded(value) for key, value in asdict(stay).items()} for stay in history.stays],
        "faults": [asdict(fault) for fault in history.faults],
    }


def ttft_s(call: Call, patience_s: float) -> float:
    if call.first_token_s is None or call.fate in (Fate.REFUSED, Fate.GAVE_UP):
        return patience_s
    return call.first_token_s - call.request.at_s


def wait_s(call: Call, patience_s: float) -> float:
    if call.began_s is None or call.fate in (Fate.REFUSED, Fate.GAVE_UP):
        return patience_s
    return call.began_s - call.request.at_s


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    return {f"p{share}": _rounded(ordered[max(0, -(-len(ordered) * share // 100) - 1)]) for share in (50, 95, 99)}


def jain(backlog: Backlog) -> float | None:
    """Over what each team got of what it had coming, weighted by that; None where too few turns would tell."""
    if backlog.turns < TURNS_MIN:
        return None
    got, due = sum(backlog.got.values()), sum(backlog.due.values())
    squares = sum(tokens * tokens / backlog.due[team] for team, tokens in backlog.got.items())
    return round(got * got / (due * squares), 6)


def _shares(backlog: Backlog) -> dict[str, float]:
    """1.0 is just what was coming to the team."""
    return {team: _rounded(backlog.got.get(team, 0.0) / due) for team, due in sorted(backlog.due.items()) if due > 0.0}


def _by(calls: Iterable[Call], scenario: Scenario, name_of: Any) -> dict[str, Any]:
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(name_of(call), []).append(call)
    return {
        name: {
            "calls": len(group),
            "served": sum(call.fate is Fate.SERVED for call in group),
            "ttft_s": percentiles([ttft_s(call, scenario.patience_s) for call in group]),
        }
        for name, group in sorted(groups.items())
    }


def _over_time(calls: Iterable[Call], scenario: Scenario) -> list[dict[str, Any]]:
    bins: dict[int, list[float]] = {}
    for call in calls:
        bins.setdefault(int(call.request.at_s // BIN_S), []).append(ttft_s(call, scenario.patience_s))
    return [
        {"at_s": number * BIN_S, "calls": len(values), **percentiles(values)} for number, values in sorted(bins.items())
    ]


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
