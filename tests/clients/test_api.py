from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trustme

from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import MAX_ANSWER, PAGE, Api, refusal
from hpcstress.clients.dial import Dialer
from hpcstress.record import Outcome
from hpcstress.target import Token, from_environment
from tests.peers import Answer as Reply
from tests.peers import Peer, Request, Streams, http_server, listening, reply, server_tls

T = TypeVar("T")
HOME = {"HOME": "/nonexistent"}


async def asked(uri: str, ask: Callable[[Api], Awaitable[T]], *, timeout: float = 20.0) -> T:
    target = from_environment(uri, HOME)
    dialer = Dialer(target)
    await dialer.resolve()
    async with Api(dialer, timeout) as api:
        return await ask(api)


def told(answer: Reply, ask: Callable[[Api], Awaitable[T]], *, timeout: float = 20.0) -> tuple[T, Peer]:
    """Return what a question to a server gives that answers so."""

    async def scene() -> tuple[T, Peer]:
        async with http_server(answer) as server:
            return await asked(server.uri, ask, timeout=timeout), server

    return asyncio.run(scene())


async def found(api: Api) -> list[dict[str, Any]]:
    return [run async for run in api.search_runs("7", "tags.`a` = 'b'")]


def failed(answer: Reply, ask: Callable[[Api], Awaitable[Any]], *, timeout: float = 20.0) -> Outcome:
    with pytest.raises(Failed) as failure:
        told(answer, ask, timeout=timeout)
    return failure.value.answer.outcome


# Questions.


def test_what_is_asked_in_a_workspace_names_it_and_nothing_after_it_is_left() -> None:
    async def ask(api: Api) -> None:
        for workspace in (None, "tenant-1", "tenant-2", None):
            api.enter(workspace)
            await api.get("experiments/get")

    _, server = told(reply(b"{}"), ask)
    named = [request.headers.get("x-mlflow-workspace") for request in server.requests]
    assert named == [None, "tenant-1", "tenant-2", None]


def test_questions_follow_each_other_on_one_connection() -> None:
    async def ask(api: Api) -> list[Any]:
        return [await api.post("experiments/search", {"max_results": 1}), await api.get("experiments/get", name="a b")]

    answers, server = told(reply(b'{"a": 1}'), ask)
    assert answers == [{"a": 1}, {"a": 1}]
    assert server.connections == 1
    post, get = server.requests
    assert (post.method, post.target) == ("POST", "/api/2.0/mlflow/experiments/search")
    assert post.headers["content-type"] == "application/json"
    assert json.loads(post.body) == {"max_results": 1}
    assert (get.method, get.target, get.body) == ("GET", "/api/2.0/mlflow/experiments/get?name=a%20b", b"")


def test_what_is_asked_for_may_hold_anything() -> None:
    name = "a&b=c/d?é\r\nX-Evil: 1"
    _, server = told(reply(), lambda api: api.get("experiments/get-by-name", experiment_name=name))
    assert server.requests[0].target.endswith("?experiment_name=a%26b%3Dc%2Fd%3F%C3%A9%0D%0AX-Evil%3A%201")
    assert "x-evil" not in server.requests[0].headers


def test_a_server_that_closes_after_each_answer_is_asked_on_a_new_connection() -> None:
    async def ask(api: Api) -> int:
        return sum([len(await api.post("x", {})) for _ in range(3)])

    total, server = told(reply(b'{"a": 1}', connection="close"), ask)
    assert (total, server.connections) == (3, 3)


def test_after_a_failure_the_next_question_has_a_new_connection() -> None:
    async def ask(api: Api) -> list[Outcome]:
        return [(await api.ask("GET", "/version")).outcome for _ in range(2)]

    outcomes, server = told(lambda request: b"" if request.connection == 0 else reply(b"3.0"), ask)
    assert outcomes == [Outcome.closed, Outcome.ok]
    assert server.connections == 2


