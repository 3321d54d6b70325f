"""The scripts in `slurm/`, as a site calls them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstress.result import Result
from tests.fake_mlflow import serving
from tests.mpi.launch import ROOT, Launched, until
from tests.mpi.test_jobs import no_report
from tests.slurm.cluster import Cluster
from tests.slurm.test_srun import TINY

pytestmark = pytest.mark.slow

SMALL = ["--nodes=4", "--ntasks-per-node=1"]


def sbatch(
    cluster: Cluster,
    folder: Path,
    *words: str,
    look: Callable[[Launched], object] = lambda _: None,
    **environment: str,
) -> tuple[int, str]:
    """Submit a script, `look` at the job, wait for its end; return the exit code and what it has logged."""
    command = ["sbatch", "--parsable", "--output=log", "--open-mode=append", *words]
    environment = {"PYTHON": sys.executable, **no_report(folder), **environment}
    with cluster.running(*command, cwd=folder, **environment) as process:
        code, told, complaints = process.end()
        assert code == 0, complaints
        look(process)
        # `sbatch --wait` looks only every ten seconds.
        until(lambda: not cluster.call("squeue", "--noheader"), 110)
        ended = cluster.call("scontrol", "show", "job", told.strip())
    codes = [int(number) for number in re.findall(r"ExitCode=(\d+):", ended)]
    return max(codes), (folder / "log").read_text()


def test_the_generic_script_plays_what_its_words_say(cluster: Cluster, tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        script = str(ROOT / "slurm" / "generic.sbatch")
        words = [*TINY, "--runs=4", "--output=job"]
        code, log = sbatch(cluster, tmp_path, *SMALL, script, *words, **server.environment)
        assert code == 0, log
        assert len(server.runs) == 4
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.facts["ranks"] == 4
        assert result.table("audit")["intact"].tolist() == [4]


def test_an_array_plays_one_plan_after_the_other(cluster: Cluster, tmp_path: Path) -> None:
    with serving() as server:
        script = str(ROOT / "slurm" / "array.sbatch")
        words = [*TINY, "--users=2", "--iterations=2", "--duration=0"]
        code, log = sbatch(cluster, tmp_path, "--nodes=2", "--ntasks-per-node=1", script, *words, **server.environment)
        assert code == 0, log
    began = {}
    for path in sorted((tmp_path / "results").glob("*/result.h5")):
        with Result(path) as result:
            assert result.complete
            steps = result.table("steps")
            began[path.parent.name[-1]] = float(steps["began"][0])
    assert [*began] == ["0", "1", "2"]
    assert sorted(began, key=lambda number: began[number]) == ["0", "1", "2"]


def test_a_script_ends_with_the_exit_code_of_the_tool(cluster: Cluster, tmp_path: Path) -> None:
    code, log = sbatch(
        cluster, tmp_path, "--nodes=2", "--ntasks-per-node=1", str(ROOT / "slurm" / "generic.sbatch"), "--runs=ten"
    )
    assert code == 2
    assert "--runs: The ladder 'ten' is not a list of numbers" in log
    assert "Traceback" not in log


def test_the_script_for_juwels_plays_where_its_modules_and_gpus_are_left_out(cluster: Cluster, tmp_path: Path) -> None:
    script = str(ROOT / "slurm" / "juwels-booster.sbatch")
    # Its cluster speaks the PMI of its library by default.
    environment = {"SLURM_MPI_TYPE": "pmi2", "HPCSTRESS": sys.prefix, "PROJECT": "/nonexistent"}
    words = ["--partition=debug", "--gres=none", "--nodes=2", "--ntasks-per-node=2", script]
    with serving() as server:
        words += [*TINY, "--runs=4", "--output=job"]
        code, log = sbatch(cluster, tmp_path, *words, **environment, **server.environment)
        assert code == 0, log
    with Result(tmp_path / "job" / "result.h5") as result:
        assert (result.complete, result.facts["ranks"]) == (True, 4)


# What else may be wrong with MPI.


def test_srun_that_does_not_speak_with_the_library_is_told_once(cluster: Cluster, tmp_path: Path) -> None:
    words = ["--mpi=none", "-N4", "-n4", "--", "-m", "hpcstress", "--client=null", "--output=job"]
    code, told, complaints = cluster.srun(*words, cwd=tmp_path)
    assert (code, told) == (1, "")
    assert complaints.count("The launcher started 4 ranks, but the MPI library (MPICH Version: ") == 1
    assert "srun --mpi=pmi2" in complaints
    assert [*tmp_path.iterdir()] == []
