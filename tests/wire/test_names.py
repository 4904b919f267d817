"""Model names follow Ollama's grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import BadRequest
from router.wire.names import GO_SPACE, parse_name


@pytest.mark.parametrize(
    ("sent", "display"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("LLaMA3.2:1B", "LLaMA3.2:1B"),
        (" gemma3:270m\u00a0", "gemma3:270m"),
        ("library/gemma3:270m", "gemma3:270m"),
        ("registry.ollama.ai/library/gemma3", "gemma3:latest"),
        ("Registry.Ollama.AI/Library/gemma3", "gemma3:latest"),
        ("ns/model:tag", "ns/model:tag"),
        ("hf.co/ns/model:tag", "hf.co/ns/model:tag"),
        ("hf.co/library/model", "hf.co/library/model:latest"),
        ("host:5000/ns/model", "host:5000/ns/model:latest"),
        ("https://hf.co/ns/model:Q4_K_M", "hf.co/ns/model:Q4_K_M"),
        ("http:///ns/model", "ns/model:latest"),
        ("_m", "_m:latest"),
        ("gemma3:270m:local", "gemma3:270m"),
        ("gemma3:LOCAL", "gemma3:latest"),
        ("my-cloud-model", "my-cloud-model:latest"),
        ("m-cloud", "m-cloud:latest"),
        ("m:cloud", "m:cloud"),
        ("m: Cloud", "m:cloud"),
        ("m:20b-cloud", "m:20b-cloud"),
        ("m:20b-CLOUD", "m:20b-cloud"),
        ("m:20b:cloud", "m:20b-cloud"),
        ("host:5000/ns/m-cloud", "host:5000/ns/m-cloud:latest"),
    ],
)
def test_names_are_shown_as_ollama_shows_them(sent: str, display: str) -> None:
    name = parse_name(sent)
    assert (name.display, name.key) == (display, display.lower())


def test_the_source_is_part_of_a_cloud_name_and_no_part_of_a_local_one() -> None:
    assert parse_name("m:20b-cloud").is_cloud
    assert parse_name("m:20b-cloud").key != parse_name("m:20b").key
    assert parse_name("m:local").is_local_only
    assert parse_name("m:local").key == parse_name("m").key
    assert not parse_name("m-cloud").is_cloud


@pytest.mark.parametrize(
    "sent",
    [
        "a b/c//", "<a&b>", ":", "m:", "/m", "m/", ":cloud", ":local", "m:-cloud", "-m", ".m", "ns.x/m", "a/b/c/d",
        "m:t:u", "m@sha256:00", "http://host/m", "m\n:x", "\u00e9", "m\x1c",
        "m" * 81, "m:" + "t" * 81, "n" * 81 + "/m", "h" * 351 + "/n/m",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(sent: str) -> None:
    with pytest.raises(BadRequest, match=r"^invalid model name$"):
        parse_name(sent)


@pytest.mark.parametrize("sent", ["m:cloud:local", "m:local:cloud", "m:20b-cloud:cloud", "m:local:local"])
def test_two_sources_are_refused(sent: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        parse_name(f" {sent} ")
    assert refusal.value.text == f'use either :local or :cloud, not both: "{sent}"'


def test_the_longest_parts_are_names() -> None:
    assert parse_name("h" * 350 + "/" + "n" * 80 + "/" + "m" * 80 + ":" + "t" * 80).tag == "t" * 80


PIECES = ["a", "B", "1", "_", "-", ".", ":", "/", " ", ":cloud", "-cloud", ":local", "http://", "library/"]
NAMES = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)


@given(NAMES.filter(lambda text: text.strip(GO_SPACE)))
def test_the_display_form_is_a_name_of_the_same_model(sent: str) -> None:
    try:
        name = parse_name(sent)
    except BadRequest:
        return
    again = parse_name(name.display)
    assert (again.display, again.key, again.is_cloud) == (name.display, name.key, name.is_cloud)
    assert parse_name(name.key).key == name.key
