"""Users log batch after batch of metrics, parameters and tags, each to a run of its own (mlflow-go's log-batch)."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run

# A run that takes many more becomes something that nobody trains, and takes long to be read back.
_BATCHES_PER_RUN = 100


async def play(run: Run, client: Client) -> None:
    """Play one run."""
    await client.create_run(run.name, run.tags)
    for number in range(_BATCHES_PER_RUN):
        if not await client.turn():
            break
        await client.log_batch(run.batch(number))
    await client.finish_run()
