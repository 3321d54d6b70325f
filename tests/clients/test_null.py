from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import uvloop

from hpcstress.clients.answer import Failed
from hpcstress.clients.null import Null
from hpcstress.content import Content
from hpcstress.journal import Journal
from hpcstress.plan import Plan
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.workloads import load

PLAN = Plan(params=1, metrics=1, artifacts=1)
REQUESTS = 7


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "j.rows", 0, {}) as journal:
        yield journal


def rows_of(journal: Journal) -> np.ndarray:
    return np.concatenate([np.zeros(0, RECORD), *journal.rows()])


def play(null: Null, runs: range) -> int:
    """Play runs one after the other; return how many have failed."""

    async def scene() -> int:
        failed = 0
        for run in runs:
            client = null.client(run, 0)
            try:
                await load("parallel-runs")(Content(PLAN, "session").run(0, run), client)
            except Failed:
                failed += 1
            finally:
                client.close()
        return failed

    return uvloop.run(scene())


def test_every_request_is_acknowledged_and_recorded_and_nothing_is_sent(journal: Journal) -> None:
    assert play(Null(journal, 1, 0.0, 0.0), range(3)) == 0
    rows = rows_of(journal)
    assert [Operation(op).name for op in rows["op"][:REQUESTS]] == [
        "create_run",
        "log_params",
        "log_metrics",
        "get_run",
        "log_artifact",
        "get_run",
        "finish_run",
    ]
    assert rows["run"].tolist() == [run for run in range(3) for _ in range(REQUESTS)]
    assert set(rows["outcome"]) == {Outcome.ok}
    assert set(rows["status"]) == {200}
    assert not rows["sent"].any()
    assert not rows["received"].any()


def test_each_answer_takes_as_long_as_asked_for(journal: Journal) -> None:
    play(Null(journal, 1, 0.005, 0.0), range(2))
    rows = rows_of(journal)
    # The loop's timers count milliseconds.
    assert (rows["end"] - rows["start"]).min() >= 4_000_000


def failing(journal: Journal, seed: int, share: float, runs: int = 200) -> set[tuple[int, int]]:
    null = Null(journal, seed, 0.0, share)
    return {(run, seq) for run in range(runs) for seq in range(10) if null.fails(run, seq)}


def test_which_requests_fail_follows_from_the_seed_alone(journal: Journal) -> None:
    assert failing(journal, 1, 0.3) == failing(journal, 1, 0.3)
    assert failing(journal, 1, 0.3) != failing(journal, 2, 0.3)


def test_more_fail_where_a_larger_share_fails_and_the_same_ones_among_them(journal: Journal) -> None:
    shares = [0.0, 0.05, 0.3, 0.9, 1.0]
    sets = [failing(journal, 1, share) for share in shares]
    assert all(fewer <= more for fewer, more in pairwise(sets))
    assert [len(failed) / 2000 for failed in sets] == pytest.approx(shares, abs=0.03)
    assert (len(sets[0]), len(sets[-1])) == (0, 2000)


def test_a_failed_request_is_recorded_and_ends_its_run(journal: Journal) -> None:
    null = Null(journal, 1, 0.0, 0.2)
    failed = play(null, range(50))
    rows = rows_of(journal)
    bad = rows[rows["outcome"] != Outcome.ok]
    assert 0 < failed < 50
    assert len(bad) == failed
    assert set(bad["outcome"]) == {Outcome.server_error}
    assert set(bad["status"]) == {500}
    assert (bad["end"] > bad["start"]).all()
    for run in range(50):
        mine = rows[rows["run"] == run]
        first = next((seq for seq in range(REQUESTS) if null.fails(run, seq)), REQUESTS - 1)
        assert mine["seq"].tolist() == list(range(first + 1))


def test_a_request_that_is_interrupted_is_recorded_so(journal: Journal) -> None:
    async def scene() -> None:
        task = asyncio.create_task(Null(journal, 1, 3600.0, 0.0).client(7, 0).create_run("a", []))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    uvloop.run(scene())
    (row,) = rows_of(journal)
    assert (row["run"], row["outcome"], row["status"]) == (7, Outcome.interrupted, 0)
    assert row["end"] > row["start"]
