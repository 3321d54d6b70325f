"""How many requests and bytes a plan sends, by playing one run on paper."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, NamedTuple

from hpcstress.clients import Client
from hpcstress.clients.wire import create_run_body, log_metrics_body, log_params_body, update_run_body
from hpcstress.content import Content
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan
from hpcstress.record import ROW, Operation
from hpcstress.workloads import load

_RUN_ID = "0" * 32
_NOW_MS = 1_700_000_000_000
# A row has two bytes for the number of its request, and each request can need a connection of its own.
_MOST_REQUESTS = 1 << 15


class Estimate(NamedTuple):
    """Hold what one run sends, and the whole plan: requests, bytes of their bodies, bytes of the journals."""

    runs: int
    requests_per_run: dict[str, int]
    requests: int
    body_bytes: int
    journal_bytes: int


class _Paper(Client):
    __slots__ = ("body_bytes", "requests")

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self.body_bytes = 0

    async def _request(self, operation: Operation, payload: Any) -> None:
        self.requests[operation.name] += 1
        if self.requests.total() > _MOST_REQUESTS:
            raise UsageRefusal(
                f"A run of this plan sends more than {_MOST_REQUESTS} requests: take fewer params, metrics, artifacts."
            )
        match operation:
            case Operation.create_run:
                self.body_bytes += len(create_run_body("0", payload[0], payload[1], _NOW_MS))
            case Operation.log_params:
                self.body_bytes += len(log_params_body(_RUN_ID, payload))
            case Operation.log_metrics:
                self.body_bytes += len(log_metrics_body(_RUN_ID, payload))
            case Operation.log_artifact:
                self.body_bytes += payload.size
            case Operation.finish_run:
                self.body_bytes += len(update_run_body(_RUN_ID, _NOW_MS))

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


def estimate(plan: Plan) -> Estimate:
    """Return what a plan sends if nothing fails, warm-up included; bodies differ by a few bytes from run to run."""
    paper = _Paper()
    asyncio.run(_play(plan, paper))
    runs = plan.warmup + sum(plan.steps)
    per_run = paper.requests.total()
    return Estimate(
        runs=runs,
        requests_per_run=dict(paper.requests),
        requests=runs * per_run,
        body_bytes=runs * paper.body_bytes,
        # One row for each request and one for the connection.
        journal_bytes=runs * (per_run + 1) * ROW.size,
    )


async def _play(plan: Plan, paper: _Paper) -> None:
    await load(plan.workload)(Content(plan, "0" * 12).run(0, 0), paper)
