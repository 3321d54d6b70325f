"""`srun python -m hpcstress` on four nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcstress.result import Result
from tests.fake_mlflow import FakeMlflow, serving
from tests.jobs import SMALL
from tests.mpi.test_jobs import no_report
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow

TINY = ["--repeats=1", "--warmup=0", "--params=5", "--artifact-size=1kB", "--sleep-time=0", "--timeout=30"]


def run(
    cluster: Cluster, folder: Path, server: FakeMlflow, *words: str, where: tuple[str, ...] = ("--mpi=pmi2",)
) -> tuple[int, str, str]:
    return cluster.srun(
        *where, "-N4", "--", "-m", "hpcstress", *words, cwd=folder, **no_report(folder), **server.environment
    )


def test_eight_ranks_on_four_nodes_make_one_whole_result(cluster: Cluster, tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        where = ("--mpi=pmi2", "-n8", "--ntasks-per-node=2")
        code, told, complaints = run(cluster, tmp_path, server, *TINY, "--runs=8,16", "--output=job", where=where)
        assert (code, complaints.count("Traceback")) == (0, 0), complaints
        assert len(server.runs) == 24
    assert told.count("The result is ") == 1
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.facts["ranks"] == 8
        assert result.facts["slurm"]["SLURM_JOB_NUM_NODES"] == "4"
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist() == [8, 16]
        assert {*result.attempts(["rank"])["rank"].tolist()} == {*range(8)}
        assert {*result.attempts(["status"])["status"].tolist()} <= {0, 200}


def test_sixty_four_ranks(cluster: Cluster, tmp_path: Path) -> None:
    plan = replace(SMALL, runs=(64,), timeout=60)
    where = ["--mpi=pmi2", "-N4", "-n64", "--ntasks-per-node=16", "--"]
    with serving() as server:
        words = [*where, "-m", "tests.mpi.job", "job", plan.to_json()]
        code, _, complaints = cluster.srun(*words, cwd=tmp_path, **server.environment)
        assert (code, complaints) == (0, "")
        assert len(server.runs) == 64
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.table("audit")["intact"].tolist() == [64]
        assert len(result.table("ranks")) == 64


def test_the_doctor_has_a_row_for_every_node(cluster: Cluster, tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        where = ("--mpi=pmi2", "-n8", "--ntasks-per-node=2")
        code, told, complaints = run(cluster, tmp_path, server, "doctor", where=where)
        assert not server.load()
    assert (code, complaints) == (0, "")
    assert "8 ranks on 4 nodes, MPI: MPICH" in told
    rows = [[cell.strip() for cell in line.split("│")[1:7]] for line in told.splitlines() if "3.17.2" in line]
    assert rows == [
        [node, ranks, "yes", "none", "none", "password"]
        for node, ranks in zip(("n1", "n2", "n3", "n4"), ("0-1", "2-3", "4-5", "6-7"), strict=True)
    ]
