from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcstress.launcher import (
    clock_name,
    is_first_of_node,
    promised_rank,
    promised_size,
    seconds_since_start,
    wrong_size,
)

MPICH = {"PMI_SIZE": "4", "PMI_RANK": "3"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}
CRAY = {"PALS_SIZE": "4", "PALS_RANKID": "3"}
MVAPICH = {"MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_RANK": "3"}
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}


@pytest.mark.parametrize("environment", [MPICH, OPEN_MPI, CRAY, MVAPICH, SLURM])
def test_every_launcher_says_how_many_ranks_there_are_and_which_this_is(environment: dict[str, str]) -> None:
    assert promised_size(environment) == 4
    assert promised_rank(environment) == 3


@pytest.mark.parametrize("environment", [{}, {"PATH": "/bin"}, {"SLURM_NTASKS": "8"}, {"SLURM_JOB_ID": "1"}])
def test_without_a_launcher_there_is_one_rank(environment: dict[str, str]) -> None:
    assert promised_size(environment) is None
    assert promised_rank(environment) == 0


def test_an_mpirun_within_a_step_of_slurm_goes_before_the_step() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    for inner in (MPICH, OPEN_MPI, CRAY, MVAPICH):
        assert promised_size(step | inner) == 4
        assert promised_rank(step | inner) == 3


@pytest.mark.parametrize("value", ["", "many", "-1", "1.5"])
def test_what_is_no_number_is_no_launchers_word(value: str) -> None:
    assert promised_size({"PMI_SIZE": value}) is None
    assert promised_size({"PMI_SIZE": value} | SLURM) == 4
    assert promised_rank({"PMI_RANK": value}) == 0


def test_rank_0_is_a_rank() -> None:
    assert promised_rank({"PMI_RANK": "0", "SLURM_PROCID": "3"}) == 0


@pytest.mark.parametrize(
    "name", ["MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"]
)
def test_the_first_rank_of_a_node_is_that_by_its_number_there(name: str) -> None:
    # Whichever it is in the job.
    assert is_first_of_node({name: "0", "PMI_RANK": "48"})
    assert not is_first_of_node({name: "1", "PMI_RANK": "49"})
    assert is_first_of_node({"PMI_RANK": "49"})


def test_launcher_and_library_that_do_not_belong_together_are_named_with_what_to_do() -> None:
    sentence = wrong_size(4, 1, "MPICH Version: 4.2")
    assert sentence.startswith("The launcher started 4 ranks, but the MPI library (MPICH Version: 4.2) sees 1:")
    assert "Use the launcher of that library" in sentence
    assert wrong_size(1, 2, "MPICH").startswith("The launcher started 1 rank, but")


def clock_of(*launch: str) -> str:
    """Return the name of the clock that a process reads."""
    words = [sys.executable, "-c", "from hpcstress.launcher import clock_name; print(clock_name())"]
    return subprocess.run([*launch, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_processes_of_one_kernel_read_the_same_clock() -> None:
    assert clock_of() == clock_name()


def test_those_in_a_time_namespace_of_their_own_read_another() -> None:
    # As another user where that is allowed, because only root may do it without one.
    namespace = ["unshare", "--user", "--map-root-user", "--time", "--monotonic", "1000"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine makes no time namespaces")
    assert clock_of(*namespace) != clock_name()


def test_who_cannot_be_told_apart_from_others_shares_a_clock_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.launcher.Path", lambda _: Path("/nonexistent"))
    assert clock_name() != clock_name()


def test_kernels_without_time_namespaces_have_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such(path: Path) -> Path:
        raise FileNotFoundError(path)

    whole = clock_name()
    monkeypatch.setattr(Path, "readlink", no_such)
    assert whole.startswith(f"{clock_name()} time:[")


def test_a_process_knows_since_when_it_runs() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from hpcstress.launcher import seconds_since_start; print(seconds_since_start())"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Its clock ticks a hundred times a second.
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert -tick <= float(told.stdout) < 300
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    first = seconds_since_start()
    second = seconds_since_start()
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 <= second - first <= after - before
