from __future__ import annotations

import hashlib
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient, entities
from mlflow.tracking._tracking_service.client import TrackingServiceClient

from hpcstress.clients import METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST
from hpcstress.content import (
    CHUNK,
    METRIC_TIME_MS,
    PART_TAG,
    RUN_TAG,
    SESSION_TAG,
    STEP_TAG,
    Artifact,
    Batch,
    Content,
    Metric,
    Metrics,
    Params,
)
from hpcstress.plan import Plan

SEEDS = st.integers(0, 2**32 - 1)
RUNS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(0, 40)
BOUNDS = st.none() | st.integers(-50, 50)
SLICES = st.builds(slice, BOUNDS, BOUNDS, st.none() | st.integers(-7, 7).filter(bool))

sequences = st.builds(lambda kind, *told: kind(*told), st.sampled_from([Params, Metrics]), SEEDS, RUNS, COUNTS)


def artifact(size: int, *, seed: int = 1, run: int = 0, index: int = 0) -> Artifact:
    return Artifact("artifact.bin", size, seed, run, index)


def data(made: Artifact) -> bytes:
    return b"".join(made.chunks())


def told(content: Content, step: int, run: int) -> tuple[Any, ...]:
    made = content.run(step, run)
    return made.name, made.tags, list(made.params), list(made.metrics), [item.sha256() for item in made.artifacts]


# Parameters and metrics.


@given(sequences, SLICES)
def test_a_slice_is_what_the_whole_has_there(sequence: Params | Metrics, where: slice) -> None:
    assert sequence[where] == list(sequence)[where]


@given(sequences)
def test_the_sequence_has_as_many_members_as_it_says(sequence: Params | Metrics) -> None:
    members = list(sequence)
    assert len(members) == len(sequence)
    assert [sequence[-i] for i in range(1, len(members) + 1)] == members[::-1]
    with pytest.raises(IndexError):
        sequence[len(members)]


@given(sequences)
def test_keys_are_not_repeated_within_a_run(sequence: Params | Metrics) -> None:
    assert len({member[0] for member in sequence}) == len(sequence)


@given(SEEDS, RUNS, st.integers(1, 100), st.integers(0, 100))
def test_a_run_with_more_parameters_begins_with_the_same_ones(seed: int, run: int, few: int, more: int) -> None:
    assert Params(seed, run, few)[:] == Params(seed, run, few + more)[:few]
    assert Metrics(seed, run, few)[:] == Metrics(seed, run, few + more)[:few]


def test_content_is_the_same_in_every_version_so_that_an_old_result_can_be_audited() -> None:
    assert Params(1, 0, 2)[:] == [("param-0", "5546a3ca"), ("param-1", "9247d559")]
    assert Metrics(1, 0, 1)[0].value == 0.2679829797707498
    assert artifact(10_000, seed=1, run=2, index=3).sha256() == (
        "81e466ed80f8c91349593d8a1ddc0ed04485663dd2f032b677929a32ef34dad0"
    )


@given(SEEDS, RUNS)
def test_metrics_lie_between_0_and_1_at_a_fixed_instant(seed: int, run: int) -> None:
    for number, (key, value, timestamp, step) in enumerate(Metrics(seed, run, 20)):
        assert key == f"metric-{number}"
        assert 0 <= value < 1
        assert (timestamp, step) == (METRIC_TIME_MS, 0)


# Runs.


@given(SEEDS, st.integers(0, 65535), RUNS)
def test_everything_follows_from_the_seed_and_the_run_alone(seed: int, step: int, run: int) -> None:
    plan = Plan(seed=seed, params=5, metrics=5, artifacts=2, artifact_size=100)
    again = Plan(seed=seed, params=5, metrics=5, artifacts=2, artifact_size=100, runs=(7,), timeout=3, workload="x")
    assert told(Content(plan, "session"), step, run) == told(Content(again, "session"), step, run)
    assert told(Content(plan, "session"), step, run)[2:] == told(Content(plan, "other"), step + 1, run)[2:]


@given(SEEDS, RUNS, st.integers(1, 1000))
def test_another_seed_or_another_run_logs_something_else(seed: int, run: int, distance: int) -> None:
    plan = Plan(params=5, metrics=5, artifacts=1, artifact_size=32)
    here = Content(plan.with_options({"seed": seed}), "s").run(0, run)
    others = [
        Content(plan.with_options({"seed": (seed + distance) % 2**32}), "s").run(0, run),
        Content(plan.with_options({"seed": seed}), "s").run(0, (run + distance) % 2**32),
    ]
    for other in others:
        assert here.params[:] != other.params[:]
        assert here.metrics[:] != other.metrics[:]
        assert here.artifacts[0].sha256() != other.artifacts[0].sha256()


