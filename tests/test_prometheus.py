from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest

from hpcstress import prometheus as module
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.plan import Plan
from hpcstress.prometheus import DEFAULT_QUERIES, Prometheus, reach
from hpcstress.result import TABLES, Result
from hpcstress.servers.port import free_port
from tests.jobs import SMALL, Heard, mortal, play
from tests.peers import Answer, Peer, Request, http_server, reply

SECRET = "correct-horse"
NULL = replace(SMALL, client="null", runs=(3,), repeats=2, null_delay=0.001)


class Fake:
    """A Prometheus that takes every query, knows series of some, and can be told to break; its clock may be wrong.

    The times of its series are seconds since the beginning of what it is asked for.
    """

    def __init__(self, series: dict[str, Any] | None = None, ahead: float = 0.0) -> None:
        self.series = series or {}
        self.ahead = ahead
        self.broken: bytes | None = None
        self.asked: list[dict[str, str]] = []
        self.authorizations: list[str] = []

    def __call__(self, request: Request) -> bytes:
        parts = urlsplit(request.target)
        words = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append({"route": parts.path, **words})
        self.authorizations.append(request.headers.get("authorization", ""))
        if self.broken is not None:
            return self.broken
        if words["query"].startswith("wrong"):
            return told(error='1:9: parse error: unexpected "("', status="400 Bad Request")
        if words["query"] == "time()":
            now = time.time() + self.ahead
            return told("scalar", [now, str(now)])
        if parts.path.endswith("/query"):
            return told("vector", [])
        return told("matrix", _since(float(words["start"]), self.series.get(words["query"], [])))


def _since(begin: float, series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "values": [[begin + at, value] for at, value in one["values"]]} for one in series]


