"""The death of a part: who noticed, what failed, how long nothing good came."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.outages import outages, sentences
from analysis.statistics import measure
from analysis.verdict import judge
from hpcstress.record import Operation, Outcome
from tests.analysis.results import BEGAN, frame_of, rows, steps_of, table

SECOND = 1_000_000_000
DEATH = BEGAN + 2.0
AUDIT = table("audit", [{"step": 0, "checked": 10, "intact": 10}])


def attempts(*fates: tuple[float, Outcome], op: Operation = Operation.create_run) -> np.ndarray:
    return rows(
        {"run": number, "op": op, "start": int((end - 0.01) * SECOND), "end": int(end * SECOND), "outcome": outcome}
        for number, (end, outcome) in enumerate(fates)
    )


def events(*told: tuple[float, str, str]) -> np.ndarray:
    return table("events", [{"time": time, "part": part, "told": words} for time, part, words in told])


KILLED = (DEATH, "tracking-2", "was killed by SIGKILL")
GOOD = [(at, Outcome.ok) for at in (1.0, 1.5, 1.9)]
BAD = [(2.1, Outcome.closed), (2.2, Outcome.gateway), (2.3, Outcome.gateway)]
LATER = [(3.4, Outcome.ok), (3.5, Outcome.ok), (4.0, Outcome.ok)]


def job(*fates: tuple[float, Outcome], told: np.ndarray) -> object:
    made = attempts(*fates)
    return frame_of(made, steps_of(made, [len(fates)]), events=told, audit=AUDIT)


def test_a_death_is_told_with_what_failed_and_for_how_long() -> None:
    noticed = (DEATH + 0.05, "balancer", "took tracking-2 out; 3 requests in all found it silent")
    (outage,) = outages(job(*GOOD, *BAD, *LATER, told=events(KILLED, noticed)), BEGAN)
    assert (outage.part, outage.step) == ("tracking-2", 0)
    assert outage.time == pytest.approx(2.0)
    assert outage.noticed == ((pytest.approx(0.05), *noticed[1:]),)
    assert dict(outage.failed) == {"closed": 1, "gateway": 2}
    assert (outage.first_failure, outage.last_failure) == pytest.approx((0.1, 0.3))
    assert outage.recovered == pytest.approx(1.4)
    # From the last good answer before the death to the first one behind it.
    assert (outage.longest, outage.before) == pytest.approx((1.5, 0.5))


def test_it_is_said_in_words_with_the_audit_of_its_step() -> None:
    noticed = (DEATH + 0.05, "balancer", "took tracking-2 out; 3 requests in all found it silent")
    (sentence,) = sentences(job(*GOOD, *BAD, *LATER, told=events(KILLED, noticed)))
    assert sentence == (
        "At 2.0 s tracking-2 was killed by SIGKILL. "
        "Balancer took tracking-2 out; 3 requests in all found it silent, 50 ms later. "
        "In the rest of its step 3 attempts failed (closed 1, gateway 2), the first 0.10 s later, "
        "the last 0.30 s later. "
        "The first good answer after a failure came 1.4 s later. "
        "The longest time without a good answer since was 1.5 s (it began 0.10 s earlier); "
        "in the step before that death it was 0.50 s. "
        "The audit read back 10 runs: everything that the server had acknowledged is there."
    )


def test_a_death_that_nobody_noticed_and_that_broke_nothing_is_told_as_that() -> None:
    (sentence,) = sentences(job(*GOOD, *LATER, told=events(KILLED)))
    assert "No other part noticed. No attempt failed in the rest of its step." in sentence


def test_what_failed_before_the_death_is_not_its_doing() -> None:
    (outage,) = outages(job((1.0, Outcome.timeout), *GOOD, *LATER, told=events(KILLED)), BEGAN)
    assert outage.failed == ()
    assert np.isnan(outage.first_failure)


def test_a_connection_is_no_answer() -> None:
    made = np.concatenate([attempts(*GOOD, (5.0, Outcome.ok)), attempts((2.5, Outcome.ok), op=Operation.connect)])
    frame = frame_of(made, steps_of(made, [5]), events=events(KILLED))
    assert outages(frame, BEGAN)[0].longest == pytest.approx(3.1)


def test_a_job_that_never_recovers_has_a_gap_until_its_step_ends() -> None:
    (outage,) = outages(job(*GOOD, *BAD, told=events(KILLED)), BEGAN)
    assert np.isnan(outage.recovered)
    assert outage.longest == pytest.approx(0.4)


def test_a_death_between_steps_broke_nothing() -> None:
    told = events((BEGAN + 100, "tracking-2", "ended with exit code 3"))
    assert sentences(job(*GOOD, told=told)) == ["At 100 s tracking-2 ended with exit code 3. No step was under way."]


def test_a_name_within_another_name_is_not_it() -> None:
    told = events(KILLED, (DEATH + 1, "balancer", "took tracking-21 out; 1 requests in all found it silent"))
    assert outages(job(*GOOD, *LATER, told=told), BEGAN)[0].noticed == ()


def test_without_events_nothing_is_said() -> None:
    assert sentences(job(*GOOD, told=events())) == []


def test_the_answer_names_the_death_as_the_cause_of_what_failed_in_its_step() -> None:
    frame = job(*GOOD, *BAD, *LATER, told=events(KILLED))
    assert judge(frame, measure(frame).steps).answer.endswith(": meanwhile tracking-2 was killed by SIGKILL.")


@pytest.mark.parametrize("played", [True, False])
def test_a_death_before_the_first_step_is_told_as_such(played: bool) -> None:
    told = events((BEGAN - 3.0, "database", "lost its guard, which was killed by SIGKILL"))
    frame = job(*GOOD, told=told) if played else frame_of(attempts(), steps_of(attempts(), []), events=told)
    (sentence,) = sentences(frame)
    assert sentence == (
        "Before the first step database lost its guard, which was killed by SIGKILL. No step was under way."
    )
