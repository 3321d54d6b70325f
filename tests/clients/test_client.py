from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients import MOST_REQUESTS, Client, Lacking, Place, Search, Turn, no_turn
from hpcstress.clients.answer import Answer, Failed
from hpcstress.content import Artifact, Batch, Metric
from hpcstress.record import OPTIONAL, Operation, Outcome

SHARED = Place("7", ("shared", "mlflow-artifacts:/7/shared"), "9")


class Recorder(Client):
    """Write down what is asked for; answer as the test says."""

    def __init__(
        self,
        answers: dict[Operation, Any] | None = None,
        *,
        lacking: Lacking | None = None,
        turn: Turn = no_turn,
        requests: int = 0,
    ) -> None:
        super().__init__(SHARED, lacking or Lacking(), 5, turn)
        self._requests = requests
        self.asked: list[tuple[Operation, Any]] = []
        self.runs: list[tuple[str, str]] = []
        self.experiments: list[str] = []
        self._answers = answers or {}

    async def _request(self, operation: Operation, payload: Any) -> Sequence[str]:
        self.asked.append((operation, payload))
        answer = self._answers.get(operation, ())
        if isinstance(answer, Outcome):
            raise Failed(Answer(answer, 404, 0, 0, 0, b""))
        return answer(payload) if callable(answer) else answer

    def _adopt_run(self, run_id: str, artifact_uri: str) -> None:
        self.runs.append((run_id, artifact_uri))

    def _enter(self, experiment_id: str) -> None:
        self.experiments.append(experiment_id)

    def close(self) -> None: ...


def names(client: Recorder) -> list[str]:
    return [operation.name for operation, _ in client.asked]


# Iterations.


async def limited(turns: int, instants: list[int]) -> tuple[int, int, list[int]]:
    """Ask for iterations until there is none; return how many there were, how many are said, what was asked."""
    asked: list[int] = []

    async def turn(done: int) -> int | None:
        asked.append(done)
        return instants[done] if done < turns else None

    client, there = Recorder(turn=turn), 0
    dues = [client._due]
    while await client.turn():
        there += 1
        dues.append(client._due)
    assert dues[1:] == [5, *instants[1:turns]]
    return there, client.turns, asked


@given(st.integers(1, 20))
def test_the_first_iteration_is_the_runs_own_and_further_ones_are_asked_for(turns: int) -> None:
    there, said, asked = asyncio.run(limited(turns, [100 * number for number in range(turns)]))
    assert there == said == turns
    assert asked == [*range(1, turns + 1)]


def test_a_run_whose_workload_knows_of_no_iterations_is_one() -> None:
    assert Recorder().turns == 1


def test_a_run_that_nobody_gives_turns_has_one_iteration() -> None:
    client = Recorder()
    assert [asyncio.run(client.turn()), asyncio.run(client.turn())] == [True, False]
    assert client.turns == 1


def test_a_run_ends_before_its_requests_cannot_be_numbered_and_its_iterations_stay_counted() -> None:
    async def always(done: int) -> int | None:
        return done

    client = Recorder(turn=always, requests=MOST_REQUESTS - 1)
    assert asyncio.run(client.turn())
    assert asyncio.run(client.turn())
    client._requests += 1
    assert not asyncio.run(client.turn())
    assert client.turns == 2


# What not every server has.


def test_what_a_server_lacks_is_asked_for_once_by_all_clients_of_a_rank() -> None:
    lacking = Lacking()
    for expected in (["search_prompts", "list_workspaces"], ["list_workspaces"], ["list_workspaces"]):
        client = Recorder({Operation.search_prompts: Outcome.not_supported}, lacking=lacking)
        assert asyncio.run(client.ask(Operation.search_prompts, None)) == ()
        assert asyncio.run(client.ask(Operation.list_workspaces, None)) == ()
        assert names(client) == expected
    assert lacking.operations == {Operation.search_prompts}


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.ok, Outcome.not_supported}))
def test_any_other_failure_of_it_ends_the_run(outcome: Outcome) -> None:
    lacking = Lacking()
    client = Recorder({Operation.create_model: outcome}, lacking=lacking)
    with pytest.raises(Failed):
        asyncio.run(client.ask(Operation.create_model, ("m", [])))
    assert lacking.operations == set()


