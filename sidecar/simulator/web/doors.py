"""What may befall an HTTP request before it is looked at: the door scenarios, in place of an answer."""

from __future__ import annotations

from typing import Final

import trio

from sidecar.simulator import door
from sidecar.simulator.web import heads
from sidecar.simulator.web.pipe import Pipe
from sidecar.simulator.web.talk import Talk

#: Those after which a request is answered all the same.
OPEN: Final = ("ok", "handshake_wrong_accept", "expiry", "expiring")
_GARBAGE: Final = b"\x16\x03\x01SSH-2.0-OpenSSH_9.9 220 mail ready\r\n\r\n" + bytes(range(256))


async def misbehave(name: str, talk: Talk, pipe: Pipe) -> None:
    """The door scenario `name`, in place of an answer."""
    if name == "refuse":
        talk.eof()
    elif name == "handshake_reset":
        talk.reset()
    elif name == "handshake_301":
        pipe.whole(301, [("location", "http://127.0.0.1:9/v1/responses")], b"")
    elif name == "html":
        pipe.whole(502, [("content-type", "text/html")], door.HTML)
    elif name == "deaf":
        await talk.deafen()
    elif name == "handshake_garbage":
        pipe.raw(_GARBAGE)
        talk.eof()
    elif name == "handshake_silent":
        await trio.sleep_forever()
    else:
        head = pipe.head_bytes(200, [heads.STREAM])
        if name == "handshake_eof":
            pipe.raw(head[: len(head) // 2])
            talk.eof()
        else:
            await talk.link.drip(head, 1.0)
            await trio.sleep_forever()
