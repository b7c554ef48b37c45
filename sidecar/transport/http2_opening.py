"""How an HTTP/2 connection begins: our preface and settings, then the server's, which are not always waited for."""

from __future__ import annotations

from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import trio

from sidecar.errors import ConnectFailed

#: Bytes that an answer, and all of them together, may send ahead of our reading: never the bottleneck.
STREAM_WINDOW: Final = 1 << 20
CONNECTION_WINDOW: Final = 16 << 20
#: Requests that go out before the server has said how many it takes at once: none that is in use takes fewer.
EARLY_STREAMS: Final = 8

#: Bytes of a frame's header, and the most that may follow it: we have not allowed more.
HEADER: Final = 9
MAX_FRAME: Final = 16_384
#: Bytes that a server's settings are among the first of.
_FIRST: Final = 16_384
#: Our own headers are looked at once, by `check_headers`, and written in small letters from the start: to have each of
#: them looked at and rewritten for every request takes longer than to write the request.
_CONFIGURATION: Final = h2.config.H2Configuration(
    client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
)


async def shake_hands(
    stream: trio.abc.Stream, timeout: float, *, agreed: bool = False
) -> tuple[h2.connection.H2Connection, bytes]:
    """Say the preface, and wait for the server's settings unless TLS has agreed on HTTP/2 already.

    With `agreed` nothing is left to be found out, and the wait would be a round trip: requests may follow the preface
    at once (RFC 9113, 3.4), `EARLY_STREAMS` of them, and one more than the settings turn out to allow is refused alone,
    not looked at. The link gives its server until its own `settings_timeout`.

    Returns:
        the engine, and the bytes that came behind the settings: whole frames and perhaps a part of one, not looked at.

    Raises:
        ConnectFailed: stage upgrade. The stream is still the caller's.
    """
    engine = h2.connection.H2Connection(_CONFIGURATION)
    engine.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 << 10,
        },
    )
    engine.initiate_connection()
    engine.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
    with trio.move_on_after(timeout):
        try:
            await stream.send_all(engine.data_to_send())
            early = b""
            if agreed:
                return engine, early
            room = _FIRST
            while room:
                data = bytes(await stream.receive_some(room))
                if not data:
                    raise ConnectFailed("upgrade", "closed by the other side before its settings")
                room -= len(data)
                settled, early = _until_settings(engine, early + data)
                await stream.send_all(engine.data_to_send())
                if settled:
                    return engine, early
            raise ConnectFailed("upgrade", f"no settings in {_FIRST} bytes")
        except h2.exceptions.H2Error as error:
            raise ConnectFailed("upgrade", f"this is not HTTP/2: {words(error)}") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectFailed("upgrade", "connection reset before the server's settings") from error
    raise ConnectFailed("upgrade", f"no settings in {timeout:g} s", timed_out=True)


def _until_settings(engine: h2.connection.H2Connection, data: bytes) -> tuple[bool, bytes]:
    """Whole frames to the engine, up to the server's settings. -> (they came, what is left of `data`).

    What follows them is the link's: a frame that is torn here would be half h2's, and GOAWAY is none of its business.
    """
    while len(data) >= HEADER:
        length = int.from_bytes(data[:3], "big")
        if length > MAX_FRAME:
            raise ConnectFailed("upgrade", f"this is not HTTP/2: a frame of {length} bytes")
        stop = HEADER + length
        if len(data) < stop:
            break
        events = engine.receive_data(data[:stop])
        data = data[stop:]
        if any(isinstance(event, h2.events.RemoteSettingsChanged) for event in events):
            return True, data
    return False, data


def words(error: Exception) -> str:
    """What is wrong by its kind: h2's own sentences may quote a header."""
    return type(error).__name__
