from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, product
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients import Client, Lacking, Place, Search
from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.requests import (
    API,
    Where,
    artifact_path,
    create_run_body,
    kept_at,
    log_batch_body,
    log_metrics_body,
    log_params_body,
    request_of,
    update_run_body,
)
from hpcstress.content import PART_TAG, Batch, Content, Run
from hpcstress.estimate import estimate
from hpcstress.plan import Plan
from hpcstress.record import OPTIONAL, READS, RECORD, Operation, Outcome
from hpcstress.replay import Acknowledged, Fault, Part, State, compare, found_state, replay
from hpcstress.workloads import Play, load
from hpcstress.workloads.parallel_runs import play as play_run
from tests.fake_mlflow import FakeMlflow
from tests.jobs import SMALL

# What has to be on the server, on paper.

plans = st.builds(
    Plan,
    params=st.integers(0, 250),
    metrics=st.integers(0, 1100),
    artifacts=st.integers(0, 3),
    seed=st.integers(0, 3),
)


KEPT = ("params", "metrics", "tags")


def a_run(plan: Plan) -> Run:
    return Content(plan, "session").run(0, 3)


def paper(run: Run, writes: int, finishes: int = 0) -> Part:
    """Return the one MLflow run that a run has made when so many of its writes were acknowledged."""
    [part] = asyncio.run(replay(play_run, run, writes, finishes)).parts
    return part


def writes(plan: Plan) -> int:
    """Return how many requests of a run leave something on the server."""
    [requests] = estimate(plan).requests_per_run
    return sum(count for name, count in requests.items() if Operation[name] not in READS)


@st.composite
def truths(draw: st.DrawFn) -> tuple[Run, Part, State]:
    """Draw how far a run was acknowledged, and any state that a truthful server may then be in."""
    plan = draw(plans)
    run = a_run(plan)
    told = paper(run, draw(st.integers(1, writes(plan))))
    sure, maybe = told.certain, told.possible
    share = draw(st.sampled_from([0, 1, 2, 3]))
    found = State(
        created=True,
        finished=sure.finished or (maybe.finished and draw(st.booleans())),
        params=sure.params | dict(list(maybe.params.items())[::share] if share else {}),
        metrics=sure.metrics | dict(list(maybe.metrics.items())[::share] if share else {}),
        # A server adds tags of its own.
        tags=sure.tags | {"mlflow.user": "unknown"},
    )
    return run, told, found


@given(truths())
def test_whatever_a_truthful_server_may_hold_is_found_in_order(truth: tuple[Run, Part, State]) -> None:
    run, told, found = truth
    assert compare(run.name, told, found) == []


@given(truths(), st.data())
def test_any_single_loss_is_found_as_missing(truth: tuple[Run, Part, State], data: st.DataObject) -> None:
    run, told, found = truth
    sure = told.certain
    kinds = {name: [*getattr(sure, name)] for name in KEPT} | {"finished": [""] * sure.finished}
    what = data.draw(st.sampled_from([what for what, keys in kinds.items() if keys]))
    key = data.draw(st.sampled_from(kinds[what]))
    if what == "finished":
        found.finished = False
    else:
        del getattr(found, what)[key]
    [finding] = compare(run.name, told, found)
    assert finding.fault is Fault.missing
    assert finding.sentence.startswith(f"{run.name}: ")
    assert key in finding.sentence


@given(truths(), st.data())
def test_any_single_change_is_found_as_wrong(truth: tuple[Run, Part, State], data: st.DataObject) -> None:
    run, told, found = truth
    kinds: dict[str, list[Any]] = {
        "params": [("param-9999", "new"), *((key, value + "?") for key, value in found.params.items())],
        "metrics": [("metric-9999", 0.5), ("metric-0", float("nan")), *((key, 2.0) for key in found.metrics)],
        "tags": [(key, value + "?") for key, value in told.certain.tags.items()],
    }
    if not (told.certain.finished or told.possible.finished):
        kinds["finished"] = [("FINISHED", True)]
    what = data.draw(st.sampled_from([*kinds]))
    key, value = data.draw(st.sampled_from(kinds[what]))
    if what == "finished":
        found.finished = True
    else:
        getattr(found, what)[key] = value
    faults = [finding.fault for finding in compare(run.name, told, found)]
    assert faults == [Fault.wrong]
    assert key in compare(run.name, told, found)[0].sentence


