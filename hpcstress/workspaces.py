"""Workspaces of a server: which there are, making those that a job needs, looking for what has been left in them.

Where a server knows of none, everything is in one place, which is called None here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from hpcstress import workloads
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.requests import API, API_3, PROMPT
from hpcstress.content import PREFILL_TAG, SESSION_TAG
from hpcstress.plan import Plan
from hpcstress.preflight import tags_of
from hpcstress.record import Outcome

_PATH = f"{API_3}/workspaces"
_EXPERIMENTS_PER_SEARCH = 100
_MODELS_PER_PAGE = 1000


class Spaces(NamedTuple):
    """Say whether a server has workspaces, and which of them this job has created."""

    there: bool
    created: tuple[str, ...] = ()


async def make(api: Api, names: Sequence[str]) -> Spaces:
    """Create those workspaces that are missing, on a server that has any."""
    try:
        there = await known(api)
        if there is None:
            return Spaces(there=False)
        missing = tuple(name for name in names if name not in there)
        for name in missing:
            await api.call("POST", _PATH, {"name": name, "description": "made by hpcstress"})
    except Failed as failure:
        raise refusal(api.target, failure.answer, "making the tenants' workspaces") from None
    return Spaces(there=True, created=missing)


async def known(api: Api) -> set[str] | None:
    """Return the names of the workspaces that a server has, None from one that has no such thing."""
    try:
        told = await api.call("GET", _PATH)
        return {str(workspace["name"]) for workspace in told.get("workspaces") or ()}
    except Failed as failure:
        if failure.answer.outcome is Outcome.not_supported:
            return None
        raise
    except (KeyError, TypeError, AttributeError):
        raise _malformed() from None


def places(plan: Plan, *, there: bool) -> tuple[str | None, ...]:
    """Return where the runs of a plan create experiments of their own; nowhere for most workloads."""
    names = workloads.workspaces(plan)
    return names if there or not names else (None,)


async def experiments(api: Api, condition: str, view: str = "ACTIVE_ONLY") -> AsyncIterator[dict[str, Any]]:
    """Yield the experiments in a workspace that a filter matches, as the server tells them."""
    async for experiment in api.search_experiments(condition, view):
        if "experiment_id" not in experiment:
            raise _malformed()
        yield experiment


async def runs(api: Api, experiment_ids: Sequence[str], condition: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the runs in experiments, however many, that a filter matches."""
    for start in range(0, len(experiment_ids), _EXPERIMENTS_PER_SEARCH):
        async for run in api.search_runs(experiment_ids[start : start + _EXPERIMENTS_PER_SEARCH], condition):
            yield run


async def prompts(api: Api, condition: str = "") -> list[dict[str, Any]] | None:
    """Return the prompts in a workspace that a filter matches, None from a server that has none."""
    return await models(api, f"{PROMPT} and {condition}" if condition else PROMPT)


async def models(api: Api, condition: str = "") -> list[dict[str, Any]] | None:
    """Return the registered models in a workspace that a filter matches, None from a server that has none."""
    found: list[dict[str, Any]] = []
    query = {"max_results": str(_MODELS_PER_PAGE), **({"filter": condition} if condition else {})}
    while True:
        try:
            told = await api.get("registered-models/search", **query)
            found += (model for model in told.get("registered_models") or () if model["name"])
            token = str(told.get("next_page_token") or "")
        except Failed as failure:
            if failure.answer.outcome is Outcome.not_supported:
                return None
            raise
        except (KeyError, TypeError, AttributeError):
            raise _malformed() from None
        if not token:
            return found
        if token == query.get("page_token"):
            raise _malformed()
        query["page_token"] = token


class LoggedModel(msgspec.Struct):
    """Hold what a server tells of a logged model."""

    model_id: str
    source_run_id: str = ""
    artifact_uri: str = ""


class _Model(msgspec.Struct):
    info: LoggedModel


class _LoggedModels(msgspec.Struct):
    models: list[_Model] = []
    next_page_token: str = ""


async def logged_models(api: Api, experiment_ids: Sequence[str]) -> list[LoggedModel] | None:
    """Return the logged models in experiments, however many, None from a server that has none."""
    found: list[LoggedModel] = []
    for start in range(0, len(experiment_ids), _EXPERIMENTS_PER_SEARCH):
        question: dict[str, object] = {"experiment_ids": [*experiment_ids[start : start + _EXPERIMENTS_PER_SEARCH]]}
        while True:
            try:
                told = await api.call("POST", f"{API}/logged-models/search", question, _LoggedModels)
            except Failed as failure:
                if failure.answer.outcome is Outcome.not_supported:
                    return None
                raise
            found += (model.info for model in told.models)
            if not told.next_page_token:
                break
            if told.next_page_token == question.get("page_token"):
                raise _malformed()
            question["page_token"] = told.next_page_token
    return found


async def remove_model(api: Api, name: str) -> None:
    """Delete a registered model or a prompt with all its versions."""
    await api.call("DELETE", f"{API}/registered-models/delete", {"name": name})


async def remove_if_empty(api: Api, name: str) -> bool:
    """Delete a workspace if nothing is in it but deleted experiments of hpcstress; tell whether it was deleted.

    MLflow keeps deleted experiments until `mlflow gc`: they move to the default workspace, where it finds them.
    """
    api.enter(name)
    try:
        empty = not (await prompts(api) or await models(api))
        async for experiment in experiments(api, "", "ALL"):
            ours = not {SESSION_TAG, PREFILL_TAG}.isdisjoint(tags_of(experiment))
            empty = empty and ours and experiment.get("lifecycle_stage") == "deleted"
    finally:
        api.enter(None)
    if not empty:
        return False
    answer = await api.ask("DELETE", f"{_PATH}/{quote(name, safe='')}?{urlencode({'mode': 'SET_DEFAULT'})}")
    if answer.outcome is not Outcome.ok:
        raise Failed(answer)
    return True


def _malformed() -> Failed:
    return Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b""))
