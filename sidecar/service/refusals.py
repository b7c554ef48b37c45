"""What a pool does when its credential is refused, or another one is there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, Protocol

from msgspec import structs

from sidecar.core.outcome import Outcome
from sidecar.core.pool_policy import PoolPolicy
from sidecar.credentials import Secret
from sidecar.errors import ConnectFailed, UpstreamFault
from sidecar.service.connection import Connection
from sidecar.service.current_credential import CurrentCredential
from sidecar.service.gate import Gate

#: What is a code, and no sentence.
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: Seconds after an answer for which a refusal in another answer is that call's own affair.
ANSWERED: Final = 10.0
#: Seconds for which a key that was read anew is taken for what it was.
RECHECKED: Final = 1.0


def without_secret(outcome: Outcome, secret: Secret | None) -> Outcome:
    """What an upstream said, without the key that it was shown: the bot that asked is told its words."""
    if secret is None:
        return outcome
    message = secret.cut_from(outcome.message)
    code = None if outcome.upstream_code is None else secret.cut_from(outcome.upstream_code)
    if message == outcome.message and code == outcome.upstream_code:
        return outcome
    return structs.replace(outcome, message=message, upstream_code=code)


def _in_our_words(outcome: Outcome) -> Outcome:
    """What is logged, and told to other bots, of a refusal in an answer to one of them.

    The upstream's own words may repeat that one's prompt.
    """
    code = outcome.upstream_code if outcome.upstream_code and _CODE.fullmatch(outcome.upstream_code) else None
    said = [f"HTTP {outcome.upstream_status}"] if outcome.upstream_status is not None else []
    said += [code] if code is not None else []
    message = "the credential was refused in an answer" + (f" ({', '.join(said)})" if said else "")
    return structs.replace(outcome, message=message, upstream_code=code)


class Keyed(Protocol):
    """The pool, as seen from here."""

    name: str
    connections: dict[int, Connection]
    gate: Gate

    def retire(self, connection: Connection, reason: str) -> None:
        """Take it out of service."""
        ...

    def turned(self) -> None:
        """It may be asked again, or no more: calls that wait look again."""
        ...


class Refusals:
    """One upstream's credential, and the refusal that holds while it is bad.

    Args:
        pool: whose credential it is.
        credential: what its connects read.
        policy: of the pool.
        clock: the loop's time.
        log: a bound logger.
        by_request: it goes with each request, not with the connection: a 401 is about the key, whoever is answered.
    """

    def __init__(
        self,
        pool: Keyed,
        credential: CurrentCredential,
        policy: PoolPolicy,
        clock: Callable[[], float],
        log: Any,
        *,
        by_request: bool = False,
    ) -> None:
        self._pool, self._policy, self._clock, self._log = pool, policy, clock, log
        self._credential = credential
        #: why the credential is not used now: calls are not parked for this pool
        self.standing: Outcome | None = None
        self._by_request = by_request
        self._rechecking = False
        self._answered_at = self._rechecked_at = -math.inf

    def is_outdated(self, connection: Connection) -> bool:
        """It was authenticated with another secret than the one of now."""
        return connection.credential != self._credential.secret

    def in_an_answer(self, connection: Connection, outcome: Outcome) -> tuple[Outcome, bool]:
        """An answer said that the key is bad.

        Returns:
            how the attempt is judged (to be tried again at once when the key has changed since), and whether the key
            is to be read anew: then `recheck` is to run.
        """
        now = self._clock()
        if self.is_outdated(connection):
            return structs.replace(outcome, retry="now"), False
        if self._holds(now, outcome) and now - self._rechecked_at < RECHECKED:
            return outcome, False  # it was read anew just now, and others are answered with it
        recheck, self._rechecking = not self._rechecking, True
        # While the credential is being read anew the call may wait for what comes of it.
        return structs.replace(outcome, retry="backoff"), recheck

    def answered(self, now: float) -> None:
        """Somebody was answered on a connection of this upstream."""
        self._answered_at = now

    def _holds(self, now: float, outcome: Outcome) -> bool:
        if self._by_request and outcome.upstream_status == 401:
            return False
        return now - self._answered_at < ANSWERED

    async def recheck(self, outcome: Outcome) -> None:
        """Read the key anew: move on to a newer one if there is one, else stop offering this upstream."""
        try:
            changed = await self._credential.reread()
        finally:
            self._rechecking = False
        now = self._clock()
        if changed:
            self.move_on()
            return
        self._rechecked_at = now
        if self._holds(now, outcome):
            # Somebody's call is not permitted what others' are. (A whole key is rarely refused call by call.)
            self._log.warning("call.not_permitted", upstream=self._pool.name, reason=_in_our_words(outcome).message)
            self._pool.turned()
            return
        outcome = _in_our_words(outcome)
        self._log.error("credential.refused", upstream=self._pool.name, reason=outcome.message)
        self._policy.connect_failed(self._clock(), outcome)
        self.standing = outcome
        for connection in list(self._pool.connections.values()):
            if not self.is_outdated(connection):
                self._pool.retire(connection, "credential refused")
        self._pool.turned()

    async def at_connect(self, connection: Connection, fault: UpstreamFault, outcome: Outcome) -> bool:
        """A connect failed. Whether its key has changed since, so that it is no failure: one immediate try follows."""
        if outcome.credential_refused:
            # It may have been found out already, by another connect that was refused with the same old one.
            unreadable = isinstance(fault, ConnectFailed)
            if self.is_outdated(connection) or (not unreadable and await self._credential.reread()):
                self._policy.credential_changed(self._clock())
                self._log.info("credential.changed", upstream=self._pool.name)
                return True
        first = self.standing is None
        self._policy.connect_failed(self._clock(), outcome)
        self.standing = outcome if outcome.credential_refused else None
        if outcome.credential_refused and first:
            self._log.error("credential.refused", upstream=self._pool.name, reason=str(fault))
        else:
            self._log.warning("connect.failed", upstream=self._pool.name, reason=str(fault))
        return False

    def move_on(self) -> None:
        """Another key is there: connections of the old one are replaced, and what was said of it holds no more."""
        now = self._clock()
        self._log.info("credential.changed", upstream=self._pool.name)
        throttled = not self._pool.gate.is_open(now)
        for connection in list(self._pool.connections.values()):
            if self.is_outdated(connection):
                connection.retire_at = now
                if throttled:  # what waits for the end of the old key's pace is not to go out with the old key
                    self._pool.retire(connection, "credential changed")
        self._policy.credential_changed(now)
        self._pool.gate.throttle.credential_changed()
        self.standing = None
        self._pool.turned()
