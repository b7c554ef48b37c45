"""Bad input of a bot: bytes, maps, frames, floods and silences at the daemon's socket."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from tests.end_to_end.borders import TERMINALS, Bot, Raw, Table, told

LIMIT = 1_048_576
CALL: dict[str, Any] = {"type": "call", "id": "a", "input": "BUY, SELL or HOLD?"}
ONE_REFUSAL = r"^failed invalid_request \({}[^·]*$"
NULL, NAMED = ONE_REFUSAL.format("id null"), ONE_REFUSAL.format("with id")
DONE = r"^accepted · done stop, \d+ deltas$"


def pack(value: Any) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode(value)


def call(**fields: Any) -> dict[str, Any]:
    """A call that would be answered, but for these."""
    return {**CALL, **fields}


def mono_us() -> int:
    """The clock that bots share with the daemon."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


#: (tried, payloads, the answers documented). Each is sent by a fresh bot, followed by a ping that must be answered.
def messages() -> list[tuple[str, list[Any], str]]:
    """Rows of one message or a few."""
    deep = b'{"type":"call","id":"a","input":"x","options":{"extra_body":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}}"
    deeper = (
        b'{"type":"call","id":"a","input":"x","options":{"extra_body":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}"
    )
    packed = b"\x81\xa4type" + b"\x91" * 200_000 + b"\xc0"
    lists = (
        b"\x84\xa4type\xa4call\xa2id\xa1a\xa5input\xa1x\xa7options\x81\xaaextra_body\x81\xa1a\xdd"
        + (LIMIT - 100).to_bytes(4, "big")
        + b"\x90" * (LIMIT - 100)
    )
    nan = b'{"type":"call","id":"a","input":"x","timeout_ms":NaN}'
    inf = pack(call(options={"extra_body": {"a": math.inf}}))
    key = pack({**CALL, 7: "x"})
    surrogate = b'{"type":"call","id":"a","input":"\\ud83d"}'
    bad = {"type": "call", "id": "bad"}
    return [
        ("garbage bytes", [bytes(range(256))], NULL),
        ("0xff 200 times", [b"\xff" * 200], NULL),
        ("an HTTP request", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], NULL),
        ("an empty message", [b""], NULL),
        ("two payload frames", [(b"", b"{}", b"{}")], NULL),
        ("a thousand frames in one message", [tuple([b"x"] * 1000)], NULL),
        ("MessagePack, cut in the middle", [pack(CALL)[:-5]], NULL),
        ("JSON, cut in the middle", [json.dumps(CALL).encode()[:-5]], NULL),
        ("MessagePack array said to have 2^32 - 1 entries", [b"\xdd\xff\xff\xff\xff"], NULL),
        ("MessagePack string said to have 4 GiB", [b"\x81\xa4type\xdb\xff\xff\xff\xff"], NULL),
        ("a million empty lists in extra_body", [lists], NAMED),
        ("an array of half a million numbers", [b"[" + b"1," * 500_000 + b"1]"], NULL),
        ("options nested 70 deep", [deep], NAMED),
        ("JSON nested 100,000 deep", [deeper], NULL),
        ("MessagePack nested 200,000 deep", [packed], NULL),
        ("timeout_ms NaN as JSON has none", [nan], NULL),
        ("timeout_ms NaN in MessagePack", [pack(call(timeout_ms=math.nan))], NAMED),
        ("infinity in extra_body", [inf], NAMED),
        ("a key that is a number", [key], NULL),
        ("an integer of 2^53", [call(options={"seed": 2**53})], NAMED),
        ("an integer of 400 digits", [b'{"type":"call","id":"a","input":"x","options":{"seed":' + b"9" * 400 + b"}}"],
         r"^failed invalid_request"),
        ("text that is not UTF-8", [b'{"type":"call","id":"a","input":"\xff\xfe"}'], r"^failed invalid_request"),
        ("half a surrogate pair", [surrogate], r"^failed invalid_request"),
        ("binary for text", [pack(call(input=b"x"))], NAMED),
        ("a message of no type", [{"id": "a", "input": "x"}], NAMED),
        ("an unknown type", [call(type="order")], NAMED),
        ("an id of 65 characters", [call(id="x" * 65)], NULL),
        ("an empty id", [call(id="")], NULL),
        ("an unknown route", [call(route="nowhere")], r"^failed unknown_route \(with id"),
        ("a route that is a URL", [call(route="wss://api.example.com/v1")], r"^failed unknown_route \(with id"),
        ("an unknown option", [call(options={"temprature": 1})], r"^failed unsupported_option \(with id"),
        ("an option of the other dialect", [call(options={"stop": "x"})], r"^failed unsupported_option \(with id"),
        ("an option out of range", [call(options={"temperature": 9})], NAMED),
        ("an unknown field", [call(timeuot_ms=3)], DONE),
        ("both input and messages", [call(messages=[{"role": "user", "content": "x"}])], NAMED),
        ("neither input nor messages", [{"type": "call", "id": "a"}], NAMED),
        ("no messages at all", [{"type": "call", "id": "a", "messages": []}], NAMED),
        ("an unknown role", [{"type": "call", "id": "a", "messages": [{"role": "root", "content": "x"}]}], NAMED),
        ("version 2", [call(v=2)], r"^failed unsupported_version \(with id"),
        ("version 2, and fields nobody knows in it", [call(v=2, input={"a": 1})], r"^failed unsupported_version"),
        ("a duplicate id", [call(), call()],
         r"^(accepted · )?failed duplicate_id \(with id\)[^·]*( · accepted)? · done stop, \d+ deltas$"),
        ("cancel of an unknown id", [{"type": "cancel", "id": "never"}], r"^nothing, and"),
        ("cancel twice", [call(input="x [[scenario=silent]]"), *[{"type": "cancel", "id": "a"}] * 2],
         r"^accepted · failed cancelled \(with id\)[^·]*$"),
        ("cancel with another call's call_id", [call(), {"type": "cancel", "id": "a", "call_id": "guess"}], DONE),
        ("an empty array", [[]], r"^nothing, and"),
        ("an array of 257 pings", [[{"type": "ping", "nonce": 1}] * 257], NULL),
        ("an array of 257 calls", [[call(id=str(n)) for n in range(257)]],
         r"^failed invalid_request \(with id\) \(256 messages\)$"),
        ("an array in an array", [[[call()]]], NULL),
        ("one bad map among good ones", [[call(), bad, call(id="c")]],
         r"failed invalid_request \(with id\).*"),
        ("timeout_ms 0", [call(timeout_ms=0)], NAMED),
        ("timeout_ms -1", [call(timeout_ms=-1)], NAMED),
        ("timeout_ms 1e300", [call(timeout_ms=1e300)], NAMED),
        ("timeout_ms 1e-300", [call(timeout_ms=1e-300)], r"^(accepted · )?failed deadline_exceeded \(with id"),
        ("timeout_ms as text", [call(timeout_ms="500")], NAMED),
        ("sent_mono_us an hour in the future (ignored)", [call(sent_mono_us=mono_us() + 3_600_000_000)], DONE),
        ("sent_mono_us two hours past (ignored)", [call(sent_mono_us=mono_us() - 7_200_000_000)], DONE),
        ("sent_mono_us ten seconds past", [call(sent_mono_us=max(0, mono_us() - 10_000_000))],
         r"^failed deadline_exceeded \(with id"),
        ("sent_mono_us -1", [call(sent_mono_us=-1)], r"done|failed invalid_request|deadline_exceeded"),
        ("a REQ that asks for a stream", [(b"", json.dumps(call(stream=True)).encode())], NAMED),
        ("a REQ with garbage", [(b"", b"\xc1\xc1")], NULL),
        ("a REQ with an array", [(b"", b"[{}]")], NULL),
        ("a REQ that cancels", [(b"", b'{"type":"cancel","id":"a"}')], NAMED),
        ("an envelope of five frames", [(b"1", b"2", b"3", b"4", b"5", b"", b"{}")], NULL),
        ("a control message (`calls`) at the bots' socket", [{"type": "calls"}], NULL),
        ("a frame of 1x the limit", [call(input="x" * (LIMIT - len(json.dumps(CALL))))], r"^accepted · "),
        ("a frame one byte over the limit, with an id", [call(input="x" * LIMIT)],
         r"^failed too_large \(with id\)[^·]*$"),
        ("the same, of garbage", [b"\xc1" * (LIMIT + 1)], r"^failed too_large \(id null\)[^·]*$"),
        ("a frame of 2x the limit", [b'{"type":"call","id":"a","input":"' + b"x" * (2 * LIMIT - 35) + b'"}'],
         r"^failed too_large \(with id\)[^·]*$"),
    ]  # fmt: skip


