"""The dashboards behind the overview: nodes, models, teams, objectives."""

from __future__ import annotations

from dashboards import thresholds as at
from dashboards.alerts import BAD, CALLS, NODE_FAILED
from dashboards.overview import NODE_STATES, circuits, node_states, overview
from dashboards.panels import (
    GREEN,
    POOL_SCOPE,
    RED,
    YELLOW,
    Json,
    Panel,
    Row,
    bars,
    board,
    highest,
    lines,
    or_none,
    parts,
    quantile,
    rate,
    selector,
    stat,
    table,
    timeline,
    watched,
)

MODEL = 'model=~"$model"'
NODE = 'node=~"$node"'
TEAM = 'team=~"$team"'
COLD = 'start="cold"'
WARM = 'start="warm"'
HIT = 'result="hit"'


def boards() -> list[Json]:
    return [overview(), nodes(), models(), teams(), slo()]


def nodes() -> Json:
    about = "What Ollama has no metrics for: state, memory, load and speed of each node, as the routers see it."
    return board("ollama-router-nodes", "ollama-router / Nodes", about, [all_nodes(), one_node()], variables=("node",))


def all_nodes() -> Row:
    pace = f"{rate('node_decode_tokens_total', 'node', NODE)} / {rate('node_decode_seconds_total', 'node', NODE)}"
    return Row("All nodes", [
        watched(timeline("State", "The state of each node (node_state).", node_states(NODE), NODE_STATES), "NodeDown"),
        watched(timeline("Breakers", "Copies and nodes that get no calls, or one at a time (circuit_state).", circuits(NODE),
                         {"0": ("closed", GREEN), "1": ("open", RED)}), "CircuitOpen"),
        in_memory(NODE),
        watched(lines("Thrash", "Pairs of models that evicted one another in the last 10 minutes: they do not fit together (thrash_pairs).",
                      [(highest("thrash_pairs", "node", NODE), "{{node}}")], "short"), "ModelsThrash"),
        watched(lines("More calls than slots", "Leases that were given above what copies serve, by routers without their store (slots_oversubscribed_total; 0 for each of node_up).",
                      [(f"max by (node) (rate({selector('slots_oversubscribed_total', NODE)}[$__rate_interval])) or {highest('node_up', 'node', NODE)} * 0", "{{node}}")], "short"), "SlotsOversubscribed"),
        lines("Slots of copies", "What a copy serves at once: declared, and learned where calls have shown another number (copy_slots).",
              [(highest("copy_slots", "node, model, kind", NODE), "{{node}} {{model}} {{kind}}")], "short"),
        watched(table("Nodes", "What each node says of itself, and its slots (node_info, node_slots, node_slots_used).", [
            (highest("node_info", "node, version, zone, gpus", NODE), ""),
            (highest("node_slots", "node", NODE), ""),
            (highest("node_slots_used", "node", NODE), ""),
        ], {"node": ("node", ""), "version": ("version", ""), "zone": ("zone", ""), "gpus": ("GPUs", ""), "Value #B": ("slots", "short"), "Value #C": ("taken", "short")}, width=12, hidden=("Value #A",)), "NodeVersionSkew"),
        bars("Tokens per second of a stream", "After its first token, on average of all streams (node_decode_tokens_total / node_decode_seconds_total).",
             f"{pace} > 0", "cps", "{{node}}", width=12),
    ])  # fmt: skip


def in_memory(more: str) -> Panel:
    return table("In memory", "Copies with their video memory, what spilled to the processor, context, expiry and last load "
                 "(node_model_loaded, node_model_vram_bytes, copy_cpu_bytes, node_model_context_tokens, node_model_expiry_timestamp_seconds, node_model_load_seconds).", [
        (highest("node_model_loaded", "node, model", more), ""),
        (highest("node_model_vram_bytes", "node, model", more), ""),
        (highest("copy_cpu_bytes", "node, model", more), ""),
        (highest("node_model_context_tokens", "node, model", more), ""),
        (f"{highest('node_model_expiry_timestamp_seconds', 'node, model', more)} - time()", ""),
        (f"{highest('node_model_load_seconds', 'node, model', more)} and {highest('node_model_loaded', 'node, model', more)}", ""),
    ], {
        "node": ("node", ""), "model": ("model", ""), "Value #B": ("video memory", "bytes"), "Value #C": ("spilled", "bytes"),
        "Value #D": ("context", "none"), "Value #E": ("expires in", "s"), "Value #F": ("last load", "s"),
    }, hidden=("Value #A",))  # fmt: skip


