"""What operations are in MLflow's REST: method, path and body as the stock client sends them; what their answers say.

The four requests that a run mostly consists of are written faster in `wire`; everything else is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from json import dumps
from json.encoder import encode_basestring_ascii as quoted
from mimetypes import guess_type
from pathlib import PurePosixPath
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

import msgspec

from hpcstress.clients.otlp import spans_body
from hpcstress.content import Batch, Metric
from hpcstress.record import Operation

API = "/api/2.0/mlflow"
API_3 = "/api/3.0/mlflow"
WORKSPACES = f"{API_3}/workspaces"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PROMPT = "tags.`mlflow.prompt.is_prompt` = 'true'"
_NO_PROMPT = "tag.`mlflow.prompt.is_prompt` != 'true'"
# Most of what the stock client asks for in one page.
_POINTS, _PROMPTS = "25000", "1000"


# What MLflow takes for text.
_TEXTS = frozenset(
    "txt log err cfg conf cnf cf ini properties prop hocon toml yaml yml xml json js py py3 csv tsv md rst ipynb "  # noqa: SIM905
    "MLmodel MLproject".split()
)


class Where(NamedTuple):
    """Hold what a request is about: the experiment, the run, and where its artifacts are taken and given."""

    experiment_id: str
    run_id: str = ""
    artifacts: str | None = None


class Request(NamedTuple):
    """Hold one request: bodies are JSON text, or bytes of another kind that is named."""

    method: str
    path: str
    body: str | bytes | None = None
    kind: str = "application/json"
    headers: tuple[str, ...] = ()


def create_run_body(experiment_id: str, name: str, tags: Sequence[tuple[str, str]], start_time_ms: int) -> str:
    """Return the JSON of a runs/create request."""
    return dumps(
        {
            "experiment_id": experiment_id,
            "user_id": "unknown",
            "run_name": name,
            "start_time": start_time_ms,
            **_tags(tags),
        }
    )


def log_params_body(run_id: str, params: Sequence[tuple[str, str]]) -> str:
    """Return the JSON of a runs/log-batch request with parameters."""
    return f'{{"run_id": "{run_id}", "params": [{_listed_pairs(params)}]}}'


def log_metrics_body(run_id: str, metrics: Sequence[Metric]) -> str:
    """Return the JSON of a runs/log-batch request with metrics."""
    return f'{{"run_id": "{run_id}", "metrics": [{_listed_metrics(metrics)}]}}'


def log_batch_body(run_id: str, batch: Batch) -> str:
    """Return the JSON of a runs/log-batch request with whatever there is."""
    parts = [f'"run_id": "{run_id}"']
    parts += [f'"metrics": [{_listed_metrics(batch.metrics, batch.about)}]'] * bool(batch.metrics)
    parts += [f'"params": [{_listed_pairs(batch.params)}]'] * bool(batch.params)
    parts += [f'"tags": [{_listed_pairs(batch.tags)}]'] * bool(batch.tags)
    return "{" + ", ".join(parts) + "}"


def update_run_body(run_id: str, end_time_ms: int) -> str:
    """Return the JSON of the runs/update request that finishes a run."""
    return f'{{"run_uuid": "{run_id}", "status": "FINISHED", "end_time": {end_time_ms}, "run_id": "{run_id}"}}'


def _listed_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join([f'{{"key": {quoted(key)}, "value": {quoted(value)}}}' for key, value in pairs])


def _listed_metrics(metrics: Sequence[Metric], about: Sequence[tuple[str, str]] = ()) -> str:
    more = "".join(f', "{name}": {quoted(value)}' for name, value in about)
    return ", ".join(
        [
            f'{{"key": {quoted(key)}, "value": {value!r}, "timestamp": {timestamp}, "step": {step}{more}}}'
            for key, value, timestamp, step in metrics
        ]
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in pairs]


@lru_cache(1024)
def artifact_kind(path: str) -> str:
    """Return the type under which MLflow's client uploads a file, by the end of its name."""
    file = PurePosixPath(path)
    if (file.suffix[1:] or file.name) in _TEXTS:
        return "text/plain"
    return guess_type(file.name)[0] or "application/octet-stream"


def artifact_path(artifact_uri: str) -> str | None:
    """Return where a server takes a run's artifacts, None where clients have to reach the store themselves."""
    scheme, _, rest = artifact_uri.partition(":")
    if scheme != "mlflow-artifacts":
        return None
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    return ARTIFACTS + quote(rest.rstrip("/"))


