from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import usage as module
from analysis.frame import Frame, read
from analysis.statistics import measure
from analysis.summary import summary
from analysis.usage import bottleneck, peaks, told, usage
from tests.analysis.results import BEGAN, SECOND, frame_of, rows, steps_of, story, table

SECONDS = 10


def counted(**parts: list[list[float]]) -> Any:
    """Return a census each second of parts whose processes use so many cores each."""
    return table(
        "server",
        [
            {
                "time": BEGAN + second,
                "part": part,
                "pid": 10 * number + place,
                "command": command,
                "cpu_seconds": cores * (second + 1),
                "rss": 100,
                "threads": 4,
                "files": 5,
                "connections": 6,
            }
            for second in range(-1, SECONDS + 2)
            for number, (part, processes) in enumerate(parts.items(), 1)
            for place, (command, cores) in enumerate(processes)
        ],
    )


def asked(query: str, labels: str, values: dict[float, float]) -> Any:
    return table(
        "prometheus",
        [{"time": BEGAN + at, "query": query, "labels": labels, "value": value} for at, value in values.items()],
    )


def job(*, cores: int = 2, generator: float = 0.1, host: str = "node", seconds: int = SECONDS, **tables: Any) -> Frame:
    """Return a step of ten runs whose rank used so many cores."""
    made = rows([{"run": run, "end": seconds * SECOND} for run in range(10)])
    health = {"rank": 0, "cpu_seconds": generator * seconds, "wall_seconds": seconds}
    return frame_of(
        made,
        steps_of(made, [10]),
        facts={"processors": cores, "host": host},
        ranks=table("ranks", [{"rank": 0, "host": "node", "complete": True}]),
        health=table("health", [health]),
        **tables,
    )


def sentence(frame: Frame) -> str:
    return bottleneck(frame, measure(frame).steps)


# Parts.


def test_a_part_used_what_its_processes_used_together() -> None:
    frame = job(server=counted(mlflow=[("python", 0.5), ("python", 0.25)], database=[("postgres", 1.0)]))
    database, mlflow = usage(frame, BEGAN)
    assert (database.part, mlflow.part) == ("database", "mlflow")
    assert mlflow.time.tolist() == list(range(-1, SECONDS + 2))
    assert math.isnan(mlflow.cores[0])
    assert mlflow.cores[1:] == pytest.approx(0.75)
    assert {*mlflow.memory} == {200.0}
    assert ({*mlflow.threads}, {*mlflow.files}, {*mlflow.connections}) == ({8.0}, {10.0}, {12.0})


def test_seconds_of_processes_that_have_ended_are_no_fall() -> None:
    server = table(
        "server",
        [
            {"time": BEGAN, "part": "a", "pid": 0, "cpu_seconds": 1.0},
            {"time": BEGAN, "part": "a", "pid": 5, "cpu_seconds": 3.0},
            {"time": BEGAN + 2, "part": "a", "pid": 0, "cpu_seconds": 5.0},
        ],
    )
    (part,) = usage(job(server=server), BEGAN)
    assert part.cores[1] == 0.5


def test_in_an_older_result_a_fall_is_not_known_and_neither_is_what_was_not_counted() -> None:
    server = table(
        "server",
        [
            {
                "time": BEGAN + at,
                "part": "a",
                "cpu_seconds": cpu,
                "rss": 7,
                "threads": -1,
                "files": -1,
                "connections": -1,
            }
            for at, cpu in ((0, 10.0), (4, 1.0), (2, 13.0), (5, 1.0))
        ],
    )
    (part,) = usage(job(server=server), BEGAN)
    assert part.time.tolist() == [0.0, 2.0, 4.0, 5.0]
    assert np.isnan(part.cores).tolist() == [True, False, True, False]
    assert part.cores[[1, 3]].tolist() == [1.5, 0.0]
    assert {*part.memory} == {7.0}
    assert np.isnan([part.threads, part.files, part.connections]).all()


def test_a_time_at_which_one_process_was_not_counted_is_not_known() -> None:
    server = counted(mlflow=[("python", 0.1), ("python", 0.1)])
    server["connections"][0] = -1
    (part,) = usage(job(server=server), BEGAN)
    assert math.isnan(part.connections[0])
    assert {*part.connections[1:]} == {12.0}


def test_what_prometheus_told_with_the_same_labels_is_one_part() -> None:
    tables = [
        asked("cpu", "groupname=postgres", {1.0: 0.5, 2.0: 0.75}),
        asked("memory", "groupname=postgres", {2.0: 1e9}),
        asked("cpu", "groupname=mlflow, instance=a:1, job=x", {1.0: 0.1}),
        asked("requests", "__name__=up, instance=a:1, job=x", {1.0: 3.0, 2.0: 4.0}),
    ]
    frame = job(prometheus=np.concatenate(tables))
    mlflow, postgres = usage(frame, BEGAN)
    assert (mlflow.part, postgres.part) == ("mlflow", "postgres")
    assert postgres.cores.tolist() == [0.5, 0.75]
    assert np.isnan(postgres.memory).tolist() == [True, False]
    assert np.isnan(postgres.files).all()
    (requests,) = told(frame, BEGAN)
    assert (requests.query, requests.name, requests.value.tolist()) == ("requests", "a:1 x", [3.0, 4.0])


