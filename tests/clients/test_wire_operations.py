"""The wire client beyond the requests of a training run: searches, reading, what not every server has, retries."""

from __future__ import annotations

import asyncio
import weakref
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcstress.clients import Search
from hpcstress.clients.requests import ARTIFACTS, Where, request_of
from hpcstress.clients.retries import Policy
from hpcstress.clients.wire import WireClient
from hpcstress.content import Artifact, Batch, Metric
from hpcstress.record import Operation, Outcome
from tests.clients.wiring import RUN_ID, created, wired
from tests.peers import Peer, Request, Streams, http_server, listening, reply

OTHER_ID = "f" * 32
BATCH = Batch([Metric("m", 0.5, 17, 3)], [("p", "v")], [("t", "w")])


def mlflow(request: Request) -> bytes:
    """Answer as MLflow would, with one of everything."""
    answers = {
        "runs/create": created(),
        "runs/get": created(),
        "runs/search": b'{"runs": [{"info": {"run_id": "%s"}}]}' % OTHER_ID.encode(),
        "experiments/create": b'{"experiment_id": "12"}',
        "experiments/search": b'{"experiments": [{"experiment_id": "12"}]}',
        "artifacts?path": b'{"files": [{"path": "folder", "is_dir": true}, {"path": "a b.bin"}]}',
        "registered-models/search": b'{"registered_models": [{"name": "a model"}]}',
        "workspaces": b'{"workspaces": [{"name": "team-a"}]}',
    }
    return reply(next((body for part, body in answers.items() if part in request.target), b"{}"))


def played(tmp_path: Path, play: Any, answer: Any = mlflow, **options: Any) -> tuple[np.ndarray, Any, list[Request]]:
    """Play with a server; return the rows, how it failed if it did, and what the server was asked."""

    async def scene() -> tuple[np.ndarray, Any, list[Request]]:
        async with http_server(answer) as server:
            rows, failure = await wired(server.uri, tmp_path, play, **options)
            return rows, failure, server.requests

    return asyncio.run(scene())


def operations(rows: np.ndarray) -> list[str]:
    return [Operation(code).name for code in rows["op"].tolist()]


def told(request: Request) -> tuple[str, str, str]:
    return request.method, request.target, request.body.decode()


def expected(operation: Operation, payload: Any, where: Where) -> tuple[str, str, str]:
    method, path, body, *_ = request_of(operation, payload, where)
    return method, path, body or ""  # type: ignore[return-value]


# Everything that a client can ask for.


def test_every_operation_is_sent_as_its_request_and_recorded_by_its_name(tmp_path: Path) -> None:
    found: list[Any] = []

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await client.log_param(("k", "v"))
        await client.log_metric(BATCH.metrics[0])
        await client.set_tag("k", "v")
        await client.log_batch(BATCH)
        await client.log_batch(BATCH, Operation.log_40_metrics)
        await client.get_metric_history("m")
        found.append(await client.list_artifacts())
        await client.download_artifact("a b.bin")
        await client.get_experiment()
        found.append(await client.search_runs(Search("x")))
        found.append(await client.search_experiments(Search()))
        found.append(await client.ask(Operation.search_models, Search()))
        found.append(await client.ask(Operation.list_workspaces, None))
        found.append(await client.ask(Operation.create_model, ("m", [])))

    rows, failure, asked = played(tmp_path, play)
    assert failure is None
    assert found == [["a b.bin"], [OTHER_ID], ["12"], ["a model"], ["team-a"], ()]
    where = Where("7", RUN_ID, f"{ARTIFACTS}/7/{RUN_ID}/artifacts")
    sent = [
        (Operation.log_param, ("k", "v")),
        (Operation.log_metric, BATCH.metrics[0]),
        (Operation.set_tags, ("k", "v")),
        None,
        None,
        (Operation.get_metric_history, ("m", "")),
        (Operation.list_artifacts, None),
        (Operation.download_artifact, "a b.bin"),
        (Operation.get_experiment, None),
        (Operation.search_runs, Search("x")),
        (Operation.search_experiments, Search()),
        (Operation.search_models, Search()),
        (Operation.list_workspaces, None),
        (Operation.create_model, ("m", [])),
    ]
    batch = (
        f'{{"run_id": "{RUN_ID}", "metrics": [{{"key": "m", "value": 0.5, "timestamp": 17, "step": 3}}], '
        '"params": [{"key": "p", "value": "v"}], "tags": [{"key": "t", "value": "w"}]}'
    )
    assert [told(request) for request in asked[1:]] == [
        ("POST", "/api/2.0/mlflow/runs/log-batch", batch) if one is None else expected(*one, where) for one in sent
    ]
    names = [one[0].name if one is not None else "log_batch" for one in sent]
    names[4] = "log_40_metrics"
    assert operations(rows) == ["connect", "create_run", *names]
    assert (rows["due"][1:] == rows["end"][:-1]).all()
    assert {*rows["outcome"].tolist()} == {Outcome.ok}


