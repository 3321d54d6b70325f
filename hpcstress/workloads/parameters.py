"""A run logs n parameters one by one, another one all at once, a third one as a batch (mantik's parameters)."""

from __future__ import annotations

from hpcstress import workloads
from hpcstress.clients import Client
from hpcstress.content import Batch, Run
from hpcstress.plan import Plan

_METHODS = ("log_param", "log_params", "log_batch")


def check(plan: Plan) -> None:
    """Refuse a method of another workload."""
    workloads.methods(plan, _METHODS)


async def play(run: Run, client: Client) -> None:
    """Play one MLflow run for each method."""
    for number, method in enumerate(workloads.methods(run.content.plan, _METHODS)):
        await client.create_run(*run.part(number))
        if method == "log_param":
            for param in run.params:
                await client.log_param(param)
        elif method == "log_params":
            await client.log_params(run.params)
        else:
            await client.log_batch(Batch(params=run.params))
        await client.finish_run()
