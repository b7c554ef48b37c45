"""What is counted of the calls that a bot saw: the window, the stamps, the ends."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.bench import recorder as module
from sidecar.bench.histogram import Histogram
from sidecar.bench.recorder import Counted, Recorder, merged
from sidecar.wire import Accepted, Done, Failed, Timing, Usage

BEGINS, ENDS = 1_000_000, 2_000_000


def done(tokens: int = 3) -> Done:
    """An answer."""
    return Done(
        id="1", call_id="c", finish="stop", deltas=2, usage=Usage(output_tokens=tokens), route="default", upstream="u",
        model="m", attempts=1, timing=Timing(queued_us=5, first_delta_us=100, total_us=900, overhead_us=50), wall_us=1,
    )  # fmt: skip


def failed(code: str) -> Failed:
    """A failure, on which the daemon spent nothing."""
    return Failed(id="1", code=code, message="", retryable=False, attempts=2, timing=Timing())


def accepted(deadline: int) -> Accepted:
    """The daemon's word."""
    return Accepted(id="1", call_id="c", session="s", recv_mono_us=0, deadline_mono_us=deadline, route="default")


def call(recorder: Recorder, due: int, *, late: int = 10, pieces: list[tuple[int, str]] | None = None) -> None:
    """One that was due at `due`, with (arrival, text) pieces, and ended 1 ms after the last of them."""
    held = recorder.begin(due, due + late)
    for at, text in pieces or []:
        held.times.append(at)
        held.pieces.append(text)
    recorder.end(held, done(), accepted(due + 10_000), (held.times[-1] if held.times else due) + 1000)


def of(counted: Counted, name: str) -> Histogram:
    """One of its histograms."""
    return Histogram.decode(counted.histograms[name])


def test_latency_counts_from_the_scheduled_instant_not_from_the_sending() -> None:
    """A call sent 50 ms late has these 50 ms in its first text and its end: no coordinated omission."""
    recorder = Recorder(BEGINS, ENDS, stamps=False)
    call(recorder, 1_100_000, late=50_000, pieces=[(1_150_300, "x")])
    counted = recorder.result()
    assert of(counted, "first_us").max == pytest.approx(50_300, rel=0.001)
    assert of(counted, "total_us").max == pytest.approx(51_300, rel=0.001)
    assert of(counted, "start_us").max == pytest.approx(50_000, rel=0.001)


def test_each_stamp_is_one_token_and_its_one_way_time() -> None:
    """Two stamps in one piece are two tokens that arrived at one instant."""
    recorder = Recorder(BEGINS, ENDS, stamps=True)
    call(recorder, 1_100_000, pieces=[(1_100_500, "1100400 1100450 "), (1_101_000, "1100700 ")])
    counted = recorder.result()
    token = of(counted, "token_us")
    assert (counted.tokens, token.n, token.min, token.max, counted.unlike) == (3, 3, 50, 300, 0)
    assert of(counted, "gap_us").max == 500


@pytest.mark.parametrize("word", ["BUY", "-5", "1.5", "²", "1" * 40, "١"])
def test_a_token_that_is_no_stamp_is_counted_as_such(word: str) -> None:
    """Words of a real model, digits of another script, numbers without end: never a crash, never a latency."""
    recorder = Recorder(BEGINS, ENDS, stamps=True)
    call(recorder, 1_100_000, pieces=[(1_100_500, f"{word} ")])
    counted = recorder.result()
    assert counted.unlike == 1
    assert "token_us" not in counted.histograms


def test_the_warm_up_is_not_measured_but_what_comes_in_the_window_is_counted() -> None:
    """A call begun in the warm-up gives the window its tokens, and no latency."""
    recorder = Recorder(BEGINS, ENDS, stamps=True)
    call(recorder, 900_000, pieces=[(950_000, "949000 "), (1_050_000, "1049000 ")])
    counted = recorder.result()
    assert (counted.started, counted.warm_up, counted.tokens, counted.ended) == (0, 1, 1, 1)
    assert counted.histograms == {}
    assert counted.messages == 2  # one delta and the terminal came in the window; `accepted` came before it


