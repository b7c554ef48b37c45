"""How an HTTP/2 connection begins: our preface and settings, then the server's. Before those nothing is asked."""

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

#: Bytes of a frame's header, and the most that may follow it: we have not allowed more.
HEADER: Final = 9
MAX_FRAME: Final = 16_384
#: Bytes that a server's settings are among the first of.
_FIRST: Final = 16_384


async def shake_hands(stream: trio.abc.Stream, timeout: float) -> tuple[h2.connection.H2Connection, bytes]:
    """Say the preface and wait for the server's settings: it speaks HTTP/2, and says how much at once.

    Returns:
        the engine, and the bytes that came behind the settings: whole frames and perhaps a part of one, not looked at.

    Raises:
        ConnectFailed: stage upgrade. The stream is still the caller's.
    """
    engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
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