QUICK = {
    "garbage bytes", "an empty message", "MessagePack, cut in the middle", "options nested 70 deep",
    "JSON nested 100,000 deep", "timeout_ms NaN in MessagePack", "a key that is a number", "an unknown type",
    "an unknown route", "an unknown option", "both input and messages", "version 2", "a duplicate id", "cancel twice",
    "an array of 257 pings", "one bad map among good ones", "timeout_ms 1e300", "sent_mono_us ten seconds past",
    "a REQ that asks for a stream", "a frame one byte over the limit, with an id",
}  # fmt: skip


def wire(table: Table, endpoint: str, memory: Callable[[], int]) -> None:
    """All rows of the wire, against a daemon that answers at `endpoint` and whose resident bytes `memory` tells."""
    for tried, payloads, expected in messages():
        if table.quick and tried not in QUICK:
            continue
        table.try_("wire", tried, lambda payloads=payloads: _converse(endpoint, payloads), expected)
    table.try_("wire", "a chosen routing id", lambda: _chosen(endpoint), NAMED)
    table.try_("wire", "a frame of 10x the limit", lambda: _giant(endpoint, 10 * LIMIT), r"^connection closed")
    table.try_("wire", "ZMTP commands of garbage after the handshake", lambda: _commands(endpoint), r"^connection ")
    table.try_("wire", "bytes that are not ZMTP", lambda: _not_zmtp(endpoint), r"^connection ")
    old = b"\xff\0\0\0\0\0\0\0\x01\x7f"
    for tried, said in (
        ("a call by ZMTP 1.0", b"\x01\x00\x03\x00hi"),
        ("a call by ZMTP 2.0", old + b"\x01\x05\x00\x00\x00\x02hi"),
    ):
        table.try_("wire", tried, lambda said=said: _says(endpoint, said), r"^connection ")
    if table.quick:
        return
    table.try_("wire", "a frame said to have 2^63 - 1 bytes", lambda: _claim(endpoint), r"^connection closed")
    table.try_("wire", "one message of endless frames",
               lambda: _endless(endpoint, memory), r"shut down after .* given back")  # fmt: skip
    table.try_("wire", "connect, then say nothing", lambda: _silent(endpoint, b""), r"^connection closed")
    table.try_("wire", "half a ZMTP greeting", lambda: _silent(endpoint, Raw.GREETING[:20]), r"^connection closed")
    table.try_("wire", "the ZMTP handshake, then nothing", lambda: _idle(endpoint), r"^connection stays open")
    table.try_(
        "wire", "300 connections of one bot, 3 messages each, dropped at once", lambda: _crowd(endpoint), r"^all gone"
    )
    table.try_(
        "wire",
        "5,000 calls without reading, then all is read",
        lambda: _flood(endpoint, memory),
        r"exactly one terminal",
    )
    table.try_(
        "wire", "5,000 messages of garbage without reading", lambda: _junk(endpoint, memory), r"^failed invalid_request"
    )


