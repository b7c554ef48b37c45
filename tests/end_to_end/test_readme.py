"""README's words are commands: each block is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.cli.dispatch import COMMANDS
from sidecar.cli.show import WHAT
from sidecar.config import load
from sidecar.errors import CODES
from tests.end_to_end.processes import Processes, route, upstream

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_configuration_is_one(tmp_path: Path) -> None:
    """The file that README shows is taken as it stands."""
    toml, ways = blocks("toml")
    path = tmp_path / "sidecar.toml"
    path.write_text(toml)
    config = load(path, environ={})
    assert [target.upstream for target in config.route[0].targets] == ["openai", "xai"]
    path.write_text(f'{ways}[[route]]\nname = "default"\ntargets = [ {{ upstream = "openai", model = "m" }} ]\n')
    openai, anthropic = load(path, environ={}).upstream
    assert (openai.transport, openai.fallback_url) == ("websocket", "https://api.openai.com/v1/responses")
    assert (anthropic.transport, anthropic.dialect) == ("sse", "messages")


@pytest.mark.parametrize("number", [0, 1], ids=["ten lines", "REQ"])
def test_the_bots_work(number: int) -> None:
    """Both bots of README get their answer from a real daemon."""
    code = blocks("python")[number]
    with Processes() as processes:
        port = processes.relay("--text", "BUY", "--ttft-ms", "2", "--cadence-ms", "1")
        processes.daemon(upstream("sim", f"ws://127.0.0.1:{port}/v1/responses") + route("sim"))
        bot = processes.run_script("-c", code, processes.endpoint, SIDECAR_ENDPOINT=processes.endpoint)
        assert bot.returncode == 0, bot.stderr
        assert bot.stdout.startswith("BUY")


def test_every_command_and_code_is_told() -> None:
    """The tables of commands and codes have every one that there is, and no other."""
    for command in COMMANDS:
        assert f"`sidecar {command}" in README, command
    told = set(
        re.findall(r"`([a-z_]+)`", README[README.index("## When a call fails") : README.index("## Which upstreams")])
    )
    assert set(CODES) <= told
    assert {word for word in told if "_" in word} - set(CODES) <= {"retry_after_ms", "first_delta"}


def test_what_is_shown_and_switched_is_written_as_it_is_typed() -> None:
    """Every `show` and `upstream` of the table is one that the command takes, and none is left out."""
    rows = [row for row in README.splitlines() if re.match(r"\| `sidecar (show|upstream) ", row)]
    typed = [span.removeprefix("sidecar ") for row in rows for span in re.findall(r"`([^`]*)`", row)]
    words = [(span.split()[0], span.split()[1]) for span in typed if not span.startswith("-")]
    assert {word for command, word in words if command == "show"} == set(WHAT)
    assert {word for command, word in words if command == "upstream"} == {"disable", "enable"}


def test_the_first_two_commands_are_demo_and_tests() -> None:
    """One sets up and runs the demo, one sets up and runs the tests; the checks call the same script."""
    demo, tests = blocks("sh")[0].strip().splitlines()
    assert "sidecar demo" in demo
    assert tests.startswith(".ci/test")
    assert ".ci/test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(re.findall(r"python (tests/\S+?\.py)", README)))
)
def test_what_it_points_at_exists(path: str) -> None:
    """No link or command of README leads nowhere."""
    assert (ROOT / path).exists()
