from __future__ import annotations

from typing import Any

import pytest

from analysis.advice import ADVICE, UNKNOWN, advice
from analysis.answer import answer_of, audit_of, remarks_of
from analysis.statistics import StepStatistics, measure
from hpcstress.record import Operation, Outcome
from tests.analysis.results import MS, SECOND, frame_of, rows, steps_of, table

TAKES_10 = "Takes 10 parallel runs with a p99 of 0.10 s and no errors;"
TAKES_30 = "Takes 30 parallel runs with a p99 of 0.10 s and no errors;"
NOT_EVEN_10 = "Does not take even 10 parallel runs, the smallest step tried:"
POOL = "the server's connection pool was exhausted"
RAISE = (
    "raise MLFLOW_SQLALCHEMYSTORE_POOL_SIZE (80 is enough for the 40 threads of a worker; a server started with "
    "--server has that with pool=80)."
)


def step(size: int, **told: Any) -> dict[str, Any]:
    """Tell of one step: its size, its p99 in milliseconds, its failures by cause, of requests or of connections."""
    return {"size": size, "p99": 100, "repeat": 0, "failed": {}, "unconnected": {}, **told}


def played(*told: dict[str, Any]) -> tuple[StepStatistics, ...]:
    """Return the statistics of steps in which each run connects and sends one request."""
    attempts = []
    for number, of in enumerate(told):
        causes = [cause for cause, count in of["failed"].items() for _ in range(count)]
        unconnected = [cause for cause, count in of["unconnected"].items() for _ in range(count)]
        for run in range(of["size"]):
            connected = unconnected[run] if run < len(unconnected) else Outcome.ok
            common = {"step": number, "run": run}
            attempts.append({**common, "op": Operation.connect, "seq": 0, "end": MS, "outcome": connected})
            if connected is Outcome.ok:
                place = run - len(unconnected)
                outcome = causes[place] if place < len(causes) else Outcome.ok
                attempts.append({**common, "start": MS, "end": of["p99"] * MS + MS, "outcome": outcome})
    made = rows(attempts)
    steps = steps_of(made, [of["size"] for of in told], [of["repeat"] for of in told])
    return measure(frame_of(made, steps)).steps


def audited(*records: dict[str, int]) -> Any:
    return table("audit", records)


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (
            [step(10), step(30, p99=810), step(100)],
            "Takes at least 100 parallel runs, the largest step tried, with a p99 of 0.10 s and no errors.",
        ),
        (
            [step(10), step(30), step(100, failed={Outcome.pool_exhausted: 14})],
            f"{TAKES_30} at 100 {POOL} (14 of 100 requests): {RAISE}",
        ),
        (
            [step(10), step(30), step(100, p99=4200)],
            f"{TAKES_30} at 100 the p99 is 4.2 s, above the objective of 1 s.",
        ),
        (
            [step(10, p99=4200)],
            f"{NOT_EVEN_10} the p99 is 4.2 s, above the objective of 1 s.",
        ),
        (
            [step(10, failed={Outcome.pool_exhausted: 10})],
            f"{NOT_EVEN_10} {POOL} (10 of 10 requests): {RAISE}",
        ),
        # Every repeat has to be taken, and the slowest of them is told.
        (
            [step(10, p99=90), step(30), step(10, repeat=1), step(30, repeat=1, failed={Outcome.pool_exhausted: 1})],
            f"{TAKES_10} at 30 {POOL} in 1 of 2 repeats (1 of 60 requests): {RAISE}",
        ),
        # A larger step that happened to go well proves nothing.
        (
            [step(10), step(30, failed={Outcome.pool_exhausted: 3}), step(100)],
            f"{TAKES_10} at 30 {POOL} (3 of 30 requests): {RAISE}",
        ),
        # Of several causes the most frequent is named first, and the others are not hidden.
        (
            [step(10), step(30, failed={Outcome.timeout: 2, Outcome.pool_exhausted: 9, Outcome.closed: 1})],
            f"{TAKES_10} at 30 {POOL} (9 of 30 requests; besides: timeout 2, closed 1): {RAISE}",
        ),
        # Slowness comes first; where the server fails is told as well.
        (
            [step(10), step(30, p99=4200), step(100, p99=9000), step(300, failed={Outcome.pool_exhausted: 9})],
            (
                f"{TAKES_10} at 30 the p99 is 4.2 s, above the objective of 1 s; "
                f"at 300 {POOL} (9 of 300 requests): {RAISE}"
            ),
        ),
        # An objective that was not met either is nothing beside failures.
        (
            [step(10), step(30, p99=4200, failed={Outcome.pool_exhausted: 9})],
            f"{TAKES_10} at 30 {POOL} (9 of 30 requests): {RAISE}",
        ),
    ],
)
def test_the_answer_follows_from_the_steps(told: list[dict[str, Any]], answer: str) -> None:
    assert answer_of(played(*told), 1.0, audited()) == answer


