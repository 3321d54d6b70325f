from __future__ import annotations

import http.client
import ssl
import threading
from itertools import pairwise
from pathlib import Path
from time import monotonic_ns

import pytest
from urllib3 import exceptions

from hpcstress.clients.attempts import Abandoned, Trail, outcome_of_error
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.record import Operation, Outcome
from tests.clients.stocking import rows_of, seen

CONNECTION = http.client.HTTPConnection("there")


def trail(journal: Journal) -> Trail:
    journal.begin(0, monotonic_ns())
    made = Trail(journal, threading.Lock(), 3)
    made.due = monotonic_ns()
    return made


@pytest.mark.parametrize(
    ("operation", "method", "url", "expected"),
    [
        ("log_params", "POST", "/api/2.0/mlflow/runs/log-batch", "log_params"),
        ("log_1000_metrics", "POST", "/mlflow/api/2.0/mlflow/runs/log-batch", "log_1000_metrics"),
        ("finish_run", "POST", "/api/2.0/mlflow/runs/log-batch", "log_batch"),
        ("log_param", "POST", "/api/2.0/mlflow/runs/log-parameter", "log_param"),
        ("create_prompt", "POST", "/api/2.0/mlflow/registered-models/create", "create_prompt"),
        ("create_model", "POST", "/api/2.0/mlflow/registered-models/create", "create_model"),
        ("search_prompts", "GET", "/api/2.0/mlflow/registered-models/search?filter=a", "search_prompts"),
        ("finish_run", "GET", "/api/2.0/mlflow/runs/get?run_uuid=a&run_id=a", "get_run"),
        ("log_artifact", "PUT", "/api/2.0/mlflow-artifacts/artifacts/7/a/artifacts/mlflow/runs/get", "log_artifact"),
        ("list_artifacts", "GET", "/api/2.0/mlflow-artifacts/artifacts?path=7%2Fa", "list_artifacts"),
        ("download_artifact", "GET", "/api/2.0/mlflow-artifacts/artifacts/7/a/artifacts/b", "download_artifact"),
        ("log_artifact", "GET", "/api/3.0/mlflow/server-info", "server_info"),
        ("log_spans", "POST", "/v1/traces", "log_spans"),
        ("get_trace", "GET", "/api/3.0/mlflow/traces/tr-5?trace_id=tr-5", "other"),
        ("get_trace", "GET", "http://proxied:5000/api/3.0/mlflow/traces/get?trace_id=tr-5", "get_trace"),
        ("finish_logged_model", "PATCH", "/api/2.0/mlflow/logged-models/m-5", "finish_logged_model"),
        ("train", "GET", "/api/2.0/mlflow/logged-models/m-5", "get_logged_model"),
        ("train", "POST", "/api/2.0/mlflow/runs/log-batch", "log_batch"),
        ("train", "POST", "/api/2.0/mlflow/runs/log-inputs", "log_inputs"),
        ("train", "POST", "/api/2.0/mlflow/runs/outputs", "log_outputs"),
        ("train", "PUT", "/api/2.0/mlflow-artifacts/artifacts/1/models/m-5/artifacts/MLmodel", "log_model_artifact"),
        ("train", "PUT", "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/estimator.html", "log_artifact"),
        ("log_artifact", "PUT", "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/models/x/y", "log_artifact"),
        ("download_artifact", "POST", "/api/2.0/mlflow/logged-models/search", "other"),
        ("create_run", "POST", "/something/else", "other"),
    ],
)
def test_a_request_is_named_after_its_call_if_it_can_be_and_else_after_its_path(
    tmp_path: Path, operation: str, method: str, url: str, expected: str
) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation[operation])
        assert made.named(method, url).name == expected


