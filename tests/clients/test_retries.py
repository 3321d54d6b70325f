from __future__ import annotations

import random
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_BACKOFF_JITTER,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
)
from mlflow.utils.request_utils import _TRANSIENT_FAILURE_RESPONSE_CODES, _get_request_session
from urllib3 import HTTPConnectionPool, HTTPResponse, Retry
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from hpcstress.clients.answer import outcome_of
from hpcstress.clients.retries import Policy, retry_after
from hpcstress.record import Outcome

# What can go wrong before there is an answer, as urllib3 tells it.
POOL = HTTPConnectionPool("localhost")
WITHOUT_ANSWER: list[tuple[Outcome, Exception]] = [
    (Outcome.timeout, ReadTimeoutError(POOL, "/", "no answer in time")),
    (Outcome.timeout, ConnectTimeoutError("no connection in time")),
    (Outcome.refused, NewConnectionError(HTTPConnection("localhost"), "connection refused")),
    (Outcome.closed, ProtocolError("the server closed the connection")),
    (Outcome.malformed, ProtocolError("that is no HTTP")),
    (Outcome.tls, SSLError("certificate verify failed")),
]
METHODS = st.sampled_from(["GET", "POST", "PUT"])
# More than there are attempts.
ENOUGH = range(1, 12)


def stock() -> Retry:
    """Return the retries with which MLflow's client sends every request."""
    session = _get_request_session(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
        MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
        _TRANSIENT_FAILURE_RESPONSE_CODES,
        raise_on_status=True,
        respect_retry_after_header=True,
    )
    retry: Retry = session.get_adapter("https://mlflow.example").max_retries
    return retry


def pauses_of_stock(method: str, status: int, error: Exception | None) -> list[float]:
    """Return how long urllib3 waits after each attempt that ends so, until it gives up."""
    retry, pauses = stock(), []
    for _ in ENOUGH:
        if error is None and not retry.is_retry(method, status):
            return pauses
        response = None if error is not None else HTTPResponse(status=status)
        try:
            retry = retry.increment(method, "/", response, error)
        except MaxRetryError:
            return pauses
        pauses.append(retry.get_backoff_time())
    raise AssertionError("urllib3 never gave up")


def pauses(outcome: Outcome, status: int) -> list[float]:
    """Return how long the wire client waits after each attempt that ends so, until it gives up."""
    told = takewhile(lambda pause: pause is not None, (Policy().pause(outcome, status, number) for number in ENOUGH))
    return [pause for pause in told if pause is not None]


@given(st.integers(200, 599), METHODS, st.floats(0, 1, exclude_max=True))
def test_after_an_answer_the_pauses_are_those_of_urllib3(status: int, method: str, chance: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: chance)
        assert pauses(outcome_of(status, b""), status) == pauses_of_stock(method, status, None)


@pytest.mark.parametrize(("outcome", "error"), WITHOUT_ANSWER)
@given(method=METHODS, chance=st.floats(0, 1, exclude_max=True))
def test_without_an_answer_the_pauses_are_those_of_urllib3(
    outcome: Outcome, error: Exception, method: str, chance: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: chance)
        told = pauses(outcome, 0)
        assert told == pauses_of_stock(method, 0, error)
        assert len(told) == 7
        assert told[0] == 0


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {outcome for outcome, _ in WITHOUT_ANSWER}))
def test_what_no_further_attempt_would_mend_is_not_tried_again(outcome: Outcome) -> None:
    assert pauses(outcome, 0) == []


def test_an_exhausted_pool_is_no_reason_for_the_stock_client() -> None:
    assert pauses(outcome_of(400, b"QueuePool limit of size 5 overflow 10 reached"), 400) == []


def test_all_pauses_together_are_four_minutes_and_no_two_clients_wait_the_same() -> None:
    told = [sum(pauses(Outcome.gateway, 503)) for _ in range(20)]
    assert all(240 < seconds < 250 for seconds in told)
    assert len(set(told)) == 20


# What a server says of when to come back.


@given(st.sampled_from([408, 413, 429, 500, 502, 503, 504, 400, 404]), st.integers(1, 20_000), METHODS)
def test_who_is_told_when_to_come_back_does_so(status: int, seconds: int, method: str) -> None:
    retry, response = stock(), HTTPResponse(status=status, headers={"Retry-After": str(seconds)})
    head = f"HTTP/1.1 {status} Busy\r\nContent-Length: 0\r\nRETRY-after: {seconds}".encode()
    told = Policy().pause(outcome_of(status, b""), status, 1, len(head), head)
    if retry.is_retry(method, status, has_retry_after=True):
        assert told == retry.get_retry_after(response) == seconds
    else:
        assert told is None


def test_it_may_be_told_as_a_date() -> None:
    for date in ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 2399 23:59:59 GMT"):
        told = retry_after(f"HTTP/1.1 503 Busy\r\nRetry-After: {date}".encode())
        assert told == stock().parse_retry_after(date)


@pytest.mark.parametrize("words", ["", "soon", "-5", "5.5", "\xb2"])
def test_what_cannot_be_understood_is_no_time(words: str) -> None:
    head = f"HTTP/1.1 503 Busy\r\nRetry-After: {words}".encode("latin-1")
    assert retry_after(head) is None
    assert Policy().pause(Outcome.gateway, 503, 1, len(head), head) == 0


def test_only_a_header_says_so() -> None:
    assert retry_after(b"HTTP/1.1 503 Busy\r\nX-Retry-After: 5") is None


@pytest.mark.parametrize("outcome", [Outcome.closed, Outcome.timeout])
def test_an_answer_that_breaks_off_in_the_middle_is_not_asked_for_again(outcome: Outcome) -> None:
    assert Policy().pause(outcome, 0, 1, received=0) == 0
    assert Policy().pause(outcome, 0, 1, received=1) is None
