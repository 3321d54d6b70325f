"""A database without a server: open it before the load and read back from it afterwards, by MLflow's Python store."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from time import monotonic_ns
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hpcstress.clients.answer import Answer
from hpcstress.clients.api import Api
from hpcstress.clients.attempts import told_by_mlflow
from hpcstress.clients.requests import API, ARTIFACTS
from hpcstress.clients.stock import Settings, importing, refusing, setting
from hpcstress.errors import Refusal
from hpcstress.record import Outcome
from hpcstress.target import Target

_PIECE = 1 << 18


@contextmanager
def _client(uri: str) -> Iterator[Any]:
    with setting(Settings(uri, {}, 1.0, False, 1).variables), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield importing().MlflowClient(uri)


def find_experiment(uri: str, environment: Mapping[str, str], name: str) -> tuple[str, bool]:
    """Return the id of the experiment that MLFLOW_EXPERIMENT_ID or its name tells, and whether it had to be created."""
    experiment_id = environment.get("MLFLOW_EXPERIMENT_ID", "").strip()
    with refusing(uri), _client(uri) as client:
        if experiment_id:
            return str(client.get_experiment(experiment_id).experiment_id), False
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name)), True
        if found.lifecycle_stage != "active":
            raise Refusal(f"The experiment {name!r} is deleted in {uri}: choose another with --experiment.")
        return str(found.experiment_id), False


class StoreApi(Api):
    """Answer the questions of an audit as a server would."""

    def __init__(self, uri: str) -> None:
        self.target = Target(uri, "", 0, False, "")
        self._uri = uri

    def enter(self, workspace: str | None) -> None:
        """Stay in the only place that there is."""
        del workspace

    async def ask(
        self, method: str, path: str, body: Any = None, sink: Callable[[bytes], object] | None = None
    ) -> Answer:
        del method
        parts = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            with _client(self._uri) as client:
                if parts.path.startswith(ARTIFACTS):
                    return _artifact(client, unquote(parts.path.removeprefix(ARTIFACTS)).lstrip("/"), sink)
                match parts.path.removeprefix(API):
                    case "/runs/search":
                        return _told(_search(client, body))
                    case "/runs/get":
                        return _told({"run": _run(client.get_run(query["run_id"]))})
                    case "/registered-models/get":
                        return _told({"registered_model": {"name": client.get_registered_model(query["name"]).name}})
                    case "/experiments/get-by-name":
                        found = client.get_experiment_by_name(query["experiment_name"])
                        return _told({}) if found is not None else _answer(Outcome.client_error, 404)
        except Exception as error:  # MLflow's own are answers, all others are errors of the tool
            answer = told_by_mlflow(error)
            if answer is None:
                raise
            return answer
        return _answer(Outcome.not_supported, 501)

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


def _answer(outcome: Outcome, status: int, body: bytes = b"") -> Answer:
    return Answer(outcome, status, monotonic_ns(), 0, 0, body)


def _told(told: object) -> Answer:
    return _answer(Outcome.ok, 200, dumps(told).encode())


def _search(client: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    page = client.search_runs(
        asked["experiment_ids"],
        asked["filter"],
        max_results=asked["max_results"],
        page_token=asked.get("page_token"),
    )
    return {"runs": [_run(run) for run in page], **({"next_page_token": page.token} if page.token else {})}


def _run(run: Any) -> dict[str, Any]:
    return {
        "info": {
            "run_id": run.info.run_id,
            "status": run.info.status,
            # Wherever its artifacts are, here they are asked for by the run.
            "artifact_uri": f"mlflow-artifacts:/{run.info.run_id}",
        },
        "data": {
            name: [{"key": key, "value": value} for key, value in getattr(run.data, name).items()]
            for name in ("params", "metrics", "tags")
        },
    }


def _artifact(client: Any, path: str, sink: Callable[[bytes], object] | None) -> Answer:
    run_id, _, name = path.partition("/")
    with tempfile.TemporaryDirectory(prefix="hpcstress-") as folder:
        try:
            copy = Path(client.download_artifacts(run_id, name, folder))
        except OSError as error:
            return _answer(Outcome.client_error, 404, str(error).encode())
        with copy.open("rb") as file:
            while piece := file.read(_PIECE):
                if sink is not None:
                    sink(piece)
    return _answer(Outcome.ok, 200)
