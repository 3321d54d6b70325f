"""See from every rank: can it reach the server, sign in, open enough files, agree on the clock."""

from __future__ import annotations

import asyncio
import os
import ssl
import statistics
import time
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from hpcstress.clients.answer import Answer, Failed
from hpcstress.clients.api import Api, refusal
from hpcstress.clients.dial import Dialer
from hpcstress.clients.wire import connect_outcome
from hpcstress.errors import Refusal
from hpcstress.folder import open_files_limit
from hpcstress.launcher import node_name
from hpcstress.preflight import sign_in
from hpcstress.ranks import World
from hpcstress.target import Token
from hpcstress.tokens import adopt

_ROUND_TRIPS = 5


class Finding(NamedTuple):
    """Hold what one rank found out; times in seconds, clocks in nanoseconds. `trouble` is empty when all is well.

    `tls` is the protocol's version, empty where there is none; `server` the version, empty unless it let the rank in.
    """

    rank: int
    node: str
    reached: bool
    tls: str
    server: str
    round_trip: float
    open_files: int
    clock_offset_ns: int
    clock_error_ns: int
    import_seconds: float
    trouble: str


class Node(NamedTuple):
    """Hold what the ranks of a node found out together: of each figure the worst, and each trouble once."""

    name: str
    size: int
    ranks: str
    reached: int
    tls: str
    server: str
    round_trip: float
    open_files: int
    clock_offset_ns: int
    clock_error_ns: int
    import_seconds: float
    troubles: tuple[str, ...]


def examine(world: World, dialer: Dialer | None, timeout: float, import_seconds: float) -> list[Finding]:
    """Return every rank's findings on rank 0. Rank 0 signs in first: a wrong password is tried once, not by all.

    Where rank 0 does not reach the server, nobody signs in, and the others find out whether they would reach it.
    """
    reached, tls, server, round_trip, trouble = False, "", "", 0.0, ""
    if dialer is not None:
        try:
            tls = asyncio.run(_reach(dialer, timeout))
            reached = True
        except Refusal as refused:
            trouble = str(refused)
        # In a tuple: there is a word also where there is no token.
        token = world.only_first(lambda: (asyncio.run(_enter(dialer, timeout)),) if reached else None)
        if token is not None:
            world.first_refusal(lambda: adopt(dialer.target, token[0]))
            if reached:
                try:
                    server, round_trip = asyncio.run(_ask(dialer, timeout))
                except Refusal as refused:
                    trouble = str(refused)
    offset = world.offset()
    return world.collect(
        Finding(
            rank=world.rank,
            node=node_name(os.environ),
            reached=reached,
            tls=tls,
            server=server,
            round_trip=round_trip,
            open_files=open_files_limit(),
            clock_offset_ns=offset.offset_ns,
            clock_error_ns=offset.error_ns,
            import_seconds=import_seconds,
            trouble=trouble,
        )
    )


def by_node(findings: Sequence[Finding]) -> list[Node]:
    """Return what was found out on each node, in the order of their first ranks."""
    nodes: dict[str, list[Finding]] = {}
    for finding in findings:
        nodes.setdefault(finding.node, []).append(finding)
    return [_together(name, found) for name, found in nodes.items()]


def _together(name: str, found: Sequence[Finding]) -> Node:
    furthest = max(found, key=lambda finding: abs(finding.clock_offset_ns))
    return Node(
        name=name,
        size=len(found),
        ranks=_ranges([finding.rank for finding in found]),
        reached=sum(finding.reached for finding in found),
        tls=next((finding.tls for finding in found if finding.tls), ""),
        server=next((finding.server for finding in found if finding.server), ""),
        round_trip=max(finding.round_trip for finding in found),
        open_files=min(finding.open_files for finding in found),
        clock_offset_ns=furthest.clock_offset_ns,
        clock_error_ns=furthest.clock_error_ns,
        import_seconds=max(finding.import_seconds for finding in found),
        troubles=tuple(dict.fromkeys(finding.trouble for finding in found if finding.trouble)),
    )


def _ranges(ranks: Sequence[int]) -> str:
    """Return ranks as people write them: `0-3,8`."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(ranks), lambda entry: entry[1] - entry[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


async def _reach(dialer: Dialer, timeout: float) -> str:
    """Connect, and say nothing: return the version of TLS, empty without."""
    try:
        async with asyncio.timeout(timeout):
            transport, _ = await dialer.dial(asyncio.Protocol)
    except (OSError, ssl.SSLError) as error:
        # TimeoutError is an OSError, too.
        answer = Answer(connect_outcome(error), 0, 0, 0, 0, str(error).encode())
        raise refusal(dialer.target, answer, "connecting") from None
    spoken = transport.get_extra_info("ssl_object")
    transport.abort()
    return str(spoken.version()) if spoken is not None else ""


async def _enter(dialer: Dialer, timeout: float) -> Token | None:
    await _ask(dialer, timeout)
    return dialer.target.token


async def _ask(dialer: Dialer, timeout: float) -> tuple[str, float]:
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