def request_of(operation: Operation, payload: Any, where: Where) -> Request:
    """Return the request of an operation; what each one's payload is stands in `Client`."""
    run_id, experiment_id = where.run_id, where.experiment_id
    run = {"run_uuid": run_id}
    match operation:
        case Operation.log_param:
            return _post("runs/log-parameter", {**run, **_pair(payload), "run_id": run_id})
        case Operation.log_metric:
            return _post("runs/log-metric", {**run, **payload._asdict(), "run_id": run_id})
        case Operation.set_tags:
            return _post("runs/set-tag", {**run, **_pair(payload), "run_id": run_id})
        case Operation.create_experiment:
            name, tags = payload
            return _post("experiments/create", {"name": name, **_tags(tags)})
        case Operation.get_experiment:
            return _get("experiments/get", experiment_id=experiment_id)
        case Operation.search_experiments:
            view = {"view_type": "ACTIVE_ONLY"}
            return _post("experiments/search", {"max_results": payload.max_results, **_search(payload), **view})
        case Operation.search_runs:
            told = {"experiment_ids": [experiment_id], "run_view_type": "ACTIVE_ONLY", "filter": payload.condition}
            order = {"order_by": list(payload.order_by)} if payload.order_by else {}
            return _post("runs/search", {**told, "max_results": payload.max_results, **order})
        case Operation.get_metric_history:
            key, token = payload
            page = {"page_token": token} if token else {}
            told = {"run_uuid": run_id, "metric_key": key, "run_id": run_id, **page, "max_results": _POINTS}
            return _get("metrics/get-history", **told)
        case Operation.list_artifacts:
            folder = unquote(where.artifacts or "").removeprefix(ARTIFACTS).lstrip("/")
            return Request("GET", f"{ARTIFACTS}?{urlencode({'path': folder})}")
        case Operation.download_artifact:
            return Request("GET", f"{where.artifacts}/{quote(payload)}")
        case _:
            return _optional(operation, payload, where)


def _optional(operation: Operation, payload: Any, where: Where) -> Request:
    match operation:
        case Operation.list_workspaces:
            return Request("GET", WORKSPACES)
        case Operation.create_model | Operation.create_prompt:
            name, tags = payload
            return _post("registered-models/create", {"name": name, **_tags(tags)})
        case Operation.create_model_version | Operation.create_prompt_version:
            name, source, tags, *model = payload
            run = {"run_id": where.run_id} if where.run_id and operation is Operation.create_model_version else {}
            of_model = {"model_id": model[0]} if model else {}
            return _post("model-versions/create", {"name": name, "source": source, **run, **_tags(tags), **of_model})
        case Operation.create_logged_model:
            name, params, tags = payload
            told = {"experiment_id": where.experiment_id, "name": name}
            told |= {"source_run_id": where.run_id} if where.run_id else {}
            told |= {"params": _pairs(params)} if params else {}
            return _post("logged-models", {**told, **_tags(tags)})
        case Operation.get_logged_model:
            return _get(f"logged-models/{quote(payload, safe='')}")
        case Operation.log_inputs:
            tags = [{"key": "mlflow.data.context", "value": payload.context}]
            of = {"name": "dataset", "digest": payload.digest, "source_type": "code", "source": payload.source}
            dataset = {"tags": tags, "dataset": {**of, "schema": payload.schema, "profile": payload.profile}}
            return _post("runs/log-inputs", {"run_id": where.run_id, "datasets": [dataset]})
        case Operation.log_outputs:
            return _post("runs/outputs", {"run_id": where.run_id, "models": [{"model_id": payload, "step": 0}]})
        case Operation.finish_logged_model:
            body = {"model_id": payload, "status": "LOGGED_MODEL_READY"}
            return Request("PATCH", f"{API}/logged-models/{quote(payload, safe='')}", dumps(body))
        case Operation.log_spans:
            experiment = (f"x-mlflow-experiment-id: {where.experiment_id}",)
            return Request("POST", "/v1/traces", spans_body(payload), "application/x-protobuf", experiment)
        case Operation.search_traces:
            location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": where.experiment_id}}
            condition = {"filter": payload.condition} if payload.condition else {}
            order = {"order_by": list(payload.order_by)} if payload.order_by else {}
            told = {"locations": [location], **condition, "max_results": payload.max_results, **order}
            return Request("POST", f"{API_3}/traces/search", dumps(told))
        case Operation.get_trace:
            # MLflow's client writes it as Python does.
            return Request("GET", f"{API_3}/traces/get?{urlencode({'trace_id': payload, 'allow_partial': False})}")
        case Operation.search_models:
            wanted = " AND ".join(filter(None, [payload.condition, _NO_PROMPT]))
            return _get("registered-models/search", filter=wanted, max_results=str(payload.max_results))
        case Operation.search_prompts:
            return _get("registered-models/search", filter=PROMPT, max_results=_PROMPTS)
        case _:
            raise NotImplementedError(f"{operation.name} has no request")


