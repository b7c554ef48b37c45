"""The configuration file: what is taken, what is refused, and that every refusal names place and mend."""

import contextlib
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Config, Frontend, Log, load
from sidecar.config.summary import describe, summary
from sidecar.errors import ConfigurationError

LANES = ("exit", "entry", "research")
CANARY = "sk-proj-CANARY0123456789abcdefCANARY"

EXAMPLE = """
[frontend]
endpoint = "ipc:///run/sidecar/sidecar.sock"
group = "bots"
max_message_bytes = 1_048_576
max_calls_in_flight = 256
queue_max = 512
stall_timeout_s = 5
drain_timeout_s = 30

[[upstream]]
name = "openai"
url = "wss://api.openai.com/v1/responses"
dialect = "responses"
preset = "openai"
credential = "openai"
headers = { "OpenAI-Organization" = "org-..." }
warm_connections = 8
max_connections = 64
calls_per_connection = 1
max_age_s = 3300
compression = "none"

[[upstream]]
name = "xai"
url = "wss://api.x.ai/v1/responses"
dialect = "responses"
preset = "xai"
credential = "xai"

[[route]]
name = "default"
targets = [
  { upstream = "openai", model = "gpt-5-mini", options = { reasoning_effort = "minimal" } },
  { upstream = "xai", model = "grok-4-fast" },
]
timeout_ms = 2000
first_delta_timeout_ms = 1200
idle_timeout_ms = 800
max_output_tokens = 256
store = false
"""
UPSTREAM = '[[upstream]]\nname = "a"\nurl = "wss://a.example/v1"\ndialect = "responses"\n'
ROUTE = '[[route]]\nname = "default"\ntargets = [ { upstream = "a", model = "m" } ]\n'


def write(tmp_path: Path, text: str | bytes) -> Path:
    """The file with this text."""
    path = tmp_path / "sidecar.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def loaded(tmp_path: Path, text: str | bytes, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    """What `load` makes of it."""
    return load(write(tmp_path, text), environ=environ or {}, overrides=overrides.get("flags"))  # type: ignore[arg-type]


def refusal(tmp_path: Path, text: str | bytes, environ: dict[str, str] | None = None) -> str:
    """What `load` says against it."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, text, environ)
    return str(caught.value)


def test_the_documented_example_is_taken_as_it_stands(tmp_path: Path) -> None:
    """The example of the documentation loads, and presets lie under what it says."""
    config = loaded(tmp_path, EXAMPLE)
    assert [upstream.name for upstream in config.upstream] == ["openai", "xai"]
    assert config.upstream[0].max_age_s == 3300
    assert (config.upstream[1].max_age_s, config.upstream[1].pong_timeout_s) == (1380, 15)
    assert config.frontend == Frontend(endpoint="ipc:///run/sidecar/sidecar.sock", group="bots")
    assert config.route[0].targets[0].options == {"reasoning_effort": "minimal"}


def test_a_socket_that_serves_one_model_is_not_shared_by_two(tmp_path: Path) -> None:
    """LiteLLM answers a second model by the first: refused, wherever it is named; over HTTPS each call has its own."""

    def text(url: str, preset: str, *models: str) -> str:
        head = f'[[upstream]]\nname = "u"\nurl = "{url}"\ndialect = "responses"\npreset = "{preset}"\n'
        return head + "".join(
            f'[[route]]\nname = "r{number}"\ntargets = [ {{ upstream = "u", model = "{model}" }} ]\n'
            for number, model in enumerate(models)
        )

    said = refusal(tmp_path, text("wss://h/v1", "litellm", "a", "a", "b"))
    assert "route[2].targets[0].model" in said
    assert "an [[upstream]] of its own" in said
    for url, preset, models in (
        ("wss://h/v1", "litellm", ("a", "a")),
        ("https://h/v1", "litellm", ("a", "b")),
        ("wss://h/v1", "openai", ("a", "b")),
    ):
        assert len(loaded(tmp_path, text(url, preset, *models)).route) == len(models)


def test_an_explicit_key_wins_over_its_preset(tmp_path: Path) -> None:
    """A preset only fills in what the file does not say."""
    text = UPSTREAM + 'preset = "xai"\nmax_age_s = 100\n' + ROUTE
    upstream = loaded(tmp_path, text).upstream[0]
    assert (upstream.max_age_s, upstream.pong_timeout_s) == (100, 15)


