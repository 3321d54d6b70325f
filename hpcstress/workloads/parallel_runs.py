"""N training jobs begin at once: each creates a run, logs parameters, metrics and artifacts, and finishes it."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run


async def play(run: Run, client: Client) -> None:
    """Play one run."""
    await client.create_run(run.name, run.tags)
    await client.log_params(run.params)
    await client.log_metrics(run.metrics)
    for artifact in run.artifacts:
        await client.log_artifact(artifact)
    await client.finish_run()
