"""Who reads, who reads slowly, and who does not read at all.

A bot that reads slowly is congested: its pipe is full, or the kernel holds bytes for it that do not become fewer.
Nothing is sent to it then, so that its text gathers into fewer, larger deltas, and every byte it takes can be seen
(while one sends on, "takes a little" and "takes nothing" look alike). It is tried again when the port wakes and by
a sweep (5 ms, doubling to 50 ms). One that takes nothing for `stall_timeout` has its calls ended with `slow_reader`;
what it was going to be told is kept, bounded, until it reads or goes.

What a bot's own ZeroMQ thread has taken counts as read: a program that sleeps behind a high-water mark of 1,000
messages looks like a reader. A stopped process does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import trio

from sidecar.service.bot_peer import BotPeer
from sidecar.service.reply import in_ending_order
from sidecar.transport.bot_port import BotPort, Sent

RETRY_FIRST: Final = 0.005
RETRY_LAST: Final = 0.050
SAMPLE_INTERVAL: Final = 0.250
#: Samples in a row with unread bytes that do not become fewer, before the output is held back to be sure.
SUSPICIOUS: Final = 2
#: Characters that wait for one bot that does not read; beyond, it need not be waited for any longer.
MAX_UNSENT: Final = 4 << 20


class ReaderWatch:
    """The congested peers of a frontend.

    Args:
        port: to try them again, and to see what they have not read.
        peers: all of the frontend's, live.
        clock: seconds.
        stall_timeout: seconds a bot may take nothing while a call of its is in flight.
        depart: told of a peer that is found gone.
        flush: ends a pass of the loops here.
    """

    def __init__(
        self,
        port: BotPort,
        peers: Mapping[bytes, BotPeer],
        *,
        clock: Callable[[], float],
        stall_timeout: float,
        depart: Callable[[BotPeer], None],
        flush: Callable[[], None],
    ) -> None:
        self._port = port
        self._peers = peers
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._depart = depart
        self._flush = flush
        self._congested: dict[BotPeer, None] = {}
        self._congestion = trio.Event()
        self._activity = trio.Event()
        self.stalled_calls = 0

    def __repr__(self) -> str:
        return f"<ReaderWatch congested={len(self._congested)}>"

    @property
    def congested(self) -> int:
        """How many peers take nothing now."""
        return len(self._congested)

    def attend(self) -> None:
        """A call is in flight: sample from now on."""
        self._activity.set()

    def forget(self, peer: BotPeer) -> None:
        """The peer is gone."""
        self._congested.pop(peer, None)

    def congest(self, peer: BotPeer, *, since: float | None = None) -> None:
        """The peer takes nothing, since then or since now."""
        peer.congested = True
        peer.stalled_since = self._clock() if since is None else since
        peer.unread = self._port.unread_bytes(peer.routing_id)
        self._congested[peer] = None
        self._congestion.set()
        self._activity.set()

    async def retry_loop(self) -> NoReturn:
        """Try congested peers again: a send may have eaten the port's wake, and held ones give none."""
        while True:
            await self._congestion.wait()
            delay = RETRY_FIRST
            while self._congested:
                await trio.sleep(delay)
                delay = RETRY_FIRST if self.retry() else min(2 * delay, RETRY_LAST)
                self._flush()
            self._congestion = trio.Event()

    async def sample_loop(self) -> NoReturn:
        """Look every 250 ms at who has taken what, while there is anything to take."""
        while True:
            await self._activity.wait()
            going_on = True
            while going_on:
                going_on = self.sample()
                self._flush()
                if going_on:
                    await trio.sleep(SAMPLE_INTERVAL)
            self._activity = trio.Event()

    def retry(self) -> bool:
        """Offer every congested peer its messages again; whether any took something."""
        progress = tried = False
        for peer in tuple(self._congested):
            if peer.held and not self._reads_again(peer):
                continue
            before, tried = peer.sent, True
            result = peer.flush(self._port)
            if result is Sent.GONE:
                self._depart(peer)
            elif result is Sent.SENT:
                progress = True
                peer.congested = False
                peer.suspicion = 0
                self._congested.pop(peer, None)
            elif peer.sent > before:
                progress = True
                peer.stalled_since = self._clock()
        if tried:  # a send that was refused has eaten the wake of what came in, too
            self._port.settle()
        return progress

    def _reads_again(self, peer: BotPeer) -> bool:
        unread = self._port.unread_bytes(peer.routing_id)
        if unread and unread >= peer.unread:
            return False
        peer.held = False
        peer.unread = unread
        return True

    def sample(self) -> bool:
        """Whose unread bytes do not become fewer? Whose time is up? False: nothing is going on anywhere."""
        now, anything = self._clock(), False
        for peer in tuple(self._peers.values()):
            if not peer.calls and not peer.congested:
                peer.suspicion = 0
                continue
            anything = True
            unread = self._port.unread_bytes(peer.routing_id)
            falling = unread < peer.unread
            peer.unread = unread
            if not peer.congested:
                peer.suspicion = 0 if falling or not unread else peer.suspicion + 1
                if peer.suspicion > SUSPICIOUS:
                    peer.held = True
                    self.congest(peer, since=now - SUSPICIOUS * SAMPLE_INTERVAL)
                continue
            if falling:
                peer.stalled_since = now
                peer.held = False
            if now - peer.stalled_since >= self._stall_timeout:
                self._give_up(peer, f"the bot took nothing for {self._stall_timeout:g} s")
            elif peer.unsent > MAX_UNSENT:
                self._give_up(peer, "the bot takes nothing, and more waits for it than is kept")
        return anything

    def _give_up(self, peer: BotPeer, why: str) -> None:
        for reply in in_ending_order(peer.calls.values()):
            if reply.ticket is not None and not reply.finished:
                self.stalled_calls += 1
                reply.ticket.end("slow_reader", why)
