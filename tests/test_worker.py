from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import pace
from hpcstress.clients import Client, Lacking, Place, Turn, no_turn
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.null import Null
from hpcstress.content import Content, Run
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.schedule import WARMUP, Step, arrivals
from hpcstress.worker import Clients, Health, Lag, Share, Tally, Worker
from hpcstress.workloads import load
from tests.simulated import TICK_NS, simulate

Act = Callable[[int, Operation], Awaitable[None]]

PLAN = Plan(params=1, metrics=1, artifacts=1, artifact_size=10)
REQUESTS = 7
FOREVER = 3600.0
SECOND = 10**9
# Some turns of the loop: nobody can be more exact.
FINE_NS = 4 * TICK_NS


class Fake(Client):
    """Do with each request of a run what the test says."""

    def __init__(self, run: int, act: Act, due: int = 0, turn: Turn = no_turn) -> None:
        super().__init__(Place("0"), Lacking(), due, turn)
        self.run = run
        self.closed = 0
        self._act = act

    async def _request(self, operation: Operation, _payload: Any) -> Sequence[str]:
        await self._act(self.run, operation)
        return ()

    def close(self) -> None:
        self.closed += 1


class Fakes:
    """Make such clients; tell who asks for the time being over."""

    def __init__(self, act: Act) -> None:
        self.made: list[Fake] = []
        self.due: list[int] = []
        self.expired = asyncio.Event()
        self._act = act

    def client(self, run: int, due: int, turn: Turn) -> Fake:
        self.made.append(Fake(run, self._act, due, turn))
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
    size: int,
    *,
    plan: Plan = PLAN,
    rank: int = 0,
    ranks: int = 1,
    number: int = 2,
    origin: int | None = None,
    pulse: Callable[[], bool] = lambda: False,
    timeout: float = 60.0,
    workload: Callable[[Run, Client], Awaitable[None]] | None = None,
) -> tuple[Tally, Health]:
    worker = Worker(workload or load("parallel-runs"), clients, timeout)
    share = Share(Step(number, 0, size), Content(plan, "session"), rank, ranks)
    tally = Tally(len(share.places))
    start = monotonic_ns() if origin is None else origin
    return tally, uvloop.run(worker.play_step(share, start, tally, pulse))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        yield journal


def rows_of(journal: Journal) -> np.ndarray:
    return np.concatenate([np.zeros(0, RECORD), *journal.rows()])


# What is played.


def test_every_run_is_played_to_its_end_with_a_client_of_its_own() -> None:
    clients = Fakes(nothing)
    tally, _ = play(clients, 10, rank=1, ranks=3)
    assert [client.run for client in clients.made] == [1, 4, 7]
    assert [client.closed for client in clients.made] == [1, 1, 1]
    assert (tally.finished, tally.failed, tally.said) == (3, 0, {})


def test_a_run_is_played_with_the_content_of_its_number_in_its_step() -> None:
    seen = []

    async def workload(run: Run, client: Client) -> None:
        seen.append((run.name, run.params[:]))

    play(Fakes(nothing), 5, rank=4, ranks=5, workload=workload)
    expected = Content(PLAN, "session").run(2, 4)
    assert seen == [(expected.name, expected.params[:])]


def test_all_runs_are_in_flight_at_once() -> None:
    meeting = asyncio.Barrier(100)

    async def meet(run: int, operation: Operation) -> None:
        if operation is Operation.create_run:
            await meeting.wait()

    tally, _ = play(Fakes(meet), 100)
    assert tally.finished == 100


def test_the_first_runs_begin_before_the_last_are_made() -> None:
    made = []

    async def note(run: int, operation: Operation) -> None:
        if operation is Operation.create_run:
            made.append(len(clients.made))

    clients = Fakes(note)
    play(clients, 1000)
    # A turn of the loop makes so many, and plays those of the turn before.
    assert max(number - run for run, number in enumerate(made)) <= 2 * 64


def test_nothing_is_sent_before_the_common_start(journal: Journal) -> None:
    origin = monotonic_ns() + 30_000_000
    journal.begin(2, origin)
    play(Null(journal, 1, 0.0, 0.0), 5, origin=origin)
    rows = rows_of(journal)
    assert rows["start"].min() >= 0
    assert set(rows[rows["seq"] == 0]["due"]) == {0}


def test_nobody_is_told_of_a_step_before_the_common_start() -> None:
    beats = []

    def pulse() -> bool:
        beats.append(monotonic_ns())
        return True

    origin = monotonic_ns() + 400_000_000
    play(Fakes(forever), 2, origin=origin, pulse=pulse)
    assert beats[0] >= origin


