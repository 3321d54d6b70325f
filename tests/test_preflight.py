from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress.clients.api import Api
from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal, UsageRefusal
from hpcstress.folder import open_files_limit
from hpcstress.plan import Plan
from hpcstress.preflight import Experiment, check_open_files, check_ranks, find_experiment, sign_in, wait_until_back
from hpcstress.target import from_environment
from tests.fake_mlflow import Faults, serving
from tests.peers import http_server, reply

T = TypeVar("T")


def ask(environment: dict[str, str], question: Callable[[Api], Awaitable[T]], timeout: float = 5.0) -> T:
    async def scene() -> T:
        target = from_environment("", environment)
        dialer = Dialer(target)
        await dialer.resolve()
        async with Api(dialer, timeout) as api:
            return await question(api)

    return asyncio.run(scene())


def refused(environment: dict[str, str], question: Callable[[Api], Awaitable[object]], timeout: float = 5.0) -> str:
    with pytest.raises(Refusal) as refusal:
        ask(environment, question, timeout)
    assert refusal.value.exit_code == 1
    return str(refusal.value)


def answered(body: bytes, question: Callable[[Api], Awaitable[object]], status: str = "200 OK") -> str:
    """Return the refusal of a question that a server answers with some bytes."""

    async def scene() -> str:
        async with http_server(reply(body, status)) as server:
            return await asyncio.to_thread(
                refused, {"MLFLOW_TRACKING_URI": server.uri, "HOME": "/nonexistent"}, question
            )

    return asyncio.run(scene())


# Signing in.


def test_a_server_that_lets_in_tells_its_version() -> None:
    with serving(password="correct-horse") as server:
        assert ask(server.environment, sign_in) == "3.17.2"


def test_a_wrong_password_is_tried_once_and_told_in_one_sentence() -> None:
    with serving(password="correct-horse") as server:
        wrong = server.environment | {"MLFLOW_TRACKING_PASSWORD": "battery-staple"}
        sentence = refused(wrong, sign_in)
        assert server.refused_sign_ins == len(server.requests) == 1
    assert sentence == (
        f"The server {server.uri} refused the sign-in (signing in): set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. It said: 'You are not authenticated. "
        "Please see the documentation.'"
    )


def test_a_server_that_is_not_there_is_told_from_one_that_does_not_answer() -> None:
    with serving(Faults(delay=3600)) as server:
        assert "does not answer (signing in)" in refused(server.environment, sign_in, timeout=0.1)
    assert "cannot be reached (signing in): start it, or correct its address." in refused(server.environment, sign_in)


@pytest.mark.parametrize("body", [b"<html>Welcome to our web shop</html>", b"[]", b"", b"[" * 10_000])
def test_a_server_that_is_no_mlflow_is_told_so(body: bytes) -> None:
    assert "is that the address of a tracking server?" in answered(body, sign_in)


def test_a_server_without_a_version_is_let_be() -> None:
    async def scene() -> str:
        def answer(request: object) -> bytes:
            return reply(b"gone", "404 Not Found") if "/version" in str(request) else reply(b"{}")

        async with http_server(answer) as server:
            environment = {"MLFLOW_TRACKING_URI": server.uri, "HOME": "/nonexistent"}
            return await asyncio.to_thread(ask, environment, sign_in)

    assert asyncio.run(scene()) == "unknown"


# The experiment.


def named(name: str) -> Callable[[Api], Awaitable[Experiment]]:
    return lambda api: find_experiment(api, None, name)


def numbered(number: str) -> Callable[[Api], Awaitable[Experiment]]:
    return lambda api: find_experiment(api, number, "not asked for")


def test_an_experiment_that_is_only_named_is_created_once() -> None:
    with serving() as server:
        created = ask(server.environment, named("new one/ü"))
        assert created.created
        assert server.experiments[created.id].name == "new one/ü"
        assert ask(server.environment, named("new one/ü")) == Experiment(created.id, created=False)
        assert len(server.experiments) == 2


def test_an_experiment_is_found_by_its_id() -> None:
    with serving() as server:
        assert ask(server.environment, numbered("0")) == Experiment("0", created=False)
        assert len(server.experiments) == 1


def test_an_id_that_does_not_exist_is_refused_and_creates_nothing() -> None:
    with serving() as server:
        sentence = refused(server.environment, numbered("77"))
        assert len(server.experiments) == 1
    assert sentence.startswith("There is no experiment '77' on the server: correct MLFLOW_EXPERIMENT_ID")


def test_a_deleted_experiment_is_refused_by_id_and_by_name() -> None:
    with serving() as server:
        server.experiments["0"].stage = "deleted"
        assert "The experiment '0' is deleted on the server: restore it" in refused(server.environment, numbered("0"))
        assert "The experiment 'Default' is deleted" in refused(server.environment, named("Default"))


