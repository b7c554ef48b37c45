"""Times to first delta of one target: what is usual, what is late, and what the target costs compared to others.

Quantiles are of the last `SAMPLES` at most, none older than the window; the median is of the last `RECENT` of these, so
that a target that has become slower or quicker as a whole is soon known for it. An attempt that was stopped while
silent is in them with the time it was given: it took longer, so it stands where it belongs as long as the quantile
asked for lies below, and the slow are not forgotten because nobody waited for them.

Sources: Finagle's PeakEwma (up at once, down with time), Linkerd (a refusal scored as 5 s of latency, or else the
fastest rejecter looks best), The Tail at Scale (a backup request after the 95th percentile).
"""

from __future__ import annotations

import math
from collections import deque
from itertools import islice
from typing import Final

from msgspec import Struct

#: Samples kept, and how many of them make the median.
SAMPLES: Final = 256
RECENT: Final = 32
#: Samples that a quantile needs; as many answers `usual` needs.
FEW: Final = 8
#: Samples that `backup_after` needs.
ENOUGH: Final = 20
#: A backup is not later than so many medians: a slow mode of just the quantile's share would hide itself.
MEDIANS: Final = 3.0
#: The quantiles are looked up anew after so many samples, or so many seconds.
STALE_SAMPLES: Final = 16
STALE_AFTER: Final = 0.5
#: Weight of the newest end of an attempt in the share of failures, and the share with which nobody keeps up: three in a
#: row, a second apart.
WEIGHT: Final = 0.1
FAILING: Final = 0.2


class FirstDeltaStatistics(Struct, frozen=True, kw_only=True):
    """A snapshot; seconds, None while unknown. `samples` is of the window, the counts since the start."""

    samples: int
    median: float | None
    p95: float | None
    cost: float
    answered: int
    stopped: int
    failed: int


