from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from analysis.frame import Frame, read
from analysis.published.mantik import Timing, table, timings
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from tests.analysis import scripts
from tests.analysis.results import MS, SECOND, frame_of, rows, steps_of, write

BAD = Outcome.closed


def of(*requests: tuple[Any, ...], workload: str = "parameters", size: int = 1, **options: Any) -> Frame:
    """Return a job of one step whose requests of 10 ms (operation, outcome, run) follow each other."""
    made = rows(
        [
            {
                "op": request[0],
                "outcome": request[1] if len(request) > 1 else Outcome.ok,
                "run": request[2] if len(request) > 2 else 0,
                "seq": seq,
                "start": 10 * seq * MS,
                "end": 10 * (seq + 1) * MS,
            }
            for seq, request in enumerate(requests)
        ]
    )
    plan = {**Plan(runs=(size,)).as_mapping(), "workload": workload, "params": 250, **options}
    return frame_of(made, steps_of(made, [size]), plan=plan)


O = Operation  # noqa: E741
CREATE, FINISH = (O.create_run,), (O.finish_run,)


def test_a_run_of_ours_that_takes_all_methods_in_turn_is_one_measurement_for_each() -> None:
    frame = of(
        (O.connect,),
        *[CREATE, *[(O.log_param,)] * 250, (O.get_run,), FINISH],
        *[CREATE, *[(O.log_params,)] * 3, (O.get_run,), FINISH],
        *[CREATE, *[(O.log_batch,)] * 3, (O.get_run,), FINISH],
    )

    one, several, batch = timings(frame)

    # The connection belongs to the run that needed it.
    assert one == Timing(250, "log_param", 2.54, 250, 0, succeeded=True)
    assert several == Timing(250, "log_params", 0.06, 250, 0, succeeded=True)
    assert batch == Timing(250, "log_batch", 0.06, 250, 0, succeeded=True)
    assert several.per_unit == 0.06 / 250


def test_a_method_that_is_asked_for_is_the_only_one() -> None:
    (timing,) = timings(of(CREATE, *[(O.log_batch,)] * 3, FINISH, method="log_batch"))

    assert (timing.method, timing.succeeded) == ("log_batch", True)


@pytest.mark.parametrize(
    ("requests", "method", "logged"),
    [
        ([CREATE, (O.log_param,), (O.log_param,), (O.log_param, BAD)], "log_param", 2),
        ([CREATE, (O.log_params,), (O.log_params, BAD)], "log_params", 100),
        ([CREATE, (O.log_batch,), (O.log_batch,), (O.log_batch,), (O.finish_run, BAD)], "log_batch", 250),
        ([(O.create_run, BAD)], "log_params", 0),
        # A job that was cut off is no success, either.
        ([CREATE, (O.log_params,), (O.log_params,), (O.log_params,)], "log_params", 250),
    ],
)
def test_a_failure_is_kept_and_divided_by_what_was_logged(requests: list[Any], method: str, logged: int) -> None:
    (timing,) = timings(of(*requests, method=method))

    assert (timing.succeeded, timing.amount, timing.logged) == (False, 250, logged)
    assert timing.duration == pytest.approx(0.01 * len(requests))
    assert timing.per_unit == pytest.approx(timing.duration / logged) if logged else math.isnan(timing.per_unit)


def test_a_run_that_is_created_at_the_second_attempt_is_one_run() -> None:
    found = timings(of((O.create_run, Outcome.gateway), CREATE, (O.log_params,), FINISH, method="log_params", params=5))

    assert [(timing.duration, timing.succeeded) for timing in found] == [(0.04, True)]


def test_runs_that_fail_to_be_created_are_told_apart() -> None:
    found = timings(of((O.create_run, BAD, 0), (O.create_run, BAD, 1), (O.create_run, BAD, 2), method="log_params"))

    assert len(found) == 3


def test_a_run_that_takes_methods_in_turn_after_one_that_could_not_be_created_is_not_taken_for_it() -> None:
    whole = [(O.create_run, Outcome.ok, 1), (O.log_param, Outcome.ok, 1), (O.finish_run, Outcome.ok, 1)]
    other = [(O.create_run, Outcome.ok, 1), (O.log_params, Outcome.ok, 1), (O.finish_run, Outcome.ok, 1)]

    found = timings(of((O.create_run, BAD, 0), *whole, *other, params=1))

    assert [(timing.method, timing.succeeded) for timing in found] == [
        ("log_param", False),
        ("log_param", True),
        ("log_params", True),
    ]


