"""One bot's conversation with the daemon, without sockets and clocks.

Payloads and instants go in; payloads to send, and the changed state of calls, come out. Both clients are thin shells.

What it promises, whatever the daemon does:

- exactly one terminal per call, and nothing after it: late messages for an ended or unknown id are ignored;
- the deadline holds here too: `expire()` ends a call `grace` seconds after it, so that the daemon's own terminal wins
  a tie, as ``deadline_exceeded``, or ``daemon_unavailable`` when the call could not even be handed over;
- what was not handed over by then never will be; what was is never handed over twice;
- a hole in `seq`, a `done` that counts other `deltas`, a foreign `call_id`, or an unreadable message about an open call
  is a protocol violation: that call fails `internal` and is cancelled, the others go on. What names no open call is
  ignored (a newer daemon may send it): what was lost with it is found by the counts, or by the deadline;
- a disconnect ends every call handed over as ``daemon_lost``, at once; so does a new `session` in `welcome`;
- only a `movable` session gives calls away: what was not handed over, and what the daemon refused on receipt because it
  is draining. It has begun neither, so another daemon may have them.
Models: h11, aioquic (time as an argument, state to look at instead of callbacks).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sidecar.client.alarms import Alarms
from sidecar.client.calls import OpenCall, Question, is_over
from sidecar.client.outgoing import Outgoing
from sidecar.client.questions import Questions
from sidecar.client.request import encoded
from sidecar.client.salvage import UNREADABLE, Unreadable, pieces_of
from sidecar.errors import CallFailed
from sidecar.wire import (
    JSON,
    MSGPACK,
    Accepted,
    Delta,
    Done,
    Failed,
    Pong,
    Report,
    Restarted,
    Terminal,
    Welcome,
)

_FROM_JSON: Final = JSON.decode_from_daemon
_FROM_MSGPACK: Final = MSGPACK.decode_from_daemon
_JSON_BEGINS: Final = (b"{", b"[")  # as `wire.encoding_of` tells

#: Until `accepted` says the deadline, a call without `timeout_ms` is given this long.
UNACCEPTED_TIMEOUT: Final = 2.0
#: How long after the deadline the daemon's own terminal may still come.
GRACE: Final = 0.020
#: The same for `choose()`, which promises to be back 10 ms after the deadline.
CHOOSE_GRACE: Final = 0.001
#: Refusals on receipt after which other daemons are asked for a moment.
_NOT_NOW: Final = frozenset({"draining", "overloaded"})


class Session:
    """See the module.

    Args:
        name: a label for people in the daemon's logs.
        numbers: what calls are named by; sessions between which calls move share it.
        changed: the list of what changed; the shell empties it, sessions of one client share it.
        movable: calls may be moved to other sessions.

    Attributes:
        silent: a call was handed over and ended here without a word of the daemon, and none has come since.
        refusal: the last `failed` on receipt that says "not now" (draining, overloaded); the shell takes it away.
        returned: calls that were refused as draining and may be moved, each with its refusal.
    """

    def __init__(
        self,
        *,
        name: str = "",
        numbers: Iterator[int] | None = None,
        changed: list[OpenCall | Question] | None = None,
        movable: bool = False,
    ) -> None:
        self.movable = movable
        self.welcome: Welcome | None = None
        self.connected = self.ever_connected = self.silent = False
        self.refusal: Failed | None = None
        self.returned: list[tuple[OpenCall, Failed]] = []
        #: calls and questions that changed since the shell last emptied this list
        self.changed: list[OpenCall | Question] = [] if changed is None else changed
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._calls: dict[str, OpenCall] = {}
        self._questions = Questions()
        self._outgoing = Outgoing(name)
        self._alarms = Alarms()

    def __repr__(self) -> str:
        return f"<Session connected={self.connected} calls={len(self._calls)} outgoing={len(self._outgoing)}>"

    # ------------------------------------------------------------------ from the bot

    def open(
        self,
        prompt: str | None,
        wishes: Mapping[str, Any],
        *,
        now: float,
        mono_us: int,
        stream: bool = True,
        grace: float = GRACE,
    ) -> OpenCall:
        """Queue a call.

        Args:
            prompt: the input; None when `messages` is among the wishes.
            wishes: as `Wishes`.
            now: seconds, any clock that does not jump.
            mono_us: CLOCK_MONOTONIC in microseconds, sent along: the daemon counts the timeout from it.
            stream: False for the whole text in the terminal.
            grace: seconds after the deadline before the client gives up by itself.

        Raises:
            TypeError: a wish of that name does not exist.
            RequestRefused: it cannot be encoded, a timeout is no positive number, or it is too large.
        """
        number = next(self._numbers)
        name = f"c{number}"
        limit = None if self.welcome is None else self.welcome.limits.max_message_bytes
        payload = encoded(name, prompt, wishes, mono_us=mono_us, stream=stream, limit=limit)
        timeout_ms = wishes.get("timeout_ms")
        timeout = UNACCEPTED_TIMEOUT if timeout_ms is None else timeout_ms / 1000
        timed = timeout_ms is not None
        call = OpenCall(self, name, payload, stream=stream, timed=timed, deadline_at=now + timeout, grace=grace)
        self.adopt(call)
        return call

    def adopt(self, call: OpenCall) -> None:
        """Queue a call that no daemon has: a new one, or one that another session gave away."""
        call.home, call.handed_over = self, False
        self._calls[call.id] = call
        self._outgoing.add(call.payload, call)
        self._set_alarm(call)

    def give_away(self) -> list[OpenCall]:
        """Part with the calls that were not handed over; each must be adopted at once."""
        given = self._outgoing.take_calls()
        for call in given:
            del self._calls[call.id]
        return given

    def cancel(self, call: OpenCall) -> None:
        """Ask for the end of a call; its terminal follows. One that was not handed over yet ends here and now."""
        if call.ended is None:
            call.unwanted = True
            if call.handed_over:
                self._say_cancel(call)
            else:
                self._end_locally(call, "cancelled", "cancelled before it was sent")

    def abandon(self, call: OpenCall) -> None:
        """Cancel a call and forget it: nobody waits for its terminal."""
        if call.ended is None:
            handed_over = call.handed_over
            self._end_locally(call, "cancelled", "left before its end")
            if handed_over:
                self._say_cancel(call)

    def ping(self, *, now: float, timeout: float) -> Question:
        """Queue a `ping`."""
        number = next(self._numbers)
        question = self._questions.ping(number, until=now + timeout)
        return self._ask(question, {"type": "ping", "nonce": number})

    def probe(self, check: str, *, now: float, timeout: float) -> Question:
        """Queue a `probe`."""
        return self._ask(Question("probe", next(self._numbers), now + timeout), {"type": "probe", "check": check})

    def fail_waiting(self, message: str) -> None:
        """End what was not handed over yet as ``daemon_unavailable``: the shell looked, and nobody can be there."""
        for item in self._outgoing.clear():
            self._fail(item, "daemon_unavailable", message)

    def close(self) -> None:
        """End everything here: the shell is closing, and the daemon ends the calls of a connection that goes."""
        items: list[OpenCall | Question] = [*self._calls.values(), *self._questions.all()]
        items += self._outgoing.clear()
        for item in items:
            if not is_over(item):
                self._fail(item, "cancelled", "the client was closed")

    @property
    def open_calls(self) -> int:
        """How many have not ended."""
        return len(self._calls)

    @property
    def idle(self) -> bool:
        """No call and no question waits for anything here."""
        return not self._calls and not self._questions.all() and not self._outgoing.unfinished

    @property
    def waiting(self) -> bool:
        """Something may wait to be handed over."""
        return bool(self._outgoing) if self.connected else self._outgoing.queued

    # ------------------------------------------------------------------ to the socket

    def next_payload(self) -> bytes | None:
        """What to hand to the socket next, None when there is nothing. It stays first until `handed_over()`.

        Nothing without a connection: what a socket takes meanwhile may reach nobody, or somebody later.
        """
        return self._outgoing.first() if self.connected else None

    def handed_over(self) -> None:
        """The socket took what `next_payload()` gave."""
        item = self._outgoing.taken()
        if item is not None:
            item.handed_over = True
            if isinstance(item, Question):
                self._questions.handed_over(item)

    # ------------------------------------------------------------------ from the socket

    def connection_made(self) -> None:
        """The handshake is done: what is queued may go."""
        self.connected = self.ever_connected = True

    def connection_lost(self) -> None:
        """The connection is gone. Every call handed over is lost; what was not waits for the next connection."""
        self.connected = False
        self._outgoing.drop_cancels()
        for call in [call for call in self._calls.values() if call.handed_over]:
            self._end_locally(call, "daemon_lost", "the daemon went away with the call open")
        for question in self._questions.connection_lost():
            self._fail(question, "daemon_lost", "the daemon went away")
        self._outgoing.greet()

    def receive(self, payload: bytes, *, now: float) -> None:
        """Take one message of the daemon, or an array of them."""
        self.silent = False
        try:
            decoded = (_FROM_JSON if payload[:1] in _JSON_BEGINS else _FROM_MSGPACK)(payload)
        except UNREADABLE:
            self._salvage(payload, now)
            return
        self._hear(decoded if type(decoded) is list else (decoded,), now)

    # ------------------------------------------------------------------ time

    def next_wakeup_at(self) -> float | None:
        """When `expire()` wants to be called, None when nothing is under way."""
        return self._alarms.next_at(self._settled)

    @property
    def due_at(self) -> float:
        """No call for `expire()` before this instant; infinity for none. Cheap, for every pass."""
        return self._alarms.earliest

    def expire(self, *, now: float) -> None:
        """End what is past its deadline and grace."""
        while self._alarms.earliest <= now and (at := self.next_wakeup_at()) is not None and at <= now:
            item: OpenCall | Question = self._alarms.first()
            handed_over = item.handed_over
            if not handed_over and not self.connected:
                self._fail(item, "daemon_unavailable", "no connection to the daemon by the deadline")
            else:
                self._fail(item, "deadline_exceeded", "the deadline passed, and the daemon had not ended the call")
            if handed_over and isinstance(item, OpenCall):
                self.silent = item.accepted is None
                self._say_cancel(item)

    # ------------------------------------------------------------------ inside

    def _hear(self, messages: Iterable[Any], now: float) -> None:
        calls, changed = self._calls, self.changed
        for message in messages:
            if type(message) is not Delta:
                self._take(message, now)
                continue
            # The path of nearly every token: nothing is called for it.
            call = calls.get(message.id)
            if call is None:
                continue
            if message.seq != call.seq:
                self._violation(call, f"delta {message.seq} came where {call.seq} was due")
                continue
            call.seq += 1
            if message.text:
                call.pieces.append(message.text)
                if not call.changed:
                    call.changed = True
                    changed.append(call)

    def _take(self, message: Any, now: float) -> None:
        kind = type(message)
        if kind is Welcome:
            self._take_welcome(message)
        elif kind is Pong or kind is Report:
            question = self._questions.answered(message)
            if question is not None:
                self._touch(question)
        elif (call := self._calls.get(message.id)) is not None:
            if kind is Accepted:
                self._take_accepted(call, message, now)
            elif kind is Restarted:
                call.pieces.clear()
                call.seq = 0
                call.restarts += 1
                self._touch(call)
            else:
                self._take_terminal(call, message)

    def _take_accepted(self, call: OpenCall, accepted: Accepted, now: float) -> None:
        if call.accepted is not None:
            return
        call.accepted = accepted
        if not call.timed:
            # Differences of the daemon's own clock: right even where it is not ours (another time namespace).
            call.deadline_at = now + max(0, accepted.deadline_mono_us - accepted.recv_mono_us) / 1e6
            self._set_alarm(call)

    def _take_terminal(self, call: OpenCall, terminal: Terminal) -> None:
        accepted = call.accepted
        if isinstance(terminal, Failed) and terminal.call_id is None:
            if accepted is not None:
                return  # a refusal: it ends no call in flight
            if terminal.code in _NOT_NOW:
                self.refusal = terminal
            if terminal.code == "draining" and self.movable and not call.unwanted:
                del self._calls[call.id]
                self.returned.append((call, terminal))
                return
        if accepted is not None and terminal.call_id != accepted.call_id:
            self._violation(call, "a terminal of another call came")
        elif call.stream and isinstance(terminal, Done) and terminal.deltas != call.seq:
            self._violation(call, f"{call.seq} deltas came, and done counts {terminal.deltas}")
        else:
            self.end(call, terminal)

    def _take_welcome(self, welcome: Welcome) -> None:
        previous, self.welcome = self.welcome, welcome
        if previous is not None and previous.session != welcome.session:
            for call in list(self._calls.values()):
                if call.accepted is not None and call.accepted.session != welcome.session:
                    self._end_locally(call, "daemon_lost", "the daemon was restarted")

    def _salvage(self, payload: bytes, now: float) -> None:
        """Read what can be read of an unreadable payload, message by message."""
        for message in pieces_of(payload):
            if not isinstance(message, Unreadable):
                self._hear((message,), now)
            elif (call := self._calls.get(message.id)) is not None:
                self._violation(call, f"an unreadable {message.type} came")

    def _violation(self, call: OpenCall, what: str) -> None:
        self._end_locally(call, "internal", f"the daemon broke the protocol: {what}")
        self._say_cancel(call)

    def _fail(self, item: OpenCall | Question, code: str, message: str) -> None:
        if isinstance(item, OpenCall):
            self._end_locally(item, code, message)
        elif not item.over:
            self._questions.fail(item, CallFailed.of(code, message, retryable=code == "daemon_unavailable"))
            self._touch(item)

    def _end_locally(self, call: OpenCall, code: str, message: str) -> None:
        call.local = True
        retryable, partial = code == "daemon_unavailable", bool(call.pieces)
        terminal = Failed(id=call.id, code=code, message=message, retryable=retryable, partial=partial, deltas=call.seq)
        self.end(call, terminal)

    def end(self, call: OpenCall, terminal: Terminal) -> None:
        """Give it this terminal: what `_take_terminal` found right, or the refusal of a call that nobody else takes."""
        call.ended = terminal
        self._calls.pop(call.id, None)
        self._touch(call)

    def _touch(self, item: OpenCall | Question) -> None:
        if not item.changed:
            item.changed = True
            self.changed.append(item)

    def _set_alarm(self, item: OpenCall | Question) -> None:
        self._alarms.set(item, alive=len(self._calls) + len(self._questions), over=self._settled)

    def _settled(self, item: OpenCall | Question) -> bool:
        """Over, or given to another session: this one's alarm is not for it."""
        return is_over(item) or (isinstance(item, OpenCall) and item.home is not self)

    def _ask(self, question: Question, message: dict[str, Any]) -> Question:
        self._outgoing.say(message, question)
        self._set_alarm(question)
        return question

    def _say_cancel(self, call: OpenCall) -> None:
        message = {"type": "cancel", "id": call.id}
        if call.accepted is not None:
            message["call_id"] = call.accepted.call_id
        self._outgoing.say(message)