def test_a_small_maximum_lowers_the_default_of_warm(tmp_path: Path) -> None:
    """max_connections = 4 alone is no contradiction to a default nobody wrote."""
    assert loaded(tmp_path, UPSTREAM + "max_connections = 4\n" + ROUTE).upstream[0].warm_connections == 4


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """The order of precedence, at one key, layer by layer."""
    text = "[frontend]\nqueue_max = 2\n" + UPSTREAM + ROUTE
    environ = {"SIDECAR_FRONTEND__QUEUE_MAX": "3", "SIDECAR_LOG__LEVEL": "error", "SIDECAR_LOG__CALLS": "false"}
    assert loaded(tmp_path, UPSTREAM + ROUTE).frontend.queue_max == 512
    assert loaded(tmp_path, text).frontend.queue_max == 2
    config = loaded(tmp_path, text, environ)
    assert config.frontend.queue_max == 3
    assert config.log == Log(level="error", calls=False)
    assert loaded(tmp_path, text, environ, flags={"frontend.queue_max": 4}).frontend.queue_max == 4
    assert loaded(tmp_path, text, environ, flags={"frontend": {"queue_max": 5}}).frontend.queue_max == 5
    assert loaded(tmp_path, text, environ, flags={"frontend.queue_max": None}).frontend.queue_max == 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SIDECAR_FRONTEND__QUEUE", "3", "Did you mean `queue_max`?"),
        ("SIDECAR_FRONTEND__QUEUE_MAX", "many", "Expected `int`"),
        ("SIDECAR_FRONTEND__QUEUE_MAX", "-1", ">= 0"),
        ("SIDECAR_UPSTREAM__URL", "wss://x", "in the file only"),
        ("SIDECAR_NONSENSE__X", "1", "frontend, log"),
        ("SIDECAR_LOG__LEVEL", CANARY, "looks like a secret"),
        ("SIDECAR_FRONTEND__ENDPOINT", "tcp://0.0.0.0:1", "ipc://"),
    ],
)
def test_a_wrong_environment_variable_is_named(tmp_path: Path, name: str, value: str, says: str) -> None:
    """The message names the variable (or the key it set), says what is wrong, and shows no secret."""
    message = refusal(tmp_path, UPSTREAM + ROUTE, {name: value})
    assert says in message
    assert name in message or "frontend.endpoint" in message
    assert CANARY not in message


def test_other_variables_of_ours_and_empty_ones_are_left_alone(tmp_path: Path) -> None:
    """SIDECAR_ENDPOINT belongs to the endpoint's own rules; an empty value counts as not set."""
    environ = {"SIDECAR_ENDPOINT": "ipc:///x", "SIDECAR_FRONTEND__GROUP": "", "SIDECARFRONTEND__X": "1"}
    assert loaded(tmp_path, UPSTREAM + ROUTE, environ).frontend.group is None


def test_no_file_says_what_to_write_and_where(tmp_path: Path) -> None:
    """The message holds a configuration that works as it stands."""
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path / "none.toml", environ={})
    message = str(caught.value)
    assert str(tmp_path / "none.toml") in message
    assert "/etc/sidecar/sidecar.toml" in message
    example = message[message.index("[[upstream]]") :]
    assert loaded(tmp_path, example).route[0].name == "default"


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A directory, a FIFO nobody writes to, a path with a NUL, a file everybody can write."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    open_to_all = write(tmp_path, UPSTREAM + ROUTE)
    open_to_all.chmod(0o666)
    for path, says in (
        (tmp_path, "is a directory"),
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "not a path"),
        (tmp_path / "sidecar.toml" / "x", "Not a directory"),
        (open_to_all, "everybody can write it"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            load(path, environ={})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    """Permission denied, with the path."""
    path = write(tmp_path, UPSTREAM + ROUTE)
    path.chmod(0)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        load(path, environ={})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xef\xbb\xbf" + UPSTREAM.encode(), "byte order mark"),
        (("x = 1\n" * 3).encode("utf-16"), "byte order mark"),
        (b'a = "ok"\nb = "\xff"\n', "not UTF-8 (line 2)"),
        (b"x = 1\n" * 2_000_000, "larger than 1 MiB"),
        (b"x = " + b"[" * 5000, "nested too deeply"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"x = \n", "line 1"),
        (b"\x00" * 100, "not valid TOML"),
        (b"[frontend]\nqueue_max = 1\nqueue_max = 2\n", "written twice"),
        (b"[frontend]\n[frontend]\n", "written twice"),
        (b"[frontend]\n" + b".".join([b"a"] * 200) + b" = 1\n", "nested too deeply"),
        (b"", "[[upstream]]"),
        (b"frontend = 5\n", "frontend"),
        (b"upstream = 5\n", "upstream"),
        (b"[upstream]\nname = 'x'\n", "upstream"),
        (b"upstream = [1]\nroute = []\n", "upstream"),
        (b"upstream = []\nroute = []\n", "upstream"),
        (b"[frontend]\ngroup = 2026-01-01\n", "in quotes"),
        (b"[frontend]\nstall_timeout_s = nan\n", "finite"),
        (b"[frontend]\nstall_timeout_s = inf\n", "finite"),
        (b'[frontend]\ngroup = "a\\u0000b"\n', "control character"),
    ],
)
def test_bytes_that_are_no_configuration_get_a_clear_word(tmp_path: Path, text: bytes, says: str) -> None:
    """Whatever lies in the file, the answer is a ConfigurationError that names the file, in bounded memory."""
    tracemalloc.start()
    try:
        message = refusal(tmp_path, text)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
    assert says in message
    assert "sidecar.toml" in message


