"""What one bot saw: kept raw while calls run, counted afterwards, merged over bots."""

from __future__ import annotations

from collections import Counter
from typing import Final

from msgspec import Struct, structs

from sidecar.bench.histogram import Histogram
from sidecar.wire import Accepted, Done, Terminal

#: Pieces held raw until they are counted. Counting while calls run would be felt by them; holding all of a long run
#: would fill the memory.
HELD_MOST: Final = 400_000

#: histogram -> what it measures, all in microseconds.
MEASURES: Final = {
    "first_us": "first text, from the scheduled instant",
    "token_us": "one token, upstream's send to bot",
    "gap_us": "between two deliveries of a call",
    "total_us": "done, from the scheduled instant",
    "failed_us": "failed, from the scheduled instant",
    "late_us": "deadline_exceeded, past its deadline",
    "start_us": "the generator, behind its schedule",
    "queued_us": "daemon: waiting for a place",
    "daemon_first_us": "daemon: receipt to first text",
    "daemon_total_us": "daemon: receipt to terminal",
    "overhead_us": "daemon: spent in it",
}


class Counted(Struct, kw_only=True, forbid_unknown_fields=True):
    """Counts of one bot, or of several together.

    Latencies are of the calls that were scheduled in the measured window; `tokens`, `messages` and `ended` are what
    came in the window, of whichever calls.

    Args:
        scheduled, started, unfinished: calls of the measured window; `unfinished` had no terminal.
        fused: calls (warm-up too) that were not begun because `max_open` were open.
        warm_up: calls begun before the window.
        tokens, messages, ended: in the window: model tokens, wire messages (accepted, deltas, terminals), terminals.
        terminals: how the calls of the window ended: ``done stop``, ``failed overloaded`` ...
        attempts: number of attempts -> calls.
        backup_used: calls answered by an attempt started beside a silent one.
        early: `deadline_exceeded` that came before the deadline it names.
        unlike: tokens that were no stamps, though stamps were asked for.
        histograms: name -> encoded.
    """

    scheduled: int = 0
    started: int = 0
    unfinished: int = 0
    fused: int = 0
    warm_up: int = 0
    tokens: int = 0
    messages: int = 0
    ended: int = 0
    terminals: dict[str, int] = {}
    attempts: dict[str, int] = {}
    backup_used: int = 0
    early: int = 0
    unlike: int = 0
    histograms: dict[str, str] = {}


class Held:
    """One call: instants in microseconds of CLOCK_MONOTONIC. The bot appends to `times` and `pieces`."""

    __slots__ = ("due", "ended", "pieces", "promised", "sent", "terminal", "times")

    def __init__(self, due: int, sent: int) -> None:
        self.due, self.sent = due, sent
        self.times: list[int] = []
        self.pieces: list[str] = []
        self.promised: Accepted | None = None
        self.terminal: Terminal | None = None
        self.ended = 0


