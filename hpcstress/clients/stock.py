"""MLflow's own client, as a user's job has it: a thread for each run, its pool of connections, its hidden retries.

MLflow is imported when the client is opened, before any load, and by nobody else. Each call is one row with the attempt
0, behind the rows of the attempts that it consisted of (`attempts`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from hpcstress.clients import Client, Lacking, Place, Search, Turn, no_turn
from hpcstress.clients.answer import Failed
from hpcstress.clients.attempts import TRAIL, Abandoned, Trail, Unmet, watching, watching_stores
from hpcstress.clients.autologging import autologging, fit
from hpcstress.clients.requests import Where, artifact_path, found_by, request_of
from hpcstress.content import Artifact, Batch, Metric
from hpcstress.errors import Refusal
from hpcstress.journal import Journal
from hpcstress.quantity import is_store
from hpcstress.record import Operation, Outcome
from hpcstress.target import Target
from hpcstress.training import Training

T = TypeVar("T")

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_FAREWELL_SECONDS = 2.0
# Which one a bare postgresql:// asks for depends on the version of SQLAlchemy.
_DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}
_SPARE_CONNECTIONS = 16


class Settings(NamedTuple):
    """Say how MLflow's client is to be set up: where to, with which sign-in, how patient, for how many runs at once.

    `environment` is what the sign-in is taken from, at a server that hpcstress has started not this process's own. A
    target is there for its token, which changes. Who `trains` needs scikit-learn, too. MLflow counts whole seconds: a
    timeout is rounded up.
    """

    uri: str
    environment: Mapping[str, str]
    timeout: float
    patient: bool
    at_once: int
    largest_artifact: int = 0
    target: Target | None = None
    trains: bool = False

    @property
    def variables(self) -> dict[str, str | None]:
        """Return the environment in which MLflow's client works; None stands for a variable that must not be there."""
        connections = str(self.at_once + _SPARE_CONNECTIONS)
        mantik = self.target is not None and self.target.mantik is not None
        return {
            **self.environment,
            # To MLflow they go before a token.
            **({"MLFLOW_TRACKING_USERNAME": None, "MLFLOW_TRACKING_PASSWORD": None} if mantik else {}),
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_TOKEN": self.environment.get("MLFLOW_TRACKING_TOKEN"),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(self.timeout)),
            "MLFLOW_HTTP_POOL_CONNECTIONS": connections,
            "MLFLOW_HTTP_POOL_MAXSIZE": connections,
            # Nobody is to be told of a test but the server that is tested.
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            **({} if self.patient else {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}),
        }


class Stock:
    """Hold what the stock clients of a rank share: MLflow's client, the journal, a folder for files to upload."""

    def __init__(self, settings: Settings, journal: Journal, place: Place, mlflow: Any, folder: Path) -> None:
        self.settings = settings
        self.journal = journal
        self.place = place
        self.lacking = Lacking()
        self.mlflow = mlflow
        self.tracking = mlflow.MlflowClient(settings.uri)
        self.folder = folder
        self.lock = threading.Lock()
        self.lanes: set[Lane] = set()
        self._training: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def client(self, run: int, due: int, turn: Turn = no_turn) -> StockClient:
        """Return the client of one run that is due at an instant of the local monotonic clock (nanoseconds)."""
        # A rank's own work goes on without a collector. MLflow's leaves 8 kB behind with each request.
        gc.enable()
        self._renew()
        return StockClient(self, run, due, turn)

    def training(self) -> asyncio.Lock:
        """Return what lets one training at a time go on; each step has an event loop of its own."""
        loop = asyncio.get_running_loop()
        if self._training is None or self._training[0] is not loop:
            self._training = loop, asyncio.Lock()
        return self._training[1]

    def expire(self) -> None:
        """Let MLflow's client use the newest token; its requests expire in itself."""
        self._renew()

    def _renew(self) -> None:
        target = self.settings.target
        if target is not None and target.token is not None:
            os.environ["MLFLOW_TRACKING_TOKEN"] = target.token.access

    def close(self) -> None:
        """Wait a moment for threads that end by themselves; others end with the process."""
        until = time.monotonic() + _FAREWELL_SECONDS
        for lane in list(self.lanes):
            lane.end()
            lane.join(max(0.0, until - time.monotonic()))