TOP, UP, RT, TG = "", "upstream", "route", "target"


@pytest.mark.parametrize(
    ("at", "line", "path", "says"),
    [
        (TOP, "[forntend]", "forntend", "Did you mean `frontend`?"),
        (
            TOP,
            "[frontend]\nmax_call_in_flight = 1",
            "frontend.max_call_in_flight",
            "Did you mean `max_calls_in_flight`?",
        ),
        (TOP, "[frontend]\nmax_message_bytes = 10", "frontend.max_message_bytes", ">= 1024"),
        (TOP, "[frontend]\nmax_message_bytes = true", "frontend.max_message_bytes", "Expected `int`"),
        (TOP, '[frontend]\nstall_timeout_s = "5"', "frontend.stall_timeout_s", "Expected `float`"),
        (TOP, "[frontend]\nstall_timeout_s = 0", "frontend.stall_timeout_s", "> 0"),
        (TOP, '[frontend]\nendpoint = "tcp://127.0.0.1:5555"', "frontend.endpoint", "ipc://"),
        (TOP, '[frontend]\nendpoint = "ipc://relative"', "frontend.endpoint", "absolute"),
        (TOP, '[frontend]\nendpoint = "ipc://@abstract"', "frontend.endpoint", "absolute"),
        (TOP, f'[frontend]\nendpoint = "ipc:///{"x" * 107}"', "frontend.endpoint", "107 bytes"),
        (TOP, f'[frontend]\nendpoint = "ipc:///{"x" * 101}"', "frontend.endpoint", "control socket"),
        (TOP, f'[frontend]\nendpoint = "ipc:///{"é" * 60}"', "frontend.endpoint", "107 bytes"),
        (TOP, '[frontend]\nendpoint = "ipc:///a"\ncontrol_endpoint = "ipc:///a"', "frontend.control_endpoint", "same"),
        (TOP, '[frontend]\ngroup = "a b"', "frontend.group", "group"),
        (TOP, "[frontend]\nexit_reserved_calls = 256", "frontend.exit_reserved_calls", "entry and research need"),
        (TOP, "[frontend]\nexit_reserved_calls = -1", "frontend.exit_reserved_calls", ">= 0"),
        (TOP, "[frontend]\nmax_calls_per_minute = 0", "frontend.max_calls_per_minute", ">= 1"),
        (TOP, "[frontend]\nmax_calls_per_minute = 1.5", "frontend.max_calls_per_minute", "int"),
        (TOP, '[frontend]\nhalt_file = ""', "frontend.halt_file", "length"),
        (TOP, '[frontend]\nhalt_file = "halts/"', "frontend.halt_file", "/var/lib/sidecar/halt"),
        (TOP, '[client]\nuser = "*"', "client", "[[client]], in two brackets"),
        (TOP, '[[client]]\nlanes = ["exit"]', "client[0]", "missing required field `user`"),
        (TOP, '[[client]]\nuser = "*"\nlanes = []', "client[0].lanes", '"research"'),
        (TOP, '[[client]]\nuser = "*"\nlanes = ["exits"]', "client[0].lanes", '"research"'),
        (TOP, '[[client]]\nuser = "*"\nlanes = ["exit", "exit"]', "client[0].lanes", "twice"),
        (TOP, '[[client]]\nuser = "*"\nlane = ["exit"]', "client[0].lane", "Did you mean `lanes`?"),
        (TOP, '[[client]]\nuser = "no-such-user-here"', "client[0].user", "as a number"),
        (TOP, '[[client]]\nuser = ""', "client[0].user", '"*"'),
        (TOP, "[[client]]\nuser = -1", "client[0].user", '"*"'),
        (TOP, "[[client]]\nuser = 4294967295", "client[0].user", '"*"'),
        (TOP, "[[client]]\nuser = true", "client[0].user", "Expected `int | str`"),
        (TOP, '[[client]]\nuser = "*"\n[[client]]\nuser = "*"', "client[1].user", "everybody else already"),
        (TOP, '[[client]]\nuser = 0\n[[client]]\nuser = "root"', "client[1].user", "uid 0 already"),
        (TOP, '[[client]]\nuser = "*"\nmax_calls_in_flight = 0', "client[0].max_calls_in_flight", ">= 1"),
        (TOP, '[[client]]\nuser = "*"\nmax_calls_in_flight = 769', "client[0].max_calls_in_flight", "all bots"),
        (TOP, '[[client]]\nuser = "*"\nmax_calls_per_minute = 0', "client[0].max_calls_per_minute", ">= 1"),
        (UP, "breaker = { consecutive_failures = 0 }", "upstream[0].breaker.consecutive_failures", ">= 1"),
        (UP, "breaker = { failure_rate = 1.1 }", "upstream[0].breaker.failure_rate", "<= 1"),
        (UP, "breaker = { slow_rate = 0 }", "upstream[0].breaker.slow_rate", "> 0"),
        (UP, "breaker = { window = 5 }", "upstream[0].breaker.window", "Did you mean `window_s`?"),
        (UP, "breaker = { open_min_s = 31 }", "upstream[0].breaker.open_min_s", "raise open_max_s"),
        (UP, "breaker = { consecutive_failures = 6 }", "upstream[0].retry_budget.attempts", "Raise it to 12"),
        (UP, "retry_budget = { attempts = 9 }", "upstream[0].retry_budget.attempts", "twice"),
        (UP, "retry_budget = { per_minute = 9 }", "upstream[0].retry_budget.per_minute", "per_"),
        (UP, "breaker = 5", "upstream[0].breaker", "breaker = { key = value, ... }, with some of consecutive_failures"),
        (UP, "retry_budget = 5", "upstream[0].retry_budget", "some of attempts"),
        (UP, 'adaptive_concurrency = "yes"', "upstream[0].adaptive_concurrency", "Expected `bool`"),
        (TOP, '[log]\nlevel = "loud"', "log.level", '"debug"'),
        (TOP, '[log]\ncolour = "red"', "log.colour", "Known here"),
        (UP, "warm_connection = 1", "upstream[0].warm_connection", "Did you mean `warm_connections`?"),
        (UP, 'api_key = "x"', "upstream[0].api_key", "`credential` names where it lies"),
        (UP, "warm_connections = 65", "upstream[0].warm_connections", "raise max_connections"),
        (UP, "warm_connections = 9\nmax_connections = 3", "upstream[0].warm_connections", "Lower it"),
        (UP, "calls_per_connection = 33", "upstream[0].calls_per_connection", "<= 32"),
        (UP, "max_age_s = 0", "upstream[0].max_age_s", ">= 1"),
        (UP, 'compression = "gzip"', "upstream[0].compression", '"zstd-stream"'),
        (UP, 'preset = "openia"', "upstream[0].preset", '"openai"'),
        (UP, 'preset = "antropic"', "upstream[0].preset", 'Did you mean "anthropic"?'),
        (UP, 'preset = "mine"', "upstream[0].preset", '"llamacpp", or leave it out'),
        (UP, 'transport = "https"', "upstream[0].transport", "the scheme of `url` says it"),
        (UP, 'transport = "sse"', "upstream[0].transport", "contradicts the wss://"),
        (UP, 'http_version = "3"', "upstream[0].http_version", '"1.1" or "2"'),
        (UP, 'http_version = "2"', "upstream[0].http_version", "no HTTPS"),
        (UP, 'fallback_url = "wss://b.example/v1"', "upstream[0].fallback_url", "an https:// URL"),
        (UP, 'fallback_url = "http://b.example/v1"', "upstream[0].fallback_url", "in clear"),
        (UP, "fallback_warm_connections = 2", "upstream[0].fallback_warm_connections", "no `fallback_url`"),
        (
            UP,
            'fallback_url = "https://b.example/v1"\nfallback_warm_connections = 65',
            "upstream[0].fallback_warm_connections",
            "raise max_connections",
        ),
        (UP, 'proxy = "socks5://p:1"', "upstream[0].proxy", "http://"),
        (UP, 'proxy = "http://u:pw@p:1"', "upstream[0].proxy", "password"),
        (UP, 'proxy = "http://p:1/path"', "upstream[0].proxy", "http://"),
        (UP, 'headers = { Authorization = "x" }', "upstream[0].headers.Authorization", "Use `credential`"),
        (UP, 'headers = { X-API-Key = "x" }', "upstream[0].headers.X-API-Key", "Use `credential`"),
        (UP, 'headers = { Host = "x" }', "upstream[0].headers.Host", "handshake"),
        (UP, 'headers = { Sec-WebSocket-Protocol = "x" }', "upstream[0].headers.Sec-WebSocket-Protocol", "handshake"),
        (UP, 'headers = { "a b" = "x" }', "upstream[0].headers", "name"),
        (UP, 'headers = { "a:" = "x" }', "upstream[0].headers", "name"),
        (UP, 'headers = { X-A = "x\\r\\nY: z" }', "upstream[0].headers.X-A", "line break"),
        (UP, 'headers = { X-A = "é" }', "upstream[0].headers.X-A", "ASCII"),
        (UP, 'headers = { X-A = "1", x-a = "2" }', "upstream[0].headers", "twice"),
        (UP, "headers = { X-A = 1 }", "upstream[0].headers", "Expected `str`"),
        (UP, "credential = 5", "upstream[0].credential", "{ file ="),
        (UP, 'credential = "../openai"', "upstream[0].credential", "{ file ="),
        (UP, 'credential = ""', "upstream[0].credential", "name"),
        (UP, "credential = {}", "upstream[0].credential", "exactly one"),
        (UP, 'credential = { file = "/a", env = "B" }', "upstream[0].credential", "exactly one"),
        (UP, 'credential = { fil = "/a" }', "upstream[0].credential.fil", "Did you mean `file`?"),
        (UP, 'credential = { file = "" }', "upstream[0].credential.file", "empty"),
        (UP, 'credential = { env = "A=B" }', "upstream[0].credential.env", "OPENAI_API_KEY"),
        (UP, "credential = { command = [] }", "upstream[0].credential.command", "program"),
        (UP, 'credential = { command = "pass" }', "upstream[0].credential.command", "Expected `array"),
        (UP, 'tls = { key_file = "k.pem" }', "upstream[0].tls", "certificate_file"),
        (UP, 'tls = { ca_file = "" }', "upstream[0].tls.ca_file", "empty"),
        (UP, 'tls = { ca = "x" }', "upstream[0].tls.ca", "ca_file"),
        (RT, "timeout_ms = 0", "route[0].timeout_ms", "> 0"),
        (RT, "timeout = 5", "route[0].timeout", "Did you mean `timeout_ms`?"),
        (RT, 'store = "no"', "route[0].store", "Expected `bool`"),
        (RT, "max_attempts = 0", "route[0].max_attempts", ">= 1"),
        (RT, 'backup_lanes = ["exit", "exit"]', "route[0].backup_lanes", "twice"),
        (RT, 'backup_lanes = ["all"]', "route[0].backup_lanes", "[] for none"),
        (RT, "backup_quantile = 1", "route[0].backup_quantile", "<= 0.999"),
        (RT, "backup_min_ms = 2001", "route[0].backup_min_ms", "raise backup_max_ms"),
        (RT, "return_ramp_s = -1", "route[0].return_ramp_s", ">= 0"),
        (RT, "max_output_tokens = 0", "route[0].max_output_tokens", ">= 1"),
        (RT, 'unsupported_options = "ignore"', "route[0].unsupported_options", '"drop"'),
        (TG, 'upstream = "b", model = "m"', "route[0].targets[0].upstream", "no upstream is named 'b'"),
        (TG, 'upstream = "a", model = ""', "route[0].targets[0].model", "length"),
        (TG, 'upstream = "a"', "route[0].targets[0]", "model"),
        (TG, 'upstream = "a", model = "m", modle = "m"', "route[0].targets[0].modle", "Did you mean `model`?"),
        (TG, 'upstream = "a", model = "m", options = { temprature = 1 }', "options.temprature", "`temperature`"),
        (TG, 'upstream = "a", model = "m", options = { temperature = 3 }', "options.temperature", "<= 2"),
        (TG, 'upstream = "a", model = "m", options = { seed = 1 }', "route[0].targets[0].options", '"drop"'),
        (
            TG,
            'upstream = "a", model = "m", options = { extra_body = { stream = true } }',
            "options.extra_body",
            "stream",
        ),
        (TG, 'upstream = "a", model = "m" }, { upstream = "a", model = "m"', "route[0].targets[1]", "twice"),
    ],
)
def test_a_wrong_value_names_its_place_and_its_mend(tmp_path: Path, at: str, line: str, path: str, says: str) -> None:
    """File, key path and what to write instead stand in every message."""
    route = f'[[route]]\nname = "default"\ntargets = [ {{ {line} }} ]\n' if at == TG else ROUTE
    text = (f"{line}\n" if at == TOP else "") + UPSTREAM + (f"{line}\n" if at == UP else "")
    message = refusal(tmp_path, text + route + (f"{line}\n" if at == RT else ""))
    assert "sidecar.toml: " in message
    assert path in message
    assert says in message


