"""What is larger than a request may be: split as MLflow's client does, or refused before the load with --no-split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.content import Batch, Content, Metric
from hpcstress.errors import UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan

amounts = st.tuples(st.integers(0, 2500), st.integers(0, 350), st.integers(0, 350))


def batch(metrics: int, params: int, tags: int) -> Batch:
    return Batch(
        [Metric("metric", 0.5, 0, step) for step in range(metrics)],
        [(f"param-{i}", "1") for i in range(params)],
        [(f"tag-{i}", "1") for i in range(tags)],
    )


@given(amounts)
def test_nothing_is_lost_or_sent_twice_and_every_part_fits(told: tuple[int, int, int]) -> None:
    whole = batch(*told)
    parts = [*whole.split(1000, 100, 100)]
    assert all(part.fits(1000, 100, 100) for part in parts)
    for what in range(3):
        assert [one for part in parts for one in part[what]] == whole[what]


@given(amounts)
def test_what_fits_is_sent_as_it_is(told: tuple[int, int, int]) -> None:
    whole = batch(*told)
    assert whole.fits(1000, 100, 100) == (len([*whole.split(1000, 100, 100)]) <= 1)


def test_parameters_are_made_while_they_are_split() -> None:
    params = Content(Plan(params=1000), "session").run(0, 0).params
    assert [pair for part in Batch(params=params).split(1000, 100, 100) for pair in part.params] == params[:]


LOG_BATCH = {"workload": "log-batch", "split": False}


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": 1001, "params": 0},
        {"metrics": 0, "params": 101},
        {"metrics": 0, "params": 0, "tags": 101},
        {"metrics": 801, "params": 100, "tags": 100},
        {"sweep": "params=10,101"},
        {"workload": "parallel-runs", "params": 101},
        {"workload": "parallel-runs", "metrics": 1001},
        {"workload": "parameters", "params": 101, "method": "log_params"},
        {"workload": "parameters", "params": 101, "method": "log_batch"},
    ],
    ids=str,
)
def test_what_would_have_to_be_split_is_refused_with_no_split(options: dict[str, object]) -> None:
    plan = Plan().with_options({**LOG_BATCH, **options})
    with pytest.raises(
        UsageRefusal, match=r"^--no-split: a batch of this plan has \d+ metrics, \d+ params and \d+ tags"
    ):
        estimate(plan)
    estimate(plan.with_options({"split": True}))


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": 800, "params": 100, "tags": 100},
        {"workload": "parameters", "params": 5000, "method": "log_param"},
        {"workload": "logging"},
    ],
    ids=str,
)
def test_what_fits_is_no_matter_for_no_split(options: dict[str, object]) -> None:
    estimate(Plan().with_options({**LOG_BATCH, **options}))
