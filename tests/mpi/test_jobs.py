from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcstress.content import Content
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.journal import JournalFile
from hpcstress.plan import Plan, from_toml
from hpcstress.record import Operation, Outcome
from hpcstress.result import Result
from tests.fake_mantik import PASSWORD, USERNAME, FakeMantik
from tests.fake_mlflow import Faults, served, serving
from tests.jobs import REQUESTS, SMALL, requests
from tests.mpi.launch import MPIEXEC, ROOT, launched, launched_as, until

pytestmark = pytest.mark.slow

CLIMB = replace(SMALL, runs=(1, 7), repeats=2, warmup=4)
NULL = replace(SMALL, client="null", null_delay=0.001)


def words(folder: Path, plan: Plan) -> list[str]:
    return ["-m", "tests.mpi.job", str(folder), plan.to_json()]


def no_report(folder: Path) -> dict[str, str]:
    """Return an environment in which the command line draws no report."""
    stub = folder / "stub" / "analysis"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError(name='analysis')\n")
    return {"PYTHONPATH": os.pathsep.join([str(stub.parent), str(ROOT)])}


def test_the_same_plan_sends_the_same_runs_from_any_number_of_ranks(tmp_path: Path) -> None:
    left: list[Any] = []
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        with serving(password="correct-horse") as server:
            environment = server.environment
            with launched(ranks, *words(folder, CLIMB), cwd=tmp_path, **environment) as job:
                assert job.end() == (0, "", "")
            left.append(server.contents())
            load = len(server.load())
        with Result(folder / "result.h5") as result:
            rows = requests(result)
            assert len(rows) == load - 4 * REQUESTS == sum(CLIMB.steps) * REQUESTS
            assert result.attempts(["rank"])["rank"].tolist() == [
                run % ranks for run in result.attempts(["run"])["run"].tolist()
            ]
            assert result.table("audit")["intact"].tolist() == [*CLIMB.steps]
            assert result.table("ranks")["rank"].tolist() == [*range(ranks)]
            assert result.table("ranks")["complete"].all()
            assert len(result.table("health")) == ranks * len(CLIMB.steps)
            assert result.complete
            assert result.facts["ranks"] == ranks
            assert result.facts["mpi"].startswith("MPICH Version: ")
        assert not RunFolder(folder).journals.exists()
    assert left[0] == left[1] == left[2]
    names = [Content(CLIMB, "").run(step, run).name for step, size in enumerate(CLIMB.steps) for run in range(size)]
    assert sorted(run[0] for run in left[0]) == sorted([*names, *(f"hpcstress-65535-{run}" for run in range(4))])


def test_all_ranks_start_together_and_their_times_can_be_compared(tmp_path: Path) -> None:
    plan = replace(NULL, runs=(30,), null_delay=0.02)
    with launched(3, *words(tmp_path / "job", plan), cwd=tmp_path) as job:
        assert job.end() == (0, "", "")
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, [step] = result.rows(("rank", "op", "due", "start", "end")), result.table("steps")
        first = rows[rows["op"] == Operation.create_run]
        assert {*first["due"].tolist()} == {0}
        assert (rows["due"] <= rows["start"]).all()
        done = [int(rows["end"][rows["rank"] == rank].max()) for rank in range(3)]
        assert (step["first_done"], step["last_done"]) == (min(done), max(done))
        # Seven answers of 20 ms each, one after the other, on everybody's clock.
        assert step["last_done"] >= 7 * 20_000_000


def test_losses_are_found_by_whichever_rank_reads_back(tmp_path: Path) -> None:
    with serving(Faults(ignore_finish=2, create_twice=5)) as server:
        environment = server.environment
        plan = replace(SMALL, runs=(20,))
        with launched(3, *words(tmp_path / "job", plan), cwd=tmp_path, **environment) as job:
            assert job.end() == (3, "", "")
        lost, ghosts = len(server.lied("ignore_finish")), len(server.lied("create_twice"))
        with Result(tmp_path / "job" / "result.h5") as result:
            assert result.table("audit").tolist() == [(0, 20, 20 - lost, lost, 0, 0, ghosts)]
        audit = ["-m", "hpcstress", "audit", str(tmp_path / "job" / "result.h5")]
        with launched(3, *audit, cwd=tmp_path, **environment) as job:
            code, told, _ = job.end()
        assert code == 3
        assert told.startswith(f"step 1 (20 runs): {20 - lost} of 20 runs read back are intact, {lost} lack")


