"""Load on an HTTP gateway by a raw client: asyncio streams, one kept-alive connection per stream, nothing between.

What it reads is what the gateway sent: no SDK, no HTTP library, so that the client's cost is small and the same for
all of them. For latency each chunk is decoded; for floods and short requests only the end of an answer is looked for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from common import mono_us
from hot_path import CADENCE, Sample
from peering import KEY

_END: Final = b"\r\n0\r\n\r\n"


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []


_decode: Final = msgspec.json.Decoder(_Chunk).decode


class Refused(RuntimeError):
    """The gateway did not answer a request with a whole stream."""


class Unchunked:
    """The body of one answer in chunked coding, fed as it comes."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self.whole = False

    def feed(self, data: bytes) -> bytes:
        """The payload in these bytes."""
        buffer, payload, at = self._buffer + data, [], 0
        while True:
            if self._left:
                piece = buffer[at : at + self._left]
                payload.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
            if buffer.startswith(b"\r\n", at):
                at += 2
            line = buffer.find(b"\r\n", at)
            if line < 0:
                break
            size = int(buffer[at:line].partition(b";")[0] or b"0", 16)
            if size == 0:
                if not buffer.startswith(b"\r\n", line + 2):
                    break
                self.whole, at = True, line + 4
                break
            at, self._left = line + 2, size
        self._buffer = buffer[at:]
        return b"".join(payload)


def request(target: Mapping[str, Any], prompt: str) -> bytes:
    """The bytes of one question."""
    body = json.dumps(
        {"model": target["model"], "stream": True, "messages": [{"role": "user", "content": prompt}]}
    ).encode()
    headers = {
        "host": f"127.0.0.1:{target['port']}", "content-type": "application/json", "authorization": f"Bearer {KEY}",
        "accept": "text/event-stream", **target["headers"], "content-length": str(len(body)),
    }  # fmt: skip
    lines = [f"POST {target['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


class Line:
    """A kept-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, target: Mapping[str, Any]) -> Line:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", target["port"], limit=1 << 20))

    def close(self) -> None:
        """Go."""
        self._writer.close()

    def _acknowledge(self) -> None:
        """Have the kernel acknowledge at once what came, instead of up to 40 ms later."""
        self._writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    async def _answered(self, question: bytes) -> None:
        """Ask, and read the head of the answer."""
        self._writer.write(question)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise Refused(f"{head[:60]!r} {(await self._reader.read(300))!r}")
        if b"chunked" not in head.lower():
            raise Refused(f"no chunked coding: {head[:400]!r}")

    async def stream(self, question: bytes, sample: Sample, *, hasten: bool = False) -> None:
        """One answer, each chunk of it decoded.

        Args:
            question: from `request`.
            sample: takes the times.
            hasten: acknowledge at once until the first text is here. Some gateways leave Nagle's algorithm on: the
                second small chunk then waits until the first is acknowledged, 40 ms on a connection that is in use.
        """
        sent, first = mono_us(), True
        await self._answered(question)
        if hasten:
            self._acknowledge()
        body, rest = Unchunked(), b""
        ended = False
        while not body.whole:
            data = await self._reader.read(65536)
            if not data:
                raise Refused("closed within an answer")
            now = mono_us()
            if hasten and first:
                self._acknowledge()
            events = (rest + body.feed(data)).split(b"\n\n")
            rest = events.pop()
            for event in events:
                if not event.startswith(b"data: "):
                    continue
                if event == b"data: [DONE]":
                    ended = True
                    continue
                choices = _decode(event[6:]).choices
                text = choices[0].delta.content if choices else None
                if text:
                    if first:
                        sample.first_us.append(now - sent)
                        first = False
                    sample.arrived(text, now)
        if not ended:
            raise Refused("an answer without [DONE]")

    async def swallow(self, question: bytes) -> None:
        """One answer, read to its end and not looked at."""
        await self._answered(question)
        tail = b""
        while not tail.endswith(_END):
            data = await self._reader.read(262144)
            if not data:
                raise Refused("closed within an answer")
            tail = (tail + data)[-64:] if len(data) < 64 else data[-64:]
        if b"[DONE]" not in tail:
            raise Refused(f"an answer that ends with {tail!r}")


async def _lines(target: Mapping[str, Any], number: int, *, warm: bool) -> list[Line]:
    found = [await Line.open(target) for _ in range(number)]
    if warm:
        question = request(target, "warm [[tokens=2 cadence_us=0]]")
        await asyncio.gather(*(line.swallow(question) for line in found))
    return found


async def latency(target: Mapping[str, Any], streams: int, tokens: int, cadence_us: int | None) -> tuple[Sample, float]:
    """A task and a warm connection per stream, begun over one cadence; the sample and what it cost this process.

    With a cadence of its own the connections are not warmed: that is for memory under many streams, not for times.
    """
    sample = Sample()
    lines = await _lines(target, streams, warm=cadence_us is None)
    more = "" if cadence_us is None else f" cadence_us={cadence_us}"

    async def one(index: int) -> None:
        await asyncio.sleep(CADENCE * index / streams)
        await lines[index].stream(request(target, f"{index} [[tokens={tokens}{more}]]"), sample)

    began = time.process_time()
    await asyncio.gather(*(one(index) for index in range(streams)))
    cost = time.process_time() - began
    for line in lines:
        line.close()
    return sample, cost


async def first(target: Mapping[str, Any], requests: int) -> Sample:
    """Short requests one after another, the time to the first text of each."""
    sample = Sample()
    (line,) = await _lines(target, 1, warm=True)
    question = request(target, "first [[tokens=2 cadence_us=0]]")
    for _ in range(requests):
        await line.stream(question, sample, hasten=True)
    line.close()
    return sample


async def many(target: Mapping[str, Any], at_once: int, requests: int, tokens: int) -> float:
    """So many requests, `at_once` at a time; seconds."""
    lines = await _lines(target, at_once, warm=True)
    question = request(target, f"many [[tokens={tokens} cadence_us=0 stamp=0]]")
    left = requests

    async def one(line: Line) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await line.swallow(question)

    began = time.monotonic()
    await asyncio.gather(*(one(line) for line in lines))
    took = time.monotonic() - began
    for line in lines:
        line.close()
    return took