def test_a_run_that_was_found_is_read_with_its_artifacts(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        [run_id] = await client.search_runs(Search())
        await client.get_run(run_id)
        await client.list_artifacts()

    _, failure, asked = played(tmp_path, play)
    assert failure is None
    assert asked[1].target.endswith(f"runs/get?run_uuid={OTHER_ID}&run_id={OTHER_ID}")
    # Where its artifacts are, the server has said.
    assert asked[2].target.endswith(f"?path=7%2F{RUN_ID}%2Fartifacts")


def test_an_experiment_that_was_created_or_entered_is_where_things_go(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        await client.create_experiment("mine", [])
        await client.create_run("a", [])
        await client.enter_experiment("13")
        await client.search_runs(Search())

    _, _, asked = played(tmp_path, play)
    assert b'"experiment_id": "12"' in asked[1].body
    assert b'"experiment_ids": ["13"]' in asked[2].body


def test_a_workspace_that_was_entered_goes_with_every_further_request(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        [name] = await client.ask(Operation.list_workspaces, None)
        client.enter_workspace(name)
        await client.create_run("a", [])
        await client.log_param(("k", "v"))
        await client.log_artifact(Artifact("a.bin", 5, 1, 1, 0))

    _, _, asked = played(tmp_path, play)
    assert [request.headers.get("x-mlflow-workspace") for request in asked] == [None, *["team-a"] * 4]


@pytest.mark.parametrize("run_id", ["a\\r\\nX-Evil: 1", "../../users", "a b", "", "ä"])
def test_a_found_run_that_is_no_plain_identifier_is_malformed_and_never_sent_back(tmp_path: Path, run_id: str) -> None:
    async def play(client: WireClient) -> None:
        for found in await client.search_runs(Search()):
            await client.get_run(found)

    rows, failure, asked = played(tmp_path, play, reply(f'{{"runs": [{{"info": {{"run_id": "{run_id}"}}}}]}}'.encode()))
    assert failure is not None
    assert rows["outcome"].tolist() == [Outcome.ok, Outcome.malformed]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda client: client.list_artifacts(),
        lambda client: client.download_artifact("a"),
        lambda client: client.log_artifact(Artifact("a", 1, 1, 1, 0)),
        lambda client: client.log_artifacts([Artifact("a", 1, 1, 1, 0), Artifact("b", 1, 1, 1, 0)]),
    ],
)
def test_artifacts_that_a_server_leaves_to_its_clients_are_not_asked_for(tmp_path: Path, read: Any) -> None:
    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await read(client)
        await read(client)

    rows, failure, asked = played(tmp_path, play, reply(created(artifact_uri="s3://bucket/7")))
    assert failure is None
    assert (rows["outcome"] == Outcome.not_supported).sum() == 1
    assert rows["outcome"][-1] == Outcome.not_supported
    assert {request.target.rpartition("/")[2].partition("?")[0] for request in asked} <= {"create", "get"}


def test_what_is_downloaded_is_counted_and_thrown_away(tmp_path: Path) -> None:
    size = 1 << 20

    def answer(request: Request) -> bytes:
        return reply(b"x" * size) if ARTIFACTS in request.target else mlflow(request)

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await client.download_artifact("large.bin")

    rows, failure, _ = played(tmp_path, play, answer)
    assert failure is None
    assert rows["received"][-1] > size


def test_what_a_server_lacks_is_recorded_once_and_the_run_goes_on(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        lacks = "workspaces" in request.target
        return reply(b"<!doctype html>", "404 Not Found") if lacks else mlflow(request)

    async def play(client: WireClient) -> None:
        for _ in range(3):
            assert await client.ask(Operation.list_workspaces, None) == ()
        await client.create_run("a", [])

    rows, failure, _ = played(tmp_path, play, answer)
    assert failure is None
    assert operations(rows) == ["connect", "list_workspaces", "create_run"]
    assert rows["outcome"].tolist() == [Outcome.ok, Outcome.not_supported, Outcome.ok]


class Slice(list[tuple[str, str]]):
    """Be a list that can be watched."""


@pytest.mark.parametrize("policy", [None, Policy()])
def test_what_was_sent_is_kept_while_its_answer_is_waited_for_only_to_be_sent_again(
    tmp_path: Path, policy: Policy | None
) -> None:
    async def play(client: WireClient) -> None:
        params = Slice([("p", "v")])
        kept = weakref.ref(params)

        class Params:
            """Make what is sent when it is asked for."""

            def __len__(self) -> int:
                return 1

            def __getitem__(self, _: slice) -> Slice:
                nonlocal params
                made = params
                del params
                return made

        await client.create_run("a", [])
        waiting = asyncio.create_task(client.log_params(Params()))  # type: ignore[arg-type]
        while len(server.requests) < 2:
            await asyncio.sleep(0)
        there.append(kept() is not None)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def answer(request: Request) -> bytes:
        if "log-batch" in request.target:
            await asyncio.Event().wait()
        return mlflow(request)

    there: list[bool] = []
    server: Peer

    async def scene() -> None:
        nonlocal server
        async with http_server(answer) as server:
            await wired(server.uri, tmp_path, play, policy=policy)

    asyncio.run(scene())
    assert there == [policy is not None]


# Retries.

PAUSE_NS = 30_000_000
# The loop's timers count milliseconds.
EARLY_NS = 2_000_000


class Patient(Policy):
    """Wait for a short while after each of the first three attempts that the stock client would repeat."""

    def pause(self, outcome: Outcome, status: int, attempt: int, received: int = 0, head: bytes = b"") -> float | None:
        patient = super().pause(outcome, status, attempt, received, head)
        return PAUSE_NS / 1e9 if patient is not None and attempt < 4 else None


async def log_twice(client: WireClient) -> None:
    await client.create_run("a", [])
    await client.log_params([("p", "v")])
    await client.log_metrics(BATCH.metrics)


def throttling(times: int, status: str = "429 Too Many Requests") -> Any:
    """Refuse the first of the requests that log, and then take them."""
    number = count()

    def answer(request: Request) -> bytes:
        if "log-batch" in request.target and next(number) < times:
            return reply(b"slow down", status)
        return mlflow(request)

    return answer


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "500 Internal Server Error"])
def test_a_request_that_is_refused_for_now_is_sent_again_and_every_attempt_is_a_row(
    tmp_path: Path, status: str
) -> None:
    rows, failure, asked = played(tmp_path, log_twice, throttling(2, status), policy=Patient())
    assert failure is None
    assert operations(rows) == ["connect", "create_run", "log_params", "log_params", "log_params", "log_metrics"]
    assert rows["attempt"].tolist() == [1, 1, 1, 2, 3, 1]
    assert rows["status"].tolist() == [0, 200, int(status[:3]), int(status[:3]), 200, 200]
    assert rows["seq"].tolist() == [0, 1, 2, 3, 4, 5]
    # The same bytes again.
    assert {request.body for request in asked[1:4]} == {asked[1].body}


