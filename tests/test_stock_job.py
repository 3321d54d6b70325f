"""Whole jobs with MLflow's own client."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hpcstress.audit import audit_result
from hpcstress.clients.stock import refusing
from hpcstress.errors import INCOMPLETE, OK, Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.progress import Beat
from hpcstress.ranks import World
from hpcstress.record import Operation, Outcome
from hpcstress.result import Result
from hpcstress.schedule import Step
from hpcstress.servers.deployment import Deployment
from tests.fake_mlflow import Faults, serving
from tests.jobs import REQUESTS, SMALL, Heard, play, requests

STOCK = replace(SMALL, client="stock")
PASSWORD = "correct-horse-battery"


def attempts(folder: Path) -> list[tuple[str, int, str]]:
    with Result(folder / "result.h5") as result:
        rows = result.rows(("op", "attempt", "outcome"))
    return [(Operation(op).name, int(attempt), Outcome(outcome).name) for op, attempt, outcome in rows]


def test_a_job_leaves_the_same_with_both_clients(tmp_path: Path) -> None:
    left = []
    for client in ("wire", "stock"):
        with serving(password=PASSWORD) as server:
            assert play(tmp_path / client, replace(SMALL, client=client, params=250), server.environment) == OK
            left.append(server.contents())
            assert server.refused_sign_ins == 0
    assert left[0] == left[1]


def test_calls_are_rows_and_no_requests(tmp_path: Path) -> None:
    progress = Heard()
    with serving() as server:
        play(tmp_path / "job", STOCK, server.environment, progress)
        sent = len(server.load())
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = requests(result)
        of_calls = rows["attempt"] == 0
        assert int(of_calls.sum()) == 5 * STOCK.runs[0]
        assert int((~of_calls).sum()) == sent == REQUESTS * STOCK.runs[0]
        [step] = result.table("steps")
        every = result.rows(("attempt",))["attempt"]
        assert step["attempts"] == int((every > 0).sum())
        assert step["runs_begun"] == step["runs_finished"] == STOCK.runs[0]
        [audit] = result.table("audit")
        assert audit["intact"] == STOCK.runs[0]


def test_the_result_says_which_client_it_was_and_no_secret(tmp_path: Path) -> None:
    with serving(password=PASSWORD) as server:
        play(tmp_path / "job", STOCK, server.environment)
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.facts["client"] == "stock"
        assert result.facts["client_version"].startswith("3.")
    for path in (tmp_path / "job").rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()
    assert PASSWORD not in os.environ.values()


def test_a_repeated_creation_leaves_a_ghost_that_the_audit_finds(tmp_path: Path) -> None:
    # The first creation is carried out, and not acknowledged.
    with serving(Faults(hang_up=100, at="runs/create")) as server:
        server.strikes("hang_up")
        server._struck["hang_up"] = 99
        play(tmp_path / "job", STOCK, server.environment)
    with Result(tmp_path / "job" / "result.h5") as result:
        [audit] = result.table("audit")
        [step] = result.table("steps")
    assert step["runs_finished"] == STOCK.runs[0]
    assert (audit["ghosts"], audit["intact"]) == (1, STOCK.runs[0])
    assert ("create_run", 2, "ok") in attempts(tmp_path / "job")


def test_without_retries_its_first_failure_ends_a_run(tmp_path: Path) -> None:
    with serving(Faults(unavailable=1, at="log-batch")) as server:
        play(tmp_path / "job", replace(STOCK, retries="none"), server.environment)
    told = attempts(tmp_path / "job")
    assert told.count(("log_params", 1, "gateway")) == STOCK.runs[0]
    assert {attempt for _, attempt, _ in told} == {0, 1}


class Stopping(Heard):
    """Ask the job to stop, once, when every run has had to send something again."""

    asked = False

    def update(self, step: Step, beats: Sequence[Beat]) -> None:
        if not self.asked and sum(beat.attempts for beat in beats) > 3 * step.size:
            self.asked = True
            signal.raise_signal(signal.SIGINT)


def test_a_signal_does_not_wait_for_mlflows_patience(tmp_path: Path) -> None:
    # Every batch fails for ever: MLflow's client would go on for four minutes.
    with serving(Faults(unavailable=1, at="log-batch")) as server:
        code = play(tmp_path / "job", STOCK, server.environment, Stopping())
        assert code == INCOMPLETE
        told = attempts(tmp_path / "job")
        assert told.count(("log_params", 0, "interrupted")) == STOCK.runs[0]
        assert not [thread for thread in threading.enumerate() if thread.name == "hpcstress-run"]
        sent = len(server.load())
    assert sent == sum(attempt > 0 and op != "connect" for op, attempt, _ in told)


# Stores without a server.


def test_a_store_is_for_mlflows_client_only() -> None:
    with pytest.raises(
        UsageRefusal, match=r"^--client: sqlite:///x\.db is a store without a server, which only --client stock"
    ):
        Plan(uri="sqlite:///x.db")
    assert Plan(uri="sqlite:///x.db", client="stock").uri == "sqlite:///x.db"


def test_a_store_in_the_environment_is_for_mlflows_client_only(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"^sqlite:///x\.db is a store without a server, which only --client stock"):
        play(tmp_path / "job", SMALL, {"MLFLOW_TRACKING_URI": "sqlite:///x.db"})


def test_a_workload_that_shares_a_run_needs_a_server(tmp_path: Path) -> None:
    plan = replace(STOCK, workload="shared-run", uri="sqlite:///x.db")
    with pytest.raises(Refusal, match=r"^The users of shared-run share a run, which needs a server"):
        play(tmp_path / "job", plan, {})


def test_traces_need_a_server(tmp_path: Path) -> None:
    plan = replace(STOCK, workload="traces", uri="sqlite:///x.db")
    with pytest.raises(
        Refusal, match=r"^The spans of traces go to a server, which a store does not have: give the address"
    ):
        play(tmp_path / "job", plan, {})
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("driver", "package"), [("psycopg2", "psycopg2-binary"), ("psycopg", r"psycopg\[binary\]"), ("other", None)]
)
def test_a_driver_that_is_missing_is_named_with_what_to_install(driver: str, package: str | None) -> None:
    advice = f": install it with `pip install '{package}'`\\." if package else ""
    sentence = f"^MLflow's client cannot work with x: No module named '{driver}'{advice}$"
    with pytest.raises(Refusal, match=sentence), refusing("x"):
        raise ModuleNotFoundError(f"No module named '{driver}'", name=driver)


def test_a_store_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    plan = replace(STOCK, uri="sqlite:////proc/there/is/no/folder/x.db")
    with pytest.raises(Refusal, match=r"^MLflow's client cannot work with sqlite:////proc/there/.*/x\.db: "):
        play(tmp_path / "job", plan, {})
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
def test_a_job_on_a_database_has_a_row_for_each_call_of_the_store_and_a_clean_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow's store keeps artifacts below the working directory.
    monkeypatch.chdir(tmp_path)
    plan = replace(STOCK, uri=f"sqlite:///{tmp_path}/mlflow.db", params=250)
    assert play(tmp_path / "job", plan, {}) == OK

    told = attempts(tmp_path / "job")
    runs = STOCK.runs[0]
    assert told.count(("log_params", 1, "ok")) == 3 * runs
    assert told.count(("log_params", 0, "ok")) == runs
    assert told.count(("log_artifact", 1, "ok")) == runs
    assert not [op for op, _, _ in told if op == "connect"]
    with Result(tmp_path / "job" / "result.h5") as result:
        [audit] = result.table("audit")
        [step] = result.table("steps")
        assert result.facts["uri"] == plan.uri
    assert (audit["checked"], audit["intact"], audit["ghosts"]) == (runs, runs, 0)
    assert step["runs_finished"] == runs

    # It is found again, and read back once more.
    said: list[str] = []
    assert audit_result(World(), tmp_path / "job" / "result.h5", {}, said.append)
    assert said == [f"step 1 ({runs} runs): {runs} of {runs} runs read back are intact, no ghost run"]
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.facts["experiment_created"]
    play(tmp_path / "again", plan, {})
    with Result(tmp_path / "again" / "result.h5") as result:
        assert not result.facts["experiment_created"]


@pytest.mark.slow
def test_what_a_database_has_lost_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.chdir(tmp_path)
    plan = replace(STOCK, uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert play(tmp_path / "job", plan, {}) == OK
    database = sqlite3.connect(tmp_path / "mlflow.db")
    with database:
        database.execute("DELETE FROM params WHERE key = 'param-0' AND run_uuid = (SELECT MIN(run_uuid) FROM runs)")
    database.close()
    artifact = next(tmp_path.glob("mlruns/*/*/artifacts/*.bin"))
    artifact.write_bytes(b"something else")
    said: list[str] = []
    assert not audit_result(World(), tmp_path / "job" / "result.h5", {}, said.append)
    assert [sentence for sentence in said if "param-0" in sentence]
    assert [sentence for sentence in said if "artifact-0.bin has other bytes" in sentence]


@pytest.mark.slow
def test_a_real_server_holds_what_mlflows_client_was_acknowledged(tmp_path: Path, mlflow_server: Deployment) -> None:
    plan = replace(STOCK, params=250, artifacts=2, warmup=2, timeout=60)
    assert play(tmp_path / "job", plan, mlflow_server.environment) == OK
    with Result(tmp_path / "job" / "result.h5") as result:
        [audit] = result.table("audit")
    assert audit["intact"] == plan.runs[0]
