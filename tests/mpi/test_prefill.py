"""What has to be there before the load, made by all ranks together, also after a job that was killed or stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hpcstress.result import Result
from tests.fake_mlflow import FakeMlflow, Faults, serving
from tests.mpi.launch import launched, until
from tests.test_prefill import PLAN, made, wanted, whole

pytestmark = pytest.mark.slow


def words(folder: Path) -> list[str]:
    return ["-m", "tests.mpi.job", str(folder), PLAN.to_json()]


def begun(server: FakeMlflow) -> bool:
    return len(made(server)[0]) >= 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_make_every_unit_once(tmp_path: Path, ranks: int) -> None:
    with serving() as server:
        with launched(ranks, *words(tmp_path / "job"), cwd=tmp_path, **server.environment) as job:
            assert job.end() == (0, "", "")
        assert whole(server)
        assert sum(seen.path.endswith("runs/create") for seen in server.requests) == 12
    with Result(tmp_path / "job" / "result.h5") as result:
        assert set(result.attempts(["step"])["step"]) == {0}
        assert result.facts["prefill"] == {
            "experiment_id": next(iter({run.experiment_id for run in made(server)[0]})),
            "holds": wanted().holds,
            "made": 17,
        }


def test_what_a_killed_job_has_left_is_continued_by_another_with_other_ranks(tmp_path: Path) -> None:
    with serving(Faults(delay=0.1)) as server:
        with launched(3, *words(tmp_path / "one"), cwd=tmp_path, **server.environment) as job:
            until(lambda: begun(server))
            job.kill(job.process.pid)
        assert not whole(server)
        before = {run.id for run in made(server)[0] if run.params}
        server.faults.delay = 0.0
        with launched(2, *words(tmp_path / "two"), cwd=tmp_path, **server.environment) as job:
            assert job.end() == (0, "", "")
        assert whole(server)
        assert before <= {run.id for run in made(server)[0]}


def test_a_job_that_is_stopped_before_its_load_says_so_and_its_units_stay(tmp_path: Path) -> None:
    with serving(Faults(delay=0.1)) as server:
        with launched(2, *words(tmp_path / "job"), cwd=tmp_path, **server.environment) as job:
            until(lambda: begun(server))
            os.killpg(job.process.pid, signal.SIGINT)
            code, _, _ = job.end()
        assert code == 3
        assert not whole(server)
        assert not any(seen.path.endswith("get-history") for seen in server.requests)
    with Result(tmp_path / "job" / "result.h5") as result:
        assert not result.complete
        assert result.notes[0] == "Stopped by a signal before the load."
        assert result.length == 0
