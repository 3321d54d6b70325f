"""How many requests and bytes a plan sends, by playing one run on paper."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any, NamedTuple

from hpcstress import workloads
from hpcstress.clients import METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST, Client, Lacking, Place
from hpcstress.clients.requests import (
    Where,
    create_run_body,
    imagined,
    log_batch_body,
    log_metrics_body,
    log_params_body,
    request_of,
    update_run_body,
)
from hpcstress.content import Batch, Content, Metric
from hpcstress.errors import UsageRefusal
from hpcstress.plan import Plan, Rung
from hpcstress.record import ROW, Operation

_RUN_ID = "0" * 32
_NOW_MS = 1_700_000_000_000
# A row has two bytes for the number of its request, and each request can need a connection of its own.
_MOST_REQUESTS = 1 << 15


class Estimate(NamedTuple):
    """Hold what a run of each kind sends, and the whole plan: requests, bytes of their bodies, bytes of the journals.

    `connections` is how many are open at once, of all ranks together; `prefill` how many requests make what has to be
    there before the load.
    """

    runs: int
    requests_per_run: tuple[dict[str, int], ...]
    requests: int
    body_bytes: int
    journal_bytes: int
    connections: int
    prefill: int


class _Paper(Client):
    __slots__ = ("_split", "_turns", "body_bytes", "connections", "requests")

    def __init__(self, turns: int, *, split: bool) -> None:
        super().__init__(Place("0", workspaces=True), Lacking(), turn=self._counted)
        self._turns = turns
        self._split = split
        self.requests: Counter[str] = Counter()
        self.body_bytes = 0
        self.connections = 1

    async def _counted(self, done: int) -> int | None:
        return 0 if done < self._turns else None

    async def log_params(self, params: Sequence[tuple[str, str]]) -> None:
        self._see_that_it_fits(Batch(params=params))
        await super().log_params(params)

    async def log_metrics(self, metrics: Sequence[Metric]) -> None:
        self._see_that_it_fits(Batch(metrics=metrics))
        await super().log_metrics(metrics)

    async def log_batch(self, batch: Batch, operation: Operation = Operation.log_batch) -> None:
        self._see_that_it_fits(batch)
        await super().log_batch(batch, operation)

    def _see_that_it_fits(self, batch: Batch) -> None:
        if not self._split and not batch.fits(METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST):
            raise UsageRefusal(
                f"--no-split: a batch of this plan has {len(batch.metrics)} metrics, {len(batch.params)} params and "
                f"{len(batch.tags)} tags, a server takes {METRICS_PER_REQUEST}, {PARAMS_PER_REQUEST} and "
                f"{TAGS_PER_REQUEST}, and 1000 in all: take fewer, or let them be split."
            )

    async def _request_each(self, operation: Operation, payloads: Sequence[Any], at_once: int) -> None:
        self.connections = max(self.connections, min(at_once, len(payloads)))
        await super()._request_each(operation, payloads, at_once)

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        self.requests[operation.name] += 1
        # As many rows again, if each request needs a connection of its own.
        self._requests += 2
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
            case Operation.log_artifact | Operation.log_model_artifact:
                self.body_bytes += payload.size
            case Operation.finish_run:
                self.body_bytes += len(update_run_body(_RUN_ID, _NOW_MS))
            case _ if isinstance(payload, Batch):
                self.body_bytes += len(log_batch_body(_RUN_ID, payload))
            case _ if operation is not Operation.get_run:
                body = request_of(operation, payload, Where("0", _RUN_ID)).body
                self.body_bytes += len(body or "")
        return imagined(operation, payload)

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


def estimate(plan: Plan) -> Estimate:
    """Return what a plan sends if nothing fails, warm-up included; bodies differ by a few bytes from run to run.

    Users who go on for a duration send at least this, where a rate says how often about this.
    """
    runs = requests = body_bytes = connections = 0
    warmup = [Rung(plan.warmup, plan.rungs[0].variation)] * bool(plan.warmup)
    for rung in (*warmup, *plan.rungs * plan.repeats):
        varied = plan.varied(rung.variation)
        due = ceil(varied.rate * varied.duration / rung.size)
        iterations, alone = max(1, varied.iterations, due), not plan.users
        if warmup and rung is warmup[0]:
            iterations, alone = 1, True
        kinds, open_at_once = [], 0
        for number, alike in workloads.kinds(varied, rung.size).items():
            whole, played = _runs(varied, rung.size, number, iterations, alone=alone)
            kinds.append(dict(whole.requests))
            open_at_once += alike * whole.connections
            for paper, count in played:
                runs += alike * count
                requests += alike * count * paper.requests.total()
                body_bytes += alike * count * paper.body_bytes
        connections = max(connections, open_at_once)
    before = _prefill_requests(plan)
    return Estimate(
        runs=runs,
        requests_per_run=tuple(kinds),
        requests=requests,
        body_bytes=body_bytes,
        # One row for each request, one for the connection; MLflow's client has one for each call, too.
        journal_bytes=((2 if plan.client == "stock" else 1) * requests + runs + 2 * before) * ROW.size,
        connections=connections,
        prefill=before,
    )


def _prefill_requests(plan: Plan) -> int:
    prefill = workloads.prefilled(plan)
    if prefill is None:
        return 0

    async def play(number: int) -> int:
        paper = _Paper(1, split=True)
        await prefill.play(Content(plan, "").unit(number, prefill.holds), paper)
        return paper.requests.total()

    # There may be two kinds of units: those at the beginning and those at the end.
    return prefill.units * max(asyncio.run(play(number)) for number in (0, prefill.units - 1))


def _runs(
    plan: Plan, size: int, number: int, iterations: int, *, alone: bool
) -> tuple[_Paper, list[tuple[_Paper, int]]]:
    """Return a run with so many iterations, and the runs of one place with their number: it alone, or all of a user."""
    whole = _on_paper(plan, size, number, iterations)
    count, rest = (1, 0) if alone else divmod(iterations, whole.turns)
    return whole, [(whole, count), *([(_on_paper(plan, size, number, rest), 1)] if rest else [])]


@cache
def _on_paper(plan: Plan, size: int, number: int, iterations: int) -> _Paper:
    paper = _Paper(iterations, split=plan.split)
    asyncio.run(workloads.load(plan.workload)(Content(plan, "0" * 12, size).run(0, number), paper))
    return paper
