"""Sign in at Mantik's token service, and renew a rank's token while it is in use, before it expires.

Rank 0 signs in, once, for all ranks. Then every rank renews its own token, at a random moment of a long window: ten
thousand ranks are a few requests per second to the service, and none of them has to wait for a word of another.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from threading import Thread
from types import TracebackType
from typing import Self

import msgspec
from msgspec.structs import replace

from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import ADVICE, MEANING, Api, refusal
from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal
from hpcstress.record import Outcome
from hpcstress.target import Mantik, Target, Token

_PATIENCE = 30.0
_LONGEST_ANSWER = 1 << 16
_LONGEST_LIFE = 86_400.0
_ACCESS = re.compile(r"[!-~]{1,16384}")

# Shares of a token's life: how much is left when it is renewed, and how long is waited after a renewal that failed.
_WINDOW = (0.25, 0.5)
_AGAIN = 0.05
_SHORTEST_PAUSE = 0.2

_MEANING = MEANING | {
    Outcome.auth: "refused the sign-in",
    Outcome.client_error: "refused the sign-in",
    Outcome.not_supported: "has no token service",
    Outcome.malformed: "gave no token that can be used",
}
_WHO = (Outcome.auth, Outcome.client_error)
_WHERE = (Outcome.refused, Outcome.closed, Outcome.not_supported, Outcome.malformed)
_WHEN = (Outcome.throttled, Outcome.gateway, Outcome.server_error)
_ADVICE = (
    ADVICE
    | dict.fromkeys(_WHO, "correct MANTIK_USERNAME and MANTIK_PASSWORD")
    | dict.fromkeys(_WHERE, "correct MANTIK_API_URL, or unset MANTIK_USERNAME and MANTIK_PASSWORD")
    | dict.fromkeys(_WHEN, "try again in some minutes")
)
_LATER = _ADVICE | dict.fromkeys(_WHO, "the next job signs in again")


class _Told(msgspec.Struct, rename="pascal"):
    access_token: str
    expires_at: str
    refresh_token: str = ""


class _Complaint(msgspec.Struct):
    detail: str = ""
    message: str = ""


async def sign_in(target: Target) -> None:
    """Get the target's token with user name and password if that is how to sign in there; refuse after one attempt."""
    mantik = target.mantik
    if mantik is None or mantik.token is not None:
        return
    dialer = Dialer(mantik.service)
    await dialer.resolve()
    try:
        token = await _ask(mantik, dialer, "create", {"password": mantik.password})
        if not token.refresh:
            raise Failed(_nonsense("it has no RefreshToken"))
    except Failed as failure:
        raise refusal(mantik.service, failure.answer, "signing in at Mantik", _MEANING, _ADVICE) from None
    mantik.token = token


def adopt(target: Target, token: Token | None) -> None:
    """Use the token that rank 0 has signed in for."""
    if (target.mantik is None) != (token is None):
        raise Refusal("MANTIK_USERNAME and MANTIK_PASSWORD are not set alike on all ranks: export them to every rank.")
    if target.mantik is not None:
        target.mantik.token = token


class Renewal:
    """Renew a target's token as long as the block runs, if it has one.

    This has a thread of its own, which sleeps nearly all the time: a token does not live longer because its rank rests,
    gathers rows or reads back.
    """

    def __init__(self, target: Target | None, token: Token | None) -> None:
        self._mantik = None
        self._past = self._reason = ""
        self._thread: Thread | None = None
        if target is not None:
            adopt(target, token)
            self._mantik = target.mantik
        if self._mantik is not None:
            # Certificates that cannot be read are refused here: in a thread it would be too late.
            self._dialer = Dialer(self._mantik.service)

    @property
    def trouble(self) -> str:
        """Say why a token was not renewed before it expired, "" as long as none was late."""
        token = self._mantik.token if self._mantik is not None else None
        late = token is not None and token.left <= 0
        return self._past or (f"Mantik's token expired before it was renewed. {self._reason}".strip() if late else "")

    async def _keep(self, mantik: Mantik) -> None:
        while (token := mantik.token) is not None:
            await _sleep(token.left - token.life * random.uniform(*_WINDOW))
            while (renewed := await self._renewed(mantik, token)) is None:
                await _sleep(token.life * _AGAIN * random.uniform(0.5, 1.0))
            self._past, self._reason = self.trouble, ""
            mantik.token = renewed

    async def _renewed(self, mantik: Mantik, token: Token) -> Token | None:
        try:
            await self._dialer.resolve()
            return await _ask(mantik, self._dialer, "refresh", {"refresh_token": token.refresh})
        except Refusal as refused:
            self._reason = str(refused)
        except Failed as failure:
            self._reason = str(refusal(mantik.service, failure.answer, "renewing the token", _MEANING, _LATER))
        return None

    def __enter__(self) -> Self:
        if self._mantik is not None:
            self._loop = asyncio.new_event_loop()
            self._task = self._loop.create_task(self._keep(self._mantik))
            self._thread = Thread(target=self._run, name="renewal")
            self._thread.start()
        return self

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
            self._loop.close()


async def _sleep(seconds: float) -> None:
    # Whatever the service says of its tokens, it is not asked all the time.
    await asyncio.sleep(max(_SHORTEST_PAUSE, seconds))


async def _ask(mantik: Mantik, dialer: Dialer, route: str, secret: Mapping[str, str]) -> Token:
    """Ask the service for a token with a secret, which is kept out of whatever the answer says."""
    heard = bytearray()

    def take(piece: bytes) -> None:
        heard.extend(piece[: _LONGEST_ANSWER - len(heard)])

    asked = time.monotonic()
    async with Api(dialer, _PATIENCE) as api:
        answer = await api.ask("POST", f"/mantik/tokens/{route}", {"username": mantik.username, **secret}, take)
        date = api.clock()
    if answer.outcome is not Outcome.ok:
        if answer.status:
            outcome = Outcome.not_supported if answer.status in (404, 405) else answer.outcome
            answer = replace(answer, outcome=outcome, body=_complaint(bytes(heard), secret))
        raise Failed(answer)
    try:
        told = msgspec.json.decode(heard, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Failed(_nonsense("it has no AccessToken and ExpiresAt")) from None
    if not _ACCESS.fullmatch(told.access_token):
        raise Failed(_nonsense("its AccessToken cannot stand in a header"))
    # The service's own clock says when its token expires, whatever this machine's clock shows. It tells a moment
    # between question and answer in whole seconds: the token is taken to be as old as it can be.
    now = time.time() if date is None else date + 1 + time.monotonic() - asked
    life = _expiry(told.expires_at) - now
    if not life > 0:
        raise Failed(_nonsense("its ExpiresAt is over"))
    return Token(told.access_token, told.refresh_token or secret.get("refresh_token", ""), min(life, _LONGEST_LIFE))


def _expiry(text: str) -> float:
    """Return an ISO 8601 time in seconds since 1970; one without a time zone is UTC."""
    try:
        expiry = datetime.fromisoformat(text)
    except ValueError:
        raise Failed(_nonsense("its ExpiresAt is no time")) from None
    return (expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)).timestamp()


def _complaint(body: bytes, secret: Mapping[str, str]) -> bytes:
    """Return the words of an error of Mantik's. Anything else may repeat what was sent, and is not repeated here."""
    try:
        complaint = msgspec.json.decode(body, type=_Complaint)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    words = complaint.detail or complaint.message
    for value in secret.values():
        words = words.replace(value, "***")
    return words.encode()


def _nonsense(reason: str) -> Answer:
    return Answer(Outcome.malformed, 0, 0, 0, 0, reason.encode())
