"""See what MLflow's client hides below one of its calls: every HTTP attempt, or every call of a store, as a row.

Needs no mlflow. Hooks into urllib3, which is what `requests` sends with; whoever has no trail is not watched.
"""

from __future__ import annotations

import errno
import http.client
import io
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial, wraps
from socket import SHUT_RDWR
from time import monotonic_ns
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from hpcstress.clients.answer import Answer, outcome_of
from hpcstress.clients.requests import ARTIFACTS
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.record import Operation, Outcome

_OK = Outcome.ok
# What the generator's own machine has run out of is no failure of the server.
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
_KEPT_ERROR = 1 << 16

TRAIL: ContextVar[Trail | None] = ContextVar("trail", default=None)
_ASKED: ContextVar[tuple[Operation, int]] = ContextVar("asked", default=(Operation.other, 1))
_SENDING: ContextVar[Attempt | None] = ContextVar("sending", default=None)


class Abandoned(BaseException):
    """End what nobody waits for any more. Not an Exception: MLflow catches those, and goes on."""


class Unmet(Exception):
    """Tell that an answer was well-formed, and not what it has to be."""

    def __init__(self, outcome: Outcome, words: str) -> None:
        super().__init__(words)
        self.outcome = outcome


class Attempt:
    """Hold one attempt while it is under way."""

    __slots__ = ("connection", "due", "end", "number", "operation", "outcome", "received", "sent", "start", "status")

    def __init__(self, operation: Operation, number: int, due: int, start: int) -> None:
        self.operation = operation
        self.number = number
        self.due = due
        self.start = start
        self.end = self.sent = self.received = self.status = 0
        self.outcome = _OK
        self.connection: Any = None