def test_one_fault_is_told_in_the_singular_and_many_in_the_plural() -> None:
    def told(change: State) -> list[str]:
        return [finding.sentence for finding in compare(run.name, paper(run, 100), change)]

    run = a_run(SMALL)
    whole = paper(run, 100).certain
    assert told(replace(whole, params=dict([*whole.params.items()][1:]), metrics=whole.metrics | {"x": 1.0})) == [
        f"{run.name}: 1 acknowledged param is missing: 'param-0'.",
        f"{run.name}: 1 metric holds what nobody has sent: 'x'.",
    ]
    assert told(replace(whole, params=whole.params | {"x": "", "y": ""}, metrics={})) == [
        f"{run.name}: 2 params hold what nobody has sent, first 'x'.",
        f"{run.name}: 3 acknowledged metrics are missing, first 'metric-0'.",
    ]


def test_a_run_that_was_never_acknowledged_need_not_be_there() -> None:
    run = a_run(SMALL)
    told = paper(run, 0)
    assert told.certain == State()
    assert told.possible == State(created=True, tags=dict(run.tags))


def test_artifacts_are_certain_when_their_upload_was_acknowledged() -> None:
    run = a_run(SMALL)
    upload = 4  # create, params, metrics, upload
    assert paper(run, upload - 1).certain.artifacts == {}
    assert paper(run, upload - 1).possible.artifacts == {"artifact-0.bin": run.artifacts[0]}
    assert paper(run, upload).certain.artifacts == {"artifact-0.bin": run.artifacts[0]}


def test_everything_acknowledged_leaves_nothing_possible() -> None:
    told = paper(a_run(SMALL), writes(SMALL), 1)
    assert told.certain.finished
    assert told.possible == State()


# A whole run, up to any of its requests, on a server that does what it is asked.


class Direct(Client):
    """Ask a server without a network between; one request fails, and the server has done it all the same or not."""

    def __init__(self, server: FakeMlflow, turns: int, fails_at: int, done: bool, lacks: Iterator[bool]) -> None:
        super().__init__(Place("0"), Lacking(), turn=self._turns_left)
        self.rows: list[tuple[Operation, Outcome]] = []
        self.beside: list[str] = []
        self._server = server
        self._turns = turns
        self._fails_at = fails_at
        self._done_all_the_same = done
        self._lacks = lacks
        self._where = Where("0")

    async def _turns_left(self, done: int) -> int | None:
        return 0 if done < self._turns else None

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        outcome = Outcome.ok
        if len(self.rows) == self._fails_at:
            # A gateway may answer anything at all.
            outcome = Outcome.timeout if self._done_all_the_same else Outcome.not_supported
        elif operation in OPTIONAL and next(self._lacks):
            outcome = Outcome.not_supported
        if outcome is Outcome.ok or (outcome is Outcome.timeout and self._done_all_the_same):
            self._send(operation, payload)
        self.rows.append((operation, outcome))
        if outcome is not Outcome.ok:
            raise Failed(Answer(outcome, 404 if outcome is Outcome.not_supported else 0, 0, 0, 0, b""))
        if (path := kept_at(operation, payload)) is not None:
            self.beside.append(path)
        return ("m-1",) if operation is Operation.create_logged_model else ()

    def _send(self, operation: Operation, payload: Any) -> None:
        run_id = self._where.run_id
        method, path, body = "POST", f"{API}/runs/log-batch", ""
        match operation:
            case Operation.create_run:
                path, body = f"{API}/runs/create", create_run_body("0", *payload, 0)
            case Operation.log_params:
                body = log_params_body(run_id, payload)
            case Operation.log_metrics:
                body = log_metrics_body(run_id, payload)
            case Operation.finish_run:
                path, body = f"{API}/runs/update", update_run_body(run_id, 1)
            case Operation.log_artifact:
                method, path, body = "PUT", f"{self._where.artifacts}/{payload.path}", "bytes"
            case _ if isinstance(payload, Batch):
                body = log_batch_body(run_id, payload)
            case _ if operation in READS | OPTIONAL:
                return
            case _:
                method, path, body, *_ = request_of(operation, payload, self._where)  # type: ignore[assignment]
        status, told = self._server.answer(method, path, "", body.encode())
        assert status == 200, told
        if operation is Operation.create_run:
            info = told["run"]["info"]
            self._where = Where("0", info["run_id"], artifact_path(info["artifact_uri"]))

    def close(self) -> None: ...


