from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import resource
import ssl
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from hpcstress.clients.wire import WireClient, connect_outcome
from hpcstress.content import Artifact, Metric
from hpcstress.errors import Refusal
from hpcstress.record import Operation, Outcome
from hpcstress.target import Token
from tests.clients.wiring import RUN_ID, created, wired
from tests.peers import Peer, Request, Streams, http_server, listening, reply, server_tls

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
            assert set(rows["attempt"].tolist()) == {1}
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


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"<html>", b'{"run": 3}', b'{"x": ' + b"[" * 60_000, b'{"run": {"info": {}}}']
)
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


def test_a_server_that_leaves_artifacts_to_its_clients_is_told_of_and_the_run_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(reply(created(artifact_uri="s3://bucket/7"))) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)

            assert failure is None
            assert rows["op"][rows["outcome"] == Outcome.not_supported].tolist() == [Operation.log_artifact]
            assert rows["status"][rows["outcome"] == Outcome.not_supported].tolist() == [0]
            assert rows["op"][-1] == Operation.finish_run
            assert not [request for request in server.requests if request.method == "PUT"]

    asyncio.run(test())


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


def test_requests_after_a_renewal_bear_the_new_token(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        wire = client._wire
        mantik = wire.dialer.target.mantik
        assert mantik is not None
        for token in ("first", "second"):
            mantik.token = Token(token, "refresh", 3600)
            wire.expire()
            await log_everything(client)

    async def test() -> None:
        async with http_server(mlflow) as server:
            mantik = {"MANTIK_USERNAME": "me", "MANTIK_PASSWORD": "pw", "MANTIK_API_URL": "http://127.0.0.1:1"}
            _, failure = await wired(server.uri, tmp_path, play, environment=mantik)

            assert failure is None
            shown = [request.headers["authorization"] for request in server.requests]
            assert shown == sorted(shown)
            for token in ("first", "second"):
                bearers = [request for request in server.requests if request.headers["authorization"].endswith(token)]
                assert {request.method for request in bearers} == {"POST", "GET", "PUT"}
                asked = {request.target.partition("?")[0].rpartition("/")[2] for request in bearers}
                assert asked >= {"create", "log-batch", "update", "get"}

    asyncio.run(test())


def test_the_beginnings_of_requests_are_made_once_as_long_as_nothing_is_renewed(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        wire, heads = client._wire, client._heads
        before = (heads.create, heads.log_batch, heads.update, heads.get)
        wire.expire()
        after = (heads.create, heads.log_batch, heads.update, heads.get)
        assert all(a is b for a, b in zip(before, after, strict=True))

    async def test() -> None:
        async with http_server(mlflow) as server:
            _, failure = await wired(server.uri, tmp_path, play, environment={"MLFLOW_TRACKING_TOKEN": "secret"})
            assert failure is None

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


# Timeouts, limits, and what a server does in between.


def test_a_request_without_an_answer_in_time_keeps_its_latency(tmp_path: Path) -> None:
    async def test() -> None:
        asked = asyncio.Event()

        async def never(request: Request) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return b""

        async def play(client: WireClient) -> None:
            wire = client._wire
            request = asyncio.create_task(client.create_run("a", []))
            await asked.wait()
            wire.expire()
            assert not request.done()
            for connection in wire.connections:
                connection.deadline = 0
            wire.expire()
            await request

        async with http_server(never) as server:
            rows, failure = await wired(server.uri, tmp_path, play)
            assert failure is not None
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.timeout]
            assert rows["status"][-1] == 0
            assert rows["end"][-1] > rows["start"][-1]

    asyncio.run(test())


def test_a_connection_that_is_not_made_in_time_keeps_its_latency(tmp_path: Path) -> None:
    async def silent(peer: Peer, number: int, streams: Streams) -> None:
        await streams[0].read()
        await asyncio.Event().wait()

    async def test() -> None:
        # A server that never speaks TLS.
        async with listening(Peer("https", "127.0.0.1"), silent) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything, timeout=0.05)
            assert failure is not None
            assert [(row["op"], row["outcome"]) for row in rows] == [(Operation.connect, Outcome.timeout)]
            # The timers of the loop count whole milliseconds of a clock that it reads once in a turn.
            assert 40_000_000 < rows["end"][0] - rows["start"][0] < 30 * 10**9

    uvloop.run(test())


@pytest.mark.parametrize("loop", [uvloop.run, asyncio.run])
def test_what_this_machine_has_run_out_of_is_no_failure_of_the_server(tmp_path: Path, loop: Any) -> None:
    async def play(client: WireClient) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            await client.create_run("a", [])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    async def test() -> None:
        async with http_server(mlflow) as server:
            with pytest.raises(Refusal, match=r"^This machine cannot open more connections \(.*\): use more ranks"):
                await wired(server.uri, tmp_path, play)
            assert server.connections == 0

    loop(test())