def test_a_run_carries_the_marks_by_which_it_is_found_again() -> None:
    run = Content(Plan(), "5e55107").run(3, 42)
    assert run.number == 42
    assert run.name == "hpcstress-3-42"
    assert run.tags == ((SESSION_TAG, "5e55107"), (STEP_TAG, "3"), (RUN_TAG, "42"))


def test_a_run_logs_as_much_as_the_plan_says() -> None:
    run = Content(Plan(params=3, metrics=2, artifacts=4, artifact_size=5), "s").run(0, 0)
    assert (len(run.params), len(run.metrics)) == (3, 2)
    assert [item.path for item in run.artifacts] == [f"artifact-{index}.bin" for index in range(4)]
    assert {item.size for item in run.artifacts} == {5}


# What a run logs again and again.

AMOUNTS = st.integers(0, 300)


@given(SEEDS, RUNS, st.integers(0, 60_000), AMOUNTS, AMOUNTS, AMOUNTS)
def test_a_batch_follows_from_the_seed_the_run_and_its_number_alone(
    seed: int, run: int, number: int, metrics: int, params: int, tags: int
) -> None:
    plan = Plan(seed=seed, metrics=metrics, params=params, tags=tags)
    batch = Content(plan, "session").run(3, run).batch(number)
    again = Content(plan.with_options({"users": 7, "workload": "x"}), "other").run(4, run).batch(number)
    assert batch == again
    assert (len(batch.metrics), len(batch.params), len(batch.tags)) == (metrics, params, tags)


def test_a_batch_is_the_same_in_every_version_so_that_an_old_result_can_be_audited() -> None:
    run = Content(Plan(metrics=2, params=1, tags=1), "s").run(0, 5)
    assert run.batch(3) == Batch(
        [
            Metric("metric-0", 0.9480186507571489, METRIC_TIME_MS, 3),
            Metric("metric-1", 0.9557784306816757, METRIC_TIME_MS, 3),
        ],
        [("param-3-0", "ad59b1f2")],
        [("tag-0", "ad59b1f2")],
    )


@given(SEEDS, RUNS, st.lists(st.integers(0, 60_000), unique=True, min_size=2, max_size=2))
def test_a_further_batch_has_the_next_point_of_each_metric_new_parameters_and_new_values_of_the_tags(
    seed: int, run: int, numbers: list[int]
) -> None:
    made = Content(Plan(seed=seed, metrics=4, params=4, tags=4), "s").run(0, run)
    one, other = (made.batch(number) for number in numbers)
    assert [metric.key for metric in one.metrics] == [metric.key for metric in other.metrics]
    assert ({metric.step for metric in one.metrics}, {metric.step for metric in other.metrics}) == (
        {numbers[0]},
        {numbers[1]},
    )
    assert not {key for key, _ in one.params} & {key for key, _ in other.params}
    assert [key for key, _ in one.tags] == [key for key, _ in other.tags]
    assert one.tags != other.tags
    assert [metric.value for metric in one.metrics] != [metric.value for metric in other.metrics]
    assert all(0 <= metric.value < 1 for metric in one.metrics)


@given(SEEDS, RUNS, st.integers(1, 1000))
def test_another_run_logs_other_batches(seed: int, run: int, distance: int) -> None:
    content = Content(Plan(seed=seed, metrics=2, params=2, tags=2), "s")
    assert content.run(0, run).batch(0) != content.run(0, (run + distance) % 2**32).batch(0)


@given(RUNS, st.integers(1, 50))
def test_of_several_mlflow_runs_in_one_all_but_the_first_carry_their_number(run: int, number: int) -> None:
    made = Content(Plan(), "s").run(3, run)
    assert made.part(0) == (made.name, made.tags)
    name, tags = made.part(number)
    assert name == f"{made.name}.{number}"
    assert tags == (*made.tags, (PART_TAG, str(number)))


# What one request cannot hold.

LIMITS = (1000, 100, 100)


def batch_of(metrics: int, params: int, tags: int) -> Batch:
    return Batch(
        [Metric(f"m{number}", number / 7, METRIC_TIME_MS, number) for number in range(metrics)],
        [(f"p{number}", str(number)) for number in range(params)],
        [(f"t{number}", str(number)) for number in range(tags)],
    )


batches = st.builds(batch_of, st.integers(0, 3500), st.integers(0, 350), st.integers(0, 350))