async def reading(run: Run, client: Client) -> None:
    """Look more often than anything is written, for as long as there are iterations."""
    await client.create_run(run.name, run.tags)
    number = 0
    while await client.turn():
        await client.get_run()
        if number % 3 == 1:
            await client.log_batch(run.batch(number))
        await client.search_runs(Search())
        number += 1
    await client.finish_run()


async def one_by_one(run: Run, client: Client) -> None:
    """Log everything by a request of its own, values again and again."""
    await client.create_run(run.name, run.tags)
    for number in range(20):
        if not await client.turn():
            break
        for param in run.batch(number).params:
            await client.log_param(param)
        for metric in run.batch(number).metrics:
            await client.log_metric(metric)
        for key, value in run.batch(number).tags:
            await client.set_tag(key, value)
    await client.finish_run()


async def several(run: Run, client: Client) -> None:
    """Create, fill and finish one MLflow run after the other."""
    number = 0
    while await client.turn():
        await client.create_run(*run.part(number))
        await client.log_batch(run.batch(number))
        await client.finish_run()
        number += 1


async def asking(run: Run, client: Client) -> None:
    """Ask again and again for what not every server has, between what every server has."""
    await client.ask(Operation.create_model, ("model", []))
    await client.create_run(run.name, run.tags)
    for number in range(10):
        if not await client.turn():
            break
        await client.ask(Operation.create_model_version, ("model", "there", []))
        await client.log_batch(run.batch(number))
        await client.ask(Operation.search_models, Search())
    await client.finish_run()


async def depending(run: Run, client: Client) -> None:
    """Log only where a model could be created."""
    await client.create_run(run.name, run.tags)
    for model_id in await client.ask(Operation.create_logged_model, "model"):
        await client.ask(Operation.finish_logged_model, model_id)
        await client.ask(Operation.create_model, ("model", []))
        await client.log_batch(run.batch(0))
    await client.finish_run()


WORKLOADS: dict[str, Play] = {
    **{name: load(name) for name in ("parallel-runs", "log-batch", "create-run", "models")},
    **{play.__name__: play for play in (reading, one_by_one, several, asking, depending)},
}
OPTIONALS = (asking, depending, load("models"))


class Played(NamedTuple):
    """A run that was played: what the paper says, what the server holds of each part, whether nothing is in doubt."""

    run: Run
    paper: list[Part]
    server: dict[int, State]
    certain: bool
    requests: int
    kept: list[str]
    beside: list[str]


def played(play: Play, plan: Plan, turns: int, fails_at: int, done: bool, lacks: Iterator[bool]) -> Played:
    """Play a run up to one of its requests, and then on paper up to the last acknowledged one."""
    run, server = a_run(plan), FakeMlflow()
    client = Direct(server, turns, fails_at, done, lacks)
    with suppress(Failed):
        asyncio.run(play(run, client))
    known = Acknowledged()
    known.add(as_rows([(run.number, operation, outcome, 1) for operation, outcome in client.rows]))
    there = {int(found.tags.get(PART_TAG, 0)): found_state(server._told_run(found)) for found in server.runs.values()}
    paper = asyncio.run(replay(play, run, *known.of(run.number), known.lacked))
    parts = paper.parts if len(known.runs) else []
    return Played(
        run,
        parts,
        there,
        not (done and client.rows[-1][1] is Outcome.timeout),
        len(client.rows),
        paper.kept,
        client.beside,
    )


def every_end(play: Play, plan: Plan) -> Iterator[Played]:
    """Play a run with few and more iterations up to each of its requests, on servers with and without extras."""
    lacking: list[list[bool]] = [[False], [True], [False, True], [True, False, False]]
    for turns, done, lacks in product((1, 2, 4), (False, True), lacking if play in OPTIONALS else [[False]]):
        requests = played(play, plan, turns, -1, done, cycle(lacks)).requests
        for fails_at in range(requests + 1):
            yield played(play, plan, turns, fails_at, done, cycle(lacks))


