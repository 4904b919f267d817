"""What `/api/show` is asked, and how the answer for one name becomes that of another with the same manifest."""

from __future__ import annotations

import json

import pytest

from router.errors import BadRequest, TooLarge
from router.wire.show import SHOW_BODY_BYTES_MAX, ShowBody, ShowWish, read_show, renamed
from tests.fakes.recordings import recording

SHOWN = ShowBody("gemma3:270m", recording("catalog/show").response.body)
MODIFIED = "2026-11-23T01:15:20.821964708Z"


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        (b'{"model":"m"}', ShowWish("m", {})),
        (b'{"name":"m"}', ShowWish("m", {})),
        (b'{"model":"","name":"m"}', ShowWish("m", {})),
        (b'{"model":"a","name":"b"}', ShowWish("a", {})),
        (b'{"MODEL":"a","mo\\u0064el":"b","model":null} and more', ShowWish("b", {})),
        (
            b'{"model":"","system":"","template":"","verbose":false,"options":null,"name":"m"}',
            ShowWish("m", {}),
        ),
        (b'{"model":"m","verbose":true,"unknown":[1]}', ShowWish("m", {"verbose": True})),
        (
            b'{"name":"m","system":"Be \\"brief\\"","options":{"num_ctx":4096}}',
            ShowWish("m", {"system": 'Be "brief"', "options": {"num_ctx": 4096}}),
        ),
    ],
)
def test_a_question_is_read_as_go_reads_it(body: bytes, wish: ShowWish) -> None:
    assert read_show(body) == wish


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"{}", "model is required"),
        (b"null", "model is required"),
        (b'{"model":" "}', "model is required"),
        (b'{"model":', "unexpected EOF"),
        (b"nonsense", "invalid character 'o' in literal null (expecting 'u')"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ShowRequest"),
        (b'{"model":1}', "json: cannot unmarshal number into Go struct field ShowRequest.model of type string"),
        (
            b'{"verbose":"yes","model":1}',
            "json: cannot unmarshal string into Go struct field ShowRequest.verbose of type bool",
        ),
        (b'{"model":"m","x":' + b"[" * 20_000, "invalid character '[' exceeded max depth"),
        (b'{"model":"m","options":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}", "options are nested too deeply"),
    ],
)
def test_a_question_that_is_none_is_refused_with_ollamas_words(body: bytes, text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        read_show(body)
    assert refusal.value.text == text


def test_nesting_beside_the_question_does_not_matter() -> None:
    assert read_show(b'{"x":' + b"[" * 5000 + b"]" * 5000 + b',"model":"m"}') == ShowWish("m", {})


def test_a_question_has_a_largest_size() -> None:
    body = b'{"model":"m","system":"%b"}'
    fits = body % (b"x" * (SHOW_BODY_BYTES_MAX - len(body) + 2))
    assert read_show(fits).model == "m"
    with pytest.raises(TooLarge):
        read_show(fits + b" ")


def test_a_name_keeps_its_own_answer_byte_for_byte() -> None:
    assert renamed(SHOWN, "gemma3:270m", MODIFIED) is SHOWN.body
    assert renamed(SHOWN, "gemma3:270m", "") is SHOWN.body


def test_another_name_of_the_manifest_differs_in_its_comment_and_its_time() -> None:
    body = renamed(SHOWN, "gpt-4:latest", "2026-12-01T00:00:00Z")
    was, now = json.loads(SHOWN.body), json.loads(body)
    assert now["modified_at"] == "2026-12-01T00:00:00Z"
    assert now["modelfile"] == was["modelfile"].replace("# FROM gemma3:270m\n", "# FROM gpt-4:latest\n")
    assert {**now, "modelfile": "", "modified_at": ""} == {**was, "modelfile": "", "modified_at": ""}
    assert renamed(ShowBody("gpt-4:latest", body), "gemma3:270m", MODIFIED) == SHOWN.body


def test_an_answer_of_an_older_version_may_say_neither() -> None:
    assert renamed(ShowBody("a", b'{"modelfile":"FROM x"}'), "b", MODIFIED) == b'{"modelfile":"FROM x"}'
