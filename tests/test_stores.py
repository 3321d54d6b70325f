"""Addresses of databases, which only MLflow's own client can open; what a plan of that client needs."""

from __future__ import annotations

import pytest

from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.quantity import is_store, read_uri
from hpcstress.record import RECORD, Operation
from hpcstress.schedule import Step
from hpcstress.summary import StepSummary
from hpcstress.target import from_environment, store_of
from tests.analysis.results import rows

STORES = [
    "sqlite:////scratch/mlflow.db",
    "sqlite:///mlflow.db",
    "postgresql://localhost:5432/mlflow",
    "postgresql://me@localhost/mlflow",
    "postgresql+psycopg2://me@db.example.org:15432/mlflow",
    "postgresql:///mlflow",
]


@pytest.mark.parametrize("uri", STORES)
def test_a_store_is_read_as_it_is(uri: str) -> None:
    assert read_uri(uri) == uri
    assert is_store(uri)
    assert Plan(client="stock", uri=f" {uri} ").uri == uri


@pytest.mark.parametrize("uri", ["http://there", "https://there:5000/mlflow", "", "mysql://there/mlflow", "sqlite.db"])
def test_nothing_else_is_a_store(uri: str) -> None:
    assert not is_store(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:secret@localhost/mlflow",
        "postgresql://me:sec/ret@localhost/mlflow",
        "postgresql://me:sec@ret@localhost/mlflow",
        "postgresql+psycopg2://:secret@localhost/mlflow",
        "postgresql://localhost/mlflow?password=secret",
        "postgresql://localhost/mlflow#secret",
        "postgresql://localhost",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////a/b.db?password=secret",
        "sqlite:///a\nb.db",
    ],
)
def test_a_store_with_a_password_or_without_a_place_is_refused_and_no_password_repeated(uri: str) -> None:
    with pytest.raises(UsageRefusal, match=r"is no store that hpcstress can open: write sqlite:////path") as refusal:
        read_uri(uri)
    assert "secret" not in str(refusal.value).replace("PGPASSWORD", "")
    assert "sec/ret" not in str(refusal.value)


def test_a_store_is_for_mlflows_client_only() -> None:
    with pytest.raises(
        UsageRefusal, match=r"^--client: sqlite:///x\.db is a store without a server, which only --client"
    ):
        Plan(uri="sqlite:///x.db")


def test_the_store_is_the_address_that_counts_first() -> None:
    environment = {"MLFLOW_TRACKING_URI": "sqlite:///there.db"}
    assert store_of("", environment) == "sqlite:///there.db"
    assert store_of("sqlite:///here.db", environment) == "sqlite:///here.db"
    assert store_of("http://there", environment) == ""
    assert store_of("", {}) == ""


def test_a_store_in_the_environment_is_read_as_strictly() -> None:
    with pytest.raises(UsageRefusal, match=r"^MLFLOW_TRACKING_URI: The address '\*\*\*@there/mlflow' is no store"):
        store_of("", {"MLFLOW_TRACKING_URI": "postgresql+psycopg2://me:secret@there/mlflow"})


def test_who_needs_a_server_says_so() -> None:
    with pytest.raises(
        Refusal, match=r"^MLFLOW_TRACKING_URI: sqlite:///x\.db is a store, and this needs the address of"
    ):
        from_environment("", {"MLFLOW_TRACKING_URI": "sqlite:///x.db"})


# The plan of MLflow's client.


@pytest.mark.parametrize(
    ("client", "retries", "patient"),
    [
        ("wire", "usual", False),
        ("wire", "none", False),
        ("wire", "stock", True),
        ("stock", "usual", True),
        ("stock", "none", False),
        ("stock", "stock", True),
    ],
)
def test_who_tries_again(client: str, retries: str, patient: bool) -> None:
    assert Plan(client=client, retries=retries).patient is patient


def test_the_journals_have_room_for_the_calls_too() -> None:
    wire, stock = estimate(Plan()), estimate(Plan(client="stock"))
    assert stock.requests == wire.requests
    assert stock.journal_bytes == wire.journal_bytes + RECORD.itemsize * wire.requests


def test_calls_are_no_attempts_of_a_step() -> None:
    summary = StepSummary(Step(0, 0, 1), 0.0)
    attempt = {"op": Operation.finish_run, "seq": 0, "start": 5, "end": 10}
    summary.add(rows([attempt, {**attempt, "attempt": 0, "start": 1, "end": 20}]))
    summary.add(rows([{**attempt, "attempt": 0}]))
    [row] = summary.row(1)
    assert (row["attempts"], row["runs_begun"]) == (1, 1)
    assert (row["first_start"], row["last_done"]) == (5, 10)


def test_mlflows_client_needs_a_file_beside_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcstress import prepare

    asked: list[int] = []
    monkeypatch.setattr(prepare, "check_open_files", lambda runs, _: asked.append(runs))
    for client in ("wire", "stock"):
        # The folder is what comes next, and is missing here.
        with pytest.raises(AttributeError):
            prepare.prepare(Plan(runs=(40,), client=client), _World(), 1, None, {}, None, None, None)  # type: ignore[arg-type]
    assert asked == [40, 80]


class _World:
    size = 1
