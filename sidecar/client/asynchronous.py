"""`AsyncClient`: the asyncio shell. No thread, no hop: the loop itself watches the sockets.

Example::

    async with AsyncClient() as client:
        async with client.stream("Summarise: ...", timeout_ms=2000) as stream:
            async for piece in stream:
                print(piece, end="")
        side = await client.choose("...", ["BUY", "SELL", "HOLD"], default="HOLD", timeout_ms=500)

One wake-up of the loop reads all there is and wakes each waiting task at most once, however many deltas came. Not
`zmq.asyncio`: its futures cost more than the messages.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import NoReturn, Self, TypeVar, Unpack

from sidecar.client.answers import Answer, Choice, Choices
from sidecar.client.calls import ChoiceWishes, OpenCall, Question, Wishes, is_over
from sidecar.client.endpoint import Places, find_places
from sidecar.client.fleet import Fleet
from sidecar.client.handle import Reading
from sidecar.client.link import Link
from sidecar.client.session import CHOOSE_GRACE, GRACE, Session
from sidecar.errors import SidecarError
from sidecar.wire import Pong, Report, Welcome

ItemT = TypeVar("ItemT", OpenCall, Question)


class AsyncClient:
    """A connection to the daemon for one asyncio loop. Arguments, wishes and promises as `sidecar.Client`.

    The deadline counts from the call of the method. It is kept as well as the loop allows: a callback that blocks the
    loop is late for everybody.
    Cancellation: a task cancelled in `ask()`, `choose()` or inside ``async with`` has its call cancelled, upstream too,
    and `CancelledError` passes through.

    Raises:
        EndpointError: the endpoint is no ipc path, or too long.
    """

    def __init__(self, endpoint: str | None = None, *, name: str = "", moves_on: bool = True) -> None:
        places = find_places(endpoint)
        self.endpoint = str(places)
        self._pump = LoopPump(places, name=name, moves_on=moves_on)

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon said of itself, None before it did: version, session, limits, routes."""
        return self._pump.session.welcome

    def stream(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> AsyncHandle:
        """Send a call whose text is wanted as it comes. Use it in an ``async with``: leaving early cancels the call."""
        return self._open(prompt, wishes)

    def submit(self, prompt: str | None = None, *, stream: bool = True, **wishes: Unpack[Wishes]) -> AsyncHandle:
        """Send a call and go on: `poll()` looks, `result()` waits, `cancel()` ends it. Sent before this returns."""
        return self._open(prompt, wishes, stream=stream)

    async def ask(self, prompt: str | None = None, **wishes: Unpack[Wishes]) -> Answer:
        """One call, the whole text; as `Client.ask`.

        Raises:
            CallFailed: the subclass of its code's group.
        """
        handle = self._open(prompt, wishes, stream=False)
        try:
            return await handle.result()
        finally:
            handle.leave()

    async def choose(
        self,
        prompt: str | None,
        choices: Iterable[str],
        *,
        default: str,
        timeout_ms: float,
        **wishes: Unpack[ChoiceWishes],
    ) -> Choice:
        """One of `choices`, or the default and why; as `Client.choose`. Raises nothing but CancelledError."""
        handle: AsyncHandle | None = None
        try:
            words = Choices(choices)
            handle = self._open(prompt, words.wishes(wishes, timeout_ms), stream=False, grace=CHOOSE_GRACE)
            return words.judge(await handle.result(), default)
        except Exception as problem:  # noqa: BLE001 - "never raises" is the promise; CancelledError is no Exception
            return Choice.fallback(default, problem, sent=handle is not None)
        finally:
            if handle is not None:
                handle.leave()

    async def ping(self, *, timeout_ms: float = 1000) -> Pong:
        """A round trip.

        Raises:
            CallFailed: ``daemon_unavailable``, ``daemon_lost``, ``deadline_exceeded``.
        """
        answer = await self._ask(lambda session: session.ping(now=time.monotonic(), timeout=timeout_ms / 1000))
        assert isinstance(answer, Pong)
        return answer

    async def probe(self, check: str = "full", *, timeout_ms: float = 1000) -> Report:
        """The daemon's health.

        Raises:
            CallFailed: ``daemon_unavailable``, ``daemon_lost``, ``deadline_exceeded``.
        """
        timeout = timeout_ms / 1000
        answer = await self._ask(lambda session: session.probe(check, now=time.monotonic(), timeout=timeout))
        assert isinstance(answer, Report)
        return answer

    def close(self) -> None:
        """Close the connection; calls still open end as ``cancelled``. May be called twice."""
        self._pump.close()

    async def __aenter__(self) -> Self:
        self._pump.attach()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _open(self, prompt: str | None, wishes: Wishes, *, stream: bool = True, grace: float = GRACE) -> AsyncHandle:
        now = time.monotonic()
        call = self._pump.start(
            lambda session: session.open(prompt, wishes, now=now, mono_us=int(now * 1e6), stream=stream, grace=grace)
        )
        return AsyncHandle(self._pump, call)

    async def _ask(self, ask: Callable[[Session], Question]) -> Pong | Report:
        question = self._pump.start(ask)
        while not question.over:
            await self._pump.changed(question)
        if question.failure is not None:
            raise question.failure
        assert question.answer is not None
        return question.answer


class AsyncHandle(Reading):
    """One call of an `AsyncClient`: an asynchronous iterator of text pieces, and its terminal afterwards.

    Used in an ``async with``, leaving before the end cancels the call. The loop moves the bytes: `poll()` only looks.
    """

    def __init__(self, pump: LoopPump, call: OpenCall) -> None:
        super().__init__(call)
        self._pump = pump

    def poll(self) -> Answer | None:
        """The answer, or None while the call is open.

        Raises:
            CallFailed: it failed.
        """
        return self.answer if self.ended else None

    async def result(self) -> Answer:
        """Wait for the end: the answer. Cancelling the wait leaves the call running.

        Raises:
            CallFailed: it failed; `text` keeps what came.
        """
        while not self.ended:
            await self._pump.ended(self._call)
        return self.answer

    def cancel(self) -> None:
        """Ask the daemon to end it, upstream too. The terminal follows: ``cancelled``, or one already on its way."""
        self._call.home.cancel(self._call)
        self._pump.move()

    def leave(self) -> None:
        """Cancel it and wait for nothing; it has ended as ``cancelled`` here. Nothing when it had ended."""
        if not self.ended:
            self._call.home.abandon(self._call)
            self._pump.move()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        call = self._call
        while True:
            pieces, read = call.pieces, self._read
            if read < len(pieces) and self._restarts == call.restarts:  # nearly always: no call for it
                self._read = read + 1
                return pieces[read]
            piece = self._next_piece()
            if piece is not None:
                return piece
            if call.ended is not None:
                _ = self.answer  # raises what must be raised
                raise StopAsyncIteration
            await self._pump.changed(call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()


class LoopPump:
    """Moves the bytes of one client whenever the loop says that there are some."""

    def __init__(self, places: Places, *, name: str, moves_on: bool) -> None:
        self.fleet = Fleet(places, name=name, now=time.monotonic(), moves_on=moves_on)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._reading: dict[int, Link] = {}
        self._writing: set[int] = set()

    @property
    def session(self) -> Session:
        """Of the first daemon that is connected."""
        return self.fleet.session

    def attach(self) -> None:
        """Watch the descriptors from the running loop: the first one the client is used in, or one after its end.

        Raises:
            SidecarError: the client is closed, forked, or of another running loop.
        """
        reason = self.fleet.usable()
        if reason is not None:
            raise SidecarError(reason)
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise SidecarError("this client belongs to another event loop: make one client per loop")
        self._loop, self._timer, self._timer_at = loop, None, math.inf
        self._future = loop.create_future
        self._reading, self._writing = {}, set()
        self._watch(loop)
        self.move()

    def start(self, ask: Callable[[Session], ItemT]) -> ItemT:
        """Begin a call or a question, and fail it at once where nobody can be there."""
        self.attach()
        fleet = self.fleet
        item = ask(fleet.home(time.monotonic()))
        fleet.flush()
        if not item.handed_over:
            fleet.settle(time.monotonic())
            fleet.explain_absence()
        self._rest()
        return item

    def move(self) -> None:
        """Do what is due, and hand over what there is: the timer has rung, or a call was cancelled."""
        if self._loop is None or self.fleet.usable() is not None:
            return
        self.fleet.tick(time.monotonic())
        self.fleet.flush()
        self._rest()

    def changed(self, call: OpenCall | Question) -> asyncio.Future[None]:
        """To be awaited: something new is known of it. Several tasks may wait for one call."""
        if self._loop is None or self.fleet.forked:
            self._refuse()
        waiter: asyncio.Future[None] = self._future()
        if call.wake is None:
            call.wake = [waiter]
        else:  # without those that were cancelled: a reader with a timeout of its own would pile them up
            call.wake = [other for other in call.wake if not other.done()] + [waiter]
        return waiter

    def ended(self, call: OpenCall) -> asyncio.Future[None]:
        """To be awaited: its terminal is there. Pieces wake nobody who waits for this."""
        if self._loop is None or self.fleet.forked:
            self._refuse()
        waiter: asyncio.Future[None] = self._future()
        if call.wake_at_end is None:
            call.wake_at_end = [waiter]
        else:
            call.wake_at_end = [other for other in call.wake_at_end if not other.done()] + [waiter]
        return waiter

    def close(self) -> None:
        """End everything; in a forked child, nothing of the parent's."""
        if self.fleet.usable() is None:
            loop, self._loop = self._loop, None
            if self._timer is not None:
                self._timer.cancel()
            if loop is not None and not loop.is_closed():
                for descriptor in self._reading:
                    loop.remove_reader(descriptor)
                for descriptor in self._writing:
                    loop.remove_writer(descriptor)
        self.fleet.close()
        self._tell()

    def _refuse(self) -> NoReturn:
        raise SidecarError(self.fleet.usable() or "this client is closed")

    def _readable(self, link: Link) -> None:
        now = time.monotonic()
        link.read(now)
        if link.session.due_at <= now:
            link.tick(now)
        if self.fleet.several:
            self.fleet.settle(now)
        self._rest()

    def _writable(self, link: Link) -> None:
        link.write()
        self._rest()

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.move()

    def _rest(self) -> None:
        """The end of every pass: wake who is concerned, watch what is there, and set the one timer."""
        fleet = self.fleet
        if fleet.changed:
            self._tell()
        loop = self._loop
        assert loop is not None
        if fleet.stale:
            self._watch(loop)
        due_at = fleet.due_at
        if due_at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due_at
            self._timer = loop.call_later(max(0.0, due_at - time.monotonic()), self._ring)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bring what the loop watches up to date with the links."""
        links = {link.descriptor: link for link in self.fleet.links if link.descriptor >= 0}
        writing = {descriptor for descriptor, link in links.items() if link.wants_write}
        for descriptor in self._writing - writing:
            loop.remove_writer(descriptor)
        for descriptor, link in self._reading.items():
            if links.get(descriptor) is not link:
                loop.remove_reader(descriptor)
        for descriptor, link in links.items():
            if self._reading.get(descriptor) is not link:
                loop.add_reader(descriptor, self._readable, link)
        for descriptor in writing - self._writing:
            loop.add_writer(descriptor, self._writable, links[descriptor])
        self._reading, self._writing = links, writing
        self.fleet.bury()

    def _tell(self) -> None:
        """Wake whoever waits for what changed, once each."""
        changed = self.fleet.changed
        for item in changed:
            item.changed = False
            if item.wake is not None:
                _wake(item.wake)
                item.wake = None
            if item.wake_at_end is not None and is_over(item):
                _wake(item.wake_at_end)
                item.wake_at_end = None
        changed.clear()


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            try:
                waiter.set_result(None)
            except RuntimeError:  # its loop was closed under it: nobody waits there any more, others do elsewhere
                continue