def test_after_a_question_without_an_answer_the_next_is_not_asked_behind_it() -> None:
    async def answer(request: Request) -> bytes:
        if request.target == "/first":
            await asyncio.Event().wait()
        return reply(b"3.0")

    async def ask(api: Api) -> list[Outcome]:
        first = await api.ask("GET", "/first")
        api._timeout = 20.0
        return [first.outcome, (await api.ask("GET", "/version")).outcome]

    outcomes, server = told(answer, ask, timeout=0.05)
    assert outcomes == [Outcome.timeout, Outcome.ok]
    assert server.connections == 2


def test_a_sink_takes_what_is_not_to_be_kept() -> None:
    taken = bytearray()
    answer, _ = told(reply(b"x" * 300_000), lambda api: api.ask("GET", "/artifact", sink=taken.extend))
    assert (answer.outcome, answer.body) == (Outcome.ok, b"")
    assert taken == b"x" * 300_000


# Answers that are none.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"<html>",
        b"[]",
        b"null",
        b'"text"',
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
    ],
)
def test_an_answer_that_is_no_json_object_is_malformed(body: bytes) -> None:
    assert failed(reply(body), lambda api: api.post("x", {})) is Outcome.malformed


def test_an_answer_that_is_too_large_is_malformed_and_its_rest_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ANSWER >= 200 * 10_000 * 32  # a page of runs with 10,000 parameters each
    monkeypatch.setattr("hpcstress.clients.api.MAX_ANSWER", 1 << 20)
    body = b'{"a": "' + b"x" * (1 << 20) + b'"}'

    async def ask(api: Api) -> tuple[Outcome, int, int]:
        answer = await api.ask("GET", "/x")
        with pytest.raises(Failed) as failure:
            await api.post("x", {})
        return failure.value.answer.outcome, len(answer.body), answer.received

    (outcome, kept, received), _ = told(reply(body), ask)
    assert outcome is Outcome.malformed
    assert kept == 1 << 20
    assert received > len(body)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply(b"", "401 Unauthorized"), Outcome.auth),
        (reply(b"<html>", "404 Not Found"), Outcome.not_supported),
        (reply(b"", "503 Service Unavailable"), Outcome.gateway),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Outcome.malformed),
        (b"", Outcome.closed),
    ],
)
def test_a_failure_has_its_cause(answer: bytes, outcome: Outcome) -> None:
    assert failed(answer, lambda api: api.post("x", {})) is outcome


def test_a_server_that_does_not_answer_is_waited_for_only_so_long() -> None:
    async def never(request: Request) -> bytes:
        await asyncio.Event().wait()
        return b""

    answer, _ = told(never, lambda api: api.ask("GET", "/x"), timeout=0.05)
    assert (answer.outcome, answer.status) == (Outcome.timeout, 0)


def test_an_answer_that_never_ends_is_waited_for_only_so_long() -> None:
    async def endless(peer: Peer, number: int, streams: Streams) -> None:
        await streams[0].readuntil(b"\r\n\r\n")
        streams[1].write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            streams[1].write(b"x" * 1000)
            await streams[1].drain()
            await asyncio.sleep(0.001)

    async def scene() -> Answer:
        async with listening(Peer("http", "127.0.0.1"), endless) as server:
            return await asked(server.uri, lambda api: api.ask("GET", "/x"), timeout=0.05)

    assert asyncio.run(scene()).outcome is Outcome.timeout


def test_a_server_that_is_not_there_refuses_and_an_unknown_authority_is_tls() -> None:
    async def scene() -> list[Outcome]:
        async with http_server(reply(), tls=server_tls(trustme.CA(), "127.0.0.1")) as server:
            tls = await asked(server.uri, lambda api: api.ask("GET", "/x"))
        gone = await asked(server.uri, lambda api: api.ask("GET", "/x"))
        return [tls.outcome, gone.outcome]

    assert asyncio.run(scene()) == [Outcome.tls, Outcome.refused]


