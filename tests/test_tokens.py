from __future__ import annotations

import asyncio
import json
import pickle
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcstress import tokens
from hpcstress.clients.answer import Failed
from hpcstress.errors import Refusal
from hpcstress.target import Target, Token, from_environment
from hpcstress.tokens import Renewal, adopt, sign_in
from tests.fake_mantik import PASSWORD, USERNAME, FakeMantik
from tests.fake_mlflow import Faults, served
from tests.mpi.launch import until
from tests.peers import Answer as Reply
from tests.peers import Peer, http_server, reply

MANTIK = {"MANTIK_USERNAME": USERNAME, "MANTIK_PASSWORD": PASSWORD, "HOME": "/nonexistent"}
URI = "https://tracking.example"


def target_of(service: str, **variables: str) -> Target:
    return from_environment(URI, MANTIK | {"MANTIK_API_URL": service} | variables)


def later(seconds: float, zone: timezone = UTC) -> str:
    return (datetime.now(zone) + timedelta(seconds=seconds)).isoformat()


def told(**changes: Any) -> bytes:
    """Return what a token service says, with changes; None leaves a field out."""
    fields = {"AccessToken": "access", "RefreshToken": "refresh", "ExpiresAt": later(3600)} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def signed_in(answer: Reply, **variables: str) -> tuple[Token, Peer]:
    """Sign in at a service that answers so; return the token and the service."""

    async def scene() -> tuple[Token, Peer]:
        async with http_server(answer) as service:
            target = target_of(service.uri, **variables)
            await sign_in(target)
            assert target.token is not None
            return target.token, service

    return asyncio.run(scene())


def refused(answer: Reply) -> str:
    """Sign in and be refused; return the sentence, which holds no secret, after exactly one request."""

    async def scene() -> str:
        async with http_server(answer) as service:
            target = target_of(service.uri)
            with pytest.raises(Refusal) as refusal:
                await sign_in(target)
            assert len(service.requests) == 1
            assert target.token is None
            assert PASSWORD not in "".join(traceback.format_exception(refusal.value))
            return str(refusal.value).replace(service.uri, "SERVICE")

    return asyncio.run(scene())


# Signing in.


def test_user_name_and_password_are_shown_once_to_the_token_service() -> None:
    token, service = signed_in(reply(told()), MLFLOW_WORKSPACE="team-a", MLFLOW_TRACKING_TOKEN="of-mlflow")
    [request] = service.requests
    assert (request.method, request.target) == ("POST", "/mantik/tokens/create")
    assert json.loads(request.body) == {"username": USERNAME, "password": PASSWORD}
    assert not request.headers.keys() & {"authorization", "x-mlflow-workspace"}
    assert (token.access, token.refresh) == ("access", "refresh")


def test_the_service_may_live_below_a_path() -> None:
    async def scene() -> str:
        async with http_server(reply(told())) as service:
            await sign_in(target_of(f"{service.uri}/v2/"))
            return service.requests[0].target

    assert asyncio.run(scene()) == "/v2/mantik/tokens/create"


def test_every_request_then_bears_the_token() -> None:
    async def scene() -> bytes:
        async with http_server(reply(told())) as service:
            target = target_of(service.uri)
            assert b"Authorization" not in target.head("GET", "/")
            await sign_in(target)
            return target.head("GET", "/")

    assert b"\r\nAuthorization: Bearer access\r\n" in asyncio.run(scene())


def test_nobody_signs_in_twice() -> None:
    async def scene() -> int:
        async with http_server(reply(told())) as service:
            target = target_of(service.uri)
            await sign_in(target)
            await sign_in(target)
            return len(service.requests)

    assert asyncio.run(scene()) == 1


