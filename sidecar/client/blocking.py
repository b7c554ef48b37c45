"""`Client`: the blocking shell. No thread of its own: bytes move while a method of it runs.

Example::

    with Client() as client:
        print(client.ask("EURUSD headline: ... one word?", timeout_ms=800))
        side = client.choose("EURUSD headline: ...", ["BUY", "SELL", "HOLD"], default="HOLD", timeout_ms=500)
        with client.stream("Summarise: ...") as stream:
            for piece in stream:
                print(piece, end="")
        print(stream.answer.finish)
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Self, TypeVar, Unpack

from sidecar.client.answers import Answer, Choice, Choices
from sidecar.client.calls import ChoiceWishes, OpenCall, Question, Wishes
from sidecar.client.endpoint import Places, find_places
from sidecar.client.fleet import Fleet
from sidecar.client.handle import Reading
from sidecar.client.link import Link
from sidecar.client.session import CHOOSE_GRACE, GRACE, Session
from sidecar.errors import SidecarError
from sidecar.wire import Pong, Report, Welcome

_FAR: Final = 3600.0
_FD_SETSIZE: Final = 1024  # `select` knows no higher descriptors
ItemT = TypeVar("ItemT", OpenCall, Question)


class Client:
    """A blocking connection to the daemon.

    Args:
        endpoint: ``ipc:///path``, several of them with commas between, or a pattern such as
            ``ipc:///run/sidecar-*/sidecar.sock``; None looks as `sidecar.client.endpoint.find_places` says.
        name: a label for people in the daemon's logs.
        moves_on: see below; each call may say otherwise.

    Making one never fails for want of a daemon: the calls say so, as `DaemonGone` (``daemon_unavailable``), at once
    when the socket is missing or forbidden, at the deadline when it does not answer. A lost connection is made again by
    itself. Every method that makes a call takes the wishes of the wire by name: `route`, `instructions`, `options`,
    `timeout_ms`, `first_delta_timeout_ms`, `idle_timeout_ms`, `lane`, `on_lost`, and `messages` in place of the prompt.

    A daemon that is restarted: with `moves_on`, a call that it would not begin (``draining``), and one that finds
    nobody where a daemon was before, goes to another daemon at once where there are several, and else to the next one
    as soon as that is there, within its deadline, with `sent_mono_us` as it was. It fails as ``draining`` or
    ``daemon_unavailable`` at its deadline, or at once when that is sooner than the refusal's `retry_after_ms`. With
    ``moves_on=False`` it fails at once. That is all a client does by itself: a call that a daemon began is never sent
    again (``daemon_lost``), and any other refusal (``overloaded``, ``breaker_open``, ...) is the bot's to heed:
    where `CallFailed.retryable`, the same call may be made again, not before `retry_after_ms`.

    The deadline counts from the call of the method, and is kept here too: without `timeout_ms` the route's holds once
    the call is accepted, and 2,000 ms until then.

    Threads: one at a time; two at once are told so by a `SidecarError`. A forked child must make its own.
    Signals: KeyboardInterrupt passes through; the call it interrupts is cancelled.

    Raises:
        EndpointError: the endpoint is no ipc path, or too long.
    """

    def __init__(self, endpoint: str | None = None, *, name: str = "", moves_on: bool = True) -> None:
        places = find_places(endpoint)
        self.endpoint = str(places)
        self._pump = Pump(places, name=name, moves_on=moves_on)

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon said of itself, None before it did: version, session, limits, routes."""
        return self._pump.session.welcome

    def stream(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> Handle:
        """Send a call whose text is wanted as it comes. Use it in a ``with``: leaving early cancels the call."""
        return self._open(prompt, wishes)

    def submit(self, prompt: str | None = None, *, stream: bool = True, **wishes: Unpack[Wishes]) -> Handle:
        """Send a call and go on: `Handle.poll()` looks, `Handle.result()` waits, `Handle.cancel()` ends it.

        Args:
            prompt: the input.
            stream: False for the whole text at the end (a lost attempt can then be replaced).
            **wishes: see the class.
        """
        return self._open(prompt, wishes, stream=stream)

    def ask(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> Answer:
        """One call, the whole text. Sent with ``stream: false``: an attempt that is lost can be replaced.

        Raises:
            CallFailed: the subclass of its code's group; `text` keeps what came.
        """
        handle = self._open(prompt, wishes, stream=False)
        with handle:
            return handle.result()

    def choose(
        self,
        prompt: str | None,
        choices: Iterable[str],
        *,
        default: str,
        timeout_ms: float,
        **wishes: Unpack[ChoiceWishes],
    ) -> Choice:
        """Let the model pick one of `choices`; the default when it does not, in time, exactly.

        Never raises (KeyboardInterrupt, SystemExit pass), never later than `timeout_ms` plus 10 ms: not for a
        dead, stopped or missing daemon, nor for wrong arguments. `Choice.reason` says why. An answer counts when it is
        complete, and exactly one of the choices after trimming white space, quotes and a full stop, and case-folding.

        Args:
            prompt: the input.
            choices: distinct words; the choice comes back as spelled here.
            default: what to return otherwise; need not be one of them.
            timeout_ms: the whole call.
            **wishes: see the class. Without `instructions`, the model is told to answer with one of the choices.
        """
        handle: Handle | None = None
        try:
            words = Choices(choices)
            handle = self._open(prompt, words.wishes(wishes, timeout_ms), stream=False, grace=CHOOSE_GRACE)
            return words.judge(handle.result(), default)
        except Exception as problem:  # noqa: BLE001 - "never raises" is the promise; the reason tells
            return Choice.fallback(default, problem, sent=handle is not None)
        finally:
            if handle is not None and not handle.ended:
                handle.leave()

    def ping(self, *, timeout_ms: float = 1000) -> Pong:
        """A round trip.

        Raises:
            CallFailed: ``daemon_unavailable``, ``daemon_lost``, ``deadline_exceeded``.
        """
        answer = self._ask(lambda session: session.ping(now=time.monotonic(), timeout=timeout_ms / 1000))
        assert isinstance(answer, Pong)
        return answer

    def probe(self, check: str = "full", *, timeout_ms: float = 1000) -> Report:
        """The daemon's health.

        Raises:
            CallFailed: ``daemon_unavailable``, ``daemon_lost``, ``deadline_exceeded``.
        """
        answer = self._ask(lambda session: session.probe(check, now=time.monotonic(), timeout=timeout_ms / 1000))
        assert isinstance(answer, Report)
        return answer

    def close(self) -> None:
        """Close the connection; the daemon ends the calls still open. May be called twice."""
        self._pump.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, prompt: str | None, wishes: Wishes, *, stream: bool = True, grace: float = GRACE) -> Handle:
        now = time.monotonic()
        call = self._pump.start(
            lambda session: session.open(prompt, wishes, now=now, mono_us=int(now * 1e6), stream=stream, grace=grace)
        )
        return Handle(self._pump, call)

    def _ask(self, ask: Callable[[Session], Question]) -> Pong | Report:
        question = self._pump.start(ask)
        self._pump.run(lambda: question.over)
        if question.failure is not None:
            raise question.failure
        assert question.answer is not None
        return question.answer


class Handle(Reading):
    """One call of a `Client`: an iterator of text pieces, and its terminal afterwards.

    Used in a ``with``, leaving before the end cancels the call.
    """

    def __init__(self, pump: Pump, call: OpenCall) -> None:
        super().__init__(call)
        self._pump = pump

    def poll(self, timeout_ms: float = 0) -> Answer | None:
        """Look, for at most `timeout_ms`: the answer, or None while the call is open.

        Raises:
            CallFailed: it failed.
        """
        if not self.ended:
            self._pump.run(lambda: self.ended, until=time.monotonic() + timeout_ms / 1000)
        return self.answer if self.ended else None

    def result(self) -> Answer:
        """Wait for the end: the answer.

        Raises:
            CallFailed: it failed; `text` keeps what came.
        """
        self._pump.run(lambda: self.ended)
        return self.answer

    def cancel(self) -> None:
        """Ask the daemon to end it, upstream too. The terminal follows: ``cancelled``, or one already on its way."""
        self._pump.say(lambda: self._call.home.cancel(self._call))

    def leave(self) -> None:
        """Cancel it and wait for nothing; it has ended as ``cancelled`` here. Nothing when it had ended."""
        if not self.ended:
            try:
                self._pump.say(lambda: self._call.home.abandon(self._call))
            except SidecarError:
                pass  # closed, forked, or another thread is inside: the daemon, or the deadline, ends the call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while (piece := self._next_piece()) is None:
            if self.ended:
                _ = self.answer  # raises what must be raised
                raise StopIteration
            self._pump.turn(_FAR)
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Pump:
    """Moves the bytes of one client while somebody waits for something."""

    def __init__(self, places: Places, *, name: str, moves_on: bool) -> None:
        self.fleet = Fleet(places, name=name, now=time.monotonic(), moves_on=moves_on)
        # Nobody waits for this lock, `_enter` sees to that: two threads in one client are a mistake, and a deadline
        # must not wait for it. Taken by `with` only: whenever a signal handler raises, it is let go again.
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._watched: dict[int, Link] = {}

    @property
    def session(self) -> Session:
        """Of the first daemon that is connected."""
        return self.fleet.session

    def say(self, what: Callable[[], object]) -> None:
        """Change a session, then hand over what there is to hand over.

        Raises:
            SidecarError: the client is closed, forked, or in use by another thread.
        """
        self._enter()
        with self._lock:
            what()
            self.fleet.flush()

    def start(self, ask: Callable[[Session], ItemT]) -> ItemT:
        """Begin a call or a question, and fail it at once where nobody can be there."""
        self._enter()
        with self._lock:
            now = time.monotonic()
            item = ask(self.fleet.home(now))
            self.fleet.flush()
            if not item.handed_over:
                self.fleet.settle(now)
                self.fleet.explain_absence()
        return item

    def run(self, over: Callable[[], bool], *, until: float | None = None) -> None:
        """Turn until it is over or the instant has come, at least once."""
        while not over():
            left = _FAR if until is None else until - time.monotonic()
            self.turn(left)
            if left <= 0:
                return

    def turn(self, longest: float) -> None:
        """One pass: do what is due; if nothing was, wait at most `longest` seconds for bytes, and take them."""
        self._enter()
        with self._lock:
            fleet = self.fleet
            now = time.monotonic()
            due_at = fleet.due_at
            if due_at <= now:
                fleet.tick(now)
                due_at = fleet.due_at
            if fleet.changed:
                self._forget_changes()
                longest = 0.0
            if fleet.stale:
                self._watch()
            for descriptor, event in self._wait(min(longest, due_at - now)):
                link = self._watched[descriptor]
                if event & select.POLLOUT:
                    link.write()
                if event & ~select.POLLOUT:
                    link.read(time.monotonic())
            fleet.settle(now)
            if fleet.changed:
                self._forget_changes()

    def close(self) -> None:
        """End everything; in a forked child, nothing of the parent's."""
        self.fleet.close()

    def _forget_changes(self) -> None:
        """Nobody is woken here: whoever waits looks for himself."""
        changed = self.fleet.changed
        for item in changed:
            item.changed = False
        changed.clear()

    def _wait(self, longest: float) -> list[tuple[int, int]]:
        """What is ready, after at most `longest` seconds: perhaps a little early, when nothing is; then ask again.

        `poll` counts milliseconds and rounds up; the last one before an instant is left to `select`.
        """
        if longest >= 0.001:
            return self._poll.poll(int(longest * 1000))
        if longest > 0:
            if max(self._watched, default=0) >= _FD_SETSIZE:
                return self._poll.poll(1)
            select.select(self._watched, (), (), longest)
        return self._poll.poll(0)

    def _watch(self) -> None:
        """Bring what is polled up to date with the links."""
        poll = select.poll()
        watched = {link.descriptor: link for link in self.fleet.links if link.descriptor >= 0}
        for descriptor, link in watched.items():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if link.wants_write else 0))
        self._poll, self._watched = poll, watched  # both or none, whenever a signal handler raises
        self.fleet.bury()

    def _enter(self) -> None:
        reason = self.fleet.usable()
        if reason is not None:
            raise SidecarError(reason)
        if self._lock.locked():
            raise SidecarError("this client is in use by another thread, or below a signal handler: make another")
