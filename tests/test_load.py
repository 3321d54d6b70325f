"""Whole jobs with every shape of load: users, arrivals, sweeps, retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcstress.audit import audit_result
from hpcstress.clients import retries
from hpcstress.folder import RunFolder
from hpcstress.ranks import World
from hpcstress.record import Operation, Outcome
from hpcstress.result import Result
from hpcstress.schedule import arrivals
from tests.fake_mlflow import FakeMlflow, Faults, serving
from tests.jobs import SMALL, play, requests

SECOND = 10**9
LOGGING = replace(SMALL, workload="log-batch", users=(2, 3), iterations=5, params=2, metrics=2, tags=2, warmup=2)
CREATING = replace(SMALL, workload="create-run", users=(3,))


def audited(folder: Path, server: FakeMlflow) -> list[tuple[int, int]]:
    """Return how many runs of each step were read back, and how many are intact, after looking once more."""
    with Result(folder / "result.h5") as result:
        rows = result.table("audit")
        assert not (rows["missing"] | rows["wrong"] | rows["unread"]).any()
    assert audit_result(World(), folder / "result.h5", server.environment, lambda _: None)
    return [(int(row["checked"]), int(row["intact"])) for row in rows]


# The closed model.


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FakeMlflow]]:
    """A job of users who log batch after batch; tests only read it."""
    folder = tmp_path_factory.mktemp("users") / "job"
    with serving(password="correct-horse") as server:
        assert play(folder, LOGGING, server.environment) == 0
        yield folder, server


def test_each_user_logs_its_batches_to_a_run_of_its_own(logged: tuple[Path, FakeMlflow]) -> None:
    folder, server = logged
    with Result(folder / "result.h5") as result:
        rows = requests(result)
        steps = result.table("steps")
    for step, users in enumerate((2, 3)):
        mine = rows[rows["step"] == step]
        assert Counter(mine["run"][mine["op"] == Operation.log_batch].tolist()) == dict.fromkeys(range(users), 5)
    assert steps["size"].tolist() == steps["runs_begun"].tolist() == steps["runs_finished"].tolist() == [2, 3]
    warmed = [run for run in server.runs.values() if run.name.startswith("hpcstress-65535-")]
    assert [len(run.params) for run in warmed] == [2, 2]
    for run in server.runs.values():
        if run not in warmed:
            assert len(run.params) == 5 * 2
            assert {metric["step"] for metric in run.metrics.values()} == {4}
            assert run.status == "FINISHED"


def test_what_users_have_logged_is_read_back(logged: tuple[Path, FakeMlflow]) -> None:
    assert audited(*logged) == [(2, 2), (3, 3)]


def test_users_for_a_duration_come_to_an_end_and_nothing_is_lost(tmp_path: Path) -> None:
    plan = replace(LOGGING, iterations=0, duration=0.3)
    with serving() as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        told = audited(tmp_path / "job", server)
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, steps = requests(result), result.table("steps")
        first = result.rows(("seq", "due"))
    assert told == [(count, count) for count in steps["runs_begun"].tolist()]
    assert (first["due"][first["seq"] == 0] < 0.3 * SECOND).all()
    # Every run that was begun was finished, and users have done more than one.
    finished = rows[rows["op"] == Operation.finish_run]
    assert len(finished) == steps["runs_finished"].sum() == steps["runs_begun"].sum()


def test_a_users_run_that_fails_is_followed_by_its_next_and_both_are_read_back(tmp_path: Path) -> None:
    plan = replace(LOGGING, users=(3,), iterations=20)
    with serving(Faults(exhausted=7, at="log-batch")) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        [(checked, intact)] = audited(tmp_path / "job", server)
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, [step] = requests(result), result.table("steps")
        assert 3 < step["runs_begun"] == checked == intact
        assert step["failed"] == step["runs_begun"] - step["runs_finished"]
        batches = rows[rows["op"] == Operation.log_batch]
        assert [np.count_nonzero(batches["run"] % 3 == user) for user in range(3)] == [20, 20, 20]


@pytest.mark.parametrize("switch", ["forget_param", "forget_metric", "forget_tag", "ignore_finish"])
def test_what_users_have_lost_is_found(tmp_path: Path, switch: str) -> None:
    # Of a metric and a tag only the last value has to be there: everything is forgotten.
    every = 1 if switch != "forget_param" else 7
    with serving(Faults(**{switch: every})) as server:
        assert play(tmp_path / "job", replace(LOGGING, users=(3,)), server.environment) == 3
    with Result(tmp_path / "job" / "result.h5") as result:
        [row] = result.table("audit")
        names = {name for name in server.lied(switch) if name.startswith("hpcstress-0-")}
        assert row["missing"] == len(names) > 0
        assert row["wrong"] == 0


@pytest.mark.parametrize("switch", ["change_param", "change_metric", "change_tag"])
def test_what_users_have_not_sent_is_found(tmp_path: Path, switch: str) -> None:
    with serving(Faults(**{switch: 1})) as server:
        assert play(tmp_path / "job", replace(LOGGING, users=(3,)), server.environment) == 3
    with Result(tmp_path / "job" / "result.h5") as result:
        [row] = result.table("audit")
        assert (row["checked"], row["missing"], row["wrong"]) == (3, 0, 3)


@pytest.mark.parametrize("at", ["log-batch", "runs/update"])
def test_what_was_done_but_not_acknowledged_may_be_there_in_the_midst_of_iterations(tmp_path: Path, at: str) -> None:
    plan = replace(LOGGING, users=(3,), iterations=30)
    with serving(Faults(hang_up=4 if at == "log-batch" else 2, at=at)) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        [(checked, intact)] = audited(tmp_path / "job", server)
    assert checked == intact == len(server.runs) - 2


# The open model.


@pytest.mark.parametrize("kind", ["poisson", "constant"])
def test_every_arrival_is_taken_or_dropped_and_due_when_it_was(tmp_path: Path, kind: str) -> None:
    plan = replace(CREATING, duration=0.5, rate=100, arrivals=kind, seed=3)
    with serving() as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        told = audited(tmp_path / "job", server)
    awaited = [*takewhile(lambda instant: instant < SECOND // 2, arrivals(100, kind, 3, 1, 0, 1))]
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = result.rows(("run", "seq", "due", "start"))
        [health] = result.table("health")
    first = rows[rows["seq"] == 0]
    due = sorted(first["due"].tolist())
    assert due == awaited[: len(due)]
    assert len(due) + health["dropped"] == len(awaited)
    assert (rows["start"] >= rows["due"]).all()
    assert told == [(len(due), len(due))]


def test_what_no_user_was_free_for_is_counted_as_dropped(tmp_path: Path) -> None:
    plan = replace(CREATING, client="null", null_delay=1, duration=0.5, rate=100, arrivals="constant")
    assert play(tmp_path / "job", plan, {}) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        [dropped] = result.table("health")["dropped"].tolist()
        # Each of three users answers for one in half a second, unless the machine holds them up.
        assert len(requests(result)) + dropped == 50
        assert dropped >= 47


# Sweeps.


def test_every_step_of_a_sweep_logs_what_it_varies_and_is_read_back_so(tmp_path: Path) -> None:
    plan = replace(SMALL, runs=(2, 3), repeats=2, warmup=1, sweep="params=1,3 artifact-size=10,20")
    variations = [f"params={params} artifact-size={size}" for params in (1, 3) for size in (10, 20)]
    with serving() as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        told = audited(tmp_path / "job", server)
    with Result(tmp_path / "job" / "result.h5") as result:
        steps = result.table("steps")
    assert [row["variation"].decode() for row in steps] == [words for words in variations for _ in range(2)] * 2
    assert steps["size"].tolist() == [2, 3] * 8
    assert told == [(size, size) for size in [2, 3] * 8]
    assert [event["variation"] for event in RunFolder(tmp_path / "job").events() if event["event"] == "step"] == [
        row["variation"].decode() for row in steps
    ]
    for run in server.runs.values():
        number = int(run.tags["hpcstress.step"])
        varied = plan.varied(variations[0 if number == 0xFFFF else number % 8 // 2])
        assert len(run.params) == varied.params
        [size] = [len(data) for path, data in server.artifacts.items() if path.startswith(run.folder)]
        assert size == varied.artifact_size


def test_the_load_of_users_can_vary(tmp_path: Path) -> None:
    plan = replace(CREATING, client="null", sweep="iterations=1,4")
    assert play(tmp_path / "job", plan, {}) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.table("steps")["runs_begun"].tolist() == [3, 12]


# Retries.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses short, so that four minutes are a few milliseconds."""
    monkeypatch.setattr(retries, "_FACTOR", 1e-4)
    monkeypatch.setattr(retries, "_JITTER", 1e-4)


