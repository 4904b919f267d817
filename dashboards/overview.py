"""The first look: is it well, and if not, where."""

from __future__ import annotations

from dashboards import thresholds as at
from dashboards.alerts import BAD, CALLS, NODE_FAILED, VALID
from dashboards.panels import (
    GREEN,
    GREY,
    POOL_SCOPE,
    RED,
    YELLOW,
    Json,
    Query,
    Row,
    board,
    heatmap,
    highest,
    lines,
    or_none,
    parts,
    quantile,
    quantiles,
    rate,
    selector,
    stat,
    timeline,
    together,
    watched,
)

STATUS_COLOURS = {"2..": GREEN, "4..": YELLOW, "5..": RED}
NODE_STATES = {
    "0": ("down", RED),
    "1": ("draining", "purple"),
    "2": ("unread", GREY),
    "3": ("degraded", YELLOW),
    "4": ("healthy", GREEN),
}
STEPS = 'operation="steps"'
# Prometheus' own of the rules, which have no instance where they are about a pool.
_ALERTS = f'max by (alertname, severity) (ALERTS{{{POOL_SCOPE}, alertname=~"OllamaRouter.+", alertstate="firing"}})'
FIRING: list[Query] = [(_ALERTS, "{{alertname}} ({{severity}})"), (f"count({_ALERTS}) * 0 or vector(0)", "all alerts")]
WARM = 'start="warm"'
PAGES = 'model=""'
AVAILABLE = 'state="available"'


def node_states(more: str = "") -> list[Query]:
    """A number for each node: every state but down, times its place in NODE_STATES. Only one of them is 1."""
    weighed = []
    for value, (text, _) in NODE_STATES.items():
        if value != "0":
            chosen = ", ".join(filter(None, (f'state="{text}"', more)))
            weighed.append(f"max by (node) ({selector('node_state', chosen)}) * {value}")
    return [(" + ".join(weighed), "{{node}}")]


def circuits(more: str = "") -> list[Query]:
    """1 for each breaker that is not closed; all of them together are 0 in a pool that is well."""
    shown = highest("circuit_state", "node, model, state", more)
    return [(shown, "{{node}} {{model}} {{state}}"), (f"count({shown}) * 0 or vector(0)", "none open")]


def overview() -> Json:
    rows = [now(), traffic(), latency(), capacity(), tokens(), reliability(), router()]
    about = "The pool at a glance: calls, latency, lines, tokens, nodes and the routers themselves."
    return board("ollama-router-overview", "ollama-router / Overview", about, rows, variables=("model",))