def test_without_mantik_s_variables_there_is_nothing_to_do() -> None:
    target = from_environment(URI, {"HOME": "/nonexistent", "MLFLOW_TRACKING_TOKEN": "of-mlflow"})
    asyncio.run(sign_in(target))
    assert (target.token, target.credentials) == (None, "Bearer of-mlflow")


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "400 Bad Request", "422 Unprocessable"])
def test_a_wrong_password_is_one_sentence_after_one_attempt(status: str) -> None:
    assert refused(reply(b'{"detail": "Incorrect username or password."}', status)) == (
        "The server SERVICE refused the sign-in (signing in at Mantik): correct MANTIK_USERNAME and MANTIK_PASSWORD. "
        "It said: 'Incorrect username or password.'"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"detail": "no such password: correct-horse!"}', "no such password: ***!"),
        (b'{"message": "correct-horse\\r\\n\\u001b[2J!"}', "*** [2J!"),
        (b'{"detail": [{"input": {"password": "correct-horse"}}]}', None),
        (b"<html>password=correct-horse</html>", None),
        (b'{"detail": 7}', None),
        (b'"correct-horse"', None),
        (b"\xff\xfe", None),
    ],
)
def test_what_a_service_repeats_of_a_password_is_not_repeated(body: bytes, words: str | None) -> None:
    sentence = refused(reply(body, "401 Unauthorized"))
    assert sentence.partition(" It said: ")[2] == ("" if words is None else repr(words))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("404 Not Found", "has no token service (signing in at Mantik): correct MANTIK_API_URL, or unset MANTIK_U"),
        ("405 Method Not Allowed", "has no token service"),
        ("301 Moved", "gave no token that can be used"),
        ("429 Too Many Requests", "answered 429 (signing in at Mantik): try again in some minutes"),
        ("503 Service Unavailable", "answered 503 (signing in at Mantik): try again in some minutes"),
        ("500 Internal Server Error", "answered 500 (signing in at Mantik): try again in some minutes"),
    ],
)
def test_a_service_in_trouble_is_told_from_a_wrong_password(status: str, sentence: str) -> None:
    assert refused(reply(b"", status)).startswith(f"The server SERVICE {sentence}")


def test_a_service_that_is_not_there_is_refused() -> None:
    async def scene() -> str:
        async with http_server(b"") as service:
            target = target_of(service.uri)
        with pytest.raises(Refusal) as refusal:
            await sign_in(target)
        return str(refusal.value)

    sentence = asyncio.run(scene())
    assert "cannot be reached (signing in at Mantik): correct MANTIK_API_URL, or unset" in sentence
    assert "Errno 111" in sentence


def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(Refusal, match=r"The host no-such-host\.invalid cannot be resolved"):
        asyncio.run(sign_in(target_of("http://no-such-host.invalid")))


def test_a_service_that_does_not_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PATIENCE", 0.05)

    async def never(_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    assert refused(never).startswith("The server SERVICE does not answer (signing in at Mantik): ")


# What the service says is not trusted.


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it has no AccessToken and ExpiresAt"),
        (b"<html>hello</html>", "it has no AccessToken and ExpiresAt"),
        (b"\xff\xfe\x00", "it has no AccessToken and ExpiresAt"),
        (b"[" * 60_000, "it has no AccessToken and ExpiresAt"),
        (b"[]", "it has no AccessToken and ExpiresAt"),
        (told(AccessToken=None), "it has no AccessToken and ExpiresAt"),
        (told(ExpiresAt=None), "it has no AccessToken and ExpiresAt"),
        (told(RefreshToken=None), "it has no RefreshToken"),
        (told(RefreshToken=""), "it has no RefreshToken"),
        (told(AccessToken=7), "it has no AccessToken and ExpiresAt"),
        (told(ExpiresAt=1_900_000_000), "it has no AccessToken and ExpiresAt"),
        (told(AccessToken=""), "its AccessToken cannot stand in a header"),
        (told(AccessToken="a\r\nX-Admin: 1"), "its AccessToken cannot stand in a header"),
        (told(AccessToken="a b"), "its AccessToken cannot stand in a header"),
        (told(AccessToken="é"), "its AccessToken cannot stand in a header"),
        (told(AccessToken="a\n"), "its AccessToken cannot stand in a header"),
        (told(AccessToken="a" * 16_385), "its AccessToken cannot stand in a header"),
        (told(padding="a" * 70_000), "it has no AccessToken and ExpiresAt"),
        (told(ExpiresAt="tomorrow"), "its ExpiresAt is no time"),
        (told(ExpiresAt=""), "its ExpiresAt is no time"),
        (told(ExpiresAt="2999-13-01T00:00:00Z"), "its ExpiresAt is no time"),
        (told(ExpiresAt=later(-1)), "its ExpiresAt is over"),
        (told(ExpiresAt="0001-01-01T00:00:00+23:59"), "its ExpiresAt is over"),
    ],
    ids=lambda told: told if isinstance(told, str) else f"{len(told)} bytes",
)
def test_an_answer_that_is_no_token_is_refused_with_what_it_lacks(body: bytes, reason: str) -> None:
    assert refused(reply(body)) == (
        "The server SERVICE gave no token that can be used (signing in at Mantik): "
        f"correct MANTIK_API_URL, or unset MANTIK_USERNAME and MANTIK_PASSWORD. ({reason})"
    )