class Recorder:
    """Keeps what a bot saw, and counts it when told, or when it becomes too much.

    Args:
        begins_us, ends_us: the measured window.
        stamps: each token is the instant of its sending and a blank.
    """

    def __init__(self, begins_us: int, ends_us: int, *, stamps: bool) -> None:
        self.begins_us, self.ends_us, self.stamps = begins_us, ends_us, stamps
        self.counted = Counted()
        self.open = 0
        self._held: list[Held] = []
        self._pieces = 0
        self._histograms = {name: Histogram() for name in MEASURES}

    def begin(self, due: int, sent: int) -> Held:
        """A call that was due and is being sent."""
        self.open += 1
        return Held(due, sent)

    def fuse(self, due: int) -> None:
        """A call that was due and is not begun: too many are open."""
        self.counted.fused += 1
        self.counted.scheduled += due >= self.begins_us

    def end(self, held: Held, terminal: Terminal | None, promised: Accepted | None, now: int) -> None:
        """Its terminal came; None: it was waited for in vain."""
        self.open -= 1
        held.terminal, held.promised, held.ended = terminal, promised, now
        self._held.append(held)
        self._pieces += len(held.times) + 1
        if self._pieces > HELD_MOST:
            self.count()

    def count(self) -> None:
        """Count what is held."""
        held, self._held, self._pieces = self._held, [], 0
        for call in held:
            self._window(call)
            if call.due >= self.begins_us:
                self._call(call)
            else:
                self.counted.warm_up += 1

    def take(self, other: Recorder) -> None:
        """What another recorder of the same window saw; calls still open in it have no terminal."""
        other.count()
        theirs = other.counted
        theirs.scheduled += other.open
        theirs.started += other.open
        theirs.unfinished += other.open
        self.count()
        self.counted = merged([self.counted, theirs])
        for name, histogram in other._histograms.items():
            self._histograms[name].add(histogram)

    def result(self) -> Counted:
        """Everything, counted; the recorder is at its end."""
        self.count()
        return structs.replace(
            self.counted, histograms={name: one.encode() for name, one in self._histograms.items() if one.n}
        )

    def _window(self, call: Held) -> None:
        """What came in the window, whenever the call began."""
        begins, ends, counted = self.begins_us, self.ends_us, self.counted
        within = sum(begins <= at < ends for at in call.times)
        counted.messages += within
        if self.stamps:
            counted.tokens += sum(
                piece.count(" ") for at, piece in zip(call.times, call.pieces, strict=True) if begins <= at < ends
            )
        if begins <= call.ended < ends and call.terminal is not None:
            counted.ended += 1
            counted.messages += 1
            if not self.stamps and call.terminal.usage is not None:
                counted.tokens += call.terminal.usage.output_tokens
        if call.promised is not None and begins <= call.sent < ends:
            counted.messages += 1

    def _call(self, call: Held) -> None:
        counted, histograms, terminal = self.counted, self._histograms, call.terminal
        counted.scheduled += 1
        counted.started += 1
        histograms["start_us"].record(call.sent - call.due)
        if call.times:
            histograms["first_us"].record(call.times[0] - call.due)
            if self.stamps:
                self._tokens(call)
            gaps = histograms["gap_us"]
            for before, after in zip(call.times, call.times[1:], strict=False):
                gaps.record(after - before)
        if terminal is None:
            counted.unfinished += 1
            return
        # Apart: a refusal is quick, and would flatter the answers.
        if isinstance(terminal, Done):
            name = f"done {terminal.finish}"
            histograms["total_us"].record(call.ended - call.due)
        else:
            name = f"failed {terminal.code}"
            histograms["failed_us"].record(call.ended - call.due)
        counted.terminals[name] = counted.terminals.get(name, 0) + 1
        tries = str(terminal.attempts)
        counted.attempts[tries] = counted.attempts.get(tries, 0) + 1
        counted.backup_used += terminal.backup_used
        if name == "failed deadline_exceeded" and call.promised is not None:
            late = call.ended - call.promised.deadline_mono_us
            counted.early += late < 0
            histograms["late_us"].record(late)
        if isinstance(terminal, Done):
            timing = terminal.timing
            histograms["queued_us"].record(timing.queued_us)
            histograms["daemon_total_us"].record(timing.total_us)
            if timing.first_delta_us is not None:
                histograms["daemon_first_us"].record(timing.first_delta_us)
            if timing.overhead_us is not None:
                histograms["overhead_us"].record(timing.overhead_us)

    def _tokens(self, call: Held) -> None:
        record = self._histograms["token_us"].record
        for at, piece in zip(call.times, call.pieces, strict=True):
            for stamp in piece.split():
                if stamp.isascii() and stamp.isdecimal() and len(stamp) < 17:
                    record(at - int(stamp))
                else:
                    self.counted.unlike += 1


def merged(parts: list[Counted]) -> Counted:
    """Several bots as one."""
    whole = Counted()
    terminals: Counter[str] = Counter()
    attempts: Counter[str] = Counter()
    for name in ("scheduled", "started", "unfinished", "fused", "warm_up", "tokens", "messages", "ended", "backup_used",
                 "early", "unlike"):  # fmt: skip
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    for part in parts:
        terminals.update(part.terminals)
        attempts.update(part.attempts)
    whole.terminals, whole.attempts = dict(terminals), dict(attempts)
    histograms: dict[str, Histogram] = {}
    for part in parts:
        for name, text in part.histograms.items():
            histograms.setdefault(name, Histogram()).add(Histogram.decode(text))
    whole.histograms = {name: one.encode() for name, one in histograms.items()}
    return whole
