from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.record import Operation
from hpcstress.thresholds import KIND, Threshold, read


@pytest.mark.parametrize(
    ("text", "threshold"),
    [
        ("run_duration p95 < 10s", ("run_duration", 0.95, 10.0)),
        ("service p99<500 ms", ("service", 0.99, 0.5)),
        ("response  p99.9 <  2m", ("response", 0.999, 120.0)),
        ("service max < 3", ("service", 1.0, 3.0)),
        ("failed < 1%", ("failed", None, 0.01)),
        ("log_batch failed < 0.5", ("log_batch", None, 0.5)),
        ("connect p50 < 0.1", ("connect", 0.5, 0.1)),
    ],
)
def test_a_threshold_is_a_metric_what_of_it_and_a_limit(text: str, threshold: tuple[str, float | None, float]) -> None:
    [told] = read(text)
    metric, level, limit = threshold
    assert told.metric == metric
    assert told.level == (level if level is None else pytest.approx(level))
    assert told.limit == pytest.approx(limit)


def test_there_may_be_several_or_none() -> None:
    assert [threshold.metric for threshold in read("failed < 1%, service p50 < 1s,log_batch max < 2s")] == [
        "failed",
        "service",
        "log_batch",
    ]
    assert read("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p95 < 10s", "nothing is called p95"),
        ("run_duraton p95 < 10s", "Did you mean run_duration"),
        ("log_batsh p95 < 10s", "Did you mean log_batch"),
        ("run_duration < 10s", "is no threshold: write"),
        ("failed p95 < 1%", "is no threshold: write"),
        ("service p95 > 1s", "is no threshold: write"),
        ("service p100 < 1s", "is no threshold: write"),
        ("service p0 < 1s", "no percentile 0"),
        ("service mean < 1s", "is no threshold: write"),
        ("service p95 < soon", "'soon' is not a duration"),
        ("service p95 < 0s", "too short"),
        ("failed < 200%", "not a share between 0 and 1"),
        ("service p95 < 1s,", "'' is no threshold"),
        ("end p95 < 1s", "nothing is called end"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(UsageRefusal) as refusal:
        Plan(threshold=text)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("--threshold: ")


@given(st.sampled_from(Operation), st.sampled_from(["p50", "p99.99", "max"]), st.integers(1, 10**6))
def test_what_is_read_comes_back_equal(operation: Operation, what: str, limit: int) -> None:
    if operation is Operation.end:
        return
    text = f"{operation.name} {what} < {limit}ms"
    assert KIND.read(KIND.read(text)) == text
    assert read(text)[0].limit == pytest.approx(limit / 1000)
    assert isinstance(read(text)[0], Threshold)
