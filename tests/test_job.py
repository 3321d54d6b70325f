from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import pytest

from hpcstress import servers, tokens
from hpcstress.clocks import Offset
from hpcstress.errors import Refusal
from hpcstress.folder import RunFolder
from hpcstress.job import run_job, speaks
from hpcstress.plan import Plan, from_toml
from hpcstress.progress import Beat, Progress
from hpcstress.ranks import World
from hpcstress.record import Operation, Outcome
from hpcstress.recover import recover
from hpcstress.result import TABLES, Result
from hpcstress.schedule import Step
from hpcstress.servers import Spec
from hpcstress.servers.deployment import Deployment, Front
from hpcstress.servers.part import Event, Recipe
from hpcstress.servers.port import free_port
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import FakeMlflow, Faults, served, serving
from tests.jobs import REQUESTS, SMALL, Heard, play, requests

ROOT = Path(__file__).parent.parent
PASSWORD = "correct-horse-battery"
CLIMB = replace(SMALL, runs=(2, 5), repeats=2)
ALONE = replace(SMALL, client="null", runs=(3,), null_delay=0.001)


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeMlflow]:
    """A job of two climbs against a server with sign-in, all well; tests only read it."""
    folder = tmp_path_factory.mktemp("climbed") / "job"
    with serving(password=PASSWORD) as server:
        assert play(folder, CLIMB, server.environment) == 0
    return folder, server


@pytest.fixture
def result(climbed: tuple[Path, FakeMlflow]) -> Any:
    with Result(climbed[0] / "result.h5") as opened:
        yield opened


# A job longer than a token lives.

# Seven slow answers, one after the other, in each of two steps, and then the audits.
LONG = replace(SMALL, runs=(3,), repeats=2)
SLOW = 0.2


def test_a_token_of_mantik_s_is_renewed_during_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_WINDOW", (0.7, 0.8))
    with served(FakeMantik(1.5, dated=False, grace=30, faults=Faults(delay=SLOW, at="2.0/"))) as server:
        assert play(tmp_path / "job", LONG, server.environment) == 0
        assert server.refused_sign_ins == 0
        assert len(server.sign_ins) == 1
        # The last token was made two lives after the first.
        instants = [*server.expiry.values()]
        assert instants[-1] - instants[0] > 2 * server.life
        files = [path.read_bytes() for path in (tmp_path / "job").rglob("*") if path.is_file()]
        assert not [secret for secret in server.secrets() if any(secret.encode() in data for data in files)]
    with Result(tmp_path / "job" / "result.h5") as result:
        assert {*requests(result)["outcome"].tolist()} == {Outcome.ok}
        assert result.complete
        assert result.notes == []


def test_a_token_that_cannot_be_renewed_fails_requests_and_a_note_says_why(tmp_path: Path) -> None:
    with served(FakeMantik(2.5, dated=False, faults=Faults(delay=SLOW, at="2.0/"))) as server:
        server.refuses = True
        # 3 if the audit of what was acknowledged comes too late, too.
        assert play(tmp_path / "job", replace(LONG, repeats=3), server.environment) in (0, 3)
        assert len(server.sign_ins) == 1
        secrets = server.secrets()
    with Result(tmp_path / "job" / "result.h5") as result:
        outcomes = requests(result)["outcome"].tolist()
        assert {Outcome.ok, Outcome.auth} == {*outcomes}
        [note] = [note for note in result.notes if note.startswith("Mantik's token expired")]
        assert "refused the sign-in (renewing the token)" in note
        assert not [secret for secret in secrets if secret in "".join(result.notes)]


# A job that goes well.


def test_the_result_holds_every_request_that_the_server_has_seen(
    result: Result, climbed: tuple[Path, FakeMlflow]
) -> None:
    rows = requests(result)
    assert len(rows) == len(climbed[1].load()) == sum(CLIMB.steps) * REQUESTS
    assert {*rows["outcome"].tolist()} == {Outcome.ok}
    assert {*rows["status"].tolist()} == {200}
    assert {*rows["attempt"].tolist()} == {1}
    # One connection for each run.
    assert result.length - len(rows) == sum(CLIMB.steps)


def test_every_run_of_every_step_is_played_once(result: Result, climbed: tuple[Path, FakeMlflow]) -> None:
    expected = {(step, run) for step, size in enumerate(CLIMB.steps) for run in range(size)}
    rows = result.rows(("step", "run", "op"))
    finished = rows[rows["op"] == Operation.finish_run]
    assert sorted(zip(finished["step"].tolist(), finished["run"].tolist(), strict=True)) == sorted(expected)
    assert {run.name for run in climbed[1].runs.values()} == {f"hpcstress-{step}-{run}" for step, run in expected}


