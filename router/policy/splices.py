"""The declared changes to a client's body: the name behind an alias, its overrides, guarded options, unasked usage.

By Go's rules: of members that fold to one key the last wins, a later `options` object is merged into an earlier one,
and null says nothing. So whatever the client wrote, a last member decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from router.fleet.tickets import Lease
from router.policy.alias import Overrides
from router.policy.guard import KEEP_ALIVE_MIN_S, Cut, Guarded, Guards, KeepAliveGuard, guard_num_ctx
from router.wire.endpoints import Endpoint
from router.wire.gojson import go_string
from router.wire.intent import Intent
from router.wire.splice import Splice


@dataclass(frozen=True, slots=True)
class Changes:
    """Splices are sorted and do not overlap; `guarded` is what the guards did by them."""

    splices: tuple[Splice, ...]
    guarded: tuple[Guarded, ...] = ()


def changes_of(
    endpoint: Endpoint,
    intent: Intent,
    lease: Lease,
    guards: Guards,
    *,
    is_alias: bool,
    overrides: Overrides,
    loaded_ctx: int,
    is_kept: bool = False,
) -> Changes:
    """`loaded_ctx` is the context that a load of ours named for this copy, 0 where we named none. `is_kept`: how long
    it stays in memory is declared."""
    splices = [intent.usage_splice] if intent.usage_splice is not None else []
    guarded: list[Guarded] = []
    if is_alias:
        # A form carries the name bare, JSON as a literal.
        name = lease.model.encode() if endpoint.is_multipart else go_string(lease.model)
        splices += [Splice(span.start, span.end, name) for span in intent.model_spans]
    options: list[bytes] = []  # what a last `options` member says
    if endpoint.takes_options:
        if overrides.temperature is not None:
            options.append(b'"temperature":' + _number(overrides.temperature))
        num_ctx, cuts = _context(intent, lease, guards, overrides.num_ctx, loaded_ctx)
        splices += cuts
        if num_ctx:
            options.append(b'"num_ctx":%d' % num_ctx)
        is_other = intent.num_ctx is not None and num_ctx not in (0, intent.num_ctx)
        if overrides.num_ctx is None and (cuts or is_other):
            guarded.append(Guarded.NUM_CTX_CUT)
        if guards.keeps_context:
            guarded += _passed(intent, overrides)
        elif intent.reload_values:
            splices += [Splice(span.start, span.end, b"null") for span in intent.reload_values]
            guarded.append(Guarded.OPTIONS_CUT)
        splices += _keep_alive(intent, guards, guarded, is_kept=is_kept)
    elif endpoint.takes_temperature and overrides.temperature is not None:
        splices += _last_member(intent, b'"temperature":' + _number(overrides.temperature))
    if options:
        splices += _last_member(intent, b'"options":{%b}' % b",".join(options))
    return Changes(tuple(sorted(splices, key=lambda splice: splice.start)), tuple(guarded))


def _passed(intent: Intent, overrides: Overrides) -> list[Guarded]:
    """What may reload the copy, as the operator allowed."""
    has_ctx = intent.num_ctx is not None and overrides.num_ctx is None
    return [
        *([Guarded.NUM_CTX_PASSED] if has_ctx else []),
        *([Guarded.OPTIONS_PASSED] if intent.reload_values else []),
    ]


def _last_member(intent: Intent, member: bytes) -> list[Splice]:
    end = intent.members_end
    return [Splice(end, end, b"," + member)] if end else []


def _number(value: float) -> bytes:
    return json.dumps(value).encode()


def _context(
    intent: Intent, lease: Lease, guards: Guards, override: int | None, loaded_ctx: int
) -> tuple[int, list[Splice]]:
    """The num_ctx to be said (0: none), and what is cut of the client's, so that the copy is not reloaded.

    A copy with its default context takes every call that names none. One that we loaded with a context of its own
    reloads for a call that names another or none: there the call is given the loaded one.
    """
    if guards.keeps_context:
        return override or 0, []
    if loaded_ctx:
        return (0 if override is None and intent.num_ctx == loaded_ctx else loaded_ctx), []
    if override is not None:
        # The lease is for a copy that has as much, so there is nothing to ask for, unless nobody knows what it has.
        return (0, _cuts(intent)) if lease.num_ctx else (override, [])
    is_cut = isinstance(guard_num_ctx(intent.num_ctx, lease.num_ctx, context_max=0), Cut)
    return 0, _cuts(intent) if is_cut else []


def _cuts(intent: Intent) -> list[Splice]:
    return [Splice(span.start, span.end, b"") for span in intent.num_ctx_spans]


def _keep_alive(intent: Intent, guards: Guards, guarded: list[Guarded], *, is_kept: bool) -> list[Splice]:
    max_s = guards.keep_alive_max_s
    if intent.keep_alive_s is None:
        return []
    if guards.keep_alive is KeepAliveGuard.PASS and not is_kept:
        guarded.append(Guarded.KEEP_ALIVE_PASSED)
        return []
    if is_kept or intent.keep_alive_s < min(KEEP_ALIVE_MIN_S, max_s):
        # Obeyed, it would unload the copy under everybody, and the next call would load it again.
        guarded.append(Guarded.KEEP_ALIVE_CUT)
        return [Splice(span.start, span.end, b"") for span in intent.keep_alive_spans]
    if intent.keep_alive_s > max_s:
        guarded.append(Guarded.KEEP_ALIVE_CLAMPED)
        return [Splice(span.start, span.end, b"%d" % max(1, max_s)) for span in intent.keep_alive_values]
    return []