def test_failures_to_connect_are_counted_among_connections() -> None:
    answer = answer_of(played(step(10), step(30, unconnected={Outcome.refused: 12})), 1.0, audited())

    assert "at 30 connections could not be made (12 of 30 connections)" in answer


def test_failures_of_both_kinds_are_counted_among_attempts() -> None:
    answer = answer_of(
        played(step(10), step(30, unconnected={Outcome.closed: 12}, failed={Outcome.closed: 3})), 1.0, audited()
    )

    assert "at 30 the server closed connections without an answer (15 of 48 attempts)" in answer


def test_who_was_with_a_part_that_died_is_told_of_its_death_and_not_of_a_setting() -> None:
    died = {1: "tracking-2 was killed by SIGKILL"}
    steps = played(step(10), step(30, failed={Outcome.gateway: 2}))
    assert answer_of(steps, 1.0, audited(), died).endswith(
        "(2 of 30 requests): meanwhile tracking-2 was killed by SIGKILL."
    )
    # A death in another step, or a cause that no death has, changes nothing.
    assert "workers" in answer_of(steps, 1.0, audited(), {0: died[1]})
    full = played(step(10), step(30, failed={Outcome.pool_exhausted: 9}))
    assert answer_of(full, 1.0, audited(), died) == answer_of(full, 1.0, audited())


@pytest.mark.parametrize("consequence", [Outcome.interrupted, Outcome.refused])
def test_a_consequence_yields_to_its_cause(consequence: Outcome) -> None:
    answer = answer_of(played(step(10), step(30, failed={consequence: 20, Outcome.closed: 1})), 1.0, audited())

    assert f"closed connections without an answer (1 of 30 requests; besides: {consequence.name} 20)" in answer


STOPPED = "the job was stopped: until then a p99 of 0.10 s and no errors."


def test_what_the_end_of_the_job_cut_off_is_no_failure_of_the_server() -> None:
    cut = step(30, failed={Outcome.interrupted: 20})

    assert answer_of(played(step(10), cut), 1.0, audited()) == f"{TAKES_10} at 30 {STOPPED}"
    assert answer_of(played(cut), 1.0, audited()) == f"At 30 parallel runs, the smallest step tried, {STOPPED}"
    assert answer_of(played(step(30), {**cut, "repeat": 1}), 1.0, audited()) == (
        "At 30 parallel runs, the smallest step tried, the job was stopped in 1 of 2 repeats: "
        "until then a p99 of 0.10 s and no errors."
    )
    assert not remarks_of(played(cut), 1.0)


def test_what_broke_before_the_job_was_stopped_is_told_all_the_same() -> None:
    slow = played(step(10), step(30, p99=4200, failed={Outcome.interrupted: 20}))

    assert answer_of(slow, 1.0, audited()) == f"{TAKES_10} at 30 the p99 is 4.2 s, above the objective of 1 s."


@pytest.mark.parametrize("complete", [True, False])
def test_runs_under_way_when_a_job_died_are_no_runs_that_did_not_come_to_an_end(complete: bool) -> None:
    attempts = rows([{"step": number, "run": run} for number, size in ((0, 10), (1, 27)) for run in range(size)])
    steps = steps_of(attempts, [10, 30])
    steps["runs_finished"] = [10, 26]

    answer = answer_of(measure(frame_of(attempts, steps, complete=complete)).steps, 1.0, audited())

    stopped = "the job was stopped: until then a p99 of 10 ms and no errors."
    rest = "4 of 30 runs did not come to an end." if complete else stopped
    assert answer == f"Takes 10 parallel runs with a p99 of 10 ms and no errors; at 30 {rest}"


def test_of_a_job_that_was_stopped_only_the_last_step_was_cut() -> None:
    attempts = rows([{"step": number, "run": run} for number in (0, 1) for run in range(10)])
    steps = steps_of(attempts, [10, 30])
    steps["runs_finished"] = [7, 10]

    answer = answer_of(measure(frame_of(attempts, steps, complete=False)).steps, 1.0, audited())

    assert answer == f"{NOT_EVEN_10} 3 of 10 runs did not come to an end."


def test_where_nothing_was_answered_before_the_job_was_stopped_that_is_said() -> None:
    attempts = rows([{"op": Operation.connect}])
    steps = steps_of(attempts, [10])
    steps["runs_finished"] = 0

    answer = answer_of(measure(frame_of(attempts, steps, complete=False)).steps, 1.0, audited())

    assert answer == "At 10 parallel runs, the smallest step tried, the job was stopped: nothing had been answered."


def test_the_p99_has_to_stay_below_the_objective() -> None:
    assert answer_of(played(step(10, p99=100)), 0.1, audited()).startswith("Does not take even 10")
    assert answer_of(played(step(10, p99=100)), 0.11, audited()).startswith("Takes at least 10")


@pytest.mark.parametrize("loss", ["missing", "wrong"])
def test_a_step_whose_audit_found_losses_is_not_taken(loss: str) -> None:
    answer = answer_of(played(step(10), step(30)), 1.0, audited({"step": 1, "checked": 30, loss: 2}))

    assert answer == (
        "Takes 10 parallel runs with a p99 of 0.10 s and no errors; "
        "at 30 2 runs lacked something that the server had acknowledged, or held something else."
    )


