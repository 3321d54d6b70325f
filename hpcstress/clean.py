"""Remove from a server what one job has created on it, and nothing else."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from hpcstress import workspaces
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.dial import way_to
from hpcstress.clients.requests import API, artifact_path
from hpcstress.content import PREFILL_TAG, SESSION_TAG, Content
from hpcstress.errors import Refusal
from hpcstress.plan import Plan, from_toml
from hpcstress.preflight import is_active, remove_experiment, tags_of
from hpcstress.quantity import count
from hpcstress.record import Operation, Outcome
from hpcstress.result import Result, Rows
from hpcstress.schedule import WARMUP
from hpcstress.tokens import Renewal, sign_in

_TRACES_PER_REQUEST = 100


@dataclass
class Cleaned:
    """Count what was removed; `prefill` counts the runs that were there before the load, `stays` tells of such."""

    runs: int = 0
    artifacts: int = 0
    experiment: bool = False
    prefill: int = 0
    experiments: int = 0
    models: int = 0
    workspaces: int = 0
    stays: bool = False
    logged_models: int = 0
    # None where the server cannot delete any.
    traces: int | None = 0


def traces(plan: Plan, session: str, read: Callable[[], Rows]) -> list[str]:
    """Return the ids of all traces that a job may have created, those of its warm-up, too.

    `read` returns its attempts, with the columns step, run and op; only a job of traces has them read.
    """
    if plan.workload != "traces":
        return []
    content, rows = Content(plan, session), read()
    sent = np.unique(rows[rows["op"] == Operation.log_spans][["step", "run"]])
    runs = [*sent.tolist(), *((WARMUP, number) for number in range(plan.warmup))]
    return [content.run(step, number).trace(0).trace_id for step, number in runs]


async def clean(
    api: Api,
    facts: dict[str, Any],
    say: Callable[[str], None],
    *,
    prefill: bool = False,
    places: Sequence[str | None] = (),
    traces: Sequence[str] = (),
) -> Cleaned:
    """Delete a job's runs with their artifacts and logged models, its traces, given by their ids, and the experiment.

    The experiment stays if the job did not create it, or something else is in it.

    In `places`, workspaces or the only one there is, its experiments are deleted, too; everywhere its models and
    prompts. A workspace that it created goes when nothing is left in it. What was made to be there before the load is
    deleted only with `prefill`: other jobs may use it.
    """
    experiment_id, session = str(facts["experiment_id"]), str(facts["session"])
    done, before = Cleaned(), Cleaned()
    try:
        # What has been cleaned before may be gone.
        there = await workspaces.known(api) or () if any(places) else ()
        places = [place for place in places if place is None or place in there]
        if prefill and "prefill" in facts:
            told = facts["prefill"]
            mark = (PREFILL_TAG, str(told["holds"]))
            await _remove_marked(api, mark, str(told["experiment_id"]), places, before, say)
        await _remove_marked(api, (SESSION_TAG, session), experiment_id, places, done, say)
        done.traces = await _remove_traces(api, experiment_id, traces)
        empty = not [run async for run in api.search_runs([experiment_id], "")]
        if facts.get("experiment_created") and empty and await is_active(api, experiment_id):
            await remove_experiment(api, experiment_id, f"hpcstress-{session}")
            done.experiment = True
        for name in facts.get("workspaces_created", ()):
            done.workspaces += name in there and await workspaces.remove_if_empty(api, name)
    except Failed as failure:
        raise refusal(
            api.target, failure.answer, f"cleaning up, {count(before.runs + done.runs, 'run')} done"
        ) from None
    done.prefill, done.stays = before.runs, "prefill" in facts and not prefill
    return done


def clean_result(
    result: Path, environment: Mapping[str, str], say: Callable[[str], None], *, prefill: bool = False
) -> Cleaned:
    """Clean the server of a result: sign in there, and delete what its job has created."""
    with Result(result) as opened:
        facts, plan = opened.facts, from_toml(opened.plan_toml)
        traced = traces(plan, str(facts.get("session")), partial(opened.rows, ("step", "run", "op")))
    if "experiment_id" not in facts:
        raise Refusal(f"The job of {result} had no server: there is nothing to clean.")

    async def act() -> Cleaned:
        async with Api(await way_to(str(facts["uri"]), environment), plan.timeout) as api:
            await sign_in(api.target)
            with Renewal(api.target, api.target.token):
                left_in = workspaces.places(plan, there=bool(facts.get("workspaces")))
                return await clean(api, facts, say, prefill=prefill, places=left_in, traces=traced)

    return asyncio.run(act())


async def _remove_marked(
    api: Api,
    mark: tuple[str, str],
    experiment_id: str,
    places: Sequence[str | None],
    done: Cleaned,
    say: Callable[[str], None],
) -> None:
    """Delete all runs, experiments, models and prompts that have a tag; what lacks it is left alone, whoever lists it.

    In the place that the environment names, runs are looked for in one more experiment.
    """
    condition = f"tags.`{mark[0]}` = '{mark[1]}'"
    for place in dict.fromkeys((None, *places)):
        api.enter(place)
        found = [experiment async for experiment in workspaces.experiments(api, condition) if _has(experiment, mark)]
        marked = [str(experiment["experiment_id"]) for experiment in found]
        searched = dict.fromkeys([*([experiment_id] if place is None else []), *marked])
        # Pages move under the hands of whoever deletes while listing.
        listed = [run async for run in _runs(api, [*searched], condition, mark)]
        # Before the runs: without them nobody would know whose they are.
        await _remove_logged_models(api, [*searched], {run_id for run_id, _ in listed}, done)
        for number, (run_id, folder) in enumerate(listed, 1):
            if folder is not None:
                done.artifacts += (await api.ask("DELETE", folder)).outcome is Outcome.ok
            await api.post("runs/delete", {"run_id": run_id})
            done.runs += 1
            if number % 100 == 0:
                say(f"{number:,} of {count(len(listed), 'run')} deleted")
        for models in (workspaces.models, workspaces.prompts):
            for model in await models(api, condition) or ():
                if _has(model, mark):
                    await workspaces.remove_model(api, str(model["name"]))
                    done.models += 1
        for marked_id in marked:
            await remove_experiment(api, marked_id, f"hpcstress-removed-{secrets.token_hex(6)}")
            done.experiments += 1
    api.enter(None)


async def _runs(
    api: Api, experiment_ids: Sequence[str], condition: str, mark: tuple[str, str]
) -> AsyncIterator[tuple[str, str | None]]:
    """Yield id and artifact folder of marked runs.

    A folder that is not named after its run may hold the artifacts of others: it is None, as is one out of reach.
    """
    async for run in workspaces.runs(api, experiment_ids, condition):
        try:
            run_id, uri = str(run["info"]["run_id"]), str(run["info"].get("artifact_uri", ""))
            marked = _has(run["data"], mark)
        except (KeyError, TypeError, AttributeError):
            raise Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b"")) from None
        if marked:
            yield run_id, _own_folder(uri, run_id)


def _own_folder(uri: str, name: str) -> str | None:
    folder = artifact_path(uri)
    return folder if folder is not None and f"/{name}/" in f"{folder}/" else None


async def _remove_logged_models(api: Api, experiment_ids: Sequence[str], run_ids: set[str], done: Cleaned) -> None:
    """Delete the logged models of runs, with their artifacts; what no such run has made is left alone."""
    if not run_ids:
        return
    for model in await workspaces.logged_models(api, experiment_ids) or ():
        if model.source_run_id in run_ids:
            folder = _own_folder(model.artifact_uri, model.model_id)
            if folder is not None:
                await api.ask("DELETE", folder)
            await api.call("DELETE", f"{API}/logged-models/{quote(model.model_id, safe='')}")
            done.logged_models += 1


async def _remove_traces(api: Api, experiment_id: str, traces: Sequence[str]) -> int | None:
    """Delete traces by their ids and return how many there were, None where the server cannot delete any."""
    deleted = 0
    for start in range(0, len(traces), _TRACES_PER_REQUEST):
        asked = {"experiment_id": experiment_id, "request_ids": [*traces[start : start + _TRACES_PER_REQUEST]]}
        try:
            deleted += int((await api.post("traces/delete-traces", asked)).get("traces_deleted") or 0)
        except Failed as failure:
            if failure.answer.outcome is Outcome.not_supported:
                return None
            raise
        except (TypeError, ValueError):
            raise Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b"")) from None
    return deleted


def _has(holder: Any, mark: tuple[str, str]) -> bool:
    try:
        return tags_of(holder).get(mark[0]) == mark[1]
    except (KeyError, TypeError, AttributeError):
        raise Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b"")) from None
