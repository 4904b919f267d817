"""One round of drawn cases: the same for the same seed, and made as small as it gets where one of them fails."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.case import Case
from tests.fuzz.cases import cases as any_case
from tests.fuzz.house import FuzzHouse


def drawn_cases_hold(house: FuzzHouse, *, seed: int, cases: int, without: Collection[str] = ()) -> None:
    """Raises Broken, with the seed in its notes. `without`: kinds of heads that are left out."""

    @seeded(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=any_case)
    def hold(case: Case) -> None:
        if case.kind.removeprefix("head: ") not in without:
            house.play(case)

    try:
        hold()
    except BaseException as failure:
        failure.add_note(f"seed {seed}, {cases} cases; so many were played, the smaller ones included: {house.played}")
        raise
