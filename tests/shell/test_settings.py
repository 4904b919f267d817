"""What an operator says becomes settings; what he gets wrong becomes one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from router.discovery.kubernetes import Selection
from router.fleet.node import NodeSpec
from router.meaning import discovery_sources
from router.policy.alias import Overrides
from router.policy.placement import Mode
from router.settings import ConfigError, Settings, aliases_from, host_port, load_settings, node_specs, redacted
from router.settings.load import setting_paths, variable_of
from router.settings.yaml_file import CONFIG_BYTES_MAX


def problems_of(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> list[str]:
    """Without the file's directory."""
    path = tmp_path / "router.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(str(path), environ=environ)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def with_nodes(*nodes: object) -> tuple[NodeSpec, ...]:
    return node_specs(load_settings(overrides={"nodes": list(nodes)}).settings)


def problem_with(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(overrides=overrides)
    return "\n".join(caught.value.problems)


# --- where values come from


def test_command_line_wins_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: file\nlisten: 127.0.0.1:1\nline: {max_wait_s: 1, max_waiting_per_model: 2}\n")
    environ = {"OLLAMA_ROUTER_POOL": "environment", "OLLAMA_ROUTER_LINE__MAX_WAIT_S": "7"}

    settings = load_settings(str(path), {"pool": "command-line"}, environ).settings

    assert settings.pool == "command-line"
    assert settings.line.max_wait_s == 7
    assert settings.line.max_waiting_per_model == 2
    assert settings.listen == "127.0.0.1:1"
    assert settings.metrics_listen == "0.0.0.0:9464"


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("pool: from-file\n")
    assert load_settings(environ={"OLLAMA_ROUTER_CONFIG": str(path)}).settings.pool == "from-file"


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_ROUTER_POOL", "elsewhere")
    assert Settings().pool == "default"


def test_every_plain_setting_can_be_said_in_the_environment() -> None:
    samples = {
        "nodes": "gpu-1",
        "cors.origins": "https://chat.example.com",
        "discovery.dns.hosts": "ollama-headless",
        "discovery.kubernetes.namespaces": "llm",
        "discovery.kubernetes.service_names": "ollama",
        "aliases": '{"gpt-4": "qwen3"}',
        "line.models": '{"qwen3": {"max_waiting": 1}}',
        "tracing.endpoint": "http://collector:4318",
        "placement.models": '[{"name": "qwen3"}]',
    }
    for path in setting_paths():
        if "[]" in path or "<" in path:
            continue
        value = samples.get(path) or str(_default_of(path))
        pair = ("tls.cert_file", "tls.key_file")
        together = dict.fromkeys(pair if path in pair else (path,), value)
        if path == "placement.models":
            together["placement.mode"] = "managed"
        loaded = load_settings(environ={variable_of(one): said for one, said in together.items()})
        assert loaded.warnings == (), path


def _default_of(path: str) -> object:
    value: object = Settings()
    for step in path.split("."):
        value = getattr(value, step)
    return value


def test_nodes_in_the_environment_are_a_comma_list_or_json() -> None:
    for value in ("gpu-1, http://gpu-2:11434,", '["gpu-1", {"url": "http://gpu-2:11434"}]'):
        settings = load_settings(environ={"OLLAMA_ROUTER_NODES": value}).settings
        assert [node.url for node in settings.nodes] == ["http://gpu-1:11434", "http://gpu-2:11434"]


def test_nodes_of_the_environment_replace_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("nodes: [one, two]\n")
    settings = load_settings(str(path), environ={"OLLAMA_ROUTER_NODES": "three"}).settings
    assert [node.name for node in settings.nodes] == ["three:11434"]


def test_an_unknown_variable_warns_and_is_ignored() -> None:
    loaded = load_settings(environ={"OLLAMA_ROUTER_LIMITS__BODYBYTES": "1", "OLLAMA_ROUTER_BANANA": "red", "HOME": "/"})
    assert loaded.settings == Settings()
    assert loaded.warnings == (
        "environment: OLLAMA_ROUTER_BANANA is no setting and is ignored",
        "environment: OLLAMA_ROUTER_LIMITS__BODYBYTES is no setting and is ignored; "
        "did you mean OLLAMA_ROUTER_LIMITS__BODY_BYTES?",
    )


def test_variables_that_kubernetes_makes_for_services_do_not_warn() -> None:
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_11434_TCP", "PORT_11434_TCP_ADDR")
    environ = {f"OLLAMA_ROUTER_{name}": "x" for name in names} | {"OLLAMA_ROUTER_METRICS_SERVICE_HOST": "x"}
    assert load_settings(environ=environ).warnings == ()


# --- mistakes


def test_each_mistake_is_a_line_with_file_line_and_path(tmp_path: Path) -> None:
    text = """\
pool: main
limits:
  bodybytes: 3
  body_bytes: 1
nodes:
  - gpu-1
  - url: http://gpu-2:11434
    slot: 3
max_wait_s: 3
placement: {mode: by_hand}
"""
    assert problems_of(text, tmp_path) == [
        "router.yaml:8: nodes[1].slot: unknown setting; did you mean nodes[1].slots?",
        "router.yaml:10: placement.mode: input should be 'observe', 'on_demand' or 'managed', not \"by_hand\"",
        "router.yaml:4: limits.body_bytes: input should be greater than or equal to 1024, not 1",
        "router.yaml:3: limits.bodybytes: unknown setting; did you mean limits.body_bytes?",
        "router.yaml:9: max_wait_s: unknown setting; did you mean line.max_wait_s?",
    ]


def test_mistakes_in_what_is_declared_are_told_with_their_place(tmp_path: Path) -> None:
    text = """\
nodes:
  - {url: gpu-1, name: gpu-1}
placement:
  mode: managed
  models:
    - {name: "qwen3:8b", copies: 2}
    - {name: "QWEN3:8b"}
"""
    assert problems_of(text, tmp_path) == ["router.yaml:7: placement.models[1].name: qwen3:8b is declared twice"]
    text = text.replace('QWEN3:8b"', 'llama3.2", nodes: [gpu-1, gpu-l]')
    assert problems_of(text, tmp_path) == [
        "router.yaml:7: placement.models[1].nodes[1]: no node is called 'gpu-l'; did you mean gpu-1?"
    ]
    assert "placement.models[0].copies" in problem_with(placement={"models": [{"name": "x", "copies": 0}]})
    assert "is never loaded" in problem_with(placement={"models": [{"name": "gpt-oss:120b-cloud"}]})


@pytest.mark.parametrize("mode", ["observe", "on_demand"])
def test_what_is_declared_for_a_mode_that_keeps_nothing_is_a_warning(mode: str, tmp_path: Path) -> None:
    """A mode that is turned down for an hour should not take the declarations with it."""
    path = tmp_path / "router.yaml"
    path.write_text(f"placement:\n  mode: {mode}\n  models: [{{name: x}}]\n")
    loaded = load_settings(str(path))
    assert loaded.warnings == (f"{path}:3: placement.models: nothing is kept in memory while placement.mode is {mode}",)
    path.write_text("placement:\n  mode: managed\n  models: [{name: x}]\n")
    assert load_settings(str(path)).warnings == ()


def test_a_mistake_in_the_environment_is_told_so(tmp_path: Path) -> None:
    environ = {"OLLAMA_ROUTER_RETRY__ATTEMPTS": "9"}
    assert problems_of("retry: {attempts: 1}", tmp_path, environ) == [
        'environment: retry.attempts: input should be less than or equal to 3, not "9"'
    ]
    assert problems_of("", tmp_path, {"OLLAMA_ROUTER_ALIASES": "{gpt"})[0].startswith(
        "environment: OLLAMA_ROUTER_ALIASES should be JSON"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pool: [", "router.yaml:1: "),
        ("- a\n- b\n", "router.yaml:1: should hold settings by name, such as 'nodes:'"),
        ("pool: a\npool: b\n", "router.yaml:2: 'pool' stands here a second time"),
        ("line: {max_wait_s: 1, max_wait_s: 2}", "router.yaml:1: 'max_wait_s' stands here a second time"),
        ("pool: \x00", "router.yaml: "),
        ("[" * 5000, "router.yaml: nested too deeply"),
        ("nodes: &a [*a]", "router.yaml"),
        ("pool: 2020-99-99", "router.yaml: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(text: str, problem: str, tmp_path: Path) -> None:
    (only,) = problems_of(text, tmp_path)
    assert only.startswith(problem)
    assert "\n" not in only


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(str(tmp_path / "nowhere.yaml"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_settings(str(large))


@given(raw=st.binary(max_size=60) | st.text("abn:-[]{}&*!|>#\"' \n\t0", max_size=60).map(str.encode))
def test_no_file_gives_a_traceback(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    problems: tuple[str, ...] = ()
    try:
        load_settings(str(path))
    except ConfigError as error:
        problems = error.problems
    assert all(problem and "\n" not in problem for problem in problems)


def test_a_group_with_nothing_but_comments_is_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("line:\n  # max_wait_s: 3\nnodes:\n")
    assert load_settings(str(path)).settings == Settings()


# --- nodes


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls"),
    [
        ("gpu-1", "gpu-1", 11434, False),
        ("gpu-1:9000", "gpu-1", 9000, False),
        ("http://gpu-1:11434/", "gpu-1", 11434, False),
        ("http://gpu-1", "gpu-1", 80, False),
        ("https://gpu-1", "gpu-1", 443, True),
        ("HTTP://GPU-1:1", "gpu-1", 1, False),
        ("http://[fd00::1]:11434", "fd00::1", 11434, False),
        ("[::1]", "::1", 11434, False),
        ("10.0.0.7:11434", "10.0.0.7", 11434, False),
    ],
)
def test_a_node_is_read_as_ollama_reads_its_own_host(url: str, host: str, port: int, is_tls: bool) -> None:
    (spec,) = with_nodes(url)
    assert (spec.host, spec.port, spec.is_tls) == (host, port, is_tls)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://gpu-1",
        "http://",
        "http://gpu-1/v1",
        "http://gpu-1?x=1",
        "http://gpu-1:99999",
        "http://gpu-1:x",
        "gpu-1:0",
        "http://gpu 1",
        "fd00::1",
    ],
)
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    assert problem_with(nodes=[url]).startswith("nodes[0].url: ")


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    problem = problem_with(nodes=["http://user:s3cret@gpu-1:11434"])
    assert "credentials" in problem
    assert "s3cret" not in problem


def test_a_node_says_all_it_is() -> None:
    models = {"Qwen2.5-Coder:14b": {"slots": 2}}
    node = {"url": "gpu-1", "name": "one", "slots": 4, "models": models, "node_backlog": 1, "vram_gib": 24, "weight": 2}
    (spec,) = with_nodes(node)
    assert (spec.name, spec.slots, spec.backlog, spec.weight) == ("one", 4, 1, 2.0)
    assert spec.vram_bytes == 24 * 1024**3
    assert spec.slots_of(("qwen2.5-coder:14b",)) == 2
    assert spec.slots_of(("llama3.2:latest",)) == 4


def test_two_nodes_share_neither_url_nor_name() -> None:
    assert problem_with(nodes=["gpu-1", "http://gpu-1:11434"]) == "nodes: two nodes have the url http://gpu-1:11434"
    twins = [{"url": "gpu-1", "name": "a"}, {"url": "gpu-2", "name": "a"}]
    assert problem_with(nodes=twins) == "nodes: two nodes have the name a"


# --- names, addresses, durations


def test_model_names_are_kept_by_their_keys() -> None:
    settings = load_settings(
        overrides={
            "aliases": {"GPT-4": "Qwen3:8b", "fast": "gpt-4"},
            "line": {"models": {"Llama3.2": {"max_waiting": 64}}},
        }
    ).settings
    aliases = aliases_from(settings.aliases)
    assert {alias: aliases.candidates(alias) for alias in aliases.names} == {
        "gpt-4:latest": ("qwen3:8b",),
        "fast:latest": ("qwen3:8b",),
    }
    assert settings.line.models["llama3.2:latest"].max_waiting == 64


def test_an_alias_says_all_it_means() -> None:
    alias = {
        "targets": [{"model": "qwen3:8b", "weight": 9}, {"model": "gemma3:12b"}],
        "fallbacks": ["llama3.2"],
        "overrides": {"temperature": 0.2, "num_ctx": 8192},
        "teams": {"default": {"targets": [{"model": "qwen2.5-coder:14b"}]}},
    }
    settings = load_settings(overrides={"aliases": {"gpt-4o": alias}}).settings
    aliases = aliases_from(settings.aliases)
    assert aliases.candidates("gpt-4o:latest", "others") == ("qwen3:8b", "gemma3:12b", "llama3.2:latest")
    assert aliases.candidates("gpt-4o:latest") == ("qwen2.5-coder:14b", "llama3.2:latest")
    assert {target.overrides for target in aliases.targets("gpt-4o:latest")} == {Overrides(0.2, 8192)}
    assert Settings(**settings.model_dump()) == settings, "what is dumped is read again"


@pytest.mark.parametrize(
    ("alias", "problem"),
    [
        ("x: x", "2: aliases.x: leads back to itself: x:latest -> x:latest"),
        ("x: a b", "2: aliases.x: 'a b': invalid model name"),
        ("x: 3", "2: aliases.x: should be a model's name, or an object with targets"),
        ("x: {targets: []}", "2: aliases.x.targets: names no model"),
        ("x: {targets: [m, {model: n}]}", "2: aliases.x.targets[0]: input should be a valid dictionary"),
        ("x: {targets: [{model: m}, {model: a b}]}", "2: aliases.x.targets[1].model: 'a b': invalid model name"),
        ("x: {targets: [{model: m, weight: 0}]}", "2: aliases.x.targets[0].weight: input should be greater than 0"),
        ("x: {targets: [{model: m, weight: .inf}]}", "2: aliases.x.targets[0].weight: input should be less than"),
        ("x: {targets: [{model: m}],\n    fallbacks: [n, x]}", "3: aliases.x.fallbacks[1]: leads back to itself"),
        ("x: {targets: [{model: m}], teams: {t: {targets: []}}}", "2: aliases.x.teams.t.targets: names no model"),
        ("x: {targets: [{model: m}], teams: {' ': {}}}", "2: aliases.x: a team's name is empty"),
        (
            "x: {targets: [{model: m}], overflow_after_s: 3}",
            "2: aliases.x.overflow_after_s: leads nowhere: name a fallback",
        ),
        (
            "x: {targets: [{model: m}], fallbacks: [n], overflow_after_s: -1}",
            "2: aliases.x.overflow_after_s: input should",
        ),
        (
            "x: {targets: [{model: m}], fallbacks: [n], overflow_after_s: .inf}",
            "2: aliases.x.overflow_after_s: input should",
        ),
        ("x: {targets: [{model: m}], overrides: {num_ctx: 0}}", "2: aliases.x.overrides.num_ctx: input should be"),
    ],
)
def test_a_mistake_in_an_alias_is_told_with_line_and_path(alias: str, problem: str, tmp_path: Path) -> None:
    (only,) = problems_of(f"aliases:\n  {alias}\n", tmp_path)
    assert only.startswith(f"router.yaml:{problem}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://[fe80::1%25eth0]:11434", "has no zone (%)"),
        ("[fe80::1%eth0]:11434", "has no zone (%)"),
        ("http://user:a%40b@gpu-1", "carries no credentials"),
    ],
)
def test_a_zone_is_refused_and_nothing_secret_repeated(url: str, words: str) -> None:
    problem = problem_with(nodes=[url])
    assert words in problem
    assert "a%40b" not in problem


def test_one_ipv6_address_is_one_text() -> None:
    assert "two nodes have the url http://[::1]:11434" in problem_with(nodes=["http://[::1]:11434", "[0:0::1]"])
    assert with_nodes("https://[2001:DB8:0:0::1]")[0].authority == "[2001:db8::1]:443"
    assert "is no IPv6 address" in problem_with(listen="[::g]:1")


@pytest.mark.parametrize("address", ["0.0.0.0:11435", "[::]:11435", "*:11435", "localhost:0", "[fe80::1%eth0]:1"])
def test_addresses_are_host_and_port(address: str) -> None:
    assert load_settings(overrides={"listen": address}).settings.listen == address


@pytest.mark.parametrize("address", ["", "11435", ":11435", "host", "host:", "host:x", "::1:80", "h:65536", "a b:1"])
def test_other_addresses_are_refused(address: str) -> None:
    assert problem_with(listen=address).startswith("listen: ")


def test_an_address_loses_its_brackets_for_the_socket() -> None:
    assert host_port("[::]:11435") == ("::", 11435)
    assert host_port("*:11435") == ("", 11435)
    assert host_port("0.0.0.0:9464") == ("0.0.0.0", 9464)


def test_clients_and_metrics_do_not_share_a_port() -> None:
    assert "different ports" in problem_with(listen="[::]:1", metrics_listen="[::]:1")
    assert "metrics_listen and admin.listen" in problem_with(metrics_listen="127.0.0.1:9465")
    load_settings(overrides={"listen": "[::]:0", "metrics_listen": "[::]:0"})


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LocalHost:1"])
def test_the_admin_api_listens_on_loopback_without_more_ado(listen: str) -> None:
    assert load_settings(overrides={"admin": {"listen": listen}}).settings.admin.token_file is None


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9465", "[::]:9465", "*:9465", "10.0.0.1:9465", "gpu-1:9465", "localhost.lan:9465"]
)
def test_elsewhere_the_admin_api_listens_only_with_a_token(listen: str) -> None:
    problem = problem_with(admin={"listen": listen})
    assert problem.startswith(f"admin: listen is {listen}, which other machines reach: give admin.token_file")
    load_settings(overrides={"admin": {"listen": listen, "token_file": "/run/secrets/token"}})


def test_the_variables_of_the_commands_are_no_unknown_settings() -> None:
    environ = {"OLLAMA_ROUTER_ADMIN_URL": "http://127.0.0.1:9465", "OLLAMA_ROUTER_ADMIN__TOKEN_FILE": "/run/token"}
    loaded = load_settings(environ=environ)
    assert loaded.warnings == ()
    assert loaded.settings.admin.token_file == "/run/token"


def test_settings_are_shown_without_what_they_hide() -> None:
    class Teams(BaseModel):
        keys_sha256: tuple[str, ...] = ("c0ffee",)
        keys_file: str = "/etc/keys.yaml"
        url: str = "redis://user:word@redis:6379"
        password: str = ""

    shown = redacted(Teams())
    assert shown == {
        "keys_sha256": "(hidden)",
        "keys_file": "/etc/keys.yaml",
        "url": "redis://(hidden)@redis:6379",
        "password": "",
    }
    assert redacted(Settings(aliases={"gpt-4": "m"}))["line"]["max_wait_s"] == 300.0


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), (90, 90), ("90", 90), ("500ms", 0.5)])
def test_the_longest_keep_alive_is_seconds_or_a_duration(text: object, seconds: float) -> None:
    assert load_settings(overrides={"guard": {"keep_alive_max": text}}).settings.guard.keep_alive_max == seconds


