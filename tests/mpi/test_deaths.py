"""A rank dies under mpiexec: nobody hangs, the exit code says so, nothing measured is lost, nothing is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hpcstress.folder import RunFolder
from tests.mpi.deaths import HASTY, STEADY, judge, memory_of, until_rows
from tests.mpi.launch import kill, launched
from tests.mpi.test_kills import journals

pytestmark = pytest.mark.slow

RANKS = 4


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_killed_ends_the_job_and_its_shared_memory_is_freed(tmp_path: Path, victim: int) -> None:
    folder = RunFolder(tmp_path / "job")
    with launched(RANKS, "-m", "tests.mpi.job", str(folder.path), STEADY.to_json(), cwd=tmp_path) as job:
        until_rows(folder, RANKS, job)
        memory = memory_of(job)
        assert any(Path(name).exists() for name in memory)
        kill(next(journal.pid for journal in journals(folder) if journal.rank == victim))
        code, _, _ = job.end()
        job.until_gone()
    assert code != 0
    judge(folder, RANKS)
    assert not any(Path(name).exists() for name in memory)


def test_a_rank_whose_disk_is_full_ends_the_job_with_its_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    words = ["-m", "tests.mpi.hurried", str(folder.path), HASTY.to_json()]
    with launched(RANKS, *words, cwd=tmp_path, SILENT="60", FULL="2") as job:
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    assert "rank-000002.rows cannot grow: File too large." in complaints
    assert "rank 2 on " in complaints
    assert "Traceback" not in complaints
    judge(folder, RANKS)


def test_a_rank_that_is_stopped_is_missed_by_the_next_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    words = ["-m", "tests.mpi.hurried", str(folder.path), STEADY.to_json()]
    with launched(RANKS, *words, cwd=tmp_path, SILENT="5") as job:
        until_rows(folder, RANKS, job)
        os.kill(next(journal.pid for journal in journals(folder) if journal.rank == 0), signal.SIGSTOP)
        code, _, complaints = job.end()
    assert code != 0
    assert "Nothing was heard of rank 0 on " in complaints
    assert "The job of 4 ranks ends" in complaints
    judge(folder, RANKS)


# Rank 1 never joins, or it is gone between the start of MPI and that of the watch.
_LOST = """
import os, signal, sys
from hpcstress import ranks
from hpcstress.launcher import promised_rank
ranks._JOIN_SECONDS = int(sys.argv[2])
ranks._STORMS = 0
if promised_rank(os.environ) == 1:
    if sys.argv[1] == "before":
        signal.pause()
    load = ranks._load_mpi
    ranks._load_mpi = lambda: (load(), signal.pause())
    ranks._JOIN_SECONDS = 1000
with ranks.world():
    sys.exit("they are together")
"""


# By then the others have come as far as they can.
@pytest.mark.parametrize(("when", "seconds"), [("before", 4), ("after", 10)])
def test_who_waits_for_a_rank_while_mpi_starts_ends_in_the_end(tmp_path: Path, when: str, seconds: int) -> None:
    with launched(3, "-c", _LOST, when, str(seconds), cwd=tmp_path) as job:
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    assert f"Timeout (0:00:{seconds:02})!" in complaints
    assert ("in _load_mpi\n" if when == "before" else "in _watch\n") in complaints
    assert "together" not in complaints
