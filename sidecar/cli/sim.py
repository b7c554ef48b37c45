"""`sidecar sim`: the simulated relay alone, for rehearsing an outage against the daemon, or without it."""

from __future__ import annotations

import argparse
import json
import signal
import ssl
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

_DEFAULTS: Final[dict[str, Any]] = {
    "host": "127.0.0.1",
    "port": 0,
    "scenario": "ok",
    "ttft_ms": 20.0,
    "cadence_ms": 1000 / 60,
    "tokens": None,
    "text": None,
    "jitter": 0.0,
    "seed": 0,
    "key": None,
    "max_age_s": None,
    "keepalive_timeout_s": None,
    "tls_cert": None,
    "tls_key": None,
    "for_s": None,
    "port_file": None,
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "port": (int,),
    "tokens": (int,),
    "seed": (int,),
    **dict.fromkeys(("ttft_ms", "cadence_ms", "jitter", "max_age_s", "keepalive_timeout_s", "for_s"), (int, float)),
}

#: What the daemon may be pointed at: name, dialect, transport, path.
_UPSTREAMS: Final = (
    ("sim-responses", "responses", "websocket", "/v1/responses"),
    ("sim-chat", "chat", "websocket", "/v1/chat"),
    ("sim-responses-sse", "responses", "sse", "/v1/responses"),
    ("sim-chat-sse", "chat", "sse", "/v1/chat/completions"),
    ("sim-messages", "messages", "sse", "/v1/messages"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar sim",
        description="A relay on this machine that answers in every dialect and misbehaves on demand.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="TOML with the names below (ttft_ms, port_file ...); flags win"
    )
    parser.add_argument("--list", action="store_true", help="what may go wrong, by name, and leave")
    parser.add_argument("--json", action="store_true", help="speak JSON: one object at the start, one at the end")
    parser.add_argument("--scenario", metavar="NAME", help="or a mix: http_503*3,ok  ok@0.9+cut@0.1 (default: ok)")
    parser.add_argument("--host", help="a loopback address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: any free one")
    parser.add_argument("--ttft-ms", type=float, help="request to first token (default: 20)")
    parser.add_argument("--cadence-ms", type=float, help="token to token, 0 for a flood (default: 16.7)")
    parser.add_argument(
        "--jitter", type=float, help="share of the cadence by which tokens are early or late (default: 0)"
    )
    parser.add_argument("--tokens", type=int, help="how many (default: as many as --text has words, else 60)")
    parser.add_argument("--text", help="the answer, a word a token (default: a stock sentence)")
    parser.add_argument("--seed", type=int, help="of every choice (default: 0)")
    parser.add_argument("--key", help="the only bearer key accepted (default: any; a made-up one, it shows in `ps`)")
    parser.add_argument("--max-age-s", type=float, help="each connection ends at this age (default: never)")
    parser.add_argument(
        "--keepalive-timeout-s", type=float, help="an HTTP connection without a request ends then (default: never)"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM; with --tls-key: speak wss and https")
    parser.add_argument("--tls-key", metavar="FILE")
    parser.add_argument("--for-s", type=float, help="stop by itself (default: at SIGINT or SIGTERM)")
    parser.add_argument("--port-file", metavar="FILE", help="write the bound port there")
    return parser


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Flags over file over defaults.

    Raises:
        ValueError: the file is not readable or has a wrong name or kind of value.
    """
    settings = dict(_DEFAULTS)
    if "config" in given:
        path = given["config"]
        try:
            stored = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
            raise ValueError(f"{path}: {problem}") from None
        for name, value in stored.items():
            if name not in _DEFAULTS:
                raise ValueError(f"{path}: {name}: not known; one of {', '.join(sorted(_DEFAULTS))}")
            if isinstance(value, bool) or not isinstance(value, _TYPES.get(name, (str,))):
                raise ValueError(f"{path}: {name}: {value!r} is not of the right kind")  # noqa: TRY004 -- the operator's
            settings[name] = value
    settings.update({name: value for name, value in given.items() if name in _DEFAULTS})
    if (settings["tls_cert"] is None) != (settings["tls_key"] is None):
        raise ValueError("--tls-cert and --tls-key belong together")
    if settings["for_s"] is not None and settings["for_s"] < 0:
        raise ValueError("--for-s is 0 or more")
    return settings


def _snippet(url: str, *, key: bool) -> str:
    """TOML for the daemon: the simulator's upstreams by each way, and a route."""
    lines = []
    for name, dialect, way, path in _UPSTREAMS:
        address = url if way == "websocket" else "http" + url.removeprefix("ws")
        lines += ["[[upstream]]", f'name = "{name}"', f'url = "{address}{path}"', f'dialect = "{dialect}"']
        lines += ['transport = "sse"'] if way == "sse" else []
        lines += ['credential = { env = "SIM_KEY" }   # SIM_KEY holds the --key'] if key else []
        lines += [""]
    lines += ["[[route]]", 'name = "default"', 'targets = [ { upstream = "sim-responses", model = "simulated" } ]']
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Serve until SIGINT, SIGTERM or --for-s. Returns 0, 2 for wrong arguments, 75 when the port is taken."""
    given = vars(_parser().parse_args(argv))
    if "list" in given:
        return _list(as_json="json" in given)
    from sidecar.simulator import Relay
    from sidecar.simulator.behaviour import Behaviour, steer

    try:
        settings = _settings(given)
        names = ("ttft_ms", "cadence_ms", "tokens", "text", "jitter")
        behaviour = steer(Behaviour(), {name: settings[name] for name in names if settings[name] is not None})
        relay = Relay(
            settings["scenario"],
            behaviour=behaviour,
            seed=settings["seed"],
            keys=None if settings["key"] is None else {settings["key"]},
            max_age_s=settings["max_age_s"],
            keepalive_timeout_s=settings["keepalive_timeout_s"],
            tls=_tls(settings),
        )
        relay.bind(settings["host"], settings["port"])
        if settings["port_file"] is not None:
            try:
                Path(settings["port_file"]).write_text(f"{relay.port}\n", encoding="ascii")
            except OSError as problem:
                relay.unbind()
                raise ValueError(f"--port-file: {problem}") from None
    except (ValueError, ssl.SSLError, FileNotFoundError, PermissionError) as problem:
        print(f"sidecar sim: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"sidecar sim: {settings['host']}:{settings['port']}: {problem}", file=sys.stderr)
        return 75
    return _serve(relay, settings, as_json="json" in given)


def _tls(settings: dict[str, Any]) -> ssl.SSLContext | None:
    if settings["tls_cert"] is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["tls_cert"], settings["tls_key"])
    return context


def _list(*, as_json: bool) -> int:
    from sidecar.simulator.scenarios import SCENARIOS

    if as_json:
        print(json.dumps([{"name": one.name, "befalls": one.kind, "line": one.line} for one in SCENARIOS.values()]))
        return 0
    width = max(map(len, SCENARIOS))
    for kind, title in (("call", "to a call"), ("door", "to a connection"), ("mix", "mixed")):
        print(f"{title}:")
        for one in SCENARIOS.values():
            if one.kind == kind:
                print(f"  {one.name:<{width}}  {one.line}")
    print("close_NNNN and http_NNN exist for every code, toxic_latency-slicer-reset and the like for every mix;")
    print("a row `http_503*3,ok` and shares `ok@0.9+cut@0.1` mix scenarios.")
    return 0


def _serve(relay: Any, settings: dict[str, Any], *, as_json: bool) -> int:
    import trio

    async def until_told(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            if settings["for_s"] is not None:
                scope.deadline = trio.current_time() + settings["for_s"]
            announce()
            async for _ in signals:
                scope.cancel()
                return

    def announce() -> None:
        host = f"[{settings['host']}]" if ":" in settings["host"] else settings["host"]
        url = f"{'ws' if settings['tls_cert'] is None else 'wss'}://{host}:{relay.port}"
        if as_json:
            print(json.dumps({"url": url, "port": relay.port, "scenario": settings["scenario"]}), flush=True)
        else:
            print(f"listening on {url} (scenario {settings['scenario']}, seed {settings['seed']})\n")
            print(_snippet(url, key=settings["key"] is not None) + "\n", flush=True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.serve)
            nursery.start_soon(until_told, nursery.cancel_scope)

    trio.run(main)
    counters = relay.counters.snapshot()
    if as_json:
        print(json.dumps(counters))
    else:
        shown = {name: value for name, value in counters.items() if name not in ("stops", "attempts", "groups")}
        print("\n".join(f"{name:<14} {value}" for name, value in shown.items()))
    return 0
