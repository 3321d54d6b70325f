from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients import Client
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.null import Null
from hpcstress.content import Content, Run
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.schedule import Step
from hpcstress.worker import Clients, Health, Lag, Tally, Worker
from hpcstress.workloads import load

Act = Callable[[int, Operation], Awaitable[None]]

PLAN = Plan(params=1, metrics=1, artifacts=1, artifact_size=10)
REQUESTS = 7
FOREVER = 3600.0


class Fake(Client):
    """Do with each request of a run what the test says."""

    def __init__(self, run: int, act: Act) -> None:
        super().__init__()
        self.run = run
        self.closed = 0
        self._act = act

    async def _request(self, operation: Operation, _payload: Any) -> None:
        await self._act(self.run, operation)

    def close(self) -> None:
        self.closed += 1


class Fakes:
    """Make such clients; tell who asks for the time being over."""

    def __init__(self, act: Act) -> None:
        self.made: list[Fake] = []
        self.due: list[int] = []
        self.expired = asyncio.Event()
        self._act = act

    def client(self, run: int, due: int) -> Fake:
        self.made.append(Fake(run, self._act))
        self.due.append(due)
        return self.made[-1]

    def expire(self) -> None:
        self.expired.set()


async def nothing(run: int, operation: Operation) -> None:
    """Acknowledge at once."""


async def forever(run: int, operation: Operation) -> None:
    await asyncio.Event().wait()


def failure(outcome: Outcome, body: bytes = b"") -> Failed:
    return Failed(Answer(outcome, 500, 0, 0, len(body), body))


def play(
    clients: Clients,
    runs: Iterable[int],
    *,
    origin: int | None = None,
    pulse: Callable[[], bool] = lambda: False,
    timeout: float = 60.0,
    workload: Callable[[Run, Client], Awaitable[None]] | None = None,
) -> tuple[Tally, Health]:
    worker = Worker(workload or load("parallel-runs"), Content(PLAN, "session"), clients, timeout)
    tally = Tally(10)
    start = monotonic_ns() if origin is None else origin
    return tally, uvloop.run(worker.play_step(Step(2, 0, 10), runs, start, tally, pulse))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        yield journal


def rows_of(journal: Journal) -> np.ndarray:
    return np.concatenate([np.zeros(0, RECORD), *journal.rows()])


# What is played.


def test_every_run_is_played_to_its_end_with_a_client_of_its_own() -> None:
    clients = Fakes(nothing)
    tally, _ = play(clients, range(3, 10, 2))
    assert [client.run for client in clients.made] == [3, 5, 7, 9]
    assert [client.closed for client in clients.made] == [1, 1, 1, 1]
    assert (tally.finished, tally.failed, tally.said) == (4, 0, {})


def test_a_run_is_played_with_the_content_of_its_number_in_its_step() -> None:
    seen = []

    async def workload(run: Run, client: Client) -> None:
        seen.append((run.name, run.params[:]))

    play(Fakes(nothing), [4], workload=workload)
    expected = Content(PLAN, "session").run(2, 4)
    assert seen == [(expected.name, expected.params[:])]


def test_all_runs_are_in_flight_at_once() -> None:
    meeting = asyncio.Barrier(100)

    async def meet(run: int, operation: Operation) -> None:
        if operation is Operation.create_run:
            await meeting.wait()

    tally, _ = play(Fakes(meet), range(100))
    assert tally.finished == 100


def test_the_first_runs_begin_before_the_last_are_made() -> None:
    clients = Fakes(nothing)
    waiting = []

    def runs() -> Iterator[int]:
        for run in range(1000):
            waiting.append(run - len(clients.made))
            yield run

    play(clients, runs())
    assert max(waiting) <= 64


def test_nothing_is_sent_before_the_common_start(journal: Journal) -> None:
    origin = monotonic_ns() + 30_000_000
    journal.begin(2, origin)
    play(Null(journal, 1, 0.0, 0.0), range(5), origin=origin)
    rows = rows_of(journal)
    assert rows["start"].min() >= 0
    assert set(rows[rows["seq"] == 0]["due"]) == {0}


def test_nobody_is_told_of_a_step_before_the_common_start() -> None:
    beats = []

    def pulse() -> bool:
        beats.append(monotonic_ns())
        return True

    origin = monotonic_ns() + 400_000_000
    play(Fakes(forever), range(2), origin=origin, pulse=pulse)
    assert beats[0] >= origin


def test_each_request_is_due_when_the_one_before_has_ended_and_starts_not_before(journal: Journal) -> None:
    origin = monotonic_ns()
    journal.begin(2, origin)
    play(Null(journal, 1, 0.001, 0.0), range(20), origin=origin)
    rows = rows_of(journal)
    assert len(rows) == 20 * REQUESTS
    for run in range(20):
        mine = rows[rows["run"] == run]
        assert mine["seq"].tolist() == list(range(REQUESTS))
        assert mine["due"].tolist() == [0, *mine["end"][:-1].tolist()]
        assert (mine["due"] <= mine["start"]).all()
        assert (mine["start"] < mine["end"]).all()


def test_a_step_in_which_a_rank_owns_nothing_is_over_at_once() -> None:
    tally, health = play(Fakes(nothing), [])
    assert (tally.finished, tally.failed) == (0, 0)
    assert health.lag_max_ns >= 0


# What fails.


def test_a_failed_operation_ends_its_run_and_no_other() -> None:
    asked = []

    async def fail_once(run: int, operation: Operation) -> None:
        asked.append((run, operation))
        if (run, operation) == (3, Operation.log_params):
            raise failure(Outcome.pool_exhausted)

    clients = Fakes(fail_once)
    tally, _ = play(clients, range(10))
    assert (tally.finished, tally.failed) == (9, 1)
    assert [operation for run, operation in asked if run == 3] == [Operation.create_run, Operation.log_params]
    assert all(client.closed == 1 for client in clients.made)


