from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcstress.ranks import _SENDERS_AT_ONCE, _UNHEARD_WORDS, World, _Neighbours
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


def test_one_that_does_not_listen_is_told_so_much_and_no_more() -> None:
    class Deaf:
        """Take words, and deliver them when the test wants."""

        rank, size, said, hears = 0, 2, 0, False

        def Dup(self) -> Deaf:
            return self

        def isend(self, _word: str, _rank: int) -> Any:
            self.said += 1
            return SimpleNamespace(test=lambda: (self.hears, None))

    comm = Deaf()
    neighbours = _Neighbours(comm)
    for _ in range(5 * _UNHEARD_WORDS):
        neighbours.speak("here")
    assert comm.said == _UNHEARD_WORDS
    comm.hears = True
    neighbours.speak("here")
    assert comm.said == _UNHEARD_WORDS + 1


@pytest.mark.slow
@pytest.mark.parametrize(("own", "used"), [({}, "0"), ({"MPIR_CVAR_CH4_OFI_ENABLE_AM": "1"}, "1")])
def test_what_somebody_has_set_for_mpi_goes_before_what_saves_memory(
    tmp_path: Path, own: dict[str, str], used: str
) -> None:
    words = (
        "import os; from hpcstress.ranks import world\nwith world(): print(os.environ['MPIR_CVAR_CH4_OFI_ENABLE_AM'])"
    )
    with launched(1, "-c", words, cwd=tmp_path, **own) as job:
        assert job.end() == (0, f"{used}\n", "")


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