def one_node() -> Row:
    slots = [(highest("node_slots", "node", NODE), "slots"), (highest("node_slots_used", "node", NODE), "taken")]
    probes = [
        (quantile(0.5, "node_probe_duration_seconds", "node", NODE), "p50"),
        (quantile(0.99, "node_probe_duration_seconds", "node", NODE), "p99"),
    ]
    return Row("$node", [
        lines("Slots", "Calls that its loaded copies take at once, and those taken (node_slots, node_slots_used).", slots, "short", width=6),
        lines("Tokens", "Tokens a second, as the node counted them (node_tokens_total).", [(rate("node_tokens_total", "type", NODE), "{{type}}")], "cps", width=6),
        lines("Attempts", "Attempts that ended, by what came of them (upstream_requests_total).", [(rate("upstream_requests_total", "outcome", NODE), "{{outcome}}")], "reqps", width=6),
        lines("Attempts that took long", "p95 from request to last byte (upstream_request_duration_seconds).",
              [(quantile(0.95, "upstream_request_duration_seconds", "node", NODE), "p95")], "s", width=6),
        lines("Probes", "How long the node takes to say what it has (node_probe_duration_seconds).", probes, "s", width=6),
        lines("Failed probes", "By why (node_probe_failures_total).", parts("node_probe_failures_total", "reason", NODE), "cps", width=6),
        watched(lines("Loads", "Loads that ended, by why and how (model_loads_total).", parts("model_loads_total", "reason, result", NODE), "cps", width=6), "LoadsFail"),
        lines("Evictions", "Copies that left memory, by who ended them (model_evictions_total).", parts("model_evictions_total", "model, cause", NODE), "cps", width=6),
    ], repeat="node")  # fmt: skip