def test_the_first_words_about_each_cause_are_kept() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise failure(Outcome.auth if run % 2 else Outcome.gateway, b"words \x1b[31m of run %d" % run)

    tally, _ = play(Fakes(fail), range(6))
    assert tally.failed == 6
    assert tally.said == {
        "gateway": "the server said 'words [31m of run 0'",
        "auth": "the server said 'words [31m of run 1'",
    }


def test_requests_whose_time_is_over_are_failed_while_others_are_played() -> None:
    async def wait_for_the_end(run: int, operation: Operation) -> None:
        await clients.expired.wait()
        raise failure(Outcome.timeout)

    clients = Fakes(wait_for_the_end)
    tally, _ = play(clients, range(3), timeout=0.1)
    assert tally.failed == 3


# What is interrupted.


def test_a_stop_interrupts_runs_in_flight_and_keeps_what_was_finished_before() -> None:
    async def half(run: int, operation: Operation) -> None:
        if run % 2:
            await asyncio.Event().wait()

    clients = Fakes(half)
    tally, _ = play(clients, range(10), pulse=lambda: sum(client.closed for client in clients.made) == 5)
    # What was interrupted has neither finished nor failed.
    assert (tally.finished, tally.failed, tally.said) == (5, 0, {})
    assert all(client.closed == 1 for client in clients.made)


def test_the_pulse_is_felt_until_the_step_is_over() -> None:
    beats = []

    def pulse() -> bool:
        beats.append(monotonic_ns())
        return len(beats) == 3

    play(Fakes(forever), range(2), pulse=pulse)
    assert len(beats) == 3


# What the tool itself cannot do.


@pytest.mark.parametrize("error", [Refusal("No more connections: use more ranks."), RuntimeError("a bug")])
def test_a_failure_of_the_tool_ends_the_step_with_that_failure(error: Exception) -> None:
    async def fail(run: int, operation: Operation) -> None:
        if run == 2:
            raise error
        await asyncio.Event().wait()

    clients = Fakes(fail)
    with pytest.raises(type(error)) as raised:
        play(clients, range(5))
    assert raised.value is error
    assert [client.closed for client in clients.made] == [1] * 5


def test_when_many_runs_meet_the_same_failure_it_is_told_once() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise Refusal(f"Run {run} had no connection.")

    with pytest.raises(Refusal, match=r"^Run 0 had no connection\.$"):
        play(Fakes(fail), range(5))


def test_a_failure_of_the_tool_is_told_also_when_it_meets_a_stop() -> None:
    async def fail_when_cancelled(run: int, operation: Operation) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Refusal("The journal cannot grow.") from None

    with pytest.raises(Refusal, match="The journal cannot grow"):
        play(Fakes(fail_when_cancelled), range(3), pulse=lambda: True)


def test_a_pulse_that_fails_ends_the_step() -> None:
    def pulse() -> bool:
        raise Refusal("Rank 0 is gone.")

    with pytest.raises(Refusal, match="Rank 0 is gone"):
        play(Fakes(forever), range(3), pulse=pulse)


# What the rank felt.


@pytest.mark.parametrize("act", [nothing, forever])
def test_the_garbage_collector_does_not_stop_the_runs_and_goes_on_afterwards(act: Act) -> None:
    seen = []

    async def watch(run: int, operation: Operation) -> None:
        seen.append(gc.isenabled())
        await act(run, operation)

    play(Fakes(watch), range(2), pulse=lambda: True)
    assert not any(seen)
    assert gc.isenabled()


def test_the_garbage_collector_goes_on_also_when_the_tool_has_failed() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise Refusal("The journal cannot grow.")

    with pytest.raises(Refusal):
        play(Fakes(fail), range(2))
    assert gc.isenabled()


def test_a_loop_that_was_blocked_shows_in_its_lag() -> None:
    async def workload(run: Run, client: Client) -> None:
        time.sleep(0.06)
        await asyncio.sleep(0.02)

    _, health = play(Fakes(nothing), [0], workload=workload)
    assert health.lag_max_ns > 40_000_000
    assert health.lag_p50_ns <= health.lag_p99_ns <= health.lag_max_ns


def test_health_is_of_this_step() -> None:
    async def burn(run: Run, client: Client) -> None:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            await asyncio.sleep(0)

    _, health = play(Fakes(nothing), [0], workload=burn)
    assert 0.03 <= health.cpu_seconds < 300
    assert health.wall_seconds > 0
    assert 1 << 20 < health.max_rss < 1 << 40


LAGS = st.lists(st.integers(-(10**6), 10**10), min_size=1, max_size=100)


@given(LAGS, st.sampled_from([0.01, 0.25, 0.5, 0.75, 1.0]))
def test_a_quantile_is_the_lateness_that_a_share_did_not_exceed(lags: list[int], share: float) -> None:
    lag = Lag()
    for value in lags:
        lag.note(value)
    found = lag.quantile(share)
    assert sum(value <= found for value in lags) >= share * len(lags)
    # And it is the smallest such, in steps of 0.1 ms.
    assert sum(max(0, value) < found - 100_000 for value in lags) < share * len(lags)


def test_without_a_wake_up_the_lateness_is_zero() -> None:
    assert Lag().quantile(0.5) == 0


def test_lags_are_counted_and_not_kept() -> None:
    lag = Lag()
    for value in range(0, 10**9, 1_000_003):
        lag.note(value % 1_000_000)
    assert len(lag._counts) <= 10
