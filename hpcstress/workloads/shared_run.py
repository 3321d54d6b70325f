"""All users of all ranks write to one run, each under names of its own: what a job does that logs from every node."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run, owner

SHARED = True

_BATCHES = 100


async def play(run: Run, client: Client) -> None:
    """Play one user's part of the run."""
    await client.join_run()
    for number in range(_BATCHES):
        if not await client.turn():
            break
        await client.log_batch(run.batch(number, owner(run.number)))