def test_what_prometheus_told_below_0_is_not_known_of_what_parts_used_and_kept_of_all_else() -> None:
    below = [asked(query, "groupname=a", {1.0: -5.0, 2.0: 0.0}) for query in ("cpu", "memory", "balance")]
    frame = job(prometheus=np.concatenate(below))
    (part,) = usage(frame, BEGAN)
    for values in (part.cores, part.memory):
        assert np.isnan(values[0])
        assert values[1] == 0
    (balance,) = told(frame, BEGAN)
    assert balance.value.tolist() == [-5.0, 0.0]


def test_parts_that_both_know_are_told_apart() -> None:
    frame = job(server=counted(a=[("python", 0.1)]), prometheus=asked("cpu", "groupname=a", {1.0: 0.5}))
    assert [part.part for part in usage(frame, BEGAN)] == ["a", "a (Prometheus)"]


def test_the_most_of_each_part_is_that_while_steps_lasted() -> None:
    server = counted(a=[("python", 0.5)])
    server["rss"][server["time"] == BEGAN + 4] = 700
    server["rss"][server["time"] > BEGAN + SECONDS] = 900
    late = server.copy()
    late["time"] += 100
    late["rss"] = 5000
    frame = job(server=np.concatenate([server, late]))
    (peak,) = peaks(frame, measure(frame).steps)
    assert (peak.part, peak.memory, peak.threads, peak.files, peak.connections) == ("a", 900.0, 4.0, 5.0, 6.0)
    assert peak.cores == pytest.approx(0.5)


# The bottleneck.


def test_a_part_that_used_all_cores_is_the_bottleneck() -> None:
    frame = job(server=counted(tracking=[("python", 0.05)], database=[("postgres", 1.2), ("postgres", 0.6)]))
    assert sentence(frame) == (
        "The bottleneck is the CPU: database used 1.8 of 2 cores at 10 runs (repeat 1) "
        "(tracking 0.050, the generator 0.10)."
    )


def test_a_generator_that_took_the_cores_from_the_server_is_told() -> None:
    frame = job(server=counted(tracking=[("python", 0.6)]), generator=1.3)
    assert sentence(frame) == (
        "The generator is the bottleneck: of the 2 cores that it shares with the server it used 1.3 at 10 runs "
        "(repeat 1) (tracking 0.60): let it run on another machine."
    )


def test_a_generator_on_another_machine_takes_nothing() -> None:
    frame = job(server=counted(tracking=[("python", 0.6)]), generator=1.3, host="elsewhere")
    assert sentence(frame) == (
        "No part of the server used all of its cores: "
        "the busiest, tracking, used 0.60 of 2 cores at 10 runs (repeat 1)."
    )


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        ([("python", 0.97), ("python", 0.02)], "One process of tracking used a whole core at 10 runs (repeat 1)"),
        ([("uvicorn", 0.97), ("python", 0.95)], "2 processes of tracking used a whole core each at 10 runs (repeat 1)"),
        ([("fml", 1.9)], "No part of the server used all of its cores"),
        ([("python", 0.6), ("python", 0.6)], "No part of the server used all of its cores"),
    ],
)
def test_a_python_that_used_its_one_core_needs_more_workers(processes: Any, words: str) -> None:
    frame = job(server=counted(tracking=processes), cores=8)
    assert sentence(frame).startswith(words)
    assert ("give it more workers" in sentence(frame)) == ("process" in words)


def test_of_a_foreign_server_the_busiest_part_is_told() -> None:
    values = {float(second): 1.5 for second in range(SECONDS + 1)}
    idle = dict.fromkeys(values, 0.25)
    frame = job(
        prometheus=np.concatenate([asked("cpu", "groupname=b", values), asked("cpu", "groupname=a", idle)]),
    )
    assert sentence(frame) == (
        "The busiest part that Prometheus tells of, b, used 1.5 cores at 10 runs (repeat 1); "
        "how many it has is not known here."
    )


@pytest.mark.parametrize(
    "frame",
    [
        job(),
        job(server=counted(a=[("python", 1.9)]), seconds=2),
        job(prometheus=asked("requests", "", {1.0: 3.0, 2.0: 4.0})),
    ],
    ids=["nothing", "a short step", "only other queries"],
)
def test_nothing_is_said_of_what_was_not_measured(frame: Frame) -> None:
    assert sentence(frame) == ""


def test_the_steps_in_which_most_was_used_are_told_of(tmp_path: Path) -> None:
    path = story(tmp_path / "r.h5", runs=(10, 300), repeats=1, capacity=10, facts={"processors": 4, "host": "node0000"})
    assert "mlflow used 3.1 of 4 cores at 300 runs (repeat 1) (postgres 0.80" in summary(path)
    assert sentence(read(path)) in summary(path).splitlines()


def test_the_shortest_step_is_as_long_as_the_page_says() -> None:
    page = Path(module.__file__).with_name("report.html").read_text()
    assert module._SHORTEST == 3.0
    assert "steps of three seconds or more" in page