def test_files_are_counted_and_have_the_size_of_the_plan() -> None:
    frame = of(
        *[CREATE, (O.get_run,), (O.log_artifact,), (O.log_artifact,), FINISH],
        *[CREATE, (O.get_run,), (O.log_artifact,), (O.log_artifact, BAD)],
        workload="artifacts",
        artifacts=2,
        artifact_size="100MB",
    )
    frame.attempts["sent"] = frame.attempts["seq"]

    one, several = (frame_timing for frame_timing in timings_without_file(frame))

    assert (one.method, one.amount, one.files, one.succeeded) == ("log_artifact", 200.0, 2, True)
    assert one.per_unit == pytest.approx(0.05 / 200)
    assert one.per_file == pytest.approx(0.025)
    assert (several.method, several.amount, several.logged, several.files) == ("log_artifacts", 200.0, 100.0, 1)
    assert several.per_unit == pytest.approx(0.04 / 100)


def timings_without_file(frame: Frame) -> list[Timing]:
    object.__setattr__(frame, "widened", lambda *_: frame)
    return timings(frame)


def test_a_users_own_files_have_the_size_that_was_sent(tmp_path: Path) -> None:
    attempts = rows(
        [
            {"op": O.create_run, "seq": 0, "sent": 400},
            {"op": O.log_artifact, "seq": 1, "start": 10 * MS, "end": SECOND, "sent": 2_500_400},
            {"op": O.finish_run, "seq": 2, "start": SECOND, "end": 2 * SECOND, "sent": 400},
        ]
    )
    plan = {
        **Plan(runs=(1,)).as_mapping(),
        "workload": "artifacts",
        "artifact_folder": "data",
        "method": "log_artifact",
    }
    path = write(tmp_path / "r.h5", attempts, {"steps": steps_of(attempts, [1])}, plan=tomli_w.dumps(plan))

    (timing,) = timings(read(path))

    assert (timing.amount, timing.files) == (2.5, 1)


def test_parallel_runs_are_divided_by_all_the_parameters_that_they_logged() -> None:
    requests = [(*request, Outcome.ok, run) for run in range(3) for request in (CREATE, (O.log_params,), FINISH)]
    frame = of(*requests, workload="parallel-runs", size=3, params=50)

    (timing,) = timings(frame)

    assert timing == Timing(3, "log_params", 0.09, 150, 0, succeeded=True)


def test_parallel_runs_of_which_one_failed_did_not_succeed(tmp_path: Path) -> None:
    path = scripts.job(tmp_path / "r.h5", scripts.parallel_run, sizes=(1, 600), workload="parallel-runs")

    one, many = timings(read(path))

    assert (one.amount, one.succeeded, one.logged) == (1, True, 50)
    # One in twenty was refused before it had logged anything.
    assert (many.amount, many.succeeded, many.logged) == (600, False, 50 * 570)


@pytest.mark.parametrize(
    ("workload", "columns"),
    [
        ("parameters", "# params,method,duration,duration per param,succeeded"),
        ("artifacts", "total size [MB],method,duration,duration per MB,duration per file,succeeded"),
        ("parallel-runs", "# parallel runs,method,duration,duration per param,succeeded"),
    ],
)
def test_the_tables_have_the_published_columns(workload: str, columns: str) -> None:
    (row,) = table(workload, [Timing(10, "log_params", 2.0, 5, 2, succeeded=False)])

    assert ",".join(row) == columns
    assert [*row.values()][:4] == [10, "log_params", 2.0, 0.4]
    assert row["succeeded"] is False


def test_where_nothing_was_logged_nothing_is_divided() -> None:
    (row,) = table("artifacts", [Timing(0.5, "log_artifact", 2.0, 0, 0, succeeded=False)])

    assert row["total size [MB]"] == 0.5
    assert row["duration per MB"] is row["duration per file"] is None


def test_every_repeat_of_every_amount_is_a_row(tmp_path: Path) -> None:
    path = scripts.job(
        tmp_path / "r.h5",
        scripts.failing_parameters,
        sizes=(2,),
        sweep="params=10,1000",
        repeats=3,
        workload="parameters",
    )

    found = timings(read(path))

    # At 1,000 parameters the second method fails and the third is not tried.
    assert sorted({(timing.amount, timing.method, timing.succeeded) for timing in found}) == [
        (10, "log_batch", True),
        (10, "log_param", True),
        (10, "log_params", True),
        (1000, "log_param", True),
        (1000, "log_params", False),
    ]
    assert len(found) == 2 * 3 * 5
    assert {timing.logged for timing in found if not timing.succeeded} == {500}
