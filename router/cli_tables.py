"""Answers of the admin API as tables for people: aligned, numbers to the right, `-` where there is nothing to say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GAP = "   "  # as kubectl has it
NOTHING = "-"
NAMES_SHOWN = 4  # copies of a node in one row; further ones are counted

_NUMBER = re.compile(r"\d+(\.\d+)?s?|(\d+h)?(\d+m)?(\d+s)?")  # durations too

Item = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A column of numbers goes to the right, and its header with it."""
    texts = [[_text(cell) for cell in row] for row in rows]
    columns = list(zip(header, *texts, strict=True))
    widths = [max(map(len, column)) for column in columns]
    are_numbers = [_are_numbers([row[index] for row in rows]) for index in range(len(header))]
    lines = []
    for line in (header, *texts):
        cells = zip(line, widths, are_numbers, strict=True)
        padded = (cell.rjust(width) if is_number else cell.ljust(width) for cell, width, is_number in cells)
        lines.append(GAP.join(padded).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """The two largest units, as people read a clock: 0.4s, 12s, 3m20s, 2h5m."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes_left}m" if minutes_left else f"{hours}h"
    return f"{minutes}m{seconds_left}s" if minutes and seconds_left else f"{minutes}m" if minutes else f"{whole}s"


def nodes(items: Sequence[Item]) -> str:
    """GPUS has a column where anybody has said how many there are."""
    tells_gpus = any(node.get("gpus") is not None for node in items)
    header = ("NAME", "STATE", "VERSION", *(("GPUS",) if tells_gpus else ()), "USED", "SLOTS", "ON DISK", "IN MEMORY")
    rows = [
        (
            node["name"],
            _state(node),
            node["version"],
            *((node.get("gpus"),) if tells_gpus else ()),
            node["used"],
            node["slots"],
            node["on_disk"],
            _few([*_loading(node), *map(_copy, node["copies"])]),
        )
        for node in items
    ]
    return _with_notes(
        table(header, rows), [f"{node['name']}: {one['text']}" for node in items for one in node["thrash"]]
    )


def models(items: Sequence[Item]) -> str:
    """What is declared has a column where anything is, and below the table why it does not stand."""
    declares = any(model["declared"] for model in items)
    declared = ("DECLARED",) if declares else ()
    header = ("MODEL", "NODES", "LOADED", *declared, "USED", "SLOTS", "WAITING", "LONGEST", "ALIASES")
    rows = [
        (
            model["model"],
            model["nodes"],
            model["loaded"],
            *((_declared(model["declared"]),) if declares else ()),
            model["used"],
            model["slots"],
            model["waiting"],
            duration(model["oldest_wait_s"]) if model["waiting"] else "",
            ", ".join(model["aliases"]),
        )
        for model in items
    ]
    told = [told["text"] for model in items for told in (model["declared"], model["skew"]) if told and told["text"]]
    return _with_notes(table(header, rows), told)


def explanation(answer: Item) -> str:
    """The verdict first, then every node that has the model, then the line."""
    is_one = len(answer["targets"]) == 1
    header = ("NODE", *([] if is_one else ["MODEL"]), "STATE", "RANK", "LOAD", "USED", "SLOTS", "CONTEXT", "WHY")
    rows: list[tuple[object, ...]] = [
        (
            one["node"],
            *([] if is_one else [one["model"]]),
            one["state"],
            one["rank"] or None,
            None if one["load"] is None else f"{one['load']:.2f}",
            one["used"] if one["slots"] or one["used"] else None,
            one["slots"] or None,
            one["num_ctx"] or None,
            "; ".join(one["why"]),
        )
        for one in answer["candidates"]
    ]
    parts = [answer["verdict"]["text"]]
    parts += [table(header, rows)] if rows else []
    lines = [_line(line) for line in answer["lines"]]
    lines += [
        f"after {after_s:g} s in line it stands in that of {model} as well" for model, after_s in answer["overflows"]
    ]
    lines += [_text(note) for note in answer["notes"]]
    if answer["is_sampled"]:
        lines.append("so many copies that a call looks at a sample of them: another call may see others")
    return "\n\n".join([*parts, "\n".join(lines)])


def _declared(declared: Item | None) -> str:
    if declared is None:
        return ""
    counts = f"{min(len(declared['standing']), declared['copies'])}/{declared['copies']}"
    return f"{counts} pinned" if declared["is_pinned"] else counts


def order(node: Item) -> str:
    """What `drain` and `resume` say of a node."""
    name = node["name"]
    if not node["is_drained"]:
        return f"{name} is {node['state']} and takes calls"
    if node["is_idle"]:
        return f"{name} drains, and nothing runs there: it may be stopped"
    calls = f"{node['used']} call{'s' if node['used'] != 1 else ''} still run{'s' if node['used'] == 1 else ''} there"
    return f"{name} drains: {calls}" + (f", and it loads {node['loading']}" if node["loading"] else "")


def _with_notes(text: str, notes: Sequence[str]) -> str:
    return "\n\n".join([text, *(["\n".join(map(_text, notes))] if notes else [])])


def _state(node: Item) -> str:
    drained = ["drained"] if node["is_drained"] and node["state"] != "draining" else []
    circuit = [] if node["circuit"] == "closed" else [f"circuit {node['circuit'].replace('_', '-')}"]
    return ", ".join([node["state"], *drained, *circuit])


def _loading(node: Item) -> Iterator[str]:
    if node["loading"] is not None:
        yield f"{node['loading']} (loading)"


def _copy(copy: Item) -> str:
    name = copy["models"][0] if copy["models"] else "?"
    if copy["state"] != "ready":
        return f"{name} (about to go)" if copy["state"] == "on_disk" else f"{name} ({copy['state']})"
    is_open = copy["circuit"] == "open"
    told = (("on CPU too", copy["is_spilled"]), ("circuit open", is_open), ("pinned", copy["is_pinned"]))
    notes = [note for note, holds in told if holds]
    return f"{name} {copy['used']}/{copy['slots']}" + (f" ({', '.join(notes)})" if notes else "")


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _line(line: Item) -> str:
    if not line["depth"]:
        return f"line of {line['model']}: nobody waits"
    most, longest = line["max_waiting"], duration(line["oldest_wait_s"])
    newcomer = f", about {duration(line['estimate_s'])} for a newcomer" if line["estimate_s"] is not None else ""
    return f"line of {line['model']}: {line['depth']} of at most {most} wait, {longest} the longest{newcomer}"


def _are_numbers(cells: Sequence[object]) -> bool:
    """Of a column; empty cells say nothing about it."""
    told = [cell for cell in cells if cell is not None and cell != ""]
    return bool(told) and all(isinstance(cell, int) or _NUMBER.fullmatch(str(cell)) for cell in told)


def _text(cell: object) -> str:
    """One line whatever a node calls its models, and nothing that moves a terminal's cursor."""
    text = NOTHING if cell is None or cell == "" else str(cell)
    return "".join(letter if letter.isprintable() else "?" for letter in text)
