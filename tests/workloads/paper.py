"""A client that writes down what a workload asks for, and answers as if the server had everything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hpcstress.clients import Client, Lacking, Place
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.requests import imagined
from hpcstress.content import Content, Run
from hpcstress.plan import Plan
from hpcstress.record import Operation, Outcome
from hpcstress.workloads import load


class Recorder(Client):
    """Fail at one request, if it is told to; have so many iterations."""

    def __init__(self, turns: int = 1, fails_at: int = -1) -> None:
        super().__init__(Place("1", prefilled="7"), Lacking(), turn=self._counted)
        self._most = turns
        self._fails_at = fails_at
        self.requests: list[tuple[Operation, Any]] = []
        self.experiments = ["1"]
        self.runs: list[str] = []

    async def _counted(self, done: int) -> int | None:
        return 0 if done < self._most else None

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        self.requests.append((operation, payload))
        if len(self.requests) - 1 == self._fails_at:
            raise Failed(Answer(Outcome.server_error, 500, 0, 0, 0, b""))
        return imagined(operation, payload)

    def _enter(self, experiment_id: str) -> None:
        self.experiments.append(experiment_id)

    def _adopt_run(self, run_id: str, artifact_uri: str) -> None:
        del artifact_uri
        self.runs.append(run_id)

    def close(self) -> None: ...


def run_of(plan: Plan, number: int = 5) -> Run:
    return Content(plan, "session", 20).run(0, number)


def played(plan: Plan, turns: int = 1, fails_at: int = -1) -> Recorder:
    """Play one run of a plan's workload."""
    client = Recorder(turns, fails_at)
    try:
        asyncio.run(load(plan.workload)(run_of(plan), client))
    except Failed:
        assert fails_at >= 0
    return client


def names(client: Recorder) -> list[str]:
    return [operation.name for operation, _ in client.requests]
