"""Users search runs and experiments that were there before, and read a metric's history (FastTrackML's retrieval)."""

from __future__ import annotations

from hpcstress.clients import Client, Search
from hpcstress.content import PREFILL_TAG, Run
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.workloads.past import prefilled

__all__ = ["check", "play", "prefilled"]

# All metrics lie between 0 and 1, and no experiment has that name: what the server looks through is all that is there.
_RUNS = f"metrics.`metric-0` >= 0 AND tags.`{PREFILL_TAG}` LIKE 'runs-%'"
_EXPERIMENTS = "attribute.name != 'experiment_XXXXX'"


def check(plan: Plan) -> None:
    """Refuse to look for what is not there."""
    if not (plan.prefill_runs and plan.metrics):
        raise UsageRefusal(
            "retrieval searches runs that are there before, by their metrics: give --prefill-runs and --metrics."
        )


async def play(run: Run, client: Client) -> None:
    """Search runs, search experiments, read the history of one metric, in each iteration."""
    plan = run.content.plan
    runs = Search(_RUNS, plan.max_results, least=min(plan.max_results, plan.prefill_runs))
    experiments = Search(_EXPERIMENTS, plan.max_results, least=min(plan.max_results, plan.prefill_experiments))
    await client.enter_experiment(client.place.prefilled)
    while await client.turn():
        found = await client.search_runs(runs)
        await client.search_experiments(experiments)
        for run_id in found[:1]:
            client.enter_run(run_id)
            await client.get_metric_history("metric-0")
