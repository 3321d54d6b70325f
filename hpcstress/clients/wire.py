"""MLflow's REST calls, byte for byte as the stock client sends them, on one connection per run. Needs no mlflow."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from itertools import count
from time import monotonic_ns
from typing import Any
from urllib.parse import quote

import msgspec

from hpcstress.clients import Client, Lacking, Place, Search, Turn, no_turn
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.connection import KEPT_BODY, MAX_ANSWER, Connection, HeadedConnection
from hpcstress.clients.dial import Dialer
from hpcstress.clients.requests import (
    API,
    WORKSPACES,
    Request,
    Where,
    artifact_kind,
    artifact_path,
    create_run_body,
    found_by,
    log_batch_body,
    log_metrics_body,
    log_params_body,
    request_of,
    update_run_body,
)
from hpcstress.clients.retries import Policy
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.record import Operation, Outcome
from hpcstress.target import Target

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_JSON = "Content-Type: application/json\r\nContent-Length: "
# Looking a member up in its class costs as much as recording a row.
_OK = Outcome.ok
_CREATE_RUN = Operation.create_run
_LOG_PARAMS = Operation.log_params
_LOG_METRICS = Operation.log_metrics
_GET_RUN = Operation.get_run
_LOG_ARTIFACT = Operation.log_artifact
_LOG_MODEL_ARTIFACT = Operation.log_model_artifact
_BATCHES = frozenset(
    {
        Operation.log_batch,
        Operation.log_40_metrics,
        Operation.log_400_metrics,
        Operation.log_1000_metrics,
        Operation.log_10_params,
        Operation.log_100_params,
    }
)
# Their answers are read to the end, because what they say is needed.
_FINDING = frozenset(
    {
        Operation.search_runs,
        Operation.search_experiments,
        Operation.create_experiment,
        Operation.list_artifacts,
        Operation.search_models,
        Operation.search_prompts,
        Operation.list_workspaces,
        Operation.search_traces,
        Operation.create_logged_model,
        Operation.get_metric_history,
    }
)
_OF_ARTIFACTS = frozenset(
    {
        Operation.log_artifact,
        Operation.log_model_artifact,
        Operation.list_artifacts,
        Operation.download_artifact,
    }
)


def _throw_away(data: bytes) -> None:
    del data


# How much of an answer's body is kept, and who takes what is not.
_LITTLE = (KEPT_BODY, None)
_KEEPING: dict[Operation, tuple[int, Callable[[bytes], object] | None]] = {
    **dict.fromkeys([*_FINDING, _GET_RUN, _CREATE_RUN], (MAX_ANSWER, None)),
    Operation.download_artifact: (0, _throw_away),
}
_READ = frozenset({*_FINDING, _GET_RUN, _CREATE_RUN})
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


class Heads:
    """Hold how the requests of one workspace begin, written once for as long as the credentials in them are good."""

    __slots__ = ("_credentials", "create", "get", "log_batch", "target", "update")

    def __init__(self, target: Target) -> None:
        self.target = target
        self._write()

    def refresh(self) -> None:
        """Write them anew if there are newer credentials."""
        if self.target.credentials != self._credentials:
            self._write()

    def _write(self) -> None:
        target = self.target
        self._credentials = target.credentials
        self.create = target.head("POST", f"{API}/runs/create") + _JSON.encode()
        self.log_batch = target.head("POST", f"{API}/runs/log-batch") + _JSON.encode()
        self.update = target.head("POST", f"{API}/runs/update") + _JSON.encode()
        get = target.head("GET", f"{API}/runs/get?run_uuid=RUN_ID&run_id=RUN_ID") + b"\r\n"
        # What stands between the names of the run.
        self.get = get.split(b"RUN_ID", 2)


class Wire:
    """Hold what all runs of a rank share: the beginnings of requests, the way to the server, the open connections."""

    def __init__(
        self, dialer: Dialer, journal: Journal, place: Place, timeout: float, policy: Policy | None = None
    ) -> None:
        self.dialer = dialer
        self.append = journal.append
        self.place = place
        self.timeout = timeout
        self.timeout_ns = round(timeout * 1e9)
        self.policy = policy
        self.lacking = Lacking()
        self.connections: set[Connection] = set()
        self._heads = {dialer.target.workspace: Heads(dialer.target)}

    def client(self, run: int, due: int, turn: Turn = no_turn) -> WireClient:
        """Return the client of one run that is due at an instant of the local monotonic clock (nanoseconds)."""
        return WireClient(self, run, due, turn)

    def heads(self, workspace: str | None = None) -> Heads:
        """Return how requests begin in a workspace, by default the one that the environment names."""
        target = self.dialer.target
        workspace = workspace or target.workspace
        if workspace not in self._heads:
            self._heads[workspace] = Heads(replace(target, workspace=workspace))
        return self._heads[workspace]

    def expire(self) -> None:
        """Fail every request whose time is over, and begin those to come with the newest credentials."""
        for heads in self._heads.values():
            heads.refresh()
        now = monotonic_ns()
        for connection in list(self.connections):
            connection.expire(now)


class WireClient(Client):
    """Send the requests of one run on one connection, and record every attempt."""

    __slots__ = (
        "_artifacts",
        "_connection",
        "_experiment_id",
        "_found",
        "_heads",
        "_least",
        "_numbers",
        "_run",
        "_run_id",
        "_wire",
    )

    def __init__(self, wire: Wire, run: int, due: int, turn: Turn = no_turn) -> None:
        super().__init__(wire.place, wire.lacking, due, turn)
        self._wire = wire
        self._heads = wire.heads()
        self._run = run
        # Counted by all connections of the run.
        self._numbers = count()
        self._least = 0
        self._experiment_id = wire.place.experiment_id
        self._run_id = ""
        self._artifacts: str | None = None
        self._found: Sequence[str] = ()
        self._connection: Connection | None = None

    def enter_workspace(self, name: str) -> None:
        self._heads = self._wire.heads(name)

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        # All in one frame, and nothing large in it: with thousands of runs waiting, that is what memory consists of.
        attempt = 0
        while True:
            attempt += 1
            connection = self._connection
            if connection is None or not connection.usable:
                answer = await self._connect(attempt)
                connection = self._connection
            if connection is not None:
                request = self._encode(operation, payload, attempt)
                start = monotonic_ns()
                try:
                    waiter = connection.exchange(
                        request, start + self._wire.timeout_ns, *_KEEPING.get(operation, _LITTLE)
                    )
                    if operation is _LOG_ARTIFACT or operation is _LOG_MODEL_ARTIFACT:
                        await connection.send(payload.chunks())
                    del request
                    if self._wire.policy is None:
                        del payload
                    answer = await waiter
                except asyncio.CancelledError:
                    interrupted = Answer(Outcome.interrupted, 0, monotonic_ns(), 0, 0, b"")
                    self._record(operation, start, interrupted, attempt)
                    raise
                if operation in _READ and answer.outcome is _OK:
                    answer = self._read(operation, answer)
                self._record(operation, start, answer, attempt)
            if answer.outcome is _OK:
                return self._found if operation in _FINDING else ()
            if (pause := self._pause(answer, attempt)) is None:
                raise Failed(msgspec.structs.replace(answer, body=self._heads.target.masked(answer.body)))
            await asyncio.sleep(pause)
            # What the client chose to wait is no lateness of the generator.
            self._due = monotonic_ns()

    async def _request_each(self, operation: Operation, payloads: Sequence[Any], at_once: int) -> None:
        waiting, failures = iter(payloads), list[Failed]()

        async def send(client: WireClient) -> None:
            try:
                while not failures and (payload := next(waiting, None)) is not None:
                    await client._request(operation, payload)
            except Failed as failure:
                failures.append(failure)

        # Further connections of the same run: one of its requests is under way on each.
        others = [self._twin() for _ in range(min(at_once, len(payloads)) - 1)]
        try:
            async with asyncio.TaskGroup() as group:
                for client in (self, *others):
                    group.create_task(send(client))
        finally:
            for client in others:
                client.close()
        if failures:
            raise failures[0]
        self._due = monotonic_ns()

    def _twin(self) -> WireClient:
        twin = copy(self)
        twin._connection = None  # noqa: SLF001
        return twin

    def _pause(self, answer: Answer, attempt: int) -> float | None:
        policy, connection = self._wire.policy, self._connection
        if policy is None:
            return None
        head = connection.head if answer.status and isinstance(connection, HeadedConnection) else b""
        return policy.pause(answer.outcome, answer.status, attempt, answer.received, head)

    def _encode(self, operation: Operation, payload: Any, attempt: int) -> bytes:
        heads = self._heads
        if operation is _LOG_PARAMS:
            head, body = heads.log_batch, log_params_body(self._run_id, payload)
        elif operation is _LOG_METRICS:
            head, body = heads.log_batch, log_metrics_body(self._run_id, payload)
        elif operation is _GET_RUN:
            return self._run_id.encode().join(heads.get)
        elif operation in _OF_ARTIFACTS:
            return self._encode_artifact(operation, payload, attempt)
        elif operation is _CREATE_RUN:
            name, tags = payload
            head, body = heads.create, create_run_body(self._experiment_id, name, tags, time.time_ns() // 10**6)
        elif operation is Operation.finish_run:
            head, body = heads.update, update_run_body(self._run_id, time.time_ns() // 10**6)
        elif operation in _BATCHES:
            head, body = heads.log_batch, log_batch_body(self._run_id, payload)
        else:
            self._least = payload.least if isinstance(payload, Search) else 0
            return self._encode_any(request_of(operation, payload, self._where()))
        return head + b"%d\r\n\r\n" % len(body) + body.encode()

    def _encode_artifact(self, operation: Operation, artifact: Any, attempt: int) -> bytes:
        if self._artifacts is None:
            now = monotonic_ns()
            answer = Answer(Outcome.not_supported, 0, now, 0, 0, b"this server leaves artifacts to its clients")
            self._record(operation, now, answer, attempt)
            raise Failed(answer)
        folder = self._artifacts
        if operation is _LOG_MODEL_ARTIFACT:
            # The folder of a model lies beside that of the run: both are named after what they are of.
            folder = f"{folder.removesuffix(f'/{self._run_id}/artifacts')}/models/{artifact.model_id}/artifacts"
        elif operation is not _LOG_ARTIFACT:
            return self._encode_any(request_of(operation, artifact, self._where()))
        head = self._heads.target.head("PUT", f"{folder}/{quote(artifact.path)}")
        kind = artifact_kind(artifact.path)
        return head + f"Content-Type: {kind}\r\nContent-Length: {artifact.size}\r\n\r\n".encode()

    def _encode_any(self, request: Request) -> bytes:
        target = self._heads.target
        if request.path == WORKSPACES:
            # Which workspaces there are is asked from outside of them.
            target = replace(target, workspace=None)
        head = target.head(request.method, request.path)
        head += "".join(f"{line}\r\n" for line in request.headers).encode()
        if request.body is None:
            return head + b"\r\n"
        body = request.body.encode() if isinstance(request.body, str) else request.body
        return head + f"Content-Type: {request.kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def _where(self) -> Where:
        return Where(self._experiment_id, self._run_id, self._artifacts)

    def _read(self, operation: Operation, answer: Answer) -> Answer:
        # What a server says becomes part of later requests: nothing but a plain identifier may.
        try:
            if operation is _CREATE_RUN or operation is _GET_RUN:
                # Only a run that was found, and not created, has yet to say where its artifacts are.
                if operation is _CREATE_RUN or self._artifacts is None:
                    info = _decode_run(answer.body).run.info
                    if not _ID.fullmatch(info.run_id):
                        return msgspec.structs.replace(answer, outcome=Outcome.malformed)
                    self._adopt_run(info.run_id, info.artifact_uri)
            else:
                self._found = found_by(operation, answer.body)
                if len(self._found) < self._least:
                    said = f"{len(self._found)} were found, at least {self._least} have to be there"
                    return msgspec.structs.replace(answer, outcome=Outcome.missing, body=said.encode())
                if operation is Operation.create_experiment:
                    self._enter(self._found[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.structs.replace(answer, outcome=Outcome.malformed)
        return answer

    def _adopt_run(self, run_id: str, artifact_uri: str) -> None:
        self._run_id = run_id
        self._artifacts = artifact_path(artifact_uri)

    def _enter(self, experiment_id: str) -> None:
        self._experiment_id = experiment_id

    async def _connect(self, attempt: int) -> Answer:
        wire = self._wire
        self._forget()
        start = monotonic_ns()
        outcome, said = Outcome.ok, b""
        try:
            async with asyncio.timeout(wire.timeout):
                # Only who tries again reads in a head how long to wait.
                _, connection = await wire.dialer.dial(Connection if wire.policy is None else HeadedConnection)
        except asyncio.CancelledError:
            self._record(Operation.connect, start, Answer(Outcome.interrupted, 0, monotonic_ns(), 0, 0, b""), attempt)
            raise
        except (OSError, ssl.SSLError) as error:
            if isinstance(error, OSError) and error.errno in _OWN_LIMITS:
                raise Refusal(
                    f"This machine cannot open more connections ({error.strerror}): use more ranks on more nodes, "
                    "or raise its limits (ulimit -n, net.ipv4.ip_local_port_range)."
                ) from None
            outcome, said = connect_outcome(error), str(error).encode()
        answer = Answer(outcome, 0, monotonic_ns(), 0, 0, said)
        self._record(Operation.connect, start, answer, attempt)
        if outcome is _OK:
            self._connection = connection
            wire.connections.add(connection)
        return answer

    def _record(self, operation: Operation, start: int, answer: Answer, attempt: int) -> None:
        end, seq = answer.end, next(self._numbers)
        self._wire.append(
            self._due,
            start,
            end,
            answer.sent,
            answer.received,
            self._run,
            seq,
            answer.status,
            attempt,
            answer.outcome,
            operation,
        )
        self._requests = seq + 1
        self._due = end

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.abandon()
            self._wire.connections.discard(self._connection)
            self._connection = None

    def take_over(self, before: Client) -> None:
        assert isinstance(before, WireClient)
        self._connection = before.release()

    def release(self) -> Connection | None:
        """Let go of the connection without closing it, if there is one."""
        connection, self._connection = self._connection, None
        return connection

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