SMALLEST = {"params": 2, "metrics": 2, "tags": 2}
# What several requests have to hold.
SPLIT = {"params": 150, "metrics": 3, "tags": 101}


@pytest.mark.parametrize(
    ("workload", "amounts"),
    [*((name, SMALLEST) for name in WORKLOADS), *((name, SPLIT) for name in ("parallel-runs", "log-batch", "several"))],
)
def test_what_a_perfect_server_holds_is_in_order_wherever_the_acknowledgements_stopped(
    workload: str, amounts: dict[str, int]
) -> None:
    ends = beside = 0
    for told in every_end(WORKLOADS[workload], Plan(artifacts=2, artifact_size=1, **amounts)):
        certain = [part.certain for part in told.paper if part.certain.created]
        ends += len(certain)
        for number, sure in enumerate(certain):
            found = told.server[number]
            assert compare(told.run.part(number)[0], told.paper[number], found) == []
            # And what was acknowledged is certain, and nothing else is.
            if told.certain:
                assert sure.tags == {key: tag for key, tag in found.tags.items() if not key.startswith("mlflow.")}
                assert (sure.params, sure.metrics, sure.finished) == (found.params, found.metrics, found.finished)
        if told.certain:
            assert len(certain) == len(told.server)
        # What is there beside runs may be looked at wherever it is known to have been acknowledged.
        assert told.kept == told.beside[: len(told.kept)]
        beside += len(told.kept)
    assert ends
    assert bool(beside) == (WORKLOADS[workload] in OPTIONALS)


@pytest.mark.parametrize("finishes", [0, 1])
def test_a_run_that_only_reads_comes_to_an_end_on_paper(finishes: int) -> None:
    async def look(run: Run, client: Client) -> None:
        await client.create_run(run.name, run.tags)
        while await client.turn():
            await client.get_run()
        await client.finish_run()

    [part] = asyncio.run(replay(look, a_run(SMALL), 1 + finishes, finishes)).parts
    assert part.certain.finished == bool(finishes)
    assert part.possible.finished != bool(finishes)


def test_after_an_iteration_the_end_or_a_further_iteration_may_have_come() -> None:
    run = a_run(Plan(metrics=1, params=1, tags=1))
    [part] = asyncio.run(replay(load("log-batch"), run, 2)).parts
    assert part.certain == State(
        created=True,
        params={"param-0-0": run.batch(0).params[0][1]},
        metrics={"metric-0": run.batch(0).metrics[0].value},
        tags=dict(run.tags) | {"tag-0": run.batch(0).tags[0][1]},
    )
    assert part.possible == State(
        finished=True,
        params={"param-1-0": run.batch(1).params[0][1]},
        metrics={"metric-0": run.batch(1).metrics[0].value},
        tags={"tag-0": run.batch(1).tags[0][1]},
    )
    for values in ([part.certain.metrics, part.certain.tags], [part.possible.metrics, part.possible.tags]):
        found = replace(part.certain, metrics=values[0], tags=part.certain.tags | values[1])
        assert compare("a", part, found) == []
    found = replace(part.certain, metrics={"metric-0": 2.0}, tags=part.certain.tags | {"tag-0": "x"})
    assert [finding.fault for finding in compare("a", part, found)] == [Fault.wrong, Fault.wrong]


def test_what_may_have_come_has_to_be_what_was_sent_too() -> None:
    run = a_run(Plan(metrics=1, params=1, tags=1))
    [part] = asyncio.run(replay(load("log-batch"), run, 1)).parts
    found = State(True, False, {"param-0-0": "x"}, {"metric-0": 2.0}, dict(run.tags) | {"tag-0": "x"})
    assert [finding.fault for finding in compare("a", part, found)] == [Fault.wrong] * 3


def test_before_anything_is_created_there_is_nothing_to_be_finished() -> None:
    [part] = asyncio.run(replay(several, a_run(SMALL), 0)).parts
    assert part.certain == State()
    assert part.possible.created
    assert not part.possible.finished