def sent(folder: Path) -> tuple[Any, Any]:
    with Result(folder / "result.h5") as result:
        return requests(result), result.table("steps")[0]


@pytest.mark.parametrize(
    ("switch", "outcome"),
    [("throttled", Outcome.throttled), ("unavailable", Outcome.gateway), ("hang_up", Outcome.closed)],
)
@pytest.mark.usefixtures("impatient")
def test_with_retries_a_failed_attempt_is_followed_by_the_next_and_no_run_fails(
    tmp_path: Path, switch: str, outcome: Outcome
) -> None:
    plan = replace(SMALL, retries="stock", runs=(8,))
    with serving(Faults(**{switch: 3}, at="log-batch")) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        assert audited(tmp_path / "job", server) == [(8, 8)]
    rows, step = sent(tmp_path / "job")
    assert step["runs_finished"] == 8
    bad = rows[rows["outcome"] != Outcome.ok]
    assert {*bad["outcome"].tolist()} == {outcome}
    assert len(bad) == step["failed"] > 0
    # Rows are in the order of each run's attempts: every failed one is followed by the same operation's next.
    for run in range(8):
        mine = rows[rows["run"] == run]
        for before, after in pairwise(mine):
            if before["outcome"] == Outcome.ok:
                assert after["attempt"] == 1
            else:
                assert (after["op"], after["attempt"]) == (before["op"], before["attempt"] + 1)
        assert mine["outcome"][-1] == Outcome.ok


