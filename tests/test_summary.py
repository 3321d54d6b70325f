from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.schedule import Step
from hpcstress.summary import Ends, StepSummary

STEP = Step(3, 1, 100)
MS = 1_000_000

attempts = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(-(2**40), 2**40),
        st.integers(-(2**40), 2**40),
        st.sampled_from(Outcome),
        st.sampled_from([Operation.connect, Operation.create_run, Operation.finish_run]),
    ),
    max_size=60,
)


def rows(told: list[tuple[int, int, int, Outcome, Operation]]) -> np.ndarray:
    made = np.zeros(len(told), RECORD)
    made["attempt"] = 1
    for name, values in zip(("rank", "start", "end", "outcome", "op"), zip(*told, strict=True), strict=False):
        made[name] = values
    return made


def summed(parts: list[np.ndarray]) -> dict[str, Any]:
    summary = StepSummary(STEP, 1.5e9)
    for part in parts:
        summary.add(part)
    row = summary.row(7)
    assert len(row) == 1
    return dict(zip(row.dtype.names, row[0].tolist(), strict=True))


@given(attempts, st.lists(st.integers(0, 60)), st.randoms(use_true_random=False))
def test_any_parts_in_any_order_sum_up_to_the_whole(
    told: list[tuple[int, int, int, Outcome, Operation]], cuts: list[int], random: Any
) -> None:
    whole = rows(told)
    parts = np.split(whole[np.array(random.sample(range(len(whole)), len(whole)), int)], sorted(cuts))
    assert summed(parts) == summed([whole])


@given(attempts.filter(bool))
def test_the_row_counts_attempts_and_says_when_ranks_were_done(
    told: list[tuple[int, int, int, Outcome, Operation]],
) -> None:
    row = summed([rows(told)])
    done = {rank: max(end for other, _, end, _, _ in told if other == rank) for rank, *_ in told}
    assert row["attempts"] == len(told)
    assert row["failed"] == sum(outcome is not Outcome.ok for *_, outcome, _ in told)
    assert row["runs_finished"] == 7
    assert row["first_start"] == min(start for _, start, *_ in told)
    assert row["first_done"] == min(done.values())
    assert row["last_done"] == max(done.values())


def test_a_rank_is_done_with_its_last_attempt_and_the_step_with_the_last_rank() -> None:
    ok, connect = Outcome.ok, Operation.connect
    row = summed([rows([(0, 0, 5 * MS, ok, connect), (0, 5, 9 * MS, ok, connect), (1, 2, 7 * MS, ok, connect)])])
    assert (row["first_start"], row["first_done"], row["last_done"]) == (0, 7 * MS, 9 * MS)


def test_what_happened_last_is_last_in_whichever_part_it_comes() -> None:
    told = rows([(0, 7, 9 * MS, Outcome.ok, Operation.connect), (0, 0, 5 * MS, Outcome.ok, Operation.connect)])
    for parts in ([told[:1], told[1:]], [told[1:], told[:1]]):
        row = summed(parts)
        assert (row["first_start"], row["last_done"]) == (0, 9 * MS)


def test_where_nothing_happened_instants_are_minus_one() -> None:
    row = summed([rows([])])
    assert (row["first_start"], row["first_done"], row["last_done"]) == (-1, -1, -1)
    assert (row["attempts"], row["failed"], row["runs_finished"]) == (0, 0, 7)


def test_the_row_names_its_step() -> None:
    row = summed([])
    assert (row["step"], row["repeat"], row["size"], row["began"]) == (3, 1, 100, 1.5e9)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40, unique=True))
def test_a_run_has_begun_when_it_has_sent_its_first_request(told: list[tuple[int, int]]) -> None:
    part = np.zeros(len(told), RECORD)
    part["attempt"] = 1
    part["run"], part["seq"] = np.array(told, int).reshape(-1, 2).T
    assert summed([part])["runs_begun"] == len({run for run, seq in told if seq == 0})


def test_the_row_says_what_a_sweep_gave_the_step() -> None:
    row = StepSummary(Step(3, 1, 100, "params=5 tags=0"), 1.5e9).row(0)
    assert row["variation"].tolist() == [b"params=5 tags=0"]


CONNECT, CREATE, LOG, FINISH = Operation.connect, Operation.create_run, Operation.log_params, Operation.finish_run
OK, BAD = Outcome.ok, Outcome.server_error


@pytest.mark.parametrize(
    ("told", "closed", "left_open"),
    [
        ([(CREATE, OK), (LOG, OK), (FINISH, OK)], 1, 1),
        ([(CREATE, OK), (LOG, OK)], 0, 1),
        ([(CREATE, OK), (FINISH, OK), (CREATE, OK), (LOG, OK)], 0, 1),
        ([(CREATE, OK), (FINISH, BAD), (FINISH, OK)], 1, 1),
        ([(CREATE, OK), (FINISH, BAD)], 0, 0),
        ([(CREATE, BAD)], 0, 0),
        ([(CONNECT, OK)], 0, 0),
        ([(Operation.search_runs, OK)], 1, 1),
        ([(Operation.list_workspaces, Outcome.not_supported)], 1, 1),
        ([(Operation.search_runs, Outcome.not_supported)], 0, 0),
    ],
)
def test_a_run_is_at_its_end_when_it_went_well_and_finished_what_it_created(
    told: list[tuple[Operation, Outcome]], closed: int, left_open: int
) -> None:
    made = rows([(0, 0, 0, outcome, operation) for operation, outcome in told])
    for expected, may in ((closed, False), (left_open, True)):
        ends = Ends(left_open=may)
        # In pieces, beside a run that is at its end, and calls, which are no attempts.
        other = rows([(0, 0, 0, OK, CREATE), (0, 0, 0, OK, FINISH)])
        other["run"] = 70_000
        call = rows([(0, 0, 0, BAD, LOG)])
        call["attempt"] = 0
        for piece in (other, *np.split(made, len(made)), call):
            ends.add(piece)
        assert ends.count() == 1 + expected


def test_where_there_are_no_rows_no_run_is_at_its_end() -> None:
    assert Ends(left_open=True).count() == 0