def test_a_run_that_all_users_share_is_nobodys_creation() -> None:
    async def share(run: Run, client: Client) -> None:
        await client.join_run()
        await client.log_params(run.params)

    [part] = asyncio.run(replay(share, a_run(SMALL), 1)).parts
    assert part.certain == State(params=dict(a_run(SMALL).params))


# Counting what was acknowledged.


MANY = [
    Operation.create_run,
    Operation.log_batch,
    Operation.finish_run,
    Operation.create_model,
    Operation.create_model,
    Operation.log_spans,
    Operation.search_models,
    Operation.get_run,
    Operation.connect,
    Operation.end,
]
ROWS = st.lists(
    st.tuples(
        st.integers(0, 9) | st.integers(0, 5000),
        st.sampled_from(MANY),
        st.sampled_from([Outcome.ok, Outcome.ok, Outcome.timeout, Outcome.not_supported]),
        st.integers(0, 3),
    ),
    max_size=60,
)


def as_rows(told: list[tuple[int, Operation, Outcome, int]]) -> np.ndarray[Any, Any]:
    rows = np.zeros(len(told), RECORD)
    for row, (run, operation, outcome, attempt) in zip(rows, told, strict=True):
        row["run"], row["op"], row["outcome"], row["attempt"] = run, operation, outcome, attempt
    return rows


@given(ROWS, st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=5).map(sorted))
def test_acknowledged_writes_are_counted_in_any_order_and_in_any_pieces(
    told: list[tuple[int, Operation, Outcome, int]], shuffler: random.Random, cuts: list[int]
) -> None:
    # A row of an operation as a whole has no number of an attempt: its attempts are counted.
    counted = [
        (run, operation)
        for run, operation, outcome, attempt in told
        if outcome is Outcome.ok and attempt and operation not in READS | {Operation.end}
    ]
    lacked = {operation for _, operation, outcome, _ in told if outcome is Outcome.not_supported} & (OPTIONAL - READS)
    granted = {operation for _, operation in counted}
    shuffler.shuffle(told)
    known = Acknowledged()
    for piece in np.split(as_rows(told), cuts):
        known.add(piece)
    assert known.runs.tolist() == sorted({run for run, _ in counted})
    for run in known.runs.tolist():
        mine = [operation for other, operation in counted if other == run]
        optional = [operation for operation in mine if operation in OPTIONAL]
        # Where some were granted what others were not, nobody knows whose is whose.
        sure = len(optional) if granted.isdisjoint(lacked) else 0
        assert known.of(run) == (len(mine) - len(optional), mine.count(Operation.finish_run), sure)
    uploads = {outcome for _, operation, outcome, _ in told if operation is Operation.log_artifact}
    # Nobody can have been granted what a server leaves to its clients.
    left = Outcome.not_supported in uploads and Operation.log_artifact not in granted
    assert known.lacked == lacked | ({Operation.log_artifact} if left else set())


def test_memory_grows_with_the_runs_and_not_with_their_requests() -> None:
    known, grown = Acknowledged(), 0
    for run in range(1000):
        before = known.writes
        known.add(as_rows([(run, Operation.log_batch, Outcome.ok, 1)] * 5))
        grown += known.writes is not before
    assert known.of(999) == (5, 0, 0)
    assert len(known.writes) <= 1500
    # And what is there is seldom copied.
    assert grown < 20


# What a server says of a run.


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"info": []},
        {"info": {"status": "FINISHED"}, "data": {"params": [{}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": [{"key": "m", "value": "much"}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": [{"key": "m", "value": 10**400}]}},
        {"info": {"status": "FINISHED"}, "data": {"metrics": 5}},
        {"info": {"status": "FINISHED"}, "data": [1]},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no description of a run"):
        found_state(answer)


def test_empty_lists_may_be_left_out_and_numbers_may_be_text() -> None:
    assert found_state({"info": {"status": "RUNNING"}}) == State(created=True)
    told = {"info": {"status": "FINISHED"}, "data": {"params": [{"key": "p"}], "metrics": [{"key": "m", "value": "1"}]}}
    assert found_state(told) == State(created=True, finished=True, params={"p": ""}, metrics={"m": 1.0})
