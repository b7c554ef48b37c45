"""Attacks of an HTTP/1.1 server: its heads, its chunks, its events, its ends."""

from __future__ import annotations

import gzip
import itertools
import time
import zlib

from tests.end_to_end.hostile_server import (
    CHUNKED,
    CROSSING,
    DONE,
    EITHER,
    FAILED,
    FOREIGN,
    HEAD,
    LAST,
    LOST,
    Peer,
    asked,
    begun,
    body,
    chunk,
    connected,
    events,
    sse,
)

#: What a 429, 503 or 529 says, one after the other: nothing of it may be believed for more than an hour.
WAITS = (
    "nan", "-1", "inf", "-inf", "1e309", "1e5", "99999999999999999999", "0", "", " ", "soon", "0x10", "1_0", "\u0661",
    "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 99 Foo 2026 99:99:99 GMT", "9" * 5000,
    "3, 4",
)  # fmt: skip
LIMITS = ("nan", "-5", "1e99d", "99999999999999d", "\u00b5s", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "x")


def good(peer: Peer) -> None:
    """Answers each request."""
    while True:
        peer.answer(peer.request())


def says(name: str, expected: str, *what: bytes, close: bool = False) -> None:
    """An attack that answers each request with these bytes; BODY stands for a proper answer's body, chunked."""

    def answer(peer: Peer, dialect: str) -> None:
        for piece in what:
            peer.send(piece.replace(b"BODY", chunk(body(dialect)) + LAST).replace(b"RAW", body(dialect)))
        if close:
            peer.close()

    asked("http1", name, expected)(answer)


# ---------------------------------------------------------------------------------------------- heads