def test_a_call_that_ends_after_the_window_is_measured_in_full() -> None:
    """Leaving the slow ones out would flatter; only the counts per second stop at the window's end."""
    recorder = Recorder(BEGINS, ENDS, stamps=False)
    call(recorder, 1_990_000, pieces=[(2_500_000, "x")])
    counted = recorder.result()
    assert (counted.started, counted.ended, counted.tokens) == (1, 0, 0)
    assert of(counted, "first_us").max == pytest.approx(510_000, rel=0.001)
    assert counted.terminals == {"done stop": 1}


def test_without_stamps_tokens_are_what_the_upstream_said() -> None:
    """The usage in the terminal, when it came within the window."""
    recorder = Recorder(BEGINS, ENDS, stamps=False)
    call(recorder, 1_100_000, pieces=[(1_100_500, "several words in one piece")])
    assert recorder.result().tokens == 3


def test_how_late_a_deadline_was_told() -> None:
    """From the deadline that `accepted` named to the terminal's arrival; an early one is a broken promise."""
    recorder = Recorder(BEGINS, ENDS, stamps=False)
    for end in (1_500_700, 1_499_000):
        held = recorder.begin(1_400_000, 1_400_000)
        recorder.end(held, failed("deadline_exceeded"), accepted(1_500_000), end)
    counted = recorder.result()
    assert of(counted, "late_us").max == 700
    assert counted.early == 1
    assert counted.terminals == {"failed deadline_exceeded": 2}
    assert counted.attempts == {"2": 2}


def test_refused_unfinished_and_fused_calls_are_told_apart() -> None:
    """No terminal is no latency, and never an answered call."""
    recorder = Recorder(BEGINS, ENDS, stamps=False)
    recorder.end(recorder.begin(1_100_000, 1_100_000), failed("overloaded"), None, 1_100_100)
    recorder.end(recorder.begin(1_200_000, 1_200_000), None, None, 1_900_000)
    recorder.fuse(1_300_000)
    recorder.fuse(500_000)
    counted = recorder.result()
    assert (counted.scheduled, counted.started, counted.unfinished, counted.fused) == (3, 2, 1, 2)
    assert counted.terminals == {"failed overloaded": 1}
    assert of(counted, "failed_us").n == 1
    assert not {"total_us", "overhead_us", "daemon_total_us"} & set(counted.histograms)  # it flatters no answer
    assert recorder.open == 0


def test_counting_early_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When too much is held it is counted at once, with the same result."""

    def run() -> Counted:
        recorder = Recorder(BEGINS, ENDS, stamps=True)
        for nth in range(40):
            due = 900_000 + nth * 10_000
            call(recorder, due, pieces=[(due + 500, f"{due + 400} "), (due + 900, f"{due + 700} {due + 800} ")])
        return recorder.result()

    whole = run()
    monkeypatch.setattr(module, "HELD_MOST", 5)
    assert run() == whole


def test_bots_together_are_one() -> None:
    """Counts add up, ends and attempts by name, histograms by value; nobody's are changed."""
    parts = []
    for nth in range(3):
        recorder = Recorder(BEGINS, ENDS, stamps=False)
        call(recorder, 1_100_000, pieces=[(1_100_000 + 100 * (nth + 1), "x")])
        parts.append(recorder.result())
    before = msgspec.json.encode(parts)
    whole = merged(parts)
    assert msgspec.json.encode(parts) == before
    assert (whole.started, whole.tokens, whole.terminals) == (3, 9, {"done stop": 3})
    assert (of(whole, "first_us").n, of(whole, "first_us").min, of(whole, "first_us").max) == (3, 100, 300)
    assert merged([]) == Counted()


def test_threads_recorders_are_taken_with_their_open_calls() -> None:
    """A thread that never came back leaves calls without a terminal, and they are told."""
    whole = Recorder(BEGINS, ENDS, stamps=False)
    other = Recorder(BEGINS, ENDS, stamps=False)
    call(other, 1_100_000, pieces=[(1_100_500, "x")])
    other.begin(1_200_000, 1_200_000)
    whole.take(other)
    counted = whole.result()
    assert (counted.started, counted.unfinished) == (2, 1)
    assert of(counted, "first_us").n == 1
