"""The law of the clients: whatever a workload does, the wire client sends what MLflow's own client sends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from itertools import count, groupby
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import pytest

from hpcstress.clients import Place
from hpcstress.clients.dial import Dialer
from hpcstress.clients.requests import artifact_kind
from hpcstress.clients.wire import Wire
from hpcstress.content import Content
from hpcstress.journal import Journal
from hpcstress.plan import Plan, named
from hpcstress.record import Operation
from hpcstress.target import from_environment
from hpcstress.workloads import MODULES, load
from tests.clients.stocking import rows_of, seen, stocked
from tests.clients.wiring import RUN_ID
from tests.peers import Peer, Request, http_server, reply

SMALL = {
    "params": 120,
    "metrics": 3,
    "points": 2,
    "tags": 2,
    "artifacts": 2,
    "artifact_size": 300,
    "prefill_runs": 1,
    "prefill_experiments": 1,
}
ITERATIONS = 2
# Of five users the first is a training, and the others look at what there is.
NUMBERS = (0, 3)
URI = f"mlflow-artifacts:/7/{RUN_ID}/artifacts"
PLACE = Place("7", (RUN_ID, URI), "7", workspaces=True)

# What MLflow's client sends besides, by the call and what its request is for. Where a run's artifacts are the wire
# client knows from its creation; what is a folder, and which models there are, it does not ask; nor what the server can
# do (server-info), as MLflow's client does once in a while, before it names a workspace or downloads.
BESIDES = {
    ("list_artifacts", "get_run"),
    ("download_artifact", "get_run"),
    ("download_artifact", "list_artifacts"),
    ("download_artifact", "other"),  # POST logged-models/search: the path could be a model's
    ("get_trace", "other"),  # GET traces/ID: where are its spans?
}

MODEL = {"info": {"model_id": "m-1", "experiment_id": "7", "name": "model", "status": 1}, "data": {}}
ANSWERS: dict[str, Any] = {
    "POST experiments/create": {"experiment_id": "8"},
    "GET experiments/get": {"experiment": {"experiment_id": "7", "name": "a", "lifecycle_stage": "active"}},
    "POST experiments/search": {"experiments": [{"experiment_id": "7", "name": "a", "lifecycle_stage": "active"}]},
    "POST registered-models/create": {"registered_model": {"name": "m"}},
    "GET registered-models/search": {"registered_models": [{"name": "m"}]},
    "POST model-versions/create": {"model_version": {"name": "m", "version": "1", "status": "READY"}},
    "POST logged-models": {"model": MODEL},
    "PATCH logged-models/m-1": {"model": MODEL},
    "GET workspaces": {"workspaces": [{"name": "default"}]},
    "GET server-info": {"workspaces_enabled": True},
}


def run(run_id: str) -> dict[str, Any]:
    uri = f"mlflow-artifacts:/7/{run_id}/artifacts"
    info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "7", "status": "RUNNING", "artifact_uri": uri}
    return {"info": info, "data": {}}


def answers() -> Callable[[Request], bytes]:
    """Return a server that gives runs their numbers."""
    numbers = count(1)

    def answered(request: Request) -> bytes:
        if request.target.endswith("/runs/create"):
            return reply(json.dumps({"run": run(f"{next(numbers):032x}")}).encode())
        if "/runs/get?" in request.target:
            return reply(json.dumps({"run": run(request.target.rpartition("run_id=")[2])}).encode())
        if request.target.endswith("/runs/search"):
            return reply(json.dumps({"runs": [run(RUN_ID)]}).encode())
        return answer(request)

    return answered


def answer(request: Request) -> bytes:
    path, _, query = request.target.partition("?")
    told = ANSWERS.get(f"{request.method} {path.rpartition('/mlflow/')[2]}", {})
    if path.endswith("metrics/get-history") and "page_token" not in query:
        point = {"key": "a", "value": 1.0, "timestamp": 5, "step": 0}
        told = {"metrics": [point], "next_page_token": "to/ken="}
    if "/traces/" in path and "search" not in path:
        told = _trace(path)
    if path.endswith("/artifacts") and query and request.method == "GET":
        told = {"files": [{"path": "a.bin", "is_dir": False, "file_size": 3}]} if query.endswith("artifacts") else {}
    return reply(json.dumps(told).encode())


def _trace(path: str) -> dict[str, Any]:
    info = {
        "trace_id": "tr-1",
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "7"}},
        "request_time": "2023-11-14T22:13:20Z",
        "state": "OK",
        "tags": {"mlflow.trace.spansLocation": "TRACKING_STORE"},
    }
    return {"trace": {"trace_info": info, "spans": []}}


def in_order(requests: list[Request]) -> list[Request]:
    """Return requests with uploads that follow each other in the order of their names.

    MLflow's client takes the files of a folder as the file system has them.
    """
    groups = groupby(requests, lambda request: request.method == "PUT")
    return [
        request
        for uploads, group in groups
        for request in (sorted(group, key=lambda request: request.target) if uploads else group)
    ]


def comparable(request: Request) -> tuple[str, str, str | None, str | None, bytes]:
    """Return a request without the time, which cannot be equal."""
    body = re.sub(rb'("(?:start|end)_time": )\d+', rb"\1<now>", request.body)
    kind, workspace = (request.headers.get(name) for name in ("content-type", "x-mlflow-workspace"))
    return request.method, request.target, kind, workspace, body


def small(workload: str) -> Plan:
    """Return a workload's natural plan at a small size."""
    return named(workload, [*MODULES], []).with_options(SMALL)


