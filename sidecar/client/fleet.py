"""The daemons of one client: a link and a session for each, and calls spread over them.

With one daemon, which is the rule, there is one link, and nothing here is on the way of a call but an attribute. With
several, a call stays with the daemon it was handed to: its cancel, its deltas, its terminal. Two kinds of calls move,
both begun by nobody: those that wait for a connection, and those that a draining daemon would not begin. Where nobody
else is there these wait for who comes. What was handed over and not refused is never sent again, and nothing is sent
again for any other refusal.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Final

from sidecar.client.calls import OpenCall, Question
from sidecar.client.endpoint import Places, absent
from sidecar.client.link import Link
from sidecar.client.session import Session
from sidecar.client.spread import Standing, pause, pick

#: Seconds from one look for new daemons to the next, while one is connected, and while none is.
_LOOK_INTERVAL: Final = 2.0
_SEARCH_INTERVAL: Final = 0.1


#: How many forks this process is away from the one that imported us: cheaper to look at than its pid.
_generation = 0


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class Fleet:
    """All links of one client. Not for two threads at once.

    Attributes:
        links: to the daemons that are known.
        several: there are, or may be, several daemons.
        changed: calls and questions that changed since the shell last emptied the list.
        retired: links that were closed and are still watched by the shell; it forgets them, buries and clears them.
    """

    def __init__(self, places: Places, *, name: str, now: float, moves_on: bool = True) -> None:
        self.places, self.name, self._moves_on = places, name, moves_on
        self.links: list[Link] = []
        self.retired: list[Link] = []
        self.changed: list[OpenCall | Question] = []
        self.closed = False
        self._pid, self._generation = os.getpid(), _generation
        self._numbers = itertools.count(1)
        self._turn = 0
        self._aside: dict[Link, float] = {}
        self.several = places.single is None
        #: where calls wait while no daemon is known
        self._lobby = self._session()
        self._look_at = math.inf
        if not self.several:
            self._add(str(places.single), now)
        else:
            self._look(now)

    @property
    def forked(self) -> bool:
        """This is a fork of the process that made it."""
        return self._generation != _generation

    def usable(self) -> str | None:
        """Why this client must not be used, None when it may: it is closed, or of the parent process."""
        if self.closed:
            return "this client is closed"
        if self.forked:
            return f"this client was made in process {self._pid}, and this is a fork of it: make a new client here"
        return None

    @property
    def session(self) -> Session:
        """Of the first daemon that is connected, of any when none is."""
        for link in self.links:
            if link.session.connected:
                return link.session
        return self.links[0].session if self.links else self._lobby

    def home(self, now: float) -> Session:
        """The session for a new call or question."""
        if not self.several:
            link = self.links[0]
            if not link.session.connected:
                link.hurry(now)
                link.read(now)  # the handshake may have come since anybody looked
            return link.session
        if self._look_at <= now:
            self._look(now)
        if not any(link.session.connected for link in self.links):
            for link in self.links:
                link.hurry(now)
                link.read(now)
        best = self._best(now)
        if best is not None:
            return best
        for link in self.links:
            if link.descriptor >= 0:  # about to shake hands
                return link.session
        return self.links[0].session if self.links else self._lobby

    @property
    def stale(self) -> bool:
        """The shell must watch other descriptors, or for other things, and then call `bury()`."""
        if not self.several:
            return self.links[0].stale
        return bool(self.retired) or any(link.stale for link in self.links)

    def bury(self) -> None:
        """The shell watches what is; what was may be closed."""
        for link in (*self.links, *self.retired):
            link.stale = False
            link.bury()
        self.retired.clear()

    def flush(self) -> None:
        """Hand over what waits."""
        for link in self.links:
            if link.session.waiting:
                link.write()

    @property
    def due_at(self) -> float:
        """When `tick()` wants to be called; perhaps too early, never too late. Infinity for never."""
        if not self.several:
            link = self.links[0]
            return min(link.due_at, link.session.due_at)
        due = math.inf
        waiting = self._lobby.waiting
        for link in self.links:
            session = link.session
            due = min(due, link.due_at, session.due_at)
            waiting = waiting or (session.homeless and (session.leaving or not session.connected))
        due = min(due, self._lobby.due_at)
        return min(due, self._look_at) if waiting else due

    def tick(self, now: float) -> None:
        """Do what is due."""
        for link in self.links:
            if link.due_at <= now or link.session.due_at <= now:
                link.tick(now)
        if self.several:
            if self._lobby.due_at <= now:
                self._lobby.expire(now=now)
            if self._look_at <= now:
                self._look(now)
            self.settle(now)

    def settle(self, now: float) -> None:
        """After any pass, with several daemons: note who is left aside, and move the calls that may move."""
        if not self.several:
            return
        for link in self.links:
            session = link.session
            if session.refusal is not None:
                self._aside[link] = now + pause(session.refusal.code, session.refusal.retry_after_ms)
                session.refusal = None
            while session.returned:
                call = session.returned.pop()
                if call.ended is not None:
                    continue
                other = self._best(now, strict=True)
                if other is None:
                    session.hold(call, now=now)
                else:
                    other.adopt(call)
            if not session.connected:
                if session.ever_connected:
                    self._aside[link] = now + pause("daemon_lost", None)
                self._move(session, now)
            elif session.leaving:
                self._move(session, now)
        self._move(self._lobby, now)
        self.flush()

    def explain_absence(self) -> None:
        """End what waits for a connection that cannot come.

        A socket that may not be reached is told at once. One that is missing is told at once too, except by a
        client that was connected before: that daemon is being restarted, and the deadline is the limit, but for calls
        that do not move on.
        """
        if any(link.session.connected for link in self.links):
            return
        before = self._lobby.ever_connected or any(link.session.ever_connected for link in self.links)
        obstacles = [link.obstacle() for link in self.links] or [absent(self.places)]
        patient = any(obstacle is None or (obstacle.may_pass and before) for obstacle in obstacles)
        if patient and any(link.descriptor >= 0 for link in self.links):
            return  # somebody took the connection, and will shake hands
        message = "; ".join(dict.fromkeys(obstacle.message for obstacle in obstacles if obstacle is not None))
        for session in (self._lobby, *(link.session for link in self.links)):
            session.fail_waiting(message or f"nobody listens at {self.places} now", patient=patient)

    def close(self) -> None:
        """Close every connection; in a fork only its copies of them."""
        if self.closed:
            return
        if self.usable() is None:
            for session in (self._lobby, *(link.session for link in self.links)):
                session.close()
            for link in self.links:
                link.hang_up()  # a forked child may hold a copy, and another thread may be waiting
        self.closed = True
        for link in (*self.links, *self.retired):
            link.close()
        self.retired.clear()

    # ------------------------------------------------------------------ inside

    def _session(self) -> Session:
        return Session(
            name=self.name,
            numbers=self._numbers,
            changed=self.changed,
            movable=self.several,
            moves_on=self._moves_on,
        )

    def _add(self, endpoint: str, now: float) -> None:
        self.links.append(Link(endpoint, self._session(), now=now))

    def _best(self, now: float, *, strict: bool = False) -> Session | None:
        self._turn += 1
        standings = [
            Standing(
                link.session.open_calls, link.session.connected, link.session.silent, self._aside.get(link, 0.0),
                link.session.leaving,
            )
            for link in self.links
        ]  # fmt: skip
        index = pick(standings, turn=self._turn, now=now, strict=strict)
        return None if index is None else self.links[index].session

    def _move(self, session: Session, now: float) -> None:
        """Calls that wait for a connection, or for another daemon, go to one that is there."""
        if session.homeless and (best := self._best(now)) is not None and not best.leaving:
            for call in session.give_away():
                (self._best(now) or best).adopt(call)

    def _look(self, now: float) -> None:
        """Meet daemons that are new, forget those whose socket has gone."""
        found = self.places.look()
        for endpoint in found:
            if all(link.endpoint != endpoint for link in self.links):
                self._add(endpoint, now)
        for link in tuple(self.links):
            session = link.session
            if link.endpoint not in found and not session.connected and session.idle:
                self._lobby.ever_connected = self._lobby.ever_connected or session.ever_connected
                self.links.remove(link)
                self._aside.pop(link, None)
                link.retire()
                self.retired.append(link)
        if self.places.patterns:
            connected = any(link.session.connected for link in self.links)
            self._look_at = now + (_LOOK_INTERVAL if connected else _SEARCH_INTERVAL)
