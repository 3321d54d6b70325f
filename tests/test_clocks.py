from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clocks import NO_OFFSET, Offset, Ping, drift_ppm, enough, offset_of

OFFSETS = st.integers(-(2**62), 2**62)
INSTANTS = st.integers(0, 2**62)
DELAYS = st.integers(0, 10**12)


def ping(offset: int, sent: int, there: int, back: int) -> Ping:
    """Make a round trip between clocks whose offset is known, with a delay for each way."""
    return Ping(sent, sent + there + offset, sent + there + back)


@given(OFFSETS, st.lists(st.tuples(INSTANTS, DELAYS, DELAYS), min_size=1, max_size=50))
def test_the_offset_is_found_within_its_error_however_asymmetric_the_ways_are(
    offset: int, trips: list[tuple[int, int, int]]
) -> None:
    found = offset_of([ping(offset, *trip) for trip in trips])
    assert abs(found.offset_ns - offset) <= found.error_ns


@given(OFFSETS, st.lists(st.tuples(INSTANTS, DELAYS, DELAYS), min_size=1, max_size=50))
def test_the_error_is_half_the_fastest_round_trip(offset: int, trips: list[tuple[int, int, int]]) -> None:
    found = offset_of([ping(offset, *trip) for trip in trips])
    fastest = min(there + back for _, there, back in trips)
    assert found.error_ns == -(-fastest // 2)


@given(OFFSETS, INSTANTS, DELAYS)
def test_with_equal_ways_the_offset_is_exact(offset: int, sent: int, delay: int) -> None:
    assert offset_of([ping(offset, sent, delay, delay)]) == Offset(offset, delay, sent + delay)


@given(OFFSETS, st.lists(st.tuples(INSTANTS, DELAYS, DELAYS), min_size=1), st.tuples(INSTANTS, DELAYS, DELAYS))
def test_more_round_trips_never_make_the_error_larger(
    offset: int, trips: list[tuple[int, int, int]], more: tuple[int, int, int]
) -> None:
    pings = [ping(offset, *trip) for trip in trips]
    assert offset_of([*pings, ping(offset, *more)]).error_ns <= offset_of(pings).error_ns


def trips(*durations: int, pause: int = 0) -> list[Ping]:
    """Make round trips one after the other."""
    made, now = [], 0
    for duration in durations:
        made.append(Ping(now, 0, now + duration))
        now += duration + pause
    return made


def test_fifty_fast_round_trips_are_enough_and_fewer_are_not() -> None:
    assert enough(trips(*[20_000] * 50))
    assert not enough(trips(*[20_000] * 49))


def test_one_fast_round_trip_among_the_last_fifty_is_enough() -> None:
    slow = [50_000] * 60
    assert not enough(trips(*slow))
    assert enough(trips(*slow, 20_000, *[50_000] * 49))
    assert not enough(trips(*slow, 20_001))
    assert not enough(trips(20_000, *slow))


def test_on_a_busy_machine_patience_has_an_end() -> None:
    assert not enough(trips(*[50_000] * 1999))
    assert enough(trips(*[50_000] * 2000))
    assert enough(trips(*[50_000] * 60, pause=6_000_000))


@given(st.integers(-500, 500), st.integers(1, 10**13), OFFSETS, INSTANTS)
def test_the_drift_is_what_the_clocks_part_in_a_million_of_this_ranks_time(
    ppm: int, elapsed: int, offset: int, at: int
) -> None:
    parted = round(Fraction(ppm * elapsed, 10**6))
    found = drift_ppm(Offset(offset, 0, at), Offset(offset + parted, 0, at + elapsed))
    assert found == pytest.approx(parted / elapsed * 1e6)
    assert abs(found - ppm) <= 0.51 * 1e6 / elapsed


@pytest.mark.parametrize("elapsed", [0, -1])
def test_without_time_between_two_measurements_there_is_no_drift(elapsed: int) -> None:
    assert drift_ppm(Offset(5, 1, 100), Offset(9, 1, 100 + elapsed)) == 0.0


def test_rank_0_is_its_own_clock() -> None:
    assert NO_OFFSET == (0, 0, 0)
