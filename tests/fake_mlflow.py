"""An MLflow tracking server in memory: honest unless it is told how to lie, up unless it is told how to break.

with serving(Faults(forget_param=7)) as server:      # a thread of this process
    ...                                              # talk to server.uri, then look at server.runs, server.lies

python -m tests.fake_mlflow --port 0 --forget-param 7    # a process of its own: it prints its address
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import operator
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import parse_qs, unquote, urlsplit

import httptools

USERNAME = "fake"
API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"
WORKSPACES = "/api/3.0/mlflow/workspaces"
_CONDITION = re.compile(
    r"""(?:(tag|metric|param|attribute)s?\.)?(`[^`]+`|"[^"]+"|[\w.]+)\s*(!=|>=|<=|=|<|>|I?LIKE)\s*('[^']*'|[-+.\de]+)""",
    re.IGNORECASE,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "LIKE": lambda text, pattern: fnmatchcase(text, pattern.replace("%", "*").replace("_", "?")),
}


_WRITES = ("create", "update", "log-batch", "log-parameter", "log-metric", "set-tag")


@dataclass
class Faults:
    """Every n-th of what a switch names comes to grief, 0 for none. Tests may turn them while the server runs."""

    # It acknowledges, and does something else.
    forget_param: int = 0
    change_param: int = 0
    forget_metric: int = 0
    change_metric: int = 0
    forget_tag: int = 0
    change_tag: int = 0
    forget_artifact: int = 0
    corrupt_artifact: int = 0
    ignore_finish: int = 0
    forget_run: int = 0  # when it is finished
    create_twice: int = 0
    forget_experiment: int = 0
    forget_model: int = 0
    # It says always what is not so: searching, it takes no notice of the filter, or finds nothing while it is told to;
    # it says where artifacts lie.
    list_all: int = 0
    find_nothing: int = 0
    artifact_uri: str = ""
    # It does not acknowledge: the first three do nothing, `hang_up` does what was asked and closes the connection.
    exhausted: int = 0
    throttled: int = 0
    unavailable: int = 0
    hang_up: int = 0
    delay: float = 0.0  # seconds before each answer
    # It is gone at this many requests, and back with all it has stored after so many seconds (0: never).
    die_after: int = 0
    back_after: float = 0.0
    # Only requests break that have this in their target.
    at: str = ""


@dataclass
class Experiment:
    id: str
    name: str
    workspace: str = "default"
    stage: str = "active"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Model:
    """A registered model, or a prompt."""

    name: str
    workspace: str
    tags: dict[str, str]
    versions: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    id: str
    experiment_id: str
    name: str
    start_time: int
    tags: dict[str, str]
    status: str = "RUNNING"
    end_time: int | None = None
    stage: str = "active"
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    logged: list[dict[str, Any]] = field(default_factory=list)  # inputs and outputs

    @property
    def folder(self) -> str:
        return f"{self.experiment_id}/{self.id}/artifacts"


class Seen(NamedTuple):
    """One request that has arrived; the status is 0 if it got no answer."""

    method: str
    path: str
    query: Mapping[str, str]
    status: int
    workspace: str | None = None

    @property
    def of_load(self) -> bool:
        """Tell whether a run of the load has sent it: looking at runs, it gives the id under its old name, too."""
        return self.path.removeprefix(f"{API}runs/") in _WRITES or self.method == "PUT" or "run_uuid" in self.query


class No(Exception):
    """Refuse a request as MLflow does."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


Answer = tuple[int, Any]
_Server = TypeVar("_Server", bound="FakeMlflow")


class FakeMlflow:
    """What the server holds. `answer` is all of MLflow that hpcstress speaks with; nothing in it waits or fails."""

    def __init__(self, faults: Faults | None = None, password: str | None = None, tally: Path | None = None) -> None:
        self.faults = faults or Faults()
        self.uri = ""
        self.experiments: dict[str, Experiment] = {"0": Experiment("0", "Default")}
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, bytes] = {}
        self.models: dict[tuple[str, str], Model] = {}  # by workspace and name
        self.logged_models: dict[str, dict[str, Any]] = {}
        self.traces: dict[str, str] = {}  # of which experiment
        # None where it has no workspaces; without a registry it knows neither models nor prompts.
        self.workspaces: set[str] | None = None
        self.has_registry = True
        self._here = "default"
        self.requests: list[Seen] = []
        self.lies: list[tuple[str, str]] = []  # which switch, which run
        self.refused_sign_ins = 0
        self._password = password
        self._numbers = itertools.count(1)
        self._struck: Counter[str] = Counter()
        # One byte for each acknowledged request of the load, written before the answer: it outlives any kill.
        self._tally = None if tally is None else os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs to know."""
        sign_in = {"MLFLOW_TRACKING_USERNAME": USERNAME, "MLFLOW_TRACKING_PASSWORD": self._password or ""}
        return {"MLFLOW_TRACKING_URI": self.uri, "HOME": "/nonexistent"} | (sign_in if self._password else {})

    def headers(self) -> str:
        """Return the lines of an answer's head beyond its length."""
        return ""

    def load(self) -> list[Seen]:
        """Return what runs have sent."""
        return [seen for seen in self.requests if seen.of_load]

    def lied(self, switch: str) -> set[str]:
        """Return the names of the runs that a switch has struck."""
        return {name for kind, name in self.lies if kind == switch}

    def contents(self) -> list[tuple[Any, ...]]:
        """Return what the runs are and hold, without what differs from job to job: ids, times, the session."""
        return sorted(
            (
                run.name,
                run.status,
                sorted((key, value) for key, value in run.tags.items() if not key.endswith(".session")),
                sorted(run.params.items()),
                sorted((key, metric["value"]) for key, metric in run.metrics.items()),
                sorted(
                    (path.removeprefix(run.folder), hashlib.sha256(data).hexdigest())
                    for path, data in self.artifacts.items()
                    if path.startswith(run.folder)
                ),
            )
            for run in self.runs.values()
            if run.stage == "active"
        )

    def answer(self, method: str, target: str, authorization: str, body: bytes, workspace: str | None = None) -> Answer:
        """Do what a request asks for; return status and JSON, or bytes."""
        parts = urlsplit(target)
        expected = f"{USERNAME}:{self._password}".encode()
        if self._password and authorization != f"Basic {base64.b64encode(expected).decode()}":
            self.refused_sign_ins += 1
            return 401, b"You are not authenticated. Please see the documentation."
        try:
            self._here = workspace or "default"
            if parts.path.startswith(WORKSPACES):
                return self._workspace(method, parts.path.removeprefix(WORKSPACES).strip("/"), body)
            if workspace is not None and self.workspaces is None:
                raise No(500, "FEATURE_DISABLED", "Workspace APIs are not available: workspaces are not enabled.")
            if workspace is not None and workspace not in (self.workspaces or ()):
                raise No(404, "RESOURCE_DOES_NOT_EXIST", f"Workspace '{workspace}' not found")
            if parts.path == ARTIFACTS.rstrip("/"):
                return 200, self._list_artifacts(parse_qs(parts.query)["path"][0])
            if parts.path.startswith(ARTIFACTS):
                return self._artifact(method, unquote(parts.path.removeprefix(ARTIFACTS)), body)
            if (method, parts.path) == ("GET", "/version"):
                return 200, b"3.17.2"
            if parts.path.startswith(f"{API}logged-models"):
                return self._logged_model(method, parts.path.removeprefix(f"{API}logged-models").strip("/"), body)
            act = self._routes.get((method, parts.path.removeprefix(API)))
            lacking = not self.has_registry and (
                "/registered-models/" in parts.path or "/model-versions/" in parts.path
            )
            if act is None or lacking or not parts.path.startswith(API):
                return 404, b"<!doctype html><title>404 Not Found</title>"
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            try:
                return 200, act(self, query if method == "GET" else json.loads(body))
            except (KeyError, TypeError, ValueError) as error:
                raise No(400, "INVALID_PARAMETER_VALUE", f"{error!r}") from None
        except No as no:
            return no.status, {"error_code": no.code, "message": str(no)}

    def seen(self, method: str, target: str, status: int, workspace: str | None = None) -> None:
        """Note a request and how it was answered."""
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.requests.append(Seen(method, parts.path, query, status, workspace))
        if self._tally is not None and status == 200 and self.requests[-1].of_load:
            os.write(self._tally, b".")

    def strikes(self, switch: str) -> bool:
        """Tell whether a switch strikes this time."""
        every: int = getattr(self.faults, switch)
        if not every:
            return False
        self._struck[switch] += 1
        return self._struck[switch] % every == 0

    def close(self) -> None:
        """Let go of the tally's file."""
        if self._tally is not None:
            os.close(self._tally)

    def _lies(self, switch: str, run: Run | Experiment) -> bool:
        strikes = self.strikes(switch)
        if strikes:
            self.lies.append((switch, run.name))
        return strikes

    # Experiments.

    def _get_experiment(self, asked: dict[str, Any]) -> Any:
        return {"experiment": _told(self._experiment(str(asked["experiment_id"])))}

    def _get_experiment_by_name(self, asked: dict[str, Any]) -> Any:
        for experiment in self.experiments.values():
            if experiment.name == asked["experiment_name"] and experiment.workspace == self._here:
                return {"experiment": _told(experiment)}
        raise No(404, "RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name '{asked['experiment_name']}'")

    def _create_experiment(self, asked: dict[str, Any]) -> Any:
        self._free(asked["name"])
        tags = {tag["key"]: tag["value"] for tag in asked.get("tags", ())}
        created = Experiment(str(next(self._numbers)), asked["name"], self._here, tags=tags)
        if not self._lies("forget_experiment", created):
            self.experiments[created.id] = created
        return {"experiment_id": created.id}

    def _search_experiments(self, asked: dict[str, Any]) -> Any:
        matches = self._matcher(asked)
        found = [
            _told(experiment)
            for experiment in reversed(self.experiments.values())
            if (experiment.stage == "active" or asked.get("view_type") == "ALL")
            and experiment.workspace == self._here
            and matches({"tag": experiment.tags, "attribute": {"name": experiment.name}})
        ]
        return self._page("experiments", found, asked)

    def _set_experiment_tag(self, asked: dict[str, Any]) -> Any:
        self._experiment(str(asked["experiment_id"])).tags[asked["key"]] = asked["value"]
        return {}

    def _update_experiment(self, asked: dict[str, Any]) -> Any:
        experiment = self._experiment(str(asked["experiment_id"]))
        self._free(asked["new_name"])
        experiment.name = asked["new_name"]
        return {}

    def _delete_experiment(self, asked: dict[str, Any]) -> Any:
        self._experiment(str(asked["experiment_id"])).stage = "deleted"
        return {}

    def _free(self, name: str) -> None:
        # The name of a deleted experiment stays taken.
        if any((one.name, one.workspace) == (name, self._here) for one in self.experiments.values()):
            raise No(400, "RESOURCE_ALREADY_EXISTS", f"Experiment '{name}' already exists.")

    def _experiment(self, number: str) -> Experiment:
        if number not in self.experiments or self.experiments[number].workspace != self._here:
            raise No(404, "RESOURCE_DOES_NOT_EXIST", f"No Experiment with id={number} exists")
        return self.experiments[number]

    # Runs.

    def _create_run(self, asked: dict[str, Any]) -> Any:
        experiment = self._experiment(str(asked["experiment_id"]))
        if experiment.stage != "active":
            raise No(400, "INVALID_PARAMETER_VALUE", f"The experiment {experiment.id} must be in the 'active' state.")

        def make() -> Run:
            number = f"{next(self._numbers):032x}"
            tags = {tag["key"]: tag["value"] for tag in asked.get("tags", ())}
            run = Run(number, experiment.id, asked.get("run_name", ""), int(asked["start_time"]), tags)
            self.runs[run.id] = run
            return run

        run = make()
        if self._lies("create_twice", run):
            make()
        return {"run": self._told_run(run)}

    def _get_run(self, asked: dict[str, Any]) -> Any:
        return {"run": self._told_run(self._run(asked["run_id"]))}

    def _update_run(self, asked: dict[str, Any]) -> Any:
        run = self._active_run(asked["run_id"])
        finished = asked.get("status") == "FINISHED"
        if not (finished and self._lies("ignore_finish", run)):
            run.status = asked.get("status", run.status)
            run.end_time = asked.get("end_time", run.end_time)
        if finished and self._lies("forget_run", run):
            del self.runs[run.id]
        return {"run_info": self._told_run(run)["info"]}

    def _log_batch(self, asked: dict[str, Any]) -> Any:
        run = self._active_run(asked["run_id"])
        params, metrics, tags = (asked.get(kind, []) for kind in ("params", "metrics", "tags"))
        if max(len(params), len(tags)) > 100 or len(params) + len(metrics) + len(tags) > 1000:
            raise No(400, "INVALID_PARAMETER_VALUE", "A batch logging request can contain at most 100 params.")
        if len({param["key"] for param in params}) < len(params):
            raise No(400, "INVALID_PARAMETER_VALUE", "Duplicate parameter keys have been submitted.")
        if any(run.params.get(param["key"], param["value"]) != param["value"] for param in params):
            raise No(400, "INVALID_PARAMETER_VALUE", "Changing param values is not allowed.")
        for param in params:
            if not self._lies("forget_param", run):
                run.params[param["key"]] = param["value"] + "?" * self._lies("change_param", run)
        for metric in metrics:
            if not self._lies("forget_metric", run):
                told = {name: metric[name] for name in ("key", "value", "timestamp", "step")}
                told["value"] += self._lies("change_metric", run)
                run.history.append(told)
                # The latest value is that of the highest step, whatever comes last.
                last = run.metrics.get(metric["key"], told)
                if (told["step"], told["timestamp"]) >= (last["step"], last["timestamp"]):
                    run.metrics[metric["key"]] = told
        for tag in tags:
            if not self._lies("forget_tag", run):
                run.tags[tag["key"]] = tag["value"] + "?" * self._lies("change_tag", run)
        return {}

    def _log_parameter(self, asked: dict[str, Any]) -> Any:
        return self._log_batch({"run_id": asked["run_id"], "params": [asked]})

    def _log_metric(self, asked: dict[str, Any]) -> Any:
        return self._log_batch({"run_id": asked["run_id"], "metrics": [asked]})

    def _set_tag(self, asked: dict[str, Any]) -> Any:
        return self._log_batch({"run_id": asked["run_id"], "tags": [asked]})

    def _get_history(self, asked: dict[str, Any]) -> Any:
        run = self._run(asked["run_id"])
        points = [point for point in run.history if point["key"] == asked["metric_key"]]
        return self._page("metrics", points, {"max_results": 25_000} | asked)

    def _search_runs(self, asked: dict[str, Any]) -> Any:
        matches = self._matcher(asked)
        found = [
            run
            for run in reversed(self.runs.values())
            if run.experiment_id in asked["experiment_ids"]
            and self._is_here(run)
            and run.stage == "active"
            and matches({"tag": run.tags, "metric": {key: run.metrics[key]["value"] for key in run.metrics}})
        ]
        return self._page("runs", found, asked, self._told_run)

    def _matcher(self, asked: dict[str, Any]) -> Callable[[dict[str, dict[str, Any]]], bool]:
        """Return what tells whether something with these tags, metrics and attributes is searched for."""
        wanted = [clause for clause in re.split(r" and ", asked.get("filter", ""), flags=re.IGNORECASE) if clause]
        clauses = [match.groups() for clause in wanted if (match := _CONDITION.fullmatch(clause.strip()))]
        if len(clauses) < len(wanted):
            raise No(400, "INVALID_PARAMETER_VALUE", f"Invalid clause(s) in filter string: {asked['filter']}")

        def holds(what: dict[str, dict[str, Any]], kind: str, key: str, comparison: str, value: str) -> bool:
            there = what[(kind or "attribute").lower()].get(key.strip('`"'))
            told = value.strip("'") if value.startswith("'") else float(value)
            return there is not None and _COMPARE[comparison.upper()](there, told)

        return lambda what: bool(self.faults.list_all) or all(holds(what, *clause) for clause in clauses)

    def _page(
        self, name: str, found: list[Any], asked: dict[str, Any], told: Callable[[Any], Any] = lambda one: one
    ) -> dict[str, Any]:
        found = [] if self.faults.find_nothing else found
        first, most = int(asked.get("page_token", "0")), int(asked.get("max_results", 1000))
        # As MLflow does, an empty list is left out.
        page: dict[str, Any] = {name: [told(one) for one in found[first : first + most]]} if found else {}
        return page | ({"next_page_token": str(first + most)} if first + most < len(found) else {})

    def _delete_run(self, asked: dict[str, Any]) -> Any:
        self._active_run(asked["run_id"]).stage = "deleted"
        return {}

    def _run(self, number: str) -> Run:
        if number not in self.runs or not self._is_here(self.runs[number]):
            raise No(404, "RESOURCE_DOES_NOT_EXIST", f"Run with id={number} not found")
        return self.runs[number]

    def _is_here(self, run: Run) -> bool:
        return self.experiments[run.experiment_id].workspace == self._here

    def _active_run(self, number: str) -> Run:
        run = self._run(number)
        if run.stage != "active":
            raise No(400, "INVALID_PARAMETER_VALUE", f"The run {number} must be in the 'active' state.")
        return run

    def _told_run(self, run: Run) -> dict[str, Any]:
        info = {
            "run_id": run.id,
            "run_uuid": run.id,
            "run_name": run.name,
            "experiment_id": run.experiment_id,
            "user_id": "unknown",
            "status": run.status,
            "start_time": run.start_time,
            "end_time": run.end_time,
            "artifact_uri": self.faults.artifact_uri or f"mlflow-artifacts:/{run.folder}",
            "lifecycle_stage": run.stage,
        }
        data = {
            "params": [{"key": key, "value": value} for key, value in run.params.items()],
            "metrics": [*run.metrics.values()],
            "tags": [{"key": key, "value": value} for key, value in {**run.tags, "mlflow.runName": run.name}.items()],
        }
        # As MLflow does, empty lists and what is not known are left out.
        return {
            "info": {key: value for key, value in info.items() if value is not None},
            "data": {key: listed for key, listed in data.items() if listed},
        }

    # Workspaces, models and prompts.

    def _workspace(self, method: str, name: str, body: bytes) -> Answer:
        if self.workspaces is None:
            return 503, b"Endpoint: ... disabled because the server is running without workspaces support."
        if method == "GET":
            return 200, {"workspaces": [{"name": name} for name in sorted(self.workspaces)]}
        if method == "POST":
            self.workspaces.add(json.loads(body)["name"])
            return 201, {"workspace": json.loads(body)}
        self.workspaces.remove(name)
        for experiment in self.experiments.values():
            if experiment.workspace == name:
                experiment.workspace = "default"
        return 204, b""

    def _logged_model(self, method: str, model_id: str, body: bytes) -> Answer:
        if not self.has_registry:
            return 404, b"<!doctype html><title>404 Not Found</title>"
        if model_id == "search":
            return self._search_logged_models(json.loads(body))
        if method == "POST":
            model_id = f"m-{next(self._numbers):032x}"
            self.logged_models[model_id] = {**json.loads(body), "status": "LOGGED_MODEL_PENDING"}
        if model_id not in self.logged_models:
            raise No(404, "RESOURCE_DOES_NOT_EXIST", f"Logged model with ID '{model_id}' not found.")
        if method == "DELETE":
            del self.logged_models[model_id]
            return 200, {}
        if method == "PATCH":
            self.logged_models[model_id]["status"] = json.loads(body)["status"]
        return 200, self._told_logged_model(model_id)

    def _search_logged_models(self, asked: dict[str, Any]) -> Answer:
        # One to a page.
        start = int(asked.get("page_token", 0))
        found = [name for name, told in self.logged_models.items() if told["experiment_id"] in asked["experiment_ids"]]
        more = {"next_page_token": str(start + 1)} if start + 1 < len(found) else {}
        models = [self._told_logged_model(name)["model"] for name in found[start : start + 1]]
        return 200, {**({"models": models} if models else {}), **more}

    def _told_logged_model(self, model_id: str) -> dict[str, Any]:
        told = self.logged_models[model_id]
        uri = f"mlflow-artifacts:/{told['experiment_id']}/models/{model_id}/artifacts"
        return {"model": {"info": {"model_id": model_id, "artifact_uri": uri, **told}}}

    def _delete_traces(self, asked: dict[str, Any]) -> Any:
        if not asked["request_ids"]:
            raise No(400, "INVALID_PARAMETER_VALUE", "Either `max_timestamp_millis` or `trace_ids` must be specified.")
        there = [name for name in asked["request_ids"] if self.traces.get(name) == asked["experiment_id"]]
        for name in there:
            del self.traces[name]
        return {"traces_deleted": len(there)}

    def _log_of_run(self, asked: dict[str, Any]) -> Any:
        self._active_run(asked["run_id"]).logged.append(asked)
        return {}

    def _create_model(self, asked: dict[str, Any]) -> Any:
        if (self._here, asked["name"]) in self.models:
            raise No(400, "RESOURCE_ALREADY_EXISTS", f"Registered Model (name={asked['name']}) already exists.")
        tags = {tag["key"]: tag["value"] for tag in asked.get("tags", ())}
        if not self.strikes("forget_model"):
            self.models[self._here, asked["name"]] = Model(asked["name"], self._here, tags)
        return {"registered_model": asked}

    def _create_model_version(self, asked: dict[str, Any]) -> Any:
        self._model(asked).versions.append(asked)
        return {"model_version": {"name": asked["name"], "version": str(len(self._model(asked).versions))}}

    def _get_model(self, asked: dict[str, Any]) -> Any:
        return {"registered_model": _told_model(self._model(asked))}

    def _delete_model(self, asked: dict[str, Any]) -> Any:
        self._model(asked)
        del self.models[self._here, asked["name"]]
        return {}

    def _search_models(self, asked: dict[str, Any]) -> Any:
        matches = self._matcher(asked)
        # As MLflow does, prompts are found only by those who ask for them.
        found = [
            _told_model(model)
            for model in self.models.values()
            if model.workspace == self._here
            and matches({"tag": model.tags, "attribute": {"name": model.name}})
            and ("mlflow.prompt.is_prompt" in asked.get("filter", "") or "mlflow.prompt.is_prompt" not in model.tags)
        ]
        return self._page("registered_models", found, {"max_results": 100} | asked)

    def _model(self, asked: dict[str, Any]) -> Model:
        if (self._here, asked["name"]) not in self.models:
            raise No(404, "RESOURCE_DOES_NOT_EXIST", f"Registered Model with name={asked['name']} not found")
        return self.models[self._here, asked["name"]]

    # Artifacts.

    def _list_artifacts(self, folder: str) -> Any:
        paths = [path.removeprefix(f"{folder}/") for path in self.artifacts if path.startswith(f"{folder}/")]
        files = [{"path": path, "is_dir": False} for path in paths if "/" not in path]
        return {"files": files} if files else {}

    def _artifact(self, method: str, path: str, body: bytes) -> Answer:
        below = [name for name in self.artifacts if name == path or name.startswith(f"{path}/")]
        if ".." in path.split("/"):
            raise No(400, "INVALID_PARAMETER_VALUE", "Invalid path")
        if method == "PUT":
            owner = next((run for run in self.runs.values() if path.startswith(run.folder)), None)
            if owner is None or not self._lies("forget_artifact", owner):
                corrupt = owner is not None and self._lies("corrupt_artifact", owner)
                self.artifacts[path] = body[:-1] + bytes([body[-1] ^ 1]) if corrupt else body
            return 200, {}
        if not below:
            raise No(404, "RESOURCE_DOES_NOT_EXIST", f"No such artifact: {path}")
        if method == "DELETE":
            for name in below:
                del self.artifacts[name]
            return 200, {}
        return 200, self.artifacts[path]

    _routes: Mapping[tuple[str, str], Callable[[FakeMlflow, dict[str, Any]], Any]] = {
        ("GET", "experiments/get"): _get_experiment,
        ("GET", "experiments/get-by-name"): _get_experiment_by_name,
        ("POST", "experiments/create"): _create_experiment,
        ("POST", "experiments/search"): _search_experiments,
        ("POST", "experiments/update"): _update_experiment,
        ("POST", "experiments/delete"): _delete_experiment,
        ("POST", "experiments/set-experiment-tag"): _set_experiment_tag,
        ("POST", "runs/create"): _create_run,
        ("GET", "runs/get"): _get_run,
        ("POST", "runs/update"): _update_run,
        ("POST", "runs/log-batch"): _log_batch,
        ("POST", "runs/log-parameter"): _log_parameter,
        ("POST", "runs/log-metric"): _log_metric,
        ("POST", "runs/set-tag"): _set_tag,
        ("GET", "metrics/get-history"): _get_history,
        ("POST", "runs/search"): _search_runs,
        ("POST", "runs/delete"): _delete_run,
        ("POST", "runs/log-inputs"): _log_of_run,
        ("POST", "runs/outputs"): _log_of_run,
        ("POST", "traces/delete-traces"): _delete_traces,
        ("POST", "registered-models/create"): _create_model,
        ("GET", "registered-models/get"): _get_model,
        ("GET", "registered-models/search"): _search_models,
        ("DELETE", "registered-models/delete"): _delete_model,
        ("POST", "model-versions/create"): _create_model_version,
    }