UNREAD = "2 of 10 runs unread, which may have lost something that was acknowledged"


@pytest.mark.parametrize(
    ("findings", "reservation"),
    [
        ({}, ""),
        ({"unread": 2}, f" But the audit left {UNREAD}."),
        ({"ghosts": 1}, " But the audit found 1 ghost run."),
        ({"unread": 2, "ghosts": 2000}, f" But the audit left {UNREAD}, and found 2,000 ghost runs."),
    ],
)
def test_ghosts_and_unread_runs_are_no_losses_and_the_answer_is_not_given_without_them(
    findings: dict[str, int], reservation: str
) -> None:
    audit = audited({"step": 0, "checked": 6, **findings}, {"step": 1, "checked": 4})

    assert answer_of(played(step(10)), 1.0, audit) == (
        "Takes at least 10 parallel runs, the largest step tried, with a p99 of 0.10 s and no errors." + reservation
    )
    assert answer_of(played(step(10, p99=4200)), 1.0, audit).endswith("the objective of 1 s." + reservation)


def test_one_run_that_fails_at_one_request_is_told_in_the_singular() -> None:
    assert "(1 of 1 request): " in answer_of(played(step(1, failed={Outcome.timeout: 1})), 1.0, audited())


def test_a_step_of_which_runs_are_missing_is_not_taken() -> None:
    attempts = rows([{"run": run} for run in range(7)])
    steps = steps_of(attempts, [10])
    steps["runs_finished"] = 7

    answer = answer_of(measure(frame_of(attempts, steps)).steps, 1.0, audited())

    assert answer == f"{NOT_EVEN_10} 3 of 10 runs did not come to an end."


GHOST = "1 ghost (a run that exists twice or that nobody asked for) turned up."
KEPT = "everything that the server had acknowledged is there."
OTHER = "1 holds something else than what was sent"
LOST = "2 miss something that the server had acknowledged"


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "Nothing was read back from the server, so nothing is known about losses."),
        ([{"checked": 1, "intact": 1}], f"The audit read back 1 run: {KEPT}"),
        (
            [{"checked": 30, "intact": 30}, {"step": 1, "checked": 1000, "intact": 1000}],
            f"The audit read back 1,030 runs: {KEPT}",
        ),
        ([{"checked": 30, "intact": 28, "missing": 2}], f"The audit read back 30 runs: 28 are intact, {LOST}."),
        (
            [{"checked": 30, "intact": 23, "missing": 2, "wrong": 1, "unread": 4}],
            f"The audit read back 30 runs: 23 are intact, {LOST}, {OTHER}, 4 could not be read.",
        ),
        ([{"checked": 2, "intact": 1, "unread": 1}], "The audit read back 2 runs: 1 is intact, 1 could not be read."),
        ([{"checked": 30, "intact": 30, "ghosts": 1}], f"The audit read back 30 runs: {KEPT} {GHOST}"),
    ],
)
def test_the_audit_is_told_in_a_sentence(records: list[dict[str, int]], sentence: str) -> None:
    assert audit_of(audited(*records)) == sentence


def test_a_failure_that_the_server_overcame_is_remarked() -> None:
    attempts = rows(
        [{"end": 2 * SECOND, "outcome": Outcome.closed}, {"start": 3 * SECOND, "end": 14 * SECOND, "run": 1}]
    )

    (remark,) = remarks_of(measure(frame_of(attempts, steps_of(attempts, [2]))).steps, 1.0)

    assert (
        remark
        == "At 2 runs (repeat 1) the first failure came 2.0 s after the start; a new request was answered 12 s later."
    )


def test_a_failure_that_the_server_did_not_overcome_is_remarked() -> None:
    (remark,) = remarks_of(played(step(30, failed={Outcome.closed: 1})), 1.0)

    assert remark.endswith("; no request sent after that was answered in this step.")


def test_slow_connections_are_remarked_because_they_are_in_no_requests_time() -> None:
    attempts = rows([{"op": Operation.connect, "end": 3 * SECOND}, {}])

    (remark,) = remarks_of(measure(frame_of(attempts, steps_of(attempts, [1]))).steps, 3.0)

    assert remark.startswith("At 1 run (repeat 1) making a connection took 3.0 s (p99)")


def test_nothing_is_remarked_of_a_step_that_went_well() -> None:
    assert remarks_of(played(step(10)), 1.0) == ()


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ok])
def test_there_is_advice_for_every_way_to_fail(outcome: Outcome) -> None:
    happened, remedy = ADVICE[outcome]

    assert advice(outcome.name) == (happened, remedy)
    for text in (happened, remedy):
        assert text[0].islower()
        assert not text.endswith(".")


def test_a_cause_of_a_newer_hpcstress_is_not_guessed_at() -> None:
    assert advice("outcome 99") == UNKNOWN
