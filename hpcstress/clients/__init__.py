"""Who sends: one interface, written once for every workload, and the ways a request can travel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hpcstress.clients.answer import Failed
from hpcstress.content import Artifact, Batch, Metric
from hpcstress.record import LEFT_TO_CLIENTS, OPTIONAL, Operation, Outcome
from hpcstress.training import Training

# The stock client's own limits: it splits what is larger.
PARAMS_PER_REQUEST = 100
METRICS_PER_REQUEST = 1000
TAGS_PER_REQUEST = 100

# Tells when the iteration after so many is due, at that instant; None when there is none.
Turn = Callable[[int], Awaitable[int | None]]

# A row has two bytes for the number of its request: a run that goes on for hours ends before, and another begins.
MOST_REQUESTS = 60_000


async def no_turn(done: int) -> int | None:
    """Allow a single iteration, the one that a run begins with."""
    del done
    return None


@dataclass(frozen=True)
class Place:
    """Say where on the server the load goes, in terms of the server: what rank 0 has prepared for all.

    `shared_run` is the run that all write to, with the address of its artifacts, where a workload wants one;
    `prefilled` is the experiment with the data that was there before the load; `workspaces` tells whether the server
    has some: the name of one that is sent to another server is an error.
    """

    experiment_id: str
    shared_run: tuple[str, str] = ("", "")
    prefilled: str = ""
    workspaces: bool = False


class Search(NamedTuple):
    """Ask for what matches a filter in MLflow's language, at most so many at once.

    `least` is how many there have to be: an answer with fewer is a failure, since the server has lost something.
    """

    condition: str = ""
    max_results: int = 100
    order_by: tuple[str, ...] = ()
    least: int = 0


@dataclass
class Lacking:
    """Remember which optional operations the server has not, so that a rank leaves them out for the rest of a step."""

    operations: set[Operation] = field(default_factory=set)

    def ask_again(self) -> None:
        """Forget what was lacking before: every step has to show it."""
        self.operations.clear()


class Client(ABC):
    """Do what one user does. What an operation consists of stands here, how a request travels is the subclass's matter.

    Operations and requests are those of `mlflow.MlflowClient`: `log_artifact` asks for the run once, `finish_run` asks
    again. An operation that is not acknowledged raises `Failed`, and that ends the run. An optional operation that the
    server does not have is recorded as such, and left out from then on. What searches return are ids, names or paths.

    A client writes to the run that it created or joined last, in the experiment that it entered last.
    """

    __slots__ = ("_asked", "_done", "_due", "_lacking", "_place", "_requests", "_turn")

    def __init__(self, place: Place, lacking: Lacking, due: int = 0, turn: Turn = no_turn) -> None:
        self._place = place
        self._lacking = lacking
        self._due = due
        self._turn = turn
        self._done = 0
        self._requests = 0
        self._asked = False

    @property
    def place(self) -> Place:
        """Return what rank 0 has prepared for all."""
        return self._place

    @property
    def turns(self) -> int:
        """Return how many iterations the run has had: one if its workload knows of none."""
        return max(1, self._done)

    async def turn(self) -> bool:
        """Wait until the run's next iteration is due, and tell whether there is one; the first is the run's own."""
        if self._done:
            due = await self._turn(self._done) if self._requests < MOST_REQUESTS else None
            if due is None:
                return False
            self._due = due
        self._done += 1
        return True

    # A run.

    async def create_run(self, name: str, tags: Sequence[tuple[str, str]]) -> None:
        """Create the run that all further operations write to."""
        self._asked = False
        await self._request(Operation.create_run, (name, tags))

    async def join_run(self) -> None:
        """Write to the run that all users share."""
        self._asked = False
        self._adopt_run(*self._place.shared_run)

    async def log_params(self, params: Sequence[tuple[str, str]]) -> None:
        """Log parameters, at most 100 in a request."""
        for start in range(0, len(params), PARAMS_PER_REQUEST):
            await self._request(Operation.log_params, params[start : start + PARAMS_PER_REQUEST])

    async def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Log metrics, at most 1000 in a request."""
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            await self._request(Operation.log_metrics, metrics[start : start + METRICS_PER_REQUEST])

    async def log_param(self, param: tuple[str, str]) -> None:
        """Log one parameter by a request of its own."""
        await self._request(Operation.log_param, param)

    async def log_metric(self, metric: Metric) -> None:
        """Log one metric by a request of its own."""
        await self._request(Operation.log_metric, metric)

    async def log_batch(self, batch: Batch, operation: Operation = Operation.log_batch) -> None:
        """Log metrics, parameters and tags as `operation`; what one request cannot hold is split as MLflow does."""
        for part in batch.split(METRICS_PER_REQUEST, PARAMS_PER_REQUEST, TAGS_PER_REQUEST):
            await self._request(operation, part)

    async def set_tag(self, key: str, value: str) -> None:
        """Set one tag of the run."""
        await self._request(Operation.set_tags, (key, value))

    async def log_artifact(self, artifact: Artifact) -> None:
        """Upload an artifact; its bytes are made while they are sent."""
        if Operation.log_artifact in self._lacking.operations:
            return
        await self._ask_for_run()
        await self._stored(Operation.log_artifact, artifact)

    async def put_artifact(self, artifact: Artifact) -> None:
        """Upload an artifact as somebody does who speaks REST: without a look at the run before."""
        await self._stored(Operation.log_artifact, artifact)

    async def log_artifacts(self, artifacts: Sequence[Artifact], at_once: int = 1) -> None:
        """Upload artifacts, so many at once; after one has failed no other begins."""
        if Operation.log_artifact in self._lacking.operations:
            return
        await self._ask_for_run()
        try:
            await self._request_each(Operation.log_artifact, artifacts, at_once)
        except Failed as failure:
            self._leave_out(Operation.log_artifact, failure)

    async def finish_run(self) -> None:
        """Set the run's status to FINISHED, as `mlflow.end_run` does: it looks at the run first."""
        await self._request(Operation.get_run, None)
        await self.set_terminated()

    async def set_terminated(self) -> None:
        """Set the run's status to FINISHED, as `MlflowClient.set_terminated` does."""
        await self._request(Operation.finish_run, None)

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Wait until nobody else on the rank trains, where MLflow can have only one training in a process."""
        return nullcontext()

    async def train(self, training: Training) -> None:
        """Train a model under MLflow's autologging: here, send what MLflow's client sends meanwhile."""
        if not training.of_forest:
            await self.get_run()
        await self.log_batch(training.estimator)
        await self.ask(Operation.log_inputs, training.trained)
        if training.of_forest:
            await self.get_run()
        created = await self.ask(Operation.create_logged_model, training.model)
        for model_id in created:
            await self.ask(Operation.log_outputs, model_id)
            await self.get_run()
            await self.ask(Operation.get_logged_model, model_id)
            for file in training.files(model_id):
                await self.ask(Operation.log_model_artifact, file)
            await self.ask(Operation.finish_logged_model, model_id)
        await self.log_artifact(training.page)
        await self.log_batch(training.measured(*created[:1] or [""]))
        if training.tested is not None:
            await self.ask(Operation.log_inputs, training.tested)

    # What people look at.

    async def create_experiment(self, name: str, tags: Sequence[tuple[str, str]]) -> None:
        """Create an experiment and enter it."""
        await self._request(Operation.create_experiment, (name, tags))

    def enter_workspace(self, name: str) -> None:
        """Do what follows in a workspace of the server; `place` tells whether it has some."""
        del name

    async def enter_experiment(self, experiment_id: str) -> None:
        """Do what follows in an experiment that is there already."""
        self._enter(experiment_id)

    async def get_experiment(self) -> None:
        """Look at the experiment."""
        await self._request(Operation.get_experiment, None)

    async def search_experiments(self, search: Search) -> Sequence[str]:
        """Return the ids of experiments."""
        return await self._request(Operation.search_experiments, search)

    async def search_runs(self, search: Search) -> Sequence[str]:
        """Return the ids of runs in the experiment."""
        return await self._request(Operation.search_runs, search)

    def enter_run(self, run_id: str) -> None:
        """Do what follows with a run that is there already."""
        self._asked = False
        self._adopt_run(run_id, "")

    async def get_run(self, run_id: str = "") -> None:
        """Look at a run, which is this client's own from now on; at its own without an id."""
        if run_id:
            self.enter_run(run_id)
        await self._request(Operation.get_run, None)

    async def get_metric_history(self, key: str) -> None:
        """Read all points of one metric of the run, page by page."""
        token = ""
        while True:
            told = await self._request(Operation.get_metric_history, (key, token))
            # A page that leads to itself would be read for ever.
            if not told or told[0] == token:
                return
            token = told[0]

    async def list_artifacts(self) -> Sequence[str]:
        """Return the paths of the run's artifacts."""
        return await self._stored(Operation.list_artifacts, None)

    async def download_artifact(self, path: str) -> None:
        """Read an artifact of the run and throw it away."""
        await self._stored(Operation.download_artifact, path)

    async def ask(self, operation: Operation, payload: Any) -> Sequence[str]:
        """Ask for something that not every server has; return nothing from one that has it not."""
        assert operation in OPTIONAL
        if operation in self._lacking.operations:
            return ()
        try:
            return await self._request(operation, payload)
        except Failed as failure:
            if failure.answer.outcome is not Outcome.not_supported:
                raise
            self._lacking.operations.add(operation)
            return ()

    async def _stored(self, operation: Operation, payload: Any) -> Sequence[str]:
        """Do something with artifacts; nothing, and return nothing, where the server leaves them to its clients."""
        assert operation in LEFT_TO_CLIENTS
        if operation in self._lacking.operations:
            return ()
        try:
            return await self._request(operation, payload)
        except Failed as failure:
            self._leave_out(operation, failure)
            return ()

    def _leave_out(self, operation: Operation, failure: Failed) -> None:
        """Do without an operation that the server leaves to its clients; raise any other failure again."""
        if failure.answer.outcome is not Outcome.not_supported or failure.answer.status:
            raise failure
        self._lacking.operations.add(operation)

    async def _ask_for_run(self) -> None:
        if not self._asked:
            await self._request(Operation.get_run, None)
            self._asked = True

    async def _request_each(self, operation: Operation, payloads: Sequence[Any], at_once: int) -> None:
        """Send a request for each payload, so many at once if the subclass can; raise `Failed` if one of them fails."""
        del at_once
        for payload in payloads:
            await self._request(operation, payload)

    @abstractmethod
    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        """Send one request, record its attempts, return what was found; raise `Failed` unless it is acknowledged."""

    def _adopt_run(self, run_id: str, artifact_uri: str) -> None:
        """Write to this run from now on."""
        del run_id, artifact_uri

    def _enter(self, experiment_id: str) -> None:
        """Do what follows in this experiment."""
        del experiment_id

    def take_over(self, before: Client) -> None:
        """Go on with what a client holds that has nothing more to do: users keep their connection from run to run."""
        del before

    @abstractmethod
    def close(self) -> None:
        """Let go of what the run held."""
