"""TLS as an `ssl.SSLObject` on memory buffers beside the socket.

trio's own `SSLStream` gives one record per `receive_some` (5.9 us each) and raises at a missing close_notify. This one
returns everything that a read brought (0.8 us a record) and treats a bare EOF as an EOF: the WebSocket layer above
knows whether the conversation was over.

`TlsState` is the conversation without I/O, `TlsStream` the same over a stream: for the handshake, and for as long as
nobody takes the socket over (`wires.SocketWire` does, once the WebSocket stands).
"""

from __future__ import annotations

import ssl
from typing import Final

import trio

_RECORD: Final = 16_384
_READ: Final = 65_536


class TlsState:
    """A client's end of one TLS conversation, without I/O.

    Args:
        context: from `dial.make_tls_context`.
        server_hostname: what the certificate must be for.

    Attributes:
        ended: close_notify was seen, or the records cannot be read any more.
        fault: why they cannot; None when the end was a proper one.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "ended", "fault")

    def __init__(self, context: ssl.SSLContext, server_hostname: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self.ended = False
        self.fault: ssl.SSLError | None = None

    @property
    def version(self) -> str | None:
        """The protocol agreed on, for people."""
        return self._tls.version()

    @property
    def alpn(self) -> str | None:
        """The protocol above TLS that was agreed on (RFC 7301), None for none."""
        return self._tls.selected_alpn_protocol()

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. What it wants sent, `take` gives.

        Raises:
            ssl.SSLError: it did not verify (`SSLCertVerificationError`), or this is no TLS.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def give(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Bytes of the peer, for `handshake` or `read`."""
        self._incoming.write(ciphertext)

    def read(self) -> bytes:
        """All the plaintext that what was given makes whole. Says its end by `ended` and `fault`."""
        pieces: list[bytes] = []
        incoming, read = self._incoming, self._tls.read
        try:
            while True:
                piece = read(_RECORD)
                if not piece:
                    self.ended = True
                    break
                pieces.append(piece)
                if not incoming.pending and not self._tls.pending():
                    break  # saves the exception that would say the same
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.ended, self.fault = True, error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, plaintext: bytes | bytearray | memoryview) -> None:
        """Encrypt; `take` gives the records.

        Raises:
            ssl.SSLError: it cannot be sent.
        """
        if plaintext:
            self._tls.write(plaintext)

    def say_end(self) -> None:
        """Have `take` give the close_notify, if one can be said."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it wants the other side's close_notify, for which nobody waits

    def take(self) -> bytes:
        """Ciphertext to be sent, b"" for none. Reading may make some, too (alerts, answers to key updates)."""
        return self._outgoing.read() if self._outgoing.pending else b""


class TlsStream(trio.abc.Stream):
    """A client's end of TLS over any stream; `handshake` first, then as every other stream.

    One task may receive while another sends. A `send_all` cancelled half way breaks this stream.

    Args:
        transport: the connected stream, owned from here on.
        context: from `dial.make_tls_context`.
        server_hostname: what the certificate must be for.
        received: bytes of the server that were read already (behind a proxy's answer).
    """

    def __init__(
        self, transport: trio.abc.Stream, context: ssl.SSLContext, server_hostname: str, *, received: bytes = b""
    ) -> None:
        self.transport = transport
        self.state = TlsState(context, server_hostname)
        self.state.give(received)
        self._sending = trio.Lock()
        self._early = b""  # plaintext that came in one read with the end of the handshake
        self._broken = False

    @property
    def version(self) -> str | None:
        """The protocol agreed on, for people."""
        return self.state.version

    @property
    def alpn(self) -> str | None:
        """See `TlsState`."""
        return self.state.alpn

    async def handshake(self) -> None:
        """Agree on keys and verify the server.

        Raises:
            ssl.SSLError: it did not verify (`SSLCertVerificationError`) or does not speak TLS.
            BrokenResourceError: the connection ended in the middle.
        """
        while True:
            try:
                done = self.state.handshake()
            except ssl.SSLError:
                alert = self.state.take()  # tells the server why
                if alert:
                    with trio.move_on_after(0.1, shield=True):
                        await self.transport.send_all(alert)
                raise
            await self._flush()
            if done:
                self._early = self.state.read()
                return
            data = await self.transport.receive_some(_READ)
            if not data:
                raise trio.BrokenResourceError("closed by the other side during the TLS handshake")
            self.state.give(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - the interface's
        """Everything that one read of the transport brings; `max_bytes` is not heeded, about 80 KiB bounds it.

        Returns:
            plaintext, or b"" at the end, with or without close_notify.

        Raises:
            BrokenResourceError: reset, or a TLS error (then `__cause__` is the `ssl.SSLError`).
            ClosedResourceError: we have closed it.
        """
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, b""
            return early
        state = self.state
        while not state.ended:
            data = await self.transport.receive_some(_READ)
            if not data:
                state.ended = True
                break
            state.give(data)
            plain = state.read()
            if state.fault is None and not self._sending.locked():  # else whoever sends takes it along
                await self._flush()
            if plain:
                return plain
        if state.fault is not None:
            self._broken = True
            raise trio.BrokenResourceError(f"TLS: {state.fault.reason or state.fault}") from state.fault
        if self._broken:
            raise trio.ClosedResourceError("this stream was closed")
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, after everything accepted earlier.

        Raises:
            BrokenResourceError: the connection is gone.
            ClosedResourceError: we have closed it.
        """
        if self._broken or self.state.fault is not None:
            raise trio.ClosedResourceError("this stream was closed")
        try:
            self.state.write(data)
        except ssl.SSLError as error:
            self._broken = True
            raise trio.BrokenResourceError(f"TLS: {error.reason or error}") from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """As the transport's."""
        await self.transport.wait_send_all_might_not_block()

    async def _flush(self) -> None:
        """Send what there is to be sent, in order."""
        async with self._sending:
            while data := self.state.take():
                whole = False
                try:
                    await self.transport.send_all(data)
                    whole = True
                finally:
                    self._broken = self._broken or not whole  # a torn record cannot be mended

    def release(self) -> bytes:
        """Give the conversation and its transport up to somebody else; -> what was received and not yet given out."""
        early, self._early = self._early, b""
        return early

    async def aclose(self) -> None:
        """Say close_notify if that takes no time, then close the transport; the other side's is not waited for.

        Cancellation: closes at once.
        """
        try:
            if not self._broken:
                self._broken = True
                self.state.say_end()
                with trio.move_on_after(0.1):
                    await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self.transport.aclose()
