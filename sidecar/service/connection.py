"""One warm connection and the attempts on it: slots in, what comes out to whoever holds the slot.

Its states and steps are `core.pool_policy.CONNECTION`. What is spoken on it is `websocket_connection`'s or
`http_connection`'s matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from sidecar.core.pool_policy import CONNECTION, ConnectionState, ConnectionView
from sidecar.credentials import Secret
from sidecar.dialects.base import Content, Ending, Expiring, Faulted, Finished, Prompt, Started
from sidecar.errors import ConnectionLost, UpstreamFault
from sidecar.transport.link import Link


class SlotHolder(Protocol):
    """What a connection tells the holder of a slot (an `Attempt`); no method may block or raise."""

    def on_content(self, text: str, now: float) -> None:
        """A piece of the answer."""
        ...

    def on_started(self, event: Started) -> None:
        """The upstream took the request."""
        ...

    def on_ending(self, now: float) -> None:
        """The content is over; the usage may still come."""
        ...

    def on_finished(self, event: Finished, now: float) -> None:
        """The answer ended as it should. The slot is free again."""
        ...

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        """The attempt failed; the slot, or the whole connection, is gone."""
        ...


class _Discarded:
    """Holds a slot that nobody reads any more until it is free: what still comes there is nobody's."""

    def on_content(self, text: str, now: float) -> None:
        pass

    def on_started(self, event: Started) -> None:
        pass

    def on_ending(self, now: float) -> None:
        pass

    def on_finished(self, event: Finished, now: float) -> None:
        pass

    def on_lost(self, fault: UpstreamFault, now: float, *, event: Faulted | None = None) -> None:
        pass


DISCARDED: Final = _Discarded()


