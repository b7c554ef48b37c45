"""The names of everything that may go wrong, and expressions that mix them, by seeded dice or in turn.

An expression is a name, or names mixed:

    cut                            every call is cut
    http_503*3,ok                  the first three connections are refused, then all is well
    ok@0.8+cut@0.1+silent@0.1      by dice, in these shares

*Door* scenarios happen to a connection, *call* scenarios to a call. In a mix a call takes door scenarios for ok,
and a connection call scenarios; in a row (``,``) a step counts what it applies to: connections for a door step,
calls for a call step.
"""

from __future__ import annotations

import random
import re
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from sidecar.simulator.toxics import TOXICS

Kind: TypeAlias = Literal["door", "call", "mix"]


class Scenario(Struct, frozen=True, kw_only=True):
    """One name: `kind` says whom it befalls, `line` what it does, `mix` what a composed one stands for."""

    name: str
    kind: Kind
    line: str
    mix: str = ""


_DOOR: Final = {
    "refuse": "the connection is closed as soon as it is accepted (by path: once its request is read)",
    "handshake_reset": "TCP RST in place of an answer to the upgrade",
    "handshake_eof": "EOF in the middle of the answer to the upgrade",
    "handshake_garbage": "bytes that are not HTTP in answer to the upgrade",
    "handshake_301": "a redirect in answer to the upgrade",
    "handshake_drip": "the answer to the upgrade comes a byte a second",
    "handshake_silent": "the upgrade is never answered",
    "handshake_wrong_accept": "the upgrade is answered with a wrong Sec-WebSocket-Accept",
    "http_401": "the upgrade is refused: invalid API key",
    "http_403": "the upgrade is refused: forbidden",
    "http_429": "the upgrade is refused: rate limited, with Retry-After",
    "http_500": "the upgrade is refused: internal error",
    "http_503": "the upgrade is refused: unavailable, with Retry-After",
    "html": "a 502 with an HTML page, as from a proxy",
    "deaf": "the connection opens, then nothing is read any more, not even a ping",
    "expiry": "after max_age_s (10 when the relay has none) websocket_connection_limit_reached, then close 1000",
    "expiring": "as expiry, with a connection_expiring warning at half of that age",
    **{f"toxic_{name}": f"a bad line: {line}" for name, line in TOXICS.items()},
}
_CALL: Final = {
    "ok": "answers",
    "reset": "TCP RST on receipt of the call, before any byte of the answer",
    "silent": "never answers (pings are answered)",
    "silent_after_created": "says response.created, then nothing",
    "slow_first": "the first token comes late_s later",
    "late": "as slow_first",
    "cut": "EOF without a close frame after some tokens",
    "cut_rst": "TCP RST after some tokens",
    "close_1001": "close frame: going away",
    "close_1008": "close frame: policy",
    "close_1011": "close frame: internal error",
    "close_1012": "close frame: service restart",
    "close_1013": "close frame: try again later",
    "stall": "after some tokens only pings, metadata and keep-alive frames, for ever",
    "stall_silent": "after some tokens nothing, for ever",
    "malformed": "a frame that is not JSON after some tokens, then on as if nothing were",
    "bad_utf8": "a text frame that is not UTF-8 after some tokens",
    "giant_frame": "one frame of size_bytes after some tokens",
    "endless_fragments": "a message in fragments that never ends (until size_bytes)",
    "empty_fragments": "a message in empty fragments that never ends (until size_bytes of headers)",
    "masked_frame": "a masked frame after some tokens, which no server may send",
    "error_401": "error frame: invalid_api_key",
    "error_403": "error frame: forbidden",
    "error_404": "error frame: model_not_found",
    "error_429": "error frame: rate_limit_exceeded, with retry-after",
    "error_quota": "error frame: insufficient_quota",
    "error_500": "error frame: server_error",
    "error_503": "error frame: unavailable, with retry-after",
    "error_529": "error frame: overloaded",
    "error_context_length": "error frame: context_length_exceeded",
    "error_content_filter": "error frame: content_filter",
    "error_after_created": "response.created, then an error frame: server_error",
    "error_midway": "some tokens, then an error frame: server_error",
    "expired": "error frame: websocket_connection_limit_reached on receipt of the call, then close 1000",
    "failed": "response.created, then response.failed: server_error",
    "incomplete_length": "ends early for max_output_tokens (chat: length)",
    "incomplete_filter": "ends early for content_filter",
    "refusal": "refuses in the model's own words",
    "empty": "a complete answer without text",
    "no_usage": "a complete answer without usage",
    "no_done": "a complete answer without [DONE] (chat)",
    "usage_late": "the usage comes usage_late_s (0.2 when not given) after the content",
    "duplicate_terminal": "the terminal comes twice",
    "tokens_after_terminal": "more tokens come after the terminal",
    "unknown_events": "event types and fields that no one has documented, in between",
    "stray": "tokens that belong to no call of this connection, in between",
    "reasoning_first": "reasoning for late_s, then the answer",
    "surrogate_split": "a character outside the BMP is split over two tokens, half a JSON escape each",
    "empty_deltas": "deltas without text in between",
    "zstd_bomb": "a small binary frame that decompresses to size_bytes",
    "binary_garbage": "a binary frame of garbage after some tokens",
    "cut_clean": "HTTP: the body ends properly after some tokens, without the dialect's end (WebSocket: cut)",
    "goaway": "HTTP: answers and says that the connection ends: GOAWAY, Connection: close (WebSocket: ok)",
    "goaway_now": "HTTP: GOAWAY that leaves the request unprocessed; 1.1: EOF at once (WebSocket: reset)",
    "rst_stream": "HTTP: RST_STREAM after some tokens; 1.1: EOF (WebSocket: cut_rst)",
    "refused_stream": "HTTP: RST_STREAM that says it was not processed; 1.1: EOF at once (WebSocket: reset)",
    "json_error": "HTTP: a 200 whose body is an error in JSON, no stream (WebSocket: error_500)",
    "packed": "HTTP: the body is packed by gzip, which nobody asked for, and unpacks to size_bytes (WebSocket: reset)",
    "endless_json": "HTTP: a 200 with JSON of size_bytes in place of a stream, and no end of it (WebSocket: reset)",
    "flood": "size_bytes of what brings nothing, then the answer: pings; HTTP/1.1: informational heads; HTTP/2: PINGs",
    "endless_head": "HTTP: a head of size_bytes in place of an answer, and no end of it (WebSocket: reset)",
    "linger": "HTTP: the body ends late_s after the answer (WebSocket: ok)",
    "drip_head": "HTTP: the head of the answer comes byte by byte, in late_s (WebSocket: late)",
}
_MIX: Final = {
    "half": ("half of the calls, by seed, are answered; the others are silent, late, cut in turn", ""),
    "fail_first": (
        "the first three connections get 503, the first three calls an error, then all is well",
        "http_503*3,error_500*3,ok",
    ),
    "flaky": ("four calls of five are answered", "ok@0.8+error_500@0.05+cut@0.05+silent@0.05+slow_first@0.05"),
}

