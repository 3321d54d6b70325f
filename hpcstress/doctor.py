"""See from every rank: can it reach the server, sign in, open enough files, agree on the clock."""

from __future__ import annotations

import asyncio
import statistics
import time
from socket import gethostname
from typing import NamedTuple

from hpcstress.clients.answer import Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.dial import Dialer
from hpcstress.errors import Refusal
from hpcstress.folder import open_files_limit
from hpcstress.preflight import sign_in
from hpcstress.ranks import World
from hpcstress.target import Token
from hpcstress.tokens import adopt

_ROUND_TRIPS = 5


class Finding(NamedTuple):
    """Hold what one rank found out; times in seconds, clocks in nanoseconds. `trouble` is empty when all is well."""

    rank: int
    host: str
    server: str
    round_trip: float
    open_files: int
    clock_offset_ns: int
    clock_error_ns: int
    import_seconds: float
    trouble: str


def examine(world: World, dialer: Dialer | None, timeout: float, import_seconds: float) -> list[Finding]:
    """Return every rank's findings on rank 0. Rank 0 signs in first: a wrong password is tried once, not by all."""
    if dialer is not None:
        token = world.only_first(lambda: asyncio.run(_enter(dialer, timeout)))
        world.first_refusal(lambda: adopt(dialer.target, token))
    offset = world.offset()
    server, round_trip, trouble = "", 0.0, ""
    if dialer is not None:
        try:
            server, round_trip = asyncio.run(_reach(dialer, timeout))
        except Refusal as refused:
            trouble = str(refused)
    return world.collect(
        Finding(
            rank=world.rank,
            host=gethostname(),
            server=server,
            round_trip=round_trip,
            open_files=open_files_limit(),
            clock_offset_ns=offset.offset_ns,
            clock_error_ns=offset.error_ns,
            import_seconds=import_seconds,
            trouble=trouble,
        )
    )


async def _enter(dialer: Dialer, timeout: float) -> Token | None:
    await _reach(dialer, timeout)
    return dialer.target.token


async def _reach(dialer: Dialer, timeout: float) -> tuple[str, float]:
    async with Api(dialer, timeout) as api:
        version = await sign_in(api)
        times = []
        for _ in range(_ROUND_TRIPS):
            before = time.monotonic()
            try:
                await api.post("experiments/search", {"max_results": 1})
            except Failed as failure:
                raise refusal(api.target, failure.answer, "asking again") from None
            times.append(time.monotonic() - before)
        return version, statistics.median(times)
