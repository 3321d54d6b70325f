"""Ranks, nodes and jobs die under srun: nobody hangs, the exit code says so, and nothing measured is lost."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcstress.folder import RunFolder
from hpcstress.plan import Plan
from hpcstress.result import Result
from tests.mpi.deaths import HASTY, STEADY, judge, until_rows
from tests.mpi.launch import Launched, kill
from tests.slurm.cluster import Cluster
from tests.slurm.test_submit import _is, _ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RANKS = 4
# The one that is gone, or one that hangs because it is: MPI itself may never return from a word to it.
MISSED = r"Nothing was heard of rank \d on n\d for 5 s|rank \d on n\d hangs in MPI for \d+ s"
WHERE = ("--mpi=pmi2", "-N4", "-n4")


@contextmanager
def running(
    cluster: Cluster, folder: RunFolder, *options: str, plan: Plan = STEADY, **environment: str
) -> Iterator[Launched]:
    command = ["srun", *WHERE, *options, sys.executable, "-m", "tests.mpi.hurried", str(folder.path), plan.to_json()]
    environment = {"SILENT": "5", **environment}
    with cluster.running(*command, cwd=folder.path.parent, **environment) as job:
        yield job


def job_id(cluster: Cluster) -> str:
    return cluster.call("squeue", "--noheader", "--format=%i").strip()


@pytest.mark.parametrize("options", [["--kill-on-bad-exit=0"], ["--kill-on-bad-exit=1"]], ids=["without", "with"])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_is_killed_ends_the_job_with_and_without_kill_on_bad_exit(
    cluster: Cluster, tmp_path: Path, options: list[str], victim: int
) -> None:
    folder = RunFolder(tmp_path / "job")
    with running(cluster, folder, *options) as job:
        until_rows(folder, RANKS, job)
        [pid] = [pid for pid in _ranks(folder.path) if _is(pid, f"SLURM_PROCID={victim}")]
        kill(pid)
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    if options == ["--kill-on-bad-exit=0"]:
        # Slurm would have let the others wait.
        assert re.search(MISSED, complaints), complaints
        assert f"n{victim + 1}: task {victim}: Killed" in complaints
    judge(folder, RANKS)


def test_a_node_without_power_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    with running(cluster, folder) as job:
        until_rows(folder, RANKS, job)
        cluster.cut("n3")
        try:
            code, _, complaints = job.end()
        finally:
            cluster.restore("n3")
        job.until_gone()
    assert code != 0
    assert re.search(MISSED, complaints), complaints
    judge(folder, RANKS)


def test_a_node_whose_disk_is_full_ends_the_job_with_its_sentence(cluster: Cluster, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    with running(cluster, folder, plan=HASTY, SILENT="60", FULL="2") as job:
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    assert "rank-000002.rows cannot grow: File too large." in complaints
    assert "rank 2 on n3 failed" in complaints
    assert "Traceback" not in complaints
    judge(folder, RANKS)


CUTS: dict[str, Callable[[Cluster, str], object]] = {
    "USR1": lambda cluster, job: cluster.call("scancel", "--signal=USR1", job),
    "USR2": lambda cluster, job: cluster.call("scancel", "--signal=USR2", job),
    "TERM": lambda cluster, job: cluster.call("scancel", "--signal=TERM", job),
    "scancel": lambda cluster, job: cluster.call("scancel", job),
    "time limit": lambda cluster, job: cluster.call("scontrol", "update", f"jobid={job}", "timelimit=0:01"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_job_that_is_cut_short_keeps_its_result(cluster: Cluster, tmp_path: Path, cut: str) -> None:
    folder = RunFolder(tmp_path / "job")
    with running(cluster, folder, SILENT="60") as job:
        until_rows(folder, RANKS, job)
        CUTS[cut](cluster, job_id(cluster))
        code, _, complaints = job.end()
        job.until_gone()
    assert code != 0
    if not folder.result.exists():
        # Slurm waits two seconds here before it kills: on a busy machine that is too short for writing it.
        assert cut in ("scancel", "time limit"), complaints
        judge(folder, RANKS)
        return
    with Result(folder.result) as result:
        assert not result.complete
        assert result.length
        assert any(note.startswith("Stopped by a signal in step") for note in result.notes)
