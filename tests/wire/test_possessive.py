"""Possessive repeats: the same whatever this Python's own are worth."""

import re

import pytest

from router.wire import possessive as module
from router.wire.possessive import possessive


@pytest.fixture(params=["as this Python needs it", "as a Python with broken ones needs it"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "as this Python needs it":
        monkeypatch.setattr(module, "_WORKS", False)


@pytest.mark.usefixtures("_either_way")
def test_what_was_taken_is_never_given_back() -> None:
    assert re.fullmatch(possessive(b"ab?") + b"ab", b"abab") is None
    assert re.fullmatch(possessive(b"ab?", b"{0,1}") + b"ab", b"abab") is not None


@pytest.mark.usefixtures("_either_way")
def test_a_round_that_fails_half_way_takes_nothing() -> None:
    found = re.match(possessive(rb",(?:[0-9]{1,3}+(?![.0-9])|true)"), b",1,23,4.5,true")
    assert found is not None
    assert found[0] == b",1,23"
