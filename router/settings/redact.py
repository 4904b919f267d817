"""Settings as they may be shown: what is or may hold a secret is left out."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

HIDDEN = "(hidden)"
# Members whose values are secrets, or come close: hashes of keys. A name that ends in _file is a path, and shown.
_SECRET = re.compile(r"(^|_)(keys?|tokens?|passwords?|secrets?|headers?|credentials?)(_sha256)?$")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def redacted(settings: BaseModel) -> dict[str, Any]:
    """For JSON. Credentials within URLs go as well."""
    shown: dict[str, Any] = _shown(settings.model_dump(mode="json"))
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: HIDDEN if item and _SECRET.search(name) else _shown(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return _USERINFO.sub(f"{HIDDEN}@", value) if isinstance(value, str) else value
