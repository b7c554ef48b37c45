"""What the operators' commands share: which daemon is asked, one question at its control endpoint, its answer."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from sidecar.client.endpoint import control_endpoint, find_endpoint, look, socket_path
from sidecar.client.zmtp import UnansweredError, ask
from sidecar.errors import ConfigurationError, EndpointError

T = TypeVar("T")

DONE, REFUSED, NO_DAEMON = 0, 1, 3
#: Where the template unit puts an instance.
_UNIT_SOCKET: Final = "/run/sidecar-{}/sidecar.sock"


class RefusedError(Exception):
    """The daemon answered, and said no."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--endpoint`, `--control`, `-c`, `--instance`, `--timeout-ms`."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--endpoint", help="the bots' endpoint, or the control endpoint itself (*.control.sock)")
    where.add_argument("--control", metavar="IPC", help="the control endpoint, whatever its name")
    where.add_argument("-c", "--config", type=Path, metavar="FILE", help="the daemon's file: where it fixes a path")
    parser.add_argument(
        "--instance", metavar="NAME", help="the daemon of that name, as `sidecar serve --instance` has it"
    )
    parser.add_argument("--timeout-ms", type=float, default=1000, help="how long to wait for the answer; default 1000")


def endpoint_of(options: argparse.Namespace) -> str | None:
    """The bots' endpoint that the options name; None when they leave it to where a daemon usually is."""
    if options.endpoint is not None or options.instance is None:
        endpoint: str | None = options.endpoint
        return endpoint
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    unit = _UNIT_SOCKET.format(options.instance)
    own = [f"{runtime}/sidecar-{options.instance}/sidecar.sock"] if runtime else []
    own.append(f"/tmp/sidecar-{os.getuid()}-{options.instance}/sidecar.sock")  # noqa: S108 - `look` refuses others'
    return f"ipc://{next((path for path in own if os.path.lexists(path) and not os.path.lexists(unit)), unit)}"


def control_of(options: argparse.Namespace) -> str:
    """The control endpoint that the options mean.

    Raises:
        ConfigurationError: the file of `-c` is wrong.
        EndpointError: the endpoint is unusable, or names several daemons.
    """
    if options.control is not None:
        return find_endpoint(options.control)
    if options.config is not None:
        return find_endpoint(_control_in(options.config, options.instance))
    return control_beside(find_endpoint(endpoint_of(options)))


def control_beside(endpoint: str) -> str:
    """The control endpoint beside a bots' one; a control endpoint is its own."""
    return endpoint if endpoint.endswith(".control.sock") else control_endpoint(endpoint)


def _control_in(path: Path, instance: str | None) -> str:
    """The control endpoint of a daemon that reads this file, in this environment but for systemd's folder."""
    from sidecar.config import load, path_of
    from sidecar.transport.endpoint import control_of

    frontend = load(path_of(path, instance), environ=os.environ).frontend
    if frontend.control_endpoint is not None:
        return frontend.control_endpoint
    endpoint = frontend.endpoint or os.environ.get("SIDECAR_ENDPOINT")
    if endpoint is None and instance is not None:
        endpoint = f"ipc://{_UNIT_SOCKET.format(instance)}"
    return control_of(find_endpoint(endpoint))


def request(control: str, fields: dict[str, Any], *, answer: str, timeout: float, named: bool = False) -> Any:
    """One question and its answer, a map of type `answer`.

    Args:
        control: the control endpoint.
        fields: the question.
        answer: the type that the answer must have.
        timeout: seconds, for all of it.
        named: the operator named this very endpoint: no advice on how to.

    Raises:
        UnansweredError: nobody there, or no answer in time.
        RefusedError: the daemon refused, or its answer cannot be read.
    """
    obstacle = look(control)
    if obstacle is not None:
        hint = "" if named else ". Is control_endpoint configured? Then name it with --control, or the file with -c"
        raise UnansweredError(obstacle.message + hint)
    payload = ask(socket_path(control), json.dumps(fields).encode(), timeout=timeout)
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        raise RefusedError("the answer cannot be read") from None
    if not isinstance(said, dict) or said.get("type") != answer:
        reason = said.get("message") if isinstance(said, dict) else None
        raise RefusedError(reason if isinstance(reason, str) else f"an answer of another kind: {str(said)[:200]}")
    return said


def put(command: str, options: argparse.Namespace, question: Callable[[str], T], tell: Callable[[T], None]) -> int:
    """Put `question` to the control endpoint that the options mean, and `tell` its answer; or say why there is none.

    Returns the exit status: `DONE`, `REFUSED` or `NO_DAEMON`.
    """
    try:
        answer = question(control_of(options))
    except (UnansweredError, EndpointError, ConfigurationError, RefusedError) as problem:
        print(printable(f"{command}: {problem}"), file=sys.stderr)
        return REFUSED if isinstance(problem, RefusedError) else NO_DAEMON
    tell(answer)
    return DONE


def timeout_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> float:
    """Seconds; refuses what is none, in argparse's way."""
    if not 0 < options.timeout_ms <= 86_400_000:
        parser.error("--timeout-ms: above 0 and at most a day")
    return float(options.timeout_ms) / 1000


def printable(text: str) -> str:
    """What a daemon says, or passes on, must not move the terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
