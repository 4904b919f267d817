"""Whatever comes over the clients' port is answered or ended, and leaves nothing behind. `make fuzz` draws on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import heads
from tests.fuzz.case import Case, End
from tests.fuzz.cases import GOOD
from tests.fuzz.draw import drawn_cases_hold
from tests.fuzz.house import RSS_GROWTH_BYTES_MAX, FuzzHouse, fuzz_house

SEED, CASES = 20_261_124, 300


@pytest.fixture(scope="module")
def house() -> Iterator[FuzzHouse]:
    with fuzz_house() as opened:
        yield opened
        opened.rest()


@pytest.mark.parametrize("kind", sorted(heads.ALL))
def test_each_broken_head_is_answered_as_rfc_9112_asks(house: FuzzHouse, kind: str) -> None:
    good = GOOD[len(kind) % len(GOOD)]
    raw, expect, requests = heads.ALL[kind](good.path.encode(), good.request.body)
    behind_the_head = raw.find(b"\r\n\r\n") + 4
    for cuts in ((), (behind_the_head,)):
        house.play(Case(f"head: {kind}", raw, expect, End.STAY, requests, cuts, good.path))


def test_drawn_cases_are_answered_or_ended_and_leave_nothing_behind(house: FuzzHouse) -> None:
    house.warm_up()
    before = house.rss_bytes()
    drawn_cases_hold(house, seed=SEED, cases=CASES)
    house.rest()
    assert house.rss_bytes() - before < RSS_GROWTH_BYTES_MAX
