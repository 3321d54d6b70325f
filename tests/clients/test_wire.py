from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trustme

from hpcstress.clients.wire import WireClient, artifact_path
from hpcstress.content import Artifact, Metric
from hpcstress.record import Operation, Outcome
from tests.clients.wiring import RUN_ID, created, wired
from tests.peers import Peer, Request, http_server, reply, server_tls

PARAMS = [(f"param-{number}", f'välue "{number}"') for number in range(250)]
METRICS = [Metric(f"metric-{number}", value, 1_700_000_000_000, 0) for number, value in enumerate((0.5, 1e-09, 3.0))]
ARTIFACT = Artifact("artifact-0.bin", 10, 1, 3, 0)


def mlflow(request: Request) -> bytes:
    return reply(created() if "/runs/create" in request.target or "/runs/get" in request.target else b"{}")


async def log_everything(client: WireClient) -> None:
    await client.create_run("a name", [("a", "b"), ("c", "d")])
    await client.log_params(PARAMS)
    await client.log_metrics(METRICS)
    await client.log_artifact(ARTIFACT)
    await client.log_artifact(Artifact("artifact-1.bin", 10, 1, 3, 1))
    await client.finish_run()


STOCK = """
    import sys
    from pathlib import Path
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    folder = Path(sys.argv[2])
    for index in range(2):
        (folder / f"artifact-{index}.bin").write_bytes(b"0123456789")
    client = MlflowClient(sys.argv[1])
    run_id = client.create_run("7", tags={"a": "b", "c": "d"}, run_name="a name", start_time=5).info.run_id
    params = [Param(f"param-{number}", f'v\\u00e4lue "{number}"') for number in range(250)]
    for start in range(0, 250, 100):
        client.log_batch(run_id, params=params[start:start + 100])
    values = (0.5, 1e-09, 3.0)
    client.log_batch(run_id, metrics=[Metric(f"metric-{n}", v, 1700000000000, 0) for n, v in enumerate(values)])
    for index in range(2):
        client.log_artifact(run_id, str(folder / f"artifact-{index}.bin"))
    client.set_terminated(run_id)
"""


def comparable(request: Request) -> tuple[str, str, str | None, Any]:
    """Return a request without what cannot be equal: the time, and the bytes of artifacts but for their number."""
    if request.method == "PUT":
        return request.method, request.target, request.headers["content-type"], len(request.body)
    text = request.body.decode()
    told = json.loads(text) if text else {}
    for name in ("start_time", "end_time"):
        if name in told:
            text = text.replace(str(told[name]), "<now>")
    return request.method, request.target, request.headers.get("content-type"), text


@pytest.mark.slow
def test_the_requests_are_those_of_the_stock_client_byte_for_byte(tmp_path: Path) -> None:
    async def record(send: Any) -> list[Request]:
        async with http_server(mlflow) as server:
            await send(server)
            return server.requests

    async def stock(server: Peer) -> None:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
        program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(STOCK), server.uri, str(tmp_path)]
        process = await asyncio.create_subprocess_exec(
            *program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()

    async def wire(server: Peer) -> None:
        _, failure = await wired(server.uri, tmp_path, log_everything)
        assert failure is None

    expected = [comparable(request) for request in asyncio.run(record(stock))]
    assert [comparable(request) for request in asyncio.run(record(wire))] == expected
    assert len(expected) == 10


def test_every_request_is_a_row_due_when_the_one_before_it_had_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)

            assert failure is None
            assert [Operation(op).name for op in rows["op"]] == [
                "connect",
                "create_run",
                *["log_params"] * 3,
                "log_metrics",
                "get_run",
                *["log_artifact"] * 2,
                "get_run",
                "finish_run",
            ]
            assert rows["seq"].tolist() == list(range(11))
            assert set(rows["run"].tolist()) == {3}
            assert set(rows["outcome"].tolist()) == {Outcome.ok}
            assert rows["status"].tolist() == [0] + [200] * 10
            assert (rows["due"][1:] == rows["end"][:-1]).all()
            assert (rows["due"] <= rows["start"]).all()
            assert (rows["start"] <= rows["end"]).all()
            sent = [len(request.head) + len(request.body) for request in server.requests]
            assert rows["sent"].tolist()[1:] == sent
            assert server.connections == 1

    asyncio.run(test())


