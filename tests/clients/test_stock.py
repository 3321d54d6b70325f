from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.retry import Retry

from hpcstress.clients import Search
from hpcstress.clients.stock import Settings, StockClient
from hpcstress.content import Artifact, Batch, Metric
from hpcstress.errors import Refusal
from hpcstress.record import Operation, Outcome
from tests.clients.stocking import Row, played, recorded, rows_of, seen, stocked
from tests.clients.wiring import RUN_ID, created
from tests.peers import Request, http_server, reply

PARAMS = [(f"param-{number}", "value") for number in range(250)]
METRICS = [Metric("metric-0", 0.5, 1_700_000_000_000, 0)]
ARTIFACT = Artifact("a folder/artifact-0.bin", 300_000, 1, 3, 0)
HOOKED = [
    (HTTPConnectionPool, "urlopen"),
    (HTTPConnectionPool, "_make_request"),
    (HTTPConnection, "connect"),
    (HTTPSConnection, "connect"),
    (Retry, "sleep"),
    (ThreadPoolExecutor, "submit"),
]


def mlflow(request: Request) -> bytes:
    return reply(created() if "/runs/create" in request.target or "/runs/get" in request.target else b"{}")


def first(answer: bytes, times: int = 1) -> Callable[[Request], bytes]:
    """Answer the first batches in a certain way, and all other requests as MLflow does."""
    count = Counter[str]()

    def answered(request: Request) -> bytes:
        if "log-batch" in request.target:
            count["batches"] += 1
            if count["batches"] <= times:
                return answer
        return mlflow(request)

    return answered


async def log_everything(client: StockClient) -> None:
    await client.create_run("a name", [("a", "b")])
    await client.log_params(PARAMS)
    await client.log_metrics(METRICS)
    await client.log_artifact(ARTIFACT)
    await client.finish_run()


async def log_params(client: StockClient) -> None:
    await client.create_run("a name", [])
    await client.log_params(PARAMS[:3])


# Calls and what they consist of.


def test_a_call_is_a_row_behind_those_of_its_attempts(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_everything)

            assert failure is None
            assert seen(rows) == [
                ("connect", 1, "ok", 0),
                ("create_run", 1, "ok", 200),
                ("create_run", 0, "ok", 200),
                *[("log_params", 1, "ok", 200)] * 3,
                ("log_params", 0, "ok", 200),
                ("log_metrics", 1, "ok", 200),
                ("log_metrics", 0, "ok", 200),
                ("get_run", 1, "ok", 200),
                ("log_artifact", 1, "ok", 200),
                ("log_artifact", 0, "ok", 200),
                ("get_run", 1, "ok", 200),
                ("finish_run", 1, "ok", 200),
                ("finish_run", 0, "ok", 200),
            ]
            assert rows["seq"].tolist() == list(range(len(rows)))
            assert set(rows["run"].tolist()) == {3}
            assert (rows["due"] <= rows["start"]).all()
            assert (rows["start"] <= rows["end"]).all()
            sizes = [len(request.head) + len(request.body) for request in server.requests]
            requests = rows[(rows["attempt"] > 0) & (rows["op"] != Operation.connect)]
            assert requests["sent"].tolist() == sizes
            answers = [len(mlflow(request)) for request in server.requests]
            assert requests["received"].tolist() == answers
            assert server.connections == 1

    asyncio.run(test())


