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
- what was not handed over, and what the daemon ended as ``draining`` before anything of it was sent upstream, nobody
  has begun: another daemon may have it. A `movable` session gives it away; any other keeps it for the next connection,
  unless the call wants to know (`moves_on`), or the deadline is nearer than `retry_after_ms`.
Models: h11, aioquic (time as an argument, state to look at instead of callbacks).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sidecar.client.calls import OpenCall, Question, is_over
from sidecar.client.ledger import Ledger
from sidecar.client.outgoing import Outgoing
from sidecar.client.request import encoded
from sidecar.client.salvage import UNREADABLE, Unreadable, pieces_of
from sidecar.client.verdicts import ENDS, Verdict, lateness_of, may_move, verdict_on
from sidecar.wire import (
    JSON,
    MSGPACK,
    Accepted,
    Delta,
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


class Session(Ledger):
    """See the module.

    Args:
        name: a label for people in the daemon's logs.
        numbers: what calls are named by; sessions between which calls move share it.
        changed: the list of what changed; the shell empties it, sessions of one client share it.
        movable: calls may be moved to other sessions.
        moves_on: what holds for calls that do not say.

    Attributes:
        leaving: no further call is begun here: the daemon said ``draining``, or its socket takes nothing any more.
        silent: a call was handed over and ended here without a word of the daemon, and none has come since.
        refusal: the last `failed` on receipt that says "not now" (draining, overloaded); the shell takes it away.
        returned: calls that were refused as draining and may be moved.
    """

    def __init__(
        self,
        *,
        name: str = "",
        numbers: Iterator[int] | None = None,
        changed: list[OpenCall | Question] | None = None,
        movable: bool = False,
        moves_on: bool = True,
    ) -> None:
        super().__init__(changed)
        self.movable, self._moves_on = movable, moves_on
        self.welcome: Welcome | None = None
        self.connected = self.ever_connected = self.leaving = self.silent = False
        self.refusal: Failed | None = None
        self.returned: list[OpenCall] = []
        self._held: list[OpenCall] = []
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._outgoing = Outgoing(name)

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
        wish = wishes.get("moves_on")
        moves_on = self._moves_on if wish is None else wish
        call = OpenCall(
            self, name, payload, stream=stream, timed=timed, deadline_at=now + timeout, grace=grace, moves_on=moves_on
        )
        self.adopt(call)
        return call

    def adopt(self, call: OpenCall) -> None:
        """Queue a call that no daemon has: a new one, or one that another session gave away."""
        call.home, call.handed_over, call.accepted = self, False, None
        self._calls[call.id] = call
        self._outgoing.add(call.payload, call)
        self._set_alarm(call)

    def hold(self, call: OpenCall, *, now: float) -> None:
        """Keep a call that was refused as draining until the connection is lost; end it where that is not soon enough.

        A successor needs longer than `retry_after_ms`, so a deadline before it is told at once.
        """
        refusal = call.refusal
        assert refusal is not None
        if call.deadline_at - now <= (refusal.retry_after_ms or 0) / 1000:
            self.end(call, refusal)
        else:
            call.handed_over, call.accepted = False, None
            self._calls[call.id] = call
            self._held.append(call)
            self._set_alarm(call)

    def give_away(self) -> list[OpenCall]:
        """Part with the calls that no daemon has; each must be adopted at once."""
        given = self._take_held() + self._outgoing.take_calls()
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

    def fail_waiting(self, message: str, *, patient: bool = False) -> None:
        """End what was not handed over yet as ``daemon_unavailable``: the shell looked, and nobody is there.

        `patient`: somebody may come: what can move on stays.
        """
        if patient:
            for call in tuple(self._calls.values()):
                if not call.handed_over and not call.moves_on:
                    self._fail(call, "daemon_unavailable", message)
            return
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
    def idle(self) -> bool:
        """No call and no question waits for anything here."""
        return not self._calls and not self._questions.all() and not self._outgoing.unfinished

    @property
    def homeless(self) -> bool:
        """Calls may be here that this daemon will not have."""
        return bool(self._held) or self.waiting

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
        self.connected = self.leaving = False
        self._outgoing.drop_cancels()
        for call in tuple(self._calls.values()):
            if call.handed_over:
                self._end_locally(call, "daemon_lost", "the daemon went away with the call open")
            elif not call.moves_on:
                self._end_locally(call, "daemon_unavailable", "the daemon went away before it had the call")
        for call in self._take_held():
            self._outgoing.add(call.payload, call)
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

    def expire(self, *, now: float) -> None:
        """End what is past its deadline and grace."""
        while self._alarms.earliest <= now and (at := self.next_wakeup_at()) is not None and at <= now:
            item: OpenCall | Question = self._alarms.first()
            handed_over = item.handed_over
            self._fail(item, *lateness_of(item, connected=self.connected))
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
                self._take_terminal(call, message, now)

    def _take_accepted(self, call: OpenCall, accepted: Accepted, now: float) -> None:
        if call.accepted is not None:
            return
        call.accepted = accepted
        if not call.timed:
            # Differences of the daemon's own clock: right even where it is not ours (another time namespace).
            call.deadline_at = now + max(0, accepted.deadline_mono_us - accepted.recv_mono_us) / 1e6
            self._set_alarm(call)

    def _take_terminal(self, call: OpenCall, terminal: Terminal, now: float) -> None:
        verdict = verdict_on(call, terminal)
        if type(terminal) is Failed and terminal.code in _NOT_NOW and call.accepted is None:
            self.refusal = terminal
        if verdict is ENDS:
            self.end(call, terminal)
        elif verdict is Verdict.DRAINING:
            self._take_draining(call, terminal, now)
        elif verdict is Verdict.INCOMPLETE:
            self._violation(call, f"{call.seq} deltas came, and done counts {terminal.deltas}")
        elif verdict is Verdict.FOREIGN:
            self._violation(call, "a terminal of another call came")

    def _take_draining(self, call: OpenCall, terminal: Terminal, now: float) -> None:
        self.leaving = True
        if not isinstance(terminal, Failed) or not may_move(call):
            self.end(call, terminal)
            return
        call.refusal = terminal
        if self.movable:
            del self._calls[call.id]
            self.returned.append(call)
        else:
            self.hold(call, now=now)

    def _take_held(self) -> list[OpenCall]:
        held, self._held = self._held, []
        return [call for call in held if call.ended is None]

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

    def _ask(self, question: Question, message: dict[str, Any]) -> Question:
        self._outgoing.say(message, question)
        self._set_alarm(question)
        return question

    def _say_cancel(self, call: OpenCall) -> None:
        message = {"type": "cancel", "id": call.id}
        if call.accepted is not None:
            message["call_id"] = call.accepted.call_id
        self._outgoing.say(message)
