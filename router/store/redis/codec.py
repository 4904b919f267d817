"""Commands and answers of the Lua steps as JSON, and back to the values of the contract.

Floats that must be exact come as text, since Lua's JSON keeps 14 digits. Lua has no None and one kind of empty table:
`false` stands for the one, and an empty object may stand for an empty list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from router import errors
from router.errors import Allowance, Allowances, QueueFull, RateLimited, Refusal, TeamQueueFull
from router.fleet.tickets import CopyReport, Gate, Leading, Lease, LineView, Place, Ticket, Waits
from router.fleet.words import Heard, Word
from router.policy.limits import TeamLimits
from router.store.answers import Answer, Full, Gone, Limits, Outdated, Refused, Stale

FAR_S = 1e18  # never: JSON has no infinity

Json = Any
Decode = Callable[[Json], Any]


class Command(NamedTuple):
    """One step, as it is sent, and how its value is read."""

    text: str
    decode: Decode


# commands


def _command(name: str, decode: Decode, *args: Json) -> Command:
    return Command(json.dumps((name, *args), separators=(",", ":")), decode)


def hello(last_seq: int, leases: Iterable[Lease], tickets: Iterable[Ticket], *, greeting: int) -> Command:
    held, wanted = [_lease_to(one) for one in leases], [_ticket_to(one) for one in tickets]
    return _command("hello", int, last_seq, held, wanted, greeting)


def bye() -> Command:
    return _command("bye", _nothing)


def beat(acked: Iterable[str], heard: Iterable[str] = ()) -> Command:
    return _command("beat", tuple, list(acked), list(heard))


def read() -> Command:
    return _command("read", _nothing)


def ack(lease_ids: Iterable[str]) -> Command:
    return _command("ack", tuple, list(lease_ids))


def reap() -> Command:
    return _command("reap", tuple)


def take(ticket: Ticket) -> Command:
    return _command("take", _given, _ticket_to(ticket))


def widen(ticket_id: str, targets: Iterable[str]) -> Command:
    return _command("widen", _given, ticket_id, list(targets))


def place_of(ticket_id: str) -> Command:
    return _command("place_of", _given, ticket_id)


def leave(ticket_id: str, tokens: int) -> Command:
    return _command("leave", _nothing, ticket_id, tokens)


def give_back(lease_id: str, tokens: int) -> Command:
    return _command("give_back", _nothing, lease_id, tokens)


def refuse(model: str, refusal: Refusal) -> Command:
    return _command("refuse", int, model, [type(refusal).__name__, refusal.text, refusal.retry_after_s])


def lines() -> Command:
    return _command("lines", _views)


def set_limits(limits: Limits) -> Command:
    teams = limits.teams
    return _command(
        "set_limits",
        _nothing,
        {
            "line": limits.max_waiting,
            "lines": dict(limits.by_key),
            "team": _limits_to(teams.default),
            "teams": {name: _limits_to(one) for name, one in teams.by_name.items()},
        },
    )


def set_copy(report: CopyReport) -> Command:
    facts = {
        "node": report.node,
        "incarnation": report.incarnation,
        "weights": report.weights,
        "keys": list(dict.fromkeys(report.keys)),
        "state": report.state,
        "slots": report.slots,
        "num_ctx": report.num_ctx,
        "named_ctx": report.named_ctx,
        "seen_at": report.seen_at_s,
        "is_probe": report.is_probe,
    }
    return _command("set_copy", _outdated, facts)


def drop_node(node: str, incarnation: int) -> Command:
    return _command("drop_node", _nothing, node, incarnation)


def incarnate(node: str, uid: str) -> Command:
    return _command("incarnate", int, node, uid)


def lead(*, wants: bool = True) -> Command:
    return _command("lead", lambda value: Leading(*value), wants)


def look() -> Command:
    """How many replicas there are, leases by (node, weights), and who leads; empty where nobody does."""
    return _command("look", _looked)


def board(since: int, words: Iterable[Word]) -> Command:
    """What is told, and what others told since then; with how far that was read, and who lives."""
    return _command("board", _heard, since, [list(word) for word in words])


def begin(node: str, weights: str, *, loading: bool, epoch: int) -> Command:
    return _command("begin", bool, node, weights, loading, epoch)


def gate(node: str, weights: str | None, gate: Gate, until_s: float) -> Command:
    return _command("gate", _nothing, node, weights or False, gate, min(until_s, FAR_S))


def _ticket_to(ticket: Ticket) -> Json:
    return {
        "id": ticket.id,
        "targets": ticket.targets,
        "attempt": ticket.attempt,
        "preferred": ticket.preferred,
        "excluded": sorted(ticket.excluded),
        "num_ctx": ticket.num_ctx,
        "names_no_ctx": ticket.names_no_ctx,
        "keep_alive_s": False if ticket.keep_alive_s is None else min(ticket.keep_alive_s, FAR_S),
        "team": ticket.team,
        "priority": False if ticket.priority is None else int(ticket.priority),
        "estimate": ticket.estimate_tokens,
    }


def _lease_to(lease: Lease) -> Json:
    return {
        "id": lease.id,
        "ticket": lease.ticket,
        "attempt": lease.attempt,
        "model": lease.model,
        "node": lease.node,
        "weights": lease.weights,
        "num_ctx": lease.num_ctx,
        "team": lease.team,
        "estimate": lease.estimate_tokens,
    }


def _limits_to(limits: TeamLimits) -> Json:
    return {
        "weight": limits.weight,
        "priority": int(limits.priority),
        "concurrent": limits.max_concurrent or False,
        "waiting": False if limits.max_waiting is None else limits.max_waiting,
        "requests": limits.requests_per_minute or False,
        "minute": limits.tokens_per_minute or False,
        "day": limits.tokens_per_day or False,
    }


# answers


def answer(command: Command, text: str | bytes) -> Answer[Any]:
    seq, now_s, run, status, value, told = json.loads(text)
    if status != "ok":
        return Answer(run, seq, float(now_s), Stale(status))
    heard = [news(one) for one in told]
    return Answer(
        run,
        seq,
        float(now_s),
        command.decode(value),
        tuple(one for one in heard if isinstance(one, Lease)),
        tuple(one for one in heard if isinstance(one, Refused)),
    )


def news(value: Json) -> Lease | Refused:
    """What an answer or a replica's stream tells."""
    return _lease(value) if value[0] == "lease" else _refused(value)