def now() -> Row:
    up, known = f"sum({highest('node_up', 'node')})", f"count({highest('node_up', 'node')})"
    valid, bad = rate("requests_total", "", VALID), rate("requests_total", "", BAD)
    burn = f"max(ollama_router:slo_errors_per_request:ratio_rate1h{{{POOL_SCOPE}}}) / {1 - at.AVAILABILITY:.4g}"
    return Row("Now", [
        watched(timeline("Firing", "Alerts that fire, over time; a click leads to the runbook. One line of 0 where none does (ALERTS).",
                         FIRING, {"0": ("quiet", GREEN), "1": ("fires", RED)}, width=24, height=5,
                         link=("Runbook", f"{at.RUNBOOKS}/${{__field.labels.alertname}}.md")), "Down", "WatchdogAbsent"),
        stat("Calls", "Calls that ended, a second (requests_total).", rate("requests_total", "", CALLS), "reqps"),
        watched(stat("Success", "Share of calls that did not fail by the pool's doing; 4xx and clients that left do not count (requests_total).",
                     f"1 - ({bad} or {valid} * 0) / ({valid} > 0)", "percentunit",
                     steps=((None, RED), (at.AVAILABILITY - 0.005, YELLOW), (at.AVAILABILITY, GREEN))), "ErrorBudgetBurn"),
        watched(stat("TTFT p95", "The call's body to its first token, of streams whose model was loaded (time_to_first_token_seconds).",
                     quantile(0.95, "time_to_first_token_seconds", "", WARM), "s",
                     steps=((None, GREEN), (at.TTFT_S, YELLOW), (at.TTFT_P95_S, RED))), "HighTTFT", "TTFTBudgetBurn"),
        stat("Output", "Tokens that nodes generated, a second (tokens_total).", rate("tokens_total", "", 'type="output"'), "cps"),
        stat("In line", "Calls that wait for a slot (queue_depth).", together("queue_depth"), "short"),
        stat("At nodes", "Calls that a node works on (requests_in_flight).", f"{together('requests_in_flight')} or vector(0)", "short"),
        watched(stat("Nodes up", "Nodes that can be reached, of those known (node_up).", f"{up} / {known}", "percentunit", decimals=0,
                     steps=((None, RED), (at.NODES_DOWN_SHARE, YELLOW), (1, GREEN))), "NodesDownMany", "NoNodes"),
        stat("Nodes", "Nodes that are known, up or down (node_up).", known, "short"),
        stat("Nodes down", "Nodes that no replica reaches (node_up).", f"{known} - {up}", "short", steps=((None, GREEN), (1, RED))),
        watched(stat("Models", "Models that some node can serve (model_nodes).", f"count({highest('model_nodes', 'model', AVAILABLE)} > 0)", "short"), "ModelUnavailable"),
        watched(stat("Replicas", "Routers that report (build_info).", f"count({selector('build_info')})", "short"), "ReplicasLow"),
        watched(stat("Budget burn", "How many times faster than allowed errors used up the month's budget in the last hour (slo_errors_per_request).",
                     burn, "none", decimals=2, steps=((None, GREEN), (1, YELLOW), (6, RED))), "ErrorBudgetBurn"),
    ])  # fmt: skip


def traffic() -> Row:
    return Row("Traffic", [
        lines("Calls by route", "Calls that ended, by route (requests_total).", [(rate("requests_total", "route", CALLS), "{{route}}")], "reqps", stacked=True),
        lines("Calls by model", "Calls that ended, by model (requests_total).", [(rate("requests_total", "model", 'model=~"$model"'), "{{model}}")], "reqps", stacked=True),
        lines("Calls by status", "Calls that ended, by the code that was sent; 499 is a client that left before (requests_total).",
              [(rate("requests_total", "code", CALLS), "{{code}}")], "reqps", stacked=True, colours=STATUS_COLOURS),
        watched(lines("Refused by the router", "Calls that the router refused itself, by why (rejections_total).", parts("rejections_total", "reason"), "reqps", width=6), "QueueTimeouts"),
        lines("Clients that left", "By what they waited for: a slot, the first byte, or more of a stream (client_disconnects_total).",
              parts("client_disconnects_total", "phase"), "reqps", width=6),
        lines("Why this node", "Calls by why they went where they went (routing_decisions_total).",
              [(rate("routing_decisions_total", "reason"), "{{reason}}")], "reqps", stacked=True, width=6),
        lines("Lists and pages", "What is asked for beside calls, with the code that was sent: 404 of other is mostly a wrong base_url (requests_total).",
              [(rate("requests_total", "route, code", PAGES), "{{route}} {{code}}"), (f"{rate('requests_total', '', PAGES)} or vector(0)", "all")], "reqps", width=6),
    ])  # fmt: skip


def latency() -> Row:
    first = "time_to_first_token_seconds"
    return Row("Latency", [
        watched(lines("Time to first token", "The call's body to the first token of streams, warm and cold (time_to_first_token_seconds).",
                      quantiles(first), "s", limit=at.TTFT_P95_S), "HighTTFT", "TTFTBudgetBurn"),
        watched(lines("Warm and cold", "p95 of the time to first token, by whether the call waited for a load (time_to_first_token_seconds).",
                      [(quantile(0.95, first, "start"), "{{start}}")], "s"), "ColdStartsHigh"),
        heatmap("First tokens", "How many streams had their first token after how long (time_to_first_token_seconds).", first, "", "s"),
        lines("Time per token", "Between tokens of a stream after its first (time_per_output_token_seconds).", quantiles("time_per_output_token_seconds"), "s"),
        lines("Whole calls", "p95 from arrival to last byte, by model (request_duration_seconds).",
              [(quantile(0.95, "request_duration_seconds", "model", 'model=~"$model"'), "{{model}}")], "s"),
        lines("The router's own part", "What the router itself adds to a call, without body, line and node (overhead_seconds).", quantiles("overhead_seconds"), "s"),
    ])  # fmt: skip


