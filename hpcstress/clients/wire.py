"""MLflow's REST calls, byte for byte as the stock client sends them, on one connection per run. Needs no mlflow."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Sequence
from json import dumps
from json.encoder import encode_basestring_ascii as quoted
from time import monotonic_ns
from typing import Any
from urllib.parse import quote

import msgspec

from hpcstress.clients import Client
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.connection import Connection
from hpcstress.clients.dial import Dialer
from hpcstress.content import Artifact, Metric
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.record import Operation, Outcome

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_JSON = "Content-Type: application/json\r\nContent-Length: "
_BYTES = "Content-Type: application/octet-stream\r\nContent-Length: "
# Looking a member up in its class costs as much as recording a row.
_OK = Outcome.ok
_CREATE_RUN = Operation.create_run
_LOG_PARAMS = Operation.log_params
_LOG_METRICS = Operation.log_metrics
_GET_RUN = Operation.get_run
_LOG_ARTIFACT = Operation.log_artifact
# What the generator's own machine has run out of is no failure of the server.
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)


class _Info(msgspec.Struct):
    run_id: str
    artifact_uri: str


class _Created(msgspec.Struct):
    info: _Info


class _RunAnswer(msgspec.Struct):
    run: _Created


_decode_run = msgspec.json.Decoder(_RunAnswer).decode


def create_run_body(experiment_id: str, name: str, tags: Sequence[tuple[str, str]], start_time_ms: int) -> str:
    """Return the JSON of a runs/create request."""
    return dumps(
        {
            "experiment_id": experiment_id,
            "user_id": "unknown",
            "run_name": name,
            "start_time": start_time_ms,
            "tags": [{"key": key, "value": value} for key, value in tags],
        }
    )


def log_params_body(run_id: str, params: Sequence[tuple[str, str]]) -> str:
    """Return the JSON of a runs/log-batch request with parameters."""
    listed = ", ".join([f'{{"key": {quoted(key)}, "value": {quoted(value)}}}' for key, value in params])
    return f'{{"run_id": "{run_id}", "params": [{listed}]}}'


def log_metrics_body(run_id: str, metrics: Sequence[Metric]) -> str:
    """Return the JSON of a runs/log-batch request with metrics."""
    listed = ", ".join(
        [
            f'{{"key": {quoted(key)}, "value": {value!r}, "timestamp": {timestamp}, "step": {step}}}'
            for key, value, timestamp, step in metrics
        ]
    )
    return f'{{"run_id": "{run_id}", "metrics": [{listed}]}}'


def update_run_body(run_id: str, end_time_ms: int) -> str:
    """Return the JSON of the runs/update request that finishes a run."""
    return f'{{"run_uuid": "{run_id}", "status": "FINISHED", "end_time": {end_time_ms}, "run_id": "{run_id}"}}'


def artifact_path(artifact_uri: str) -> str | None:
    """Return where a server takes a run's artifacts, None where clients have to reach the store themselves."""
    scheme, _, rest = artifact_uri.partition(":")
    if scheme != "mlflow-artifacts":
        return None
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    return ARTIFACTS + quote(rest.rstrip("/"))


class Wire:
    """Hold what all runs of a rank share: the beginnings of requests, the way to the server, the open connections."""

    def __init__(self, dialer: Dialer, journal: Journal, experiment_id: str, timeout: float) -> None:
        target = self.target = dialer.target
        self.dialer = dialer
        self.append = journal.append
        self.experiment_id = experiment_id
        self.timeout = timeout
        self.timeout_ns = round(timeout * 1e9)
        self.connections: set[Connection] = set()
        post = target.head
        self.create = post("POST", f"{API}/runs/create") + _JSON.encode()
        self.log_batch = post("POST", f"{API}/runs/log-batch") + _JSON.encode()
        self.update = post("POST", f"{API}/runs/update") + _JSON.encode()
        get = target.head("GET", f"{API}/runs/get?run_uuid=RUN_ID&run_id=RUN_ID") + b"\r\n"
        # What stands between the names of the run.
        self.get = get.split(b"RUN_ID")

    def client(self, run: int, due: int) -> WireClient:
        """Return the client of one run that is due at an instant of the local monotonic clock (nanoseconds)."""
        return WireClient(self, run, due)

    def expire(self) -> None:
        """Fail every request whose time is over."""
        now = monotonic_ns()
        for connection in list(self.connections):
            connection.expire(now)


