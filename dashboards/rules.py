"""Recording rules, the alerts of burning budgets that read them, and all groups as they are written."""

from __future__ import annotations

from typing import Any

from dashboards import thresholds as at
from dashboards.alerts import BAD, POOL, VALID, Alert, about_models, about_nodes, about_routers, above, quantile, total


def recording() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = []
    for window in (*at.WINDOWS, f"{at.SLO_DAYS}d"):
        valid = total(f"requests_total{{{VALID}}}", window)
        # `or ... * 0`: without a single failure there is no series, which is not the same as no calls.
        bad = f"({total(f'requests_total{{{BAD}}}', window)} or {valid} * 0)"
        rules.append(_record(f"ollama_router:slo_requests:rate{window}", valid))
        rules.append(_record(f"ollama_router:slo_errors_per_request:ratio_rate{window}", f"{bad} / ({valid} > 0)"))
        warm = 'time_to_first_token_seconds_count{start="warm"}'
        quick = f'time_to_first_token_seconds_bucket{{start="warm", le="{at.TTFT_S!r}"}}'
        share = f"1 - {total(quick, window)} / ({total(warm, window)} > 0)"
        rules.append(_record(f"ollama_router:slo_streams:rate{window}", total(warm, window)))
        rules.append(_record(f"ollama_router:slo_slow_per_stream:ratio_rate{window}", share))
    return rules


def _record(name: str, expr: str) -> dict[str, Any]:
    return {"record": name, "expr": expr}


def burning() -> list[Alert]:
    alerts = []
    for burn in at.BURNS:
        windows = (("long", burn.long), ("short", burn.short))
        alerts.append(
            Alert(
                "OllamaRouterErrorBudgetBurn",
                _burn("slo_errors_per_request", "slo_requests", burn, 1 - at.AVAILABILITY),
                burn.holds,
                burn.severity,
                "Too many calls fail for the availability objective",
                f"Over {burn.long} and {burn.short} the pool fails calls {burn.factor:g} times faster than "
                f"{at.AVAILABILITY:.1%} over {at.SLO_DAYS} days allow.",
                windows,
            )
        )
        alerts.append(
            Alert(
                "OllamaRouterTTFTBudgetBurn",
                _burn("slo_slow_per_stream", "slo_streams", burn, 1 - at.TTFT),
                burn.holds,
                "warning",
                "Too many streams begin late for the latency objective",
                f"Over {burn.long} and {burn.short} streams of loaded models wait longer than {at.TTFT_S:g} s for their "
                f"first token {burn.factor:g} times more often than {at.TTFT:.0%} over {at.SLO_DAYS} days allow.",
                windows,
            )
        )
    return alerts


def _burn(ratio: str, rate: str, burn: at.Burn, budget: float) -> str:
    limit = min(burn.factor * budget, 0.99)  # a share above 1 would never be reached
    return (
        f"ollama_router:{ratio}:ratio_rate{burn.long} > {limit:.4g}\n"
        f"and ollama_router:{ratio}:ratio_rate{burn.short} > {limit:.4g}\n"
        f"and ollama_router:{rate}:rate{burn.long} > {at.CALLS_PER_S_MIN:g}"
    )


def about_redis() -> Alert:
    steps = 'redis_operation_duration_seconds_bucket{operation="steps"}'
    return Alert(
        "OllamaRouterRedisSlow",
        f"{quantile(0.99, steps, '5m', f'{POOL}, instance')} {above(at.REDIS_P99_S)}",
        "10m",
        "warning",
        "The shared store answers {{ $labels.instance }} late",
        "One round trip in a hundred takes {{ $value | humanizeDuration }} or longer: calls wait for it before a node.",
    )


def alerts() -> list[Alert]:
    return [*burning(), *about_routers(), about_redis(), *about_nodes(), *about_models()]


def groups() -> dict[str, Any]:
    parts = {"routers": [*about_routers(), about_redis()], "nodes": about_nodes(), "models": about_models()}
    return {
        "groups": [
            {"name": "ollama-router.slo", "interval": "30s", "rules": recording()},
            {"name": "ollama-router.burn", "rules": [alert.rule() for alert in burning()]},
            *(
                {"name": f"ollama-router.{name}", "rules": [alert.rule() for alert in part]}
                for name, part in parts.items()
            ),
        ]
    }