def test_what_a_server_has_is_found() -> None:
    client = Recorder({Operation.search_models: ["a", "b"]})
    assert asyncio.run(client.ask(Operation.search_models, Search())) == ["a", "b"]


@pytest.mark.parametrize("operation", sorted(set(Operation) - OPTIONAL))
def test_what_every_server_has_is_not_asked_for_that_way(operation: Operation) -> None:
    with pytest.raises(AssertionError):
        asyncio.run(Recorder().ask(operation, None))


# What operations consist of.


@given(st.integers(0, 2300), st.integers(0, 230), st.integers(0, 230))
def test_a_batch_is_sent_in_as_many_requests_as_it_takes_under_the_name_that_was_asked_for(
    metrics: int, params: int, tags: int
) -> None:
    client = Recorder()
    batch = Batch([Metric("m", 0.5, 0, 0)] * metrics, [("p", "v")] * params, [("t", "v")] * tags)
    asyncio.run(client.log_batch(batch, Operation.log_400_metrics))
    assert [payload for _, payload in client.asked] == [*batch.split(1000, 100, 100)]
    assert {operation for operation, _ in client.asked} <= {Operation.log_400_metrics}


def test_a_metric_is_read_page_by_page() -> None:
    pages = {"": ["a"], "a": ["b"], "b": []}
    client = Recorder({Operation.get_metric_history: lambda asked: pages[asked[1]]})
    asyncio.run(client.get_metric_history("loss"))
    assert [payload for _, payload in client.asked] == [("loss", ""), ("loss", "a"), ("loss", "b")]


def test_a_page_that_leads_to_itself_is_the_last() -> None:
    client = Recorder({Operation.get_metric_history: ["again"]})
    asyncio.run(client.get_metric_history("loss"))
    assert [payload for _, payload in client.asked] == [("loss", ""), ("loss", "again")]


def test_the_run_is_looked_at_once_before_its_artifacts_and_again_for_another_run() -> None:
    async def scene(client: Client) -> None:
        for start in (client.create_run("a", []), client.join_run()):
            await start
            for index in range(2):
                await client.log_artifact(Artifact("a", 1, 1, 1, index))

    client = Recorder()
    asyncio.run(scene(client))
    assert names(client) == ["create_run", *["get_run", "log_artifact", "log_artifact"] * 2]
    assert client.runs == [SHARED.shared_run]


def test_who_looks_at_a_run_of_others_has_it_from_then_on() -> None:
    client = Recorder()
    asyncio.run(client.get_run("abc"))
    asyncio.run(client.get_run())
    assert client.runs == [("abc", "")]
    assert names(client) == ["get_run", "get_run"]


def test_an_experiment_that_is_there_is_entered_without_a_request() -> None:
    client = Recorder()
    asyncio.run(client.enter_experiment(client.place.prefilled))
    assert (client.experiments, client.asked) == (["9"], [])


@pytest.mark.parametrize(
    ("call", "operation", "payload"),
    [
        (lambda client: client.log_param(("k", "v")), Operation.log_param, ("k", "v")),
        (lambda client: client.log_metric(Metric("m", 1, 2, 3)), Operation.log_metric, Metric("m", 1, 2, 3)),
        (lambda client: client.set_tag("k", "v"), Operation.set_tags, ("k", "v")),
        (lambda client: client.create_experiment("n", []), Operation.create_experiment, ("n", [])),
        (lambda client: client.get_experiment(), Operation.get_experiment, None),
        (lambda client: client.search_experiments(Search("c")), Operation.search_experiments, Search("c")),
        (lambda client: client.search_runs(Search("c", 5)), Operation.search_runs, Search("c", 5)),
        (lambda client: client.list_artifacts(), Operation.list_artifacts, None),
        (lambda client: client.download_artifact("a/b"), Operation.download_artifact, "a/b"),
    ],
)
def test_all_else_is_one_request(call: Any, operation: Operation, payload: Any) -> None:
    client = Recorder()
    asyncio.run(call(client))
    assert client.asked == [(operation, payload)]
