"""Remove from a server what one job has created on it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hpcstress.clients.answer import Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.wire import artifact_path
from hpcstress.content import SESSION_TAG
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
        listed = [run async for run in api.search_runs(experiment_id, f"tags.`{SESSION_TAG}` = '{session}'")]
        for run in listed:
            info = run["info"]
            folder = artifact_path(str(info.get("artifact_uri", "")))
            if folder is not None:
                artifacts += (await api.ask("DELETE", folder)).outcome is Outcome.ok
            await api.post("runs/delete", {"run_id": str(info["run_id"])})
            runs += 1
            if runs % 100 == 0:
                say(f"{runs} of {len(listed)} runs deleted")
        empty = not [run async for run in api.search_runs(experiment_id, "")]
        if facts.get("experiment_created") and empty:
            # MLflow keeps the name of a deleted experiment taken: the next job could not create it again.
            await api.post("experiments/update", {"experiment_id": experiment_id, "new_name": f"hpcstress-{session}"})
            await api.post("experiments/delete", {"experiment_id": experiment_id})
            return Cleaned(runs, artifacts, True)
    except Failed as failure:
        raise refusal(api.target, failure.answer, f"cleaning up, {runs} runs done") from None
    return Cleaned(runs, artifacts, False)
