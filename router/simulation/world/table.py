"""Results as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]

COLUMNS: Sequence[tuple[str, Callable[[Results], str]]] = (
    ("policy", lambda r: str(r["policy"])),
    ("served", lambda r: f"{r['served']}"),
    ("refused", lambda r: f"{r['refused']}"),
    ("gave up", lambda r: f"{r['gave_up']}"),
    ("broken", lambda r: f"{r['broken']}"),
    ("ttft p50", lambda r: f"{r['ttft_s']['p50']:.2f}"),
    ("p95", lambda r: f"{r['ttft_s']['p95']:.2f}"),
    ("p99", lambda r: f"{r['ttft_s']['p99']:.2f}"),
    ("wait p95", lambda r: f"{r['wait_s']['p95']:.2f}"),
    ("<= 5 s", lambda r: f"{100 * r['within_5s']:.1f} %"),
    ("loads", lambda r: f"{r['loads']}"),
    ("loading s", lambda r: f"{r['loading_s']:.0f}"),
    ("evictions", lambda r: f"{r['evictions']}"),
    ("tokens/s", lambda r: f"{r['output_tps']:.1f}"),
    ("saved tokens", lambda r: f"{r['prompt_tokens_saved']}"),
    ("jain", lambda r: "-" if r["jain"] is None else f"{r['jain']:.3f}"),
)


def table(results: Sequence[Results]) -> str:
    """Aligned, and a Markdown table at once. Seconds; percentiles count a lost call as the client's whole patience."""
    rows = [[name for name, _ in COLUMNS], *([show(result) for _, show in COLUMNS] for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(_aligned(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, figures to the right."""
    return [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def findings(results: Sequence[Results], patience_s: float) -> list[str]:
    """How ours stands to the best rival and to what no policy beats by much; empty where one of them did not run."""
    by_name = {result["policy"]: result for result in results}
    ours, floor = by_name.get("ours"), by_name.get("floor")
    rivals = [result for result in results if result["policy"] not in ("ours", "floor")]
    if ours is None:
        return []
    p95 = ours["ttft_s"]["p95"]
    found = []
    if rivals:
        best = min(rivals, key=lambda result: (result["ttft_s"]["p95"], result["ttft_s"]["p50"]))
        best_p95 = best["ttft_s"]["p95"]
        worst = ", the patience of its clients" if best_p95 >= patience_s else ""
        ratio = p95 / best_p95 if best_p95 else 1.0
        found.append(f"p95 is {ratio:.2f} of the best rival's ({best['policy']}: {best_p95:.2f} s{worst})")
    if floor is not None and floor["ttft_s"]["p95"]:
        found.append(f"p95 is {p95 / floor['ttft_s']['p95']:.2f} of the floor's ({floor['ttft_s']['p95']:.2f} s)")
    least = by_name.get("least_connections")
    if least is not None and least["loads"]:
        share = ours["loads"] / least["loads"]
        found.append(f"loads are {share:.2f} of least_connections's ({ours['loads']} against {least['loads']})")
    return found
