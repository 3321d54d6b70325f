"""Users list the experiments of a server (mlflow-go's search-experiments)."""

from __future__ import annotations

from hpcstress.clients import Client, Search
from hpcstress.content import Run
from hpcstress.workloads.past import prefilled

__all__ = ["play", "prefilled"]


async def play(run: Run, client: Client) -> None:
    """Search once in each iteration."""
    plan = run.content.plan
    search = Search(max_results=plan.max_results, least=min(plan.max_results, plan.prefill_experiments))
    while await client.turn():
        await client.search_experiments(search)
