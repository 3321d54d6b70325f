"""What was logged before the load, for workloads that search: runs with metrics, parameters, tags; experiments."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run
from hpcstress.plan import Plan
from hpcstress.workloads import Prefill


def prefilled(plan: Plan) -> Prefill:
    """Return the runs and experiments that a plan wants to be there."""
    holds = (
        f"runs-{plan.prefill_runs}-metrics-{plan.metrics}-points-{plan.points}-params-{plan.params}-tags-{plan.tags}-"
        f"experiments-{plan.prefill_experiments}-seed-{plan.seed}"
    )
    return Prefill(plan.prefill_runs + plan.prefill_experiments, holds, play)


async def play(run: Run, client: Client) -> None:
    """Make one run, or one experiment; nobody finishes the runs, which would cost as much again."""
    if run.number < run.content.plan.prefill_runs:
        await client.create_run(run.name, run.tags)
        await client.log_batch(run.batch(0))
    else:
        await client.create_experiment(run.unique_name, run.tags)
