from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice, pairwise, takewhile
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import pace
from hpcstress.pace import Pace, sleep_until
from hpcstress.schedule import arrivals
from tests.simulated import TICK_NS, simulate

SECOND = 10**9
# Some turns of the loop: nobody can be more exact.
FINE_NS = 4 * TICK_NS


class Begun(NamedTuple):
    """An iteration: when it was due, when it began, when it was over; nanoseconds after the origin."""

    user: int
    due: int
    start: int
    end: int


def play(
    users: int,
    services: Sequence[int],
    *,
    duration: float = 0.0,
    iterations: int = 0,
    think_time: float = 0.0,
    due: Sequence[int] | None = None,
    late: Sequence[int] = (0,),
) -> tuple[list[Begun], int, int]:
    """Let users play iterations that take so long, again and again; return them in order, the end, what was dropped."""
    begun: list[Begun] = []

    async def scene() -> tuple[list[Begun], int, int]:
        origin = pace.monotonic_ns()
        made = Pace(origin, duration, iterations, think_time, None if due is None else iter(due))
        took = cycle(services)

        async def user(number: int) -> None:
            done = 0
            while (instant := await made.turn(done)) is not None:
                start = pace.monotonic_ns()
                await asyncio.sleep(next(took) / SECOND)
                begun.append(Begun(number, instant - origin, start - origin, pace.monotonic_ns() - origin))
                done += 1

        await asyncio.gather(*(user(number) for number in range(users)))
        return sorted(begun, key=lambda one: one.due), pace.monotonic_ns() - origin, made.drop()

    told: tuple[list[Begun], int, int] = simulate(scene(), late)
    return told


def of(user: int, begun: list[Begun]) -> list[Begun]:
    return [one for one in begun if one.user == user]


def slack(late: Sequence[int]) -> int:
    """Return how much later than asked for a user may go on: a timer is late, and the turn after it."""
    return FINE_NS + 2 * max(late)


