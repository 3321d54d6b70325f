from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import tokens
from hpcstress.audit import Auditor, Report, Share, audit_result, ghosts
from hpcstress.clients import Place
from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal
from hpcstress.plan import Plan
from hpcstress.ranks import World
from hpcstress.record import RECORD, Operation
from hpcstress.replay import Acknowledged, Fault, Finding
from hpcstress.result import Result, ResultWriter
from hpcstress.schedule import Step
from hpcstress.target import from_environment
from tests.fake_mantik import FakeMantik
from tests.fake_mlflow import Faults, served, serving
from tests.jobs import SMALL, play
from tests.peers import Request, http_server, reply


@given(st.dictionaries(st.integers(-2, 6), st.integers(1, 3)), st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_ghosts_are_all_runs_but_one_of_each_acknowledged_creation(
    listed: dict[int, int], acknowledged: list[int]
) -> None:
    ids = {run: ["id"] * copies for run, copies in listed.items()}
    asked = [run for run, requests in enumerate(acknowledged) if requests and run in listed]
    known = Acknowledged()
    known.writes = np.array(acknowledged, np.uint32)
    assert ghosts({(run, 0): found for run, found in ids.items()}, known) == sum(listed.values()) - len(asked)


# Counting.

findings = st.lists(st.builds(Finding, st.sampled_from(Fault), st.text(max_size=5)), max_size=3)


@given(st.lists(findings, max_size=15), st.integers(0, 15))
def test_the_report_of_all_ranks_is_the_report_of_one(runs: list[list[Finding]], cut: int) -> None:
    one, first, second = Report(ghosts=3), Report(ghosts=1), Report(ghosts=2)
    for number, found in enumerate(runs):
        one.count(found)
        (first if number < cut else second).count(found)
    first.add(second)
    assert first == one
    assert one.checked == one.intact + one.missing + one.wrong + one.unread == len(runs)
    assert len(one.examples) <= 10


def test_a_run_counts_once_by_the_worst_that_is_known_of_it() -> None:
    missing, wrong, unread = (Finding(fault, fault.name) for fault in Fault)
    report = Report()
    for found in ([missing, wrong, unread], [unread, wrong], [unread], []):
        report.count(found)
    assert (report.missing, report.wrong, report.unread, report.intact) == (1, 1, 1, 1)
    assert not report.clean
    assert report.row(4).tolist() == [(4, 4, 1, 1, 1, 1, 0)]
    assert report.sentence() == (
        "1 of 4 runs read back is intact, 1 lacks something acknowledged, 1 holds something else, 1 could not be read, "
        "no ghost run"
    )


def test_ghosts_alone_are_told_and_no_loss() -> None:
    assert Report().sentence() == "nothing was acknowledged, nothing was read back"
    assert Report(ghosts=2).sentence() == "0 of 0 runs read back are intact, 2 ghost runs"
    many = Report(checked=9000, intact=2000, missing=3000, wrong=4000, ghosts=1).sentence()
    assert many == (
        "2,000 of 9,000 runs read back are intact, 3,000 lack something acknowledged, 4,000 hold something else, "
        "1 ghost run"
    )
    assert Report(checked=1, intact=1).sentence() == "1 of 1 run read back is intact, no ghost run"
    assert Report(ghosts=2).clean


# Against servers.


def audited(folder: Path, plan: Plan, faults: Faults) -> tuple[int, dict[str, int], Any, list[str]]:
    """Play a job against a server with faults; return exit code, the audit's counts, the server, the notes."""
    with serving(faults) as server:
        code = play(folder, plan, server.environment)
    with Result(folder / "result.h5") as result:
        [row] = result.table("audit")
        return code, {name: int(row[name]) for name in row.dtype.names}, server, result.notes


def counts(step: int = 0, **told: int) -> dict[str, int]:
    return dict.fromkeys(["checked", "intact", "missing", "wrong", "unread", "ghosts"], 0) | {"step": step} | told


MORE = replace(SMALL, runs=(12,))


def test_an_honest_server_gives_a_clean_audit(tmp_path: Path) -> None:
    code, told, _, notes = audited(tmp_path / "job", MORE, Faults())
    assert code == 0
    assert told == counts(checked=12, intact=12)
    assert notes == []


@pytest.mark.parametrize(
    ("switch", "every", "kind"),
    [
        ("forget_param", 13, "missing"),
        ("forget_metric", 7, "missing"),
        ("forget_artifact", 5, "missing"),
        ("forget_run", 4, "missing"),
        ("ignore_finish", 3, "missing"),
        ("change_param", 13, "wrong"),
        ("change_metric", 7, "wrong"),
        ("corrupt_artifact", 5, "wrong"),
    ],
)
def test_every_kind_of_lie_is_found_in_each_run_that_it_struck(
    tmp_path: Path, switch: str, every: int, kind: str
) -> None:
    code, told, server, notes = audited(tmp_path / "job", MORE, Faults(**{switch: every}))
    struck = server.lied(switch)
    assert 0 < len(struck) < 12
    assert code == 3
    assert told == counts(checked=12, intact=12 - len(struck)) | {kind: len(struck)}
    assert {note.removeprefix("Audit of step 1: ").split(":")[0] for note in notes} == struck


def test_a_run_that_exists_twice_is_a_ghost_and_still_intact(tmp_path: Path) -> None:
    # A load balancer that repeats a creation does that; which of the two the server lists first is its own business.
    code, told, server, _ = audited(tmp_path / "job", MORE, Faults(create_twice=5))
    assert code == 0
    assert told == counts(checked=12, intact=12, ghosts=len(server.lied("create_twice")))


def test_a_loss_is_found_beside_a_ghost(tmp_path: Path) -> None:
    code, told, _, _ = audited(tmp_path / "job", MORE, Faults(create_twice=1, ignore_finish=12))
    assert code == 3
    assert told == counts(checked=12, intact=11, missing=1, ghosts=12)


@pytest.mark.parametrize("at", ["log-batch", "runs/update"])
def test_what_was_done_but_not_acknowledged_may_be_there(tmp_path: Path, at: str) -> None:
    code, told, server, _ = audited(tmp_path / "job", MORE, Faults(hang_up=5, at=at))
    assert sum(seen.status == 0 for seen in server.requests) > 1
    assert code == 0
    assert told == counts(checked=12, intact=12)


def test_a_creation_that_was_not_acknowledged_is_a_ghost(tmp_path: Path) -> None:
    code, told, _, _ = audited(tmp_path / "job", MORE, Faults(hang_up=4, at="runs/create"))
    assert code == 0
    assert told == counts(checked=9, intact=9, ghosts=3)


def test_a_server_that_does_not_answer_has_lost_nothing_yet(tmp_path: Path) -> None:
    code, told, _, notes = audited(tmp_path / "job", MORE, Faults(unavailable=5, at="runs/get?run_id"))
    assert code == 3
    assert told == counts(checked=12, intact=10, unread=2)
    assert "The audit of step 1 could not read 2 runs back." in notes


def test_when_runs_cannot_be_listed_none_is_read(tmp_path: Path) -> None:
    code, told, _, notes = audited(tmp_path / "job", MORE, Faults(throttled=1, at="runs/search"))
    assert code == 3
    assert told == counts(checked=12, unread=12)
    assert any("answered 429 (reading the runs back)" in note for note in notes)


def test_as_many_runs_are_read_as_the_plan_says(tmp_path: Path) -> None:
    code, told, server, _ = audited(tmp_path / "job", replace(MORE, audit=5), Faults(ignore_finish=1))
    assert code == 3
    assert told == counts(checked=5, missing=5)
    assert sum("run_id" in seen.query and "run_uuid" not in seen.query for seen in server.requests) == 5


def test_runs_on_several_pages_are_all_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstress.clients.api.PAGE", 5)
    _, told, server, _ = audited(tmp_path / "job", MORE, Faults())
    assert told == counts(checked=12, intact=12)
    assert sum(seen.path.endswith("runs/search") for seen in server.requests) == 3


@pytest.mark.parametrize("users", [0, 1, 4, 5])
def test_no_rank_reads_back_what_it_or_its_users_have_written(users: int) -> None:
    class Three(World):
        """Be the first of three ranks."""

        size = 3

    target = from_environment("http://127.0.0.1:1", {"HOME": "/nonexistent"})
    auditor = Auditor(Three(), Dialer(target), MORE, "session", Place("1"))
    listed = {(run, 0): [f"id{run}"] for run in range(12)}
    acknowledged = Acknowledged()
    acknowledged.writes = np.array([0, *[5] * 11], np.uint32)
    acknowledged.finishes = np.ones(12, np.uint32)
    shares = auditor._shares(Step(0, 0, users or 12), listed, acknowledged)
    writers = {run: run % (users or 12) % 3 for run in range(1, 12)}
    for rank, share in enumerate(shares):
        assert share == [
            Share(run, {0: [f"id{run}"]}, 5, 1, 0, frozenset())
            for run, writer in writers.items()
            if (writer + 1) % 3 == rank
        ]


# `hpcstress audit`.


def again(path: Path, environment: dict[str, str]) -> tuple[bool, list[str]]:
    said: list[str] = []
    return audit_result(World(), path, environment, said.append), said


def test_a_result_can_be_audited_again_and_later_losses_are_found(tmp_path: Path) -> None:
    plan = replace(SMALL, repeats=2)
    with serving(password="correct-horse") as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        result = tmp_path / "job" / "result.h5"
        sound = "6 of 6 runs read back are intact, no ghost run"
        assert again(result, server.environment) == (True, [f"step {step} (6 runs): {sound}" for step in (1, 2)])
        next(run for run in server.runs.values() if run.name == "hpcstress-0-4").params.clear()
        clean, said = again(result, server.environment)
    assert not clean
    assert said == [
        "step 1 (6 runs): 5 of 6 runs read back are intact, 1 lacks something acknowledged, no ghost run",
        "  hpcstress-0-4: 5 acknowledged params are missing, first 'param-0'.",
        f"step 2 (6 runs): {sound}",
    ]


def test_a_step_of_users_is_called_after_its_users(tmp_path: Path) -> None:
    plan = replace(SMALL, users=(2,), iterations=3)
    with serving() as server:
        assert play(tmp_path / "job", plan, server.environment) == 0
        _, said = again(tmp_path / "job" / "result.h5", server.environment)
    assert said == ["step 1 (2 users): 6 of 6 runs read back are intact, no ghost run"]


def test_a_job_that_did_without_an_audit_can_be_audited_later(tmp_path: Path) -> None:
    with serving(Faults(ignore_finish=1)) as server:
        assert play(tmp_path / "job", replace(SMALL, audit=0), server.environment) == 0
        clean, said = again(tmp_path / "job" / "result.h5", server.environment)
    assert not clean
    assert said[0].startswith("step 1 (6 runs): 0 of 6 runs read back are intact, 6 lack")


def test_a_wrong_password_is_tried_once(tmp_path: Path) -> None:
    with serving(password="correct-horse") as server:
        assert play(tmp_path / "job", replace(SMALL, repeats=3), server.environment) == 0
        wrong = server.environment | {"MLFLOW_TRACKING_PASSWORD": "battery-staple"}
        with pytest.raises(Refusal, match="refused the sign-in"):
            again(tmp_path / "job" / "result.h5", wrong)
        assert server.refused_sign_ins == 1


def test_at_mantik_an_audit_signs_in_once_and_keeps_its_token_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_WINDOW", (0.7, 0.8))
    with served(FakeMantik(1.5, dated=False, grace=30, faults=Faults(at="runs/get"))) as server:
        assert play(tmp_path / "job", replace(SMALL, repeats=3), server.environment) == 0
        server.sign_ins.clear()
        server.renewals.clear()
        server.faults.delay = 0.4
        assert again(tmp_path / "job" / "result.h5", server.environment)[0]
        assert len(server.sign_ins) == 1
        assert server.renewals
        assert server.refused_sign_ins == 0


def test_a_job_without_a_server_has_nothing_to_read_back(tmp_path: Path) -> None:
    play(tmp_path / "job", replace(SMALL, client="null"), {})
    with pytest.raises(Refusal, match="had no server") as refused:
        again(tmp_path / "job" / "result.h5", {})
    assert refused.value.exit_code == 2


# Bytes from a server are hostile.


HOSTILE = {
    "nothing": b"",
    "no JSON": b"<html>",
    "a list": b"[]",
    "runs that are a number": b'{"runs": 5}',
    "runs that are none": b'{"runs": [5]}',
    "no tags": b'{"runs": [{"info": {"run_id": "1"}, "data": {}}]}',
    "deep": b"[" * 100_000,
    "bad text": b'"\xff"',
}


@pytest.mark.parametrize("body", [*HOSTILE.values()], ids=[*HOSTILE])
@pytest.mark.parametrize("at", ["runs/search", "runs/get"])
def test_nonsense_is_a_finding_and_no_accident(tmp_path: Path, body: bytes, at: str) -> None:
    plan = replace(SMALL, runs=(2,))
    path = tmp_path / "result.h5"

    def answer(request: Request) -> bytes:
        if at in request.target:
            return reply(body)
        if "runs/search" in request.target:
            runs = [
                {
                    "info": {"run_id": f"id{run}"},
                    "data": {"tags": [{"key": "hpcstress.run", "value": str(run)}]},
                }
                for run in range(2)
            ]
            return reply(str({"runs": runs}).replace("'", '"').encode())
        return reply(b"{}")

    async def scene() -> tuple[bool, list[str]]:
        async with http_server(answer) as server:
            facts = {"session": "s", "experiment_id": "1", "uri": server.uri}
            with ResultWriter(path, plan.to_toml(), facts) as writer:
                rows = np.zeros(2, RECORD)
                rows["run"], rows["op"], rows["attempt"] = [0, 1], Operation.create_run, 1
                writer.append(rows)
                writer.finish({}, [], True)
            return await asyncio.to_thread(again, path, {})

    clean, said = asyncio.run(scene())
    assert not clean
    assert said[0].startswith("step 1 (2 runs): 0 of 2 runs read back are intact, ")
