"""Which streams of an HTTP/2 connection its server has looked at, and how it goes away from them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import trio
from h2.errors import ErrorCodes

from sidecar.service.partings import TOGETHER
from tests.simulation.exchanges import Exchange, ExchangeSession, exchange_of
from tests.simulation.http2_written import Written
from tests.simulation.network import Toxics
from tests.simulation.request import Request

if TYPE_CHECKING:
    from tests.simulation.service import Service

#: As the first of two GOAWAYs has it: whatever comes until the second one is looked at.
ANY_STREAM: Final = (1 << 31) - 1


class LeavingSession(ExchangeSession):
    """See the module, and `ExchangeSession`.

    Attributes:
        last: the last stream that it will look at; None while it has not said so.
    """

    def __init__(
        self, service: Service, number: int, pool: str, toxics: Toxics, meets: str, dice: random.Random
    ) -> None:
        super().__init__(service, number, pool, toxics, meets, dice)
        self.last: int | None = None
        self._incoming: set[int] = set()  # streams whose request is not complete here
        self._running: dict[int, Request] = {}
        self._highest = 0  # stream that was looked at
        self._told_last = ANY_STREAM  # of a GOAWAY that has arrived at the client
        self._writings = Written(self._complete, self._given_up)
        self._written_as: dict[int, Request] = {}

    def runs(self, request: Request) -> bool:
        """See `ExchangeSession`."""
        return self._running.get(exchange_of(request).sid) is request

    def alone(self, request: Request | None) -> bool:
        """See `ExchangeSession`."""
        return not self._incoming and all(other is request for other in self._running.values())

    # ------------------------------------------------------------------ what the client writes

    def _written(self, data: bytes) -> None:
        """See `Session`."""
        self._writings.feed(data)

    def _complete(self, sid: int, body: bytes, since: float) -> None:
        request = self.service.noted(self, body, since)
        request.exchange = Exchange(sid)
        self._written_as[sid] = request
        self.requests.append(request)
        if sid > self._told_last:  # it was on its way to the network already
            request.came("ignored")

    def _given_up(self, sid: int) -> None:
        request = self._written_as.get(sid)
        if request is not None and request.reset_at is None:
            request.reset_at = trio.current_time()

    def unfinished(self) -> int:
        """Requests that the client has begun, and neither completed nor given up."""
        return len(self._writings.began)

    # ------------------------------------------------------------------ how it goes away

    def go_away(self, last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """No stream after `last` is looked at; what has been sent of those is nobody's."""
        self.last = last if self.last is None else min(self.last, last)
        limit = self.last
        self.service.world.counts["went away"] += 1
        self._looks_young()

        def came() -> None:
            self._told_last = limit
            for request in self.requests:
                if exchange_of(request).sid > limit:
                    request.came("ignored")
            self._writings.forget(limit)

        self._incoming = {sid for sid in self._incoming if sid <= limit}
        self._running = {sid: request for sid, request in self._running.items() if sid <= limit}
        self.send(b"\0\0\x08\x07\0\0\0\0\0" + limit.to_bytes(4, "big") + code.to_bytes(4, "big"), came)

    def _looks_young(self) -> None:
        """Who closes what has just come, and served nothing, is not asked again at once: calls may be lost for that."""
        if not self.requests and trio.current_time() - self.link.opened_at < TOGETHER:
            self.service.blame("turns away who has just come")

    def leaves_off(self, back: int) -> None:
        """GOAWAY: what has no head yet was not looked at, as far back as that; what was is answered."""
        headed = [sid for sid, request in self._running.items() if self.headed(request)]
        silent = [sid for sid in self._running if sid not in headed and sid >= self._highest - back]
        self.go_away(max([min(silent, default=self._highest + 1) - 1, *headed]))
        self.service.world.engine.after(0.01, self._goes)

    def close(self, code: int, how: str) -> None:
        """See `Session`: what it has looked at it answers. Half of the time it says so twice, as the RFC has it."""
        if self.number % 2:
            self.go_away(self._highest)
            self._looks_gone()
        else:
            self.go_away(ANY_STREAM)
            self.service.world.engine.after(0.1, self._goes)

    def _goes(self) -> None:
        if not self.gone and not self.closing:
            self.go_away(self._highest)
            self._looks_gone()

    def _closes_idle(self) -> None:
        """See `ExchangeSession`."""
        self._looks_young()
        if self.service.plan.says_408:
            self.go_away(self._highest)
        self.shut()

    def closes_as_asked(self, request: Request) -> None:
        """See `ExchangeSession`: it says so, and has not looked at this one."""
        self.go_away(exchange_of(request).sid - 1)
        self.shut()

    def _looks_gone(self) -> None:
        if self.last is not None and self.last != ANY_STREAM and not self._running and not self._incoming:
            self.shut()