@pytest.mark.parametrize("text", ["30q", "-1m", "", "inf", -1, None])
def test_a_keep_alive_without_an_end_is_refused(text: object) -> None:
    assert problem_with(guard={"keep_alive_max": text}).startswith("guard.keep_alive_max: ")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1, "soon"])
def test_no_time_is_endless_or_empty(value: object) -> None:
    assert problem_with(timeouts={"idle_s": value}).startswith("timeouts.idle_s: ")


def test_placement_observes_or_loads_on_demand() -> None:
    assert Settings().placement.mode is Mode.ON_DEMAND
    assert load_settings(overrides={"placement": {"mode": "observe"}}).settings.placement.mode is Mode.OBSERVE


# --- the schema


def test_every_setting_says_what_it_does() -> None:
    undescribed = [path for path, field in setting_paths().items() if not (field.description or "").endswith(".")]
    assert undescribed == []


def test_the_schema_admits_a_url_alone_as_a_node() -> None:
    schema = json.loads(json.dumps(Settings.model_json_schema()))
    assert {"type": "string"} in schema["properties"]["nodes"]["items"]["anyOf"]
    assert schema["additionalProperties"] is False


# --- discovery


def test_discovery_is_off_and_says_what_it_would_look_for() -> None:
    settings = Settings()
    assert discovery_sources(settings) == {}
    assert settings.discovery.kubernetes.label_selector == "app.kubernetes.io/name=ollama"


