from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.result import Result
from hpcstress.schedule import arrivals
from tests.fake_mlflow import Faults, serving
from tests.jobs import SMALL, requests
from tests.mpi.launch import launched

pytestmark = pytest.mark.slow

LOGGING = replace(SMALL, workload="log-batch", users=(1, 4), iterations=6, params=2, metrics=2, tags=1, warmup=2)


def words(folder: Path, plan: Plan) -> list[str]:
    return ["-m", "tests.mpi.job", str(folder), plan.to_json()]


def test_the_same_users_leave_the_same_runs_from_any_number_of_ranks(tmp_path: Path) -> None:
    left: list[Any] = []
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        with serving(password="correct-horse") as server:
            with launched(ranks, *words(folder, LOGGING), cwd=tmp_path, **server.environment) as job:
                assert job.end() == (0, "", "")
            left.append(server.contents())
        with Result(folder / "result.h5") as result:
            rows = result.rows(("rank", "step", "run", "op"))
            assert (rows["rank"] == rows["run"] % np.array([1, 4])[rows["step"]] % ranks).all()
            assert np.count_nonzero(rows["op"] == Operation.log_batch) == (1 + 4) * 6
            audit = result.table("audit")
            assert audit["checked"].tolist() == audit["intact"].tolist() == [1, 4]
            assert result.complete
    assert left[0] == left[1] == left[2]


def test_users_whose_runs_fail_are_read_back_by_other_ranks(tmp_path: Path) -> None:
    plan = replace(LOGGING, users=(5,), iterations=20)
    with serving(Faults(exhausted=7, hang_up=11, at="log-batch")) as server:
        with launched(3, *words(tmp_path / "job", plan), cwd=tmp_path, **server.environment) as job:
            assert job.end() == (0, "", "")
        created = len(server.runs) - 2
    with Result(tmp_path / "job" / "result.h5") as result:
        [step], [audit] = result.table("steps"), result.table("audit")
        assert step["runs_begun"] == created == audit["checked"] == audit["intact"] > 5
        rows = requests(result)
        batches = rows[rows["op"] == Operation.log_batch]
        assert np.bincount(batches["run"] % 5).tolist() == [20] * 5


# In the first step there are more ranks than users, or fewer: no arrival is dealt to a rank that has nobody for it.
@pytest.mark.parametrize(("users", "ranks"), [(2, 3), (5, 3)])
def test_arrivals_of_all_ranks_are_those_of_the_schedule(tmp_path: Path, users: int, ranks: int) -> None:
    open_model = {"users": (users, ranks), "duration": 1, "rate": 60, "arrivals": "poisson"}
    plan = replace(SMALL, workload="create-run", client="null", seed=9, **open_model)
    with launched(ranks, *words(tmp_path / "job", plan), cwd=tmp_path) as job:
        assert job.end() == (0, "", "")
    awaited = [*takewhile(lambda instant: instant < 10**9, arrivals(60, "poisson", 9, 1, 0, 1))]
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, health = result.rows(("step", "rank", "due", "start")), result.table("health")
    rows, health = (table[table["step"] == table["step"].min()] for table in (rows, health))
    assert len(rows) + health["dropped"].sum() == len(awaited)
    assert {*rows["due"].tolist()} <= {*awaited}
    assert len({*rows["due"].tolist()}) == len(rows)
    assert (rows["start"] >= rows["due"]).all()
    assert {*rows["rank"].tolist()} <= {*range(min(users, ranks))}


def test_memory_does_not_grow_with_the_number_of_requests(tmp_path: Path) -> None:
    plan = replace(SMALL, client="null", users=(20,), sweep="iterations=2000,6000", artifacts=0, repeats=2)
    with launched(2, *words(tmp_path / "job", plan), cwd=tmp_path) as job:
        assert job.end() == (0, "", "")
    with Result(tmp_path / "job" / "result.h5") as result:
        few, many, *_ = (step["attempts"] for step in result.table("steps"))
        health = result.table("health")
    assert (few, many) == (200_000, 600_000)
    # What was needed to gather a step's rows is known in the next one.
    before, after = (health["max_rss"][health["step"] == step] for step in (1, 2))
    # The rows that are more are 26 MB, and as Python's objects some hundreds. Rank 0 keeps a few numbers of each run.
    assert (after - before < [16e6, 6e6]).all()
