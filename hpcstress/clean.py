"""Remove from a server what one job has created on it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.wire import artifact_path
from hpcstress.content import SESSION_TAG
from hpcstress.quantity import count
from hpcstress.record import Outcome


class Cleaned(NamedTuple):
    """Count what was removed."""

    runs: int
    artifacts: int
    experiment: bool


async def clean(api: Api, facts: dict[str, Any], say: Callable[[str], None]) -> Cleaned:
    """Delete a job's runs with their artifacts, and the experiment if the job created it and nothing else is in it."""
    experiment_id, session = str(facts["experiment_id"]), str(facts["session"])
    runs = artifacts = 0
    try:
        listed = await _runs_of(api, experiment_id, session)
        for run_id, folder in listed:
            if folder is not None:
                artifacts += (await api.ask("DELETE", folder)).outcome is Outcome.ok
            await api.post("runs/delete", {"run_id": run_id})
            runs += 1
            if runs % 100 == 0:
                say(f"{runs:,} of {count(len(listed), 'run')} deleted")
        empty = not [run async for run in api.search_runs(experiment_id, "")]
        if facts.get("experiment_created") and empty:
            # MLflow keeps the name of a deleted experiment taken: the next job could not create it again.
            await api.post("experiments/update", {"experiment_id": experiment_id, "new_name": f"hpcstress-{session}"})
            await api.post("experiments/delete", {"experiment_id": experiment_id})
            return Cleaned(runs, artifacts, True)
    except Failed as failure:
        raise refusal(api.target, failure.answer, f"cleaning up, {count(runs, 'run')} done") from None
    return Cleaned(runs, artifacts, False)


async def _runs_of(api: Api, experiment_id: str, session: str) -> list[tuple[str, str | None]]:
    """Return id and artifact folder of a job's runs; what is not marked as the job's is left alone, whoever lists it.

    A folder that is not named after its run may hold the artifacts of others: it is None, as is one out of reach.
    """
    listed = []
    async for run in api.search_runs(experiment_id, f"tags.`{SESSION_TAG}` = '{session}'"):
        try:
            run_id, uri = str(run["info"]["run_id"]), str(run["info"].get("artifact_uri", ""))
            sessions = [tag["value"] for tag in run["data"].get("tags") or () if tag["key"] == SESSION_TAG]
        except (KeyError, TypeError, AttributeError):
            raise Failed(Answer(Outcome.malformed, 200, 0, 0, 0, b"")) from None
        if sessions == [session]:
            folder = artifact_path(uri)
            listed.append((run_id, folder if folder is not None and f"/{run_id}/" in f"{folder}/" else None))
    return listed
