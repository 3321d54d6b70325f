"""Users log run after run in batches of many sizes, each named by what it holds (FastTrackML's logging)."""

from __future__ import annotations

from itertools import count

from hpcstress.clients import Client
from hpcstress.content import Batch, Run
from hpcstress.record import Operation


async def play(run: Run, client: Client) -> None:
    """Play one MLflow run in each iteration."""
    for number in count():
        if not await client.turn():
            return
        await client.create_run(*run.part(number))
        await client.log_metric(run.series("single", 1, 1, number)[0])
        await client.log_batch(Batch(run.series("ten", 10, 4, number)), Operation.log_40_metrics)
        await client.log_batch(Batch(run.series("hundred", 100, 4, number)), Operation.log_400_metrics)
        await client.log_batch(Batch(run.series("five-hundred", 500, 2, number)), Operation.log_1000_metrics)
        await client.log_batch(Batch(params=run.pairs("ten", 10, number)), Operation.log_10_params)
        await client.log_batch(Batch(params=run.pairs("hundred", 100, number)), Operation.log_100_params)
        await client.set_terminated()