def test_each_request_is_due_when_the_one_before_has_ended_and_starts_not_before(journal: Journal) -> None:
    origin = monotonic_ns()
    journal.begin(2, origin)
    play(Null(journal, 1, 0.001, 0.0), 20, origin=origin)
    rows = rows_of(journal)
    assert len(rows) == 20 * REQUESTS
    for run in range(20):
        mine = rows[rows["run"] == run]
        assert mine["seq"].tolist() == list(range(REQUESTS))
        assert mine["due"].tolist() == [0, *mine["end"][:-1].tolist()]
        assert (mine["due"] <= mine["start"]).all()
        assert (mine["start"] < mine["end"]).all()


def test_a_step_in_which_a_rank_owns_nothing_is_over_at_once() -> None:
    tally, health = play(Fakes(nothing), 1, rank=1, ranks=2)
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
    tally, _ = play(clients, 10)
    assert (tally.finished, tally.failed) == (9, 1)
    assert [operation for run, operation in asked if run == 3] == [Operation.create_run, Operation.log_params]
    assert all(client.closed == 1 for client in clients.made)


def test_the_first_words_about_each_cause_are_kept() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise failure(Outcome.auth if run % 2 else Outcome.gateway, b"words \x1b[31m of run %d" % run)

    tally, _ = play(Fakes(fail), 6)
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
    tally, _ = play(clients, 3, timeout=0.1)
    assert tally.failed == 3


# What is interrupted.


def test_a_stop_interrupts_runs_in_flight_and_keeps_what_was_finished_before() -> None:
    async def half(run: int, operation: Operation) -> None:
        if run % 2:
            await asyncio.Event().wait()

    clients = Fakes(half)
    tally, _ = play(clients, 10, pulse=lambda: sum(client.closed for client in clients.made) == 5)
    # What was interrupted has neither finished nor failed.
    assert (tally.finished, tally.failed, tally.said) == (5, 0, {})
    assert all(client.closed == 1 for client in clients.made)


def test_the_pulse_is_felt_until_the_step_is_over() -> None:
    beats = []

    def pulse() -> bool:
        beats.append(monotonic_ns())
        return len(beats) == 3

    play(Fakes(forever), 2, pulse=pulse)
    assert len(beats) == 3


# Users: an hour of theirs takes no time here.

USERS = Plan(workload="create-run", users=(3,), iterations=4)
LOOPING = Plan(workload="log-batch", users=(2,), iterations=250, params=1, metrics=1, tags=1)


class Told(NamedTuple):
    """What a rank's users have done: the rows, the tally, what the rank felt."""

    rows: np.ndarray
    tally: Tally
    health: Health


def users(
    folder: Path,
    plan: Plan,
    rank: int = 0,
    ranks: int = 1,
    *,
    delay: float = 0.01,
    failures: float = 0.0,
    late: Sequence[int] = (0,),
    stop_after: int = 0,
    workload: Callable[[Run, Client], Awaitable[None]] | None = None,
) -> Told:
    """Play a rank's share of the first step of a plan with the null client."""
    share = Share(Step(0, 0, plan.steps[0]), Content(plan, "session"), rank, ranks)
    tally = Tally(len(share.places))
    beats = count(1)

    async def scene() -> Health:
        worker = Worker(workload or load(plan.workload), Null(journal, plan.seed, delay, failures), 60.0)
        origin = pace.monotonic_ns() + SECOND
        journal.begin(0, origin)
        return await worker.play_step(share, origin, tally, lambda: next(beats) == stop_after)

    with Journal(folder / f"{len([*folder.iterdir()])}.rows", rank, {}) as journal:
        health = simulate(scene(), late)
        return Told(rows_of(journal), tally, health)


def first(rows: np.ndarray) -> np.ndarray:
    """Return the first request of every run, in the order of their runs."""
    return np.sort(rows[rows["seq"] == 0], order="run")


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_the_runs_of_all_users_on_all_ranks_are_numbered_once(tmp_path: Path, ranks: int) -> None:
    told = [users(tmp_path, USERS, rank, ranks) for rank in range(ranks)]
    assert sorted(run for one in told for run in one.rows["run"].tolist()) == list(range(3 * 4))
    assert sum(one.tally.finished for one in told) == 12
    for rank, one in enumerate(told):
        # A user's runs lie as far apart as there are users, and a user belongs to its number modulo the ranks.
        assert {run % 3 % ranks for run in one.rows["run"].tolist()} <= {rank}


def test_a_user_plays_one_run_after_the_other_and_all_users_at_once(tmp_path: Path) -> None:
    rows = first(users(tmp_path, USERS).rows)
    for user in range(3):
        mine = rows[rows["run"] % 3 == user]
        assert mine["run"].tolist() == [user, user + 3, user + 6, user + 9]
        assert (mine["due"][1:] >= mine["end"][:-1]).all()
        assert (mine["due"][1:] - mine["end"][:-1] <= FINE_NS).all()
        assert (mine["start"] - mine["due"] <= FINE_NS).all()
    assert rows["due"][:3].max() <= FINE_NS


