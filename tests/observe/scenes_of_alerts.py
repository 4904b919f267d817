"""For each alert what must fire it and what must leave it quiet, as promtool's series: `start+step x count`, an interval each."""

from __future__ import annotations

from dataclasses import dataclass, field

Series = dict[str, str]

JOB = {"namespace": "ai", "job": "ollama-router"}


@dataclass(frozen=True, slots=True)
class Scene:
    """`labels` are those of the alert beside severity; `at` when to look, from the series' beginning; `value` what its
    description says of `$value`."""

    fires: Series
    quiet: Series
    at: str
    labels: dict[str, str] = field(default_factory=lambda: dict(JOB))
    interval: str = "1m"
    value: str = ""


def of(name: str, **labels: str) -> str:
    """A series of one replica."""
    pairs = {**JOB, "instance": "r-1", **labels}
    return f"ollama_router_{name}{{{', '.join(f'{key}={value!r}' for key, value in pairs.items())}}}".replace("'", '"')


def calls(outcome: str, code: str, model: str = "m") -> str:
    return of("requests_total", route="api_chat", model=model, outcome=outcome, code=code)


def streams(le: str, start: str = "warm") -> str:
    return of("time_to_first_token_seconds_bucket", route="api_chat", model="m", start=start, le=le)


def count(start: str) -> str:
    return of("time_to_first_token_seconds_count", route="api_chat", model="m", start=start)


def attempts(outcome: str) -> str:
    return of("upstream_requests_total", node="gpu-1", model="m", outcome=outcome)


def loads(result: str) -> str:
    return of("model_loads_total", node="gpu-1", model="m", reason="line", result=result)


LONG = {"1h": "4h", "6h": "12h", "1d": "2d", "3d": "5d"}
INTERVAL = {"1h": "1m", "6h": "5m", "1d": "5m", "3d": "5m"}  # not above the 5 minutes that a sample lasts
SHORT = {"1h": "5m", "6h": "30m", "1d": "2h", "3d": "6h"}


def burn(long: str) -> dict[str, str]:
    return {**JOB, "long": long, "short": SHORT[long]}


def failing(bad: int, good: int) -> Series:
    """Calls an interval, for 1,500 intervals."""
    return {calls("upstream_error", "502"): f"0+{bad}x1500", calls("ok", "200"): f"0+{good}x1500"}


def late(slow: int, quick: int) -> Series:
    return {streams("2.5"): f"0+{quick}x1500", count("warm"): f"0+{quick + slow}x1500"}


ERRORS = {
    (long, severity): Scene(
        failing(bad, 100 - bad),
        # 4xx and clients that leave are no failures of ours.
        {
            calls("ok", "200"): "0+100x1500",
            calls("rejected", "429"): "0+50x1500",
            calls("cancelled", "499"): "0+50x1500",
        },
        LONG[long],
        burn(long),
        INTERVAL[long],
    )
    for long, severity, bad in (
        ("1h", "critical", 10),
        ("6h", "critical", 5),
        ("1d", "warning", 3),
        ("3d", "warning", 1),
    )
}
FIRST_TOKENS = {
    (long, "warning"): Scene(late(slow, 100 - slow), late(1, 99), LONG[long], burn(long), INTERVAL[long])
    for long, slow in (("1h", 80), ("6h", 40), ("1d", 20), ("3d", 8))
}

