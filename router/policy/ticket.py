"""What a call asks the store for, and what the guards have against it."""

from __future__ import annotations

from router.errors import NumCtxRefused, Unavailable
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import Ticket
from router.policy.alias import RoutePlan, Target
from router.policy.filters import training_context
from router.policy.guard import (
    Guards,
    NumCtxGuard,
    context_to_load,
    guard_loaded,
    guard_options,
    keep_alive_to_load,
)
from router.policy.route import Reach
from router.policy.schedule import Decision
from router.wire.endpoints import Endpoint
from router.wire.intent import Intent

BYTES_PER_TOKEN = 4  # of a body, in English and with its JSON; other languages and code have fewer
# What a prompt is guessed to have at most. Images make bodies of megabytes and prompts of a thousand tokens.
ESTIMATE_TOKENS_MAX = 8192


def ticket_for(
    ticket_id: str,
    endpoint: Endpoint,
    intent: Intent,
    plan: RoutePlan,
    *,
    team: str,
    body_bytes: int,
    snapshot: Snapshot,
    guards: Guards,
) -> Ticket:
    """For the plan's first target. Refuses with GuardRefused."""
    refusal = guard_options(guards, intent.reload_names, intent.keep_alive_s)
    if refusal is not None:
        raise refusal
    target = plan.first
    return Ticket(
        ticket_id,
        (target.model,),
        num_ctx=context_of(target, endpoint, intent, snapshot, guards),
        names_no_ctx=not (endpoint.takes_options or guards.keeps_context),
        keep_alive_s=keep_alive_to_load(intent.keep_alive_s, guards),
        team=team,
        estimate_tokens=min(body_bytes // BYTES_PER_TOKEN, ESTIMATE_TOKENS_MAX),
    )


def context_of(target: Target, endpoint: Endpoint, intent: Intent, snapshot: Snapshot, guards: Guards) -> int:
    """What a copy of this target must have, in tokens; 0 where any will do."""
    override = target.overrides.num_ctx if endpoint.takes_options else None
    return context_to_load(intent.num_ctx, override, guards, training_context(snapshot.holding(target.model)))


def check_context(
    ticket: Ticket,
    intent: Intent,
    plan: RoutePlan,
    decision: Decision,
    *,
    snapshot: Snapshot,
    guards: Guards,
    reach: Reach,
) -> None:
    """Refuses with NumCtxRefused what no ready copy has, unless the alias says so and loads are ours: then one is made.

    Asked again when a copy becomes ready: whoever waited for one may not fit it.
    """
    is_sent = intent.num_ctx is not None and plan.first.overrides.num_ctx is None
    is_rejecting = guards.num_ctx is NumCtxGuard.REJECT and is_sent
    if not is_rejecting and (decision.preferred or not ticket.num_ctx):
        return
    rows = snapshot.holding(plan.first.model)
    most = training_context(rows)
    override = plan.first.overrides.num_ctx
    if override is None or reach.never_loads:
        loaded = [row.num_ctx for row in (*rows.ready.rows, *rows.last_resort.rows)]
        judged = guard_loaded(intent.num_ctx if override is None else override, loaded, most, guards)
        if judged is not None:
            raise NumCtxRefused(judged.text)
    if most and ticket.num_ctx > most:
        # Made before a load told how much the model can have: it would wait for what never comes.
        raise Unavailable(f"'{plan.first.model}' has turned out to take no more than {most} tokens: ask again")
