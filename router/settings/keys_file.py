"""The keys file: YAML, `team: [sha256 of a key, ...]`. No message repeats what stands in it: it may be a key."""

from __future__ import annotations

import yaml

from router.settings.teams import NO_DIGEST, NO_KEYS, NO_TEAM_NAME, TEAM_NAME, Keys, is_digest

KEYS_BYTES_MAX = 1024 * 1024  # 14,000 keys


class KeysError(ValueError):
    """`line` counts from 1, 0 for the whole file."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def parse_keys(raw: bytes) -> Keys:
    """Digests in lower case, by team. Refuses with KeysError. An empty file holds no keys."""
    if len(raw) > KEYS_BYTES_MAX:
        raise KeysError(0, f"larger than {KEYS_BYTES_MAX} bytes")
    try:
        # The texts as they stand: 64 decimal digits would become a number.
        root = yaml.compose(raw, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise KeysError(error.problem_mark.line + 1 if error.problem_mark else 0, "is no YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise KeysError(0, "is no YAML") from None
    if root is None:
        return NO_KEYS
    if not isinstance(root, yaml.MappingNode):
        raise KeysError(_line(root), "should hold teams by name, each with a list: 'research: [sha256 of a key, ...]'")
    keys: dict[str, tuple[str, ...]] = {}
    for name, digests in root.value:
        if not isinstance(name, yaml.ScalarNode) or not TEAM_NAME.fullmatch(name.value):
            raise KeysError(_line(name), NO_TEAM_NAME)
        if name.value in keys:
            raise KeysError(_line(name), f"team {name.value} stands here a second time")
        keys[name.value] = _digests(digests)
    return keys


def _digests(node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise KeysError(_line(node), "a team has a list of digests: [sha256 of a key, ...]")
    for item in node.value:
        if not isinstance(item, yaml.ScalarNode) or not is_digest(item.value):
            raise KeysError(_line(item), f"each {NO_DIGEST}")
    return tuple(item.value.lower() for item in node.value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
