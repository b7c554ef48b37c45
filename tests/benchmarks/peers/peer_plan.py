"""Which measurements one repetition consists of. Groups are interleaved: within each the order turns by repetition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

#: Ways that relay chat streams over HTTP, by the name of their gateway.
GATEWAYS: Final = ("litellm", "portkey", "nginx", "nginx-auto", "tensorzero", "bifrost")


@dataclass(frozen=True)
class Cell:
    """One measurement: `way` under a load that `figures` say."""

    group: str
    way: str
    figures: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """In the ledger."""
        return f"{self.group}/{self.way}"

    @property
    def needs(self) -> frozenset[str]:
        """What is not always to be had and has to be there, by the names under which it is missing."""
        found = {self.way} if self.way in (*GATEWAYS, "c-relay") else set()
        if self.way.startswith("sdk"):
            found.add("sdk")
        if self.way.endswith("-tls") or self.way == "wss":
            found.add("wss")
        return frozenset(found)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    tokens: int
    levels: tuple[int, ...]
    most: int
    firsts: int
    floods: float
    few: int
    many: int


FULL: Final = Scale(tokens=120, levels=(1, 16, 64), most=256, firsts=30, floods=1.0, few=8, many=1008)
QUICK: Final = Scale(tokens=30, levels=(1, 4), most=8, firsts=5, floods=0.05, few=2, many=22)

_LATENCY: Final[dict[str, tuple[int, ...]]] = {
    "direct": (1, 16, 64), "asyncio": (1, 16, 64), "asyncio-quiet": (16, 64), "wire": (1, 16, 64), "blocking": (1, 16),
    "direct-tls": (16, 64), "asyncio-tls": (16, 64),
    "sdk-chat": (1, 16, 64), "sdk-ws": (1, 16, 64), "sdk-chat-aiohttp": (16, 64), "sdk-chat-tls": (16, 64),
    "http-direct": (1, 16, 64), "nginx": (1, 16, 64), "nginx-auto": (16, 64), "portkey": (1, 16, 64),
    "tensorzero": (1, 16, 64), "bifrost": (1, 16, 64), "litellm": (1, 16),
}  # fmt: skip
_SMOKE: Final = ("direct", "asyncio", "asyncio-tls", "http-direct")
_FIRST: Final = (
    "direct", "asyncio", "direct-tls", "asyncio-tls", "sdk-chat", "sdk-ws", "http-direct", "nginx", "portkey",
    "tensorzero", "bifrost", "litellm",
)  # fmt: skip
_MANY: Final = ("wire", "wire-quiet", "wire-tls", "c-relay", "nginx", "portkey", "tensorzero", "bifrost", "litellm")

#: Tokens of a flood and short requests for those that are no gateways: two seconds of CPU, as for the others.
OURS: Final[dict[str, tuple[int, int]]] = {
    "wire": (800_000, 2000), "wire-quiet": (800_000, 2000), "wire-tls": (600_000, 2000), "c-relay": (1_600_000, 4000),
}  # fmt: skip


def cells(scale: Scale) -> Iterator[list[Cell]]:
    """The groups of one repetition."""
    levels = sorted({level for by in _LATENCY.values() for level in by})
    for place, level in enumerate(levels):
        if scale is QUICK and place >= len(scale.levels):
            break
        streams = scale.levels[place]
        yield [
            Cell(f"latency {streams}", way, (("streams", streams), ("tokens", scale.tokens)))
            for way, wanted in _LATENCY.items()
            if level in wanted and (scale is FULL or way in _SMOKE)
        ]
    yield [
        Cell(f"latency {scale.most}", way, (("streams", scale.most), ("tokens", scale.tokens)))
        for way in (("asyncio", "asyncio-tls", "direct") if scale is FULL else ("asyncio",))
    ] + [
        # Slower than the others: at the full one it would still be admitting when the first answers are over.
        Cell(f"latency {scale.most}", "litellm", (("streams", scale.most), ("tokens", 15), ("cadence_us", 200_000)))
    ]
    yield [Cell("first", way, (("requests", scale.firsts),)) for way in _FIRST]
    yield [Cell("flood", way, (("at_once", 16 if scale is FULL else 4),)) for way in _MANY]
    yield [Cell("short", way, (("at_once", 8),)) for way in _MANY]
    ways = ("ws", "wss") if scale is FULL else ("ws",)
    yield [Cell("memory", way, (("few", scale.few), ("many", scale.many))) for way in ways]
