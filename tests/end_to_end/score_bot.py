"""A bot for the scorecard: sends calls whose answers it knows word for word, and judges what comes by the wire's rules.

Every call asks the simulator for words of its own, so that a hole, a truncation, a mixture of two attempts or a word of
another call's answer cannot pass for an answer.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import zmq

#: A terminal may be heard so much later than the deadline, seconds: two cores that several rows share. `--quick`, which
#: also runs where nobody knows what else runs, multiplies all such times: see `Stage.slack`.
LATE_S = 0.25
#: The two inner clocks of a call in whose row they have no part: a simulator may have to wait for a core.
PATIENT_MS = 2500
TERMINALS = ("done", "failed")
_numbers = itertools.count(1)


@dataclass
class Told:
    """One call, and all that the bot was told of it. Instants are this process's monotonic clock, seconds."""

    id: str
    words: int
    timeout_s: float
    stream: bool
    sent_at: float
    text: str = ""
    deltas: int = 0
    restarts: int = 0
    terminal: dict[str, Any] | None = None
    ended_at: float = 0.0
    first_delta_at: float | None = None
    broken: list[str] = field(default_factory=list)
    #: of a failure: words of nobody's may have come
    foreign: bool = False

    @property
    def expected(self) -> str:
        """The whole answer."""
        return " ".join(f"{self.id}.{number}" for number in range(self.words))

    @property
    def outcome(self) -> str:
        """`done`, or the code of the failure; `nothing` while there is no terminal."""
        if self.terminal is None:
            return "nothing"
        return str(self.terminal["type"] if self.terminal["type"] == "done" else self.terminal["code"])

    @property
    def upstream(self) -> str:
        """Which upstream answered, or failed last; `-` for none."""
        return str((self.terminal or {}).get("upstream") or "-")

    @property
    def attempts(self) -> int:
        """As the terminal says."""
        return int((self.terminal or {}).get("attempts") or 0)

    @property
    def partial(self) -> bool:
        """A failure after deltas were forwarded."""
        return bool((self.terminal or {}).get("partial"))

    @property
    def seconds(self) -> float:
        """From the sending to the terminal."""
        return self.ended_at - self.sent_at

    def hear(self, message: dict[str, Any], now: float) -> None:
        """One message of this call."""
        kind = message["type"]
        if self.terminal is not None:
            self.broken.append(f"{kind} after the terminal")
        elif kind == "delta":
            if message["seq"] != self.deltas:
                self.broken.append(f"delta {message['seq']} in place of {self.deltas}")
            if not message["text"]:
                self.broken.append("an empty delta")
            self.first_delta_at = self.first_delta_at or now
            self.deltas += 1
            self.text += message["text"]
        elif kind == "restarted":
            self.restarts += 1
            self.text, self.deltas = "", 0
        elif kind in TERMINALS:
            self.terminal, self.ended_at = message, now

    def problems(self, slack: float = 1.0) -> list[str]:
        """What breaks the wire's promises, in a few words each. The text of a `done` is checked whole."""
        said, found = self.terminal, list(self.broken)
        if said is None:
            return [*found, "no terminal"]
        if self.seconds > self.timeout_s + LATE_S * slack:
            found.append(f"the terminal came {self.seconds - self.timeout_s:.2f} s after the deadline")
        whole = said.get("text") if not self.stream else self.text
        if said["type"] == "done":
            if said["finish"] == "stop" and whole != self.expected:
                found.append(f"done with another text: {whole!r:.120} for {self.expected!r:.60}")
            if said["finish"] == "length" and not self.expected.startswith(whole or ""):
                found.append(f"done (length) with another text: {whole!r:.120}")
            if self.stream and said["deltas"] != self.deltas:
                found.append(f"done says {said['deltas']} deltas, {self.deltas} came")
        else:
            if said["code"] == "internal":
                found.append(f"internal: {said['message']}")
            if said["code"] == "deadline_exceeded" and self.seconds < self.timeout_s - 0.002:
                found.append("deadline_exceeded before the deadline")
            if not self.foreign and not self.expected.startswith(whole or ""):
                found.append(f"a text that is no beginning of the answer: {whole!r:.120}")
            if self.stream and "call_id" in said and bool(said.get("partial")) != bool(self.deltas):
                found.append(f"partial is {said.get('partial')} after {self.deltas} deltas")
            if not isinstance(said["retryable"], bool):
                found.append("retryable is not a bool")
        return found

    def line(self) -> str:
        """What the bot was told, in a few words."""
        said = self.terminal or {}
        words = [self.outcome if self.outcome != "done" else f"done {said['finish']}"]
        if self.outcome != "done" and said.get("upstream_status"):
            words.append(f"status {said['upstream_status']}")
        if self.partial:
            words.append(f"partial, {self.deltas} deltas")
        if said.get("retry_after_ms") is not None:
            words.append(f"retry_after {said['retry_after_ms']} ms")
        if self.restarts:
            words.append(f"{self.restarts} restart")
        return f"{', '.join(words)} by {self.upstream} in {self.seconds:.2f} s"