def test_the_rows_of_a_run_follow_one_another_in_time(result: Result) -> None:
    rows = result.rows(("step", "run", "seq", "due", "start", "end"))
    assert (rows["due"] >= 0).all()
    for step, size in enumerate(CLIMB.steps):
        for run in range(size):
            mine = np.sort(rows[(rows["step"] == step) & (rows["run"] == run)], order="seq")
            assert mine["seq"].tolist() == [*range(REQUESTS + 1)]
            assert mine["due"][0] == 0
            assert mine["due"][1:].tolist() == mine["end"][:-1].tolist()
            assert (mine["due"] <= mine["start"]).all()
            assert (mine["start"] <= mine["end"]).all()


def test_the_tables_say_what_the_rows_say(result: Result) -> None:
    steps, rows = result.table("steps"), result.rows(("step", "start", "end"))
    assert steps["step"].tolist() == [0, 1, 2, 3]
    assert steps["repeat"].tolist() == [0, 0, 1, 1]
    assert steps["size"].tolist() == steps["runs_finished"].tolist() == [2, 5, 2, 5]
    assert steps["failed"].tolist() == [0] * 4
    assert (np.diff(steps["began"]) > 0).all()
    assert steps["began"][-1] == pytest.approx(time.time(), abs=3600)
    for row in steps:
        mine = rows[rows["step"] == row["step"]]
        assert row["attempts"] == len(mine)
        assert row["first_start"] == mine["start"].min()
        assert row["first_done"] == row["last_done"] == mine["end"].max()


def test_the_rank_and_what_it_felt_are_told(result: Result) -> None:
    [rank] = result.table("ranks")
    assert (rank["rank"], rank["pid"], rank["complete"]) == (0, os.getpid(), True)
    assert (rank["offset_ns"], rank["error_ns"], rank["drift_ppm"], rank["import_seconds"]) == (0, 0, 0, 0.25)
    assert rank["host"].decode() == os.uname().nodename
    health = result.table("health")
    assert health["step"].tolist() == [0, 1, 2, 3]
    for name in ("cpu_seconds", "wall_seconds", "max_rss"):
        assert (health[name] > 0).all()


def test_every_step_is_read_back(result: Result, climbed: tuple[Path, FakeMlflow]) -> None:
    audit = result.table("audit")
    assert audit["checked"].tolist() == audit["intact"].tolist() == [2, 5, 2, 5]
    assert result.complete
    assert result.notes == []
    assert {run.status for run in climbed[1].runs.values()} == {"FINISHED"}


def test_the_result_explains_itself(result: Result, climbed: tuple[Path, FakeMlflow]) -> None:
    facts, server = result.facts, climbed[1]
    assert from_toml(result.plan_toml) == CLIMB
    assert {"ranks": 1, "mpi": "none", "client": "wire", "uri": server.uri, "server_version": "3.17.2"}.items() <= (
        facts.items()
    )
    assert facts["experiment_created"]
    assert server.experiments[facts["experiment_id"]].name == "hpcstress"
    assert {run.tags["hpcstress.session"] for run in server.runs.values()} == {facts["session"]}


def test_the_folder_is_left_with_plan_log_and_result(climbed: tuple[Path, FakeMlflow]) -> None:
    folder = RunFolder(climbed[0])
    assert {path.name for path in folder.path.iterdir()} == {"plan.toml", "log.jsonl", "result.h5"}
    assert from_toml(folder.plan.read_text()) == CLIMB
    events = [event["event"] for event in folder.events()]
    assert events == ["job", *["step", "audit"] * 4]


def test_no_file_of_a_job_holds_the_password(climbed: tuple[Path, FakeMlflow], result: Result) -> None:
    sign_in = f"{climbed[1].environment['MLFLOW_TRACKING_USERNAME']}:{PASSWORD}"
    files = [path.read_bytes() for path in climbed[0].rglob("*") if path.is_file()]
    assert any(result.facts["session"].encode() in data for data in files)
    for secret in (PASSWORD.encode(), base64.b64encode(sign_in.encode())):
        assert not any(secret in data for data in files)


