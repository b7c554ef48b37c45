"""What is asked for: the shape of the load, its limits, the presets. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

ClientKind: TypeAlias = Literal["async", "blocking", "wire"]

#: Threads of one bot: each open call of a blocking bot has one.
MOST_THREADS: Final = 512


class Load(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a load. Two results are comparable when all of this but the seed is the same.

    Args:
        rate: calls begun per second, by all bots together.
        arrivals: how their instants are spread: a Poisson process, or evenly.
        for_s: how long calls are begun and measured.
        warm_up_s: the same before it, not measured.
        clients: bot processes, each with an equal share of the rate.
        client: what a bot is made of: `AsyncClient`, threads with a `Client` each, or a bare DEALER.
        stream: False: the text comes in the terminal.
        tokens: of an answer; for an upstream that is not ours, its `max_output_tokens` (None: the route's).
        cadence_ms: from token to token, of the simulator; 0: a flood.
        jitter: share of the cadence by which tokens are early or late.
        ttft_ms: of the simulator.
        prompt_bytes: of each prompt.
        timeout_ms: of each call.
        stamps: each token carries the instant of its sending.
        max_open: calls open at once, of all bots together; more are not begun, but counted.
        seed: of the arrivals and of the simulator.
    """

    rate: Annotated[float, Meta(gt=0, le=100_000)]
    arrivals: Literal["poisson", "constant"] = "poisson"
    for_s: Annotated[float, Meta(gt=0, le=86_400)] = 10.0
    warm_up_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0
    clients: Annotated[int, Meta(ge=1, le=64)] = 1
    client: ClientKind = "async"
    stream: bool = True
    tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = 60
    cadence_ms: Annotated[float, Meta(ge=0, le=60_000)] = 16.667
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.3
    ttft_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 0.0
    prompt_bytes: Annotated[int, Meta(ge=1, le=1_000_000)] = 200
    timeout_ms: Annotated[float, Meta(gt=0, le=86_400_000)] = 10_000.0
    stamps: bool = True
    max_open: Annotated[int, Meta(ge=1, le=100_000)] = 4096
    seed: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 1

    @property
    def answer_s(self) -> float:
        """How long the simulator takes for one answer."""
        return (self.ttft_ms + max(0, (self.tokens or 1) - 1) * self.cadence_ms) / 1000

    @property
    def open_calls(self) -> int:
        """How many calls are open at once, at most, as far as chance goes: Little's law and four deviations."""
        mean = self.rate * min(self.answer_s + 0.02, self.timeout_ms / 1000)
        return min(self.max_open, math.ceil(mean + 4 * math.sqrt(mean)) + 4)

    @property
    def calls(self) -> int:
        """How many calls are to be expected in one repetition, warm-up included."""
        return math.ceil(self.rate * (self.for_s + self.warm_up_s))


#: profile -> (a line for people, fields). `streams` stands for the rate at which so many are open on average.
PROFILES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "stream": ("answers of 60 tokens at 60 tokens a second, 16 open on average", {"streams": 16.0}),
    "classify": (
        "prompts of 1 kB, answers of two tokens, not streamed, 200 a second",
        {"rate": 200.0, "stream": False, "tokens": 2, "cadence_ms": 0.0, "jitter": 0.0, "stamps": False,
         "prompt_bytes": 1000, "timeout_ms": 2000.0},
    ),
    "flood": (
        "answers of 4,000 tokens as fast as the simulator writes, 25 a second",
        {"rate": 25.0, "tokens": 4000, "cadence_ms": 0.0, "jitter": 0.0, "stamps": False},
    ),
}  # fmt: skip


def make(profile: str, given: dict[str, Any]) -> Load:
    """The load of a profile with `given` laid over it; `streams` gives the rate unless `rate` is given.

    Raises:
        ValueError: a value does not fit; the message names it and says what does.
    """
    fields = {**PROFILES[profile][1], **given}
    if "streams" in given and "rate" in given:
        raise ValueError("--rate and --streams say the same thing: give one of them")
    if "rate" in given:
        fields.pop("streams", None)
    elif "streams" in given:
        fields.pop("rate", None)
    streams = fields.pop("streams", None)
    if streams is None:
        return _checked(fields)
    shape = _checked({**fields, "rate": 1.0})
    if not shape.answer_s:
        raise ValueError("--streams needs answers that take time (--cadence-ms, --tokens, --ttft-ms): give --rate")
    if not 0 < streams <= 100_000:
        raise ValueError("--streams: expected more than 0 and at most 100,000")
    return _checked({**fields, "rate": round(streams / shape.answer_s, 6)})


def _checked(fields: dict[str, Any]) -> Load:
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')}: {value} is not a number")
    try:
        load = msgspec.convert(fields, Load)
    except msgspec.ValidationError as problem:
        said, _, path = str(problem).partition(" - at `$.")
        said = said.replace("`float`", "a number").replace("`int`", "a whole number").replace("Expected", "expected")
        flag = path.rstrip("`").replace("_", "-")
        raise ValueError(f"--{flag} {fields.get(path.rstrip('`'))!r}: {said}") from None
    if load.client == "blocking" and load.max_open > MOST_THREADS * load.clients:
        load = msgspec.structs.replace(load, max_open=MOST_THREADS * load.clients)
    if load.rate * load.for_s < 1:
        raise ValueError(f"--rate {load.rate:g} for {load.for_s:g} s begins no call: raise --rate or --for-s")
    if load.calls > 50_000_000:
        raise ValueError(f"{load.calls:,} calls are more than one run can keep: lower --rate or --for-s")
    if load.max_open < load.clients:
        raise ValueError("--max-open: every client needs one at least")
    return load


def prompt_of(load: Load) -> str:
    """A prompt of as many bytes."""
    return ("EURUSD headline: ECB holds rates. BUY, SELL or HOLD? " * (load.prompt_bytes // 50 + 1))[
        : load.prompt_bytes
    ]