@pytest.mark.parametrize("run_id", ["a\\r\\nX-Evil: 1", "../../users", "a b", "", "x" * 65, "a/b", "ä"])
def test_a_run_id_that_is_no_plain_identifier_is_malformed_and_never_sent_back(tmp_path: Path, run_id: str) -> None:
    async def test() -> None:
        async with http_server(reply(created(run_id=run_id))) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)

            assert failure is not None
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.malformed]
            assert len(server.requests) == 1

    asyncio.run(test())


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"run": 3}', b"[" * 100_000, b'{"run": {"info": {}}}'])
def test_an_answer_that_names_no_run_is_malformed(tmp_path: Path, body: bytes) -> None:
    async def test() -> None:
        async with http_server(reply(body)) as server:
            rows, _ = await wired(server.uri, tmp_path, log_everything)
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.malformed]

    asyncio.run(test())


def test_a_failed_request_keeps_its_latency_and_ends_the_run(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        if "log-batch" in request.target:
            return reply(b'{"message": "QueuePool limit of size 5 overflow 10 reached"}', "400 Bad Request")
        return mlflow(request)

    async def test() -> None:
        async with http_server(answer) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)

            assert failure is not None
            assert failure.answer.outcome is Outcome.pool_exhausted
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.ok, Outcome.pool_exhausted]
            assert rows["status"][-1] == 400
            assert rows["end"][-1] > rows["start"][-1]

    asyncio.run(test())


def test_after_connection_close_the_next_request_makes_a_new_connection(tmp_path: Path) -> None:
    def answer(request: Request) -> bytes:
        body = mlflow(request)
        return body.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) if "log-batch" in request.target else body

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await client.log_params(PARAMS[:5])
        await client.log_metrics(METRICS)

    async def test() -> None:
        async with http_server(answer) as server:
            rows, failure = await wired(server.uri, tmp_path, play)

            assert failure is None
            names = [Operation(op).name for op in rows["op"]]
            assert names == ["connect", "create_run", "log_params", "connect", "log_metrics"]
            assert server.connections == 2

    asyncio.run(test())


def test_a_server_that_is_not_there_refuses(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(reply()) as server:
            uri = server.uri
        rows, _ = await wired(uri, tmp_path, log_everything)
        assert [(row["op"], row["outcome"]) for row in rows] == [(Operation.connect, Outcome.refused)]

    asyncio.run(test())


def test_a_certificate_of_an_unknown_authority_is_a_tls_failure(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(reply(), tls=server_tls(trustme.CA(), "127.0.0.1")) as server:
            rows, _ = await wired(server.uri, tmp_path, log_everything)
            assert [(row["op"], row["outcome"]) for row in rows] == [(Operation.connect, Outcome.tls)]

    asyncio.run(test())


def test_a_server_that_leaves_artifacts_to_its_clients_is_not_supported(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(reply(created(artifact_uri="s3://bucket/7"))) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)

            assert failure is not None
            assert rows["outcome"][-1] == Outcome.not_supported
            assert rows["op"][-1] == Operation.log_artifact
            assert not [request for request in server.requests if request.method == "PUT"]

    asyncio.run(test())


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (f"mlflow-artifacts:/7/{RUN_ID}/artifacts", f"/api/2.0/mlflow-artifacts/artifacts/7/{RUN_ID}/artifacts"),
        (
            "mlflow-artifacts:/workspaces/a b/7/x/artifacts/",
            "/api/2.0/mlflow-artifacts/artifacts/workspaces/a%20b/7/x/artifacts",
        ),
        ("mlflow-artifacts://host:5000/7/x", "/api/2.0/mlflow-artifacts/artifacts/7/x"),
        ("s3://bucket/7", None),
        ("/shared/7", None),
        ("file:///shared/7", None),
    ],
)
def test_where_artifacts_go_follows_from_the_uri_of_the_run(uri: str, path: str | None) -> None:
    assert artifact_path(uri) == path


def test_the_sign_in_and_the_workspace_go_with_every_request_and_the_base_path_before_it(tmp_path: Path) -> None:
    environment = {"MLFLOW_TRACKING_TOKEN": "secret", "MLFLOW_WORKSPACE": "team-a"}

    async def test() -> None:
        async with http_server(mlflow) as server:
            _, failure = await wired(f"{server.uri}/mlflow", tmp_path, log_everything, environment=environment)

            assert failure is None
            assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}
            assert {request.headers["x-mlflow-workspace"] for request in server.requests} == {"team-a"}
            assert {request.target.split("/")[1] for request in server.requests} == {"mlflow"}

    asyncio.run(test())


def test_a_run_that_is_cancelled_records_the_request_in_flight_as_interrupted(tmp_path: Path) -> None:
    async def test() -> None:
        asked = asyncio.Event()

        async def never(request: Request) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return b""

        async def play(client: WireClient) -> None:
            task = asyncio.create_task(client.create_run("a", []))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async with http_server(never) as server:
            rows, _ = await wired(server.uri, tmp_path, play)
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.interrupted]

    asyncio.run(test())
