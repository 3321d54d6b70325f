"""Users create run after run, and log nothing (mlflow-go's create-run)."""

from __future__ import annotations

from hpcstress.clients import Client
from hpcstress.content import Run

LEFT_OPEN = True


async def play(run: Run, client: Client) -> None:
    """Play one run."""
    await client.create_run(run.name, run.tags)
