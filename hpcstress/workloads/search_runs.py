"""Users search runs among many that were there before (mlflow-go's search-runs)."""

from __future__ import annotations

from hpcstress.clients import Client, Search
from hpcstress.content import Run
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.workloads.past import prefilled

__all__ = ["check", "play", "prefilled"]


def check(plan: Plan) -> None:
    """Refuse to search where nothing is."""
    if not plan.prefill_runs:
        raise UsageRefusal(f"{plan.workload} searches runs that are there before: say how many with --prefill-runs.")


async def play(run: Run, client: Client) -> None:
    """Search once in each iteration."""
    plan = run.content.plan
    search = Search(max_results=plan.max_results, least=min(plan.max_results, plan.prefill_runs))
    await client.enter_experiment(client.place.prefilled)
    while await client.turn():
        await client.search_runs(search)