@pytest.mark.parametrize(
    ("dialect", "more", "path", "says"),
    [
        ("responses", 'transport = "websocket"', "transport", 'https:// is "sse"'),
        ("responses", 'fallback_url = "https://b.example/v1"', "fallback_url", "HTTPS already"),
        ("responses", 'compression = "zstd-stream"', "compression", "for WebSockets"),
        ("responses", 'headers = { x-api-key = "x" }', "headers.x-api-key", "Authorization: Bearer ..."),
        ("messages", 'headers = { authorization = "x" }', "headers.authorization", "x-api-key: ..."),
        ("massages", "", "dialect", 'Did you mean "messages"?'),
    ],
)
def test_what_https_does_not_know(tmp_path: Path, dialect: str, more: str, path: str, says: str) -> None:
    """Keys of the other transport are refused, and a header's mend says how this dialect's secret goes out."""
    text = UPSTREAM.replace("wss://a.example/v1", "https://a.example/v1").replace('"responses"', f'"{dialect}"')
    message = refusal(tmp_path, text + more + "\n" + ROUTE)
    assert f"upstream[0].{path}: " in message
    assert says in message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ws://api.example/v1", "loopback"),
        ("ws://127.0.0.1.evil.example/", "loopback"),
        ("ws://localhost.evil.example/", "loopback"),
        ("ws://10.0.0.1/", "loopback"),
        ("ftp://api.example/v1", "an https:// one"),
        ("http://api.example/v1", "loopback"),
        ("https://user@host/", "password"),
        ("https://host/?key=q7q7", "`credential`"),
        ("api.example", "URL"),
        ("wss://", "no host"),
        ("wss://:443/", "no host"),
        ("wss://host:0/", "port 0"),
        ("wss://host:99999/", "port"),
        ("wss://host:x/", "port"),
        ("wss://[::1/", "URL"),
        ("wss://user@host/", "password"),
        ("wss://user:hunter2@host/", "password"),
        ("wss://host/#frag", "fragment"),
        ("wss://host/#", "fragment"),
        ("wss://host/?api-key=q7q7", "`credential`"),
        ("wss://host/?a=1&TOKEN=q7q7", "`credential`"),
        ("wss://ho st/", "URL"),
        ("wss://höst/", "xn--"),
        ("wss://host/" + "x" * 3000, "too long"),
        ("", "URL"),
    ],
)
def test_a_url_that_must_not_be_dialled(tmp_path: Path, url: str, says: str) -> None:
    """No key in clear, no user, no fragment, no nonsense; the message does not repeat the URL."""
    text = UPSTREAM.replace("wss://a.example/v1", url) + ROUTE
    message = refusal(tmp_path, text)
    assert "upstream[0].url" in message
    assert says in message
    assert "hunter2" not in message
    assert "q7q7" not in message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "LOCALHOST"])
