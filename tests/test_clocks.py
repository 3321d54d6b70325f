from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clocks import NO_OFFSET, Course, Offset, Ping, enough, offset_of, sources, through
from hpcstress.tree import FAN_OUT, levels

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


def true_offset(first: int, path: list[tuple[int, int]], at: int) -> Fraction:
    """Return the offset at an instant of a clock that drifts now so and now so: for (ns, parts per million) each."""
    found = Fraction(first)
    for duration, ppm in path:
        found += Fraction(min(at, duration) * ppm, 10**6)
        at -= min(at, duration)
    return found


@given(
    OFFSETS,
    st.lists(st.tuples(st.integers(1, 10**12), st.integers(-1000, 1000)), max_size=6),
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(-(10**6), 10**6)), min_size=1, max_size=6),
    st.integers(0, 10**12),
)
def test_at_any_time_the_offset_is_known_within_the_error_however_the_clock_drifts(
    first: int, path: list[tuple[int, int]], measured: list[tuple[int, int]], instant: int
) -> None:
    readings = [
        Offset(round(true_offset(first, path, at)) + wrong, abs(wrong) + 1, at) for at, wrong in sorted(measured)
    ]
    found = course(readings).offset_at(instant)
    assert abs(found.offset_ns - true_offset(first, path, instant)) <= found.error_ns + 1
    # It is not known worse than from the measurement that was nearest.
    assert found.error_ns <= min(reading.error_ns + abs(instant - reading.at) // 1000 for reading in readings) + 2
    assert found.at == instant


def test_between_two_measurements_what_nobody_saw_is_bounded_from_both_sides() -> None:
    of = course([Offset(0, 10, 0), Offset(500_000, 10, 10**9)])
    # It may have parted at once, or in the end.
    assert of.offset_at(5 * 10**8) == Offset(250_000, 250_010, 5 * 10**8)
    assert of.offset_at(0) == Offset(0, 10, 0)
    assert of.offset_at(10**9) == Offset(500_000, 10, 10**9)


def test_measurements_that_contradict_each_other_make_the_error_as_large_as_what_lies_between_them() -> None:
    # No clock parts by a second in a second: somebody has stopped one of them.
    of = course([Offset(0, 10, 0), Offset(10**9, 10, 10**9)])
    found = of.offset_at(5 * 10**8)
    assert found.offset_ns - found.error_ns <= 0
    assert found.offset_ns + found.error_ns >= 10**9


@given(st.integers(-500, 500), st.integers(10**9, 10**13), OFFSETS, INSTANTS)
def test_the_drift_is_what_the_clocks_part_in_a_million_of_this_ranks_time(
    ppm: int, elapsed: int, offset: int, at: int
) -> None:
    parted = round(Fraction(ppm * elapsed, 10**6))
    found = course([Offset(offset, 0, at), Offset(offset + parted, 0, at + elapsed)]).drift_ppm()
    assert abs(found - ppm) <= 0.51 * 1e6 / elapsed + 1e-9


@pytest.mark.parametrize("elapsed", [0, -1])
def test_without_time_between_two_measurements_there_is_no_drift(elapsed: int) -> None:
    assert course([Offset(5, 1, 100), Offset(9, 1, 100 + elapsed)]).drift_ppm() == 0.0


def test_the_worst_of_all_measurements_is_told() -> None:
    of = course([Offset(0, 3, 0), Offset(0, 9, 1), Offset(0, 4, 2)])
    assert (of.error_ns, of.last) == (9, Offset(0, 4, 2))


def course(readings: list[Offset]) -> Course:
    made = Course(readings[0])
    for reading in readings[1:]:
        made.add(reading)
    return made


# From whom a rank has the time.


@given(st.lists(st.integers(0, 40).map(str), min_size=1, max_size=300))
def test_of_each_clock_one_rank_asks_and_the_others_read_with_it(clocks: list[str]) -> None:
    found = sources(clocks)
    first = [clocks.index(clock) for clock in clocks]
    for rank, (asks, same_as, asked_by, read_with) in enumerate(found):
        assert same_as == (None if first[rank] == rank else first[rank])
        assert read_with == (
            [] if first[rank] != rank else [one for one in range(rank + 1, len(clocks)) if first[one] == rank]
        )
        # Only those ask who have not taken it over, and only the first of all has nobody to ask.
        assert (asks is None) == (rank == 0 or same_as is not None)
        assert asks is None or first[asks] == asks
        assert all(found[other].asks == rank for other in asked_by)
    assert sorted(other for entry in found for other in entry.asked_by) == sorted({*first} - {0})


@given(st.integers(1, 2000))
def test_nobody_waits_for_more_than_a_few_who_are_asked_before(size: int) -> None:
    done = {0: 0}
    for rank, entry in enumerate(sources([str(rank) for rank in range(size)])):
        done |= {other: done[rank] + turn for turn, other in enumerate(entry.asked_by, 1)}
    assert max(done.values()) <= FAN_OUT * levels(size)


@given(OFFSETS, OFFSETS, DELAYS, DELAYS, INSTANTS, DELAYS)
def test_what_is_measured_through_a_parent_is_known_within_both_errors(
    mine: int, parents: int, there: int, back: int, sent: int, error: int
) -> None:
    found = through(offset_of([ping(mine, sent, there, back)]), Offset(parents + error, error, 0))
    assert abs(found.offset_ns - (mine + parents)) <= found.error_ns


def test_rank_0_is_its_own_clock() -> None:
    assert NO_OFFSET == (0, 0, 0)
