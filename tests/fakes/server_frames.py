"""WebSocket frames as a server sends them: unmasked (RFC 6455, 5.2)."""

from __future__ import annotations


def encode_server_frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """One frame from a server; `fin` False for all fragments but the last."""
    size = len(payload)
    if size < 126:
        length = bytes((size,))
    elif size < 1 << 16:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes(((0x80 if fin else 0) | opcode,)) + length + payload