class Trail:
    """Write the rows of one run: each of its calls, and before it the attempts that the call consisted of.

    Attempts may come from several threads at once. A good one is written when the next begins or the call ends: until
    then it may turn out that its answer was worth nothing.
    """

    def __init__(self, journal: Journal, lock: threading.Lock, run: int) -> None:
        self.due = 0
        self.seq = 0
        self._journal = journal
        self._lock = lock
        self._run = run
        self._gone = threading.Event()
        self._operation = Operation.other
        self._due = self._start = 0
        self._last: Answer | None = None
        self._open: list[Attempt] = []
        self._kept: Attempt | None = None
        self._refusal: Refusal | None = None

    # A call.

    def begin(self, operation: Operation) -> None:
        """Begin a call; it is due at `due`, which is a local monotonic nanosecond."""
        with self._lock:
            self._check()
            self._operation = operation
            self._last = None
            self._due, self._start = self.due, monotonic_ns()

    def end(self, error: Exception | None = None) -> Answer:
        """End the call and return what came of it; raise an error that is neither the server's nor the network's."""
        now = monotonic_ns()
        with self._lock:
            self._check()
            if self._refusal is not None:
                raise self._refusal
            answer = Answer(_OK, self._last.status if self._last else 0, now, 0, 0, b"")
            if error is not None:
                answer = replace(self._cause(error), end=now, sent=0, received=0)
            for attempt in self._open:
                # Nobody has read its answer to the end.
                attempt.end, attempt.outcome = now, answer.outcome
                self._write(attempt)
            self._open.clear()
            self._write_call(answer)
        return answer

    def abandon(self) -> None:
        """Let nobody wait: what is under way is interrupted and written down so, and its threads end soon."""
        now = monotonic_ns()
        with self._lock:
            if self._gone.is_set():
                return
            self._flush()
            for attempt in self._open:
                attempt.end, attempt.outcome, attempt.status = now, Outcome.interrupted, 0
                self._write(attempt)
                if (socket := getattr(attempt.connection, "sock", None)) is not None:
                    with suppress(OSError):
                        socket.shutdown(SHUT_RDWR)
            self._open.clear()
            if self._start:
                self._write_call(Answer(Outcome.interrupted, 0, now, 0, 0, b""))
            self._gone.set()

    def _cause(self, error: Exception) -> Answer:
        last, text = self._last, f"{type(error).__name__}: {error}".encode()
        if last is not None and last.outcome is not _OK:
            return last if last.body else replace(last, body=text)
        refused = told_by_mlflow(error)
        if refused is not None and refused.status < 500:
            # MLflow's client has refused it before anything was sent.
            return replace(refused, status=0)
        outcome = outcome_of_error(error)
        if last is None and outcome is None and refused is None:
            raise error
        if last is None and refused is not None:
            return replace(refused, status=0)
        if isinstance(error, Unmet):
            outcome, text = error.outcome, str(error).encode()
        answer = Answer(outcome or Outcome.malformed, 0 if last is None else last.status, 0, 0, 0, text)
        if self._kept is not None:
            self._kept.outcome = answer.outcome
        return answer

    def _write_call(self, answer: Answer) -> None:
        self._flush()
        call = Attempt(self._operation, 0, min(self._due, self._start), self._start)
        call.end, call.outcome, call.status = answer.end, answer.outcome, answer.status
        self._write(call)
        self._journal.calls += 1
        self.due, self._start = answer.end, 0

    # Its attempts.

    def open(self, operation: Operation, number: int) -> Attempt:
        """Begin an attempt; one of those by which the call may be named gets the call's name."""
        now = monotonic_ns()
        with self._lock:
            self._check()
            self._flush()
            # A pause before another attempt is the client's choice, and no lateness; nor is what a training computes.
            chosen = number > 1 or self._operation is Operation.train
            attempt = Attempt(operation, number, now if chosen else min(now, self.due), now)
            self._open.append(attempt)
        return attempt

    def close(self, attempt: Attempt, outcome: Outcome, body: bytes = b"") -> None:
        """End an attempt; the second time nothing happens."""
        now = monotonic_ns()
        with self._lock:
            if attempt not in self._open:
                return
            self._open.remove(attempt)
            self._flush()
            attempt.end, attempt.outcome = now, outcome
            self._last = Answer(outcome, attempt.status, now, attempt.sent, attempt.received, body)
            self.due = now
            if outcome is _OK:
                self._kept = attempt
            else:
                self._write(attempt)

    def drop(self, attempt: Attempt) -> None:
        """Forget an attempt of which nothing was sent."""
        with self._lock:
            if attempt in self._open:
                self._open.remove(attempt)

    def refuse(self, refusal: Refusal) -> None:
        """End the call with a refusal, whatever MLflow makes of it."""
        self._refusal = refusal

    def pause(self, seconds: float) -> None:
        """Sleep before another attempt, unless nobody waits for it."""
        if self._gone.wait(seconds):
            raise Abandoned

    def check(self) -> None:
        """End the thread if nobody waits for it."""
        with self._lock:
            self._check()

    def named(self, method: str, url: str) -> Operation:
        """Return what a request is for: the call itself if it can be, else what its method and path say."""
        parts = urlsplit(url)
        if ARTIFACTS in parts.path:
            if method == "PUT":
                # The folders of models lie beside those of runs.
                owner = parts.path.partition(ARTIFACTS)[2].partition("/artifacts/")[0].split("/")
                return Operation.log_model_artifact if "models" in owner[-2:-1] else Operation.log_artifact
            return Operation.list_artifacts if parts.query else Operation.download_artifact
        if parts.path.endswith("/v1/traces"):
            return Operation.log_spans
        rest = parts.path.rpartition("/mlflow/")[2]
        known = _NAMES.get(f"{method} {rest}") or _NAMES.get(f"{method} {rest.partition('/')[0]}/*")
        return self.alike(known) if known else Operation.other

    def alike(self, names: tuple[Operation, ...]) -> Operation:
        """Return the call's own operation if it is one of some that are sent in the same way, else the first."""
        return self._operation if self._operation in names else names[0]

    def _check(self) -> None:
        if self._gone.is_set():
            raise Abandoned

    def _flush(self) -> None:
        if self._kept is not None:
            self._write(self._kept)
            self._kept = None

    def _write(self, attempt: Attempt) -> None:
        try:
            self._journal.append(
                attempt.due,
                attempt.start,
                attempt.end,
                attempt.sent,
                attempt.received,
                self._run,
                self.seq,
                attempt.status,
                attempt.number,
                attempt.outcome,
                attempt.operation,
            )
        except Refusal as refusal:
            # Whatever MLflow makes of it.
            self._refusal = refusal
            raise
        self.seq += 1


