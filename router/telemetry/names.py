"""Which names of models and teams become labels, since a client must not be able to make series; and for how long a
model stands beside a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

UNKNOWN = "unknown"  # no node lists it
OTHER = "other"  # listed, but there are too many of them
PAIR_S = 3600.0  # many scrapes, and longer than what rates look back on; models that thrash keep their series

Pair = tuple[str, str]  # a node and a model's label


class ModelNames:
    """Keys that the pool knows, the first `models_max` of them; those that the configuration mentions beyond that."""

    def __init__(self, is_known: Callable[[str], bool], models_max: int, named: Iterable[str]) -> None:
        self._is_known = is_known
        self.models_max = models_max
        self.named = tuple(dict.fromkeys(named))
        self._labels = {key: key for key in self.named}

    def __repr__(self) -> str:
        return f"<ModelNames {len(self._labels) - len(self.named)} of {self.models_max} | {len(self.named)} named>"

    def mention(self, named: Iterable[str], models_max: int) -> None:
        """From here on. What has a label keeps it: a series that ends would look like a model that is gone."""
        self.named = tuple(dict.fromkeys((*self.named, *named)))
        self._labels.update((key, key) for key in self.named)
        self.models_max = models_max

    @property
    def labels(self) -> tuple[str, ...]:
        """All that stand for themselves, in the order of their coming."""
        return tuple(self._labels)

    def label(self, key: str) -> str:
        return self._labels.get(key) or self._admitted(key)

    def is_admitted(self, key: str) -> bool:
        return key in self._labels

    def _admitted(self, key: str) -> str:
        if not self._is_known(key):
            return UNKNOWN
        if len(self._labels) - len(self.named) >= self.models_max:
            return OTHER
        self._labels[key] = key
        return key


class TeamNames:
    """The first `teams_max` teams. They come from the configuration, but over years of reloads there may be many."""

    def __init__(self, teams_max: int) -> None:
        self.teams_max = teams_max
        self._labels: set[str] = set()

    def __repr__(self) -> str:
        return f"<TeamNames {len(self._labels)} of {self.teams_max}>"

    def label(self, team: str) -> str:
        """Empty is a call of which nobody knows whose it is."""
        if not team:
            return UNKNOWN
        if team not in self._labels:
            if len(self._labels) >= self.teams_max:
                return OTHER
            self._labels.add(team)
        return team


class Pairs:
    """Of nodes and models of which something was counted: over when the copy has been gone for PAIR_S. What comes back
    later counts from 0."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen_s: dict[Pair, float] = {}  # when the copy was there last, or the pair was first heard of

    def __repr__(self) -> str:
        return f"<Pairs {len(self._seen_s)}>"

    def over(self, told: Set[Pair], loaded: Set[Pair]) -> set[Pair]:
        now_s, before = self._clock(), self._seen_s
        self._seen_s = {pair: now_s if pair in loaded else before.get(pair, now_s) for pair in told}
        return {pair for pair, seen_s in self._seen_s.items() if now_s - seen_s > PAIR_S}
