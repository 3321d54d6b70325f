"""An MLflow server behind Mantik's sign-in, and Mantik's token service, in memory and at one address.

with served(FakeMantik(life=2.0)) as server:
    ...                             # sign in with server.environment, then look at server.renewals
"""

from __future__ import annotations

import itertools
import json
import time
from datetime import UTC, datetime
from email.utils import formatdate
from time import monotonic
from typing import Any, NamedTuple

from tests.fake_mlflow import Answer, FakeMlflow, Faults

USERNAME = "somebody"
PASSWORD = "correct-horse"
ROUTES = "/mantik/tokens/"


class Asked(NamedTuple):
    """One request for a token, and how many seconds the newest token still had to live."""

    body: dict[str, Any]
    left: float


class FakeMantik(FakeMlflow):
    """Give tokens that live for `life` seconds, and answer MLflow's requests to whoever shows a living one.

    Its clock is `skew` seconds before this machine's; without `dated` it does not tell it. With a `grace` a token lives
    so many seconds longer than it says: for tests whose machine is busy.
    """

    def __init__(
        self,
        life: float = 3600.0,
        *,
        skew: float = 0.0,
        dated: bool = True,
        grace: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(faults)
        self.life = life
        self.skew = skew
        self.dated = dated
        self.grace = grace
        self.refuses = False
        self.sign_ins: list[Asked] = []
        self.renewals: list[Asked] = []
        self.expiry: dict[str, float] = {}
        self.refresh_token = "the-refresh-token"
        self._count = itertools.count(1)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MANTIK_API_URL": self.uri,
            "MANTIK_USERNAME": USERNAME,
            "MANTIK_PASSWORD": PASSWORD,
            "HOME": "/nonexistent",
        }

    def secrets(self) -> list[str]:
        """Return everything that nobody else may read."""
        return [PASSWORD, self.refresh_token, *self.expiry]

    def headers(self) -> str:
        return f"Date: {formatdate(time.time() + self.skew, usegmt=True)}\r\n" if self.dated else ""

    def answer(self, method: str, target: str, authorization: str, body: bytes, workspace: str | None = None) -> Answer:
        if target.startswith(ROUTES):
            return self._tokens(target.removeprefix(ROUTES), json.loads(body))
        if self.expiry.get(authorization.removeprefix("Bearer "), -self.grace) + self.grace <= monotonic():
            self.refused_sign_ins += 1
            return 401, {"message": "Unauthorized"}
        return super().answer(method, target, "", body, workspace)

    def _tokens(self, route: str, body: dict[str, Any]) -> Answer:
        asked = Asked(body, max(self.expiry.values(), default=monotonic()) - monotonic())
        if route == "create":
            self.sign_ins.append(asked)
            if body != {"username": USERNAME, "password": PASSWORD}:
                return 401, {"detail": "Incorrect username or password."}
            return 200, {**self._token(), "RefreshToken": self.refresh_token}
        self.renewals.append(asked)
        if self.refuses or body != {"username": USERNAME, "refresh_token": self.refresh_token}:
            return 401, {"detail": f"Refresh token {body['refresh_token']} has expired"}
        return 200, self._token()

    def _token(self) -> dict[str, str]:
        access = f"the-access-token-{next(self._count)}"
        self.expiry[access] = monotonic() + self.life
        expires = datetime.fromtimestamp(time.time() + self.skew + self.life, UTC)
        return {"AccessToken": access, "ExpiresAt": expires.isoformat()}
