from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hpcstress.ranks import _SENDERS_AT_ONCE, World
from tests.mpi.bodies import BODIES
from tests.mpi.launch import launched, launched_as

HOST = os.uname().nodename


@pytest.mark.parametrize("body", BODIES)
def test_one_rank_needs_no_mpi_for(body: str) -> None:
    BODIES[body](World())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("body", BODIES)
def test_in_any_world(tmp_path: Path, body: str, ranks: int) -> None:
    with launched(ranks, "-m", "tests.mpi.bodies", body, str(ranks), cwd=tmp_path) as job:
        code, told, complaints = job.end()
        assert complaints == ""
        assert (code, told) == (0, "it holds\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    ["every_row_comes_to_rank_0_in_pieces_of_bounded_size", "rank_0_stays_small_while_many_rows_arrive"],
)
def test_rows_come_from_more_ranks_than_may_send_at_a_time(tmp_path: Path, body: str) -> None:
    ranks = str(_SENDERS_AT_ONCE + 3)
    with launched(int(ranks), "-m", "tests.mpi.bodies", body, ranks, cwd=tmp_path) as job:
        assert job.end() == (0, "it holds\n", "")


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    with launched(3, "-m", "tests.mpi.bodies", "one_rank_trips_while_the_others_wait", "3", cwd=tmp_path) as job:
        code, told, complaints = job.end()
        assert (code, told) == (1, "")
        assert complaints.count("Traceback") == 1
        assert "RuntimeError: tripped over a wire\n" in complaints
        assert f"rank 2 on {HOST} failed: the job of 3 ranks ends." in complaints
        job.until_gone()


@pytest.mark.slow
def test_a_rank_that_refuses_alone_ends_the_job_with_its_sentence(tmp_path: Path) -> None:
    with launched(3, "-m", "tests.mpi.bodies", "one_rank_refuses_alone", "3", cwd=tmp_path) as job:
        code, told, complaints = job.end()
        assert (code, told) == (1, "")
        assert "Traceback" not in complaints
        assert "This machine has no room.\n" in complaints
        assert f"rank 2 on {HOST} failed" in complaints
        job.until_gone()


@pytest.mark.slow
def test_ranks_that_refuse_together_are_not_aborted(tmp_path: Path) -> None:
    # The command line says the sentence once; here every rank lets the refusal through to the interpreter.
    with launched(3, "-m", "tests.mpi.bodies", "all_refuse_together", "3", cwd=tmp_path) as job:
        code, _, complaints = job.end()
        assert code == 1
        assert complaints.count("hpcstress.errors.Refusal: Nobody goes on.") == 3
        assert " failed: the job" not in complaints
        job.until_gone()


@pytest.mark.slow
def test_a_launcher_that_does_not_belong_to_the_library_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    words = ["-m", "hpcstress", "--client=null", "--output=job"]
    with launched_as([sys.executable, *words], cwd=tmp_path, PMI_SIZE="2", PMI_RANK="0") as job:
        code, told, complaint = job.end()
    assert (code, told) == (1, "")
    assert complaint.startswith("The launcher started 2 ranks, but the MPI library (MPICH Version: ")
    assert " sees 1: they do not belong together. Use the launcher of that library" in complaint
    assert complaint.count("\n") == 1
    with launched_as([sys.executable, *words], cwd=tmp_path, PMI_SIZE="2", PMI_RANK="1") as job:
        assert job.end() == (1, "", "")
    assert [*tmp_path.iterdir()] == []