def test_an_answer_without_end_is_refused_with_little_of_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PATIENCE", 0.2)
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n" + told(padding="a" * 10_000_000)
    assert refused(endless).startswith("The server SERVICE does not answer")


@given(st.text() | st.datetimes(timezones=st.none() | st.timezones()).map(datetime.isoformat))
def test_any_text_is_a_time_or_nonsense(text: str) -> None:
    # Nothing else may leave it but a refusal.
    with suppress(Failed):
        assert isinstance(tokens._expiry(text), float)


@pytest.mark.parametrize("expiry", ["9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59"])
def test_a_token_that_never_expires_is_renewed_every_day_all_the_same(expiry: str) -> None:
    token, _ = signed_in(reply(told(ExpiresAt=expiry)))
    assert token.life == 86_400


# When a token expires.


@pytest.mark.parametrize("skew", [-86_400, -3600, 0, 3600, 86_400])
def test_the_service_s_own_clock_says_how_long_its_token_lives(skew: float) -> None:
    date = formatdate(datetime.now(UTC).timestamp() + skew, usegmt=True)
    token, _ = signed_in(reply(told(ExpiresAt=later(skew + 3600)), date=date))
    # It counts whole seconds, and the answer took a while: rather too short than too long.
    assert 3500 < token.left < 3600


def test_the_time_that_the_answer_took_is_no_part_of_its_token_s_life() -> None:
    date = formatdate(usegmt=True)
    expires = parsedate_to_datetime(date) + timedelta(seconds=100)

    async def slowly(_: object) -> bytes:
        await asyncio.sleep(0.3)
        return reply(told(ExpiresAt=expires.isoformat()), date=date)

    token, _ = signed_in(slowly)
    assert token.life <= 100 - 1 - 0.29


@pytest.mark.parametrize("date", [None, "yesterday", "Tue, 31 Feb 2026 10:00:00 GMT"])
def test_a_service_that_does_not_tell_its_clock_is_taken_to_have_this_machine_s(date: str | None) -> None:
    headers = {} if date is None else {"date": date}
    token, _ = signed_in(reply(told(ExpiresAt=later(3600)), **headers))
    assert 3500 < token.left <= 3600


@pytest.mark.parametrize(
    "written",
    [
        lambda: later(3600, timezone(timedelta(hours=-9, minutes=-30))),
        lambda: later(3600).replace("+00:00", "Z"),
        lambda: later(3600).removesuffix("+00:00"),
    ],
)
def test_a_time_is_read_in_its_zone_and_without_one_as_utc(written: Callable[[], str], far_east: None) -> None:
    token, _ = signed_in(reply(told(ExpiresAt=written())))
    assert 3500 < token.left <= 3600


def test_from_rank_to_rank_a_token_travels_with_the_time_that_it_has_left() -> None:
    token = Token("access", "refresh", 3600)
    # As if this machine's clock had begun to count a day before the other's.
    token.until -= 1800
    arrived = pickle.loads(pickle.dumps(token))
    assert (arrived.access, arrived.refresh) == ("access", "refresh")
    assert 1700 < arrived.life <= 1800
    assert 1700 < arrived.until - monotonic() <= 1800


