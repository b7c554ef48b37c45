"""The shape of a load, and the instants at which its calls begin."""

from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest

from sidecar.bench.arrivals import schedule
from sidecar.bench.job import Job
from sidecar.bench.load import PROFILES, Load, make, prompt_of


def instants(load: Load, seed: int = 1) -> list[float]:
    """Of all bots, in order."""
    every = [
        at for index in range(load.clients) for at in schedule(load, index, random.Random(f"{seed}:{index}").random)
    ]
    return sorted(every)


@pytest.mark.parametrize("clients", [1, 3])
def test_constant_arrivals_are_evenly_spread_over_all_bots(clients: int) -> None:
    """Two bots or three: together they begin one call every 1/rate, over warm-up and window."""
    load = Load(rate=10.0, arrivals="constant", for_s=2.0, warm_up_s=1.0, clients=clients)
    assert instants(load) == pytest.approx([nth / 10 for nth in range(30)])


@pytest.mark.parametrize("clients", [1, 4])
def test_poisson_arrivals_have_the_rate_and_no_memory(clients: int) -> None:
    """Of 20,000: the mean gap is 1/rate, its deviation the same, and 1/e of the gaps are longer than the mean."""
    load = Load(rate=100.0, for_s=200.0, warm_up_s=0.0, clients=clients)
    found = instants(load)
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert len(found) == pytest.approx(20_000, rel=0.03)
    assert statistics.fmean(gaps) == pytest.approx(0.01, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert all(0 <= at < 200 for at in found)


def test_the_same_seed_is_the_same_schedule() -> None:
    """And another bot, or another seed, another one."""
    load = Load(rate=50.0, for_s=2.0, clients=2)

    def dues(index: int, seed: int) -> list[int]:
        shaped = make("stream", {"rate": 50.0, "for_s": 2.0, "clients": 2, "seed": seed})
        job = Job(load=shaped, index=index, endpoint="", route=None, prompt="", ask_tokens=False, result="")
        return list(job.dues(1_000_000))

    assert dues(0, 1) == dues(0, 1)
    assert len({tuple(dues(index, seed)) for index in (0, 1) for seed in (1, 2)}) == 4
    assert all(at >= 1_000_000 for at in dues(0, 1))
    assert load.calls == 200


def test_streams_are_a_rate_by_littles_law() -> None:
    """16 open on average of answers that take 59 gaps of 16.667 ms: 16.27 a second."""
    load = make("stream", {})
    assert load.rate * load.answer_s == pytest.approx(16, rel=1e-4)
    assert load.open_calls >= 16
    assert make("stream", {"streams": 4.0, "tokens": 11, "cadence_ms": 100.0}).rate == pytest.approx(4.0)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_profile_is_a_load(profile: str) -> None:
    """As it stands, and with a rate laid over it."""
    assert make(profile, {}).rate > 0
    assert make(profile, {"rate": 3.0}).rate == 3.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": -1.0}, "--rate"), ({"rate": 0.0}, "--rate"), ({"rate": float("nan")}, "--rate"),
        ({"rate": float("inf")}, "--rate"), ({"rate": 1e9}, "--rate"), ({"rate": 5.0, "streams": 5.0}, "one of them"),
        ({"rate": 0.01}, "begins no call"), ({"streams": 0.0}, "--streams"), ({"streams": -3.0}, "--streams"),
        ({"streams": 1e9}, "--streams"), ({"streams": 4.0, "cadence_ms": 0.0}, "give --rate"),
        ({"for_s": 0.0}, "--for-s"), ({"warm_up_s": -1.0}, "--warm-up-s"), ({"tokens": 0}, "--tokens"),
        ({"tokens": 10**12}, "--tokens"), ({"jitter": 1.5}, "--jitter"), ({"clients": 0}, "--clients"),
        ({"clients": 65}, "--clients"), ({"client": "rust"}, "--client"), ({"prompt_bytes": 0}, "--prompt-bytes"),
        ({"timeout_ms": 0.0}, "--timeout-ms"), ({"max_open": 1, "clients": 2}, "--max-open"), ({"seed": -1}, "--seed"),
        ({"rate": 1e5, "for_s": 86_400.0}, "lower --rate"), ({"arrivals": "bursts"}, "--arrivals"),
    ],
)  # fmt: skip
def test_a_load_that_cannot_be_names_the_flag(given: dict[str, Any], said: str) -> None:
    """Negative, absurd, contradictory: refused before anything is started, with the flag's name."""
    with pytest.raises(ValueError, match="(?s)" + said):
        make("stream", given)


def test_a_blocking_bot_has_no_more_open_calls_than_threads() -> None:
    """The fuse of 4,096 would be 4,096 threads."""
    assert make("stream", {"client": "blocking", "clients": 2}).max_open == 1024


def test_a_prompt_has_the_bytes_asked_for() -> None:
    """To the byte, from one to a megabyte."""
    for size in (1, 49, 50, 51, 1000, 1_000_000):
        assert len(prompt_of(Load(rate=1.0, prompt_bytes=size)).encode()) == size