# What time the server has.


async def time_of(api: Api) -> float | None:
    await api.ask("GET", "/version")
    return api.clock()


@pytest.mark.parametrize("name", ["Date", "date", "DATE"])
def test_a_server_tells_its_time_with_every_answer(name: str, far_east: None) -> None:
    # The example of RFC 9110.
    answer = f"HTTP/1.1 200 OK\r\n{name}:  Sun, 06 Nov 1994 08:49:37 GMT \r\nContent-Length: 2\r\n\r\n{{}}".encode()
    assert told(answer, time_of)[0] == told(answer.replace(b" \r\nC", b"\r\nC"), time_of)[0] == 784_111_777


@pytest.mark.parametrize(
    "answer",
    [
        reply(),
        reply(date=""),
        reply(date="soon"),
        reply(date="Sun, 06 Nov 1994 08:49:37 +0100"),
        reply(date="Sun, 36 Nov 1994 08:49:37 GMT"),
        reply(date="Sun, 06 Nov 1994 08:49:37 GMT\x00"),
        reply(last_modified="Sun, 06 Nov 1994 08:49:37 GMT"),
        reply(b"\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_a_server_that_does_not_tell_its_time_has_none(answer: bytes) -> None:
    assert told(answer, time_of)[0] is None


# Pages of runs.


def pages(count: int, size: int) -> Callable[[Request], bytes]:
    """Answer a search with so many runs, page by page; the token is the number of the next run."""

    def answer(request: Request) -> bytes:
        question = json.loads(request.body)
        start = int(question.get("page_token", 0))
        page: dict[str, Any] = {"runs": [{"number": n} for n in range(start, min(count, start + size))]}
        if start + size < count:
            page["next_page_token"] = str(start + size)
        return reply(json.dumps(page if page["runs"] else {}).encode())

    return answer


@pytest.mark.parametrize(("count", "size", "requests"), [(0, 5, 1), (3, 5, 1), (5, 5, 1), (6, 5, 2), (23, 5, 5)])
def test_runs_are_found_on_all_pages(count: int, size: int, requests: int) -> None:
    runs, server = told(pages(count, size), found)
    assert [run["number"] for run in runs] == list(range(count))
    assert len(server.requests) == requests
    assert {request.target for request in server.requests} == {"/api/2.0/mlflow/runs/search"}
    first = json.loads(server.requests[0].body)
    assert first == {
        "experiment_ids": ["7"],
        "filter": "tags.`a` = 'b'",
        "run_view_type": "ACTIVE_ONLY",
        "max_results": PAGE,
    }


@pytest.mark.parametrize(
    ("told_token", "sent_token"),
    [
        # As FastTrackML 0.6 tells them: cut off after a multiple of three bytes.
        ("eyJvZmZzZXQiOjEwMDAw", '{"offset":10000}'),
        ("eyJvZmZzZXQiOjEwMDB9", '{"offset":1000}'),
        ("eyJvZmZzZXQiOjEwMDAwMH0K", '{"offset":100000}\n'),
        # As MLflow does.
        ("eyJvZmZzZXQiOiAxMDAwMH0=", '{"offset": 10000}'),
    ],
)
def test_a_token_that_fasttrackml_has_cut_off_is_made_whole(told_token: str, sent_token: str) -> None:
    def answer(request: Request) -> bytes:
        asked = json.loads(request.body).get("page_token")
        return reply(b'{"runs": [{}]}' if asked else b'{"runs": [{}], "next_page_token": "%s"}' % told_token.encode())

    runs, server = told(answer, found)
    assert len(runs) == 2
    assert base64.b64decode(json.loads(server.requests[1].body)["page_token"]).decode() == sent_token


@pytest.mark.parametrize("body", [b'{"runs": null, "next_page_token": null}', b'{"next_page_token": ""}', b"{}"])
def test_a_page_without_runs_is_the_last(body: bytes) -> None:
    runs, server = told(reply(body), found)
    assert (runs, len(server.requests)) == ([], 1)


@pytest.mark.parametrize("body", [b"[]", b'{"runs": 3}', b'{"runs": [1]}', b'{"next_page_token": 7}', b'{"runs": {}}'])
def test_a_page_that_makes_no_sense_is_malformed(body: bytes) -> None:
    assert failed(reply(body), found) is Outcome.malformed


def test_a_server_that_promises_pages_and_gives_no_runs_is_malformed() -> None:
    numbers = itertools.count()

    def endless(request: Request) -> bytes:
        return reply(b'{"runs": [], "next_page_token": "%d"}' % next(numbers))

    assert failed(endless, found) is Outcome.malformed


def test_a_server_that_gives_the_same_page_for_ever_is_malformed() -> None:
    assert failed(reply(b'{"runs": [{}], "next_page_token": "x"}'), found) is Outcome.malformed


def test_a_search_that_fails_on_a_later_page_has_failed() -> None:
    first = pages(23, 5)
    answer = lambda request: reply(b"", "500 Oops") if b"page_token" in request.body else first(request)  # noqa: E731
    assert failed(answer, found) is Outcome.server_error


# The sentence about it.


def sentence(outcome: Outcome, status: int = 0, body: bytes = b"") -> str:
    target = from_environment("https://mlflow.example/base", HOME | {"MLFLOW_TRACKING_TOKEN": "S3cr3t"})
    received = len(body) if status else 0
    refused = refusal(target, Answer(outcome, status, 0, 0, received, body), "signing in")
    assert "S3cr3t" not in str(refused)
    return str(refused)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ok])
def test_every_cause_is_told_with_the_server_the_occasion_and_what_to_do(outcome: Outcome) -> None:
    words = sentence(outcome)
    assert words.startswith("The server https://mlflow.example/base ")
    assert "(signing in): " in words
    assert re.fullmatch(r"[^.?].*[^.?][.?]", words)


def test_a_token_of_mantik_s_that_is_not_accepted_is_told_from_a_wrong_password() -> None:
    variables = {"MANTIK_USERNAME": "me", "MANTIK_PASSWORD": "S3cr3t", "MANTIK_API_URL": "https://api.example"}
    target = from_environment("https://mlflow.example", HOME | variables)
    assert target.mantik is not None
    target.mantik.token = Token("access", "refresh", 3600)
    words = str(refusal(target, Answer(Outcome.auth, 401, 0, 0, 0, b""), "signing in"))
    assert words == (
        "The server https://mlflow.example refused the sign-in (signing in): "
        "is it Mantik's tracking server? Else unset MANTIK_USERNAME and MANTIK_PASSWORD."
    )


def test_what_the_server_said_is_quoted_in_one_printable_line() -> None:
    assert sentence(Outcome.auth, 401, b"You are\nnot \x1b[31mauthenticated.").endswith(
        "TOKEN. It said: 'You are not [31mauthenticated.'"
    )
    assert sentence(Outcome.malformed, 200, b"hello").endswith("of a tracking server? It said: 'hello'.")


def test_what_this_machine_said_is_not_put_into_the_servers_mouth() -> None:
    words = sentence(Outcome.refused, 0, b"[Errno 111] Connection refused")
    assert "It said" not in words
    assert words.endswith("its address. ([Errno 111] Connection refused)")
    target = from_environment("https://mlflow.example", HOME)
    ours = refusal(target, Answer(Outcome.malformed, 200, 0, 0, 0, b"the same page for ever"), "reading")
    assert str(ours).endswith("tracking server? (the same page for ever)")


def test_a_status_that_has_no_meaning_here_is_told_as_it_is() -> None:
    assert "answered 500 (signing in): look into the server's log." in sentence(Outcome.server_error, 500)