def _converse(endpoint: str, payloads: list[Any]) -> str:
    with Bot(endpoint) as bot:
        return told(bot.converse(*payloads))


def _chosen(endpoint: str) -> str:
    with Bot(endpoint, routing_id=b"\x00impostor") as bot:
        return told(bot.converse(call()))


def _giant(endpoint: str, size: int) -> str:
    with Raw(endpoint) as raw:
        raw.greet()
        raw.send(Raw.frame(b'{"id":"a"' + b" " * size))
        return raw.closed(3.0)


def _claim(endpoint: str) -> str:
    with Raw(endpoint) as raw:
        raw.greet()
        raw.send(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff" + b"x" * 1000)
        return raw.closed(3.0)


def _commands(endpoint: str) -> str:
    with Raw(endpoint) as raw:
        raw.greet()
        raw.send(Raw.frame(b"\x05PANIC" + b"\xff" * 100, command=True) + Raw.frame(b"", command=True))
        return raw.closed(3.0)


def _says(endpoint: str, said: bytes) -> str:
    with Raw(endpoint) as raw:
        raw.send(said)
        return raw.closed(0.5)


def _not_zmtp(endpoint: str) -> str:
    with Raw(endpoint) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\xfe" * 200)
        return raw.closed(2.5)


def _silent(endpoint: str, first: bytes) -> str:
    with Raw(endpoint) as raw:
        raw.send(first)
        began = time.monotonic()
        return f"{raw.closed(6.0)} after {time.monotonic() - began:.1f} s"


def _idle(endpoint: str) -> str:
    with Raw(endpoint) as raw:
        raw.greet()
        return f"{raw.closed(3.0)} (a bot may be idle)"


def _endless(endpoint: str, memory: Callable[[], int]) -> str:
    before = memory()
    with Raw(endpoint) as raw:
        raw.greet()
        chunk = Raw.frame(b"x" * 65536, more=True) * 16
        sent = 0
        while sent < 512 << 20 and raw.send(chunk):
            sent += len(chunk)
        during = memory()
    until = time.monotonic() + 5
    while memory() > before + (16 << 20) and time.monotonic() < until:
        time.sleep(0.02)
    after = memory()
    back = "given back when it closed" if after < before + (16 << 20) else f"NOT returned: {(after - before) >> 20} MiB"
    how = "the connection is shut down" if sent < 512 << 20 else "NOT STOPPED at 512 MiB"
    return f"{how} after {sent >> 20} MiB, memory +{max(0, during - before) >> 20} MiB, {back}"


def _crowd(endpoint: str) -> str:
    bots = []
    try:
        for _ in range(300):
            raw = Raw(endpoint)
            bots.append(raw)
            raw.greet()
            raw.send(b"".join(Raw.frame(body) for body in (b"\xc1", json.dumps(call()).encode(), b'{"type":"probe"}')))
    finally:
        for raw in bots:
            with contextlib.suppress(OSError):
                raw.socket.close()
    with Bot(endpoint) as bot:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            report = bot.converse({"type": "probe"})[0]
            if report.get("in_flight", 99) + report.get("queued", 99) <= 2:
                return "all gone, their calls stopped"
            time.sleep(0.05)
    return f"still {report.get('in_flight')} in flight, {report.get('queued')} queued"


def _flood(endpoint: str, memory: Callable[[], int]) -> str:
    before = memory()
    peak = before
    count = 5000
    with Bot(endpoint, rcvhwm=1, sndhwm=0) as bot:
        for n in range(count):
            bot.send(call(id=str(n), timeout_ms=4000))
            if not n % 500:
                peak = max(peak, memory())
        for _ in range(20):
            time.sleep(0.1)
            peak = max(peak, memory())
        accepted: set[str] = set()
        ended: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        after: list[str] = []
        while (message := bot.next(4.0 if len(accepted) - len(ended) else 0.5))["type"] != "nothing":
            name = message.get("id")
            if message["type"] != "accepted" and name in ended:
                after.append(message["type"])
            if message["type"] == "accepted":
                accepted.add(name)
            elif message["type"] in TERMINALS:
                codes[message.get("code", "done")] += 1
                if message.get("call_id"):
                    ended[name] += 1
        fine = set(ended) == accepted and set(ended.values()) <= {1} and not after
    told_ = ", ".join(f"{n} {code}" for code, n in codes.most_common())
    missing = count - sum(codes.values())
    verdict = (
        "exactly one terminal for each accepted" if fine else f"WRONG: {len(accepted)} accepted, {len(ended)} ended"
    )
    return (
        f"{len(accepted)} accepted, {verdict}; {told_}; {missing} refusals dropped; memory +{(peak - before) >> 20} MiB"
    )


def _junk(endpoint: str, memory: Callable[[], int]) -> str:
    before = memory()
    with Bot(endpoint, rcvhwm=1, sndhwm=0) as bot:
        for _ in range(5000):
            bot.send(b"\xc1" * 64)
        time.sleep(1.0)
        grown = memory() - before
        came = []
        while (message := bot.next(0.5))["type"] != "nothing":
            came.append(message)
        codes = Counter(f"{m['type']} {m.get('code')}" for m in came)
    return f"{', '.join(codes)}: {len(came)} answers, the rest dropped; memory +{max(0, grown) >> 20} MiB"
