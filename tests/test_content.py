from __future__ import annotations

import hashlib
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.content import CHUNK, METRIC_TIME_MS, RUN_TAG, SESSION_TAG, STEP_TAG, Artifact, Content, Metrics, Params
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