SCENES: dict[str, Scene] = {
    "OllamaRouterDown": Scene(
        {'up{namespace="ai", job="ollama-router", instance="r-1"}': "0x30"},
        {'up{namespace="ai", job="ollama-router", instance="r-1"}': "0x30",
         'up{namespace="ai", job="ollama-router", instance="r-2"}': "1x30"},
        "10m",
    ),
    "OllamaRouterWatchdogAbsent": Scene({}, {of("build_info", version="1"): "1x60"}, "20m", {}),
    "OllamaRouterReplicasLow": Scene(
        {'kube_deployment_status_replicas_available{deployment="ollama-router"}': "1x60",
         'kube_deployment_spec_replicas{deployment="ollama-router"}': "2x60"},
        {'kube_deployment_status_replicas_available{deployment="ollama-router"}': "2x60",
         'kube_deployment_spec_replicas{deployment="ollama-router"}': "2x60"},
        "20m", {"deployment": "ollama-router"},
    ),
    "OllamaRouterReplicasDisagree": Scene(
        {of("discovery_nodes", source="static"): "3x60", of("discovery_nodes", source="static", instance="r-2"): "2x60"},
        {of("discovery_nodes", source="static"): "3x60", of("discovery_nodes", source="static", instance="r-2"): "3x60"},
        "20m", {**JOB, "source": "static"},
    ),
    "OllamaRouterDegradedMode": Scene(
        {of("degraded_mode"): "1x60"}, {of("degraded_mode"): "0x60"}, "20m", {**JOB, "instance": "r-1"}
    ),
    "OllamaRouterRedisDown": Scene({of("redis_up"): "0x60"}, {of("redis_up"): "1x60"}, "20m"),
    "OllamaRouterRedisSlow": Scene(
        {of("redis_operation_duration_seconds_bucket", operation="steps", le="0.05"): "0+90x60",
         of("redis_operation_duration_seconds_bucket", operation="steps", le="0.1"): "0+100x60",
         of("redis_operation_duration_seconds_bucket", operation="steps", le="+Inf"): "0+100x60"},
        {of("redis_operation_duration_seconds_bucket", operation="steps", le="0.05"): "0+100x60",
         of("redis_operation_duration_seconds_bucket", operation="steps", le="+Inf"): "0+100x60"},
        "30m", {**JOB, "instance": "r-1"}, value="95ms",
    ),
    "OllamaRouterNoLeader": Scene(
        {of("leader"): "0x30", of("leader", instance="r-2"): "0x30"},
        {of("leader"): "0x30", of("leader", instance="r-2"): "1x30"},
        "10m",
    ),
    "OllamaRouterConfigReloadFailed": Scene(
        {of("config_last_reload_successful"): "0x60"},
        {of("config_last_reload_successful"): "1x60"},
        "20m", {**JOB, "instance": "r-1"},
    ),
    "OllamaRouterEventLoopLag": Scene(
        {of("event_loop_lag_seconds_bucket", le="0.1"): "0+90x60", of("event_loop_lag_seconds_bucket", le="0.25"): "0+100x60",
         of("event_loop_lag_seconds_bucket", le="+Inf"): "0+100x60"},
        {of("event_loop_lag_seconds_bucket", le="0.1"): "0+100x60", of("event_loop_lag_seconds_bucket", le="0.25"): "0+100x60",
         of("event_loop_lag_seconds_bucket", le="+Inf"): "0+100x60"},
        "30m", {**JOB, "instance": "r-1"}, value="235ms",
    ),
    "OllamaRouterNoNodes": Scene(
        {of("discovery_nodes", source="static"): "2x30", of("node_up", node="gpu-1"): "0x30",
         of("node_up", node="gpu-2"): "0x30"},
        {of("discovery_nodes", source="static"): "2x30", of("node_up", node="gpu-1"): "0x30",
         of("node_up", node="gpu-2"): "1x30"},
        "10m",
    ),
    "OllamaRouterNodesDownMany": Scene(
        {of("node_up", node="gpu-1"): "0x30", of("node_up", node="gpu-2"): "0x30", of("node_up", node="gpu-3"): "1x30"},
        {of("node_up", node="gpu-1"): "0x30", of("node_up", node="gpu-2"): "1x30", of("node_up", node="gpu-3"): "1x30"},
        "10m", value="66.67%",
    ),
    "OllamaRouterNodeDown": Scene(
        {of("node_up", node="gpu-1"): "0x30", of("node_up", node="gpu-2"): "1x30"},
        # One replica that cannot reach it is that replica's affair.
        {of("node_up", node="gpu-1"): "0x30", of("node_up", node="gpu-1", instance="r-2"): "1x30"},
        "10m", {**JOB, "node": "gpu-1"},
    ),
    "OllamaRouterUpstreamErrorsHigh": Scene(
        {attempts("runner_died"): "0+10x60", attempts("ok"): "0+90x60"},
        {attempts("runner_died"): "0+1x60", attempts("ok"): "0+99x60", attempts("busy"): "0+50x60"},
        "20m", {**JOB, "node": "gpu-1"}, value="10%",
    ),
    "OllamaRouterCircuitOpen": Scene(
        {of("circuit_state", node="gpu-1", model="m", state="open"): "1 1 _ _ 1x30",
         of("circuit_state", node="gpu-1", model="m", state="half_open"): "_ _ 1 1 _x30"},
        {of("node_up", node="gpu-1"): "1x30"},
        "15m", {**JOB, "node": "gpu-1", "model": "m"},
    ),
    "OllamaRouterModelsThrash": Scene(
        # Every replica tells of the same pair.
        {of("thrash_pairs", node="gpu-1"): "1x60", of("thrash_pairs", node="gpu-1", instance="r-2"): "1x60"},
        {of("thrash_pairs", node="gpu-1"): "0x20 1x10 0x30", of("thrash_pairs", node="gpu-2"): "0x60"},
        "30m", {**JOB, "node": "gpu-1"}, value="1",
    ),
    "OllamaRouterSlotsOversubscribed": Scene(
        {of("slots_oversubscribed_total", node="gpu-1"): "1+1x90"},
        {of("slots_oversubscribed_total", node="gpu-1"): "0x20 8x70"},  # once, when the store was back
        "60m", {**JOB, "node": "gpu-1"},
    ),
    "OllamaRouterCopySpilled": Scene(
        {of("copy_cpu_bytes", node="gpu-1", model="m"): "3221225472x120",
         of("node_model_vram_bytes", node="gpu-1", model="m"): "1024x120"},
        # A node without a GPU has everything there.
        {of("copy_cpu_bytes", node="cpu-1", model="m"): "3221225472x120",
         of("node_model_vram_bytes", node="cpu-1", model="m"): "0x120"},
        "90m", {**JOB, "node": "gpu-1", "model": "m"}, value="3Gi",
    ),
    "OllamaRouterDiscoveryStale": Scene(
        # One replica hears nothing any more, and does not know it.
        {of("discovery_last_sync_timestamp_seconds", source="kubernetes"): "0x60",
         of("discovery_last_sync_timestamp_seconds", source="kubernetes", instance="r-2"): "0+60x60",
         of("discovery_up", source="kubernetes"): "1x60"},
        # Four minutes without a word are a watch that is quiet: then it begins anew.
        {of("discovery_last_sync_timestamp_seconds", source="kubernetes"): "0x3 240x3 480x3 720x3 960x3 1200x3",
         of("discovery_up", source="kubernetes"): "1x60"},
        "20m", {**JOB, "source": "kubernetes"},
    ),
    "OllamaRouterNodeVersionSkew": Scene(
        {of("node_info", node="gpu-1", version="0.33.0"): "1x120", of("node_info", node="gpu-2", version="0.32.0"): "1x120"},
        {of("node_info", node="gpu-1", version="0.33.0"): "1x120", of("node_info", node="gpu-2", version=""): "1x120"},
        "90m",
    ),
    "OllamaRouterModelUnavailable": Scene(
        {of("model_nodes", model="m", state="available"): "0x60", calls("rejected", "503"): "0+10x60"},
        {of("model_nodes", model="m", state="available"): "0x60", calls("ok", "200"): "7x60"},  # nobody wants it
        "30m", {**JOB, "model": "m"},
    ),
    "OllamaRouterModelSingleReplica": Scene(
        {of("model_copies", model="m", kind="declared"): "2x60", of("model_nodes", model="m", state="available"): "1x60"},
        {of("model_copies", model="m", kind="declared"): "2x60", of("model_nodes", model="m", state="available"): "2x60"},
        "45m", {**JOB, "model": "m"},
    ),
    "OllamaRouterCopiesMissing": Scene(
        {of("model_copies", model="m", kind="declared"): "2x60", of("model_copies", model="m", kind="standing"): "1x60"},
        {of("model_copies", model="m", kind="declared"): "2x60", of("model_copies", model="m", kind="standing"): "2x60"},
        "45m", {**JOB, "model": "m"}, value="1",
    ),
    "OllamaRouterLoadsFail": Scene(
        {loads("oom"): "0+3x60", loads("ok"): "0+1x60"},
        {loads("failed"): "0+1x60", loads("ok"): "0+3x60"},
        "30m", {**JOB, "model": "m"}, value="75%",
    ),
    "OllamaRouterDigestSkew": Scene(
        {of("model_digest_skew", model="m"): "2x120"},
        {of("model_nodes", model="m", state="available"): "2x120"},
        "90m", {**JOB, "model": "m"}, value="2",
    ),
    "OllamaRouterQueueSaturated": Scene(
        {of("queue_depth", model="m"): "60x30", of("queue_depth", model="m", instance="r-2"): "40x30",
         of("queue_limit", model="m"): "110x30", of("queue_limit", model="m", instance="r-2"): "110x30"},
        {of("queue_depth", model="m"): "60x30", of("queue_limit", model="m"): "110x30"},
        "10m", {**JOB, "model": "m"}, value="90.91%",
    ),
    "OllamaRouterQueueTimeouts": Scene(
        {of("rejections_total", model="m", reason="queue_timeout"): "0+5x30", calls("ok", "200"): "0+95x30"},
        {of("rejections_total", model="m", reason="queue_timeout"): "0x30", calls("ok", "200"): "0+95x30"},
        "15m", value="5.263%",
    ),
    "OllamaRouterSlotsExhausted": Scene(
        {of("node_slots", node="gpu-1"): "4x60", of("node_slots_used", node="gpu-1"): "4x60"},
        {of("node_slots", node="gpu-1"): "0x60", of("node_slots_used", node="gpu-1"): "0x60"},
        "30m", value="100%",
    ),
    "OllamaRouterHighTTFT": Scene(
        {streams("5.0"): "0+80x60", streams("7.5"): "0+100x60", streams("+Inf"): "0+100x60"},
        {streams("5.0"): "0+100x60", streams("7.5"): "0+100x60", streams("+Inf"): "0+100x60",
         streams("5.0", "cold"): "0x60", streams("+Inf", "cold"): "0+100x60"},
        "30m", {**JOB, "model": "m"}, value="6.875s",
    ),
    "OllamaRouterColdStartsHigh": Scene(
        {count("cold"): "0+30x120", count("warm"): "0+70x120"},
        {count("cold"): "0+10x120", count("warm"): "0+90x120"},
        "90m", value="30%",
    ),
}  # fmt: skip