def test_ws_is_for_loopback(tmp_path: Path, host: str) -> None:
    """This machine may be spoken to in clear: the simulator and tests do."""
    assert loaded(tmp_path, UPSTREAM.replace("wss://a.example", f"ws://{host}:8080") + ROUTE).upstream[0].url


@pytest.mark.parametrize(
    "line",
    [
        f'credential = "{CANARY}"',
        f'credential = "{"k" * 65}"',
        'credential = "0123456789abcdef0123456789abcdef"',
        f'credential = {{ command = ["echo", "{CANARY}"] }}',
        f'credential = {{ env = "{CANARY}" }}',
        f'headers = {{ X-Key = "{CANARY}" }}',
        f'headers = {{ "{CANARY}" = "x" }}',
        f'preset = "{CANARY}"',
        f'"{CANARY}" = 1',
        f'tls = {{ ca_file = "{CANARY}" }}',
        f"{CANARY} = ",
        f'name2 = "{CANARY}\\q"',
        f'max_age_s = "{CANARY}"',
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    """Wherever it stands, the refusal shows nothing of it, and neither does the error's repr or its cause."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, UPSTREAM + line + "\n" + ROUTE)
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert CANARY not in told
    assert "CANARY" not in told
    assert "kkkk" not in told
    assert "89abcdef" not in told


def test_names_are_unique(tmp_path: Path) -> None:
    """Two upstreams or two routes of one name are a mistake, and the second one is named."""
    assert "upstream[1].name" in refusal(tmp_path, UPSTREAM + UPSTREAM + ROUTE)
    assert "route[1].name" in refusal(tmp_path, UPSTREAM + ROUTE + ROUTE)


def test_dropping_what_a_dialect_lacks_is_the_routes_choice(tmp_path: Path) -> None:
    """unsupported_options = "drop" takes a target whose dialect has no such option."""
    route = ROUTE.replace('model = "m"', 'model = "m", options = { seed = 1 }') + 'unsupported_options = "drop"\n'
    assert loaded(tmp_path, UPSTREAM + route).route[0].targets[0].options == {"seed": 1}


def test_relative_file_names_are_seen_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory decides nothing."""
    monkeypatch.chdir("/")
    text = UPSTREAM + 'tls = { ca_file = "ca.pem" }\ncredential = { file = "/etc/key" }\n' + ROUTE
    upstream = loaded(tmp_path, text).upstream[0]
    assert upstream.tls.ca_file == str(tmp_path / "ca.pem")
    assert upstream.credential is not None
    assert not isinstance(upstream.credential, str)
    assert upstream.credential.file == "/etc/key"


def test_what_http_1_1_carries(tmp_path: Path) -> None:
    """Where nothing but HTTP/1.1 can be had, no more is promised than one call per connection, and it is said."""
    for version, url, at_once, notes in (
        ("auto", "http://127.0.0.1:8787", 4, 1),
        ("1.1", "https://a.example", 4, 1),
        ("2", "http://127.0.0.1:8787", 32, 0),
        ("auto", "https://a.example", 32, 0),
    ):
        keys = f'max_connections = 4\ncalls_per_connection = 8\nhttp_version = "{version}"\n'
        config = loaded(tmp_path, UPSTREAM.replace("wss://a.example", url) + keys + ROUTE)
        sums = describe(config)
        assert sums["routes"][0]["calls_at_once"] == at_once
        assert sum("HTTP/1.1 carries one call" in note for note in sums["warnings"]) == notes
        assert f"at most 4 connections of {at_once // 4}," in summary(config)


def test_what_it_adds_up_to(tmp_path: Path) -> None:
    """`describe` counts calls at once, bounded by the daemon's own limit, and `summary` says it in a line."""
    config = loaded(tmp_path, EXAMPLE)
    assert describe(config)["routes"][0]["calls_at_once"] == 64
    assert "default: 64 calls at once" in summary(config)
    assert "group bots may connect" in summary(config)
    assert describe(config)["warnings"] == []
    small = loaded(tmp_path, EXAMPLE, {"SIDECAR_FRONTEND__MAX_CALLS_IN_FLIGHT": "10"})
    assert describe(small)["routes"][0]["calls_at_once"] == 10


def test_what_clients_backups_and_the_reserve_add_up_to(tmp_path: Path) -> None:
    """Who may do what, what is kept for exits, when a call is sent twice; nothing of it where nothing is limited."""
    plain = summary(loaded(tmp_path, UPSTREAM + ROUTE))
    assert "256 in flight, 32 of them for exits only, 512 more wait" in plain
    assert "at most 3 attempts and 256 tokens; backup requests for exit after 50 to 2000 ms" in plain
    assert "everybody else" not in plain
    rules = '[[client]]\nuser = 7\nlanes = ["research"]\nmax_calls_in_flight = 64\n'
    config = loaded(tmp_path, "[frontend]\nmax_calls_per_minute = 600\n" + UPSTREAM + ROUTE + rules)
    assert "uid 7: lanes research; 64 calls at once and 600 calls a minute" in summary(config)
    assert "everybody else: lanes exit, entry, research; 600 calls a minute" in summary(config)
    assert [client["uid"] for client in describe(config)["clients"]] == [7, "*"]
    config = loaded(tmp_path, UPSTREAM + ROUTE + "backup_lanes = []\n" + rules)
    assert "no backup requests" in summary(config)
    assert "everybody else: lanes exit, entry, research; no limit of its own" in summary(config)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("max_attempts = 1\n", "neither retries nor backup requests"),
        ("backup_min_ms = 2000\n", "calls end before that"),
        ('[[client]]\nuser = "*"\nlanes = ["entry"]\n', "no client may use that lane"),
    ],
)
def test_what_cannot_come_about_is_noted(tmp_path: Path, more: str, says: str) -> None:
    """Legal, and probably not meant."""
    assert says in "\n".join(describe(loaded(tmp_path, UPSTREAM + ROUTE + more))["warnings"])


