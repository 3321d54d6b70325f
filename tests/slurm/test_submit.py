"""`hpcstress submit` and `from hpcstress import submit`, from a login node to ranks and back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcstress import submit
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.result import Result
from hpcstress.site import Site
from hpcstress.submission import Submission
from tests.fake_mlflow import FakeMlflow, serving
from tests.mpi.launch import LOCAL, shown, until
from tests.mpi.test_jobs import no_report
from tests.slurm.cluster import Cluster
from tests.test_submission import waited

pytestmark = pytest.mark.slow

SECRET = "correct-horse-battery"
TINY: dict[str, Any] = {
    "repeats": 1,
    "warmup": 0,
    "params": 5,
    "artifact_size": "1kB",
    "sleep_time": 0,
    "timeout": 30,
}
# Runs that do not end by themselves.
ENDLESS: dict[str, Any] = {"client": "null", "null_delay": 3600, "runs": 8, "repeats": 1, "warmup": 0}


@pytest.fixture(autouse=True)
def login(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be on the login node, in an empty folder; what is submitted has ended when the test has."""
    for name, value in {**LOCAL, **no_report(tmp_path), **cluster.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hpcstress.submission._ASK_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    yield
    cluster.empty()


def at(server: FakeMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def ended(submission: Submission, acts: dict[str, Callable[[], object]] | None = None) -> tuple[int, str]:
    """Wait as `waited` does; return code and all that was said as one text."""
    code, said = waited(submission, acts)
    return code, "\n".join(said)


def playing(folder: RunFolder) -> None:
    """Wait until a job plays its first step."""
    until(lambda: any(event["event"] == "step" for event in folder.events()))


def test_tasks_are_ranks_of_one_world_and_no_secret_is_in_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(password=SECRET) as server:
        at(server, monkeypatch)
        submission = submit("parallel-runs", nodes=4, ranks_per_node=2, runs=[8, 16], output="job", **TINY)
        code, said = ended(submission)
        assert code == 0, said
        assert len(server.runs) == 24
    [path] = submission.results
    with Result(path) as result:
        assert result.complete
        assert result.facts["ranks"] == 8
        assert result.facts["slurm"]["SLURM_JOB_NUM_NODES"] == "4"
        audit = result.table("audit")
        assert audit["checked"].tolist() == audit["intact"].tolist() == [8, 16]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".sh", ".pkl", ".out", ".err", ".h5", ".code"} <= {path.suffix for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_command_line_waits_and_follows_and_plans_that_only_the_login_node_sees_are_played_one_after_the_other(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    for size in (2, 4):
        plans.append(cluster.login_only / f"runs-{size}.toml")
        plans[-1].write_text("repeats = 1\nwarmup = 0\nparams = 5\nartifact_size = '1kB'\n" + f"runs = [{size}]\n")
    with serving() as server:
        at(server, monkeypatch)
        command = [
            sys.executable,
            "-m",
            "hpcstress",
            "submit",
            *map(str, plans),
            "--nodes=2",
            "--follow",
            "--output=out",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(server.runs) == 6
    began = []
    for name in ("runs-2-2x1", "runs-4-2x1"):
        with Result(tmp_path / "out" / name / "result.h5") as result:
            assert result.complete
            began.append(float(result.table("steps")["began"][0]))
    assert began == sorted(began)
    assert done.stdout.count("The result is ") == 2
    assert "Side by side: hpcstress report " in done.stdout
    assert done.stderr.count("has ended with exit code 0: ") == 2


# What goes wrong, and is never waited for in vain.


def test_a_rank_that_is_killed_ends_the_job_in_seconds_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    submission = submit("parallel-runs", nodes=4, output="job", **ENDLESS)
    [job] = submission.jobs
    playing(job.folder)
    [victim] = [pid for pid in _ranks(job.folder.path) if _is(pid, "SLURM_PROCID=2")]
    os.kill(victim, signal.SIGKILL)
    code, said = ended(submission)
    assert code == 3
    assert f"a rank of it was killed by SIGKILL. What it had measured: hpcstress recover {tmp_path / 'job'}" in said


@pytest.mark.parametrize("site", [Site(mpi="pmi2", setup=("exit 0",)), Site(mpi="pmi2", python="true")])
def test_a_profile_that_ends_the_job_before_it_begins_is_no_success(site: Site) -> None:
    code, said = ended(submit("parallel-runs", nodes=2, site=site, output="job", **ENDLESS))
    assert code == 1
    assert "it ended with exit code 0, but there is no result. Look whether `setup` or `python` of the site" in said


def test_a_rank_that_ends_before_mpi_begins_is_told_and_not_those_that_srun_killed_because_of_it() -> None:
    dies = "sh -c 'if [ $SLURM_PROCID = 1 ]; then echo no provider found >&2; exit 15; fi; exec sleep 60' "
    code, said = ended(submit("parallel-runs", nodes=3, site=Site(mpi="pmi2", python=dies), output="job", **ENDLESS))
    assert code == 1
    assert "exit code 137: n2: task 1 had ended with exit code 15, and srun killed the others. no provider fou" in said


def test_a_job_whose_time_is_nearly_over_ends_its_load_and_keeps_its_result(cluster: Cluster) -> None:
    submission = submit("parallel-runs", nodes=4, output="job", **ENDLESS)
    [job] = submission.jobs
    playing(job.folder)
    # What Slurm sends before the limit.
    cluster.call("scancel", "--signal=USR2", job.id)
    code, said = ended(submission)
    assert (code, "has ended with exit code 3: " in said) == (3, True), said
    with Result(job.folder.result) as result:
        assert result.notes == ["Stopped by a signal in step 1 of 1."]


def test_what_a_job_refuses_with_is_told_once() -> None:
    code, said = ended(submit("parallel-runs", nodes=4, uri="http://127.0.0.1:9", output="job", **TINY))
    assert code == 1
    assert said.count("The server http://127.0.0.1:9 cannot be reached (signing in): start it, or correct its ") == 1
    assert "Traceback" not in said


def test_a_world_of_the_wrong_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = ended(submit("parallel-runs", nodes=2, site=Site(mpi="none"), output="job", **ENDLESS))
    assert code == 1
    assert "The launcher started 2 ranks, but the MPI library" in said


def test_a_folder_that_the_nodes_cannot_write_is_told(cluster: Cluster) -> None:
    folder = cluster.login_only / "out"
    code, said = ended(submit("parallel-runs", nodes=2, output=folder, **ENDLESS))
    assert code == 1
    assert f"the compute nodes cannot write to {folder}. Choose an --output on a file system that they share." in said


def test_a_job_that_is_cancelled_in_the_queue_is_told(cluster: Cluster) -> None:
    submission = submit("parallel-runs", site=Site(mpi="pmi2", sbatch={"begin": "now+1hour"}), output="job", **ENDLESS)
    [job] = submission.jobs
    code, said = ended(submission, {"waits in the queue": lambda: cluster.call("scancel", job.id)})
    assert code == 1
    assert "was cancelled while it waited in the queue: nothing was sent." in said


def test_what_slurm_refuses_at_once_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(
        Refusal, match=r"Invalid partition name specified\. If that is not it, correct --account, --part"
    ):
        submit("parallel-runs", partition="nosuch", output="job", **ENDLESS)
    assert not (tmp_path / "job").exists()


def test_an_account_that_a_partition_does_not_take_is_told() -> None:
    code, said = ended(submit("parallel-runs", account="nobody", partition="paid", output="job", **ENDLESS))
    assert code == 1
    assert "was cancelled, because Slurm would never start it (Job's account not known, " in said


def test_more_time_than_a_partition_gives_is_told(tmp_path: Path) -> None:
    submission = submit("parallel-runs", partition="short", time_limit="1h", output="job", **ENDLESS)
    code, said = ended(submission)
    assert code == 1
    assert "was cancelled, because Slurm would never start it (PartitionTimeLimit): correct" in said


def _ranks(folder: Path) -> list[int]:
    """Return the processes that have a journal of a job open or mapped."""
    journals = str(folder / "journals").encode()
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if journals in shown(process, "maps")]


def _is(pid: int, variable: str) -> bool:
    return variable.encode() in shown(Path(f"/proc/{pid}"), "environ").split(b"\0")