def _told(experiment: Experiment) -> dict[str, Any]:
    told = {"experiment_id": experiment.id, "name": experiment.name, "lifecycle_stage": experiment.stage}
    tags = [{"key": key, "value": value} for key, value in experiment.tags.items()]
    return told | ({"tags": tags} if tags else {})


def _told_model(model: Model) -> dict[str, Any]:
    return {"name": model.name, "tags": [{"key": key, "value": value} for key, value in model.tags.items()]}


class _Connection(asyncio.Protocol):
    """Read requests from one connection, one after the other."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._parser = httptools.HttpRequestParser(self)
        self._target = self._authorization = ""
        self._workspace: str | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._listener.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._listener.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_url(self, url: bytes) -> None:
        self._target += url.decode("ascii", "replace")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._authorization = value.decode("latin-1")
        elif name.lower() == b"x-mlflow-workspace":
            self._workspace = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("ascii")
        target, authorization, body = self._target, self._authorization, b"".join(self._body)
        workspace = self._workspace
        self._target, self._authorization, self._workspace, self._body = "", "", None, []
        self._listener.take(self, method, target, authorization, body, workspace)


class Listener:
    """Give a server a port: answer, late or never, as its faults say."""

    def __init__(self, server: FakeMlflow, port: int = 0, host: str = "127.0.0.1") -> None:
        self._server = server
        self._port = port
        self._host = host
        self._taken = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()

    async def open(self) -> None:
        """Listen; the second time at the same port."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _Connection(self), self._host, self._port, backlog=1024)
        self._port = self._listening.sockets[0].getsockname()[1]
        self._server.uri = f"http://{self._host}:{self._port}"

    def close(self) -> None:
        """Be gone at once, with every connection."""
        self._listening.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def take(
        self,
        connection: _Connection,
        method: str,
        target: str,
        authorization: str,
        body: bytes,
        workspace: str | None = None,
    ) -> None:
        server, faults = self._server, self._server.faults
        status: int
        told: Any
        if faults.at not in target:
            told = server.answer(method, target, authorization, body, workspace)
            self._answer(connection, method, target, workspace, *told)
            return
        self._taken += 1
        if self._taken == faults.die_after:
            server.seen(method, target, 0)
            self.close()
            if faults.back_after:
                loop = asyncio.get_running_loop()
                loop.call_later(faults.back_after, lambda: self._tasks.add(loop.create_task(self.open())))
            return
        if server.strikes("exhausted"):
            message = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
            status, told = 400, {"error_code": "BAD_REQUEST", "message": message}
        elif server.strikes("throttled"):
            status, told = 429, b"Too many requests"
        elif server.strikes("unavailable"):
            status, told = 503, b"<html>503 Service Unavailable</html>"
        else:
            status, told = server.answer(method, target, authorization, body, workspace)
            if server.strikes("hang_up"):
                server.seen(method, target, 0, workspace)
                connection.transport.close()
                return
        if faults.delay:
            loop = asyncio.get_running_loop()
            loop.call_later(faults.delay, self._answer, connection, method, target, workspace, status, told)
        else:
            self._answer(connection, method, target, workspace, status, told)

    def _answer(
        self, connection: _Connection, method: str, target: str, workspace: str | None, status: int, told: Any
    ) -> None:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        self._server.seen(method, target, status, workspace)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {len(body)}\r\n"
        head += f"{self._server.headers()}\r\n"
        connection.transport.write(head.encode() + body)


@contextmanager
def serving(
    faults: Faults | None = None, *, password: str | None = None, tally: Path | None = None
) -> Iterator[FakeMlflow]:
    """Run a server in a thread until the block ends."""
    with served(FakeMlflow(faults, password, tally)) as server:
        yield server


@contextmanager
def served(server: _Server) -> Iterator[_Server]:
    """Give a server a port and a thread until the block ends."""
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def run() -> None:
        ended = asyncio.Event()
        listener = Listener(server)
        await listener.open()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(ended.set))
        ready.set()
        await ended.wait()
        listener.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        ready.wait()
        yield server
    finally:
        stop[0]()
        thread.join()
        server.close()


def main() -> None:
    """Serve until this process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tally", type=Path)
    for switch in fields(Faults):
        kind = type(switch.default)
        parser.add_argument(f"--{switch.name.replace('_', '-')}", type=kind, default=switch.default)
    told = vars(parser.parse_args())
    faults = Faults(**{switch.name: told[switch.name] for switch in fields(Faults)})
    server = FakeMlflow(faults, os.environ.get("FAKE_MLFLOW_PASSWORD"), told["tally"])

    async def run() -> None:
        await Listener(server, told["port"], told["host"]).open()
        print(server.uri, flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
