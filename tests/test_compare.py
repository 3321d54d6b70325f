"""Comparisons of servers that run already, in this process and alone; with real servers under MPI: tests/mpi."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcstress import compare, servers
from hpcstress.clean import clean_result
from hpcstress.compare import read_servers, run_comparison
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.progress import Progress
from hpcstress.ranks import World
from hpcstress.result import Result
from hpcstress.rounds import MANIFEST, find
from tests.fake_mlflow import FakeMlflow, serving
from tests.jobs import SMALL, Heard

LITTLE = replace(SMALL, runs=(2,), params=1, metrics=0, artifacts=0, audit=2)


@pytest.fixture
def two() -> Iterator[list[FakeMlflow]]:
    """Two servers that are somebody's."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(password="correct-horse")) for _ in range(2)]


def played(
    path: Path,
    of: Sequence[str],
    environment: Mapping[str, str],
    rounds: int = 2,
    plan: Plan = LITTLE,
    progress: Progress | None = None,
) -> int:
    """Compare servers as the only rank; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        # Nobody else has to hear of the common start.
        patch.setattr("hpcstress.job._LEAD_NS", 5_000_000)
        read = read_servers(of, plan)
        return run_comparison(plan, read, rounds, World(), path, environment, progress or Progress(), 0.25)


def uris(two: Sequence[FakeMlflow]) -> list[str]:
    return [server.uri for server in two]


class Interrupting(Heard):
    """Send a signal when load has begun for so many times."""

    def __init__(self, begun: int) -> None:
        super().__init__()
        self.left = begun

    def begin(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)


def test_every_server_is_tested_in_every_round_in_the_order_that_was_said(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    heard = Heard()
    assert played(tmp_path / "all", uris(two), two[0].environment, 3, progress=heard) == 0
    match = find(tmp_path / "all")
    turns = match.turns(3)
    announced = [said for said in heard.sentences if said.startswith("Turn ")]
    assert [said.partition(";")[0].rstrip(".") for said in announced] == [
        f"Turn {number} of 6: {turn.name}, round {turn.round} of 3" for number, turn in enumerate(turns, 1)
    ]
    assert "left." in announced[-1]
    assert sorted((done.turn, done.code) for done in match.done()) == sorted((turn, 0) for turn in turns)
    began = {}
    for done in match.done():
        with Result(done.result) as result:
            assert result.complete
            assert result.facts["uri"] == done.turn.server
            assert result.table("audit")["intact"].tolist() == [2]
            began[done.turn] = float(result.table("steps")["began"][0])
    assert sorted(began, key=lambda turn: began[turn]) == turns


def test_servers_of_others_are_cleaned_of_what_was_created_and_of_nothing_else(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    for server in two:
        mine = server._create_experiment({"name": "mine"})["experiment_id"]
        server._create_run({"experiment_id": mine, "start_time": 1, "tags": []})
    played(tmp_path / "all", uris(two), two[0].environment)
    for server in two:
        assert len(server.load()) > 10
        assert len([run for run in server.runs.values() if run.stage == "active"]) == 1
        assert [of.name for of in server.experiments.values() if of.stage == "active"] == ["Default", "mine"]


def test_the_same_command_plays_nothing_twice_and_adds_rounds(two: list[FakeMlflow], tmp_path: Path) -> None:
    path = tmp_path / "all"
    played(path, uris(two), two[0].environment, 1)
    before = {done.result: done.result.read_bytes() for done in find(path).done()}
    sent = [len(server.requests) for server in two]
    heard = Heard()
    assert played(path, uris(two), two[0].environment, 1, progress=heard) == 0
    assert [len(server.requests) for server in two] == sent
    assert "2 turns of it are there already, and kept." in heard.sentences
    assert played(path, uris(two), two[0].environment, 2) == 0
    assert len(find(path).done()) == 4
    assert {result: result.read_bytes() for result in before} == before


def test_a_comparison_that_is_stopped_goes_on_and_keeps_what_the_half_turn_had_measured(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    path = tmp_path / "all"
    heard = Interrupting(2)
    assert played(path, uris(two), two[0].environment, progress=heard) == 3
    match = find(path)
    first, second = match.turns(2)[:2]
    assert [done.turn for done in match.done()] == [first]
    result = match.folder(second).result
    assert heard.sentences[-1].endswith(
        f"--output {path} goes on. `hpcstress clean {result}` deletes what it has created on {second.server}."
    )
    half = result.read_bytes()
    again = Heard()
    assert played(path, uris(two), two[0].environment, progress=again) == 0
    assert len(match.done()) == 4
    left = match.folder(second).path.with_name(f"{match.folder(second).path.name}.left-1")
    assert (left / "result.h5").read_bytes() == half
    assert (
        f"What a job that was interrupted has left is now in {left}. "
        f"`hpcstress clean {left / 'result.h5'}` deletes what it has created on {second.server}." in again.sentences
    )
    # What is told is so: only the half turn's runs are still there, and gone then.
    assert [server.uri for server in two if active(server)] == [second.server]
    clean_result(left / "result.h5", two[0].environment, str)
    assert not any(map(active, two))


def test_a_turn_that_was_killed_is_told_how_to_become_a_result_and_to_be_cleaned(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    path = tmp_path / "all"
    played(path, uris(two), two[0].environment, 1)
    match = find(path)
    last = match.folder(match.turns(1)[-1])
    last.result.unlink()
    last.journals.mkdir()
    last.journal(0).touch()
    heard = Heard()
    assert played(path, uris(two), two[0].environment, 1, progress=heard) == 0
    left = last.path.with_name(f"{last.path.name}.left-1")
    [told] = [said for said in heard.sentences if str(left) in said]
    assert f"`hpcstress recover {left}` makes its result. `hpcstress clean {left / 'result.h5'}` deletes" in told


def test_a_server_that_could_not_be_cleaned_is_told_how_to_be(
    two: list[FakeMlflow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Refusal("It is gone.")

    heard = Heard()
    monkeypatch.setattr(compare, "clean_result", refuse)
    played(tmp_path / "all", uris(two), two[0].environment, 1, progress=heard)
    done = find(tmp_path / "all").done()[0]
    assert any(f"It is gone. `hpcstress clean {done.result}` deletes" in said for said in heard.sentences)


def active(server: FakeMlflow) -> int:
    """Count the runs that nobody has deleted."""
    return len([run for run in server.runs.values() if run.stage == "active"])


def test_a_signal_between_two_turns_ends_the_comparison_before_the_next_one(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    class Late(Heard):
        def say(self, sentence: str) -> None:
            super().say(sentence)
            if sentence.startswith("Turn 2"):
                signal.raise_signal(signal.SIGINT)

    before, late = signal.getsignal(signal.SIGINT), Late()
    assert played(tmp_path / "all", uris(two), two[0].environment, progress=late) == 3
    assert late.sentences[-1] == (
        f"Stopped. What is over is kept, and the same command with --output {tmp_path / 'all'} goes on."
    )
    assert len(find(tmp_path / "all").done()) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_server_that_is_gone_in_a_later_round_does_not_stop_the_others_and_comes_back_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, heard, run_job = tmp_path / "all", Heard(), compare.run_job
    asked: list[str] = []
    with serving() as first, serving() as second:

        def unless_gone(plan: Plan, *rest: Any) -> int:
            asked.append(plan.uri)
            if plan.uri == second.uri and asked.count(second.uri) == 2:
                refusal = Refusal("It is gone.")
                refusal.shared = True
                raise refusal
            return run_job(plan, *rest)

        monkeypatch.setattr(compare, "run_job", unless_gone)
        assert played(path, [first.uri, second.uri], {}, progress=heard) == 3
        assert f"{second.uri} was not tested in round 2: It is gone." in heard.sentences
        assert len(find(path).done()) == 3
        assert played(path, [first.uri, second.uri], {}) == 0
        assert len(find(path).done()) == 4


def test_the_exit_code_tells_of_a_turn_that_was_incomplete_also_when_all_is_over(
    two: list[FakeMlflow], tmp_path: Path
) -> None:
    path = tmp_path / "all"
    played(path, uris(two), two[0].environment, 1)
    match = find(path)
    match.over(match.done()[0].turn, 3)
    assert played(path, uris(two), two[0].environment, 1) == 3


# What is refused, and when.


def test_a_server_that_does_not_answer_is_refused_before_the_first_test(tmp_path: Path) -> None:
    away = "http://127.0.0.1:1"
    with serving() as there:
        with pytest.raises(Refusal, match=f"{away} cannot be had here, and nothing was tested") as refused:
            played(tmp_path / "all", [there.uri, away], {})
        assert "start it, or correct its address" in str(refused.value)
        assert there.load() == []
    assert not (tmp_path / "all").exists()


def test_a_server_that_cannot_be_started_is_refused_before_the_first_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(server: str, **_: object) -> None:
        raise Refusal(f"No {server} without its program.")

    monkeypatch.setattr(servers, "start", start)
    with serving() as there:
        with pytest.raises(Refusal, match=r"nothing was tested\. No mlflow-postgres without its program"):
            played(tmp_path / "all", [there.uri, "mlflow-postgres"], {})
        assert there.load() == []
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("given", "plan", "sentence"),
    [
        (["mlflow-sqlite"], LITTLE, "Give at least two servers"),
        ([], LITTLE, "Give at least two servers"),
        (["mlflow-sqlite", "mlflow-postgre"], LITTLE, "Did you mean mlflow-postgres"),
        (["mlflow-sqlite", "mlflow-sqlite,worker=2"], LITTLE, "has no option 'worker'. Did you mean workers"),
        (["mlflow-sqlite", "https://user:secret@x"], LITTLE, "holds a user name or password"),
        (["mlflow-sqlite", "sqlite:////x.db"], LITTLE, "only --client stock can open"),
        (["mlflow-sqlite", "mlflow-postgres"], replace(LITTLE, client="null"), "The null client asks no server"),
    ],
    ids=["one", "none", "unknown", "option", "password", "store", "null"],
)
def test_what_cannot_be_compared_is_refused(given: list[str], plan: Plan, sentence: str) -> None:
    with pytest.raises(UsageRefusal, match=sentence) as refused:
        read_servers(given, plan)
    assert "secret" not in str(refused.value)
    # There is no such option here.
    assert "--uri" not in str(refused.value)


def test_servers_are_read_in_full_and_one_may_be_compared_with_itself() -> None:
    assert read_servers(["mlflow-sqlite, workers=4", "mlflow-sqlite", "http://x:5000/"], LITTLE) == [
        "mlflow-sqlite",
        "mlflow-sqlite",
        "http://x:5000",
    ]


def test_every_server_is_named_in_its_plan_so_that_no_address_of_the_environment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def run_job(plan: Plan, *_: object) -> int:
        seen.append((plan.server, plan.uri))
        refusal = Refusal("Enough.")
        refusal.shared = True
        raise refusal

    class Started:
        def stop(self) -> None:
            """Be gone."""

    monkeypatch.setattr(servers, "start", lambda *_, **__: Started())
    monkeypatch.setattr(compare, "run_job", run_job)
    with pytest.raises(Refusal, match="No server could be tested"):
        played(tmp_path, ["mlflow-sqlite", "mlflow-postgres"], {}, 1)
    assert sorted(seen) == [("mlflow-postgres", ""), ("mlflow-sqlite", "")]
    assert (tmp_path / MANIFEST).exists()
