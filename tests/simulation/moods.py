"""What an upstream is like for a while: moods, which draw the scripts of its answers."""

from __future__ import annotations

import random
from typing import Final

from msgspec import Struct

from tests.simulation import http2_scripts, http_scripts
from tests.simulation.engine import Process
from tests.simulation.request import Request
from tests.simulation.scripts import (
    Script,
    answers,
    closes,
    cuts,
    drips,
    empty,
    errs,
    expires,
    floods,
    junk,
    moves_on,
    refuses,
    silent,
    slow,
    stalls,
    throttles,
    unauthorized,
    vanishes,
)


class Mood(Struct, frozen=True):
    """Scripts and their weights. `poison`: tags that begin with it meet `errs`, whatever the mood."""

    weights: dict[str, float]
    poison: str = ""

    def draw(self, request: Request, dice: random.Random) -> Process:
        """The script of one request."""
        if self.poison and request.tag.startswith(self.poison):
            return errs(request, dice)
        name = dice.choices(list(self.weights), list(self.weights.values()))[0]
        return REPERTOIRES[request.session.spoken][name](request, dice)


#: What either way knows.
_SHARED: Final[dict[str, Script]] = {
    script.__name__: script
    for script in (
        answers, slow, drips, floods, empty, silent, stalls, errs, throttles, refuses, moves_on, unauthorized, cuts,
        vanishes, junk,
    )
}  # fmt: skip
_ONLY_WEBSOCKETS: Final[dict[str, Script]] = {script.__name__: script for script in (expires, closes)}
#: What is of one way alone is a proper answer on the others.
_ANSWERS: Final[dict[str, Script]] = dict.fromkeys(
    [*_ONLY_WEBSOCKETS, *http_scripts.SCRIPTS, *http2_scripts.SCRIPTS], answers
)
#: By what is spoken.
REPERTOIRES: Final[dict[str, dict[str, Script]]] = {
    "websocket": {**_ANSWERS, **_SHARED, **_ONLY_WEBSOCKETS},
    "http1": {**_ANSWERS, **_SHARED, **http_scripts.SCRIPTS},
    "http2": {**_ANSWERS, **_SHARED, **http_scripts.SCRIPTS, **http2_scripts.SCRIPTS},
}

FINE: Final = Mood(
    {
        "answers": 12,
        "drips": 1,
        "floods": 0.5,
        "empty": 0.3,
        "too_late": 1,
        "leaves": 0.3,
        "leaves_unlooked": 0.5,
        "refuses_stream": 0.5,
    }
)
#: Nothing that could be held against a server, and much that only HTTP/2 has.
RESTLESS: Final = Mood(
    {"ponders": 6, "answers": 3, "leaves": 1, "leaves_unlooked": 3, "refuses_stream": 1, "reset_behind": 1,
     "half_said": 1, "parts": 1, "too_late": 1}
)  # fmt: skip
MOODS: Final[dict[str, Mood]] = {
    "fine": FINE,
    "slow": Mood({"slow": 5, "answers": 1}),
    "lame": Mood({"answers": 19, "slow": 1}),
    "flaky": Mood({"answers": 5, "errs": 2, "cuts": 1, "closes": 1, "slow": 1, "resets": 1}),
    "errors": Mood({"errs": 1}),
    "throttling": Mood({"throttles": 1}),
    "limited": Mood({"throttles": 2, "answers": 1}),
    "silent": Mood({"silent": 1}),
    "stalling": Mood({"stalls": 3, "silent": 1}),
    "cutting": Mood({"cuts": 2, "closes": 2, "expires": 1}),
    "vanishing": Mood({"vanishes": 1, "answers": 1}),
    "picky": Mood({"refuses": 2, "moves_on": 2, "answers": 2}),
    "locked": Mood({"unauthorized": 1, "answers": 2}),
    "mad": Mood({"junk": 1}),
    "zoo": Mood(dict.fromkeys(REPERTOIRES["http2"], 1)),
    "unended": Mood({"unended": 2, "no_last_chunk": 1, "headers_only": 1, "answers": 1}),
    "unstreamed": Mood({"whole": 3, "cut_whole": 1, "page": 1}),
    "garbled": Mood({"garbled": 2, "surplus": 1, "answers": 2}),
    "mumbling": Mood({"mumbles": 2, "slow_head": 1, "refuses_slowly": 2, "answers": 1}),
    "spent": Mood({"spends": 1, "answers": 3}),
    "parting": Mood({"parts": 1, "too_late": 1, "answers": 2}),
    "resetting": Mood({"resets": 2, "reset_behind": 1, "half_said": 1, "answers": 2}),
    "restless": RESTLESS,
    "leaving": Mood({"leaves": 1, "leaves_unlooked": 1, "refuses_stream": 1, "bursts": 1, "slow": 1, "answers": 3}),
}
#: Those that a WebSocket would not notice, and those that HTTP/1.1 would not either.
HTTP_MOODS: Final = ("unended", "unstreamed", "garbled", "mumbling", "spent", "parting")
HTTP2_MOODS: Final = ("resetting", "leaving", "restless")