@asked("http1", "a head byte by byte, never complete", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.drip(HEAD * 50, 0.005)


@asked("http1", "a head without an end", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.send(HEAD)
    for number in itertools.count():
        peer.send(b"X-%d: %b\r\n" % (number, b"a" * 100))


for label, head in {
    "one header of 8 MiB": HEAD + b"X: " + b"a" * (8 << 20) + b"\r\n\r\n",
    "100,000 headers": HEAD + b"a: b\r\n" * 100_000 + b"\r\n",
    "20,000 headers without a name": HEAD + b":\r\n" * 20_000 + b"\r\n",
    "no colon in a header": HEAD + b"what is this\r\n\r\nBODY",
    "a blank before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\nBODY",
    "NUL in a header": HEAD + b"X: a\0b\r\nTransfer-Encoding: chunked\r\n\r\nBODY",
    "length and chunks, both": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nBODY",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nBODY",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\nBODY",
    "a length of 400 digits": HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\nBODY",
    "codings nobody asked for": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\nBODY",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\nBODY",
    "HTTP/0.9: a body and no head": b"RAW",
    "HTTP/2.0 in words": CHUNKED.replace(b"1.1", b"2.0") + b"BODY",
    "ICY 200 OK": CHUNKED.replace(b"HTTP/1.1", b"ICY") + b"BODY",
    "HTTP/2's settings": b"\0\0\0\4\0\0\0\0\0" * 10,
    "TLS's alert": b"\x15\3\3\0\2\2\x28",
    "status 000": CHUNKED.replace(b"200", b"000") + b"BODY",
    "status 999": CHUNKED.replace(b"200", b"999") + b"BODY",
    "status of four digits": CHUNKED.replace(b"200", b"2000") + b"BODY",
}.items():
    says(label, FAILED, head)
says("a folded header", EITHER, HEAD + b"X: a\r\n b\r\n\tc\r\nTransfer-Encoding: chunked\r\n\r\nBODY")
says("HTTP/1.2", DONE, CHUNKED.replace(b"1.1", b"1.2") + b"BODY")
says("HTTP/1.0", DONE, HEAD.replace(b"1.1", b"1.0") + b"\r\nRAW", close=True)
says("ends of lines without CR", DONE, (HEAD + b"Transfer-Encoding: chunked\r\n\r\n").replace(b"\r", b"") + b"BODY")
says("no reason, no content type", EITHER, b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\nBODY")
says("an early hint before", DONE, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", CHUNKED + b"BODY")


@asked("http1", "100 Continue for ever", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.flood(b"HTTP/1.1 100 Continue\r\n\r\n")


for status in (101, 204, 304):
    says(f"status {status}", FAILED, b"HTTP/1.1 %d X\r\nUpgrade: x\r\nContent-Length: 3\r\n\r\nabc" % status)
for status in (301, 302, 303, 307, 308):
    says(
        f"a redirect, {status}", FAILED,
        b"HTTP/1.1 %d Elsewhere\r\nLocation: /responses\r\nContent-Length: 0\r\n\r\n" % status,
    )  # fmt: skip
for label, coding, packed in (
    ("gzip", b"gzip", gzip.compress(body("responses"))),
    ("a gzip bomb", b"gzip", gzip.compress(bytes(64 << 20))),
    ("zstd, in capitals", b"ZSTD", b"\x28\xb5\x2f\xfd"),
    ("identity and deflate", b"identity, deflate", zlib.compress(b"x")),
):
    packing = b"Content-Encoding: " + coding + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    says(f"packed: {label}", FAILED, HEAD + packing + chunk(packed) + LAST)


# ---------------------------------------------------------------------------------------------- chunks and bodies


@asked("http1", "a body byte by byte", EITHER)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED)
    peer.drip(b"".join(chunk(bytes([byte])) for byte in body(dialect)), 0.002, 6)
    peer.send(LAST)


for label, size in {
    "negative": b"-5", "none": b"", "hexadecimal in C": b"0x5", "with an underscore": b"1_0", "17 digits": b"f" * 17,
    "an endless line": b"0" * 100_000, "with a sign": b"+5", "too small": b"5", "too large by one": b"7",
}.items():  # fmt: skip
    says(f"a chunk's size: {label}", FAILED, CHUNKED, b"%b\r\n: abcd\r\n0\r\n\r\n" % size)
says("a chunk of 2**59 bytes, with a whole answer, cut", DONE, CHUNKED + b"fffffffffffffff\r\nRAW", close=True)
says("a body shorter than its length", FAILED, HEAD + b"Content-Length: 90000\r\n\r\n: x\n\n", close=True)


@asked("http1", "a cut after two words", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED + chunk(begun(dialect)))
    time.sleep(0.02)
    peer.close(reset=peer.number % 2 == 0)


@asked("http1", "the end of the chunks after two words", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED + chunk(begun(dialect)) + LAST)


@asked("http1", "an extension at each chunk", DONE)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED, *(b"1;a=b;c=" + b"d" * 900 + b"\r\n%c\r\n" % byte for byte in body(dialect)), LAST)


@asked("http1", "an extension without an end", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED + b"5;")
    peer.flood(b"a=b;")


@asked("http1", "chunks of one byte, for ever", LOST)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED + chunk(begun(dialect)))
    peer.flood(b"1\r\n:\r\n1\r\n\n\r\n")


@asked("http1", "trailers without an end", EITHER)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED + chunk(body(dialect)) + b"0\r\n")
    peer.flood(b"Trailer: yes\r\n")


# ---------------------------------------------------------------------------------------------- events


def floods(name: str, *lines: bytes, expected: str = LOST) -> None:
    """An answer that begins well, and then brings these for ever."""

    def answer(peer: Peer, dialect: str) -> None:
        what = lines[peer.number % len(lines)]
        peer.send(CHUNKED, chunk(begun(dialect)))
        peer.flood(chunk(what * (60_000 // len(what))))

    asked("http1", name, expected)(answer)


floods("comments for ever", b": ping\n\n", b":\n")
floods("unknown lines for ever", b"x\n", b"x\n\n", b"e\n", b":\nx\n")
floods("blank lines for ever", b"\n", b"\r", b"\r\n")
floods("events without data for ever", b"data:\n\n", b"event: x\n\n", b"data\n", b"data:\n")
floods("one event for ever", b"data: x\n", b"x", expected=FAILED)
floods("unknown events for ever", b"data: {}\n\n", b'data: {"type":"x"}\n\n', b'data: {"id":1}\n\n', expected=FAILED)


@asked("http1", "words for ever, as fast as it goes", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED, chunk(begun(dialect)))
    peer.flood(chunk(sse(events(dialect)[-3 if dialect == "chat" else 2 if dialect == "responses" else 3]) * 400))


@asked("http1", "halves of characters for ever", FAILED)
def _(peer: Peer, dialect: str) -> None:
    half = sse(events(dialect, ("HALF",))[{"responses": 1, "chat": 0, "messages": 2}[dialect]])
    peer.send(CHUNKED, chunk(begun(dialect)))
    peer.flood(chunk(half.replace(b"HALF", b"\\ud83d") * 400))


@asked("http1", "one event of a MiB of lines `data:`", FAILED)
def _(peer: Peer, dialect: str) -> None:
    line = b"data: data: {}\n" if peer.number % 2 else b"data: : x\n"
    peer.send(CHUNKED, chunk(line * ((1 << 20) // len(line) - 1) + b"\n"))
    peer.wait()


@asked("http1", "one event of 2 MiB", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED, chunk(begun(dialect)), chunk(b"data: " + b"x" * (2 << 20)))
    peer.wait()


@asked("http1", "a word of 900 KiB", EITHER)
def _(peer: Peer, dialect: str) -> None:
    peer.answer(dialect, words=("x" * 900_000,))


@asked("http1", "a JSON of 300,000 brackets", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED, chunk(b'data: {"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}\n\n"))
    peer.close()


@asked("http1", "ends of lines of all kinds, cut at every byte", DONE)
def _(peer: Peer, dialect: str) -> None:
    said = b""
    for at, line in enumerate(body(dialect).split(b"\n")[:-1]):
        end = (b"\r\n", b"\r", b"\n")[(at + peer.number) % 3]
        said += line + (b"\r" if end == b"\n" and not line and said.endswith(b"\r") else end)
    peer.send(CHUNKED, *(chunk(bytes([byte])) for byte in said), LAST)


@asked("http1", "a byte order mark, cut", DONE)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED, chunk(b"\xef"), chunk(b"\xbb"))
    time.sleep(0.01)
    peer.send(chunk(b"\xbf" + body(dialect)), LAST)


for label, word in {"NUL": b"\0", "invalid UTF-8": b"\xff\xfe", "half a UTF-8": b"\xe2\x82"}.items():

    @asked("http1", f"{label} in a word", FAILED)
    def _(peer: Peer, dialect: str, word: bytes = word) -> None:
        peer.send(CHUNKED, chunk(body(dialect).replace(b" half", word)), LAST)


@asked("http1", "a page in place of events", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(CHUNKED.replace(b"text/event-stream", b"text/html"))
    peer.flood(chunk(b"<html>" * 1000))


# ---------------------------------------------------------------------------------------------- more than was asked


@asked("http1", "two answers to one request", EITHER)
def _(peer: Peer, dialect: str) -> None:
    both = [CHUNKED + chunk(said) + LAST for said in (body(dialect), body(dialect, (FOREIGN,)))]
    peer.send(*both)


@asked("http1", "another answer, a moment after the first", EITHER)
def _(peer: Peer, dialect: str) -> None:
    peer.answer(dialect)
    time.sleep(0.002 * (peer.number % 4))
    peer.answer(dialect, words=(CROSSING,))


@connected("http1", "an answer to nobody", EITHER)
def _(peer: Peer) -> None:
    time.sleep(0.02)
    peer.answer("responses", words=(CROSSING,))
    good(peer)


@connected("http1", "bytes for nobody, for ever", FAILED)
def _(peer: Peer) -> None:
    peer.flood(b"HTTP/1.1 408 ")


@connected("http1", "408 while idle", EITHER)
def _(peer: Peer) -> None:
    time.sleep(0.05)
    peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    time.sleep(0.02)


@connected("http1", "an answer before the request is complete", EITHER, prompt=400_000)
def _(peer: Peer) -> None:
    peer.head()
    peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    peer.close(reset=True)


@connected("http1", "never reads", LOST, prompt=900_000)
def _(peer: Peer) -> None:
    time.sleep(60)


# ---------------------------------------------------------------------------------------------- keeping connections


says("Connection: close on each answer", DONE, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\nBODY")
says("Keep-Alive: timeout=0", DONE, HEAD + b"Keep-Alive: timeout=0, max=-1\r\nTransfer-Encoding: chunked\r\n\r\nBODY")
says("Keep-Alive of nonsense", DONE,
     HEAD + b"Keep-Alive: timeout=99999999999999, timeout=x\r\nTransfer-Encoding: chunked\r\n\r\nBODY")  # fmt: skip


@asked("http1", "closes as the next request is written", EITHER)
def _(peer: Peer, dialect: str) -> None:
    if peer.number % 3 == 0:
        peer.close(reset=peer.number % 2 == 0)
    peer.answer(dialect)
    if peer.number % 3 == 1:
        time.sleep(0.001 * (peer.number % 5))
        peer.close()


@connected("http1", "closes what it has just taken", FAILED)
def _(peer: Peer) -> None:
    peer.close(reset=True)


# ---------------------------------------------------------------------------------------------- refusals


@asked("http1", "a refusal's body without an end", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.flood(chunk(b"{" * 60_000))


@asked("http1", "a refusal's body byte by byte", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(b"HTTP/1.1 500 X\r\nContent-Length: 1000000\r\n\r\n")
    peer.drip(b"{" * 1000, 0.01)


@asked("http1", "a refusal of 60 KiB of brackets", FAILED)
def _(peer: Peer, dialect: str) -> None:
    peer.send(b"HTTP/1.1 500 X\r\nContent-Length: 60000\r\n\r\n" + b"[" * 30_000 + b"]" * 30_000)


def refusal(status: int, wait: str) -> bytes:
    """A refusal that says when to come again."""
    said = f"Retry-After: {wait}\r\nX-RateLimit-Remaining-Requests: 0\r\nX-RateLimit-Reset-Requests: {wait}\r\n"
    date = "Date: Mon, 30 Nov 2026 08:00:00 GMT\r\n"
    return f"HTTP/1.1 {status} X\r\n{date}{said}Content-Length: 2\r\n\r\n{{}}".encode("utf-8", "replace")


def _refuses(peer: Peer) -> None:
    while True:
        head = peer.head()
        case = int(head.split(b" ", 2)[1].rpartition(b"/")[2])
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        peer.exactly(length)
        peer.send(refusal((429, 503, 529)[case % 3], WAITS[case // 3]))


connected("refusals", "hostile times to wait", FAILED)(_refuses)


def _spends(peer: Peer) -> None:
    for number in itertools.count():
        value = LIMITS[number % len(LIMITS)]
        said = f"X-RateLimit-Remaining-Requests: 0\r\nX-RateLimit-Reset-Requests: {value}\r\n"
        said += f"anthropic-ratelimit-tokens-remaining: 0\r\nanthropic-ratelimit-tokens-reset: {value}\r\n"
        said += "Date: Mon, 30 Nov 2026 08:00:00 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.answer(peer.request(), head=HEAD + said.encode())


connected("http1", "rate limits of nonsense, on answers", EITHER)(_spends)