def told(kind: str = "matrix", result: Any = None, error: str = "", status: str = "200 OK") -> bytes:
    words = {"status": "error", "error": error} if error else {"status": "success"}
    data = {} if error else {"data": {"resultType": kind, "result": result}}
    return reply(json.dumps({**words, **data}).encode(), status)


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve in a thread, because what is tested runs event loops of its own; give the address."""
    loop = asyncio.new_event_loop()
    there, stop = threading.Event(), asyncio.Event()
    peers: list[Peer] = []

    async def serve() -> None:
        async with http_server(answer) as peer:
            peers.append(peer)
            there.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    there.wait()
    try:
        yield peers[0].uri
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def reached(uri: str, queries: str = "cpu=cpu", **environment: str) -> Prometheus:
    prometheus = reach(Plan(prometheus=uri, prometheus_queries=queries), environment)
    assert prometheus is not None
    return prometheus


def refused(answer: Answer, queries: str = "cpu=cpu") -> str:
    with serving(answer) as uri, pytest.raises(Refusal) as refusal:
        reached(uri, queries)
    return str(refusal.value).replace(uri, "URI")


SERIES = [
    {"metric": {"groupname": "postgres", "__name__": "x"}, "values": [[0.0, "0.5"], [0.5, "NaN"], [1.0, "1e3"]]},
    {"metric": {}, "values": [[0.0, "-2"]]},
]
LABELS = b"__name__=x, groupname=postgres"


# Before the load.


def test_without_an_address_nobody_is_asked() -> None:
    assert reach(Plan(), {}) is None


def test_an_address_where_nobody_is_is_refused() -> None:
    with pytest.raises(
        Refusal, match=r"cannot be reached \(asking Prometheus for its time\): start it, or correct --p"
    ):
        reached(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(b"<html>"), "answered with something that is not Prometheus's JSON"),
        (reply(b"[" * 100_000), "answered with something that is not Prometheus's JSON"),
        (told("scalar", []), "it does not tell the time"),
        (told("scalar", [1, "NaN"]), "it does not tell the time"),
        (reply(b"404", "404 Not Found"), "is that the address of a Prometheus?"),
        (reply(b"no", "401 Unauthorized"), "set PROMETHEUS_USERNAME and PROMETHEUS_PASSWORD, or PROMETHEUS_TOKEN"),
        (b"", "is that the right port"),
        (told(error="down", status="503 Service Unavailable"), "down"),
    ],
)
def test_what_is_no_prometheus_is_refused_in_a_sentence(answer: bytes, words: str) -> None:
    assert words in refused(answer)


def test_a_query_that_prometheus_does_not_take_is_refused_with_its_words() -> None:
    sentence = refused(Fake(), "cpu=cpu; memory=wrong {")
    assert sentence == (
        "--prometheus-queries: Prometheus does not take memory ('wrong {'): 1:9: parse error: unexpected \"(\"."
    )


def test_a_plan_without_queries_asks_what_is_usual() -> None:
    fake = Fake()
    with serving(fake) as uri:
        prometheus = reached(uri, "")
    assert prometheus.queries == DEFAULT_QUERIES
    assert [asked["query"] for asked in fake.asked] == ["time()", *DEFAULT_QUERIES.values()]
    assert prometheus.facts == {"uri": uri, "queries": DEFAULT_QUERIES, "clock_offset": 0.0}


# Signing in.

BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


def secret_file(folder: Path, content: str = f"{SECRET}\n", mode: int = 0o600) -> str:
    path = folder / "secret"
    path.write_text(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("variables", "authorization"),
    [
        ({}, ""),
        ({"PROMETHEUS_USERNAME": "me", "PROMETHEUS_PASSWORD": SECRET}, BASIC),
        ({"PROMETHEUS_USERNAME": "me", "PROMETHEUS_PASSWORD_FILE": "FILE"}, BASIC),
        ({"PROMETHEUS_TOKEN": SECRET}, f"Bearer {SECRET}"),
        ({"PROMETHEUS_TOKEN_FILE": "FILE"}, f"Bearer {SECRET}"),
        # The tracking server's are nobody else's.
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": SECRET}, ""),
    ],
)
def test_its_own_variables_or_files_sign_in(tmp_path: Path, variables: dict[str, str], authorization: str) -> None:
    fake, path = Fake(), secret_file(tmp_path)
    with serving(fake) as uri:
        prometheus = reached(uri, **{name: path if value == "FILE" else value for name, value in variables.items()})
        prometheus.look(1.0)
    assert set(fake.authorizations) == {authorization}
    assert SECRET not in repr(prometheus) + json.dumps(prometheus.facts)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (SECRET, 0o640, "which others may read: `chmod 600` it"),
        (SECRET, 0o604, "which others may read: `chmod 600` it"),
        (" \n", 0o600, "which is empty"),
        (f"{SECRET}\nmore", 0o600, "holds control characters"),
    ],
)
def test_a_file_that_does_not_keep_a_secret_is_refused(tmp_path: Path, content: str, mode: int, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        reached("http://127.0.0.1:1", PROMETHEUS_TOKEN_FILE=secret_file(tmp_path, content, mode))
    assert SECRET not in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot be read \(No such file or directory\)"):
        reached("http://127.0.0.1:1", PROMETHEUS_TOKEN_FILE=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "variables",
    [
        {"PROMETHEUS_USERNAME": "me"},
        {"PROMETHEUS_PASSWORD": SECRET},
        {"PROMETHEUS_USERNAME": "me", "PROMETHEUS_PASSWORD": SECRET, "PROMETHEUS_TOKEN": SECRET},
        {"PROMETHEUS_TOKEN": SECRET, "PROMETHEUS_TOKEN_FILE": "/somewhere"},
    ],
)
def test_half_a_sign_in_and_two_of_them_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(UsageRefusal, match="PROMETHEUS_") as refusal:
        reached("http://127.0.0.1:1", **variables)
    assert SECRET not in str(refusal.value)


# After a step.


def test_the_finite_values_of_all_series_become_rows() -> None:
    fake = Fake({"cpu": SERIES})
    with serving(fake) as uri:
        rows = reached(uri, "cpu=cpu; memory=memory").look(1.0)
    assert rows.dtype == TABLES["prometheus"]
    assert rows.tolist() == [
        (1.0, b"cpu", LABELS, 0.5),
        (2.0, b"cpu", LABELS, 1000.0),
        (1.0, b"cpu", b"", -2.0),
    ]


def test_each_look_begins_where_the_last_one_ended_and_has_few_points() -> None:
    fake = Fake()
    began = time.time() - 3000
    with serving(fake) as uri:
        prometheus = reached(uri)
        prometheus.look(began)
        prometheus.look(began + 1)
    first, second = (asked for asked in fake.asked if asked["route"].endswith("query_range"))
    assert float(first["start"]) == pytest.approx(began, abs=0.01)
    assert second["start"] == first["end"]
    assert float(first["end"]) <= float(second["end"]) <= time.time() + 0.01
    assert (float(first["step"]), float(second["step"])) == (11.0, 1.0)


@pytest.mark.parametrize(("ahead", "word"), [(3600.0, "ahead of"), (-3600.0, "behind")])
def test_times_are_put_right_where_prometheus_has_another_time(ahead: float, word: str) -> None:
    fake = Fake({"cpu": [{"metric": {}, "values": [[3000.0, "1"]]}]}, ahead)
    with serving(fake) as uri:
        prometheus = reached(uri)
        rows = prometheus.look(2000.0)
    assert rows["time"][0] == pytest.approx(5000.0, abs=1.0)
    assert float(fake.asked[-1]["start"]) == pytest.approx(2000.0 + ahead, abs=1.0)
    assert prometheus.notes == [f"Prometheus's clock is 3,600 s {word} rank 0's; its times were put right."]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"", "closed the connection"),
        (reply(b"<html>"), "not Prometheus's JSON"),
        (reply(b"", "500 Internal Server Error"), "answered 500"),
        (told("matrix", [{"values": 3}]), "its answer is no table of series"),
        (told("matrix", [[]]), "its answer is no table of series"),
        (told(error="query timed out", status="503 Service Unavailable"), "query timed out."),
        (reply(b'{"status": "success"}'), "not Prometheus's JSON"),
    ],
)
def test_what_fails_later_is_one_note_and_costs_nothing(broken: bytes, words: str) -> None:
    fake = Fake({"cpu": SERIES})
    with serving(fake) as uri:
        prometheus = reached(uri)
        fake.broken = broken
        assert [len(prometheus.look(1.0)) for _ in range(2)] == [0, 0]
        (note,) = prometheus.notes
        fake.broken = None
        assert len(prometheus.look(1.0)) == 3
    assert words in note
    assert prometheus.farewell() == [note]


def test_a_prometheus_that_has_gone_is_asked_once_after_each_step_and_noted() -> None:
    with serving(Fake()) as uri:
        prometheus = reached(uri, "cpu=cpu; memory=memory")
    assert len(prometheus.look(1.0)) == 0
    (note,) = prometheus.notes
    assert note.startswith(f"After a step Prometheus did not tell what it knows. The server {uri} cannot be reached")


def test_an_answer_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    with serving(fake) as uri:
        prometheus = reached(uri)
        monkeypatch.setattr(module, "_LARGEST_ANSWER", 1000)
        fake.broken = told("matrix", [{"metric": {}, "values": [[1.0, "1"]] * 1000}])
        assert len(prometheus.look(1.0)) == 0
        assert "its answer is too long: ask for less" in prometheus.notes.pop()
        # More is promised, and never comes: what is there is too much already.
        fake.broken = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 100_000
        assert len(prometheus.look(1.0)) == 0
    (note,) = prometheus.farewell()
    assert "its answer is too long: ask for less" in note
    assert "xx" not in note


def test_what_nobody_can_read_at_once_is_too_long() -> None:
    fake = Fake()
    with serving(fake) as uri:
        prometheus = reached(uri)
        fake.broken = told("matrix", []).replace(b"[]", b"[" + b" " * (1 << 24) + b"]")
        fake.broken = reply(fake.broken.partition(b"\r\n\r\n")[2])
        assert len(prometheus.look(1.0)) == 0
    assert "its answer is too long" in prometheus.notes[0]


def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Callable[[Request], bytes | Awaitable[bytes]]] = [Fake()]

    async def never(_: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    def newest(request: Request) -> bytes | Awaitable[bytes]:
        return answers[-1](request)

    with serving(newest) as uri:
        prometheus = reached(uri)
        monkeypatch.setattr(module, "_PATIENCE", 0.05)
        answers.append(never)
        assert len(prometheus.look(1.0)) == 0
    (note,) = prometheus.farewell()
    assert "does not answer" in note


def test_half_an_answer_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    with serving(fake) as uri:
        prometheus = reached(uri)
        monkeypatch.setattr(module, "_PATIENCE", 0.1)
        fake.broken = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
        assert len(prometheus.look(1.0)) == 0
    (note,) = prometheus.farewell()
    assert "does not answer" in note
    assert "xx" not in note


def test_of_very_many_series_and_values_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SERIES", 3)
    monkeypatch.setattr(module, "_MOST_ROWS", 4)
    many = [{"metric": {"n": str(number)}, "values": [[0.0, "1"]]} for number in range(5)]
    with serving(Fake({"cpu": many})) as uri:
        prometheus = reached(uri)
        assert [len(prometheus.look(1.0)) for _ in range(3)] == [3, 1, 0]
    assert prometheus.notes == [
        "The query cpu has 5 series, of which 3 are kept: sum some up.",
        "Of what Prometheus told, the first 4 values are kept: ask for less.",
    ]


@pytest.mark.parametrize(
    "lie",
    [[0.0, "1e308"], [0.0, "-1e308"], [-1000.0, "1"], [4e12, "1"], [-1e308, "1"]],
    ids=["large", "small", "past", "future", "never"],
)
def test_what_cannot_be_is_left_out_and_noted(lie: list[Any]) -> None:
    with serving(Fake({"cpu": [{"metric": {}, "values": [lie, [0.0, "7"]]}]})) as uri:
        prometheus = reached(uri)
        rows = [prometheus.look(time.time() - 10) for _ in range(2)]
    assert [one["value"].tolist() for one in rows] == [[7.0], [7.0]]
    (note,) = prometheus.farewell()
    assert note.startswith("Values of the query cpu were left out, because they are of another time than was asked")


def test_series_that_cannot_be_told_apart_are_not_mixed() -> None:
    series = [{"metric": {"a": "x" * 300 + end}, "values": [[0.0, end]]} for end in "12"]
    with serving(Fake({"cpu": series, "memory": series})) as uri:
        prometheus = reached(uri, "cpu=cpu; memory=memory")
        rows = prometheus.look(1.0)
    assert rows["value"].tolist() == [1.0, 1.0]
    assert prometheus.notes == [
        f"Series of the query {name} cannot be told apart, and one of them is kept: sum them up."
        for name in ("cpu", "memory")
    ]


def test_labels_of_any_length_and_letters_find_room() -> None:
    metric = {"ü": "ö" * 500, "a": "b"}
    with serving(Fake({"cpu": [{"metric": metric, "values": [[0.0, "1"]]}]})) as uri:
        (row,) = reached(uri).look(1.0)
    assert row["labels"].startswith(b"a=b, ")
    assert len(row["labels"]) == 256


def test_queries_that_nothing_is_known_of_are_told_at_the_end() -> None:
    with serving(Fake({"cpu": SERIES})) as uri:
        chosen, usual = reached(uri, "cpu=cpu; memory=memory"), reached(uri, "")
        for prometheus in (chosen, usual):
            prometheus.look(1.0)
    assert chosen.farewell() == ["Prometheus knows nothing of what these queries ask: memory."]
    (note,) = usual.farewell()
    assert note.startswith("Prometheus knows neither process-exporter's series nor MLflow's: say what to ask")


# In a job.


def test_a_job_asks_after_each_step_and_never_while_load_runs(tmp_path: Path) -> None:
    fake = Fake({"cpu": SERIES})
    heard: list[tuple[str, int]] = []

    class Watched(Heard):
        def begin(self, *_: object) -> None:
            heard.append(("begin", len(fake.asked)))

        def end(self) -> None:
            heard.append(("end", len(fake.asked)))

    with serving(fake) as uri:
        plan = replace(NULL, prometheus=uri, prometheus_queries="cpu=cpu")
        assert play(tmp_path / "job", plan, {}, Watched()) == 0
    assert heard == [("begin", 2), ("end", 2), ("begin", 3), ("end", 3)]
    assert len(fake.asked) == 4
    with Result(tmp_path / "job" / "result.h5") as result:
        assert len(result.table("prometheus")) == 6
        assert result.facts["prometheus"]["queries"] == {"cpu": "cpu"}
        assert result.notes == []


def test_a_prometheus_that_breaks_during_the_job_leaves_a_whole_result_with_a_note(tmp_path: Path) -> None:
    fake = Fake({"cpu": SERIES})

    class Breaking(Heard):
        def begin(self, *_: object) -> None:
            fake.broken = b""

    with serving(fake) as uri:
        plan = replace(NULL, prometheus=uri, prometheus_queries="cpu=cpu")
        assert play(tmp_path / "job", plan, {}, Breaking()) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        assert result.complete
        assert result.length > 0
        assert len(result.table("prometheus")) == 0
        assert result.notes[0].startswith("After a step Prometheus did not tell what it knows.")


def test_a_job_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="correct --prometheus"):
        play(tmp_path / "job", replace(NULL, prometheus=f"http://127.0.0.1:{free_port()}"), {})
    assert not (tmp_path / "job").exists()


# Debian's own.

PROGRAMS = ("prometheus", "prometheus-process-exporter")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    """Run Debian's Prometheus and its process exporter, with a scrape each second, of this program alone."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: `make system` installs it on Debian")
    web, exporter = free_port(), free_port()
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    (tmp_path / "exporter.yml").write_text(f"process_names:\n  - name: tests\n    comm: [{json.dumps(name)}]\n")
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: processes, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}\n"
    )
    commands = [
        [PROGRAMS[1], "-config.path", "exporter.yml", f"-web.listen-address=127.0.0.1:{exporter}"],
        [
            *(PROGRAMS[0], "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
            f"--web.listen-address=127.0.0.1:{web}",
        ],
    ]
    with (tmp_path / "log").open("wb") as log:
        started = [subprocess.Popen(mortal(command), cwd=tmp_path, stdout=log, stderr=log) for command in commands]
        try:
            uri = f"http://127.0.0.1:{web}"
            wait_for(lambda: known(uri, DEFAULT_QUERIES["cpu"]), tmp_path / "log")
            yield uri
        finally:
            for program in started:
                program.terminate()
                program.wait()


def known(uri: str, query: str) -> bool:
    try:
        words = f"{uri}/api/v1/query?{urlencode({'query': query})}"
        with urlopen(words, timeout=5) as answer:
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False


def wait_for(holds: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_debian_s_prometheus_tells_what_the_processes_of_a_job_use(real: str, tmp_path: Path) -> None:
    plan = replace(NULL, users=(2,), duration=3.0, null_delay=0.01, repeats=1, prometheus=real)
    assert play(tmp_path / "job", plan, {}) == 0
    with Result(tmp_path / "job" / "result.h5") as result:
        rows, (step,) = result.table("prometheus"), result.table("steps")
        assert result.notes == []
    assert set(rows["query"]) == {b"cpu", b"memory", b"threads", b"files"}
    assert set(rows["labels"]) == {b"groupname=tests"}
    values = {name: rows["value"][rows["query"] == name] for name in set(rows["query"])}
    assert all(len(of) >= 3 for of in values.values())
    assert values[b"memory"].min() > 10e6
    assert values[b"cpu"].max() > 0
    assert values[b"threads"].min() >= 1
    assert values[b"files"].min() >= 3
    assert step["began"] - 0.01 <= rows["time"].min() < rows["time"].max() <= time.time()


@pytest.mark.slow
def test_debian_s_prometheus_says_what_is_wrong_with_a_query(real: str) -> None:
    with pytest.raises(UsageRefusal, match=r"does not take cpu \('sum by \(\('\): .*parse error"):
        reached(real, "cpu=sum by ((")
    with pytest.raises(UsageRefusal, match="does not take cpu"):
        reached(real, "cpu=rate(up)")
    assert np.array_equal(reached(real, "mine=vector(7)").look(time.time() - 3)["value"], [7.0] * 4)
