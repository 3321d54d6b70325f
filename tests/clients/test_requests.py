from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients import Search
from hpcstress.clients.requests import (
    API,
    ARTIFACTS,
    Request,
    Where,
    artifact_path,
    create_run_body,
    found_by,
    log_batch_body,
    log_metrics_body,
    log_params_body,
    request_of,
    update_run_body,
)
from hpcstress.content import Batch, Metric
from hpcstress.record import Operation
from tests.clients.wiring import RUN_ID, created
from tests.peers import Request as Received
from tests.peers import http_server, reply

WHERE = Where("7", RUN_ID, f"{ARTIFACTS}/7/{RUN_ID}/artifacts")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=5)
METRICS = st.lists(st.builds(Metric, TEXT, st.floats(0, 1), st.integers(0), st.integers(0)), max_size=5)
SEARCHES = st.builds(Search, TEXT, st.integers(1, 1000), st.lists(TEXT, max_size=3).map(tuple))


def told(request: Request) -> Any:
    """Return what a request says: the JSON of its body, or its query."""
    if request.body is not None:
        return json.loads(request.body)
    return {name: value for name, [value] in parse_qs(urlsplit(request.path).query, keep_blank_values=True).items()}


def listed(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in pairs]


# The four requests that a run mostly consists of are JSON as `json` writes it.


@given(PAIRS)
def test_parameters_are_written_as_json_writes_them(params: list[tuple[str, str]]) -> None:
    assert log_params_body(RUN_ID, params) == json.dumps({"run_id": RUN_ID, "params": listed(params)})


@given(METRICS)
def test_metrics_are_written_as_json_writes_them(metrics: list[Metric]) -> None:
    expected = {"run_id": RUN_ID, "metrics": [metric._asdict() for metric in metrics]}
    assert log_metrics_body(RUN_ID, metrics) == json.dumps(expected)


@given(METRICS, PAIRS, PAIRS)
def test_a_batch_holds_whatever_there_is_as_json_writes_it(
    metrics: list[Metric], params: list[tuple[str, str]], tags: list[tuple[str, str]]
) -> None:
    kinds = {"metrics": [metric._asdict() for metric in metrics], "params": listed(params), "tags": listed(tags)}
    expected = {"run_id": RUN_ID, **{name: items for name, items in kinds.items() if items}}
    assert log_batch_body(RUN_ID, Batch(metrics, params, tags)) == json.dumps(expected)


@given(TEXT, PAIRS, st.integers(0, 10**15))
def test_a_run_is_created_with_name_and_tags_where_there_are_any(
    name: str, tags: list[tuple[str, str]], now: int
) -> None:
    expected = {"experiment_id": "7", "user_id": "unknown", "run_name": name, "start_time": now}
    assert json.loads(create_run_body("7", name, tags, now)) == expected | ({"tags": listed(tags)} if tags else {})


def test_a_run_is_finished_under_its_old_name_and_its_new_one() -> None:
    expected = {"run_uuid": RUN_ID, "status": "FINISHED", "end_time": 5, "run_id": RUN_ID}
    assert update_run_body(RUN_ID, 5) == json.dumps(expected)


# All other requests.

