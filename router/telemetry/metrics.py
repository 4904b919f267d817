"""Metrics of this replica. Calls only add to plain numbers; everything else is read at the scrape.

prometheus_client's children take a lock and a loop over the buckets for each value and render on the loop in one go;
its process, platform and collector metrics are used as they are.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from router import __version__
from router.errors import Outcome, Rejection
from router.fleet.breaker import Circuit
from router.fleet.node import Node
from router.fleet.snapshot import Snapshot
from router.policy.access import NO_TEAM
from router.policy.alias import DEFAULT_TEAM
from router.seams import Record
from router.telemetry.families import FAMILIES, HISTOGRAM
from router.telemetry.gauges import GAUGES, Moment, Sources
from router.telemetry.names import UNKNOWN, ModelNames, Pair, Pairs, TeamNames
from router.telemetry.page import ProcessPart, slices
from router.telemetry.series import Counter, Histogram, Labels, header, sample_text

# Refusals that an operator alerts on stand at 0 from the start, so that their first increase is seen.
_ALERTED = (Rejection.QUEUE_FULL, Rejection.QUEUE_TIMEOUT, Rejection.NO_NODE, Rejection.MODEL_NOT_FOUND)

NO_MODEL = ""  # what Prometheus takes for no label at all
_PAGE_OUTCOMES = {2: Outcome.OK, 3: Outcome.OK, 4: Outcome.CLIENT_ERROR, 5: Outcome.UPSTREAM_ERROR}


class Metrics:
    """An `Observer`, and the page that Prometheus reads. `named` are model keys that the configuration mentions.

    Without `teams_max` no series tells teams apart. What has a label when it is made has it for good.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        models_max: int,
        named: Iterable[str] = (),
        teams_max: int | None = None,
        policy: str = "default",
        revision: str = UNKNOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._names = ModelNames(lambda key: sources.snapshot().is_known(key), models_max, named)
        self._teams = TeamNames(teams_max) if teams_max is not None else None
        self._policy = policy
        self._revision = revision
        self._pairs = Pairs(clock)
        self._in_flight: dict[tuple[str, str], int] = {}
        self._series: dict[str, Counter | Histogram] = {}
        self._requests = self._counter("requests_total")
        self._duration = self._histogram("request_duration_seconds")
        self._first_token = self._histogram("time_to_first_token_seconds")
        self._per_token = self._histogram("time_per_output_token_seconds")
        self._queue_wait = self._histogram("queue_wait_seconds")
        self._overhead = self._histogram("overhead_seconds")
        self._load_time = self._histogram("model_load_seconds")
        self._tokens = self._counter("tokens_total")
        self._gpu_time = self._counter("team_gpu_seconds_total")
        self._estimated = self._counter("tokens_estimated_total")
        self._call_tokens = self._histogram("request_tokens")
        self._body_bytes = self._histogram("request_body_bytes")
        self._rejections = self._counter("rejections_total")
        self._disconnects = self._counter("client_disconnects_total")
        self._decisions = self._counter("routing_decisions_total")
        self._affinity, self._affinity_tokens = self._counter("affinity_total"), self._counter("affinity_tokens_total")
        self._passed, self._overflows = self._counter("alias_fallbacks_total"), self._counter("alias_overflows_total")
        self._guarded = self._counter("guard_total")
        self._attempts = self._counter("upstream_requests_total")
        self._attempt_time = self._histogram("upstream_request_duration_seconds")
        self._retries, self._failovers = self._counter("retries_total"), self._counter("failovers_total")
        self._node_tokens = self._counter("node_tokens_total")
        self._decode_tokens = self._counter("node_decode_tokens_total")
        self._decode_time = self._counter("node_decode_seconds_total")
        self._last_load = self._counter("node_model_load_seconds")
        self._probe_time = self._histogram("node_probe_duration_seconds")
        self._probe_failures = self._counter("node_probe_failures_total")
        self._circuit_changes = self._counter("circuit_state_changes_total")
        self._loads = self._counter("model_loads_total")
        self._evictions = self._counter("model_evictions_total")
        self._oversubscribed = self._counter("slots_oversubscribed_total")
        self._lag, self._redis_errors = self._histogram("event_loop_lag_seconds"), self._counter("redis_errors_total")
        self._redis_time = self._histogram("redis_operation_duration_seconds")
        self._dropped = self._counter("log_lines_dropped_total")
        self._is_reloaded = self._counter("config_last_reload_successful")
        self._reloaded_at_s = self._counter("config_last_reload_success_timestamp_seconds")
        self._reloads = self._counter("config_reloads_total")
        self._discovery_errors = self._counter("discovery_errors_total")
        self._process = ProcessPart()
        self._start_at_zero()
        self._note_config(is_ok=True)

    def __repr__(self) -> str:
        return f"<Metrics {sum(len(series.values) for series in self._series.values())} series | {self._names!r}>"

    # what calls tell

    def forwarding(self, route: str, model: str, delta: int) -> None:
        # By key, not by label: a model that the cap meets between + and - would count for ever.
        place = (route, model)
        count = self._in_flight.get(place, 0) + delta
        if count:
            self._in_flight[place] = count
        else:
            self._in_flight.pop(place, None)

    def attempt_ended(self, node: str, model: str, outcome: str, duration_s: float) -> None:
        self._attempts.add((node, self._names.label(model), outcome))
        self._attempt_time.observe((node,), duration_s)

    def observe(self, record: Record) -> None:
        route = record.route
        model = self._names.label(record.model)
        outcome = record.outcome.value
        team = self._team(record.team)
        self._requests.add((route, model, outcome, str(record.status), *team))
        self._duration.observe((route, model, outcome), record.duration_s)
        if record.trace is not None and record.trace.is_sampled:
            self._exemplify(record, (route, model, outcome), record.trace.trace_id)
        if record.body_bytes:
            self._body_bytes.observe((route,), record.body_bytes)
        if record.rejection is not None:
            self._rejections.add((model, record.rejection.value, *team))
        if record.phase_left:
            self._disconnects.add((model, record.phase_left))
        if record.attempts or record.queue_result != "dispatched":
            self._queue_wait.observe((model, record.queue_result), record.queued_s)
        if record.attempts:
            self._overhead.observe((route,), record.overhead_s)
            if record.reason:
                self._decisions.add((self._policy, record.reason))
            self._note_pace(record, route, model)
            self._note_tokens(record, model, team)
            if self._teams is not None:
                self._gpu_time.add(team, record.node_s / self._slots_of(record))
        if record.retries:
            self._note_retries(record, model)
        for reason in record.passed:
            self._passed.add((record.alias, reason))
        if record.is_overflow:
            self._overflows.add((record.alias, model))
        for done in record.guarded:
            option, _, action = done.partition(" ")
            self._guarded.add((model, option, action))

    def _exemplify(self, record: Record, labels: Labels, trace_id: str) -> None:
        wall_s = record.arrived_wall_s + record.duration_s
        self._duration.exemplify(labels, record.duration_s, trace_id, wall_s)
        if record.attempts and record.is_stream and record.ttft_s is not None:
            start = "cold" if record.is_cold else "warm"
            self._first_token.exemplify((*labels[:2], start), record.ttft_s, trace_id, wall_s)

    def _note_pace(self, record: Record, route: str, model: str) -> None:
        first_s, ttft_s = record.first_token_s, record.ttft_s
        if first_s is None or ttft_s is None or not record.is_stream:
            return  # a plain answer comes as a whole: its first byte tells nothing of its first token
        self._first_token.observe((route, model, "cold" if record.is_cold else "warm"), ttft_s)
        tokens = record.output_tokens
        if tokens is not None and tokens > 1:
            decode_s = record.duration_s - first_s
            self._per_token.observe((route, model), decode_s / (tokens - 1))
            self._decode_tokens.add((record.node, model), tokens - 1)
            self._decode_time.add((record.node, model), decode_s)

    def _note_tokens(self, record: Record, model: str, team: Labels) -> None:
        for kind, tokens in (("input", record.input_tokens), ("output", record.output_tokens)):
            if tokens is not None:
                self._tokens.add((model, kind, *team), tokens)
                self._node_tokens.add((record.node, model, kind), tokens)
                self._call_tokens.observe((model, kind), tokens)
        if record.output_tokens is None and record.content_events:
            self._estimated.add((model, "output"), record.content_events)
        if record.affinity:
            self._affinity.add((model, record.affinity))
            self._affinity_tokens.add((model, record.affinity), record.input_tokens or 0)

    def _slots_of(self, record: Record) -> int:
        row = self._sources.snapshot().holding(record.model).by_node.get(record.node)
        return row.slots or 1 if row is not None else 1

    def _note_retries(self, record: Record, model: str) -> None:
        followers = [*(node for node, _ in record.retries[1:]), record.node]
        for (node, reason), following in zip(record.retries, followers, strict=True):
            self._retries.add((model, reason))
            if following not in ("", node):
                self._failovers.add((model, reason))

    def page_answered(self, route: str, status: int, duration_s: float, is_refused: bool = False) -> None:
        """A list, or another page, which has no model: objectives and shares of calls leave these out."""
        outcome = Outcome.REJECTED if is_refused else _PAGE_OUTCOMES[status // 100]
        self._requests.add((route, NO_MODEL, outcome.value, str(status), *self._team(NO_TEAM)))
        self._duration.observe((route, NO_MODEL, outcome.value), duration_s)

    # what loops tell

    def refused(self, reason: Rejection, team: str) -> None:
        """What no record tells of: a connection too many, a page's origin, a verb that nobody has here."""
        self._rejections.add((UNKNOWN, reason.value, *self._team(team)))

    def _team(self, name: str) -> Labels:
        return () if self._teams is None else (self._teams.label(name),)

    def probe_ended(self, node: str, duration_s: float, failure: str) -> None:
        """`failure` is a word of a closed set, empty when all is well."""
        self._probe_time.observe((node,), duration_s)
        if failure:
            self._probe_failures.add((node, failure))

    def load_ended(self, node: str, model: str, reason: str, result: str, duration_s: float) -> None:
        label = self._names.label(model)
        self._loads.add((node, label, reason, result))
        if result == "ok":
            self._load_time.observe((label,), duration_s)
            self._last_load.values[node, label] = duration_s

    def copy_evicted(self, node: str, model: str, cause: str) -> None:
        self._evictions.add((node, self._names.label(model), cause))

    def slots_oversubscribed(self, node: str, leases: int) -> None:
        """So many more than before."""
        self._oversubscribed.add((node,), leases)

    def circuit_changed(self, node: str, circuit: Circuit) -> None:
        self._circuit_changes.add((node, circuit.value))

    def discovery_failed(self, source: str, reason: str) -> None:
        """`reason` is a word of a closed set."""
        self._discovery_errors.add((source, reason))

    def redis_asked(self, operation: str, duration_s: float | None, failure: str) -> None:
        """`failure` is a word of a closed set, empty when it was answered. `duration_s`: None where it says nothing."""
        if duration_s is not None:
            self._redis_time.observe((operation,), duration_s)
        if failure:
            self._redis_errors.add((operation, failure))

    def config_reloaded(self, *, is_ok: bool) -> None:
        self._reloads.add(("ok" if is_ok else "failed",))
        self._note_config(is_ok=is_ok)

    def _note_config(self, *, is_ok: bool) -> None:
        self._is_reloaded.values[()] = is_ok
        if is_ok:
            self._reloaded_at_s.values[()] = time.time()

    @property
    def models_max(self) -> int:
        return self._names.models_max

    @property
    def teams_max(self) -> int | None:
        return self._teams.teams_max if self._teams is not None else None

    def mention(self, named: Iterable[str], models_max: int, teams_max: int) -> None:
        """The configuration was read again."""
        self._names.mention(named, models_max)
        if self._teams is not None:
            self._teams.teams_max = teams_max
        self._start_at_zero()

    def loop_lagged(self, lag_s: float) -> None:
        self._lag.observe((), lag_s)

    # the page

    async def render(self, *, is_open: bool = False) -> AsyncIterator[bytes]:
        """Prometheus' text in slices; `is_open`: OpenMetrics, which has exemplars."""
        moment = self._moment()
        over = self._pairs_over(moment.snapshot)
        for series in self._series.values():
            series.forget(moment.snapshot.nodes, over)
        async for part in slices(self._pieces(moment, is_open=is_open), self._process.text(is_open=is_open)):
            yield part

    def _pairs_over(self, snapshot: Snapshot) -> set[Pair]:
        loaded = {(node.name, self._names.label(key)) for node, key in _copies(snapshot)}
        told = {
            (labels[0], labels[1])
            for series in self._series.values()
            if series.family.labels[:2] == ("node", "model")
            for labels in series.values
        }
        return self._pairs.over(told, loaded)

    def _pieces(self, moment: Moment, *, is_open: bool) -> Iterator[str]:
        for name, family in FAMILIES.items():
            yield header(family, is_open=is_open)
            if name in GAUGES:
                yield from sample_text(family, GAUGES[name](moment))
            else:
                yield from self._series[name].text(has_exemplars=is_open)

    def _moment(self) -> Moment:
        sources = self._sources
        self._dropped.values[()] = sources.log_lines_dropped()
        return Moment(
            snapshot=sources.snapshot(),
            occupancy=dict(sources.occupancy()),
            waiting=sources.waiting(),
            circuits=sources.circuits(),
            discovered=sources.discovered(),
            discovery_troubles=sources.discovery_troubles(),
            discovery_synced=sources.discovery_synced(),
            standings=sources.standings(),
            troubles=sources.troubles(),
            is_leading=sources.is_leading(),
            is_degraded=sources.is_degraded(),
            redis_up=sources.redis_up(),
            in_flight=dict(self._in_flight),
            queue_limit=sources.queue_limit,
            names=self._names,
            version=__version__,
            revision=self._revision,
        )

    def _counter(self, name: str) -> Counter:
        family = FAMILIES[name]
        is_by_team = family.may_tell_team and self._teams is not None
        counter = self._series[name] = Counter(family.by_team if is_by_team else family)
        return counter

    def _histogram(self, name: str) -> Histogram:
        assert FAMILIES[name].kind == HISTOGRAM, name
        histogram = self._series[name] = Histogram(FAMILIES[name])
        return histogram

    def _start_at_zero(self) -> None:
        default = self._team(DEFAULT_TEAM)  # of other teams most never use most models
        at_zero: list[tuple[Counter, Labels]] = [(self._dropped, ())]
        at_zero += [(self._reloads, (result,)) for result in ("ok", "failed")]
        for model in self._names.named:
            at_zero += [(self._tokens, (model, kind, *default)) for kind in ("input", "output")]
            at_zero += [(self._rejections, (model, reason.value, *default)) for reason in _ALERTED]
        for counter, labels in at_zero:
            counter.add(labels, 0)


def _copies(snapshot: Snapshot) -> Iterator[tuple[Node, str]]:
    """In memory, under the first of their names, by which what they do is told, and their others."""
    for node in snapshot.nodes.values():
        yield from ((node, key) for copy in node.copies.values() for key in copy.keys)