@pytest.mark.parametrize("switch", ["unavailable", "throttled"])
def test_a_server_that_fails_is_told_with_what_was_asked_of_it(switch: str) -> None:
    status = {"unavailable": 503, "throttled": 429}[switch]
    with serving(Faults(**{switch: 1}, at="get-by-name")) as server:
        sentence = refused(server.environment, named("new"))
        assert f"answered {status} (asking for the experiment)" in sentence
        assert len(server.experiments) == 1
    with serving(Faults(**{switch: 1}, at="create")) as server:
        assert f"answered {status} (creating the experiment 'new')" in refused(server.environment, named("new"))


@pytest.mark.parametrize("body", [b"{}", b'{"experiment": 5}', b'{"experiment": {"name": "x"}}', b"[]", b"no"])
@pytest.mark.parametrize("question", [named("x"), numbered("5")])
def test_nonsense_about_an_experiment_is_refused(body: bytes, question: Callable[[Api], Awaitable[Experiment]]) -> None:
    assert "answered with something that is not MLflow's JSON" in answered(body, question)


# Waiting for a server that was away.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask more often."""
    monkeypatch.setattr("hpcstress.preflight._PAUSE_SECONDS", 0.05)


def waiting(seconds: float, *, given_up: bool = False) -> Callable[[Api], Awaitable[float | None]]:
    return lambda api: wait_until_back(api, seconds, lambda: given_up)


def test_a_server_that_is_there_is_not_waited_for_whatever_it_answers() -> None:
    for faults in (Faults(), Faults(throttled=1), Faults(exhausted=1)):
        with serving(faults) as server:
            waited = ask(server.environment, waiting(60))
            assert waited is not None
            assert len(server.requests) == 1


@pytest.mark.usefixtures("impatient")
def test_a_server_behind_a_gateway_that_has_none_is_waited_for() -> None:
    with serving(Faults(unavailable=1)) as server:
        assert ask(server.environment, waiting(0.2)) is None
        assert len(server.requests) > 1


@pytest.mark.usefixtures("impatient")
def test_a_server_that_comes_back_in_time_is_found() -> None:
    with serving(Faults(die_after=1, back_after=0.1)) as server:
        assert ask(server.environment, waiting(60)) == pytest.approx(0.1, abs=5)


def test_waiting_can_be_given_up() -> None:
    with serving(Faults(die_after=1)) as server:
        assert ask(server.environment, waiting(3600, given_up=True)) is None


# Open files.


def test_what_fits_is_let_pass_to_the_last_file() -> None:
    room = open_files_limit() - 200
    check_open_files(room, 1)
    check_open_files(3 * room, 3)
    with pytest.raises(Refusal, match=f"{room + 1:,} runs at once on 1 rank would open {room + 201:,} files on each"):
        check_open_files(room + 1, 1)


@given(st.integers(1, 1000), st.integers(1, 50))
def test_the_number_of_ranks_that_is_offered_is_enough_and_the_least(times: int, ranks: int) -> None:
    largest = open_files_limit() * times
    try:
        check_open_files(largest, ranks)
    except Refusal as refusal:
        offered = int(str(refusal).partition("use ")[2].split()[0].replace(",", ""))
        check_open_files(largest, offered)
        with pytest.raises(Refusal):
            check_open_files(largest, offered - 1)
    else:
        assert ranks >= times


@pytest.mark.parametrize(
    ("limit", "advice"),
    [
        (201, "use 1,000 ranks or more, or raise `ulimit -n`"),
        # Not even one run has room: no number of ranks is enough.
        (200, "raise `ulimit -n`"),
        (150, "raise `ulimit -n`"),
    ],
)
def test_ranks_are_offered_where_a_rank_has_room_for_a_run(
    monkeypatch: pytest.MonkeyPatch, limit: int, advice: str
) -> None:
    monkeypatch.setattr("hpcstress.preflight.open_files_limit", lambda: limit)
    with pytest.raises(Refusal) as refusal:
        check_open_files(1000, 1)
    assert str(refusal.value).endswith(f"1,200 files on each, the limit is {limit}: {advice}.")


@pytest.mark.parametrize(
    ("plan", "most", "sentence"),
    [
        (Plan(runs=(2, 5)), 5, "6 ranks are more than the largest step has: 5 runs. Take fewer ranks, or give more"),
        (Plan(users=(1,)), 1, "2 ranks are more than the largest step has: 1 user. Take fewer ranks"),
        (Plan(runs=(2,), prefill_runs=8), 8, "9 ranks are more than"),
    ],
)
def test_more_ranks_than_there_is_work_for_are_refused(plan: Plan, most: int, sentence: str) -> None:
    check_ranks(plan, most)
    with pytest.raises(UsageRefusal) as refused:
        check_ranks(plan, most + 1)
    assert sentence in str(refused.value)


def test_too_few_open_files_are_told_before_anything_is_sent() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300));"
        "from hpcstress.cli import main; main(['--client=null', '--runs=10,1000', '--output=never-made'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == (
        "1,000 runs at once on 1 rank would open 1,200 files on each, the limit is 300: "
        "use 10 ranks or more, or raise `ulimit -n`.\n"
    )
