"""Trainings register what they have learnt: a run, a logged model, a registered model and its first version."""

from __future__ import annotations

from hpcstress.clients import Client, Search
from hpcstress.content import SESSION_TAG, Run
from hpcstress.record import Operation


async def play(run: Run, client: Client) -> None:
    """Play one run."""
    name = f"hpcstress-{run.content.session}-{run.step}-{run.number}"
    tags = ((SESSION_TAG, run.content.session),)
    await client.create_run(run.name, run.tags)
    await client.log_params(run.params)
    await client.ask(Operation.create_model, (name, tags))
    for model_id in await client.ask(Operation.create_logged_model, ("model", (), ())):
        await client.ask(Operation.finish_logged_model, model_id)
        await client.ask(Operation.create_model_version, (name, f"models:/{model_id}", tags, model_id))
    await client.ask(Operation.search_models, Search(f"name = '{name}'"))
    await client.finish_run()