# The stock client's call, and the same operation here.
CALLS: list[tuple[str, Operation, Any]] = [
    ("client.log_param(R, 'a key', 'v\\u00e4\"')", Operation.log_param, ("a key", 'vä"')),
    ("client.log_metric(R, 'k', 0.5, timestamp=17, step=3)", Operation.log_metric, Metric("k", 0.5, 17, 3)),
    ("client.set_tag(R, 'k', 'v')", Operation.set_tags, ("k", "v")),
    ("client.create_experiment('a name', tags={'a': 'b'})", Operation.create_experiment, ("a name", [("a", "b")])),
    ("client.create_experiment('a name')", Operation.create_experiment, ("a name", [])),
    ("client.get_experiment('7')", Operation.get_experiment, None),
    ("client.search_experiments(max_results=20)", Operation.search_experiments, Search("", 20)),
    (
        "client.search_experiments(max_results=20, filter_string=\"name LIKE 'a%'\", order_by=['name ASC'])",
        Operation.search_experiments,
        Search("name LIKE 'a%'", 20, ("name ASC",)),
    ),
    ("client.search_runs(['7'], max_results=100)", Operation.search_runs, Search()),
    (
        "client.search_runs(['7'], \"tags.`a` = 'b'\", max_results=5, order_by=['metrics.m DESC', 'start_time'])",
        Operation.search_runs,
        Search("tags.`a` = 'b'", 5, ("metrics.m DESC", "start_time")),
    ),
    ("client.get_metric_history(R, 'a b')", Operation.get_metric_history, ("a b", "")),
    ("client.get_metric_history(R, 'a b')", Operation.get_metric_history, ("a b", "next+/=")),
    ("client.list_artifacts(R)", Operation.list_artifacts, None),
    ("client.download_artifacts(R, 'a folder/\\u00e4.bin', '.')", Operation.download_artifact, "a folder/ä.bin"),
    ("client.create_registered_model('a model', tags={'a': 'b'})", Operation.create_model, ("a model", [("a", "b")])),
    ("client.create_registered_model('a model')", Operation.create_model, ("a model", [])),
    (
        "client.create_model_version('a model', 's3://there', run_id=R, tags={'a': 'b'})",
        Operation.create_model_version,
        ("a model", "s3://there", [("a", "b")]),
    ),
    ("client.search_registered_models(max_results=50)", Operation.search_models, Search("", 50)),
    (
        "client.search_registered_models(\"name = 'a'\", max_results=50)",
        Operation.search_models,
        Search("name = 'a'", 50),
    ),
    ("client.list_workspaces()", Operation.list_workspaces, None),
    (
        "client.create_prompt('a prompt', tags={'a': 'b'})",
        Operation.create_prompt,
        ("a prompt", [("mlflow.prompt.is_prompt", "true"), ("a", "b")]),
    ),
    (
        "client.create_prompt_version('a prompt', 'say {{this}}')",
        Operation.create_prompt_version,
        (
            "a prompt",
            "prompt-template",
            [
                ("mlflow.prompt.is_prompt", "true"),
                ("mlflow.prompt.text", "say {{this}}"),
                ("_mlflow_prompt_type", "text"),
            ],
        ),
    ),
    ("client.search_prompts()", Operation.search_prompts, None),
]
# Of the stock client these take further requests: it looks at the run, at pages, at what it has created.
SEVERAL = {
    Operation.get_metric_history,
    Operation.list_artifacts,
    Operation.download_artifact,
    Operation.create_prompt_version,
}

STOCK = """
    import sys
    from contextlib import suppress
    from urllib.request import urlopen
    from mlflow import MlflowClient
    client, R = MlflowClient(sys.argv[1]), sys.argv[2]
    for call in sys.argv[3:]:
        urlopen(sys.argv[1] + "/next").read()
        # What it makes of an empty answer is its own business.
        with suppress(Exception):
            eval(call)
"""


def mlflow(request: Received) -> bytes:
    if "/runs/get" in request.target:
        return reply(created())
    if "model-versions/create" in request.target:
        return reply(b'{"model_version": {"name": "a", "version": "1", "status": "READY"}}')
    if "get-history" in request.target and "page_token" not in request.target:
        return reply(b'{"next_page_token": "next+/="}')
    return reply()


def sent(method: str, target: str, kind: str | None, body: str) -> tuple[str, str, str | None, str]:
    return method, target, kind, body


@pytest.mark.slow
def test_the_requests_are_those_of_the_stock_client_byte_for_byte(tmp_path: Path) -> None:
    async def record() -> list[Received]:
        async with http_server(mlflow) as server:
            environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
            words = ["-W", "ignore", "-c", textwrap.dedent(STOCK), server.uri, RUN_ID, *(call for call, _, _ in CALLS)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, *words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE
            )
            _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            return server.requests

    groups = [
        [sent(one.method, one.target, one.headers.get("content-type"), one.body.decode()) for one in group]
        for mark, group in groupby(asyncio.run(record()), lambda one: one.target == "/next")
        if not mark
    ]
    for (call, operation, payload), group in zip(CALLS, groups, strict=True):
        made = request_of(operation, payload, WHERE)
        body = made.body if isinstance(made.body, str) else ""
        assert sent(made.method, made.path, made.kind if body else None, body) in group, call
        assert len(group) == 1 or operation in SEVERAL


