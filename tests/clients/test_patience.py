"""The wire client is as patient as MLflow's: both face the same server, which has trouble."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

from hpcstress.clients import Client, Place
from hpcstress.clients.answer import Failed
from hpcstress.clients.dial import Dialer
from hpcstress.clients.retries import Policy
from hpcstress.clients.wire import Wire
from hpcstress.journal import Journal
from hpcstress.target import from_environment
from tests.clients.stocking import Row, played, rows_of, seen, stocked
from tests.clients.wiring import created
from tests.peers import Peer, Request, http_server, reply


async def log_params(client: Client) -> None:
    await client.create_run("a name", [])
    await client.log_params([("a", "b")])


async def by_wire(server: Peer, folder: Path) -> list[Row]:
    dialer = Dialer(from_environment(server.uri, {"HOME": str(folder)}))
    await dialer.resolve()
    with Journal(folder / "wire", 0, {}) as journal:
        client = Wire(dialer, journal, Place("7"), 1.0, Policy()).client(3, monotonic_ns())
        journal.begin(0, monotonic_ns())
        try:
            await log_params(client)
        except Failed:
            client.close()
        client.close()
        return seen(rows_of(journal))


async def by_stock(server: Peer, folder: Path) -> list[Row]:
    with stocked(server.uri, folder, patient=True, timeout=1.0) as (stock, journal):
        await played(stock, log_params)
        return [row for row in seen(rows_of(journal)) if row.attempt]


@pytest.mark.parametrize(
    "answers",
    [
        [reply(b"", "503 Service Unavailable")],
        [reply(b"", "500 Internal Server Error")],
        [reply(b"", "413 Content Too Large", retry_after="1")],
        [reply(b"", "413 Content Too Large")],
        [reply(b"", "400 Bad Request", retry_after="1")],
        [b""],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{"],
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
    ],
)
def test_both_make_the_same_attempts(tmp_path: Path, answers: list[bytes]) -> None:
    async def record(play: Callable[[Peer, Path], Any]) -> list[Row]:
        asked = Counter[str]()

        def answer(request: Request) -> bytes:
            if "runs/create" in request.target:
                return reply(created())
            asked["batches"] += 1
            return answers[asked["batches"] - 1] if asked["batches"] <= len(answers) else reply()

        async with http_server(answer) as server:
            rows: list[Row] = await play(server, tmp_path)
            return rows

    expected = asyncio.run(record(by_stock))
    # A status is nothing that the wire client believes in an answer that has not come to its end.
    by_outcome = [(row.op, row.attempt, row.outcome) for row in expected]
    assert [(row.op, row.attempt, row.outcome) for row in asyncio.run(record(by_wire))] == by_outcome
