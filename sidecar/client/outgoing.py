"""What waits to be handed to the socket: the greeting of a connection first, then calls, questions, cancels. Pure."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from sidecar.client.calls import OpenCall, Question, is_over
from sidecar.wire import MSGPACK

#: Payloads that may wait before the ended ones are looked for.
_ROOM: Final = 64


class Outgoing:
    """In order of their coming; what ended meanwhile is left out. `name` is a label for people, in `hello`."""

    __slots__ = ("_greeting", "_name", "_queue", "_room")

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: deque[tuple[bytes, OpenCall | Question | None]] = deque()
        self._greeting = b""
        self._room = _ROOM
        self.greet()

    def __len__(self) -> int:
        return bool(self._greeting) + len(self._queue)

    @property
    def queued(self) -> bool:
        """There is more than the greeting, which waits for its connection as long as there is none."""
        return bool(self._queue)

    @property
    def unfinished(self) -> bool:
        """A call or a question that is not over waits."""
        return any(item is not None and not is_over(item) for _, item in self._queue)

    def greet(self) -> None:
        """The next connection begins with a `hello` that asks for arrays."""
        self._greeting = MSGPACK.encode({"type": "hello", "name": self._name, "batch": True})

    def add(self, payload: bytes, item: OpenCall | Question | None) -> None:
        """Queue a payload; `item` is the call or question that it begins, None for a cancel."""
        self._queue.append((payload, item))
        if len(self._queue) > self._room:
            # While nothing can be handed over nobody takes the ended ones out, and a bot may go on asking for hours.
            self._queue = deque(entry for entry in self._queue if entry[1] is None or not is_over(entry[1]))
            self._room = _ROOM + 2 * len(self._queue)

    def say(self, message: dict[str, Any], item: Question | None = None) -> None:
        """Queue a message."""
        self.add(MSGPACK.encode(message), item)

    def first(self) -> bytes | None:
        """What goes next, None for nothing. It stays first until `taken()`."""
        if self._greeting:
            return self._greeting
        while self._queue:
            payload, item = self._queue[0]
            if item is None or not is_over(item):
                return payload
            self._queue.popleft()
        return None

    def taken(self) -> OpenCall | Question | None:
        """The first has gone; the item that it began."""
        if self._greeting:
            self._greeting = b""
            return None
        return self._queue.popleft()[1]

    def drop_cancels(self) -> None:
        """Their calls were lost with the connection."""
        self._queue = deque(entry for entry in self._queue if entry[1] is not None)

    def take_calls(self) -> list[OpenCall]:
        """Part with the calls that have not ended."""
        found = [item for _, item in self._queue if isinstance(item, OpenCall) and item.ended is None]
        if found:
            self._queue = deque(entry for entry in self._queue if not isinstance(entry[1], OpenCall))
        return found

    def clear(self) -> list[OpenCall | Question]:
        """Part with everything but the greeting; the calls and questions of it that are not over."""
        found = [item for _, item in self._queue if item is not None and not is_over(item)]
        self._queue.clear()
        return found