def test_a_token_does_not_write_its_secrets() -> None:
    assert "access" not in repr(Token("access-token", "refresh-token", 1)).replace("hpcstress", "")


# On the other ranks.


def test_a_token_that_rank_0_has_signed_in_for_is_everybody_s() -> None:
    target, token = target_of("http://127.0.0.1:1"), Token("access", "refresh", 3600)
    adopt(target, token)
    assert (target.token, target.credentials) == (token, "Bearer access")


@pytest.mark.parametrize(
    ("variables", "token"), [(MANTIK | {"MANTIK_API_URL": URI}, None), ({}, Token("access", "refresh", 3600))]
)
def test_ranks_that_are_not_told_the_same_are_refused(variables: dict[str, str], token: Token | None) -> None:
    target = from_environment(URI, variables | {"HOME": "/nonexistent"})
    with pytest.raises(Refusal, match="not set alike on all ranks: export them to every rank"):
        Renewal(target, token)


# Renewing.


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew long before a short life ends: a busy machine must not fail a test."""
    monkeypatch.setattr(tokens, "_WINDOW", (0.7, 0.8))


def entered(server: FakeMantik) -> Target:
    target = from_environment("", server.environment)
    asyncio.run(sign_in(target))
    return target


@pytest.mark.usefixtures("early")
def test_a_token_is_renewed_again_and_again_while_the_one_before_it_lives() -> None:
    with served(FakeMantik(1.5, dated=False)) as server:
        target = entered(server)
        with Renewal(target, target.token) as renewal:
            until(lambda: len(server.renewals) >= 4)
            assert renewal.trouble == ""
        assert len(server.sign_ins) == 1
        assert all(asked.left > 0 for asked in server.renewals)
        assert {json.dumps(asked.body) for asked in server.renewals} == {
            json.dumps({"username": USERNAME, "refresh_token": server.refresh_token})
        }
        assert target.token is not None
        assert target.token.access in [*server.expiry][-2:]


def test_a_token_that_is_no_longer_used_is_not_renewed() -> None:
    with served(FakeMantik(1.0, dated=False)) as server:
        target = entered(server)
        with Renewal(target, target.token):
            until(lambda: server.renewals)
            assert "renewal" in {thread.name for thread in threading.enumerate()}
        assert "renewal" not in {thread.name for thread in threading.enumerate()}


def test_without_a_token_no_thread_is_started() -> None:
    before = threading.active_count()
    plain = from_environment(URI, {"HOME": "/nonexistent"})
    with Renewal(None, None) as nothing, Renewal(plain, None) as other:
        assert threading.active_count() == before
        assert nothing.trouble == other.trouble == ""


def test_ten_thousand_ranks_renew_at_moments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 10_000:
            raise asyncio.CancelledError

    async def renewed(*_: object) -> Token:
        return Token("access", "refresh", 3600)

    monkeypatch.setattr(tokens, "_sleep", sleep)
    monkeypatch.setattr(Renewal, "_renewed", renewed)
    target = target_of("http://127.0.0.1:1")
    renewal = Renewal(target, Token("access", "refresh", 3600))
    assert target.mantik is not None
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(renewal._keep(target.mantik))
    # The service answers them from half of a token's life to three quarters, 11 per second of an hour's life.
    assert min(slept) > 1790
    assert max(slept) <= 2700
    busiest = max(sum(start <= moment < start + 60 for moment in slept) for start in range(1800, 2700, 60))
    assert busiest < 2 * 10_000 / 15


def test_a_service_in_trouble_is_asked_again_at_moments_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1000:
            raise asyncio.CancelledError

    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr(tokens, "_sleep", sleep)
    monkeypatch.setattr(Renewal, "_renewed", nothing)
    target = target_of("http://127.0.0.1:1")
    renewal = Renewal(target, Token("access", "refresh", 3600))
    assert target.mantik is not None
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(renewal._keep(target.mantik))
    # Five times and more while the old token lives, then on and on.
    assert 90 <= min(slept[1:]) < 95
    assert 175 < max(slept[1:]) <= 180


def test_a_service_whose_tokens_hardly_live_is_not_asked_all_the_time() -> None:
    async def scene(seconds: float) -> float:
        before = monotonic()
        await tokens._sleep(seconds)
        return monotonic() - before

    assert min(asyncio.run(scene(seconds)) for seconds in (-5, 0, 0.001)) > 0.19


def failing(server: FakeMantik, act: Callable[[Target, Renewal], None]) -> None:
    target = entered(server)
    with Renewal(target, target.token) as renewal:
        act(target, renewal)


@pytest.mark.usefixtures("early")
def test_a_renewal_that_fails_is_tried_again_and_no_trouble_if_it_succeeds_in_time() -> None:
    def act(target: Target, renewal: Renewal) -> None:
        old = target.token
        until(lambda: [seen for seen in server.requests if seen.status == 503])
        server.faults.unavailable, server.life = 0, 3600
        until(lambda: target.token is not old)
        assert renewal.trouble == ""
        # What went wrong once is not the reason of what goes wrong later.
        assert target.mantik is not None
        target.mantik.token = Token("access", "refresh", 0)
        assert renewal.trouble == "Mantik's token expired before it was renewed."

    with served(FakeMantik(1.5, dated=False, faults=Faults(unavailable=1, at="tokens/refresh"))) as server:
        failing(server, act)
        assert len(server.sign_ins) == 1


def test_a_renewal_that_is_refused_is_trouble_once_the_token_has_expired() -> None:
    def act(target: Target, renewal: Renewal) -> None:
        until(lambda: server.renewals)
        assert target.token is not None
        if renewal.trouble:
            assert target.token.left <= 0
        until(lambda: renewal.trouble)
        assert renewal.trouble == (
            "Mantik's token expired before it was renewed. The server "
            f"{server.uri} refused the sign-in (renewing the token): the next job signs in again. "
            "It said: 'Refresh token *** has expired'."
        )

    with served(FakeMantik(1.0, dated=False)) as server:
        server.refuses = True
        failing(server, act)
        assert len(server.sign_ins) == 1


def test_trouble_is_remembered_when_the_service_comes_back_too_late() -> None:
    def act(target: Target, renewal: Renewal) -> None:
        until(lambda: renewal.trouble)
        server.refuses = False
        old = target.token
        until(lambda: target.token is not old)
        assert renewal.trouble.startswith("Mantik's token expired before it was renewed. The server ")

    with served(FakeMantik(0.8, dated=False)) as server:
        server.refuses = True
        failing(server, act)


def test_the_end_does_not_wait_for_a_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_PATIENCE", 3600.0)
    with served(FakeMantik(0.5, dated=False, faults=Faults(delay=3600, at="tokens/refresh"))) as server:
        failing(server, lambda *_: until(lambda: server.renewals))


def test_a_newer_refresh_token_takes_the_place_of_the_old_one() -> None:
    async def scene() -> list[str]:
        async with http_server(lambda _: reply(told(RefreshToken="next", ExpiresAt=later(0.4)))) as service:
            target = target_of(service.uri)
            await sign_in(target)
            assert target.mantik is not None
            target.mantik.token = Token("access", "first", 0.1)
            with Renewal(target, target.mantik.token):
                while len(service.requests) < 3:
                    await asyncio.sleep(0.01)
            return [json.loads(request.body)["refresh_token"] for request in service.requests[1:]]

    assert asyncio.run(scene())[:2] == ["first", "next"]


def test_certificates_that_cannot_be_read_are_refused_before_load(tmp_path: Path) -> None:
    variables = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "none.pem")}
    target = target_of("https://api.example", **variables)
    with pytest.raises(Refusal, match="MLFLOW_TRACKING_SERVER_CERT_PATH names"):
        Renewal(target, Token("access", "refresh", 3600))