def test_the_same_plan_leaves_the_same_runs(tmp_path: Path) -> None:
    left = []
    for number in range(2):
        with serving() as server:
            play(tmp_path / str(number), CLIMB, server.environment)
        left.append(server.contents())
    assert left[0] == left[1]


def test_a_rank_whose_clock_is_ahead_of_rank_0s_starts_later_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 400_000_000

    class Ahead(World):
        """Have a clock that shows 0.4 s more than rank 0's."""

        def offset(self) -> Offset:
            return Offset(-ahead, 77, time.monotonic_ns())

    class Timed(Progress):
        """Note when the start is told, and when the step is over."""

        began = ended = 0

        def begin(self, *_: object) -> None:
            self.began = time.monotonic_ns()

        def end(self) -> None:
            self.ended = time.monotonic_ns()

    timed = Timed()
    monkeypatch.setattr("hpcstress.job._LEAD_NS", 5_000_000)
    assert run_job(ALONE, Ahead(), RunFolder(tmp_path / "job"), {}, timed, 0.0) == 0
    assert timed.ended - timed.began >= ahead
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.table("ranks")[["offset_ns", "error_ns"]].tolist() == [(-ahead, 77)]
        assert (result.attempts(["start"])["start"] >= 0).all()


def test_the_start_waits_for_every_hand_that_its_word_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed(Progress):
        """Note how long it is from the word of the start to the end of the step."""

        def begin(self, *_: object) -> None:
            self.began = time.monotonic()

        def end(self) -> None:
            self.took = time.monotonic() - self.began

    timed = Timed()
    monkeypatch.setattr("hpcstress.job._LEAD_NS", 20_000_000)
    monkeypatch.setattr("hpcstress.job.levels", lambda size: 9 * size)
    assert run_job(ALONE, World(), RunFolder(tmp_path / "job"), {}, timed, 0.0) == 0
    # Ten times as long, some of which had passed when the word was told.
    assert timed.took > 0.1


def test_a_clock_is_measured_before_and_after_all_and_before_each_step(tmp_path: Path) -> None:
    class Counted(World):
        """Count how often clocks are measured."""

        times = 0

        def offset(self) -> Offset:
            self.times += 1
            return super().offset()

    world = Counted()
    assert run_job(replace(ALONE, runs=(1, 2)), world, RunFolder(tmp_path / "job"), {}, Progress(), 0.0) == 0
    assert world.times == 4


def test_warm_up_is_sent_and_in_no_figure(tmp_path: Path) -> None:
    with serving() as server:
        assert play(tmp_path / "job", replace(SMALL, warmup=4), server.environment) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert {*result.attempts(["step"])["step"].tolist()} == {0}
        assert len(requests(result)) == 6 * REQUESTS == len(server.load()) - 4 * REQUESTS
        assert result.table("steps")["step"].tolist() == result.table("audit")["step"].tolist() == [0]
    assert [event["event"] for event in RunFolder(tmp_path / "job").events()] == ["job", "step", "audit"]


def test_the_null_client_sends_nothing_and_fails_as_asked(tmp_path: Path) -> None:
    plan = replace(ALONE, runs=(50,), null_failures=0.1)
    assert play(tmp_path / "job", plan, {}) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, [step] = requests(result), result.table("steps")
        failed = int((rows["outcome"] == Outcome.server_error).sum())
        assert 0 < failed == step["failed"] == 50 - step["runs_finished"]
        assert result.notes == ["First failure by server_error: the null client was asked to fail."]
        assert len(result.table("audit")) == 0
        assert result.facts["client"] == "null"


# Failures are data.


@pytest.mark.parametrize(
    ("switch", "outcome", "status", "words"),
    [
        ("exhausted", Outcome.pool_exhausted, 400, "QueuePool limit of size 5"),
        ("throttled", Outcome.throttled, 429, "Too many requests"),
        ("unavailable", Outcome.gateway, 503, "503 Service Unavailable"),
        ("hang_up", Outcome.closed, 0, ""),
    ],
)
def test_a_request_that_is_not_acknowledged_ends_its_run_and_is_told_by_its_cause(
    tmp_path: Path, switch: str, outcome: Outcome, status: int, words: str
) -> None:
    with serving(Faults(**{switch: 3}, at="log-batch")) as server:
        assert play(tmp_path / "job", SMALL, server.environment) == 0
        load = len(server.load())
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, [step] = requests(result), result.table("steps")
        bad = rows[rows["outcome"] != Outcome.ok]
        assert {*bad["outcome"].tolist()} == {outcome}
        assert {*bad["status"].tolist()} == {status}
        assert 0 < len(bad) == step["failed"] == 6 - step["runs_finished"]
        assert len(rows) == load
        notes = [note for note in result.notes if note.startswith(f"First failure by {outcome.name}:")]
        [note] = notes
        assert ("the server said" in note) == bool(words)
        assert (words or "no words came with it.") in note


