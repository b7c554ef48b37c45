"""The operators' door: a second ROUTER beside the bots', the same framing and encodings, other message types.

A request is one map with a `type`; each gets one answer. What may be asked is a table of handlers, so that a new
command is one entry in it. The socket is 0600: whoever may open it is trusted with everything behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import msgspec
import trio

from sidecar import wire
from sidecar.errors import SidecarError
from sidecar.service import intake
from sidecar.transport.bot_port import BotPort, Incoming
from sidecar.wire import Encoding

#: Requests answered between two looks at everything else.
RECEIVE_LIMIT: Final = 16

#: A request's fields -> the fields of its answer (with `type`). Raises SidecarError or ValueError with what is wrong.
Handler: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Answers operators.

    Args:
        port: the control socket, or a fake.
        handlers: request type -> handler; `ping` is answered here.
        session: for `pong`.
        mono_us, wall_us: clocks in microseconds.
        max_message_bytes: of a request.

    Resource handling: owns no socket. Error handling: a handler's refusal is answered `failed invalid_request`.
    Cancellation: ends at once.
    """

    def __init__(
        self,
        port: BotPort,
        handlers: Mapping[str, Handler],
        *,
        session: str,
        mono_us: Callable[[], int],
        wall_us: Callable[[], int],
        max_message_bytes: int = 1 << 16,
    ) -> None:
        self._port = port
        self._handlers = {"ping": self._ping, **handlers}
        self._session = session
        self._mono_us = mono_us
        self._wall_us = wall_us
        self._max_message_bytes = max_message_bytes

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled."""
        task_status.started()
        while True:
            for incoming in await self._port.receive_batch(RECEIVE_LIMIT):
                encoding, answer = self.answer(incoming)
                # An operator who does not read has asked for nothing: full and gone are the same here.
                self._port.send(incoming.routing_id, encoding.encode(answer), incoming.envelope)
            self._port.departures()
            self._port.settle()

    def answer(self, incoming: Incoming) -> tuple[Encoding, object]:
        """The one answer to one message, in its encoding."""
        encoding, request = intake.read_map(incoming.payload, max_message_bytes=self._max_message_bytes)
        if isinstance(request, wire.Failed):
            return encoding, request
        kind = request.get("type")
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return encoding, intake.refusal("invalid_request", f"type: expected one of {known}")
        try:
            return encoding, handler(request)
        except (SidecarError, ValueError) as error:
            return encoding, intake.refusal("invalid_request", str(error))

    def _ping(self, request: dict[str, Any]) -> dict[str, Any]:
        nonce = request.get("nonce")
        if intake.unportable(nonce, "nonce") or not isinstance(nonce, str | int | None):
            raise ValueError("nonce: a string or an integer")
        pong = wire.Pong(nonce=nonce, session=self._session, mono_us=self._mono_us(), wall_us=self._wall_us())
        fields: dict[str, Any] = msgspec.to_builtins(pong)
        return fields


def show(sections: Mapping[str, Callable[[], Any]]) -> Handler:
    """The handler of `show {what}` -> `shown {what, data}`.

    Args:
        sections: what may be shown -> its data now, of structs, maps, lists and scalars.
    """

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        what = request.get("what")
        section = sections.get(what) if isinstance(what, str) else None
        if section is None:
            raise ValueError(f"what: expected one of {', '.join(sorted(sections))}")
        return {"type": "shown", "what": what, "data": section()}

    return handle