def test_everybody_goes_where_rank_0_has_been(tmp_path: Path) -> None:
    with serving() as right, serving() as wrong:
        one, other = ([sys.executable, *words(tmp_path / "job", SMALL)] for _ in range(2))
        command = [MPIEXEC, "-n", "1", "-env", "MLFLOW_TRACKING_URI", right.uri, *one]
        command += [":", "-n", "1", "-env", "MLFLOW_TRACKING_URI", wrong.uri, *other]
        with launched_as(command, cwd=tmp_path, HOME="/nonexistent") as job:
            assert job.end() == (0, "", "")
        assert len(right.runs) == 6
        assert wrong.requests == []


def test_options_of_the_command_line_are_everybodys(tmp_path: Path) -> None:
    options = ["--workload=create-run", "--experiment=mine", "--client=null", "--runs=3", "--repeats=1", "--warmup=0"]
    with launched(2, "-m", "hpcstress", *options, f"--output={tmp_path / 'job'}", cwd=tmp_path) as job:
        code, _, complaint = job.end()
    assert (code, "Traceback" in complaint) == (0, False)
    with Result(tmp_path / "job" / "result.h5") as result:
        plan = from_toml(result.plan_toml)
    assert (plan.workload, plan.experiment) == ("create-run", "mine")


def test_a_plan_that_only_rank_0_can_read_is_everybodys(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(replace(NULL, runs=(7,)).to_toml())
    one, other = ([sys.executable, "-m", "hpcstress", name, "--output=job"] for name in ("mine.toml", "none.toml"))
    with launched_as([MPIEXEC, "-n", "1", *one, ":", "-n", "1", *other], cwd=tmp_path, **no_report(tmp_path)) as job:
        code, _, _ = job.end()
    assert code == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert sorted(requests(result)["run"].tolist()) == sorted([*range(7)] * REQUESTS)


@pytest.mark.parametrize("words", [["none.toml"], ["--runs=ten"], ["doctor", "paralel-runs"]])
def test_wrong_usage_is_told_once(tmp_path: Path, words: list[str]) -> None:
    with launched(3, "-m", "hpcstress", *words, cwd=tmp_path) as job:
        code, told, complaint = job.end()
    assert (code, told, complaint.count("\n")) == (2, "", 1)
    assert [*tmp_path.iterdir()] == []


def test_more_ranks_than_runs_are_refused_once_before_anything_is_sent(tmp_path: Path) -> None:
    with serving() as server:
        with launched(3, "-m", "hpcstress", "--runs=2", "--output=job", cwd=tmp_path, **server.environment) as job:
            code, told, complaint = job.end()
        assert server.requests == []
    assert (code, told) == (2, "")
    assert complaint == ("3 ranks are more than the largest step has: 2 runs. Take fewer ranks, or give more --runs.\n")
    assert [*tmp_path.iterdir()] == []


def test_a_wrong_password_is_tried_once_by_all_ranks_together_and_told_once(tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        environment = server.environment | {"MLFLOW_TRACKING_PASSWORD": "battery-staple"}
        for command in ([], ["doctor"]):
            server.requests.clear()
            with launched(3, "-m", "hpcstress", *command, cwd=tmp_path, **environment) as job:
                code, told, complaint = job.end()
            assert (code, told) == (1, "")
            assert complaint.count("refused the sign-in") == complaint.count("\n") == 1
            assert len(server.requests) == 1


def test_at_mantik_rank_0_signs_in_for_all_and_every_rank_renews_its_own_token(tmp_path: Path) -> None:
    # Six slow answers, one after the other, and then the audit: longer than a token lives.
    with served(FakeMantik(4.0, dated=False, faults=Faults(delay=1.0, at="/runs/"))) as server:
        with launched(3, *words(tmp_path / "job", SMALL), cwd=tmp_path, **server.environment) as job:
            assert job.end() == (0, "", "")
        assert len(server.sign_ins) == 1
        assert len(server.renewals) >= 3
        assert server.refused_sign_ins == 0
        server.faults.delay = 0
        for number, command in enumerate((["doctor"], ["audit", str(tmp_path / "job" / "result.h5")]), 2):
            with launched(3, "-m", "hpcstress", *command, cwd=tmp_path, **server.environment) as job:
                code, _, complaints = job.end()
            assert (code, complaints) == (0, "")
            assert len(server.sign_ins) == number
        assert server.refused_sign_ins == 0
        secrets = server.secrets()
    with Result(tmp_path / "job" / "result.h5") as result:
        assert {*requests(result)["outcome"].tolist()} == {Outcome.ok}
        assert sorted(result.attempts(["rank"])["rank"].tolist()) == sorted([0, 1, 2] * 2 * (REQUESTS + 1))
        assert result.notes == []
    files = [path.read_bytes() for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert not [secret for secret in secrets if any(secret.encode() in data for data in files)]


def test_ranks_that_do_not_all_sign_in_at_mantik_are_refused_together(tmp_path: Path) -> None:
    with served(FakeMantik()) as server:
        mine, others = ([sys.executable, *words(tmp_path / "job", SMALL)] for _ in range(2))
        who = ["-env", "MANTIK_USERNAME", USERNAME, "-env", "MANTIK_PASSWORD", PASSWORD]
        command = [MPIEXEC, "-n", "1", *who, *mine, ":", "-n", "2", *others]
        where = {"MLFLOW_TRACKING_URI": server.uri, "MANTIK_API_URL": server.uri, "HOME": "/nonexistent"}
        with launched_as(command, cwd=tmp_path, **where) as job:
            code, told, complaints = job.end()
            job.until_gone()
        assert not server.load()
    assert (code, told) == (1, "")
    assert (
        "MANTIK_USERNAME and MANTIK_PASSWORD are not set alike on all ranks: export them to every rank." in complaints
    )
    assert PASSWORD not in complaints


def test_the_doctor_hears_every_rank(tmp_path: Path) -> None:
    with (
        serving(password="correct-horse") as server,
        launched(3, "-m", "hpcstress", "doctor", cwd=tmp_path, **server.environment) as job,
    ):
        code, told, complaint = job.end()
    assert (code, complaint) == (0, "")
    assert "3 ranks on 1 node, MPI: MPICH" in told
    [cells] = [[cell.strip() for cell in line.split("│")] for line in told.splitlines() if "3.17.2" in line]
    assert cells[2:4] == ["0-2", "yes"]


def test_where_rank_0_does_not_reach_the_server_nobody_signs_in_and_the_others_say_whether_they_would(
    tmp_path: Path,
) -> None:
    with serving() as gone:
        pass
    with serving(password="correct-horse") as server:
        doctor = [sys.executable, "-m", "hpcstress", "doctor"]
        command = [
            MPIEXEC,
            "-n",
            "1",
            "-env",
            "MLFLOW_TRACKING_URI",
            gone.uri,
            "-env",
            "SLURMD_NODENAME",
            "n1",
            *doctor,
        ]
        command += [":", "-n", "2", "-env", "SLURMD_NODENAME", "n2", *doctor]
        with launched_as(command, cwd=tmp_path, **server.environment) as job:
            code, told, complaint = job.end()
        assert server.requests == []
    assert (code, complaint) == (1, "")
    cells = {
        row[1]: row[2:4]
        for row in ([cell.strip() for cell in line.split("│")] for line in told.splitlines())
        if row[1:]
    }
    assert (cells["n1"], cells["n2"]) == (["0", "no"], ["1-2", "yes"])
    assert f"n1: The server {gone.uri} cannot be reached" in told


def test_a_journal_that_cannot_be_written_on_one_rank_is_everybodys_refusal(tmp_path: Path) -> None:
    # One rank may not write files of a journal's size, once MPI has the memory that it shares with the others.
    code = "import mpi4py.MPI, resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))"
    code += "; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from tests.mpi.job import main; main()"
    arguments = words(tmp_path / "job", NULL)
    command = [MPIEXEC, "-n", "2", sys.executable, *arguments]
    command += [":", "-n", "1", sys.executable, "-c", code, *arguments[2:]]
    with launched_as(command, cwd=tmp_path) as job:
        code_of_all, told, complaints = job.end()
        assert (code_of_all, told) == (1, "")
        assert f"Rank 2 on {os.uname().nodename}: The journal " in complaints
        assert "File too large" in complaints
        job.until_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_the_load_and_the_result_is_written(tmp_path: Path, number: int) -> None:
    folder = RunFolder(tmp_path / "job")
    plan = replace(NULL, runs=(30,), repeats=2, null_delay=3600)
    with launched(3, *words(folder.path, plan), cwd=tmp_path) as job:
        until(lambda: any(event["event"] == "step" for event in folder.events()))
        # As a terminal does: to every process of its group.
        os.killpg(job.process.pid, number)
        code, _, _ = job.end()
        job.until_gone()
    with Result(folder.result) as result:
        assert result.notes == ["Stopped by a signal in step 1 of 2."]
        rows = requests(result)
        assert {*rows["outcome"].tolist()} == {Outcome.interrupted}
        assert sorted(result.attempts(["run"])["run"].tolist()) == [*range(30)]
        assert len(result.table("ranks")) == 3
    assert code == 3


def test_a_signal_to_one_rank_is_everybodys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    plan = replace(NULL, runs=(30,), repeats=2, null_delay=3600)
    with launched(3, *words(folder.path, plan), cwd=tmp_path) as job:
        until(lambda: any(event["event"] == "step" for event in folder.events()))
        os.kill(pid_of(folder, 2), signal.SIGTERM)
        code, _, complaints = job.end()
    assert (code, complaints) == (3, "\nStopping; what was measured is kept. Once more ends at once.\n")
    with Result(folder.result) as result:
        assert result.notes == ["Stopped by a signal in step 1 of 2."]
        assert sorted(result.attempts(["run"])["run"].tolist()) == [*range(30)]


def test_a_signal_to_a_rank_that_has_nothing_left_to_do_is_everybodys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    quick, slow = replace(NULL, runs=(30,)), replace(NULL, runs=(30,), null_delay=3600)
    command = [MPIEXEC, "-n", "1", sys.executable, *words(folder.path, quick)]
    command += [":", "-n", "2", sys.executable, *words(folder.path, slow)]
    with launched_as(command, cwd=tmp_path) as job:
        until(lambda: played(folder.journal(0)) == 10 * REQUESTS)
        os.kill(pid_of(folder, 0), signal.SIGTERM)
        code, _, complaints = job.end()
    assert (code, complaints) == (3, "\nStopping; what was measured is kept. Once more ends at once.\n")
    with Result(folder.result) as result:
        rows = requests(result)
        assert np.count_nonzero(rows["outcome"] == Outcome.ok) == 10 * REQUESTS
        assert np.count_nonzero(rows["outcome"] == Outcome.interrupted) == 20


def played(journal: Path) -> int:
    try:
        return sum(len(piece) for piece in JournalFile(journal, 0).rows())
    except Refusal:
        return 0  # not yet begun


def pid_of(folder: RunFolder, rank: int) -> int:
    with folder.journal(rank).open("rb") as file:
        pid: int = json.loads(file.read(4092))["pid"]
        return pid


def test_64_ranks_come_to_a_valid_end(tmp_path: Path) -> None:
    plan = replace(NULL, runs=(10, 640), repeats=1)
    with launched(64, *words(tmp_path / "job", plan), cwd=tmp_path) as job:
        assert job.end() == (0, "", "")
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.table("ranks")["rank"].tolist() == [*range(64)]
        assert result.table("steps")["runs_finished"].tolist() == [10, 640]
        rows = requests(result)
        assert np.bincount(rows["step"]).tolist() == [10 * REQUESTS, 640 * REQUESTS]
        assert len(result.table("health")) == 2 * 64