def test_a_pause_is_no_lateness_of_the_generator(tmp_path: Path) -> None:
    rows, _, _ = played(tmp_path, log_twice, throttling(2), policy=Patient())
    waited = rows["due"][1:] - rows["end"][:-1]
    again = rows["attempt"][1:] > 1
    assert (waited[again] >= PAUSE_NS - EARLY_NS).all()
    assert (waited[~again] == 0).all()
    assert (rows["start"] >= rows["due"]).all()


def test_after_the_last_attempt_the_operation_has_failed(tmp_path: Path) -> None:
    rows, failure, _ = played(tmp_path, log_twice, throttling(99), policy=Patient())
    assert failure is not None
    assert failure.answer.outcome is Outcome.throttled
    assert rows["attempt"].tolist() == [1, 1, 1, 2, 3, 4]


def test_what_is_wrong_once_and_for_all_is_not_sent_again(tmp_path: Path) -> None:
    rows, failure, _ = played(tmp_path, log_twice, throttling(99, "400 Bad Request"), policy=Patient())
    assert failure is not None
    assert rows["attempt"].tolist() == [1, 1, 1]


def test_a_connection_that_breaks_is_made_again_within_the_attempt(tmp_path: Path) -> None:
    number = count()

    def answer(request: Request) -> bytes:
        return b"" if "log-batch" in request.target and next(number) < 1 else mlflow(request)

    rows, failure, _ = played(tmp_path, log_twice, answer, policy=Patient())
    assert failure is None
    assert operations(rows) == ["connect", "create_run", "log_params", "connect", "log_params", "log_metrics"]
    assert rows["attempt"].tolist() == [1, 1, 1, 2, 2, 1]
    assert rows["outcome"].tolist() == [Outcome.ok, Outcome.ok, Outcome.closed, Outcome.ok, Outcome.ok, Outcome.ok]