def capacity() -> Row:
    used, slots = f"sum({highest('node_slots_used', 'node')})", f"sum({highest('node_slots', 'node')})"
    full = f"{together('queue_depth', 'model')} / {highest('queue_limit', 'model')}"
    return Row("Line and capacity", [
        lines("In line", "Calls that wait, by model (queue_depth).", [(together("queue_depth", "model", 'model=~"$model"'), "{{model}}")], "short", stacked=True),
        lines("Wait in line", "Time in line of calls that got a slot (queue_wait_seconds).", quantiles("queue_wait_seconds", 'result="dispatched"'), "s"),
        lines("Slots", "Calls that loaded copies take at once, and those taken (node_slots, node_slots_used).", [(slots, "slots"), (used, "taken")], "short"),
        watched(lines("Slots taken", "Share of the slots that are taken; calls of copies that are going are left out (node_slots_used / node_slots).",
                      [(f"clamp_max({used} / ({slots} > 0), 1)", "taken")], "percentunit", limit=at.SLOTS_SHARE), "SlotsExhausted"),
        watched(lines("How full lines are", "Calls in line over how many may wait (queue_depth / queue_limit).", [(full, "{{model}}")], "percentunit", limit=at.QUEUE_SHARE), "QueueSaturated"),
        watched(lines("Waits by their end", "Calls that stood in line, by how that ended (queue_wait_seconds).",
                      [(rate("queue_wait_seconds_count", "result"), "{{result}}")], "reqps", stacked=True), "QueueTimeouts"),
    ])  # fmt: skip


def tokens() -> Row:
    return Row("Tokens", [
        lines("Output tokens", "Tokens generated, by model, as nodes counted them (tokens_total).",
              [(rate("tokens_total", "model", 'type="output"'), "{{model}}")], "cps", stacked=True),
        lines("Input tokens", "Tokens of prompts, by model, as nodes counted them (tokens_total).",
              [(rate("tokens_total", "model", 'type="input"'), "{{model}}")], "cps", stacked=True),
        lines("Cancelled and cut", "Content events of answers that carried no counts (tokens_estimated_total).", parts("tokens_estimated_total", "model"), "cps"),
        lines("Prompt length", "Tokens of a call's prompt (request_tokens).", quantiles("request_tokens", 'type="input"'), "short", width=12),
        lines("Answer length", "Tokens of a call's answer (request_tokens).", quantiles("request_tokens", 'type="output"'), "short", width=12),
    ])  # fmt: skip


def reliability() -> Row:
    return Row("Reliability", [
        watched(timeline("Nodes", "The state of each node (node_state).", node_states(), NODE_STATES), "NodeDown"),
        watched(timeline("Breakers", "Copies and nodes that get no calls, or one at a time, after failures (circuit_state).", circuits(),
                         {"0": ("closed", GREEN), "1": ("open", RED)}), "CircuitOpen"),
        watched(lines("Failed attempts", "Attempts at nodes that failed by the node's doing (upstream_requests_total).",
                      parts("upstream_requests_total", "node", NODE_FAILED), "reqps"), "UpstreamErrorsHigh"),
        lines("Retries", "Attempts that were followed by another one, by why; none of them is seen by the client (retries_total).", parts("retries_total", "reason"), "reqps"),
        lines("Taken over", "Retries that another node took (failovers_total).", parts("failovers_total", "reason"), "reqps"),
        lines("Breakers that changed", "By the state that they came into (circuit_state_changes_total).", parts("circuit_state_changes_total", "state"), "cps"),
        lines("Next targets", "Targets of aliases that were passed over for the next, by why, and calls that the next one's line took (alias_fallbacks_total, alias_overflows_total).",
              [*parts("alias_fallbacks_total", "alias, reason"), (f"{rate('alias_overflows_total')} or vector(0)", "overflow")], "reqps"),
        lines("Guards", "Calls with options that a guard changed, refused or let through (guard_total).", parts("guard_total", "option, action"), "reqps"),
    ])  # fmt: skip