class FirstDeltaTimes:
    """What is known of one target's time to first delta. Constant memory; `observe` is constant in time.

    Args:
        decay: seconds, the time constant with which peak and failures fade.
        penalty: seconds that a target which always fails costs.
        window: seconds that a sample is believed.
    """

    __slots__ = (
        "_answered", "_answers_at", "_at", "_decay", "_failed", "_failing", "_failing_at", "_fresh", "_looked_at",
        "_median", "_ordered", "_peak", "_peak_at", "_penalty", "_seconds", "_stopped", "_window",
    )  # fmt: skip

    def __init__(self, *, decay: float = 5.0, penalty: float = 5.0, window: float = 60.0) -> None:
        if decay <= 0 or penalty < 0 or window <= 0:
            raise ValueError("decay and window are above 0, penalty is at least 0")
        self._decay, self._penalty, self._window = decay, penalty, window
        self._seconds: deque[float] = deque(maxlen=SAMPLES)
        self._at: deque[float] = deque(maxlen=SAMPLES)
        self._answers_at: deque[float] = deque(maxlen=FEW)  # of the last few
        self._ordered: list[float] = []
        self._median = 0.0
        self._fresh = 0  # samples since these two were made
        self._looked_at = -math.inf
        self._peak = 0.0
        self._peak_at = -math.inf
        self._failing = 0.0
        self._failing_at = -math.inf
        self._answered = self._stopped = self._failed = 0

    def observe(self, seconds: float, now: float) -> None:
        """An attempt's first delta came after so long."""
        self._answered += 1
        self._fresh += 1
        self._seconds.append(seconds)
        self._at.append(now)
        self._answers_at.append(now)
        peak = self._peak
        if seconds < peak:
            kept = math.exp(min(0.0, self._peak_at - now) / self._decay)
            seconds += kept * (peak - seconds)
        self._peak, self._peak_at = seconds, now
        if self._failing:
            self._failing = (1 - WEIGHT) * self._share(now)
            self._failing_at = now

    def observe_at_least(self, seconds: float, now: float) -> None:
        """An attempt was stopped while silent: its first delta would have taken longer than this.

        Stopped before what is usual had passed it says nothing: a bot in a hurry makes no target look quick.
        """
        self._stopped += 1
        self._look(now)
        if seconds < self._median:
            return
        self._fresh += 1
        self._seconds.append(seconds)
        self._at.append(now)
        if seconds > self._faded_peak(now):  # less than expected says nothing
            self._peak, self._peak_at = seconds, now

    def failed(self, now: float) -> None:
        """An attempt failed, or was told to be patient, without a first delta."""
        self._failed += 1
        share = self._share(now)
        self._failing = share + WEIGHT * (1 - share)
        self._failing_at = now

    def usual(self, now: float) -> float | None:
        """The median of the recent, in seconds; None while fewer than `FEW` answers of the window are known."""
        answers = self._answers_at
        if len(answers) < FEW or answers[0] < now - self._window:
            return None
        return self._median if len(self._look(now)) >= FEW else None

    def quantile(self, q: float, now: float) -> float | None:
        """By nearest rank, in seconds; None with fewer than `FEW` samples. 0 <= q <= 1."""
        ordered = self._look(now)
        count = len(ordered)
        return ordered[max(0, math.ceil(q * count) - 1)] if count >= FEW else None

    def at_best(self, now: float) -> float:
        """Seconds that hardly any first delta of late came before; 0.0 while unknown.

        Calls differ: what a call cannot make must not be judged by what is usual of others, with longer prompts.
        """
        return (self.quantile(0.05, now) or 0.0) if self.usual(now) is not None else 0.0

    def backup_after(
        self, now: float, *, quantile: float = 0.95, at_least: float = 0.05, at_most: float = 2.0
    ) -> float | None:
        """Seconds of silence after which a backup request is worth its cost; None while too little is known.

        The quantile, but not more than `MEDIANS` medians, between `at_least` and `at_most`.
        """
        median = self.usual(now)
        ordered = self._ordered
        count = len(ordered)
        if median is None or count < ENOUGH:
            return None
        late = min(ordered[max(0, math.ceil(quantile * count) - 1)], MEDIANS * median)
        return min(at_most, max(at_least, late))

    def cost(self, now: float) -> float:
        """Seconds; compares targets. The faded peak, and the penalty by the share of failures; 0.0 while unknown."""
        return self._faded_peak(now) + self._penalty * self._share(now)

    def keeps_up(self, patience: float, now: float) -> bool:
        """Judges a target by itself: what is usual is below `patience` (seconds), and not too many attempts fail.

        One slow answer among many, which `cost` feels at once, does not count: who judged by the peak would leave a
        good target for every outlier. Nor do one or two failures: who left for them would see no more of what is
        answered there, and could not tell an upstream's trouble from one bot's.
        """
        return self._share(now) < FAILING and (self.usual(now) or 0.0) < patience

    def statistics(self, now: float) -> FirstDeltaStatistics:
        """A snapshot."""
        return FirstDeltaStatistics(
            samples=len(self._look(now)),
            median=self.usual(now),
            p95=self.quantile(0.95, now),
            cost=self.cost(now),
            answered=self._answered,
            stopped=self._stopped,
            failed=self._failed,
        )

    def _look(self, now: float) -> list[float]:
        """The samples of the window in order; a little stale, so that a call pays for a sixteenth of a sort."""
        fresh = self._fresh
        if fresh >= STALE_SAMPLES or now >= self._looked_at + STALE_AFTER or (fresh and len(self._ordered) < ENOUGH):
            at, seconds, oldest = self._at, self._seconds, now - self._window
            while at and at[0] < oldest:
                at.popleft()
                seconds.popleft()
            self._ordered = sorted(seconds)
            recent = sorted(islice(seconds, max(0, len(seconds) - RECENT), None))
            self._median = recent[(len(recent) - 1) // 2] if recent else 0.0
            self._fresh = 0
            self._looked_at = now
        return self._ordered

    def _faded_peak(self, now: float) -> float:
        return self._peak * math.exp(min(0.0, self._peak_at - now) / self._decay) if self._peak else 0.0

    def _share(self, now: float) -> float:
        return self._failing * math.exp(min(0.0, self._failing_at - now) / self._decay) if self._failing else 0.0

    def __repr__(self) -> str:
        return (
            f"<FirstDeltaTimes samples={len(self._seconds)} answered={self._answered} stopped={self._stopped} "
            f"failed={self._failed} peak={self._peak:.3f}>"
        )