#: name -> scenario, in the order in which `sidecar sim --list` shows them.
SCENARIOS: Final[dict[str, Scenario]] = {
    **{name: Scenario(name=name, kind="call", line=line) for name, line in _CALL.items()},
    **{name: Scenario(name=name, kind="door", line=line) for name, line in _DOOR.items()},
    **{name: Scenario(name=name, kind="mix", line=line, mix=mix) for name, (line, mix) in _MIX.items()},
}

_HALF: Final = ("silent", "late", "cut")
_CODED: Final = re.compile(r"(close_(1\d{3}|[34]\d{3})|http_[345]\d\d)")
_ANY_TOXIC: Final = "|".join(TOXICS)
_TOXIC: Final = re.compile(f"toxic_({_ANY_TOXIC})(-({_ANY_TOXIC}))*")


def scenario(name: str) -> Scenario:
    """The scenario of that name; ``close_NNNN`` and ``http_NNN`` exist for every code, ``toxic_A-B-C`` for every mix.

    Raises:
        ValueError: there is none.
    """
    found = SCENARIOS.get(name)
    if found is None and _CODED.fullmatch(name):
        door = name.startswith("http_")
        found = Scenario(name=name, kind="door" if door else "call", line="as the code says")
    if found is None and _TOXIC.fullmatch(name):
        found = Scenario(name=name, kind="door", line="a bad line in several ways at once")
    if found is None:
        raise ValueError(f"no scenario is named {name!r}: see `sidecar sim --list`")
    return found


class _Step(Struct):
    """`left` None: for ever."""

    left: int | None
    choices: list[tuple[float, Scenario]]


class Plan:
    """An expression at work: what befalls the next connection, what the next call. Deterministic by seed.

    Raises:
        ValueError: the expression has an unknown name, or a count or share that is none.
    """

    def __init__(self, expression: str, seed: int = 0) -> None:
        self.expression = expression
        self._seed = seed
        self._calls = self._doors = 0
        self._half = expression == "half"
        known = SCENARIOS.get(expression)
        row = "ok" if self._half else (known.mix if known else "") or expression
        self._steps = [_step(part) for part in row.split(",")]
        self._steps[-1].left = None

    def door(self) -> str:
        """What befalls the next connection: the name of a door scenario, or ``"ok"``."""
        self._doors += 1
        return self._take("door", self._doors - 1)

    def fate(self) -> str:
        """What befalls the next call: the name of a call scenario."""
        number, self._calls = self._calls, self._calls + 1
        if self._half:
            pair, place = divmod(number, 2)
            good = random.Random(self._seed * 1_000_003 + pair).randrange(2)
            return "ok" if place == good else _HALF[pair % 3]
        return self._take("call", number)

    def _take(self, kind: Kind, number: int) -> str:
        step = self._steps[0]
        if len(step.choices) == 1:
            found = step.choices[0][1]
        else:
            roll = random.Random((self._seed * 2 + (kind == "door")) * 1_000_003 + number).random()
            for share, found in step.choices:  # noqa: B007 -- the last takes what rounding leaves
                roll -= share
                if roll < 0:
                    break
        mixed = len(step.choices) > 1 and any(one.kind == kind for _, one in step.choices)
        if step.left is not None and (found.kind == kind or mixed):
            step.left -= 1
            if step.left == 0:
                del self._steps[0]
        return found.name if found.kind == kind else "ok"


def _step(part: str) -> _Step:
    body, star, times = part.partition("*")
    if star and (not times.isdecimal() or int(times) < 1):
        raise ValueError(f"{part!r}: after * stands how many, 1 or more")
    choices = []
    for one in body.split("+"):
        name, at, share = one.partition("@")
        try:
            weight = float(share) if at else 1.0
        except ValueError:
            raise ValueError(f"{one!r}: after @ stands a share") from None
        if not 0 <= weight <= 1e9:
            raise ValueError(f"{one!r}: after @ stands a share")
        choices.append((weight, scenario(name)))
    whole = sum(weight for weight, _ in choices)
    if whole <= 0:
        raise ValueError(f"{part!r}: the shares add up to nothing")
    if any(one.kind == "mix" for _, one in choices):
        raise ValueError(f"{part!r}: a mix cannot be mixed again")
    return _Step(left=int(times) if star else 1, choices=[(weight / whole, one) for weight, one in choices])
