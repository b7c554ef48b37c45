"""The credential that an upstream's connections are authenticated with now, and what happens when it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import trio

from sidecar.credentials import CredentialReader, Secret
from sidecar.dialects.dialect import BEARER
from sidecar.errors import CredentialError

#: Seconds between two looks at a credential that could not be read so far.
_UNREADABLE_INTERVAL: Final = 1.0


class CurrentCredential:
    """One upstream's secret, read when first needed, again when it changes, and again when it is refused.

    Args:
        reader: where it lies; None for an upstream without one.
        header: the one that carries it, and what stands before it there.
    """

    def __init__(self, reader: CredentialReader | None, *, header: tuple[str, str] = BEARER) -> None:
        self._reader = reader
        self._header, self._prefix = (part.encode() for part in header)
        self._reading: _Reading | None = None
        self.secret: Secret | None = None

    async def headers(self) -> list[tuple[bytes, bytes]]:
        """The header that carries it, or nothing.

        Raises:
            CredentialError: it cannot be read; the message holds nothing of it.
        """
        if self._reader is None:
            return []
        if self.secret is None:
            self.secret = await self._read(self._reader)
        return [(self._header, self._prefix + self.secret.reveal().encode())]

    async def reread(self) -> bool:
        """Read it anew because it was refused: is it another one? What cannot be read is not."""
        if self._reader is None:
            return False
        before = self.secret
        try:
            self.secret = await self._read(self._reader)
        except CredentialError:
            return False
        return before is not None and self.secret != before

    async def _read(self, reader: CredentialReader) -> Secret:
        """Read once for all who want it now: a command that hangs is not run by every connect."""
        if self._reading is not None:
            reading = self._reading
            await reading.done.wait()
            if reading.secret is None:
                raise CredentialError(reading.problem)
            return reading.secret
        reading = self._reading = _Reading()
        try:
            reading.secret = await reader.fetch()
        except CredentialError as error:
            reading.problem = str(error)
            raise
        finally:
            self._reading = None
            reading.done.set()
        return reading.secret

    async def watch(self, on_change: Callable[[], None]) -> NoReturn:
        """Look for another secret for ever; `on_change` is told when one is there: connections are to move to it."""
        reader = self._reader
        if reader is None:
            await trio.sleep_forever()
        while True:
            if self.secret is None:
                # The connects read it, and say so when they cannot; then they wait for long. One that appears does not.
                await trio.sleep(_UNREADABLE_INTERVAL)
            known = self.secret
            found = await reader.changed(Secret("") if known is None else known)
            if known is not None or self.secret != found:  # else a connect has read it meanwhile
                self.secret = found
                on_change()


class _Reading:
    """A read under way, and what came of it; cancelled, it ends as a problem for those who waited for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.secret: Secret | None = None
        self.problem = "credential: the read was cancelled"
