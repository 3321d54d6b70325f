"""A run trains a scikit-learn model under MLflow's autologging; the wire client sends the same (benchmark-mlops)."""

from __future__ import annotations

from hpcstress import workloads
from hpcstress.clients import Client
from hpcstress.content import Run
from hpcstress.plan import Plan
from hpcstress.training import KINDS, Training


def check(plan: Plan) -> None:
    """Refuse a method of another workload."""
    workloads.methods(plan, KINDS)


def kinds(plan: Plan, size: int) -> dict[int, int]:
    """Return one run of each kind, and how many there are of it."""
    many = len(workloads.methods(plan, KINDS))
    return {number: len(range(number, size, many)) for number in range(min(many, size))}


async def play(run: Run, client: Client) -> None:
    """Play one run: it trains a forest or a linear model, in turn."""
    plan = run.content.plan
    trained = workloads.methods(plan, KINDS)
    async with client.alone():
        await client.create_run(run.name, run.tags)
        await client.train(Training(run, trained[run.number % len(trained)], real=plan.client == "stock"))
        await client.finish_run()