# What the stock client sends of these begins a conversation with the server, or needs one that has gone before.
NOT_COMPARED = {
    Operation.create_logged_model,
    Operation.finish_logged_model,
    Operation.get_logged_model,
    Operation.log_inputs,
    Operation.log_outputs,
    Operation.log_spans,
    Operation.search_traces,
    Operation.get_trace,
}


def test_what_the_stock_client_is_compared_with_is_every_request_there_is() -> None:
    compared = {operation for _, operation, _ in CALLS} | NOT_COMPARED
    for operation in Operation:
        if operation not in compared:
            with pytest.raises(NotImplementedError, match=operation.name):
                request_of(operation, None, WHERE)


@given(st.sampled_from([Operation.log_param, Operation.set_tags]), TEXT, TEXT)
def test_one_pair_of_a_run_is_sent_with_its_id(operation: Operation, key: str, value: str) -> None:
    request = request_of(operation, (key, value), WHERE)
    assert request.method == "POST"
    assert told(request) == {"run_uuid": RUN_ID, "run_id": RUN_ID, "key": key, "value": value}


@given(SEARCHES, st.sampled_from([Operation.search_runs, Operation.search_experiments]))
def test_a_search_says_its_filter_its_order_and_how_much_it_takes(search: Search, operation: Operation) -> None:
    asked = told(request_of(operation, search, WHERE))
    assert asked.get("filter", "") == search.condition
    assert asked["max_results"] == search.max_results
    assert asked.get("order_by", []) == list(search.order_by)
    assert asked.get("experiment_ids", ["7"]) == ["7"]


@given(TEXT, TEXT)
def test_a_page_of_a_metric_is_asked_for_by_the_token_of_the_one_before(key: str, token: str) -> None:
    asked = told(request_of(Operation.get_metric_history, (key, token), WHERE))
    assert (asked["metric_key"], asked.get("page_token", "")) == (key, token)


@given(TEXT)
def test_models_are_searched_without_prompts(condition: str) -> None:
    asked = told(request_of(Operation.search_models, Search(condition), WHERE))
    assert asked["filter"].startswith(condition)
    assert asked["filter"].endswith("tag.`mlflow.prompt.is_prompt` != 'true'")


PAYLOADS: dict[Operation, st.SearchStrategy[Any]] = {
    Operation.get_metric_history: st.tuples(TEXT, TEXT),
    Operation.search_models: SEARCHES,
    Operation.download_artifact: TEXT,
    Operation.list_artifacts: st.none(),
    Operation.get_experiment: st.none(),
}


@given(st.sampled_from(sorted(PAYLOADS)).flatmap(lambda operation: st.tuples(st.just(operation), PAYLOADS[operation])))
def test_whatever_is_asked_for_the_request_line_stays_one_line_of_visible_letters(asked: tuple[Operation, Any]) -> None:
    where = Where("7", RUN_ID, artifact_path("mlflow-artifacts:/7/a b/ä\r\nX-Evil: 1"))
    assert re.fullmatch("[!-~]+", request_of(*asked, where).path)


def test_artifacts_are_listed_and_read_where_the_server_has_put_them() -> None:
    where = Where("7", RUN_ID, artifact_path("mlflow-artifacts:/workspaces/a b/7/x/artifacts"))
    request = request_of(Operation.list_artifacts, None, where)
    assert told(request) == {"path": "workspaces/a b/7/x/artifacts"}
    request = request_of(Operation.download_artifact, "a b/c.bin", where)
    assert unquote(request.path) == f"{ARTIFACTS}/workspaces/a b/7/x/artifacts/a b/c.bin"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (f"mlflow-artifacts:/7/{RUN_ID}/artifacts", f"/api/2.0/mlflow-artifacts/artifacts/7/{RUN_ID}/artifacts"),
        (
            "mlflow-artifacts:/workspaces/a b/7/x/artifacts/",
            "/api/2.0/mlflow-artifacts/artifacts/workspaces/a%20b/7/x/artifacts",
        ),
        ("mlflow-artifacts://host:5000/7/x", "/api/2.0/mlflow-artifacts/artifacts/7/x"),
        ("s3://bucket/7", None),
        ("/shared/7", None),
        ("file:///shared/7", None),
    ],
)
def test_where_artifacts_go_follows_from_the_uri_of_the_run(uri: str, path: str | None) -> None:
    assert artifact_path(uri) == path


