"""One call being answered: its voice, its clocks and dice, and the connection it speaks on."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol

import msgspec
import trio

from sidecar.simulator.behaviour import Behaviour, piece, words
from sidecar.simulator.counters import Counters
from sidecar.simulator.metronome import Metronome
from sidecar.simulator.voices import PLACEHOLDER, Fault, Request, Voice

_BLOCK: Final = 2048  # tokens rendered at once
_BACKLOG: Final = 1 << 20
_BACKED_UP: Final = 0.01  # seconds until a token is tried again that a slow reader kept back
_encode = msgspec.json.Encoder().encode


class Line(Protocol):
    """What a call may do to its connection. `session.Session` implements it."""

    counters: Counters
    metronome: Metronome
    #: of an error, where none is asked for
    shape: str

    @property
    def framed(self) -> Callable[[bytes], bytes] | None:
        """What makes of a message the bytes that `send_large` takes; None: messages are said one by one.

        Hashable, and the same for each connection on which the bytes would be the same.
        """
        ...

    @property
    def backlog(self) -> int:
        """Bytes that the client's kernel has not taken yet."""
        ...

    def say(self, payload: bytes) -> None:
        """One message, compressed if that was agreed."""
        ...

    def raw(self, data: bytes) -> None:
        """Bytes below the WebSocket."""
        ...

    async def send_large(self, data: bytes) -> None:
        """Whole frames, waiting while the client does not read."""
        ...

    async def drained(self) -> None:
        """Wait while the client does not read."""
        ...

    def deflate(self, data: bytes) -> bytes:
        """The next slice of the connection's zstd stream."""
        ...

    def eof(self) -> None:
        """End the connection without a farewell."""
        ...

    def reset(self) -> None:
        """End the connection by RST."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """End the connection by a close frame."""
        ...


class Act:
    """What the fates act with. Every token passes `tokens`."""

    def __init__(
        self,
        line: Line,
        request: Request,
        voice: Voice,
        behaviour: Behaviour,
        dice: random.Random,
        mono_us: Callable[[], int],
    ) -> None:
        self.line, self.request, self.voice, self.behaviour = line, request, voice, behaviour
        self._dice, self._mono_us = dice, mono_us
        self._words = words(behaviour, dice)
        self._stamps: list[str] = []
        self.sent = 0
        self._extra, self._extra_tokens = "", 0
        limit = request.max_tokens if behaviour.obey_limit else None
        self.total = behaviour.count if limit is None else min(behaviour.count, limit)
        self.reason = "stop" if self.total == behaviour.count else "length"
        self._next_at = 0.0

    @property
    def after(self) -> int:
        """How many tokens come before the mishap."""
        after = self.behaviour.after
        return min(self.total, self.total // 2 if after is None else after)

    def say(self, *payloads: bytes) -> None:
        """Send messages."""
        for payload in payloads:
            self.line.say(payload)

    def begin(self) -> None:
        """Its turn has come: the clock of the first token starts."""
        self._next_at = trio.current_time() + self.behaviour.ttft_s

    async def open(self) -> None:
        """`created` and `opening` at once, as the real ones do, then the time to the first token."""
        self.say(*self.voice.created(), *self.voice.opening())
        await trio.sleep_until(self._next_at)

    def later(self, seconds: float) -> None:
        """The next token comes so much later."""
        self._next_at += seconds

    async def wait_first(self) -> None:
        """Until the first token is due."""
        await trio.sleep_until(self._next_at)

    async def tokens(self, until: int | None = None) -> None:
        """Tokens at their cadence, up to `until` in all (default: all of them)."""
        goal = self.total if until is None else min(until, self.total)
        if self.behaviour.cadence_s == 0:
            await self._flood(goal)
            return
        if self.sent >= goal:
            return
        cadence, counters, line = self.behaviour.cadence_s, self.line.counters, self.line
        swing = cadence * self.behaviour.jitter

        def step() -> float | None:
            if line.backlog > _BACKLOG:
                return trio.current_time() + _BACKED_UP
            line.say(self.voice.delta(_encode(self._text(self.sent))))
            self.sent += 1
            counters.tokens += 1
            self._next_at += cadence
            if self.sent >= goal:
                return None
            return self._next_at + swing * (2 * self._dice.random() - 1) if swing else self._next_at

        await line.metronome.play(self._next_at, step)

    def _text(self, index: int) -> str:
        if self.behaviour.stamp:
            self._stamps.append(f"{self._mono_us()} ")
            return self._stamps[-1]
        return piece(self._words, index)

    async def _flood(self, goal: int) -> None:
        while self.sent < goal:
            number = min(_BLOCK, goal - self.sent)
            framed = self.line.framed
            if self.behaviour.stamp or framed is None:
                for index in range(self.sent, self.sent + number):
                    self.line.say(self.voice.delta(_encode(self._text(index))))
                    if not index % 64:
                        await self.line.drained()
                await self.line.drained()
            else:
                offset = self.sent % len(self._words)
                block = _rendered(_Prefab(self.voice, number), framed, self._words, offset, self.sent == 0)
                self.voice.skip(number)
                await self.line.send_large(block.replace(PLACEHOLDER.encode(), self.voice.digits.encode()))
            self.sent += number
            self.line.counters.tokens += number

    def also(self, text: str, tokens: int) -> None:
        """Tokens were said that are not of the cycle."""
        self._extra += text
        self._extra_tokens += tokens
        self.line.counters.tokens += tokens

    @property
    def text(self) -> str:
        """The answer so far."""
        if self.behaviour.stamp:
            return "".join(self._stamps) + self._extra
        return _joined(self._words, self.sent) + self._extra

    @property
    def usage(self) -> tuple[int, int] | None:
        """Tokens in and out; None when the behaviour says none."""
        return (max(1, len(self.request.prompt) // 4), self.sent + self._extra_tokens) if self.behaviour.usage else None

    async def end(self, reason: str | None = None, *, usage_late_s: float = 0.0) -> list[bytes]:
        """Say the terminal; returns its frames."""
        last: list[bytes] = []
        pause = usage_late_s or self.behaviour.usage_late_s
        reason = reason or self.behaviour.finish or self.reason
        for index, group in enumerate(self.voice.closing(self.text, self.usage, reason)):
            if index == 1 and pause:
                await trio.sleep(pause)
            self.say(*group)
            last += group
        return last

    def fault(self, fault: Fault, *, patient: bool = False) -> Fault:
        """`fault` in the shape asked for, with a retry-after if it is a patient one."""
        after = self.behaviour.retry_after_s
        headers = {"retry-after": f"{after:g}"} if patient and after is not None else None
        return msgspec.structs.replace(fault, shape=self.behaviour.shape or self.line.shape, headers=headers)


class _Prefab:
    """A voice to render with, equal to every other that would render the same: the key of the cache below."""

    __slots__ = ("_key", "number", "voice")

    def __init__(self, voice: Voice, number: int) -> None:
        self.voice, self.number = voice, number
        self._key = (*voice.key, number)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Prefab) and self._key == other._key


@lru_cache(maxsize=32)
def _joined(cycle: tuple[str, ...], number: int) -> str:
    return "".join(piece(cycle, index) for index in range(number))


@lru_cache(maxsize=64)
def _rendered(
    prefab: _Prefab,
    framed: Callable[[bytes], bytes],
    cycle: tuple[str, ...],
    offset: int,
    first: bool,  # noqa: FBT001 -- lru_cache
) -> bytes:
    voice = prefab.voice.prefab()
    start = 0 if first else offset + len(cycle)
    texts = [_encode(piece(cycle, start + index)) for index in range(min(prefab.number, len(cycle) + 1))]
    many = len(texts)
    return b"".join(
        framed(voice.delta(texts[index] if index < many else texts[(index - 1) % len(cycle) + 1]))
        for index in range(prefab.number)
    )