class WireClient(Client):
    """Send the requests of one run on one connection, and record every attempt."""

    __slots__ = ("_artifacts", "_connection", "_due", "_run", "_run_id", "_seq", "_wire")

    def __init__(self, wire: Wire, run: int, due: int) -> None:
        super().__init__()
        self._wire = wire
        self._run = run
        self._due = due
        self._seq = 0
        self._run_id = ""
        self._artifacts: str | None = None
        self._connection: Connection | None = None

    async def _request(self, operation: Operation, payload: Any) -> None:
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connect()
        request = self._encode(operation, payload)
        start = monotonic_ns()
        try:
            waiter = connection.exchange(request, start + self._wire.timeout_ns)
            if operation is _LOG_ARTIFACT:
                await connection.send(payload.chunks())
            # With thousands of runs waiting, what they have sent would be the largest thing in memory.
            del request, payload
            answer = await waiter
        except asyncio.CancelledError:
            self._record(operation, start, Answer(Outcome.interrupted, 0, monotonic_ns(), 0, 0, b""))
            raise
        if operation is _CREATE_RUN and answer.outcome is _OK:
            answer = self._adopt(answer)
        self._record(operation, start, answer)
        if answer.outcome is not _OK:
            raise Failed(msgspec.structs.replace(answer, body=self._wire.target.masked(answer.body)))

    def _encode(self, operation: Operation, payload: Any) -> bytes:
        wire = self._wire
        if operation is _LOG_PARAMS:
            head, body = wire.log_batch, log_params_body(self._run_id, payload)
        elif operation is _LOG_METRICS:
            head, body = wire.log_batch, log_metrics_body(self._run_id, payload)
        elif operation is _GET_RUN:
            return self._run_id.encode().join(wire.get)
        elif operation is _LOG_ARTIFACT:
            return self._encode_upload(payload)
        elif operation is _CREATE_RUN:
            name, tags = payload
            head, body = wire.create, create_run_body(wire.experiment_id, name, tags, time.time_ns() // 10**6)
        else:
            head, body = wire.update, update_run_body(self._run_id, time.time_ns() // 10**6)
        return head + b"%d\r\n\r\n" % len(body) + body.encode()

    def _encode_upload(self, artifact: Artifact) -> bytes:
        if self._artifacts is None:
            now = monotonic_ns()
            answer = Answer(Outcome.not_supported, 0, now, 0, 0, b"this server leaves artifacts to its clients")
            self._record(_LOG_ARTIFACT, now, answer)
            raise Failed(answer)
        head = self._wire.target.head("PUT", f"{self._artifacts}/{quote(artifact.path)}")
        return head + f"{_BYTES}{artifact.size}\r\n\r\n".encode()

    def _adopt(self, answer: Answer) -> Answer:
        # What a server says becomes part of later requests: nothing but a plain identifier may.
        try:
            info = _decode_run(answer.body).run.info
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.structs.replace(answer, outcome=Outcome.malformed)
        if not _ID.fullmatch(info.run_id):
            return msgspec.structs.replace(answer, outcome=Outcome.malformed)
        self._run_id = info.run_id
        self._artifacts = artifact_path(info.artifact_uri)
        return answer

    async def _connect(self) -> Connection:
        wire = self._wire
        self._forget()
        start = monotonic_ns()
        outcome, said = Outcome.ok, b""
        try:
            async with asyncio.timeout(wire.timeout):
                _, connection = await wire.dialer.dial(Connection)
        except asyncio.CancelledError:
            self._record(Operation.connect, start, Answer(Outcome.interrupted, 0, monotonic_ns(), 0, 0, b""))
            raise
        except (OSError, ssl.SSLError) as error:
            if isinstance(error, OSError) and error.errno in _OWN_LIMITS:
                raise Refusal(
                    f"This machine cannot open more connections ({error.strerror}): use more ranks on more nodes, "
                    "or raise its limits (ulimit -n, net.ipv4.ip_local_port_range)."
                ) from None
            outcome, said = connect_outcome(error), str(error).encode()
        answer = Answer(outcome, 0, monotonic_ns(), 0, 0, said)
        self._record(Operation.connect, start, answer)
        if outcome is not Outcome.ok:
            raise Failed(answer)
        assert isinstance(connection, Connection)
        self._connection = connection
        wire.connections.add(connection)
        return connection

    def _record(self, operation: Operation, start: int, answer: Answer) -> None:
        end, seq = answer.end, self._seq
        self._wire.append(
            self._due,
            start,
            end,
            answer.sent,
            answer.received,
            self._run,
            seq,
            answer.status,
            1,
            answer.outcome,
            operation,
        )
        self._seq = seq + 1
        self._due = end

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.abandon()
            self._wire.connections.discard(self._connection)
            self._connection = None

    def close(self) -> None:
        self._forget()


def connect_outcome(error: Exception) -> Outcome:
    """Return the cause of a connection that was not made."""
    if isinstance(error, ssl.SSLError):
        return Outcome.tls
    if isinstance(error, TimeoutError):
        return Outcome.timeout
    if isinstance(error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return Outcome.closed
    return Outcome.refused