services = st.lists(st.integers(1, 2 * SECOND), min_size=1, max_size=10)
# How late the machine wakes up: not at all, now and then, always.
lates = st.lists(st.just(0) | st.integers(0, SECOND // 10), min_size=1, max_size=10)


# The closed model.


@given(st.integers(1, 5), st.integers(1, 8), services, lates)
def test_each_user_has_its_iterations_one_after_the_other(
    users: int, iterations: int, services: list[int], late: list[int]
) -> None:
    begun, _, dropped = play(users, services, iterations=iterations, late=late)
    assert dropped == 0
    for user in range(users):
        mine = of(user, begun)
        assert len(mine) == iterations
        # Due when the one before was over, and begun at once.
        assert mine[0].due <= slack(late)
        assert [one.due for one in mine[1:]] == [one.end for one in mine[:-1]]
        assert all(one.start == one.due for one in mine)


def test_without_iterations_and_duration_a_user_has_one_iteration() -> None:
    assert len(play(3, [SECOND])[0]) == 3


@given(st.integers(1, 5), st.integers(SECOND, 10 * SECOND), services, lates)
def test_users_go_on_for_the_duration_and_what_has_begun_is_played_to_its_end(
    users: int, duration: int, services: list[int], late: list[int]
) -> None:
    services = [max(service, SECOND // 100) for service in services]
    begun, _, _ = play(users, services, duration=duration / SECOND, late=late)
    for user in range(users):
        mine = of(user, begun)
        assert all(one.start == one.due < duration for one in mine)
        assert all(after.due == before.end for before, after in pairwise(mine))
        assert mine[-1].end >= duration


@given(st.integers(1, 20), st.integers(SECOND, 5 * SECOND), services)
def test_a_duration_and_iterations_end_a_user_whichever_comes_first(
    iterations: int, duration: int, services: list[int]
) -> None:
    services = [max(service, SECOND // 100) for service in services]
    limited, _, _ = play(1, services, duration=duration / SECOND, iterations=iterations)
    timed, _, _ = play(1, services, duration=duration / SECOND)
    assert limited == timed[:iterations]


@given(st.integers(2, 8), st.integers(1, 3 * SECOND), services, lates)
def test_a_user_thinks_between_two_iterations_and_only_there(
    iterations: int, think: int, services: list[int], late: list[int]
) -> None:
    begun, end, _ = play(1, services, iterations=iterations, think_time=think / SECOND, late=late)
    assert begun[0].due <= slack(late)
    assert end - begun[-1].end <= slack(late)
    for before, after in pairwise(begun):
        assert after.start == after.due >= before.end + think
        assert after.due <= before.end + think + slack(late)


def test_nobody_waits_for_an_iteration_that_would_begin_after_the_end() -> None:
    begun, end, _ = play(1, [SECOND], duration=10, think_time=5)
    assert [one.due for one in begun] == pytest.approx([0, 6 * SECOND], abs=FINE_NS)
    assert end == pytest.approx(7 * SECOND, abs=2 * FINE_NS)


def test_iterations_that_a_user_plays_within_one_run_count_too() -> None:
    async def scene() -> list[int | None]:
        made = Pace(pace.monotonic_ns(), 0.0, 5, 0.0)
        return [await made.turn(before, further) for before, further in ((0, 0), (0, 4), (2, 2), (0, 5), (3, 2))]

    told = simulate(scene())
    assert [instant is not None for instant in told] == [True, True, True, False, False]


# The open model.


class Open(NamedTuple):
    """A step with arrivals: how many users, for how long, when iterations are due, how long they take."""

    users: int
    duration: int
    due: list[int]
    services: list[int]
    late: list[int]

    @property
    def awaited(self) -> list[int]:
        """Return the arrivals before the end."""
        return [instant for instant in self.due if instant < self.duration]

    def play(self, think_time: float = 0.0) -> tuple[list[Begun], int, int]:
        return play(
            self.users,
            self.services,
            duration=self.duration / SECOND,
            think_time=think_time,
            due=self.due,
            late=self.late,
        )


steps = st.builds(
    Open,
    st.integers(1, 5),
    st.integers(SECOND, 10 * SECOND),
    st.lists(st.integers(0, 15 * SECOND), max_size=20).map(sorted),
    services,
    lates,
)


@given(steps, st.sampled_from([0.0, 0.3, 20.0]))
def test_no_arrival_is_lost_what_was_taken_and_what_was_dropped_are_all_before_the_end(
    step: Open, think_time: float
) -> None:
    begun, _, dropped = step.play(think_time)
    taken = [one.due for one in begun]
    assert len(taken) + dropped == len(step.awaited)
    # In their order, so that it is the last ones that are dropped.
    assert taken == step.awaited[: len(taken)]


@given(steps)
def test_an_iteration_may_begin_late_and_never_early(step: Open) -> None:
    begun, _, _ = step.play()
    assert all(one.start >= one.due for one in begun)


@given(steps)
def test_who_is_free_begins_when_the_arrival_is_due_up_to_the_lateness_of_the_machine(step: Open) -> None:
    # Of two that are due at once nobody knows which one was taken first.
    begun, _, _ = step._replace(due=sorted({*step.due})).play()
    for number, one in enumerate(begun):
        busy = sum(before.end > one.due for before in begun[:number])
        if busy < step.users:
            assert one.start - one.due <= slack(step.late)


@given(steps)
def test_what_is_dropped_is_what_nobody_was_free_for_until_the_end(step: Open) -> None:
    begun, end, dropped = step.play()
    if dropped:
        assert end >= step.duration
        assert all(of(user, begun)[-1].end >= step.duration for user in range(step.users))


def test_with_enough_users_every_due_time_is_kept_however_long_the_answers_take() -> None:
    due = list(takewhile(lambda instant: instant < 60 * SECOND, arrivals(5.0, "poisson", 1, 300, 0, 1)))
    begun, _, dropped = play(300, [30 * SECOND], duration=60, due=due)
    assert dropped == 0
    assert [one.due for one in begun] == due
    assert max(one.start - one.due for one in begun) <= FINE_NS


def test_a_stall_shows_as_lateness_of_all_that_became_due_meanwhile() -> None:
    # One user, an answer each 10 ms, but the first one takes a second.
    due = [number * SECOND // 20 for number in range(100)]
    free = [0, *(SECOND + number * SECOND // 100 for number in range(99))]
    begun, _, dropped = play(1, [SECOND, *[SECOND // 100] * 99], duration=5, due=due)
    assert dropped == 0
    expected = [max(0, then - instant) for instant, then in zip(due, free, strict=True)]
    assert max(expected) == SECOND - SECOND // 20
    assert [one.start - one.due for one in begun] == pytest.approx(expected, abs=20 * FINE_NS)


def test_arrivals_without_a_user_are_all_dropped() -> None:
    due = [0, 1, SECOND - 1, SECOND, 2 * SECOND]
    assert play(0, [1], duration=1, due=due) == ([], 0, 3)


def test_arrivals_are_made_while_they_are_waited_for() -> None:
    endless = arrivals(1e6, "constant", 1, 1, 0, 1)

    async def scene() -> int | None:
        return await Pace(pace.monotonic_ns(), 1e9, 0, 0.0, endless).turn(0)

    assert simulate(scene()) is not None
    assert next(endless) == 1000


# Waiting.


@given(st.integers(-SECOND, 10 * SECOND), lates)
def test_who_sleeps_until_an_instant_wakes_up_at_it_and_not_before(ahead: int, late: list[int]) -> None:
    async def scene() -> int:
        instant = pace.monotonic_ns() + ahead
        await sleep_until(instant)
        return pace.monotonic_ns() - instant

    lateness = simulate(scene(), late)
    assert lateness >= 0
    assert lateness <= max(0, -ahead) + slack(late)
    if ahead <= 0:
        assert lateness == -ahead


def test_the_last_milliseconds_are_waited_for_awake_because_timers_are_coarse() -> None:
    async def scene() -> int:
        instant = pace.monotonic_ns() + SECOND
        await sleep_until(instant)
        return pace.monotonic_ns() - instant

    # The timer is two milliseconds late, every further turn of the loop is not.
    assert simulate(scene(), [2_000_000, *[0] * 10_000]) <= FINE_NS


def test_first_come_first_served() -> None:
    assert list(islice((one.user for one in play(3, [SECOND], duration=9, due=[*range(9)])[0]), 3)) == [0, 1, 2]