@pytest.mark.usefixtures("impatient")
def test_after_eight_attempts_an_operation_has_failed_and_ends_its_run(tmp_path: Path) -> None:
    with serving(Faults(throttled=1, at="log-batch")) as server:
        assert play(tmp_path / "job", replace(SMALL, retries="stock"), server.environment) == 0
        assert audited(tmp_path / "job", server) == [(6, 6)]
    rows, step = sent(tmp_path / "job")
    assert step["runs_finished"] == 0
    throttled = rows[rows["outcome"] == Outcome.throttled]
    for run in range(6):
        assert throttled["attempt"][throttled["run"] == run].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_no_attempt_would_mend_is_not_asked_for_again(tmp_path: Path) -> None:
    with serving(Faults(exhausted=1, at="log-batch")) as server:
        assert play(tmp_path / "job", replace(SMALL, retries="stock"), server.environment) == 0
    rows, _ = sent(tmp_path / "job")
    assert {*rows["attempt"].tolist()} == {1}


@pytest.mark.usefixtures("impatient")
def test_a_creation_that_is_tried_again_leaves_a_ghost_and_the_run_is_intact(tmp_path: Path) -> None:
    with serving(Faults(hang_up=3, at="runs/create")) as server:
        assert play(tmp_path / "job", replace(SMALL, retries="stock"), server.environment) == 0
        assert audited(tmp_path / "job", server) == [(6, 6)]
    with Result(tmp_path / "job" / "result.h5") as result:
        [row] = result.table("audit")
        assert row["ghosts"] == len(server.runs) - 6 > 0


def test_without_retries_the_same_server_ends_runs(tmp_path: Path) -> None:
    with serving(Faults(throttled=3, at="log-batch")) as server:
        assert play(tmp_path / "job", replace(SMALL, runs=(8,)), server.environment) == 0
    rows, step = sent(tmp_path / "job")
    assert step["runs_finished"] < 8
    assert {*rows["attempt"].tolist()} == {1}


@pytest.mark.usefixtures("impatient")
def test_users_try_again_within_their_iterations(tmp_path: Path) -> None:
    plan = replace(LOGGING, users=(3,), retries="stock")
    with serving(Faults(throttled=4, at="log-batch")) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        assert audited(tmp_path / "job", server) == [(3, 3)]
    rows, step = sent(tmp_path / "job")
    assert step["runs_finished"] == step["runs_begun"] == 3
    batches = rows[(rows["op"] == Operation.log_batch) & (rows["outcome"] == Outcome.ok)]
    assert np.bincount(batches["run"]).tolist() == [5, 5, 5]
    assert rows["attempt"].max() > 1