def router() -> Row:
    by_replica = "instance"
    process = '{namespace=~"$namespace", job=~"$job", instance=~"$instance"}'
    return Row("Router", [
        lines("Processor", "Cores that each replica uses; one is all that a process has (process_cpu_seconds_total).",
              [(f"rate(process_cpu_seconds_total{process}[$__rate_interval])", "{{instance}}")], "short", limit=0.9),
        lines("Memory", "Resident memory of each replica (process_resident_memory_bytes).", [(f"process_resident_memory_bytes{process}", "{{instance}}")], "bytes"),
        watched(lines("Loop lag", "p99 of how late timers fire, by replica (event_loop_lag_seconds).",
                      [(quantile(0.99, "event_loop_lag_seconds", by_replica), "{{instance}}")], "s", limit=at.LOOP_LAG_P99_S), "EventLoopLag"),
        lines("Open files", "Descriptors of each replica; a call takes two (process_open_fds).", [(f"process_open_fds{process}", "{{instance}}")], "short"),
        lines("Request bodies", "Size of bodies as they arrived (request_body_bytes).", quantiles("request_body_bytes"), "bytes"),
        lines("Log lines lost", "Because nobody took them from stdout (log_lines_dropped_total).", [(rate("log_lines_dropped_total", by_replica), "{{instance}}")], "cps"),
        watched(lines("Age of the configuration", "Since the configuration in force was read (config_last_reload_success_timestamp_seconds).",
                      [(f"time() - {selector('config_last_reload_success_timestamp_seconds')}", "{{instance}}")], "s", width=6), "ConfigReloadFailed"),
        watched(lines("Reloads", "Configurations read after the start, and 1 where the last one was bad (config_reloads_total, config_last_reload_successful).",
                      [(rate("config_reloads_total", "result"), "{{result}}"), (f"1 - {selector('config_last_reload_successful')}", "bad {{instance}}")], "short", width=6), "ConfigReloadFailed"),
        watched(lines("Nodes by source", "What discovery names, and 1 for each source that does not answer (discovery_nodes, discovery_up, discovery_errors_total).",
                      [(highest("discovery_nodes", "source"), "{{source}}"), (or_none(f"1 - {selector('discovery_up')}", "source", "(only the list)"), "stale {{source}} {{instance}}"),
                       (or_none(rate("discovery_errors_total", "source, reason"), "source", "no errors"), "{{source}} {{reason}}")], "short", width=6), "ReplicasDisagree", "DiscoveryStale"),
        watched(lines("Age of discovery", "Since a source beside the list said last what it has, by replica; 0 without one (discovery_last_sync_timestamp_seconds).",
                      [(or_none(f"time() - {selector('discovery_last_sync_timestamp_seconds')}", "source", "(only the list)"), "{{source}} {{instance}}")], "s", limit=at.DISCOVERY_AGE_S, width=6), "DiscoveryStale"),
        watched(lines("Shared store", "1 for each replica that decides alone, for each that Redis does not answer, and for the one that places models (degraded_mode, redis_up, leader).",
                      [(selector("leader"), "leads {{instance}}"), (selector("degraded_mode"), "alone {{instance}}"), (or_none(f"1 - {selector('redis_up')}", "instance", "(no Redis)"), "no answer {{instance}}")],
                      "short"), "DegradedMode", "RedisDown", "NoLeader"),
        watched(lines("Shared store's answers", "p99 of round trips to Redis, by replica; 0 without one (redis_operation_duration_seconds).",
                      [(or_none(quantile(0.99, "redis_operation_duration_seconds", by_replica, STEPS), "instance", "(no Redis)"), "{{instance}}")], "s", limit=at.REDIS_P99_S), "RedisSlow"),
        watched(lines("Shared store's failures", "Round trips to Redis that failed, by why (redis_errors_total).",
                      [(or_none(rate("redis_errors_total", "operation, reason"), "operation", "none"), "{{operation}} {{reason}}")], "cps"), "RedisDown"),
    ])  # fmt: skip
