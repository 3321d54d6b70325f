from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.report import write_report
from analysis.summary import summary
from analysis.thresholds import Judgement, judgements, kept
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from tests.analysis.results import MS, frame_of, rows, steps_of, write


def judged(threshold: str, attempts: np.ndarray, steps: int = 1) -> Judgement:
    plan = Plan(threshold=threshold).as_mapping()
    [judgement] = judgements(frame_of(attempts, steps_of(attempts, [100] * steps), plan=plan))
    return judgement


def requests(*milliseconds: int, **fields: Any) -> np.ndarray:
    """Return a run for each duration, of one request."""
    return rows({"run": run, "end": time * MS, **fields} for run, time in enumerate(milliseconds))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 1001))
def test_the_largest_of_all_attempts_decides_and_the_limit_itself_is_too_much(times: list[int], limit: int) -> None:
    assert judged(f"service max < {limit}ms", requests(*times)).kept == (max(times) < limit)


def test_a_percentile_is_that_of_all_attempts_failed_ones_too() -> None:
    slow = requests(*[10] * 90, *[900] * 10)
    slow["outcome"][90:] = Outcome.timeout
    assert judged("service p90 < 500ms", slow).kept
    assert not judged("service p91 < 500ms", slow).kept


def test_the_worst_step_decides_and_is_named() -> None:
    attempts = np.concatenate([requests(10, 10, 10), requests(30, 30, 30, step=1), requests(20, 20, 20, step=2)])
    assert judged("service p50 < 25ms", attempts, steps=3) == Judgement(
        kept=False, sentence="The threshold service p50 < 25ms was not kept: 30 ms in step 2."
    )
    assert judged("service p50 < 15ms", attempts, steps=3).sentence.endswith("30 ms in step 2, and in 2 of 3 steps.")
    assert judged("service p50 < 31ms", attempts, steps=3) == Judgement(
        kept=True, sentence="The threshold service p50 < 31ms was kept: 30 ms in the worst step."
    )


def test_a_run_lasts_from_when_it_was_due_to_the_end_of_its_last_attempt() -> None:
    attempts = rows(
        [
            {"run": 0, "seq": 0, "due": 0, "start": 5 * MS, "end": 10 * MS},
            {"run": 0, "seq": 1, "due": 10 * MS, "start": 11 * MS, "end": 40 * MS},
            {"run": 1, "seq": 0, "due": 30 * MS, "start": 35 * MS, "end": 60 * MS},
        ]
    )
    assert not judged("run_duration max < 40ms", attempts).kept
    assert judged("run_duration max < 41ms", attempts).kept
    assert not judged("response max < 30ms", attempts).kept
    assert judged("response max < 31ms", attempts).kept
    assert judged("service max < 30ms", attempts).kept


def test_an_operation_is_judged_by_its_own_attempts_alone() -> None:
    attempts = np.concatenate([requests(10, 10), requests(900, op=Operation.log_batch)])
    assert judged("create_run max < 50ms", attempts).kept
    assert not judged("log_batch p50 < 50ms", attempts).kept


def test_making_a_connection_is_no_request_but_can_be_judged_by_its_name() -> None:
    attempts = np.concatenate([requests(10, 10), requests(900, op=Operation.connect)])
    assert judged("service max < 50ms", attempts).kept
    assert not judged("connect max < 50ms", attempts).kept


def test_the_share_of_failures_counts_connections_and_not_what_a_server_lacks() -> None:
    attempts = np.concatenate([requests(*[10] * 96), requests(1, 1, op=Operation.connect, outcome=Outcome.refused)])
    attempts = np.concatenate(
        [attempts, requests(1, 1, op=Operation.create_prompt, outcome=Outcome.not_supported, status=404)]
    )
    assert judged("failed < 2.1%", attempts).kept
    assert judged("failed < 2%", attempts).sentence == "The threshold failed < 2% was not kept: 2.00% in step 1."
    assert not judged("connect failed < 99%", attempts).kept
    assert judged("create_run failed < 0.01%", attempts).kept


def test_what_was_never_measured_was_not_kept() -> None:
    assert judged("log_batch p99 < 1s", requests(10)) == Judgement(
        kept=False, sentence="The threshold log_batch p99 < 1s was not kept: there was nothing of it."
    )


def test_a_plan_without_thresholds_keeps_to_all(tmp_path: Path) -> None:
    attempts = requests(10, 20, 30)
    assert kept(write(tmp_path / "result.h5", attempts, {"steps": steps_of(attempts, [3])}))


@pytest.mark.parametrize(("limit", "words"), [("10s", "was kept"), ("15ms", "was not kept")])
def test_summary_and_report_say_what_came_of_each(tmp_path: Path, limit: str, words: str) -> None:
    attempts = requests(10, 20, 30)
    plan = Plan(threshold=f"run_duration p95 < {limit}, failed < 1%").to_toml()
    result = write(tmp_path / "result.h5", attempts, {"steps": steps_of(attempts, [3])}, plan=plan)
    assert kept(result) == (limit == "10s")
    page = write_report([result]).read_text("utf-8")
    for text in (summary(result), re.sub(r"[\u00a0\u2060]", " ", page).replace("&lt;", "<")):
        assert f"The threshold run_duration p95 < {limit} {words}: " in text
        assert "The threshold failed < 1% was kept: 0.00% in the worst step." in text
