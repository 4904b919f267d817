"""What a simulated model says: deterministic text from a seed, one word a token. Pure."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

ANSWER_TOKENS = 16  # of a call that sets no limit; small, so that tests and demos are quick
THINKING_TOKENS = 12
ECHO_TOKENS = 8
OUTPUT_TOKENS_MAX = 100_000
IMAGE_TOKENS = 256
SCHEMA_DEPTH_MAX = 16
EMBEDDING_DECIMALS = 8

_PROSE = """
the sky is blue because light of short waves scatters more in air than red does and so we see it from every side
while at dusk its path grows long until only warm colours reach us over sea hills and quiet towns where people
stop to look up again before night comes with stars that were there all day
"""
_WORDS = tuple(_PROSE.split())
_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])")


class Kind(StrEnum):
    CONTENT = "content"
    THINKING = "thinking"
    SILENT = "silent"  # held back by the tool parser until the call is whole


@dataclass(frozen=True, slots=True)
class Piece:
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    call_id: str
    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """One piece a token, in order; a tool call goes out when all of them are there."""

    pieces: tuple[Piece, ...]
    tool: ToolCall | None
    reason: str  # stop, length

    def text(self, kind: Kind) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind is kind)


@dataclass(frozen=True, slots=True)
class Brief:
    """What decides an answer. `limit` None: as long as the model likes; prose uses a limit up, as base models do."""

    seed: int
    blob: str
    prompt: tuple[int, ...]
    limit: int | None = None
    stop: tuple[str, ...] = ()
    thinks: bool = False
    echo: str = ""  # said back first, as the recorded base model does
    tool: Mapping[str, object] | None = None  # the function to call, {"name", "parameters"}
    json_schema: Mapping[str, object] | None = None  # {} for any JSON


def compose(brief: Brief) -> Answer:
    rng = random.Random(f"{brief.seed}/{brief.blob}/{zlib.crc32(repr(brief.prompt).encode())}")
    limit = None if brief.limit is None or brief.limit < 0 else min(brief.limit, OUTPUT_TOKENS_MAX)
    tool = None
    if brief.tool is not None:
        tool = _tool_call(brief.tool, rng)
        said = json.dumps({"name": tool.name, "parameters": dict(tool.arguments)})
        pieces = [Piece(Kind.SILENT, text) for text in _PIECE.findall(said)]
    elif brief.json_schema is not None:
        sample = example(brief.json_schema) if brief.json_schema else {word: word for word in rng.sample(_WORDS, 12)}
        pieces = [Piece(Kind.CONTENT, text) for text in _PIECE.findall(json.dumps(sample))]
    else:
        pieces = _prose(rng, limit, brief)
    if limit is not None and len(pieces) > limit:
        pieces, tool, reason = pieces[:limit], None, "length"
    else:
        reason = "length" if limit is not None and len(pieces) == limit and tool is None else "stop"
    cut = _cut_at_stop(pieces, brief.stop)
    return Answer(tuple(pieces if cut is None else cut), tool, reason if cut is None else "stop")


def _prose(rng: random.Random, limit: int | None, brief: Brief) -> list[Piece]:
    thinking = THINKING_TOKENS if brief.thinks else 0
    length = ANSWER_TOKENS + thinking if limit is None else limit
    start = rng.randrange(len(_WORDS))
    echo = brief.echo.split(maxsplit=ECHO_TOKENS)[:ECHO_TOKENS]
    pieces = []
    for index in range(length):
        said = index - thinking
        word = echo[said] if 0 <= said < len(echo) else _WORDS[(start + index * 7) % len(_WORDS)]
        kind = Kind.THINKING if index < thinking else Kind.CONTENT
        pieces.append(Piece(kind, word if index in (0, thinking) else f" {word}"))
    return pieces


def _cut_at_stop(pieces: Sequence[Piece], stops: tuple[str, ...]) -> list[Piece] | None:
    """The pieces up to the first stop string, which itself never goes out; None where none appears."""
    said = ""
    for index, piece in enumerate(pieces):
        before, said = said, said + piece.text
        found = min((at for stop in stops if stop and (at := said.find(stop)) >= 0), default=-1)
        if found >= 0:
            return [*pieces[:index], Piece(piece.kind, said[len(before) : max(found, len(before))])]
    return None


def _tool_call(function: Mapping[str, object], rng: random.Random) -> ToolCall:
    parameters = function.get("parameters")
    arguments = example(parameters) if isinstance(parameters, dict) else {}
    call_id = "call_" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=8))
    return ToolCall(call_id, str(function.get("name", "")), arguments if isinstance(arguments, dict) else {})


def example(schema: Mapping[str, object]) -> object:
    """A value that a JSON schema allows, for the kinds of schema that tools, tests and the clients' own types use."""
    return _example(schema, schema, 0)


def _example(schema: object, root: Mapping[str, object], depth: int) -> object:
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH_MAX:
        return None
    if "const" in schema:
        return schema["const"]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    instead = _instead(schema, root)
    if instead is not None:
        return _example(instead, root, depth + 1)
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(properties, dict):
        return {str(key): _example(value, root, depth + 1) for key, value in properties.items()}
    return [_example(items, root, depth + 1)] if isinstance(items, dict) else _plainest(schema.get("type"))


def _plainest(kind: object) -> object:
    kinds: dict[object, object] = {"string": "Paris", "number": 1.5, "integer": 1, "boolean": True, "array": []}
    return kinds.get(kind, {}) if isinstance(kind, str) else {}


def _instead(schema: Mapping[str, object], root: Mapping[str, object]) -> object:
    """The schema that this one only points at, as pydantic and zod write nested and optional types."""
    if isinstance(reference := schema.get("$ref"), str):
        return _referred(root, reference)
    choices = schema.get("anyOf") or schema.get("oneOf")
    return choices[0] if isinstance(choices, list) else None


def _referred(root: object, reference: str) -> object:
    """`#/$defs/Name`; None where nothing stands there."""
    found: object = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def token_items(text: str) -> tuple[int, ...]:
    """The words of a text as numbers that the prompt cache can compare."""
    return tuple(zlib.crc32(word) for word in text.encode("utf-8", "replace").split())


def embedding(text: str, blob: str, dimensions: int) -> list[float]:
    """A unit vector, the same for the same text and weights; values as a float32 prints."""
    rng = random.Random(f"{blob}/{text}")
    values = [rng.gauss(0.0, 1.0) for _ in range(dimensions)]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [_plain(value / norm) for value in values]


def _plain(value: float) -> float:
    # Python writes exponents below 1e-4, Go's encoder only below 1e-6: stay clear of the difference.
    rounded = round(value, EMBEDDING_DECIMALS)
    return rounded if abs(rounded) >= 1e-4 else 0.0001


def as_float32(value: float) -> float:
    single: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return single


def logprob(token: str, top: int, seed: int) -> dict[str, object]:
    """One entry of `logprobs`, `top` alternatives included, the token itself first."""
    rng = random.Random(f"{seed}/{token}")
    chance = -round(rng.uniform(0.1, 3.0), 9)
    entry = _chance(token, chance)
    if top:
        others = [_chance(f" {rng.choice(_WORDS)}", chance - 0.5 - index) for index in range(top - 1)]
        entry["top_logprobs"] = [_chance(token, chance), *others]
    return entry


def _chance(token: str, chance: float) -> dict[str, object]:
    return {"token": token, "logprob": chance, "bytes": list(token.encode())}