def chained(*errors: Exception) -> Exception:
    """Return the first error, each raised because of the one that follows."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (exceptions.NewConnectionError(CONNECTION, "refused"), Outcome.refused),  # type: ignore[arg-type]
        (exceptions.ProxyError("no way", OSError()), Outcome.refused),
        (exceptions.ConnectTimeoutError(), Outcome.timeout),
        (TimeoutError(), Outcome.timeout),
        (http.client.RemoteDisconnected(), Outcome.closed),
        (ConnectionResetError(), Outcome.closed),
        (BrokenPipeError(), Outcome.closed),
        (http.client.IncompleteRead(b""), Outcome.closed),
        (ssl.SSLEOFError(), Outcome.closed),
        (ssl.SSLCertVerificationError(1, "self-signed"), Outcome.tls),
        (exceptions.SSLError(), Outcome.tls),
        (http.client.BadStatusLine("SSH-2.0"), Outcome.malformed),
        (ValueError(), None),
        (FileNotFoundError(), None),
        (
            chained(RuntimeError("API request failed"), OSError(), exceptions.ProtocolError(), TimeoutError()),
            Outcome.timeout,
        ),
    ],
)
def test_how_the_network_failed_is_found_behind_whatever_was_made_of_it(error: Exception, outcome: Outcome) -> None:
    assert outcome_of_error(error) is outcome


def test_an_error_that_is_its_own_reason_is_no_endless_search() -> None:
    first, second = ValueError(), KeyError()
    first.__context__, second.__context__ = second, first
    assert outcome_of_error(first) is None


def test_attempts_of_several_threads_at_once_have_numbers_of_their_own(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.log_batch)
        first, second = made.open(Operation.log_batch, 1), made.open(Operation.set_tags, 1)
        first.status = second.status = 200
        made.close(second, Outcome.ok)
        made.close(first, Outcome.ok)
        made.end()
        rows = rows_of(journal)
        assert [row.op for row in seen(rows)] == ["set_tags", "log_batch", "log_batch"]
        assert rows["seq"].tolist() == [0, 1, 2]


def test_an_attempt_whose_answer_nobody_has_read_ends_with_its_call(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.download_artifact)
        attempt = made.open(Operation.download_artifact, 1)
        attempt.status = 200
        made.end()
        # Too late.
        made.close(attempt, Outcome.closed)
        assert seen(rows_of(journal)) == [("download_artifact", 1, "ok", 200), ("download_artifact", 0, "ok", 0)]


def test_nothing_is_written_of_a_run_that_was_abandoned(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.log_batch)
        attempt = made.open(Operation.log_batch, 1)
        made.abandon()
        made.abandon()
        rows = [("log_batch", 1, "interrupted", 0), ("log_batch", 0, "interrupted", 0)]
        assert seen(rows_of(journal)) == rows
        made.close(attempt, Outcome.ok)
        for act in (
            lambda: made.begin(Operation.log_batch),
            lambda: made.open(Operation.log_batch, 1),
            lambda: made.pause(3600),
            made.check,
            made.end,
        ):
            with pytest.raises(Abandoned):
                act()
        assert seen(rows_of(journal)) == rows


def test_a_run_that_is_abandoned_between_two_calls_has_nothing_to_say(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.log_batch)
        made.end()
        made.abandon()
        assert len(rows_of(journal)) == 1


def test_a_journal_that_is_full_ends_the_call_whatever_mlflow_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Refusal("The journal cannot grow.")

    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.log_batch)
        attempt = made.open(Operation.log_batch, 1)
        monkeypatch.setattr(journal, "append", full)
        with pytest.raises(Refusal):
            made.close(attempt, Outcome.closed)
        with pytest.raises(Refusal, match=r"^The journal cannot grow\.$"):
            made.end(RuntimeError("Something went wrong."))
        monkeypatch.undo()


def test_calls_are_no_requests_of_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows", 0, {}) as journal:
        made = trail(journal)
        made.begin(Operation.log_batch)
        made.close(made.open(Operation.log_batch, 1), Outcome.ok)
        made.end()
        assert (journal.length, journal.requests) == (2, 1)