def turns() -> Callable[[int], Any]:
    """Let a run have a few iterations."""

    async def turn(done: int) -> int | None:
        return monotonic_ns() if done < ITERATIONS else None

    return turn


async def by_wire(server: Peer, folder: Path, workload: str) -> list[Request]:
    dialer = Dialer(from_environment(server.uri, {"HOME": str(folder)}))
    await dialer.resolve()
    with Journal(folder / "wire", 0, {}) as journal:
        wire = Wire(dialer, journal, PLACE, 5.0)
        journal.begin(0, monotonic_ns())
        for number in NUMBERS:
            client = wire.client(number, monotonic_ns(), turns())
            await load(workload)(Content(small(workload), "session", 5).run(0, number), client)
            client.close()
    return server.requests


async def by_stock(server: Peer, folder: Path, workload: str) -> list[Request]:
    with stocked(server.uri, folder) as (stock, journal):
        stock.place = PLACE
        for number in NUMBERS:
            client = stock.client(number, monotonic_ns(), turns())
            await load(workload)(Content(small(workload), "session", 5).run(0, number), client)
            client.close()
        rows = rows_of(journal)
    # The call of an attempt is the next row without a number.
    calls = np.flatnonzero(rows["attempt"] == 0)
    named = seen(rows)
    sent = [place for place in np.flatnonzero(rows["attempt"]) if rows["op"][place] != Operation.connect]
    told = [(named[calls[np.searchsorted(calls, place)]].op, named[place].op) for place in sent]
    return [
        request
        for request, pair in zip(server.requests, told, strict=True)
        if pair not in BESIDES and pair[1] != "server_info"
    ]


# Its order is that of MLflow's threads: `workloads/test_training.py` compares what is sent.
@pytest.mark.parametrize("workload", sorted({*MODULES} - {"training"}))
def test_both_clients_send_the_same(tmp_path: Path, workload: str) -> None:
    async def record(play: Callable[[Peer, Path, str], Any]) -> list[Any]:
        async with http_server(answers()) as server:
            return [comparable(request) for request in in_order(await play(server, tmp_path, workload))]

    expected = asyncio.run(record(by_stock))
    assert asyncio.run(record(by_wire)) == expected
    assert expected


@pytest.mark.parametrize(
    "path",
    [
        "a.bin",
        "a/b.json",
        "a.txt",
        "x/MLmodel",
        "a.tar.gz",
        "a.png",
        "model.pkl",
        "a",
        "a.b.csv",
        "a.JSON",
        ".json",
        "d.e/a",
    ],
)
def test_an_artifact_has_the_type_under_which_mlflows_client_uploads_it(path: str) -> None:
    from mlflow.utils.mime_type_utils import _guess_mime_type

    assert artifact_kind(path) == _guess_mime_type(path)
