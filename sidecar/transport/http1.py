"""The head of one HTTP/1.1 response, read from a stream that then speaks something else.

Used twice: for a proxy's answer to CONNECT and for the answer to the WebSocket upgrade. Garbage is recognised by its
first bytes, not by a timeout.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import h11
import trio

from sidecar.errors import ConnectFailed, Stage, UpgradeRefused

#: The longest head taken, in bytes, informational responses before it included.
MAX_HEAD: Final = 64 << 10
#: The most lines of a head: each costs ten microseconds, and so many empty ones as fit would hold up everybody.
MAX_LINES: Final = 1000
#: How much of a refusal's body is kept, and for how long (seconds) it is waited for.
MAX_BODY: Final = 4 << 10
BODY_TIMEOUT: Final = 1.0

_BEGINNING: Final = b"HTTP/1."
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]")
_END: Final = re.compile(rb"\n\r?\n")

Receive = Callable[[], Awaitable[bytes | bytearray]]


async def read_head(receive: Receive, stage: Stage) -> tuple[int, bytes, bytes]:
    """Read until the blank line.

    Args:
        receive: gives the next bytes of the stream, b"" at its end.
        stage: what a failure is called.

    Returns:
        (status, head with its blank line, the bytes that came after it). Informational responses other than 101
        are skipped.

    Raises:
        ConnectFailed: not HTTP, over `MAX_HEAD`, or the stream ended.
    """
    buffer = bytearray()
    total = 0
    searched = 0
    while True:
        found = _END.search(buffer, searched)
        if found:
            head = bytes(buffer[: found.end()])
            status = _STATUS.match(head)
            if not status:
                raise ConnectFailed(stage, "the answer is not an HTTP/1 response")
            if int(status[1]) >= 200 or status[1] == b"101":
                if total - (len(buffer) - len(head)) > MAX_HEAD or head.count(b"\n") > MAX_LINES:
                    break
                return int(status[1]), head, bytes(buffer[found.end() :])
            del buffer[: found.end()]
            searched = 0
            continue
        searched = max(0, len(buffer) - 2)
        if total > MAX_HEAD:
            break
        data = await receive()
        if not data:
            raise ConnectFailed(stage, "closed by the other side before its answer was complete")
        buffer += data
        total += len(data)
        if not buffer.startswith(_BEGINNING[: len(buffer)]):
            raise ConnectFailed(stage, "the answer is not HTTP/1")
    raise ConnectFailed(stage, f"the answer's header is over {MAX_HEAD} bytes, or {MAX_LINES} lines")


async def refusal(receive: Receive, head: bytes, rest: bytes) -> UpgradeRefused | ConnectFailed:
    """What a response other than 101 says: status, headers, and as much body as `MAX_BODY` and `BODY_TIMEOUT` allow.

    Returned, not raised; a body that is cut, endless or drips does not hide the status.
    """
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "upstream")]))
    parser.send(h11.EndOfMessage())
    body = bytearray()
    answer: h11.Response | None = None
    with trio.move_on_after(BODY_TIMEOUT):
        try:
            parser.receive_data(head + rest)
            while len(body) < MAX_BODY:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(bytes(await receive()))
                elif isinstance(event, h11.Response):
                    answer = event
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    break
        except (h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # what has come is what there is
    if answer is None:
        return ConnectFailed("upgrade", "the answer is not an HTTP/1 response")
    return UpgradeRefused(answer.status_code, fold(answer.headers), bytes(body[:MAX_BODY]))


def fold(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header pairs -> one value for each lower-case name, repeated ones joined by a comma."""
    folded: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        folded[key] = f"{folded[key]}, {text}" if key in folded else text
    return folded