def test_a_call_lasts_from_its_beginning_to_its_end_with_all_attempts_in_between(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, _ = await recorded(server.uri, tmp_path, log_everything)
            begun = 0
            for place in range(len(rows)):
                if rows["attempt"][place] == 0:
                    within = rows[begun : place + 1]
                    assert within["start"].min() == rows["start"][place]
                    assert within["end"].max() == rows["end"][place]
                    begun = place + 1
            calls = rows[rows["attempt"] == 0]
            # What the run itself did in between is lateness: nothing but making a file.
            without_artifact = [place for place in range(1, len(calls)) if calls["op"][place] != Operation.log_artifact]
            for place in without_artifact:
                assert calls["due"][place] == calls["end"][place - 1]

    asyncio.run(test())


def test_what_is_empty_is_no_call(tmp_path: Path) -> None:
    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        await client.log_params([])
        await client.log_metrics([])
        await client.log_batch(Batch())

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, _ = await recorded(server.uri, tmp_path, play)
            assert [row.op for row in seen(rows)] == ["connect", "create_run", "create_run"]

    asyncio.run(test())


def test_a_batch_that_is_a_step_of_a_benchmark_keeps_its_name_in_all_attempts(tmp_path: Path) -> None:
    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        await client.log_batch(Batch(METRICS), Operation.log_40_metrics)

    async def test() -> None:
        async with http_server(first(reply(b"", "503 Service Unavailable"))) as server:
            rows, _ = await recorded(server.uri, tmp_path, play, patient=True)
            assert seen(rows)[3:] == [
                ("log_40_metrics", 1, "gateway", 503),
                ("log_40_metrics", 2, "ok", 200),
                ("log_40_metrics", 0, "ok", 200),
            ]

    asyncio.run(test())


def test_an_artifact_is_uploaded_as_it_is_and_its_file_is_gone_afterwards(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            with stocked(server.uri, tmp_path) as (stock, _):
                await played(stock, log_everything)
                assert not list(stock.folder.iterdir())
            assert not stock.folder.exists()
            [put] = [request for request in server.requests if request.method == "PUT"]
            assert put.target.endswith(f"/artifacts/7/{RUN_ID}/artifacts/a%20folder/artifact-0.bin")
            assert hashlib.sha256(put.body).hexdigest() == ARTIFACT.sha256()

    asyncio.run(test())


def test_what_searches_find_are_ids(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        if "experiments/search" in request.target:
            return reply(b'{"experiments": [{"experiment_id": "5"}]}')
        if "runs/search" in request.target:
            return reply(b'{"runs": [{"info": {"run_id": "abc"}, "data": {}}]}')
        return mlflow(request)

    found: list[Any] = []

    async def play(client: StockClient) -> None:
        found.append(await client.search_experiments(Search()))
        found.append(await client.search_runs(Search("tags.`a` = 'b'", 5, ("start_time",))))

    async def test() -> None:
        async with http_server(answer) as server:
            _, failure = await recorded(server.uri, tmp_path, play)
            assert failure is None

    asyncio.run(test())
    assert found == [["5"], ["abc"]]


def test_a_folder_is_one_call_and_a_request_for_each_file(tmp_path: Path) -> None:
    artifacts = [Artifact(path, 3000, 1, 3, index) for index, path in enumerate(["a.bin", "b/c.bin", "b/d.bin"])]

    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        await client.log_artifacts(artifacts, 8)

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, _ = await recorded(server.uri, tmp_path, play)
            assert seen(rows)[3:] == [
                ("get_run", 1, "ok", 200),
                *[("log_artifact", 1, "ok", 200)] * 3,
                ("log_artifact", 0, "ok", 200),
            ]
            put = {
                request.target.rpartition("/artifacts/")[2]: hashlib.sha256(request.body).hexdigest()
                for request in server.requests
                if request.method == "PUT"
            }
            assert put == {artifact.path: artifact.sha256() for artifact in artifacts}

    asyncio.run(test())


def test_a_search_that_finds_less_than_there_is_has_failed(tmp_path: Path) -> None:
    async def play(client: StockClient) -> None:
        await client.search_runs(Search(least=1))

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, failure = await recorded(server.uri, tmp_path, play)
            assert failure is not None
            assert failure.answer.body == b"0 were found, at least 1 have to be there"
            assert seen(rows)[1:] == [("search_runs", 1, "missing", 200), ("search_runs", 0, "missing", 200)]

    asyncio.run(test())


def test_a_file_that_cannot_be_written_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            with stocked(server.uri, tmp_path) as (stock, _):
                stock.folder.rmdir()
                stock.folder.write_bytes(b"")
                with pytest.raises(
                    Refusal, match=r"^MLflow's client uploads files, and .* cannot be written \(Not a dir"
                ):
                    await played(stock, log_everything)
                stock.folder.unlink()
                stock.folder.mkdir()

    asyncio.run(test())


# Attempts that MLflow hides.


def test_an_attempt_that_failed_is_followed_by_another_and_the_call_is_good(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(first(reply(b"busy", "503 Service Unavailable"))) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_params, patient=True)

            assert failure is None
            assert seen(rows)[3:] == [
                ("log_params", 1, "gateway", 503),
                ("log_params", 2, "ok", 200),
                ("log_params", 0, "ok", 200),
            ]
            failed, second = rows[3], rows[4]
            assert failed["received"] == len(reply(b"busy", "503 Service Unavailable"))
            # A pause is the client's choice, and no lateness.
            assert second["due"] == second["start"] >= failed["end"]

    asyncio.run(test())


def test_a_connection_that_breaks_is_made_again_and_both_have_the_number_of_their_attempt(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(first(b"")) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_params, patient=True)

            assert failure is None
            assert seen(rows)[3:] == [
                ("log_params", 1, "closed", 0),
                ("connect", 2, "ok", 0),
                ("log_params", 2, "ok", 200),
                ("log_params", 0, "ok", 200),
            ]

    asyncio.run(test())


def test_without_patience_there_is_one_attempt(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(first(reply(b"busy", "503 Service Unavailable"))) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_params)

            assert failure is not None
            assert (failure.answer.outcome, failure.answer.body) == (Outcome.gateway, b"busy")
            assert seen(rows)[3:] == [("log_params", 1, "gateway", 503), ("log_params", 0, "gateway", 503)]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply(b'{"message": "QueuePool limit of size 5 overflow 10 reached"}', "400 Bad Request"), "pool_exhausted"),
        (reply(b'{"error_code": "INVALID_PARAMETER_VALUE"}', "400 Bad Request"), "client_error"),
        (reply(b"You are not authenticated.", "401 Unauthorized"), "auth"),
        (reply(b"<!doctype html>", "404 Not Found"), "not_supported"),
        (reply(b"", "429 Too Many Requests"), "throttled"),
        (reply(b'{"error_code": "FEATURE_DISABLED"}', "500 Internal Server Error"), "not_supported"),
        (reply(b"", "500 Internal Server Error"), "server_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{", "closed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "malformed"),
        (reply(b"not even JSON"), "malformed"),
    ],
)
def test_a_call_fails_by_the_cause_of_its_last_attempt(tmp_path: Path, answer: bytes, outcome: str) -> None:
    async def test() -> None:
        async with http_server(first(answer)) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_params)

            assert failure is not None
            assert failure.answer.outcome.name == outcome
            status = 0 if answer.startswith(b"SSH") else int(answer.split()[1])
            assert seen(rows)[3:] == [("log_params", 1, outcome, status), ("log_params", 0, outcome, status)]

    asyncio.run(test())