def test_discovery_may_be_said_by_the_environment() -> None:
    environ = {
        "OLLAMA_ROUTER_DISCOVERY__DNS__ENABLED": "true",
        "OLLAMA_ROUTER_DISCOVERY__DNS__HOSTS": "ollama-headless, other.llm.svc:8080",
        "OLLAMA_ROUTER_DISCOVERY__KUBERNETES__ENABLED": "true",
        "OLLAMA_ROUTER_DISCOVERY__KUBERNETES__NAMESPACES": "llm,lab",
    }
    sources = discovery_sources(load_settings(environ=environ).settings)
    assert sources == {
        "dns": (("ollama-headless", 11434), ("other.llm.svc", 8080)),
        "kubernetes": Selection(("llm", "lab"), "app.kubernetes.io/name=ollama", (), "http", 11434),
    }


@pytest.mark.parametrize(
    ("discovery", "text"),
    [
        (
            {"dns": {"enabled": True}},
            "discovery.dns: enabled is true and hosts names nothing: name a headless Service, or switch it off",
        ),
        ({"dns": {"hosts": ["http://a"]}}, "discovery.dns.hosts[0]: 'http://a' should be HOST or HOST:PORT"),
        (
            {"kubernetes": {"namespaces": ["Prod"]}},
            "discovery.kubernetes.namespaces[0]: 'Prod' is no name in Kubernetes: small letters, digits and - only",
        ),
        (
            {"kubernetes": {"namespaces": ["*", "llm"]}},
            "discovery.kubernetes: namespaces names * and others: * is everywhere already",
        ),
        (
            {"kubernetes": {"enabled": True, "label_selector": ""}},
            "discovery.kubernetes: label_selector and service_names are both empty: every Service would be taken for "
            "Ollama",
        ),
        (
            {"kubernetes": {"label_selector": "a;b"}},
            "discovery.kubernetes.label_selector: 'a;b' is no label selector, such as app.kubernetes.io/name=ollama",
        ),
        (
            {"kubernetes": {"service_names": ["../x"]}},
            "discovery.kubernetes.service_names[0]: '../x' is no name in Kubernetes: small letters, digits and - only",
        ),
        (
            {"kubernetes": {"port_name": "HTTP"}},
            "discovery.kubernetes.port_name: 'HTTP' is no port's name: small letters, digits and -, at most 15",
        ),
        (
            {"kubernetes": {"labelSelector": "a=b"}},
            "discovery.kubernetes.labelSelector: unknown setting; did you mean discovery.kubernetes.label_selector?",
        ),
    ],
)
def test_a_mistake_in_discovery_is_one_line(discovery: dict[str, Any], text: str) -> None:
    assert problem_with(discovery=discovery) == text
