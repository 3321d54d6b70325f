"""Users log traces by OpenTelemetry's protocol, search them, and look at one."""

from __future__ import annotations

from hpcstress.clients import Client, Search
from hpcstress.clients.otlp import require
from hpcstress.content import Run
from hpcstress.plan import Plan
from hpcstress.record import Operation


def check(plan: Plan) -> None:
    """Refuse what this machine cannot encode."""
    del plan
    require()


async def play(run: Run, client: Client) -> None:
    """Play one iteration."""
    trace = run.trace(0)
    await client.ask(Operation.log_spans, trace)
    await client.ask(Operation.search_traces, Search(max_results=100))
    await client.ask(Operation.get_trace, trace.trace_id)