def models() -> Json:
    loaded, available = (
        highest("model_nodes", "model", f'{MODEL}, state="{state}"') for state in ("loaded", "available")
    )
    first = "time_to_first_token_seconds"
    streams, found = rate(f"{first}_count", "model", MODEL), rate("affinity_total", "model", MODEL)
    late, hit = rate(f"{first}_count", "model", f"{MODEL}, {COLD}"), rate("affinity_total", "model", f"{MODEL}, {HIT}")
    cold, conversations = f"({late} or {streams} * 0)", f"({hit} or {found} * 0)"
    rows = [
        Row("Models", [
            watched(table("Where models are", "Nodes that have them, and have them loaded; digests above 1 are one name for different weights (model_nodes, model_digest_skew, requests_total).", [
                (available, ""), (loaded, ""), (f"{highest('model_digest_skew', 'model', MODEL)} or clamp_max({available}, 1)", ""),
                (rate("requests_total", "model", MODEL), ""),
            ], {"model": ("model", ""), "Value #A": ("nodes", "short"), "Value #B": ("loaded on", "short"), "Value #C": ("digests", "short"), "Value #D": ("calls", "reqps")}, width=12), "ModelUnavailable", "ModelSingleReplica", "DigestSkew"),
            timeline("Loaded where", "1 for each copy in memory, over time (node_model_loaded).", [(highest("node_model_loaded", "model, node", MODEL), "{{model}} {{node}}")],
                     {"1": ("loaded", GREEN)}),
            lines("Calls", "Calls that ended (requests_total).", [(rate("requests_total", "model", MODEL), "{{model}}")], "reqps", stacked=True),
            watched(lines("Time to first token", "p95 of streams whose model was loaded (time_to_first_token_seconds).",
                          [(quantile(0.95, first, "model", f'{MODEL}, start="warm"'), "{{model}}")], "s", limit=at.TTFT_P95_S), "HighTTFT"),
            lines("Time per token", "p95 between tokens of a stream (time_per_output_token_seconds).", [(quantile(0.95, "time_per_output_token_seconds", "model", MODEL), "{{model}}")], "s"),
        ]),
        Row("Memory", [
            watched(lines("Cold starts", "Share of the streams that waited for a load (time_to_first_token_seconds).",
                          [(f"{cold} / ({streams} > 0)", "{{model}}")], "percentunit", limit=at.COLD_SHARE), "ColdStartsHigh"),
            lines("Load time", "p95 of loads that ended well (model_load_seconds).", [(quantile(0.95, "model_load_seconds", "model", MODEL), "{{model}}")], "s"),
            watched(lines("Loads", "Loads by why and how they ended (model_loads_total).",
                          [(rate("model_loads_total", "model, reason, result", MODEL), "{{model}} {{reason}} {{result}}")], "cps"), "LoadsFail"),
            lines("Evictions", "Copies that left memory: ours made room, Ollama did, or they expired (model_evictions_total).", parts("model_evictions_total", "model, cause", MODEL), "cps"),
            lines("Conversations that found their copy", "Share of the calls of conversations that went to the copy with theirs in its prompt cache (affinity_total).",
                  [(f"{conversations} / ({found} > 0)", "{{model}}")], "percentunit"),
            lines("Tokens that a cache may have saved", "Input tokens of conversations, by where they went: those of hit at most are saved (affinity_tokens_total).",
                  [(rate("affinity_tokens_total", "result", MODEL), "{{result}}")], "cps", stacked=True),
        ]),
        Row("Copies", [
            in_memory(MODEL),
            watched(lines("Declared and ready", "Copies of the models in placement.models: how many there should be, and are (model_copies).",
                          [(or_none(highest("model_copies", "model, kind", MODEL), "model", "none is declared"), "{{model}} {{kind}}")], "short", width=12), "CopiesMissing"),
            watched(lines("Spilled", "What of each copy is not in video memory (copy_cpu_bytes).",
                          [(highest("copy_cpu_bytes", "node, model", MODEL), "{{node}} {{model}}")], "bytes", width=12), "CopySpilled"),
        ]),
    ]  # fmt: skip
    return board(
        "ollama-router-models",
        "ollama-router / Models",
        "Each model: where it is, how fast it answers, how often it has to be loaded.",
        rows,
        variables=("model",),
    )


def teams() -> Json:
    calls = rate("requests_total", "team", f"{TEAM}, {CALLS}")
    output = rate("tokens_total", "team", f'{TEAM}, type="output"')
    rows = [
        Row("Teams", [
            lines("Calls", "Calls that ended (requests_total).", [(calls, "{{team}}")], "reqps", stacked=True),
            lines("Output tokens", "Tokens generated for them (tokens_total).", [(output, "{{team}}")], "cps", stacked=True),
            lines("Input tokens", "Tokens of their prompts (tokens_total).", [(rate("tokens_total", "team", f'{TEAM}, type="input"'), "{{team}}")], "cps", stacked=True),
            lines("GPU time", "Seconds for which their calls held slots, over the slots of the copy: 1 is a copy of their own (team_gpu_seconds_total).",
                  parts("team_gpu_seconds_total", "team", TEAM), "short"),
            lines("Refused", "Calls that the router refused, by why (rejections_total).", parts("rejections_total", "team, reason", TEAM), "reqps"),
            lines("Ended", "Calls by how they ended (requests_total).", [(rate("requests_total", "team, outcome", f"{TEAM}, {CALLS}"), "{{team}} {{outcome}}")], "reqps"),
        ]),
        Row("To be charged, within the time shown", [
            table("Totals", "What each team used within the time that is shown (requests_total, tokens_total, team_gpu_seconds_total).", [
                (over_range("requests_total", "team", f"{TEAM}, {CALLS}"), ""),
                (over_range("tokens_total", "team", f'{TEAM}, type="input"'), ""),
                (over_range("tokens_total", "team", f'{TEAM}, type="output"'), ""),
                (over_range("team_gpu_seconds_total", "team", TEAM), ""),
            ], {"team": ("team", ""), "Value #A": ("calls", "short"), "Value #B": ("input tokens", "short"), "Value #C": ("output tokens", "short"), "Value #D": ("GPU time", "s")}),
        ]),
    ]  # fmt: skip
    about = "Who uses the pool. Needs metrics.teams: true; without it everything stands under one nameless team."
    return board("ollama-router-teams", "ollama-router / Teams", about, rows, variables=("team",))


