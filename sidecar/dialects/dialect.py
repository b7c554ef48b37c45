"""A dialect as the rest of the daemon knows it: a name, how it travels, the options it can carry, and codecs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.dialects import options as portable
from sidecar.dialects.base import Codec
from sidecar.wire import Options, Transport

#: How most services are told a key.
BEARER: Final = ("Authorization", "Bearer ")


class Dialect:
    """One dialect.

    Args:
        name: as in the configuration and in `options.TABLE`.
        make_codec: slots -> a codec for one new WebSocket; None where the dialect knows none.
        make_stream_codec: a codec for one answer over HTTP.
        headers: sent with every request of this dialect over HTTP, the POST's and an upgrade's.
        credential_header: the header that carries the credential, and what stands before it there.

    Attributes:
        transports: how it can travel.
    """

    def __init__(
        self,
        name: str,
        make_codec: Callable[[int], Codec] | None,
        make_stream_codec: Callable[[], Codec],
        *,
        headers: tuple[tuple[str, str], ...] = (),
        credential_header: tuple[str, str] = BEARER,
    ) -> None:
        self.name = name
        self.headers = headers
        self.credential_header = credential_header
        websocket: frozenset[Transport] = frozenset() if make_codec is None else frozenset({"websocket"})
        self.transports: frozenset[Transport] = websocket | {"sse"}
        self._make_codec = make_codec
        self._make_stream_codec = make_stream_codec

    def __repr__(self) -> str:
        return f"<Dialect {self.name}>"

    def unsupported(self, options: Options) -> list[str]:
        """The names of the options given that this dialect cannot carry."""
        return portable.unsupported(options, self.name)

    def codec(self, *, slots: int = 1) -> Codec:
        """A codec for one new WebSocket of `slots` calls at once.

        Raises:
            ValueError: this dialect is spoken over no WebSocket, or not with so many slots.
        """
        if self._make_codec is None:
            raise ValueError(f"{self.name} is not spoken over WebSockets")
        return self._make_codec(slots)

    def stream_codec(self) -> Codec:
        """A codec for one answer over HTTP, with one slot: `encode` gives the body of the POST.

        `decode_pass` takes the `data` of the answer's events, or the whole body of one that is no event stream.
        """
        return self._make_stream_codec()