BATCHES = (
    Operation.log_batch,
    *(
        operation
        for operation in Operation
        if operation.name.startswith("log_")
        and operation
        not in (
            Operation.log_batch,
            Operation.log_param,
            Operation.log_metric,
            Operation.log_artifact,
            Operation.log_model_artifact,
            Operation.log_inputs,
            Operation.log_outputs,
            Operation.log_spans,
        )
    ),
    Operation.set_tags,
)
# By method and what follows the last /mlflow/ of a path; a star stands for the rest of a path with an id in it.
_NAMES: Mapping[str, tuple[Operation, ...]] = {
    "POST runs/create": (Operation.create_run,),
    "POST runs/log-batch": BATCHES,
    "POST runs/log-parameter": (Operation.log_param,),
    "POST runs/log-metric": (Operation.log_metric,),
    "POST runs/set-tag": (Operation.set_tags,),
    "GET runs/get": (Operation.get_run,),
    "POST runs/update": (Operation.finish_run,),
    "POST runs/search": (Operation.search_runs,),
    "POST experiments/create": (Operation.create_experiment,),
    "GET experiments/get": (Operation.get_experiment,),
    "GET experiments/get-by-name": (Operation.get_experiment,),
    "POST experiments/search": (Operation.search_experiments,),
    "GET metrics/get-history": (Operation.get_metric_history,),
    "POST registered-models/create": (Operation.create_model, Operation.create_prompt),
    "POST model-versions/create": (Operation.create_model_version, Operation.create_prompt_version),
    "GET registered-models/search": (Operation.search_models, Operation.search_prompts),
    "GET workspaces": (Operation.list_workspaces,),
    "GET server-info": (Operation.server_info,),
    "GET server-features": (Operation.server_info,),
    "POST traces": (Operation.log_spans,),
    "POST traces/search": (Operation.search_traces,),
    "GET traces/get": (Operation.get_trace,),
    "POST logged-models": (Operation.create_logged_model,),
    "PATCH logged-models/*": (Operation.finish_logged_model,),
    "GET logged-models/*": (Operation.get_logged_model,),
    "POST runs/log-inputs": (Operation.log_inputs,),
    "POST runs/outputs": (Operation.log_outputs,),
}


# What an error means.


