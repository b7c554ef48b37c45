"""What a command line asks for: against what, which load, and whether it may cost money."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sidecar.bench.compare import differences
from sidecar.bench.load import PROFILES, Load, make
from sidecar.bench.result import Repetition, Unreadable, read
from sidecar.bench.rig import Target
from sidecar.client.endpoint import find_endpoint
from sidecar.config import load as read_configuration
from sidecar.config.addresses import is_loopback
from sidecar.errors import SidecarError

#: Flags that are fields of the load, as argparse names them.
FIELDS: Final = (
    "rate", "streams", "arrivals", "for_s", "warm_up_s", "clients", "client", "tokens", "cadence_ms", "jitter",
    "ttft_ms", "prompt_bytes", "timeout_ms", "max_open", "seed",
)  # fmt: skip
_SIMULATOR_ONLY: Final = ("streams", "cadence_ms", "jitter", "ttft_ms")


class Usage(SidecarError):
    """The command line asks for something that cannot be; the message says what to write instead."""


def target_of(given: dict[str, Any]) -> Target:
    """What the load goes to.

    Raises:
        Usage: two of them.
        EndpointError: no ipc path.
    """
    route = given.get("route")
    if "endpoint" in given and "config" in given:
        raise Usage("--endpoint is a daemon that runs, -c one to be started: give one of them")
    if "endpoint" in given:
        return Target(kind="endpoint", route=route, endpoint=find_endpoint(given["endpoint"]))
    if "config" in given:
        return Target(kind="configuration", route=route, configuration=str(given["config"].absolute()))
    return Target(route=route)


def load_of(given: dict[str, Any], target: Target) -> Load:
    """The shape of the load, from profile and flags.

    Raises:
        Usage: a value that does not fit, or one that this target has no use for.
    """
    fields: dict[str, Any] = {name: given[name] for name in FIELDS if name in given}
    profile = given.get("profile", "stream")
    base = PROFILES[profile][1]
    if "short" in given:
        fields = {"stream": False, "tokens": 2, "jitter": 0.0, **fields}
    if target.kind == "simulator":
        streamed = fields.get("stream", base.get("stream", True))
        if given.get("stamps") and not streamed:
            raise Usage("--stamps needs streamed answers: there is no instant of a token's arrival without")
        paced = fields.get("cadence_ms", base.get("cadence_ms", 16.667)) > 0
        fields["stamps"] = given.get("stamps", streamed and paced)
    else:
        for name in _SIMULATOR_ONLY:
            if name in fields:
                flag = name.replace("_", "-")
                raise Usage(f"--{flag} is for the simulator started here: leave it out, or leave out --endpoint and -c")
        if "rate" not in fields:
            raise Usage("give --rate: how much this daemon and its upstream may be asked is yours to say")
        fields |= {"cadence_ms": 0.0, "jitter": 0.0, "ttft_ms": 0.0, "stamps": given.get("stamps", False)}
        fields.setdefault("tokens", None)
    try:
        return make(profile, fields)
    except ValueError as problem:
        raise Usage(str(problem)) from None


def ask_before_spending(given: dict[str, Any], target: Target, load: Load, repetitions: int) -> None:
    """An upstream that is not on this machine may cost money: say how much would be asked of it, and want `--yes`.

    Raises:
        Usage: it was not said; the message holds the estimate.
        ConfigurationError: the file is wrong.
    """
    if target.kind == "simulator" or "yes" in given:
        return
    limit = load.tokens
    if target.kind == "configuration":
        config = read_configuration(Path(target.configuration or ""), environ=os.environ)
        routes = [route for route in config.route if route.name == (target.route or "default")]
        if not routes:
            raise Usage(
                f"{target.configuration} has no route {target.route or 'default'!r}: "
                f"give --route, one of {', '.join(route.name for route in config.route)}"
            )
        called = {one.upstream for one in routes[0].targets}
        hosts = [urlsplit(upstream.url).hostname or "" for upstream in config.upstream if upstream.name in called]
        if all(is_loopback(host) for host in hosts):
            return
        limit = min(limit or routes[0].max_output_tokens, routes[0].max_output_tokens)
        where = ", ".join(sorted({host for host in hosts if not is_loopback(host)}))
    else:
        where = f"the upstreams of the daemon at {target.endpoint}, wherever they are"
    calls = load.calls * repetitions
    prompts = calls * -(-load.prompt_bytes // 4)
    answers = f"at most {calls * limit:,} tokens of answers" if limit else "answers as long as that route allows"
    raise Usage(
        f"this asks {where} for about {calls:,} calls: about {prompts:,} tokens of prompts and {answers}, "
        "retries not counted. Say --yes if that is meant"
    )


def earlier(out: Path | None, load: Load, target: Target) -> list[Repetition]:
    """The repetitions of a result that is to be added to; none of a file that is not there yet.

    Raises:
        Usage: it is no result, or one of another load.
    """
    if out is None:
        raise Usage("--append belongs to --out FILE")
    if not out.exists():
        return []
    try:
        kept = read(out)
    except Unreadable as problem:
        raise Usage(str(problem)) from None
    found = differences((kept.load, kept.target), (load, target))
    if found or kept.load.seed != load.seed:
        raise Usage(f"--append: {out} is of another load: {'; '.join(found) or 'the seed'}. Name another file")
    return kept.repetitions
