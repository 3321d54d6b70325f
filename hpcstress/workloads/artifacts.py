"""A run uploads files one by one, another one the folder that holds them (mantik's artifacts)."""

from __future__ import annotations

from hpcstress import workloads
from hpcstress.clients import Client
from hpcstress.content import Run
from hpcstress.plan import Plan

_METHODS = ("log_artifact", "log_artifacts")


def check(plan: Plan) -> None:
    """Refuse a method of another workload."""
    workloads.methods(plan, _METHODS)


async def play(run: Run, client: Client) -> None:
    """Play one MLflow run for each method."""
    plan = run.content.plan
    for number, method in enumerate(workloads.methods(plan, _METHODS)):
        await client.create_run(*run.part(number))
        if method == "log_artifact":
            for artifact in run.artifacts:
                await client.log_artifact(artifact)
        else:
            await client.log_artifacts(run.artifacts, plan.uploads)
        await client.finish_run()
