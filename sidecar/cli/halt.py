"""`sidecar halt` and `sidecar resume`: the operator's brake.

The daemon is asked first: it acts, keeps the halt in its halt file, and says what it did. When it does not answer, the
command writes that file itself, which is as good: the daemon looks at it ten times a second, and a daemon that starts
with it starts halted. Where the file lies is then a matter of the options, the configuration, or the unit; what is not
known is not guessed.

Exit status: 0 done, by whom is said; 1 refused, or the file could not be changed; 3 neither a daemon nor a file known.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sidecar.cli import asking
from sidecar.client.endpoint import SYSTEM_SOCKET, find_endpoint, find_places, socket_path
from sidecar.client.zmtp import UnansweredError
from sidecar.core.halt import EVERY_LANE, Halt, in_order, reason_of
from sidecar.errors import ConfigurationError, EndpointError
from sidecar.transport import halt_file
from sidecar.wire import Lane

#: Where the units keep a daemon's state, by the name of its runtime folder.
_UNIT_STATE: Final = "/var/lib/{}/" + halt_file.NAME
_UNIT_FOLDER: Final = re.compile(r"/run/(sidecar(?:-[A-Za-z0-9_.-]+)?)")
_OWN_FOLDER: Final = re.compile(r"sidecar(?:-(?P<instance>[A-Za-z0-9][A-Za-z0-9_.-]*))?")

Result = dict[str, Any]


class NotKnown(Exception):
    """Nobody can say where the halt file of that daemon lies."""


def run(argv: list[str]) -> int:
    """`sidecar halt`."""
    return _run(argv, "halt")


def run_resume(argv: list[str]) -> int:
    """`sidecar resume`."""
    return _run(argv, "resume")


def _run(argv: list[str], verb: str) -> int:
    halts = verb == "halt"
    parser = argparse.ArgumentParser(
        prog=f"sidecar {verb}",
        description="Stop lanes: their calls fail `halted`, running ones are ended. It holds, over restarts too, until "
        "`sidecar resume`."
        if halts
        else "Let halted lanes go on.",
    )
    parser.add_argument("--lane", type=_lanes, action="extend", metavar="L,L", help="exit, entry, research; else all")
    if halts:
        parser.add_argument("--reason", default="", help="one line, for the bots and the log")
    parser.add_argument("--file", type=Path, metavar="PATH", help="change this halt file, and ask nobody")
    parser.add_argument("--all", action="store_true", help="every daemon that a client would find, one by one")
    parser.add_argument("--json", action="store_true", help="one JSON object; with --all a list of them")
    asking.add_options(parser)
    options = parser.parse_args(argv)
    timeout = asking.timeout_of(parser, options)
    if options.all and (options.file or options.control or options.config or options.instance):
        parser.error("--all goes with --endpoint only")
    lanes = frozenset(options.lane or EVERY_LANE)
    reason = reason_of(options.reason) if halts else ""

    if options.all:
        results = _all(options, verb, lanes, reason, timeout)
    elif options.file is not None:
        results = [_by_file(options.file, verb, lanes, reason, "")]
    else:
        results = [_one(options, verb, lanes, reason, timeout)]
    if options.json:
        print(json.dumps(results if options.all else results[0]))
    else:
        for result in results:
            _tell(result, verb, named=options.all)
    return max(int(result["exit"]) for result in results)


def _lanes(text: str) -> list[Lane]:
    known: dict[str, Lane] = {lane: lane for lane in in_order(EVERY_LANE)}
    words = [word for word in re.split(r"[\s,]+", text) if word]
    if not words or not all(word in known for word in words):
        raise argparse.ArgumentTypeError(f"lanes are {', '.join(known)}")
    return [known[word] for word in words]


# ---------------------------------------------------------------------------------------------- the daemon, or the file


def _one(options: argparse.Namespace, verb: str, lanes: frozenset[Lane], reason: str, timeout: float) -> Result:
    try:
        control = asking.control_of(options)
    except (EndpointError, ConfigurationError) as problem:
        several = " (--all: every one of them)" if isinstance(problem, EndpointError) else ""
        return _failed(f"{problem}{several}", asking.NO_DAEMON)
    return _ask(control, verb, lanes, reason, timeout, lambda: place_of(options))


def _all(options: argparse.Namespace, verb: str, lanes: frozenset[Lane], reason: str, timeout: float) -> list[Result]:
    try:
        places = find_places(options.endpoint)
        found = places.look()
    except EndpointError as problem:
        return [_failed(str(problem), asking.NO_DAEMON)]
    if not found:
        return [_failed(f"no daemon at {places}", asking.NO_DAEMON)]
    results = []
    for endpoint in found:
        where = place_beside(endpoint)
        result = _ask(asking.control_beside(endpoint), verb, lanes, reason, timeout, where)
        results.append({"endpoint": endpoint, **result})
    return results


def _ask(
    control: str, verb: str, lanes: frozenset[Lane], reason: str, timeout: float, where: Callable[[], Path]
) -> Result:
    """By the daemon if it answers, else by its file."""
    fields = {"type": verb, "lanes": in_order(lanes), **({"reason": reason} if reason else {})}
    try:
        said = asking.request(control, fields, answer="halted", timeout=timeout, named=True)
    except asking.RefusedError as problem:
        return _failed(f"the daemon refused: {problem}", asking.REFUSED)
    except UnansweredError as problem:
        silence = str(problem)
    else:
        told = said.get("problem") or ""
        note = f"NOT KEPT over a restart: {told}" if said.get("lanes") and not said.get("sticky", True) else ""
        keys = ("lanes", "reason", "ended", "sticky", "file")
        return {"ok": True, "exit": asking.DONE, "by": "daemon", **{key: said.get(key) for key in keys}, "note": note}
    try:
        path = where()
    except (NotKnown, EndpointError, ConfigurationError) as problem:
        return _failed(f"{silence}; and its halt file is not known: {problem}", asking.NO_DAEMON)
    return _by_file(path, verb, lanes, reason, silence)


def _by_file(path: Path, verb: str, lanes: frozenset[Lane], reason: str, silence: str) -> Result:
    """Without the daemon; it will see the file."""
    found = halt_file.read(path)
    before = Halt(frozenset()) if found is None else found
    after = Halt(before.lanes | lanes if verb == "halt" else before.lanes - lanes, reason or before.reason)
    try:
        if not path.parent.is_dir():
            raise OSError(0, f"{path.parent} is no folder; is this the daemon's halt file? Name it with --file")
        if after.lanes:
            halt_file.write(path, after)
        else:
            halt_file.remove(path)
        halt_file.sync(path)
    except OSError as error:
        why = f"{silence}; " if silence else ""
        return _failed(f"{why}{path} could not be changed: {error.strerror}", asking.REFUSED)
    note = (
        f"the daemon did not answer ({silence}), so its halt file was changed: if it runs, it heeds that within a "
        "tenth of a second; when it starts, it starts with that"
    )
    return {
        "ok": True, "exit": asking.DONE, "by": "file", "lanes": in_order(after.lanes), "reason": after.reason,
        "ended": None, "sticky": True, "file": str(path), "note": note if silence else "",
    }  # fmt: skip


def _failed(problem: str, status: int) -> Result:
    return {"ok": False, "exit": status, "error": problem}


# ---------------------------------------------------------------------------------------------- where the file lies


def place_of(options: argparse.Namespace) -> Path:
    """The halt file of the daemon that the options mean, as far as it can be known without asking it.

    Raises:
        NotKnown: it cannot.
        ConfigurationError: the configuration that would say is wrong.
        EndpointError: the endpoint is unusable.
    """
    from sidecar.config.source import DEFAULT_PATH

    if options.config is not None:
        return _configured(options.config, options.instance) or _usual(options.instance)
    if options.control is not None:
        raise NotKnown("name it with --file, or the daemon's configuration with -c")
    endpoint = asking.endpoint_of(options)
    if endpoint is None and not os.environ.get("SIDECAR_ENDPOINT"):
        configured = _configured(None, None) if os.path.lexists(DEFAULT_PATH) else None
        unit = _UNIT_STATE.format("sidecar")
        if configured is not None:
            return configured
        # Where nothing listens any more, the state that the unit left says which kind of daemon this machine has.
        if os.path.lexists(os.path.dirname(unit)) or os.path.lexists(SYSTEM_SOCKET):  # noqa: PTH120
            return Path(unit)
    if options.endpoint is None and options.instance is not None and endpoint is not None:
        configured = _configured(None, options.instance) if os.path.lexists(DEFAULT_PATH) else None
        if configured is not None:
            return configured
        if not os.path.lexists(socket_path(endpoint)):
            return _usual(options.instance)
    return place_beside(find_endpoint(endpoint))()


def _configured(path: Path | None, instance: str | None) -> Path | None:
    from sidecar.config import load, path_of

    configured = load(path_of(path, instance), environ=os.environ).frontend.halt_file
    return None if configured is None else Path(configured)


def _usual(instance: str | None) -> Path:
    """Where a daemon without `halt_file` keeps it: the unit's if there is one."""
    name = f"sidecar-{instance}" if instance else "sidecar"
    if os.path.lexists(f"/var/lib/{name}") or os.path.lexists(f"/run/{name}"):
        return Path(_UNIT_STATE.format(name))
    return _own(instance)


