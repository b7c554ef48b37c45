"""What an answer looks like: how soon, how fast, how long, which text. And how a prompt or a URL may steer it."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, le=86_400)]

_SENTENCE: Final = (
    "Momentum fades while the spread stays wide and the order book thins above so the measured answer is to hold "
    "the position keep size small and wait for the next print before acting on a headline that may not last"
)
_STEERING: Final = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


class Behaviour(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one call is answered. Every field may be steered by name, see `steer`.

    Args:
        ttft_s: from the request to the first token.
        cadence_s: from token to token, 0 for a flood (pre-rendered, in large writes).
        jitter: each token is early or late by up to this share of the cadence; never out of order.
        tokens: how many; None: as many as `text` has words, else 60.
        text: the answer, a word a token, repeated until there are `tokens` of them.
        stamp: each token is the sender's CLOCK_MONOTONIC in microseconds and a blank, instead of words.
        usage: say the usage (in `chat` only to who asked for it with `stream_options.include_usage`).
        finish: why the answer stopped, said as it is (chat: finish_reason; messages: stop_reason); None: as it was.
        usage_late_s: pause between the last content and the usage.
        done: `chat` ends with `[DONE]`, `messages` with message_stop.
        obey_limit: stop at the request's `max_output_tokens`, as the real ones do.
        after: tokens before the mishap of a scenario; None: half of them (close codes: 0).
        late_s: what `late` and `slow_first` add to `ttft_s`.
        keepalive_s: between the pings and metadata frames of a `stall`.
        retry_after_s: said in 429 and 503, in the handshake and in error frames; None: not said.
        rate_limit_requests, rate_limit_tokens, rate_remaining_requests, rate_remaining_tokens, rate_reset_s: what the
            head of an answer over HTTP says may still be asked; of a 429 nothing remains until `retry_after_s`.
        shape: of errors, the five seen in the wild; None: as the dialect's own service sends them.
        envelope: how `chat` sends a chunk: bare, as `{id, data}`, or with a `data: ` prefix.
        size_bytes: of what a giant frame, endless fragments or a zstd bomb come to before the relay gives up.
        link_latency_s, link_jitter_s, link_bytes_per_s, link_slow_close_s, link_after_bytes, link_slice_bytes: of the
            ``toxic_...`` scenarios, see `toxics`.
        id: the name under which `Counters.attempts` counts this call; None: the head of its prompt.
    """

    ttft_s: Seconds = 0.02
    cadence_s: Seconds = 1 / 60
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.0
    tokens: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    text: str | None = None
    stamp: bool = False
    usage: bool = True
    finish: str | None = None
    usage_late_s: Seconds = 0.0
    done: bool = True
    obey_limit: bool = True
    after: Annotated[int, Meta(ge=0)] | None = None
    late_s: Seconds = 3.0
    keepalive_s: Annotated[float, Meta(gt=0, le=3600)] = 0.1
    retry_after_s: Annotated[float, Meta(ge=0, le=86_400)] | None = 2.0
    rate_limit_requests: Annotated[int, Meta(ge=0)] = 10_000
    rate_limit_tokens: Annotated[int, Meta(ge=0)] = 2_000_000
    rate_remaining_requests: Annotated[int, Meta(ge=0)] | None = None
    rate_remaining_tokens: Annotated[int, Meta(ge=0)] | None = None
    rate_reset_s: Seconds = 0.006
    shape: Literal["nested", "headers_top", "flat", "no_status", "no_type"] | None = None
    envelope: Literal["bare", "wrapped", "sse"] = "bare"
    size_bytes: Annotated[int, Meta(ge=1, le=1 << 32)] = 64 << 20
    link_latency_s: Seconds = 0.05
    link_jitter_s: Seconds = 0.05
    link_bytes_per_s: Annotated[float, Meta(ge=1)] = 20_000
    link_slow_close_s: Seconds = 1.0
    link_after_bytes: Annotated[int, Meta(ge=0)] = 8000
    link_slice_bytes: Annotated[int, Meta(ge=1)] = 16
    id: str | None = None

    @property
    def count(self) -> int:
        """How many tokens a whole answer has."""
        if self.tokens is not None:
            return self.tokens
        return len(self.text.split()) if self.text is not None else 60


FIELDS: Final = frozenset(Behaviour.__struct_fields__)


def steer(base: Behaviour, given: Mapping[str, Any]) -> Behaviour:
    """`base` with the fields in `given` laid over it; seconds may be given in milliseconds (`ttft_ms`).

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    if not given:
        return base
    fields = {name: getattr(base, name) for name in Behaviour.__struct_fields__}
    for name, value in given.items():
        if name.endswith("_ms") and name[:-3] + "_s" in FIELDS:
            try:
                fields[name[:-3] + "_s"] = float(value) / 1000
            except (TypeError, ValueError):
                raise ValueError(f"{name}={value!r} is not a number") from None
        elif name in FIELDS:
            fields[name] = value
        else:
            raise ValueError(f"no behaviour is named {name!r}; one of {', '.join(sorted(FIELDS))}")
    try:
        return msgspec.convert(fields, Behaviour, strict=False)
    except msgspec.ValidationError as problem:
        raise ValueError(str(problem)) from None


def known(given: Mapping[str, str]) -> dict[str, str]:
    """Those of `given` that `steer` understands: a URL's query may hold other things."""
    return {name: value for name, value in given.items() if name in FIELDS or name.removesuffix("_ms") + "_s" in FIELDS}


def steering_of(prompt: str) -> tuple[str | None, dict[str, str]]:
    """What a prompt asks of the relay: ``[[scenario=cut after=3 text="BUY now"]]``. Only for rehearsals.

    Returns:
        the scenario or None, and what to `steer`; of several, the later word counts.

    Raises:
        ValueError: something between the brackets is not ``name=value``.
    """
    given: dict[str, str] = {}
    if "[[" in prompt:
        for inside in _STEERING.findall(prompt):
            for word in shlex.split(inside):
                name, equals, value = word.partition("=")
                if not equals:
                    raise ValueError(f"[[{inside}]]: {word!r} is not name=value")
                given[name] = value
    return given.pop("scenario", None), given


def words(behaviour: Behaviour, dice: random.Random) -> tuple[str, ...]:
    """The cycle of token texts, the first of which has no blank before it: token i is ``words[i % len(words)]``.

    Without `text` a stock sentence is begun at a word that the dice choose.
    """
    if behaviour.text is not None:
        return tuple(behaviour.text.split()) or ("",)
    sentence = _SENTENCE.split()
    start = 5 * dice.randrange(len(sentence) // 5)
    return tuple(sentence[start:] + sentence[:start])


def piece(cycle: tuple[str, ...], index: int) -> str:
    """The text of token `index`."""
    word = cycle[index % len(cycle)]
    return word if index == 0 else " " + word
