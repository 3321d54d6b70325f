from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from hpcstress.order import submit
from hpcstress.result import Result
from hpcstress.site import Site
from hpcstress.submission import Submission
from tests.fake_slurm import FakeSlurm, install
from tests.mpi.launch import until
from tests.mpi.test_jobs import no_report

GOLDEN = Path(__file__).parent / "golden"
SERVER = "https://mlflow.example"
NULL = {"client": "null", "runs": "6", "repeats": 1, "warmup": 0, "sleep_time": 0}


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's programs, an empty folder, a shell without a server, and no report at the end."""
    for name in list(os.environ):
        if re.match(r"MLFLOW|MANTIK|PMI|OMPI|PALS|SLURM|SBATCH|MV2", name):
            monkeypatch.delenv(name)
    for name, value in no_report(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return install(tmp_path / "bin", monkeypatch)


# Scripts. Each is compared whole with a file; who changes one reads the difference.


def compare(slurm: FakeSlurm, folder: Path, *names: str) -> None:
    """Compare the scripts that were submitted with the files of these names."""
    for name, script in zip(names, slurm.scripts, strict=True):
        plain = script.replace(str(folder), "FOLDER").replace(sys.executable, "PYTHON")
        assert plain.rstrip() == (GOLDEN / f"{name}.sbatch").read_text().rstrip()


def test_the_script_of_one_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    submit("parallel-runs", nodes=4, ranks_per_node=8, uri=SERVER, output="out")
    compare(slurm, tmp_path, "one-job")


def test_the_script_at_juwels_booster(tmp_path: Path, slurm: FakeSlurm) -> None:
    submit(
        "mantik-parallel-runs",
        nodes=2,
        ranks_per_node=48,
        site="juwels-booster",
        account="hai",
        time_limit="2h",
        uri=SERVER,
        runs="100",
        output="out",
    )
    compare(slurm, tmp_path, "juwels-booster")


def test_the_scripts_of_two_plans_on_two_sizes(tmp_path: Path, slurm: FakeSlurm) -> None:
    submit(["parallel-runs", "create-run"], nodes=[1, 2], uri=SERVER, output="out")
    compare(slurm, tmp_path, "array", "array-after-it")


def test_the_script_of_a_site_with_everything(tmp_path: Path, slurm: FakeSlurm) -> None:
    site = Site(
        partition="fast",
        account="p1",
        modules=("GCC", "OpenMPI"),
        mpi="pmix",
        interface="ib0",
        proxy="http://proxy.example:3128",
        python="apptainer exec /shared/hpcstress.sif python",
        cores_per_node=64,
        setup=("export MINE=1",),
        sbatch={"gres": "gpu:4", "exclusive": True},
    )
    submit("parallel-runs", nodes=2, ranks_per_node=4, site=site, time_limit="90", uri=SERVER, output="out of here")
    compare(slurm, tmp_path, "everything")


# This machine.


def ended(submission: Submission) -> tuple[int, str]:
    said: list[str] = []
    code = submission.wait(said.append)
    return code, "\n".join(said)


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
def test_debug_plays_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.job._LEAD_NS", 5_000_000)
    monkeypatch.setitem(sys.modules, "analysis.report", None)
    submission = submit("parallel-runs", cluster="debug", output="out", **NULL)
    assert ended(submission) == (
        0,
        f"Job debug (parallel-runs-1x1) has ended with exit code 0: {tmp_path}/out/result.h5",
    )
    assert submission.results == [tmp_path / "out" / "result.h5"]


@pytest.mark.slow
def test_this_machine_s_mpiexec_starts_one_world_per_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    submission = submit("parallel-runs", nodes=[1, 2], ranks_per_node=2, cluster="local", output="out", **NULL)
    code, said = ended(submission)
    assert code == 0, said
    assert [path.parent.name for path in submission.results] == ["parallel-runs-1x2", "parallel-runs-2x2"]
    ranks = []
    for path in submission.results:
        with Result(path) as result:
            assert result.complete
            ranks.append(result.facts["ranks"])
    assert ranks == [2, 4]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"jobs.json", "local.out", "local.err"} <= {path.name for path in files}
    assert not [path for path in files if b"correct-horse" in path.read_bytes()]


@pytest.mark.slow
def test_a_job_of_this_machine_that_refuses_is_told_with_its_sentence() -> None:
    submission = submit("parallel-runs", ranks_per_node=2, cluster="local", output="out", uri="http://127.0.0.1:9")
    code, said = ended(submission)
    assert code == 1
    assert "The server http://127.0.0.1:9 cannot be reached (signing in): start it, or correct its address." in said


@pytest.mark.slow
def test_a_job_of_this_machine_is_ended_by_its_number_and_keeps_what_it_measured(tmp_path: Path) -> None:
    submission = submit(
        "parallel-runs", ranks_per_node=2, cluster="local", output="out", **NULL | {"null_delay": 3600, "runs": "6"}
    )
    assert submission.process is not None
    folder = submission.jobs[0].folder
    until(lambda: any(event["event"] == "step" for event in folder.events()))
    submission.process.terminate()
    code, said = ended(submission)
    assert (code, "has ended with exit code 3" in said) == (3, True), said
    with Result(folder.result) as result:
        assert result.notes == ["Stopped by a signal in step 1 of 1."]


@pytest.mark.slow
def test_ranks_of_this_machine_end_and_keep_what_they_measured_when_the_process_that_started_them_is_killed() -> None:
    submission = submit("parallel-runs", ranks_per_node=2, cluster="local", output="out", **NULL | {"null_delay": 3600})
    assert submission.process is not None
    folder = submission.jobs[0].folder
    until(lambda: any(event["event"] == "step" for event in folder.events()))
    submission.process.kill()
    code, said = ended(submission)
    assert code == 3
    assert f"was ended, because the process {submission.process.pid} that starts the jobs was killed by SIGKILL" in said
    until(folder.result.exists)
    with Result(folder.result) as result:
        assert result.notes == ["Stopped by a signal in step 1 of 1."]