def test_a_run_that_fails_is_followed_by_the_users_next(tmp_path: Path) -> None:
    told = users(tmp_path, replace(USERS, iterations=100), failures=0.3)
    failed = int((told.rows["outcome"] != Outcome.ok).sum())
    assert 0 < failed == told.tally.failed == 300 - told.tally.finished
    assert sorted(told.rows["run"].tolist()) == list(range(300))


def test_a_workload_that_loops_goes_on_in_a_further_run_when_one_is_full(tmp_path: Path) -> None:
    told = users(tmp_path, LOOPING)
    batches = told.rows[told.rows["op"] == Operation.log_batch]["run"]
    assert [np.count_nonzero(batches == run) for run in range(6)] == [100, 100, 100, 100, 50, 50]
    assert (told.tally.finished, told.tally.failed) == (6, 0)


def test_an_iteration_that_has_failed_is_one_of_the_users_iterations(tmp_path: Path) -> None:
    told = users(tmp_path, LOOPING, failures=0.05)
    played = told.rows[np.isin(told.rows["op"], [Operation.log_batch])]
    # Where a run could not be created, its iteration is lost with it.
    lost = told.rows[(told.rows["op"] == Operation.create_run) & (told.rows["outcome"] != Outcome.ok)]
    assert len(lost) > 0
    for user in range(2):
        assert np.count_nonzero(played["run"] % 2 == user) + np.count_nonzero(lost["run"] % 2 == user) == 250
    assert told.tally.failed == np.count_nonzero(told.rows["outcome"] != Outcome.ok)


def test_users_go_on_for_the_duration_and_finish_what_they_have_begun(tmp_path: Path) -> None:
    plan = Plan(workload="log-batch", users=(4,), duration=3600, params=1, metrics=0)
    told = users(tmp_path, plan, delay=1.0)
    batches = told.rows[told.rows["op"] == Operation.log_batch]
    assert batches["due"].max() < 3600 * SECOND
    last = np.sort(told.rows, order="end")[-4:]
    assert set(last["op"].tolist()) == {Operation.finish_run}
    assert 3600 * SECOND < last["end"].max() < 3610 * SECOND
    assert told.tally.finished == len(np.unique(told.rows["run"]))


def test_thinking_is_no_lateness(tmp_path: Path) -> None:
    plan = replace(USERS, users=(1,), think_time=60)
    rows = first(users(tmp_path, plan).rows)
    assert (np.diff(rows["due"]) >= 60 * SECOND).all()
    assert (rows["start"] - rows["due"] <= FINE_NS).all()


def test_between_the_iterations_of_one_run_there_is_thinking_too(tmp_path: Path) -> None:
    rows = users(tmp_path, replace(LOOPING, users=(1,), iterations=5, think_time=60)).rows
    batches = rows[rows["op"] == Operation.log_batch]
    assert len(batches) == 5
    assert (np.diff(batches["due"]) >= 60 * SECOND).all()
    assert (rows["start"] - rows["due"] <= FINE_NS).all()