def test_a_server_that_hangs_up_without_an_answer_is_not_asked_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with http_server(lambda request: b"" if "log-batch" in request.target else mlflow(request)) as server:
            rows, failure = await wired(server.uri, tmp_path, log_everything)
            assert failure is not None
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.ok, Outcome.closed]
            assert len(server.requests) == 2

    asyncio.run(test())


def test_a_connection_that_the_server_closes_while_it_is_idle_is_made_again(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        connection = client._connection
        assert connection is not None
        while connection.usable:
            await asyncio.sleep(0)
        await client.log_params(PARAMS[:1])

    async def serve(peer: Peer, number: int, streams: Streams) -> None:
        await streams[0].readuntil(b"\r\n\r\n")
        streams[1].write(reply(created()))

    async def test() -> None:
        async with listening(Peer("http", "127.0.0.1"), serve) as server:
            rows, failure = await wired(server.uri, tmp_path, play)
            assert failure is None
            names = [Operation(op).name for op in rows["op"]]
            assert names == ["connect", "create_run", "connect", "log_params"]
            assert (rows["due"][1:] == rows["end"][:-1]).all()

    asyncio.run(test())


# Artifacts.


def test_what_is_uploaded_is_the_artifact_at_the_place_that_the_server_named(tmp_path: Path) -> None:
    artifact = Artifact("a folder/ärtifact.bin", 300_000, 1, 3, 0)

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        await client.log_artifact(artifact)

    async def test() -> None:
        async with http_server(mlflow) as server:
            rows, _ = await wired(server.uri, tmp_path, play)
            put = server.requests[-1]
            assert put.target.endswith(f"/artifacts/7/{RUN_ID}/artifacts/a%20folder/%C3%A4rtifact.bin")
            assert hashlib.sha256(put.body).hexdigest() == artifact.sha256()
            assert rows["sent"][-1] == len(put.head) + 300_000

    asyncio.run(test())


def test_memory_does_not_grow_with_the_artifact(tmp_path: Path) -> None:
    size = 64 << 20
    artifact = Artifact("large.bin", size, 1, 3, 0)
    taken = 0

    async def serve(peer: Peer, number: int, streams: Streams) -> None:
        nonlocal taken
        reader, writer = streams
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            taken += left
            while left:
                left -= len(await reader.read(min(left, 1 << 16)))
            writer.write(reply(created()))

    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        tracemalloc.start()
        try:
            await client.log_artifact(artifact)
            assert tracemalloc.get_traced_memory()[1] < size / 8
        finally:
            tracemalloc.stop()

    async def test() -> None:
        async with listening(Peer("http", "127.0.0.1"), serve) as server:
            _, failure = await wired(server.uri, tmp_path, play)
            assert failure is None

    uvloop.run(test())
    assert taken > size


def test_an_upload_that_is_cancelled_is_recorded_as_interrupted(tmp_path: Path) -> None:
    async def play(client: WireClient) -> None:
        await client.create_run("a", [])
        upload = asyncio.create_task(client.log_artifact(Artifact("large.bin", 1 << 30, 1, 3, 0)))
        await uploading.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    async def serve(peer: Peer, number: int, streams: Streams) -> None:
        while not (await streams[0].readuntil(b"\r\n\r\n")).startswith(b"PUT"):
            streams[1].write(reply(created()))
        uploading.set()
        await asyncio.Event().wait()

    async def test() -> None:
        async with listening(Peer("http", "127.0.0.1"), serve) as server:
            rows, _ = await wired(server.uri, tmp_path, play)
            assert Operation(rows["op"][-1]) is Operation.log_artifact
            assert rows["outcome"].tolist() == [Outcome.ok, Outcome.ok, Outcome.ok, Outcome.interrupted]

    uploading = asyncio.Event()
    asyncio.run(test())


# Connections that were not made.


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ssl.SSLError(1, "wrong version number"), Outcome.tls),
        (ssl.SSLCertVerificationError(1, "self-signed"), Outcome.tls),
        (TimeoutError(), Outcome.timeout),
        (OSError(errno.ETIMEDOUT, "timed out"), Outcome.timeout),
        (ConnectionResetError(), Outcome.closed),
        (BrokenPipeError(), Outcome.closed),
        (ConnectionRefusedError(), Outcome.refused),
        (OSError(errno.EHOSTUNREACH, "no route to host"), Outcome.refused),
        (ConnectionError("The way through the proxy was refused."), Outcome.refused),
    ],
)
def test_a_connection_that_was_not_made_has_a_cause(error: Exception, outcome: Outcome) -> None:
    assert connect_outcome(error) is outcome