def _nothing(value: Json) -> None:
    return None


def _outdated(value: Json) -> Outdated | None:
    return Outdated(*value) if value else None


def _looked(value: Json) -> tuple[int, dict[tuple[str, str], int], str]:
    replicas, flat, leader = value
    pairs = zip(flat[::2], flat[1::2], strict=True) if flat else ()
    places = ((place.partition("\0"), int(leases)) for place, leases in pairs)
    return replicas, {(node, weights): leases for (node, _, weights), leases in places}, leader


def _heard(value: Json) -> tuple[int, Heard]:
    upto, has_more, is_lost, words, replicas = value
    told = tuple(Word(topic, float(at_s), text) for topic, at_s, text in words)
    return int(upto), Heard(told, tuple(replicas), is_anew=is_lost, has_more=has_more)


def _given(value: Json) -> Lease | Place | Full | Gone | Refused | None:
    return _GIVEN[value[0]](value) if value else None


def _lease(value: Json) -> Lease:
    *facts, left = value[1:]
    return Lease(*(*facts, _left_of_limits(left)))


def _place(value: Json) -> Place:
    _, model, position, depth, estimate_s, reason, left = value
    estimate = float(estimate_s) if estimate_s else None
    return Place(model, position, depth, estimate, Waits(reason), _left_of_limits(left))


def _full(value: Json) -> Full:
    return Full(float(value[1]))


def _left(value: Json) -> Gone:
    return Gone.LEFT


def _refused(value: Json) -> Refused:
    return Refused(value[1], _refusal(value[2]))


_GIVEN: dict[str, Callable[[Json], Lease | Place | Full | Gone | Refused]] = {
    "lease": _lease,
    "place": _place,
    "full": _full,
    "left": _left,
    "refused": _refused,
}


def _refusal(value: Json) -> Refusal:
    kind, *facts = value
    if kind == "rate":
        what, requests, tokens, wait_s = facts
        return RateLimited(what, _allowance(requests), _allowance(tokens), retry_after_s=float(wait_s))
    if kind == "team_full":
        return TeamQueueFull(facts[0], retry_after_s=float(facts[1]))
    if kind == "full":
        return QueueFull(retry_after_s=float(facts[0]))
    return _told(*facts[0])


def _told(name: str, text: str, retry_after_s: float | None) -> Refusal:
    """A refusal that another replica made of a line. Of a version that knows more kinds: the text still stands."""
    kind = getattr(errors, name, errors.Unavailable)
    return kind(text, retry_after_s=retry_after_s) if issubclass(kind, Refusal) else errors.Unavailable(text)


def _left_of_limits(value: Json) -> Allowances | None:
    return Allowances(_allowance(value[0]), _allowance(value[1])) if value else None


def _allowance(value: Json) -> Allowance | None:
    return Allowance(value[0], value[1], float(value[2])) if value else None


def _views(values: Sequence[Json]) -> tuple[LineView, ...]:
    return tuple(_view(value) for value in values)


def _view(value: Json) -> LineView:
    key, depth, oldest_s, num_ctx, keep_alive_s, max_waiting, per_s, excluded, names_no_ctx, teams, others = value
    return LineView(
        model=key,
        depth=depth,
        oldest_wait_s=float(oldest_s),
        num_ctx=num_ctx,
        keep_alive_s=float(keep_alive_s) if keep_alive_s else None,
        max_waiting=max_waiting,
        drain_per_s=float(per_s),
        excluded=frozenset(excluded),
        names_no_ctx=names_no_ctx,
        teams=_counts(teams),
        overflowed=others,
    )


def _counts(teams: Json) -> Mapping[str, int]:
    return MappingProxyType(dict(teams))
