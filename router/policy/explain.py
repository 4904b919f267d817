"""Why a call would go where it would: the request path's and the placer's own decisions, asked and put into words.

Nothing is decided here that is not decided there: `schedule` orders, `bar_of` excludes, `place` loads, `hopeless`
gives up. A moment later all of it may be otherwise, and the store has the last word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from router.errors import Rejection
from router.fleet.tickets import LineView
from router.policy import verdicts
from router.policy.candidates import Candidate, Circumstances, Facts, candidate_of, facts_of, in_order, rows_of
from router.policy.filters import capped, largest_context, training_context
from router.policy.guard import Refused, guard_num_ctx
from router.policy.placement import Action, Load, Mode, Refuse, hopeless, place
from router.policy.route import Passed, Reach, passed_over
from router.policy.schedule import SAMPLE_MAX, Decision, Want, schedule
from router.policy.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """`num_ctx` is 0 where the call asks for none, or the node decides (`guard.num_ctx: pass`)."""

    model: str  # as asked
    targets: tuple[str, ...]  # model keys, as the aliases lead
    affinity: str = ""
    num_ctx: int = 0
    overflows: tuple[tuple[str, float], ...] = ()  # further lines it goes to, each after so many seconds in line


@dataclass(frozen=True, slots=True)
class Wait:
    """What a newcomer would find in one line. `estimate_s` is None until it has moved."""

    model: str
    depth: int
    max_waiting: int
    oldest_wait_s: float
    estimate_s: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    model: str
    targets: tuple[str, ...]
    verdict: Verdict
    candidates: tuple[Candidate, ...]  # preferred ones first, each node once a target
    lines: tuple[Wait, ...]
    overflows: tuple[tuple[str, float], ...]
    is_sampled: bool  # so many copies that only some were scored
    notes: tuple[str, ...] = ()  # what is worth knowing of the models themselves


def explain(question: Question, at: Circumstances, rng: random.Random) -> Explanation:
    """`rng` breaks ties, as it would for the call."""
    snapshot = at.snapshot
    context_max = training_context(snapshot.holding(question.targets[0]))
    want = Want(question.targets, question.affinity, capped(question.num_ctx, context_max))
    decision = schedule(want, snapshot, at.occupancy, rng)
    facts = facts_of(want, decision, at, rng)
    actions = place(
        [*(line for line in at.lines.values() if line.model not in want.targets), *_joined(want, at)],
        snapshot,
        loading=at.loading,
        backoff=facts.backoff,
        now_s=at.now_s,
        mode=at.mode,
        occupancy=at.occupancy,
        experience=at.experience,
        leaving=at.leaving,
        holds=at.holds,
        since_s=at.since_s,
    )
    candidates = sorted((candidate_of(key, row, facts) for key, row in rows_of(want, snapshot)), key=in_order)
    refused = _refused_at_once(question, want, decision, at)
    return Explanation(
        model=question.model,
        targets=want.targets,
        verdict=refused if refused is not None else _verdict(facts, candidates, actions),
        candidates=tuple(candidates),
        lines=tuple(_wait(at.lines[key]) for key in want.targets),
        overflows=question.overflows,
        is_sampled=any(len(snapshot.holding(key).ready.rows) > SAMPLE_MAX for key in want.targets),
        notes=tuple(_notes(want, at)),
    )


def _notes(want: Want, at: Circumstances) -> Iterator[str]:
    short = (one for one in at.standings if one.declaration.key in want.targets and one.lack is not None)
    yield from map(verdicts.lack_text, short)
    skewed = at.troubles.skewed
    yield from (verdicts.skew_text(key, skewed[key]) for key in want.targets if key in skewed)


def _joined(want: Want, at: Circumstances) -> Iterator[LineView]:
    """The lines of the targets as the placer would find them with this call in them."""
    for key in want.targets:
        line = at.lines[key]
        others = line.excluded if line.depth else want.excluded
        num_ctx = max(line.num_ctx, want.num_ctx)
        yield replace(line, depth=line.depth + 1, num_ctx=num_ctx, excluded=others & want.excluded)


def _wait(line: LineView) -> Wait:
    estimate_s = (line.depth + 1) / line.drain_per_s if line.drain_per_s else None
    return Wait(line.model, line.depth, line.max_waiting, line.oldest_wait_s, estimate_s)


# --- the verdict


def _verdict(facts: Facts, candidates: Sequence[Candidate], actions: Sequence[Action]) -> Verdict:
    want, at = facts.want, facts.at
    asked = _asked(want, at)
    free = next((candidate for candidate in candidates if candidate.has_room and candidate.model == asked), None)
    if free is not None:
        reason = facts.decision.reason_of(free.node)
        return verdicts.served(free.node, free.model, reason, free.used, free.slots)
    line = at.lines[asked]
    if line.depth >= line.max_waiting:
        return verdicts.refused(Rejection.QUEUE_FULL, f"the line of {asked} is full: {line.depth} wait")
    return _given_up(want, actions, at) or _waiting(want, candidates, actions, at)


def _asked(want: Want, at: Circumstances) -> str:
    """The first target that can be had: in its line a call stands first, however free the others are."""
    reach = Reach(never_loads=at.mode is Mode.OBSERVE, has_cloud=at.has_cloud)
    open_ones = (key for key in want.targets if passed_over(key, at.snapshot, reach) is None)
    return next(open_ones, want.targets[0])


def _refused_at_once(question: Question, want: Want, decision: Decision, at: Circumstances) -> Verdict | None:
    """What a call is told before it may stand in line, in the order of `Pipeline.serve`."""
    model, snapshot = question.model, at.snapshot
    # What only observing finds is told in the line.
    reach = Reach(has_cloud=at.has_cloud)
    passed = [passed_over(key, snapshot, reach) for key in want.targets]
    known = [why for why in passed if why is not Passed.UNKNOWN]
    if not known:
        if snapshot.all_read:
            return verdicts.refused(Rejection.MODEL_NOT_FOUND, f"none of {len(snapshot.nodes)} nodes has '{model}'")
        unread = ", ".join(sorted(snapshot.unread))
        return verdicts.refused(Rejection.NO_NODE, f"no node that was read has '{model}', and not yet read: {unread}")
    if None not in known and known[0] is Passed.CLOUD:
        return verdicts.refused(Rejection.CLOUD, f"'{model}' is a cloud model, and those are switched off")
    if None not in known:
        return verdicts.refused(Rejection.NO_NODE, f"every node that has '{model}' is down or draining")
    if want.num_ctx and not decision.preferred:
        rows = snapshot.holding(want.targets[0])
        judged = guard_num_ctx(question.num_ctx, largest_context(rows.by_node.values()), training_context(rows))
        if isinstance(judged, Refused):
            return verdicts.refused(Rejection.NUM_CTX, judged.text)
    return None


def _given_up(want: Want, actions: Sequence[Action], at: Circumstances) -> Verdict | None:
    """What the placer would say to every line of the call."""
    refusals = {action.key: action.kind for action in actions if isinstance(action, Refuse)}
    words = {line.model: hopeless(line, at.snapshot, at.failures, at.now_s) for line in _joined(want, at)}
    if not all(key in refusals or words[key] is not None for key in want.targets):
        return None
    key = want.targets[0]
    if key not in refusals:
        return verdicts.refused(None, f"every node that has {key} has just failed to load it: {words[key]}")
    if refusals[key] is Rejection.NOT_LOADED:
        return verdicts.refused(
            Rejection.NOT_LOADED, f"no node has {key} in memory, and placement.mode is observe: nothing is loaded"
        )
    return verdicts.refused(refusals[key], f"no node that has {key} can serve it")


def _waiting(want: Want, candidates: Sequence[Candidate], actions: Sequence[Action], at: Circumstances) -> Verdict:
    asked = _asked(want, at)
    wait = _wait(at.lines[asked])
    candidates = [candidate for candidate in candidates if candidate.model == asked]
    ready = [candidate for candidate in candidates if candidate.bar is None]
    if ready:
        return verdicts.waits_for_slot(wait.model, wait.depth, sum(one.slots for one in ready), wait.estimate_s)
    running = next((candidate for candidate in candidates if candidate.state == "loading"), None)
    if running is not None:
        return verdicts.waits_for_load(running.node, running.model, wait.depth, is_running=True)
    weights = {row.copy for row in at.snapshot.holding(asked).by_node.values()}
    loads = (action for action in actions if isinstance(action, Load))
    load = next((load for load in loads if (load.node, load.weights) in weights), None)
    if load is not None:
        return verdicts.waits_for_load(load.node, load.key, wait.depth, is_running=False)
    return verdicts.waits_for_node(wait.model, wait.depth)
