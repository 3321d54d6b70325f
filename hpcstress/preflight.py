"""Everything that can be refused is refused here, before load starts: server, sign-in, experiment, open files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple

from hpcstress import tokens
from hpcstress.clients.answer import Answer, Failed, said
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.requests import API
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import open_files_limit
from hpcstress.plan import Plan
from hpcstress.quantity import count
from hpcstress.record import Outcome
from hpcstress.servers.spec import Spec

# Standard streams, journal, event loop, MPI's sockets, libraries that are opened late.
_OTHER_FILES = 200

_PAUSE_SECONDS = 0.5
_AWAY = (Outcome.refused, Outcome.timeout, Outcome.closed, Outcome.gateway)


class Experiment(NamedTuple):
    """Hold an experiment that runs go to, and whether this job has created it."""

    id: str
    created: bool
    tags: Mapping[str, str] = MappingProxyType({})


async def sign_in(api: Api) -> str:
    """Check address and credentials with a single request, and return the server's version. Mantik is asked first."""
    await tokens.sign_in(api.target)
    try:
        await api.post("experiments/search", {"max_results": 1})
    except Failed as failure:
        raise refusal(api.target, failure.answer, "signing in") from None
    answer = await api.ask("GET", "/version")
    return said(answer.body)[:40] if answer.outcome is Outcome.ok else "unknown"


async def find_experiment(
    api: Api, experiment_id: str | None, name: str, tags: Mapping[str, str] | None = None
) -> Experiment:
    """Return the experiment by its id or its name; one that is only named is created, with tags."""
    try:
        if experiment_id is not None:
            told = await api.get("experiments/get", experiment_id=experiment_id)
        else:
            told = await api.get("experiments/get-by-name", experiment_name=name)
    except Failed as failure:
        if failure.answer.status != 404:
            raise refusal(api.target, failure.answer, "asking for the experiment") from None
        if experiment_id is not None:
            raise Refusal(
                f"There is no experiment {experiment_id!r} on the server: correct MLFLOW_EXPERIMENT_ID, "
                "or unset it and give --experiment NAME."
            ) from None
        return await _create_experiment(api, name, tags or {})
    try:
        found, stage = str(told["experiment"]["experiment_id"]), told["experiment"].get("lifecycle_stage", "active")
        there = tags_of(told["experiment"])
    except (KeyError, TypeError, AttributeError):
        raise refusal(api.target, _malformed(), "asking for the experiment") from None
    if stage != "active":
        raise Refusal(
            f"The experiment {name if experiment_id is None else found!r} is deleted on the server: restore it "
            "(`mlflow experiments restore`), or choose another with --experiment."
        )
    return Experiment(found, False, there)


async def _create_experiment(api: Api, name: str, tags: Mapping[str, str]) -> Experiment:
    told_tags = [{"key": key, "value": value} for key, value in tags.items()]
    try:
        told = await api.post("experiments/create", {"name": name, **({"tags": told_tags} if tags else {})})
        return Experiment(str(told["experiment_id"]), True, tags)
    except Failed as failure:
        raise refusal(api.target, failure.answer, f"creating the experiment {name!r}") from None
    except (KeyError, TypeError):
        raise refusal(api.target, _malformed(), "creating the experiment") from None


async def is_active(api: Api, experiment_id: str) -> bool:
    """Tell whether an experiment is there and not deleted."""
    told = await api.get("experiments/get", experiment_id=experiment_id)
    try:
        return bool(told["experiment"].get("lifecycle_stage", "active") == "active")
    except (KeyError, TypeError, AttributeError):
        raise Failed(_malformed()) from None


async def remove_experiment(api: Api, experiment_id: str, new_name: str) -> None:
    """Delete an experiment; MLflow keeps the name of a deleted one taken, so it gets another before."""
    await api.post("experiments/update", {"experiment_id": experiment_id, "new_name": new_name})
    await api.post("experiments/delete", {"experiment_id": experiment_id})


def tags_of(holder: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of an experiment, or of a run's data, as a server tells them."""
    return {str(tag["key"]): str(tag.get("value", "")) for tag in holder.get("tags") or ()}


def _malformed() -> Answer:
    return Answer(Outcome.malformed, 200, 0, 0, 0, b"")


async def wait_until_back(api: Api, seconds: float, given_up: Callable[[], bool]) -> float | None:
    """Wait until the server answers again; return how long it took in seconds, None if it did not come back in time."""
    began = monotonic()
    while (await api.ask("GET", f"{API}/experiments/get?experiment_id=0")).outcome in _AWAY:
        if given_up() or monotonic() - began > seconds:
            return None
        await asyncio.sleep(_PAUSE_SECONDS)
    return monotonic() - began


def check_sign_in(server: Spec) -> None:
    """Refuse to start a server for other nodes that asks nobody for a password."""
    if not server.signs_in:
        raise UsageRefusal(
            f"{server} has no sign-in, and where other nodes reach it everybody in their network could write to it: "
            "take another one, or start it yourself at an address that you choose, and give that with --uri."
        )


def check_ranks(plan: Plan, ranks: int) -> None:
    """Refuse more ranks than there are runs or users in any step, or things to make before the load."""
    noun = "user" if plan.users else "run"
    most = max(*plan.steps, plan.prefill_runs, plan.prefill_experiments)
    if ranks > most:
        raise UsageRefusal(
            f"{count(ranks, 'rank')} are more than the largest step has: {count(most, noun)}. "
            f"Take fewer ranks, or give more --{noun}s."
        )


def check_open_files(largest_step: int, ranks: int) -> None:
    """Refuse a step that needs more connections on a rank than it may open, and say what would do."""
    limit = open_files_limit()
    needed = -(-largest_step // ranks) + _OTHER_FILES
    if needed > limit:
        room, advice = limit - _OTHER_FILES, "raise `ulimit -n`"
        # Where not even one run has room, no number of ranks is enough.
        if room > 0:
            advice = f"use {-(-largest_step // room):,} ranks or more, or {advice}"
        raise Refusal(
            f"{count(largest_step, 'run')} at once on {count(ranks, 'rank')} would open {needed:,} files on each, "
            f"the limit is {limit:,}: {advice}."
        )
