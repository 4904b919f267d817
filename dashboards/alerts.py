"""Alerts as Prometheus' own structures. Aggregations keep namespace and job: one pool, one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dashboards import thresholds as at

POOL = "namespace, job"
PREFIX = "ollama_router_"

# Outcomes that are the pool's own failing, but for those that the client was told with a 4xx; and the calls that count.
CALLS = 'model!=""'  # lists and other pages have none: who polls them must not hide that calls fail
BAD = f'outcome=~"rejected|timeout|upstream_error|upstream_truncated|drained", code!~"4..", {CALLS}'
VALID = f'outcome!~"cancelled|stalled", code!~"4..", {CALLS}'
# An attempt that failed by the node's doing. `busy` is no error, and what a client ended or asked wrongly neither.
NODE_FAILED = (
    'outcome=~"connect_refused|connect_timeout|tls|reset|closed|garbage|runner_died|first_byte_timeout'
    '|upstream_error|upstream_truncated|timeout"'
)
_TIMEOUTS = 'rejections_total{reason="queue_timeout"}'
_FAILED_LOADS = 'model_loads_total{result!="ok"}'
_STARTS = "time_to_first_token_seconds_count"
_COLD = f'{_STARTS}{{start="cold"}}'


@dataclass(frozen=True, slots=True)
class Alert:
    """`summary` and `description` may name labels. `labels` are further ones."""

    name: str
    expr: str
    holds: str
    severity: str
    summary: str
    description: str
    labels: tuple[tuple[str, str], ...] = ()

    def rule(self) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.holds,
            "labels": {"severity": self.severity, **dict(self.labels)},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{at.RUNBOOKS}/{self.name}.md",
            },
        }


def above(limit: float) -> str:
    """Marked, so that the chart finds the number where `defaultRules.<alert>.threshold` says another one."""
    return f"> {limit:g}  # threshold"


def total(selector: str, window: str = "5m", by: str = POOL) -> str:
    """Of a counter, over all replicas: a second."""
    return f"sum by ({by}) (rate({PREFIX}{selector}[{window}]))"


def quantile(share: float, selector: str, window: str, by: str = POOL) -> str:
    return f"histogram_quantile({share:g}, sum by ({by}, le) (rate({PREFIX}{selector}[{window}])))"


def about_routers() -> list[Alert]:
    return [
        Alert(
            "OllamaRouterDown",
            f'max by ({POOL}) (up{{job=~"{at.JOB}"}}) == 0',
            "2m",
            "critical",
            "No replica of {{ $labels.job }} answers its scrape",
            "Prometheus reaches no replica of {{ $labels.job }}: clients get no answer either, or nobody sees it.",
        ),
        Alert(
            "OllamaRouterWatchdogAbsent",
            f"absent({PREFIX}build_info)",
            "10m",
            "critical",
            "Nothing is known of any router",
            "No replica of any job reports metrics. No other alert of these can fire until one does.",
        ),
        Alert(
            "OllamaRouterReplicasLow",
            "kube_deployment_status_replicas_available"
            f'{{deployment=~"{at.JOB}"}} < kube_deployment_spec_replicas{{deployment=~"{at.JOB}"}}',
            "10m",
            "warning",
            "{{ $labels.deployment }} has fewer replicas than it should",
            "Replicas of {{ $labels.deployment }} are not available. Needs kube-state-metrics; without it, never fires.",
        ),
        Alert(
            "OllamaRouterReplicasDisagree",
            f"max by ({POOL}, source) ({PREFIX}discovery_nodes) - min by ({POOL}, source) ({PREFIX}discovery_nodes) > 0",
            "10m",
            "warning",
            "Replicas see different nodes",
            "Replicas of {{ $labels.job }} know different numbers of nodes from {{ $labels.source }}.",
        ),
        Alert(
            "OllamaRouterDegradedMode",
            f"max by ({POOL}, instance) ({PREFIX}degraded_mode) == 1",
            "5m",
            "warning",
            "{{ $labels.instance }} decides on what it knows alone",
            "{{ $labels.instance }} has lost the shared store: fairness and limits hold for it alone.",
        ),
        Alert(
            "OllamaRouterRedisDown",
            f"max by ({POOL}) ({PREFIX}redis_up) == 0",
            "1m",
            "critical",
            "No replica of {{ $labels.job }} reaches the shared store",
            "Every replica of {{ $labels.job }} decides with its share of each copy: lines, fairness and limits hold for "
            "each by itself.",
        ),
        Alert(
            "OllamaRouterNoLeader",
            f"max by ({POOL}) ({PREFIX}leader) == 0",
            "5m",
            "critical",
            "No replica of {{ $labels.job }} places models",
            "No replica of {{ $labels.job }} leads: models that are loaded go on, and none is loaded that is not.",
        ),
        Alert(
            "OllamaRouterConfigReloadFailed",
            f"max by ({POOL}, instance) ({PREFIX}config_last_reload_successful) == 0",
            "5m",
            "warning",
            "{{ $labels.instance }} runs on an older configuration",
            "The configuration of {{ $labels.instance }} was changed to something wrong; the one before is in force.",
        ),
        Alert(
            "OllamaRouterEventLoopLag",
            f"{quantile(0.99, 'event_loop_lag_seconds_bucket', '5m', f'{POOL}, instance')} {above(at.LOOP_LAG_P99_S)}",
            "10m",
            "warning",
            "{{ $labels.instance }} is short of processor time",
            "One timer in a hundred of {{ $labels.instance }} fires {{ $value | humanizeDuration }} late or more: every "
            "stream through it stutters.",
        ),
    ]


def about_nodes() -> list[Alert]:
    up = f"max by ({POOL}, node) ({PREFIX}node_up)"
    failed = total(f"upstream_requests_total{{{NODE_FAILED}}}", "5m", f"{POOL}, node")
    return [
        Alert(
            "OllamaRouterNoNodes",
            f"(max by ({POOL}) (sum by ({POOL}, instance) ({PREFIX}discovery_nodes)) == 0)\n"
            f"or (max by ({POOL}) ({PREFIX}node_up) == 0)",
            "2m",
            "critical",
            "No node serves calls",
            "{{ $labels.job }} knows no node, or none that is up: every call is refused.",
        ),
        Alert(
            "OllamaRouterNodesDownMany",
            f"1 - avg by ({POOL}) ({up}) {above(at.NODES_DOWN_SHARE)}",
            "5m",
            "critical",
            "Many nodes are down",
            "{{ $value | humanizePercentage }} of the nodes of {{ $labels.job }} are down. The rest carries their calls; "
            "lines will grow.",
        ),
        Alert(
            "OllamaRouterNodeDown",
            f"{up} == 0",
            "5m",
            "warning",
            "Node {{ $labels.node }} is down",
            "No replica of {{ $labels.job }} reaches {{ $labels.node }}.",
        ),
        Alert(
            "OllamaRouterUpstreamErrorsHigh",
            f"{failed} / {total('upstream_requests_total', '5m', f'{POOL}, node')} {above(at.UPSTREAM_ERROR_SHARE)}\n"
            f"and {failed} > {at.UPSTREAM_ERRORS_PER_S_MIN:g}",
            "5m",
            "warning",
            "Node {{ $labels.node }} fails calls",
            "{{ $value | humanizePercentage }} of the attempts at {{ $labels.node }} fail. Most are repeated elsewhere, at "
            "the cost of time.",
        ),
        Alert(
            "OllamaRouterCircuitOpen",
            f'max by ({POOL}, node, model) ({PREFIX}circuit_state{{state=~"open|half_open"}}) == 1',
            "5m",
            "warning",
            "{{ $labels.model }} on {{ $labels.node }} is kept out of the way",
            "{{ $labels.model }} on {{ $labels.node }} has failed again and again and gets one trial call at a time "
            "(model all: the node itself).",
        ),
        Alert(
            "OllamaRouterModelsThrash",
            f"max by ({POOL}, node) ({PREFIX}thrash_pairs) {above(at.THRASH_PAIRS)}",
            "15m",
            "warning",
            "Models evict one another on {{ $labels.node }}",
            "Pairs of models that load in each other's place on {{ $labels.node }}, again and again: {{ $value }}. Their "
            "calls wait for loads.",
        ),
        Alert(
            "OllamaRouterSlotsOversubscribed",
            f"max by ({POOL}, node) (increase({PREFIX}slots_oversubscribed_total[10m])) > 0",
            "30m",
            "warning",
            "{{ $labels.node }} gets more calls than it has slots",
            "{{ $labels.node }} has been given more calls than its copies serve at once, and still is: they wait inside "
            "Ollama, where nobody sees them.",
        ),
        Alert(
            "OllamaRouterCopySpilled",
            f"max by ({POOL}, node, model) ({PREFIX}copy_cpu_bytes) > 0\n"
            f"and max by ({POOL}, node, model) ({PREFIX}node_model_vram_bytes) > 0",
            "1h",
            "info",
            "{{ $labels.model }} on {{ $labels.node }} does not fit",
            "{{ $value | humanize1024 }}B of {{ $labels.model }} on {{ $labels.node }} are not in video memory: it answers "
            "several times slower there.",
        ),
        Alert(
            "OllamaRouterDiscoveryStale",
            f"time() - min by ({POOL}, source) ({PREFIX}discovery_last_sync_timestamp_seconds) "
            f"{above(at.DISCOVERY_AGE_S)}\nor min by ({POOL}, source) ({PREFIX}discovery_up) == 0",
            "5m",
            "warning",
            "{{ $labels.source }} does not say which nodes there are",
            "{{ $labels.source }} has not answered a replica of {{ $labels.job }}. Nodes that are known go on; new ones get "
            "no calls.",
        ),
        Alert(
            "OllamaRouterNodeVersionSkew",
            f'count by ({POOL}) (max by ({POOL}, version) ({PREFIX}node_info{{version!=""}})) > 1',
            "1h",
            "info",
            "Nodes run different versions of Ollama",
            "The nodes of {{ $labels.job }} run more than one version: what clients may use is the lowest of them.",
        ),
    ]


def about_models() -> list[Alert]:
    calls = total(f"requests_total{{{CALLS}}}")
    by_model = f"{POOL}, model"
    first = 'time_to_first_token_seconds_bucket{start="warm"}'
    return [
        Alert(
            "OllamaRouterModelUnavailable",
            f'max by ({by_model}) ({PREFIX}model_nodes{{state="available"}}) == 0\n'
            f"and {total('requests_total', '15m', by_model)} > 0",
            "5m",
            "critical",
            "No node can serve {{ $labels.model }}",
            "{{ $labels.model }} is asked for, and no node that takes calls has it.",
        ),
        Alert(
            "OllamaRouterModelSingleReplica",
            f'max by ({by_model}) ({PREFIX}model_copies{{kind="declared"}}) > 1\n'
            f'and max by ({by_model}) ({PREFIX}model_nodes{{state="available"}}) == 1',
            "30m",
            "info",
            "One node is left for {{ $labels.model }}",
            "placement.models asks for several copies of {{ $labels.model }}, and one node that takes calls has it.",
        ),
        Alert(
            "OllamaRouterCopiesMissing",
            f'max by ({by_model}) ({PREFIX}model_copies{{kind="standing"}})\n'
            f'< max by ({by_model}) ({PREFIX}model_copies{{kind="declared"}})',
            "30m",
            "warning",
            "{{ $labels.model }} has fewer copies than declared",
            "Copies of {{ $labels.model }} that are ready: {{ $value }}, fewer than placement.models declares.",
        ),
        Alert(
            "OllamaRouterLoadsFail",
            f"{total(_FAILED_LOADS, '15m', by_model)}\n/ {total('model_loads_total', '15m', by_model)} "
            f"{above(at.FAILED_LOADS_SHARE)}",
            "5m",
            "warning",
            "{{ $labels.model }} cannot be loaded",
            "{{ $value | humanizePercentage }} of the loads of {{ $labels.model }} fail: its calls wait for the next try, or "
            "are refused with the node's words.",
        ),
        Alert(
            "OllamaRouterDigestSkew",
            f"max by ({by_model}) ({PREFIX}model_digest_skew) > 1",
            "1h",
            "info",
            "{{ $labels.model }} is not one model everywhere",
            "Under the name {{ $labels.model }} nodes have {{ $value }} different models: who asks twice may get two answers.",
        ),
        Alert(
            "OllamaRouterQueueSaturated",
            f"sum by ({by_model}) ({PREFIX}queue_depth) / max by ({by_model}) ({PREFIX}queue_limit) {above(at.QUEUE_SHARE)}",
            "5m",
            "warning",
            "The line of {{ $labels.model }} is nearly full",
            "{{ $value | humanizePercentage }} of the places in line for {{ $labels.model }} are taken: next come refusals.",
        ),
        Alert(
            "OllamaRouterQueueTimeouts",
            f"{total(_TIMEOUTS)} / {calls} {above(at.QUEUE_TIMEOUT_SHARE)}",
            "5m",
            "critical",
            "Calls wait in line until they are given up",
            "{{ $value | humanizePercentage }} of the calls to {{ $labels.job }} wait as long as they may, and are refused.",
        ),
        Alert(
            "OllamaRouterSlotsExhausted",
            f"sum by ({POOL}) (max by ({POOL}, node) ({PREFIX}node_slots_used))\n"
            f"/ (sum by ({POOL}) (max by ({POOL}, node) ({PREFIX}node_slots)) > 0) {above(at.SLOTS_SHARE)}",
            "15m",
            "warning",
            "The pool has no free slots",
            "{{ $value | humanizePercentage }} of the slots of {{ $labels.job }} are taken, and have been: more nodes are "
            "due, or fewer calls.",
        ),
        Alert(
            "OllamaRouterHighTTFT",
            f"{quantile(0.95, first, '10m', by_model)} {above(at.TTFT_P95_S)}",
            "10m",
            "warning",
            "{{ $labels.model }} begins to answer late",
            "One stream in twenty of {{ $labels.model }} waits {{ $value | humanizeDuration }} or longer for its first "
            "token, though the model is loaded.",
        ),
        Alert(
            "OllamaRouterColdStartsHigh",
            f"{total(_COLD, '30m')} / {total(_STARTS, '30m')} {above(at.COLD_SHARE)}",
            "30m",
            "info",
            "Many calls wait for a load",
            "{{ $value | humanizePercentage }} of the streams wait until their model is loaded: more models are used than "
            "fit into memory.",
        ),
    ]