def test_a_server_that_leaves_artifacts_to_its_clients_has_not_failed(tmp_path: Path) -> None:
    with serving(Faults(artifact_uri="s3://bucket/7")) as server:
        assert play(tmp_path / "job", SMALL, server.environment) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.notes == []
        rows = result.rows(("op", "outcome"))
        assert set(rows["op"][rows["outcome"] != Outcome.ok]) == {Operation.log_artifact}


def test_what_has_no_answer_in_time_has_failed_and_the_job_goes_on(tmp_path: Path) -> None:
    plan = replace(SMALL, timeout=1, repeats=2)
    with serving(Faults(delay=30.0, at="log-batch")) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = requests(result)
        late = rows[rows["outcome"] == Outcome.timeout]
        assert len(late) == 12
        assert {*late["op"].tolist()} == {Operation.log_params}


def test_a_server_that_dies_in_mid_step_ends_the_job_with_a_result(tmp_path: Path) -> None:
    plan = replace(SMALL, runs=(8,), repeats=3, timeout=1.5)
    heard = Heard()
    # Its fortieth request is one of the first step's 56.
    with serving(Faults(die_after=40)) as server:
        assert play(tmp_path / "job", plan, server.environment, heard) == 3
        acknowledged = sum(seen.status == 200 for seen in server.load())
    with Result(tmp_path / "job" / "result.h5") as result:
        rows = requests(result)
        assert not result.complete
        assert (rows["outcome"] == Outcome.ok).sum() == acknowledged
        assert {*rows["outcome"].tolist()} == {Outcome.ok, Outcome.closed}
        assert result.table("steps")["step"].tolist() == [0]
        [audit] = result.table("audit")
        assert audit["unread"] == audit["checked"] > 0
        assert "Before step 2 the server did not come back within 1.5 s: the remaining steps were not played." in (
            result.notes
        )


def test_a_server_that_comes_back_between_steps_is_waited_for(tmp_path: Path) -> None:
    plan = replace(SMALL, repeats=2, audit=0)
    with serving(Faults(die_after=20, back_after=2.5)) as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.table("steps")["runs_finished"].tolist()[1] == 6
        [note] = [note for note in result.notes if note.startswith("Before step 2 the server took ")]
        took = re.fullmatch(r"Before step 2 the server took (\d+\.\d) s to answer again\.", note)
        assert took is not None
        assert float(took[1]) >= 1


def test_a_server_that_the_warm_up_has_ended_is_not_climbed(tmp_path: Path) -> None:
    with serving(Faults(die_after=20)) as server:
        assert play(tmp_path / "job", replace(SMALL, warmup=6, timeout=1), server.environment) == 3
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.length == 0
        assert result.notes[0].startswith("Before step 1 the server did not come back")


# A server that hpcstress has started itself.


SAMPLE = (1.0, b"fake", 7, b"fake", 0.5, 1000, 1, 3, 2)


class Started:
    """What `servers.start` returns, around a server of this process."""

    def __init__(self, server: FakeMlflow, obituary: str | None) -> None:
        self.facts = {"name": "fake"}
        self.environment = server.environment
        self.stopped = False
        self._obituary = obituary

    def samples(self) -> np.ndarray[Any, Any]:
        return np.array([SAMPLE], TABLES["server"])

    def events(self) -> list[Event]:
        return []

    def obituary(self) -> str | None:
        # How it ended is known only when it has.
        return self._obituary if self.stopped else None

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


@pytest.mark.parametrize("dies", [0, 40])
def test_without_an_address_a_server_is_started_watched_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: int
) -> None:
    with serving(Faults(die_after=dies), password=PASSWORD) as server:
        started = Started(server, "It was killed by SIGKILL." if dies else None)
        monkeypatch.setattr(servers, "start", lambda spec, **_: {Spec(): started}[spec])
        code = play(tmp_path / "job", replace(SMALL, runs=(8,), repeats=2, timeout=1), {"HOME": "/nonexistent"})
    assert started.stopped
    assert code == (3 if dies else 0)
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.facts["server"] == {"name": "fake"}
        assert result.table("server").tolist() == [SAMPLE]
        assert result.notes[:1] == ["It was killed by SIGKILL."] * bool(dies)
        assert any("the server did not come back" in note for note in result.notes) == bool(dies)


