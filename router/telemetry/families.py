"""Every metric by name, as a table: what Prometheus is told, and what `docs/metrics.md` is checked against.

Scope L is local to a replica: aggregate with sum. Scope S is a fact that every replica reports: aggregate with max.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

PREFIX = "ollama_router_"

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"

# Each list ends above the longest time that a default setting permits, or at what no longer makes a difference.
DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0)
FIRST_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0),
)
# OpenTelemetry's GenAI list and one more: a large model on a CPU takes seconds for a token.
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OVERHEAD_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LOAD_S = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
PROBE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
REDIS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
TOKENS = tuple(4**power for power in range(11))
BODY_BYTES = tuple(1024 * 4**power for power in range(10))


@dataclass(frozen=True, slots=True)
class Family:
    """`name` stands without the prefix. `may_tell_team`: with metrics.teams it has the label `team` as well."""

    name: str
    kind: str
    labels: tuple[str, ...]
    scope: str
    help: str
    bounds: tuple[float, ...] = ()
    may_tell_team: bool = False

    @property
    def by_team(self) -> Family:
        return replace(self, labels=(*self.labels, "team"), may_tell_team=False)


_TABLE = (
    Family("requests_total", COUNTER, ("route", "model", "outcome", "code"), "L",
           "Calls that ended; lists and other pages, without a model, too.", may_tell_team=True),
    Family("request_duration_seconds", HISTOGRAM, ("route", "model", "outcome"), "L",
           "Arrival to last byte; of pages, until they were made.", DURATION_S),
    Family("time_to_first_token_seconds", HISTOGRAM, ("route", "model", "start"), "L",
           "From the whole body's arrival to the first content of a stream; start is cold for calls that waited for a "
           "load.", FIRST_TOKEN_S),
    Family("time_per_output_token_seconds", HISTOGRAM, ("route", "model"), "L",
           "(end - first token) / (tokens - 1) of streams with more than one token.", PER_TOKEN_S),
    Family("queue_wait_seconds", HISTOGRAM, ("model", "result"), "L",
           "Time in line: dispatched, timeout, cancelled or rejected.", WAIT_S),
    Family("overhead_seconds", HISTOGRAM, ("route",), "L", "The router's own part of a call.", OVERHEAD_S),
    Family("model_load_seconds", HISTOGRAM, ("model",), "L", "Loads by this replica that ended well.", LOAD_S),
    Family("tokens_total", COUNTER, ("model", "type"), "L", "Tokens as nodes counted them: input or output.",
           may_tell_team=True),
    Family("team_gpu_seconds_total", COUNTER, ("team",), "L",
           "With metrics.teams: seconds for which calls held a slot, over the slots of its copy."),
    Family("tokens_estimated_total", COUNTER, ("model", "type"), "L",
           "Content events of answers that carried no counts, mostly because they were cancelled or cut."),
    Family("request_tokens", HISTOGRAM, ("model", "type"), "L", "Tokens of one call, as nodes counted them.", TOKENS),
    Family("request_body_bytes", HISTOGRAM, ("route",), "L", "Bodies as they arrived.", BODY_BYTES),
    Family("requests_in_flight", GAUGE, ("route", "model"), "L", "Calls at a node; waiting ones are in queue_depth."),
    Family("queue_depth", GAUGE, ("model",), "L",
           "Calls of this replica that wait in line; those that overflowed stand in several."),
    Family("queue_limit", GAUGE, ("model",), "S",
           "Calls of all replicas that may wait in line; compare with sum by (model) (queue_depth)."),
    Family("rejections_total", COUNTER, ("model", "reason"), "L", "Calls that the router itself refused.",
           may_tell_team=True),
    Family("client_disconnects_total", COUNTER, ("model", "phase"), "L",
           "Clients that left: waiting, prefill, streaming or stalled."),
    Family("routing_decisions_total", COUNTER, ("policy", "reason"), "L", "Calls sent to a node, by why this one."),
    Family("affinity_total", COUNTER, ("model", "result"), "L",
           "Calls of conversations: hit at the copy that has theirs, spilled to another one, miss where none had it."),
    Family("affinity_tokens_total", COUNTER, ("model", "result"), "L",
           "Input tokens of these calls; those of hit are what prompt caches can have saved at most."),
    Family("alias_fallbacks_total", COUNTER, ("alias", "reason"), "L",
           "Targets of an alias that a call passed over for the next: unknown, cloud, no_node, not_loaded, "
           "load_failed, failed or incapable."),
    Family("alias_overflows_total", COUNTER, ("alias", "model"), "L",
           "Calls of an alias that were served by a target whose line they had joined later, by which."),
    Family("guard_total", COUNTER, ("model", "option", "action"), "L",
           "Calls whose num_ctx, options, keep_alive or unload a guard cut, clamped, refused, ignored or passed."),
    Family("upstream_requests_total", COUNTER, ("node", "model", "outcome"), "L", "Attempts at a node that ended."),
    Family("upstream_request_duration_seconds", HISTOGRAM, ("node",), "L", "Attempts at a node.", DURATION_S),
    Family("retries_total", COUNTER, ("model", "reason"), "L", "Attempts that were followed by another one."),
    Family("failovers_total", COUNTER, ("model", "reason"), "L", "Retries that another node took."),
    Family("node_up", GAUGE, ("node",), "S", "1 when the node can be reached, draining included."),
    Family("node_state", GAUGE, ("node", "state"), "S", "1 for the state that the node is in."),
    Family("node_info", GAUGE, ("node", "version", "zone", "gpus"), "S",
           "1, with what the node says of itself, and the GPUs that its pod may use."),
    Family("node_slots", GAUGE, ("node",), "S", "Calls that the node's ready copies take at once, backlog included."),
    Family("node_slots_used", GAUGE, ("node",), "S", "Leases on the node."),
    Family("node_model_loaded", GAUGE, ("node", "model"), "S", "1 for each name whose weights are in memory."),
    Family("node_model_vram_bytes", GAUGE, ("node", "model"), "S",
           "Video memory of a copy, under the first of its names, so that the sum is the node's."),
    Family("node_model_context_tokens", GAUGE, ("node", "model"), "S",
           "Context that a copy is loaded with, under the first of its names."),
    Family("node_model_expiry_timestamp_seconds", GAUGE, ("node", "model"), "S",
           "When a copy leaves memory unless it is used, by the node's clock; none for copies that stay."),
    Family("copy_cpu_bytes", GAUGE, ("node", "model"), "S",
           "Bytes of a copy that are not in video memory, under the first of its names."),
    Family("node_tokens_total", COUNTER, ("node", "model", "type"), "L", "Tokens as the node counted them."),
    Family("node_decode_tokens_total", COUNTER, ("node", "model"), "L", "Tokens of streams after their first one."),
    Family("node_decode_seconds_total", COUNTER, ("node", "model"), "L",
           "Seconds that these tokens took; their quotient is tokens per second of a stream."),
    Family("node_model_load_seconds", GAUGE, ("node", "model"), "L",
           "How long the last load by this replica took."),
    Family("copy_slots", GAUGE, ("node", "model", "kind"), "S",
           "Calls that a copy in memory serves at once, under the first of its names: declared, and learned where "
           "calls have shown another number."),
    Family("node_probe_duration_seconds", HISTOGRAM, ("node",), "L", "Probes, failed ones too.", PROBE_S),
    Family("node_probe_failures_total", COUNTER, ("node", "reason"), "L", "Probes that failed."),
    Family("circuit_state", GAUGE, ("node", "model", "state"), "S",
           "1 for breakers that are not closed; model all for the node's own."),
    Family("circuit_state_changes_total", COUNTER, ("node", "state"), "L", "Breakers that changed into a state."),
    Family("model_loads_total", COUNTER, ("node", "model", "reason", "result"), "L",
           "Loads by this replica: line, copy or pin (declared), rewarm (after a restart of the node) or renew; ok, "
           "failed or oom."),
    Family("model_nodes", GAUGE, ("model", "state"), "S",
           "Nodes that take calls and have the model: available or loaded."),
    Family("model_digest_skew", GAUGE, ("model",), "S", "Different digests of one name over the nodes, if several."),
    Family("model_copies", GAUGE, ("model", "kind"), "S",
           "Copies of models in placement.models: declared, and of those standing, ready to serve."),
    Family("model_evictions_total", COUNTER, ("node", "model", "cause"), "L",
           "Copies that the replica that places saw leave memory: ours (for its loads, or unloaded by it), ollama or "
           "expired."),
    Family("thrash_pairs", GAUGE, ("node",), "S",
           "Pairs of models that evicted one another, also in a ring with others, in the last 10 minutes."),
    Family("slots_oversubscribed_total", COUNTER, ("node",), "S",
           "Leases seen above what a copy serves: given by routers that were cut off from the store, or slots became "
           "fewer."),
    Family("leader", GAUGE, (), "L", "1 for the replica that places models: one of a pool, while Redis answers."),
    Family("discovery_nodes", GAUGE, ("source",), "S", "Nodes that a source names."),
    Family("discovery_up", GAUGE, ("source",), "S",
           "1 while a source beside the list answers; 0 while what it named may be out of date."),
    Family("discovery_last_sync_timestamp_seconds", GAUGE, ("source",), "L",
           "When a source beside the list said last what it has, changed or not, in Unix time."),
    Family("discovery_errors_total", COUNTER, ("source", "reason"), "L", "Questions that a source did not answer."),
    Family("config_last_reload_successful", GAUGE, (), "L",
           "1 when the configuration in force is what file and mounted secrets say; 0 after one that was bad."),
    Family("config_last_reload_success_timestamp_seconds", GAUGE, (), "L",
           "When the configuration in force was read, in Unix time."),
    Family("config_reloads_total", COUNTER, ("result",), "L",
           "Configurations read after the start by each process: ok or failed."),
    Family("event_loop_lag_seconds", HISTOGRAM, (), "L", "How much later than asked a timer fired.", LAG_S),
    Family("build_info", GAUGE, ("version", "revision", "python"), "L", "1, with what runs."),
    Family("degraded_mode", GAUGE, (), "L", "1 when this replica decides on what it knows alone."),
    Family("redis_up", GAUGE, (), "L", "1 while Redis answers; absent where store.url is memory://."),
    Family("redis_operation_duration_seconds", HISTOGRAM, ("operation",), "L",
           "Round trips to the shared store, failed ones too: connect, hello or steps, of which one carries many.",
           REDIS_S),
    Family("redis_errors_total", COUNTER, ("operation", "reason"), "L",
           "Round trips that failed, by operation as above and news, the wait for grants: timeout, connection, "
           "refused, auth, moved or other."),
    Family("log_lines_dropped_total", COUNTER, (), "L", "Log lines lost because nobody took them from stdout."),
)  # fmt: skip

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _TABLE})