@pytest.mark.parametrize("kind", ["poisson", "constant"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_iterations_begin_when_their_arrivals_are_due_on_any_number_of_ranks(
    tmp_path: Path, kind: str, ranks: int
) -> None:
    plan = replace(USERS, users=(5,), iterations=0, duration=100, rate=3.0, arrivals=kind, seed=4)
    told = [users(tmp_path, plan, rank, ranks) for rank in range(ranks)]
    awaited = takewhile(lambda instant: instant < 100 * SECOND, arrivals(3.0, kind, 4, 1, 0, 1))
    assert sorted(due for one in told for due in one.rows["due"].tolist()) == [*awaited]
    assert all(one.health.dropped == 0 for one in told)
    assert all((one.rows["start"] >= one.rows["due"]).all() for one in told)


def test_a_slow_server_makes_iterations_late_and_in_the_end_dropped_and_none_is_lost(tmp_path: Path) -> None:
    plan = replace(USERS, users=(2,), iterations=0, duration=100, rate=3.0, arrivals="constant")
    told = users(tmp_path, plan, delay=1.0)
    rows = np.sort(told.rows, order="due")
    # Two users do two in a second, three are due.
    assert len(rows) + told.health.dropped == 300
    assert told.health.dropped == pytest.approx(100, abs=4)
    lateness = rows["start"] - rows["due"]
    assert (np.diff(lateness) >= -SECOND).all()
    assert lateness[-1] == pytest.approx(33 * SECOND, rel=0.1)


def test_iterations_within_a_run_are_due_with_their_arrivals_too(tmp_path: Path) -> None:
    plan = replace(LOOPING, users=(1,), iterations=0, duration=30, rate=1.0, arrivals="constant")
    rows = users(tmp_path, plan).rows
    batches = rows[rows["op"] == Operation.log_batch]
    # The first one waits for its run.
    assert batches["due"].tolist()[1:] == [second * SECOND for second in range(1, 30)]
    assert rows["due"][0] == 0
    assert rows["op"][0] == Operation.create_run


def test_a_stop_interrupts_users_who_wait_or_think_or_play(tmp_path: Path) -> None:
    patient = replace(USERS, users=(3,), iterations=0, duration=10**6)
    for plan, runs in (
        (replace(patient, rate=1e-6), 0),
        (replace(patient, think_time=10**5), 3),
    ):
        told = users(tmp_path, plan, stop_after=5)
        assert len(told.rows) == runs
        assert told.health.dropped == 0
    told = users(tmp_path, patient, delay=10**5, stop_after=5)
    assert {*told.rows["outcome"].tolist()} == {Outcome.interrupted}
    assert told.tally.said == {}


def test_the_warm_up_of_users_is_a_run_with_one_iteration_at_each_place(journal: Journal) -> None:
    plan = replace(LOOPING, duration=10**6, think_time=10**5)
    tally, _ = play(Null(journal, 1, 0.0, 0.0), 5, plan=plan, number=WARMUP, workload=load("log-batch"))
    rows = rows_of(journal)
    assert sorted(rows[rows["op"] == Operation.log_batch]["run"].tolist()) == [0, 1, 2, 3, 4]
    assert tally.finished == 5


def test_runs_that_begin_at_once_have_the_iterations_of_the_plan(journal: Journal) -> None:
    plan = Plan(workload="log-batch", iterations=7, params=1)
    play(Null(journal, 1, 0.0, 0.0), 3, plan=plan, workload=load("log-batch"))
    rows = rows_of(journal)
    assert np.bincount(rows[rows["op"] == Operation.log_batch]["run"]).tolist() == [7, 7, 7]


# What the tool itself cannot do.


@pytest.mark.parametrize("error", [Refusal("No more connections: use more ranks."), RuntimeError("a bug")])
def test_a_failure_of_the_tool_ends_the_step_with_that_failure(error: Exception) -> None:
    async def fail(run: int, operation: Operation) -> None:
        if run == 2:
            raise error
        await asyncio.Event().wait()

    clients = Fakes(fail)
    with pytest.raises(type(error)) as raised:
        play(clients, 5)
    assert raised.value is error
    assert [client.closed for client in clients.made] == [1] * 5


def test_when_many_runs_meet_the_same_failure_it_is_told_once() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise Refusal(f"Run {run} had no connection.")

    with pytest.raises(Refusal, match=r"^Run 0 had no connection\.$"):
        play(Fakes(fail), 5)


def test_a_failure_of_the_tool_is_told_also_when_it_meets_a_stop() -> None:
    async def fail_when_cancelled(run: int, operation: Operation) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Refusal("The journal cannot grow.") from None

    with pytest.raises(Refusal, match="The journal cannot grow"):
        play(Fakes(fail_when_cancelled), 3, pulse=lambda: True)


def test_a_pulse_that_fails_ends_the_step() -> None:
    def pulse() -> bool:
        raise Refusal("Rank 0 is gone.")

    with pytest.raises(Refusal, match="Rank 0 is gone"):
        play(Fakes(forever), 3, pulse=pulse)


# What the rank felt.


@pytest.mark.parametrize("act", [nothing, forever])
def test_the_garbage_collector_does_not_stop_the_runs_and_goes_on_afterwards(act: Act) -> None:
    seen = []

    async def watch(run: int, operation: Operation) -> None:
        seen.append(gc.isenabled())
        await act(run, operation)

    play(Fakes(watch), 2, pulse=lambda: True)
    assert not any(seen)
    assert gc.isenabled()


def test_the_garbage_collector_goes_on_also_when_the_tool_has_failed() -> None:
    async def fail(run: int, operation: Operation) -> None:
        raise Refusal("The journal cannot grow.")

    with pytest.raises(Refusal):
        play(Fakes(fail), 2)
    assert gc.isenabled()


def test_a_loop_that_was_blocked_shows_in_its_lag() -> None:
    async def workload(run: Run, client: Client) -> None:
        time.sleep(0.06)
        await asyncio.sleep(0.02)

    _, health = play(Fakes(nothing), 1, workload=workload)
    assert health.lag_max_ns > 40_000_000
    assert health.lag_p50_ns <= health.lag_p99_ns <= health.lag_max_ns


def test_health_is_of_this_step() -> None:
    async def burn(run: Run, client: Client) -> None:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            await asyncio.sleep(0)

    _, health = play(Fakes(nothing), 1, workload=burn)
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