@pytest.mark.parametrize("run_id", ["", "../../users", "a b"])
def test_a_run_without_a_plain_id_is_malformed(tmp_path: Path, run_id: str) -> None:
    async def test() -> None:
        async with http_server(reply(created(run_id=run_id))) as server:
            rows, failure = await recorded(server.uri, tmp_path, log_everything)

            assert failure is not None
            assert seen(rows)[1:] == [("create_run", 1, "malformed", 200), ("create_run", 0, "malformed", 200)]
            assert len(server.requests) == 1

    asyncio.run(test())


def test_a_server_that_is_not_there_is_a_connection_that_failed(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            uri = server.uri
        rows, _ = await recorded(uri, tmp_path, log_everything)
        assert seen(rows) == [("connect", 1, "refused", 0), ("create_run", 0, "refused", 0)]

    asyncio.run(test())


def test_a_request_without_an_answer_in_time_keeps_its_latency(tmp_path: Path) -> None:
    async def never(request: Request) -> bytes:
        if "log-batch" in request.target:
            await asyncio.Event().wait()
        return mlflow(request)

    async def test() -> None:
        async with http_server(never) as server:
            rows, _ = await recorded(server.uri, tmp_path, log_params, timeout=0.3)
            assert seen(rows)[3:] == [("log_params", 1, "timeout", 0), ("log_params", 0, "timeout", 0)]
            # MLflow counts whole seconds.
            assert rows["end"][3] - rows["start"][3] > 900_000_000

    asyncio.run(test())


def test_what_mlflow_refuses_by_itself_was_never_sent_and_what_was_sent_before_stays_acknowledged(
    tmp_path: Path,
) -> None:
    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        client._run_id = ""
        await client.log_artifact(ARTIFACT)

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, failure = await recorded(server.uri, tmp_path, play)
            assert failure is not None
            assert seen(rows)[1:] == [
                ("create_run", 1, "ok", 200),
                ("create_run", 0, "ok", 200),
                ("log_artifact", 0, "client_error", 0),
            ]

    asyncio.run(test())


def test_what_this_machine_has_run_out_of_is_no_failure_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def test() -> None:
        async with http_server(mlflow) as server:
            monkeypatch.setattr("urllib3.util.connection.create_connection", full)
            with pytest.raises(Refusal, match=r"^This machine cannot open more connections \(Too many open files\)"):
                await recorded(server.uri, tmp_path, log_everything)

    asyncio.run(test())


def test_an_error_that_is_nobody_elses_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async def test() -> None:
        async with http_server(mlflow) as server:
            with stocked(server.uri, tmp_path) as (stock, _), pytest.raises(ZeroDivisionError):
                await played(stock, lambda client: client._call(Operation.log_params, fail))

    asyncio.run(test())


def test_what_a_server_has_not_is_asked_for_once(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        return reply(b"<html>", "404 Not Found") if "workspaces" in request.target else mlflow(request)

    async def play(client: StockClient) -> None:
        assert await client.ask(Operation.list_workspaces, None) == ()
        assert await client.ask(Operation.list_workspaces, None) == ()

    async def test() -> None:
        async with http_server(answer) as server:
            rows, failure = await recorded(server.uri, tmp_path, play)
            assert failure is None
            assert seen(rows)[1:] == [
                ("list_workspaces", 1, "not_supported", 404),
                ("list_workspaces", 0, "not_supported", 404),
            ]

    asyncio.run(test())


# Threads.


def test_runs_go_on_at_once_each_with_a_thread_and_a_connection_that_it_keeps(tmp_path: Path) -> None:
    # More than the ten connections that MLflow's client keeps by default.
    runs = 12

    async def test() -> None:
        waiting = asyncio.Barrier(runs)

        async def answer(request: Request) -> bytes:
            await waiting.wait()
            return mlflow(request)

        async with http_server(answer) as server:
            with stocked(server.uri, tmp_path, at_once=runs) as (stock, journal):
                failures = await asyncio.gather(*(played(stock, log_params, run) for run in range(runs)))
                rows = rows_of(journal)
            assert failures == [None] * runs
            assert server.connections == runs
            for run in range(runs):
                mine = rows[rows["run"] == run]
                assert [row.op for row in seen(mine)] == ["connect", *["create_run"] * 2, *["log_params"] * 2]
                assert mine["seq"].tolist() == list(range(5))

    asyncio.run(test())


def test_what_mlflow_does_in_threads_of_its_own_belongs_to_the_run_that_asked(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        if request.target.endswith("/a.bin"):
            return reply(b"x" * 5000)
        return mlflow(request)

    async def play(client: StockClient) -> None:
        client.enter_workspace("team-a")
        await client.create_run("a name", [])
        await client.download_artifact("a.bin")

    async def test() -> None:
        async with http_server(
            lambda request: (
                reply(b'{"workspaces_enabled": true}') if "server-info" in request.target else answer(request)
            )
        ) as server:
            rows, failure = await recorded(server.uri, tmp_path, play)
            assert failure is None
            asked = [row.op for row in seen(rows) if row.attempt and row.op != "connect"]
            assert asked[:2] == ["server_info", "create_run"]
            assert asked.count("download_artifact") == 1
            [got] = rows[(rows["op"] == Operation.download_artifact) & (rows["attempt"] == 1)]
            assert got["received"] == len(reply(b"x" * 5000))
            of_runs = [request for request in server.requests if "server-info" not in request.target]
            assert {request.headers.get("x-mlflow-workspace") for request in of_runs} == {"team-a"}

    asyncio.run(test())


def test_workspaces_of_runs_do_not_mix(tmp_path: Path) -> None:
    async def test() -> None:
        def answer(request: Request) -> bytes:
            return reply(b'{"workspaces_enabled": true}') if "server-info" in request.target else mlflow(request)

        async def play(client: StockClient, name: str) -> None:
            client.enter_workspace(name)
            await client.create_run(name, [])
            await client.log_params([("name", name)])

        async with http_server(answer) as server:
            with stocked(server.uri, tmp_path, at_once=4) as (stock, _):
                names = [f"team-{number}" for number in range(4)]
                await asyncio.gather(*(played(stock, lambda client, name=name: play(client, name)) for name in names))
            for request in server.requests:
                if "server-info" not in request.target:
                    assert request.headers["x-mlflow-workspace"].encode() in request.body

    asyncio.run(test())


def test_a_function_finds_the_run_active_in_mlflows_fluent_api(tmp_path: Path) -> None:
    def train() -> str:
        from mlflow.tracking import fluent

        fluent.log_param("a", "b")
        return fluent.active_run().info.run_id

    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        assert await client.perform(Operation.other, train) == RUN_ID
        # It is not left active.
        assert await client.perform(Operation.other, lambda: len(_stack())) == 1

    def _stack() -> list[Any]:
        from mlflow.tracking import fluent

        stack: list[Any] = fluent._active_run_stack.get()
        return stack

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, failure = await recorded(server.uri, tmp_path, play)
            assert failure is None
            assert seen(rows)[3:5] == [("log_param", 1, "ok", 200), ("other", 0, "ok", 200)]
            assert len(server.requests) == 2

    asyncio.run(test())


# Nobody waits for MLflow's patience.


async def cancelled(server: Any, folder: Path, asked: asyncio.Event, then: asyncio.Event | None = None) -> list[Row]:
    """Cancel a run once a batch was asked for; return its rows when its thread is gone."""
    with stocked(server.uri, folder, patient=True, timeout=600) as (stock, journal):
        task = asyncio.create_task(played(stock, log_params))
        await asked.wait()
        [lane] = stock.lanes
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rows = seen(rows_of(journal))
        await asyncio.to_thread(lane.join, 60)
        assert not lane.is_alive()
        if then is not None:
            await then.wait()
        # A thread that is gone late writes nothing.
        assert seen(rows_of(journal)) == rows
    return rows


def test_a_run_that_is_cancelled_while_it_waits_for_an_answer_hangs_up(tmp_path: Path) -> None:
    async def test() -> None:
        asked, ended = asyncio.Event(), asyncio.Event()

        async def never(request: Request) -> bytes:
            if "log-batch" not in request.target:
                return mlflow(request)
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return b""

        async with http_server(never) as server:
            rows = await cancelled(server, tmp_path, asked)
            assert rows[3:] == [("log_params", 1, "interrupted", 0), ("log_params", 0, "interrupted", 0)]
            assert len(server.requests) == 2

    asyncio.run(test())


def test_a_run_that_is_cancelled_in_a_pause_sends_nothing_more(tmp_path: Path) -> None:
    async def test() -> None:
        asked = asyncio.Event()

        def busy(request: Request) -> bytes:
            if "log-batch" not in request.target:
                return mlflow(request)
            # When this answer has arrived is not known here, but nobody comes back within an hour.
            asyncio.get_running_loop().call_later(0.2, asked.set)
            return reply(b"", "503 Service Unavailable", retry_after="3600")

        async with http_server(busy) as server:
            rows = await cancelled(server, tmp_path, asked)
            assert rows[3:] == [("log_params", 1, "gateway", 503), ("log_params", 0, "interrupted", 0)]
            assert len(server.requests) == 2

    asyncio.run(test())


# The process is afterwards what it was before.


def test_nothing_is_left_of_it_in_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooked = [owner.__dict__[name] for owner, name in HOOKED]
    variables, collected = dict(os.environ), gc.get_freeze_count()

    async def test() -> None:
        async with http_server(mlflow) as server:
            with stocked(server.uri, tmp_path, environment={"MLFLOW_TRACKING_PASSWORD": "secret"}) as (stock, _):
                assert [owner.__dict__[name] for owner, name in HOOKED] != hooked
                assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
                await played(stock, log_everything)

    asyncio.run(test())
    assert [owner.__dict__[name] for owner, name in HOOKED] == hooked
    assert dict(os.environ) == variables
    assert gc.get_freeze_count() == collected
    # MLflow would say where each run can be seen.
    assert capsys.readouterr() == ("", "")


def test_requests_of_others_are_not_watched(tmp_path: Path) -> None:
    import requests

    async def test() -> None:
        async with http_server(mlflow) as server:
            with stocked(server.uri, tmp_path) as (_, journal):
                answer = await asyncio.to_thread(requests.get, server.uri, timeout=5)
                assert answer.status_code == 200
                assert not journal.length

    asyncio.run(test())


def test_the_collector_runs_whoever_has_switched_it_off(tmp_path: Path) -> None:
    gc.disable()
    try:
        with stocked("http://127.0.0.1:1", tmp_path) as (stock, _):
            stock.client(0, 0)
            assert gc.isenabled()
    finally:
        gc.enable()


# How it is set up.


def test_its_pool_has_a_connection_for_each_run_and_its_timeout_whole_seconds() -> None:
    variables = Settings("http://there", {}, 0.3, True, 200).variables
    assert variables["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert int(variables["MLFLOW_HTTP_POOL_MAXSIZE"] or 0) >= 200
    assert int(variables["MLFLOW_HTTP_POOL_CONNECTIONS"] or 0) >= 200
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in variables
    assert Settings("http://there", {}, 0.3, False, 200).variables["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_the_newest_token_goes_before_user_name_and_password(tmp_path: Path) -> None:
    token = SimpleNamespace(access="first")
    target: Any = SimpleNamespace(mantik=object(), token=token)
    environment = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}

    async def play(client: StockClient) -> None:
        await client.create_run("a name", [])
        token.access = "second"
        client._stock.expire()
        await client.log_params(PARAMS[:1])

    async def test() -> None:
        async with http_server(mlflow) as server:
            _, failure = await recorded(server.uri, tmp_path, play, target=target, environment=environment)
            assert failure is None
            signed = [request.headers["authorization"] for request in server.requests]
            assert signed == ["Bearer first", "Bearer second"]

    asyncio.run(test())


def test_files_for_which_there_is_no_room_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(
            Refusal, match=r"^MLflow's client uploads files: 1000 runs at once need \d+ MiB in .*: set TMPDIR"
        ),
        stocked("http://127.0.0.1:1", tmp_path, at_once=1000, largest_artifact=10**15),
    ):
        pass
    assert "MLFLOW_HTTP_POOL_MAXSIZE" not in os.environ


def test_a_machine_without_mlflow_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with (
        pytest.raises(Refusal, match=r"pip install 'hpcstress\[stock\]'"),
        stocked("http://127.0.0.1:1", tmp_path),
    ):
        pass