def test_a_server_that_is_not_there_is_tried_as_often_as_one_that_refuses(tmp_path: Path) -> None:
    async def scene() -> tuple[np.ndarray, Any]:
        async with http_server(reply()) as server:
            uri = server.uri
        return await wired(uri, tmp_path, log_twice, policy=Patient())

    rows, failure = asyncio.run(scene())
    assert failure is not None
    assert operations(rows) == ["connect"] * 4
    assert rows["attempt"].tolist() == [1, 2, 3, 4]
    assert {*rows["outcome"].tolist()} == {Outcome.refused}


def test_an_upload_is_made_again_from_its_first_byte(tmp_path: Path) -> None:
    artifact = Artifact("a.bin", 300_000, 1, 3, 0)
    number = count()

    def answer(request: Request) -> bytes:
        return reply(b"", "502 Bad Gateway") if request.method == "PUT" and next(number) < 2 else mlflow(request)

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await client.log_artifact(artifact)

    rows, failure, asked = played(tmp_path, play, answer, policy=Patient())
    assert failure is None
    assert rows["attempt"].tolist() == [1, 1, 1, 1, 2, 3]
    whole = b"".join(artifact.chunks())
    assert [request.body == whole for request in asked if request.method == "PUT"] == [True] * 3


def test_a_run_that_is_cancelled_in_a_pause_leaves_no_further_row(tmp_path: Path) -> None:
    refused = asyncio.Event()

    class Endless(Policy):
        """Wait for ever."""

        def pause(self, *_: object) -> float:
            refused.set()
            return 3600.0

    async def play(client: WireClient) -> None:
        task = asyncio.create_task(log_twice(client))
        await refused.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    rows, failure, _ = played(tmp_path, play, throttling(99), policy=Endless())
    assert failure is None
    assert rows["outcome"].tolist() == [Outcome.ok, Outcome.ok, Outcome.throttled]


def test_a_server_that_speaks_no_http_is_asked_again_as_the_stock_client_does(tmp_path: Path) -> None:
    async def serve(peer: Peer, _number: int, streams: Streams) -> None:
        await streams[0].readuntil(b"\r\n\r\n")
        streams[1].write(b"SSH-2.0-OpenSSH\r\n\r\n" if peer.connections < 3 else reply(created()))

    async def scene() -> tuple[np.ndarray, Any]:
        async with listening(Peer("http", "127.0.0.1"), serve) as server:
            return await wired(server.uri, tmp_path, lambda client: client.create_run("a", []), policy=Patient())

    rows, failure = asyncio.run(scene())
    assert failure is None
    assert rows["attempt"].tolist() == [1, 1, 2, 2, 3, 3]
    assert rows["outcome"].tolist() == [0, Outcome.malformed, 0, Outcome.malformed, 0, 0]