def imagined(operation: Operation, payload: Any) -> Sequence[str]:
    """Return what a client takes for found that asks nobody: names where without them nothing could follow."""
    match operation:
        case Operation.create_experiment | Operation.create_logged_model:
            return ("0",)
        case Operation.search_runs | Operation.search_experiments:
            return ["0"] * int(payload.max_results)
        case Operation.list_artifacts:
            return ("0",)
        case _:
            return ()


def kept_at(operation: Operation, payload: Any) -> str | None:
    """Return the path where that can be looked at which a write has left beside runs; None for all other operations."""
    match operation:
        case Operation.create_model | Operation.create_prompt:
            return f"{API}/registered-models/get?{urlencode({'name': payload[0]})}"
        case Operation.create_experiment:
            return f"{API}/experiments/get-by-name?{urlencode({'experiment_name': payload[0]})}"
        case Operation.log_spans:
            return f"{API_3}/traces/get?{urlencode({'trace_id': payload.trace_id, 'allow_partial': 'false'})}"
        case _:
            return None


def _post(path: str, body: Mapping[str, object]) -> Request:
    return Request("POST", f"{API}/{path}", dumps(body))


def _get(path: str, **query: str) -> Request:
    return Request("GET", f"{API}/{path}?{urlencode(query)}" if query else f"{API}/{path}")


def _tags(pairs: Sequence[tuple[str, str]]) -> dict[str, object]:
    return {"tags": _pairs(pairs)} if pairs else {}


def _pair(pair: tuple[str, str]) -> dict[str, str]:
    return {"key": pair[0], "value": pair[1]}


def _search(search: Any) -> dict[str, object]:
    condition = {"filter": search.condition} if search.condition else {}
    return {**condition, **({"order_by": list(search.order_by)} if search.order_by else {})}


# What a server names becomes part of later requests: nothing but a plain identifier may.
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]


class _Id(msgspec.Struct):
    run_id: _Name


class _Info(msgspec.Struct):
    info: _Id


class _Experiment(msgspec.Struct):
    experiment_id: _Name


class _File(msgspec.Struct):
    path: str
    is_dir: bool = False


class _Named(msgspec.Struct):
    name: str


class _Runs(msgspec.Struct):
    runs: list[_Info] = []


class _Experiments(msgspec.Struct):
    experiments: list[_Experiment] = []


class _Files(msgspec.Struct):
    files: list[_File] = []


class _Models(msgspec.Struct):
    registered_models: list[_Named] = []


class _Workspace(msgspec.Struct):
    name: _Name


class _Workspaces(msgspec.Struct):
    workspaces: list[_Workspace] = []


class _Trace(msgspec.Struct):
    trace_id: str


class _Traces(msgspec.Struct):
    traces: list[_Trace] = []


class _ModelInfo(msgspec.Struct):
    model_id: str


class _ModelOf(msgspec.Struct):
    info: _ModelInfo


class _LoggedModel(msgspec.Struct):
    model: _ModelOf


class _Page(msgspec.Struct):
    next_page_token: str = ""


def found_by(operation: Operation, body: bytes) -> Sequence[str]:
    """Return the ids, names or paths that an answer holds; raise msgspec.DecodeError where it makes no sense."""
    decode = msgspec.json.decode
    match operation:
        case Operation.search_runs:
            return [run.info.run_id for run in decode(body, type=_Runs).runs]
        case Operation.search_experiments:
            return [found.experiment_id for found in decode(body, type=_Experiments).experiments]
        case Operation.create_experiment:
            return [decode(body, type=_Experiment).experiment_id]
        case Operation.list_artifacts:
            return [file.path for file in decode(body, type=_Files).files if not file.is_dir]
        case Operation.search_models | Operation.search_prompts:
            return [model.name for model in decode(body, type=_Models).registered_models]
        case Operation.list_workspaces:
            return [workspace.name for workspace in decode(body, type=_Workspaces).workspaces]
        case Operation.search_traces:
            return [trace.trace_id for trace in decode(body, type=_Traces).traces]
        case Operation.create_logged_model:
            return [decode(body, type=_LoggedModel).model.info.model_id]
        case Operation.get_metric_history:
            token = decode(body, type=_Page).next_page_token
            return [token] if token else ()
        case _:
            return ()
