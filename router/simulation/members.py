"""Members of a JSON body by Go's rules: keys fold, the last of a repeated key wins, null leaves a field alone. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from router.errors import OptionTypeError
from router.wire.gojson import fold, text_of

Members = Mapping[str, object]
NOTHING: Members = {}

_INTEGERS = ("num_predict", "seed", "top_k", "repeat_last_n", "num_batch", "num_gpu", "num_thread")


def read_members(body: bytes) -> Members:
    """The members of the first value of a body that was already checked; keys folded at the top only."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text_of(body).lstrip(" \t\r\n"))
    except (ValueError, RecursionError):
        return NOTHING
    return folded(value)


def folded(value: object) -> Members:
    if not isinstance(value, dict):
        return NOTHING
    return {fold(key): member for key, member in value.items() if member is not None}


def text_at(members: Members, key: str) -> str:
    value = members.get(key)
    return value if isinstance(value, str) else ""


def int_at(members: Members, key: str) -> int | None:
    value = members.get(key)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62 else None


def list_at(members: Members, key: str) -> list[object]:
    value = members.get(key)
    return value if isinstance(value, list) else []


def texts_at(members: Members, key: str) -> tuple[str, ...]:
    """A string or a list of strings."""
    value = members.get(key)
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def options_of(members: Members) -> Members:
    """`options` of a native call; its keys are a Go map's and do not fold."""
    value = members.get("options")
    options: Members = value if isinstance(value, dict) else NOTHING
    for key in _INTEGERS:
        option = options.get(key)
        if option is not None and (isinstance(option, bool) or not isinstance(option, int | float)):
            raise OptionTypeError(f'option "{key}" must be of type integer')  # recording refused/option-type
    return options