def test_requests_go_below_the_paths_of_the_api() -> None:
    paths = [request_of(operation, payload, WHERE).path for _, operation, payload in CALLS]
    assert {path.split("/")[2] for path in paths} == {"2.0", "3.0"}
    assert all(path.startswith((f"{API}/", f"{ARTIFACTS}?", f"{ARTIFACTS}/", "/api/3.0/mlflow/")) for path in paths)


# What answers say.


@pytest.mark.parametrize(
    ("operation", "body", "found"),
    [
        (
            Operation.search_runs,
            '{"runs": [{"info": {"run_id": "a1"}, "data": {}}, {"info": {"run_id": "b"}}]}',
            "a1 b",
        ),
        (Operation.search_runs, "{}", ""),
        (Operation.search_experiments, '{"experiments": [{"experiment_id": "7", "name": "a"}]}', "7"),
        (Operation.search_experiments, "{}", ""),
        (Operation.create_experiment, '{"experiment_id": "7"}', "7"),
        (Operation.list_artifacts, '{"files": [{"path": "a", "is_dir": true}, {"path": "b", "file_size": 5}]}', "b"),
        (Operation.list_artifacts, "{}", ""),
        (Operation.search_models, '{"registered_models": [{"name": "m"}, {"name": "n"}]}', "m n"),
        (Operation.search_prompts, '{"registered_models": [{"name": "p"}]}', "p"),
        (Operation.list_workspaces, '{"workspaces": [{"name": "team-a"}]}', "team-a"),
        (Operation.get_metric_history, '{"metrics": [{"key": "m"}], "next_page_token": "more"}', "more"),
        (Operation.get_metric_history, '{"metrics": [], "next_page_token": ""}', ""),
        (Operation.get_metric_history, "{}", ""),
        (Operation.log_param, "not even JSON", ""),
    ],
)
def test_what_is_found_are_ids_names_or_paths(operation: Operation, body: str, found: str) -> None:
    assert list(found_by(operation, body.encode())) == found.split()


FINDING = [
    Operation.search_runs,
    Operation.search_experiments,
    Operation.create_experiment,
    Operation.list_artifacts,
    Operation.search_models,
    Operation.search_prompts,
    Operation.list_workspaces,
    Operation.get_metric_history,
]


FIELDS = ["runs", "experiments", "experiment_id", "files", "registered_models", "workspaces", "next_page_token"]


@pytest.mark.parametrize("operation", FINDING, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b'"\xff"',
        json.dumps(dict.fromkeys(FIELDS, 5)).encode(),
    ],
)
def test_an_answer_that_makes_no_sense_is_told_as_such(operation: Operation, body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        found_by(operation, body)


@pytest.mark.parametrize("name", ["a\r\nX-Evil: 1", "../../users", "a b", "", "x" * 65, "a/b", "ä", "a\n"])
@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        (Operation.search_runs, '{"runs": [{"info": {"run_id": NAME}}]}'),
        (Operation.search_experiments, '{"experiments": [{"experiment_id": NAME}]}'),
        (Operation.create_experiment, '{"experiment_id": NAME}'),
        (Operation.list_workspaces, '{"workspaces": [{"name": NAME}]}'),
    ],
)
def test_what_becomes_part_of_later_requests_is_a_plain_identifier(
    operation: Operation, answer: str, name: str
) -> None:
    with pytest.raises(msgspec.ValidationError):
        found_by(operation, answer.replace("NAME", json.dumps(name)).encode())
