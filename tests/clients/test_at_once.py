"""Several requests of one run at once: each on a connection of its own, all of them the run's, numbered as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from hpcstress.clients import Place
from hpcstress.clients.answer import Failed
from hpcstress.clients.dial import Dialer
from hpcstress.clients.wire import Wire, WireClient
from hpcstress.content import Artifact
from hpcstress.journal import Journal
from hpcstress.record import RECORD, Operation, Outcome
from hpcstress.target import from_environment
from tests.clients.wiring import created
from tests.peers import Peer, Request, http_server, reply

FILES = [Artifact(f"file-{index}.bin", 100, 1, 3, index) for index in range(6)]
Play = Callable[[WireClient], Any]


async def uploaded(folder: Path, at_once: int, answer: Any) -> tuple[np.ndarray[Any, Any], Failed | None, Peer]:
    """Create a run and upload six files, then finish it; return its rows, how it failed, and the server."""
    failure = None
    async with http_server(answer) as server:
        dialer = Dialer(from_environment(server.uri, {"HOME": str(folder)}))
        await dialer.resolve()
        with Journal(folder / "rows", 0, {}) as journal:
            journal.begin(0, monotonic_ns())
            wire = Wire(dialer, journal, Place("7"), 5.0)
            client = wire.client(3, monotonic_ns())
            try:
                await client.create_run("a run", ())
                await client.log_artifacts(FILES, at_once)
                await client.finish_run()
            except Failed as failed:
                failure = failed
            finally:
                client.close()
            rows = np.concatenate([np.zeros(0, RECORD), *journal.rows()])
        assert not wire.connections
    return rows, failure, server


class Gate:
    """Answer uploads only when so many are under way at the same time; a server that waits for more hangs."""

    def __init__(self, together: int) -> None:
        self._together = together
        self._waiting = 0
        self._open = asyncio.Event()
        self.most = 0

    async def answer(self, request: Request) -> bytes:
        if request.method != "PUT":
            return reply(created())
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        if self._waiting == self._together:
            self._open.set()
        await self._open.wait()
        self._waiting -= 1
        return reply()


def test_so_many_uploads_are_under_way_at_once_each_on_its_own_connection(tmp_path: Path) -> None:
    async def scene() -> None:
        gate = Gate(3)
        rows, failure, server = await uploaded(tmp_path, 3, gate.answer)
        assert failure is None
        assert gate.most == 3
        assert server.connections == 3
        assert len({request.connection for request in server.requests if request.method == "PUT"}) == 3
        # All that is not an upload goes over the first one.
        assert {request.connection for request in server.requests if request.method != "PUT"} == {0}
        assert sorted(request.target.rpartition("/")[2] for request in server.requests if request.method == "PUT") == [
            file.path for file in FILES
        ]
        assert rows["outcome"].tolist() == [Outcome.ok] * len(rows)

    asyncio.run(scene())


def test_one_after_the_other_they_share_the_connection(tmp_path: Path) -> None:
    rows, _, server = asyncio.run(uploaded(tmp_path, 1, reply(created())))
    assert server.connections == 1
    assert [Operation(op).name for op in rows["op"]] == [
        *("connect", "create_run", "get_run"),
        *["log_artifact"] * 6,
        *("get_run", "finish_run"),
    ]
    assert [request.target.rpartition("/")[2] for request in server.requests[2:8]] == [file.path for file in FILES]


def test_their_rows_are_numbered_as_one_run_and_what_follows_is_due_when_all_are_done(tmp_path: Path) -> None:
    rows, _, _ = asyncio.run(uploaded(tmp_path, 4, reply(created())))
    assert sorted(rows["seq"].tolist()) == [*range(len(rows))]
    assert set(rows["run"]) == {3}
    last = int(rows["end"][rows["op"] == Operation.log_artifact].max())
    [after] = rows[rows["op"] == Operation.get_run][1:]
    assert after["start"] >= after["due"] >= last
    # The first on each connection is due when all begin.
    uploads = rows[rows["op"] == Operation.log_artifact]
    assert (uploads["start"] >= uploads["due"]).all()


def test_after_a_failure_no_other_begins_and_the_run_ends(tmp_path: Path) -> None:

    async def scene() -> None:
        failed = asyncio.Event()

        async def answer(request: Request) -> bytes:
            if request.method != "PUT":
                return reply(created())
            if request.target.endswith("file-1.bin"):
                failed.set()
                return reply(b"no", "500 Internal Server Error")
            # Still under way when the other one fails: it is finished, and acknowledged.
            await failed.wait()
            for _ in range(100):
                # Both sides run in this loop: let the other one hear of the failure before.
                await asyncio.sleep(0)
            return reply()

        rows, failure, server = await uploaded(tmp_path, 2, answer)
        assert failure is not None
        assert failure.answer.status == 500
        uploads = rows[rows["op"] == Operation.log_artifact]
        assert sorted(uploads["outcome"].tolist()) == [Outcome.ok, Outcome.server_error]
        assert sum(request.method == "PUT" for request in server.requests) == 2
        assert not (rows["op"] == Operation.finish_run).any()

    asyncio.run(scene())


def test_no_more_connections_are_made_than_there_are_files(tmp_path: Path) -> None:
    async def scene() -> None:
        gate = Gate(6)
        _, failure, server = await uploaded(tmp_path, 50, gate.answer)
        assert failure is None
        assert server.connections == 6

    asyncio.run(scene())


def test_a_run_that_is_interrupted_has_a_row_for_each_upload_under_way(tmp_path: Path) -> None:
    async def scene() -> None:
        gate = Gate(4)

        async def answer(request: Request) -> bytes:
            return await gate.answer(request)

        async with http_server(answer) as server:
            dialer = Dialer(from_environment(server.uri, {"HOME": str(tmp_path)}))
            await dialer.resolve()
            with Journal(tmp_path / "rows", 0, {}) as journal:
                journal.begin(0, monotonic_ns())
                wire = Wire(dialer, journal, Place("7"), 5.0)
                client = wire.client(3, monotonic_ns())
                await client.create_run("a run", ())
                uploads = asyncio.create_task(client.log_artifacts(FILES, 3))
                while gate.most < 3:
                    await asyncio.sleep(0)
                uploads.cancel()
                await asyncio.wait([uploads])
                client.close()
                rows = np.concatenate([*journal.rows()])
            assert not wire.connections
        told = rows[rows["op"] == Operation.log_artifact]
        assert told["outcome"].tolist() == [Outcome.interrupted] * 3

    asyncio.run(scene())