def over_range(name: str, by: str, more: str) -> str:
    return f"sum by ({by}) (increase({selector(name, more)}[$__range]))"


def slo() -> Json:
    availability = Objective(
        "Availability", "slo_errors_per_request", 1 - at.AVAILABILITY, "calls fail", "ErrorBudgetBurn"
    )
    latency = Objective(
        "First token",
        "slo_slow_per_stream",
        1 - at.TTFT,
        f"streams begin after {at.TTFT_S:g} s or more",
        "TTFTBudgetBurn",
    )
    rows = [
        Row(f"Over {at.SLO_DAYS} days", [*availability.tiles(at.AVAILABILITY), *latency.tiles(at.TTFT)]),
        Row("Burn of the availability budget", [availability.pair(burn) for burn in at.BURNS]),
        Row("Burn of the latency budget", [latency.pair(burn) for burn in at.BURNS]),
        Row("Who", [
            lines("Failing models", "Calls that failed by the pool's doing, by model (requests_total).", parts("requests_total", "model", BAD), "reqps"),
            lines("Failing nodes", "Attempts that failed by the node's doing (upstream_requests_total).", parts("upstream_requests_total", "node", NODE_FAILED), "reqps"),
            lines("Late models", "p95 of the time to first token, model loaded (time_to_first_token_seconds).",
                  [(f"topk(10, {quantile(0.95, 'time_to_first_token_seconds', 'model', WARM)})", "{{model}}")], "s", limit=at.TTFT_S),
        ]),
    ]  # fmt: skip
    about = "The objectives of dashboards/thresholds.py: what is left of their budgets, and how fast it goes."
    return board("ollama-router-slo", "ollama-router / Objectives", about, rows, since="now-24h")


class Objective:
    """`ratio`: the recorded share of what goes wrong, by window."""

    def __init__(self, name: str, ratio: str, budget: float, what: str, alert: str) -> None:
        self._alert = alert
        self._name = name
        self._ratio = ratio
        self._budget = budget
        self._what = what

    def recorded(self, window: str) -> str:
        return f"max(ollama_router:{self._ratio}:ratio_rate{window}{{{POOL_SCOPE}}})"

    def tiles(self, target: float) -> list[Panel]:
        month = self.recorded(f"{at.SLO_DAYS}d")
        return [
            stat(f"{self._name}", f"Share of what went well; the objective is {target:.4g} ({self._ratio}).", f"1 - {month}", "percentunit",
                 width=6, decimals=3, steps=((None, RED), (target, GREEN))),
            stat(f"{self._name}: budget left", f"Of what may go wrong: {self._what} ({self._ratio}).", f"1 - {month} / {self._budget:.4g}", "percentunit",
                 width=6, decimals=1, steps=((None, RED), (0, YELLOW), (0.25, GREEN))),
        ]  # fmt: skip

    def pair(self, burn: at.Burn) -> Panel:
        queries = [(f"{self.recorded(window)} / {self._budget:.4g}", window) for window in (burn.long, burn.short)]
        text = f"How many times faster than allowed {self._what}. {burn.severity.capitalize()} above {burn.factor:g} in both ({self._ratio})."
        panel = lines(f"{burn.long} and {burn.short}", text, queries, "none", limit=burn.factor, width=6)
        return watched(panel, self._alert)