@given(batches, st.tuples(st.integers(1, 1000), st.integers(1, 100), st.integers(1, 100)))
def test_a_split_loses_nothing_and_keeps_the_order(batch: Batch, limits: tuple[int, int, int]) -> None:
    pieces = [*batch.split(*limits)]
    for name in ("metrics", "params", "tags"):
        assert [item for piece in pieces for item in getattr(piece, name)] == getattr(batch, name)


def test_every_piece_of_a_split_is_about_the_same_data_and_model() -> None:
    whole = batch_of(2500, 3, 0)._replace(about=(("model_id", "m-1"),))
    assert {piece.about for piece in whole.split(*LIMITS)} == {whole.about}


@given(batches)
def test_no_piece_holds_more_than_a_server_takes_and_none_is_empty(batch: Batch) -> None:
    for piece in batch.split(*LIMITS):
        counts = [len(piece.metrics), len(piece.params), len(piece.tags)]
        assert all(count <= limit for count, limit in zip(counts, LIMITS, strict=True))
        assert 0 < sum(counts) <= 1000


def test_what_fits_into_one_request_is_one() -> None:
    whole = batch_of(800, 100, 100)
    assert [*whole.split(*LIMITS)] == [whole]
    assert [*Batch().split(*LIMITS)] == []


class Store:
    """Keep the batches that MLflow's client sends."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def log_batch(self, *, metrics: list[Any], params: list[Any], tags: list[Any], **_: Any) -> None:
        self.batches.append(
            Batch(
                [Metric(metric.key, metric.value, metric.timestamp, metric.step) for metric in metrics],
                [(param.key, param.value) for param in params],
                [(tag.key, tag.value) for tag in tags],
            )
        )


@given(batches | st.builds(batch_of, st.just(1000), st.integers(0, 3), st.integers(0, 3)))
def test_a_split_is_that_of_mlflows_client(batch: Batch) -> None:
    client, store = MlflowClient("http://127.0.0.1:1"), Store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrackingServiceClient, "store", store)
        client.log_batch(
            "run",
            [entities.Metric(*metric) for metric in batch.metrics],
            [entities.Param(*param) for param in batch.params],
            [entities.RunTag(*tag) for tag in batch.tags],
        )
    assert [*batch.split(METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST)] == store.batches


# Artifacts.

SIZES = st.integers(1, 100) | st.integers(CHUNK - 30, CHUNK + 30) | st.integers(2 * CHUNK - 30, 3 * CHUNK + 30)


@given(SIZES, SEEDS, RUNS, st.integers(0, 2**32 - 1))
def test_an_artifact_has_exactly_its_size_and_its_checksum(size: int, seed: int, run: int, index: int) -> None:
    made = artifact(size, seed=seed, run=run, index=index)
    assert len(data(made)) == size
    assert hashlib.sha256(data(made)).hexdigest() == made.sha256()


@pytest.mark.parametrize("size", [100, 10_000, CHUNK, 5 * CHUNK + 1])
def test_an_artifact_cannot_be_compressed(size: int) -> None:
    assert len(zlib.compress(data(artifact(size)), 9)) >= size


@given(SIZES.filter(lambda size: size >= 8), st.integers(0, 2**31), st.integers(0, 1000))
def test_artifacts_of_other_runs_and_indices_are_different(size: int, run: int, index: int) -> None:
    made = [
        data(artifact(size, run=run, index=index)),
        data(artifact(size, run=run + 1, index=index)),
        data(artifact(size, run=run, index=index + 1)),
        data(artifact(size, run=index, index=run)) if run != index else b"",
        data(artifact(size, seed=2, run=run, index=index)),
    ]
    assert len(set(made)) == len(made)


def test_no_two_chunks_are_equal_within_an_artifact_or_between_artifacts() -> None:
    chunks = set()
    for run in range(4):
        whole = data(artifact(8 * CHUNK, run=run))
        chunks |= {whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK)}
        # Nor are their bodies, behind what tells them apart.
        chunks |= {whole[start + 24 : start + CHUNK] for start in range(0, len(whole), CHUNK)}
    assert len(chunks) == 2 * 4 * 8


def test_an_artifact_is_made_while_it_is_read_and_never_held() -> None:
    pieces = artifact(10**12).chunks()
    sizes = [len(next(pieces)) for _ in range(20)]
    assert max(sizes) <= CHUNK
    made = artifact(64 * CHUNK, run=1)
    tracemalloc.start()
    try:
        made.sha256()
        assert tracemalloc.get_traced_memory()[1] < CHUNK
    finally:
        tracemalloc.stop()
