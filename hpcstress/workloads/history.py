"""Metrics grow long histories, batch after batch, and are read from beginning to end after each."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run

_BATCHES = 1000


async def play(run: Run, client: Client) -> None:
    """Play one run."""
    await client.create_run(run.name, run.tags)
    for number in range(_BATCHES):
        if not await client.turn():
            break
        batch = run.batch(number)
        await client.log_batch(batch)
        await client.get_metric_history(batch.metrics[0].key)
    await client.finish_run()