@contextmanager
def opened(settings: Settings, journal: Journal, place: Place) -> Iterator[Stock]:
    """Import MLflow, and set up its client until the block ends; refuse where it is missing or has no room."""
    with ExitStack() as resources:
        resources.enter_context(setting(settings.variables))
        mlflow = importing()
        resources.enter_context(_silence(mlflow))
        resources.enter_context(_fresh(mlflow))
        resources.enter_context(watching())
        if is_store(settings.uri):
            resources.enter_context(watching_stores(_methods_of_stores()))
        if settings.trains:
            resources.enter_context(autologging())
        folder = Path(tempfile.mkdtemp(prefix="hpcstress-"))
        resources.callback(shutil.rmtree, folder, ignore_errors=True)
        _check_room(folder, settings)
        # What is there from the beginning is never looked at again by the collector.
        gc.collect()
        gc.freeze()
        resources.callback(gc.unfreeze)
        with refusing(settings.uri):
            stock = Stock(settings, journal, place, mlflow, folder)
        resources.callback(stock.close)
        yield stock


@contextmanager
def setting(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of this process's environment until the block ends; None removes one."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def importing() -> Any:
    """Return what hpcstress uses of MLflow, as one object; refuse where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow.artifacts
            import mlflow.tracking._tracking_service.client as service
            import mlflow.tracking.request_header.registry  # noqa: F401 (the first request would import it)
            from mlflow import MlflowClient
            from mlflow.entities import LoggedModelStatus, Metric, Param, RunStatus, RunTag
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
            from mlflow.tracking import fluent
            from mlflow.tracking._model_registry.client import ModelRegistryClient
            from mlflow.tracking._tracking_service import utils
            from mlflow.utils import request_utils, rest_utils
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.workspace_context import set_server_request_workspace
    except ImportError as error:
        raise Refusal(
            f"The stock client needs MLflow 3.17 or newer ({error}): install it with `pip install 'hpcstress[stock]'`, "
            "or take --client wire."
        ) from None
    return SimpleNamespace(
        MlflowClient=MlflowClient,
        LoggedModelStatus=LoggedModelStatus,
        Metric=Metric,
        Param=Param,
        RunStatus=RunStatus,
        RunTag=RunTag,
        fluent=fluent,
        service=service,
        ModelRegistryClient=ModelRegistryClient,
        sessions=request_utils._cached_get_request_session,  # noqa: SLF001 (nothing public forgets them)
        artifact_stores=utils._artifact_repos_cache,  # noqa: SLF001
        artifact_store=get_artifact_repository,
        http_request=rest_utils.http_request,
        credentials=get_default_host_creds,
        set_workspace=set_server_request_workspace,
    )


@contextmanager
def _silence(mlflow: Any) -> Iterator[None]:
    """Let MLflow print nothing: 1000 runs would print 2000 addresses, and each retry a warning."""
    with warnings.catch_warnings():
        # Those of its libraries about each other are nobody's business here.
        warnings.simplefilter("ignore")
        yield from _muted(mlflow)


def _muted(mlflow: Any) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3.connectionpool", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # Its own switch would also leave out the request that it makes in order to print.
    printed = mlflow.service.sys
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a name of the system, not a path)
        mlflow.service.sys = SimpleNamespace(stdout=nowhere)
        try:
            yield
        finally:
            mlflow.service.sys = printed
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def _fresh(mlflow: Any) -> Iterator[None]:
    """Let nothing of another job be used, which had another server and another pool, nor anything be left behind."""
    mlflow.sessions.cache_clear()
    mlflow.artifact_stores.clear()
    try:
        yield
    finally:
        mlflow.sessions.cache_clear()
        mlflow.artifact_stores.clear()


def _methods_of_stores() -> dict[tuple[type, str], tuple[Operation, ...]]:
    """Return what stands for a request where there is no server: MLflow's client calls each of these once."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.abstract_store import AbstractStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from hpcstress.clients.attempts import BATCHES

    return {
        (SqlAlchemyStore, "create_run"): (Operation.create_run,),
        (SqlAlchemyStore, "get_run"): (Operation.get_run,),
        (SqlAlchemyStore, "update_run_info"): (Operation.finish_run,),
        (SqlAlchemyStore, "log_batch"): BATCHES,
        (SqlAlchemyStore, "log_param"): (Operation.log_param,),
        (SqlAlchemyStore, "log_metric"): (Operation.log_metric,),
        (SqlAlchemyStore, "set_tag"): (Operation.set_tags,),
        (SqlAlchemyStore, "create_experiment"): (Operation.create_experiment,),
        (SqlAlchemyStore, "get_experiment"): (Operation.get_experiment,),
        (SqlAlchemyStore, "search_experiments"): (Operation.search_experiments,),
        (AbstractStore, "search_runs"): (Operation.search_runs,),
        (SqlAlchemyStore, "get_metric_history"): (Operation.get_metric_history,),
        (Registry, "create_registered_model"): (Operation.create_model, Operation.create_prompt),
        (Registry, "create_model_version"): (Operation.create_model_version, Operation.create_prompt_version),
        (Registry, "search_registered_models"): (Operation.search_models, Operation.search_prompts),
        (LocalArtifactRepository, "log_artifact"): (Operation.log_artifact,),
        (LocalArtifactRepository, "list_artifacts"): (Operation.list_artifacts,),
        (LocalArtifactRepository, "download_artifacts"): (Operation.download_artifact,),
    }


def _check_room(folder: Path, settings: Settings) -> None:
    needed, free = settings.at_once * settings.largest_artifact, shutil.disk_usage(folder).free
    if needed > free:
        raise Refusal(
            f"MLflow's client uploads files: {settings.at_once} runs at once need {needed >> 20} MiB in "
            f"{folder.parent}, which has {free >> 20}: set TMPDIR to a larger place, or take --client wire."
        )


@contextmanager
def refusing(uri: str) -> Iterator[None]:
    """Turn what MLflow says about an address before any load into one sentence."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001 (whatever MLflow and its drivers raise: it is told, and ends the job)
        reason = " ".join(str(error).split())[:300]
        package = _DRIVERS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
        advice = f": install it with `pip install '{package}'`." if package else ""
        raise Refusal(f"MLflow's client cannot work with {uri}: {reason or type(error).__name__}{advice}") from None


class Lane(threading.Thread):
    """Be the thread of one run: MLflow's client works here, one call after the other."""

    def __init__(self, lanes: set[Lane], trail: Trail) -> None:
        super().__init__(name="hpcstress-run", daemon=True)
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._lanes = lanes
        self._trail = trail
        try:
            self.start()
        except RuntimeError:
            raise Refusal(
                "This machine cannot start more threads: use more ranks on more nodes, or raise its limits (ulimit -u)."
            ) from None
        lanes.add(self)

    async def do(self, function: Callable[[], T]) -> T:
        """Call a function in the thread, and return what it returns."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((function, future))
        return await future

    def end(self) -> None:
        """End the thread once it has nothing to do."""
        self._jobs.put(None)

    def run(self) -> None:
        TRAIL.set(self._trail)
        while (job := self._jobs.get()) is not None:
            function, future = job
            result = error = None
            try:
                result = function()
            except Abandoned:
                break
            except BaseException as raised:  # noqa: BLE001 (it goes to whoever waits)
                error = raised
            # Who has stopped waiting may have closed its loop.
            with suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            del job, function, future, result, error
        self._lanes.discard(self)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class StockClient(Client):
    """Do what one run does with MLflow's client, in a thread of its own, and record every call and every attempt."""

    __slots__ = ("_experiment_id", "_files", "_lane", "_run", "_run_id", "_stock", "_trail", "_uri", "_workspace")

    def __init__(self, stock: Stock, run: int, due: int, turn: Turn = no_turn) -> None:
        super().__init__(stock.place, stock.lacking, due, turn)
        self._stock = stock
        self._trail = Trail(stock.journal, stock.lock, run)
        self._lane: Lane | None = None
        self._experiment_id = stock.place.experiment_id
        self._run_id = ""
        self._run: Any = None
        self._uri = ""
        self._workspace: str | None = None
        self._files = stock.folder / str(run)

    async def perform(self, operation: Operation, function: Callable[[], T]) -> T:
        """Call a function in the run's thread, as one call of an operation; MLflow's fluent API has the run active."""
        fluent = self._stock.mlflow.fluent

        def act() -> T:
            active = fluent.ActiveRun(self._run or self._stock.tracking.get_run(self._run_id))
            stack = fluent._active_run_stack.get()  # noqa: SLF001 (whatever is public asks the server for the run)
            stack.append(active)
            try:
                return function()
            finally:
                # The function may have ended the run.
                stack[:] = [run for run in stack if run is not active]

        return await self._call(operation, act)

    def enter_workspace(self, name: str) -> None:
        self._workspace = name

    async def log_params(self, params: Sequence[tuple[str, str]]) -> None:
        if params:
            await self._request(Operation.log_params, Batch(params=params))

    async def log_metrics(self, metrics: Sequence[Metric]) -> None:
        if metrics:
            await self._request(Operation.log_metrics, Batch(metrics=metrics))

    async def log_batch(self, batch: Batch, operation: Operation = Operation.log_batch) -> None:
        if any(batch):
            await self._request(operation, batch)

    async def log_artifact(self, artifact: Artifact) -> None:
        """Upload an artifact; it is written to a file before, which is gone afterwards."""
        path = self._files / artifact.path
        folder = str(PurePosixPath(artifact.path).parent)
        upload = partial(self._stock.tracking.log_artifact, self._run_id, str(path), None if folder == "." else folder)
        await self._upload({path: artifact}, upload)

    async def put_artifact(self, artifact: Artifact) -> None:
        """Upload an artifact to where the run had it when it was created."""
        path = self._files / artifact.path
        folder, uri = str(PurePosixPath(artifact.path).parent), self._stock.settings.uri

        def upload() -> None:
            store = self._stock.mlflow.artifact_store(self._uri, tracking_uri=uri)
            store.log_artifact(str(path), None if folder == "." else folder)

        await self._upload({path: artifact}, upload)

    async def log_artifacts(self, artifacts: Sequence[Artifact], at_once: int = 1) -> None:
        """Upload a folder of artifacts, as MLflow's client does it: one after the other, in the folder's order."""
        del at_once
        files = {self._files / artifact.path: artifact for artifact in artifacts}
        await self._upload(files, partial(self._stock.tracking.log_artifacts, self._run_id, str(self._files)))

    async def _upload(self, files: Mapping[Path, Artifact], upload: Callable[[], None]) -> None:
        def write() -> None:
            for path, artifact in files.items():
                _write(path, artifact)

        try:
            await self._own_lane().do(write)
            # What is ready before the call would be made while it is sent, with the wire client.
            self._due = monotonic_ns()
            await self._call(Operation.log_artifact, upload)
        except asyncio.CancelledError:
            self._trail.abandon()
            raise
        finally:
            shutil.rmtree(self._files, ignore_errors=True)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until nobody else on the rank trains: MLflow's autologging keeps what it does in globals."""
        async with self._stock.training():
            # Who waited for a turn was not late.
            self._due = monotonic_ns()
            yield

    async def train(self, training: Training) -> None:
        """Train truly, in the run's thread; as for any user, autologging hides its own failures."""
        await self.perform(Operation.train, lambda: fit(training))

    async def finish_run(self) -> None:
        await self._call(Operation.finish_run, lambda: self._stock.tracking.set_terminated(self._run_id))

    async def get_metric_history(self, key: str) -> None:
        await self._request(Operation.get_metric_history, (key, ""))

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        return await self._call(operation, lambda: self._look(operation, payload))

    async def _call(self, operation: Operation, function: Callable[[], T]) -> T:
        trail = self._trail
        trail.due = self._due

        def call() -> tuple[T | None, Failed | None]:
            self._stock.mlflow.set_workspace(self._workspace)
            trail.begin(operation)
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 (the trail tells a failure from what is none)
                return None, Failed(trail.end(error))
            trail.end()
            return result, None

        try:
            result, failed = await self._own_lane().do(call)
        except asyncio.CancelledError:
            trail.abandon()
            raise
        self._due, self._requests = trail.due, trail.seq
        if failed is not None:
            raise failed
        return result  # type: ignore[return-value]

    def _own_lane(self) -> Lane:
        if self._lane is None:
            self._lane = Lane(self._stock.lanes, self._trail)
        return self._lane

    def _look(self, operation: Operation, payload: Any) -> Sequence[str]:
        found = self._act(operation, payload)
        if isinstance(payload, Search) and len(found) < payload.least:
            raise Unmet(Outcome.missing, f"{len(found)} were found, at least {payload.least} have to be there")
        return found

    def _act(self, operation: Operation, payload: Any) -> Sequence[str]:
        """Do an operation as a user of MLflow's client does it, in the run's thread."""
        client, run_id = self._stock.tracking, self._run_id
        found: Sequence[str] = ()
        match operation:
            case Operation.create_run:
                name, tags = payload
                self._created(client.create_run(self._experiment_id, tags=dict(tags), run_name=name))
            case Operation.finish_run:
                # Without the look at the run that MLflow's client takes in order to print where it can be seen.
                status, now = self._stock.mlflow.RunStatus.FINISHED, time.time_ns() // 10**6
                client._tracking_client.store.update_run_info(run_id, status, now, None)  # noqa: SLF001
            case Operation.log_param:
                client.log_param(run_id, *payload)
            case Operation.log_metric:
                client.log_metric(run_id, payload.key, payload.value, payload.timestamp, payload.step)
            case Operation.set_tags:
                client.set_tag(run_id, *payload)
            case Operation.get_run:
                self._created(client.get_run(run_id))
            case Operation.create_experiment:
                name, tags = payload
                self._experiment_id = client.create_experiment(name, tags=dict(tags))
                found = [self._experiment_id]
            case Operation.get_experiment:
                client.get_experiment(self._experiment_id)
            case Operation.search_experiments:
                listed = client.search_experiments(
                    filter_string=payload.condition or None,
                    max_results=payload.max_results,
                    order_by=list(payload.order_by) or None,
                )
                found = [experiment.experiment_id for experiment in listed]
            case Operation.search_runs:
                listed = client.search_runs(
                    [self._experiment_id],
                    payload.condition,
                    max_results=payload.max_results,
                    order_by=list(payload.order_by) or None,
                )
                found = [run.info.run_id for run in listed]
            case Operation.get_metric_history:
                client.get_metric_history(run_id, payload[0])
            case Operation.list_artifacts:
                found = [file.path for file in client.list_artifacts(run_id) if not file.is_dir]
            case Operation.download_artifact:
                self._download(payload)
            case _ if isinstance(payload, Batch):
                self._log(payload)
            case _:
                found = self._act_optionally(operation, payload)
        return found

    def _act_optionally(self, operation: Operation, payload: Any) -> Sequence[str]:
        client = self._stock.tracking
        match operation:
            case Operation.list_workspaces:
                return [workspace.name for workspace in client.list_workspaces()]
            case Operation.create_model:
                name, tags = payload
                client.create_registered_model(name, dict(tags))
            case Operation.create_model_version:
                name, source, tags, *model = payload
                client.create_model_version(
                    name, source, self._run_id, dict(tags), await_creation_for=0, model_id=model[0] if model else None
                )
            case Operation.create_prompt:
                name, tags = payload
                self._registry().create_registered_model(name, dict(tags))
            case Operation.create_prompt_version:
                name, source, tags = payload
                self._registry().create_model_version(name, source, None, dict(tags), await_creation_for=0)
            case Operation.create_logged_model:
                (name, params, tags), run_id = payload, self._run_id or None
                made = client.create_logged_model(
                    self._experiment_id, name, run_id, dict(tags) or None, dict(params) or None
                )
                return [made.model_id]
            case Operation.finish_logged_model:
                client.finalize_logged_model(payload, self._stock.mlflow.LoggedModelStatus.READY)
            case Operation.search_traces:
                listed = client.search_traces(
                    locations=[self._experiment_id],
                    filter_string=payload.condition or None,
                    max_results=payload.max_results,
                    order_by=list(payload.order_by) or None,
                    include_spans=False,
                )
                return [trace.info.trace_id for trace in listed]
            case Operation.get_trace:
                client.get_trace(payload)
            case Operation.search_models:
                listed = client.search_registered_models(payload.condition or None, max_results=payload.max_results)
                return [model.name for model in listed]
            case Operation.search_prompts:
                return [prompt.name for prompt in client.search_prompts()]
            case _:
                return self._send(operation, payload)
        return ()

    def _send(self, operation: Operation, payload: Any) -> Sequence[str]:
        """Send what MLflow's client has no call for with its means: its sign-in, its connections, its patience."""
        uri, mlflow = self._stock.settings.uri, self._stock.mlflow
        request = request_of(operation, payload, Where(self._experiment_id, self._run_id, artifact_path(self._uri)))
        headers = dict(line.split(": ", 1) for line in request.headers)
        if request.body is not None:
            headers["Content-Type"] = request.kind
        answer = mlflow.http_request(
            mlflow.credentials(uri), request.path, request.method, data=request.body, extra_headers=headers
        )
        answer.raise_for_status()
        return found_by(operation, answer.content)

    def _registry(self) -> Any:
        # Below the class that refuses a prompt's tags, and makes more requests of a prompt than the seeds do.
        uri = self._stock.settings.uri
        return self._stock.mlflow.ModelRegistryClient(uri, uri)

    def _created(self, run: Any) -> None:
        if not _ID.fullmatch(run.info.run_id):
            raise ValueError("the server names no run")
        self._run, self._run_id, self._uri = run, run.info.run_id, run.info.artifact_uri

    def _log(self, batch: Batch) -> None:
        mlflow = self._stock.mlflow
        self._stock.tracking.log_batch(
            self._run_id,
            metrics=[mlflow.Metric(*metric) for metric in batch.metrics],
            params=[mlflow.Param(*param) for param in batch.params],
            tags=[mlflow.RunTag(*tag) for tag in batch.tags],
        )

    def _download(self, path: str) -> None:
        self._files.mkdir(exist_ok=True)
        try:
            self._stock.tracking.download_artifacts(self._run_id, path, str(self._files))
        finally:
            shutil.rmtree(self._files, ignore_errors=True)

    def _adopt_run(self, run_id: str, artifact_uri: str) -> None:
        self._run_id, self._uri = run_id, artifact_uri

    def _enter(self, experiment_id: str) -> None:
        self._experiment_id = experiment_id

    def close(self) -> None:
        if self._lane is not None:
            self._lane.end()
        if self._files.exists():
            shutil.rmtree(self._files, ignore_errors=True)


def _write(path: Path, artifact: Artifact) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in artifact.chunks():
                file.write(chunk)
    except OSError as error:
        raise Refusal(
            f"MLflow's client uploads files, and {error.filename or path} cannot be written ({error.strerror}): "
            "set TMPDIR to a larger place, or take --client wire."
        ) from None
