"""Who sends: one interface, written once for every workload, and the ways a request can travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from hpcstress.content import Artifact, Metric
from hpcstress.record import Operation

# The stock client's own limits: it splits what is larger.
PARAMS_PER_REQUEST = 100
METRICS_PER_REQUEST = 1000


class Client(ABC):
    """Log one run. What an operation consists of stands here; how one request travels is the subclass's business.

    Operations and requests are those of `mlflow.MlflowClient`: create_run, log_batch, log_artifact (which asks for the
    run once), set_terminated (which asks again). An operation that is not acknowledged raises `Failed`.
    """

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = False

    async def create_run(self, name: str, tags: Sequence[tuple[str, str]]) -> None:
        """Create the run that all further operations write to."""
        await self._request(Operation.create_run, (name, tags))

    async def log_params(self, params: Sequence[tuple[str, str]]) -> None:
        """Log parameters, at most 100 in a request."""
        for start in range(0, len(params), PARAMS_PER_REQUEST):
            await self._request(Operation.log_params, params[start : start + PARAMS_PER_REQUEST])

    async def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log metrics, at most 1000 in a request."""
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            await self._request(Operation.log_metrics, metrics[start : start + METRICS_PER_REQUEST])

    async def log_artifact(self, artifact: Artifact) -> None:
        """Upload an artifact; its bytes are made while they are sent."""
        if not self._asked:
            await self._request(Operation.get_run, None)
            self._asked = True
        await self._request(Operation.log_artifact, artifact)

    async def finish_run(self) -> None:
        """Set the run's status to FINISHED."""
        await self._request(Operation.get_run, None)
        await self._request(Operation.finish_run, None)

    @abstractmethod
    async def _request(self, operation: Operation, payload: Any) -> None:
        """Send one request and record its attempts; raise `Failed` unless it is acknowledged."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the run held."""