def unanswered(calls: Iterable[Told], since: float) -> str:
    """How many did not end done, and the first few in full: when they were sent after `since`, and what was said."""
    lost = [call for call in calls if call.outcome != "done"]
    said = [
        f"{call.id} sent at {call.sent_at - since:.2f} s: {call.line()}, phase {(call.terminal or {}).get('phase')}, "
        f"{call.attempts} attempts: {str((call.terminal or {}).get('message'))[:80]}"
        for call in lost[:3]
    ]
    return f"{len(lost)} calls were not answered: {'; '.join(said)}"


class Trader:
    """A DEALER with any number of calls open. For one thread."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)
        self._open: dict[str, Told] = {}
        self.all: list[Told] = []
        self._pongs: set[str] = set()

    def __enter__(self) -> Trader:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def send(self, route: str, *, words: int = 12, timeout_s: float = 3.0, steering: str = "", **fields: Any) -> Told:
        """Hand a call over; `steering` is added to what the prompt asks of the simulator."""
        name = f"c{next(_numbers)}"
        told = Told(name, words, timeout_s, fields.get("stream", True), time.monotonic())
        prompt = f'BUY or SELL? [[id={name} text="{told.expected}" {steering}]]'
        call = {"type": "call", "id": name, "route": route, "input": prompt, "timeout_ms": 1000 * timeout_s}
        call |= {"first_delta_timeout_ms": PATIENT_MS, "idle_timeout_ms": PATIENT_MS, **fields}
        self._socket.send(json.dumps(call).encode())
        self._open[name] = told
        self.all.append(told)
        return told

    def cancel(self, told: Told) -> None:
        """End a call."""
        self._socket.send(json.dumps({"type": "cancel", "id": told.id}).encode())

    def listen(self, seconds: float) -> None:
        """Take what there is, and wait for something at most so long."""
        if not self._socket.poll(max(0, int(1000 * seconds))):
            return
        while True:
            try:
                message = json.loads(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            now = time.monotonic()
            if message["type"] == "pong":
                self._pongs.add(message["nonce"])
            elif (told := self._open.get(message.get("id"))) is not None:
                told.hear(message, now)

    def until(self, condition: Callable[[], bool], patience: float) -> bool:
        """Listen until `condition`; False when it did not come."""
        end = time.monotonic() + patience
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            self.listen(min(left, 0.05))
        return True

    def gather(self, *calls: Told) -> None:
        """Wait for the terminals of these calls (default: of all), or a second longer than their deadlines."""
        chosen = calls or tuple(self.all)
        if not chosen:
            return
        end = max(told.sent_at + told.timeout_s for told in chosen) + 1.0
        self.until(lambda: all(told.terminal is not None for told in chosen), end - time.monotonic())

    def during(self, act: Callable[[], None], patience: float = 30.0) -> None:
        """Do `act`, which takes its time, and listen meanwhile."""
        with ThreadPoolExecutor(1) as aside:
            doing = aside.submit(act)
            self.until(doing.done, patience)
            doing.result()

    def ask(self, route: str, **fields: Any) -> Told:
        """One call to its end."""
        told = self.send(route, **fields)
        self.gather(told)
        return told

    def steady(self, route: str, seconds: float, every: float, **fields: Any) -> list[Told]:
        """A call each `every` seconds, whatever becomes of the others; returns when all have ended."""
        began, sent = time.monotonic(), []
        while (now := time.monotonic()) < began + seconds:
            due = began + len(sent) * every
            if now >= due:
                sent.append(self.send(route, **fields))
            else:
                self.listen(due - now)
        self.gather(*sent)
        return sent

    def ping(self, patience: float = 3.0) -> float:
        """A round trip, seconds; what the daemon had said before is heard by then."""
        nonce = f"p{next(_numbers)}"
        began = time.monotonic()
        self._socket.send(json.dumps({"type": "ping", "nonce": nonce}).encode())
        self.until(lambda: nonce in self._pongs, patience)
        return time.monotonic() - began


def summary(calls: Iterable[Told]) -> str:
    """Outcomes and who answered, counted."""
    counted: dict[str, int] = {}
    for told in calls:
        key = f"{told.outcome}{' partial' if told.partial else ''} by {told.upstream}"
        counted[key] = counted.get(key, 0) + 1
    return ", ".join(f"{number} {key}" for key, number in sorted(counted.items(), key=lambda item: -item[1]))