def _links(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def outcome_of_error(error: BaseException) -> Outcome | None:
    """Return how the network failed, None if an error is about something else."""
    from urllib3 import exceptions

    for link in _links(error):
        match link:
            case exceptions.NewConnectionError() | exceptions.ProxyError():
                return Outcome.refused
            case TimeoutError() | exceptions.TimeoutError():
                return Outcome.timeout
            case ConnectionError() | http.client.IncompleteRead() | ssl.SSLEOFError():
                return Outcome.closed
            case ssl.SSLError() | exceptions.SSLError():
                return Outcome.tls
            case http.client.HTTPException():
                return Outcome.malformed
    return None


def told_by_mlflow(error: BaseException) -> Answer | None:
    """Return what an error of MLflow's says, as if a server had said it; None for an error of somebody else."""
    ask = getattr(error, "get_http_status_code", None)
    if ask is None:
        return None
    status = int(ask())
    text = f"{getattr(error, 'error_code', '')}: {error}".encode()
    return Answer(outcome_of(status, text), status, 0, 0, 0, text)


# Where to look.


@contextmanager
def watching() -> Iterator[None]:
    """Write down every request that urllib3 sends for a run with a trail, until the block ends."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool
    from urllib3.util.retry import Retry

    with ExitStack() as hooks:
        for owner, name, hook in (
            (HTTPConnectionPool, "urlopen", _urlopen),
            (HTTPConnectionPool, "_make_request", _make_request),
            (HTTPConnection, "connect", _connect),
            (HTTPSConnection, "connect", _connect),
            (Retry, "sleep", _sleep),
            (ThreadPoolExecutor, "submit", _submit),
        ):
            _hook(hooks, owner, name, hook)
        yield


@contextmanager
def watching_stores(names: Mapping[tuple[type, str], tuple[Operation, ...]]) -> Iterator[None]:
    """Write down every call of some methods that a run with a trail makes: of a store there are no requests."""
    with ExitStack() as hooks:
        for (owner, name), operations in names.items():
            _hook(hooks, owner, name, partial(_method, operations))
        yield


def _hook(hooks: ExitStack, owner: type, name: str, hook: Callable[[Any], Any]) -> None:
    original = owner.__dict__[name]
    hooks.callback(setattr, owner, name, original)
    setattr(owner, name, wraps(original)(hook(original)))


def _urlopen(original: Any) -> Any:
    # urllib3 calls this anew for each attempt of a request.
    def urlopen(
        pool: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        trail = TRAIL.get()
        if trail is not None:
            trail.check()
            _ASKED.set((trail.named(method, url), 1 + len(getattr(retries, "history", ()))))
        return original(pool, method, url, body, headers, retries, *rest, **more)

    return urlopen


def _make_request(original: Any) -> Any:
    def make_request(pool: Any, connection: Any, method: str, url: str, *rest: Any, **more: Any) -> Any:
        trail = TRAIL.get()
        if trail is None:
            return original(pool, connection, method, url, *rest, **more)
        attempt = trail.open(*_ASKED.get())
        attempt.connection = connection
        connection.send = _counting(connection.send, attempt)
        token = _SENDING.set(attempt)
        try:
            response = original(pool, connection, method, url, *rest, **more)
        except Exception as error:
            trail.close(attempt, outcome_of_error(error) or Outcome.closed, str(error).encode())
            raise
        finally:
            _SENDING.reset(token)
            del connection.send
        attempt.status = response.status
        attempt.received = _length_of_head(response)
        if response.status >= 400:
            return _refused(trail, attempt, response, method, url)
        _close_when_read(trail, attempt, response)
        return response

    return make_request


def _counting(send: Any, attempt: Attempt) -> Any:
    def counting(data: Any) -> None:
        send(data)
        attempt.sent += len(data)

    return counting


def _refused(trail: Trail, attempt: Attempt, response: Any, method: str, url: str) -> Any:
    """Read what the server said, and return the answer as it was before it was read."""
    from urllib3 import HTTPResponse
    from urllib3.exceptions import HTTPError

    try:
        body = response.read(decode_content=False)
    except (HTTPError, OSError) as error:
        trail.close(attempt, outcome_of_error(error) or Outcome.closed, str(error).encode())
        return response
    attempt.received += len(body)
    trail.close(attempt, outcome_of(response.status, body[:_KEPT_ERROR]), body[:_KEPT_ERROR])
    return HTTPResponse(
        io.BytesIO(body),
        headers=response.headers,
        status=response.status,
        version=response.version,
        version_string=response.version_string,
        reason=response.reason,
        preload_content=False,
        original_response=response._original_response,  # noqa: SLF001 (it holds the cookies)
        retries=response.retries,
        request_method=method,
        request_url=url,
    )


def _close_when_read(trail: Trail, attempt: Attempt, response: Any) -> None:
    release = response.release_conn
    head = attempt.received

    def released() -> None:
        # Whoever has read an answer to its end gives the connection back.
        attempt.received = head + response.tell()
        trail.close(attempt, outcome_of(attempt.status, b""))
        release()

    response.release_conn = released


def _length_of_head(response: Any) -> int:
    status_line = len(f"HTTP/1.1 {response.status} {response.reason}\r\n")
    return status_line + sum(len(name) + len(value) + 4 for name, value in response.headers.items()) + 2


def _connect(original: Any) -> Any:
    def connect(connection: Any) -> None:
        trail = TRAIL.get()
        if trail is None:
            original(connection)
            return
        sending = _SENDING.get()
        attempt = trail.open(Operation.connect, _ASKED.get()[1])
        attempt.connection = connection
        try:
            original(connection)
        except Exception as error:
            if sending is not None:
                trail.drop(sending)
            for link in _links(error):
                if isinstance(link, OSError) and link.errno in _OWN_LIMITS:
                    trail.refuse(
                        Refusal(
                            f"This machine cannot open more connections ({link.strerror}): use more ranks on more "
                            "nodes, or raise its limits (ulimit -n, net.ipv4.ip_local_port_range)."
                        )
                    )
            trail.close(attempt, outcome_of_error(error) or Outcome.refused, str(error).encode())
            raise
        trail.close(attempt, _OK)
        if sending is not None:
            sending.due = sending.start = attempt.end

    return connect


def _sleep(original: Any) -> Any:
    def sleep(retry: Any, response: Any = None) -> None:
        trail = TRAIL.get()
        if trail is None:
            original(retry, response)
            return
        asked = retry.get_retry_after(response) if retry.respect_retry_after_header and response else None
        trail.pause(asked or retry.get_backoff_time())

    return sleep


def _submit(original: Any) -> Any:
    # What MLflow gives to threads of its own belongs to the run that asked for it.
    def submit(pool: Executor, function: Any, /, *rest: Any, **more: Any) -> Any:
        if TRAIL.get() is None:
            return original(pool, function, *rest, **more)
        return original(pool, copy_context().run, function, *rest, **more)

    return submit


def _method(operations: tuple[Operation, ...], original: Any) -> Any:
    def method(store: Any, *rest: Any, **more: Any) -> Any:
        trail = TRAIL.get()
        # What a store calls of itself is part of the first call.
        if trail is None or _SENDING.get() is not None:
            return original(store, *rest, **more)
        attempt = trail.open(trail.alike(operations), 1)
        token = _SENDING.set(attempt)
        try:
            result = original(store, *rest, **more)
        except Exception as error:
            told = told_by_mlflow(error)
            outcome = told.outcome if told is not None else outcome_of_error(error) or Outcome.server_error
            trail.close(attempt, outcome, str(error).encode())
            raise
        finally:
            _SENDING.reset(token)
        trail.close(attempt, _OK)
        return result

    return method