def test_what_is_legal_and_probably_not_meant_is_noted(tmp_path: Path) -> None:
    """Notes, not errors: a limit of the service overrun, nothing warm, a route nobody reaches."""
    text = (
        UPSTREAM
        + 'preset = "xai"\nmax_age_s = 1500\ncalls_per_connection = 4\nwarm_connections = 0\n'
        + '[[upstream]]\nname = "b"\nurl = "wss://b.example"\ndialect = "chat"\ncalls_per_connection = 2\n'
        + ROUTE.replace("default", "other")
        + "store = true\n"
    )
    notes = "\n".join(describe(loaded(tmp_path, text))["warnings"])
    for words in (
        'named "default"',
        "1500 s",
        "runs 1 at once",
        "handshake",
        "no route leads",
        "echoes `id`",
        "keeps the",
    ):
        assert words in notes


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_a_configuration_error(noise: bytes) -> None:
    """Nothing else comes out of `load`, whatever lies in the file."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigurationError):
        load(write(Path(folder), noise), environ={})


values = st.recursive(
    st.none().map(lambda _: "nan")
    | st.integers(-(1 << 70), 1 << 70).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.sampled_from(
        ["true", '""', '"x"', '"wss://h"', "1979-05-27", "07:32:00", "[]", "{}", '"\\u0000"', '"\\U0010ffff"']
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(inner, max_size=3).map(
            lambda items: (
                "{"
                + ", ".join(f"{key} = {item}" for key, item in zip(("file", "name", "model"), items, strict=False))
                + "}"
            )
        )
    ),
    max_leaves=6,
)
keys = st.sampled_from(
    ["name", "url", "dialect", "credential", "headers", "tls", "targets", "endpoint", "group", "max_age_s"]
)
heads = st.sampled_from(["[frontend]", "[[upstream]]", "[[route]]", "[log]", "[upstream]", "[[frontend]]", "[x.y]", ""])


@given(st.lists(st.tuples(heads, st.dictionaries(keys, values, max_size=4)), max_size=5), st.booleans())
def test_any_tables_are_a_configuration_or_a_configuration_error(
    tables: list[tuple[str, dict[str, str]]], complete: bool
) -> None:
    """Values of every kind in every place: refused in words, or taken."""
    text = "\n".join(head + "\n" + "\n".join(f"{k} = {v}" for k, v in table.items()) for head, table in tables)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigurationError):
        config = load(write(Path(folder), (UPSTREAM + ROUTE if complete else "") + text), environ={})
        assert summary(config)


def test_an_eighth_is_kept_for_exits(tmp_path: Path) -> None:
    """Unless said otherwise; also of a limit that the environment sets, and none of a limit below eight."""
    assert loaded(tmp_path, UPSTREAM + ROUTE).frontend.reserved_for_exit == 32
    assert (
        loaded(tmp_path, UPSTREAM + ROUTE, {"SIDECAR_FRONTEND__MAX_CALLS_IN_FLIGHT": "1"}).frontend.reserved_for_exit
        == 0
    )
    assert (
        loaded(tmp_path, UPSTREAM + ROUTE, {"SIDECAR_FRONTEND__EXIT_RESERVED_CALLS": "5"}).frontend.reserved_for_exit
        == 5
    )


def test_a_user_becomes_a_uid(tmp_path: Path) -> None:
    """By name or number, once and for all when the file is loaded; "*" stays, and a number needs no account."""
    text = UPSTREAM + ROUTE + '[[client]]\nuser = "root"\nlanes = ["exit"]\n[[client]]\nuser = 4200000000\n'
    clients = loaded(tmp_path, text + '[[client]]\nuser = "*"\nmax_calls_per_minute = 7\n').client
    assert [client.user for client in clients] == [0, 4_200_000_000, "*"]
    assert [client.lanes for client in clients] == [("exit",), LANES, LANES]
    assert clients[2].max_calls_per_minute == 7


def test_rules_of_clients_stand_in_the_file_only(tmp_path: Path) -> None:
    """As upstreams and routes do."""
    with pytest.raises(ConfigurationError, match="in the file only"):
        loaded(tmp_path, UPSTREAM + ROUTE, {"SIDECAR_CLIENT__USER": "root"})


def test_a_relative_halt_file_is_seen_from_the_configuration(tmp_path: Path) -> None:
    """Not from the daemon's working directory; one from the environment is absolute, or refused."""
    text = '[frontend]\nhalt_file = "stop"\n' + UPSTREAM + ROUTE
    assert loaded(tmp_path, text).frontend.halt_file == str(tmp_path / "stop")
    with pytest.raises(ConfigurationError, match="absolute path"):
        loaded(tmp_path, text, {"SIDECAR_FRONTEND__HALT_FILE": "stop"})