def _own(instance: str | None) -> Path:
    """A daemon that its user started by hand, or the user's own manager."""
    environ = {key: value for key, value in os.environ.items() if key != "STATE_DIRECTORY"}
    found = halt_file.place(None, environ, instance=instance)
    if found is None:
        raise NotKnown("neither $XDG_STATE_HOME nor $HOME is set; name it with --file")
    return found


def place_beside(endpoint: str) -> Callable[[], Path]:
    """Says the halt file of the daemon with this endpoint, where the folder of its socket tells it.

    What it returns raises NotKnown where it does not.
    """

    def place() -> Path:
        folder = os.path.dirname(socket_path(endpoint))  # noqa: PTH120
        if unit := _UNIT_FOLDER.fullmatch(folder):
            return Path(_UNIT_STATE.format(unit[1]))
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        parent, _, name = folder.rpartition("/")
        if runtime and parent == runtime.rstrip("/") and (own := _OWN_FOLDER.fullmatch(name)):
            return _own(own["instance"])
        mine = f"sidecar-{os.getuid()}"
        if parent == "/tmp" and (name == mine or name.startswith(f"{mine}-")):  # noqa: S108
            return _own(name[len(mine) + 1 :] or None)
        raise NotKnown(
            "its socket lies in a folder of its own choice; name it with --file, or the configuration with -c"
        )

    return place


# ---------------------------------------------------------------------------------------------- what is said


def _tell(result: Result, verb: str, *, named: bool) -> None:
    head = f"{result['endpoint']}: " if named and "endpoint" in result else ""
    if not result["ok"]:
        print(asking.printable(f"sidecar {verb}: {head}{result['error']}"), file=sys.stderr)
        return
    lanes = ", ".join(map(str, result["lanes"] or []))
    ended = result["ended"]
    parts = [f"halted: {lanes}" if lanes else "nothing is halted"]
    if verb == "halt" and isinstance(ended, int):
        parts.append(f"{ended} {'call' if ended == 1 else 'calls'} ended")
    if lanes and result["reason"]:
        parts.append(f"reason: {result['reason']}")
    if lanes and result["file"] and result["sticky"]:
        parts.append(f"kept in {result['file']}")
    print(asking.printable(head + "; ".join(parts)))
    if result["note"]:
        print(asking.printable(f"note: {result['note']}"), file=sys.stderr)