class Connection(ABC):
    """One connection's life, from before it is made until after it is gone.

    Args:
        key: its number in the pool.
        slots: calls that it may carry at once.
        on_change: told when a slot came free, or the state changed.
        born_at: when it was decided on.
    """

    __slots__ = (
        "_attempts",
        "_ending",
        "_on_change",
        "_settling",
        "active",
        "born_at",
        "credential",
        "expiring",
        "fault",
        "in_rotation",
        "key",
        "link",
        "opened_at",
        "retire_at",
        "rtt",
        "state",
        "stopped_by_us",
        "taken",
        "used",
    )

    def __init__(self, key: int, slots: int, *, on_change: Callable[[Connection], None], born_at: float) -> None:
        self.key = key
        self.state: ConnectionState = "CONNECTING"
        self.born_at = born_at
        self.opened_at: float | None = None
        self.retire_at: float | None = None
        #: which version of the credential it was authenticated with
        self.credential: Secret | None = None
        self.link: Link | None = None
        #: last keepalive's round trip, seconds
        self.rtt: float | None = None
        #: the upstream said that it will close this connection soon
        self.expiring = False
        #: why it ended, where we know better than the transport (silence, a bad frame)
        self.fault: UpstreamFault | None = None
        #: closed because its only call was stopped: no fault of the upstream's
        self.stopped_by_us = False
        #: stands in its pool's queue of connections with a free slot
        self.in_rotation = False
        #: slots in use, and those of them that somebody still reads
        self.taken = 0
        self.active = 0
        #: a call was started on it, ever
        self.used = False
        self._on_change = on_change
        #: slots whose answer is complete but for its usage
        self._ending: set[int] = set()
        #: a slot came free in the pass under way: what else came in the same read is not for its next holder
        self._settling = False
        self._attempts: list[SlotHolder | None] = [None] * slots

    def __repr__(self) -> str:
        return f"<Connection {self.key} {self.state} {self.taken}/{len(self._attempts)}>"

    # ------------------------------------------------------------------ what each kind adds

    @abstractmethod
    def _encode(self, slot: int, prompt: Prompt) -> bytes:
        """The request; from here `slot` is taken."""

    @abstractmethod
    def _concluded(self, slot: int) -> Finished:
        """The end of an answer whose usage will not come."""

    @abstractmethod
    def _discard(self, slot: int) -> None:
        """Nobody reads `slot` any more, while others are read; it is discarded already."""

    @abstractmethod
    def _release(self, slot: int) -> None:
        """The answer in `slot` is over."""

    # ------------------------------------------------------------------ life

    def opened(self, link: Link, now: float) -> None:
        """It stands: calls may come."""
        self._step("ready")
        self.link = link
        self.opened_at = now
        self._on_change(self)

    def drain(self) -> bool:
        """Take no new attempt; True when nothing is on it, so that it can be closed now."""
        if self.state == "READY" or self.state == "BUSY":
            self._step("retire")
        return self.active == 0

    def closed(self, fault: UpstreamFault, now: float) -> None:
        """It is gone: every attempt on it is lost."""
        if self.state == "CLOSED":
            return
        self._step("closed")
        attempts = self._attempts.copy()
        self._attempts[:] = [None] * len(attempts)  # in place: a pass under way must find nobody here
        self.taken = self.active = 0
        fault = self.fault or fault
        for slot, attempt in enumerate(attempts):
            if attempt is None:
                continue
            if slot in self._ending and isinstance(fault, ConnectionLost):
                # Its content was over, only the usage is missing: a close takes nothing away from the answer.
                attempt.on_finished(self._concluded(slot), now)
            else:
                attempt.on_lost(fault, now)
        self._ending.clear()

    def kill(self, fault: UpstreamFault) -> None:
        """Give it up at once, for `fault`; the pool is told, and looks at it with its next step."""
        if self.fault is None:
            self.fault = fault
        self.drain()
        if self.link is not None:
            self.link.abort()

    def view(self, now: float) -> ConnectionView:  # noqa: ARG002
        """As the pool's policy sees it."""
        opened_at = self.born_at if self.opened_at is None else self.opened_at
        return ConnectionView(self.key, self.state, opened_at, self.taken, self.retire_at)

    # ------------------------------------------------------------------ slots

    @property
    def free(self) -> bool:
        """A call may be started here now."""
        return (
            self.taken < len(self._attempts) and (self.state == "READY" or self.state == "BUSY") and not self._settling
        )

    def start(self, attempt: SlotHolder, prompt: Prompt) -> None:
        """Hand an attempt to the upstream.

        Raises:
            ConnectionLost: the connection is going away; nothing was written and no slot is taken.
        """
        link = self.link
        if link is None or not self.free:
            raise ConnectionLost(reason="not ready", how="local")
        slot = self._attempts.index(None)
        frame = self._encode(slot, prompt)
        try:
            link.send(slot, frame)
        except ConnectionLost as error:
            # Nothing can be sent any more, and the codec takes the slot for taken.
            self.fault = self.fault or error
            self.drain()
            raise
        self._attempts[slot] = attempt
        self.taken += 1
        self.active += 1
        self.used = True
        self._step("taken")

    def stop(self, attempt: SlotHolder) -> None:
        """Nobody wants this attempt any more: alone, it takes the connection with it; else its frames are dropped.

        There is no cancel in any dialect: closing is the only way to stop the upstream's work (and the bill), but where
        the transport can end one exchange alone.
        """
        if attempt not in self._attempts:
            return
        slot = self._attempts.index(attempt)
        self._attempts[slot] = DISCARDED
        self.active -= 1
        if self.active == 0:
            self._stop_working()
        else:
            self._discard(slot)

    def _stop_working(self) -> None:
        self.stopped_by_us = True
        self.kill(ConnectionLost(1000, "its only call was stopped", how="local"))

    def conclude(self, attempt: SlotHolder, now: float) -> None:
        """The usage of an ended answer did not come in time: end it without."""
        if attempt in self._attempts:
            slot = self._attempts.index(attempt)
            self._handle(slot, self._concluded(slot), now)
            self._settle()

    # ------------------------------------------------------------------ what comes

    def _content(self, slot: int, text: str, now: float) -> None:
        attempt = self._attempts[slot]
        if attempt is not None:
            attempt.on_content(text, now)

    def _settle(self) -> None:
        """The pass is over: slots that came free in it may be given out."""
        self._settling = False
        self._on_change(self)

    def _handle(self, slot: int, event: Started | Ending | Finished | Faulted | Expiring | Content, now: float) -> None:
        """Everything that is not content: a few frames per answer."""
        attempt = self._attempts[slot]
        if attempt is None:
            return
        if isinstance(event, Started):
            attempt.on_started(event)
        elif isinstance(event, Ending):
            self._ending.add(slot)
            attempt.on_ending(now)
        elif isinstance(event, Finished):
            self._release(slot)
            attempt.on_finished(event, now)
        elif isinstance(event, Faulted):
            self._release(slot)
            attempt.on_lost(event.error, now, event=event)

    def _step(self, event: str) -> None:
        self.state = CONNECTION.after(self.state, event)