def test_a_server_that_lost_its_guard_serves_to_the_end_of_the_job_is_ended_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    fake = f"{sys.executable} -m tests.fake_mlflow --port {port} & wait"

    def assemble(_spec: Spec, site: Deployment) -> Front:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        site.add("tracking", Recipe(("sh", "-c", fake), lambda log: str(port) in log, environment))
        uri = f"http://127.0.0.1:{port}"
        return Front(uri, {"MLFLOW_TRACKING_URI": uri, "HOME": "/nonexistent"}, {"name": "fake"})

    class Killing(Progress):
        """Kill the guard and the server's first process when the step begins."""

        def begin(self, *_: object) -> None:
            [guard] = (child for child in psutil.Process().children() if fake in " ".join(child.cmdline()))
            for victim in (guard, *guard.children()):
                victim.kill()

    monkeypatch.setattr("hpcstress.servers.mlflow.assemble", assemble)
    assert play(tmp_path / "job", SMALL, {"HOME": "/nonexistent"}, Killing()) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.table("steps")["runs_finished"].tolist() == [6]
        [note] = result.notes
        assert note.startswith(
            "The part tracking of the server mlflow-sqlite lost its guard, which was killed by SIGKILL; "
            "still running, and ended"
        )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


# Ctrl-C and TERM.


class Interrupting(Progress):
    """Send signals to this process at chosen moments."""

    def __init__(self, moment: str, number: int = signal.SIGINT) -> None:
        self.moment, self.number = moment, number
        self.begun: list[int] = []

    def _now(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            signal.raise_signal(self.number)

    def _soon(self, moment: str) -> None:
        if moment == self.moment:
            threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, self.number)).start()

    def say(self, sentence: str) -> None:
        if "reading back" in sentence:
            self._now("audit")
        if "audit:" in sentence:
            self._soon("away")

    def begin(self, step: Step, *_: object) -> None:
        self.begun.append(step.number)

    def update(self, *_: object) -> None:
        self._now("load")

    def end(self) -> None:
        self._now("end")
        self._soon("rest")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_load_and_what_was_measured_is_kept(tmp_path: Path, number: int) -> None:
    plan = replace(ALONE, repeats=2, null_delay=3600)
    progress = Interrupting("load", number)
    assert play(tmp_path / "job", plan, {}, progress) == 3
    assert progress.begun == [0]
    with Result(tmp_path / "job" / "result.h5") as result:
        assert not result.complete
        assert result.notes == ["Stopped by a signal in step 1 of 2."]
        assert requests(result)["outcome"].tolist() == [Outcome.interrupted] * 3
        assert result.table("steps")["attempts"].tolist() == [3]
    assert not (tmp_path / "job" / "journals").exists()


def test_a_signal_that_another_rank_got_before_is_the_first_here(tmp_path: Path) -> None:
    class Told(World):
        def beat(self, word: object) -> dict[int, Any]:
            assert isinstance(word, Beat)
            return {0: word._replace(stop=True)}

    plan, progress = replace(ALONE, repeats=2, null_delay=3600), Interrupting("end")
    assert run_job(plan, Told(), RunFolder(tmp_path / "job"), {}, progress, 0.0) == 3
    assert progress.moment == ""
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.notes == ["Stopped by a signal in step 1 of 2."]


def test_a_signal_in_the_warm_up_lets_no_step_begin(tmp_path: Path) -> None:
    progress = Interrupting("load")
    assert play(tmp_path / "job", replace(ALONE, warmup=2, null_delay=3600), {}, progress) == 3
    assert progress.begun == [0xFFFF]
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.length == 0
        assert result.notes == ["Stopped by a signal in step 1 of 1."]


def test_a_signal_ends_the_rest_between_two_steps(tmp_path: Path) -> None:
    progress = Interrupting("rest")
    assert play(tmp_path / "job", replace(ALONE, repeats=2, sleep_time=3600), {}, progress) == 3
    assert progress.begun == [0]
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.table("steps")["runs_finished"].tolist() == [3]


def test_a_signal_ends_the_reading_back_and_what_was_not_read_is_said(tmp_path: Path) -> None:
    with serving() as server:
        assert play(tmp_path / "job", replace(SMALL, repeats=1), server.environment, Interrupting("audit")) == 3
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.table("audit")["unread"].tolist() == [SMALL.runs[0]]
        assert result.table("audit")["missing"].tolist() == [0]
        assert not result.complete


