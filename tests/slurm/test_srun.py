"""`srun python -m hpcstress` on four nodes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcstress.result import Result
from tests.fake_mlflow import FakeMlflow, serving
from tests.slurm.cluster import NODES, Cluster

pytestmark = pytest.mark.slow

TINY = ["--repeats=1", "--warmup=0", "--params=5", "--artifact-size=1kB", "--sleep-time=0", "--timeout=30"]


def run(
    cluster: Cluster, folder: Path, server: FakeMlflow, *words: str, where: tuple[str, ...] = ("--mpi=pmi2",)
) -> tuple[int, str, str]:
    return cluster.srun(*where, "-N4", "--", "-m", "hpcstress", *words, cwd=folder, **server.environment)


def test_eight_ranks_on_four_nodes_make_one_whole_result(cluster: Cluster, tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        where = ("--mpi=pmi2", "-n8", "--ntasks-per-node=2")
        code, told, complaints = run(cluster, tmp_path, server, *TINY, "--runs=8,16", "--output=job", where=where)
        assert (code, complaints.count("Traceback")) == (0, 0), complaints
        assert len(server.runs) == 24
    assert "INCOMPLETE" not in told
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.facts["ranks"] == 8
        assert result.facts["slurm"]["SLURM_JOB_NUM_NODES"] == "4"
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist() == [8, 16]
        assert {*result.attempts(["rank"])["rank"].tolist()} == {*range(8)}
        assert {*result.attempts(["status"])["status"].tolist()} <= {0, 200}


def test_sixty_four_ranks(cluster: Cluster, tmp_path: Path) -> None:
    with serving() as server:
        where = ("--mpi=pmi2", "-n64", "--ntasks-per-node=16")
        code, _, complaints = run(cluster, tmp_path, server, *TINY, "--runs=64", "--output=job", where=where)
        assert code == 0, complaints
        assert len(server.runs) == 64
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.table("audit")["intact"].tolist() == [64]
        assert len(result.table("ranks")) == 64
