"""A message without an end, from a peer that speaks ZMTP by hand; and who is not suspected."""

from __future__ import annotations

import socket
from pathlib import Path

import trio

from sidecar.transport.endless import EndlessGuard
from sidecar.transport.zmq_socket import RouterPort

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


def peer(path: Path) -> socket.socket:
    """A DEALER by hand, greeted."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(path))
    sock.sendall(GREETING)
    received = b""
    while len(received) < 64 + 2:
        received += sock.recv(4096)
    sock.sendall(READY)
    return sock


async def test_who_sends_without_end_is_shut_down_and_nobody_else(tmp_path: Path) -> None:
    """While memory is short: one that sends and never finishes goes; one that finishes, and one that is still, stay."""
    path = tmp_path / "s"
    memory = [100]
    with RouterPort(max_message_bytes=1 << 20) as port:
        port.bind(f"ipc://{path}")
        guard = EndlessGuard(port, resident=lambda: memory[0], margin=50)
        endless, honest, still = [await trio.to_thread.run_sync(peer, path) for _ in range(3)]
        with endless, honest, still:
            endless.setblocking(False)

            frame, unsent = b"\x03" + (65536).to_bytes(8, "big") + bytes(65536), [b""]

            def push() -> bool:
                """More frames of the one message; False when the connection is gone."""
                try:
                    unsent[0] = unsent[0] or frame
                    unsent[0] = unsent[0][endless.send(unsent[0]) :]
                except BlockingIOError:
                    return True
                except OSError:
                    return False
                return True

            with trio.fail_after(10):
                for sock in (honest, endless):
                    sock.send(b"\x00\x02{}")
                met = 0
                while met < 2:
                    met += len(await port.receive_batch(10))
                push()
                assert guard.look() == 0, "memory is not short"
                memory[0] = 200
                dropped = 0
                while not dropped:
                    for _ in range(50):
                        push()
                    honest.send(b"\x00\x02{}")
                    with trio.move_on_after(0.05):
                        await port.receive_batch(10)
                    dropped = guard.look()
                assert dropped == 1
                while push():
                    await trio.sleep(0.01)
                honest.send(b"\x00\x02{}")
                still.send(b"\x00\x02{}")
                heard = 0
                while heard < 2:
                    heard += len(await port.receive_batch(10))


async def test_who_waits_for_the_daemon_is_not_suspected(tmp_path: Path) -> None:
    """Finished messages that nobody has taken, so many that the kernel holds some: that is our delay, not theirs."""
    path = tmp_path / "s"
    with RouterPort(max_message_bytes=1 << 20) as port:
        port.bind(f"ipc://{path}")
        guard = EndlessGuard(port, resident=lambda: 200, margin=-100)
        with await trio.to_thread.run_sync(peer, path) as busy:
            busy.setblocking(False)
            busy.send(b"\x00\x02{}")
            with trio.fail_after(10):
                while not await port.receive_batch(10):
                    pass
                assert guard.look() == 0
                message = b"\x02" + (8192).to_bytes(8, "big") + bytes(8192)
                sent = 0
                while True:
                    try:
                        sent += busy.send(message[sent % len(message) :])
                    except BlockingIOError:
                        break
                    await trio.sleep(0.001)
                for _ in range(3):
                    await trio.sleep(0.02)
                    assert guard.look() == 0, "nobody has taken anything meanwhile"
                heard = 0
                while heard < sent // len(message):
                    heard += len(await port.receive_batch(16))