def test_a_signal_ends_the_wait_for_a_server(tmp_path: Path) -> None:
    progress = Interrupting("away")
    with serving(Faults(die_after=20)) as server:
        assert play(tmp_path / "job", replace(SMALL, repeats=2, timeout=3600), server.environment, progress) == 3
    with Result(tmp_path / "job" / "result.h5") as result:
        assert "Stopped by a signal in step 2 of 2." in result.notes
        assert not any("did not come back" in note for note in result.notes)


def test_signals_are_their_owners_again_when_the_job_is_over(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    play(tmp_path / "job", ALONE, {})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# What ends a job otherwise.


def test_a_job_that_fails_leaves_its_journals_and_no_half_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tripping(Progress):
        """Fail when the second step begins."""

        def begin(self, step: Step, *_: object) -> None:
            if step.number == 1:
                raise RuntimeError("tripped")

    with pytest.raises(RuntimeError, match="tripped"):
        play(tmp_path / "job", replace(ALONE, repeats=2), {}, Tripping())
    folder = RunFolder(tmp_path / "job")
    assert {path.name for path in folder.path.iterdir()} == {"plan.toml", "log.jsonl", "journals"}
    assert recover(folder) == ["Recovered from journals. Incomplete ranks: 0 of 1."]
    with Result(folder.result) as result:
        assert len(requests(result)) == 3 * REQUESTS


@pytest.mark.parametrize(("at", "file"), [("begin", "log.jsonl"), ("load", "log.jsonl"), ("last", "result.h5")])
def test_a_folder_that_somebody_removes_ends_the_job_with_a_sentence(tmp_path: Path, at: str, file: str) -> None:
    class Removing(Progress):
        """Remove the folder at a moment of the job."""

        def __init__(self) -> None:
            self.step = Step(0, 0, 0)

        def begin(self, step: Step, *_: object) -> None:
            self.step = step
            if at == "begin":
                shutil.rmtree(tmp_path / "job")

        def update(self, *_: object) -> None:
            if at == "load" or self.step.number == 1:
                shutil.rmtree(tmp_path / "job", ignore_errors=True)

    plan = replace(ALONE, repeats=2)
    with pytest.raises(Refusal, match=rf"{file} cannot be written: No such file or directory\. .* find their folder"):
        play(tmp_path / "job", plan, {}, Removing())
    assert not [*tmp_path.iterdir()]


def test_a_job_that_still_runs_is_not_recovered_and_comes_to_its_own_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "job")
    refusals = []

    class Impatient(Progress):
        """Recover the job while it runs."""

        def end(self) -> None:
            with pytest.raises(Refusal, match="is still running") as refusal:
                recover(folder)
            refusals.append(refusal.value)

    assert play(folder.path, ALONE, {}, Impatient()) == 0
    assert refusals
    with Result(folder.result) as result:
        assert result.complete


def test_a_folder_with_a_job_is_refused_and_left_as_it_was(climbed: tuple[Path, FakeMlflow]) -> None:
    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in climbed[0].rglob("*") if path.is_file()}

    before = state()
    with pytest.raises(Refusal, match="already holds a job"):
        play(climbed[0], ALONE, {})
    assert state() == before


def test_a_job_leaves_no_open_file_behind(tmp_path: Path) -> None:
    def open_files() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    with serving() as server:
        play(tmp_path / "first", SMALL, server.environment)
        before = open_files()
        play(tmp_path / "second", SMALL, server.environment)
        assert open_files() == before


def test_all_of_a_plan_can_be_played_by_the_null_client(tmp_path: Path) -> None:
    plan = Plan(client="null", runs=(2,), repeats=1, warmup=1, params=250, metrics=1001, artifacts=2, sleep_time=0)
    assert play(tmp_path / "job", plan, {}) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert len(requests(result)) == 2 * (1 + 3 + 2 + 3 + 2)


@pytest.mark.parametrize("size", [1, 2, 64, 65, 128, 1000, 10_000])
def test_few_ranks_say_at_a_time_how_far_they_are_and_each_does_in_turn(size: int) -> None:
    turns = -(-size // 64)
    heard = [[rank for rank in range(size) if speaks(turn, rank, size)] for turn in range(5, 5 + turns)]
    assert max(map(len, heard)) <= 64
    assert sorted(rank for ranks in heard for rank in ranks) == [*range(size)]
